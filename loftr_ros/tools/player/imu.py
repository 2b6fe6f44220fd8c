"""Publishes a recording's inertial sensor beside its images."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Imu

from loftr_ros.geometry.se3 import quaternion_of
from loftr_ros.recordings.imu import RecordedImu
from loftr_ros.ros.output.messages import to_time

_FRAME = "imu"
# Nanoseconds of samples before the first image, and ahead of each.
_BEFORE, _AHEAD = 200_000_000, 20_000_000
# Samples that may wait.
_DEPTH = 2000


class ImuTopic:
    """The publisher of `imu`. Samples go out with the image that comes after them, as many as lie in between."""

    def __init__(self, node: Node, imu: RecordedImu, qos: QoSProfile) -> None:
        """Create the publisher.

        Args:
            node: its owner.
            imu: the samples.
            qos: of the images' publishers; this one keeps more.
        """
        self._imu, self._next = imu, 0
        self._last: int | None = None
        self._publisher = node.create_publisher(Imu, "imu", QoSProfile(depth=_DEPTH, reliability=qos.reliability))
        turn = [float(value) for value in quaternion_of(imu.camera_from_imu[:3, :3])]
        place = [float(value) for value in imu.camera_from_imu[:3, 3]]
        node.get_logger().info(
            "publishes the recording's inertial sensor on imu, and no transform: set imu.camera_from_imu of the "
            f"front end to {rounded(turn)}, and inertial_sensor.camera_from_imu of the back end to "
            f"{rounded([*place, *turn])}"
        )

    @property
    def has_subscriber(self) -> bool:
        """Whether somebody listens."""
        return bool(self._publisher.get_subscription_count())

    def publish_until(self, recorded_ns: int, published_ns: int) -> None:
        """Publish the samples up to an image, and a little beyond.

        Args:
            recorded_ns: the image's stamp in the recording.
            published_ns: the stamp that it is published with; the samples' stamps differ by as much.
        """
        stamps = self._imu.stamps
        if self._last is None or recorded_ns < self._last:  # the first image, or the next round
            self._next = int(np.searchsorted(stamps, recorded_ns - _BEFORE))
        self._last = recorded_ns
        end = int(np.searchsorted(stamps, recorded_ns + _AHEAD, side="right"))
        for number in range(self._next, end):
            self._publisher.publish(self._message(number, published_ns - recorded_ns))
        self._next = max(self._next, end)

    def _message(self, number: int, offset: int) -> Imu:
        message = Imu()
        message.header.stamp, message.header.frame_id = to_time(int(self._imu.stamps[number]) + offset), _FRAME
        message.orientation_covariance[0] = -1.0
        turned, pushed = message.angular_velocity, message.linear_acceleration
        turned.x, turned.y, turned.z = self._imu.rates[number].tolist()
        if self._imu.accelerations is None:
            message.linear_acceleration_covariance[0] = -1.0
        else:
            pushed.x, pushed.y, pushed.z = self._imu.accelerations[number].tolist()
        return message


def rounded(numbers: list[float]) -> str:
    """Numbers as ROS expects a list of doubles: each with a decimal point."""
    return "[" + ", ".join(f"{number:.6f}" for number in numbers) + "]"
