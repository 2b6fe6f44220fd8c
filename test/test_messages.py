"""Results to messages: contents and types, and filling in one copy."""

from __future__ import annotations

import array
import dataclasses
import importlib.util
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from fakes import camera, texture

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from builtin_interfaces.msg import Time
from loftr_ros.msg import Correspondences as CorrespondencesMessage
from loftr_ros.msg import FrontEndStatus as FrontEndStatusMessage
from loftr_ros.msg import Keyframe as KeyframeMessage
from loftr_ros.msg import RelativePose as RelativePoseMessage
from loftr_ros.msg import TrackLinks as TrackLinksMessage
from loftr_ros.msg import Tracks as TracksMessage
from rclpy.serialization import deserialize_message, serialize_message
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import PointCloud2

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import KeyframeEvent, KeyframeReason
from loftr_ros.frontend.odometry import ChainLink, Location
from loftr_ros.frontend.pipeline import Correspondences, KeyframeMatch
from loftr_ros.frontend.tracks import TrackLinks
from loftr_ros.geometry.se3 import quaternion_of
from loftr_ros.geometry.two_view import PoseStatus, RelativePose, ScaleReason
from loftr_ros.ros.output import messages
from loftr_ros.ros.output.outputs import Outputs
from loftr_ros.ros.output.reports import FrontEndState, MotionState, Reporter
from loftr_ros.ros.output.statistics import STAGES, Statistics
from loftr_ros.ros.parameters import OdometryParameters

CONFIG = Path(__file__).resolve().parents[1] / "config"


def frame(stamp_ns: int, frame_id: str = "camera") -> Frame:
    return Frame(texture(240, 320), stamp_ns, frame_id, camera())


COVARIANCE = np.diag(np.arange(1.0, 7.0)) + 0.25


def match(count: int = 5, depth: CellDepth | None = None, location: Location | None = None) -> KeyframeMatch:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 200, (2, count, 2)).astype(np.float32)
    found = Correspondences(
        np.arange(count, dtype=np.uint32),
        points[0],
        points[1],
        rng.uniform(0, 1, count).astype(np.float32),
        np.linspace(0.1, 1.5, count, dtype=np.float32),
    )
    pose = RelativePose(
        status=PoseStatus.OK,
        rotation=Rotation.from_euler("xyz", (0.1, -0.2, 0.3)).as_matrix(),
        translation=np.array([0.6, 0.0, 0.8]),
        covariance=COVARIANCE,
        inliers=np.arange(count) % 2 == 0,
        median_parallax=4.5,
    )
    # Of another keyframe's landmarks, as a linked cell is.
    landmarks = (np.uint64(2) << np.uint64(32)) + np.arange(100, 100 + count, dtype=np.uint64)
    encoded = SimpleNamespace(cell_rays=np.linspace(-0.5, 0.5, 2 * count).reshape(count, 2))
    keyframe = SimpleNamespace(
        id=3,
        frame=frame(1_500_000_000, "first"),
        landmarks=landmarks,
        offsets=np.zeros((count, 2), np.float32),
        location=location,
        encoded=encoded,
        depth=depth,
        link=None,
    )
    return KeyframeMatch(keyframe, found, pose)


@pytest.mark.parametrize("stamp", [0, 1, 999_999_999, 1_000_000_000, 1_700_000_000_123_456_789])
def test_stamps_go_there_and_back_without_loss(stamp: int) -> None:
    assert messages.to_nanoseconds(messages.to_time(stamp)) == stamp


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.uint64, np.float32, np.float64])
def test_arrays_keep_type_and_values_even_of_a_view_with_steps(kind: type) -> None:
    values = np.arange(24, dtype=kind).reshape(4, 6)[::2, 1::2]
    found = messages.to_array(values)
    assert isinstance(found, array.array) and found.itemsize == values.itemsize
    assert found.tolist() == values.ravel().tolist()
    assert len(messages.to_array(np.zeros((0, 2), kind))) == 0


