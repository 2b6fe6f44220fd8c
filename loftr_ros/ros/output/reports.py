"""Status, diagnostics, and log lines with limited repetition."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile

from loftr_ros.backend.measurements import BackEndError
from loftr_ros.frontend.config import MONO
from loftr_ros.frontend.image_files import ImageError
from loftr_ros.frontend.mask import MaskError
from loftr_ros.frontend.quick import FrameMatch
from loftr_ros.geometry.camera import CameraError
from loftr_ros.msg import FrontEndStatus
from loftr_ros.places.keyframe import PlacesError
from loftr_ros.ros.output.messages import to_array
from loftr_ros.ros.output.statistics import STAGES, Severity, Snapshot, Statistics
from loftr_ros.settings import ConfigError

if TYPE_CHECKING:
    from loftr_ros.frontend.pipeline import FrontEnd


_STATES = {
    FrontEndStatus.TRACKING: "TRACKING",
    FrontEndStatus.DOUBTFUL: "DOUBTFUL",
    FrontEndStatus.LOST: "LOST",
    FrontEndStatus.RELOCALISING: "RELOCALISING",
}


@dataclass(frozen=True)
class MotionState:
    """The trajectory's part of the status; see msg/FrontEndStatus for the fields."""

    mode: str = ""
    scale_known: bool = False
    scale_std: float = 0.0
    state: int = 0
    segment: int = 0
    path_length: float = 0.0
    keyframe_depth_cells: int = 0


def motion_state(front_end: FrontEnd) -> MotionState:
    """The current state of the trajectory; may be called from another thread than the front end's."""
    trajectory, reference = front_end.localizer.trajectory, front_end.buffer.reference
    last, depth = trajectory.last, reference.depth if reference else None
    return MotionState(
        mode=front_end.config.scale.mode,
        scale_known=last is not None and last.is_metric,
        scale_std=last.scale_std if last else 0.0,
        state=int(front_end.recovery.state),
        segment=last.segment if last else 0,
        path_length=trajectory.length,
        keyframe_depth_cells=int(depth.known.sum()) if depth else 0,
    )


@dataclass(frozen=True)
class PlacesState:
    """The status of archive and loop search; see msg/FrontEndStatus for the fields."""

    archived_keyframes: int = 0
    archive_bytes: int = 0
    keyframes_lost: int = 0
    places_searched: int = 0
    places_skipped: int = 0
    loop_closures: int = 0
    session: int = 0


@dataclass(frozen=True)
class GyroscopeReport:
    """The gyroscope's part of the status; see msg/FrontEndStatus for the fields."""

    gyroscope: str = ""
    gyroscope_bias_std: float = 0.0


@dataclass(frozen=True)
class FrontEndState:
    """The status beyond the counters.

    Attributes:
        lifecycle: the node's state.
        failure: why its last transition failed; empty if it did not.
        waiting: images that wait for their calibration; `pending` counts them too.
        topic: of the images, if the node is subscribed.
        matched_keyframes, image_scale: effort per image, chosen to stay inside the latency.
        motion: state of the trajectory.
        places: state of archive and loop search.
        gyroscope: its state.
        odometry_prior: state of the other odometry.
    """

    lifecycle: str
    failure: str = ""
    topic: str = ""
    waiting: int = 0
    network: str = ""
    device: str = ""
    precision: str = ""
    pending: int = 0
    keyframes_held: int = 0
    keyframe_capacity: int = 0
    reference_keyframe_id: int = 0
    matched_keyframes: int = 0
    image_scale: float = 1.0
    motion: MotionState = MotionState()
    places: PlacesState = PlacesState()
    gyroscope: GyroscopeReport = GyroscopeReport()
    odometry_prior: str = ""


