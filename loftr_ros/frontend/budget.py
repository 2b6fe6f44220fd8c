"""Latency control: chooses the number of keyframes and the resolution from measured times."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

# Scales of the configured resolution, per side. About 0.4 of 640x480 is the smallest that still matches anything.
SCALES = (1.0, 0.8, 0.64, 0.5, 0.4)
# Number of frames needed for a decision, and the largest number considered.
_LEAST, _MOST = 12, 60
# Frames ignored after a change, because kernels for a new shape are chosen in the first ones.
_SETTLING = 2
# A smaller effort must need at most the first part of the limit; a greater one must stay below the second.
_DOWN, _UP = 0.9, 0.75


@dataclass(frozen=True)
class Effort:
    """Resources spent on a frame.

    Attributes:
        keyframes: number of keyframes to match, at most.
        scale: part of the configured resolution, per side.
    """

    keyframes: int
    scale: float = 1.0


@dataclass(frozen=True)
class _Cost:
    """Seconds of one frame in total, and in the network's two parts."""

    total: float
    encode: float
    match: float


class LatencyBudget:
    """Chooses the greatest effort that keeps the 95th percentile of latencies below a limit.

    Less effort means fewer keyframes first, then a smaller image. Effort drops as soon as the limit is exceeded, and
    rises again after a period with spare time.
    """

    def __init__(self, limit: float, max_keyframes: int) -> None:
        """Begin with the greatest effort.

        Args:
            limit: seconds; 0 for none.
            max_keyframes: keyframes matched with a frame, at most.
        """
        self._limit = limit
        self._efforts = [Effort(count) for count in range(max_keyframes, 0, -1)]
        if limit > 0:
            self._efforts += [Effort(1, scale) for scale in SCALES[1:]]
        self._level = self._greatest = 0
        self._costs: deque[_Cost] = deque(maxlen=_MOST)
        self._settling = _SETTLING

    @property
    def efforts(self) -> tuple[Effort, ...]:
        """All possible efforts, the greatest first."""
        return tuple(self._efforts)

    @property
    def effort(self) -> Effort:
        """Effort of the next frame."""
        return self._efforts[self._level]

    def record(self, total: float, encode: float, match: float) -> None:
        """Record the seconds of a frame at the current effort."""
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
        elif len(self._costs) == _MOST and self._level > self._greatest:
            greater = self._level - 1
            if slowest * self._share(greater) <= _UP * self._limit:
                self._change(greater)

    def limit_to_less(self) -> None:
        """Never again use the current effort, because there is no memory for it; resolutions follow the keyframes."""
        if self._level == len(self._efforts) - 1 and self._efforts[-1].scale == 1.0:
            self._efforts += [Effort(1, scale) for scale in SCALES[1:]]
        self._change(min(self._level + 1, len(self._efforts) - 1))
        self._greatest = self._level

    def _share(self, level: int) -> float:
        """Predicted cost of a frame at another level, relative to the current one."""
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
