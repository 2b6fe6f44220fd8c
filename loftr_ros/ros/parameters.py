"""ROS parameters, declared from the settings dataclasses with description, unit and range."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.gyroscope import GyroscopeConfig
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig
from loftr_ros.geometry.se3 import from_seven
from loftr_ros.matcher.runtime.tensorrt import TensorRTConfig
from loftr_ros.places.config import ArchiveConfig, LoopConfig
from loftr_ros.recordings.input_settings import InputParameters as InputParameters
from loftr_ros.recordings.stereo_calibration import pose_of
from loftr_ros.ros.parameter_names import accept_whole_numbers
from loftr_ros.ros.scheduling import SchedulingParameters
from loftr_ros.settings import FLAT, ConfigError, Settings, is_live, setting, settings_of, with_values

T = TypeVar("T")


@dataclass(frozen=True)
class OutputParameters(Settings):
    """Output topics, status and log."""

    live: ClassVar[bool] = True

    status_period: float = setting(
        1.0, "Time between two messages on ~/status and /diagnostics", unit="s", low=0.1, high=3600.0
    )
    status_window: int = setting(
        300, "Number of frames in the latency statistics of ~/status", low=1, high=100000, live=False
    )
    error_period: float = setting(
        5.0, "Minimum time between two log lines of the same kind of error", unit="s", low=0.0, high=3600.0
    )
    max_lines: int = setting(150, "Maximum number of matches drawn on ~/matches_image", low=1, high=100000)
    hardware_id: str = setting(
        "",
        "Identity of the camera in /diagnostics (hardware_id), such as its serial number; empty for the machine's"
        " host name and the network's device",
    )


@dataclass(frozen=True)
class OdometryParameters(Settings):
    """Odometry, path and transform."""

    odom_frame: str = setting("odom", "Fixed frame of the odometry; the robot's base begins in its origin")
    base_frame: str = setting("base_link", "Frame of the robot's base")
    base_from_camera: tuple[float, ...] = setting(
        (0.0,) * 7,
        "Pose of the camera's optical frame in the base frame: x y z in metres, quaternion x y z w; zeros ask "
        "tf2; without an answer the camera looks ahead from the base's origin",
    )
    publish_tf: bool = setting(
        False, "Whether to publish the transform from `odometry.odom_frame` to `odometry.base_frame` on /tf"
    )
    path_length: int = setting(1000, "Maximum number of poses on ~/path, the newest ones", low=0, high=100000)
    prior_frame: str = setting(
        "",
        "Fixed frame of another odometry on tf, such as that of the wheels; its motions are expected, and poses that "
        "contradict them are doubtful; empty for the topic `prior_odometry` alone",
    )
    prior_drift: float = setting(
        0.05,
        "Standard deviation of the other odometry's position, as a fraction of the distance travelled",
        low=0.0,
        high=1.0,
    )
    prior_turn_drift: float = setting(
        0.05,
        "Standard deviation of the other odometry's rotation, as a fraction of the angle turned",
        low=0.0,
        high=1.0,
    )
    prior_time_std: float = setting(
        0.01,
        "Standard deviation of the time between the other odometry's stamps and the images'",
        unit="s",
        low=0.0,
        high=1.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(self.base_from_camera):
            from_seven(self.base_from_camera, "base_from_camera")
        if self.prior_frame and self.publish_tf and self.prior_frame == self.odom_frame:
            raise ConfigError(
                f"odometry.prior_frame is '{self.prior_frame}', which this node publishes itself: it would check its "
                "poses by themselves. Name the frame of another odometry, or set odometry.publish_tf to false"
            )


@dataclass(frozen=True)
class FleetParameters(Settings):
    """Exchange of keyframes with other robots over ROS 2."""

    share: bool = setting(
        False,
        "Whether to announce archived keyframes to other robots, store theirs, and exchange images of common "
        "places; needs an archive",
    )
    topic: str = setting("/loftr_places/keyframes", "Topic of the announcements, the same for all robots")
    fetch_timeout: float = setting(
        2.0, "Time limit for another robot to send a keyframe's image", unit="s", low=0.1, high=60.0
    )


@dataclass(frozen=True)
class RobotParameters(Settings):
    """Identity of the robot."""

    robot_name: str = setting(
        "", "Name of the robot in archives and towards other robots; empty for the node's namespace, or else 'robot'"
    )


@dataclass(frozen=True)
class ImuParameters(GyroscopeConfig):
    """The gyroscope on `imu`."""

    live: ClassVar[bool] = False

    enabled: bool = setting(
        True,
        "Whether to subscribe to sensor_msgs/Imu on `imu`; a gyroscope is used once it agrees with matched rotations",
    )
    camera_from_imu: tuple[float, ...] = setting(
        (0.0,) * 4,
        "Rotation from the IMU's frame to the camera's optical frame as a quaternion x y z w; zeros ask tf2",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = self.camera_from_imu
        if len(numbers) != 4 or (any(numbers) and abs(sum(x * x for x in numbers) - 1) > 0.02):
            raise ConfigError(
                f"imu.camera_from_imu is {list(numbers)}; expected a quaternion x y z w of length 1, or four zeros"
            )


@dataclass(frozen=True)
class Parameters:
    """All parameters of the node."""

    # The network's settings come first, because users set them first.
    matcher: MatcherConfig = field(default_factory=MatcherConfig, metadata=FLAT)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig, metadata=FLAT)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    tensorrt: TensorRTConfig = field(default_factory=TensorRTConfig)
    input: InputParameters = field(default_factory=InputParameters)
    output: OutputParameters = field(default_factory=OutputParameters)
    odometry: OdometryParameters = field(default_factory=OdometryParameters)
    imu: ImuParameters = field(default_factory=ImuParameters)
    scheduling: SchedulingParameters = field(default_factory=SchedulingParameters)
    robot: RobotParameters = field(default_factory=RobotParameters, metadata=FLAT)
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    fleet: FleetParameters = field(default_factory=FleetParameters)


def parameter_names(kind: type = Parameters) -> list[tuple[str, dataclasses.Field[Any]]]:
    """Every parameter's ROS name and the field it is declared from, of one node's parameters."""
    return [(name, item) for name, _, item in settings_of(kind())]


def defaults(kind: type = Parameters) -> dict[str, object]:
    """Every parameter's ROS name and default."""
    return {name: item.default for name, item in parameter_names(kind)}


