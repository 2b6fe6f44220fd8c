"""A trajectory chained from poses relative to keyframes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import quaternion_of

Array = NDArray[np.float64]


class Trajectory:
    """World poses of the frames, in the optical axes of the first keyframe.

    A monocular front end observes the direction of each translation, not its length. With a truth, each length is taken
    from it, so that the picture shows rotations and directions, not scale. Without, every length is 1.
    """

    def __init__(self, truth: Mapping[int, Array] | None = None) -> None:
        """Begin empty.

        Args:
            truth: (4, 4) T_world_camera by stamp in nanoseconds, or None.
        """
        self._truth = truth
        self._poses: dict[int, Array] = {}

    def add_keyframe(self, stamp_ns: int) -> None:
        """Add a keyframe. The first one begins the trajectory, and so does one after tracking was lost."""
        if stamp_ns not in self._poses:
            self._poses[stamp_ns] = self._poses[max(self._poses)] if self._poses else np.eye(4)

    def add_pose(
        self, keyframe_stamp_ns: int, stamp_ns: int, pose: Array, has_rotation: bool, metric: bool = False
    ) -> None:
        """Add the pose of a frame relative to a keyframe; only a frame's first pose counts.

        Args:
            keyframe_stamp_ns: the keyframe's stamp.
            stamp_ns: the frame's stamp.
            pose: (4, 4) T_keyframe_current with a unit or zero translation, or one in metres.
            has_rotation: whether it was located at all.
            metric: whether the translation is in metres; then its own length is used.
        """
        if not has_rotation or stamp_ns in self._poses or keyframe_stamp_ns not in self._poses:
            return
        step = pose.copy()
        if not metric:
            step[:3, 3] *= self._length(keyframe_stamp_ns, stamp_ns)
        self._poses[stamp_ns] = self._poses[keyframe_stamp_ns] @ step

    def poses(self) -> tuple[NDArray[np.int64], Array]:
        """Stamps (N,) in nanoseconds, ascending, and poses (N, 4, 4) T_world_camera."""
        stamps = np.array(sorted(self._poses), dtype=np.int64)
        return stamps, np.array([self._poses[int(stamp)] for stamp in stamps]).reshape(-1, 4, 4)

    def _length(self, keyframe_stamp_ns: int, stamp_ns: int) -> float:
        if self._truth is None or keyframe_stamp_ns not in self._truth or stamp_ns not in self._truth:
            return 1.0
        return float(np.linalg.norm(self._truth[stamp_ns][:3, 3] - self._truth[keyframe_stamp_ns][:3, 3]))


def tum_lines(stamps: NDArray[np.int64], poses: Array) -> list[str]:
    """Lines of a TUM trajectory file: `stamp x y z qx qy qz qw`, stamps in seconds.

    Args:
        stamps: (N,) nanoseconds.
        poses: (N, 4, 4) T_world_camera.
    """

    lines = []
    for stamp, pose in zip(stamps, poses, strict=True):
        values = [*pose[:3, 3], *quaternion_of(pose[:3, :3])]
        lines.append(f"{stamp // 10**9}.{stamp % 10**9:09d} " + " ".join(f"{value:.9f}" for value in values))
    return lines
