"""Rotations of the camera by a gyroscope: integrated between stamps, its bias estimated, its mounting checked."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from enum import Enum
from itertools import permutations, product
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loftr_ros.geometry.se3 import Array, rotation_vector
from loftr_ros.settings import Settings, setting

# Seconds of samples that are kept, and that one gap between two samples may last.
_KEPT, _LONGEST_GAP = 12.0, 0.1
# Seconds of a window that a gyroscope which stands still is told by, and samples in it at least.
_STILL_WINDOW, _STILL_SAMPLES = 1.0, 20
# rad/s: rates of a gyroscope that stands still scatter by less (it trembles), and no bias is larger.
_STILL_STD, _LARGEST_BIAS = 0.02, 0.2
# Part of that scatter that the mean of the window may have, since trembling is no white noise; and rad/s besides.
_STILL_PART, _STILL_LEAST = 1 / 3, 0.001
# Standard deviations by which a rotation may differ from the matched one, and radians that are no matter at all.
_REACH, _NO_MATTER = 4.0, np.radians(1.0)
# Rotations in a row that must contradict for the gyroscope to be called wrong, and agree for it to be right again.
_PATIENCE = 5
# Rotations that the mounting is checked by, and radians below which one says nothing of it.
_MOUNT_PAIRS, _MOUNT_TURN = 12, np.radians(2.0)
# Part of the summed squares that another mounting must leave at most, of what the given one leaves.
_MOUNT_BETTER = 0.2


@dataclass(frozen=True)
class GyroscopeConfig(Settings):
    """How good a gyroscope is."""

    live: ClassVar[bool] = True

    noise_density: float = setting(
        0.002,
        "Noise of the angular velocity over the square root of the bandwidth",
        unit="rad/s/sqrt(Hz)",
        low=1e-6,
        high=1.0,
    )
    bias_walk: float = setting(
        0.0005, "Random walk of the bias per square root of a second", unit="rad/s/sqrt(s)", low=0.0, high=1.0
    )
    bias_std: float = setting(
        0.05, "Standard deviation of the bias before anything is known of it", unit="rad/s", low=0.0, high=10.0
    )
    scale_std: float = setting(0.01, "Standard deviation of the scale, as a part of it", low=0.0, high=1.0)
    time_std: float = setting(
        0.003,
        "Standard deviation of the time between the gyroscope's and the images' stamps",
        unit="s",
        low=0.0,
        high=1.0,
    )


class GyroscopeState(Enum):
    """What is known of a gyroscope."""

    UNCHECKED = "it was not compared with matched rotations yet"
    HEALTHY = "it agrees with matched rotations"
    CONTRADICTS = "it contradicts matched rotations"


@dataclass(frozen=True, eq=False)
class Turn:
    """A rotation of the camera between two times.

    Attributes:
        rotation: (3, 3) R_start_end: takes directions of the camera at the end to those of the camera at the start.
        covariance: (3, 3) of its rotation vector, about the axes of the camera at the start, rad^2.
    """

    rotation: Array
    covariance: Array

    @property
    def std(self) -> float:
        """Standard deviation about any axis, rad."""
        return float(np.sqrt(np.trace(self.covariance) / 3))

    def contradicts(self, rotation: Array, covariance: Array) -> bool:
        """Whether another rotation over the same time cannot be the same one.

        Args:
            rotation: (3, 3) as `rotation`.
            covariance: (3, 3) as `covariance`.
        """
        off = rotation_vector(rotation @ self.rotation.T)
        both = self.covariance + covariance
        return bool(np.linalg.norm(off) > _NO_MATTER and off @ np.linalg.solve(both, off) > _REACH**2)


class Gyroscope:
    """Integrates angular velocities. Samples may come from another thread than questions.

    The bias is a random walk that is measured while the gyroscope stands still, and by rotations that were found by
    matching (a Kalman filter). While what is integrated contradicts them, nothing is said of a rotation.
    """

    def __init__(self, config: GyroscopeConfig | None = None, camera_from_imu: ArrayLike | None = None) -> None:
        """Begin without samples.

        Args:
            config: how good it is.
            camera_from_imu: (3, 3) rotation R_camera_imu; None where it is set later, and nothing said before.
        """
        self.config = config or GyroscopeConfig()
        self.camera_from_imu = None if camera_from_imu is None else np.asarray(camera_from_imu, np.float64)
        self._lock = threading.Lock()
        self._samples = _Samples()
        self.bias = np.zeros(3)
        self._bias_covariance = np.eye(3) * self.config.bias_std**2
        self._bias_at: int | None = None
        self._still_at = 0
        self._agreed = self._contradicted = 0
        self._pairs: deque[tuple[Array, Array]] = deque(maxlen=_MOUNT_PAIRS)
        self._is_wrong, self._is_checked = False, False
        self._refused_at = 0

    @property
    def bias_std(self) -> float:
        """Standard deviation of the bias along any axis, rad/s."""
        return float(np.sqrt(np.trace(self._bias_covariance) / 3))

    def add(self, stamp_ns: int, rate: ArrayLike) -> None:
        """Take a sample; one that is not newer than the last, or not finite, is left out.

        Args:
            stamp_ns: of the sample.
            rate: (3,) angular velocity about the sensor's axes, rad/s.
        """
        value = np.asarray(rate, np.float64)
        if value.shape != (3,) or not np.isfinite(value).all():
            return
        with self._lock:
            if not self._samples.add(stamp_ns, value):
                return
            if stamp_ns - self._still_at >= _STILL_WINDOW * 0.5e9:
                self._still_at = stamp_ns
                self._look_whether_still(stamp_ns)

    @property
    def state(self) -> GyroscopeState:
        """What is known of it."""
        if self._is_wrong:
            return GyroscopeState.CONTRADICTS
        return GyroscopeState.HEALTHY if self._is_checked else GyroscopeState.UNCHECKED

    def turn(self, start_ns: int, end_ns: int) -> Turn | None:
        """The camera's rotation between two times; None where samples are missing, or it has not agreed with matching.

        Args:
            start_ns, end_ns: the times; the end is not before the start.
        """
        return self._integrated(start_ns, end_ns) if self._is_checked and not self._is_wrong else None

    def matched(self, start_ns: int, end_ns: int, rotation: Array, covariance: Array) -> bool | None:
        """Compare with a rotation that was found by matching, and learn the bias from it.

        Args:
            start_ns, end_ns: times of the two images.
            rotation: (3, 3) R_start_end between them.
            covariance: (3, 3) of its rotation vector, about the axes of the camera at the start.

        Returns:
            Whether the two agree; None where samples are missing.
        """
        turn, mount = self._integrated(start_ns, end_ns), self.camera_from_imu
        if turn is None or mount is None or end_ns <= start_ns:
            return None
        integrated, found = rotation_vector(turn.rotation), rotation_vector(rotation)
        if np.linalg.norm(found) > _MOUNT_TURN or np.linalg.norm(integrated) > _MOUNT_TURN:
            self._pairs.append((integrated, found))
        agrees = not turn.contradicts(rotation, covariance)
        self._agreed, self._contradicted = (self._agreed + 1, 0) if agrees else (0, self._contradicted + 1)
        if self._contradicted >= _PATIENCE:
            self._is_wrong = True
        elif self._agreed >= _PATIENCE:
            self._is_wrong, self._is_checked = False, True
        if agrees:
            # The bias turned what was integrated too far, about the axes at the end, and in the sensor's.
            seconds = (end_ns - start_ns) / 1e9
            off = mount.T @ rotation_vector(rotation.T @ turn.rotation)
            noise = mount.T @ (covariance + turn_noise(self.config, integrated, seconds)) @ mount
            self._measured(off / seconds, noise / seconds**2, end_ns)
        return agrees

    def refused(self, stamp_ns: int) -> None:
        """A pose that is good by itself was refused since it contradicts `turn`: the gyroscope may be wrong.

        Args:
            stamp_ns: of the frame, which counts once.
        """
        if stamp_ns != self._refused_at:
            self._refused_at = stamp_ns
            self._agreed, self._contradicted = 0, self._contradicted + 1
            self._is_wrong |= self._contradicted >= _PATIENCE

    def mounting(self) -> str:
        """How the axes seem to be mounted, where they are not as said; empty where they are, or nothing tells."""
        if not self._is_wrong or len(self._pairs) < _MOUNT_PAIRS or self.camera_from_imu is None:
            return ""
        integrated, found = (np.array(each) for each in zip(*self._pairs, strict=True))
        if np.linalg.svd(found)[1][1] < 3 * _MOUNT_TURN:
            return ""  # about one axis only
        left = [float(((integrated @ mount.T - found) ** 2).sum()) for mount in _MOUNTS]
        best = int(np.argmin(left))
        if left[best] > _MOUNT_BETTER * float(((integrated - found) ** 2).sum()):
            return ""
        words = []
        for name, row in zip("xyz", _MOUNTS[best] @ self.camera_from_imu, strict=True):
            axis = int(np.argmax(np.abs(row)))
            words.append(f"{name} of the camera is {'-' if row[axis] < 0 else ''}{'xyz'[axis]} of the gyroscope")
        return ", ".join(words)

    def _integrated(self, start_ns: int, end_ns: int) -> Turn | None:
        mount = self.camera_from_imu
        if end_ns < start_ns or mount is None:
            return None
        if end_ns == start_ns:
            return Turn(np.eye(3), np.eye(3) * 1e-18)
        gap = int(_LONGEST_GAP * 1e9)
        with self._lock:
            stamps, rates = self._samples.between(start_ns - gap, end_ns + gap)
            bias, bias_covariance = self.bias.copy(), self._bias_at_time(end_ns)
        if not len(stamps) or stamps[0] > start_ns + gap or stamps[-1] < end_ns - gap:
            return None
        inside = (stamps > start_ns) & (stamps < end_ns)
        times = np.concatenate([[start_ns], stamps[inside], [end_ns]])
        nearest = np.abs(stamps[np.clip(np.searchsorted(stamps, times), 0, len(stamps) - 1)] - times)
        if np.diff(times).max() > gap or nearest.max() > gap:
            return None
        seconds = (times - start_ns) / 1e9
        at = np.stack([np.interp(seconds, (stamps - start_ns) / 1e9, rates[:, k] - bias[k]) for k in range(3)], axis=1)
        steps = (at[1:] + at[:-1]) / 2 * np.diff(seconds)[:, None]
        rotation = mount @ _product(_exponentials(steps)) @ mount.T
        length = float(seconds[-1])
        covariance = turn_noise(self.config, rotation_vector(rotation), length)
        covariance += mount @ bias_covariance @ mount.T * length**2
        # Where the stamps are off, it is the rotation between two other times.
        faster = mount @ (at[-1] - at[0])
        covariance += np.outer(faster, faster) * self.config.time_std**2
        return Turn(rotation, covariance)

    def _bias_at_time(self, stamp_ns: int) -> Array:
        """Covariance of the bias, grown since it was last measured."""
        if self._bias_at is None:
            return self._bias_covariance
        since = max(stamp_ns - self._bias_at, 0) / 1e9
        return np.asarray(self._bias_covariance + np.eye(3) * self.config.bias_walk**2 * since)

    def _measured(self, off: Array, covariance: Array, stamp_ns: int) -> None:
        """A step of the Kalman filter: the bias is larger by `off`."""
        with self._lock:
            before = self._bias_at_time(stamp_ns)
            gain = before @ np.linalg.inv(before + covariance)
            self.bias = self.bias + gain @ off
            self._bias_covariance = (np.eye(3) - gain) @ before
            self._bias_at = stamp_ns

    def _look_whether_still(self, stamp_ns: int) -> None:
        """With the lock held: rates that do not scatter and are small are the bias."""
        _, recent = self._samples.between(stamp_ns - int(_STILL_WINDOW * 1e9), stamp_ns)
        if len(recent) < _STILL_SAMPLES or recent.std(axis=0).max() > _STILL_STD:
            return
        mean = recent.mean(axis=0)
        # What turns slowly and evenly looks the same: the less is known of the bias, the more that may be it.
        known = _REACH * np.sqrt(np.diag(self._bias_at_time(stamp_ns)))
        if np.abs(mean).max() > _LARGEST_BIAS or (np.abs(mean - self.bias) > np.maximum(known, 1e-4)).any():
            return
        noise = np.diag(recent.var(axis=0) * _STILL_PART**2 + _STILL_LEAST**2)
        before = self._bias_at_time(stamp_ns)
        gain = before @ np.linalg.inv(before + noise)
        self.bias = self.bias + gain @ (mean - self.bias)
        self._bias_covariance = (np.eye(3) - gain) @ before
        self._bias_at = stamp_ns


class _Samples:
    """The newest samples, in arrays that are filled and then moved up."""

    def __init__(self, capacity: int = 1 << 14) -> None:
        self._stamps, self._rates = np.zeros(capacity, np.int64), np.zeros((capacity, 3))
        self._start = self._end = 0

    @property
    def newest(self) -> int:
        """Stamp of the newest sample; 0 before the first."""
        return int(self._stamps[self._end - 1]) if self._end else 0

    def add(self, stamp_ns: int, rate: Array) -> bool:
        """Take a sample; false for one that is not newer than the newest. Far back, time began anew."""
        if self._end and stamp_ns <= self.newest:
            if stamp_ns > self.newest - _KEPT * 1e9:
                return False
            self._start = self._end = 0
        if self._end == len(self._stamps):
            self._start = max(self._start, len(self._stamps) // 2)
            kept = slice(self._start, self._end)
            self._end -= self._start
            self._stamps[: self._end], self._rates[: self._end] = self._stamps[kept].copy(), self._rates[kept].copy()
            self._start = 0
        self._stamps[self._end], self._rates[self._end] = stamp_ns, rate
        self._end += 1
        self._start += int(np.searchsorted(self._stamps[self._start : self._end], stamp_ns - int(_KEPT * 1e9)))
        return True

    def between(self, start_ns: int, end_ns: int) -> tuple[NDArray[np.int64], Array]:
        """Copies of the stamps (N,) and rates (N, 3) in a closed interval."""
        stamps = self._stamps[self._start : self._end]
        chosen = slice(int(np.searchsorted(stamps, start_ns)), int(np.searchsorted(stamps, end_ns, side="right")))
        return stamps[chosen].copy(), self._rates[self._start : self._end][chosen].copy()


def turn_noise(config: GyroscopeConfig, turned: Array, seconds: float) -> Array:
    """(3, 3) covariance of an integrated rotation without what the bias and the stamps add.

    Args:
        config: of the gyroscope.
        turned: (3,) rotation vector.
        seconds: that it took.
    """
    angle = float(np.linalg.norm(turned))
    return np.eye(3) * (config.noise_density**2 * seconds + (config.scale_std * angle) ** 2)


def _exponentials(vectors: Array) -> Array:
    """(N, 3, 3) rotations of (N, 3) rotation vectors (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    small = np.maximum(angle, 1e-9)
    result: Array = np.eye(3) + np.sin(small) / small * cross + (1 - np.cos(small)) / small**2 * (cross @ cross)
    return result


def _product(rotations: Array) -> Array:
    """(3, 3) product of (N, 3, 3), first to last, by halves."""
    while len(rotations) > 1:
        rest = rotations[len(rotations) // 2 * 2 :]
        rotations = np.concatenate([rotations[: len(rotations) // 2 * 2 : 2] @ rotations[1::2], rest])
    result: Array = rotations[0]
    return result


def _mounts() -> list[NDArray[np.float64]]:
    """All 24 rotations that take axes to axes, the identity left out."""
    found = []
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        mount = np.zeros((3, 3))
        mount[range(3), order] = signs
        if np.linalg.det(mount) > 0 and not np.array_equal(mount, np.eye(3)):
            found.append(mount)
    return found


_MOUNTS = _mounts()
