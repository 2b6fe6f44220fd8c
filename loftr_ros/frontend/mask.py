"""Pixels that a camera always sees and that say nothing of the scene: the robot's own body."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.image_files import ImageError, check_size

Mask = NDArray[np.bool_]


class MaskError(ValueError):
    """A mask that cannot be read, or is of another size than its image; the message says what to do."""


def read_mask(path: Path) -> Mask:
    """The pixels to use, of an image file in which 0 means ignore.

    Args:
        path: a PNG, or whatever else OpenCV reads; colour is taken as its gray. What is fully transparent is ignored
            too, since some programs leave the colour below a hole as it was. How EXIF data would have it turned is
            not looked at, as it is not of the camera's images.

    Returns:
        (H, W) bool, false for pixels to ignore.

    Raises:
        MaskError: the file is missing or no image, or ignores every pixel.
    """

    try:
        data = path.read_bytes()
        check_size(data, f"mask {path}")
    except OSError as error:
        raise MaskError(f"mask {path} cannot be read: {error.strerror or error}") from error
    except ImageError as error:
        raise MaskError(str(error)) from error
    try:
        # As it is, of any depth: in 8 bits the lower half of a 16-bit file's values would become 0.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise MaskError(
            f"mask {path} ({len(data)} bytes) is no image; give a PNG that is 0 where pixels are to be ignored"
        )
    usable = np.asarray(image != 0, dtype=np.bool_)
    if usable.ndim == 3:
        colors = usable[..., :3] if usable.shape[2] >= 3 else usable[..., :1]
        opaque = usable[..., -1] if usable.shape[2] in (2, 4) else np.True_
        usable = np.asarray(colors.any(axis=2) & opaque, np.bool_)
    if not usable.any():
        raise MaskError(f"mask {path} ignores every pixel; it must be 0 only where pixels are to be ignored")
    return usable


def check_mask(usable: Mask, image: NDArray[np.uint8]) -> None:
    """Hold a mask against the image that it is for.

    Raises:
        MaskError: their sizes differ.
    """
    if usable.shape != image.shape:
        (mask_height, mask_width), (height, width) = usable.shape, image.shape
        raise MaskError(
            f"the mask is of {mask_width}x{mask_height} px, the image of {width}x{height}; "
            "make the mask at the size of the camera's image"
        )


def shrink_mask(usable: Mask, size: tuple[int, int]) -> Mask:
    """A mask for the shrunk image: a pixel is usable only if all that it is averaged of are.

    Args:
        usable: (H, W) bool of the raw image.
        size: (width, height) of the shrunk image.
    """
    # The same weights as the image's own shrinking has, so that not a bit of an ignored pixel is let in. In floating
    # point: among 8-bit values, a small part of one would be rounded away.
    ignored = cv2.resize((~usable).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(ignored <= 0, dtype=np.bool_)


def on_usable(points: NDArray[np.float32], usable: Mask | None) -> Mask:
    """Which points lie on usable pixels; one between pixels only if each of those is.

    Args:
        points: (N, 2) pixels (u, v) in the mask's image.
        usable: (H, W) bool; None where all are.
    """
    found = np.ones(len(points), dtype=np.bool_)
    if usable is None:
        return found
    limit = np.array([usable.shape[1] - 1, usable.shape[0] - 1])
    low = np.clip(np.ceil(points - 0.5), 0, limit).astype(np.int64)
    high = np.clip(np.floor(points + 0.5), 0, limit).astype(np.int64)
    for u in (low[:, 0], high[:, 0]):
        for v in (low[:, 1], high[:, 1]):
            found &= usable[v, u]
    return found
