"""A front end whose network takes a stated number of frames, so that what it finds does not depend on the machine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.matcher.interface import Matcher

R = TypeVar("R")
HELP = "frames that the network takes while optical flow goes on, as in the node; without, flow waits for it"


class LaterThread:
    """Stands for another thread: what is given to it is done some calls of `tick` later, or when it is waited for.

    Attributes:
        waited: how often the caller waited.
    """

    def __init__(self, delay: int) -> None:
        """`delay` is the number of ticks after which work is done."""
        self.now, self.waited, self._delay = 0, 0, delay

    def tick(self) -> None:
        """Let one frame pass."""
        self.now += 1

    def submit(self, work: Callable[[], R]) -> Future[R]:
        return _Later(self, work, self.now + self._delay)


class _Later(Future[R]):
    def __init__(self, thread: LaterThread, work: Callable[[], R], due: int) -> None:
        super().__init__()
        self._thread, self._work, self._due = thread, work, due

    def done(self) -> bool:
        return self._thread.now >= self._due

    def result(self, timeout: float | None = None) -> R:
        self._thread.waited += not self.done()
        return self._work()


class FrontEndBehind(FrontEnd):
    """As the node's, whose network has a thread of its own; here it is done after a number of frames."""

    def __init__(self, matcher: Matcher | PairMatcher, config: FrontEndConfig, frames: int | None) -> None:
        """`frames` is None for a network that flow waits for."""
        super().__init__(matcher, config)
        self._thread = LaterThread(frames or 0)
        if frames is not None:
            self.use_background(self._thread.submit)

    def process(self, frame: Frame) -> FrontEndResult:
        self._thread.tick()
        return super().process(frame)
