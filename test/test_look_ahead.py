"""Slow sources: made in advance, in limited number, with progress lines if there is no bar."""

from __future__ import annotations

import threading
import time

import pytest

from loftr_ros.recordings import open_source, progress
from loftr_ros.recordings.look_ahead import LookAhead
from loftr_ros.recordings.progress import Progress
from loftr_ros.worlds.scene import Scene


def test_items_come_in_order_prepared_and_never_more_ahead_than_asked_for() -> None:
    made: list[int] = []

    def items():
        for k in range(40):
            made.append(k)
            yield k

    taken = []
    ahead = LookAhead(items(), lambda k: k * 10, 5)
    for item in ahead:
        taken.append(item)
        time.sleep(0.001)
        assert len(made) <= len(taken) + 7
    assert taken == [10 * k for k in range(40)]


def test_taking_begins_when_the_lead_is_there_and_an_error_comes_in_its_turn() -> None:
    made = 0

    def items():
        nonlocal made
        for k in range(3):
            made += 1
            yield k
        raise ValueError("broken")

    taken = iter(LookAhead(items(), lambda k: k, 10))
    assert next(taken) == 0 and made == 3
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(taken)


def test_who_stops_taking_ends_the_making_and_may_begin_again() -> None:
    source = LookAhead(range(1000), lambda k: k, 4)
    before = threading.active_count()
    for _ in range(2):
        for item in source:
            if item == 3:
                break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_who_need_not_wait_gets_the_first_item_while_the_second_is_made() -> None:
    go_on = threading.Event()

    def items():
        yield 1
        assert go_on.wait(10)
        yield 2

    taken = iter(LookAhead(items(), lambda k: k, 4, wait=False))
    assert next(taken) == 1
    go_on.set()
    assert list(taken) == [2]


def test_while_the_lead_is_made_it_is_told_how_much_of_it_there_is() -> None:
    told: list[int] = []
    enough = threading.Event()

    def items():
        yield from range(3)
        assert enough.wait(10)
        yield 3

    def made(count: int) -> None:
        told.append(count)
        enough.set()

    assert list(LookAhead(items(), lambda k: k, 4, made=made)) == [0, 1, 2, 3]
    assert told == [3]


def test_a_long_slow_source_says_first_what_it_costs_and_then_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_FIRST", 0.0)
    monkeypatch.setattr(progress, "_PERIOD", 0.0)
    monkeypatch.setattr(progress, "_MANY", 2)
    with open_source("rendered?seed=3&frames=3&width=64&height=48") as source:
        assert len(list(Progress().frames(source, False))) == 3
        said = capsys.readouterr().err.splitlines()
        assert said[0] == "loftr_ros: room renders its 3 frames one by one; that takes some 0 min of one core"
        assert said[-1] == "loftr_ros: room: 3 of 3 frames, about 0 min to go"
        monkeypatch.undo()
        list(Progress().frames(source, False))
        assert not capsys.readouterr().err, "nothing of a short one"
    with open_source("revisits:700") as source:
        source._world.__dict__["building"] = "built"  # which takes a quarter of a minute
        source.prepare()
        assert source.length is not None and source.length > 4000
        assert "min of one core, and 1 GB of memory" in source.cost


def test_frames_up_to_a_stamp_are_not_made_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    render = Scene.render
    monkeypatch.setattr(Scene, "render", lambda self, *given: made.append(0) or render(self, *given))
    with open_source("rendered?seed=3&frames=4&width=64&height=48") as source:
        stamps = [frame.stamp_ns for frame in source]
        assert len(made) == 4
        assert [frame.stamp_ns for frame in Progress().frames(source, False, after=stamps[2])] == stamps[3:]
        assert len(made) == 5


def test_nobody_s_frames_are_made_after_a_stop() -> None:
    with open_source("rendered?seed=3&frames=400&width=64&height=48") as source:
        before = threading.active_count()
        frames = Progress().frames(source, False)
        next(frames)
        frames.close()
        deadline = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() == before
