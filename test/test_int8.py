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

from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.results import Correspondences
from loftr_ros.matcher.checkpoints.files import WeightsError
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.factory import MatcherSpec, open_matcher, precision_of
from loftr_ros.matcher.precision import DeviceError, cpu_has_int8, resolve_precision
from loftr_ros.matcher.runtime.int8 import FIRST, Int8Ranges, find_ranges
from loftr_ros.training.int8_ranges import int8_ranges
from loftr_ros.weights import find_weights

pytest.importorskip("openvino")

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
    by_float = PairMatcher(opened("float32")).match_pair(frame(0), frame(1))
    return by_float, PairMatcher(opened("int8")).match_pair(frame(0), frame(1))


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
    for name, options in (("coarse_lite", {}), (NETWORK, {"backend": "torch"}), (NETWORK, {"backend": "onnx"})):
        with pytest.raises((DeviceError, WeightsError), match="int8"):
            open_matcher(MatcherSpec(name, None, "cpu", "int8", **options))
    with pytest.raises(DeviceError, match="for the CPU"):
        resolve_precision("int8", torch.device("cuda", 0))


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
