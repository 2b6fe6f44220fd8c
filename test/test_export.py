"""The exported network and its backend: onnxruntime gives the results of PyTorch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import made_compact
import made_efficient
import numpy as np
import pytest
import torch
from fakes import PanningStream
from made_compact import compact, shifted_pair
from made_weights import CPU, network, rendered_pair, sevenscenes_pair
from torch import Tensor

from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.matcher import factory
from loftr_ros.matcher.build import Network
from loftr_ros.matcher.checkpoints.files import WeightsError, load_network
from loftr_ros.matcher.compact import region_transformer
from loftr_ros.matcher.config import PRESETS
from loftr_ros.matcher.factory import MatcherSpec, open_matcher
from loftr_ros.matcher.interface import Matcher, Matches
from loftr_ros.matcher.loftr import transformer
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.precision import DeviceError
from loftr_ros.matcher.ring import FeatureRing
from loftr_ros.matcher.runtime import export, graphs, onnx_backend
from loftr_ros.matcher.runtime.export import ExportError, export_network
from loftr_ros.matcher.runtime.export_check import Agreement, DisagreementError, check_export
from loftr_ros.matcher.runtime.exported import ENCODE_FILE, MATCH_FILE, MODEL_FILE, read_model
from loftr_ros.matcher.runtime.exported_matcher import ExportedMatcher
from loftr_ros.matcher.runtime.onnx_backend import load_onnx
from loftr_ros.weights import find_weights

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WIDTH, HEIGHT = 160, 128
CPU_PROVIDER = ("CPUExecutionProvider",)
PROGRAM = Path(sys.executable).parent / "loftr_ros"


@pytest.fixture(scope="module", autouse=True)
def small_tiles() -> Iterator[None]:
    """So that images of this size need several tiles too, the last of another size than the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "TILE_SCORES", 40_000)
        patch.setattr(transformer, "TILE_TOKENS", 125)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports by key, made on first use."""

    class Exports(dict[str, Path]):
        def __missing__(self, preset: str) -> Path:
            self[preset] = tmp_path_factory.mktemp(preset)
            export_network(network(preset=preset), self[preset], WIDTH, HEIGHT, weights="made")
            return self[preset]

    return Exports()


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The low-end network with random weights: it exports quickly, and matches next to nothing."""
    folder = tmp_path_factory.mktemp("lite")
    export_network(random_lite(), folder, WIDTH, HEIGHT, weights="random")
    return folder


def random_lite(precision: torch.dtype = torch.float32) -> LoFTR:
    return load_network("coarse_lite", None, CPU, precision)


def opened(folder: Path, **coarse: float) -> ExportedMatcher:
    return load_onnx(folder, CPU_PROVIDER, threads=1, coarse=coarse)


def with_coarse(model: Network, **changes: float) -> Network:
    model.config = replace(model.config, coarse=replace(model.config.coarse, **changes))
    return model


def matched(matcher: Matcher, images: tuple[Tensor, Tensor], masks: tuple[Tensor | None, Tensor | None]) -> Matches:
    keyframe, current = (matcher.encode(image, mask) for image, mask in zip(images, masks, strict=True))
    return matcher.match([matcher.complete(keyframe)], current)[0]


def assert_same(found: Matches, expected: Matches, at_least: int = 50) -> None:
    """Equal except for rounding, which may move a match in fifty across the threshold or below its dustbin, or
    decide between two peaks of a heat map.
    """
    assert len(expected) >= at_least, "there must be matches for the comparison to mean anything"
    here, there = torch.isin(found.cell, expected.cell), torch.isin(expected.cell, found.cell)
    assert int((~here).sum() + (~there).sum()) <= max(2, len(expected) / 50)
    torch.testing.assert_close(found.points0[here], expected.points0[there], rtol=0, atol=0)
    moved = (found.points1[here] - expected.points1[there]).abs().amax(dim=1) > 0.01
    assert int(moved.sum()) <= max(2, len(expected) / 50)
    torch.testing.assert_close(found.confidence[here], expected.confidence[there], rtol=0, atol=1e-4)
    std, expected_std = found.std[here][~moved], expected.std[there][~moved]
    torch.testing.assert_close(std, expected_std, rtol=0, atol=0.01, equal_nan=True)


