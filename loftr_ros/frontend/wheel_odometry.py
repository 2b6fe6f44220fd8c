"""Motions of the camera from another odometry, such as wheels: interpolated between stamps, and checked by matching."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loftr_ros.frontend.agreement import Agreement, SensorState
from loftr_ros.frontend.gyroscope import IntegratedRotation, seeming_mounting
from loftr_ros.geometry.se3 import Array, between, inverse, rotation_matrix, rotation_vector

# Seconds of poses in memory, longest gap between two, and longest time beyond the newest one.
_KEPT, _LONGEST_GAP, _AHEAD = 12.0, 0.25, 0.1
# m/s and rad/s beyond which two poses are a jump: a reset, or a correction by a map.
_FASTEST, _TURNING = 25.0, 15.0
# Standard deviations by which motions may differ, and differences that are negligible: radians and metres.
_REACH, _NEGLIGIBLE_TURN, _NEGLIGIBLE_STEP = 4.0, np.radians(1.0), 0.02
# Motions from which agreement counts: a stuck odometry agrees with a camera that stands still.
_LEAST_TURN, _LEAST_STEP = np.radians(1.0), 0.02
# Consecutive motions that must agree to use it, and contradict to call it wrong.
_AGREE, _CONTRADICT = 5, 3
# Motions used to check the axes; least angle and length of one.
_PAIRS, _PAIR_TURN, _PAIR_STEP = 12, np.radians(2.0), 0.03


@dataclass(frozen=True)
class WheelConfig:
    """Accuracy of another odometry.

    Attributes:
        drift: standard deviation of its position, per distance travelled.
        turn_drift: of its rotation, per angle turned.
        time_std: of the time between its stamps and the images', s.
    """

    drift: float = 0.05
    turn_drift: float = 0.05
    time_std: float = 0.01


@dataclass(frozen=True, eq=False)
class OdometryMotion:
    """A motion of the camera between two times.

    Attributes:
        pose: (4, 4) T_start_end, metres.
        step_std: standard deviation of the position along any axis, m.
        turn_std: of the rotation about any axis, rad.
    """

    pose: Array
    step_std: float
    turn_std: float

    @property
    def rotated(self) -> IntegratedRotation:
        """The rotation alone."""
        return IntegratedRotation(self.pose[:3, :3], np.eye(3) * self.turn_std**2)

    @property
    def is_informative(self) -> bool:
        """Whether anything moved."""
        turn = float(np.linalg.norm(rotation_vector(self.pose[:3, :3])))
        return turn > _LEAST_TURN or float(np.linalg.norm(self.pose[:3, 3])) > _LEAST_STEP

    def contradicts(self, pose: Array, covariance: Array, is_metric: bool) -> bool:
        """Whether another motion over the same time is incompatible.

        Args:
            pose: (4, 4) T_start_end.
            covariance: (6, 6) of (translation, rotation vector).
            is_metric: whether its length is in metres; if not, only the rotation is compared.
        """
        turn = float(np.linalg.norm(rotation_vector(pose[:3, :3] @ self.pose[:3, :3].T)))
        turn_std = float(np.hypot(self.turn_std, np.sqrt(np.trace(covariance[3:, 3:]) / 3)))
        if turn > max(_NEGLIGIBLE_TURN, _REACH * turn_std):
            return True
        step = float(np.linalg.norm(pose[:3, 3] - self.pose[:3, 3]))
        step_std = float(np.hypot(self.step_std, np.sqrt(np.trace(covariance[:3, :3]) / 3)))
        return is_metric and step > max(_NEGLIGIBLE_STEP, _REACH * step_std)


class WheelOdometry:
    """Another odometry's poses. They may be added by another thread than motions are asked for.

    No motion is given before it has agreed with matched motions while it moved, and while it contradicts them.
    """

    def __init__(self, config: WheelConfig | None = None, base_from_camera: ArrayLike | None = None) -> None:
        """Begin without poses.

        Args:
            config: accuracy.
            base_from_camera: (4, 4) pose of the camera in the frame whose poses are added; None if it is set later.
        """
        self.config = config or WheelConfig()
        self.base_from_camera = None if base_from_camera is None else np.asarray(base_from_camera, np.float64)
        self.jumps = 0
        self._lock = threading.Lock()
        self._stamps: deque[int] = deque()
        self._poses: deque[Array] = deque()
        self.agreement = Agreement(_AGREE, _CONTRADICT)
        self._pairs: deque[tuple[Array, Array]] = deque(maxlen=_PAIRS)

    def add(self, stamp_ns: int, pose: ArrayLike) -> None:
        """Add a pose; one that is not newer than the last, or not finite, is ignored. A jump forgets older ones.

        Args:
            stamp_ns: of the pose.
            pose: (4, 4) T_odom_base, metres.
        """
        value = np.asarray(pose, np.float64)
        if value.shape != (4, 4) or not np.isfinite(value).all():
            return
        with self._lock:
            if self._stamps:
                seconds = (stamp_ns - self._stamps[-1]) / 1e9
                if -1.0 < seconds <= 0:
                    return
                step = between(self._poses[-1], value)
                turn = float(np.linalg.norm(rotation_vector(step[:3, :3])))
                time = max(seconds, 0.01)
                is_jump = float(np.linalg.norm(step[:3, 3])) > _FASTEST * time or turn > _TURNING * time
                if seconds < 0 or is_jump:
                    self.jumps += 1
                    self._stamps.clear()
                    self._poses.clear()
            self._stamps.append(stamp_ns)
            self._poses.append(value)
            while self._stamps[0] < stamp_ns - _KEPT * 1e9:
                self._stamps.popleft()
                self._poses.popleft()

    @property
    def state(self) -> SensorState:
        """Current state."""
        return self.agreement.state

    def motion_between(self, start_ns: int, end_ns: int) -> OdometryMotion | None:
        """The camera's motion between two times; None if poses are missing, or it has not agreed with matching.

        Args:
            start_ns, end_ns: the times; the end is not before the start.
        """
        return self._between(start_ns, end_ns) if self.agreement.is_healthy else None

    def matched(self, start_ns: int, end_ns: int, pose: Array, covariance: Array, is_metric: bool) -> bool | None:
        """Compare with a matched motion.

        Args:
            start_ns, end_ns: times of the two images.
            pose, covariance, is_metric: see `OdometryMotion.contradicts`.

        Returns:
            Whether the two agree; None if poses are missing.
        """
        motion = self._between(start_ns, end_ns)
        if motion is None or end_ns <= start_ns:
            return None
        given, found = rotation_vector(motion.pose[:3, :3]), rotation_vector(pose[:3, :3])
        if max(np.linalg.norm(given), np.linalg.norm(found)) > _PAIR_TURN:
            self._pairs.append((given, found))
        # Directions count like rotations of some degrees.
        steps = float(np.linalg.norm(motion.pose[:3, 3])), float(np.linalg.norm(pose[:3, 3]))
        if min(steps) > (_PAIR_STEP if is_metric else 1e-6) and steps[0] > _PAIR_STEP:
            self._pairs.append((_PAIR_TURN * motion.pose[:3, 3] / steps[0], _PAIR_TURN * pose[:3, 3] / steps[1]))
        agrees = not motion.contradicts(pose, covariance, is_metric)
        if not agrees or motion.is_informative:
            self.agreement.count(agrees)
        return agrees

    def mounting(self) -> str:
        """The axes that seem to be swapped, in words; empty if none do, or it is undetermined."""
        if not self.agreement.is_contradicted or len(self._pairs) < _PAIRS or self.base_from_camera is None:
            return ""
        given, found = (np.array(each) for each in zip(*self._pairs, strict=True))
        return seeming_mounting(given, found, self.base_from_camera[:3, :3].T, _PAIR_TURN, "the odometry's base")

    def _between(self, start_ns: int, end_ns: int) -> OdometryMotion | None:
        mount = self.base_from_camera
        if mount is None or end_ns < start_ns:
            return None
        with self._lock:
            stamps, poses = list(self._stamps), list(self._poses)
        start, end = _at(stamps, poses, start_ns), _at(stamps, poses, end_ns)
        if start is None or end is None:
            return None
        first = bisect_right(stamps, start_ns)
        inside = poses[first : bisect_left(stamps, end_ns)]
        if any(
            b - a > _LONGEST_GAP * 1e9 for a, b in zip(stamps[first - 1 :], stamps[first:], strict=False) if a < end_ns
        ):
            return None
        # Along the path, so that a turn to and fro does not look precise.
        path = [start, *inside, end]
        steps = [between(a, b) for a, b in itertools.pairwise(path)]
        way = sum(float(np.linalg.norm(step[:3, 3])) for step in steps)
        turn = sum(float(np.linalg.norm(rotation_vector(step[:3, :3]))) for step in steps)
        seconds = max((end_ns - start_ns) / 1e9, 1e-3)
        config = self.config
        late = np.sqrt(2) * config.time_std / seconds
        # A turn moves a camera that is off the base's axis, and turns the direction of its way.
        arm = float(np.linalg.norm(mount[:3, 3])) + way / 2
        turn_std = float(np.hypot(config.turn_drift * turn, min(late, 1.0) * turn)) + 0.002
        step_std = float(np.hypot(config.drift * way, min(late, 1.0) * way)) + arm * turn_std + 0.002
        return OdometryMotion(inverse(mount) @ between(start, end) @ mount, step_std, turn_std)


def _at(stamps: list[int], poses: list[NDArray[np.float64]], stamp_ns: int) -> Array | None:
    """The pose at a time, between its neighbours or a little beyond the newest; None if there is none."""
    if len(stamps) < 2 or stamp_ns < stamps[0] or stamp_ns > stamps[-1] + _AHEAD * 1e9:
        return None
    after = min(max(bisect_left(stamps, stamp_ns), 1), len(stamps) - 1)
    first, second = stamps[after - 1], stamps[after]
    if second - first > _LONGEST_GAP * 1e9:
        return None
    part = (stamp_ns - first) / (second - first)
    step = between(poses[after - 1], poses[after])
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = rotation_matrix(part * rotation_vector(step[:3, :3])), part * step[:3, 3]
    return np.asarray(poses[after - 1] @ moved)
