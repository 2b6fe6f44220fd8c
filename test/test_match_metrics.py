"""Quality of single matches: epipolar errors, corner errors, calibration, and the scores of pairs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from match_scores import corner_error, epipolar_errors, map_points, mean_and_spread
from pair_scores import score_homography, score_pose

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.training.calibration import calibration

GEOMETRY = GeometryConfig(threshold=0.5)
CAMERA = CameraModel(640, 480, np.array([[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]]))
TILTED = np.array([[1.1, 0.05, -20], [-0.04, 0.95, 15], [1e-4, 2e-4, 1]])


def seen_scene(count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of points in space in both images, and T_0_1."""
    rng = np.random.default_rng(3)
    points1 = rng.uniform((-2, -1.5, 4), (2, 1.5, 9), (count, 3))
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0.03, -0.1, 0.02]))[0]
    pose[:3, 3] = 0.6, -0.1, 0.2
    points0 = points1 @ pose[:3, :3].T + pose[:3, 3]
    pixels = [p[:, :2] / p[:, 2:] * 500 + (319.5, 239.5) for p in (points0, points1)]
    return pixels[0].astype(np.float32), pixels[1].astype(np.float32), pose


def test_a_true_match_has_no_epipolar_error_and_one_beside_its_line_the_squared_distance() -> None:
    pixels0, pixels1, pose = seen_scene()
    rays0, rays1 = CAMERA.unproject(pixels0), CAMERA.unproject(pixels1)
    assert epipolar_errors(rays0, rays1, pose).max() < 1e-11
    # Sideways motion: epipolar lines are rows, so a step across them is the distance in either image.
    sideways = np.eye(4)
    sideways[0, 3] = 2.0
    error = epipolar_errors([[0.1, 0.2], [0.1, 0.2]], [[0.3, 0.2], [0.3, 0.23]], sideways)
    assert error == pytest.approx([0, 2 * 0.03**2], abs=1e-12)


def test_the_epipolar_error_knows_no_scale_and_a_match_without_a_ray_has_none() -> None:
    rays0, rays1, pose = np.full((2, 2), 0.1), np.array([[0.2, -0.1], [np.nan, np.nan]]), np.eye(4)
    pose[:3, 3] = 1, 2, 3
    far = pose.copy()
    far[:3, 3] *= 50
    near_errors, far_errors = epipolar_errors(rays0, rays1, pose), epipolar_errors(rays0, rays1, far)
    assert near_errors[0] > 0
    assert far_errors[0] == pytest.approx(near_errors[0])
    assert np.isnan(near_errors[1])


def test_points_are_mapped_as_opencv_maps_them() -> None:
    points = np.random.default_rng(0).uniform(0, 600, (20, 2))
    expected = cv2.perspectiveTransform(points[:, None], TILTED)[:, 0]
    assert map_points(TILTED, points) == pytest.approx(expected)
    assert map_points(5 * TILTED, points) == pytest.approx(expected)


def test_the_corner_error_is_how_far_the_corners_move_apart() -> None:
    shift = np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]])
    assert corner_error(TILTED, TILTED, (640, 480)) == pytest.approx(0, abs=1e-9)
    assert corner_error(shift @ TILTED, TILTED, (640, 480)) == pytest.approx(5)
    # Twice as large: the corner at the origin stays, the others move by the sides and the diagonal.
    assert corner_error(np.diag([2.0, 2, 1]), np.eye(3), (4, 5)) == pytest.approx((3 + 4 + 5) / 4)


def test_no_homography_and_one_that_takes_a_corner_to_infinity_are_infinitely_wrong() -> None:
    assert corner_error(None, np.eye(3), (640, 480)) == np.inf
    assert corner_error(np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0.0]]), np.eye(3), (640, 480)) == np.inf


