"""Converts a camera's trajectory to the motion of the robot's base: poses, velocities and covariances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.odometry import Location
from loftr_ros.geometry.se3 import between, inverse, rotation_vector, skew
from loftr_ros.geometry.two_view import UNKNOWN_VARIANCE

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fix:
    """Location of the camera at a time.

    Attributes:
        stamp_ns: of the image.
        location: of its camera.
        start: location of the keyframe that located it; the same for a trajectory's first frame.
    """

    stamp_ns: int
    location: Location
    start: Location


@dataclass(frozen=True, eq=False)
class Twist:
    """Velocity of the base in its own axes.

    Attributes:
        linear: (3,) m/s, or the trajectory's unit a second.
        angular: (3,) rad/s.
        covariance: (6, 6) of (linear, angular).
    """

    linear: Array
    angular: Array
    covariance: Array


def forward_camera() -> Array:
    """(4, 4) T_base_camera of a camera at the base's origin that looks forward; both frames use the axes of REP 103."""
    matrix = np.eye(4)
    matrix[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    return matrix


def base_pose(camera: Array, base_from_camera: Array) -> Array:
    """The base's pose in a frame at the base's initial pose.

    Args:
        camera: (4, 4) T_world_camera, the world being the optical axes of the first camera.
        base_from_camera: (4, 4) T_base_camera.

    Returns:
        (4, 4) T_odom_base.
    """
    result: Array = base_from_camera @ camera @ inverse(base_from_camera)
    return result


def base_covariance(covariance: Array, base: Array, base_from_camera: Array) -> Array:
    """(6, 6) covariance of the base's pose in odom, about odom's axes.

    Args:
        covariance: (6, 6) of the camera's (translation, rotation vector) about world axes.
        base: (4, 4) T_odom_base.
        base_from_camera: (4, 4) T_base_camera.
    """
    rotate = base_from_camera[:3, :3]
    transfer = np.zeros((6, 6))
    transfer[:3, :3] = transfer[3:, 3:] = rotate
    # Lever arm from the camera to the base, in odom's axes: a rotation of the camera moves the base.
    transfer[:3, 3:] = skew(base[:3, :3] @ base_from_camera[:3, 3]) @ rotate
    result: Array = transfer @ covariance @ transfer.T
    return (result + result.T) / 2


def base_twist(before: Fix, now: Fix, base_from_camera: Array) -> Twist:
    """The steady motion from one location to the next; zero, with a variance of 1e6, if they are not connected.

    The covariance is an upper bound: two locations by the same keyframe share the errors of its depths, which are
    counted twice.
    """
    seconds = (now.stamp_ns - before.stamp_ns) / 1e9
    if seconds <= 0 or before.location.segment != now.location.segment:
        return Twist(np.zeros(3), np.zeros(3), UNKNOWN_VARIANCE * np.eye(6))
    first, second = (base_pose(fix.location.pose, base_from_camera) for fix in (before, now))
    step = between(first, second)
    angle = rotation_vector(step[:3, :3])
    spread0, spread1 = _spread_between(before, now)
    spread = base_covariance(spread0, first, base_from_camera) + base_covariance(spread1, second, base_from_camera)
    axes = np.kron(np.eye(2), second[:3, :3])
    return Twist(_along(step[:3, 3], angle) / seconds, angle / seconds, axes.T @ spread @ axes / seconds**2)


def _along(translation: Array, angle: Array) -> Array:
    """(3,) displacement along the arc of a steady motion with the given final translation and rotation vector."""
    cross, size = skew(angle), float(np.linalg.norm(angle))
    factor = 1 / 12 if size < 1e-4 else (1 - size / 2 / math.tan(size / 2)) / size**2
    result: Array = translation - cross @ translation / 2 + factor * cross @ cross @ translation
    return result


def _spread_between(before: Fix, now: Fix) -> tuple[Array, Array]:
    """(6, 6) covariances of two locations, without the error common to both."""
    start = now.start
    if np.array_equal(before.start.pose, start.pose):
        return _spread_since(before.location, start), _spread_since(now.location, start)
    if np.array_equal(before.location.pose, start.pose):  # the frame before became the keyframe
        return np.zeros((6, 6)), _spread_since(now.location, start)
    return before.location.covariance, now.location.covariance


def _spread_since(location: Location, start: Location) -> Array:
    """(6, 6) covariance of a location beyond that of the location it was found from: see `Location.moved`."""
    transfer = np.eye(6)
    transfer[:3, 3:] = -skew(location.pose[:3, 3] - start.pose[:3, 3])
    result: Array = location.covariance - transfer @ start.covariance @ transfer.T
    return result
