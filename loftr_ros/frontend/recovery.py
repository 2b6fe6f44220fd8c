"""What to do when nothing matches: whether the camera is still known to be where it was, and what is tried next.

A frame that matches nothing says something about itself before it says anything about the keyframes. So nothing is
given up because of it: the keyframes stay, the next frames are tried with more of them, and only a new place that has
been tracked by itself for some frames begins a new segment of the trajectory.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import numpy as np

from loftr_ros.frontend.config import RecoveryConfig
from loftr_ros.frontend.keyframes import Keyframe
from loftr_ros.frontend.odometry import Location


class TrackingState(IntEnum):
    """What is known of where the camera is; the numbers are those of msg/FrontEndStatus."""

    TRACKING = 0
    DOUBTFUL = 1
    LOST = 2
    RELOCALISING = 3


class Recovery:
    """Counts what fails, and says with which keyframes a frame is tried. Knows no images."""

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
        """Frames in a row that were not located."""
        return self._failed

    @property
    def state(self) -> TrackingState:
        """After the last frame."""
        if not self._failed:
            return TrackingState.TRACKING
        if self._failed <= self.config.patience:
            return TrackingState.DOUBTFUL
        return TrackingState.RELOCALISING if self._confirmed or self._found is not None else TrackingState.LOST

    @property
    def is_lost(self) -> bool:
        """Whether so many frames have failed that another place may be where the camera is."""
        return self._failed > self.config.patience

    @property
    def is_to_lead_on(self) -> bool:
        """Whether the last frame may become a keyframe: it was trusted by itself, or as many before it were not."""
        return not self._failed and (not self._weak or self._weak > self.config.patience)

    def located(self, is_trusted: bool = True) -> None:
        """A frame was located by a keyframe of the trajectory.

        Args:
            is_trusted: by itself, and not since it is where it was expected.
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
            is_sure: whether that alone is enough, see `is_sure`.

        Returns:
            Whether it is believed: a lost camera's place has to be found twice in a row, or by a match that is sure.
        """
        if not self.is_lost or is_sure or self._found == keyframe:
            return True
        self._found = keyframe
        return False

    def not_found(self) -> None:
        """No keyframe matches a frame."""
        self._found = None

    def followed(self, is_followed: bool) -> bool:
        """Whether the frame matches the place that is being tracked by itself.

        Returns:
            Whether that place has been tracked for long enough to begin a new segment there.
        """
        self._confirmed = self._confirmed + 1 if is_followed else 0
        return self.is_lost and self._confirmed >= self.config.confirmations

    def others(self, keyframes: Iterable[Keyframe], last: Location | None) -> list[Keyframe]:
        """Keyframes to try, one after the other until one matches, the likeliest first.

        Args:
            keyframes: those that were not tried already.
            last: where the camera was last; None where that is not known.
        """

        def order(each: Keyframe) -> tuple[float, ...]:
            return self._tried.get(each.id, 0), _farness(each, last), -each.last_matched, -each.id

        chosen = sorted(keyframes, key=order)[: self.config.max_tried * (2 if self.is_lost else 1)]
        for keyframe in chosen:
            self._tried[keyframe.id] = self._tried.get(keyframe.id, 0) + 1
        return chosen


def _farness(keyframe: Keyframe, last: Location | None) -> float:
    """How unlike the view of a keyframe is to the last one, by where the cameras are: 0 for the same view.

    A turn of 30 degrees counts as much as going half as far as the scene is away.
    """
    location = keyframe.location
    if location is None or last is None or location.segment != last.segment:
        return 10.0
    turn = np.arccos(np.clip(location.pose[:3, 2] @ last.pose[:3, 2], -1, 1))
    way = float(np.linalg.norm(location.pose[:3, 3] - last.pose[:3, 3]))
    depth = keyframe.depth
    known = depth.inverse[depth.known] if depth is not None else np.zeros(0)
    near = max(float(np.median(known)), 1e-3) if len(known) else 0.3
    return float(turn / np.radians(30) + 2 * way * near)
