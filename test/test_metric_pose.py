"""Pose from depths: compared with the truth and OpenCV; derivatives, and too little depth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from known_scenes import EXACT, FIELD, FOCAL, MOTIONS, Array, SeenTwice, rays_anywhere, rotation_between, scene

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.relative_pose import Length, length_by_few_depths
from loftr_ros.frontend.results import Correspondences, MatchedRays
from loftr_ros.geometry.depth_problem import KERNEL, DepthMatches, DepthProblem
from loftr_ros.geometry.metric_pose import MetricPose, estimate_metric_pose, metric_relative_pose
from loftr_ros.geometry.two_view import UNKNOWN_VARIANCE, PoseStatus, RelativePose, without_pose

CONFIG = EXACT
MOVING = [name for name in MOTIONS if name != "still"]


@dataclass(frozen=True)
class Depths:
    """The known depths of a scene."""

    views: SeenTwice
    inverse: Array
    variance: Array
    std: Array

    def matches(self) -> DepthMatches:
        return DepthMatches(self.views.rays0, self.views.rays1, self.inverse, self.variance, self.std / FOCAL)

    def estimate(self) -> MetricPose:
        found = estimate_metric_pose(self.matches(), FOCAL, CONFIG)
        assert found is not None
        return found

    def relative(self, min_cells: int = 30, view_area: float | None = None) -> RelativePose | None:
        views = self.views
        return metric_relative_pose(
            views.rays0, views.rays1, self.inverse, self.variance, self.std, FOCAL, CONFIG, min_cells, view_area
        )

    def without(self, unknown: np.ndarray) -> Depths:
        """Without some of the depths."""
        return replace(
            self,
            inverse=np.where(unknown, np.nan, self.inverse),
            variance=np.where(unknown, np.inf, self.variance),
        )


def depths(
    views: SeenTwice, rng: np.random.Generator, noise: float = 0.0, pixels: float = 0.5, known: float = 1.0
) -> Depths:
    """Inverse depths with noise of `noise` 1/m, a part of them `known`; `pixels` is the matches' stated uncertainty."""
    count = len(views.depth)
    inverse = 1 / views.depth + rng.normal(0, 1, count) * noise
    exact = Depths(views, inverse, np.full(count, noise**2), np.full(count, pixels))
    return exact.without(rng.random(count) >= known)


def length_of(known: Depths, spread: float, rng: np.random.Generator) -> tuple[Length | None, float]:
    """What few depths with a relative error tell of the length of the true motion, and that length."""
    views, count = known.views, len(known.inverse)
    points = np.zeros((count, 2), np.float32)
    matches = Correspondences(np.arange(count, dtype=np.uint32), points, points, points[:, 0], points[:, 0])
    inverse = known.inverse * np.exp(spread * rng.standard_normal(count))
    way = float(np.linalg.norm(views.translation))
    pose = RelativePose(
        PoseStatus.OK, views.rotation, views.translation / way, 1e-6 * np.eye(6), np.ones(count, np.bool_), 10.0
    )
    rays = MatchedRays(views.rays0, views.rays1, FOCAL)
    return length_by_few_depths(CellDepth(inverse, known.variance, True), matches, rays, pose, CONFIG, 30), way


def test_the_length_by_few_depths_is_right_within_its_uncertainty_and_unknown_where_they_disagree() -> None:
    off = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        few = depths(scene("forward", rng), rng, known=0.25)
        found, way = length_of(few, 0.05, rng)
        assert found is not None and found.std < 0.05
        off.append(np.log(found.value / way) / found.std)
        assert found.of(without_pose(PoseStatus.OK, np.ones(1, np.bool_))).scale_known
        assert length_of(few, 0.4, rng)[0] is None
        assert length_of(depths(scene("forward", rng), rng, known=0.03), 0.05, rng)[0] is None
    assert np.mean(np.abs(off) < 2) > 0.9


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("known", [1.0, 0.3])
def test_without_noise_the_pose_is_exact_whatever_part_of_the_depths_is_known(name: str, known: float) -> None:
    rng = np.random.default_rng(0)
    views = scene(name, rng)
    found = depths(views, rng, known=known).estimate()
    np.testing.assert_allclose(found.translation, views.translation, atol=1e-6)
    assert np.linalg.norm(rotation_between(views.rotation, found.rotation)) < 1e-6
    assert found.inliers.all()
    assert found.depth_inliers == pytest.approx(known * len(views.depth), rel=0.2)


