"""Slow sources: made ahead of their time, a bounded number, and with a word where nobody sees a bar."""

from __future__ import annotations

import threading
import time

import pytest

from loftr_ros import progress
from loftr_ros.progress import Progress
from loftr_ros.sources import open_source
from loftr_ros.sources.look_ahead import LookAhead


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


def test_without_a_bar_a_long_source_says_how_much_there_is_and_then_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_PERIOD", 0.0)
    monkeypatch.setattr(progress, "_MANY", 2)
    with open_source("rendered?frames=3&width=64&height=48") as source:
        assert len(list(Progress().frames(source, False))) == 3
        said = capsys.readouterr().err.splitlines()
        assert "has 3 frames that are rendered" in said[0]
        assert said[-1] == "loftr_ros: room: 3 of 3 frames, about 0 min to go"
        monkeypatch.setattr(progress, "_PERIOD", 60.0)
        monkeypatch.setattr(progress, "_MANY", 500)
        list(Progress().frames(source, False))
        assert not capsys.readouterr().err, "nothing of a short one"
