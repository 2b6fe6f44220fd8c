"""The interface of all sources: the contents of a frame, and the iteration over frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.frontend.frame import DepthImage, Frame, RightImage
from loftr_ros.frontend.mask import nonzero
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings.bag_depth import BagDepth
from loftr_ros.recordings.companions import COME_WITH, NO_COMPANIONS, DepthFile, ImageFile, RightView, check_mode
from loftr_ros.recordings.images import (
    BagImage,
    EncodedImage,
    Image,
    PixelImage,
    SourceError,
    decode_color,
    decode_gray,
    gray_pixels,
    read_pixels,
)

if TYPE_CHECKING:
    from loftr_ros.recordings.imu import ImuSamples

FRAME_ID = "camera_optical_frame"
FIRST_STAMP_NS = 1_000_000_000  # first generated stamp: in ROS a stamp of zero means no stamp


@dataclass(frozen=True)
class SourceFrame:
    """One frame of a source. Its images are decoded on demand.

    Attributes:
        index: number of the frame in the source (before `start` and `step`), from 0.
        stamp_ns: time of exposure in nanoseconds.
        frame_id: the camera's optical frame (REP 103: x right, y down, z forward).
        image: undecoded.
        camera: the camera's calibration, or None if unknown.
        pose: (4, 4) float64 T_world_camera, the ground truth, or None.
        metric: whether the translation of `pose` is in metres.
        right: right image of a stereo pair, of which `image` is the left one; None without.
        depth: registered to `image`; None without.
        mask: of what moves in `image`; None without.
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
    mask: Image | ImageFile | None = None

    def decode(self) -> NDArray[np.uint8]:
        """The (H, W) uint8 gray image, decoded by the node's code, so that both use the same pixels.

        Raises:
            SourceError: the image is damaged, or has no gray equivalent.
        """
        return decode_gray(self.image, self.which)

    def decode_all_bits(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The (H, W) gray image at full depth, uint16 for 16-bit images, without stretching; for publishing.

        Raises:
            SourceError: the image is damaged, or has no gray equivalent.
        """
        return gray_pixels(self.image, self.which)

    def decode_color(self) -> NDArray[np.uint8]:
        """The colour image: (H, W, 3) uint8 BGR, or (H, W) uint8 gray if it has no colour.

        Raises:
            SourceError: the image is damaged.
        """
        return decode_color(self.image, self.which)

    def decode_right(self) -> RightImage:
        """The right image, gray, with its calibration and pose.

        Raises:
            SourceError: there is none, it cannot be read, or its size differs from its calibration's.
        """
        frame, right = self.right_side()
        image = frame.decode()
        height, width = image.shape
        right.check_size(width, height, frame.which)
        return RightImage(image, right.camera, right.left_from_right)

    def right_side(self) -> tuple[SourceFrame, RightView]:
        """The right image as a separate, undecoded frame, and its companion data.

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
            size: (width, height) of the image, which the depth must have too; None takes the calibration's, if any.

        Raises:
            SourceError: there is none, it cannot be read, or it is not a depth image of that size.
        """
        if self.depth is None:
            raise SourceError(f"{self.which} has no depth image that belongs to it; {COME_WITH[RGBD]}")
        if size is None and self.camera is not None:
            size = self.camera.width, self.camera.height
        return self.depth if isinstance(self.depth, DepthImage) else self.depth.decode(size)

    def read_mask(self) -> PixelImage | BagImage | None:
        """The mask: a bag's own raw message, or mono8 that is 0 where a file is black or transparent; None without.

        Raises:
            SourceError: it is damaged.
        """
        mask = self.mask
        if mask is None or isinstance(mask, PixelImage):
            return mask
        if isinstance(mask, BagImage):
            return mask if not mask.compressed else PixelImage(decode_gray(mask, f"mask of {self.which}"))
        file = mask.read() if isinstance(mask, ImageFile) else mask
        marked = nonzero(read_pixels(file, cv2.IMREAD_UNCHANGED))
        return PixelImage(marked.astype(np.uint8) * np.uint8(255))

    def to_frame(self, mode: str = MONO) -> Frame:
        """The frame as input of the front end, with the node's default parameters; `FrameReader` takes others.

        Args:
            mode: `mono` decodes only the image, `stereo` also the right one, `rgbd` also the depth image.

        Raises:
            SourceError: an image is missing or damaged, or a calibration is for another image size.
        """
        from loftr_ros.recordings.reading import FrameReader

        return FrameReader().read(self, mode)

    @property
    def which(self) -> str:
        """Name of the frame in errors."""
        image = self.image
        where = image.where if isinstance(image, EncodedImage) else f"stamp {self.stamp_ns / 1e9:.3f} s"
        return f"frame {self.index} ({where})"


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
        imu: samples of a gyroscope beside the camera; None without.
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
    imu: ImuSamples | None = None
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
