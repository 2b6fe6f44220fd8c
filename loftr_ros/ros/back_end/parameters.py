"""Parameters of the back end's node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.geometry.se3 import from_seven
from loftr_ros.settings import FLAT, ConfigError, Settings, setting


@dataclass(frozen=True)
class InputParameters(Settings):
    """Whose topics."""

    front_ends: str = setting(
        "loftr_front_end",
        "Names of the front ends' nodes, with commas between; without a / at the beginning in this node's namespace",
    )
    robots: str = setting(
        "",
        "Names of their robots in the same order, as robot_name of each front end; empty for each one's namespace, or "
        "else 'robot'",
    )
    queue_size: int = setting(
        2000, "Messages that wait to be worked on, at most; then the oldest go, and are counted", low=10, high=1000000
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
        """One by one."""
        return [name.strip() for name in self.front_ends.split(",") if name.strip()]

    @property
    def robot_names(self) -> list[str]:
        """One by one; empty where none are given."""
        return [name.strip() for name in self.robots.split(",") if name.strip()]


@dataclass(frozen=True)
class FrameParameters(Settings):
    """Frames and transforms."""

    map_frame: str = setting("map", "Frame of the map: that of the base where the map begins")
    publish_tf: bool = setting(True, "Whether to publish the transform from the map's frame to the odometry's on /tf")
    tf_tolerance: float = setting(
        0.1, "Time by which that transform is dated ahead of the image that it is of", unit="s", low=0.0, high=10.0
    )
    base_frame: str = setting("base_link", "Frame of the robot's base, for looking the camera up in tf2")
    base_from_camera: tuple[float, ...] = setting(
        (0.0,) * 7,
        "Where the camera's optical frame is in the base's: x y z in metres and the quaternion x y z w; zeros ask tf2, "
        "where it is installed, and where it does not know take the camera to look ahead from the base's origin. As in "
        "the front end",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_from_camera", tuple(self.base_from_camera))  # ROS has it as an array
        super().__post_init__()
        if any(self.base_from_camera):
            from_seven(self.base_from_camera, "base_from_camera")


@dataclass(frozen=True)
class FileParameters(Settings):
    """The map on disk."""

    map_file: str = setting(
        "",
        "File of the map: it is loaded where it is there, and written when the node is cleaned up or ends, by the "
        "service ~/save_map, and now and then; empty for none",
    )
    map_save_period: float = setting(
        60.0, "Time between two times that it is written; 0 for at the end only", unit="s", low=0.0, high=86400.0
    )


@dataclass(frozen=True)
class ReportParameters(Settings):
    """What goes out, and how often."""

    live: ClassVar[bool] = True

    optimise_period: float = setting(
        1.0, "Time between two optimisations of the whole graph, at least", unit="s", low=0.0, high=3600.0
    )
    map_period: float = setting(
        2.0,
        "Time between two messages on ~/path, ~/pose_graph and ~/landmarks, at least",
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
    """Everything that the back end's node can be told."""

    input: InputParameters = field(default_factory=InputParameters, metadata=FLAT)
    frames: FrameParameters = field(default_factory=FrameParameters, metadata=FLAT)
    file: FileParameters = field(default_factory=FileParameters, metadata=FLAT)
    back_end: BackEndConfig = field(default_factory=BackEndConfig, metadata=FLAT)
    output: ReportParameters = field(default_factory=ReportParameters)
