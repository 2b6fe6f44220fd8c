"""Pose of the right camera, compared with OpenCV's rectification of known extrinsics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraError
from loftr_ros.recordings.stereo_calibration import left_from_right, pose_of, rectified_camera
from loftr_ros.settings import ConfigError

Array = NDArray[np.float64]
SIZE = (640, 480)
K_LEFT = np.array([[458.6, 0, 367.2], [0, 457.3, 248.4], [0, 0, 1]])
K_RIGHT = np.array([[457.6, 0, 379.9], [0, 456.1, 255.2], [0, 0, 1]])


def info(projection: Any = None, rotation: Any = None, matrix: Array = K_LEFT, **fields: Any) -> SimpleNamespace:
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    values = {"width": SIZE[0], "height": SIZE[1], "binning_x": 0, "binning_y": 0, "roi": roi}
    values |= {"k": matrix.ravel(), "d": [0.1, 0.01, 0.0, 0.0], "distortion_model": "plumb_bob"}
    values |= {"p": np.zeros(12) if projection is None else np.ravel(projection)}
    values |= {"r": np.zeros(9) if rotation is None else np.ravel(rotation)}
    return SimpleNamespace(**(values | fields))


def transform(rotation: tuple[float, ...], translation: tuple[float, ...]) -> Array:
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array(rotation, np.float64))[0]
    pose[:3, 3] = translation
    return pose


def projection(focal: float, x: float = 0.0) -> Array:
    """P of a rectified camera with a translation of `x` metres."""
    return np.array([[focal, 0, 320.0, focal * x], [0, focal, 240.0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize(
    "known",
    [
        transform((0, 0, 0), (0.12, 0, 0)),
        transform((0.01, -0.02, 0.015), (0.11, 0.002, -0.003)),
        transform((-0.05, 0.2, 0.1), (0.5, 0.05, 0.1)),
        transform((0.02, 0.01, -0.01), (0.01, 0.2, 0.0)),  # one above the other
    ],
    ids=["side by side", "nearly so", "turned inwards", "one above the other"],
)
def test_what_a_stereo_calibration_says_of_raw_images_is_the_extrinsic_that_it_was_made_from(known: Array) -> None:
    right_from_left = np.linalg.inv(known)
    no_distortion = np.zeros(5)
    r1, r2, p1, p2, *_ = cv2.stereoRectify(
        K_LEFT, no_distortion, K_RIGHT, no_distortion, SIZE, right_from_left[:3, :3], right_from_left[:3, 3]
    )
    found = left_from_right(info(p1, r1), info(p2, r2, K_RIGHT))
    assert np.abs(found - known).max() < 1e-9


def test_rectified_images_are_a_pure_translation_apart_whatever_r_says() -> None:
    turned = cv2.Rodrigues(np.array([0.1, 0.2, 0.0]))[0]
    expected = transform((0, 0, 0), (0.25, 0, 0))
    left, right = info(projection(450.0), turned), info(projection(450.0, -0.25), turned.T)
    assert np.allclose(left_from_right(left, right, rectified=True), expected, atol=1e-12)
    assert not np.allclose(left_from_right(left, right)[:3, :3], np.eye(3))


@pytest.mark.parametrize("rotation", [np.zeros(9), np.eye(3)], ids=["zeros", "identity"])
def test_without_a_rectifying_rotation_the_baseline_is_along_x(rotation: Array) -> None:
    found = left_from_right(info(projection(450.0), rotation), info(projection(450.0, -0.12), rotation))
    assert np.allclose(found, transform((0, 0, 0), (0.12, 0, 0)), atol=1e-12)


def test_of_two_cameras_that_are_both_beside_a_third_the_difference_counts() -> None:
    # KITTI's colour cameras are 6 cm left and 47 cm right of the gray reference camera.
    found = left_from_right(info(projection(718.0, 0.06)), info(projection(718.0, -0.47)))
    assert np.allclose(found[:3, 3], [0.53, 0, 0], atol=1e-12)


def test_the_left_camera_may_have_no_projection_matrix() -> None:
    assert left_from_right(info(), info(projection(450.0, -0.12)))[0, 3] == pytest.approx(0.12)


@pytest.mark.parametrize("right", [projection(450.0), np.zeros(12)], ids=["calibrated alone", "no P"])
def test_a_pair_without_a_baseline_is_refused_with_the_two_ways_to_give_one(right: Array) -> None:
    with pytest.raises(CameraError, match=r"no baseline in P.*calibrate the pair.*input\.left_from_right"):
        left_from_right(info(projection(450.0)), info(right))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 2 * np.eye(3).ravel()}, "R of the right CameraInfo is no rotation"),
        ({"r": np.diag([1.0, 1.0, -1.0]).ravel()}, "is no rotation"),
        ({"r": np.full(9, np.nan)}, "9 finite numbers"),
        ({"p": np.full(12, np.inf)}, "P of the right CameraInfo is"),
        ({"p": np.array([0.0] * 3 + [-50.0] + [0.0] * 8)}, "is no projection matrix"),
    ],
)
def test_matrices_that_are_none_are_refused(fields: dict[str, Array], words: str) -> None:
    right = info(projection(450.0, -0.12), **fields)
    with pytest.raises(CameraError, match=words):
        left_from_right(info(projection(450.0)), right)


def test_a_rectified_camera_is_that_of_p_without_distortion() -> None:
    camera = rectified_camera(info(projection(450.0, -0.12)))
    assert camera.distortion_model == "none" and (camera.width, camera.height) == SIZE
    assert np.allclose(camera.matrix, projection(450.0)[:, :3])
    half = rectified_camera(info(projection(450.0), binning_x=2, binning_y=2))
    assert (half.width, half.height, half.matrix[0, 0]) == (320, 240, 225.0)


def test_a_rectified_image_without_p_is_refused() -> None:
    with pytest.raises(CameraError, match=r"no projection matrix P.*input\.rectified"):
        rectified_camera(info())


# --- the parameter ---


def test_seven_numbers_are_a_translation_and_a_quaternion() -> None:
    angle = np.array([0.3, -0.5, 0.2])
    half = np.linalg.norm(angle) / 2
    quaternion = [*(angle / np.linalg.norm(angle) * np.sin(half)), np.cos(half)]
    expected = transform(tuple(angle), (0.1, 0.2, -0.3))
    found = pose_of([0.1, 0.2, -0.3, *quaternion])
    assert found is not None and np.allclose(found, expected, atol=1e-12)
    rounded = pose_of([0.1, 0.2, -0.3, *np.round(quaternion, 3)])
    assert rounded is not None and np.allclose(rounded[:3, :3] @ rounded[:3, :3].T, np.eye(3), atol=1e-12)


def test_zeros_mean_that_nothing_was_said() -> None:
    assert pose_of([0.0] * 7) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.1, 0.0, 0.0], "7 finite numbers"),
        ([0.1, 0, 0, 0, 0, 0, float("nan")], "7 finite numbers"),
        ([0.1, 0, 0, 0, 0, 0, 0], "length 0"),
        ([0.1, 0, 0, 1, 0, 0, 1], "length 1.414"),
        ([0, 0, 0, 0, 0, 0, 1], "no translation"),
    ],
)
def test_numbers_that_are_no_pose_are_refused(values: list[float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pose_of(values)
