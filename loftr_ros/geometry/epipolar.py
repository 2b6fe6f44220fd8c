"""Mathematics of two rays and a pose: residuals, cheirality, refinement, pure rotation.

Throughout, p0 and p1 are (N, 3) float64 rays (x / z, y / z, 1) in the keyframe's and the current camera's optical
frame, and (rotation, translation) is T_keyframe_current: X0 = rotation X1 + translation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.least_squares import minimise
from loftr_ros.geometry.parts import part_disagreement
from loftr_ros.geometry.se3 import rotation_matrix, skew

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Matrices of the cross products with the three axes.
_GENERATORS = np.stack([skew(axis) for axis in np.eye(3)])
# Normalised units: more than the width of any image except a fisheye's.
MAX_RESIDUAL = 4.0
# Matches used by `fit_rotation` before its last steps, and the number of these.
_ROUGH_MATCHES, _LAST_STEPS = 300, 3
# Number of matches used for the influence of shared errors on the pose; more are not needed.
COMMON_MATCHES = 150
# Pixels: upper limit of the median standard deviation of matches in a sharp image, lower limit in a blurred one, and
# the value used if the network gives none.
_SHARP_STD, _BLURRED_STD, _TYPICAL_STD = 0.4, 1.0, 0.3
# Factor on the effect of the calibration's errors, for unmodelled ones; fitted on rendered walks with such errors
# (benchmarks/wrong_and_sure.py).
COMMON_FACTOR = 1.3


@dataclass(frozen=True)
class RefinedPose:
    """A pose at the minimum of the robust Sampson error.

    Attributes:
        rotation, translation: (3, 3) and unit (3,).
        cost: mean robust cost, to compare poses of the same matches.
    """

    rotation: Array
    translation: Array
    cost: float
    _problem: _SampsonProblem = field(repr=False)

    @cached_property
    def covariance(self) -> Array:
        """(6, 6) of (translation, rotation vector) in keyframe axes, first order."""
        return self._problem.covariance(*self._linearised)

    @cached_property
    def disagreement(self) -> Array:
        """(6,) of (translation, rotation vector): how far the parts of the image disagree; see `part_disagreement`."""
        return self._problem.disagreement(*self._linearised)

    @cached_property
    def _linearised(self) -> tuple[Array, Array, Array]:
        return self._problem.linearised(self._problem.at(self.rotation, self.translation))


@dataclass(frozen=True)
class CommonErrors:
    """Errors shared by all matches of two images, which do not average out.

    Attributes:
        focal_std: relative standard deviation of the calibration's focal length.
        centre_std: of the principal point along one axis, normalised units.
        depth_scale_std: relative standard deviation of the common scale of a keyframe's depths.
        match_std: of the shared error of a region's matches along one axis, normalised units, see `shared_match_error`.
    """

    focal_std: float
    centre_std: float
    depth_scale_std: float = 0.0
    match_std: float = 0.0

    @classmethod
    def of(
        cls, config: GeometryConfig, focal_length: float, shared: float, depth_scale_std: float = 0.0
    ) -> CommonErrors:
        """As the settings state them.

        Args:
            config: uncertainty of the calibration and of the matches.
            focal_length: pixels, of the current image.
            shared: pixels, by `shared_match_error`.
            depth_scale_std: see the attributes.
        """
        return cls(
            config.focal_std,
            config.centre_std / focal_length,
            depth_scale_std,
            config.match_bias * shared / focal_length,
        )

    @property
    def is_none(self) -> bool:
        """Whether there are no shared errors."""
        return not (self.focal_std or self.centre_std or self.depth_scale_std or self.match_std)

    def rays(self, rays_keyframe: Array, rays_current: Array) -> list[tuple[Array, Array]]:
        """(N, 2) rays of both images, with one error at a time set to one standard deviation.

        The calibration is that of both images. The matches' error applies to the current image: a shift, and a part
        that grows across the image.
        """
        across, down = np.array([1.0, 0.0]), np.array([0.0, 1.0])
        both = [(r * (1 + self.focal_std)) for r in (rays_keyframe, rays_current)]
        moved = [(both[0], both[1])]
        moved += [
            (rays_keyframe + self.centre_std * axis, rays_current + self.centre_std * axis) for axis in (across, down)
        ]
        if self.match_std:
            centred = rays_current - rays_current.mean(axis=0)
            grown = centred / max(float(np.sqrt((centred**2).mean())), 1e-9)
            moved += [(rays_keyframe, rays_current + self.match_std * axis) for axis in (across, down)]
            moved += [
                (rays_keyframe, rays_current + self.match_std * grown[:, k : k + 1] * axis)
                for k in (0, 1)
                for axis in (across, down)
            ]
        return moved


def shared_match_error(std: Array) -> tuple[float, float]:
    """Shared error of an image's matches, from their stated standard deviations.

    Matches of a sharp image share an error of a twentieth of a pixel, those of a blurred image most of their stated
    standard deviation. They also scatter more than stated. Fitted on rendered pairs (benchmarks/wrong_and_sure.py,
    worlds 800 to 899).

    Args:
        std: (N,) standard deviations in pixels; NaN where the network gives none.

    Returns:
        Standard deviation of the shared error in pixels, and a factor on the matches' own standard deviations.
    """
    typical = float(np.median(std[np.isfinite(std)])) if np.isfinite(std).any() else _TYPICAL_STD
    part = float(np.interp(typical, (_SHARP_STD, _BLURRED_STD), (0.25, 0.7)))
    return part * typical, float(max(typical / _SHARP_STD, 1.0) ** 1.5)


def homogeneous(rays: Array) -> Array:
    """(N, 2) normalised coordinates to (N, 3) rays with z = 1."""
    return np.hstack([rays, np.ones((len(rays), 1))])


def in_second_camera(rays: Array, inverse: Array, rotation: Array, translation: Array) -> Array:
    """(..., N, 3) points on the first camera's rays in the second camera's frame, divided by their first depths.

    The division keeps points at infinity finite. It does not change where the second camera sees a point; z is the
    ratio of the two depths, and is not positive behind the second camera.

    Args:
        rays: (N, 2) normalised coordinates.
        inverse: (..., N) inverse depths in the first camera.
        rotation, translation: T_first_second.
    """
    return np.asarray((homogeneous(rays) - inverse[..., None] * translation) @ rotation)


def ray_area(rays: Array) -> float:
    """Area of the normalised plane that rays cover, without the outer twentieth on each side.

    Along each of the two axes of their covariance, it uses the range of the middle nine tenths. Rays spread evenly over
    a rectangle give its area; rays on a line, and fewer than three, give zero.

    Args:
        rays: (N, 2) normalised coordinates; NaN for pixels without a ray.
    """
    rays = rays[np.isfinite(rays).all(axis=1)]
    if len(rays) < 3:
        return 0.0
    centred = rays - np.median(rays, axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    low, high = np.percentile(centred @ axes, (5, 95), axis=0)
    return float(np.prod((high - low) / 0.9))


def rotated_residual(p0: Array, p1: Array, rotation: Array) -> Array:
    """(N,) distance in the keyframe's normalised plane between p0 and the rotated p1: the parallax.

    At most `MAX_RESIDUAL`, which is also the value for a ray that points away from the keyframe's view.
    """
    y = p1 @ rotation.T
    ahead = y[:, 2] > 1e-6
    distance = np.linalg.norm(p0[:, :2] - y[:, :2] / np.where(ahead, y[:, 2], 1.0)[:, None], axis=1)
    return np.asarray(np.where(ahead, np.minimum(distance, MAX_RESIDUAL), MAX_RESIDUAL))


def sampson_distance(p0: Array, p1: Array, rotation: Array, translation: Array) -> Array:
    """(N,) first-order distance to the epipolar constraint, in normalised units."""
    essential = skew(translation) @ rotation
    numerator = ((p0 @ essential) * p1).sum(axis=1)
    return np.asarray(np.abs(numerator) / _sampson_denominator(p0, p1, essential))


def depth_signs(p0: Array, p1: Array, rotation: Array, translation: Array) -> Flags:
    """(N,) bool: whether the rays meet in front of both cameras."""
    y = p1 @ rotation.T
    normal = _cross(p0, y)
    # (a x t) . n = a . (t x n): both depths share a cross product.
    across = _cross(np.broadcast_to(translation, normal.shape), normal)
    depth1, depth0 = -(p0 * across).sum(axis=1), -(y * across).sum(axis=1)
    return np.asarray((depth0 > 0) & (depth1 > 0))


def cheirality_vote(p0: Array, p1: Array, rotation: Array, translation: Array, noise: float) -> float:
    """How strongly the matches lie in front of both cameras.

    A vote counts by its parallax in units of the noise, up to 10: a far point's depth has any sign.
    """
    y = p1 @ rotation.T
    sine = np.linalg.norm(_cross(p0, y), axis=1) / (np.linalg.norm(p0, axis=1) * np.linalg.norm(y, axis=1))
    weight = np.minimum(sine / noise, 10.0)
    return float(weight @ depth_signs(p0, p1, rotation, translation))


def refine_pose(
    p0: Array,
    p1: Array,
    rotation: Array,
    translation: Array,
    threshold: float,
    iterations: int = 10,
    relative_std: Array | None = None,
) -> RefinedPose:
    """Minimise the Cauchy-robust Sampson error over rotation and translation direction (five unknowns).

    Levenberg-Marquardt on SO(3) x S2 with left perturbations, that is about keyframe axes.

    Args:
        p0, p1: inlier rays.
        rotation, translation: initial values; translation of unit length.
        threshold: normalised units; half of it is the robust kernel's scale.
        iterations: at most.
        relative_std: (N,) standard deviations of the matches relative to a typical one; None if all are equal.

    Returns:
        The refined pose.
    """
    problem = _SampsonProblem(p0, p1, threshold / 2, relative_std)
    best, cost = minimise(problem, problem.at(rotation, translation), iterations)
    return RefinedPose(best.rotation, best.translation, cost, problem)


def common_covariance(
    p0: Array, p1: Array, rotation: Array, translation: Array, scale: float, common: CommonErrors
) -> Array:
    """(6, 6) of (translation, rotation vector): covariance of the minimum due to errors shared by all matches.

    One Gauss-Newton step for each shared error at one standard deviation, on a part of the matches.

    Args:
        p0, p1: (N, 3) inlier rays.
        rotation, translation: the minimum.
        scale: of the robust kernel, in normalised units.
        common: the shared errors.
    """
    if common.is_none:
        return np.zeros((6, 6))
    some = slice(None, None, max(len(p0) // COMMON_MATCHES, 1))
    rays = [(p0[some, :2], p1[some, :2])]
    rays += common.rays(*rays[0])
    # Evaluated together: each is so small that the calls would take longer than the sums.
    before, now = (homogeneous(np.concatenate(image)) for image in zip(*rays, strict=True))
    problem = _SampsonProblem(before, now, scale, None)
    residual, jacobian, tangent = problem.linearised(problem.at(rotation, translation))
    weighted = jacobian * (1 / (1 + (residual / scale) ** 2))[:, None]
    count = len(rays[0][0])
    hessian = weighted[:count].T @ jacobian[:count]
    gradients = (weighted * residual[:, None]).reshape(len(rays), count, 5).sum(axis=1)
    pulls = (gradients[1:] - gradients[0]).T
    steps = np.linalg.lstsq(hessian + 1e-9 * np.trace(hessian) * np.eye(5), pulls, rcond=None)[0]
    steps = COMMON_FACTOR * _in_six(tangent) @ steps
    return np.asarray(steps @ steps.T)


def fit_rotation(p0: Array, p1: Array, scale: float) -> Array:
    """The rotation that best maps p1 to p0, robustly: reweighted Kabsch, (3, 3).

    Args:
        p0, p1: rays, including outliers.
        scale: final scale of the robust (Geman-McClure) weight, in normalised units; it starts larger and shrinks.
    """
    unit0 = p0 / np.linalg.norm(p0, axis=1, keepdims=True)
    unit1 = p1 / np.linalg.norm(p1, axis=1, keepdims=True)
    widths = np.maximum(max(64 * scale, 0.2) / 2.0 ** np.arange(1, 12), scale)
    # While the scale shrinks, every n-th match is enough.
    few = slice(None, None, max(len(unit0) // _ROUGH_MATCHES, 1))
    rotation = _kabsch(unit0[few], unit1[few], 1.0)
    for step, width in enumerate(widths):
        some = few if step < len(widths) - _LAST_STEPS else slice(None)
        squared = ((unit0[some] - unit1[some] @ rotation.T) ** 2).sum(axis=1)
        rotation = _kabsch(unit0[some], unit1[some], (1 / (1 + squared / width**2) ** 2)[:, None])
    return rotation


def _kabsch(unit0: Array, unit1: Array, weight: Array | float) -> Array:
    """The rotation that maps unit1 to unit0 in the weighted least squares sense."""
    u, _, vt = np.linalg.svd((unit0 * weight).T @ unit1)
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)


def rotation_covariance(p0: Array, p1: Array, rotation: Array, scale: float) -> Array:
    """(3, 3) covariance of the rotation vector of `fit_rotation`, about keyframe axes, first order.

    The sandwich estimate: the scatter of the matches' weighted pulls, through the inverse curvature.

    Args:
        p0, p1, scale: as given to `fit_rotation`.
        rotation: its result.
    """
    unit0 = p0 / np.linalg.norm(p0, axis=1, keepdims=True)
    rotated = p1 / np.linalg.norm(p1, axis=1, keepdims=True) @ rotation.T
    squared = ((unit0 - rotated) ** 2).sum(axis=1) / scale**2
    weight = 1 / (1 + squared) ** 2
    pull = _cross(rotated, unit0) * weight[:, None]
    # Loss of weight along the distance, averaged over the two directions across the ray.
    slope = weight - 2 * squared / (1 + squared) ** 3
    curvature = slope.sum() * np.eye(3) - (rotated * slope[:, None]).T @ rotated
    inverse = np.linalg.pinv(curvature, hermitian=True)
    count = float(weight.sum())
    covariance = inverse @ (pull.T @ pull) @ inverse * count / max(count - 1.5, 1.0)
    # Without noise, a filter must still be able to invert it.
    return np.asarray((covariance + covariance.T) / 2 + 1e-18 * np.eye(3))


def _cross(a: Array, b: Array) -> Array:
    """(N, 3) cross products; NumPy's own takes five times as long on arrays of this size."""
    result = np.empty(a.shape)
    result[:, 0] = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    result[:, 1] = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    result[:, 2] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return result


