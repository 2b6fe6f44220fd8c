"""One thread that works on the newest frame; what a newer one displaces is counted, never queued."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class NewestWorker(Generic[T]):
    """A one-place slot and the thread that empties it.

    `put` never blocks. Commands given by `call` run on the same thread, before the next item, so that what the
    thread owns needs no lock.
    """

    def __init__(self, work: Callable[[T], None], on_displaced: Callable[[T], None], name: str) -> None:
        """Start the thread.

        Args:
            work: called with each item that is not displaced; must not raise, for that would end the thread.
            on_displaced: called, on the thread that puts, with each item that a newer one took the place of.
            name: the thread's.
        """
        self._work = work
        self._on_displaced = on_displaced
        self._condition = threading.Condition()
        self._slot: T | None = None
        self._commands: deque[Callable[[], None]] = deque()
        self._spare: deque[_Asked[Any]] = deque()
        self._busy = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Items waiting or in work."""
        with self._condition:
            return int(self._slot is not None) + int(self._busy)

    @property
    def is_busy(self) -> bool:
        """Whether an item waits or is in work, as it was a moment ago; takes no lock."""
        return self._slot is not None or self._busy

    def put(self, item: T) -> None:
        """Make the item the next one to be worked on; after `stop` it counts as displaced at once."""
        with self._condition:
            if self._stopping:
                displaced: T | None = item
            else:
                displaced, self._slot = self._slot, item
                self._condition.notify()
        if displaced is not None:
            self._on_displaced(displaced)

    def call(self, command: Callable[[], None]) -> None:
        """Run a command on the thread, before the next item; like `work`, it must not raise."""
        with self._condition:
            self._commands.append(command)
            self._condition.notify()

    def ask(self, question: Callable[[], R]) -> R:
        """Run a function on the thread, as `call` does, and wait for what it returns or raises."""
        asked = _Asked(question)
        self.call(asked.run)
        return asked.answer.result()

    def spare(self, work: Callable[[], R], wait: Callable[[], float]) -> Future[R]:
        """Run a function on the thread when there is time for it.

        Args:
            work: the function.
            wait: asked on the thread, between two items: seconds after which to ask again, 0 for now.

        Returns:
            What `work` returns or raises; RuntimeError where the thread ends before.
        """
        spare = _Asked(work, wait)
        with self._condition:
            if self._stopping:
                spare.refuse()
            else:
                self._spare.append(spare)
                self._condition.notify()
        return spare.answer

    def drain(self) -> None:
        """Drop the item that waits, and wait until what is in work is finished."""
        with self._condition:
            displaced, self._slot = self._slot, None
        if displaced is not None:
            self._on_displaced(displaced)
        self.ask(lambda: None)

    def stop(self) -> None:
        """Finish what is in work and the commands given so far, drop the item that waits, end the thread."""
        with self._condition:
            displaced, self._slot = self._slot, None
            self._stopping = True
            self._condition.notify()
        self._thread.join()
        if displaced is not None:
            self._on_displaced(displaced)

    def _run(self) -> None:
        while True:
            with self._condition:
                task = self._next()
                if task is None:
                    while self._spare:
                        self._spare.popleft().refuse()
                    return
            task()
            # Not held through the next wait, or the last image would stay in memory for as long.
            del task
            with self._condition:
                self._busy = False

    def _next(self) -> Callable[[], None] | None:
        """Wait for what to do next; None for the end."""
        while True:
            if self._commands:
                return self._commands.popleft()
            if self._stopping:
                return None
            seconds = self._spare[0].wait() if self._spare else None
            if seconds is not None and seconds <= 0:
                return self._spare.popleft().run
            if self._slot is not None:
                item, self._slot = self._slot, None
                self._busy = True
                return partial(self._work, item)
            self._condition.wait(seconds)


class _Asked(Generic[R]):
    """Work whose result somebody waits for."""

    def __init__(self, work: Callable[[], R], wait: Callable[[], float] = lambda: 0.0) -> None:
        self._work = work
        self.wait = wait
        self.answer: Future[R] = Future()

    def run(self) -> None:
        try:
            self.answer.set_result(self._work())
        except BaseException as error:
            self.answer.set_exception(error)

    def refuse(self) -> None:
        self.answer.set_exception(RuntimeError("the thread has ended"))
