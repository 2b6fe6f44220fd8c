"""Where the camera is: poses relative to keyframes, chained into one trajectory, with what each step adds of doubt."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import skew

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


@dataclass(frozen=True, eq=False)
class SegmentJoin:
    """How two segments of a trajectory are related, by a frame that was found in both.

    Attributes:
        old, new: the segments; the trajectory goes on in the old one.
        pose: (4, 4) T_old_new, a rigid motion; its translation is in the old segment's unit.
        covariance: (6, 6) of (translation, rotation vector) of `pose` about the old segment's axes.
        scale: length in the old segment's unit of what has length one in the new one's; NaN where it is not known, and
            then `pose` holds at the frame's place only.
    """

    old: int
    new: int
    pose: Array
    covariance: Array
    scale: float

    @classmethod
    def of(cls, old: Location, new: Location, scale: float) -> SegmentJoin:
        """By the same camera's place in both.

        Args:
            old, new: its locations.
            scale: as the attribute.
        """
        factor = scale if np.isfinite(scale) else 1.0
        pose = np.eye(4)
        pose[:3, :3] = old.pose[:3, :3] @ new.pose[:3, :3].T
        pose[:3, 3] = old.pose[:3, 3] - factor * pose[:3, :3] @ new.pose[:3, 3]
        turn = np.zeros((6, 6))
        turn[:3, :3], turn[3:, 3:] = factor * pose[:3, :3], pose[:3, :3]
        arm = np.eye(6)
        arm[:3, 3:] = skew(factor * pose[:3, :3] @ new.pose[:3, 3])
        total = arm @ (old.covariance + turn @ new.covariance @ turn.T) @ arm.T
        return cls(old.segment, new.segment, pose, (total + total.T) / 2, scale)

    def moved(self, location: Location) -> Location:
        """A location of the new segment in the old one's frame; `scale` must be known."""
        pose = np.eye(4)
        pose[:3, :3] = self.pose[:3, :3] @ location.pose[:3, :3]
        pose[:3, 3] = self.pose[:3, 3] + self.scale * self.pose[:3, :3] @ location.pose[:3, 3]
        turn = np.zeros((6, 6))
        turn[:3, :3], turn[3:, 3:] = self.scale * self.pose[:3, :3], self.pose[:3, :3]
        arm = np.eye(6)
        arm[:3, 3:] = -skew(pose[:3, 3] - self.pose[:3, 3])
        total = arm @ self.covariance @ arm.T + turn @ location.covariance @ turn.T
        return Location(pose, (total + total.T) / 2, location.is_metric, location.scale_std, self.old)


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
