"""Shares the front end's network with the search for places, in the time between frames."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from loftr_ros.ros.worker import NewestWorker

if TYPE_CHECKING:  # these import torch, which the node loads when it is configured
    import torch
    from torch import Tensor

    from loftr_ros.matcher.config import NetworkConfig
    from loftr_ros.matcher.interface import ImageFeatures, Matcher, Matches

R = TypeVar("R")
# (width, height) of the network's input for an image, and whether it has a mask.
ImageKind = tuple[tuple[int, int], bool]

# Number of intervals between frames used to predict the next one.
_INTERVALS = 9
# Number of frames after which work that fits into no gap is done between two of them.
_PATIENCE = 3.0
# Part of an interval by which a frame may be late before it is no longer waited for.
_LATE = 1.5
# Seconds without a frame after which the stream counts as stopped.
_SILENCE = 1.0
# Seconds after a dropped frame for which the front end counts as overloaded.
_DROPPING = 1.0
# Seconds between checks whether the other thread is busy.
_POLL_PERIOD = 0.01
# Least part of the time that urgent work may take.
_URGENT_LOAD = 0.5
# Assumed seconds of unknown work, and weight of the old estimate in an update.
_UNKNOWN, _MEMORY = 0.1, 0.8


class SpareTime:
    """Predicts when there is time beside the frames.

    Work is done in a gap that it fits into: after a frame, if it will end before the next is due. If more frames come
    than are processed, it replaces one of them: the newest is processed afterwards, so no frame gets older. If neither
    is possible for some frames, it runs between two of them and delays the second one.

    Urgent work waits for no gap that it fits into: it is done after the current frame, and may take half of the time.

    Attributes:
        max_load: part of the time, 0 to 1, that other work may take while frames come; may be changed.
        is_urgent: whether other work is urgent; may be changed by any thread.
    """

    def __init__(self) -> None:
        """Begin without a stream and without a limit."""
        self.max_load = 1.0
        self.is_urgent = False
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)
        self._interval = 0.0
        self._arrived = self._dropped = self._rest_until = -float("inf")
        self._lasted: dict[Hashable, float] = {}

    def arrived(self, now: float) -> None:
        """A frame came, at monotonic seconds; called from one thread."""
        if self._is_silent(now):
            self._intervals.clear()
        else:
            self._intervals.append(now - self._arrived)
        self._interval = statistics.median(self._intervals) if self._intervals else 0.0
        self._arrived = now

    def dropped(self, now: float) -> None:
        """A frame was displaced by a newer one."""
        self._dropped = now

    def spent(self, kind: Hashable, seconds: float, now: float) -> None:
        """Work of a kind was done; it may take only its part of the time."""
        self._lasted[kind] = max(seconds, _MEMORY * self._lasted.get(kind, 0.0) + (1 - _MEMORY) * seconds)
        load = max(self.max_load, _URGENT_LOAD) if self.is_urgent else self.max_load
        self._rest_until = now + seconds * (1 / load - 1)

    def wait(self, kind: Hashable, since: float, is_busy: bool, now: float) -> float:
        """Seconds after which to ask again; 0 if work may begin.

        Args:
            kind: of work, for the prediction of its duration.
            since: time of the first request.
            is_busy: whether a frame waits or is being processed.
            now: monotonic seconds.
        """
        if self._is_silent(now):
            return _POLL_PERIOD if is_busy else 0.0
        if now < self._rest_until:
            return self._rest_until - now
        patience = 1.0 if self.is_urgent else _PATIENCE
        if now - self._dropped < _DROPPING or now - since > patience * max(self._interval, _POLL_PERIOD):
            return 0.0
        if is_busy:
            return _POLL_PERIOD
        if self.is_urgent:
            return 0.0
        quiet = now - self._arrived
        if quiet + self._lasted.get(kind, _UNKNOWN) <= self._interval or quiet >= _LATE * self._interval:
            return 0.0
        return _LATE * self._interval - quiet

    def _is_silent(self, now: float) -> bool:
        """Whether the last frame is too long ago for a running stream."""
        return now - self._arrived > max(_SILENCE, _PATIENCE * self._interval)


class LentMatcher:
    """A `Matcher` for one other thread that runs on the front end's threads when they have time.

    So one network serves both with all cores, and never in competition. Images of a size that is new to both are
    processed on the calling thread: building a graph for them takes seconds.

    Attributes:
        spare: decides when there is time.
    """

    def __init__(
        self,
        matcher: Matcher,
        spare: SpareTime,
        encoding: NewestWorker[Any],
        matching: NewestWorker[Any],
        is_busy: Callable[[], bool],
        kinds: Collection[ImageKind],
    ) -> None:
        """Create it.

        Args:
            matcher: the front end's.
            spare: decides when there is time.
            encoding, matching: the threads that call `Matcher.encode`, and the rest of it.
            is_busy: whether a frame waits or is being processed.
            kinds: kinds of images that the front end has processed so far.
        """
        self._matcher, self.spare = matcher, spare
        self._encoding, self._matching, self._is_busy = encoding, matching, is_busy
        self._kinds = kinds
        self._known: set[Hashable] = set()

    @property
    def config(self) -> NetworkConfig:
        """As of `Matcher`."""
        return self._matcher.config

    @property
    def fingerprint(self) -> str:
        """As of `Matcher`."""
        return self._matcher.fingerprint

    @property
    def has_fine_stage(self) -> bool:
        """As of `Matcher`."""
        return self._matcher.has_fine_stage

    @property
    def cell_size(self) -> int:
        """As of `Matcher`."""
        return self._matcher.cell_size

    @property
    def cell_offset(self) -> float:
        """As of `Matcher`."""
        return self._matcher.cell_offset

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """As of `Matcher`."""
        return self._matcher.fixed_size

    @property
    def device(self) -> torch.device:
        """As of `Matcher`."""
        return self._matcher.device

    @property
    def dtype(self) -> torch.dtype:
        """As of `Matcher`."""
        return self._matcher.dtype

    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        """As of `Matcher`, on the thread that encodes."""
        height, width = image.shape
        kind = (width, height), usable is not None
        return self._run("encode", [kind], self._encoding, lambda: self._matcher.encode(image, usable))

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        """As of `Matcher`, on the thread that matches."""
        if features.unsmoothed is None:
            return self._matcher.complete(features)  # which does nothing
        kind = kind_of(features)
        return self._run("complete", [kind], self._matching, lambda: self._matcher.complete(features))

    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """As of `Matcher`, on the thread that matches."""
        kinds = [kind_of(each) for each in (*keyframes, current)]
        return self._run("match", kinds, self._matching, lambda: self._matcher.match(keyframes, current))

    def geometry(self, work: Callable[[], R]) -> R:
        """Run the geometry after matching, on the thread that matches."""
        return self._when_there_is_time("geometry", self._matching, work)

    def _run(self, stage: str, kinds: Sequence[ImageKind], worker: NewestWorker[Any], work: Callable[[], R]) -> R:
        """Run a stage of the network on images."""
        of_the_stream = len(set(kinds)) == 1 and kinds[0] in self._kinds
        what = stage, *kinds
        if not of_the_stream and what not in self._known:
            self._known.add(what)
            return work()
        return self._when_there_is_time(what, worker, work)

    def _when_there_is_time(self, what: Hashable, worker: NewestWorker[Any], work: Callable[[], R]) -> R:
        since = time.monotonic()

        def timed() -> R:
            start = time.monotonic()
            try:
                return work()
            finally:
                now = time.monotonic()
                self.spare.spent(what, now - start, now)

        def wait() -> float:
            return self.spare.wait(what, since, self._is_busy(), time.monotonic())

        return worker.spare(timed, wait).result()


def kind_of(features: ImageFeatures) -> ImageKind:
    """The properties that decide which graphs an image needs."""
    return features.size, features.usable is not None


def one_torch_thread_here() -> None:
    """Limit torch to the calling thread here, and keep the number of threads elsewhere.

    If two threads use worker threads, there are more threads than cores. All of them then sleep between two operations
    instead of spinning, and everything takes twice as long.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # This also sets the initial value for threads that have not computed yet, so another thread restores it.
    restoring = threading.Thread(target=torch.set_num_threads, args=(threads,))
    restoring.start()
    restoring.join()
