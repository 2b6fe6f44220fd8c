"""Exposure and rolling shutter: a view is rendered row by row, each at its own time, and averaged over the exposure."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.se3 import between, rotation_matrix, rotation_vector
from loftr_ros.worlds.scene import NOISE, Rendering, Scene

Array = NDArray[np.float64]

# Largest motion in px between two rendered times of an exposure, and most of these.
_STEP, _MOST = 1.5, 12


@dataclass(frozen=True)
class Shutter:
    """A camera's shutter.

    Attributes:
        exposure: seconds for which a row is exposed; 0 for a sharp image.
        readout: seconds from the first to the last row; 0 for a global shutter.
        bands: parts of the image whose rows share one time; their number decides the accuracy.
    """

    exposure: float = 0.0
    readout: float = 0.0
    bands: int = 24


class Motion:
    """A smooth motion through poses at an even rate."""

    def __init__(self, poses: Array, rate: float) -> None:
        """Begin with the first pose at 0 s.

        Args:
            poses: (N, 4, 4) T_world_camera.
            rate: poses per second.
        """
        self._poses, self._rate = poses, rate

    def __call__(self, seconds: float) -> Array:
        """(4, 4) T_world_camera at a time, between the first and the last pose."""
        at = float(np.clip(seconds * self._rate, 0, len(self._poses) - 1))
        first = min(int(at), len(self._poses) - 2)
        step, part = between(self._poses[first], self._poses[first + 1]), at - first
        moved = np.eye(4)
        moved[:3, :3], moved[:3, 3] = rotation_matrix(part * rotation_vector(step[:3, :3])), part * step[:3, 3]
        return np.asarray(self._poses[first] @ moved)

    def rate(self, seconds: float) -> Array:
        """(3,) angular velocity in the camera's axes at a time, rad/s."""
        half = 0.25 / self._rate
        step = between(self(seconds - half), self(seconds + half))
        return rotation_vector(step[:3, :3]) / (2 * half)


def expose(
    scene: Scene, camera: CameraModel, motion: Callable[[float], Array], start: float, shutter: Shutter
) -> Rendering:
    """The image of a camera that moves while its rows are exposed, and the depth at the middle of the exposure.

    Args:
        scene: what is seen.
        camera: without distortion.
        motion: (4, 4) T_world_camera at a time in seconds.
        start: time at which the first row's exposure begins, seconds: the image's stamp.
        shutter: of the camera.

    Returns:
        The image; the depth is that of `motion(middle(start, shutter))`.
    """
    bands = shutter.bands if shutter.readout else 1
    edges = np.linspace(0, camera.height, bands + 1).astype(int)
    total = np.zeros((camera.height, camera.width), np.float32)
    for top, bottom in itertools.pairwise(edges):
        begun = start + shutter.readout * (top + bottom) / 2 / camera.height
        first, last = motion(begun), motion(begun + shutter.exposure)
        turned = float(np.linalg.norm(rotation_vector(between(first, last)[:3, :3])))
        count = int(np.clip(np.ceil(turned * camera.focal_length / _STEP), 1, _MOST)) if shutter.exposure else 1
        # Only the band's rows: a camera whose principal point is moved up by its top.
        matrix = camera.matrix.copy()
        matrix[1, 2] -= top
        part = CameraModel(camera.width, int(bottom - top), matrix)
        for number in range(count):
            pose = motion(begun + shutter.exposure * (number + 0.5) / count)
            total[top:bottom] += scene.render(part, pose, noise=0).image.astype(np.float32) / count
    middle = scene.render(camera, motion(middle_of(start, shutter)), noise=0, supersample=1)
    random = np.random.default_rng([scene.seed, 17, round(start * 1e6)])
    total += np.float32(NOISE) * random.standard_normal(total.shape, dtype=np.float32)
    return Rendering(np.clip(total + 0.5, 0, 255).astype(np.uint8), middle.depth)


def middle_of(start: float, shutter: Shutter) -> float:
    """Seconds of the middle of an image's exposure: the time of its pose."""
    return start + (shutter.readout + shutter.exposure) / 2


def fast_turns(poses: Array, rate: float, degrees: float, period: float = 3.0, length: float = 0.4) -> Array:
    """A walk with sudden turns to and fro about the camera's own vertical axis.

    Args:
        poses: (N, 4, 4) T_world_camera.
        rate: of the poses, Hz.
        degrees: largest rate of a turn, deg/s.
        period: seconds between two turns.
        length: seconds of a turn; the camera turns back in the next one.

    Returns:
        (N, 4, 4) poses.
    """
    time = np.arange(len(poses)) / rate
    phase = np.clip((time % period) / length, 0, 1)
    # Half a sine of the rate, so that the turn begins and ends softly.
    amount = np.radians(degrees) * length / np.pi * (1 - np.cos(np.pi * phase))
    amount = np.where((time // period) % 2 == 0, amount, amount.max() - amount)
    turned = poses.copy()
    for number, angle in enumerate(amount):
        turned[number, :3, :3] = poses[number, :3, :3] @ rotation_matrix([0.0, angle, 0.0])
    return turned
