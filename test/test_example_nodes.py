"""The examples that need ROS: the bridge to VINS, and what the launch files include."""

from __future__ import annotations

import ast
import runpy
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import launch_stand_in
import numpy as np
import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("rclpy")
    module = ModuleType("vins_bridge")
    vars(module).update(runpy.run_path(str(EXAMPLES / "vins_bridge.py")))
    return module


def seen(count: int, shift: float = 0.0, first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """64-bit ids, pixels on a grid of 40 px, and rays of a camera with a focal length of 100 px."""
    ids = np.arange(first, first + count, dtype=np.uint64) + (np.uint64(7) << np.uint64(32))
    grid = np.stack([np.arange(count) % 16, np.arange(count) // 16], axis=1) * 40.0 + 20 + shift
    return ids, grid, (grid - 320) / 100


def test_features_have_small_ids_that_stay_and_the_velocities_of_their_rays(bridge) -> None:
    features = bridge.VinsFeatures()
    assert not len(features.features(1.0, *seen(48))), "without a velocity yet"
    second, third = (features.features(1.0 + 0.1 * k, *seen(48, 2.0 * k)) for k in (1, 2))
    assert len(second) == len(third) == 48
    np.testing.assert_array_equal(second[:, 0], np.arange(48))
    np.testing.assert_array_equal(third[np.argsort(third[:, 0]), 1:5], np.hstack(seen(48, 4.0)[:0:-1])[:, [0, 1, 2, 3]])
    np.testing.assert_allclose(third[:, 5:], 0.2, atol=1e-9)  # 2 px of a focal length of 100 px in 0.1 s
    assert np.float32(second[:, 0]).astype(int).tolist() == second[:, 0].astype(int).tolist()


def test_a_landmark_that_comes_back_within_reach_keeps_its_id_and_later_gets_another(bridge) -> None:
    features = bridge.VinsFeatures()
    for k in range(2):
        features.features(0.1 * k, *seen(16))
    assert not len(features.features(0.2, *seen(0)))
    back = features.features(0.3, *seen(16, 4.0))
    assert sorted(back[:, 0]) == list(range(16))
    np.testing.assert_allclose(back[:, 5:], 0.04 / 0.2)
    for k in (8, 9):
        late = features.features(0.1 * k, *seen(16))
    assert sorted(late[:, 0]) == list(range(16, 32))


def test_no_more_features_come_than_asked_for_one_a_square_and_the_oldest_stay(bridge) -> None:
    features = bridge.VinsFeatures(max_features=40, min_distance=80)
    for k in range(3):
        features.features(0.1 * k, *seen(16 * 12))
    chosen = features.features(0.3, *seen(16 * 12))
    again = features.features(0.4, *seen(16 * 12))
    assert len(chosen) == 40
    squares = {tuple(square) for square in np.floor(chosen[:, 3:5] / 80).astype(int).tolist()}
    assert len(squares) == 40
    np.testing.assert_array_equal(chosen[:, 0], again[:, 0])


def test_a_track_without_a_ray_is_no_feature(bridge) -> None:
    features = bridge.VinsFeatures()
    ids, pixels, rays = seen(16)
    rays[3] = np.nan
    features.features(0.0, ids, pixels, rays)
    assert len(features.features(0.1, ids, pixels, rays)) == 15


def test_the_estimator_begins_anew_after_a_gap_and_after_a_jump_back(bridge) -> None:
    features = bridge.VinsFeatures()
    assert [features.breaks_off(stamp) for stamp in (5.0, 5.1, 6.0, 7.5, 7.6, 3.0, 3.1)] == [
        *(False, False, False, True, False, True, False)
    ]


@pytest.mark.parametrize(("estimator", "names"), [("vins_mono", "id u v x y"), ("vins_fusion", "id cam u v x y 0 0 0")])
def test_a_message_has_the_channels_that_the_estimator_reads_by_their_places(bridge, estimator, names) -> None:
    from builtin_interfaces.msg import Time

    rows = np.arange(14.0).reshape(2, 7)  # id, x, y, u, v, velocities
    message = bridge.to_message(rows, estimator, Time(sec=3, nanosec=5))
    assert (message.header.frame_id, message.header.stamp.sec, message.header.stamp.nanosec) == ("world", 3, 5)
    assert [(p.x, p.y, p.z) for p in message.points] == [(1, 2, 1), (8, 9, 1)]
    columns = {"id": 0, "u": 3, "v": 4, "x": 5, "y": 6}
    expected = [rows[:, columns[name]].tolist() if name in columns else [0, 0] for name in names.split()]
    assert [list(channel.values) for channel in message.channels] == expected


@pytest.mark.ros
@pytest.mark.usefixtures("ros_domain")
def test_the_node_publishes_features_of_tracks_and_a_restart_over_dds(bridge) -> None:
    import rclpy
    from loftr_ros.msg import Tracks
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import PointCloud
    from std_msgs.msg import Bool

    rclpy.init()
    executor = SingleThreadedExecutor()
    node, other = bridge.VinsBridge(), rclpy.create_node("test")
    clouds: list[Any] = []
    restarts: list[Any] = []
    other.create_subscription(PointCloud, "/feature_tracker/feature", clouds.append, 10)
    other.create_subscription(Bool, "/feature_tracker/restart", restarts.append, 10)
    publisher = other.create_publisher(Tracks, "/loftr_front_end/tracks", 10)
    for each in (node, other):
        executor.add_node(each)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        wait_for(lambda: publisher.get_subscription_count() and other.count_publishers("/feature_tracker/feature"))
        for number, second in enumerate((1.0, 1.1, 1.2, 9.0)):
            ids, pixels, rays = seen(32, 2.0 * number)
            tracks = Tracks(landmark_id=ids.tolist(), pixels=pixels.ravel().tolist(), rays=rays.ravel().tolist())
            tracks.header.stamp.sec, tracks.header.stamp.nanosec = int(second), round(second % 1 * 1e9)
            tracks.header.frame_id = "camera"
            publisher.publish(tracks)
        wait_for(lambda: len(clouds) == 2 and restarts)
        assert [len(cloud.points) for cloud in clouds] == [32, 32] and len(clouds[0].channels) == 5
        assert restarts[0].data is True
    finally:
        executor.shutdown()
        thread.join(10)
        node.destroy_node()
        other.destroy_node()
        rclpy.try_shutdown()


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.ros
def test_an_estimator_that_is_not_known_ends_the_bridge_with_exit_code_2(bridge, capfd) -> None:
    assert bridge.main(["vins_bridge", "--ros-args", "-p", "estimator:=okvis"]) == 2
    assert "expected one of vins_mono, vins_fusion" in capfd.readouterr().err


@pytest.mark.ros
@pytest.mark.usefixtures("ros_domain")
def test_the_consumer_says_how_the_camera_moved_and_where_no_good_pose_came(capfd) -> None:
    rclpy = pytest.importorskip("rclpy")
    from loftr_ros.msg import RelativePose

    rclpy.init()
    try:
        node = runpy.run_path(str(EXAMPLES / "consumer.py"))["Consumer"]()
        good = RelativePose(keyframe_id=3, status=RelativePose.OK, scale_known=True, num_inliers=90, num_matches=100)
        good.pose.pose.position.x = 0.25
        planar = RelativePose(keyframe_id=5, status=RelativePose.PLANAR)
        for message in (good, planar, RelativePose(keyframe_id=4, status=RelativePose.TOO_FEW_MATCHES)):
            node.on_pose(message)
        assert [each.topic_name for each in node.subscriptions] == ["/loftr_front_end/relative_pose"]
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
    said = "".join(capfd.readouterr())
    assert "keyframe 3: moved by +0.250 +0.000 +0.000 m, 90 of 100 matches agree" in said
    assert "keyframe 5: moved by +0.000 +0.000 +0.000 (direction only)" in said
    assert f"keyframe 4: no good pose (status {RelativePose.TOO_FEW_MATCHES})" in said


CAMERAS = {
    "realsense": (
        {"mode": "rgbd", "camera_namespace": "camera", "camera_name": "camera"},
        "/camera/camera/color/image_raw",
        {"depth_image": "/camera/camera/aligned_depth_to_color/image_raw"},
        {"enable_color": "true", "align_depth.enable": "true", "enable_infra1": "false"},
    ),
    "realsense in stereo": (
        {"mode": "stereo", "camera_namespace": "", "camera_name": "eye"},
        "/eye/infra1/image_rect_raw",
        {"right_image": "/eye/infra2/image_rect_raw", "rectified": "true"},
        {"enable_color": "false", "enable_infra1": "true", "enable_infra2": "true"},
    ),
    "zed": (
        {"mode": "stereo", "camera_model": "zed2i", "camera_name": "zed"},
        "/zed/zed_node/left/color/rect/image",
        {"right_image": "/zed/zed_node/right/color/rect/image", "rectified": "true"},
        {"camera_model": "zed2i", "publish_tf": "false"},
    ),
    "zed by its depth": (
        {"mode": "rgbd", "camera_model": "zedx", "camera_name": "front"},
        "/front/zed_node/rgb/color/rect/image",
        {"depth_image": "/front/zed_node/depth/depth_registered"},
        {"camera_name": "front"},
    ),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_a_cameras_launch_file_starts_its_driver_and_the_front_end_on_the_drivers_topics(name, monkeypatch) -> None:
    launch_stand_in.install(monkeypatch)
    arguments, image, front_end, driver = CAMERAS[name]
    file = runpy.run_path(str(EXAMPLES / f"{name.split()[0]}.launch.py"))
    declared = [each for each in file["generate_launch_description"]().args[0] if "description" in each.kwargs]
    assert {each.args[0] for each in declared} == set(arguments)
    (driven, driven_by), (started, started_by) = (included(group) for group in file["start"](arguments))
    assert driven in ("realsense2_camera", "zed_wrapper") and started == "loftr_ros"
    assert driver.items() <= driven_by.items()
    assert {"mode": arguments["mode"], "image": image, **front_end}.items() <= started_by.items()
    assert set(started_by) <= front_end_arguments()
    if "config_file" in driven_by:
        assert yaml.safe_load(Path(driven_by["config_file"]).read_text()) == {"depth_module.emitter_enabled": 0}


def included(group) -> tuple[str, dict[str, str]]:
    """The package whose launch file is included, and its arguments."""
    ((action,),) = group.args
    ((path,), given) = action.args, action.kwargs["launch_arguments"]
    return path.args[0][0].args[0], dict(given)


def front_end_arguments() -> set[str]:
    """The names in ARGUMENTS of front_end.launch.py, which cannot be run without the real launch."""
    text = (EXAMPLES.parent / "launch" / "front_end.launch.py").read_text()
    assigned = (each for each in ast.parse(text).body if isinstance(each, ast.Assign))
    rows = next(each.value for each in assigned if ast.unparse(each.targets[0]) == "ARGUMENTS")
    return {ast.literal_eval(row.elts[0]) for row in rows.elts}


def test_the_filters_parameters_fuse_velocities_of_the_nodes_odometry_and_leave_tf_to_the_filter(monkeypatch) -> None:
    launch_stand_in.install(monkeypatch)
    file = runpy.run_path(str(EXAMPLES / "robot_localization.launch.py"))
    params, front_end, node = file["generate_launch_description"]().args[0]
    assert (node.kwargs["package"], node.kwargs["executable"]) == ("robot_localization", "ekf_node")
    assert node.kwargs["parameters"][0].args == params.args
    assert front_end.args[0].args[0][0].args == ("loftr_ros",)
    values = yaml.safe_load(Path(params.kwargs["default_value"]).read_text())[node.kwargs["name"]]["ros__parameters"]
    assert values["odom0"] == "/loftr_front_end/odometry" and values["publish_tf"] is True
    assert values["odom0_config"] == [False] * 6 + [True] * 6 + [False] * 3
