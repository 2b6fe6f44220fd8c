"""Starts the LoFTR front end and brings it to active.

    ros2 launch loftr_ros front_end.launch.py image:=/camera/image_raw
    ros2 launch loftr_ros front_end.launch.py camera_names:=[front,rear]

`ros2 launch -s loftr_ros front_end.launch.py` shows every argument. What you are likely to change in this file
are the defaults in ARGUMENTS below, for a robot whose topics are always the same; everything else about the node is
set in config/front_end.yaml, or in a copy of it given as `params_file:=`. Nothing below ARGUMENTS needs a change.
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, EmitEvent, LogInfo, OpaqueFunction, RegisterEventHandler, Shutdown
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

# name, default, description. An empty default leaves what the params file, or else the node itself, says.
ARGUMENTS = [
    (
        "mode",
        "",
        "Source of metric scale: mono has none, stereo uses the right image, rgbd uses the depth image. "
        "Not given: as in params_file.",
    ),
    (
        "image",
        "",
        "Topic of the camera's images; of the left camera in stereo. Not given: `image` in the node's namespace, "
        "`image_raw` with camera_names.",
    ),
    (
        "camera_info",
        "",
        "Topic of the camera's calibration. Not given: `camera_info` beside the image topic, where drivers publish it.",
    ),
    ("right_image", "", "Topic of the right camera's images (mode stereo). Not given: `right/image`."),
    (
        "right_camera_info",
        "",
        "Topic of the right camera's calibration. Not given: `camera_info` beside the right image's topic.",
    ),
    ("depth_image", "", "Topic of depth images registered to the image (mode rgbd). Not given: `depth/image`."),
    (
        "mask",
        "",
        "Topic of masks of moving things (mono8), with the images' stamps unless input.mask_topic is latest in "
        "params_file. Not given: as in params_file.",
    ),
    ("imu", "", "Topic of an inertial sensor (sensor_msgs/Imu). Not given: `imu`."),
    (
        "rectified",
        "",
        "true: the images are rectified (image_rect), and P of the CameraInfo is their camera. "
        "Not given: as in params_file.",
    ),
    (
        "camera_names",
        "",
        "Names of cameras, for example [front,rear]. Each gets a node in a namespace of its name below `namespace`. "
        "Topics are then relative to it. Not given: one node.",
    ),
    (
        "image_transport",
        "",
        "raw, or compressed for sensor_msgs/CompressedImage on <image>/compressed. "
        "Not given: compressed if the image topic ends in /compressed, else as in params_file.",
    ),
    ("namespace", "", "Namespace of the node and of its topics."),
    ("name", "loftr_front_end", "Name of the node; its outputs are under <namespace>/<name>/."),
    (
        "params_file",
        PathJoinSubstitution([FindPackageShare("loftr_ros"), "config", "front_end.yaml"]),
        "YAML file of the node's parameters.",
    ),
    (
        "archive",
        "",
        "Folder of the keyframe archive, or address of a shared one; switches loop closure on. "
        "Not given: as in params_file, which has none.",
    ),
    (
        "robot_name",
        "",
        "Name of the robot in archives and towards other robots; with camera_names the camera's name is appended. "
        "Not given: as in params_file, else the namespace.",
    ),
    (
        "share_places",
        "",
        "true: announce archived keyframes to other robots and store theirs. Not given: as in params_file.",
    ),
    (
        "odom_tf",
        "",
        "true: publish odom -> base_link on /tf; only if nothing else on the robot does, such as a filter. Not given: "
        "as in params_file.",
    ),
    ("network", "", "Preset of the network, for example loftr. Not given: as in params_file."),
    (
        "weights",
        "",
        "Weights file of the network, or a name of `loftr_ros weights list`. Not given: as in params_file.",
    ),
    ("device", "", "auto, cpu, cuda, cuda:1, ... Not given: as in params_file."),
    ("precision", "", "auto, float32, bfloat16 or float16. Not given: as in params_file."),
    ("use_sim_time", "", "true: take the time from /clock (simulation, bag). Not given: as in params_file."),
    ("log_level", "info", "Lowest level of messages that the node logs: debug, info, warn, error or fatal."),
    ("autostart", "true", "true: configure and activate the node. false: you or a lifecycle manager do that."),
]
# Arguments of camera drivers' launch files and of slam.launch.py that look like ours, and reach a launch that includes
# both.
OF_OTHERS = ("camera_model", "camera_name", "camera_namespace", "back_end_params_file")
TOPICS = ("image", "camera_info", "right_image", "right_camera_info", "depth_image", "mask")
CHOICES = {
    "mode": ["", "mono", "stereo", "rgbd"],
    "rectified": ["", "true", "false"],
    "share_places": ["", "true", "false"],
    "odom_tf": ["", "true", "false"],
    "image_transport": ["", "raw", "compressed"],
    "use_sim_time": ["", "true", "false"],
    "log_level": ["debug", "info", "warn", "error", "fatal"],
    "autostart": ["true", "false"],
}


def generate_launch_description() -> LaunchDescription:
    """The arguments, and what is made of them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=CHOICES.get(name))
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start_front_ends)])


