"""Priorities and cores of threads, applied to real threads of this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from loftr_ros.ros.scheduling import Scheduling, SchedulingParameters, cores_of
from loftr_ros.settings import ConfigError

T = TypeVar("T")
LINUX = hasattr(os, "sched_setaffinity")
pytestmark = pytest.mark.skipif(not LINUX, reason="threads have priorities and cores of their own on Linux")


def on_a_thread(work: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_list_of_cores_has_numbers_and_ranges() -> None:
    assert cores_of("") == cores_of("  ") == frozenset()
    assert cores_of("0-2, 5") == {0, 1, 2, 5}


@pytest.mark.parametrize("text", ["all", "2-1", "1,,2", "-1", "0x1", "1.5"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="0-1,3"):
        SchedulingParameters(cores=text)


def test_a_core_that_the_process_may_not_use_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="may not use core 9000; it may use"):
        Scheduling(SchedulingParameters(cores="9000"), pytest.fail)


def test_the_background_thread_alone_is_nicer_by_what_is_set() -> None:
    scheduling = Scheduling(SchedulingParameters(background_nice=3), pytest.fail)

    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = nice()

    def applied() -> int:
        scheduling.of_background()
        return nice()

    assert on_a_thread(applied) == min(before + 3, 19)
    assert nice() == on_a_thread(nice) == before


def test_threads_are_bound_to_the_cores_and_those_that_they_start_too() -> None:
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    scheduling = Scheduling(SchedulingParameters(cores=str(core)), pytest.fail)

    def applied(apply: Callable[[], None]) -> set[int]:
        apply()
        return on_a_thread(lambda: os.sched_getaffinity(0))

    assert on_a_thread(lambda: applied(scheduling.of_frames)) == {core}
    assert on_a_thread(lambda: applied(scheduling.of_background)) == {core}
    assert os.sched_getaffinity(0) == allowed


def test_a_realtime_priority_is_in_effect_for_the_thread_alone_or_said_not_to_be() -> None:
    said: list[str] = []
    scheduling = Scheduling(SchedulingParameters(realtime_priority=7), said.append)

    def applied() -> tuple[int, int, int]:
        scheduling.of_frames()
        own = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        return own, os.sched_getparam(0).sched_priority, on_a_thread(lambda: os.sched_getscheduler(0))

    policy, priority, started = on_a_thread(applied)
    assert started == os.SCHED_OTHER
    if said:
        assert "LimitRTPRIO" in said[0]
        assert policy == os.SCHED_OTHER
    else:
        assert (policy, priority) == (os.SCHED_FIFO, 7)


def test_a_realtime_priority_that_is_not_permitted_leaves_the_thread_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    said: list[str] = []
    scheduling = Scheduling(SchedulingParameters(realtime_priority=7), said.append)
    on_a_thread(scheduling.of_frames)
    assert len(said) == 1
    assert "Operation not permitted" in said[0]
    assert on_a_thread(lambda: os.sched_getscheduler(0)) == os.SCHED_OTHER
