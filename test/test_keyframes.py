"""The buffer of keyframes: adding, matching and evicting."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fakes import PanningStream, ShiftMatcher
from scipy.spatial.transform import Rotation

from loftr_ros.frontend.config import KeyframeConfig
from loftr_ros.frontend.keyframes import (
    EncodedFrame,
    Keyframe,
    KeyframeBuffer,
    KeyframeReason,
    coverage,
    raw_pixels,
    reason_for_keyframe,
)
from loftr_ros.geometry.two_view import PoseStatus, RelativePose, without_pose
from loftr_ros.matcher.interface import ImageFeatures

STREAM = PanningStream()


def encoded(stamp: float = 1.0) -> EncodedFrame:
    frame = STREAM.at(0, stamp=stamp)
    return EncodedFrame(frame, ShiftMatcher().encode(torch.from_numpy(frame.image)), (1.0, 1.0), 16, 7.5)


def buffer(capacity: int = 4, max_matched: int = 2) -> KeyframeBuffer:
    return KeyframeBuffer(KeyframeConfig(capacity=capacity, max_matched=max_matched))


def pose(status: PoseStatus = PoseStatus.OK, angle: float = 0.0, parallax: float = 0.0) -> RelativePose:
    turn = Rotation.from_euler("y", angle, degrees=True).as_matrix()
    inliers = np.ones(50, dtype=np.bool_)
    return dataclasses.replace(without_pose(status, inliers), rotation=turn, median_parallax=parallax)


def test_a_full_buffer_evicts_what_went_unmatched_the_longest_but_never_the_reference() -> None:
    keyframes = buffer(capacity=3)
    for _ in range(3):
        keyframes.next_frame()
        keyframes.add(encoded(), KeyframeReason.FIRST)
    first, second, third = keyframes.keyframes
    keyframes.next_frame()
    keyframes.record_match(first, 0.1)
    keyframes.next_frame()
    keyframes.take_events()
    keyframes.add(encoded(), KeyframeReason.AGE)
    events = keyframes.take_events()
    assert [(e.keyframe.id, e.added, e.reason, e.num_keyframes) for e in events] == [
        (second.id, False, KeyframeReason.EVICTED, 2),
        (4, True, KeyframeReason.AGE, 3),
    ]
    keyframes.reference = first  # even though third was matched no later
    keyframes.next_frame()
    keyframes.add(encoded(), KeyframeReason.AGE)
    assert keyframes.take_events()[0].keyframe is third


def test_a_buffer_of_one_replaces_its_only_keyframe() -> None:
    keyframes = buffer(capacity=1)
    keyframes.add(encoded(), KeyframeReason.FIRST)
    keyframes.add(encoded(), KeyframeReason.AGE)
    assert [k.id for k in keyframes.keyframes] == [2]
    assert keyframes.reference is keyframes.keyframes[0]


def test_the_reference_is_matched_first_and_the_others_take_turns_in_the_last_place() -> None:
    keyframes = buffer(capacity=5, max_matched=2)
    for _ in range(4):
        keyframes.add(encoded(), KeyframeReason.FIRST)
    seen = set()
    for _ in range(3):
        keyframes.next_frame()
        chosen = keyframes.choose()
        assert chosen[0] is keyframes.reference and len(chosen) == 2
        for keyframe in chosen:
            keyframes.record_match(keyframe, keyframe.coverage)
        seen.add(chosen[1].id)
    assert len(seen) == 3


def test_no_more_keyframes_are_matched_than_asked_for() -> None:
    for limit in (1, 2, 3, 8):
        keyframes = buffer(capacity=5, max_matched=limit)
        assert keyframes.choose() == []
        for _ in range(5):
            keyframes.add(encoded(), KeyframeReason.FIRST)
        chosen = keyframes.choose()
        assert len(chosen) == len({k.id for k in chosen}) == min(limit, 5)


def test_a_keyframe_that_covers_the_view_clearly_better_becomes_the_reference() -> None:
    keyframes = buffer()
    keyframes.add(encoded(), KeyframeReason.FIRST)
    keyframes.add(encoded(), KeyframeReason.AGE)
    old, reference = keyframes.keyframes
    keyframes.record_match(reference, 0.5)
    keyframes.record_match(old, 0.54)
    assert keyframes.reference is reference
    keyframes.record_match(old, 0.6)
    assert keyframes.reference is old


def test_ids_are_never_used_twice_even_after_clearing() -> None:
    keyframes = buffer()
    keyframes.add(encoded(), KeyframeReason.FIRST)
    keyframes.add(encoded(), KeyframeReason.AGE)
    keyframes.take_events()
    keyframes.clear(KeyframeReason.RESET)
    events = keyframes.take_events()
    assert [(e.keyframe.id, e.added, e.num_keyframes) for e in events] == [(1, False, 1), (2, False, 0)]
    assert keyframes.reference is None and len(keyframes) == 0
    keyframes.add(encoded(), KeyframeReason.FIRST)
    assert keyframes.take_events()[-1].keyframe.id == 3


def places(keyframes: KeyframeBuffer) -> set[int]:
    """Memory addresses of the keyframes' features."""
    return {keyframe.encoded.features.tokens.data_ptr() for keyframe in keyframes.keyframes}


