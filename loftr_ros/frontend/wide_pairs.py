"""Matching of two images that have little in common: at several scales, with matches that their neighbours confirm.

Distant views and other light give few confident matches, and many of these are wrong. Right matches move as their
neighbours do, while wrong ones are scattered. And where one camera is much closer, or looks at a wall from the side,
the network compares regions of different size or shape unless one of the images is reduced. A picture may also be
turned by a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from loftr_ros.frontend.keyframes import EncodedFrame, raw_pixels
from loftr_ros.frontend.mask import on_usable, shrink_mask
from loftr_ros.frontend.results import Correspondences
from loftr_ros.matcher.interface import ImageFeatures, Lenient, Matcher, Matches
from loftr_ros.settings import Settings, setting

# Minimum confidence of a match; its neighbours must confirm it.
_DOUBTFUL = 0.01
# Minimum share and number of the neighbours that confirm a match.
_AGREEING, _LEAST_AGREEING = 0.12, 3
# Distance of neighbours, in cells. Nearer cells may be of the same region, and are then matched together.
_NEAREST, _FARTHEST = 2, 8
# Most neighbours of a match, the nearest ones, and the affine transforms that are tried through two of them.
_NEIGHBOURS, _SAMPLES = 36, 36
# Largest distance in cells of a neighbour's partner from where the transform puts it: at the match, and its growth.
_TOLERANCE, _GROWTH = 1.0, 0.15
# Least area in cells between two neighbours of a sample, and the largest factor of a side by which a transform
# enlarges or reduces.
_LEAST_AREA, _LARGEST_SCALE = 2.0, 2.5
# Scales are used if they have this share of the agreement of the best one.
_COMPARABLE = 0.65
# A reduction is borne out by the matches' own scale if the reduced image shows things at least this much larger (area),
# by so many confident matches. Two combinations see different scales if these differ by this factor (area).
_LARGER, _BEARING_OUT, _OTHER = 1.6, 200, 1.5
# Minimum side of a reduced image, in pixels.
_LEAST_SIDE = 64
# Number of confident matches below which turned images are tried, and how many times more a turned one must have.
_HARDLY, _TURNED = 100, 1.5
# Factors (u, v) by which images are reduced: half the size, and half the width, as of a wall seen from the side.
_FULL, _HALF, _NARROW = (1, 1), (2, 2), (2, 1)
# Those of images 0 and 1 that are matched.
_SCALES = ((_FULL, _FULL), (_HALF, _HALF), (_FULL, _HALF), (_HALF, _FULL), (_FULL, _NARROW), (_NARROW, _FULL))
# Those at which it is tried whether an image is turned.
_COARSELY = ((_HALF, _HALF),)

Grid = tuple[int, int]
Factor = tuple[int, int]


@dataclass(frozen=True)
class WideConfig(Settings):
    """Matching of two single images, which may be distant views."""

    min_matches: int = setting(
        1900,
        "Number of matches below which network `compact` matches two single images at other scales too, and keeps "
        "only matches that their neighbours confirm, doubtful ones too; 0 for never",
        low=0,
        high=100000,
    )


@dataclass(frozen=True)
class _View:
    """An image as encoded at one scale, and perhaps turned.

    Attributes:
        features: the network's.
        factor: (u, v) pixels of the image as encoded in full, and turned, per pixel.
        start: (u, v) first pixel of that image which this one shows.
        turns: quarter turns to the left.
        size: (width, height) of the image as encoded in full, not turned.
    """

    features: ImageFeatures
    factor: Factor
    start: tuple[int, int]
    turns: int
    size: tuple[int, int]

    def in_full(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 2) pixels of the image as encoded in full, not turned."""
        u, v = (np.array(self.factor) * (points + 0.5) - 0.5 + np.array(self.start)).T
        right, bottom = self.size[0] - 1, self.size[1] - 1
        turned = ((u, v), (right - v, u), (right - u, bottom - v), (v, bottom - u))[self.turns]
        return np.stack(turned, axis=1).astype(np.float32)


class _Views:
    """All views of one image that were needed so far."""

    def __init__(self, matcher: Matcher, encoded: EncodedFrame, skipped: int) -> None:
        """Create it with the image in full.

        Args:
            matcher: the network.
            encoded: the image, as encoded in full.
            skipped: number of first pixels that are left out along each reduced axis.
        """
        self._matcher, self._skipped = matcher, skipped
        self.size = encoded.features.size
        self._image, self._usable = encoded.frame.image, encoded.frame.usable
        if self._image.shape[::-1] != self.size:
            self._image = np.asarray(cv2.resize(self._image, self.size, interpolation=cv2.INTER_AREA), np.uint8)
            self._usable = None if self._usable is None else shrink_mask(self._usable, self.size)
        self._made: dict[tuple[Factor, int], _View] = {(_FULL, 0): _View(encoded.features, _FULL, (0, 0), 0, self.size)}

    def at(self, factor: Factor, turns: int = 0) -> _View | None:
        """The image reduced by (u, v) factors after some quarter turns; None if it is too small."""
        if (factor, turns) not in self._made:
            image = np.rot90(self._image, turns)
            start = self._skipped * (factor[0] - 1), self._skipped * (factor[1] - 1)
            size = (image.shape[1] - start[0]) // factor[0], (image.shape[0] - start[1]) // factor[1]
            if min(size) < _LEAST_SIDE:
                return None
            part = tuple(slice(start[axis], start[axis] + factor[axis] * size[axis]) for axis in (1, 0))
            seen = cv2.resize(np.ascontiguousarray(image[part]), size, interpolation=cv2.INTER_AREA)
            mask = None
            if self._usable is not None:
                mask = torch.from_numpy(shrink_mask(np.rot90(self._usable, turns)[part], size))
            features = self._matcher.complete(self._matcher.encode(torch.from_numpy(seen), mask))
            self._made[factor, turns] = _View(features, factor, start, turns, self.size)
        return self._made[factor, turns]


