"""The node in its own process over DDS: its output for good frames, and no harm from bad ones."""

from __future__ import annotations

import importlib.util
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import SHARED_DATA

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

import node_process
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from loftr_ros.msg import Correspondences, FrontEndStatus, Keyframe, RelativePose
from node_process import NAME, PATIENCE, Client, Lasting, NodeProcess, camera_info, image_message, nanoseconds
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.worlds.scene import Scene, default_camera, trajectory

pytestmark = pytest.mark.ros
HOUR = 3600 * 1_000_000_000
# So that each kind of error is logged once in this module, however long it takes. One thread, because several that wait
# for each other are very slow on a busy machine. Torch, because it starts at once while OpenVINO builds graphs.
QUIET = {
    "output.status_period": 0.1,
    "output.error_period": 3600.0,
    "input.queue_size": 3,
    "threads": 1,
    "backend": "torch",
}


@dataclass(frozen=True)
class Footage:
    """Images of one moving camera."""

    images: list[np.ndarray]
    focal: float

    def frame(self, number: int, stamp: int) -> tuple[Image, CameraInfo]:
        image = image_message(self.images[number % len(self.images)], stamp)
        return image, camera_info(image, self.focal)


@pytest.fixture(scope="module")
def footage() -> Footage:
    """Real video if available, else a rendered room."""
    if SHARED_DATA.is_dir():
        files = sorted((SHARED_DATA / "sevenscenes").glob("*.color.jpg"))[:80:4]
        return Footage([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files], 550.0)
    camera, scene = default_camera(640, 480), Scene(3)
    return Footage([scene.render(camera, pose).image for pose in trajectory(80, seed=3)[::4]], camera.matrix[0, 0])


@pytest.fixture(scope="module")
def running(footage, tmp_path_factory) -> Iterator[Lasting]:
    """One active node and its client, for all tests that leave it active with its original parameters."""

    def start(process: NodeProcess, client: Client) -> None:
        assert client.transition("configure", "activate"), process.said
        client.connect(lambda: footage.frame(0, client.stamp()))
        lasting.parameters = client.parameters()

    lasting = Lasting(tmp_path_factory.mktemp("node"), QUIET, start)
    yield lasting
    lasting.close()


def ready(running: Lasting, footage: Footage) -> SimpleNamespace:
    """The running node without keyframes, and a function that sends it the footage's next frame."""
    # What an earlier test left behind when it failed must not make this one fail.
    running.revive()
    client, number = running.client, iter(range(10_000))

    def next_frame(seconds: float = 0.1) -> tuple[Image, CameraInfo]:
        return footage.frame(next(number), client.stamp(seconds))

    if client.bring_back(running.parameters):
        client.connect(next_frame)
    assert client.trigger("reset").success
    return SimpleNamespace(process=running.process, client=client, next_frame=next_frame)


@pytest.fixture
def node(running, footage) -> Iterator[SimpleNamespace]:
    each = ready(running, footage)
    yield each
    assert each.process.process.poll() is None, each.process.said


def adds_up(status: FrontEndStatus) -> bool:
    matched = status.frames_quick + sum(status.full_match_counts)
    assert matched <= status.frames_processed - status.frames_useless
    return status.frames_received == (
        status.frames_processed
        + status.frames_dropped
        + status.frames_unpaired
        + status.frames_failed
        + status.frames_pending
    )


def counts(status: FrontEndStatus) -> dict[str, int]:
    return dict(zip(status.error_kinds, status.error_counts, strict=True))


@pytest.mark.kilted
def test_no_attribute_of_the_nodes_hides_one_of_rclpys(ros_domain):
    from rclpy.lifecycle import LifecycleNode

    from loftr_ros.ros.back_end.node import BackEndNode
    from loftr_ros.ros.lifecycle import SettingsNode
    from loftr_ros.ros.node import FrontEndNode

    classes = (SettingsNode, FrontEndNode, BackEndNode)
    own = {name for each in classes for name in vars(each)}
    transitions = {f"on_{name}" for name in ("configure", "activate", "deactivate", "cleanup", "shutdown", "error")}
    hidden = {name for name in own if hasattr(LifecycleNode, name) and not name.startswith("__")}
    assert hidden == transitions | {"destroy_node", "set_parameters", "set_parameters_atomically"}
    context = rclpy.Context()
    context.init(args=None, domain_id=ros_domain)
    bare = LifecycleNode("bare", context=context)
    assigned = {name for each in classes for name in each.__init__.__code__.co_names} & set(vars(bare))
    bare.destroy_node()
    context.try_shutdown()
    assert not assigned


@pytest.mark.kilted
def test_a_destroyed_node_leaves_no_service_that_a_client_would_wait_for(ros_domain):
    from loftr_ros.ros.back_end.node import BackEndNode

    ours, theirs = rclpy.Context(), rclpy.Context()
    for context in (ours, theirs):
        context.init(args=None, domain_id=ros_domain)
    node, other = BackEndNode(context=ours), rclpy.create_node("other", context=theirs)
    client = other.create_client(ChangeState, "/loftr_back_end/change_state")
    assert client.wait_for_service(PATIENCE)
    node.close()
    node.destroy_node()
    ours.try_shutdown()
    end = time.monotonic() + PATIENCE
    while client.service_is_ready():
        assert time.monotonic() < end
        time.sleep(0.02)
    other.destroy_node()
    theirs.try_shutdown()


@pytest.mark.kilted
@pytest.mark.parametrize(
    "breaks",
    ["is unconfigured with another parameter", pytest.param("is dead", marks=pytest.mark.long)],
)
def test_a_node_that_a_test_broke_serves_the_next_test(running, footage, breaks):
    before = ready(running, footage)
    if breaks == "is dead":
        before.process.process.kill()
        before.process.exit_code()
    else:
        before.client.unconfigure()
        assert before.client.set(keyframe__capacity=3)[0]
    after = ready(running, footage)
    after.client.process(*after.next_frame())
    assert after.client.parameters() == running.parameters


