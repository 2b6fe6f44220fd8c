"""Parts of the full network: fine stage, optimal transport, masks, borders, attention. Without real data."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from made_weights import network, rendered_pair

from loftr_ros.matcher import coarse
from loftr_ros.matcher.build import build_network
from loftr_ros.matcher.coarse import dual_softmax
from loftr_ros.matcher.config import LOFTR, PRESETS, LoFTRConfig, TransformerConfig
from loftr_ros.matcher.interface import Matches
from loftr_ros.matcher.loftr import backbone, fine, transformer
from loftr_ros.matcher.loftr.attention import full_attention, linear_attention
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.loftr.transport import assignment_matrix, optimal_transport

CPU = torch.device("cpu")
EVERY_PRECISION = [torch.float32, torch.bfloat16, torch.float16]


def small(**changes: object) -> LoFTRConfig:
    """The full network with a few channels; `changes` apply to its coarse matching."""
    backbone = dataclasses.replace(LOFTR.backbone, initial_dim=16, block_dims=(16, 24, 32))
    matching = dataclasses.replace(LOFTR.coarse, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(LOFTR, backbone=backbone, coarse=matching)


def small_network(dtype: torch.dtype = torch.float32, config: LoFTRConfig | None = None) -> LoFTR:
    """Random, but calibrated on an image and with distinctive features: an image matches itself cell by cell."""
    torch.manual_seed(0)
    model = LoFTR(config or small(threshold=1e-3, border=0))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.backbone(blobs(96, 128, seed=9)[None, None] / 255)
        model.backbone.get_submodule("layer3_outconv").weight.mul_(4)
    return model.prepare(CPU, dtype)


def blobs(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 1, height // 6 + 2, width // 6 + 2, generator=generator)
    return (torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0, 0].clamp(0, 1) * 255).byte()


def equal(left: Matches, right: Matches, tolerance: float = 1e-4) -> None:
    assert left.cell.tolist() == right.cell.tolist()
    for name in ("points0", "points1", "confidence", "std"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [(64, 96), (65, 90), (71, 103)])
def test_windows_smoothed_by_themselves_equal_those_of_the_whole_map_up_to_the_edge(size: tuple[int, int]) -> None:
    model = small_network()
    first = second = model.encode(blobs(*size))
    assert first.fine is None and first.unsmoothed is not None
    by_window = model.match([first], second)[0]
    whole = model.match([model.complete(first)], model.complete(second))[0]
    columns = first.grid[1]
    at_edge = (by_window.cell < columns) | (by_window.cell % columns == 0) | (by_window.cell % columns == columns - 1)
    assert len(by_window) > 5 and at_edge.any()
    equal(by_window, whole)


def test_more_matches_than_a_tile_give_what_one_tile_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_network()
    first, second = model.encode(blobs(64, 96)), model.encode(blobs(64, 96).roll((1, 2), (0, 1)))
    expected = model.match([first], second)[0]
    monkeypatch.setattr(fine, "TILE_MATCHES", 3)
    assert len(expected) > 3
    equal(model.match([first], second)[0], expected)


def test_windows_that_overlap_are_smoothed_once_for_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_network()
    features = model.encode(blobs(96, 128))
    asked: list[int] = []
    smooth = model.backbone.smooth_places
    monkeypatch.setattr(
        model.backbone, "smooth_places", lambda x, wanted: asked.append(int(wanted.sum())) or smooth(x, wanted)
    )
    matches = model.match([model.complete(features)] * 2, features)
    assert len(asked) == 1, "of the current image; not of the keyframe, and not for each pair"
    assert asked[0] < 25 * len(matches[0]), "what two windows share counts once"


def test_places_of_the_map_equal_those_of_the_whole_map_which_is_made_where_it_costs_less() -> None:
    model = small_network()
    unsmoothed = model.encode(blobs(65, 90)).unsmoothed
    assert unsmoothed is not None
    whole = model.backbone.smooth(unsmoothed)
    wanted = torch.zeros(unsmoothed.shape[2:], dtype=torch.bool)
    assert model.backbone.smooth_places(unsmoothed, ~wanted) is None
    wanted[:5, :7] = wanted[-1, -3:] = wanted[12:17, 20:25] = True
    places = model.backbone.smooth_places(unsmoothed, wanted)
    assert places is not None
    torch.testing.assert_close(places[:, :, wanted], whole[:, :, wanted], rtol=1e-4, atol=1e-5)


def test_a_map_smoothed_in_bands_of_rows_equals_the_map_smoothed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_network()
    unsmoothed = model.encode(blobs(101, 90)).unsmoothed
    assert unsmoothed is not None
    whole = model.backbone.smooth(unsmoothed)
    monkeypatch.setattr(backbone, "BAND_BYTES", 1)
    with torch.inference_mode():
        bands = model.backbone.smooth(unsmoothed)
    torch.testing.assert_close(bands, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_match_with_the_same_image_moves_by_nothing_and_is_sure_of_it() -> None:
    model = network()
    image = rendered_pair()[0]
    features = model.complete(model.encode(image))
    matches = model.match([features], features)[0]
    assert len(matches) > 300
    assert (matches.points1 - matches.points0).norm(dim=1).median() < 0.05
    assert (matches.std >= 0).all() and matches.std.max() < 4


def test_points_of_image_0_sit_on_the_grid_and_those_of_image_1_within_a_window_of_it() -> None:
    model = network()
    first, second = rendered_pair()
    matches = model.match([model.encode(first)], model.encode(second))[0]
    columns = -(-first.shape[1] // 8)
    assert torch.equal(matches.points0, torch.stack([matches.cell % columns, matches.cell // columns], 1) * 8.0)
    from_grid = matches.points1 - (matches.points1 / 8).round() * 8
    assert from_grid.abs().max() <= 4
    assert (from_grid.abs() > 0.01).any()


def test_tiled_optimal_transport_equals_the_whole_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "TILE_SCORES", 2000)
    generator = torch.Generator().manual_seed(0)
    tokens0 = 6 * torch.randn(2, 150, 32, generator=generator)
    tokens1 = torch.cat([tokens0[:, 30:], 6 * torch.randn(2, 40, 32, generator=generator)], dim=1)
    alpha = torch.tensor(2.0)
    plan = assignment_matrix(tokens0, tokens1, alpha, 3)
    confidence = plan[:, :-1, :-1].clone()
    confidence[plan.argmax(dim=2)[:, :-1] == tokens1.shape[1]] = 0
    confidence.transpose(1, 2)[plan.argmax(dim=1)[:, :-1] == tokens0.shape[1]] = 0
    mutual = (confidence == confidence.amax(2, True)) & (confidence == confidence.amax(1, True)) & (confidence > 0.2)
    found = optimal_transport(tokens0, tokens1, alpha, 3, 0.2)
    assert 200 < mutual.sum() < 300
    assert torch.equal(torch.stack([found.pair, found.cell0, found.cell1], dim=1), mutual.nonzero())
    torch.testing.assert_close(found.confidence, confidence[mutual], rtol=1e-4, atol=1e-6)


def test_every_cell_of_the_plan_gives_and_takes_its_mass() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens0, tokens1 = (4 * torch.randn(1, n, 32, generator=generator) for n in (20, 30))
    plan = assignment_matrix(tokens0, tokens1, torch.tensor(1.0), 200)[0]
    torch.testing.assert_close(plan.sum(dim=1), torch.tensor([1.0] * 20 + [30.0]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(plan.sum(dim=0), torch.tensor([1.0] * 30 + [20.0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["dual_softmax", "optimal_transport"])
def test_a_cap_keeps_the_most_confident_matches_of_each_pair_in_the_order_of_their_cells(method: str) -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = 6 * torch.randn(2, 80, 32, generator=generator)
    noisy = tokens + torch.linspace(0.1, 4, 80)[None, :, None] * torch.randn(2, 80, 32, generator=generator)

    def match(limit: int) -> coarse.CoarseMatches:
        if method == "dual_softmax":
            return dual_softmax(tokens, noisy, 0.5, 0.05, max_matches=limit)
        return optimal_transport(tokens, noisy, torch.tensor(1.0), 3, 0.05, max_matches=limit)

    everything, capped = match(0), match(10)
    for pair in range(2):
        confidence = everything.confidence[everything.pair == pair]
        kept = capped.pair == pair
        assert int(kept.sum()) == 10 < len(confidence)
        assert capped.confidence[kept].min() == confidence.topk(10).values.min()
        assert (capped.cell0[kept].diff() > 0).all()


@pytest.mark.parametrize("dtype", EVERY_PRECISION)
def test_no_match_has_an_ignored_pixel_at_either_end(dtype: torch.dtype) -> None:
    model = small_network(dtype)
    usable0, usable1 = torch.ones(64, 96, dtype=torch.bool), torch.ones(64, 96, dtype=torch.bool)
    usable0[:, 50:] = False
    usable1[20:43, 13:70] = False
    image = blobs(64, 96)
    matches = model.match([model.encode(image, usable0)], model.encode(image, usable1))[0]
    assert 0 < len(matches) < len(model.match([model.encode(image)], model.encode(image))[0])
    for points, usable in ((matches.points0, usable0), (matches.points1, usable1)):
        column, row = points.round().long().clamp(min=0).unbind(dim=1)
        assert usable[row.clamp(max=63), column.clamp(max=95)].all()


@pytest.mark.parametrize("config", [small(), small(method="optimal_transport")], ids=["dual softmax", "transport"])
@pytest.mark.parametrize("dtype", EVERY_PRECISION)
@pytest.mark.parametrize("what", ["all masked", "black", "white"])
def test_an_image_that_shows_nothing_gives_an_empty_well_typed_result(
    what: str, dtype: torch.dtype, config: LoFTRConfig
) -> None:
    model = small_network(dtype, config)
    image = {"all masked": blobs(64, 96), "black": torch.zeros(64, 96), "white": torch.ones(64, 96)}[what]
    usable = torch.zeros(64, 96, dtype=torch.bool) if what == "all masked" else None
    features, other = model.encode(image, usable), model.encode(blobs(64, 96, seed=1))
    assert torch.isfinite(features.tokens).all()
    for matches in (*model.match([features], other), *model.match([other, features], features)):
        assert len(matches) == 0
        assert matches.points0.shape == matches.points1.shape == (0, 2)
        assert matches.cell.dtype == torch.int64
        assert {t.dtype for t in (matches.points0, matches.points1, matches.confidence, matches.std)} == {torch.float32}


@pytest.mark.parametrize("dtype", EVERY_PRECISION)
def test_two_unrelated_images_give_an_empty_well_typed_result(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = LoFTR(small()).prepare(CPU, dtype)
    matches = model.match([model.encode(blobs(64, 96))], model.encode(blobs(64, 96, seed=1)))[0]
    assert len(matches) == 0
    assert matches.points1.shape == (0, 2)
    assert matches.std.dtype == matches.confidence.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_two_unrelated_images_few_cells_match_where_most_of_related_ones_do(dtype: torch.dtype) -> None:
    # Dual-softmax is relative: without any similar cells, the least dissimilar ones may still be mutual. Trained
    # weights spread such scores; synthetic ones do so less.
    model = network(dtype)
    first, second = (model.encode(image) for image in rendered_pair())
    noise = model.encode((torch.rand(240, 320, generator=torch.Generator().manual_seed(3)) * 255).byte())
    related, unrelated = model.match([first], second)[0], model.match([first], noise)[0]
    assert len(related) > 200
    assert len(unrelated) < len(related) / 3


def test_cells_at_the_rim_of_what_is_usable_do_not_match() -> None:
    model = small_network(config=small(threshold=1e-3, border=2))
    usable = torch.ones(96, 128, dtype=torch.bool)
    usable[64:] = False
    features = model.encode(blobs(96, 128), usable)
    matches = model.match([features], features)[0]
    columns = features.grid[1]
    rows, across = matches.cell // columns, matches.cell % columns
    assert len(matches) > 0
    assert int(rows.min()) >= 2 and int(rows.max()) < 8 - 2
    assert int(across.min()) >= 2 and int(across.max()) < columns - 2


@pytest.mark.parametrize("usable", [torch.ones(64, 95, dtype=torch.bool), torch.ones(1, 64, 96, dtype=torch.bool)])
def test_a_mask_of_another_size_is_refused_with_both_sizes(usable: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask of shape .* for an image of shape \(64, 96\)"):
        small_network().encode(blobs(64, 96), usable)


@pytest.mark.parametrize("preset", [name for name, config in PRESETS.items() if isinstance(config, LoFTRConfig)])
def test_every_preset_matches_images_of_different_odd_sizes(preset: str) -> None:
    torch.manual_seed(0)
    model = build_network(PRESETS[preset]).prepare(CPU, torch.bfloat16 if preset == "loftr_16_4" else torch.float32)
    first, second = model.encode(blobs(70, 101)), model.encode(blobs(97, 83, seed=1))
    matches = model.match([model.complete(first)], second)[0]
    assert first.grid == (-(-70 // model.cell_size), -(-101 // model.cell_size))
    assert torch.isfinite(matches.points1).all()


@pytest.mark.parametrize("heads", [1, 4])
def test_full_attention_equals_its_definition(heads: int) -> None:
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(2, heads, n, 8, generator=generator) for n in (11, 17, 17))
    mask = torch.rand(2, 17, generator=generator) > 0.3
    weights = (query @ key.transpose(2, 3) / 8**0.5).masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=3)
    torch.testing.assert_close(full_attention(query, key, value, mask), weights @ value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", EVERY_PRECISION)
@pytest.mark.parametrize("attend", [linear_attention, full_attention])
def test_attention_to_nothing_is_finite(attend: object, dtype: torch.dtype) -> None:
    tokens = torch.randn(1, 2, 9, 8, generator=torch.Generator().manual_seed(5)).to(dtype)
    message = attend(tokens, tokens, tokens, torch.zeros(1, 9, dtype=torch.bool))  # type: ignore[operator]
    assert torch.isfinite(message).all()


def test_a_network_with_full_attention_matches_in_bounded_memory_too() -> None:
    transformer = TransformerConfig(num_heads=4, layers=("self", "cross"), attention="full")
    model = small_network(config=dataclasses.replace(small(threshold=1e-3, border=0), transformer=transformer))
    features = model.encode(blobs(64, 96))
    matches = model.match([features], features)[0]
    assert (matches.points0 - (matches.points1 / 8).round() * 8).abs().max() == 0


@pytest.mark.parametrize("tile_tokens", [2400, 200, 70])
@pytest.mark.parametrize("masked", ["current", "keyframes", "both", "one keyframe", "blank current", "blank keyframe"])
@pytest.mark.parametrize("config", [small(threshold=1e-3), small(method="optimal_transport")], ids=["softmax", "ot"])
def test_several_keyframes_with_masks_are_matched_as_each_by_itself(
    config: LoFTRConfig, masked: str, tile_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "TILE_TOKENS", tile_tokens)
    model, image = small_network(config=config), blobs(64, 96)
    usable = torch.ones(64, 96, dtype=torch.bool)
    usable[:30, 40:] = False
    nothing = torch.zeros_like(image)
    current = model.encode(
        nothing if masked == "blank current" else image, usable if masked in ("current", "both") else None
    )
    seen = [image, image.roll(8, 1), image.flip(1), nothing if masked == "blank keyframe" else image.roll(16, 0)]
    masks = {"keyframes": [usable] * 4, "both": [usable] * 4, "one keyframe": [None, usable, None, None]}
    keyframes = [model.complete(model.encode(*each)) for each in zip(seen, masks.get(masked, [None] * 4), strict=True)]
    found = model.match(keyframes, current)
    for matches, keyframe in zip(found, keyframes, strict=True):
        equal(matches, model.match([keyframe], current)[0], tolerance=1e-3)
    assert (len(found[0]) > 5) == (masked != "blank current")


@pytest.mark.parametrize("tokens", [(1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("masks", [(1, 1), (3, 1), (1, 3), (3, 3)])
@pytest.mark.parametrize("attention", ["linear", "full"])
def test_one_row_of_tokens_or_of_a_mask_stands_for_all_pairs(
    attention: str, masks: tuple[int, int], tokens: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "TILE_TOKENS", 50)
    torch.manual_seed(1)
    config = dataclasses.replace(LOFTR.transformer, attention=attention, num_heads=2)
    layers = transformer.LocalFeatureTransformer(16, config).eval()
    both = [torch.randn(rows, 40, 16) for rows in tokens]
    usable = [torch.rand(rows, 40) > 0.4 for rows in masks]
    with torch.no_grad():
        found = layers(*both, *usable)
        whole = layers(
            *(each.expand(3, -1, -1).clone() for each in both), *(each.expand(3, -1).clone() for each in usable)
        )
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