def error_kind(error: Exception) -> str:
    """The kind under which an error is counted; `internal` for an unexpected one."""
    if isinstance(error, ImageError):
        return error.kind
    if isinstance(error, CameraError):
        return "calibration"
    if isinstance(error, ConfigError):
        return "parameter"
    if isinstance(error, MaskError):
        return "mask"
    if isinstance(error, PlacesError):
        return error.kind
    if isinstance(error, BackEndError):
        return "back_end"
    # Imported here, because it loads torch.
    from loftr_ros.frontend.stream import FrameRefusedError
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError

    if isinstance(error, FrameRefusedError):
        return error.kind
    if isinstance(error, WeightsError):
        return "weights"
    return "device" if isinstance(error, DeviceError) else "internal"


class ErrorLog:
    """Logs and counts errors: the first of a kind at once, then one line per period with the number of omitted ones.

    Any thread may call it.

    Attributes:
        period: seconds between two lines of one kind.
    """

    def __init__(self, node: Node, statistics: Statistics, period: float) -> None:
        self.period = period
        self._logger = node.get_logger()
        self._statistics = statistics
        self._lock = threading.Lock()
        self._silent_until: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def frame_failed(self, kind: str, message: str, details: str = "") -> None:
        """A frame was refused; `details` go to the log only."""
        self._statistics.failed(kind, message)
        self._log(kind, message, details)

    def unpaired(self, kind: str, message: str, number: int, severity: Severity) -> None:
        """Images stay without their partners: an error if all do, a warning if single ones do."""
        if severity in (Severity.USUAL, Severity.BY_DESIGN):
            self._statistics.unpaired(number)
            if severity is Severity.BY_DESIGN:
                self._logger.info(f"{message}. Such images are left out", once=True)
            return
        self._statistics.unpaired(number, kind, message)
        if severity is Severity.NONE_COMES:
            self._log(kind, message, "")
        else:
            self._log(kind, message, "", warn_of=f"single images without {kind}")

    def lost(self, topic: str, number: int, cure: str) -> None:
        """The middleware lost messages of a topic in transport."""
        what = f"{number} message{'s' if number > 1 else ''} of {topic}"
        self._log("transport", f"the middleware lost {what} in transport. {cure}", "", warn_of=f"loss of {topic}")

    def warn(self, message: str) -> None:
        """Log something that is not the node's error; the caller limits the repetition."""
        self._logger.warning(message)

    def error(self, kind: str, message: str, details: str = "", always: bool = False) -> None:
        """Another error; `details` go to the log only, `always` logs even if the line would be omitted."""
        self._statistics.error(kind, message)
        self._log(kind, message, details, always)

    def count(self, kind: str, message: str) -> None:
        """Count a refusal that the caller has already logged."""
        self._statistics.error(kind, message)

    def _log(self, kind: str, message: str, details: str, always: bool = False, warn_of: str = "") -> None:
        """Log an error, or a warning about `warn_of`; each of these is limited separately."""
        key = warn_of or kind
        with self._lock:
            now = time.monotonic()
            if now < self._silent_until.get(key, 0.0) and not always:
                self._left_out[key] = self._left_out.get(key, 0) + 1
                return
            self._silent_until[key] = now + self.period
            left_out = self._left_out.pop(key, 0)
        more = f" ({left_out} more of this kind before)" if left_out else ""
        line = f"[{kind}] {message}{more}" + (f"\n{details}" if details else "")
        # Separate calls: rclpy requires one severity per logging call site.
        if warn_of:
            self._logger.warning(line)
        else:
            self._logger.error(line)


