"""Counters of frames, latencies and errors, under one lock."""

from __future__ import annotations

import enum
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Stages from a message's receipt to its results' publication, in order. Those in the middle are the front end's. They
# are repeated here, because importing them would load torch before the node is up.
STAGES = ("wait", "decode", "encode", "match", "refine", "geometry", "keyframe", "publish", "total")

# Seconds over which the rate is measured. After this many seconds and this many typical intervals, no more frames are
# expected.
_RATE_SECONDS = 5.0
_RATE_PATIENCE = 3.0


class Severity(enum.Enum):
    """Severity of unpaired images."""

    USUAL = "at the start, before all topics are connected"
    BY_DESIGN = "the partner is published less often than the image"
    LOSS = "single images"
    NONE_COMES = "every image"


@dataclass(frozen=True)
class Snapshot:
    """The counters at one moment.

    Attributes:
        received, decoded, dropped, failed, processed: frames.
        unpaired: frames whose CameraInfo, right or depth image did not come.
        lost: messages of all inputs that the middleware reported as lost.
        unmatched: processed frames with too few matches with every keyframe.
        useless: processed frames with nothing to match.
        located: processed frames with a known location in the trajectory.
        frame_matches: processed frames by how they were matched, as names of `FrameMatch`.
        errors: failures by kind.
        last_error: the newest message.
        latency_median, latency_p99: seconds, one entry for each of STAGES; NaN before the first frame.
        window: number of frames of the latencies.
        rate: processed frames per second, over the last seconds; it falls to 0 when no more come.
        last_frame_id: optical frame of the newest image.
    """

    received: int
    decoded: int
    dropped: int
    failed: int
    processed: int
    unmatched: int
    useless: int
    located: int
    unpaired: int
    lost: int
    frame_matches: Mapping[str, int]
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
        self._received = self._decoded = self._dropped = self._failed = self._processed = self._unmatched = 0
        self._useless = self._located = 0
        self._unpaired = self._lost = 0
        self._frame_matches: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._last_error = ""
        self._last_frame_id = ""
        # Latencies by stage, and the monotonic seconds of the frame's end.
        self._finished: deque[tuple[tuple[float, ...], float]] = deque(maxlen=window)

    def set_window(self, window: int) -> None:
        """Use this many frames for latencies and rate; counted frames stay."""
        with self._lock:
            self._finished = deque(self._finished, maxlen=window)

    @property
    def last_frame_id(self) -> str:
        """Optical frame of the newest image; empty before the first."""
        return self._last_frame_id

    def received(self, frame_id: str) -> None:
        """An image message reached the node."""
        with self._lock:
            self._received += 1
            self._last_frame_id = frame_id

    def decoded(self) -> None:
        """A message was decoded."""
        with self._lock:
            self._decoded += 1

    def dropped(self, number: int = 1) -> None:
        """A newer frame replaced it."""
        with self._lock:
            self._dropped += number

    def unpaired(self, number: int, kind: str = "", message: str = "") -> None:
        """Partners of `number` frames did not come: an error of a kind, or none."""
        with self._lock:
            self._unpaired += number
            if kind:
                self._count_error(kind, message, number)

    def lost(self, number: int) -> None:
        """The middleware reported lost messages of an input."""
        with self._lock:
            self._lost += number

    def failed(self, kind: str, message: str) -> None:
        """A frame was refused."""
        with self._lock:
            self._failed += 1
            self._count_error(kind, message)

    def error(self, kind: str, message: str) -> None:
        """An error that is not caused by a frame."""
        with self._lock:
            self._count_error(kind, message)

    def processed(
        self,
        latencies: Mapping[str, float],
        now: float,
        unmatched: bool = False,
        useless: bool = False,
        located: bool = False,
        frame_match: str = "",
    ) -> None:
        """Results of a frame were published.

        Args:
            latencies: seconds by stage; missing stages took no time.
            now: monotonic seconds.
            unmatched: there were keyframes, and each had too few matches.
            useless: the frame has nothing to match.
            located: its location in the trajectory is known.
            frame_match: how it was matched; empty if it was not.
        """
        with self._lock:
            self._processed += 1
            if frame_match:
                self._frame_matches[frame_match] += 1
            self._unmatched += unmatched
            self._useless += useless
            self._located += located
            self._finished.append((tuple(latencies.get(stage, 0.0) for stage in STAGES), now))

    def snapshot(self, now: float | None = None) -> Snapshot:
        """All counters at one moment.

        Args:
            now: monotonic seconds; None for the clock's.
        """
        with self._lock:
            counters = dict(
                received=self._received,
                decoded=self._decoded,
                dropped=self._dropped,
                failed=self._failed,
                processed=self._processed,
                unmatched=self._unmatched,
                useless=self._useless,
                located=self._located,
                unpaired=self._unpaired,
                lost=self._lost,
            )
            errors, last_error, last_frame_id = dict(self._errors), self._last_error, self._last_frame_id
            frame_matches = dict(self._frame_matches)
            finished = list(self._finished)
        # Outside of the lock: the inference thread must not wait for percentiles.
        latencies = np.asarray([stages for stages, _ in finished], dtype=np.float64).reshape(-1, len(STAGES))
        unknown = (float("nan"),) * len(STAGES)
        return Snapshot(
            **counters,
            frame_matches=frame_matches,
            errors=errors,
            last_error=last_error,
            last_frame_id=last_frame_id,
            latency_median=tuple(np.median(latencies, axis=0).tolist()) if finished else unknown,
            latency_p99=tuple(np.percentile(latencies, 99, axis=0).tolist()) if finished else unknown,
            window=len(finished),
            rate=_rate([end for _, end in finished], time.monotonic() if now is None else now),
        )

    def _count_error(self, kind: str, message: str, number: int = 1) -> None:
        self._errors[kind] += number
        self._last_error = message


def _rate(ends: list[float], now: float) -> float:
    """Frames per second.

    Measured over the last seconds, or between the last two frames if they are rarer. It is limited by the time since
    the last frame, and 0 after a long silence.

    Args:
        ends: completion times of the newest frames in seconds, the oldest first.
        now: seconds.
    """
    recent = [end for end in ends if now - end <= _RATE_SECONDS]
    if len(recent) < 2:
        recent = ends[-2:]
    if len(recent) < 2:
        return 0.0
    between, silent = (recent[-1] - recent[0]) / (len(recent) - 1), now - recent[-1]
    if silent > max(_RATE_SECONDS, _RATE_PATIENCE * between):
        return 0.0
    longest = max(between, silent)
    return 1 / longest if longest > 0 else 0.0
