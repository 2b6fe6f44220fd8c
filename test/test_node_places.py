"""The services of the archive, over DDS: they answer every request, and images never wait for them."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

import node_process
import rclpy
from loftr_ros.msg import Keyframe, Place, RelativePose
from loftr_ros.srv import LoadArchive, MatchKeyframes, Query, SaveArchive
from node_process import NAME, Client, NodeProcess, camera_info, image_message, nanoseconds
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.places.config import ArchiveConfig
from loftr_ros.places.recognition import PlaceRecognition
from loftr_ros.ros.parameters import declare
from loftr_ros.ros.places.services import PlaceServices
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

pytestmark = pytest.mark.ros

CAMERA = default_camera(320, 240)
PARAMETERS = {"output.status_period": 0.1, "output.error_period": 3600.0, "threads": 1, "backend": "torch"}
# The node's process; a save takes as long as a file exists.
_SLOW = """
import os, sys, time
from loftr_ros.places.archive import Archive
from loftr_ros.ros.node import main
save = Archive.save
def slow(self, path):
    while os.path.exists({gate!r}):
        open({gate!r} + "-reached", "w").close()
        time.sleep(0.01)
    return save(self, path)
Archive.save = slow
sys.exit(main(autostart={{autostart}}))
"""


def unanswered(client: Client, kind: type, name: str, request: Any) -> Any:
    """Call a service and do not wait for the answer; returns its future."""
    caller = client.node.create_client(kind, f"{NAME}/{name}")
    assert caller.wait_for_service(timeout_sec=node_process.PATIENCE)
    future = caller.call_async(request)
    future.add_done_callback(lambda _: client._add([], None))
    return future


# --- the executor ---


class MadeArchive:
    """An archive that does nothing."""

    size_bytes = 0

    def __len__(self) -> int:
        return 0

    def save(self, path: str) -> int:
        return 7


@pytest.fixture
def bare(ros_domain: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The services over a dummy archive, on an executor that nothing else wakes: no timer, no topic."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    archive = MadeArchive()
    recognition = PlaceRecognition(
        lambda: SimpleNamespace(archive=archive),  # type: ignore[arg-type, return-value]
        ArchiveConfig(),
        *(lambda _: None,) * 3,
    )
    context = rclpy.Context()
    context.init(args=None, domain_id=ros_domain)
    node = LifecycleNode("loftr_front_end", context=context, enable_communication_interface=False)
    declare(node)
    places = SimpleNamespace(recognition=recognition, robot="ada")
    services = PlaceServices(node, lambda: places)  # type: ignore[arg-type, return-value]
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    with Client(ros_domain) as client:
        yield SimpleNamespace(client=client, archive=archive, node=node)
    context.try_shutdown()
    thread.join()
    recognition.stop()
    services.close()
    node.destroy_node()


def test_an_answer_goes_out_though_nothing_else_wakes_the_executor(bare: SimpleNamespace) -> None:
    def slow(path: str) -> int:
        time.sleep(0.3)  # the executor sleeps by then
        return 3

    bare.archive.save = slow
    for _ in range(2):
        start = time.monotonic()
        answer = bare.client.call(SaveArchive, "save_archive", SaveArchive.Request(path="there"))
        assert (answer.success, answer.num_keyframes) == (True, 3)
        assert time.monotonic() - start < node_process.PATIENCE / 2


def test_a_save_that_fails_as_nobody_foresaw_is_answered_and_the_node_goes_on(bare: SimpleNamespace) -> None:
    def broken(path: str) -> int:
        raise KeyError("nobody foresaw this")

    bare.archive.save, whole = broken, bare.archive.save
    answer = bare.client.call(SaveArchive, "save_archive", SaveArchive.Request(path="there"))
    assert not answer.success and "nobody foresaw this" in answer.message and "log" in answer.message
    bare.archive.save = whole
    assert bare.client.call(SaveArchive, "save_archive", SaveArchive.Request(path="there")).success


# --- the node ---


@pytest.fixture(scope="module")
def footage() -> list[np.ndarray]:
    scene = Scene(3)
    return [scene.render(CAMERA, pose).image for pose in trajectory(76, seed=3)[::15]]


def frame(footage: list[np.ndarray], number: int, stamp: int) -> tuple[Image, CameraInfo]:
    image = image_message(footage[number % len(footage)], stamp)
    return image, camera_info(image, CAMERA.focal_length)


@pytest.fixture(scope="module")
def node(footage: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """An active node whose archive has all keyframes of the footage except the last; its earlier messages are in
    `told`.

    Its archive has the footage's images 0 to 4 as keyframes `ids[0]` to `ids[4]`.
    """
    folder = tmp_path_factory.mktemp("places")
    gate = folder / "gate"
    told: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_process, "_CODE", _SLOW.format(gate=str(gate)))
        process = NodeProcess(folder, PARAMETERS | {"robot_name": "ada"})
    with process, Client(process.domain) as client:
        told["without"] = client.call(Query, "query", Query.Request()).message
        client.set(archive__uri=str(folder / "archive"))
        told["unconfigured"] = client.call(SaveArchive, "save_archive", SaveArchive.Request(path="x")).message
        assert client.transition("configure", "activate"), process.said
        client.connect(lambda: frame(footage, 0, client.stamp()))
        assert client.trigger("reset").success
        ids = []
        for number in range(len(footage)):
            assert client.trigger("force_keyframe").success
            stamp = client.process(*frame(footage, number, client.stamp()))
            became = client.wait(
                lambda stamp=stamp: [k for k in added(client) if nanoseconds(k.stamp) == stamp], "a keyframe"
            )
            ids.append(became[0].id)
        # A result is published before its keyframe supersedes the last one.
        while not match(client, ids[0], ids[-2]).success:
            time.sleep(0.02)
        yield SimpleNamespace(process=process, client=client, folder=folder, gate=gate, told=told, ids=ids)
        assert process.process.poll() is None, process.said


def added(client: Client) -> list[Keyframe]:
    return [keyframe for keyframe in client.keyframes if keyframe.event == Keyframe.ADDED]


def match(client: Client, first: int, second: int, **names: str) -> MatchKeyframes.Response:
    request = MatchKeyframes.Request(keyframe_id=first, other_keyframe_id=second, **names)
    return client.call(MatchKeyframes, "match_keyframes", request)


def ask(node: SimpleNamespace, **request: Any) -> Query.Response:
    return node.client.call(Query, "query", Query.Request(**request))


def places_of(node: SimpleNamespace, **request: Any) -> list[Place]:
    answer = ask(node, **request)
    assert answer.success and not answer.message, answer.message
    return list(answer.places)


def test_who_calls_without_an_archive_is_told_what_to_do(node: SimpleNamespace) -> None:
    assert node.told["without"].startswith("parameter archive.uri is empty")
    assert str(node.folder / "archive") in node.told["unconfigured"]
    assert "not configured" in node.told["unconfigured"]


def test_an_image_is_found_again_raw_or_compressed_with_and_without_calibration(
    node: SimpleNamespace, footage: list[np.ndarray]
) -> None:
    image, info = frame(footage, 2, 5)
    best = places_of(node, image=image, camera_info=info)[0]
    assert (best.robot, best.keyframe_id, best.frame_id) == ("ada", node.ids[2], "camera")
    assert best.verified and best.similarity > 0.9 and 0.3 < best.score <= 1
    assert best.num_matches >= best.num_inliers > 200
    assert best.status in (RelativePose.PURE_ROTATION, RelativePose.LOW_PARALLAX)
    assert not best.scale_known and not best.map_pose_known
    assert best.scale_reason == RelativePose.SCALE_OWN_UNIT
    session = node.client.status().session
    assert session == best.session > 0
    kept = next(keyframe for keyframe in added(node.client) if keyframe.id == best.keyframe_id)
    assert best.segment == kept.segment
    data = cv2.imencode(".png", footage[2])[1].tobytes()
    compressed = CompressedImage(header=image.header, format="png", data=data)
    again = places_of(node, compressed_image=compressed, max_places=2)
    assert again[0].keyframe_id == node.ids[2] and len(again) == 2
    assert again[0].verified and again[0].status == RelativePose.NO_CALIBRATION
    assert again[0].pose.covariance[0] == 1e6


def test_an_image_that_cannot_be_used_is_answered_with_the_reason(
    node: SimpleNamespace, footage: list[np.ndarray]
) -> None:
    image, info = frame(footage, 2, 5)
    other = CompressedImage(format="jpeg", data=b"no JPEG")
    strange = image_message(footage[2], 5)
    strange.encoding = "yuv999"
    small = camera_info(image_message(footage[2][:120], 5), CAMERA.focal_length)
    for request, words in (
        ({}, "neither image nor compressed_image"),
        ({"image": image, "compressed_image": other}, "both image and compressed_image"),
        ({"compressed_image": other}, "compressed image of format 'jpeg'"),
        ({"image": strange}, "yuv999"),
        ({"image": image, "camera_info": small}, "CameraInfo is of 320x120 px"),
        ({"image": image_message(footage[2][:3, :3].copy(), 5)}, "3"),
    ):
        answer = ask(node, **request)
        assert not answer.success and words in answer.message and not answer.places
    assert places_of(node, image=image, camera_info=info)[0].verified


def test_two_keyframes_are_matched_as_if_the_second_were_the_current_image(node: SimpleNamespace) -> None:
    answer = match(node.client, node.ids[1], node.ids[2], other_robot="ada")
    assert answer.success, answer.message
    found, pose = answer.correspondences, answer.relative_pose
    first, second = (k for k in added(node.client) if k.id in (node.ids[1], node.ids[2]))
    for message in (found, pose):
        assert message.header.stamp == second.stamp and message.header.frame_id == "camera"
        assert (message.keyframe_id, message.keyframe_stamp) == (node.ids[1], first.stamp)
    count = len(found.track_id)
    assert count == pose.num_matches > 200 and sum(found.inlier) == pose.num_inliers > 100
    assert len(found.keyframe_points) == len(found.current_points) == 2 * count
    assert (found.keyframe_width, found.keyframe_height, found.width, found.height) == (320, 240, 320, 240)
    assert pose.status == RelativePose.OK and not pose.scale_known
    assert pose.scale_reason == RelativePose.SCALE_OWN_UNIT
    assert (answer.segment, answer.other_segment) == (first.segment, second.segment)
    assert answer.session == answer.other_session == node.client.status().session


def test_a_keyframe_that_is_still_in_the_buffer_is_said_to_come_later(node: SimpleNamespace) -> None:
    answer = match(node.client, node.ids[1], node.ids[-1])
    assert not answer.success
    assert f"keyframe ada/{node.ids[-1]}. A keyframe is archived when the robot's next one comes" in answer.message
    pose = answer.relative_pose
    assert (pose.status, pose.scale_reason) == (RelativePose.TOO_FEW_MATCHES, RelativePose.SCALE_NO_POSE)
    assert pose.pose.covariance[0] == 1e6


def test_images_are_processed_while_a_save_is_under_way_which_then_is_complete(
    node: SimpleNamespace, footage: list[np.ndarray]
) -> None:
    client, there = node.client, node.folder / "saved"
    kept = len(added(client)) - 1
    node.gate.touch()
    reached = node.gate.with_name("gate-reached")
    future = unanswered(client, SaveArchive, "save_archive", SaveArchive.Request(path=str(there)))
    end = time.monotonic() + node_process.PATIENCE
    while not reached.exists():  # of two requests at once either may be the first
        assert time.monotonic() < end, "the save was not begun"
        time.sleep(0.01)
    # Another request that waits behind it.
    request = MatchKeyframes.Request(keyframe_id=node.ids[0], other_keyframe_id=node.ids[1])
    behind = unanswered(client, MatchKeyframes, "match_keyframes", request)
    try:
        for number in range(4):
            client.process(*frame(footage, number, client.stamp()))
            client.status()
            assert client.trigger("force_keyframe").success
        assert not future.done() and not behind.done() and not there.exists()
    finally:
        node.gate.unlink()
    saved = client.wait(lambda: future.done() and future.result(), "the save's answer")
    assert saved.success and saved.num_keyframes == kept and str(there) in saved.message
    assert client.wait(lambda: behind.done() and behind.result(), "the match's answer").success


def test_the_policy_of_sros_2_allows_all_that_the_node_has(node: SimpleNamespace) -> None:
    policy = xml.etree.ElementTree.parse(Path(__file__).resolve().parents[1] / "config" / "fleet_policy.xml")
    enclave = next(each for each in policy.iter("enclave") if each.get("path") == "/ada/loftr_front_end")

    def allowed(kind: str, act: str) -> set[str]:
        entries = (each for each in enclave.iter(f"{kind}s") if each.get(act) == "ALLOW")
        return {str(entry.text) for each in entries for entry in each.iter(kind)}

    def has(names_of: Any) -> set[str]:
        names = {name for name, _ in names_of("loftr_front_end", "/")}
        # The policy's robot has a namespace, and a camera of its own.
        own = {f"/ada{name}" if name.startswith(NAME) else name for name in names}
        return {f"/ada/camera/{name}" if name in ("image_raw", "camera_info") else name for name in own}

    graph = node.client.node
    seen = {f"/ada/camera/{kind}" for kind in ("image_raw", "camera_info")} | {
        "/image",
        "/camera_info",
        "/imu",
        "/prior_odometry",
    }
    published = has(graph.get_publisher_names_and_types_by_node)
    assert "/ada/loftr_front_end/loop_closures" in published and published <= allowed("topic", "publish")
    assert has(graph.get_subscriber_names_and_types_by_node) - seen <= allowed("topic", "subscribe")
    assert "/ada/imu" in allowed("topic", "subscribe")
    assert has(graph.get_service_names_and_types_by_node) <= allowed("service", "reply")
    assert {"/loftr_places/keyframes"} <= allowed("topic", "publish") & allowed("topic", "subscribe")
    assert "/ada/loftr_front_end/get_keyframe" in allowed("service", "reply")
    assert "/bob/loftr_front_end/get_keyframe" in allowed("service", "request")


def test_what_is_saved_can_be_loaded_and_not_saved_over(node: SimpleNamespace) -> None:
    client, there = node.client, str(node.folder / "copy")

    def save(path: str) -> SaveArchive.Response:
        return client.call(SaveArchive, "save_archive", SaveArchive.Request(path=path))

    def load(uri: str) -> LoadArchive.Response:
        return client.call(LoadArchive, "load_archive", LoadArchive.Request(uri=uri))

    assert save(there).success
    again = save(there)
    assert not again.success and "archive already" in again.message and again.num_keyframes == 0
    assert "path is empty" in save("").message
    loaded = load(there)
    assert loaded.success and loaded.num_keyframes == 0 and there in loaded.message
    assert "uri is empty" in load("").message
    missing = load(str(node.folder / "nowhere"))
    assert not missing.success and "nowhere" in missing.message and not Path(node.folder / "nowhere").exists()
