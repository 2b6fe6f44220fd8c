"""The contract of all sources: what a frame carries, and how a source hands frames out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.frontend.frame import DepthImage, Frame, RightImage
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings.bag_depth import BagDepth
from loftr_ros.recordings.companions import COME_WITH, NO_COMPANIONS, DepthFile, RightView, check_mode
from loftr_ros.recordings.images import (
    BagImage,
    EncodedImage,
    Image,
    PixelImage,
    SourceError,
    decode_color,
    decode_gray,
    gray_pixels,
)

if TYPE_CHECKING:
    from loftr_ros.recordings.imu import ImuSamples

FRAME_ID = "camera_optical_frame"
FIRST_STAMP_NS = 1_000_000_000  # made-up stamps begin here: in ROS a stamp of zero means that there is none


@dataclass(frozen=True)
class SourceFrame:
    """One frame of a source. Its images stay as the source holds them until somebody asks for pixels.

    Attributes:
        index: number of the frame in the source (before `start` and `step`), from 0.
        stamp_ns: time of exposure in nanoseconds.
        frame_id: the camera's optical frame (REP 103: x right, y down, z forward).
        image: as it came.
        camera: the camera's calibration, or None where it is unknown.
        pose: (4, 4) float64 T_world_camera, the ground truth, or None.
        metric: whether the translation of `pose` is in metres.
        right: what the right camera of a stereo pair saw, of which `image` is the left one; None for nothing.
        depth: registered to `image`; None for none.
    """

    index: int
    stamp_ns: int
    frame_id: str
    image: Image
    camera: CameraModel | None = None
    pose: NDArray[np.float64] | None = None
    metric: bool = False
    right: RightView | None = None
    depth: DepthFile | BagDepth | DepthImage | None = None

    def decode(self) -> NDArray[np.uint8]:
        """The (H, W) uint8 gray image, decoded by the code that the node uses, so both see the same pixels.

        Raises:
            SourceError: the image is damaged or of a kind that has no gray.
        """
        return decode_gray(self.image, self.which)

    def decode_all_bits(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The (H, W) gray image, uint16 where it came with 16 bits a pixel: what to publish, unstretched.

        Raises:
            SourceError: the image is damaged or of a kind that has no gray.
        """
        return gray_pixels(self.image, self.which)

    def decode_color(self) -> NDArray[np.uint8]:
        """The image in colour where it has any: (H, W, 3) uint8 BGR, else (H, W) uint8 gray.

        Raises:
            SourceError: the image is damaged.
        """
        return decode_color(self.image, self.which)

    def decode_right(self) -> RightImage:
        """The right image, gray, with its calibration and its place.

        Raises:
            SourceError: there is none, it cannot be read, or it is of another size than its calibration.
        """
        frame, right = self.right_side()
        image = frame.decode()
        height, width = image.shape
        right.check_size(width, height, frame.which)
        return RightImage(image, right.camera, right.left_from_right)

    def right_side(self) -> tuple[SourceFrame, RightView]:
        """The right camera's side as a frame of its own, whose image is still as it came, and where it belongs.

        Raises:
            SourceError: there is none, or it cannot be read.
        """
        if self.right is None:
            raise SourceError(f"{self.which} has no right image that belongs to it; {COME_WITH[STEREO]}")
        right = self.right
        return SourceFrame(self.index, self.stamp_ns, right.frame_id, right.load(), right.camera), right

    def decode_depth(self, size: tuple[int, int] | None = None) -> DepthImage:
        """The depth image.

        Args:
            size: (width, height) of the image, which must be the depth's too; None takes the calibration's, if any.

        Raises:
            SourceError: there is none, it cannot be read, or it is no depth image of that size.
        """
        if self.depth is None:
            raise SourceError(f"{self.which} has no depth image that belongs to it; {COME_WITH[RGBD]}")
        if size is None and self.camera is not None:
            size = self.camera.width, self.camera.height
        return self.depth if isinstance(self.depth, DepthImage) else self.depth.decode(size)

    def to_frame(self, mode: str = MONO) -> Frame:
        """The frame as the front end takes it, by the node's default parameters; `FrameReader` takes others.

        Args:
            mode: `mono` decodes the image alone, `stereo` the right one too, `rgbd` the depth image too.

        Raises:
            SourceError: an image is missing or damaged, or a calibration is for another image size.
        """
        from loftr_ros.recordings.reading import FrameReader

        return FrameReader().read(self, mode)

    @property
    def which(self) -> str:
        """Names the frame in errors."""
        image = self.image
        where = image.where if isinstance(image, EncodedImage) else f"stamp {self.stamp_ns / 1e9:.3f} s"
        return f"frame {self.index} ({where})"


