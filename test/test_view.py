"""`loftr_ros view`: with a test double that records the log, and with rerun if it is installed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import PanningStream, ShiftMatcher
from made_world import HEIGHT, WIDTH, WorldMatcher, depth_along, frame, walk
from typer.testing import CliRunner

from loftr_ros.cli.main import app
from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.odometry import origin
from loftr_ros.frontend.pipeline import STAGES, FrontEnd, FrontEndResult
from loftr_ros.recordings import SourceError, open_source
from loftr_ros.settings import with_values
from loftr_ros.tools import viewer
from loftr_ros.tools.view import ViewLog, confidence_colors, known_points
from loftr_ros.tools.viewer import Destination, ViewError, layout, load_rerun, show

POSES = walk(12)


class Made:
    """One of rerun's objects: its kind and its arguments."""

    def __init__(self, kind: str, *arguments: Any, **options: Any) -> None:
        self.kind, self.options = kind, options
        self.value = arguments[0] if arguments else None
        self.arguments = arguments

    def compress(self, jpeg_quality: int) -> Made:
        return self


class _Makes:
    def __getattr__(self, kind: str) -> Callable[..., Made]:
        if kind.startswith("__"):
            raise AttributeError(kind)
        return lambda *arguments, **options: Made(kind, *arguments, **options)


class FakeRerun(_Makes):
    """Replaces the module: makes anything, and its streams record the log."""

    ViewCoordinates = SimpleNamespace(RDF="RDF")
    blueprint = _Makes()

    def RecordingStream(self, name: str) -> Stream:  # noqa: N802 (rerun's name)
        return Stream()


@dataclass
class Stream:
    """The log: (times, path, what)."""

    logged: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)
    times: dict[str, Any] = field(default_factory=dict)

    def set_time(self, timeline: str, *, sequence: int | None = None, timestamp: Any = None) -> None:
        self.times[timeline] = timestamp if sequence is None else sequence

    def log(self, path: str, what: Any, static: bool = False) -> None:
        self.logged.append((dict(self.times), path, what))

    def all(self, path: str, kind: str | None = None) -> list[Made]:
        return [w for _, p, w in self.logged if p == path and (kind is None or w.kind == kind)]

    def below(self, path: str) -> list[str]:
        return [p for _, p, _ in self.logged if p == path or p.startswith(path + "/")]


def new_log() -> tuple[ViewLog, Stream]:
    stream = Stream()
    return ViewLog(FakeRerun(), stream), stream  # type: ignore[arg-type]


def front_end(mode: str = "rgbd", **settings: Any) -> FrontEnd:
    return FrontEnd(WorldMatcher(POSES), with_values(FrontEndConfig(), {"mode": mode} | settings))


def results(count: int, mode: str = "rgbd", **settings: Any) -> list[FrontEndResult]:
    ahead = front_end(mode, **settings)
    return [ahead.process(frame(POSES, i, depth=mode == "rgbd")) for i in range(count)]


def color_picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_inliers_are_drawn_where_they_are_seen_and_joined_to_where_the_keyframe_saw_them() -> None:
    log, stream = new_log()
    found = results(2)
    for number, result in enumerate(found):
        log.add(result, number)
    match = found[1].matches[0]
    inliers = match.correspondences[match.pose.inliers]
    assert len(inliers) > 100
    # In rerun a pixel's centre is at (0.5, 0.5).
    here, there = inliers.current_points + 0.5, inliers.keyframe_points + 0.5
    points = stream.all("current/inliers", "Points2D")[-1]
    np.testing.assert_allclose(points.value, here)
    np.testing.assert_array_equal(points.options["colors"], confidence_colors(inliers.confidence))
    np.testing.assert_allclose(stream.all("keyframe/inliers")[-1].value, there)
    lines = stream.all("current/motion")[-1].value
    assert lines.shape == (len(inliers), 2, 2)
    np.testing.assert_allclose(lines[:, 0], there)
    np.testing.assert_allclose(lines[:, 1], here)
    outliers = stream.all("current/outliers")[-1].value
    assert len(outliers) == len(match.correspondences) - len(inliers) > 0


