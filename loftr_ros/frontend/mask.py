"""Masks for pixels that never show the scene, such as the robot's own body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.image_files import ImageError, check_size

Mask = NDArray[np.bool_]


class MaskError(ValueError):
    """An unreadable mask, or one of another size than its image. The message says what to do."""


def read_mask(path: Path) -> Mask:
    """Read a mask from an image file in which 0 means ignore.

    Args:
        path: a PNG, or another format of OpenCV; colour is converted to gray. Fully transparent pixels are ignored too,
            since some programs keep the colour below a hole. EXIF rotation is not applied, as it is not to the camera's
            images.

    Returns:
        (H, W) bool, false for pixels to ignore.

    Raises:
        MaskError: the file is missing or not an image, or ignores every pixel.
    """

    try:
        data = path.read_bytes()
        check_size(data, f"mask {path}")
    except OSError as error:
        raise MaskError(f"mask {path} cannot be read: {error.strerror or error}") from error
    except ImageError as error:
        raise MaskError(str(error)) from error
    try:
        # Unchanged bit depth: in 8 bits, the lower half of a 16-bit file's values would become 0.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise MaskError(f"mask {path} ({len(data)} bytes) is not an image; use a PNG with 0 for pixels to ignore")
    usable = nonzero(image)
    if not usable.any():
        raise MaskError(f"mask {path} ignores every pixel; it must be 0 only for pixels to ignore")
    return usable


def nonzero(image: NDArray[Any]) -> Mask:
    """(H, W) bool: which pixels of an image file are not black, and not transparent.

    Args:
        image: (H, W) or (H, W, C) as OpenCV reads it unchanged.
    """
    found = np.asarray(image != 0, dtype=np.bool_)
    if found.ndim == 2:
        return found
    colors = found[..., :3] if found.shape[2] >= 3 else found[..., :1]
    opaque = found[..., -1] if found.shape[2] in (2, 4) else np.True_
    return np.asarray(colors.any(axis=2) & opaque, np.bool_)


def with_moving(usable: Mask | None, moving: Mask, dilation: int) -> Mask:
    """A mask that also ignores what moves.

    Args:
        usable: (H, W) bool of the camera; None if all pixels are usable.
        moving: (H, W) bool, true for pixels to ignore in one image.
        dilation: px by which `moving` is made larger, since the edges of segmentations are rough.

    Raises:
        MaskError: the two differ in size.
    """
    if usable is not None and usable.shape != moving.shape:
        raise MaskError("the camera's mask and the image's own mask differ in size")
    if dilation:
        kernel = np.ones((2 * dilation + 1, 2 * dilation + 1), np.uint8)
        moving = cv2.dilate(moving.astype(np.uint8), kernel) != 0
    return np.asarray(~moving if usable is None else usable & ~moving, np.bool_)


def check_mask(usable: Mask, image: NDArray[np.uint8]) -> None:
    """Check that a mask fits its image.

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
    """A mask for the resized image: a pixel is usable only if all pixels averaged into it are.

    Args:
        usable: (H, W) bool of the raw image.
        size: (width, height) of the resized image.
    """
    # The same weights as for the image, so that nothing of an ignored pixel leaks in. In floating point: in 8 bits a
    # small part of one would be rounded away.
    ignored = cv2.resize((~usable).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(ignored <= 0, dtype=np.bool_)


def on_usable(points: NDArray[np.float32], usable: Mask | None) -> Mask:
    """Which points lie on usable pixels. A point between pixels needs all of them.

    Args:
        points: (N, 2) pixels (u, v) in the mask's image.
        usable: (H, W) bool; None if all are.
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
