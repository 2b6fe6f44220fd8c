"""Brings trajectories of recordings into one frame and one unit of length, by the loops between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.odometry import ChainLink
from loftr_ros.geometry.two_view import RelativePose
from loftr_ros.places.keyframe import KeyframeName

Array = NDArray[np.float64]

# Loops needed between two trajectories to estimate the ratio of their units, and the largest spread of these estimates.
_LEAST_LOOPS = 3
_MOST_SPREAD = 0.3


class TrajectoryName(NamedTuple):
    """Identifies keyframes whose poses share a frame and a unit of length."""

    robot: str
    session: int
    segment: int


@dataclass(frozen=True, eq=False)
class GraphKeyframe:
    """A keyframe without its image.

    Attributes:
        name, session, segment, stamp_ns, frame_id, pose, link: as in `ArchivedKeyframe`.
        is_metric: whether `pose` is in metres.
    """

    name: KeyframeName
    session: int
    segment: int
    stamp_ns: int
    frame_id: str
    pose: Array | None
    link: ChainLink | None
    is_metric: bool

    @property
    def trajectory(self) -> TrajectoryName:
        """The trajectory of its pose."""
        return TrajectoryName(self.name.robot, self.session, self.segment)


@dataclass(frozen=True, eq=False)
class Loop:
    """Two keyframes of the same place.

    Attributes:
        older, newer: their names.
        stamps_ns: of the two images, the older keyframe's first.
        pose: T_older_newer, in metres if `scale_known`, else with a unit translation; without its inliers.
        own_unit: the same in the unit of the older keyframe's trajectory; None if unknown.
        matches, inliers: counts.
        similarity, score, confirmations: as in `LoopClosure`.
    """

    older: KeyframeName
    newer: KeyframeName
    stamps_ns: tuple[int, int]
    pose: RelativePose
    own_unit: RelativePose | None
    matches: int
    inliers: int
    similarity: float
    score: float
    confirmations: int

    @property
    def with_length(self) -> RelativePose | None:
        """The pose in the unit of the older keyframe's trajectory; None if its length is unknown."""
        return self.pose if self.pose.scale_known else self.own_unit


@dataclass(frozen=True, eq=False)
class Placement:
    """Transform from a trajectory's frame to the frame of its group (the trajectories that loops connect).

    Attributes:
        group: number of the group.
        pose: (4, 4) T_group_trajectory.
        scale: length in the group's unit of one unit of the trajectory; None if unknown.
    """

    group: int
    pose: Array
    scale: float | None

    def moved(self, pose: Array) -> Array:
        """(4, 4) T_group_camera from a T_trajectory_camera."""
        return self.pose @ scaled(pose, self.scale or 1.0)


def place(keyframes: Sequence[GraphKeyframe], loops: Iterable[Loop]) -> dict[TrajectoryName, Placement]:
    """Bring connected trajectories into one frame per group, and into one unit if the loops determine it.

    Args:
        keyframes: each once; those without a pose are left out.
        loops: between them.
    """
    return _Placing(keyframes, loops).run()


def scaled(pose: Array, scale: float) -> Array:
    """A (4, 4) pose with scaled lengths."""
    pose = pose.copy()
    pose[:3, 3] *= scale
    return pose


class _Placing:
    """Places one trajectory after another, each by its loops with those already placed."""

    def __init__(self, keyframes: Sequence[GraphKeyframe], loops: Iterable[Loop]) -> None:
        self.keyframes = {keyframe.name: keyframe for keyframe in keyframes}
        self.metric = {keyframe.trajectory for keyframe in keyframes if keyframe.is_metric}
        self.loops = [loop for loop in loops if loop.pose.has_rotation and self._connects(loop)]
        self.placed: dict[TrajectoryName, Placement] = {}

    def run(self) -> dict[TrajectoryName, Placement]:
        trajectories = list(dict.fromkeys(k.trajectory for k in self.keyframes.values() if k.pose is not None))
        trajectories.sort(
            key=lambda name: name not in self.metric
        )  # metric trajectories come first and give their groups the unit
        group = 0
        for first in trajectories:
            if first in self.placed:
                continue
            self.placed[first] = Placement(group, np.eye(4), 1.0)
            while following := self._next():
                name, loops = following
                self.placed[name] = self._place(name, loops)
            group += 1
        return self.placed

    def _ends(self, loop: Loop) -> tuple[GraphKeyframe, GraphKeyframe]:
        return self.keyframes[loop.older], self.keyframes[loop.newer]

    def _connects(self, loop: Loop) -> bool:
        older, newer = self._ends(loop)
        return older.pose is not None and newer.pose is not None and older.trajectory != newer.trajectory

    def _known(self, loop: Loop) -> Placement:
        """The placement of the loop's placed end."""
        return next(self.placed[end.trajectory] for end in self._ends(loop) if end.trajectory in self.placed)

    def _next(self) -> tuple[TrajectoryName, list[Loop]] | None:
        """The unplaced trajectory with most loops to placed ones, and these loops."""
        found: dict[TrajectoryName, list[Loop]] = {}
        for loop in self.loops:
            older, newer = (keyframe.trajectory for keyframe in self._ends(loop))
            if (older in self.placed) != (newer in self.placed):
                found.setdefault(newer if older in self.placed else older, []).append(loop)
        return max(found.items(), key=lambda item: len(item[1]), default=None)

    def _place(self, name: TrajectoryName, loops: Sequence[Loop]) -> Placement:
        best = max(loops, key=lambda loop: (loop.with_length is not None, loop.score))
        known = self._known(best)
        both_metric = all(end.trajectory in self.metric for end in self._ends(best))
        scale = known.scale if known.scale is None or both_metric else self._scale(loops)
        in_group, in_own = self._newer_camera(best)
        return Placement(known.group, in_group @ np.linalg.inv(scaled(in_own, scale or 1.0)), scale)

    def _newer_camera(self, loop: Loop) -> tuple[Array, Array]:
        """(4, 4) poses of a loop's newer camera, in the group's frame and in the frame of the unplaced trajectory.

        One comes from the loop, the other from the camera's own trajectory.
        """
        older, newer = self._ends(loop)
        assert older.pose is not None and newer.pose is not None
        found = loop.with_length
        step = scaled(loop.pose.matrix, 0.0) if found is None else found.matrix
        if older.trajectory in self.placed:
            return self.placed[older.trajectory].moved(older.pose @ step), newer.pose
        return self.placed[newer.trajectory].moved(newer.pose), older.pose @ step

    def _scale(self, loops: Sequence[Loop]) -> float | None:
        """Ratio of distances between cameras in both units, from loops; None if there are too few, or they disagree."""
        usable = [loop for loop in loops if loop.with_length is not None and self._known(loop).scale is not None]
        if len(usable) < _LEAST_LOOPS:
            return None
        cameras = [self._newer_camera(loop) for loop in usable]
        in_group, in_own = (np.array([camera[side][:3, 3] for camera in cameras]) for side in (0, 1))
        one, other = np.triu_indices(len(usable), 1)
        far, near = (np.linalg.norm(each[one] - each[other], axis=1) for each in (in_group, in_own))
        if not near.max() > 0:
            return None
        # Nearby cameras show only the noise of their positions.
        wide = near > 0.5 * near.max()
        low, middle, high = np.percentile(far[wide] / near[wide], [25, 50, 75])
        return float(middle) if low > 0 and (high - low) / middle < _MOST_SPREAD else None