@pytest.mark.kilted
def test_correspondences_carry_both_headers_sizes_and_all_arrays_over_the_wire() -> None:
    pair, current = match(), frame(2_250_000_000)
    sent = messages.correspondences_message(pair, current)
    found = deserialize_message(serialize_message(sent), CorrespondencesMessage)
    assert (found.header.stamp, found.header.frame_id) == (Time(sec=2, nanosec=250_000_000), "camera")
    assert (found.keyframe_id, found.keyframe_stamp, found.keyframe_frame_id) == (
        3,
        Time(sec=1, nanosec=500_000_000),
        "first",
    )
    assert (found.keyframe_width, found.keyframe_height, found.width, found.height) == (320, 240, 320, 240)
    assert list(found.track_id) == [0, 1, 2, 3, 4]
    assert list(found.inlier) == [1, 0, 1, 0, 1]
    for name in ("keyframe_points", "current_points", "confidence"):
        assert np.array_equal(getattr(found, name), getattr(pair.correspondences, name).ravel())
    assert np.array_equal(found.current_std, pair.correspondences.std)


def test_a_standard_deviation_that_the_network_has_not_crosses_the_wire_as_nan() -> None:
    pair = match()
    pair.correspondences.std[:] = np.nan
    sent = messages.correspondences_message(pair, frame(1))
    found = deserialize_message(serialize_message(sent), CorrespondencesMessage)
    assert len(found.current_std) == 5 and np.isnan(found.current_std).all()


def test_a_frame_without_matches_gives_empty_arrays() -> None:
    found = messages.correspondences_message(match(0), frame(1))
    assert [len(a) for a in (found.track_id, found.keyframe_points, found.confidence, found.current_std)] == [
        0,
        0,
        0,
        0,
    ]
    assert messages.relative_pose_message(match(0), frame(1)).inlier_ratio == 0


def test_a_relative_pose_carries_the_estimate_and_what_it_is_worth() -> None:
    pair = match()
    sent = messages.relative_pose_message(pair, frame(2_250_000_000))
    found = deserialize_message(serialize_message(sent), RelativePoseMessage)
    position, turn = found.pose.pose.position, found.pose.pose.orientation
    assert (position.x, position.y, position.z) == (0.6, 0.0, 0.8)
    assert Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_matrix() == pytest.approx(pair.pose.rotation)
    along = np.zeros((6, 6))
    along[:3, :3] = 1e6 * np.outer((0.6, 0.0, 0.8), (0.6, 0.0, 0.8))
    assert found.pose.covariance.reshape(6, 6) == pytest.approx(COVARIANCE + along)
    assert (found.status, found.scale_known, found.num_matches, found.num_inliers) == (0, False, 5, 3)
    assert found.inlier_ratio == pytest.approx(0.6) and found.median_parallax == pytest.approx(4.5)
    assert (found.keyframe_id, found.keyframe_frame_id, found.header.frame_id) == (3, "first", "camera")


def test_tracks_are_the_inliers_with_landmarks_that_outlive_the_keyframe_and_rays_of_the_camera() -> None:
    pair, current = match(), frame(2_250_000_000)
    found = deserialize_message(serialize_message(messages.tracks_message(pair, current)), TracksMessage)
    assert (found.header.stamp, found.header.frame_id) == (Time(sec=2, nanosec=250_000_000), "camera")
    assert found.keyframe_id == 3
    assert list(found.track_id) == [0, 2, 4]
    assert list(found.landmark_id) == [(2 << 32) + 100, (2 << 32) + 102, (2 << 32) + 104]
    kept = pair.correspondences[pair.pose.inliers]
    assert np.array_equal(found.pixels, kept.current_points.ravel())
    assert np.array_equal(found.std, kept.std)
    # The fakes' camera: a focal length of 300, its centre in the image's middle.
    assert np.asarray(found.rays).reshape(-1, 2) == pytest.approx(
        (kept.current_points - [159.5, 119.5]) / 300, abs=1e-6
    )
    assert np.asarray(found.ray_std) == pytest.approx(kept.std / 300)


