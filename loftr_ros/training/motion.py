"""Second cameras for a pair: from the next frame of a video to a distant view, by difficulty."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import inverse, rotation_matrix
from loftr_ros.training.geometry import Float32, Float64, rigid

LEAST_SEEN = 0.2  # default least share of one camera's view that the other camera must see too
_GRID = 12  # px between the pixels used to measure a candidate's overlap
_TRIES = 12


def second_camera(
    rng: np.random.Generator,
    difficulty: float,
    inverse_depth: Float32,
    K0: Float64,
    K1: Float64,
    driving: bool = False,
    least: float = LEAST_SEEN,
) -> Float64 | None:
    """T_1_0 of a camera that sees at least a share `least` of camera 0's view, ignoring occlusion.

    Args:
        difficulty: in [0, `config.WIDEST`]; 0 is video, 1 goes to 60 degrees and a baseline of half the depth, the
            largest to 90 degrees, and to a third of the depth.
        inverse_depth: (H, W) of view 0; the image of view 1 has the same size.
        driving: forward on the ground, rather than freely.

    Returns:
        (4, 4), in the world's units; None if no motion was found.
    """
    height, width = inverse_depth.shape
    pixels = grid_pixels((width, height))
    w = inverse_depth[pixels[:, 1], pixels[:, 0]].astype(np.float64)
    return second_camera_by_points(rng, difficulty, pixels, w, (width, height), K0, K1, driving, least)


def grid_pixels(size: tuple[int, int]) -> NDArray[np.int64]:
    """(N, 2) pixels of a (width, height) image by which overlap is measured."""
    v, u = np.mgrid[_GRID // 2 : size[1] : _GRID, _GRID // 2 : size[0] : _GRID]
    return np.stack([u.ravel(), v.ravel()], axis=1).astype(np.int64)


def second_camera_by_points(
    rng: np.random.Generator,
    difficulty: float,
    pixels: NDArray[np.int64],
    w: Float64,
    size: tuple[int, int],
    K0: Float64,
    K1: Float64,
    driving: bool = False,
    least: float = LEAST_SEEN,
) -> Float64 | None:
    """`second_camera` by some pixels of view 0.

    Args:
        pixels: (N, 2).
        w: (N,) inverse depth of each; 0 where nothing is.
        size: (width, height) of both images.
    """
    width, height = size
    rays = np.linalg.inv(K0) @ np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1).T
    known = w > 1e-5
    if not known.any():
        return None
    near, middle = 1 / np.quantile(w[known], (0.95, 0.5))
    for attempt in range(_TRIES):
        # The more attempts fail, the smaller the motion.
        ease = 1 - attempt / (_TRIES + 2)
        hardest = difficulty * ease
        T = _drive(rng, hardest, near) if driving else _free(rng, hardest, near, middle)
        points = T[:3, :3] @ rays + T[:3, 3:] * w
        pixels = K1 @ points
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = pixels[0] / pixels[2], pixels[1] / pixels[2]
        inside = (pixels[2] > 0.02 * w) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        if float(inside.mean()) >= least:
            return T
    return None


def _free(rng: np.random.Generator, difficulty: float, near: float, middle: float) -> Float64:
    kind = rng.random()
    axis = rng.normal(size=3) * np.array([1, 1.3, 0.5])
    axis /= np.linalg.norm(axis)
    direction = rng.normal(size=3) * np.array([1, 0.7, 0.7])
    direction /= np.linalg.norm(direction)
    roll = rotation_matrix(np.array([0, 0, _roll(rng, difficulty)]))
    if kind < 0.35 - 0.2 * difficulty:  # the frames of a video
        angle = np.radians(rng.uniform(0, 4 + 8 * difficulty))
        return rigid(rotation_matrix(axis * angle), direction * near * rng.uniform(0, 0.12))
    if kind < 0.45:  # forward or backward
        step = rng.uniform(0.05, 0.15 + 0.35 * difficulty) * middle * rng.choice([-1, 1])
        angle = np.radians(rng.uniform(0, 3 + 12 * difficulty))
        return rigid(roll @ rotation_matrix(axis * angle), np.array([0, 0, step]) + direction * 0.1 * abs(step))
    if kind < 0.75:  # around the middle of the view
        angle = np.radians(rng.uniform(5, 12 + 50 * difficulty))
        R = rotation_matrix(axis * angle)
        centre = np.array([0, 0, middle * rng.uniform(0.6, 1.1)])
        scale = np.exp(rng.normal(0, 0.05 + 0.25 * difficulty))
        t = centre * scale - R @ centre
        return rigid(roll @ R, roll @ t)
    angle = np.radians(rng.uniform(2, 10 + 40 * difficulty))
    return rigid(roll @ rotation_matrix(axis * angle), direction * middle * rng.uniform(0.03, 0.1 + 0.4 * difficulty))


def _roll(rng: np.random.Generator, difficulty: float) -> float:
    """Roll about the optical axis, in radians: small, occasionally large."""
    if rng.random() < 0.12 * difficulty:
        return float(rng.uniform(-0.8, 0.8)) * max(1.0, difficulty)
    return float(rng.normal(0, 0.02 + 0.08 * difficulty))


def _drive(rng: np.random.Generator, difficulty: float, near: float) -> Float64:
    """The next position of a vehicle: forward by up to some metres, with some yaw and a little pitch."""
    step = rng.uniform(0.1, 0.4 + 1.2 * difficulty) * near
    yaw = rng.normal(0, np.radians(1.5 + 7 * difficulty))
    R_0_1 = rotation_matrix(np.array([rng.normal(0, 0.01), yaw, rng.normal(0, 0.008)]))
    t_0_1 = np.array([np.sin(yaw / 2) * step + rng.normal(0, 0.03) * step, rng.normal(0, 0.01) * step, step])
    T = rigid(R_0_1, t_0_1)
    if rng.random() < 0.15:  # the other camera of a stereo pair
        T = rigid(rotation_matrix(rng.normal(0, 0.01, 3)), np.array([rng.uniform(-0.15, 0.15) * near, 0, 0]))
    return inverse(T) if rng.random() < 0.6 else T
