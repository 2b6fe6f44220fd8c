"""By how much the stamps of an inertial sensor differ from a camera's: by the rotations that both measure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.geometry.se3 import rotation_vector

Array = NDArray[np.float64]

# Seconds: largest offset that is searched for, distance of the first guesses, step of the derivative.
_REACH, _APART, _STEP = 0.25, 0.05, 0.005
_ITERATIONS = 5
# Least standard deviation of a measured rotation, rad. Keyframes that a search needs: with fewer its errors are larger
# than stated; and the newest that it uses.
_ROTATION_STD, LEAST, MOST = 1e-3, 15, 40
# Standard deviation of an offset up to which it counts as known, s.
_KNOWN = 0.006


@dataclass(frozen=True)
class ClockOffset:
    """Offset of two clocks.

    Attributes:
        seconds: what a sample has as its stamp, less what the images' clock says of the same time.
        std: its standard deviation.
    """

    seconds: float
    std: float

    @property
    def is_known(self) -> bool:
        """Whether the motion tells it, and it is not beyond what is searched for."""
        return self.std <= _KNOWN and abs(self.seconds) < _REACH - _STEP


def clock_offset(rotations: Sequence[Array], stamps_ns: Sequence[int], samples: ImuSamples) -> ClockOffset | None:
    """Find the offset at which the sensor's rotations, with an even bias, agree best with a camera's.

    A rotation between two keyframes changes with the offset by what the angular velocities at its ends differ by. So
    an even rotation tells nothing, and has a large standard deviation.

    Args:
        rotations: (3, 3) R_first_camera of each keyframe of a window.
        stamps_ns: of the keyframes, ascending.
        samples: of the sensor, with its pose in the camera.

    Returns:
        The offset; None if there are too few samples around the keyframes.
    """
    newest = samples.newest_ns
    if newest is None or samples.camera_from_imu is None:
        return None
    reach = int((_REACH + _STEP) * 1e9)
    whole = sum(stamp + reach <= newest for stamp in stamps_ns)
    stamps = np.array(stamps_ns[:whole], np.int64)
    if len(stamps) < LEAST:
        return None
    samples = samples.part(int(stamps[0]) - 2 * reach, int(stamps[-1]) + 2 * reach)
    assert samples.camera_from_imu is not None
    turn = samples.camera_from_imu[:3, :3]
    axes = [turn.T @ rotation @ turn for rotation in rotations[:whole]]
    measured = [one.T @ other for one, other in itertools.pairwise(axes)]
    seconds = np.diff(stamps) / 1e9

    def residuals(offset: float, bias: Array) -> Array | None:
        """(3 K,) of the K stretches."""
        stretches = samples.between((stamps + round(offset * 1e9)).tolist())
        if stretches is None:
            return None
        turned = (_rotation((values[:, :3] - bias) * steps[:, None]) for steps, values in stretches)
        return np.concatenate([rotation_vector(m.T @ r) for m, r in zip(measured, turned, strict=True)])

    by_bias = np.kron(-seconds[:, None], np.eye(3))
    best: tuple[float, float, Array] | None = None
    for guess in np.arange(-_REACH, _REACH + _APART / 2, _APART):
        off = residuals(float(guess), np.zeros(3))
        if off is None:
            continue
        bias = np.linalg.lstsq(by_bias, -off, rcond=None)[0]
        cost = float(np.sum((off + by_bias @ bias) ** 2))
        if best is None or cost < best[0]:
            best = cost, float(guess), bias
    if best is None:
        return None
    _, offset, bias = best
    left, design = np.zeros(0), np.zeros((0, 4))
    for _ in range(_ITERATIONS):
        off, before, after = (residuals(offset + step, bias) for step in (0.0, -_STEP, _STEP))
        if off is None or before is None or after is None:
            return None
        design = np.column_stack([(after - before) / (2 * _STEP), by_bias])
        found = np.linalg.lstsq(design, -off, rcond=None)[0]
        left = off + design @ found
        offset, bias = float(np.clip(offset + found[0], -_REACH, _REACH)), bias + found[1:]
    variance = max(float(np.sum(left**2)) / max(len(left) - 4, 1), _ROTATION_STD**2)
    covariance = variance * np.linalg.pinv(design.T @ design, hermitian=True)
    return ClockOffset(offset, float(np.sqrt(covariance[0, 0])))


def _rotation(steps: Array) -> Array:
    """(3, 3) product of the rotations by (N, 3) rotation vectors, in their order."""
    angle = np.maximum(np.linalg.norm(steps, axis=1), 1e-12)[:, None, None]
    cross, (x, y, z) = np.zeros((len(steps), 3, 3)), steps.T
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z, y, -x
    cross -= cross.transpose(0, 2, 1)
    turns = np.eye(3) + np.sin(angle) / angle * cross + (1 - np.cos(angle)) / angle**2 * (cross @ cross)
    while len(turns) > 1:
        even = len(turns) // 2 * 2
        turns = np.concatenate([turns[0:even:2] @ turns[1:even:2], turns[even:]])
    return np.asarray(turns[0])
