"""TensorRT by onnxruntime's provider: which options a stub of onnxruntime gets, and when engines are built again."""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loftr_ros.matcher import factory
from loftr_ros.matcher.checkpoints.files import WeightsError, load_network
from loftr_ros.matcher.factory import MatcherSpec, open_matcher
from loftr_ros.matcher.precision import DeviceError
from loftr_ros.matcher.runtime import onnx_backend
from loftr_ros.matcher.runtime.export import export_network
from loftr_ros.matcher.runtime.exported import ENCODE_FILE, MODEL_FILE
from loftr_ros.matcher.runtime.tensorrt import PROVIDER, Machine, TensorRTConfig, engine_name

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")
ORIN = Machine("10.3.0", "540.4.0", "Orin (nvgpu)")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Exports of the low-end network: for GPUs, and one that says that it is for CPUs."""
    made = {fixed: tmp_path_factory.mktemp("export") for fixed in (True, False)}
    export_network(load_network("coarse_lite", None, CPU, torch.float32), made[True], 96, 64, weights="", fixed=True)
    shutil.copytree(made[True], made[False], dirs_exist_ok=True)
    model = made[False] / MODEL_FILE
    model.write_text(model.read_text().replace('"fixed": true', '"fixed": false'))
    return made


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, dict[str, str]]]:
    """The providers' options of each session; a stub of onnxruntime passes the graphs to the CPU's provider."""
    asked: list[dict[str, dict[str, str]]] = []

    class Session:
        def __init__(self, path: str, settings: Any, providers: list[tuple[str, dict[str, str]]]) -> None:
            asked.append(dict(providers))
            self._real = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [*asked[-1], "CPUExecutionProvider"]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    stub = SimpleNamespace(
        InferenceSession=Session,
        SessionOptions=onnxruntime.SessionOptions,
        get_available_providers=lambda: [PROVIDER, "CUDAExecutionProvider", "CPUExecutionProvider"],
        __version__="1.23",
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", stub)
    monkeypatch.setattr(onnx_backend, "this_machine", lambda gpu: ORIN)
    return asked


def spec(folder: Path, **tensorrt: Any) -> MatcherSpec:
    return MatcherSpec("auto", folder, backend="tensorrt", tensorrt=TensorRTConfig(**tensorrt))


def test_the_provider_gets_what_the_parameters_say(
    folders: dict[bool, Path], options: list[dict[str, dict[str, str]]], tmp_path: Path
) -> None:
    cache, timing = tmp_path / "engines", tmp_path / "timing"
    open_matcher(spec(folders[True], engine_cache=str(cache), timing_cache=str(timing), workspace=256))
    encode, match = options
    assert list(encode) == [PROVIDER, "CUDAExecutionProvider"]
    given = dict(encode[PROVIDER])
    folder = Path(given.pop("trt_engine_cache_path"))
    assert folder.is_dir() and folder.parent == cache and timing.is_dir()
    assert folder.name.endswith("_float32_trt10.3.0_driver540.4.0_Orin-nvgpu-")
    assert given == {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_prefix": "encode",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timing),
        "trt_int8_enable": "0",
        "trt_fp16_enable": "0",  # with which the provider's network is strongly typed
        "trt_cuda_graph_enable": "0",
        "trt_max_workspace_size": str(256 * 2**20),
        "trt_dla_enable": "0",
        "trt_dla_core": "0",
    }
    assert match[PROVIDER]["trt_engine_cache_prefix"] == "match"
    assert match[PROVIDER]["trt_engine_cache_path"] != encode[PROVIDER]["trt_engine_cache_path"]
    assert encode["CUDAExecutionProvider"] == {"device_id": "0", "use_tf32": "0"}


def test_weak_typing_and_the_dla_are_asked_for_by_their_own_parameters(
    folders: dict[bool, Path], options: list[dict[str, dict[str, str]]]
) -> None:
    open_matcher(spec(folders[True], strongly_typed=False))
    open_matcher(spec(folders[True], dla=1))
    weak, dla = options[0][PROVIDER], options[2][PROVIDER]
    assert (weak["trt_fp16_enable"], weak["trt_dla_enable"]) == ("1", "0")
    assert (dla["trt_fp16_enable"], dla["trt_dla_enable"], dla["trt_dla_core"]) == ("1", "1", "1")
    assert weak["trt_engine_cache_path"] != dla["trt_engine_cache_path"]
    assert Path(weak["trt_engine_cache_path"]).parent == folders[True] / "engines"


def test_an_export_in_int8_is_built_as_it_says(
    folders: dict[bool, Path], options: list[dict[str, dict[str, str]]], tmp_path: Path
) -> None:
    folder = tmp_path / "int8"
    shutil.copytree(folders[True], folder)
    model = folder / MODEL_FILE
    model.write_text(model.read_text().replace('"int8": false', '"int8": true'))
    open_matcher(spec(folder))
    open_matcher(spec(folder, strongly_typed=False))
    asked = [(each[PROVIDER]["trt_fp16_enable"], each[PROVIDER]["trt_int8_enable"]) for each in options[::2]]
    assert asked == [("0", "0"), ("1", "1")]  # a strongly typed network has int8 where the graph says so
    assert "_int8-float32_trt" in options[0][PROVIDER]["trt_engine_cache_path"]
    with pytest.raises(DeviceError, match=r"tensorrt.dla takes no export in int8"):
        open_matcher(spec(folder, dla=0))


def test_minutes_of_building_are_announced_unless_the_engine_is_there(
    folders: dict[bool, Path],
    options: list[dict[str, dict[str, str]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    asked = spec(folders[True], engine_cache=str(tmp_path))
    open_matcher(asked)
    assert caplog.text.count("takes minutes; it is kept in") == 2 and "for Orin (nvgpu)" in caplog.text
    for each in options:
        (Path(each[PROVIDER]["trt_engine_cache_path"]) / "made.engine").touch()
    caplog.clear()
    open_matcher(asked)
    assert "minutes" not in caplog.text


@pytest.mark.parametrize("changed", ["tensorrt", "driver", "gpu", "graph", "precision", "typing"])
def test_another_engine_is_built_when_one_of_what_it_depends_on_changes(
    folders: dict[bool, Path], tmp_path: Path, changed: str
) -> None:
    graph, config = tmp_path / ENCODE_FILE, TensorRTConfig()
    graph.write_bytes((folders[True] / ENCODE_FILE).read_bytes())
    before = engine_name(config, graph, "float32", ORIN)
    assert engine_name(config, graph, "float32", ORIN) == before
    machine, precision = ORIN, "float32"
    if changed == "graph":
        graph.write_bytes(graph.read_bytes() + b" ")
    elif changed == "precision":
        precision = "int8 and float16"
        assert engine_name(config, graph, precision, machine).split("_")[1] == "int8-float16"
    elif changed == "typing":
        config = TensorRTConfig(strongly_typed=False)
    else:
        machine = replace(ORIN, **{changed: "other"})
    assert engine_name(config, graph, precision, machine) != before


def test_captured_engines_run_in_the_same_memory_and_find_the_same(folders: dict[bool, Path]) -> None:
    sessions = [
        onnx_backend._Session(folders[True] / ENCODE_FILE, [("CPUExecutionProvider", {})], 1, CPU, by_graph=by_graph)
        for by_graph in (False, True)
    ]
    shape = sessions[0]._session.get_outputs()[0].shape
    for seed in (0, 1):
        image = torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(seed))
        given = {"image": image, "usable": torch.ones(1, shape[1], dtype=torch.bool)}
        made = [torch.empty(shape), torch.empty(shape)]
        for session, place in zip(sessions, made, strict=True):
            session.run(given, {"tokens": place})
        torch.testing.assert_close(*made)
        (read,) = sessions[1].run(given, names=["tokens"])
        torch.testing.assert_close(torch.from_numpy(read), made[0])


def test_what_cannot_be_had_is_told_with_the_remedy(
    folders: dict[bool, Path], options: list[dict[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match=r"was exported for CPUs; .* --device cuda"):
        open_matcher(spec(folders[False]))
    with pytest.raises(DeviceError, match=r"tensorrt.cuda_graph needs features on the GPU"):
        open_matcher(spec(folders[True], cuda_graph=True))
    with pytest.raises(DeviceError, match="needs a GPU"):
        open_matcher(replace(spec(folders[True]), device="cpu"))
    with pytest.raises(DeviceError, match=r"cannot be made: .*; set tensorrt.engine_cache"):
        open_matcher(spec(folders[True], engine_cache="/proc/engines"))
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)
    with pytest.raises(DeviceError, match=f"has no {PROVIDER}.* here"):
        open_matcher(spec(folders[True]))
    assert "tensorrt" in factory.BACKENDS
