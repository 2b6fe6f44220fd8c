"""Residuals of matches with known or partly known keyframe depths, as a function of the pose.

Each match has its own inverse depth, estimated jointly from the match and from prior knowledge. For a given pose it has
a closed form, so only the pose is searched for. A cell of exact depth constrains both image directions, one of unknown
depth only the direction across its epipolar line. One formula covers all cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.epipolar import kernel_slope, m_estimate_variance
from loftr_ros.geometry.least_squares import minimise
from loftr_ros.geometry.parts import part_disagreement
from loftr_ros.geometry.se3 import rotation_matrix

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Used instead of infinity: relative uncertainty of an unknown depth.
_UNKNOWN = 1e3
# Used instead of zero, likewise.
_EXACT = 1e-5
# Scale of Cauchy's kernel, in standard deviations of the whitened residuals.
KERNEL = 2.5
# Squared residual of a point behind either camera: it counts in the cost, and its derivatives mean nothing.
_INVISIBLE = 1e6
# Weight of the matches' stated noise, as a number of residuals.
_PRIOR_WEIGHT = 10.0


@dataclass(frozen=True, eq=False)
class DepthMatches:
    """Matches of a keyframe and the current image, with the keyframe's depths.

    Attributes:
        rays_keyframe, rays_current: (N, 2) normalised coordinates.
        inverse, variance: (N,) inverse depth of the keyframe's points, NaN and infinite where unknown.
        std: (N,) normalised units, standard deviation of `rays_current` along one axis.
    """

    rays_keyframe: Array
    rays_current: Array
    inverse: Array
    variance: Array
    std: Array

    def __getitem__(self, keep: Flags | NDArray[np.integer]) -> DepthMatches:
        return DepthMatches(
            self.rays_keyframe[keep],
            self.rays_current[keep],
            self.inverse[keep],
            self.variance[keep],
            self.std[keep],
        )

    def __len__(self) -> int:
        return len(self.inverse)

    @classmethod
    def joined(cls, parts: Sequence[DepthMatches]) -> DepthMatches:
        """Concatenate the parts."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))


@dataclass(frozen=True, eq=False)
class Projection:
    """The matches projected at one pose: columns of (N,).

    Attributes:
        rotation, translation: the pose, T_keyframe_current.
        inverse: joint estimate of the inverse depths from matches and prior.
        information: of `inverse`.
        x, y, inverse_z: projection and inverse depth in the current camera.
        off_x, off_y: the projection minus the match.
        along_x, along_y: derivative of the projection by the inverse depth.
        squared: squared length of the whitened residual, including the depth's own part.
    """

    rotation: Array
    translation: Array
    inverse: Array
    information: Array
    x: Array
    y: Array
    inverse_z: Array
    off_x: Array
    off_y: Array
    along_x: Array
    along_y: Array
    squared: Array


