"""Loops where tracking expects them, from loops that are known."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_world import camera
from numpy.typing import NDArray
from test_place_detector import AGAIN, AWAY, FRAMES, MisledVerifier, Robot, angle, there_and_back, truth

from loftr_ros.frontend.odometry import Location
from loftr_ros.geometry.se3 import inverse
from loftr_ros.geometry.two_view import PoseStatus, RelativePose
from loftr_ros.places.detector import LoopClosure
from loftr_ros.places.expected import KnownLoop, KnownLoops, Match, shared_view
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName
from loftr_ros.settings import with_values

Array = NDArray[np.float64]


def at(x: float = 0.0, y: float = 0.0, z: float = 0.0, turned: float = 0.0) -> Array:
    """(4, 4) pose at a position in metres, turned to the right by degrees."""
    pose, c, s = np.eye(4), np.cos(np.radians(turned)), np.sin(np.radians(turned))
    pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    pose[:3, 3] = x, y, z
    return pose


def keyframe(number: int, pose: Array) -> ArchivedKeyframe:
    size = (camera().width, camera().height)
    return ArchivedKeyframe(
        KeyframeName("ada", number), 1, 0, number, "cam", size, b"", camera(), np.ones(1, np.float32), pose
    )


def match(number: int, older: Array, newer: Array, found: Array, length: float | None = None) -> Match:
    """A match of the camera that tracking has at `newer` with a keyframe at `older`, as found: T_older_newer."""
    known = float(np.linalg.norm(found[:3, 3])) if length is None else length
    pose = RelativePose(
        status=PoseStatus.OK,
        rotation=found[:3, :3],
        translation=found[:3, 3] / max(np.linalg.norm(found[:3, 3]), 1e-9),
        covariance=np.zeros((6, 6)),
        inliers=np.ones(100, bool),
        median_parallax=10.0,
    )
    return Match(Location(newer, np.zeros((6, 6)), False), keyframe(number, older), pose, known)


@pytest.mark.parametrize("columns", [0, 3, 8])
def test_two_parallel_cameras_share_what_the_shift_of_the_image_leaves(columns: int) -> None:
    eye, depth = camera(), 2.5
    shift = columns * eye.width / 8 * depth / eye.focal_length
    assert shared_view(eye, eye, at(x=shift), depth) == pytest.approx(1 - columns / 8)


def test_a_camera_far_behind_shares_only_the_part_of_its_image_that_the_other_one_fills() -> None:
    # What it sees 2 m away is 1 m from the other one, whose image is half as wide and half as high there.
    assert shared_view(camera(), camera(), at(z=-1.0), 2.0) == pytest.approx(0.25)


def test_cameras_back_to_back_share_nothing() -> None:
    assert shared_view(camera(), camera(), at(turned=180.0), 1.0) == 0.0


def known_loop() -> KnownLoop:
    """Tracking is turned and shifted against the older trajectory, as another trajectory's frame may be."""
    loop = KnownLoop.of(50, match(7, at(x=1.0), at(z=5.0, turned=90.0), at(x=0.5, turned=10.0)))
    assert loop is not None
    return loop


# A metre ahead of the loop's camera, as tracking and as the older trajectory have it.
AHEAD = at(z=5.0, turned=90.0) @ at(z=1.0)
AHEAD_THERE = at(x=1.0) @ at(x=0.5, turned=10.0) @ at(z=1.0)


@pytest.mark.parametrize("length", [None, float("nan")])
def test_a_match_where_tracking_leads_to_agrees_with_the_loop_with_and_without_its_length(length: float | None) -> None:
    older = at(x=2.0, z=0.5, turned=-5.0)
    errors = known_loop().errors(match(9, older, AHEAD, inverse(older) @ AHEAD_THERE, length))
    assert errors is not None and errors.agree and not errors.contradict
    assert errors.angle < 1e-4 and errors.apart < 1e-9


@pytest.mark.parametrize(("off", "contradicts"), [(at(x=0.4), False), (at(x=3.0), True), (at(turned=20.0), True)])
def test_a_match_elsewhere_does_not_agree_and_one_far_off_contradicts(off: Array, contradicts: bool) -> None:
    older = at(x=2.0, z=0.5)
    errors = known_loop().errors(match(9, older, AHEAD, inverse(older) @ AHEAD_THERE @ off))
    assert errors is not None and not errors.agree
    assert errors.contradict == contradicts


def test_nothing_is_expected_of_another_trajectory_or_segment() -> None:
    one = match(9, at(x=2.0), AHEAD, inverse(at(x=2.0)) @ AHEAD_THERE)
    assert known_loop().errors(replace(one, keyframe=replace(one.keyframe, session=2))) is None
    assert known_loop().errors(replace(one, location=replace(one.location, segment=1))) is None


