"""Lens distortion of normalised coordinates, and its inverse to full precision.

Implemented here, and tested against OpenCV, because OpenCV's `undistortPoints` stops its fixed-point iteration too
early for strong distortion. Where a model is not invertible or beyond 90 degrees, it returns wrong rays instead of an
error. Here such coordinates give NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Convergence of Newton's method (normalised coordinates): a millionth of a pixel at a focal length of 1000 px.
_TOLERANCE = 1e-9
_MAX_STEPS = 8


class PolynomialLens:
    """Radial, tangential, thin-prism and tilt distortion, as documented for OpenCV's calib3d."""

    def __init__(self, coefficients: Array) -> None:
        k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4, tau_x, tau_y = np.pad(coefficients, (0, 14 - coefficients.size))
        self._tangential = (p1, p2)
        self._prism = (s1, s2, s3, s4)
        # Radial factor numerator / denominator, both polynomials of the squared radius.
        self._numerator, self._denominator = Polynomial([1, k1, k2, k3]), Polynomial([1, k4, k5, k6])
        n, d = self._numerator, self._denominator
        self._slope = n.deriv() * d - n * d.deriv()
        # The model ends where the distorted radius stops growing (its derivative is 0) or has a pole.
        growth = n * d + 2 * Polynomial([0, 1]) * self._slope
        self._limit = np.sqrt(min(_first_root(growth), _first_root(d)))
        self._start = _Inverse(self._radius, float(min(np.arctan(self._limit), np.radians(89.5))))
        self._tilt = _tilt_matrix(tau_x, tau_y) if tau_x or tau_y else None

    def _radius(self, angle: Array) -> Array:
        r = np.tan(angle)
        return np.asarray(r * self._numerator(r * r) / self._denominator(r * r))

    def distort(self, x: Array, y: Array) -> tuple[Array, Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            inside = np.hypot(x, y) < self._limit
            u, v = self._model(np.where(inside, x, np.nan), np.where(inside, y, np.nan))[:2]
        return (u, v) if self._tilt is None else _transform(self._tilt, u, v)

    def undistort(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Newton's method in two variables, from the solution without tangential terms."""
        if self._tilt is not None:
            u, v = _transform(np.asarray(np.linalg.inv(self._tilt), dtype=np.float64), u, v)
        with np.errstate(all="ignore"):
            radius = np.hypot(u, v)
            factor = np.where(radius > 0, np.tan(self._start(radius)) / radius, 1)
            x, y = u * factor, v * factor
            for _ in range(_MAX_STEPS):
                fx, fy, xx, xy, yx, yy = self._model(x, y)
                fx, fy, determinant = fx - u, fy - v, xx * yy - xy * yx
                converged = np.hypot(fx, fy) < _TOLERANCE
                # One more step after convergence costs little and gives full precision.
                x, y = x - (yy * fx - xy * fy) / determinant, y - (xx * fy - yx * fx) / determinant
                if converged.all():
                    break
            valid = converged & (determinant > 0) & (np.hypot(x, y) < self._limit)
        return np.where(valid, x, np.nan), np.where(valid, y, np.nan)

    def _model(self, x: Array, y: Array) -> tuple[Array, ...]:
        """Distorted coordinates before tilt (2 arrays), and their derivatives: du/dx, du/dy, dv/dx, dv/dy."""
        (p1, p2), (s1, s2, s3, s4) = self._tangential, self._prism
        s = x * x + y * y
        denominator = self._denominator(s)
        radial = self._numerator(s) / denominator
        slope = 2 * self._slope(s) / (denominator * denominator)  # of the radial factor, over x or y
        u = x * radial + 2 * p1 * x * y + p2 * (s + 2 * x * x) + s1 * s + s2 * s * s
        v = y * radial + p1 * (s + 2 * y * y) + 2 * p2 * x * y + s3 * s + s4 * s * s
        cross = x * y * slope + 2 * (p1 * x + p2 * y)
        u_prism, v_prism = 2 * s1 + 4 * s2 * s, 2 * s3 + 4 * s4 * s
        du_dx = radial + x * x * slope + 2 * p1 * y + 6 * p2 * x + x * u_prism
        dv_dy = radial + y * y * slope + 6 * p1 * y + 2 * p2 * x + y * v_prism
        return u, v, du_dx, cross + y * u_prism, cross + x * v_prism, dv_dy


class EquidistantLens:
    """The fisheye of Kannala and Brandt: radius = angle * (1 + k1 angle^2 + ... + k4 angle^8)."""

    def __init__(self, coefficients: Array) -> None:
        self._radius = Polynomial(np.insert(np.r_[1, coefficients], np.arange(5), 0))  # odd powers only
        self._slope = self._radius.deriv()
        growth = Polynomial(np.r_[1, coefficients] * np.arange(1, 10, 2))
        self._limit = min(np.pi / 2, float(np.sqrt(_first_root(growth))))
        self._start = _Inverse(self._radius, self._limit)

    def distort(self, x: Array, y: Array) -> tuple[Array, Array]:
        r = np.hypot(x, y)
        angle = np.arctan(r)
        angle = np.where(angle < self._limit, angle, np.nan)
        factor = np.divide(self._radius(angle), r, out=np.ones_like(r), where=r != 0)
        return x * factor, y * factor

    def undistort(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Newton's method in the angle."""
        radius = np.hypot(u, v)
        angle = self._start(radius)
        with np.errstate(all="ignore"):
            for _ in range(_MAX_STEPS):
                rest = self._radius(angle) - radius
                converged = np.abs(rest) < _TOLERANCE
                angle = angle - rest / self._slope(angle)
                if converged.all():
                    break
            valid = converged & (angle < self._limit)
            factor = np.where(valid, np.where(radius > 0, np.tan(angle) / radius, 1), np.nan)
        return u * factor, v * factor


class _Inverse:
    """Inverse of a growing function of the angle off the axis, by a table; initial value for Newton's method."""

    def __init__(self, function: Callable[[Array], Array], limit: float) -> None:
        self._angles = np.linspace(0, limit, 512, endpoint=False)
        self._values = function(self._angles)

    def __call__(self, values: Array) -> Array:
        return np.asarray(np.interp(values, self._values, self._angles))


def _first_root(polynomial: Polynomial) -> float:
    """The smallest positive real root, or inf."""
    roots = polynomial.trim().roots()
    real = roots.real[(np.abs(roots.imag) < 1e-9 * np.maximum(1, np.abs(roots))) & (roots.real > 0)]
    return float(real.min()) if real.size else np.inf


def _tilt_matrix(tau_x: float, tau_y: float) -> Array:
    """Homography from an untilted sensor to one tilted about x and y (Scheimpflug), angles in radians."""
    cx, sx, cy, sy = np.cos(tau_x), np.sin(tau_x), np.cos(tau_y), np.sin(tau_y)
    rotation = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    onto_plane = np.array([[rotation[2, 2], 0, -rotation[0, 2]], [0, rotation[2, 2], -rotation[1, 2]], [0, 0, 1]])
    return np.asarray(onto_plane @ rotation)


def _transform(homography: Array, x: Array, y: Array) -> tuple[Array, Array]:
    with np.errstate(invalid="ignore"):
        u, v, w = homography @ np.stack([x, y, np.ones_like(x)])
        return u / w, v / w
