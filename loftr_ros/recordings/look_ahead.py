"""Frames that take long to make, made ahead of time in a thread of their own, a bounded number at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_FULL_CHECK = 0.2  # s between two looks whether anybody still wants frames
_END = 10.0  # s that the item in the making is given when nobody wants any more


class LookAhead(Generic[T]):
    """Goes through something slow up to `depth` items ahead of who takes them. Iterating again begins again."""

    def __init__(
        self,
        items: Iterable[T],
        prepare: Callable[[T], T],
        depth: int,
        *,
        wait: bool = True,
        made: Callable[[int], None] | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            items: to go through; whatever it raises is raised where its items are taken.
            prepare: what to do to each ahead of time.
            depth: items that are made and not taken yet, at most.
            wait: hand out the first item only when `depth` of them are there: whoever plays them begins with all of
                the lead.
            made: is told how many are there, several times a second while the first one is waited for.
        """
        self._items, self._prepare, self._depth = items, prepare, depth
        self._wait, self._made = wait, made

    def __iter__(self) -> Iterator[T]:
        run = _Run(self._items, self._prepare, self._depth, self._wait, self._made)
        run.start()
        try:
            yield from run.taken()
        finally:
            run.stop()


class _Run(Generic[T]):
    def __init__(
        self,
        items: Iterable[T],
        prepare: Callable[[T], T],
        depth: int,
        wait: bool,
        made: Callable[[int], None] | None,
    ) -> None:
        self._items, self._prepare = items, prepare
        self._wait, self._made = wait, made
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, name="look-ahead", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(_END)  # a thread that still runs when the interpreter ends may crash it

    def taken(self) -> Iterator[T]:
        while self._wait and not self._ready.wait(_FULL_CHECK):
            if self._made is not None:
                self._made(self._queue.qsize())
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]

    def _work(self) -> None:
        end: BaseException | None = None
        try:
            for item in self._items:
                if not self._put((self._prepare(item),)):
                    return
        except BaseException as error:  # for who takes them to see
            end = error
        self._ready.set()
        if end is None or self._put(end):
            self._put(None)

    def _put(self, item: tuple[T] | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_FULL_CHECK)
            except queue.Full:
                self._ready.set()
                continue
            if self._queue.full():
                self._ready.set()
            return True
        return False
