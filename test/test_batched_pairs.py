"""Pairs made by torch: the same geometry and pictures as OpenCV's makers, on any device, and the same for a seed."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_pairs import picture
from pretended_device import GPU, Counts
from torch import Tensor

from loftr_ros.settings import ConfigError
from loftr_ros.training.asset_pack import SIDES, unpacked, write_pack
from loftr_ros.training.assets import PHOTO, TEXTURE, AssetBank, AssetError, AssetWriter, Origin
from loftr_ros.training.batched.filters import blurred, compressed, convolved
from loftr_ros.training.batched.pairs import KINDS, planners, reflection
from loftr_ros.training.batched.pictures import combined_pictures, draw_picture
from loftr_ros.training.batched.raycast import draw
from loftr_ros.training.batched.recipes import Recipe, Recipes, bank_pixels
from loftr_ros.training.batched.relights import combined, draw_relighting
from loftr_ros.training.batched.tables import TextureTable, cast, photo_view, scene_view, tabulate, with_looks
from loftr_ros.training.batched.warps import hide, warp_by_depth
from loftr_ros.training.config_file import config_of
from loftr_ros.training.data import MadeBatches, open_data
from loftr_ros.training.geometry import intrinsics, looking
from loftr_ros.training.geometry import warp_by_depth as warp_by_depth_of_one
from loftr_ros.training.homography import HomographyPairs, view
from loftr_ros.training.mixture import Curriculum, Mixture
from loftr_ros.training.photometric import motion_kernel
from loftr_ros.training.photos import PhotoViews
from loftr_ros.training.relight import KINDS as LIGHTS
from loftr_ros.training.scenes import make_surfaces
from loftr_ros.training.stage import Gloss, SurfaceStage
from loftr_ros.training.supervision import PairBatch, TaughtBatch, batch_on
from loftr_ros.worlds.rasterizer import Surfaces, render
from loftr_ros.worlds.texturing import FAST, Material, pyramid

CPU = torch.device("cpu")
SIZE = (160, 120)
SCENES = tuple(kind for kind in KINDS if kind != "homography")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> AssetBank:
    folder = tmp_path_factory.mktemp("assets")
    with AssetWriter(folder) as writer:
        for number, kind in enumerate((PHOTO, TEXTURE)):
            images = [(f"{a}{b}.png", picture(100 * number + 8 * i + k, 240, 320, 8)) for i, a in enumerate("abcd")
                      for k, b in enumerate("abcdefgh")]  # fmt: skip
            writer.add_all(Origin(kind, "1", "CC0"), kind, images)
    return AssetBank(folder)


@pytest.fixture(scope="module")
def pixels(bank: AssetBank) -> Tensor:
    return bank_pixels(bank.folder, CPU)


def recipes(bank: AssetBank, *kinds: str, size: int = 3, light: float = 0.5, photos: int = 0, seed: int = 3) -> Recipes:
    every = planners(bank)
    curriculum = Curriculum(0.8, 0.8, 0)
    mixture = Mixture({kind: every[kind] for kind in kinds}, dict.fromkeys(kinds, 1.0), seed, curriculum)
    of_photos = PhotoViews(bank, photos, 0.5, seed) if photos else None
    return Recipes(bank, mixture, size, 100, light, (SIZE,), of_photos)


# Drawing


@pytest.mark.parametrize("kind", SCENES)
def test_a_scene_is_drawn_as_the_rasterizer_draws_it(bank: AssetBank, pixels: Tensor, kind: str) -> None:
    K = intrinsics(SIZE, 70)
    for seed in range(2):
        stage = make_surfaces(bank, np.random.default_rng(seed), 0.5, kind)
        expected = render(stage.scene, K, SIZE, stage.T_camera_world, FAST)
        textures = TextureTable(len(pixels))
        one = with_looks(scene_view(stage.scene, K, SIZE, stage.T_camera_world), stage.scene, textures)
        drawn = draw(tabulate([one], SIZE, textures), pixels)
        surface, depth = drawn.surface[0].numpy(), drawn.inverse_depth[0].numpy()
        same = surface == expected.surface
        assert same.mean() > 0.999
        assert np.quantile(np.abs(depth - expected.inverse_depth)[same] / expected.inverse_depth.max(), 0.999) < 1e-5
        images = (
            cv2.GaussianBlur(each.astype(np.float32), (0, 0), 1) for each in (drawn.image[0].numpy(), expected.image)
        )
        assert np.abs(np.subtract(*images)).mean() < 2.0
        # Single rays find the same.
        points = np.random.default_rng(1).integers(0, SIZE, (100, 2))
        w, numbers = cast(one, points)
        assert (numbers == surface[points[:, 1], points[:, 0]]).mean() > 0.98
        assert np.median(np.abs(w - depth[points[:, 1], points[:, 0]])) < 1e-6


def test_views_of_a_batch_do_not_depend_on_what_is_drawn_beside_them(bank: AssetBank, pixels: Tensor) -> None:
    K, textures, views = intrinsics(SIZE, 70), TextureTable(len(pixels)), []
    for seed, kind in enumerate(SCENES):
        stage = make_surfaces(bank, np.random.default_rng(seed), 0.5, kind)
        views.append(with_looks(scene_view(stage.scene, K, SIZE, stage.T_camera_world), stage.scene, textures))
    together = draw(tabulate(views, SIZE, textures), pixels)
    alone = draw(tabulate(views[1:2], SIZE, textures), pixels)
    torch.testing.assert_close(together.image[1:2], alone.image)
    assert torch.equal(together.surface[1:2], alone.surface)


def test_a_photo_under_a_homography_is_what_opencv_warps(bank: AssetBank, pixels: Tensor) -> None:
    for seed in range(3):
        planned = HomographyPairs(bank).plan(np.random.default_rng(seed), SIZE, 0.7)
        textures = TextureTable(len(pixels))
        tables = tabulate([photo_view(planned.levels, planned.photo_0, SIZE, textures)], SIZE, textures)
        expected = view(planned.levels, planned.photo_0, SIZE)
        assert np.abs(draw(tables, pixels).image[0].numpy() - expected).mean() < 1.5


def test_a_glossy_floor_shows_a_lamp_where_the_law_of_reflection_puts_it(pixels: Tensor) -> None:
    scene = Surfaces()
    dark, bright = (Material(pyramid(np.full((16, 16), tone, np.uint8), 4)) for tone in (40, 250))
    scene.quad(np.zeros(3), np.array([0.0, 10, 0]), np.array([10.0, 0, 0]), dark)
    scene.quad(np.array([6.8, 4.8, 2.0]), np.array([0.4, 0, 0]), np.array([0, 0.4, 0]), bright)
    eye = np.array([1.0, 5, 1.2])
    T = looking(eye, np.array([1.0, 0, -0.2]))
    K, textures = intrinsics(SIZE, 80), TextureTable(len(pixels))
    stage = SurfaceStage(scene, T, gloss=Gloss(1, 0.0, 0.5, 0.0))
    mirrored = reflection(stage, K, SIZE, T, textures)
    assert mirrored is not None
    shown = draw(tabulate([mirrored.view], SIZE, textures), pixels).image[0].numpy()
    lamp = K @ (T @ np.array([7.0, 5, -2.0, 1]))[:3]  # below the floor by as much as it is above
    u, v = lamp[:2] / lamp[2]
    assert shown[round(v), round(u)] > 240
    bright_rows, bright_columns = np.nonzero(shown > 200)
    assert abs(bright_rows.mean() - v) < 1 and abs(bright_columns.mean() - u) < 1


# Correspondence


@pytest.mark.parametrize("kind", KINDS)
def test_a_made_pixels_partner_is_the_point_at_its_depth_and_visibility_that_of_the_other_maker(
    bank: AssetBank, pixels: Tensor, kind: str
) -> None:
    recipe = recipes(bank, kind, size=2, light=0.0)[0]
    drawn = draw(recipe.tables, pixels)
    motions = torch.from_numpy(recipe.motions)[0]
    w, surface = drawn.inverse_depth, drawn.surface
    warps = warp_by_depth(w[:2], w[2:4], surface[:2], surface[2:4], motions[..., :3], motions[..., 3]).numpy()
    middle = np.array([[1, 0, (SIZE[0] - 1) / 2], [0, 1, (SIZE[1] - 1) / 2], [0, 0, 1]])
    for k in range(2):
        M, b = middle @ recipe.motions[0, k, :, :3] @ np.linalg.inv(middle), middle @ recipe.motions[0, k, :, 3]
        v, u = np.nonzero(np.isfinite(warps[k, ..., 0]))
        assert len(u) > 0.1 * SIZE[0] * SIZE[1]
        x, y, z = M @ np.stack([u, v, np.ones_like(u)]) + b[:, None] * w[k].numpy()[v, u]
        assert np.abs(warps[k, v, u] - np.stack([x / z, y / z], axis=1)).max() < 0.01
        # As a pose with these pixel coordinates: K is 1, R is M, t is b.
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = M, b
        both = surface[k].numpy().astype(np.uint8), surface[2 + k].numpy().astype(np.uint8)
        expected = warp_by_depth_of_one(w[k].numpy(), w[2 + k].numpy(), np.eye(3), np.eye(3), T, both)
        assert (np.isfinite(expected) == np.isfinite(warps[k])).mean() > 0.995


@pytest.mark.parametrize("kind", KINDS)
def test_a_made_pixel_and_its_partner_show_the_same_before_light_changes(
    bank: AssetBank, pixels: Tensor, kind: str
) -> None:
    recipe = recipes(bank, kind, size=3, light=0.0)[1]
    without = replace(recipe, glossy=())
    clean = draw(without.tables, pixels).image[:6].numpy()
    made = without.make_of(pixels)
    for k in range(3):
        image0, image1 = (cv2.GaussianBlur(clean[n], (0, 0), 1) for n in (k, 3 + k))
        for image, other, warp in ((image0, image1, made.warp01[k]), (image1, image0, made.warp10[k])):
            at = warp.numpy()
            shown = cv2.remap(other, np.nan_to_num(at, nan=-1), None, cv2.INTER_LINEAR)
            known = np.isfinite(at[..., 0])
            assert np.median(np.abs(shown - image)[known]) < 6
            # Better than pixels that are not partners: the shape of the image, shuffled, is as far as it gets.
            assert np.abs(shown - image)[known].mean() < 0.5 * np.abs(np.roll(image, 40, 1) - image)[known].mean() + 3


def test_what_a_nearer_board_hides_has_no_partner_and_what_is_covered_neither() -> None:
    wall, board = torch.full((1, 40, 60), 0.25), torch.full((1, 40, 60), 0.25)
    surface0 = torch.ones(1, 40, 60, dtype=torch.int16)
    surface1 = surface0.clone()
    board[:, :, 20:30], surface1[:, :, 20:30] = 0.5, 2
    M, b = torch.eye(3)[None], torch.tensor([[-8.0, 0, 0]])  # the wall moves by 8 / 4 px to the left
    warp = warp_by_depth(wall, board, surface0, surface1, M, b)
    assert torch.isnan(warp[:, :, 22:32]).all()
    assert torch.isfinite(warp[:, :, 34:]).all() and torch.isfinite(warp[:, :, 3:20]).all()
    torch.testing.assert_close(warp[0, 7, 40], torch.tensor([38.0, 7.0]))
    covered = torch.zeros(1, 40, 60, dtype=torch.bool)
    covered[:, 5:10, 36:40] = True
    none = torch.zeros_like(covered)
    there, back = hide(warp, warp.clone(), none, covered)
    assert torch.isnan(there[:, 5:10, 38:42]).all() and torch.isnan(back[:, 5:10, 36:40]).all()
    assert torch.isfinite(there[:, 12:, 38:42]).all()


# Light and cameras


def test_filters_are_opencvs() -> None:
    image = picture(3, 96, 128, 8)
    one = torch.from_numpy(image).float()[None].repeat(3, 1, 1) / 255
    soft = blurred(one, np.array([0.0, 0.8, 3.0])) * 255
    assert torch.equal(soft[0], one[0] * 255)
    for k, sigma in ((1, 0.8), (2, 3.0)):
        expected = cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma)
        assert np.abs(soft[k].numpy() - expected).max() < 0.5
    kernel = motion_kernel(7.0, 0.6)
    moved = convolved(one[:1] * 255, torch.from_numpy(kernel)[None])[0].numpy()
    assert np.abs(moved - cv2.filter2D(image.astype(np.float32), -1, kernel)).max() < 0.01


@pytest.mark.parametrize("quality", [20, 60, 95])
def test_compression_leaves_what_jpeg_leaves(quality: int) -> None:
    image = picture(4, 93, 130, 8)  # no multiples of a block
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    expected = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE).astype(np.float32)
    found = compressed(torch.from_numpy(noisy).float()[None] / 255, np.array([quality], np.float32))[0].numpy() * 255
    assert np.abs(found - expected).mean() < 0.4  # libjpeg's cosines are whole numbers
    assert np.abs(expected - noisy).mean() > 3 * np.abs(found - expected).mean()


@pytest.mark.parametrize("kind", LIGHTS)
def test_other_light_changes_the_picture_and_not_the_place_of_its_edges(kind: str) -> None:
    image = torch.full((13, 120, 160), 70 / 255)
    image[..., 80:] = 190 / 255
    drawn = draw_relighting(np.random.default_rng(4), range(12), (160, 120), kind)
    changed = combined(drawn).apply(image, torch.Generator().manual_seed(1))
    assert torch.equal(changed[12], image[12])
    assert float(changed.min()) >= 0 and float(changed.max()) <= 1
    edges = blurred(changed[:12], np.full(12, 2.0)).diff(dim=2).abs().mean(dim=1).argmax(dim=1)
    assert int(((edges - 79).abs() <= 2).sum()) >= 9
    assert all(not torch.equal(changed[k], image[k]) for k in range(12))


def test_pictures_move_nothing_and_say_what_covers_them() -> None:
    clean = torch.from_numpy(picture(5, 120, 160, 8)).float()[None].repeat(40, 1, 1) / 255
    rng = np.random.default_rng(2)
    pictures = combined_pictures([draw_picture(rng, (160, 120), 1.0) for _ in range(40)])
    made, hidden = pictures.apply(clean, torch.Generator().manual_seed(0))
    assert made.shape == hidden.shape == clean.shape
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    assert torch.equal(made, (made * 255).round() / 255)
    covered = hidden.flatten(1).float().mean(dim=1)
    assert 0 < int((covered > 0).sum()) < 15 and float(covered.max()) < 0.6
    # A shift shows in the correlation with the image's own slopes, whatever gain and offset.
    soft = blurred(torch.cat([clean[:1], made]), np.full(41, 2.0)).numpy().astype(np.float64)
    down, along = np.gradient(soft[0])
    terms = np.stack([soft[0], np.ones_like(soft[0]), along, down], axis=-1)[8:-8, 8:-8].reshape(-1, 4)
    gain, _, *slopes = np.linalg.lstsq(terms, soft[1:, 8:-8, 8:-8].reshape(40, -1).T, rcond=None)[0]
    shifts = -np.array(slopes)[:, (gain > 0.2) & (covered.numpy() == 0)] / gain[(gain > 0.2) & (covered.numpy() == 0)]
    assert shifts.shape[1] > 20
    assert np.abs(np.median(shifts, axis=1)).max() < 0.05
    assert np.median(np.abs(shifts), axis=1).max() < 0.15


# Batches


def assert_equal_batches(one: PairBatch, two: PairBatch) -> None:
    for name, value in vars(one).items():
        assert torch.equal(torch.nan_to_num(value.float(), -1), torch.nan_to_num(getattr(two, name).float(), -1)), name


def test_a_batch_depends_on_seed_and_number_alone(bank: AssetBank, pixels: Tensor) -> None:
    made = recipes(bank, "homography", "interior", photos=2)[5]
    batch = made.make_of(pixels)
    assert isinstance(batch, TaughtBatch)
    assert batch.image0.shape == batch.image1.shape == (3, 1, SIZE[1], SIZE[0])
    assert batch.warp01.shape == batch.warp10.shape == (3, SIZE[1], SIZE[0], 2)
    assert batch.seen.shape == batch.taught.shape == (2, 1, SIZE[1], SIZE[0])
    assert batch.complete.all() and not batch.image0.requires_grad
    again: Recipe = pickle.loads(
        pickle.dumps(recipes(bank, "interior", "homography", photos=2)[5])
    )  # as data processes do
    assert_equal_batches(batch, again.make(CPU))
    other = recipes(bank, "homography", "interior", photos=2, seed=4)[5].make_of(pixels)
    assert not torch.equal(batch.image0, other.image0)
    assert_equal_batches(batch, batch_on(again, CPU))


def test_the_student_sees_the_teachers_picture_or_a_changed_one(bank: AssetBank, pixels: Tensor) -> None:
    made = recipes(bank, "homography", size=1, photos=12)[0].make_of(pixels)
    assert isinstance(made, TaughtBatch)
    differences = (made.seen - made.taught).abs().mean(dim=(1, 2, 3))
    assert 1 <= int((differences == 0).sum()) <= 8
    assert float(differences.max()) > 0.05


def test_one_of_two_views_is_in_other_light_as_often_as_it_should(bank: AssetBank) -> None:
    made = recipes(bank, "homography", size=40, light=0.5)[0]
    changed = {int(number) % 40 for _, which, _ in made.relighting.passes for number in which}
    assert 10 <= len(changed) <= 30
    assert not recipes(bank, "homography", size=40, light=0.0)[0].relighting.passes


def test_every_planned_pair_shares_at_least_a_tenth_of_each_view(bank: AssetBank, pixels: Tensor) -> None:
    for kind in SCENES:
        made = recipes(bank, kind, size=4, light=0.0)[2].make_of(pixels)
        # Exact on some hundred rays; the covered part is not counted there.
        for warp in (made.warp01, made.warp10):
            assert float(torch.isfinite(warp[..., 0]).float().mean(dim=(1, 2)).min()) > 0.05, kind


def test_a_batch_is_made_on_a_gpu_without_waiting_for_it(bank: AssetBank) -> None:
    launches = []
    for size in (2, 8):
        recipe = recipes(bank, *KINDS, size=size, photos=2)[1]
        with Counts() as counts:  # it refuses what waits, and operands on different devices
            made = recipe.make_of(torch.zeros(recipe.tables.bank_size, dtype=torch.uint8, device=GPU))
        assert made.image0.device == made.warp01.device == GPU
        launches.append(sum(counts.launches.values()) / recipe.tables.faces.shape[1])
    # They grow with the faces of the largest scene, not with the number of pairs.
    assert launches[1] < 3 * launches[0]


def test_an_interior_has_less_texture_than_a_room_and_is_closed(bank: AssetBank, pixels: Tensor) -> None:
    def flat(kind: str) -> float:
        drawn = draw(recipes(bank, kind, size=5, light=0.0)[0].tables, pixels)
        assert kind != "interior" or float((drawn.surface[:10] > 0).float().mean()) > 0.95
        slopes = drawn.image.diff(dim=2).abs()
        return float((slopes < 2).float().mean())

    interior = flat("interior")
    assert interior > 0.75
    assert interior > flat("room") + 0.1


# Settings, and assets in one file


def config(bank: AssetBank, data_device: str = "auto", **changes: object) -> dict[str, object]:
    return {
        "budget": {"max_steps": 2},
        "data": {"assets": str(bank.folder), "batch_size": 2, "sizes": [[64, 64]], **changes},
        "made": {"homography": 1.0, "interior": 1.0, "room": 0, "clutter": 0, "street": 0, "relief": 0},
        "machine": {"accelerator": "cpu", "data_device": data_device},
    }


def test_a_training_on_the_cpu_gets_made_batches_of_either_split(bank: AssetBank) -> None:
    data = open_data(config_of(config(bank)))
    assert isinstance(data.train, MadeBatches) and isinstance(data.held_out, MadeBatches)
    assert data.train.recipes.bank.validation is False and data.held_out.recipes.bank.validation is True
    assert isinstance(data.train[0], PairBatch)
    assert_equal_batches(data.held_out[1], open_data(config_of({**config(bank), "seed": 7})).held_out[1])


def test_a_training_learns_from_made_batches_in_parts_and_resumes(bank: AssetBank, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from loftr_ros.training.callbacks import BEST, CHECKPOINT, LAST
    from loftr_ros.training.trainer import train

    backbone = {"initial_dim": 8, "block_dims": [8, 12, 16], "fine_level": 1}
    attention = {"num_heads": 2, "layers": ["self", "cross"]}
    content = config(bank) | {
        "network": {
            "preset": "loftr",
            "changes": {"backbone": backbone, "transformer": attention, "fine": {"transformer": {"num_heads": 2}},
                        "position_slip": False},
        },
        "budget": {"max_steps": 3, "part_minutes": 1e-6},
        "validation": {"batches": 1},
    }  # fmt: skip
    content["machine"] = {"accelerator": "cpu", "precision": "float32", "workers": 0, "data_device": "auto"}
    for step in (1, 2):
        settings = config_of(content)
        train(settings, open_data(settings), tmp_path, resume=step > 1, progress=False)
        checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
        assert checkpoint["global_step"] == step
        assert (tmp_path / BEST).is_file() and (tmp_path / LAST).is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"made": {"relief": 1.0}}, r"torch does not make relief; set made\.relief to 0"),
        ({"machine": {"accelerator": "cpu", "data_device": "cuda"}}, "the training is on the CPU"),
        ({"data": {"recorded": [{"set": "scannet"}]}}, "torch makes no recorded pairs"),
        ({"machine": {"data_device": "gpu"}}, "data_device"),
    ],
)
def test_what_torch_cannot_make_is_refused(bank: AssetBank, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_data(config_of({**config(bank), **changes}))


def test_assets_in_one_file_are_the_same_images_smaller(bank: AssetBank, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(SIDES, TEXTURE, 160)
    file = tmp_path / "assets.zip"
    images, quality = write_pack(bank.folder, file)
    assert (images, quality) == (64, 85)
    folder = unpacked(file, tmp_path / "again")
    for validation in (False, True):
        before, after = AssetBank(bank.folder, validation), AssetBank(folder, validation)
        assert [a.name for a in before.photos] == [a.name for a in after.photos]
        assert [a.name for a in before.textures] == [a.name for a in after.textures]
    photo = np.abs(before.levels(before.photos[0])[0].astype(float) - after.levels(after.photos[0])[0])
    assert 0 < photo.mean() < 3
    assert after.levels(after.textures[0])[0].shape == (120, 160)
    assert "| photo | 1 | CC0 | 32 |" in (folder / "LICENCES.md").read_text()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = open_data(config_of(config(bank, assets=str(file))))
    assert isinstance(data.train, MadeBatches) and len(data.train.recipes.bank.photos) == len(AssetBank(folder).photos)
    with pytest.raises(AssetError, match=r"do not fit into 0\.01 MB"):
        write_pack(bank.folder, file, 10_000)
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(AssetError, match="is no pack of training assets"):
        unpacked(tmp_path / "no.zip", tmp_path / "other")
