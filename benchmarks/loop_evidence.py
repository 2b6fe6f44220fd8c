"""Results of retrieval, verification and detection for every keyframe of rendered worlds, beside the truth.

All worlds go into one archive, one session each, so that all other worlds are wrong places for a camera.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from loop_memory import Memory, Remembered, RememberingVerifier
from numpy.typing import NDArray

from loftr_ros.evaluation.metrics import rotation_error, translation_direction_error
from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.odometry import Location
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.geometry.se3 import between
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import LoopConfig
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.places.detector import LoopDetector
from loftr_ros.places.keyframe import KeyframeName, RecentPast
from loftr_ros.places.view import NewKeyframe, View
from loftr_ros.worlds.revisits import World
from loftr_ros.worlds.scene import default_camera

ROBOT = "benchmark"
BETWEEN = 3  # images between two keyframes, plus one; those between may confirm a place
OWN_UNIT = 0.7  # of a single camera, for a metre, at the beginning of a walk
SCALE_DRIFT = 0.004  # of the logarithm of that unit from keyframe to keyframe, standard deviation
DEPTH_ERROR = 0.05  # relative error of the depths of keyframes' cells
DRIFT = 0.2  # degrees, standard deviation of odometry's error from keyframe to keyframe, for each axis
CELL = 8  # pixels of a cell with depth
_WORLD = 10_000  # keyframe numbers of a world start at this times its seed

Array = NDArray[np.float64]


@dataclass
class Tried:
    """One archived keyframe, verified against a query.

    Attributes:
        world, number: identify it.
        other_place: whether both show different places; otherwise their views overlap.
        alike: why different places look alike, see `World.alike`; `world` for another building.
        similarity: of the descriptors.
        matches, inliers, coverage: of the verification.
        posed: whether it has a rotation.
        rotation, direction: errors in degrees; NaN without a truth or an estimate.
        angle, distance, covisible: true ones, degrees and metres; NaN for another building.
        hull: part of either image inside the convex hull of the inliers, the smaller one of both images.
        planar: part of the inliers that one homography explains to 3 px.
        status: of the pose, a `PoseStatus`.
    """

    world: int
    number: int
    other_place: bool
    alike: str
    similarity: float
    matches: int = 0
    inliers: int = 0
    coverage: float = 0.0
    posed: bool = False
    rotation: float = float("nan")
    direction: float = float("nan")
    angle: float = float("nan")
    distance: float = float("nan")
    covisible: float = float("nan")
    hull: float = 0.0
    planar: float = 0.0
    status: str = ""

    @property
    def score(self) -> float:
        """As `Verification.score`."""
        return self.coverage * self.inliers / self.matches if self.matches and self.posed else 0.0

    def is_right(self, most: float = 5.0) -> bool:
        """Whether it is the same place, with a rotation error of at most `most` degrees."""
        return not self.other_place and self.rotation <= most


@dataclass
class Asked:
    """One keyframe of a walk.

    Attributes:
        world, number: identify it.
        kind: `revisit`, `partial` if older views share a part of it but none is a revisit, or `new`.
        angle, distance, covisible: of the revisited view with the largest overlap, degrees and metres; else NaN.
        archived: number of archived keyframes to find it among.
        alike: number of look-alike older views of other places in its building, by reason.
        tried: candidates, the nearest first.
        closure: the detector's result for it.
        confirmations: consecutive images that agreed.
        seconds: of the search, and of the verification of each candidate.
    """

    world: int
    number: int
    kind: str
    angle: float
    distance: float
    covisible: float
    archived: int
    alike: dict[str, int]
    tried: list[Tried] = field(default_factory=list)
    closure: Tried | None = None
    confirmations: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)


def gather(
    front_end: FrontEnd,
    worlds: Sequence[World],
    config: LoopConfig,
    between: int = BETWEEN,
    second_tour_only: bool = False,
) -> Iterator[Asked]:
    """Walk through all worlds in turn, and collect the results of each keyframe.

    The published loop of a keyframe may be filled in later, when more images have confirmed it.

    Args:
        front_end: for its matcher and settings.
        worlds: their views are the keyframes.
        config: of the detection, and of the number of verified candidates.
        between: images from one keyframe to the next, of which those between may confirm a place.
        second_tour_only: only archive the views of the first tour; for tuning.
    """
    describe = PlaceDescriptor.of(front_end.matcher)
    verifier = RememberingVerifier(front_end.pairs)
    with (
        tempfile.TemporaryDirectory() as folder,
        Archive.open(folder, describe.space, describe.dimension) as archive,
    ):
        detector = LoopDetector(archive, verifier, config)
        for session, world in enumerate(worlds):
            detector.reset()
            verifier.memory = Memory(world.cache, world.seed, front_end, describe)
            first = int(np.argmax(world.tours == 1)) if second_tour_only else 0
            yield from _Walk(world, session, detector, describe, between).go(first)
            verifier.memory.save()


class _Walk:
    """One world's keyframes, searched for and archived in turn."""

    def __init__(
        self, world: World, session: int, detector: LoopDetector, describe: PlaceDescriptor, between: int
    ) -> None:
        self.world, self.session, self.detector, self.between = world, session, detector, between
        self.describe = describe
        self.finer = World(world.seed, world.rate * between, world.cache)
        self.finer.share(world)
        self.odometry, self.units = _drifting(self.finer.poses, np.random.default_rng([world.seed, 1]), between)
        steps = np.linalg.norm(np.diff(self.odometry[:, :3, 3], axis=0), axis=1)
        self.way = np.concatenate([[0.0], np.cumsum(steps)])
        self.asked: dict[int, Asked] = {}

    def go(self, first: int) -> Iterator[Asked]:
        """Results from the keyframe with number `first` on."""
        archive, config, memory = self.detector.archive, self.detector.config, self._verifier.memory
        assert memory is not None
        archived_before = len(archive)
        for number in range(len(self.world)):
            view = self._keyframe(number)
            assert view.name is not None and view.descriptor is not None
            if number >= first:
                one = self.asked[number] = _asked(self.world, number, config, archived_before)
                start = time.perf_counter()
                newest = view.frame.stamp_ns - round(config.min_age * 1e9)
                found = archive.search(view.descriptor, config.candidates, RecentPast(ROBOT, self.session, newest))
                one.seconds["search"] = [time.perf_counter() - start]
                for candidate in found:
                    archived = archive.get(candidate.name)
                    assert archived is not None
                    known = self._verifier.remember(archived, view.frame)
                    one.tried.append(self._tried(number, candidate.name, candidate.similarity, known))
                one.seconds["verify"] = [memory.verified[c.name.id, view.frame.stamp_ns].seconds for c in found]
                self._publish(view)
                yield one
                self._between(number)
                if number % 50 == 0:
                    memory.save()
            archive.add(NewKeyframe(view, None, *self._depth(number)).archived(90))

    @property
    def _verifier(self) -> RememberingVerifier:
        assert isinstance(self.detector.verifier, RememberingVerifier)
        return self.detector.verifier

    def _keyframe(self, number: int) -> View:
        image, _, stamp_ns = self.world.view(number)
        frame = Frame(image, stamp_ns, "camera", self.world.camera)
        assert self._verifier.memory is not None
        descriptor = self._verifier.memory.describe(
            number, lambda: self.describe(self._verifier.encode(frame).features)
        )
        name = KeyframeName(ROBOT, self.world.seed * _WORLD + number + 1)
        moment = number * self.between
        return View(frame, name, self.session, descriptor, self._location(moment), float(self.way[moment]))

    def _depth(self, number: int) -> tuple[CellDepth, tuple[int, int]]:
        """Depths of a keyframe's cells as from triangulation: in the unit of its time, with errors."""
        small = default_camera(self.world.camera.width // CELL, self.world.camera.height // CELL)
        pose = self.world.poses[number]
        _, metres = self.world.building.render(small.matrix, (small.width, small.height), pose, supersample=1)
        depth = metres * self.units[number * self.between]
        rng = np.random.default_rng([self.world.seed, 2, number])
        inverse = (1 + DEPTH_ERROR * rng.standard_normal(depth.shape)) / depth
        return CellDepth(inverse.ravel(), (DEPTH_ERROR / depth.ravel()) ** 2, False), depth.shape

    def _between(self, number: int) -> None:
        """Images up to the next keyframe, while one could confirm a place."""
        for moment in range(number * self.between + 1, min((number + 1) * self.between, len(self.finer))):
            if self.detector.is_waiting:
                image, _, stamp_ns = self.finer.view(moment)
                frame = Frame(image, stamp_ns, "camera", self.world.camera)
                way = float(self.way[moment])
                self._publish(View(frame, None, self.session, None, self._location(moment), way))

    def _location(self, moment: int) -> Location:
        doubt = SCALE_DRIFT * (moment / self.between) ** 0.5
        return Location(self.odometry[moment], np.zeros((6, 6)), False, doubt)

    def _publish(self, view: View) -> None:
        memory = self._verifier.memory
        assert memory is not None
        for closure in self.detector.process(view):
            number = (closure.current.id - 1) % _WORLD
            older, stamp_ns = closure.keyframe.name, closure.stamp_ns
            known = memory.verified[older.id, stamp_ns]
            self.asked[number].closure = self._tried(number, older, closure.similarity, known)
            self.asked[number].confirmations = closure.confirmations

    def _tried(self, number: int, name: KeyframeName, similarity: float, known: Remembered) -> Tried:
        world = self.world
        seed, other = divmod(name.id - 1, _WORLD)
        pose = known.pose
        tried = Tried(seed, other, True, "world", similarity, known.matches, int(pose.inliers.sum()), known.coverage)
        tried.posed, tried.hull, tried.planar, tried.status = (
            pose.has_rotation,
            known.hull,
            known.planar,
            pose.status.name,
        )
        if seed != world.seed:
            return tried
        related = world.relations
        tried.other_place = bool(related.is_other_place[number, other])
        tried.alike = world.alike(number, other) if tried.other_place else ""
        tried.angle, tried.distance = float(related.angle[number, other]), float(related.distance[number, other])
        tried.covisible = float(related.covisible[number, other])
        truth = between(world.poses[other], world.poses[number])
        if pose.has_rotation:
            tried.rotation = rotation_error(pose.rotation, truth[:3, :3])
        if pose.has_direction and tried.distance > 0.05:
            tried.direction = translation_direction_error(pose.translation, truth[:3, 3])
        return tried


def _asked(world: World, number: int, config: LoopConfig, archived_before: int) -> Asked:
    related = world.relations
    older = np.flatnonzero((world.stamps[number] - np.array(world.stamps)) >= config.min_age * 1e9)
    revisits = older[related.is_revisit[number, older]]
    nan = float("nan")
    alike: dict[str, int] = {}
    for other in older[related.is_other_place[number, older]]:
        reason = world.alike(number, int(other))
        alike[reason] = alike.get(reason, 0) + 1
    total = archived_before + len(older)
    if not len(revisits):
        kind = "new" if related.is_other_place[number, older].all() else "partial"
        return Asked(world.seed, number, kind, nan, nan, nan, total, alike)
    best = revisits[np.argmax(related.covisible[number, revisits])]
    measures = (float(array[number, best]) for array in (related.angle, related.distance, related.covisible))
    return Asked(world.seed, number, "revisit", *measures, total, alike)


def _drifting(poses: Array, rng: np.random.Generator, between: int) -> tuple[Array, Array]:
    """Odometry of a single camera: true steps with errors of rotation and of scale, in its own frame and unit.

    Returns:
        (N, 4, 4) poses, and (N,) length of a metre in the unit of each step.
    """
    found = np.tile(np.eye(4), (len(poses), 1, 1))
    units = OWN_UNIT * np.exp(np.cumsum(SCALE_DRIFT / between**0.5 * rng.standard_normal(len(poses))))
    for k in range(1, len(poses)):
        step = np.linalg.inv(poses[k - 1]) @ poses[k]
        x, y, z = np.radians(DRIFT / between**0.5) * rng.standard_normal(3)
        step[:3, :3] = step[:3, :3] @ (np.eye(3) + np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
        left, _, right = np.linalg.svd(step[:3, :3])
        step[:3, :3] = left @ right
        step[:3, 3] *= units[k]
        found[k] = found[k - 1] @ step
    return found, units


def save(asked: Sequence[Asked], path: Path) -> None:
    """Write the results, one JSON object per line."""
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in asked))


def load(path: Path) -> list[Asked]:
    """Read the file of `save`."""
    asked = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        record["tried"] = [Tried(**each) for each in record["tried"]]
        record["closure"] = None if record["closure"] is None else Tried(**record["closure"])
        asked.append(Asked(**record))
    return asked
