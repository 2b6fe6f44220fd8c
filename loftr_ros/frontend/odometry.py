"""Where the camera is: poses relative to keyframes, chained into one trajectory, with what each step adds of doubt."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.epipolar import skew

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Location:
    """A camera's pose in the trajectory's frame: the optical axes of the first keyframe.

    Attributes:
        pose: (4, 4) T_world_camera, in metres or in the trajectory's own unit.
        covariance: (6, 6) of (translation, rotation vector) about world axes, since the first keyframe.
        is_metric: whether lengths are in metres.
        scale_std: standard deviation of the logarithm of the unit of length at this place over that at the first
            keyframe, as measured where one keyframe's depths went over to the next; 0 where lengths are in metres.
        segment: counts how often the chain was broken. Nothing is known of the pose of one segment in another.
    """

    pose: Array
    covariance: Array
    is_metric: bool
    scale_std: float = 0.0
    segment: int = 0

    def moved(self, step: Array, covariance: Array) -> Location:
        """This location and a pose relative to it.

        Args:
            step: (4, 4) T_camera_other.
            covariance: (6, 6) of it, about this camera's axes.
        """
        turn = self.pose[:3, :3]
        arm = turn @ step[:3, 3]
        carry, add = np.eye(6), np.zeros((6, 6))
        carry[:3, 3:] = -skew(arm)
        add[:3, :3] = add[3:, 3:] = turn
        total = carry @ self.covariance @ carry.T + add @ covariance @ add.T
        return Location(self.pose @ step, (total + total.T) / 2, self.is_metric, self.scale_std, self.segment)


@dataclass(frozen=True, eq=False)
class ChainLink:
    """Where a keyframe is, seen from the one that it was located by.

    Attributes:
        previous: id of that keyframe, of the same robot.
        pose: (4, 4) T_previous_this, in metres or in the trajectory's own unit.
        covariance: (6, 6) of (translation, rotation vector) about the previous keyframe's axes.
        is_metric: whether lengths are in metres.
    """

    previous: int
    pose: Array
    covariance: Array
    is_metric: bool


def origin(is_metric: bool, segment: int = 0) -> Location:
    """Where a trajectory begins."""
    return Location(np.eye(4), np.zeros((6, 6)), is_metric, segment=segment)


@dataclass
class Trajectory:
    """The path so far.

    Attributes:
        length: of the path, in the trajectory's unit.
        last: the newest location; None before the first.
    """

    length: float = 0.0
    last: Location | None = field(default=None)

    def add(self, location: Location) -> None:
        """Go on to a location."""
        if self.last is not None and self.last.segment == location.segment:
            self.length += float(np.linalg.norm(location.pose[:3, 3] - self.last.pose[:3, 3]))
        self.last = location
