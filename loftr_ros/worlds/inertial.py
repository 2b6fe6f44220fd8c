"""What an inertial sensor on a moving camera would measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import rotation_vector

Array = NDArray[np.float64]

# Seconds between the poses whose differences are the motion's derivatives.
_STEP = 1e-3


@dataclass(frozen=True)
class InertialSensor:
    """Noise of a sensor, by default that of a small drone's; its axes have biases that walk.

    Attributes:
        rate: samples a second.
        gyroscope_noise: rad/s/sqrt(Hz).
        gyroscope_bias: rad/s, standard deviation of the bias of each axis.
        gyroscope_bias_walk: rad/s/sqrt(s).
        accelerometer_noise: m/s^2/sqrt(Hz).
        accelerometer_bias: m/s^2, standard deviation of the bias of each axis.
        accelerometer_bias_walk: m/s^2/sqrt(s).
        gravity: m/s^2.
    """

    rate: float = 200.0
    gyroscope_noise: float = 0.0017
    gyroscope_bias: float = 0.05
    gyroscope_bias_walk: float = 2e-5
    accelerometer_noise: float = 0.02
    accelerometer_bias: float = 0.1
    accelerometer_bias_walk: float = 0.003
    gravity: float = 9.81


@dataclass(frozen=True, eq=False)
class InertialReadings:
    """What it measured.

    Attributes:
        seconds: (N,) times.
        rates: (N, 3) rad/s about the sensor's axes.
        accelerations: (N, 3) m/s^2 along them, of what it weighs: at rest upward.
    """

    seconds: Array
    rates: Array
    accelerations: Array


def inertial_readings(
    motion: Callable[[float], Array],
    start: float,
    end: float,
    camera_from_imu: Array,
    sensor: InertialSensor,
    seed: int = 0,
) -> InertialReadings:
    """Measure a motion.

    Args:
        motion: (4, 4) T_world_camera at a time in seconds, smooth, in a world whose z points up.
        start, end: seconds.
        camera_from_imu: (4, 4) T_camera_imu, metres.
        sensor: its noise.
        seed: of noise and biases.
    """
    random = np.random.default_rng([seed, 11])
    seconds = np.arange(start, end, 1 / sensor.rate)
    before, here, after = (
        np.array([motion(float(at)) @ camera_from_imu for at in seconds + shift]) for shift in (-_STEP, 0.0, _STEP)
    )
    turned = np.array([rotation_vector(a[:3, :3].T @ b[:3, :3]) for a, b in zip(before, after, strict=True)])
    force = (after[:, :3, 3] - 2 * here[:, :3, 3] + before[:, :3, 3]) / _STEP**2
    force[:, 2] += sensor.gravity
    force = np.einsum("nji,nj->ni", here[:, :3, :3], force)

    def noise(density: float, bias: float, walk: float) -> Array:
        walked = np.cumsum(random.normal(size=(len(seconds), 3)), axis=0) * walk / np.sqrt(sensor.rate)
        white = random.normal(size=(len(seconds), 3)) * density * np.sqrt(sensor.rate)
        return np.asarray(bias * random.normal(size=3) + walked + white)

    rates = turned / (2 * _STEP) + noise(sensor.gyroscope_noise, sensor.gyroscope_bias, sensor.gyroscope_bias_walk)
    force += noise(sensor.accelerometer_noise, sensor.accelerometer_bias, sensor.accelerometer_bias_walk)
    return InertialReadings(seconds, rates, force)
