#!/usr/bin/env python3
"""Feeds VINS-Mono or VINS-Fusion with the front end's tracks, in place of their own feature tracker.

    python3 vins_bridge.py --ros-args -p estimator:=vins_mono
    python3 vins_bridge.py --ros-args -p estimator:=vins_fusion -r loftr_front_end/tracks:=/robot/loftr_front_end/tracks

Subscribes to `loftr_front_end/tracks`; publishes `sensor_msgs/PointCloud` on /feature_tracker/feature, and
`std_msgs/Bool` on /feature_tracker/restart where the stream breaks off, as VINS-Mono's tracker does. Start the
estimator without its feature tracker. Both are ROS 1 packages, with several ports to ROS 2 that keep the message.

What the estimators read of the message, by the sources of both (HKUST-Aerial-Robotics):

- points are (x / z, y / z, 1) of undistorted rays; the stamp is the image's;
- VINS-Mono: the channels are id, u, v, velocity x, velocity y. It skips the first message;
- VINS-Fusion: id, number of the camera, u, v, velocity x, velocity y, and three more for a known point. It reads those
  three whenever there are more than five channels, so that six would be read beyond their end; they are zeros here;
- velocities are those of the rays, in 1/s, by which it moves points when it estimates the camera's delay;
- ids go through float32, which is exact up to 2^24. Ours are 64-bit numbers, and get small ones here;
- VINS-Mono has room for 1000 landmarks in its window and does not check: `max_features` must stay well below.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import rclpy
from geometry_msgs.msg import Point32
from loftr_ros.msg import Tracks
from rcl_interfaces.msg import IntegerRange, ParameterDescriptor
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import ChannelFloat32, PointCloud
from std_msgs.msg import Bool

CHANNELS = {
    "vins_mono": ("id_of_point", "u_of_point", "v_of_point", "velocity_x_of_point", "velocity_y_of_point"),
    "vins_fusion": (
        *("id_of_point", "camera_id", "p_u", "p_v", "velocity_x", "velocity_y"),
        *("gx", "gy", "gz"),
    ),
}
# Seconds without an image after which VINS-Mono's tracker restarts the estimator; and back to which an observation
# counts for a velocity.
RESTART_AFTER, VELOCITY_REACH = 1.0, 0.4
# float32 holds all whole numbers up to here.
LARGEST_ID = 1 << 24


@dataclass
class Known:
    """A landmark that was seen before.

    Attributes:
        number: its small id; -1 as long as it was never published.
        stamp: of the last observation, in seconds.
        ray: (2,) of the last observation.
        age: observations so far.
    """

    number: int
    stamp: float
    ray: np.ndarray
    age: int


class VinsFeatures:
    """Chooses tracks for the estimator and knows their velocities and small ids."""

    def __init__(self, max_features: int = 150, min_distance: int = 30) -> None:
        """Begin.

        Args:
            max_features: most features of a message.
            min_distance: side in pixels of the squares of which each gives one feature.
        """
        self.max_features, self.min_distance = max_features, min_distance
        self._known: dict[int, Known] = {}
        self._next = 0
        self._last: float | None = None

    def breaks_off(self, stamp: float) -> bool:
        """Whether the estimator must begin anew at this stamp; forgets all landmarks then."""
        last, self._last = self._last, stamp
        if last is None or 0 <= stamp - last <= RESTART_AFTER:
            return False
        self._known.clear()
        self._next = 0
        return True

    def features(self, stamp: float, ids: np.ndarray, pixels: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Features of one image.

        Args:
            stamp: of the image, in seconds.
            ids: (N,) of landmarks.
            pixels, rays: (N, 2) of each.

        Returns:
            (M, 7): small id, x / z, y / z, u, v, and the ray's velocity in 1/s.
        """
        usable = np.isfinite(rays).all(axis=1)
        ids, pixels, rays = ids[usable], pixels[usable], rays[usable]
        before = [self._known.get(landmark) for landmark in ids.tolist()]
        recent = [known if known is not None and stamp - known.stamp <= VELOCITY_REACH else None for known in before]
        ages = np.array([0 if known is None else known.age for known in recent], np.int64)
        rows = []
        for i in self._spread(pixels, ages):
            known = recent[i]
            if known is None or stamp <= known.stamp:  # without a velocity yet
                continue
            if known.number < 0:
                known.number, self._next = self._next, (self._next + 1) % LARGEST_ID
            velocity = (rays[i] - known.ray) / (stamp - known.stamp)
            rows.append([known.number, *rays[i], *pixels[i], *velocity])
        for landmark, known, ray in zip(ids.tolist(), recent, rays, strict=True):
            number, age = (-1, 0) if known is None else (known.number, known.age)
            self._known[landmark] = Known(number, stamp, ray, age + 1)
        self._known = {key: known for key, known in self._known.items() if stamp - known.stamp <= VELOCITY_REACH}
        return np.array(rows, np.float64).reshape(-1, 7)

    def _spread(self, pixels: np.ndarray, ages: np.ndarray) -> np.ndarray:
        """Indices of the features to publish: in each square the one that was seen for longest, the oldest first."""
        order = np.argsort(-ages, kind="stable")
        squares = np.floor(pixels[order] / self.min_distance).astype(np.int64)
        _, first = np.unique(squares, axis=0, return_index=True)
        return order[np.sort(first)][: self.max_features]