def _tangent_basis(direction: Array) -> Array:
    """(3, 2) orthonormal vectors across a unit vector."""
    x, y, z = direction
    # The axis with the smallest component keeps the cross product away from zero.
    first = np.array([0.0, -z, y]) if abs(x) <= min(abs(y), abs(z)) else np.array([-z, 0.0, x])
    if abs(z) < min(abs(x), abs(y)):
        first = np.array([y, -x, 0.0])
    first /= np.linalg.norm(first)
    second = np.array([y * first[2] - z * first[1], z * first[0] - x * first[2], x * first[1] - y * first[0]])
    return np.stack([first, second], axis=1)


def _sampson_denominator(p0: Array, p1: Array, essential: Array) -> Array:
    """(N,) length of the constraint's gradient in the four image coordinates."""
    line0, line1 = p1 @ essential[:2].T, p0 @ essential[:, :2]
    return np.asarray(np.sqrt((line0**2).sum(axis=1) + (line1**2).sum(axis=1) + 1e-18))


@dataclass(frozen=True, eq=False)
class _Constraint:
    """The epipolar constraint of fixed rays at one pose.

    Attributes:
        rotation, translation: the pose.
        essential: (3, 3).
        denominator: (N,) length of the constraint's gradient in the four image coordinates.
        residual: (N,) Sampson error, signed.
    """

    rotation: Array
    translation: Array
    essential: Array
    denominator: Array
    residual: Array