def test_a_node_that_did_not_start_is_started_again_for_the_next_test(tmp_path, monkeypatch):
    process = SimpleNamespace(process=SimpleNamespace(poll=lambda: None), domain=1)
    monkeypatch.setattr(node_process, "NodeProcess", lambda *_: nullcontext(process))
    starts = []

    def start(*_) -> None:
        starts.append(len(starts))
        assert len(starts) > 1, "the first start fails"

    lasting = Lasting(tmp_path, {}, start, kind=nullcontext)
    with pytest.raises(AssertionError, match="first start"):
        lasting.revive()
    assert lasting.revive() and not lasting.revive() and starts == [0, 1]


# --- good frames ---


@pytest.mark.kilted
def test_each_frame_gets_correspondences_and_a_pose_that_carry_the_images_stamp_and_frame(node):
    client = node.client
    client.process(*node.next_frame())
    for _ in range(4):
        stamp = client.process(*node.next_frame())
        client.wait(
            lambda stamp=stamp: (
                {p.keyframe_id for p in client.poses_of(stamp)}
                == {c.keyframe_id for c in _correspondences(client, stamp)}
                != set()
            ),
            "a pose for all correspondences",
        )
        poses, found = client.poses_of(stamp), _correspondences(client, stamp)
        for message in (*poses, *found):
            assert message.header.frame_id == message.keyframe_frame_id == "camera"
            assert nanoseconds(message.keyframe_stamp) < stamp


def _correspondences(client: Client, stamp: int) -> list[Correspondences]:
    return [c for c in client.correspondences if nanoseconds(c.header.stamp) == stamp]


def test_arrays_are_of_equal_length_and_agree_with_the_pose(node, footage):
    client = node.client
    for _ in range(8):  # until the camera has moved
        stamp = client.process(*node.next_frame())
    found = client.wait(lambda: _correspondences(client, stamp), "matches")[0]
    pose = client.wait(lambda: [p for p in client.poses_of(stamp) if p.keyframe_id == found.keyframe_id], "a pose")[0]
    count = len(found.track_id)
    assert len(found.keyframe_points) == len(found.current_points) == 2 * count
    assert len(found.confidence) == len(found.current_std) == len(found.inlier) == count == pose.num_matches
    assert all(0 < std < 20 for std in found.current_std)
    assert sum(found.inlier) == pose.num_inliers and set(found.inlier) <= {0, 1}
    assert (found.width, found.height, found.keyframe_width, found.keyframe_height) == (640, 480, 640, 480)
    assert len(set(found.track_id)) == count
    assert all(0 <= value <= 1 for value in found.confidence)
    assert pose.status == RelativePose.OK and pose.num_inliers > 200
    assert not pose.scale_known
    position, turn = pose.pose.pose.position, pose.pose.pose.orientation
    assert np.linalg.norm([position.x, position.y, position.z]) == pytest.approx(1)
    assert np.linalg.norm([turn.x, turn.y, turn.z, turn.w]) == pytest.approx(1)


def test_a_track_keeps_its_point_in_the_keyframe_from_frame_to_frame(node, footage):
    client = node.client
    stamps = [client.process(*node.next_frame()) for _ in range(8)]
    points: dict[tuple[int, int], tuple[float, float]] = {}
    seen_again = 0
    for message in client.correspondences:
        if nanoseconds(message.header.stamp) not in stamps:
            continue
        pairs = np.asarray(message.keyframe_points).reshape(-1, 2).tolist()
        for track, point in zip(message.track_id, map(tuple, pairs), strict=True):
            seen_again += (message.keyframe_id, track) in points
            assert points.setdefault((message.keyframe_id, track), point) == point
    assert seen_again > 1000


def test_the_first_frame_becomes_a_keyframe_and_events_tell_what_the_buffer_holds(node):
    client = node.client
    before = len(client.keyframes)
    stamp = client.process(*node.next_frame())
    client.process(*node.next_frame())
    client.wait(lambda: len(client.keyframes) > before, "a keyframe event")
    first = next(k for k in client.keyframes[before:] if k.event == Keyframe.ADDED)
    assert (first.reason, nanoseconds(first.stamp), first.frame_id) == (Keyframe.FIRST, stamp, "camera")
    assert first.num_keyframes == 1
    assert client.poses[-1].keyframe_id >= first.id


def test_keyframe_ids_are_never_used_twice(node):
    client = node.client
    for _ in range(2):
        client.process(*node.next_frame())
        client.process(*node.next_frame())
        client.trigger("reset")
    client.process(*node.next_frame())
    added = [keyframe.id for keyframe in client.keyframes if keyframe.event == Keyframe.ADDED]
    assert len(added) == len(set(added))


@pytest.mark.kilted
def test_the_status_accounts_for_every_frame_and_tells_what_runs_where(node, footage):
    client = node.client
    before = client.status()
    for _ in range(3):
        client.process(*node.next_frame())
    status = client.status(lambda s: s.frames_processed >= before.frames_processed + 3)
    assert adds_up(status)
    assert status.frames_received == before.frames_received + 3
    assert status.frames_decoded >= status.frames_processed > 0
    assert (status.network, status.header.frame_id) == ("compact", "camera")
    assert len(status.full_match_reasons) == len(status.full_match_counts)
    assert status.frames_quick + sum(status.full_match_counts) > 0
    assert status.device in ("cpu", "cuda:0") and status.precision.removeprefix("int8 and ") in (
        "float32",
        "bfloat16",
        "float16",
    )
    assert len(status.stages) == len(status.latency_median) == len(status.latency_p99)
    latency = dict(zip(status.stages, status.latency_median, strict=True))
    assert all(0 <= value < PATIENCE for value in latency.values())
    assert latency["total"] >= max(value for stage, value in latency.items() if stage != "total")
    assert 0 < status.keyframes_held <= status.keyframe_capacity
    assert status.reference_keyframe_id > 0 and status.window > 0