def live_parameters(kind: type = Parameters) -> dict[str, bool]:
    """Every parameter's ROS name, and whether it may change at run time."""
    return {name: is_live(group, item) for name, group, item in settings_of(kind())}


def refusal(values: Mapping[str, Any], configured: bool, kind: type = Parameters) -> str:
    """Why parameters cannot be set; empty if they can, or are not ours. rclpy checks types and ranges itself.

    Live parameters can always be set.

    Args:
        values: by parameter name.
        configured: whether the node has read its parameters already.
        kind: the node's parameters.
    """
    fields = dict(parameter_names(kind))
    ours = {name: value for name, value in values.items() if name in fields}
    live = live_parameters(kind)
    if configured and (fixed := [name for name in ours if not live[name]]):
        return f"{', '.join(fixed)}: read when the node is configured; clean it up, set, and configure it again"
    choices = {name: fields[name].metadata["choices"] for name in ours}
    reasons = [
        f"{name} is '{value}'; expected one of {', '.join(choices[name])}"
        for name, value in ours.items()
        if choices[name] and value not in choices[name]
    ]
    if (extrinsic := "input.left_from_right") in ours:
        try:
            pose_of(ours[extrinsic])
        except ConfigError as error:
            reasons.append(f"input.{error}")
    return "; ".join(reasons)


def declare(node: Node, kind: type = Parameters) -> None:
    """Declare every parameter on a node; rclpy then checks types and ranges.

    Whole numbers among the start parameters become floats.
    """
    accept_whole_numbers(node, defaults(kind))
    for name, item in parameter_names(kind):
        node.declare_parameter(name, item.default, descriptor(item))


def descriptor(item: dataclasses.Field[Any]) -> ParameterDescriptor:
    """The description for `ros2 param describe`."""
    about = item.metadata
    unit = f" [{about['unit']}]" if about["unit"] else ""
    choices = f" (one of: {', '.join(about['choices'])})" if about["choices"] else ""
    result = ParameterDescriptor(description=f"{about['description']}{unit}{choices}")
    if about["low"] is not None and isinstance(item.default, float):
        result.floating_point_range = [
            FloatingPointRange(from_value=float(about["low"]), to_value=float(about["high"]))
        ]
    elif about["low"] is not None:
        result.integer_range = [IntegerRange(from_value=int(about["low"]), to_value=int(about["high"]), step=1)]
    return result


def read(node: Node) -> Parameters:
    """The node's parameters as typed settings.

    Raises:
        ConfigError: one is not among its choices; the message names it.
    """
    return read_as(node, Parameters)


def read_as(node: Node, kind: type[T]) -> T:
    """As `read`, of another node's parameters."""
    values = {name: node.get_parameter(name).value for name, _ in parameter_names(kind)}
    try:
        return with_values(kind(), values)
    except ConfigError as error:
        raise ConfigError(f"parameter {error}") from error
