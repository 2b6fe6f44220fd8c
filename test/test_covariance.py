"""The covariance of poses equals their scatter: normalised squared errors stay in their 95 % band."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from known_scenes import EXACT, FOCAL, Array, SeenTwice, band, rays_anywhere, rotation, rotation_between, scene

from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.epipolar import m_estimate_variance
from loftr_ros.geometry.metric_pose import metric_relative_pose
from loftr_ros.geometry.parts import part_disagreement
from loftr_ros.geometry.two_view import PoseStatus, RelativePose, estimate_relative_pose

TRIALS = 400
FIRST_SEED = 1000
CONFIG = EXACT
SCENES = ["forward", "sideways", "deep", "rolled"]
# Four hundred poses take seconds; the other cases run with `--long`.
LONG = pytest.mark.long


def _cases(short: set[tuple[str, float]], *, still: bool = False) -> list[Any]:
    """Every scene with little and with much noise; some of them are short."""
    names = [*SCENES, "still"] if still else SCENES
    every = [(name, pixels) for name in names for pixels in (0.3, 1.0)]
    return [case if case in short else pytest.param(*case, marks=LONG) for case in every]


def _errors(
    name: str,
    pixels: float,
    estimate: Callable[[SeenTwice, np.random.Generator], RelativePose | None],
    outliers: float = 0.0,
) -> Iterator[tuple[SeenTwice, RelativePose]]:
    for seed in range(FIRST_SEED, FIRST_SEED + TRIALS):
        rng = np.random.default_rng(seed)
        views = scene(name, rng).noisy(rng, pixels, outliers)
        pose = estimate(views, rng)
        assert pose is not None and pose.has_direction
        yield views, pose


def _two_view(name: str, pixels: float, outliers: float = 0.0) -> list[float]:
    """Normalised errors squared of direction and rotation, five degrees of freedom, across the estimated direction."""

    def estimate(views: SeenTwice, rng: np.random.Generator) -> RelativePose:
        return estimate_relative_pose(views.rays0, views.rays1, FOCAL, CONFIG, np.full(len(views.depth), pixels))

    squared = []
    for views, pose in _errors(name, pixels, estimate, outliers):
        across = np.linalg.svd(pose.translation[None])[2][1:]
        basis = np.zeros((5, 6))
        basis[:2, :3], basis[2:, 3:] = across, np.eye(3)
        # Along the great circle from the estimate to the truth.
        cosine = float(np.clip(pose.translation @ views.direction, -1, 1))
        tangent = views.direction - cosine * pose.translation
        tangent *= np.arccos(cosine) / max(float(np.linalg.norm(tangent)), 1e-12)
        error = basis @ np.r_[tangent, rotation_between(views.rotation, pose.rotation)]
        squared.append(float(error @ np.linalg.solve(basis @ pose.covariance @ basis.T, error)))
        # The length is not observed, and has no information.
        assert pose.translation @ pose.covariance[:3, :3] @ pose.translation == pytest.approx(0, abs=1e-12)
    return squared


def _metric(
    name: str, pixels: float, noise: float, known: float = 1.0, outliers: float = 0.0, is_told: bool = True
) -> list[float]:
    """Normalised errors squared of translation and rotation, six degrees of freedom."""

    def estimate(views: SeenTwice, rng: np.random.Generator) -> RelativePose | None:
        count = len(views.depth)
        unknown = rng.random(count) >= known
        inverse = np.where(unknown, np.nan, 1 / views.depth + rng.normal(0, 1, count) * noise)
        variance = np.where(unknown, np.inf, noise**2)
        std = np.full(count, pixels if is_told else np.nan)
        return metric_relative_pose(views.rays0, views.rays1, inverse, variance, std, FOCAL, CONFIG, 30)

    squared = []
    for views, pose in _errors(name, pixels, estimate, outliers):
        error = np.r_[views.translation - pose.translation, rotation_between(views.rotation, pose.rotation)]
        squared.append(float(error @ np.linalg.solve(pose.covariance, error)))
    return squared


def _assert_in_band(squared: list[float], freedom: int) -> None:
    low, high = band(freedom, len(squared))
    assert low < np.mean(squared) < high


@pytest.mark.parametrize(("name", "pixels"), _cases({("forward", 0.3)}))
def test_the_covariance_of_a_two_view_pose_is_its_scatter(name: str, pixels: float) -> None:
    _assert_in_band(_two_view(name, pixels), 5)


@pytest.mark.parametrize(("name", "pixels"), _cases(set(), still=True))
def test_the_covariance_of_a_metric_pose_is_its_scatter(name: str, pixels: float) -> None:
    _assert_in_band(_metric(name, pixels, 0.003), 6)


@pytest.mark.parametrize(
    "name", ["sideways", *(pytest.param(name, marks=LONG) for name in SCENES if name != "sideways")]
)
def test_the_covariance_of_a_metric_pose_is_its_scatter_with_half_of_the_depths_unknown(name: str) -> None:
    _assert_in_band(_metric(name, 0.5, 0.003, known=0.5), 6)


@LONG
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_the_covariance_of_a_metric_pose_is_its_scatter_with_exact_and_with_bad_depths(noise: float) -> None:
    _assert_in_band(_metric("sideways", 0.5, noise), 6)


@LONG
def test_the_covariance_of_a_metric_pose_follows_the_residuals_where_matches_tell_nothing_of_their_noise() -> None:
    _assert_in_band(_metric("rolled", 0.3, 0.0, is_told=False), 6)


@LONG
@pytest.mark.parametrize("pixels", [0.1, 0.3])
def test_the_covariance_of_the_rotation_of_a_camera_that_only_turns_is_its_scatter(pixels: float) -> None:
    turn, squared = rotation(2, 8, -3), []
    for seed in range(FIRST_SEED, FIRST_SEED + TRIALS):
        rng = np.random.default_rng(seed)
        rays0 = rays_anywhere(rng, 300)
        seen = np.insert(rays0, 2, 1.0, axis=1) @ turn
        views = SeenTwice(turn, np.zeros(3), rays0, seen[:, :2] / seen[:, 2:], np.ones(300)).noisy(rng, pixels)
        pose = estimate_relative_pose(views.rays0, views.rays1, FOCAL, CONFIG)
        assert pose.status == PoseStatus.PURE_ROTATION
        error = rotation_between(turn, pose.rotation)
        squared.append(float(error @ np.linalg.solve(pose.covariance[3:, 3:], error)))
    _assert_in_band(squared, 3)


@LONG
@pytest.mark.parametrize("name", ["forward", "sideways", "rolled"])
def test_among_wrong_matches_errors_are_at_most_a_quarter_larger_than_the_covariance_says(name: str) -> None:
    # A wrong match that happens to lie on its epipolar line has more parallax, and so more leverage, than a right one.
    low, _ = band(5, TRIALS)
    assert low < np.mean(_two_view(name, 0.5, outliers=0.2)) < 1.25**2 * 5
    low, _ = band(6, TRIALS)
    assert low < np.mean(_metric(name, 0.5, 0.003, known=0.5, outliers=0.2)) < 1.25**2 * 6


def _location(samples: Array, scale: float) -> tuple[float, Array]:
    """Cauchy-robust mean of (N, D) samples, and their squared distances from it in units of the kernel's scale."""
    mean = np.median(samples, axis=0)
    for _ in range(50):
        weight = 1 / (1 + ((samples - mean) ** 2).sum(axis=1) / scale**2)
        mean = weight @ samples / weight.sum()
    return float(mean[0]), ((samples - mean) ** 2).sum(axis=1) / scale**2


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("spread", [0.2, 1.0, 2.0])
def test_the_variance_of_a_robust_mean_is_its_scatter(parts: int, spread: float) -> None:
    found = []
    rng = np.random.default_rng(parts)
    for _ in range(600):
        mean, squared = _location(rng.normal(0, spread, (60, parts)), 1.0)
        found.append(mean**2 / (m_estimate_variance(squared, np.full(60, float(parts)), parts, 1.0) / 60))
    low, high = band(1, 600)
    # The variance is an estimate itself: Student's distribution, not a Gaussian.
    assert low < np.mean(found) < 1.1 * high


