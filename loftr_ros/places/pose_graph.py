"""Keyframes and the loops between them as a graph of poses, in the text format of g2o.

Trajectories of different recordings, or of one that was lost in between, have frames and units of their own; loops
bring them into one frame, and where several loops tell it, into one unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.relative_pose import UNKNOWN_VARIANCE, RelativePose
from loftr_ros.places.keyframe import ChainLink, KeyframeName

Array = NDArray[np.float64]

# No measurement is taken for better than this, so that rounding makes no covariance singular: 10 um, or 10 urad.
_LEAST_VARIANCE = 1e-10
# Loops between two trajectories that it takes to tell their units' ratio, and by how much they may disagree on it.
_LEAST_LOOPS = 3
_MOST_SPREAD = 0.3


class TrajectoryName(NamedTuple):
    """Keyframes whose poses have one frame and one unit of length."""

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
        """What its pose is part of."""
        return TrajectoryName(self.name.robot, self.session, self.segment)


@dataclass(frozen=True, eq=False)
class Loop:
    """Two keyframes that show one place.

    Attributes:
        older, newer: their names.
        stamps_ns: of the two images, the older keyframe's first.
        pose: T_older_newer, in metres where `scale_known`, else with a unit translation; without its inliers.
        own_unit: the same in the unit of the older keyframe's trajectory; None where that is not known.
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
        """The pose in the unit of the older keyframe's trajectory; None where its length is not known."""
        return self.pose if self.pose.scale_known else self.own_unit


@dataclass(frozen=True, eq=False)
class Placement:
    """A trajectory's frame in that of its group: those that loops connect.

    Attributes:
        group: number of the group.
        pose: (4, 4) T_group_trajectory.
        scale: length in the group's unit of what is of length one in the trajectory's; None where no one knows.
    """

    group: int
    pose: Array
    scale: float | None

    def moved(self, pose: Array) -> Array:
        """(4, 4) T_group_camera of a T_trajectory_camera."""
        return self.pose @ scaled(pose, self.scale or 1.0)


@dataclass(frozen=True, eq=False)
class Edge:
    """A measured pose between two vertices.

    Attributes:
        first, second: numbers of the vertices.
        pose: (4, 4) T_first_second.
        information: (6, 6) as g2o has it (see `g2o_information`).
        has_length: whether the translation informs.
    """

    first: int
    second: int
    pose: Array
    information: Array
    has_length: bool = True


