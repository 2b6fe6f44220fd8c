"""Scenes of two cameras with known truth, and tools to compare a covariance with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from loftr_ros.geometry.config import GeometryConfig

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
FOCAL = 500.0
# Settings for these scenes: matches with independent noise, and no shared error.
EXACT = GeometryConfig(focal_std=0.0, centre_std=0.0, match_bias=0.0, depth_scale_std=0.0)
SIZE = np.array([640, 480])
# Area of the field of view in the normalised plane.
FIELD = float(np.prod(SIZE / FOCAL))


def rotation(x: float, y: float, z: float) -> Array:
    """Of angles in degrees."""
    return np.asarray(Rotation.from_euler("xyz", [x, y, z], degrees=True).as_matrix())


@dataclass(frozen=True)
class Motion:
    """T_keyframe_current, and the depths of the scene."""

    translation: tuple[float, float, float]
    angles: tuple[float, float, float]
    depths: tuple[float, float]


MOTIONS = {
    "forward": Motion((0.0, 0.0, 0.8), (0.5, -1.0, 0.3), (3.0, 12.0)),
    "sideways": Motion((0.5, 0.05, 0.02), (1.0, 2.0, -1.0), (3.0, 12.0)),
    "deep": Motion((0.4, 0.1, 0.3), (-1.0, 1.0, 0.5), (4.0, 80.0)),
    # The axes of keyframe and current camera differ strongly.
    "rolled": Motion((-0.5, 0.2, 0.2), (2.0, 4.0, 60.0), (3.0, 12.0)),
    "still": Motion((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (3.0, 12.0)),
}


@dataclass(frozen=True)
class SeenTwice:
    """Points in both images: rays (N, 2) of either, depths (N,) in the keyframe, without noise."""

    rotation: Array
    translation: Array
    rays0: Array
    rays1: Array
    depth: Array

    @property
    def direction(self) -> Array:
        """(3,) of length one."""
        return self.translation / np.linalg.norm(self.translation)

    def noisy(self, rng: np.random.Generator, pixels: float, outliers: float = 0.0) -> SeenTwice:
        """With noise in the current image, and outliers anywhere in it."""
        rays1 = self.rays1 + rng.normal(0, pixels / FOCAL, self.rays1.shape)
        wrong = rng.random(len(rays1)) < outliers
        rays1[wrong] = rays_anywhere(rng, int(wrong.sum()))
        return replace(self, rays1=rays1)


def rays_anywhere(rng: np.random.Generator, count: int) -> Array:
    """(N, 2) evenly over the image."""
    return np.asarray((rng.random((count, 2)) - 0.5) * SIZE / FOCAL)


def scene(name: str, rng: np.random.Generator, count: int = 300, part: float = 1.0) -> SeenTwice:
    """Points of evenly spread inverse depth.

    Args:
        name: of MOTIONS.
        rng: of the points.
        count: points.
        part: of the image's width and height, from its upper left corner, that contains them.
    """
    motion = MOTIONS[name]
    turn, translation = rotation(*motion.angles), np.array(motion.translation)
    rays0 = rays_anywhere(rng, 8 * count)
    corner = -SIZE / FOCAL / 2
    rays0 = corner + (rays0 - corner) * part
    depth = 1 / rng.uniform(1 / motion.depths[1], 1 / motion.depths[0], len(rays0))
    points1 = (np.insert(rays0, 2, 1.0, axis=1) * depth[:, None] - translation) @ turn
    rays1 = points1[:, :2] / points1[:, 2:]
    seen = (points1[:, 2] > 0.3) & ((np.abs(rays1) < SIZE / 2 / FOCAL).all(axis=1) | (part < 1))
    return SeenTwice(turn, translation, rays0[seen][:count], rays1[seen][:count], depth[seen][:count])


def rotation_between(truth: Array, estimate: Array) -> Array:
    """(3,) rotation vector about keyframe axes from an estimate to the truth."""
    return np.asarray(Rotation.from_matrix(truth @ estimate.T).as_rotvec())


def band(freedom: int, trials: int) -> tuple[float, float]:
    """Range of the mean of normalised squared errors in 95 of 100 cases if their covariances are right."""
    low, high = chi2.ppf((0.025, 0.975), freedom * trials) / trials
    return float(low), float(high)
