"""The camera's trajectory: poses relative to keyframes, chained, with the uncertainty of each step."""

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
            keyframe, as measured at each transfer of depths to the next keyframe; 0 if lengths are in metres.
        segment: number of breaks of the chain before. The relative pose of two segments is unknown.
    """

    pose: Array
    covariance: Array
    is_metric: bool
    scale_std: float = 0.0
    segment: int = 0

    def moved(self, step: Array, covariance: Array) -> Location:
        """Compose this location with a pose relative to it.

        Args:
            step: (4, 4) T_camera_other.
            covariance: (6, 6) of it, about this camera's axes.
        """
        rotate = self.pose[:3, :3]
        arm = rotate @ step[:3, 3]
        carry, add = np.eye(6), np.zeros((6, 6))
        carry[:3, 3:] = -skew(arm)
        add[:3, :3] = add[3:, 3:] = rotate
        total = carry @ self.covariance @ carry.T + add @ covariance @ add.T
        return Location(self.pose @ step, (total + total.T) / 2, self.is_metric, self.scale_std, self.segment)


@dataclass(frozen=True, eq=False)
class ChainLink:
    """Pose of a keyframe relative to the one that it was located by.

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
    """Relation between two segments of a trajectory, from a frame that was located in both.

    Attributes:
        old, new: the segments; the trajectory continues in the old one.
        pose: (4, 4) T_old_new, a rigid motion; its translation is in the old segment's unit.
        covariance: (6, 6) of (translation, rotation vector) of `pose` about the old segment's axes.
        scale: length of one unit of the new segment in the old segment's unit; NaN if unknown, and then `pose` holds
            only at the frame's place.
    """

    old: int
    new: int
    pose: Array
    covariance: Array
    scale: float

    @classmethod
    def of(cls, old: Location, new: Location, scale: float) -> SegmentJoin:
        """Compute the relation from the same camera's location in both.

        Args:
            old, new: its locations.
            scale: as the attribute.
        """
        factor = scale if np.isfinite(scale) else 1.0
        pose = np.eye(4)
        pose[:3, :3] = old.pose[:3, :3] @ new.pose[:3, :3].T
        pose[:3, 3] = old.pose[:3, 3] - factor * pose[:3, :3] @ new.pose[:3, 3]
        rotate = np.zeros((6, 6))
        rotate[:3, :3], rotate[3:, 3:] = factor * pose[:3, :3], pose[:3, :3]
        arm = np.eye(6)
        arm[:3, 3:] = skew(factor * pose[:3, :3] @ new.pose[:3, 3])
        total = arm @ (old.covariance + rotate @ new.covariance @ rotate.T) @ arm.T
        return cls(old.segment, new.segment, pose, (total + total.T) / 2, scale)

    def moved(self, location: Location) -> Location:
        """Transform a location of the new segment to the old one's frame; `scale` must be known."""
        pose = np.eye(4)
        pose[:3, :3] = self.pose[:3, :3] @ location.pose[:3, :3]
        pose[:3, 3] = self.pose[:3, 3] + self.scale * self.pose[:3, :3] @ location.pose[:3, 3]
        rotate = np.zeros((6, 6))
        rotate[:3, :3], rotate[3:, 3:] = self.scale * self.pose[:3, :3], self.pose[:3, :3]
        arm = np.eye(6)
        arm[:3, 3:] = -skew(pose[:3, 3] - self.pose[:3, 3])
        total = arm @ self.covariance @ arm.T + rotate @ location.covariance @ rotate.T
        return Location(pose, (total + total.T) / 2, location.is_metric, location.scale_std, self.old)


def origin(is_metric: bool, segment: int = 0) -> Location:
    """The start of a trajectory."""
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
        """Extend the path to a location."""
        if self.last is not None and self.last.segment == location.segment:
            self.length += float(np.linalg.norm(location.pose[:3, 3] - self.last.pose[:3, 3]))
        self.last = location
