"""A single camera's own unit of length: triangulated depths of cells, transferred from keyframe to keyframe.

The unit itself is not observable. The first keyframe's typical depth is set to one. From then on, cells of known depth
give each pose its length, and a new keyframe's cells get their depths from the older keyframe's. The uncertainty of
each transfer is estimated and accumulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth, Triangulation, triangulate, variance_by_pose
from loftr_ros.frontend.depth_transfer import transferred
from loftr_ros.frontend.keyframes import EncodedFrame, Keyframe
from loftr_ros.frontend.relative_pose import in_unit_of, pose_by_depth, robust_std
from loftr_ros.frontend.results import Correspondences, MatchedRays
from loftr_ros.geometry.config import DepthConfig, GeometryConfig
from loftr_ros.geometry.epipolar import COMMON_FACTOR, homogeneous
from loftr_ros.geometry.metric_pose import match_std
from loftr_ros.geometry.two_view import UNKNOWN_VARIANCE, PoseStatus, RelativePose

Array = NDArray[np.float64]

# Factor by which the baseline must grow before depths are refined again: a nearer view adds little, and its errors are
# those of the pose computed from these depths.
_FARTHER = 1.15
# Depths used to tell whether they form a plane; up to twice as many.
_RATIOS = 200
# Largest departure (logarithm) of the unit from that of the depths that a keyframe began with. Beyond it new depths are
# brought back. The ratio itself is as uncertain as some hundredths, so a smaller departure is left alone.
_DEPARTURE = 0.05
# Grid of image parts with independent errors of depth, and cells needed in a part.
_PARTS = (4, 3)
_LEAST = 5
# Standard deviation of what a transfer changes of the unit although all parts agree (measured in rendered rooms).
_UNSEEN = 0.002
# Distance of a cell from a plane within which it may be on it, in standard deviations and as a part of its inverse
# depth; steps of the robust fit of a plane.
_GATE, _ON_PLANE, _PLANE_STEPS = 2.0, 0.05, 4
# Largest standard deviation of a known direction, rad.
_DIRECTION_STD = 0.2


@dataclass(frozen=True, eq=False)
class DepthTransfer:
    """Depths of a new keyframe's cells, transferred from an older one.

    Attributes:
        depth: of the new keyframe's cells.
        scale_std: standard deviation of the logarithm of their unit over the older keyframe's.
    """

    depth: CellDepth
    scale_std: float


class OwnScale:
    """Gives a single camera's poses their length, in one unit as long as the chain is unbroken."""

    def __init__(self, geometry: GeometryConfig, depth: DepthConfig) -> None:
        self._geometry, self._config = geometry, depth

    def by_depth(
        self,
        keyframe: Keyframe,
        matches: Correspondences,
        rays: MatchedRays,
        expected: tuple[Array, Array] | None = None,
    ) -> RelativePose | None:
        """The current camera's pose by a keyframe's known depths alone; None if there are too few, or if they form a
        plane: then they may have come from the wrong one of its two poses.

        Args:
            keyframe: not changed.
            matches: with it.
            rays: of the matches.
            expected: rotation and translation by the previous motion, in the trajectory's unit; None if unknown.
        """
        depth = keyframe.depth
        if depth is None or depth.known[matches.track_id].sum() < self._config.min_cells:
            return None
        if _part_on_plane(depth, matches, rays) >= self._geometry.planar_ratio:
            return None
        return self._posed(depth, matches, rays, expected)

    def locate(
        self,
        keyframe: Keyframe,
        matches: Correspondences,
        rays: MatchedRays,
        pose: RelativePose,
        found: RelativePose | None = None,
    ) -> RelativePose | None:
        """The current camera's pose in the trajectory's unit, and depths refined by it; None if it has no length.

        Args:
            keyframe: its `depth` is initialised or refined.
            matches: with it.
            rays: of the matches.
            pose: of the current camera relative to it, with a unit translation.
            found: what `by_depth` found; None if it was not asked.
        """
        if not pose.has_rotation:
            return None
        if found is None:
            if keyframe.depth is None or keyframe.depth.known.sum() < self._config.min_cells:
                return self._begin(keyframe, matches, pose, rays)
            found = self.in_unit(keyframe.depth, matches, rays, pose)
        if found is not None:
            self._refine(keyframe, matches, found, rays)
        return found

    def in_unit(
        self, depth: CellDepth, matches: Correspondences, rays: MatchedRays, pose: RelativePose
    ) -> RelativePose | None:
        """The pose by known depths near a two-view pose; None if they determine none. Nothing is changed."""
        return self._posed(depth, matches, rays, in_unit_of(depth, matches, rays, pose))

    def _posed(
        self, depth: CellDepth, matches: Correspondences, rays: MatchedRays, expected: tuple[Array, Array] | None
    ) -> RelativePose | None:
        pose = pose_by_depth(depth, matches, rays, self._geometry, self._config.min_cells, expected)
        return pose if pose is not None and pose.has_rotation else None

    def transfer_depth(
        self, keyframe: Keyframe, matches: Correspondences, rays: MatchedRays, pose: RelativePose, new: EncodedFrame
    ) -> DepthTransfer | None:
        """Transfer depths to the cells of a frame that becomes a keyframe; None if the older one has too few.

        Args:
            keyframe: the older one.
            matches: of it with the frame.
            rays: of the matches.
            pose: of the frame relative to it, in the trajectory's unit.
            new: the frame.
        """
        if keyframe.depth is None:
            return None
        stored = keyframe.depth
        found = self._triangulated(matches, pose, rays)
        known = CellDepth(stored.inverse[matches.track_id], stored.variance[matches.track_id], is_metric=False)
        both = known.with_measured(np.arange(len(matches)), found.inverse, found.variance)
        keep = pose.inliers & both.known
        if keep.sum() < self._config.min_cells:
            return None
        depth = transferred(both, keep, matches, rays, pose, new)
        first, doubt = keyframe.first_depth, 0.0
        if first is not None:
            doubt = _disagreement(
                first.inverse[matches.track_id], found.inverse, matches.keyframe_points, keyframe.frame.size
            )
        # All that is triangulated now is proportional to this step, whose length is known by the older depths.
        return DepthTransfer(depth, math.hypot(doubt, _length_std(pose, self._geometry.depth_scale_std), _UNSEEN))

    def _begin(
        self, keyframe: Keyframe, matches: Correspondences, pose: RelativePose, rays: MatchedRays
    ) -> RelativePose | None:
        """The first depths of a trajectory, scaled to a typical depth of 1."""
        if pose.status in (PoseStatus.PURE_ROTATION, PoseStatus.LOW_PARALLAX):
            step = pose.median_parallax / rays.focal_length
            covariance = pose.covariance.copy()
            covariance[:3, :3] = np.eye(3) * (2 * step) ** 2 + 1e-8 * np.eye(3)
            return replace(pose, covariance=covariance)
        if not pose.has_direction:
            return None
        if pose.median_parallax < self._config.min_parallax:
            # There is no unit yet: a typical depth will be one, and this is the camera's largest possible step in it.
            step = pose.median_parallax / rays.focal_length
            covariance = pose.covariance.copy()
            covariance[:3], covariance[:, :3] = 0.0, 0.0
            covariance[:3, :3] = np.eye(3) * (2 * step) ** 2
            return replace(pose, translation=step * pose.translation, covariance=covariance)
        found = self._triangulated(matches, pose, rays)
        good = pose.inliers & np.isfinite(found.inverse)
        if good.sum() < self._config.min_cells:
            return None
        length = float(np.median(found.inverse[good]))
        depth = CellDepth.unknown(len(keyframe.encoded.cell_points), is_metric=False)
        keyframe.depth = depth.with_measured(
            matches.track_id[good], found.inverse[good] / length, found.variance[good] / length**2
        )
        keyframe.depth_parallax = pose.median_parallax
        covariance = pose.covariance.copy()
        covariance[:3] *= length
        covariance[:, :3] *= length
        return replace(pose, translation=pose.translation * length, covariance=covariance)

    def _refine(self, keyframe: Keyframe, matches: Correspondences, pose: RelativePose, rays: MatchedRays) -> None:
        depth, good = keyframe.depth, pose.inliers
        assert depth is not None
        if keyframe.first_depth is None:
            keyframe.first_depth = depth
        if pose.median_parallax < max(self._config.min_parallax, _FARTHER * keyframe.depth_parallax):
            return
        found, cell = self._triangulated(matches, pose, rays), matches.track_id
        ratio = _ratios(keyframe.first_depth.inverse[cell], found.inverse)
        departure = float(np.median(ratio)) if len(ratio) >= self._config.min_cells else 0.0
        if abs(departure) > _DEPARTURE:
            # Depths that followed a wrong pose can drag all others along, since each pose is found by them.
            depth, unit = keyframe.first_depth, math.exp(-departure)
            found = replace(found, inverse=found.inverse * unit, variance=found.variance * unit**2)
        keyframe.depth = depth.with_measured(cell[good], found.inverse[good], found.variance[good])
        keyframe.depth_parallax = pose.median_parallax

    def _triangulated(self, matches: Correspondences, pose: RelativePose, rays: MatchedRays) -> Triangulation:
        std = match_std(matches.std, self._geometry)
        found = triangulate(rays.keyframe, rays.current, pose.rotation, pose.translation, std, rays.focal_length)
        # Not by the step's length: that all depths share, it is the unit itself.
        along = pose.translation / max(float(np.linalg.norm(pose.translation)), 1e-12)
        across = np.eye(6)
        across[:3, :3] -= np.outer(along, along)
        covariance = across @ pose.covariance @ across.T
        by_pose = variance_by_pose(
            rays.keyframe, rays.current, pose.rotation, pose.translation, found.inverse, covariance
        )
        return replace(found, variance=found.variance + by_pose)