@pytest.mark.parametrize("name", MOVING)
def test_with_exact_depths_the_pose_is_the_one_that_opencv_refines(name: str) -> None:
    rng = np.random.default_rng(1)
    views = scene(name, rng).noisy(rng, 0.1)
    # Matches with an overstated uncertainty disable the robust kernel: least squares.
    found = depths(views, rng, pixels=5.0).estimate()
    points = np.insert(views.rays0, 2, 1.0, axis=1) * views.depth[:, None]
    _, vector, move = cv2.solvePnP(points, views.rays1, np.eye(3), np.zeros(0), flags=cv2.SOLVEPNP_ITERATIVE)
    turn = cv2.Rodrigues(vector)[0].T
    off = np.r_[found.translation + turn @ move.ravel(), rotation_between(turn, found.rotation)]
    scatter = np.sqrt(np.diag(depths(views, rng, pixels=0.1).estimate().covariance))
    assert (np.abs(off) < 0.05 * scatter).all()


def _half_sum(problem: DepthProblem, turn: Array, move: Array) -> float:
    """Half the robust sum of squares, from the mean of its logarithms."""
    return problem.cost(problem.projection(turn, move)) * len(problem._std) * KERNEL**2 / 2


def _moved(turn: Array, move: Array, step: Array) -> tuple[Array, Array]:
    return cv2.Rodrigues(step[3:])[0] @ turn, move + step[:3]


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("known", [1.0, 0.5, 0.0])
def test_the_gradient_is_the_slope_of_the_cost(name: str, known: float) -> None:
    rng = np.random.default_rng(2)
    views = scene(name, rng, 100).noisy(rng, 0.5)
    problem = DepthProblem(depths(views, rng, 0.003, known=known).matches())
    turn, move = _moved(views.rotation, views.translation, rng.normal(0, 0.002, 6))
    _, gradient = problem.normal_equations(problem.projection(turn, move))
    for k in range(6):
        step = np.zeros(6)
        step[k] = 1e-6
        up, down = (_half_sum(problem, *_moved(turn, move, s * step)) for s in (1, -1))
        assert gradient[k] == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-3 * np.abs(gradient).max())


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("known", [1.0, 0.5])
def test_the_hessian_is_the_curvature_of_the_cost_where_there_is_no_noise(name: str, known: float) -> None:
    rng = np.random.default_rng(3)
    views = scene(name, rng, 100)
    exact = replace(depths(views, rng), variance=np.full(100, 0.003**2))
    problem = DepthProblem(exact.without(rng.random(100) >= known).matches())
    turn, move = views.rotation, views.translation
    hessian, _ = problem.normal_equations(problem.projection(turn, move))
    steps, size = np.eye(6), 1e-5
    numeric = np.empty((6, 6))
    for i in range(6):
        for j in range(6):
            corners = [
                a * b * _half_sum(problem, *_moved(turn, move, size * (a * steps[i] + b * steps[j])))
                for a in (1, -1)
                for b in (1, -1)
            ]
            numeric[i, j] = sum(corners) / (4 * size**2)
    scale = np.sqrt(np.diag(hessian))
    np.testing.assert_allclose(numeric / np.outer(scale, scale), hessian / np.outer(scale, scale), atol=2e-3)


@pytest.mark.parametrize("name", MOVING)
def test_the_pose_is_found_among_forty_percent_of_wrong_matches(name: str) -> None:
    rng = np.random.default_rng(4)
    clean = scene(name, rng)
    views = clean.noisy(rng, 0.3, outliers=0.4)
    wrong = np.linalg.norm(views.rays1 - clean.rays1, axis=1) > 5 / FOCAL
    found = depths(views, rng, 0.003, pixels=0.3, known=0.8).estimate()
    assert np.linalg.norm(found.translation - views.translation) < 0.01
    assert np.linalg.norm(rotation_between(views.rotation, found.rotation)) < 0.001
    assert found.inliers[~wrong].mean() > 0.95
    assert found.inliers[wrong].mean() < 0.05


def test_cells_whose_depth_is_wrong_are_outliers_and_do_not_change_the_pose() -> None:
    rng = np.random.default_rng(5)
    views = scene("sideways", rng).noisy(rng, 0.3)
    told = depths(views, rng, 0.003, pixels=0.3)
    wrong = np.arange(len(views.depth)) % 5 == 0
    found = replace(told, inverse=np.where(wrong, 2.5 * told.inverse, told.inverse)).estimate()
    assert found.inliers[wrong].mean() < 0.05 and found.inliers[~wrong].mean() > 0.9
    assert np.linalg.norm(found.translation - views.translation) < 0.01


