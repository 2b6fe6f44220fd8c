"""Acceptance of poses: more inliers than by chance, in enough of the visible parts."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import camera, texture
from known_scenes import EXACT, FOCAL, Array, rays_anywhere, rotation, scene

from loftr_ros.frontend.odometry import Location, origin
from loftr_ros.frontend.prior import ConstantVelocity
from loftr_ros.frontend.trust import Texture, View, explained_part, texture_of
from loftr_ros.geometry.epipolar import MAX_RESIDUAL, homogeneous, rotated_residual, sampson_distance
from loftr_ros.geometry.significance import significance
from loftr_ros.geometry.two_view import PoseStatus, estimate_relative_pose

FIELD_OF_CELLS = np.stack(np.meshgrid(np.arange(40), np.arange(30)), axis=-1).reshape(-1, 2) * 8.0 + 3.5


@pytest.mark.parametrize("count", [20, 36, 60, 120, 300])
def test_random_matches_never_make_a_pose(count: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng([seed, count])
        pose = estimate_relative_pose(rays_anywhere(rng, count), rays_anywhere(rng, count), FOCAL, EXACT)
        assert pose.status == PoseStatus.TOO_FEW_MATCHES
        assert not pose.inliers.any()


@pytest.mark.parametrize("name", ["forward", "sideways", "deep"])
def test_a_few_good_matches_among_many_wrong_ones_are_no_accident(name: str) -> None:
    rng = np.random.default_rng(3)
    views = scene(name, rng, 120).noisy(rng, 0.3, outliers=0.5)
    assert estimate_relative_pose(views.rays0, views.rays1, FOCAL, EXACT).status.has_rotation


def test_matches_of_one_block_count_once() -> None:
    rng = np.random.default_rng(4)
    views = scene("sideways", rng, 200, part=0.03)
    direction = views.direction

    def agree(rays0: Array, rays1: Array) -> np.ndarray:
        return sampson_distance(homogeneous(rays0), homogeneous(rays1), views.rotation, direction) < 1 / FOCAL

    everywhere = scene("sideways", rng, 200)
    all_of_them = np.ones(len(views.rays0), np.bool_)
    near = significance(views.rays0, views.rays1, all_of_them, agree, FOCAL)
    spread = significance(everywhere.rays0, everywhere.rays1, np.ones(len(everywhere.rays0), np.bool_), agree, FOCAL)
    assert near < 6 < spread


def test_the_parallax_of_rays_that_point_away_is_bounded() -> None:
    rays = homogeneous(rays_anywhere(np.random.default_rng(0), 50))
    for angle in (85.0, 90.0, 120.0, 180.0):
        residual = rotated_residual(rays, rays, rotation(0, angle, 0))
        assert np.isfinite(residual).all() and (residual <= MAX_RESIDUAL).all()


# --- what both images should show ---


def test_flat_parts_of_an_image_have_no_texture_and_masked_ones_do_not_count() -> None:
    image = texture(240, 320)
    image[:, :160] = 120
    blocks = texture_of(image, 40).flags.reshape(15, 20)
    assert not blocks[:, :9].any() and blocks[:, 11:].all()
    usable = np.ones(image.shape, np.bool_)
    usable[120:] = False
    assert not texture_of(image, 40, usable).flags.reshape(15, 20)[8:].any()


@pytest.mark.parametrize("gain", [1.0, 0.2, 0.06])
def test_a_dark_image_has_its_texture_too_and_its_noise_is_none(gain: float) -> None:
    noise = np.random.default_rng(0).normal(0, 2, (240, 320))
    dark = np.clip(gain * texture(240, 320) + noise, 0, 255).astype(np.uint8)
    assert texture_of(dark, 40).flags.mean() > 0.15
    blank = np.clip(20 + noise, 0, 255).astype(np.uint8)
    assert not texture_of(blank, 40).flags.any()


def view(texture: Texture, inliers: Array, points: Array, inverse: float | Array) -> View:
    return View(camera(), texture, inliers, points, np.broadcast_to(inverse, len(points)).astype(float))


@pytest.mark.parametrize("cells", [10, 16, 20, 28, 80])
def test_a_network_with_few_cells_explains_an_image_as_well(cells: int) -> None:
    side = 320 / cells
    v, u = np.meshgrid(np.arange(0, 240, side), np.arange(0, 320, side), indexing="ij")
    points = np.stack([u.ravel(), v.ravel()], axis=1) + 0.4 * side
    seen = view(texture_of(texture(240, 320), cells), points, points, 0.0)
    assert explained_part(seen, camera(), np.eye(3), np.zeros(3)) > 0.9


EVERY = Texture(np.ones(300, np.bool_), 20)


@pytest.mark.parametrize("part", [1.0, 0.5, 0.1])
def test_inliers_of_a_part_of_the_image_explain_that_part(part: float) -> None:
    inliers = FIELD_OF_CELLS[FIELD_OF_CELLS[:, 0] < 320 * part]
    found = explained_part(view(EVERY, inliers, FIELD_OF_CELLS, 0.5), camera(), np.eye(3), np.zeros(3))
    assert found == pytest.approx(part, abs=0.06)


def test_what_the_pose_says_is_out_of_view_need_not_be_explained() -> None:
    right = view(EVERY, FIELD_OF_CELLS[FIELD_OF_CELLS[:, 0] > 160], FIELD_OF_CELLS, 0.5)
    # 160 px at 2 m and a focal length of 300 px.
    assert explained_part(right, camera(), np.eye(3), np.array([160 * 2 / 300, 0, 0])) > 0.95
    assert explained_part(right, camera(), np.eye(3), np.zeros(3)) < 0.55


def test_near_parts_leave_the_view_of_a_camera_that_drives_on_and_far_ones_stay() -> None:
    ahead, near = np.array([0, 0, 1.5]), FIELD_OF_CELLS[:, 1] > 160
    inverse = np.where(near, 0.5, 0.02)  # a road before far houses
    houses = FIELD_OF_CELLS[~near]
    assert explained_part(view(EVERY, houses, FIELD_OF_CELLS, inverse), camera(), np.eye(3), ahead) > 0.95
    assert explained_part(view(EVERY, houses, FIELD_OF_CELLS, 0.02), camera(), np.eye(3), ahead) < 0.75
    # The road's depth is known at its far end alone: all of it is as near as that.
    some = ~near | (FIELD_OF_CELLS[:, 1] < 180)
    known = view(EVERY, houses, FIELD_OF_CELLS[some], inverse[some])
    assert explained_part(known, camera(), np.eye(3), ahead) > 0.9


def test_a_thing_that_is_there_twice_does_not_explain_what_is_around_it() -> None:
    poster = FIELD_OF_CELLS[(np.abs(FIELD_OF_CELLS - (100, 90)) < 40).all(axis=1)]
    assert explained_part(view(EVERY, poster, poster, 0.0), camera(), rotation(0, 0, 90), np.zeros(3)) < 0.3
    assert explained_part(view(EVERY, poster, poster, 0.07), camera(), np.eye(3), np.array([1.0, 0, 0])) < 0.3


# --- what is expected ---


def at(x: float, turn: float = 0.0, metric: bool = True, segment: int = 0) -> Location:
    place = origin(is_metric=metric, segment=segment)
    place.pose[:3, :3] = rotation(0, turn, 0)
    place.pose[0, 3] = x
    return place


def test_a_camera_is_expected_to_go_on_as_it_went() -> None:
    motion = ConstantVelocity()
    assert motion.expected(10**9) is None
    motion.add(10**9, at(0.0))
    motion.add(10**9 + 10**8, at(0.1, 2.0))
    expected = motion.expected(10**9 + 2 * 10**8)
    assert expected is not None
    np.testing.assert_allclose(expected.pose, at(0.2, 4.0).pose, atol=1e-9)
    assert expected.agrees(at(0.21, 4.5))
    assert not expected.agrees(at(1.5, 4.0)) and not expected.agrees(at(0.2, 90.0))
    assert not expected.agrees(at(0.2, 4.0, segment=1))


def test_the_longer_ago_the_less_is_expected_and_at_last_nothing() -> None:
    motion = ConstantVelocity()
    motion.add(10**9, at(0.0))
    motion.add(10**9 + 10**8, at(0.1))
    stds = [motion.expected(10**9 + k * 10**8).position_std for k in (2, 4, 8)]  # type: ignore[union-attr]
    assert stds == sorted(stds) and stds[0] < stds[-1]
    assert motion.expected(10**9 + 3 * 10**9) is None
    assert motion.expected(10**9 + 5 * 10**7) is None, "a stamp that goes back to no located frame"


def test_a_camera_that_turned_evenly_is_expected_to_go_on_so_for_longer_than_one_that_shook() -> None:
    stds = []
    for shake in (0.0, 4.0):
        motion, random = ConstantVelocity(), np.random.default_rng(0)
        pose = np.eye(4)
        for number in range(20):
            pose = pose.copy()
            pose[:3, :3] = pose[:3, :3] @ rotation(0, 0.5 + shake * random.standard_normal(), 0)
            pose[2, 3] += 0.8
            motion.add(number * 10**8, Location(pose, np.zeros((6, 6)), 0, True))
        expected = motion.expected(19 * 10**8 + 4 * 10**8)
        assert expected is not None
        stds.append(expected.rotation_std)
    smooth, shaken = stds
    assert smooth < 0.15 < 0.7 < shaken
    motion.reset()
    assert motion.angular_acceleration == 10.0
