"""The rendered scene: exact geometry, consistent between views, and full of texture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.se3 import inverse
from loftr_ros.worlds.rasterizer import NEAR, Round, Surfaces, render
from loftr_ros.worlds.room import furnish
from loftr_ros.worlds.scene import Scene, default_camera, trajectory
from loftr_ros.worlds.texturing import FAST, Material, Sampling, material, pyramid

CAMERA = default_camera()
SEED = 3


@pytest.fixture(scope="module")
def scene():
    return Scene(SEED)


@pytest.fixture(scope="module")
def walk():
    return trajectory(90, 30, SEED)


@pytest.fixture(scope="module")
def pair(scene, walk):
    """Two views a third of a second apart, without noise, and the pose of the second in the first."""
    a, b = (scene.render(CAMERA, walk[i], noise=0) for i in (20, 30))
    return a, b, np.linalg.inv(walk[20]) @ walk[30]


def pixel_grid(step=1):
    u, v = np.meshgrid(np.arange(0, CAMERA.width, step), np.arange(0, CAMERA.height, step))
    return u.astype(np.float64), v.astype(np.float64)


def transfer(depth, T_b_a):
    """Pixels and depths in view B of all pixels of view A."""
    u, v = pixel_grid()
    rays = CAMERA.unproject(np.stack([u.ravel(), v.ravel()], axis=1))
    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1) * depth.reshape(-1, 1).astype(np.float64)
    points = points @ T_b_a[:3, :3].T + T_b_a[:3, 3]
    return CAMERA.project(points).reshape(*depth.shape, 2), points[:, 2].reshape(depth.shape)


def face(o, eu, ev, texture):
    """One face that shows a texture once."""
    surfaces = Surfaces()
    surfaces.quad(*(np.array(vector, np.float64) for vector in (o, eu, ev)), material(texture))
    return surfaces


def test_a_fronto_parallel_rectangle_appears_where_the_pinhole_model_says_to_a_thousandth_of_a_pixel():
    # 1 m x 0.5 m, 2 m ahead: its edges are at known sub-pixel places, read off the coverage of the edge pixels.
    surfaces = face((-0.5, -0.25, 2), (1, 0, 0), (0, 0.5, 0), np.full((50, 100), 200, np.uint8))
    K = np.array([[200.0, 0, 80.3], [0, 210.0, 60.6], [0, 0, 1]])
    view = render(surfaces, K, (160, 120), np.eye(4), Sampling())
    image, depth = view.image, view.depth
    assert np.isinf(depth).any()
    assert np.ptp(depth[np.isfinite(depth)]) == 0
    assert depth[60, 80] == 2
    rows, columns = np.nonzero(np.isfinite(depth))
    # Pixel centres inside [30.3, 130.3] x [34.35, 86.85].
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (31, 130, 35, 86)
    fine = render(surfaces, K, (160, 120), np.eye(4), Sampling(16)).image
    assert fine[60].sum() / 200 == pytest.approx(100.0, abs=1 / 16)
    # Where the left half is covered, the edge is at the pixel's middle: (30 + 0.5 - 30.3) of pixel 30 is covered.
    assert fine[60, 30] / 200 == pytest.approx(0.2, abs=1 / 16)
    assert image.max() == pytest.approx(200, abs=0.01)


def test_the_back_of_a_rectangle_and_what_is_behind_the_camera_are_not_seen():
    surfaces = face((-0.5, -0.5, 2), (1, 0, 0), (0, 1, 0), np.full((10, 10), 200, np.uint8))
    K = np.array([[50.0, 0, 20], [0, 50.0, 20], [0, 0, 1]])
    behind = np.diag([-1.0, 1, -1, 1])
    beyond = behind.copy()
    beyond[2, 3] = 4  # looks back at it from the other side
    for pose in (behind, beyond):
        view = render(surfaces, K, (41, 41), inverse(pose), Sampling())
        assert np.isinf(view.depth).all()
        assert not view.image.any()


def test_a_texture_is_seen_with_its_left_at_the_left_and_its_top_at_the_top():
    texture = np.zeros((40, 40), np.uint8)
    texture[:20, :20] = 250
    K = np.array([[20.0, 0, 19.5], [0, 20.0, 19.5], [0, 0, 1]])
    image = render(face((-1, -1, 2), (2, 0, 0), (0, 2, 0), texture), K, (40, 40), np.eye(4), Sampling()).image
    assert image[14, 14] > 200
    assert image[14, 26] < 50
    assert image[26, 14] < 50


def cast(surfaces, K, size, T_camera_world):
    """Of a ray in float64 through each pixel's centre: the number of the face that it meets first, depth, s and t."""
    rays = np.stack([*np.meshgrid(np.arange(size[0]), np.arange(size[1])), np.ones(size[::-1])], axis=-1)
    rays = rays @ np.linalg.inv(K).T
    number, found = np.zeros(size[::-1], int), np.full((*size[::-1], 3), np.inf)
    for k, (o, eu, ev) in enumerate(np.array(surfaces.corners) @ T_camera_world[:3, :3].T):
        o = o + T_camera_world[:3, 3]
        normal = np.cross(ev, eu)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = (normal @ o) / (rays @ normal)
            point = depth[..., None] * rays - o
            s, t = (np.cross(point, b) @ normal / (np.cross(a, b) @ normal) for a, b in ((eu, ev), (ev, eu)))
        hit = (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1) & (depth > NEAR) & (depth < found[..., 0])
        if normal @ o >= 0 and not surfaces.both_sides[k]:
            continue
        number[hit] = k + 1
        found[hit] = np.stack([depth, s, t], axis=-1)[hit]
    return number, found


