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


class FrontEndBehind(FrontEnd):
    """As the node's, whose network has a thread of its own; here it is done after a number of frames."""

    def __init__(self, matcher: Matcher | PairMatcher, config: FrontEndConfig, frames: int | None) -> None:
        """`frames` is None for a network that flow waits for."""
        super().__init__(matcher, config)
        self.now = 0
        if frames is not None:
            self.use_background(lambda work: _Later(self, work, self.now + frames))

    def process(self, frame: Frame) -> FrontEndResult:
        self.now += 1
        return super().process(frame)


class _Later(Future[R]):
    def __init__(self, clock: FrontEndBehind, work: Callable[[], R], due: int) -> None:
        super().__init__()
        self._clock, self._work, self._due = clock, work, due

    def done(self) -> bool:
        return self._clock.now >= self._due

    def result(self, timeout: float | None = None) -> R:
        return self._work()
