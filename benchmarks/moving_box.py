"""Things that move through the rendered room: textured boxes of a person's size, in front of the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.se3 import between
from loftr_ros.worlds.rasterizer import render
from loftr_ros.worlds.room import Furniture
from loftr_ros.worlds.scene import Rendering, Scene, textured, trajectory
from loftr_ros.worlds.texturing import Sampling

Array = NDArray[np.float64]

_SIZE = (0.55, 0.35, 1.6)  # m
_AHEAD = 1.7  # m from the camera, on average over a second
_ASIDE, _PERIOD = 0.7, 3.0  # m, s: to and fro across the view
_SPIN = 20.0  # degrees to and fro about the vertical


@dataclass(frozen=True)
class MovingRendering(Rendering):
    """A view with something that moves in it.

    Attributes:
        moving: (H, W) bool, true on what moves.
    """

    moving: NDArray[np.bool_]


class MovingBox:
    """A box that crosses the view of `trajectory`'s camera to and fro, at up to 1.5 m/s."""

    def __init__(self, scene: Scene, frames: int, rate: float, style: str = "collage") -> None:
        """Paint it.

        Args:
            scene: the room; its seed decides textures, and the walk that is crossed.
            frames, rate: of the walk.
            style: of its textures, see `textures.STYLES`.
        """
        self._scene = scene
        rng = np.random.default_rng([scene.seed, 11])
        parts = Furniture()
        parts.box((0.0, 0.0, _SIZE[2] / 2), _SIZE, style)
        self._surfaces = textured(parts.surfaces, (), rng)
        walk = trajectory(frames, rate, scene.seed)
        side = max(int(rate), 1)
        kernel = np.ones(side) / side

        def smooth(values: Array) -> Array:
            return np.convolve(np.pad(values, (side // 2, side - 1 - side // 2), mode="edge"), kernel, mode="valid")

        position = np.stack([smooth(walk[:, axis, 3]) for axis in range(2)], axis=1)
        ahead = np.stack([smooth(walk[:, axis, 2]) for axis in range(2)], axis=1)
        ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
        time = np.arange(frames) / rate + rng.uniform(0, _PERIOD)
        across = np.stack([ahead[:, 1], -ahead[:, 0]], axis=1)
        swing = np.sin(2 * np.pi * time / _PERIOD)[:, None]
        self._at = position + _AHEAD * ahead + _ASIDE * swing * across
        self._yaw = np.arctan2(ahead[:, 1], ahead[:, 0]) + np.pi / 2 + np.radians(_SPIN) * swing[:, 0]

    def pose(self, number: int) -> Array:
        """(4, 4) T_world_box at a frame of the walk; the box stands on z = 0 of its frame."""
        pose = np.eye(4)
        c, s = np.cos(self._yaw[number]), np.sin(self._yaw[number])
        pose[:2, :2] = [[c, -s], [s, c]]
        pose[:2, 3] = self._at[number]
        return pose

    def render(self, camera: CameraModel, T_world_camera: Array, number: int, noise: float = 1.5) -> MovingRendering:
        """The room and the box from one pose, at a frame of the walk.

        Args:
            camera: without distortion.
            T_world_camera: (4, 4) pose of the optical frame, metres.
            number: of the frame.
            noise: as in `Scene.render`.
        """
        view = self._scene.render(camera, T_world_camera, noise=noise)
        T_camera_box = between(np.asarray(T_world_camera, np.float64), self.pose(number))
        box = render(self._surfaces, camera.matrix, (camera.width, camera.height), T_camera_box, Sampling())
        image, depth = box.image, box.depth
        nearer = depth < view.depth
        grain = np.random.default_rng([self._scene.seed, 13, number]).standard_normal(image.shape, dtype=np.float32)
        shown = np.clip(image + np.float32(noise) * grain + 0.5, 0, 255).astype(np.uint8)
        return MovingRendering(
            np.where(nearer, shown, view.image), np.where(nearer, depth, view.depth), np.asarray(nearer)
        )
