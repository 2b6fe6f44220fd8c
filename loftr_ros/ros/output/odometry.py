"""Odometry, path and transform of the robot's base, for visualisation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from geometry_msgs.msg import (
    PoseStamped,
    PoseWithCovarianceStamped,
    Quaternion,
    Transform,
    TransformStamped,
    TwistWithCovariance,
    Vector3,
)
from geometry_msgs.msg import Twist as TwistMessage
from nav_msgs.msg import Odometry, Path
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header

from loftr_ros.geometry.two_view import UNKNOWN_VARIANCE
from loftr_ros.ros.output.base_motion import Fix, Twist, base_covariance, base_pose, base_twist
from loftr_ros.ros.output.camera_mount import CameraMount
from loftr_ros.ros.output.messages import to_covariance, to_pose, to_pose_with_covariance, to_time
from loftr_ros.ros.parameters import OdometryParameters
from loftr_ros.settings import ConfigError

if TYPE_CHECKING:  # imports torch, which the node loads when it is configured
    from loftr_ros.frontend.pipeline import FrontEndResult

# Maximum number of poses that wait for the camera's mount: those of the first seconds.
_KEPT = 1000

# Seconds between two warnings of a broken trajectory: a camera in the dark is lost with every frame.
_SILENCE = 5.0


@dataclass(frozen=True)
class _Step:
    """A frame's location, that of the frame before, and whether the trajectory has been broken."""

    fix: Fix
    before: Fix
    is_broken: bool


