"""The launch file under the real `ros2 launch`, with a test double for the node that reports its arguments."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MISSING = [name for name in ("rclpy", "launch", "launch_ros", "ros2launch") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (a ROS installation has them)"),
]

LAUNCH_FILE = Path(__file__).resolve().parents[1] / "launch" / "front_end.launch.py"
# Seconds: long enough for a busy machine; every wait ends as soon as what it waits for is there.
PATIENCE = 90.0
ROS2 = [
    sys.executable,
    "-P" if sys.version_info >= (3, 11) else "-E",
    "-c",
    "from ros2cli.cli import main; exit(main())",
]

STAND_IN = """#!{python}
import contextlib, json, signal, sys
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu

NAMES = ("mode", "network", "weights", "device", "precision", "input.image_transport", "threads", "input.rectified",
         "archive.uri", "robot_name", "fleet.share", "input.mask_topic", "odometry.publish_tf")
DEFAULTS = {{"threads": 0, "input.rectified": False, "fleet.share": False, "odometry.publish_tf": False}}
TOPICS = {{
    "image": Image, "image/compressed": CompressedImage, "camera_info": CameraInfo,
    "right/image": Image, "right/image/compressed": CompressedImage, "right/camera_info": CameraInfo,
    "depth/image": Image, "mask": Image, "imu": Imu,
}}

class StandIn(LifecycleNode):
    def __init__(self):
        super().__init__("stand_in")
        for name in NAMES:
            self.declare_parameter(name, DEFAULTS.get(name, "default"))

    def on_configure(self, state):
        values = {{name: self.get_parameter(name).value for name in (*NAMES, "use_sim_time")}}
        values["name"] = self.get_fully_qualified_name()
        for topic, kind in TOPICS.items():
            values[topic] = self.create_subscription(kind, topic, print, 1).topic_name
        self.get_logger().debug("a line for debugging")
        print("STARTED", json.dumps(values), flush=True)
        if values["weights"] == "crash":
            sys.stdout.flush()
            __import__("os")._exit(3)
        if values["weights"] == "raise":
            raise ValueError("in on_configure")
        return TransitionCallbackReturn.FAILURE if values["weights"] == "missing" else TransitionCallbackReturn.SUCCESS

    def on_activate(self, state):
        print("ACTIVATED", flush=True)
        refuse = self.get_parameter("network").value == "refuse"
        return TransitionCallbackReturn.FAILURE if refuse else super().on_activate(state)

rclpy.init()
node = StandIn()
print("UP", flush=True)
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
with contextlib.suppress(RuntimeError):  # the signal's own thread may be shutting it down
    rclpy.try_shutdown()
