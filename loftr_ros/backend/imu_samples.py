"""The newest samples of an inertial sensor: what a stretch between two keyframes is integrated from."""

from __future__ import annotations

import itertools
import threading
from collections import deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Seconds of samples in memory, the longest gap between two samples, and the least jump back of a clock.
_KEPT, _LONGEST_GAP, _JUMP = 90.0, 0.1, 1.0


class ImuSamples:
    """Angular velocities and accelerations by their stamps. Samples may come from another thread than queries.

    Attributes:
        camera_from_imu: (4, 4) T_camera_imu, metres; None while it is not known, and then nothing is integrated.
    """

    def __init__(self, camera_from_imu: ArrayLike | None = None) -> None:
        """Begin without samples."""
        self.camera_from_imu = None if camera_from_imu is None else np.asarray(camera_from_imu, np.float64)
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, ...]] = deque()
        self._stamps: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest sample; None before the first."""
        with self._lock:
            return self._stamps[-1] if self._stamps else None

    def add(self, stamp_ns: int, rate: ArrayLike, acceleration: ArrayLike) -> None:
        """Add a sample; one that is not newer than the last, or not finite, is ignored.

        One that is more than a second older begins anew.

        Args:
            stamp_ns: of the sample.
            rate: (3,) angular velocity about the sensor's axes, rad/s.
            acceleration: (3,) specific force along them, m/s^2: at rest it points up.
        """
        sample = np.concatenate([np.asarray(rate, np.float64), np.asarray(acceleration, np.float64)])
        if sample.shape != (6,) or not np.isfinite(sample).all():
            return
        with self._lock:
            if self._stamps and stamp_ns <= self._stamps[-1]:
                if stamp_ns > self._stamps[-1] - _JUMP * 1e9:
                    return
                self._stamps.clear()  # a recording or a simulation that starts again
                self._samples.clear()
            self._stamps.append(stamp_ns)
            self._samples.append(tuple(sample.tolist()))
            while self._stamps[0] < stamp_ns - _KEPT * 1e9:
                self._stamps.popleft()
                self._samples.popleft()

    def part(self, first_ns: int, last_ns: int) -> ImuSamples:
        """The samples of a time alone."""
        found = ImuSamples(self.camera_from_imu)
        with self._lock:
            kept = [(at, of) for at, of in zip(self._stamps, self._samples, strict=True) if first_ns <= at <= last_ns]
        found._stamps.extend(at for at, _ in kept)
        found._samples.extend(of for _, of in kept)
        return found

    def between(self, stamps_ns: list[int]) -> list[tuple[Array, Array]] | None:
        """Samples of the stretches between consecutive times.

        Args:
            stamps_ns: at least two, ascending.

        Returns:
            Of each stretch (M,) the seconds of its M steps, and (M, 6) rates and accelerations in their middles. None
            where samples are missing.
        """
        with self._lock:
            stamps, samples = np.array(self._stamps, np.int64), np.array(self._samples, np.float64)
        gap = int(_LONGEST_GAP * 1e9)
        first, last = stamps_ns[0], stamps_ns[-1]
        if not len(stamps) or stamps[0] > first or stamps[-1] < last:
            return None
        chosen = slice(
            max(int(np.searchsorted(stamps, first, side="right")) - 1, 0), int(np.searchsorted(stamps, last)) + 1
        )
        stamps, samples = stamps[chosen], samples[chosen]
        if len(stamps) < 2 or np.diff(stamps).max() > gap:
            return None
        seconds, found = (stamps - first) / 1e9, []
        for start, end in itertools.pairwise(stamps_ns):
            inside = (stamps > start) & (stamps < end)
            times = np.concatenate([[(start - first) / 1e9], seconds[inside], [(end - first) / 1e9]])
            at = np.stack([np.interp(times, seconds, samples[:, k]) for k in range(6)], axis=1)
            found.append((np.diff(times), (at[1:] + at[:-1]) / 2))
        return found
