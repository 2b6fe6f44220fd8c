"""The trajectory: metric with stereo and depth, in its own unit with a single camera, and landmarks that outlive
keyframes.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from made_world import WIDTH, WorldMatcher, camera, depth_along, frame, walk
from scipy.spatial.transform import Rotation

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.config import FrontEndConfig, RecoveryConfig
from loftr_ros.frontend.frame import DepthImage, Frame
from loftr_ros.frontend.keyframes import KeyframeReason
from loftr_ros.frontend.localization import Located
from loftr_ros.frontend.odometry import Location, origin
from loftr_ros.frontend.own_scale import OwnScale
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.recovery import TrackingState
from loftr_ros.frontend.relative_pose import why_no_length
from loftr_ros.frontend.results import FrontEndResult, KeyframeMatch, MatchedRays
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.frontend.tracks import TrackLinks, beside, landmarks_of, nearest_cells, one_each
from loftr_ros.geometry.epipolar import homogeneous
from loftr_ros.geometry.two_view import PoseStatus, ScaleReason, doubtful
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.settings import ConfigError, with_values

FRAMES = 40
Spoil = Callable[[Frame], Frame]


@functools.cache
def walked(mode: str, **settings: float) -> tuple[FrontEnd, list[FrontEndResult]]:
    """The front end after a walk of FRAMES, and its results; not to be changed."""
    return run(mode, walk(FRAMES), **settings)


def run(mode: str, poses: list[np.ndarray], **settings: float) -> tuple[FrontEnd, list[FrontEndResult]]:
    values = {"mode": mode, "depth.max_depth": 20.0, **{k.replace("__", "."): v for k, v in settings.items()}}
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), values))
    results = []
    for i in range(len(poses)):
        results.append(front_end.process(frame(poses, i, right=mode == "stereo", depth=mode == "rgbd")))
    return front_end, results


def positions(results: list[FrontEndResult]) -> np.ndarray:
    return np.array([r.location.pose[:3, 3] for r in results if r.location is not None])


def truth(poses: list[np.ndarray], results: list[FrontEndResult]) -> np.ndarray:
    first = np.linalg.inv(poses[0])
    return np.array([(first @ pose)[:3, 3] for pose, r in zip(poses, results, strict=True) if r.location is not None])


@pytest.mark.parametrize(
    ("degrees", "its_part", "is_believed"), [(10.0, 1.0, False), (1.0, 1.0, True), (10.0, 0.6, True)]
)
def test_of_two_poses_with_other_rotations_the_one_of_clearly_fewer_matches_is_doubted(
    degrees: float, its_part: float, is_believed: bool
) -> None:
    front_end, results = walked("rgbd")
    match = next(m for r in reversed(results) for m in r.matches if m.pose.status == PoseStatus.OK)
    pose = replace(match.pose, inliers=match.pose.inliers & (np.arange(len(match.pose.inliers)) % 2 == 0))
    found = Located(replace(match, pose=pose), None, pose)
    turned = Rotation.from_euler("y", degrees, degrees=True).as_matrix() @ match.pose.rotation
    inliers = match.pose.inliers & (np.arange(len(match.pose.inliers)) < its_part * len(match.pose.inliers))
    other = replace(match, pose=doubtful(replace(match.pose, rotation=turned, inliers=inliers)))
    assert front_end.localizer.unless_refuted(found, [Located(other, None, None)]).is_believed == is_believed


@pytest.mark.parametrize("mode", ["stereo", "rgbd"])
def test_with_depth_the_trajectory_is_metric_and_near_the_truth_over_several_keyframes(mode: str) -> None:
    poses = walk(FRAMES)
    _, results = walked(mode)
    found, true = positions(results), truth(poses, results)
    assert sum(event.added for r in results for event in r.events) >= 2
    assert len(found) >= FRAMES - 1
    length = np.linalg.norm(np.diff(true, axis=0), axis=1).sum()
    assert np.abs(found - true).max() < 0.015 * length
    assert all(m.pose.scale_known for r in results for m in r.matches)
    assert all(r.location.is_metric and r.location.scale_std == 0 for r in results if r.location is not None)


def test_the_location_of_a_frame_is_within_a_few_of_the_standard_deviations_that_it_states() -> None:
    poses = walk(FRAMES)
    _, results = walked("stereo")
    off = positions(results)[-1] - truth(poses, results)[-1]
    last = results[-1].location
    assert last is not None
    squared = off @ np.linalg.solve(last.covariance[:3, :3], off)
    assert squared < 25


def test_a_single_camera_keeps_one_unit_of_length_over_several_keyframes_and_claims_no_metres() -> None:
    poses = walk(FRAMES)
    _, results = walked("mono")
    found, true = positions(results), truth(poses, results)
    assert sum(event.added for r in results for event in r.events) >= 2
    assert not any(m.pose.scale_known for r in results for m in r.matches)
    steps = np.linalg.norm(np.diff(found, axis=0), axis=1) / np.linalg.norm(np.diff(true, axis=0), axis=1)
    half = len(steps) // 2
    first, second = np.median(steps[:half]), np.median(steps[half:])
    assert abs(np.log(second / first)) < 0.1
    scale = np.linalg.norm(true[-1] - true[0]) / np.linalg.norm(found[-1] - found[0])
    moved = scale * (found - found[0]) - (true - true[0])
    assert np.abs(moved).max() < 0.05 * np.linalg.norm(np.diff(true, axis=0), axis=1).sum()


def test_the_drift_of_the_unit_is_stated_and_grows_with_every_hand_over() -> None:
    _, results = walked("mono")
    drift = [r.location.scale_std for r in results if r.location is not None]
    assert drift[0] == 0
    assert drift[-1] > 0
    assert all(b >= a for a, b in itertools.pairwise(drift))


def test_a_single_camera_s_depths_scatter_as_stated_or_each_keyframe_would_lengthen_the_unit() -> None:
    poses = walk(FRAMES)
    _, results = walked("mono")
    number = {r.frame.stamp_ns: k for k, r in enumerate(results)}
    keyframes = {event.keyframe.id: event.keyframe for r in results for event in r.events if event.added}
    known = [each for each in keyframes.values() if each.id > 1 and each.first_depth is not None]
    assert len(known) >= 3
    for keyframe in known:
        for depth in (keyframe.first_depth, keyframe.depth):
            assert depth is not None
            true = 1 / depth_along(
                camera().unproject(keyframe.encoded.cell_points), poses[number[keyframe.frame.stamp_ns]]
            )
            ratio = np.log(depth.inverse[depth.known] / true[depth.known])
            std = np.sqrt(depth.variance[depth.known]) / depth.inverse[depth.known]
            assert 0.5 < 1.4826 * np.median(np.abs(ratio - np.median(ratio)) / std) < 1.5


def test_depths_that_a_wrong_pose_dragged_along_come_back_to_the_unit_that_their_keyframe_began_with() -> None:
    poses = walk(FRAMES)
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "mono"}))
    results, dragged = [], 0
    for i in range(FRAMES):
        results.append(front_end.process(frame(poses, i)))
        keyframe = front_end.buffer.reference
        assert keyframe is not None
        if not dragged and keyframe.id > 1 and keyframe.depth is not None and keyframe.first_depth is not None:
            keyframe.depth, dragged = keyframe.depth.scaled(1.25), i
    assert 0 < dragged < FRAMES - 5
    steps = np.linalg.norm(np.diff(positions(results), axis=0), axis=1)
    unit = np.log(steps / np.linalg.norm(np.diff(truth(poses, results), axis=0), axis=1))
    last = results[-1].location
    off = np.median(unit[-8:]) - np.median(unit[: dragged - 1])
    assert last is not None
    assert abs(off) < min(0.05, 2 * last.scale_std)


@pytest.mark.parametrize("bumps", [0.0, 0.5])
def test_depths_on_one_plane_choose_no_pose_since_they_may_come_from_its_wrong_one(bumps: float) -> None:
    _, results = walked("mono")
    match = next(m for r in reversed(results) for m in r.matches if m.keyframe.depth is not None)
    keyframe, config, moved = replace(match.keyframe), FrontEndConfig(), np.array([0.1, 0.02, 0.05])
    assert keyframe.encoded.cell_rays is not None
    across, down = keyframe.encoded.cell_rays.T
    inverse = (0.8 + 0.3 * across - 0.2 * down) * (1 + bumps * np.sin(20 * across) * np.sin(20 * down))
    keyframe.depth = CellDepth(inverse, (0.02 * inverse) ** 2, is_metric=False)
    seen = keyframe.encoded.cell_rays[match.correspondences.track_id]
    points = homogeneous(seen) / inverse[match.correspondences.track_id, None] - moved
    rays = MatchedRays(seen, points[:, :2] / points[:, 2:], 500.0)
    found = OwnScale(config.geometry, config.depth).by_depth(keyframe, match.correspondences, rays)
    if bumps:
        assert found is not None
        assert np.allclose(found.translation, moved, atol=1e-3)
    else:
        assert found is None


class SuddenlyBlind(WorldMatcher):
    """Matches ever fewer regions of images farther apart, and few from seven frames on."""

    def _match(self, keyframe: ImageFeatures, current: ImageFeatures) -> Matches:
        found = super()._match(keyframe, current)
        apart = abs(self._pose(keyframe)[0] - self._pose(current)[0]) / 2
        part = 1 - 0.04 * apart if apart < 7 else 0.18
        keep = found.points0[:, 0] < part * WIDTH
        return Matches(*(getattr(found, name)[keep] for name in vars(found)))


@pytest.mark.parametrize("mode", ["mono", "rgbd"])
def test_a_frame_that_moved_too_far_from_the_keyframe_is_located_by_the_frame_before_which_becomes_one(
    mode: str,
) -> None:
    poses = walk(FRAMES)
    values = {"mode": mode, "depth.max_depth": 20.0, "keyframe.min_coverage": 0.0}
    values |= dict.fromkeys(("keyframe.min_explained", "keyframe.min_explained_mono"), 0.5)
    front_end = FrontEnd(SuddenlyBlind(poses), with_values(FrontEndConfig(), values))
    results = [front_end.process(frame(poses, i, depth=mode == "rgbd")) for i in range(FRAMES)]
    late = [(r, e) for r in results for e in r.events if e.added and e.keyframe.frame is not r.frame]
    assert late
    for result, event in late:
        number = next(i for i, each in enumerate(results) if each is result)
        assert event.keyframe.frame is results[number - 1].frame
        (links,) = result.links
        assert links.new_keyframe == event.keyframe.id and len(links)
        assert result.matches[0].keyframe is event.keyframe
        assert event.keyframe.link is not None
    assert all(
        r.matches[0].pose.status != PoseStatus.DOUBTFUL and r.state == TrackingState.TRACKING for r in results[1:]
    )
    if mode == "rgbd":
        assert np.abs(positions(results) - truth(poses, results)).max() < 0.05


class OneCovered(SuddenlyBlind):
    """Matches of one image are in a corner."""

    covered = -1  # its number

    def _match(self, keyframe: ImageFeatures, current: ImageFeatures) -> Matches:
        found = super()._match(keyframe, current)
        if self._pose(current)[0] != 2 * self.covered:
            return found
        keep = (found.points0[:, 0] < 0.2 * WIDTH) & (found.points0[:, 1] < 0.2 * WIDTH)
        return Matches(*(getattr(found, name)[keep] for name in vars(found)))


def test_the_frame_before_a_covered_image_still_links_the_next_one() -> None:
    poses = walk(FRAMES)
    values = {"mode": "rgbd", "depth.max_depth": 20.0, "keyframe.min_coverage": 0.0, "keyframe.min_explained": 0.5}

    def walked_through(covered: int) -> list[FrontEndResult]:
        matcher = OneCovered(poses)
        matcher.covered = covered
        front_end = FrontEnd(matcher, with_values(FrontEndConfig(), values))
        return [front_end.process(frame(poses, i, depth=True)) for i in range(FRAMES)]

    def made_late(results: list[FrontEndResult]) -> list[int]:
        return [i for i, r in enumerate(results) if any(e.added and e.keyframe.frame is not r.frame for e in r.events)]

    number = made_late(walked_through(-1))[0]
    results = walked_through(number)
    assert not results[number].is_located
    assert results[number + 1].is_located
    assert made_late(results)[0] == number + 1
    assert results[number + 1].matches[0].keyframe.frame is results[number - 1].frame


def test_a_single_cameras_relative_pose_has_a_unit_translation_whatever_the_trajectorys_unit() -> None:
    _, results = walked("mono")
    lengths = [np.linalg.norm(m.pose.translation) for r in results for m in r.matches if m.pose.has_direction]
    assert lengths
    assert np.allclose(lengths, 1)


@pytest.mark.parametrize("mode", ["stereo", "rgbd"])
def test_a_camera_that_stands_still_goes_nowhere(mode: str) -> None:
    poses = [walk(1)[0]] * 20
    front_end, results = run(mode, poses)
    assert np.abs(positions(results)).max() < 0.005
    assert front_end.localizer.trajectory.length < 0.05


def test_a_keyframes_right_image_is_matched_once_when_it_comes_and_no_other_frames_is() -> None:
    front_end, results = walked("stereo")
    keyframes = sum(event.added for r in results for event in r.events)
    matcher = front_end.matcher
    assert isinstance(matcher, WorldMatcher)
    assert matcher.encoded == FRAMES + keyframes


@pytest.mark.parametrize(("mode", "kind"), [("stereo", "right"), ("rgbd", "depth")])
def test_a_frame_without_what_its_mode_needs_is_refused_and_the_next_good_one_goes_on(mode: str, kind: str) -> None:
    poses = walk(4)
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": mode}))
    good = {"right": mode == "stereo", "depth": mode == "rgbd"}
    front_end.process(frame(poses, 0, **good))
    with pytest.raises(FrameRefusedError) as refused:
        front_end.process(frame(poses, 1))
    assert refused.value.kind == kind
    assert front_end.process(frame(poses, 2, **good)).location is not None


def test_a_depth_image_of_another_size_is_refused_with_what_to_do() -> None:
    poses = walk(1)
    whole = frame(poses, 0, depth=True)
    assert whole.depth is not None
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "rgbd"}))
    small = type(whole.depth)(whole.depth.values[::2, ::2], 0.001)
    with pytest.raises(FrameRefusedError, match=r"160x120.*register"):
        front_end.process(type(whole)(whole.image, whole.stamp_ns, "cam", whole.camera, None, small))


def _in_metres(whole: Frame) -> Frame:
    """With the depth's numbers in millimetres, but as float, which means metres."""
    return replace(whole, depth=DepthImage(whole.depth.values.astype(np.float32), 1.0))


