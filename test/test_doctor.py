"""`loftr_ros doctor`: its statements are results of real attempts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from loftr_ros.cli.main import app
from loftr_ros.tools import doctor
from loftr_ros.tools.doctor import FAILS, NOTE, OK, Finding, examine, lines, segment_size


def found(**parameters: str) -> dict[str, Finding]:
    return {each.name: each for each in examine(parameters)}


def test_a_machine_on_which_the_package_works_gets_a_verdict_a_line_and_exit_code_0() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    text = done.output.splitlines()
    assert all(line.startswith(("ok ", "note ")) for line in text[:-1])
    assert text[-1].startswith("everything works; ")
    for name in ("loftr_ros", "Python", "torch", "network", "matching", "CUDA"):
        assert any(name in line for line in text), name
    matching = next(line for line in text if " matching " in line)
    assert "matches of an image of 640x480 with itself" in matching and " 0." in matching


def test_what_does_not_work_is_told_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("<html>")
    done = CliRunner().invoke(app, ["doctor", "--weights", str(tmp_path / "x.pt")])
    assert done.exit_code == 1
    assert "FAILS  network" in done.output and "is a web page" in done.output
    assert done.output.splitlines()[-1].endswith("fail: network")
    assert found(weights="random", network="coarse_lite")["weights"].verdict == NOTE


def test_a_device_on_which_no_kernel_runs_fails_though_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(name="Old GPU", total_memory=2**31, major=3, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    (finding,) = doctor._cuda()
    assert finding.verdict == FAILS and finding.text.startswith("Old GPU") and "no kernel runs" in finding.text


def test_ros_is_named_by_the_sourced_distribution_or_else_by_pypis_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["numpy", None, "ros-kilted-rclpy"]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: [SimpleNamespace(name=name) for name in names])
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert doctor._ros_distribution() == "jazzy"
    monkeypatch.delenv("ROS_DISTRO")
    assert doctor._ros_distribution() == "kilted, from PyPI's wheels"
    names.pop()
    assert not doctor._ros_distribution()


def test_the_size_of_a_segment_is_the_profile_s(tmp_path: Path) -> None:
    profile = tmp_path / "profile.xml"
    profile.write_text(
        '<dds xmlns="http://www.eprosima.com"><profiles><transport_descriptors><transport_descriptor>'
        "<segment_size>10485760</segment_size></transport_descriptor></transport_descriptors></profiles></dds>"
    )
    assert segment_size({"FASTRTPS_DEFAULT_PROFILES_FILE": str(profile)}) == (10 << 20, f"(by {profile})")
    assert segment_size({})[0] == 512 << 10
    profile.write_text("<dds>")
    size, where = segment_size({"FASTDDS_DEFAULT_PROFILES_FILE": str(profile)})
    assert size == 512 << 10 and "cannot be read" in where


def test_a_look_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("half installed\nmore")

    monkeypatch.setattr(doctor, "_packages", broken)
    assert any(each.verdict == FAILS and "half installed" in each.text for each in examine({"weights": "random"}))
    assert lines([Finding(OK, "a", "b")]) == ["ok     a  b"]
