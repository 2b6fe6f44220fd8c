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
from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.backend.measurements import BackEndError, KeyframeKey
from loftr_ros.backend.solver_process import SolverProcess
from loftr_ros.backend.storage import load_map, save_map
from loftr_ros.geometry.se3 import inverse
from loftr_ros.msg import Keyframe, LoopClosure, RelativePose, Tracks
from loftr_ros.ros.back_end.input import OdometryFix, RobotInput, loop_of
from loftr_ros.ros.back_end.output import MapFrame, MapOutput, pose_message, transform_message
from loftr_ros.ros.back_end.parameters import BackEndParameters
from loftr_ros.ros.output.base_motion import base_covariance
from loftr_ros.ros.output.camera_mount import CameraMount
from loftr_ros.ros.output.messages import to_time
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
        self._fixes: dict[KeyframeKey, OdometryFix] = {}
        self._offsets: dict[str, tuple[Array, bool]] = {}  # map -> odom, and whether of the odometry's first segment
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
        for robot, message in items:
            self._guarded(self._take, robot, message)
        for robot in self._inputs:
            self._guarded(self._keyframes, robot)
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
            loop = loop_of(message)
            if loop is not None:
                self.back_end.add_loop(loop)
        else:
            fix = source.add_odometry(message)
            self._keyframes(robot)
            self._send_transform(robot, fix)

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
                self._fixes[keyframe.key] = fix
            if self._frame is None:
                mounted = self._mount.of(keyframe.frame_id)
                if mounted is not None:
                    self._frame = MapFrame(self.parameters.frames.map_frame, mounted)
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

    def _locate(self, robot: str) -> None:
        """Compute map -> odom by the robot's newest keyframe; there is none if no loop connects it with the map."""
        key = self._newest[robot]
        place, fix = self.back_end.place(key), self._fixes.get(key)
        known = place is not None and place.group == self._home() and self._frame is not None and fix is not None
        if known:
            assert place is not None and fix is not None and self._frame is not None
            base = self._frame.base(place.camera.pose)
            self._offsets[robot] = base @ inverse(fix.pose), fix.is_broken
        else:
            self._offsets.pop(robot, None)
        if self._reported.get(robot) is not known:
            self._reported[robot] = known
            if known:
                self._logger.info(f"robot '{robot}' is localized in the map, by keyframe {key}")
            else:
                self._logger.info(
                    f"robot '{robot}' is not localized in the map: no loops lead from its keyframe {key} to the map's, "
                    "or its odometry has not come"
                )

    def _send_transform(self, robot: str, fix: OdometryFix) -> None:
        offset = self._offsets.get(robot)
        if offset is None or offset[1] is not fix.is_broken:
            # Another segment has begun, or an old one goes on: the odometry has jumped. A keyframe comes next; before
            # that an old one may have located the image.
            offset = self._found_again(robot, fix)
            if offset is None:
                return
            self._offsets[robot] = offset
        stamp_ns = fix.stamp_ns + round(self.parameters.frames.tf_tolerance * 1e9)
        self._output.transform(
            transform_message(offset[0], to_time(stamp_ns), self.parameters.frames.map_frame, fix.odom_frame)
        )

    def _found_again(self, robot: str, fix: OdometryFix) -> tuple[Array, bool] | None:
        """map -> odom by a keyframe of the map that located the image; None without one."""
        found = self._inputs[robot].found_by(fix.stamp_ns)
        place = None if found is None else self.back_end.place(found[0])
        if found is None or place is None or place.group != self._home() or self._frame is None:
            return None
        base = self._frame.base(place.camera.moved(found[1].pose).pose)
        return base @ inverse(fix.pose), fix.is_broken

    def _send_pose(self, robot: str) -> None:
        key = self._newest[robot]
        place, covariance = self.back_end.place(key), self.back_end.covariance(key)
        if robot not in self._offsets or place is None or covariance is None or self._frame is None:
            return
        self._position_std[robot] = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
        mounted, base = self._frame.base_from_camera, self._frame.base(place.camera.pose)
        self._output.pose(
            pose_message(base, base_covariance(covariance, base, mounted), self._fixes[key].stamp_ns, self._frame.name)
        )

    def _publish(self) -> None:
        now, home = time.monotonic(), self._home() if self._is_changed else None
        if home is None or self._frame is None or now < self._next_map:
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
