"""Training pairs: warps accurate to a hundredth of a pixel for every source, and reproducible numbered samples."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_pairs import picture

from loftr_ros.geometry.se3 import inverse, rotation_matrix
from loftr_ros.training.assets import (
    PHOTO,
    TEXTURE,
    AssetBank,
    AssetError,
    AssetWriter,
    Origin,
    collect_folder,
    held_out,
)
from loftr_ros.training.geometry import covisible, hide, intrinsics, looking, rigid, warp_by_depth
from loftr_ros.training.homography import HomographyPairs
from loftr_ros.training.mixture import RENDERED, WEIGHTS, Curriculum, Mixture, made_sources
from loftr_ros.training.photometric import photograph
from loftr_ros.training.recorded import RecordedError, RecordedView, read_pfm
from loftr_ros.training.recorded_sets import BlendedMvsPairs, MegaDepthPairs, ScanNetPairs, SevenScenesPairs
from loftr_ros.training.rendered import RenderedPairs
from loftr_ros.training.surfaces import pyramid
from loftr_ros.worlds.rasterizer import Surfaces, render
from loftr_ros.worlds.texturing import FAST, Material

SIZE = (160, 120)


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    with AssetWriter(folder) as writer:
        letters = [a + b for a in "abcdefgh" for b in "abcdefgh"]
        for kind in (PHOTO, TEXTURE):
            images = [(f"{name}.png", picture(hash_of(name + kind))) for name in letters[:40]]
            writer.add_all(Origin(kind, "1", "CC0"), kind, images)
    return folder


def hash_of(text):
    return int.from_bytes(text.encode(), "big") % 100_003


@pytest.fixture(scope="module")
def bank(assets) -> AssetBank:
    return AssetBank(assets)


def sampled(image, warp):
    """An image's values at a warp's targets; NaN where there are none."""
    where = np.where(np.isfinite(warp), warp, np.float32(-1))
    values = cv2.remap(image.astype(np.float32), where, None, cv2.INTER_LINEAR)
    values[~np.isfinite(warp[..., 0])] = np.nan
    return values


def there_and_back(warp01, warp10):
    """Distance of a pixel from itself after both warps, in pixels; NaN if either is missing."""
    rows, columns = warp01.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).astype(np.float32)
    where = np.where(np.isfinite(warp01), warp01, np.float32(-1))
    back = cv2.remap(warp10, where, None, cv2.INTER_LINEAR, borderValue=(np.nan, np.nan))
    return np.linalg.norm(back - grid, axis=-1)


@pytest.mark.parametrize("kind", RENDERED)
def test_a_rendered_pixel_and_its_partner_show_the_same_before_photometric_change(bank, kind):
    for index in range(4):
        pair = RenderedPairs(bank, kind).clean(np.random.default_rng([3, index]), SIZE, 0.15)
        # Edges are jagged and mip levels differ between views: both are blurred a little.
        image0, image1 = (cv2.GaussianBlur(view.image, (0, 0), 1) for view in (pair.view0, pair.view1))
        for image, other, warp in ((image0, image1, pair.warp01), (image1, image0, pair.warp10)):
            here = np.nanmean(np.abs(sampled(other, warp) - image))
            for aside in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                assert here < 0.85 * np.nanmean(np.abs(sampled(other, warp + np.float32(aside)) - image)), index


@pytest.mark.parametrize("kind", RENDERED)
def test_a_rendered_warp_followed_back_returns_to_its_pixel_wherever_both_are_open(bank, kind):
    for index in range(4):
        pair = RenderedPairs(bank, kind).clean(np.random.default_rng([4, index]), SIZE, 0.6)
        error = there_and_back(pair.warp01, pair.warp10)
        open_ = np.isfinite(error)
        assert open_.mean() > 0.03
        assert np.median(error[open_]) < 0.02
        assert np.quantile(error[open_], 0.98) < 0.6


@pytest.mark.parametrize("kind", RENDERED)
def test_a_rendered_warp_is_that_of_the_point_at_the_pixels_depth_to_a_hundredth_of_a_pixel(bank, kind):
    pair = RenderedPairs(bank, kind).clean(np.random.default_rng(5), SIZE, 0.8)
    known = np.argwhere(np.isfinite(pair.warp01[..., 0]))
    for v, u in known[:: max(1, len(known) // 200)]:
        depth = 1 / float(pair.view0.inverse_depth[v, u])
        point = np.linalg.inv(pair.K0) @ np.array([u, v, 1.0]) * depth
        pixel = pair.K1 @ (pair.T_1_0[:3, :3] @ point + pair.T_1_0[:3, 3])
        assert np.abs(pixel[:2] / pixel[2] - pair.warp01[v, u]).max() < 0.01


def test_every_pair_shares_at_least_a_tenth_of_each_view(bank):
    for kind in RENDERED:
        for index in range(6):
            pair = RenderedPairs(bank, kind).clean(np.random.default_rng([6, index]), SIZE, 1.0)
            assert min(covisible(pair.warp01), covisible(pair.warp10)) >= 0.1


def board(scene, distance, half, texture):
    """A square board across the optical axis of a camera at the origin that looks along +y."""
    o = np.array([-half, distance, half])
    scene.quad(o, np.array([2.0 * half, 0, 0]), np.array([0, 0, -2.0 * half]), Material(pyramid(texture)), True)


def test_above_a_difficulty_of_one_motion_is_wider_and_light_is_not(bank):
    from loftr_ros.training.config import WIDEST
    from loftr_ros.training.homography import random_homography

    def scales(difficulty):
        made = (random_homography(np.random.default_rng(k), SIZE, difficulty) for k in range(200))
        middle = np.array([SIZE[0] / 2, SIZE[1] / 2, 1])
        # Of the area about the middle, by the homography's Jacobian.
        return [abs(np.linalg.det(H)) / abs(H[2] @ middle) ** 3 for H in made]

    assert np.quantile(np.sqrt(scales(WIDEST)), 0.95) > 1.3 * np.quantile(np.sqrt(scales(1.0)), 0.95)
    for kind in ("room", "clutter"):
        sample = RenderedPairs(bank, kind).sample(np.random.default_rng(3), SIZE, WIDEST)
        assert min(covisible(sample.warp01), covisible(sample.warp10)) > 0
    assert Curriculum(0.3, WIDEST, 10).difficulty(10, np.random.default_rng(0)) <= WIDEST
    with pytest.raises(ValueError, match=r"expected 0 to 1\.6"):
        Curriculum(0.3, WIDEST + 0.1)


def test_what_a_nearer_board_hides_from_either_camera_has_no_partner():
    scene = Surfaces()
    board(scene, 4.0, 6.0, picture(1).astype(np.float32))
    board(scene, 2.0, 0.3, picture(2).astype(np.float32))
    K = intrinsics(SIZE, 70)
    forward = np.array([0.0, 1, 0])
    T0, T1 = looking(np.zeros(3), forward), looking(np.array([0.5, 0, 0]), forward)
    view0, view1 = render(scene, K, SIZE, T0, FAST), render(scene, K, SIZE, T1, FAST)
    T_1_0 = T1 @ inverse(T0)
    warp = warp_by_depth(view0.inverse_depth, view1.inverse_depth, K, K, T_1_0, (view0.surface, view1.surface))
    u, v = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    focal = K[0, 0]
    # On the wall, disparity is focal · 0.5 / 4; the board then covers the wall where it is visible in view 1.
    shifted = u - focal * 0.5 / 4
    centre, reach = K[0, 2] - focal * 0.5 / 2, focal * 0.3 / 2
    behind = (np.abs(shifted - centre) < reach - 1) & (np.abs(v - K[1, 2]) < reach - 1) & (view0.surface == 1)
    assert behind.sum() > 100
    assert np.isnan(warp[behind]).all()
    clear = (np.abs(shifted - centre) > reach + 2) & (shifted > 1) & (view0.surface == 1)
    assert np.isfinite(warp[clear]).mean() > 0.99
    on_board = cv2.erode((view0.surface == 2).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert np.abs(warp[on_board][:, 0] - (u[on_board] - focal * 0.5 / 2)).max() < 0.01


def test_a_board_across_the_optical_axis_is_drawn_upright_and_not_mirrored():
    texture = np.full((64, 64), 40, np.float32)
    texture[:32, 32:] = 220  # bright at the top right
    scene = Surfaces()
    scene.quad(np.array([-1.0, 2, 1]), np.array([2.0, 0, 0]), np.array([0, 0, -2.0]), Material(pyramid(texture)))
    view = render(scene, intrinsics((81, 61), 50), (81, 61), looking(np.zeros(3), np.array([0.0, 1, 0])), FAST)
    assert view.surface.all()  # its front is seen
    assert view.image[10, 70] > 200
    assert max(view.image[10, 10], view.image[50, 70], view.image[50, 10]) < 60
    assert np.abs(1 / view.inverse_depth - 2).max() < 1e-5
    away = render(
        scene, intrinsics((81, 61), 50), (81, 61), looking(np.array([0.0, 4, 0]), np.array([0.0, -1, 0])), FAST
    )
    assert not away.surface.any()  # its back is not


def test_a_box_shows_its_near_faces_from_every_side():
    K = intrinsics((81, 81), 60)
    rng = np.random.default_rng(2)
    for _ in range(12):
        turn = rotation_matrix(rng.normal(size=3))
        scene, half = Surfaces(), np.array([0.3, 0.4, 0.5])
        scene.box(np.zeros(3), half, turn, [Material(pyramid(np.full((16, 16), 99, np.float32)))], bottom=True)
        away = rng.normal(size=3)
        away *= 3 / np.linalg.norm(away)
        view = render(scene, K, (81, 81), looking(away, -away), FAST)
        # Along the optical axis, the box begins where the ray to its centre passes the first pair of planes.
        begins = 3 * (1 - np.min(half / np.abs(turn.T @ away)))
        assert abs(1 / view.inverse_depth[40, 40] - begins) < 1e-3
        assert 1 <= len(set(view.surface.ravel()) - {0}) <= 3


def test_a_homographys_pixel_and_its_partner_show_the_same_and_lead_back(bank):
    for index in range(12):
        clean0, clean1, warp01, warp10 = HomographyPairs(bank).clean(np.random.default_rng([7, index]), SIZE, 0.6)
        known = np.isfinite(warp01[..., 0])
        assert known.mean() >= 0.1
        assert np.median(np.abs(sampled(clean1, warp01) - clean0)[known]) < 5
        error = there_and_back(warp01, warp10)
        assert np.nanmedian(error) < 0.05  # the other warp is read between its pixels, where it is not linear


def test_the_same_seed_and_number_give_the_same_sample_and_others_do_not(bank):
    mixture = Mixture(made_sources(bank), WEIGHTS, seed=5)
    again = Mixture(made_sources(pickle.loads(pickle.dumps(bank))), dict(reversed(WEIGHTS.items())), seed=5)
    for index in (0, 1, 17):
        one, two = mixture.sample(index, SIZE), again.sample(index, SIZE)
        assert one.kind == two.kind
        for name in ("image0", "image1", "warp01", "warp10"):
            assert np.array_equal(getattr(one, name), getattr(two, name), equal_nan=name.startswith("warp"))
    other = Mixture(made_sources(bank), WEIGHTS, seed=6).sample(0, SIZE)
    held = Mixture(made_sources(bank), WEIGHTS, seed=5, validation=True).sample(0, SIZE)
    first = mixture.sample(0, SIZE)
    assert not np.array_equal(first.image0, other.image0)
    assert not np.array_equal(first.image0, held.image0)


def test_samples_have_the_contracts_types_and_shapes(bank):
    for name, source in made_sources(bank).items():
        sample = source.sample(np.random.default_rng(1), (96, 128), 0.5)
        assert sample.kind == name
        assert sample.image0.shape == sample.image1.shape == (128, 96)
        assert sample.image0.dtype == sample.image1.dtype == np.uint8
        assert sample.warp01.shape == sample.warp10.shape == (128, 96, 2)
        assert sample.warp01.dtype == sample.warp10.dtype == np.float32
        finite = sample.warp01[np.isfinite(sample.warp01[..., 0])]
        assert (finite >= 0).all()
        assert (finite <= [95, 127]).all()


def test_a_mixture_draws_its_sources_by_their_weights_and_rises_in_difficulty():
    class Told:
        def __init__(self):
            self.difficulties = []

        def sample(self, rng, size, difficulty):
            self.difficulties.append(difficulty)

    often, seldom = Told(), Told()
    curriculum = Curriculum(0.2, 1.0, 1000, 0.5)
    mixture = Mixture({"often": often, "seldom": seldom}, {"often": 3, "seldom": 1}, 0, curriculum)
    for index in range(1000):
        mixture.sample(index, SIZE)
    assert 680 < len(often.difficulties) < 820
    assert max(often.difficulties[:50]) < 0.3
    assert max(often.difficulties[-50:]) > 0.9
    assert min(often.difficulties[-50:]) > 0.45
    for weights, said in (({"none": 1}, "no source 'none'"), ({"often": 0}, "one above"), ({"often": -1}, "below 0")):
        with pytest.raises(ValueError, match=said):
            Mixture({"often": often}, weights)


def moved(before, after):
    """Shift of an image in pixels, independent of gain and offset: least squares over gradients."""
    before, after = (cv2.GaussianBlur(image, (0, 0), 3).astype(np.float64) for image in (before, after))
    down, along = np.gradient(before)
    terms = np.stack([before, np.ones_like(before), along, down], axis=-1)[8:-8, 8:-8].reshape(-1, 4)
    gain, _, *slopes = np.linalg.lstsq(terms, after[8:-8, 8:-8].ravel(), rcond=None)[0]
    return -np.array(slopes) / gain, gain


def test_photometric_change_moves_nothing_and_says_what_it_hides():
    image = picture(9, 192, 256)
    assert np.abs(moved(image, np.roll(image, 1, axis=1))[0] - [1, 0]).max() < 0.1
    shifts, covered = [], []
    for index in range(60):
        changed, hidden = photograph(image, np.random.default_rng(index), 1.0)
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        if hidden is not None:
            covered.append(hidden.mean())
            continue
        shift, gain = moved(image, changed)
        if gain > 0.2:  # otherwise too dark or too bright to measure
            shifts.append(shift)
    assert covered
    assert 0 < min(covered) < max(covered) < 0.6
    assert len(shifts) > 30
    assert np.median(np.abs(shifts), axis=0).max() < 0.15
    assert np.abs(np.median(shifts, axis=0)).max() < 0.05


def test_what_is_hidden_in_one_image_has_no_partner_in_either():
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(10)), axis=-1).astype(np.float32)
    warp01, warp10 = grid + np.float32([2, 0]), grid - np.float32([2, 0])
    hidden1 = np.zeros((10, 20), bool)
    hidden1[3:6, 8:12] = True
    hide(warp01, warp10, None, hidden1)
    assert np.isnan(warp10[hidden1]).all()
    assert np.isnan(warp01[3:6, 6:10]).all()
    assert np.isfinite(warp01).all(axis=-1).sum() == 200 - 12


def test_a_batch_is_the_same_from_any_number_of_workers_and_from_any_start(bank):
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    from loftr_ros.training.dataset import PairBatches

    batches = PairBatches(Mixture(made_sources(bank), {"homography": 1.0}, 3), 2, 4, ((64, 64), (96, 64)))
    here = [batches[b] for b in range(4)]
    assert here[0].image0.shape[:2] == (2, 1)
    assert here[0].warp01.shape == (2, *here[0].image0.shape[2:], 2)
    assert here[0].image0.dtype == here[0].warp10.dtype == torch.float32
    assert 0 <= float(here[0].image0.min()) <= float(here[0].image0.max()) <= 1
    loader = DataLoader(batches, batch_size=None, sampler=range(1, 4), num_workers=2)
    for expected, made in zip(here[1:], loader, strict=True):
        assert tuple(made.kinds) == expected.kinds
        assert torch.equal(made.image1, expected.image1)
        assert torch.equal(made.warp01.nan_to_num(-1), expected.warp01.nan_to_num(-1))
    with pytest.raises(IndexError):
        batches[4]


def test_assets_keep_what_is_usable_once_and_hold_out_a_part(assets, tmp_path):
    training, validation = AssetBank(assets), AssetBank(assets, validation=True)
    names = {asset.name for asset in training.photos + training.textures}
    assert names.isdisjoint(asset.name for asset in validation.photos + validation.textures)
    assert held_out("photos/frame-0001.jpg") == held_out("photos/frame-0002.jpg")
    share = np.mean([held_out(f"p/{a}{b}{c}") for a in "abcdefghij" for b in "abcdefghij" for c in "abcdefghij"])
    assert 1 / 16 < share < 1 / 9
    levels = training.levels(training.photos[0])
    assert levels[0].shape == (300, 400)
    assert levels[1].shape == (150, 200)
    assert abs(float(levels[0].mean()) - float(levels[1].mean())) < 1
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    large = picture(1, 900, 1500)
    cv2.imwrite(str(photos / "a.png"), large)
    cv2.imwrite(str(photos / "deep" / "b.jpg"), cv2.resize(large, (750, 450)))  # the same once more
    cv2.imwrite(str(photos / "gray.png"), np.full((300, 300), 90, np.uint8))
    cv2.imwrite(str(photos / "small.png"), picture(3, 40, 40))
    cv2.imwrite(str(photos / "c.png"), picture(4))
    (photos / "note.png").write_text("no image")
    (origin,) = collect_folder(photos, tmp_path / "kept")
    assert origin.images == 2
    index = json.loads((tmp_path / "kept" / "index.json").read_text())
    assert [max(image["sizes"][0]) for image in index["images"]] == [1024, 400]
    assert "photos" in (tmp_path / "kept" / "LICENCES.md").read_text()


def test_missing_assets_are_said_with_what_to_do(tmp_path):
    with pytest.raises(AssetError, match="loftr_ros train assets"):
        AssetBank(tmp_path)
    with pytest.raises(AssetError, match="not a folder"):
        collect_folder(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssetError, match="nothing to keep"):
        collect_folder(tmp_path / "empty", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_packages_give_their_pictures_from_folders_archives_and_resources_but_no_maps_of_normals(tmp_path, monkeypatch):
    from loftr_ros.training import asset_packages
    from loftr_ros.training.asset_packages import Package, fetch_assets

    def png(image):
        return cv2.imencode(".png", image)[1].tobytes()

    normals = np.empty((128, 128, 3), np.uint8)
    normals[:] = (255, 128, 128)
    normals[::3] = (250, 160, 100)

    def run(command, folder=None):
        if command[:2] == ["apt-get", "download"]:
            if command[-1] == "gone-data":
                raise AssetError("no such package")
            (folder / f"{command[-1]}_1.0_all.deb").write_bytes(b"")
        elif command[1] == "-x":
            name, target = Path(command[2]).name.split("_")[0], Path(command[3])
            (target / "usr/share/doc" / name).mkdir(parents=True)
            (target / "usr/share/doc" / name / "copyright").write_text("Files: *\nLicense: CC0-1.0\n")
            (target / "usr/share/pictures").mkdir()
            (target / "usr/share/pictures/one.png").write_bytes(png(picture(1)))
            (target / "usr/share/pictures/two_normal.png").write_bytes(png(picture(2)))
            (target / "usr/share/pictures/three.png").write_bytes(png(normals))
            with zipfile.ZipFile(target / "usr/share/textures.pk3", "w") as archive:
                archive.writestr("textures/wall.png", png(picture(3)))
            inner = png(picture(4))
            (target / "usr/share/data.rcc").write_bytes(b"qres" + len(inner).to_bytes(4, "big") + inner + b"end")
        return "1.0\n"

    monkeypatch.setattr(asset_packages, "_run", run)
    monkeypatch.setattr(asset_packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    packages = [Package("gone-data", PHOTO), Package("fine-data", TEXTURE)]
    (origin,) = fetch_assets(tmp_path / "kept", packages)
    assert (origin.name, origin.version, origin.licence, origin.images) == ("fine-data", "1.0", "CC0-1.0", 3)
    index = json.loads((tmp_path / "kept" / "index.json").read_text())
    names = [Path(image["name"]).name for image in index["images"]]
    assert names[:2] == ["one.png", "wall.png"] or set(names) >= {"one.png", "wall.png"}


class Recorded:
    """Two frames of a wall and a box with exact depth and poses, to be written in any layout."""

    def __init__(self):
        self.size = (160, 120)
        self.K = intrinsics(self.size, 65)
        scene = Surfaces()
        board(scene, 3.0, 5.0, picture(11).astype(np.float32))
        board(scene, 1.8, 0.4, picture(12).astype(np.float32))
        forward = np.array([0.0, 1, 0])
        self.T = [looking(np.zeros(3), forward), looking(np.array([0.3, 0.1, 0.05]), np.array([-0.05, 1, 0.02]), 0.05)]
        self.views = [render(scene, self.K, self.size, T, FAST) for T in self.T]
        self.depths = [(1 / view.inverse_depth).astype(np.float32) for view in self.views]
        surfaces = tuple(view.surface for view in self.views)
        depths = tuple(view.inverse_depth for view in self.views)
        self.warp = warp_by_depth(*depths, self.K, self.K, self.T[1] @ inverse(self.T[0]), surfaces)

    def check(self, pairs, size=None, tolerance=0.2):
        """A pair in the recorded size has the rendered pair's warp, except for rounding of depth in files."""
        sample = pairs.pair(0, size or self.size)
        both = np.isfinite(sample.warp01[..., 0]) & np.isfinite(self.warp[..., 0])
        assert both.mean() > 0.5
        assert both.sum() > 0.95 * np.isfinite(self.warp[..., 0]).sum()
        assert np.abs(sample.warp01 - self.warp)[both].max() < tolerance
        assert sample.kind == pairs.kind
        made = pairs.sample(np.random.default_rng(0), (96, 64), 0.5)
        assert made.image0.shape == (64, 96)
        assert np.nanmedian(there_and_back(made.warp01, made.warp10)) < 0.1


