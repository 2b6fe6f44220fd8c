"""Detection of useless images: nothing can be matched in them. Cheap, and from the image alone.

The limits are far below what still matches: a dark or blurred image with some content is tried, and the matching
decides.
"""

from __future__ import annotations

from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray

# Side of the averaged, reduced image, px: averaging removes noise, and the rest takes a tenth of a millisecond.
_SIDE = 160
# Gray levels: least range of the middle 98 % of the reduced image; below it there is only noise.
_LEAST_CONTRAST = 4.0
# Part of the pixels at either end of the range from which an image is saturated.
_SATURATED = 0.97
# Least ratio of the strongest local detail (99th percentile) to contrast; below it an image is blurred beyond use.
_LEAST_DETAIL = 0.02
# Longer side at which sharpness is measured, px.
_SHARPNESS_SIDE = 320
# Ratio of sharpness up to which two images are equally sharp.
SHARPER = 1.3


class FrameQuality(IntEnum):
    """Verdict on an image alone; the numbers are those of msg/FrontEndStatus."""

    USABLE = 0
    NO_CONTRAST = 1
    SATURATED = 2
    BLURRED = 3


def judge(image: NDArray[np.uint8], usable: NDArray[np.bool_] | None = None) -> FrameQuality:
    """Judge whether anything in an image can be matched.

    Args:
        image: (H, W) uint8 gray.
        usable: (H, W) bool, false for pixels to ignore; None to use all.
    """
    height, width = image.shape
    shrink = max(height, width) / _SIDE
    size = max(round(width / shrink), 2), max(round(height / shrink), 2)
    small = image if shrink <= 1 else np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    valid = np.ones(small.shape, np.bool_)
    if usable is not None:
        # A reduced pixel counts only if all of its source pixels do.
        kept = cv2.resize(usable.astype(np.uint8) * 255, small.shape[::-1], interpolation=cv2.INTER_AREA)
        valid = np.asarray(kept == 255)
        if valid.sum() < 16:
            return FrameQuality.NO_CONTRAST
    values = small[valid]
    if ((values <= 1) | (values >= 254)).mean() > _SATURATED:
        # An all-black image has no contrast; a white or black-and-white one is saturated.
        return FrameQuality.SATURATED if (values >= 254).any() else FrameQuality.NO_CONTRAST
    low, high = np.percentile(values, (1, 99))
    if high - low < _LEAST_CONTRAST:
        return FrameQuality.NO_CONTRAST
    gray = small.astype(np.float32)
    detail = np.abs(gray - cv2.GaussianBlur(gray, (0, 0), 2.0))
    if np.percentile(detail[valid], 99) < _LEAST_DETAIL * (high - low):
        return FrameQuality.BLURRED
    return FrameQuality.USABLE


def sharpness(image: NDArray[np.uint8]) -> float:
    """Ratio of the finest to coarser detail, which blur reduces first. It is nearly equal for two views of a scene.

    Args:
        image: (H, W) uint8 gray.
    """
    height, width = image.shape
    shrink = max(height, width) / _SHARPNESS_SIDE
    size = max(round(width / shrink), 2), max(round(height / shrink), 2)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    near, far = cv2.blur(small, (3, 3)), cv2.blur(small, (7, 7))
    return float(np.sqrt(((small - near) ** 2).mean() / max(float(((near - far) ** 2).mean()), 1e-6)))
