"""Rigid transforms as (4, 4) matrices: T_a_b maps points of frame b to frame a."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from loftr_ros.settings import ConfigError

Array = NDArray[np.float64]


def inverse(pose: Array) -> Array:
    """T_b_a of T_a_b. Its rotation is exactly as orthonormal as the given one.

    Args:
        pose: (..., 4, 4) float64, rotations orthonormal.
    """
    result = np.zeros_like(pose)
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    result[..., :3, :3] = rotation
    result[..., :3, 3:] = -rotation @ pose[..., :3, 3:]
    result[..., 3, 3] = 1
    return result


def between(first: Array, second: Array) -> Array:
    """T_first_second of T_world_first and T_world_second, both (..., 4, 4)."""
    result: Array = inverse(first) @ second
    return result


def rotation_vector(rotation: Array) -> Array:
    """(3,) axis times angle in radians, of a (3, 3) rotation."""
    return np.asarray(cv2.Rodrigues(rotation)[0], np.float64).ravel()


def rotation_matrix(vector: ArrayLike) -> Array:
    """(3, 3) rotation of a (3,) axis times angle in radians."""
    return np.asarray(cv2.Rodrigues(np.asarray(vector, np.float64))[0], np.float64)


def rotation_degrees(rotation: Array) -> float:
    """Angle of a (3, 3) rotation in degrees, exact for small angles too."""
    return float(np.degrees(np.linalg.norm(rotation_vector(rotation))))


def from_quaternion(position: ArrayLike, quaternion: ArrayLike) -> Array:
    """(4, 4) pose of a (3,) position and a quaternion x y z w, which is normalised here.

    Raises:
        ValueError: the quaternion has no length, or a number is not finite.
    """
    numbers = np.asarray(quaternion, np.float64)
    length = float(np.linalg.norm(numbers))
    if numbers.shape != (4,) or not np.isfinite(length) or length == 0:
        raise ValueError(f"{numbers.tolist()} is not a quaternion x y z w")
    x, y, z, w = numbers / length
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = position
    return pose


def from_seven(values: Sequence[float], name: str) -> Array:
    """(4, 4) pose of x y z and a quaternion x y z w, the format of parameters.

    Args:
        values: the seven numbers.
        name: of the parameter, for the error.

    Raises:
        ConfigError: they are not seven, not finite, or the quaternion is not of length 1.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.shape != (7,) or not np.isfinite(numbers).all():
        raise ConfigError(f"{name} is {list(values)}; expected 7 finite numbers: x y z qx qy qz qw")
    length = float(np.linalg.norm(numbers[3:]))
    if abs(length - 1) > 0.01:
        raise ConfigError(
            f"{name} has the quaternion {numbers[3:].tolist()} of length {length:.4g}; expected qx qy qz qw of "
            "length 1 (0 0 0 1 for no rotation)"
        )
    return from_quaternion(numbers[:3], numbers[3:])


def quaternion_of(rotation: Array) -> tuple[float, float, float, float]:
    """Quaternion x y z w, w not negative, of a (3, 3) rotation, stable at every angle (Shepperd's method)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    # Each row is the quaternion times four times one of its components; the largest one is the best conditioned.
    rows = np.array(
        [
            [1 + xx - yy - zz, xy + yx, xz + zx, zy - yz],
            [xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx],
            [xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy],
            [zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz],
        ]
    )
    best = rows[np.argmax(np.diag(rows))]
    x, y, z, w = (best / np.linalg.norm(best)).tolist()
    return (-x, -y, -z, -w) if w < 0 else (x, y, z, w)


def skew(vector: Array) -> Array:
    """(3, 3) matrix of the cross product with a (3,) vector."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
