"""Loop detection: candidates by descriptor, verification by matching, confirmation by consecutive images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.keyframes import EncodedFrame
from loftr_ros.frontend.odometry import Location
from loftr_ros.geometry.se3 import between, inverse, rotation_degrees
from loftr_ros.geometry.two_view import RelativePose
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import LoopConfig
from loftr_ros.places.expected import KnownLoop, KnownLoops, Match
from loftr_ros.places.keyframe import ArchivedKeyframe, Candidate, KeyframeName, RecentPast
from loftr_ros.places.path_length import PathLength
from loftr_ros.places.verification import Verification, Verifier
from loftr_ros.places.view import View

Array = NDArray[np.float64]

# Consecutive images that may miss the place before it is given up: one may be blurred.
_PATIENCE = 2
# Tolerance between the places of two images: an absolute part, in metres or in the trajectory's own unit (a typical
# depth is one), and a part of the distance to them.
_POSITION_LEAST = 0.1
_POSITION_PART, _OWN_UNIT_PART = 0.15, 0.5
# Standard deviations that a single camera's unit of length may have drifted since.
_SCALE_REACH = 3.0
# Score from which no further candidate is checked.
_CERTAIN = 0.6
# Possible error in degrees of a two-view pose of distant cameras.
_UNCERTAIN_ROTATION = 5.0
# Latest keyframes without a loop, which are looked at again when one is known near them.
_WITHOUT_LOOP = 6
# Keyframes that an image is matched with where it is expected.
_EXPECTED = 3
# Part of the minimum score that is enough where a known loop expects the place.
_EXPECTED_SCORE = 2 / 3
# Loops with other trajectories from which on a session's place is known (the back end's `loops.agreeing`), and number
# of its keyframes that are searched for with precedence until then.
_PLACED, _FIRST_SEARCHED = 3, 12


@dataclass(frozen=True, eq=False)
class LoopClosure:
    """A keyframe that shows the same place as an older one, or as one of another robot.

    Attributes:
        current: name of the newer keyframe.
        stamp_ns, frame_id: of its image.
        found: result of matching it with the older one.
        similarity: cosine between the two descriptors.
        confirmations: consecutive images that agree on the place.
        session, segment: of the newer keyframe, as in `ArchivedKeyframe`.
    """

    current: KeyframeName
    stamp_ns: int
    frame_id: str
    found: Verification
    similarity: float
    confirmations: int
    session: int
    segment: int

    @property
    def keyframe(self) -> ArchivedKeyframe:
        """The older keyframe."""
        return self.found.keyframe


@dataclass(frozen=True, eq=False)
class _Observation:
    """An image and its verified match with an archived keyframe."""

    view: View
    found: Verification

    @property
    def closes(self) -> bool:
        """Whether the image is a keyframe: only keyframes have a name to close a loop with."""
        return self.view.name is not None


@dataclass(eq=False)
class _WithoutLoop:
    """A keyframe without a loop, its matches so far, and whether it was matched where a known loop expects it."""

    view: View
    tried: list[Verification]
    is_matched: bool = False


class LoopDetector:
    """Searches an archive for the places in a stream of images. Not thread-safe: call it from one thread."""

    def __init__(
        self,
        archive: Archive,
        verifier: Verifier,
        config: LoopConfig,
        fetch: Callable[[ArchivedKeyframe], ArchivedKeyframe | None] | None = None,
    ) -> None:
        """Create a detector without a current place.

        Args:
            archive: of keyframes.
            verifier: matches images.
            config: criteria for a place; may be replaced at any time.
            fetch: gets the image of a keyframe that only another robot has, None if that robot does not answer. Without
                it, such keyframes are left out.
        """
        self.archive = archive
        self.verifier = verifier
        self.config = config
        self._fetch = fetch
        self._path_length = PathLength()
        self.reset()

    def reset(self) -> None:
        """Forget the stream's place."""
        self._leave()
        self._session: int | None = None
        self._begin_session()
        self._tried: list[Verification] = []
        self._found: list[LoopClosure] = []  # kept if an archived image cannot be read after they were found

    @property
    def is_waiting(self) -> bool:
        """Whether an image between keyframes could confirm a place now."""
        return bool(self._waiting)

    def seeks_first_place(self, view: View) -> bool:
        """Whether an image's session has just begun, and its place among older ones and other robots' is unknown.

        A robot that was started again is without a map until it is found in the old one.

        Args:
            view: the next image to be processed.
        """
        if view.session != self._session:
            return True
        return self._searched < _FIRST_SEARCHED and self._loops_elsewhere < _PLACED

    def process(self, view: View, encoded: EncodedFrame | None = None) -> list[LoopClosure]:
        """Process the stream's next image.

        Args:
            view: a keyframe, which is searched for, or an image between keyframes, which may confirm a place.
            encoded: the image's features, if the caller has them.

        Returns:
            Loop closures confirmed by now.

        Raises:
            PlacesError: the archive cannot be read.
        """
        if encoded is not None:
            self.verifier.know(encoded)
        if view.session != self._session:
            self._session = view.session
            self._begin_session()
        if view.name is not None:
            self._path_length.note(view)
            self._searched += 1
        found = self._best(view)
        if view.name is not None:
            self._without[view.name] = _WithoutLoop(view, self._tried)
            if len(self._without) > _WITHOUT_LOOP:
                self._without.popitem(last=False)
        if found is not None:
            self._go_on(_Observation(view, found))
        elif self._last is not None and (view.name is not None or self._waiting):
            self._missed += 1
            if self._missed >= _PATIENCE:
                self._leave()
        self._found += self._believed()
        if view.name is not None:
            self._find_expected(view)
        closures, self._found = self._found, []
        self._loops_elsewhere += sum(not self._is_own(view, each.keyframe) for each in closures)
        return closures

    def _begin_session(self) -> None:
        """Forget what is known of the session before."""
        self._known = KnownLoops()
        self._without: OrderedDict[KeyframeName, _WithoutLoop] = OrderedDict()
        self._searched = self._loops_elsewhere = 0

    def known_place(self, view: View, encoded: EncodedFrame | None = None) -> ArchivedKeyframe | None:
        """A keyframe of the same stream that shows the same place; None if no candidate is accepted.

        Args:
            view: an image that the front end could not locate, with its descriptor.
            encoded: the image's features, if the caller has them.

        Raises:
            PlacesError: the archive cannot be read.
        """
        if view.descriptor is None:
            return None
        if encoded is not None:
            self.verifier.know(encoded)
        for candidate in self.candidates(view.descriptor):
            if (candidate.name.robot, candidate.session) != (self._path_length.robot, view.session):
                continue
            archived = self._readable(candidate.name)
            if archived is not None and self.verifier.verify(archived, view.frame).is_believed(self.config):
                return archived
        return None

    def candidates(self, descriptor: NDArray[np.float32], leave_out: RecentPast | None = None) -> list[Candidate]:
        """Keyframes similar enough to be matched with an image, the most similar first.

        Args:
            descriptor: (D,) of the image.
            leave_out: keyframes to skip.
        """
        found = self.archive.search(descriptor, self.config.candidates, leave_out)
        return [candidate for candidate in found if candidate.similarity >= self.config.min_similarity]

    def keyframe(self, name: KeyframeName) -> ArchivedKeyframe | None:
        """An archived keyframe, with the image fetched if only another robot has it; None if it is not archived."""
        archived = self.archive.get(name)
        if archived is not None and not archived.image and self._fetch is not None:
            return self._fetch(archived) or archived
        return archived

    def verify(self, name: KeyframeName, view: View) -> Verification | None:
        """Match an image with an archived keyframe; None if the keyframe's image is not available."""
        archived = self._readable(name)
        return None if archived is None else self.verifier.verify(archived, view.frame)

    def _readable(self, name: KeyframeName) -> ArchivedKeyframe | None:
        """An archived keyframe with an available image."""
        archived = self.keyframe(name)
        return archived if archived is not None and archived.image else None

    def _best(self, view: View) -> Verification | None:
        """The best accepted match of an image: among similar keyframes, or else at the last place.

        A place that agrees with the last image's is not preferred, because the last one may have been wrong.
        """
        self._tried = []
        for look in (self._alike, self._at_the_last_place):
            best = _strongest(self._matches(view, look(view)), lambda found: self._is_possible(view, found))
            if best is not None:
                return best
        return None

    def _matches(self, view: View, names: Iterable[KeyframeName]) -> Iterator[Verification]:
        """Matches of an image with archived keyframes that are not recent past, which are remembered as tried."""
        for name in names:
            archived = self._readable(name)
            if archived is not None and not self._is_recent(view, archived):
                found = self.verifier.verify(archived, view.frame)
                self._tried.append(found)
                yield found

    def _alike(self, view: View) -> list[KeyframeName]:
        """Keyframes similar to a keyframe, the most similar first; none for other images, which are not searched
        for.
        """
        if view.name is None or view.descriptor is None:
            return []
        recent = RecentPast(view.name.robot, view.session, self._newest(view))
        return [candidate.name for candidate in self.candidates(view.descriptor, recent)]

    def _at_the_last_place(self, view: View) -> list[KeyframeName]:
        """The last image's keyframe; for a keyframe also those recorded before and after it, nearest first. Near a
        known loop, those that a keyframe is expected to share its view with.
        """
        known = self._known_near(view)
        if known is not None:
            return self._sharing(known, view)[:_EXPECTED]
        if self._last is None or (view.name is None and not self._waiting):
            return []
        last = self._last.found.keyframe.name
        steps = (0,) if view.name is None else (0, 1, -1, 2, -2)
        return [KeyframeName(last.robot, last.id + step) for step in steps]

    def _known_near(self, view: View) -> KnownLoop | None:
        """A known loop that says where a keyframe is."""
        if view.name is None or view.location is None:
            return None
        return self._known.near(view.name.id, view.location)

    def _sharing(self, known: KnownLoop, view: View) -> list[KeyframeName]:
        """Keyframes that an image is expected to share its view with, the largest part first."""
        if view.location is None or view.frame.camera is None:
            return []
        nearby = self.archive.descriptors(known.around())
        older = [each for each in nearby if not self._is_recent(view, each)]
        return known.sharing(older, view.location, view.frame.camera)

    def _newest(self, view: View) -> int:
        """Stamp up to which keyframes of the view's own session are not recent past."""
        return view.frame.stamp_ns - round(self.config.min_age * 1e9)

    def _is_recent(self, view: View, keyframe: ArchivedKeyframe) -> bool:
        return self._is_own(view, keyframe) and keyframe.stamp_ns > self._newest(view)

    def _is_own(self, view: View, keyframe: ArchivedKeyframe) -> bool:
        """Whether a keyframe is of the view's own stream."""
        return (keyframe.name.robot, keyframe.session) == (self._path_length.robot, view.session)

    def _is_possible(self, view: View, found: Verification) -> bool:
        """Whether the match is strong enough, and the path since the keyframe does not contradict it.

        A room furnished like another agrees with it in each image. Within one trajectory the motion between the two
        tells them apart, unless it has drifted by more than the distance of the rooms.
        """
        if not found.is_believed(self.config) or self._is_contradicted(view, found):
            return False
        keyframe, location, config = found.keyframe, view.location, self.config
        since = self._path_length.since(view, keyframe)
        if since is None or keyframe.pose is None or location is None or not found.pose.has_rotation:
            return True
        expected = between(keyframe.pose, location.pose)
        angle = rotation_degrees(expected[:3, :3].T @ found.pose.rotation)
        if angle > config.max_rotation_error + _UNCERTAIN_ROTATION + config.max_turn_drift * since.keyframes:
            return False
        measured = self._with_length(view, found)
        if measured is None:
            return True
        limit = _POSITION_LEAST + (config.max_drift + _SCALE_REACH * since.scale_std) * since.path_length
        return bool(np.linalg.norm(expected[:3, 3] - measured.translation) <= limit)

    def _is_contradicted(self, view: View, found: Verification) -> bool:
        """Whether a known loop near a keyframe excludes its match: a few steps cannot have drifted so far."""
        known, match = self._known_near(view), self._match(view, found)
        errors = None if known is None or match is None else known.errors(match)
        return errors is not None and errors.contradict

    def _with_length(self, view: View, found: Verification) -> RelativePose | None:
        """The pose with its length in the unit of the camera's trajectory; None if that length is unknown."""
        if view.location is None:
            return None
        if view.location.is_metric:
            return found.pose if found.pose.scale_known else None
        return found.own_unit if self._path_length.is_on(view, found.keyframe) else None

    def _leave(self) -> None:
        """Give up the last place."""
        self._last: _Observation | None = None
        self._agreed = self._missed = 0
        self._waiting: list[_Observation] = []

    def _find_expected(self, view: View) -> None:
        """Find loops of this keyframe, and of those before it that have none, where known loops expect them.

        One of those before it is matched at a time, so that no keyframe takes much longer than others.
        """
        assert view.name is not None
        may_match = True
        waiting = {observation.view.name for observation in self._waiting}
        for name, one in list(reversed(self._without.items())):
            known = self._known_near(one.view)
            if known is None or name in waiting:
                continue
            found = self._best_expected(known, one.view, one.tried)
            if found is None and name != view.name and may_match and not one.is_matched:
                may_match, one.is_matched = False, True
                found = self._best_expected(known, one.view, self._matches_where_expected(known, one))
            if found is not None:
                self._found.append(self._close(_Observation(one.view, found), self.config.confirmations))

    def _matches_where_expected(self, known: KnownLoop, one: _WithoutLoop) -> Iterator[Verification]:
        """Matches of a keyframe with those that it is expected to share its view with, the largest part first."""
        tried = {each.keyframe.name for each in one.tried}
        for name in [name for name in self._sharing(known, one.view) if name not in tried][:_EXPECTED]:
            found = self.verify(name, one.view)
            if found is not None:
                yield found

    def _best_expected(self, known: KnownLoop, view: View, matches: Iterable[Verification]) -> Verification | None:
        """The best of a keyframe's matches that are where a known loop expects them."""
        return _strongest(matches, lambda found: self._is_expected(known, view, found))

    def _is_expected(self, known: KnownLoop, view: View, found: Verification) -> bool:
        """Whether a match is strong enough where a known loop expects it.

        A position that agrees is evidence of its own: two thirds of the score are enough then, also on a plane.
        """
        match, config = self._match(view, found), self.config
        errors = None if match is None else known.errors(match)
        return (
            errors is not None
            and errors.agree
            and found.num_inliers >= config.min_inliers
            and found.inlier_ratio >= config.min_inlier_ratio
            and found.score >= _EXPECTED_SCORE * config.min_score
        )

    def _match(self, view: View, found: Verification) -> Match | None:
        """A match with its length in the unit of both trajectories; None if the image's location is unknown.

        The length is not used if the archived depths give another rotation than the two views do.
        """
        if view.location is None:
            return None
        length, measured = float("nan"), self._with_length(view, found)
        if measured is not None and measured.has_rotation and found.pose.has_rotation:
            turned = rotation_degrees(measured.rotation.T @ found.pose.rotation)
            if turned <= self.config.max_rotation_error:
                length = float(np.linalg.norm(measured.translation))
        return Match(view.location, found.keyframe, found.pose, length)

    def _close(self, observation: _Observation, confirmations: int) -> LoopClosure:
        """The loop of a keyframe, which is known from now on."""
        view, found = observation.view, observation.found
        assert view.name is not None
        self._without.pop(view.name, None)
        match = self._match(view, found)
        loop = None if match is None else KnownLoop.of(view.name.id, match)
        if loop is not None and found.is_believed(self.config):
            self._known.add(loop)
        return _closure(observation, confirmations)

    def _go_on(self, observation: _Observation) -> None:
        """Count the image as one more that agrees, or as the first at another place."""
        if self._last is None or not self._agree(self._last, observation):
            self._agreed, self._waiting = 0, []
        self._last = observation
        self._agreed += 1
        self._missed = 0
        if observation.closes:
            self._waiting.append(observation)

    def _agree(self, before: _Observation, after: _Observation) -> bool:
        """Whether the places of two images are as far apart as the images are on the trajectory.

        Rotations are compared, and positions if all of them are in one unit. If the motion between the images is
        unknown, both must have matched the same keyframe.
        """
        first, second = before.found, after.found
        moved = _step(before.view.location, after.view.location)
        apart_by = _between(first.keyframe, second.keyframe)
        if moved is None or apart_by is None or not (first.pose.has_rotation and second.pose.has_rotation):
            return first.keyframe.name == second.keyframe.name
        expected = inverse(apart_by) @ first.pose.matrix @ moved
        if rotation_degrees(expected[:3, :3].T @ second.pose.rotation) > self.config.max_rotation_error:
            return False
        one, other = (self._with_length(each.view, each.found) for each in (before, after))
        if one is None or other is None:
            return True
        there = inverse(apart_by) @ one.matrix @ moved
        apart = float(np.linalg.norm(there[:3, 3] - other.translation))
        parts = (apart_by[:3, 3], moved[:3, 3], one.translation, other.translation)
        length = sum(float(np.linalg.norm(part)) for part in parts)
        part = _POSITION_PART if after.view.is_metric else _OWN_UNIT_PART
        return apart < _POSITION_LEAST + part * length

    def _believed(self) -> list[LoopClosure]:
        if self._agreed < self.config.confirmations:
            return []
        waiting, self._waiting = self._waiting, []
        return [self._close(observation, self._agreed) for observation in waiting]


