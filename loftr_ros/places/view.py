"""Images to localise in the archive, and keyframes to be archived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import EncodedFrame, Keyframe, KeyframeReason
from loftr_ros.frontend.odometry import ChainLink, Location, Trajectory
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName

# After such an end the stream continues with another clock or camera, or from another place.
_NEW_SESSION = (KeyframeReason.RESET, KeyframeReason.CAMERA_CHANGED, KeyframeReason.TIME_JUMPED)


@dataclass(frozen=True, eq=False)
class View:
    """An image to search for in the archive.

    Attributes:
        frame: the image.
        name: of its keyframe; None for an image between keyframes.
        session: of its stream.
        descriptor: of a keyframe; None for other images.
        location: in the robot's trajectory; None if unknown.
        path_length: length of the trajectory up to here, in its unit, over all segments of the session.
        is_lost: whether the front end could not locate the image, and wants keyframes of this place.
    """

    frame: Frame
    name: KeyframeName | None
    session: int
    descriptor: NDArray[np.float32] | None
    location: Location | None
    path_length: float = 0.0
    is_lost: bool = False

    @property
    def segment(self) -> int:
        """Segment of the trajectory."""
        return self.location.segment if self.location is not None else 0

    @property
    def is_metric(self) -> bool:
        """Whether the location is known in metres."""
        return self.location is not None and self.location.is_metric


@dataclass(frozen=True, eq=False)
class NewKeyframe:
    """A keyframe to be archived; the writer compresses it.

    Attributes:
        view: the keyframe's.
        link: to the keyframe that it was located by.
        depth, grid: of its cells, as known when it was queued.
    """

    view: View
    link: ChainLink | None
    depth: CellDepth | None
    grid: tuple[int, int]

    def archived(self, jpeg_quality: int) -> ArchivedKeyframe:
        """Convert to the archive's form. An image that came compressed stays as it came."""
        view, frame = self.view, self.view.frame
        assert view.name is not None and view.descriptor is not None
        return ArchivedKeyframe(
            view.name,
            view.session,
            view.segment,
            frame.stamp_ns,
            frame.frame_id,
            frame.size,
            compressed(frame, jpeg_quality),
            frame.camera,
            view.descriptor,
            None if view.location is None else view.location.pose,
            self.link,
            self.depth,
            self.grid,
        )


class Observer:
    """Extracts the inputs of archive and loop search from the front end's results.

    It runs on the front end's thread, because a keyframe's features may be overwritten later. It describes new
    keyframes (under a millisecond) and else passes references.
    """

    def __init__(self, describe: Callable[[ImageFeatures], NDArray[np.float32]], robot: str, session: int) -> None:
        """Create it.

        Args:
            describe: computes a (D,) descriptor of length one from the features of the front end's matcher.
            robot: name of the robot.
            session: of the stream that begins.
        """
        self._describe = describe
        self._robot = robot
        self._session = session
        self._waiting: tuple[View, ChainLink | None, Keyframe] | None = None
        self._trajectory = Trajectory()

    @property
    def session(self) -> int:
        """Number of the current stream."""
        return self._session

    def observe(self, result: FrontEndResult, encoded: EncodedFrame | None = None) -> tuple[View, NewKeyframe | None]:
        """Return the view of a frame, and the keyframe that it superseded.

        A keyframe is archived when the next one comes: until then its cells' depths are refined.

        Args:
            result: of the frame.
            encoded: its features, used to search for an image that was not located; None for no search.
        """
        added = [e.keyframe for e in result.events if e.added and e.reason != KeyframeReason.RECALLED]
        gone = any(not event.added and event.reason in _NEW_SESSION for event in result.events)
        finished = self.take() if added or gone else None
        if gone:
            self._begin_session()
        if result.location is not None:
            self._trajectory.add(result.location)
        path_length = self._trajectory.length
        if not added and encoded is not None and not (result.is_located or result.is_useless):
            descriptor = self._describe(encoded.features)
            return View(result.frame, None, self._session, descriptor, None, path_length, is_lost=True), finished
        if not added:
            return View(result.frame, None, self._session, None, result.location, path_length), finished
        keyframe = added[-1]
        view = View(
            result.frame,
            KeyframeName(self._robot, keyframe.id),
            self._session,
            self._describe(keyframe.encoded.features),
            keyframe.location,
            path_length,
        )
        self._waiting = view, keyframe.link, keyframe
        return view, finished

    def take(self) -> NewKeyframe | None:
        """Return the newest keyframe in its current state, at the end of a stream."""
        if self._waiting is None:
            return None
        view, link, keyframe = self._waiting
        self._waiting = None
        return NewKeyframe(view, link, keyframe.depth, keyframe.encoded.features.grid)

    def restart(self) -> NewKeyframe | None:
        """Begin a new session after a reset that no result reports; returns the same as `take`."""
        finished = self.take()
        self._begin_session()
        return finished

    def _begin_session(self) -> None:
        self._session += 1
        self._trajectory = Trajectory()


def compressed(frame: Frame, jpeg_quality: int) -> bytes:
    """A frame's image as JPEG, or unchanged if it came compressed.

    Args:
        frame: the image.
        jpeg_quality: 0 to 100.
    """
    if frame.compressed is not None:
        return bytes(frame.compressed)
    done, data = cv2.imencode(".jpg", frame.image, (cv2.IMWRITE_JPEG_QUALITY, jpeg_quality))
    if not done:
        raise ValueError(f"OpenCV cannot compress an image of {frame.size[0]}x{frame.size[1]} px")
    return data.tobytes()
