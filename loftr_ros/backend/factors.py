"""GTSAM's variables and factors from poses and covariances as the front end has them.

A pose graph in metres has `Pose3` variables. Where a single camera takes part, whose unit of length drifts, all
variables of the graph are `Similarity3`: a camera's axes, place, and the length of its unit in the graph's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.config import NoiseConfig
from loftr_ros.backend.measurements import BackEndError, PoseMeasurement
from loftr_ros.extras import how_to_install
from loftr_ros.geometry.se3 import inverse, skew

Array = NDArray[np.float64]

# Standard deviation of the first camera of a graph, which is held, and of a unit that is a metre.
_HELD = 1e-5
# ... and of the logarithm of the ratio of two units that nothing is known of.
_UNKNOWN_SCALE = 3.0
_METRIC_SCALE = 1e-4


def require_gtsam() -> Any:
    """The module.

    Raises:
        BackEndError: it is not installed.
    """
    try:
        import gtsam
    except ImportError as error:
        raise BackEndError(
            f"the back end needs GTSAM, which is not installed ({error}): {how_to_install('backend')}"
        ) from error
    return gtsam


def widened(measured: PoseMeasurement, noise: NoiseConfig, times: float = 1.0) -> PoseMeasurement:
    """A measured pose whose covariance has what many matches have wrong in common, too.

    Args:
        measured: with a length, see `PoseMeasurement.with_guess`.
        noise: what that is.
        times: by which the standard deviations of `noise` are multiplied.
    """
    length = float(np.linalg.norm(measured.pose[:3, 3]))
    translation = times * np.hypot(noise.translation_least, noise.translation * length)
    rotation = times * np.radians(noise.rotation)
    covariance = measured.covariance + np.diag(np.repeat([translation**2, rotation**2], 3))
    return PoseMeasurement(measured.pose, covariance, measured.length)


def composed(first: PoseMeasurement, second: PoseMeasurement) -> PoseMeasurement:
    """T_a_c of T_a_b and T_b_c with its covariance, where the two errors are independent."""
    turn, pose = first.pose[:3, :3], first.pose @ second.pose
    arm, add = np.eye(6), np.zeros((6, 6))
    arm[:3, 3:] = -skew(turn @ second.pose[:3, 3])
    add[:3, :3] = add[3:, 3:] = turn
    covariance = arm @ first.covariance @ arm.T + add @ second.covariance @ add.T
    return PoseMeasurement(pose, (covariance + covariance.T) / 2, first.length)


def inverted(measured: PoseMeasurement) -> PoseMeasurement:
    """T_second_first of T_first_second, with its covariance about the second camera's axes."""
    turn = measured.pose[:3, :3].T
    change = np.zeros((6, 6))
    change[:3, :3] = change[3:, 3:] = -turn
    change[:3, 3:] = -turn @ skew(measured.pose[:3, 3])
    covariance = change @ measured.covariance @ change.T
    return PoseMeasurement(inverse(measured.pose), (covariance + covariance.T) / 2, measured.length)


def factor_covariance(covariance: Array, pose: Array) -> Array:
    """(6, 6) of (rotation, translation) about the second camera's axes, as GTSAM's `BetweenFactor` has its error.

    Args:
        covariance: (6, 6) of (translation, rotation vector) about the first camera's axes.
        pose: (4, 4) T_first_second.
    """
    to_error = np.zeros((6, 6))
    to_error[:3, 3:] = to_error[3:, :3] = pose[:3, :3].T
    return np.asarray(to_error @ covariance @ to_error.T)


@dataclass(frozen=True, eq=False)
class Camera:
    """Where a camera is in the graph.

    Attributes:
        pose: (4, 4) T_graph_camera, lengths in the graph's unit.
        scale: length in the graph's unit of what has length one in the camera's.
    """

    pose: Array
    scale: float = 1.0

    def moved(self, step: Array) -> Camera:
        """Another camera of the same trajectory.

        Args:
            step: (4, 4) T_this_other in the unit of this camera.
        """
        pose = self.pose @ step
        pose[:3, 3] = self.pose[:3, 3] + self.scale * self.pose[:3, :3] @ step[:3, 3]
        return Camera(pose, self.scale)

    def points(self, points: NDArray[np.floating]) -> Array:
        """(N, 3) points of the camera's frame, in its unit, in the graph's frame and unit."""
        return np.asarray(self.scale * points @ self.pose[:3, :3].T + self.pose[:3, 3])

    def sees(self, other: Camera) -> Array:
        """(4, 4) T_this_other, in this camera's unit."""
        step = inverse(self.pose) @ other.pose
        step[:3, 3] /= self.scale
        return np.asarray(step)


