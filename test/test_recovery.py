"""Unusable frames on the rendered room with the embedded network: they end nothing."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from loftr_ros.frontend.config import FrontEndConfig, RecoveryConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import Keyframe
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.odometry import origin
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.quality import FrameQuality, judge
from loftr_ros.frontend.recovery import Recovery, TrackingState
from loftr_ros.geometry.two_view import PoseStatus
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.matcher.interface import Matcher
from loftr_ros.recordings import open_source
from loftr_ros.settings import with_values

BEFORE, FRAMES = 4, 7


@functools.cache
def bad_frames() -> ModuleType:
    """benchmarks/bad_frames.py: the kinds, and the criteria of a run."""
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("bad_frames")
    finally:
        sys.path.remove(folder)


KINDS = list(bad_frames().KINDS)


@functools.cache
def matcher() -> Matcher:
    return open_matcher(matcher_spec(MatcherConfig(threads=1), MatchingConfig()))


@functools.cache
def frames(source: str, mode: str) -> tuple[Frame, ...]:
    with open_source(source, step=2, stop=2 * FRAMES) as opened:
        return tuple(frame.to_frame(mode) for frame in opened)


@functools.cache
def clean(source: str, mode: str) -> object:
    return bad_frames().run(matcher(), config(mode), frames(source, mode), BEFORE, "black", 0)


def config(mode: str) -> FrontEndConfig:
    return with_values(FrontEndConfig(), {"mode": mode})


def said_of(source: str, mode: str, kind: str, count: int) -> str:
    outcome = bad_frames().run(matcher(), config(mode), frames(source, mode), BEFORE, kind, count)
    return str(bad_frames().verdict(outcome, clean(source, mode), BEFORE))


ROOM = f"rendered:room?frames={2 * FRAMES}"


@pytest.mark.parametrize("kind", KINDS[:10])
def test_after_bad_frames_the_trajectory_goes_on_in_its_segment_where_it_would_be_without_them(kind: str) -> None:
    mode = ("mono", "rgbd")[KINDS.index(kind) % 2]
    assert said_of(ROOM, mode, kind, 6) == ""


def test_torn_images_of_which_a_strip_matches_bring_no_keyframe() -> None:
    outcome = bad_frames().run(matcher(), config("mono"), frames(ROOM, "mono"), BEFORE, "torn", 9)
    assert not any(result.events for result in outcome.bad)
    assert bad_frames().verdict(outcome, clean(ROOM, "mono"), BEFORE) == ""


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 6, 30])
@pytest.mark.parametrize("mode", ["mono", "stereo", "rgbd"])
@pytest.mark.parametrize("kind", KINDS)
def test_however_many_bad_frames_come_in_whatever_mode_the_trajectory_goes_on(kind: str, mode: str, count: int) -> None:
    assert said_of(ROOM, mode, kind, count) == ""


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 6, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_on_real_images_too(kind: str, count: int, shared_data: Path) -> None:
    assert said_of(str(shared_data / "sevenscenes"), "rgbd", kind, count) == ""


def test_thirty_black_frames_push_no_keyframe_out_and_are_counted_as_useless() -> None:
    front_end = FrontEnd(matcher(), config("mono"))
    stream = frames(ROOM, "mono")
    for frame in stream[:3]:
        front_end.process(frame)
    held = front_end.buffer.keyframes
    spoiled, random = bad_frames().spoiled, np.random.default_rng(0)
    for k in range(30):
        black = spoiled(stream[2], "black", random)
        late = Frame(black.image, stream[2].stamp_ns + (k + 1) * 10**7, black.frame_id, black.camera)
        result = front_end.process(late)
        assert result.is_useless and result.quality == FrameQuality.NO_CONTRAST
        assert result.is_unmatched and not result.events and result.location is None
    assert front_end.buffer.keyframes == held
    assert result.state == TrackingState.LOST


def test_a_stream_that_begins_in_the_dark_begins_with_its_first_image_that_shows_something() -> None:
    front_end = FrontEnd(matcher(), config("mono"))
    stream, random = frames(ROOM, "mono"), np.random.default_rng(0)
    first = front_end.process(bad_frames().spoiled(stream[0], "black", random))
    assert not first.events and not first.matches and front_end.buffer.reference is None
    assert [event.added for event in front_end.process(stream[1]).events] == [True]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("black", FrameQuality.NO_CONTRAST),
        ("white", FrameQuality.SATURATED),
        ("gray", FrameQuality.NO_CONTRAST),
        ("very dark", FrameQuality.NO_CONTRAST),
        ("noise", FrameQuality.USABLE),
        ("mirrored", FrameQuality.USABLE),
    ],
)
def test_an_image_is_useless_only_where_nothing_can_be_seen(kind: str, expected: FrameQuality) -> None:
    image = frames(ROOM, "mono")[0].image
    assert judge(bad_frames().KINDS[kind](image, np.random.default_rng(0))) == expected


def test_an_image_that_is_blurred_beyond_measure_is_told_and_a_blurred_one_that_shows_something_is_not() -> None:
    import cv2

    image = frames(ROOM, "mono")[0].image
    assert judge(cv2.GaussianBlur(image, (0, 0), 35)) == FrameQuality.BLURRED
    assert judge(cv2.GaussianBlur(image, (0, 0), 8)) == FrameQuality.USABLE


def test_what_a_mask_hides_says_nothing_of_an_images_quality() -> None:
    image = frames(ROOM, "mono")[0].image.copy()
    image[:400] = 0
    usable = np.ones(image.shape, np.bool_)
    usable[400:] = False
    assert judge(image) == FrameQuality.USABLE
    assert judge(image, usable) == FrameQuality.NO_CONTRAST
    assert judge(image, ~usable) == FrameQuality.USABLE


# --- the state alone ---


def test_states_go_from_doubtful_to_lost_and_one_good_frame_brings_tracking_back() -> None:
    recovery = Recovery(RecoveryConfig(patience=2, confirmations=3))
    assert recovery.state == TrackingState.TRACKING
    states = []
    for _ in range(4):
        recovery.missed()
        states.append(recovery.state)
    assert states == [TrackingState.DOUBTFUL] * 2 + [TrackingState.LOST] * 2
    recovery.followed(True)
    assert recovery.state == TrackingState.RELOCALISING
    recovery.located()
    assert recovery.state == TrackingState.TRACKING


def test_a_new_place_counts_once_it_was_followed_in_a_row() -> None:
    recovery = Recovery(RecoveryConfig(confirmations=3, patience=2))
    for _ in range(3):
        recovery.missed()
    assert [recovery.followed(f) for f in (True, True, False, True, True, True)] == [False] * 5 + [True]


def test_a_lost_camera_is_found_by_a_match_that_is_sure_or_twice_by_the_same_keyframe() -> None:
    recovery = Recovery(RecoveryConfig(patience=0))
    recovery.missed()
    assert recovery.found(7, is_sure=True)
    assert not recovery.found(7, is_sure=False)
    assert not recovery.found(8, is_sure=False)
    assert recovery.found(8, is_sure=False)
    recovery.not_found()
    assert not recovery.found(8, is_sure=False)


@pytest.mark.parametrize("mode", ["mono", "stereo"])
def test_a_vehicle_is_located_after_each_gap_of_three_images(shared_data: Path, mode: str) -> None:
    front_end = FrontEnd(matcher(), config(mode))
    true, measured = {}, 0
    with open_source(shared_data / "kitti06_stereo") as source:
        for each in source:
            if each.index > 4 and each.index % 4:
                continue
            assert each.pose is not None
            frame = each.to_frame(mode)
            true[frame.stamp_ns] = each.pose
            result = front_end.process(frame)
            if each.index == 0:
                continue
            match = result.matches[0]
            assert match.pose.status == PoseStatus.OK and result.is_located, each.index
            moved = np.linalg.inv(true[match.keyframe.frame.stamp_ns]) @ each.pose
            length, way = np.linalg.norm(match.pose.translation), np.linalg.norm(moved[:3, 3])
            assert match.pose.translation @ moved[:3, 3] > np.cos(np.radians(2)) * length * way
            if match.pose.scale_known:
                off = match.pose.translation - moved[:3, 3]
                assert np.linalg.norm(off) < max(3 * np.sqrt(np.trace(match.pose.covariance[:3, :3])), 0.05 * way)
                measured += 1
            if each.index == 28:
                break
    assert measured >= (0 if mode == "mono" else 7)
    assert front_end.localizer.segment == 0


def test_a_frame_that_comes_late_tries_the_likely_keyframes_and_the_others_in_turns() -> None:
    encoded = FrontEnd(matcher(), config("mono")).encode(frames(ROOM, "mono")[0])
    keyframes = [Keyframe(number + 1, encoded, location=origin(is_metric=True)) for number in range(6)]
    recovery = Recovery(RecoveryConfig(patience=9, max_tried=1))
    recovery.missed()
    tried = []
    for _ in range(12):
        (one,) = recovery.others(keyframes, None, encoded, is_late=True)
        assert len(recovery.others(keyframes, None, encoded)) == 2
        recovery.tried(one)
        recovery.missed()
        tried.append(one.id)
    assert set(tried) == {1, 2, 3, 4, 5, 6}


def test_keyframes_are_tried_in_turns_those_near_the_last_place_first() -> None:
    encoded = FrontEnd(matcher(), config("mono")).encode(frames(ROOM, "mono")[0])
    keyframes = []
    for number in range(6):
        place = origin(is_metric=True)
        place.pose[0, 3] = number
        keyframes.append(Keyframe(number + 1, encoded, location=place))
    last = origin(is_metric=True)
    last.pose[0, 3] = 4.2
    recovery = Recovery(RecoveryConfig(patience=9, max_tried=2))
    tried = []
    for _ in range(4):
        others = recovery.others(keyframes, last)
        tried.append([k.id for k in others])
        for each in others:
            recovery.tried(each)
    assert tried[0] == [5, 6]
    assert sorted(tried[0] + tried[1] + tried[2]) == [1, 2, 3, 4, 5, 6]
    assert tried[3] == tried[0]
