"""Matching of two images that have little in common: at several scales, with doubtful matches that neighbours confirm.

Distant views and other light give few confident matches. Among the doubtful ones, right matches have neighbours whose
partners are neighbours too, while wrong ones are scattered. And where one camera is much closer, or looks at a wall
from the side, the network compares regions of different size or shape unless one of the images is reduced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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

# Minimum confidence of a match that its neighbours must confirm.
_DOUBTFUL = 0.01
# Minimum share and number of the matched neighbours that confirm it.
_AGREEING, _LEAST_AGREEING = 0.3, 3
# Distance of neighbours, in cells. Nearer cells may be of the same region, and are then matched together.
_NEAREST, _FARTHEST = 2, 6
# Range of the ratio of the partners' distance to the neighbours', and its tolerance in cells.
_CLOSER, _FARTHER, _TOLERANCE = 0.5, 2.0, 0.5
# Scales are used if they have this share of the confident matches of the best one.
_COMPARABLE = 0.5
# Minimum side of a reduced image, in pixels.
_LEAST_SIDE = 64
# Factors (u, v) by which images are reduced: half the size, and half the width, as of a wall seen from the side.
_FULL, _HALF, _NARROW = (1, 1), (2, 2), (2, 1)
# Those of images 0 and 1 that are matched.
_SCALES = ((_FULL, _FULL), (_HALF, _HALF), (_FULL, _HALF), (_HALF, _FULL), (_FULL, _NARROW), (_NARROW, _FULL))

Grid = tuple[int, int]


@dataclass(frozen=True)
class WideConfig(Settings):
    """Matching of two single images, which may be distant views."""

    min_matches: int = setting(
        1000,
        "Number of matches below which network `compact` matches two single images at other scales too, and keeps "
        "doubtful matches that their neighbours confirm; 0 for never",
        low=0,
        high=100000,
    )


@dataclass(frozen=True)
class _Scaled:
    """An image as encoded at one scale.

    Attributes:
        features: the network's.
        factor: (u, v) pixels of the image as encoded in full per pixel.
        start: (u, v) first pixel of that image which this one shows.
    """

    features: ImageFeatures
    factor: tuple[int, int] = (1, 1)
    start: tuple[int, int] = (0, 0)

    def in_full(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 2) pixels of the image as encoded in full."""
        return np.asarray(np.array(self.factor) * (points + 0.5) - 0.5 + np.array(self.start), np.float32)


@dataclass(frozen=True)
class _Found:
    """Matches at one combination of scales.

    Attributes:
        points0, points1: (N, 2) float32 pixels of the images as encoded in full.
        confidence: (N,) float32.
        std: (N,) float32 pixels of image 1 as encoded in full.
        confident: number of those above the network's own threshold.
    """

    points0: NDArray[np.float32]
    points1: NDArray[np.float32]
    confidence: NDArray[np.float32]
    std: NDArray[np.float32]
    confident: int


def match_at_scales(
    matcher: Matcher, lenient: Lenient, keyframe: EncodedFrame, current: EncodedFrame
) -> Correspondences:
    """Match two images at several scales.

    Args:
        matcher: the network; its cells' points are the cells' centres.
        lenient: its `match_leniently`.
        keyframe, current: images 0 and 1.

    Returns:
        The correspondences, ordered by cell, at most one of each.
    """
    cell = matcher.cell_size
    # Half a cell is left out: the centres of cells at half the size are then those of every second cell.
    views0, views1 = _views(matcher, keyframe, cell // 2), _views(matcher, current, 0)
    found = [
        _matched(matcher, lenient, views0[one], views1[other])
        for one, other in _SCALES
        if one in views0 and other in views1
    ]
    most = max(each.confident for each in found)
    found = sorted((each for each in found if each.confident >= _COMPARABLE * most), key=lambda each: -each.confident)
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


def _views(matcher: Matcher, encoded: EncodedFrame, skipped: int) -> dict[tuple[int, int], _Scaled]:
    """An image by the factors of its scales, without those at which it is too small.

    Args:
        matcher: the network.
        encoded: the image, as encoded in full.
        skipped: first pixels that are left out along each reduced axis.
    """
    views = {_FULL: _Scaled(encoded.features)}
    width, height = encoded.features.size
    image, usable = encoded.frame.image, encoded.frame.usable
    if image.shape != (height, width):
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        usable = None if usable is None else shrink_mask(usable, (width, height))
    for factor in (_HALF, _NARROW):
        start = skipped * (factor[0] - 1), skipped * (factor[1] - 1)
        size = (width - start[0]) // factor[0], (height - start[1]) // factor[1]
        if min(size) < _LEAST_SIDE:
            continue
        part = tuple(slice(start[axis], start[axis] + factor[axis] * size[axis]) for axis in (1, 0))
        reduced = np.asarray(cv2.resize(image[part], size, interpolation=cv2.INTER_AREA), np.uint8)
        mask = None if usable is None else torch.from_numpy(shrink_mask(usable[part], size))
        features = matcher.complete(matcher.encode(torch.from_numpy(reduced), mask))
        views[factor] = _Scaled(features, factor, start)
    return views


def _matched(matcher: Matcher, lenient: Lenient, view0: _Scaled, view1: _Scaled) -> _Found:
    """Confident matches, and doubtful ones that their neighbours confirm."""
    matches = lenient(view0.features, view1.features, _DOUBTFUL)
    confidence = matches.confidence.numpy()
    sure = confidence > matcher.config.coarse.threshold
    kept = sure | confirmed(matches, view0.features.grid, matcher.cell_size)
    points0, points1 = (
        view.in_full(points.numpy()[kept]) for view, points in ((view0, matches.points0), (view1, matches.points1))
    )
    std = matches.std.numpy()[kept] * np.float32(max(view1.factor))
    return _Found(points0, points1, confidence[kept], std, int(sure.sum()))


def confirmed(matches: Matches, grid: Grid, cell: int) -> NDArray[np.bool_]:
    """(N,) bool: matches whose neighbours in image 0 have partners around their own partner in image 1.

    Args:
        matches: of one pair.
        grid: (rows, columns) of the cells of image 0.
        cell: their side, in pixels.
    """
    number = matches.cell.numpy()
    margin = _FARTHEST
    partner = np.full((grid[0] + 2 * margin, grid[1] + 2 * margin, 2), np.nan, np.float32)
    row, column = number // grid[1] + margin, number % grid[1] + margin
    partner[row, column] = matches.points1.numpy() / cell
    there, agreeing = (np.zeros(len(number), np.int64) for _ in range(2))
    for down, along in product(range(-_FARTHEST, _FARTHEST + 1), repeat=2):
        distance = math.hypot(down, along)
        if not _NEAREST <= distance <= _FARTHEST:
            continue
        step = partner[row + down, column + along] - partner[row, column]
        apart = np.hypot(step[:, 0], step[:, 1])  # NaN where the neighbour has no match
        there += np.isfinite(apart)
        with np.errstate(invalid="ignore"):
            agreeing += (apart > _CLOSER * distance - _TOLERANCE) & (apart < _FARTHER * distance + _TOLERANCE)
    return (agreeing >= _LEAST_AGREEING) & (agreeing > _AGREEING * there)