"""

PARAMETERS = """
/**:
  ros__parameters:
    mode: "mode of the file"
    network: "network of the file"
    weights: "weights of the file"
    device: "device of the file"
    precision: "precision of the file"
    threads: 3
    input:
      image_transport: "raw"
"""


class Launched:
    """`ros2 launch` of our file, in its own process group, and its output so far."""

    def __init__(self, log: Path, environment: dict[str, str], *arguments: str) -> None:
        self._log = log
        self.domain = int(environment["ROS_DOMAIN_ID"])
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*ROS2, "launch", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return re.sub("\x1b\\[[0-9;]*m", "", self._log.read_text())

    def wait_for(self, words: str, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < end, f"waited in vain for {words!r} in:\n{self.said}"
            assert self.process.poll() is None or words in self.said, f"ended without {words!r}:\n{self.said}"
            time.sleep(0.05)

    def started_with(self) -> dict[str, object]:
        (values,) = self.all_started_with(1).values()
        return values

    def all_started_with(self, count: int) -> dict[str, dict[str, object]]:
        """The arguments of each of `count` nodes, by full name."""
        end = time.monotonic() + PATIENCE
        while len(said := re.findall(r"STARTED (\{.*\})", self.said)) < count:
            assert time.monotonic() < end and self.process.poll() is None, self.said
            time.sleep(0.05)
        return {values["name"]: values for values in map(json.loads, said)}

    def interrupt(self) -> int:
        """Like Ctrl-C in a terminal: SIGINT for the whole group. Returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=PATIENCE)


@pytest.fixture
def launch(tmp_path, ros_domain):
    """Starts `ros2 launch` on an ament prefix with our launch file and the test double."""
    prefix = tmp_path / "prefix"
    share = prefix / "share" / "loftr_ros"
    for folder in (share / "launch", share / "config", prefix / "lib" / "loftr_ros"):
        folder.mkdir(parents=True)
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True)
    (index / "loftr_ros").touch()
    (share / "launch" / LAUNCH_FILE.name).write_text(LAUNCH_FILE.read_text())
    (share / "config" / "front_end.yaml").write_text(PARAMETERS)
    executable = prefix / "lib" / "loftr_ros" / "front_end"
    executable.write_text(STAND_IN.format(python=sys.executable))
    executable.chmod(0o755)

    prefixes = [str(prefix), *filter(None, [os.environ.get("AMENT_PREFIX_PATH") or sys.prefix])]
    environment = os.environ | {
        "AMENT_PREFIX_PATH": os.pathsep.join(prefixes),
        "ROS_LOG_DIR": str(tmp_path / "log"),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    running: list[Launched] = []

    def start(*arguments, file=("loftr_ros", "front_end.launch.py")):
        running.append(Launched(tmp_path / f"output{len(running)}", environment, *file, *arguments))
        return running[-1]

    yield start
    for launched in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launched.process.pid, signal.SIGKILL)
        launched.process.wait()


def arguments_shown(launched) -> dict[str, str]:
    assert launched.process.wait(timeout=PATIENCE) == 0, launched.said
    return dict(re.findall(r"^    '(\w+)':\n((?:        .*\n?)+)", launched.said, re.MULTILINE))


def test_every_argument_is_shown_with_a_description(launch):
    shown = arguments_shown(launch(file=("-s", "loftr_ros", "front_end.launch.py")))
    assert set(shown) == {
        *("image", "camera_info", "image_transport", "namespace", "name", "params_file", "network", "weights"),
        *("device", "precision", "use_sim_time", "log_level", "autostart", "mode", "right_image", "right_camera_info"),
        *("depth_image", "mask", "imu", "rectified", "camera_names", "archive", "robot_name", "share_places"),
        "odom_tf",
    }
    for name, text in shown.items():
        assert len(text.split("(default")[0].split()) >= 4, f"{name} is not described: {text}"


def test_without_arguments_the_node_becomes_active_with_what_the_params_file_says(launch):
    launched = launch()
    launched.wait_for("ACTIVATED")
    assert launched.started_with() == {
        "mode": "mode of the file",
        "network": "network of the file",
        "weights": "weights of the file",
        "device": "device of the file",
        "precision": "precision of the file",
        "input.image_transport": "raw",
        "threads": 3,
        "use_sim_time": False,
        "name": "/loftr_front_end",
        "image": "/image",
        "image/compressed": "/image/compressed",
        "camera_info": "/camera_info",
        "right/image": "/right/image",
        "right/image/compressed": "/right/image/compressed",
        "right/camera_info": "/right/camera_info",
        "depth/image": "/depth/image",
        "mask": "/mask",
        "imu": "/imu",
        "input.mask_topic": "default",
        "input.rectified": False,
        "archive.uri": "default",
        "robot_name": "default",
        "fleet.share": False,
        "odometry.publish_tf": False,
    }
    assert "a line for debugging" not in launched.said


def test_a_given_argument_overrides_the_params_file_and_leaves_the_rest_of_it_alone(launch):
    launched = launch("network:=other", "device:=0", "use_sim_time:=true", "log_level:=debug", "name:=eye")
    values = launched.started_with()
    assert (values["network"], values["device"], values["use_sim_time"]) == ("other", "0", True)
    assert values["name"] == "/eye"
    assert (values["weights"], values["precision"], values["threads"]) == (
        "weights of the file",
        "precision of the file",
        3,
    )
    launched.wait_for("a line for debugging")


def test_a_params_file_may_name_the_node_and_arguments_still_win(launch, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(PARAMETERS.replace("/**", "/robot/loftr_front_end").replace("threads: 3", "threads: 5"))
    values = launch(f"params_file:={file}", "namespace:=robot", "weights:=mine.pt").started_with()
    assert (values["threads"], values["weights"], values["network"]) == (5, "mine.pt", "network of the file")


def test_the_cameras_topics_are_taken_and_the_calibration_is_looked_for_beside_the_image(launch):
    values = launch("image:=/left/image_raw", "namespace:=/robot").started_with()
    assert values["image"] == "/left/image_raw"
    assert values["image/compressed"] == "/left/image_raw/compressed"
    assert values["camera_info"] == "/left/camera_info"
    assert values["name"] == "/robot/loftr_front_end"


def test_a_compressed_topic_is_subscribed_to_as_such(launch):
    values = launch("image:=camera/image_raw/compressed", "camera_info:=/mine", "namespace:=a/b").started_with()
    assert values["input.image_transport"] == "compressed"
    assert values["image/compressed"] == "/a/b/camera/image_raw/compressed"
    assert values["camera_info"] == "/mine"


def test_the_second_camera_of_a_pair_has_arguments_of_its_own_and_its_calibration_beside_its_image(launch):
    values = launch("mode:=stereo", "image:=/left/image_raw", "right_image:=/right_eye/image_raw").started_with()
    assert (values["mode"], values["camera_info"]) == ("stereo", "/left/camera_info")
    assert values["right/image"] == "/right_eye/image_raw"
    assert values["right/image/compressed"] == "/right_eye/image_raw/compressed"
    assert values["right/camera_info"] == "/right_eye/camera_info"


def test_a_depth_image_has_an_argument_of_its_own_and_what_is_not_given_keeps_its_name(launch):
    values = launch("mode:=rgbd", "depth_image:=/depth/image_rect", "right_camera_info:=/other").started_with()
    assert (values["mode"], values["depth/image"]) == ("rgbd", "/depth/image_rect")
    assert (values["right/image"], values["right/camera_info"]) == ("/right/image", "/other")


@pytest.mark.parametrize("said", ["none", "latest"])
def test_masks_belong_to_the_images_of_their_stamps_unless_the_params_file_says_latest(launch, tmp_path, said):
    file = tmp_path / "mine.yaml"
    file.write_text(PARAMETERS + f'      mask_topic: "{said}"\n')
    values = launch("mask:=/eyes/mask", f"params_file:={file}").started_with()
    assert values["mask"] == "/eyes/mask"
    assert values["input.mask_topic"] == ("latest" if said == "latest" else "synchronized")


def test_each_named_camera_gets_an_active_node_in_a_namespace_of_its_own(launch):
    launched = launch("camera_names:=[front, 'rear']", "namespace:=robot", "device:=cpu")
    found = launched.all_started_with(2)
    assert set(found) == {"/robot/front/loftr_front_end", "/robot/rear/loftr_front_end"}
    for camera in ("front", "rear"):
        values = found[f"/robot/{camera}/loftr_front_end"]
        assert (values["image"], values["camera_info"]) == (
            f"/robot/{camera}/image_raw",
            f"/robot/{camera}/camera_info",
        )
        assert (values["device"], values["threads"]) == ("cpu", 3)
        launched.wait_for(f"/robot/{camera}/loftr_front_end is active")
    assert launched.interrupt() == 0, launched.said


def test_the_archive_the_robots_name_and_whether_it_shares_reach_the_node(launch):
    values = launch("archive:=~/places", "robot_name:=7", "share_places:=true", "odom_tf:=true").started_with()
    assert (values["archive.uri"], values["robot_name"], values["fleet.share"]) == ("~/places", "7", True)
    assert values["odometry.publish_tf"] is True


def test_cameras_that_share_an_archive_have_names_of_their_own(launch):
    found = launch("camera_names:=[front,rear]", "archive:=/a", "robot_name:=ada").all_started_with(2)
    assert {values["robot_name"] for values in found.values()} == {"ada/front", "ada/rear"}
    assert {values["archive.uri"] for values in found.values()} == {"/a"}


def test_with_named_cameras_a_relative_image_topic_is_below_each_of_them(launch):
    found = launch("camera_names:=front,rear", "image:=left/image_rect", "name:=eye").all_started_with(2)
    assert {values["image"] for values in found.values()} == {"/front/left/image_rect", "/rear/left/image_rect"}
    assert set(found) == {"/front/eye", "/rear/eye"}


def test_included_under_a_pushed_namespace_all_goes_there(launch, tmp_path):
    outer = tmp_path / "outer.launch.py"
    outer.write_text(
        "from launch import LaunchDescription\n"
        "from launch.actions import GroupAction, IncludeLaunchDescription\n"
        "from launch_ros.actions import PushRosNamespace\n"
        "def generate_launch_description():\n"
        f"    ours = IncludeLaunchDescription({str(LAUNCH_FILE)!r}, launch_arguments={{'namespace': 'left', "
        "'log_level': 'debug'}.items())\n"
        "    return LaunchDescription([GroupAction([PushRosNamespace('robot'), ours])])\n"
    )
    launched = launch(file=(str(outer),))
    launched.wait_for("/robot/left/loftr_front_end is active")
    assert launched.started_with()["name"] == "/robot/left/loftr_front_end"
    launched.wait_for("a line for debugging")


def test_ctrl_c_stops_an_active_node_and_the_exit_code_is_zero(launch):
    launched = launch()
    launched.wait_for("is active")
    assert launched.interrupt() == 0, launched.said
    assert "process has finished cleanly" in launched.said
    assert "Traceback" not in launched.said


def test_without_autostart_the_node_is_left_unconfigured(launch):
    launched = launch("autostart:=false")
    launched.wait_for("UP")
    time.sleep(2)
    assert "STARTED" not in launched.said
    assert launched.interrupt() == 0, launched.said


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("weights:=missing", "could not be configured"),
        ("weights:=raise", "met an error"),
        ("network:=refuse", "could not be activated"),
    ],
)
def test_a_node_that_refuses_a_transition_is_told_of_with_what_to_do(launch, argument, words):
    launched = launch(argument)
    launched.wait_for(f"/loftr_front_end {words}")
    assert "ros2 lifecycle set /loftr_front_end" in launched.said
    assert launched.process.poll() is None
    assert launched.interrupt() == 0, launched.said


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("imagee:=/camera", "'imagee' is not one of front_end.launch.py and has no effect; did you mean 'image'?"),
        ("weight:=a.pt", "did you mean 'weights'?"),
        ("colour:=red", "'colour' is not one of front_end.launch.py and has no effect, and like none"),
    ],
)
def test_a_misspelt_argument_is_told_of_with_the_nearest_name_and_the_node_starts(launch, argument, words):
    launched = launch(argument)
    launched.wait_for(words)
    assert launched.started_with()["image"] == "/image"


def test_an_argument_of_a_launch_file_that_includes_ours_is_not_told_of(launch, tmp_path):
    outer = tmp_path / "outer.launch.py"
    outer.write_text(
        "from launch import LaunchDescription\n"
        "from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription\n"
        "def generate_launch_description():\n"
        "    return LaunchDescription([DeclareLaunchArgument('colour', default_value=''), "
        f"IncludeLaunchDescription({str(LAUNCH_FILE)!r})])\n"
    )
    launched = launch("colour:=red", "devices:=cpu", file=(str(outer),))
    launched.wait_for("did you mean 'device'?")
    launched.started_with()
    assert "colour" not in launched.said


def deactivate(domain: int) -> bool:
    """Ask the node itself, like a lifecycle manager; returns whether it succeeded."""
    import rclpy
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from rclpy.executors import SingleThreadedExecutor

    context = rclpy.Context()
    context.init(args=None, domain_id=domain)
    node = rclpy.create_node("manager", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        client = node.create_client(ChangeState, "/loftr_front_end/change_state")
        assert client.wait_for_service(timeout_sec=20)
        future = client.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE)))
        executor.spin_until_future_complete(future, timeout_sec=20)
        return bool(future.result().success)
    finally:
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def test_a_node_that_someone_deactivates_stays_inactive(launch):
    launched = launch()
    launched.wait_for("is active")
    assert deactivate(launched.domain)
    time.sleep(2)
    assert launched.said.count("ACTIVATED") == 1


def test_a_node_that_dies_ends_the_launch_with_an_error(launch):
    launched = launch("weights:=crash")
    assert launched.process.wait(timeout=PATIENCE) == 1
    assert "the front end ended by itself with exit code 3" in launched.said


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("params_file:=nowhere.yaml", "there is no file nowhere.yaml"),
        ("log_level:=loud", "loud"),
        ("autostart:=maybe", "maybe"),
        ("mode:=triple", "triple"),
        ("share_places:=perhaps", "perhaps"),
        ("camera_names:=[front,2nd]", "'2nd' is not a name"),
        ("camera_names:=[front,front]", "'front' is not a name (letters, digits, _), or there twice"),
        ("camera_names:=[front,rear] image:=/camera/image", "would be the same topic for all cameras"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_starts(launch, argument, words):
    launched = launch(*re.split(r" (?=\w+:=)", argument))
    assert launched.process.wait(timeout=PATIENCE) == 1
    assert words in launched.said
    assert "process started" not in launched.said


def test_the_example_with_image_proc_shows_its_arguments(launch):
    example = LAUNCH_FILE.with_name("with_image_proc.launch.py")
    shown = arguments_shown(launch(file=("-s", str(example))))
    assert set(shown) == {"image"}


def test_the_example_with_image_proc_starts_the_front_end_on_what_is_rectified(launch, tmp_path):
    """The container itself is omitted, because image_proc may be missing."""
    example = LAUNCH_FILE.with_name("with_image_proc.launch.py").read_text()
    assert "return [container, front_end]" in example
    file = tmp_path / "example.launch.py"
    file.write_text(example.replace("return [container, front_end]", "return [front_end]"))
    values = launch("image:=/eye/image_raw", "device:=cpu", "archive:=/a", file=(str(file),)).started_with()
    assert (values["image"], values["camera_info"]) == ("/eye/image_rect", "/eye/camera_info")
    assert (values["input.rectified"], values["device"], values["archive.uri"]) == (True, "cpu", "/a")


def test_the_real_node_becomes_active_and_ctrl_c_stops_it_with_exit_code_zero(tmp_path, ros_domain):
    pytest.importorskip("torch")
    from ament_index_python import get_package_prefix

    assert (Path(get_package_prefix("loftr_ros")) / "lib" / "loftr_ros" / "front_end").is_file()
    environment = os.environ | {"ROS_LOG_DIR": str(tmp_path / "log"), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    launched = Launched(tmp_path / "output", environment, "loftr_ros", "front_end.launch.py")
    try:
        launched.wait_for("/loftr_front_end is active")
        assert "waiting for images on /image" in launched.said
        assert launched.interrupt() == 0, launched.said
        assert "process has finished cleanly" in launched.said and "Traceback" not in launched.said
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launched.process.pid, signal.SIGKILL)
        launched.process.wait()


BACK_END = """#!{python}
import json, signal, sys
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

class StandIn(LifecycleNode):
    def __init__(self):
        super().__init__("stand_in")
        for name in ("front_ends", "robots", "map_file", "inertial_sensor.topic"):
            self.declare_parameter(name, "default")

    def on_activate(self, state):
        names = ("front_ends", "robots", "map_file", "inertial_sensor.topic", "use_sim_time")
        values = {{name: self.get_parameter(name).value for name in names}}
        values["name"] = self.get_fully_qualified_name()
        print("BACK END", json.dumps(values), flush=True)
        return super().on_activate(state)

rclpy.init()
try:
    rclpy.spin(StandIn())
except (KeyboardInterrupt, ExternalShutdownException):
    pass
"""


EARLY = """
    node = StandIn()
    node.trigger_configure()
    while rclpy.ok():
        try:
            rclpy.spin(node)
        except RuntimeError:
            pass
"""


def with_back_end(tmp_path, script):
    """Adds the launch file of both nodes, the back end's parameters and its stand-in; returns the parameter file."""
    folder = LAUNCH_FILE.parents[1]
    prefix = tmp_path / "prefix"
    share = prefix / "share" / "loftr_ros"
    (share / "launch" / "slam.launch.py").write_text((folder / "launch" / "slam.launch.py").read_text())
    file = share / "config" / "back_end.yaml"
    file.write_text('/**:\n  ros__parameters:\n    robots: "of the file"\n')
    executable = prefix / "lib" / "loftr_ros" / "back_end"
    executable.write_text(script.format(python=sys.executable))
    executable.chmod(0o755)
    return file


def test_both_nodes_become_active_and_know_each_other(launch, tmp_path):
    file = with_back_end(tmp_path, BACK_END)
    arguments = ("namespace:=left", "map_file:=/a/map.npz", "use_sim_time:=true", "device:=cpu", "imu:=/imu/data")
    arguments += (f"back_end_params_file:={file}", "back_end_name:=loftr_back_end", "archive:=~/.ros/loftr_ros/places")
    launched = launch(*arguments, file=("loftr_ros", "slam.launch.py"))
    launched.wait_for("BACK END")
    found = json.loads(re.search(r"BACK END (\{.*\})", launched.said)[1])
    assert found == {
        "front_ends": "loftr_front_end",
        "robots": "of the file",
        "map_file": "/a/map.npz",
        "inertial_sensor.topic": "/imu/data",
        "use_sim_time": True,
        "name": "/left/loftr_back_end",
    }
    launched.wait_for("ACTIVATED")
    values = launched.started_with()
    assert (values["device"], values["archive.uri"]) == ("cpu", "~/.ros/loftr_ros/places")
    assert (values["name"], values["use_sim_time"]) == ("/left/loftr_front_end", True)
    assert values["imu"] == "/imu/data"
    launched.wait_for("/left/loftr_back_end is active")
    assert "has no effect" not in launched.said
    assert launched.interrupt() == 0, launched.said


def test_a_back_end_of_which_nothing_was_heard_is_activated_all_the_same(launch, tmp_path):
    # Configured before anybody listens, and without an answer to the launch, as where DDS loses both.
    with_back_end(tmp_path, BACK_END.replace("    rclpy.spin(StandIn())\n", EARLY))
    launched = launch(file=("loftr_ros", "slam.launch.py"))
    launched.wait_for("loftr_back_end is active")
    assert launched.interrupt() == 0, launched.said


EXAMPLES = LAUNCH_FILE.parents[1] / "examples"
# Stands in for a camera driver's launch file: says what it was given.
DRIVER = """
import json
from launch import LaunchDescription
from launch.actions import OpaqueFunction
def say(context):
    print("DRIVER", json.dumps(dict(context.launch_configurations)), flush=True)
def generate_launch_description():
    return LaunchDescription([OpaqueFunction(function=say)])
"""
# Stands in for robot_localization's filter: says which topic of odometry its parameters name.
FILTER = """#!{python}
import sys
import rclpy
rclpy.init(args=sys.argv)
node = rclpy.create_node("stand_in", automatically_declare_parameters_from_overrides=True)
config = node.get_parameter("odom0_config").value
print("FILTER", node.get_name(), node.get_parameter("odom0").value, sum(config[6:12]), flush=True)
rclpy.spin(node)
"""


@pytest.fixture
def others(launch, tmp_path):
    """The packages of others that the examples start, as stand-ins on the prefix that `launch` uses."""
    prefix = tmp_path / "prefix"
    for package, file in (("realsense2_camera", "rs_launch.py"), ("zed_wrapper", "zed_camera.launch.py")):
        folder = prefix / "share" / package / "launch"
        folder.mkdir(parents=True)
        (folder / file).write_text(DRIVER)
        (prefix / "share" / "ament_index" / "resource_index" / "packages" / package).touch()
    executable = prefix / "lib" / "robot_localization" / "ekf_node"
    executable.parent.mkdir()
    (prefix / "share" / "ament_index" / "resource_index" / "packages" / "robot_localization").touch()
    executable.write_text(FILTER.format(python=sys.executable))
    executable.chmod(0o755)


CAMERAS = [
    (
        ("realsense.launch.py", "serial_no:=7"),
        {"align_depth.enable": "true", "enable_sync": "true", "enable_infra1": "false", "serial_no": "7"},
        {
            "mode": "rgbd",
            "image": "/camera/camera/color/image_raw",
            "camera_info": "/camera/camera/color/camera_info",
            "depth/image": "/camera/camera/aligned_depth_to_color/image_raw",
            "input.rectified": False,
        },
    ),
    (
        ("realsense.launch.py", "mode:=stereo", "camera_namespace:=robot", "camera_name:=eye", "device:=cpu"),
        {"enable_infra1": "true", "enable_infra2": "true", "enable_color": "false", "camera_name": "eye"},
        {
            "mode": "stereo",
            "image": "/robot/eye/infra1/image_rect_raw",
            "right/image": "/robot/eye/infra2/image_rect_raw",
            "right/camera_info": "/robot/eye/infra2/camera_info",
            "input.rectified": True,
            "device": "cpu",
        },
    ),
    (
        ("zed.launch.py", "camera_model:=zed2i"),
        {"camera_model": "zed2i", "publish_tf": "false"},
        {
            "mode": "stereo",
            "image": "/zed/zed_node/left/color/rect/image",
            "camera_info": "/zed/zed_node/left/color/rect/camera_info",
            "right/image": "/zed/zed_node/right/color/rect/image",
            "input.rectified": True,
        },
    ),
    (
        ("zed.launch.py", "camera_model:=zedx", "mode:=rgbd", "camera_name:=front"),
        {"camera_name": "front"},
        {
            "mode": "rgbd",
            "image": "/front/zed_node/rgb/color/rect/image",
            "depth/image": "/front/zed_node/depth/depth_registered",
        },
    ),
]


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(("command", "driver", "node"), CAMERAS)
def test_the_cameras_examples_start_the_driver_and_the_node_on_the_drivers_topics(launch, command, driver, node):
    launched = launch(*command[1:], file=(str(EXAMPLES / command[0]),))
    values = launched.started_with()
    given = json.loads(re.findall(r"DRIVER (\{.*\})", launched.said)[0])
    assert {name: values[name] for name in node} == node
    assert {name: given.get(name) for name in driver} == driver
    assert "has no effect" not in launched.said
    for file in (value for name, value in given.items() if name == "config_file"):
        assert Path(file).is_file()


@pytest.mark.usefixtures("others")
def test_the_example_with_robot_localization_starts_the_filter_on_the_nodes_odometry(launch):
    file = str(EXAMPLES / "robot_localization.launch.py")
    launched = launch("mode:=rgbd", "image:=/eye/image_raw", "depth_image:=/eye/depth", file=(file,))
    launched.wait_for("FILTER ekf_filter_node /loftr_front_end/odometry 6")
    values = launched.started_with()
    assert (values["name"], values["mode"], values["depth/image"]) == ("/loftr_front_end", "rgbd", "/eye/depth")


def test_an_example_whose_cameras_model_is_not_named_is_refused(launch):
    launched = launch(file=(str(EXAMPLES / "zed.launch.py"),))
    assert launched.process.wait(timeout=PATIENCE) == 1
    assert "camera_model" in launched.said and "process started" not in launched.said