def test_depth_and_surface_are_those_of_rays_through_pixel_centres_before_beside_and_behind_the_camera():
    rng = np.random.default_rng(4)
    plain = material(np.full((8, 8), 100, np.uint8))
    K = np.array([[60.0, 0, 41.7], [0, 63.0, 30.2], [0, 0, 1]])
    behind = 0
    for _ in range(3):
        surfaces = Surfaces()
        for number in range(300):  # more than a byte can number
            o, eu, ev = rng.normal(0, 1, (3, 3)) * [[2.5], [0.7], [0.7]]
            surfaces.quad(o, eu, ev, plain, both_sides=number % 3 == 0)
        # A wall that reaches from before the camera to behind it, and is nearer than the near plane where it passes.
        surfaces.quad(np.array([-0.02, -2, -2]), np.array([0.03, 0, 6]), np.array([0, 4.0, 0]), plain, True)
        T = np.eye(4)
        T[:3, :3] = cv2.Rodrigues(rng.normal(0, 0.3, 3))[0]
        number, found = cast(surfaces, K, (86, 64), T)
        behind += (number == 301).sum()
        view = render(surfaces, K, (86, 64), T, FAST)
        assert np.array_equal(view.surface, number)
        known = number > 0
        assert np.isinf(view.depth[~known]).all()
        off = np.abs(view.depth[known] / found[known, 0] - 1)
        assert np.quantile(off[number[known] != 301], 0.99) < 1e-6
        assert off.max() < 2e-5  # of planes almost along the ray
        assert np.array_equal(render(surfaces, K, (86, 64), T, Sampling()).depth, view.depth)
    assert behind > 100


@pytest.mark.parametrize("sampling", [FAST, Sampling(1), Sampling(2), Sampling(3)])
@pytest.mark.parametrize("texels", [40, 640])
def test_gray_values_are_those_of_the_texture_where_the_pixels_ray_meets_the_face(sampling, texels):
    # Linear in s and t: averages over texels and pixels do not change that, a wrong half texel of any level does.
    at = (np.arange(texels) + 0.5) / texels
    texture = np.rint(20 + 110 * at[None, :] + 110 * at[:, None]).astype(np.uint8)
    K = np.array([[120.0, 0, 79.5], [0, 120.0, 59.5], [0, 0, 1]])
    levels = set()
    for slant in (0.0, 2.5):
        for look in (material(texture), Material(pyramid(texture, 3))):
            surfaces = Surfaces()
            surfaces.quad(np.array([-1.3, -1, 2.4]), np.array([2.6, 0, slant]), np.array([0.2, 2, 0]), look)
            number, found = cast(surfaces, K, (160, 120), np.eye(4))
            inside = (number > 0) & (np.abs(found[..., 1:] - 0.5).max(axis=-1) < 0.4)
            view = render(surfaces, K, (160, 120), np.eye(4), sampling)
            off = view.image[inside] - (20 + 110 * found[inside, 1:].sum(axis=-1))
            assert np.abs(off).max() < 1.5
            assert abs(off.mean()) < 0.3
            levels |= {texels / np.ptp(np.nonzero(inside)[1])}
    assert max(levels) > (3 if texels == 640 else 0)


