"""Parameters of the back end's node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.geometry.se3 import from_seven
from loftr_ros.settings import FLAT, ConfigError, Settings, setting


@dataclass(frozen=True)
class InputParameters(Settings):
    """Front ends to listen to."""

    front_ends: str = setting(
        "loftr_front_end",
        "Names of the front ends' nodes, separated by commas; names without a leading / are in this node's namespace",
    )
    robots: str = setting(
        "",
        "Names of their robots in the same order, as robot_name of each front end; empty for their namespaces, or "
        "'robot' without a namespace",
    )
    queue_size: int = setting(
        2000, "Maximum number of waiting messages; beyond it the oldest are dropped and counted", low=10, high=1000000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names, robots = self.front_end_names, self.robot_names
        if not names:
            raise ConfigError("front_ends is empty; expected a node's name")
        if robots and len(robots) != len(names):
            raise ConfigError(
                f"robots has {len(robots)} names and front_ends {len(names)}; expected one for each, or none"
            )

    @property
    def front_end_names(self) -> list[str]:
        """The names as a list."""
        return [name.strip() for name in self.front_ends.split(",") if name.strip()]

    @property
    def robot_names(self) -> list[str]:
        """The names as a list; empty if not given."""
        return [name.strip() for name in self.robots.split(",") if name.strip()]


@dataclass(frozen=True)
class InertialSensorParameters(Settings):
    """The inertial sensor, which tells a single camera's unit in metres."""

    topic: str = setting(
        "imu",
        "Topic of sensor_msgs/Imu: below each front end's namespace, or with a leading / the same for all; empty for "
        "none",
    )
    camera_from_imu: tuple[float, ...] = setting(
        (0.0,) * 7,
        "Pose of the IMU's frame in the camera's optical frame: x y z in metres and the quaternion x y z w; zeros ask "
        "tf2, and without an answer the sensor is not used",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(self.camera_from_imu):
            from_seven(self.camera_from_imu, "camera_from_imu")


@dataclass(frozen=True)
class FrameParameters(Settings):
    """Frames and transforms."""

    map_frame: str = setting("map", "Frame of the map: the base's frame at the map's first keyframe")
    publish_tf: bool = setting(True, "Whether to publish the transform from map to odometry on /tf")
    tf_tolerance: float = setting(
        0.1, "Time that is added to the image's stamp in that transform", unit="s", low=0.0, high=10.0
    )
    base_frame: str = setting("base_link", "Frame of the robot's base, to find the camera's pose by tf2")
    base_from_camera: tuple[float, ...] = setting(
        (0.0,) * 7,
        "Pose of the camera's optical frame in the base's: x y z in metres and the quaternion x y z w, as in the front "
        "end; with zeros tf2 is asked, and without an answer the camera looks ahead from the base's origin",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(self.base_from_camera):
            from_seven(self.base_from_camera, "base_from_camera")


@dataclass(frozen=True)
class FileParameters(Settings):
    """The map on disk."""

    map_file: str = setting(
        "",
        "File of the map; it is loaded if it exists, and written when the node is cleaned up or ends, by the service "
        "~/save_map, and every map_save_period; empty for none",
    )
    map_save_period: float = setting(
        60.0, "Time between two writes of the map; 0 to write it only at the end", unit="s", low=0.0, high=86400.0
    )


@dataclass(frozen=True)
class ReportParameters(Settings):
    """Rates of the output."""

    live: ClassVar[bool] = True

    optimise_period: float = setting(
        1.0, "Minimum time between two optimisations of the whole graph", unit="s", low=0.0, high=3600.0
    )
    map_period: float = setting(
        2.0,
        "Minimum time between two messages on ~/path, ~/pose_graph and ~/landmarks",
        unit="s",
        low=0.1,
        high=3600.0,
    )
    status_period: float = setting(
        1.0, "Time between two messages on ~/status and /diagnostics", unit="s", low=0.1, high=3600.0, live=False
    )
    error_period: float = setting(
        5.0, "Time between two log lines of the same kind of error", unit="s", low=0.0, high=3600.0
    )


@dataclass(frozen=True)
class BackEndParameters:
    """All parameters of the back end's node."""

    input: InputParameters = field(default_factory=InputParameters, metadata=FLAT)
    inertial_sensor: InertialSensorParameters = field(default_factory=InertialSensorParameters)
    frames: FrameParameters = field(default_factory=FrameParameters, metadata=FLAT)
    file: FileParameters = field(default_factory=FileParameters, metadata=FLAT)
    back_end: BackEndConfig = field(default_factory=BackEndConfig, metadata=FLAT)
    output: ReportParameters = field(default_factory=ReportParameters)