def test_confidence_is_coloured_the_same_in_every_frame_from_blue_to_yellow() -> None:
    colors = confidence_colors(np.array([0.0, 0.5, 1.0, 2.0], np.float32)).astype(int)
    assert colors.shape == (4, 3)
    low, _, high, above = colors
    assert low[2] > low[0] and high[0] > 200 and high[1] > 150 and high[2] < 100, "red, green, blue"
    np.testing.assert_array_equal(high, above)
    assert confidence_colors(np.zeros(0, np.float32)).shape == (0, 3)


def test_without_matches_those_of_the_frame_before_vanish() -> None:
    log, stream = new_log()
    matched, alone = results(2)[1], results(1)[0]
    log.add(matched, 0)
    log.add(alone, 1)
    for path in ("current/motion", "current/inliers", "current/outliers", "keyframe"):
        assert stream.all(path)[-1].kind == "Clear", path


def test_the_keyframes_image_is_logged_once_for_as_long_as_frames_are_matched_with_it() -> None:
    log, stream = new_log()
    found = results(4)
    assert len({result.matches[0].keyframe.id for result in found[1:]}) == 1
    picture = color_picture()
    for number, result in enumerate(found):
        log.add(result, number, picture if number == 0 else None)
    (shown,) = stream.all("keyframe/image")
    np.testing.assert_array_equal(shown.value, picture)
    assert shown.options["color_model"] == "BGR"
    assert len(stream.all("current/image")) == 4 and stream.all("current/image")[-1].options["color_model"] == "L"


def test_a_keyframe_that_the_log_never_saw_come_is_shown_in_gray() -> None:
    log, stream = new_log()
    result = results(2)[1]
    log.add(result, 1)
    np.testing.assert_array_equal(stream.all("keyframe/image")[0].value, result.matches[0].keyframe.frame.image)


def test_cells_of_known_depth_are_points_on_the_scenes_surfaces_in_the_images_colours() -> None:
    log, stream = new_log()
    result, picture = results(1)[0], color_picture()
    log.add(result, 0, picture)
    keyframe = result.events[0].keyframe
    (points,) = stream.all(f"world/keyframes/{keyframe.id}/points", "Points3D")
    cells = known_points(keyframe)[1]
    rays = keyframe.encoded.cell_rays
    assert rays is not None and 500 < len(points.value) == len(cells) < len(rays)
    np.testing.assert_allclose(points.value[:, 2], depth_along(rays[cells], POSES[0]), rtol=0.01)
    np.testing.assert_allclose(points.value[:, :2] / points.value[:, 2:], rays[cells])
    u, v = np.rint(keyframe.encoded.cell_points[cells]).astype(int).T
    np.testing.assert_array_equal(points.options["colors"], picture[v, u, ::-1])


def test_cells_without_a_depth_that_is_known_well_are_left_out() -> None:
    keyframe = results(1)[0].events[0].keyframe
    count = len(keyframe.encoded.cell_points)
    inverse, variance = np.full(count, 0.5), np.full(count, 1e-4)
    inverse[0], variance[0] = np.nan, np.inf  # unknown
    inverse[1] = -0.01  # past infinity by its noise
    inverse[2] = 0.0
    variance[3] = 0.25  # as likely at twice the depth as here
    keyframe.depth = CellDepth(inverse, variance, True)
    rays = keyframe.encoded.cell_rays
    assert rays is not None
    rays[4] = np.nan  # outside of the lens
    points, cells = known_points(keyframe)
    np.testing.assert_array_equal(cells, np.arange(5, count))
    np.testing.assert_allclose(points[:, 2], 2.0)
    keyframe.depth = None
    assert known_points(keyframe)[0].shape == (0, 3)


def test_a_keyframes_cells_are_logged_again_only_when_the_front_end_knows_them_better() -> None:
    log, stream = new_log()
    found = results(3)
    keyframe = found[0].events[0].keyframe
    log.add(found[0], 0)
    log.add(found[1], 1)
    path = f"world/keyframes/{keyframe.id}/points"
    assert len(stream.all(path)) == 1
    assert keyframe.depth is not None
    keyframe.depth = replace(keyframe.depth, inverse=keyframe.depth.inverse / 2)
    log.add(found[2], 2)
    before, after = stream.all(path)
    np.testing.assert_allclose(after.value, 2 * before.value)


