"""Depths of a keyframe's cells: inverse depths with variances, fused from all sources.

The error of an inverse depth is close to Gaussian, while that of a depth is not (Civera, Davison and Montiel, 2008). An
unknown depth is simply one with a large variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.frame import DepthImage
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.config import DepthConfig

Array = NDArray[np.float64]

# Cells of near depth by stereo, in `min_cells`, from which far ones are left out.
_ENOUGH_NEAR = 5
# Largest distance in standard deviations between two compatible measurements of one cell.
_GATE = 3.0


@dataclass(frozen=True, eq=False)
class StereoCells:
    """What the right image says of a keyframe's cells: as measured, near and far.

    Attributes:
        inverse, variance: (L,) as of `CellDepth`.
        focal_baseline: px m, the right camera's focal length times the distance of the cameras.
    """

    inverse: Array
    variance: Array
    focal_baseline: float


@dataclass(frozen=True, eq=False)
class CellDepth:
    """Inverse depths of the cells of one keyframe, along its optical axis.

    Attributes:
        inverse: (L,) in 1/m, or in the trajectory's own unit without a metric source; NaN where unknown. For a point
            near infinity it is near zero, and noise may make it negative.
        variance: (L,) of `inverse`; infinite where unknown.
        is_metric: whether depths are in metres.
        stereo: the measurements that these depths come from; None if they do not come from a stereo pair.
    """

    inverse: Array
    variance: Array
    is_metric: bool
    stereo: StereoCells | None = None

    @cached_property
    def typical(self) -> float:
        """Median inverse depth of what the cells show, points too far to be used included; NaN if none is known."""
        every = self.inverse if self.stereo is None else self.stereo.inverse
        known = np.isfinite(every)
        return float(np.median(every[known])) if known.any() else np.nan

    @classmethod
    def unknown(cls, cells: int, is_metric: bool) -> CellDepth:
        """`cells` cells of unknown depth."""
        return cls(np.full(cells, np.nan), np.full(cells, np.inf), is_metric)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(L,) bool."""
        return np.isfinite(self.inverse)

    def with_measured(self, cell: NDArray[np.integer], inverse: Array, variance: Array) -> CellDepth:
        """Fuse measurements of some cells with the current estimates (Kalman update of a scalar).

        A measurement that contradicts the estimate replaces it only if it is the more certain one.

        Args:
            cell: (N,) numbers of cells, each once.
            inverse, variance: (N,); NaN entries are ignored.
        """
        given = np.isfinite(inverse) & np.isfinite(variance)
        cell, inverse, variance = cell[given], inverse[given], variance[given]
        before, spread = self.inverse[cell], self.variance[cell]
        with np.errstate(invalid="ignore"):
            new = ~np.isfinite(before)
            agrees = np.abs(inverse - before) < _GATE * np.sqrt(spread + variance)
        gain = np.where(new, 1.0, np.where(agrees, _share(spread, variance), np.where(variance < spread, 1.0, 0.0)))
        both, spreads = self.inverse.copy(), self.variance.copy()
        both[cell] = np.where(new, inverse, np.nan_to_num(before) + gain * (inverse - np.nan_to_num(before)))
        spreads[cell] = np.where(gain == 1.0, variance, (1 - gain) * np.where(gain == 1.0, 0.0, spread))
        return replace(self, inverse=both, variance=spreads)

    def points(self, cell: NDArray[np.integer], rays: Array) -> tuple[Array, Array]:
        """Points of some cells in the keyframe's optical frame.

        Args:
            cell: (N,) numbers of cells.
            rays: (N, 2) x / z and y / z of their points.

        Returns:
            (N, 3) points and (N,) their standard deviations along the rays, of first order; NaN where the depth is
            unknown, or within three standard deviations of infinity.
        """
        inverse, std = self.inverse[cell], np.sqrt(self.variance[cell])
        with np.errstate(invalid="ignore"):
            near = np.where(inverse > _GATE * std, inverse, np.nan)
        along = np.column_stack([rays, np.ones(len(rays))])
        return along / near[:, None], np.linalg.norm(along, axis=1) * std / near**2

    def scaled(self, factor: float) -> CellDepth:
        """The same scene `factor` times as large."""
        return CellDepth(self.inverse / factor, self.variance / factor**2, self.is_metric)


