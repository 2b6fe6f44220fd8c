"""Pairs messages by stamp: message_filters if it is installed, else classes of the same API and semantics.

A ROS installation has message_filters, PyPI has not. `Subscriber`, `TimeSynchronizer` and `ApproximateTimeSynchronizer`
are those of message_filters if it can be imported; ours are always available under their names with a leading `Local`.
One test holds both to the same contract. Important points of that contract:

- A message whose partner never comes is never delivered; it waits until `queue_size` younger ones push it out.
- "Younger" is by stamp, not by arrival: if a queue is full, a message older than all in it is dropped at once. So after
  a jump back in time a synchronizer with unpaired messages receives nothing, and must be recreated.
- A message is delivered at most once: one CameraInfo does not serve two images.
- Sets are delivered as they become complete, which may be out of order by stamp.
- Callbacks run under the synchronizer's lock, one at a time; a callback must not feed the synchronizer that calls it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rclpy.node import Node


class LocalFilter:
    """A source of messages for registered callbacks: message_filters.SimpleFilter."""

    def __init__(self) -> None:
        self.callbacks: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}

    def registerCallback(self, callback: Callable[..., None], *args: Any) -> int:  # noqa: N802 (message_filters' name)
        """Register `callback(*messages, *args)` for every output from now on; returns the connection's number."""
        connection = len(self.callbacks)
        self.callbacks[connection] = (callback, args)
        return connection

    def signalMessage(self, *messages: Any) -> None:  # noqa: N802 (message_filters' name)
        """Send one output to every callback, in order of registration."""
        for callback, args in tuple(self.callbacks.values()):
            callback(*messages, *args)


class LocalSubscriber(LocalFilter):
    """A subscription as a filter's source: message_filters.Subscriber.

    Attributes:
        sub: the rclpy subscription, for `node.destroy_subscription`.
    """

    def __init__(self, node: Node, msg_type: type, topic: str, **kwargs: Any) -> None:
        """Subscribe; `kwargs` are those of `node.create_subscription`, with a `qos_profile` of depth 10 by default."""
        super().__init__()
        self.node = node
        self.topic = topic
        kwargs.setdefault("qos_profile", 10)
        self.sub = node.create_subscription(msg_type, topic, self.callback, **kwargs)

    def callback(self, message: Any) -> None:
        """Callback of the subscription."""
        self.signalMessage(message)

    def getTopic(self) -> str:  # noqa: N802 (message_filters' name)
        """The topic as given, before remapping."""
        return self.topic


class LocalTimeSynchronizer(LocalFilter):
    """Delivers sets of messages with equal stamps, one per filter: message_filters.TimeSynchronizer.

    Attributes:
        queues: waiting messages by their stamp in ns, one dictionary per filter.
    """

    def __init__(self, fs: Sequence[Any], queue_size: int) -> None:
        """Connect to the filters `fs`; at most `queue_size` messages of each wait for their partners."""
        super().__init__()
        self.queue_size = queue_size
        self.lock = threading.Lock()
        self.queues: list[dict[int, Any]] = [{} for _ in fs]
        self.input_connections = [
            source.registerCallback(self.add, queue, index)
            for index, (source, queue) in enumerate(zip(fs, self.queues, strict=True))
        ]

    def add(self, msg: Any, my_queue: dict[int, Any], my_queue_index: int | None = None) -> None:
        """Add one filter's message, and deliver the set that it completes. Safe to call from any thread.

        Raises:
            AttributeError: the message has no header with a stamp.
        """
        stamp = stamp_ns(msg.header.stamp)
        with self.lock:
            self._enqueue(msg, stamp, my_queue)
            for common in sorted(set.intersection(*(set(queue) for queue in self.queues))):
                self._deliver([common] * len(self.queues))

    def _enqueue(self, message: Any, stamp: int, queue: dict[int, Any]) -> None:
        queue[stamp] = message
        while len(queue) > self.queue_size:
            del queue[min(queue)]

    def _deliver(self, stamps: Sequence[int]) -> None:
        # Remove them first: if a callback raises, the set must not stay to be delivered again.
        self.signalMessage(*[queue.pop(stamp) for queue, stamp in zip(self.queues, stamps, strict=True)])


class LocalApproximateTimeSynchronizer(LocalTimeSynchronizer):
    """Delivers sets whose stamps lie within `slop` of each other: message_filters.ApproximateTimeSynchronizer."""

    def __init__(self, fs: Sequence[Any], queue_size: int, slop: float, allow_headerless: bool = False) -> None:
        """Connect to the filters `fs`.

        Args:
            fs: the filters.
            queue_size: maximum number of waiting messages per filter.
            slop: s; stamps of a set differ by less than this (so 0 pairs nothing, not even equal stamps).
            allow_headerless: accept messages without a stamp, using their time of arrival; otherwise they are dropped
                with a warning.
        """
        # Set this before the filters can call, which they do from other threads.
        self.slop_ns = round(slop * 1e9)
        self.allow_headerless = allow_headerless
        super().__init__(fs, queue_size)

    def add(self, msg: Any, my_queue: dict[int, Any], my_queue_index: int | None = None) -> None:
        """Add one filter's message, and deliver the closest set that it completes. Safe to call from any thread."""
        if hasattr(msg, "header") and hasattr(msg.header, "stamp"):
            stamp = stamp_ns(msg.header.stamp)
        elif self.allow_headerless:
            stamp = _now_ns()
        else:
            _warn_of_headerless(msg)
            return
        with self.lock:
            self._enqueue(msg, stamp, my_queue)
            if stamp not in my_queue:  # older than all of a full queue
                return
            candidates = [
                # In its own queue only the new message: all others were checked when they came.
                [stamp] if queue is my_queue else self._within_slop(queue, stamp)
                for queue in self.queues
            ]
            for stamps in itertools.product(*candidates):
                if max(stamps) - min(stamps) < self.slop_ns:
                    self._deliver(stamps)
                    return

    def _within_slop(self, queue: dict[int, Any], stamp: int) -> list[int]:
        """Stamps of a queue within the slop of this one, the nearest first."""
        near = [other for other in queue if abs(other - stamp) <= self.slop_ns]
        return sorted(near, key=lambda other: abs(other - stamp))


def stamp_ns(stamp: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time message or an rclpy Time."""
    if hasattr(stamp, "nanoseconds"):
        return int(stamp.nanoseconds)
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def _now_ns() -> int:
    from rclpy.clock import ROSClock

    return int(ROSClock().now().nanoseconds)


def _warn_of_headerless(message: Any) -> None:
    from rclpy.logging import get_logger

    get_logger("loftr_ros.synchronizer").warning(
        f"a {type(message).__name__} without a stamp cannot be paired and is dropped; "
        "allow_headerless takes it as of its arrival",
        throttle_duration_sec=5.0,
    )


try:
    from message_filters import ApproximateTimeSynchronizer, SimpleFilter, Subscriber, TimeSynchronizer
except ImportError:
    SimpleFilter = LocalFilter
    Subscriber = LocalSubscriber
    TimeSynchronizer = LocalTimeSynchronizer
    ApproximateTimeSynchronizer = LocalApproximateTimeSynchronizer

__all__ = [
    "ApproximateTimeSynchronizer",
    "LocalApproximateTimeSynchronizer",
    "LocalFilter",
    "LocalSubscriber",
    "LocalTimeSynchronizer",
    "SimpleFilter",
    "Subscriber",
    "TimeSynchronizer",
]
