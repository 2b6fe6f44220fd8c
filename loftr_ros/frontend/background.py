"""Matching by the network in another thread, of a frame that optical flow has already located.

A frame of the network takes as long as several frames of the camera. Flow goes on meanwhile from the frame that the
network matched before. The result becomes flow's new start, or a keyframe, some frames after its image.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.keyframes import EncodedFrame
from loftr_ros.frontend.localization import Located
from loftr_ros.frontend.odometry import Location
from loftr_ros.frontend.results import Correspondences

R = TypeVar("R")


class Submit(Protocol):
    """Runs functions one after the other in another thread."""

    def __call__(self, work: Callable[[], R], /) -> Future[R]:
        """Run a function; returns its result or exception."""


@dataclass(frozen=True, eq=False)
class NetworkResult:
    """What the network found of one frame.

    Attributes:
        encoded: the frame; after a full match with what only keyframes need.
        correspondences: with the keyframe.
        depth: measured depths of the frame's cells, after a full match; None for a single camera.
    """

    encoded: EncodedFrame
    correspondences: Correspondences
    depth: CellDepth | None = None


@dataclass(frozen=True, eq=False)
class BackgroundMatch:
    """A frame that the network is matching.

    Attributes:
        located: the frame by optical flow, relative to the keyframe that it is matched with.
        location: of its camera, by optical flow.
        quickly: whether without attention.
        result: of the network.
    """

    located: Located
    location: Location
    quickly: bool
    result: Future[NetworkResult]
