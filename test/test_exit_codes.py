"""The table of exit codes and last lines in docs/commands.md is what the commands do."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from fakes import texture
from typer.testing import CliRunner

from loftr_ros.cli import app
from loftr_ros.matcher.config import COARSE_LITE
from loftr_ros.matcher.loftr import LoFTR

DOCS = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
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
    ("view", "no such recording"): ["view", "nowhere", "--save", "x.rrd", *QUICK],
    ("loops", "all frames"): ["loops", "good", "-o", "out", "-q", *QUICK],
    ("loops", "a frame is damaged"): ["loops", "damaged", "-o", "out", "-q", *QUICK],
    ("loops", "no such recording"): ["loops", "nowhere", *QUICK],
    ("explain", "two images"): ["explain", "good/0.png", "good/0.png", "-o", "out", *QUICK],
    ("explain", "no such image"): ["explain", "nowhere", "good/0.png", *QUICK],
    ("play", "no such recording"): ["play", "nowhere"],
    ("play", "nobody listens"): ["play", "good", "--wait", "0.2", "-q"],
    ("demo", "no such recording"): ["demo", "nowhere", "--weights", "random", "-o", "out"],
    ("weights check", "a good file"): ["weights", "check", "good.pt"],
    ("weights check", "no weights"): ["weights", "check", "page.pt"],
    ("weights convert", "a good file"): ["weights", "convert", "good.pt", "out.safetensors"],
    ("weights convert", "another ending"): ["weights", "convert", "good.pt", "out.pt"],
    ("export", "no weights"): ["export", "--weights", "page.pt", "-o", "out"],
    ("doctor", "something does not"): ["doctor", "--weights", "page.pt"],
    ("--version", ""): ["--version"],
    ("any", "an option that there is not"): ["run", "good", "--no-such-option"],
}
# Held by tests of their own: test_run.py and test_doctor.py.
ELSEWHERE = {("run", "Ctrl-C"), ("doctor", "all works")}


def test_every_row_of_the_table_is_tried() -> None:
    assert set(TABLE) == set(CASES) | ELSEWHERE
    assert {code for code, _ in TABLE.values()} == {0, 1, 2, 130}


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case))
def test_a_command_ends_as_the_table_says(
    case: tuple[str, str], place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == ("run", "a video is damaged"):
        damaged_video(place)
    if case[0] == "play":
        # Fast DDS reads a profile once in a process: it must not be that of the player here for all tests after it.
        pytest.importorskip("rclpy")
        monkeypatch.setattr("loftr_ros.ros.player.provide_profile", lambda: SimpleNamespace(log=lambda _: None))
    if case[0] in ("play", "demo"):
        pytest.importorskip("rclpy")
    done = CliRunner().invoke(app, CASES[case])
    captured = capfd.readouterr()
    code, last = TABLE[case]
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), "an error that nobody caught"
    on_error = last.startswith("stderr")
    # What is said past the command line's own output, as by the demo and ROS's logger, comes before it.
    said = (captured.err + done.stderr if on_error else done.stdout).splitlines()
    said = [line for line in said if line.strip()]
    assert said, done.output
    words = re.search(r"`(.*)`", last)
    if words:
        pattern = re.escape(words[1]).replace("OUT", "(out|file)").replace(r"\.\.\.", ".*")
        pattern = re.sub(r"\bN\b", r"[0-9.]+", pattern)
        assert re.fullmatch(pattern, said[-1]), said[-1]
    if case[0] in ("run", "loops") and code in (0, 1):
        assert (place / "out" / "partial.txt").exists() == (code == 1)