class DepthProblem:
    """Whitened residuals of fixed matches as a function of T_keyframe_current.

    The inverse depths are optimal for each pose. So the derivative of the cost by the pose is the same as with fixed
    depths, and the Hessian is projected across the direction in which the depth moves the projection (Schur's
    complement). Written column by column: products of thousands of tiny matrices take ten times as long.
    """

    def __init__(self, matches: DepthMatches) -> None:
        self._x0, self._y0 = np.ascontiguousarray(matches.rays_keyframe.T)
        self._x1, self._y1 = np.ascontiguousarray(matches.rays_current.T)
        known = np.isfinite(matches.inverse) & np.isfinite(matches.variance)
        typical = max(float(np.median(np.abs(matches.inverse[known]))), 1e-9) if known.any() else 1.0
        self._before = np.where(known, matches.inverse, typical)
        std = np.sqrt(np.where(known, matches.variance, (_UNKNOWN * typical) ** 2))
        self._certain = 1 / np.maximum(std, _EXACT * typical) ** 2
        self._std = matches.std
        self._precision = 1 / matches.std**2
        # A cell of unknown depth has no residual along its epipolar line.
        self._freedom = np.where(known, 2.0, 1.0)

    def projection(self, rotation: Array, translation: Array) -> Projection:
        """Depths, projections and residuals at a pose."""
        x0, y0, x1, y1 = self._x0, self._y0, self._x1, self._y1
        rotated_x, rotated_y, rotated_z = (rotation[0, k] * x0 + rotation[1, k] * y0 + rotation[2, k] for k in range(3))
        shift_x, shift_y, shift_z = translation @ rotation
        # With the depth in the current camera fixed, the residual is linear in the inverse depth.
        slope_x, slope_y = x1 * shift_z - shift_x, y1 * shift_z - shift_y
        z = np.maximum(rotated_z - self._before * shift_z, 1e-6)
        weight = self._precision / (z * z)
        by_match = weight * (slope_x * (x1 * rotated_z - rotated_x) + slope_y * (y1 * rotated_z - rotated_y))
        inverse = (by_match + self._certain * self._before) / (
            weight * (slope_x * slope_x + slope_y * slope_y) + self._certain
        )
        # One Gauss-Newton step remains to the optimal inverse depth.
        for last in (False, True):
            z = rotated_z - inverse * shift_z
            inverse_z = 1 / np.maximum(z, 1e-6)
            x, y = (rotated_x - inverse * shift_x) * inverse_z, (rotated_y - inverse * shift_y) * inverse_z
            off_x, off_y = x - x1, y - y1
            along_x, along_y = (x * shift_z - shift_x) * inverse_z, (y * shift_z - shift_y) * inverse_z
            information = self._precision * (along_x * along_x + along_y * along_y) + self._certain
            moved = inverse - self._before
            if not last:
                uphill = self._precision * (along_x * off_x + along_y * off_y) + self._certain * moved
                inverse = inverse - uphill / information
        squared = self._precision * (off_x * off_x + off_y * off_y) + self._certain * moved * moved
        # Points behind either camera, by more than the noise, are invisible.
        squared[(z <= 1e-6) | ((inverse < 0) & (inverse * inverse * information > 9))] = _INVISIBLE
        return Projection(
            rotation, translation, inverse, information, x, y, inverse_z, off_x, off_y, along_x, along_y, squared
        )

    def distance(self, rotation: Array, translation: Array) -> Array:
        """(N,) normalised units: the part of the residuals not explained by the depths' uncertainty."""
        return np.asarray(np.sqrt(self.projection(rotation, translation).squared) * self._std)

    def cost(self, projection: Projection) -> float:
        """Mean Cauchy cost."""
        return float(np.mean(np.log1p(projection.squared / KERNEL**2)))

    def linearised(self, projection: Projection) -> Array:
        """(6, 2 N) derivatives of the projections, x before y, by (translation, rotation vector), with fixed depths."""
        count, rotation, translation = len(projection.x), projection.rotation, projection.translation
        jacobian = np.empty((6, 2 * count))
        point = (self._x0 - projection.inverse * translation[0], self._y0 - projection.inverse * translation[1])
        point_z = 1 - projection.inverse * translation[2]
        for axis, projected in enumerate((projection.x, projection.y)):
            rows = jacobian[:, axis * count : (axis + 1) * count]
            by_x, by_y, by_z = (
                (rotation[k, axis] - projected * rotation[k, 2]) * projection.inverse_z for k in range(3)
            )
            for row, column in enumerate((by_x, by_y, by_z)):
                np.multiply(column, -projection.inverse, out=rows[row])
            # d(R^T p) by a left perturbation of R: R^T (p x w), whose matrix is [p]x.
            rows[3] = by_y * point_z - by_z * point[1]
            rows[4] = by_z * point[0] - by_x * point_z
            rows[5] = by_x * point[1] - by_y * point[0]
        return jacobian

    def whitened(self, jacobian: Array, projection: Projection, weight: Array | float = 1.0) -> Array:
        """(K, 2 N) derivatives in standard deviations, after elimination of the depths; changes `jacobian`."""
        x, y = jacobian[:, : len(projection.x)], jacobian[:, len(projection.x) :]
        squared = np.maximum(projection.along_x**2 + projection.along_y**2, 1e-18)
        kept = np.sqrt(self._certain / projection.information)
        along = (x * projection.along_x + y * projection.along_y) * ((1 - kept) / squared)
        scale = np.sqrt(self._precision * weight)
        x -= along * projection.along_x
        y -= along * projection.along_y
        x *= scale
        y *= scale
        return jacobian

    def normal_equations(self, projection: Projection, slope: Array | None = None) -> tuple[Array, Array]:
        """Hessian (6, 6) and gradient (6,) of half the robust sum of squares, by (translation, rotation vector).

        Args:
            projection: at the pose.
            slope: (N,) derivative of the known inverse depths by a seventh unknown, which then comes last; None without
                one.
        """
        jacobian = self.linearised(projection)
        if slope is not None:
            moved = np.concatenate([projection.along_x * slope, projection.along_y * slope])
            jacobian = np.vstack([jacobian, moved])
        gradient = jacobian @ self._pull(projection)
        whitened = self.whitened(jacobian, projection, _weight(projection))
        return whitened @ whitened.T, gradient

    def gradients(self, projection: Projection, groups: int) -> Array:
        """(6, groups) gradients as in `normal_equations`, one for each of `groups` equal parts of the matches."""
        jacobian = self.linearised(projection)
        jacobian *= self._pull(projection)
        return np.asarray(jacobian.reshape(6, 2, groups, -1).sum(axis=(1, 3)))

    def _pull(self, projection: Projection) -> Array:
        """(2 N,) weighted residuals, x before y: the derivatives of half the cost by the projections."""
        pull = self._precision * _weight(projection)
        return np.concatenate([pull * projection.off_x, pull * projection.off_y])

    def moved(self, projection: Projection, step: Array) -> Projection:
        """The pose after a step (6,) of (translation, rotation vector), with the rotation perturbed from the left."""
        return self.projection(rotation_matrix(step[3:]) @ projection.rotation, projection.translation + step[:3])

    def minimised(self, rotation: Array, translation: Array, iterations: int = 10) -> tuple[Array, Array]:
        """Rotation and translation at the minimum near a start."""
        best, _ = minimise(self, self.projection(rotation, translation), iterations)
        return best.rotation, best.translation

    def uncertainty(self, rotation: Array, translation: Array) -> tuple[Array, Array]:
        """Of (translation, rotation vector) at the minimum, first order.

        Returns:
            The covariance (6, 6): the noise is estimated from the residuals and, if they are few, from the matches'
            stated noise. And how far the parts of the image disagree (6,), see `part_disagreement`.
        """
        projection = self.projection(rotation, translation)
        count, weight = len(projection.x), _weight(projection)
        jacobian = self.linearised(projection)
        pulls = (jacobian * self._pull(projection)).reshape(6, 2, count).sum(axis=1)
        visible = (projection.squared < _INVISIBLE).astype(np.float64)
        whitened = self.whitened(jacobian, projection, visible)
        squared = projection.squared / KERNEL**2
        measured = m_estimate_variance(squared, self._freedom, 6, KERNEL**2)
        freedom = float(self._freedom.sum())
        variance = (freedom * measured + _PRIOR_WEIGHT) / (freedom + _PRIOR_WEIGHT)
        inverse = variance * np.linalg.pinv(whitened @ whitened.T, hermitian=True)
        rows = (whitened.reshape(6, 2, count) * np.sqrt(weight)).transpose(1, 2, 0)
        slope = kernel_slope(weight, squared, self._freedom)
        places = np.stack([self._x0, self._y0], axis=1)
        return np.asarray((inverse + inverse.T) / 2), part_disagreement(places, pulls.T, rows, weight, slope)


def _weight(projection: Projection) -> Array:
    """(N,) Cauchy's weights."""
    return np.where(projection.squared < _INVISIBLE, 1 / (1 + projection.squared / KERNEL**2), 0.0)