@pytest.fixture(scope="module")
def recorded():
    return Recorded()


def write_rgbd(folder, recorded, names):
    for view, depth, (image_name, depth_name) in zip(recorded.views, recorded.depths, names, strict=True):
        (folder / image_name).parent.mkdir(parents=True, exist_ok=True)
        (folder / depth_name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / image_name), view.image)
        cv2.imwrite(str(folder / depth_name), np.round(depth * 1000).astype(np.uint16))


def test_scannet_is_read_as_loftr_lays_it_out(tmp_path, recorded):
    scene = tmp_path / "scene0001_02"
    write_rgbd(scene, recorded, [("color/0.jpg", "depth/0.png"), ("color/30.jpg", "depth/30.png")])
    for name, T in zip(("0", "30"), recorded.T, strict=True):
        (scene / "pose").mkdir(exist_ok=True)
        np.savetxt(scene / "pose" / f"{name}.txt", inverse(T))
    np.savez(tmp_path / "pairs.npz", name=np.array([[1, 2, 0, 30], [1, 2, 0, 99]]), score=np.array([0.8, 0.1]))
    np.savez(tmp_path / "intrinsics.npz", scene0001_02=recorded.K)
    pairs = ScanNetPairs(tmp_path, tmp_path / "pairs.npz", tmp_path / "intrinsics.npz")
    assert len(pairs) == 1
    recorded.check(pairs)
    (scene / "intrinsic").mkdir()
    K = np.eye(4)
    K[:3, :3] = recorded.K
    np.savetxt(scene / "intrinsic" / "intrinsic_depth.txt", K)
    recorded.check(ScanNetPairs(tmp_path, tmp_path / "pairs.npz"))
    with pytest.raises(RecordedError, match="no pairs"):
        ScanNetPairs(tmp_path, tmp_path / "pairs.npz", least_overlap=0.9)
    np.savetxt(scene / "pose" / "30.txt", np.full((4, 4), -np.inf))
    assert np.isnan(pairs.pair(0, recorded.size).warp01).all()  # tracking was lost
    (scene / "pose" / "30.txt").write_text("1 2 3")
    with pytest.raises(RecordedError, match="no 4x4 matrix"):
        pairs.pair(0, recorded.size)