def test_diagnostics_are_ok_while_frames_come_and_warn_when_none_does(node):
    client = node.client

    def level(wanted: bytes) -> Callable[[], list[DiagnosticStatus]]:
        return lambda: [d for d in client.diagnostics[seen:] if d.level == wanted]

    seen = len(client.diagnostics)
    client.process(*node.next_frame())
    found = client.wait(level(DiagnosticStatus.OK), "a diagnostic that is OK")[0]
    assert found.name == f"{NAME}: front end" and "frames/s" in found.message
    values = {value.key: value.value for value in found.values}
    assert values["lifecycle"] == "active" and values["network"] == "compact"
    seen = len(client.diagnostics)
    silent = client.wait(level(DiagnosticStatus.WARN), "a diagnostic that warns")[0]
    assert "no image received on /image" in silent.message and "publishers: 1" in silent.message


def test_pictures_are_published_only_to_those_who_look(node):
    client = node.client
    client.process(*node.next_frame())
    client.process(*node.next_frame())
    client.look(True)
    client.wait(lambda: client.node.count_publishers(f"{NAME}/matches_image") and _sent_with_picture(node), "a picture")
    picture = client.pictures[-1]
    assert picture.encoding == "bgr8" and picture.header.frame_id == "camera"
    assert len(picture.data) == picture.step * picture.height and picture.step == 3 * picture.width
    client.look(False)
    client.process(*node.next_frame())


def _sent_with_picture(node: SimpleNamespace) -> bool:
    """Send a frame; returns whether a picture has come by now (DDS takes its time to find a new subscription)."""
    node.client.send(*node.next_frame())
    time.sleep(0.1)
    return bool(node.client.pictures)


@pytest.mark.parametrize(
    ("model", "distortion"), [("plumb_bob", (-0.1, 0.01, 0.0, 0.0, 0.0)), ("equidistant", (0.01, 0.0, 0.0, 0.0))]
)
def test_calibrations_with_distortion_give_poses(node, footage, model, distortion):
    client, statuses = node.client, set()
    for number in range(8):
        image, _ = node.next_frame()
        stamp = client.process(image, camera_info(image, footage.focal, model, distortion))
        if number:
            statuses |= {pose.status for pose in client.poses_for(stamp)}
    assert statuses and RelativePose.NO_CALIBRATION not in statuses
    assert RelativePose.OK in statuses or RelativePose.PLANAR in statuses


# --- bad input ---


def changed(**fields: Any) -> Callable[[Image, CameraInfo], None]:
    def apply(image: Image, info: CameraInfo) -> None:
        for name, value in fields.items():
            setattr(image, name, value)

    return apply