class PoseGraph:
    """Vertices, one a keyframe that has a pose, and the edges between them.

    Attributes:
        keyframes: all, those without a pose too; a keyframe's place in it is its vertex's number.
        loops: the loops.
        numbers: of the keyframes, by name.
        placements: of the trajectories, by name; those without a pose are not in it.
    """

    def __init__(self, keyframes: Sequence[GraphKeyframe], loops: Sequence[Loop]) -> None:
        """Place the trajectories.

        Args:
            keyframes: each once, trajectory by trajectory.
            loops: between them.
        """
        self.keyframes, self.loops = list(keyframes), list(loops)
        self.numbers = {keyframe.name: number for number, keyframe in enumerate(self.keyframes)}
        self.placements = self._place()

    def pose(self, keyframe: GraphKeyframe) -> Array | None:
        """(4, 4) T_group_camera, as placed by the trajectory alone: loops within it are not applied."""
        return None if keyframe.pose is None else self.placements[keyframe.trajectory].moved(keyframe.pose)

    def chain_edges(self) -> list[Edge]:
        """From each keyframe to the one that it was located by."""
        edges = []
        for number, keyframe in enumerate(self.keyframes):
            link = keyframe.link
            if link is None or keyframe.pose is None:
                continue
            before = self.numbers.get(KeyframeName(keyframe.name.robot, link.previous))
            if before is None or self.keyframes[before].trajectory != keyframe.trajectory:
                continue
            scale = self.placements[keyframe.trajectory].scale or 1.0
            edges.append(
                Edge(before, number, scaled(link.pose, scale), g2o_information(link.covariance, link.pose, scale))
            )
        return edges

    def loop_edges(self) -> list[tuple[Loop, Edge]]:
        """The loops whose rotation is known; where their length is not, the translation is without information."""
        edges = []
        for loop in self.loops:
            older, newer = self._ends(loop)
            if older.pose is None or newer.pose is None or not loop.pose.has_rotation:
                continue
            found, scale = loop.with_length, self._common_scale(older, newer)
            if found is None or scale is None:
                matrix, covariance = loop.pose.matrix, np.eye(6) * UNKNOWN_VARIANCE
                # What an optimiser begins with: as the trajectories say.
                matrix[:3, 3] = (np.linalg.inv(self._placed(older)) @ self._placed(newer))[:3, 3]
                covariance[3:, 3:] = loop.pose.covariance[3:, 3:]
                information = g2o_information(covariance, matrix)
            else:
                matrix = scaled(found.matrix, scale)
                information = g2o_information(found.covariance, found.matrix, scale)
            known = found is not None and scale is not None
            edges.append((loop, Edge(self.numbers[older.name], self.numbers[newer.name], matrix, information, known)))
        return edges

    def first_vertices(self) -> list[int]:
        """The first vertex of each group, which is held."""
        first: dict[int, int] = {}
        for number, keyframe in enumerate(self.keyframes):
            if keyframe.pose is not None:
                first.setdefault(self.placements[keyframe.trajectory].group, number)
        return list(first.values())

    def unit(self, trajectory: TrajectoryName) -> str:
        """What lengths of a trajectory's vertices are in, in words."""
        placement = self.placements[trajectory]
        leading = next(name for name, other in self.placements.items() if other.group == placement.group)
        metric = {keyframe.trajectory for keyframe in self.keyframes if keyframe.is_metric}
        if placement.scale is None or leading == trajectory:
            return "metres" if trajectory in metric else "its own unit"
        return "metres" if leading in metric else f"the unit of {_called(leading)}"

    def write_g2o(self, path: Path) -> None:
        """Write vertices, edges and held vertices; what they are is told in comments."""
        lines = [
            "# Poses of keyframes: T_world_camera, optical axes (x right, y down, z forward).",
            "# Information is of (translation, vector part of the unit quaternion) in the second camera's axes.",
        ]
        last: TrajectoryName | None = None
        for number, keyframe in enumerate(self.keyframes):
            pose = self.pose(keyframe)
            if pose is None:
                continue
            if keyframe.trajectory != last:
                last = keyframe.trajectory
                group = self.placements[keyframe.trajectory].group
                lines.append(
                    f"# trajectory of {_called(keyframe.trajectory)}, group {group}, lengths in "
                    f"{self.unit(keyframe.trajectory)}"
                )
            lines.append(f"VERTEX_SE3:QUAT {number} {_numbers(pose_vector(pose))}")
        if last is None:
            lines.append("# No keyframe has a pose: the camera is not calibrated.")
        lines += [f"FIX {number}" for number in self.first_vertices()]
        lines.append("# from keyframe to keyframe")
        lines += [_edge_line(edge) for edge in self.chain_edges()]
        for loop, edge in self.loop_edges():
            known = "" if edge.has_length else ", length not known: rotation alone informs"
            lines.append(f"# loop {loop.older} - {loop.newer}, score {loop.score:.3f}{known}")
            lines.append(_edge_line(edge))
        path.write_text("\n".join(lines) + "\n")

    def _placed(self, keyframe: GraphKeyframe) -> Array:
        pose = self.pose(keyframe)
        assert pose is not None
        return pose

    def _common_scale(self, older: GraphKeyframe, newer: GraphKeyframe) -> float | None:
        """Length in their common unit of what is one in the older keyframe's; None if they have no common unit."""
        one, other = self.placements[older.trajectory].scale, self.placements[newer.trajectory].scale
        if older.trajectory == newer.trajectory:
            return one or 1.0
        return None if one is None or other is None else one

    def _place(self) -> dict[TrajectoryName, Placement]:
        """Trajectory by trajectory, each by its loops with those that have a place already."""
        trajectories = list(dict.fromkeys(k.trajectory for k in self.keyframes if k.pose is not None))
        metric = {keyframe.trajectory for keyframe in self.keyframes if keyframe.is_metric}
        trajectories.sort(key=lambda name: name not in metric)  # theirs is the unit of those that they meet
        between = [loop for loop in self.loops if loop.pose.has_rotation and self._connects(loop)]
        placed: dict[TrajectoryName, Placement] = {}
        group = 0
        for first in trajectories:
            if first in placed:
                continue
            placed[first] = Placement(group, np.eye(4), 1.0)
            while following := self._next(between, placed):
                name, loops = following
                placed[name] = self._placed_by(name, loops, placed, metric)
            group += 1
        return placed

    def _connects(self, loop: Loop) -> bool:
        older, newer = self._ends(loop)
        return older.pose is not None and newer.pose is not None and older.trajectory != newer.trajectory

    def _ends(self, loop: Loop) -> tuple[GraphKeyframe, GraphKeyframe]:
        return self.keyframes[self.numbers[loop.older]], self.keyframes[self.numbers[loop.newer]]

    def _next(
        self, loops: Iterable[Loop], placed: dict[TrajectoryName, Placement]
    ) -> tuple[TrajectoryName, list[Loop]] | None:
        """The trajectory without a place that most loops connect with those that have one, and these loops."""
        found: dict[TrajectoryName, list[Loop]] = {}
        for loop in loops:
            older, newer = (keyframe.trajectory for keyframe in self._ends(loop))
            if (older in placed) != (newer in placed):
                found.setdefault(newer if older in placed else older, []).append(loop)
        return max(found.items(), key=lambda item: len(item[1]), default=None)

    def _placed_by(
        self,
        name: TrajectoryName,
        loops: Sequence[Loop],
        placed: dict[TrajectoryName, Placement],
        metric: set[TrajectoryName],
    ) -> Placement:
        best = max(loops, key=lambda loop: (loop.with_length is not None, loop.score))
        known = next(end.trajectory for end in self._ends(best) if end.trajectory in placed)
        scale = placed[known].scale
        if scale is not None and not (name in metric and known in metric):
            scale = self._scale(name, loops, placed)
        # The newer camera in the group's frame and in the trajectory's: by the loop in one, by its trajectory in other.
        in_group, in_own = self._twice(best, name, placed, scale or 1.0)
        pose = in_group @ np.linalg.inv(scaled(in_own, scale or 1.0))
        return Placement(placed[known].group, pose, scale)

    def _twice(
        self, loop: Loop, name: TrajectoryName, placed: dict[TrajectoryName, Placement], scale: float
    ) -> tuple[Array, Array]:
        """(4, 4) poses of a loop's newer camera in the group's frame, and in that of a trajectory still to be placed.

        Args:
            loop: between them.
            name: the trajectory.
            placed: the others.
            scale: length in the group's unit of one in the trajectory's, as far as known.
        """
        older, newer = self._ends(loop)
        assert older.pose is not None and newer.pose is not None
        found = loop.with_length
        step = loop.pose.matrix if found is None else found.matrix
        if found is None:
            step[:3, 3] = 0
        if older.trajectory in placed:
            placement = placed[older.trajectory]
            return placement.moved(older.pose @ step), newer.pose
        return placed[newer.trajectory].moved(newer.pose), older.pose @ step

    def _scale(
        self, name: TrajectoryName, loops: Sequence[Loop], placed: dict[TrajectoryName, Placement]
    ) -> float | None:
        """Ratio of distances between cameras that loops tell in both units; None if too few do, or they disagree."""
        told = [
            self._twice(loop, name, placed, 1.0)
            for loop in loops
            if loop.with_length is not None
            and all(placed[end.trajectory].scale is not None for end in self._ends(loop) if end.trajectory in placed)
        ]
        if len(told) < _LEAST_LOOPS:
            return None
        theirs, own = (np.array([pair[side][:3, 3] for pair in told]) for side in (0, 1))
        one, other = np.triu_indices(len(told), 1)
        far, near = (np.linalg.norm(each[one] - each[other], axis=1) for each in (theirs, own))
        # Cameras close together tell nothing but the noise of their places.
        wide = near > 0.5 * near.max()
        if not near.max() > 0:
            return None
        ratios = far[wide] / near[wide]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        return float(middle) if low > 0 and (high - low) / middle < _MOST_SPREAD else None


