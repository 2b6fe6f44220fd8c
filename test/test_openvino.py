"""OpenVINO's backend: the results of PyTorch, from an export and from the weights."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from made_compact import HEIGHT, WIDTH, compact, shifted_pair
from test_compact import blobs
from test_export import assert_same, corner_mask, matched, opened, random_lite
from torch import Tensor

from loftr_ros.matcher.checkpoints.files import WeightsError, save_network_weights
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.config import COMPACT
from loftr_ros.matcher.factory import MatcherSpec, backend_of, open_matcher
from loftr_ros.matcher.precision import DeviceError, cpu_has_bf16
from loftr_ros.matcher.ring import FeatureRing
from loftr_ros.matcher.runtime import openvino_compact
from loftr_ros.matcher.runtime.export import export_network
from loftr_ros.matcher.runtime.exported import ENCODE_FILE
from loftr_ros.matcher.runtime.openvino_backend import load_openvino
from loftr_ros.matcher.runtime.openvino_compact import compiled
from loftr_ros.matcher.runtime.openvino_runtime import Runtime

pytest.importorskip("openvino")

F32 = torch.float32
needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="the processor has no bf16")


@cache
def by_openvino(dtype: torch.dtype = F32) -> Compact:
    """One for all tests: graphs are built once per size."""
    return compiled(compact(), dtype, threads=1)


@pytest.mark.parametrize("where", ["nowhere", "keyframe", "current", "both"])
def test_the_compiled_network_finds_what_torch_finds_with_masks_too(where: str) -> None:
    first, second = corner_mask(HEIGHT, WIDTH), corner_mask(HEIGHT, WIDTH).flip(1)
    masks = (first if where in ("keyframe", "both") else None, second if where in ("current", "both") else None)
    images = shifted_pair()
    found, expected = matched(by_openvino(), images, masks), matched(compact(), images, masks)
    assert_same(found, expected, at_least=40)
    for points, mask in zip((found.points0, found.points1), masks, strict=True):
        column, row = points.round().long().unbind(1)
        assert mask is None or mask[row.clamp(0, HEIGHT - 1), column.clamp(0, WIDTH - 1)].all()


def test_signals_are_handled_after_backends_were_closed_in_the_order_in_which_they_were_opened() -> None:
    first, second = Runtime(F32, 1), Runtime(F32, 1)
    del first
    del second
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
        signal.raise_signal(signal.SIGUSR1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_graphs_for_images_of_another_size_are_told_of_before_they_are_built(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: object) -> None:
        raise InterruptedError([record.getMessage() for record in caplog.records])

    monkeypatch.setattr(openvino_compact, "_converted", build)
    network = compiled(compact(), F32, threads=1)
    with caplog.at_level(logging.INFO, "loftr_ros"), pytest.raises(InterruptedError) as told:
        network.encode(blobs(64, 96))
    assert told.value.args == (["OpenVINO builds graphs for images of 96x64 px, which takes some seconds"],)


def test_images_of_two_other_sizes_match_as_by_torch() -> None:
    first, second = blobs(96, 128), blobs(128, 96)
    second[:96] = first[:, :96]
    assert_same(
        matched(by_openvino(), (first, second), (None, None)),
        matched(compact(), (first, second), (None, None)),
        at_least=30,
    )


@needs_bf16
def test_in_bf16_nearly_all_matches_are_those_of_fp32() -> None:
    images, matcher = shifted_pair(), by_openvino(torch.bfloat16)
    assert matcher.dtype == torch.bfloat16
    features = matcher.encode(images[0])
    for kept in (features.tokens, features.fine, features.cells):
        assert kept is not None and kept.dtype == torch.bfloat16
    found, expected = matched(matcher, images, (None, None)), matched(compact(), images, (None, None))
    sure = expected.confidence > 0.5
    places = {int(cell): point for cell, point in zip(found.cell, found.points1, strict=True)}
    cells, points = expected.cell[sure].tolist(), expected.points1[sure]
    distances = [
        float((places[cell] - point).norm()) for cell, point in zip(cells, points, strict=True) if cell in places
    ]
    assert len(cells) > 60 and len(distances) >= 0.9 * len(cells)
    assert np.median(distances) < 0.1


def test_several_keyframes_from_a_ring_are_matched_in_their_order() -> None:
    matcher, ring = by_openvino(), FeatureRing(2)
    images = shifted_pair()
    current = matcher.encode(images[1])
    kept = [ring.keep(matcher.complete(matcher.encode(image))) for image in images]
    together, expected = (
        matcher.match(kept, current),
        [matched(compact(), (i, images[1]), (None, None)) for i in images],
    )
    for found, alone in zip(together, expected, strict=True):
        assert_same(found, alone, at_least=60)
    assert len(expected[0]) != len(expected[1])


def test_features_are_their_images_own_however_many_come_after() -> None:
    matcher = by_openvino()
    images = shifted_pair()
    first = matcher.encode(images[0])
    before = [tensor.clone() for tensor in (first.tokens, first.fine, first.cells) if tensor is not None]
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(matcher.encode, image) for image in (images[1], images[0]) * 3]
        matches = [pool.submit(matcher.match, [first], first) for _ in range(3)]
    for tensor, kept in zip((first.tokens, first.fine, first.cells), before, strict=True):
        assert tensor is not None and torch.equal(tensor, kept)
    assert all(torch.equal(future.result().tokens, first.tokens) for future in others[1::2])
    assert not torch.equal(others[0].result().tokens, first.tokens)
    assert all(torch.equal(future.result()[0].points1, matches[0].result()[0].points1) for future in matches)


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "0 PASSIVE"), ({"GOMP_SPINCOUNT": "7"}, "7 PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "None active")],
)
def test_torchs_idle_threads_leave_the_cores_to_others_unless_the_user_says_otherwise(
    given: dict[str, str], spins: str
) -> None:
    # What OpenMP reads when torch brings it in, as it is by then.
    code = "import loftr_ros.matcher.config, os, sys; assert 'torch' not in sys.modules; "
    code += "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.strip() == spins


def test_where_nothing_matches_the_result_is_empty() -> None:
    matcher, image = by_openvino(), shifted_pair()[0]
    constant = torch.full_like(image, 77)
    for images in ((image, constant), (constant, image)):
        found = matched(matcher, images, (None, None))
        assert found.points1.shape == (0, 2) and found.std.dtype == F32


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compact")
    export_network(compact(), folder, WIDTH, HEIGHT, weights="random")
    return folder


@pytest.mark.parametrize("masks", [(None, None), (corner_mask(HEIGHT, WIDTH), None)])
def test_an_exported_network_finds_what_torch_finds(exported: Path, masks: tuple[Tensor | None, Tensor | None]) -> None:
    matcher, images = load_openvino(exported, F32, threads=1), shifted_pair()
    assert backend_of(matcher) == "openvino" and matcher.fixed_size == (WIDTH, HEIGHT)
    assert_same(matched(matcher, images, masks), matched(compact(), images, masks), at_least=40)
    assert len(matched(matcher, (images[0], torch.zeros_like(images[0])), (None, None))) == 0


@needs_bf16
def test_of_an_exported_network_images_are_encoded_in_bf16_and_matched_in_fp32(exported: Path) -> None:
    images = shifted_pair()
    found = matched(load_openvino(exported, torch.bfloat16, threads=1), images, (None, None))
    expected = matched(compact(), images, (None, None))
    sure = expected.cell[expected.confidence > 0.5]
    assert torch.isin(sure, found.cell).float().mean() > 0.9


def test_a_damaged_graph_is_refused(exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.name == ENCODE_FILE else content)
    with pytest.raises(WeightsError, match="cannot be opened by OpenVINO"):
        load_openvino(tmp_path, F32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "compact.safetensors"
    save_network_weights(path, Compact(COMPACT).state_dict(), COMPACT, "random")
    return path


def test_auto_takes_openvino_for_the_compact_network_on_a_cpu_where_it_is_installed(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend_of(open_matcher(MatcherSpec("auto", weights, device="cpu"))) == "openvino"
    assert backend_of(open_matcher(MatcherSpec("compact", weights, device="cpu", backend="torch"))) == "torch"
    assert backend_of(open_matcher(MatcherSpec("coarse_lite", None, device="cpu"))) == "torch"
    assert backend_of(open_matcher(MatcherSpec("compact", None, device="cpu", precision="float16"))) == "torch"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert backend_of(open_matcher(MatcherSpec("compact", weights, device="cpu"))) == "torch"
    with pytest.raises(DeviceError, match="pip install openvino"):
        open_matcher(MatcherSpec("compact", weights, device="cpu", backend="openvino"))


def test_what_was_asked_of_matching_reaches_the_compiled_network(weights: Path) -> None:
    spec = MatcherSpec("auto", weights, device="cpu", backend="openvino", coarse={"threshold": 0.4, "max_matches": 7})
    matcher = open_matcher(spec)
    assert (matcher.config.coarse.threshold, matcher.config.coarse.max_matches) == (0.4, 7)


def test_what_openvino_does_not_run_is_refused_with_what_does(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(WeightsError, match=r"'coarse_lite' only as exported by"):
        open_matcher(MatcherSpec("coarse_lite", None, device="cpu", backend="openvino"))
    with pytest.raises(WeightsError, match="holds network 'compact', not 'loftr'"):
        open_matcher(MatcherSpec("loftr", exported, device="cpu", backend="openvino"))
    export_network(random_lite(), tmp_path, WIDTH, HEIGHT, weights="random")
    assert backend_of(open_matcher(MatcherSpec("auto", tmp_path, device="cpu", backend="openvino"))) == "openvino"
    assert backend_of(opened(tmp_path)) == "onnx"