def _empty(whole: Frame) -> Frame:
    return replace(whole, depth=DepthImage(np.zeros_like(whole.depth.values), 0.001))


def _too_small(whole: Frame) -> Frame:
    return replace(whole, depth=DepthImage(whole.depth.values, 1e-6))


def _noise(whole: Frame) -> Frame:
    noise = np.random.default_rng(0).integers(500, 5000, whole.depth.values.shape, dtype=np.uint16)
    return replace(whole, depth=DepthImage(noise, 0.001))


def _swapped(whole: Frame) -> Frame:
    right = whole.right
    return replace(whole, right=replace(right, left_from_right=np.linalg.inv(right.left_from_right)))


def _in_millimetres(whole: Frame) -> Frame:
    pose = whole.right.left_from_right.copy()
    pose[:3, 3] *= 1000
    return replace(whole, right=replace(whole.right, left_from_right=pose))


def _of_another_pair(whole: Frame) -> Frame:
    pose = whole.right.left_from_right.copy()
    pose[:3, :3] = Rotation.from_euler("x", 3, degrees=True).as_matrix()
    return replace(whole, right=replace(whole.right, left_from_right=pose))


@pytest.mark.parametrize(
    ("mode", "spoil", "words"),
    [
        ("rgbd", _in_metres, r"median depth is \d+ m, beyond depth.max_depth .* 32FC1 in metres .*another unit"),
        ("rgbd", _too_small, r"below depth.min_depth"),
        ("rgbd", _empty, r"only 0 of \d+ cells have a value: is the depth sensor covered"),
        ("rgbd", _noise, r"is the image noisy"),
        ("stereo", _swapped, r"matches fit if left and right are swapped"),
        ("stereo", _of_another_pair, r"hardly one of \d+ matches is on its epipolar line"),
        ("stereo", _in_millimetres, r"the cameras \d+ m apart.*in millimetres"),
    ],
)
def test_depths_that_cannot_be_used_are_told_of_with_their_cause(mode: str, spoil: Spoil, words: str) -> None:
    poses = walk(3)
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": mode}))
    whole = [frame(poses, i, right=mode == "stereo", depth=mode == "rgbd") for i in range(3)]
    front_end.process(spoil(whole[0]))
    (warning,) = front_end.take_warnings()
    assert warning.kind == {"rgbd": "depth", "stereo": "right"}[mode]
    assert re.search(words, warning.text)
    assert front_end.take_warnings() == []
    front_end.force_keyframe()
    front_end.process(whole[1])
    said = [warning.text for warning in front_end.take_warnings()]
    if spoil is _in_millimetres:  # the right depths contradict those before
        assert len(said) == 1 and "times as far as the keyframe before" in said[0]
    else:
        assert said == []


