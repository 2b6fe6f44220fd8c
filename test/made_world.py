"""A world of planes with a known position for every point, and a matcher with only the specified errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from fakes import FineShiftMatcher
from numpy.typing import NDArray

from loftr_ros.frontend.frame import DepthImage, Frame, RightImage
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.matcher.interface import ImageFeatures, Matches

Array = NDArray[np.float64]

WIDTH, HEIGHT, FOCAL = 320, 240, 260.0
BASELINE = 0.2
LEFT_FROM_RIGHT = np.eye(4)
LEFT_FROM_RIGHT[0, 3] = BASELINE
# A room of 8 x 4 x 8 m around the origin, and two boards in it: normal and distance each, or corner and sides.
WALLS = [((0, 0, 1), 4.0), ((0, 0, -1), 4.0), ((1, 0, 0), 4.0), ((-1, 0, 0), 4.0), ((0, 1, 0), 2.0), ((0, -1, 0), 2.0)]
BOARDS = [((-1.5, -1.0, 2.0), 1.2, 1.6), ((0.6, -0.4, 2.8), 1.0, 1.5)]


def camera() -> CameraModel:
    matrix = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1.0]])
    return CameraModel(WIDTH, HEIGHT, matrix)


def depth_along(rays: Array, pose: Array) -> Array:
    """(N,) depth along the optical axis of (N, 2) rays from a camera at (4, 4) T_world_camera."""
    directions = np.insert(rays, 2, 1.0, axis=1) @ pose[:3, :3].T
    origin = pose[:3, 3]
    nearest = np.full(len(rays), np.inf)
    for normal, distance in WALLS:
        towards = directions @ np.array(normal, float)
        with np.errstate(divide="ignore"):
            t = np.where(towards > 1e-9, (distance - np.dot(normal, origin)) / towards, np.inf)
        nearest = np.minimum(nearest, np.where(t > 0, t, np.inf))
    for (x, y, z), width, height in BOARDS:
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (z - origin[2]) / directions[:, 2]
            at = origin + t[:, None] * directions
            on = (t > 0) & (at[:, 0] > x) & (at[:, 0] < x + width) & (at[:, 1] > y) & (at[:, 1] < y + height)
        nearest = np.minimum(nearest, np.where(on, t, np.inf))
    return nearest


class WorldMatcher(FineShiftMatcher):
    """Knows every camera's pose by a number in the image's first pixels, and each cell's point."""

    def __init__(self, poses: Sequence[Array], noise: float = 0.2, outliers: float = 0.1) -> None:
        """Create it.

        Args:
            poses: (4, 4) T_world_camera by number.
            noise: px, standard deviation of a match along either axis.
            outliers: part of the matches at random positions.
        """
        super().__init__()
        self.poses, self.noise, self.outliers = poses, noise, outliers

    def _pose(self, features: ImageFeatures) -> tuple[int, Array]:
        number, side = (int(v) for v in features.tokens[0, :2, 0].tolist())
        return 2 * number + side, self.poses[number] @ (LEFT_FROM_RIGHT if side else np.eye(4))

    def _match(self, keyframe: ImageFeatures, current: ImageFeatures) -> Matches:
        (first, pose0), (second, pose1) = self._pose(keyframe), self._pose(current)
        random = np.random.default_rng([first, second])
        rows, columns = keyframe.grid
        cell = np.arange(rows * columns)
        points0 = np.stack([cell % columns, cell // columns], axis=1) * float(self.cell_size) + self.cell_offset
        eye = camera()
        rays = eye.unproject(points0)
        points = np.insert(rays, 2, 1.0, axis=1) * depth_along(rays, pose0)[:, None]
        seen = points @ pose0[:3, :3].T + pose0[:3, 3]
        there = (seen - pose1[:3, 3]) @ pose1[:3, :3]
        ahead = there[:, 2] > 0.05
        rays1 = there[:, :2] / np.where(ahead, there[:, 2], 1.0)[:, None]
        visible = ahead & (np.abs(depth_along(rays1, pose1) - there[:, 2]) < 0.01)
        points1 = rays1 * FOCAL + [(WIDTH - 1) / 2, (HEIGHT - 1) / 2]
        inside = (points1 > 0).all(axis=1) & (points1[:, 0] < WIDTH - 1) & (points1[:, 1] < HEIGHT - 1) & visible
        points1 = points1 + random.normal(0, self.noise, points1.shape)
        wrong = random.random(len(cell)) < self.outliers
        points1[wrong] = random.random((int(wrong.sum()), 2)) * [WIDTH, HEIGHT]
        count = int(inside.sum())
        return Matches(
            torch.from_numpy(cell[inside]),
            torch.from_numpy(points0[inside]).float(),
            torch.from_numpy(points1[inside]).float(),
            torch.full((count,), 0.9),
            torch.full((count,), self.noise),
        )


def frame(
    poses: Sequence[Array], number: int, *, right: bool = False, depth: bool = False, rate: float = 10.0
) -> Frame:
    """Frame `number`, with the requested companions."""
    eye = camera()
    # Not blank, because the front end refuses blank images. The content does not matter.
    image = (
        np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    )
    image[0, :2] = number, 0
    other = image.copy()
    other[0, 1] = 1
    distance = None
    if depth:
        u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        rays = eye.unproject(np.stack([u.ravel(), v.ravel()], axis=1).astype(float))
        metres = depth_along(rays, poses[number]).reshape(HEIGHT, WIDTH)
        distance = DepthImage(np.round(1000 * metres).astype(np.uint16), 0.001)
    beside = RightImage(other, eye, LEFT_FROM_RIGHT) if right else None
    return Frame(image, 10**9 + round(number * 1e9 / rate), "cam", eye, None, distance, beside)


def walk(count: int, step: float = 0.03) -> list[Array]:
    """(4, 4) T_world_camera of a walk through the room, forward and sideways with slow rotations."""
    from scipy.spatial.transform import Rotation

    poses = []
    for i in range(count):
        pose = np.eye(4)
        pose[:3, 3] = [1.2 * np.sin(step * i), 0.1 * np.sin(0.3 * i), -2.0 + step * i]
        pose[:3, :3] = Rotation.from_euler(
            "yxz", [8 * np.sin(0.1 * i), 2 * np.sin(0.2 * i), 1.0], degrees=True
        ).as_matrix()
        poses.append(pose)
    return poses
