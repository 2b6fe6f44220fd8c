"""The compact network: positions of its features, results of each stage, and valid output for any input."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from loftr_ros.matcher.checkpoints.files import save_network_weights
from loftr_ros.matcher.coarse import Candidates
from loftr_ros.matcher.compact import fine as compact_fine
from loftr_ros.matcher.compact.backbone import CompactBackbone
from loftr_ros.matcher.compact.cells import CellMatcher, cells_around_region, cells_in_region, place_around_region
from loftr_ros.matcher.compact.fine import ONE_SIGMA, CompactFine, Windows
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.compact.region_transformer import RegionTransformer, pool_mask, rotated
from loftr_ros.matcher.config import COMPACT, CompactConfig
from loftr_ros.matcher.convolutions import twice
from loftr_ros.matcher.interface import Matches
from loftr_ros.matcher.ring import FeatureRing

CPU = torch.device("cpu")
PRECISIONS = [torch.float32, torch.bfloat16]


def lenient(**coarse: float) -> CompactConfig:
    """The preset with a threshold that even random weights pass."""
    return dataclasses.replace(COMPACT, coarse=dataclasses.replace(COMPACT.coarse, **{"threshold": 1e-3, **coarse}))


@lru_cache
def network(dtype: torch.dtype = torch.float32, border: int = 2) -> Compact:
    torch.manual_seed(0)
    built = Compact(lenient(border=border)).eval()
    with torch.no_grad():
        backbone = built.backbone
        image = blobs(96, 128)[None, None] / 255
        for projection, index in ((backbone.region_projection, 0), (backbone.cell_projection, 1)):
            features = backbone(image)[index]  # of random weights: nearly the same everywhere
            gain = 4 / features.std(dim=(2, 3)).mean()
            assert projection.bias is not None
            projection.weight *= gain
            projection.bias -= features.mean(dim=(0, 2, 3))
            projection.bias *= gain
    return built.prepare(CPU, dtype)


def blobs(height: int, width: int, seed: int = 0) -> Tensor:
    """(H, W) uint8, smooth structure at every place."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 1, height // 4 + 2, width // 4 + 2, generator=generator)
    large = nn.functional.interpolate(small, size=(height, width), mode="bicubic")[0, 0]
    return (large.clamp(0, 1) * 255).to(torch.uint8)


def test_the_preset_is_as_small_as_is_said(tmp_path: object) -> None:
    built = Compact(COMPACT)
    assert sum(parameter.numel() for parameter in built.parameters()) < 2_000_000
    path = tmp_path / "compact.safetensors"  # type: ignore[operator]
    save_network_weights(path, built.state_dict(), COMPACT, "a test")
    assert path.stat().st_size < 8_000_000


