"""The buffer of keyframes, and the policies that add, choose and drop them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.config import KeyframeConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.mask import on_usable
from loftr_ros.frontend.odometry import ChainLink, Location
from loftr_ros.frontend.quality import FrameQuality, sharpness
from loftr_ros.frontend.tracks import TrackLinks, landmarks_of, nearest_cells
from loftr_ros.frontend.trust import Texture, texture_of
from loftr_ros.geometry.epipolar import ray_area
from loftr_ros.geometry.two_view import RelativePose
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.matcher.ring import FeatureRing

# Columns and rows of the grid that measures how much of the image matches cover.
COVERAGE_GRID = (8, 6)


class KeyframeReason(IntEnum):
    """Why a keyframe was added or removed; the numbers are those of msg/Keyframe."""

    FIRST = 0
    LOW_COVERAGE = 1
    HIGH_PARALLAX = 2
    HIGH_ROTATION = 3
    AGE = 4
    LOST = 5
    FORCED = 6
    EFFORT = 7
    RECALLED = 8
    EVICTED = 16
    RESET = 17
    CAMERA_CHANGED = 18
    TIME_JUMPED = 19
    RESIZED = 20


class StreamFrame(ABC):
    """A frame of the stream, encoded or not.

    Attributes:
        frame: the image and its origin.
        quality: verdict on the image alone.
    """

    frame: Frame
    quality: FrameQuality

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of cells."""

    @cached_property
    def texture(self) -> Texture:
        """Where the image has texture to match."""
        return texture_of(self.frame.image, max(self.grid), self.frame.usable)

    @cached_property
    def sharpness(self) -> float:
        """Ratio of finest to coarser detail, see `quality.sharpness`."""
        return sharpness(self.frame.image)


@dataclass(frozen=True)
class PreparedFrame(StreamFrame):
    """A frame that the network has not encoded, because its points can probably be followed by optical flow.

    Attributes:
        cells: (rows, columns), as the network has them in an image of this size.
        seconds: time spent on it so far.
    """

    frame: Frame
    cells: tuple[int, int]
    seconds: float = 0.0
    quality: FrameQuality = FrameQuality.USABLE

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.cells


