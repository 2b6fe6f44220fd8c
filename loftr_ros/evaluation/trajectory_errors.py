"""Errors of a trajectory against a truth: error after alignment, drift, and scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.metrics import rotation_error
from loftr_ros.geometry.se3 import between

Array = NDArray[np.float64]

MIN_POSES = 3  # fewer cannot be aligned
DISTANCES = (0.1, 0.2, 0.4)  # parts of the true path over which the drift is measured
_STILL = 1e-9  # metres: a camera that does not move has neither direction nor scale


@dataclass(frozen=True)
class TrajectoryErrors:
    """Errors of one trajectory.

    Attributes:
        ate: metres, RMSE of the positions after alignment.
        drift: percent, mean error of the translation over DISTANCES of the true path, relative to them; NaN if no two
            frames are so far apart.
        scale: factor on the estimate that fits the truth best; NaN if the camera does not move.
        with_scale: whether the estimate was scaled before measuring errors.
        poses: number of poses in both trajectories.
    """

    ate: float
    drift: float
    scale: float
    with_scale: bool
    poses: int


def trajectory_errors(estimate: Array, truth: Array, with_scale: bool) -> TrajectoryErrors | None:
    """Errors after alignment by rotation and translation, and optionally by scale (Umeyama, PAMI 1991).

    Args:
        estimate, truth: (N, 4, 4) T_world_camera of the same frames in order of time, each in its own world frame; the
            truth in metres.
        with_scale: align the scale too, as a single camera's trajectory has its own unit.

    Returns:
        None for fewer than MIN_POSES frames.
    """
    if len(estimate) < MIN_POSES:
        return None
    points, true = estimate[:, :3, 3], truth[:, :3, 3]
    rotation, scale = alignment(points, true)
    used = scale if with_scale and np.isfinite(scale) else 1.0
    aligned = used * (points - points.mean(axis=0)) @ rotation.T + true.mean(axis=0)
    ate = float(np.sqrt(((aligned - true) ** 2).sum(axis=1).mean()))
    return TrajectoryErrors(ate, drift(estimate, truth, used), scale, with_scale, len(points))


def step_errors(estimate: Array, truth: Array, scale: float = 1.0) -> tuple[float, float]:
    """RMSE of the motion from each frame to the next, in metres and degrees: evo's RPE with a delta of one frame.

    Args:
        estimate, truth: (N, 4, 4) T_world_camera of the same frames.
        scale: factor on the estimate's translations.
    """
    off = [_off(estimate, truth, k, k + 1, scale) for k in range(len(truth) - 1)]
    if not off:
        return float("nan"), float("nan")
    metres, degrees = np.sqrt(np.mean(np.square(off), axis=0))
    return float(metres), float(degrees)


def kitti_errors(estimate: Array, truth: Array, scale: float = 1.0) -> tuple[float, float]:
    """t_rel in percent and r_rel in degrees for 100 m of the KITTI benchmark: means over 100, 200, ..., 800 m.

    From every tenth frame to the first one that is more than the length further along the true path, as in KITTI's
    development kit.

    Args:
        estimate, truth: (N, 4, 4) T_world_camera of the same frames.
        scale: factor on the estimate's translations.

    Returns:
        NaN for paths below 100 m.
    """
    distance = _distance_along(truth)
    errors = []
    for start in range(0, len(truth), 10):
        for length in range(100, 900, 100):
            end = int(np.searchsorted(distance, distance[start] + length, side="right"))
            if end < len(truth):
                metres, degrees = _off(estimate, truth, start, end, scale)
                errors.append((100 * metres / length, 100 * degrees / length))
    if not errors:
        return float("nan"), float("nan")
    t_rel, r_rel = np.mean(errors, axis=0)
    return float(t_rel), float(r_rel)


def _distance_along(truth: Array) -> Array:
    """(N,) metres of the path up to each of (N, 4, 4) poses."""
    return np.append(0.0, np.cumsum(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)))


def _off(estimate: Array, truth: Array, start: int, end: int, scale: float) -> tuple[float, float]:
    """By how much the motion from one frame to another is off, in metres and degrees."""
    moved = between(estimate[start], estimate[end])
    moved[:3, 3] *= scale
    off = between(moved, between(truth[start], truth[end]))
    return float(np.linalg.norm(off[:3, 3])), rotation_error(off[:3, :3], np.eye(3))


def alignment(points: Array, truth: Array) -> tuple[Array, float]:
    """Rotation (3, 3) and scale that best map (N, 3) centred points to (N, 3) centred others, in least squares."""
    centred, true = points - points.mean(axis=0), truth - truth.mean(axis=0)
    u, singular, vt = np.linalg.svd(true.T @ centred)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    variance = float((centred**2).sum())
    scale = float((singular * signs).sum()) / variance if variance > _STILL**2 else float("nan")
    return np.asarray((u * signs) @ vt), scale


def drift(estimate: Array, truth: Array, scale: float = 1.0, parts: Sequence[float] = DISTANCES) -> float:
    """Mean error of the motion over parts of the true path, in percent of the path between both frames.

    From every frame to the first one that is this much further along the true path, as in the KITTI benchmark.

    Args:
        estimate, truth: (N, 4, 4) T_world_camera of the same frames.
        scale: factor on the estimate's translations.
        parts: of the true path's length.

    Returns:
        NaN if the camera does not move.
    """
    distance = _distance_along(truth)
    if distance[-1] <= _STILL:
        return float("nan")
    moved = estimate.copy()
    moved[:, :3, 3] *= scale
    errors: list[float] = []
    for part in parts:
        ends = np.searchsorted(distance, distance + part * distance[-1])
        for start, end in enumerate(ends):
            if end < len(distance):
                step, true_step = (between(poses[start], poses[end]) for poses in (moved, truth))
                error = np.linalg.norm(step[:3, 3] - true_step[:3, 3]) / (distance[end] - distance[start])
                errors.append(100 * float(error))
    return float(np.mean(errors)) if errors else float("nan")
