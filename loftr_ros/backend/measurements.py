"""What the back end is given: keyframes with the pose from one to the next, poses between any two, landmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.two_view import UNKNOWN_VARIANCE

Array = NDArray[np.float64]

# Part of the largest variance by which rounding may bring others below zero.
_ROUNDING = 1e-9


class BackEndError(RuntimeError):
    """What the back end cannot do; says what is wrong, where, and what to do."""


class KeyframeKey(NamedTuple):
    """Names one keyframe among those of all robots.

    Attributes:
        robot: the robot's name.
        id: of the keyframe, never used twice by that robot.
    """

    robot: str
    id: int

    def __str__(self) -> str:
        return f"{self.robot}/{self.id}" if self.robot else str(self.id)


class Length(Enum):
    """What is known of the length of a measured translation."""

    METRES = "metres"
    OWN_UNIT = "own unit"
    """It is in the unit of the first keyframe's trajectory."""
    DIRECTION = "direction"
    """The translation is a unit vector."""
    NONE = "none"
    """The rotation alone is known."""


@dataclass(frozen=True, eq=False)
class PoseMeasurement:
    """A measured pose between two cameras.

    Attributes:
        pose: (4, 4) T_first_second, optical axes.
        covariance: (6, 6) of (translation, rotation vector) about the first camera's axes; relative to the unit length
            where `length` is DIRECTION.
        length: what is known of the translation.
    """

    pose: Array
    covariance: Array
    length: Length = Length.METRES

    def __post_init__(self) -> None:
        """Refuse what is no pose.

        Raises:
            BackEndError: a number is not finite, or the rotation is none.
        """
        if self.pose.shape != (4, 4) or not np.isfinite(self.pose).all() or not np.isfinite(self.covariance).all():
            raise BackEndError("a measured pose has numbers that are not finite")
        rotation = self.pose[:3, :3]
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-4 or np.linalg.det(rotation) < 0:
            raise BackEndError("a measured pose has a rotation that is none")
        variances = np.linalg.eigvalsh(self.covariance) if self.covariance.shape == (6, 6) else np.full(6, -1.0)
        if variances[0] < -_ROUNDING * max(1.0, variances[-1]):
            raise BackEndError("a measured pose has a covariance that is none: 6 x 6, and no variance below zero")

    @property
    def has_length(self) -> bool:
        """Whether the length of the translation is known in some unit."""
        return self.length in (Length.METRES, Length.OWN_UNIT)

    def with_guess(self, distance: float) -> PoseMeasurement:
        """The same with a length: the measured one, or where none is known a guess that nearly nothing weighs.

        Args:
            distance: between the two cameras, as otherwise known.
        """
        if self.has_length:
            return self
        pose, covariance = self.pose.copy(), self.covariance.copy()
        direction = self.pose[:3, 3]
        if self.length is Length.DIRECTION and direction.any():
            direction = direction / np.linalg.norm(direction)
            pose[:3, 3] = distance * direction
            covariance[:3] *= distance
            covariance[:, :3] *= distance
            covariance[:3, :3] += UNKNOWN_VARIANCE * np.outer(direction, direction)
        else:
            pose[:3, 3] = 0
            covariance[:3] = 0
            covariance[:, :3] = 0
            covariance[:3, :3] = UNKNOWN_VARIANCE * np.eye(3)
        return PoseMeasurement(pose, covariance, Length.OWN_UNIT)


@dataclass(frozen=True, eq=False)
class KeyframeMeasurement:
    """A new keyframe.

    Attributes:
        key: its name.
        stamp_ns: of its image, in nanoseconds.
        frame_id: optical frame of its camera.
        previous: the keyframe that it was located by; None for the first of a trajectory.
        link: pose in that keyframe's camera, T_previous_this; None where `previous` is.
        is_metric: whether lengths of its trajectory are in metres.
    """

    key: KeyframeKey
    stamp_ns: int
    frame_id: str
    previous: KeyframeKey | None
    link: PoseMeasurement | None
    is_metric: bool


@dataclass(frozen=True, eq=False)
class ImageMeasurement:
    """Poses of one image relative to several keyframes.

    Attributes:
        stamp_ns: of the image; that of a keyframe where it became one.
        robot: whose camera.
        poses: T_keyframe_image by the keyframe's name.
    """

    stamp_ns: int
    robot: str
    poses: dict[KeyframeKey, PoseMeasurement]


@dataclass(frozen=True, eq=False)
class LoopMeasurement:
    """Two keyframes that show one place.

    Attributes:
        older, newer: their names.
        measured: T_older_newer.
        score: how good it is, 0 to 1.
    """

    older: KeyframeKey
    newer: KeyframeKey
    measured: PoseMeasurement
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Points that a keyframe shows.

    Attributes:
        points: (N, 3) float32 in the keyframe's optical frame, in its trajectory's unit.
        std: (N,) float32 standard deviation along the keyframe's ray.
        track_id: (N,) uint32 the keyframe's cells.
    """

    points: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    std: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    track_id: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))

    def __len__(self) -> int:
        return len(self.std)

    def best(self, count: int) -> Landmarks:
        """Those whose depth is known best, relative to it; in the order of their cells."""
        known = np.flatnonzero(np.isfinite(self.points).all(axis=1) & np.isfinite(self.std) & (self.points[:, 2] > 0))
        if len(known) > count:
            known = np.sort(known[np.argsort(self.std[known] / self.points[known, 2], kind="stable")[:count]])
        return Landmarks(self.points[known], self.std[known], self.track_id[known])
