"""Keyframes and the loops between them as a pose graph, in the text format of g2o.

Trajectories of different recordings, or of one that was lost in between, have their own frames and units. Loops bring
them into one frame, and several loops into one unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import between, quaternion_of
from loftr_ros.geometry.two_view import UNKNOWN_VARIANCE
from loftr_ros.places.keyframe import KeyframeName
from loftr_ros.places.placement import GraphKeyframe, Loop, TrajectoryName, place, scaled

Array = NDArray[np.float64]

# Lower bound of variances, so that rounding makes no covariance singular: 10 um, or 10 urad.
_LEAST_VARIANCE = 1e-10


@dataclass(frozen=True, eq=False)
class Edge:
    """A measured pose between two vertices.

    Attributes:
        first, second: numbers of the vertices.
        pose: (4, 4) T_first_second.
        information: (6, 6) in g2o's convention (see `g2o_information`).
        has_length: whether the translation has information.
    """

    first: int
    second: int
    pose: Array
    information: Array
    has_length: bool = True


class PoseGraph:
    """One vertex for each keyframe that has a pose, and the edges between them.

    Attributes:
        keyframes: all, including those without a pose. The position in this list is the vertex number.
        loops: the loops.
        numbers: vertex numbers by keyframe name.
        placements: of the trajectories, by name; without trajectories that have no pose.
    """

    def __init__(self, keyframes: Sequence[GraphKeyframe], loops: Sequence[Loop]) -> None:
        """Place the trajectories.

        Args:
            keyframes: each once, trajectory by trajectory.
            loops: between them.
        """
        self.keyframes, self.loops = list(keyframes), list(loops)
        self.numbers = {keyframe.name: number for number, keyframe in enumerate(self.keyframes)}
        self.placements = place(self.keyframes, self.loops)

    def pose(self, keyframe: GraphKeyframe) -> Array | None:
        """(4, 4) T_group_camera from the trajectory alone; loops within it are not applied."""
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
        """The loops with a known rotation.

        If a loop's length is unknown, its translation has no information.
        """
        edges = []
        for loop in self.loops:
            older, newer = self._ends(loop)
            if older.pose is None or newer.pose is None or not loop.pose.has_rotation:
                continue
            found, scale = loop.with_length, self._common_scale(older, newer)
            if found is None or scale is None:
                matrix, covariance = loop.pose.matrix, np.eye(6) * UNKNOWN_VARIANCE
                # The optimiser's initial value comes from the trajectories.
                matrix[:3, 3] = (between(self._placed(older), self._placed(newer)))[:3, 3]
                covariance[3:, 3:] = loop.pose.covariance[3:, 3:]
                information = g2o_information(covariance, matrix)
            else:
                matrix = scaled(found.matrix, scale)
                information = g2o_information(found.covariance, found.matrix, scale)
            known = found is not None and scale is not None
            edges.append((loop, Edge(self.numbers[older.name], self.numbers[newer.name], matrix, information, known)))
        return edges

    def first_vertices(self) -> list[int]:
        """The first vertex of each group, which is fixed."""
        first: dict[int, int] = {}
        for number, keyframe in enumerate(self.keyframes):
            if keyframe.pose is not None:
                first.setdefault(self.placements[keyframe.trajectory].group, number)
        return list(first.values())

    def unit(self, trajectory: TrajectoryName) -> str:
        """The unit of lengths of a trajectory's vertices, in words."""
        placement = self.placements[trajectory]
        leading = next(name for name, other in self.placements.items() if other.group == placement.group)
        metric = {keyframe.trajectory for keyframe in self.keyframes if keyframe.is_metric}
        if placement.scale is None or leading == trajectory:
            return "metres" if trajectory in metric else "its own unit"
        return "metres" if leading in metric else f"the unit of {_called(leading)}"

    def write_g2o(self, path: Path) -> None:
        """Write vertices, edges and fixed vertices, with comments that explain them."""
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

    def _ends(self, loop: Loop) -> tuple[GraphKeyframe, GraphKeyframe]:
        return self.keyframes[self.numbers[loop.older]], self.keyframes[self.numbers[loop.newer]]

    def _placed(self, keyframe: GraphKeyframe) -> Array:
        pose = self.pose(keyframe)
        assert pose is not None
        return pose

    def _common_scale(self, older: GraphKeyframe, newer: GraphKeyframe) -> float | None:
        """Length of one unit of the older keyframe in their common unit; None if they have none."""
        one, other = self.placements[older.trajectory].scale, self.placements[newer.trajectory].scale
        if older.trajectory == newer.trajectory:
            return one or 1.0
        return None if one is None or other is None else one


def g2o_information(covariance: Array, pose: Array, scale: float = 1.0) -> Array:
    """The information matrix of an edge in g2o's error convention.

    The error is that of inv(measured) @ true: the translation, then the vector part of the unit quaternion, which for
    small angles is half the rotation vector, both about the second camera's axes.

    Args:
        covariance: (6, 6) of (translation, rotation vector) about the first camera's axes.
        pose: (4, 4) T_first_second, measured.
        scale: factor of lengths.

    Returns:
        (6, 6) inverse of the covariance of that error, symmetric and positive definite.
    """
    rotate = pose[:3, :3].T
    to_error = np.zeros((6, 6))
    to_error[:3, :3], to_error[3:, 3:] = scale * rotate, rotate / 2
    values, vectors = np.linalg.eigh(to_error @ covariance @ to_error.T)
    information = vectors / np.maximum(values, _LEAST_VARIANCE) @ vectors.T
    return np.asarray((information + information.T) / 2)


def pose_vector(pose: Array) -> Array:
    """(7,) x, y, z, qx, qy, qz, qw of a (4, 4) pose, with qw >= 0."""
    return np.array([*pose[:3, 3], *quaternion_of(pose[:3, :3])])


def _called(trajectory: TrajectoryName) -> str:
    return f"{trajectory.robot or 'robot'} session {trajectory.session} segment {trajectory.segment}"


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _edge_line(edge: Edge) -> str:
    upper = edge.information[np.triu_indices(6)]
    return f"EDGE_SE3:QUAT {edge.first} {edge.second} {_numbers(pose_vector(edge.pose))} {_numbers(upper)}"
