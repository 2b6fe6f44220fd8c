"""Moving things, told by geometry: groups of matches that move together, and not as the scene does.

A match contradicts the scene if no depth puts it where it is seen. That alone is no motion: a look-alike that is
matched by mistake contradicts it too, and so do its neighbours. But what the keyframe shows is then still in its place,
beside the look-alike, and the look-alike stands still from frame to frame. So a group of matches that move alike is on
a moving thing only if the current image does not show it where it would be if it stood still, and if no earlier frame
says that it stood still.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import MovingConfig
from loftr_ros.frontend.keyframes import EncodedFrame, Keyframe, StreamFrame
from loftr_ros.frontend.localization import Located
from loftr_ros.geometry.epipolar import homogeneous, in_second_camera

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Keyframes whose earlier frames are kept; seconds between two kept frames, and of the oldest one.
_KEYFRAMES, _STEP, _OLDEST = 3, 0.1, 1.0
# Standard deviations of depths and poses beyond which a match contradicts the scene.
_REACH = 3.0
# Relative uncertainty of a measured depth, in addition to its own: a cell covers a slanted surface.
_SLANT = 0.03
# Nearest depth of the scene, as a part of the 2nd percentile of the keyframe's depths.
_NEAREST = 0.5
# Part of the least offset by which a match must contradict an earlier frame.
_SINCE = 0.7
# Neighbours within so many cells, and the difference of their offsets: a part of the offset, and px.
_NEIGHBOURS, _ALIKE, _ALIKE_LEAST = 4.0, 0.3, 1.5
# Alike neighbours of a match in a group, matches of a group, and most matches that are compared.
_LEAST_NEIGHBOURS, _LEAST_GROUP, _MOST = 5, 10, 1200
# Least part of the matches around a group that must belong to it.
_LEAST_SHARE = 0.5
# Matches of a group whose images are compared, pixels along a patch, and most places along the line where it may be.
_COMPARED, _PATCH, _PLACES = 40, 13, 64
# Correlation from which two patches may show the same, and by how much it may be below that of the match.
_SAME, _AS_GOOD = 0.7, 0.1
# Least part of a group's points that must have left their places; parts without texture show nothing.
_LEFT = 0.3


@dataclass(frozen=True, eq=False)
class _Earlier:
    """An earlier frame matched with a keyframe.

    Attributes:
        stamp_ns: of the frame.
        pose: (4, 4) T_keyframe_frame, in the trajectory's unit.
        rays: (L, 2) where the keyframe's cells were seen; NaN where they were not.
    """

    stamp_ns: int
    pose: Array
    rays: Array


@dataclass
class _History:
    """What is remembered of a keyframe's matches.

    Attributes:
        frames: earlier frames, oldest first.
        hits: (L,) number of frames in which a cell was on a moving thing.
        marked: (L,) cells on moving things.
    """

    hits: NDArray[np.uint8]
    marked: Flags
    frames: deque[_Earlier] = field(default_factory=deque)


class MovingThings:
    """Finds matches on moving things, and remembers the keyframes' cells on them."""

    def __init__(self, config: MovingConfig) -> None:
        self.config = config
        self._histories: dict[int, _History] = {}
        self._points: NDArray[np.float32] = np.zeros((0, 2), np.float32)  # found in the last frame

    def reset(self) -> None:
        """Forget all keyframes."""
        self._histories.clear()

    def flagged(self, located: Located, current: StreamFrame) -> Located:
        """Flag the matches on moving things; these are no inliers.

        Args:
            located: the accepted result, with its length if known.
            current: the frame.
        """
        if not self.config.enabled or located.rays is None:
            return located
        keyframe, match = located.match.keyframe, located.match
        history = self._history(keyframe)
        cell = match.correspondences.track_id
        found = self._found(located, history, current)
        history.hits[cell[found]] += history.hits[cell[found]] < 2
        history.marked |= history.hits >= 2
        moving = found | history.marked[cell]
        self._points = match.correspondences.current_points[found]
        self._remember(located, history, current.frame.stamp_ns)
        pose = match.pose
        if (pose.inliers & moving).any():
            pose = replace(pose, inliers=pose.inliers & ~moving)
        own = located.pose
        if own is not None and len(own.inliers) == len(moving):
            own = replace(own, inliers=own.inliers & ~moving)
        return replace(located, match=replace(match, pose=pose, moving=moving), pose=own)

    def add_keyframe(self, keyframe: Keyframe) -> None:
        """The last frame became a keyframe: its cells on what moves keep no landmark.

        Only what was found in this very frame counts: what was remembered would spread from keyframe to keyframe.
        """
        if len(self._points):
            cells, distance = keyframe.encoded.nearest_cells(self._points)
            self._history(keyframe).marked[cells[distance < _cell(keyframe.encoded)]] = True

    def _history(self, keyframe: Keyframe) -> _History:
        history = self._histories.pop(keyframe.id, None)
        if history is None:
            cells = len(keyframe.landmarks)
            history = _History(np.zeros(cells, np.uint8), np.zeros(cells, np.bool_))
        self._histories[keyframe.id] = history  # the newest last
        while len(self._histories) > _KEYFRAMES:
            del self._histories[next(iter(self._histories))]
        return history

    def _remember(self, located: Located, history: _History, stamp_ns: int) -> None:
        frames = history.frames
        while frames and not stamp_ns - _OLDEST * 1e9 <= frames[0].stamp_ns < stamp_ns:
            frames.popleft()
        if located.pose is None or (frames and stamp_ns - frames[-1].stamp_ns < _STEP * 1e9):
            return
        rays = np.full((len(history.marked), 2), np.nan)
        assert located.rays is not None
        rays[located.match.correspondences.track_id] = located.rays.current
        frames.append(_Earlier(stamp_ns, located.pose.matrix, rays))

    def _found(self, located: Located, history: _History, current: StreamFrame) -> Flags:
        """(N,) matches on moving things, found in this frame."""
        match, rays, pose = located.match, located.rays, located.pose
        nothing = np.zeros(len(match.correspondences), np.bool_)
        depth = match.keyframe.depth
        if pose is None or rays is None or depth is None or not depth.known.any() or not match.pose.is_believed:
            return nothing
        cell, focal = match.correspondences.track_id, rays.focal_length
        nearest = 1 / (_NEAREST * float(np.percentile(1 / np.maximum(depth.inverse[depth.known], 1e-6), 2)))
        low, high = np.zeros(len(cell)), np.full(len(cell), nearest)
        if depth.is_metric:
            inverse, std = depth.inverse[cell], np.sqrt(depth.variance[cell])
            with np.errstate(invalid="ignore"):
                reach = _REACH * std + _SLANT * inverse
                measured = np.isfinite(reach)
            low = np.where(measured, np.maximum(inverse - reach, 0), low)
            high = np.where(measured, inverse + reach, high)
        limit = self.config.min_offset + _pose_error(pose.covariance, nearest * _NEAREST, focal)
        offset = focal * scene_offset(rays.keyframe, rays.current, pose.matrix, low, high)
        size = np.linalg.norm(offset, axis=1)
        with np.errstate(invalid="ignore"):
            candidate = (size > limit) & ~pose.inliers
        if candidate.sum() < _LEAST_GROUP:
            return nothing
        stamp_ns = current.frame.stamp_ns
        candidate &= ~self._stood_still(cell, rays.current, candidate, pose.matrix, history, nearest, focal, stamp_ns)
        number = np.flatnonzero(candidate)
        if not _LEAST_GROUP <= len(number) <= _MOST:
            return nothing
        points = match.correspondences.keyframe_points
        camera = current.frame.camera
        assert camera is not None
        for group in _groups(points, offset, number, _cell(match.keyframe.encoded)):
            some = group[:: max(len(group) // _COMPARED, 1)]
            places = _places(rays.keyframe[some], pose.matrix, low[some], high[some])
            pixels = camera.project(homogeneous(places.reshape(-1, 2))).reshape(places.shape)
            seen = match.correspondences.current_points[some]
            before = match.keyframe.frame.image
            step = _cell(match.keyframe.encoded) / 8
            if left_its_place(before, current.frame.image, points[some], seen, pixels, step):
                nothing[group] = True
        return nothing

    def _stood_still(
        self,
        cell: NDArray[np.uint32],
        now: Array,
        candidate: Flags,
        pose: Array,
        history: _History,
        nearest: float,
        focal: float,
        stamp_ns: int,
    ) -> Flags:
        """(N,) candidates that moved as the scene did since the oldest frame that shows them."""
        still, open_ = np.zeros(len(cell), np.bool_), candidate.copy()
        for earlier in history.frames:
            if stamp_ns - earlier.stamp_ns < _STEP * 1e9 or not open_.any():
                break
            there = earlier.rays[cell]
            both = open_ & np.isfinite(there).all(axis=1)
            between = np.linalg.inv(earlier.pose) @ pose
            high = np.full(int(both.sum()), nearest)
            off = focal * scene_offset(there[both], now[both], between, np.zeros(len(high)), high)
            still[both] = np.linalg.norm(off, axis=1) < _SINCE * self.config.min_offset
            open_ &= ~both
        return still


def scene_offset(rays0: Array, rays1: Array, pose: Array, low: Array, high: Array) -> Array:
    """(N, 2) how far matches are from where a point that stands still can be seen, in the normalised plane of image 1.

    Args:
        rays0, rays1: (N, 2) rays x / z, y / z of the matches.
        pose: (4, 4) T_0_1.
        low, high: (N,) range of the inverse depth in image 0, in the unit of the pose.
    """
    start, end = _seen(rays0, pose, np.stack([low, high]))
    along = end - start
    length = np.maximum((along**2).sum(axis=1), 1e-18)
    part = np.clip(((rays1 - start) * along).sum(axis=1) / length, 0, 1)
    return np.asarray(rays1 - start - part[:, None] * along)


def _pose_error(covariance: Array, inverse: float, focal: float) -> float:
    """Pixels by which the pose's error may move a point of a typical inverse depth."""
    turn, shift = (float(np.sqrt(np.trace(part) / 3)) for part in (covariance[3:, 3:], covariance[:3, :3]))
    return _REACH * focal * (turn + shift * inverse)


def _cell(encoded: EncodedFrame) -> float:
    """Side of a cell, px of the raw image."""
    return encoded.cell_size * max(encoded.scale)


def _groups(
    points: NDArray[np.float32], offset: Array, number: NDArray[np.intp], cell: float
) -> list[NDArray[np.intp]]:
    """Candidates that move like their neighbours, in groups large enough: the numbers of each group's matches.

    Args:
        points: (N, 2) px in the keyframe, of all matches.
        offset: (N, 2) px.
        number: (C,) candidates.
        cell: side of a cell, px.
    """
    here, moved = points[number].astype(np.float64), offset[number]
    near = ((here[:, None] - here) ** 2).sum(axis=2) <= (_NEIGHBOURS * cell) ** 2
    size = np.linalg.norm(moved, axis=1)
    tolerance = np.maximum(_ALIKE_LEAST, _ALIKE * np.minimum(size[:, None], size))
    alike = near & (((moved[:, None] - moved) ** 2).sum(axis=2) <= tolerance**2)
    core = alike.sum(axis=1) > _LEAST_NEIGHBOURS  # itself counts too
    around = ((here[:, None] - points.astype(np.float64)) ** 2).sum(axis=2) <= (_NEIGHBOURS * cell / 2) ** 2
    inside = np.zeros(len(points), np.bool_)
    inside[number] = True
    share = (around & inside).sum(axis=1) / np.maximum(around.sum(axis=1), 1)
    label = np.where(core, np.arange(len(number)), len(number))
    linked = alike & core & core[:, None]
    while True:
        lower = np.where(linked, label, len(number)).min(axis=1)
        lower = np.where(core, np.minimum(lower, label), len(number))
        if np.array_equal(lower, label):
            break
        label = lower
    groups = []
    for each in np.unique(label[core]):
        group = label == each
        if group.sum() >= _LEAST_GROUP and share[group].mean() >= _LEAST_SHARE:
            groups.append(number[group | (alike & group).any(axis=1)])
    return groups


def _places(rays0: Array, pose: Array, low: Array, high: Array) -> Array:
    """(N, P, 2) rays in image 1 of points that stand still, at inverse depths from `low` to `high`."""
    inverse = low + (high - low) * np.linspace(0, 1, _PLACES)[:, None]
    return _seen(rays0, pose, inverse).transpose(1, 0, 2)


def _seen(rays0: Array, pose: Array, inverse: Array) -> Array:
    """(P, N, 2) rays in image 1 of points at (P, N) inverse depths on rays of image 0; `pose` is T_0_1."""
    point = in_second_camera(rays0, inverse, pose[:3, :3], pose[:3, 3])
    return np.asarray(point[..., :2] / np.maximum(point[..., 2:], 0.05))


def left_its_place(
    before: NDArray[np.uint8],
    now: NDArray[np.uint8],
    points: NDArray[np.float32],
    seen: NDArray[np.float32],
    places: Array,
    step: float,
) -> bool:
    """Whether an image shows a group's points where they were matched, and not where they would be if they stood still.

    Args:
        before, now: (H, W) uint8, the keyframe's image and the current one.
        points, seen: (N, 2) px of the matches in either.
        places: (N, P, 2) px in the current image.
        step: px between two samples of a patch.
    """
    first = _patches(before, points[:, None].astype(np.float64), step)
    there = (first * _patches(now, places, step)).sum(axis=2).max(axis=1)
    matched = (first * _patches(now, seen[:, None].astype(np.float64), step)).sum(axis=2)[:, 0]
    still = np.mean((there > _SAME) & (there > matched - _AS_GOOD))
    gone = np.mean((matched > _SAME) & (there < matched - _AS_GOOD))
    return bool(gone > max(_LEFT, still))


def _patches(image: NDArray[np.uint8], centres: Array, step: float) -> Array:
    """(N, P, S) normalised patches around (N, P, 2) pixels: mean 0, length 1; zero outside of the image."""
    side = (np.arange(_PATCH) - _PATCH // 2) * step
    centres = np.nan_to_num(centres, nan=-1e4)
    u = (centres[..., 0, None, None] + side).repeat(_PATCH, axis=-2).reshape(len(centres), -1)
    v = (centres[..., 1, None, None] + side[:, None]).repeat(_PATCH, axis=-1).reshape(len(centres), -1)
    samples = cv2.remap(image, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR).astype(np.float64)
    patches = samples.reshape(*centres.shape[:2], _PATCH**2)
    patches -= patches.mean(axis=2, keepdims=True)
    return np.asarray(patches / np.maximum(np.linalg.norm(patches, axis=2, keepdims=True), 1e-6))
