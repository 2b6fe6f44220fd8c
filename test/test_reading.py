"""Frames of recordings equal the node's, by the same parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bags import IMAGE, INFO, camera_info, image, write_bag
from fakes import texture
from typer.testing import CliRunner

from loftr_ros.cli.main import app
from loftr_ros.cli.options import parameters
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings import SourceError, SourceFrame, open_source
from loftr_ros.recordings.input_settings import InputParameters
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.tools.opening import open_offline

WIDTH, HEIGHT = 64, 48
P = (300.0, 0.0, 31.0, 0.0, 0.0, 310.0, 23.0, 0.0, 0.0, 0.0, 1.0, 0.0)
GRAY = texture(HEIGHT, WIDTH)
THERMAL = (7000 + 4 * GRAY.astype(np.uint16)).astype(np.uint16)  # like thermal cameras: a small part of 16 bits


def bag(path: Path, pixels: Any = GRAY, encoding: str = "mono8") -> Path:
    info = camera_info(WIDTH, HEIGHT, 10**9)
    info.p = np.array(P)
    seen = image(pixels if pixels.dtype == np.uint8 else pixels.view(np.uint8), 10**9, encoding)
    seen.width = WIDTH
    return write_bag(path, [("/cam/camera_info", INFO, 1, info), ("/cam/image", IMAGE, 2, seen)])


def only(path: Path, **options: Any) -> SourceFrame:
    with open_source(path, **options) as source:
        (frame,) = source
    return frame


def test_a_rectified_recording_has_the_camera_in_p_and_a_raw_one_that_in_k_and_d(tmp_path: Path) -> None:
    frame = only(bag(tmp_path / "bag"))
    raw, rectified = FrameReader().read(frame), FrameReader(InputParameters(rectified=True)).read(frame)
    assert raw.camera is not None and rectified.camera is not None
    assert (raw.camera.matrix[0, 0], raw.camera.distortion_model) == (500, "plumb_bob")
    assert (rectified.camera.matrix[0, 0], rectified.camera.distortion_model) == (300, "none")


def test_images_of_files_that_were_rectified_have_their_calibration_without_its_distortion(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), GRAY)
    given = CameraModel(WIDTH, HEIGHT, np.diag([300.0, 300, 1]), "plumb_bob", np.array([0.3, 0, 0, 0, 0]))
    read = FrameReader(InputParameters(rectified=True)).read(only(tmp_path, camera=given))
    assert read.camera is not None and read.camera.distortion_model == "none"


@pytest.mark.parametrize("kind", ["png", "pgm", "tiff", "bag"])
@pytest.mark.parametrize("white_level", [65535, 8100, 0])
def test_sixteen_bits_become_eight_by_the_white_level_whatever_they_came_in(
    tmp_path: Path, kind: str, white_level: int
) -> None:
    from loftr_ros.recordings.decoding import eight_bits

    if kind == "bag":
        path = bag(tmp_path / "bag", THERMAL, "mono16")
    else:
        path = tmp_path
        cv2.imwrite(str(path / f"0.{kind}"), THERMAL)
    read = FrameReader(InputParameters(white_level=white_level)).read(only(path))
    np.testing.assert_array_equal(read.image, eight_bits(THERMAL, white_level))
    assert (read.image.std() > 20) == (white_level == 0), "a thermal image is flat unless it is stretched"


def test_without_camera_info_there_is_no_calibration_and_a_mask_is_on_every_frame(tmp_path: Path) -> None:
    mask = np.ones((HEIGHT, WIDTH), np.bool_)
    read = FrameReader(InputParameters(camera_info="none"), mask).read(only(bag(tmp_path / "bag")))
    assert read.camera is None and read.usable is mask


def test_where_the_right_camera_stands_is_the_parameter_s_where_it_says_so() -> None:
    frame = next(iter(open_source("rendered?seed=3&width=64&height=48&frames=1")))
    asked = InputParameters(left_from_right=(0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    own, given = FrameReader().read(frame, "stereo").right, FrameReader(asked).read(frame, "stereo").right
    assert own is not None and given is not None
    assert (own.left_from_right[0, 3], given.left_from_right[0, 3]) == (0.12, 0.5)


@pytest.mark.parametrize("kind", ["png16", "jpeg", "bag", "bag16", "rendered"])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_recording_gives_the_frame_that_the_node_makes_of_what_is_played(
    tmp_path: Path, kind: str, rectified: bool, compressed: bool
) -> None:
    pytest.importorskip("rclpy")
    from sensor_msgs.msg import Image

    from loftr_ros.recordings.frame_decoder import Arrival, FrameDecoder
    from loftr_ros.tools.player.messages import frame_messages

    if compressed and kind == "bag16":
        pytest.skip("a message is compressed from what the player decodes")
    camera = CameraModel(WIDTH, HEIGHT, np.diag([300.0, 300, 1]), "plumb_bob", np.array([0.3, 0, 0, 0, 0]))
    if kind == "rendered":
        frame = next(iter(open_source("rendered?seed=3&width=64&height=48&frames=1")))
    elif kind.startswith("bag"):
        bits = (THERMAL, "mono16") if kind == "bag16" else (GRAY, "mono8")
        frame = only(bag(tmp_path / "bag", *bits))
    else:
        cv2.imwrite(
            str(tmp_path / f"0.{kind[:-2] if kind == 'png16' else 'jpg'}"), THERMAL if kind == "png16" else GRAY
        )
        frame = only(tmp_path, camera=camera)
    asked = InputParameters(rectified=rectified, white_level=9000)
    message, info = frame_messages(frame, compressed=compressed, restamped=True)
    played, read = FrameDecoder(asked)(Arrival(message, info, 0.0)), FrameReader(asked).read(frame)
    np.testing.assert_array_equal(played.image, read.image)
    assert played.camera is not None and played.camera.same_as(read.camera)
    assert (played.stamp_ns, played.frame_id) == (read.stamp_ns, read.frame_id)
    assert isinstance(message, Image) != compressed


def test_every_command_goes_by_the_parameters_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite(str(tmp_path / "0.png"), GRAY)
    file = tmp_path / "params.yaml"
    file.write_text(
        "other:\n  ros__parameters: {input: {white_level: 7}}\n"
        "/**:\n  ros__parameters:\n    weights: random\n    network: coarse_lite\n"
        "    input: {rectified: true, white_level: 4095, left_from_right: [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]}\n"
        "another:\n  ros__parameters: {input: {white_level: 8}}\n"
    )
    _, reader = open_offline(parameters(file), "cpu", "float32", None)
    assert reader.parameters.rectified and reader.parameters.white_level == 4095
    file.write_text("/**:\n  ros__parameters: {weights: random, input: {white_level: 70000}}\n")
    for command in (["run", "."], ["view", ".", "--save", "x.rrd"], ["loops", "."], ["explain", "0.png", "0.png"]):
        done = CliRunner().invoke(app, [*command, "--params-file", str(file)])
        assert done.exit_code == 2, done.output
        assert "input.white_level is 70000" in done.output or "rerun is not installed" in done.output


def test_of_two_cameras_in_a_file_the_one_that_is_named_counts(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(
        "left:\n  loftr_front_end:\n    ros__parameters: {input: {white_level: 1}}\n"
        "/right/loftr_front_end:\n  ros__parameters: {input.white_level: 2}\n"
    )
    assert parameters(file, "/left/loftr_front_end") == {"input.white_level": 1}
    assert parameters(file, "/right/loftr_front_end") == {"input.white_level": 2}
    done = CliRunner().invoke(app, ["run", str(tmp_path), "--params-file", str(file)])
    assert done.exit_code == 2
    assert "left/loftr_front_end, /right/loftr_front_end" in done.output and "--node" in done.output


def test_a_damaged_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), GRAY)
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:80])
    with pytest.raises(SourceError, match=r"0\.png.*cut off"):
        FrameReader().read(only(tmp_path))


@pytest.mark.parametrize("command", ["run", "view", "loops", "play"])
def test_every_option_of_a_recording_reaches_it(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if command == "play":
        pytest.importorskip("rclpy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loftr_ros.tools.viewer.load_rerun", lambda: None)
    given: dict[str, Any] = {}

    def opened(source: str, **options: Any) -> None:
        given.update(options)
        raise SourceError("enough")

    monkeypatch.setattr("loftr_ros.recordings.open_source", opened)
    options = {"start": 3, "stop": 20, "step": 2, "topic": "/a", "right_topic": "/b", "depth_topic": "/c"}
    options |= {"mask_topic": "/d", "masks": Path("masks")}
    flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    flags += ["--frame-rate", "7", "--camera", "camera.yaml"]
    if command != "play":
        flags += ["--weights", "random", "--network", "coarse_lite"]
    flags += ["--save", "x.rrd"] if command == "view" else []
    done = CliRunner().invoke(app, [command, "recording", *flags])
    assert done.exit_code == 2 and "enough" in done.output, done.output
    assert given == {**options, "rate": 7.0, "camera": Path("camera.yaml")}
