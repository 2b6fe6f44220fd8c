"""The residuals of matches whose keyframe depths are known, more or less, as a function of the pose.

Each match has an inverse depth of its own, which the match and what was known of it before tell together; for a given
pose it has a closed form, so that only the pose is searched for. A cell of exact depth counts in both directions of the
image, one of unknown depth only across its epipolar line, all by one formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.epipolar import m_estimate_variance
from loftr_ros.geometry.least_squares import minimise
from loftr_ros.geometry.se3 import rotation_matrix

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Instead of infinity: a depth that may be off by this many times its own value is not known.
_UNKNOWN = 1e3
# Instead of zero, likewise.
_EXACT = 1e-5
# Whitened residuals beyond which Cauchy's kernel has let go of a match, in units of its standard deviation.
KERNEL = 2.5
# What the matches say of their own noise weighs as much as this many residuals do.
_TOLD_WEIGHT = 10.0


@dataclass(frozen=True, eq=False)
class DepthMatches:
    """Matches of a keyframe and the current image, with what is known of the keyframe's depths.

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
        """One after the other."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))


@dataclass(frozen=True, eq=False)
class Projection:
    """How the matches look from one pose: columns of (N,).

    Attributes:
        rotation, translation: the pose, T_keyframe_current.
        inverse: depths as the matches and what was known of them tell together.
        information: of `inverse`.
        x, y, inverse_z: projection and inverse depth in the current camera.
        off_x, off_y: the projection less the match.
        along_x, along_y: derivative of the projection by the inverse depth.
        squared: squared length of the whitened residual, with the depth's own part.
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

    With the inverse depths at their best for each pose, the derivative of the cost by the pose is as if they were fixed
    there, and the Hessian is what is left of it across the direction in which the depth moves the projection (Schur's
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
        # Along the line of a cell of unknown depth there is no residual.
        self._freedom = np.where(known, 2.0, 1.0)

    def projection(self, rotation: Array, translation: Array) -> Projection:
        """Depths, projections and residuals at a pose."""
        x0, y0, x1, y1 = self._x0, self._y0, self._x1, self._y1
        turned_x, turned_y, turned_z = (rotation[0, k] * x0 + rotation[1, k] * y0 + rotation[2, k] for k in range(3))
        shift_x, shift_y, shift_z = translation @ rotation
        # With the depth in the current camera held, the residual is linear in the inverse depth.
        slope_x, slope_y = x1 * shift_z - shift_x, y1 * shift_z - shift_y
        z = np.maximum(turned_z - self._before * shift_z, 1e-6)
        weight = self._precision / (z * z)
        told = weight * (slope_x * (x1 * turned_z - turned_x) + slope_y * (y1 * turned_z - turned_y))
        inverse = (told + self._certain * self._before) / (
            weight * (slope_x * slope_x + slope_y * slope_y) + self._certain
        )
        # One step of Gauss-Newton is left to the best inverse depth.
        for last in (False, True):
            z = turned_z - inverse * shift_z
            inverse_z = 1 / np.maximum(z, 1e-6)
            x, y = (turned_x - inverse * shift_x) * inverse_z, (turned_y - inverse * shift_y) * inverse_z
            off_x, off_y = x - x1, y - y1
            along_x, along_y = (x * shift_z - shift_x) * inverse_z, (y * shift_z - shift_y) * inverse_z
            information = self._precision * (along_x * along_x + along_y * along_y) + self._certain
            moved = inverse - self._before
            if not last:
                uphill = self._precision * (along_x * off_x + along_y * off_y) + self._certain * moved
                inverse = inverse - uphill / information
        squared = self._precision * (off_x * off_x + off_y * off_y) + self._certain * moved * moved
        # Behind either camera, by more than the noise, there is nothing to be seen.
        squared[(z <= 1e-6) | ((inverse < 0) & (inverse * inverse * information > 9))] = 1e6
        return Projection(
            rotation, translation, inverse, information, x, y, inverse_z, off_x, off_y, along_x, along_y, squared
        )

    def distance(self, rotation: Array, translation: Array) -> Array:
        """(N,) normalised units: what the depths' uncertainty does not explain."""
        return np.asarray(np.sqrt(self.projection(rotation, translation).squared) * self._std)

    def cost(self, seen: Projection) -> float:
        """Mean Cauchy cost."""
        return float(np.mean(np.log1p(seen.squared / KERNEL**2)))

    def linearised(self, seen: Projection) -> Array:
        """(6, 2 N) derivatives of the projections, x before y, by (translation, rotation vector); depths held."""
        count, rotation, translation = len(seen.x), seen.rotation, seen.translation
        jacobian = np.empty((6, 2 * count))
        point = (self._x0 - seen.inverse * translation[0], self._y0 - seen.inverse * translation[1])
        point_z = 1 - seen.inverse * translation[2]
        for axis, projected in enumerate((seen.x, seen.y)):
            rows = jacobian[:, axis * count : (axis + 1) * count]
            by_x, by_y, by_z = ((rotation[k, axis] - projected * rotation[k, 2]) * seen.inverse_z for k in range(3))
            for row, column in enumerate((by_x, by_y, by_z)):
                np.multiply(column, -seen.inverse, out=rows[row])
            # d(R^T p) by a left perturbation of R: R^T (p x w), whose matrix is [p]x.
            rows[3] = by_y * point_z - by_z * point[1]
            rows[4] = by_z * point[0] - by_x * point_z
            rows[5] = by_x * point[1] - by_y * point[0]
        return jacobian

    def whitened(self, jacobian: Array, seen: Projection, weight: Array | float = 1.0) -> Array:
        """(6, 2 N) the derivatives in standard deviations, without what the depths take up; changes `jacobian`."""
        x, y = jacobian[:, : len(seen.x)], jacobian[:, len(seen.x) :]
        squared = np.maximum(seen.along_x**2 + seen.along_y**2, 1e-18)
        kept = np.sqrt(self._certain / seen.information)
        along = (x * seen.along_x + y * seen.along_y) * ((1 - kept) / squared)
        scale = np.sqrt(self._precision * weight)
        x -= along * seen.along_x
        y -= along * seen.along_y
        x *= scale
        y *= scale
        return jacobian

    def normal_equations(self, seen: Projection) -> tuple[Array, Array]:
        """Hessian (6, 6) and gradient (6,) of half the robust sum of squares, by (translation, rotation vector)."""
        jacobian = self.linearised(seen)
        weight = 1 / (1 + seen.squared / KERNEL**2)
        pull = weight * self._precision
        gradient = jacobian @ np.concatenate([pull * seen.off_x, pull * seen.off_y])
        whitened = self.whitened(jacobian, seen, weight)
        return whitened @ whitened.T, gradient

    def gradients(self, seen: Projection, groups: int) -> Array:
        """(6, groups) as `normal_equations`, of each of as many equal parts of the matches."""
        pull = self._precision / (1 + seen.squared / KERNEL**2)
        jacobian = self.linearised(seen)
        jacobian *= np.concatenate([pull * seen.off_x, pull * seen.off_y])
        return np.asarray(jacobian.reshape(6, 2, groups, -1).sum(axis=(1, 3)))

    def moved(self, seen: Projection, step: Array) -> Projection:
        """After a step (6,) of (translation, rotation vector), the rotation perturbed from the left."""
        return self.projection(rotation_matrix(step[3:]) @ seen.rotation, seen.translation + step[:3])

    def minimised(self, rotation: Array, translation: Array, iterations: int = 10) -> tuple[Array, Array]:
        """The rotation and translation at the minimum near a start."""
        best, _ = minimise(self, self.projection(rotation, translation), iterations)
        return best.rotation, best.translation

    def covariance(self, rotation: Array, translation: Array) -> Array:
        """(6, 6), first order; the noise is what the residuals tell and, where there are few, what matches are told."""
        seen = self.projection(rotation, translation)
        jacobian = self.whitened(self.linearised(seen), seen)
        measured = m_estimate_variance(seen.squared / KERNEL**2, self._freedom, 6, KERNEL**2)
        count = float(self._freedom.sum())
        variance = (count * measured + _TOLD_WEIGHT) / (count + _TOLD_WEIGHT)
        inverse = variance * np.linalg.pinv(jacobian @ jacobian.T, hermitian=True)
        return np.asarray((inverse + inverse.T) / 2)
