"""Weights files: what is taken, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loftr_ros.matcher.checkpoint import WeightsError, load_network, load_weights, read_weights
from loftr_ros.matcher.config import COARSE_LITE
from loftr_ros.matcher.loftr import LoFTR
from loftr_ros.matcher.precision import DeviceError, cpu_has_bf16, resolve_device, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return LoFTR(COARSE_LITE).state_dict()


def saved(content: object, folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save(content, path)
    return path


def load(path: Path) -> LoFTR:
    return load_network("coarse_lite", path, CPU, torch.float32)


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "matcher.", "module.", "module.matcher."])
def test_weights_are_found_in_every_published_wrapping(
    container: str | None, prefix: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    wrapped: object = {prefix + name: value for name, value in state.items()}
    if container:
        wrapped = {container: wrapped, "epoch": 3, "optimizer": {"state": {}}}
    model = LoFTR(COARSE_LITE)
    load_weights(model, saved(wrapped, tmp_path))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_published_students_load(shared_data: Path) -> None:
    for name in ("LoFTR_teacher.pt", "LoFTR_no_teacher.pt"):
        load(shared_data / "coarse_loftr" / name)


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pt is not there; set the parameter 'weights'"):
        load(tmp_path / "nowhere.pt")


def test_a_truncated_file_is_called_truncated(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"5000 bytes.*not a readable PyTorch weights file"):
        load(path)


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all\n", b"\x89PNG\r\n\x1a\n", b"root:x:0:0:root:/root:/bin/bash\n" * 20]
)
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable PyTorch weights file"):
        load(path)


def test_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "was_here",))

    path = saved({"state_dict": Malicious()}, tmp_path)
    with pytest.raises(WeightsError):
        load(path)
    assert not (tmp_path / "was_here").exists()


def test_weights_of_another_network_are_refused_with_what_was_expected_and_found(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    foreign = {name: value for name, value in state.items() if not name.startswith("loftr_coarse.layers.3")}
    foreign["backbone.conv1.weight"] = torch.zeros(128, 1, 7, 7)
    foreign["loftr_fine.layers.0.q_proj.weight"] = torch.zeros(128, 128)
    with pytest.raises(WeightsError) as error:
        load(saved(foreign, tmp_path))
    text = str(error.value)
    assert "another network than 'coarse_lite'" in text
    assert "missing 10" in text and "loftr_coarse.layers.3" in text
    assert "backbone.conv1.weight (128, 1, 7, 7) (expected (8, 1, 7, 7))" in text
    assert "loftr_fine.layers.0.q_proj.weight" in text


def test_weights_that_are_not_finite_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state["backbone.conv1.weight"][0] = float("nan")
    with pytest.raises(WeightsError, match=r"not finite, in backbone\.conv1\.weight"):
        load(saved(state, tmp_path))


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2, 3], {}, torch.zeros(3)])
def test_a_file_without_weights_is_refused_with_what_it_holds(content: object, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected a state dict"):
        read_weights(saved(content, tmp_path))


def test_an_unknown_network_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'superglue' is not known; expected one of coarse_lite"):
        load_network("superglue", tmp_path, CPU, torch.float32)


def test_auto_precision_is_bf16_only_where_the_processor_has_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu avx512f avx512_bf16 amx_tile\n")
    assert cpu_has_bf16(cpuinfo)
    cpuinfo.write_text("model name : bf16 in the name\nflags\t\t: fpu avx512f avx512_bitalg\n")
    assert not cpu_has_bf16(cpuinfo)
    cpuinfo.write_text("Features\t: fp asimd bf16\n")
    assert cpu_has_bf16(cpuinfo)
    assert resolve_precision("auto", CPU) == (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    assert resolve_precision("auto", torch.device("cuda")) == torch.float16


def test_an_impossible_device_or_precision_is_refused_with_what_there_is() -> None:
    with pytest.raises(DeviceError, match=r"sees .* CUDA devices"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(DeviceError, match="expected auto, cpu"):
        resolve_device("tpu")
    with pytest.raises(DeviceError, match="expected auto, float32"):
        resolve_precision("int8", CPU)
