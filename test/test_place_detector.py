"""Recognition of places in a world of known truth: matcher and descriptor have only specified errors."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from made_world import WorldMatcher, frame, walk
from numpy.typing import NDArray

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.geometry.two_view import ScaleReason
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import ArchiveConfig, LoopConfig
from loftr_ros.places.detector import LoopClosure, LoopDetector
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName
from loftr_ros.places.recognition import PlaceRecognition
from loftr_ros.places.verification import Verification, Verifier
from loftr_ros.places.view import NewKeyframe, Observer, View
from loftr_ros.settings import with_values

Array = NDArray[np.float64]

SPACE, DIMENSION = "made:1", 32
FRAMES = 30


@dataclass(frozen=True)
class PoseDescriptor:
    """Similar for cameras with similar positions and directions; `lies` gives images another one's descriptor."""

    matcher: WorldMatcher
    lies: dict[int, int]

    def __call__(self, features: ImageFeatures) -> NDArray[np.float32]:
        number = int(features.tokens[0, 0, 0])
        pose = self.matcher.poses[self.lies.get(number, number)]
        told = np.concatenate([pose[:3, 3], 3 * pose[:3, 2]])
        directions = np.random.default_rng(0).normal(size=(len(told), DIMENSION // 2))
        phase = told @ directions
        vector = np.concatenate([np.cos(phase), np.sin(phase)])
        return (vector / np.linalg.norm(vector)).astype(np.float32)


class CountingVerifier(Verifier):
    """Counts its calls."""

    matched = 0

    def verify(self, archived: ArchivedKeyframe, frame: Frame) -> Verification:
        self.matched += 1
        return super().verify(archived, frame)


class Robot:
    """A front end, its archive and its detector over one list of poses."""

    def __init__(
        self,
        folder: Path,
        make: Callable[[], list[Array]],
        mode: str = "rgbd",
        lies: dict[int, int] | None = None,
        **loop: float,
    ) -> None:
        poses = make()
        values = {"mode": mode, "depth.max_depth": 20.0}
        self.config = with_values(FrontEndConfig(), values)
        self.make, self.poses, self.mode = make, poses, mode
        matcher = WorldMatcher(poses)
        self.front_end = FrontEnd(matcher, self.config)
        self.archive = Archive.open(str(folder), SPACE, DIMENSION)
        self.observer = Observer(PoseDescriptor(matcher, lies or {}), "ada", 1)
        settings = {"min_similarity": 0.5, "min_age": 3.05, **loop}
        self.detector = LoopDetector(
            self.archive,
            CountingVerifier(PairMatcher(WorldMatcher(poses), self.config)),
            with_values(LoopConfig(), settings),
        )
        self.views: list[View] = []

    @property
    def matched(self) -> int:
        """Keyframes that images were matched with."""
        assert isinstance(self.detector.verifier, CountingVerifier)
        return self.detector.verifier.matched

    def go(self, numbers: range | list[int]) -> list[LoopClosure]:
        """Process some of the poses in order, ten images a second; returns the loops found."""
        found: list[LoopClosure] = []
        for number in numbers:
            view, finished = self.observe(number)
            if finished is not None:
                self.archive.add(finished.archived(90))
            found += self.detector.process(view)
        return found

    def restart(self) -> None:
        """Begin another session, as a front end that was reset does."""
        self.front_end.reset()
        last = self.observer.restart()
        assert last is not None
        self.archive.add(last.archived(90))

    def observe(self, number: int) -> tuple[View, NewKeyframe | None]:
        seen = image(number, self.mode == "rgbd", self.make)
        view, finished = self.observer.observe(self.front_end.process(seen))
        self.views.append(view)
        return view, finished

    def number(self, stamp_ns: int) -> int:
        """Number of an image's pose."""
        return round((stamp_ns - 10**9) / 1e8)


@functools.cache
def there_and_back() -> list[Array]:
    """A walk, then three seconds far away in the other half of the room, then the walk again, slightly shifted."""
    first = walk(FRAMES)
    away = []
    for i in range(FRAMES):
        pose = first[0].copy()
        turn = np.radians(180 + i)
        pose[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
        away.append(pose)
    again = [pose.copy() for pose in first]
    for pose in again:
        pose[:3, 3] += [0.1, 0.05, -0.05]
    return [*first, *away, *again]


@functools.cache
def image(number: int, depth: bool, way: Callable[[], list[Array]]) -> Frame:
    """The image from the pose of that number on a walk."""
    seen = frame(way(), number, depth=depth)
    # Not as JPEG: the matcher reads the pose's number in the pixels.
    return replace(seen, compressed=memoryview(cv2.imencode(".png", seen.image)[1].tobytes()))


AWAY, AGAIN = range(FRAMES, 2 * FRAMES), range(2 * FRAMES, 3 * FRAMES)


@pytest.fixture
def robot(tmp_path: Path) -> Callable[..., Robot]:
    def make(**settings: object) -> Robot:
        return Robot(tmp_path / "archive", there_and_back, **settings)  # type: ignore[arg-type]

    return make


def truth(robot: Robot, closure: LoopClosure) -> Array:
    old, new = robot.number(closure.keyframe.stamp_ns), robot.number(closure.stamp_ns)
    return np.linalg.inv(robot.poses[old]) @ robot.poses[new]


def angle(rotation: Array) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


def test_a_place_seen_again_is_found_with_its_pose_in_metres(robot: Callable[..., Robot]) -> None:
    one = robot()
    assert not one.go([*range(FRAMES), *AWAY])
    found = one.go(AGAIN)
    assert len(found) >= 2
    for closure in found:
        true = truth(one, closure)
        assert closure.found.pose.scale_known
        assert np.linalg.norm(closure.found.pose.translation - true[:3, 3]) < 0.03
        assert angle(closure.found.pose.rotation.T @ true[:3, :3]) < 0.3
        assert closure.keyframe.name.id < closure.current.id and closure.current.robot == "ada"
        assert closure.confirmations >= 3 and 0 < closure.found.score <= 1
        (view,) = (view for view in one.views if view.name == closure.current)
        assert (closure.session, closure.segment) == (1, view.location.segment)


def test_a_single_camera_finds_the_direction_and_the_length_in_its_own_unit(robot: Callable[..., Robot]) -> None:
    one = robot(mode="mono")
    one.go([*range(FRAMES), *AWAY])
    found = one.go(AGAIN)
    assert found
    for closure in found:
        true, pose = truth(one, closure), closure.found.pose
        assert pose.scale_reason == ScaleReason.OWN_UNIT
        assert angle(pose.rotation.T @ true[:3, :3]) < 0.5
        if pose.has_direction and np.linalg.norm(true[:3, 3]) > 0.1:
            assert pose.translation @ true[:3, 3] / np.linalg.norm(true[:3, 3]) > 0.95
    assert any(closure.found.own_unit is not None for closure in found)


def test_nothing_is_published_before_as_many_images_agree_as_are_asked_for(robot: Callable[..., Robot]) -> None:
    one = robot(confirmations=4)
    one.go([*range(FRAMES), *AWAY])
    agreed = []
    for number in AGAIN:
        agreed += [(number, closure.confirmations) for closure in one.go([number])]
    assert agreed and agreed[0][0] >= AGAIN.start + 3
    assert min(count for _, count in agreed) >= 4


def test_the_recent_past_is_no_loop(robot: Callable[..., Robot]) -> None:
    one = robot(min_age=60.0)
    assert not one.go([*range(FRAMES), *AWAY, *AGAIN])
    assert len(one.archive) > 4


def test_another_session_is_no_recent_past(robot: Callable[..., Robot]) -> None:
    one = robot(min_age=60.0)
    one.go(range(FRAMES))
    one.restart()
    one.detector.reset()
    found = one.go(AGAIN)
    assert found and {(closure.session, closure.keyframe.session) for closure in found} == {(2, 1)}
    assert all(closure.segment > closure.keyframe.segment for closure in found)
    assert {view.session for view in one.views} == {1, 2}


def test_a_new_session_seeks_its_place_first_until_it_is_found_in_an_older_one(robot: Callable[..., Robot]) -> None:
    one = robot(min_age=60.0)
    one.go(range(FRAMES))
    one.restart()
    loops = 0
    for number in AGAIN:
        view, finished = one.observe(number)
        assert one.detector.seeks_first_place(view) == (loops < 3)
        if finished is not None:
            one.archive.add(finished.archived(90))
        loops += len(one.detector.process(view))
    assert loops >= 3


def test_a_session_that_is_not_found_for_long_seeks_no_first_place(
    robot: Callable[..., Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loftr_ros.places.detector._FIRST_SEARCHED", 3)
    one = robot(min_age=60.0)
    sought = []
    for number in range(FRAMES):
        view, _ = one.observe(number)
        sought.append(one.detector.seeks_first_place(view))
        one.detector.process(view)
    third = [k for k, view in enumerate(one.views) if view.name is not None][2]
    assert sought == [True] * (third + 1) + [False] * (FRAMES - third - 1)


def test_an_image_that_only_looks_alike_is_not_believed(robot: Callable[..., Robot]) -> None:
    # Every image of the other half of the room has the descriptor of one of the walk.
    one = robot(lies={number: number - FRAMES for number in AWAY})
    assert not one.go([*range(FRAMES), *AWAY])
    assert one.matched > 0, "no candidate was looked at"


class MisledVerifier(CountingVerifier):
    """Mistakes some images for others, as with a poster that hangs in two rooms."""

    def __init__(self, pairs: PairMatcher, taken_for: dict[int, int]) -> None:
        super().__init__(pairs)
        self.taken_for = taken_for

    def verify(self, archived: ArchivedKeyframe, seen: object) -> object:  # type: ignore[override]
        image = seen.image.copy()  # type: ignore[attr-defined]
        number = int(image[0, 0])
        image[0, 0] = self.taken_for.get(number, number)
        return super().verify(archived, replace(seen, image=image))  # type: ignore[type-var]


def test_a_look_alike_that_does_not_move_as_the_camera_does_is_not_believed(robot: Callable[..., Robot]) -> None:
    taken_for = {number: (number - FRAMES) * 5 % FRAMES for number in AWAY}
    one = robot(lies=taken_for, confirmations=3, max_rotation_error=2.0)
    one.detector.verifier = MisledVerifier(one.detector.verifier.pairs, taken_for)
    found = one.go([*range(FRAMES), *AWAY])
    assert one.matched > 0 and not found


@functools.cache
def around_to_the_same_again() -> list[Array]:
    """A walk, a rotation towards the other end of the room, and the same walk from there."""
    from scipy.spatial.transform import Rotation, Slerp

    first = walk(FRAMES)
    opposite = np.diag([-1.0, 1.0, -1.0, 1.0])
    second = [opposite @ pose for pose in first]
    ends = np.array([first[-1], second[0]])
    turn = Slerp([0, 1], Rotation.from_matrix(ends[:, :3, :3]))
    between = []
    for part in np.linspace(0, 1, FRAMES + 2)[1:-1]:
        pose = np.eye(4)
        pose[:3, :3] = turn(part).as_matrix()
        pose[:3, 3] = (1 - part) * ends[0, :3, 3] + part * ends[1, :3, 3]
        between.append(pose)
    return [*first, *between, *second]


@pytest.mark.parametrize("trusts_the_way", [True, False])
def test_a_room_that_looks_like_another_throughout_is_ruled_out_by_the_way_between_them_alone(
    tmp_path: Path, trusts_the_way: bool
) -> None:
    taken_for = {number: number - 2 * FRAMES for number in AGAIN}
    limits = {} if trusts_the_way else {"max_drift": 10.0, "max_turn_drift": 180.0}
    one = Robot(tmp_path / "archive", around_to_the_same_again, lies=taken_for, **limits)
    one.detector.verifier = MisledVerifier(one.detector.verifier.pairs, taken_for)
    found = one.go([*range(FRAMES), *AWAY, *AGAIN])
    assert len({view.segment for view in one.views}) == 1, "the camera was lost on the way"
    assert one.matched > 3
    assert bool(found) != trusts_the_way


def test_a_keyframe_goes_into_the_archive_when_the_next_one_comes_linked_to_the_one_before(
    robot: Callable[..., Robot],
) -> None:
    one = robot()
    one.go(range(FRAMES))
    keyframes = [view for view in one.views if view.name is not None]
    assert [name.id for name in one.archive.names()] == [view.name.id for view in keyframes[:-1]]  # type: ignore[union-attr]
    last = one.observer.take()
    assert last is not None and last.view is keyframes[-1] and one.observer.take() is None
    for view in keyframes[1:-1]:
        assert view.name is not None
        kept = one.archive.get(view.name)
        assert kept is not None and kept.link is not None and kept.link.is_metric
        before = one.archive.get(KeyframeName("ada", kept.link.previous))
        assert before is not None
        true = np.linalg.inv(one.poses[one.number(before.stamp_ns)]) @ one.poses[one.number(kept.stamp_ns)]
        assert np.abs(kept.link.pose - true).max() < 0.02
        assert (np.linalg.eigvalsh(kept.link.covariance) > 0).all()
        assert kept.depth is not None and kept.depth.known.sum() > 100


@pytest.fixture
def recognition(robot: Callable[..., Robot]) -> Iterator[tuple[Robot, PlaceRecognition, list[object]]]:
    one = robot()
    said: list[object] = []
    thread = PlaceRecognition(
        lambda: one.detector, ArchiveConfig(), said.append, said.append, said.append, on_urgent=said.append
    )
    yield one, thread, said
    thread.stop()


def test_the_thread_archives_every_keyframe_and_finds_the_loops(
    recognition: tuple[Robot, PlaceRecognition, list[object]],
) -> None:
    one, thread, said = recognition
    for number in [*range(FRAMES), *AWAY, *AGAIN]:
        thread.put(*one.observe(number))
        thread.ask(lambda: None)
    thread.stop()
    assert not [each for each in said if isinstance(each, Exception)]
    urgent = [each for each in said if isinstance(each, bool)]
    assert urgent[0], "the session had just begun"
    assert len(urgent) >= thread.counts.searched
    keyframes = [view for view in one.views if view.name is not None]
    assert thread.counts.archived == len(keyframes) - 1 == len(one.archive)
    assert thread.counts.closures == len([each for each in said if isinstance(each, LoopClosure)]) >= 2


def test_nobody_waits_for_a_slow_archive_and_no_keyframe_is_lost_by_it(
    recognition: tuple[Robot, PlaceRecognition, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, thread, _ = recognition
    go_on = threading.Event()
    add = one.archive.add

    def slow(keyframe: ArchivedKeyframe) -> None:
        assert go_on.wait(30)
        add(keyframe)

    monkeypatch.setattr(one.archive, "add", slow)
    handed = [one.observe(number) for number in range(FRAMES)]
    start = time.monotonic()
    for each in handed:
        thread.put(*each)
    assert time.monotonic() - start < 5, "put waited for the archive"  # which waits for what comes after this line
    assert thread.counts.archived == 0
    go_on.set()
    thread.stop()
    assert thread.counts.archived == sum(finished is not None for _, finished in handed) == len(one.archive)


def test_a_full_disk_is_told_and_the_next_keyframe_is_tried_again(
    recognition: tuple[Robot, PlaceRecognition, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, thread, said = recognition
    add, failures = one.archive.add, iter([OSError(28, "No space left on device")])

    def full_once(keyframe: ArchivedKeyframe) -> None:
        for failure in failures:
            raise failure
        add(keyframe)

    monkeypatch.setattr(one.archive, "add", full_once)
    for number in range(FRAMES):
        thread.put(*one.observe(number))
    thread.stop()
    assert thread.counts.lost == 1 and thread.counts.archived == len(one.archive) >= 1
    assert sum(isinstance(each, OSError) for each in said) == 1


def test_while_it_searches_the_newest_keyframe_waits_and_older_ones_are_counted_as_skipped(
    recognition: tuple[Robot, PlaceRecognition, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, thread, _ = recognition
    go_on = threading.Event()
    process = one.detector.process

    def slow(*args: Any) -> list[LoopClosure]:
        assert go_on.wait(30)
        return process(*args)

    monkeypatch.setattr(one.detector, "process", slow)
    for number in [*range(FRAMES), *AWAY, *AGAIN]:
        thread.put(*one.observe(number))
    go_on.set()
    thread.ask(lambda: None)
    counts = thread.counts
    asked = sum(view.name is not None for view in one.views)
    assert counts.skipped > 0 and counts.searched + counts.skipped in (asked, asked - 1)


# --- a front end that is lost asks for keyframes that it has no room for any more ---


def kidnapped(folder: Path, capacity: int, archive: bool) -> tuple[FrontEnd, list[int | None]]:
    """A walk, ten seconds of another place, and back to the start of the walk; the segment of each image after that."""
    elsewhere = [*AWAY] * 4
    one = Robot(folder, there_and_back)
    one.front_end = FrontEnd(
        WorldMatcher(one.poses), with_values(one.config, {"keyframe.capacity": capacity, "keyframe.max_parallax": 0.02})
    )
    stamp, segments = 10**9, []
    for count, number in enumerate([*range(FRAMES), *elsewhere[:100], *range(FRAMES // 2)]):
        stamp += 10**8
        seen = replace(image(number, True, there_and_back), stamp_ns=stamp)
        encoded = one.front_end.encode(seen)
        result = one.front_end.process_encoded(encoded)
        view, finished = one.observer.observe(result, encoded)
        if finished is not None:
            one.archive.add(finished.archived(90))
        if archive and view.is_lost:
            known = one.detector.known_place(view, encoded)
            if known is not None:
                one.front_end.recall(known.name.id, known.to_frame(), known.depth, known.grid)
        else:
            one.detector.process(view, encoded)
        if count >= FRAMES + 100:
            segments.append(None if result.location is None else result.location.segment)
    return one.front_end, segments


@pytest.mark.parametrize("archive", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_kidnapped_camera_that_comes_back_is_located_within_five_images_in_the_segment_that_it_left(
    tmp_path: Path, archive: bool
) -> None:
    _, segments = kidnapped(tmp_path / "archive", 10, archive)
    assert segments[4] == 0 and segments[-1] == 0


@pytest.mark.long
def test_what_the_buffer_has_no_room_for_is_recalled_from_the_archive(tmp_path: Path) -> None:
    _, forgotten = kidnapped(tmp_path / "without", 2, archive=False)
    assert forgotten[4] != 0, "the buffer alone must not do, or this tests nothing"
    front_end, segments = kidnapped(tmp_path / "with", 2, archive=True)
    assert segments[4] == 0 and segments[-1] == 0
    assert front_end.localizer.segment == 0


def test_a_keyframe_whose_place_is_not_known_in_this_trajectory_is_not_recalled(robot: Callable[..., Robot]) -> None:
    one = robot()
    one.go([*range(FRAMES)])
    seen = image(0, True, there_and_back)
    assert not one.front_end.recall(999, seen, None, (0, 0))
    held = one.front_end.buffer.keyframes
    assert not one.front_end.recall(held[0].id, seen, None, (0, 0)), "it is held already"
    assert one.front_end.buffer.keyframes == held