@dataclass(frozen=True)
class SourceOptions:
    """What can be asked of every source.

    Attributes:
        start, stop, step: which frames: those numbered start, start + step, ... below stop (None: to the end).
        rate: frames a second; stamps are then made from the frame numbers. None: the source's own stamps, or,
            where it has none, its usual rate.
        topic: image topic of a bag that has several.
        right_topic, depth_topic: of a bag, where their names do not tell.
        camera: calibration instead of the source's own: a ROS `camera_calibration` YAML file, or a model.
    """

    start: int = 0
    stop: int | None = None
    step: int = 1
    rate: float | None = None
    topic: str | None = None
    right_topic: str | None = None
    depth_topic: str | None = None
    camera: str | Path | CameraModel | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.step < 1 or (self.stop is not None and self.stop <= self.start):
            raise SourceError(
                f"start {self.start}, stop {self.stop}, step {self.step}: expected 0 <= start < stop and step >= 1"
            )
        if self.rate is not None and not (self.rate > 0 and np.isfinite(self.rate)):
            raise SourceError(f"rate {self.rate}: expected frames a second, more than 0")

    def indices(self, total: int) -> range:
        """The numbers of the chosen frames of a source of `total` frames."""
        return range(self.start, total if self.stop is None else min(self.stop, total), self.step)

    def chooses(self, index: int) -> bool:
        """Whether frame `index` is among the chosen ones."""
        inside = index >= self.start and (self.stop is None or index < self.stop)
        return inside and (index - self.start) % self.step == 0

    def stamp(self, index: int) -> int | None:
        """The stamp that `rate` gives to frame `index`, or None without a `rate`."""
        return None if self.rate is None else stamp_at(index, self.rate)


def stamp_at(index: int, rate: float) -> int:
    """Stamp in nanoseconds of frame `index` at `rate` frames a second."""
    return FIRST_STAMP_NS + round(index * 1e9 / rate)


class Source(ABC):
    """Frames in the order of time. Iterating again begins again; leaving the context closes files.

    Attributes:
        name: what to call it, for people.
        kind: what was recognised, for people.
        rate: nominal frames a second of the chosen frames.
        length: how many frames it yields, or None if unknown. A video's is what its container claims.
        camera: calibration of the first frame, or None where it is unknown.
        slow: frames take so long to make that they should be made before they are played.
        cost: of a slow source, the time and memory that it takes, for people.
        notes: what people should know of how it was read: files left out, frames that could not be decoded. Complete
            once it was gone through.
        lost: frames that it should have and could not give in the last pass, as of a damaged video.
        lacks: by mode of the front end (`stereo`, `rgbd`), why the source's frames cannot feed it; a mode that they
            can feed is not in it. Of a recording with gaps, single frames may still lack their partner.
        imu: what a gyroscope beside the camera measured; None for none.
    """

    name: str
    kind: str
    rate: float
    length: int | None
    camera: CameraModel | None
    slow: bool = False
    cost: str = ""
    lacks: Mapping[str, str] = NO_COMPANIONS
    imu: ImuSamples | None = None

    @property
    def notes(self) -> Sequence[str]:
        return ()

    @property
    def lost(self) -> int:
        return 0

    @abstractmethod
    def __iter__(self) -> Iterator[SourceFrame]:
        """Yields the chosen frames.

        Raises:
            SourceError: a frame cannot be read.
        """

    def prepare(self) -> None:  # noqa: B027 (most sources need nothing)
        """Makes what all frames are made of, where that takes long: else the first frame does."""

    def after(self, stamp_ns: int) -> Iterator[SourceFrame]:
        """Yields the chosen frames that are later than a stamp in nanoseconds.

        Raises:
            SourceError: a frame cannot be read.
        """
        return (frame for frame in self if frame.stamp_ns > stamp_ns)

    def require(self, mode: str) -> None:
        """Makes sure, before the first frame, that the source has what a mode of the front end needs.

        Raises:
            SourceError: it has not, and why; or there is no such mode.
        """
        check_mode(mode)
        if mode in self.lacks:
            raise SourceError(f"{self.name} ({self.kind}) cannot feed the mode {mode}: {self.lacks[mode]}")

    def close(self) -> None:  # noqa: B027 (most sources hold nothing open)
        """Closes files. The source cannot be iterated any more."""

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
