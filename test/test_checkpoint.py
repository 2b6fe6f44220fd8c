"""Weights files: which are accepted, and the messages of refusals."""

from __future__ import annotations

import json
import logging
import os
import struct
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from loftr_ros.matcher.build import build_network
from loftr_ros.matcher.checkpoints import recognition
from loftr_ros.matcher.checkpoints.files import (
    WeightsError,
    load_network,
    load_weights,
    read_weights,
    recognise_file,
    save_network_weights,
    sha256_of,
)
from loftr_ros.matcher.checkpoints.recognition import structure_of_config
from loftr_ros.matcher.config import COARSE_LITE, LOFTR, LOFTR_NEW, PRESETS, LoFTRConfig, NetworkConfig
from loftr_ros.matcher.precision import DeviceError, cpu_has_bf16, resolve_device, resolve_precision

CPU = torch.device("cpu")
State = dict[str, torch.Tensor]
# Networks with weights of their own.
WEIGHTED = [config for config in PRESETS.values() if config.name != "efficient_opt"]


@cache
def built(config: NetworkConfig) -> State:
    """The weights of a new network; made once, so they must not be changed."""
    torch.manual_seed(0)
    return build_network(config).state_dict()


@pytest.fixture
def state() -> State:
    return {name: value.clone() for name, value in built(COARSE_LITE).items()}


def saved(content: object, folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save(content, path)
    return path


def load(path: Path) -> nn.Module:
    return load_network("coarse_lite", path, CPU, torch.float32)


def loaded(config: NetworkConfig, path: Path) -> State:
    model = build_network(config)
    load_weights(model, read_weights(path))
    return model.state_dict()


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "matcher.", "module.", "module.matcher."])
def test_weights_are_found_in_every_published_wrapping(
    container: str | None, prefix: str, state: State, tmp_path: Path
) -> None:
    wrapped: object = {prefix + name: value for name, value in state.items()}
    if container:
        wrapped = {container: wrapped, "epoch": 3, "optimizer": {"state": {}}}
    assert same(loaded(COARSE_LITE, saved(wrapped, tmp_path)), state)