def test_points_of_round_objects_are_on_their_surface_at_the_first_crossing_of_the_ray():
    K = np.array([[90.0, 0, 63.5], [0, 90.0, 47.5], [0, 0, 1]])
    rng = np.random.default_rng(1)
    gray = Material([np.full((16, 16), 120, np.uint8)])
    for tube in (False, True):
        for _ in range(4):
            R = cv2.Rodrigues(rng.normal(0, 1, 3))[0]
            to_local, centre = np.diag(1 / rng.uniform(0.3, 0.8, 3)) @ R.T, np.array([0, 0, 3]) + rng.normal(0, 0.2, 3)
            view = render(Surfaces(rounds=[Round(centre, to_local, tube, gray)]), K, (128, 96), np.eye(4), FAST)
            v, u = np.nonzero(view.surface)
            assert len(u) > 200
            rays = np.stack([u, v, np.ones(len(u))], axis=1) @ np.linalg.inv(K).T
            depth = view.depth[v, u].astype(np.float64)
            local = (rays * depth[:, None] - centre) @ to_local.T
            used = local[:, :2] if tube else local
            assert np.abs(np.linalg.norm(used, axis=1) - 1).max() < 1e-4
            assert np.abs(local[:, 2]).max() < 1 + 1e-4
            # Before, the ray does not cross it: it stays outside, or inside once it came in at the open end.
            before = rays[:, None] * (depth[:, None, None] * np.linspace(0.05, 0.999, 200)[:, None])
            before = (before - centre) @ to_local.T
            outside = np.linalg.norm(before[..., : used.shape[1]], axis=2) > 1
            along = np.abs(before[..., 2]) < 1
            assert not ((outside[:, 1:] != outside[:, :-1]) & along[:, 1:] & along[:, :-1]).any()
            assert view.image[v, u].min() > 0


def test_depth_and_pose_carry_points_between_views_to_a_tenth_of_a_pixel(pair):
    a, b, T_a_b = pair
    pixels, depth = transfer(a.depth, np.linalg.inv(T_a_b))
    column, row = np.round(pixels[..., 0]).astype(int), np.round(pixels[..., 1]).astype(int)
    inside = (depth > 0.1) & (column >= 0) & (column < CAMERA.width) & (row >= 0) & (row < CAMERA.height)
    # The nearest pixel of B sees a neighbouring point of the same plane: its ray meets the plane through the point
    # of A, whose inverse depth is affine in the pixel, so four pixels around interpolate it exactly.
    inverse_b = (1 / b.depth).astype(np.float32)
    u, v = (pixels[..., k].astype(np.float32) for k in (0, 1))
    expected = cv2.remap(inverse_b, u, v, cv2.INTER_LINEAR)
    difference = np.abs(expected - 1 / depth)[inside] * depth[inside]  # relative
    same = difference < 0.02  # the others are hidden in B, or at an edge
    assert same.mean() > 0.85
    # What a relative error of depth does to the pixel, at the baseline of this pair.
    baseline = np.linalg.norm(T_a_b[:3, 3])
    shift = CAMERA.focal_length * baseline * difference / depth[inside]
    assert np.percentile(shift[same], 99) < 0.1
    assert np.median(shift[same]) < 0.01


def test_views_warped_by_depth_and_pose_agree_in_brightness(pair):
    a, b, T_a_b = pair
    pixels, depth = transfer(a.depth, np.linalg.inv(T_a_b))
    u, v = (pixels[..., k].astype(np.float32) for k in (0, 1))
    warped = cv2.remap(b.image, u, v, cv2.INTER_LINEAR).astype(np.float32)
    seen = cv2.remap((1 / b.depth).astype(np.float32), u, v, cv2.INTER_LINEAR)
    inside = (u > 1) & (v > 1) & (u < CAMERA.width - 2) & (v < CAMERA.height - 2) & (np.abs(seen * depth - 1) < 0.005)
    error = np.abs(warped - a.image)[inside]
    shifted = np.abs(np.roll(warped, 3, axis=1) - a.image)[inside]
    assert error.mean() < 6
    assert error.mean() < 0.4 * shifted.mean()


