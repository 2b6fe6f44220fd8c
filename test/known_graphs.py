"""Walks that are known, and what a front end would measure of them: for the tests of the back end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.back_end import BackEnd
from loftr_ros.backend.measurements import KeyframeKey, KeyframeMeasurement, Length, LoopMeasurement, PoseMeasurement
from loftr_ros.evaluation.trajectory_errors import alignment
from loftr_ros.geometry.se3 import between, rotation_matrix

Array = NDArray[np.float64]

ROBOT = "robot"
STEP_NS = 1_000_000_000


def circles(count: int, lap: int, radius: float = 3.0) -> list[Array]:
    """(4, 4) T_world_camera of a camera that goes round, looking ahead, `lap` keyframes a round."""
    poses = []
    for k in range(count):
        angle = 2 * np.pi * k / lap
        pose = np.eye(4)
        pose[:3, :3] = rotation_matrix([0, -angle, 0])
        pose[:3, 3] = [radius * np.cos(angle), 0.1 * np.sin(3 * angle), radius * np.sin(angle)]
        poses.append(pose)
    return poses


def key(k: int, robot: str = ROBOT) -> KeyframeKey:
    """Of the keyframe of a walk's k-th pose."""
    return KeyframeKey(robot, k + 1)


@dataclass(frozen=True)
class Noise:
    """Standard deviations of measured poses, and what a single camera's unit changes by a step.

    Attributes:
        translation: metres.
        rotation: radians.
        drift: mean change of the logarithm of the unit.
    """

    translation: float = 0.01
    rotation: float = 0.002
    drift: float = 0.0


class Measured:
    """Measures a walk with noise.

    Attributes:
        truth: (4, 4) poses.
        units: metres in the unit of each keyframe.
    """

    def __init__(self, truth: list[Array], noise: Noise | None = None, seed: int = 0, metric: bool = True) -> None:
        self.truth, self.noise, self.metric = truth, noise or Noise(), metric
        self.random = np.random.default_rng(seed)
        self.units = [1.0 if metric else 2.0 * float(np.exp(self.noise.drift * k)) for k in range(len(truth))]

    def pose(self, first: int, second: int) -> PoseMeasurement:
        """T_first_second as measured, in the first keyframe's unit."""
        noise = self.noise
        pose = between(self.truth[first], self.truth[second])
        pose[:3, 3] = (pose[:3, 3] + self.random.normal(size=3) * noise.translation) / self.units[first]
        pose[:3, :3] = rotation_matrix(self.random.normal(size=3) * noise.rotation) @ pose[:3, :3]
        std = np.repeat([noise.translation / self.units[first], noise.rotation], 3)
        return PoseMeasurement(pose, np.diag(std**2), Length.METRES if self.metric else Length.OWN_UNIT)

    def keyframe(self, k: int, robot: str = ROBOT, begins: bool = False) -> KeyframeMeasurement:
        """The k-th, with the link from the one before."""
        first = k == 0 or begins
        return KeyframeMeasurement(
            key(k, robot), k * STEP_NS, "camera", None if first else key(k - 1, robot),
            None if first else self.pose(k - 1, k), self.metric,
        )  # fmt: skip

    def loop(self, older: int, newer: int, robot: str = ROBOT, other: str = ROBOT) -> LoopMeasurement:
        """A right one."""
        return LoopMeasurement(key(older, robot), key(newer, other), self.pose(older, newer), 0.8)

    def false_loop(self, older: int, newer: int) -> LoopMeasurement:
        """One of a look-alike: its pose is sure, and wrong by a metre or two."""
        right = self.pose(older, newer)
        pose = right.pose.copy()
        pose[:3, 3] += self.random.choice([-1, 1], size=3) * self.random.uniform(0.7, 2.0, size=3) / self.units[older]
        pose[:3, :3] = rotation_matrix(self.random.normal(size=3) * 0.3) @ pose[:3, :3]
        return LoopMeasurement(key(older), key(newer), PoseMeasurement(pose, right.covariance, right.length), 0.9)


def ate(back_end: BackEnd, truth: list[Array], with_scale: bool = False, odometry: bool = False) -> float:
    """RMSE of the keyframes' positions after alignment, metres."""
    cameras = back_end.odometry() if odometry else [place.camera for _, place in back_end.places()]
    points = np.array([camera.pose[:3, 3] for camera in cameras])
    true = np.array([pose[:3, 3] for pose in truth])
    rotation, scale = alignment(points, true)
    aligned = (scale if with_scale else 1.0) * (points - points.mean(axis=0)) @ rotation.T + true.mean(axis=0)
    return float(np.sqrt(((aligned - true) ** 2).sum(axis=1).mean()))