def test_sixty_eight_percent_of_normal_errors_are_within_a_right_standard_deviation() -> None:
    rng = np.random.default_rng(1)
    std = rng.uniform(0.1, 2, 20000)
    residuals = rng.normal(size=(20000, 2)) * std[:, None]
    found = calibration(residuals, std)
    assert found.within_one == pytest.approx(0.683, abs=0.01)
    assert found.within_two == pytest.approx(0.954, abs=0.01)
    assert found.scale == pytest.approx(1, abs=0.02)
    assert found.measured == pytest.approx(found.predicted, rel=0.1)
    assert (np.diff(found.predicted) > 0).all()


def test_a_standard_deviation_half_as_large_as_it_should_be_shows_as_a_scale_of_two() -> None:
    residuals = np.random.default_rng(2).normal(size=(5000, 2))
    found = calibration(residuals, np.full(5000, 0.5))
    assert found.scale == pytest.approx(2, abs=0.06)
    assert found.within_one == pytest.approx(0.383, abs=0.02)


def test_matches_without_a_standard_deviation_are_left_out_of_the_calibration() -> None:
    std = np.array([1.0, np.nan, 1.0, np.nan])
    found = calibration([[0.5, 2], [0, 0], [0.5, 0.5], [9, 9]], std)
    assert (found.count, found.within_one) == (2, 0.75)
    nothing = calibration(np.zeros((3, 2)), np.full(3, np.nan))
    assert nothing.count == 0
    assert np.isnan(nothing.within_one)


def test_a_pair_with_true_matches_has_its_pose_in_every_order_of_them() -> None:
    pixels0, pixels1, pose = seen_scene()
    score = score_pose(pixels0, pixels1, (CAMERA, CAMERA), pose, 1e-4, GEOMETRY, orders=3)
    assert score.errors.shape == (3,)
    assert score.errors.max() < 0.1
    assert (score.matches, score.precision) == (200, 1.0)
    assert score.inliers > 190
    assert 0.3 < score.coverage <= 1


def test_precision_is_the_part_of_the_matches_that_the_true_pose_allows() -> None:
    pixels0, pixels1, pose = seen_scene()
    wrong = pixels1.copy()
    wrong[:50, 1] += 60
    score = score_pose(pixels0, wrong, (CAMERA, CAMERA), pose, 1e-4, GEOMETRY, orders=2)
    assert score.precision == pytest.approx(0.75, abs=0.02)
    assert 140 < score.inliers < 160


def test_a_pair_without_matches_is_a_failure_without_a_precision() -> None:
    nothing = np.zeros((0, 2), np.float32)
    pose = score_pose(nothing, nothing, (CAMERA, CAMERA), np.eye(4), 1e-4, GEOMETRY, orders=2)
    sizes = (640, 480), (640, 480)
    homography = score_homography(nothing, nothing, np.eye(3), sizes, np.zeros(0), 3.0, 3.0, 2)
    for score in (pose, homography):
        assert np.isinf(score.errors).all()
        assert (score.matches, score.inliers, score.coverage) == (0, 0, 0)
        assert np.isnan(score.precision)


def test_a_homography_is_found_among_wrong_matches_and_its_precision_is_that_of_the_matches() -> None:
    rng = np.random.default_rng(4)
    points0 = rng.uniform(0, (639, 479), (300, 2)).astype(np.float32)
    true = map_points(TILTED, points0)
    points1 = (true + rng.normal(size=true.shape) * 0.3).astype(np.float32)
    points1[:100] = rng.uniform(0, (639, 479), (100, 2))
    distances = np.linalg.norm(points1 - true, axis=1)
    score = score_homography(points0, points1, TILTED, ((640, 480),) * 2, distances, 3.0, 3.0, 3)
    assert score.errors.max() < 0.5
    assert score.precision == pytest.approx(2 / 3, abs=0.01)
    assert 195 <= score.inliers <= 205


def test_mean_and_spread_are_told_together_and_what_is_unknown_as_such() -> None:
    assert mean_and_spread([[10.0, 20], [12, 20]]) == "11.0/20.0 (±1.0/0.0)"
    assert mean_and_spread([1.0, 3.0]) == "2.0 (±1.0)"
    assert mean_and_spread([[np.inf], [1.0]]) == "- (±-)"
