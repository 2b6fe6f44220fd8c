"""Camera rotations from a gyroscope: integrated between stamps, with estimated bias and a check of the mounting."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from itertools import permutations, product
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loftr_ros.frontend.agreement import Agreement, SensorState
from loftr_ros.geometry.se3 import Array, rotation_vector
from loftr_ros.settings import Settings, setting

# Seconds of samples in memory, and the longest gap between two samples.
_KEPT, _LONGEST_GAP = 12.0, 0.1
# Seconds of the window that detects standstill, and least samples in it.
_STILL_WINDOW, _STILL_SAMPLES = 1.0, 20
# rad/s: largest scatter of the rates at standstill (from trembling), and largest possible bias.
_STILL_STD, _LARGEST_BIAS = 0.02, 0.2
# Largest part of that scatter in the mean of the window, because trembling is not white noise; and rad/s in addition.
_STILL_PART, _STILL_LEAST = 1 / 3, 0.001
# Standard deviations by which a rotation may differ from the matched one, and a difference in radians that is
# negligible.
_REACH, _NEGLIGIBLE = 4.0, np.radians(1.0)
# Consecutive rotations that must contradict to call the gyroscope wrong, and agree to trust it again.
_PATIENCE = 5
# Number of rotations used to check the mounting, and least angle of one in radians.
_MOUNT_PAIRS, _MOUNT_ROTATION = 12, np.radians(2.0)
# Largest ratio of the summed squares of another mounting to those of the given one, to prefer the other.
_MOUNT_BETTER = 0.2


@dataclass(frozen=True)
class GyroscopeConfig(Settings):
    """Noise of a gyroscope."""

    live: ClassVar[bool] = True

    noise_density: float = setting(
        0.002,
        "Noise density of the angular velocity",
        unit="rad/s/sqrt(Hz)",
        low=1e-6,
        high=1.0,
    )
    bias_walk: float = setting(0.0005, "Random walk of the bias", unit="rad/s/sqrt(s)", low=0.0, high=1.0)
    bias_std: float = setting(0.05, "Standard deviation of the bias at the start", unit="rad/s", low=0.0, high=10.0)
    scale_std: float = setting(0.01, "Standard deviation of the scale, as a fraction of it", low=0.0, high=1.0)
    time_std: float = setting(
        0.003,
        "Standard deviation of the time offset between the gyroscope's and the images' stamps",
        unit="s",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True, eq=False)
class IntegratedRotation:
    """A rotation of the camera between two times.

    Attributes:
        rotation: (3, 3) R_start_end: maps directions in the camera at the end to the camera at the start.
        covariance: (3, 3) of its rotation vector, about the axes of the camera at the start, rad^2.
    """

    rotation: Array
    covariance: Array

    @property
    def std(self) -> float:
        """Standard deviation about any axis, rad."""
        return float(np.sqrt(np.trace(self.covariance) / 3))

    def contradicts(self, rotation: Array, covariance: Array) -> bool:
        """Whether another rotation over the same time is incompatible.

        Args:
            rotation: (3, 3) as `rotation`.
            covariance: (3, 3) as `covariance`.
        """
        off = rotation_vector(rotation @ self.rotation.T)
        both = self.covariance + covariance
        return bool(np.linalg.norm(off) > _NEGLIGIBLE and off @ np.linalg.solve(both, off) > _REACH**2)


class Gyroscope:
    """Integrates angular velocities. Samples may come from another thread than queries.

    The bias is a random walk, measured at standstill and by matched rotations (a Kalman filter). While the integrated
    rotations contradict the matched ones, no rotation is given.
    """

    def __init__(self, config: GyroscopeConfig | None = None, camera_from_imu: ArrayLike | None = None) -> None:
        """Begin without samples.

        Args:
            config: noise model.
            camera_from_imu: (3, 3) rotation R_camera_imu; None if it is set later, and no rotation is given before.
        """
        self.config = config or GyroscopeConfig()
        self.camera_from_imu = None if camera_from_imu is None else np.asarray(camera_from_imu, np.float64)
        self._lock = threading.Lock()
        self._samples = _Samples()
        self.bias = np.zeros(3)
        self._bias_covariance = np.eye(3) * self.config.bias_std**2
        self._bias_at: int | None = None
        self._still_at = 0
        self.agreement = Agreement(_PATIENCE, _PATIENCE)
        self._pairs: deque[tuple[Array, Array]] = deque(maxlen=_MOUNT_PAIRS)
        self._mounting: str | None = None  # not looked for since the last pair

    @property
    def bias_std(self) -> float:
        """Standard deviation of the bias along any axis, rad/s."""
        return float(np.sqrt(np.trace(self._bias_covariance) / 3))

    def add(self, stamp_ns: int, rate: ArrayLike) -> None:
        """Add a sample; one that is not newer than the last, or not finite, is ignored.

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
                self._detect_standstill(stamp_ns)

    @property
    def state(self) -> SensorState:
        """Current state."""
        return self.agreement.state

    def rotation_between(self, start_ns: int, end_ns: int) -> IntegratedRotation | None:
        """The camera's rotation between two times; None if samples are missing, or it has not agreed with matching.

        Args:
            start_ns, end_ns: the times; the end is not before the start.
        """
        return self._integrated(start_ns, end_ns) if self.agreement.is_healthy else None

    def matched(self, start_ns: int, end_ns: int, rotation: Array, covariance: Array) -> bool | None:
        """Compare with a matched rotation, and estimate the bias from it.

        Args:
            start_ns, end_ns: times of the two images.
            rotation: (3, 3) R_start_end between them.
            covariance: (3, 3) of its rotation vector, about the axes of the camera at the start.

        Returns:
            Whether the two agree; None if samples are missing.
        """
        rotated, mount = self._integrated(start_ns, end_ns), self.camera_from_imu
        if rotated is None or mount is None or end_ns <= start_ns:
            return None
        integrated, found = rotation_vector(rotated.rotation), rotation_vector(rotation)
        if np.linalg.norm(found) > _MOUNT_ROTATION or np.linalg.norm(integrated) > _MOUNT_ROTATION:
            self._pairs.append((integrated, found))
            self._mounting = None
        agrees = not rotated.contradicts(rotation, covariance)
        self.agreement.count(agrees)
        if agrees:
            # The bias adds this rotation, about the axes at the end, and in the sensor's.
            seconds = (end_ns - start_ns) / 1e9
            off = mount.T @ rotation_vector(rotation.T @ rotated.rotation)
            noise = mount.T @ (covariance + rotation_noise(self.config, integrated, seconds)) @ mount
            with self._lock:
                self._measure_bias(off / seconds, noise / seconds**2, end_ns)
        return agrees

    def mounting(self) -> str:
        """The apparent mounting of the axes if it differs from the given one; empty if it does not, or is
        undetermined.
        """
        if self.state is not SensorState.CONTRADICTS or len(self._pairs) < _MOUNT_PAIRS or self.camera_from_imu is None:
            return ""
        if self._mounting is None:
            self._mounting = self._find_mounting(self.camera_from_imu)
        return self._mounting

    def _find_mounting(self, camera_from_imu: Array) -> str:
        integrated, found = (np.array(each) for each in zip(*self._pairs, strict=True))
        return seeming_mounting(integrated, found, camera_from_imu, 3 * _MOUNT_ROTATION, "the gyroscope")

    def _integrated(self, start_ns: int, end_ns: int) -> IntegratedRotation | None:
        mount = self.camera_from_imu
        if end_ns < start_ns or mount is None:
            return None
        if end_ns == start_ns:
            return IntegratedRotation(np.eye(3), np.eye(3) * 1e-18)
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
        covariance = rotation_noise(self.config, rotation_vector(rotation), length)
        covariance += mount @ bias_covariance @ mount.T * length**2
        # A stamp error makes it the rotation between two other times.
        faster = mount @ (at[-1] - at[0])
        covariance += np.outer(faster, faster) * self.config.time_std**2
        return IntegratedRotation(rotation, covariance)

    def _bias_at_time(self, stamp_ns: int) -> Array:
        """Covariance of the bias, grown since its last measurement."""
        if self._bias_at is None:
            return self._bias_covariance
        since = max(stamp_ns - self._bias_at, 0) / 1e9
        return np.asarray(self._bias_covariance + np.eye(3) * self.config.bias_walk**2 * since)

    def _measure_bias(self, off: Array, covariance: Array, stamp_ns: int) -> None:
        """Kalman update with the lock held: the bias is larger by `off`."""
        before = self._bias_at_time(stamp_ns)
        gain = before @ np.linalg.inv(before + covariance)
        self.bias = self.bias + gain @ off
        self._bias_covariance = (np.eye(3) - gain) @ before
        self._bias_at = stamp_ns

    def _detect_standstill(self, stamp_ns: int) -> None:
        """With the lock held: small rates without scatter are the bias."""
        _, recent = self._samples.between(stamp_ns - int(_STILL_WINDOW * 1e9), stamp_ns)
        if len(recent) < _STILL_SAMPLES or recent.std(axis=0).max() > _STILL_STD:
            return
        mean = recent.mean(axis=0)
        # A slow, even rotation looks the same: the less is known of the bias, the larger the rates that may be it.
        known = _REACH * np.sqrt(np.diag(self._bias_at_time(stamp_ns)))
        if np.abs(mean).max() > _LARGEST_BIAS or (np.abs(mean - self.bias) > np.maximum(known, 1e-4)).any():
            return
        noise = np.diag(recent.var(axis=0) * _STILL_PART**2 + _STILL_LEAST**2)
        self._measure_bias(mean - self.bias, noise, stamp_ns)


