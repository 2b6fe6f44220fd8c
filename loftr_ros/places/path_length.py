"""Path length of a trajectory since its keyframes."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np

from loftr_ros.frontend.odometry import Location
from loftr_ros.places.keyframe import ArchivedKeyframe
from loftr_ros.places.view import View


@dataclass(frozen=True)
class PathSince:
    """Path between a keyframe and an image of one trajectory.

    Attributes:
        path_length: in the trajectory's unit.
        keyframes: number of keyframes on it.
        scale_std: standard deviation of the logarithm of the unit's change.
    """

    path_length: float
    keyframes: int
    scale_std: float


class PathLength:
    """Path lengths at the keyframes of the current session.

    Attributes:
        robot: name of the robot; empty before the first keyframe.
    """

    def __init__(self) -> None:
        """Create it without a session."""
        self.robot = ""
        self._session = 0
        # Per keyframe: its id, the path length up to it, and the variance of the unit's logarithm there.
        self._ids: list[int] = []
        self._travelled: list[tuple[float, float]] = []

    def note(self, view: View) -> None:
        """Record the path length at a keyframe."""
        assert view.name is not None
        if (view.name.robot, view.session) != (self.robot, self._session):
            self.robot, self._session, self._ids, self._travelled = view.name.robot, view.session, [], []
        self._ids.append(view.name.id)
        self._travelled.append((view.path_length, _scale_variance(view.location)))

    def is_on(self, view: View, keyframe: ArchivedKeyframe) -> bool:
        """Whether a keyframe belongs to the trajectory of an image."""
        here = self.robot, self._session, view.segment
        return (keyframe.name.robot, keyframe.session, keyframe.segment) == here and view.session == self._session

    def since(self, view: View, keyframe: ArchivedKeyframe) -> PathSince | None:
        """The path from a keyframe of the same trajectory to an image; None for other keyframes."""
        if not self.is_on(view, keyframe):
            return None
        at = max(bisect.bisect_right(self._ids, keyframe.name.id) - 1, 0)  # some keyframes were not searched for
        path_length, variance = self._travelled[at]
        doubt = float(np.sqrt(max(_scale_variance(view.location) - variance, 0.0)))
        return PathSince(view.path_length - path_length, len(self._ids) - at, doubt)


def _scale_variance(location: Location | None) -> float:
    return 0.0 if location is None else location.scale_std**2