def start_front_ends(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """A node for each camera; runs once the arguments' values are known."""
    for said in unknown_arguments(context.argv, sys.argv):
        get_logger("front_end.launch").warning(said)
    arguments = {name: LaunchConfiguration(name).perform(context).strip() for name, _, _ in ARGUMENTS}
    return [action for each in cameras(arguments) for action in start_front_end(each, context)]


def unknown_arguments(given: list[str], command: list[str]) -> list[str]:
    """A sentence on each argument that was misspelt; launch itself says nothing of them.

    Args:
        given: the launch's arguments, name:=value.
        command: the command line. Where it names another launch file, which includes this one, arguments that are like
            none of ours are that one's.
    """
    known = [name for name, _, _ in ARGUMENTS]
    is_ours = any(Path(word).name == Path(__file__).name for word in command)
    said = []
    for name in (word.partition(":=")[0] for word in given if ":=" in word):
        near = difflib.get_close_matches(name, known, 1, cutoff=0.7)
        if name not in known and (is_ours or (near and name not in OF_OTHERS)):
            meant = f"; did you mean '{near[0]}'?" if near else ", and like none: ros2 launch -s shows all"
            said.append(f"launch argument '{name}' is not one of {Path(__file__).name} and has no effect{meant}")
    return said


def cameras(arguments: dict[str, str]) -> list[dict[str, str]]:
    """The arguments of each camera's node: those given, in a namespace of its own.

    Raises:
        ValueError: a name cannot be a namespace, two are the same, or one topic is given for all.
    """
    names = [name.strip(" '\"") for name in arguments["camera_names"].strip("[]").split(",")]
    if names == [""]:
        return [arguments]
    wrong = [name for name in names if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or names.count(name) > 1]
    if wrong:
        raise ValueError(f"camera_names: '{wrong[0]}' is not a name (letters, digits, _), or there twice")
    shared = [name for name in TOPICS if arguments[name].startswith("/")]
    if shared and len(names) > 1:
        raise ValueError(
            f"{shared[0]}: {arguments[shared[0]]} would be the same topic for all cameras; without the leading / it is "
            f"taken below each camera's namespace, as in /{names[0]}/image_raw"
        )
    given = arguments | {"image": arguments["image"] or "image_raw"}
    # In a common archive, two cameras of one name would count the same keyframes twice.
    robot = arguments["robot_name"]
    return [
        given
        | {
            "namespace": prefix_namespace(arguments["namespace"] or None, name),
            "robot_name": f"{robot}/{name}" if robot else "",
        }
        for name in names
    ]


def start_front_end(arguments: dict[str, str], context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """One node and what brings it to active."""
    # An including launch file may have pushed a namespace of its own.
    pushed = context.launch_configurations.get("ros_namespace")
    namespace = make_namespace_absolute(prefix_namespace(pushed, arguments["namespace"]))
    path = f"{namespace.rstrip('/')}/{arguments['name']}"
    node = LifecycleNode(
        package="loftr_ros",
        executable="front_end",
        namespace=arguments["namespace"],
        name=arguments["name"],
        parameters=parameters(arguments),
        remappings=remappings(arguments),
        # The node's own logger: the level of all of them would drown `debug` in the middleware's words.
        arguments=["--ros-args", "--log-level", f"{path[1:].replace('/', '.')}:={arguments['log_level']}"],
        output="screen",
        emulate_tty=True,
        on_exit=stop_with_the_node,
    )
    if arguments["autostart"] == "false":
        return [node]
    # The handlers come first: the node may be through a transition before a later action is visited.
    return [*autostart(node, path), node, EmitEvent(event=change_state(node, Transition.TRANSITION_CONFIGURE))]


def parameters(arguments: dict[str, str]) -> list[str | dict[str, ParameterValue]]:
    """The params file, then whatever was given on the command line, which wins because it comes later.

    Raises:
        FileNotFoundError: there is no such params file (launch_ros itself would only warn).
    """
    # Quoted in full, or `device:=0` would reach the node as a number.
    given = {
        name: ParameterValue(value, value_type=str)
        for name in ("mode", "robot_name", "network", "device", "precision")
        if (value := arguments[name])
    }
    if arguments["weights"]:
        # A shell leaves the ~ of weights:=~/file alone.
        given["weights"] = ParameterValue(str(Path(arguments["weights"]).expanduser()), value_type=str)
    if arguments["image_transport"]:
        given["input.image_transport"] = ParameterValue(arguments["image_transport"], value_type=str)
    elif arguments["image"].endswith("/compressed"):
        given["input.image_transport"] = ParameterValue("compressed", value_type=str)
    if arguments["rectified"]:
        given["input.rectified"] = ParameterValue(arguments["rectified"] == "true", value_type=bool)
    if arguments["archive"]:
        given["archive.uri"] = ParameterValue(arguments["archive"], value_type=str)
    if arguments["share_places"]:
        given["fleet.share"] = ParameterValue(arguments["share_places"] == "true", value_type=bool)
    if arguments["odom_tf"]:
        given["odometry.publish_tf"] = ParameterValue(arguments["odom_tf"] == "true", value_type=bool)
    if arguments["use_sim_time"]:
        given["use_sim_time"] = ParameterValue(arguments["use_sim_time"] == "true", value_type=bool)

    file = Path(arguments["params_file"]).expanduser() if arguments["params_file"] else None
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"params_file: there is no file {file}")
    # The file that comes with the package says that there is no mask.
    if arguments["mask"] and (file is None or not says(file, "input", "mask_topic", "latest")):
        given["input.mask_topic"] = ParameterValue("synchronized", value_type=str)

    sources: list[str | dict[str, ParameterValue]] = [given] if given else []
    if file is not None:
        sources.insert(0, str(file))
    return sources


def says(file: Path, group: str, name: str, value: str) -> bool:
    """Whether a params file gives a group's parameter a value, for whichever node."""
    sections = [yaml.safe_load(file.read_text())]
    while sections:
        section = sections.pop()
        if not isinstance(section, dict):
            continue
        if section.get(f"{group}.{name}") == value:
            return True
        if isinstance(inner := section.get(group), dict) and inner.get(name) == value:
            return True
        sections += section.values()
    return False


def remappings(arguments: dict[str, str]) -> list[tuple[str, str]]:
    """From the node's topic names to the camera's; a topic that was not given keeps its name."""
    rules = camera_topics(arguments["image"], arguments["camera_info"], "")
    rules += camera_topics(arguments["right_image"], arguments["right_camera_info"], "right/")
    beside = {"depth/image": arguments["depth_image"], "mask": arguments["mask"], "imu": arguments["imu"]}
    return rules + [(ours, topic) for ours, topic in beside.items() if topic]


def camera_topics(image: str, camera_info: str, ours: str) -> list[tuple[str, str]]:
    """Remappings of one camera's topics; `ours` stands before the node's names of them."""
    image = image.removesuffix("/compressed")
    if image and not camera_info:
        camera_info = f"{image.rpartition('/')[0]}/camera_info" if "/" in image else "camera_info"
    rules = [(f"{ours}camera_info", camera_info)] if camera_info else []
    if image:
        # A rule holds for one name only: that of `image` does not touch `image/compressed`.
        rules += [(f"{ours}image", image), (f"{ours}image/compressed", f"{image}/compressed")]
    return rules


def autostart(node: LifecycleNode, path: str) -> list[LaunchDescriptionEntity]:
    """Handlers that activate the node once it is configured, and that say what to do when it refuses."""

    def on(start: str, goal: str, *actions: LaunchDescriptionEntity) -> RegisterEventHandler:
        return RegisterEventHandler(
            OnStateTransition(target_lifecycle_node=node, start_state=start, goal_state=goal, entities=list(actions))
        )

    def say(words: str) -> OpaqueFunction:
        return OpaqueFunction(function=lambda context: get_logger("front_end.launch").error(f"{path} {words}"))

    try_again = (
        f"It waits, unconfigured: correct the parameter (as in `ros2 param set {path} weights FILE`) and call "
        f"`ros2 lifecycle set {path} configure`, after which it is activated as usual; or start this launch anew with "
        "the right arguments."
    )
    return [
        # Only from `configuring`: a node that someone deactivates is inactive too, and must stay so.
        on("configuring", "inactive", EmitEvent(event=change_state(node, Transition.TRANSITION_ACTIVATE))),
        on("activating", "active", LogInfo(msg=f"{path} is active")),
        on("configuring", "unconfigured", say(f"could not be configured; its own error says why. {try_again}")),
        on("errorprocessing", "unconfigured", say(f"met an error; its own words say which. {try_again}")),
        on("errorprocessing", "finalized", say("met an error that it cannot recover from; start this launch anew.")),
        on(
            "activating",
            "inactive",
            say(
                "could not be activated; its own error says why. It waits, configured: "
                f"`ros2 lifecycle set {path} activate` tries again."
            ),
        ),
    ]


def change_state(node: LifecycleNode, transition: int) -> ChangeState:
    """The event that asks this node, and no other of the same launch, for a transition."""
    return ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)


def stop_with_the_node(event: ProcessExited, context: LaunchContext) -> Shutdown | None:
    """Ends the launch with its node, or the first of its nodes that ends.

    Raises:
        RuntimeError: the node ended by itself and not well. Launch then stops with exit code 1, which is how a service
            manager (systemd, docker) learns that it has to start it again.
    """
    if context.is_shutdown:
        return None
    if event.returncode != 0:
        raise RuntimeError(f"the front end ended by itself with exit code {event.returncode}")
    return Shutdown(reason="the front end has ended")