@torch.no_grad()
def test_features_stand_at_the_centres_of_their_cells() -> None:
    torch.manual_seed(0)
    backbone = CompactBackbone(COMPACT.backbone).eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):  # kernels that are their own mirror images
            module.weight.copy_((module.weight + module.weight.flip(2, 3)) / 2)
    image = torch.rand(1, 1, 96, 128, generator=torch.Generator().manual_seed(1))
    turned = backbone(image.flip(2, 3))
    for features, of_turned, stride in zip(backbone(image), turned, (16, 8, 2), strict=True):
        assert features.shape[2:] == (96 // stride, 128 // stride)
        torch.testing.assert_close(of_turned.flip(2, 3), features, rtol=1e-4, atol=1e-5)


def test_attention_knows_how_far_apart_regions_are_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(32, generator=generator).expand(1, 1, 5 * 7, 32)
    key = torch.randn(32, generator=generator).expand(1, 1, 5 * 7, 32)
    logits = (rotated(query, (5, 7), 1) @ rotated(key, (5, 7), 1).transpose(2, 3)).view(5, 7, 5, 7)
    # Down by one, left by two: the same wherever it starts.
    same = torch.stack([logits[row, column, row + 1, column - 2] for row in range(4) for column in range(2, 7)])
    torch.testing.assert_close(same, same[:1].expand_as(same), rtol=1e-4, atol=1e-4)
    assert (logits[0, 3, 1, 1] - logits[0, 3, 1, 5]).abs() > 1e-2


def test_pooled_keys_lie_between_the_regions_that_they_are_of() -> None:
    generator = torch.Generator().manual_seed(0)
    same = torch.randn(32, generator=generator)
    query = rotated(same.expand(1, 1, 16, 32), (4, 4), 1)
    key = rotated(same.expand(1, 1, 4, 32), (2, 2), 2)
    logits = (query @ key.transpose(2, 3)).view(4, 4, 2, 2)
    # A rotation and its inverse look alike to a vector: opposite corners are equally off.
    for row in range(2):
        for column in range(2):
            block = logits[2 * row : 2 * row + 2, 2 * column : 2 * column + 2, row, column]
            torch.testing.assert_close(block, block.flip(0, 1), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(block, logits[:2, :2, 0, 0], rtol=1e-4, atol=1e-4)


def test_what_is_masked_is_not_attended_to() -> None:
    torch.manual_seed(0)
    transformer = RegionTransformer(32, dataclasses.replace(COMPACT.transformer, num_heads=2)).eval()
    tokens0, tokens1 = torch.randn(1, 24, 32), torch.randn(1, 24, 32)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[:2] = False
    changed = tokens1.clone()
    changed[:, :12] += 3
    # Pooling goes over blocks of two by two regions: none is half masked here.
    seen, seen_changed = (
        transformer.layers[1](tokens0, (4, 6), tokens, (4, 6), mask.flatten()[None], rotate=False)
        for tokens in (tokens1, changed)
    )
    torch.testing.assert_close(seen, seen_changed)
    assert pool_mask(torch.zeros(1, 24, dtype=torch.bool), (4, 6)).all(), "a softmax over nothing"


def test_both_images_of_a_pair_are_treated_alike() -> None:
    torch.manual_seed(0)
    transformer = RegionTransformer(32, dataclasses.replace(COMPACT.transformer, num_heads=2)).eval()
    tokens0, tokens1 = torch.randn(2, 24, 32), torch.randn(2, 24, 32)
    forth = transformer(tokens0, tokens1, (4, 6), (4, 6))
    back = transformer(tokens1, tokens0, (4, 6), (4, 6))
    torch.testing.assert_close(forth, back[::-1])
    everything = torch.ones(2, 24, dtype=torch.bool)
    apart = transformer(tokens0, tokens1, (4, 6), (4, 6), everything, everything)
    torch.testing.assert_close(forth, apart, rtol=1e-4, atol=1e-5)


def test_candidates_are_the_cells_of_a_region_and_those_around_it() -> None:
    grid = (6, 8)
    region = torch.tensor([0, 5, 11])  # of a grid of 3 x 4
    assert cells_in_region(region, grid).tolist()[1] == [2 * 8 + 2, 2 * 8 + 3, 3 * 8 + 2, 3 * 8 + 3]
    cells, inside = cells_around_region(region, grid)
    assert cells[1].tolist() == [row * 8 + column for row in range(1, 5) for column in range(1, 5)]
    assert inside.sum(dim=1).tolist() == [9, 16, 9]
    every = torch.arange(48).expand(3, -1)
    place = place_around_region(every, region, grid)
    for number in range(3):
        there = {int(cell): index for index, cell in enumerate(cells[number]) if inside[number, index]}
        assert {int(cell): int(place[number, cell]) for cell in every[0] if place[number, cell] >= 0} == there


def test_cells_find_their_likes_and_those_without_stay_alone() -> None:
    torch.manual_seed(0)
    matcher = CellMatcher(4, 16, 0.1)
    grid = (6, 8)
    vectors1 = nn.functional.normalize(torch.randn(48, 16), dim=1) * 6
    vectors0 = vectors1.roll(1, dims=0)  # a cell's match is one to the left
    vectors0[2 * 8 + 3] = 0
    with torch.no_grad():
        matcher.none.fill_(2.0)
        found = matcher(
            vectors0, vectors1, grid, grid, Candidates(torch.tensor([5]), torch.tensor([5]), torch.tensor([0.9])), 0.2
        )
    assert found.row.tolist() == [18, 26, 27]
    assert found.column.tolist() == [17, 25, 26]
    assert (found.value > 0.5).all() and (found.value <= 0.9).all()


def test_no_cell_of_either_image_is_matched_twice() -> None:
    matches = matched(96, 128)
    assert len(matches) > 20
    assert len(set(matches.cell.tolist())) == len(matches)
    assert matches.cell.tolist() == sorted(matches.cell.tolist())


def matched(height: int, width: int, dtype: torch.dtype = torch.float32, **settings: int) -> Matches:
    model = network(dtype, **settings)
    first = model.encode(blobs(height, width))
    return model.match([model.complete(first)], first)[0]


@pytest.mark.parametrize(("across", "down"), [(0, 0), (3, -2), (-1, 3)])
def test_the_fine_stage_finds_a_shift_of_whole_features(across: int, down: int) -> None:
    torch.manual_seed(0)
    fine = CompactFine(COMPACT.fine, 24)
    with torch.no_grad():
        fine.sharpness.fill_(50.0)
        scene = torch.randn(1, 24, 48, 64)
        cells = torch.tensor([[3 * 16 + 4, 5 * 16 + 9]])
        found = fine(scene, scene.roll((down, across), (2, 3)), cells, cells, torch.eye(2).expand(1, 2, 2, 2))
    torch.testing.assert_close(found.offset, torch.tensor([[2.0 * across, 2.0 * down]] * 2), rtol=0, atol=0.02)


def test_the_expectation_is_over_the_heat_maps_peak_and_leaves_another_alone() -> None:
    stage, side = CompactFine(COMPACT.fine, 24), 2 * COMPACT.fine.reach + 1
    quarters = torch.full((1, 4, side, side), -20.0)
    quarters[..., 2, 4], quarters[..., 2, 5] = 2.0, 2.0  # a row above the middle, between one and two columns beside
    quarters[..., 6, 0] = 1.8
    found = stage._read(quarters.flatten(2))
    assert found.offset[0].tolist() == pytest.approx([2 * 1.5, 2 * -1.0], abs=1e-4)
    everywhere = found.log_heat.exp().view(side, side)
    assert everywhere.sum().item() == pytest.approx(1) and everywhere[6, 0] > 0.1


def test_a_peak_at_the_heat_maps_corner_is_expected_there() -> None:
    stage, side = CompactFine(COMPACT.fine, 24), 2 * COMPACT.fine.reach + 1
    quarters = torch.full((1, 4, side, side), -20.0)
    quarters[..., 0, side - 1] = 2.0
    reach = 2.0 * COMPACT.fine.reach
    assert stage._read(quarters.flatten(2)).offset[0].tolist() == pytest.approx([reach, -reach], abs=1e-4)


@pytest.mark.parametrize("first", [0, -3])
def test_windows_are_cut_where_they_should_be_with_and_without_a_gradient(first: int) -> None:
    fine = torch.randn(2, 5, 16, 24).to(memory_format=torch.channels_last)
    cells = torch.tensor([[0, 7, 23], [8, 13, 17]])
    side = 4 - 2 * first
    cut = Windows(fine, cells, first, side).cut(0, 6).view(2, 3, side, side, 5)
    padded = nn.functional.pad(fine, (4, 4, 4, 4))
    for image in range(2):
        for number, cell in enumerate(cells[image].tolist()):
            top, left = cell // 6 * 4 + first + 4, cell % 6 * 4 + first + 4
            expected = padded[image, :, top : top + side, left : left + side].permute(1, 2, 0)
            assert torch.equal(cut[image, number], expected)
    learned = Windows(fine.clone().requires_grad_(), cells, first, side).cut(0, 6)
    assert torch.equal(learned.view_as(cut), cut)


def test_windows_inside_of_the_image_are_the_same_without_a_rim_around_it() -> None:
    fine = torch.randn(1, 5, 16, 24).to(memory_format=torch.channels_last)
    inner = torch.tensor([[7, 10, 16]])
    cut = Windows(fine, inner, -3, 10).cut(0, 3)
    assert torch.equal(cut, Windows(fine, torch.cat([inner, torch.tensor([[0]])], dim=1), -3, 10).cut(0, 3))


def test_matches_are_refined_alike_by_the_tile_and_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fine, cells = CompactFine(COMPACT.fine, 24), torch.randint(0, 12 * 16, (1, 20))
    features, affine = torch.randn(2, 1, 24, 48, 64), torch.eye(2) + 0.3 * torch.randn(1, 20, 2, 2)
    with torch.no_grad():
        together = fine(*features, cells, cells.flip(1), affine)
        monkeypatch.setattr(compact_fine, "TILE_MATCHES", 7)
        tiles = fine(*features, cells, cells.flip(1), affine)
    learned = fine(*features.clone().requires_grad_(), cells, cells.flip(1), affine)
    for found in (tiles, learned):
        torch.testing.assert_close(found.offset, together.offset, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.scale, together.scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.04)])
