"""Shared memory for images in the middleware, and reports if there is too little: the real player over DDS."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from loftr_ros.ros.input import inputs
from loftr_ros.ros.input.inputs import ImageInput
from loftr_ros.ros.output.reports import ErrorLog
from loftr_ros.ros.output.statistics import Statistics
from loftr_ros.ros.parameters import InputParameters
from loftr_ros.ros.transport import DEFAULT_FILES, SEGMENT, VARIABLES, provide_profile

CONFIG = Path(__file__).resolve().parents[1] / "config"
PATIENCE = 40.0
# Half a megabyte, as Fast DDS has by default.
USERS_OWN = """<?xml version="1.0" encoding="UTF-8"?>
<dds xmlns="http://www.eprosima.com"><profiles>
<transport_descriptors><transport_descriptor>
<transport_id>mine</transport_id><type>SHM</type><segment_size>524288</segment_size>
</transport_descriptor></transport_descriptors>
<participant profile_name="mine" is_default_profile="true"><rtps>
<userTransports><transport_id>mine</transport_id></userTransports>
<useBuiltinTransports>false</useBuiltinTransports>
</rtps></participant></profiles></dds>
"""

# --- the profile ---


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty environment, in a folder without files."""
    monkeypatch.chdir(tmp_path)
    return {}


def test_who_has_no_profile_gets_ours_for_every_version_of_fast_dds(empty: dict[str, str]) -> None:
    room = provide_profile(empty)
    assert room.profile is not None and room.profile.name == "fastdds.xml" and not room.is_short
    assert empty == dict.fromkeys(VARIABLES, str(room.profile)) and room.profile.is_file()
    again = provide_profile(empty)
    assert again.profile is None and str(room.profile) in again.reason, "a child process finds that of its parent"


@pytest.mark.parametrize(
    "said",
    [
        {"FASTRTPS_DEFAULT_PROFILES_FILE": "mine.xml"},
        {"FASTDDS_DEFAULT_PROFILES_FILE": "mine.xml"},
        {"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"},
        {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"},
    ],
)
def test_what_the_user_said_of_the_transport_is_left_alone(empty: dict[str, str], said: dict[str, str]) -> None:
    environment = empty | said
    room = provide_profile(environment)
    assert room.profile is None and not room.is_short and environment == said
    assert next(iter(said.values())) in room.reason


@pytest.mark.parametrize("name", DEFAULT_FILES)
def test_a_profile_in_the_current_folder_is_the_users_unless_it_is_to_be_skipped(
    empty: dict[str, str], name: str
) -> None:
    Path(name).write_text(USERS_OWN)
    assert provide_profile(empty).profile is None and name in provide_profile(empty).reason
    assert provide_profile(empty | {"SKIP_DEFAULT_XML_FILE": "1"}).profile is not None


@pytest.mark.parametrize("said", [{"ROS_LOCALHOST_ONLY": "1"}, {"ROS_AUTOMATIC_DISCOVERY_RANGE": "localhost"}])
def test_what_is_to_stay_on_this_machine_gets_no_udp_of_ours(empty: dict[str, str], said: dict[str, str]) -> None:
    room = provide_profile(empty | said)
    assert room.profile is not None and "UDPv4" not in room.profile.read_text()


def test_with_too_little_shared_memory_the_profile_is_not_used_and_a_warning_says_what_to_do(
    empty: dict[str, str], small_disk: Path
) -> None:
    room = provide_profile(empty, small_disk)
    assert room.profile is None and room.is_short and not empty
    assert "1 MB left" in room.reason and "--shm-size" in room.reason


def test_the_files_differ_in_udp_alone_and_have_the_room_that_the_code_says() -> None:
    trees = [xml.etree.ElementTree.parse(CONFIG / name).getroot() for name in ("fastdds.xml", "fastdds_localhost.xml")]
    space = "{http://www.eprosima.com}"
    for tree, kinds in zip(trees, (["SHM", "UDPv4"], ["SHM"]), strict=True):
        assert [each.text for each in tree.iter(f"{space}type")] == kinds
        declared = [each.text for each in tree.iter(f"{space}transport_id")]
        assert declared[: len(kinds)] == declared[len(kinds) :], "what is declared is used"
        assert [int(each.text or "") for each in tree.iter(f"{space}segment_size")] == [SEGMENT]


# --- over DDS ---


class Listener:
    """The node's inputs without the node, and their reports."""

    def __init__(self, domain: int) -> None:
        self.context = rclpy.Context()
        self.context.init(args=None, domain_id=domain)
        self.node = rclpy.create_node("listener", context=self.context, start_parameter_services=False)
        self.statistics = Statistics(10)
        self.said: list[str] = []
        logger = SimpleNamespace(**{
            name: lambda line, once=False, name=name: self.said.append(f"{name}: {line}")
            for name in ("info", "warning", "error")
        })  # fmt: skip
        fake: Any = SimpleNamespace(get_logger=lambda: logger)
        self.errors = ErrorLog(fake, self.statistics, 0.0)
        self.arrived: list[Any] = []
        self.input: ImageInput | None = None
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self._spin, daemon=True)

    def listen(self, mode: str = "mono", **parameters: Any) -> None:
        """Subscribe like the node."""
        self.input = ImageInput(
            self.node, InputParameters(**parameters), mode, self.statistics, self.arrived.append, self.errors
        )
        self.thread.start()

    def wait(self, condition: Any, what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}; {self.statistics.snapshot()}; {self.said}"
            time.sleep(0.02)

    def close(self) -> None:
        self.context.try_shutdown()
        if self.thread.is_alive():
            self.thread.join()
        self.node.destroy_node()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self.executor.spin()


