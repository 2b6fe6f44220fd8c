"""Pose of the camera on the robot: from a parameter, from tf2, or forward-looking by default."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node

from loftr_ros.geometry.se3 import from_seven
from loftr_ros.ros.output.base_motion import forward_camera
from loftr_ros.ros.parameters import OdometryParameters
from loftr_ros.ros.transforms import NoTransformError, Transforms, tf2_is_installed

# Seconds after the first image to wait for a transform.
PATIENCE = 2.0


class CameraMount:
    """T_base_camera of each optical frame."""

    def __init__(self, node: Node, parameters: OdometryParameters) -> None:
        """Use the parameter, or listen to tf if tf2_ros is installed."""
        self._logger = node.get_logger()
        self._base = parameters.base_frame
        given = parameters.base_from_camera
        self._given = from_seven(given, "base_from_camera") if any(given) else None
        self._known: dict[str, NDArray[np.float64]] = {}
        self._transforms = Transforms(node, PATIENCE) if self._given is None else None

    def of(self, frame_id: str) -> NDArray[np.float64] | None:
        """(4, 4) T_base_camera; None while it may still come."""
        if self._transforms is None:
            return self._given
        if frame_id not in self._known:
            try:
                found = self._transforms.find(self._base, frame_id)
            except NoTransformError as error:
                log = self._logger.warning if tf2_is_installed() else self._logger.info
                log(
                    f"odometry: no transform from {frame_id} to {self._base} ({error}); assumes that the camera looks "
                    f"forward from {self._base}. Publish the transform, or set odometry.base_from_camera"
                )
                found = forward_camera()
            if found is None:
                return None
            self._known[frame_id] = found
        return self._known[frame_id]

    def close(self) -> None:
        """Stop listening."""
        if self._transforms is not None:
            self._transforms.close()
