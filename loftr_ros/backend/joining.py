"""Which trajectories are of one place: brought into one frame by loops that agree with one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.factors import Camera, require_gtsam
from loftr_ros.backend.graph import Graph, Loop
from loftr_ros.geometry.se3 import inverse, rotation_degrees

Array = NDArray[np.float64]

# Loops between two trajectories that are looked at, at most, those with the best scores: each is held against each.
_MOST = 40


@dataclass(frozen=True, eq=False)
class Similarity:
    """A frame in another: points move by `scale` * rotation * p + position.

    Attributes:
        pose: (4, 4) rotation and position.
        scale: length in the other's unit of what has length one in this one's.
    """

    pose: Array
    scale: float

    def moved(self, camera: Camera) -> Camera:
        """A camera of this frame in the other one."""
        pose = self.pose @ camera.pose
        pose[:3, 3] = self.scale * self.pose[:3, :3] @ camera.pose[:3, 3] + self.pose[:3, 3]
        return Camera(pose, self.scale * camera.scale)


def join(graph: Graph, cameras: Sequence[Camera], config: BackEndConfig) -> tuple[list[Camera], list[int]]:
    """Bring trajectories into common frames, where enough loops agree on how.

    Args:
        graph: the keyframes and loops.
        cameras: of its vertices, in the frame and unit of their trajectories.
        config: how many, and how well.

    Returns:
        The cameras in their groups' frames and units, and for each trajectory the number of its group, which is that of
        the group's first trajectory.
    """
    joining = _Joining(graph, cameras, config)
    return joining.run()


class _Joining:
    def __init__(self, graph: Graph, cameras: Sequence[Camera], config: BackEndConfig) -> None:
        self.graph, self.cameras, self.config = graph, list(cameras), config
        self.groups: dict[int, int] = {}
        self.loops: dict[tuple[int, int], list[Loop]] = {}
        for loop in graph.loops:
            ends = self._ends(loop)
            if ends[0] != ends[1] and loop.measured.has_length:
                self.loops.setdefault((min(ends), max(ends)), []).append(loop)

    def run(self) -> tuple[list[Camera], list[int]]:
        for trajectory in self.graph.trajectories:
            if trajectory.number in self.groups:
                continue
            self.groups[trajectory.number] = trajectory.number
            members = {trajectory.number}
            while self._grow(members, trajectory.number):
                pass
        return self.cameras, [self.groups[each.number] for each in self.graph.trajectories]

    def _ends(self, loop: Loop) -> tuple[int, int]:
        vertices = self.graph.vertices
        return vertices[loop.older].trajectory, vertices[loop.newer].trajectory

    def _grow(self, members: set[int], group: int) -> bool:
        """Take in the trajectory on whose place most loops agree."""
        outside: dict[int, list[Loop]] = {}
        for (one, other), loops in self.loops.items():
            if (one in members) != (other in members):
                new = other if one in members else one
                if new not in self.groups:
                    outside.setdefault(new, []).extend(loops)
        best: tuple[int, int, Similarity] | None = None
        for new, loops in outside.items():
            found = self._placed(new, members, loops)
            if found is not None and (best is None or found[0] > best[0]):
                best = (found[0], new, found[1])
        if best is None:
            return False
        _, new, where = best
        for number in self.graph.trajectories[new].vertices:
            self.cameras[number] = where.moved(self.cameras[number])
        self.groups[new] = group
        members.add(new)
        return True

    def _placed(self, new: int, members: set[int], loops: list[Loop]) -> tuple[int, Similarity] | None:
        """How many loops agree on where a trajectory is, and where; None where too few do."""
        loops = sorted(loops, key=lambda loop: -loop.score)[:_MOST]
        keeps_unit = self.graph.trajectories[new].is_metric and any(
            self.graph.trajectories[each].is_metric for each in members
        )
        pairs = [self._pair(loop, new) for loop in loops]
        best: tuple[int, Similarity] | None = None
        for where in self._hypotheses(pairs, keeps_unit):
            agreeing = self._agreeing(where, loops, new)
            if best is None or len(agreeing) > best[0]:
                if len(agreeing) > 1:  # and once more by all of them
                    again = _aligned([pairs[k] for k in agreeing], keeps_unit)
                    more = self._agreeing(again, loops, new) if again is not None else []
                    if again is not None and len(more) >= len(agreeing):
                        where, agreeing = again, more
                best = (len(agreeing), where)
        if best is None or best[0] < self.config.loops.agreeing:
            return None
        return best

    def _pair(self, loop: Loop, new: int) -> tuple[Camera, Camera]:
        """One camera, in the group as a loop says, and in the trajectory that is to be placed."""
        older, newer = self.cameras[loop.older], self.cameras[loop.newer]
        if self.graph.vertices[loop.newer].trajectory == new:
            return older.moved(loop.measured.pose), newer
        return newer, older.moved(loop.measured.pose)

    def _hypotheses(self, pairs: list[tuple[Camera, Camera]], keeps_unit: bool) -> list[Similarity]:
        if keeps_unit:
            return [_one(pair, 1.0) for pair in pairs]
        found = []
        for k, one in enumerate(pairs):
            for other in pairs[k + 1 :]:
                near = np.linalg.norm(one[1].pose[:3, 3] - other[1].pose[:3, 3])
                if near > 1e-6:
                    scale = float(np.linalg.norm(one[0].pose[:3, 3] - other[0].pose[:3, 3]) / near)
                    if scale > 0:
                        found.append(_one(one, scale))
        return found

    def _agreeing(self, where: Similarity, loops: list[Loop], new: int) -> list[int]:
        """Which loops agree; of several with one keyframe one counts."""
        limits, seen, found = self.config.loops, set[int](), list[int]()
        for k, loop in enumerate(loops):
            there, own = self._pair(loop, new)
            own = where.moved(own)
            end = loop.newer if self.graph.vertices[loop.newer].trajectory == new else loop.older
            # A place that is farther off may be wrong by what its measured pose may be.
            reach = limits.max_disagreement + self.config.noise.translation * float(
                np.linalg.norm(loop.measured.pose[:3, 3])
            )
            apart = float(np.linalg.norm(there.pose[:3, 3] - own.pose[:3, 3]))
            turned = rotation_degrees(there.pose[:3, :3].T @ own.pose[:3, :3])
            if apart <= reach and turned <= limits.max_turn_disagreement and end not in seen:
                seen.add(end)
                found.append(k)
        return found


def _one(pair: tuple[Camera, Camera], scale: float) -> Similarity:
    there, own = pair
    pose = np.eye(4)
    pose[:3, :3] = there.pose[:3, :3] @ own.pose[:3, :3].T
    pose[:3, 3] = there.pose[:3, 3] - scale * pose[:3, :3] @ own.pose[:3, 3]
    return Similarity(pose, scale)


def _aligned(pairs: list[tuple[Camera, Camera]], keeps_unit: bool) -> Similarity | None:
    """By several cameras at once; None where GTSAM finds no alignment."""
    gtsam = require_gtsam()
    try:
        found = gtsam.Similarity3.Align([(gtsam.Pose3(a.pose), gtsam.Pose3(b.pose)) for a, b in pairs])
    except RuntimeError:  # all at one place
        return None
    scale, pose = (1.0 if keeps_unit else float(found.scale())), np.eye(4)
    if not np.isfinite(scale) or scale <= 0:
        return None
    pose[:3, :3] = found.rotation().matrix()
    there, own = (np.array([pair[side].pose[:3, 3] for pair in pairs]).mean(axis=0) for side in (0, 1))
    pose[:3, 3] = there - scale * pose[:3, :3] @ own
    return Similarity(pose, scale)


def correction(cameras: Sequence[Camera], loop: Loop) -> Array:
    """(4, 4) motion of the graph that would bring a loop's newer camera to where the loop says that it is."""
    moved = cameras[loop.older].moved(loop.measured.pose)
    return np.asarray(moved.pose @ inverse(cameras[loop.newer].pose))
