"""Converts places and loops to messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from std_msgs.msg import Header

from loftr_ros.msg import LoopClosure, Place, RelativePose
from loftr_ros.ros.output.messages import (
    matches_message,
    pose_message,
    to_estimated_pose,
    to_pose,
    to_pose_with_covariance,
    to_time,
    unknown_pose,
)
from loftr_ros.srv import MatchKeyframes

if TYPE_CHECKING:  # these import torch, which the node loads when it is configured
    from loftr_ros.places import detector, query


def loop_closure_message(closure: detector.LoopClosure) -> LoopClosure:
    """Message of a loop closure."""
    found, matched = closure.found, closure.keyframe
    own_unit = found.own_unit if found.own_unit is not None and not found.pose.scale_known else None
    return LoopClosure(
        header=Header(stamp=to_time(closure.stamp_ns), frame_id=closure.frame_id),
        robot=closure.current.robot,
        keyframe_id=closure.current.id,
        session=closure.session,
        segment=closure.segment,
        matched_robot=matched.name.robot,
        matched_keyframe_id=matched.name.id,
        matched_session=matched.session,
        matched_segment=matched.segment,
        matched_stamp=to_time(matched.stamp_ns),
        matched_frame_id=matched.frame_id,
        status=int(found.pose.status),
        pose=to_estimated_pose(found.pose),
        scale_known=found.pose.scale_known,
        scale_reason=int(found.pose.scale_reason),
        own_unit_known=own_unit is not None,
        own_unit_pose=unknown_pose()
        if own_unit is None
        else to_pose_with_covariance(own_unit.matrix, own_unit.covariance),
        num_matches=len(found.correspondences),
        num_inliers=found.num_inliers,
        coverage=found.coverage,
        similarity=closure.similarity,
        score=found.score,
        confirmations=closure.confirmations,
    )


def place_message(place: query.Place) -> Place:
    """Message of a keyframe compared with an image."""
    keyframe, found, map_pose = place.keyframe, place.found, place.map_pose
    message = Place(
        robot=keyframe.name.robot,
        keyframe_id=keyframe.name.id,
        session=keyframe.session,
        segment=keyframe.segment,
        stamp=to_time(keyframe.stamp_ns),
        frame_id=keyframe.frame_id,
        similarity=place.similarity,
        verified=place.is_verified,
        status=RelativePose.TOO_FEW_MATCHES,
        pose=unknown_pose(),
        scale_reason=RelativePose.SCALE_NO_POSE,
    )
    if found is not None:
        message.status = int(found.pose.status)
        message.pose = to_estimated_pose(found.pose)
        message.scale_known, message.scale_reason = found.pose.scale_known, int(found.pose.scale_reason)
        message.num_matches = len(found.correspondences)
        message.num_inliers = found.num_inliers
        message.score = found.score
    if map_pose is not None:
        message.map_pose_known, message.map_pose = True, to_pose(map_pose)
    return message


def fill_match(response: MatchKeyframes.Response, matched: query.MatchedKeyframes) -> None:
    """Fill the response of `~/match_keyframes` with two matched keyframes, the second as the current image."""
    found, other = matched.found, matched.other
    fields = found.keyframe.name.id, found.keyframe, matched.image, found.correspondences, found.pose
    response.correspondences, response.relative_pose = matches_message(*fields), pose_message(*fields)
    response.session, response.segment = found.keyframe.session, found.keyframe.segment
    response.other_session, response.other_segment = other.session, other.segment


def no_match() -> RelativePose:
    """Empty result for two keyframes that could not be matched."""
    return RelativePose(
        status=RelativePose.TOO_FEW_MATCHES, pose=unknown_pose(), scale_reason=RelativePose.SCALE_NO_POSE
    )
