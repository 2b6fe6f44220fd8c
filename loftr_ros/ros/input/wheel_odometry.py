"""Another odometry as a prior: `nav_msgs/Odometry` on `prior_odometry`, or a frame on tf."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.time import Time

from loftr_ros.frontend.agreement import SensorState
from loftr_ros.frontend.wheel_odometry import WheelOdometry
from loftr_ros.geometry.se3 import from_quaternion
from loftr_ros.ros.input.inputs import input_options
from loftr_ros.ros.logs import Warnings
from loftr_ros.ros.output.camera_mount import CameraMount
from loftr_ros.ros.output.messages import to_nanoseconds
from loftr_ros.ros.parameters import OdometryParameters
from loftr_ros.ros.transforms import listen, tf2_is_installed

# Messages that may wait, and seconds between two look-ups on tf.
_DEPTH, _PERIOD = 50, 1 / 30
# Seconds without a pose after which the odometry is silent.
_SILENT = 1.0


class WheelInput:
    """Passes the poses of another odometry on, and the camera's pose on its base."""

    def __init__(
        self, node: Node, parameters: OdometryParameters, wheel: WheelOdometry, camera_frame: Callable[[], str]
    ) -> None:
        """Subscribe to `prior_odometry`, and to tf if `odometry.prior_frame` is set.

        Args:
            node: the owner.
            parameters: of the odometry.
            wheel: receives the poses.
            camera_frame: optical frame of the images; empty before the first.
        """
        self._node, self._parameters, self._wheel, self._camera_frame = node, parameters, wheel, camera_frame
        self._mount: CameraMount | None = None
        self._base = ""
        self._warn_once = Warnings(node.get_logger())
        self._heard: float | None = None
        self._newest = 0
        self._jumps = wheel.jumps
        self._buffer: Any = None
        self._listener: Any = None
        self._timer: Any = None
        self._subscription = node.create_subscription(
            Odometry, "prior_odometry", self._on_odometry, **input_options(_DEPTH)
        )
        if parameters.prior_frame:
            self._listen()

    @property
    def state(self) -> str:
        """The state for the status message."""
        if self._heard is None:
            return ""
        return self._wheel.state.name if time.monotonic() - self._heard < _SILENT else "SILENT"

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
        if self._listener is not None:
            self._listener.unregister()
        if self._mount is not None:
            self._mount.close()

    def _listen(self) -> None:
        if not tf2_is_installed():
            self._warn_once("odometry.prior_frame is set, but tf2_ros is not installed: it is not used")
            return
        self._buffer, self._listener = listen(self._node)
        # Not the node's clock: with use_sim_time it may stand still.
        self._timer = self._node.create_timer(_PERIOD, self._look_up, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _look_up(self) -> None:
        from tf2_ros import TransformException

        fixed, base = self._parameters.prior_frame, self._parameters.base_frame
        try:
            found = self._buffer.lookup_transform(fixed, base, Time())
        except TransformException as error:
            if self._camera_frame():  # images come, so the robot is up
                self._warn_once(f"no transform from {base} to {fixed} (odometry.prior_frame) so far: {error}")
            return
        stamp = to_nanoseconds(found.header.stamp)
        if stamp != self._newest:
            self._newest = stamp
            at, turned = found.transform.translation, found.transform.rotation
            self._add(stamp, base, (at.x, at.y, at.z), (turned.x, turned.y, turned.z, turned.w))

    def _on_odometry(self, message: Odometry) -> None:
        at, turned = message.pose.pose.position, message.pose.pose.orientation
        base = message.child_frame_id or self._parameters.base_frame
        stamp = to_nanoseconds(message.header.stamp)
        self._add(stamp, base, (at.x, at.y, at.z), (turned.x, turned.y, turned.z, turned.w))

    def _add(self, stamp: int, base: str, at: tuple[float, ...], turned: tuple[float, ...]) -> None:
        try:
            pose = from_quaternion(at, turned)
        except ValueError as error:
            self._warn_once(f"a pose of the odometry prior is not used: {error}")
            return
        self._heard = time.monotonic()
        self._place_camera(base)
        self._wheel.add(stamp, pose)
        if self._wheel.jumps != self._jumps:
            self._jumps = self._wheel.jumps
            self._warn_once(
                "the odometry prior jumped, or its stamps went back: motions over the jump are not used. A prior must "
                "be smooth: take the odometry itself, not a pose corrected by a map"
            )
        if self._wheel.state is SensorState.CONTRADICTS:
            mounting = self._wheel.mounting()
            seems = f" Its axes seem to be wired otherwise: {mounting}." if mounting else ""
            self._warn_once(
                f"the odometry prior contradicts the images and is not used until it agrees again.{seems} Check "
                f"odometry.base_from_camera, or the transform from the camera to {base}, and its stamps"
            )

    def _place_camera(self, base: str) -> None:
        """Set the camera's pose on the odometry's base, once it is known."""
        camera = self._camera_frame()
        if not camera or (self._wheel.base_from_camera is not None and base == self._base):
            return
        if self._mount is None or base != self._base:
            own = base == self._parameters.base_frame
            given = self._parameters.base_from_camera if own else (0.0,) * 7
            self._mount = CameraMount(self._node, replace(self._parameters, base_frame=base, base_from_camera=given))
            self._base, self._wheel.base_from_camera = base, None
        self._wheel.base_from_camera = self._mount.of(camera)
