"""Where each frame is: its pose relative to a keyframe, in metres where depths are, and its place in the trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.config import MONO, FrontEndConfig
from loftr_ros.frontend.keyframes import EncodedFrame, Keyframe
from loftr_ros.frontend.odometry import ChainLink, Location, Trajectory, origin
from loftr_ros.frontend.own_scale import OwnScale, pose_by_depth, why_no_length
from loftr_ros.frontend.relative_pose import (
    PoseStatus,
    RelativePose,
    ScaleReason,
    estimate_relative_pose,
    uncalibrated_inliers,
    without_pose,
)
from loftr_ros.frontend.results import Correspondences, KeyframeMatch, MatchedRays
from loftr_ros.frontend.tracks import TrackLinks, landmarks_of, one_each


@dataclass(frozen=True, eq=False)
class Located:
    """The current frame relative to one keyframe.

    Attributes:
        match: with it.
        rays: of the matches; None without calibration.
        pose: in the trajectory's unit of length; None where its length is not known.
    """

    match: KeyframeMatch
    rays: MatchedRays | None
    pose: RelativePose | None


class Localizer:
    """Poses relative to keyframes, and the trajectory that they make up."""

    def __init__(self, config: FrontEndConfig) -> None:
        self._config = config
        self._own = OwnScale(config.geometry, config.depth) if config.scale.mode == MONO else None
        self._trajectory = Trajectory()
        self._segments = 0

    @property
    def trajectory(self) -> Trajectory:
        """The path so far."""
        return self._trajectory

    def locate(self, keyframe: Keyframe, current: EncodedFrame, matches: Correspondences) -> Located:
        """The current frame relative to a keyframe."""
        camera, before = current.frame.camera, keyframe.frame.camera
        cell_rays = keyframe.encoded.cell_rays
        if camera is None or before is None or cell_rays is None:
            inliers = uncalibrated_inliers(matches.keyframe_points, matches.current_points, self._config.geometry)
            nothing = without_pose(PoseStatus.NO_CALIBRATION, inliers)
            return Located(KeyframeMatch(keyframe, matches, nothing), None, None)
        rays = MatchedRays(
            cell_rays[matches.track_id],
            camera.unproject(matches.current_points),
            camera.focal_length,
            keyframe.encoded.field,
        )
        why = ScaleReason.OWN_UNIT
        if self._own is None:
            why = why_no_length(keyframe.depth, matches.track_id, self._config.depth.min_cells)
            pose = pose_by_depth(keyframe, matches, rays, self._config.geometry, self._config.depth.min_cells)
            if pose is not None:
                return Located(KeyframeMatch(keyframe, matches, pose), rays, pose if pose.has_rotation else None)
        pose = estimate_relative_pose(
            rays.keyframe, rays.current, before.focal_length, self._config.geometry, matches.std, rays.field
        )
        return Located(KeyframeMatch(keyframe, matches, replace(pose, without_length=why)), rays, None)

    def follow(self, located: Located) -> tuple[Located, Location | None]:
        """Go on with the trajectory to the current frame; `located` is relative to the reference keyframe.

        Returns:
            The same with its length, where a single camera's own unit gives one; and the frame's place, where known.
        """
        if self._own is not None and located.rays is not None:
            match = located.match
            pose = self._own.locate(match.keyframe, match.correspondences, located.rays, match.pose)
            located = replace(located, pose=pose)
        start = located.match.keyframe.location
        if located.pose is None or start is None:
            return located, None
        location = start.moved(located.pose.matrix, located.pose.covariance)
        self._trajectory.add(location)
        return located, location

    def begin(self, keyframe: Keyframe, depth: CellDepth | None) -> None:
        """A keyframe that nothing leads to: the first one, or the first after the camera was lost."""
        last = self._trajectory.last
        start = origin(is_metric=self._own is None, segment=self._segments)
        if last is not None:
            # Somewhere near, for who only looks; nothing is claimed of it.
            start = replace(start, pose=last.pose)
        self._segments += 1
        keyframe.depth, keyframe.location = depth, start
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

    def _links(self, match: KeyframeMatch, keyframe: Keyframe) -> TrackLinks:
        found = match.correspondences[match.pose.inliers]
        cell, distance = keyframe.encoded.nearest_cells(found.current_points)
        chosen = one_each(cell, distance)
        chosen = chosen[distance[chosen] <= self._config.keyframe.max_link]
        return TrackLinks(
            match.keyframe.id, keyframe.id, found.track_id[chosen], cell[chosen].astype(np.uint32), distance[chosen]
        )
