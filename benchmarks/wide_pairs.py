"""Wide pairs of rendered rooms: views from different moments of a walk, rotated against each other by 30 to 60 degrees.

The rooms are those of the demo's renderer, which is independent of the training's scenes.
"""

from __future__ import annotations

import numpy as np
from contenders import View
from numpy.typing import NDArray

from loftr_ros.evaluation.metrics import rotation_error
from loftr_ros.frontend.frame import Frame
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

SEEDS = (11, 12, 13, 14)
TURN = 30.0, 60.0  # degrees
LEAST_COVISIBLE = 0.3  # least part of either view's pixels visible in the other
SIZE = (640, 480)
MOMENTS, SECONDS = 240, 0.35
SMALL = 8  # factor by which views are reduced to count covisibility

Array = NDArray[np.float64]
Posed = tuple[View, Array]


def wide_pairs(count: int) -> list[tuple[Posed, Posed]]:
    """`count` pairs of views with their (4, 4) T_world_camera, evenly from all rooms; always the same ones."""
    pairs: list[tuple[Posed, Posed]] = []
    for number, seed in enumerate(SEEDS):
        scene, poses = Scene(seed), trajectory(MOMENTS, 1 / SECONDS, seed)
        wanted = (count + len(SEEDS) - 1 - number) // len(SEEDS)
        pairs += [
            ((_view(scene, poses[i], i), poses[i]), (_view(scene, poses[j], j), poses[j]))
            for i, j in _choose(scene, poses, wanted, seed)
        ]
    return pairs


def _view(scene: Scene, pose: Array, moment: int) -> View:
    camera = default_camera(*SIZE)
    image = scene.render(camera, pose).image
    frame = Frame(image, moment, "camera", camera)
    return View(f"{scene.seed}/{moment}", frame, np.repeat(image[:, :, None], 3, axis=2))


def _choose(scene: Scene, poses: Array, count: int, seed: int) -> list[tuple[int, int]]:
    camera = default_camera(SIZE[0] // SMALL, SIZE[1] // SMALL)
    depths = [scene.render(camera, pose, noise=0.0, supersample=1).depth for pose in poses]
    order = np.random.default_rng(seed).permutation(len(poses) ** 2)
    chosen: list[tuple[int, int]] = []
    for i, j in zip(*np.unravel_index(order, (len(poses), len(poses))), strict=True):
        if len(chosen) == count:
            break
        if not TURN[0] <= rotation_error(poses[i][:3, :3], poses[j][:3, :3]) <= TURN[1]:
            continue
        seen = [covisible(camera.matrix, depths[a], poses[a], depths[b], poses[b]) for a, b in ((i, j), (j, i))]
        if min(seen) >= LEAST_COVISIBLE:
            chosen.append((int(i), int(j)))
    return chosen


def covisible(
    matrix: Array, depth0: NDArray[np.float32], pose0: Array, depth1: NDArray[np.float32], pose1: Array
) -> float:
    """Part of one view's pixels visible in another view, including occlusion."""
    height, width = depth0.shape
    v, u = np.mgrid[:height, :width].reshape(2, -1)
    rays = np.stack([u, v, np.ones_like(u)], axis=1) @ np.linalg.inv(matrix).T
    T_1_0 = np.linalg.inv(pose1) @ pose0
    points = (rays * depth0.reshape(-1, 1)) @ T_1_0[:3, :3].T + T_1_0[:3, 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        column, row = (points @ matrix.T)[:, :2].T / points[:, 2]
        inside = (points[:, 2] > 0.1) & (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
    there = depth1[row[inside].round().astype(int), column[inside].round().astype(int)]
    visible = points[inside, 2] < 1.05 * there
    return float(visible.sum() / len(points))
