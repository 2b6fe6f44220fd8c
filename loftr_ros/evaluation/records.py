"""Records of a front end's run, and their comparison with the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.metrics import pose_auc, rotation_error, translation_direction_error
from loftr_ros.geometry.se3 import between
from loftr_ros.geometry.two_view import PoseStatus

Array = NDArray[np.float64]

# A baseline below this part of the median step between frames has no meaningful direction: the truth's own noise
# decides it.
MIN_BASELINE = 0.1


@dataclass(frozen=True)
class Located:
    """One frame's pose relative to one keyframe.

    Attributes:
        stamp_ns, keyframe_stamp_ns: of the two images.
        status: which parts of the pose are observed.
        pose: (4, 4) T_keyframe_current with a unit or zero translation, or one in metres.
        num_matches, num_inliers: counts.
        parallax: px, NaN without a pose.
        metric: whether the translation is in metres.
    """

    stamp_ns: int
    keyframe_stamp_ns: int
    status: PoseStatus
    pose: Array
    num_matches: int
    num_inliers: int
    parallax: float
    metric: bool = False


@dataclass(frozen=True)
class KeyframeChange:
    """A keyframe was added (`added`) or removed, at the frame of `stamp_ns`, for `reason`."""

    stamp_ns: int
    added: bool
    reason: str


def to_reference(located: Sequence[Located]) -> list[Located]:
    """Each frame's pose relative to its reference keyframe, which comes first, in order of time."""
    first: dict[int, Located] = {}
    for pose in located:
        first.setdefault(pose.stamp_ns, pose)
    return [first[stamp] for stamp in sorted(first)]


def to_previous(located: Sequence[Located], stamps: Sequence[int]) -> list[Located]:
    """The poses whose keyframe is the previous frame, in order of time.

    Args:
        located: all poses.
        stamps: of all frames that were played, in order.
    """
    before = dict(zip(stamps[1:], stamps, strict=False))
    return sorted((p for p in located if before.get(p.stamp_ns) == p.keyframe_stamp_ns), key=lambda p: p.stamp_ns)


def accuracy(located: Sequence[Located], truth: Mapping[int, Array]) -> dict[str, Any] | None:
    """Errors of relative poses against the truth.

    A pair whose true baseline is below MIN_BASELINE of the median step between consecutive true positions has no
    meaningful direction of translation. It counts for the rotation only. The AUC is over all other pairs; one of them
    without an observed pose or direction counts as failed, whatever its status.

    Args:
        located: one entry per pair.
        truth: (4, 4) T_world_camera by stamp.

    Returns:
        `pairs`, `without_direction` (of the estimate), `tiny_baseline`, `min_baseline`, `rotation_deg` and
        `direction_deg` (median, p90, worst), `auc` (at 5, 10, 20 degrees); None if no pair has a truth.
    """
    pairs = [p for p in located if p.stamp_ns in truth and p.keyframe_stamp_ns in truth]
    if not pairs:
        return None
    positions = np.array([truth[stamp][:3, 3] for stamp in sorted(truth)])
    shortest = MIN_BASELINE * float(np.median(np.linalg.norm(np.diff(positions, axis=0), axis=1)))
    rotation, direction, worse = [], [], []
    tiny = silent = 0
    for pair in pairs:
        true_pose = between(truth[pair.keyframe_stamp_ns], truth[pair.stamp_ns])
        rotation_off = rotation_error(pair.pose[:3, :3], true_pose[:3, :3]) if pair.status.has_rotation else np.inf
        if pair.status.has_rotation:
            rotation.append(rotation_off)
        silent += not pair.status.has_direction
        if np.linalg.norm(true_pose[:3, 3]) <= shortest:
            tiny += 1
            continue
        pointed = (
            translation_direction_error(pair.pose[:3, 3], true_pose[:3, 3]) if pair.status.has_direction else np.inf
        )
        if pair.status.has_direction:
            direction.append(pointed)
        worse.append(max(rotation_off, pointed))
    auc = pose_auc(worse)
    return {
        "pairs": len(pairs),
        "without_direction": silent,
        "tiny_baseline": tiny,
        "min_baseline": shortest,
        "rotation_deg": _spread(rotation),
        "direction_deg": _spread(direction),
        "auc": {str(limit): float(area) for limit, area in zip((5, 10, 20), auc, strict=True)},
    }


def _spread(errors: list[float]) -> dict[str, float] | None:
    if not errors:
        return None
    return {"median": float(np.median(errors)), "p90": float(np.percentile(errors, 90)), "worst": max(errors)}