class Reporter:
    """Publishes ~/status and /diagnostics once per period, in any state of the node.

    Attributes:
        hardware_id: in /diagnostics; empty for the machine and the network's device.
    """

    def __init__(
        self,
        node: Node,
        statistics: Statistics,
        period: float,
        state: Callable[[], FrontEndState],
        hardware_id: str = "",
    ) -> None:
        """Start the timer.

        Args:
            node: the owner.
            statistics: the counters.
            period: seconds between two reports.
            state: returns the rest of the status.
            hardware_id: of the camera; empty for the machine and the network's device.
        """
        self.hardware_id = hardware_id
        self._node = node
        self._statistics = statistics
        self._state = state
        self._previous = statistics.snapshot()
        self._status = node.create_publisher(FrontEndStatus, "~/status", QoSProfile(depth=10))
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", QoSProfile(depth=10))
        # Not the node's clock: with use_sim_time it would fall silent just when /clock is missing.
        self._timer = node.create_timer(period, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def set_period(self, period: float) -> None:
        """Set the seconds between two reports."""
        self._timer.timer_period_ns = round(period * 1e9)

    def publish(self) -> None:
        """Publish both now."""
        state, snapshot = self._state(), self._statistics.snapshot()
        self._status.publish(self._status_message(state, snapshot))
        self._diagnostics.publish(self._diagnostics_message(state, snapshot))
        self._previous = snapshot

    def _status_message(self, state: FrontEndState, now: Snapshot) -> FrontEndStatus:
        full = {name: count for name, count in now.frame_matches.items() if FrameMatch[name].is_full}
        message = FrontEndStatus(
            network=state.network,
            device=state.device,
            precision=state.precision,
            frames_received=now.received,
            frames_decoded=now.decoded,
            frames_dropped=now.dropped,
            frames_failed=now.failed,
            frames_processed=now.processed,
            frames_unmatched=now.unmatched,
            frames_useless=now.useless,
            frames_located=now.located,
            frames_quick=now.frame_matches.get(FrameMatch.QUICK.name, 0),
            frames_by_flow=now.frame_matches.get(FrameMatch.FLOW.name, 0),
            full_match_reasons=list(full),
            full_match_counts=to_array(np.asarray(list(full.values()), dtype=np.uint64)),
            frames_unpaired=now.unpaired,
            messages_lost=now.lost,
            frames_pending=state.pending,
            error_kinds=list(now.errors),
            error_counts=to_array(np.asarray(list(now.errors.values()), dtype=np.uint64)),
            last_error=now.last_error,
            rate=now.rate,
            window=now.window,
            stages=list(STAGES),
            latency_median=to_array(np.asarray(now.latency_median, dtype=np.float32)),
            latency_p99=to_array(np.asarray(now.latency_p99, dtype=np.float32)),
            keyframes_held=state.keyframes_held,
            keyframe_capacity=state.keyframe_capacity,
            reference_keyframe_id=state.reference_keyframe_id,
            matched_keyframes=state.matched_keyframes,
            image_scale=state.image_scale,
            **dataclasses.asdict(state.motion),
            **dataclasses.asdict(state.places),
            **dataclasses.asdict(state.gyroscope),
            odometry_prior=state.odometry_prior,
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = now.last_frame_id
        return message

    def _diagnostics_message(self, state: FrontEndState, now: Snapshot) -> DiagnosticArray:
        level, text = self._verdict(state, now)
        values = {
            "lifecycle": state.lifecycle,
            "network": state.network,
            "device": state.device,
            "precision": state.precision,
            "frames received": now.received,
            "frames decoded": now.decoded,
            "frames processed": now.processed,
            "frames unmatched": now.unmatched,
            "frames useless": now.useless,
            "frames located": now.located,
            "frames matched quickly": now.frame_matches.get(FrameMatch.QUICK.name, 0),
            "frames followed by optical flow": now.frame_matches.get(FrameMatch.FLOW.name, 0),
            "frames dropped": now.dropped,
            "frames unpaired": now.unpaired,
            "messages lost": now.lost,
            "frames failed": now.failed,
            "rate [1/s]": f"{now.rate:.1f}",
            "keyframes": f"{state.keyframes_held} of {state.keyframe_capacity}",
            "effort": f"{state.matched_keyframes} keyframes, {100 * state.image_scale:.0f} % of the resolution",
            "camera frame": now.last_frame_id,
            "mode": state.motion.mode,
            "scale known": state.motion.scale_known,
            "scale drift": f"{state.motion.scale_std:.3f}",
            "tracking": _STATES.get(state.motion.state, ""),
            "trajectory segment": state.motion.segment,
            f"path length [{'m' if state.motion.scale_known else 'own unit'}]": f"{state.motion.path_length:.3f}",
            "keyframe cells of known depth": state.motion.keyframe_depth_cells,
            "archived keyframes": state.places.archived_keyframes,
            "archive [MB]": f"{state.places.archive_bytes / 1e6:.1f}",
            "keyframes lost by the archive": state.places.keyframes_lost,
            "places searched (skipped)": f"{state.places.places_searched} ({state.places.places_skipped})",
            "loop closures": state.places.loop_closures,
            "last error": now.last_error,
        }
        values |= {f"errors: {kind}": count for kind, count in now.errors.items()}
        values |= {
            f"latency {stage} [ms]": f"{1e3 * median:.1f} (p99 {1e3 * p99:.1f})"
            for stage, median, p99 in zip(STAGES, now.latency_median, now.latency_p99, strict=True)
        }
        status = DiagnosticStatus(
            level=level,
            name=f"{self._node.get_fully_qualified_name()}: front end",
            message=text,
            hardware_id=self.hardware_id or _machine(state.device),
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        return message

    def _verdict(self, state: FrontEndState, now: Snapshot) -> tuple[bytes, str]:
        """Level and summary, from the changes since the last message."""
        before = self._previous
        new_errors = sum(now.errors.values()) - sum(before.errors.values())
        if state.failure:
            return DiagnosticStatus.ERROR, f"{state.lifecycle}: {state.failure}"
        if state.lifecycle != "active":
            return DiagnosticStatus.OK, state.lifecycle
        unpaired, lost = now.unpaired - before.unpaired, now.lost - before.lost
        if now.processed > before.processed:
            if lost:
                return (
                    DiagnosticStatus.WARN,
                    f"{now.rate:.1f} frames/s; the middleware lost {lost} messages since the last report: see "
                    "docs/transport.md",
                )
            if unpaired and new_errors:
                return (
                    DiagnosticStatus.WARN,
                    f"{now.rate:.1f} frames/s; {unpaired} of {now.received - before.received} images since the last "
                    f"report got no partner: {now.last_error}",
                )
            if new_errors:
                return DiagnosticStatus.WARN, f"{new_errors} errors since the last report: {now.last_error}"
            if state.motion.state in (FrontEndStatus.LOST, FrontEndStatus.RELOCALISING):
                return (
                    DiagnosticStatus.WARN,
                    f"{now.rate:.1f} frames/s, but the camera is lost ({_STATES[state.motion.state]}): "
                    f"{now.located - before.located} of {now.processed - before.processed} frames since the last "
                    f"report were located, {now.useless - before.useless} show nothing",
                )
            if now.unmatched - before.unmatched == now.processed - before.processed:
                return (
                    DiagnosticStatus.WARN,
                    f"{now.rate:.1f} frames/s, but none since the last report matches a keyframe",
                )
            if state.motion.mode != MONO and state.reference_keyframe_id and not state.motion.keyframe_depth_cells:
                return (
                    DiagnosticStatus.WARN,
                    f"{now.rate:.1f} frames/s, but the reference keyframe has no depths, so that poses have no length",
                )
            return DiagnosticStatus.OK, f"{now.rate:.1f} frames/s"
        if new_errors:
            return DiagnosticStatus.ERROR, f"no frame processed: {now.last_error}"
        if state.waiting:
            return (
                DiagnosticStatus.WARN,
                f"{state.waiting} images wait for their partners (CameraInfo, right or depth image)",
            )
        if now.received > before.received:
            return DiagnosticStatus.WARN, "images were received, but none was processed since the last report"
        publishers = self._node.count_publishers(state.topic)
        return (
            DiagnosticStatus.WARN,
            f"no image received on {state.topic} since the last report (publishers: {publishers})",
        )


def _machine(device: str) -> str:
    """The computer, and the network's device once known."""
    return f"{socket.gethostname()} {device}".rstrip()
