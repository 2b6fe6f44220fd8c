"""Two-view geometry on scenes of known truth: each status, accuracy, covariance."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from known_scenes import EXACT, FIELD, FOCAL, SIZE, Array, SeenTwice, band, rays_anywhere, rotation
from scipy.spatial.transform import Rotation

from loftr_ros.evaluation.metrics import rotation_error, translation_direction_error
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.epipolar import homogeneous, in_second_camera, ray_area
from loftr_ros.geometry.two_view import (
    UNKNOWN_VARIANCE,
    PoseStatus,
    RelativePose,
    estimate_relative_pose,
    uncalibrated_inliers,
)


class TwoViews:
    """Points in two cameras, with pixel noise and outliers."""

    def __init__(
        self,
        rotation: Array,
        translation: Array,
        seed: int = 0,
        noise: float = 0.3,
        outliers: float = 0.2,
        planar: bool = False,
        count: int = 400,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.rotation, self.translation = rotation, np.asarray(translation, dtype=np.float64)
        rays0 = (rng.uniform(0, 1, (4 * count, 2)) * SIZE - SIZE / 2) / FOCAL
        depth = rng.uniform(2, 10, len(rays0))
        if planar:
            depth = 5 / (1 + 0.3 * rays0[:, 0] - 0.2 * rays0[:, 1])
        points0 = np.hstack([rays0, np.ones((len(rays0), 1))]) * depth[:, None]
        points1 = (points0 - self.translation) @ rotation
        rays1 = points1[:, :2] / points1[:, 2:]
        seen = (points1[:, 2] > 0.5) & (np.abs(rays1) < SIZE / 2 / FOCAL).all(axis=1)
        self.rays0, self.rays1 = rays0[seen][:count], rays1[seen][:count]
        self.rays1 = self.rays1 + rng.normal(0, noise / FOCAL, self.rays1.shape)
        self.is_outlier = rng.uniform(size=len(self.rays1)) < outliers
        wild = (rng.uniform(0, 1, (len(self.rays1), 2)) * SIZE - SIZE / 2) / FOCAL
        self.rays1[self.is_outlier] = wild[self.is_outlier]

    def estimate(self, config: GeometryConfig | None = None) -> RelativePose:
        return estimate_relative_pose(self.rays0, self.rays1, FOCAL, config or EXACT)


MOTIONS = [
    (rotation(0, 0, 0), [0, 0, 1.0]),
    (rotation(2, -3, 1), [0.6, 0.1, 0.2]),
    (rotation(-5, 15, 3), [-0.8, 0.1, 0.1]),
    (rotation(1, 2, 40), [0.1, 0.5, -0.5]),
]


@pytest.mark.parametrize("number", range(len(MOTIONS)))
def test_a_pose_by_known_depths_saves_the_search_and_the_result_is_the_same(number: int) -> None:
    scene = TwoViews(*MOTIONS[number], outliers=0.1)
    turned = rotation(0.3, -0.2, 0.1) @ scene.rotation
    known = estimate_relative_pose(
        scene.rays0, scene.rays1, FOCAL, EXACT, expected=(turned, 3 * scene.translation), is_known=True
    )
    searched = scene.estimate()
    assert known.status == searched.status
    assert np.array_equal(known.inliers, searched.inliers)
    assert np.allclose(known.matrix, searched.matrix, atol=1e-4)
    assert np.allclose(known.covariance, searched.covariance, rtol=0.05, atol=1e-9)


def test_known_depths_choose_between_the_two_poses_of_a_plane() -> None:
    scene = TwoViews(*MOTIONS[1], planar=True, outliers=0.0)
    assert scene.estimate().status == PoseStatus.PLANAR
    known = estimate_relative_pose(
        scene.rays0, scene.rays1, FOCAL, EXACT, expected=(scene.rotation, scene.translation), is_known=True
    )
    assert known.status == PoseStatus.OK
    assert translation_direction_error(known.translation, scene.translation) < 2.0


def test_a_pose_that_does_not_explain_the_matches_is_searched_for_although_it_was_called_known() -> None:
    scene = TwoViews(*MOTIONS[1])
    wrong = rotation(0, 30, 0), np.array([0.0, 0.0, 1.0])
    found = estimate_relative_pose(scene.rays0, scene.rays1, FOCAL, EXACT, expected=wrong, is_known=True)
    assert np.allclose(found.matrix, scene.estimate().matrix, atol=1e-6)


@pytest.mark.parametrize(("turn", "move"), MOTIONS)
def test_the_pose_of_a_scene_with_depth_is_found_among_outliers(turn: Array, move: list[float]) -> None:
    views = TwoViews(turn, np.array(move))
    pose = views.estimate()
    assert pose.status == PoseStatus.OK
    assert rotation_error(pose.rotation, turn) < 0.2
    assert translation_direction_error(pose.translation, np.array(move)) < 1.5
    assert np.linalg.norm(pose.translation) == pytest.approx(1)
    assert not pose.scale_known
    assert pose.inliers[~views.is_outlier].mean() > 0.95
    assert pose.inliers[views.is_outlier].mean() < 0.15
    assert pose.median_parallax > 1


@pytest.mark.parametrize("seed", range(5))
def test_a_plane_is_called_a_plane_and_its_pose_is_one_of_the_two_that_a_plane_allows(seed: int) -> None:
    turn, move = rotation(3, -8, 2), np.array([0.7, -0.2, 0.15])
    pose = TwoViews(turn, move, seed=seed, planar=True).estimate()
    assert pose.status == PoseStatus.PLANAR
    # The plane is n . X0 = 5: X1 = R^T (X0 - t n.X0 / 5), and OpenCV's homography goes from current to keyframe.
    normal = np.array([0.3, -0.2, 1.0])
    homography = np.linalg.inv(turn.T @ (np.eye(3) - np.outer(move, normal) / 5))
    _, rotations, translations, _ = cv2.decomposeHomographyMat(homography, np.eye(3))
    errors = [
        max(rotation_error(pose.rotation, r), translation_direction_error(pose.translation, t.ravel()) / 5)
        for r, t in zip(rotations, translations, strict=True)
    ]
    assert min(errors) < 0.5


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_a_plane_is_seen_though_a_few_wrong_matches_are_on_their_epipolar_lines(seed: int) -> None:
    turn, move = rotation(3, -20, 2), np.array([0.5, -0.2, 0.15])
    views = TwoViews(turn, move, seed=seed, planar=True, outliers=0.0, count=300)
    few = np.argsort(views.rays0 @ [1, -0.2])[-4:]
    near = (homogeneous(views.rays0[few]) * 0.3 - views.translation) @ views.rotation
    views.rays1[few] = near[:, :2] / near[:, 2:]
    assert views.estimate().status == PoseStatus.PLANAR


@pytest.mark.parametrize("shift", [0.05, 0.1, 0.15])
@pytest.mark.parametrize("noise", [0.002, 0.3])
def test_along_a_wall_the_solution_with_a_part_of_the_wall_behind_the_camera_is_not_taken(
    shift: float, noise: float
) -> None:
    u, v = np.meshgrid(np.arange(-0.5, 0.5, 0.06), np.arange(-0.4, 0.4, 0.06))
    before = np.stack([u.ravel(), v.ravel()], axis=1)
    for seed in range(10):
        off = np.random.default_rng(seed).normal(0, noise / FOCAL, before.shape)
        pose = estimate_relative_pose(before, before - (shift, 0) + off, FOCAL, EXACT)
        assert pose.status == PoseStatus.PLANAR
        assert pose.inliers.mean() > 0.95
        assert translation_direction_error(pose.translation, np.array([1.0, 0, 0])) < (0.1 if noise < 0.1 else 15)


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_a_camera_that_only_turns_gets_its_rotation_and_no_direction(noise: float) -> None:
    turn = rotation(2, 12, -3)
    pose = TwoViews(turn, np.zeros(3), noise=noise).estimate()
    assert pose.status == PoseStatus.PURE_ROTATION
    assert rotation_error(pose.rotation, turn) < 0.1
    assert not pose.translation.any()
    assert pose.covariance[0, 0] == pose.covariance[2, 2] == UNKNOWN_VARIANCE
    assert pose.covariance[3, 3] < 1e-5


def test_a_camera_that_stands_still_has_low_parallax() -> None:
    pose = TwoViews(np.eye(3), np.zeros(3), noise=0.1).estimate()
    assert pose.status == PoseStatus.LOW_PARALLAX
    assert not pose.translation.any()
    assert pose.median_parallax < 0.3
    assert rotation_error(pose.rotation, np.eye(3)) < 0.05


@pytest.mark.parametrize("seed", range(10))
def test_a_direction_that_the_noise_decides_is_not_given(seed: int) -> None:
    # 1 px of parallax under 1 px of noise, few points: the best essential matrix is wrong by 45 to 120 degrees.
    move = np.array([0.01, 0.0, 0.0])
    views = TwoViews(rotation(0.5, 1, 0), move, seed=seed, noise=1.0, outliers=0.0, count=100)
    pose = views.estimate(GeometryConfig(min_parallax=0.1, threshold=3.0))
    assert pose.status == PoseStatus.LOW_PARALLAX
    assert not pose.translation.any()
    assert pose.covariance[0, 0] == UNKNOWN_VARIANCE
    assert rotation_error(pose.rotation, rotation(0.5, 1, 0)) < 1.0


@pytest.mark.parametrize("count", [0, 4, 15])
def test_too_few_matches_are_no_pose(count: int) -> None:
    views = TwoViews(*MOTIONS[1])
    pose = estimate_relative_pose(views.rays0[:count], views.rays1[:count], FOCAL, EXACT)
    assert pose.status == PoseStatus.TOO_FEW_MATCHES
    assert pose.inliers.shape == (count,) and not pose.inliers.any()
    assert np.array_equal(pose.matrix, np.eye(4))
    assert (np.diag(pose.covariance) == UNKNOWN_VARIANCE).all()


def test_matches_that_are_all_wrong_are_no_pose() -> None:
    pose = TwoViews(*MOTIONS[1], outliers=1.0, count=60).estimate()
    assert pose.status == PoseStatus.TOO_FEW_MATCHES


def test_pixels_without_a_ray_are_outliers_and_harm_nothing() -> None:
    views = TwoViews(*MOTIONS[1])
    views.rays0[::5] = np.nan
    pose = views.estimate()
    assert pose.status == PoseStatus.OK
    assert not pose.inliers[::5].any()
    assert rotation_error(pose.rotation, MOTIONS[1][0]) < 0.2


def test_the_order_of_the_matches_does_not_change_the_pose_by_more_than_its_uncertainty() -> None:
    views = TwoViews(*MOTIONS[1], outliers=0.3)
    order = np.random.default_rng(1).permutation(len(views.rays0))
    first = views.estimate()
    second = estimate_relative_pose(views.rays0[order], views.rays1[order], FOCAL, EXACT)
    assert rotation_error(first.rotation, second.rotation) < 0.05


def test_refinement_is_at_least_as_accurate_as_opencv_alone() -> None:
    ours, theirs = [], []
    for seed in range(10):
        turn, move = rotation(2, -6, 1), np.array([0.5, 0.1, 0.3])
        views = TwoViews(turn, move, seed=seed, noise=0.5)
        pose = views.estimate()
        ours.append(translation_direction_error(pose.translation, move))
        essential, mask = cv2.findEssentialMat(views.rays1, views.rays0, np.eye(3), cv2.USAC_MAGSAC, 0.9999, 1 / FOCAL)
        _, _, direction, _ = cv2.recoverPose(essential, views.rays1, views.rays0, np.eye(3), mask=mask)
        theirs.append(translation_direction_error(direction.ravel(), move))
    assert np.mean(ours) < np.mean(theirs)


def _uneven(seed: int) -> tuple[TwoViews, Array]:
    """Matches half of which are four times as noisy, and their standard deviations in pixels."""
    turn, move = MOTIONS[1]
    views = TwoViews(turn, np.array(move), seed, noise=0.1, outliers=0.1)
    rng = np.random.default_rng(seed)
    noisy = rng.random(len(views.rays1)) < 0.5
    views.rays1[noisy] += rng.normal(0, 0.4 / FOCAL, (int(noisy.sum()), 2))
    return views, np.where(noisy, np.hypot(0.4, 0.1), 0.1)


def test_matches_known_to_be_uncertain_count_less() -> None:
    errors = []
    for seed in range(20):
        views, std = _uneven(seed)
        for known in (std, None):
            pose = estimate_relative_pose(views.rays0, views.rays1, FOCAL, EXACT, known)
            errors.append(translation_direction_error(pose.translation, views.translation))
    weighed, alike = np.array(errors).reshape(-1, 2).T
    assert np.sqrt((weighed**2).mean()) < 0.8 * np.sqrt((alike**2).mean())


def test_the_covariance_matches_the_scatter_where_matches_differ_in_certainty() -> None:
    squared = []
    for seed in range(60):
        views, std = _uneven(seed)
        pose = estimate_relative_pose(views.rays0, views.rays1, FOCAL, EXACT, std)
        error = Rotation.from_matrix(views.rotation @ pose.rotation.T).as_rotvec()
        squared.append(error @ np.linalg.solve(pose.covariance[3:, 3:], error))
    # Rather too large than too small: these matches differ by more than the largest weight ratio.
    assert 2 < np.mean(squared) < band(3, 60)[1]


def test_standard_deviations_that_are_not_known_change_nothing() -> None:
    views, _ = _uneven(0)
    alike = estimate_relative_pose(views.rays0, views.rays1, FOCAL, EXACT)
    for std in (np.full(len(views.rays0), np.nan), np.full(len(views.rays0), 0.7)):
        pose = estimate_relative_pose(views.rays0, views.rays1, FOCAL, EXACT, std)
        np.testing.assert_array_equal(pose.matrix, alike.matrix)


def corner(part: float, translation: list[float], count: int = 400) -> SeenTwice:
    """Points of all depths in the upper left corner of the image, of `part` of its width and height."""
    rng = np.random.default_rng(0)
    rays0 = -SIZE / FOCAL / 2 + rng.random((count, 2)) * SIZE / FOCAL * part
    points = np.insert(rays0, 2, 1.0, axis=1) * rng.uniform(2, 10, count)[:, None] - translation
    views = SeenTwice(np.eye(3), np.array(translation), rays0, points[:, :2] / points[:, 2:], points[:, 2])
    return views.noisy(rng, 0.3)


@pytest.mark.parametrize("translation", [[0.6, 0.1, 0.2], [0.1, 0.0, 0.8]])
def test_points_in_one_corner_are_called_concentrated_and_the_pose_is_given(translation: list[float]) -> None:
    views = corner(0.15, translation)
    pose = estimate_relative_pose(views.rays0, views.rays1, FOCAL, EXACT, view_area=FIELD)
    assert pose.status == PoseStatus.CONCENTRATED
    assert pose.has_rotation and pose.has_direction
    assert translation_direction_error(pose.translation, np.array(translation)) < 10
    # As they do not spread, they leave more room than points all over the image do.
    everywhere = corner(1.0, translation)
    wide = estimate_relative_pose(everywhere.rays0, everywhere.rays1, FOCAL, EXACT, view_area=FIELD)
    assert wide.status == PoseStatus.OK
    assert np.trace(pose.covariance) > 10 * np.trace(wide.covariance)


def test_points_in_one_corner_are_called_concentrated_though_some_wrong_matches_lie_elsewhere() -> None:
    views = corner(0.15, [0.6, 0.1, 0.2])
    rng = np.random.default_rng(1)
    views.rays0[::33] = rays_anywhere(rng, len(views.rays0[::33]))
    # On their epipolar lines, so that they are taken for inliers.
    points = np.insert(views.rays0[::33], 2, 1.0, axis=1) * 4 - views.translation
    views.rays1[::33] = points[:, :2] / points[:, 2:]
    pose = estimate_relative_pose(views.rays0, views.rays1, FOCAL, EXACT, view_area=FIELD)
    assert pose.inliers[::33].all() and pose.status == PoseStatus.CONCENTRATED


def test_without_a_field_of_view_or_where_it_is_turned_off_nothing_is_called_concentrated() -> None:
    views = corner(0.15, [0.6, 0.1, 0.2])
    for config, view_area in ((EXACT, None), (GeometryConfig(min_spread=0.0), FIELD)):
        pose = estimate_relative_pose(views.rays0, views.rays1, FOCAL, config, view_area=view_area)
        assert pose.has_direction and pose.status != PoseStatus.CONCENTRATED


def test_a_camera_that_only_turns_is_not_called_concentrated() -> None:
    views = corner(0.15, [0.0, 0.0, 0.0])
    turn = rotation(1, 8, 0)
    seen = np.insert(views.rays1, 2, 1.0, axis=1) @ turn
    pose = estimate_relative_pose(views.rays0, seen[:, :2] / seen[:, 2:], FOCAL, EXACT, view_area=FIELD)
    assert pose.status == PoseStatus.PURE_ROTATION


@pytest.mark.parametrize("angle", [0, 30, 90])
def test_the_area_of_rays_that_fill_a_rectangle_is_the_rectangles(angle: float) -> None:
    rays = np.random.default_rng(0).random((20000, 2)) * (0.8, 0.3)
    assert ray_area(rays @ rotation(0, 0, angle)[:2, :2]) == pytest.approx(0.24, rel=0.02)


def test_rays_that_are_missing_few_or_far_off_do_not_count_for_the_area() -> None:
    rays = np.random.default_rng(0).random((2000, 2)) * 0.1
    area = ray_area(rays)
    assert ray_area(np.vstack([rays, np.full((50, 2), np.nan)])) == pytest.approx(area)
    assert ray_area(np.vstack([rays, np.tile([[1.0, 0.0]], (60, 1))])) < 1.2 * area
    assert ray_area(np.linspace(0, 1, 50)[:, None] * [1.0, 0.5]) == pytest.approx(0, abs=1e-12)
    assert ray_area(rays[:2]) == 0


def test_uncalibrated_inliers_are_those_of_the_fundamental_matrix() -> None:
    views = TwoViews(*MOTIONS[1])
    points0, points1 = ((rays * FOCAL + SIZE / 2).astype(np.float32) for rays in (views.rays0, views.rays1))
    inliers = uncalibrated_inliers(points0, points1, EXACT)
    assert inliers[~views.is_outlier].mean() > 0.9
    assert inliers[views.is_outlier].mean() < 0.15
    assert not uncalibrated_inliers(points0[:5], points1[:5], EXACT).any()


def test_points_on_rays_go_to_the_second_camera_those_at_infinity_too() -> None:
    turn, step = rotation(3, -20, 5), np.array([0.4, -0.1, 0.3])
    rays, depth = np.array([[0.1, 0.2], [-0.5, 0.0], [0.3, -0.4]]), np.array([2.0, 5.0, np.inf])
    found = in_second_camera(rays, 1 / depth, turn, step)
    points = (homogeneous(rays[:2]) * depth[:2, None] - step) @ turn
    np.testing.assert_allclose(found[:2] * depth[:2, None], points, atol=1e-12)
    np.testing.assert_allclose(found[2], homogeneous(rays[2:])[0] @ turn, atol=1e-12)
