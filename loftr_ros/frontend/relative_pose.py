"""The pose of an image relative to a keyframe: from the keyframe's depths or from two views, if possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth, triangulate
from loftr_ros.frontend.keyframes import EncodedFrame, StreamFrame
from loftr_ros.frontend.results import Correspondences, MatchedRays
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.epipolar import COMMON_FACTOR
from loftr_ros.geometry.metric_pose import metric_relative_pose
from loftr_ros.geometry.se3 import rotation_matrix
from loftr_ros.geometry.two_view import (
    PoseStatus,
    RelativePose,
    ScaleReason,
    estimate_relative_pose,
    uncalibrated_inliers,
    without_pose,
)

Array = NDArray[np.float64]

# Depths used for the first guess of a length; up to twice as many.
_RATIOS = 200
# Largest spread of the logarithms of the lengths that depths give one pose, and largest standard deviation of what they
# agree upon; matches whose errors are one.
_MOST_SPREAD, _MOST_UNCERTAIN, SHARING = 0.15, 0.3, 4
# Standard deviation of a normal distribution over its median absolute deviation.
_DEVIATION = 1.4826


def robust_std(off: Array) -> float:
    """Standard deviation by the median size of (N,) departures from a median, which wrong ones hardly change."""
    return _DEVIATION * float(np.median(np.abs(off)))


def matched_rays(keyframe: EncodedFrame, current: StreamFrame, matches: Correspondences) -> MatchedRays | None:
    """Rays of the matches; None if one of the cameras is not calibrated."""
    camera, rays = current.frame.camera, keyframe.cell_rays
    if camera is None or keyframe.frame.camera is None or rays is None:
        return None
    return MatchedRays(
        rays[matches.track_id], camera.unproject(matches.current_points), camera.focal_length, keyframe.view_area
    )


def pose_without_calibration(matches: Correspondences, geometry: GeometryConfig) -> RelativePose:
    """The inliers of one fundamental matrix, without a pose."""
    inliers = uncalibrated_inliers(matches.keyframe_points, matches.current_points, geometry)
    return without_pose(PoseStatus.NO_CALIBRATION, inliers)


def pose_by_two_views(
    keyframe: EncodedFrame,
    matches: Correspondences,
    rays: MatchedRays,
    geometry: GeometryConfig,
    why: ScaleReason,
    expected: tuple[Array, Array] | None = None,
    is_known: bool = False,
) -> RelativePose:
    """The two-view pose, with a translation of unit length.

    Args:
        keyframe: image 0.
        matches: with it.
        rays: of the matches.
        geometry: settings.
        why: reason for the unknown length.
        expected: rotation and translation by other means; None if unknown.
        is_known: whether these come from the keyframe's depths, see `estimate_relative_pose`.
    """
    assert keyframe.frame.camera is not None
    pose = estimate_relative_pose(
        rays.keyframe,
        rays.current,
        keyframe.frame.camera.focal_length,
        geometry,
        matches.std,
        rays.view_area,
        expected,
        is_known,
    )
    return replace(pose, without_length=why)


def pose_by_depth(
    depth: CellDepth | None,
    matches: Correspondences,
    rays: MatchedRays,
    geometry: GeometryConfig,
    min_cells: int,
    expected: tuple[Array, Array] | None = None,
) -> RelativePose | None:
    """The current camera's pose in the unit of a keyframe's depths; None if too few depths are known or agree.

    Args:
        depth: of the keyframe's cells.
        matches: with it.
        rays: of the matches.
        geometry: settings.
        min_cells: least inliers of known depth for a length.
        expected: rotation and translation by two views; None if unknown.
    """
    if depth is None:
        return None
    cell = matches.track_id
    return metric_relative_pose(
        rays.keyframe,
        rays.current,
        depth.inverse[cell],
        depth.variance[cell],
        matches.std,
        rays.focal_length,
        geometry,
        min_cells,
        rays.view_area,
        expected,
        depth.is_metric,
    )


def in_unit_of(
    depth: CellDepth, matches: Correspondences, rays: MatchedRays, pose: RelativePose
) -> tuple[Array, Array] | None:
    """Rotation and translation of a two-view pose in the unit of a keyframe's depths: the median of the ratios of them
    to the triangulated ones. None if there are too few.

    Args:
        depth: of the keyframe's cells.
        matches: with it.
        rays: of the matches.
        pose: by two views; without a direction its translation stays as it is.
    """
    if not pose.has_direction:
        return pose.rotation, pose.translation
    ratio = _lengths(depth, matches, rays, pose, _RATIOS)
    return (pose.rotation, pose.translation * float(np.median(ratio))) if len(ratio) else None


def _lengths(
    depth: CellDepth, matches: Correspondences, rays: MatchedRays, pose: RelativePose, most: int | None = None
) -> Array:
    """(M,) lengths of a two-view pose's translation in the unit of known depths, one of each inlier that has one.

    Args:
        depth, matches, rays, pose: as `in_unit_of`.
        most: use about so many of them; None for all.
    """
    some = np.flatnonzero(pose.inliers & depth.known[matches.track_id])
    some = some if most is None else some[:: max(len(some) // most, 1)]
    found = triangulate(
        rays.keyframe[some], rays.current[some], pose.rotation, pose.translation, np.ones(len(some)), 1.0
    )
    ratio = found.inverse / depth.inverse[matches.track_id[some]]
    return np.asarray(ratio[np.isfinite(ratio)])


class Length(NamedTuple):
    """Length of a two-view pose's translation.

    Attributes:
        value: in the unit of the depths that gave it.
        std: standard deviation of its logarithm.
    """

    value: float
    std: float

    def of(self, pose: RelativePose) -> RelativePose:
        """The two-view pose with this length."""
        unit = np.diag([self.value] * 3 + [1.0] * 3)
        covariance = unit @ pose.covariance @ unit
        covariance[:3, :3] += (self.std * self.value) ** 2 * np.outer(pose.translation, pose.translation)
        return replace(pose, translation=self.value * pose.translation, covariance=covariance, scale_known=True)


def length_by_few_depths(
    depth: CellDepth,
    matches: Correspondences,
    rays: MatchedRays,
    pose: RelativePose,
    geometry: GeometryConfig,
    min_cells: int,
) -> Length | None:
    """The length of a two-view pose by the keyframe's depths, for matches most of which have none; None if fewer than
    `min_cells` tell it, or if they disagree.

    A vehicle's matches after a long way are farther than any measured depth. The few near ones determine no pose.

    Args:
        depth: of the keyframe's cells.
        matches: with it.
        rays: of the matches.
        pose: by two views.
        geometry: settings.
        min_cells: least inliers of known depth for a length.
    """
    return _common_length(lambda moved: _lengths(depth, matches, rays, moved), pose, geometry, min_cells)


def length_by_current_depths(
    depth: CellDepth,
    current: EncodedFrame,
    matches: Correspondences,
    rays: MatchedRays,
    pose: RelativePose,
    geometry: GeometryConfig,
    min_cells: int,
) -> Length | None:
    """As `length_by_few_depths`, by the depths of the current image instead of the keyframe's.

    A vehicle comes closer to what was too far to be measured from the keyframe.

    Args:
        depth: of the current image's cells.
        current: has the cells.
        matches: of the keyframe with it.
        rays: of the matches.
        pose: by two views.
        geometry: settings.
        min_cells: least inliers of known depth for a length.
    """
    some = np.flatnonzero(pose.inliers)
    inverse = depth.inverse[current.nearest_cells(matches.current_points[some])[0]]
    some, inverse = some[np.isfinite(inverse)], inverse[np.isfinite(inverse)]
    before, now, std = rays.keyframe[some], rays.current[some], np.ones(len(some))

    def lengths(moved: RelativePose) -> Array:
        back = np.ascontiguousarray(moved.rotation.T)
        return triangulate(now, before, back, -back @ moved.translation, std, 1.0).inverse / inverse

    return _common_length(lengths, pose, geometry, min_cells)


def _common_length(
    lengths_of: Callable[[RelativePose], Array], pose: RelativePose, geometry: GeometryConfig, min_cells: int
) -> Length | None:
    """What the lengths of a two-view pose by single depths agree upon; None if too few tell one, if they disagree, or
    if the pose is too uncertain.

    Args:
        lengths_of: gives the lengths of a pose, NaN where a depth tells none.
        pose: by two views.
        geometry: settings.
        min_cells: least depths that tell a length.
    """

    def positive(moved: RelativePose) -> Array:
        lengths = lengths_of(moved)
        return lengths[np.isfinite(lengths) & (lengths > 0)]

    lengths = positive(pose)
    if len(lengths) < min_cells:
        return None
    middle = float(np.median(lengths))
    spread = robust_std(np.log(lengths / middle))
    if spread > _MOST_SPREAD:
        return None
    # The same matches gave the pose: its error, along each of the axes of its covariance, changes all lengths alike.
    variances, axes = np.linalg.eigh(pose.covariance)
    by_pose = 0.0
    for step in (axes * np.sqrt(np.maximum(variances, 0))).T:
        rotation, translation = rotation_matrix(step[3:]) @ pose.rotation, pose.translation + step[:3]
        moved = positive(replace(pose, rotation=rotation, translation=translation / np.linalg.norm(translation)))
        by_pose += math.log(float(np.median(moved)) / middle) ** 2 if len(moved) else np.inf
    # Neighbours share their errors.
    by_depths = spread / math.sqrt(len(lengths) / SHARING)
    std = math.hypot(by_depths, math.sqrt(by_pose), COMMON_FACTOR * geometry.depth_scale_std)
    return Length(middle, std) if std <= _MOST_UNCERTAIN else None


def why_no_length(depth: CellDepth | None, cell: NDArray[np.integer], min_cells: int) -> ScaleReason:
    """Why a keyframe's depths give no length when `pose_by_depth` fails.

    Args:
        depth: of its cells.
        cell: (N,) cells of the matches.
        min_cells: least matches of known depth for a length.
    """
    if depth is None or not depth.known.any():
        return ScaleReason.NO_DEPTH
    few = depth.known[cell].sum() < min_cells
    return ScaleReason.FEW_DEPTHS if few else ScaleReason.DEPTHS_DISAGREE
