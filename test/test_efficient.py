"""EfficientLoFTR as a matcher of streams: cells as landmarks, masks, batches, precisions, layouts, exports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from made_efficient import (
    SMALL,
    network,
    noise,
    noise_state_dict,
    small,
    small_state_dict,
)
from published_layouts import hugging_face_layout, trained_layout
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.matcher.checkpoints.efficient import in_our_layout
from loftr_ros.matcher.checkpoints.files import (
    WeightsError,
    fingerprint_of,
    load_network,
    load_weights,
    read_weights,
    recognise_file,
    save_network_weights,
)
from loftr_ros.matcher.coarse import HALF_SCORE, Masks, best_scores, score_confidence, scores
from loftr_ros.matcher.config import EFFICIENT, EFFICIENT_OPT
from loftr_ros.matcher.efficient.layers import rotated
from loftr_ros.matcher.efficient.network import EfficientLoFTR
from loftr_ros.matcher.efficient.refinement import CELL, WINDOW, compare, windows
from loftr_ros.matcher.interface import Matches
from loftr_ros.matcher.ring import FeatureRing
from loftr_ros.matcher.runtime.export import export_network
from loftr_ros.matcher.runtime.onnx_backend import load_onnx
from loftr_ros.matcher.runtime.openvino_backend import load_openvino
from loftr_ros.tools.explain.observer import PairObserver
from loftr_ros.tools.explain.pair import look_into
from loftr_ros.tools.explain.views import confidence_rows

CPU = torch.device("cpu")
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


def same(one: Matches, other: Matches, tolerance: float = 1e-3) -> None:
    assert torch.equal(one.cell, other.cell)
    torch.testing.assert_close(one.points0, other.points0, atol=tolerance, rtol=0)
    torch.testing.assert_close(one.points1, other.points1, atol=tolerance, rtol=0)
    torch.testing.assert_close(one.confidence, other.confidence, atol=1e-4, rtol=1e-3)


# Weights.


def published(layout: str, folder: Path) -> Path:
    """A file of the small network's weights, as published by the authors or by Hugging Face."""
    trained = trained_layout(small_state_dict())
    if layout == "hugging face":
        path = folder / "model.safetensors"
        save_file({name: value.contiguous().clone() for name, value in hugging_face_layout(trained).items()}, path)
        return path
    path = folder / "eloftr_outdoor.ckpt"
    state = trained if layout == "as trained" else small_state_dict()
    torch.save({"state_dict": {f"matcher.{name}": value for name, value in state.items()}}, path)
    return path


