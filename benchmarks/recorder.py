"""Writes what nodes say into an MCAP file, as `ros2 bag record --storage mcap` does: messages as they came over DDS.

`rosbags` brings the definitions of ROS's own messages; this package's are those of its folder `msg`.
"""

from __future__ import annotations

import importlib
import threading
import time
from pathlib import Path
from typing import Any

from rclpy.qos import QoSProfile
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

MESSAGES = Path(__file__).resolve().parents[1] / "msg"


class Recorder:
    """Subscribes to topics once they are published, and writes each message with the time at which it came."""

    def __init__(self, node: Any, folder: Path, topics: list[str]) -> None:
        """Begin.

        Args:
            node: that hears them.
            folder: of the bag, which must not exist.
            topics: full names.
        """
        self._node, self._wanted, self._lock = node, set(topics), threading.Lock()
        self._types = get_typestore(Stores.ROS2_JAZZY)
        for file in sorted(MESSAGES.glob("*.msg")):
            self._types.register(get_types_from_msg(file.read_text(), f"loftr_ros/msg/{file.stem}"))
        self._writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._closed = False
        self.counts: dict[str, int] = {}
        self._timer = node.create_timer(0.5, self._look)

    def close(self) -> None:
        """Finish the file; what comes later is left out."""
        with self._lock:
            self._closed = True
            self._writer.close()

    def _look(self) -> None:
        known = dict(self._node.get_topic_names_and_types())
        for topic in sorted(self._wanted & set(known)):
            self._wanted.discard(topic)
            kind = known[topic][0]
            package, _, name = kind.split("/")
            message = getattr(importlib.import_module(f"{package}.msg"), name)
            connection = self._writer.add_connection(topic, kind, typestore=self._types)
            self.counts[topic] = 0

            def write(data: bytes, topic: str = topic, connection: Any = connection) -> None:
                with self._lock:
                    if not self._closed:
                        self._writer.write(connection, time.time_ns(), data)
                        self.counts[topic] += 1

            self._node.create_subscription(message, topic, write, QoSProfile(depth=100), raw=True)