def test_sift_finds_true_matches_in_every_part_of_the_image(scene, walk):
    sift = cv2.SIFT_create()
    for first, second in ((0, 6), (40, 46), (70, 76)):
        a, b = (scene.render(CAMERA, walk[i]).image for i in (first, second))
        keys_a, words_a = sift.detectAndCompute(a, None)
        keys_b, words_b = sift.detectAndCompute(b, None)
        found = cv2.BFMatcher().knnMatch(words_a, words_b, k=2)
        good = [m for m, n in found if m.distance < 0.75 * n.distance]
        x_a, x_b = np.array([keys_a[m.queryIdx].pt for m in good]), np.array([keys_b[m.trainIdx].pt for m in good])
        T = np.linalg.inv(walk[second]) @ walk[first]
        t = T[:3, 3]
        cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
        inverse = np.linalg.inv(CAMERA.matrix)
        F = inverse.T @ cross @ T[:3, :3] @ inverse
        lines = np.c_[x_a, np.ones(len(x_a))] @ F.T
        distance = np.abs((np.c_[x_b, np.ones(len(x_b))] * lines).sum(axis=1)) / np.linalg.norm(lines[:, :2], axis=1)
        right = distance < 2
        assert right.sum() > 200
        assert np.median(distance[right]) < 0.5
        occupied = {(int(x // 160), int(y // 160)) for x, y in x_a[right]}
        assert len(occupied) >= 10, f"matches in only {len(occupied)} of 12 parts"


def test_texture_is_everywhere(scene, walk):
    for i in range(0, 90, 15):
        image = scene.render(CAMERA, walk[i], noise=0).image.astype(np.float32)
        contrast = [np.std(image[y : y + 60, x : x + 80]) for y in range(0, 480, 60) for x in range(0, 640, 80)]
        assert np.percentile(contrast, 10) > 4
        assert 40 < image.mean() < 200
        assert (image > 250).mean() < 0.05


@pytest.mark.long
def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_room(scene, walk):
    from loftr_ros.worlds.scene import _build

    small = default_camera(160, 120)
    first = scene.render(small, walk[5])
    _build.cache_clear()
    again, other = Scene(SEED).render(small, walk[5]), Scene(SEED + 1).render(small, walk[5])
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.depth, again.depth)
    assert np.abs(first.image.astype(int) - other.image).mean() > 10


def test_noise_is_of_the_stated_strength_and_differs_between_views(scene, walk):
    clean, noisy = scene.render(CAMERA, walk[0], noise=0).image, scene.render(CAMERA, walk[0], noise=2).image
    middle = (clean > 20) & (clean < 235)
    difference = (noisy.astype(float) - clean)[middle]
    assert difference.std() == pytest.approx(2, abs=0.15)
    elsewhere = (
        scene.render(CAMERA, walk[1], noise=2).image.astype(float) - scene.render(CAMERA, walk[1], noise=0).image
    )
    assert abs(np.corrcoef(difference, elsewhere[middle])[0, 1]) < 0.05


def test_every_pixel_of_the_closed_room_has_a_depth_within_it(scene, walk):
    for i in range(0, 90, 10):
        depth = scene.render(CAMERA, walk[i], supersample=1).depth
        assert np.isfinite(depth).all()
        assert depth.min() > 0.3
        assert depth.max() < 10.5


@pytest.mark.parametrize("seed", range(4))
def test_the_walk_is_smooth_hand_held_and_keeps_clear_of_everything(seed):
    rate = 30
    poses = trajectory(600, rate, seed)
    rotations, positions = poses[:, :3, :3], poses[:, :3, 3]
    assert np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(rotations), 1)
    assert (rotations[:, 2, 1] < -0.8).all(), "the camera's y must point down"
    speed = np.linalg.norm(np.diff(positions, axis=0), axis=1) * rate
    assert speed.min() > 0.3
    assert speed.max() < 1.2
    steps = rotations[:-1].transpose(0, 2, 1) @ rotations[1:]
    turning = np.degrees(np.arccos(np.clip((np.trace(steps, axis1=1, axis2=2) - 1) / 2, -1, 1))) * rate
    assert np.median(turning) > 5
    assert turning.max() < 120
    for room in range(5):
        solids, _ = furnish(np.random.default_rng(room))
        assert min(solid.distance(positions).min() for solid in solids) > 0.4


def test_cameras_of_any_size_are_rendered_and_those_with_distortion_refused(scene, walk):
    wide = scene.render(np.array([[200.0, 0, 150], [0, 200, 80], [0, 0, 1]]), walk[0], size=(301, 163))
    assert wide.image.shape == wide.depth.shape == (163, 301)
    assert wide.image.dtype == np.uint8
    assert wide.depth.dtype == np.float32
    bent = CameraModel(640, 480, CAMERA.matrix, "plumb_bob", np.array([0.1, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="distortion"):
        scene.render(bent, walk[0])
    with pytest.raises(ValueError, match="4x4"):
        scene.render(CAMERA, np.full((4, 4), np.nan))
