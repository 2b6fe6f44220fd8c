"""Localisation of each frame: its pose relative to a keyframe, in metres if depths are, and its place in the
trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth, guessed, triangulate
from loftr_ros.frontend.config import MONO, RGBD, STEREO, FrontEndConfig
from loftr_ros.frontend.depth_transfer import contradiction, transferred
from loftr_ros.frontend.gyroscope import Gyroscope, IntegratedRotation
from loftr_ros.frontend.keyframes import EncodedFrame, Keyframe, StreamFrame
from loftr_ros.frontend.odometry import ChainLink, Location, SegmentJoin, Trajectory, origin
from loftr_ros.frontend.own_scale import OwnScale, without_unit
from loftr_ros.frontend.prior import ConstantVelocity, Expected
from loftr_ros.frontend.quality import SHARPER, sharpness
from loftr_ros.frontend.relative_pose import (
    length_by_current_depths,
    length_by_few_depths,
    matched_rays,
    pose_by_depth,
    pose_by_two_views,
    pose_without_calibration,
    why_no_length,
)
from loftr_ros.frontend.results import Correspondences, KeyframeMatch, MatchedRays, Orientation
from loftr_ros.frontend.stereo_offset import StereoOffset
from loftr_ros.frontend.stream import StreamWarning
from loftr_ros.frontend.tracks import TrackLinks, one_each
from loftr_ros.frontend.trust import View, explained_part
from loftr_ros.frontend.wheel_odometry import OdometryMotion, WheelOdometry
from loftr_ros.geometry.epipolar import in_second_camera
from loftr_ros.geometry.se3 import between, rotation_degrees
from loftr_ros.geometry.two_view import (
    UNKNOWN_VARIANCE,
    PoseStatus,
    RelativePose,
    ScaleReason,
    doubtful,
)

# Pixels; error of a match by which the depth of its point is guessed, that of the pose included.
_FLOW_ERROR = 1.0
# Seconds for which an unobserved length is predicted from the previous motion.
_CARRIED = 2.0
# Relative uncertainty of a predicted length.
_CARRIED_PART = 0.5
# Factor on the standard deviations of a pose that is accepted because it agrees with the prediction.
_WEAK_FACTOR = 2.0
# Ratio of the sharpness of two images, and part of the matches that are inliers, from which on their errors are shared.
_LESS_SHARP, _FEWER_AGREE = 1.1, 0.8
# In cells: standard deviation at which a landmark ends with its keyframe.
_LARGEST_TRACK_ERROR = 0.125
# Degrees by which rotation and direction of motion may differ between two views and depths.
_AGREEING_ROTATION, _AGREEING_DIRECTION = 2.0, 20.0
# A rejected pose refutes another one with a different rotation, in degrees, if it has so many times its inliers.
_OTHER_ROTATION, _MORE_INLIERS = 3.0, 1.5
# Largest standard deviation of a typical two-view match, in thresholds. It is larger if both images are blurred.
_CERTAIN = 0.8
# Least standard deviation of the inliers' positions along an axis of either image, in sides of the image, if the camera
# may be anywhere; 0.29 of points all over it. A door or a picture that exists twice may be all that is textured.
_LEAST_SPREAD = 0.09
# Largest logarithm of the ratio of two scales that are the same.
_SAME_SCALE = 0.05
# Part of the inliers that must have a measured depth for the depths to refute a pose.
_FEW_DEPTHS = 0.5
# Longest time between two frames, in nanoseconds, for learning the gyroscope's bias from their rotation; additional
# noise of such a rotation in radians, beyond that of the matches; largest std of an informative gyroscope rotation.
_LEARNING_GAP, _ROTATION_NOISE, _INFORMATIVE_STD = 10**9, 0.002, 0.05
# Common points of two segments needed for the ratio of their units, and the largest distance between them in px.
_LEAST_COMMON, _COMMON_REACH = 10, 8.0


@dataclass(frozen=True, eq=False)
class Located:
    """The current frame relative to one keyframe.

    Attributes:
        match: with the keyframe.
        rays: of the matches; None without calibration.
        pose: in the trajectory's unit of length; None if its length is unknown.
        explained: part of what both images should show that inliers cover, 0 to 1.
        is_trusted: whether that part is enough without further evidence.
        is_seen: whether it would be for images without blur: enough of the matches agree, in enough of the image.
        by_depth: the pose of a two-view match by the keyframe's depths, in their unit, if it was found first.
    """

    match: KeyframeMatch
    rays: MatchedRays | None
    pose: RelativePose | None
    explained: float = 1.0
    is_trusted: bool = True
    is_seen: bool = True
    by_depth: RelativePose | None = None

    @property
    def is_believed(self) -> bool:
        """Whether the frame was located relative to the keyframe."""
        pose = self.match.pose
        return pose.is_believed or (pose.status == PoseStatus.NO_CALIBRATION and bool(pose.inliers.any()))

    @property
    def is_sure(self) -> bool:
        """Whether it is accepted without further evidence."""
        return self.is_believed and self.is_trusted


class Localizer:
    """Locates frames relative to keyframes and builds the trajectory."""

    def __init__(self, config: FrontEndConfig) -> None:
        self._config = config
        self._own = OwnScale(config.geometry, config.depth) if config.scale.mode == MONO else None
        self.stereo_offset = StereoOffset(config.geometry) if config.scale.mode == STEREO else None
        self._trajectory = Trajectory()
        self._motion = ConstantVelocity()
        self._measured_ns = 0
        self._segments = 0
        self.gyroscope: Gyroscope | None = None
        self.odometry: WheelOdometry | None = None
        self._oriented: tuple[int, Orientation] | None = None
        self._refused: float | None = None
        self._warning: StreamWarning | None = None

    @property
    def segment(self) -> int:
        """The current segment of the trajectory."""
        return self._trajectory.last.segment if self._trajectory.last is not None else 0

    @property
    def next_segment(self) -> int:
        """Number of the next segment."""
        return self._segments

    @property
    def trajectory(self) -> Trajectory:
        """The path so far."""
        return self._trajectory

    def locate(
        self,
        keyframe: Keyframe,
        current: StreamFrame,
        matches: Correspondences,
        quickly: bool = False,
        is_close: bool = False,
        by_flow: bool = False,
    ) -> Located:
        """Locate the current frame relative to a keyframe.

        Args:
            keyframe: the keyframe.
            current: the frame.
            matches: with it.
            quickly: whether the pose by a single camera's known depths may take the place of the search for a two-view
                pose. Then the two say nothing of each other, so that some frames must be located without.
            is_close: whether the image has hardly moved since the last located frame. Then the expected pose may take
                the place of a search. From a worse prediction the refinement ends in wrong minima that many matches
                agree with.
            by_flow: whether the matches come from optical flow. Then a single camera's pose by known depths is not
                refined by two views, and one by measured depths takes the place of their search.
        """
        rays = matched_rays(keyframe.encoded, current, matches)
        if rays is None:
            nothing = pose_without_calibration(matches, self._config.geometry)
            return Located(KeyframeMatch(keyframe, matches, nothing), None, None)
        since_last = self.since_last(current.frame.stamp_ns)
        expected = self._expected(current.frame.stamp_ns, since_last)
        start = _relative(keyframe, expected) if is_close else None
        by_depth = pose = own = None
        is_known = False
        why = ScaleReason.OWN_UNIT
        if self._own is None:
            why = why_no_length(keyframe.depth, matches.track_id, self._config.depth.min_cells)
            pose = pose_by_depth(
                keyframe.depth,
                matches,
                rays,
                self._config.geometry,
                self._config.depth.min_cells,
                start if by_flow else None,
            )
            if pose is not None:
                by_depth = self._judged(
                    Located(KeyframeMatch(keyframe, matches, pose), rays, None), expected, since_last, current
                )
                if not pose.has_rotation or by_depth.is_trusted:
                    return by_depth
                if by_flow:
                    start, is_known = (pose.rotation, pose.translation), True
        elif quickly:
            own = self._own.by_depth(keyframe, matches, rays, start)
            if own is not None:
                start, is_known = (own.rotation, own.translation), True
        if by_flow and own is not None:
            two_views = replace(without_unit(own), without_length=why)
        else:
            two_views = pose_by_two_views(keyframe.encoded, matches, rays, self._config.geometry, why, start, is_known)
        found = Located(KeyframeMatch(keyframe, matches, two_views), rays, None, by_depth=own)
        if pose is None and why == ScaleReason.DEPTHS_DISAGREE and _has_few_depths(found):
            return self._judged_with_length(found, expected, since_last, current)
        agree = pose is not None and _agree(pose, two_views)
        by_two = self._judged(found, expected, since_last, current, agree)
        if by_depth is None or pose is None:
            return by_two
        # Depths are noisier than matches, so fewer inliers agree. If the two-view pose agrees with them, it is right.
        # Blur moves the direction of two views, of which a pose by depths says nothing else than by itself.
        if by_two.is_seen and agree:
            if by_depth.explained >= self._config.geometry.min_explained:
                return replace(by_depth, match=KeyframeMatch(keyframe, matches, pose), pose=pose, is_trusted=True)
            if by_depth.is_believed:  # the prediction agrees, too
                return replace(by_depth, is_trusted=True)
        return by_depth if by_depth.is_believed or not by_two.is_believed else by_two

    def follow(self, located: Located, stamp_ns: int) -> tuple[Located, Location | None]:
        """Extend the trajectory to the current frame.

        Args:
            located: the accepted result, relative to a keyframe of the trajectory.
            stamp_ns: of the frame.

        Returns:
            The same with its length, if a single camera's own unit or the previous motion gives one; and the frame's
            location, if known.
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
        """The same with the length in a single camera's own unit, if known."""
        if self._own is None or located.rays is None:
            return located
        match = located.match
        pose = self._own.locate(match.keyframe, match.correspondences, located.rays, match.pose, located.by_depth)
        if pose is not None and not located.is_trusted:
            pose = replace(pose, covariance=_WEAK_FACTOR**2 * pose.covariance)
        return replace(located, pose=pose)

    def with_measured_length(self, located: Located, current: EncodedFrame, depth: CellDepth | None) -> Located:
        """The same with the length by the frame's own depths, where the keyframe's tell none; if as expected.

        Args:
            located: without a length.
            current: the frame.
            depth: of its cells; None if not measured.
        """
        match, rays, config = located.match, located.rays, self._config
        if depth is None or rays is None:
            return located
        length = length_by_current_depths(
            depth, current, match.correspondences, rays, match.pose, config.geometry, config.depth.min_cells
        )
        if length is None:
            return located
        pose = length.of(match.pose)
        start, stamp_ns, typical = match.keyframe.location, current.frame.stamp_ns, _typical_depth(match.keyframe)
        expected = self._expected(stamp_ns, self.since_last(stamp_ns))
        is_measured = self._motion.last is not None and self._motion.last[0] == self._measured_ns  # else a guess itself
        if start is not None and expected is not None and expected.segment == start.segment and is_measured:
            place = start.moved(pose.matrix, pose.covariance)
            if expected.is_informative(typical) and not expected.agrees(place, typical):
                return located
        return replace(located, match=replace(match, pose=pose), pose=pose)

    def motion_until(self, stamp_ns: int, keyframe: Keyframe) -> float | None:
        """Pixels by which the image is expected to move from the last located frame to a time; None if unknown.

        Args:
            stamp_ns: the time.
            keyframe: gives the typical depth and the focal length.
        """
        camera, last = keyframe.frame.camera, self._motion.last
        expected = self._motion.expected(stamp_ns) if self._motion.has_velocity else None
        if camera is None or last is None or expected is None:
            return None
        before = last[1].pose
        shift = float(np.linalg.norm(expected.pose[:3, 3] - before[:3, 3])) / _typical_depth(keyframe)
        angle = np.radians(rotation_degrees(before[:3, :3].T @ expected.pose[:3, :3]))
        return float(camera.focal_length * (shift + angle))

    def was_at(self, location: Location, stamp_ns: int, keyframe: Keyframe) -> bool:
        """Whether a located frame's location agrees with the one that it has in the trajectory.

        Args:
            location: of its camera, found once more.
            stamp_ns: of the frame.
            keyframe: gives the typical depth.
        """
        known = self._motion.expected(stamp_ns)
        return known is not None and known.agrees(location, _typical_depth(keyframe))

    def unless_refuted(self, found: Located, rejected: Sequence[Located]) -> Located:
        """A pose by a further keyframe, doubtful if a rejected one has clearly more matches for another rotation.

        Args:
            found: the pose.
            rejected: those of the same frame relative to other keyframes, not believed.
        """
        pose, place = found.match.pose, found.match.keyframe.location
        if not found.is_believed or not pose.has_rotation or place is None:
            return found
        error = min(3 * math.degrees(math.sqrt(float(np.trace(pose.covariance[3:, 3:])))), _OTHER_ROTATION)
        turn = place.pose[:3, :3] @ pose.rotation
        for each in rejected:
            its, start = each.match.pose, each.match.keyframe.location
            if start is None or start.segment != place.segment or its.status != PoseStatus.DOUBTFUL:
                continue
            more = its.inliers.sum() > _MORE_INLIERS * pose.inliers.sum()
            other = rotation_degrees(turn.T @ start.pose[:3, :3] @ its.rotation)
            if self._agreeing(its) and more and other > error + _OTHER_ROTATION:
                return _doubted(found, pose)
        return found

    def expected_shift(
        self,
        keyframe: Keyframe,
        cell: NDArray[np.integer],
        since: RelativePose,
        points: NDArray[np.float32],
        stamp_ns: int,
    ) -> NDArray[np.float32]:
        """(N, 2) pixels by which a keyframe's cells are expected to move in the image; zero where nothing is known.

        Args:
            keyframe: the keyframe.
            cell: (N,) its cells.
            since: pose of an earlier frame relative to it, in the trajectory's unit.
            points: (N, 2) pixels where that frame shows them, which tells how far those of unknown depth are.
            stamp_ns: of the frame that they move to.
        """
        camera, rays = keyframe.frame.camera, keyframe.encoded.cell_rays
        there = _relative(keyframe, self._expected(stamp_ns, self.since_last(stamp_ns)))
        if camera is None or rays is None or there is None:
            return np.zeros((len(cell), 2), np.float32)
        depth, rays, before = keyframe.depth, rays[cell], (since.rotation, since.translation)
        inverse = np.full(len(cell), np.nan) if depth is None else depth.inverse[cell]
        if (unknown := ~np.isfinite(inverse)).any():
            seen, error = camera.unproject(points[unknown]), _FLOW_ERROR / camera.focal_length
            inverse[unknown] = guessed(1 / _typical_depth(keyframe), rays[unknown], seen, *before, error)
        ends = [in_second_camera(rays, inverse, *pose) for pose in (before, there)]
        ahead = np.isfinite(ends).all(axis=(0, 2)) & (ends[0][:, 2] > 0.05) & (ends[1][:, 2] > 0.05)
        shift = np.zeros((len(cell), 2), np.float32)
        shift[ahead] = camera.project(ends[1][ahead]) - camera.project(ends[0][ahead])
        return np.nan_to_num(shift)

    def _expected(self, stamp_ns: int, since_last: tuple[Location, IntegratedRotation] | None) -> Expected | None:
        """The prediction by all that is known of the motion, with what `since_last` gives; None without any."""
        rotated = since_last[1] if since_last else None
        return self._motion.expected(stamp_ns, rotated, self.moved_since_last(stamp_ns))

    def since_last(self, stamp_ns: int) -> tuple[Location, IntegratedRotation] | None:
        """The last location, and the camera's rotation since by the gyroscope; None if either is unknown."""
        if self.gyroscope is None or self._motion.last is None:
            return None
        last_ns, last = self._motion.last
        rotated = self.gyroscope.rotation_between(last_ns, stamp_ns)
        return None if rotated is None else (last, rotated)

    def moved_since_last(self, stamp_ns: int) -> OdometryMotion | None:
        """The camera's motion since its last location by another odometry; None if unknown."""
        if self.odometry is None or self._motion.last is None:
            return None
        return self.odometry.motion_between(self._motion.last[0], stamp_ns)

    def orientation(self, stamp_ns: int) -> Orientation | None:
        """The camera's orientation by the gyroscope since its last location; None if unknown."""
        since_last, moved = self.since_last(stamp_ns), self.moved_since_last(stamp_ns)
        if since_last is None and moved is not None and self._motion.last is not None:
            since_last = self._motion.last[1], moved.rotated
        if since_last is None:
            return self._continued(stamp_ns)
        last, rotated = since_last
        axes = last.pose[:3, :3]
        covariance = last.covariance[3:, 3:] + axes @ rotated.covariance @ axes.T
        self._oriented = stamp_ns, Orientation(axes @ rotated.rotation, covariance, last.segment)
        return self._oriented[1]

    def _continued(self, stamp_ns: int) -> Orientation | None:
        """The last orientation of a blackout, rotated on: samples since the last location are not kept for ever."""
        if self.gyroscope is None or self._oriented is None or self._motion.last is None:
            return None
        before_ns, before = self._oriented
        if before_ns <= self._motion.last[0] or before.segment != self._motion.last[1].segment:
            return None
        rotated = self.gyroscope.rotation_between(before_ns, stamp_ns)
        if rotated is None:
            return None
        # An error of the bias is the same in both parts, so the standard deviations add.
        std = float(np.sqrt(np.trace(before.covariance) / 3)) + rotated.std
        found = Orientation(before.rotation @ rotated.rotation, np.eye(3) * std**2, before.segment)
        self._oriented = stamp_ns, found
        return found

    def looking(self, stamp_ns: int) -> Location | None:
        """The last location, turned to the orientation at a time if that is known."""
        last, found = self._trajectory.last, self.orientation(stamp_ns)
        if last is None or found is None or found.segment != last.segment:
            return last
        pose = last.pose.copy()
        pose[:3, :3] = found.rotation
        return replace(last, pose=pose)

    def _learn_bias(self, stamp_ns: int, location: Location, pose: RelativePose) -> None:
        """Compare the gyroscope with the rotation since the last located frame."""
        if self._motion.last is None:
            return
        last_ns, last = self._motion.last
        if last.segment != location.segment or not 0 < stamp_ns - last_ns <= _LEARNING_GAP:
            return
        moved = between(last.pose, location.pose)
        if self.gyroscope is not None:
            self.gyroscope.matched(last_ns, stamp_ns, moved[:3, :3], _rotation_covariance(pose))
        if self.odometry is not None:
            is_metric = location.is_metric and pose.scale_known
            self.odometry.matched(last_ns, stamp_ns, moved, _motion_covariance(pose), is_metric)

    @staticmethod
    def _agrees_with_gyroscope(located: Located, since_last: tuple[Location, IntegratedRotation] | None) -> bool | None:
        """Whether the rotation agrees with the gyroscope's; None if the gyroscope is not informative."""
        place = located.match.keyframe.location
        if since_last is None or place is None or place.segment != since_last[0].segment:
            return None
        last, rotated = since_last
        pose = located.match.pose
        rotation = last.pose[:3, :3].T @ place.pose[:3, :3] @ pose.rotation
        if rotated.contradicts(rotation, _rotation_covariance(pose)):
            return False
        return True if rotated.std < _INFORMATIVE_STD else None

    def _agrees_with_odometry(self, located: Located, stamp_ns: int) -> bool | None:
        """Whether the motion agrees with another odometry's; None if that is not informative."""
        moved, place = self.moved_since_last(stamp_ns), located.match.keyframe.location
        if moved is None or place is None or self._motion.last is None:
            return None
        last, pose = self._motion.last[1], located.match.pose
        if place.segment != last.segment:
            return None
        found = between(last.pose, place.pose @ pose.matrix)
        if moved.contradicts(found, _motion_covariance(pose), last.is_metric and pose.scale_known):
            return False
        return True if moved.turn_std < _INFORMATIVE_STD else None

    def _judged(
        self,
        located: Located,
        expected: Expected | None,
        since_last: tuple[Location, IntegratedRotation] | None,
        current: StreamFrame,
        depths_agree: bool = False,
    ) -> Located:
        """Accept or reject a pose: by itself, or by the predicted motion; never against a healthy gyroscope.

        A rejected pose is DOUBTFUL.

        Args:
            located: has the pose.
            expected, since_last: the prediction, and the rotation by the gyroscope; None if unknown.
            current: the frame.
            depths_agree: whether measured depths gave the same pose, although too few of them agree with it.
        """
        if not located.match.pose.has_rotation:
            return replace(located, is_trusted=False, is_seen=False)
        agrees = self._agrees_with_gyroscope(located, since_last)
        follows = self._agrees_with_odometry(located, current.frame.stamp_ns)
        judged = self._judged_by_images(located, expected, bool(agrees) or bool(follows), current, depths_agree)
        if agrees is not False and follows is not False:
            return judged
        judged = replace(judged, is_seen=False)
        if not judged.is_believed:
            return judged
        if judged.is_trusted and agrees is False and self.gyroscope is not None:
            self.gyroscope.agreement.refused(current.frame.stamp_ns)
        if judged.is_trusted and follows is False and self.odometry is not None:
            self.odometry.agreement.refused(current.frame.stamp_ns)
        return _doubted(judged, judged.match.pose)

    def _judged_with_length(
        self,
        located: Located,
        expected: Expected | None,
        since_last: tuple[Location, IntegratedRotation] | None,
        current: StreamFrame,
    ) -> Located:
        """As `_judged`, for a two-view pose whose inliers mostly have no measured depth: the others give its length, if
        they agree.
        """
        match, rays, depth = located.match, located.rays, located.match.keyframe.depth
        assert rays is not None and depth is not None
        pose = replace(match.pose, without_length=ScaleReason.FEW_DEPTHS)
        length = length_by_few_depths(
            depth, match.correspondences, rays, pose, self._config.geometry, self._config.depth.min_cells
        )
        by_depth = length.of(pose) if length is not None else None
        judged = self._judged(
            replace(located, match=replace(match, pose=pose), by_depth=by_depth), expected, since_last, current
        )
        if length is None or not judged.is_believed:
            return replace(judged, by_depth=None)
        pose = length.of(judged.match.pose)
        return replace(judged, match=replace(judged.match, pose=pose), pose=pose, by_depth=None)

    def _judged_by_images(
        self,
        located: Located,
        expected: Expected | None,
        rotation_agrees: bool,
        current: StreamFrame,
        depths_agree: bool,
    ) -> Located:
        """Accept or reject a pose by the images: by the explained part of the common view, or by the prediction."""
        pose, keyframe = located.match.pose, located.match.keyframe
        part = _explained(located, current)
        if self._is_moved_by_blur(located, current):
            pose = replace(pose, covariance=_WEAK_FACTOR**2 * pose.covariance)
            located = replace(located, match=replace(located.match, pose=pose))
        if pose.scale_known:
            located = replace(located, pose=pose)
        geometry = self._config.geometry
        alike = pose.scale_known or self._are_alike(located, current)
        if self._own is None and pose.without_length == ScaleReason.DEPTHS_DISAGREE and not depths_agree:
            alike = False  # two tests of the same matches disagree
        known = expected is not None or rotation_agrees
        enough = geometry.min_explained if known else geometry.min_explained_after_gap
        is_spread = known or _spread(located, current) >= _LEAST_SPREAD
        is_seen = part >= enough and self._agreeing(pose) and is_spread and pose.status != PoseStatus.CONCENTRATED
        located = replace(located, explained=part, is_seen=is_seen, is_trusted=is_seen and alike)
        if located.is_trusted:
            return located
        measured = pose if pose.scale_known else self._in_own_unit(located)
        if expected is not None and keyframe.location is not None and measured is not None:
            place = keyframe.location.moved(measured.matrix, measured.covariance)
            # A single camera's pose with a length comes from the depths; the two-view pose must agree with it. Without
            # one only the rotation is compared with the prediction, so that the direction may be anything.
            same = pose.scale_known or not pose.has_direction or _agree(measured, pose)
            pose = _supported(pose, measured, expected)
            if same and expected.agrees(place, _typical_depth(keyframe)):
                length = pose if located.pose is not None else None
                return replace(located, match=replace(located.match, pose=pose), pose=length)
        return _doubted(located, pose)

    def _agreeing(self, pose: RelativePose) -> bool:
        """Whether enough of the matches agree with a pose."""
        return bool(pose.inliers.sum() >= self._config.geometry.min_agreeing * len(pose.inliers))

    @staticmethod
    def _is_moved_by_blur(located: Located, current: StreamFrame) -> bool:
        """Whether a slight blur of one image seems to have moved its matches: they agree less than those of sharp ones.

        Rendered walks had poses so that were six and eight of their standard deviations off, with depths and without.
        """
        inliers = located.match.pose.inliers
        is_sharp = 1 / _LESS_SHARP < _sharper(located, current) < _LESS_SHARP
        return not is_sharp and bool(inliers.sum() < _FEWER_AGREE * len(inliers))

    def _are_alike(self, located: Located, current: StreamFrame) -> bool:
        """Whether both images are equally sharp, and sharp enough for precise matches.

        A motion trail in one of them shifts all matches along edges, and then a wrong pose fits as well as the true
        one.
        """
        std = located.match.correspondences.std[located.match.pose.inliers]
        uncertain = np.isfinite(std).any() and float(np.nanmedian(std)) > _CERTAIN * self._config.geometry.threshold
        return 1 / SHARPER < _sharper(located, current) < SHARPER and not uncertain

    def _in_own_unit(self, located: Located) -> RelativePose | None:
        """A single camera's pose with the length from the keyframe's depths, without refining them.

        Without a unit the pose has no length, and only its rotation can be predicted.
        """
        keyframe, matches, rays = located.match.keyframe, located.match.correspondences, located.rays
        if self._own is None or rays is None or located.by_depth is not None:
            return located.by_depth
        if keyframe.depth is None or keyframe.depth.known.sum() < self._config.depth.min_cells:
            return replace(located.match.pose, translation=np.zeros(3))
        return self._own.in_unit(keyframe.depth, matches, rays, located.match.pose)

    def _carried(self, pose: RelativePose, start: Location, stamp_ns: int) -> RelativePose:
        """A two-view pose with the length predicted from the previous motion; only for a while, then it is unknown.

        Args:
            pose: of two views.
            start: location of the keyframe.
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
        """Add a keyframe without a predecessor: the first one, or the first after the camera was lost."""
        last = self._trajectory.last
        start = origin(is_metric=self._own is None, segment=self._segments)
        if last is not None:
            # A nearby place for visualisation; it is no claim.
            start = replace(start, pose=last.pose)
        right = keyframe.frame.right
        if depth is not None and depth.stereo is not None and right is not None:
            # A trail in one image shifts the matches. Later keyframes are compared with the one before.
            sharper = _times_as_sharp(keyframe.encoded.sharpness, sharpness(right.image))
            if not 1 / SHARPER < sharper < SHARPER:
                depth = CellDepth.unknown(len(depth.inverse), is_metric=True)
                self._warning = StreamWarning(
                    "right",
                    f"the left image is {sharper:.3g} times as sharp as the right one, so that the trajectory begins "
                    "without depths: is a lens dirty, or a camera shaken?",
                )
        self._segments += 1
        self._refused = None
        keyframe.depth, keyframe.location = depth, start
        self._motion.reset()
        self._motion.add(keyframe.frame.stamp_ns, start)
        self._measured_ns = keyframe.frame.stamp_ns
        self._trajectory.add(start)

    def go_on(self, keyframe: Keyframe, depth: CellDepth | None, located: Located, location: Location) -> TrackLinks:
        """Add a keyframe that was located relative to an older one.

        Args:
            keyframe: the new one.
            depth: measured depths of its cells; None for a single camera, whose depths come from the older keyframe.
            located, location: of the new keyframe.

        Returns:
            Links from the older keyframe's cells to its own.
        """
        old = located.match.keyframe
        if self.stereo_offset is not None and located.rays is not None and located.pose is not None:
            matches = located.match.correspondences
            self.stereo_offset.observe(old, matches, located.rays, located.pose, keyframe.frame.stamp_ns)
        if self._own is None and depth is not None:
            depth = self._unless_contradicted(depth, located, keyframe)
        if self._own is not None and located.rays is not None and located.pose is not None:
            transfer = self._own.transfer_depth(
                old, located.match.correspondences, located.rays, located.pose, keyframe.encoded
            )
            if transfer is not None:
                depth = transfer.depth
                location = replace(location, scale_std=math.hypot(location.scale_std, transfer.scale_std))
        if located.pose is not None:
            keyframe.link = ChainLink(old.id, located.pose.matrix, located.pose.covariance, location.is_metric)
        keyframe.depth, keyframe.location = depth, location
        links = self._links(located.match, keyframe)
        keyframe.take_over(links, old.landmarks)
        # Tracks go on over keyframes, and a single camera's cells of known depth give the length.
        keyframe.follow(links.new_track if self._own is None or depth is None else np.flatnonzero(depth.known))
        return links

    def _unless_contradicted(self, measured: CellDepth, located: Located, new: Keyframe) -> CellDepth:
        """A new keyframe's measured depths, or those of the keyframe that located it, if the two contradict each other.

        The right image may be of another moment, or have a trail; the depth image may be late. If the next keyframe's
        depths say the same, these are believed: then those before were wrong.
        """
        pose, matches, rays = located.match.pose, located.match.correspondences, located.rays
        old, refused = located.match.keyframe.depth, self._refused
        self._refused = None
        if old is None or rays is None or not pose.scale_known:
            return measured
        cells = matches.track_id
        known = CellDepth(old.inverse[cells], old.variance[cells], old.is_metric)
        before = transferred(known, pose.inliers & known.known, matches, rays, pose, new.encoded)
        farther = contradiction(measured, before, self._config.depth.min_cells)
        if farther is None:
            return measured
        is_rgbd = self._config.scale.mode == RGBD
        what, kind = ("depth image", "depth") if is_rgbd else ("right image", "right")
        self._warning = StreamWarning(
            kind,
            f"the {what} of a keyframe puts the scene {farther:.3g} times as far as the keyframe before: is it of "
            "another moment, blurred, or has a camera moved?",
        )
        if refused is not None and abs(math.log(farther / refused)) < _SAME_SCALE:
            return measured
        self._refused = farther
        return before

    def take_warning(self) -> StreamWarning | None:
        """Warning about the keyframes' depths since the last call; None without."""
        warning, self._warning = self._warning, None
        return warning

    def reconfigure(self, config: FrontEndConfig) -> None:
        """Use other settings of the same mode."""
        self._config = config
        if self._own is not None:
            self._own = OwnScale(config.geometry, config.depth)
        if self.stereo_offset is not None:
            self.stereo_offset.geometry = config.geometry

    def reset(self) -> None:
        """Begin a new trajectory; segment numbers continue."""
        self._trajectory = Trajectory()
        self._motion.reset()

    def join(self, one: Located, other: Located, keyframes: Sequence[Keyframe]) -> SegmentJoin | None:
        """Join two segments in which one frame was located; the newer one's keyframes move to the older one.

        Args:
            one, other: the frame relative to keyframes of either.
            keyframes: all in the buffer.

        Returns:
            Their relation; None if the frame's location in either is unknown.
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
                if keyframe.first_depth is not None:
                    keyframe.first_depth = keyframe.first_depth.scaled(scale)
        self._motion.reset()
        return join

    def _links(self, match: KeyframeMatch, keyframe: Keyframe) -> TrackLinks:
        seen, new = match.seen, keyframe.encoded
        # One that is known too badly by now ends: its cell begins another.
        keep = match.pose.inliers & seen.known & ~(seen.std > _LARGEST_TRACK_ERROR * new.cell_size * max(new.scale))
        points = seen.points[keep]
        cell, distance = new.nearest_cells(points)
        chosen = one_each(cell, distance)
        chosen = chosen[distance[chosen] < 0.75 * new.cell_size * max(new.scale)]  # else outside of all cells
        return TrackLinks(
            match.keyframe.id,
            keyframe.id,
            match.correspondences.track_id[keep][chosen],
            cell[chosen].astype(np.uint32),
            points[chosen] - new.cell_points[cell[chosen]],
            seen.std[keep][chosen],
        )


def _relative(keyframe: Keyframe, expected: Expected | None) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Expected rotation and translation of the camera relative to a keyframe; None if unknown."""
    place = keyframe.location
    if expected is None or place is None or place.segment != expected.segment:
        return None
    axes = place.pose[:3, :3].T
    return axes @ expected.pose[:3, :3], axes @ (expected.pose[:3, 3] - place.pose[:3, 3])


