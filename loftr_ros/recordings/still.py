"""A single image, from a file or from pixels, as a source's frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.recordings.base import FRAME_ID, SourceFrame
from loftr_ros.recordings.images import EncodedImage, Image, PixelImage, SourceError

_KINDS = "(H, W) uint8 or uint16 gray, or (H, W, 3) uint8 BGR"


def still(image: str | Path | NDArray[Any], name: str = "image", stamp_ns: int = 0) -> SourceFrame:
    """A frame of one image.

    Args:
        image: path of a file, or pixels: (H, W) or (H, W, 1) gray, uint8 or uint16, (H, W, 3) uint8 BGR, or (H, W, 4)
            uint8 BGRA, whose transparency is ignored.
        name: what the image is called in errors, where it is no file.
        stamp_ns: of the frame, in nanoseconds.

    Raises:
        SourceError: the file is missing or cannot be read.
        ValueError: the array is no image of those kinds.
    """
    held = _of_pixels(image, name) if isinstance(image, np.ndarray) else _of_file(image, name)
    return SourceFrame(0, stamp_ns, FRAME_ID, held)


def _of_file(path: str | Path, name: str) -> Image:
    if not isinstance(path, str | Path):
        raise ValueError(f"{name} is of type {type(path).__name__}; expected a path, or a NumPy array: {_KINDS}")
    path = Path(path).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"image {path} cannot be read: {error.strerror or error}") from error
    ending = path.suffix.lower().lstrip(".")
    return EncodedImage(data, {"jpg": "jpeg"}.get(ending, ending), str(path))


def _of_pixels(pixels: NDArray[Any], name: str) -> Image:
    said = f"{name} is an array of shape {pixels.shape} and {pixels.dtype}; expected {_KINDS}"
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not pixels.size:
        raise ValueError(f"{said}; it is empty")
    if pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16):
        return PixelImage(pixels)
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4) and pixels.dtype == np.uint8:
        return PixelImage(np.ascontiguousarray(pixels[:, :, :3], np.uint8))
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        raise ValueError(f"{said}; channels come last here: `image.transpose(1, 2, 0)`")
    if np.issubdtype(pixels.dtype, np.floating) or pixels.dtype == np.bool_:
        raise ValueError(f"{said}; values from 0 to 1 become such by `(255 * image).round().astype(numpy.uint8)`")
    raise ValueError(said)