def data_too_short(image: Image, info: CameraInfo) -> None:
    image.data = image.data[: len(image.data) // 2]


def smaller(image: Image, info: CameraInfo) -> None:
    half = np.asarray(image.data, np.uint8).reshape(480, 640)[::2, ::2]
    image.data, image.step, image.width, image.height = half.tobytes(), 320, 320, 240
    info.width, info.height = 320, 240


def zeros_in_k(image: Image, info: CameraInfo) -> None:
    info.k = [0.0] * 9


def info_of_another_size(image: Image, info: CameraInfo) -> None:
    info.width, info.height = 1280, 960


def an_hour_back(image: Image, info: CameraInfo) -> None:
    image.header.stamp.sec -= 3600  # and so the CameraInfo's, which has the same header


def another_camera(image: Image, info: CameraInfo) -> None:
    image.header.frame_id = "other_camera"


BAD = {
    "an encoding that is not known": (changed(encoding="mono9"), "encoding", "encoding 'mono9' is not known"),
    "an encoding without gray": (changed(encoding="32FC1"), "encoding", "has no defined range"),
    "data shorter than step times height": (data_too_short, "data", "needs 307200 bytes"),
    "a size of zero": (changed(width=0, height=0), "size", "0x0"),
    "a step shorter than a row": (changed(step=10), "size", "step is 10"),
    "a single image of another size": (smaller, "size", "320x240 px on a stream of 640x480"),
    "a camera matrix of zeros": (zeros_in_k, "calibration", "focal lengths in K are 0"),
    "a CameraInfo of another size": (info_of_another_size, "calibration", "CameraInfo is of 1280x960"),
    "a single stamp an hour back": (an_hour_back, "time", "goes back by 3599"),
    "a single image of another camera": (another_camera, "frame_id", "two cameras on one topic"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_frame_is_refused_with_clear_words_and_the_next_good_one_is_processed(node, name):
    client, (spoil, kind, words) = node.client, BAD[name]
    client.process(*node.next_frame())
    client.process(*node.next_frame())
    before, reports = client.status(), len(client.diagnostics)
    events = len(client.keyframes)

    # Two that do not agree with each other, with a good one between: the stream has not changed, each is a stray.
    for _ in range(2):
        image, info = node.next_frame()
        spoil(image, info)
        failed = client.status().frames_failed
        client.send(image, info)
        after = client.status(lambda s, failed=failed: s.frames_failed > failed)
        assert adds_up(after)
        assert after.frames_failed == failed + 1
        assert words in after.last_error
        client.process(*node.next_frame())

    assert counts(after)[kind] == counts(before).get(kind, 0) + 2
    reported = client.diagnostics[reports:]
    assert any(d.level == DiagnosticStatus.ERROR and words in d.message for d in reported)
    assert any(v.key == f"errors: {kind}" and int(v.value) > 0 for v in reported[-1].values)
    assert len(node.process.errors(kind)) == 1, "the first of a kind is logged, and then no more within the period"
    assert "Traceback" not in node.process.said
    status = client.status(lambda s: s.frames_processed >= before.frames_processed + 2)
    assert adds_up(status)
    lost = (Keyframe.TIME_JUMPED, Keyframe.CAMERA_CHANGED)
    assert not [k for k in client.keyframes[events:] if k.reason in lost], "strays cost no keyframe"


def test_stamps_that_stay_in_the_past_begin_a_new_stream(node):
    client = node.client
    client.process(*node.next_frame())
    client.process(*node.next_frame())
    seen = len(client.keyframes)
    client.stamp(-3600.0)
    for number in range(3):
        failed = client.status().frames_failed
        frame = node.next_frame()
        if number < 2:
            client.send(*frame)
            client.status(lambda s, failed=failed: s.frames_failed == failed + 1)
        else:
            client.process(*frame)
    client.process(*node.next_frame())
    events = [(k.event, k.reason) for k in client.keyframes[seen:]]
    assert (Keyframe.REMOVED, Keyframe.TIME_JUMPED) in events
    assert events.index((Keyframe.ADDED, Keyframe.FIRST)) > events.index((Keyframe.REMOVED, Keyframe.TIME_JUMPED))
    client.stamp(3600.0)
    assert adds_up(client.status())


def test_a_size_that_stays_changed_begins_a_new_stream(node):
    client = node.client
    client.process(*node.next_frame())
    seen = len(client.keyframes)
    for number in range(4):
        image, info = node.next_frame()
        smaller(image, info)
        if number < 2:
            failed = client.status().frames_failed
            client.send(image, info)
            client.status(lambda s, failed=failed: s.frames_failed == failed + 1)
        else:
            stamp = client.process(image, info)
    assert (Keyframe.REMOVED, Keyframe.CAMERA_CHANGED) in [(k.event, k.reason) for k in client.keyframes[seen:]]
    found = client.wait(lambda: _correspondences(client, stamp), "matches")[0]
    assert (found.width, found.height, found.keyframe_width) == (320, 240, 320)


def test_images_without_a_camera_info_are_counted_once_their_time_is_over_and_pairs_still_get_through(node):
    client = node.client
    client.process(*node.next_frame())
    before = client.status()
    for number in range(5):
        client.send(node.next_frame()[0])
        waiting = min(number + 1, QUIET["input.queue_size"])
        received = before.frames_received + number + 1
        client.wait(
            lambda waiting=waiting, received=received: (
                client.statuses[-1].frames_received == received and client.statuses[-1].frames_pending == waiting
            ),
            f"{waiting} images that wait",
        )
    assert counts(client.statuses[-1])["camera_info"] == counts(before).get("camera_info", 0) + 2
    assert "no CameraInfo with the image's stamp" in client.statuses[-1].last_error
    assert adds_up(client.statuses[-1])
    client.process(*node.next_frame())
    # The new image pushes out one more before its partner comes; the rest are displaced by it, once it has one.
    after = client.status()
    assert after.frames_unpaired == before.frames_unpaired + 3 + QUIET["input.queue_size"] - 1 and adds_up(after)
    assert (after.frames_failed, after.frames_dropped) == (before.frames_failed, before.frames_dropped)
    assert len(node.process.errors("camera_info")) == 1


def test_a_jump_back_while_messages_wait_for_partners_does_not_make_the_node_deaf(node):
    client = node.client
    client.process(*node.next_frame())
    # CameraInfos whose images were lost fill the synchronizer's queue with stamps of the old time.
    for _ in range(5):
        client.send(node.next_frame()[1])
    client.stamp(-3600.0)
    processed = client.status().frames_processed
    for _ in range(12):
        received = client.statuses[-1].frames_received
        client.send(*node.next_frame())
        client.wait(lambda received=received: client.statuses[-1].frames_received > received, "the image's receipt")
        if client.statuses[-1].frames_processed > processed + 1:
            break
    client.process(*node.next_frame())
    client.stamp(3600.0)
    assert adds_up(client.status())


# --- services ---


def test_reset_drops_all_keyframes_and_says_so(node):
    client = node.client
    client.process(*node.next_frame())
    seen = len(client.keyframes)
    answer = client.trigger("reset")
    assert answer.success and "dropped" in answer.message
    client.wait(lambda: len(client.keyframes) > seen, "a keyframe event")
    assert (client.keyframes[seen].event, client.keyframes[seen].reason) == (Keyframe.REMOVED, Keyframe.RESET)
    client.status(lambda s: s.keyframes_held == 0 and s.reference_keyframe_id == 0)


def test_a_forced_keyframe_is_the_next_frame(node):
    client = node.client
    client.process(*node.next_frame())
    answer = client.trigger("force_keyframe")
    assert answer.success
    stamp = client.process(*node.next_frame())
    added = client.wait(lambda: [k for k in client.keyframes if nanoseconds(k.stamp) == stamp], "the keyframe")[0]
    assert (added.event, added.reason) == (Keyframe.ADDED, Keyframe.FORCED)


# --- frames that show nothing ---


@pytest.mark.parametrize("shown", ["black", "white", "noise"])
def test_frames_that_show_nothing_change_no_keyframe_and_the_segment_goes_on_after_them(node, shown):
    client, random = node.client, np.random.default_rng(0)
    for _ in range(2):
        client.process(*node.next_frame())
    before = client.status(lambda s: s.frames_pending == 0 and s.state == FrontEndStatus.TRACKING)
    events = len(client.keyframes)
    for _ in range(5):
        image, _ = node.next_frame()
        pixels = {"black": 0, "white": 255}.get(shown)
        spoiled = (
            random.integers(0, 256, (480, 640), np.uint8) if pixels is None else np.full((480, 640), pixels, np.uint8)
        )
        stamp = nanoseconds(image.header.stamp)
        dark = image_message(spoiled, stamp)
        client.process(dark, camera_info(dark, 550.0))
        assert [p.status for p in client.poses_of(stamp)] in ([RelativePose.TOO_FEW_MATCHES], [RelativePose.DOUBTFUL])
    lost = client.status(lambda s: s.frames_processed == before.frames_processed + 5 and s.frames_pending == 0)
    assert lost.state in (FrontEndStatus.LOST, FrontEndStatus.RELOCALISING)
    assert lost.frames_useless - before.frames_useless == (0 if shown == "noise" else 5)
    assert lost.frames_located == before.frames_located
    assert (lost.keyframes_held, lost.segment) == (before.keyframes_held, before.segment)
    assert len(client.keyframes) == events
    client.process(*node.next_frame())
    client.status(lambda s: s.state == FrontEndStatus.TRACKING and s.segment == before.segment)


# --- faster than it can work ---


def test_when_frames_come_faster_than_they_are_processed_the_newest_win_and_all_are_accounted_for(node):
    client = node.client
    client.process(*node.next_frame())
    before = client.status()
    seen, poses = len(client.statuses), len(client.poses)
    frames = [node.next_frame() for _ in range(150)]
    for frame in frames:
        client.send(*frame)
        time.sleep(0.005)  # 200 Hz
    last = nanoseconds(frames[-1][0].header.stamp)
    client.wait(lambda: client.results_of(last), "the newest frame's results")
    status = client.status(lambda s: s.frames_processed > before.frames_processed)
    assert adds_up(status)
    assert status.frames_dropped > before.frames_dropped
    assert status.frames_failed == before.frames_failed
    # Nothing queues up: one frame in progress and one waiting for it, besides images that wait for their CameraInfo.
    assert max(s.frames_pending for s in client.statuses[seen:]) <= 2 + QUIET["input.queue_size"]
    stamps = [nanoseconds(pose.header.stamp) for pose in client.poses[poses:]]
    assert stamps == sorted(stamps)


# --- lifecycle and parameters ---


def test_keyframes_survive_a_pause(node):
    client = node.client
    client.process(*node.next_frame())
    held = client.status(lambda s: s.keyframes_held == 1).reference_keyframe_id
    assert client.transition("deactivate") and client.state() == "inactive"
    assert not client.trigger("reset").success
    assert "not active" in client.trigger("force_keyframe").message
    assert client.transition("activate") and client.state() == "active"
    seen = len(client.poses)
    client.connect(node.next_frame)
    client.wait(lambda: held in {pose.keyframe_id for pose in client.poses[seen:]}, "a match with the old keyframe")


@pytest.mark.kilted
def test_cycles_leave_no_threads_subscriptions_or_publishers_behind(node, footage):
    client = node.client

    def entities() -> tuple[int, int, int]:
        graph = client.node
        return (
            len(graph.get_subscriptions_info_by_topic("/image")),
            len(graph.get_subscriptions_info_by_topic("/camera_info")),
            len(graph.get_publishers_info_by_topic(f"{NAME}/relative_pose")),
        )

    def becomes(expected: tuple[int, int, int]) -> None:
        client.wait(lambda: entities() == expected, f"{expected}, not {entities()}")

    threads = []
    for _ in range(3):
        assert client.transition("deactivate")
        becomes((0, 0, 1))
        assert client.transition("cleanup") and client.state() == "unconfigured"
        becomes((0, 0, 0))
        client.wait(lambda: client.statuses[-1].network == "", "a status without a network")
        assert client.transition("configure")
        becomes((0, 0, 1))
        assert client.transition("activate")
        becomes((1, 1, 1))
        client.connect(lambda: footage.frame(0, client.stamp()))
        threads.append(node.process.threads())
    assert threads[-1] <= threads[0]


@pytest.mark.kilted
def test_a_parameter_that_may_change_while_frames_come_holds_from_the_next_frame_on(node):
    client = node.client
    client.process(*node.next_frame())
    client.process(*node.next_frame())
    held = client.status().keyframes_held
    assert client.set(keyframe__max_age=0.05) == (True, "")  # the frames are 0.1 s apart
    client.process(*node.next_frame())
    client.status(lambda status: status.keyframes_held == held + 1)
    ok, reason = client.set(keyframe__max_age=-1.0)
    assert not ok and reason
    assert client.set(keyframe__max_age=10.0) == (True, "")


@pytest.mark.kilted
def test_other_parameters_can_be_set_only_while_the_node_is_unconfigured_and_then_are_checked(node, footage):
    client = node.client
    ok, reason = client.set(keyframe__capacity=3)
    assert not ok and "keyframe.capacity: read when the node is configured" in reason
    assert client.transition("deactivate", "cleanup")
    ok, reason = client.set(input__image_transport="carrier_pigeon")
    assert not ok and "expected one of raw, compressed" in reason
    ok, reason = client.set(keyframe__capacity=0)
    assert not ok and reason
    ok, reason = client.set(keyframe__max_age="long")
    assert not ok and reason
    assert client.set(keyframe__max_age=10) == (True, ""), "a whole number is a float too"
    assert client.set(keyframe__capacity=3)[0]
    assert client.transition("configure", "activate")
    client.connect(lambda: footage.frame(0, client.stamp()))
    assert client.status().keyframe_capacity == 3


@pytest.mark.parametrize(
    ("setting", "kind", "words"),
    [
        (
            {"network": "loftr_16_4"},
            "weights",
            "network 'loftr_16_4' comes without weights; set `weights` to a weights file",
        ),
        ({"weights": "/nowhere/weights.pt"}, "weights", "weights file /nowhere/weights.pt does not exist"),
        ({"weights": "another network"}, "weights", "not LoFTR's weights: expected"),
        ({"network": "no_such_network"}, "weights", "network 'no_such_network' is not known"),
        (
            {"backend": "onnx", "weights": "/nowhere/exported"},
            "weights",
            "exported network /nowhere/exported does not exist",
        ),
        ({"input.mask": "/nowhere/mask.png"}, "mask", "mask /nowhere/mask.png cannot be read: No such file"),
        ({"input.mask": "no image"}, "mask", "is not an image; use a PNG"),
        ({"device": "cuda:99"}, "device", "device 'cuda:99' does not exist"),
        ({"precision": "float16", "device": "no_such_device"}, "device", "device 'no_such_device'"),
    ],
)
def test_what_cannot_be_configured_is_said_and_can_be_corrected(node, footage, tmp_path, setting, kind, words):
    import torch

    client = node.client
    if setting.get("weights") == "another network":
        torch.save({"a.weight": torch.zeros(3)}, tmp_path / "other.pt")
        setting = {"weights": str(tmp_path / "other.pt")}
    if setting.get("input.mask") == "no image":
        (tmp_path / "mask.png").write_text("no image")
        setting = {"input.mask": str(tmp_path / "mask.png")}
    right = {"weights": "", "network": "auto", "device": "auto", "precision": "auto"}
    right |= {"backend": "torch", "input.mask": ""}
    assert client.transition("deactivate", "cleanup")
    assert client.set(**setting)[0]
    seen = len(client.diagnostics)
    lines = len(node.process.errors(kind))
    assert not client.transition("configure")
    assert client.state() == "unconfigured"
    client.wait(
        lambda: [d for d in client.diagnostics[seen:] if d.level == DiagnosticStatus.ERROR and words in d.message],
        "a diagnostic of level ERROR",
    )
    assert words in client.statuses[-1].last_error
    # A refused transition is an answer to someone: it is never left out of the log.
    assert len(node.process.errors(kind)) == lines + 1 and words in node.process.errors(kind)[-1]
    assert client.set(**right)[0]
    assert client.transition("configure", "activate")
    client.connect(lambda: footage.frame(0, client.stamp()))
    seen = len(client.diagnostics)
    client.wait(lambda: client.diagnostics[seen:], "a diagnostic")
    assert client.diagnostics[-1].level != DiagnosticStatus.ERROR


# --- other ways for images and calibrations to come ---


def compressed(image: Image, spoil: Callable[[bytes], bytes] = bytes, kind: str = "jpg") -> CompressedImage:
    pixels = np.asarray(image.data, np.uint8).reshape(image.height, image.width)
    data = cv2.imencode(f".{kind}", pixels)[1].tobytes()
    return CompressedImage(header=image.header, format=f"mono8; {kind} compressed ", data=spoil(data))


def test_compressed_images_come_with_the_latest_camera_info_and_damaged_ones_are_refused(node):
    client = node.client
    client.reconfigure(input__image_transport="compressed", input__camera_info="latest")
    try:
        before = client.status()
        # No CameraInfo yet: the image is refused with advice.
        for _ in range(int(PATIENCE / 0.2)):
            client.send(compressed(node.next_frame()[0]))
            time.sleep(0.2)
            if client.statuses[-1].frames_failed > before.frames_failed:
                break
        assert "no CameraInfo received yet on /camera_info" in client.status().last_error
        client.connect(lambda: _with_info_first(node.next_frame()))
        stamp = client.process(compressed(node.next_frame()[0]))
        client.process(compressed(node.next_frame()[0], kind="png"))
        assert all(pose.status != RelativePose.NO_CALIBRATION for pose in client.poses_for(stamp))
        for spoil, words in (
            (lambda data: b"not an image", "no JPEG, PNG"),
            (lambda data: data[: len(data) // 2], "was cut off"),
            (lambda data: data[:30] + bytes(len(data) - 30), ""),
            (lambda data: b"", "is empty"),
        ):
            failed = client.status().frames_failed
            client.send(compressed(node.next_frame()[0], spoil))
            status = client.status(lambda s, failed=failed: s.frames_failed > failed)
            assert words in status.last_error and adds_up(status)
            client.process(compressed(node.next_frame()[0]))
        assert counts(client.status())["compressed"] >= 4
        assert len(node.process.errors("compressed")) == 1
    finally:
        client.reconfigure(input__image_transport="raw", input__camera_info="synchronized")
        client.connect(node.next_frame)


def _with_info_first(frame: tuple[Image, CameraInfo]) -> tuple[CameraInfo, CompressedImage]:
    return frame[1], compressed(frame[0])


def test_without_camera_info_there_are_correspondences_but_no_poses(node, footage):
    client = node.client
    client.reconfigure(input__camera_info="none")
    try:
        client.connect(lambda: node.next_frame()[:1])
        stamp = client.process(node.next_frame()[0])
        poses = client.poses_for(stamp)
        assert {pose.status for pose in poses} == {RelativePose.NO_CALIBRATION}
        assert max(pose.num_inliers for pose in poses) > 100
    finally:
        client.reconfigure(input__camera_info="synchronized")
        client.connect(node.next_frame)


# --- the network ---


def test_the_weights_say_which_network_they_are_of_where_network_is_auto(node, tmp_path):
    import torch

    from loftr_ros.matcher.config import COARSE_LITE
    from loftr_ros.matcher.loftr.network import LoFTR

    torch.save(LoFTR(COARSE_LITE).state_dict(), tmp_path / "mine.pt")
    client = node.client
    client.reconfigure(weights=str(tmp_path / "mine.pt"))
    try:
        client.connect(node.next_frame)
        assert client.status().network == "coarse_lite"
        stamp = client.process(*node.next_frame())
        found = client.wait(lambda: _correspondences(client, stamp), "matches")[0]
        assert np.isnan(found.current_std).all(), "it has no fine stage"
    finally:
        client.reconfigure(weights="")
        client.connect(node.next_frame)


def test_the_node_that_was_told_nothing_matches_with_the_weights_in_the_package(node):
    assert re.search(r"network compact on .*, weights \S+/loftr_ros/weights/compact\.safetensors,", node.process.said)


def test_no_more_matches_come_than_were_asked_for(node, footage):
    client = node.client
    client.reconfigure(matching__max_matches=30)
    try:
        client.connect(node.next_frame)
        for _ in range(3):
            stamp = client.process(*node.next_frame())
            found = client.wait(lambda stamp=stamp: _correspondences(client, stamp), "matches")[0]
            assert len(found.track_id) <= 30
            assert len(found.track_id) > 10
    finally:
        client.reconfigure(matching__max_matches=0)
        client.connect(node.next_frame)


@pytest.mark.long
def test_the_full_network_runs_with_random_weights_and_says_that_nothing_matches(footage, tmp_path):
    parameters = QUIET | {
        "network": "loftr",
        "weights": "random",
        "warm_up_width": 160,
        "warm_up_height": 120,
        "keyframe.capacity": 3,
    }
    images = [cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA) for image in footage.images[:6]]
    small = Footage(images, footage.focal / 4)
    with NodeProcess(tmp_path, parameters, autostart=True) as process, Client(process.domain) as client:
        client.connect(lambda: small.frame(0, client.stamp()))
        assert "[WARN]" in process.said and "the weights are random" in process.said
        assert "network loftr on" in process.said and "weights random, backend torch, warmed up in" in process.said
        for number in range(1, 6):
            stamp = client.process(*small.frame(number, client.stamp()))
            assert {pose.status for pose in client.poses_for(stamp)} == {RelativePose.TOO_FEW_MATCHES}
            found = client.wait(lambda stamp=stamp: _correspondences(client, stamp), "correspondences")[0]
            assert not np.isnan(found.current_std).any()
        status = client.status(lambda s: s.frames_processed >= 6)
        assert status.network == "loftr" and status.frames_failed == 0 and adds_up(status)
        assert status.keyframes_held == 1, "what is not located becomes no keyframe"
        assert status.frames_located == 1, "the first"
        assert status.frames_unmatched == status.frames_processed - 1, "all but the first"
        assert any(
            d.level == DiagnosticStatus.WARN
            and ("matches a keyframe" in d.message or "the camera is lost" in d.message)
            for d in client.diagnostics
        )
        assert process.stop(signal.SIGINT) == 0, process.said
        assert "ERROR" not in process.said and "Traceback" not in process.said


# --- masks ---


def _mask(path: Path, width: int, height: int) -> str:
    """A file that masks the left half."""
    image = np.full((height, width), 255, np.uint8)
    image[:, : width // 2] = 0
    cv2.imwrite(str(path), image)
    return str(path)


def test_with_a_mask_no_match_lies_on_an_ignored_pixel(node, footage, tmp_path):
    client = node.client
    client.reconfigure(input__mask=_mask(tmp_path / "mask.png", 640, 480))
    try:
        client.connect(node.next_frame)
        for _ in range(3):
            stamp = client.process(*node.next_frame())
            found = client.wait(lambda stamp=stamp: _correspondences(client, stamp), "matches")[0]
            points = [np.asarray(found.keyframe_points), np.asarray(found.current_points)]
            assert all((each[::2] > 319.5).all() for each in points)
            assert len(found.track_id) > 50
    finally:
        client.reconfigure(input__mask="")
        client.connect(node.next_frame)


def test_images_of_another_size_than_the_mask_are_refused_with_both_sizes_and_the_node_goes_on(node, tmp_path):
    client = node.client
    client.reconfigure(input__mask=_mask(tmp_path / "mask.png", 160, 120))
    try:
        before = client.status()
        end = time.monotonic() + PATIENCE
        while client.statuses[-1].frames_failed < before.frames_failed + 3:
            assert time.monotonic() < end
            client.send(*node.next_frame())
            time.sleep(0.1)
        status = client.status(lambda s: s.frames_failed >= before.frames_failed + 3)
        assert "the mask is of 160x120 px, the image of 640x480" in status.last_error
        assert counts(status)["mask"] > counts(before).get("mask", 0) and adds_up(status)
        assert status.frames_processed == before.frames_processed
        assert "Traceback" not in node.process.said
    finally:
        client.reconfigure(input__mask="")
        client.connect(node.next_frame)


# --- the process ---


def test_an_argument_that_is_none_ends_the_node_with_exit_code_2_and_its_words(tmp_path):
    with NodeProcess(tmp_path, {}, "-p", "weights") as process:
        assert process.exit_code() == 2
        assert "the ROS arguments are wrong" in process.said and "'-p weights'" in process.said
        assert "Traceback" not in process.said


def test_ctrl_c_while_the_network_loads_is_a_clean_stop(footage, tmp_path):
    with NodeProcess(tmp_path, {}) as process, Client(process.domain) as client:
        client.wait(lambda: client.statuses, "a status")
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        manager = client.node.create_client(ChangeState, f"{NAME}/change_state")
        assert manager.wait_for_service(PATIENCE)
        manager.call_async(request)
        # torch's library in the memory maps shows that its import has begun.
        maps, end = Path(f"/proc/{process.process.pid}/maps"), time.monotonic() + PATIENCE
        while "libtorch" not in maps.read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert process.stop(signal.SIGINT) == 0, process.said
        assert "Traceback" not in process.said


@pytest.mark.kilted
def test_a_transition_that_the_state_does_not_have_is_refused_and_the_node_goes_on(node):
    assert not node.client.transition("activate") and not node.client.transition("configure")
    assert node.client.state() == "active"
    # Jazzy's rclpy raises, Kilted's says it by itself.
    said = node.process.said
    assert "refused transition 3 in the state active" in said or "Unable to start transition" in said
    node.client.connect(node.next_frame)


@pytest.mark.kilted
@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"keyframe.capacity": 0}, "keyframe.capacity"),
        pytest.param({"geometry.threshold": -1.0}, "geometry.threshold", marks=pytest.mark.long),
        pytest.param({"output.status_period": "often"}, "output.status_period", marks=pytest.mark.long),
        pytest.param(
            {"input.camera_info": "sometimes"}, "expected one of synchronized, latest, none", marks=pytest.mark.long
        ),
    ],
)
def test_a_wrong_parameter_ends_the_node_with_exit_code_2_and_names_it(tmp_path, parameters, words):
    with NodeProcess(tmp_path, parameters) as process:
        assert process.exit_code() == 2
        assert words in process.said and next(iter(parameters)) in process.said
        assert "Traceback" not in process.said


@pytest.mark.kilted
def test_whole_numbers_are_floats_and_misspelt_names_are_told_of_with_the_nearest_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    modee: rgbd\n    max_latency_ms: 10\n    geometry: {threshold: 2}\n"
        "    keyframe: {max_paralax: 0.1}\n    odometry: {base_from_camera: [0, 0, 1, 0, 0, 0, 1]}\n    colour: red\n"
        "    qos_overrides./imagee.subscription.reliability: reliable\n"
        "    qos_overrides./image.subscription.reliability: best_effort\n"
    )
    other = tmp_path / "others.yaml"
    other.write_text("robot:\n  loftr_frontend:\n    ros__parameters: {mode: rgbd}\n")
    parameters = {"output.status_period": 1, "weights": "random", "network": "coarse_lite", "warm_up_width": 0}
    files = ("--params-file", str(file), "--params-file", str(other))
    with NodeProcess(tmp_path, parameters, *files, autostart=True) as process:
        process.wait_for("parameter 'qos_overrides./imagee.subscription.reliability' is not known and has no effect")
        said = process.said
        assert "did you mean 'qos_overrides./image.subscription.reliability'?" in said
        assert "parameter 'modee' is not known and has no effect; did you mean 'mode'?" in said
        assert "'keyframe.max_paralax' is not known and has no effect; did you mean 'keyframe.max_parallax'?" in said
        assert "parameter 'colour' is not known and has no effect" in said
        assert f"{other} has parameters for '/robot/loftr_frontend', but none for this node, '{NAME}'" in said
        assert str(file) not in said and said.count("is not known and has no effect") == 4
        assert process.stop(signal.SIGINT) == 0, process.said


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_a_signal_ends_the_node_with_exit_code_0_while_frames_stream_in(footage, tmp_path, number):
    parameters = QUIET | {"input.queue_size": 50}
    with NodeProcess(tmp_path, parameters, autostart=True) as process, Client(process.domain) as client:
        client.connect(lambda: footage.frame(0, client.stamp()))
        for _ in range(10):
            client.send(*footage.frame(0, client.stamp()))
        assert process.stop(number) == 0, process.said
        assert "Traceback" not in process.said and "ERROR" not in process.said, process.said


