"""Archiving and loop search in their own thread, beside the front end."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from loftr_ros.frontend.keyframes import EncodedFrame
from loftr_ros.places.config import ArchiveConfig
from loftr_ros.places.detector import LoopClosure, LoopDetector
from loftr_ros.places.keyframe import ArchivedKeyframe
from loftr_ros.places.view import NewKeyframe, View
from loftr_ros.threads import Asked, Task, WorkThread

R = TypeVar("R")

# Keyframes that may wait for a slow disk. Beyond that, the oldest is lost.
_LONGEST_QUEUE = 100
# Niceness of the thread relative to the front end (`nice`).
_NICENESS = 5
# Seconds between measurements of the archive's size.
_MEASURE_PERIOD = 2.0


@dataclass
class Counts:
    """Counters.

    Attributes:
        archived, lost: keyframes that were written, and those lost because the archive was too slow or failed.
        searched, skipped: keyframes that were searched for, and those replaced by a newer one before.
        closures: loops found.
        held, held_bytes: keyframes in the archive, of all robots, and their size, as of some seconds ago.
    """

    archived: int = 0
    lost: int = 0
    searched: int = 0
    skipped: int = 0
    closures: int = 0
    held: int = 0
    held_bytes: int = 0


class PlaceRecognition:
    """Writes keyframes and searches for loops without blocking its callers.

    Keyframes to archive wait in a queue. Of the images to search for, only the newest keyframe waits, or the newest
    other image while one could confirm a place. The rest is dropped.
    """

    def __init__(
        self,
        load: Callable[[], LoopDetector],
        archive: ArchiveConfig,
        on_closure: Callable[[LoopClosure], None],
        on_archived: Callable[[ArchivedKeyframe], None],
        on_error: Callable[[Exception], None],
        on_known: Callable[[ArchivedKeyframe], None] | None = None,
        on_urgent: Callable[[bool], None] | None = None,
    ) -> None:
        """Start the thread, and create the detector on it.

        Args:
            load: creates the detector.
            archive: compression of images.
            on_closure: called with each loop, on the thread.
            on_archived: called with each keyframe once it is on disk, on the thread.
            on_known: called with a keyframe of the same stream that shows the place of an image that the front end
                could not locate, on the thread.
            on_error: called with the error of an image or keyframe; the thread continues with the next one.
            on_urgent: called before each search with whether it has precedence, since the session has just begun and
                its place is unknown; on the thread.

        Raises:
            Whatever `load` raises; the thread has then ended.
        """
        self.counts = Counts()
        self._archive = archive
        self._on_closure, self._on_archived = on_closure, on_archived
        self._on_known = on_known
        self._on_urgent = on_urgent
        self._commands: deque[Asked[Any]] = deque()
        self._arrived: deque[NewKeyframe] = deque()
        self._view: tuple[View, EncodedFrame | None] | None = None
        self._measure_after = 0.0
        self._changed = False
        self._thread = WorkThread(self._next, "loftr_places", on_error, _be_nice)
        self._condition = self._thread.condition
        self._thread.start()
        try:
            self.ask(lambda: self._begin(load))
        except BaseException:
            self.stop()
            raise

    def put(self, view: View, arrived: NewKeyframe | None = None, encoded: EncodedFrame | None = None) -> None:
        """Queue an image, a keyframe to archive, and the image's features if available; never blocks."""
        with self._condition:
            if arrived is not None:
                self._queue(arrived)
            keyframe_waits = self._view is not None and self._view[0].name is not None
            if view.name is not None:
                self.counts.skipped += int(keyframe_waits)
                self._view = view, encoded
            elif (self.detector.is_waiting or view.is_lost) and not keyframe_waits:
                self._view = view, encoded
            self._condition.notify()

    def archive(self, arrived: NewKeyframe) -> None:
        """Queue a keyframe for archiving only; never blocks."""
        with self._condition:
            self._queue(arrived)
            self._condition.notify()

    def ask(self, question: Callable[[], R], timeout: float | None = None) -> R:
        """Run a function on the thread after the waiting keyframes, and return its result or raise its error."""
        answer = self.submit(question)
        return answer.result(timeout)

    def submit(self, question: Callable[[], R]) -> Future[R]:
        """As `ask`, without waiting."""
        asked = Asked(question)
        with self._condition:
            if self._thread.is_stopping:
                asked.refuse("the search for places has ended")
            else:
                self._commands.append(asked)
                self._condition.notify()
        return asked.answer

    def stop(self) -> None:
        """Write the waiting keyframes, and end the thread."""
        with self._condition:
            self._view = None
        self._thread.stop()

    def _queue(self, arrived: NewKeyframe) -> None:
        self._arrived.append(arrived)
        if len(self._arrived) > _LONGEST_QUEUE:
            self._arrived.popleft()
            self.counts.lost += 1

    def _begin(self, load: Callable[[], LoopDetector]) -> None:
        self._changed = False
        self.detector = load()
        self._measure()

    def _next(self) -> Task | float | None:
        """Writing comes first, so that nothing is lost."""
        if self._arrived:
            arrived = self._arrived.popleft()
            self._changed = True
            return lambda: self._write(arrived)
        if self._commands:
            self._changed = True  # the command may have loaded another archive
            return self._commands.popleft()
        if self._view is not None and not self._thread.is_stopping:
            view, self._view = self._view, None
            return lambda: self._search(*view)
        if not self._changed:
            return None
        seconds = self._measure_after - time.monotonic()
        return seconds if seconds > 0 else self._measure

    def _write(self, arrived: NewKeyframe) -> None:
        if self.detector.archive.is_read_only:  # already reported when it was opened
            self.counts.lost += 1
            return
        try:
            keyframe = arrived.archived(self._archive.jpeg_quality)
            self.detector.archive.add(keyframe)
        except Exception:
            self.counts.lost += 1
            raise
        self.counts.archived += 1
        self._on_archived(keyframe)

    def _measure(self) -> None:
        """Measure the archive on this thread, because it takes a while."""
        self._changed = False
        self._measure_after = time.monotonic() + _MEASURE_PERIOD
        archive = self.detector.archive
        self.counts.held, self.counts.held_bytes = len(archive), archive.size_bytes

    def _search(self, view: View, encoded: EncodedFrame | None) -> None:
        if self._on_urgent is not None:
            self._on_urgent(self.detector.seeks_first_place(view))
        if view.is_lost:
            known = self.detector.known_place(view, encoded)
            if known is not None and self._on_known is not None:
                self._on_known(known)
            return
        try:
            closures = self.detector.process(view, encoded)
        finally:
            self.counts.searched += int(view.name is not None)
        self.counts.closures += len(closures)
        for closure in closures:
            self._on_closure(closure)


def _be_nice() -> None:
    """Lower this thread's priority below the front end's, where the system supports it.

    By little only: while this thread holds Python's lock and gets no core, the front end waits for the lock.
    """
    if hasattr(os, "setpriority"):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)  # on Linux this applies to one thread
