"""The back end's lifecycle node. Its only input is the front ends' public topics."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_srvs.srv import Trigger

from loftr_ros.backend.measurements import BackEndError
from loftr_ros.ros.back_end.imu import ImuInput, imu_topic
from loftr_ros.ros.back_end.input import KEPT, TOPICS, robot_of, topic_of
from loftr_ros.ros.back_end.output import MapOutput
from loftr_ros.ros.back_end.parameters import BackEndParameters
from loftr_ros.ros.back_end.work import BackEndWork, WorkState
from loftr_ros.ros.lifecycle import SettingsNode, run_node
from loftr_ros.ros.output.camera_mount import CameraMount
from loftr_ros.ros.parameters import OdometryParameters
from loftr_ros.settings import ConfigError

NAME = "loftr_back_end"
# Messages that the middleware keeps for us: a second of a fast camera's, since the thread that takes them only queues.
_DEPTH = 100
# ... and of those that a front end keeps for late subscribers, all of which come at once.
_KEPT_DEPTH = 1000


class BackEndNode(SettingsNode[BackEndParameters]):
    """Smooths keyframes, closes loops, keeps the map, and publishes map -> odom.

    configure loads the map, activate subscribes, deactivate unsubscribes and keeps the map, cleanup writes it.
    """

    def __init__(self, **kwargs: object) -> None:
        """Declare the parameters and start reporting; `kwargs` are those of `LifecycleNode`.

        Raises:
            ParameterException, ConfigError: a parameter has a value that is not allowed.
        """
        super().__init__(NAME, BackEndParameters, **kwargs)
        self._work: BackEndWork | None = None
        self._mount: CameraMount | None = None
        self._made: list[Any] = []
        self._subscribed: list[Any] = []
        self._imus: list[ImuInput] = []
        self._errors_before = self._dropped_before = 0
        self._status = self.create_publisher(DiagnosticStatus, "~/status", QoSProfile(depth=10))
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", QoSProfile(depth=10))
        # Not by the node's clock: with use_sim_time it would fall silent just when /clock is what is missing.
        self._timer = self.create_timer(
            self.settings.output.status_period, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self.create_service(Trigger, "~/save_map", self._on_save_map)

    # --- lifecycle ---

    def _configure(self) -> None:
        """Load the map and create the publishers."""
        parameters = self.settings
        self.errors.period = parameters.output.error_period
        frames = parameters.frames
        mounted = OdometryParameters(base_frame=frames.base_frame, base_from_camera=frames.base_from_camera)
        robots = list(self._robots(parameters).values())
        output = MapOutput(self._publisher, frames.publish_tf, self.get_logger().warning, robots)
        self._mount = CameraMount(self, mounted)
        self._work = BackEndWork(self, parameters, robots, output, self._mount, self._on_error)

    def _activate(self) -> None:
        """Subscribe to the front ends."""
        assert self._work is not None
        for front_end, robot in self._robots(self._work.parameters).items():
            for name, kind in TOPICS.items():
                config = self._work.parameters.back_end
                if name == "tracks" and not (config.map.landmarks or config.local.window):
                    continue  # the front end makes them only while somebody listens
                self._subscribed.append(
                    self.create_subscription(
                        kind,
                        topic_of(front_end, name),
                        partial(self._work.put, robot),
                        QoSProfile(depth=_KEPT_DEPTH, durability=DurabilityPolicy.TRANSIENT_LOCAL)
                        if name in KEPT
                        else QoSProfile(depth=_DEPTH),
                        qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                    )
                )
            self._listen_to_imu(front_end, robot, self._work)
            self.get_logger().info(f"listens to {front_end}, robot '{robot}'")

    def _deactivate(self) -> None:
        """Unsubscribe; the map stays."""
        self._unsubscribe()

    def _free(self) -> None:
        """Write the map and free it."""
        self._unsubscribe()
        self.close()
        if self._mount is not None:
            self._mount.close()
            self._mount = None
        for publisher in self._made:
            self.destroy_lifecycle_publisher(publisher)
        self._made.clear()

    def close(self) -> None:
        """Write the map and end the threads, in any state; the node cannot be used afterwards."""
        work, self._work = self._work, None
        if work is not None:
            work.close()

    # --- services and parameters ---

    def _on_save_map(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._work is None:
            response.success, response.message = False, f"the node is {self.lifecycle}: it has no map"
            return response
        try:
            response.message = self._work.save()
            response.success = True
        except BackEndError as error:
            response.success, response.message = False, str(error)
        return response

    def _reconfigure(self, parameters: BackEndParameters) -> None:
        """Use other live parameters."""
        self.errors.period = parameters.output.error_period
        if self._work is not None:
            self._work.reconfigure(parameters)

    # --- the rest ---

    def _listen_to_imu(self, front_end: str, robot: str, work: BackEndWork) -> None:
        sensor = work.parameters.inertial_sensor
        if sensor.topic:
            topic, samples = imu_topic(front_end, sensor.topic), work.back_end.imu[robot]
            self._imus.append(ImuInput(self, topic, sensor, samples, partial(work.camera_frame, robot)))

    def _robots(self, parameters: BackEndParameters) -> dict[str, str]:
        """The front ends' full names, and their robots'.

        Raises:
            ConfigError: two have the same name.
        """
        namespace = self.get_namespace().rstrip("/")
        names = [name if name.startswith("/") else f"{namespace}/{name}" for name in parameters.input.front_end_names]
        robots = parameters.input.robot_names or [robot_of(name) for name in names]
        if len(set(robots)) < len(robots) or len(set(names)) < len(names):
            raise ConfigError(
                f"two front ends are of one robot: {', '.join(map(': '.join, zip(names, robots, strict=True)))}; name "
                "them apart by the parameter robots"
            )
        return dict(zip(names, robots, strict=True))

    def _publisher(self, kind: type, topic: str) -> Any:
        publisher = self.create_lifecycle_publisher(
            kind, topic, QoSProfile(depth=10), qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )
        self._made.append(publisher)
        return publisher

    def _on_error(self, error: Exception, details: str) -> None:
        if self.context.ok():  # else the context went away beneath the publishers: no failure
            kind = "internal" if details else "back_end"
            self.errors.error(kind, str(error) or type(error).__name__, details)

    def _unsubscribe(self) -> None:
        for subscription in self._subscribed:
            self.destroy_subscription(subscription)
        self._subscribed.clear()
        for imu in self._imus:
            imu.close()
        self._imus.clear()

    # --- status ---

    def _report(self) -> None:
        work = self._work
        status = self._status_message(None if work is None else work.state)
        self._status.publish(status)
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _status_message(self, state: WorkState | None) -> DiagnosticStatus:
        snapshot = self.statistics.snapshot()
        errors = sum(snapshot.errors.values())
        values: dict[str, object] = {"lifecycle": self.lifecycle, "last error": snapshot.last_error}
        level, text = DiagnosticStatus.OK, self.lifecycle
        if self.failure:
            level, text = DiagnosticStatus.ERROR, f"{self.lifecycle}: {self.failure}"
        elif state is not None and self.lifecycle == "active":
            lost = [robot for robot, known in state.localized.items() if not known]
            text = "localized" if not lost else f"not localized: {', '.join(lost)}"
            if not state.counts.keyframes:
                text = "waits for the first keyframe"
            elif state.dropped > self._dropped_before:
                level, text = DiagnosticStatus.WARN, f"{text}; {state.dropped - self._dropped_before} messages dropped"
            elif errors > self._errors_before:
                level, text = DiagnosticStatus.WARN, f"{text}; {snapshot.last_error}"
            elif lost:
                level = DiagnosticStatus.WARN
        if state is not None:
            counts = state.counts
            unit = "m" if state.is_metric else "own unit"
            values |= {
                "keyframes": counts.keyframes,
                "trajectories": counts.trajectories,
                "parts of the map that nothing joins": counts.groups,
                "loops believed": f"{counts.believed} of {counts.loops}",
                "loops that wait for a keyframe": counts.waiting,
                "links rejected": counts.broken,
                "landmarks": counts.landmarks,
                "messages received": state.received,
                "messages waiting": state.queued,
                "messages dropped": state.dropped,
                "solving": state.is_solving,
                "last solution took [s]": f"{state.solved_in:.2f}",
                "scale known": state.is_metric,
            }
            values |= {
                f"robot {robot}": "localized" if at else "not localized" for robot, at in state.localized.items()
            }
            if state.down is not None:
                values["direction of gravity in the map"] = " ".join(f"{part:.3f}" for part in state.down)
            values |= {f"inertial sensor of {robot}": said for robot, said in state.inertial.items()}
            values |= {f"position std of {robot} [{unit}]": f"{std:.3f}" for robot, std in state.position_std.items()}
            self._dropped_before = state.dropped
        values |= {f"errors: {kind}": count for kind, count in snapshot.errors.items()}
        self._errors_before = errors
        return DiagnosticStatus(
            level=level,
            name=f"{self.get_fully_qualified_name()}: back end",
            message=text,
            hardware_id=socket.gethostname(),
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )


def main(args: list[str] | None = None, autostart: bool = False) -> int:
    """Run the node until it is interrupted.

    Args:
        args: command line with ROS arguments; None for the process's own.
        autostart: become active without a launch file.

    Returns:
        The process's exit code: 0 after a clean stop, 2 where an argument is wrong, 1 where autostart failed.
    """
    return run_node(BackEndNode, NAME, args, autostart)