def _share(spread: Array, variance: Array) -> Array:
    """(N,) Kalman gain. A cell of infinite variance takes the whole measurement; an exact one ignores it."""
    both = spread + variance
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(spread), spread / np.where(both > 0, both, 1.0), 1.0)


def from_depth_image(depth: DepthImage, points: NDArray[np.floating], config: DepthConfig) -> CellDepth:
    """Depths of cells, read from a registered depth image at their points.

    A cell is skipped if the image has a hole there, or if depths around its point differ so much that an edge runs
    through it: the point may be on either side.

    Args:
        depth: of the keyframe's image, pixel by pixel.
        points: (L, 2) pixels of the cells' points.
        config: range, edges and noise.
    """
    height, width = depth.values.shape
    reach = np.arange(-config.edge_window, config.edge_window + 1)
    columns, rows = np.rint(points).astype(np.int64).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    around_rows = np.clip(rows[:, None] + reach, 0, height - 1)[:, :, None]
    around_columns = np.clip(columns[:, None] + reach, 0, width - 1)[:, None, :]
    around = depth.metres(depth.values[around_rows, around_columns]).astype(np.float64)
    around = around.reshape(len(points), len(reach) ** 2)
    with np.errstate(invalid="ignore"):
        valid = inside & np.isfinite(around).all(axis=1)
        nearest, farthest = around.min(axis=1), around.max(axis=1)
        valid &= (nearest >= config.min_depth) & (farthest <= config.max_depth)
        valid &= farthest - nearest <= config.max_edge * nearest
    middle = np.where(valid, np.median(np.where(valid[:, None], around, 1.0), axis=1), np.nan)
    inverse = 1 / middle
    variance = np.where(valid, (config.image_noise + config.image_offset * inverse**2) ** 2, np.inf)
    return CellDepth(inverse, variance, True)


@dataclass(frozen=True, eq=False)
class Triangulation:
    """Inverse depths from matches with a second view of known pose.

    Attributes:
        inverse, variance: (N,) of the first view's rays; NaN and infinite where the rays do not determine a depth.
        off: (N,) pixels of the second image between the match and its epipolar line.
    """

    inverse: Array
    variance: Array
    off: Array


