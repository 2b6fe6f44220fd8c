"""Information about input topics: publishers, transport losses, and published alternatives."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

_SHOWN = 8  # maximum topics in a list
_TYPES = {Image: "sensor_msgs/msg/Image", CompressedImage: "sensor_msgs/msg/CompressedImage",
          CameraInfo: "sensor_msgs/msg/CameraInfo"}  # fmt: skip


class Topic(Protocol):
    """A topic with messages of one kind."""

    @property
    def kind(self) -> type:
        """Of the messages."""

    @property
    def topic(self) -> str:
        """Relative to the node's namespace."""


class InputTopics:
    """Queries the ROS graph about topics, and records the losses that the middleware reports.

    Attributes:
        knows_losses: whether the middleware reports losses.
    """

    def __init__(self, node: Node, on_lost: Callable[[str, int], None]) -> None:
        """Begin with no losses.

        Args:
            node: the owner of the subscriptions.
            on_lost: called with a topic's resolved name and the number of messages just lost.
        """
        self._node = node
        self._on_lost = on_lost
        self._lost_at: dict[str, float] = {}
        self.knows_losses = True

    def describe(self, topics: Iterable[Topic]) -> str:
        """Their resolved names, and the number of publishers: none if a remapping was forgotten."""
        return " and ".join(f"{self.name(each)} (publishers: {self.publishers(each)})" for each in topics)

    def name(self, topic: Topic) -> str:
        """Resolved name."""
        return str(self._node.resolve_topic_name(topic.topic))

    def publishers(self, topic: Topic) -> int:
        """Number of publishers."""
        return int(self._node.count_publishers(self.name(topic)))

    def lost_within(self, topic: Topic, seconds: float) -> bool:
        """Whether the middleware lost a message of it in the last seconds."""
        return time.monotonic() - self._lost_at.get(self.name(topic), float("-inf")) <= seconds

    def published_topics(self, topic: Topic) -> str:
        """The published topics of the same type as a sentence, the most similar names first; and other types of this
        name.
        """
        name = self.name(topic)
        graph = dict(self._node.get_topic_names_and_types())
        wanted = _TYPES[topic.kind]
        hint = ""
        if others := [kind for kind in graph.get(name, []) if kind != wanted]:
            hint = f"{name} is of type {', '.join(others)}, not {wanted}. "
        kinds = (wanted,) if topic.kind is CameraInfo else (_TYPES[Image], _TYPES[CompressedImage])
        found = [
            f"{other} ({kind.rpartition('/')[2]})"
            for other in sorted(graph, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
            for kind in graph[other]
            if kind in kinds and self._is_published_by_others(other)
        ]
        what = "CameraInfo topics" if topic.kind is CameraInfo else "image topics"
        if not found:
            return f"{hint}No {what} are published: is the driver running, and is ROS_DOMAIN_ID the same?"
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"{hint}The {what} that are published: {', '.join(found[:_SHOWN])}{more}"

    def counting(self, topic: Topic, subscribe: Callable[..., Any]) -> Any:
        """Call `subscribe` with an event handler that counts the middleware's losses, if it supports that.

        Args:
            topic: of the subscription.
            subscribe: called with further arguments of `create_subscription`.
        """
        name = self.name(topic)

        def lost(info: Any) -> None:
            self._lost_at[name] = time.monotonic()
            self._on_lost(name, int(info.total_count_change))

        try:
            from rclpy.event_handler import SubscriptionEventCallbacks
        except ImportError:  # Humble
            from rclpy.qos_event import SubscriptionEventCallbacks
        try:
            return subscribe(event_callbacks=SubscriptionEventCallbacks(message_lost=lost))
        except Exception as error:
            if "UnsupportedEvent" not in type(error).__name__:
                raise
            self.knows_losses = False
            return subscribe()

    def _is_published_by_others(self, name: str) -> bool:
        own = (self._node.get_name(), self._node.get_namespace())
        publishers = self._node.get_publishers_info_by_topic(name)
        return any((each.node_name, each.node_namespace) != own for each in publishers)
