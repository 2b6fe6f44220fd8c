"""Two-view geometry: the relative pose of two calibrated images, and the conditions under which it is observable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.epipolar import (
    CommonErrors,
    RefinedPose,
    cheirality_vote,
    common_covariance,
    cut_off_noise,
    depth_signs,
    fit_rotation,
    homogeneous,
    ray_area,
    refine_pose,
    rotated_residual,
    rotation_covariance,
    sampson_distance,
    shared_match_error,
)
from loftr_ros.geometry.se3 import rotation_degrees, rotation_vector
from loftr_ros.geometry.significance import is_significant
from loftr_ros.geometry.small_motion import minima_of_direction

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Variance of unobserved components: so large that no filter takes the value for a measurement.
UNKNOWN_VARIANCE = 1e6


# Maximum number of matches used to compute a pose. Neighbours share their errors, so that more add little. With 1,000 a
# single camera's trajectory was a third worse, for 1 to 3 % of a frame's CPU time.
_USED = 2000
# Matches used to search for an essential matrix or a homography; up to twice as many. All of them give no better result
# (120 rendered pairs: median and 90 % of the errors of rotation and direction are the same).
_SEARCHED = 600
# Maximum number of matches used to refine the poses between which is to be chosen.
_COMPARED = 300
# Part of the matches that the expected pose must explain, once refined, to take the place of a search. The scale of the
# robust kernel in thresholds, while it is refined: the expected pose may be some pixels off.
_EXPLAINED, _EXPECTED_KERNEL = 0.7, 6.0
# Distance in thresholds from a least-squares homography within which a match supports a plane.
_ROUGH_PLANE = 5.0
# Largest ratio between a match's standard deviation and the median.
_STD_RANGE = 3.0
# Least part of the parallax required for a direction that must remain after the best pure rotation.
_LEFT_BY_ROTATION = 0.6
# Largest residual of a match in the last refinement, in standard deviations and in thresholds.
_NOISE_REACH = 5.0
_MAX_REACH = 3.0
# Scale of the robust kernel with a widened threshold, in standard deviations.
_NOISE_KERNEL = 5.0
# Difference in the sum of all matches' robust costs by which a pose rules another one out. Matches with correlated
# errors count for a tenth of their number.
_RIVAL_COST = 30.0
# Least distance of a rival pose in radians.
_RIVAL_DISTANCE = 0.05
# Parallax in thresholds below which the direction may have several minima, of which the search finds any; the others
# are searched for with so many matches, at least so many radians apart, and up to so much worse in mean cost.
_FEW_PARALLAX, _FEW_MATCHES, _MINIMA_APART, _MINIMA_EXCESS = 8.0, 150, 0.4, 0.2
# Cost of a match that meets behind a camera: the robust kernel's cost at two thresholds.
_BEHIND_COST = 2.8


class PoseStatus(IntEnum):
    """What a relative pose determines; the numbers are those of msg/RelativePose."""

    OK = 0
    TOO_FEW_MATCHES = 1
    LOW_PARALLAX = 2
    PURE_ROTATION = 3
    PLANAR = 4
    NO_CALIBRATION = 5
    CONCENTRATED = 6
    DOUBTFUL = 7

    @property
    def has_rotation(self) -> bool:
        """Whether there is a rotation; in a doubtful pose it may be wrong."""
        return self not in (PoseStatus.TOO_FEW_MATCHES, PoseStatus.NO_CALIBRATION)

    @property
    def has_direction(self) -> bool:
        """Whether there is a direction of the translation; in a doubtful pose it may be wrong."""
        return self in (PoseStatus.OK, PoseStatus.PLANAR, PoseStatus.CONCENTRATED, PoseStatus.DOUBTFUL)

    @property
    def is_believed(self) -> bool:
        """Whether a trajectory may use it."""
        return self.has_rotation and self != PoseStatus.DOUBTFUL


class ScaleReason(IntEnum):
    """Reason for an unknown length; the numbers are those of msg/RelativePose, where each begins with SCALE_."""

    KNOWN = 0
    NO_POSE = 1
    OWN_UNIT = 2
    NO_DEPTH = 3
    FEW_DEPTHS = 4
    DEPTHS_DISAGREE = 5
    OTHER_GRID = 6
    VIEWS_DISAGREE = 7


@dataclass(frozen=True)
class RelativePose:
    """T_keyframe_current, up to scale, with its status.

    Attributes:
        status: which parts are observed.
        rotation: (3, 3) float64, current to keyframe optical axes.
        translation: (3,) float64 position of the current camera in the keyframe's optical frame: a unit vector, or zero
            if its direction is not observed.
        covariance: (6, 6) float64 of (x, y, z, rotation about x, y, z) in keyframe axes; rotation in rad, translation
            relative to its unit length.
        inliers: (N,) bool, one entry per match.
        median_parallax: px of the keyframe's image, the inliers' motion after removing the rotation; NaN without a
            pose.
        scale_known: whether the translation is in metres.
        without_length: the reason if it is not.
    """

    status: PoseStatus
    rotation: Array
    translation: Array
    covariance: Array
    inliers: Flags
    median_parallax: float
    scale_known: bool = False
    without_length: ScaleReason = ScaleReason.NO_DEPTH

    @property
    def scale_reason(self) -> ScaleReason:
        """Why the length is not known in metres; KNOWN if it is."""
        if self.scale_known:
            return ScaleReason.KNOWN
        return self.without_length if self.has_rotation else ScaleReason.NO_POSE

    @property
    def has_rotation(self) -> bool:
        """Whether the rotation is observed."""
        return self.status.has_rotation

    @property
    def has_direction(self) -> bool:
        """Whether the translation's direction is observed."""
        return self.status.has_direction

    @property
    def is_believed(self) -> bool:
        """Whether a trajectory may use it."""
        return self.status.is_believed

    @property
    def matrix(self) -> Array:
        """(4, 4) T_keyframe_current."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation, self.translation
        return matrix

    @property
    def rotation_angle(self) -> float:
        """Angle of the rotation, in degrees."""
        return rotation_degrees(self.rotation)


def without_pose(status: PoseStatus, inliers: Flags) -> RelativePose:
    """A result without a pose, with the reason."""
    return RelativePose(status, np.eye(3), np.zeros(3), np.eye(6) * UNKNOWN_VARIANCE, inliers, float("nan"))


def doubtful(pose: RelativePose) -> RelativePose:
    """The pose marked as doubtful because tests disagree. No accuracy is claimed."""
    return replace(pose, status=PoseStatus.DOUBTFUL, covariance=np.eye(6) * UNKNOWN_VARIANCE)


def uncalibrated_inliers(points0: NDArray[np.float32], points1: NDArray[np.float32], config: GeometryConfig) -> Flags:
    """Inliers of the fundamental matrix by MAGSAC++, for images without intrinsics.

    Args:
        points0, points1: (N, 2) pixels.
        config: threshold in pixels.

    Returns:
        (N,) bool; all false with fewer matches than `min_matches`.
    """
    if len(points0) < max(config.min_matches, 8):
        return np.zeros(len(points0), dtype=np.bool_)
    _, mask = cv2.findFundamentalMat(
        points0, points1, cv2.USAC_MAGSAC, config.threshold, config.confidence, config.max_iterations
    )
    return np.zeros(len(points0), dtype=np.bool_) if mask is None else mask.ravel() > 0


def estimate_relative_pose(
    rays_keyframe: Array,
    rays_current: Array,
    focal_length: float,
    config: GeometryConfig,
    std: NDArray[np.floating] | None = None,
    view_area: float | None = None,
    expected: tuple[Array, Array] | None = None,
    is_known: bool = False,
) -> RelativePose:
    """The relative pose from matched rays: essential matrix by MAGSAC++, refined on its inliers.

    `status` reports too few matches, pure rotation, a planar scene, and matches in one small part of the image.

    Args:
        rays_keyframe, rays_current: (N, 2) normalised coordinates (x / z, y / z); NaN where a pixel has no ray.
        focal_length: pixels; thresholds in pixels are divided by it.
        config: thresholds.
        std: (N,) standard deviations of the matches in pixels, used as weights in the refinement; None or NaN if
            unknown.
        view_area: `ray_area` of all usable points of the keyframe; None if unknown, and then CONCENTRATED is not
            reported.
        expected: rotation and translation by other means; if it explains the matches, it replaces the search.
        is_known: whether `expected` comes from known depths of the same points. They have chosen between poses that
            explain the matches alike, as those of a plane; then no other poses are compared.

    Returns:
        The pose with one inlier flag per match.
    """
    usable: Flags = np.asarray(np.isfinite(np.hstack([rays_keyframe, rays_current])).all(axis=1))
    nothing = np.zeros(len(usable), dtype=np.bool_)
    if usable.sum() < max(config.min_matches, 5):
        return without_pose(PoseStatus.TOO_FEW_MATCHES, nothing)
    # Matches are ordered by cell: every n-th of them is spread like all of them.
    used = np.flatnonzero(usable)
    used = used[:: -(-len(used) // _USED)]
    x0, x1 = rays_keyframe[used], rays_current[used]
    pixels = None if std is None else np.asarray(std[used], np.float64)
    std = None if pixels is None else relative_std(pixels)
    solver = _Solver(x0, x1, focal_length, config, std, pixels, expected, is_known)
    result = solver.solve()
    inliers = nothing.copy()
    inliers[used] = result.inliers
    if result.has_rotation and len(used) < usable.sum():
        inliers[usable] = solver.agreeing(homogeneous(rays_keyframe[usable]), homogeneous(rays_current[usable]))
    status = result.status
    # A small patch always looks planar, so report CONCENTRATED instead of PLANAR.
    if result.has_direction and is_concentrated(rays_keyframe[inliers], view_area, config):
        status = PoseStatus.CONCENTRATED
    return RelativePose(status, result.rotation, result.translation, result.covariance, inliers, result.median_parallax)


def is_concentrated(rays: Array, view_area: float | None, config: GeometryConfig) -> bool:
    """Whether the inliers are in so small a part of the image that errors of one region decide the pose.

    Args:
        rays: (N, 2) of the keyframe's inliers.
        view_area: as in `estimate_relative_pose`.
        config: `min_spread`.
    """
    return view_area is not None and ray_area(rays) < config.min_spread * view_area


def relative_std(std: NDArray[np.floating]) -> Array | None:
    """(N,) standard deviations in units of their median, without extreme values; None if unknown.

    A match that claims high certainty must not decide alone.
    """
    if not np.isfinite(std).all():
        return None
    return np.clip(np.asarray(std, np.float64) / max(float(np.median(std)), 1e-9), 1 / _STD_RANGE, _STD_RANGE)


def _consistent(p0: Array, p1: Array, rotation: Array, translation: Array, threshold: float) -> Flags:
    """(N,) whether rays are closer than `threshold` to their epipolar line, and in front of both cameras unless too far
    away to decide.
    """
    close = sampson_distance(p0, p1, rotation, translation) < threshold
    far = rotated_residual(p0, p1, rotation) < 2 * threshold
    return np.asarray(close & (far | depth_signs(p0, p1, rotation, translation)))


def _apart(pose: RefinedPose, rivals: list[RefinedPose]) -> Array:
    """(6, 6) added covariance from rival poses that fit equally well: the square of the difference to the farthest.

    Close ones are the same minimum before convergence.
    """
    farthest = np.zeros(6)
    for rival in rivals:
        moved = rival.translation - (pose.translation @ rival.translation) * pose.translation
        difference = np.concatenate([moved, rotation_vector(rival.rotation @ pose.rotation.T)])
        if np.linalg.norm(difference) > max(_RIVAL_DISTANCE, float(np.linalg.norm(farthest))):
            farthest = difference
    return np.outer(farthest, farthest)


class _Solver:
    """One estimation, with the data shared by its steps.

    Everything is in normalised coordinates, except u0 and u1: OpenCV's MAGSAC++ assumes noise of the order of a pixel,
    whatever the threshold, and finds poses several times worse on coordinates of unit size.
    """

    def __init__(
        self,
        x0: Array,
        x1: Array,
        focal_length: float,
        config: GeometryConfig,
        std: Array | None = None,
        pixels: Array | None = None,
        expected: tuple[Array, Array] | None = None,
        is_known: bool = False,
    ) -> None:
        self.expected, self.is_known = expected, is_known
        self._found: tuple[Array, Array | None] = np.eye(3), None
        self.x0, self.x1, self.std = x0, x1, std
        self.p0, self.p1 = homogeneous(x0), homogeneous(x1)
        self.u0, self.u1 = x0 * focal_length, x1 * focal_length
        self.focal_matrix = np.diag([focal_length, focal_length, 1.0])
        self.focal_length = focal_length
        self.threshold = config.threshold / focal_length
        self.config = config
        shared, self.more = shared_match_error(np.full(1, np.nan) if pixels is None else pixels)
        self.common = CommonErrors.of(config, focal_length, shared)

    def agreeing(self, p0: Array, p1: Array) -> Flags:
        """(N,) whether rays agree with the pose that `solve` found."""
        rotation, translation = self._found
        if translation is None:
            return np.asarray(rotated_residual(p0, p1, rotation) < self.threshold)
        return _consistent(p0, p1, rotation, translation, self.threshold)

    def solve(self) -> RelativePose:
        pose = self._solve()
        if pose.has_rotation and self._is_significant(pose):
            return pose
        return without_pose(PoseStatus.TOO_FEW_MATCHES, np.zeros(len(self.x0), dtype=np.bool_))

    def _is_significant(self, pose: RelativePose) -> bool:
        """Whether chance alone is unlikely to give as many inliers."""

        def agree(x0: Array, x1: Array) -> Flags:
            p0, p1 = homogeneous(x0), homogeneous(x1)
            if pose.has_direction:
                return np.asarray(sampson_distance(p0, p1, pose.rotation, pose.translation) < self.threshold)
            return np.asarray(rotated_residual(p0, p1, pose.rotation) < self.threshold)

        least = self.config.min_significance
        return is_significant(self.x0, self.x1, pose.inliers, agree, self.focal_length, least)

    def _solve(self) -> RelativePose:
        config = self.config
        by_expectation = self._expected_pose()
        rough = by_expectation or self._essential_pose()
        if rough is None:
            nothing = np.zeros(len(self.x0), dtype=np.bool_)
            return self._rotation_only(nothing) or without_pose(PoseStatus.TOO_FEW_MATCHES, nothing)
        rotation, translation, inliers = rough
        if (rotation_only := self._rotation_only(inliers)) is not None:
            return rotation_only
        rivals: list[RefinedPose] = []
        if by_expectation is not None and self.is_known:
            status, best = PoseStatus.OK, self._refined(inliers, rotation, translation, iterations=1)
        else:
            status, best, rivals, inliers = self._chosen(rotation, translation, inliers)
        # Refine to the end with the inliers of the refined pose; its origin no longer matters.
        inliers = self._inliers(best.rotation, best.translation)
        if inliers.sum() < config.min_inliers:
            return without_pose(PoseStatus.TOO_FEW_MATCHES, inliers)
        # Include all of the noise. If the threshold cuts off a part, the pose scatters more than its residuals show.
        # Much further away there are wrong matches, whose parallax gives them leverage that the kernel does not reduce.
        noise = self._noise(best, inliers) / self.config.threshold
        near = self._inliers(best.rotation, best.translation, float(np.clip(_NOISE_REACH * noise, 1.0, _MAX_REACH)))
        noise = self._noise(best, near) / self.config.threshold
        best = self._refined(near, best.rotation, best.translation, widened=max(_NOISE_KERNEL * noise, 1.0))
        inliers = self._inliers(best.rotation, best.translation)
        if inliers.sum() < config.min_inliers:
            return without_pose(PoseStatus.TOO_FEW_MATCHES, inliers)
        self._found = best.rotation, best.translation
        parallax = self._median_parallax(best.rotation, inliers)
        # The covariance does not show this: if noise decides the direction, the minimum fits the noise, including its
        # rotation. The residual of the best pure rotation shows how little there was to explain.
        unexplained = min(parallax, self._median_parallax(self._best_rotation, inliers) / _LEFT_BY_ROTATION)
        if unexplained < config.min_parallax_to_noise * self._noise(best, inliers):
            return self._without_direction(best, inliers, parallax)
        covariance = self._covariance(best, inliers) + _apart(best, rivals)
        return RelativePose(status, best.rotation, best.translation, covariance, inliers, parallax)

    def _chosen(
        self, rotation: Array, translation: Array, inliers: Flags
    ) -> tuple[PoseStatus, RefinedPose, list[RefinedPose], Flags]:
        """The best of the poses that may explain the matches alike: its status, itself after a few steps of refinement,
        those that are as good, and the inliers with those of a plane.
        """
        status = PoseStatus.OK
        candidates = [(rotation, translation)]
        # A plane, or a nearly planar scene, has two nearly equal solutions; the homography gives both.
        plane_poses, on_plane = self._plane_poses(inliers)
        candidates += plane_poses
        candidates += self._other_minima(inliers, rotation, translation)
        if plane_poses and on_plane.sum() >= self.config.planar_ratio * inliers.sum():
            status = PoseStatus.PLANAR
            inliers = inliers | on_plane
        # A few steps separate the candidates. A plane's two fit equally well, but one has a part of the plane behind a
        # camera.
        tried = [self._compared(inliers, *candidate) for candidate in candidates]
        costs = [pose.cost + _BEHIND_COST * self._part_behind(pose, inliers) for pose in tried]
        rivals = [p for p, cost in zip(tried, costs, strict=True) if (cost - min(costs)) * inliers.sum() < _RIVAL_COST]
        return status, tried[int(np.argmin(costs))], rivals, inliers

    def _covariance(self, pose: RefinedPose, inliers: Flags) -> Array:
        """(6, 6) of a refined pose: from its matches' noise, including that beyond the threshold, from their shared
        errors, and from what parts of the image disagree about.
        """
        distance = sampson_distance(self.p0, self.p1, pose.rotation, pose.translation)
        noise = pose.covariance * cut_off_noise(distance, self.threshold)
        noise *= self.more**2 if self.config.match_bias else 1.0
        shared = common_covariance(
            self.p0[inliers], self.p1[inliers], pose.rotation, pose.translation, self.threshold / 2, self.common
        )
        return noise + shared + np.outer(pose.disagreement, pose.disagreement)

    def _without_direction(self, pose: RefinedPose, inliers: Flags, parallax: float) -> RelativePose:
        covariance = self._covariance(pose, inliers)
        covariance[:3], covariance[:, :3] = 0.0, 0.0
        covariance[:3, :3] = np.eye(3) * UNKNOWN_VARIANCE
        return RelativePose(PoseStatus.LOW_PARALLAX, pose.rotation, np.zeros(3), covariance, inliers, parallax)

    def _refined(
        self, inliers: Flags, rotation: Array, translation: Array, iterations: int = 10, widened: float = 1.0
    ) -> RefinedPose:
        std = None if self.std is None else self.std[inliers]
        threshold = widened * self.threshold
        return refine_pose(self.p0[inliers], self.p1[inliers], rotation, translation, threshold, iterations, std)

    def _compared(self, inliers: Flags, rotation: Array, translation: Array) -> RefinedPose:
        """A pose refined by a few steps, most of them with a part of the inliers; its cost is that of all of them."""
        rough = self._refined(self._part(inliers), rotation, translation, iterations=3)
        return self._refined(inliers, rough.rotation, rough.translation, iterations=1)

    @staticmethod
    def _part(inliers: Flags) -> Flags:
        """Some of the inliers, spread like all of them."""
        chosen = np.flatnonzero(inliers)
        some = np.zeros_like(inliers)
        some[chosen[:: max(-(-len(chosen) // _COMPARED), 1)]] = True
        return some

    def _expected_pose(self) -> tuple[Array, Array, Flags] | None:
        """Rotation, unit translation and inliers of the expected pose after refinement; None if it explains too few
        of the matches.
        """
        if self.expected is None:
            return None
        rotation, translation = self.expected
        length = float(np.linalg.norm(translation))
        if length < 1e-9:
            return None
        pose = rotation, translation / length
        some = self._part(np.ones(len(self.x0), np.bool_))
        for widened in (1.0,) if self.is_known else (_EXPECTED_KERNEL, 1.0):
            refined = self._refined(some, *pose, iterations=4, widened=widened)
            pose = refined.rotation, refined.translation
        if cheirality_vote(self.p0[some], self.p1[some], pose[0], -pose[1], self.threshold) > cheirality_vote(
            self.p0[some], self.p1[some], *pose, self.threshold
        ):
            pose = pose[0], -pose[1]
        inliers = sampson_distance(self.p0, self.p1, *pose) < self.threshold
        return (*pose, inliers) if inliers.sum() >= max(_EXPLAINED * len(inliers), self.config.min_inliers) else None

    def _essential_pose(self) -> tuple[Array, Array, Flags] | None:
        """Rotation, unit translation and inliers of the best essential matrix; None if there is none."""
        some = slice(None, None, max(len(self.x0) // _SEARCHED, 1))
        # From current to keyframe: x0^T E x1 = 0 is what OpenCV calls points2^T E points1.
        essential, mask = cv2.findEssentialMat(
            np.ascontiguousarray(self.u1[some]),
            np.ascontiguousarray(self.u0[some]),
            self.focal_matrix,
            cv2.USAC_MAGSAC,
            self.config.confidence,
            self.config.threshold,
            self.config.max_iterations,
        )
        if essential is None or essential.shape != (3, 3):
            return None
        inliers = mask.ravel() > 0
        *rotations, t = (np.asarray(part, np.float64) for part in cv2.decomposeEssentialMat(essential))
        candidates = [(r, s * t.ravel()) for r in rotations for s in (1.0, -1.0)]
        p0, p1 = self.p0[some][inliers], self.p1[some][inliers]
        rotation, translation = max(candidates, key=lambda c: cheirality_vote(p0, p1, c[0], c[1], self.threshold))
        if some.step > 1:
            inliers = sampson_distance(self.p0, self.p1, rotation, translation) < self.threshold
        return (rotation, translation, inliers) if inliers.sum() >= self.config.min_inliers else None

    @cached_property
    def _best_rotation(self) -> Array:
        """The pure rotation that explains the matches best."""
        return fit_rotation(self.p0, self.p1, self.threshold)

    def _rotation_only(self, inliers: Flags) -> RelativePose | None:
        """The pose without translation, if it explains the matches as well as one with; else None."""
        rotation = self._best_rotation
        residual = rotated_residual(self.p0, self.p1, rotation)
        agreeing = residual < self.threshold
        needed = max(self.config.min_inliers, 0.8 * inliers.sum())
        limit = self.config.min_parallax / self.focal_length
        if agreeing.sum() < needed or np.median(residual[agreeing | inliers]) > limit:
            return None
        self._found = rotation, None
        covariance = np.eye(6) * UNKNOWN_VARIANCE
        covariance[3:, 3:] = rotation_covariance(self.p0, self.p1, rotation, self.threshold)
        # A wrong focal length scales the rotation; a wrong principal point tilts its axis.
        angle = float(np.linalg.norm(rotation_vector(rotation)))
        covariance[3:, 3:] += np.eye(3) * (angle * np.hypot(self.common.focal_std, self.common.centre_std)) ** 2
        moved = np.median(np.linalg.norm(self.x0[agreeing] - self.x1[agreeing], axis=1))
        status = PoseStatus.LOW_PARALLAX if moved < 3 * limit else PoseStatus.PURE_ROTATION
        parallax = float(np.median(residual[agreeing])) * self.focal_length
        return RelativePose(status, rotation, np.zeros(3), covariance, agreeing, parallax)

    def _plane_poses(self, inliers: Flags) -> tuple[list[tuple[Array, Array]], Flags]:
        """The poses allowed by the dominant plane if it contains half of the inliers, and the matches on it."""
        nothing = np.zeros(len(self.x0), dtype=np.bool_)
        least = max(0.5 * inliers.sum(), 4)
        # Least squares are enough to rule out such a plane, at a tenth of the cost: a second time with the nearer half,
        # since one wrong match on its epipolar line can turn the first homography away.
        some = self._part(inliers)
        rough, _ = cv2.findHomography(self.u1[some], self.u0[some], 0)
        if rough is not None and some.sum() >= 8:
            off = self._off_plane(rough, some)
            near = np.flatnonzero(some)[off <= np.nanmedian(off)]
            rough, _ = cv2.findHomography(self.u1[near], self.u0[near], 0)
        if rough is None or (self._off_plane(rough, inliers) < _ROUGH_PLANE * self.config.threshold).sum() < least:
            return [], nothing
        every = slice(None, None, max(len(self.x0) // _SEARCHED, 1))
        homography: NDArray[Any] | None = cv2.findHomography(
            np.ascontiguousarray(self.u1[every]),
            np.ascontiguousarray(self.u0[every]),
            cv2.USAC_MAGSAC,
            self.config.threshold,
            maxIters=200,
            confidence=0.999,
        )[0]
        if homography is None:
            return [], nothing
        on_plane = self._off_plane(homography, slice(None)) < self.config.threshold
        if on_plane.sum() < least:
            return [], on_plane
        _, rotations, translations, _ = cv2.decomposeHomographyMat(homography, self.focal_matrix)
        poses = []
        for matrix, vector in zip(rotations, translations, strict=True):
            rotation, t = np.asarray(matrix, np.float64), np.asarray(vector, np.float64).ravel()
            length = np.linalg.norm(t)
            if length < 1e-9:
                continue
            t = t / length
            if depth_signs(self.p0[on_plane], self.p1[on_plane], rotation, t).mean() > 0.5:
                poses.append((rotation, t))
        return poses, on_plane

    def _off_plane(self, homography: NDArray[Any], some: Flags | slice) -> Array:
        """Distances in pixels from where a homography moves matches; infinite or NaN at the plane's horizon."""
        moved = self.u1[some] @ homography[:, :2].T + homography[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.linalg.norm(moved[:, :2] / moved[:, 2:] - self.u0[some], axis=1))

    def _inliers(self, rotation: Array, translation: Array, reach: float = 1.0) -> Flags:
        """Matches that agree with a pose within `reach` thresholds."""
        return _consistent(self.p0, self.p1, rotation, translation, reach * self.threshold)

    def _other_minima(self, inliers: Flags, rotation: Array, translation: Array) -> list[tuple[Array, Array]]:
        """Distinct poses near which matches of small parallax may have a better minimum."""
        if self._median_parallax(rotation, inliers) > _FEW_PARALLAX * self.config.threshold:
            return []
        some = np.flatnonzero(inliers)
        some = some[:: -(-len(some) // _FEW_MATCHES)]
        return minima_of_direction(
            self.p0[some], self.p1[some], self._best_rotation, self.threshold / 2, _MINIMA_APART, _MINIMA_EXCESS
        )

    def _part_behind(self, pose: RefinedPose, inliers: Flags) -> float:
        """Part of the matches that meet behind a camera, by more than the noise of distant points."""
        p0, p1 = self.p0[inliers], self.p1[inliers]
        far = rotated_residual(p0, p1, pose.rotation) < 2 * self.threshold
        return float(1 - np.mean(far | depth_signs(p0, p1, pose.rotation, pose.translation)))

    def _noise(self, pose: RefinedPose, inliers: Flags) -> float:
        """Standard deviation of the inliers' distance from their epipolar lines, px, robustly."""
        distance = sampson_distance(self.p0[inliers], self.p1[inliers], pose.rotation, pose.translation)
        return 1.48 * float(np.median(distance)) * self.focal_length

    def _median_parallax(self, rotation: Array, inliers: Flags) -> float:
        return float(np.median(rotated_residual(self.p0[inliers], self.p1[inliers], rotation))) * self.focal_length
