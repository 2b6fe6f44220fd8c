"""Training pairs from any recording, without truth: points followed from frame to frame, checked over many views.

Between neighbouring frames a point is easily found again. Chained, such steps connect frames whose views have hardly
anything in common, which the network would not match by itself. Their errors add up, so the two views of a pair are
registered directly once more, beginning at the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.two_view import estimate_relative_pose
from loftr_ros.training.sample import Sample

Float32 = NDArray[np.float32]
Gray = NDArray[np.uint8]

# Parts of a view's cells whose survival makes a pair: from views that are nearly the same to a small overlap.
SURVIVING = (0.7, 0.5, 0.35, 0.25, 0.15)
# Number of views between the two of a pair, all of which must agree with each other about a point; largest distance
# from its epipolar lines, in pixels of the network's input: chained positions add up the errors of their steps.
_VIEWS, _DISTANCE = 3, 2.0
# Largest difference between four pixels around a point after one step: an edge in depth is between them.
_SPREAD = 3.0
# Largest distance in pixels from a point to where the flow there and back leads.
_THERE_AND_BACK = 1.0
# Least points of a pair.
_LEAST = 60
# Frames after which a chain ends.
_LONGEST = 300
# Least median displacement of a pair's matches, as a part of the image's width.
_LEAST_MOTION = 0.02


@dataclass(frozen=True, eq=False)
class ChainedPair:
    """Two views of a recording, and points that were followed from one to the other.

    Attributes:
        image0, image1: (H, W) uint8, as the network gets them.
        targets: (rows, columns, 2) float32 pixels of image 1, positions of the cells' points of image 0; NaN without.
        cell: side of the cells.
        offset: of the cells' points from their top-left pixels.
        frames: numbers of both frames in the recording.
    """

    image0: Gray
    image1: Gray
    targets: Float32
    cell: int
    offset: float
    frames: tuple[int, int]

    def sample(self, size: tuple[int, int]) -> Sample:
        """The pair in (width, height), with warps wherever matches are close enough together to interpolate."""
        height, width = self.image0.shape
        scale = np.array([size[0] / width, size[1] / height], np.float32)
        image0, image1 = (
            image
            if image.shape == size[::-1]
            else np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
            for image in (self.image0, self.image1)
        )
        axes = [
            ((np.arange(count, dtype=np.float32) + 0.5) / part - 0.5 - self.offset) / self.cell
            for count, part in zip(size, scale, strict=True)
        ]
        warp = sampled(self.targets, np.stack(np.meshgrid(*axes), axis=-1), 2.5 * self.cell)
        warp01 = ((warp + 0.5) * scale - 0.5).astype(np.float32)
        with np.errstate(invalid="ignore"):
            inside = ((warp01 >= 0) & (warp01 <= np.array(size) - 1)).all(axis=-1)
        warp01[~inside] = np.nan
        return Sample(image0, image1, warp01, inverted(warp01), "chained")


def sampled(grid: Float32, places: Float32, spread: float) -> Float32:
    """Values of a grid between its points, bilinear; NaN where one of the four around is NaN, or they differ too much.

    Args:
        grid: (rows, columns, 2).
        places: (..., 2) column and row.
        spread: largest difference between two of the four, along each axis.
    """
    rows, columns = grid.shape[:2]
    finite = np.nan_to_num(places, nan=-1.0)
    corner = np.floor(finite).astype(int)
    inside = ((finite >= 0) & (finite <= (columns - 1, rows - 1))).all(axis=-1)
    corner = corner.clip(0, (columns - 2, rows - 2))
    part = (finite - corner).astype(np.float32)
    x, y = corner[..., 0], corner[..., 1]
    around = np.stack([grid[y, x], grid[y, x + 1], grid[y + 1, x], grid[y + 1, x + 1]])
    a, b = part[..., :1], part[..., 1:]
    value = (around[0] * (1 - a) + around[1] * a) * (1 - b) + (around[2] * (1 - a) + around[3] * a) * b
    with np.errstate(invalid="ignore"):
        steady = (np.ptp(around, axis=0) <= spread).all(axis=-1)
    value[~(inside & steady)] = np.nan
    return np.asarray(value, np.float32)


def inverted(warp: Float32) -> Float32:
    """The (H, W, 2) warp from image 1 to image 0, by writing the pixels of image 0 to where they are in image 1."""
    height, width = warp.shape[:2]
    back = np.full_like(warp, np.nan)
    # Half pixels too, so that an image of twice the scale has no holes.
    places = np.stack(np.meshgrid(np.arange(0, width - 0.75, 0.5), np.arange(0, height - 0.75, 0.5)), axis=-1)
    target = sampled(warp, places.astype(np.float32), _SPREAD)
    known = np.isfinite(target).all(axis=-1)
    target, places = target[known], places[known].astype(np.float32)
    nearest = target.round().astype(int).clip(0, (width - 1, height - 1))
    back[nearest[:, 1], nearest[:, 0]] = places + (nearest - target)
    return back


@dataclass(frozen=True, eq=False)
class _ChainFrame:
    number: int
    image: Gray
    camera: CameraModel


@dataclass
class _Chain:
    """Points of one frame, followed.

    Attributes:
        first: the frame.
        points: (L, 2) positions of its cells' points in the newest frame, NaN where lost.
        views: earlier positions.
        due: parts of SURVIVING that are still to come.
    """

    first: _ChainFrame
    points: Float32
    views: list[Float32] = field(default_factory=list)
    due: list[float] = field(default_factory=lambda: list(SURVIVING))

    @property
    def known(self) -> NDArray[np.bool_]:
        return np.isfinite(self.points[:, 0])


class Chains:
    """Follows the points of cells through a recording, frame by frame, by dense optical flow there and back."""

    def __init__(self, cell: int, offset: float, every: int) -> None:
        """Begin.

        Args:
            cell: side of the cells in pixels.
            offset: of the cells' points from their top-left pixels.
            every: a chain starts at every n-th frame.
        """
        self._cell, self._offset, self._every = cell, offset, every
        self._geometry = GeometryConfig(threshold=_DISTANCE)
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._chains: list[_Chain] = []
        self._last: _ChainFrame | None = None

    def add(self, number: int, image: Gray, camera: CameraModel) -> list[ChainedPair]:
        """Take the next frame, and get the pairs that end in it.

        Args:
            number: of the frame; one that does not follow the last one ends all chains.
            image: (H, W), as the network gets it.
            camera: of an image of any size.
        """
        view, found = _ChainFrame(number, image, camera), []
        if self._last is not None and self._last.image.shape == image.shape and number == self._last.number + 1:
            if self._last.number % self._every == 0:
                self._chains.append(_Chain(self._last, self._points(image).reshape(-1, 2)))
            flow = self._moved(self._last.image, image)
            for chain in self._chains:
                found += self._follow(chain, flow, view)
            self._chains = [chain for chain in self._chains if chain.due and len(chain.views) < _LONGEST]
        else:
            self._chains = []
        self._last = view
        return found

    def _registered(self, pair: ChainedPair) -> ChainedPair:
        """The pair with the errors of the chain's steps removed where both views agree there and back."""
        warp = pair.sample((pair.image0.shape[1], pair.image0.shape[0])).warp01
        known = np.isfinite(warp[..., :1])
        inside = np.where(known, warp, np.float32(-1))
        seen = cv2.remap(pair.image1, inside[..., 0], inside[..., 1], interpolation=cv2.INTER_LINEAR)
        # Where nothing is known the images are alike, and no motion is found.
        motion = self._moved(pair.image0, np.where(known[..., 0], seen, pair.image0))
        direct = sampled(warp, sampled(motion, self._points(pair.image0), _SPREAD), _SPREAD)
        better = np.isfinite(direct) & np.isfinite(pair.targets)
        return replace(pair, targets=np.where(better, direct, pair.targets))

    def _moved(self, before: Gray, after: Gray) -> Float32:
        """(H, W, 2) pixels of the frame after, where the pixels of the frame before are; NaN where there and back is
        not the same.
        """
        height, width = before.shape
        pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
        target = pixels + self._flow.calc(before, after, None)  # type: ignore[call-overload]
        back = cv2.remap(
            pixels + self._flow.calc(after, before, None),  # type: ignore[call-overload]
            target[..., 0],
            target[..., 1],
            interpolation=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(-1e6, -1e6),
        )
        target[np.linalg.norm(back - pixels, axis=-1) > _THERE_AND_BACK] = np.nan
        return np.asarray(target, np.float32)

    def _follow(self, chain: _Chain, flow: Float32, view: _ChainFrame) -> list[ChainedPair]:
        """Move a chain by one frame."""
        chain.views.append(chain.points)
        chain.points = sampled(flow, chain.points, _SPREAD)
        part = float(chain.known.mean())
        if part < min(SURVIVING) / 2:
            chain.due = []
        if not chain.due or part > chain.due[0]:
            return []
        while chain.due and part <= chain.due[0]:
            chain.due.pop(0)
        pair = self._checked(chain, view)
        return [] if pair is None else [pair]

    def _checked(self, chain: _Chain, view: _ChainFrame) -> ChainedPair | None:
        """The pair of a chain's first and newest view, of the points that agree with the geometry of all views."""
        between = np.linspace(0, len(chain.views), _VIEWS + 2)[1:-1].astype(int)
        chosen = [chain.views[0], *(chain.views[i] for i in between if 0 < i < len(chain.views)), chain.points]
        size = view.image.shape[::-1]
        scale = np.array([view.camera.width, view.camera.height]) / size
        known = np.flatnonzero(chain.known)
        rays = [view.camera.unproject((part[known] + 0.5) * scale - 0.5) for part in chosen]
        focal = view.camera.focal_length / float(np.sqrt(scale.prod()))
        agree = np.ones(len(known), np.bool_)
        for one, other in combinations(rays, 2):
            if agree.sum() < _LEAST:
                return None
            pose = estimate_relative_pose(one[agree], other[agree], focal, self._geometry)
            agree[agree] = pose.inliers
        known = known[agree]
        if len(known) < _LEAST:
            return None
        motion = np.median(np.linalg.norm(chain.points[known] - chosen[0][known], axis=1))
        if motion < _LEAST_MOTION * size[0]:
            return None
        targets = np.full_like(chain.points, np.nan)
        targets[known] = chain.points[known]
        rows, columns = self._points(view.image).shape[:2]
        frames = chain.first.number, view.number
        targets = targets.reshape(rows, columns, 2)
        return self._registered(ChainedPair(chain.first.image, view.image, targets, self._cell, self._offset, frames))

    def _points(self, image: Gray) -> Float32:
        """(rows, columns, 2) points of the cells."""
        axes = (np.arange(side // self._cell) * self._cell + self._offset for side in image.shape[::-1])
        return np.stack(np.meshgrid(*axes), axis=-1).astype(np.float32)


def spread_out(pairs: Sequence[ChainedPair], count: int) -> list[ChainedPair]:
    """At most `count` of them, evenly."""
    every = max(1, -(-len(pairs) // count))
    return list(pairs[::every])


def parted(pairs: Sequence[ChainedPair], frames: int, held_out: float) -> tuple[list[ChainedPair], list[ChainedPair]]:
    """Pairs to train on, and those of the recording's last part; pairs that reach across are left out."""
    border = round(frames * (1 - held_out))
    return [p for p in pairs if p.frames[1] < border], [p for p in pairs if p.frames[0] >= border]


__all__ = ["SURVIVING", "ChainedPair", "Chains", "inverted", "parted", "sampled", "spread_out"]
