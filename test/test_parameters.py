"""Parameters: completely declared, mirrored in config/front_end.yaml, checked when set."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.matcher.checkpoints.files import WeightsError
from loftr_ros.matcher.config import CoarseMatchingConfig
from loftr_ros.ros.parameters import Parameters, declare, descriptor, parameter_names, read, refusal
from loftr_ros.settings import ConfigError

FILE = Path(__file__).resolve().parents[1] / "config" / "front_end.yaml"
NAMES = dict(parameter_names())


class FakeNode:
    """Stores parameters like a node."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.descriptors: dict[str, Any] = {}

    def declare_parameter(self, name: str, default: Any, descriptor: Any) -> None:
        self.values.setdefault(name, default)
        self.descriptors[name] = descriptor

    def get_parameter(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(value=self.values[name])


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = tuple(value) if isinstance(value, list) else value
    return result


def test_the_config_file_has_every_parameter_with_its_default_and_no_other() -> None:
    written = flat(yaml.safe_load(FILE.read_text())["/**"]["ros__parameters"])
    declared = {name: item.default for name, item in NAMES.items()}
    assert written == declared
    # YAML's 1 equals 1.0, but ROS treats it as another type.
    assert {name: type(value) for name, value in written.items()} == {n: type(v) for n, v in declared.items()}
    assert list(written) == list(declared), "in the order of their declaration"


def test_above_each_parameter_in_the_config_file_stands_what_it_means_with_unit_and_range() -> None:
    comments: list[str] = []
    seen = []
    for line in FILE.read_text().splitlines():
        text = line.strip()
        if text.startswith("#"):
            comments.append(text.removeprefix("# "))
        elif text and not text.endswith(":"):
            seen.append((text.partition(":")[0], " ".join(comments)))
            comments = []
        else:
            comments = []
    assert [name for name, _ in seen] == [name.rpartition(".")[2] for name in NAMES]
    for (name, item), (_, comment) in zip(NAMES.items(), seen, strict=True):
        about = item.metadata
        assert about["description"] in comment, name
        assert about["unit"] in comment, name
        for choice in about["choices"]:
            assert choice in comment, name
        if about["low"] is not None:
            low, high = (int(end) if float(end).is_integer() else end for end in (about["low"], about["high"]))
            assert f"({low} to {high}" in comment, name


@pytest.mark.kilted
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_described_and_every_number_has_a_range_that_holds_its_default(name: str) -> None:
    item = NAMES[name]
    shown = descriptor(item)
    assert len(shown.description.split()) >= 3
    if item.metadata["unit"]:
        assert f"[{item.metadata['unit']}]" in shown.description
    if isinstance(item.default, float):
        assert shown.floating_point_range[0].from_value <= item.default <= shown.floating_point_range[0].to_value
    elif isinstance(item.default, int) and not isinstance(item.default, bool):
        assert shown.integer_range[0].from_value <= item.default <= shown.integer_range[0].to_value
        assert shown.integer_range[0].step == 1
    for choice in item.metadata["choices"]:
        assert choice in shown.description
    if item.metadata["choices"]:
        assert item.default in item.metadata["choices"]


@pytest.mark.kilted
def test_what_was_declared_is_read_back_as_the_defaults() -> None:
    node = FakeNode()
    declare(node)
    assert set(node.descriptors) == set(NAMES)
    assert read(node) == Parameters()


def test_values_arrive_in_the_settings_of_their_stage() -> None:
    node = FakeNode(**{"weights": "a.pt", "keyframe.capacity": 3, "output.max_lines": 7, "input.camera_info": "none"})
    declare(node)
    found = read(node)
    assert (found.matcher.weights, found.front_end.keyframe.capacity) == ("a.pt", 3)
    assert (found.output.max_lines, found.input.camera_info) == (7, "none")


def test_only_what_differs_from_the_preset_is_replaced_in_its_matching() -> None:
    assert MatchingConfig().overrides == {}
    given = MatchingConfig(threshold=0.3, border=0, max_matches=500)
    assert given.overrides == {"threshold": 0.3, "border": 0, "max_matches": 500}
    fields = {item.name for item in dataclasses.fields(CoarseMatchingConfig)}
    assert set(given.overrides) <= fields


def test_the_networks_parameters_become_one_specification(tmp_path: Path) -> None:
    weights = tmp_path / "a.pt"
    weights.touch()
    node = FakeNode(**{"network": "loftr", "weights": str(weights), "threads": 3, "matching.max_matches": 7})
    declare(node)
    found = read(node)
    spec = matcher_spec(found.matcher, found.matching)
    assert (spec.network, spec.weights, spec.backend, spec.threads) == ("loftr", weights, "auto", 3)
    assert spec.coarse == {"max_matches": 7} and spec.providers == ()
    assert matcher_spec(dataclasses.replace(found.matcher, weights="random"), found.matching).weights is None


def test_an_exported_network_is_a_file_or_folder_and_its_providers_a_list() -> None:
    asked = MatcherConfig(backend="onnx", weights="/exported", onnx_providers="CUDAExecutionProvider, CPU,")
    spec = matcher_spec(asked, MatchingConfig())
    assert (spec.backend, spec.weights, spec.providers) == ("onnx", Path("/exported"), ("CUDAExecutionProvider", "CPU"))
    with pytest.raises(WeightsError, match="loftr_ros export"):
        matcher_spec(MatcherConfig(backend="onnx"), MatchingConfig())


def test_a_value_that_is_no_choice_is_refused_by_the_parameters_full_name() -> None:
    node = FakeNode(**{"input.camera_info": "sometimes"})
    declare(node)
    with pytest.raises(ConfigError, match=r"parameter input\.camera_info is 'sometimes'; expected one of synchronized"):
        read(node)


def test_while_configured_our_parameters_are_refused_and_those_of_others_are_not() -> None:
    assert refusal({"keyframe.max_rotation": 5.0, "output.max_lines": 3}, configured=True) == ""
    assert "weights, keyframe.capacity: read when" in refusal({"weights": "a", "keyframe.capacity": 2}, configured=True)
    assert refusal({"use_sim_time": True}, configured=True) == ""
    assert refusal({"weights": "a", "use_sim_time": True}, configured=False) == ""


def test_while_unconfigured_only_what_is_no_choice_is_refused() -> None:
    assert refusal({"precision": "float16"}, configured=False) == ""
    assert refusal({"precision": "float8"}, configured=False) == (
        "precision is 'float8'; expected one of auto, float32, bfloat16, float16, int8"
    )


def test_every_setting_of_every_stage_is_a_parameter() -> None:
    def settings(config: Any) -> int:
        values = [getattr(config, item.name) for item in dataclasses.fields(config)]
        return sum(settings(value) if dataclasses.is_dataclass(value) else 1 for value in values)

    assert len(NAMES) == settings(Parameters())


def test_the_manual_has_every_parameter_with_its_default_and_meaning() -> None:
    manual = (FILE.parents[1] / "docs" / "reference" / "parameters.md").read_text().splitlines()
    for name, item in NAMES.items():
        value = list(item.default) if isinstance(item.default, tuple) else item.default
        default = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
        default = f'"{item.default}"' if isinstance(item.default, str) else default
        rows = [row for row in manual if row.startswith(f"| `{name}` | `{default}` |")]
        assert len(rows) == 1 and item.metadata["description"] in rows[0], name
