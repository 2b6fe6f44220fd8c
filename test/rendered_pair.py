"""A short walk through a rendered room, small and with its truth, as arrays and as files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import between
from loftr_ros.worlds.scene import Rendering, Scene, default_camera, trajectory

WIDTH, HEIGHT = 320, 240
SEED = 3  # the room that other tests have too
POSES = trajectory(120, seed=SEED)[60:88:4]
"""(7, 4, 4) T_world_camera."""
CAMERA = default_camera(WIDTH, HEIGHT)


@cache
def views() -> Sequence[Rendering]:
    """What the camera sees at each of POSES."""
    scene = Scene(SEED)
    return [scene.render(CAMERA, pose) for pose in POSES]


def write_images(folder: Path, numbers: Sequence[int] = range(len(POSES))) -> list[Path]:
    """Some views as PNG files in a folder that is made for them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06d}.png" for number in numbers]
    for file, number in zip(files, numbers, strict=True):
        cv2.imwrite(str(file), views()[number].image)
    return files


def write_calibration(file: Path) -> Path:
    """The camera's calibration in ROS's format."""
    values = ", ".join(f"{value:.9g}" for value in CAMERA.matrix.ravel())
    file.write_text(
        f"image_width: {WIDTH}\nimage_height: {HEIGHT}\ndistortion_model: plumb_bob\n"
        f"camera_matrix: {{rows: 3, cols: 3, data: [{values}]}}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}\n"
    )
    return file


def errors(points0: NDArray[np.float32], points1: NDArray[np.float32], second: int) -> NDArray[np.float64]:
    """(N,) pixels between the matches of view 0's points in another view and where these points are in it."""
    column, row = points0.round().astype(int).T
    rays = np.insert(CAMERA.unproject(points0), 2, 1.0, axis=1)
    points = rays * views()[0].depth[row, column, None].astype(np.float64)
    turn = between(POSES[second], POSES[0])
    return np.linalg.norm(points1 - CAMERA.project(points @ turn[:3, :3].T + turn[:3, 3]), axis=1)
