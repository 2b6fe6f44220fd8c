"""The back end in the node: a bounded queue, one thread, and the output."""

from __future__ import annotations

import concurrent.futures
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode

from loftr_ros.backend.back_end import BackEnd, Counts
from loftr_ros.backend.graph import Vertex
from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.backend.measurements import BackEndError, KeyframeKey
from loftr_ros.backend.solver_process import SolverProcess
from loftr_ros.backend.storage import load_map, save_map
from loftr_ros.geometry.se3 import inverse
from loftr_ros.msg import Keyframe, LoopClosure, RelativePose, Tracks
from loftr_ros.ros.back_end.input import OdometryFix, RobotInput, loop_of
from loftr_ros.ros.back_end.output import MapFrame, MapOutput, pose_message, transform_message
from loftr_ros.ros.back_end.parameters import BackEndParameters
from loftr_ros.ros.output.camera_mount import CameraMount
from loftr_ros.ros.output.messages import to_nanoseconds, to_time
from loftr_ros.threads import Asked, Task, WorkThread

Array = NDArray[np.float64]

# Seconds between two rounds if no message comes: a keyframe or a solution may be waiting.
_TICK = 0.05


@dataclass(frozen=True)
class WorkState:
    """For the status.

    Attributes:
        counts: what the back end holds.
        localized: for each robot, whether its place in the map is known.
        queued, dropped, received: messages that wait, that were dropped since too many waited, and that came.
        is_solving: whether the graph is being solved.
        solved_in: seconds that the last solution took; 0 before.
        position_std: for each robot that is localized, metres (or the map's unit), of its newest keyframe in the map.
        is_metric: whether the map is in metres.
        inertial: for each robot with an inertial sensor, what that tells of its single camera's unit, in words.
        down: (3,) direction of gravity about the map's axes; None where nothing tells it.
    """

    counts: Counts
    localized: dict[str, bool]
    queued: int
    dropped: int
    received: int
    is_solving: bool
    solved_in: float
    position_std: dict[str, float]
    is_metric: bool
    inertial: dict[str, str]
    down: Array | None


@dataclass(frozen=True, eq=False)
class _Offset:
    """map -> odom.

    Attributes:
        pose: (4, 4) T_map_odom.
        trajectory: number of that which its keyframe belongs to.
        run: of the odometry, see `OdometryFix`.
    """

    pose: Array
    trajectory: int
    run: int


