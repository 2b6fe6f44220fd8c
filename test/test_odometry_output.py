"""The robot's odometry: mathematics, publishing conditions, and all new outputs over DDS."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import expm, logm
from scipy.spatial.transform import Rotation

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from fakes import camera, texture
from loftr_ros.msg import TrackLinks, Tracks
from nav_msgs.msg import Odometry, Path
from node_process import NAME, Client, NodeProcess, camera_info, image_message, nanoseconds

from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.odometry import Location, origin
from loftr_ros.frontend.results import Orientation
from loftr_ros.frontend.wheel_odometry import WheelOdometry
from loftr_ros.geometry.se3 import from_seven, skew
from loftr_ros.ros.input.wheel_odometry import WheelInput
from loftr_ros.ros.output import camera_mount
from loftr_ros.ros.output.base_motion import (
    Fix,
    base_covariance,
    base_pose,
    base_twist,
    forward_camera,
)
from loftr_ros.ros.output.camera_mount import CameraMount
from loftr_ros.ros.output.odometry import OdometryOutput
from loftr_ros.ros.parameters import OdometryParameters
from loftr_ros.settings import ConfigError
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

AHEAD = (0.0, 0.0, 0.0, -0.5, 0.5, -0.5, 0.5)
SECOND = 1_000_000_000


def pose_of_seven(values: Any) -> NDArray[np.float64]:
    return from_seven(values, "base_from_camera")


def pose(rotation: Any = (0, 0, 0), translation: Any = (0, 0, 0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_rotvec(rotation).as_matrix(), translation
    return matrix


def random_pose(rng: np.random.Generator) -> np.ndarray:
    return pose(rng.normal(size=3), rng.normal(size=3))


def spread(rng: np.random.Generator, size: float = 0.01) -> np.ndarray:
    root = size * rng.normal(size=(6, 6))
    return root @ root.T


def disturbed(matrix: np.ndarray, by: np.ndarray) -> np.ndarray:
    """By the definition of a Location's covariance: translation added, rotation about the outer axes."""
    result = matrix.copy()
    result[:3, :3] = Rotation.from_rotvec(by[3:]).as_matrix() @ matrix[:3, :3]
    result[:3, 3] += by[:3]
    return result


