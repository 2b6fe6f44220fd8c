"""`import loftr_ros`: what a Python program gets, and when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import rendered_pair
from rendered_pair import CAMERA, HEIGHT, WIDTH, errors, views, write_images

import loftr_ros
from loftr_ros.matcher.interface import Matcher
from loftr_ros.tools import match as match_module

PUBLIC = Path(loftr_ros.__file__)


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    """The network in the package; torch is the quickest to start."""
    return loftr_ros.load_matcher(backend="torch", device="cpu")


def run_python(code: str) -> list[str]:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_loads_nothing_heavy_and_its_version_needs_nothing_heavy_either() -> None:
    code = (
        "import os, sys, loftr_ros; dir(loftr_ros); loftr_ros.__version__; print(os.environ['OMP_WAIT_POLICY']);"
        "heavy = {'torch', 'cv2', 'numpy', 'scipy', 'rclpy', 'lancedb', 'matplotlib'};"
        "print(*heavy & set(sys.modules), len(sys.modules))"
    )
    policy, modules = run_python(code)
    assert policy == "PASSIVE"
    assert int(modules) < 250, "an import costs some 0.1 ms a module, and 0.2 s is the limit"


def test_every_public_name_is_there_documented_and_known_to_type_checkers() -> None:
    for name in loftr_ros.__all__:
        found = getattr(loftr_ros, name)
        assert name in dir(loftr_ros)
        assert isinstance(found, str) or (found.__doc__ and found.__module__.startswith("loftr_ros."))
    assert PUBLIC.with_name("py.typed").is_file()
    assert len(PUBLIC.read_text().splitlines()) < 80
    with pytest.raises(AttributeError, match="no attribute 'macth'"):
        _ = loftr_ros.macth  # type: ignore[attr-defined]


@pytest.mark.long
def test_what_type_checkers_see_is_what_is_loaded(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import loftr_ros\n"
        "found = loftr_ros.match('a.png', 'b.png', loftr_ros.load_matcher(threads=1))\n"
        "reveal_type(found.points0)\n"
        "reveal_type(loftr_ros.__version__)\n"
        "with loftr_ros.open_recording('folder', step=2) as recording:\n"
        "    for frame in recording:\n"
        "        reveal_type(loftr_ros.FrontEnd(loftr_ros.load_matcher()).process(frame.to_frame()))\n"
        "loftr_ros.match('a.png')\n"
        "loftr_ros.LoopDetector(1)\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(program)]
    done = subprocess.run([*command, "--follow-imports=silent"], capture_output=True, text=True, timeout=300)
    assert 'Revealed type is "numpy.ndarray' in done.stdout and 'Revealed type is "str"' in done.stdout, done.stdout
    assert "FrontEndResult" in done.stdout
    assert {line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line} == {"8", "9"}, done.stdout


def test_the_version_is_that_of_package_xml() -> None:
    package = Path(__file__).resolve().parents[1] / "package.xml"
    assert f"<version>{loftr_ros.__version__}</version>" in package.read_text()


def test_without_pips_metadata_the_version_is_that_of_the_installed_package_xml(monkeypatch) -> None:
    pytest.importorskip("ament_index_python")
    from importlib import metadata

    from loftr_ros.tools.version import installed_version

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)  # as after a colcon build
    assert installed_version() == loftr_ros.__version__


def test_matches_of_two_arrays_are_sub_pixel_by_the_rendered_truth_and_know_their_error(matcher: Matcher) -> None:
    found = loftr_ros.match(views()[0].image, views()[1].image, matcher)
    assert len(found) == len(found.points0) == len(found.points1) == len(found.std) > 300
    assert found.points0.dtype == found.points1.dtype == found.confidence.dtype == np.float32
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    assert ((found.points1 >= -0.5) & (found.points1 <= [WIDTH - 0.5, HEIGHT - 0.5])).all()
    error = errors(found.points0, found.points1, 1)
    assert np.nanmedian(error) < 1
    assert np.nanmean(error < 3 * found.std) > 0.6


def test_files_arrays_and_colour_of_one_image_match_alike(matcher: Matcher, tmp_path: Path) -> None:
    files = write_images(tmp_path / "Bilder mit Ü", [0, 1])
    gray = [view.image for view in views()[:2]]
    colour = [cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) for image in gray]
    transparent = [cv2.cvtColor(image, cv2.COLOR_GRAY2BGRA) for image in gray]
    deep = [image.astype(np.uint16) * 257 for image in gray]
    reversed_rows = [np.flipud(np.flipud(image).copy()) for image in gray]
    expected = loftr_ros.match(*gray, matcher)
    for pair in (files, [str(file) for file in files], colour, transparent, deep, reversed_rows):
        found = loftr_ros.match(*pair, matcher)
        np.testing.assert_array_equal(found.points0, expected.points0)
        np.testing.assert_array_equal(found.points1, expected.points1)


def test_without_a_matcher_the_network_in_the_package_is_loaded_once(matcher: Matcher, monkeypatch) -> None:
    loads = []
    monkeypatch.setattr(match_module, "load_matcher", lambda: loads.append(1) or matcher)
    match_module._matcher_in_the_package.cache_clear()
    first, second = (loftr_ros.match(views()[0].image, views()[1].image) for _ in range(2))
    match_module._matcher_in_the_package.cache_clear()
    assert len(loads) == 1 and len(first) == len(second) > 300


def test_no_match_lies_on_a_pixel_that_is_not_usable(matcher: Matcher) -> None:
    usable0, usable1 = np.ones((2, HEIGHT, WIDTH), np.bool_)
    usable0[:, : WIDTH // 3] = usable1[: HEIGHT // 3] = False
    found = loftr_ros.match(views()[0].image, views()[1].image, matcher, usable0=usable0, usable1=usable1)
    assert len(found) > 50
    assert found.points0[:, 0].min() > WIDTH // 3 - 1 and found.points1[:, 1].min() > HEIGHT // 3 - 1
    with pytest.raises(loftr_ros.MaskError, match="160x120"):
        loftr_ros.match(views()[0].image, views()[1].image, matcher, usable1=usable0[::2, ::2])


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("nowhere.png", loftr_ros.SourceError, "nowhere.png cannot be read: No such file"),
        (__file__, loftr_ros.SourceError, "test_public_face.py"),
        (3, ValueError, "image1 is of type int; expected a path, or a NumPy array"),
        (np.zeros((HEIGHT, WIDTH), np.float32), ValueError, r"float32; .*255 \* image"),
        (np.zeros((3, HEIGHT, WIDTH), np.uint8), ValueError, r"transpose\(1, 2, 0\)"),
        (np.zeros((HEIGHT, WIDTH, 2), np.uint8), ValueError, "expected .*BGR"),
        (np.zeros((0, WIDTH), np.uint8), ValueError, "empty"),
        (np.zeros(7, np.int64), ValueError, "shape .7,. and int64"),
        (np.zeros((8, 8), np.uint8), loftr_ros.FrameRefusedError, "too small"),
    ],
)
def test_what_is_no_image_is_refused_with_words_that_say_what_to_do(matcher: Matcher, image, error, words) -> None:
    with pytest.raises(error, match=words):
        loftr_ros.match(views()[0].image, image, matcher)


def test_a_blank_image_has_no_matches_and_arrays_of_the_right_shapes(matcher: Matcher) -> None:
    found = loftr_ros.match(views()[0].image, np.full((HEIGHT, WIDTH), 128, np.uint8), matcher)
    assert len(found) < 10 and found.points0.shape == found.points1.shape == (len(found), 2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"weights": "nowhere.pt"}, loftr_ros.WeightsError, "nowhere.pt does not exist"),
        ({"network": "superglue"}, loftr_ros.WeightsError, "superglue"),
        ({"device": "gpu"}, loftr_ros.DeviceError, "gpu"),
        ({"precision": "int4"}, loftr_ros.ConfigError, "precision is 'int4'; expected one of auto, float32"),
        ({"backend": "tflite"}, loftr_ros.ConfigError, "backend is 'tflite'"),
        ({"threshold": 2}, loftr_ros.ConfigError, "threshold is 2.0; expected 0.0 to 1.0"),
        ({"max_matches": -1}, loftr_ros.ConfigError, "max_matches"),
    ],
)
def test_a_matcher_that_cannot_be_had_is_refused_with_words(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        loftr_ros.load_matcher(**arguments)


def test_the_matchers_threshold_and_most_matches_hold() -> None:
    matcher = loftr_ros.load_matcher(backend="torch", threshold=0.5, max_matches=100)
    found = loftr_ros.match(views()[0].image, views()[1].image, matcher)
    assert 50 < len(found) <= 100 and found.confidence.min() >= 0.5


def test_a_recording_is_opened_by_keywords_and_feeds_the_front_end(matcher: Matcher, tmp_path: Path) -> None:
    write_images(tmp_path / "walk")
    camera = loftr_ros.load_camera(rendered_pair.write_calibration(tmp_path / "camera.yaml"))
    assert isinstance(camera, loftr_ros.Camera) and camera.same_as(CAMERA)
    front_end = loftr_ros.FrontEnd(matcher, loftr_ros.FrontEndConfig())
    with loftr_ros.open_recording(tmp_path / "walk", start=1, step=2, rate=10, camera=camera) as recording:
        results = [front_end.process(frame.to_frame()) for frame in recording]
    assert len(results) == 3 and all(result.place is not None for result in results)
    assert np.diff([result.frame.stamp_ns for result in results]).tolist() == [2 * 10**8] * 2
    with pytest.raises(loftr_ros.SourceError, match="does not exist"):
        loftr_ros.open_recording(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="stride"):
        loftr_ros.open_recording(tmp_path / "walk", stride=2)  # type: ignore[call-arg]


def test_a_second_robot_closes_loops_with_the_first_ones_archive_at_the_true_pose(matcher: Matcher, tmp_path) -> None:
    pytest.importorskip("lancedb")
    found = {}
    for robot in ("ada", "bob"):
        with loftr_ros.LoopDetector(tmp_path / "places", matcher, robot=robot) as detector:
            found[robot] = [loop for number in range(5) for loop in process(detector, number)]
        assert not detector.unread
    assert not found["ada"], "its own recent past is no loop"
    assert len(found["bob"]) >= 2
    for loop in found["bob"]:
        assert loop.keyframe.name.robot == "ada" and loop.current.robot == "bob"
        assert loop.keyframe.stamp_ns == loop.stamp_ns and loop.found.score > 0.8  # the very same image
    with loftr_ros.LoopDetector(tmp_path / "places", matcher, robot="bob") as detector:
        assert {name.robot for name in detector.archive.names()} == {"ada", "bob"}, "the last keyframes are there too"
        before = detector.archive.last_id("bob")
        process(detector, 0)
    with loftr_ros.LoopDetector(tmp_path / "places", matcher, robot="bob") as detector:
        assert detector.archive.last_id("bob") == before + 1


def process(detector: loftr_ros.LoopDetector, number: int) -> list:
    frame = loftr_ros.Frame(views()[number].image, 10**9 + number * 10**8, "camera", CAMERA)
    result, loops = detector.process(frame)
    assert result.place is not None
    return loops


def test_without_lancedb_an_archive_is_refused_by_the_name_of_its_extra(
    matcher: Matcher, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(loftr_ros.PlacesError, match=r"archive\.uri .*pip install 'loftr_ros\[archive\]'") as error:
        loftr_ros.LoopDetector(tmp_path / "places", matcher)
    assert error.value.kind == "archive_database" and not (tmp_path / "places").exists()
