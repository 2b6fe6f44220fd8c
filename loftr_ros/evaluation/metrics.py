"""Errors of relative poses and their summary, as defined in the paper's section 4.2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rotation_error(rotation: ArrayLike, truth: ArrayLike) -> float:
    """Angle between two (3, 3) rotations, in degrees; accurate also for tiny angles."""
    difference = np.asarray(rotation, dtype=np.float64).T @ np.asarray(truth, dtype=np.float64)
    # |R - R^T| is 2 sqrt(2) sin, the trace 1 + 2 cos: atan2 of both is accurate at 0 and 180 degrees too.
    sine = np.linalg.norm(difference - difference.T) / (2 * np.sqrt(2))
    cosine = (np.trace(difference) - 1) / 2
    return float(np.degrees(np.arctan2(sine, cosine)))


def translation_direction_error(translation: ArrayLike, truth: ArrayLike) -> float:
    """Angle between two (3,) translations, in degrees, 0 to 180; 90 if one of them is zero.

    Unlike in the paper's script, an estimate that points backwards is an error of 180 degrees, not of 0.
    """
    a, b = np.asarray(translation, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if not a.any() or not b.any():
        return 90.0
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))


def pose_auc(errors: ArrayLike, thresholds: Sequence[float] = (5.0, 10.0, 20.0)) -> NDArray[np.float64]:
    """Area under the recall curve of the pose error up to each threshold, in percent (paper, section 4.2).

    Args:
        errors: (N,) pose errors in degrees: the larger of rotation and translation-direction error; inf or NaN for a
            pair without a pose.
        thresholds: upper ends of the integration, in degrees, greater than 0.

    Returns:
        (len(thresholds),) percentages; NaN without pairs.
    """
    ordered = np.sort(np.asarray(errors, dtype=np.float64))
    if not ordered.size:
        return np.full(len(thresholds), np.nan)
    recall = np.arange(1, ordered.size + 1) / ordered.size
    ordered, recall = np.r_[0.0, ordered], np.r_[0.0, recall]
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(ordered, threshold))
        x, y = np.r_[ordered[:last], threshold], np.r_[recall[:last], recall[last - 1]]
        areas.append(100 * float(np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2)) / threshold)
    return np.asarray(areas)
