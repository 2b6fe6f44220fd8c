"""Queries to an archive: where an image was taken, and how two keyframes match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.frame import Frame
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.places.archive import Archive
from loftr_ros.places.detector import LoopDetector
from loftr_ros.places.keyframe import ArchivedKeyframe, Candidate, KeyframeName, PlacesError
from loftr_ros.places.verification import Verification
from loftr_ros.places.view import View

Array = NDArray[np.float64]

# Upper limit of keyframes matched with one image, because loop search pauses meanwhile.
MOST_PLACES = 100


@dataclass(frozen=True, eq=False)
class Place:
    """A keyframe compared with an image.

    Attributes:
        keyframe: its name and stamp.
        similarity: cosine between the two images' descriptors.
        found: result of the matching; None if the keyframe's image is not available.
        is_verified: whether both show the same place.
    """

    keyframe: ArchivedKeyframe
    similarity: float
    found: Verification | None
    is_verified: bool

    @property
    def map_pose(self) -> Array | None:
        """(4, 4) T_map_image in metres, where the map is the frame of the keyframe's session and segment.

        None if the place is not verified, the keyframe's pose is unknown, or lengths are not in metres.
        """
        pose, keyframe = None if self.found is None else self.found.pose, self.keyframe
        if not self.is_verified or pose is None or keyframe.pose is None:
            return None
        # A metric pose comes from metric depths, so the trajectory's unit is metres too.
        if not (pose.scale_known and pose.has_rotation) or (keyframe.link is not None and not keyframe.link.is_metric):
            return None
        return keyframe.pose @ pose.matrix


@dataclass(frozen=True, eq=False)
class MatchedKeyframes:
    """Two archived keyframes, matched.

    Attributes:
        found: the result; `found.keyframe` is image 0.
        other: the archived keyframe of image 1.
        image: image 1.
    """

    found: Verification
    other: ArchivedKeyframe
    image: Frame


class PlaceQuery:
    """Answers queries with the detector's network. Not thread-safe: call it on the detector's thread."""

    def __init__(self, detector: LoopDetector, describe: Callable[[ImageFeatures], NDArray[np.float32]]) -> None:
        """Create it.

        Args:
            detector: source of archive, verifier and settings. Its current place is not changed.
            describe: computes a descriptor in the archive's space from the features of the verifier's matcher.
        """
        self._detector = detector
        self._describe = describe

    def rank(self, frame: Frame, count: int = 0) -> list[Place]:
        """Compare an image with the most similar archived keyframes.

        Args:
            frame: the image; without a camera no pose is found.
            count: number of keyframes, at most MOST_PLACES; 0 for `loop.candidates`.

        Returns:
            verified places by score, then the others by similarity; the best first.

        Raises:
            FrameRefusedError: the network takes only images of another shape.
            PlacesError: the archive cannot be read.
        """
        detector = self._detector
        descriptor = self._describe(detector.verifier.encode(frame).features)
        candidates = detector.archive.search(descriptor, min(count or detector.config.candidates, MOST_PLACES))
        places = [self._compare(candidate, frame) for candidate in candidates]
        return sorted((place for place in places if place is not None), key=_rank, reverse=True)

    def match(self, first: KeyframeName, second: KeyframeName) -> MatchedKeyframes:
        """Match two archived keyframes.

        Args:
            first: image 0, whose cells are the tracks.
            second: image 1.

        Raises:
            PlacesError: one of them is not in the archive (`keyframe_missing`), its image is not available or damaged
                (`image_missing`, `image_damaged`), or the archive cannot be read.
            FrameRefusedError: the network takes only images of another shape.
        """
        known = [self._detector.keyframe(name) for name in (first, second)]
        missing = sorted({str(name) for name, keyframe in zip((first, second), known, strict=True) if keyframe is None})
        if known[1] is None or missing:
            raise PlacesError(
                "keyframe_missing",
                f"not in the archive: keyframe {' and '.join(missing)}. A keyframe is archived when the robot's next "
                "one comes, and dropped when the archive reaches archive.max_size_mb",
            )
        other = known[1].to_frame()
        found = self._detector.verify(first, _view(other))
        if found is None:
            raise PlacesError(
                "image_missing", f"the image of keyframe {first} is only with its robot, which does not send it"
            )
        return MatchedKeyframes(found, known[1], other)

    def _compare(self, candidate: Candidate, frame: Frame) -> Place | None:
        """The place of a candidate; None if the keyframe was dropped since the search."""
        try:
            found = self._detector.verify(candidate.name, _view(frame))
        except PlacesError as error:
            if not error.is_of_one_keyframe:
                raise
            found = None
        if found is not None:
            return Place(found.keyframe, candidate.similarity, found, found.is_believed(self._detector.config))
        keyframe = self._detector.archive.get(candidate.name)
        return None if keyframe is None else Place(keyframe, candidate.similarity, None, False)


def take_over(archive: Archive, uri: str, robot: str, session: int, space: str, dimension: int) -> int:
    """Import the keyframes of another archive into the one that a robot writes to.

    Args:
        archive: the robot's.
        uri: of the other one.
        robot: name of the robot.
        session: the robot's current one.
        space, dimension: of the archive's descriptors.

    Returns:
        Number of new keyframes.

    Raises:
        PlacesError: as for `Archive.load`. Or the other archive holds keyframes of a robot of this name whose numbering
            continues another archive (`archive_conflict`): this robot would reuse their numbers and mistake their
            trajectories for its own. Nothing is imported then.
    """
    with Archive.open(uri, space, dimension, read_only=True) as other:
        foreign = set(other.names(robot)) - set(archive.names(robot))
        if foreign and other.last_session(robot) >= session:
            raise PlacesError(
                "archive_conflict",
                f"'{uri}' holds {len(foreign)} keyframes of a robot with the same name '{robot}', whose numbering "
                f"continues another archive than '{archive.uri}'. Nothing was imported. To continue that one, set "
                "archive.uri to it; else give this robot another robot_name",
            )
    return archive.load(uri)


def _view(frame: Frame) -> View:
    return View(frame, None, 0, None, None)


def _rank(place: Place) -> tuple[bool, float]:
    verified = place.is_verified and place.found is not None
    return verified, place.found.score if verified and place.found is not None else place.similarity