def triangulate(
    rays0: Array,
    rays1: Array,
    rotation: Array,
    translation: Array,
    std: Array,
    focal_length: float,
    past_infinity: bool = False,
) -> Triangulation:
    """Triangulate inverse depths along the rays of the first view.

    With p = R^T (p0 - rho t) as the second view's point, p_xy = x1 p_z is linear in rho: its least squares solution is
    closed.

    Args:
        rays0, rays1: (N, 2) normalised coordinates of both views.
        rotation, translation: T_0_1.
        std: (N,) pixels, standard deviations of the matches.
        focal_length: pixels, of the second view.
        past_infinity: keep a negative inverse depth if noise explains it. Half of the points at infinity have one.
            Without these the others would be biased towards the camera.
    """
    rotated = np.insert(rays0, 2, 1.0, axis=1) @ rotation
    shift = translation @ rotation
    constant = rotated[:, :2] - rays1 * rotated[:, 2:]
    slope = shift[:2] - rays1 * shift[2]
    squared = np.maximum((slope**2).sum(axis=1), 1e-18)
    inverse = (constant * slope).sum(axis=1) / squared
    z = rotated[:, 2] - inverse * shift[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.abs(constant[:, 0] * slope[:, 1] - constant[:, 1] * slope[:, 0]) / np.sqrt(squared)
        off = off / np.abs(z) * focal_length
        variance = (std / focal_length * z) ** 2 / squared
    least = -_GATE * np.sqrt(variance) if past_infinity else np.zeros(len(inverse))
    wrong = (z <= 0) | (inverse <= least) | ~np.isfinite(inverse)
    return Triangulation(
        np.where(wrong, np.nan, inverse), np.where(wrong, np.inf, variance), np.where(z <= 0, np.inf, off)
    )


def guessed(typical: float, rays0: Array, rays1: Array, rotation: Array, translation: Array, std: float) -> Array:
    """(N,) inverse depths of points that a second view shows too: typical, unless their parallax says otherwise.

    Good enough to look for the points in a third view, but no measurements: whether a point is where it is seen is not
    checked.

    Args:
        typical: inverse depth of the scene; its standard deviation is taken to be as large.
        rays0, rays1: (N, 2) normalised coordinates of both views.
        rotation, translation: T_0_1.
        std: normalised units, standard deviation of `rays1` along one axis.
    """
    found = triangulate(rays0, rays1, rotation, translation, np.full(len(rays0), std), 1.0, past_infinity=True)
    gain = typical**2 / (typical**2 + found.variance)
    return np.maximum(typical + gain * np.nan_to_num(found.inverse - typical), 0.0)


def variance_by_pose(
    rays0: Array, rays1: Array, rotation: Array, translation: Array, inverse: Array, covariance: Array
) -> Array:
    """Variance of triangulated inverse depths by an uncertain pose of the second view, to first order.

    Args:
        rays0, rays1: (N, 2) normalised coordinates of both views.
        rotation, translation: T_0_1.
        inverse: (N,) as `triangulate` found them.
        covariance: (6, 6) of (translation, rotation vector) about the first view's axes.

    Returns:
        (N,); NaN where `inverse` is.
    """
    # p = R^T q with q = p0 - rho t, and the residual p_xy - x1 p_z; of it only the part along its slope in rho counts.
    q = np.insert(rays0, 2, 1.0, axis=1) - inverse[:, None] * translation
    shift = translation @ rotation
    slope = shift[:2] - rays1 * shift[2]
    along = slope @ rotation[:, :2].T - (slope * rays1).sum(axis=1)[:, None] * rotation[:, 2]
    gradient = np.hstack([-inverse[:, None] * along, np.cross(along, q)])
    gradient /= np.maximum((slope**2).sum(axis=1), 1e-18)[:, None]
    return np.asarray(((gradient @ covariance) * gradient).sum(axis=1), np.float64)


def from_stereo(
    cells: int,
    cell: NDArray[np.integer],
    rays_left: Array,
    rays_right: Array,
    left_from_right: Array,
    std: NDArray[np.floating],
    right: CameraModel,
    config: DepthConfig,
    offset: float = 0.0,
) -> CellDepth:
    """Depth of cells from matches between the keyframe's image and its simultaneous stereo partner.

    A match off its epipolar line is wrong. A match on it whose disparity is below its own uncertainty shows only that
    the point is far. Such points are kept only if too few are near: errors that all disparities share make far points
    too far, and steps too long.

    Args:
        cells: number of the keyframe's cells.
        cell: (N,) of the matches.
        rays_left, rays_right: (N, 2).
        left_from_right: (4, 4) T_left_right, metres.
        std: (N,) pixels of the right image; NaN where the matcher gives none.
        right: the right camera.
        config: thresholds.
        offset: px by which all disparities are too large.
    """
    focal_length, baseline = right.focal_length, float(np.linalg.norm(left_from_right[:3, 3]))
    known = np.where(np.isfinite(std), std, config.stereo_std)
    found = triangulate(
        rays_left,
        rays_right,
        left_from_right[:3, :3],
        left_from_right[:3, 3],
        known,
        focal_length,
        past_infinity=True,
    )
    inverse = found.inverse - offset / (focal_length * baseline)
    with np.errstate(invalid="ignore"):
        good = (found.off < config.max_epipolar) & (inverse <= 1 / config.min_depth)
    good &= np.isfinite(inverse)
    every = CellDepth.unknown(cells, True).with_measured(cell[good], found.inverse[good], found.variance[good])
    near = good & (inverse * config.max_baselines * baseline > 1)
    if near.sum() >= _ENOUGH_NEAR * config.min_cells:
        good = near
    depth = CellDepth.unknown(cells, True).with_measured(cell[good], inverse[good], found.variance[good])
    return replace(depth, stereo=StereoCells(every.inverse, every.variance, focal_length * baseline))