def test_features_of_keyframes_stay_in_as_many_places_as_there_is_capacity_however_many_come_and_go() -> None:
    keyframes, seen = buffer(capacity=3), set()
    for number in range(20):
        keyframes.next_frame()
        keyframes.add(encoded(), KeyframeReason.FIRST)
        assert len(places(keyframes)) == len(keyframes) <= 3
        seen |= places(keyframes)
        if number == 12:
            keyframes.clear(KeyframeReason.RESET)
    assert len(seen) == 3


def test_a_keyframes_features_are_a_copy_that_outlives_what_was_encoded() -> None:
    keyframes, given = buffer(), encoded()
    keyframes.add(given, KeyframeReason.FIRST)
    expected = given.features.tokens.clone()
    given.features.tokens.zero_()
    kept = keyframes.keyframes[0].encoded
    assert torch.equal(kept.features.tokens, expected)
    assert kept.frame is given.frame and given.features.slot is None


def test_a_full_buffer_of_one_frees_its_place_before_it_needs_it() -> None:
    keyframes = buffer(capacity=1)
    for _ in range(3):
        keyframes.add(encoded(), KeyframeReason.AGE)
    assert len(keyframes) == 1 and len(places(keyframes)) == 1


def test_a_frame_that_the_network_saw_at_another_size_takes_the_place_of_all() -> None:
    keyframes = buffer()
    keyframes.add(encoded(), KeyframeReason.FIRST)
    large = PanningStream(640, 480).at(0)
    features = ShiftMatcher().encode(torch.from_numpy(large.image))
    other = EncodedFrame(large, features, (1.0, 1.0), 16, 7.5)
    keyframes.add(other, KeyframeReason.EFFORT)
    assert [event.reason for event in keyframes.take_events() if not event.added] == [KeyframeReason.RESIZED]
    assert len(keyframes) == 1
    assert torch.equal(keyframes.keyframes[0].encoded.features.tokens, features.tokens)


def test_reserved_places_are_those_that_are_used() -> None:
    keyframes, one = buffer(capacity=2), encoded()
    keyframes.reserve(one.features)
    keyframes.add(one, KeyframeReason.FIRST)
    first = places(keyframes)
    keyframes.reserve(one.features)
    assert places(keyframes) == first and len(keyframes) == 1
    assert keyframes.take_events()[0].added


def test_events_are_told_once() -> None:
    keyframes = buffer()
    keyframes.add(encoded(), KeyframeReason.FIRST)
    assert len(keyframes.take_events()) == 1
    assert keyframes.take_events() == ()