def _doubted(located: Located, pose: RelativePose) -> Located:
    """A result whose pose is not believed."""
    return replace(located, match=replace(located.match, pose=doubtful(pose)), pose=None, is_trusted=False)


def _sharper(located: Located, current: StreamFrame) -> float:
    """The keyframe's sharpness over the frame's."""
    return _times_as_sharp(located.match.keyframe.encoded.sharpness, current.sharpness)


def _times_as_sharp(one: float, other: float) -> float:
    """Ratio of two images' sharpness; finite for blank ones, too."""
    return max(one, 1e-6) / max(other, 1e-6)


def _spread(located: Located, current: StreamFrame) -> float:
    """Least standard deviation of the inliers' positions along an axis of either image, in sides of the image."""
    matches, inliers = located.match.correspondences, located.match.pose.inliers
    sides = located.match.keyframe.frame.size, current.frame.size
    points = matches.keyframe_points[inliers], matches.current_points[inliers]
    return min(float(np.min(each.std(axis=0) / side)) for each, side in zip(points, sides, strict=True))


def _has_few_depths(located: Located) -> bool:
    """Whether a two-view pose with a direction has too few inliers of measured depth to be refuted by them."""
    match, depth = located.match, located.match.keyframe.depth
    if depth is None or not match.pose.has_direction:
        return False
    known = depth.known[match.correspondences.track_id[match.pose.inliers]]
    return float(known.mean()) < _FEW_DEPTHS


