"""`precision: int8`: the backbone of `compact` in 8 bits, by OpenVINO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rendered_pair import CAMERA, views
from test_export import assert_is_fixed

from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.results import Correspondences
from loftr_ros.frontend.wide_pairs import WideConfig
from loftr_ros.matcher.checkpoints.files import WeightsError, load_network
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.factory import MatcherSpec, open_matcher, precision_of
from loftr_ros.matcher.precision import DeviceError, cpu_has_int8, resolve_precision
from loftr_ros.matcher.runtime.export import ExportError, export_network
from loftr_ros.matcher.runtime.exported import ENCODE_FILE, MATCH_FILE, read_model
from loftr_ros.matcher.runtime.int8 import FIRST, Int8Ranges, find_ranges, ranges_for
from loftr_ros.training.int8_ranges import int8_ranges
from loftr_ros.weights import find_weights

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

CPU, NETWORK = torch.device("cpu"), "compact"
WEIGHTS = find_weights(NETWORK)


def frame(number: int) -> Frame:
    return Frame(views()[number].image, number + 1, "cam", CAMERA)


def opened(precision: str, weights: Path | None = WEIGHTS, **options: str) -> Compact:
    matcher = open_matcher(MatcherSpec(NETWORK, weights, "cpu", precision, threads=1, **options))
    assert isinstance(matcher, Compact)
    return matcher


def layers_by_precision(matcher: Compact) -> dict[str, str]:
    """What OpenVINO computes each convolution of the backbone in, by the name of the convolution."""
    graph = next(iter(matcher.backbone._graphs._kept.values()))  # type: ignore[union-attr]
    found = {}
    for op in graph._compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        if info["layerType"].astype(str) == "Convolution":
            names = info["originalLayersNames"].astype(str)
            convolution = next(name for name in names.split(",") if name.endswith("_convolution/Convolution"))
            found[convolution.removeprefix("__module.backbone.").split("/")[0]] = info["runtimePrecision"].astype(str)
    return found


@pytest.fixture(scope="module")
def int8() -> Compact:
    return opened("int8")


@pytest.fixture(scope="module")
def pair() -> tuple[Correspondences, Correspondences]:
    """Matches of a rendered pair in float32 and in int8."""
    once = WideConfig(min_matches=0)
    by_float = PairMatcher(opened("float32"), wide=once).match_pair(frame(0), frame(1))
    return by_float, PairMatcher(opened("int8"), wide=once).match_pair(frame(0), frame(1))


def test_every_convolution_of_the_backbone_but_the_first_is_computed_in_8_bits(int8: Compact) -> None:
    PairMatcher(int8).encode(frame(0))
    found = layers_by_precision(int8)
    assert len(found) == 25 and found.pop(FIRST) not in ("u8", "i8")
    assert set(found.values()) <= {"u8", "i8"}


def test_matches_are_those_of_float32(pair: tuple[Correspondences, Correspondences]) -> None:
    expected, found = pair
    _, mine, theirs = np.intersect1d(found.track_id, expected.track_id, assume_unique=True, return_indices=True)
    off = np.linalg.norm(found.current_points[mine] - expected.current_points[theirs], axis=1)
    assert len(expected) > 500
    assert (off < 1).sum() > 0.95 * len(expected) and abs(len(found) - len(expected)) < 0.03 * len(expected)
    assert np.median(off) < 0.05


def test_auto_is_int8_where_the_processor_has_it_and_the_ranges_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for has, name in ((True, "int8 and "), (False, "")):
        monkeypatch.setattr("loftr_ros.matcher.factory.cpu_has_int8", lambda has=has: has)
        rest = str(resolve_precision("auto", CPU)).removeprefix("torch.")
        assert precision_of(opened("auto")) == name + rest
    monkeypatch.setattr("loftr_ros.matcher.factory.cpu_has_int8", lambda: True)
    assert precision_of(opened("bfloat16")) == "bfloat16"
    alone = Path(shutil.copy(WEIGHTS, tmp_path))
    assert "int8" not in precision_of(opened("auto", alone))


def test_int8_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    alone = Path(shutil.copy(WEIGHTS, tmp_path))
    with pytest.raises(WeightsError, match="loftr_ros train int8"):
        opened("int8", alone)
    ranges = find_ranges(WEIGHTS, opened("int8").fingerprint)
    assert ranges is not None
    Int8Ranges("of another network", ranges.largest).write(alone)
    with pytest.raises(WeightsError, match="loftr_ros train int8"):
        opened("int8", alone)
    for name, options in (("coarse_lite", {}), (NETWORK, {"backend": "torch"})):
        with pytest.raises(DeviceError, match=f"'int8' is for network compact: .* here torch runs {name} in .* on cpu"):
            open_matcher(MatcherSpec(name, None, "cpu", "int8", **options))


def test_what_is_not_in_8_bits_is_in_half_precision_on_a_gpu() -> None:
    assert resolve_precision("int8", torch.device("cuda", 0)) == torch.float16


# --- exported ---

SIZE = (CAMERA.width, CAMERA.height)


def exported(folder: Path, precision: torch.dtype, *, fixed: bool) -> Path:
    network = load_network(NETWORK, WEIGHTS, CPU, precision)
    ranges = ranges_for(WEIGHTS, network.fingerprint)
    export_network(network, folder, *SIZE, weights="in the package", fixed=fixed, int8=ranges)
    return folder


@pytest.fixture(scope="module")
def for_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export for CPUs."""
    return exported(tmp_path_factory.mktemp("cpu"), torch.float32, fixed=False)