def _one_window_off(seed: int, shift: float) -> tuple[SeenTwice, RelativePose]:
    """A façade whose lower left part is matched one window off: along its epipolar lines, and a little across."""
    rng = np.random.default_rng(seed)
    views = scene("sideways", rng, 900).noisy(rng, 0.3)
    off = (views.rays0[:, 0] < 0) & (views.rays0[:, 1] > 0)
    along = np.array([20.0, shift]) / FOCAL
    rays1 = views.rays1 + np.where(off[:, None], along, 0.0)
    pose = estimate_relative_pose(views.rays0, rays1, FOCAL, GeometryConfig(), np.full(len(rays1), 0.3))
    return views, pose


@pytest.mark.parametrize("shift", [0.3, 0.9, 3.0])
def test_a_part_of_a_facade_matched_one_window_off_is_in_the_covariance(shift: float) -> None:
    errors = []
    for seed in range(20):
        views, pose = _one_window_off(seed, shift)
        error = float(np.linalg.norm(rotation_between(views.rotation, pose.rotation)))
        errors.append(error / math.sqrt(float(np.trace(pose.covariance[3:, 3:]))))
    assert np.mean(errors) < 2 and max(errors) < 7  # with errors taken as independent, means of 11 to 14


def test_parts_of_different_opinion_disagree_by_the_distance_to_the_farther_one() -> None:
    rng = np.random.default_rng(3)
    places = rng.random((900, 2))
    left = places[:, 0] < 1 / 3
    measured = np.where(left, 1.0, 0.0) + rng.normal(0, 0.1, len(places))
    one, residual = np.ones(len(places)), measured.mean() - measured
    step = part_disagreement(places, residual[:, None], np.ones((1, len(places), 1)), one, one)
    assert measured.mean() + step[0] == pytest.approx(1.0, abs=0.05)


def test_parts_do_not_disagree_where_too_few_of_them_have_matches_or_errors_are_independent() -> None:
    rng = np.random.default_rng(4)
    one, rows = np.ones(900), rng.normal(size=(1, 900, 5))
    pulls = rows[0] * rng.normal(size=(900, 1))
    assert not part_disagreement(rng.random((900, 2)), pulls, rows, one, one).any()
    across = np.stack([rng.random(900), np.zeros(900)], axis=1)
    assert not part_disagreement(across, rows[0] * np.sign(across[:, :1] - 0.5), rows, one, one).any()  # three parts