def test_megadepth_is_read_as_loftr_lays_it_out(tmp_path, recorded):
    h5py = pytest.importorskip("h5py")
    infos = np.empty(2, object)
    infos[0], infos[1] = (np.array([0, 1]), 0.5, None), (np.array([1, 0]), 0.9, None)
    for number, (view, depth) in enumerate(zip(recorded.views, recorded.depths, strict=True)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), view.image)
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["depth"] = depth
    np.savez(
        tmp_path / "scene.npz",
        image_paths=np.array(["0.png", "1.png"], object),
        depth_paths=np.array(["0.h5", "1.h5"], object),
        intrinsics=np.stack([recorded.K] * 2),
        poses=np.stack(recorded.T),
        pair_infos=infos,
    )
    pairs = MegaDepthPairs(tmp_path, tmp_path / "scene.npz")
    assert len(pairs) == 1
    recorded.check(pairs, tolerance=0.01)
    with pytest.raises(RecordedError, match="lists no pairs"):
        MegaDepthPairs(tmp_path, tmp_path / "scene.npz", 0.95, 1.0)


def test_blendedmvs_is_read_in_its_layout_and_its_depth_may_have_holes(tmp_path, recorded):
    for folder in ("blended_images", "rendered_depth_maps", "cams"):
        (tmp_path / folder).mkdir()
    for number, (view, depth, T) in enumerate(zip(recorded.views, recorded.depths, recorded.T, strict=True)):
        cv2.imwrite(str(tmp_path / "blended_images" / f"{number:08d}.jpg"), view.image, [cv2.IMWRITE_JPEG_QUALITY, 98])
        holed = depth.copy()
        holed[10:20, 30:50] = 0
        header = f"Pf\n{depth.shape[1]} {depth.shape[0]}\n-1.0\n".encode()
        data = header + np.ascontiguousarray(holed[::-1], "<f4").tobytes()
        (tmp_path / "rendered_depth_maps" / f"{number:08d}.pfm").write_bytes(data)
        rows = ["extrinsic", *(" ".join(map(repr, map(float, row))) for row in T), "", "intrinsic"]
        rows += [*(" ".join(map(repr, map(float, row))) for row in recorded.K), "", "1.0 0.01 128 5.0"]
        (tmp_path / "cams" / f"{number:08d}_cam.txt").write_text("\n".join(rows))
    (tmp_path / "cams" / "pair.txt").write_text("2\n0\n1 1 90.0\n1\n1 0 90.0\n")
    pairs = BlendedMvsPairs(tmp_path)
    assert len(pairs) == 2
    recorded.check(pairs, tolerance=0.01)
    assert np.isnan(pairs.pair(0, recorded.size).warp01[10:20, 30:50]).all()
    (tmp_path / "rendered_depth_maps" / "00000000.pfm").write_bytes(b"PF\n1 1\n-1.0\n")
    with pytest.raises(RecordedError, match="not a one-channel PFM"):
        read_pfm(tmp_path / "rendered_depth_maps" / "00000000.pfm")


