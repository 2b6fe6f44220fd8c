"""The back end's node: what it makes of the front end's messages, and what it says."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from known_graphs import Measured, Noise, circles, key
from known_inertia import IN_A_HAND, MOUNT, Carried

if importlib.util.find_spec("rclpy") is None or importlib.util.find_spec("gtsam") is None:
    pytest.skip("needs rclpy and GTSAM", allow_module_level=True)

import yaml
from geometry_msgs.msg import PoseWithCovariance
from loftr_ros.msg import Keyframe, LoopClosure, RelativePose, Tracks
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header

from loftr_ros.backend.back_end import BackEnd
from loftr_ros.backend.measurements import Landmarks, Length, PoseMeasurement
from loftr_ros.geometry.se3 import between
from loftr_ros.ros.back_end.input import KEPT, RobotInput, loop_of, shared_landmarks
from loftr_ros.ros.back_end.output import (
    MapFrame,
    MapOutput,
    graph_message,
    landmarks_message,
    path_message,
    topic_names,
)
from loftr_ros.ros.back_end.parameters import BackEndParameters
from loftr_ros.ros.back_end.work import BackEndWork
from loftr_ros.ros.output.base_motion import base_pose, forward_camera
from loftr_ros.ros.output.messages import to_array, to_pose, to_pose_with_covariance, to_time
from loftr_ros.ros.output.outputs import KEPT as OUTPUTS_KEPT
from loftr_ros.ros.parameters import parameter_names, refusal
from loftr_ros.settings import ConfigError, with_values

LAP = 30
FILE = Path(__file__).resolve().parents[1] / "config" / "back_end.yaml"


def pose_message(measured: PoseMeasurement) -> PoseWithCovariance:
    return to_pose_with_covariance(measured.pose, measured.covariance)


class FrontEnd:
    """Says what a front end would say of a known walk."""

    def __init__(
        self, count: int = 70, metric: bool = True, seed: int = 0, start: int = 0, camera: str = "camera"
    ) -> None:
        self.measured = Measured(circles(count, LAP), seed=seed, metric=metric)
        self.odometry = np.eye(4)
        self.metric, self.start, self.camera, self.mount = metric, start, camera, forward_camera()

    def header(self, k: int) -> Header:
        return Header(stamp=to_time((self.start + k) * 10**9), frame_id=self.camera)

    def keyframe(self, k: int, begins: bool = False) -> Keyframe:
        message = Keyframe(header=self.header(k), id=k + 1, stamp=self.header(k).stamp, frame_id=self.camera)
        message.event, message.scale_known = Keyframe.ADDED, self.metric
        if k and not begins:
            link = self.measured.pose(k - 1, k)
            self.odometry = self.odometry @ link.pose
            message.previous_known, message.previous_id, message.previous_pose = True, k, pose_message(link)
        return message

    def odometry_at(self, k: int, broken: bool = False) -> Odometry:
        message = Odometry(header=Header(stamp=self.header(k).stamp, frame_id="odom"), child_frame_id="base_link")
        message.pose.pose = to_pose(base_pose(self.odometry, self.mount))
        message.pose.covariance = ((1e6 if broken else 0.01) * np.eye(6)).reshape(36)
        return message

    def relative_pose(self, keyframe: int, k: int) -> RelativePose:
        return RelativePose(
            header=self.header(k), keyframe_id=keyframe + 1, keyframe_stamp=self.header(keyframe).stamp,
            status=RelativePose.OK, scale_known=self.metric,
            pose=pose_message(self.measured.pose(keyframe, k)),
        )  # fmt: skip

    def loop(self, older: int, newer: int) -> LoopClosure:
        return LoopClosure(
            header=self.header(newer), robot="robot", keyframe_id=newer + 1, matched_robot="robot",
            matched_keyframe_id=older + 1, matched_stamp=self.header(older).stamp,
            status=RelativePose.OK, scale_known=self.metric, score=0.8,
            pose=pose_message(self.measured.pose(older, newer)),
        )  # fmt: skip

    def tracks(self, k: int) -> Tracks:
        points = np.array([[0, 0, 2], [0.5, 0, 3]], np.float32)
        return Tracks(
            header=self.header(k), keyframe_id=k + 1, track_id=to_array(np.arange(2, dtype=np.uint32)),
            points=to_array(points.ravel()), point_std=to_array(np.full(2, 0.01, np.float32)),
        )  # fmt: skip

    def messages(self, k: int, begins: bool = False) -> list[Any]:
        """All that is said of an image that becomes a keyframe."""
        found: list[Any] = [self.relative_pose(k - 1, k)] if k and not begins else []
        found += [self.keyframe(k, begins), self.odometry_at(k, begins), self.tracks(k)]
        return found

    def begun_anew(self, k: int) -> Odometry:
        """The odometry of a node that was started again: in the origin, and of what was before it knows nothing."""
        self.odometry = np.eye(4)
        message = self.odometry_at(k)
        message.twist.covariance = (1e6 * np.eye(6)).reshape(36)
        return message

    def base(self, k: int) -> Any:
        """(4, 4) where the base truly is, where it began."""
        return base_pose(between(self.measured.truth[0], self.measured.truth[k]), self.mount)


class MonoFrontEnd(FrontEnd):
    """Says what a front end of a single camera would say that is carried in a hand, a keyframe every half second."""

    def __init__(self) -> None:
        super().__init__(2, metric=False)
        self.carried = Carried(IN_A_HAND)

    def header(self, k: int) -> Header:
        return Header(stamp=to_time(k * 500_000_000), frame_id="camera")

    def keyframe(self, k: int, begins: bool = False) -> Keyframe:
        stamp = to_time(k * 500_000_000)
        message = Keyframe(header=self.header(k), id=k + 1, stamp=stamp, frame_id="camera", event=Keyframe.ADDED)
        if k:
            link = self.carried.link(k)
            self.odometry = self.odometry @ link.pose
            message.previous_known, message.previous_id, message.previous_pose = True, k, pose_message(link)
        return message

    def messages(self, k: int, begins: bool = False) -> list[Any]:
        odometry = self.odometry_at(k)
        odometry.header.stamp = self.header(k).stamp
        return [self.keyframe(k), odometry]


class FakeOutput:
    """Collects what is published."""

    def __init__(self) -> None:
        self.transforms: list[Any] = []
        self.on_tf: list[bool] = []
        self.robots: list[str] = []
        self.poses: list[Any] = []
        self.maps = self.asked = 0

    def transform(self, message: Any, robot: str, on_tf: bool = True) -> None:
        self.transforms.append(message)
        self.robots.append(robot)
        self.on_tf.append(on_tf)

    def pose(self, message: Any, robot: str) -> None:
        self.poses.append(message)

    def is_asked_anew(self) -> bool:
        self.asked, asked = 0, self.asked
        return bool(asked)

    def publish_map(self, back_end: Any, frame: Any, group: int) -> None:
        self.maps += 1


class Working:
    """A back end at work, without a node."""

    def __init__(self, robots: tuple[str, ...] = ("robot",), mounts: dict[str, Any] | None = None, **values: Any):
        self.output, self.said, self.failed = FakeOutput(), list[str](), list[str]()
        logger = SimpleNamespace(info=self.said.append)
        node: Any = SimpleNamespace(get_logger=lambda: logger, context=SimpleNamespace(ok=lambda: True))
        mount: Any = SimpleNamespace(of=lambda frame_id: (mounts or {}).get(frame_id, forward_camera()))
        parameters = with_values(BackEndParameters(), {"output.optimise_period": 0.0, **values})
        self.work = BackEndWork(
            node, parameters, list(robots), self.output, mount,  # type: ignore[arg-type]
            lambda error, details: self.failed.append(f"{error}{details}"),
        )  # fmt: skip

    def __enter__(self) -> Working:
        return self

    def __exit__(self, *_: object) -> None:
        self.work.close()

    def put(self, *messages: Any, robot: str = "robot") -> None:
        for message in messages:
            self.work.put(robot, message)

    def settle(self) -> None:
        """Wait until all that was put is done, but for what waits for more."""
        done = self.work.state.received
        self.put(Keyframe(event=Keyframe.REMOVED))  # it is only counted
        self.until(lambda state: state.received > done and not state.queued and not state.is_solving)

    def until(self, condition: Any, seconds: float = 40.0) -> None:
        until = time.monotonic() + seconds
        while not condition(self.work.state):
            assert time.monotonic() < until, (self.work.state, self.said, self.failed)
            time.sleep(0.01)


def profile(topic: str) -> QoSProfile:
    """As the front end publishes a topic of its own, but nothing is lost."""
    durability = DurabilityPolicy.TRANSIENT_LOCAL if topic in OUTPUTS_KEPT else DurabilityPolicy.VOLATILE
    return QoSProfile(depth=OUTPUTS_KEPT.get(topic, 5000), durability=durability)


def matrix_of(message: Any) -> Any:
    from loftr_ros.geometry.se3 import from_quaternion

    at, turn = message.transform.translation, message.transform.rotation
    return from_quaternion((at.x, at.y, at.z), (turn.x, turn.y, turn.z, turn.w))


@pytest.mark.kilted
def test_map_to_odom_takes_out_what_the_odometry_has_drifted_by(tmp_path: Path) -> None:
    front_end = FrontEnd(61)
    with Working(map_file=str(tmp_path / "map.npz"), map_save_period=0.0) as back:
        for k in range(60):
            back.put(*front_end.messages(k))
            if k >= LAP + 5 and k % 3 == 0:
                back.put(front_end.loop(k - LAP - 1, k))
        back.until(lambda state: state.counts.believed >= 8 and state.counts.keyframes == 60 and not state.is_solving)
        last = front_end.odometry_at(59)
        sent = len(back.output.transforms)
        back.put(last)
        back.until(lambda _: len(back.output.transforms) > sent)
        found = back.output.transforms[-1]
        assert (found.header.frame_id, found.child_frame_id) == ("map", "odom")
        assert found.header.stamp == to_time(59 * 10**9 + 10**8), "the stamp is the image's, and the tolerance"
        corrected = matrix_of(found) @ base_pose(front_end.odometry, forward_camera())
        drifted = base_pose(front_end.odometry, forward_camera())
        true = front_end.base(59)
        assert np.linalg.norm(corrected[:3, 3] - true[:3, 3]) < 0.7 * np.linalg.norm(drifted[:3, 3] - true[:3, 3])
        covariance = np.asarray(back.output.poses[-1].pose.covariance).reshape(6, 6)
        assert np.linalg.eigvalsh(covariance)[0] > 0 and back.output.maps and not back.failed
        assert back.work.state.counts.landmarks >= 100
    with Working(map_file=str(tmp_path / "map.npz")) as again:
        assert again.work.state.counts.keyframes == 60
        again.put(*front_end.messages(60))
        again.until(lambda state: state.counts.keyframes == 61)
        assert again.work.state.counts.groups == 1, "the same front end goes on: so does the map"


def test_an_inertial_sensor_beside_a_single_camera_brings_the_map_into_metres_and_the_status_says_by_what() -> None:
    front_end = MonoFrontEnd()
    with Working() as back:
        back.work.back_end.imu["robot"] = front_end.carried.samples(31)
        for k in range(30):
            back.put(*front_end.messages(k))
        back.until(lambda state: state.counts.keyframes == 30 and state.is_metric and not state.is_solving)
        assert "metres by" in back.work.state.inertial["robot"] and not back.failed
        assert back.work.camera_frame("robot") == "camera"
        places = np.array([place.camera.pose[:3, 3] for _, place in back.work.back_end.places()])
        true = np.array([between(front_end.carried.camera(0), front_end.carried.camera(k))[:3, 3] for k in range(30)])
        assert np.linalg.norm(places) / np.linalg.norm(true) == pytest.approx(1, abs=0.05)
        back.until(lambda state: state.down is not None)
        down = forward_camera()[:3, :3] @ front_end.carried.down()
        assert down @ back.work.state.down > np.cos(np.radians(2))


def test_before_loops_lead_to_the_map_nothing_is_said_of_where_it_is() -> None:
    front_end = FrontEnd(50)
    with Working() as back:
        for k in range(34):
            back.put(*front_end.messages(k))
        back.until(lambda state: state.localized["robot"] and state.counts.keyframes == 34)
        for k in range(34, 44):
            back.put(*front_end.messages(k, begins=k == 34))
        back.until(lambda state: state.counts.keyframes == 44)
        back.until(lambda state: not state.localized["robot"])
        sent, poses = len(back.output.transforms), len(back.output.poses)
        back.put(front_end.odometry_at(43, broken=True), front_end.odometry_at(43))
        for older, newer in ((3, 35), (5, 37)):
            back.put(front_end.loop(older, newer))
        back.until(lambda state: state.counts.loops == 2 and not state.is_solving)
        assert len(back.output.transforms) == sent and len(back.output.poses) == poses
        back.put(front_end.relative_pose(5, 44), front_end.odometry_at(44))
        back.until(lambda _: len(back.output.transforms) == sent + 1)  # a keyframe of the map has located the image
        found = matrix_of(back.output.transforms[-1]) @ base_pose(front_end.odometry, forward_camera())
        assert np.linalg.norm(found[:3, 3] - front_end.base(44)[:3, 3]) < 0.15
        back.put(front_end.loop(8, 40))
        back.until(lambda state: state.localized["robot"])
        assert any("is localized" in line for line in back.said)


def test_a_robot_whose_odometry_begins_anew_is_not_placed_by_where_it_was_before() -> None:
    front_end = FrontEnd(50)
    with Working() as back:
        for k in range(20):
            back.put(*front_end.messages(k))
        back.put(front_end.relative_pose(19, 20), front_end.odometry_at(20))
        back.until(lambda state: state.localized["robot"] and state.counts.keyframes == 20)
        back.settle()
        sent = len(back.output.transforms)
        # The first images' messages overtake that of their keyframe, or it is lost: nothing says where the robot is.
        back.put(front_end.begun_anew(21), front_end.relative_pose(21, 22), front_end.odometry_at(22))
        back.settle()
        assert len(back.output.transforms) == sent
        back.put(front_end.keyframe(21, begins=True), front_end.relative_pose(21, 23), front_end.odometry_at(23))
        back.until(lambda state: state.counts.keyframes == 21 and not state.localized["robot"])
        assert len(back.output.transforms) == sent
        # Of the same trajectory of keyframes, where the odometry alone jumps.
        for k in range(22, 25):
            back.put(*front_end.messages(k))
        for older, newer in ((1, 22), (2, 23), (3, 24)):
            back.put(front_end.loop(older, newer))
        back.until(lambda state: state.localized["robot"] and state.counts.believed == 3)
        back.settle()
        sent = len(back.output.transforms)
        back.put(front_end.relative_pose(24, 25), front_end.begun_anew(25))
        back.until(lambda _: len(back.output.transforms) == sent + 1)
        found = matrix_of(back.output.transforms[-1])
        assert np.linalg.norm(found[:3, 3] - front_end.base(25)[:3, 3]) < 0.2, "by the keyframe that located the image"


def test_a_map_of_other_keyframes_with_the_same_numbers_places_nobody(tmp_path: Path) -> None:
    front_end = FrontEnd(40)
    with Working(map_file=str(tmp_path / "map.npz"), map_save_period=0.0) as back:
        for k in range(40):
            back.put(*front_end.messages(k))
        back.until(lambda state: state.counts.keyframes == 40)
    other = FrontEnd(50, start=1000)
    with Working(map_file=str(tmp_path / "map.npz"), map_save_period=0.0) as back:
        back.put(other.keyframe(40))  # it follows the last of the map by its number, but not that one
        back.until(lambda state: state.counts.keyframes == 41)
        back.put(other.relative_pose(3, 41), other.odometry_at(41), other.loop(3, 12))
        back.put(other.relative_pose(3, 42), other.odometry_at(42), other.loop(41, 42))
        back.settle()
        assert not back.output.transforms and back.work.state.counts.groups == 2
        assert back.work.state.counts.loops == 0 and not back.work.state.localized["robot"]
    with Working(map_file=str(tmp_path / "map.npz"), map_save_period=0.0) as back:
        back.put(other.loop(3, 12))
        back.settle()
        assert back.work.state.counts.loops == 0 and "not of the same runs" in back.failed[0]
        # The front end whose map it is places the robot by its next image, though it makes no keyframe.
        back.put(front_end.relative_pose(39, 39), front_end.odometry_at(39))
        back.until(lambda state: state.localized["robot"])
        assert len(back.output.transforms) == 1


def test_where_the_clock_jumps_back_the_next_keyframe_has_its_own_odometry() -> None:
    front_end, again = FrontEnd(50, start=100), FrontEnd(50, seed=1)
    with Working() as back:
        for k in range(12):
            back.put(*front_end.messages(k))
        back.until(lambda state: state.localized["robot"] and state.counts.keyframes == 12)
        again.odometry = front_end.odometry  # a new segment begins where the last one ended
        for k in range(20, 26):
            back.put(*again.messages(k, begins=k == 20))
        back.until(lambda state: state.counts.keyframes == 18 and not state.localized["robot"])
        for older, newer in ((3, 21), (5, 23), (8, 25)):
            loop = again.loop(older, newer)
            loop.matched_stamp = front_end.header(older).stamp
            back.put(loop)
        back.until(lambda state: state.localized["robot"])
        back.settle()
        sent = len(back.output.transforms)
        back.put(again.relative_pose(25, 26), again.odometry_at(26))
        back.until(lambda _: len(back.output.transforms) > sent)
        found = matrix_of(back.output.transforms[-1]) @ base_pose(again.odometry, forward_camera())
        assert np.linalg.norm(found[:3, 3] - again.base(25)[:3, 3]) < 0.2 and not back.failed


def test_robots_whose_cameras_are_mounted_otherwise_are_each_placed_by_their_own_mount(tmp_path: Path) -> None:
    turned = forward_camera()
    turned[:3] = np.array([[0, -1, 0, 0.1], [1, 0, 0, 0.3], [0, 0, 1, 0.5]]) @ turned
    one, other = FrontEnd(40), FrontEnd(40, seed=1, camera="rear")
    other.mount = turned
    back = Working(("robot", "other"), {"rear": turned}, map_file=str(tmp_path / "map.npz"), map_save_period=0.0)
    with back:
        for k in range(30):
            back.put(*one.messages(k))
            back.put(*other.messages(k), robot="other")
        for k in (3, 8, 12, 20):
            loop = other.loop(k, k)
            loop.matched_robot = "other"
            back.put(loop)
        back.until(lambda state: state.counts.keyframes == 60 and all(state.localized.values()))
        back.settle()
        back.output.transforms.clear()
        back.output.on_tf.clear()
        back.output.robots.clear()
        back.put(other.relative_pose(29, 30), other.odometry_at(30), robot="other")
        back.until(lambda _: bool(back.output.transforms))
        found = matrix_of(back.output.transforms[-1]) @ base_pose(other.odometry, turned)
        camera = forward_camera() @ between(one.measured.truth[0], other.measured.truth[29])
        assert np.linalg.norm((found @ turned)[:3, 3] - camera[:3, 3]) < 0.3
        assert (found @ turned)[:3, :3] == pytest.approx(camera[:3, :3], abs=0.1)
        assert back.output.robots == ["other"]
        assert back.output.on_tf == [False] and "the same frame odom" in back.failed[-1], "one frame is of one robot"
    with Working(mounts={"rear": turned}, map_file=str(tmp_path / "map.npz")) as again:
        assert again.work.back_end.mounts["rear"] == pytest.approx(turned), "the mounts are part of the map"
        again.output.asked = 1  # somebody begins to listen, before any keyframe comes
        again.until(lambda _: again.output.maps == 1)


def test_the_map_is_published_in_the_base_s_axes_of_its_first_keyframe() -> None:
    pytest.importorskip("visualization_msgs")
    measured, back_end = Measured(circles(40, LAP), Noise(1e-6, 1e-7)), BackEnd()
    for k in range(40):
        back_end.add_keyframe(measured.keyframe(k, begins=k == 37))
    points = np.array([[0, 0, 2], [1, 0, 3]], np.float32)
    for k in (6, 38):
        back_end.add_landmarks(key(k), Landmarks(points, np.full(2, 0.1, np.float32), np.arange(2, dtype=np.uint32)))
    back_end.add_loop(measured.loop(2, 33))
    back_end.add_loop(measured.false_loop(1, 30))
    back_end.optimise()
    mounted = forward_camera()
    mounted[:3, 3] = [0.2, 0, 0.5]
    frame = MapFrame("map", mounted)
    path = path_message(back_end, frame, 0)
    assert path.header.frame_id == "map" and len(path.poses) == 37, "nothing leads to the last three keyframes"
    true = base_pose(between(measured.truth[0], measured.truth[20]), mounted)
    at = path.poses[20].pose.position
    np.testing.assert_allclose([at.x, at.y, at.z], true[:3, 3], atol=1e-3)
    cloud = landmarks_message(back_end, frame, 0)
    found = np.frombuffer(bytes(cloud.data), "<f4").reshape(cloud.width, -1)[:, :3]
    camera = mounted @ between(measured.truth[0], measured.truth[6])
    np.testing.assert_allclose(found, points @ camera[:3, :3].T + camera[:3, 3], atol=1e-3)
    shown = {marker.ns: len(marker.points) for marker in graph_message(back_end, frame, 0).markers[1:]}
    assert shown == {"keyframes robot": 37, "links robot": 72, "loops": 2, "loops rejected": 2}


def test_of_several_robots_each_has_topics_of_its_own_and_one_robot_alone_has_none() -> None:
    sent: dict[str, list[Any]] = {}

    def publisher(kind: type, topic: str) -> Any:
        return SimpleNamespace(publish=sent.setdefault(topic, []).append)

    MapOutput(publisher, False, lambda *_: None, ["robot"])
    assert not [topic for topic in sent if topic.count("/") > 1]
    output = MapOutput(publisher, False, lambda *_: None, ["ada", "bob/left"])
    output.transform("of ada", "ada")  # type: ignore[arg-type]
    output.pose("of bob", "bob/left")  # type: ignore[arg-type]
    assert (sent["~/map_to_odom"], sent["~/ada/map_to_odom"], sent["~/bob/left/map_to_odom"]) == (
        ["of ada"],
        ["of ada"],
        [],
    )
    assert (sent["~/pose"], sent["~/ada/pose"], sent["~/bob/left/pose"]) == (["of bob"], [], ["of bob"])


def test_a_robot_s_name_becomes_one_that_a_topic_may_have_and_no_two_are_the_same() -> None:
    names = topic_names(["ada", "r2-d2", "r2.d2", "3", "/", "bob/left"])
    assert list(names.values()) == ["ada", "r2_d2", "r2_d2_2", "_3", "robot", "bob/left"]


def test_what_rviz_and_foxglove_show_of_the_map_is_published_with_the_type_that_they_expect() -> None:
    kinds: dict[str, type] = {}
    MapOutput(lambda kind, topic: kinds.update({topic: kind}), True, lambda *_: None)
    displays = yaml.safe_load(FILE.with_name("slam.rviz").read_text())["Visualization Manager"]["Displays"]
    topics = {each["Topic"]["Value"]: each["Class"].rpartition("/")[2] for each in displays if "Topic" in each}
    shown = {name.rpartition("/")[2]: kind for name, kind in topics.items() if "back_end" in name}
    assert len(shown) == 4 and {kinds[f"~/{name}"].__name__.removesuffix("Stamped") for name in shown} == set(
        shown.values()
    )
    layout = json.loads(FILE.with_name("slam_foxglove_layout.json").read_text())["configById"]
    panel = layout["3D!map"]["topics"]
    assert {f"/loftr_back_end/{name}" for name in shown} == {name for name in panel if "back_end" in name}
    cloud = landmarks_message(BackEnd(), MapFrame("map", np.eye(4)), 0)
    assert panel["/loftr_back_end/landmarks"]["colorField"] in [field.name for field in cloud.fields]
    assert layout["Table!back_end"]["topicPath"] == "/loftr_back_end/status.values"


def test_a_back_end_that_begins_late_asks_for_what_the_front_end_keeps() -> None:
    assert {f"~/{name}" for name in KEPT} == set(OUTPUTS_KEPT)
    source, front_end = RobotInput("robot"), FrontEnd(10)
    messages = [front_end.keyframe(k) for k in range(5)]
    source.add_odometry(front_end.odometry_at(5))  # it overtakes the older ones
    for message in messages:
        source.add_keyframe(message)
    assert [keyframe.key for _, keyframe, _ in source.ready()] == [key(k) for k in range(5)]
    assert source.odometry is not None and source.odometry.run == 0, "the clock has not jumped"


def test_messages_that_are_broken_are_counted_and_the_next_ones_go_on() -> None:
    front_end = FrontEnd(10)
    with Working() as back:
        bad = front_end.keyframe(1)
        bad.previous_pose.pose.orientation.w = float("nan")
        worse = front_end.loop(0, 1)
        worse.pose.pose.position.x = float("inf")
        back.put(*front_end.messages(0), bad, worse)
        for k in range(2, 5):
            back.put(*front_end.messages(k))
        back.until(lambda state: state.counts.keyframes >= 4)
        assert len(back.failed) == 2 and all("not finite" in each for each in back.failed)


def test_where_too_many_messages_wait_the_oldest_go_and_are_counted() -> None:
    with Working(queue_size=10) as back:
        with back.work._condition:  # the thread waits for it
            for _ in range(25):
                back.work._queue.append(("robot", FrontEnd(2).odometry_at(0)))
            back.work.put("robot", FrontEnd(2).odometry_at(0))
        back.until(lambda state: state.dropped == 1)


def test_a_front_end_that_begins_its_numbers_anew_has_other_keyframes() -> None:
    source, front_end = RobotInput("robot"), FrontEnd(10)
    names = []
    for k in range(3):
        source.add_keyframe(front_end.keyframe(k))
        source.add_odometry(front_end.odometry_at(k + 1))
        names += [keyframe.key for _, keyframe, _ in source.ready()]
    other = front_end.keyframe(0)
    other.stamp = other.header.stamp = to_time(100 * 10**9)
    source.add_keyframe(other)
    source.add_odometry(front_end.odometry_at(101))
    names += [keyframe.key for _, keyframe, _ in source.ready()]
    assert len(set(names)) == 4 and names[:3] == [key(0), key(1), key(2)]


def test_an_archived_keyframe_that_is_recalled_after_a_crash_is_the_one_of_before() -> None:
    source, front_end, again = RobotInput("robot"), FrontEnd(10), FrontEnd(10, start=100)
    for k in range(10):
        source.add_keyframe(front_end.keyframe(k))
        source.add_odometry(front_end.odometry_at(k + 1))
        list(source.ready())
    new = again.keyframe(7, begins=True)  # 8, 9 and 10 were not archived yet: their numbers come again
    source.add_keyframe(new)
    source.add_odometry(again.odometry_at(8))
    [(_, keyframe, _)] = source.ready()
    assert keyframe.key == source.key(8) != key(7)
    recalled, linked = again.relative_pose(3, 8), again.keyframe(8)
    recalled.keyframe_stamp = front_end.header(3).stamp
    linked.previous_id = 4
    source.add_relative_pose(recalled)
    source.add_keyframe(linked)
    source.add_odometry(again.odometry_at(9))
    [(images, keyframe, _)] = source.ready()
    assert list(images[0].poses) == [key(3)] and keyframe.previous == key(3)
    assert keyframe.key not in (key(8), key(3)) and source.key(8) != key(7)


def test_a_map_of_several_runs_is_known_in_whichever_order_its_keyframes_come() -> None:
    source, front_end, again = RobotInput("robot"), FrontEnd(10), FrontEnd(10, start=100)
    for message in (*(front_end.keyframe(k) for k in range(10)), again.keyframe(7, begins=True)):
        _, keyframe, _ = source._taken(message, 10**9 * message.stamp.sec)
    loaded = RobotInput("robot")
    for name, stamp_ns in [(keyframe.key, 107 * 10**9), *((key(k), k * 10**9) for k in range(10))]:
        loaded.known(name, stamp_ns)
    loaded.add_relative_pose(front_end.relative_pose(3, 9))
    assert loaded.key(4) == key(3) and loaded.key(8) == keyframe.key != key(7)


def test_a_keyframe_waits_for_the_poses_of_its_own_image() -> None:
    source, front_end = RobotInput("robot"), FrontEnd(10)
    for k in range(3):
        source.add_keyframe(front_end.keyframe(k))
        list(source.ready())
    source.add_relative_pose(front_end.relative_pose(0, 2))
    assert source.is_waiting
    source.add_relative_pose(front_end.relative_pose(2, 3))
    found = list(source.ready())[-1]
    assert found[1].key == key(2) and [set(image.poses) for image in found[0]] == [{key(0)}]


def test_a_keyframe_comes_with_the_landmarks_of_its_own_image_and_those_that_begin_before() -> None:
    source, front_end = RobotInput("robot"), FrontEnd(10)
    tracks = front_end.tracks(1)
    tracks.keyframe_id = 1
    tracks.landmark_id = to_array(np.array([(1 << 32) + 7, 5], np.uint64))
    tracks.rays, tracks.keyframe_rays = [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]
    tracks.ray_std = [0.001, 0.002]
    # A later image's: the keyframe is made of one that the network matched while flow went on.
    later = front_end.tracks(3)
    later.keyframe_id = 1
    found = []
    for k in range(3):
        source.add_keyframe(front_end.keyframe(k))
        if k:
            source.add_tracks(tracks)
            source.add_tracks(later)
        source.add_odometry(front_end.odometry_at(k + 1))
        found += [keyframe.shared for _, keyframe, _ in source.ready()]
    assert found[0] is None and found[2] is None, "there is none before the first, and tracks of another image are none"
    shared = found[1]
    assert shared is not None and shared.seen.landmark.tolist() == [(1 << 32) + 7, 5]
    assert shared.seen.rays == pytest.approx(np.array([[0.1, 0.2], [0.3, 0.4]]))
    assert shared.born.landmark.tolist() == [(1 << 32) + 7]
    assert shared.born.rays == pytest.approx(np.array([[0.5, 0.6]]))
    tracks.ray_std = [0.001]
    assert shared_landmarks(tracks) is None


def test_what_is_known_of_a_pose_arrives_as_it_was_said() -> None:
    front_end = FrontEnd(10)
    loop = front_end.loop(1, 5)
    ends = key(1), key(5)
    found = loop_of(loop, *ends)
    assert found is not None and found.measured.length is Length.METRES
    assert (found.older, found.newer) == ends
    loop.scale_known = False
    loop.own_unit_known, loop.own_unit_pose = True, front_end.loop(2, 5).pose
    assert loop_of(loop, *ends).measured.length is Length.OWN_UNIT  # type: ignore[union-attr]
    loop.own_unit_known = False
    assert loop_of(loop, *ends).measured.length is Length.DIRECTION  # type: ignore[union-attr]
    loop.pose.pose.position.x = loop.pose.pose.position.y = loop.pose.pose.position.z = 0.0
    assert loop_of(loop, *ends).measured.length is Length.NONE  # type: ignore[union-attr]
    loop.status = RelativePose.DOUBTFUL
    assert loop_of(loop, *ends) is None


def test_the_config_file_has_every_parameter_with_what_it_means() -> None:
    text, written = FILE.read_text(), dict[str, Any]()
    for name, value in yaml.safe_load(text)["/**"]["ros__parameters"].items():
        group = {f"{name}.{own}": each for own, each in value.items()} if isinstance(value, dict) else {name: value}
        written |= {own: tuple(each) if isinstance(each, list) else each for own, each in group.items()}
    declared = {name: item.default for name, item in parameter_names(BackEndParameters)}
    assert written == declared and list(written) == list(declared)
    joined = " ".join(line.strip().removeprefix("# ") for line in text.splitlines() if line.strip().startswith("#"))
    for name, item in parameter_names(BackEndParameters):
        assert item.metadata["description"] in joined and item.metadata["unit"] in joined, name


@pytest.mark.kilted
def test_parameters_that_contradict_each_other_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="robots has 1 names and front_ends 2"):
        with_values(BackEndParameters(), {"front_ends": "a, b", "robots": "one"})
    with pytest.raises(ConfigError, match="base_from_camera"):
        with_values(BackEndParameters(), {"base_from_camera": (1.0,) * 7})
    assert "read when the node is configured" in refusal({"map_file": "x"}, True, BackEndParameters)
    assert not refusal({"loops.agreeing": 2}, True, BackEndParameters)


@pytest.mark.long
@pytest.mark.parametrize(
    ("parameter", "code", "words"),
    [("map_file:='{}/a.npz'", 1, "a.npz is no map"), ("front_ends:=''", 2, "front_ends is empty")],
)
def test_a_node_that_cannot_begin_says_why_and_ends(
    parameter: str, code: int, words: str, tmp_path: Path, ros_domain: int
) -> None:
    (tmp_path / "a.npz").write_bytes(b"something else")
    program = "import sys; from loftr_ros.ros.back_end.node import main; sys.exit(main(autostart=True))"
    command = [sys.executable, "-c", program, "--ros-args", "-p", parameter.format(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.kilted
@pytest.mark.long
def test_the_node_over_dds_says_map_to_odom_and_goes_on_from_its_map_after_it_was_killed(
    tmp_path: Path, ros_domain: int
) -> None:
    import rclpy
    from diagnostic_msgs.msg import DiagnosticStatus
    from geometry_msgs.msg import TransformStamped
    from nav_msgs.msg import Path as PathMessage
    from sensor_msgs.msg import PointCloud2
    from std_srvs.srv import Trigger

    code = "import sys; from loftr_ros.ros.back_end.node import main; sys.exit(main(autostart=True))"
    environment = os.environ | {"ROS_DOMAIN_ID": str(ros_domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    environment |= {"ROS_LOG_DIR": str(tmp_path / "log")}
    arguments = ["--ros-args", "-p", f"map_file:='{tmp_path / 'map.npz'}'", "-p", "output.map_period:=0.1"]
    log = tmp_path / "said"

    def started() -> subprocess.Popen[bytes]:
        with log.open("a") as out:
            return subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=tmp_path,
            )

    process = started()
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    node = rclpy.create_node("fake_front_end", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    got: dict[type, list[Any]] = {}
    for kind, topic in ((TransformStamped, "map_to_odom"), (PathMessage, "path"), (PointCloud2, "landmarks"),
                        (DiagnosticStatus, "status")):  # fmt: skip
        received = got.setdefault(kind, [])
        node.create_subscription(kind, f"/loftr_back_end/{topic}", received.append, 100)
    topics = {Keyframe: "keyframe", RelativePose: "relative_pose", Tracks: "tracks", LoopClosure: "loop_closures",
              Odometry: "odometry"}  # fmt: skip
    publishers = {
        kind: node.create_publisher(kind, f"/loftr_front_end/{topic}", profile(f"~/{topic}"))
        for kind, topic in topics.items()
    }

    def until(condition: Any, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and process.poll() is None, log.read_text()
            executor.spin_once(timeout_sec=0.02)

    try:
        until(lambda: all(each.get_subscription_count() for each in publishers.values()))
        front_end = FrontEnd(52)
        for k in range(50):
            for message in front_end.messages(k):
                publishers[type(message)].publish(message)
            if k > LAP + 4:
                publishers[LoopClosure].publish(front_end.loop(k - LAP - 1, k))
            executor.spin_once(timeout_sec=0.01)
        until(lambda: got[DiagnosticStatus] and "localized" in got[DiagnosticStatus][-1].message)
        until(lambda: got[PathMessage] and len(got[PathMessage][-1].poses) == 50)
        until(lambda: got[PointCloud2] and got[PointCloud2][-1].width >= 90)
        publishers[Odometry].publish(front_end.odometry_at(49))
        until(lambda: got[TransformStamped])
        values = {pair.key: pair.value for pair in got[DiagnosticStatus][-1].values}
        assert values["robot robot"] == "localized" and values["messages dropped"] == "0"
        client = node.create_client(Trigger, "/loftr_back_end/save_map")
        until(client.service_is_ready)
        saved = client.call_async(Trigger.Request())
        until(saved.done)
        assert saved.result().success
        process.kill()
        process.wait()
        for message in front_end.messages(50):  # while there is no back end: the front end keeps its keyframes for it
            publishers[type(message)].publish(message)
        process = started()
        until(lambda: "50 keyframes" in log.read_text())
        until(lambda: len(got[PathMessage][-1].poses) == 51)
        got[DiagnosticStatus].clear()
        sent = len(got[TransformStamped])
        for message in (front_end.relative_pose(50, 51), front_end.odometry_at(51)):  # it makes no keyframe
            publishers[type(message)].publish(message)
        until(lambda: len(got[TransformStamped]) > sent)
        until(lambda: got[DiagnosticStatus] and "not localized" not in got[DiagnosticStatus][-1].message)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
        assert (tmp_path / "map.npz").exists() and "Traceback" not in log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


@pytest.mark.long
def test_over_dds_the_node_listens_to_an_inertial_sensor_where_its_parameter_says_that_it_is(
    tmp_path: Path, ros_domain: int
) -> None:
    import rclpy
    from diagnostic_msgs.msg import DiagnosticStatus
    from sensor_msgs.msg import Imu

    from loftr_ros.geometry.se3 import quaternion_of

    code = "import sys; from loftr_ros.ros.back_end.node import main; sys.exit(main(autostart=True))"
    environment = os.environ | {"ROS_DOMAIN_ID": str(ros_domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    environment |= {"ROS_LOG_DIR": str(tmp_path / "log")}
    seven = [float(value) for value in (*MOUNT[:3, 3], *quaternion_of(MOUNT[:3, :3]))]
    arguments = [
        "--ros-args",
        "-p",
        f"inertial_sensor.camera_from_imu:={seven}",
        "-p",
        "inertial_sensor.topic:=/body/imu",
    ]
    arguments += ["-p", "qos_overrides./body/imu.subscription.reliability:=reliable", "-p", "front_ends:=/one/front"]
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    node = rclpy.create_node("fake_front_end", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    log, said = tmp_path / "said", list[dict[str, str]]()
    with log.open("w") as out:
        command = [sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)
    node.create_subscription(
        DiagnosticStatus,
        "/loftr_back_end/status",
        lambda message: said.append({pair.key: pair.value for pair in message.values}),
        100,
    )
    sensor = node.create_publisher(Imu, "/body/imu", profile(""))
    publishers = {
        Keyframe: node.create_publisher(Keyframe, "/one/front/keyframe", profile("~/keyframe")),
        Odometry: node.create_publisher(Odometry, "/one/front/odometry", profile("~/odometry")),
    }

    def until(condition: Any, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and process.poll() is None, (log.read_text(), said[-1:])
            executor.spin_once(timeout_sec=0.02)

    try:
        until(lambda: all(each.get_subscription_count() for each in (sensor, *publishers.values())))
        front_end, number = MonoFrontEnd(), 0
        samples = front_end.carried.samples(46)
        kept = list(zip(samples._stamps, samples._samples, strict=True))
        for k in range(45):  # up to 40, the clocks' offset may have to become known first
            while number < len(kept) and kept[number][0] < (k + 1.2) * 500_000_000:
                stamp, values = kept[number]
                message = Imu()
                message.header.frame_id = "body"
                if stamp >= 0:
                    message.header.stamp = to_time(stamp)
                    turned, pushed = message.angular_velocity, message.linear_acceleration
                    turned.x, turned.y, turned.z, pushed.x, pushed.y, pushed.z = values
                    sensor.publish(message)
                number += 1
            time.sleep(0.15)  # as they come in time: no more than 1000 wait
            for each in front_end.messages(k):
                publishers[type(each)].publish(each)
        until(lambda: said and said[-1].get("scale known") == "True")
        assert "metres by" in said[-1]["inertial sensor of one"] and said[-1]["messages dropped"] == "0"
        assert len(said[-1]["direction of gravity in the map"].split()) == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
