"""The pose graph of all keyframes: links from keyframe to keyframe, and loops. What it holds, not how it is solved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.factors import Camera
from loftr_ros.backend.measurements import (
    KeyframeKey,
    KeyframeMeasurement,
    LoopMeasurement,
    PoseMeasurement,
    UnitMeasurement,
)

Array = NDArray[np.float64]


@dataclass(eq=False)
class Vertex:
    """A keyframe.

    Attributes:
        number: its place in the graph, and GTSAM's name of its variable.
        key, stamp_ns, frame_id: as in `KeyframeMeasurement`.
        trajectory: number of the trajectory that it is part of.
        previous: number of the keyframe that it was located by; None for the first of a trajectory.
        link: T_previous_this; None where `previous` is.
    """

    number: int
    key: KeyframeKey
    stamp_ns: int
    frame_id: str
    trajectory: int
    previous: int | None
    link: PoseMeasurement | None


@dataclass(eq=False)
class Trajectory:
    """Keyframes that links connect: they have one frame, and one unit of length, which may drift.

    Attributes:
        number: its place in the graph.
        is_metric: whether lengths are in metres.
        vertices: numbers of its keyframes, in the order that they came in; the first is the origin.
    """

    number: int
    is_metric: bool
    vertices: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Loop:
    """A measured pose between two keyframes that no link leads along.

    Attributes:
        older, newer: numbers of the vertices.
        measured: T_older_newer.
        score: 0 to 1.
    """

    older: int
    newer: int
    measured: PoseMeasurement
    score: float


@dataclass(frozen=True, eq=False)
class Solution:
    """Where all keyframes are.

    Attributes:
        cameras: of the vertices, by their numbers, each in its group's frame and unit.
        groups: of the trajectories, by their numbers: those of one group have a common frame, that of the group's first
            trajectory. The group's number is that trajectory's.
        metric: groups whose unit is a metre.
        believed: of the loops, in their order: whether each took part.
        broken: vertices whose link was rejected.
        covariances: (6, 6) of (translation, rotation vector) about the group's axes, of the last vertex of each
            trajectory that took part, seen from the group's first camera.
    """

    cameras: list[Camera]
    groups: list[int]
    metric: frozenset[int]
    believed: list[bool]
    broken: frozenset[int] = frozenset()
    covariances: dict[int, Array] = field(default_factory=dict)


class Graph:
    """Keyframes, links and loops.

    Attributes:
        vertices: keyframes, in the order that they came in.
        trajectories: what links connect.
        loops: measured poses between keyframes.
        numbers: of the vertices, by the keyframes' names.
        units: what inertial sensors tell at some vertices, by their numbers.
    """

    def __init__(self) -> None:
        self.vertices: list[Vertex] = []
        self.trajectories: list[Trajectory] = []
        self.loops: list[Loop] = []
        self.numbers: dict[KeyframeKey, int] = {}
        self.units: dict[int, UnitMeasurement] = {}
        self._pairs: dict[tuple[int, int], int] = {}

    def add(self, keyframe: KeyframeMeasurement) -> Vertex:
        """Take a keyframe. One whose previous keyframe is not known here, or is of another unit, begins a trajectory.

        A keyframe that is there already is left as it is.
        """
        if keyframe.key in self.numbers:
            return self.vertices[self.numbers[keyframe.key]]
        previous = self.numbers.get(keyframe.previous) if keyframe.previous is not None else None
        if previous is not None and keyframe.link is not None:
            trajectory = self.trajectories[self.vertices[previous].trajectory]
            if len(trajectory.vertices) == 1:
                trajectory.is_metric = keyframe.is_metric  # the first keyframe of all has no lengths that would tell
            elif trajectory.is_metric != keyframe.is_metric:
                previous = None
        if previous is None or keyframe.link is None:
            previous, link = None, None
            trajectory = Trajectory(len(self.trajectories), keyframe.is_metric)
            self.trajectories.append(trajectory)
        else:
            link = keyframe.link
        vertex = Vertex(
            len(self.vertices), keyframe.key, keyframe.stamp_ns, keyframe.frame_id, trajectory.number, previous, link
        )
        trajectory.vertices.append(vertex.number)
        self.vertices.append(vertex)
        self.numbers[keyframe.key] = vertex.number
        return vertex

    def add_loop(self, loop: LoopMeasurement) -> bool:
        """Take a loop; of several between the same keyframes the one with the best score.

        Returns:
            Whether something is new. A loop of which a keyframe is not known is left out.
        """
        older, newer = self.numbers.get(loop.older), self.numbers.get(loop.newer)
        if older is None or newer is None or older == newer:
            return False
        return self.know(Loop(older, newer, loop.measured, loop.score))

    def know(self, loop: Loop) -> bool:
        """As `add_loop`, of a loop whose ends are vertices."""
        pair = (min(loop.older, loop.newer), max(loop.older, loop.newer))
        place = self._pairs.get(pair)
        if place is None:
            self._pairs[pair] = len(self.loops)
            self.loops.append(loop)
            return True
        if self.loops[place].score >= loop.score:
            return False
        self.loops[place] = loop
        return True

    def way(self, one: int, other: int) -> list[int]:
        """The vertices whose links lie between two vertices of one trajectory."""
        way = list[int]()
        while one != other:
            # A keyframe comes after the one that it was located by: the later end goes back.
            later = max(one, other)
            before = self.vertices[later].previous
            assert before is not None
            way.append(later)
            one, other = min(one, other), before
        return way

    def chained(self, solution: Solution | None) -> list[Camera]:
        """Where the links lead to: each vertex in its trajectory's frame and unit.

        Args:
            solution: of the graph as it was before; what it has of a trajectory is kept.
        """
        known = 0 if solution is None else len(solution.cameras)
        cameras: list[Camera] = []
        for vertex in self.vertices:
            if solution is not None and vertex.number < known:
                first = solution.cameras[self.trajectories[vertex.trajectory].vertices[0]]
                there = solution.cameras[vertex.number]
                cameras.append(Camera(first.sees(there), there.scale / first.scale))
            elif vertex.previous is None:
                cameras.append(Camera(np.eye(4)))
            else:
                assert vertex.link is not None
                cameras.append(cameras[vertex.previous].moved(vertex.link.pose))
        return cameras

    def loops_between(self, trajectories: set[int]) -> Iterator[int]:
        """Numbers of the loops both of whose ends are in some trajectories."""
        for number, loop in enumerate(self.loops):
            ends = {self.vertices[loop.older].trajectory, self.vertices[loop.newer].trajectory}
            if ends <= trajectories:
                yield number
