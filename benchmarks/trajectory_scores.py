"""Errors of trajectories by evo (M. Grupp): absolute and relative pose errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Fewer poses cannot be aligned.
MIN_POSES = 3


class EvoMissingError(ImportError):
    """evo is not installed."""


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of one trajectory. NaN without anything to compare.

    Attributes:
        ate: metres, RMSE of the positions after alignment.
        drift: percent, mean error of the translation over distances, relative to them.
        turn: degrees per metre, mean error of the rotation over distances.
        step, step_turn: metres and degrees, RMSE of the motion from one located frame to the next.
        scale: factor of the alignment on the estimate; 1 without scale.
        first_scale, second_scale: factors of alignments of each half separately, with scale.
        aligned: (N, 4, 4) the estimate's poses in the truth's axes.
    """

    ate: float
    drift: float
    turn: float
    step: float
    step_turn: float
    scale: float
    first_scale: float
    second_scale: float
    aligned: Array

    @property
    def scale_drift(self) -> float:
        """Percent by which the second half is scaled larger than the first."""
        return 100 * (self.first_scale / self.second_scale - 1)


def require_evo() -> None:
    """Check that evo is installed.

    Raises:
        EvoMissingError: it is not; the message says how to install it.
    """
    try:
        import evo.core.metrics
        import evo.core.trajectory  # noqa: F401
    except ImportError as error:
        raise EvoMissingError(
            f"errors of trajectories are taken by evo, which is not installed ({error}): "
            ".venv/bin/pip install -r benchmarks/requirements.txt"
        ) from error


def trajectory_errors(estimate: Array, truth: Array, with_scale: bool, distances: Sequence[float]) -> Errors:
    """Errors of a trajectory against the truth.

    Args:
        estimate, truth: (N, 4, 4) T_world_camera of the same frames, each in its own world frame.
        with_scale: align by a similarity, because a single camera's trajectory has no scale; relative errors are then
            also those of the scaled estimate.
        distances: metres of the true path over which the drift is measured.

    Raises:
        EvoMissingError: evo is not installed.
    """
    require_evo()
    from evo.core.filters import FilterException
    from evo.core.geometry import GeometryException
    from evo.core.metrics import APE, RPE, PoseRelation, StatisticsType, Unit

    if len(estimate) < MIN_POSES:
        return _nothing(estimate)
    true, moved = _path(truth), _path(estimate)
    try:
        _, _, scale = moved.align(true, correct_scale=with_scale)
    except GeometryException:  # a path without any motion
        return _nothing(estimate)

    def errors(metric: APE | RPE) -> Array:
        metric.process_data((true, moved))
        return np.asarray(metric.error, np.float64)

    def relative(relation: PoseRelation, delta: float, unit: Unit) -> Array:
        try:
            return errors(RPE(relation, delta, unit, all_pairs=True, pairs_from_reference=True))
        except FilterException:  # no two frames are so far apart
            return np.zeros(0)

    absolute = APE(PoseRelation.translation_part)
    errors(absolute)
    drift, turn = [], []
    for distance in distances:
        drift += [100 * relative(PoseRelation.translation_part, distance, Unit.meters) / distance]
        turn += [relative(PoseRelation.rotation_angle_deg, distance, Unit.meters) / distance]
    half = len(estimate) // 2
    return Errors(
        float(absolute.get_statistic(StatisticsType.rmse)),
        _mean(drift),
        _mean(turn),
        _rms(relative(PoseRelation.translation_part, 1, Unit.frames)),
        _rms(relative(PoseRelation.rotation_angle_deg, 1, Unit.frames)),
        float(scale),
        _scale(estimate[:half], truth[:half]),
        _scale(estimate[half:], truth[half:]),
        np.array(moved.poses_se3),
    )


def path_length(positions: Array) -> float:
    """Sum of the (N, 3) positions' distances, one after another."""
    return float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())


def _path(poses: Array):
    from evo.core.trajectory import PosePath3D

    # A truth written with few digits has inexact rotations, which evo refuses.
    proper = np.array(poses, np.float64)
    u, _, vt = np.linalg.svd(proper[:, :3, :3])
    proper[:, :3, :3] = u @ vt
    return PosePath3D(poses_se3=list(proper))


def _scale(estimate: Array, truth: Array) -> float:
    from evo.core.geometry import GeometryException

    if len(estimate) < MIN_POSES:
        return float("nan")
    try:
        return float(_path(estimate).align(_path(truth), correct_scale=True)[2])
    except GeometryException:
        return float("nan")


def _nothing(estimate: Array) -> Errors:
    nan = float("nan")
    return Errors(nan, nan, nan, nan, nan, nan, nan, nan, estimate)


def _mean(errors: Sequence[Array]) -> float:
    """Mean over all pairs of frames; NaN without any."""
    every = np.concatenate(errors)
    return float(every.mean()) if len(every) else float("nan")


def _rms(errors: Array) -> float:
    return float(np.sqrt((errors**2).mean())) if len(errors) else float("nan")
