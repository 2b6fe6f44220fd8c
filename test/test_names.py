"""Misspelt names: the intended one is found."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from loftr_ros.settings import nearest, unknown

KNOWN = ("mode", "keyframe.max_parallax", "keyframe.capacity", "depth.min_parallax", "max_latency_ms", "input.sync")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("modee", "mode"),
        ("Mode", "mode"),
        ("keyframe.max_paralax", "keyframe.max_parallax"),
        ("max_parallax", "keyframe.max_parallax"),
        ("capacity", "keyframe.capacity"),
        ("key_frame.capacity", "keyframe.capacity"),
        ("image.sync", "input.sync"),
        ("max_latency", "max_latency_ms"),
        ("colour", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_the_one_that_was_meant_or_none(name: str, meant: str) -> None:
    assert nearest(name, KNOWN) == meant


def test_a_name_that_is_like_none_is_told_of_without_a_proposal() -> None:
    assert unknown("parameter", "colour", KNOWN) == "parameter 'colour' is not known and has no effect"
    assert unknown("parameter", "modee", KNOWN).endswith("no effect; did you mean 'mode'?")


def test_a_command_tells_of_misspelt_parameters_and_takes_whole_numbers(tmp_path: Path, capsys) -> None:
    from loftr_ros.cli.options import parameters
    from loftr_ros.frontend.config import FrontEndConfig
    from loftr_ros.settings import with_values

    file = tmp_path / "mine.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    modee: rgbd\n    max_latency_ms: 10\n    input: {sync: exact}\n"
        "    use_sim_time: true\n    qos_overrides: {/image: {subscription: {depth: 3}}}\n"
    )
    values = parameters(file)
    said = capsys.readouterr().err
    assert said.strip() == f"{file}: parameter 'modee' is not known and has no effect; did you mean 'mode'?"
    assert with_values(FrontEndConfig(), values).latency.max_latency_ms == 10.0


needs_ros = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="rclpy is not installed")


@needs_ros
@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("/**", True),
        ("/*", False),
        ("/*/*", True),
        ("/robot/loftr_front_end", True),
        ("/loftr_front_end", False),
        ("/**/loftr_front_end", True),
        ("/robot/*", True),
    ],
)
def test_a_parameter_file_is_held_against_the_nodes_name_as_rcl_does(tmp_path: Path, pattern: str, fits: bool) -> None:
    from loftr_ros.ros.parameter_names import idle_files

    file = tmp_path / "mine.yaml"
    file.write_text(f"{pattern}:\n  ros__parameters: {{mode: rgbd}}\n")
    said = idle_files(["--ros-args", "--params-file", str(file)], "/robot/loftr_front_end")
    assert not said if fits else pattern in said[0]


@pytest.mark.kilted
@needs_ros
def test_whole_numbers_become_floats_and_nothing_else_does() -> None:
    from rclpy.parameter import Parameter

    from loftr_ros.ros.parameter_names import all_floats

    given = [
        Parameter("a", value=10),
        Parameter("b", value=[0, 1]),
        Parameter("c", value=3),
        Parameter("d", value=True),
        Parameter("e", value="10"),
        Parameter("other", value=1),
    ]
    defaults = {"a": 1.0, "b": (0.0, 0.0), "c": 1, "d": 1.0, "e": 1.0}
    values = {each.name: each.value for each in all_floats(given, defaults)}
    assert isinstance(values["a"], float) and list(values["b"]) == [0.0, 1.0]
    assert [type(value) for value in values["b"]] == [float, float]
    assert type(values["c"]) is int and values["d"] is True and values["e"] == "10" and type(values["other"]) is int
