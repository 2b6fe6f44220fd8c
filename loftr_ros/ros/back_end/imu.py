"""Accelerations and angular velocities of a robot for the back end, and where the sensor is in the camera."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from sensor_msgs.msg import Imu

from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.geometry.se3 import from_seven
from loftr_ros.ros.back_end.parameters import InertialSensorParameters
from loftr_ros.ros.input.inputs import input_options
from loftr_ros.ros.logs import Warnings
from loftr_ros.ros.output.messages import to_nanoseconds
from loftr_ros.ros.transforms import NoTransformError, Transforms

# Seconds after the first keyframe to wait for a transform.
PATIENCE = 5.0
# Samples that may wait: a second of a fast sensor, since GTSAM holds Python's lock while it works.
_DEPTH = 1000


class ImuInput:
    """Subscribes to one robot's sensor, best effort, and passes the samples on."""

    def __init__(
        self,
        node: Node,
        topic: str,
        parameters: InertialSensorParameters,
        samples: ImuSamples,
        camera_frame: Callable[[], str],
    ) -> None:
        """Subscribe.

        Args:
            node: the owner.
            topic: its name.
            parameters: where the sensor is.
            samples: receives the samples; its pose in the camera is set here.
            camera_frame: optical frame of the robot's keyframes; empty before the first.
        """
        self._node, self._samples, self._camera_frame = node, samples, camera_frame
        self._warn_once = Warnings(node.get_logger())
        self._transforms: Transforms | None = None
        if any(parameters.camera_from_imu):
            samples.camera_from_imu = from_seven(parameters.camera_from_imu, "inertial_sensor.camera_from_imu")
        elif samples.camera_from_imu is None:
            self._transforms = Transforms(node, PATIENCE)
        self._subscription = node.create_subscription(
            Imu, topic, self._on_sample, **input_options(_DEPTH, durability=True)
        )

    def close(self) -> None:
        """Unsubscribe."""
        self._end_search()
        self._node.destroy_subscription(self._subscription)

    def _on_sample(self, message: Imu) -> None:
        if -1 in (message.angular_velocity_covariance[0], message.linear_acceleration_covariance[0]):
            self._warn_once(
                "the messages of the inertial sensor have no acceleration or no angular velocity (covariance -1): a "
                "single camera's unit stays unknown"
            )
            return
        rate, acceleration = message.angular_velocity, message.linear_acceleration
        self._samples.add(
            to_nanoseconds(message.header.stamp),
            (rate.x, rate.y, rate.z),
            (acceleration.x, acceleration.y, acceleration.z),
        )
        if self._transforms is not None and self._camera_frame():
            self._find_mount(self._transforms, message.header.frame_id)

    def _find_mount(self, transforms: Transforms, imu_frame: str) -> None:
        camera_frame = self._camera_frame()
        try:
            self._samples.camera_from_imu = transforms.find(camera_frame, imu_frame)
        except NoTransformError as error:
            self._warn_once(
                f"no transform from {imu_frame} to {camera_frame} ({error}); the inertial sensor is not used, and a "
                "single camera's unit stays unknown. Publish the transform, or set inertial_sensor.camera_from_imu"
            )
            self._end_search()
        if self._samples.camera_from_imu is not None:
            self._end_search()

    def _end_search(self) -> None:
        if self._transforms is not None:
            self._transforms.close()
            self._transforms = None


def imu_topic(front_end: str, topic: str) -> str:
    """Full name of the sensor's topic: below the front end's namespace, unless it begins with a slash."""
    return topic if topic.startswith("/") else f"{front_end.rpartition('/')[0]}/{topic}"