def corner_mask(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Usable except at the top left; its edge is not that of a cell."""
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[: height // 3, : width // 2 + 3] = False
    return mask


@pytest.mark.long
@pytest.mark.parametrize("preset", ["loftr", "loftr_ot"])
def test_the_exported_network_finds_what_torch_finds(folders: dict[str, Path], preset: str) -> None:
    images = rendered_pair(WIDTH, HEIGHT)
    assert_same(
        matched(opened(folders[preset]), images, (None, None)), matched(network(preset=preset), images, (None, None))
    )


@pytest.mark.long
@pytest.mark.parametrize("preset", ["loftr", "loftr_ot"])
@pytest.mark.parametrize("where", ["keyframe", "current", "both"])
def test_masks_act_on_the_exported_network_as_on_torchs(folders: dict[str, Path], preset: str, where: str) -> None:
    images = rendered_pair(WIDTH, HEIGHT)
    masks = (corner_mask() if where != "current" else None, corner_mask().flip(1) if where != "keyframe" else None)
    found = matched(opened(folders[preset]), images, masks)
    assert_same(found, matched(network(preset=preset), images, masks), at_least=30)
    for points, mask in zip((found.points0, found.points1), masks, strict=True):
        column, row = points.round().long().unbind(1)
        assert mask is None or mask[row.clamp(0, HEIGHT - 1), column.clamp(0, WIDTH - 1)].all()


@pytest.fixture(scope="module")
def compact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compact network for images that are no multiple of its cells or regions."""
    folder = tmp_path_factory.mktemp("compact")
    export_network(compact(), folder, made_compact.WIDTH, made_compact.HEIGHT, weights="random")
    return folder


@pytest.mark.parametrize("where", ["nowhere", "keyframe", "current", "both"])
def test_the_exported_compact_network_finds_what_torch_finds_with_masks_too(compact_folder: Path, where: str) -> None:
    mask = corner_mask(made_compact.HEIGHT, made_compact.WIDTH)
    masks = (mask if where in ("keyframe", "both") else None, mask.flip(1) if where in ("current", "both") else None)
    images = shifted_pair()
    found, expected = (matched(model, images, masks) for model in (opened(compact_folder), compact()))
    assert_same(found, expected, at_least=40)
    for points, usable in zip((found.points0, found.points1), masks, strict=True):
        column, row = points.round().long().unbind(1)
        inside = (row.clamp(0, made_compact.HEIGHT - 1), column.clamp(0, made_compact.WIDTH - 1))
        assert usable is None or usable[inside].all()


def test_where_nothing_matches_the_exported_compact_network_gives_nothing(compact_folder: Path) -> None:
    image, matcher = shifted_pair()[0], opened(compact_folder)
    for images in ((image, torch.zeros_like(image)), (torch.zeros_like(image), image)):
        found = matched(matcher, images, (None, None))
        assert found.points0.shape == found.points1.shape == (0, 2) and found.cell.dtype == torch.int64


def test_the_compact_networks_cap_and_threshold_act_in_the_graph_and_after_it(
    compact_folder: Path, tmp_path: Path
) -> None:
    model, images = compact(), shifted_pair()
    expected = matched(model, images, (None, None))
    count = confident(expected)
    stricter = opened(compact_folder, threshold=0.9)
    # Not to the pixel: the matches that are left out here have told the graph how the image is turned around others.
    found = matched(stricter, images, (None, None)), matched(with_coarse(model, threshold=0.9), images, (None, None))
    assert found[0].cell.tolist() == found[1].cell.tolist()
    torch.testing.assert_close(found[0].confidence, found[1].confidence, rtol=0, atol=1e-5)
    with_coarse(model, threshold=0.001, max_matches=count)
    export_network(model, tmp_path, made_compact.WIDTH, made_compact.HEIGHT, weights="random")
    for matcher in (opened(tmp_path), opened(compact_folder, max_matches=count)):
        assert matched(matcher, images, (None, None)).cell.tolist() == expected.cell[expected.confidence > 0.9].tolist()


def test_an_export_of_the_compact_network_is_recognised(compact_folder: Path) -> None:
    matcher = opened(compact_folder)
    assert matcher.config == compact().config and matcher.has_fine_stage and matcher.cell_size == 8
    assert json.loads((compact_folder / MODEL_FILE).read_text())["opset"] == 17


# Operators that TensorRT runs by itself, in shapes that are known when the engine is built.
ALLOWED = """
    Abs Add Clip Div Elu Exp LeakyRelu Log Max Min Mod Mul Neg Pow Reciprocal Relu Softplus Sqrt Sub Tanh
    AveragePool Conv Gemm LayerNormalization LogSoftmax MatMul MaxPool Resize Softmax
    ArgMax ReduceMax ReduceMean ReduceMin ReduceSum TopK And Equal Greater GreaterOrEqual Less LessOrEqual Not Or Where
    Cast Concat Constant ConstantOfShape Expand Flatten Gather GatherElements Identity Pad Reshape ScatterElements Shape
    Slice Split Squeeze Tile Transpose Unsqueeze QuantizeLinear DequantizeLinear
"""


def assert_is_fixed(path: Path) -> None:
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    assert {node.op_type for node in graph.node} <= set(ALLOWED.split())
    assert {imported.domain for imported in onnx.load(str(path)).opset_import} == {""}
    for output in graph.output:
        assert all(dimension.HasField("dim_value") for dimension in output.type.tensor_type.shape.dim)
    constants = {each.name: each for each in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "TopK":
            assert int(onnx.numpy_helper.to_array(constants[node.input[1]])[0]) <= 3840
        if node.op_type == "ScatterElements":
            assert attributes.get("reduction", b"none") == b"none"


@pytest.mark.parametrize("precision", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "preset",
    ["coarse_lite", *(pytest.param(name, marks=pytest.mark.long) for name in ("compact", "efficient_opt", "loftr_ot"))],
)
def test_an_export_for_a_gpu_is_a_fixed_program_and_finds_the_same(
    preset: str, precision: torch.dtype, tmp_path: Path
) -> None:
    if preset == "compact":
        model: Network = load_network(
            "compact", find_weights("compact", ""), CPU, precision, coarse={"max_matches": 99}
        )
    elif preset.startswith("efficient"):
        model = made_efficient.network(made_efficient.configured(preset), precision)
    else:
        model = random_lite(precision) if preset == "coarse_lite" else network(precision, preset)
    export_network(model, tmp_path, WIDTH, HEIGHT, weights="made", fixed=True)
    for name in (ENCODE_FILE, MATCH_FILE):
        assert_is_fixed(tmp_path / name)
    matcher = opened(tmp_path)
    if precision == torch.float32:
        images = rendered_pair(WIDTH, HEIGHT)
        assert_same(*(matched(each, images, (None, None)) for each in (matcher, model)), at_least=0)


@pytest.mark.long
def test_the_published_low_end_network_finds_on_real_images_what_torch_finds(shared_data: Path, tmp_path: Path) -> None:
    student = load_network("coarse_lite", shared_data / "coarse_loftr" / "LoFTR_teacher.pt", CPU, torch.float32)
    export_network(student, tmp_path, 640, 480, weights="low_end")
    images = sevenscenes_pair(shared_data)
    matcher = opened(tmp_path)
    assert not matcher.has_fine_stage and matcher.cell_size == 16
    assert_same(matched(matcher, images, (None, None)), matched(student, images, (None, None)), at_least=300)


@pytest.mark.long
@pytest.mark.parametrize("preset", ["loftr", "loftr_ot"])
@pytest.mark.parametrize("precision", [torch.uint8, torch.float32])
def test_where_nothing_matches_the_result_is_empty_and_well_typed(
    folders: dict[str, Path], preset: str, precision: torch.dtype
) -> None:
    matcher = opened(folders[preset])
    image, constant = rendered_pair(WIDTH, HEIGHT)[0], torch.zeros(HEIGHT, WIDTH, dtype=precision)
    nothing = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for images, masks in (
        ((image, constant), (None, None)),
        ((constant, constant), (None, None)),
        ((image, image), (None, nothing)),
    ):
        found = matched(matcher, images, masks)
        assert len(found) == 0
        assert found.points0.shape == found.points1.shape == (0, 2)
        assert found.cell.dtype == torch.int64
        assert {t.dtype for t in (found.points0, found.points1, found.confidence, found.std)} == {torch.float32}


@pytest.mark.long
def test_several_keyframes_are_matched_in_their_order_and_from_a_ring(folders: dict[str, Path]) -> None:
    matcher, ring = opened(folders["loftr"]), FeatureRing(3)
    image0, image1 = rendered_pair(WIDTH, HEIGHT)
    current = matcher.encode(image1)
    expected = [matcher.match([matcher.encode(image)], current)[0] for image in (image0, image1, image0.flip(1))]
    kept = [ring.keep(matcher.complete(matcher.encode(image))) for image in (image0, image1, image0.flip(1))]
    for found, alone in zip(matcher.match(kept, current), expected, strict=True):
        assert_same(found, alone, at_least=0)
    assert len({len(matches) for matches in expected}) == 3
    assert matcher.match([], current) == []


@pytest.mark.long
def test_one_thread_encodes_while_another_matches(folders: dict[str, Path]) -> None:
    matcher = opened(folders["loftr"])
    image0, image1 = rendered_pair(WIDTH, HEIGHT)
    keyframe, current = matcher.encode(image0), matcher.encode(image1)
    expected = matcher.match([keyframe], current)[0]
    with ThreadPoolExecutor(2) as pool:
        encoded = [pool.submit(matcher.encode, image1) for _ in range(3)]
        found = [pool.submit(matcher.match, [keyframe], current) for _ in range(3)]
    assert all(torch.equal(future.result().tokens, current.tokens) for future in encoded)
    for future in found:
        assert_same(future.result()[0], expected)


def test_an_image_of_another_size_is_refused_with_both_sizes_and_the_command(lite: Path) -> None:
    matcher = opened(lite)
    with pytest.raises(
        ValueError,
        match=r"image of 320x240, .* for 160x128; .*loftr_ros export --network coarse_lite --width 320 --height 240",
    ):
        matcher.encode(torch.zeros(240, 320))
    with pytest.raises(ValueError, match=r"expected \(H, W\)"):
        matcher.encode(torch.zeros(1, HEIGHT, WIDTH))
    with pytest.raises(ValueError, match=r"mask of shape \(3, 4\)"):
        matcher.encode(torch.zeros(HEIGHT, WIDTH), torch.ones(3, 4, dtype=torch.bool))


def confident(matches: Matches) -> int:
    """Number of matches above a confidence to which none is close: the order of those about 1 is random."""
    count = int((matches.confidence > 0.9).sum())
    assert 30 < count < len(matches)
    return count


@pytest.mark.long
def test_a_stricter_threshold_cap_and_border_act_as_torchs(folders: dict[str, Path]) -> None:
    images, stricter = rendered_pair(WIDTH, HEIGHT), {"threshold": 0.4, "border": 3}
    all_of_them = matched(opened(folders["loftr"]), images, (None, None))
    expected = matched(with_coarse(network(), **stricter), images, (None, None))
    assert_same(matched(opened(folders["loftr"], **stricter), images, (None, None)), expected, at_least=40)
    assert len(expected) < len(all_of_them)
    capped = matched(opened(folders["loftr"], **stricter, max_matches=confident(expected)), images, (None, None))
    keep = expected.confidence > 0.9
    assert capped.cell.tolist() == expected.cell[keep].tolist()
    wider = matched(opened(folders["loftr"], border=0), images, (None, None))
    assert_same(wider, matched(with_coarse(network(), border=0), images, (None, None)), at_least=len(all_of_them))


@pytest.mark.long
def test_what_is_not_in_the_graph_cannot_be_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"threshold 0.1 is below 0.2.*--threshold 0.1"):
        opened(folders["loftr"], threshold=0.1)
    with pytest.raises(ValueError, match=r"temperature cannot be replaced"):
        opened(folders["loftr"], temperature=1.0)
    export_network(with_coarse(random_lite(), max_matches=10), tmp_path, WIDTH, HEIGHT, weights="random")
    for more in (0, 11):
        with pytest.raises(WeightsError, match="more than 10"):
            opened(tmp_path, max_matches=more)
    assert opened(tmp_path, max_matches=5).config.coarse.max_matches == 5


@pytest.mark.long
def test_a_threshold_and_cap_in_the_graph_act_as_torchs(tmp_path: Path) -> None:
    images, model = rendered_pair(WIDTH, HEIGHT), with_coarse(network(), threshold=0.3)
    count = confident(matched(model, images, (None, None)))
    with_coarse(model, max_matches=count)
    export_network(model, tmp_path, WIDTH, HEIGHT, weights="made")
    found = matched(opened(tmp_path), images, (None, None))
    assert len(found) == count
    assert_same(found, matched(model, images, (None, None)), at_least=count)
    assert len(matched(opened(tmp_path), (images[0], torch.zeros_like(images[0])), (None, None))) == 0


@pytest.mark.long
def test_the_front_end_gives_the_same_with_either_backend(folders: dict[str, Path]) -> None:
    results = []
    for matcher in (network(), opened(folders["loftr"])):
        stream, front_end = PanningStream(WIDTH, HEIGHT), FrontEnd(matcher)
        usable = corner_mask().numpy()
        frames = [stream.at(0), stream.at(6, 2), stream.at(14, 3, usable=usable)]
        results.append([front_end.process(frame) for frame in frames])
    for by_torch, by_onnx in zip(*results, strict=True):
        assert len(by_torch.matches) == len(by_onnx.matches)
        for one, other in zip(by_torch.matches, by_onnx.matches, strict=True):
            assert one.keyframe.id == other.keyframe.id
            assert len(one.correspondences) > 30
            np.testing.assert_array_equal(other.correspondences.track_id, one.correspondences.track_id)
            np.testing.assert_allclose(
                other.correspondences.current_points, one.correspondences.current_points, atol=0.01
            )


@pytest.mark.long
def test_half_precision_finds_the_matches_of_full_precision(tmp_path: Path) -> None:
    half, images = network(torch.float16), rendered_pair(WIDTH, HEIGHT)
    export_network(half, tmp_path, WIDTH, HEIGHT, weights="made")
    matcher = opened(tmp_path)
    features = matcher.encode(images[0])
    assert matcher.dtype == features.tokens.dtype == torch.float16
    assert features.fine is not None and features.fine.dtype == torch.float16
    found, expected = matched(matcher, images, (None, None)), matched(network(), images, (None, None))
    assert found.confidence.dtype == found.points1.dtype == torch.float32
    places = {int(cell): point for cell, point in zip(found.cell, found.points1, strict=True)}
    distances = [
        float((places[int(cell)] - point).norm())
        for cell, point in zip(expected.cell, expected.points1, strict=True)
        if int(cell) in places
    ]
    assert len(expected) > 50 and len(distances) >= 0.95 * len(expected)
    assert np.median(distances) < 0.1


@pytest.mark.long
def test_model_json_says_what_was_exported(folders: dict[str, Path]) -> None:
    content = json.loads((folders["loftr"] / MODEL_FILE).read_text())
    assert (content["format"], content["format_version"]) == ("loftr_ros-onnx", 1)
    assert (content["width"], content["height"], content["precision"]) == (WIDTH, HEIGHT, "float32")
    assert content["network"]["config"]["coarse"]["threshold"] == 0.2
    assert content["weights"] == "made" and content["torch_version"] == torch.__version__
    assert {path.name for path in folders["loftr"].iterdir()} == {MODEL_FILE, ENCODE_FILE, MATCH_FILE}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
        (lambda folder: (folder / MATCH_FILE).unlink(), f"lacks {MATCH_FILE}"),
        (lambda folder: (folder / MODEL_FILE).write_text("{"), "is damaged"),
        (lambda folder: (folder / MODEL_FILE).write_text('{"format": "other"}'), "of format 'other'"),
        (lambda folder: edit_model(folder, format_version=7), "of version 7; this loftr_ros reads version 1"),
        (lambda folder: edit_model(folder, network={}), "is damaged"),
        (lambda folder: edit_model(folder, width=320), "different exports"),
        (lambda folder: truncate(folder / ENCODE_FILE), "cannot be opened by onnxruntime"),
    ],
)
def test_a_broken_folder_is_refused_with_what_is_wrong(lite: Path, tmp_path: Path, damage, says: str) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "export"
    shutil.copytree(lite, folder)
    damage(folder)
    with pytest.raises(WeightsError, match=says):
        opened(folder)


