"""The streaming front end: one frame in, correspondences and poses against keyframes out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
import torch

from loftr_ros.frontend.budget import Effort, LatencyBudget
from loftr_ros.frontend.cell_depth import CellDepth, from_depth_image, from_stereo
from loftr_ros.frontend.config import RGBD, STEREO, ConfigError, FrontEndConfig, changed
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import (
    EncodedFrame,
    KeyframeBuffer,
    KeyframeEvent,
    KeyframeReason,
    coverage,
    raw_pixels,
    reason_for_keyframe,
)
from loftr_ros.frontend.localization import Localizer, Located
from loftr_ros.frontend.mask import check_mask, on_usable, shrink_mask
from loftr_ros.frontend.odometry import Location
from loftr_ros.frontend.refinement import refine
from loftr_ros.frontend.results import Correspondences, FrontEndResult, KeyframeMatch
from loftr_ros.frontend.stream import FrameRefusedError, StreamGuard, check_companions
from loftr_ros.frontend.tracks import TrackLinks
from loftr_ros.matcher.interface import Matcher, Matches

__all__ = ["STAGES", "Correspondences", "FrontEnd", "FrontEndResult", "KeyframeMatch"]

# Sides of an image in pixels, and of what the network sees of it, below which there is nothing to match; networks fail
# on less in ways of their own.
_LEAST_SIDE, _LEAST_SEEN = 32, 24
STAGES = ("encode", "match", "refine", "geometry", "keyframe")


class FrontEnd:
    """Keyframes and the matcher behind one method. Not thread-safe: one thread calls it."""

    def __init__(self, matcher: Matcher, config: FrontEndConfig | None = None, first_keyframe_id: int = 1) -> None:
        """Begin without keyframes.

        Args:
            matcher: the network, ready to infer.
            config: settings; None for the defaults.
            first_keyframe_id: id of the first keyframe, for who goes on after another front end.
        """
        self.config = config or FrontEndConfig()
        self.matcher = matcher
        self.buffer = KeyframeBuffer(self.config.keyframe, first_keyframe_id)
        self._stream = StreamGuard()
        self._forced = False
        self.localizer = Localizer(self.config)
        self._resolution = 1.0
        self._budget = LatencyBudget(self.config.latency.max_latency_ms / 1e3, self.config.keyframe.max_matched)

    def process(self, frame: Frame) -> FrontEndResult:
        """Match a frame with the keyframes, find its relative poses, decide whether it becomes a keyframe.

        Args:
            frame: the stream's next image.

        Raises:
            FrameRefusedError: the frame contradicts the stream (time, size, camera); the state is unchanged.
            MaskError: the frame's mask is not of its image's size; the state is unchanged.
        """
        return self.process_encoded(self.encode(frame))

    def process_encoded(self, current: EncodedFrame) -> FrontEndResult:
        """The rest of `process`, after `encode`, which touches no state: a caller may encode the next frame meanwhile.

        Raises:
            FrameRefusedError: as `process`.
        """
        timer = _Timer()
        timer.seconds["encode"] = current.seconds
        frame = current.frame
        self._admit(frame)
        reference = self.buffer.reference
        if reference is not None and reference.encoded.features.size != current.features.size:
            current = self.encode(frame)  # it was encoded before the resolution changed
        keyframes = self.buffer.choose(self._budget.effort.keyframes)
        with timer("match"):
            found = self.matcher.match([keyframe.encoded.features for keyframe in keyframes], current.features)
        with timer("refine"):
            correspondences = [self.to_raw_pixels(k.encoded, current, m) for k, m in zip(keyframes, found, strict=True)]
        with timer("geometry"):
            located = [self.localizer.locate(k, current, c) for k, c in zip(keyframes, correspondences, strict=True)]
            location = None
            if located:
                located[0], location = self.localizer.follow(located[0])
        matches = tuple(each.match for each in located)
        with timer("keyframe"):
            links = self._update_keyframes(current, located, location)
        self._budget.record(sum(timer.seconds.values()), timer.seconds["encode"], timer.seconds["match"])
        events = self.buffer.take_events()
        return FrontEndResult(frame, matches, events, timer.seconds, location, links, self._budget.effort)

    def warm_up(self, size: tuple[int, int]) -> None:
        """Run the network once on an image of `size` (width, height) and against every number of keyframes.

        The first run of a shape allocates and picks kernels; this takes that out of the first frames' latency. So does
        allocating the keyframes' places, which fails here if there is no memory for them.
        """
        # Not blank: an image without contrast has no cell that takes part.
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
        features = self.encode(Frame(noise, 0, "")).features
        keyframe = self.matcher.complete(features)
        self.buffer.reserve(keyframe)
        for count in range(1, self.config.keyframe.max_matched + 1):
            self.matcher.match([keyframe] * count, features)
        for effort in self._budget.efforts[self.config.keyframe.max_matched :]:
            smaller = self.encode(Frame(noise, 0, ""), effort.scale).features
            self.matcher.match([self.matcher.complete(smaller)], smaller)

    def match_pair(self, keyframe: Frame, current: Frame) -> Correspondences:
        """Match two frames by themselves, whatever the stream; keeps nothing."""
        encoded0, encoded1 = self.encode(keyframe), self.encode(current)
        complete = self.matcher.complete(encoded0.features)
        return self.to_raw_pixels(encoded0, encoded1, self.matcher.match([complete], encoded1.features)[0])

    @property
    def effort(self) -> Effort:
        """What the next frame is given, to stay inside `max_latency_ms`."""
        return self._budget.effort

    def reset(self, reason: KeyframeReason = KeyframeReason.RESET) -> tuple[KeyframeEvent, ...]:
        """Drop every keyframe and forget the stream; the next frame is the first of a new one."""
        self._stream.reset()
        self.localizer.reset()
        self._forced = False
        self.buffer.clear(reason)
        return self.buffer.take_events()

    def reconfigure(self, config: FrontEndConfig) -> None:
        """Go by other settings from the next frame on, with the keyframes that there are.

        Raises:
            ConfigError: a setting differs that can only be had by beginning anew.
        """
        differing = changed(self.config, config)
        if fixed := [name for name, live in differing.items() if not live]:
            raise ConfigError(f"{', '.join(fixed)} cannot change while frames come")
        self.config = config
        self.buffer.config = config.keyframe
        self.localizer.reconfigure(config)
        if "max_latency_ms" in differing or "keyframe.max_matched" in differing:
            self._budget = LatencyBudget(config.latency.max_latency_ms / 1e3, config.keyframe.max_matched)

    def force_keyframe(self) -> None:
        """Make the next frame a keyframe whatever the policies say."""
        self._forced = True

    def _admit(self, frame: Frame) -> None:
        check_companions(frame, self.config.scale.mode)
        changed = self._stream.admit(frame)
        self.buffer.next_frame()
        if changed is not None:
            self.buffer.clear(changed)

    def encode(self, frame: Frame, effort: float | None = None) -> EncodedFrame:
        """Everything that is computed from the frame alone; may be called from another thread than the rest.

        Args:
            frame: the image.
            effort: part of the configured resolution; None for that of the keyframes.

        Raises:
            MaskError: the frame's mask is not of its image's size.
            FrameRefusedError: the network takes images of another shape only.
        """
        start = time.perf_counter()
        width, height = frame.size
        size = self.network_size(width, height, self._resolution if effort is None else effort)
        if min(width, height) < _LEAST_SIDE or min(size) < _LEAST_SEEN:
            seen = "" if size == frame.size else f", of which the network sees {size[0]}x{size[1]}"
            raise FrameRefusedError(
                "size",
                f"image of {width}x{height} px{seen}: too small to be matched; expected sides of at least "
                f"{_LEAST_SIDE} px",
            )
        image, usable = frame.image, frame.usable
        if usable is not None:
            check_mask(usable, image)
        if size != frame.size:
            # INTER_AREA averages whole pixels, which is half-pixel correct and does not alias.
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
            usable = None if usable is None else shrink_mask(usable, size)
        features = self.matcher.encode(
            torch.from_numpy(np.ascontiguousarray(image)),
            None if usable is None else torch.from_numpy(np.ascontiguousarray(usable)),
        )
        scale = (width / features.size[0], height / features.size[1])
        cell = self.matcher.cell_size
        # A fine stage finds the cell's own point. Without one, the patch around the cell's centre is tracked, which
        # tells more than one around its corner, where the published weights have the cell's point.
        offset = self.matcher.cell_offset if self.matcher.has_fine_stage else (cell - 1) / 2
        return EncodedFrame(frame, features, scale, cell, offset, time.perf_counter() - start)

    def network_size(self, width: int, height: int, effort: float = 1.0) -> tuple[int, int]:
        """(width, height) at which the network sees an image.

        Args:
            width, height: of the image.
            effort: part of the configured resolution.

        Raises:
            FrameRefusedError: the network takes images of another shape only.
        """
        fixed = self.matcher.fixed_size
        if fixed is None:
            shrink = min(1.0, self.config.image.max_side / max(width, height)) * effort
            return max(round(width * shrink), 1), max(round(height * shrink), 1)
        # A pixel's rounding at either side is no other shape.
        if abs(width * fixed[1] - height * fixed[0]) > max(width, height, *fixed):
            raise FrameRefusedError(
                "size",
                f"image of {width}x{height}: the network was exported for {fixed[0]}x{fixed[1]}, which is of another "
                f"shape; export it with --width {width} --height {height}, or one shrunk to that shape",
            )
        return fixed

    def to_raw_pixels(self, keyframe: EncodedFrame, current: EncodedFrame, matches: Matches) -> Correspondences:
        """Matches in pixels of the incoming images, refined where the network has no fine stage."""
        cell = matches.cell.numpy()
        points0 = keyframe.cell_points[cell]
        points1 = raw_pixels(matches.points1.numpy(), current.scale)
        std = matches.std.numpy() * np.float32(math.sqrt(current.scale[0] * current.scale[1]))
        keep = np.ones(len(cell), dtype=np.bool_)
        if not self.matcher.has_fine_stage:
            # A coarse match says by how much the cell moved.
            moved = points1 - raw_pixels(matches.points0.numpy(), keyframe.scale)
            points1, keep = refine(
                keyframe.frame.image,
                current.frame.image,
                points0,
                points0 + moved,
                self.config.refine,
                extra_levels=max(0, math.ceil(math.log2(max(current.scale)))),
            )
        found = Correspondences(cell.astype(np.uint32), points0, points1, matches.confidence.numpy(), std)[keep]
        usable = on_usable(found.keyframe_points, keyframe.frame.usable)
        return found[usable & on_usable(found.current_points, current.frame.usable)]

    def _update_keyframes(
        self, current: EncodedFrame, located: list[Located], location: Location | None
    ) -> TrackLinks | None:
        """Let the best-covering keyframe be the reference, and add the frame where it has gone too far from it.

        Returns:
            Which cells of the new keyframe see points of the one that the frame was located by; None without either.
        """
        covered = {}
        for match in (each.match for each in located):
            points = match.correspondences.current_points[match.pose.inliers]
            covered[match.keyframe.id] = coverage(points, current.frame.size)
            self.buffer.record_match(match.keyframe, covered[match.keyframe.id])
        reference = self.buffer.reference
        if reference is None:
            reason: KeyframeReason | None = KeyframeReason.FIRST
        elif self._forced:
            reason = KeyframeReason.FORCED
        elif self._budget.effort.scale != self._resolution:
            # Located at the old resolution, it leads over to the new one.
            reason, self._resolution = KeyframeReason.EFFORT, self._budget.effort.scale
            current = self.encode(current.frame)
        else:
            pose = next(each.match.pose for each in located if each.match.keyframe is reference)
            reason = reason_for_keyframe(reference, covered[reference.id], pose, current.frame, self.config.keyframe)
        if reason is None:
            return None
        complete = replace(current, features=self.matcher.complete(current.features))
        depth = self._measured_depth(complete)
        keyframe = self.buffer.add(complete, reason)
        self._forced = False
        if not located or location is None:
            self.localizer.begin(keyframe, depth)
            return None
        return self.localizer.go_on(keyframe, depth, located[0], location)

    def _measured_depth(self, keyframe: EncodedFrame) -> CellDepth | None:
        """Of the cells, by the depth image or by the right image; None for a single camera."""
        frame, config = keyframe.frame, self.config.depth
        if self.config.scale.mode == RGBD and frame.depth is not None:
            return from_depth_image(frame.depth, keyframe.cell_points, config)
        if self.config.scale.mode != STEREO or frame.right is None or keyframe.cell_rays is None:
            return None
        right = frame.right
        seen = self.encode(Frame(right.image, frame.stamp_ns, frame.frame_id, right.camera))
        found = self.to_raw_pixels(keyframe, seen, self.matcher.match([keyframe.features], seen.features)[0])
        return from_stereo(
            len(keyframe.cell_points),
            found.track_id,
            keyframe.cell_rays[found.track_id],
            right.camera.unproject(found.current_points),
            right.left_from_right,
            found.std,
            right.camera,
            config,
        )


class _Timer:
    """Seconds spent in named blocks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start
