"""The slot for the newest items and its thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from loftr_ros.ros.worker import NewestWorker


class Bench:
    """A worker that can be held up, and a record of its work."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.displaced: list[int] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.now = 0.0
        self.seconds = 0.0
        self.worker: NewestWorker[int] = NewestWorker(self._work, self.displaced.append, "bench", lambda: self.now)

    def _work(self, item: int) -> None:
        self.begun.set()
        assert self.go_on.wait(20)
        self.now += self.seconds
        self.done.append(item)

    def hold_up(self, item: int) -> None:
        """Give it an item and wait until it is in progress."""
        self.worker.put(item)
        assert self.begun.wait(20)

    def settle(self) -> None:
        """Release it, and wait until everything requested is done."""
        self.go_on.set()
        idle = threading.Event()
        while self.worker.pending:
            self.worker.call(idle.set)
            assert idle.wait(20)
            idle.clear()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.go_on.set()
    bench.worker.stop()


def test_every_item_is_worked_on_where_none_displaces_it(bench: Bench) -> None:
    bench.go_on.set()
    for item in range(5):
        bench.worker.put(item)
        bench.settle()
    assert bench.done == [0, 1, 2, 3, 4]
    assert bench.displaced == []


def test_while_one_is_in_work_the_newest_displaces_those_before_it(bench: Bench) -> None:
    bench.hold_up(0)
    for item in range(1, 6):
        bench.worker.put(item)
    assert bench.displaced == [1, 2, 3, 4]
    bench.settle()
    assert bench.done == [0, 5]


def work_on_twenty(bench: Bench, interval: float, seconds: float) -> None:
    """Items that come at an interval, none of which displaces another, and each of which takes so many seconds."""
    bench.seconds = seconds
    bench.go_on.set()
    for item in range(20):
        bench.now = item * interval
        bench.worker.put(item)
        bench.settle()
    bench.done.clear()
    bench.go_on.clear()
    bench.begun.clear()


def keep_coming(bench: Bench, interval: float) -> None:
    """Five more items at that interval, while the first of them is in work."""
    bench.now = 20 * interval
    bench.hold_up(20)
    for item in range(21, 25):
        bench.now = item * interval
        bench.worker.put(item)


def test_a_thread_with_time_to_spare_makes_up_for_a_slow_item_by_working_on_one_older_one_too(bench: Bench) -> None:
    work_on_twenty(bench, interval=1.0, seconds=0.6)
    keep_coming(bench, 1.0)
    assert bench.displaced == [21, 22]
    assert bench.worker.pending == 3
    bench.settle()
    assert bench.done == [20, 23, 24]


def test_a_thread_that_hardly_keeps_up_works_on_the_newest_item_alone(bench: Bench) -> None:
    work_on_twenty(bench, interval=1.0, seconds=0.7)
    keep_coming(bench, 1.0)
    assert bench.displaced == [21, 22, 23]
    bench.settle()
    assert bench.done == [20, 24]


def test_pending_counts_what_is_in_work_and_what_waits(bench: Bench) -> None:
    assert bench.worker.pending == 0
    bench.hold_up(0)
    assert bench.worker.pending == 1
    bench.worker.put(1)
    bench.worker.put(2)
    assert bench.worker.pending == 2
    bench.settle()
    assert bench.worker.pending == 0


def test_commands_run_in_their_order_before_the_item_that_waits_and_on_its_thread(bench: Bench) -> None:
    threads = []
    bench.hold_up(0)
    bench.worker.put(1)
    for name in ("first", "second"):
        bench.worker.call(lambda name=name: (bench.done.append(name), threads.append(threading.current_thread().name)))
    bench.settle()
    assert bench.done == [0, "first", "second", 1]
    assert threads == ["bench", "bench"]


def test_stop_finishes_what_is_in_work_and_counts_what_waits_as_displaced(bench: Bench) -> None:
    bench.hold_up(0)
    bench.worker.put(1)
    bench.worker.call(lambda: bench.done.append("command"))
    threading.Timer(0.05, bench.go_on.set).start()
    bench.worker.stop()
    assert bench.done == [0, "command"]
    assert bench.displaced == [1]
    assert "bench" not in [thread.name for thread in threading.enumerate()]


def test_after_stop_every_item_counts_as_displaced(bench: Bench) -> None:
    bench.worker.stop()
    bench.worker.put(7)
    assert bench.displaced == [7]
    assert bench.worker.pending == 0
    bench.worker.stop()


def test_an_item_is_not_held_in_memory_once_it_is_done() -> None:
    import gc
    import weakref

    class Item:
        pass

    worked = threading.Event()
    worker: NewestWorker[Item] = NewestWorker(lambda _: worked.set(), lambda _: None, "memory")
    item = Item()
    reference = weakref.ref(item)
    worker.put(item)
    del item
    assert worked.wait(20)
    ran = threading.Event()
    worker.call(ran.set)
    assert ran.wait(20)
    gc.collect()
    assert reference() is None
    worker.stop()