def test_cells_of_unknown_depth_make_the_pose_better() -> None:
    few, all_of_them = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        views = scene("sideways", rng).noisy(rng, 0.5)
        told = depths(views, rng, 0.003).without(np.arange(len(views.depth)) >= 30)
        first = np.arange(len(views.depth)) < 30
        for matches, errors in ((told.matches(), all_of_them), (told.matches()[first], few)):
            found = estimate_metric_pose(matches, FOCAL, CONFIG)
            assert found is not None
            errors.append(np.linalg.norm(rotation_between(views.rotation, found.rotation)))
    assert np.mean(all_of_them) < 0.7 * np.mean(few)


def test_a_match_that_only_a_point_behind_the_camera_explains_is_an_outlier() -> None:
    rng = np.random.default_rng(6)
    views = scene("sideways", rng)
    told = depths(views, rng, known=0.7)
    unknown = np.flatnonzero(np.isnan(told.inverse))
    # On their epipolar lines, but past infinity.
    points = np.insert(views.rays0, 2, 1.0, axis=1) + views.translation / 4
    behind = points @ views.rotation
    views.rays1[unknown] = (behind[:, :2] / behind[:, 2:])[unknown]
    assert not told.estimate().inliers[unknown].any()


def test_a_scene_twice_as_large_has_twice_the_translation_and_its_uncertainty() -> None:
    rng = np.random.default_rng(7)
    views = scene("rolled", rng).noisy(rng, 0.5)
    told = depths(views, rng, 0.003, known=0.7)
    small = told.estimate()
    large = replace(told, inverse=told.inverse / 2, variance=told.variance / 4).estimate()
    np.testing.assert_allclose(large.translation, 2 * small.translation, rtol=1e-3)
    factor = np.array([2, 2, 2, 1, 1, 1])
    np.testing.assert_allclose(large.covariance, small.covariance * np.outer(factor, factor), rtol=0.02, atol=1e-12)


def test_of_thousands_of_cells_the_search_needs_only_some_and_the_pose_is_made_by_all() -> None:
    rng = np.random.default_rng(8)
    views = scene("forward", rng, 3000).noisy(rng, 0.5)
    found = depths(views, rng, 0.003).estimate()
    few = depths(scene("forward", rng, 300).noisy(rng, 0.5), rng, 0.003).estimate()
    assert np.linalg.norm(found.translation - views.translation) < 0.005
    np.testing.assert_allclose(np.diag(found.covariance) * 10, np.diag(few.covariance), rtol=0.4)


def test_a_start_takes_the_place_of_the_search() -> None:
    rng = np.random.default_rng(9)
    views = scene("forward", rng).noisy(rng, 0.5)
    told = depths(views, rng, 0.003)
    start = _moved(views.rotation, views.translation, rng.normal(0, 0.001, 6))
    found = estimate_metric_pose(told.matches(), FOCAL, CONFIG, start)
    assert found is not None
    searched = told.estimate()
    off = np.r_[found.translation - searched.translation, rotation_between(found.rotation, searched.rotation)]
    assert (np.abs(off) < 0.2 * np.sqrt(np.diag(searched.covariance))).all()


@pytest.mark.parametrize("known", [0.0, 0.02])
def test_too_few_depths_are_no_pose_and_leave_the_matter_to_two_views(known: float) -> None:
    rng = np.random.default_rng(10)
    told = depths(scene("forward", rng), rng, known=known)
    assert estimate_metric_pose(told.matches(), FOCAL, CONFIG) is None
    assert told.relative() is None


def test_fewer_cells_of_known_depth_than_asked_for_leave_the_matter_to_two_views() -> None:
    rng = np.random.default_rng(11)
    views = scene("forward", rng)
    told = depths(views, rng).without(np.arange(len(views.depth)) >= 40)
    assert told.relative(min_cells=41) is None
    found = told.relative(min_cells=40)
    assert found is not None and found.scale_known


def test_matches_that_are_all_wrong_are_no_pose() -> None:
    rng = np.random.default_rng(12)
    assert depths(scene("forward", rng).noisy(rng, 0.3, outliers=1.0), rng).relative() is None