class _Samples:
    """The newest samples, in arrays that are filled and then shifted."""

    def __init__(self, capacity: int = 1 << 14) -> None:
        self._stamps, self._rates = np.zeros(capacity, np.int64), np.zeros((capacity, 3))
        self._start = self._end = 0

    @property
    def newest(self) -> int:
        """Stamp of the newest sample; 0 before the first."""
        return int(self._stamps[self._end - 1]) if self._end else 0

    def add(self, stamp_ns: int, rate: Array) -> bool:
        """Add a sample; false for one that is not newer than the newest. A large step back restarts."""
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


def rotation_noise(config: GyroscopeConfig, vector: Array, seconds: float) -> Array:
    """(3, 3) covariance of an integrated rotation, without the parts of bias and stamps.

    Args:
        config: of the gyroscope.
        vector: (3,) rotation vector.
        seconds: duration.
    """
    angle = float(np.linalg.norm(vector))
    return np.eye(3) * (config.noise_density**2 * seconds + (config.scale_std * angle) ** 2)


def seeming_mounting(given: Array, found: Array, camera_from_sensor: Array, spread: float, sensor: str) -> str:
    """Which axes of a sensor seem to be which of the camera's, in words; empty if the given ones are right or it is
    undetermined.

    Args:
        given: (N, 3) vectors of the sensor, about the camera's axes by the given mounting.
        found: (N, 3) the same by matching.
        camera_from_sensor: (3, 3) the given mounting.
        spread: least second singular value of `found`: vectors along one line tell nothing.
        sensor: its name.
    """
    if np.linalg.svd(found)[1][1] < spread:
        return ""
    left = [float(((given @ mount.T - found) ** 2).sum()) for mount in _MOUNTS]
    best = int(np.argmin(left))
    if left[best] > _MOUNT_BETTER * float(((given - found) ** 2).sum()):
        return ""
    words = []
    for name, row in zip("xyz", _MOUNTS[best] @ camera_from_sensor, strict=True):
        axis = int(np.argmax(np.abs(row)))
        words.append(f"{name} of the camera is {'-' if row[axis] < 0 else ''}{'xyz'[axis]} of {sensor}")
    return ", ".join(words)


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
    """(3, 3) product of (N, 3, 3), first to last, by repeated halving."""
    while len(rotations) > 1:
        rest = rotations[len(rotations) // 2 * 2 :]
        rotations = np.concatenate([rotations[: len(rotations) // 2 * 2 : 2] @ rotations[1::2], rest])
    result: Array = rotations[0]
    return result


def _mounts() -> list[NDArray[np.float64]]:
    """All 24 rotations that map axes to axes, without the identity."""
    found = []
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        mount = np.zeros((3, 3))
        mount[range(3), order] = signs
        if np.linalg.det(mount) > 0 and not np.array_equal(mount, np.eye(3)):
            found.append(mount)
    return found


_MOUNTS = _mounts()