def to_message(features: np.ndarray, estimator: str, stamp) -> PointCloud:
    """The message that an estimator reads.

    Args:
        features: (M, 7) of `VinsFeatures.features`.
        estimator: one of CHANNELS.
        stamp: the image's `builtin_interfaces/Time`.
    """
    number, x, y, u, v, velocity_x, velocity_y = features.T
    values = [number, u, v, velocity_x, velocity_y]
    if estimator == "vins_fusion":
        zeros = np.zeros_like(number)
        values = [number, zeros, u, v, velocity_x, velocity_y, zeros, zeros, zeros]
    message = PointCloud()
    message.header.stamp = stamp
    message.header.frame_id = "world"  # as their tracker has it
    message.points = [Point32(x=float(a), y=float(b), z=1.0) for a, b in zip(x, y, strict=True)]
    message.channels = [
        ChannelFloat32(name=name, values=each.astype(np.float32).tolist())
        for name, each in zip(CHANNELS[estimator], values, strict=True)
    ]
    return message


class VinsBridge(Node):
    """The node."""

    def __init__(self, **options) -> None:
        super().__init__("vins_bridge", **options)
        words = f"What reads the features: {', '.join(CHANNELS)}"
        self.estimator = self.declare_parameter("estimator", "vins_mono", ParameterDescriptor(description=words)).value
        if self.estimator not in CHANNELS:
            raise ValueError(f"parameter estimator is '{self.estimator}'; expected one of {', '.join(CHANNELS)}")
        self._chosen = VinsFeatures(
            self._number("max_features", 150, "Most features of a message", 10, 1000),
            self._number("min_distance", 30, "Side of the squares of which each gives one feature, in px", 1, 1000),
        )
        self._features = self.create_publisher(PointCloud, "/feature_tracker/feature", 10)
        self._restart = self.create_publisher(Bool, "/feature_tracker/restart", 10)
        tracks = self.create_subscription(Tracks, "loftr_front_end/tracks", self._on_tracks, 10)
        self.get_logger().info(f"features for {self.estimator} from {tracks.topic_name} on /feature_tracker/feature")

    def _number(self, name: str, default: int, words: str, low: int, high: int) -> int:
        limits = [IntegerRange(from_value=low, to_value=high, step=1)]
        return self.declare_parameter(name, default, ParameterDescriptor(description=words, integer_range=limits)).value

    def _on_tracks(self, tracks: Tracks) -> None:
        stamp = tracks.header.stamp.sec + tracks.header.stamp.nanosec / 1e9
        if self._chosen.breaks_off(stamp):
            self.get_logger().warning("the stream broke off: the estimator is told to begin anew")
            self._restart.publish(Bool(data=True))
        ids = np.asarray(tracks.landmark_id, np.uint64)
        rays = np.asarray(tracks.rays, np.float64).reshape(-1, 2)
        pixels = np.asarray(tracks.pixels, np.float64).reshape(-1, 2)
        if len(rays) and not np.isfinite(rays).any():
            self.get_logger().warning(
                "tracks come without rays: the front end needs the camera's calibration", throttle_duration_sec=10.0
            )
        features = self._chosen.features(stamp, ids, pixels, rays)
        if len(features):
            self._features.publish(to_message(features, self.estimator, tracks.header.stamp))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop."""
    rclpy.init(args=arguments)
    try:
        node = VinsBridge()
    except ValueError as error:
        print(f"vins_bridge: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
