"""Motions that are known, and what a single camera and an inertial sensor on it would measure: for tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.backend.measurements import KeyframeKey, KeyframeMeasurement, Length, PoseMeasurement
from loftr_ros.geometry.se3 import between, rotation_matrix
from loftr_ros.worlds.inertial import InertialSensor, inertial_readings

Array = NDArray[np.float64]
Motion = Callable[[float], Array]

ROBOT = "robot"
STEP_NS = 500_000_000
MOUNT = np.eye(4)
MOUNT[:3, :3], MOUNT[:3, 3] = rotation_matrix([0.3, -1.2, 0.8]), (0.05, -0.02, 0.03)


def moving(position: Callable[[float], object], turn: Callable[[float], object]) -> Motion:
    """(4, 4) T_world_camera by a position and a rotation vector; the world's z points up."""

    def motion(seconds: float) -> Array:
        pose = np.eye(4)
        pose[:3, :3] = rotation_matrix(np.asarray(turn(seconds), np.float64))
        pose[:3, 3] = position(seconds)
        return pose

    return motion


def still(seconds: float) -> object:
    """No motion."""
    return (0.0, 0.0, 0.0)


def looking_round(t: float) -> object:
    """Turning to and fro."""
    return (0.1 * np.sin(0.8 * t), 0.8 * np.sin(0.5 * t), 0.1 * np.sin(1.3 * t))


IN_A_HAND = moving(lambda t: (0.5 * np.sin(1.2 * t), 0.4 * np.sin(0.9 * t + 1), 0.2 * np.sin(1.5 * t)), looking_round)
UNTOLD = {
    "standing": moving(still, still),
    "turning on the spot": moving(still, looking_round),
    "an even velocity": moving(lambda t: (t, 0.0, 0.0), lambda t: (0.1 * np.sin(1.1 * t), 0.0, 0.1 * np.sin(1.7 * t))),
}


class Carried:
    """A single camera with a sensor that is carried along a motion, a keyframe every half second.

    Attributes:
        motion: (4, 4) T_world_camera.
        unit: metres in the camera's unit.
    """

    def __init__(self, motion: Motion, seed: int = 0, unit: float = 2.0) -> None:
        self.motion, self.unit, self._seed = motion, unit, seed
        self.random = np.random.default_rng(seed)

    def camera(self, k: int) -> Array:
        """(4, 4) T_world_camera of the k-th keyframe."""
        return self.motion(k * STEP_NS / 1e9)

    def link(self, k: int) -> PoseMeasurement:
        """T_(k-1)_k as measured, in the camera's unit."""
        pose = between(self.camera(k - 1), self.camera(k))
        std = (0.01 * np.linalg.norm(pose[:3, 3]) + 0.002) / self.unit
        pose[:3, 3] = pose[:3, 3] / self.unit + std * self.random.normal(size=3)
        pose[:3, :3] = rotation_matrix(0.0017 * self.random.normal(size=3)) @ pose[:3, :3]
        return PoseMeasurement(pose, np.diag(np.repeat([std**2, 0.0017**2], 3)), Length.OWN_UNIT)

    def keyframe(self, k: int) -> KeyframeMeasurement:
        """The k-th."""
        previous, link = (None, None) if k == 0 else (KeyframeKey(ROBOT, k), self.link(k))
        return KeyframeMeasurement(KeyframeKey(ROBOT, k + 1), k * STEP_NS, "camera", previous, link, False)

    def samples(self, count: int, mount: Array = MOUNT) -> ImuSamples:
        """What the sensor measures until after the last of `count` keyframes.

        Args:
            count: of keyframes.
            mount: where the sensor is said to be; it is at `MOUNT`.
        """
        end = (count - 1) * STEP_NS / 1e9 + 0.1
        measured, found = (
            inertial_readings(self.motion, -0.1, end, MOUNT, InertialSensor(), self._seed),
            (ImuSamples(mount)),
        )
        for at, rate, acceleration in zip(measured.seconds, measured.rates, measured.accelerations, strict=True):
            found.add(round(at * 1e9), rate, acceleration)
        return found

    def down(self) -> Array:
        """(3,) direction of gravity about the first camera's axes."""
        return np.asarray(self.camera(0)[:3, :3].T @ [0.0, 0.0, -1.0])