def _explained(located: Located, current: StreamFrame) -> float:
    """Part of what both images should show that inliers cover, in the image where it is smaller."""
    matches, rays, pose = located.match.correspondences, located.rays, located.match.pose
    keyframe, camera = located.match.keyframe, current.frame.camera
    before, cell_rays, depth = keyframe.frame.camera, keyframe.encoded.cell_rays, keyframe.depth
    assert before is not None and camera is not None and rays is not None and cell_rays is not None
    here, there = matches.keyframe_points[pose.inliers], matches.current_points[pose.inliers]
    if pose.scale_known and depth is not None and (known := depth.known).any():
        points, seen, inverse = keyframe.encoded.cell_points[known], cell_rays[known], depth.inverse[known]
    else:  # by the inliers' parallax
        points, seen = here, rays.keyframe[pose.inliers]
        found = triangulate(
            seen,
            rays.current[pose.inliers],
            pose.rotation,
            pose.translation,
            np.ones(len(seen)),
            rays.focal_length,
            past_infinity=True,
        )
        inverse = np.nan_to_num(found.inverse)
    inverse = np.maximum(inverse, 0)
    moved = in_second_camera(seen, inverse, pose.rotation, pose.translation)
    ahead = np.isfinite(moved).all(axis=1) & (moved[:, 2] > 1e-3)
    pixels, inverse_there = camera.project(moved[ahead]), inverse[ahead] / moved[ahead, 2]
    inside = np.isfinite(pixels).all(axis=1)
    first = View(before, keyframe.encoded.texture, here, points, inverse)
    second = View(camera, current.texture, there, pixels[inside], inverse_there[inside])
    back = np.ascontiguousarray(pose.rotation.T)
    return min(
        explained_part(first, camera, pose.rotation, pose.translation),
        explained_part(second, before, back, -back @ pose.translation),
    )