@dataclass(frozen=True)
class _Found:
    """Matches at one combination of scales.

    Attributes:
        points0, points1: (N, 2) float32 pixels of the images as encoded in full.
        confidence: (N,) float32.
        std: (N,) float32 pixels of image 1 as encoded in full.
        confident: number of matches above the network's own threshold.
        agreement: number of neighbours that confirm them, in total.
        reduced: by how much more image 0 is reduced than image 1 (area).
        larger: how much larger image 1 shows things, by the matches of the images in full: median (area).
    """

    points0: NDArray[np.float32]
    points1: NDArray[np.float32]
    confidence: NDArray[np.float32]
    std: NDArray[np.float32]
    confident: int
    agreement: int
    reduced: float
    larger: float

    def claim(self, most: _Found) -> float:
        """The agreement. If the combination that has most of it sees another scale than this one, whose matches bear
        out its reduction, what it would be without the reduction.

        An image at half its size has a quarter of the cells, and so a quarter of the matches. If a row of windows is
        confused at one scale, that one may well have more of them.

        Args:
            most: the combination with the most agreement.
        """
        by, larger = max(self.reduced, 1 / self.reduced), self.larger if self.reduced < 1 else 1 / self.larger
        borne_out = by > 1 and self.confident >= _BEARING_OUT and larger > _LARGER
        is_other = abs(math.log(self.larger / most.larger)) > math.log(_OTHER)
        whole = by * self.agreement
        return whole if borne_out and is_other and whole >= most.agreement else self.agreement