def test_rays_of_tracks_are_undistorted() -> None:
    current, pair = frame(1), match()
    lens = dataclasses.replace(current.camera, distortion_model="plumb_bob", distortion=np.array([-0.2, 0.03, 0, 0, 0]))
    found = messages.tracks_message(pair, dataclasses.replace(current, camera=lens))
    rays = np.asarray(found.rays).reshape(-1, 2)
    seen = lens.project(np.insert(rays, 2, 1.0, axis=1))
    assert seen == pytest.approx(np.asarray(found.pixels).reshape(-1, 2), abs=1e-2)
    assert not np.allclose(rays, (np.asarray(found.pixels).reshape(-1, 2) - [159.5, 119.5]) / 300, atol=1e-3)


def test_tracks_of_an_uncalibrated_camera_have_pixels_and_no_rays() -> None:
    found = messages.tracks_message(match(), dataclasses.replace(frame(1), camera=None))
    assert len(found.pixels) == len(found.rays) == 6
    assert np.isfinite(found.pixels).all()
    assert np.isnan(found.rays).all() and np.isnan(found.ray_std).all()


def depth(*, metric: bool = True) -> CellDepth:
    """Of five cells: near, unknown, far, near infinity, and one without a finite depth."""
    inverse = np.array([0.5, np.nan, 0.1, 0.01, 0.2])
    return CellDepth(inverse, np.array([0.01, np.inf, 0.01, 0.01, 0.02]) ** 2, metric)


def test_tracks_carry_the_keyframes_rays_and_points_where_the_depth_is_known() -> None:
    pair, current = match(depth=depth()), frame(2_250_000_000)
    found = deserialize_message(serialize_message(messages.tracks_message(pair, current)), TracksMessage)
    assert (found.keyframe_stamp, found.keyframe_frame_id) == (Time(sec=1, nanosec=500_000_000), "first")
    rays = pair.keyframe.encoded.cell_rays[[0, 2, 4]]
    assert np.asarray(found.keyframe_rays).reshape(-1, 2) == pytest.approx(rays)
    along = np.insert(rays, 2, 1.0, axis=1)
    z = np.array([2.0, 10.0, 5.0])
    assert np.asarray(found.points).reshape(-1, 3) == pytest.approx(along * z[:, None])
    assert np.asarray(found.point_std) == pytest.approx(
        np.linalg.norm(along, axis=1) * z**2 * [0.01, 0.01, 0.02], rel=1e-5
    )
    assert found.scale_known
    assert not messages.tracks_message(match(depth=depth(metric=False)), current).scale_known


def test_tracks_of_unknown_depth_have_rays_and_no_points() -> None:
    found = messages.tracks_message(match(), frame(1))
    assert np.isfinite(found.keyframe_rays).all() and len(found.points) == 9 and len(found.point_std) == 3
    assert np.isnan(found.points).all() and np.isnan(found.point_std).all() and not found.scale_known


def test_a_point_that_noise_alone_keeps_from_infinity_has_no_place() -> None:
    far = CellDepth(np.array([0.1, 0.1, 0.0, -0.02]), np.array([0.03, 0.04, 0.01, 0.01]) ** 2, True)
    points, std = far.points(np.arange(4), np.zeros((4, 2)))
    assert np.isfinite(points[0]).all() and np.isfinite(std[0])
    assert np.isnan(points[1:]).all() and np.isnan(std[1:]).all()


def test_the_spread_of_many_measured_depths_is_what_a_points_std_says() -> None:
    rng = np.random.default_rng(3)
    ray = np.array([[0.4, -0.3]])
    _, std = CellDepth(np.array([0.25]), np.array([0.004**2]), True).points(np.array([0]), ray)
    depths = 1 / (0.25 + rng.normal(0, 0.004, 20_000))
    along = np.linalg.norm([0.4, -0.3, 1.0]) * depths
    assert std[0] == pytest.approx(along.std(), rel=0.03)


