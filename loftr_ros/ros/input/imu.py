"""Angular velocities from `imu`, and the gyroscope's mounting: from a parameter, or from tf2."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import Imu

from loftr_ros.frontend.agreement import SensorState
from loftr_ros.frontend.gyroscope import Gyroscope
from loftr_ros.geometry.se3 import from_quaternion
from loftr_ros.ros.input.inputs import input_options
from loftr_ros.ros.logs import Warnings
from loftr_ros.ros.output.messages import to_nanoseconds
from loftr_ros.ros.parameters import ImuParameters
from loftr_ros.ros.transforms import NoTransformError, Transforms

# Seconds after the first sample to wait for a transform.
PATIENCE = 5.0
# Samples that may wait: half a second of a fast sensor.
_DEPTH = 100


class ImuInput:
    """Subscribes to `imu`, best effort, and passes the samples to a gyroscope.

    Samples before the mounting is known are kept too, for later integration.
    """

    def __init__(
        self, node: Node, parameters: ImuParameters, gyroscope: Gyroscope, camera_frame: Callable[[], str]
    ) -> None:
        """Subscribe.

        Args:
            node: the owner.
            parameters: of the IMU.
            gyroscope: receives the samples; its mounting is set here.
            camera_frame: optical frame of the images; empty before the first.
        """
        self._node, self._gyroscope = node, gyroscope
        self._camera_frame = camera_frame
        self._warn_once = Warnings(node.get_logger())
        self._heard: float | None = None
        self._transforms: Transforms | None = None
        given = parameters.camera_from_imu
        if any(given):
            gyroscope.camera_from_imu = from_quaternion(np.zeros(3), given)[:3, :3]
        elif gyroscope.camera_from_imu is None:
            self._transforms = Transforms(node, PATIENCE)
        self._subscription = node.create_subscription(
            Imu, "imu", self._on_sample, **input_options(_DEPTH, durability=True)
        )

    @property
    def state(self) -> str:
        """The state for the status message."""
        if self._heard is None:
            return ""
        return self._gyroscope.state.name if time.monotonic() - self._heard < 1 else "SILENT"

    def close(self) -> None:
        """Unsubscribe."""
        if self._transforms is not None:
            self._transforms.close()
        self._node.destroy_subscription(self._subscription)

    def _on_sample(self, message: Imu) -> None:
        if message.angular_velocity_covariance[0] == -1:  # sensor_msgs: there is no such measurement
            self._warn_once("the messages on imu have no angular velocity (covariance -1): they are not used")
            return
        self._heard = time.monotonic()
        rate = message.angular_velocity
        self._gyroscope.add(to_nanoseconds(message.header.stamp), (rate.x, rate.y, rate.z))
        if self._transforms is not None and self._gyroscope.camera_from_imu is None and self._camera_frame():
            self._gyroscope.camera_from_imu = self._mounting(self._transforms, message.header.frame_id)
        if self._gyroscope.state is SensorState.CONTRADICTS:
            mounting = self._gyroscope.mounting()
            seems = f" Its axes seem to be mounted otherwise: {mounting}." if mounting else ""
            self._warn_once(
                f"the gyroscope contradicts the images and is not used until it agrees again.{seems} Check "
                f"imu.camera_from_imu, or the transform from {message.header.frame_id}, and its stamps"
            )

    def _mounting(self, transforms: Transforms, imu_frame: str) -> NDArray[np.float64] | None:
        camera_frame = self._camera_frame()
        try:
            found = transforms.find(camera_frame, imu_frame)
        except NoTransformError as error:
            self._warn_once(
                f"no transform from {imu_frame} to {camera_frame} ({error}); the gyroscope's axes are taken for the "
                "camera's, and used if they agree with the images. Publish the transform, or set imu.camera_from_imu"
            )
            return np.eye(3)
        return None if found is None else found[:3, :3]
