"""`loftr_ros run` and its common parts with `view` and `loops`: trajectories, skipped frames, and the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import FineShiftMatcher, PanningStream
from typer.testing import CliRunner

from loftr_ros.cli.main import app
from loftr_ros.evaluation.trajectory_errors import drift, trajectory_errors
from loftr_ros.evaluation.trajectory_plot import degrees, length
from loftr_ros.frontend.config import FrontEndConfig, ScaleConfig
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.recordings import Source, SourceError, SourceFrame, open_source
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.tools.run import run
from loftr_ros.wording import plain

PROGRAM = Path(sys.executable).parent / "loftr_ros"
WALL = 4.0  # m to the wall that the camera moves along
FOCAL = 300.0


def recording(path: Path, shifts: list[float], mode: str = "mono") -> Path:
    """A folder (TUM RGB-D) of a camera that moves along a wall by `shifts` pixels, with its truth."""
    stream = PanningStream()
    (path / "rgb").mkdir(parents=True)
    (path / "depth").mkdir()
    rows, depths, truth = [], [], []
    for k, shift in enumerate(shifts):
        stamp = f"{10 + k / 10:.6f}"
        cv2.imwrite(str(path / "rgb" / f"{k}.png"), stream.at(shift).image)
        cv2.imwrite(str(path / "depth" / f"{k}.png"), np.full((240, 320), round(5000 * WALL), np.uint16))
        rows.append(f"{stamp} rgb/{k}.png")
        depths.append(f"{stamp} depth/{k}.png")
        truth.append(f"{stamp} {shift * WALL / FOCAL} 0 0 0 0 0 1")
    (path / "rgb.txt").write_text("\n".join(rows) + "\n")
    if mode == "rgbd":
        (path / "depth.txt").write_text("\n".join(depths) + "\n")
    (path / "groundtruth.txt").write_text("\n".join(truth) + "\n")
    (path / "camera.yaml").write_text(
        "image_width: 320\nimage_height: 240\n"
        f"camera_matrix: {{data: [{FOCAL}, 0, 159.5, 0, {FOCAL}, 119.5, 0, 0, 1]}}\n"
    )
    return path


def front_end(mode: str = "mono") -> FrontEnd:
    return FrontEnd(FineShiftMatcher(), FrontEndConfig(scale=ScaleConfig(mode)))


class Watched(FrontEnd):
    """Records its results."""

    def process(self, frame: Any) -> FrontEndResult:
        result = super().process(frame)
        self.results: list[FrontEndResult] = [*getattr(self, "results", []), result]
        return result


def test_the_trajectory_of_a_run_is_the_odometry_s_in_metres_where_depth_is_known(tmp_path: Path) -> None:
    shifts = [4.0 * k for k in range(14)]
    watched = Watched(FineShiftMatcher(), FrontEndConfig(scale=ScaleConfig("rgbd")))
    with open_source(recording(tmp_path / "in", shifts, "rgbd")) as source:
        report = run(source, watched, tmp_path / "out", progress=False)
    written = np.loadtxt(tmp_path / "out" / "trajectory.tum")
    assert written.shape == (14, 8)
    places = [result.place for result in watched.results]
    np.testing.assert_allclose(written[:, 1:4], [each.pose[:3, 3] for each in places if each], atol=1e-8)
    np.testing.assert_allclose(written[:, 1], np.array(shifts) * WALL / FOCAL, atol=0.02)
    assert np.unique(np.round(np.linalg.norm(np.diff(written[:, 1:4], axis=0), axis=1), 3)).size < 14
    text = "\n".join(report.lines())
    assert "14 of 14 frames located, a path of 0.6" in text and "ATE 0.0" in text and "without scale" in text
    assert "scale 1.0" in text or "scale 0.9" in text
    assert not report.missing and not (tmp_path / "out" / "partial.txt").exists()


def test_a_run_that_is_optimised_without_loops_is_the_odometry(tmp_path: Path) -> None:
    pytest.importorskip("gtsam")
    from loftr_ros.backend.back_end import BackEnd
    from loftr_ros.tools.optimise import Optimisation

    front, optimisation, odometry = front_end("rgbd"), Optimisation(BackEnd()), dict[int, Any]()
    with open_source(recording(tmp_path / "in", [4.0 * k for k in range(10)], "rgbd")) as source:
        for frame in source:
            result = front.process(FrameReader().read(frame, "rgbd"))
            optimisation.add(result)
            found = result.place
            assert found is not None
            odometry[frame.stamp_ns] = found.pose
    optimisation.finish()
    said = optimisation.write(tmp_path, odometry, odometry, True)
    poses, groups, metric = optimisation.poses
    np.testing.assert_allclose(poses, list(odometry.values()), atol=1e-6)
    assert not groups.any() and metric
    assert all((tmp_path / name).exists() for name in ("optimised.tum", "graph.g2o", "map.ply", "map.npz"))
    assert "0 of 0 loops believed" in said[0] and "ATE 0.000 m" in said[1]


def test_a_camera_that_loses_its_way_leaves_its_segments_in_files_of_their_own(tmp_path: Path) -> None:
    shifts = [4.0 * k for k in range(6)] + [900.0 + 4 * k for k in range(9)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trajectory_9.tum").write_text("of another run")
    with open_source(recording(tmp_path / "in", shifts, "rgbd")) as source:
        report = run(source, front_end("rgbd"), tmp_path / "out", progress=False)
    assert len(report.trajectory.segments) == 2
    parts = [np.loadtxt(tmp_path / "out" / f"trajectory_{k}.tum") for k in (1, 2)]
    assert not (tmp_path / "out" / "trajectory_9.tum").exists()
    whole = np.loadtxt(tmp_path / "out" / "trajectory.tum")
    np.testing.assert_array_equal(np.vstack(parts), whole)
    assert "# broken" in (tmp_path / "out" / "trajectory.tum").read_text()
    np.testing.assert_allclose(whole[6, 1:4], whole[5, 1:4], atol=1e-9)  # like the node's
    text = "\n".join(report.lines())
    assert "broken into 2 segments" in text and "frames of the longest segment" in text


def test_without_matplotlib_a_run_writes_all_but_the_plot_and_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with open_source(recording(tmp_path / "in", [4.0 * k for k in range(4)], "rgbd")) as source:
        report = run(source, front_end("rgbd"), tmp_path / "out", progress=False)
    words = "note: trajectory.png is left out, since matplotlib is not installed: `pip install 'loftr_ros[plot]'`"
    assert words in "\n".join(report.lines()) and not report.missing
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"trajectory.tum", "matches.png"} <= written and "trajectory.png" not in written
    told = CliRunner().invoke(app, ["explain", str(tmp_path / "in/rgb/0.png"), str(tmp_path / "in/rgb/1.png")])
    assert told.exit_code == 2 and "loftr_ros[plot]" in told.output


def test_errors_of_a_trajectory_are_those_that_were_put_into_it() -> None:
    truth = np.tile(np.eye(4), (40, 1, 1))
    truth[:, 0, 3] = np.linspace(0, 39, 40)
    truth[:, 1, 3] = np.sin(truth[:, 0, 3] / 5)
    turn = np.eye(4)
    turn[:3, :3] = cv2.Rodrigues(np.array([0.1, 0.5, -0.2]))[0]
    turn[:3, 3] = (3, 4, 5)
    moved = turn @ truth
    half = moved.copy()
    half[:, :3, 3] *= 0.5
    exact, scaled, wrong = (
        trajectory_errors(moved, truth, False),
        trajectory_errors(half, truth, True),
        trajectory_errors(half, truth, False),
    )
    assert exact is not None and scaled is not None and wrong is not None
    assert exact.ate == pytest.approx(0, abs=1e-9) and exact.drift == pytest.approx(0, abs=1e-9)
    assert scaled.ate == pytest.approx(0, abs=1e-9) and scaled.scale == pytest.approx(2)
    assert wrong.scale == pytest.approx(2) and wrong.ate > 1 and wrong.drift == pytest.approx(50, abs=2)
    longer = truth.copy()
    longer[:, :3, 3] *= 1.02
    assert drift(longer, truth) == pytest.approx(2.0, abs=0.05)
    assert trajectory_errors(truth[:2], truth[:2], False) is None
    still = np.tile(np.eye(4), (5, 1, 1))
    assert np.isnan(drift(still, still))


def test_numbers_in_pictures_are_such_as_people_write() -> None:
    assert [degrees(x) for x in (140.2, 12.3, 1.26, 0.034, 0.0)] == ["140°", "12°", "1.3°", "0.034°", "0°"]
    assert [degrees(x) for x in (9.97, 99.97)] == ["10°", "100°"]
    assert [length(x) for x in (12345.6, 3.456, 0.234, 0.0123)] == ["12346 m", "3.46 m", "234 mm", "12 mm"]
    assert [length(x) for x in (0.0998, 0.00126, 0.0)] == ["100 mm", "1.3 mm", "0 mm"]
    assert [plain(x) for x in (1234.5, 0.00012345, 2.0, 0.0, float("nan"))] == ["1234", "0.000123", "2", "0", "nan"]
    assert plain(12.0, 1) == "12"


class Breaking(Source):
    """Yields frames, and then fails."""

    name, kind, rate, length, camera = "breaking", "test", 10.0, 5, None

    def __init__(self, frames: list[SourceFrame], error: BaseException) -> None:
        self.frames, self.error = frames, error

    def __iter__(self) -> Iterator[SourceFrame]:
        yield from self.frames
        raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "stopped by Ctrl-C"),
        (SourceError("message 3: cut"), "reading ended early: message 3: cut"),
    ],
)
def test_a_run_that_ends_early_writes_what_there_is_and_marks_it(tmp_path: Path, error: Any, words: str) -> None:
    with open_source(recording(tmp_path / "in", [0.0, 4.0, 8.0])) as source:
        frames = list(source)
    report = run(Breaking(frames, error), front_end(), tmp_path / "out", progress=False)
    assert report.frames == 3 and any(words in reason for reason in report.missing)
    assert words in (tmp_path / "out" / "partial.txt").read_text()
    assert np.loadtxt(tmp_path / "out" / "trajectory.tum").shape[0] == 3
    assert (tmp_path / "out" / "correspondences.npz").exists()
    with open_source(tmp_path / "in") as source:
        run(source, front_end(), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "partial.txt").exists()


@pytest.mark.parametrize("command", [["run", "."], ["loops", "."]])
def test_an_output_that_cannot_be_written_is_one_line_before_any_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for output in ("file", "file/below", "/proc/nowhere"):
        done = CliRunner().invoke(app, [*command, "-o", output, "--weights", "random"])
        assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
        assert "cannot be written to" in done.output and len(done.output.strip().splitlines()) == 1


def test_the_program_has_a_version_short_help_and_frames(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["--version"]).output.startswith("loftr_ros 0.2")
    assert CliRunner().invoke(app, ["-h"]).exit_code == 0
    for command in ("demo", "loops", "play", "run", "view"):
        text = CliRunner().invoke(app, [command, "-h"], env={"COLUMNS": "200"}).output
        assert all(option in text for option in ("--start", "--stop", "--frames", "--step")), command
    from loftr_ros.cli.options import stop_before

    assert [stop_before(2, None, 3, 4), stop_before(2, 5, 1, 10), stop_before(0, 7, 1, None)] == [14, 5, 7]


@pytest.mark.parametrize("size", [(16, 12), (31, 200), (4000, 40)])
def test_images_too_small_for_a_network_are_refused_in_words(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "in").mkdir()
    for k in range(2):
        cv2.imwrite(str(tmp_path / "in" / f"{k}.png"), np.full(size[::-1], 90, np.uint8))
    with open_source(tmp_path / "in") as source, pytest.raises(SourceError, match=r"too small to be matched; expected"):
        run(source, front_end(), tmp_path / "out", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_ctrl_c_ends_a_run_with_what_there_is_and_exit_code_130(tmp_path: Path, sent: int) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    if sent == signal.SIGINT:
        source = "rendered?frames=4000&width=320&height=240"  # which is still being furnished
    else:
        source = str(images)
        images.mkdir()
        cv2.imwrite(str(images / "0.png"), PanningStream().at(0.0).image)
        for k in range(1, 3000):
            os.link(images / "0.png", images / f"{k}.png")
    command = [PROGRAM, "run", source, "-o", out, "--weights", "random", "--network", "coarse_lite", "-q"]
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        poses = out / "relative_poses.csv"
        end = time.monotonic() + 90
        while time.monotonic() < end and child.poll() is None and not poses.exists():
            time.sleep(0.05)
        time.sleep(0.5)
        child.send_signal(sent)
        said, complained = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, said + complained
    assert "Traceback" not in complained
    assert said.strip().splitlines()[-1].endswith("(partial)") and "stopped by Ctrl-C" in said
    assert "stopped by Ctrl-C" in (out / "partial.txt").read_text() and (out / "correspondences.npz").exists()
