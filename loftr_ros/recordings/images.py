"""Encoded and decoded images of sources, and their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.image_files import ImageError, check_size
from loftr_ros.recordings.decoding import FULL_RANGE, decode_compressed, decode_image, eight_bits


class SourceError(Exception):
    """A source that cannot be opened or read. The message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class EncodedImage:
    """The contents of an image file: `data` in `format` ("jpeg", "png", or another ending); `where` names it in
    errors.
    """

    data: bytes
    format: str
    where: str


@dataclass(frozen=True)
class PixelImage:
    """A decoded image: (H, W) uint8 `mono8` or uint16 `mono16`, or (H, W, 3) uint8 `bgr8`."""

    pixels: NDArray[np.uint8] | NDArray[np.uint16]

    @property
    def encoding(self) -> str:
        """The name of the layout in `sensor_msgs/Image`."""
        if self.pixels.ndim == 3:
            return "bgr8"
        return "mono16" if self.pixels.dtype == np.uint16 else "mono8"


@dataclass(frozen=True)
class BagImage:
    """A bag's own image message.

    Attributes:
        message: has the fields of `sensor_msgs/Image` or `sensor_msgs/CompressedImage`.
        compressed: which of the two it is.
        serialized: the message in CDR as ROS 2 sends it, or None for a bag of ROS 1.
        camera_info: the `sensor_msgs/CameraInfo`-like message of this image, or None.
    """

    message: Any
    compressed: bool
    serialized: bytes | None = None
    camera_info: Any = None


Image = EncodedImage | PixelImage | BagImage


def decode_gray(image: Image, which: str, white_level: int = FULL_RANGE) -> NDArray[np.uint8]:
    """The (H, W) uint8 gray image, decoded by the node's code, so that both use the same pixels.

    Args:
        image: undecoded.
        which: name of the image in errors.
        white_level: value of 16-bit images that becomes 255; 0 stretches each image by its own range.

    Raises:
        SourceError: the image is damaged, or has no gray equivalent.
    """
    try:
        if isinstance(image, BagImage):
            decode = decode_compressed if image.compressed else decode_image
            return decode(image.message, white_level)
        if isinstance(image, EncodedImage) and not is_portable_map(image):
            return decode_compressed(SimpleNamespace(format=image.format, data=image.data), white_level)
    except ImageError as error:
        raise SourceError(f"{which}: {error}") from error
    return eight_bits(gray_pixels(image, which), white_level)


def gray_pixels(image: Image, which: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The (H, W) gray image at full depth: uint16 for 16-bit images.

    Raises:
        SourceError: the image is damaged, or has no gray equivalent.
    """
    if isinstance(image, PixelImage):
        pixels = image.pixels
        return pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
    if isinstance(image, EncodedImage):
        if not is_portable_map(image):
            gray = decode_gray(image, which)  # which also checks that it is complete
            if not _may_have_16_bits(image):
                return gray
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        found = read_pixels(image, flags)
        if found.dtype not in (np.uint8, np.uint16):
            raise SourceError(f"{which} has samples of {found.dtype}; expected 8 or 16 bits")
        return found
    return decode_gray(image, which)


def is_portable_map(image: EncodedImage) -> bool:
    """Whether it is a PBM, PGM or PPM, which messages cannot contain."""
    return image.data[:1] == b"P" and image.data[1:2].isdigit()


def _may_have_16_bits(image: EncodedImage) -> bool:
    return image.data.startswith((b"\x89PNG", b"II*\0", b"MM\0*"))


def decode_color(image: Image, which: str) -> NDArray[np.uint8]:
    """The colour image: (H, W, 3) uint8 BGR, or (H, W) uint8 gray if it has no colour.

    Raises:
        SourceError: the image is damaged.
    """
    if isinstance(image, PixelImage):
        return np.asarray(image.pixels, np.uint8) if image.pixels.ndim == 3 else decode_gray(image, which)
    if isinstance(image, EncodedImage):
        return np.asarray(read_pixels(image, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION), np.uint8)
    return decode_gray(image, which)


def read_pixels(image: EncodedImage, flags: int) -> NDArray[Any]:
    """Decode an image file by OpenCV with the given `cv2.IMREAD_` flags.

    Raises:
        SourceError: OpenCV cannot decode it.
    """
    try:
        check_size(image.data, image.where)
    except ImageError as error:
        raise SourceError(str(error)) from error
    try:
        pixels = cv2.imdecode(np.frombuffer(image.data, np.uint8), flags) if image.data else None
    except cv2.error as error:  # for a file that claims more pixels than OpenCV accepts
        raise SourceError(f"{image.where}: OpenCV cannot decode it ({error.err}); is it damaged?") from error
    if pixels is None:
        raise SourceError(f"{image.where} is not an image that OpenCV can read; it is damaged or of another format")
    return np.asarray(pixels)
