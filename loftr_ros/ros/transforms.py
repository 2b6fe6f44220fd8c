"""Transforms from tf2, where tf2_ros is installed."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.time import Time

from loftr_ros.geometry.se3 import from_quaternion


class NoTransformError(LookupError):
    """tf2 does not know a transform; the message says why."""


class Transforms:
    """Listens to tf2 from the start until a transform is found: all of /tf passes through a listener."""

    def __init__(self, node: Node, patience: float) -> None:
        """Start listening.

        Args:
            node: the owner.
            patience: seconds to wait for a transform after it was first asked for. Static ones are there at once, or
                never.
        """
        self._node, self._patience = node, patience
        self._until: dict[tuple[str, str], float] = {}
        self._buffer: Any = None
        self._listener: Any = None
        if tf2_is_installed():
            self._buffer, self._listener = listen(node)

    def find(self, target: str, source: str) -> NDArray[np.float64] | None:
        """(4, 4) T_target_source; None while it may still come.

        Raises:
            NoTransformError: tf2_ros is not installed, or the transform did not come in time.
        """
        if not tf2_is_installed():
            raise NoTransformError("tf2_ros is not installed")
        from tf2_ros import TransformException

        if self._listener is None:  # it was found before: another one is asked for
            self._buffer, self._listener = listen(self._node)
        until = self._until.setdefault((target, source), time.monotonic() + self._patience)
        try:
            found = self._buffer.lookup_transform(target, source, Time()).transform
        except TransformException as error:
            if time.monotonic() < until:
                return None
            self.close()
            raise NoTransformError(f"none came in {self._patience:.0f} s: {error}") from error
        self.close()
        at, rotation = found.translation, found.rotation
        return from_quaternion((at.x, at.y, at.z), (rotation.x, rotation.y, rotation.z, rotation.w))

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.unregister()
        self._listener = self._buffer = None


def listen(node: Node) -> tuple[Any, Any]:
    """A tf2 buffer and the listener that fills it; tf2_ros must be installed."""
    from tf2_ros import Buffer, TransformListener

    buffer = Buffer()
    return buffer, TransformListener(buffer, node)


def tf2_is_installed() -> bool:
    """Whether tf2_ros can be imported."""
    return importlib.util.find_spec("tf2_ros") is not None
