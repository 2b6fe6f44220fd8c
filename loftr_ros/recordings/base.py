"""The interface of all sources: options, and the iteration over frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings.companions import NO_COMPANIONS, check_mode
from loftr_ros.recordings.images import BagImage, EncodedImage, PixelImage, SourceError
from loftr_ros.recordings.reading import SourceFrame

if TYPE_CHECKING:
    from loftr_ros.recordings.imu import RecordedImu

FRAME_ID = "camera_optical_frame"
FIRST_STAMP_NS = 1_000_000_000  # first generated stamp: in ROS a stamp of zero means no stamp


@dataclass(frozen=True)
class SourceOptions:
    """Options of every source.

    Attributes:
        start, stop, step: selected frames: start, start + step, ... below stop (None: to the end).
        rate: frames per second, used to generate stamps from the frame numbers. None: the source's own stamps, or its
            usual rate if it has none.
        topic: image topic of a bag that has several.
        right_topic, depth_topic: of a bag, if their names are ambiguous.
        mask_topic: of a bag, with masks of what moves.
        masks: folder of masks of what moves, for other recordings; a mask has its image's name, or the frame's number.
        camera: replaces the source's own calibration: a ROS `camera_calibration` YAML file, or a model.
    """

    start: int = 0
    stop: int | None = None
    step: int = 1
    rate: float | None = None
    topic: str | None = None
    right_topic: str | None = None
    depth_topic: str | None = None
    mask_topic: str | None = None
    masks: str | Path | None = None
    camera: str | Path | CameraModel | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.step < 1 or (self.stop is not None and self.stop <= self.start):
            raise SourceError(
                f"start {self.start}, stop {self.stop}, step {self.step}: expected 0 <= start < stop and step >= 1"
            )
        if self.rate is not None and not (self.rate > 0 and np.isfinite(self.rate)):
            raise SourceError(f"rate {self.rate}: expected frames per second, more than 0")

    def indices(self, total: int) -> range:
        """Numbers of the selected frames of a source of `total` frames."""
        return range(self.start, total if self.stop is None else min(self.stop, total), self.step)

    def chooses(self, index: int) -> bool:
        """Whether frame `index` is selected."""
        inside = index >= self.start and (self.stop is None or index < self.stop)
        return inside and (index - self.start) % self.step == 0

    def stamp(self, index: int) -> int | None:
        """The stamp of frame `index` by `rate`, or None without a `rate`."""
        return None if self.rate is None else stamp_at(index, self.rate)


def stamp_at(index: int, rate: float) -> int:
    """Stamp in nanoseconds of frame `index` at `rate` frames per second."""
    return FIRST_STAMP_NS + round(index * 1e9 / rate)


class Source(ABC):
    """Frames in order of time. Each iteration restarts; leaving the context closes files.

    Attributes:
        name: for messages to people.
        kind: the detected kind, for messages to people.
        rate: nominal rate of the selected frames in Hz.
        length: number of frames, or None if unknown. A video's is the claim of its container.
        camera: calibration of the first frame, or None if unknown.
        slow: frames take so long to make that they should be made before they are played.
        cost: of a slow source, the time and memory that it takes, for people.
        notes: remarks for people: skipped files, undecodable frames. Complete after a full pass.
        lost: frames missing in the last pass, for example of a damaged video.
        lacks: by mode of the front end (`stereo`, `rgbd`), why the source does not support it; supported modes are
            absent. In a recording with gaps, single frames may still lack their partner.
        imu: samples of an inertial sensor beside the camera; None without.
        has_masks: whether frames come with masks of what moves.
    """

    name: str
    kind: str
    rate: float
    length: int | None
    camera: CameraModel | None
    slow: bool = False
    cost: str = ""
    lacks: Mapping[str, str] = NO_COMPANIONS
    imu: RecordedImu | None = None
    has_masks: bool = False

    @property
    def notes(self) -> Sequence[str]:
        return ()

    @property
    def lost(self) -> int:
        return 0

    @abstractmethod
    def __iter__(self) -> Iterator[SourceFrame]:
        """Yield the selected frames.

        Raises:
            SourceError: a frame cannot be read.
        """

    def prepare(self) -> None:  # noqa: B027 (most sources need nothing)
        """Do the slow preparation for all frames now, instead of with the first frame."""

    def after(self, stamp_ns: int) -> Iterator[SourceFrame]:
        """Yield the selected frames later than a stamp in nanoseconds.

        Raises:
            SourceError: a frame cannot be read.
        """
        return (frame for frame in self if frame.stamp_ns > stamp_ns)

    def require(self, mode: str) -> None:
        """Check before the first frame that the source supports a mode of the front end.

        Raises:
            SourceError: it does not, with the reason; or there is no such mode.
        """
        check_mode(mode)
        if mode in self.lacks:
            raise SourceError(f"{self.name} ({self.kind}) does not support mode {mode}: {self.lacks[mode]}")

    def close(self) -> None:  # noqa: B027 (most sources hold nothing open)
        """Close files. The source cannot be iterated any more."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = [
    "FIRST_STAMP_NS",
    "FRAME_ID",
    "BagImage",
    "EncodedImage",
    "PixelImage",
    "Source",
    "SourceError",
    "SourceFrame",
    "SourceOptions",
    "stamp_at",
]
