"""Makes slow frames in advance, in a separate thread with a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_FULL_CHECK = 0.2  # s between checks whether frames are still wanted
_END = 10.0  # s of waiting for the current item after a stop


class LookAhead(Generic[T]):
    """Iterates over something slow, up to `depth` items ahead of the consumer. Each iteration restarts."""

    def __init__(
        self,
        items: Iterable[T],
        prepare: Callable[[T], T],
        depth: int,
        *,
        wait: bool = True,
        made: Callable[[int], None] | None = None,
    ) -> None:
        """Create it; nothing runs yet.

        Args:
            items: to iterate over; an exception of theirs is raised where the items are taken.
            prepare: applied to each item in advance.
            depth: maximum number of finished items not yet taken.
            wait: yield the first item only when `depth` of them are ready, so that playback begins with the full lead.
            made: called with the number of finished items, several times a second while the first one is waited for.
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
        except BaseException as error:  # for the consumer to see
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