@pytest.mark.parametrize("count", [0, 15])
def test_too_few_matches_are_called_so(count: int) -> None:
    rng = np.random.default_rng(13)
    found = depths(scene("forward", rng, count), rng).relative()
    assert found is not None and found.status == PoseStatus.TOO_FEW_MATCHES
    assert found.inliers.shape == (count,) and not found.inliers.any()
    assert (np.diag(found.covariance) == UNKNOWN_VARIANCE).all() and not found.scale_known


def test_a_metric_pose_is_ok_metric_and_has_a_flag_for_each_match_even_those_without_a_ray() -> None:
    rng = np.random.default_rng(14)
    views = scene("forward", rng).noisy(rng, 0.3)
    views.rays0[::7] = np.nan
    views.rays1[::11] = np.nan
    found = depths(views, rng, 0.003).relative()
    assert found is not None and found.status == PoseStatus.OK and found.scale_known
    assert found.inliers.shape == (len(views.depth),)
    assert not found.inliers[::7].any() and not found.inliers[::11].any() and found.inliers.mean() > 0.7
    assert np.linalg.norm(found.translation - views.translation) < 0.01
    assert found.has_direction and found.has_rotation
    assert found.median_parallax > 1


def test_a_match_that_does_not_know_its_standard_deviation_has_half_the_threshold() -> None:
    rng = np.random.default_rng(15)
    told = depths(scene("forward", rng).noisy(rng, 0.3), rng, 0.003, pixels=CONFIG.threshold / 2)
    expected, found = told.relative(), replace(told, std=np.full(len(told.std), np.nan)).relative()
    assert expected is not None and found is not None
    np.testing.assert_array_equal(found.matrix, expected.matrix)
    np.testing.assert_array_equal(found.covariance, expected.covariance)


def test_a_match_that_says_it_is_exact_does_not_decide_alone() -> None:
    rng = np.random.default_rng(18)
    told = depths(scene("forward", rng).noisy(rng, 0.3), rng, 0.003)
    told.std[::50] = 0.0
    found = told.relative()
    assert found is not None and found.status == PoseStatus.OK
    assert np.linalg.norm(found.translation - told.views.translation) < 0.02


def test_a_metric_pose_by_points_in_one_corner_says_so() -> None:
    rng = np.random.default_rng(16)
    corner = depths(scene("forward", rng, part=0.2).noisy(rng, 0.3), rng, 0.003).relative(view_area=FIELD)
    assert corner is not None and corner.status == PoseStatus.CONCENTRATED and corner.scale_known
    everywhere = depths(scene("forward", rng).noisy(rng, 0.3), rng, 0.003).relative(view_area=FIELD)
    assert everywhere is not None and everywhere.status == PoseStatus.OK


def test_a_camera_that_only_turns_has_a_translation_of_nothing_within_its_uncertainty() -> None:
    rng = np.random.default_rng(17)
    rays0 = rays_anywhere(rng, 300)
    turn = cv2.Rodrigues(np.array([0.05, -0.1, 0.02]))[0]
    seen = np.insert(rays0, 2, 1.0, axis=1) @ turn
    views = SeenTwice(turn, np.zeros(3), rays0, seen[:, :2] / seen[:, 2:], rng.uniform(2, 10, 300)).noisy(rng, 0.3)
    found = depths(views, rng, 0.003, pixels=0.3).relative()
    assert found is not None and found.status == PoseStatus.OK
    std = np.sqrt(np.diag(found.covariance)[:3])
    assert (np.abs(found.translation) < 3.5 * std).all() and (std < 0.005).all()


def test_a_point_that_a_pose_puts_into_the_plane_of_the_camera_moves_neither_pose_nor_covariance() -> None:
    views = scene("forward", np.random.default_rng(0))
    good = depths(views, np.random.default_rng(1), noise=0.01).matches()
    ray = np.array([0.3, 0.2, 1.0])
    # The inverse depth at which the current camera sees it at zero distance.
    inverse = (ray @ views.rotation)[2] / (views.translation @ views.rotation)[2]
    beside = DepthMatches(ray[None, :2], np.array([[0.4, 0.3]]), np.array([inverse]), np.array([1e-12]), good.std[:1])
    alone, both = DepthProblem(good), DepthProblem(DepthMatches.joined([good, beside]))
    pose = views.rotation, views.translation
    for one, other in zip(
        alone.normal_equations(alone.projection(*pose)), both.normal_equations(both.projection(*pose)), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-9)
    np.testing.assert_allclose(both.uncertainty(*pose)[0], alone.uncertainty(*pose)[0], rtol=0.1)
