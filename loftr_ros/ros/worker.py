"""A thread that works on the newest item; replaced items are counted, never queued."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

from loftr_ros.threads import Asked, Task, WorkThread

T = TypeVar("T")
R = TypeVar("R")


class NewestWorker(Generic[T]):
    """A one-place slot and the thread that empties it.

    `put` never blocks. Commands given by `call` run on the same thread before the next item, so the thread's own data
    needs no lock.
    """

    def __init__(self, work: Callable[[T], None], on_displaced: Callable[[T], None], name: str) -> None:
        """Start the thread.

        Args:
            work: called with each item that is not replaced; must not raise, because that would end the thread.
            on_displaced: called, on the thread of `put`, with each item that a newer one replaced.
            name: of the thread.
        """
        self._work = work
        self._on_displaced = on_displaced
        self._slot: T | None = None
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
            return int(self._slot is not None) + int(self._busy)

    @property
    def has_next(self) -> bool:
        """Whether an item waits for the one in progress."""
        return self._slot is not None

    @property
    def is_busy(self) -> bool:
        """Whether an item was waiting or in progress a moment ago; takes no lock."""
        return self._slot is not None or self._busy

    def put(self, item: T) -> None:
        """Make the item the next one; after `stop` it counts as displaced at once."""
        with self._condition:
            if self._thread.is_stopping:
                displaced: T | None = item
            else:
                displaced, self._slot = self._slot, item
                self._condition.notify()
        if displaced is not None:
            self._on_displaced(displaced)

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
            displaced, self._slot = self._slot, None
        if displaced is not None:
            self._on_displaced(displaced)

    def _next(self) -> Task | float | None:
        self._busy = False
        if self._commands:
            return self._commands.popleft()
        if self._thread.is_stopping:
            return None
        seconds = self._spare[0][1]() if self._spare else None
        if seconds is not None and seconds <= 0:
            return self._spare.popleft()[0]
        if self._slot is not None:
            item, self._slot = self._slot, None
            self._busy = True
            return partial(self._work, item)
        return seconds
