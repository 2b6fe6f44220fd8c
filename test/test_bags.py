"""Bags: stereo and depth from their topics, and unfinished recordings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bags import COMPRESSED, IMAGE, INFO, STORE, camera_info, compressed, image, write_bag
from fakes import texture

from loftr_ros.recordings import SourceError, open_source
from loftr_ros.recordings.input_settings import InputParameters
from loftr_ros.recordings.reading import FrameReader

WIDTH, HEIGHT = 64, 48
LEFT, RIGHT = texture(HEIGHT, WIDTH, 1), texture(HEIGHT, WIDTH, 2)
MATRIX = (60.0, 0.0, 31.5, 0.0, 60.0, 23.5, 0.0, 0.0, 1.0)
TF = "tf2_msgs/msg/TFMessage"


def stamped(message: Any, frame: str) -> Any:
    message.header.frame_id = frame
    return message


def info(
    stamp: int, frame: str, baseline: float = 0.0, k: Any = MATRIX, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Any:
    made = camera_info(*size, stamp, k, d=(0.0,) * 5)
    made.p = np.array([k[0], 0, k[2], -k[0] * baseline, 0, k[4], k[5], 0, 0, 0, 1, 0])
    return stamped(made, frame)


def transform(parent: str, child: str, at: tuple[float, float, float]) -> Any:
    types = STORE.types
    made = types["geometry_msgs/msg/TransformStamped"](
        header=image(LEFT, 0).header,
        child_frame_id=child,
        transform=types["geometry_msgs/msg/Transform"](
            translation=types["geometry_msgs/msg/Vector3"](*at),
            rotation=types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0),
        ),
    )
    made.header.frame_id = parent
    return types[TF](transforms=[made])


def stereo(
    path: Path, offset: int = 0, baseline: float = 0.12, names: tuple[str, str] = ("left", "right"), count: int = 4
) -> Path:
    messages = [("/tf_static", TF, 0, transform("base", f"{names[0]}_optical", (0.0, 0.0, 0.0)))]
    messages.append(("/tf_static", TF, 1, transform("base", f"{names[1]}_optical", (0.3, 0.0, 0.0))))
    for k in range(4):
        stamp = 10**9 + k * 10**8
        for side, name in enumerate(names):
            late = stamp + offset * side
            frame, seen = f"{name}_optical", (LEFT, RIGHT)[side]
            messages.append((f"/{name}/camera_info", INFO, late + 1, info(late, frame, baseline * side)))
            messages.append((f"/{name}/image_raw", IMAGE, late + 2, stamped(image(seen, late), frame)))
    return write_bag(path, messages)


@pytest.mark.parametrize("names", [("left", "right"), ("infra1", "infra2"), ("cam0", "cam1")])
def test_a_stereo_bag_feeds_the_front_end_by_its_two_topics_and_their_calibrations(tmp_path: Path, names: Any) -> None:
    with open_source(stereo(tmp_path / "bag", names=names)) as source:
        source.require("stereo")
        assert source.topic == f"/{names[0]}/image_raw"
        frames = [frame.to_frame("stereo") for frame in source]
    assert len(frames) == 4
    for frame in frames:
        assert frame.right is not None
        np.testing.assert_array_equal(frame.image, LEFT)
        np.testing.assert_array_equal(frame.right.image, RIGHT)
        np.testing.assert_allclose(frame.right.left_from_right[:3, 3], [0.12, 0, 0], atol=1e-9)


def test_where_the_calibrations_do_not_tell_the_static_transforms_say_where_the_right_camera_is(tmp_path: Path) -> None:
    with open_source(stereo(tmp_path / "bag", baseline=0.0)) as source:
        right = next(iter(source)).to_frame("stereo").right
    assert right is not None
    np.testing.assert_allclose(right.left_from_right[:3, 3], [0.3, 0, 0], atol=1e-9)
    asked = InputParameters(left_from_right=(0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    with open_source(tmp_path / "bag") as source:
        right = FrameReader(asked).read(next(iter(source)), "stereo").right
    assert right is not None and right.left_from_right[0, 3] == 0.5


def test_without_any_place_of_the_right_camera_the_bag_says_so_before_the_first_frame(tmp_path: Path) -> None:
    messages = [m for m in _messages(stereo(tmp_path / "whole", baseline=0.0)) if m[0] != "/tf_static"]
    with (
        open_source(write_bag(tmp_path / "bag", messages)) as source,
        pytest.raises(SourceError, match=r"no baseline in P.*has no transform from right_optical to left_optical"),
    ):
        source.require("stereo")


def _messages(path: Path) -> list[Any]:
    from rosbags.highlevel import AnyReader

    with AnyReader([path], default_typestore=STORE) as reader:
        return [(c.topic, c.msgtype, time, reader.deserialize(raw, c.msgtype)) for c, time, raw in reader.messages()]


@pytest.mark.parametrize(("offset", "paired"), [(0, True), (4_000_000, True), (-4_000_000, True), (30_000_000, False)])
def test_pairs_are_of_one_stamp_or_nearly_so_and_it_is_told(tmp_path: Path, offset: int, paired: bool) -> None:
    with open_source(stereo(tmp_path / "bag", offset)) as source:
        assert [frame.right is not None for frame in source] == [paired] * 4
        assert any("differ by up to 4.000 ms" in note for note in source.notes) == (abs(offset) == 4_000_000)


def test_a_missing_partner_costs_its_own_frame_alone(tmp_path: Path) -> None:
    messages = _messages(stereo(tmp_path / "whole"))
    at = [k for k, each in enumerate(messages) if each[0] == "/right/image_raw"]
    del messages[at[1]]
    with open_source(write_bag(tmp_path / "bag", messages)) as source:
        frames = list(source)
    assert [frame.right is not None for frame in frames] == [True, False, True, True]
    with pytest.raises(SourceError, match=r"frame 1 .*has no right image"):
        frames[1].to_frame("stereo")


def depth_bag(path: Path, encoding: str = "16UC1", size: Any = (WIDTH, HEIGHT), packed: bool = False) -> Path:
    values = np.full(size[::-1], 2000, np.uint16) if encoding == "16UC1" else np.full(size[::-1], 2.0, np.float32)
    messages = [("/tf_static", TF, 0, transform("camera_color", "camera_depth", (0.1, 0.0, 0.0)))]
    small = (30.0, 0.0, (size[0] - 1) / 2, 0.0, 30.0, (size[1] - 1) / 2, 0.0, 0.0, 1.0)
    aligned = size == (WIDTH, HEIGHT)
    for k in range(3):
        stamp = 10**9 + k * 10**8
        frame = "camera_color" if aligned else "camera_depth"
        calibration = info(stamp, frame, k=MATRIX if aligned else small, size=size)
        messages.append(("/color/camera_info", INFO, stamp, info(stamp, "camera_color")))
        messages.append(("/color/image_raw", IMAGE, stamp, stamped(image(LEFT, stamp), "camera_color")))
        messages.append(("/depth/camera_info", INFO, stamp, calibration))
        if packed:
            png = bytes(12) + cv2.imencode(".png", values)[1].tobytes()
            message, kind, topic = (
                compressed(png, stamp, "16UC1; compressedDepth png"),
                COMPRESSED,
                "/depth/image/compressedDepth",
            )
        else:
            message, kind, topic = image(values.view(np.uint8), stamp, encoding), IMAGE, "/depth/image"
            message.width = size[0]
        messages.append((topic, kind, stamp + 5, stamped(message, frame)))
    return write_bag(path, messages)


@pytest.mark.parametrize(("encoding", "packed"), [("16UC1", False), ("32FC1", False), ("16UC1", True)])
def test_a_bag_with_depth_feeds_the_front_end_in_metres(tmp_path: Path, encoding: str, packed: bool) -> None:
    with open_source(depth_bag(tmp_path / "bag", encoding, packed=packed)) as source:
        source.require("rgbd")
        assert source.topic == "/color/image_raw"
        frames = [frame.to_frame("rgbd") for frame in source]
    assert len(frames) == 3
    for frame in frames:
        assert frame.depth is not None
        np.testing.assert_allclose(frame.depth.metres(frame.depth.values), 2.0)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_of_a_camera_of_its_own_is_moved_into_the_image_by_the_static_transforms(
    tmp_path: Path, encoding: str
) -> None:
    with open_source(depth_bag(tmp_path / "bag", encoding, (32, 24))) as source:
        depth = next(iter(source)).to_frame("rgbd").depth
        assert any("is registered to /color/image_raw" in note for note in source.notes)
    assert depth is not None and depth.values.shape == (HEIGHT, WIDTH)
    found = depth.metres(depth.values)
    known = np.isfinite(found)
    assert known.mean() > 0.2, "of four pixels one has a depth, of twice the size"
    np.testing.assert_allclose(found[known], 2.0, atol=2e-3)
    # A point at 2 m in the depth camera's middle is 0.1 m to the right in the image's camera: 3 px.
    assert np.flatnonzero(known.any(axis=0)).min() in range(2, 5)


def test_of_several_depth_topics_one_must_be_named(tmp_path: Path) -> None:
    messages = _messages(depth_bag(tmp_path / "whole"))
    messages += [("/depth2/image", *each[1:]) for each in messages if each[0] == "/depth/image"]
    path = write_bag(tmp_path / "bag", messages)
    with open_source(path) as source, pytest.raises(SourceError, match="choose a depth topic with --depth-topic"):
        source.require("rgbd")
    with open_source(path, depth_topic="/depth2/image") as source:
        source.require("rgbd")
    with pytest.raises(SourceError, match="no images on '/depth3/image'"):
        open_source(path, depth_topic="/depth3/image")


# --- what is wrong ---


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_the_only_bag_file_of_a_folder_is_read_without_its_metadata(tmp_path: Path, storage: str) -> None:
    path = write_bag(tmp_path / "bag", [("/cam/image", IMAGE, 1, image(LEFT, 10**9))], storage)
    (path / "metadata.yaml").unlink()
    with open_source(path) as source:
        assert len(list(source)) == 1
    file = next(each for each in path.iterdir() if each.suffix in (".mcap", ".db3"))
    shutil.copy(file, path / f"bag_1{file.suffix}")
    with pytest.raises(SourceError, match=r"2 bag files but no metadata.yaml.*ros2 bag reindex"):
        open_source(path)


@pytest.mark.parametrize("with_metadata", [True, False])
def test_messages_that_are_compressed_are_read_with_metadata_and_without(tmp_path: Path, with_metadata: bool) -> None:
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    path = tmp_path / "bag"
    writer = Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        for topic, kind, message in (
            ("/cam/camera_info", INFO, info(1, "x")),
            ("/cam/image", IMAGE, image(LEFT, 10**9)),
        ):
            connection = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connection, 1, STORE.serialize_cdr(message, kind))
    if not with_metadata:
        (path / "metadata.yaml").unlink()
    with open_source(path) as source:
        (frame,) = source
    np.testing.assert_array_equal(frame.to_frame().image, LEFT)
    assert frame.camera is not None and frame.camera.matrix[0, 0] == 60


def test_an_unfinished_recording_says_what_to_do(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", [("/cam/image", IMAGE, 1, image(LEFT, 10**9))])
    file = next(path.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(SourceError, match="mcap recover"):
        open_source(file)
    with pytest.raises(SourceError, match="ros2 bag reindex"):
        open_source(path)
    (path / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    with pytest.raises(SourceError, match="ros2 bag reindex"):
        open_source(path)


def test_a_calibration_that_cannot_be_used_is_told_in_the_node_s_words(tmp_path: Path) -> None:
    bad = info(1, "x")
    bad.distortion_model, bad.d = "Inverse Brown Conrady", np.array([0.1, 0, 0, 0, 0])
    messages = [("/cam/camera_info", INFO, 1, bad), ("/cam/image", IMAGE, 2, image(LEFT, 10**9))]
    with open_source(write_bag(tmp_path / "bag", messages)) as source:
        (frame,) = source
        assert frame.to_frame().camera is None
        (note,) = source.notes
    assert "/cam/camera_info: distortion model 'Inverse Brown Conrady' cannot be used" in note
    assert "have no poses" in note
