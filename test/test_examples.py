"""The Python examples, run on rendered images by their command lines."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from readme import python_example
from rendered_pair import POSES, write_calibration, write_images

import loftr_ros
from loftr_ros.geometry.se3 import between, rotation_degrees
from loftr_ros.tools import match as match_module

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of a rendered walk."""
    folder = tmp_path_factory.mktemp("walk") / "images"
    write_images(folder)
    return folder


@pytest.fixture(autouse=True)
def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example loads is the network in the package; torch is the quickest to start."""
    load = loftr_ros.load_matcher
    for module in (loftr_ros, match_module):
        monkeypatch.setattr(module, "load_matcher", lambda: load(backend="torch", device="cpu"))


def example(name: str) -> ModuleType:
    """An example's names, without running it."""
    module = ModuleType(name)
    vars(module).update(runpy.run_path(str(EXAMPLES / f"{name}.py")))
    return module


def test_two_images_are_matched_and_drawn(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "matches.png"
    main = example("match_two_images").main
    assert main([str(folder / "000000.png"), str(folder / "000001.png"), "-o", str(picture)]) == 0
    said = capsys.readouterr().out
    assert int(said.split()[0]) > 300 and "written to" in said
    drawn = cv2.imread(str(picture))
    assert drawn.shape == (240, 640, 3)
    assert np.ptp(drawn.astype(int), axis=2).max() > 100, "lines are in colour, images in gray"
    assert main([str(folder / "nowhere.png"), str(folder / "000001.png")]) == 2
    assert "nowhere.png cannot be read" in capsys.readouterr().err


def test_odometry_over_a_folder_turns_as_the_camera_did(folder: Path, tmp_path: Path, capsys) -> None:
    calibration, output = write_calibration(tmp_path / "camera.yaml"), tmp_path / "trajectory.tum"
    main = example("odometry_over_a_folder").main
    assert main([str(folder), "--camera", str(calibration), "-o", str(output)]) == 0
    rows = np.loadtxt(output)
    assert rows.shape == (len(POSES), 8) and (np.diff(rows[:, 0]) > 0).all()
    from scipy.spatial.transform import Rotation

    for row, pose in zip(rows, POSES, strict=True):
        there = Rotation.from_quat(row[4:]).as_matrix()
        assert rotation_degrees(there.T @ between(POSES[0], pose)[:3, :3]) < 1.0
    assert main([str(tmp_path / "nowhere"), "-o", str(output)]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main([str(folder), "--mode", "stereo"]) == 2
    assert "does not support mode stereo" in capsys.readouterr().err


def test_loops_between_two_recordings_are_printed_with_both_keyframes(folder: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("lancedb")
    main = example("loops_between_recordings").main
    calibration = write_calibration(tmp_path / "camera.yaml")
    assert main([str(folder), str(folder), "--archive", str(tmp_path / "places"), "--camera", str(calibration)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3 and lines[-1] == f"{len(lines) - 1} loops"
    assert all(line.startswith("robot1/") and "the place of robot0/" in line for line in lines[:-1])
    assert not any("NO_CALIBRATION" in line for line in lines)
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_notebook_runs_and_what_it_shows_is_right() -> None:
    shown = runpy.run_path(str(EXAMPLES / "first_steps.py"))
    assert len(shown["matches"]) > 300 and shown["median_error"] < 1
    assert shown["rotation_error"] < 1
    cells = (EXAMPLES / "first_steps.py").read_text().split("# %%")
    assert len(cells) > 6 and sum(cell.startswith(" [markdown]") for cell in cells) >= 4


def test_readmes_python_example_runs_as_it_stands(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "images").symlink_to(folder)
    for name, image in (("a.png", "000000.png"), ("b.png", "000001.png")):
        (tmp_path / name).symlink_to(folder / image)
    write_calibration(tmp_path / "camera.yaml")
    monkeypatch.chdir(tmp_path)
    exec(compile(python_example(), "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert int(said.split()[0]) > 300 and said.count("the camera is at") == len(POSES)


def test_every_example_is_in_their_list_and_every_one_of_the_list_is_there() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.iterdir():
        assert file.name == "README.md" or file.name.startswith("__") or f"({file.name})" in listed, file.name
