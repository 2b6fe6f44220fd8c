"""Where tracking since known loops expects an image, and which archived keyframes show the same as it.

Similar descriptors belong to views that share most of what they see. Once loops are known, tracking says which older
keyframes see the same things, however little the images share, and whether a match is where it should be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.odometry import Location
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.se3 import between, inverse, rotation_degrees
from loftr_ros.geometry.two_view import RelativePose
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName

Array = NDArray[np.float64]

# Loops that are remembered, and the keyframes for which a loop says where the camera is: tracking drifts.
_KNOWN, _NEAR = 20, 10
# Keyframes recorded before and after a loop's keyframe that its place is compared with.
_REACH = 30
# Tolerances between a match and what a loop expects: degrees; of positions an absolute part, in metres or in the
# trajectory's own unit (a typical depth is one), and a part of the steps from the loop to the match.
_ROTATION, _POSITION_LEAST, _POSITION_PART = 3.0, 0.1, 0.05
# The same for a contradiction, which drift may not explain.
_OTHER_ROTATION, _OTHER_PART = 10.0, 0.15
# Points of an image, columns and rows, that are looked for in the other one.
_COLUMNS, _ROWS = 8, 6
# Minimum part of either image that the other one is expected to show, and maximum angle between the two, in degrees:
# surfaces have a back, and what is seen from another side does not match.
_LEAST_SHARED, _MOST_TURNED = 0.15, 50.0
# Depth of what an image shows if the keyframe has no depths, in the trajectory's unit: typical of a single camera.
_TYPICAL_DEPTH = 1.0


@dataclass(frozen=True, eq=False)
class Match:
    """An image matched with an older keyframe, as far as its place matters.

    Attributes:
        location: of the image, in the newer trajectory.
        keyframe: the older one.
        found: T_keyframe_image.
        length: of its translation in the unit of both trajectories; NaN if unknown.
    """

    location: Location
    keyframe: ArchivedKeyframe
    found: RelativePose
    length: float

    @property
    def has_length(self) -> bool:
        """Whether the length is known."""
        return bool(np.isfinite(self.length))

    @property
    def trajectory(self) -> tuple[str, int, int]:
        """Robot, session and segment of the older keyframe."""
        return self.keyframe.name.robot, self.keyframe.session, self.keyframe.segment

    def step(self, length: float) -> Array:
        """(4, 4) T_keyframe_image with a translation of another length."""
        pose = self.found.matrix.copy()
        norm = float(np.linalg.norm(pose[:3, 3]))
        pose[:3, 3] *= length / norm if norm else 0.0
        return np.asarray(pose)


@dataclass(frozen=True, eq=False)
class Errors:
    """How far a match is from what a known loop expects.

    Attributes:
        angle: between both rotations, degrees.
        apart: distance between both positions; if the match has no length, of the expected position from the ray on
            which the found one lies. NaN if the loop has no length.
        steps: length of all steps from the loop to the match, in the same unit.
    """

    angle: float
    apart: float
    steps: float

    @property
    def agree(self) -> bool:
        """Whether the match is where the loop expects it, in rotation and position."""
        return self.angle <= _ROTATION and self.apart <= _POSITION_LEAST + _POSITION_PART * self.steps

    @property
    def contradict(self) -> bool:
        """Whether the loop excludes the match, even if tracking has drifted."""
        return self.angle > _OTHER_ROTATION or self.apart > _POSITION_LEAST + _OTHER_PART * self.steps


@dataclass(frozen=True, eq=False)
class KnownLoop:
    """A loop that says where the camera is while it moves on.

    Attributes:
        number: of the newer keyframe.
        match: the loop.
        pose: (4, 4) T_world_camera in the frame and unit of the older trajectory; without a length, the position is
            the keyframe's.
        typical_depth: of what both see, in the older trajectory's unit.
    """

    number: int
    match: Match
    pose: Array
    typical_depth: float

    @staticmethod
    def of(number: int, match: Match) -> KnownLoop | None:
        """From a loop; None if the keyframe's pose or the rotation between the two is unknown."""
        if match.keyframe.pose is None or not match.found.has_rotation:
            return None
        depth = match.keyframe.depth
        known = np.zeros(0) if depth is None else depth.inverse[depth.known & (depth.inverse > 0)]
        typical = float(1 / np.median(known)) if len(known) else _TYPICAL_DEPTH
        return KnownLoop(
            number, match, match.keyframe.pose @ match.step(match.length if match.has_length else 0.0), typical
        )

    def expected(self, location: Location) -> Array | None:
        """(4, 4) T_world_camera of an image of the newer trajectory, in the frame of the older one; None if the image
        is in another segment.
        """
        if location.segment != self.match.location.segment:
            return None
        return np.asarray(self.pose @ between(self.match.location.pose, location.pose))

    def errors(self, match: Match) -> Errors | None:
        """Compare a match with what is expected; None if the trajectories are others, or the keyframes far apart."""
        mine = self.match.keyframe
        expected = self.expected(match.location)
        if expected is None or match.trajectory != self.match.trajectory or not match.found.has_rotation:
            return None
        if match.keyframe.pose is None or mine.pose is None or abs(match.keyframe.name.id - mine.name.id) > 2 * _REACH:
            return None
        there = between(match.keyframe.pose, expected)
        angle = rotation_degrees(there[:3, :3].T @ match.found.rotation)
        if not self.match.has_length:
            return Errors(angle, np.nan, np.nan)
        length = match.length
        if not match.has_length:
            length = max(float(match.found.translation @ there[:3, 3]), 0.0) if match.found.has_direction else 0.0
        apart = float(np.linalg.norm(there[:3, 3] - match.step(length)[:3, 3]))
        steps = (
            between(mine.pose, match.keyframe.pose),
            between(self.match.location.pose, match.location.pose),
            between(mine.pose, self.pose),
            there,
        )
        return Errors(angle, apart, sum(float(np.linalg.norm(step[:3, 3])) for step in steps))

    def around(self) -> list[KeyframeName]:
        """Names of the keyframes recorded before and after the older one."""
        robot, middle = self.match.keyframe.name
        return [KeyframeName(robot, number) for number in range(max(middle - _REACH, 0), middle + _REACH + 1)]

    def sharing(
        self, keyframes: Iterable[ArchivedKeyframe], location: Location, camera: CameraModel
    ) -> list[KeyframeName]:
        """Keyframes of the older trajectory whose view an image is expected to share, the largest part first.

        Args:
            keyframes: those of `around` that exist.
            location: of the image.
            camera: the image's.
        """
        expected = self.expected(location)
        if expected is None:
            return []
        shares = []
        for each in keyframes:
            same = (each.name.robot, each.session, each.segment) == self.match.trajectory
            if not same or each.pose is None or each.camera is None:
                continue
            pose = between(each.pose, expected)
            if rotation_degrees(pose[:3, :3]) <= _MOST_TURNED:
                share = shared_view(each.camera, camera, pose, self.typical_depth)
                if share >= _LEAST_SHARED:
                    shares.append((share, each.name))
        return [name for _, name in sorted(shares, reverse=True)]


