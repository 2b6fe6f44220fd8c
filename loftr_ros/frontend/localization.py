"""Where each frame is: its pose relative to a keyframe, in metres where depths are, and its place in the trajectory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.config import MONO, FrontEndConfig
from loftr_ros.frontend.gyroscope import Gyroscope, Turn
from loftr_ros.frontend.keyframes import EncodedFrame, Keyframe
from loftr_ros.frontend.odometry import ChainLink, Location, SegmentJoin, Trajectory, origin
from loftr_ros.frontend.own_scale import OwnScale
from loftr_ros.frontend.prior import ConstantVelocity, Expected
from loftr_ros.frontend.quality import SHARPER
from loftr_ros.frontend.relative_pose import (
    matched_rays,
    pose_by_depth,
    pose_by_two_views,
    pose_without_calibration,
    why_no_length,
)
from loftr_ros.frontend.results import Correspondences, KeyframeMatch, MatchedRays, Orientation
from loftr_ros.frontend.tracks import TrackLinks, landmarks_of, one_each
from loftr_ros.frontend.trust import explained_back, explained_part
from loftr_ros.geometry.epipolar import homogeneous
from loftr_ros.geometry.se3 import rotation_degrees
from loftr_ros.geometry.two_view import (
    UNKNOWN_VARIANCE,
    PoseStatus,
    RelativePose,
    ScaleReason,
    doubtful,
)

# Seconds for which a length that nothing measures is carried on from the motion before.
_CARRIED = 2.0
# A length that is carried on may be wrong by this part of itself.
_CARRIED_PART = 0.5
# Standard deviations of a pose that is believed since it is where it was expected are multiplied by this.
_WEAK_FACTOR = 2.0
# Degrees that two views' rotation and direction of motion may differ by from the depths'.
_AGREEING_TURN, _AGREEING_DIRECTION = 2.0, 20.0
# Thresholds that the standard deviation of a typical match of two views may be: where both are blurred, it is more.
_CERTAIN = 0.8
# Nanoseconds between two frames up to which the gyroscope's bias is learned from their rotation; radians of noise that
# a rotation between frames has besides what the matches tell; std of a gyroscope's rotation that still says something.
_LEARNING_GAP, _TURN_NOISE, _TELLING_TURN = 10**9, 0.002, 0.05
# Points seen by keyframes of two segments that tell how their units compare, and px between them at most.
_LEAST_COMMON, _COMMON_REACH = 10, 8.0


@dataclass(frozen=True, eq=False)
class Located:
    """The current frame relative to one keyframe.

    Attributes:
        match: with it.
        rays: of the matches; None without calibration.
        pose: in the trajectory's unit of length; None where its length is not known.
        explained: part of what both images should show that inliers cover, 0 to 1.
        is_trusted: whether that is enough, without anything else that agrees.
    """

    match: KeyframeMatch
    rays: MatchedRays | None
    pose: RelativePose | None
    explained: float = 1.0
    is_trusted: bool = True

    @property
    def is_believed(self) -> bool:
        """Whether the frame was found relative to the keyframe."""
        pose = self.match.pose
        return pose.is_believed or (pose.status == PoseStatus.NO_CALIBRATION and bool(pose.inliers.any()))

    @property
    def is_sure(self) -> bool:
        """Whether it is believed without anything else that agrees."""
        return self.is_believed and self.is_trusted


class Localizer:
    """Poses relative to keyframes, and the trajectory that they make up."""

    def __init__(self, config: FrontEndConfig) -> None:
        self._config = config
        self._own = OwnScale(config.geometry, config.depth) if config.scale.mode == MONO else None
        self._trajectory = Trajectory()
        self._motion = ConstantVelocity()
        self._measured_ns = 0
        self._segments = 0
        self.gyroscope: Gyroscope | None = None

    @property
    def segment(self) -> int:
        """Of the trajectory that goes on at present."""
        return self._trajectory.last.segment if self._trajectory.last is not None else 0

    @property
    def next_segment(self) -> int:
        """Number of the segment that begins next."""
        return self._segments

    @property
    def trajectory(self) -> Trajectory:
        """The path so far."""
        return self._trajectory

    def locate(self, keyframe: Keyframe, current: EncodedFrame, matches: Correspondences) -> Located:
        """The current frame relative to a keyframe."""
        rays = matched_rays(keyframe.encoded, current, matches)
        if rays is None:
            nothing = pose_without_calibration(matches, self._config.geometry)
            return Located(KeyframeMatch(keyframe, matches, nothing), None, None)
        turned = self.turned(current.frame.stamp_ns)
        expected = self._motion.expected(current.frame.stamp_ns, turned[1] if turned else None)
        by_depth = pose = None
        why = ScaleReason.OWN_UNIT
        if self._own is None:
            why = why_no_length(keyframe.depth, matches.track_id, self._config.depth.min_cells)
            pose = pose_by_depth(keyframe.depth, matches, rays, self._config.geometry, self._config.depth.min_cells)
            if pose is not None:
                by_depth = self._judged(Located(KeyframeMatch(keyframe, matches, pose), rays, None), expected, current)
                if not pose.has_rotation or by_depth.is_trusted:
                    return by_depth
        two_views = pose_by_two_views(keyframe.encoded, matches, rays, self._config.geometry, why)
        by_two = self._judged(Located(KeyframeMatch(keyframe, matches, two_views), rays, None), expected, current)
        if by_depth is None or pose is None:
            return by_two
        # Depths are noisier than matches: fewer agree with them, and two views that do say that the pose is right.
        if by_depth.explained >= self._config.geometry.min_explained and by_two.is_trusted and _agree(pose, two_views):
            return replace(by_depth, match=KeyframeMatch(keyframe, matches, pose), pose=pose, is_trusted=True)
        return by_depth if by_depth.is_believed or not by_two.is_believed else by_two

    def follow(self, located: Located, stamp_ns: int) -> tuple[Located, Location | None]:
        """Go on with the trajectory to the current frame; `located` is relative to a keyframe of it.

        Args:
            located: what is believed.
            stamp_ns: of the frame.

        Returns:
            The same with its length, where a single camera's own unit gives one, or the motion before does; and the
            frame's place, where known.
        """
        located = self.with_length(located)
        match, start = located.match, located.match.keyframe.location
        if start is None or located.rays is None:
            return located, None
        if located.pose is not None:
            self._measured_ns = stamp_ns
        else:
            located = replace(located, pose=self._carried(match.pose, start, stamp_ns))
        assert located.pose is not None
        location = start.moved(located.pose.matrix, located.pose.covariance)
        if located.is_trusted:
            self._learn_bias(stamp_ns, location, match.pose)
        self._motion.add(stamp_ns, location)
        self._trajectory.add(location)
        return located, location

    def with_length(self, located: Located) -> Located:
        """The same with the length that a single camera's own unit gives it, where that is known."""
        if self._own is None or located.rays is None:
            return located
        match = located.match
        pose = self._own.locate(match.keyframe, match.correspondences, located.rays, match.pose)
        if pose is not None and not located.is_trusted:
            pose = replace(pose, covariance=_WEAK_FACTOR**2 * pose.covariance)
        return replace(located, pose=pose)

    def turned(self, stamp_ns: int) -> tuple[Location, Turn] | None:
        """The last location, and how the camera has turned since by the gyroscope; None where either is not known."""
        if self.gyroscope is None or self._motion.last is None:
            return None
        last_ns, last = self._motion.last
        turn = self.gyroscope.turn(last_ns, stamp_ns)
        return None if turn is None else (last, turn)

    def orientation(self, stamp_ns: int) -> Orientation | None:
        """How the camera is turned by the gyroscope since it was last located; None where that is not known."""
        turned = self.turned(stamp_ns)
        if turned is None:
            return None
        last, turn = turned
        axes = last.pose[:3, :3]
        covariance = last.covariance[3:, 3:] + axes @ turn.covariance @ axes.T
        return Orientation(axes @ turn.rotation, covariance, last.segment)

    def _learn_bias(self, stamp_ns: int, location: Location, pose: RelativePose) -> None:
        """Hold the gyroscope against the rotation since the last frame that was located."""
        if self.gyroscope is None or self._motion.last is None:
            return
        last_ns, last = self._motion.last
        if last.segment == location.segment and 0 < stamp_ns - last_ns <= _LEARNING_GAP:
            rotation = last.pose[:3, :3].T @ location.pose[:3, :3]
            variance = 2 * float(np.trace(pose.covariance[3:, 3:])) / 3 + _TURN_NOISE**2
            self.gyroscope.matched(last_ns, stamp_ns, rotation, variance * np.eye(3))

    def _agrees_with_gyroscope(self, located: Located, stamp_ns: int) -> bool | None:
        """Whether the camera has turned as the gyroscope says; None where it says nothing."""
        turned, place = self.turned(stamp_ns), located.match.keyframe.location
        if turned is None or place is None or place.segment != turned[0].segment:
            return None
        last, turn = turned
        pose = located.match.pose
        rotation = last.pose[:3, :3].T @ place.pose[:3, :3] @ pose.rotation
        variance = 2 * float(np.trace(pose.covariance[3:, 3:])) / 3 + _TURN_NOISE**2
        if turn.contradicts(rotation, variance * np.eye(3)):
            return False
        return True if turn.std < _TELLING_TURN else None

    def _judged(self, located: Located, expected: Expected | None, current: EncodedFrame) -> Located:
        """Whether the pose is believed: by itself, or by what is expected; never against a healthy gyroscope.

        A pose that is not believed is DOUBTFUL.
        """
        if not located.match.pose.has_rotation:
            return replace(located, is_trusted=False)
        agrees = self._agrees_with_gyroscope(located, current.frame.stamp_ns)
        judged = self._judged_by_images(located, expected, bool(agrees), current)
        if agrees is not False or not judged.is_believed:
            return judged
        if judged.is_trusted and self.gyroscope is not None:
            self.gyroscope.refused(current.frame.stamp_ns)
        refused = replace(judged.match, pose=doubtful(judged.match.pose))
        return replace(judged, match=refused, pose=None, is_trusted=False)

    def _judged_by_images(
        self, located: Located, expected: Expected | None, turned_as_expected: bool, current: EncodedFrame
    ) -> Located:
        """Whether the pose is believed: by how much of what both images should show agrees, or by what is expected."""
        pose, keyframe, camera = located.match.pose, located.match.keyframe, current.frame.camera
        before = keyframe.frame.camera
        if not pose.has_rotation or camera is None or before is None:
            return replace(located, is_trusted=False)
        points = located.match.correspondences.keyframe_points[pose.inliers]
        part = explained_part(
            keyframe.encoded.texture, points, pose, before, camera, keyframe.encoded.cell_points, keyframe.depth
        )
        here = located.match.correspondences.current_points[pose.inliers]
        part = min(part, explained_back(current.texture, here, pose, before, camera))
        if pose.scale_known:
            located = replace(located, pose=pose)
        located = replace(located, explained=part)
        geometry = self._config.geometry
        agreeing = pose.inliers.sum() >= geometry.min_agreeing * len(pose.inliers)
        alike = pose.scale_known or self._are_alike(located, current)
        if self._own is None and pose.without_length == ScaleReason.DEPTHS_DISAGREE:
            alike = False  # two tests of the same matches that say different things
        known = expected is not None or turned_as_expected
        enough = geometry.min_explained if known else geometry.min_explained_after_gap
        if part >= enough and agreeing and alike and pose.status != PoseStatus.CONCENTRATED:
            return located
        located = replace(located, is_trusted=False)
        measured = pose if pose.scale_known else self._in_own_unit(located)
        if expected is not None and keyframe.location is not None and measured is not None:
            # Few matches, or those of one part of the image, may share an error.
            pose = replace(pose, covariance=_WEAK_FACTOR**2 * pose.covariance)
            place = keyframe.location.moved(measured.matrix, measured.covariance)
            if expected.agrees(place, _typical_depth(keyframe)):
                length = pose if located.pose is not None else None
                return replace(located, match=replace(located.match, pose=pose), pose=length)
        return replace(located, match=replace(located.match, pose=doubtful(pose)), pose=None)

    def _are_alike(self, located: Located, current: EncodedFrame) -> bool:
        """Whether both images are as sharp as each other, and sharp enough that matches know where they are.

        A trail across one of them moves all matches on edges along it, and another pose fits as well as the true one.
        """
        sharper = max(located.match.keyframe.encoded.sharpness, 1e-6) / max(current.sharpness, 1e-6)
        std = located.match.correspondences.std[located.match.pose.inliers]
        uncertain = np.isfinite(std).any() and float(np.nanmedian(std)) > _CERTAIN * self._config.geometry.threshold
        return 1 / SHARPER < sharper < SHARPER and not uncertain

    def _in_own_unit(self, located: Located) -> RelativePose | None:
        """A single camera's pose with the length that the keyframe's depths give it; nothing is refined by it.

        Where there is no unit yet, the pose has no length, and the expectation is of its rotation.
        """
        keyframe, matches, rays = located.match.keyframe, located.match.correspondences, located.rays
        if self._own is None or rays is None:
            return None
        least = self._config.depth.min_cells
        if keyframe.depth is None or keyframe.depth.known.sum() < least:
            return replace(located.match.pose, translation=np.zeros(3))
        pose = pose_by_depth(keyframe.depth, matches, rays, self._config.geometry, least)
        return pose if pose is not None and pose.has_rotation else None

    def _carried(self, pose: RelativePose, start: Location, stamp_ns: int) -> RelativePose:
        """A pose whose length nothing measures, with that of the motion before; for a while, then it is not known.

        Args:
            pose: of two views.
            start: of the keyframe.
            stamp_ns: of the frame.
        """
        expected = self._motion.expected(stamp_ns)
        covariance = np.eye(6) * UNKNOWN_VARIANCE
        covariance[3:, 3:] = pose.covariance[3:, 3:]
        if expected is None or expected.segment != start.segment or stamp_ns - self._measured_ns > _CARRIED * 1e9:
            return replace(pose, translation=np.zeros(3), covariance=covariance)
        step = start.pose[:3, :3].T @ (expected.pose[:3, 3] - start.pose[:3, 3])
        if pose.has_direction:
            step = pose.translation * max(float(step @ pose.translation), 0.0)
        doubt = (_CARRIED_PART * float(np.linalg.norm(step)) + expected.position_std) ** 2
        covariance[:3, :3] = np.eye(3) * doubt
        return replace(pose, translation=step, covariance=covariance)

    def begin(self, keyframe: Keyframe, depth: CellDepth | None) -> None:
        """A keyframe that nothing leads to: the first one, or the first after the camera was lost."""
        last = self._trajectory.last
        start = origin(is_metric=self._own is None, segment=self._segments)
        if last is not None:
            # Somewhere near, for who only looks; nothing is claimed of it.
            start = replace(start, pose=last.pose)
        self._segments += 1
        keyframe.depth, keyframe.location = depth, start
        self._motion.reset()
        self._motion.add(keyframe.frame.stamp_ns, start)
        self._measured_ns = keyframe.frame.stamp_ns
        self._trajectory.add(start)

    def go_on(self, keyframe: Keyframe, depth: CellDepth | None, located: Located, location: Location) -> TrackLinks:
        """A keyframe that was located relative to an older one.

        Args:
            keyframe: the new one.
            depth: what was measured of its cells; None for a single camera, whose cells have theirs from the older one.
            located, location: where it is.

        Returns:
            Which of its cells see points of the older one's.
        """
        old = located.match.keyframe
        if self._own is not None and located.rays is not None and located.pose is not None:
            handed = self._own.hand_over(
                old, located.match.correspondences, located.rays, located.pose, keyframe.encoded
            )
            if handed is not None:
                depth = handed.depth
                location = replace(location, scale_std=math.hypot(location.scale_std, handed.scale_std))
        if located.pose is not None:
            keyframe.link = ChainLink(old.id, located.pose.matrix, located.pose.covariance, location.is_metric)
        keyframe.depth, keyframe.location = depth, location
        links = self._links(located.match, keyframe)
        keyframe.landmarks = landmarks_of(keyframe.id, len(keyframe.landmarks), links, old.landmarks)
        return links

    def reconfigure(self, config: FrontEndConfig) -> None:
        """Go by other settings, of the same mode."""
        self._config = config
        if self._own is not None:
            self._own = OwnScale(config.geometry, config.depth)

    def reset(self) -> None:
        """Begin a trajectory anew; segments go on being counted."""
        self._trajectory = Trajectory()
        self._motion.reset()

    def join(self, one: Located, other: Located, keyframes: Sequence[Keyframe]) -> SegmentJoin | None:
        """Bring two segments together that one frame was found in; the newer one's keyframes go over to the older.

        Args:
            one, other: the frame relative to keyframes of either.
            keyframes: all that are held.

        Returns:
            How they are related; None where the frame's place in either is not known.
        """
        if one.pose is None or other.pose is None:
            return None
        old, new = sorted((one, other), key=lambda each: _location(each).segment)
        at_old, at_new = _moved(old), _moved(new)
        scale = 1.0 if self._own is None else _scale_between(old, new)
        join = SegmentJoin.of(at_old, at_new, scale)
        for keyframe in keyframes:
            place = keyframe.location
            if place is not None and place.segment == at_new.segment and np.isfinite(scale):
                keyframe.location = join.moved(place)
                if keyframe.depth is not None:
                    keyframe.depth = keyframe.depth.scaled(scale)
        self._motion.reset()
        return join

    def _links(self, match: KeyframeMatch, keyframe: Keyframe) -> TrackLinks:
        found = match.correspondences[match.pose.inliers]
        cell, distance = keyframe.encoded.nearest_cells(found.current_points)
        chosen = one_each(cell, distance)
        chosen = chosen[distance[chosen] <= self._config.keyframe.max_link]
        return TrackLinks(
            match.keyframe.id, keyframe.id, found.track_id[chosen], cell[chosen].astype(np.uint32), distance[chosen]
        )