class RigidSpace:
    """Variables are poses in metres, or in one unit that does not drift."""

    def __init__(self) -> None:
        self.gtsam = require_gtsam()

    def variable(self, camera: Camera) -> Any:
        """As GTSAM has it."""
        return self.gtsam.Pose3(camera.pose)

    def camera(self, values: Any, key: int) -> Camera:
        """As it is among GTSAM's values."""
        return Camera(np.asarray(values.atPose3(key).matrix()))

    def covariance(self, marginals: Any, key: int, camera: Camera) -> Array:
        """(6, 6) of a camera's (translation, rotation vector) about the graph's axes, in its unit.

        Args:
            marginals: GTSAM's.
            key: the variable.
            camera: where it is.
        """
        turn, change = camera.pose[:3, :3], np.zeros((6, 6))
        change[:3, 3:], change[3:, :3] = camera.scale * turn, turn
        found = change @ np.asarray(marginals.marginalCovariance(key))[:6, :6] @ change.T
        return np.asarray((found + found.T) / 2)

    def held(self, graph: Any, key: int, camera: Camera, free_scale: bool = False) -> None:
        """Hold a variable; with `free_scale` but for its unit, which another one tells."""
        graph.addPriorPose3(key, self.variable(camera), self.gtsam.noiseModel.Isotropic.Sigma(6, _HELD))

    def held_scale(self, graph: Any, key: int, camera: Camera, metres: float = 1.0, std: float = _METRIC_SCALE) -> None:
        """Hold a variable's unit, which is a metre: here it always is."""

    def link(self, first: int, second: int, measured: PoseMeasurement, scale_std: float = 0.0) -> Any:
        """A factor from a keyframe to a later one of its trajectory.

        Args:
            first, second: variables.
            measured: T_first_second.
            scale_std: part by which the unit of length may have changed.
        """
        model = self._model(factor_covariance(measured.covariance, measured.pose))
        return self.gtsam.BetweenFactorPose3(first, second, self.gtsam.Pose3(measured.pose), model)

    def loop(
        self, older: int, newer: int, measured: PoseMeasurement, noise: NoiseConfig, cameras: tuple[Camera, Camera]
    ) -> Any:
        """A factor between two keyframes.

        Args:
            older, newer: variables.
            measured: T_older_newer.
            noise: see `widened`.
            cameras: where the two are by now, for what the measurement does not tell.
        """
        distance = float(np.linalg.norm(cameras[0].sees(cameras[1])[:3, 3]))
        return self.link(older, newer, widened(measured.with_guess(distance), noise))

    def robust(self, factor: Any, kernel: Any) -> Any:
        """The same factor with a robust kernel, one of `gtsam.noiseModel.mEstimator`."""
        return factor.cloneWithNewNoiseModel(self.gtsam.noiseModel.Robust.Create(kernel, factor.noiseModel()))

    def _model(self, covariance: Array) -> Any:
        return self.gtsam.noiseModel.Gaussian.Covariance((covariance + covariance.T) / 2)


class SimilaritySpace(RigidSpace):
    """Variables have a unit of length of their own, since a single camera's drifts."""

    def __init__(self, metric: frozenset[int] = frozenset()) -> None:
        """Begin.

        Args:
            metric: variables whose unit is a metre.
        """
        super().__init__()
        self._metric = metric

    def variable(self, camera: Camera) -> Any:
        """As GTSAM has it: the translation is in the camera's own unit."""
        rotation = self.gtsam.Rot3(camera.pose[:3, :3])
        return self.gtsam.Similarity3(rotation, camera.pose[:3, 3] / camera.scale, camera.scale)

    def camera(self, values: Any, key: int) -> Camera:
        """As it is among GTSAM's values."""
        found = values.atSimilarity3(key)
        scale, pose = float(found.scale()), np.eye(4)
        pose[:3, :3] = found.rotation().matrix()
        pose[:3, 3] = scale * np.asarray(found.translation())
        return Camera(pose, scale)

    def held(self, graph: Any, key: int, camera: Camera, free_scale: bool = False) -> None:
        """Hold a variable; with `free_scale` but for its unit, which another one tells."""
        sigmas = np.r_[np.full(6, _HELD), _UNKNOWN_SCALE if free_scale else _HELD]
        graph.addPriorSimilarity3(key, self.variable(camera), self.gtsam.noiseModel.Diagonal.Sigmas(sigmas))

    def held_scale(self, graph: Any, key: int, camera: Camera, metres: float = 1.0, std: float = _METRIC_SCALE) -> None:
        """Hold a variable's unit, which is a metre, or as many metres with a standard deviation of the logarithm."""
        model = self.gtsam.noiseModel.Diagonal.Sigmas(np.r_[np.full(6, 1e3), std])
        graph.addPriorSimilarity3(key, self.variable(Camera(camera.pose, metres)), model)

    def link(self, first: int, second: int, measured: PoseMeasurement, scale_std: float = 0.0) -> Any:
        """A factor from a keyframe to a later one; a unit that is no metre may change by `scale_std`."""
        covariance = np.zeros((7, 7))
        covariance[:6, :6] = factor_covariance(measured.covariance, measured.pose)
        covariance[6, 6] = max(0.0 if second in self._metric else scale_std, _METRIC_SCALE) ** 2
        return self._between(first, second, measured.pose, 1.0, covariance)

    def loop(
        self, older: int, newer: int, measured: PoseMeasurement, noise: NoiseConfig, cameras: tuple[Camera, Camera]
    ) -> Any:
        """A factor between two keyframes; the ratio of their units is free, unless both are metres."""
        one, other = cameras
        measured = measured.with_guess(float(np.linalg.norm(one.sees(other)[:3, 3])))
        covariance = np.zeros((7, 7))
        covariance[:6, :6] = factor_covariance(widened(measured, noise).covariance, measured.pose)
        both = older in self._metric and newer in self._metric
        covariance[6, 6] = (_METRIC_SCALE if both else _UNKNOWN_SCALE) ** 2
        return self._between(older, newer, measured.pose, 1.0 if both else other.scale / one.scale, covariance)

    def _between(self, first: int, second: int, pose: Array, scale: float, covariance: Array) -> Any:
        """`pose` has its length in the first variable's unit, and so has GTSAM's error, whatever becomes of the scale.

        Similarity3's own translation is in the second one's.
        """
        measured = self.gtsam.Similarity3(self.gtsam.Rot3(pose[:3, :3]), pose[:3, 3] / scale, scale)
        return self.gtsam.BetweenFactorSimilarity3(first, second, measured, self._model(covariance))
