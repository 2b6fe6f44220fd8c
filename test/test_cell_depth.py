"""Depth of cells: from depth images, from stereo matches, and fused from several measurements."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from known_scenes import FOCAL, Array, band, rays_anywhere, rotation
from scipy.spatial.transform import Rotation

from loftr_ros.frontend.cell_depth import (
    CellDepth,
    from_depth_image,
    from_stereo,
    guessed,
    triangulate,
    variance_by_pose,
)
from loftr_ros.frontend.frame import DepthImage
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.config import DepthConfig

CONFIG = DepthConfig()
CAMERA = CameraModel(640, 480, np.array([[FOCAL, 0, 320], [0, FOCAL, 240], [0, 0, 1]]))
MIDDLE = np.array([[20.0, 15.0]], np.float32)


def millimetres(value: float = 2000) -> np.ndarray:
    return np.full((30, 40), value, np.uint16)


def depth_at(values: np.ndarray, points: np.ndarray = MIDDLE, unit: float = 0.001, **config: float) -> CellDepth:
    return from_depth_image(DepthImage(values, unit, 65535), points, DepthConfig(**config))


@pytest.mark.parametrize(
    ("values", "unit"), [(millimetres(), 0.001), (np.full((30, 40), 2.0, np.float32), 1.0)], ids=["uint16", "float32"]
)
def test_a_cells_inverse_depth_is_that_of_the_depth_image_at_its_point(values: np.ndarray, unit: float) -> None:
    found = depth_at(values, unit=unit)
    assert found.inverse == pytest.approx([0.5], rel=1e-6)
    assert found.inverse.dtype == found.variance.dtype == np.float64
    assert found.is_metric and found.known.all()


def test_each_cell_has_the_depth_at_its_own_point() -> None:
    rows, columns = np.mgrid[:30, :40]
    values = (1000 + 5 * rows + columns).astype(np.uint16)
    points = np.array([[5.2, 7.4], [33.0, 21.6]], np.float32)
    assert depth_at(values, points).inverse == pytest.approx([1000 / (1000 + 5 * 7 + 5), 1000 / (1000 + 5 * 22 + 33)])


@pytest.mark.parametrize("hole", [0, 65535])
@pytest.mark.parametrize("off", [(0, 0), (2, -2), (-1, 2)])
def test_a_cell_with_a_hole_around_its_point_has_no_depth(hole: int, off: tuple[int, int]) -> None:
    values = millimetres()
    values[15 + off[0], 20 + off[1]] = hole
    # For sensors, 65535 mm means no depth; it must not count even if it is in range.
    found = depth_at(values, max_depth=100.0, max_edge=1.0)
    assert not found.known.any()
    assert np.isinf(found.variance).all()


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_what_is_no_depth_in_a_float_image_is_a_hole(hole: float) -> None:
    values = np.full((30, 40), 2.0, np.float32)
    values[14, 21] = hole
    assert not depth_at(values, unit=1.0).known.any()


def test_a_hole_farther_off_than_the_window_does_no_harm() -> None:
    values = millimetres()
    values[18, 20] = values[15, 23] = 0
    assert depth_at(values).known.all()


def test_a_cell_at_an_edge_has_no_depth_and_one_on_a_slope_has() -> None:
    edge = millimetres()
    edge[:, 22:] = 2200
    assert not depth_at(edge).known.any()
    slope = (2000 + 15 * np.arange(40) * np.ones((30, 1))).astype(np.uint16)
    assert depth_at(slope).inverse == pytest.approx([1000 / 2300])


@pytest.mark.parametrize(("depth", "known"), [(0.09, False), (0.11, True), (9.9, True), (10.1, False)])
def test_depths_out_of_range_are_not_believed(depth: float, known: bool) -> None:
    assert depth_at(millimetres(1000 * depth)).known.all() == known


def test_points_outside_the_depth_image_have_no_depth_and_those_at_its_rim_have() -> None:
    points = np.array([[-0.6, 5], [5, -3], [39.6, 5], [5, 29.6], [1e5, 1e5], [0, 0], [39.4, 29.4]], np.float32)
    assert depth_at(millimetres(), points).known.tolist() == [False] * 5 + [True, True]


def test_no_cells_have_no_depths() -> None:
    assert len(depth_at(millimetres(), np.zeros((0, 2), np.float32)).inverse) == 0


@pytest.mark.parametrize("depth", [0.5, 2.0, 8.0])
def test_the_variance_of_a_depth_images_depth_is_the_scatter_of_its_inverse(depth: float) -> None:
    rng = np.random.default_rng(0)
    found = depth_at(millimetres(1000 * depth), image_noise=0.0, image_offset=0.01)
    assert np.sqrt(found.variance[0]) == pytest.approx(np.std(1 / (depth + rng.normal(0, 0.01, 100000))), rel=0.02)
    found = depth_at(millimetres(1000 * depth), image_noise=0.003, image_offset=0.0)
    assert np.sqrt(found.variance) == pytest.approx([0.003])


PAIRS = {
    "rectified": (np.eye(3), np.array([0.5, 0.0, 0.0])),
    "turned": (rotation(2, -8, 5), np.array([0.45, 0.1, -0.15])),
}


def pair(name: str, count: int = 500, depths: tuple[float, float] = (2.0, 30.0), seed: int = 0) -> tuple[Array, ...]:
    """T_left_right, rays of both, inverse depths in the left view."""
    turn, move = PAIRS[name]
    rng = np.random.default_rng(seed)
    rays0 = rays_anywhere(rng, count)
    inverse = rng.uniform(1 / depths[1], 1 / depths[0], count)
    seen = (np.insert(rays0, 2, 1.0, axis=1) - inverse[:, None] * move) @ turn
    return turn, move, rays0, seen[:, :2] / seen[:, 2:], inverse


@pytest.mark.parametrize("name", PAIRS)
def test_triangulation_finds_the_points_that_opencv_finds(name: str) -> None:
    turn, move, rays0, rays1, inverse = pair(name)
    found = triangulate(rays0, rays1, turn, move, np.full(len(rays0), 0.5), FOCAL)
    second = np.hstack([turn.T, -turn.T @ move[:, None]])
    points = cv2.triangulatePoints(np.eye(3, 4), second, rays0.T.copy(), rays1.T.copy())
    np.testing.assert_allclose(found.inverse, points[3] / points[2], rtol=1e-6)
    np.testing.assert_allclose(found.inverse, inverse, rtol=1e-9)
    assert (found.off < 1e-9).all()


@pytest.mark.parametrize("name", PAIRS)
def test_the_variance_of_triangulated_inverse_depths_is_their_scatter(name: str) -> None:
    turn, move, rays0, rays1, inverse = pair(name, 2000)
    rng = np.random.default_rng(1)
    std = rng.uniform(0.2, 1.0, len(rays0))
    noisy = rays1 + rng.normal(0, 1, rays1.shape) * std[:, None] / FOCAL
    found = triangulate(rays0, noisy, turn, move, std, FOCAL, past_infinity=True)
    low, high = band(1, len(rays0))
    assert low < np.mean((found.inverse - inverse) ** 2 / found.variance) < high
    # The distance from the epipolar line contains the rest of the noise.
    assert low < np.mean((found.off / std) ** 2) < high


@pytest.mark.parametrize("name", PAIRS)
def test_points_at_infinity_are_kept_as_such_if_asked_for(name: str) -> None:
    turn, move, rays0, _, _ = pair(name, 1000)
    seen = np.insert(rays0, 2, 1.0, axis=1) @ turn
    rays1 = seen[:, :2] / seen[:, 2:] + np.random.default_rng(2).normal(0, 0.5 / FOCAL, rays0.shape)
    std = np.full(len(rays0), 0.5)
    kept = triangulate(rays0, rays1, turn, move, std, FOCAL, past_infinity=True)
    assert np.isfinite(kept.inverse).mean() > 0.99
    # Together they indicate infinity.
    certain = 1 / kept.variance
    assert abs(np.nansum(kept.inverse * certain) / certain.sum()) < 3 / np.sqrt(certain.sum())
    positive = triangulate(rays0, rays1, turn, move, std, FOCAL)
    assert 0.4 < np.isfinite(positive.inverse).mean() < 0.6
    assert (positive.inverse[np.isfinite(positive.inverse)] > 0).all()
    assert np.isinf(positive.variance[np.isnan(positive.inverse)]).all()


def test_a_point_behind_a_camera_has_no_depth() -> None:
    turn, move = PAIRS["rectified"]
    # On the wrong side of infinity: the rays meet behind both cameras.
    found = triangulate(np.zeros((1, 2)), np.array([[0.1, 0.0]]), turn, move, np.array([0.5]), FOCAL, True)
    assert np.isnan(found.inverse).all() and np.isinf(found.variance).all()
    # Before the first, and behind the second, which has moved on past it.
    found = triangulate(
        np.array([[0.1, 0.0]]), np.array([[-0.2, 0.0]]), np.eye(3), np.array([0, 0, 3.0]), np.ones(1), FOCAL
    )
    assert np.isnan(found.inverse).all() and np.isinf(found.off).all()


def stereo(name: str, rays0: Array, rays1: Array, std: float = 0.5, **config: float) -> CellDepth:
    left_from_right = np.eye(4)
    left_from_right[:3, :3], left_from_right[:3, 3] = PAIRS[name]
    cell = np.arange(len(rays0)) * 2
    told = np.full(len(rays0), std)
    return from_stereo(2 * len(rays0), cell, rays0, rays1, left_from_right, told, CAMERA, DepthConfig(**config))


@pytest.mark.parametrize("name", PAIRS)
def test_stereo_matches_tell_their_cells_depth_and_nothing_of_the_others(name: str) -> None:
    _, _, rays0, rays1, inverse = pair(name)
    found = stereo(name, rays0, rays1, max_baselines=1e5)
    np.testing.assert_allclose(found.inverse[::2], inverse, rtol=1e-9)
    assert not found.known[1::2].any() and np.isinf(found.variance[1::2]).all()
    assert found.is_metric


@pytest.mark.parametrize("name", PAIRS)
def test_a_stereo_match_off_its_epipolar_line_is_refused(name: str) -> None:
    turn, move, rays0, rays1, _ = pair(name, depths=(2.0, 10.0))
    skew = np.array([[0, -move[2], move[1]], [move[2], 0, -move[0]], [-move[1], move[0], 0]])
    lines = np.insert(rays0, 2, 1.0, axis=1) @ skew @ turn
    across = lines[:, :2] / np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    for pixels, known in ((1.4, True), (1.6, False)):
        found = stereo(name, rays0, rays1 + across * pixels / FOCAL, max_epipolar=1.5)
        assert (found.known[::2] == known).all()


def test_a_stereo_match_nearer_than_anything_is_refused() -> None:
    _, _, rays0, rays1, inverse = pair("rectified", depths=(0.5, 4.0))
    known = stereo("rectified", rays0, rays1, min_depth=1.0).known[::2]
    assert (known == (inverse < 1)).all() and 0 < known.sum() < len(known)


@pytest.mark.parametrize("name", PAIRS)
def test_far_stereo_depths_are_left_out_where_enough_are_near_and_kept_where_not(name: str) -> None:
    _, move, rays0, rays1, inverse = pair(name)
    middle = np.sort(1 / inverse)[len(inverse) // 2 - 1 :][:2].mean()  # half are nearer
    limit = float(middle / np.linalg.norm(move))
    near = inverse * limit * np.linalg.norm(move) > 1
    found = stereo(name, rays0, rays1, max_baselines=limit, min_cells=int(near.sum()) // 5)
    assert (found.known[::2] == near).all()
    all_kept = stereo(name, rays0, rays1, max_baselines=limit, min_cells=int(near.sum()) // 5 + 1)
    assert all_kept.known[::2].all()


@pytest.mark.parametrize("name", PAIRS)
def test_the_typical_depth_counts_far_stereo_points_that_are_left_out(name: str) -> None:
    _, _, rays0, rays1, inverse = pair(name)
    found = stereo(name, rays0, rays1, max_baselines=10.0)
    assert 0 < found.known.sum() < len(inverse)
    assert found.typical == pytest.approx(float(np.median(inverse)))
    assert one(0.3, 0.1).typical == 0.3
    assert np.isnan(CellDepth.unknown(5, is_metric=True).typical)


def test_disparities_that_are_too_large_by_a_known_offset_give_the_right_depths_and_are_kept_as_measured() -> None:
    _, move, rays0, rays1, inverse = pair("rectified")
    shifted = rays1 - np.array([0.3 / FOCAL, 0.0])  # further to the left: nearer
    left_from_right = np.eye(4)
    left_from_right[:3, 3] = move
    cell, std = np.arange(len(rays0)), np.full(len(rays0), 0.5)
    config = DepthConfig(max_baselines=20.0, min_cells=4)
    found = from_stereo(len(cell), cell, rays0, shifted, left_from_right, std, CAMERA, config, offset=0.3)
    np.testing.assert_allclose(found.inverse[found.known], inverse[found.known], rtol=1e-6)
    assert 0 < found.known.sum() < len(cell)
    assert found.stereo is not None
    assert found.stereo.focal_baseline == pytest.approx(FOCAL * np.linalg.norm(move))
    np.testing.assert_allclose(found.stereo.inverse, inverse + 0.3 / found.stereo.focal_baseline, rtol=1e-6)


def test_stereo_without_standard_deviations_takes_the_one_that_is_set() -> None:
    _, _, rays0, rays1, _ = pair("turned")
    unknown = stereo("turned", rays0, rays1, std=np.nan, stereo_std=0.7)
    np.testing.assert_array_equal(unknown.variance, stereo("turned", rays0, rays1, std=0.7).variance)


@pytest.mark.parametrize("name", PAIRS)
def test_an_unknown_depth_is_guessed_by_parallax_and_is_typical_without(name: str) -> None:
    turn, move, rays0, rays1, inverse = pair(name, depths=(2.0, 200.0))
    noisy = rays1 + np.random.default_rng(0).normal(0, 1 / FOCAL, rays1.shape)
    typical = float(np.median(inverse))
    found = guessed(typical, rays0, noisy, turn, move, 1 / FOCAL)
    assert (found >= 0).all()
    assert np.median(np.abs(found - inverse)) < 0.2 * np.median(np.abs(typical - inverse))
    still = guessed(typical, rays0, rays0, np.eye(3), np.zeros(3), 1 / FOCAL)
    np.testing.assert_allclose(still, typical)


def test_measurements_are_fused_as_by_an_information_filter_in_any_order() -> None:
    rng = np.random.default_rng(0)
    truth, count = rng.uniform(0.1, 1.0, 50), 6
    variance = rng.uniform(1e-4, 1e-3, (count, 50))
    measured = truth + rng.normal(0, 0.3, (count, 50)) * np.sqrt(variance)
    information = (1 / variance).sum(axis=0)
    expected = (measured / variance).sum(axis=0) / information
    for order in (range(count), reversed(range(count))):
        depth = CellDepth.unknown(50, is_metric=True)
        for k in order:
            cell = rng.permutation(50)
            depth = depth.with_measured(cell, measured[k, cell], variance[k, cell])
        np.testing.assert_allclose(depth.inverse, expected, rtol=1e-12)
        np.testing.assert_allclose(1 / depth.variance, information, rtol=1e-12)


def one(inverse: float, variance: float) -> CellDepth:
    return CellDepth(np.array([inverse]), np.array([variance]), True)


def measured(before: CellDepth, inverse: float, variance: float) -> tuple[float, float]:
    after = before.with_measured(np.array([0]), np.array([inverse]), np.array([variance]))
    return float(after.inverse[0]), float(after.variance[0])


def test_of_two_measurements_that_contradict_each_other_the_more_certain_one_stays() -> None:
    assert measured(one(0.5, 1e-4), 0.9, 1e-6) == (0.9, 1e-6)
    assert measured(one(0.5, 1e-6), 0.9, 1e-4) == (0.5, 1e-6)


def test_what_is_not_known_takes_any_measurement_and_a_measurement_of_nothing_changes_nothing() -> None:
    assert measured(one(np.nan, np.inf), 0.3, 0.01) == (0.3, 0.01)
    assert measured(one(0.5, np.inf), 0.3, 0.01) == (0.3, 0.01)
    for nothing in ((np.nan, 0.01), (0.3, np.nan), (0.3, np.inf)):
        assert measured(one(0.5, 0.02), *nothing) == (0.5, 0.02)


def test_an_exact_depth_stays_exact() -> None:
    assert measured(one(0.5, 0.0), 0.5, 0.0) == (0.5, 0.0)
    assert measured(one(0.5, 0.0), 0.501, 1e-6) == (0.5, 0.0)
    assert measured(one(0.5, 1e-6), 0.501, 0.0) == (0.501, 0.0)


def test_measuring_leaves_what_was_known_before_as_it_was() -> None:
    before = CellDepth.unknown(3, is_metric=False)
    after = before.with_measured(np.array([1]), np.array([0.5]), np.array([0.01]))
    assert not before.known.any() and np.isinf(before.variance).all()
    assert after.known.tolist() == [False, True, False] and not after.is_metric


def test_a_scene_twice_as_large_has_half_the_inverse_depths_and_a_quarter_of_their_variances() -> None:
    small = CellDepth(np.array([0.4, np.nan]), np.array([0.01, np.inf]), False)
    large = small.scaled(2.0)
    assert large.inverse[0] == 0.2 and large.variance[0] == 0.0025
    assert np.isnan(large.inverse[1]) and np.isinf(large.variance[1])


def test_variance_by_pose_is_that_of_depths_triangulated_with_disturbed_poses() -> None:
    rng = np.random.default_rng(0)
    rays0, inverse = rng.uniform(-0.5, 0.5, (6, 2)), rng.uniform(0.2, 1, 6)
    turn, translation = Rotation.from_rotvec([0.05, -0.1, 0.02]).as_matrix(), np.array([0.1, 0.03, 0.04])
    points = (np.insert(rays0, 2, 1.0, axis=1) - inverse[:, None] * translation) @ turn
    rays1 = points[:, :2] / points[:, 2:]
    covariance = np.diag([1e-4, 2e-4, 5e-5, 3e-5, 2e-5, 4e-5]) ** 2
    covariance[0, 4] = covariance[4, 0] = 1e-9
    found = np.array(
        [
            triangulate(
                rays0,
                rays1,
                Rotation.from_rotvec(step[3:]).as_matrix() @ turn,
                translation + step[:3],
                np.ones(6),
                1.0,
            ).inverse
            for step in rng.multivariate_normal(np.zeros(6), covariance, 3000)
        ]
    )
    variance = variance_by_pose(rays0, rays1, turn, translation, inverse, covariance)
    np.testing.assert_allclose(np.sqrt(variance), found.std(axis=0), rtol=0.06)