def without_unit(pose: RelativePose) -> RelativePose:
    """A single camera's pose in its own unit as one of two views: with a translation of length one, or with none where
    its direction is hardly known.
    """
    length = float(np.linalg.norm(pose.translation))
    along = pose.translation / max(length, 1e-12)
    across = (np.eye(3) - np.outer(along, along)) / max(length, 1e-12)
    turned = np.eye(6)
    turned[:3, :3] = across
    covariance = turned @ pose.covariance @ turned.T
    if np.linalg.eigvalsh(covariance[:3, :3])[-1] < _DIRECTION_STD**2:
        return replace(pose, translation=along, covariance=covariance, scale_known=False)
    covariance[:3], covariance[:, :3] = 0.0, 0.0
    covariance[:3, :3] = np.eye(3) * UNKNOWN_VARIANCE
    status = pose.status if pose.status == PoseStatus.CONCENTRATED else PoseStatus.LOW_PARALLAX
    return replace(pose, status=status, translation=np.zeros(3), covariance=covariance, scale_known=False)


def _length_std(pose: RelativePose, depth_scale_std: float) -> float:
    """Standard deviation of the logarithm of a pose's length in the unit of the depths that gave it; at most 1, as of
    an unknown one.

    The pose's covariance includes an error of the depths' common scale. Here this scale is the unit itself.
    """
    length = max(float(np.linalg.norm(pose.translation)), 1e-12)
    along = pose.translation / length
    variance = float(along @ pose.covariance[:3, :3] @ along) / length**2 - (COMMON_FACTOR * depth_scale_std) ** 2
    return math.sqrt(min(max(variance, 0.0), 1.0))