def _rotation_covariance(pose: RelativePose) -> NDArray[np.float64]:
    """(3, 3) of the rotation between two frames, each located as well as this pose; the same about every axis."""
    variance = 2 * float(np.trace(pose.covariance[3:, 3:])) / 3 + _ROTATION_NOISE**2
    return variance * np.eye(3)


def _supported(pose: RelativePose, measured: RelativePose, expected: Expected) -> RelativePose:
    """A pose that agrees with the prediction, and that is known no better than the prediction.

    Few matches, matches in one part of the image, and those of a blurred image may share an error.

    Args:
        pose: the pose.
        measured: the same in the trajectory's unit of length; its translation is zero without one.
        expected: the prediction.
    """
    covariance = _WEAK_FACTOR**2 * pose.covariance
    length = 1.0 if pose.scale_known else float(np.linalg.norm(measured.translation))
    # Of a direction no more than its being anywhere can be unknown.
    position = expected.position_std / length if length > 1e-9 else np.inf
    covariance[:3, :3] += np.eye(3) * (position if pose.scale_known else min(position, 1.0)) ** 2
    covariance[3:, 3:] += np.eye(3) * expected.rotation_std**2
    return replace(pose, covariance=covariance)


def _motion_covariance(pose: RelativePose) -> NDArray[np.float64]:
    """(6, 6) of the motion between two frames, each located as well as this pose; the same along every axis."""
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = np.eye(3) * (2 * float(np.trace(pose.covariance[:3, :3])) / 3)
    covariance[3:, 3:] = _rotation_covariance(pose)
    return covariance


