"""The back end: takes what a front end finds keyframe by keyframe, and knows where all keyframes are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.factors import Camera, composed, inverted, require_gtsam, widened
from loftr_ros.backend.graph import Graph, Solution, Vertex
from loftr_ros.backend.imu_clock import MOST, ClockOffset, clock_offset
from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.backend.inertial import InertialSolution, solve_inertial
from loftr_ros.backend.measurements import (
    BackEndError,
    ImageMeasurement,
    KeyframeKey,
    KeyframeMeasurement,
    Landmarks,
    LoopMeasurement,
    PoseMeasurement,
    SharedLandmarks,
    Sightings,
)
from loftr_ros.backend.smoothing import smoothed
from loftr_ros.backend.solving import solve
from loftr_ros.geometry.se3 import between, rotation_matrix, rotation_vector, skew

Array = NDArray[np.float64]

# Images that wait for the next keyframe, at most: every second one goes where there are more.
_WAITING = 400
# Keyframes that a window must have to be smoothed.
_LEAST_WINDOW = 4
# Keyframes that a window with an inertial sensor must have, and has at most: the newest ones.
_LEAST_INERTIAL, _MOST_INERTIAL = 6, 60
# Parts of `inertial.window`: of the first attempt to find metres, and between two attempts.
_FIRST_ATTEMPT, _NEXT_ATTEMPT = 1 / 3, 1 / 6


@dataclass(frozen=True, eq=False)
class Place:
    """Where a keyframe is.

    Attributes:
        camera: pose and unit in the map's frame.
        group: number of the trajectory whose first camera the map's frame is: keyframes of different groups have no
            common frame.
        is_metric: whether the map's unit is a metre.
    """

    camera: Camera
    group: int
    is_metric: bool


@dataclass(frozen=True)
class Counts:
    """What the back end holds.

    Attributes:
        keyframes, trajectories, loops: how many.
        groups: of trajectories that have a common frame.
        believed: loops that take part.
        waiting: loops of which a keyframe has not come.
        broken: links between keyframes that are rejected.
        landmarks: held.
        units: windows in which an inertial sensor told metres.
    """

    keyframes: int
    trajectories: int
    groups: int
    loops: int
    believed: int
    waiting: int
    broken: int
    landmarks: int
    units: int


@dataclass(eq=False)
class _InertialWindow:
    """Keyframes of a single camera that have not told metres yet.

    Attributes:
        vertices: their numbers, oldest first.
        is_known: whether an earlier window told metres.
        next_attempt: part of the whole window's time at which it is tried next.
    """

    vertices: list[int] = field(default_factory=list)
    is_known: bool = False
    next_attempt: float = _FIRST_ATTEMPT


class BackEnd:
    """Takes keyframes as they come, and solves the graph of all when asked to.

    Not thread-safe. `optimise` works on a copy that `snapshot` takes, so that another thread may do it.

    Attributes:
        config: settings; may be replaced at any time.
        graph: keyframes, links and loops.
        solution: of the graph as it was when it was last solved; None before.
        landmarks: of the keyframes, by name.
        is_solved: whether nothing that could change the solution has come since.
        imu: samples of the robots' inertial sensors, by the robots' names; whoever has a sensor puts it here.
        inertial: what the newest window of each robot told, whether it was believed or not; None where it could not
            be solved.
        clock_offsets: of the robots' inertial sensors, where the motion told it.
        mounts: (4, 4) T_base_camera by the cameras' optical frames, of whoever knows them; they are kept with the map,
            whose frame is that of the base at its first keyframe.
    """

    def __init__(self, config: BackEndConfig | None = None) -> None:
        """Begin with nothing.

        Raises:
            BackEndError: GTSAM is not installed.
        """
        require_gtsam()  # here, so that a missing one is told at once
        self.config = config or BackEndConfig()
        self.graph = Graph()
        self.solution: Solution | None = None
        self.landmarks: dict[KeyframeKey, Landmarks] = {}
        self.is_solved = True
        self.imu: dict[str, ImuSamples] = {}
        self.inertial: dict[str, InertialSolution | None] = {}
        self.mounts: dict[str, Array] = {}
        self.clock_offsets: dict[str, ClockOffset] = {}
        self._windows: dict[int, _InertialWindow] = {}  # by trajectory
        # Of single cameras' newest keyframes, by trajectory and vertex.
        self._sightings: dict[int, dict[int, Sightings]] = {}
        self._images: dict[str, list[ImageMeasurement]] = {}
        self._early: list[LoopMeasurement] = []
        self._covariances: dict[int, Array] = {}  # of keyframes since the last solution
        self._cameras: list[Camera] = []  # in the frame of each trajectory, or of the solution where there is one

    # --- what comes in ---

    def add_image(self, image: ImageMeasurement) -> None:
        """Take an image's poses relative to keyframes; it counts once the next keyframe comes."""
        waiting = self._images.setdefault(image.robot, [])
        waiting.append(image)
        if len(waiting) > _WAITING:
            del waiting[::2]

    def add_keyframe(self, keyframe: KeyframeMeasurement) -> bool:
        """Take a keyframe, after the images up to it.

        Returns:
            Whether it is new.
        """
        if keyframe.key in self.graph.numbers:
            return False
        vertex = self.graph.add(keyframe)
        images = self._images.pop(keyframe.key.robot, [])
        later = [each for each in images if each.stamp_ns > keyframe.stamp_ns]
        if later:
            self._images[keyframe.key.robot] = later
        images = [each for each in images if each.stamp_ns <= keyframe.stamp_ns]
        self._revisits(vertex, images)
        self._smooth(vertex, keyframe.shared)
        self._measure_unit(vertex)
        if self._early:
            early, self._early = self._early, []
            for loop in early:
                self.add_loop(loop)
        return True

    def add_loop(self, loop: LoopMeasurement) -> None:
        """Take a loop; one of which a keyframe is not known yet waits for it."""
        if loop.older not in self.graph.numbers or loop.newer not in self.graph.numbers:
            self._early.append(loop)
            del self._early[:-1000]
            return
        if self.graph.add_loop(loop):
            self.is_solved = False

    def add_landmarks(self, key: KeyframeKey, landmarks: Landmarks) -> None:
        """Keep points that a keyframe shows: of those that are known already, too, the best."""
        most = self.config.map.landmarks
        if not most or not len(landmarks):
            return
        found = landmarks.best(most)
        before = self.landmarks.get(key)
        if before is not None:
            new = ~np.isin(before.track_id, found.track_id)
            found = Landmarks(
                np.concatenate([found.points, before.points[new]]),
                np.concatenate([found.std, before.std[new]]),
                np.concatenate([found.track_id, before.track_id[new]]),
            ).best(most)
        self.landmarks[key] = found

    # --- what is made of it ---

    def snapshot(self) -> tuple[Graph, BackEndConfig, Solution | None]:
        """What `solve` takes, as it is now: for another thread."""
        copy = Graph()
        copy.vertices = [replace(each) for each in self.graph.vertices]
        copy.trajectories = [replace(each, vertices=list(each.vertices)) for each in self.graph.trajectories]
        copy.loops = list(self.graph.loops)
        copy.numbers = dict(self.graph.numbers)
        copy.units = dict(self.graph.units)
        self.is_solved = True
        return copy, self.config, self.solution

    def take(self, solution: Solution) -> None:
        """Go by what `solve` found of a snapshot; what has come since is put behind it."""
        self.solution = solution
        self._cameras = []
        self._covariances.clear()

    def optimise(self) -> None:
        """Solve the graph now.

        Raises:
            BackEndError: GTSAM cannot.
        """
        self.take(solve(*self.snapshot()))

    def place(self, key: KeyframeKey) -> Place | None:
        """Where a keyframe is; None where there is no such keyframe."""
        number = self.graph.numbers.get(key)
        if number is None:
            return None
        self._extend()
        trajectory = self.graph.vertices[number].trajectory
        group = self._group(trajectory)
        return Place(self._cameras[number], group, self._is_metric(group))

    def covariance(self, key: KeyframeKey) -> Array | None:
        """(6, 6) of a keyframe's (translation, rotation vector) about the map's axes, seen from the map's first camera.

        Returns:
            None where there is no such keyframe, or nobody knows: of keyframes before the newest ones.
        """
        number = self.graph.numbers.get(key)
        if number is None:
            return None
        way, at = list[Vertex](), self.graph.vertices[number]
        known = {} if self.solution is None else self.solution.covariances
        ends = {self.graph.vertices[end].trajectory: end for end in known}
        known = {**known, **self._covariances}
        while at.number not in known and at.previous is not None:
            if at.number < ends.get(at.trajectory, -1):
                return None
            way.append(at)
            at = self.graph.vertices[at.previous]
        if at.number not in known and self._group(at.trajectory) != at.trajectory:
            return None
        total = known.get(at.number, np.zeros((6, 6)))
        self._extend()
        for vertex in reversed(way):
            assert vertex.previous is not None and vertex.link is not None
            link, camera = widened(vertex.link, self.config.noise), self._cameras[vertex.previous]
            turn = camera.pose[:3, :3]
            arm, add = np.eye(6), np.zeros((6, 6))
            arm[:3, 3:] = -skew(camera.scale * turn @ link.pose[:3, 3])
            add[:3, :3], add[3:, 3:] = camera.scale * turn, turn
            total = arm @ total @ arm.T + add @ link.covariance @ add.T
            self._covariances[vertex.number] = total = np.asarray((total + total.T) / 2)
        return total

    def places(self) -> Iterator[tuple[Vertex, Place]]:
        """All keyframes, in the order that they came in."""
        self._extend()
        metric: dict[int, bool] = {}
        for vertex, camera in zip(self.graph.vertices, self._cameras, strict=True):
            group = self._group(vertex.trajectory)
            if group not in metric:
                metric[group] = self._is_metric(group)
            yield vertex, Place(camera, group, metric[group])

    def inertial_report(self, robot: str) -> str | None:
        """What a robot's inertial sensor tells of its single camera's unit, in words; None without a sensor."""
        samples, found, config = self.imu.get(robot), self.inertial.get(robot), self.config.inertial
        if samples is None or not len(samples):
            return None
        vertices = self.graph.vertices
        newest = next((each for each in reversed(vertices) if each.key.robot == robot), None)
        if newest is not None and self.graph.trajectories[newest.trajectory].is_metric:
            return "not needed: the front end knows metres"
        units = [unit for number, unit in self.graph.units.items() if vertices[number].key.robot == robot]
        if units:
            std = min(unit.std for unit in units)
            return (
                f"metres by {len(units)} window(s), known best to a standard deviation of {100 * std:.1f} %; "
                f"{self._clock_report(robot)}"
            )
        if samples.camera_from_imu is None:
            return "scale unknown: its pose in the camera is not known"
        if robot not in self.inertial:
            return "scale unknown: no window yet of a single camera's keyframes with all samples between them"
        if found is None:
            return "scale unknown: the motion does not tell it"
        if found.misfit > config.max_misfit:
            return (
                f"scale unknown: it contradicts the images (misfit {found.misfit:.1f}); check its pose in the camera, "
                "its stamps and its noise"
            )
        if float(found.unit_stds.min()) <= config.max_scale_std:
            return "scale unknown: by how much its clock differs from the camera's is not known yet"
        return (
            f"scale unknown: the motion tells it to {100 * float(found.unit_stds.min()):.0f} % only, and "
            f"{100 * config.max_scale_std:.0f} % are wanted; faster changes of velocity tell more"
        )

    def _clock_report(self, robot: str) -> str:
        offset = self.clock_offsets.get(robot)
        if offset is None:
            return "whether its clock is the camera's is not known: the motion does not tell it"
        if abs(offset.seconds) < 3 * offset.std:
            return "its clock is the camera's"
        later = "later" if offset.seconds > 0 else "earlier"
        return f"its stamps are {1e3 * abs(offset.seconds):.0f} ms {later} than the camera's, which is allowed for"

    def down(self, group: int) -> Array | None:
        """(3,) direction of gravity about a group's axes, those of its first camera; None where nothing tells it."""
        self._extend()
        told = [
            self._cameras[number].pose[:3, :3] @ unit.down / unit.down_std**2
            for number, unit in self.graph.units.items()
            if self._group(self.graph.vertices[number].trajectory) == group
        ]
        total = np.sum(told, axis=0) if told else np.zeros(3)
        return np.asarray(total / np.linalg.norm(total)) if total.any() else None

    def odometry(self) -> list[Camera]:
        """The keyframes where the links alone lead to, each in its trajectory's frame and unit."""
        return self.graph.chained(None)

    def believed(self) -> list[bool]:
        """Of the graph's loops: whether each takes part; those that came since the last solution do not."""
        known = [] if self.solution is None else self.solution.believed
        return [*known, *([False] * (len(self.graph.loops) - len(known)))]

    def cloud(self) -> Iterator[tuple[Vertex, int, Array, Landmarks]]:
        """For each keyframe with landmarks: its vertex, group, (N, 3) points in the map, and the landmarks."""
        for vertex, place in self.places():
            landmarks = self.landmarks.get(vertex.key)
            if landmarks is not None and len(landmarks):
                yield vertex, place.group, place.camera.points(landmarks.points), landmarks

    @property
    def counts(self) -> Counts:
        """For a status."""
        groups = {self._group(each.number) for each in self.graph.trajectories}
        return Counts(
            len(self.graph.vertices),
            len(self.graph.trajectories),
            len(groups),
            len(self.graph.loops),
            sum(self.believed()),
            len(self._early),
            0 if self.solution is None else len(self.solution.broken),
            sum(len(each) for each in self.landmarks.values()),
            len(self.graph.units),
        )

    def restore(self, graph: Graph, solution: Solution | None, landmarks: dict[KeyframeKey, Landmarks]) -> None:
        """Go on from a map that was saved.

        Raises:
            BackEndError: keyframes have come already.
        """
        if self.graph.vertices:
            raise BackEndError("a map can only be loaded before the first keyframe")
        self.graph, self.solution, self.landmarks = graph, solution, landmarks
        self._windows.clear()
        self._cameras = []

    # --- the rest ---

    def _smooth(self, vertex: Vertex, shared: SharedLandmarks | None) -> None:
        """Smooth the newest keyframes of a single camera: their links are replaced."""
        trajectory, count = self.graph.trajectories[vertex.trajectory], self.config.local.window
        if trajectory.is_metric or not count or shared is None or vertex.previous is None:
            return
        newest = trajectory.vertices[-count:]
        sightings = self._sightings.get(vertex.trajectory, {})
        sightings[vertex.number] = shared.seen
        sightings[vertex.previous] = sightings.get(vertex.previous, Sightings()).with_new(shared.born)
        self._sightings[vertex.trajectory] = {number: sightings[number] for number in newest if number in sightings}
        window = self._chained(newest)
        if len(window) < _LEAST_WINDOW:
            return
        place = {number: k for k, number in enumerate(window)}
        links = [
            None if link is None or before not in place else (place[before], link)
            for before, link in ((self.graph.vertices[n].previous, self.graph.vertices[n].link) for n in window)
        ]
        held = len(window) // 2
        found = smoothed(list(window.values()), links, [sightings.get(number, Sightings()) for number in window], held)
        if found is not None:
            self._replace_links(list(window)[held:], links[held:], found)

    def _measure_unit(self, vertex: Vertex) -> None:
        """Find a single camera's unit by the inertial sensor, where a window of keyframes is complete.

        Before metres are known shorter windows are tried too. One that tells them ends at its newest keyframe, where
        the next one begins: no measurement is used twice.
        """
        samples, config = self.imu.get(vertex.key.robot), self.config.inertial
        trajectory = self.graph.trajectories[vertex.trajectory]
        if samples is None or samples.camera_from_imu is None or trajectory.is_metric:
            return
        window = self._windows.setdefault(trajectory.number, _InertialWindow())
        window.vertices.append(vertex.number)
        window.vertices = list(self._chained(window.vertices[-_MOST_INERTIAL:]))
        vertices = [self.graph.vertices[number] for number in window.vertices]
        seconds = (vertex.stamp_ns - vertices[0].stamp_ns) / 1e9
        is_full = seconds >= config.window or len(vertices) == _MOST_INERTIAL
        is_due = not window.is_known and seconds >= window.next_attempt * config.window
        if len(vertices) < _LEAST_INERTIAL or not (is_full or is_due):
            return
        if (samples.newest_ns or 0) < vertex.stamp_ns:  # they come later: with the next keyframe
            return
        window.next_attempt = seconds / config.window + _NEXT_ATTEMPT
        place, stamps = {number: k for k, number in enumerate(window.vertices)}, [each.stamp_ns for each in vertices]
        is_told = self._compare_clocks(vertex, samples)
        known = self.clock_offsets.get(vertex.key.robot)
        shift = 0 if known is None else round(known.seconds * 1e9)
        if (samples.newest_ns or 0) < vertex.stamp_ns + shift:
            return
        stretches = samples.between([stamp + shift for stamp in stamps])
        if stretches is not None:
            links = [(place[e.previous], e.link) for e in vertices[1:] if e.previous is not None and e.link is not None]
            found = solve_inertial(links, stretches, samples.camera_from_imu, config, self.config.noise)
            self.inertial[vertex.key.robot] = found
            told = None if found is None or found.misfit > config.max_misfit else found.measurement()
            if is_told and told is not None and told[1].std <= config.max_scale_std:
                self.graph.units[window.vertices[told[0]]] = told[1]
                self.is_solved = False
                self._windows[trajectory.number] = _InertialWindow([vertex.number], True)
                return
        if is_full:  # the next one has its newer half
            window.vertices, window.next_attempt = window.vertices[len(vertices) // 2 :], _FIRST_ATTEMPT

    def _compare_clocks(self, vertex: Vertex, samples: ImuSamples) -> bool:
        """Find by how much an inertial sensor's stamps differ; whether it is known, or the motion does not tell it."""
        newest = self._chained(self.graph.trajectories[vertex.trajectory].vertices[-MOST:])
        stamps = [self.graph.vertices[number].stamp_ns for number in newest]
        offset = clock_offset([pose[:3, :3] for pose in newest.values()], stamps, samples)
        if offset is not None and offset.is_known:
            self.clock_offsets[vertex.key.robot] = offset
        return vertex.key.robot in self.clock_offsets or (offset is not None and len(newest) >= MOST)

    def _chained(self, numbers: list[int]) -> dict[int, Array]:
        """Poses of the newest of these keyframes that links connect, by number, in the frame of the first of them."""
        poses: dict[int, Array] = {}
        for number in numbers:
            before, link = self.graph.vertices[number].previous, self.graph.vertices[number].link
            if before in poses and link is not None:
                poses[number] = poses[before] @ link.pose
            else:
                poses = {number: np.eye(4)}
        return poses

    def _replace_links(
        self, numbers: list[int], links: list[tuple[int, PoseMeasurement] | None], poses: list[Array]
    ) -> None:
        """Make the links of the newest keyframes agree with the poses of their window.

        Args:
            numbers: the keyframes, the last of the window.
            links: of each, as `smoothed` takes them.
            poses: (4, 4) of all keyframes of the window.
        """
        vertices = self.graph.vertices
        for number, known, found in zip(numbers, links, poses[-len(numbers) :], strict=True):
            if known is not None:
                before, link = known
                pose = between(poses[before], found)
                pose[:3, :3] = rotation_matrix(rotation_vector(pose[:3, :3]))  # or rounding grows with each window
                vertices[number].link = replace(link, pose=pose)
            self._covariances.pop(number, None)
        del self._cameras[max(numbers[0], 0 if self.solution is None else len(self.solution.cameras)) :]
        self.is_solved &= not self.graph.loops

    def _revisits(self, vertex: Vertex, images: list[ImageMeasurement]) -> None:
        """Take poses relative to keyframes far back in the trajectory, or of another one, as loops."""
        graph = self.graph
        for image in images:
            is_own = image.stamp_ns == vertex.stamp_ns
            for key, pose in image.poses.items():
                number = graph.numbers.get(key)
                if number is None or not pose.has_length:
                    continue
                is_other = graph.vertices[number].trajectory != vertex.trajectory
                if is_own and (is_other or len(graph.way(number, vertex.number)) >= self.config.loops.min_steps):
                    self.add_loop(LoopMeasurement(key, vertex.key, pose))
                elif not is_own and is_other:
                    self._join_by(image, key, pose)

    def _join_by(self, image: ImageMeasurement, key: KeyframeKey, pose: PoseMeasurement) -> None:
        """Take a loop from an image that shows keyframes of two trajectories: it tells where one is in the other."""
        number = self.graph.numbers[key]
        for other, measured in image.poses.items():
            if measured.has_length and other in self.graph.numbers and self._trajectory(other) != self._trajectory(key):
                if number < self.graph.numbers[other]:
                    back = composed(widened(pose, self.config.noise), inverted(measured))
                    self.add_loop(LoopMeasurement(key, other, back))
                return

    def _trajectory(self, key: KeyframeKey) -> int:
        return self.graph.vertices[self.graph.numbers[key]].trajectory

    def _extend(self) -> None:
        """Cameras of the keyframes that have come since, by their links."""
        known = 0 if self.solution is None else len(self.solution.cameras)
        if len(self._cameras) < known:
            assert self.solution is not None
            self._cameras = list(self.solution.cameras)
        for vertex in self.graph.vertices[len(self._cameras) :]:
            if vertex.previous is None or vertex.link is None:
                self._cameras.append(Camera(np.eye(4)))
            else:
                self._cameras.append(self._cameras[vertex.previous].moved(vertex.link.pose))

    def _group(self, trajectory: int) -> int:
        """A trajectory that came since the last solution is a group of its own."""
        if self.solution is not None and trajectory < len(self.solution.groups):
            return self.solution.groups[trajectory]
        return trajectory

    def _is_metric(self, group: int) -> bool:
        if self.solution is not None and group in self.solution.metric:
            return True
        return self.graph.trajectories[group].is_metric
