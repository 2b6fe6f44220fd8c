"""Data sent to other robots: keyframes announced to all, and images on request."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.task import Future

from loftr_ros.msg import ArchivedKeyframe as KeyframeMessage
from loftr_ros.places.archive import Archive
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName, PlacesError
from loftr_ros.ros.output.messages import to_nanoseconds, unknown_pose
from loftr_ros.ros.places.keyframe_messages import announcement, fill_answer
from loftr_ros.srv import GetKeyframe
from loftr_ros.threads import Task, WorkThread

# Announcements per second. The limit keeps a thousand of them from earlier runs from blocking a radio link.
_RATE = 100.0
# Requests that may wait to be answered.
_MOST_REQUESTS = 32
# Seconds between checks whether the node is active, while messages wait: rclpy sends no notification.
_POLL_PERIOD = 0.2


class Outgoing:
    """Publishes announcements and answers `~/get_keyframe`, on its own thread.

    So neither the recognition thread, which may itself wait for another robot's answer, nor the executor, which
    receives images, has to read the archive for this.
    """

    def __init__(
        self,
        node: LifecycleNode,
        group: CallbackGroup,
        archive: Archive,
        robot: str,
        space: str,
        topic: str,
        profile: QoSProfile,
        overridable: Any,
        on_error: Callable[[Exception], None],
    ) -> None:
        """Start the thread. Archived keyframes of this robot are announced once the node is active.

        Args:
            node: the owner of topic and service.
            group: of callbacks that may run in parallel to all others.
            archive: only read here.
            robot: this robot's name.
            space: of its descriptors.
            topic: of the announcements.
            profile, overridable: its quality of service. Its depth limits the announcements of earlier keyframes.
            on_error: called with each error, on the thread.
        """
        self._node, self._archive, self._on_error = node, archive, on_error
        self._robot, self._space = robot, space
        self._own_node = node.get_fully_qualified_name()
        self._announcements: deque[KeyframeMessage] = deque()
        self._requests: deque[Callable[[], None]] = deque()
        self._announced: OrderedDict[int, int] = OrderedDict()  # ids and their stamps
        self._awaited = 0  # answers; used by the executor's thread only
        self._publisher = node.create_lifecycle_publisher(
            KeyframeMessage, topic, profile, qos_overriding_options=overridable
        )
        self._kept = max(profile.depth, 1)  # with its overrides, which rclpy has written into it
        self._service = node.create_service(GetKeyframe, "~/get_keyframe", self._on_request, callback_group=group)
        self._has_past = True
        self._quiet_until = 0.0
        self._thread = WorkThread(self._next, "loftr_fleet", on_error)
        self._condition = self._thread.condition
        self._thread.start()

    def announce(self, keyframe: ArchivedKeyframe) -> None:
        """Announce a keyframe to all robots, as soon as the node is active; never blocks.

        Raises:
            PlacesError: it does not fit into a message.
        """
        message = announcement(keyframe, self._space, self._own_node)
        with self._condition:
            self._announcements.append(message)
            self._remember(message)
            self._condition.notify()

    def has_announced(self, message: KeyframeMessage) -> bool:
        """Whether an announcement came from here."""
        with self._condition:
            stamp = self._announced.get(message.keyframe_id)
        return bool(message.node == self._own_node) and stamp == to_nanoseconds(message.header.stamp)

    def close(self) -> None:
        """End the thread; destroy topic and service. Pending requests get a negative answer."""
        self._thread.stop()
        self._node.destroy_lifecycle_publisher(self._publisher)
        if not self._awaited:
            self._node.destroy_service(self._service)

    async def _on_request(self, request: GetKeyframe.Request, response: GetKeyframe.Response) -> GetKeyframe.Response:
        executor = self._node.executor
        response.keyframe.link = unknown_pose()  # until it is filled
        name = KeyframeName(request.robot or self._robot, int(request.keyframe_id))
        done = Future()

        def answer() -> None:
            self._answer(name, response)
            done.set_result(True)
            # Up to Kilted at least, a completed future does not wake the executor that awaits it.
            if self._node.context.ok():
                executor.wake()

        with self._condition:
            if self._is_closing() or len(self._requests) >= _MOST_REQUESTS:
                response.message = (
                    "the node is being cleaned up" if self._is_closing() else "too many requests; ask later"
                )
                return response
            self._requests.append(answer)
            self._condition.notify()
        self._awaited += 1
        await done
        self._awaited -= 1
        if self._is_closing() and not self._awaited:
            # In a later task: rclpy still sends the answer within this one.
            executor.create_task(self._node.destroy_service, self._service)
        return response

    def _answer(self, name: KeyframeName, response: GetKeyframe.Response) -> None:
        if self._is_closing():
            response.message = "the node is being cleaned up"
            return
        try:
            keyframe = self._archive.get(name)
            if keyframe is None:
                response.message = f"keyframe {name} is not in the archive (any more)"
            else:
                fill_answer(response, keyframe, self._space, self._own_node)
        except PlacesError as error:
            response.message = str(error)
        except Exception as error:
            response.message = f"the archive failed: {error}"
            self._on_error(error)

    def _next(self) -> Task | float | None:
        """Requests first, because somebody waits; all of these are answered even at the end."""
        if self._has_past:
            self._has_past = False
            return self._announce_past
        if self._requests:
            return self._requests.popleft()
        if self._is_closing() or not self._announcements:
            return None
        if not self._publisher.is_activated:
            return _POLL_PERIOD
        now = time.monotonic()
        if now < self._quiet_until:
            return self._quiet_until - now
        self._quiet_until = now + 1 / _RATE
        return partial(self._publisher.publish, self._announcements.popleft())

    def _is_closing(self) -> bool:
        return self._thread.is_stopping

    def _announce_past(self) -> None:
        """Announce the newest keyframes of earlier runs, the oldest of them first, before any new one.

        DDS keeps the last messages for robots that join later, and these must be the newest keyframes.
        """
        messages: list[KeyframeMessage] = []
        for keyframe in self._archive.descriptors(self._archive.names(self._robot)[-self._kept :]):
            if self._is_closing():
                return
            messages.append(announcement(keyframe, self._space, self._own_node))
        with self._condition:
            messages = [message for message in messages if message.keyframe_id not in self._announced]
            self._announcements.extendleft(reversed(messages))
            for message in messages:
                self._remember(message)

    def _remember(self, message: KeyframeMessage) -> None:
        while len(self._announcements) > self._kept:  # DDS would drop them too
            self._announcements.popleft()
        self._announced[message.keyframe_id] = to_nanoseconds(message.header.stamp)
        while len(self._announced) > 2 * self._kept:
            self._announced.popitem(last=False)
