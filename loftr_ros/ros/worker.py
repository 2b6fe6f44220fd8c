"""A thread that works on the newest items; replaced items are counted, never queued up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from statistics import median
from typing import Any, Generic, TypeVar

from loftr_ros.threads import Asked, Task, WorkThread

T = TypeVar("T")
R = TypeVar("R")

# Last items by which a worker judges whether it keeps up, and number of them without which it cannot.
_REMEMBERED, _LEAST_KNOWN = 30, 10
# Least share of the time between two items that is usually left to a worker that makes up for a slow one.
_SPARE_SHARE = 0.35


class NewestWorker(Generic[T]):
    """A slot with one place, or two, and the thread that empties it.

    `put` never blocks. Commands given by `call` run on the same thread before the next item, so the thread's own data
    needs no lock.

    A newer item replaces the one that waits. But a thread that usually has time left, and was held up by a slow item,
    can make up for it: then one older item waits too, and both are worked on.
    """

    def __init__(
        self,
        work: Callable[[T], None],
        on_displaced: Callable[[T], None],
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the thread.

        Args:
            work: called with each item that is not replaced; must not raise, because that would end the thread.
            on_displaced: called, on the thread of `put`, with each item that a newer one replaced.
            name: of the thread.
            clock: seconds.
        """
        self._clock = clock
        self._work = work
        self._on_displaced = on_displaced
        self._slot: deque[T] = deque()
        self._arrivals: deque[float] = deque(maxlen=_REMEMBERED)
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)
        self._begun = 0.0
        self._commands: deque[Task] = deque()
        self._spare: deque[tuple[Asked[Any], Callable[[], float]]] = deque()
        self._busy = False
        self._thread = WorkThread(self._next, name)
        self._condition = self._thread.condition
        self._thread.start()

    @property
    def pending(self) -> int:
        """Items waiting or in progress."""
        with self._condition:
            return len(self._slot) + int(self._busy)

    @property
    def has_next(self) -> bool:
        """Whether an item waits for the one in progress."""
        return bool(self._slot)

    @property
    def is_busy(self) -> bool:
        """Whether an item was waiting or in progress a moment ago; takes no lock."""
        return bool(self._slot) or self._busy

    @property
    def keeps_up(self) -> bool:
        """Whether most of the last items left the thread time until the next one."""
        if len(self._durations) < _LEAST_KNOWN:
            return False
        interval = (self._arrivals[-1] - self._arrivals[0]) / (len(self._arrivals) - 1)
        return median(self._durations) < (1 - _SPARE_SHARE) * interval

    def put(self, item: T) -> None:
        """Make the item the newest one; after `stop` it counts as displaced at once."""
        displaced: list[T] = []
        with self._condition:
            if self._thread.is_stopping:
                displaced.append(item)
            else:
                self._arrivals.append(self._clock())
                self._slot.append(item)
                while len(self._slot) > 2 or (len(self._slot) > 1 and not self.keeps_up):
                    displaced.append(self._slot.popleft())
                self._condition.notify()
        for old in displaced:
            self._on_displaced(old)

    def call(self, command: Task) -> None:
        """Run a command on the thread, before the next item; like `work`, it must not raise."""
        with self._condition:
            self._commands.append(command)
            self._condition.notify()

    def ask(self, question: Callable[[], R]) -> R:
        """Run a function on the thread, as `call` does, and return its result or raise its error."""
        return self.submit(question).result()

    def submit(self, question: Callable[[], R]) -> Future[R]:
        """Run a function on the thread, as `call` does; returns its result or error to come."""
        asked = Asked(question)
        self.call(asked)
        return asked.answer

    def spare(self, work: Callable[[], R], wait: Callable[[], float]) -> Future[R]:
        """Run a function on the thread when there is time for it.

        Args:
            work: the function.
            wait: called on the thread, between two items; returns the seconds after which to ask again, 0 for now.

        Returns:
            What `work` returns or raises; RuntimeError if the thread ends before.
        """
        asked = Asked(work)
        with self._condition:
            if self._thread.is_stopping:
                asked.refuse("the thread has ended")
            else:
                self._spare.append((asked, wait))
                self._condition.notify()
        return asked.answer

    def drain(self) -> None:
        """Drop the waiting item, and wait until the one in progress is finished."""
        self._drop()
        self.ask(lambda: None)

    def stop(self) -> None:
        """Finish the item in progress and all commands given so far, drop the waiting item, end the thread."""
        self._drop()
        self._thread.stop()
        self._drop()  # items that came in the meantime
        while self._spare:
            self._spare.popleft()[0].refuse("the thread has ended")

    def _drop(self) -> None:
        with self._condition:
            displaced, self._slot = self._slot, deque()
        for item in displaced:
            self._on_displaced(item)

    def _next(self) -> Task | float | None:
        if self._busy:
            self._durations.append(self._clock() - self._begun)
        self._busy = False
        if self._commands:
            return self._commands.popleft()
        if self._thread.is_stopping:
            return None
        seconds = self._spare[0][1]() if self._spare else None
        if seconds is not None and seconds <= 0:
            return self._spare.popleft()[0]
        if self._slot:
            item = self._slot.popleft()
            self._busy, self._begun = True, self._clock()
            return partial(self._work, item)
        return seconds
