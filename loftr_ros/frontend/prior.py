"""Prediction of the camera's pose by constant velocity, with the uncertainty from accelerations."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.gyroscope import IntegratedRotation
from loftr_ros.frontend.odometry import Location
from loftr_ros.frontend.wheel_odometry import OdometryMotion
from loftr_ros.geometry.se3 import rotation_matrix, rotation_vector

Array = NDArray[np.float64]

# Seconds after which there is no prediction.
_LONGEST = 1.0
# Least seconds between two frames for a prediction, because stamps of a burst are unreliable.
_SHORTEST = 0.02
# Standard deviations of accelerations: m/s^2 (or a single camera's own units, in which a typical depth is one), and
# rad/s^2, as of a hand-held camera.
_ACCELERATION, _OWN_ACCELERATION, _ANGULAR_ACCELERATION = 5.0, 2.5, 10.0
# Relative uncertainty of a measured velocity, and that of a camera that has moved smoothly.
_VELOCITY_PART, _SMOOTH_VELOCITY_PART = 0.3, 0.15
# Angular accelerations that tell whether a camera moves smoothly, the factor on their root mean square, and the least
# result in rad/s^2.
_SMOOTH_FRAMES, _SMOOTH_FACTOR, _LEAST_ANGULAR_ACCELERATION = 10, 3.0, 1.0
# Located frames whose locations are remembered.
_REMEMBERED = 64
# Possible speed of a camera of unknown velocity: m/s, own units/s, and rad/s.
_SPEED, _OWN_SPEED, _ANGULAR_SPEED = 1.5, 0.7, 1.0
# Standard deviations within which a pose agrees with the prediction.
_REACH = 3.0
# Largest tolerance of an informative prediction: radians, and a part of the scene's depth.
_MAX_ROTATION, _MAX_DISTANCE = 0.6, 0.4


@dataclass(frozen=True, eq=False)
class Expected:
    """Predicted pose of a camera.

    Attributes:
        pose: (4, 4) T_world_camera in its segment's frame.
        position_std: standard deviation of the position along any axis, in the trajectory's unit.
        rotation_std: of the rotation about any axis, rad.
        segment: of the trajectory.
    """

    pose: Array
    position_std: float
    rotation_std: float
    segment: int

    def is_informative(self, depth: float) -> bool:
        """Whether the prediction is so precise that a wrong pose would not agree by chance.

        Args:
            depth: typical depth of the scene, in the trajectory's unit.
        """
        return _REACH * self.rotation_std <= _MAX_ROTATION and _REACH * self.position_std <= _MAX_DISTANCE * depth

    def agrees(self, location: Location, depth: float = 1.0) -> bool:
        """Whether a location agrees with an informative prediction.

        Args:
            location: of the camera.
            depth: as in `is_informative`.
        """
        if location.segment != self.segment or not self.is_informative(depth):
            return False
        off = float(np.linalg.norm(location.pose[:3, 3] - self.pose[:3, 3]))
        angle = float(np.linalg.norm(rotation_vector(self.pose[:3, :3].T @ location.pose[:3, :3])))
        return off <= _REACH * self.position_std and angle <= _REACH * self.rotation_std


class ConstantVelocity:
    """Predicts from the motion between the last two located frames."""

    def __init__(self) -> None:
        self._last: tuple[int, Location] | None = None
        self._located: dict[int, Location] = {}  # by stamp, oldest first
        self._velocity: Array | None = None
        self._angular_velocity: Array = np.zeros(3)
        self._accelerations: deque[float] = deque(maxlen=_SMOOTH_FRAMES)  # angular ones, rad/s^2

    def reset(self) -> None:
        """Forget the motion."""
        self._last = self._velocity = None
        self._located.clear()
        self._accelerations.clear()

    @property
    def angular_acceleration(self) -> float:
        """Standard deviation of the angular acceleration, rad/s^2: as of a hand-held camera, less if it moves smoothly.

        A vehicle hardly accelerates about any axis, so that its pose is known for longer after frames that were lost.
        """
        if len(self._accelerations) < _SMOOTH_FRAMES:
            return _ANGULAR_ACCELERATION
        usual = _SMOOTH_FACTOR * float(np.sqrt(np.mean(np.square(self._accelerations))))
        return min(max(usual, _LEAST_ANGULAR_ACCELERATION), _ANGULAR_ACCELERATION)

    @property
    def last(self) -> tuple[int, Location] | None:
        """Stamp and location of the last located frame; None after `reset`."""
        return self._last

    @property
    def has_velocity(self) -> bool:
        """Whether the last two frames were located shortly after each other."""
        return self._velocity is not None

    def add(self, stamp_ns: int, location: Location) -> None:
        """Add the location of a frame.

        Args:
            stamp_ns: of the frame.
            location: of the camera.
        """
        before, self._last = self._last, (stamp_ns, location)
        self._located[stamp_ns] = location
        if len(self._located) > _REMEMBERED:
            del self._located[next(iter(self._located))]
        had_velocity, self._velocity = self._velocity is not None, None
        if before is None or before[1].segment != location.segment:
            self._accelerations.clear()
            return
        seconds = (stamp_ns - before[0]) / 1e9
        if not 0 < seconds <= _LONGEST:
            self._accelerations.clear()
            return
        seconds = max(seconds, _SHORTEST)
        self._velocity = (location.pose[:3, 3] - before[1].pose[:3, 3]) / seconds
        rotated = location.pose[:3, :3] @ before[1].pose[:3, :3].T
        angular_velocity = rotation_vector(rotated) / seconds
        if had_velocity:
            self._accelerations.append(float(np.linalg.norm(angular_velocity - self._angular_velocity)) / seconds)
        self._angular_velocity = angular_velocity

    def expected(
        self, stamp_ns: int, rotated: IntegratedRotation | None = None, moved: OdometryMotion | None = None
    ) -> Expected | None:
        """Predict the pose at a time; None if nothing is known, or for too long. That of a located frame is known.

        Args:
            stamp_ns: of the frame.
            rotated: rotation since the last located frame, by a gyroscope; None without one.
            moved: motion since then, by another odometry; its length is used in a metric trajectory only.
        """
        if self._last is None:
            return None
        last_ns, last = self._last
        if (known := self._located.get(stamp_ns)) is not None:
            position_std, rotation_std = (
                float(np.sqrt(np.trace(part) / 3)) for part in (known.covariance[:3, :3], known.covariance[3:, 3:])
            )
            return Expected(known.pose, position_std + 0.005, rotation_std + 0.005, known.segment)
        seconds = (stamp_ns - last_ns) / 1e9
        if not 0 < seconds <= _LONGEST:
            return None
        seconds = max(seconds, _SHORTEST)
        acceleration = _ACCELERATION if last.is_metric else _OWN_ACCELERATION
        turning = self.angular_acceleration
        part = _VELOCITY_PART if turning == _ANGULAR_ACCELERATION else _SMOOTH_VELOCITY_PART
        position_std, rotation_std = acceleration * seconds**2 / 2 + 0.005, turning * seconds**2 / 2 + 0.005
        pose = last.pose.copy()
        if self._velocity is None:
            position_std += (_SPEED if last.is_metric else _OWN_SPEED) * seconds
            rotation_std += _ANGULAR_SPEED * seconds
        else:
            pose[:3, 3] += self._velocity * seconds
            pose[:3, :3] = rotation_matrix(self._angular_velocity * seconds) @ pose[:3, :3]
            position_std += part * float(np.linalg.norm(self._velocity)) * seconds
            rotation_std += part * float(np.linalg.norm(self._angular_velocity)) * seconds
        if moved is not None and last.is_metric:
            pose, position_std, rotation_std = last.pose @ moved.pose, moved.step_std + 0.005, moved.turn_std + 0.002
        elif moved is not None and rotated is None:
            rotated = moved.rotated
        if rotated is not None:
            pose[:3, :3] = last.pose[:3, :3] @ rotated.rotation
            rotation_std = rotated.std + 0.002
        return Expected(pose, position_std, rotation_std, last.segment)
