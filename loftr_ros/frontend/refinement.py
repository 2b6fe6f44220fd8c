"""Coarse matches to sub-pixel by pyramidal Lucas-Kanade, for networks without a fine stage."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import RefineConfig

Image = NDArray[np.uint8]
Points = NDArray[np.float32]

# Offset of the start of backward tracking from the keyframe point, px in u and v: within reach without a pyramid.
_BACKWARD_START = 2.0


def refine(
    keyframe: Image, current: Image, points0: Points, points1: Points, config: RefineConfig, extra_levels: int = 0
) -> tuple[Points, NDArray[np.bool_]]:
    """Refine the current image's points to the true positions of the keyframe's patches.

    The keyframe's points do not move. Tracking runs forward from the coarse match and back from its result. Points that
    do not return to their start are refused.

    Args:
        keyframe, current: (H, W) raw images.
        points0: (N, 2) float32 pixels in the keyframe's image.
        points1: (N, 2) float32 pixels in the current image, off by up to about a coarse cell.
        config: window, levels and the forward-backward limit.
        extra_levels: additional pyramid levels, if the network's input was smaller and its cells are larger.

    Returns:
        (N, 2) float32 refined pixels in the current image, and (N,) bool: the trusted ones.
    """
    if not len(points0):
        return points1.copy(), np.zeros(0, dtype=np.bool_)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, config.iterations, 0.01)

    def track(start: Image, end: Image, points: Points, guess: Points, levels: int) -> tuple[Points, NDArray[np.bool_]]:
        moved, found, _ = cv2.calcOpticalFlowPyrLK(
            start,
            end,
            points,
            guess.copy(),  # OpenCV overwrites it with the result
            winSize=(config.window, config.window),
            maxLevel=levels,
            criteria=criteria,
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        )
        return np.asarray(moved, np.float32), np.asarray(found)[:, 0] > 0

    forward, found = track(keyframe, current, points0, points1, config.levels + extra_levels)
    # Backward tracking starts off the point, so that it cannot succeed by standing still.
    offset = np.clip(points1 - forward, -_BACKWARD_START, _BACKWARD_START)
    backward, found_back = track(current, keyframe, forward, points0 + offset, 0)
    distance = np.linalg.norm(backward - points0, axis=1)
    height, width = current.shape
    inside = (forward >= 0).all(axis=1) & (forward[:, 0] <= width - 1) & (forward[:, 1] <= height - 1)
    trusted = found & found_back & (distance < config.max_forward_backward) & inside
    return forward, trusted
