"""Whether the parts of an image agree about a pose."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Parts along each side, and the least number of them that must have matches.
_SIDE, _LEAST = 3, 6
# Standard deviations of the places from their middle that the parts divide: nearly all of an even spread.
_REACH = 1.65
# How many times the parts' pulls must exceed what independent errors would scatter them by. Matches of one region share
# some of their errors.
_BEYOND = 1.6
# Part of the whole image's information that is added to a side's: few matches alone may tell nothing in some direction.
_SHARED = 0.001
# Lower limit of a robust kernel's curvature, as a part of its weight: beyond it a step is too long to mean anything.
_LEAST_SLOPE = 0.2


def part_disagreement(places: Array, pulls: Array, rows: Array, weight: Array, slope: Array) -> Array:
    """How far the parts of an image disagree about a robust minimum, beyond what independent errors explain.

    A façade's rows of windows can be matched one window off: hundreds of wrong matches that agree with each other, and
    nearly with the right ones. The minimum lies between both, with a small covariance, because that takes errors as
    independent. The errors of a rolling shutter, of a lens and of a depth image that is shifted against its color image
    are alike over parts of the image, too. So the image is divided into 3 x 3 parts. If their pulls scatter more than
    independent errors do (the covariance by clusters: Liang and Zeger, Biometrika 73, 1986), those that pull to either
    side along the direction of the largest scatter would each move the minimum, to first order, and the farther of both
    is the disagreement.

    Args:
        places: (N, 2) of the matches, in any unit.
        pulls: (N, K) gradients of the matches' costs by the K unknowns; they sum up to zero at the minimum.
        rows: (R, N, K) derivatives of their R residuals, times the root of the robust weight.
        weight: (N,) robust weights.
        slope: (N,) the weights minus their own decrease along the residual.

    Returns:
        (K,) a step from the minimum; zero where the parts agree, or where too few have matches.
    """
    unknowns = pulls.shape[1]
    middle, spread = places.mean(axis=0), places.std(axis=0)
    place = (places - middle) / np.maximum(2 * _REACH * spread, 1e-12) + 0.5
    column, row = np.clip(place * _SIDE, 0, _SIDE - 1).astype(np.int64).T
    member = np.equal.outer(np.arange(_SIDE**2), row * _SIDE + column)
    member = member[member.any(axis=1)]
    count = len(member)
    if count < _LEAST:
        return np.zeros(unknowns)
    scatter = pulls.T @ pulls
    of_parts = member.astype(np.float64) @ pulls
    root = np.linalg.cholesky(scatter + (1e-12 * np.trace(scatter) + 1e-300) * np.eye(unknowns))
    whitened = np.linalg.solve(root, of_parts.T)
    directions, strengths, _ = np.linalg.svd(whitened, full_matrices=False)
    ratio = strengths[0] ** 2 * count / (count - 1)
    # The largest eigenvalue of so many independent parts (Marchenko and Pastur), with a margin.
    expected = _BEYOND * (1 + math.sqrt(unknowns / count)) ** 2
    if ratio <= expected:
        return np.zeros(unknowns)
    forward = member[directions[:, 0] @ whitened > 0].any(axis=0)
    sides = forward, ~forward
    derivatives = [rows[:, side].reshape(-1, unknowns) for side in sides]
    curvatures = [each.T @ each for each in derivatives]
    steps = []
    for side, curvature in zip(sides, curvatures, strict=True):
        steepness = max(float(slope[side].sum() / max(weight[side].sum(), 1e-12)), _LEAST_SLOPE)
        information = steepness * curvature + _SHARED * sum(curvatures)
        steps.append(-np.linalg.lstsq(information, pulls[side].sum(axis=0), rcond=None)[0])
    farther = max(steps, key=lambda step: float(np.linalg.norm(step)))
    return np.asarray(math.sqrt(1 - expected / ratio) * farther)
