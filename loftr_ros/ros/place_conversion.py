"""Places and loops to messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from geometry_msgs.msg import PoseWithCovariance
from std_msgs.msg import Header

from loftr_ros.msg import Correspondences, LoopClosure, Place, RelativePose
from loftr_ros.ros.messages import matches_message, pose_message, to_covariance, to_pose, to_time

if TYPE_CHECKING:  # these import torch, which the node loads when it is configured
    from loftr_ros.frontend.relative_pose import RelativePose as EstimatedPose
    from loftr_ros.places import detector, query

# Of a pose that nothing is known of, as in RelativePose.
_UNKNOWN = 1e6


def loop_closure_message(closure: detector.LoopClosure) -> LoopClosure:
    """A keyframe at a place seen before."""
    found, matched = closure.found, closure.keyframe
    return LoopClosure(
        header=Header(stamp=to_time(closure.stamp_ns), frame_id=closure.frame_id),
        robot=closure.current.robot,
        keyframe_id=closure.current.id,
        matched_robot=matched.name.robot,
        matched_keyframe_id=matched.name.id,
        matched_stamp=to_time(matched.stamp_ns),
        matched_frame_id=matched.frame_id,
        status=int(found.pose.status),
        pose=_with_covariance(found.pose),
        scale_known=found.pose.scale_known,
        num_matches=len(found.correspondences),
        num_inliers=found.num_inliers,
        coverage=found.coverage,
        similarity=closure.similarity,
        score=found.score,
        confirmations=closure.confirmations,
    )


def place_message(place: query.Place) -> Place:
    """A keyframe that an image was compared with."""
    keyframe, found, map_pose = place.keyframe, place.found, place.map_pose
    message = Place(
        robot=keyframe.name.robot,
        keyframe_id=keyframe.name.id,
        stamp=to_time(keyframe.stamp_ns),
        frame_id=keyframe.frame_id,
        similarity=place.similarity,
        verified=place.is_verified,
        status=RelativePose.TOO_FEW_MATCHES,
    )
    message.pose.covariance = to_covariance(_UNKNOWN * np.eye(6))
    if found is not None:
        message.status = int(found.pose.status)
        message.pose = _with_covariance(found.pose)
        message.scale_known = found.pose.scale_known
        message.num_matches = len(found.correspondences)
        message.num_inliers = found.num_inliers
        message.score = found.score
    if map_pose is not None:
        message.map_pose_known, message.map_pose = True, to_pose(map_pose)
    return message


def matched_messages(matched: query.MatchedKeyframes) -> tuple[Correspondences, RelativePose]:
    """Two keyframes as if the second were the current image."""
    found, other = matched.found, matched.other
    told = found.keyframe.name.id, found.keyframe, other, found.correspondences, found.pose
    return matches_message(*told), pose_message(*told)


def _with_covariance(pose: EstimatedPose) -> PoseWithCovariance:
    return PoseWithCovariance(pose=to_pose(pose.matrix), covariance=to_covariance(pose.covariance))
