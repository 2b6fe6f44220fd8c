"""Staying inside a latency: how many keyframes are matched, at which resolution, by what frames have really cost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

# Parts of the configured resolution, along a side; 0.4 of 640x480 is about the least that matches anything.
SCALES = (1.0, 0.8, 0.64, 0.5, 0.4)
# Frames that a verdict needs, and that it is taken over at most.
_LEAST, _MOST = 12, 60
# Frames after a change that do not count: a new shape's kernels are chosen in the first ones.
_SETTLING = 2
# Parts of the limit that a smaller effort is to need, and that a greater one must not come over.
_DOWN, _UP = 0.9, 0.75


@dataclass(frozen=True)
class Effort:
    """What is spent on a frame.

    Attributes:
        keyframes: that it is matched with, at most.
        scale: part of the configured resolution, along a side.
    """

    keyframes: int
    scale: float = 1.0


@dataclass(frozen=True)
class _Cost:
    """Seconds of one frame, and of these those for the network's two parts."""

    total: float
    encode: float
    match: float


class LatencyBudget:
    """Chooses the greatest effort whose 95th percentile of latencies stays below a limit.

    Less effort means fewer keyframes first, then a smaller image. It comes at once where the limit is passed; more
    comes back after a while in which there was room for it.
    """

    def __init__(self, limit: float, max_keyframes: int) -> None:
        """Begin with the greatest effort.

        Args:
            limit: seconds; 0 for none.
            max_keyframes: matched with a frame, at most.
        """
        self._limit = limit
        self._efforts = [Effort(count) for count in range(max_keyframes, 0, -1)]
        if limit > 0:
            self._efforts += [Effort(1, scale) for scale in SCALES[1:]]
        self._level = 0
        self._costs: deque[_Cost] = deque(maxlen=_MOST)
        self._settling = _SETTLING

    @property
    def efforts(self) -> tuple[Effort, ...]:
        """All that may be chosen, the greatest first."""
        return tuple(self._efforts)

    @property
    def effort(self) -> Effort:
        """For the next frame."""
        return self._efforts[self._level]

    def record(self, total: float, encode: float, match: float) -> None:
        """What a frame cost with the present effort, in seconds."""
        if not self._limit:
            return
        if self._settling:
            self._settling -= 1
            return
        self._costs.append(_Cost(total, encode, match))
        if len(self._costs) < _LEAST:
            return
        slowest = float(np.percentile([cost.total for cost in self._costs], 95))
        if slowest > self._limit:
            lower = range(self._level + 1, len(self._efforts))
            fitting = (level for level in lower if slowest * self._share(level) <= _DOWN * self._limit)
            self._change(next(fitting, len(self._efforts) - 1))
        elif len(self._costs) == _MOST and self._level:
            greater = self._level - 1
            if slowest * self._share(greater) <= _UP * self._limit:
                self._change(greater)

    def _share(self, level: int) -> float:
        """What a frame would cost at another level, in units of what it costs now."""
        now, then = self.effort, self._efforts[level]
        pixels = (then.scale / now.scale) ** 2
        total, encode, match = np.median([(c.total, c.encode, c.match) for c in self._costs], axis=0)
        rest = max(total - encode - match, 0.0)
        return float((rest + pixels * (encode + match * then.keyframes / now.keyframes)) / max(total, 1e-9))

    def _change(self, level: int) -> None:
        if level == self._level:
            return
        self._level = level
        self._costs.clear()
        self._settling = _SETTLING
