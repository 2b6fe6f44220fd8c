"""Quality of single matches against the true pose or the true homography."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def epipolar_errors(rays0: ArrayLike, rays1: ArrayLike, pose: ArrayLike) -> Array:
    """Symmetric squared distance of matches from each other's epipolar lines, as used for LoFTR's precision.

    Args:
        rays0, rays1: (N, 2) normalised coordinates (x / z, y / z); NaN where a pixel has no ray.
        pose: (4, 4) T_0_1, true, of any scale.

    Returns:
        (N,) squared normalised units; NaN where a ray is.
    """
    matrix = np.asarray(pose, np.float64)
    x, y, z = matrix[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ matrix[:3, :3]
    p0, p1 = (np.pad(np.asarray(rays, np.float64), ((0, 0), (0, 1)), constant_values=1.0) for rays in (rays0, rays1))
    line0, line1 = p1 @ essential.T, p0 @ essential
    product = (p0 * line0).sum(axis=1)
    # A match on both epipoles, or any match of cameras at one place, is on every line: 0, not 0 / 0.
    weights = sum(1 / np.maximum((line[:, :2] ** 2).sum(axis=1), 1e-30) for line in (line0, line1))
    return np.asarray(product**2 * weights, np.float64)


def map_points(homography: ArrayLike, points: ArrayLike) -> Array:
    """(N, 2) pixels mapped by a (3, 3) homography; NaN if that is at infinity."""
    H, p = np.asarray(homography, np.float64), np.asarray(points, np.float64)
    mapped = p @ H[:, :2].T + H[:, 2]
    depth = np.where(np.abs(mapped[:, 2:]) > 1e-12, mapped[:, 2:], np.nan)
    return np.asarray(mapped[:, :2] / depth, np.float64)


def corner_error(homography: ArrayLike | None, truth: ArrayLike, size: tuple[int, int]) -> float:
    """Mean distance in pixels between an image's corners mapped by an estimated and by the true homography.

    Args:
        homography: (3, 3), or None if none was found.
        truth: (3, 3).
        size: (width, height) of the image that both map from.

    Returns:
        Pixels of the image that they map to; inf without an estimate, or if it maps a corner to infinity.
    """
    if homography is None:
        return float("inf")
    width, height = size
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)
    moved = np.linalg.norm(map_points(homography, corners) - map_points(truth, corners), axis=1)
    return float(moved.mean()) if np.isfinite(moved).all() else float("inf")


def mean_and_spread(values: Sequence[ArrayLike] | Array, digits: int = 1) -> str:
    """Rows of numbers as "a/b/c (±d/e/f)": mean and standard deviation over the rows; "-" where a number is unknown."""
    rows = np.asarray(values, np.float64).reshape(len(values), -1)

    def joined(numbers: Array) -> str:
        return "/".join(f"{number:.{digits}f}" if np.isfinite(number) else "-" for number in numbers)

    with np.errstate(invalid="ignore"):
        return f"{joined(rows.mean(axis=0))} (±{joined(rows.std(axis=0))})"