def cloud_of(message: PointCloud2) -> np.ndarray:
    """The cloud as a reader decodes it from the message's own description."""
    kinds = {6: "u4", 7: "f4"}
    fields = {field.name: ("<" + kinds[field.datatype], field.offset) for field in message.fields}
    kind = np.dtype(
        {
            "names": list(fields),
            "formats": [kind for kind, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": message.point_step,
        }
    )
    return np.frombuffer(bytes(message.data), kind)


def moved(translation: tuple[float, float, float], turn: float, segment: int = 0) -> Location:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_euler("y", turn).as_matrix(), translation
    return Location(matrix, np.zeros((6, 6)), True, segment=segment)


def test_landmarks_are_the_inliers_of_known_depth_as_a_cloud_in_the_current_cameras_frame() -> None:
    pair = match(depth=depth(), location=moved((1.0, 2.0, 3.0), 0.3))
    here = moved((1.5, 2.0, 4.0), 0.5)
    sent = messages.landmarks_message(pair, frame(2_250_000_000), here)
    found = deserialize_message(serialize_message(sent), PointCloud2)
    assert (found.header.stamp, found.header.frame_id) == (Time(sec=2, nanosec=250_000_000), "camera")
    assert (found.height, found.width, found.row_step) == (1, 3, 3 * found.point_step)
    assert found.is_dense and not found.is_bigendian
    cloud = cloud_of(found)
    assert cloud.dtype.names == ("x", "y", "z", "keyframe_id", "id", "confidence", "std")
    expected = pair.points()[0][[0, 2, 4]]
    world = expected @ pair.keyframe.location.pose[:3, :3].T + [1.0, 2.0, 3.0]
    seen = (world - [1.5, 2.0, 4.0]) @ here.pose[:3, :3]
    assert np.column_stack([cloud["x"], cloud["y"], cloud["z"]]) == pytest.approx(seen, abs=1e-5)
    tracks = messages.tracks_message(pair, frame(1))
    names = (cloud["keyframe_id"].astype(np.uint64) << np.uint64(32)) + cloud["id"]
    assert names.tolist() == list(tracks.landmark_id)
    assert cloud["confidence"] == pytest.approx(pair.correspondences.confidence[[0, 2, 4]])
    assert cloud["std"] == pytest.approx(np.asarray(tracks.point_std))


@pytest.mark.parametrize("here", [None, moved((0, 0, 1.0), 0.1, segment=4)])
def test_landmarks_are_an_empty_cloud_where_the_camera_is_not_known_to_be(here: Location | None) -> None:
    found = messages.landmarks_message(match(depth=depth(), location=moved((0, 0, 0), 0)), frame(1), here)
    assert (found.width, len(found.data), len(found.fields)) == (0, 0, 7)
    without = messages.landmarks_message(match(location=moved((0, 0, 0), 0)), frame(1), moved((0, 0, 1), 0))
    assert without.width == 0


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((6, 6)),
        np.diag([0, 1, 1, 1, 1, 1.0]),
        np.outer(np.arange(6.0), np.arange(6.0)),
        np.diag([1e6] * 3 + [1e-12] * 3),
        np.diag([1.0, 1, 1, 1, 1, -1e-12]),
    ],
)
def test_no_covariance_says_that_something_is_exact(given: np.ndarray) -> None:
    found = messages.to_covariance(given).reshape(6, 6)
    assert np.linalg.eigvalsh(found)[0] >= 0.9e-9
    assert np.linalg.cholesky(found).shape == (6, 6)
    assert np.abs(found - given).max() < 2e-9


def test_a_covariance_that_is_wide_enough_stays_as_it_is_and_one_that_is_none_says_that_nothing_is_known() -> None:
    for given in (COVARIANCE, np.diag([1e-8] * 6), 1e6 * np.eye(6)):
        assert np.array_equal(messages.to_covariance(given).reshape(6, 6), given)
    for broken in (np.nan, np.inf):
        assert np.array_equal(messages.to_covariance(np.full((6, 6), broken)).reshape(6, 6), 1e6 * np.eye(6))


