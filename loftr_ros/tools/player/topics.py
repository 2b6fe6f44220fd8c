"""Topics of a played source, and the messages of one frame."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.frontend.config import RGBD, STEREO
from loftr_ros.geometry.se3 import quaternion_of
from loftr_ros.recordings import PixelImage, SourceError, SourceFrame
from loftr_ros.recordings.imu import RecordedImu
from loftr_ros.ros.output.messages import to_time
from loftr_ros.tools.player.imu import ImuTopic
from loftr_ros.tools.player.messages import depth_messages, frame_messages, mask_message, right_messages

_READ_WITHIN = 0.5  # s for a busy reader to take the last image

Messages = list[tuple[Any, Any]]
"""Messages of a frame: (publisher, message), the image last."""


def extrinsic_of(pose: NDArray[np.float64]) -> str:
    """A (4, 4) pose as the front end's parameter `input.left_from_right`: [x, y, z, qx, qy, qz, qw]."""
    numbers = (*pose[:3, 3].tolist(), *quaternion_of(pose[:3, :3]))
    # Each with a decimal point, because ROS expects a list of doubles.
    return "[" + ", ".join(f"{number:.9f}" for number in numbers) + "]"


class Topics:
    """Publishers of `image` and `camera_info`, the same two in `right/` or `depth/`, and `/clock`."""

    def __init__(
        self,
        node: Node,
        mode: str,
        *,
        compressed: bool,
        color: bool,
        now: bool,
        clock: bool,
        qos: QoSProfile,
        masks: bool = False,
        imu: RecordedImu | None = None,
    ) -> None:
        """Create the publishers.

        Args:
            node: their owner.
            mode: `mono`, `stereo` or `rgbd`.
            compressed: publish `sensor_msgs/CompressedImage` on `image/compressed`; depth is always raw.
            color: publish bgr8 if the source has colour (raw only).
            now: stamp with the wall clock.
            clock: publish each frame's stamp on `/clock`.
            qos: of all publishers except the clock's.
            masks: also publish masks of what moves on `mask`.
            imu: samples of an inertial sensor, to publish on `imu`.
        """
        self._node, self._mode, self._compressed, self._color, self._now = node, mode, compressed, color, now
        kind, name = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        self._image = node.create_publisher(kind, name, qos)
        self._info = node.create_publisher(CameraInfo, "camera_info", qos)
        # Image and calibration of the right or depth camera.
        self._companions: list[Any] = []
        if mode == STEREO:
            self._companions = [
                node.create_publisher(kind, f"right/{name}", qos),
                node.create_publisher(CameraInfo, "right/camera_info", qos),
            ]
        elif mode == RGBD:
            self._companions = [
                node.create_publisher(Image, "depth/image", qos),
                node.create_publisher(CameraInfo, "depth/camera_info", qos),
            ]
        self._mask = node.create_publisher(Image, "mask", qos) if masks else None
        self._imu = None if imu is None else ImuTopic(node, imu, qos)
        self._clock = None
        if clock:
            from rosgraph_msgs.msg import Clock

            self._clock = node.create_publisher(Clock, "/clock", 10)

    @property
    def image_topic(self) -> str:
        """Full name of the image's topic."""
        return str(self._image.topic_name)

    @property
    def has_subscriber(self) -> bool:
        """Whether the image has a subscriber."""
        return bool(self._image.get_subscription_count())

    def settle(self, with_camera: bool, seconds: float) -> None:
        """Wait until all topics have a subscriber, but at most `seconds`: some subscribers do not use all."""
        # Without a calibration nothing is published on camera_info.
        others = [self._info, *self._companions] if with_camera else self._companions[:1]
        others += [] if self._mask is None else [self._mask]
        end = time.monotonic() + seconds
        while any(publisher.get_subscription_count() == 0 for publisher in others) and time.monotonic() < end:
            time.sleep(0.01)

    def prepared(self, frame: SourceFrame) -> SourceFrame:
        """The frame with all published images decoded, and without the other ones.

        Damaged images stay as they are, and fail when their turn comes.
        """
        right, depth = frame.right if self._mode == STEREO else None, frame.depth if self._mode == RGBD else None
        frame = replace(frame, right=right, depth=depth)
        with suppress(SourceError):
            frame = self._with_pixels(frame)
        with suppress(SourceError):
            if right is not None:
                view, _ = frame.right_side()
                frame = replace(frame, right=replace(right, image=self._with_pixels(view).image))
            elif depth is not None:
                frame = replace(frame, depth=frame.decode_depth())
        return frame

    def _with_pixels(self, frame: SourceFrame) -> SourceFrame:
        if self._compressed or isinstance(frame.image, PixelImage):
            return frame
        return replace(frame, image=PixelImage(frame.decode_color() if self._color else frame.decode_all_bits()))

    def messages(self, frame: SourceFrame, moved: bool) -> Messages:
        """The messages of a frame, all with the frame's stamp.

        Args:
            frame: of the source.
            moved: its stamp differs from the source's.

        Raises:
            SourceError: an image is missing or damaged, so the frame cannot be published.
        """
        image, info = frame_messages(
            frame, compressed=self._compressed, color=self._color, restamped=moved or self._now
        )
        beside: tuple[Any, ...] = ()
        if self._mode == STEREO:
            beside = right_messages(frame, compressed=self._compressed, color=self._color)
            self._warn_of_extrinsics(frame)
        elif self._mode == RGBD:
            beside = depth_messages(frame)
        mask = (self._mask, None if self._mask is None else mask_message(frame))
        pairs = [(self._info, info), *zip(self._companions, beside, strict=True), mask, (self._image, image)]
        return [(publisher, message) for publisher, message in pairs if message is not None]

    def _warn_of_extrinsics(self, frame: SourceFrame) -> None:
        if frame.right is not None and frame.right.baseline is None:
            self._node.get_logger().warning(
                "the pair is not rectified, so right/camera_info cannot hold the right camera's pose; run the front "
                f"end with input.left_from_right set to {extrinsic_of(frame.right.left_from_right)}",
                once=True,
            )

    def publish(self, messages: Messages, stamp_ns: int, recorded_ns: int | None = None) -> None:
        """Publish a frame's messages, the clock first, then the samples of an inertial sensor up to the frame.

        Args:
            messages: see `messages`.
            stamp_ns: the frame's stamp; replaced by the wall clock's with `now`.
            recorded_ns: the frame's stamp in the source; None if it is the same.
        """
        recorded_ns = stamp_ns if recorded_ns is None else recorded_ns
        if self._now:
            stamp_ns = time.time_ns()
            for _, message in messages:
                message.header.stamp = to_time(stamp_ns)
        if self._clock is not None:
            from rosgraph_msgs.msg import Clock

            self._clock.publish(Clock(clock=to_time(stamp_ns)))
        if self._imu is not None:
            self._imu.publish_until(recorded_ns, stamp_ns)
        for publisher, message in messages:
            publisher.publish(message)

    def flush(self, seconds: float) -> None:
        """Wait until the messages have arrived, because delivery ends with the node.

        Best-effort readers acknowledge nothing: they get a moment to copy the last image out of shared memory, which
        ends with the node too.
        """
        end = time.monotonic() + seconds
        for publisher in (self._image, self._info, *self._companions, *([self._mask] if self._mask else [])):
            publisher.wait_for_all_acked(Duration(seconds=max(end - time.monotonic(), 0.0)))
        time.sleep(_READ_WITHIN)
