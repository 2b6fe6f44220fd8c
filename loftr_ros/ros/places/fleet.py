"""Places shared with other robots over ROS 2: keyframes are announced to all, images are sent on request.

Three threads meet here. The executor's thread only receives and forwards. The recognition thread, which owns the
archive, stores the announcements of others, and waits for images requested from them. A third thread answers requests
and publishes announcements: if the waiting threads had to answer too, two robots that ask each other at the same time
would wait for ever.

Clocks of other robots are not used, except to compare two stamps of one keyframe.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from loftr_ros.msg import ArchivedKeyframe as KeyframeMessage
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName, PlacesError
from loftr_ros.ros.output.messages import to_nanoseconds
from loftr_ros.ros.places.fleet_outgoing import Outgoing
from loftr_ros.ros.places.fleet_requests import Requests
from loftr_ros.ros.places.keyframe_messages import check_names, from_announcement, from_answer

if TYPE_CHECKING:  # these import torch, which the node loads when it is configured
    from loftr_ros.places.recognition import PlaceRecognition

# Announcements kept for robots that join later; docs/fleet.md gives their size.
KEPT = 2000
# Announcements of others that may wait to be stored.
_LONGEST_QUEUE = 10_000
# Limits of the names in memory: a peer that invents new ones must not fill it.
_MOST_ROBOTS, _MAX_KNOWN = 256, 100_000
# Keyframes stored in one commit, which takes as long for one as for all of them.
_BATCH = 64
# Up to this many keyframes are looked up in the archive individually, more of them by a list of all.
_FEW = 8


class Fleet:
    """Announces this robot's keyframes, stores those announced by others, and exchanges images on demand."""

    def __init__(
        self,
        node: LifecycleNode,
        recognition: PlaceRecognition,
        robot: str,
        space: str,
        topic: str,
        fetch_timeout: float,
        on_error: Callable[[Exception], None],
        on_refused: Callable[[str, str], None] = lambda kind, reason: None,
    ) -> None:
        """Start listening. Archived keyframes of this robot are announced once the node is active.

        Args:
            node: the owner of topics and service.
            recognition: the thread that owns the archive.
            robot: this robot's name.
            space: of this robot's descriptors.
            topic: of the announcements, the same for all robots.
            fetch_timeout: seconds that another robot has to send a keyframe.
            on_error: called with each error, on any thread.
            on_refused: called, on any thread, with a word for counting and the reason, for each ignored keyframe; the
                log reports it once per robot.

        Raises:
            InvalidTopicNameException, InvalidQosOverridesError: the topic's name, or an override of its QoS, is
                invalid.
        """
        self._node, self._recognition = node, recognition
        self._archive = recognition.detector.archive
        self._robot, self._space, self._on_error, self._on_refused = robot, space, on_error, on_refused
        self._own_node = node.get_fully_qualified_name()
        self._lock = threading.Lock()
        self._closing = False
        self._waiting: deque[KeyframeMessage] = deque()
        self._known_stamps: dict[KeyframeName, int] = {}  # stamps of other robots' keyframes
        self._nodes: dict[str, str] = {}  # by robot, as last announced
        self._warned: set[tuple[str, str]] = set()
        # Separate from the node's other callbacks, which must not wait for the answer to a request.
        group = ReentrantCallbackGroup()
        self._requests = Requests(node, group, fetch_timeout)
        self._subscription = node.create_subscription(
            KeyframeMessage,
            topic,
            self._on_announcement,
            _profile(),
            callback_group=group,
            qos_overriding_options=_overridable(),
        )
        try:
            self._outgoing = Outgoing(
                node, group, self._archive, robot, space, topic, _profile(), _overridable(), on_error
            )
        except Exception:  # an invalid QoS override
            node.destroy_subscription(self._subscription)
            raise

    def announce(self, keyframe: ArchivedKeyframe) -> None:
        """Announce a keyframe to all robots, as soon as the node is active; never blocks.

        Raises:
            PlacesError: it does not fit into a message.
        """
        self._outgoing.announce(keyframe)

    def fetch(self, keyframe: ArchivedKeyframe) -> ArchivedKeyframe | None:
        """Request the image of a keyframe from its robot, and store it; on the recognition thread.

        Args:
            keyframe: as announced.

        Returns:
            It with image and depths; None if its robot is not running, has not answered lately, or has dropped it.
        """
        name = keyframe.name
        node = self._nodes.get(name.robot)
        response = None if node is None else self._requests.get(name, node)
        if response is None:
            return None
        try:
            fetched = from_answer(response, self._space)
            if fetched.name != name:
                raise PlacesError("keyframe_invalid", f"asked for keyframe {name}, '{node}' sent {fetched.name}")
        except PlacesError as error:
            self._requests.refuse(name)
            self._on_error(error)
            return None
        if not self._archive.is_read_only:
            try:
                self._archive.add(fetched)
            except PlacesError as error:  # it can still be used once
                self._on_error(error)
        return fetched

    def close(self) -> None:
        """Destroy topics and services; pending requests get no answer. Nothing is called afterwards."""
        with self._lock:
            self._closing = True
        self._requests.close()
        self._outgoing.close()
        self._node.destroy_subscription(self._subscription)

    def _on_announcement(self, message: KeyframeMessage) -> None:
        """Runs on the executor's thread, so it must not access the archive."""
        try:
            check_names(message)  # before anything of it is stored
        except PlacesError as error:
            self._on_error(error)
            return
        name, stamp = KeyframeName(message.robot, int(message.keyframe_id)), to_nanoseconds(message.header.stamp)
        if message.robot == self._robot and self._outgoing.has_announced(message):
            return  # this robot's own announcement
        if (refusal := self._refusal(message)) is not None:
            kind, robot, reason = refusal
            self._warn_once(kind, robot, reason)
            self._on_refused(kind, reason)
            return
        self._nodes[name.robot] = message.node
        if self._archive.is_read_only or self._known_stamps.get(name) == stamp:
            return
        with self._lock:
            if self._closing or len(self._waiting) >= _LONGEST_QUEUE:
                return  # ignored; it is repeated when its robot restarts
            if len(self._known_stamps) >= _MAX_KNOWN:  # forgotten ones are looked up in the archive
                self._known_stamps.pop(next(iter(self._known_stamps)))
            self._known_stamps[name] = stamp
            self._waiting.append(message)
            is_first = len(self._waiting) == 1
        if is_first:
            self._recognition.submit(self._store)

    def _refusal(self, message: KeyframeMessage) -> tuple[str, str, str] | None:
        """Why a keyframe is ignored: a word for counting, the robot to report, and the reason. None if it is
        accepted.
        """
        robot, known = message.robot, self._nodes.get(message.robot)
        if robot == self._robot:
            return (
                "keyframe_name",
                robot,
                f"another robot has the same name '{robot}' as this one, with its node {message.node}; its keyframes "
                "are ignored. Give each robot its own robot_name",
            )
        if message.descriptor_space != self._space:
            return (
                "keyframe_space",
                robot,
                f"robot '{robot}' describes places by '{message.descriptor_space}', this one by '{self._space}'; its "
                "keyframes are ignored. Give both the same network and weights",
            )
        if message.node == self._own_node:
            return (
                "keyframe_name",
                robot,
                f"the node of robot '{robot}' has the same name as this one, {message.node}, so images cannot be "
                "requested from it; its keyframes are ignored. Give each robot its own namespace",
            )
        if known is not None and known != message.node and self._is_running(known):
            return (
                "keyframe_name",
                robot,
                f"the name '{robot}' belongs to the robot of {known}, which is running, but {message.node} uses it "
                "too; keyframes of the latter are ignored. Give each robot its own robot_name",
            )
        if known is None and len(self._nodes) >= _MOST_ROBOTS:
            return (
                "keyframe_robots",
                "",
                f"more than {_MOST_ROBOTS} robots announce keyframes; those of further ones are ignored",
            )
        return None

    def _is_running(self, node: str) -> bool:
        there = self._node.get_node_names_and_namespaces()
        return node in (f"{namespace.rstrip('/')}/{name}" for name, namespace in there)

    def _store(self) -> None:
        """Store some of the waiting announcements in the archive; on the recognition thread."""
        with self._lock:
            if self._closing:
                return
            batch = [self._waiting[i] for i in range(min(_BATCH, len(self._waiting)))]
        keyframes: dict[KeyframeName, ArchivedKeyframe] = {}
        for message in batch:
            try:
                keyframe = from_announcement(message, self._space)
                self._check_dimension(keyframe)
                keyframes[keyframe.name] = keyframe
            except PlacesError as error:
                self._on_error(error)
        try:
            self._archive.add_all(self._not_archived(list(keyframes.values())))
        except Exception as error:
            self._on_error(error)
            for name in keyframes:  # retried when they are announced again
                self._known_stamps.pop(name, None)
        with self._lock:
            for _ in batch:
                self._waiting.popleft()
            more = bool(self._waiting)
        if more:
            self._recognition.submit(self._store)  # not at once, so that the thread's own keyframes come in between

    def _check_dimension(self, keyframe: ArchivedKeyframe) -> None:
        """Check each keyframe's dimension, so that a wrong one does not fail the whole batch.

        Raises:
            PlacesError: it is of another dimension than the archive's.
        """
        given, expected = len(keyframe.descriptor), self._archive.dimension
        if given != expected:
            raise PlacesError(
                "keyframe_invalid", f"keyframe {keyframe.name} has a descriptor of {given} numbers; expected {expected}"
            )

    def _not_archived(self, keyframes: list[ArchivedKeyframe]) -> list[ArchivedKeyframe]:
        """The keyframes that are not stored yet.

        Existing ones must stay: they may have their image already, and in a shared database they belong to their robot.
        """
        robots = {keyframe.name.robot for keyframe in keyframes}
        if len(keyframes) > _FEW:
            there = {name for robot in robots for name in self._archive.names(robot)}
        else:
            there = {keyframe.name for keyframe in keyframes if self._archive.get(keyframe.name) is not None}
        fresh = [keyframe for keyframe in keyframes if keyframe.name not in there]
        for robot in robots:
            again = [keyframe for keyframe in keyframes if keyframe.name in there and keyframe.name.robot == robot]
            # One is enough to decide: a robot that lost its archive restarts its numbering at one.
            stored = self._archive.get(again[-1].name) if again else None
            if stored is not None and stored.stamp_ns != again[-1].stamp_ns:
                self._warn_once(
                    "anew",
                    robot,
                    f"robot '{robot}' restarted its keyframe numbers; old keyframes are replaced",
                )
                fresh += again
        return fresh

    def _warn_once(self, what: str, robot: str, message: str) -> None:
        if (what, robot) not in self._warned and len(self._warned) < _MOST_ROBOTS:
            self._warned.add((what, robot))
            self._node.get_logger().warning(f"fleet: {message}")


def _profile() -> QoSProfile:
    """A new one each time: rclpy writes overrides into it."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=KEPT,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def _overridable() -> Any:
    return QoSOverridingOptions(
        [QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY]
    )