def match_at_scales(
    matcher: Matcher, lenient: Lenient, keyframe: EncodedFrame, current: EncodedFrame
) -> Correspondences:
    """Match two images at several scales, and if they hardly match with image 1 turned.

    Args:
        matcher: the network; its cells' points are the cells' centres.
        lenient: its `match_leniently`.
        keyframe, current: images 0 and 1.

    Returns:
        The correspondences, ordered by cell, at most one of each.
    """
    cell = matcher.cell_size
    # Half a cell is left out: the centres of cells at half the size are then those of every second cell.
    views0, views1 = _Views(matcher, keyframe, cell // 2), _Views(matcher, current, 0)

    def match(scales: Sequence[tuple[Factor, Factor]], turns: int) -> list[_Found]:
        pairs = ((views0.at(one), views1.at(other, turns)) for one, other in scales)
        return [_matched(matcher, lenient, one, other) for one, other in pairs if one and other]

    found = match(_SCALES, 0)
    if _most(found) < _HARDLY:
        turned = {turns: _most(match(_COARSELY, turns)) for turns in (1, 2, 3)}
        best = max(turned, key=lambda turns: turned[turns])
        if turned[best] > _TURNED * max(_most(found), 1):
            found = match(_SCALES, best)
    most = max(found, key=lambda each: each.agreement)
    claims = [each.claim(most) for each in found]
    best_first = sorted(zip(claims, found, strict=True), key=lambda pair: -pair[0])
    found = [each for claim, each in best_first if claim >= _COMPARABLE * max(claims)]
    points0, points1, confidence, std = (
        np.concatenate([getattr(each, name) for each in found]) for name in ("points0", "points1", "confidence", "std")
    )
    place = (points0 // cell).astype(np.int64)
    cells, first = np.unique(place[:, 1] * keyframe.grid[1] + place[:, 0], return_index=True)
    limit = matcher.config.coarse.max_matches
    if 0 < limit < len(first):
        kept = np.sort(np.argsort(-confidence[first], kind="stable")[:limit])
        cells, first = cells[kept], first[kept]
    enlarged = np.float32(math.sqrt(current.scale[0] * current.scale[1]))
    correspondences = Correspondences(
        cells.astype(np.uint32),
        keyframe.cell_points[cells],
        raw_pixels(points1[first], current.scale),
        confidence[first],
        std[first] * enlarged,
    )
    usable = on_usable(correspondences.keyframe_points, keyframe.frame.usable)
    return correspondences[usable & on_usable(correspondences.current_points, current.frame.usable)]


def _most(found: Sequence[_Found]) -> int:
    """The largest number of confident matches; 0 for none."""
    return max((each.confident for each in found), default=0)


def _matched(matcher: Matcher, lenient: Lenient, view0: _View, view1: _View) -> _Found:
    """The matches that their neighbours confirm."""
    matches = lenient(view0.features, view1.features, _DOUBTFUL)
    confidence = matches.confidence.numpy()
    agreeing, enlarged = agreement(matches, view0.features.grid, matcher.cell_size)
    kept = agreeing >= _LEAST_AGREEING
    reduced = math.prod(view0.factor) / math.prod(view1.factor)
    larger = float(np.median(enlarged[kept])) / reduced if kept.any() else 1.0
    points0, points1 = (
        view.in_full(points.numpy()[kept]) for view, points in ((view0, matches.points0), (view1, matches.points1))
    )
    std = matches.std.numpy()[kept] * np.float32(max(view1.factor))
    confident = int((confidence > matcher.config.coarse.threshold).sum())
    return _Found(points0, points1, confidence[kept], std, confident, int(agreeing[kept].sum()), reduced, larger)


def agreement(matches: Matches, grid: Grid, cell: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Number of neighbours that confirm each match, and how much larger image 1 shows the surface.

    Matches of one surface move by one affine transform. Transforms through a match and two of its neighbours are tried
    (as in AdaLAM, Cavalli et al., arXiv 2006.04250); those other neighbours count that the best one moves to their
    partners.

    Args:
        matches: of one pair.
        grid: (rows, columns) of the cells of image 0.
        cell: their side, in pixels.

    Returns:
        (N,) numbers, 0 for matches that too small a share of their neighbours confirms; and (N,) areas, of which only
        those of confirmed matches mean anything.
    """
    number = matches.cell.numpy()
    if not len(number):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    margin, steps = _FARTHEST, _steps_to_neighbours()
    partner = np.full((grid[0] + 2 * margin, grid[1] + 2 * margin, 2), np.nan, np.float32)
    row, column = number // grid[1] + margin, number % grid[1] + margin
    partner[row, column] = matches.points1.numpy() / cell
    moved = partner[row[:, None] + steps[:, 1], column[:, None] + steps[:, 0]] - partner[row, column][:, None]
    there = np.isfinite(moved[..., 0])
    nearest = np.argsort(~there, axis=1, kind="stable")[:, :_NEIGHBOURS]
    there, moved = np.take_along_axis(there, nearest, 1), np.take_along_axis(moved, nearest[..., None], 1)
    step, count = steps[nearest].astype(np.float32), there.sum(axis=1)

    chosen = np.random.default_rng(0).random((2, len(number), _SAMPLES)) * np.maximum(count, 1)[:, None]
    first, second = chosen.astype(np.int64)
    match = np.arange(len(number))[:, None]
    before, after = (np.stack([part[match, first], part[match, second]], axis=-1) for part in (step, moved))
    area = _determinants(before)
    usable = np.abs(area) >= _LEAST_AREA
    inverse = np.stack(
        [
            np.stack([before[..., 1, 1], -before[..., 0, 1]], axis=-1),
            np.stack([-before[..., 1, 0], before[..., 0, 0]], axis=-1),
        ],
        axis=-2,
    )
    affine = np.nan_to_num(after) @ (inverse / np.where(usable, area, 1)[..., None, None])  # (N, samples, 2, 2)
    enlarged = _determinants(affine)
    usable &= (enlarged > _LARGEST_SCALE**-2) & (enlarged < _LARGEST_SCALE**2)
    usable &= np.abs(affine).max(axis=(2, 3)) < _LARGEST_SCALE
    error = np.abs(affine @ step[:, None].swapaxes(2, 3) - moved[:, None].swapaxes(2, 3)).max(axis=2)
    limit = _TOLERANCE + _GROWTH * np.linalg.norm(step, axis=2)
    # Both neighbours that a transform goes through agree with it in any case.
    confirming = np.where(usable, (error < limit[:, None]).sum(axis=2) - 2, 0)
    best = confirming.argmax(axis=1)[:, None]
    agreeing, area = (np.take_along_axis(each, best, axis=1)[:, 0] for each in (confirming, enlarged))
    return np.asarray(np.where(agreeing > _AGREEING * count, agreeing, 0), np.int64), np.asarray(area, np.float32)


@cache
def _steps_to_neighbours() -> NDArray[np.int64]:
    """(S, 2) columns and rows from a cell to those around it, the nearest first."""
    reach = range(-_FARTHEST, _FARTHEST + 1)
    steps = [step for step in product(reach, repeat=2) if _NEAREST <= math.hypot(*step) <= _FARTHEST]
    return np.array(sorted(steps, key=lambda step: math.hypot(*step)))


def _determinants(matrices: NDArray[np.float32]) -> NDArray[np.float32]:
    """(...) of (..., 2, 2)."""
    made = matrices[..., 0, 0] * matrices[..., 1, 1] - matrices[..., 0, 1] * matrices[..., 1, 0]
    return np.asarray(made, np.float32)