def test_autostart_that_fails_ends_the_node_with_exit_code_1(tmp_path):
    with NodeProcess(tmp_path, {"weights": "/nowhere.pt"}, autostart=True) as process:
        assert process.exit_code() == 1
        assert "[weights] configure failed: weights file /nowhere.pt does not exist" in process.said
        assert "Traceback" not in process.said


def test_remapped_in_a_namespace_by_sim_time_with_other_qos_it_works_and_shuts_down(footage, tmp_path):
    from builtin_interfaces.msg import Time
    from rosgraph_msgs.msg import Clock

    name = "/robot/eye"
    arguments = ["-r", "__ns:=/robot", "-r", "__node:=eye", "-r", "image:=/left/image_raw"]
    arguments += ["-r", "camera_info:=/left/camera_info"]
    parameters = QUIET | {
        "use_sim_time": True,
        "qos_overrides./left/image_raw.subscription.reliability": "reliable",
        "qos_overrides./left/image_raw.subscription.depth": 7,
        "qos_overrides./robot/eye/keyframe.publisher.depth": 33,
    }
    with NodeProcess(tmp_path, parameters, *arguments) as process:
        client = Client(process.domain, name, "/left/image_raw", "/left/camera_info")
        with client:
            clock = client.node.create_publisher(Clock, "/clock", 10)
            # The node reports even without /clock.
            client.wait(lambda: client.statuses, "a status before there is a clock")
            assert client.statuses[-1].header.stamp == Time()
            assert client.transition("configure", "activate"), process.said
            client.connect(lambda: footage.frame(0, client.stamp()))

            def told() -> bool:
                clock.publish(Clock(clock=Time(sec=1234)))
                return client.statuses[-1].header.stamp == Time(sec=1234)

            client.wait(told, "a status by sim time")
            subscription = client.node.get_subscriptions_info_by_topic("/left/image_raw")[0]
            assert subscription.qos_profile.reliability == ReliabilityPolicy.RELIABLE
            infos = client.node.get_subscriptions_info_by_topic("/left/camera_info")[0]
            assert infos.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
            assert client.transition("active_shutdown")
            client.wait(lambda: not client.node.get_subscriptions_info_by_topic("/left/image_raw"), "no subscription")
            assert client.state() == "finalized"
        assert process.stop(signal.SIGINT) == 0, process.said