class OdometryOutput:
    """Publishes the base's motion; follows the trajectory even without subscribers."""

    def __init__(
        self, node: LifecycleNode, parameters: OdometryParameters, publisher: Callable[[type, str], Any]
    ) -> None:
        """Create the publishers.

        Args:
            node: the owner.
            parameters: frames, and what to publish.
            publisher: creates one for a message type and a topic; its owner destroys it.

        Raises:
            ConfigError: tf2_msgs is missing and a transform shall be published.
        """
        self._parameters = parameters
        self._logger = node.get_logger()
        self._odometry = publisher(Odometry, "~/odometry")
        self._path = publisher(Path, "~/path")
        self._orientation = publisher(PoseWithCovarianceStamped, "~/orientation")
        self._tf = publisher(_tf_message(), "/tf") if parameters.publish_tf else None
        self._mount = CameraMount(node, parameters)
        self._poses: deque[PoseStamped] = deque(maxlen=parameters.path_length)
        self._waiting: deque[_Step] = deque(maxlen=_KEPT)
        self._breaks = 0
        self._silent_until = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin a new trajectory at the origin."""
        self._last: Fix | None = None
        self._first_segment: int | None = None
        self._poses.clear()
        self._waiting.clear()

    def close(self) -> None:
        """Stop listening to tf; the owner destroys the publishers."""
        self._mount.close()

    def publish(self, result: FrontEndResult) -> None:
        """Publish odometry and transform if the frame's location is known, and keep the pose for the path.

        Until tf has provided the camera's mount, they wait. They are published later with their own stamps.
        """
        fix = _fix_of(result)
        if fix is None:
            self._publish_orientation(result)
            return
        before, self._last = self._last, fix
        segment = fix.location.segment
        if self._first_segment is None:
            self._first_segment = segment
        if before is not None and before.location.segment != segment:
            self._report_segment(result, before.location.segment, segment)
        self._waiting.append(_Step(fix, before or fix, segment != self._first_segment))
        base_from_camera = self._mount.of(result.frame.frame_id)
        if base_from_camera is None:
            return
        while self._waiting:
            self._send(self._waiting.popleft(), base_from_camera)

    def _publish_orientation(self, result: FrontEndResult) -> None:
        """Publish the base's orientation of a frame without a location, if a gyroscope or another odometry knows it."""
        found, last = result.orientation, self._last
        if found is None or last is None or last.location.segment != found.segment:
            return
        base_from_camera = self._mount.of(result.frame.frame_id)
        if base_from_camera is None or not self._orientation.get_subscription_count():
            return
        camera = last.location.pose.copy()
        camera[:3, :3] = found.rotation
        base = base_pose(camera, base_from_camera)
        base[:3, 3] = base_pose(last.location.pose, base_from_camera)[:3, 3]
        covariance = UNKNOWN_VARIANCE * np.eye(6)
        if found.segment == self._first_segment:
            axes = base_from_camera[:3, :3]
            covariance[3:, 3:] = axes @ found.covariance @ axes.T
        header = Header(stamp=to_time(result.frame.stamp_ns), frame_id=self._parameters.odom_frame)
        pose = to_pose_with_covariance(base, covariance)
        self._orientation.publish(PoseWithCovarianceStamped(header=header, pose=pose))

    def _send(self, step: _Step, base_from_camera: NDArray[np.float64]) -> None:
        fix = step.fix
        base = base_pose(fix.location.pose, base_from_camera)
        header = Header(stamp=to_time(fix.stamp_ns), frame_id=self._parameters.odom_frame)
        stamped = PoseStamped(header=header, pose=to_pose(base))
        self._poses.append(stamped)
        if self._tf is not None:
            self._tf.publish(self._tf_message(stamped))
        if not self._odometry.get_subscription_count():
            return
        covariance = base_covariance(fix.location.covariance, base, base_from_camera)
        if step.is_broken:
            covariance += UNKNOWN_VARIANCE * np.eye(6)  # the relative pose of two segments is unknown
        twist = base_twist(step.before, fix, base_from_camera)
        self._odometry.publish(
            Odometry(
                header=header,
                child_frame_id=self._parameters.base_frame,
                pose=to_pose_with_covariance(base, covariance),
                twist=_twist_message(twist),
            )
        )

    def publish_path(self) -> None:
        """Publish the newest poses, only if there are subscribers."""
        if self._poses and self._path.get_subscription_count():
            self._path.publish(Path(header=self._poses[-1].header, poses=list(self._poses)))

    def _tf_message(self, stamped: PoseStamped) -> Any:
        position, orientation = stamped.pose.position, stamped.pose.orientation
        return _tf_message()(
            transforms=[
                TransformStamped(
                    header=stamped.header,
                    child_frame_id=self._parameters.base_frame,
                    transform=Transform(
                        translation=Vector3(x=position.x, y=position.y, z=position.z),
                        rotation=Quaternion(x=orientation.x, y=orientation.y, z=orientation.z, w=orientation.w),
                    ),
                )
            ]
        )

    def _report_segment(self, result: FrontEndResult, before: int, now: int) -> None:
        if now < before:
            self._logger.info(
                f"at {result.frame.stamp_ns / 1e9:.3f} s the camera is located again in segment {now} of the trajectory"
            )
            return
        self._breaks += 1
        if time.monotonic() < self._silent_until:
            return
        self._silent_until = time.monotonic() + _SILENCE
        times = "" if self._breaks == 1 else f" ({self._breaks} times since the last such line)"
        self._breaks = 0
        self._logger.warning(
            f"segment {now} of the trajectory begins at {result.frame.stamp_ns / 1e9:.3f} s{times}: no pose links "
            "this image to those before it, and its place has been tracked separately. Its poses begin at the last "
            "known place, with a covariance that marks them as unknown"
        )


def _tf_message() -> Any:
    """The type of messages on /tf.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from tf2_msgs.msg import TFMessage
    except ImportError as error:
        raise ConfigError(
            "parameter odometry.publish_tf is true, but tf2_msgs is not installed; a ROS installation includes it, "
            "PyPI's wheels of ROS do not"
        ) from error
    return TFMessage


def _fix_of(result: FrontEndResult) -> Fix | None:
    """Location of a frame's camera; None if it is unknown or only assumed."""
    frame = result.frame
    if frame.camera is None:
        return None
    if result.location is not None:
        return Fix(frame.stamp_ns, result.location, result.matches[0].keyframe.location or result.location)
    for event in result.events:
        # The first keyframe of a trajectory, which has no predecessor.
        if event.added and event.keyframe.frame is frame and event.keyframe.location is not None:
            return Fix(frame.stamp_ns, event.keyframe.location, event.keyframe.location)
    return None


def _twist_message(twist: Twist) -> TwistWithCovariance:
    linear, angular = (dict(zip("xyz", each.tolist(), strict=True)) for each in (twist.linear, twist.angular))
    return TwistWithCovariance(
        twist=TwistMessage(linear=Vector3(**linear), angular=Vector3(**angular)),
        covariance=to_covariance(twist.covariance),
    )
