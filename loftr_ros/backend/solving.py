"""The pose graph solved: which loops are believed, by graduated non-convexity, and where all keyframes are then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.factors import (
    Camera,
    RigidSpace,
    SimilaritySpace,
    composed,
    require_gtsam,
    widened,
)
from loftr_ros.backend.graph import Graph, Loop, Solution
from loftr_ros.backend.joining import correction, join
from loftr_ros.backend.measurements import BackEndError, PoseMeasurement
from loftr_ros.geometry.se3 import rotation_vector

Array = NDArray[np.float64]

# Iterations of Levenberg and Marquardt in each round of graduated non-convexity: the next round changes the weights.
_INNER = 2
_OUTER = 60
# The kernel of links in the last optimisation: by how many standard deviations one may be off before it counts less.
_LINK_KERNEL = 3.0
# By how much the standard deviations of a link are multiplied that may be rejected: it still holds the two together.
_LOOSE = 100.0
# Loops whose correction is held against all others, at most.
_HYPOTHESES = 60
# From this loop weight on a loop is believed.
_BELIEVED = 0.5


@dataclass(frozen=True, eq=False)
class Step:
    """A factor along a trajectory: one link, or several after one another.

    Attributes:
        first, second: numbers of the vertices.
        measured: T_first_second with its widened covariance.
        links: how many.
    """

    first: int
    second: int
    measured: PoseMeasurement
    links: int


def solve(graph: Graph, config: BackEndConfig, before: Solution | None = None) -> Solution:
    """Where all keyframes are.

    Loops are believed or not by graduated non-convexity with a truncated quadratic cost (Yang et al., RA-L 2020), on a
    graph of the loops' ends alone; then all keyframes are optimised with the loops that are believed.

    Args:
        graph: keyframes, links and loops.
        config: settings.
        before: the solution of the graph as it was, to begin from.

    Raises:
        BackEndError: GTSAM is missing, or cannot solve the graph.
    """
    gtsam = require_gtsam()
    cameras, groups = join(graph, graph.chained(before), config)
    believed, broken, metric = [False] * len(graph.loops), set[int](), set[int]()
    covariances: dict[int, Array] = {}
    for group in dict.fromkeys(groups):
        members = {each.number for each in graph.trajectories if groups[each.number] == group}
        loops = list(graph.loops_between(members))
        units = [each for each in graph.units if graph.vertices[each].trajectory in members]
        if units or any(graph.trajectories[each].is_metric for each in members):
            metric.add(group)
        if not loops and not units:
            continue
        try:
            _Group(graph, config, cameras, members, group, loops).solve(believed, broken, covariances)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
            raise BackEndError(f"GTSAM {gtsam.__version__ if hasattr(gtsam, '__version__') else ''} cannot solve the "
                               f"graph of {len(graph.vertices)} keyframes: {reason}") from error  # fmt: skip
    return Solution(cameras, groups, frozenset(metric), believed, frozenset(broken), covariances)


def _some(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Not more than a few, evenly: each is held against all."""
    return (
        numbers if len(numbers) <= _HYPOTHESES else numbers[np.linspace(0, len(numbers) - 1, _HYPOTHESES).astype(int)]
    )