def _typical_depth(keyframe: Keyframe) -> float:
    """Median depth of what a keyframe's cells show, in the trajectory's unit; one if none is known."""
    typical = np.nan if keyframe.depth is None else keyframe.depth.typical
    return 1 / max(typical, 1e-3) if np.isfinite(typical) else 1.0


def _location(located: Located) -> Location:
    place = located.match.keyframe.location
    assert place is not None
    return place


def _moved(located: Located) -> Location:
    assert located.pose is not None
    return _location(located).moved(located.pose.matrix, located.pose.covariance)


def _agree(by_depth: RelativePose, two_views: RelativePose) -> bool:
    """Whether two views agree with the depths: the same rotation, and the same direction if they know one."""
    if not two_views.is_believed:
        return False
    angle = rotation_degrees(by_depth.rotation.T @ two_views.rotation)
    if angle > _AGREEING_ROTATION:
        return False
    length = float(np.linalg.norm(by_depth.translation))
    if not two_views.has_direction or length < 1e-9:
        return True
    return bool(by_depth.translation @ two_views.translation > np.cos(np.radians(_AGREEING_DIRECTION)) * length)


def _scale_between(old: Located, new: Located) -> float:
    """Length of one unit of the new segment in the old segment's unit; NaN if unknown."""
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
    """(N, 2) pixels of the current image, and (N,) depths there, from the depths of the keyframe."""
    match, rays, pose = located.match, located.rays, located.pose
    depth = match.keyframe.depth
    if depth is None or rays is None or pose is None:
        return np.zeros((0, 2)), np.zeros(0)
    inverse = depth.inverse[match.correspondences.track_id]
    with np.errstate(invalid="ignore"):
        keep = match.pose.inliers & (inverse > 0)
    moved = in_second_camera(rays.keyframe[keep], inverse[keep], pose.rotation, pose.translation)
    ahead = moved[:, 2] / inverse[keep]
    in_front = ahead > 0
    return match.correspondences.current_points[keep][in_front].astype(np.float64), ahead[in_front]
