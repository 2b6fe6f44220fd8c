"""Another odometry: interpolated, checked by matched motions, and found out where it is wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_world import WorldMatcher, frame, walk
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from loftr_ros.frontend.agreement import SensorState
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.wheel_odometry import WheelOdometry
from loftr_ros.geometry.se3 import between
from loftr_ros.geometry.two_view import PoseStatus
from loftr_ros.settings import with_values

Array = NDArray[np.float64]
PERIOD = 20_000_000  # ns
SMALL = np.diag([1e-4] * 3 + [1e-6] * 3)
MOUNT = np.eye(4)
MOUNT[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
MOUNT[:3, 3] = [0.2, 0.0, 0.5]


def drive(seconds: float) -> tuple[list[int], list[Array]]:
    """Stamps, and T_odom_base of a robot that drives through bends at up to 0.8 m/s."""
    stamps = list(range(0, int(seconds * 1e9) + 1, PERIOD))
    poses, heading, place = [], 0.0, np.zeros(2)
    for stamp in stamps:
        t = stamp / 1e9
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("z", heading).as_matrix()
        pose[:2, 3] = place
        poses.append(pose)
        heading += 0.8 * np.sin(1.1 * t) * PERIOD / 1e9
        place = place + 0.6 * (1 + 0.3 * np.sin(0.7 * t)) * PERIOD / 1e9 * np.array([np.cos(heading), np.sin(heading)])
    return stamps, poses


def compared(
    odometry: WheelOdometry, stamps: list[int], given: list[Array], true: list[Array], every: int = 10
) -> list[bool | None]:
    """Add the given poses, and compare with the true motions of the camera."""
    said = []
    for k, stamp in enumerate(stamps):
        odometry.add(stamp, given[k])
        if k >= every and k % every == 0:
            moved = between(true[k - every] @ MOUNT, true[k] @ MOUNT)
            said.append(odometry.matched(stamps[k - every], stamp, moved, SMALL, True))
    return said


def test_the_camera_s_motion_between_any_two_times_is_interpolated() -> None:
    stamps, poses = drive(4)
    odometry = WheelOdometry(base_from_camera=MOUNT)
    assert all(compared(odometry, stamps, poses, poses))
    for start, end in ((50, 57), (10, 190)):
        motion = odometry.motion_between(stamps[start] + PERIOD // 2, stamps[end])
        assert motion is not None
        half = between(poses[start] @ MOUNT, poses[start + 1] @ MOUNT)[:3, 3] / 2
        true = between(poses[start] @ MOUNT, poses[end] @ MOUNT)[:3, 3] - half
        assert motion.pose[:3, 3] == pytest.approx(true, abs=0.01 * (end - start) / 7)
        assert 0 < motion.step_std < 0.35


def test_nothing_is_given_before_it_was_compared_where_poses_are_missing_and_of_the_future() -> None:
    stamps, poses = drive(3)
    odometry = WheelOdometry(base_from_camera=MOUNT)
    for stamp, pose in zip(stamps, poses, strict=True):
        odometry.add(stamp, pose)
    assert odometry.motion_between(stamps[10], stamps[50]) is None
    compared(odometry, stamps, poses, poses)
    gap = WheelOdometry(base_from_camera=MOUNT)
    kept = [k for k in range(len(stamps)) if not 60 < k < 80]
    compared(gap, [stamps[k] for k in kept], [poses[k] for k in kept], [poses[k] for k in kept])
    assert gap.motion_between(stamps[50], stamps[90]) is None
    assert gap.motion_between(stamps[85], stamps[90]) is not None
    assert gap.motion_between(stamps[90], stamps[-1] + 40_000_000) is not None, "a little beyond the newest"
    assert gap.motion_between(stamps[90], stamps[-1] + 200_000_000) is None


def test_one_that_is_stuck_does_not_become_trusted_by_a_camera_that_stands_still() -> None:
    stamps, poses = drive(3)
    odometry = WheelOdometry(base_from_camera=MOUNT)
    compared(odometry, stamps, [poses[0]] * len(stamps), [poses[0]] * len(stamps))
    assert odometry.state is SensorState.UNCHECKED
    later = [stamp + stamps[-1] + PERIOD for stamp in stamps]
    compared(odometry, later, [poses[0]] * len(stamps), poses)
    assert odometry.state is SensorState.CONTRADICTS


def late(poses: list[Array]) -> list[Array]:
    return [poses[0]] * 15 + poses[:-15]


def stuck(poses: list[Array]) -> list[Array]:
    return poses[:75] + [poses[75]] * (len(poses) - 75)


def faster(poses: list[Array]) -> list[Array]:
    far = [pose.copy() for pose in poses]
    for pose in far:
        pose[:3, 3] *= 3
    return far


@pytest.mark.parametrize("wrong", [late, stuck, faster])
def test_one_that_goes_wrong_is_found_out_and_is_used_again_when_it_is_right(
    wrong: Callable[[list[Array]], list[Array]],
) -> None:
    stamps, poses = drive(6)
    odometry = WheelOdometry(base_from_camera=MOUNT)
    compared(odometry, stamps, wrong(poses), poses)
    assert odometry.state is SensorState.CONTRADICTS
    assert odometry.motion_between(stamps[-10], stamps[-1]) is None
    later = [stamp + stamps[-1] + PERIOD for stamp in stamps]
    compared(odometry, later, poses, poses)
    assert odometry.state is SensorState.HEALTHY


def test_swapped_axes_are_found_out_and_named_even_of_a_robot_on_a_plane() -> None:
    stamps, poses = drive(6)
    wired = MOUNT.copy()
    wired[:3, :3] = np.eye(3)  # the camera's optical axes were taken for the base's
    odometry = WheelOdometry(base_from_camera=wired)
    compared(odometry, stamps, poses, poses)
    assert odometry.state is SensorState.CONTRADICTS
    assert odometry.mounting() == (
        "x of the camera is -y of the odometry's base, y of the camera is -z of the odometry's base, "
        "z of the camera is x of the odometry's base"
    )


def test_a_jump_and_stamps_that_go_back_are_no_motion() -> None:
    stamps, poses = drive(4)
    odometry = WheelOdometry(base_from_camera=MOUNT)
    compared(odometry, stamps[:100], poses[:100], poses[:100])
    moved = np.eye(4)
    moved[0, 3] = 3.0
    for stamp, pose in zip(stamps[100:], poses[100:], strict=True):
        odometry.add(stamp, moved @ pose)
    assert odometry.jumps == 1 and odometry.motion_between(stamps[90], stamps[120]) is None
    assert odometry.motion_between(stamps[110], stamps[120]) is not None
    odometry.add(stamps[10], poses[10])  # a recording that begins again
    assert odometry.jumps == 2 and odometry.motion_between(stamps[110], stamps[120]) is None
    odometry.add(stamps[11], np.full((4, 4), np.nan))
    odometry.add(stamps[11], np.eye(3))


def test_a_pose_that_contradicts_a_healthy_odometry_is_doubtful_and_no_keyframe() -> None:
    poses = walk(30)
    odometry = WheelOdometry(base_from_camera=np.eye(4))
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "rgbd", "depth.max_depth": 20.0}))
    front_end.use_odometry(odometry)
    seen = [*range(20), 29, 29, 20, 21, 22]  # two frames show another place than where the wheels say the robot is
    true = [*range(20), 20, 20, 20, 21, 22]
    results = []
    for count, (shown, number) in enumerate(zip(seen, true, strict=True)):
        picture = frame(poses, shown, depth=True)
        stamp = 10**9 + count * 10**8
        odometry.add(stamp, poses[number])
        results.append(front_end.process(type(picture)(**{**picture.__dict__, "stamp_ns": stamp})))
    assert odometry.state is SensorState.HEALTHY
    for result in results[20:22]:
        assert result.location is None and not result.events
        assert all(match.pose.status == PoseStatus.DOUBTFUL for match in result.matches)
    assert results[22].location is not None and results[-1].location is not None


if importlib.util.find_spec("rclpy") is not None:

    @pytest.mark.ros
    @pytest.mark.long
    @pytest.mark.parametrize(
        ("mounted", "state"), [([0.0, 0.0, 0.0, 1.0], "HEALTHY"), ([0.5, 0.5, 0.5, 0.5], "CONTRADICTS")]
    )
    def test_the_node_takes_another_odometry_and_the_status_says_how_it_is(
        tmp_path: Path, mounted: list[float], state: str
    ) -> None:
        from geometry_msgs.msg import Point, Pose, Quaternion
        from nav_msgs.msg import Odometry
        from node_process import Client, NodeProcess, camera_info, image_message

        from loftr_ros.worlds.scene import Scene, default_camera, trajectory

        camera, scene = default_camera(320, 240), Scene(3)
        poses = trajectory(90, seed=3)[::6]
        images = [scene.render(camera, pose).image for pose in poses]
        settings = {
            "output.status_period": 0.1,
            "threads": 1,
            "backend": "torch",
            "warm_up_width": 0,
            "odometry.base_from_camera": [0.0, 0.0, 0.0, *mounted],
            "qos_overrides./image.subscription.reliability": "reliable",
            "qos_overrides./prior_odometry.subscription.reliability": "reliable",
        }
        with NodeProcess(tmp_path, settings, autostart=True) as process, Client(process.domain) as client:
            publisher = client.node.create_publisher(Odometry, "/prior_odometry", 10)

            def sent(number: int) -> tuple[object, object]:
                image = image_message(images[number], client.stamp(0.1))
                message = Odometry(child_frame_id="base_link")
                message.header.stamp = image.header.stamp
                x, y, z = poses[number][:3, 3].tolist()
                qx, qy, qz, qw = Rotation.from_matrix(poses[number][:3, :3]).as_quat().tolist()
                message.pose.pose = Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))
                publisher.publish(message)
                return image, camera_info(image, camera.matrix[0, 0])

            process.wait_for("waiting for images")
            client.connect(lambda: sent(0))
            status = None
            for count, number in enumerate([*range(1, len(poses)), *range(len(poses) - 2, -1, -1)] * 3):
                client.process(*sent(number))
                if count % 5 == 4:
                    status = client.status()
                    if status.odometry_prior == state:
                        break
            assert status is not None and status.odometry_prior == state
            assert status.frames_located == status.frames_processed, "the odometry cost frames"
            if state == "CONTRADICTS":
                process.wait_for("the odometry prior contradicts the images")
