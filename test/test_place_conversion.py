"""Places and loops as messages."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from loftr_ros.msg import RelativePose as PoseMessage
from loftr_ros.srv import MatchKeyframes

from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.results import Correspondences
from loftr_ros.geometry.se3 import quaternion_of
from loftr_ros.geometry.two_view import PoseStatus, RelativePose, ScaleReason
from loftr_ros.places.detector import LoopClosure
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName
from loftr_ros.places.query import MatchedKeyframes, Place
from loftr_ros.places.verification import Verification
from loftr_ros.ros.places.conversion import fill_match, loop_closure_message, no_match, place_message

pytestmark = pytest.mark.ros

TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
COVARIANCE = np.diag(np.arange(1.0, 7.0)) + 0.25


def archived() -> ArchivedKeyframe:
    pose = np.eye(4)
    pose[:3, 3] = [10, 20, 30]
    described = np.ones(1, np.float32)
    stamp = 5_000_000_007
    return ArchivedKeyframe(
        KeyframeName("bob", 41), 2, 1, stamp, "bob_camera", (640, 480), b"", None, described, pose=pose
    )


def verification() -> Verification:
    """Four matches, three of which are inliers."""
    points = np.arange(8, dtype=np.float32).reshape(4, 2)
    ones = np.ones(4, np.float32)
    found = Correspondences(np.arange(4, dtype=np.uint32), points, points + 100, ones, ones)
    inliers = np.array([True, True, False, True])
    pose = RelativePose(PoseStatus.OK, TURN, np.array([1.0, 2, 3]), COVARIANCE, inliers, 12.5, scale_known=True)
    return Verification(archived(), found, pose, None, 0.4)


def test_a_loop_names_both_keyframes_with_the_pose_from_the_newer_to_the_older() -> None:
    closure = LoopClosure(KeyframeName("ada", 7), 9_000_000_001, "ada_camera", verification(), 0.875, 3, 6, 4)
    message = loop_closure_message(closure)
    assert (message.robot, message.keyframe_id, message.header.frame_id) == ("ada", 7, "ada_camera")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (9, 1)
    assert (message.matched_robot, message.matched_keyframe_id, message.matched_frame_id) == ("bob", 41, "bob_camera")
    assert (message.matched_stamp.sec, message.matched_stamp.nanosec) == (5, 7)
    position, turn = message.pose.pose.position, message.pose.pose.orientation
    assert (position.x, position.y, position.z) == (1, 2, 3)
    assert (turn.x, turn.y, turn.z, turn.w) == pytest.approx(quaternion_of(TURN))
    assert message.pose.covariance.tolist() == COVARIANCE.ravel().tolist()
    assert (message.session, message.segment, message.matched_session, message.matched_segment) == (6, 4, 2, 1)
    assert message.scale_reason == PoseMessage.SCALE_KNOWN
    assert (message.status, message.scale_known) == (PoseMessage.OK, True)
    assert (message.num_matches, message.num_inliers, message.confirmations) == (4, 3, 3)
    assert message.coverage == pytest.approx(0.4) and message.similarity == 0.875
    assert message.score == pytest.approx(0.4 * 0.75)
    assert not message.own_unit_known and message.own_unit_pose.covariance[0] == 1e6


def test_a_single_cameras_loop_has_its_length_in_the_trajectorys_unit_where_that_is_known() -> None:
    found = verification()
    direction = np.array([0.6, 0.8, 0])
    single = dataclasses.replace(found.pose, scale_known=False, translation=direction)
    own_unit = dataclasses.replace(single, translation=0.25 * direction)
    found = dataclasses.replace(found, pose=single, own_unit=own_unit)
    message = loop_closure_message(LoopClosure(KeyframeName("ada", 7), 9, "ada_camera", found, 0.875, 3, 6, 4))
    assert (message.scale_known, message.own_unit_known) == (False, True)
    position = message.own_unit_pose.pose.position
    assert (position.x, position.y, position.z) == pytest.approx((0.15, 0.2, 0))
    assert message.own_unit_pose.covariance.tolist() == COVARIANCE.ravel().tolist()


def test_a_place_has_a_pose_in_the_map_only_where_it_is_verified_in_metres() -> None:
    found = verification()
    message = place_message(Place(found.keyframe, 0.5, found, True))
    assert (message.robot, message.keyframe_id, message.verified, message.map_pose_known) == ("bob", 41, True, True)
    position = message.map_pose.position
    assert (position.x, position.y, position.z) == (11, 22, 33)
    assert message.similarity == 0.5 and message.score == pytest.approx(0.3)
    assert (message.session, message.segment) == (2, 1)
    doubtful = place_message(Place(found.keyframe, 0.5, found, False))
    assert not doubtful.verified and not doubtful.map_pose_known and doubtful.num_inliers == 3


def test_a_place_whose_image_is_not_to_be_had_says_that_its_pose_is_unknown() -> None:
    message = place_message(Place(archived(), 0.5, None, False))
    assert message.status == PoseMessage.TOO_FEW_MATCHES and not message.verified and not message.scale_known
    assert np.array_equal(message.pose.covariance.reshape(6, 6), 1e6 * np.eye(6))
    assert message.num_matches == message.num_inliers == message.score == 0
    assert message.scale_reason == PoseMessage.SCALE_NO_POSE and (message.session, message.segment) == (2, 1)


@pytest.mark.parametrize("reason", [ScaleReason.OWN_UNIT, ScaleReason.OTHER_GRID, ScaleReason.VIEWS_DISAGREE])
def test_a_loop_and_a_place_say_why_they_have_no_length(reason: ScaleReason) -> None:
    found = verification()
    without = dataclasses.replace(found.pose, scale_known=False, without_length=reason)
    found = dataclasses.replace(found, pose=without)
    closure = LoopClosure(KeyframeName("ada", 7), 9, "ada_camera", found, 0.875, 3, 6, 4)
    for message in (loop_closure_message(closure), place_message(Place(found.keyframe, 0.5, found, True))):
        assert not message.scale_known
        assert message.scale_reason == getattr(PoseMessage, f"SCALE_{reason.name}")


def test_a_loop_that_is_certain_of_everything_is_told_with_a_covariance_that_is_not_zero() -> None:
    found = verification()
    found = dataclasses.replace(found, pose=dataclasses.replace(found.pose, covariance=np.zeros((6, 6))))
    closure = LoopClosure(KeyframeName("ada", 7), 9, "ada_camera", found, 0.875, 3, 6, 4)
    for message in (loop_closure_message(closure), place_message(Place(found.keyframe, 0.5, found, True))):
        assert np.linalg.eigvalsh(message.pose.covariance.reshape(6, 6))[0] == pytest.approx(1e-9)


def test_two_archived_keyframes_are_told_as_keyframe_and_current_image() -> None:
    found = verification()
    other = Frame(np.zeros((240, 320), np.uint8), 9_000_000_001, "ada_camera")
    second = dataclasses.replace(archived(), name=KeyframeName("ada", 7), session=5, segment=3)
    answer = MatchKeyframes.Response()
    fill_match(answer, MatchedKeyframes(found, second, other))
    matches, pose = answer.correspondences, answer.relative_pose
    assert (answer.session, answer.segment, answer.other_session, answer.other_segment) == (2, 1, 5, 3)
    for message in (matches, pose):
        assert (message.keyframe_id, message.keyframe_frame_id, message.keyframe_stamp.sec) == (41, "bob_camera", 5)
        assert (message.header.frame_id, message.header.stamp.sec) == ("ada_camera", 9)
    assert (matches.keyframe_width, matches.keyframe_height, matches.width, matches.height) == (640, 480, 320, 240)
    assert list(matches.inlier) == [1, 1, 0, 1] and list(matches.current_points) == list(range(100, 108))
    assert (pose.num_matches, pose.num_inliers, pose.inlier_ratio, pose.median_parallax) == (4, 3, 0.75, 12.5)


def test_two_keyframes_that_could_not_be_matched_claim_no_pose() -> None:
    pose = no_match()
    assert (pose.status, pose.scale_reason) == (PoseMessage.TOO_FEW_MATCHES, PoseMessage.SCALE_NO_POSE)
    assert np.array_equal(pose.pose.covariance.reshape(6, 6), 1e6 * np.eye(6))