@pytest.mark.parametrize("config", WEIGHTED, ids=lambda config: config.name)
def test_every_network_comes_back_from_the_official_layout_and_is_recognised(
    config: NetworkConfig, tmp_path: Path
) -> None:
    content = {
        "epoch": 29,
        "global_step": 12345,
        "pytorch-lightning_version": "1.3.5",
        "state_dict": {f"matcher.{name}": value for name, value in built(config).items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
    }
    path = saved(content, tmp_path)
    assert same(loaded(config, path), built(config))
    found = recognise_file(read_weights(path))
    assert config.name in (found.config.name, *found.alternatives, *found.also)
    assert read_weights(path).layout.startswith("PyTorch, in 'state_dict' beside epoch")


def test_written_weights_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_network_weights(tmp_path / "mine.safetensors", built(COARSE_LITE), COARSE_LITE, "a test")
    finally:
        os.umask(before)
    assert (tmp_path / "mine.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("config", WEIGHTED, ids=lambda config: config.name)
def test_every_network_comes_back_from_our_own_format_and_is_recognised_for_certain(
    config: NetworkConfig, tmp_path: Path
) -> None:
    path = tmp_path / "own.safetensors"
    save_network_weights(path, built(config), config, "a test")
    assert same(loaded(config, path), built(config))
    found = recognise_file(read_weights(path))
    assert (found.config, found.by, found.doubt) == (config, "metadata", "")
    assert read_weights(path).metadata["source"] == "a test"
    assert list(tmp_path.iterdir()) == [path]


def test_kornias_layout_loads_and_is_recognised(tmp_path: Path) -> None:
    kornia = pytest.importorskip("kornia")
    state = kornia.feature.LoFTR(pretrained=None).state_dict()
    path = saved({"state_dict": state}, tmp_path)
    assert same(loaded(LOFTR, path), state)
    assert load_network("auto", path, CPU, torch.float32).config == LOFTR


def test_the_published_students_load_and_are_recognised(shared_data: Path) -> None:
    for name in ("LoFTR_teacher.pt", "LoFTR_no_teacher.pt"):
        path = shared_data / "coarse_loftr" / name
        load(path)
        found = recognise_file(read_weights(path))
        assert (found.config, found.by, found.doubt) == (COARSE_LITE, "contents", "")


def test_names_and_shapes_tell_optimal_transport_and_the_sixteenth_apart(tmp_path: Path) -> None:
    for name in ("loftr_ot", "loftr_16_4"):
        found = recognise_file(read_weights(saved(built(PRESETS[name]), tmp_path)))
        assert (found.config, found.alternatives) == (PRESETS[name], ())


def test_what_names_and_shapes_do_not_tell_is_said_and_the_user_decides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(built(LOFTR_NEW), tmp_path)
    found = recognise_file(read_weights(path))
    assert (found.config, found.alternatives) == (LOFTR, ("loftr_new",))
    assert "trained as 'loftr' or as 'loftr_new'" in found.doubt
    with caplog.at_level(logging.WARNING):
        assert load_network("auto", path, CPU, torch.float32).config == LOFTR
    assert "trained as 'loftr' or as 'loftr_new'" in caplog.text
    caplog.clear()
    for config in (LOFTR, LOFTR_NEW):
        assert load_network(config.name, path, CPU, torch.float32).config == config
    assert not caplog.text


def test_a_published_file_is_known_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(built(LOFTR_NEW), tmp_path)
    monkeypatch.setitem(recognition.PUBLISHED_DIGESTS, sha256_of(path), "loftr_new")
    with caplog.at_level(logging.WARNING):
        assert load_network("auto", path, CPU, torch.float32).config == LOFTR_NEW
        assert not caplog.text
        assert load_network("loftr", path, CPU, torch.float32).config == LOFTR
    assert "was trained as 'loftr_new'; it runs as 'loftr'" in caplog.text


@pytest.mark.parametrize("config", [LOFTR, LOFTR_NEW])
def test_the_positional_encoding_in_an_old_file_is_no_weight_but_tells_the_network(
    config: NetworkConfig, tmp_path: Path
) -> None:
    kornia = pytest.importorskip("kornia")
    encoding = kornia.feature.LoFTR(
        None, kornia.feature.loftr.loftr.default_cfg | {"coarse": _coarse(kornia, not config.position_slip)}
    ).pos_encoding.pe
    path = saved({"state_dict": {**built(config), "pos_encoding.pe": encoding}}, tmp_path)
    assert same(loaded(config, path), built(config))
    found = recognise_file(read_weights(path))
    assert (found.config, found.by, found.doubt) == (config, "positional encoding", "")


def _coarse(kornia: object, fixed: bool) -> dict[str, object]:
    return kornia.feature.loftr.loftr.default_cfg["coarse"] | {"temp_bug_fix": fixed}  # type: ignore[attr-defined]


def test_two_presets_of_the_same_weights_differ_only_in_what_is_said_of_them() -> None:
    assert structure_of_config(LOFTR) == structure_of_config(LOFTR_NEW)
    published = [config for config in PRESETS.values() if isinstance(config, LoFTRConfig)]
    others = [structure_of_config(config) for config in published if config.name != "loftr_new"]
    assert len(set(others)) == len(others)


def test_weights_of_our_own_keep_the_values_that_they_were_trained_with(tmp_path: Path) -> None:
    from dataclasses import replace

    trained = replace(COARSE_LITE, coarse=replace(COARSE_LITE.coarse, threshold=0.3, point="centre"))
    path = tmp_path / "own.safetensors"
    save_network_weights(path, built(COARSE_LITE), trained, "a test")
    for network in ("auto", "coarse_lite"):
        assert load_network(network, path, CPU, torch.float32).config == trained


def test_values_of_coarse_matching_can_be_replaced_and_nothing_else(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    values = {"threshold": 0.5, "border": 3, "max_matches": 100}
    config = load_network("auto", path, CPU, torch.float32, coarse=values).config
    assert {name: getattr(config.coarse, name) for name in values} == values
    assert config.coarse.point == COARSE_LITE.coarse.point
    with pytest.raises(ValueError, match="method cannot be replaced; only threshold, border, max_matches"):
        load_network("auto", path, CPU, torch.float32, coarse={"method": "optimal_transport"})


def test_random_weights_are_the_same_every_time_and_leave_the_programs_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = load_network("coarse_lite", None, CPU, torch.float32).state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert same(one, load_network("coarse_lite", None, CPU, torch.float32).state_dict())
    assert load_network("auto", None, CPU, torch.float32).config.name == "compact"


def test_untrained_parts_and_what_else_a_file_holds_do_not_come_along(shared_data: Path, tmp_path: Path) -> None:
    source, target = shared_data / "coarse_loftr" / "LoFTR_teacher.pt", tmp_path / "own.safetensors"
    save_network_weights(target, read_weights(source).tensors, COARSE_LITE, "a test")
    assert read_weights(target).tensors.keys() == built(COARSE_LITE).keys()
    assert same(loaded(COARSE_LITE, target), loaded(COARSE_LITE, source))
    assert target.stat().st_size < source.stat().st_size / 3, "the optimizer's state is gone"


def test_half_precision_weights_load(state: State, tmp_path: Path) -> None:
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    path = tmp_path / "own.safetensors"
    save_network_weights(path, halved, COARSE_LITE, "a test")
    assert read_weights(path).tensors["backbone.conv1.weight"].dtype == torch.float16
    assert torch.equal(loaded(COARSE_LITE, path)["backbone.conv1.weight"], halved["backbone.conv1.weight"].float())


def test_weights_of_a_prepared_network_cannot_be_saved_as_its_own(tmp_path: Path) -> None:
    prepared = load_network("coarse_lite", None, CPU, torch.float32).state_dict()
    with pytest.raises(WeightsError, match="another network than 'coarse_lite'"):
        save_network_weights(tmp_path / "own.safetensors", prepared, COARSE_LITE, "a test")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [4, 100, 5000])
def test_a_truncated_safetensors_file_is_called_truncated(keep: int, state: State, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_network_weights(path, state, COARSE_LITE, "a test")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"{keep} bytes.*not a readable safetensors weights file"):
        load(path)


def test_a_safetensors_file_is_known_by_its_contents_whatever_its_name(state: State, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_network_weights(path, state, COARSE_LITE, "a test")
    assert read_weights(path.rename(tmp_path / "own.ckpt")).layout == "loftr_ros (safetensors)"


def with_metadata(path: Path, **changes: str) -> Path:
    """Rewrite the metadata of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": "9"}, "version '9' of our format; this loftr_ros reads version 1"),
        ({"config": "{"}, "does not describe a network"),
        ({"config": '{"name": "x"}'}, r"missing: \['backbone', 'coarse', 'transformer'\]"),
        ({"config": '["loftr"]'}, "does not describe a network"),
    ],
)
def test_metadata_that_is_damaged_or_of_a_newer_version_is_refused(
    changes: dict[str, str], words: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "own.safetensors"
    save_network_weights(path, state, COARSE_LITE, "a test")
    with pytest.raises(WeightsError, match=words):
        load_network("auto", with_metadata(path, **changes), CPU, torch.float32)


def test_metadata_that_contradicts_the_weights_is_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_network_weights(path, state, COARSE_LITE, "a test")
    wrong = recognition.metadata_of_config(LOFTR, "a test")
    with pytest.raises(WeightsError, match=r"its metadata says 'loftr' \(stem 128.*holds weights of stem 8"):
        load_network("auto", with_metadata(path, **wrong), CPU, torch.float32)


def test_foreign_safetensors_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(10)}, path)
    with pytest.raises(WeightsError) as error:
        load_network("auto", path, CPU, torch.float32)
    assert "expected backbone.conv1.weight of shape (channels, 1, 7, 7)" in str(error.value)
    assert "found 2 names: conv1.weight (64, 3, 7, 7), fc.bias (10,)" in str(error.value)


def test_a_loftr_of_another_make_is_refused_with_the_nearest_that_is_known(tmp_path: Path) -> None:
    state = {name: value for name, value in built(LOFTR).items() if not name.startswith("loftr_coarse.layers.7")}
    path = saved(state, tmp_path)
    with pytest.raises(WeightsError) as error:
        load_network("auto", path, CPU, torch.float32)
    assert "no network known here has stem 128, stages 128-196-256, 7 coarse layers" in str(error.value)
    assert "the nearest is 'loftr', which has stem 128, stages 128-196-256, 8 coarse layers" in str(error.value)


def test_a_network_that_contradicts_the_file_is_refused_with_the_one_that_it_looks_like(
    state: State, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"another network than 'loftr' .* It looks like 'coarse_lite'"):
        load_network("loftr", saved(state, tmp_path), CPU, torch.float32)
    with pytest.raises(WeightsError, match=r"bin_score.* It looks like 'loftr_ot'"):
        load_network("loftr", saved(built(PRESETS["loftr_ot"]), tmp_path), CPU, torch.float32)


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pt does not exist; set the parameter 'weights'"):
        load(tmp_path / "nowhere.pt")


def test_a_truncated_file_is_called_truncated(state: State, tmp_path: Path) -> None:
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
    with pytest.raises(WeightsError, match=r"not a readable PyTorch weights file|is empty|is an image"):
        load(path)


def test_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "was_here",))

    path = saved({"state_dict": Malicious()}, tmp_path)
    with pytest.raises(WeightsError):
        load(path)
    assert not (tmp_path / "was_here").exists()


def test_weights_of_another_network_are_refused_with_what_was_expected_and_found(state: State, tmp_path: Path) -> None:
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


def test_weights_that_are_not_finite_are_refused(state: State, tmp_path: Path) -> None:
    state["backbone.conv1.weight"][0] = float("nan")
    with pytest.raises(WeightsError, match=r"not finite, in backbone\.conv1\.weight"):
        load(saved(state, tmp_path))


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2, 3], {}, torch.zeros(3)])
def test_a_file_without_weights_is_refused_with_what_it_holds(content: object, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected a state dict"):
        read_weights(saved(content, tmp_path))


def test_an_unknown_network_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'superglue' is not known; expected one of loftr, loftr_new"):
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
        resolve_precision("int4", CPU)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"\n  <html><body>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "is empty; get it again"),
        (b'{"message": "Not Found"}', "is JSON, perhaps a server's error message"),
        (b"\x1f\x8b\x08\0\0\0", "compressed by gzip"),
        (b"\x89PNG\r\n", "is an image"),
        (b"some text that is nothing", "it was cut off, or is of another kind"),
        (b"PK\x03\x04 cut off", "it was cut off, or is of another kind"),
    ],
)
@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth"])
def test_what_is_no_weights_is_told_by_its_first_bytes_in_our_own_words(
    tmp_path: Path, content: bytes, words: str, ending: str
) -> None:
    path = tmp_path / f"loftr{ending}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        read_weights(path)
    assert "weights_only" not in str(caught.value) and "torch.load" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_more_than_tensors_is_not_loaded_and_says_how_to_save_it(tmp_path: Path, zipped: bool) -> None:
    torch.save({"model": Path("x")}, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"holds Python objects beside tensors.*Save the state dict alone") as caught:
        read_weights(tmp_path / "whole.pt")
    assert "weights_only" not in str(caught.value)