def turned_about(poses: list[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` poses of a camera that suddenly looks backwards and walks on."""
    behind = poses[-1].copy()
    behind[:3, :3] = behind[:3, :3] @ np.diag([-1.0, 1.0, -1.0])
    return [behind @ np.linalg.inv(poses[0]) @ pose for pose in walk(count)]


def test_a_camera_that_stays_lost_begins_a_new_segment_and_claims_nothing_of_its_place_in_the_old() -> None:
    poses = walk(10)
    recovery = RecoveryConfig()
    elsewhere = turned_about(poses, recovery.patience + recovery.confirmations + 4)
    _, results = run("stereo", [*poses, *elsewhere])
    segments = [r.location.segment for r in results if r.location is not None]
    assert segments[0] == 0 and segments[-1] == 1
    states = [r.state for r in results[len(poses) :]]
    assert states[: recovery.patience] == [TrackingState.DOUBTFUL] * recovery.patience
    assert states[-1] == TrackingState.TRACKING
    reasons = [e.reason for r in results[len(poses) :] for e in r.events if e.added]
    assert reasons[0] == KeyframeReason.LOST


@pytest.mark.parametrize("away", [1, 4, 30])
@pytest.mark.parametrize("mode", ["mono", "stereo", "rgbd"])
def test_a_camera_that_comes_back_goes_on_in_the_segment_that_it_left(mode: str, away: int) -> None:
    poses = walk(14)
    _, results = run(mode, [*poses[:10], *turned_about(poses[:10], away), *poses[10:]])
    back = results[10 + away :]
    assert [r.location is not None for r in back][-1]
    assert {r.location.segment for r in back if r.location is not None} == {0}
    assert back[-1].state == TrackingState.TRACKING
    _, clean = run(mode, poses)
    assert back[-1].location is not None and clean[-1].location is not None
    off = np.abs(back[-1].location.pose[:3, 3] - clean[-1].location.pose[:3, 3]).max()
    assert off < 4 * np.sqrt(np.trace(back[-1].location.covariance[:3, :3])) + 1e-3


def test_keyframes_of_a_segment_that_was_lost_stay_while_they_are_less_than_half() -> None:
    poses = walk(16)
    front_end, _ = run("stereo", [*poses, *turned_about(poses, 40)])
    segments = [k.location.segment for k in front_end.buffer.keyframes if k.location is not None]
    assert 0 in segments and segments.count(0) <= front_end.config.keyframe.capacity // 2 + 1


@functools.cache
def seen_landmarks() -> dict[int, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Sightings by name, of every second image of an RGB-D walk: the keyframe, the point in the trajectory's frame, and
    how far the pixel is from where the landmark's first sighting is projected to, in standard deviations.
    """
    poses, (_, results) = walk(FRAMES), walked("rgbd")
    found: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for result, pose in list(zip(results, poses, strict=True))[2::2]:
        match, camera = result.matches[0], result.frame.camera
        place, points, seen = match.keyframe.location, match.points()[0], match.seen
        assert place is not None and camera is not None
        known = np.flatnonzero(match.pose.inliers & seen.known & np.isfinite(points[:, 0]))
        world = points[known] @ place.pose[:3, :3].T + place.pose[:3, 3]
        names = match.landmark[known].tolist()
        first = np.array([found[name][0][1] if name in found else own for name, own in zip(names, world, strict=True)])
        here = np.linalg.inv(poses[0]) @ pose
        off = (camera.project((first - here[:3, 3]) @ here[:3, :3]) - seen.points[known]) / seen.std[known, None]
        for name, point, each in zip(names, world, off, strict=True):
            found.setdefault(name, []).append((match.keyframe.id, point, each))
    return found


def test_a_landmark_keeps_its_name_over_keyframes_and_names_one_scene_point() -> None:
    found = seen_landmarks().values()
    shared = [[point for _, point, _ in each] for each in found if len({keyframe for keyframe, _, _ in each}) > 1]
    assert len(shared) > len(found) / 4
    assert np.median([np.linalg.norm(points[-1] - points[0]) for points in shared]) < 0.04


def test_the_pixel_of_a_landmark_is_where_its_first_keyframes_point_is_seen_as_exactly_as_said() -> None:
    off = [each for name, seen in seen_landmarks().items() for keyframe, _, each in seen if name >> 32 != keyframe]
    assert len(off) > 500
    assert np.percentile(np.abs(off), 68) < 1.5


def test_a_link_leads_to_the_nearest_cell_and_to_each_cell_once() -> None:
    _, results = walked("rgbd")
    for links in (each for r in results for each in r.links):
        assert (links.distance < 6).all()
        assert len(np.unique(links.new_track)) == len(links)
        assert len(np.unique(links.old_track)) == len(links)


def test_values_beside_cells_are_those_of_the_plane_and_none_where_too_few_neighbours_are_known() -> None:
    rng, grid = np.random.default_rng(0), (6, 8)
    cells = np.stack(np.meshgrid(np.arange(8), np.arange(6)), axis=-1).reshape(-1, 2) * 8.0
    values = np.column_stack([cells @ [1.1, 0.2] + 3, cells @ [-0.1, 0.9]])
    cell, offset = np.arange(48), rng.uniform(-4, 4, (48, 2))
    found, std = beside(cell, offset, cells, values, grid, 4.0)
    assert found == pytest.approx(values + offset @ np.array([[1.1, -0.1], [0.2, 0.9]]))
    assert std == pytest.approx(np.zeros(48), abs=1e-9)
    alone = np.full_like(values, np.nan)
    alone[[0, 1, 7, 20]] = values[[0, 1, 7, 20]]
    assert np.isnan(beside(np.array([0, 7]), offset[:2], cells, alone, grid, 4.0)[0]).all()


def test_a_neighbour_across_an_edge_does_not_move_a_landmark() -> None:
    cells = np.stack(np.meshgrid(np.arange(8), np.arange(6)), axis=-1).reshape(-1, 2) * 8.0
    values = cells + np.where(cells[:, :1] > 30, 20.0, 0.0)
    own = np.flatnonzero(cells[:, 0] == 24)
    found, _ = beside(own, np.full((len(own), 2), 3.0), cells, values, (6, 8), 4.0)
    assert np.abs(found - (values[own] + 3)).max() < 1.0


def test_the_nearest_cell_is_the_one_that_a_search_over_all_finds() -> None:
    rng = np.random.default_rng(0)
    cells = np.stack(np.meshgrid(np.arange(7), np.arange(5)), axis=-1).reshape(-1, 2) * [9.6, 9.4] + [3.3, 3.2]
    points = rng.random((200, 2)) * [80, 60] - 5
    cell, distance = nearest_cells(points, cells, (5, 7))
    apart = np.linalg.norm(points[:, None] - cells[None], axis=2)
    assert (cell == apart.argmin(axis=1)).all()
    assert np.allclose(distance, apart.min(axis=1), atol=1e-4)


def test_of_several_matches_in_a_cell_the_nearest_to_its_point_is_taken() -> None:
    chosen = one_each(np.array([4, 2, 4, 2, 9]), np.array([0.5, 0.2, 0.1, 0.3, 0.7], np.float32))
    assert chosen.tolist() == [1, 2, 4]


def test_a_linked_cell_takes_the_older_landmarks_name_and_the_others_their_own() -> None:
    one = np.ones(1, np.float32)
    links = TrackLinks(1, 2, np.array([3], np.uint32), np.array([5], np.uint32), np.stack([one, one], axis=1), one)
    old = landmarks_of(1, 8)
    names = landmarks_of(2, 8, links, old)
    assert names[5] == (1 << 32) + 3
    assert names[4] == (2 << 32) + 4


def test_the_covariance_of_two_steps_is_that_of_many_disturbed_ones() -> None:
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(3)

    def random_step() -> tuple[np.ndarray, np.ndarray]:
        step, root = np.eye(4), rng.normal(size=(6, 6)) * 0.01
        step[:3, :3], step[:3, 3] = Rotation.from_rotvec(rng.normal(size=3)).as_matrix(), rng.normal(size=3) * 2
        return step, root @ root.T

    steps = [random_step() for _ in range(2)]
    location: Location = origin(is_metric=True)
    for step, covariance in steps:
        location = location.moved(step, covariance)
    turn, place = np.tile(np.eye(3), (20000, 1, 1)), np.zeros((20000, 3))
    for step, covariance in steps:
        by = rng.multivariate_normal(np.zeros(6), covariance, 20000)
        place += np.einsum("nij,nj->ni", turn, step[:3, 3] + by[:, :3])
        turn = turn @ Rotation.from_rotvec(by[:, 3:]).as_matrix() @ step[:3, :3]
    turned = Rotation.from_matrix(turn @ location.pose[:3, :3].T).as_rotvec()
    scatter = np.cov(np.hstack([place - location.pose[:3, 3], turned]).T)
    spread = np.sqrt(np.diag(scatter))
    assert np.abs((location.covariance - scatter) / np.outer(spread, spread)).max() < 0.05


def test_settings_may_change_between_two_frames_and_keyframes_stay() -> None:
    poses = walk(8)
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "stereo"}))
    for i in range(4):
        front_end.process(frame(poses, i, right=True))
    before = front_end.buffer.keyframes
    front_end.reconfigure(with_values(front_end.config, {"keyframe.max_rotation": 0.1, "geometry.threshold": 2.0}))
    assert front_end.buffer.keyframes == before
    result = front_end.process(frame(poses, 5, right=True))
    assert [event.reason.name for event in result.events if event.added] == ["HIGH_ROTATION"]
    assert result.location is not None


def test_a_setting_that_needs_a_new_beginning_is_refused_and_nothing_changes() -> None:
    front_end = FrontEnd(WorldMatcher(walk(1)))
    other = with_values(front_end.config, {"mode": "rgbd", "keyframe.capacity": 3, "geometry.threshold": 2.0})
    with pytest.raises(ConfigError, match=r"mode, keyframe\.capacity cannot change"):
        front_end.reconfigure(other)
    assert front_end.config.geometry.threshold == 1.0


@pytest.mark.parametrize("mode", ["mono", "stereo", "rgbd"])
def test_a_keyframes_link_leads_from_the_one_that_it_was_located_by_to_its_own_place(mode: str) -> None:
    _, results = walked(mode)
    added = [event.keyframe for result in results for event in result.events if event.added]
    by_id = {keyframe.id: keyframe for keyframe in added}
    assert len(added) > 2 and added[0].link is None
    for keyframe in added[1:]:
        link = keyframe.link
        assert link.is_metric == (mode != "mono")
        led = by_id[link.previous].location.moved(link.pose, link.covariance)
        assert np.allclose(led.pose, keyframe.location.pose)
        assert np.allclose(led.covariance, keyframe.location.covariance)
        assert led.segment == keyframe.location.segment


def test_the_first_keyframe_of_a_segment_has_no_link() -> None:
    poses = walk(12)
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "rgbd"}))
    for number in range(2):
        front_end.process(frame(poses, number, depth=True))
    front_end.reset()
    result = front_end.process(frame(poses, 3, depth=True))
    (first,) = (event.keyframe for event in result.events if event.added)
    assert first.link is None and first.location.segment == 1


def test_a_pose_without_metres_says_why() -> None:
    assert {m.pose.scale_reason for m in matches_of("rgbd")} == {ScaleReason.KNOWN}
    assert {m.pose.scale_reason for m in matches_of("mono") if m.pose.has_rotation} == {ScaleReason.OWN_UNIT}
    far = matches_of("rgbd", depth__max_depth=0.2)
    assert {m.pose.scale_reason for m in far if m.pose.has_rotation} == {ScaleReason.NO_DEPTH}
    few = [m for m in matches_of("rgbd", depth__min_cells=5000) if m.pose.has_rotation]
    assert {m.pose.scale_reason for m in few} == {ScaleReason.FEW_DEPTHS}


def matches_of(mode: str, **settings: float) -> list[KeyframeMatch]:
    return [match for result in run(mode, walk(6), **settings)[1] for match in result.matches]


def test_why_depths_give_no_length_is_told_by_how_many_matches_have_one() -> None:
    known = CellDepth(np.array([0.5, np.nan, 0.2]), np.array([0.1, np.inf, 0.1]), True)
    cells = np.array([0, 1, 2, 0], np.uint32)
    assert why_no_length(None, cells, 1) == ScaleReason.NO_DEPTH
    assert why_no_length(CellDepth.unknown(3, True), cells, 1) == ScaleReason.NO_DEPTH
    assert why_no_length(known, cells, 4) == ScaleReason.FEW_DEPTHS
    assert why_no_length(known, cells, 3) == ScaleReason.DEPTHS_DISAGREE


@pytest.mark.parametrize("is_blurred", [False, True])
def test_depths_that_most_matches_contradict_do_not_lose_a_camera_that_two_views_locate_as_they_do(
    is_blurred: bool,
) -> None:
    poses = walk(48)
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "rgbd", "depth.max_depth": 20.0}))
    results = []
    for number in range(0, 48, 4):
        seen = frame(poses, number, depth=True)
        assert seen.depth is not None
        values = seen.depth.values.astype(np.float64)
        # As of a depth camera that sees edges elsewhere: more than half of the image is wrong.
        values[:, : int(0.6 * values.shape[1])] *= 0.6 if number % 8 == 0 else 1.6
        # Too long for a prediction that a wrong pose would contradict.
        stamp = 10**9 + (400 if is_blurred else 175) * 10**6 * number
        depth = replace(seen.depth, values=values.astype(np.uint16))
        if is_blurred and number == 8:  # of two views with such an image the direction is not believed
            seen = replace(seen, image=_blurred(seen.image))
        results.append(front_end.process(replace(seen, stamp_ns=stamp, depth=depth)))
    assert [r.state for r in results] == [TrackingState.TRACKING] * len(results)
    poses_found = [match.pose for r in results[1:] for match in r.matches]
    assert all(pose.is_believed for pose in poses_found)
    assert min(pose.inliers.mean() for pose in poses_found) < 0.5


def _blurred(image: np.ndarray) -> np.ndarray:
    """With the first pixels as before, by which `WorldMatcher` knows the image."""
    blurred = cv2.blur(image, (9, 9))
    blurred[0, :2] = image[0, :2]
    return blurred


def test_a_frame_whose_keyframe_measures_too_little_has_its_length_by_its_own_depths() -> None:
    poses = walk(12)
    values = {"mode": "rgbd", "depth.max_depth": 20.0, "depth.min_cells": 60}
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), values))
    checked = 0
    for number in range(12):
        seen = frame(poses, number, depth=True)
        result = front_end.process(_measured_in_a_corner(seen) if number == 0 else seen)
        pose = result.matches[0].pose if result.matches else None
        if pose is None or result.matches[0].keyframe.id > 1 or not pose.has_direction:
            continue
        way = (np.linalg.inv(poses[0]) @ poses[number])[:3, 3]
        if not pose.scale_known:
            assert np.linalg.norm(way) < 0.1  # of a pose that is too uncertain for a length
            continue
        off = pose.translation - way
        assert off @ np.linalg.solve(pose.covariance[:3, :3], off) < 16  # one in a thousand
        assert np.linalg.norm(pose.translation) == pytest.approx(np.linalg.norm(way), rel=0.05)
        checked += 1
    assert checked > 2


def test_a_frame_without_depths_near_a_keyframe_without_them_claims_no_length() -> None:
    poses = walk(6)
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "rgbd", "depth.min_cells": 60}))
    results = [front_end.process(_measured_in_a_corner(frame(poses, number, depth=True))) for number in range(6)]
    poses_found = [match.pose for result in results[1:] for match in result.matches]
    assert any(pose.has_direction for pose in poses_found)
    assert not any(pose.scale_known for pose in poses_found)


def keyframes_with_depths_off(factors: dict[int, float]) -> tuple[FrontEnd, list[str], list[float]]:
    """A walk with RGB-D whose keyframes' depths are too large by factors, by their number: the warnings, and of each
    frame the length of its pose over the true one.
    """
    poses = walk(FRAMES)
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "rgbd", "depth.max_depth": 20.0}))
    warnings, ratios = [], []
    for number in range(FRAMES):
        whole = frame(poses, number, depth=True)
        assert whole.depth is not None
        # Only keyframes' depths are looked at.
        values = (whole.depth.values * factors.get(len(front_end.buffer), 1.0)).astype(np.uint16)
        result = front_end.process(replace(whole, depth=replace(whole.depth, values=values)))
        warnings += [warning.text for warning in front_end.take_warnings()]
        match = result.matches[0] if result.matches else None
        if match is not None and match.pose.scale_known and match.pose.has_direction:
            since = round((match.keyframe.frame.stamp_ns - 10**9) / (whole.stamp_ns - 10**9) * number)
            way = np.linalg.norm((np.linalg.inv(poses[since]) @ poses[number])[:3, 3])
            ratios.append(float(np.linalg.norm(match.pose.translation) / way))
    return front_end, warnings, ratios


def test_depths_of_one_keyframe_that_contradict_the_one_before_are_refused_and_told_of() -> None:
    front_end, warnings, ratios = keyframes_with_depths_off({2: 1.25})
    assert len(front_end.buffer) > 3
    assert [re.findall(r"puts the scene (\d\.\d\d) times as far", text) for text in warnings] == [["1.25"]]
    np.testing.assert_allclose(ratios, 1.0, atol=0.03)


def test_a_trajectory_does_not_begin_with_depths_of_a_pair_of_which_one_image_is_blurred() -> None:
    poses = walk(8)
    front_end = FrontEnd(
        WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "stereo", "depth.max_depth": 20.0})
    )
    first = frame(poses, 0, right=True)
    assert first.right is not None
    front_end.process(replace(first, right=replace(first.right, source=_blurred(first.right.image))))
    (warning,) = front_end.take_warnings()
    assert warning.kind == "right" and "times as sharp" in warning.text
    assert front_end.buffer.reference is not None and front_end.buffer.reference.depth is not None
    assert not front_end.buffer.reference.depth.known.any()
    results = [front_end.process(frame(poses, number, right=True)) for number in range(1, 8)]
    assert results[-1].location is not None and results[-1].matches[0].pose.scale_known  # by its own depths


def test_depths_that_agree_are_not_refused_although_the_calibration_is_a_little_off() -> None:
    _, warnings, ratios = keyframes_with_depths_off(dict.fromkeys(range(3, 10), 1.02))
    assert not warnings
    np.testing.assert_allclose(ratios, 1.0, atol=0.03)


def test_what_two_keyframes_say_in_a_row_is_believed_or_a_first_one_in_error_would_stay_for_ever() -> None:
    _, warnings, ratios = keyframes_with_depths_off({0: 0.8})
    assert len(warnings) == 2
    np.testing.assert_allclose(ratios[-5:], 1.0, atol=0.03)


def _measured_in_a_corner(whole: Frame) -> Frame:
    """The frame with depths of a small part alone."""
    assert whole.depth is not None
    values = np.zeros_like(whole.depth.values)
    values[:40, :60] = whole.depth.values[:40, :60]
    return replace(whole, depth=replace(whole.depth, values=values))
