"""The back end's lifecycle node: it lives on the front ends' public topics alone."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_srvs.srv import Trigger

from loftr_ros.backend.measurements import BackEndError
from loftr_ros.ros.back_end.input import TOPICS, robot_of, topic_of
from loftr_ros.ros.back_end.output import MapOutput
from loftr_ros.ros.back_end.parameters import BackEndParameters
from loftr_ros.ros.back_end.work import BackEndWork, WorkState
from loftr_ros.ros.lifecycle import reported
from loftr_ros.ros.logs import log_by
from loftr_ros.ros.output.camera_mount import CameraMount
from loftr_ros.ros.output.reports import ErrorLog
from loftr_ros.ros.output.statistics import Statistics
from loftr_ros.ros.parameter_names import all_floats, idle_files, unknown_parameters
from loftr_ros.ros.parameters import OdometryParameters, declare, defaults, live_parameters, read_as, refusal
from loftr_ros.settings import ConfigError, with_values

NAME = "loftr_back_end"
# Messages that the middleware keeps for us: a second of a fast camera's, since the thread that takes them only queues.
_DEPTH = 100


class BackEndNode(LifecycleNode):
    """Smooths keyframes, closes loops, keeps the map, and publishes map -> odom.

    configure loads the map, activate subscribes, deactivate unsubscribes and keeps the map, cleanup writes it.
    """

    def __init__(self, **kwargs: object) -> None:
        """Declare the parameters and report from now on; `kwargs` are those of `LifecycleNode`.

        Raises:
            ParameterException, ConfigError: a parameter was given a value that it cannot have.
        """
        super().__init__(NAME, **kwargs)
        declare(self, BackEndParameters)
        for said in unknown_parameters(self):
            self.get_logger().warning(said)
        output = read_as(self, BackEndParameters).output
        self.statistics = Statistics(1)
        self.errors = ErrorLog(self, self.statistics, output.error_period)
        self.failure = ""
        self.in_transition = False
        self._lifecycle = "unconfigured"
        self._work: BackEndWork | None = None
        self._mount: CameraMount | None = None
        self._made: list[Any] = []
        self._subscribed: list[Any] = []
        self._errors_before = self._dropped_before = 0
        self._status = self.create_publisher(DiagnosticStatus, "~/status", QoSProfile(depth=10))
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", QoSProfile(depth=10))
        # Not by the node's clock: with use_sim_time it would fall silent just when /clock is what is missing.
        self._timer = self.create_timer(
            output.status_period, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.create_service(Trigger, "~/save_map", self._on_save_map)

    # --- lifecycle ---

    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the map, make the publishers."""
        parameters = read_as(self, BackEndParameters)
        self.errors.period = parameters.output.error_period
        frames = parameters.frames
        mounted = OdometryParameters(base_frame=frames.base_frame, base_from_camera=frames.base_from_camera)
        try:
            output = MapOutput(self._publisher, frames.publish_tf, self.get_logger().warning)
            self._mount = CameraMount(self, mounted)
            self._work = BackEndWork(
                self, parameters, list(self._robots(parameters).values()), output, self._mount, self._on_error
            )
        except Exception:
            self._free()
            raise
        self._lifecycle = "inactive"
        return TransitionCallbackReturn.SUCCESS

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the front ends."""
        assert self._work is not None
        for front_end, robot in self._robots(self._work.parameters).items():
            for name, kind in TOPICS.items():
                if name == "tracks" and not self._work.parameters.back_end.map.landmarks:
                    continue  # the front end makes them only while somebody listens
                self._subscribed.append(
                    self.create_subscription(
                        kind,
                        topic_of(front_end, name),
                        partial(self._work.put, robot),
                        QoSProfile(depth=_DEPTH),
                        qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                    )
                )
            self.get_logger().info(f"listens to {front_end}, robot '{robot}'")
        self._lifecycle = "active"
        for said in unknown_parameters(self, qos=True):
            self.get_logger().warning(said)
        return super().on_activate(state)

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the map stays."""
        self._unsubscribe()
        self._lifecycle = "inactive"
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Write the map and free it."""
        return self._end("unconfigured")

    @reported
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, from any state."""
        return self._end("finalized")

    @reported
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, from where configure may be tried again."""
        return self._end("unconfigured")

    def close(self) -> None:
        """Write the map and end the threads, whatever state the node is in; the node cannot be used after it."""
        work, self._work = self._work, None
        if work is not None:
            work.close()

    # --- services and parameters ---

    def _on_save_map(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._work is None:
            response.success, response.message = False, f"the node is {self._lifecycle}: it has no map"
            return response
        try:
            response.message = self._work.save()
            response.success = True
        except BackEndError as error:
            response.success, response.message = False, str(error)
        return response

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in parameters}
        reason = refusal(values, self._lifecycle != "unconfigured", BackEndParameters)
        if not reason:
            try:
                changed = with_values(read_as(self, BackEndParameters), values)
            except ConfigError as error:
                reason = str(error)
            else:
                live = live_parameters(BackEndParameters)
                if self._work is not None and any(live.get(name) for name in values):
                    self.errors.period = changed.output.error_period
                    self._work.reconfigure(changed)
        return SetParametersResult(successful=not reason, reason=reason)

    def set_parameters(self, parameter_list: list[Parameter]) -> list[SetParametersResult]:
        """As every node's, but a whole number is taken for a float."""
        return list(super().set_parameters(all_floats(parameter_list, defaults(BackEndParameters))))

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As every node's, but a whole number is taken for a float; `ros2 param set` comes here."""
        return super().set_parameters_atomically(all_floats(parameter_list, defaults(BackEndParameters)))

    # --- the rest ---

    def _robots(self, parameters: BackEndParameters) -> dict[str, str]:
        """The front ends' full names, and their robots'.

        Raises:
            ConfigError: two have one name.
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

    def _free(self) -> None:
        self._unsubscribe()
        self.close()
        if self._mount is not None:
            self._mount.close()
            self._mount = None
        for publisher in self._made:
            self.destroy_lifecycle_publisher(publisher)
        self._made.clear()

    def _end(self, lifecycle: str) -> TransitionCallbackReturn:
        self._free()
        self._lifecycle = lifecycle
        return TransitionCallbackReturn.SUCCESS

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
        values: dict[str, object] = {"lifecycle": self._lifecycle, "last error": snapshot.last_error}
        level, text = DiagnosticStatus.OK, self._lifecycle
        if self.failure:
            level, text = DiagnosticStatus.ERROR, f"{self._lifecycle}: {self.failure}"
        elif state is not None and self._lifecycle == "active":
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
                "windows begun anew": counts.restarts,
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
        autostart: go to active by itself, for when no launch file does it.

    Returns:
        The process's exit code: 0 after a clean stop, 2 where an argument is wrong, 1 where autostart failed.
    """
    node: BackEndNode | None = None
    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()

    signal.signal(signal.SIGINT, interrupt)  # before rclpy's handler, which calls it
    logger: Callable[[], Any] = lambda: rclpy.logging.get_logger(NAME)  # noqa: E731
    try:
        rclpy.init(args=args)
    except RuntimeError as error:
        logger().fatal(f"the ROS arguments are wrong: {error}")
        return 2
    try:
        node = BackEndNode()
        for said in idle_files(sys.argv if args is None else args, node.get_fully_qualified_name()):
            node.get_logger().warning(said)
        log_by(node.get_logger())
        if autostart:
            for transition in (node.trigger_configure, node.trigger_activate):
                if transition() != TransitionCallbackReturn.SUCCESS:
                    return 1
        while rclpy.ok() and not interrupted.is_set():
            rclpy.spin_once(node, timeout_sec=0.5)
    except (ParameterException, ConfigError) as error:
        if node is not None:
            raise
        logger().fatal(f"a parameter is wrong: {error}")
        return 2
    except KeyboardInterrupt:
        pass
    except Exception:
        # A signal may hit rclpy anywhere: its C++ makes another exception of it, or finds the context gone.
        if rclpy.ok() and not interrupted.is_set():
            raise
    finally:
        # `ros2 launch` may pass on a Ctrl-C that the whole process group had already: no second one may break in here.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
