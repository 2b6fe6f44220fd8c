"""Absolute pose from keyframe cells of known depth, and from the directions of those of unknown depth.

A search on the cells with the best known depth, then the problem of `depth_problem` on all inliers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.depth_problem import DepthMatches, DepthProblem
from loftr_ros.geometry.epipolar import (
    COMMON_FACTOR,
    COMMON_MATCHES,
    CommonErrors,
    cut_off_noise,
    homogeneous,
    rotated_residual,
    shared_match_error,
)
from loftr_ros.geometry.se3 import rotation_matrix
from loftr_ros.geometry.significance import is_significant
from loftr_ros.geometry.two_view import PoseStatus, RelativePose, is_concentrated, without_pose

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Maximum number of matches used to compute a pose by measured depths, whose errors weigh more than the matches', and by
# a single camera's own, see `two_view`.
_USED, _USED_OWN = 1000, 2000
# Maximum number of matches used to refine the result of a search, or an expected pose.
_ROUGH = 300
# Part of the matches of known depth that an expected pose must explain, once refined, to take the place of a search.
_EXPLAINED = 0.6
# Largest relative uncertainty of a cell's depth for the search.
_SEARCH_PRECISION = 0.2
# Largest number of cells used in the search.
_SEARCH_CELLS = 500
# Largest residual of a match in the last refinement, in standard deviations and in thresholds.
_NOISE_REACH = 4.0
_MAX_REACH = 4.0
# Pixels; lower limit of a match's standard deviation, whatever the network states.
_LEAST_STD = 0.02


@dataclass(frozen=True, eq=False)
class MetricPose:
    """T_keyframe_current in the units of the depths.

    Attributes:
        rotation, translation: (3, 3) and (3,).
        covariance: (6, 6) of (translation, rotation vector) about keyframe axes.
        inliers: (N,) bool.
        median_parallax: px, the inliers' motion after removing the rotation.
        depth_inliers: number of inliers of known depth.
    """

    rotation: Array
    translation: Array
    covariance: Array
    inliers: Flags
    median_parallax: float
    depth_inliers: int


def metric_relative_pose(
    rays_keyframe: Array,
    rays_current: Array,
    inverse: Array,
    variance: Array,
    std: NDArray[np.floating],
    focal_length: float,
    geometry: GeometryConfig,
    min_cells: int,
    view_area: float | None = None,
    expected: tuple[Array, Array] | None = None,
    is_metric: bool = True,
) -> RelativePose | None:
    """The relative pose in the unit of the keyframe's depths, if enough of them are known.

    Args:
        rays_keyframe, rays_current: (N, 2) normalised coordinates (x / z, y / z); NaN where a pixel has no ray.
        inverse, variance: (N,) inverse depth of the keyframe's points, NaN and infinite where unknown.
        std: (N,) pixels, standard deviation of the match in the current image along one axis; NaN means half the
            threshold.
        focal_length: pixels of the current image.
        geometry: thresholds.
        min_cells: least inliers of known depth for a known length.
        view_area: as in `estimate_relative_pose`.
        expected: as in `estimate_metric_pose`.
        is_metric: whether the depths were measured; otherwise a single camera's own.

    Returns:
        The pose with one inlier flag per match and `scale_known`; without a pose if there are too few matches; None if
        the depths do not determine a pose, and two-view geometry may.
    """
    usable: Flags = np.asarray(np.isfinite(np.hstack([rays_keyframe, rays_current])).all(axis=1))
    if usable.sum() < geometry.min_matches:
        return without_pose(PoseStatus.TOO_FEW_MATCHES, np.zeros(len(usable), dtype=np.bool_))
    pixels = match_std(std, geometry)
    every = DepthMatches(rays_keyframe, rays_current, inverse, variance, pixels / focal_length)[usable]
    # Matches are ordered by cell: every n-th of them is spread like all of them.
    step = -(-len(every) // (_USED if is_metric else _USED_OWN))
    matches = every[np.arange(0, len(every), step)] if step > 1 else every
    found = estimate_metric_pose(matches, focal_length, geometry, expected)
    if found is None or found.depth_inliers * step < min_cells:
        return None
    threshold = geometry.threshold / focal_length

    def agree(_: Array, other: Array) -> Flags:
        shuffled = DepthProblem(replace(matches, rays_current=other))
        return np.asarray(shuffled.distance(found.rotation, found.translation) < threshold)

    least = geometry.min_significance
    if not is_significant(matches.rays_keyframe, matches.rays_current, found.inliers, agree, focal_length, least):
        return without_pose(PoseStatus.TOO_FEW_MATCHES, np.zeros(len(usable), dtype=np.bool_))
    inliers = usable.copy()
    inliers[usable] = (
        found.inliers if step == 1 else DepthProblem(every).distance(found.rotation, found.translation) < threshold
    )
    concentrated = is_concentrated(rays_keyframe[inliers], view_area, geometry)
    return RelativePose(
        PoseStatus.CONCENTRATED if concentrated else PoseStatus.OK,
        found.rotation,
        found.translation,
        found.covariance,
        inliers,
        found.median_parallax,
        scale_known=True,
    )


def match_std(std: NDArray[np.floating], geometry: GeometryConfig) -> Array:
    """(N,) pixels: standard deviations of matches along one axis, as used: of a match without one half the threshold.

    Args:
        std: (N,) pixels, as the network states them; NaN where it gives none.
        geometry: has the threshold.
    """
    known = np.where(np.isfinite(std), np.asarray(std, np.float64), geometry.threshold / 2)
    return np.asarray(np.maximum(known, _LEAST_STD))


def estimate_metric_pose(
    matches: DepthMatches, focal_length: float, config: GeometryConfig, expected: tuple[Array, Array] | None = None
) -> MetricPose | None:
    """The current camera's pose in the keyframe's frame, in the unit of the depths.

    PnP by MAGSAC++ on the cells with good depth, then Levenberg-Marquardt on all inliers.

    Args:
        matches: with finite rays.
        focal_length: pixels of the current image.
        config: thresholds.
        expected: rotation and translation by two views; if it explains the matches, it replaces the search.

    Returns:
        The pose; None if too few matches agree on one.
    """
    problem = DepthProblem(matches)
    threshold = config.threshold / focal_length
    found = _expected_pose(matches, threshold, expected)
    if found is None:
        found = _search(matches, focal_length, config)
        if found is None:
            return None
        # The search used few points, so its inliers are only approximate; the first refinement is coarse.
        rough = problem.distance(*found) < 2 * threshold
        if rough.sum() < config.min_inliers:
            return None
        some = np.flatnonzero(rough)
        some = some[:: -(-len(some) // _ROUGH)]
        found = DepthProblem(matches[some]).minimised(*found, iterations=2)
    rotation, translation = found
    distance = problem.distance(rotation, translation)
    # Include all of the noise: a threshold that cuts off part of it makes the pose scatter more than the residuals
    # show.
    noise = np.median(distance[distance < threshold]) / 1.18 if (distance < threshold).any() else 0.0
    near = distance < np.clip(_NOISE_REACH * np.maximum(matches.std, noise), threshold, _MAX_REACH * threshold)
    if near.sum() < config.min_inliers:
        return None
    last = DepthProblem(matches[near])
    shared, more = shared_match_error(matches.std * focal_length)
    common = CommonErrors.of(config, focal_length, shared, config.depth_scale_std)
    rotation, translation = last.minimised(rotation, translation)
    distance = problem.distance(rotation, translation)
    inliers = distance < threshold
    if inliers.sum() < config.min_inliers:
        return None
    covariance, disagreement = last.uncertainty(rotation, translation)
    covariance *= cut_off_noise(distance, threshold) * (more**2 if config.match_bias else 1.0)
    covariance += _common_covariance(matches[near], rotation, translation, common)
    agreeing = matches[inliers]
    parallax = rotated_residual(homogeneous(agreeing.rays_keyframe), homogeneous(agreeing.rays_current), rotation)
    return MetricPose(
        rotation,
        translation,
        covariance + np.outer(disagreement, disagreement),
        inliers,
        float(np.median(parallax)) * focal_length,
        int(np.isfinite(agreeing.inverse).sum()),
    )


def _common_covariance(matches: DepthMatches, rotation: Array, translation: Array, common: CommonErrors) -> Array:
    """(6, 6) of (translation, rotation vector): covariance of the minimum due to errors shared by all matches."""
    if common.is_none:
        return np.zeros((6, 6))
    matches = matches[np.arange(0, len(matches), max(len(matches) // COMMON_MATCHES, 1))]
    moved = [matches]
    moved += [
        replace(matches, rays_keyframe=rays0, rays_current=rays1)
        for rays0, rays1 in common.rays(matches.rays_keyframe, matches.rays_current)
    ]
    moved.append(replace(matches, inverse=matches.inverse * (1 + common.depth_scale_std)))
    problem = DepthProblem(matches)
    hessian, _ = problem.normal_equations(problem.projection(rotation, translation))
    together = DepthProblem(DepthMatches.joined(moved))
    gradients = together.gradients(together.projection(rotation, translation), len(moved))
    pulls = gradients[:, 1:] - gradients[:, :1]
    steps = COMMON_FACTOR * np.linalg.solve(hessian + 1e-12 * np.trace(hessian) * np.eye(6), pulls)
    return np.asarray(steps @ steps.T)


def _expected_pose(
    matches: DepthMatches, threshold: float, expected: tuple[Array, Array] | None
) -> tuple[Array, Array] | None:
    """The expected pose refined on some matches of known depth; None if it explains too few of them."""
    known = np.flatnonzero(np.isfinite(matches.inverse))
    if expected is None or not len(known):
        return None
    some = DepthProblem(matches[known[:: -(-len(known) // _ROUGH)]])
    pose = some.minimised(*expected, iterations=5)
    return pose if np.mean(some.distance(*pose) < 2 * threshold) > _EXPLAINED else None


def _search(matches: DepthMatches, focal_length: float, config: GeometryConfig) -> tuple[Array, Array] | None:
    """Rotation and translation of T_keyframe_current by PnP; None if it finds none."""
    with np.errstate(invalid="ignore"):
        good = np.sqrt(matches.variance) < _SEARCH_PRECISION * matches.inverse
    if good.sum() < config.min_inliers:
        return None
    chosen = matches[_spread_choice(matches, np.flatnonzero(good))]
    points = homogeneous(chosen.rays_keyframe) / chosen.inverse[:, None]
    parameters = cv2.UsacParams()
    parameters.sampler, parameters.score = cv2.SAMPLING_UNIFORM, cv2.SCORE_METHOD_MAGSAC
    # Its local optimisation takes most of the time, and the refinement does it better.
    parameters.loMethod = cv2.LOCAL_OPTIM_NULL
    parameters.threshold, parameters.confidence = 2 * config.threshold, config.confidence
    parameters.maxIterations = config.max_iterations
    # As in two-view geometry: OpenCV's MAGSAC++ assumes noise of the order of a pixel.
    result = cv2.solvePnPRansac(
        points,
        chosen.rays_current * focal_length,
        np.diag([focal_length, focal_length, 1.0]),
        np.zeros(0),
        params=parameters,
    )
    ok, _, rotation_vector, vector, inliers = result
    if not ok or inliers is None or len(inliers) < min(config.min_inliers, len(chosen)):
        return None
    rotated = rotation_matrix(rotation_vector)
    return rotated.T, -rotated.T @ np.asarray(vector, np.float64).ravel()


def _spread_choice(matches: DepthMatches, good: NDArray[np.integer]) -> NDArray[np.integer]:
    """At most `_SEARCH_CELLS` of the matches numbered in `good`, keeping the one with the best known depth among
    neighbours.
    """
    group = -(-len(good) // _SEARCH_CELLS)
    if group <= 1:
        return good
    x, y = matches.rays_keyframe[good].T
    bands = np.floor((y - y.min()) / max(float(np.ptp(y)), 1e-9) * 16)
    good = good[np.lexsort((x, bands))]
    off = np.full(-(-len(good) // group) * group, np.inf)
    off[: len(good)] = matches.variance[good] / matches.inverse[good] ** 2
    return np.asarray(good[np.arange(0, len(off), group) + off.reshape(-1, group).argmin(axis=1)])
