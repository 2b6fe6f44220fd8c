"""Quality of the matches of one pair of images, against its true pose or homography, for any matcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from match_scores import corner_error, epipolar_errors
from numpy.typing import NDArray

from loftr_ros.evaluation.metrics import rotation_error, translation_direction_error
from loftr_ros.frontend.keyframes import coverage
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.two_view import estimate_relative_pose

Array = NDArray[np.float64]
Points = NDArray[np.float32]


@dataclass(frozen=True)
class PairScore:
    """Scores of one pair.

    Attributes:
        errors: (orders,) degrees (the larger of rotation and translation direction), or pixels (mean corner error), one
            for each order of the matches; inf without an estimate.
        matches: their number.
        precision: part of the matches near the true epipolar line, or the true point; NaN without matches.
        inliers: those of the estimate, a mean over the orders.
        coverage: part of image 1's grid blocks with an inlier, a mean over the orders.
    """

    errors: Array
    matches: int
    precision: float
    inliers: float
    coverage: float


def orders_of(count: int, orders: int) -> list[NDArray[np.int64]]:
    """The same few orders for every matcher.

    OpenCV's estimators draw the same samples for any seed, so the influence of the sampling is measured by shuffling.
    """
    return [np.random.default_rng(order).permutation(count) for order in range(orders)]


def score_pose(
    points0: Points,
    points1: Points,
    cameras: tuple[CameraModel, CameraModel],
    truth: Array,
    limit: float,
    config: GeometryConfig,
    orders: int,
    std: NDArray[np.float32] | None = None,
) -> PairScore:
    """Estimate a pair's relative pose with its matches in several orders, by the front end's geometry.

    Args:
        points0, points1: (N, 2) raw pixels.
        cameras: of both images.
        truth: (4, 4) T_0_1 up to scale.
        limit: largest of `epipolar_errors` for a right match.
        config: of the geometry.
        orders: their number.
        std: (N,) standard deviations of the matches, if the matcher provides them.
    """
    rays0, rays1 = cameras[0].unproject(points0), cameras[1].unproject(points1)
    size = cameras[1].width, cameras[1].height
    errors, inliers, covered = np.full(orders, np.inf), np.zeros(orders), np.zeros(orders)
    for i, order in enumerate(orders_of(len(points0), orders)):
        known = None if std is None else std[order]
        pose = estimate_relative_pose(rays0[order], rays1[order], cameras[0].focal_length, config, known)
        inliers[i] = pose.inliers.sum()
        covered[i] = coverage(points1[order][pose.inliers], size)
        if pose.has_rotation:
            direction = translation_direction_error(pose.translation, truth[:3, 3])
            errors[i] = max(rotation_error(pose.rotation, truth[:3, :3]), direction)
    right = epipolar_errors(rays0, rays1, truth) < limit
    precision = float(right.mean()) if len(right) else float("nan")
    return PairScore(errors, len(points0), precision, float(inliers.mean()), float(covered.mean()))


def score_homography(
    points0: Points,
    points1: Points,
    truth: Array,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    distances: Array,
    limit: float,
    threshold: float,
    orders: int,
) -> PairScore:
    """Estimate a pair's homography by MAGSAC++ with its matches in several orders.

    Args:
        points0, points1: (N, 2) pixels.
        truth: (3, 3), from pixels of image 0 to those of image 1.
        sizes: (width, height) of both images.
        distances: (N,) pixels between `points1` and their true positions.
        limit: largest of `distances` for a right match.
        threshold: of MAGSAC++, in pixels.
        orders: their number.
    """
    errors, inliers, covered = np.full(orders, np.inf), np.zeros(orders), np.zeros(orders)
    for i, order in enumerate(orders_of(len(points0), orders)):
        if len(order) < 4:
            break
        # OpenCV's types do not include None.
        result: tuple[Any, Any] = cv2.findHomography(
            points0[order], points1[order], cv2.USAC_MAGSAC, threshold, maxIters=10000, confidence=0.9999
        )
        found, mask = result
        if found is None or mask is None:
            continue
        errors[i] = corner_error(found, truth, sizes[0])
        inliers[i] = mask.sum()
        covered[i] = coverage(points1[order][mask.ravel() > 0], sizes[1])
    precision = float((distances < limit).mean()) if len(distances) else float("nan")
    return PairScore(errors, len(points0), precision, float(inliers.mean()), float(covered.mean()))