@pytest.mark.parametrize(("offset", "first", "second"), [(0.0, 0.5, 16.5), (3.5, 7.5, 23.5)])
def test_cell_points_are_where_the_matcher_puts_them_in_the_raw_image(
    offset: float, first: float, second: float
) -> None:
    frame = PanningStream(64, 32).at(0)
    features = ImageFeatures(torch.zeros(1, 8, 1), None, (2, 4), (32, 16))
    points = EncodedFrame(frame, features, (2.0, 2.0), 8, offset).cell_points
    np.testing.assert_allclose(points[:2], [[first, first], [second, first]])
    np.testing.assert_allclose(points[4], [first, second])


@pytest.mark.parametrize(
    ("covered", "found", "age", "expected"),
    [
        (0.9, pose(), 1.0, None),
        (0.2, pose(), 1.0, KeyframeReason.LOW_COVERAGE),
        (0.9, pose(parallax=33.0), 1.0, KeyframeReason.HIGH_PARALLAX),
        (0.9, pose(angle=21), 1.0, KeyframeReason.HIGH_ROTATION),
        (0.9, pose(PoseStatus.PURE_ROTATION, angle=21), 1.0, KeyframeReason.HIGH_ROTATION),
        (0.9, pose(PoseStatus.NO_CALIBRATION, angle=21, parallax=99), 1.0, None),
        (0.9, pose(), 10.5, KeyframeReason.AGE),
    ],
)
def test_each_policy_gives_its_reason(
    covered: float, found: RelativePose, age: float, expected: KeyframeReason | None
) -> None:
    reference = Keyframe(1, encoded(stamp=50.0))
    frame = STREAM.at(0, stamp=50.0 + age)
    assert reason_for_keyframe(reference, covered, found, frame, KeyframeConfig()) == expected


@pytest.mark.parametrize(
    ("is_mono", "parallax", "expected"),
    [(True, 12.5, KeyframeReason.LOW_COVERAGE), (True, 11.5, None), (True, None, None), (False, 12.5, None)],
)
def test_one_camera_makes_a_keyframe_earlier_once_the_parallax_gives_it_depths(
    is_mono: bool, parallax: float | None, expected: KeyframeReason | None
) -> None:
    reference = Keyframe(1, encoded(stamp=50.0))
    found = pose(PoseStatus.PURE_ROTATION) if parallax is None else pose(parallax=parallax)
    frame = STREAM.at(0, stamp=51.0)
    assert reason_for_keyframe(reference, 0.9, found, frame, KeyframeConfig(), 0.75, is_mono) == expected
    assert reason_for_keyframe(reference, 0.9, found, frame, KeyframeConfig(), 0.65, is_mono) is not None


def test_an_age_of_zero_lets_a_keyframe_live_for_ever() -> None:
    reference = Keyframe(1, encoded(stamp=50.0))
    frame = STREAM.at(0, stamp=1e6)
    assert reason_for_keyframe(reference, 0.9, pose(), frame, KeyframeConfig(max_age=0.0)) is None


def test_coverage_is_the_part_of_the_image_with_points() -> None:
    everywhere = np.stack(np.meshgrid(np.arange(5, 640, 10), np.arange(5, 480, 10)), axis=-1).reshape(-1, 2)
    everywhere = everywhere.astype(np.float32)
    assert coverage(everywhere, (640, 480)) == 1.0
    assert coverage(everywhere[everywhere[:, 0] < 320], (640, 480)) == 0.5
    assert coverage(np.full((500, 2), 639.5, np.float32), (640, 480)) == 1 / 48
    assert coverage(np.zeros((0, 2), np.float32), (640, 480)) == 0.0


def test_pixels_of_a_shrunk_image_map_to_the_middle_of_the_pixels_they_were_made_of() -> None:
    # Pixel 0 of a half-size image covers raw pixels 0 and 1: its centre is at 0.5.
    points = raw_pixels(np.array([[0, 0], [10, 4]], np.float32), (2.0, 2.0))
    np.testing.assert_allclose(points, [[0.5, 0.5], [20.5, 8.5]])