@dataclass(frozen=True)
class EncodedFrame(StreamFrame):
    """A frame with everything computed from it alone. It can become a keyframe without further computation.

    Attributes:
        features: the network's, on its device.
        scale: (u, v) pixels of the raw image per pixel of the encoded image.
        cell_size: side of a coarse cell, in pixels of the encoded image.
        cell_offset: from a cell's top-left pixel to the point of its matches, along either axis, in pixels of the
            encoded image.
        seconds: time of the encoding.
    """

    frame: Frame
    features: ImageFeatures
    scale: tuple[float, float]
    cell_size: int
    cell_offset: float
    seconds: float = 0.0
    quality: FrameQuality = FrameQuality.USABLE

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.features.grid

    @cached_property
    def mean_feature(self) -> NDArray[np.float32]:
        """(C,) mean of the coarse features, for comparing views; waits for the device once."""
        return self.features.tokens[0].float().mean(dim=0).cpu().numpy()

    @cached_property
    def cell_points(self) -> NDArray[np.float32]:
        """(L, 2) float32 raw pixels of the coarse cells' points: positions of the `track_id`s in this image."""
        rows, columns = self.grid
        cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
        return raw_pixels((cells * self.cell_size + self.cell_offset).astype(np.float32), self.scale)

    @cached_property
    def cell_rays(self) -> NDArray[np.float64] | None:
        """(L, 2) rays of the cells' points, NaN where there is none; None without calibration."""
        return None if self.frame.camera is None else self.frame.camera.unproject(self.cell_points)

    @cached_property
    def view_area(self) -> float | None:
        """Area of the normalised plane covered by the usable cells; None without calibration."""
        if self.cell_rays is None:
            return None
        return ray_area(self.cell_rays[on_usable(self.cell_points, self.frame.usable)])

    def nearest_cells(self, points: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(N,) cells nearest to (N, 2) raw pixels, and (N,) distances in pixels."""
        return nearest_cells(points, self.cell_points, self.grid)


@dataclass
class Keyframe:
    """A frame in the buffer, with the record of its use.

    Attributes:
        id: never used twice.
        encoded: the frame.
        coverage: part of the newest frame matched with it that its inliers covered, 0 to 1.
        last_matched: number of the frame it was last matched with.
        landmarks: (L,) uint64 names of its cells' scene points; by default its own (see `landmarks_of`).
        offsets: (L, 2) float32 px from its cells' own points to those of older keyframes that they have taken over.
        offset_std: (L,) float32 px, standard deviation of them along one axis.
        depth: of its cells; None if unknown so far.
        depth_parallax: px, median parallax of the views used to triangulate its depths.
        first_depth: `depth` before later views refined it. It holds a single camera's unit of length, which these views
            cannot observe.
        location: of its camera; None if unknown so far.
        last_compared: stamp in nanoseconds of the last frame of another segment that it was matched with.
        link: to the keyframe that it was located by; None for the first of a segment.
        followed: (L,) bool, cells that the last frame located by it matched; None before.
    """

    id: int
    encoded: EncodedFrame
    coverage: float = 1.0
    last_matched: int = 0
    landmarks: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    offsets: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    offset_std: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    depth: CellDepth | None = None
    depth_parallax: float = 0.0
    first_depth: CellDepth | None = None
    location: Location | None = None
    last_compared: int = 0
    link: ChainLink | None = None
    followed: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if not len(self.landmarks):
            self.landmarks = landmarks_of(self.id, len(self.encoded.cell_points))
        if not len(self.offsets):
            self.offsets = np.zeros((len(self.landmarks), 2), np.float32)
            self.offset_std = np.zeros(len(self.landmarks), np.float32)

    def take_over(self, links: TrackLinks, landmarks: NDArray[np.uint64]) -> None:
        """Continue the landmarks of an older keyframe, whose names by cell are given."""
        self.landmarks = landmarks_of(self.id, len(self.landmarks), links, landmarks)
        self.offsets[links.new_track], self.offset_std[links.new_track] = links.offset, links.std

    @property
    def frame(self) -> Frame:
        return self.encoded.frame

    def follow(self, cells: NDArray[np.integer]) -> None:
        """Remember the cells that a frame located by this keyframe matches."""
        self.followed = np.zeros(len(self.landmarks), np.bool_)
        self.followed[cells] = True


@dataclass(frozen=True)
class KeyframeEvent:
    """A keyframe was added or removed.

    Attributes:
        keyframe: the keyframe.
        added: true if added, false if removed.
        reason: why.
        num_keyframes: keyframes in the buffer afterwards.
    """

    keyframe: Keyframe
    added: bool
    reason: KeyframeReason
    num_keyframes: int


class KeyframeBuffer:
    """At most `capacity` keyframes; new frames are compared with one of them, the reference.

    If the buffer is full, the keyframe that has been without a match for longest is evicted. The reference never is,
    and neither is one of a lost segment while such keyframes fill less than half of the buffer, so that a revisited
    place is recognised. Features of the keyframes stay in a ring; `take_events` reports changes.

    Attributes:
        candidate: a frame of a place that is being tracked by itself and is not yet a keyframe; None without.
    """

    def __init__(self, config: KeyframeConfig, first_id: int = 1) -> None:
        self.config = config
        self._keyframes: list[Keyframe] = []
        self._ring = FeatureRing(config.capacity + 1)  # and the candidate
        self.candidate: Keyframe | None = None
        self._events: list[KeyframeEvent] = []
        self.next_id = first_id
        self._frame_number = 0
        self.reference: Keyframe | None = None

    def __len__(self) -> int:
        return len(self._keyframes)

    @property
    def keyframes(self) -> tuple[Keyframe, ...]:
        """The current keyframes, oldest first."""
        return tuple(self._keyframes)

    def choose(self, most: int | None = None) -> list[Keyframe]:
        """Choose at most `most` (or `max_matched`) keyframes to match with the next frame, the reference first.

        The others are ordered by how well they covered the last frame that they were matched with. The last place goes
        to the keyframe that has waited longest for a match, so that a revisited place is found.
        """
        if self.reference is None:
            return []
        others = [keyframe for keyframe in self._keyframes if keyframe is not self.reference]
        others.sort(key=lambda keyframe: keyframe.coverage, reverse=True)
        places = (most or self.config.max_matched) - 1
        if len(others) <= places:
            return [self.reference, *others]
        if places == 0:
            return [self.reference]
        best, rest = others[: places - 1], others[places - 1 :]
        return [self.reference, *best, min(rest, key=lambda keyframe: keyframe.last_matched)]

    def record_match(self, keyframe: Keyframe, coverage: float) -> None:
        """Record how well a keyframe covered the newest frame; the best one becomes the reference.

        A challenger must cover a tenth more than the reference, so that two equal ones do not alternate.
        """
        keyframe.coverage = coverage
        keyframe.last_matched = self._frame_number
        if self.reference is not None and coverage > 1.1 * self.reference.coverage:
            self.reference = keyframe

    def next_frame(self) -> None:
        """Count a frame."""
        self._frame_number += 1

    def reserve(self, features: ImageFeatures) -> None:
        """Allocate memory for all keyframes now, for features like these. No effect once there are keyframes."""
        if not self._keyframes:
            self._ring.free(self._ring.keep(features))

    def consider(self, encoded: EncodedFrame | None) -> Keyframe | None:
        """Make a frame the candidate in place of the last one; None for no candidate.

        Args:
            encoded: the frame; its features are copied.
        """
        if self.candidate is not None:
            self._ring.free(self.candidate.encoded.features)
            self.candidate = None
        if encoded is not None:
            if self._keyframes and self._keyframes[0].encoded.features.size != encoded.features.size:
                return None  # the network's input resolution has changed since
            kept = replace(encoded, features=self._ring.keep(encoded.features))
            self.candidate = Keyframe(0, kept, last_matched=self._frame_number)
        return self.candidate

    def recall(
        self, number: int, encoded: EncodedFrame, location: Location, depth: CellDepth | None, segment: int
    ) -> Keyframe:
        """Take an evicted keyframe back; the reference stays.

        Args:
            number: its id.
            encoded: the frame; its features are copied.
            location, depth: its own.
            segment: the current one of the trajectory.
        """
        if len(self._keyframes) >= self.config.capacity:
            self._drop(self._least_useful(segment), KeyframeReason.EVICTED)
        kept = replace(encoded, features=self._ring.keep(encoded.features))
        keyframe = Keyframe(number, kept, last_matched=self._frame_number, depth=depth, location=location)
        self._keyframes.append(keyframe)
        self._events.append(KeyframeEvent(keyframe, True, KeyframeReason.RECALLED, len(self._keyframes)))
        return keyframe

    def segments(self) -> set[int]:
        """Segments of the trajectory with keyframes in the buffer."""
        return {keyframe.location.segment for keyframe in self._keyframes if keyframe.location is not None}

    def add(self, encoded: EncodedFrame, reason: KeyframeReason, segment: int = 0) -> Keyframe:
        """Add a frame as keyframe and make it the reference. If the buffer is full, another one is evicted.

        Args:
            encoded: the frame; its features are copied, so the caller may reuse them.
            reason: why.
            segment: of the trajectory that it continues or begins.

        Features of another size drop all other keyframes: the ring holds features of one size.
        """
        self.consider(None)
        if self._keyframes and self._keyframes[0].encoded.features.size != encoded.features.size:
            self.clear(KeyframeReason.RESIZED)
        if len(self._keyframes) >= self.config.capacity:
            self._drop(self._least_useful(segment), KeyframeReason.EVICTED)
        kept = replace(encoded, features=self._ring.keep(encoded.features))
        keyframe = Keyframe(self.next_id, kept, last_matched=self._frame_number)
        self.next_id += 1
        self._keyframes.append(keyframe)
        self.reference = keyframe
        self._events.append(KeyframeEvent(keyframe, True, reason, len(self._keyframes)))
        return keyframe

    def clear(self, reason: KeyframeReason) -> None:
        """Drop every keyframe; ids continue."""
        self.consider(None)
        while self._keyframes:
            self._drop(self._keyframes[0], reason)

    @property
    def pending_events(self) -> tuple[KeyframeEvent, ...]:
        """What `take_events` will return."""
        return tuple(self._events)

    def take_events(self) -> tuple[KeyframeEvent, ...]:
        """Keyframes added and removed since the last call, oldest first."""
        events = tuple(self._events)
        self._events = []
        return events

    def _least_useful(self, segment: int) -> Keyframe:
        """The keyframe to evict when another one of a segment is added."""
        others = [k for k in self._keyframes if k is not self.reference] or self._keyframes
        lost = [k for k in others if k.location is not None and k.location.segment != segment]
        own = [k for k in others if k not in lost]
        pool = lost if len(lost) > self.config.capacity // 2 or not own else own
        return min(pool, key=lambda keyframe: keyframe.last_matched)

    def _drop(self, keyframe: Keyframe, reason: KeyframeReason) -> None:
        self._keyframes.remove(keyframe)
        if keyframe is self.reference:
            self.reference = None
        self._ring.free(keyframe.encoded.features)
        self._events.append(KeyframeEvent(keyframe, False, reason, len(self._keyframes)))


def raw_pixels(points: NDArray[np.float32], scale: tuple[float, float]) -> NDArray[np.float32]:
    """(N, 2) pixels of the encoded image to pixels of the raw image, half-pixel correct.

    Args:
        points: (N, 2) float32, (0, 0) at the centre of the top-left pixel.
        scale: raw pixels per encoded pixel, (u, v).
    """
    if scale == (1.0, 1.0):
        return points
    factor = np.asarray(scale, dtype=np.float32)
    return (points + np.float32(0.5)) * factor - np.float32(0.5)


def coverage(points: NDArray[np.float32], size: tuple[int, int]) -> float:
    """Part of the image's grid blocks that hold at least one point.

    Args:
        points: (N, 2) pixels.
        size: (width, height) of the image.
    """
    columns, rows = COVERAGE_GRID
    block = (points * (columns / size[0], rows / size[1])).astype(np.int64)
    block = np.clip(block, 0, (columns - 1, rows - 1))
    return len(np.unique(block[:, 1] * columns + block[:, 0])) / (columns * rows)


def reason_for_keyframe(
    reference: Keyframe,
    coverage: float,
    pose: RelativePose,
    frame: Frame,
    config: KeyframeConfig,
    explained: float = 1.0,
    is_mono: bool = False,
) -> KeyframeReason | None:
    """Why a located frame should become a keyframe, compared with the reference; None if it should not.

    Args:
        reference: the keyframe that covers the frame best.
        coverage: how much of the frame its inliers cover, 0 to 1.
        pose: of the frame relative to it.
        frame: the current one.
        config: the limits.
        explained: part of what both images should show that inliers cover, 0 to 1.
        is_mono: whether there is one camera without depth.
    """
    has_parallax = pose.has_direction and pose.median_parallax >= config.min_parallax_mono * reference.encoded.scale[0]
    if explained < (config.min_explained_mono if is_mono and has_parallax else config.min_explained):
        return KeyframeReason.LOW_COVERAGE
    if coverage < config.min_coverage:
        return KeyframeReason.LOW_COVERAGE
    if pose.has_direction and pose.median_parallax > config.max_parallax * frame.size[0]:
        return KeyframeReason.HIGH_PARALLAX
    if pose.has_rotation and pose.rotation_angle > config.max_rotation:
        return KeyframeReason.HIGH_ROTATION
    age = (frame.stamp_ns - reference.frame.stamp_ns) / 1e9
    if config.max_age > 0 and age > config.max_age:
        return KeyframeReason.AGE
    return None
