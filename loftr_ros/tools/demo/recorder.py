"""The demo's ROS client: requests transitions and records what the node publishes."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from loftr_ros.evaluation.records import KeyframeChange, Located
from loftr_ros.frontend.keyframes import KeyframeReason
from loftr_ros.geometry.se3 import from_quaternion
from loftr_ros.geometry.two_view import PoseStatus
from loftr_ros.msg import Correspondences, FrontEndStatus, Keyframe, LoopClosure, RelativePose
from loftr_ros.ros.output.messages import to_nanoseconds

NODE = "/loftr_front_end"
CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
_DEPTH = 1000  # queue length: no message may be lost while this process is busy
_UNPAIRED = 100  # messages that wait for their counterpart of another topic
_WIDE = 0.08  # fraction of the image's width: more parallax does not make a better picture


@dataclass
class Recorded:
    """What the node has published so far.

    Attributes:
        located: all relative poses, in the order of arrival.
        keyframes: all events of keyframes.
        status: the newest one; None before the first.
        statuses: number of status messages.
        picture: the correspondences that make the best picture: many inliers with much parallax.
        loops: every loop closure, each as a keyframe's pose relative to an older one.
    """

    located: list[Located] = field(default_factory=list)
    keyframes: list[KeyframeChange] = field(default_factory=list)
    status: FrontEndStatus | None = None
    statuses: int = 0
    picture: Correspondences | None = None
    loops: list[Located] = field(default_factory=list)


class Recorder:
    """Subscriptions to the node's topics, served by a separate thread."""

    def __init__(self, domain: int) -> None:
        """Subscribe.

        Args:
            domain: the ROS domain.
        """
        self.recorded = Recorded()
        self._best = -1.0
        self._newest = 0
        self._unpaired: dict[tuple[int, int], Any] = {}
        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("loftr_demo", context=self._context, start_parameter_services=False)
        wanted = {
            "correspondences": (Correspondences, self._on_correspondences),
            "relative_pose": (RelativePose, self._on_relative_pose),
            "keyframe": (Keyframe, self._on_keyframe),
            "status": (FrontEndStatus, self._on_status),
            "loop_closures": (LoopClosure, self._on_loop_closure),
        }
        # A node without an archive does not publish loops.
        self._topics = [f"{NODE}/{name}" for name in wanted if name != "loop_closures"]
        for name, (kind, callback) in wanted.items():
            self._node.create_subscription(kind, f"{NODE}/{name}", callback, QoSProfile(depth=_DEPTH))
        self._change_state = self._node.create_client(ChangeState, f"{NODE}/change_state")
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="loftr_demo", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the domain; the recorded data stays."""
        self._context.try_shutdown()
        self._thread.join(5.0)
        with contextlib.suppress(Exception):  # rclpy may have destroyed it with the context
            self._node.destroy_node()

    @property
    def node_is_up(self) -> bool:
        """Whether the node's lifecycle service was discovered."""
        return bool(self._change_state.service_is_ready())

    @property
    def node_is_connected(self) -> bool:
        """Whether all the node's topics were discovered."""
        return all(self._node.count_publishers(topic) for topic in self._topics)

    def request(self, transition: int) -> Future:
        """Request a transition; the future's result has `success`."""
        return self._change_state.call_async(ChangeState.Request(transition=Transition(id=transition)))

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def _on_status(self, message: FrontEndStatus) -> None:
        self.recorded.status = message
        self.recorded.statuses += 1

    def _on_keyframe(self, message: Keyframe) -> None:
        added, reason = message.event == Keyframe.ADDED, KeyframeReason(message.reason).name
        self.recorded.keyframes.append(KeyframeChange(to_nanoseconds(message.header.stamp), added, reason))

    def _on_correspondences(self, message: Correspondences) -> None:
        self._join(message)

    def _on_loop_closure(self, message: LoopClosure) -> None:
        position, turn = message.pose.pose.position, message.pose.pose.orientation
        self.recorded.loops.append(
            Located(
                stamp_ns=to_nanoseconds(message.header.stamp),
                keyframe_stamp_ns=to_nanoseconds(message.matched_stamp),
                status=PoseStatus(message.status),
                pose=from_quaternion((position.x, position.y, position.z), (turn.x, turn.y, turn.z, turn.w)),
                num_matches=message.num_matches,
                num_inliers=message.num_inliers,
                parallax=float("nan"),
                metric=message.scale_known,
            )
        )

    def _on_relative_pose(self, message: RelativePose) -> None:
        position, turn = message.pose.pose.position, message.pose.pose.orientation
        stamp = to_nanoseconds(message.header.stamp)
        self.recorded.located.append(
            Located(
                stamp_ns=stamp,
                keyframe_stamp_ns=to_nanoseconds(message.keyframe_stamp),
                status=PoseStatus(message.status),
                pose=from_quaternion((position.x, position.y, position.z), (turn.x, turn.y, turn.z, turn.w)),
                num_matches=message.num_matches,
                num_inliers=message.num_inliers,
                parallax=message.median_parallax,
                metric=message.scale_known,
            )
        )
        # The first pose of a frame is relative to the reference.
        if stamp > self._newest:
            self._newest = stamp
            self._join(message)

    def _join(self, message: Any) -> None:
        """Join a pose with its correspondences; either may come first."""
        key = (to_nanoseconds(message.header.stamp), message.keyframe_id)
        other = self._unpaired.get(key)
        if other is None or type(other) is type(message):
            self._unpaired[key] = message
            if len(self._unpaired) > _UNPAIRED:
                del self._unpaired[next(iter(self._unpaired))]
            return
        del self._unpaired[key]
        found, pose = (other, message) if isinstance(other, Correspondences) else (message, other)
        parallax = pose.median_parallax
        if not np.isfinite(parallax):
            moved = np.asarray(found.current_points) - np.asarray(found.keyframe_points)
            parallax = float(np.median(np.hypot(*moved.reshape(-1, 2).T))) if moved.size else 0.0
        score = pose.num_inliers * min(parallax, _WIDE * found.width)
        if score > self._best:
            self._best, self.recorded.picture = score, found