class KnownLoops:
    """The latest loops of a trajectory. Only those that agree with another one count: one may be of a look-alike."""

    def __init__(self) -> None:
        """Create it empty."""
        self._loops: deque[KnownLoop] = deque(maxlen=_KNOWN)
        self._supported: set[int] = set()

    def add(self, loop: KnownLoop) -> None:
        """Add a loop."""
        for other in self._loops:
            errors = other.errors(loop.match)
            if other.number != loop.number and self._is_near(other, loop.number) and errors and errors.agree:
                self._supported |= {other.number, loop.number}
        self._loops.append(loop)
        self._supported &= {each.number for each in self._loops}

    def near(self, number: int, location: Location) -> KnownLoop | None:
        """The loop nearest to a keyframe, by number; those with a length first. None without any."""
        near = [
            loop
            for loop in self._loops
            if loop.number in self._supported
            and self._is_near(loop, number)
            and loop.match.location.segment == location.segment
        ]
        return min(near, key=lambda loop: (not loop.match.has_length, abs(loop.number - number)), default=None)

    @staticmethod
    def _is_near(loop: KnownLoop, number: int) -> bool:
        return abs(loop.number - number) <= _NEAR


def shared_view(first: CameraModel, second: CameraModel, pose: Array, depth: float) -> float:
    """Part of either camera's image that the other one shows, the smaller one of the two, without occlusion.

    Args:
        first, second: the cameras.
        pose: (4, 4) T_first_second.
        depth: of what they see, along the optical axis, in the pose's unit.

    Returns:
        0 to 1.
    """
    return min(_shown(second, first, pose, depth), _shown(first, second, inverse(pose), depth))


def _shown(camera: CameraModel, other: CameraModel, pose: Array, depth: float) -> float:
    """Part of a camera's image that the other one shows; `pose` is T_other_camera."""
    columns, rows = np.meshgrid(np.arange(_COLUMNS) + 0.5, np.arange(_ROWS) + 0.5)
    pixels = np.stack([columns.ravel() * camera.width / _COLUMNS, rows.ravel() * camera.height / _ROWS], axis=1) - 0.5
    points = depth * np.column_stack([camera.unproject(pixels), np.ones(len(pixels))])
    seen = other.project(points @ pose[:3, :3].T + pose[:3, 3])  # NaN if not in front of the camera
    inside = (seen >= -0.5) & (seen < (other.width - 0.5, other.height - 0.5))
    return float(inside.all(axis=1).mean())
