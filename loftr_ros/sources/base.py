"""The contract of all sources: what a frame carries, and how a source hands frames out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.camera import CameraModel
from loftr_ros.frontend.frame import Frame

FRAME_ID = "camera_optical_frame"
FIRST_STAMP_NS = 1_000_000_000  # made-up stamps begin here: in ROS a stamp of zero means that there is none


class SourceError(Exception):
    """A source that cannot be opened or read; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file as it is: `data` in `format` ("jpeg", "png", or another ending); `where` names it in errors."""

    data: bytes
    format: str
    where: str


@dataclass(frozen=True)
class PixelImage:
    """An image that is decoded already: (H, W) uint8 `mono8`, or (H, W, 3) uint8 `bgr8`."""

    pixels: NDArray[np.uint8]

    @property
    def encoding(self) -> str:
        """The name of the layout in `sensor_msgs/Image`."""
        return "mono8" if self.pixels.ndim == 2 else "bgr8"


@dataclass(frozen=True)
class BagImage:
    """A bag's own image message.

    Attributes:
        message: has the fields of `sensor_msgs/Image` or `sensor_msgs/CompressedImage`.
        compressed: which of the two it is.
        serialized: the message in CDR as ROS 2 sends it, or None where the bag is of ROS 1.
        camera_info: the `sensor_msgs/CameraInfo`-like message that belongs to it, or None.
    """

    message: Any
    compressed: bool
    serialized: bytes | None = None
    camera_info: Any = None


@dataclass(frozen=True)
class SourceFrame:
    """One frame of a source. The image stays as the source holds it until somebody asks for pixels.

    Attributes:
        index: number of the frame in the source (before `start` and `step`), from 0.
        stamp_ns: time of exposure in nanoseconds.
        frame_id: the camera's optical frame (REP 103: x right, y down, z forward).
        image: as it came.
        camera: the camera's calibration, or None where it is unknown.
        pose: (4, 4) float64 T_world_camera, the ground truth, or None.
        metric: whether the translation of `pose` is in metres.
    """

    index: int
    stamp_ns: int
    frame_id: str
    image: EncodedImage | PixelImage | BagImage
    camera: CameraModel | None = None
    pose: NDArray[np.float64] | None = None
    metric: bool = False

    def decode(self) -> NDArray[np.uint8]:
        """The (H, W) uint8 gray image, decoded by the code that the node uses, so both see the same pixels.

        Raises:
            SourceError: the image is damaged or of a kind that has no gray.
        """
        from loftr_ros.ros.images import ImageError, decode_compressed, decode_image

        image = self.image
        try:
            if isinstance(image, EncodedImage):
                if image.format in ("jpeg", "png"):
                    return decode_compressed(SimpleNamespace(format=image.format, data=image.data))
                flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
                return np.asarray(self._read(image, flags), np.uint8)
            if isinstance(image, BagImage):
                return decode_compressed(image.message) if image.compressed else decode_image(image.message)
        except ImageError as error:
            raise SourceError(f"frame {self.index} ({self._where()}): {error}") from error
        pixels = image.pixels
        return pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)

    def decode_color(self) -> NDArray[np.uint8]:
        """The image in colour where it has any: (H, W, 3) uint8 BGR, else (H, W) uint8 gray.

        Raises:
            SourceError: the image is damaged.
        """
        if isinstance(self.image, PixelImage):
            return self.image.pixels
        if isinstance(self.image, EncodedImage):
            flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
            return np.asarray(self._read(self.image, flags), np.uint8)
        return self.decode()

    def to_frame(self) -> Frame:
        """The frame as the front end takes it.

        Raises:
            SourceError: the image is damaged, or the calibration is for another image size.
        """
        image = self.decode()
        height, width = image.shape
        if self.camera is not None and (self.camera.width, self.camera.height) != (width, height):
            raise SourceError(
                f"frame {self.index} ({self._where()}) is {width}x{height}, but the calibration is for "
                f"{self.camera.width}x{self.camera.height}; give the right one with the option `camera`"
            )
        return Frame(image, self.stamp_ns, self.frame_id, self.camera)

    def _where(self) -> str:
        return self.image.where if isinstance(self.image, EncodedImage) else f"stamp {self.stamp_ns / 1e9:.3f} s"

    def _read(self, image: EncodedImage, flags: int) -> NDArray[np.uint8]:
        pixels = cv2.imdecode(np.frombuffer(image.data, np.uint8), flags) if image.data else None
        if pixels is None:
            raise SourceError(f"{image.where} is not an image that OpenCV can read; it is damaged or of another format")
        return np.asarray(pixels, np.uint8)


@dataclass(frozen=True)
class SourceOptions:
    """What can be asked of every source.

    Attributes:
        start, stop, step: which frames: those numbered start, start + step, ... below stop (None: to the end).
        rate: frames a second; stamps are then made from the frame numbers. None: the source's own stamps, or,
            where it has none, its usual rate.
        topic: image topic of a bag that has several.
        camera: calibration instead of the source's own: a ROS `camera_calibration` YAML file, or a model.
    """

    start: int = 0
    stop: int | None = None
    step: int = 1
    rate: float | None = None
    topic: str | None = None
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
    """

    name: str
    kind: str
    rate: float
    length: int | None
    camera: CameraModel | None
    slow: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[SourceFrame]:
        """Yields the chosen frames.

        Raises:
            SourceError: a frame cannot be read.
        """

    def close(self) -> None:  # noqa: B027 (most sources hold nothing open)
        """Closes files. The source cannot be iterated any more."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
