"""The lifecycle node: parameters and wiring; the work is done in the other rooms."""

from __future__ import annotations

import functools
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import rclpy
import torch
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from loftr_ros.frontend.camera import CameraError
from loftr_ros.frontend.config import ConfigError
from loftr_ros.frontend.keyframes import KeyframeReason
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.matcher.checkpoint import WeightsError, load_network
from loftr_ros.matcher.loftr import LoFTR
from loftr_ros.matcher.precision import DeviceError, precision_name, resolve_device, resolve_precision
from loftr_ros.ros.images import ImageError
from loftr_ros.ros.inputs import Arrival, FrameDecoder, ImageInput
from loftr_ros.ros.outputs import Outputs
from loftr_ros.ros.parameters import MatcherParameters, Parameters, declare, parameter_names, read
from loftr_ros.ros.reports import ErrorLog, FrontEndState, Reporter
from loftr_ros.ros.statistics import Statistics
from loftr_ros.ros.worker import NewestWorker

Transition = Callable[["FrontEndNode", LifecycleState], TransitionCallbackReturn]


def _transition(method: Transition) -> Transition:
    """Log what a transition raises and return FAILURE; rclpy would swallow it."""

    @functools.wraps(method)
    def guarded(self: FrontEndNode, state: LifecycleState) -> TransitionCallbackReturn:
        name = method.__name__.removeprefix("on_")
        try:
            return method(self, state)
        except (ConfigError, DeviceError, WeightsError) as error:
            self.errors.error(_kind(error), f"{name} failed: {error}")
        except Exception as error:
            self.errors.error("internal", f"{name} failed: {error}\n{traceback.format_exc()}")
        return TransitionCallbackReturn.FAILURE

    return guarded


