"""Pose of the right camera of a stereo pair: from a parameter, or from the two calibrations."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loftr_ros.geometry.camera import CameraError, CameraModel
from loftr_ros.geometry.se3 import from_seven
from loftr_ros.settings import ConfigError

Array = NDArray[np.float64]

# Largest deviation of a rotation times its transpose from the identity.
_ORTHONORMAL = 1e-3
_NO_BASELINE = 1e-6  # m
_SINGULAR = 1e-12


def pose_of(values: Sequence[float]) -> Array | None:
    """Convert a pose given as seven numbers.

    Args:
        values: x y z in metres and the quaternion x y z w; all zeros for none.

    Returns:
        (4, 4) float64; None if all are zero.

    Raises:
        ConfigError: they are not seven, not finite, not a rotation, or without a translation.
    """
    if len(values) == 7 and not any(values):
        return None
    pose = from_seven(values, "left_from_right")
    if np.linalg.norm(pose[:3, 3]) < _NO_BASELINE:
        raise ConfigError("left_from_right has no translation; expected the right camera's position in metres")
    return pose


def left_from_right(left: Any, right: Any, rectified: bool = False) -> Array:
    """T_left_right of two cameras from the R and P in their `sensor_msgs/CameraInfo`, as a stereo calibration writes
    them.

    R rotates a camera's own frame into the rectified one. The rectified frames of both cameras differ only by a
    translation: P = K' [I | t] gives the shift of a point from the common frame to the camera's. It is usually zero for
    a left camera, and then the right one's P[0, 3] is -fx times the baseline.

    Args:
        left, right: CameraInfo-like messages (r, p); zeros in R mean no rotation.
        rectified: the images are rectified, so R was applied to them already.

    Returns:
        (4, 4) float64, metres, between the optical frames of the images.

    Raises:
        CameraError: the right camera is not apart from the left one, or R or P is not such a matrix.
    """
    baseline = _origin(right, "right") - _origin(left, "left")
    if np.linalg.norm(baseline) < _NO_BASELINE:
        raise CameraError(
            "the right CameraInfo has no baseline in P (P[0, 3] is -fx times the metres between the cameras); "
            "calibrate the pair as stereo, or set the parameter input.left_from_right"
        )
    pose = np.eye(4)
    pose[:3, 3] = baseline
    if not rectified:
        turn_left, turn_right = _rectification(left, "left"), _rectification(right, "right")
        pose[:3, :3] = turn_left.T @ turn_right
        pose[:3, 3] = turn_left.T @ baseline
    return pose


def rectified_camera(info: Any) -> CameraModel:
    """The camera of an image rectified by image_proc: P's 3x3, without distortion.

    Args:
        info: a CameraInfo-like message; binning and region of interest are applied as for a raw image.

    Raises:
        CameraError: P has no such camera.
    """
    projection = _projection(info, "the")
    if not projection.any():
        raise CameraError(
            "the CameraInfo has no projection matrix P, which a rectified image needs; calibrate the camera, or "
            "set the parameter input.rectified to false if the images are raw"
        )
    return CameraModel.from_camera_info(
        SimpleNamespace(
            k=projection[:, :3].ravel(),
            d=[],
            distortion_model="",
            width=info.width,
            height=info.height,
            binning_x=info.binning_x,
            binning_y=info.binning_y,
            roi=info.roi,
        )
    )


def _origin(info: Any, side: str) -> Array:
    """(3,) position of the camera in the common frame of the rectified cameras."""
    projection = _projection(info, f"the {side}")
    if not projection.any():  # of a camera that was calibrated alone
        return np.zeros(3)
    if abs(np.linalg.det(projection[:, :3])) < _SINGULAR:
        raise CameraError(f"P of the {side} CameraInfo is no projection matrix: {projection.tolist()}")
    return np.asarray(-np.linalg.solve(projection[:, :3], projection[:, 3]), np.float64)


def _projection(info: Any, which: str) -> Array:
    return _matrix(info.p, (3, 4), f"P of {which} CameraInfo")


def _rectification(info: Any, side: str) -> Array:
    """(3, 3) rotation from the camera's own frame to the rectified one."""
    rotation = _matrix(info.r, (3, 3), f"R of the {side} CameraInfo")
    if not rotation.any():
        return np.eye(3)
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _ORTHONORMAL or np.linalg.det(rotation) < 0:
        raise CameraError(f"R of the {side} CameraInfo is no rotation: {rotation.tolist()}")
    return rotation


def _matrix(values: ArrayLike, shape: tuple[int, int], name: str) -> Array:
    matrix = np.asarray(values, np.float64)
    if matrix.size != shape[0] * shape[1] or not np.isfinite(matrix).all():
        raise CameraError(f"{name} is {matrix.tolist()}; expected {shape[0] * shape[1]} finite numbers")
    return matrix.reshape(shape)