def _typical_depth(keyframe: Keyframe) -> float:
    """Median depth of a keyframe's cells, in the trajectory's unit; one where none is known."""
    depth = keyframe.depth
    if depth is None or not depth.known.any():
        return 1.0
    return 1 / max(float(np.median(depth.inverse[depth.known])), 1e-3)


def _location(located: Located) -> Location:
    place = located.match.keyframe.location
    assert place is not None
    return place


def _moved(located: Located) -> Location:
    assert located.pose is not None
    return _location(located).moved(located.pose.matrix, located.pose.covariance)


def _agree(by_depth: RelativePose, two_views: RelativePose) -> bool:
    """Whether two views say what the depths do: the same rotation, and where they know one the same direction."""
    if not two_views.is_believed:
        return False
    turned = rotation_degrees(by_depth.rotation.T @ two_views.rotation)
    if turned > _AGREEING_TURN:
        return False
    length = float(np.linalg.norm(by_depth.translation))
    if not two_views.has_direction or length < 1e-9:
        return True
    return bool(by_depth.translation @ two_views.translation > np.cos(np.radians(_AGREEING_DIRECTION)) * length)


def _scale_between(old: Located, new: Located) -> float:
    """Length in the old segment's unit of what has length one in the new one's; NaN where that is not known."""
    (pixels0, depth0), (pixels1, depth1) = (_depths_here(each) for each in (old, new))
    if len(pixels0) < _LEAST_COMMON or len(pixels1) < _LEAST_COMMON:
        return float("nan")
    # Of each point of one the nearest of the other; some thousand points, so that a tree would gain nothing.
    distance, nearest = (
        found[:, 0]
        for found in cv2.batchDistance(pixels0.astype(np.float32), pixels1.astype(np.float32), cv2.CV_32F, K=1)
    )
    both = distance < _COMMON_REACH
    if both.sum() < _LEAST_COMMON:
        return float("nan")
    return float(np.median(depth0[both] / depth1[nearest[both]]))


def _depths_here(located: Located) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 2) pixels of the current image, and (N,) depths there by the depths of the keyframe."""
    match, rays, pose = located.match, located.rays, located.pose
    depth = match.keyframe.depth
    if depth is None or rays is None or pose is None:
        return np.zeros((0, 2)), np.zeros(0)
    inverse = depth.inverse[match.correspondences.track_id]
    with np.errstate(invalid="ignore"):
        keep = match.pose.inliers & (inverse > 0)
    points = homogeneous(rays.keyframe[keep]) / inverse[keep, None] - pose.translation
    ahead = points @ pose.rotation[:, 2]
    seen = ahead > 0
    return match.correspondences.current_points[keep][seen].astype(np.float64), ahead[seen]
