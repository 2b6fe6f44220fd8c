"""Poses between frames, from the static transforms in a bag."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import from_quaternion, inverse

Array = NDArray[np.float64]


class StaticTransforms:
    """The tree of frames on `/tf_static`."""

    def __init__(self) -> None:
        self._edges: dict[str, dict[str, Array]] = {}

    def add(self, message: Any) -> None:
        """Add a `tf2_msgs/TFMessage`; invalid transforms are skipped."""
        for each in message.transforms:
            at, rotation = each.transform.translation, each.transform.rotation
            numbers = np.array([at.x, at.y, at.z, rotation.x, rotation.y, rotation.z, rotation.w], np.float64)
            if not np.isfinite(numbers).all() or not numbers[3:].any():
                continue
            parent, child = (str(name).lstrip("/") for name in (each.header.frame_id, each.child_frame_id))
            pose = from_quaternion(numbers[:3], numbers[3:])
            self._edges.setdefault(parent, {})[child] = pose
            self._edges.setdefault(child, {})[parent] = inverse(pose)

    def between(self, target: str, source: str) -> Array | None:
        """(4, 4) T_target_source in metres, from `source` to `target`; None if they are not connected."""
        target, source = target.lstrip("/"), source.lstrip("/")
        found = {target: np.eye(4)}
        queue = deque([target])
        while queue:
            at = queue.popleft()
            if at == source:
                return found[at]
            for near, pose in self._edges.get(at, {}).items():
                if near not in found:
                    found[near] = found[at] @ pose
                    queue.append(near)
        return None
