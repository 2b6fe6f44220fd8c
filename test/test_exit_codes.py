"""The commands follow the table of exit codes and last lines in docs/commands.md."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import torch
import typer
from fakes import texture
from typer.testing import CliRunner

from loftr_ros.cli.main import app
from loftr_ros.matcher.config import COARSE_LITE
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.recordings import SourceFrame
from loftr_ros.recordings.folders import FolderSource

DOCS = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
ONE_PICTURE = ["--point", "80,60", "--layer", "0"]
QUICK = ["--weights", "random", "--network", "coarse_lite"]


def table() -> dict[tuple[str, str], tuple[int, str]]:
    """Exit code and last line by command and case."""
    rows = re.findall(r"^\| `?([^|`]+?)`? \| ([^|]*)\| ([0-9]+) \| (.*) \|$", DOCS.read_text(), re.M)
    return {(command, case.strip()): (int(code), last) for command, case, code, last in rows}


TABLE = table()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recording, one with a damaged frame, images, and weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOFTR_ROS_WEIGHTS", raising=False)
    for name in ("good", "damaged"):
        (tmp_path / name).mkdir()
        for k in range(3):
            cv2.imwrite(str(tmp_path / name / f"{k}.png"), texture(120, 160, k))
    file = tmp_path / "damaged" / "1.png"
    file.write_bytes(file.read_bytes()[:-60])
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>")
    torch.save(LoFTR(COARSE_LITE).state_dict(), tmp_path / "good.pt")
    return tmp_path


def damaged_video(place: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(place / "clip.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        for k in range(6):
            frame = av.VideoFrame.from_ndarray(np.dstack([texture(120, 160, k)] * 3), format="bgr24")
            for packet in stream.encode(frame.reformat(format="yuvj420p")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    data = bytearray((place / "clip.avi").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    (place / "clip.avi").write_bytes(data)


CASES: dict[tuple[str, str], list[str]] = {
    ("run", "all frames"): ["run", "good", "-o", "out", "-q", *QUICK],
    ("run", "a frame is damaged"): ["run", "damaged", "-o", "out", "-q", *QUICK],
    ("run", "a video is damaged"): ["run", "clip.avi", "-o", "out", "-q", *QUICK],
    ("run", "no such recording"): ["run", "nowhere", *QUICK],
    ("run", "output cannot be written"): ["run", "good", "-o", "file", *QUICK],
    ("run", "Ctrl-C"): ["run", "good", "-o", "out", "-q", *QUICK],
    ("view", "all frames"): ["view", "good", "--save", "out.rrd", "-q", *QUICK],
    ("view", "a frame is damaged"): ["view", "damaged", "--save", "out.rrd", "-q", *QUICK],
    ("view", "Ctrl-C"): ["view", "good", "--save", "out.rrd", "-q", *QUICK],
    ("view", "no such recording"): ["view", "nowhere", "--save", "x.rrd", *QUICK],
    ("loops", "all frames"): ["loops", "good", "-o", "out", "-q", *QUICK],
    ("loops", "a frame is damaged"): ["loops", "damaged", "-o", "out", "-q", *QUICK],
    ("loops", "Ctrl-C"): ["loops", "good", "-o", "out", "-q", *QUICK],
    ("loops", "no such recording"): ["loops", "nowhere", *QUICK],
    ("evaluate", "no such folder"): ["evaluate", "nowhere", *QUICK],
    ("localise match", "no such list of pairs"): ["localise", "match", "good", "nowhere"],
    ("localise pairs", "no such model"): ["localise", "pairs", "nowhere"],
    ("localise score", "no such file"): ["localise", "score", "nowhere", "nowhere"],
    ("adapt", "the camera hardly moves, or is not calibrated"): ["adapt", "good", "-o", "file", "-q"],
    ("explain", "two images"): [
        "explain",
        "good/0.png",
        "good/0.png",
        "-o",
        "out",
        "--point",
        "80,60",
        "--layer",
        "0",
        *QUICK,
    ],
    ("explain", "no such image"): ["explain", "nowhere", "good/0.png", *QUICK],
    ("play", "all frames"): ["play", "good", "--wait", "0", "-q", "--rate", "100"],
    ("play", "a frame is damaged"): ["play", "damaged", "--wait", "0", "-q", "--rate", "100"],
    ("play", "Ctrl-C"): ["play", "good", "--wait", "0", "-q", "--rate", "100"],
    ("play", "no such recording"): ["play", "nowhere"],
    ("play", "nobody listens"): ["play", "good", "--wait", "0.2", "-q"],
    ("demo", "no such recording"): ["demo", "nowhere", "--weights", "random", "-o", "out"],
    ("weights list", ""): ["weights", "list"],
    ("weights get", "no such name"): ["weights", "get", "nothing"],
    ("weights check", "a good file"): ["weights", "check", "good.pt"],
    ("weights check", "no weights"): ["weights", "check", "page.pt"],
    ("weights convert", "a good file"): ["weights", "convert", "good.pt", "out.safetensors"],
    ("weights convert", "another ending"): ["weights", "convert", "good.pt", "out.pt"],
    ("export", "no weights"): ["export", "--weights", "page.pt", "-o", "out"],
    ("train", "no settings"): ["train"],
    ("train assets", "no such folder"): ["train", "assets", "--photos", "nowhere", "-o", "out"],
    ("train calibrate", "no weights"): ["train", "calibrate", "page.pt", "out.safetensors", "--assets", "nowhere"],
    ("train int8", "no weights"): ["train", "int8", "page.pt", "--assets", "nowhere"],
    ("train places", "no weights"): ["train", "places", "out", "--weights", "page.pt", "--assets", "nowhere"],
    ("doctor", "something does not"): ["doctor", "--weights", "page.pt"],
    ("--version", ""): ["--version"],
    ("any", "an option that there is not"): ["run", "good", "--no-such-option"],
}
# Tested elsewhere, in the named files.
ELSEWHERE = {
    ("doctor", "all works"): "test_doctor.py",
    ("evaluate", "everything was read"): "test_evaluate.py",
    ("evaluate", "an image is missing"): "test_evaluate.py",
    ("localise match", "all pairs"): "test_localise.py",
    ("localise match", "an image is missing"): "test_localise.py",
    ("localise match", "Ctrl-C; run it again to go on"): "test_localise.py",
    ("localise pairs", "all images"): "test_localise.py",
    ("localise triangulate", "points were found"): "test_localise.py",
    ("localise triangulate", "files of different keypoints"): "test_localise.py",
    ("localise queries", "every query has a pose"): "test_localise.py",
    ("localise queries", "a query has none"): "test_localise.py",
    ("localise score", "a file of poses"): "test_localise.py",
    ("adapt", "the held-out part improves"): "test_adaptation.py",
    ("adapt", "it does not"): "test_adaptation.py",
    ("demo", "it ran to its end"): "test_demo.py",
    ("demo", "a process of it failed"): "test_demo.py",
    ("demo", "Ctrl-C"): "test_demo.py",
    ("weights get", "it is here, or comes"): "test_weights.py",
    ("export", "a network"): "test_export.py",
    ("train", "it came to its end"): "test_training.py",
    ("train", "Ctrl-C"): "test_training.py",
    ("train assets", "a folder of photos"): "test_training.py",
    ("train calibrate", "weights of `compact`"): "test_training.py",
    ("train int8", "weights of `compact`"): "test_training.py",
    ("train places", "it came to its end"): "test_place_training.py",
    ("node", "Ctrl-C"): "test_node.py",
    ("node", "it cannot be configured"): "test_node.py",
    ("node", "a wrong parameter"): "test_node.py",
    ("back-end", "Ctrl-C"): "test_back_end_node.py",
    ("back-end", "it cannot be configured"): "test_back_end_node.py",
    ("back-end", "a wrong parameter"): "test_back_end_node.py",
}


def commands(group: Any, before: str = "") -> Iterator[str]:
    """The full names of all commands of a command line."""
    for name, command in group.commands.items():
        inner = getattr(command, "commands", {})
        if not inner or command.invoke_without_command:
            yield before + name
        yield from commands(command, f"{before}{name} ") if inner else ()


def test_every_row_of_the_table_is_tried() -> None:
    assert set(TABLE) == set(CASES) | set(ELSEWHERE)
    assert {code for code, _ in TABLE.values()} == {0, 1, 2, 130}


def test_every_command_is_in_the_table_with_success_and_failure() -> None:
    codes: dict[str, set[int]] = {}
    for (command, _), (code, _) in TABLE.items():
        codes.setdefault(command, set()).add(code)
    for command in commands(typer.main.get_command(app)):
        assert (0 in codes[command] and codes[command] & {1, 2}) or command == "weights list", command


class Stopped(FolderSource):
    """A recording with Ctrl-C in its third frame."""

    def __iter__(self) -> Iterator[SourceFrame]:
        yield from itertools.islice(super().__iter__(), 2)
        raise KeyboardInterrupt


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case))
def test_a_command_ends_as_the_table_says(
    case: tuple[str, str], place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == ("run", "a video is damaged"):
        damaged_video(place)
    if case[1] == "Ctrl-C":
        monkeypatch.setattr("loftr_ros.recordings.folders.FolderSource", Stopped)
    if case[0] == "view":  # rerun may be missing
        monkeypatch.setattr("loftr_ros.tools.viewer.load_rerun", MagicMock)
        monkeypatch.setattr("loftr_ros.tools.viewer.Destination.open", MagicMock())
    if case[0] == "play":
        # Fast DDS reads a profile once per process: it must not be the player's for all later tests.
        pytest.importorskip("rclpy")
        monkeypatch.setattr(
            "loftr_ros.tools.player.player.provide_profile", lambda: SimpleNamespace(log=lambda _: None)
        )
    if case[0] in ("play", "demo"):
        pytest.importorskip("rclpy")
    done = CliRunner().invoke(app, CASES[case])
    captured = capfd.readouterr()
    code, last = TABLE[case]
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), "an error that nobody caught"
    on_error = last.startswith("stderr")
    # Other output, such as the demo's and that of ROS's logger, comes before it.
    said = (captured.err + done.stderr if on_error else done.stdout).splitlines()
    said = [line for line in said if line.strip()]
    assert said, done.output
    words = re.search(r"`(.*)`", last)
    if words:
        pattern = re.escape(words[1]).replace("OUT", "(out|file)").replace(r"\.\.\.", ".*")
        pattern = re.sub(r"\bN\b", r"[0-9.]+", pattern)
        assert re.fullmatch(pattern, said[-1]), said[-1]
    if case[0] in ("run", "loops") and code != 2:
        assert (place / "out" / "partial.txt").exists() == (code != 0)
