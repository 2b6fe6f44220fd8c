"""The streaming front end: one frame in, correspondences and poses against keyframes out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import (
    EncodedFrame,
    Keyframe,
    KeyframeBuffer,
    KeyframeEvent,
    KeyframeReason,
    coverage,
    raw_pixels,
    reason_for_keyframe,
)
from loftr_ros.frontend.mask import check_mask, on_usable, shrink_mask
from loftr_ros.frontend.refinement import refine
from loftr_ros.frontend.relative_pose import (
    PoseStatus,
    RelativePose,
    estimate_relative_pose,
    uncalibrated_inliers,
    without_pose,
)
from loftr_ros.frontend.stream import FrameRefusedError, StreamGuard
from loftr_ros.matcher.interface import Matcher, Matches

STAGES = ("encode", "match", "refine", "geometry", "keyframe")


@dataclass(frozen=True)
class Correspondences:
    """Matches of the current frame with one keyframe, in raw pixels.

    Attributes:
        track_id: (N,) uint32, the keyframe's cell; with the keyframe's id it names a scene point.
        keyframe_points, current_points: (N, 2) float32 pixels (u, v).
        confidence: (N,) float32 in [0, 1], the matcher's.
        std: (N,) float32 pixels, standard deviation of `current_points` along one axis as the network's fine stage
            sees it; NaN where the network has none.
    """

    track_id: NDArray[np.uint32]
    keyframe_points: NDArray[np.float32]
    current_points: NDArray[np.float32]
    confidence: NDArray[np.float32]
    std: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.track_id)

    def __getitem__(self, keep: NDArray[np.bool_]) -> Correspondences:
        """Those that an (N,) bool says."""
        return Correspondences(
            self.track_id[keep],
            self.keyframe_points[keep],
            self.current_points[keep],
            self.confidence[keep],
            self.std[keep],
        )


@dataclass(frozen=True)
class KeyframeMatch:
    """What the current frame and one keyframe have in common."""

    keyframe: Keyframe
    correspondences: Correspondences
    pose: RelativePose


@dataclass(frozen=True)
class FrontEndResult:
    """What `FrontEnd.process` found.

    Attributes:
        frame: the frame it was given.
        matches: one entry a keyframe matched, the reference first; empty for the first frame.
        events: keyframes that came and went, with those of a frame before it that failed halfway.
        latencies: seconds spent in each of STAGES.
    """

    frame: Frame
    matches: tuple[KeyframeMatch, ...]
    events: tuple[KeyframeEvent, ...]
    latencies: dict[str, float] = field(default_factory=dict)

    @property
    def is_unmatched(self) -> bool:
        """Whether there were keyframes, and too few matches with each of them."""
        return bool(self.matches) and all(m.pose.status == PoseStatus.TOO_FEW_MATCHES for m in self.matches)


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

    def process(self, frame: Frame) -> FrontEndResult:
        """Match a frame with the keyframes, find its relative poses, decide whether it becomes a keyframe.

        Args:
            frame: the stream's next image.

        Raises:
            FrameRefusedError: the frame contradicts the stream (time, size, camera); the state is unchanged.
            MaskError: the frame's mask is not of its image's size; the state is unchanged.
        """
        timer = _Timer()
        with timer("encode"):
            current = self.encode(frame)
        return self.process_encoded(current, timer)

    def process_encoded(self, current: EncodedFrame, timer: _Timer | None = None) -> FrontEndResult:
        """The rest of `process`, after `encode`, which touches no state: a caller may encode the next frame meanwhile.

        Raises:
            FrameRefusedError: as `process`.
        """
        timer = timer or _Timer()
        frame = current.frame
        self._admit(frame)
        keyframes = self.buffer.choose()
        with timer("match"):
            found = self.matcher.match([keyframe.encoded.features for keyframe in keyframes], current.features)
        with timer("refine"):
            correspondences = [self.to_raw_pixels(k.encoded, current, m) for k, m in zip(keyframes, found, strict=True)]
        with timer("geometry"):
            matches = [
                KeyframeMatch(k, c, self._relative_pose(k.encoded, current, c))
                for k, c in zip(keyframes, correspondences, strict=True)
            ]
        with timer("keyframe"):
            self._update_keyframes(current, matches)
        return FrontEndResult(frame, tuple(matches), self.buffer.take_events(), timer.seconds)

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

    def match_pair(self, keyframe: Frame, current: Frame) -> Correspondences:
        """Match two frames by themselves, whatever the stream; keeps nothing."""
        encoded0, encoded1 = self.encode(keyframe), self.encode(current)
        complete = self.matcher.complete(encoded0.features)
        return self.to_raw_pixels(encoded0, encoded1, self.matcher.match([complete], encoded1.features)[0])

    def reset(self, reason: KeyframeReason = KeyframeReason.RESET) -> tuple[KeyframeEvent, ...]:
        """Drop every keyframe and forget the stream; the next frame is the first of a new one."""
        self._stream.reset()
        self._forced = False
        self.buffer.clear(reason)
        return self.buffer.take_events()

    def force_keyframe(self) -> None:
        """Make the next frame a keyframe whatever the policies say."""
        self._forced = True

    def _admit(self, frame: Frame) -> None:
        changed = self._stream.admit(frame)
        self.buffer.next_frame()
        if changed is not None:
            self.buffer.clear(changed)

    def encode(self, frame: Frame) -> EncodedFrame:
        """Everything that is computed from the frame alone; may be called from another thread than the rest.

        Raises:
            MaskError: the frame's mask is not of its image's size.
            FrameRefusedError: the network takes images of another shape only.
        """
        width, height = frame.size
        size = self._network_size(width, height)
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
        return EncodedFrame(frame, features, scale, cell, offset)

    def _network_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) at which the network sees an image."""
        fixed = self.matcher.fixed_size
        if fixed is None:
            shrink = min(1.0, self.config.image.max_side / max(width, height))
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

    def _relative_pose(self, keyframe: EncodedFrame, current: EncodedFrame, matches: Correspondences) -> RelativePose:
        camera = current.frame.camera
        if camera is None or keyframe.cell_rays is None or keyframe.frame.camera is None:
            inliers = uncalibrated_inliers(matches.keyframe_points, matches.current_points, self.config.geometry)
            return without_pose(PoseStatus.NO_CALIBRATION, inliers)
        rays_keyframe = keyframe.cell_rays[matches.track_id]
        rays_current = camera.unproject(matches.current_points)
        return estimate_relative_pose(
            rays_keyframe, rays_current, keyframe.frame.camera.focal_length, self.config.geometry, matches.std
        )

    def _update_keyframes(self, current: EncodedFrame, matches: list[KeyframeMatch]) -> None:
        """Let the best-covering keyframe be the reference, and add the frame where it has gone too far from it."""
        covered = {}
        for match in matches:
            points = match.correspondences.current_points[match.pose.inliers]
            covered[match.keyframe.id] = coverage(points, current.frame.size)
            self.buffer.record_match(match.keyframe, covered[match.keyframe.id])
        reference = self.buffer.reference
        if reference is None:
            reason: KeyframeReason | None = KeyframeReason.FIRST
        elif self._forced:
            reason = KeyframeReason.FORCED
        else:
            pose = next(match.pose for match in matches if match.keyframe is reference)
            reason = reason_for_keyframe(reference, covered[reference.id], pose, current.frame, self.config.keyframe)
        if reason is not None:
            self.buffer.add(replace(current, features=self.matcher.complete(current.features)), reason)
        self._forced = False


class _Timer:
    """Seconds spent in named blocks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start
