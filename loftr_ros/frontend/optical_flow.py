"""Optical flow from the last image that the network matched: the cheapest way to the next frame's matches.

At a camera's rate an image hardly differs from the one before. Pyramidal Lucas-Kanade finds a matched point in it again
within some tenths of a pixel, in a tenth of the network's time. The matches are the keyframe's as before: they go from
its cells over the last matched image to the current one. Flow always starts at that image, so that its errors do not
add up from frame to frame.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.keyframes import Keyframe, StreamFrame
from loftr_ros.frontend.mask import on_usable
from loftr_ros.frontend.results import Correspondences, KeyframeMatch
from loftr_ros.geometry.two_view import PoseStatus, RelativePose, without_pose

Image = NDArray[np.uint8]
Points = NDArray[np.float32]

# Largest number of points followed; sides of the blocks of the image that hold one of them each, as parts of its longer
# side: those of `trust`, then half as large.
_MOST, _BLOCKS = 700, (1 / 20, 1 / 40)
# Side of the patches in px, pyramid levels above the image, and the most iterations per level.
_WINDOW, _LEVELS, _ITERATIONS = 21, 3, 6
# Offset of the start of backward tracking from the point, px in u and v; largest distance from it at the end.
_BACKWARD_START, _RETURNS = 1.0, 1.0
# Standard deviation of the flow, px along one axis, beside that of the match it starts from.
_STD = 0.15
# Largest ratio of the parts of the common view that the network and flow explain: as concluded from the frame before,
# until it is known of this camera, and as measured in one frame.
_MOST_GAIN, _MOST_MEASURED = 1.15, 1.4
# The camera's usual ratio: share of a new measurement, largest one, and the part of it that may be concluded.
_LEARNT, _MOST_LEARNT, _CAUTION = 0.2, 1.6, 0.9
# Part of the contrast by which two images may differ in mean and contrast and still be compared as they are.
_ALIKE = 0.03
# Least number of points worth following.
_LEAST = 60
# Largest number of the network's frames for which nothing is followed after flow was in vain.
_LONGEST_WAIT = 16


class OpticalFlow:
    """Follows a frame's inliers into the next frames.

    After each frame that it does not locate, it leaves twice as many frames as before to the network at once.

    Attributes:
        keyframe: whose matches are followed; None for none.
        pose: of the frame that they start from relative to it, in the trajectory's unit; None if unknown.
        frames: located in a row since `start`.
        weak: of these, the last ones in a row that were accepted only because they agree with the prediction.
        explained: part of the common view that the inliers of the last one cover, 0 to 1.
        is_leaving: whether the last of these shares so little with the keyframe that the network may not match it.
    """

    def __init__(self) -> None:
        self.frames = self.weak = 0
        self.is_leaving, self.explained = False, 1.0
        self._wait, self._waiting = 1, 0
        self.keyframe: Keyframe | None = None
        self._frame: StreamFrame | None = None
        self._start = Correspondences.none()
        self._kept = np.zeros(0, np.bool_)  # of these, found in the last image
        self.pose: RelativePose | None = None
        self._explained, self._gain = 1.0, 0.0
        self._usual_gain = _MOST_GAIN

    def forget(self) -> None:
        """Follow nothing until the next `start`."""
        self.keyframe = self._frame = None
        self.weak = 0

    @property
    def cells(self) -> NDArray[np.uint32]:
        """(N,) cells of the keyframe that are followed."""
        return self._start.track_id

    @property
    def points(self) -> Points:
        """(N, 2) pixels where the frame that they start from shows them."""
        return self._start.current_points

    def start(
        self,
        frame: StreamFrame,
        match: KeyframeMatch,
        pose: RelativePose | None,
        explained: float,
        gain: float | None = None,
    ) -> None:
        """Follow a frame's inliers from now on, spread over the image; those of known depth are preferred.

        Args:
            frame: the frame.
            match: of it with a keyframe.
            pose: of it relative to the keyframe, in the trajectory's unit; None if unknown.
            explained: part of the common view that its inliers cover, 0 to 1.
            gain: the ratio of that part to what flow explained of the same frame, by `compare`; None if unknown.
        """
        found = match.correspondences[match.pose.inliers]
        self._begin(match.keyframe, frame, found, np.nan_to_num(found.std, nan=1.0), pose, explained)
        self._gain = gain or 0.0

    def start_at(self, keyframe: Keyframe) -> None:
        """Follow a new keyframe's own cells from now on, spread over the image; those of known depth are preferred."""
        frame, points = keyframe.frame, keyframe.encoded.cell_points
        cells = np.flatnonzero(on_usable(points, frame.usable))
        points, ones = points[cells], np.ones(len(cells), np.float32)
        found = Correspondences(cells.astype(np.uint32), points, points, ones, 0 * ones)
        # Flow is the more precise the larger the smaller eigenvalue of the gradients' moments.
        corner = cv2.cornerMinEigenVal(np.ascontiguousarray(frame.image), _WINDOW)
        column, row = np.rint(points).astype(np.int64).T
        weakness = -corner[row.clip(0, len(corner) - 1), column.clip(0, corner.shape[1] - 1)]
        still = replace(without_pose(PoseStatus.OK, np.ones(0, np.bool_)), covariance=np.zeros((6, 6)))
        self._begin(keyframe, keyframe.encoded, found, weakness, still, 1.0)

    def _begin(
        self,
        keyframe: Keyframe,
        frame: StreamFrame,
        found: Correspondences,
        weakness: NDArray[np.floating],
        pose: RelativePose | None,
        explained: float,
    ) -> None:
        if keyframe.depth is not None:
            weakness = np.where(keyframe.depth.known[found.track_id], weakness, weakness + 1e6)
        self.keyframe, self._frame, self.pose, self.frames = keyframe, frame, pose, 0
        self.is_leaving = False
        self._explained, self._gain = explained, 0.0
        self._waiting = max(self._waiting - 1, 0)
        self._start = _spread(found, weakness, frame.frame.size)

    def can_follow(self, size: tuple[int, int]) -> bool:
        """Whether there is something to follow into an image of a size; may be asked by another thread."""
        frame = self._frame
        return frame is not None and frame.frame.size == size and not self._waiting and len(self._start) >= _LEAST

    def compare(self, by_network: float, by_flow: float) -> float:
        """Learn how much more of the common view the network explains than flow, which loses points in poor texture.

        Args:
            by_network, by_flow: parts that they explained of one frame, 0 to 1.

        Returns:
            The ratio, at most as large as one frame may show.
        """
        ratio = max(by_network / max(by_flow, 1e-6), 1.0)
        self._usual_gain += _LEARNT * (min(ratio, _MOST_LEARNT) - self._usual_gain)
        return min(ratio, _MOST_MEASURED)

    def explained_by_network(self, explained: float) -> float:
        """The part of the common view that the network would explain of a frame of which flow explains a part, 0 to 1.

        From the matched frame to the first one after it flow loses points in poor texture, and few others.
        """
        if not self._gain:
            most = max(_MOST_GAIN, _CAUTION * self._usual_gain)
            self._gain = min(max(self._explained / max(explained, 1e-6), 1.0), most)
        return min(self._gain * explained, 1.0)

    def record(self, is_located: bool, is_weak: bool = False) -> None:
        """Record whether the matches of `follow` located the frame, and whether only with the prediction's help."""
        if is_located:
            self._start = self._start[self._kept]
            self.frames += 1
            self.weak = self.weak + 1 if is_weak else 0
            self._wait = 1
        elif not self.frames:  # a later frame is farther away
            self._waiting, self._wait = self._wait, min(2 * self._wait, _LONGEST_WAIT)

    def follow(self, current: StreamFrame, shift: Points) -> Correspondences:
        """The keyframe's matches in another image. If they locate it, points that were lost are not looked for again.

        Args:
            current: the frame.
            shift: (N, 2) px by which the `cells` have probably moved since `start`.
        """
        assert self._frame is not None
        first, start = self._frame.frame.image, self._start.current_points
        image = _exposed_like(first, current.frame.image)
        forward, found = _tracked(first, image, start, start + shift, _LEVELS)
        # Backward tracking starts off the point, so that it cannot succeed by standing still.
        back, found_back = _tracked(image, first, forward, start + np.float32(_BACKWARD_START), 0)
        away = np.linalg.norm(back - start, axis=1)
        width, height = current.frame.size
        keep = found & found_back & (away < _RETURNS) & (forward >= 0).all(axis=1)
        keep &= (forward[:, 0] <= width - 1) & (forward[:, 1] <= height - 1)
        keep &= on_usable(np.where(keep[:, None], forward, 0).astype(np.float32), current.frame.usable)
        before, self._kept = self._start[keep], keep
        std = np.sqrt(before.std**2 + np.float32(_STD**2) + away[keep] ** 2 / 2)
        return Correspondences(
            before.track_id, before.keyframe_points, forward[keep], before.confidence, std.astype(np.float32)
        )


