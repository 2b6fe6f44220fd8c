"""Explanations of the network: the drawn values are those that the network computes."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from made_compact import compact
from typer.testing import CliRunner

from loftr_ros.cli.main import app
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.compact.region_transformer import RegionLayer, pool
from loftr_ros.matcher.config import COARSE_LITE, COMPACT, LOFTR, LOFTR_OT, NetworkConfig, TransformerConfig
from loftr_ros.matcher.loftr.attention import full_attention, linear_attention
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.loftr.transformer import EncoderLayer
from loftr_ros.tools.explain.loftr import attention_weights
from loftr_ros.tools.explain.observer import PairObserver
from loftr_ros.tools.explain.pair import ExplainError, explain_pair, look_into
from loftr_ros.tools.explain.views import FineHeat, Inside, LayerInput, confidence_rows, default_layers

CPU = torch.device("cpu")
NETWORKS = pytest.mark.parametrize("config", [COARSE_LITE, LOFTR, LOFTR_OT, COMPACT], ids=lambda config: config.name)


@cache
def random_network(config: NetworkConfig, **coarse: float) -> LoFTR | Compact:
    torch.manual_seed(0)
    config = replace(config, coarse=replace(config.coarse, **coarse))
    network: LoFTR | Compact = Compact(config) if config.name == "compact" else LoFTR(config)  # type: ignore[arg-type]
    return network.prepare(CPU, torch.float32)


def noise(height: int, width: int, seed: int) -> torch.Tensor:
    image = np.random.default_rng(seed).integers(0, 255, (height // 6 + 1, width // 6 + 1)).astype(np.uint8)
    return torch.from_numpy(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC))


def write_noise(path: Path, height: int, width: int, seed: int) -> Path:
    gray = noise(height, width, seed).numpy()
    cv2.imwrite(str(path), np.dstack([gray, gray[::-1], gray[:, ::-1]]))
    return path


def run_explain(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def observed(network: LoFTR | Compact, layers: Any, *images: Any) -> tuple[Inside, PairObserver, tuple[Any, Any]]:
    """The network observed while it matches two images; and their features."""
    inside = look_into(network)
    with PairObserver(inside, layers) as observer:
        first, second = (network.encode(*image) for image in images)
        network.match([first], second)
    return inside, observer, (first, second)


def by_head(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def values_and_messages(module: EncoderLayer | RegionLayer, given: LayerInput) -> tuple[torch.Tensor, torch.Tensor]:
    """The attended tokens of a layer, (heads, K, D), and its messages before `merge`, (heads, L, D)."""
    heads = module.num_heads
    if isinstance(module, RegionLayer):
        assert given.grids is not None
        messages: list[torch.Tensor] = []
        hook = module.merge.register_forward_pre_hook(lambda _, inputs: messages.append(inputs[0]))
        module(
            given.tokens, given.grids[0], given.source, given.grids[1], given.source_mask, rotate=given.kind == "self"
        )
        hook.remove()
        value = module.kv_proj(pool(given.source, given.grids[1])[0]).chunk(2, dim=2)[1]
        return by_head(value, heads)[0], by_head(messages[0], heads)[0]
    query, key, value = (
        by_head(project(tokens), heads)
        for project, tokens in (
            (module.q_proj, given.tokens),
            (module.k_proj, given.source),
            (module.v_proj, given.source),
        )
    )
    attend = linear_attention if module.attention == "linear" else full_attention
    return value[0], attend(query, key, value, given.source_mask)[0]


@torch.inference_mode()
def assert_weights_give_the_message(
    weights: torch.Tensor, module: EncoderLayer | RegionLayer, given: LayerInput, tokens: torch.Tensor
) -> None:
    value, messages = values_and_messages(module, given)
    assert weights.shape == (module.num_heads, len(tokens), value.shape[1]) and weights.dtype == torch.float32
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(module.num_heads, len(tokens)), atol=1e-4, rtol=0)
    torch.testing.assert_close(weights @ value, messages[:, tokens], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "second"),
    [
        pytest.param(config, second, id=f"{config.name}-{'one-size' if second == (96, 160) else 'two-sizes'}")
        for config, second in (
            (COARSE_LITE, (128, 112)),
            (LOFTR, (128, 112)),
            (COMPACT, (128, 112)),
            (COMPACT, (96, 160)),
        )
    ],
)
def test_attention_rows_sum_to_one_and_give_each_layer_s_message(
    config: NetworkConfig, second: tuple[int, int]
) -> None:
    network = random_network(config)
    layers = range(len(config.transformer.layers))
    inside, observer, features = observed(network, layers, (noise(96, 160, 1),), (noise(*second, 2),))
    assert [(entry.layer, entry.image) for entry in observer.inputs] == [(n, i) for n in layers for i in (0, 1)]
    lengths = [f.tokens.shape[1] for f in features]
    for given in observer.inputs:
        assert given.tokens.shape[1] == lengths[given.image]
        assert given.source.shape[1] == lengths[given.attended_image]
        module = inside.transformer.get_submodule(f"layers.{given.layer}")
        tokens = torch.tensor([0, 7, lengths[given.image] - 1])
        weights = inside.attention(given, tokens).weights
        assert weights.shape[2] == np.prod(inside.key_places(features[given.attended_image]).grid)
        assert_weights_give_the_message(weights, module, given, tokens)  # type: ignore[arg-type]
    # The first cross layer, which both images go through at once where they are of one size.
    for image in (0, 1):
        torch.testing.assert_close(observer.input_of(1, image).tokens.float(), features[image].tokens.float())
    torch.testing.assert_close(observer.input_of(1, 0).source.float(), features[1].tokens.float())


@pytest.mark.parametrize("attention", ["linear", "full"])
def test_what_is_masked_gets_no_attention(attention: str) -> None:
    torch.manual_seed(1)
    config = TransformerConfig(num_heads=2, layers=("cross",), attention=attention)  # type: ignore[arg-type]
    module = EncoderLayer(16, config).eval()
    mask = torch.arange(30)[None] % 3 > 0
    given = LayerInput(0, "cross", 0, torch.randn(1, 20, 16), torch.randn(1, 30, 16), mask)
    weights = attention_weights(module, given, torch.tensor([3, 19])).weights
    assert_weights_give_the_message(weights, module, given, torch.tensor([3, 19]))
    assert weights[..., ~mask[0]].max() == 0


@pytest.mark.parametrize("config", [COARSE_LITE, COMPACT], ids=lambda config: config.name)
def test_masks_of_ignored_pixels_reach_the_rows(config: NetworkConfig) -> None:
    network = random_network(config)
    usable = torch.ones(96, 160, dtype=torch.bool)
    usable[:, :64] = False
    inside, observer, features = observed(network, (0, 1), (noise(96, 160, 1), usable), (noise(96, 160, 2),))
    for layer, image in ((0, 0), (1, 1)):  # self of image 0, and cross of image 1 towards it
        given = observer.input_of(layer, image)
        rows, columns = inside.key_places(features[0]).grid
        masked = (torch.arange(rows * columns) % columns) * (160 / columns) < 64
        weights = inside.attention(given, torch.tensor([30])).weights
        assert weights[..., masked].max() == 0 and weights[..., ~masked].min() > 0
        module = inside.transformer.get_submodule(f"layers.{layer}")
        assert_weights_give_the_message(weights, module, given, torch.tensor([30]))  # type: ignore[arg-type]
    tokens = torch.tensor([4, 30])
    attended = torch.arange(60)[None] % 10 * 16 >= 64  # 16-px cells or regions
    rows = confidence_rows(network, *observer.tokens, tokens, attended)
    torch.testing.assert_close(rows.confidence, network.confidence(*features)[tokens])


def test_an_observer_leaves_the_network_as_it_was() -> None:
    network = random_network(COARSE_LITE)
    observer = PairObserver(look_into(network), (0,))
    with pytest.raises(RuntimeError, match="one pair"), observer:
        network.encode(noise(64, 64, 0))
    features = network.encode(noise(64, 64, 0))
    network.match([features], features)
    assert len(observer.inputs) == 1
    with pytest.raises(RuntimeError, match="nothing was matched"):
        _ = observer.tokens


@NETWORKS
def test_confidence_rows_are_those_of_the_whole_matrix(config: NetworkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from loftr_ros.matcher import coarse

    monkeypatch.setattr(coarse, "TILE_SCORES", 500)  # many tiles
    network = random_network(config)
    _, observer, features = observed(network, (), (noise(96, 160, 1),), (noise(128, 112, 2),))
    cells = torch.tensor([5, 0, 59])
    rows = confidence_rows(network, *observer.tokens, cells)
    whole = network.confidence(*features)
    torch.testing.assert_close(rows.confidence, whole[cells], atol=1e-7, rtol=1e-3)
    assert torch.equal(rows.best, rows.confidence.argmax(dim=1))
    if config.coarse.method == "optimal_transport":
        assert rows.row_softmax is None and rows.unmatched is not None
        assert ((rows.unmatched > 0) & (rows.unmatched < 1)).all()
    else:
        assert rows.row_softmax is not None and rows.unmatched is None
        torch.testing.assert_close(rows.row_softmax.sum(dim=1), torch.ones(3))
        assert (rows.row_softmax >= rows.confidence).all()


def test_the_fine_heat_s_mean_and_spread_are_those_of_the_matches() -> None:
    # So that random features match.
    network = random_network(LOFTR, threshold=1e-3, temperature=1e-3)
    image = noise(128, 160, 3)
    inside, observer, features = observed(network, (), (image,), (image,))
    matches = network.match(features[:1], features[1])[0]
    assert len(matches) > 5
    cells = matches.cell
    rows = confidence_rows(network, *observer.tokens, cells)
    choice = inside.choose(rows, cells, features, observer.tokens)
    torch.testing.assert_close(choice.confidence, matches.confidence, atol=1e-3, rtol=1e-2)
    fine = inside.fine_heat(cells, choice.cells, features, observer.tokens)
    columns = features[1].grid[1]
    corners = torch.stack([choice.cells % columns, choice.cells // columns], dim=1) * 8
    torch.testing.assert_close(corners + fine.offset, matches.points1, atol=1e-3, rtol=0)
    torch.testing.assert_close(fine.std, matches.std, atol=1e-3, rtol=0)
    torch.testing.assert_close(mean_of(fine), fine.offset, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="no fine stage"):
        look_into(random_network(COARSE_LITE)).fine_heat(cells, choice.cells, features, observer.tokens)


def mean_of(fine: FineHeat) -> torch.Tensor:
    """(M, 2) (u, v) means of heat maps, in pixels from their middles."""
    side = fine.heat.shape[1]
    axis = (torch.arange(side) - (side - 1) / 2) * fine.spacing
    return torch.stack([fine.heat.sum(dim=1) @ axis, fine.heat.sum(dim=2) @ axis], dim=1)


def test_compact_s_chosen_cells_and_fine_heat_are_those_of_its_matches() -> None:
    network = compact()
    network.fine.sharpness.fill_(1e3)  # of random features: nearly the same everywhere
    image = noise(128, 160, 3)
    inside, observer, features = observed(network, (), (image,), (image.roll((2, 4), (0, 1)),))
    matches = network.match(features[:1], features[1])[0]
    assert len(matches) > 20
    cells = matches.cell
    regions = inside.tokens_of(cells, features[0])
    rows = confidence_rows(network, *observer.tokens, regions)
    choice = inside.choose(rows, cells, features, observer.tokens)
    torch.testing.assert_close(choice.confidence, matches.confidence, atol=1e-5, rtol=1e-3)
    assert choice.shares is not None and choice.none is not None
    torch.testing.assert_close(choice.shares.sum(dim=(1, 2)) + choice.none, torch.ones(len(cells)))
    columns = features[1].grid[1]
    points = torch.stack([choice.cells % columns, choice.cells // columns], dim=1) * 8 + 3.5
    for share, place, point in zip(choice.shares, choice.places, points, strict=True):
        row, column = divmod(int(share.argmax()), 4)
        assert (place.first[0] + 8 * column, place.first[1] + 8 * row) == tuple(point.tolist())
    fine = inside.fine_heat(cells, choice.cells, features, observer.tokens)
    torch.testing.assert_close(points + fine.offset, matches.points1, atol=1e-4, rtol=0)
    torch.testing.assert_close(fine.std, matches.std, atol=1e-4, rtol=0)
    # Untrained, nothing is read from the correlations yet: the match is the mean of the heat's peak.
    peaks = torch.zeros_like(fine.heat)
    for number, heat in enumerate(fine.heat):
        row, column = divmod(int(heat.argmax()), heat.shape[1])
        part = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
        peaks[number][part] = heat[part] / heat[part].sum()
    torch.testing.assert_close(mean_of(dataclasses.replace(fine, heat=peaks)), fine.offset, atol=1e-4, rtol=0)
    assert fine.offset.norm(dim=1).max() > 1


def test_regions_are_drawn_where_they_are_and_pooled_ones_over_both(tmp_path: Path) -> None:
    files = write_noise(tmp_path / "a.png", 72, 104, 1), write_noise(tmp_path / "b.png", 64, 96, 2)
    point = explain_pair(random_network(COMPACT), files, [(50.0, 40.0)], (0, 1)).points[0]
    own, other = point.attention[0].heat, point.attention[2].heat  # self of A, and cross of A
    # 7 x 5 regions of A, the last ones cut by its edge, 6 x 4 of B.
    assert own.values.shape == (3, 4) and own.extent == (-0.5, 127.5, 95.5, -0.5)
    assert other.values.shape == (2, 3) and other.extent == (-0.5, 95.5, 63.5, -0.5)
    assert point.coarse.confidence.values.shape == (4, 6) and point.coarse.confidence.extent == other.extent
    assert point.choice is not None and point.choice.shares.values.shape == (4, 4)
    left, right, bottom, top = point.choice.shares.extent
    assert (right - left, bottom - top) == (32, 32)
    np.testing.assert_allclose(point.coarse.best, [(left + right) / 2, (top + bottom) / 2])
    assert left <= point.coarse_point1[0] <= right and top <= point.coarse_point1[1] <= bottom
    assert point.fine is not None and point.fine.heat.values.shape == (7, 7)
    left, right, bottom, top = point.fine.heat.extent
    np.testing.assert_allclose(point.coarse_point1, [(left + right) / 2, (top + bottom) / 2])


def test_the_first_and_last_layers_of_each_kind_are_shown_unless_others_are_asked_for() -> None:
    assert default_layers(LOFTR.transformer) == (0, 1, 6, 7)
    assert default_layers(COARSE_LITE.transformer) == default_layers(COMPACT.transformer) == (0, 1, 2, 3)


def test_points_are_of_the_file_s_own_pixels_however_far_it_is_shrunk(tmp_path: Path) -> None:
    files = write_noise(tmp_path / "a.png", 960, 1920, 1), write_noise(tmp_path / "b.png", 200, 300, 2)
    explanation = explain_pair(random_network(COARSE_LITE), files, [(1000.0, 500.0), (0.0, 0.0)], (3,))
    view = explanation.views[0]
    assert view.scale == (2.0, 2.0) and view.grid == (30, 60)
    # Cells of 16 px of the half-sized image: 32 px apart, and 0.5 px from the corner by half-pixel resizing.
    np.testing.assert_allclose(explanation.points[0].point0, [31 * 32 + 0.5, 16 * 32 + 0.5])
    assert explanation.points[0].cell0 == 16 * 60 + 31 and explanation.points[1].cell0 == 0
    assert view.cell_at((1919.4, 959.4)) == 30 * 60 - 1, "past the last cell's point it is still the last cell"
    shapes = [entry.heat.values.shape for entry in explanation.points[0].attention]
    assert shapes == [explanation.views[1].grid, explanation.views[0].grid]


def test_without_points_confident_matches_all_over_the_image_are_explained(shared_data: Path) -> None:
    student = load_network("coarse_lite", shared_data / "coarse_loftr" / "LoFTR_teacher.pt", CPU, torch.float32)
    folder = shared_data / "sevenscenes"
    explanation = explain_pair(student, (folder / "frame-000100.color.jpg", folder / "frame-000110.color.jpg"))
    assert len(explanation.points) == 3 and all(point.matched for point in explanation.points)
    places = np.array([point.point0 for point in explanation.points])
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)[np.triu_indices(3, 1)]
    assert apart.min() > 200
    assert explanation.points[0].confidence == pytest.approx(explanation.confidence.max(), rel=1e-4)
    for point in explanation.points:
        index = np.flatnonzero((explanation.points0 == point.point0).all(axis=1))
        np.testing.assert_allclose(explanation.points1[index], [point.point1])
        assert explanation.confidence[index] == pytest.approx(point.confidence, rel=1e-4)
        assert point.fine is None


def test_a_point_without_a_match_says_why(shared_data: Path) -> None:
    student = load_network("coarse_lite", shared_data / "coarse_loftr" / "LoFTR_teacher.pt", CPU, torch.float32)
    files = shared_data / "graf" / "img1.ppm", shared_data / "sevenscenes" / "frame-000110.color.jpg"
    explanation = explain_pair(student, files, [(700.0, 500.0)])
    assert not explanation.points[0].matched and explanation.points[0].verdict == "no match: below 0.01"


@pytest.mark.parametrize(
    "config",
    [*(pytest.param(config, marks=pytest.mark.long) for config in (COARSE_LITE, LOFTR, LOFTR_OT)), COMPACT],
    ids=lambda config: config.name,
)
def test_pictures_and_table_are_written_for_every_network_even_without_a_match(
    config: NetworkConfig, tmp_path: Path
) -> None:
    a, b = write_noise(tmp_path / "a.png", 100, 150, 1), write_noise(tmp_path / "b.jpg", 120, 90, 2)
    arguments = ("--network", config.name, "--weights", "random", "--precision", "float32", "--point", "70,50")
    done = run_explain(a, b, *arguments, "--layer", "1", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    if config is not COARSE_LITE:  # whose threshold is so low that even noise may match
        assert "a.png -> b.jpg: no matches" in done.output and "nothing matches" in done.output
    assert "no match: below" in done.output
    written = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert written == ["matches.png", "point_1_attention.png", "point_1_match.png"]
    for name in written[1:]:
        picture = cv2.imread(str(tmp_path / "out" / name))
        assert picture is not None and picture.shape[1] == 1300
        assert np.ptp(picture.astype(int), axis=2).max() > 100, f"{name} has no colour"


def test_a_point_asked_for_and_the_heads_change_what_is_shown(tmp_path: Path) -> None:
    files = write_noise(tmp_path / "a.png", 100, 150, 1), write_noise(tmp_path / "b.png", 120, 90, 2)
    network = random_network(LOFTR)
    mean = explain_pair(network, files, [(70.0, 50.0)], (1,)).points[0].attention[0].heat.values
    heads = [
        explain_pair(network, files, [(70.0, 50.0)], (1,), head).points[0].attention[0].heat.values for head in (0, 7)
    ]
    other = explain_pair(network, files, [(20.0, 20.0)], (1,)).points[0].attention[0].heat.values
    assert mean.sum() == pytest.approx(1, abs=1e-4)
    assert not np.allclose(heads[0], heads[1], rtol=1e-4) and not np.allclose(mean, other, rtol=1e-4)
    with pytest.raises(ExplainError, match="head 8 does not exist"):
        explain_pair(network, files, head=8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no.png", "b.png"), "image no.png does not exist"),
        (("a.png", "text.png"), "text.png"),
        (("tiny.png", "b.png", "--network", "coarse_lite"), "sides of at least 32"),
        (("a.png", "b.png", "--point", "150,20"), "point 150,20 is outside a.png, which is 150x100"),
        (("a.png", "b.png", "--point", "-3,20"), "point -3,20 is outside a.png"),
        (("a.png", "b.png", "--point", "12;20"), "point '12;20' is invalid"),
        (("a.png", "b.png", "--layer", "4"), "layer 4 does not exist; the network has 0 (self), 1 (cross)"),
        (("a.png", "b.png", "--head", "4"), "head 4 does not exist"),
        (("a.png", "b.png", "--network", "superglue"), "'superglue' is not known"),
        (("a.png", "b.png", "--precision", "int4"), "int4"),
        (("a.png", "b.png", "-o", "a.png"), "a.png cannot be written to"),
    ],
)
def test_what_cannot_be_explained_is_said_in_one_line(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_noise(tmp_path / "a.png", 100, 150, 1)
    write_noise(tmp_path / "b.png", 100, 150, 2)
    write_noise(tmp_path / "tiny.png", 10, 10, 2)
    (tmp_path / "text.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    done = run_explain(*arguments, "--weights", "random")
    assert done.exit_code == 2
    assert words in done.output and len(done.output.strip().splitlines()) == 1


def test_a_network_that_does_not_run_in_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_noise(tmp_path / "a.png", 64, 80, 1), write_noise(tmp_path / "b.png", 64, 80, 2)
    monkeypatch.setattr("loftr_ros.tools.explain.pair.backend_of", lambda network: "openvino")
    with pytest.raises(ExplainError, match="'compact' is run by openvino; only networks in torch"):
        explain_pair(random_network(COMPACT), files)


def test_without_a_match_places_all_over_the_image_are_explained(tmp_path: Path) -> None:
    files = write_noise(tmp_path / "a.png", 100, 150, 1), write_noise(tmp_path / "b.png", 120, 90, 2)
    explanation = explain_pair(random_network(LOFTR), files)
    assert explanation.count == "no matches"
    assert len({point.cell0 for point in explanation.points}) == 3
    assert all(len(point.attention) == 8 and point.fine is not None for point in explanation.points)


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name, seed in (("left", 1), ("right", 2)):
        (tmp_path / name).mkdir()
        write_noise(tmp_path / name / "0.png", 64, 80, seed)
    files = tmp_path / "left" / "0.png", tmp_path / "right" / "0.png"
    explanation = explain_pair(random_network(COARSE_LITE), files, [(10, 10)])
    assert [view.name for view in explanation.views] == ["left/0.png", "right/0.png"]