def _strongest(matches: Iterable[Verification], is_accepted: Callable[[Verification], bool]) -> Verification | None:
    """The accepted match of the highest score; none is asked for after one that is certain."""
    best: Verification | None = None
    for found in matches:
        if is_accepted(found) and (best is None or found.score > best.score):
            best = found
            if best.score >= _CERTAIN:
                break
    return best


def _closure(observation: _Observation, confirmations: int) -> LoopClosure:
    view = observation.view
    assert view.name is not None and view.descriptor is not None
    similarity = float(view.descriptor @ observation.found.keyframe.descriptor)
    return LoopClosure(
        view.name,
        view.frame.stamp_ns,
        view.frame.frame_id,
        observation.found,
        similarity,
        confirmations,
        view.session,
        view.segment,
    )


def _step(before: Location | None, after: Location | None) -> Array | None:
    """(4, 4) T_before_after of two locations in one trajectory; None if they are in different ones."""
    if before is None or after is None or before.segment != after.segment:
        return None
    return between(before.pose, after.pose)


def _between(one: ArchivedKeyframe, other: ArchivedKeyframe) -> Array | None:
    """(4, 4) T_one_other of two archived keyframes; None if they are of different trajectories."""
    if one.name == other.name:
        return np.eye(4)
    together = (one.name.robot, one.session, one.segment) == (other.name.robot, other.session, other.segment)
    if not together or one.pose is None or other.pose is None:
        return None
    return between(one.pose, other.pose)