class FrontEndNode(LifecycleNode):
    """LoFTR between the newest image and the keyframes.

    configure loads and warms up the network, activate subscribes, deactivate unsubscribes and keeps the keyframes,
    cleanup frees everything.
    """

    def __init__(self, **kwargs: object) -> None:
        super().__init__("loftr_front_end", **kwargs)
        declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        output = read(self).output
        self.statistics = Statistics(output.status_window)
        self.errors = ErrorLog(self, self.statistics, output.error_period)
        self._lifecycle = "unconfigured"
        self._front_end: FrontEnd | None = None
        self._decoder: FrameDecoder | None = None
        self._outputs: Outputs | None = None
        self._input: ImageInput | None = None
        self._worker: NewestWorker[Arrival] | None = None
        self._reporter = Reporter(self, self.statistics, output.status_period, self._state)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/force_keyframe", self._on_force_keyframe)

    # --- lifecycle ---

    @_transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network and warm it up."""
        parameters = read(self)
        matcher = self._load(parameters.matcher)
        self._front_end = FrontEnd(matcher, parameters.front_end)
        self._decoder = FrameDecoder(parameters.input.white_level)
        self._outputs = Outputs(self, parameters.output.max_lines)
        self._lifecycle = "inactive"
        return TransitionCallbackReturn.SUCCESS

    @_transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and begin to work."""
        result = super().on_activate(state)
        parameters = read(self).input
        self._worker = NewestWorker(self._work, lambda _: self.statistics.dropped(), "loftr_inference")
        self._input = ImageInput(self, parameters, self.statistics, self._worker.put, self.errors.frame_failed)
        self._lifecycle = "active"
        self.get_logger().info(f"waiting for images on {self._input.topic} (camera_info: {parameters.camera_info})")
        return result

    @_transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; what is in work is finished, the keyframes stay."""
        self._stop()
        self._lifecycle = "inactive"
        return super().on_deactivate(state)

    @_transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the network and the keyframes."""
        self._free()
        self._lifecycle = "unconfigured"
        return TransitionCallbackReturn.SUCCESS

    @_transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, from any state."""
        self._stop()
        self._free()
        self._lifecycle = "finalized"
        return TransitionCallbackReturn.SUCCESS

    @_transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, from where configure may be tried again."""
        self._stop()
        self._free()
        self._lifecycle = "unconfigured"
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """End the threads, whatever state the node is in; the node cannot be used after it."""
        self._stop()
        self._front_end = None

    # --- a frame's way, on the inference thread ---

    def _work(self, arrival: Arrival) -> None:
        try:
            self._process(arrival)
        except (ImageError, CameraError, FrameRefusedError) as error:
            self.errors.frame_failed(_kind(error), str(error))
        except Exception as error:
            if rclpy.ok(context=self.context):  # else the context went away beneath the publishers: no failure
                self.errors.frame_failed("internal", f"{error}\n{traceback.format_exc()}")

    def _process(self, arrival: Arrival) -> None:
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
        self._outputs.publish_picture(result)

    # --- services and parameters ---

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def reset() -> None:
            assert self._front_end is not None and self._outputs is not None
            self._outputs.publish_events(self._front_end.reset(KeyframeReason.RESET), None)

        return self._on_worker(reset, "keyframes are dropped before the next frame", response)

    def _on_force_keyframe(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def force() -> None:
            assert self._front_end is not None
            self._front_end.force_keyframe()

        return self._on_worker(force, "the next frame becomes a keyframe", response)

    def _on_worker(self, command: Callable[[], None], done: str, response: Trigger.Response) -> Trigger.Response:
        response.success = self._worker is not None
        response.message = done if self._worker is not None else f"the node is {self._lifecycle}, not active"
        if self._worker is not None:
            self._worker.call(command)
        return response

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        ours = {name for name, _ in parameter_names()}
        changed = [parameter.name for parameter in parameters if parameter.name in ours]
        if changed and getattr(self, "_lifecycle", "unconfigured") != "unconfigured":
            reason = f"{', '.join(changed)}: read when the node is configured; clean it up, set, and configure it again"
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    # --- the rest ---

    def _load(self, parameters: MatcherParameters) -> LoFTR:
        if parameters.threads:
            torch.set_num_threads(parameters.threads)
        if not parameters.weights:
            raise WeightsError(
                f"the parameter 'weights' is empty, and network '{parameters.network}' comes without weights; "
                "set it to a weights file"
            )
        device = resolve_device(parameters.device)
        dtype = resolve_precision(parameters.precision, device)
        matcher = load_network(parameters.network, Path(parameters.weights).expanduser(), device, dtype)
        size = (parameters.warm_up_width, parameters.warm_up_height)
        start = time.monotonic()
        if min(size) >= matcher.cell_size:
            matcher.warm_up(size, read(self).front_end.keyframe.max_matched)
        self.get_logger().info(
            f"network {parameters.network} on {device} in {precision_name(dtype)} ({parameters.weights}), "
            f"warmed up in {time.monotonic() - start:.2f} s"
        )
        return matcher

    def _stop(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _free(self) -> None:
        if self._outputs is not None:
            self._outputs.close()
        self._outputs = self._decoder = self._front_end = None

    def _state(self) -> FrontEndState:
        front_end, worker, images = self._front_end, self._worker, self._input
        if front_end is None:
            return FrontEndState(self._lifecycle)
        reference = front_end.buffer.reference
        return FrontEndState(
            lifecycle=self._lifecycle,
            network=front_end.matcher.config.name,
            device=str(front_end.matcher.device),
            precision=precision_name(front_end.matcher.dtype),
            pending=(worker.pending if worker else 0) + (images.pending if images else 0),
            keyframes_held=len(front_end.buffer),
            keyframe_capacity=front_end.config.keyframe.capacity,
            reference_keyframe_id=reference.id if reference else 0,
        )


def _kind(error: Exception) -> str:
    """The kind under which an error is counted."""
    if isinstance(error, (ImageError, FrameRefusedError)):
        return error.kind
    names: dict[type, str] = {
        CameraError: "calibration", WeightsError: "weights", DeviceError: "device", ConfigError: "parameter"
    }
    return names[type(error)]


def main(args: list[str] | None = None, autostart: bool = False) -> int:
    """Run the node until it is told to stop.

    Args:
        args: command line with ROS arguments; None for the process's own.
        autostart: go to active by itself, for when no launch file does it.

    Returns:
        The process's exit code: 0 after a clean stop, 2 where a parameter is wrong, 1 where autostart failed.
    """
    rclpy.init(args=args)
    node: FrontEndNode | None = None
    try:
        try:
            node = FrontEndNode()
        except (ParameterException, ConfigError) as error:
            hint = "; numbers with a unit are written with a decimal point (10.0)" if "type" in str(error) else ""
            rclpy.logging.get_logger("loftr_front_end").fatal(f"a parameter is wrong: {error}{hint}")
            return 2
        if autostart:
            for transition in (node.trigger_configure, node.trigger_activate):
                if transition() != TransitionCallbackReturn.SUCCESS:
                    return 1
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        # `ros2 launch` may pass on a Ctrl-C that the whole process group had already: the second must not break in here.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
