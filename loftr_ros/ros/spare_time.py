"""The front end's network lent to the search for places, in the time between frames."""

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
# (width, height) of an image as the network sees it, and whether parts of it are masked.
ImageKind = tuple[tuple[int, int], bool]

# Intervals between frames that the next one is foretold by.
_INTERVALS = 9
# Frames after which work that no gap is long enough for is done between two of them.
_PATIENCE = 3.0
# Of an interval, the part after which a frame that is late is waited for no longer.
_LATE = 1.5
# Seconds without a frame after which there is no stream.
_SILENCE = 1.0
# Seconds after a dropped frame for which more frames are taken to come than can be worked on.
_DROPPING = 1.0
# Seconds after which it is looked again whether the other thread is busy.
_LOOK_AGAIN = 0.01
# Seconds that work of an unknown kind is taken to last, and how slowly what is known is forgotten.
_UNKNOWN, _MEMORY = 0.1, 0.8


class SpareTime:
    """Foretells when there is time beside the frames.

    Work goes into a gap that it fits in: after a frame, if it will be done before the next is due. Where more frames
    come than are worked on, it takes the place of one: the newest is taken when it is done, so that no frame is older
    for it. Where neither holds for some frames, it goes between two of them, and the second one is late by it.

    Attributes:
        max_load: part of the time, 0 to 1, that other work may take while frames come; may be changed.
    """

    def __init__(self) -> None:
        """Begin without a stream, and without a bound."""
        self.max_load = 1.0
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)
        self._interval = 0.0
        self._arrived = self._dropped = self._rest_until = -float("inf")
        self._lasted: dict[Hashable, float] = {}

    def arrived(self, now: float) -> None:
        """A frame came, at monotonic seconds; one thread calls this."""
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
        """Work of a kind was done; it comes to no more than its part of the time."""
        self._lasted[kind] = max(seconds, _MEMORY * self._lasted.get(kind, 0.0) + (1 - _MEMORY) * seconds)
        self._rest_until = now + seconds * (1 / self.max_load - 1)

    def wait(self, kind: Hashable, since: float, is_busy: bool, now: float) -> float:
        """Seconds after which to ask again; 0 where work may begin.

        Args:
            kind: of work, which foretells how long it takes.
            since: when it was first asked for.
            is_busy: whether a frame waits or is in work.
            now: monotonic seconds.
        """
        if self._is_silent(now):
            return _LOOK_AGAIN if is_busy else 0.0
        if now < self._rest_until:
            return self._rest_until - now
        if now - self._dropped < _DROPPING or now - since > _PATIENCE * max(self._interval, _LOOK_AGAIN):
            return 0.0
        if is_busy:
            return _LOOK_AGAIN
        quiet = now - self._arrived
        if quiet + self._lasted.get(kind, _UNKNOWN) <= self._interval or quiet >= _LATE * self._interval:
            return 0.0
        return _LATE * self._interval - quiet

    def _is_silent(self, now: float) -> bool:
        """Whether the last frame is so long ago that there is no stream."""
        return now - self._arrived > max(_SILENCE, _PATIENCE * self._interval)


class LentMatcher:
    """A matcher that works on the front end's threads, when these have time; a `Matcher` for one other thread.

    One network then serves both, with all cores, and never against each other. Images of a size that is new to both are
    worked on where they are asked for: building a graph for them takes seconds.

    Attributes:
        spare: says when there is time.
    """

    def __init__(
        self,
        matcher: Matcher,
        spare: SpareTime,
        encoding: NewestWorker[Any],
        matching: NewestWorker[Any],
        kinds: Collection[ImageKind],
    ) -> None:
        """Lend.

        Args:
            matcher: the front end's.
            spare: says when.
            encoding, matching: the threads that call `Matcher.encode`, and the rest of it.
            kinds: of images that the front end has worked on by now.
        """
        self._matcher, self.spare = matcher, spare
        self._encoding, self._matching = encoding, matching
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
            return self._matcher.complete(features)  # which has nothing to do
        kind = kind_of(features)
        return self._run("complete", [kind], self._matching, lambda: self._matcher.complete(features))

    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """As of `Matcher`, on the thread that matches."""
        kinds = [kind_of(each) for each in (*keyframes, current)]
        return self._run("match", kinds, self._matching, lambda: self._matcher.match(keyframes, current))

    def geometry(self, work: Callable[[], R]) -> R:
        """Run what comes after matching, on the thread that matches."""
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
            is_busy = self._encoding.is_busy or self._matching.is_busy
            return self.spare.wait(what, since, is_busy, time.monotonic())

        return worker.spare(timed, wait).result()


def kind_of(features: ImageFeatures) -> ImageKind:
    """What decides which graphs an image needs."""
    return features.size, features.usable is not None


def one_torch_thread_here() -> None:
    """Let torch use no other threads than the calling one, and all others as many as before.

    Where two threads have others compute for them, there are more than cores; upon which all of them sleep between two
    operations instead of spinning, and everything takes twice as long.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # What threads begin with that have not computed yet is set along with it, so another thread sets that back.
    restoring = threading.Thread(target=torch.set_num_threads, args=(threads,))
    restoring.start()
    restoring.join()
