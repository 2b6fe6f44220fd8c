"""Lending the network: the rules, and the threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from loftr_ros.matcher.interface import ImageFeatures, Matcher, Matches
from loftr_ros.ros.spare_time import LentMatcher, SpareTime, kind_of, one_torch_thread_here
from loftr_ros.ros.worker import NewestWorker

SIZE = (64, 48)


def stream(hz: float, frames: int = 20) -> tuple[SpareTime, float]:
    """A `SpareTime` after a stream of frames, and the time of the last one."""
    spare = SpareTime()
    for i in range(frames):
        spare.arrived(100.0 + i / hz)
    return spare, 100.0 + (frames - 1) / hz


# --- the rules ---


def test_without_a_stream_work_begins_at_once() -> None:
    assert SpareTime().wait("work", 0.0, False, 0.0) == 0.0


def test_work_begins_after_a_frame_if_it_is_done_before_the_next() -> None:
    spare, last = stream(5.0)
    spare.spent("short", 0.05, last - 1.0)
    spare.spent("long", 0.15, last - 1.0)
    now = last + 0.1  # the frame took that long
    assert spare.wait("short", now, False, now) == 0.0
    assert spare.wait("long", now, False, now) > 0.0


def test_while_a_frame_is_in_work_or_waits_there_is_no_time() -> None:
    spare, last = stream(5.0)
    spare.spent("work", 0.001, last - 1.0)
    assert spare.wait("work", last, True, last + 0.01) > 0.0
    assert spare.wait("work", last, False, last + 0.01) == 0.0


def test_a_late_frame_is_waited_for_and_not_for_ever() -> None:
    spare, last = stream(5.0)
    spare.spent("work", 0.05, last - 1.0)
    due = last + 0.2
    seconds = spare.wait("work", due, False, due + 0.01)
    assert 0.0 < seconds < 0.2
    assert spare.wait("work", due, False, due + 0.01 + seconds + 1e-6) == 0.0


def test_where_frames_are_dropped_work_takes_the_place_of_one() -> None:
    spare, last = stream(30.0)
    spare.spent("work", 0.05, last - 1.0)
    assert spare.wait("work", last, True, last + 0.01) > 0.0
    spare.dropped(last)
    assert spare.wait("work", last, True, last + 0.01) == 0.0


def test_work_that_no_gap_is_long_enough_for_is_done_after_some_frames_all_the_same() -> None:
    spare, last = stream(10.0)
    spare.spent("work", 0.09, last - 1.0)
    asked = last + 0.05
    waits = []
    for i in range(1, 8):
        spare.arrived(last + i / 10)
        waits.append(spare.wait("work", asked, True, last + i / 10 + 0.05))
    assert waits[0] > 0.0 and waits[1] > 0.0 and waits[-1] == 0.0


def test_no_more_than_its_part_of_the_time_is_given_while_frames_come() -> None:
    spare, last = stream(30.0, 200)
    spare.max_load = 0.25
    spent, now = 0.0, last
    while now < last + 10.0:
        spare.arrived(now)
        spare.dropped(now)
        if spare.wait("work", now, True, now) == 0.0:
            spent += 0.04
            spare.spent("work", 0.04, now + 0.04)
            now += 0.04
        now += 0.01
    assert 1.5 < spent <= 2.5 + 0.04
    assert spare.wait("work", now, False, now + 2.0) == 0.0, "no frame has come for long: nothing to spare it for"


def test_urgent_work_is_done_after_the_current_frame_whether_it_fits_into_the_gap_or_not() -> None:
    spare, last = stream(5.0)
    spare.spent("long", 0.15, last - 1.0)
    now = last + 0.1
    assert spare.wait("long", now, False, now) > 0.0
    spare.is_urgent = True
    assert spare.wait("long", now, False, now) == 0.0
    assert spare.wait("long", now, True, now) > 0.0, "the current frame comes first"
    spare.arrived(last + 0.2)
    assert spare.wait("long", now, True, now + 0.21) == 0.0, "but the next one does not"


def test_urgent_work_gets_half_of_the_time_and_no_more() -> None:
    shares = []
    for is_urgent in (False, True):
        spare, last = stream(30.0, 200)
        spare.max_load, spare.is_urgent = 0.25, is_urgent
        spent, now = 0.0, last
        while now < last + 10.0:
            spare.arrived(now)
            if spare.wait("work", now, False, now) == 0.0:
                spent += 0.04
                now += 0.04
                spare.spent("work", 0.04, now)
            now += 0.001
        shares.append(spent / 10.0)
    assert shares[0] <= 0.26
    assert 0.45 < shares[1] <= 0.51


def test_a_stream_that_pauses_is_foretold_by_its_new_rate() -> None:
    spare, last = stream(30.0)
    spare.spent("work", 0.1, last - 5.0)
    for i in range(10):
        spare.arrived(last + 5.0 + i / 2)
    now = last + 5.0 + 4.5 + 0.2
    assert spare.wait("work", now, False, now) == 0.0


# --- the threads ---


@dataclass
class MadeMatcher:
    """Records on which thread it was called."""

    fingerprint: str = "made"
    threads: list[tuple[str, str]] = field(default_factory=list)
    fails: bool = False

    def encode(self, image: torch.Tensor, usable: torch.Tensor | None = None) -> ImageFeatures:
        self.threads.append(("encode", threading.current_thread().name))
        if self.fails:
            raise ValueError("no image")
        size = image.shape[1], image.shape[0]
        return ImageFeatures(torch.zeros(1, 1, 1), None, (1, 1), size, usable)

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        self.threads.append(("complete", threading.current_thread().name))
        return features

    def match(self, keyframes: list[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        self.threads.append(("match", threading.current_thread().name))
        return []


@dataclass
class Lending:
    """A lent matcher, and its threads."""

    matcher: MadeMatcher
    spare: SpareTime
    encoding: NewestWorker[Callable[[], None]]
    matching: NewestWorker[Callable[[], None]]
    kinds: set[Any]
    lent: LentMatcher


@pytest.fixture
def lending() -> Iterator[Lending]:
    matcher, spare = MadeMatcher(), SpareTime()
    encoding: NewestWorker[Callable[[], None]] = NewestWorker(lambda work: work(), lambda _: None, "encoding")
    matching: NewestWorker[Callable[[], None]] = NewestWorker(lambda work: work(), lambda _: None, "matching")
    kinds: set[Any] = set()
    lent = LentMatcher(
        cast(Matcher, matcher), spare, encoding, matching, lambda: encoding.is_busy or matching.is_busy, kinds
    )
    yield Lending(matcher, spare, encoding, matching, kinds, lent)
    encoding.stop()
    matching.stop()


def image(size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.zeros(size[1], size[0], dtype=torch.uint8)


def test_images_like_the_streams_are_worked_on_by_the_streams_threads(lending: Lending) -> None:
    lending.kinds.add((SIZE, False))
    features = lending.lent.encode(image())
    assert kind_of(features) == (SIZE, False)
    lending.lent.match([features], features)
    assert lending.lent.geometry(lambda: threading.current_thread().name) == "matching"
    assert lending.matcher.threads == [("encode", "encoding"), ("match", "matching")]
    assert lending.lent.fingerprint == "made"


def test_images_of_a_new_size_are_worked_on_where_they_are_asked_for_the_first_time(lending: Lending) -> None:
    here = threading.current_thread().name
    lending.kinds.add((SIZE, False))
    for _ in range(2):
        other = lending.lent.encode(image((32, 32)))
        lending.lent.match([other], lending.lent.encode(image()))
    encoded = [thread for what, thread in lending.matcher.threads if what == "encode"]
    matched = [thread for what, thread in lending.matcher.threads if what == "match"]
    assert encoded == [here, "encoding", "encoding", "encoding"]
    assert matched == [here, "matching"]


def test_a_frame_in_work_is_not_disturbed_and_the_work_is_done_after_it(lending: Lending) -> None:
    lending.kinds.add((SIZE, False))
    begun, go_on, order = threading.Event(), threading.Event(), []

    def frame() -> None:
        begun.set()
        assert go_on.wait(20)
        order.append("frame")

    lending.matching.put(frame)
    assert begun.wait(20)
    asking = threading.Thread(target=lambda: (lending.lent.encode(image()), order.append("lent")))
    asking.start()
    time.sleep(0.1)  # the encoding thread is free all the time
    assert not lending.matcher.threads
    go_on.set()
    asking.join(20)
    assert order == ["frame", "lent"]


def test_what_fails_is_told_to_who_asked_and_the_threads_go_on(lending: Lending) -> None:
    lending.kinds.add((SIZE, False))
    lending.matcher.fails = True
    with pytest.raises(ValueError, match="no image"):
        lending.lent.encode(image())
    lending.matcher.fails = False
    assert lending.lent.encode(image()).size == SIZE


def test_who_waits_for_threads_that_end_is_told_so(lending: Lending) -> None:
    lending.spare.arrived(time.monotonic())
    lending.spare.max_load = 0.01
    lending.spare.spent("geometry", 1000.0, time.monotonic())
    told: list[str] = []

    def ask() -> None:
        try:
            lending.lent.geometry(lambda: None)
        except RuntimeError as error:
            told.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.1)
    lending.matching.stop()
    asking.join(20)
    assert told == ["the thread has ended"]
    with pytest.raises(RuntimeError, match="ended"):
        lending.lent.geometry(lambda: None)


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_torch_threads")
def test_one_torch_thread_here_leaves_other_threads_theirs() -> None:
    seen: dict[str, int] = {}

    def here() -> None:
        one_torch_thread_here()
        seen["here"] = torch.get_num_threads()

    for work in (here, lambda: seen.update(later=torch.get_num_threads())):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == {"here": 1, "later": 2}
    assert torch.get_num_threads() == 2
