"""The weights in the package: complete, small, documented, and good enough without any download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from loftr_ros.evaluation.metrics import rotation_error, translation_direction_error
from loftr_ros.frontend.config import FrontEndConfig, KeyframeConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.geometry.two_view import PoseStatus
from loftr_ros.matcher.build import build_network
from loftr_ros.matcher.checkpoints.files import check_weights, read_weights, recognise_file, sha256_of
from loftr_ros.matcher.config import DEFAULT_PRESET, PRESETS
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.weights import EMBEDDED, VARIABLE
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

FILE = EMBEDDED[DEFAULT_PRESET]


@pytest.fixture(scope="module")
def front_end() -> FrontEnd:
    """The default front end, except for the runtime: torch starts fastest."""
    matcher = open_matcher(matcher_spec(MatcherConfig(device="cpu", backend="torch"), MatchingConfig()))
    return FrontEnd(matcher, FrontEndConfig(keyframe=KeyframeConfig(min_coverage=0.0)))


@pytest.fixture(scope="module")
def views() -> list[tuple[Frame, NDArray[np.float32], NDArray[np.float64]]]:
    """Frames of a rendered room not used in training, their depth, and T_world_camera."""
    camera, scene = default_camera(640, 480), Scene(3)
    made = []
    for number, pose in enumerate(trajectory(120, seed=3)[60:80:4]):
        seen = scene.render(camera, pose)
        made.append((Frame(seen.image, 10**9 + number * 10**8, "camera", camera), seen.depth, pose))
    return made


def test_the_file_is_whole_and_of_the_default_network_for_certain() -> None:
    held = read_weights(FILE)
    recognition = recognise_file(held)
    assert not recognition.doubt and recognition.config.name == DEFAULT_PRESET
    used = check_weights(recognition.config, held)
    assert all(tensor.isfinite().all() for tensor in used.values())


def test_the_network_stays_below_two_million_parameters_and_the_file_below_eight_megabytes() -> None:
    names = dict(build_network(PRESETS[DEFAULT_PRESET]).named_parameters())
    assert sum(parameter.numel() for parameter in names.values()) < 2_000_000
    assert FILE.stat().st_size < 8_000_000


def test_the_model_card_is_of_this_very_file() -> None:
    assert sha256_of(FILE) in FILE.with_suffix(".md").read_text()


def test_they_are_what_runs_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = matcher_spec(MatcherConfig(), MatchingConfig())
    assert spec.weights == FILE and FILE.is_file()
    assert open_matcher(spec).config.name == DEFAULT_PRESET


def test_relative_poses_of_a_rendered_room_are_right_without_any_download(
    front_end: FrontEnd, views: list[tuple[Frame, NDArray[np.float32], NDArray[np.float64]]]
) -> None:
    errors = []
    for frame, _, pose in views:
        for match in front_end.process(frame).matches:
            number = next(i for i, view in enumerate(views) if view[0] is match.keyframe.encoded.frame)
            truth = np.linalg.inv(views[number][2]) @ pose
            assert match.pose.status in (PoseStatus.OK, PoseStatus.PLANAR)
            errors.append(
                (
                    rotation_error(match.pose.rotation, truth[:3, :3]),
                    translation_direction_error(match.pose.translation, truth[:3, 3]),
                )
            )
    rotation, direction = np.median(errors, axis=0)
    assert len(errors) >= 4
    assert rotation < 0.5 and direction < 3


def test_matches_are_sub_pixel_and_their_standard_deviations_tell_the_errors_size(
    front_end: FrontEnd, views: list[tuple[Frame, NDArray[np.float32], NDArray[np.float64]]]
) -> None:
    (frame0, depth, pose0), (frame1, _, pose1) = views[0], views[1]
    assert frame0.camera is not None
    found = front_end.matcher.match([front_end.encode(frame0).features], front_end.encode(frame1).features)[0]
    points0, points1 = (points.numpy().astype(np.float64) for points in (found.points0, found.points1))
    error = points1 - projected(points0, depth, pose0, pose1, frame0.camera.matrix)
    known = np.isfinite(error).all(axis=1) & (np.abs(error).max(axis=1) < 8)  # a wrong cell has no standard deviation
    assert known.sum() > 500
    assert np.median(np.linalg.norm(error[known], axis=1)) < 1
    within = np.abs(error[known]) < found.std.numpy()[known, None]
    assert 0.5 < within.mean() < 0.9


def projected(
    points: NDArray[np.float64],
    depth: NDArray[np.float32],
    T_world_0: NDArray[np.float64],
    T_world_1: NDArray[np.float64],
    matrix: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(N, 2) pixels of one view where another sees them, by the nearest pixel's depth."""
    column, row = points.round().astype(int).T
    distance = depth[row, column].astype(np.float64)
    rays = np.column_stack([points, np.ones(len(points))]) @ np.linalg.inv(matrix).T
    T_1_0 = np.linalg.inv(T_world_1) @ T_world_0
    seen = (rays * distance[:, None]) @ T_1_0[:3, :3].T + T_1_0[:3, 3]
    with np.errstate(invalid="ignore"):
        pixels: NDArray[np.float64] = (seen @ matrix.T)[:, :2] / seen[:, 2:]
    return pixels