class _Group:
    """Trajectories of one frame, and the loops in and between them."""

    def __init__(
        self,
        graph: Graph,
        config: BackEndConfig,
        cameras: list[Camera],
        members: set[int],
        group: int,
        loops: Sequence[int],
    ) -> None:
        self.graph, self.config, self.cameras, self.loops = graph, config, cameras, loops
        self.gtsam = require_gtsam()
        trajectories = [graph.trajectories[each] for each in sorted(members)]
        self.vertices = sorted(number for each in trajectories for number in each.vertices)
        self.anchor = graph.trajectories[group].vertices[0]
        self.metric_origins = [each.vertices[0] for each in trajectories if each.is_metric]
        self.units = [] if self.metric_origins else [number for number in self.vertices if number in graph.units]
        self.space = RigidSpace()
        if len(self.metric_origins) < len(trajectories):
            metric = frozenset(n for each in trajectories if each.is_metric for n in each.vertices)
            self.space = SimilaritySpace(metric)
            self._use_metres()

    def solve(self, believed: list[bool], broken: set[int], covariances: dict[int, Array]) -> None:
        """Decide on the loops, optimise, and put the results into what all groups share."""
        weights, loose = np.zeros(0), list[int]()
        if self.loops:
            vetoed = self._contradicted()
            weights, cost = self._weights(self._steps(), vetoed=vetoed)
            weights, loose = self._without_links(weights, cost, vetoed)
        for k, weight in zip(self.loops, weights, strict=True):
            believed[k] = bool(weight >= _BELIEVED)
        broken.update(loose)
        covariances.update(self._optimise([k for k in self.loops if believed[k]], set(loose)))

    def _use_metres(self) -> None:
        """Let the group's unit be a metre where one of its trajectories, or an inertial sensor, knows it."""
        unit = 1.0
        if self.metric_origins:
            unit = self.cameras[self.metric_origins[0]].scale
        elif self.units:
            known = self.units[0]
            unit = self.cameras[known].scale / self.graph.units[known].metres
        if unit != 1.0:
            for number in self.vertices:
                pose = self.cameras[number].pose.copy()
                pose[:3, 3] /= unit
                self.cameras[number] = Camera(pose, self.cameras[number].scale / unit)

    # --- which loops are believed ---

    def _steps(self) -> list[Step]:
        """Links, those after one another taken together where no loop ends in between."""
        graph, kept = self.graph, {self.anchor, *self.units}
        for k in self.loops:
            kept |= {graph.loops[k].older, graph.loops[k].newer}
        following: dict[int, int] = {}
        for number in self.vertices:
            previous = graph.vertices[number].previous
            if previous is None:
                kept.add(number)
            else:
                following[previous] = following.get(previous, 0) + 1
        kept |= {number for number, count in following.items() if count > 1}
        steps: list[Step] = []
        open_steps: dict[int, Step] = {}  # by the vertex that they lead to
        for number in self.vertices:
            vertex = graph.vertices[number]
            if vertex.previous is None or vertex.link is None:
                continue
            link = widened(vertex.link, self.config.noise)
            before = open_steps.get(vertex.previous)
            step = Step(vertex.previous, number, link, 1)
            if before is not None and vertex.previous not in kept:
                step = Step(before.first, number, composed(before.measured, link), before.links + 1)
            open_steps[number] = step
            if number in kept:
                steps.append(step)
        return steps

    def _contradicted(self) -> list[int]:
        """Places in `self.loops` of those that the steps between their keyframes rule out.

        Loops of a look-alike agree with one another, so that their number proves nothing. How far the steps may be
        wrong is known: their variances add up, those of rotations with the distance to what they turn.
        """
        graph, noise, limits = self.graph, self.config.noise, self.config.loops
        cameras = graph.chained(None)
        positions = np.array([camera.pose[:3, 3] for camera in cameras])
        variances = np.zeros((len(graph.vertices), 3))  # of a step: translation, rotation, unit
        for number in self.vertices:
            vertex = graph.vertices[number]
            if vertex.link is not None:
                wide = widened(vertex.link, noise).covariance
                scale = 0.0 if graph.trajectories[vertex.trajectory].is_metric else noise.scale**2
                variances[number] = np.trace(wide[:3, :3]), np.trace(wide[3:, 3:]), scale
        found = []
        for place, k in enumerate(self.loops):
            loop = graph.loops[k]
            if graph.vertices[loop.older].trajectory != graph.vertices[loop.newer].trajectory:
                continue
            way = np.array(graph.way(loop.older, loop.newer), np.int64)
            apart = cameras[loop.older].sees(cameras[loop.newer])
            measured = widened(loop.measured.with_guess(float(np.linalg.norm(apart[:3, 3]))), noise)
            arms = ((positions[way] - positions[loop.newer]) ** 2).sum(axis=1)
            steps = variances[way]
            turn = steps[:, 1].sum() + np.trace(measured.covariance[3:, 3:])
            moved = steps[:, 0].sum() + (arms * (steps[:, 1] + steps[:, 2])).sum()
            moved += np.trace(measured.covariance[:3, :3])
            turned = np.linalg.norm(rotation_vector(apart[:3, :3].T @ measured.pose[:3, :3]))
            off = np.linalg.norm(apart[:3, 3] - measured.pose[:3, 3]) if loop.measured.has_length else 0.0
            if turned > limits.max_deviation * turn**0.5 or off > limits.max_deviation * moved**0.5:
                found.append(place)
        return found

    def _weights(
        self, steps: Sequence[Step], free: frozenset[int] = frozenset(), vetoed: Sequence[int] = ()
    ) -> tuple[Array, float]:
        """What graduated non-convexity gives the loops, and behind them the links of `free`, each 0 to 1.

        Args:
            steps: of the trajectories, which are taken as right but for those that lead to a vertex of `free`.
            free: vertices.
            vetoed: places in `self.loops` of those that get no weight.

        Returns:
            The weights, and what is left of the cost, in which a rejected loop or link costs as much as it may.
        """
        gtsam, space, noise = self.gtsam, self.space, self.config.noise
        factors, values, inliers = gtsam.NonlinearFactorGraph(), gtsam.Values(), list[int]()
        numbers = {number for step in steps for number in (step.first, step.second)} | {self.anchor}
        numbers |= {end for k in self.loops for end in (self.graph.loops[k].older, self.graph.loops[k].newer)}
        for number in sorted(numbers):
            values.insert(number, space.variable(self.cameras[number]))
        for k in self.loops:
            factors.push_back(self._loop_factor(self.graph.loops[k]))
        for step in steps:
            if step.second in free:
                factors.push_back(space.link(step.first, step.second, step.measured, noise.scale))
        decided = factors.size()
        for step in steps:
            loosened = step.measured
            if step.second in free:
                loosened = replace(loosened, covariance=_LOOSE**2 * loosened.covariance)
            factors.push_back(space.link(step.first, step.second, loosened, float(np.sqrt(step.links)) * noise.scale))
        self._hold(factors)
        inliers = list(range(decided, factors.size()))
        inner = gtsam.LevenbergMarquardtParams()
        inner.setMaxIterations(_INNER)
        parameters = gtsam.GncLMParams(inner)
        parameters.setLossType(gtsam.GncLossType.TLS)
        parameters.setScheduler(gtsam.GncScheduler.SuperLinear)
        parameters.maxIterations = _OUTER
        parameters.setKnownInliers(inliers)
        parameters.setKnownOutliers(list(vetoed))
        optimizer = gtsam.GncLMOptimizer(factors, values, parameters)
        optimizer.setInlierCostThresholdsAtProbability(self.config.loops.inlier_probability)
        found = optimizer.optimize()
        weights = np.asarray(optimizer.getWeights())[:decided]
        limits = np.array(optimizer.getInlierCostThresholds())
        limits[len(self.loops) : decided] *= self.config.loops.odometry_cost
        errors = np.array([factors.at(k).error(found) for k in range(factors.size())])
        errors[:decided] = np.where(weights < _BELIEVED, limits[:decided], np.minimum(errors, limits)[:decided])
        return weights, float(errors.sum())

    def _without_links(self, weights: Array, cost: float, vetoed: Sequence[int]) -> tuple[Array, list[int]]:
        """The loops' weights, and vertices whose link is rejected, where that explains more than rejecting loops does.

        Many loops that all tell the same correction speak against a link that all of them close over, or for a drift
        over all of these. Which it is, the cost tells.
        """
        clique = self._same_correction()
        if len(clique) < self.config.loops.odometry_cost:
            return weights, []
        under = self._links_under([int(k) for k in _some(np.array(clique))])
        if not under:
            return weights, []
        links = [
            Step(vertex.previous, number, widened(vertex.link, self.config.noise), 1)
            for number in self.vertices
            if (vertex := self.graph.vertices[number]).previous is not None and vertex.link is not None
        ]
        still = [place for place in vetoed if not under & set(self._way(self.loops[place]))]
        again, other = self._weights(links, frozenset(under), still)
        count, order = len(self.loops), [step.second for step in links if step.second in under]
        loose = [number for number, weight in zip(order, again[count:], strict=True) if weight < _BELIEVED]
        if not loose or other >= cost:
            return weights, []
        return again[:count], loose

    def _same_correction(self) -> list[int]:
        """The most loops within trajectories that want their keyframes moved in the same way, and by much."""
        limits, chained = self.config.loops, self.graph.chained(None)
        loops = [
            k
            for k in self.loops
            if self.graph.loops[k].measured.has_length
            and self.graph.vertices[self.graph.loops[k].older].trajectory
            == self.graph.vertices[self.graph.loops[k].newer].trajectory
        ]
        if not loops:
            return []
        moves = np.array([correction(chained, self.graph.loops[k]) for k in loops])
        places = np.array([np.r_[chained[self.graph.loops[k].newer].pose[:3, 3], 1.0] for k in loops])

        def apart(one: Array) -> tuple[Array, Array]:
            """By how much the moves differ from one, in degrees, and at their places."""
            trace = np.einsum("ij,nij->n", one[:3, :3], moves[:, :3, :3])
            angles = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
            return angles, np.linalg.norm(np.einsum("nij,nj->ni", moves[:, :3] - one[:3], places), axis=1)

        turned, moved = apart(np.eye(4))
        much = (turned > limits.max_turn_disagreement) | (moved > limits.max_disagreement)
        best = np.zeros(len(loops), np.bool_)
        for k in _some(np.flatnonzero(much)):
            turned, moved = apart(moves[k])
            same = (turned <= limits.max_turn_disagreement) & (moved <= 2 * limits.max_disagreement) & much
            if same.sum() > best.sum():
                best = same
        return [k for k, is_best in zip(loops, best, strict=True) if is_best]

    def _links_under(self, loops: Sequence[int]) -> set[int]:
        """Vertices whose links lie on the way between the two ends of every one of some loops."""
        ways = [set(self._way(k)) for k in loops]
        return set.intersection(*ways) if ways else set()

    def _way(self, number: int) -> list[int]:
        """The vertices whose links lie between the two ends of a loop of one trajectory."""
        loop = self.graph.loops[number]
        return self.graph.way(loop.older, loop.newer)

    # --- where the keyframes are ---

    def _optimise(self, loops: Sequence[int], loose: set[int]) -> dict[int, Array]:
        """Put all keyframes to where links and believed loops want them; the covariances of the trajectories' ends."""
        gtsam, space, noise = self.gtsam, self.space, self.config.noise
        factors, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
        kernel = gtsam.noiseModel.mEstimator.Huber.Create(_LINK_KERNEL)
        for number in self.vertices:
            vertex = self.graph.vertices[number]
            values.insert(number, space.variable(self.cameras[number]))
            if vertex.previous is not None and vertex.link is not None:
                measured = widened(vertex.link, noise)
                if number in loose:
                    measured = replace(measured, covariance=_LOOSE**2 * measured.covariance)
                factors.push_back(space.robust(space.link(vertex.previous, number, measured, noise.scale), kernel))
        for k in loops:
            factors.push_back(self._loop_factor(self.graph.loops[k]))
        self._hold(factors)
        parameters = gtsam.LevenbergMarquardtParams()
        parameters.setMaxIterations(50)
        found = gtsam.LevenbergMarquardtOptimizer(factors, values, parameters).optimize()
        for number in self.vertices:
            self.cameras[number] = space.camera(found, number)
        marginals = gtsam.Marginals(factors, found)
        ends = {self.graph.vertices[number].trajectory: number for number in self.vertices}
        return {number: space.covariance(marginals, number, self.cameras[number]) for number in ends.values()}

    def _loop_factor(self, loop: Loop) -> Any:
        ends = self.cameras[loop.older], self.cameras[loop.newer]
        return self.space.loop(loop.older, loop.newer, loop.measured, self.config.noise, ends)

    def _hold(self, factors: Any) -> None:
        is_told = bool(self.metric_origins or self.units)
        self.space.held(factors, self.anchor, self.cameras[self.anchor], is_told)
        for number in self.metric_origins:
            self.space.held_scale(factors, number, self.cameras[number])
        for number in self.units:
            told = self.graph.units[number]
            self.space.held_scale(factors, number, self.cameras[number], told.metres, told.std)