def difference(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    turned = Rotation.from_matrix(after[:3, :3] @ before[:3, :3].T).as_rotvec()
    return np.concatenate([after[:3, 3] - before[:3, 3], turned])


def jacobian(function: Any, step: float = 1e-6) -> np.ndarray:
    """(6, 6) of a function of six numbers, at zero."""
    columns = [(function(step * axis) - function(-step * axis)) / (2 * step) for axis in np.eye(6)]
    return np.stack(columns, axis=1)


# --- mathematics ---


def test_seven_numbers_make_the_transform_that_they_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        turn = Rotation.random(random_state=int(rng.integers(1000)))
        found = pose_of_seven([1.0, -2.0, 3.0, *turn.as_quat()])
        assert found[:3, :3] == pytest.approx(turn.as_matrix())
        assert found[:, 3] == pytest.approx([1, -2, 3, 1])


@pytest.mark.parametrize(
    "numbers", [(1.0, 2.0), (0, 0, 0, 0, 0, 0, 2.0), (1.0, 0, 0, 0, 0, 0, 0), (np.nan, 0, 0, 0, 0, 0, 1)]
)
def test_numbers_that_are_no_transform_are_refused_by_the_parameters_name(numbers: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"base_from_camera (is|has) .*expected"):
        OdometryParameters(base_from_camera=numbers)


def test_a_camera_that_looks_ahead_sees_the_robots_left_at_its_left_and_the_sky_above() -> None:
    turn = forward_camera()[:3, :3]
    right, down, ahead = turn.T
    assert ahead.tolist() == [1, 0, 0] and right.tolist() == [0, -1, 0] and down.tolist() == [0, 0, -1]
    assert pose_of_seven(AHEAD) == pytest.approx(forward_camera())


def test_the_base_begins_in_the_origin_wherever_the_camera_is_mounted() -> None:
    mount = random_pose(np.random.default_rng(1))
    assert base_pose(np.eye(4), mount) == pytest.approx(np.eye(4))


def test_a_camera_that_goes_ahead_and_turns_left_moves_the_base_along_x_and_about_z() -> None:
    ahead = base_pose(pose(translation=(0, 0, 2.0)), forward_camera())
    assert ahead == pytest.approx(pose(translation=(2.0, 0, 0)))
    # A left turn is a negative rotation about the optical y axis, which points down.
    left = base_pose(pose(rotation=(0, -0.3, 0)), forward_camera())
    assert left == pytest.approx(pose(rotation=(0, 0, 0.3)))


def test_a_robot_that_turns_on_the_spot_stays_there_though_its_camera_swings_round() -> None:
    mount = pose_of_seven((0.5, 0.2, 1.0, *AHEAD[3:]))
    turned = pose(rotation=(0, 0, 0.7))
    camera_moved = np.linalg.inv(mount) @ turned @ mount
    assert np.linalg.norm(camera_moved[:3, 3]) > 0.1
    assert base_pose(camera_moved, mount) == pytest.approx(turned)


def test_the_bases_covariance_is_that_of_disturbed_camera_poses() -> None:
    rng = np.random.default_rng(2)
    for _ in range(5):
        mount, camera_pose, covariance = random_pose(rng), random_pose(rng), spread(rng)
        base = base_pose(camera_pose, mount)
        change = jacobian(lambda by, c=camera_pose, m=mount, b=base: difference(base_pose(disturbed(c, by), m), b))
        assert base_covariance(covariance, base, mount) == pytest.approx(change @ covariance @ change.T, abs=1e-9)


def test_the_bases_covariance_is_the_scatter_of_many_bases() -> None:
    rng = np.random.default_rng(3)
    mount, camera_pose, covariance = random_pose(rng), random_pose(rng), spread(rng)
    base = base_pose(camera_pose, mount)
    errors = rng.multivariate_normal(np.zeros(6), covariance, 4000)
    scatter = np.cov(np.array([difference(base_pose(disturbed(camera_pose, e), mount), base) for e in errors]).T)
    scale = np.sqrt(np.outer(np.diag(scatter), np.diag(scatter)))
    assert np.abs(base_covariance(covariance, base, mount) - scatter).max() < 0.1 * scale.max()


def fix(stamp: float, matrix: np.ndarray, start: Location | None = None, **fields: Any) -> Fix:
    location = Location(matrix, fields.pop("covariance", np.zeros((6, 6))), True, **fields)
    return Fix(round(stamp * SECOND), location, start or origin(True))


def test_the_twist_is_the_steady_motion_whose_exponential_leads_from_one_pose_to_the_next() -> None:
    rng = np.random.default_rng(4)
    for size in (1e-7, 1e-3, 0.5, 2.0):
        mount, first = random_pose(rng), random_pose(rng)
        velocity, rate = rng.normal(size=3), size * rng.normal(size=3)
        rate *= min(1.0, 3.0 / np.linalg.norm(rate))
        motion = np.zeros((4, 4))
        motion[:3, :3], motion[:3, 3] = skew(rate), velocity
        second = np.linalg.inv(mount) @ base_pose(first, mount) @ expm(0.5 * motion) @ mount
        found = base_twist(fix(1.0, first), fix(1.5, second), mount)
        assert found.linear == pytest.approx(velocity, abs=1e-6)
        assert found.angular == pytest.approx(rate, abs=1e-6)


def test_a_robot_on_a_circle_goes_straight_ahead_in_its_own_axes() -> None:
    radius, angle = 2.0, 0.2
    arc = pose((0, 0, angle), (radius * np.sin(angle), radius * (1 - np.cos(angle)), 0))
    mount = forward_camera()
    found = base_twist(fix(0.0, np.eye(4)), fix(0.1, np.linalg.inv(mount) @ arc @ mount), mount)
    assert found.linear == pytest.approx([radius * angle / 0.1, 0, 0], abs=1e-9)
    assert found.angular == pytest.approx([0, 0, angle / 0.1])


def test_the_twists_covariance_is_the_scatter_of_two_frames_of_one_keyframe_whatever_the_keyframes_own() -> None:
    rng = np.random.default_rng(5)
    mount = random_pose(rng)
    start = Location(random_pose(rng), spread(rng, 0.3), True)
    steps = [pose(rng.normal(size=3), 0.5 * rng.normal(size=3)) for _ in range(2)]
    steps[1] = steps[0] @ pose(0.02 * rng.normal(size=3), 0.02 * rng.normal(size=3))
    spreads = [spread(rng, 0.001) for _ in range(2)]
    first, second = (
        Fix(SECOND * (i + 1) // 2, start.moved(step, each), start)
        for i, (step, each) in enumerate(zip(steps, spreads, strict=True))
    )
    found = base_twist(first, second, mount)
    twists = []
    for _ in range(4000):
        keyframe = disturbed(start.pose, rng.multivariate_normal(np.zeros(6), start.covariance))
        bases = [
            base_pose(keyframe @ disturbed(step, rng.multivariate_normal(np.zeros(6), each)), mount)
            for step, each in zip(steps, spreads, strict=True)
        ]
        motion = np.linalg.inv(bases[0]) @ bases[1]
        turned = Rotation.from_matrix(motion[:3, :3])
        twists.append(np.concatenate([motion[:3, 3], turned.as_rotvec()]) / 0.5)
    scatter = np.cov(np.array(twists).T)
    scale = np.sqrt(np.outer(np.diag(scatter), np.diag(scatter)))
    assert np.abs(found.covariance - scatter).max() < 0.1 * scale.max()


def test_after_a_keyframe_the_twist_is_as_uncertain_as_the_step_from_it_alone() -> None:
    rng = np.random.default_rng(6)
    keyframe = Location(random_pose(rng), spread(rng, 1.0), True)
    small = spread(rng, 0.001)
    now = Fix(SECOND, keyframe.moved(pose(translation=(0.1, 0, 0)), small), keyframe)
    # The unit's drift is stored in the keyframe's location, so it is another object than the frame's.
    before = Fix(0, Location(keyframe.pose, keyframe.covariance, True, 0.5), origin(True))
    found = base_twist(before, now, np.eye(4))
    turn = np.kron(np.eye(2), now.location.pose[:3, :3].T @ keyframe.pose[:3, :3])
    assert found.covariance == pytest.approx(turn @ small @ turn.T, abs=1e-9)


def test_between_two_keyframes_the_twists_covariance_is_the_sum_of_both_poses() -> None:
    rng = np.random.default_rng(7)
    one, other = (Location(random_pose(rng), spread(rng), True) for _ in range(2))
    before = Fix(0, one.moved(random_pose(rng), spread(rng)), one)
    now = Fix(SECOND // 2, other.moved(random_pose(rng), spread(rng)), other)
    axes = np.kron(np.eye(2), now.location.pose[:3, :3])
    both = (before.location.covariance + now.location.covariance) / 0.25
    assert base_twist(before, now, np.eye(4)).covariance == pytest.approx(axes.T @ both @ axes)


@pytest.mark.parametrize(("stamp", "segment"), [(1.0, 0), (0.5, 0), (1.1, 1)])
def test_where_nothing_leads_from_one_place_to_the_next_the_twist_is_zero_and_unknown(
    stamp: float, segment: int
) -> None:
    found = base_twist(fix(1.0, np.eye(4)), fix(stamp, pose((0, 0, 1), (1, 1, 1)), segment=segment), np.eye(4))
    assert not found.linear.any() and not found.angular.any()
    assert np.array_equal(found.covariance, 1e6 * np.eye(6))


# --- what is published when ---


class FakeNode:
    """Creates publishers that record their messages, and logs into a list."""

    def __init__(self) -> None:
        self.sent: dict[str, list[Any]] = {}
        self.logged: list[str] = []
        self.looking = 1

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(info=self.logged.append, warning=self.logged.append)

    def publisher(self, kind: type, topic: str) -> SimpleNamespace:
        sent = self.sent.setdefault(topic, [])
        return SimpleNamespace(publish=sent.append, get_subscription_count=lambda: self.looking)


def output(node: FakeNode, **parameters: Any) -> OdometryOutput:
    return OdometryOutput(node, OdometryParameters(**{"base_from_camera": AHEAD} | parameters), node.publisher)


def found(stamp: float, matrix: np.ndarray | None, segment: int = 0, first: bool = False, eye: Any = camera) -> Any:
    """The front end's result for a frame; `first` for one without a predecessor."""
    frame = Frame(texture(24, 32), round(stamp * SECOND), "cam", eye())
    start = origin(True, segment)
    location = None if matrix is None else Location(matrix, 0.01 * np.eye(6), True, 0.0, segment)
    keyframe = SimpleNamespace(frame=frame if first else None, location=start)
    event = SimpleNamespace(added=True, keyframe=keyframe)
    return SimpleNamespace(
        frame=frame,
        location=None if first else location,
        matches=() if first else (SimpleNamespace(keyframe=keyframe),),
        events=(event,) if first else (),
        orientation=None,
    )


def test_odometry_is_of_the_base_in_odom_with_the_images_stamp() -> None:
    node = FakeNode()
    each = output(node, odom_frame="map", base_frame="body")
    each.publish(found(10.0, None, first=True))
    each.publish(found(10.5, pose((0, -0.4, 0), (0, 0, 1.0))))
    first, second = node.sent["~/odometry"]
    assert isinstance(first, Odometry)
    assert first.pose.pose.position.x == 0 and first.pose.pose.orientation.w == 1
    assert (second.header.frame_id, second.child_frame_id) == ("map", "body")
    assert (second.header.stamp.sec, second.header.stamp.nanosec) == (10, SECOND // 2)
    at, turn = second.pose.pose.position, second.pose.pose.orientation
    assert [at.x, at.y, at.z] == pytest.approx([1, 0, 0])
    assert Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_rotvec() == pytest.approx([0, 0, 0.4])
    assert np.diag(second.pose.covariance.reshape(6, 6)) == pytest.approx([0.01] * 6)
    motion = logm(pose((0, 0, 0.4), (1.0, 0, 0))).real
    speed, rate = second.twist.twist.linear, second.twist.twist.angular
    assert [speed.x, speed.y, speed.z] == pytest.approx(motion[:3, 3] / 0.5)
    assert [rate.x, rate.y, rate.z] == pytest.approx([0, 0, 0.8])
    assert first.twist.covariance[0] == 1e6 and second.twist.covariance[0] < 1


def test_no_odometry_is_called_exact_neither_the_first_one_nor_that_of_a_camera_that_stands_still() -> None:
    node = FakeNode()
    each = output(node)
    for _ in range(2):
        each.publish(found(10.0, None, first=True))
        still = found(10.5, pose())
        still.location = still.matches[0].keyframe.location
        each.publish(still)
        each.restart()
    assert len(node.sent["~/odometry"]) == 4
    for message in node.sent["~/odometry"]:
        for part in (message.pose, message.twist):
            assert np.linalg.eigvalsh(part.covariance.reshape(6, 6))[0] >= 0.9e-9


def test_a_frame_whose_place_is_not_known_gets_no_odometry() -> None:
    node = FakeNode()
    each = output(node)
    each.publish(found(1.0, None))
    each.publish(found(1.1, None, first=True, eye=lambda: None))  # where it begins, though no camera is known
    assert node.sent["~/odometry"] == []


def test_while_nothing_matches_the_orientation_goes_on_and_the_position_is_said_to_be_unknown() -> None:
    node = FakeNode()
    each = output(node)
    each.publish(found(1.0, pose((0, -0.2, 0), (0, 0, 1.0))))
    dark = found(1.5, None)
    each.publish(dark)  # nothing knows the orientation
    for seconds, turn, std in ((2.0, 0.4, 0.01), (3.0, 0.9, 0.03)):
        dark = found(seconds, None)
        axes = Rotation.from_rotvec([0, -turn, 0]).as_matrix()
        dark.orientation = Orientation(axes, np.diag([1.0, 4.0, 1.0]) * std**2, 0)
        each.publish(dark)
    assert len(node.sent["~/odometry"]) == 1, "a frozen position must not look like one that was measured"
    first, second = node.sent["~/orientation"]
    assert (first.header.frame_id, first.header.stamp.sec) == ("odom", 2)
    turn = second.pose.pose.orientation
    assert Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_rotvec() == pytest.approx([0, 0, 0.9])
    variances = [np.diag(each.pose.covariance.reshape(6, 6)) for each in (first, second)]
    assert variances[1] == pytest.approx([1e6] * 3 + [0.03**2] * 2 + [4 * 0.03**2])
    assert (variances[1][3:] > variances[0][3:]).all()
    assert second.pose.pose.position.x == pytest.approx(1)
    other = found(4.0, None)
    other.orientation = Orientation(np.eye(3), 1e-4 * np.eye(3), 1)
    each.publish(other)  # of another segment than the last place
    assert len(node.sent["~/orientation"]) == 2


def test_nothing_is_published_while_nobody_looks_but_the_path_remembers() -> None:
    node = FakeNode()
    each = output(node)
    node.looking = 0
    for number in range(3):
        each.publish(found(number, pose(translation=(0, 0, number))))
        each.publish_path()
    assert node.sent == {"~/odometry": [], "~/path": [], "~/orientation": []}
    node.looking = 1
    each.publish_path()
    (path,) = node.sent["~/path"]
    assert isinstance(path, Path) and path.header.frame_id == "odom" and path.header.stamp.sec == 2
    assert [p.pose.position.x for p in path.poses] == pytest.approx([0, 1, 2])
    assert [p.header.stamp.sec for p in path.poses] == [0, 1, 2]


def test_the_path_holds_no_more_poses_than_asked_for() -> None:
    node = FakeNode()
    each, none = output(node, path_length=2), output(node, path_length=0)
    for number in range(4):
        each.publish(found(number, pose(translation=(0, 0, number))))
        none.publish(found(number, pose()))
    none.publish_path()
    assert node.sent["~/path"] == []
    each.publish_path()
    assert [p.pose.position.x for p in node.sent["~/path"][0].poses] == pytest.approx([2, 3])


def test_a_broken_trajectory_is_told_once_and_its_place_is_said_to_be_unknown() -> None:
    node = FakeNode()
    each = output(node)
    each.publish(found(1.0, pose()))
    for number in range(3):
        each.publish(found(1.1 + number / 10, pose(), segment=1))
    each.publish(found(1.5, pose(), segment=2))
    assert len([line for line in node.logged if "begins at 1.100 s" in line]) == len(node.logged) == 1
    variances = [message.pose.covariance[0] for message in node.sent["~/odometry"]]
    assert variances[0] < 1 and all(variance > 1e6 - 1 for variance in variances[1:])
    twists = [message.twist.covariance[0] for message in node.sent["~/odometry"]]
    assert [twist > 1e5 for twist in twists] == [True, True, False, False, True]


def test_a_reset_begins_anew_in_the_origin_without_a_word_of_a_break() -> None:
    node = FakeNode()
    each = output(node)
    each.publish(found(1.0, pose(translation=(0, 0, 5))))
    each.restart()
    each.publish(found(2.0, None, segment=1, first=True))
    each.publish_path()
    assert node.logged == []
    assert node.sent["~/odometry"][-1].pose.covariance[0] < 1
    assert len(node.sent["~/path"][0].poses) == 1


def test_tf_says_the_same_as_odometry_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tf2_msgs.msg")
    module.TFMessage = lambda transforms: SimpleNamespace(transforms=transforms)
    monkeypatch.setitem(sys.modules, "tf2_msgs", ModuleType("tf2_msgs"))
    monkeypatch.setitem(sys.modules, "tf2_msgs.msg", module)
    node = FakeNode()
    output(node).publish(found(1.0, pose()))
    assert "/tf" not in node.sent
    each = output(node, publish_tf=True)
    node.looking = 0
    each.publish(found(3.0, pose((0.1, 0.2, 0.3), (1, 2, 3))))
    node.looking = 1
    each.publish(found(3.0, pose((0.1, 0.2, 0.3), (1, 2, 3))))
    assert len(node.sent["/tf"]) == 2
    (sent,) = node.sent["/tf"][0].transforms
    same = node.sent["~/odometry"][-1]
    assert (sent.header, sent.child_frame_id) == (same.header, "base_link")
    at, expected = sent.transform.translation, same.pose.pose.position
    assert (at.x, at.y, at.z) == (expected.x, expected.y, expected.z)
    assert sent.transform.rotation == same.pose.pose.orientation


def test_tf_without_its_messages_is_refused_with_the_parameters_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2_msgs", None)
    monkeypatch.setitem(sys.modules, "tf2_msgs.msg", None)
    with pytest.raises(ConfigError, match=r"odometry\.publish_tf is true, but tf2_msgs is not installed"):
        output(FakeNode(), publish_tf=True)


def test_a_stereo_walks_odometry_is_the_robots_true_motion_within_what_it_states() -> None:
    from made_world import WorldMatcher, frame, walk

    from loftr_ros.frontend.config import FrontEndConfig
    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.settings import with_values

    mount, node, walked = (0.4, -0.1, 0.6, *AHEAD[3:]), FakeNode(), walk(30)
    # The synthetic world's calibration is exact, and its matches share no error.
    shared = ("focal_std", "centre_std", "match_bias", "depth_scale_std")
    settings = {"mode": "stereo"} | {f"geometry.{name}": 0.0 for name in shared}
    front_end = FrontEnd(WorldMatcher(walked), with_values(FrontEndConfig(), settings))
    each = output(node, base_from_camera=mount)
    for number in range(len(walked)):
        each.publish(front_end.process(frame(walked, number, right=True)))
    begin, matrix = np.linalg.inv(walked[0]), pose_of_seven(mount)
    bases = [base_pose(begin @ camera_pose, matrix) for camera_pose in walked]
    sent = node.sent["~/odometry"]
    assert len(sent) == len(walked)
    poses, twists = [], []
    for before, true, message in zip(bases[:-1], bases[1:], sent[1:], strict=True):
        at, turn = message.pose.pose.position, message.pose.pose.orientation
        measured = np.eye(4)
        measured[:3, :3] = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_matrix()
        measured[:3, 3] = at.x, at.y, at.z
        off = difference(measured, true)
        poses.append(off @ np.linalg.solve(message.pose.covariance.reshape(6, 6), off))
        assert np.linalg.norm(off[:3]) < 0.02
        step = np.linalg.inv(before) @ true
        motion = np.array(logm(step)).real / 0.1
        linear, angular = message.twist.twist.linear, message.twist.twist.angular
        found_twist = [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]
        wrong = found_twist - np.array([*motion[:3, 3], motion[2, 1], motion[0, 2], motion[1, 0]])
        twists.append(wrong @ np.linalg.solve(message.twist.covariance.reshape(6, 6), wrong))
    # Squared errors in units of the stated covariance: 6 on average for six numbers, if that is right.
    assert np.median(poses) < 20
    assert 0.5 < np.median(twists) < 9


def test_poses_of_the_time_in_which_tf_is_asked_are_published_late_in_order_and_with_their_own_stamps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mounts: list[Any] = [None, None, None, forward_camera(), forward_camera()]
    monkeypatch.setattr(CameraMount, "of", lambda self, frame_id: mounts.pop(0))
    node = FakeNode()
    each = output(node)
    each.publish(found(10.0, None, first=True))
    for number in range(1, 5):
        if number <= 2:
            assert node.sent["~/odometry"] == []
        each.publish(found(10.0 + number / 10, pose(translation=(0, 0, number))))
    sent = node.sent["~/odometry"]
    assert [message.header.stamp.nanosec // 10**8 for message in sent] == [0, 1, 2, 3, 4]
    assert [message.pose.pose.position.x for message in sent] == pytest.approx([0, 1, 2, 3, 4])
    assert [message.twist.twist.linear.x for message in sent[1:]] == pytest.approx([10] * 4)
    each.publish_path()
    assert len(node.sent["~/path"][0].poses) == 5


# --- where the camera is mounted ---


class FakeTf:
    """Replaces tf2_ros: knows a transform, or not yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[tuple[str, str], tuple[float, ...]] = {}
        self.listeners, self.stamp = 0, 0
        module = ModuleType("tf2_ros")
        module.__spec__ = SimpleNamespace()
        module.TransformException = LookupError
        module.Buffer = lambda: SimpleNamespace(lookup_transform=self._look_up)
        module.TransformListener = self._listen
        monkeypatch.setitem(sys.modules, "tf2_ros", module)

    def _listen(self, buffer: object, node: object) -> SimpleNamespace:
        self.listeners += 1

        def unregister() -> None:
            self.listeners -= 1

        return SimpleNamespace(unregister=unregister)

    def _look_up(self, target: str, source: str, time: object) -> SimpleNamespace:
        if (target, source) not in self.known:
            raise LookupError("two unconnected trees")
        x, y, z, *turn = self.known[target, source]
        at = SimpleNamespace(x=x, y=y, z=z)
        rotation = SimpleNamespace(**dict(zip("xyzw", turn, strict=True)))
        header = SimpleNamespace(stamp=SimpleNamespace(sec=self.stamp // SECOND, nanosec=self.stamp % SECOND))
        return SimpleNamespace(header=header, transform=SimpleNamespace(translation=at, rotation=rotation))


def test_tf_is_asked_until_it_knows_and_then_no_longer_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    tf, node = FakeTf(monkeypatch), FakeNode()
    mount = CameraMount(node, OdometryParameters(base_frame="body"))
    assert tf.listeners == 1
    assert mount.of("cam") is None
    tf.known["body", "cam"] = (0.1, 0.2, 0.3, *AHEAD[3:])
    expected = pose_of_seven(tf.known["body", "cam"])
    assert mount.of("cam") == pytest.approx(expected)
    assert tf.listeners == 0
    tf.known.clear()
    assert mount.of("cam") == pytest.approx(expected)
    assert node.logged == []


def test_each_of_two_cameras_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tf = FakeTf(monkeypatch)
    mount = CameraMount(FakeNode(), OdometryParameters())
    tf.known["base_link", "one"], tf.known["base_link", "two"] = AHEAD, (1.0, *AHEAD[1:])
    assert [mount.of(name)[0, 3] for name in ("one", "two", "one")] == [0, 1, 0]
    assert tf.listeners == 0


def test_odometry_waits_for_tf_and_takes_the_camera_to_look_ahead_where_none_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeTf(monkeypatch)
    node = FakeNode()
    each = output(node, base_from_camera=(0.0,) * 7)
    each.publish(found(1.0, pose()))
    assert node.sent["~/odometry"] == [] and node.logged == []
    monkeypatch.setattr(camera_mount, "PATIENCE", 0.0)
    late = output(node, base_from_camera=(0.0,) * 7)
    late.publish(found(1.0, pose(translation=(0, 0, 1))))
    assert node.sent["~/odometry"][-1].pose.pose.position.x == pytest.approx(1)
    assert len(node.logged) == 1 and "two unconnected trees" in node.logged[0]


def test_a_given_transform_is_taken_and_tf_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tf = FakeTf(monkeypatch)
    mount = CameraMount(FakeNode(), OdometryParameters(base_from_camera=(1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 1.0)))
    assert tf.listeners == 0
    assert mount.of("cam")[:3, 3].tolist() == [1, 2, 3]


def test_without_tf2_the_camera_looks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    node = FakeNode()
    assert CameraMount(node, OdometryParameters()).of("cam") == pytest.approx(forward_camera())
    assert len(node.logged) == 1


# --- over DDS ---


@pytest.mark.ros
def test_tracks_links_odometry_path_and_transform_of_a_rendered_walk_come_over_dds(tmp_path) -> None:
    eye, scene = default_camera(640, 480), Scene(3)
    focal = float(eye.matrix[0, 0])
    images = [scene.render(eye, at, supersample=1).image for at in trajectory(80, seed=3)[:36:3]]
    has_tf = importlib.util.find_spec("tf2_msgs") is not None
    parameters = {
        "threads": 1,
        "backend": "torch",
        "output.status_period": 0.1,
        "odometry.publish_tf": has_tf,
        "odometry.base_from_camera": list(AHEAD),
        "odometry.path_length": 5,
    }
    with NodeProcess(tmp_path, parameters) as process, Client(process.domain) as client:
        kinds = {"tracks": Tracks, "track_links": TrackLinks, "odometry": Odometry, "path": Path}
        got: dict[str, list[Any]] = {name: [] for name in (*kinds, "tf")}
        for name, kind in kinds.items():
            client._collect(kind, f"{NAME}/{name}", got[name])
        if has_tf:
            from tf2_msgs.msg import TFMessage

            client._collect(TFMessage, "/tf", got["tf"])
        assert client.transition("configure", "activate"), process.said

        def message(number: int) -> tuple[Any, Any]:
            image = image_message(images[number], client.stamp())
            return image, camera_info(image, focal)

        client.connect(lambda: message(0))
        stamps = [client.process(*message(number)) for number in range(1, 8)]
        assert client.trigger("force_keyframe").success
        stamps += [client.process(*message(number)) for number in range(8, len(images))]
        last = stamps[-1]
        for name in ("tracks", "odometry", "path"):
            client.wait(
                lambda name=name: [m for m in got[name] if nanoseconds(m.header.stamp) == last], f"~/{name} of the last"
            )

        tracks = {nanoseconds(message.header.stamp): message for message in got["tracks"]}
        for stamp in stamps:
            pose_of, each = client.poses_of(stamp)[0], tracks[stamp]
            count = pose_of.num_inliers
            assert each.keyframe_id == pose_of.keyframe_id and each.header.frame_id == "camera"
            assert 100 < len(each.track_id) == len(each.landmark_id) == len(each.std) == len(each.ray_std) <= count
            assert len(each.track_id) > 0.85 * count, "more have too few neighbours, as sparse ones of optical flow"
            pixels = np.asarray(each.pixels).reshape(-1, 2)
            assert np.asarray(each.rays).reshape(-1, 2) == pytest.approx((pixels - [319.5, 239.5]) / focal, abs=1e-5)

        link = client.wait(lambda: got["track_links"], "links to the keyframe that was forced")[-1]
        before, after = tracks[nanoseconds(link.header.stamp)], tracks[last]
        assert (before.keyframe_id, after.keyframe_id) == (link.old_keyframe_id, link.new_keyframe_id)
        assert len(link.old_track_id) == len(link.new_track_id) == len(link.distance) > 20
        names = dict(zip(before.track_id, before.landmark_id, strict=True))
        linked = {new: names[old] for old, new in zip(link.old_track_id, link.new_track_id, strict=True)}
        later = dict(zip(after.track_id, after.landmark_id, strict=True))
        lasting = [later[track] for track in later if track in linked]
        assert lasting == [linked[track] for track in later if track in linked] and len(lasting) > 10

        odometry = got["odometry"][-1]
        assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", "base_link")
        at = odometry.pose.pose.position
        assert 0 < np.linalg.norm([at.x, at.y, at.z]) < 1000
        covariance = odometry.pose.covariance.reshape(6, 6)
        assert np.linalg.eigvalsh(covariance).min() > 0 and covariance[0, 0] < 1e6
        assert odometry.twist.covariance[0] < 1e6
        path = got["path"][-1]
        assert [nanoseconds(p.header.stamp) for p in path.poses] == stamps[-5:]
        assert path.poses[-1].pose == odometry.pose.pose
        if has_tf:
            sent = client.wait(lambda: [m for m in got["tf"] if m.transforms[0].header == odometry.header], "/tf")
            assert sent[0].transforms[0].child_frame_id == "base_link"

        status = client.status(lambda s: s.frames_processed >= len(images) and s.segment == 0)
        assert (status.mode, status.scale_known) == ("mono", False)
        assert status.path_length > 0 and status.keyframe_depth_cells > 30 and status.scale_std >= 0
        assert client.trigger("reset").success
        stamp = client.process(*message(0))
        first = client.wait(lambda: [m for m in got["odometry"] if nanoseconds(m.header.stamp) == stamp], "a new begin")
        assert first[0].pose.pose.position.x == 0
        assert "broken" not in process.said


# --- another odometry on tf ---


def test_another_odometry_is_read_from_tf_and_a_missing_frame_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tf, node, timers = FakeTf(monkeypatch), FakeNode(), []
    node.create_subscription = lambda *_, **__: None
    node.create_timer = lambda period, callback, clock: timers.append(callback)
    node.destroy_subscription = node.destroy_timer = lambda _: None
    wheel = WheelOdometry()
    each = WheelInput(
        node, OdometryParameters(base_from_camera=AHEAD, prior_frame="odom_wheels"), wheel, lambda: "camera"
    )
    (look_up,) = timers
    for _ in range(3):
        look_up()
    assert each.state == "" and len(node.logged) == 1 and "to odom_wheels (odometry.prior_frame)" in node.logged[0]
    camera_in_base, true = pose_of_seven(AHEAD), []
    for number in range(40):
        turned = Rotation.from_rotvec([0, 0, 0.03 * number]).as_quat().tolist()
        tf.stamp = 10 * SECOND + number * SECOND // 20
        tf.known["odom_wheels", "base_link"] = (0.05 * number, 0.0, 0.0, *turned)
        look_up()
        look_up()  # the same transform again
        true.append((tf.stamp, pose_of_seven(tf.known["odom_wheels", "base_link"]) @ camera_in_base))
        if number >= 4:
            (before, first), (now, second) = true[-5], true[-1]
            wheel.matched(before, now, np.linalg.inv(first) @ second, 1e-6 * np.eye(6), True)
    assert each.state == "HEALTHY"
    motion = wheel.motion_between(true[10][0], true[30][0])
    assert motion is not None and motion.pose == pytest.approx(np.linalg.inv(true[10][1]) @ true[30][1], abs=1e-9)
    each.close()
    assert tf.listeners == 0


def test_the_node_s_own_frame_is_refused_as_another_odometry() -> None:
    with pytest.raises(ConfigError, match="which this node publishes itself"):
        OdometryParameters(publish_tf=True, odom_frame="odom", prior_frame="odom")
