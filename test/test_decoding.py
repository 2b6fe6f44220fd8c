"""Messages to frames: right and depth images beside the image, and remembered calibrations."""

from __future__ import annotations

import importlib.util
from typing import Any

import cv2
import numpy as np
import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from fakes import texture
from node_process import camera_info, image_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.image_files import ImageError
from loftr_ros.geometry.camera import CameraError
from loftr_ros.places.view import compressed
from loftr_ros.recordings import frame_decoder as decoding
from loftr_ros.recordings.frame_decoder import Arrival, FrameDecoder
from loftr_ros.ros.parameters import InputParameters
from loftr_ros.settings import ConfigError

LEFT, RIGHT = texture(48, 64, seed=1), texture(48, 64, seed=2)
FOCAL = 60.0


def right_info(image: Image, baseline: float = 0.12, focal: float = FOCAL) -> CameraInfo:
    info = camera_info(image, FOCAL)
    info.p = [focal, 0.0, 31.5, -focal * baseline, 0.0, focal, 23.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def jpeg(pixels: np.ndarray) -> CompressedImage:
    return CompressedImage(format="jpeg", data=cv2.imencode(".jpg", pixels)[1].tobytes())


def stereo(right: Any = None, info: CameraInfo | None = None, stamp: int = 1_000) -> Arrival:
    image = image_message(LEFT, stamp)
    right = image_message(RIGHT, stamp) if right is None else right
    return Arrival(image, camera_info(image, FOCAL), 0.0, right, info or right_info(image))


def decode(arrival: Arrival, **parameters: Any) -> Frame:
    return FrameDecoder(InputParameters(**parameters))(arrival)


def test_a_pair_becomes_a_frame_with_the_right_cameras_image_calibration_and_place() -> None:
    frame = decode(stereo())
    assert frame.right is not None and frame.depth is None
    assert np.array_equal(frame.image, LEFT) and np.array_equal(frame.right.image, RIGHT)
    assert frame.right.camera.matrix[0, 0] == FOCAL
    expected = np.eye(4)
    expected[0, 3] = 0.12
    assert np.allclose(frame.right.left_from_right, expected)


def test_a_jpeg_is_kept_as_it_came_and_nothing_else_is() -> None:
    def frame_of(message: Any) -> Frame:
        return decode(Arrival(message, None, 0.0))

    sent = jpeg(LEFT)
    kept = frame_of(sent)
    assert kept.compressed is not None and bytes(kept.compressed) == bytes(sent.data)
    assert compressed(kept, 10) == bytes(sent.data)
    mosaic = CompressedImage(format="bayer_rggb8; jpeg compressed", data=sent.data)
    assert frame_of(mosaic).compressed is None  # its content is not the image yet
    png = CompressedImage(format="png", data=cv2.imencode(".png", LEFT)[1].tobytes())
    assert frame_of(png).compressed is None
    raw = frame_of(image_message(LEFT, 1))
    assert raw.compressed is None
    assert cv2.imdecode(np.frombuffer(compressed(raw, 90), np.uint8), cv2.IMREAD_GRAYSCALE).shape == LEFT.shape


def test_where_the_right_camera_stands_can_be_said_by_the_parameter() -> None:
    frame = decode(stereo(), left_from_right=(0.5, 0.0, 0.1, 0.0, 0.0, 1.0, 0.0))
    assert frame.right is not None
    assert np.allclose(frame.right.left_from_right[:3, 3], [0.5, 0, 0.1])
    assert np.allclose(frame.right.left_from_right[:3, :3], np.diag([-1, -1, 1]))
    # Then P is not needed.
    decode(stereo(info=right_info(image_message(LEFT, 0), 0.0)), left_from_right=(0.5, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0))


def test_a_pair_without_a_baseline_is_refused() -> None:
    with pytest.raises(CameraError, match="the right CameraInfo has no baseline"):
        decode(stereo(info=right_info(image_message(LEFT, 0), 0.0)))


def test_a_compressed_right_image_is_decoded_when_it_is_asked_for_and_only_once(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        decoding, "decode_compressed", lambda message, white_level: calls.append(message) or RIGHT.copy()
    )
    frame = decode(stereo(jpeg(RIGHT)))
    assert frame.right is not None and not calls
    assert np.array_equal(frame.right.image, RIGHT) and frame.right.image is frame.right.image
    assert len(calls) == 1


def test_a_damaged_compressed_right_image_costs_only_who_asks_for_it() -> None:
    message = jpeg(RIGHT)
    message.data = message.data[: len(message.data) // 2]
    frame = decode(stereo(message))
    assert frame.right is not None
    with pytest.raises(ImageError, match="was cut off"):
        _ = frame.right.image


def test_a_right_image_of_another_size_than_its_calibration_is_refused_as_the_right_one() -> None:
    with pytest.raises(CameraError, match="right CameraInfo is of 64x48 px, its image is 32x24"):
        decode(stereo(image_message(RIGHT[::2, ::2].copy(), 0)))
    frame = decode(stereo(jpeg(RIGHT[::2, ::2])))
    assert frame.right is not None
    with pytest.raises(CameraError, match="right CameraInfo is of 64x48"):
        _ = frame.right.image


def test_an_uncalibrated_right_camera_is_refused_as_the_right_one() -> None:
    info = right_info(image_message(LEFT, 0))
    info.k = [0.0] * 9
    with pytest.raises(CameraError, match="right camera: focal lengths in K are 0"):
        decode(stereo(info=info))


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_comes_beside_the_image(encoding: str) -> None:
    values = np.full((48, 64), 1500, np.uint16) if encoding == "16UC1" else np.full((48, 64), 1.5, np.float32)
    image = image_message(LEFT, 1_000)
    depth = Image(height=48, width=64, encoding=encoding, step=values.strides[0], data=values.tobytes())
    frame = decode(Arrival(image, camera_info(image, FOCAL), 0.0, depth=depth))
    assert frame.depth is not None and frame.right is None
    assert np.allclose(frame.depth.metres(frame.depth.values), 1.5)


def test_rectified_images_have_the_camera_in_p_and_raw_ones_that_in_k_and_d() -> None:
    image = image_message(LEFT, 0)
    left = camera_info(image, FOCAL, distortion=(-0.2, 0.05, 0.0, 0.0, 0.0))
    left.p = [50.0, 0.0, 30.0, 0.0, 0.0, 50.0, 22.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    turn = cv2.Rodrigues(np.array([0.0, 0.1, 0.0]))[0]
    left.r = turn.ravel()
    right = right_info(image, focal=50.0)
    arrival = Arrival(image, left, 0.0, image_message(RIGHT, 0), right)
    raw, rectified = decode(arrival), decode(arrival, rectified=True)
    assert raw.camera is not None and rectified.camera is not None and raw.right and rectified.right
    assert (raw.camera.matrix[0, 0], raw.camera.distortion_model) == (FOCAL, "plumb_bob")
    assert (rectified.camera.matrix[0, 0], rectified.camera.distortion_model) == (50.0, "none")
    assert np.allclose(raw.right.left_from_right[:3, :3], turn.T)
    assert np.allclose(rectified.right.left_from_right[:3, :3], np.eye(3))


def test_calibrations_that_stay_the_same_cost_nothing_and_changed_ones_count(monkeypatch) -> None:
    made = []
    monkeypatch.setattr(
        decoding, "left_from_right", lambda *arguments: made.append(arguments) or np.eye(4), raising=True
    )
    decoder = FrameDecoder(InputParameters())
    first, second = decoder(stereo()), decoder(stereo(stamp=2_000))
    assert first.right and second.right and len(made) == 1
    assert first.camera is second.camera and first.right.camera is second.right.camera
    assert first.right.left_from_right is second.right.left_from_right
    moved = decoder(stereo(info=right_info(image_message(LEFT, 0), 0.2)))
    assert moved.right and len(made) == 2
    assert moved.right.camera is second.right.camera, "the baseline is none of the camera's"


def test_a_rectified_camera_follows_its_p() -> None:
    decoder = FrameDecoder(InputParameters(rectified=True))
    image = image_message(LEFT, 0)
    found = []
    for focal in (50.0, 50.0, 55.0):
        found.append(decoder(Arrival(image, right_info(image, focal=focal), 0.0)).camera)
    assert found[0] is found[1] and found[0] is not None and found[2] is not None
    assert (found[0].matrix[0, 0], found[2].matrix[0, 0]) == (50.0, 55.0)


# --- parameters ---


@pytest.mark.parametrize("mode", ["stereo", "rgbd"])
def test_depth_without_calibrations_is_refused_and_a_single_camera_may_do_without(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"mode is '{mode}' and input.camera_info is 'none'"):
        InputParameters(camera_info="none").check_mode(mode)
    InputParameters(camera_info="none").check_mode("mono")
    InputParameters(camera_info="latest").check_mode(mode)


def test_an_extrinsic_that_is_no_pose_is_refused_where_it_is_set() -> None:
    from loftr_ros.ros.parameters import refusal

    with pytest.raises(ConfigError, match="left_from_right has the quaternion"):
        InputParameters(left_from_right=(0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0))
    reason = refusal({"input.left_from_right": [0.1, 0.0, 0.0]}, configured=False)
    assert reason.startswith("input.left_from_right is [0.1, 0.0, 0.0]; expected 7 finite numbers")
    assert refusal({"input.left_from_right": [0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]}, configured=False) == ""
