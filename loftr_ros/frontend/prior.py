"""Where the camera is expected to be by how it has moved: constant velocity, and what accelerations leave in doubt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.gyroscope import Turn
from loftr_ros.frontend.odometry import Location
from loftr_ros.geometry.se3 import rotation_matrix, rotation_vector

Array = NDArray[np.float64]

# Seconds after which nothing is expected any more.
_LONGEST = 1.0
# Seconds between two frames at least, as far as expectations go: stamps of a burst say nothing.
_SHORTEST = 0.02
# Standard deviations of accelerations: m/s^2 (or units of a single camera's own, in which a typical depth is one),
# and rad/s^2, as of a camera in a hand.
_ACCELERATION, _OWN_ACCELERATION, _TURNING = 5.0, 2.5, 10.0
# Part of a velocity that may be wrong, since it was measured with noise.
_VELOCITY_PART = 0.3
# Speed that a camera may have whose velocity is not known: m/s, own units/s, and rad/s.
_SPEED, _OWN_SPEED, _TURN_RATE = 1.5, 0.7, 1.0
# Standard deviations at which an expectation still agrees.
_REACH = 3.0
# What an expectation allows for at most, to say anything: radians, and a part of the scene's depth.
_MOST_TURN, _MOST_WAY = 0.6, 0.4


@dataclass(frozen=True, eq=False)
class Expected:
    """Where a camera is expected.

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

    def is_telling(self, depth: float) -> bool:
        """Whether so little is left open that a wrong pose would be a surprise.

        Args:
            depth: typical depth of the scene, in the trajectory's unit.
        """
        return _REACH * self.rotation_std <= _MOST_TURN and _REACH * self.position_std <= _MOST_WAY * depth

    def agrees(self, location: Location, depth: float = 1.0) -> bool:
        """Whether a location speaks for itself by being where it is expected; not where nearly everything would be.

        Args:
            location: of the camera.
            depth: as in `is_telling`.
        """
        if location.segment != self.segment or not self.is_telling(depth):
            return False
        off = float(np.linalg.norm(location.pose[:3, 3] - self.pose[:3, 3]))
        turn = float(np.linalg.norm(rotation_vector(self.pose[:3, :3].T @ location.pose[:3, :3])))
        return off <= _REACH * self.position_std and turn <= _REACH * self.rotation_std


class ConstantVelocity:
    """Goes on as the camera has moved between the last two frames that were located."""

    def __init__(self) -> None:
        self._last: tuple[int, Location] | None = None
        self._velocity: Array | None = None
        self._turn_rate: Array = np.zeros(3)

    def reset(self) -> None:
        """Expect nothing."""
        self._last = self._velocity = None

    @property
    def last(self) -> tuple[int, Location] | None:
        """Stamp and location of the last frame that was located; None after `reset`."""
        return self._last

    def add(self, stamp_ns: int, location: Location) -> None:
        """The camera was located.

        Args:
            stamp_ns: of the frame.
            location: of the camera.
        """
        before, self._last = self._last, (stamp_ns, location)
        self._velocity = None
        if before is None or before[1].segment != location.segment:
            return
        seconds = (stamp_ns - before[0]) / 1e9
        if not 0 < seconds <= _LONGEST:
            return
        seconds = max(seconds, _SHORTEST)
        self._velocity = (location.pose[:3, 3] - before[1].pose[:3, 3]) / seconds
        turned = location.pose[:3, :3] @ before[1].pose[:3, :3].T
        self._turn_rate = rotation_vector(turned) / seconds

    def expected(self, stamp_ns: int, turn: Turn | None = None) -> Expected | None:
        """Where the camera is expected at a time; None where nothing is known, or for too long.

        Args:
            stamp_ns: of the frame.
            turn: since the last frame that was located, by a gyroscope; None to go on as before.
        """
        if self._last is None:
            return None
        last_ns, last = self._last
        seconds = (stamp_ns - last_ns) / 1e9
        if not 0 < seconds <= _LONGEST:
            return None
        seconds = max(seconds, _SHORTEST)
        acceleration = _ACCELERATION if last.is_metric else _OWN_ACCELERATION
        position_std, rotation_std = acceleration * seconds**2 / 2 + 0.005, _TURNING * seconds**2 / 2 + 0.005
        pose = last.pose.copy()
        if self._velocity is None:
            position_std += (_SPEED if last.is_metric else _OWN_SPEED) * seconds
            rotation_std += _TURN_RATE * seconds
        else:
            pose[:3, 3] += self._velocity * seconds
            pose[:3, :3] = rotation_matrix(self._turn_rate * seconds) @ pose[:3, :3]
            position_std += _VELOCITY_PART * float(np.linalg.norm(self._velocity)) * seconds
            rotation_std += _VELOCITY_PART * float(np.linalg.norm(self._turn_rate)) * seconds
        if turn is not None:
            pose[:3, :3] = last.pose[:3, :3] @ turn.rotation
            rotation_std = turn.std + 0.002
        return Expected(pose, position_std, rotation_std, last.segment)