class _SampsonProblem:
    """The Sampson error of fixed rays as a function of the pose.

    The constraint p0^T E p1 is linear in the nine entries of E, and its squared gradient length in products of two of
    them. So rows of products of coordinates, computed once per match, give residuals and Jacobians by two matrix
    products.
    """

    def __init__(self, p0: Array, p1: Array, scale: float, relative_std: Array | None) -> None:
        self._scale = scale
        self._std: Array | float = 1.0 if relative_std is None else relative_std
        self._products = (p0[:, :, None] * p1[:, None, :]).reshape(-1, 9)
        squares = [(p[:, :, None] * p[:, None, :]).reshape(-1, 9) for p in (p0, p1)]
        self._squares = np.hstack(squares)

    def at(self, rotation: Array, translation: Array) -> _Constraint:
        """The constraint at a pose."""
        essential = skew(translation) @ rotation
        denominator = np.sqrt(self._squares @ _gradient_forms(essential, essential[None])[0] + 1e-18)
        residual = self._products @ essential.ravel() / denominator
        return _Constraint(rotation, translation, essential, denominator, residual)

    def cost(self, at: _Constraint) -> float:
        """Mean Cauchy cost."""
        return float(np.log1p((at.residual / (self._std * self._scale)) ** 2).mean())

    def linearised(self, at: _Constraint) -> tuple[Array, Array, Array]:
        """Residuals (N,), their Jacobian (N, 5), and the tangent basis (3, 2) of the translation."""
        tangent = _tangent_basis(at.translation)
        sideways = (tangent.T @ _GENERATORS.reshape(3, 9)).reshape(2, 3, 3)
        derivatives = np.concatenate([sideways, skew(at.translation) @ _GENERATORS]) @ at.rotation
        jacobian = self._products @ derivatives.reshape(5, 9).T
        # The gradient's length depends on the pose too. Ignoring that would let noise shift the minimum, by as much as
        # its scatter with hundreds of matches.
        jacobian -= (at.residual / at.denominator)[:, None] * (
            self._squares @ _gradient_forms(at.essential, derivatives).T
        )
        jacobian /= (at.denominator * self._std)[:, None]
        return at.residual / self._std, jacobian, tangent

    def normal_equations(self, at: _Constraint) -> tuple[Array, Array]:
        """Hessian (5, 5) and gradient (5,), by two directions across the translation and the rotation vector."""
        residual, jacobian, _ = self.linearised(at)
        weighted = jacobian * (1 / (1 + (residual / self._scale) ** 2))[:, None]
        return weighted.T @ jacobian, weighted.T @ residual

    def moved(self, at: _Constraint, step: Array) -> _Constraint:
        """The pose after a step (5,), with the rotation perturbed from the left and the translation renormalised."""
        translation = at.translation + _tangent_basis(at.translation) @ step[:2]
        return self.at(rotation_matrix(step[2:]) @ at.rotation, translation / np.linalg.norm(translation))

    def covariance(self, residual: Array, jacobian: Array, tangent: Array) -> Array:
        """(6, 6) of (translation, rotation vector) at the minimum, first order; of what `linearised` gives there."""
        variance = m_estimate_variance(
            (residual / self._scale) ** 2, np.ones(len(residual)), 5, squared_scale=self._scale**2
        )
        spread = _in_six(tangent)
        covariance = spread @ (variance * np.linalg.pinv(jacobian.T @ jacobian, hermitian=True)) @ spread.T
        return np.asarray((covariance + covariance.T) / 2)

    def disagreement(self, residual: Array, jacobian: Array, tangent: Array) -> Array:
        """(6,) of (translation, rotation vector), by `part_disagreement`; of what `linearised` gives at the minimum."""
        squared = (residual / self._scale) ** 2
        weight = 1 / (1 + squared)
        rows = (jacobian * np.sqrt(weight)[:, None])[None]
        pulls = jacobian * (weight * residual)[:, None]
        slope = kernel_slope(weight, squared, np.ones(len(residual)))
        return _in_six(tangent) @ part_disagreement(self._products[:, [2, 5]], pulls, rows, weight, slope)


