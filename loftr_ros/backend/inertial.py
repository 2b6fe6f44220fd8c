"""Metres and gravity for a single camera: its keyframes and an inertial sensor solved together.

Poses of the sensor, velocities, biases, the direction of gravity, and each keyframe's unit of length are estimated at
once, from the poses measured between keyframes and from preintegrated accelerations and angular velocities (Forster et
al., T-RO 2017, by GTSAM's `PreintegratedCombinedMeasurements`). They begin where a linear alignment puts them, as in
VINS-Mono (Qin et al., T-RO 2018, section V-B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.config import InertialConfig, NoiseConfig
from loftr_ros.backend.factors import factor_covariance, require_gtsam, widened
from loftr_ros.backend.measurements import PoseMeasurement, UnitMeasurement
from loftr_ros.geometry.se3 import inverse, rotation_vector

Array = NDArray[np.float64]

# Names of GTSAM's variables: pose of the sensor, velocity, bias, logarithm of the unit; and the one of gravity.
_POSE, _VELOCITY, _BIAS, _UNIT, _GRAVITY = (kind << 32 for kind in range(5))
# Standard deviations: of the first pose, which is held; of the logarithm of a unit that nothing is known of.
_HELD, _UNKNOWN_UNIT = 1e-5, 5.0
# Standard deviation of the positions that integration itself gets wrong, m/sqrt(s).
_INTEGRATION = 1e-4
# Rounds of bias, preintegration and solution: the preintegrated measurements are linear in the bias.
_ROUNDS = 2
# Iterations of Levenberg and Marquardt in each; more only move along what the motion does not tell.
_ITERATIONS = 15
# Numbers of a bias, a pose, a velocity; and of what a combined factor compares.
_BIAS_SIZE, _POSE_SIZE, _VELOCITY_SIZE, _COMBINED_SIZE = 6, 6, 3, 15


@dataclass(frozen=True, eq=False)
class InertialSolution:
    """What keyframes and the sensor tell together.

    Attributes:
        units: (K,) metres in each keyframe's unit.
        unit_stds: (K,) standard deviations of their logarithms.
        poses: (K, 4, 4) T_first_camera in metres, where the first is the first keyframe's camera.
        velocities: (K, 3) m/s of the sensor about the first camera's axes.
        down: (3,) direction of gravity about the first camera's axes.
        down_std: standard deviation of it along one axis, radians.
        gyroscope_bias, accelerometer_bias: (3,) about the sensor's axes in the middle of the window; rad/s, m/s^2.
        misfit: sum of squared deviations for each degree of freedom; 1 where all noise is as stated, below where it is
            less.
    """

    units: Array
    unit_stds: Array
    poses: Array
    velocities: Array
    down: Array
    down_std: float
    gyroscope_bias: Array
    accelerometer_bias: Array
    misfit: float

    def measurement(self) -> tuple[int, UnitMeasurement]:
        """The place of the keyframe whose unit is known best, and what is known there."""
        best = int(np.argmin(self.unit_stds))
        down = self.poses[best][:3, :3].T @ self.down
        return best, UnitMeasurement(float(self.units[best]), float(self.unit_stds[best]), down, self.down_std)


def solve_inertial(
    links: Sequence[tuple[int, PoseMeasurement]],
    stretches: Sequence[tuple[Array, Array]],
    camera_from_imu: Array,
    config: InertialConfig,
    noise: NoiseConfig,
) -> InertialSolution | None:
    """Solve the keyframes of a window with the sensor's samples between them.

    Args:
        links: of each keyframe but the first: the place in the window of the keyframe that it was located by, and the
            pose measured in it, in its unit.
        stretches: the samples between consecutive keyframes, as `ImuSamples.between` gives them.
        camera_from_imu: (4, 4) T_camera_imu, metres.
        config: noise of the sensor.
        noise: what links may be wrong by beside their covariances, and how the unit changes.

    Returns:
        The solution, whose standard deviations say what the motion tells: next to nothing of the unit where the camera
        stands, turns on the spot, or moves at an even velocity. None where GTSAM cannot solve it.
    """
    window = _Window(links, stretches, camera_from_imu, config, noise)
    try:
        return window.solve()
    except RuntimeError:  # an indeterminate system
        return None


class _Window:
    def __init__(
        self,
        links: Sequence[tuple[int, PoseMeasurement]],
        stretches: Sequence[tuple[Array, Array]],
        camera_from_imu: Array,
        config: InertialConfig,
        noise: NoiseConfig,
    ) -> None:
        self.gtsam = require_gtsam()
        self.links, self.stretches, self.mount = links, stretches, camera_from_imu
        self.config, self.noise = config, noise
        self.count = len(links) + 1
        self.seconds = np.array([float(steps.sum()) for steps, _ in stretches])
        self.cameras = [np.eye(4)]
        for before, link in links:
            self.cameras.append(self.cameras[before] @ link.pose)
        gtsam = self.gtsam
        self.parameters = gtsam.PreintegrationCombinedParams(np.array([0.0, 0.0, -config.gravity]))
        self.parameters.setGyroscopeCovariance(config.gyroscope_noise**2 * np.eye(3))
        self.parameters.setAccelerometerCovariance(config.accelerometer_noise**2 * np.eye(3))
        self.parameters.setBiasOmegaCovariance(config.gyroscope_bias_walk**2 * np.eye(3))
        self.parameters.setBiasAccCovariance(config.accelerometer_bias_walk**2 * np.eye(3))
        self.parameters.setIntegrationCovariance(_INTEGRATION**2 * np.eye(3))

    def solve(self) -> InertialSolution:
        gtsam = self.gtsam
        bias = self._gyroscope_bias()
        integrated = self._integrated(bias)
        values = self._aligned(integrated, bias)
        for _ in range(_ROUNDS):
            factors = self._factors(integrated)
            parameters = gtsam.LevenbergMarquardtParams()
            parameters.setMaxIterations(_ITERATIONS)
            values = gtsam.LevenbergMarquardtOptimizer(factors, values, parameters).optimize()
            middle = values.atConstantBias(_BIAS + self.count // 2)
            integrated = self._integrated(middle)
        factors = self._factors(integrated)
        marginals = gtsam.Marginals(factors, values)
        poses = np.array([self._camera(values, k) for k in range(self.count)])
        units = np.array([float(values.atVector(_UNIT + k)[0]) for k in range(self.count)])
        variances = [float(marginals.marginalCovariance(_UNIT + k)[0, 0]) for k in range(self.count)]
        return InertialSolution(
            np.exp(units),
            np.sqrt(variances),
            poses,
            np.array([values.atVector(_VELOCITY + k) for k in range(self.count)]),
            np.asarray(values.atUnit3(_GRAVITY).point3()),
            float(np.sqrt(np.trace(marginals.marginalCovariance(_GRAVITY)) / 2)),
            np.asarray(middle.gyroscope()),
            np.asarray(middle.accelerometer()),
            2 * factors.error(values) / self._freedom(),
        )

    def _freedom(self) -> int:
        """Numbers that are compared, without those of priors, less numbers that are estimated."""
        compared = (self.count - 1) * (_POSE_SIZE + _COMBINED_SIZE + 1)
        estimated = (self.count - 1) * _POSE_SIZE + self.count * (_VELOCITY_SIZE + _BIAS_SIZE + 1) + 2
        return max(compared + _BIAS_SIZE - estimated, 1)

    def _camera(self, values: Any, number: int) -> Array:
        return np.asarray(values.atPose3(_POSE + number).matrix()) @ inverse(self.mount)

    # --- where it begins ---

    def _gyroscope_bias(self) -> Any:
        """The bias by which the integrated rotations agree with the measured ones."""
        turn, bias = self.mount[:3, :3], np.zeros(3)
        for _ in range(2):  # the integrated rotation is not linear in it
            integrated = self._integrated(self.gtsam.imuBias.ConstantBias(np.zeros(3), bias))
            off = np.zeros(3)
            for k, one in enumerate(integrated):
                measured = turn.T @ self.cameras[k][:3, :3].T @ self.cameras[k + 1][:3, :3] @ turn
                off += rotation_vector(measured.T @ np.asarray(one.deltaRij().matrix()))
            bias = bias + off / self.seconds.sum()
        return self.gtsam.imuBias.ConstantBias(np.zeros(3), bias)

    def _integrated(self, bias: Any) -> list[Any]:
        """The preintegrated samples of each stretch."""
        found = []
        for steps, samples in self.stretches:
            one = self.gtsam.PreintegratedCombinedMeasurements(self.parameters, bias)
            for seconds, sample in zip(steps.tolist(), samples, strict=True):
                one.integrateMeasurement(sample[3:], sample[:3], seconds)
            found.append(one)
        return found

    def _aligned(self, integrated: list[Any], bias: Any) -> Any:
        """Unit, gravity and velocities by linear least squares, with the measured poses and without noise."""
        arm, turn, count = self.mount[:3, 3], self.mount[:3, :3], self.count
        rows, right = [], []
        for k, (one, seconds) in enumerate(zip(integrated, self.seconds, strict=True)):
            here, there = self.cameras[k], self.cameras[k + 1]
            moved, faster = np.zeros((3, 4 + 3 * count)), np.zeros((3, 4 + 3 * count))
            own, following = slice(4 + 3 * k, 7 + 3 * k), slice(7 + 3 * k, 10 + 3 * k)
            moved[:, 0] = there[:3, 3] - here[:3, 3]
            moved[:, 1:4], moved[:, own] = -(seconds**2) / 2 * np.eye(3), -seconds * np.eye(3)
            faster[:, 1:4], faster[:, own], faster[:, following] = -seconds * np.eye(3), -np.eye(3), np.eye(3)
            rows += [moved, faster]
            axes = here[:3, :3] @ turn
            right += [axes @ one.deltaPij() - (there[:3, :3] - here[:3, :3]) @ arm, axes @ one.deltaVij()]
        found = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0]
        unit = float(found[0]) if found[0] > 0 else 1.0  # below zero where the motion does not tell it
        values = self.gtsam.Values()
        for k, camera in enumerate(self.cameras):
            pose = camera.copy()
            pose[:3, 3] *= unit
            values.insert(_POSE + k, self.gtsam.Pose3(pose @ self.mount))
            values.insert(_VELOCITY + k, found[4 + 3 * k : 7 + 3 * k])
            values.insert(_BIAS + k, bias)
            values.insert(_UNIT + k, np.array([np.log(unit)]))
        values.insert(_GRAVITY, self.gtsam.Unit3(found[1:4]))
        return values

    # --- the factors ---

    def _factors(self, integrated: list[Any]) -> Any:
        gtsam, config = self.gtsam, self.config
        factors = gtsam.NonlinearFactorGraph()
        factors.addPriorPose3(_POSE, gtsam.Pose3(self.mount), gtsam.noiseModel.Isotropic.Sigma(6, _HELD))
        bias = np.repeat([config.accelerometer_bias, config.gyroscope_bias], 3)
        factors.addPriorConstantBias(_BIAS, gtsam.imuBias.ConstantBias(), gtsam.noiseModel.Diagonal.Sigmas(bias))
        factors.addPriorVector(_UNIT, np.zeros(1), gtsam.noiseModel.Isotropic.Sigma(1, _UNKNOWN_UNIT))
        walk = gtsam.noiseModel.Isotropic.Sigma(1, self.noise.scale)
        for k, ((before, link), one) in enumerate(zip(self.links, integrated, strict=True)):
            factors.push_back(self._link(before, k + 1, link))
            factors.push_back(
                gtsam.CombinedImuFactorWithGravityDirection(
                    _POSE + k, _VELOCITY + k, _POSE + k + 1, _VELOCITY + k + 1, _BIAS + k, _BIAS + k + 1, _GRAVITY,
                    one, config.gravity,
                )
            )  # fmt: skip
            factors.push_back(gtsam.BetweenFactorVector(_UNIT + k, _UNIT + k + 1, np.zeros(1), walk))
        return factors

    def _link(self, first: int, second: int, link: PoseMeasurement) -> Any:
        """A measured pose between two keyframes, whose length is in the first one's unit.

        The error is that of GTSAM's `BetweenFactorPose3`, with the length of the step divided by the unit: so the
        measurement's covariance is the same whatever the unit becomes.
        """
        gtsam = self.gtsam
        wide = widened(link, self.noise)
        covariance = factor_covariance(wide.covariance, wide.pose)
        model = gtsam.noiseModel.Gaussian.Covariance((covariance + covariance.T) / 2)
        measured, imu_from_camera = gtsam.Pose3(link.pose), gtsam.Pose3(inverse(self.mount))
        to_camera = np.asarray(imu_from_camera.inverse().AdjointMap())

        def error(factor: Any, values: Any, jacobians: Any) -> Array:
            here, there = (values.atPose3(_POSE + k).compose(imu_from_camera) for k in (first, second))
            unit = float(np.exp(values.atVector(_UNIT + first)[0]))
            by_first, by_second, by_pose = (np.zeros((6, 6), order="F") for _ in range(3))
            step = here.between(there, by_first, by_second)
            seen = gtsam.Pose3(step.rotation(), step.translation() / unit)
            off = gtsam.Pose3.Logmap(measured.between(seen), by_pose)
            if jacobians is not None:
                by_step = by_pose * np.repeat([1.0, 1 / unit], 3)
                jacobians[0] = by_step @ by_first @ to_camera
                jacobians[1] = by_step @ by_second @ to_camera
                longer = np.asarray(seen.rotation().matrix()).T @ seen.translation()
                jacobians[2] = -by_pose[:, 3:] @ longer[:, None]
            return np.asarray(off)

        return gtsam.CustomFactor(model, [_POSE + first, _POSE + second, _UNIT + first], error)