def loops(*numbers: int, off: Array | None = None) -> KnownLoops:
    """Loops of a camera that moves by 0.2 m a keyframe, each with a keyframe 0.1 m beside it; the last one is off."""
    found = KnownLoops()
    for number in numbers:
        wrong = off if off is not None and number == numbers[-1] else np.eye(4)
        step = match(number - 40, at(z=0.2 * number), at(x=0.1, z=0.2 * number), at(x=0.1) @ wrong)
        loop = KnownLoop.of(number, step)
        assert loop is not None
        found.add(loop)
    return found


def test_a_loop_alone_says_nothing_until_another_one_agrees() -> None:
    here = Location(at(z=10.4), np.zeros((6, 6)), False)
    assert loops(50).near(52, here) is None
    assert loops(50, 51, off=at(x=1.0)).near(52, here) is None
    near = loops(50, 51).near(52, here)
    assert near is not None and near.number == 51


def test_a_loop_says_nothing_about_keyframes_long_after_it() -> None:
    assert loops(50, 51).near(70, Location(at(z=14.0), np.zeros((6, 6)), False)) is None


def test_the_keyframe_that_shares_most_is_expected_first_and_one_that_looks_back_never() -> None:
    loop = known_loop()
    here = loop.expected(loop.match.location)
    assert here is not None
    there = [here @ step for step in (at(x=0.4), at(x=0.05), at(turned=180.0), at(x=5.0))]
    keyframes = [keyframe(number, pose) for number, pose in enumerate(there, 5)]
    assert [name.id for name in loop.sharing(keyframes, loop.match.location, camera())] == [6, 5]


# --- in the detector ---


def closures(folder: Path, **settings: object) -> tuple[Robot, list[LoopClosure]]:
    one = Robot(folder / "archive", there_and_back, **settings)  # type: ignore[arg-type]
    return one, one.go([*range(FRAMES), *AWAY, *AGAIN])


@pytest.mark.parametrize("mode", ["rgbd", pytest.param("mono", marks=pytest.mark.long)])
def test_keyframes_whose_descriptor_finds_nothing_get_their_loop_once_later_ones_have_one(
    tmp_path: Path, mode: str
) -> None:
    hidden = dict.fromkeys(AGAIN[: FRAMES // 3], AWAY.start)
    one, found = closures(tmp_path, mode=mode, lies=hidden, min_similarity=0.9)
    early = [closure for closure in found if one.number(closure.stamp_ns) in hidden]
    assert early and early[0] is found[-1], "the first one has its loop last"
    for closure in early:
        assert angle(closure.found.pose.rotation.T @ truth(one, closure)[:3, :3]) < 0.5


def test_two_thirds_of_the_score_are_enough_only_where_known_loops_expect_the_place(tmp_path: Path) -> None:
    one = Robot(tmp_path / "one", there_and_back)
    first = one.go([*range(FRAMES), *AWAY, *AGAIN[: FRAMES // 2]])
    assert len(first) >= 2
    strict = with_values(one.detector.config, {"min_score": 1.0, "min_planar_score": 1.0})
    one.detector.config = strict
    assert one.go(AGAIN[FRAMES // 2 :])
    other = Robot(tmp_path / "other", there_and_back, min_score=1.0, min_planar_score=1.0)
    assert not other.go([*range(FRAMES), *AWAY, *AGAIN])


@functools.cache
def there_and_back_and_beside() -> list[Array]:
    """As `there_and_back`, and then places that the second walk can be taken for: a metre beside it."""
    return [*there_and_back(), *(np.array(at(x=1.0) @ pose) for pose in there_and_back()[AGAIN.start :])]


@pytest.mark.parametrize("knows_loops", [True, False])
def test_a_look_alike_a_metre_from_where_the_loops_before_it_lead_is_not_published(
    tmp_path: Path, knows_loops: bool
) -> None:
    half = AGAIN.start + FRAMES // 2
    taken_for = {number: number + FRAMES for number in range(half if knows_loops else AGAIN.start, AGAIN.stop)}
    # Only known loops may rule them out, not the whole way.
    one = Robot(tmp_path / "archive", there_and_back_and_beside, max_drift=10.0, max_turn_drift=180.0)
    one.detector.verifier = MisledVerifier(one.detector.verifier.pairs, taken_for)
    found = one.go([*range(FRAMES), *AWAY, *AGAIN])
    misled = [closure for closure in found if one.number(closure.stamp_ns) in taken_for]
    assert bool(misled) != knows_loops
    if knows_loops:
        assert len(found) >= 2, "no loop was known"