@pytest.mark.parametrize("layout", ["as trained", "re-parametrised", "hugging face"])
def test_every_published_layout_gives_the_same_network(layout: str, tmp_path: Path) -> None:
    held = read_weights(published(layout, tmp_path))
    found = recognise_file(held)
    assert (found.config.name, found.by, found.doubt, found.also) == ("efficient", "contents", "", ("efficient_opt",))
    assert ("branches folded" in held.layout) == (layout != "re-parametrised")
    assert ("Hugging Face" in held.layout) == (layout == "hugging face")
    model = EfficientLoFTR(SMALL)
    load_weights(model, held)
    for name, value in small_state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_a_block_s_branches_come_to_one_convolution() -> None:
    trained = trained_layout(small_state_dict())
    block = "backbone.layer2.1."
    x = torch.randn(1, 24, 9, 11)

    def with_norm(y: Tensor, norm: str) -> Tensor:
        mean, variance, weight, bias = (
            trained[f"{block}{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(y, mean, variance, weight, bias)

    expected = with_norm(functional.conv2d(x, trained[f"{block}rbr_dense.conv.weight"], padding=1), "rbr_dense.bn")
    expected = expected + with_norm(functional.conv2d(x, trained[f"{block}rbr_1x1.conv.weight"]), "rbr_1x1.bn")
    expected = expected + with_norm(x, "rbr_identity")
    folded, _ = in_our_layout(trained)
    weight, bias = (folded[f"{block}rbr_reparam.{name}"] for name in ("weight", "bias"))
    torch.testing.assert_close(functional.conv2d(x, weight, bias, padding=1), expected, atol=1e-5, rtol=1e-5)


def test_an_incomplete_file_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    trained = trained_layout(small_state_dict())
    del trained["backbone.layer3.1.rbr_1x1.conv.weight"]
    torch.save(trained, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"missing \d+: backbone\.layer3\.1\.rbr_reparam\.weight"):
        load_weights(EfficientLoFTR(SMALL), read_weights(tmp_path / "weights.pt"))


def test_one_file_serves_both_presets_without_a_word_and_our_own_format_names_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.safetensors"
    built = EfficientLoFTR(EFFICIENT).state_dict()
    save_network_weights(path, built, EFFICIENT, "random")
    networks = [load_network(name, path, CPU, torch.float32) for name in ("auto", "efficient_opt")]
    assert [model.config for model in networks] == [EFFICIENT, EFFICIENT_OPT]
    assert not caplog.records
    # Features of the two are comparable: they differ in the matching.
    assert len({model.fingerprint for model in networks}) == 1
    assert networks[0].fingerprint == fingerprint_of(EFFICIENT, built)


# The cells of a keyframe are landmarks.


def test_a_keyframe_s_cell_has_the_same_point_whatever_it_is_matched_with() -> None:
    model = small()
    keyframe = model.encode(noise(96, 128))
    columns = keyframe.grid[1]
    for seed, shift in ((0, 0), (0, 3), (1, 5)):
        matches = model.match([keyframe], model.encode(noise(96, 128, seed).roll(shift, 1)))[0]
        place = torch.stack([matches.cell % columns, matches.cell // columns], dim=1) * 8
        assert torch.equal(matches.points0, place.float())
        assert seed or len(matches) > 20


def test_as_published_points_of_both_images_move_in_their_cells() -> None:
    fixed, moving = small(), small(anchor="window")
    images = noise(96, 128), noise(96, 128).roll(3, 1)
    found = [model.match([model.encode(images[0])], model.encode(images[1]))[0] for model in (fixed, moving)]
    assert torch.equal(found[0].cell, found[1].cell) and len(found[0]) > 20
    off = found[1].points0 - found[0].points0
    assert off.abs().amax() <= 3.5 and (off.abs() % 1 == 0.5).all() and (off.abs() > 1).any()


def one_hot(*places: tuple[int, int], side: int, value: float = 16.0) -> Tensor:
    """(1, side, side, 64): a large value in channel n at the n-th place, for the first stage."""
    window = torch.zeros(1, side, side, 64)
    for channel, (row, column) in enumerate(places):
        window[0, row, column, channel] = value
    return window


def test_the_first_stage_takes_the_best_pair_of_pixels_or_that_of_the_cell_s_point() -> None:
    window0 = one_hot((3, 4), (6, 1), side=CELL)
    window0[0, 6, 1] *= 1.5  # most similar of all, but far from the cell's point
    window1 = one_hot((1 + 2, 1 + 5), (1 + 7, 1 + 0), side=WINDOW)
    best = compare(replace(EFFICIENT.fine, anchor="window"), window0, window1)
    assert best.offset0.tolist() == [[1 - 3.5, 6 - 3.5]]
    assert (best.offset1 - torch.tensor([0 - 3.5, 7 - 3.5])).abs().max() < 1e-3  # the second stage sees nothing
    fixed = compare(EFFICIENT.fine, window0, window1)
    assert fixed.offset0.tolist() == [[0.5, -0.5]]
    assert (fixed.offset1 - torch.tensor([5 - 3.5, 2 - 3.5])).abs().max() < 1e-3
    assert (best.heat.sum(dim=(1, 2)) - 1).abs().max() < 1e-5


def test_a_match_with_two_likely_pixels_is_less_sure_than_one_with_a_single_one() -> None:
    window0 = one_hot((3, 4), side=CELL, value=40)
    once, twice = (one_hot((3, 5), side=WINDOW, value=40) for _ in range(2))
    twice[0, 8, 5] = twice[0, 3, 5]
    assert float(compare(EFFICIENT.fine, window0, twice).std) > 1 + float(compare(EFFICIENT.fine, window0, once).std)


@pytest.mark.parametrize("size", [(32, 48), (33, 45)])
def test_windows_around_matches_are_those_of_the_whole_map_up_to_the_edge(size: tuple[int, int]) -> None:
    height, width = size
    grid = (-(-height // 8), -(-width // 8))
    fine = torch.randn(1, 16, -(-height // 2), -(-width // 2)).to(memory_format=torch.channels_last)
    whole = functional.interpolate(fine, scale_factor=2.0, mode="bilinear", align_corners=False)
    whole = functional.pad(whole, (1, 17, 1, 17))
    for cell in range(grid[0] * grid[1]):
        row, column = divmod(cell, grid[1])
        expected = whole[0, :, 8 * row : 8 * row + WINDOW, 8 * column : 8 * column + WINDOW].permute(1, 2, 0)
        torch.testing.assert_close(windows(fine, torch.tensor([cell]), grid)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(160, 224), (101, 131)])
@pytest.mark.parametrize("count", [1, 9, 60])
def test_the_pyramid_around_matches_is_that_of_the_whole_map(
    size: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    features = model.encode(noise(*size))
    places = features.grid[0] * features.grid[1]
    cells = torch.randperm(places, generator=torch.Generator().manual_seed(count))[:count]
    made = []
    for gathering in (0.0, 1e9):  # never the whole map, and always
        monkeypatch.setattr("loftr_ros.matcher.loftr.backbone._GATHERING", gathering)
        made.append(model.refine((features, features), (features.tokens, features.tokens), cells, cells.flip(0)))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


# Attention.


def test_within_an_image_attention_knows_how_far_apart_squares_are_and_nothing_else() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(64), torch.randn(64)
    grid = (6, 7)
    turned = [rotated(tokens.expand(1, 42, -1), grid, 1.0)[0] for tokens in (query, key)]
    products = (turned[0] @ turned[1].t()).view(6, 7, 6, 7)
    torch.testing.assert_close(products[0, 0, 2, 3], products[3, 2, 5, 5], atol=1e-4, rtol=0)
    assert abs(float(products[0, 0, 2, 3] - products[0, 0, 3, 2])) > 1e-2


def test_positions_in_images_larger_than_those_of_the_training_are_scaled_down_to_these() -> None:
    transformer = small().loftr_coarse
    assert transformer.spacing((60, 80)) == transformer.spacing((104, 104)) == 1
    assert transformer.spacing((104, 208)) == 0.5


@pytest.mark.parametrize("grid", [(12, 20), (13, 17), (3, 2)])
def test_messages_are_spread_over_the_cells_bilinearly(grid: tuple[int, int]) -> None:
    layer = small().loftr_coarse.layers[0]
    rows, columns = layer.squares(grid)
    squares = torch.randn(2, rows * columns, 64)
    maps = squares.transpose(1, 2).unflatten(2, (rows, columns))
    expected = functional.interpolate(maps, scale_factor=4.0, mode="bilinear", align_corners=False)
    expected = expected[..., : grid[0], : grid[1]].flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer.spread(squares, grid, None), expected)
    mask = torch.ones(2, grid[0] * grid[1], dtype=torch.bool)
    torch.testing.assert_close(layer.spread(squares, grid, mask), expected)


def test_what_is_masked_changes_nothing_that_is_not() -> None:
    model = small()
    usable = torch.ones(96, 160, dtype=torch.bool)
    usable[:, 96:] = False
    layer = model.loftr_coarse.layers[0]
    x = torch.randn(1, 240, 64)
    mask = functional.avg_pool2d(usable[None].float(), 8).flatten(1) > 0.5
    other = torch.where(mask[..., None], x, torch.randn_like(x))
    results = [layer(part, (12, 20), part, (12, 20), mask, mask, 1.0)[mask] for part in (x, other)]
    torch.testing.assert_close(results[0], results[1])


# Matching.


def test_without_a_softmax_matches_are_the_mutual_best_scores_above_the_threshold() -> None:
    torch.manual_seed(0)
    tokens0, tokens1 = 5 * torch.randn(2, 70, 64), 5 * torch.randn(2, 50, 64)
    tokens1[:, :30] = tokens0[:, 10:40] + torch.randn(2, 30, 64)
    allowed0 = torch.rand(2, 70) > 0.2
    attended1 = torch.rand(2, 50) > 0.2
    whole = scores(tokens0, tokens1, 0.1, None, attended1)
    best = (whole == whole.amax(1, keepdim=True)) & (whole == whole.amax(2, keepdim=True)) & (whole > HALF_SCORE)
    expected = (best & allowed0[:, :, None]).nonzero()
    found = best_scores(tokens0, tokens1, 0.1, 0.5, Masks(allowed0, None, None, attended1))
    assert torch.equal(torch.stack([found.pair, found.cell0, found.cell1], dim=1), expected) and len(expected) > 20
    torch.testing.assert_close(found.confidence, score_confidence(whole[best & allowed0[:, :, None]]))
    capped = best_scores(tokens0, tokens1, 0.1, 0.5, Masks(allowed0, None, None, attended1), max_matches=5)
    assert torch.bincount(capped.pair).tolist() == [5, 5]
    assert score_confidence(torch.tensor([-3.0, 0.0, HALF_SCORE])).tolist() == [0, 0, 0.5]


@pytest.mark.parametrize("masked", ["none", "current", "one keyframe", "blank keyframe", "blank current"])
def test_several_keyframes_of_several_sizes_are_matched_as_each_by_itself(masked: str) -> None:
    model = small()
    usable = torch.ones(96, 128, dtype=torch.bool)
    usable[:, :56] = False
    blank = torch.full((96, 128), 77, dtype=torch.uint8)
    first = model.encode(noise(96, 128), usable if masked == "one keyframe" else None)
    second = model.encode(blank if masked == "blank keyframe" else noise(96, 128).roll(2, 0))
    current = model.encode(
        blank if masked == "blank current" else noise(96, 128), usable if masked == "current" else None
    )
    keyframes = [first, second, model.encode(noise(72, 101))]
    together = model.match(keyframes, current)
    assert masked == "blank current" or len(together[0]) > 10
    for keyframe, found in zip(keyframes, together, strict=True):
        same(found, model.match([keyframe], current)[0], 5e-3)
    if masked.startswith("blank"):
        assert len(together[1]) == 0


@pytest.mark.parametrize("border", [0, 2])
@pytest.mark.parametrize("sizes", [((96, 128), (101, 67)), ((75, 130), (96, 128)), ((9, 200), (17, 33))])
def test_images_of_any_two_sizes_match(sizes: tuple[tuple[int, int], tuple[int, int]], border: int) -> None:
    model = small(border=border)
    one, other = (model.encode(noise(*size)) for size in sizes)
    matches = model.match([one], other)[0]
    assert torch.isfinite(matches.points1).all() and torch.isfinite(matches.std).all()
    height, width = sizes[0]
    assert (matches.points0 >= 0).all() and (matches.points0 <= torch.tensor([width - 1, height - 1])).all()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_ignored_pixels_and_images_without_contrast_match_nothing(dtype: torch.dtype) -> None:
    model = small(dtype)
    image, usable = noise(96, 128), torch.ones(96, 128, dtype=torch.bool)
    usable[:, 40:72] = False
    masked, whole = model.encode(image, usable), model.encode(image)
    for first, second in ((masked, whole), (whole, masked)):
        matches = model.match([first], second)[0]
        points = matches.points0 if first is masked else matches.points1
        u, v = points.round().long().clamp_min(0).t()
        assert len(matches) > 5 and usable[v.clamp_max(95), u.clamp_max(127)].all()
    for empty in (model.encode(image, torch.zeros_like(usable)), model.encode(torch.full_like(image, 200))):
        matches = model.match([empty, whole], empty)[1]
        assert len(matches) == 0 and (matches.points1.shape, matches.std.dtype) == ((0, 2), torch.float32)


def test_the_ring_keeps_all_that_matching_needs() -> None:
    model, ring = small(), FeatureRing(2)
    features = model.encode(noise(96, 128))
    expected = model.match([features], model.encode(noise(96, 128)))[0]
    kept = ring.keep(model.complete(features))
    with torch.inference_mode():
        for value in (features.tokens, features.fine, features.middle):
            assert value is not None
            value.zero_()
    same(model.match([kept], model.encode(noise(96, 128)))[0], expected)


@cache
def found_by(dtype: torch.dtype) -> dict[int, Tensor]:
    """Points in image 1 by the cell in image 0, of the whole network on noise that moves."""
    model = network(dtype=dtype, weights=noise_state_dict(EFFICIENT))
    one, other = (model.encode(noise(112, 176).roll(shift, 1)) for shift in (0, 3))
    matches = model.match([one], other)[0]
    return {int(cell): point for cell, point in zip(matches.cell, matches.points1, strict=True)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_finds_what_fp32_finds(dtype: torch.dtype) -> None:
    full, half = found_by(torch.float32), found_by(dtype)
    apart = torch.stack([(full[cell] - half[cell]).norm() for cell in full if cell in half])
    assert len(full) > 100 and len(apart) >= 0.97 * len(full)
    assert float((apart < 0.1).float().mean()) > (0.9 if dtype == torch.float16 else 0.7)


def test_the_front_end_runs_it_and_its_tracks_are_of_cells() -> None:
    front_end = FrontEnd(small(), FrontEndConfig())
    results = [
        front_end.process(Frame(noise(96, 128).roll(2 * i, 1).numpy(), i * 100_000_000, "camera")) for i in range(3)
    ]
    assert results[-1].matches and max(len(found.correspondences) for found in results[-1].matches) > 10


# Exports, and seeing into it.


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def export(method: str) -> Path:
        if method not in made:
            made[method] = tmp_path_factory.mktemp("efficient")
            export_network(lenient(method), made[method], 128, 101, weights="random")
        return made[method]

    return export


def lenient(method: str) -> EfficientLoFTR:
    return small(method=method, threshold=0.2 if method == "dual_softmax" else 0.5)


@pytest.mark.parametrize("method", ["dual_softmax", pytest.param("scores", marks=pytest.mark.long)])
@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_exported_network_finds_what_torch_finds(
    method: str, masked: bool, exported: Callable[[str], Path]
) -> None:
    usable = torch.ones(101, 128, dtype=torch.bool)
    usable[:, :40] = not masked
    images = (noise(101, 128), usable if masked else None), (noise(101, 128).roll(3, 1), None)
    runs = [lenient(method), load_onnx(exported(method), ("CPUExecutionProvider",))]
    if not masked:
        runs.append(load_openvino(exported(method), torch.float32, 1))
    found = []
    for matcher in runs:
        one, other = (matcher.encode(*image) for image in images)
        found.append(matcher.match([one], other)[0])
    assert len(found[0]) > 10
    for other in found[1:]:
        same(found[0], other, 0.01)
        torch.testing.assert_close(found[0].std, other.std, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_rows_sum_to_one_and_give_each_layer_s_message(masked: bool) -> None:
    model = small()
    inside = look_into(model)
    usable = torch.ones(101, 128, dtype=torch.bool)
    usable[:, :32] = not masked
    with PairObserver(inside, (0, 1, 2, 3)) as observer:
        features = model.encode(noise(101, 128), usable), model.encode(noise(96, 160, 1))
        model.match([features[0]], features[1])
    assert [(entry.layer, entry.image) for entry in observer.inputs] == [(n, i) for n in range(4) for i in (0, 1)]
    for given in observer.inputs:
        assert given.grids is not None
        layer = model.loftr_coarse.layers[given.layer]
        tokens = torch.tensor([6, 40, given.tokens.shape[1] - 1])
        weights = inside.attention(given, tokens).weights
        assert weights.shape[2] == np.prod(inside.key_places(features[given.attended_image]).grid)
        torch.testing.assert_close(weights.sum(dim=2), torch.ones(4, 3), atol=1e-4, rtol=0)
        messages: list[Tensor] = []
        hook = layer.merge.register_forward_pre_hook(lambda _, inputs, kept=messages: kept.append(inputs[0]))
        spacing = model.loftr_coarse.spacing(given.grids[0]) if given.kind == "self" else None
        layer(given.tokens, given.grids[0], given.source, given.grids[1], given.mask, given.source_mask, spacing)
        hook.remove()
        message = layer.spread(messages[0], given.grids[0], given.mask)[0, tokens]
        value = layer.keys_and_values(given.source, given.grids[1], given.source_mask, None)[1][0]
        torch.testing.assert_close((weights @ value).transpose(0, 1).flatten(1), message, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("method", ["dual_softmax", "scores"])
def test_explained_rows_choices_and_heat_are_those_of_the_matches(method: str) -> None:
    model = lenient(method)
    inside = look_into(model)
    with PairObserver(inside, ()) as observer:
        features = model.encode(noise(96, 128)), model.encode(noise(96, 128).roll(3, 1))
        matches = model.match(features[:1], features[1])[0]
    rows = confidence_rows(model, *observer.tokens, matches.cell)
    torch.testing.assert_close(rows.confidence, model.confidence(*features)[matches.cell], atol=1e-5, rtol=1e-3)
    choice = inside.choose(rows, matches.cell, features, observer.tokens)
    torch.testing.assert_close(choice.confidence, matches.confidence, atol=1e-4, rtol=1e-3)
    fine = inside.fine_heat(matches.cell, choice.cells, features, observer.tokens)
    columns = features[1].grid[1]
    points = torch.stack([choice.cells % columns, choice.cells // columns], dim=1) * 8
    torch.testing.assert_close(points + fine.offset, matches.points1, atol=1e-3, rtol=0)
    torch.testing.assert_close(fine.std, matches.std, atol=1e-3, rtol=0)
    assert fine.heat.shape[1:] == (WINDOW, WINDOW)