def _in_six(tangent: Array) -> Array:
    """(6, 5) from two directions across the translation and the rotation vector to translation and rotation vector."""
    spread = np.zeros((6, 5))
    spread[:3, :2], spread[3:, 2:] = tangent, np.eye(3)
    return spread


def _gradient_forms(first: Array, others: Array) -> Array:
    """(K, 18) coefficients of the products of a constraint's gradient and K others', by products of p0's and p1's
    coordinates.
    """
    by_p1 = first[:, :2] @ others[:, :, :2].transpose(0, 2, 1)
    by_p0 = first[:2].T @ others[:, :2]
    return np.concatenate([by_p1.reshape(-1, 9), by_p0.reshape(-1, 9)], axis=1)


def cut_off_noise(distance: Array, threshold: float) -> float:
    """Factor on a covariance if the noise exceeds the limits of an estimate.

    Matches slightly beyond the limit are noise; mistakes are anywhere. Without them the estimate looks too certain, and
    is biased to where most matches remain.

    Args:
        distance: (N,) residuals of all matches at the pose.
        threshold: of inliers; matches within three times as much are used.
    """
    taking_part, near = (distance < 3 * threshold).sum(), (distance < 10 * threshold).sum()
    return float((max(near, 1) / max(taking_part, 1)) ** 4)


