"""The lifecycle node: parameters and wiring; the work is done in the other rooms."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from loftr_ros.frontend.config import ConfigError
from loftr_ros.ros.inputs import Arrival, FrameDecoder, ImageInput
from loftr_ros.ros.lifecycle import reported
from loftr_ros.ros.loading import load_front_end
from loftr_ros.ros.outputs import Outputs
from loftr_ros.ros.parameters import declare, read, refusal
from loftr_ros.ros.reports import ErrorLog, FrontEndState, Reporter, error_kind
from loftr_ros.ros.statistics import Statistics
from loftr_ros.ros.worker import NewestWorker

if TYPE_CHECKING:
    from loftr_ros.frontend.pipeline import FrontEnd, FrontEndResult


class FrontEndNode(LifecycleNode):
    """LoFTR between the newest image and the keyframes.

    configure loads and warms up the network, activate subscribes, deactivate unsubscribes and keeps the keyframes,
    cleanup frees everything.
    """

    def __init__(self, **kwargs: object) -> None:
        """Declare the parameters and report from now on; `kwargs` are those of `LifecycleNode`.

        Raises:
            ParameterException, ConfigError: a parameter was given a value that it cannot have.
        """
        super().__init__("loftr_front_end", **kwargs)
        declare(self)
        output = read(self).output
        self.statistics = Statistics(output.status_window)
        self.errors = ErrorLog(self, self.statistics, output.error_period)
        self._lifecycle = "unconfigured"
        self.failure = ""
        self.in_transition = False
        self._front_end: FrontEnd | None = None
        self._decoder: FrameDecoder | None = None
        self._outputs: Outputs | None = None
        self._input: ImageInput | None = None
        self._worker: NewestWorker[Arrival] | None = None
        self._reporter = Reporter(self, self.statistics, output.status_period, self._state)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/force_keyframe", self._on_force_keyframe)

    # --- lifecycle ---

    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network and warm it up."""
        parameters = read(self)
        output = parameters.output
        self.statistics.set_window(output.status_window)
        self.errors.period = output.error_period
        self._reporter.set_period(output.status_period)
        self._worker = NewestWorker(self._work, lambda _: self.statistics.dropped(), "loftr_inference")
        # On the thread that will run it: a second thread in torch makes more OpenMP threads than there are cores, upon
        # which they no longer spin but sleep between two operations; encode and match then take twice as long.
        try:
            front_end = self._worker.ask(lambda: load_front_end(parameters, self.get_logger().info))
        except Exception:
            self._end("unconfigured")
            raise
        self._outputs = Outputs(self, output.max_lines)
        self._decoder = FrameDecoder(parameters.input.white_level)
        self._front_end = front_end
        self._lifecycle = "inactive"
        return TransitionCallbackReturn.SUCCESS

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and begin to work."""
        parameters = read(self).input
        assert self._worker is not None
        self._input = ImageInput(self, parameters, self.statistics, self._worker.put, self.errors.frame_failed)
        self._lifecycle = "active"
        self.get_logger().info(f"waiting for images on {self._input.topic} (camera_info: {parameters.camera_info})")
        # Last, since it cannot fail: the publishers begin to speak. No frame comes while this callback runs.
        return super().on_activate(state)

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; what is in work is finished, the keyframes stay."""
        self._stop()
        self._lifecycle = "inactive"
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the network and the keyframes."""
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
        """End the threads, whatever state the node is in; the node cannot be used after it."""
        self._stop()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        self._front_end = None

    # --- a frame's way, on the inference thread ---

    def _work(self, arrival: Arrival) -> None:
        try:
            result = self._process(arrival)
        except Exception as error:
            self._report(error, self.errors.frame_failed)
            return
        try:
            assert self._outputs is not None
            self._outputs.publish_picture(result)
        except Exception as error:  # the frame is done, and counted as that
            self._report(error, self.errors.error)

    def _report(self, error: Exception, report: Callable[[str, str, str], None]) -> None:
        """Log and count what was raised on the inference thread, which must not end by it."""
        if not self.context.ok():
            return  # the context went away beneath the publishers: no failure
        kind = error_kind(error)
        report(kind, str(error) or type(error).__name__, traceback.format_exc() if kind == "internal" else "")

    def _process(self, arrival: Arrival) -> FrontEndResult:
        assert self._front_end is not None and self._decoder is not None and self._outputs is not None
        begun = time.monotonic()
        frame = self._decoder(arrival)
        self.statistics.decoded()
        decoded = time.monotonic()
        result = self._front_end.process(frame)
        found = time.monotonic()
        self._outputs.publish(result)
        now = time.monotonic()
        latencies = result.latencies | {
            "wait": begun - arrival.received,
            "decode": decoded - begun,
            "publish": now - found,
            "total": now - arrival.received,
        }
        self.statistics.processed(latencies, now)
        return result

    # --- services and parameters ---

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def reset() -> None:
            assert self._front_end is not None and self._outputs is not None
            self._outputs.publish_events(self._front_end.reset(), None)

        return self._on_worker(reset, "all keyframes are dropped before the next frame", response)

    def _on_force_keyframe(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def force() -> None:
            assert self._front_end is not None
            self._front_end.force_keyframe()

        return self._on_worker(force, "the next frame becomes a keyframe", response)

    def _on_worker(self, command: Callable[[], None], done: str, response: Trigger.Response) -> Trigger.Response:
        def guarded() -> None:
            try:
                command()
            except Exception as error:
                self._report(error, self.errors.error)

        active = self._worker is not None and self._lifecycle == "active"
        response.success = active
        response.message = done if active else f"the node is {self._lifecycle}, not active"
        if self._worker is not None and active:
            self._worker.call(guarded)
        return response

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in parameters}
        reason = refusal(values, configured=self._lifecycle != "unconfigured")
        return SetParametersResult(successful=not reason, reason=reason)

    # --- the rest ---

    def _stop(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None
        if self._worker is not None:
            self._worker.drain()

    def _end(self, lifecycle: str) -> TransitionCallbackReturn:
        self._stop()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        if self._outputs is not None:
            self._outputs.close()
        self._outputs = self._decoder = self._front_end = None
        self._lifecycle = lifecycle
        return TransitionCallbackReturn.SUCCESS

    def _state(self) -> FrontEndState:
        front_end, worker, images = self._front_end, self._worker, self._input
        if front_end is None:
            return FrontEndState(self._lifecycle, self.failure)
        from loftr_ros.matcher.precision import precision_name

        reference = front_end.buffer.reference
        waiting = images.pending if images else 0
        return FrontEndState(
            lifecycle=self._lifecycle,
            failure=self.failure,
            topic=images.topic if images else "",
            waiting=waiting,
            network=front_end.matcher.config.name,
            device=str(front_end.matcher.device),
            precision=precision_name(front_end.matcher.dtype),
            pending=(worker.pending if worker else 0) + waiting,
            keyframes_held=len(front_end.buffer),
            keyframe_capacity=front_end.config.keyframe.capacity,
            reference_keyframe_id=reference.id if reference else 0,
        )


def main(args: list[str] | None = None, autostart: bool = False) -> int:
    """Run the node until it is told to stop.

    Args:
        args: command line with ROS arguments; None for the process's own.
        autostart: go to active by itself, for when no launch file does it.

    Returns:
        The process's exit code: 0 after a clean stop, 2 where an argument is wrong, 1 where autostart failed.
    """
    node: FrontEndNode | None = None
    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        if node is None or node.in_transition:
            raise KeyboardInterrupt  # loading a network takes too long to wait for; else rclpy ends the spinning

    signal.signal(signal.SIGINT, interrupt)  # before rclpy's handler, which calls it
    try:
        rclpy.init(args=args)
    except RuntimeError as error:
        rclpy.logging.get_logger("loftr_front_end").fatal(f"the ROS arguments are wrong: {error}")
        return 2
    try:
        try:
            node = FrontEndNode()
            if autostart:
                for transition in (node.trigger_configure, node.trigger_activate):
                    if transition() != TransitionCallbackReturn.SUCCESS:
                        return 1
            rclpy.spin(node)
        except (ParameterException, ConfigError) as error:
            if node is not None:
                raise
            hint = "; write it with a decimal point (10.0)" if "expecting type 'DOUBLE'" in str(error) else ""
            rclpy.logging.get_logger("loftr_front_end").fatal(f"a parameter is wrong: {error}{hint}")
            return 2
        except Exception:
            # A signal may hit rclpy anywhere: its C++ makes another exception of the interrupt (as it takes a message),
            # or finds the context gone (as it makes a wait set).
            if rclpy.ok() and not interrupted.is_set():
                raise
    except KeyboardInterrupt:
        pass
    finally:
        # `ros2 launch` may pass on a Ctrl-C that the whole process group had already: no second one may break in here.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
