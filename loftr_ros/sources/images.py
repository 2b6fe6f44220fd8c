"""Images as sources hold them, and their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


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


Image = EncodedImage | PixelImage | BagImage


def decode_gray(image: Image, which: str) -> NDArray[np.uint8]:
    """The (H, W) uint8 gray image, decoded by the code that the node uses, so both see the same pixels.

    Args:
        image: as it came.
        which: names the image in errors.

    Raises:
        SourceError: the image is damaged or of a kind that has no gray.
    """
    from loftr_ros.ros.images import ImageError, decode_compressed, decode_image

    try:
        if isinstance(image, EncodedImage):
            if image.format in ("jpeg", "png"):
                return decode_compressed(SimpleNamespace(format=image.format, data=image.data))
            return np.asarray(read_pixels(image, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION), np.uint8)
        if isinstance(image, BagImage):
            return decode_compressed(image.message) if image.compressed else decode_image(image.message)
    except ImageError as error:
        raise SourceError(f"{which}: {error}") from error
    pixels = image.pixels
    return pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)


def decode_color(image: Image, which: str) -> NDArray[np.uint8]:
    """The image in colour where it has any: (H, W, 3) uint8 BGR, else (H, W) uint8 gray.

    Raises:
        SourceError: the image is damaged.
    """
    if isinstance(image, PixelImage):
        return image.pixels
    if isinstance(image, EncodedImage):
        return np.asarray(read_pixels(image, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION), np.uint8)
    return decode_gray(image, which)


def read_pixels(image: EncodedImage, flags: int) -> NDArray[Any]:
    """What OpenCV reads from an image file with the given `cv2.IMREAD_` flags.

    Raises:
        SourceError: it cannot read it.
    """
    pixels = cv2.imdecode(np.frombuffer(image.data, np.uint8), flags) if image.data else None
    if pixels is None:
        raise SourceError(f"{image.where} is not an image that OpenCV can read; it is damaged or of another format")
    return np.asarray(pixels)