def edit_model(folder: Path, **changes: object) -> None:
    path = folder / MODEL_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_provider_that_is_not_there_is_refused_with_those_that_are(lite: Path) -> None:
    with pytest.raises(DeviceError, match=r"has no NoSuchProvider here; there are .*CPUExecutionProvider"):
        load_onnx(lite, ["NoSuchProvider"])


def test_without_onnxruntime_the_backend_says_what_to_install(lite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match="pip install onnxruntime"):
        opened(lite)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = tmp_path / "export", random_lite()
    with pytest.raises(ExportError, match="at least a cell, 16 px"):
        export_network(model, folder, 640, 8, weights="random")
    with pytest.raises(ExportError, match="opset 9 is not supported"):
        export_network(model, folder, WIDTH, HEIGHT, weights="random", opset=9)
    half = load_network("coarse_lite", None, CPU, torch.bfloat16)
    with pytest.raises(ExportError, match="precision bfloat16 is not exported"):
        export_network(half, folder, WIDTH, HEIGHT, weights="random")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="pip install onnx"):
        export_network(model, folder, WIDTH, HEIGHT, weights="random")
    assert not folder.exists()


EVERY_PRECISION = [torch.float32, torch.float16]


@pytest.mark.parametrize("precision", EVERY_PRECISION)
@pytest.mark.parametrize(
    "preset",
    [
        *(pytest.param(name, marks=pytest.mark.long) for name in PRESETS if name not in ("coarse_lite", "compact")),
        "coarse_lite",
        "compact",
    ],
)
def test_every_preset_in_every_precision_is_valid_and_finds_what_the_network_finds(
    preset: str, precision: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed: list[Agreement] = []
    monkeypatch.setattr(export, "check_export", lambda *given: agreed.append(check_export(*given)))
    if preset == "compact":
        model: Network = load_network("compact", find_weights("compact", ""), CPU, precision)
    elif preset.startswith("efficient"):
        model = made_efficient.network(made_efficient.configured(preset), precision)
    else:
        model = random_lite(precision) if preset == "coarse_lite" else network(precision, preset)
    export_network(model, tmp_path, WIDTH, HEIGHT, weights="made")
    (found,) = agreed
    assert found.features < 0.01 and found.distance < 0.1
    assert found.common >= 0.9 * found.matches
    assert found.matches > 50 or preset == "coarse_lite"  # whose weights are random here


def test_what_the_checker_refuses_is_not_written_and_an_older_export_stays(
    lite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(lite, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)

    monkeypatch.setattr(region_transformer, "softmax_attention", fused)
    with pytest.raises(ExportError, match=r"compact in float16 .*onnx's checker refuses encode\.onnx.*LayerNorm"):
        export_network(compact(torch.float16), folder, made_compact.WIDTH, made_compact.HEIGHT, weights="random")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_graphs_that_find_something_else_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mirrored(graphs.EncodeGraph):
        def forward(self, image: Tensor, usable: Tensor) -> tuple[Tensor, ...]:
            return super().forward(image.flip(3), usable)

    monkeypatch.setattr(export, "EncodeGraph", Mirrored)
    with pytest.raises(ExportError, match=r"tokens that the graph encodes are .* % off the network's"):
        export_network(random_lite(), tmp_path, WIDTH, HEIGHT, weights="random")
    assert list(tmp_path.iterdir()) == []


def test_matches_that_the_network_does_not_find_are_told(compact_folder: Path) -> None:
    stricter, exported = with_coarse(compact(), threshold=0.9), read_model(compact_folder)
    with pytest.raises(DisagreementError, match=r"the graphs find \d+ matches where the network finds \d+"):
        check_export(stricter, exported, compact_folder / ENCODE_FILE, compact_folder / MATCH_FILE)


def test_without_onnxruntime_nothing_is_exported_since_nothing_could_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(ExportError, match="pip install onnxruntime"):
        export_network(random_lite(), tmp_path / "export", WIDTH, HEIGHT, weights="random")
    assert not (tmp_path / "export").exists()


# --- which provider a device means ---


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device, by name only."""
    monkeypatch.setattr(factory, "resolve_device", lambda name: CPU if name == "cpu" else torch.device("cuda", 0))


def by_onnx(folder: Path, device: str, *providers: str) -> Matcher:
    return open_matcher(MatcherSpec("auto", folder, device=device, backend="onnx", providers=providers))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_was_asked_for_and_that_onnxruntime_cannot_use_is_an_error(lite: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=rf"device '{device}' with backend onnx needs CUDAExec.*onnxruntime-gpu"):
        by_onnx(lite, device)
    with pytest.raises(DeviceError, match=r"only execution provider of onnxruntime is CPUExecutionProvider"):
        by_onnx(lite, device, "CPUExecutionProvider")


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_was_not_asked_for_and_cannot_be_used_is_a_warning(
    lite: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matcher = by_onnx(lite, "auto")
    assert matcher.device == CPU
    assert "onnxruntime computes on the CPU, although there is a GPU" in caplog.text
    assert "has no CUDAExecutionProvider here" in caplog.text
    caplog.clear()
    assert by_onnx(lite, "cpu").device == by_onnx(lite, "auto", "CPUExecutionProvider").device == CPU
    assert not caplog.text


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [
        ("cuda", (), ("CUDAExecutionProvider",)),
        ("auto", (), ("CUDAExecutionProvider",)),
        ("cpu", (), CPU_PROVIDER),
        ("cuda", ("TensorrtExecutionProvider", "CUDAExecutionProvider"), None),
        ("cuda", ("CUDAExecutionProvider", "CPUExecutionProvider"), None),
        ("cpu", ("CUDAExecutionProvider",), None),
    ],
)
def test_a_device_without_providers_means_its_own(
    lite: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    given: tuple[str, ...],
    expected: tuple[str, ...] | None,
) -> None:
    asked: list[tuple[tuple[str, ...], torch.device]] = []

    def opening(path: Path, providers: tuple[str, ...], at: torch.device, *rest: object, **more: object) -> Matcher:
        asked.append((tuple(providers), at))
        return load_onnx(path, CPU_PROVIDER)

    monkeypatch.setattr(onnx_backend, "load_onnx", opening)
    by_onnx(lite, device, *given)
    assert asked == [(expected or given, CPU if device == "cpu" else torch.device("cuda", 0))]


def export_by_command(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAM), "export", "--network", "coarse_lite", "--weights", "random"]
    command += ["--width", str(WIDTH), "--height", str(HEIGHT), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def test_the_command_line_exports_what_the_factory_opens(tmp_path: Path) -> None:
    done = export_by_command(tmp_path, "--threshold", "0.05")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / f"coarse_lite_{WIDTH}x{HEIGHT}"
    assert f"{folder.name}: network coarse_lite, weights random, images of 160x128, float32" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" MB; checked by onnx and onnxruntime")
    matcher = open_matcher(MatcherSpec("auto", folder, device="cpu", backend="onnx", coarse={"threshold": 0.1}))
    assert matcher.config.coarse.threshold == 0.1
    images, model = rendered_pair(WIDTH, HEIGHT), with_coarse(random_lite(), threshold=0.1)
    assert_same(matched(matcher, images, (None, None)), matched(model, images, (None, None)), at_least=0)


def test_the_command_line_refuses_in_a_line(tmp_path: Path) -> None:
    refused = export_by_command(tmp_path, "--opset", "9")
    assert refused.returncode == 2
    assert refused.stderr.startswith("loftr_ros: opset 9 is not supported") and refused.stderr.count("\n") == 1
