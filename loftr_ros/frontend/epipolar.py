"""The mathematics of two rays and a pose: residuals, cheirality, refinement, a rotation alone.

Throughout, p0 and p1 are (N, 3) float64 rays (x / z, y / z, 1) in the keyframe's and the current camera's
optical frame, and (rotation, translation) is T_keyframe_current: X0 = rotation X1 + translation.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class RefinedPose:
    """A pose at the minimum of the robust Sampson error.

    Attributes:
        rotation, translation: (3, 3) and unit (3,).
        covariance: (6, 6) of (translation, rotation vector) in keyframe axes, first order.
        cost: mean robust cost, to compare poses of the same matches.
    """

    rotation: Array
    translation: Array
    covariance: Array
    cost: float


def homogeneous(rays: Array) -> Array:
    """(N, 2) normalised coordinates to (N, 3) rays with z = 1."""
    return np.hstack([rays, np.ones((len(rays), 1))])


def rotated_residual(p0: Array, p1: Array, rotation: Array) -> Array:
    """(N,) distance in the keyframe's normalised plane between p0 and the rotated p1: the parallax."""
    y = p1 @ rotation.T
    distance: Array = np.linalg.norm(p0[:, :2] - y[:, :2] / np.where(y[:, 2:] > 1e-6, y[:, 2:], 1e-6), axis=1)
    return distance


def sampson_distance(p0: Array, p1: Array, rotation: Array, translation: Array) -> Array:
    """(N,) first-order distance to the epipolar constraint, in normalised units."""
    numerator, denominator, _ = _epipolar_terms(p0, p1, rotation, translation)
    distance: Array = np.abs(numerator) / denominator
    return distance


def depth_signs(p0: Array, p1: Array, rotation: Array, translation: Array) -> Flags:
    """(N,) bool: the rays meet in front of both cameras."""
    y = p1 @ rotation.T
    normal = np.cross(p0, y)
    depth1 = -np.einsum("ij,ij->i", np.cross(p0, translation), normal)
    depth0 = -np.einsum("ij,ij->i", np.cross(y, translation), normal)
    return (depth0 > 0) & (depth1 > 0)


def cheirality_vote(p0: Array, p1: Array, rotation: Array, translation: Array, noise: float) -> float:
    """How strongly the matches lie in front of both cameras.

    A vote counts by its parallax in units of the noise, up to 10: a far point's depth has any sign.
    """
    y = p1 @ rotation.T
    sine = np.linalg.norm(np.cross(p0, y), axis=1) / (np.linalg.norm(p0, axis=1) * np.linalg.norm(y, axis=1))
    weight = np.minimum(sine / noise, 10.0)
    return float(weight @ depth_signs(p0, p1, rotation, translation))


def refine_pose(p0: Array, p1: Array, rotation: Array, translation: Array, threshold: float) -> RefinedPose:
    """Minimise the Cauchy-robust Sampson error over rotation and translation direction (five unknowns).

    Levenberg-Marquardt on SO(3) x S2 with left perturbations, that is about keyframe axes. The denominator of
    the Sampson error is held within a step, which its minimum does not feel.

    Args:
        p0, p1: inlier rays.
        rotation, translation: where to start; translation of unit length.
        threshold: normalised units; half of it is the robust kernel's scale.

    Returns:
        The refined pose and its covariance.
    """
    scale = threshold / 2
    damping = 1e-4

    def cost_of(r: Array, t: Array) -> float:
        return float(np.mean(np.log1p((sampson_distance(p0, p1, r, t) / scale) ** 2)))

    cost = cost_of(rotation, translation)
    for _ in range(10):
        hessian, gradient, tangent = _normal_equations(p0, p1, rotation, translation, scale)[:3]
        step = -np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)) + 1e-12 * np.eye(5), gradient)
        new_rotation = cv2.Rodrigues(step[2:])[0] @ rotation
        new_translation = translation + tangent @ step[:2]
        new_translation /= np.linalg.norm(new_translation)
        new_cost = cost_of(new_rotation, new_translation)
        if new_cost < cost:
            converged = cost - new_cost < 1e-6 * cost
            rotation, translation, cost = new_rotation, new_translation, new_cost
            damping = max(damping / 10, 1e-9)
            if converged:
                break
        else:
            damping *= 10
            if damping > 1e2:
                break
    hessian, _, tangent, variance = _normal_equations(p0, p1, rotation, translation, scale)
    spread = np.zeros((6, 5))
    spread[:3, :2], spread[3:, 2:] = tangent, np.eye(3)
    covariance = spread @ (variance * np.linalg.pinv(hessian, hermitian=True)) @ spread.T
    return RefinedPose(rotation, translation, (covariance + covariance.T) / 2, cost)


def fit_rotation(p0: Array, p1: Array, scale: float) -> Array:
    """The rotation that best takes p1 to p0, robustly: reweighted Kabsch, (3, 3).

    Args:
        p0, p1: rays, outliers among them.
        scale: of the robust (Geman-McClure) weight's end, in normalised units; begun wider and narrowed.
    """
    unit0 = p0 / np.linalg.norm(p0, axis=1, keepdims=True)
    unit1 = p1 / np.linalg.norm(p1, axis=1, keepdims=True)
    weight = np.ones(len(unit0))
    rotation = np.eye(3)
    width = max(64 * scale, 0.2)
    for _ in range(20):
        u, _, vt = np.linalg.svd((unit0 * weight[:, None]).T @ unit1)
        rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        squared = ((unit0 - unit1 @ rotation.T) ** 2).sum(axis=1)
        width = max(width / 2, scale)
        weight = 1 / (1 + squared / width**2) ** 2
    return rotation


def _epipolar_terms(p0: Array, p1: Array, rotation: Array, translation: Array) -> tuple[Array, Array, Array]:
    """Numerator p0^T [t]x R p1, Sampson denominator, and the rotated rays R p1."""
    y = p1 @ rotation.T
    line0 = np.cross(translation, y)  # E p1, in the keyframe's image
    line1 = np.cross(p0, translation) @ rotation  # E^T p0, in the current image
    numerator = np.einsum("ij,ij->i", p0, line0)
    denominator = np.sqrt((line0[:, :2] ** 2).sum(axis=1) + (line1[:, :2] ** 2).sum(axis=1) + 1e-18)
    return numerator, denominator, y


def _normal_equations(
    p0: Array, p1: Array, rotation: Array, translation: Array, scale: float
) -> tuple[Array, Array, Array, float]:
    """Hessian (5, 5), gradient (5,), the tangent basis (3, 2) of the translation, and the residual variance."""
    numerator, denominator, y = _epipolar_terms(p0, p1, rotation, translation)
    tangent = np.linalg.svd(translation[None])[2][1:].T
    # p0 . (dt x y) = dt . (y x p0), and p0 . (t x (w x y)) = w . (y x (p0 x t))
    jacobian = np.hstack([np.cross(y, p0) @ tangent, np.cross(y, np.cross(p0, translation))]) / denominator[:, None]
    residual = numerator / denominator
    weight = 1 / (1 + (residual / scale) ** 2)
    weighted = jacobian * weight[:, None]
    variance = float((weight * residual**2).sum() / max(weight.sum() - 5, 1.0))
    return weighted.T @ jacobian, weighted.T @ residual, tangent, variance