def test_a_unit_vector_claims_its_direction_and_nothing_of_its_length() -> None:
    pair, direction = match(), np.array([0.6, 0.0, 0.8])
    across = 1e-5 * (np.eye(3) - np.outer(direction, direction))
    covariance = np.diag([0.0] * 3 + [1e-7] * 3)
    covariance[:3, :3] = across
    pose = dataclasses.replace(pair.pose, covariance=covariance)
    found = messages.to_estimated_pose(pose).covariance.reshape(6, 6)
    assert direction @ found[:3, :3] @ direction == pytest.approx(1e6)
    aside = np.array([[0.8, 0.0, -0.6], [0.0, 1.0, 0.0]])
    assert aside @ found[:3, :3] @ aside.T == pytest.approx(1e-5 * np.eye(2), abs=1e-8)
    assert np.linalg.cholesky(found).shape == (6, 6)
    metric = dataclasses.replace(pose, scale_known=True, covariance=1e-5 * np.eye(6))
    assert np.array_equal(messages.to_estimated_pose(metric).covariance.reshape(6, 6), 1e-5 * np.eye(6))
    still = dataclasses.replace(pose, status=PoseStatus.LOW_PARALLAX, translation=np.zeros(3), covariance=np.eye(6))
    assert np.array_equal(messages.to_estimated_pose(still).covariance.reshape(6, 6), np.eye(6))


@pytest.mark.parametrize(
    ("pose", "reason"),
    [
        (dict(scale_known=True), "SCALE_KNOWN"),
        (dict(status=PoseStatus.TOO_FEW_MATCHES), "SCALE_NO_POSE"),
        (dict(status=PoseStatus.NO_CALIBRATION), "SCALE_NO_POSE"),
        (dict(without_length=ScaleReason.OWN_UNIT), "SCALE_OWN_UNIT"),
        (dict(status=PoseStatus.PURE_ROTATION, without_length=ScaleReason.FEW_DEPTHS), "SCALE_FEW_DEPTHS"),
    ],
)
def test_a_relative_pose_says_why_it_has_no_length(pose: dict, reason: str) -> None:
    pair = match()
    pair = dataclasses.replace(pair, pose=dataclasses.replace(pair.pose, **pose))
    found = messages.relative_pose_message(pair, frame(1))
    assert found.scale_reason == getattr(RelativePoseMessage, reason)
    assert found.scale_known == (found.scale_reason == RelativePoseMessage.SCALE_KNOWN)


def links() -> TrackLinks:
    old, new = np.array([4, 9], np.uint32), np.array([5, 8], np.uint32)
    return TrackLinks(3, 4, old, new, np.array([[0.3, 0.4], [0, 1.25]], np.float32), np.ones(2, np.float32))


@pytest.mark.kilted
def test_links_carry_both_keyframes_and_tracks_over_the_wire() -> None:
    sent = messages.track_links_message(links(), frame(2_250_000_000))
    found = deserialize_message(serialize_message(sent), TrackLinksMessage)
    assert (found.header.stamp, found.header.frame_id) == (Time(sec=2, nanosec=250_000_000), "camera")
    assert (found.old_keyframe_id, found.new_keyframe_id) == (3, 4)
    assert (list(found.old_track_id), list(found.new_track_id)) == ([4, 9], [5, 8])
    assert list(found.distance) == [0.5, 1.25]


def test_a_keyframe_event_has_the_stamp_of_the_frame_at_which_it_happened() -> None:
    keyframe = SimpleNamespace(id=9, frame=frame(1_000_000_000, "first"), location=None, link=None)
    event = KeyframeEvent(keyframe, False, KeyframeReason.EVICTED, 4)
    found = messages.keyframe_message(event, frame(5_000_000_000))
    assert (found.header.stamp.sec, found.stamp.sec, found.id, found.frame_id) == (5, 1, 9, "first")
    assert (found.event, found.reason, found.num_keyframes) == (KeyframeMessage.REMOVED, KeyframeMessage.EVICTED, 4)
    assert messages.keyframe_message(event, None).header.stamp.sec == 1


