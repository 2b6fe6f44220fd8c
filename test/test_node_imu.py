"""The node with a gyroscope on `imu`, over DDS: correctly and wrongly mounted."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from node_process import Client, NodeProcess, camera_info, image_message
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Imu

from loftr_ros.worlds.scene import Scene, default_camera, trajectory

pytestmark = pytest.mark.ros
SETTINGS = {
    "output.status_period": 0.1,
    "threads": 1,
    "backend": "torch",
    "warm_up_width": 0,
    "imu.camera_from_imu": [0.0, 0.0, 0.0, 1.0],
    "qos_overrides./image.subscription.reliability": "reliable",
    "qos_overrides./imu.subscription.reliability": "reliable",
}
STEP, SAMPLES = 0.1, 20  # s from frame to frame, and samples in it
BIAS = np.array([0.01, -0.02, 0.015])


def swapped(rate: np.ndarray) -> np.ndarray:
    return rate[[1, 2, 0]]


@pytest.mark.parametrize(
    ("mounted", "state"),
    [
        pytest.param(lambda rate: rate, "HEALTHY", marks=pytest.mark.long, id="as said"),
        pytest.param(swapped, "CONTRADICTS", id="with its axes swapped"),
    ],
)
def test_a_gyroscope_is_compared_with_the_images_and_the_status_says_how_it_is(
    tmp_path: Path, mounted: Callable[[np.ndarray], np.ndarray], state: str
) -> None:
    camera, scene = default_camera(320, 240), Scene(3)
    poses = trajectory(90, seed=3)[::6]
    images = [scene.render(camera, pose).image for pose in poses]
    with NodeProcess(tmp_path, SETTINGS, autostart=True) as process, Client(process.domain) as client:
        samples = client.node.create_publisher(Imu, "/imu", 100)

        def frame(number: int) -> tuple[object, object]:
            image = image_message(images[number], client.stamp(STEP))
            return image, camera_info(image, camera.matrix[0, 0])

        process.wait_for("waiting for images")
        client.connect(lambda: frame(0))
        # Forward and backward, for as many frames as needed.
        numbers = [*range(1, len(poses)), *range(len(poses) - 2, -1, -1)] * 3
        before, status = 0, None
        for count, number in enumerate(numbers):
            turned = Rotation.from_matrix(poses[before][:3, :3].T @ poses[number][:3, :3]).as_rotvec()
            image, info = frame(number)
            end = image.header.stamp.sec * 10**9 + image.header.stamp.nanosec
            for sample in range(SAMPLES + 1):
                stamp = end - round((1 - sample / SAMPLES) * STEP * 1e9) + (sample == 0)
                message = Imu()
                message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
                x, y, z = mounted(turned / STEP) + BIAS
                message.angular_velocity.x, message.angular_velocity.y, message.angular_velocity.z = x, y, z
                samples.publish(message)
            client.process(image, info)
            before = number
            if count % 5 == 4:
                status = client.status()
                if status.gyroscope == state:
                    break
        assert status is not None and status.gyroscope == state
        assert status.frames_located == status.frames_processed, "a gyroscope cost frames"
        if state == "HEALTHY":
            assert 0 < status.gyroscope_bias_std < 0.05
        else:
            process.wait_for("the gyroscope contradicts the images and is not used")
