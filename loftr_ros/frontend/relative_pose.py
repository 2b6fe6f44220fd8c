"""The pose of an image relative to a keyframe: from the keyframe's depths or from two views, if possible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.keyframes import EncodedFrame, StreamFrame
from loftr_ros.frontend.results import Correspondences, MatchedRays
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.metric_pose import metric_relative_pose
from loftr_ros.geometry.two_view import (
    PoseStatus,
    RelativePose,
    ScaleReason,
    estimate_relative_pose,
    uncalibrated_inliers,
    without_pose,
)

Array = NDArray[np.float64]


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