def test_a_keyframe_event_tells_its_segment_and_the_pose_to_the_keyframe_that_it_was_located_by() -> None:
    here = moved((1.0, 2.0, 3.0), 0.3, segment=5)
    link = ChainLink(7, moved((0.5, 0, 0.25), 0.1).pose, COVARIANCE, True)
    keyframe = SimpleNamespace(id=9, frame=frame(1), location=here, link=link)
    for added in (True, False):
        sent = messages.keyframe_message(KeyframeEvent(keyframe, added, KeyframeReason.HIGH_PARALLAX, 4), frame(2))
        found = deserialize_message(serialize_message(sent), KeyframeMessage)
        assert (found.segment, found.previous_known, found.previous_id, found.scale_known) == (5, True, 7, True)
        at, turn = found.previous_pose.pose.position, found.previous_pose.pose.orientation
        assert (at.x, at.y, at.z) == (0.5, 0, 0.25)
        assert Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_rotvec() == pytest.approx([0, 0.1, 0])
        assert found.previous_pose.covariance.tolist() == COVARIANCE.ravel().tolist()


@pytest.mark.parametrize("location", [None, Location(np.eye(4), np.zeros((6, 6)), False, segment=2)])
def test_the_first_keyframe_of_a_segment_claims_nothing_of_one_before_it(location: Location | None) -> None:
    keyframe = SimpleNamespace(id=9, frame=frame(1), location=location, link=None)
    found = messages.keyframe_message(KeyframeEvent(keyframe, True, KeyframeReason.FIRST, 1), frame(1))
    assert (found.previous_known, found.previous_id, found.scale_known) == (False, 0, False)
    assert found.segment == (0 if location is None else 2)
    assert np.array_equal(found.previous_pose.covariance.reshape(6, 6), 1e6 * np.eye(6))


def test_the_messages_constants_are_those_of_the_front_end() -> None:
    assert {reason.name: reason.value for reason in KeyframeReason} == {
        reason.name: getattr(KeyframeMessage, reason.name) for reason in KeyframeReason
    }
    assert {status.name: status.value for status in PoseStatus} == {
        status.name: getattr(RelativePoseMessage, status.name) for status in PoseStatus
    }
    assert {reason.name: reason.value for reason in ScaleReason} == {
        reason.name: getattr(RelativePoseMessage, f"SCALE_{reason.name}") for reason in ScaleReason
    }


def test_quaternions_are_right_at_every_angle_and_have_w_at_least_zero() -> None:
    rng = np.random.default_rng(1)
    rotations = [*Rotation.random(200, random_state=1), *Rotation.from_rotvec(np.pi * np.eye(3)), Rotation.identity()]
    rotations += [
        Rotation.from_rotvec((np.pi - 1e-9) * axis / np.linalg.norm(axis)) for axis in rng.normal(size=(20, 3))
    ]
    for rotation in rotations:
        found = quaternion_of(rotation.as_matrix())
        assert np.linalg.norm(found) == pytest.approx(1)
        assert found[3] >= 0
        assert (Rotation.from_quat(found) * rotation.inv()).magnitude() < 1e-7


def test_a_picture_becomes_a_bgr8_image() -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    found = messages.image_message(picture, frame(1))
    assert (found.height, found.width, found.step, found.encoding) == (2, 3, 9, "bgr8")
    assert bytes(found.data) == picture.tobytes()