def test_features_twice_as_large_are_those_of_bilinear_interpolation(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(2, 5, 3, 7).to(dtype).to(memory_format=torch.channels_last)
    expected = nn.functional.interpolate(x.float(), scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(twice(x).float(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(twice(x.clone().requires_grad_()).float(), expected, rtol=0, atol=tolerance)


def test_the_prepared_backbone_computes_what_the_trained_one_does() -> None:
    torch.manual_seed(0)
    network = Compact(COMPACT).eval()
    for module in network.backbone.modules():  # as after training: nothing is zero
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.data.normal_(0, 0.1)
    image = torch.rand(1, 1, 64, 96)
    with torch.no_grad():
        trained = network.backbone(image)
        prepared = network.prepare(torch.device("cpu"), torch.float32).backbone(image * 255)
    for expected, found in zip(trained, prepared, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_standard_deviation_holds_68_percent_of_the_errors_that_were_learned() -> None:
    error = torch.distributions.Laplace(0.0, 0.7).sample((200_000,)).abs()
    std = CompactFine(COMPACT.fine, 24).std(torch.tensor(0.7))
    assert abs(float((error < std).float().mean()) - 0.6827) < 0.005
    assert pytest.approx(1.148, abs=0.001) == ONE_SIGMA


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_an_image_matches_itself_cell_by_cell(dtype: torch.dtype) -> None:
    matches = matched(96, 128, dtype)
    near = (matches.points0 - matches.points1).abs().amax(dim=1) < 8
    assert near.float().mean() > 0.9
    column, row = matches.cell % 16, matches.cell // 16
    torch.testing.assert_close(matches.points0, torch.stack([column, row], dim=1) * 8 + 3.5)
    assert torch.isfinite(matches.std).all() and (matches.std > 0).all()


@pytest.mark.parametrize("border", [0, 2])
@pytest.mark.parametrize(("first", "second"), [((96, 128), (101, 67)), ((75, 130), (96, 128)), ((9, 200), (17, 33))])
def test_images_of_any_two_sizes_match_and_points_stay_inside(
    first: tuple[int, int], second: tuple[int, int], border: int
) -> None:
    model = network(border=border)
    features = [model.encode(blobs(*size, seed=seed)) for seed, size in enumerate((first, second))]
    matches = model.match(features[:1], features[1])[0]
    height, width = first
    assert torch.isfinite(matches.points1).all()
    assert (matches.points0 >= 0).all() and (matches.points0 <= torch.tensor([width - 1, height - 1])).all()


def test_several_keyframes_at_once_are_as_one_by_one() -> None:
    model = network()
    keyframes = [model.encode(blobs(96, 128, seed)) for seed in (0, 1)] + [model.encode(blobs(80, 128, 2))]
    current = model.encode(blobs(96, 128, 1))
    for keyframe, together in zip(keyframes, model.match(keyframes, current), strict=True):
        alone = model.match([keyframe], current)[0]
        assert torch.equal(together.cell, alone.cell)
        torch.testing.assert_close(together.points1, alone.points1, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_masked_pixels_and_images_without_contrast_match_nothing(dtype: torch.dtype) -> None:
    model = network(dtype)
    image = blobs(96, 128)
    usable = torch.ones(96, 128, dtype=torch.bool)
    usable[:, 40:90] = False
    masked, whole = model.encode(image, usable), model.encode(image)
    for first, second in ((masked, whole), (whole, masked)):
        matches = model.match([first], second)[0]
        points = matches.points0 if first is masked else matches.points1
        assert len(matches) > 0
        assert usable[points[:, 1].round().long(), points[:, 0].round().long()].all()
    nothing = model.encode(image, torch.zeros_like(usable))
    constant = model.encode(torch.full((96, 128), 77, dtype=torch.uint8))
    for empty in (nothing, constant):
        matches = model.match([empty, whole], empty)[0]
        assert len(matches) == 0
        assert (matches.points1.shape, matches.std.dtype) == ((0, 2), torch.float32)


def test_the_ring_keeps_all_that_matching_needs() -> None:
    model, ring = network(), FeatureRing(2)
    features = model.encode(blobs(96, 128))
    kept = ring.keep(features)
    expected = model.match([features], features)[0]
    with torch.inference_mode():
        for value in (features.tokens, features.fine, features.cells):
            assert value is not None
            value.zero_()
    found = model.match([kept], model.encode(blobs(96, 128)))[0]
    assert torch.equal(found.cell, expected.cell) and torch.equal(found.points1, expected.points1)


def test_no_more_matches_come_than_were_asked_for() -> None:
    torch.manual_seed(0)
    model = Compact(lenient(max_matches=10))
    model.load_state_dict(Compact(lenient()).state_dict())
    model.prepare(CPU, torch.float32)
    features = model.encode(blobs(96, 128))
    assert len(model.match([features], features)[0]) <= 10


def test_without_attention_only_the_backbone_is_compared() -> None:
    config = dataclasses.replace(COMPACT, transformer=dataclasses.replace(COMPACT.transformer, layers=()))
    torch.manual_seed(0)
    model = Compact(config).prepare(CPU, torch.float32)
    first, second = model.encode(blobs(96, 128)), model.encode(blobs(96, 128, 1))
    scores = first.tokens[0] @ second.tokens[0].t() / (128 * config.coarse.temperature)
    torch.testing.assert_close(model.confidence(first, second), scores.softmax(0) * scores.softmax(1))
