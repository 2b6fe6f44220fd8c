"""Pose of the camera on the robot: from a parameter, from tf2, or forward-looking by default."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.time import Time

from loftr_ros.geometry.se3 import from_quaternion, from_seven
from loftr_ros.ros.output.base_motion import forward_camera
from loftr_ros.ros.parameters import OdometryParameters

# Seconds after the first image to wait for a transform: static ones are there at once, or never.
PATIENCE = 2.0


class CameraMount:
    """T_base_camera of each optical frame."""

    def __init__(self, node: Node, parameters: OdometryParameters) -> None:
        """Use the parameter, or listen to tf if tf2_ros is installed."""
        self._node = node
        self._base = parameters.base_frame
        given = parameters.base_from_camera
        self._given = from_seven(given, "base_from_camera") if any(given) else None
        self._known: dict[str, NDArray[np.float64]] = {}
        self._until: dict[str, float] = {}
        self._buffer: Any = None
        self._listener: Any = None
        if self._given is None and importlib.util.find_spec("tf2_ros") is not None:
            self._listen()

    def of(self, frame_id: str) -> NDArray[np.float64] | None:
        """(4, 4) T_base_camera; None while it may still come."""
        if self._given is not None:
            return self._given
        if frame_id not in self._known:
            found = self._look_up(frame_id)
            if found is None:
                return None
            self._known[frame_id] = found
            # All of /tf passes through the listener, which is more work than everything else here.
            self.close()
        return self._known[frame_id]

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.unregister()
        self._listener = self._buffer = None

    def _listen(self) -> None:
        from tf2_ros import Buffer, TransformListener

        self._buffer = Buffer()
        self._listener = TransformListener(self._buffer, self._node)

    def _look_up(self, frame_id: str) -> NDArray[np.float64] | None:
        logger = self._node.get_logger()
        if importlib.util.find_spec("tf2_ros") is None:
            logger.info(f"odometry: tf2_ros is not installed; assumes that {frame_id} looks forward from {self._base}")
            return forward_camera()
        from tf2_ros import TransformException

        if self._listener is None:  # another camera than before
            self._listen()
        until = self._until.setdefault(frame_id, time.monotonic() + PATIENCE)
        try:
            found = self._buffer.lookup_transform(self._base, frame_id, Time()).transform
        except TransformException as error:
            if time.monotonic() < until:
                return None
            logger.warning(
                f"odometry: no transform from {frame_id} to {self._base} after {PATIENCE:.0f} s ({error}); assumes "
                "that the "
                f"camera looks forward from {self._base}. Publish the transform, or set odometry.base_from_camera"
            )
            return forward_camera()
        translation, rotation = found.translation, found.rotation
        return from_quaternion(
            (translation.x, translation.y, translation.z), (rotation.x, rotation.y, rotation.z, rotation.w)
        )
