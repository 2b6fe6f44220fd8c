"""Publishes a source as camera topics at its own rate, for `loftr_ros play`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from loftr_ros.frontend.config import MONO
from loftr_ros.recordings import Source, SourceError, SourceFrame
from loftr_ros.recordings.companions import MODES
from loftr_ros.recordings.look_ahead import LookAhead
from loftr_ros.recordings.progress import Lines
from loftr_ros.ros.transport import provide_profile
from loftr_ros.tools.player.topics import Topics

RAW, COMPRESSED = "raw", "compressed"
_AHEAD = 300  # frames that a slow source makes in advance: 100 MB and more
_PERIOD = 20.0  # s between two lines on their number
_LATE = 0.005  # s of delay from which a frame counts as late
_ACQUAINTED = 0.4  # s for a publisher and a subscriber to match completely


class PlayError(Exception):
    """Playing cannot start; the message says why, and what to do."""


@dataclass(frozen=True)
class PlayReport:
    """Report of a playback.

    Attributes:
        published: number of published frames.
        failed: number of frames left out: they could not be read or decoded, or lack what the mode needs.
        late: number of frames published more than 5 ms after their time.
        seconds: from the first to the last frame.
        interrupted: Ctrl-C or a shutdown ended the playback.
    """

    published: int
    failed: int
    late: int
    seconds: float
    interrupted: bool


def play(
    source: Source,
    *,
    mode: str = MONO,
    image_transport: str = RAW,
    color: bool = False,
    rate: float = 1.0,
    hz: float | None = None,
    loop: bool = False,
    back_and_forth: bool = False,
    duration: float | None = None,
    now: bool = False,
    clock: bool = False,
    wait_for_subscriber: float | None = 30.0,
    preload: bool | None = None,
    reliable: bool = True,
    depth: int = 10,
    node_name: str = "player",
    namespace: str = "",
    ros_args: Sequence[str] = (),
    progress: bool = True,
) -> PlayReport:
    """Publish a source's frames on `image` (or `image/compressed`) and their calibration on `camera_info`.

    The mode `stereo` adds the right images, on `right/image` and `right/camera_info`; `rgbd` adds the depth images, on
    `depth/image` and `depth/camera_info`. Data passes unchanged where possible, see `player/messages.py`. All messages
    of a frame carry the same stamp. Without a calibration nothing is published on `camera_info`. Masks of what moves
    go out on `mask`, and an inertial sensor's samples on `imu`, those up to a frame together with it.

    Args:
        source: see `loftr_ros.recordings.open_source`; it is not closed.
        mode: `mono`, `stereo` or `rgbd`: the images to publish.
        image_transport: `raw` or `compressed`; depth images are always raw.
        color: publish bgr8 instead of mono8 if the source has colour (raw transport only).
        rate: playback speed; 2 is twice as fast as the stamps.
        hz: fixed frames a second instead of the stamps.
        loop: repeat from the start; stamps continue.
        back_and_forth: after the last frame play them backward, then forward, and so on: nothing jumps. All frames of
            the source are kept; stamps rise.
        duration: seconds of wall time to play.
        now: stamp with the wall clock instead of the source's time.
        clock: publish the stamps on `/clock`, for nodes with `use_sim_time`.
        wait_for_subscriber: seconds to wait for a subscriber; None or 0 starts at once.
        preload: read and decode everything before the first frame. None does so if frames are slow to make; for a long
            source only with the first few hundred.
        reliable, depth: quality of service of the publishers, keep-last.
        node_name, namespace: of the node.
        ros_args: other ROS arguments, for example ("--ros-args", "-r", "image:=left/image").
        progress: show a progress bar.

    Raises:
        PlayError: an argument makes no sense, or no subscriber came in time.
        SourceError: the source lacks what the mode needs, cannot be read further, or none of its frames can be played.
    """
    if mode not in MODES:
        raise PlayError(f"mode '{mode}' is unknown; expected {', '.join(MODES)}")
    if image_transport not in (RAW, COMPRESSED):
        raise PlayError(f"image_transport '{image_transport}' is unknown; expected raw or compressed")
    if rate <= 0 or (hz is not None and hz <= 0) or depth < 1:
        raise PlayError(f"rate {rate}, hz {hz}, depth {depth}: all must be more than 0")
    if back_and_forth and source.imu is not None:
        raise PlayError(
            "an inertial sensor's samples cannot be played backward: repeat the recording from its start (--loop), or "
            "play its images alone"
        )
    source.require(mode)
    room = provide_profile()
    context = Context()
    rclpy.init(args=list(ros_args), context=context, signal_handler_options=SignalHandlerOptions.NO)
    # A separate context with Python's own Ctrl-C, which ends the loop below at any point.
    node = Node(node_name, namespace=namespace, context=context, start_parameter_services=False)
    room.log(node.get_logger())
    try:
        reliability = QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=depth, reliability=reliability)
        compressed = image_transport == COMPRESSED
        topics = Topics(
            node, mode, compressed=compressed, color=color, now=now, clock=clock, qos=qos, masks=source.has_masks,
            imu=source.imu,
        )  # fmt: skip
        return _Player(node, topics).run(
            source, _Pace(rate, hz), loop, back_and_forth, duration, wait_for_subscriber, preload, progress
        )
    finally:
        node.destroy_node()
        context.try_shutdown()


class _Pace:
    """Converts stamps to times of the monotonic clock."""

    def __init__(self, rate: float, hz: float | None) -> None:
        self.rate, self.hz = rate, hz
        self._due: float | None = None
        self._last = 0

    def due(self, stamp_ns: int) -> float:
        """Time at which the next frame is due, in seconds of `time.monotonic`."""
        if self._due is None:
            self._due = time.monotonic()
        elif self.hz is not None:
            self._due += 1 / self.hz
        else:
            # Stamps that go back, as in spliced bags, cause no wait.
            self._due += max(stamp_ns - self._last, 0) * 1e-9 / self.rate
        self._last = stamp_ns
        return self._due


class _Player:
    def __init__(self, node: Node, topics: Topics) -> None:
        self._node, self._context, self._topics = node, node.context, topics
        self._failed = 0

    def _prepared_frames(self, source: Source, whole: bool, progress: bool) -> Iterable[SourceFrame]:
        """Frames of a slow source, made in advance: all of a short source, else a fixed number."""
        from tqdm import tqdm

        prepared, length, log = self._topics.prepared, source.length, self._node.get_logger()
        if whole or (length is not None and length <= _AHEAD):
            described = tqdm(source, f"preparing {source.name}", length, unit="frame", disable=not progress)
            return [prepared(frame) for frame in described]
        Lines(source, say=log.info).begin()
        log.info(
            f"{_AHEAD} frames are made before playing starts, the others while playing. If that is slower than "
            f"{source.rate:g} frames a second, they come late (--rate 0.5 gives them twice the time)"
        )
        source.prepare()  # here, because Ctrl-C ends it at once

        def made(count: int) -> None:
            log.info(f"{count} of {_AHEAD} frames are made", throttle_duration_sec=_PERIOD, skip_first=True)
            if not self._context.ok():
                raise ExternalShutdownException

        return LookAhead(source, prepared, _AHEAD, made=made)

    def run(
        self,
        source: Source,
        pace: _Pace,
        loop: bool,
        back_and_forth: bool,
        duration: float | None,
        wait_for_subscriber: float | None,
        preload: bool | None,
        progress: bool,
    ) -> PlayReport:
        from tqdm import tqdm

        log = self._node.get_logger()
        is_endless = loop or back_and_forth
        published = late = streak = 0
        first = last = 0.0
        interrupted = False
        try:
            frames: Iterable[SourceFrame] = source
            if source.slow if preload is None else preload:
                frames = self._prepared_frames(source, preload is True, progress)
            if source.camera is None:
                log.warning(
                    f"{source.name} has no calibration, so nothing is published on camera_info: give one with the "
                    "option `camera`, or run the front end with input.camera_info set to 'none'"
                )
            if wait_for_subscriber:
                self._wait(wait_for_subscriber, source.camera is not None)
            bar = tqdm(
                None,
                f"playing {source.name}",
                None if is_endless else source.length,
                unit="frame",
                disable=not progress,
            )
            lines = Lines(source, say=log.info)
            rounds = _back_and_forth(frames, source.rate) if back_and_forth else _rounds(frames, source.rate, loop)
            with bar:
                for frame, shift in rounds:
                    try:
                        # Prepared before it is due: only publishing remains.
                        messages = self._topics.messages(frame, shift != 0)
                    except SourceError as error:
                        self._failed += 1
                        streak += 1
                        if is_endless and source.length is not None and streak >= source.length:
                            raise SourceError(
                                f"no frame of a whole round can be played; the last error: {error}"
                            ) from error
                        log.error(f"left out: {error}", throttle_duration_sec=1.0)
                        continue
                    streak = 0
                    due = pace.due(frame.stamp_ns)
                    if duration is not None and published and due - first > duration:
                        break
                    time.sleep(max(due - time.monotonic(), 0))
                    if not self._context.ok():
                        interrupted = True
                        break
                    last = time.monotonic()
                    first = first if published else last
                    late += last - due > _LATE
                    self._topics.publish(messages, frame.stamp_ns, frame.stamp_ns - shift)
                    published += 1
                    bar.update()
                    if not (progress or is_endless):
                        lines.count()
            if not (published or interrupted):
                raise SourceError(f"none of {self._failed} frames can be played: see the errors above")
            if published:
                self._topics.flush(2.0)
        except (KeyboardInterrupt, ExternalShutdownException):
            interrupted = True
        return PlayReport(published, self._failed, late, last - first, interrupted)

    def _wait(self, seconds: float, with_camera: bool) -> None:
        topic = self._topics.image_topic
        end = time.monotonic() + seconds
        self._node.get_logger().info(f"waiting for a subscriber on {topic}")
        while not self._topics.has_subscriber:
            if time.monotonic() > end:
                raise PlayError(
                    f"nobody subscribed to {topic} within {seconds:g} s; start the subscriber, or do not wait for one "
                    "(--wait 0). Check that both have the same ROS_DOMAIN_ID and topic"
                )
            if not self._context.ok():
                raise ExternalShutdownException
            time.sleep(0.01)
        # A subscriber to several topics matches on the others a moment later; without this the first pair is lost.
        self._topics.settle(with_camera, 0.5)
        # The subscriber discovers the publisher slightly later than the reverse; earlier messages would be lost.
        time.sleep(_ACQUAINTED)


def _rounds(frames: Iterable[SourceFrame], rate: float, loop: bool) -> Iterator[tuple[SourceFrame, int]]:
    """Frames of all rounds with continuing stamps, and the nanoseconds by which a stamp was moved."""
    period = round(1e9 / rate)
    shift = 0
    while True:
        lowest = highest = None
        for frame in frames:
            lowest = frame.stamp_ns if lowest is None else min(lowest, frame.stamp_ns)
            highest = frame.stamp_ns if highest is None else max(highest, frame.stamp_ns)
            moved = replace(frame, stamp_ns=frame.stamp_ns + shift) if shift else frame
            yield moved, shift
        if lowest is None or highest is None:
            raise SourceError("the source has no frames to play")
        if not loop:
            return
        shift += highest - lowest + period


def _back_and_forth(frames: Iterable[SourceFrame], rate: float) -> Iterator[tuple[SourceFrame, int]]:
    """As `_rounds`, every second round backward; a round begins with the frame after the one that is there."""
    kept: list[SourceFrame] = []
    for frame in frames:
        kept.append(frame)
        yield frame, 0
    if not kept:
        raise SourceError("the source has no frames to play")
    if len(kept) == 1:
        kept *= 2
    stamp_ns = kept[-1].stamp_ns
    while True:
        kept.reverse()
        for before, frame in pairwise(kept):
            stamp_ns += abs(frame.stamp_ns - before.stamp_ns) or round(1e9 / rate)
            yield replace(frame, stamp_ns=stamp_ns), stamp_ns - frame.stamp_ns
