"""What became of every frame, how long it took, and what went wrong: counted under one lock."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loftr_ros.frontend.pipeline import STAGES as FRONT_END_STAGES

# From a message's receipt to its results' publication, in order.
STAGES = ("decode", "wait", *FRONT_END_STAGES, "publish", "total")


@dataclass(frozen=True)
class Snapshot:
    """The counters at one moment.

    Attributes:
        received, decoded, dropped, failed, processed: frames.
        errors: failures by kind.
        last_error: the newest in words.
        latency_median, latency_p99: seconds, one entry for each of STAGES; NaN before the first frame.
        window: frames that the latencies are taken over.
        rate: frames processed a second, over the window.
        last_frame_id: optical frame of the newest image.
    """

    received: int
    decoded: int
    dropped: int
    failed: int
    processed: int
    errors: Mapping[str, int]
    last_error: str
    latency_median: tuple[float, ...]
    latency_p99: tuple[float, ...]
    window: int
    rate: float
    last_frame_id: str


class Statistics:
    """Thread-safe counters."""

    def __init__(self, window: int) -> None:
        self._lock = threading.Lock()
        self._received = self._decoded = self._dropped = self._failed = self._processed = 0
        self._errors: Counter[str] = Counter()
        self._last_error = ""
        self._last_frame_id = ""
        self._latencies: deque[tuple[float, ...]] = deque(maxlen=window)
        self._finished: deque[float] = deque(maxlen=window)

    def received(self, frame_id: str) -> None:
        """An image message reached the node."""
        with self._lock:
            self._received += 1
            self._last_frame_id = frame_id

    def decoded(self) -> None:
        """It was decoded."""
        with self._lock:
            self._decoded += 1

    def dropped(self) -> None:
        """A newer frame took its place."""
        with self._lock:
            self._dropped += 1

    def failed(self, kind: str, message: str) -> None:
        """It was refused."""
        with self._lock:
            self._failed += 1
        self.error(kind, message)

    def error(self, kind: str, message: str) -> None:
        """Something went wrong that is not a frame's fault."""
        with self._lock:
            self._errors[kind] += 1
            self._last_error = message

    def processed(self, latencies: Mapping[str, float], now: float) -> None:
        """Its results were published.

        Args:
            latencies: seconds by stage.
            now: monotonic seconds.
        """
        with self._lock:
            self._processed += 1
            self._latencies.append(tuple(latencies.get(stage, 0.0) for stage in STAGES))
            self._finished.append(now)

    def snapshot(self) -> Snapshot:
        """All counters, as of one moment."""
        with self._lock:
            latencies = np.asarray(self._latencies, dtype=np.float64).reshape(-1, len(STAGES))
            elapsed = self._finished[-1] - self._finished[0] if len(self._finished) > 1 else 0.0
            values = dict(
                received=self._received,
                decoded=self._decoded,
                dropped=self._dropped,
                failed=self._failed,
                processed=self._processed,
                errors=dict(self._errors),
                last_error=self._last_error,
                last_frame_id=self._last_frame_id,
            )
        unknown = (float("nan"),) * len(STAGES)
        return Snapshot(
            **values,  # type: ignore[arg-type]
            latency_median=tuple(np.median(latencies, axis=0)) if len(latencies) else unknown,
            latency_p99=tuple(np.percentile(latencies, 99, axis=0)) if len(latencies) else unknown,
            window=len(latencies),
            rate=(len(latencies) - 1) / elapsed if elapsed else 0.0,
        )
