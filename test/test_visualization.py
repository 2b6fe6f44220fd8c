"""Pictures: correct contents and positions, and fast enough for live publishing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from loftr_ros.evaluation.drawing import draw_matches, draw_tracks, plot_trajectory

GRAY = np.full((120, 160), 90, np.uint8)


def changed(picture: NDArray[np.uint8], background: int = 90) -> NDArray[np.bool_]:
    """Where something coloured was drawn."""
    spread = picture.max(axis=2).astype(int) - picture.min(axis=2)
    return np.asarray(spread > 25)


def grid_points(width: int, height: int, step: int) -> NDArray[np.float64]:
    u, v = np.meshgrid(np.arange(step, width - step, step), np.arange(step, height - step, step))
    return np.stack([u.ravel(), v.ravel()], axis=1).astype(float)


def is_red(color: NDArray[np.uint8]) -> bool:
    blue, green, red = color.astype(int)
    return bool(red - max(blue, green) > 40)


def test_two_images_stand_side_by_side_unchanged_where_nothing_is_drawn() -> None:
    left = np.random.default_rng(0).integers(0, 256, (120, 160), dtype=np.uint8)
    right = np.random.default_rng(1).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    picture = draw_matches(left, right, [], [])
    assert picture.dtype == np.uint8
    assert picture.shape == (120, 304, 3)
    assert np.array_equal(picture[:, :160], cv2.cvtColor(left, cv2.COLOR_GRAY2BGR))
    assert np.array_equal(picture[:100, 164:304], right)


def test_wide_images_are_stacked() -> None:
    wide = np.full((60, 200), 90, np.uint8)
    picture = draw_matches(wide, wide, [[20, 30]], [[150, 40]])
    assert picture.shape == (124, 200, 3)
    drawn = changed(picture)
    assert drawn[30, 20]
    assert drawn[64 + 40, 150]
    assert drawn[(30 + 104) // 2, 85]  # half-way


def test_a_match_is_a_line_between_its_points() -> None:
    picture = draw_matches(GRAY, GRAY, [[40, 30]], [[100, 80]])
    drawn = changed(picture)
    start, end = np.array([40, 30]), np.array([164 + 100, 80])
    for share in np.linspace(0, 1, 9):
        u, v = np.round(start + share * (end - start)).astype(int)
        assert drawn[v, u]
    v, u = np.nonzero(drawn)
    direction = (end - start) / np.linalg.norm(end - start)
    distance = np.abs((u - start[0]) * direction[1] - (v - start[1]) * direction[0])
    assert distance.max() < 4


def test_outliers_are_red_and_inliers_never() -> None:
    points = grid_points(160, 120, 10)
    for values in (np.linspace(0, 1, len(points)), None):
        good = draw_matches(GRAY, GRAY, points, points, values, np.ones(len(points)))
        bad = draw_matches(GRAY, GRAY, points, points, values, np.zeros(len(points), np.uint8))
        dots = np.round(points).astype(int)
        assert not any(is_red(good[v, u]) for u, v in dots)
        drawn = bad[changed(bad)]
        assert any(is_red(color) for color in drawn)
        assert (drawn.argmax(axis=1) == 2).all()


def test_confidence_goes_from_blue_to_yellow() -> None:
    points = grid_points(160, 120, 20)
    picture = draw_matches(GRAY, GRAY, points, points, np.linspace(0, 1, len(points)))
    (u0, v0), (u1, v1) = points[[0, -1]].astype(int)
    lowest, highest = picture[v0, u0].astype(int), picture[v1, u1].astype(int)
    assert lowest[0] > lowest[2] + 60
    assert highest[2] > highest[0] + 60
    assert highest[1] > highest[0] + 60


def test_no_more_lines_than_asked_for_are_drawn_and_they_are_spread_over_the_image() -> None:
    rng = np.random.default_rng(0)
    crowd = rng.normal([30, 30], 3, (2000, 2))  # nearly all matches are in one corner
    elsewhere = grid_points(160, 120, 30) + 5
    points = np.vstack([crowd, elsewhere])
    shift = np.array([1e4, 1e4])  # lines leave the picture at once: what stays are the dots
    picture = draw_matches(GRAY, GRAY, points, points + shift, max_lines=40, max_side=100000)
    drawn = changed(picture)
    assert all(drawn[int(v), int(u)] for u, v in elsewhere)
    alone = draw_matches(GRAY, GRAY, points[:40], points[:40] + shift)
    assert not np.array_equal(alone, picture)


@pytest.mark.parametrize("limit", [0, 1, 7, 100])
def test_the_limit_counts_lines(limit: int) -> None:
    points = grid_points(640, 480, 40)
    image = np.full((480, 640), 90, np.uint8)
    away = points - np.array([1e5, 0])  # lines leave the picture to the left
    drawn = changed(draw_matches(image, image, points, away, max_lines=limit))
    dots = sum(int(drawn[int(v) - 2, int(u)]) for u, v in points)
    assert dots == min(limit, len(points))


def test_of_each_part_of_the_image_the_most_confident_matches_are_drawn() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([20, 20], [22, 22], (50, 2))
    points[17] = (60, 60)
    points[18] = (62, 60)
    confidence = rng.uniform(0, 0.5, 50)
    confidence[17], confidence[18] = 0.9, 0.1
    picture = draw_matches(GRAY, GRAY, points, points, confidence, max_lines=2)
    assert changed(picture)[60, 58]
    assert not changed(picture)[60 - 2, 65]


def test_text_stands_in_a_strip_of_its_own_above_the_images() -> None:
    points, moved = [[40, 60], [90, 70]], [[60, 70], [120, 60]]
    plain, titled = (draw_matches(GRAY, GRAY, points, moved, text=text) for text in ("", "keyframe 7: 5°"))
    strip = titled.shape[0] - plain.shape[0]
    assert 15 < strip < 40
    assert np.array_equal(titled[strip:], plain)
    assert (titled[:strip] > 200).any()
    assert np.array_equal(draw_tracks(GRAY, points, moved, text="text")[strip:], draw_tracks(GRAY, points, moved))
    longer = draw_matches(GRAY, GRAY, [], [], text="a text that is much longer than the picture is wide " * 3)
    assert longer.shape == titled.shape
    assert not (longer[:strip, -6:] > 100).any()  # made to fit, not cut off


def test_large_images_are_shrunk_with_their_points() -> None:
    image = np.full((1200, 1600), 90, np.uint8)
    picture = draw_matches(image, image, [[400, 600]], [[800, 200]], max_side=800)
    assert max(picture.shape) <= 804
    drawn = changed(picture)
    assert drawn[150, 100]
    assert drawn[50, 404 + 200]


def test_points_outside_of_the_image_or_not_finite_do_no_harm() -> None:
    points = np.array([[50, 50], [np.nan, 3], [-1e9, 1e12], [30, np.inf]])
    for picture in (draw_matches(GRAY, GRAY, points, points), draw_tracks(GRAY, points, points)):
        assert changed(picture)[50, 50]


def test_the_images_given_are_not_drawn_on() -> None:
    color = cv2.cvtColor(GRAY, cv2.COLOR_GRAY2BGR)
    before = color.copy()
    draw_matches(color, color, [[40, 30]], [[100, 80]])
    draw_tracks(color, [[40, 30]], [[100, 80]])
    assert np.array_equal(color, before)


def test_a_track_is_an_arrow_from_the_keyframe_s_point_to_the_current_one() -> None:
    drawn = changed(draw_tracks(GRAY, [[30, 60]], [[110, 60]]))
    assert drawn[60, 30:111].all()
    v, u = np.nonzero(drawn)
    assert (u.min(), u.max()) == (pytest.approx(30, abs=1), pytest.approx(110, abs=1))
    width = [np.ptp(v[u == column]) for column in range(40, 110)]
    assert max(width[:55]) <= 2
    assert max(width[60:]) >= 4  # the tip is at the current point


def test_a_track_that_does_not_move_is_a_dot_and_an_outlier_is_red() -> None:
    picture = draw_tracks(GRAY, [[30, 60], [90, 20]], [[30, 60], [120, 100]], inlier=[1, 0])
    assert changed(picture)[58:63, 28:33].sum() >= 12
    assert is_red(picture[60, 105])


def test_tracks_without_points_are_the_image() -> None:
    assert np.array_equal(draw_tracks(GRAY, [], []), cv2.cvtColor(GRAY, cv2.COLOR_GRAY2BGR))


@pytest.mark.parametrize("draw", ["matches", "tracks"])
def test_two_thousand_matches_are_drawn_in_milliseconds(draw: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (480, 640), dtype=np.uint8)
    points = grid_points(640, 480, 12)
    moved, confidence, inlier = (
        points + rng.normal(0, 8, points.shape),
        rng.random(len(points)),
        rng.random(len(points)) < 0.9,
    )
    assert len(points) > 1900

    def once() -> float:
        start = time.process_time()
        if draw == "matches":
            draw_matches(image, image, points, moved, confidence, inlier, "text")
        else:
            draw_tracks(image, points, moved, inlier, "text")
        return time.process_time() - start

    # 3 to 5 ms of CPU time, the best of many: other load slows a core down.
    assert min(once() for _ in range(40)) < 0.020


# --- trajectories


def curve(count: int = 40) -> NDArray[np.float64]:
    """Poses along a bend, T_world_camera, in a world frame that is not the first camera's."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for i, angle in enumerate(np.linspace(0.3, 1.8, count)):
        poses[i, :3, :3] = cv2.Rodrigues(np.array([0.1, angle, -0.05]))[0]
        poses[i, :3, 3] = (4 - 5 * np.cos(angle), 0.1 * angle, 5 * np.sin(angle) - 2)
    return poses


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_trajectory_with_truth_is_written_as_the_file_s_ending_says(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"trajectory.{ending}"
    plot_trajectory(path, curve(), curve(), [0, 10, 20], "title")
    start = path.read_bytes()[:8]
    assert {"png": start[1:4] == b"PNG", "svg": start[:5] == b"<?xml", "pdf": start[:4] == b"%PDF"}[ending]


@pytest.mark.parametrize("known", [True, False])
def test_short_and_still_trajectories_are_plotted_too(tmp_path: Path, known: bool) -> None:
    for poses in (curve(1), curve(2), np.tile(np.eye(4), (9, 1, 1))):
        plot_trajectory(tmp_path / "t.png", poses, poses if known else None)
        assert cv2.imread(str(tmp_path / "t.png")).std() > 5


def test_an_estimate_of_another_scale_and_frame_is_laid_onto_the_truth() -> None:
    from loftr_ros.evaluation.trajectory_plot import _align

    truth = curve()[:, :3, 3]
    turn = cv2.Rodrigues(np.array([0.4, -1.0, 2.0]))[0]
    assert np.allclose(_align(0.3 * truth @ turn.T + (5, 6, 7), truth), truth)
    solid = np.random.default_rng(0).normal(size=(20, 3))
    mirrored = solid * (-1, 1, 1)  # no rotation makes this the truth
    assert np.abs(_align(mirrored, solid) - solid).max() > 0.5


def test_errors_are_relative_to_the_keyframe_before_each_frame() -> None:
    from loftr_ros.evaluation.trajectory_plot import _relative_errors

    truth = curve(6)
    for i in range(6):
        truth[i, :3, :3] = cv2.Rodrigues(np.array([0, 0.1 * i, 0]))[0]
    estimate = truth.copy()
    estimate[:, :3, 3] *= 0.2  # no scale
    turn = np.eye(4)
    turn[:3, :3] = cv2.Rodrigues(np.radians([0, 2.0, 0]))[0]
    estimate[3:] = estimate[3:] @ turn  # a wrong step from 2 to 3, and none after it
    rotation, direction = _relative_errors(estimate, truth, np.array([0, 4]))
    assert rotation == pytest.approx([np.nan, 0, 0, 2, 2, 0], abs=1e-6, nan_ok=True)
    # From the first keyframe the directions are right; from frame 4 they are seen by a camera turned by 2 degrees.
    assert direction[1:5] == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert 1.9 < direction[5] <= 2.0 + 1e-9


def test_poses_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same frames"):
        plot_trajectory(tmp_path / "t.png", curve(5), curve(6))
    with pytest.raises(ValueError, match="shape"):
        plot_trajectory(tmp_path / "t.png", np.zeros((5, 3)))
    with pytest.raises(ValueError, match="keyframe indices"):
        plot_trajectory(tmp_path / "t.png", curve(5), None, [7])


def test_importing_the_module_does_not_import_matplotlib() -> None:
    code = "import sys, loftr_ros.evaluation.drawing; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