def _exposed_like(first: Image, image: Image) -> Image:
    """An image with the mean and contrast of another one, since Lucas-Kanade compares gray levels."""
    (mean0, std0), (mean, std) = (np.ravel(cv2.meanStdDev(each)).tolist() for each in (first, image))
    gain = std0 / max(std, 1.0)
    if abs(gain - 1) < _ALIKE and abs(mean - mean0) < _ALIKE * std0:
        return image
    return np.asarray(cv2.addWeighted(image, gain, image, 0.0, mean0 - gain * mean), np.uint8)


def _tracked(before: Image, now: Image, points: Points, guess: Points, levels: int) -> tuple[Points, NDArray[np.bool_]]:
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


def _spread(found: Correspondences, weakness: NDArray[np.floating], size: tuple[int, int]) -> Correspondences:
    """At most `_MOST` matches: first the best of each large block of the current image, then of each small one."""
    rank = np.argsort(weakness, kind="stable")
    points, keep = found.current_points[rank], np.zeros(len(found), np.bool_)
    for part in _BLOCKS:
        column, row = (points / (max(size) * part)).astype(np.int64).T
        first = rank[np.sort(np.unique(row * (int(1 / part) + 1) + column, return_index=True)[1])]
        keep[first[~keep[first]][: _MOST - keep.sum()]] = True
    return found[keep]
