"""Images that nothing can be matched in, told from the image alone and cheaply.

The limits are far from what still matches: a dark or blurred image that shows something is tried, and matching decides.
"""

from __future__ import annotations

from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray

# Side that an image is shrunk to by averaging, px: noise averages out, and the rest takes a tenth of a millisecond.
_SIDE = 160
# Gray levels: range of the middle 98 % of the shrunk image below which there is nothing to be seen but noise.
_LEAST_CONTRAST = 4.0
# Part of the pixels at either end of the range from which an image is saturated.
_SATURATED = 0.97
# Strongest local detail (99th percentile) over contrast, below which an image is blurred beyond measure.
_LEAST_DETAIL = 0.02
# Longer side at which sharpness is judged, px.
_SHARPNESS_SIDE = 320
# By how much one image may be sharper than another that is as sharp.
SHARPER = 1.3


class FrameQuality(IntEnum):
    """What an image is worth by itself; the numbers are those of msg/FrontEndStatus."""

    USABLE = 0
    NO_CONTRAST = 1
    SATURATED = 2
    BLURRED = 3


def judge(image: NDArray[np.uint8], usable: NDArray[np.bool_] | None = None) -> FrameQuality:
    """Whether anything in an image can be matched at all.

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
        # Only where all of the pixels that were averaged count.
        kept = cv2.resize(usable.astype(np.uint8) * 255, small.shape[::-1], interpolation=cv2.INTER_AREA)
        valid = np.asarray(kept == 255)
        if valid.sum() < 16:
            return FrameQuality.NO_CONTRAST
    values = small[valid]
    if ((values <= 1) | (values >= 254)).mean() > _SATURATED:
        # An all-black image has no contrast; one that is white, or black and white, is saturated.
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
    """Finest detail over coarser detail: what blur takes away first. Of two views of a scene it is nearly the same.

    Args:
        image: (H, W) uint8 gray.
    """
    height, width = image.shape
    shrink = max(height, width) / _SHARPNESS_SIDE
    size = max(round(width / shrink), 2), max(round(height / shrink), 2)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    near, far = cv2.blur(small, (3, 3)), cv2.blur(small, (7, 7))
    return float(np.sqrt(((small - near) ** 2).mean() / max(float(((near - far) ** 2).mean()), 1e-6)))
