"""Starts the front end and the back end: odometry, loops, and the map with map -> odom.

    ros2 launch loftr_ros slam.launch.py mode:=rgbd image:=/camera/color/image_raw depth_image:=/camera/depth/image_raw

Every argument of front_end.launch.py may be given too, and reaches it. Both nodes stop when one of them ends.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.events import matches_action
from launch.events.process import ProcessExited
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
from launch_ros.utilities import make_namespace_absolute, prefix_namespace
from lifecycle_msgs.msg import Transition

# name, default, description.
ARGUMENTS = [
    (
        "archive",
        "~/.ros/loftr_ros/places",
        "Folder of the archive of keyframes, in which the front end finds places again: without it there are no loops.",
    ),
    (
        "map_file",
        "",
        "File of the map: loaded where it is there, written at the end and now and then. Not given: as in "
        "back_end_params_file, which has none.",
    ),
    ("back_end_name", "loftr_back_end", "Name of the back end's node; its outputs are under <namespace>/<name>/."),
    (
        "back_end_params_file",
        PathJoinSubstitution([FindPackageShare("loftr_ros"), "config", "back_end.yaml"]),
        "YAML file of the back end's parameters.",
    ),
    ("namespace", "", "Namespace of both nodes and of their topics."),
    ("name", "loftr_front_end", "Name of the front end's node."),
    ("camera_names", "", "As in front_end.launch.py: a front end for each; the back end listens to all of them."),
    ("robot_name", "", "Name of the robot, as in front_end.launch.py."),
    ("imu", "", "Topic of an inertial sensor, for both nodes. Not given: `imu` for both."),
    ("use_sim_time", "", "true: take the time from /clock (simulation, bag). Not given: as in the parameter files."),
    (
        "autostart",
        "true",
        "true: configure and activate the nodes. false: leave that to you or to a lifecycle manager.",
    ),
]
# Seconds after its start in which a back end normally tells of its configuration.
USUAL = 10.0
CHOICES = {"use_sim_time": ["", "true", "false"], "autostart": ["true", "false"]}


def generate_launch_description() -> LaunchDescription:
    """The arguments, and what is made of them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=CHOICES.get(name))
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The front end by its own launch file, and the back end beside it."""
    arguments = {name: LaunchConfiguration(name).perform(context).strip() for name, _, _ in ARGUMENTS}
    front_end = IncludeLaunchDescription(
        PathJoinSubstitution([FindPackageShare("loftr_ros"), "launch", "front_end.launch.py"]),
        launch_arguments={"archive": arguments["archive"]}.items(),
    )
    return [*back_end(arguments, context), front_end]


def back_end(arguments: dict[str, str], context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The back end's node and what brings it to active."""
    pushed = context.launch_configurations.get("ros_namespace")
    namespace = make_namespace_absolute(prefix_namespace(pushed, arguments["namespace"]))
    path = f"{namespace.rstrip('/')}/{arguments['back_end_name']}"
    node = LifecycleNode(
        package="loftr_ros",
        executable="back_end",
        namespace=arguments["namespace"],
        name=arguments["back_end_name"],
        parameters=parameters(arguments),
        output="screen",
        emulate_tty=True,
        on_exit=stop_with_the_node,
    )
    if arguments["autostart"] == "false":
        return [node]

    autostart = Autostart(node, path)

    def on(
        begin: str, goal: str, function: Callable[[LaunchContext], list[LaunchDescriptionEntity] | None]
    ) -> RegisterEventHandler:
        entities = [OpaqueFunction(function=function)]
        return RegisterEventHandler(
            OnStateTransition(target_lifecycle_node=node, start_state=begin, goal_state=goal, entities=entities)
        )

    # The handlers come first: the node may be through a transition before a later action is visited.
    return [
        on("configuring", "inactive", autostart.configured),
        on("activating", "active", autostart.activated),
        on("configuring", "unconfigured", autostart.refused),
        node,
        EmitEvent(event=change_state(node, Transition.TRANSITION_CONFIGURE)),
        TimerAction(period=USUAL, actions=[OpaqueFunction(function=autostart.overdue)]),
    ]


class Autostart:
    """Activates the back end once it is configured, as its events say, or as is to be expected where none comes.

    It configures itself at once, on a busy machine before DDS has connected its events and answers to this launch: then
    both are lost, and who waits for them waits for ever.
    """

    def __init__(self, node: LifecycleNode, path: str) -> None:
        self._node, self._path = node, path
        self._is_heard = False  # an event has come
        self._is_asked = False  # to activate, though none had come: an event that comes late must not ask again

    def configured(self, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        """It says that it is configured."""
        self._is_heard = True
        return [] if self._is_asked else [self._activate()]

    def activated(self, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        """It says that it is active; where someone configures it anew later, it is activated as usual."""
        self._is_heard, self._is_asked = True, False
        return [LogInfo(msg=f"{self._path} is active")]

    def refused(self, context: LaunchContext) -> None:
        """It says that it could not be configured."""
        self._is_heard = True
        get_logger("slam.launch").error(
            f"{self._path} could not be configured; its own error says why. It waits, unconfigured: correct it and "
            f"call `ros2 lifecycle set {self._path} configure`. The front end runs without it"
        )

    def overdue(self, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        """It should have said something by now."""
        if self._is_heard:
            return []
        self._is_asked = True
        return [self._activate()]

    def _activate(self) -> EmitEvent:
        return EmitEvent(event=change_state(self._node, Transition.TRANSITION_ACTIVATE))


def parameters(arguments: dict[str, str]) -> list[str | dict[str, ParameterValue]]:
    """The parameter file, then whatever was given on the command line, which wins because it comes later.

    Raises:
        FileNotFoundError: there is no such file (launch_ros itself would only warn).
    """
    cameras = [name.strip(" '\"") for name in arguments["camera_names"].strip("[]").split(",") if name.strip(" '\"")]
    names = [f"{camera}/{arguments['name']}" for camera in cameras] or [arguments["name"]]
    given = {"front_ends": ParameterValue(",".join(names), value_type=str)}
    robot = arguments["robot_name"]
    if robot:
        robots = [f"{robot}/{camera}" for camera in cameras] or [robot]
        given["robots"] = ParameterValue(",".join(robots), value_type=str)
    if arguments["imu"]:
        given["inertial_sensor.topic"] = ParameterValue(arguments["imu"], value_type=str)
    if arguments["map_file"]:
        given["map_file"] = ParameterValue(str(Path(arguments["map_file"]).expanduser()), value_type=str)
    if arguments["use_sim_time"]:
        given["use_sim_time"] = ParameterValue(arguments["use_sim_time"] == "true", value_type=bool)
    file = Path(arguments["back_end_params_file"]).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"back_end_params_file: there is no file {file}")
    return [str(file), given]


def change_state(node: LifecycleNode, transition: int) -> ChangeState:
    """The event that asks this node, and no other of the same launch, for a transition."""
    return ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)


def stop_with_the_node(event: ProcessExited, context: LaunchContext) -> Shutdown | None:
    """Ends the launch with its node.

    Raises:
        RuntimeError: the node ended by itself and not well. Launch then stops with exit code 1.
    """
    if context.is_shutdown:
        return None
    if event.returncode != 0:
        raise RuntimeError(f"the back end ended by itself with exit code {event.returncode}")
    return Shutdown(reason="the back end has ended")