def test_seven_scenes_is_read_in_its_format(tmp_path, recorded):
    names = [(f"frame-{n:06d}.color.png", f"frame-{n:06d}.depth.png") for n in (3, 8)]
    write_rgbd(tmp_path, recorded, names)
    for n, T in zip((3, 8), recorded.T, strict=True):
        np.savetxt(tmp_path / f"frame-{n:06d}.pose.txt", inverse(T))
    np.savetxt(tmp_path / "camera-intrinsics.txt", recorded.K)
    pairs = SevenScenesPairs(tmp_path)
    assert len(pairs) == 1
    recorded.check(pairs)
    with pytest.raises(RecordedError, match="2 apart"):
        SevenScenesPairs(tmp_path, gaps=(1, 2))


def test_real_seven_scenes_frames_have_warps_that_hold(shared_data):
    pairs = SevenScenesPairs(shared_data / "sevenscenes", gaps=(10,))
    sample = pairs.pair(len(pairs) // 2, (320, 240))
    known = np.isfinite(sample.warp01[..., 0])
    assert known.mean() > 0.3
    difference = np.abs(sampled(sample.image1, sample.warp01) - sample.image0)
    still = np.abs(sample.image1.astype(np.float32) - sample.image0)
    assert np.median(difference[known]) < 0.75 * np.median(still[known])
    assert np.nanmedian(there_and_back(sample.warp01, sample.warp10)) < 0.5


def test_resizing_a_recorded_view_keeps_points_on_their_pixels():
    image = np.zeros((120, 200), np.uint8)
    cv2.circle(image, (150, 40), 6, 255, -1)
    depth = np.full((60, 100), 2.0, np.float32)
    K = np.array([[180.0, 0, 99.5], [0, 180, 59.5], [0, 0, 1]])
    point = np.linalg.inv(K) @ [150, 40, 1] * 2
    resized, inverse_depth, K_resized = RecordedView(image, depth, K, np.eye(4)).resized((96, 72))
    pixel = (K_resized @ point)[:2] / point[2]
    total = resized.astype(np.float64)
    v, u = np.mgrid[0:72, 0:96]
    centre = np.array([(u * total).sum(), (v * total).sum()]) / total.sum()
    assert np.abs(centre - pixel).max() < 0.1
    assert (inverse_depth == 0.5).all()


def test_a_rotation_alone_needs_no_depth():
    K = intrinsics(SIZE, 60)
    T = rigid(rotation_matrix(np.array([0.05, -0.08, 0.1])), np.zeros(3))
    far = np.full((SIZE[1], SIZE[0]), 0.2, np.float32)
    near = np.full_like(far, 0.9)
    warps = [warp_by_depth(d, d, K, K, T, tolerance=0.5) for d in (far, near)]
    assert np.nanmax(np.abs(warps[0] - warps[1])) < 1e-3
