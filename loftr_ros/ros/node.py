"""The lifecycle node: parameters and wiring. The work is done in the other modules."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from std_srvs.srv import Trigger

from loftr_ros.frontend.gyroscope import Gyroscope
from loftr_ros.frontend.mask import read_mask
from loftr_ros.frontend.wheel_odometry import WheelConfig, WheelOdometry
from loftr_ros.recordings.frame_decoder import FrameDecoder
from loftr_ros.ros.input.imu import ImuInput
from loftr_ros.ros.input.inputs import ImageInput
from loftr_ros.ros.input.wheel_odometry import WheelInput
from loftr_ros.ros.lifecycle import SettingsNode, run_node
from loftr_ros.ros.loading import free_gpu_memory, load_front_end
from loftr_ros.ros.output.outputs import Outputs
from loftr_ros.ros.output.reports import (
    FrontEndState,
    GyroscopeReport,
    PlacesState,
    Reporter,
    error_kind,
    motion_state,
)
from loftr_ros.ros.parameters import Parameters
from loftr_ros.ros.places.places import Places
from loftr_ros.ros.places.services import PlaceServices
from loftr_ros.ros.scheduling import Scheduling
from loftr_ros.ros.stages import FrameStages
from loftr_ros.ros.transport import provide_profile

if TYPE_CHECKING:
    from loftr_ros.frontend.pipeline import FrontEnd


NAME = "loftr_front_end"
# Seconds for which another thread of this process may hold Python's lock while the front end waits for it, between any
# two operations of its network: Python's default of 5 ms adds up.
_SWITCH_INTERVAL = 0.0005


class FrontEndNode(SettingsNode[Parameters]):
    """LoFTR between the newest image and the keyframes.

    configure loads and warms up the network, activate subscribes, deactivate unsubscribes and keeps the keyframes,
    cleanup frees everything.
    """

    def __init__(self, **kwargs: object) -> None:
        """Declare the parameters and start status reports; `kwargs` are those of `LifecycleNode`.

        Raises:
            ParameterException, ConfigError: a parameter has an invalid value.
        """
        super().__init__(NAME, Parameters, **kwargs)
        output = self.settings.output
        self.statistics.set_window(output.status_window)
        self._outputs: Outputs | None = None
        self._input: ImageInput | None = None
        self._stages: FrameStages | None = None
        self._places: Places | None = None
        self._gyroscope: Gyroscope | None = None
        self._imu: ImuInput | None = None
        self._wheel = WheelOdometry()
        self._wheel_input: WheelInput | None = None
        self._place_services = PlaceServices(self, lambda: self._places)
        self._next_keyframe_id = 1
        self._reporter = Reporter(self, self.statistics, output.status_period, self._state, output.hardware_id)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/force_keyframe", self._on_force_keyframe)

    # --- lifecycle ---

    def _configure(self) -> None:
        """Load the network and warm it up."""
        parameters = self.settings
        output, mask = parameters.output, parameters.input.mask
        # First, because loading the network takes so much longer.
        parameters.input.check_mode(parameters.front_end.scale.mode)
        usable = read_mask(Path(mask).expanduser()) if mask else None
        self.statistics.set_window(output.status_window)
        self.errors.period = output.error_period
        self._reporter.set_period(output.status_period)
        self._reporter.hardware_id = output.hardware_id
        scheduling = Scheduling(
            parameters.scheduling, lambda problem: self.errors.error("scheduling", problem, always=True)
        )
        self._stages = FrameStages(
            lambda: load_front_end(parameters, self._next_keyframe_id, self.get_logger()),
            FrameDecoder(parameters.input, usable, lambda reason: self.errors.error("mask", reason)),
            self.statistics,
            self.errors,
            self.context.ok,
            parameters.matcher.is_pipelined,
            scheduling,
        )
        self._outputs = Outputs(self, output.max_lines, parameters.odometry)
        self._stages.publish_by(self._outputs)
        self._stages.gpu_lost_by(lambda message: self.give_up("gpu", message))
        from loftr_ros.matcher.precision import why_no_gpu  # loads torch, which has been loaded now

        if parameters.matcher.device == "auto" and (problem := why_no_gpu()):
            self.errors.count("device", f"the CPU computes, although there is a GPU: {problem}")
        self._gyroscope = Gyroscope(parameters.imu) if parameters.imu.enabled else None
        self._stages.front_end.use_gyroscope(self._gyroscope)
        odometry = parameters.odometry
        self._wheel = WheelOdometry(
            WheelConfig(odometry.prior_drift, odometry.prior_turn_drift, odometry.prior_time_std)
        )
        self._stages.front_end.use_odometry(self._wheel)
        self._places = self._open_places(parameters)
        if self._places is not None:
            self._stages.observe_by(self._places.observe)

    def _activate(self) -> None:
        """Subscribe and start working."""
        parameters = self.settings
        mode, camera_info = parameters.front_end.scale.mode, parameters.input.camera_info
        assert self._stages is not None
        self._input = ImageInput(self, parameters.input, mode, self.statistics, self._stages.put, self.errors)
        if self._gyroscope is not None:
            self._imu = ImuInput(self, parameters.imu, self._gyroscope, lambda: self.statistics.last_frame_id)
        self._wheel_input = WheelInput(self, parameters.odometry, self._wheel, lambda: self.statistics.last_frame_id)
        self.get_logger().info(f"waiting for images on {self._input.topic} (mode: {mode}, camera_info: {camera_info})")

    def _deactivate(self) -> None:
        """Unsubscribe; finish the frames in progress, keep the keyframes."""
        self._stop()

    def _free(self) -> None:
        """Free the network and the keyframes."""
        self.close()
        if self._outputs is not None:
            self._outputs.close()
        self._outputs = None

    def close(self) -> None:
        """End the threads, in any state; the node cannot be used afterwards."""
        self._stop()
        self._close_places()  # first, because it works on the stages' threads
        if self._stages is not None:
            self._next_keyframe_id = self._stages.front_end.buffer.next_id
            self._stages.stop()
            self._stages = None
            free_gpu_memory()

    # --- services and parameters ---

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        done = "all keyframes are dropped before the next frame"

        def reset(front_end: FrontEnd, outputs: Outputs) -> None:
            outputs.publish_events(front_end.reset(), None)
            if self._places is not None:
                self._places.restart()

        return self._on_stages(reset, done, response)

    def _on_force_keyframe(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        done = "the next frame becomes a keyframe"
        return self._on_stages(lambda front_end, outputs: front_end.force_keyframe(), done, response)

    def _on_stages(
        self, command: Callable[[FrontEnd, Outputs], object], done: str, response: Trigger.Response
    ) -> Trigger.Response:
        active = self._stages is not None and self.lifecycle == "active"
        response.success = active
        response.message = done if active else f"the node is {self.lifecycle}, not active"
        if self._stages is not None and active:
            self._stages.call(command)
        return response

    def _reconfigure(self, parameters: Parameters) -> None:
        """Use other live parameters, from the next frame and message on."""
        assert self._stages is not None
        output = parameters.output
        self.errors.period = output.error_period
        self._reporter.set_period(output.status_period)
        self._reporter.hardware_id = output.hardware_id

        def between_frames(front_end: FrontEnd, outputs: Outputs) -> None:
            front_end.reconfigure(parameters.front_end)
            outputs.max_lines = output.max_lines
            if self._places is not None:
                self._places.reconfigure(parameters)

        self._stages.call(between_frames)

    # --- the rest ---

    def _open_places(self, parameters: Parameters) -> Places | None:
        """Open the archive and the loop search. If that fails for any reason, the front end works without them."""
        if not parameters.archive.uri:
            return None
        assert self._stages is not None and self._outputs is not None
        stages, outputs = self._stages, self._outputs
        try:
            lent = stages.lend(stages.front_end.matcher)
            return stages.ask(
                lambda front_end: Places(self, parameters, front_end, lent, stages.call, outputs.publisher, self.errors)
            )
        except Exception as error:
            kind = error_kind(error)
            details = traceback.format_exc() if kind == "internal" else ""
            self.errors.error(kind, f"no archive, and no loop closure: {error}", details, always=True)
            return None

    def _close_places(self) -> None:
        if self._places is not None:
            self._places.close()
            self._places = None

    def _stop(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None
        if self._imu is not None:
            self._imu.close()
            self._imu = None
        if self._wheel_input is not None:
            self._wheel_input.close()
            self._wheel_input = None
        if self._stages is not None:
            self._stages.drain()

    def _gyroscope_state(self) -> GyroscopeReport:
        if self._gyroscope is None or self._imu is None:
            return GyroscopeReport()
        return GyroscopeReport(self._imu.state, self._gyroscope.bias_std)

    def _state(self) -> FrontEndState:
        stages, images = self._stages, self._input
        if stages is None or self._outputs is None:
            return FrontEndState(self.lifecycle, self.failure)
        from loftr_ros.matcher.factory import precision_of

        front_end = stages.front_end
        reference = front_end.buffer.reference
        waiting = images.pending if images else 0
        return FrontEndState(
            lifecycle=self.lifecycle,
            failure=self.failure,
            topic=images.topic if images else "",
            waiting=waiting,
            network=front_end.matcher.config.name,
            device=str(front_end.matcher.device),
            precision=precision_of(front_end.matcher),
            pending=stages.pending + waiting,
            keyframes_held=len(front_end.buffer),
            keyframe_capacity=front_end.config.keyframe.capacity,
            reference_keyframe_id=reference.id if reference else 0,
            matched_keyframes=front_end.effort.keyframes,
            image_scale=front_end.effort.scale,
            motion=motion_state(front_end),
            gyroscope=self._gyroscope_state(),
            odometry_prior="" if self._wheel_input is None else self._wheel_input.state,
            places=self._places.state if self._places is not None else PlacesState(),
        )


def main(args: list[str] | None = None, autostart: bool = False) -> int:
    """Run the node until it is asked to stop.

    Args:
        args: command line with ROS arguments; None for the process's own.
        autostart: become active without a launch file.

    Returns:
        The process's exit code: 0 after a clean stop, 2 if an argument is wrong, 1 if autostart failed.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    profile = provide_profile()

    def make() -> FrontEndNode:
        node = FrontEndNode()
        profile.log(node.get_logger())
        return node

    return run_node(make, NAME, args, autostart)
