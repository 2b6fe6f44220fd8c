"""Plots of a trajectory: from above, and its errors over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loftr_ros.evaluation.metrics import rotation_error, translation_direction_error
from loftr_ros.evaluation.trajectory_errors import alignment
from loftr_ros.geometry.se3 import between
from loftr_ros.wording import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]


def plot_trajectory(
    path: str | Path,
    estimate: ArrayLike,
    truth: ArrayLike | None = None,
    keyframe_indices: Sequence[int] = (),
    title: str = "",
    metric: bool = False,
) -> None:
    """Write a plot of a trajectory from above, and of its errors over time if the truth is known.

    Both trajectories are drawn in the axes of their first camera: x to the right, z (forward) up. With a truth, the
    estimate is aligned to it by rotation and translation, and by scale (Umeyama 1991) if it is not metric. The errors
    are those of the poses relative to the keyframe before each frame: the angle of the rotation's error, and the angle
    between the directions of translation (left out if the true translation is nearly zero).

    Args:
        path: file to write; its ending chooses the format (png, svg, pdf).
        estimate: (N, 4, 4) T_world_camera of each frame.
        truth: (N, 4, 4) T_world_camera of the same frames, in metres.
        keyframe_indices: frames that became keyframes; without any, every frame's error is relative to the previous
            frame.
        title: of the plot.
        metric: whether the estimate is in metres.

    Raises:
        ValueError: the shapes do not fit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # the import takes a second
    from matplotlib.figure import Figure

    poses = _in_first_camera(np.asarray(estimate, dtype=np.float64))
    true_poses = None if truth is None else _in_first_camera(np.asarray(truth, dtype=np.float64))
    if true_poses is not None and poses.shape != true_poses.shape:
        raise ValueError(
            f"estimate has {len(poses)} poses, truth has {len(true_poses)}; they must be of the same frames"
        )
    keyframes = np.unique(np.asarray(keyframe_indices, dtype=np.int64))
    if keyframes.size and (keyframes[0] < 0 or keyframes[-1] >= len(poses)):
        raise ValueError(f"keyframe indices must be from 0 to {len(poses) - 1}")

    figure = Figure(figsize=(6.4 if truth is None else 11.5, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    if true_poses is None:
        _plot_top_view(figure.add_subplot(), poses[:, :3, 3], None, keyframes, metric)
    else:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
        aligned = _align(poses[:, :3, 3], true_poses[:, :3, 3], with_scale=not metric)
        _plot_top_view(figure.add_subplot(grid[:, 0]), aligned, true_poses[:, :3, 3], keyframes, metric)
        rotation, direction = _relative_errors(poses, true_poses, keyframes)
        upper = figure.add_subplot(grid[0, 1])
        lower = figure.add_subplot(grid[1, 1], sharex=upper)
        _plot_error(upper, rotation, keyframes, "rotation error", "#1f6fb4")
        _plot_error(lower, direction, keyframes, "translation direction error", "#c4572e")
        upper.tick_params(labelbottom=False)
        lower.set_xlabel("frame")
    figure.savefig(path)


def degrees(value: float) -> str:
    """An angle for people: two digits, and never a power of ten."""
    return f"{plain(value, 2) if value >= 1e-3 else 0}°"


def length(metres: float) -> str:
    """A length for people, in millimetres or metres."""
    if metres >= 1:
        return f"{metres:.2f} m" if metres < 100 else f"{metres:.0f} m"
    return f"{plain(1e3 * metres, 2) if metres >= 1e-6 else 0} mm"


def _in_first_camera(poses: Array) -> Array:
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses):
        raise ValueError(f"poses must be of shape (N, 4, 4) with N at least 1, got {poses.shape}")
    return between(poses[0], poses)


def _align(points: Array, truth: Array, with_scale: bool = True) -> Array:
    """Points moved, rotated and scaled to the truth with the least squared distance."""
    rotation, scale = alignment(points, truth)
    scale = scale if with_scale and np.isfinite(scale) else 1.0
    return np.asarray(scale * (points - points.mean(axis=0)) @ rotation.T + truth.mean(axis=0))


def _relative_errors(poses: Array, truth: Array, keyframes: NDArray[np.int64]) -> tuple[Array, Array]:
    """Errors in degrees of each frame's pose relative to the last keyframe before it; NaN without one."""
    errors = np.full((2, len(poses)), np.nan)
    typical = np.median(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)) if len(truth) > 1 else 0.0
    for i in range(1, len(poses)):
        before = keyframes[keyframes < i] if keyframes.size else np.array([i - 1])
        if before.size:
            k = before[-1]
            relative, true_relative = between(poses[k], poses[i]), between(truth[k], truth[i])
            errors[0, i] = rotation_error(relative[:3, :3], true_relative[:3, :3])
            if np.linalg.norm(true_relative[:3, 3]) > 0.1 * typical:
                errors[1, i] = translation_direction_error(relative[:3, 3], true_relative[:3, 3])
    return errors[0], errors[1]


def _plot_top_view(
    axes: Axes, estimate: Array, truth: Array | None, keyframes: NDArray[np.int64], metric: bool
) -> None:
    if truth is not None:
        axes.plot(truth[:, 0], truth[:, 2], color="0.6", linewidth=4, solid_capstyle="round", label="truth")
    label = "estimate"
    if truth is not None:
        rmse = float(np.sqrt(((estimate - truth) ** 2).sum(axis=1).mean()))
        label = f"estimate (aligned{'' if metric else ', with scale'}; RMSE {length(rmse)})"
    axes.plot(estimate[:, 0], estimate[:, 2], color="#1f6fb4", linewidth=2.2, label=label)
    if keyframes.size:
        x, z = estimate[keyframes, 0], estimate[keyframes, 2]
        axes.plot(x, z, "o", color="#e8912d", markersize=5, markeredgecolor="white", label="keyframes")
    axes.plot(*estimate[0, [0, 2]], "s", color="#2b8a3e", markersize=8, markeredgecolor="white", label="start")
    unit = "m" if metric or truth is not None else "no unit"
    axes.set_xlabel(f"x, right ({unit})")
    axes.set_ylabel(f"z, forward ({unit})")
    axes.set_title("from above", fontsize=11)
    # The same scale on both axes, filling the panel: a straight road is a thin line.
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.08)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=True, framealpha=0.9, fontsize=9)


def _plot_error(axes: Axes, errors: Array, keyframes: NDArray[np.int64], name: str, color: str) -> None:
    for keyframe in keyframes:
        axes.axvline(float(keyframe), color="#e8912d", linewidth=0.7, alpha=0.45)
    frames = np.arange(len(errors))
    axes.plot(frames, errors, ".-", color=color, linewidth=1.8, markersize=4)
    known = errors[np.isfinite(errors)]
    if known.size:
        median = float(np.median(known))
        axes.axhline(median, color="0.35", linewidth=0.9, linestyle="--")
        axes.set_title(f"{name}: median {degrees(median)}, worst {degrees(float(known.max()))}", fontsize=11)
        # One failed frame must not flatten all others.
        upper = min(known.max(), 6 * np.percentile(known, 90))
        axes.set_ylim(0, max(upper, 1e-3) * 1.12)
    else:
        axes.set_title(f"{name}: none", fontsize=11)
    axes.set_ylabel("degrees")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