def test_the_camera_stands_where_the_trajectory_says_with_its_own_calibration() -> None:
    log, stream = new_log()
    found = results(5)
    for number, result in enumerate(found):
        log.add(result, number)
    transforms = stream.all("world/camera", "Transform3D")
    assert len(transforms) == 5, "the first frame's place is that of the keyframe that it became"
    np.testing.assert_array_equal(transforms[0].options["translation"], np.zeros(3))
    for result, shown in zip(found[1:], transforms[1:], strict=True):
        assert result.location is not None
        np.testing.assert_array_equal(shown.options["translation"], result.location.pose[:3, 3])
        np.testing.assert_array_equal(shown.options["mat3x3"], result.location.pose[:3, :3])
    pinhole = stream.all("world/camera/frustum", "Pinhole")[-1].options
    camera = found[0].frame.camera
    assert camera is not None
    np.testing.assert_array_equal(pinhole["image_from_camera"] - camera.matrix, [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    assert pinhole["resolution"] == [WIDTH, HEIGHT] and pinhole["camera_xyz"] == "RDF"
    assert stream.all("world")[0] == "RDF"


def test_a_frame_without_location_logs_no_pose_and_the_camera_of_the_one_before_vanishes() -> None:
    log, stream = new_log()
    found = results(3)
    log.add(found[1], 1)
    count = len(stream.below("world/path"))
    log.add(replace(found[2], location=None), 2)
    assert len(stream.all("world/camera", "Transform3D")) == 1
    assert stream.all("world/camera")[-1].kind == "Clear"
    assert len(stream.below("world/path")) == count
    assert len(stream.all("current/inliers", "Points2D")) == 2, "its matches are shown all the same"


def test_without_calibration_there_are_images_and_matches_and_an_empty_world() -> None:
    log, stream = new_log()
    ahead, pan = FrontEnd(ShiftMatcher()), PanningStream()
    for number in range(3):
        log.add(ahead.process(replace(pan.at(8.0 * number), camera=None)), number)
    assert {what.kind for _, path, what in stream.logged if path.startswith("world/")} == {"Clear"}
    assert len(stream.all("current/inliers", "Points2D")) == 2
    assert not stream.below("plots/scale_std") and not stream.below("plots/parallax_px")


def test_a_long_path_costs_as_much_per_frame_as_a_short_one_and_is_whole() -> None:
    log, stream = new_log()
    result = results(2)[1]
    places = [np.array([0.1 * i, 0.0, 0.01 * i]) for i in range(450)]
    for number, at in enumerate(places):
        pose = np.eye(4)
        pose[:3, 3] = at
        log.add(replace(result, location=replace(origin(True), pose=pose)), number)
    strips = [(path, what.value[0]) for _, path, what in stream.logged if path.startswith("world/path/")]
    assert max(len(strip) for _, strip in strips) <= 101
    newest = dict(strips)
    joined = [tuple(point) for strip in newest.values() for point in strip]
    assert list(dict.fromkeys(joined)) == [tuple(at) for at in places]
    assert len(joined) - len(places) == len(newest) - 1, "each piece begins where the one before it ended"


def test_segments_of_the_trajectory_are_not_joined() -> None:
    log, stream = new_log()
    result = results(2)[1]
    for number, segment in enumerate([0, 0, 1, 1, 0]):
        log.add(replace(result, location=replace(origin(True), segment=segment)), number)
    strips = {path: what.value[0] for _, path, what in stream.logged if path.startswith("world/path/")}
    assert sorted(len(strip) for strip in strips.values()) == [1, 2, 2]
    assert {path.split("/")[2] for path in strips} == {"0", "1"}


def test_numbers_are_plotted_over_the_frames_number_and_stamp() -> None:
    log, stream = new_log()
    result = results(2)[1]
    log.add(replace(result, location=replace(origin(False), scale_std=0.25)), 17)
    plotted = {path: (times, what.value) for times, path, what in stream.logged if path.startswith("plots/")}
    assert {f"plots/latency_ms/{stage}" for stage in STAGES} < set(plotted)
    match = result.matches[0]
    assert plotted["plots/matches/inliers"][1] == match.pose.inliers.sum()
    assert plotted["plots/matches/found"][1] == len(match.correspondences)
    assert plotted["plots/parallax_px"][1] == pytest.approx(match.pose.median_parallax)
    assert plotted["plots/scale_std"][1] == 0.25
    assert plotted["plots/latency_ms/match"][1] == pytest.approx(1e3 * result.latencies["match"])
    times = plotted["plots/scale_std"][0]
    assert times == {"frame": 17, "stamp": np.datetime64(result.frame.stamp_ns, "ns")}


def test_a_dropped_keyframe_stays_in_the_world_and_the_log_says_why_it_went() -> None:
    log, stream = new_log()
    settings = {"keyframe.capacity": 2, "keyframe.max_parallax": 0.001}
    for number, result in enumerate(results(5, **settings)):
        log.add(result, number)
    texts = [what.value for what in stream.all("log", "TextLog")]
    assert "keyframe 1 added: FIRST" in texts and "keyframe 1 dropped: EVICTED" in texts
    last = [what for _, path, what in stream.logged if path.startswith("world/keyframes/1/")]
    assert last and not [what for what in last if what.kind == "Clear"]


def test_every_view_shows_something_that_is_logged() -> None:
    log, stream = new_log()
    for number, result in enumerate(results(3)):
        log.add(result, number)
    views: list[Made] = []

    def gather(made: Any) -> None:
        if isinstance(made, Made):
            views.extend([made] if "origin" in made.options else [])
            for inner in made.arguments:
                gather(inner)

    gather(layout(FakeRerun()))  # type: ignore[arg-type]
    assert len(views) == 8
    for shown in views:
        assert stream.below(shown.options["origin"]), shown.options["origin"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images without calibration; the third is damaged."""
    images, pan = tmp_path / "images", PanningStream()
    images.mkdir()
    for i in range(5):
        cv2.imwrite(str(images / f"{i}.png"), pan.at(8.0 * i).image)
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:500])
    return images


def test_refused_frames_are_counted_told_and_logged_at_their_time(folder: Path) -> None:
    log, stream = new_log()
    with open_source(folder) as source:
        shown = show(source, FrontEnd(ShiftMatcher()), log, progress=False)
    assert (shown.frames, shown.located, len(shown.refused)) == (4, 0, 1)
    assert "4 frames" in shown.lines()[0] and "1 frames refused" in shown.lines()[0]
    assert "2.png" in shown.lines()[1]
    logged = [(times, what.value) for times, path, what in stream.logged if path == "log"]
    ((times, text),) = [(times, text) for times, text in logged if "refused" in text]
    assert times["frame"] == 2 and "2.png" in text


def test_a_source_that_lacks_what_the_mode_needs_or_has_no_frame_is_refused(folder: Path) -> None:
    log, _ = new_log()
    with open_source(folder) as source, pytest.raises(SourceError, match="right"):
        show(source, front_end("stereo"), log, progress=False)
    for image in folder.iterdir():
        image.write_bytes(b"nothing")
    with pytest.raises(SourceError), open_source(folder) as source:
        show(source, FrontEnd(ShiftMatcher()), log, progress=False)


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["view", *map(str, arguments)])


def test_without_rerun_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    done = command("rendered", "--save", tmp_path / "x.rrd")
    assert done.exit_code == 2 and "pip install 'loftr_ros[view]'" in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_rerun_that_is_too_old_is_told_from_one_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("rerun")
    monkeypatch.setitem(sys.modules, "rerun", module)
    with pytest.raises(ViewError, match=r"0\.23 or newer"):
        load_rerun()
    module.set_time = None  # type: ignore[attr-defined]
    assert load_rerun() is module


def test_the_command_explains_itself_without_rerun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    done = command("--help")
    assert done.exit_code == 0 and "--save" in done.output and "--connect" in done.output


def test_rerun_is_not_imported_before_it_is_used() -> None:
    code = "import sys, loftr_ros.cli.main; from loftr_ros.tools import view, viewer; sys.exit('rerun' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode == 0


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("robot", "rerun+http://robot:9876/proxy"),
        ("10.0.0.2:1234", "rerun+http://10.0.0.2:1234/proxy"),
        ("rerun+https://robot/proxy", "rerun+https://robot/proxy"),
    ],
)
def test_an_address_is_a_host_with_or_without_a_port_or_a_url(address: str, url: str) -> None:
    assert Destination(address=address).url == url


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"file": Path("a.rrd"), "address": "robot"}, "--save or --connect, not both"),
        ({"file": Path("a.txt")}, r"\.rrd"),
        ({"address": "robot:door"}, "robot:door"),
        ({"address": ":9876"}, "HOST"),
    ],
)
def test_a_destination_that_is_none_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ViewError, match=message):
        Destination(**arguments)


def test_what_cannot_be_reached_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        Destination(address=address).check()
    with pytest.raises(ViewError, match="no viewer answers"):
        Destination(address=address).check()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ViewError, match="--save"):
        Destination().check()
    monkeypatch.setenv("DISPLAY", ":0")
    Destination().check()
    (tmp_path / "file").touch()
    with pytest.raises(ViewError, match="cannot be written"):
        Destination(tmp_path / "file" / "x.rrd").check()
    Destination(tmp_path / "new" / "x.rrd").check()
    assert not (tmp_path / "new" / "x.rrd").exists(), "nothing was shown yet"


def test_a_window_opens_though_the_environment_is_not_activated_and_a_failure_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/elsewhere")
    paths: list[str] = []

    class Window(Stream):
        def spawn(self, default_blueprint: Any) -> None:
            paths.append(os.environ["PATH"])
            if len(paths) > 1:
                raise RuntimeError("no viewer\nand much advice")

    rerun = FakeRerun()
    monkeypatch.setattr(rerun, "RecordingStream", lambda name: Window(), raising=False)
    monkeypatch.setattr(viewer, "unreachable", lambda host, port: None)
    assert isinstance(Destination().open(rerun), Window)  # type: ignore[arg-type]
    folders = paths[0].split(os.pathsep)
    assert folders[-1] == "/elsewhere" and (Path(folders[0]) / "python").exists()
    with pytest.raises(ViewError, match=r"a window: no viewer$"):
        Destination().open(rerun)  # type: ignore[arg-type]
    assert os.environ["PATH"] == "/elsewhere"


def test_a_viewer_that_ends_at_once_is_told_instead_of_sending_it_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    class Window(Stream):
        def spawn(self, default_blueprint: Any) -> None:
            pass

        def disconnect(self) -> None:
            ended.append(self)

    ended: list[Window] = []
    rerun = FakeRerun()
    monkeypatch.setattr(rerun, "RecordingStream", lambda name: Window(), raising=False)
    monkeypatch.setattr(viewer, "unreachable", lambda host, port: OSError("refused"))
    with pytest.raises(ViewError, match="did not open"):
        Destination().open(rerun)  # type: ignore[arg-type]
    assert len(ended) == 1


@pytest.fixture
def rerun() -> Any:
    """The real one, which raises errors instead of only warning."""
    module = pytest.importorskip("rerun", reason="needs rerun-sdk (the extra `view`), which is no test requirement")
    if not hasattr(module, "set_time"):
        pytest.skip("needs rerun-sdk 0.23 or newer")
    module.set_strict_mode(True)
    yield module
    module.set_strict_mode(False)


@pytest.mark.parametrize("mode", ["mono", "rgbd"])
def test_rerun_takes_all_that_is_logged(rerun: Any, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "world.rrd"
    stream = Destination(path).open(rerun)
    log = ViewLog(rerun, stream)
    found = results(6, mode)
    for number, result in enumerate(found):
        log.add(result, number, color_picture() if number % 2 else None)
    log.add(replace(found[-1], location=None), 6)
    log.add(results(1, mode)[0], 7)
    log.refuse(8, 10**9, "a reason")
    stream.disconnect()
    assert path.read_bytes()[:3] == b"RRF" and path.stat().st_size > 100_000


def test_a_recording_is_written_to_a_file_without_a_display(
    rerun: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    path = tmp_path / "new" / "room.rrd"
    done = command("rendered:room?width=320&height=240&frames=10", "--save", path, "-q")
    assert done.exit_code == 0, done.output
    assert "10 frames" in done.output and "0 frames refused" in done.output and f"written to {path}" in done.output
    assert path.read_bytes()[:3] == b"RRF" and path.stat().st_size > 50_000