def _disagreement(known: Array, found: Array, points: NDArray[np.floating], size: tuple[int, int]) -> float:
    """How far the logarithm of the ratio of two sets of inverse depths of the same cells may be from zero.

    It is the larger of its median and of the median's standard error. Errors of neighbours are correlated, and so are
    those of whole regions with a wrong calibration or a misleading surface. So each part of the image counts once.

    Args:
        known, found: (N,) inverse depths, NaN where unknown.
        points: (N,) their pixels.
        size: (width, height) of the image.
    """
    both = np.isfinite(known) & np.isfinite(found)
    ratio = _ratios(known, found)
    if len(ratio) < _LEAST:
        return 0.0
    column, row = (points[both] * (_PARTS[0] / size[0], _PARTS[1] / size[1])).astype(np.int64).T
    part = row * _PARTS[0] + column
    medians = np.array([np.median(ratio[part == one]) for one in np.unique(part) if (part == one).sum() >= _LEAST])
    spread = robust_std(medians - np.median(medians)) if len(medians) else 0.0
    return max(spread / math.sqrt(max(len(medians), 1)), abs(float(np.median(ratio))))


def _part_on_plane(depth: CellDepth, matches: Correspondences, rays: MatchedRays) -> float:
    """Part of the matched cells of known depth that are on one plane.

    On a plane the inverse depth is linear in the ray.
    """
    cell = matches.track_id
    known = np.flatnonzero(depth.known[cell])
    known = known[:: max(len(known) // _RATIOS, 1)]
    inverse, std = depth.inverse[cell[known]], np.sqrt(depth.variance[cell[known]])
    design = homogeneous(rays.keyframe[known])
    limit = np.maximum(_GATE * std, _ON_PLANE * np.abs(inverse))
    weight = 1 / limit
    off = np.full(len(known), np.inf)
    for _ in range(_PLANE_STEPS):
        plane = np.linalg.lstsq(design * weight[:, None], inverse * weight, rcond=None)[0]
        off = np.abs(design @ plane - inverse) / limit
        weight = 1 / (limit * (1 + off))
    return float(np.mean(off < 1))


def _ratios(known: Array, found: Array) -> Array:
    """Logarithms of the ratios found / known of inverse depths, where both are known."""
    both = np.isfinite(known) & np.isfinite(found)
    return np.asarray(np.log(found[both] / known[both]), np.float64)