class FakeNode:
    """Creates publishers that record their messages."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse
        self.alive: list[SimpleNamespace] = []
        self.logged: list[str] = []

    def sent(self, topic: str) -> list[object]:
        return next(publisher.sent for publisher in self.alive if publisher.topic == topic)

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(info=self.logged.append, warning=self.logged.append)

    def create_lifecycle_publisher(self, kind: type, topic: str, profile: object, **options: object) -> SimpleNamespace:
        if topic == self.refuse:
            raise ValueError("an override that is no reliability")
        sent: list[object] = []
        publisher = SimpleNamespace(
            topic=topic, profile=profile, sent=sent, publish=sent.append, get_subscription_count=lambda: self.looking
        )
        self.alive.append(publisher)
        return publisher

    def destroy_lifecycle_publisher(self, publisher: SimpleNamespace) -> None:
        self.alive.remove(publisher)

    looking = 0


def result() -> SimpleNamespace:
    nothing = {"location": None, "joined": None, "orientation": None}
    return SimpleNamespace(frame=frame(1), matches=(match(),), events=(), links=(links(),), **nothing)


def outputs_of(node: FakeNode) -> Outputs:
    # Given, so that tf2 is not asked, whatever is installed.
    return Outputs(node, 100, OdometryParameters(base_from_camera=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)))


def test_tracks_cost_nothing_while_nobody_listens_and_links_go_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from loftr_ros.geometry.camera import CameraModel

    asked = []
    unproject = CameraModel.unproject
    monkeypatch.setattr(CameraModel, "unproject", lambda self, pixels: asked.append(1) or unproject(self, pixels))
    node = FakeNode()
    outputs = outputs_of(node)
    outputs.publish(result())
    assert not asked and not node.sent("~/tracks") and not node.sent("~/landmarks")
    assert len(node.sent("~/track_links")) == 1
    node.looking = 1
    outputs.publish(result())
    assert len(asked) == len(node.sent("~/tracks")) == len(node.sent("~/landmarks")) == 1


def test_no_links_are_sent_for_a_keyframe_that_has_none() -> None:
    node, found = FakeNode(), result()
    outputs = outputs_of(node)
    for nothing in ((), (dataclasses.replace(links(), old_track=links().old_track[:0]),)):
        found.links = nothing
        outputs.publish(found)
    assert node.sent("~/track_links") == []


def test_the_picture_is_not_even_drawn_while_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    from loftr_ros.evaluation import drawing as visualization

    drawn = []
    monkeypatch.setattr(visualization, "draw_matches", lambda *a, **k: drawn.append(a) or np.zeros((4, 4, 3), np.uint8))
    node = FakeNode()
    outputs = outputs_of(node)
    outputs.publish_picture(result())
    assert drawn == []
    node.looking = 1
    outputs.publish_picture(result())
    assert len(drawn) == 1
    assert [len(p.sent) for p in node.alive if p.topic == "~/matches_image"] == [1]


@pytest.mark.kilted
def test_every_publisher_has_a_quality_of_service_of_its_own_so_that_one_override_does_not_reach_the_next() -> None:
    node = FakeNode()
    outputs_of(node)
    assert len({id(publisher.profile) for publisher in node.alive}) == len(node.alive) == 11


def values_of(tree: object) -> list[str]:
    """All strings in the contents of YAML or JSON, including keys."""
    if isinstance(tree, dict):
        return [value for pair in tree.items() for each in pair for value in values_of(each)]
    if isinstance(tree, list):
        return [value for each in tree for value in values_of(each)]
    return [tree] if isinstance(tree, str) else []


def panels(split: object) -> list[str]:
    return [split] if isinstance(split, str) else panels(split["first"]) + panels(split["second"])


@pytest.mark.parametrize("name", ["front_end.rviz", "foxglove_layout.json", "slam_foxglove_layout.json"])
def test_what_rviz_and_foxglove_show_is_what_the_node_publishes(name: str) -> None:
    node = FakeNode()
    outputs_of(node)
    published = {publisher.topic.removeprefix("~/") for publisher in node.alive} | {"status"}
    shown = values_of(yaml.safe_load((CONFIG / name).read_text()))
    paths = {value.removeprefix("/loftr_front_end/") for value in shown if value.startswith("/loftr_front_end/")}
    assert {"path", "matches_image", "landmarks"} <= paths
    kinds = {"status": FrontEndStatusMessage, "relative_pose": RelativePoseMessage}
    for path in paths:
        topic, _, field = path.partition(".")
        assert topic in published
        assert not field or field.partition("[")[0] in kinds[topic].get_fields_and_field_types()


@pytest.mark.parametrize("name", ["foxglove_layout.json", "slam_foxglove_layout.json"])
def test_foxglove_shows_diagnostics_whatever_the_machine_is_called(name: str) -> None:
    layout = json.loads((CONFIG / name).read_text())
    kinds = [panel.partition("!")[0] for panel in panels(layout["layout"])]
    # DiagnosticStatusPanel shows one `hardware_id` alone, which is this machine's name.
    assert "DiagnosticStatusPanel" not in kinds
    shown = layout["configById"]["DiagnosticSummary!nodes"]
    assert (shown["topicToRender"], shown["hardwareIdFilter"], shown["minLevel"]) == ("/diagnostics", "", 0)
    assert sorted(panels(layout["layout"])) == sorted(layout["configById"])


def test_each_curve_of_foxgloves_latencies_is_labelled_with_its_stage() -> None:
    layout = json.loads((CONFIG / "foxglove_layout.json").read_text())
    for curve in layout["configById"]["Plot!latency"]["paths"]:
        assert STAGES[int(curve["value"].partition("[")[2].rstrip("]"))] == curve["label"]
    assert sorted(panels(layout["layout"])) == sorted(layout["configById"])


@pytest.mark.kilted
def test_closed_outputs_leave_no_publisher_behind_nor_do_those_that_could_not_be_made() -> None:
    node = FakeNode()
    outputs_of(node).close()
    assert node.alive == []
    node = FakeNode(refuse="~/matches_image")
    with pytest.raises(ValueError, match="no reliability"):
        outputs_of(node)
    assert node.alive == []


def test_the_status_and_diagnostics_say_what_is_known_of_the_trajectory() -> None:
    sent: dict[str, list] = {}

    def create_publisher(kind: type, topic: str, profile: object) -> SimpleNamespace:
        return SimpleNamespace(publish=sent.setdefault(topic, []).append)

    now = SimpleNamespace(now=lambda: SimpleNamespace(to_msg=Time))
    node = SimpleNamespace(
        create_publisher=create_publisher,
        create_timer=lambda *a, **k: None,
        get_clock=lambda: now,
        get_fully_qualified_name=lambda: "/eye",
        count_publishers=lambda topic: 1,
    )
    motion = MotionState("mono", False, 0.125, 2, 3, 7.5, 421)
    state = FrontEndState("active", device="cuda:1", matched_keyframes=2, image_scale=0.5, motion=motion)
    reporter = Reporter(node, Statistics(10), 1.0, lambda: state)
    reporter.publish()
    reporter.hardware_id = "camera 8315"
    reporter.publish()
    named = [message.status[0].hardware_id for message in sent["/diagnostics"]]
    assert named == [f"{socket.gethostname()} cuda:1", "camera 8315"]
    status = sent["~/status"][0]
    assert (status.mode, status.scale_known, status.scale_std) == ("mono", False, 0.125)
    assert (status.state, status.segment) == (FrontEndStatusMessage.LOST, 3)
    assert (status.path_length, status.keyframe_depth_cells) == (7.5, 421)
    assert (status.matched_keyframes, status.image_scale) == (2, 0.5)
    values = {value.key: value.value for value in sent["/diagnostics"][0].status[0].values}
    assert values["mode"] == "mono" and values["scale known"] == "False" and values["scale drift"] == "0.125"
    assert values["trajectory segment"] == "3" and values["path length [own unit]"] == "7.500"
    assert values["keyframe cells of known depth"] == "421"
    assert values["effort"] == "2 keyframes, 50 % of the resolution"
