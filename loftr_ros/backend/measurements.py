"""What the back end is given: keyframes with the pose from one to the next, poses between any two, landmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.two_view import UNKNOWN_VARIANCE

Array = NDArray[np.float64]

# Part of a match's standard deviation that a landmark has in its first keyframe.
_EXACT = 0.25
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
class Sightings:
    """Landmarks that a keyframe sees, under names that outlive keyframes.

    Attributes:
        landmark: (N,) uint64 names, each once.
        rays: (N, 2) x / z and y / z.
        std: (N,) standard deviation of the rays along one axis.
    """

    landmark: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    rays: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    std: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.std)

    def with_new(self, other: Sightings) -> Sightings:
        """With those of another that are not among these."""
        new = ~np.isin(other.landmark, self.landmark)
        return Sightings(
            np.concatenate([self.landmark, other.landmark[new]]),
            np.concatenate([self.rays, other.rays[new]]),
            np.concatenate([self.std, other.std[new]]),
        )


@dataclass(frozen=True, eq=False)
class SharedLandmarks:
    """Landmarks that a keyframe shares with the one that it was located by.

    Attributes:
        seen: in the keyframe.
        born: those of them whose first keyframe is the one before, as they are there.
    """

    seen: Sightings
    born: Sightings


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
        shared: landmarks that it shares with `previous`; None where that is not known.
    """

    key: KeyframeKey
    stamp_ns: int
    frame_id: str
    previous: KeyframeKey | None
    link: PoseMeasurement | None
    is_metric: bool
    shared: SharedLandmarks | None = None


def born_in(
    keyframe_id: int, landmark: NDArray[np.uint64], rays: NDArray[np.floating], std: NDArray[np.floating]
) -> Sightings:
    """Landmarks that begin in a keyframe, as they are there: exact, since they are what the keyframe shows.

    Args:
        keyframe_id: of the front end.
        landmark: (N,) names, keyframe_id * 2^32 + cell where they begin in this keyframe.
        rays: (N, 2) in it.
        std: (N,) of the rays in the image that was matched with it.
    """
    own = landmark >> np.uint64(32) == np.uint64(keyframe_id)
    return Sightings(landmark[own], rays[own].astype(np.float32), (_EXACT * std[own]).astype(np.float32))


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


@dataclass(frozen=True, eq=False)
class UnitMeasurement:
    """What an inertial sensor tells at a keyframe of a single camera.

    Attributes:
        metres: length of the keyframe's unit.
        std: standard deviation of its logarithm.
        down: (3,) unit vector, direction of gravity about the keyframe's optical axes.
        down_std: standard deviation of that direction along one axis, radians.
    """

    metres: float
    std: float
    down: Array
    down_std: float
