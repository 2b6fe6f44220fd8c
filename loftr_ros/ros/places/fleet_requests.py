"""Requests to other robots for keyframes, with a pause for robots that do not answer."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node

from loftr_ros.places.keyframe import KeyframeName
from loftr_ros.srv import GetKeyframe

# Seconds before a robot that did not answer is asked again: after the first failure, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
# Seconds before a keyframe is requested again that its robot could not send.
REFUSED_FOR = 60.0
_MOST_REFUSED = 1000
# Seconds between checks whether a service has come up: rclpy sends no notification.
_POLL_PERIOD = 0.02


@dataclass
class _Pause:
    """Length of the pause for a robot, and its end."""

    seconds: float
    until: float


class Requests:
    """Calls the service `~/get_keyframe` of other robots' nodes, from one waiting thread while the executor spins."""

    def __init__(self, node: Node, group: CallbackGroup, timeout: float) -> None:
        """Create it.

        Args:
            node: the owner of the clients.
            group: of callbacks that may run in parallel to all others.
            timeout: seconds that a robot has to answer.
        """
        self._node, self._group, self._timeout = node, group, timeout
        self._condition = threading.Condition()
        self._closing = self._busy = False
        self._clients: dict[str, Any] = {}  # by node
        self._pauses: dict[str, _Pause] = {}  # by robot
        self._refused: OrderedDict[KeyframeName, float] = OrderedDict()  # until when

    def get(self, name: KeyframeName, node: str) -> GetKeyframe.Response | None:
        """Request a keyframe from a node and wait for the answer.

        Args:
            name: of the keyframe.
            node: fully qualified name of the node that has it.

        Returns:
            A successful answer; None if none came in time, the node refused, or a pause is in effect.
        """
        now = time.monotonic()
        pause = self._pauses.get(name.robot)
        if (pause is not None and now < pause.until) or now < self._refused.get(name, 0.0):
            return None
        response = self._ask(node, GetKeyframe.Request(robot=name.robot, keyframe_id=name.id))
        if response is None:
            self._leave_alone(name.robot, node)
            return None
        self._pauses.pop(name.robot, None)
        if not response.success:
            self.refuse(name)
            self._node.get_logger().info(f"fleet: {node} does not send keyframe {name}: {response.message}")
            return None
        return response

    def refuse(self, name: KeyframeName) -> None:
        """Do not request a keyframe again for a while, because the received one was unusable."""
        self._refused[name] = time.monotonic() + REFUSED_FOR
        self._refused.move_to_end(name)
        if len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)

    def close(self) -> None:
        """Release waiting threads and destroy the clients; `get` returns None from now on."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._busy)
            for client in self._clients.values():
                self._node.destroy_client(client)
            self._clients.clear()

    def _ask(self, node: str, request: GetKeyframe.Request) -> GetKeyframe.Response | None:
        with self._condition:
            if self._closing:
                return None
            self._busy = True
        try:
            return self._wait_for_answer(node, request)
        finally:
            with self._condition:
                self._busy = False
                self._condition.notify_all()

    def _wait_for_answer(self, node: str, request: GetKeyframe.Request) -> GetKeyframe.Response | None:
        end = time.monotonic() + self._timeout
        if node not in self._clients:
            self._clients[node] = self._node.create_client(
                GetKeyframe, f"{node}/get_keyframe", callback_group=self._group
            )
        client = self._clients[node]
        with self._condition:
            while not client.service_is_ready():
                if self._closing or time.monotonic() >= end:
                    return None
                self._condition.wait(_POLL_PERIOD)
        future = client.call_async(request)
        future.add_done_callback(self._wake)
        with self._condition:
            self._condition.wait_for(lambda: self._closing or future.done(), max(end - time.monotonic(), 0.0))
        if not future.done():
            client.remove_pending_request(future)
            return None
        response: GetKeyframe.Response = future.result()
        return response

    def _wake(self, _: Any) -> None:
        with self._condition:
            self._condition.notify_all()

    def _leave_alone(self, robot: str, node: str) -> None:
        if self._closing:
            return
        before = self._pauses.get(robot)
        seconds = FIRST_PAUSE if before is None else min(2 * before.seconds, LONGEST_PAUSE)
        self._pauses[robot] = _Pause(seconds, time.monotonic() + seconds)
        if before is None:
            self._node.get_logger().info(f"fleet: robot '{robot}' ({node}) does not answer; it is paused for a while")
