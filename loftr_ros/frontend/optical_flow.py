"""Optical flow from the last image that the network matched: the cheapest way to the next frame's matches.

At a camera's rate an image hardly differs from the one before. Pyramidal Lucas-Kanade finds a matched point in it again
within some tenths of a pixel, in a tenth of the network's time. The matches are the keyframe's as before: they go from
its cells over the last matched image to the current one. Flow always starts at that image, so that its errors do not
add up from frame to frame.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.keyframes import CellsOfFrame, Keyframe
from loftr_ros.frontend.mask import on_usable
from loftr_ros.frontend.results import Correspondences, KeyframeMatch

Image = NDArray[np.uint8]
Points = NDArray[np.float32]

# Largest number of points followed; sides of the blocks of the image that hold one of them each, as parts of its longer
# side: those of `trust`, then half as large.
_MOST, _BLOCKS = 800, (1 / 20, 1 / 40)
# Side of the patches in px, pyramid levels above the image, and the most iterations per level.
_WINDOW, _LEVELS, _ITERATIONS = 15, 2, 10
# Offset of the start of backward tracking from the point, px in u and v; largest distance from it at the end.
_BACKWARD_START, _RETURNS = 1.0, 0.5
# Standard deviation of the flow, px along one axis, beside that of the match it starts from.
_STD = 0.15
# Least number of points worth following.
_LEAST = 60


class OpticalFlow:
    """Follows a frame's inliers into the next frames."""

    def __init__(self) -> None:
        self.keyframe: Keyframe | None = None
        self._frame: CellsOfFrame | None = None
        self._start = Correspondences.none()
        self._here: Points = np.zeros((0, 2), np.float32)  # in the last image
        self._step: Points = np.zeros((0, 2), np.float32)  # between the last two images

    def forget(self) -> None:
        """Follow nothing until the next `start`."""
        self.keyframe = self._frame = None

    def start(self, frame: CellsOfFrame, match: KeyframeMatch, known: NDArray[np.bool_] | None) -> None:
        """Follow a frame's inliers from now on, at most one in each block of the image.

        Args:
            frame: the frame.
            match: of it with a keyframe.
            known: (L,) bool, the keyframe's cells of known depth, which are preferred; None if depths play no part.
        """
        found = match.correspondences[match.pose.inliers]
        self.keyframe, self._frame = match.keyframe, frame
        self._start = _spread(found, None if known is None else known[found.track_id], frame.frame.size)
        self._here = self._start.current_points.copy()
        self._step = np.zeros_like(self._here)

    def can_follow(self, size: tuple[int, int]) -> bool:
        """Whether there is something to follow into an image of a size."""
        return self._frame is not None and self._frame.frame.size == size and len(self._start) >= _LEAST

    def follow(self, current: CellsOfFrame) -> Correspondences:
        """The keyframe's matches in the next image; points that are lost are not looked for again.

        Args:
            current: the frame after the last one given to `start` or `follow`.
        """
        assert self._frame is not None
        first, image, start = self._frame.frame.image, current.frame.image, self._start.current_points
        forward, found = _tracked(first, image, start, self._here + self._step, _LEVELS)
        # Backward tracking starts off the point, so that it cannot succeed by standing still.
        back, found_back = _tracked(image, first, forward, start + np.float32(_BACKWARD_START), 0)
        away = np.linalg.norm(back - start, axis=1)
        width, height = current.frame.size
        keep = found & found_back & (away < _RETURNS) & (forward >= 0).all(axis=1)
        keep &= (forward[:, 0] <= width - 1) & (forward[:, 1] <= height - 1)
        keep &= on_usable(np.where(keep[:, None], forward, 0).astype(np.float32), current.frame.usable)
        self._step, self._here = (forward - self._here)[keep], forward[keep]
        before = self._start = self._start[keep]
        std = np.sqrt(before.std**2 + np.float32(_STD**2) + away[keep] ** 2 / 2)
        return Correspondences(
            before.track_id, before.keyframe_points, self._here, before.confidence, std.astype(np.float32)
        )


def _tracked(
    before: Image, now: Image, points: Points, guess: Points, levels: int
) -> tuple[Points, NDArray[np.bool_]]:
    """(N, 2) where points of an image are in another one, and (N,) bool, whether they were found."""
    if not len(points):
        return points, np.zeros(0, np.bool_)
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        before,
        now,
        points,
        guess.copy(),  # OpenCV overwrites it with the result
        winSize=(_WINDOW, _WINDOW),
        maxLevel=levels,
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _ITERATIONS, 0.02),
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return np.asarray(moved, np.float32), np.asarray(found)[:, 0] > 0


def _spread(found: Correspondences, known: NDArray[np.bool_] | None, size: tuple[int, int]) -> Correspondences:
    """At most `_MOST` matches: first the best of each large block of the current image, then of each small one."""
    std = np.nan_to_num(found.std, nan=1.0)
    rank = np.lexsort((std, np.zeros(len(std)) if known is None else ~known))
    points, keep = found.current_points[rank], np.zeros(len(found), np.bool_)
    for part in _BLOCKS:
        column, row = (points / (max(size) * part)).astype(np.int64).T
        first = rank[np.sort(np.unique(row * (int(1 / part) + 1) + column, return_index=True)[1])]
        keep[first[~keep[first]][: _MOST - keep.sum()]] = True
    return found[keep]
