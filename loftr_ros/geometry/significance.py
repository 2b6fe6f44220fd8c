"""Probability that chance alone gives a pose as many inliers.

`min_inliers` alone is not enough: of 2,000 random matches, twelve lie near some epipolar line of any pose. The number
of false alarms of Moisan and Stival (IJCV 2004, eq. 9) compares the result with that of random matches.
"""

from __future__ import annotations

from collections.abc import Callable
from math import lgamma, log

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Approximate number of random pairs used to measure the chance of an inlier; fewer are enough where the result is so
# many times what is needed.
_TRIALS, _FEW_TRIALS, _CLEAR = 3000, 300, 3.0
# Lower limit of the chance, because matches are not independent.
_LEAST_CHANCE = 1e-4
# Side of a block in px. Only one match per block counts, because errors of neighbours are correlated.
BLOCK = 16.0
# Number and part of inliers from which no test is needed.
_OBVIOUS, _OBVIOUS_PART = 400, 0.5


def is_significant(
    rays_keyframe: Array,
    rays_current: Array,
    inliers: Flags,
    agree: Callable[[Array, Array], Flags],
    focal_length: float,
    least: float,
) -> bool:
    """Whether random matches are very unlikely to give a pose as many inliers.

    Args:
        rays_keyframe, rays_current: (N, 2) finite normalised coordinates.
        inliers: (N,) bool.
        agree: returns which of other (N, 2) pairs of rays would be inliers of the pose.
        focal_length: pixels, of the keyframe's image.
        least: minus the decimal logarithm of the allowed number of false alarms.
    """
    count = int(inliers.sum())
    if least <= 0 or (count >= _OBVIOUS and count >= _OBVIOUS_PART * len(inliers)):
        return True
    # Few random pairs tell enough of most poses.
    return any(
        significance(rays_keyframe, rays_current, inliers, agree, focal_length, trials) >= enough
        for trials, enough in ((_FEW_TRIALS, _CLEAR * least), (_TRIALS, least))
    )


def significance(
    rays_keyframe: Array,
    rays_current: Array,
    inliers: Flags,
    agree: Callable[[Array, Array], Flags],
    focal_length: float,
    trials: int = _TRIALS,
) -> float:
    """Minus the decimal logarithm of the number of false alarms; see `is_significant`.

    One match per block of the keyframe's image counts: an inlier if the block has one, else an outlier. The chance of
    an inlier is measured on the same rays paired at random, so that matches in one corner of both images gain nothing.
    """
    if not inliers.any():
        return -np.inf
    kept = _one_a_block(rays_keyframe, inliers, BLOCK / focal_length)
    number, good = len(kept), int(inliers[kept].sum())
    if good <= 5:
        return -np.inf
    random = np.random.default_rng(number)
    rounds = max(trials // len(rays_keyframe), 1)
    chosen = [random.permutation(len(rays_current)) for _ in range(rounds)]
    hits = sum(int(agree(rays_keyframe, rays_current[order]).sum()) for order in chosen)
    chance = max((hits + 1) / (rounds * len(rays_current) + 1), _LEAST_CHANCE)
    # The pose was fitted to five of them.
    alarms = log(max(number - 5, 1)) + _log_choose(number, good) + _log_choose(good, 5) + (good - 5) * log(chance)
    return -alarms / log(10)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _one_a_block(rays: Array, inliers: Flags, side: float) -> NDArray[np.intp]:
    """Indices of one match per block of the image, an inlier if the block has one."""
    column, row = np.floor((rays - rays.min(axis=0)) / side).astype(np.int64).T
    order = np.argsort(~inliers, kind="stable")
    _, first = np.unique((row * (int(column.max()) + 1) + column)[order], return_index=True)
    return np.asarray(order[first])