@pytest.fixture
def listener(ros_domain: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setattr(inputs, "SILENCE", 2 * PATIENCE)
    result = Listener(ros_domain)
    yield result
    result.close()


def play(folder: Path, mode: str, hz: float, seconds: float, *options: str, **environment: str) -> int:
    """The real player in its own process and folder; returns the number of frames it reports as published."""
    command = [sys.executable, "-m", "loftr_ros.cli", "play", "rendered:room?frames=3", "--mode", mode, "-q"]
    command += ["--loop", "--hz", str(hz), "--duration", str(seconds), *options]
    done = subprocess.run(
        command, env=os.environ | environment, cwd=folder, capture_output=True, text=True, timeout=2 * PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.split(" frames in")[0].split()[-1])


LONG = [pytest.param(mode, hz, marks=pytest.mark.long)
        for mode, hz in (("mono", 2.0), ("mono", 30.0), ("stereo", 2.0), ("stereo", 30.0), ("rgbd", 30.0))]  # fmt: skip


@pytest.mark.parametrize(("mode", "hz"), [("rgbd", 2.0), *LONG])
def test_of_raw_images_and_what_belongs_to_them_none_is_lost_between_player_and_node(
    listener: Listener, tmp_path: Path, mode: str, hz: float
) -> None:
    listener.listen(mode)
    published = play(tmp_path, mode, hz, 2.0)
    listener.wait(lambda: len(listener.arrived) >= published, "every frame with all that belongs to it")
    found = listener.statistics.snapshot()
    assert (found.received, found.unpaired, found.lost, found.failed) == (published, 0, 0, 0)
    assert listener.input is not None and listener.input.pending == 0 and not listener.said


@pytest.mark.long
def test_where_the_users_own_profile_has_no_room_the_loss_is_named_and_nothing_stays_pending(
    listener: Listener, tmp_path: Path
) -> None:
    (tmp_path / "mine.xml").write_text(USERS_OWN)
    listener.listen("rgbd")
    published = play(tmp_path, "rgbd", 10.0, 2.0, **dict.fromkeys(VARIABLES, str(tmp_path / "mine.xml")))
    listener.wait(lambda: listener.input is not None and listener.input.pending == 0, "the end of waiting")
    found = listener.statistics.snapshot()
    assert found.lost > 0 and found.unpaired > 0 and found.received == len(listener.arrived) + found.unpaired
    assert len(listener.arrived) < published
    said = "\n".join(listener.said)
    assert "[transport] the middleware lost" in said and "docs/transport.md" in said
    assert "remap" not in said.lower(), "the topic has a publisher"


# --- topics that are not there ---


def test_after_some_seconds_without_an_image_the_log_lists_the_topics_that_there_are(
    listener: Listener, ros_domain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "SILENCE", 1.5)
    # A process of Fast DDS cannot have one topic with two types, but two processes can.
    context = rclpy.Context()
    context.init(args=None, domain_id=ros_domain)
    other = rclpy.create_node("camera", context=context, start_parameter_services=False)
    other.create_publisher(Image, "/camera/color/image_raw", 1)
    other.create_publisher(CompressedImage, "/camera/color/image_raw/compressed", 1)
    other.create_publisher(CameraInfo, "/camera/color/camera_info", 1)
    other.create_publisher(PointCloud2, "/image", 1)
    listener.listen(camera_info="none")
    listener.wait(lambda: listener.said, "a warning")
    (said,) = listener.said
    assert said.startswith("warning: no image received on /image (publishers: 1) so far")
    assert "/image is of type sensor_msgs/msg/PointCloud2, not sensor_msgs/msg/Image" in said
    assert "/camera/color/image_raw (Image)" in said and "/camera/color/image_raw/compressed (CompressedImage)" in said
    assert "camera_info" not in said
    other.destroy_node()
    context.try_shutdown()


def test_a_calibration_that_does_not_come_is_told_of_with_the_topics_that_there_are(listener: Listener) -> None:
    other = rclpy.create_node("camera", context=listener.context, start_parameter_services=False)
    other.create_publisher(CameraInfo, "/camera/info", 1)
    images = other.create_publisher(Image, "/image", 1)
    listener.listen(camera_info="latest")
    listener.wait(images.get_subscription_count, "the subscription")

    def sent() -> bool:
        images.publish(Image())
        time.sleep(0.1)
        return bool(listener.said)

    listener.wait(sent, "an error")
    assert "no CameraInfo received yet on /camera_info (publishers: 0)" in listener.said[0]
    assert "/camera/info (CameraInfo)" in listener.said[0] and "transient_local" in listener.said[0]
    other.destroy_node()


def test_drivers_that_stamp_with_zero_are_paired_and_stamped_by_arrival_where_that_is_asked_for(
    listener: Listener,
) -> None:
    other = rclpy.create_node("camera", context=listener.context, start_parameter_services=False)
    publishers = [other.create_publisher(Image, f"/{name}", 10) for name in ("image", "depth/image")]
    infos = other.create_publisher(CameraInfo, "/camera_info", 10)
    listener.listen("rgbd", stamps="arrival", slop=0.2)
    listener.wait(lambda: all(each.get_subscription_count() for each in (*publishers, infos)), "the subscriptions")

    def sent() -> bool:
        for publisher in publishers:
            publisher.publish(Image())
        infos.publish(CameraInfo())
        time.sleep(0.5)
        return len(listener.arrived) >= 3

    listener.wait(sent, "three sets")
    stamps = [each.image.header.stamp for each in listener.arrived]
    times = [stamp.sec + stamp.nanosec * 1e-9 for stamp in stamps]
    assert times == sorted(set(times)) and abs(times[-1] - time.time()) < PATIENCE
    other.destroy_node()