def scaled(pose: Array, scale: float) -> Array:
    """A (4, 4) pose whose lengths are multiplied."""
    pose = pose.copy()
    pose[:3, 3] *= scale
    return pose


def g2o_information(covariance: Array, pose: Array, scale: float = 1.0) -> Array:
    """What g2o weighs an edge's error with.

    Its error is that of inv(measured) @ true: the translation, then the vector part of the unit quaternion, which for
    small angles is half the rotation vector, and both about the second camera's axes.

    Args:
        covariance: (6, 6) of (translation, rotation vector) about the first camera's axes.
        pose: (4, 4) T_first_second, measured.
        scale: that lengths are multiplied with.

    Returns:
        (6, 6) inverse of the covariance of that error, symmetric and positive definite.
    """
    turn = pose[:3, :3].T
    to_error = np.zeros((6, 6))
    to_error[:3, :3], to_error[3:, 3:] = scale * turn, turn / 2
    values, vectors = np.linalg.eigh(to_error @ covariance @ to_error.T)
    information = vectors / np.maximum(values, _LEAST_VARIANCE) @ vectors.T
    return np.asarray((information + information.T) / 2)


def pose_vector(pose: Array) -> Array:
    """(7,) x, y, z, qx, qy, qz, qw of a (4, 4) pose, with qw >= 0."""
    from scipy.spatial.transform import Rotation

    quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return np.concatenate([pose[:3, 3], quaternion if quaternion[3] >= 0 else -quaternion])


def _called(trajectory: TrajectoryName) -> str:
    return f"{trajectory.robot or 'robot'} session {trajectory.session} segment {trajectory.segment}"


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _edge_line(edge: Edge) -> str:
    upper = edge.information[np.triu_indices(6)]
    return f"EDGE_SE3:QUAT {edge.first} {edge.second} {_numbers(pose_vector(edge.pose))} {_numbers(upper)}"