class BackEndWork:
    """Owns the back end. Everything but `put` and `state` runs on its thread."""

    def __init__(
        self,
        node: LifecycleNode,
        parameters: BackEndParameters,
        robots: list[str],
        output: MapOutput,
        mount: CameraMount,
        on_error: Callable[[Exception, str], None],
    ) -> None:
        """Load the map and start the thread.

        Args:
            node: for its logger and clock.
            parameters: the node's.
            robots: names of the robots.
            output: publishes.
            mount: poses of the cameras on the robots.
            on_error: called with an error and its traceback (empty for expected errors).

        Raises:
            BackEndError: GTSAM is missing, or the map cannot be read.
        """
        self._logger, self.parameters, self._is_alive = node.get_logger(), parameters, node.context.ok
        self._output, self._mount, self._on_error = output, mount, on_error
        self._inputs = {robot: RobotInput(robot) for robot in robots}
        self.back_end = BackEnd(parameters.back_end)
        self.back_end.imu.update({robot: ImuSamples() for robot in robots})
        self._path = Path(parameters.file.map_file).expanduser() if parameters.file.map_file else None
        if self._path is not None and self._path.exists():
            load_map(self.back_end, self._path)
            for vertex in self.back_end.graph.vertices:
                if vertex.key.robot in self._inputs:
                    self._inputs[vertex.key.robot].known(vertex.key, vertex.stamp_ns)
            counts = self.back_end.counts
            self._logger.info(
                f"map {self._path}: {counts.keyframes} keyframes, {counts.believed} loops, {counts.landmarks} landmarks"
            )
        self._solver = SolverProcess()
        self._frame: MapFrame | None = None
        self._newest: dict[str, KeyframeKey] = {}
        self._camera_frames: dict[str, str] = {}
        self._anchors: dict[str, tuple[KeyframeKey, OdometryFix]] = {}  # the newest keyframes with odometry
        self._offsets: dict[str, _Offset] = {}
        self._on_tf: dict[str, str] = {}  # robots by their odometry's frames
        self._unmounted: set[str] = set()  # robots whose camera's mount may still come
        self._aliases: dict[str, str] = {}  # robots by the names that their front ends have for them
        self._jumps_seen = 0
        self._reported: dict[str, bool] = {}
        self._position_std: dict[str, float] = {}
        self._queue: deque[tuple[str, Any]] = deque()
        self._commands: deque[Task] = deque()
        self._received = self._dropped = 0
        self._solve_begun = self._solved_in = 0.0
        self._next_solve = self._next_map = 0.0
        self._next_save = time.monotonic() + parameters.file.map_save_period
        self._is_changed = self._is_unsaved = False
        self._next_round = 0.0
        self._is_finished = False
        self._thread = WorkThread(self._next, "loftr_back_end")
        self._condition = self._thread.condition
        self._state = self._made_state()
        self._thread.start()

    # --- any thread ---

    def put(self, robot: str, message: Any) -> None:
        """Queue a message; if the queue is full, the oldest is dropped. Never blocks."""
        with self._condition:
            self._received += 1
            self._queue.append((robot, message))
            if len(self._queue) > self.parameters.input.queue_size:
                self._queue.popleft()
                self._dropped += 1
            self._condition.notify()

    def save(self, timeout: float = 60.0) -> str:
        """Write the map on the thread, and wait until it is written.

        Returns:
            A sentence that says what was written.

        Raises:
            BackEndError: there is no map file, it cannot be written, or it takes too long.
        """
        if self._path is None:
            raise BackEndError("no file of the map is known: set the parameter map_file")
        asked = Asked(self._save)
        with self._condition:
            self._commands.append(asked)
            self._condition.notify()
        try:
            asked.answer.result(timeout)
        except concurrent.futures.TimeoutError:
            raise BackEndError(f"the map was not written within {timeout:.0f} s") from None
        return f"{self._state.counts.keyframes} keyframes written to {self._path}"

    def reconfigure(self, parameters: BackEndParameters) -> None:
        """Use other live parameters."""
        self.parameters = parameters
        self.back_end.config = parameters.back_end

    def camera_frame(self, robot: str) -> str:
        """Optical frame of a robot's newest keyframe; empty before the first."""
        return self._camera_frames.get(robot, "")

    @property
    def state(self) -> WorkState:
        """A recent snapshot, for the status."""
        return self._state

    def close(self) -> None:
        """Process the waiting messages, write the map, and end the thread and the solver."""
        self._thread.stop()
        self._solver.close()

    # --- the thread ---

    def _next(self) -> Task | float | None:
        wait = self._next_round - time.monotonic()
        if self._queue or self._commands or (wait <= 0 and not self._thread.is_stopping):
            items, commands = list(self._queue), list(self._commands)
            self._queue.clear()
            self._commands.clear()
            return partial(self._round, items, commands)
        if not self._thread.is_stopping:
            return wait
        if self._is_finished:
            return None
        self._is_finished = True
        return partial(self._guarded, self._save_at_the_end)

    def _round(self, items: list[tuple[str, Any]], commands: list[Task]) -> None:
        if self._dropped != self._jumps_seen:
            self._jumps_seen = self._dropped
            for source in self._inputs.values():
                source.jumped()
        for robot, message in items:
            self._guarded(self._take, robot, message)
        for robot in self._inputs:
            self._guarded(self._keyframes, robot)
            self._guarded(self._send_transforms, robot)
        for command in commands:
            command()
        self._guarded(self._solve)
        self._guarded(self._publish)
        self._guarded(self._save_in_time)
        held = len(self.back_end.graph.vertices)
        if items or held != self._state.counts.keyframes or self._solver.is_busy is not self._state.is_solving:
            self._state = self._made_state()
        self._next_round = time.monotonic() + _TICK

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Report exceptions: the thread must not end."""
        try:
            work(*arguments)
        except Exception as error:
            details = "" if isinstance(error, BackEndError) else traceback.format_exc()
            self._on_error(error, details)

    def _take(self, robot: str, message: Any) -> None:
        source = self._inputs[robot]
        if isinstance(message, RelativePose):
            source.add_relative_pose(message)
        elif isinstance(message, Tracks):
            source.add_tracks(message)
        elif isinstance(message, Keyframe):
            source.add_keyframe(message)
        elif isinstance(message, LoopClosure):
            self._take_loop(source, message)
        else:
            source.add_odometry(message)
            self._keyframes(robot)
            self._send_transforms(robot)

    def _take_loop(self, source: RobotInput, message: LoopClosure) -> None:
        self._aliases[message.robot] = source.robot
        owner = self._aliases.get(message.matched_robot, message.matched_robot)
        older = self._named(owner, message.matched_keyframe_id, to_nanoseconds(message.matched_stamp))
        newer = self._named(source.robot, message.keyframe_id, to_nanoseconds(message.header.stamp))
        loop = loop_of(message, older, newer)
        if loop is not None:
            self.back_end.add_loop(loop)

    def _named(self, robot: str, keyframe_id: int, stamp_ns: int) -> KeyframeKey:
        """Name of a keyframe of a loop, which may come later.

        Raises:
            BackEndError: the map's keyframe of this number is another one.
        """
        graph, source = self.back_end.graph, self._inputs.get(robot)
        names = [KeyframeKey(robot, keyframe_id)] if source is None else list(source.names(keyframe_id, stamp_ns))
        for key in names:
            number = graph.numbers.get(key)
            if number is not None and graph.vertices[number].stamp_ns == stamp_ns:
                return key
        if not names or names[0] in graph.numbers:
            stamps = [graph.vertices[graph.numbers[key]].stamp_ns for key in names if key in graph.numbers]
            raise BackEndError(
                f"a loop with keyframe {keyframe_id} of robot '{robot}' of {1e-9 * stamp_ns:.3f} s is left out: the "
                "map's keyframe of this number is of another time"
                + "".join(f", {1e-9 * other:.3f} s" for other in stamps)
                + ". The front end's archive and the map are not of the same runs"
            )
        return names[0]

    def _keyframes(self, robot: str) -> None:
        source = self._inputs[robot]
        if not source.is_waiting:
            return
        for images, keyframe, seen in source.ready():
            for image in images:
                self.back_end.add_image(image)
            if not self.back_end.add_keyframe(keyframe):
                continue
            for key, landmarks in seen:
                self.back_end.add_landmarks(key, landmarks)
            self._is_changed = self._is_unsaved = True
            self._newest[robot], self._camera_frames[robot] = keyframe.key, keyframe.frame_id
            fix = source.fix_at(keyframe.stamp_ns)
            if fix is not None:
                self._anchors[robot] = keyframe.key, fix
            self._locate(robot)
            self._send_pose(robot)

    def _solve(self) -> None:
        solution = self._solver.take()
        now = time.monotonic()
        if solution is not None:
            self._solved_in = now - self._solve_begun
            self.back_end.take(solution)
            self._is_changed = self._is_unsaved = True
            for robot in self._newest:
                self._locate(robot)
                self._send_pose(robot)
            self._state = self._made_state()
        if not self.back_end.is_solved and not self._solver.is_busy and now >= self._next_solve:
            self._next_solve = now + self.parameters.output.optimise_period
            self._solve_begun = now
            self._solver.begin(*self.back_end.snapshot())

    def _home(self) -> int | None:
        """Group of the map's first keyframe, which defines the map's frame."""
        found = next(self.back_end.places(), None)
        return None if found is None else found[1].group

    def _framed(self, frame_id: str) -> MapFrame | None:
        """The map's frame, in which a camera's mount is known, too; None while one of the two may still come."""
        back_end = self.back_end
        mounted = self._mount.of(frame_id)
        if mounted is not None:
            back_end.mounts[frame_id] = mounted
        if self._frame is None and back_end.graph.vertices:
            first = back_end.graph.vertices[0].frame_id
            mounted = back_end.mounts.get(first)
            if mounted is None:
                mounted = self._mount.of(first)
            if mounted is not None:
                self._frame = MapFrame(self.parameters.frames.map_frame, mounted.copy(), back_end.mounts)
        return self._frame if frame_id in back_end.mounts else None

    def _locate(self, robot: str) -> None:
        """Compute map -> odom by the robot's newest keyframe; there is none if no loop connects it with the map."""
        newest = self.back_end.graph.vertices[self.back_end.graph.numbers[self._newest[robot]]]
        anchor = self._anchors.get(robot)
        place = None if anchor is None else self.back_end.place(anchor[0])
        frame = self._framed(newest.frame_id)
        (self._unmounted.add if frame is None else self._unmounted.discard)(robot)
        offset = None
        if anchor is not None and place is not None and place.group == self._home() and frame is not None:
            vertex = self.back_end.graph.vertices[self.back_end.graph.numbers[anchor[0]]]
            if vertex.trajectory == newest.trajectory:
                base = frame.base(place.camera.pose, vertex.frame_id)
                offset = _Offset(base @ inverse(anchor[1].pose), vertex.trajectory, anchor[1].run)
        self._place_robot(robot, offset)

    def _place_robot(self, robot: str, offset: _Offset | None) -> None:
        """Go by an offset from now on; None: it is not known."""
        if offset is None:
            self._offsets.pop(robot, None)
        else:
            self._offsets[robot] = offset
        known = offset is not None
        if self._reported.get(robot) is known:
            return
        self._reported[robot] = known
        if known:
            self._logger.info(f"robot '{robot}' is localized in the map")
        else:
            self._logger.info(
                f"robot '{robot}' is not localized in the map: no loops lead from its newest keyframe to the map's, or "
                "its odometry has not come"
            )

    def _send_transforms(self, robot: str) -> None:
        """Publish map -> odom for the images that have come, if it is known and their odometry has not jumped since."""
        graph = self.back_end.graph
        for fix, key in self._inputs[robot].placed(graph.numbers.__contains__):
            vertex = graph.vertices[graph.numbers[key]]
            offset = self._offsets.get(robot)
            if robot in self._unmounted:
                self._locate(robot)
                offset = self._offsets.get(robot)
            if offset is not None and fix.run < offset.run:
                continue  # of before the jump
            if offset is None or (offset.trajectory, offset.run) != (vertex.trajectory, fix.run):
                # The odometry has jumped. A keyframe comes next; before that an old one may have located the image.
                offset = self._found_again(robot, fix, vertex)
                self._place_robot(robot, offset)
            if offset is not None:
                self._send_transform(robot, fix, offset)

    def _send_transform(self, robot: str, fix: OdometryFix, offset: _Offset) -> None:
        stamp_ns = fix.stamp_ns + round(self.parameters.frames.tf_tolerance * 1e9)
        message = transform_message(offset.pose, to_time(stamp_ns), self.parameters.frames.map_frame, fix.odom_frame)
        owner = self._on_tf.setdefault(fix.odom_frame, robot)
        self._output.transform(message, robot, owner == robot)
        if owner != robot:
            raise BackEndError(
                f"the odometry of '{owner}' and of '{robot}' has the same frame {fix.odom_frame}: map -> "
                f"{fix.odom_frame} is on /tf for '{owner}' alone. Set odometry.odom_frame of one front end"
            )

    def _found_again(self, robot: str, fix: OdometryFix, vertex: Vertex) -> _Offset | None:
        """map -> odom by a keyframe of the map that located the image; None without one."""
        found, place = self._inputs[robot].pose_by(vertex.key, fix.stamp_ns), self.back_end.place(vertex.key)
        frame = self._framed(vertex.frame_id)
        if found is None or place is None or place.group != self._home() or frame is None:
            return None
        base = frame.base(place.camera.moved(found.pose).pose, vertex.frame_id)
        return _Offset(base @ inverse(fix.pose), vertex.trajectory, fix.run)

    def _send_pose(self, robot: str) -> None:
        key = self._newest[robot]
        place, covariance = self.back_end.place(key), self.back_end.covariance(key)
        vertex = self.back_end.graph.vertices[self.back_end.graph.numbers[key]]
        frame = self._framed(vertex.frame_id)
        if robot not in self._offsets or place is None or covariance is None or frame is None:
            return
        self._position_std[robot] = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
        base = frame.base(place.camera.pose, vertex.frame_id)
        covariance = frame.covariance(covariance, base, vertex.frame_id)
        self._output.pose(pose_message(base, covariance, vertex.stamp_ns, frame.name), robot)

    def _publish(self) -> None:
        now, vertices = time.monotonic(), self.back_end.graph.vertices
        if now < self._next_map or not vertices:
            return
        self._is_changed |= self._output.is_asked_anew()
        home = self._home()
        if not self._is_changed or home is None:
            return
        if self._frame is None:
            self._framed(vertices[0].frame_id)  # of a map that was loaded, before the first keyframe comes
        if self._frame is None:
            return
        self._next_map = now + self.parameters.output.map_period
        self._is_changed = False
        self._output.publish_map(self.back_end, self._frame, home)

    def _save(self) -> None:
        assert self._path is not None
        save_map(self.back_end, self._path)
        self._is_unsaved = False

    def _save_in_time(self) -> None:
        period = self.parameters.file.map_save_period
        if self._path is None or not period or not self._is_unsaved or time.monotonic() < self._next_save:
            return
        self._next_save = time.monotonic() + period
        self._save()

    def _save_at_the_end(self) -> None:
        if self._path is not None and self._is_unsaved:
            self._save()
            if self._is_alive():
                self._logger.info(f"map written to {self._path}")

    def _made_state(self) -> WorkState:
        std = {robot: self._position_std[robot] for robot in self._offsets if robot in self._position_std}
        home = self._home()
        place = next(self.back_end.places(), None)
        down = None if home is None else self.back_end.down(home)
        if down is not None:
            down = None if self._frame is None else self._frame.base_from_camera[:3, :3] @ down
        with self._condition:
            queued, dropped, received = len(self._queue), self._dropped, self._received
        return WorkState(
            self.back_end.counts,
            {robot: robot in self._offsets for robot in self._inputs},
            queued,
            dropped,
            received,
            self._solver.is_busy,
            self._solved_in,
            std,
            home is not None and place is not None and place[1].is_metric,
            {robot: said for robot in self._inputs if (said := self.back_end.inertial_report(robot)) is not None},
            down,
        )
