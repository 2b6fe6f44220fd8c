"""Processing stages of a frame in the node: on one thread, or on two to encode a frame while the last one is
matched.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from loftr_ros.ros.input.inputs import Arrival, FrameDecoder
from loftr_ros.ros.output.outputs import Outputs
from loftr_ros.ros.output.reports import ErrorLog, error_kind
from loftr_ros.ros.output.statistics import Statistics
from loftr_ros.ros.scheduling import Scheduling
from loftr_ros.ros.spare_time import ImageKind, LentMatcher, SpareTime, kind_of
from loftr_ros.ros.worker import NewestWorker

if TYPE_CHECKING:
    from loftr_ros.frontend.frame import Frame
    from loftr_ros.frontend.keyframes import EncodedFrame, PreparedFrame
    from loftr_ros.frontend.pipeline import FrontEnd, FrontEndResult
    from loftr_ros.matcher.interface import Matcher

R = TypeVar("R")


@dataclass(frozen=True)
class _Encoded:
    """A frame between the two threads; times are monotonic seconds."""

    frame: EncodedFrame | PreparedFrame
    received: float
    begun: float
    decoded: float
    encoded: float


class FrameStages:
    """Decodes, encodes, matches and publishes; only the newest frame waits before each thread.

    With two threads the first one decodes and encodes. The second one owns the front end's state and its keyframes.

    Attributes:
        spare: predicts when the threads have time for other work of the network.
    """

    def __init__(
        self,
        load: Callable[[], FrontEnd],
        decoder: FrameDecoder,
        statistics: Statistics,
        errors: ErrorLog,
        is_alive: Callable[[], bool],
        pipelined: bool,
        scheduling: Scheduling,
    ) -> None:
        """Start the threads and load the network on the one that matches.

        Args:
            load: creates the front end.
            decoder: converts messages to frames.
            statistics, errors: count the outcome of each frame.
            is_alive: whether the publishers still have a context.
            pipelined: use two threads. They process more frames per second if there are cores for both; if not, they
                only slow each other down.
            scheduling: priorities and cores of the threads.

        Raises:
            Whatever `load` raises; the threads have then ended.
        """
        self._decoder = decoder
        self._outputs: Outputs | None = None
        self._observe: Callable[[FrontEndResult], None] | None = None
        self._gpu_lost: Callable[[str], None] | None = None
        self._statistics = statistics
        self._errors = errors
        self._is_alive = is_alive
        self.spare = SpareTime()
        self._kinds: set[ImageKind] = set()
        self._encoding: NewestWorker[Any]
        if pipelined:
            matching: NewestWorker[_Encoded] = NewestWorker(self._match, self._dropped, "loftr_match")
            self._encoding = NewestWorker(lambda a: self._encode(a, matching.put), self._dropped, "loftr_encode")
            self._matching: NewestWorker[Any] = matching
        else:
            self._encoding = NewestWorker(lambda a: self._encode(a, self._match), self._dropped, "loftr_inference")
            self._matching = self._encoding
        self._network: NewestWorker[Any] = NewestWorker(lambda _: None, lambda _: None, "loftr_network")
        self._threads = (*((self._encoding,) if pipelined else ()), self._matching, self._network)
        try:
            # First, because the network's own threads inherit their cores from the thread that loads it.
            for thread in {self._encoding, self._matching}:
                thread.ask(scheduling.of_frames)
            self._network.ask(scheduling.of_background)
            # On a thread that will run it: one more thread in torch makes more OpenMP threads than cores. They then
            # sleep between two operations instead of spinning, and everything takes twice as long.
            self.front_end = self._matching.ask(load)
            self.front_end.use_background(self._submit)
        except BaseException:
            self.stop()
            raise

    @property
    def pending(self) -> int:
        """Frames waiting or being processed."""
        return sum(thread.pending for thread in self._threads)

    def publish_by(self, outputs: Outputs) -> None:
        """Set the outputs, before the first frame."""
        self._outputs = outputs

    def observe_by(self, observe: Callable[[FrontEndResult], None]) -> None:
        """Set a further receiver of each frame's result, on the thread that matches; before the first frame."""
        self._observe = observe

    def lend(self, matcher: Matcher) -> LentMatcher:
        """The front end's network for another thread; it runs on these threads when they have time."""
        encoding, matching = self._encoding, self._matching
        if self.front_end.uses_background:  # no frame waits for what is done there
            encoding = matching = self._network

        def is_busy() -> bool:
            return self._encoding.is_busy or self._matching.is_busy

        return LentMatcher(matcher, self.spare, encoding, matching, is_busy, self._kinds)

    def gpu_lost_by(self, lost: Callable[[str], None]) -> None:
        """Set a receiver of the message that this process has lost its GPU, on one of these threads."""
        self._gpu_lost = lost

    def put(self, arrival: Arrival) -> None:
        """Make a message the newest."""
        self.spare.arrived(time.monotonic())
        self._encoding.put(arrival)

    def call(self, command: Callable[[FrontEnd, Outputs], object]) -> None:
        """Run a command on the front end, between two frames."""

        def guarded() -> None:
            assert self._outputs is not None
            try:
                command(self.front_end, self._outputs)
            except Exception as error:
                self._report(error, self._errors.error)

        self._matching.call(guarded)

    def ask(self, question: Callable[[FrontEnd], R]) -> R:
        """Run a function with the front end on its thread, between two frames, and wait for the result."""
        return self._matching.ask(lambda: question(self.front_end))

    def _submit(self, work: Callable[[], R]) -> Future[R]:
        """Run a function of the network on its thread; the front end goes on from it as soon as it has no frame."""
        found = self._network.submit(work)
        found.add_done_callback(lambda _: self._matching.call(self._catch_up))
        return found

    def _catch_up(self) -> None:
        try:
            self.front_end.catch_up()
        except Exception as error:
            self._report(error, self._errors.error)

    def drain(self) -> None:
        """Finish the frames in progress, drop those that wait."""
        for thread in self._threads:
            thread.drain()

    def stop(self) -> None:
        """As `drain`, and end the threads."""
        for thread in self._threads:
            thread.stop()

    def _encode(self, arrival: Arrival, then: Callable[[_Encoded], None]) -> None:
        begun = time.monotonic()
        try:
            frame = self._decoder(arrival)
            self._statistics.decoded()
            if self._warmed_up(frame) and self._encoding.has_next:
                self._dropped(arrival)
                return
            decoded = time.monotonic()
            encoded = self.front_end.prepare(frame)
        except Exception as error:
            self._report(error, self._errors.frame_failed)
            return
        then(_Encoded(encoded, arrival.received, begun, decoded, time.monotonic()))

    def _warmed_up(self, frame: Frame) -> bool:
        """Warm up for the images of a new stream, which takes seconds: the first keyframe must not be that old when the
        next image is matched. Returns whether it was done.
        """
        if self.front_end.is_warm(frame.size):
            return False
        run = partial(self.front_end.warm_up_for_stream, frame.size)
        if self._matching is self._encoding:
            run()
        else:
            self._matching.ask(run)
        return True

    def _match(self, item: _Encoded) -> None:
        assert self._outputs is not None
        taken = time.monotonic()
        try:
            result = self.front_end.process_encoded(item.frame)
            found = time.monotonic()
            if result.encoded is not None:
                self._kinds.add(kind_of(result.encoded.features))
            self._outputs.publish(result)
        except Exception as error:
            self._report(error, self._errors.frame_failed)
            return
        now = time.monotonic()
        latencies = result.latencies | {
            "wait": (item.begun - item.received) + (taken - item.encoded),
            "decode": item.decoded - item.begun,
            # A GPU goes on when the call has returned.
            "encode": item.encoded - item.decoded + result.latencies["encode"] - item.frame.seconds,
            "publish": now - found,
            "total": now - item.received,
        }
        self._statistics.processed(
            latencies,
            now,
            result.is_unmatched,
            result.is_useless,
            result.is_located,
            result.frame_match.name if result.matches and not result.is_useless else "",
        )
        for warning in self.front_end.take_warnings():
            self._errors.error(warning.kind, warning.text)
        try:
            if self._observe is not None:
                self._observe(result)
            self._outputs.publish_picture(result)
        except Exception as error:  # the frame is done, and counted
            self._report(error, self._errors.error)

    def _dropped(self, _: Any) -> None:
        self.spare.dropped(time.monotonic())
        self._statistics.dropped()

    def _report(self, error: Exception, report: Callable[[str, str, str], None]) -> None:
        """Log and count an exception of a thread, which must not end because of it."""
        if not self._is_alive():
            return  # the context was shut down before the publishers: not a failure
        from loftr_ros.matcher.faults import is_lost  # loads torch, which has been loaded now

        if self._gpu_lost is not None and is_lost(error):
            self._gpu_lost(f"the GPU is lost: {str(error).splitlines()[0]}; restart the process")
        kind = error_kind(error)
        report(kind, str(error) or type(error).__name__, traceback.format_exc() if kind == "internal" else "")