@pytest.fixture(scope="module")
def for_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export for TensorRT."""
    return exported(tmp_path_factory.mktemp("gpu"), torch.float16, fixed=True)


@pytest.mark.parametrize("kind", ["for_cpu", "for_gpu"])
def test_an_export_says_which_convolutions_are_in_8_bits(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    model = onnx.load(str(folder / ENCODE_FILE))
    made_by = {name: node for node in model.graph.node for name in node.output}
    values = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    rounded = [node for node in convolutions if node.input[1] in made_by]
    assert (len(convolutions), len(rounded)) == (25, 21)
    for node in rounded:
        activation, weight = (made_by[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert values[weight.input[0]].dtype == np.int8 and weight.attribute[0].i == 0
        assert values[weight.input[1]].shape == (len(values[weight.input[0]]),)
        source = made_by[activation.input[0]]
        assert source.op_type == "QuantizeLinear" and source.input[1:] == activation.input[1:]
        zero = values[source.input[2]]
        # TensorRT has signed integers alone, and none for zero but zero.
        assert zero == 0 and zero.dtype == (np.int8 if kind == "for_gpu" else np.uint8)
    if kind == "for_gpu":
        for name in (ENCODE_FILE, MATCH_FILE):
            assert_is_fixed(folder / name)
    assert read_model(folder).precision_name == ("int8 and float16" if kind == "for_gpu" else "int8 and float32")


@pytest.mark.parametrize(("kind", "backend"), [("for_cpu", "onnx"), ("for_gpu", "onnx"), ("for_cpu", "openvino")])
def test_an_export_finds_what_int8_by_openvino_finds(
    kind: str, backend: str, request: pytest.FixtureRequest, pair: tuple[Correspondences, Correspondences]
) -> None:
    matcher = open_matcher(MatcherSpec("auto", request.getfixturevalue(kind), "cpu", "int8", backend))
    assert precision_of(matcher).startswith("int8 and float")
    found = PairMatcher(matcher, wide=WideConfig(min_matches=0)).match_pair(frame(0), frame(1))
    for expected in pair:
        _, mine, theirs = np.intersect1d(found.track_id, expected.track_id, assume_unique=True, return_indices=True)
        off = np.linalg.norm(found.current_points[mine] - expected.current_points[theirs], axis=1)
        assert (off < 1).sum() > 0.95 * len(expected) and abs(len(found) - len(expected)) < 0.03 * len(expected)
        assert np.median(off) < 0.07


def test_an_export_that_is_not_in_int8_is_not_taken_for_one(for_cpu: Path, tmp_path: Path) -> None:
    export_network(load_network("coarse_lite", None, CPU, torch.float32), tmp_path, 96, 64, weights="random")
    with pytest.raises(DeviceError, match=r"'int8' is for network compact: .* here onnx runs coarse_lite in float32"):
        open_matcher(MatcherSpec("auto", tmp_path, "cpu", "int8", "onnx"))
    shutil.copytree(for_cpu, tmp_path, dirs_exist_ok=True)
    assert precision_of(open_matcher(MatcherSpec("auto", tmp_path, "cpu", "auto", "onnx"))) == "int8 and float32"


def test_ranges_and_operators_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    network, other = (load_network(name, None, CPU, torch.float16) for name in (NETWORK, "coarse_lite"))
    ranges = find_ranges(WEIGHTS, opened("int8").fingerprint)
    with pytest.raises(ExportError, match="opset 17 is not supported; expected 19 to 20"):
        export_network(network, tmp_path, 96, 64, weights="", opset=17, int8=ranges)
    with pytest.raises(WeightsError, match="ranges of int8 are of other convolutions"):
        export_network(other, tmp_path, 96, 64, weights="", int8=ranges)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": "%s", "largest": {"cell_above": -1}}', "\x00"])
def test_damaged_ranges_are_refused_with_their_path(content: str, tmp_path: Path) -> None:
    alone = Path(shutil.copy(WEIGHTS, tmp_path))
    (tmp_path / "compact.int8.json").write_text(content.replace("%s", opened("float32").fingerprint))
    with pytest.raises(WeightsError, match=r"compact\.int8\.json"):
        opened("int8", alone)


def test_ranges_of_other_convolutions_are_refused(tmp_path: Path) -> None:
    alone = Path(shutil.copy(WEIGHTS, tmp_path))
    Int8Ranges(opened("float32").fingerprint, {"cell_above": 1.0}).write(alone)
    with pytest.raises(WeightsError, match="other convolutions"):
        opened("int8", alone)


def test_the_packaged_ranges_hold_for_a_rendered_view() -> None:
    packaged = json.loads(WEIGHTS.with_suffix(".int8.json").read_text())["largest"]
    here = int8_ranges(WEIGHTS, [views()[0].image]).largest
    assert set(here) == set(packaged)
    assert max(here[name] / packaged[name] for name in here) < 1.3


def test_measured_ranges_are_the_largest_inputs(tmp_path: Path) -> None:
    images: list[NDArray[np.uint8]] = [views()[0].image, np.full((50, 70), 255, np.uint8)]
    both, first = int8_ranges(WEIGHTS, images).largest, int8_ranges(WEIGHTS, images[:1]).largest
    assert all(both[name] >= first[name] > 0 for name in both)
    with pytest.raises(WeightsError, match="no image"):
        int8_ranges(WEIGHTS, [])


def test_processors_with_8_bit_products_are_known_by_their_flags(tmp_path: Path) -> None:
    for flags, has in (("avx2 avx512_vnni", True), ("avx_vnni", True), ("amx_int8", True), ("avx2 avx512f", False)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
        assert cpu_has_int8(tmp_path / "cpuinfo") == has
    assert not cpu_has_int8(tmp_path / "none")
