"""Directions of translation that explain small parallax, searched over all directions.

For small parallax the epipolar constraint is linear in the rest of the rotation once a direction is given. So every
direction of a grid gets its best rotation and cost by a small linear problem, and no minimum is missed: a search by
random samples finds any of them (subspace method: Heeger and Jepson, IJCV 1992, section 2).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import rotation_matrix

Array = NDArray[np.float64]

# Number of directions on the half sphere: 0.3 radians apart.
_DIRECTIONS = 64
# Steps of reweighting by a Cauchy kernel.
_STEPS = 2
# Largest number of minima.
_MOST = 3
# Distance to the epipole in normalised units below which a match says little about a direction.
_NEAR_EPIPOLE = 0.02


@cache
def _directions() -> Array:
    """(D, 3) unit vectors spread over a half sphere (Fibonacci lattice)."""
    number = np.arange(_DIRECTIONS)
    z = (number + 0.5) / _DIRECTIONS
    angle = number * np.pi * (3 - np.sqrt(5))
    across = np.sqrt(1 - z * z)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)


def minima_of_direction(
    p0: Array, p1: Array, rotation: Array, scale: float, apart: float, excess: float
) -> list[tuple[Array, Array]]:
    """Poses near the best minima of the robust epipolar error, the best first.

    Args:
        p0, p1: (N, 3) rays (x / z, y / z, 1) in the keyframe's and the current camera's frame; outliers are few.
        rotation: (3, 3) that maps p1 to p0 up to the parallax.
        scale: of the robust kernel, in normalised units.
        apart: least angle between the directions of two minima, in radians.
        excess: largest mean cost of a minimum beyond the best one's.

    Returns:
        Rotations and unit translations of T_keyframe_current.
    """
    seen = p1 @ rotation.T
    ahead = seen[:, 2] > 1e-6
    x, y = p0[ahead, 0], p0[ahead, 1]
    moved = seen[ahead, :2] / seen[ahead, 2:] - p0[ahead, :2]
    # Motion of the points of the image by a small rotation: (N, 2, 3).
    by_rotation = np.stack(
        [np.stack([-x * y, 1 + x * x, -y], axis=1), np.stack([-(1 + y * y), x * y, x], axis=1)], axis=1
    )
    directions = _directions()
    along_x = np.outer(directions[:, 2], x) - directions[:, :1]
    along_y = np.outer(directions[:, 2], y) - directions[:, 1:2]
    squared = along_x**2 + along_y**2
    length = np.sqrt(squared + 1e-12)
    normal = np.stack([-along_y / length, along_x / length], axis=2)
    told = squared / (squared + _NEAR_EPIPOLE**2)
    constant = (normal * moved).sum(axis=2)
    slope = np.einsum("dnk,nkj->dnj", normal, by_rotation)
    rest, residual, weight = np.zeros((len(directions), 3)), constant, told
    for _ in range(_STEPS):
        weighted = slope * weight[:, :, None]
        hessian = weighted.transpose(0, 2, 1) @ slope + 1e-9 * np.eye(3)
        rest = -np.linalg.solve(hessian, (weighted * constant[:, :, None]).sum(axis=1)[:, :, None])[:, :, 0]
        residual = constant + (slope @ rest[:, :, None])[:, :, 0]
        weight = told / (1 + (residual / scale) ** 2)
    cost = (told * np.log1p((residual / scale) ** 2)).mean(axis=1)
    found: list[int] = []
    for number in np.argsort(cost):
        if cost[number] > cost.min() + excess or len(found) == _MOST:
            break
        if all(abs(directions[number] @ directions[other]) < np.cos(apart) for other in found):
            found.append(int(number))
    poses = []
    for number in found:
        left = moved + by_rotation @ rest[number]
        along = np.stack([along_x[number], along_y[number]], axis=1)
        sign = 1.0 if (np.sign((along * left).sum(axis=1)) * np.minimum(length[number], 1)).sum() >= 0 else -1.0
        poses.append((rotation_matrix(rest[number]) @ rotation, sign * directions[number]))
    return poses
