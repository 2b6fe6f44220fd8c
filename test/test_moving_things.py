"""Moving things told by geometry: flagged, without landmarks, and not confused with look-alikes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fakes import texture
from made_world import WorldMatcher
from moving_box import MovingBox, MovingRendering
from numpy.typing import NDArray

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import DepthImage, Frame
from loftr_ros.frontend.moving import left_its_place, scene_offset
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.settings import with_values
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

Array = NDArray[np.float64]

FRAMES, RATE = 16, 10.0
CAMERA = default_camera(320, 240)


@dataclass(frozen=True)
class Walk:
    """Rendered views with a box that crosses them, and without."""

    poses: Array
    box: MovingBox
    views: list[MovingRendering]
    empty: list[MovingRendering]


@functools.cache
def walked() -> Walk:
    scene, poses = Scene(3), trajectory(FRAMES, RATE, 3)
    box = MovingBox(scene, FRAMES, RATE)
    views = [box.render(CAMERA, pose, number) for number, pose in enumerate(poses)]
    plain = [scene.render(CAMERA, pose) for pose in poses]
    empty = [MovingRendering(v.image, v.depth, np.zeros(v.depth.shape, np.bool_)) for v in plain]
    return Walk(poses, box, views, empty)


class TrueMatcher(WorldMatcher):
    """Matches rendered views by their depths, with noise and random wrong matches.

    Attributes:
        shifted: px by which the cells in the middle are matched beside their place, as a look-alike would be.
    """

    def __init__(self, walk: Walk, views: list[MovingRendering], shifted: float = 0.0) -> None:
        super().__init__(list(walk.poses), noise=0.3, outliers=0.1)
        self.walk, self.views, self.shifted = walk, views, shifted

    def _match(self, keyframe: ImageFeatures, current: ImageFeatures) -> Matches:
        (first, pose0), (second, pose1) = self._pose(keyframe), self._pose(current)
        first, second = first // 2, second // 2
        random = np.random.default_rng([first, second])
        rows, columns = keyframe.grid
        cell = np.arange(rows * columns)
        points0 = np.stack([cell % columns, cell // columns], axis=1) * float(self.cell_size) + self.cell_offset
        at = tuple(np.rint(points0).astype(int).T[::-1])
        view = self.views[first]
        points = np.insert(CAMERA.unproject(points0), 2, 1.0, axis=1) * view.depth[at][:, None]
        world = points @ pose0[:3, :3].T + pose0[:3, 3]
        moved = self.walk.box.pose(second) @ np.linalg.inv(self.walk.box.pose(first))
        world = np.where(view.moving[at][:, None], world @ moved[:3, :3].T + moved[:3, 3], world)
        there = (world - pose1[:3, 3]) @ pose1[:3, :3]
        ahead = there[:, 2] > 0.05
        points1 = CAMERA.project(np.where(ahead[:, None], there, [0, 0, 1.0]))
        inside = ahead & (points1 > 0).all(axis=1) & (points1[:, 0] < 319) & (points1[:, 1] < 239)
        here = tuple(np.rint(np.where(inside[:, None], points1, 0)).astype(int).T[::-1])
        inside &= np.abs(self.views[second].depth[here] / np.where(ahead, there[:, 2], 1.0) - 1) < 0.05
        points1 = points1 + random.normal(0, self.noise, points1.shape)
        middle = (np.abs(points0 - [160, 120]) < [50, 40]).all(axis=1)
        points1[middle] += [self.shifted, 0.3 * self.shifted]
        wrong = random.random(len(cell)) < self.outliers
        points1[wrong] = random.random((int(wrong.sum()), 2)) * [319, 239]
        inside &= (points1 > 0).all(axis=1) & (points1[:, 0] < 319) & (points1[:, 1] < 239)
        count = int(inside.sum())
        return Matches(
            torch.from_numpy(cell[inside]),
            torch.from_numpy(points0[inside]).float(),
            torch.from_numpy(points1[inside]).float(),
            torch.full((count,), 0.9),
            torch.full((count,), self.noise),
        )


@functools.cache
def run(mode: str, moving: bool = True, shifted: float = 0.0, enabled: bool = True) -> list[FrontEndResult]:
    walk = walked()
    views = walk.views if moving else walk.empty
    config = with_values(FrontEndConfig(), {"mode": mode, "moving.enabled": enabled})
    front_end, results = FrontEnd(TrueMatcher(walk, views, shifted), config), []
    for number, view in enumerate(views):
        image = view.image.copy()
        image[0, :2] = number, 0
        depth = DepthImage(view.depth, 1.0) if mode == "rgbd" else None
        stamp = 10**9 + round(number * 1e9 / RATE)
        results.append(front_end.process(Frame(image, stamp, "camera", CAMERA, depth=depth)))
    return results


def number_of(frame: Frame) -> int:
    return round((frame.stamp_ns - 10**9) * RATE / 1e9)


@pytest.mark.parametrize("mode", ["mono", "rgbd"])
def test_what_moves_is_flagged_and_what_stands_still_is_not(mode: str) -> None:
    flagged = truly = right = wrongly = keyframes = 0
    for result in run(mode):
        keyframes += sum(event.added for event in result.events)
        for match in result.matches:
            assert match.moving is not None
            found = match.correspondences
            at0 = tuple(np.rint(found.keyframe_points).astype(int).T[::-1])
            at1 = tuple(np.rint(found.current_points).astype(int).T[::-1])
            views = walked().views
            on = views[number_of(match.keyframe.frame)].moving[at0] & views[number_of(result.frame)].moving[at1]
            gone = on & ~match.pose.inliers
            truly, right = truly + int(gone.sum()), right + int((gone & match.moving).sum())
            flagged, wrongly = flagged + int(match.moving.sum()), wrongly + int((match.moving & ~on).sum())
            assert not (match.pose.inliers & match.moving).any()
    assert truly > 500 and right > 0.7 * truly
    assert keyframes > 2 and wrongly < 0.12 * flagged


def landmarks_on_the_box(enabled: bool) -> int:
    """Inliers whose cells are on the box in keyframes that were made while it was in view."""
    count = 0
    for result in run("mono", enabled=enabled):
        for match in result.matches:
            view = walked().views[number_of(match.keyframe.frame)]
            at = tuple(np.rint(match.correspondences.keyframe_points).astype(int).T[::-1])
            count += int((view.moving[at] & match.pose.inliers).sum())
    return count


@pytest.mark.long
def test_a_keyframe_keeps_no_landmark_on_what_moves() -> None:
    assert landmarks_on_the_box(True) < 0.5 * landmarks_on_the_box(False)


@pytest.mark.parametrize("mode", ["mono", pytest.param("rgbd", marks=pytest.mark.long)])
def test_a_still_scene_with_wrong_matches_and_look_alikes_has_no_flag(mode: str) -> None:
    for shifted in (0.0, 40.0):
        results = run(mode, moving=False, shifted=shifted)
        outliers = [int((~match.pose.inliers).sum()) for result in results for match in result.matches]
        assert np.median(outliers) > (20 if not shifted else 60)
        assert not any(match.moving.any() for result in results for match in result.matches if match.moving is not None)


def test_it_can_be_switched_off() -> None:
    results = run("rgbd", enabled=False)
    assert all(match.moving is None for result in results for match in result.matches)


def test_the_offset_is_zero_for_every_depth_of_a_point_that_stands_still_and_the_distance_for_others() -> None:
    pose = np.eye(4)
    pose[:3, 3] = [0.5, 0.1, 0.2]
    rays0 = np.array([[0.1, -0.2], [0.1, -0.2], [0.3, 0.1]])
    depth = np.array([2.0, 50.0, 4.0])
    seen = np.insert(rays0, 2, 1.0, axis=1) * depth[:, None] - pose[:3, 3]
    rays1 = seen[:, :2] / seen[:, 2:]
    low, high = np.zeros(3), np.full(3, 1.0)
    assert np.abs(scene_offset(rays0, rays1, pose, low, high)).max() < 1e-9
    along = rays1 - scene_offset(rays0, rays1, pose, low, low) - rays1
    aside = np.column_stack([-along[:, 1], along[:, 0]]) / np.linalg.norm(along, axis=1)[:, None]
    off = scene_offset(rays0, rays1 + 0.01 * aside, pose, low, high)
    assert np.linalg.norm(off, axis=1) == pytest.approx(np.full(3, 0.01), rel=1e-6)
    measured = scene_offset(rays0, rays1 + np.array([0.05, 0.0]), pose, 1 / depth, 1 / depth)
    assert measured == pytest.approx(np.tile([0.05, 0.0], (3, 1)), abs=1e-9)


@pytest.mark.parametrize(("places", "left"), [((0,), True), ((0, 20), False), ((20,), False), ((), False)])
def test_a_group_has_left_its_place_only_if_it_is_seen_elsewhere_and_not_there_any_more(
    places: tuple[int, ...], left: bool
) -> None:
    before, now = texture(120, 160, seed=1), texture(120, 160, seed=2)
    for offset in places:  # 20 px to the left the points would be if they stood still
        now[40:90, 60 - offset : 100 - offset] = before[40:90, 60:100]
    points = np.array([[u, v] for u in (70.0, 80.0, 90.0) for v in (50.0, 65.0, 80.0)], np.float32)
    line = points[:, None] - np.stack([np.linspace(14, 26, 24), np.zeros(24)], axis=1)
    assert left_its_place(before, now, points, points, line, 1.0) is left


def test_messages_carry_the_flag_and_the_camera_s_number() -> None:
    pytest.importorskip("rclpy")
    from loftr_ros.ros.output.messages import correspondences_message, relative_pose_message, tracks_message

    result = next(r for r in run("rgbd") if r.matches and r.matches[0].moving is not None and r.matches[0].moving.any())
    match, frame = result.matches[0], replace(result.frame, camera_number=2)
    message = correspondences_message(match, frame)
    assert np.asarray(message.moving).sum() == match.moving.sum()
    assert not (np.asarray(message.inlier) & np.asarray(message.moving)).any()
    assert not np.isin(tracks_message(match, frame).track_id, match.correspondences.track_id[match.moving]).any()
    for each in (message, relative_pose_message(match, frame), tracks_message(match, frame)):
        assert (each.camera, each.keyframe_camera) == (2, 0)
