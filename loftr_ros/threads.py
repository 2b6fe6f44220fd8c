"""A thread that runs tasks of several kinds. Its owner chooses the next task."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

R = TypeVar("R")
Task = Callable[[], None]


class WorkThread:
    """Runs one task after the other, and waits while there is none.

    Attributes:
        condition: guards the data that `next_task` reads; notify it after every change.
        is_stopping: whether `stop` was called; `next_task` may still return tasks that must not be lost.
    """

    def __init__(
        self,
        next_task: Callable[[], Task | float | None],
        name: str,
        on_error: Callable[[Exception], None] | None = None,
        on_start: Task | None = None,
    ) -> None:
        """Start the thread.

        Args:
            next_task: called with the condition held. Returns the next task, or seconds after which to ask again, or
                None to wait for a notification. A stopping thread ends when there is no task.
            name: name of the thread.
            on_error: called on the thread with the exception of a task; None if tasks never raise.
            on_start: called first on the thread.
        """
        self.condition = threading.Condition()
        self.is_stopping = False
        self._next_task, self._on_error, self._on_start = next_task, on_error, on_start
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Call it once the owner has all data that `next_task` reads."""
        self._thread.start()

    def stop(self) -> None:
        """Run the tasks that `next_task` still returns, and end the thread."""
        with self.condition:
            self.is_stopping = True
            self.condition.notify()
        self._thread.join()

    def _run(self) -> None:
        if self._on_start is not None:
            self._on_start()
        while True:
            with self.condition:
                task = self._next_task()
                while task is None or isinstance(task, (int, float)):
                    if self.is_stopping:
                        return
                    self.condition.wait(task)
                    task = self._next_task()
            try:
                task()
            except Exception as error:
                if self._on_error is None:
                    raise
                self._on_error(error)
            # Not held through the next wait, or what it works on would stay in memory for as long.
            del task


class Asked(Generic[R]):
    """A function that one thread runs while another one waits for its result.

    Attributes:
        answer: its result or exception.
    """

    def __init__(self, work: Callable[[], R]) -> None:
        self._work = work
        self.answer: Future[R] = Future()

    def __call__(self) -> None:
        """Run it; never raises."""
        try:
            self.answer.set_result(self._work())
        except BaseException as error:
            self.answer.set_exception(error)

    def refuse(self, reason: str) -> None:
        """Answer that it will not be run."""
        self.answer.set_exception(RuntimeError(reason))
