"""Recovery when nothing matches: whether the camera counts as lost, and which keyframes are tried next.

A frame without matches is first evidence against the frame, not against the keyframes. So nothing is given up because
of it: the keyframes stay, the next frames are tried with more of them, and only a new place that has been tracked for
some frames begins a new segment of the trajectory.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import numpy as np

from loftr_ros.frontend.config import RecoveryConfig
from loftr_ros.frontend.keyframes import EncodedFrame, Keyframe
from loftr_ros.frontend.odometry import Location

# Similarity deducted from a keyframe for an unsuccessful attempt.
_TRIED_COST = 0.5


class TrackingState(IntEnum):
    """State of tracking; the numbers are those of msg/FrontEndStatus."""

    TRACKING = 0
    DOUBTFUL = 1
    LOST = 2
    RELOCALISING = 3


class Recovery:
    """Counts failures, and chooses keyframes to try. Of images it uses only their mean features."""

    def __init__(self, config: RecoveryConfig) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self._failed = 0
        self._weak = 0
        self._confirmed = 0
        self._tried: dict[int, int] = {}
        self._found: int | None = None

    @property
    def failed(self) -> int:
        """Number of consecutive frames that were not located."""
        return self._failed

    @property
    def state(self) -> TrackingState:
        """State after the last frame."""
        if not self._failed:
            return TrackingState.TRACKING
        if self._failed <= self.config.patience:
            return TrackingState.DOUBTFUL
        return TrackingState.RELOCALISING if self._confirmed or self._found is not None else TrackingState.LOST

    @property
    def is_lost(self) -> bool:
        """Whether enough frames have failed that the camera may be at another place."""
        return self._failed > self.config.patience

    @property
    def is_weak(self) -> bool:
        """Whether the last frame was accepted only because it agrees with the prediction."""
        return self._weak > 0

    @property
    def is_weak_for_long(self) -> bool:
        """Whether so many frames in a row were weak that a keyframe is needed."""
        return self._weak > self.config.patience

    def located(self, is_trusted: bool = True) -> None:
        """A frame was located by a keyframe of the trajectory.

        Args:
            is_trusted: by itself, without the prediction.
        """
        weak = 0 if is_trusted else self._weak + 1
        self.reset()
        self._weak = weak

    def missed(self) -> None:
        """A frame was not located."""
        self._failed += 1

    def found(self, keyframe: int, is_sure: bool) -> bool:
        """A keyframe matches a frame.

        Args:
            keyframe: its id.
            is_sure: whether this match alone is enough, see `Located.is_sure`.

        Returns:
            Whether to accept it: a lost camera must be found twice in a row, or by a sure match.
        """
        if not self.is_lost or is_sure or self._found == keyframe:
            return True
        self._found = keyframe
        return False

    def not_found(self) -> None:
        """No keyframe matches a frame."""
        self._found = None

    def followed(self, is_followed: bool, keyframes: Iterable[Keyframe] = ()) -> bool:
        """Whether the place that is being tracked by itself may begin a new segment.

        Args:
            is_followed: whether the frame matches that place.
            keyframes: in the buffer.

        Returns:
            Whether it was tracked for long enough, and every keyframe was tried.
        """
        self._confirmed = self._confirmed + 1 if is_followed else 0
        is_confirmed = self.is_lost and self._confirmed >= self.config.confirmations
        return is_confirmed and all(each.id in self._tried for each in keyframes)

    def tried(self, keyframe: Keyframe) -> None:
        """A frame was tried with a keyframe and does not match."""
        self._tried[keyframe.id] = self._tried.get(keyframe.id, 0) + 1

    def others(
        self,
        keyframes: Iterable[Keyframe],
        last: Location | None,
        current: EncodedFrame | None = None,
        is_late: bool = False,
    ) -> list[Keyframe]:
        """Further keyframes to try one after the other until one matches, the likeliest first.

        Args:
            keyframes: those not tried yet.
            last: the last known location; None if unknown.
            current: the frame. From the second unlocated frame on, as many similar keyframes come before those tried in
                rotation; None for rotation only.
            is_late: whether the camera's images wait: then it is either the similar ones or those in rotation, in
                turns. A frame that takes longer makes the next one more distant.
        """
        rest = list(keyframes)
        most = self.config.max_tried
        chosen: list[Keyframe] = []
        if self._failed and current is not None:
            if not is_late or self._failed % 2:
                likeness = _Likeness(rest, current)
                chosen = sorted(rest, key=lambda each: self._tried.get(each.id, 0) * _TRIED_COST - likeness(each))[
                    :most
                ]
            if is_late and chosen:
                return chosen
            rest = [each for each in rest if each not in chosen]
        elif self._failed:
            most *= 2

        def order(each: Keyframe) -> tuple[float, ...]:
            return self._tried.get(each.id, 0), _farness(each, last), -each.last_matched, -each.id

        return chosen + sorted(rest, key=order)[:most]


class _Likeness:
    """Similarity of keyframes to a frame: cosine between mean features after removing their common mean."""

    def __init__(self, keyframes: list[Keyframe], current: EncodedFrame) -> None:
        all_means = [each.encoded.mean_feature for each in keyframes] + [current.mean_feature]
        self._common = np.mean(all_means, axis=0)
        self._current = current.mean_feature - self._common

    def __call__(self, keyframe: Keyframe) -> float:
        its = keyframe.encoded.mean_feature - self._common
        return float(its @ self._current / max(float(np.linalg.norm(its)), 1e-9))


def _farness(keyframe: Keyframe, last: Location | None) -> float:
    """Dissimilarity of a keyframe's view to the last one, from the camera poses: 0 for the same view.

    A rotation of 30 degrees counts as much as a translation of half the scene's depth.
    """
    location = keyframe.location
    if location is None or last is None or location.segment != last.segment:
        return 10.0
    angle = np.arccos(np.clip(location.pose[:3, 2] @ last.pose[:3, 2], -1, 1))
    distance = float(np.linalg.norm(location.pose[:3, 3] - last.pose[:3, 3]))
    depth = keyframe.depth
    known = depth.inverse[depth.known] if depth is not None else np.zeros(0)
    near = max(float(np.median(known)), 1e-3) if len(known) else 0.3
    return float(angle / np.radians(30) + 2 * distance * near)
