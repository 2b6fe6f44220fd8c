"""The streaming front end: takes frames, returns correspondences with keyframes and poses relative to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from loftr_ros.frontend.background import BackgroundMatch, NetworkResult, Submit
from loftr_ros.frontend.budget import Effort, LatencyBudget
from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.config import MONO, FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.gyroscope import Gyroscope
from loftr_ros.frontend.keyframes import (
    EncodedFrame,
    Keyframe,
    KeyframeBuffer,
    KeyframeEvent,
    KeyframeReason,
    PreparedFrame,
    StreamFrame,
    coverage,
    reason_for_keyframe,
)
from loftr_ros.frontend.localization import Localizer, Located
from loftr_ros.frontend.mask import check_mask
from loftr_ros.frontend.measured_depth import DepthMeasuring
from loftr_ros.frontend.moving import MovingThings
from loftr_ros.frontend.odometry import Location, SegmentJoin
from loftr_ros.frontend.optical_flow import OpticalFlow
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.quality import SHARPER, FrameQuality, judge
from loftr_ros.frontend.quick import CLOSE, FAIRLY_SLOW, FOLLOWED_MOTION, SLOW, FrameMatch, QuickMatching
from loftr_ros.frontend.recovery import Recovery, TrackingState
from loftr_ros.frontend.results import Correspondences, FrontEndResult, KeyframeMatch
from loftr_ros.frontend.stream import FrameRefusedError, StreamGuard, StreamWarning, check_companions
from loftr_ros.frontend.tracks import TrackLinks
from loftr_ros.frontend.wheel_odometry import WheelOdometry
from loftr_ros.geometry.se3 import rotation_vector
from loftr_ros.geometry.two_view import PoseStatus, without_pose
from loftr_ros.matcher.faults import is_out_of_memory
from loftr_ros.matcher.interface import Matcher, Matches, QuickMatcher, release_memory, waited_for_encoding
from loftr_ros.settings import ConfigError, changed

__all__ = ["STAGES", "Correspondences", "FrontEnd", "FrontEndResult", "KeyframeMatch", "TrackingState"]

STAGES = ("encode", "match", "refine", "geometry", "keyframe")
# Frames between two attempts to match a keyframe of another segment.
_OTHER_SEGMENTS_PERIOD = 5
# A blurred frame is not made a keyframe while the explained part is above this; nor is optical flow in doubt then, nor
# an earlier frame made a keyframe for its sake.
_WAITS = 0.55
# Largest explained part of a frame that becomes a keyframe because the next one is not matched with its keyframe.
_LEFT_BEHIND = 0.9
# Least matches of a frame with its keyframes for other ways to locate it at once: a bad image has hardly any.
_LEAST_SHARED = 8
# Radians by which the motion by matching and the motion on the trajectory may differ in rotation.
_AGREEING_ROTATION = 0.05
# Without the network's result flow goes on for so many times `tracking.flow_period`.
_LONGEST_FLOW = 3
# Frames in a row that flow may locate by poses that are accepted only because they agree with the prediction, while the
# network matches one of them.
_MOST_WEAK = 6
# Evicted keyframes whose places are kept for a recall: a kilobyte each.
_MOST_EVICTED = 20_000


@dataclass(frozen=True, eq=False)
class _Before:
    """The last frame that was located and is no keyframe. A blurred one may be less certain, and as a keyframe as well.

    Attributes:
        frame: the frame.
        located: relative to its keyframe.
        location: on the trajectory.
        has_failed: whether a later frame did not match it. Then it is complete (see `PairMatcher.complete`).
        depth: measured depths of its cells; only then.
    """

    frame: EncodedFrame | PreparedFrame
    located: Located
    location: Location
    has_failed: bool = False
    depth: CellDepth | None = None


class FrontEnd:
    """The stream of frames: keyframes and matcher behind one method. Not thread-safe: call it from one thread."""

    def __init__(
        self, matcher: Matcher | PairMatcher, config: FrontEndConfig | None = None, first_keyframe_id: int = 1
    ) -> None:
        """Create it without keyframes.

        Args:
            matcher: the network, ready for inference; or a `PairMatcher`, whose settings are replaced by these.
            config: settings; None for the defaults.
            first_keyframe_id: ID of the first keyframe; set it to continue another front end's numbering.
        """
        self.config = config or FrontEndConfig()
        self.pairs = matcher if isinstance(matcher, PairMatcher) else PairMatcher(matcher)
        self.pairs.config = self.config
        self.buffer = KeyframeBuffer(self.config.keyframe, first_keyframe_id)
        self._stream = StreamGuard()
        self._forced = False
        self.localizer = Localizer(self.config)
        self.recovery = Recovery(self.config.recovery)
        self.moving = MovingThings(self.config.moving)
        self._measuring = DepthMeasuring(self.pairs, self.localizer.stereo_offset)
        self._quick = QuickMatching(
            self.config.tracking, isinstance(self.pairs.matcher, QuickMatcher), self.config.scale.mode != MONO
        )
        self._flow = OpticalFlow()
        self._submit: Submit | None = None
        self._background: BackgroundMatch | None = None
        self._links: list[TrackLinks] = []  # of keyframes that no result has told of yet
        self._frame_match = FrameMatch.UNEXPECTED
        self._doubt = FrameMatch.QUICK  # why the frame must be matched in full, by optical flow
        self._until_other = 0
        self._joined: set[tuple[int, int]] = set()
        self._evicted: dict[int, Location] = {}
        self._resolution = 1.0
        self._warm: set[tuple[int, int]] = set()  # sizes of images that the network has been run on
        self._drops_keyframes = False
        self._before: _Before | None = None
        self._budget = LatencyBudget(self.config.latency.max_latency_ms / 1e3, self.config.keyframe.max_matched)

    @property
    def matcher(self) -> Matcher:
        """The network."""
        return self.pairs.matcher

    def process(self, frame: Frame) -> FrontEndResult:
        """Match a frame with the keyframes, compute its relative poses, and decide whether it becomes a keyframe.

        Args:
            frame: the stream's next image.

        Raises:
            FrameRefusedError: the frame contradicts the stream (time, size, camera); the state is unchanged.
            MaskError: mask and image differ in size; the state is unchanged.
        """
        return self.process_encoded(self.prepare(frame))

    def process_encoded(self, current: EncodedFrame | PreparedFrame) -> FrontEndResult:
        """The rest of `process` after `prepare` or `encode`. These change no state, so a caller may encode the next
        frame meanwhile.

        Raises:
            FrameRefusedError: as `process`.
        """
        with self._memory_guarded():
            return self._process(current)

    def _process(self, current: EncodedFrame | PreparedFrame) -> FrontEndResult:
        timer = _Timer()
        timer.seconds["encode"] = current.seconds
        frame = current.frame
        self._admit(frame)
        self.catch_up()
        self._doubt = FrameMatch.QUICK
        if current.quality != FrameQuality.USABLE and self.buffer.reference is not None:
            return self._not_matched(current, self.buffer.reference, timer)
        # One that was encoded while the last one was matched may be followed from that, too.
        if (followed := self._follow(current, timer)) is not None:
            return followed
        if self._background is not None:
            self._wait_for_background(timer)
            if (followed := self._follow(current, timer)) is not None:
                return followed
        announced = len(self.buffer.pending_events)
        current = self._encoded(current, timer)
        reference = self.buffer.reference
        if reference is not None and reference.encoded.features.size != current.features.size:
            current = self.encode(frame)  # encoded before the resolution changed
        located, best = self._locate(current, timer)
        links = None
        if best is None:  # the next one tells whether one that shares nothing was bad
            needs_link = self.recovery.failed > 1 or _shares_something(located)
        else:
            needs_link = not best.is_trusted and best.explained < self.config.keyframe.min_explained
        if needs_link:
            found, links = self._locate_by_the_frame_before(current, timer)
            if found is not None:
                best, located = found, [found, *located]
        location = None
        if best is not None and self._needs_length(best):
            with timer("keyframe"):
                depth = self._measuring.of(self.pairs.complete(current), self.encode)
                best = self.localizer.with_measured_length(best, current, depth)
        if best is not None:
            with timer("geometry"):
                best, location = self.localizer.follow(best, frame.stamp_ns)
                best = self.moving.flagged(best, current)
            located = [best, *(each for each in located if each.match.keyframe is not best.match.keyframe)]
        joined = None
        if best is not None and location is not None and len(self.buffer.segments()) > 1:
            best, location, joined = self._look_for_other_segments(current, best, location, timer)
            located[0] = best
        with timer("keyframe"):
            if links is not None:
                self._links.append(links)
            links = self._update_keyframes(current, located, best, location, timer)
            if best is not None and links is not None and self.buffer.reference is not None:
                self.moving.add_keyframe(self.buffer.reference)
        is_keyframe = any(event.added for event in self.buffer.pending_events[announced:])
        self._quick.record(self._frame_match, len(timer.runs) > len(located), is_keyframe, self._stream.images)
        self._remember_evicted()
        if best is not None or self.recovery.is_lost:  # else the frame is to blame, not what came before it
            self._before = None
            self._flow.forget()
        if best is not None and location is not None:
            if is_keyframe:
                if best.is_trusted and self.buffer.reference is not None:
                    self._flow.start_at(self.buffer.reference)
            else:
                self._before = _Before(current, best, location)
                reason = self._reason_for_keyframe(best, self._coverage(best, current), current)
                if best.is_trusted or reason is None:  # a blurred one, too
                    self._flow.start(current, best.match, best.pose, best.explained)
        matches = tuple(each.match for each in located)
        if len(timer.runs) == len(matches):  # additional attempts are no measure of a frame's cost
            self._budget.record(sum(timer.seconds.values()), timer.seconds["encode"], timer.seconds["match"])
        return FrontEndResult(
            frame,
            matches,
            self.buffer.take_events(),
            timer.seconds,
            location,
            self._take_links() if links is None else (*self._take_links(), links),
            self._budget.effort,
            self.recovery.state,
            current.quality,
            joined,
            self.localizer.orientation(frame.stamp_ns) if location is None else None,
            self._frame_match,
            current,
        )

    def _needs_length(self, located: Located) -> bool:
        """Whether a keyframe with measured depths has located a frame without them: those within reach are left behind,
        or the sensor's were poor. The frame's own depths may tell its length.
        """
        depth, is_believed = located.match.keyframe.depth, located.is_believed and located.match.pose.has_direction
        is_measured = depth is not None and depth.is_metric
        return is_believed and is_measured and located.pose is None and self.config.scale.mode != MONO

    def _not_matched(self, current: EncodedFrame | PreparedFrame, reference: Keyframe, timer: _Timer) -> FrontEndResult:
        """The result of an image that shows nothing. What is being followed is followed into the next one."""
        self.recovery.not_found()
        self.recovery.missed()
        self._quick.followed(self._stream.images)
        nothing = without_pose(PoseStatus.TOO_FEW_MATCHES, np.zeros(0, np.bool_))
        return FrontEndResult(
            current.frame,
            (KeyframeMatch(reference, Correspondences.none(), nothing),),
            self.buffer.take_events(),
            timer.seconds,
            None,
            self._take_links(),
            self._budget.effort,
            self.recovery.state,
            current.quality,
            orientation=self.localizer.orientation(current.frame.stamp_ns),
        )

    def _follow(self, current: EncodedFrame | PreparedFrame, timer: _Timer) -> FrontEndResult | None:
        """The result by optical flow from the last frames; None if the network must match the frame."""
        keyframe = self._flow.keyframe
        if not self._flow_expected(current.frame) or keyframe is not self.buffer.reference or keyframe is None:
            return None
        motion = self._motion(current, keyframe)
        if motion is None or motion > FOLLOWED_MOTION:
            return None
        slow = FAIRLY_SLOW if self._quick.is_for_long else SLOW
        # Per image of the camera, so that images dropped on a busy machine do not make it wait for the network, too.
        speed = motion / self._stream.images
        in_background = self.uses_background and speed < slow
        if self._flow.frames >= self.config.tracking.flow_period and not in_background:
            return None
        since, stamp_ns = self._flow.pose, current.frame.stamp_ns
        with timer("match"):
            shift = np.zeros((len(self._flow.cells), 2), np.float32)
            if since is not None:
                shift = self.localizer.expected_shift(keyframe, self._flow.cells, since, self._flow.points, stamp_ns)
            found = self._flow.follow(current, shift)
        with timer("geometry"):
            best = self.localizer.locate(keyframe, current, found, quickly=True, is_close=motion < CLOSE, by_flow=True)
            covered = self._coverage(best, current)
            # As by the network: on the way to the first of these frames little but poorly textured points was lost.
            by_network = replace(best, explained=self._flow.explained_by_network(best.explained))
            is_last = self._reason_for_keyframe(by_network, covered, current) is not None
            is_leaving = is_last and by_network.explained < _WAITS
            # While the network matches one of a vehicle's frames, the next ones may leave the keyframe for good.
            has_time = (in_background or self._quick.is_for_long) and not (is_leaving and speed >= SLOW)
            # Weak poses bridge the time until the network has matched one of their frames.
            is_enough = best.is_sure or (in_background and best.is_believed and self._flow.weak < _MOST_WEAK)
            if not is_enough or (is_last and not has_time):
                self._flow.record(is_located=False)
                self._doubt = FrameMatch.KEYFRAME if best.is_sure else FrameMatch.DOUBT
                return None
            best, location = self.localizer.follow(best, current.frame.stamp_ns)
            best = self.moving.flagged(best, current)
        self._flow.record(is_located=True, is_weak=not best.is_sure)
        self._flow.is_leaving, self._flow.explained = is_leaving, best.explained
        if in_background and location is not None:
            quickly = best.is_sure and not is_last and not self._quick.is_full_due
            if not quickly or self._flow.frames >= self.config.tracking.flow_period:
                self._match_in_background(current, best, location, quickly)
        elif is_last:  # the next frame probably becomes a keyframe
            self._flow.forget()
        self._quick.followed(self._stream.images)
        self.recovery.located(best.is_sure)
        self.buffer.record_match(keyframe, covered)
        self._before = _Before(current, best, location) if location is not None else None
        return FrontEndResult(
            current.frame,
            (best.match,),
            self.buffer.take_events(),
            timer.seconds,
            location,
            self._take_links(),
            effort=self._budget.effort,
            quality=current.quality,
            frame_match=FrameMatch.FLOW,
        )

    def use_background(self, submit: Submit | None) -> None:
        """Let the network match frames in another thread while optical flow locates the next ones.

        The results then depend on how fast that thread is.

        Args:
            submit: runs a function in that thread; None for the calling thread, in turn with everything else.
        """
        self._submit = submit

    @property
    def uses_background(self) -> bool:
        """Whether the network matches frames in another thread while optical flow locates the next ones."""
        return self._submit is not None and self.config.tracking.in_background and self._can_follow

    @property
    def _can_follow(self) -> bool:
        """Whether optical flow may locate frames with this network and these settings."""
        is_quick_on_cpu = isinstance(self.matcher, QuickMatcher) and self.matcher.device.type == "cpu"
        return is_quick_on_cpu and self.config.tracking.flow_period > 0 and self._budget.effort.keyframes == 1

    def _match_in_background(
        self, frame: EncodedFrame | PreparedFrame, located: Located, location: Location, quickly: bool
    ) -> None:
        """Begin to match a located frame by the network, unless it still matches another one."""
        if self._background is None and self._submit is not None:
            keyframe = located.match.keyframe
            result = self._submit(partial(self._matched_by_network, keyframe, frame, self._resolution, quickly))
            self._background = BackgroundMatch(located, location, quickly, result)

    def _matched_by_network(
        self, keyframe: Keyframe, frame: EncodedFrame | PreparedFrame, resolution: float, quickly: bool
    ) -> NetworkResult:
        """What the network finds of a frame; changes no state, because it runs in another thread."""
        encoded = frame if isinstance(frame, EncodedFrame) else self.pairs.encode(frame.frame, resolution)
        found = self.pairs.to_raw_pixels(keyframe.encoded, encoded, self._matches([keyframe], encoded, quickly)[0])
        if quickly:
            return NetworkResult(encoded, found)
        complete = self.pairs.complete(encoded)
        return NetworkResult(complete, found, self._measuring.of(complete, self.encode))

    def catch_up(self) -> None:
        """Go on from what the network has found meanwhile, if it has; `process` does it, too."""
        matched = self._background
        if matched is not None and matched.result.done():
            self._background = None
            self._go_on_from(matched, matched.result.result())

    def _wait_for_background(self, timer: _Timer) -> None:
        """Go on from all that the network is working on."""
        while (matched := self._background) is not None:
            self._background = None
            with timer("match"):
                result = matched.result.result()
            with timer("geometry"):
                self._go_on_from(matched, result)

    def _go_on_from(self, matched: BackgroundMatch, result: NetworkResult) -> None:
        """Follow an earlier frame by what the network found of it, or make it a keyframe."""
        keyframe = matched.located.match.keyframe
        if keyframe is not self.buffer.reference or keyframe is not self._flow.keyframe or keyframe.location is None:
            return  # nothing goes on from it any more
        encoded = result.encoded
        best = self.localizer.locate(
            keyframe, encoded, result.correspondences, matched.quickly, is_close=matched.quickly
        )
        best = self.localizer.with_length(best)
        if self._needs_length(best):
            best = self.localizer.with_measured_length(best, encoded, result.depth)
        covered = self._coverage(best, encoded)
        reason = self._reason_for_keyframe(best, covered, encoded)
        gain = self._flow.compare(best.explained, matched.located.explained) if best.is_sure else 1.0
        is_leaving = self._flow.is_leaving and gain * self._flow.explained < _WAITS
        if reason is None and is_leaving and best.is_sure:
            reason = KeyframeReason.LOW_COVERAGE  # of the frames since then, which are farther away
        # A blurred frame is accepted as it agrees with the prediction; one that needs a keyframe must match by itself.
        is_supported = best.is_believed and not matched.quickly and reason is None
        if (best.is_sure or is_supported) and best.pose is not None:
            location = keyframe.location.moved(best.pose.matrix, best.pose.covariance)
            if not self.localizer.was_at(location, encoded.frame.stamp_ns, keyframe):
                self._flow.forget()  # one of the two is wrong
                return
            best = self.moving.flagged(best, encoded)
            keyframe.follow(best.match.correspondences.track_id[best.match.pose.inliers])
            if not self.recovery.failed:
                self.recovery.located(best.is_sure)
            is_keyframe = reason is not None and not matched.quickly
            self._quick.record(FrameMatch.QUICK if matched.quickly else FrameMatch.PERIOD, False, is_keyframe)
            if reason is not None and not matched.quickly:
                self._make_keyframe(result, reason, best, location)
                return
            self._flow.start(encoded, best.match, best.pose, best.explained, gain)
            if best.explained >= _WAITS:
                self._flow.weak = 0  # the network confirms them
        elif not matched.quickly:
            self._flow.forget()
            return
        if matched.quickly and (reason is not None or not best.is_sure):
            self._match_in_background(encoded, matched.located, matched.location, quickly=False)

    def _make_keyframe(self, result: NetworkResult, reason: KeyframeReason, its: Located, location: Location) -> None:
        """Make an earlier frame a keyframe, and follow it."""
        keyframe = self.buffer.add(result.encoded, reason, location.segment)
        self._links.append(self.localizer.go_on(keyframe, result.depth, its, location))
        self.moving.add_keyframe(keyframe)
        self._remember_evicted()
        self._flow.start_at(keyframe)

    def _take_links(self) -> tuple[TrackLinks, ...]:
        links, self._links = tuple(self._links), []
        return links

    def _flow_expected(self, frame: Frame) -> bool:
        """Whether optical flow can probably locate a frame; asked by the thread that encodes, too."""
        return (
            not (self.recovery.is_lost or self._forced)
            and (not self.recovery.is_weak or self._flow.weak < _MOST_WEAK)
            and self._can_follow
            and self._flow.frames < self.config.tracking.flow_period * (_LONGEST_FLOW if self.uses_background else 1)
            and self._budget.effort.scale == self._resolution
            and self._flow.can_follow(frame.size)
        )

    def _encoded(self, prepared: EncodedFrame | PreparedFrame, timer: _Timer) -> EncodedFrame:
        """A frame's features, computed if they have not been yet."""
        if isinstance(prepared, EncodedFrame):
            return prepared
        encoded = self.encode(prepared.frame)
        timer.seconds["encode"] += encoded.seconds
        return encoded

    def _locate(self, current: EncodedFrame, timer: _Timer) -> tuple[list[Located], Located | None]:
        """Match a frame with the keyframes, and with more of them if the first do not match.

        Returns:
            All results: the chosen keyframes, and one found beyond them; and the accepted one of these, None if there
            is none.
        """
        reference = self.buffer.reference
        self._frame_match = FrameMatch.UNEXPECTED
        if reference is None:
            return [], None
        chosen: list[Keyframe] = []
        located: list[Located] = []
        is_late = self._stream.images > 1
        # A camera that may be anywhere is as likely near any other keyframe.
        is_anywhere = is_late and self.recovery.is_lost
        if not is_anywhere:
            chosen = self.buffer.choose(self._budget.effort.keyframes)
            located = self._match_quickly(chosen, current, timer) or self._match(chosen, current, timer)
        best = next((each for each in located if each.is_believed), None)
        if best is None:
            for keyframe in chosen:
                self.recovery.tried(keyframe)
            rest = [keyframe for keyframe in self.buffer.keyframes if keyframe not in chosen]
            if not (self.recovery.failed or _shares_something(located)):
                rest = []  # the next frame may tell whether it was the image or the camera's motion
            linking = self._linking()
            if linking is not None and not linking.has_failed:
                rest = []  # likelier than any of these
            looking = self.localizer.looking(current.frame.stamp_ns)
            for keyframe in self.recovery.others(rest, looking, current, is_late):
                found = self.localizer.unless_refuted(self._match([keyframe], current, timer)[0], located)
                if is_anywhere:
                    located.append(found)
                if found.is_believed:
                    best = found
                    break
                self.recovery.tried(keyframe)
        if best is None:
            self.recovery.not_found()
        elif self.recovery.found(best.match.keyframe.id, best.is_sure):
            self.recovery.located(best.is_trusted)
            if best.is_trusted:
                self.buffer.consider(None)
            best.match.keyframe.follow(best.match.correspondences.track_id[best.match.pose.inliers])
            return located, best
        self.recovery.missed()
        return located, None

    def _locate_by_the_frame_before(
        self, current: EncodedFrame, timer: _Timer
    ) -> tuple[Located | None, TrackLinks | None]:
        """Make the frame before a keyframe if this one is located by itself with it, but not without: between the two
        the camera moved too far from all keyframes.

        Returns:
            The frame relative to the new keyframe, and links to that keyframe's cells; None without one.
        """
        if (linking := self._linking()) is None:
            return None, None
        its, location = linking.located, linking.location
        reference = its.match.keyframe
        encoded = self._encoded(linking.frame, timer)
        if len({each.features.size for each in (encoded, current, reference.encoded)}) > 1:
            return None, None
        complete = encoded if linking.has_failed else self.pairs.complete(encoded)
        tried = Keyframe(self.buffer.next_id, complete)
        matches = self._correspondences([tried], current, timer)[0]
        if len(matches) < self.config.geometry.min_inliers:
            return None, None  # a bad image, most likely
        if encoded is not linking.frame:  # optical flow has too few matches for a keyframe
            its = self.localizer.with_length(self._match([reference], encoded, timer)[0])
            if not its.is_believed or its.pose is None or reference.location is None:
                self._before = None
                return None, None
            location = reference.location.moved(its.pose.matrix, its.pose.covariance)
        depth = linking.depth if linking.has_failed else self._measuring.of(complete, self.encode)
        self.localizer.go_on(tried, depth, its, location)
        with timer("geometry"):
            found = self.localizer.locate(tried, current, matches)
        if not found.is_sure:
            # A bad image, maybe: the next one may match.
            self._before = _Before(complete, its, location, True, depth)
            return None, None
        keyframe = self.buffer.add(complete, KeyframeReason.LOW_COVERAGE, location.segment)
        links = self.localizer.go_on(keyframe, depth, its, location)
        self.moving.add_keyframe(keyframe)
        self.recovery.located()
        found = replace(found, match=replace(found.match, keyframe=keyframe))
        keyframe.follow(found.match.correspondences.track_id[found.match.pose.inliers])
        self.buffer.record_match(keyframe, self._coverage(found, current))
        return found, links

    def _linking(self) -> _Before | None:
        """The frame before, if it may link one to its keyframe that does not match it."""
        before = self._before
        if before is None or self.recovery.is_lost:
            return None
        is_of_reference = before.located.match.keyframe is self.buffer.reference
        return before if is_of_reference and before.located.explained <= _LEFT_BEHIND else None

    def _match_quickly(self, keyframes: list[Keyframe], current: EncodedFrame, timer: _Timer) -> list[Located] | None:
        """Locate the frame relative to each of the keyframes without attention; None if it must be matched in full.

        The reason is in `_frame_match`.
        """
        is_tracked = self.recovery.state == TrackingState.TRACKING and not self.recovery.is_weak and not self._forced
        motion = self._motion(current, keyframes[0]) if is_tracked else None
        self._frame_match = self._doubt or self._quick.why_not(motion)
        if self._frame_match != FrameMatch.QUICK:
            return None
        is_close = motion is not None and motion < CLOSE
        located = self._match(keyframes, current, timer, quickly=True, is_close=is_close)
        best = next((each for each in located if each.is_believed), None)
        if best is None or not best.is_sure:
            self._frame_match = FrameMatch.DOUBT
        elif self._reason_for_keyframe(best, self._coverage(best, current), current) is not None:
            self._frame_match = FrameMatch.KEYFRAME
        else:
            return located
        return None

    def _motion(self, current: StreamFrame, keyframe: Keyframe) -> float | None:
        """Expected motion of the image since the last located frame, as a part of its width; None if unknown."""
        motion = self.localizer.motion_until(current.frame.stamp_ns, keyframe)
        return None if motion is None else motion / current.frame.size[0]

    def _match(
        self,
        keyframes: list[Keyframe],
        current: EncodedFrame,
        timer: _Timer,
        quickly: bool = False,
        is_close: bool = False,
    ) -> list[Located]:
        """Locate the frame relative to each of the keyframes.

        Args:
            keyframes: the keyframes.
            current: the frame.
            timer: of the frame.
            quickly: whether to match without attention.
            is_close: as of `Localizer.locate`.
        """
        correspondences = self._correspondences(keyframes, current, timer, quickly)
        with timer("geometry"):
            return [
                self.localizer.locate(k, current, c, quickly, is_close)
                for k, c in zip(keyframes, correspondences, strict=True)
            ]

    def _correspondences(
        self, keyframes: list[Keyframe], current: EncodedFrame, timer: _Timer, quickly: bool = False
    ) -> list[Correspondences]:
        """Match the frame with each of the keyframes."""
        timer.runs += keyframes
        with timer("match"):
            found = self._matches(keyframes, current, quickly)
        timer.move(waited_for_encoding(self.matcher), "match", "encode")
        with timer("refine"):
            return self.pairs.all_to_raw_pixels([k.encoded for k in keyframes], current, found)

    def _matches(self, keyframes: list[Keyframe], current: EncodedFrame, quickly: bool) -> list[Matches]:
        """The network's matches with each of the keyframes."""
        features = [keyframe.encoded.features for keyframe in keyframes]
        if quickly and isinstance(self.matcher, QuickMatcher):
            first = [None if k.followed is None else torch.from_numpy(k.followed) for k in keyframes]
            return self.matcher.match_quickly(features, current.features, self.config.tracking.max_matches, first)
        return self.matcher.match(features, current.features)

    def _look_for_other_segments(
        self, current: EncodedFrame, best: Located, location: Location, timer: _Timer
    ) -> tuple[Located, Location, SegmentJoin | None]:
        """Try a keyframe of another segment at intervals; if it matches too, join the two segments.

        Returns:
            The result to continue the trajectory with (the older segment's), and the relation of the two segments; None
            if there is none.
        """
        self._until_other -= 1
        if self._until_other > 0:
            return best, location, None
        self._until_other = _OTHER_SEGMENTS_PERIOD
        others = [k for k in self.buffer.keyframes if k.location is not None and k.location.segment != location.segment]
        others = [k for k in others if k.location is None or not self._are_joined(k.location.segment, location.segment)]
        tried = min(others, key=lambda keyframe: keyframe.last_compared, default=None)
        if tried is None:
            return best, location, None
        tried.last_compared = current.frame.stamp_ns
        found = self.localizer.with_length(self._match([tried], current, timer)[0])
        joined = self.localizer.join(best, found, self.buffer.keyframes) if found.is_sure else None
        if joined is None:
            return best, location, None
        self._joined.add((joined.old, joined.new))
        for number, place in list(self._evicted.items()):
            if place.segment == joined.new and place.is_metric:
                self._evicted[number] = joined.moved(place)
            elif place.segment == joined.new:
                del self._evicted[number]  # its depths are archived in another unit
        if joined.new != location.segment:
            return best, location, joined
        found, there = self.localizer.follow(found, current.frame.stamp_ns)
        return (best, location, joined) if there is None else (found, there, joined)

    def _are_joined(self, one: int, other: int) -> bool:
        """Whether two segments were found to be one, with an unknown scale."""
        return (min(one, other), max(one, other)) in self._joined

    def use_gyroscope(self, gyroscope: Gyroscope | None) -> None:
        """Use a gyroscope's rotations to predict and to check poses, once it has agreed with some.

        Args:
            gyroscope: its samples may be added by another thread; None for none.
        """
        self.localizer.gyroscope = gyroscope

    def use_odometry(self, odometry: WheelOdometry | None) -> None:
        """Use another odometry's motions to predict and to check poses, once it has agreed with some.

        Args:
            odometry: its poses may be added by another thread; None for none.
        """
        self.localizer.odometry = odometry

    def warm_up(self, size: tuple[int, int]) -> None:
        """Run the network once on an image of `size` (width, height) and against every number of keyframes.

        The first run of a shape allocates memory and chooses kernels, which would delay the first frames. Memory for
        the keyframes is allocated too; this fails here if there is too little.
        """
        self._warm.add(size)
        # Not blank: in an image without contrast no cell takes part.
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
        features = self.encode(Frame(noise, 0, "")).features
        keyframe = self.matcher.complete(features)
        self.buffer.reserve(keyframe)
        for count in range(1, self.config.keyframe.max_matched + 1):
            self.matcher.match([keyframe] * count, features)
        for effort in self._budget.efforts[self.config.keyframe.max_matched :]:
            smaller = self.encode(Frame(noise, 0, ""), effort.scale).features
            self.matcher.match([self.matcher.complete(smaller)], smaller)

    def is_warm(self, size: tuple[int, int]) -> bool:
        """Whether images of a size need no warm-up: one was done, or the stream goes on; any thread may ask."""
        return size in self._warm or self.buffer.reference is not None

    def warm_up_for_stream(self, size: tuple[int, int]) -> None:
        """`warm_up` for the images of a new stream.

        Raises:
            FrameRefusedError: the network takes no images of this size, or the GPU's memory ran out.
        """
        with self._memory_guarded():
            self.warm_up(size)

    @property
    def effort(self) -> Effort:
        """Effort of the next frame, chosen to stay inside `max_latency_ms`."""
        return self._budget.effort

    def reset(self, reason: KeyframeReason = KeyframeReason.RESET) -> tuple[KeyframeEvent, ...]:
        """Drop every keyframe and forget the stream; the next frame is the first of a new one."""
        self._stream.reset()
        self.localizer.reset()
        self.recovery.reset()
        self.moving.reset()
        self._evicted.clear()
        self._forced, self._before, self._background = False, None, None
        self._links.clear()
        self._flow.forget()
        self.buffer.clear(reason)
        return self.buffer.take_events()

    def reconfigure(self, config: FrontEndConfig) -> None:
        """Use other settings from the next frame on, and keep the keyframes.

        Raises:
            ConfigError: a changed setting needs a new front end.
        """
        differing = changed(self.config, config)
        if fixed := [name for name, live in differing.items() if not live]:
            raise ConfigError(f"{', '.join(fixed)} cannot change while frames come")
        self.config = self.pairs.config = config
        self.buffer.config = config.keyframe
        self.recovery.config = config.recovery
        self.moving.config = config.moving
        self._quick.config = config.tracking
        self.localizer.reconfigure(config)
        if "max_latency_ms" in differing or "keyframe.max_matched" in differing:
            self._budget = LatencyBudget(config.latency.max_latency_ms / 1e3, config.keyframe.max_matched)

    def recall(self, number: int, frame: Frame, depth: CellDepth | None, grid: tuple[int, int]) -> bool:
        """Take an evicted keyframe back, because the camera may be there again.

        Args:
            number: its id.
            frame: its image, for example from an archive.
            depth, grid: of its cells; used if the network has the same cells.

        Returns:
            Whether it was taken: its place must be known in this trajectory.
        """
        location, reference = self._evicted.get(number), self.buffer.reference
        if location is None or reference is None:
            return False
        encoded = self.encode(frame)
        if encoded.features.size != reference.encoded.features.size:
            return False
        encoded = self.pairs.complete(encoded)
        same_cells = grid == encoded.features.grid
        self.buffer.recall(number, encoded, location, depth if same_cells else None, self.localizer.segment)
        del self._evicted[number]
        self._remember_evicted()
        return True

    def _remember_evicted(self) -> None:
        """Remember the places of keyframes evicted for lack of space."""
        for event in self.buffer.pending_events:
            location = event.keyframe.location
            if event.reason == KeyframeReason.EVICTED and location is not None:
                self._evicted[event.keyframe.id] = location
        while len(self._evicted) > _MOST_EVICTED:
            del self._evicted[next(iter(self._evicted))]

    def force_keyframe(self) -> None:
        """Make the next frame a keyframe regardless of the policies."""
        self._forced = True

    def take_warnings(self) -> list[StreamWarning]:
        """The warnings about the stream since the last call."""
        stray, self._stream.stray = self._stream.stray, ""
        depths = self._measuring.take_warning(), self.localizer.take_warning()
        return ([StreamWarning("time", stray)] if stray else []) + [each for each in depths if each is not None]

    def prepare(self, frame: Frame) -> EncodedFrame | PreparedFrame:
        """As `encode`, but without the network if it is probably not needed: optical flow can locate the frame, the
        frame shows nothing, or it is of another size than the stream.

        Raises:
            MaskError, FrameRefusedError: as `encode`.
        """
        start = time.perf_counter()
        reference = self.buffer.reference
        if reference is None:
            return self.encode(frame)
        if frame.usable is not None:
            check_mask(frame.usable, frame.image)
        size = self.pairs.network_size(*frame.size, self._resolution)
        quality = judge(frame.image, frame.usable)
        if reference.frame.size != frame.size:  # probably a stray, which is not worth a run of the network
            return PreparedFrame(frame, reference.encoded.grid, time.perf_counter() - start, quality)
        # After what the network is working on flow may go on, too.
        is_flow_possible = self._background is not None or self._flow_expected(frame)
        is_of_its_size = reference.encoded.features.size == size
        if quality == FrameQuality.USABLE and not (is_flow_possible and is_of_its_size):
            return self.encode(frame)
        return PreparedFrame(frame, reference.encoded.grid, time.perf_counter() - start, quality)

    def encode(self, frame: Frame, effort: float | None = None) -> EncodedFrame:
        """Compute everything that depends on the frame alone; may be called from another thread than the rest.

        Args:
            frame: the image.
            effort: part of the configured resolution; None for that of the keyframes.

        Raises:
            MaskError, FrameRefusedError: as `PairMatcher.encode`; also if the GPU's memory runs out, see
                `_memory_guarded`.
        """
        with self._memory_guarded():
            return self.pairs.encode(frame, self._resolution if effort is None else effort)

    @contextmanager
    def _memory_guarded(self) -> Iterator[None]:
        """If the GPU's memory runs out, refuse the frame, give memory back, and spend less on the next one.

        Raises:
            FrameRefusedError: it ran out.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            release_memory(self.matcher)
            self._budget.limit_to_less()
            now = self._budget.effort
            if now.scale != self._resolution:  # at once: a keyframe at another one would need memory for both
                self._resolution, self._drops_keyframes = now.scale, True
            raise FrameRefusedError(
                "memory",
                f"the GPU's memory ran out; from the next frame on with at most {now.keyframes} keyframes and images "
                f"at {now.scale:g} of the configured resolution. Lower keyframe.max_matched, keyframe.capacity or "
                "image.max_side, or end other programs on the GPU",
            ) from error

    def _admit(self, frame: Frame) -> None:
        check_companions(frame, self.config.scale.mode)
        changed = self._stream.admit(frame)
        if self._drops_keyframes:
            self._drops_keyframes, changed = False, KeyframeReason.EFFORT
        self.buffer.next_frame()
        if changed is not None:
            self.buffer.clear(changed)
            self.recovery.reset()
            self._evicted.clear()

    def _update_keyframes(
        self,
        current: EncodedFrame,
        located: list[Located],
        best: Located | None,
        location: Location | None,
        timer: _Timer,
    ) -> TrackLinks | None:
        """Choose the reference keyframe by coverage, and add the frame as keyframe if it has moved too far from it.

        Args:
            current: the frame.
            located: all results; `best` comes first, and may be replaced by one that covers more.
            best: the accepted one; None if the frame was not located.
            location: of the camera; None if unknown.
            timer: of the frame.

        Returns:
            Links from the cells of the keyframe that located the frame to those of the new keyframe; None without
            either.
        """
        covered = {}
        if best is not None:
            # The reference first: the others are compared with what it covers now.
            for each in sorted(located, key=lambda each: each.match.keyframe is not self.buffer.reference):
                covered[each.match.keyframe.id] = self._coverage(each, current)
                self.buffer.record_match(each.match.keyframe, covered[each.match.keyframe.id])
        reference = self.buffer.reference
        reason: KeyframeReason | None = None
        if reference is None:
            reason = KeyframeReason.FIRST if current.quality == FrameQuality.USABLE else None
        elif self._forced:
            reason = KeyframeReason.FORCED
        elif best is None:
            reason = self._new_place(current, timer)
        elif self.recovery.is_weak and not self._leads_on(current, location, timer):
            reason = None  # partly occluded: a frame located by the rest of the image is a bad keyframe
        elif self._budget.effort.scale != self._resolution:
            # Located at the old resolution, it continues at the new one.
            reason, self._resolution = KeyframeReason.EFFORT, self._budget.effort.scale
            current = self.encode(current.frame)
        else:
            chosen = next((each for each in located if each.match.keyframe is reference), best)
            reason = self._reason_for_keyframe(chosen, covered[chosen.match.keyframe.id], current)
        if reason is None:
            return None
        complete = self.pairs.complete(current)
        depth = self._measuring.of(complete, self.encode)
        segment = self.localizer.next_segment if location is None else location.segment
        keyframe = self.buffer.add(complete, reason, segment)
        self._forced = False
        if best is None or location is None:
            self.localizer.begin(keyframe, depth)
            self.recovery.located()
            return None
        return self.localizer.go_on(keyframe, depth, best, location)

    def _reason_for_keyframe(self, located: Located, coverage: float, current: StreamFrame) -> KeyframeReason | None:
        """Why a located frame should become a keyframe; None if it should not."""
        keyframe = located.match.keyframe
        reason = reason_for_keyframe(
            keyframe,
            coverage,
            located.match.pose,
            current.frame,
            self.config.keyframe,
            located.explained,
            self.config.scale.mode == MONO,
        )
        if located.explained >= _WAITS and current.sharpness * SHARPER < keyframe.encoded.sharpness:
            return None  # blurred: a sharper frame may follow in time
        return reason

    def _coverage(self, located: Located, current: StreamFrame) -> float:
        """Part of the frame that the inliers of an accepted match cover, 0 to 1."""
        if not located.is_believed:
            return 0.0
        return coverage(located.match.correspondences.current_points[located.match.pose.inliers], current.frame.size)

    def _new_place(self, current: EncodedFrame, timer: _Timer) -> KeyframeReason | None:
        """Whether a frame that was not located begins a new segment: its place must have been tracked for some
        frames.
        """
        candidate = self.buffer.candidate
        found = None if candidate is None else self._match([candidate], current, timer)[0]
        is_followed = found is not None and found.is_believed
        if self.recovery.followed(is_followed, self.buffer.keyframes):
            return KeyframeReason.LOST
        # A vehicle leaves a place behind with every frame, so each one that is sure of the last becomes the next. Of an
        # image just before no look-alike is to be feared.
        if found is None or not is_followed or found.explained >= self.config.geometry.min_explained:
            self.buffer.consider(self.pairs.complete(current))
        return None

    def _leads_on(self, current: EncodedFrame, location: Location | None, timer: _Timer) -> bool:
        """Whether a frame that was accepted by prediction may become a keyframe.

        Several in a row must be like it, and it must agree with the previous frame all over the image, by the predicted
        motion. A torn frame does not.
        """
        if not self.recovery.is_weak_for_long or location is None:
            return False
        before = self.buffer.candidate
        if before is not None and before.location is not None:
            found = self._match([before], current, timer)[0]
            moved = before.location.pose[:3, :3].T @ location.pose[:3, :3]
            apart = float(np.linalg.norm(rotation_vector(found.match.pose.rotation.T @ moved)))
            is_shown = found.match.pose.has_rotation and found.explained >= self.config.geometry.min_explained
            if is_shown and apart < _AGREEING_ROTATION:
                return True
        kept = self.buffer.consider(self.pairs.complete(current))
        if kept is not None:
            kept.location = location
        return False


def _shares_something(located: list[Located]) -> bool:
    """Whether a frame has matches with one of its keyframes."""
    return any(len(each.match.correspondences) >= _LEAST_SHARED for each in located)


class _Timer:
    """Seconds spent in named blocks, and the keyframes that the frame was matched with."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.runs: list[Keyframe] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count seconds of one stage in another."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds
