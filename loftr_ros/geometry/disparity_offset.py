"""The error that all disparities of a stereo pair share, from the motion of the pair.

An error of a hundredth of a degree in the angle between the cameras, or of their rectification, shifts all disparities
by a tenth of a pixel. Every depth is then wrong by another part of itself, and near and far points disagree about the
length of a motion. The offset at which they agree is found together with the motion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.depth_problem import DepthMatches, DepthProblem, Projection
from loftr_ros.geometry.epipolar import COMMON_FACTOR, CommonErrors
from loftr_ros.geometry.least_squares import minimise
from loftr_ros.geometry.se3 import rotation_matrix

Array = NDArray[np.float64]

# Steps at most, and the median of a squared residual of two dimensions in its variances.
_ITERATIONS, _MEDIAN = 15, 1.39
# Largest distance to the minimum, in standard deviations.
_CONVERGED = 0.5
# Number of `CommonErrors.rays` that come from the calibration; the others come from the matches of one pair of images.
_OF_CALIBRATION = 3


@dataclass(frozen=True, eq=False)
class OffsetMeasurement:
    """One motion's estimate of the offset.

    Attributes:
        value: pixels; disparities are too large by it.
        std: pixels, by noise and by the errors that one pair's matches share.
        by_calibration: (3,) pixels, by errors of focal length and principal point of one standard deviation each. They
            are the same in all estimates, up to this factor.
    """

    value: float
    std: float
    by_calibration: Array


@dataclass(frozen=True, eq=False)
class _State:
    """A pose and an offset, with the matches projected there."""

    problem: DepthProblem
    projection: Projection
    offset: float


class _OffsetProblem:
    """The matches' residuals as a function of the pose and of the offset (see `least_squares.Problem`)."""

    def __init__(self, matches: DepthMatches, slope: float) -> None:
        self._matches, self._slope = matches, slope
        self._slopes = np.full(len(matches), slope)

    def at(self, rotation: Array, translation: Array, offset: float) -> _State:
        problem = DepthProblem(replace(self._matches, inverse=self._matches.inverse + self._slope * offset))
        return _State(problem, problem.projection(rotation, translation), offset)

    def cost(self, state: _State) -> float:
        return state.problem.cost(state.projection)

    def normal_equations(self, state: _State) -> tuple[Array, Array]:
        return state.problem.normal_equations(state.projection, self._slopes)

    def moved(self, state: _State, step: Array) -> _State:
        rotation = rotation_matrix(step[3:6]) @ state.projection.rotation
        return self.at(rotation, state.projection.translation + step[:3], state.offset + float(step[6]))


def measure_offset(
    matches: DepthMatches, focal_baseline: float, rotation: Array, translation: Array, common: CommonErrors
) -> OffsetMeasurement | None:
    """The offset of the disparities that a keyframe's depths come from, by its matches with another image.

    Args:
        matches: of the keyframe with the image: inliers of the pose, all of known depth, as measured.
        focal_baseline: px m, the right camera's focal length times the distance of the two cameras.
        rotation, translation: initial T_keyframe_current.
        common: errors that the matches share.

    Returns:
        None if the motion does not tell it, or if no minimum was found.
    """
    problem = _OffsetProblem(matches, -1 / focal_baseline)
    found, _ = minimise(problem, problem.at(rotation, translation, 0.0), _ITERATIONS)
    hessian, gradient = problem.normal_equations(found)
    if np.linalg.matrix_rank(hessian) < len(hessian):
        return None
    pose, offset = (found.projection.rotation, found.projection.translation), found.offset
    pulls = []
    for rays0, rays1 in common.rays(matches.rays_keyframe, matches.rays_current):
        other = _OffsetProblem(replace(matches, rays_keyframe=rays0, rays_current=rays1), -1 / focal_baseline)
        pulls.append(other.normal_equations(other.at(*pose, offset))[1] - gradient)
    solved = np.linalg.solve(hessian, np.column_stack([np.eye(7)[:, 6], gradient, *pulls]))[6]
    shared = COMMON_FACTOR * solved[2:]
    noise = float(np.median(found.projection.squared)) / _MEDIAN
    variance = noise * float(solved[0]) + float((shared[_OF_CALIBRATION:] ** 2).sum())
    if not np.isfinite(variance) or variance <= 0:
        return None
    if solved[1] ** 2 > _CONVERGED**2 * variance:
        return None
    return OffsetMeasurement(offset, float(np.sqrt(variance)), shared[:_OF_CALIBRATION])
