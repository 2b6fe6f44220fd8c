"""The player over real DDS: what a subscriber receives is what the source holds, when it is due."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("needs rclpy", allow_module_level=True)

import rclpy
from bags import IMAGE, INFO, K, camera_info, image, write_bag
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.frontend.camera import CameraModel
from loftr_ros.ros.images import decode_compressed, decode_image
from loftr_ros.ros.player import PlayError, play
from loftr_ros.ros.source_messages import camera_info_message
from loftr_ros.sources import SourceError, open_source

pytestmark = [pytest.mark.ros, pytest.mark.usefixtures("ros_domain")]
WIDTH, HEIGHT = 62, 42


def nanoseconds(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def picture(number):
    ramp = np.add.outer(np.arange(HEIGHT), 2 * np.arange(WIDTH)) // 2
    return (ramp + 20 * number).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    for k in range(6):
        cv2.imwrite(str(path / f"{k}.png"), picture(k))
    return path


@pytest.fixture
def camera():
    matrix = np.array([[400.0, 0, 31], [0, 401, 21], [0, 0, 1]])
    return CameraModel(WIDTH, HEIGHT, matrix, "plumb_bob", np.array([0.1, -0.05, 0, 0, 0]))


@pytest.fixture
def listener():
    """Collects what comes, with the time of its arrival; raw topics as bytes too."""
    context = Context()
    rclpy.init(context=context)
    node = Node("listener", context=context)
    heard = SimpleNamespace(images=[], compressed=[], infos=[], clocks=[], serialized=[], times=[], node=node)

    def take_image(data):
        heard.times.append(time.monotonic())
        heard.serialized.append(data)
        heard.images.append(deserialize_message(data, Image))

    qos = QoSProfile(depth=100)
    node.create_subscription(CameraInfo, "camera_info", heard.infos.append, qos)
    node.create_subscription(CompressedImage, "image/compressed", heard.compressed.append, qos)
    node.create_subscription(Clock, "/clock", heard.clocks.append, qos)
    node.create_subscription(Image, "image", take_image, qos, raw=True)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield heard
    executor.shutdown()
    context.try_shutdown()
    thread.join(5)
    node.destroy_node()


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.005)


def play_quietly(source, **options):
    return play(source, progress=False, **{"wait_for_subscriber": 10, **options})


def test_every_frame_arrives_once_in_order_with_its_stamp_pixels_and_calibration(folder, camera, listener):
    source = open_source(folder, camera=camera, rate=50)
    report = play_quietly(source)
    until(lambda: len(listener.images) == len(listener.infos) == 6)
    assert (report.published, report.failed, report.interrupted) == (6, 0, False)
    for frame, message, info in zip(source, listener.images, listener.infos, strict=True):
        assert nanoseconds(message) == nanoseconds(info) == frame.stamp_ns
        assert message.header.frame_id == info.header.frame_id == frame.frame_id
        assert message.encoding == "mono8"
        assert np.array_equal(decode_image(message), frame.decode())
        assert CameraModel.from_camera_info(info).same_as(camera)


def test_a_png_passes_unchanged_with_the_compressed_transport(folder, camera, listener):
    source = open_source(folder, camera=camera, rate=50)
    play_quietly(source, image_transport="compressed")
    until(lambda: len(listener.compressed) == 6)
    for frame, message in zip(source, listener.compressed, strict=True):
        assert message.format == "png"
        assert message.data.tobytes() == frame.image.data
    assert not listener.images


def test_what_is_not_encoded_goes_out_lossless_with_the_compressed_transport(listener):
    source = open_source("rendered?frames=2&width=64&height=48")
    play_quietly(source, image_transport="compressed")
    until(lambda: len(listener.compressed) == 2)
    for frame, message in zip(source, listener.compressed, strict=True):
        assert np.array_equal(decode_compressed(message), frame.decode())


def test_the_messages_of_a_bag_pass_byte_for_byte_and_camera_info_keeps_its_projection(tmp_path, listener):
    messages = []
    for k in range(3):
        stamp = 5_000_000_000 + k * 20_000_000
        color = np.stack([picture(k), 255 - picture(k), picture(k + 1)], axis=2)
        messages.append(("/cam/image", IMAGE, stamp, image(color, stamp, "rgb8", padding=5)))
        messages.append(("/cam/camera_info", INFO, stamp, camera_info(WIDTH, HEIGHT, stamp)))
    with open_source(write_bag(tmp_path / "bag", messages)) as source:
        play_quietly(source)
        frames = list(source)
    until(lambda: len(listener.serialized) == len(listener.infos) == 3)
    # What follows the encapsulation's four bytes is the message; its options may say how it is padded.
    assert [bytes(data)[4:] for data in listener.serialized] == [frame.image.serialized[4:] for frame in frames]
    assert listener.images[0].encoding == "rgb8"
    assert listener.images[0].step == 3 * WIDTH + 5
    assert listener.infos[0].p.tolist() == list(range(12))
    assert listener.infos[0].k.tolist() == list(K)
    assert nanoseconds(listener.infos[2]) == nanoseconds(listener.images[2])


def test_a_bag_with_new_stamps_keeps_everything_else(tmp_path, listener):
    messages = [("/cam/image", IMAGE, 10**9, image(picture(2), 10**9, padding=5))]
    before = time.time_ns()
    with open_source(write_bag(tmp_path / "bag", messages)) as source:
        play_quietly(source, now=True)
    until(lambda: listener.images)
    (message,) = listener.images
    assert before <= nanoseconds(message) <= time.time_ns()
    assert (message.step, message.encoding, message.header.frame_id) == (WIDTH + 5, "mono8", "left_optical")
    assert np.array_equal(decode_image(message), picture(2))


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 0.5), ({"rate": 4.0}, 0.125), ({"hz": 20.0}, 0.25)], ids=["stamps", "rate", "hz"]
)
def test_frames_come_at_the_pace_that_was_asked_for(folder, listener, options, expected):
    report = play_quietly(open_source(folder, rate=10), preload=True, **options)
    until(lambda: len(listener.images) == 6)
    assert report.seconds == pytest.approx(expected, abs=0.06)
    assert listener.times[-1] - listener.times[0] == pytest.approx(expected, abs=0.15)


def test_a_loop_goes_on_with_rising_stamps_until_its_time_is_over(folder, listener):
    report = play_quietly(open_source(folder, rate=100), loop=True, duration=0.3, preload=True)
    until(lambda: len(listener.images) == report.published)
    stamps = [nanoseconds(message) for message in listener.images]
    assert len(stamps) > 12
    assert set(np.diff(stamps)) == {10_000_000}
    assert np.array_equal(decode_image(listener.images[7]), picture(1))


def test_color_is_published_where_it_is_asked_for(tmp_path, listener):
    color = np.dstack([picture(0), picture(3), picture(5)])
    cv2.imwrite(str(tmp_path / "0.png"), color)
    play_quietly(open_source(tmp_path), color=True)
    until(lambda: listener.images)
    (message,) = listener.images
    assert (message.encoding, message.step) == ("bgr8", 3 * WIDTH)
    assert np.array_equal(np.frombuffer(message.data, np.uint8).reshape(color.shape), color)


def test_the_clock_shows_each_frame_s_stamp(folder, listener):
    play_quietly(open_source(folder, rate=50), clock=True)
    until(lambda: len(listener.images) == 6 and listener.clocks)
    clocks = [message.clock.sec * 10**9 + message.clock.nanosec for message in listener.clocks]
    assert clocks == [nanoseconds(message) for message in listener.images][-len(clocks) :]


def test_a_damaged_frame_is_left_out_and_counted(folder, listener):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    report = play_quietly(open_source(folder, rate=50))
    assert (report.published, report.failed) == (5, 1)
    until(lambda: len(listener.images) == 5)


@pytest.mark.parametrize("loop", [False, True])
def test_a_source_of_damaged_frames_alone_is_an_error_and_never_an_endless_loop(folder, listener, loop):
    for file in folder.iterdir():
        file.write_bytes(b"\x89PNG")
    with pytest.raises(SourceError, match="not one"):
        play_quietly(open_source(folder, rate=100), loop=loop)


def test_topics_can_be_remapped_and_put_in_a_namespace(folder, listener):
    heard = []
    listener.node.create_subscription(Image, "/rig/left/image_raw", heard.append, 10)
    play_quietly(open_source(folder, rate=50), namespace="rig", ros_args=("--ros-args", "-r", "image:=left/image_raw"))
    until(lambda: len(heard) == 6)


def test_without_a_subscriber_it_says_so_in_time_or_does_not_wait(folder):
    began = time.monotonic()
    with pytest.raises(PlayError, match=r"nobody subscribed to /image within 0.2 s.*ROS_DOMAIN_ID"):
        play(open_source(folder), wait_for_subscriber=0.2, progress=False)
    assert time.monotonic() - began < 3
    assert play(open_source(folder, rate=100), wait_for_subscriber=None, progress=False).published == 6


@pytest.mark.parametrize("options", [{"image_transport": "theora"}, {"rate": 0.0}, {"hz": -1.0}, {"depth": 0}])
def test_wrong_arguments_are_refused(folder, options):
    with pytest.raises(PlayError):
        play_quietly(open_source(folder), **options)


def test_ctrl_c_ends_it_cleanly_with_a_report(folder):
    code = (
        "import sys\n"
        "from loftr_ros.ros.player import play\n"
        "from loftr_ros.sources import open_source\n"
        "print('ready', flush=True)\n"
        "report = play(open_source(sys.argv[1]), loop=True, wait_for_subscriber=None, progress=False)\n"
        "print(report.interrupted, report.published > 0, flush=True)\n"
    )
    isolated = "-P" if sys.version_info >= (3, 11) else "-E"
    command = [sys.executable, isolated, "-c", code, str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "True True\n"), errors
    assert "Traceback" not in errors


def test_a_camera_without_distortion_is_written_so_that_all_ros_tools_know_it(camera):
    from std_msgs.msg import Header

    plain = CameraModel(WIDTH, HEIGHT, camera.matrix)
    message = camera_info_message(Header(), plain)
    assert message.distortion_model == "plumb_bob"
    assert message.d.tolist() == [0] * 5
    assert message.p.reshape(3, 4)[:, :3].tolist() == camera.matrix.tolist()
    assert CameraModel.from_camera_info(message).same_as(plain)
