"""Keypoints of an image from the matches of its pairs, as triangulation needs them: one point in many pairs.

A network without a detector finds other points in each pair. The points of all pairs of an image are therefore counted
in square cells, and each cell keeps its most frequent point. Then each match takes the nearest keypoints.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Scores = NDArray[np.float32]
Indices = NDArray[np.int64]

# Points are counted together that are within a quarter of a cell.
_VOTES = 4
# Rows of cells are this far apart in their numbers: more than any image is wide.
_ROW = np.int64(1) << 31


def merge(points: Points, scores: Scores, cell: float, most: int = 0) -> tuple[Points, Scores]:
    """The keypoints of an image.

    Args:
        points: (N, 2) pixels, of all its pairs.
        scores: (N,) at least 0; how much each counts.
        cell: side in pixels of the cells that have one keypoint each; 0 to keep all different points.
        most: keep the keypoints of the highest scores; 0 for all.

    Returns:
        (K, 2) float32 pixels and (K,) float32 sums of scores, sorted by row and column of the cell.
    """
    if cell <= 0:
        keypoints, index = np.unique(points, axis=0, return_inverse=True)
        sums = np.bincount(index.ravel(), scores, len(keypoints))
    else:
        # The best quarter of each cell by its votes, and in it the best position: points of different pairs are of
        # different points in the world, so that their mean is a point of none.
        positions, index = np.unique(points, axis=0, return_inverse=True)
        votes = np.bincount(index.ravel(), scores, len(positions))
        quarters, index = np.unique(_numbers(positions, cell / _VOTES), return_inverse=True)
        support = np.bincount(index.ravel(), votes, len(quarters))[index.ravel()]
        cells = _numbers(positions, cell)
        order = np.lexsort((-votes, -support, cells))
        best = order[np.r_[True, np.diff(cells[order]) > 0]] if len(order) else order
        keypoints, sums = positions[best], support[best]
    if most and len(keypoints) > most:
        kept = np.sort(np.argsort(-sums, kind="stable")[:most])
        keypoints, sums = keypoints[kept], sums[kept]
    return np.asarray(keypoints, np.float32).reshape(-1, 2), np.asarray(sums, np.float32)


def nearest(points: Points, keypoints: Points, max_error: float) -> Indices:
    """The nearest keypoint of each point.

    Args:
        points: (N, 2) pixels.
        keypoints: (K, 2) pixels.
        max_error: largest distance in pixels, above 0.

    Returns:
        (N,) int64 numbers of keypoints; -1 where none is that near.
    """
    found = np.full(len(points), -1, np.int64)
    distance = np.full(len(points), max_error * (1 + 1e-6))
    numbers = _numbers(keypoints, max_error)
    order = np.argsort(numbers, kind="stable")
    numbers, here = numbers[order], _numbers(points, max_error)
    for row, column in product((-1, 0, 1), repeat=2):
        at = here + row * _ROW + column
        first, last = np.searchsorted(numbers, at, "left"), np.searchsorted(numbers, at, "right")
        while (left := np.flatnonzero(first < last)).size:
            candidate = order[first[left]]
            gap = np.linalg.norm(points[left].astype(np.float64) - keypoints[candidate], axis=1)
            nearer = gap <= distance[left]
            found[left[nearer]], distance[left[nearer]] = candidate[nearer], gap[nearer]
            first[left] += 1
    return found


def one_to_one(index0: Indices, index1: Indices, scores: Scores) -> Indices:
    """Matches of keypoints of which no two share a keypoint.

    Args:
        index0, index1: (N,) keypoints of both images; -1 for a point without one.
        scores: (N,) of the matches.

    Returns:
        (M,) int64 numbers of matches: both have a keypoint, and it is the best match of either keypoint.
    """
    kept = np.flatnonzero((index0 >= 0) & (index1 >= 0))
    order = kept[np.argsort(-scores[kept], kind="stable")]
    first0, first1 = (order[np.unique(index[order], return_index=True)[1]] for index in (index0, index1))
    return np.intersect1d(first0, first1)


def _numbers(points: Points, side: float) -> Indices:
    """(N,) number of the square of this side that each point is in; (-0.5, -0.5) is a corner of one."""
    column, row = np.floor((points.astype(np.float64) + 0.5) / side).astype(np.int64).T.reshape(2, -1)
    return np.asarray((row + (_ROW >> 2)) * _ROW + column + (_ROW >> 2), np.int64)
