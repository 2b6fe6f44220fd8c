"""The player over real DDS: a subscriber receives the source's contents at the right time."""

from __future__ import annotations

import importlib.util
import json
import re
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
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings import SourceError, open_source
from loftr_ros.recordings.decoding import decode_compressed, decode_image
from loftr_ros.recordings.imu import RecordedImu
from loftr_ros.tools.player.imu import ImuTopic
from loftr_ros.tools.player.messages import camera_info_message
from loftr_ros.tools.player.player import PlayError, play
from loftr_ros.tools.player.topics import Topics

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
    """Collects messages with their time of arrival; raw topics as bytes too."""
    context = Context()
    rclpy.init(context=context)
    node = Node("listener", context=context)
    heard = SimpleNamespace(images=[], compressed=[], infos=[], clocks=[], serialized=[], node=node)

    def take_image(data):
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


class MadeClock:
    """In place of the player's `time`: only sleeping takes time, however busy the machine is."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("loftr_ros.tools.player.player.time", self)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        time.sleep(seconds)
        self.now += seconds


def until(condition):
    end = time.monotonic() + 40.0
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.005)


def play_quietly(source, **options):
    return play(source, progress=False, **{"wait_for_subscriber": 40, **options})


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


def test_an_inertial_sensor_s_samples_arrive_once_each_up_to_their_image_in_every_round(folder, camera, listener):
    samples = []
    listener.node.create_subscription(Imu, "imu", samples.append, QoSProfile(depth=1000))
    source = open_source(folder, camera=camera, rate=10)
    first = next(iter(source)).stamp_ns
    stamps = first + np.arange(-100, 200) * 5_000_000
    numbers = np.arange(300.0)[:, None] * [1, 10, 100]
    source.imu = RecordedImu(stamps, numbers, numbers + 0.5, np.eye(4))
    report = play_quietly(source, rate=5.0)
    until(lambda: len(listener.images) == 6 and len(samples) >= 144)
    assert report.published == 6
    # From 0.2 s before the first image to 20 ms after the last one.
    assert [nanoseconds(each) for each in samples] == stamps[60:205].tolist()
    assert samples[10].angular_velocity.y == numbers[70, 1]
    assert samples[10].linear_acceleration.z == numbers[70, 2] + 0.5
    moved = ImuTopic(listener.node, source.imu, QoSProfile(depth=10))
    published = []
    moved._publisher = SimpleNamespace(publish=published.append)
    moved.publish_until(first, first)
    moved.publish_until(first + 50_000_000, first + 50_000_000)
    moved.publish_until(first, first + 600_000_000)  # the next round
    assert [nanoseconds(each) for each in published[55:]] == (stamps[60:105] + 600_000_000).tolist()


def test_a_png_passes_unchanged_with_the_compressed_transport(folder, camera, listener):
    source = open_source(folder, camera=camera, rate=50)
    play_quietly(source, image_transport="compressed")
    until(lambda: len(listener.compressed) == 6)
    for frame, message in zip(source, listener.compressed, strict=True):
        assert message.format == "png"
        assert message.data.tobytes() == frame.image.data
    assert not listener.images


def test_what_is_not_encoded_goes_out_lossless_with_the_compressed_transport(listener):
    source = open_source("rendered?seed=3&frames=2&width=64&height=48")
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
def test_frames_come_at_the_pace_that_was_asked_for_though_publishing_takes_time(
    folder, listener, monkeypatch, options, expected
):
    clock, publish, times = MadeClock(monkeypatch), Topics.publish, []

    def slow(*arguments):
        times.append(clock.now)
        publish(*arguments)
        clock.now += 0.02

    monkeypatch.setattr(Topics, "publish", slow)
    report = play_quietly(open_source(folder, rate=10), preload=True, **options)
    until(lambda: len(listener.images) == 6)
    assert np.diff(times) == pytest.approx(expected / 5)
    assert report.seconds == pytest.approx(expected)
    assert report.late == 0


def test_a_loop_goes_on_with_rising_stamps_until_its_time_is_over(folder, listener):
    report = play_quietly(open_source(folder, rate=100), loop=True, duration=0.3, preload=True)
    until(lambda: len(listener.images) == report.published)
    stamps = [nanoseconds(message) for message in listener.images]
    assert len(stamps) > 12
    assert set(np.diff(stamps)) == {10_000_000}
    assert np.array_equal(decode_image(listener.images[7]), picture(1))


def test_back_and_forth_plays_every_image_but_the_last_ones_of_a_round_once_a_round_and_its_stamps_rise(
    folder, listener
):
    report = play_quietly(open_source(folder, rate=100), back_and_forth=True, duration=0.3)
    until(lambda: len(listener.images) == report.published)
    assert set(np.diff([nanoseconds(message) for message in listener.images])) == {10_000_000}
    shown = [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 4]
    assert len(listener.images) > len(shown)
    for message, number in zip(listener.images, shown, strict=False):
        assert np.array_equal(decode_image(message), picture(number))


def test_an_inertial_sensor_is_not_played_backward(folder):
    source = open_source(folder, rate=100)
    source.imu = RecordedImu(np.arange(3) * 10**7, np.zeros((3, 3)), None, np.eye(4))
    with pytest.raises(PlayError, match="backward"):
        play_quietly(source, back_and_forth=True)


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
    with pytest.raises(SourceError, match=r"^none of|^no frame"):
        play_quietly(open_source(folder, rate=100), loop=loop)


def test_topics_can_be_remapped_and_put_in_a_namespace(folder, listener):
    heard = []
    listener.node.create_subscription(Image, "/rig/left/image_raw", heard.append, 10)
    play_quietly(open_source(folder, rate=50), namespace="rig", ros_args=("--ros-args", "-r", "image:=left/image_raw"))
    until(lambda: len(heard) == 6)


def test_without_a_subscriber_it_says_so_in_time_or_does_not_wait(folder, monkeypatch):
    clock = MadeClock(monkeypatch)
    began = clock.now
    with pytest.raises(PlayError, match=r"nobody subscribed to /image within 0.2 s.*ROS_DOMAIN_ID"):
        play(open_source(folder), wait_for_subscriber=0.2, progress=False)
    assert clock.now - began == pytest.approx(0.2, abs=0.02)
    assert play(open_source(folder, rate=100), wait_for_subscriber=None, progress=False).published == 6


@pytest.mark.parametrize("options", [{"image_transport": "theora"}, {"rate": 0.0}, {"hz": -1.0}, {"depth": 0}])
def test_wrong_arguments_are_refused(folder, options):
    with pytest.raises(PlayError):
        play_quietly(open_source(folder), **options)


def hear_also(listener, topics):
    """Lists of the messages of further topics, by name."""
    qos, heard = QoSProfile(depth=100), {name: [] for name in topics}
    for name, kind in topics.items():
        listener.node.create_subscription(kind, name, heard[name].append, qos)
    return heard


@pytest.fixture
def stereo(tmp_path):
    """Pairs in the layout of KITTI, 0.5 m apart at fx 400."""
    for k in range(4):
        for name, number in (("image_0", k), ("image_1", k + 4)):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "pairs" / name / f"{k:06d}.png"), picture(number))
    rows = ("400 0 31 0 0 401 21 0 0 0 1 0", "400 0 31 -200 0 401 21 0 0 0 1 0")
    (tmp_path / "pairs" / "calib.txt").write_text("\n".join(rows) + "\n")
    return tmp_path / "pairs"


@pytest.fixture
def rgbd(tmp_path):
    """Images with depth in millimetres, in the layout of 7-Scenes."""
    path = tmp_path / "scene"
    path.mkdir()
    for k in range(3):
        cv2.imwrite(str(path / f"frame-{k:06d}.color.png"), picture(k))
        cv2.imwrite(str(path / f"frame-{k:06d}.depth.png"), millimetres(k))
    (path / "camera-intrinsics.txt").write_text("400 0 31\n0 401 21\n0 0 1\n")
    return path


def millimetres(number):
    values = np.full((HEIGHT, WIDTH), 1000 + 300 * number, np.uint16)
    values[0, :2] = (0, 65535)
    return values


def test_stereo_pairs_go_out_with_one_stamp_and_a_projection_that_tells_the_baseline(stereo, listener):
    heard = hear_also(listener, {"right/image": Image, "right/camera_info": CameraInfo})
    source = open_source(stereo, rate=50)
    report = play_quietly(source, mode="stereo")
    right, infos = heard.values()
    until(lambda: len(listener.images) == len(listener.infos) == len(right) == len(infos) == 4)
    assert (report.published, report.failed) == (4, 0)
    for k, frame in enumerate(source):
        messages = [listener.images[k], listener.infos[k], right[k], infos[k]]
        assert {nanoseconds(message) for message in messages} == {frame.stamp_ns}
        names = [message.header.frame_id for message in messages]
        assert names == ["camera_optical_frame"] * 2 + ["right_camera_optical_frame"] * 2
        assert np.array_equal(decode_image(listener.images[k]), picture(k))
        assert np.array_equal(decode_image(right[k]), picture(k + 4))
        assert infos[k].p.tolist() == [400, 0, 31, -200, 0, 401, 21, 0, 0, 0, 1, 0]
        assert listener.infos[k].p[3] == 0
        assert CameraModel.from_camera_info(infos[k]).same_as(frame.right.camera)


def test_a_pair_that_is_not_rectified_has_no_baseline_in_its_projection(stereo, listener):
    # The right camera is 1 mm higher: small, but its rows are not those of the left one.
    (stereo / "calib.txt").write_text("400 0 31 0 0 401 21 0 0 0 1 0\n400 0 31 -200 0 401 21 0.401 0 0 1 0\n")
    heard = hear_also(listener, {"right/camera_info": CameraInfo})
    play_quietly(open_source(stereo, rate=50), mode="stereo")
    until(lambda: len(heard["right/camera_info"]) == 4)
    assert heard["right/camera_info"][0].p.tolist() == [400, 0, 31, 0, 0, 401, 21, 0, 0, 0, 1, 0]


def test_what_the_player_says_of_an_unrectified_pair_is_the_front_end_s_parameter():
    from loftr_ros.recordings.stereo_calibration import pose_of
    from loftr_ros.tools.player.topics import extrinsic_of

    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0.02, -0.4, 0.1]))[0]
    pose[:3, 3] = (0.11, -0.0002, 0.001)
    assert np.allclose(pose_of(json.loads(extrinsic_of(pose))), pose, atol=1e-7)


def test_right_images_are_compressed_as_the_left_ones_are_and_both_stamped_with_the_present(stereo, listener):
    heard = hear_also(listener, {"right/image/compressed": CompressedImage, "right/camera_info": CameraInfo})
    before = time.time_ns()
    play_quietly(open_source(stereo, rate=50), mode="stereo", image_transport="compressed", now=True)
    right, infos = heard.values()
    until(lambda: len(listener.compressed) == len(right) == len(infos) == 4)
    for k in range(4):
        assert right[k].data.tobytes() == (stereo / "image_1" / f"{k:06d}.png").read_bytes()
        stamps = {nanoseconds(message) for message in (listener.compressed[k], right[k], infos[k])}
        assert len(stamps) == 1
        assert min(stamps) >= before


def test_depth_in_millimetres_stays_as_it_is_but_its_holes_are_zeros(rgbd, listener):
    heard = hear_also(listener, {"depth/image": Image, "depth/camera_info": CameraInfo})
    source = open_source(rgbd, rate=50)
    play_quietly(source, mode="rgbd", image_transport="compressed")
    depth, infos = heard.values()
    until(lambda: len(listener.compressed) == len(depth) == len(infos) == 3)
    for k, frame in enumerate(source):
        messages = [listener.compressed[k], depth[k], infos[k]]
        assert {nanoseconds(message) for message in messages} == {frame.stamp_ns}
        assert {message.header.frame_id for message in messages} == {frame.frame_id}
        assert (depth[k].encoding, depth[k].step, depth[k].width) == ("16UC1", 2 * WIDTH, WIDTH)
        values = np.frombuffer(depth[k].data, np.uint16).reshape(HEIGHT, WIDTH)
        assert np.array_equal(values, np.where(millimetres(k) == 65535, 0, millimetres(k)))
        assert CameraModel.from_camera_info(infos[k]).same_as(source.camera)


@pytest.mark.parametrize("preload", [False, True])
def test_depth_of_another_unit_becomes_metres_with_nan_for_holes(tmp_path, listener, preload):
    heard = hear_also(listener, {"depth/image": Image})
    for folder in ("rgb", "depth"):
        (tmp_path / folder).mkdir()
        (tmp_path / f"{folder}.txt").write_text(f"1.0 {folder}/0.png\n1.1 {folder}/1.png\n")
        for k in range(2):
            cv2.imwrite(str(tmp_path / folder / f"{k}.png"), picture(k) if folder == "rgb" else millimetres(k))
    play_quietly(open_source(tmp_path), mode="rgbd", preload=preload)
    until(lambda: len(heard["depth/image"]) == len(listener.images) == 2)
    message = heard["depth/image"][1]
    assert (message.encoding, message.step) == ("32FC1", 4 * WIDTH)
    values = np.frombuffer(message.data, np.float32).reshape(HEIGHT, WIDTH)
    assert np.isnan(values[0, 0])
    assert values[0, 1] == pytest.approx(65535 / 5000)
    assert values[1:] == pytest.approx(1300 / 5000)


@pytest.mark.parametrize("mode", ["stereo", "rgbd"])
def test_the_rendered_scene_plays_its_second_camera_and_its_depth(listener, mode):
    name = {"stereo": "right", "rgbd": "depth"}[mode]
    heard = hear_also(listener, {f"{name}/image": Image, f"{name}/camera_info": CameraInfo})
    source = open_source("rendered?seed=3&frames=2&width=64&height=48")
    play_quietly(source, mode=mode)
    images, infos = heard.values()
    until(lambda: len(listener.images) == len(images) == len(infos) == 2)
    frame = list(source)[1].to_frame(mode)
    if mode == "stereo":
        assert np.array_equal(decode_image(images[1]), frame.right.image)
        assert infos[1].p[3] == pytest.approx(-frame.camera.matrix[0, 0] * frame.right.left_from_right[0, 3])
    else:
        values = np.frombuffer(images[1].data, np.float32).reshape(48, 64)
        assert np.array_equal(values, frame.depth.metres(frame.depth.values), equal_nan=True)


def test_a_long_slow_source_is_played_while_it_is_made_and_says_what_it_costs(listener, monkeypatch, capfd):
    monkeypatch.setattr("loftr_ros.tools.player.player._AHEAD", 2)
    monkeypatch.setattr("loftr_ros.recordings.progress._MANY", 2)
    report = play_quietly(open_source("rendered?seed=3&frames=5&width=64&height=48"), rate=10.0)
    until(lambda: len(listener.images) == 5)
    assert (report.published, report.failed) == (5, 0)
    said = capfd.readouterr().err
    assert "room renders its 5 frames one by one; that takes some 0 min of one core" in said
    assert "2 frames are made before playing starts" in said


def test_without_a_mode_only_the_one_camera_is_published(stereo, listener):
    heard = hear_also(listener, {"right/image": Image, "right/camera_info": CameraInfo})
    play_quietly(open_source(stereo, rate=50))
    until(lambda: len(listener.images) == 4)
    # The image is published last, so its companions would have come before.
    assert not any(heard.values())


@pytest.mark.parametrize("preload", [False, True])
def test_a_frame_without_its_right_image_is_left_out_whole_and_counted(stereo, listener, preload):
    heard = hear_also(listener, {"right/image": Image})
    (stereo / "image_1" / "000001.png").unlink()
    cv2.imwrite(str(stereo / "image_1" / "000002.png"), np.zeros((8, 9), np.uint8))
    report = play_quietly(open_source(stereo, rate=50), mode="stereo", preload=preload)
    assert (report.published, report.failed) == (2, 2)
    until(lambda: len(heard["right/image"]) == len(listener.images) == len(listener.infos) == 2)
    assert np.array_equal(decode_image(heard["right/image"][1]), picture(7))


def test_a_source_that_lacks_what_the_mode_needs_is_refused_before_anybody_is_waited_for(folder, monkeypatch):
    clock = MadeClock(monkeypatch)
    began = clock.now
    with pytest.raises(SourceError, match="stereo: this source has no right images"):
        play(open_source(folder), mode="stereo", progress=False)
    with pytest.raises(PlayError, match="mode 'both' is unknown; expected mono, stereo, rgbd"):
        play(open_source(folder), mode="both", progress=False)
    assert clock.now == began


def test_sigint_ends_it_cleanly_with_a_report_even_where_a_script_started_it_in_the_background(folder):
    code = (
        "import sys\n"
        "from loftr_ros.cli.main import main\n"
        "from loftr_ros.recordings.folders import FolderSource\n"
        "frames = FolderSource.__iter__\n"
        "passes = iter(range(1000))\n"
        "def told(self):\n"
        "    if next(passes) == 1:\n"
        "        print('ready', flush=True)\n"  # the first pass is through: frames are published
        "    yield from frames(self)\n"
        "FolderSource.__iter__ = told\n"
        "main()\n"
    )
    isolated = "-P" if sys.version_info >= (3, 11) else "-E"
    # A shell without job control ignores SIGINT in what it starts with `&`.
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, isolated, "-c", code]
    command += ["play", str(folder), "--loop", "--wait", "0", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=40)
    finally:  # a player that goes on would publish into later tests
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert re.search(r"^[1-9]\d* frames in .* s, 0 failed", out, re.MULTILINE), out
    assert "Traceback" not in errors


def test_a_camera_without_distortion_is_written_so_that_all_ros_tools_know_it(camera):
    from std_msgs.msg import Header

    plain = CameraModel(WIDTH, HEIGHT, camera.matrix)
    message = camera_info_message(Header(), plain)
    assert message.distortion_model == "plumb_bob"
    assert message.d.tolist() == [0] * 5
    assert message.p.reshape(3, 4)[:, :3].tolist() == camera.matrix.tolist()
    assert CameraModel.from_camera_info(message).same_as(plain)
