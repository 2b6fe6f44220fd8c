"""A textured 3-D room rendered by the project, with known camera, poses and depth.

World frame: metres, z up, the origin on the floor in the room's middle. Nothing is read from files: shapes, textures
and light all come from the seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loftr_ros.geometry.camera import NO_DISTORTION, CameraModel
from loftr_ros.geometry.se3 import inverse
from loftr_ros.worlds.rasterizer import Surfaces, render
from loftr_ros.worlds.room import Solid, Surface, furnish, light
from loftr_ros.worlds.textures import paint
from loftr_ros.worlds.texturing import Sampling, material

NOISE = 1.5  # gray levels, standard deviation of the sensor's noise
_EXPOSURE = 1.25


@dataclass(frozen=True)
class Rendering:
    """A rendered view of the scene.

    Attributes:
        image: (H, W) uint8 gray.
        depth: (H, W) float32, metres along the optical axis, of each pixel's centre; inf where there is nothing.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]


def default_camera(width: int = 640, height: int = 480) -> CameraModel:
    """A camera without distortion, 63 degrees wide, with its centre in the image's middle."""
    focal = 520.0 * width / 640
    matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return CameraModel(width, height, matrix)


class Scene:
    """A furnished, lit room. Building it takes about two seconds, once per seed and process."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.solids, self._surfaces = _build(seed)

    def render(
        self,
        camera: CameraModel | ArrayLike,
        T_world_camera: ArrayLike,
        size: tuple[int, int] = (640, 480),
        noise: float = NOISE,
        supersample: int = 2,
    ) -> Rendering:
        """The view from one pose; the same arguments give the same bytes.

        Args:
            camera: its model (without distortion), or the (3, 3) camera matrix K for images of `size`.
            T_world_camera: (4, 4) pose of the optical frame (REP 103: x right, y down, z forward), metres.
            size: (width, height) in pixels, if `camera` is a matrix.
            noise: standard deviation of the sensor's noise, in gray levels.
            supersample: samples per pixel and axis; 1 is faster and aliases.

        Raises:
            ValueError: the camera has distortion, or the pose is not a finite (4, 4) matrix.
        """
        model = camera if isinstance(camera, CameraModel) else CameraModel(size[0], size[1], np.asarray(camera))
        if model.distortion_model != NO_DISTORTION:
            raise ValueError(f"the scene is rendered without distortion; got a camera with '{model.distortion_model}'")
        pose = np.ascontiguousarray(T_world_camera, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise ValueError(f"T_world_camera must be a finite 4x4 matrix, got shape {pose.shape}")
        view = render(self._surfaces, model.matrix, (model.width, model.height), inverse(pose), Sampling(supersample))
        image = view.image
        if noise > 0:
            # The noise belongs to the view, not to the order in which views are rendered.
            rng = np.random.default_rng([self.seed, zlib.crc32(pose.tobytes())])
            image = image + np.float32(noise) * rng.standard_normal(image.shape, dtype=np.float32)
        return Rendering(np.clip(image + 0.5, 0, 255).astype(np.uint8), view.depth)


@lru_cache(maxsize=2)
def _build(seed: int) -> tuple[tuple[Solid, ...], Surfaces]:
    rng = np.random.default_rng(seed)
    solids, surfaces = furnish(rng)
    return tuple(solids), textured(surfaces, solids, rng)


def textured(surfaces: Sequence[Surface], solids: Sequence[Solid], rng: np.random.Generator) -> Surfaces:
    """Paint and light surfaces.

    Args:
        surfaces: to paint.
        solids: that cast shadows.
        rng: the only source of randomness.
    """
    painted = Surfaces()
    for surface in surfaces:
        height, width = surface.shape
        piece, pieces = surface.piece
        if piece == 0:
            painting = paint(surface.style, height, width * pieces, surface.texel, rng)
        albedo = painting[:, piece * width : (piece + 1) * width]
        lit = albedo * light(surface, solids)
        # Compressed highlights, as on film: surfaces close to a lamp keep their texture.
        texture = (255 * (1 - np.exp(-_EXPOSURE * lit))).astype(np.uint8)
        painted.quad(surface.origin, surface.side_s, surface.side_t, material(texture))
    return painted


def trajectory(n: int, rate: float = 30.0, seed: int = 0) -> NDArray[np.float64]:
    """A hand-held walk around the room's middle, at 0.5 to 1 m/s, looking around.

    Args:
        n: number of poses.
        rate: poses per second.
        seed: start, direction and rhythm of the walk.

    Returns:
        (n, 4, 4) float64 T_world_camera, optical frame, metres; valid in the room of every scene seed.
    """
    rng = np.random.default_rng([seed, 7])
    step = 1.0 / 120
    time = np.arange(0, n / rate + 2 * step, step)
    direction = 1.0 if rng.random() < 0.5 else -1.0

    def wave(amplitude: float, periods: tuple[float, ...]) -> NDArray[np.float64]:
        phases = rng.uniform(0, 2 * np.pi, len(periods))
        waves = [np.sin(2 * np.pi * time / period + phase) for period, phase in zip(periods, phases, strict=True)]
        return np.asarray(amplitude * np.mean(waves, axis=0))

    # The walk: an ellipse of varying size, so that no two rounds are equal.
    radius_x, radius_y = 2.25 + wave(0.2, (7.3, 11.9)), 1.5 + wave(0.12, (5.9, 9.7))
    speed = 0.75 + wave(0.2, (2.7, 4.3))
    around = np.zeros_like(time)
    angle = rng.uniform(0, 2 * np.pi)
    for i in range(len(time)):
        around[i] = angle
        angle += direction * speed[i] * step / np.hypot(radius_x[i] * np.sin(angle), radius_y[i] * np.cos(angle))
    bounce = wave(0.012, (0.53, 0.9))  # steps
    position = np.stack(
        [radius_x * np.cos(around), radius_y * np.sin(around), 1.45 + bounce + wave(0.12, (6.1, 3.7))], axis=1
    )
    position += np.stack([wave(0.006, (0.31, 0.67)) for _ in range(3)], axis=1)

    tangent = around + direction * np.pi / 2
    outward = -direction * np.radians(32 + wave(34, (3.9, 6.7)))  # the gaze, turned to the walls
    yaw = tangent + outward + np.radians(wave(0.5, (0.37, 0.71)))
    pitch = np.radians(-8 + wave(9, (3.1, 5.3)) + wave(0.45, (0.29, 0.59)))
    roll = np.radians(wave(3.5, (2.9, 4.7)) + wave(0.5, (0.33, 0.77)))

    moments = np.arange(n) / rate
    x, y, z, yaw, pitch, roll = (np.interp(moments, time, values) for values in (*position.T, yaw, pitch, roll))
    return np.stack([look(np.array(p), a, b, c) for *p, a, b, c in zip(x, y, z, yaw, pitch, roll, strict=True)])


def look(position: NDArray[np.float64], yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """T_world_camera of a camera that looks along yaw (about z up) and pitch (up), rolled about its axis."""
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    below = np.cross(forward, level)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll) * level + np.sin(roll) * below
    pose[:3, 1] = -np.sin(roll) * level + np.cos(roll) * below
    pose[:3, 2] = forward
    pose[:3, 3] = position
    return pose


__all__ = ["NOISE", "Rendering", "Scene", "default_camera", "look", "trajectory"]