def kernel_slope(weight: Array, squared: Array, freedom: Array) -> Array:
    """(N,) second derivative of Cauchy's cost along one component: the weight less its own decrease.

    Args:
        weight: (N,) of the residuals.
        squared, freedom: (N,) as for `m_estimate_variance`.
    """
    return np.asarray(weight - 2 * weight**2 * squared / np.maximum(freedom, 1.0))


def m_estimate_variance(squared: Array, freedom: Array, unknowns: int, squared_scale: float) -> float:
    """Factor on (J^T J)^-1 for the covariance of a Cauchy-robust least-squares estimate.

    The kernel reduces both the residuals' weight and their scatter, but by different factors: E[psi^2] over E[psi']^2,
    with the correction for the number of unknowns (Huber, Robust Statistics, 1981, section 7.6).

    Args:
        squared: (N,) squared length of each residual in units of the kernel's scale.
        freedom: (N,) number of components in which each residual can scatter.
        unknowns: number of estimated unknowns.
        squared_scale: of the kernel, in the unit of the residuals of J.
    """
    weight = 1 / (1 + squared)
    count = float(freedom.sum())
    scatter = float((weight**2 * squared).sum()) / max(count - unknowns, 1.0)
    slope = kernel_slope(weight, squared, freedom)
    mean = float(slope @ freedom) / count
    spread = float(((slope - mean) ** 2) @ freedom) / count
    # A mean slope near zero means a minimum that depends on outliers only, of the largest uncertainty possible.
    mean = max(mean, 0.05)
    return squared_scale * scatter * ((1 + unknowns / count * spread / mean**2) / mean) ** 2
