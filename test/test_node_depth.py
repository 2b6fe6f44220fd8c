"""The node with a right or a depth camera, over DDS: poses in metres, and invalid input."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from diagnostic_msgs.msg import DiagnosticStatus
from loftr_ros.msg import Keyframe, Tracks
from nav_msgs.msg import Odometry
from node_process import NAME, Client, Lasting, NodeProcess, camera_info, image_message, nanoseconds
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from loftr_ros.worlds.scene import Scene, default_camera, trajectory

pytestmark = pytest.mark.ros
BASELINE = 0.12  # m
SETTINGS = {
    "output.status_period": 0.1,
    "output.error_period": 3600.0,
    "input.queue_size": 3,
    "threads": 1,
    "backend": "torch",
    "warm_up_width": 0,
    "mode": "stereo",
}
# Several images at once exceed a busy machine's socket buffers at best effort, and no test is about that.
TOPICS = ("/image", "/image/compressed", "/right/image", "/right/image/compressed", "/depth/image", "/mask")
SETTINGS |= {f"qos_overrides.{topic}.subscription.reliability": "reliable" for topic in TOPICS}
WIDTH, HEIGHT = 320, 240
Frame = tuple[Any, dict[str, Any]]
"""An image message, and its companion messages by topic."""


class PairClient(Client):
    """Publishes companions beside the image."""

    def __init__(self, domain: int) -> None:
        super().__init__(domain)
        kinds = {"image": Image, "image/compressed": CompressedImage, "camera_info": CameraInfo}
        topics = {f"/right/{name}": kind for name, kind in kinds.items()}
        topics |= {"/camera_info": CameraInfo, "/depth/image": Image, "/mask": Image}
        self._beside = {topic: self.node.create_publisher(kind, topic, 10) for topic, kind in topics.items()}

    def send(self, image: Image | CompressedImage, beside: dict[str, Any]) -> None:
        for topic, message in beside.items():
            self._beside[topic].publish(message)
        (self._images if isinstance(image, Image) else self._compressed).publish(image)


class Footage:
    """A walk through the rendered room with two cameras and a depth camera; each frame is rendered once."""

    def __init__(self) -> None:
        self.camera = default_camera(WIDTH, HEIGHT)
        self.poses = trajectory(60, seed=3)[::5]
        scene = Scene(3)
        aside = np.eye(4)
        aside[0, 3] = BASELINE
        views = [scene.render(self.camera, pose) for pose in self.poses]
        self.left = [view.image for view in views]
        self.depth = [view.depth for view in views]
        self.right = [scene.render(self.camera, pose @ aside).image for pose in self.poses]

    def moved(self, first: int, second: int) -> np.ndarray:
        """(3,) metres, in the camera's frame at the first."""
        return (np.linalg.inv(self.poses[first]) @ self.poses[second])[:3, 3]


class Rig:
    """Sends the footage to one node.

    Attributes:
        number: frame number of the footage by stamp.
        hidden: first and last masked column, with the border, by stamp.
    """

    def __init__(self, process: NodeProcess, client: PairClient, footage: Footage) -> None:
        self.process, self.client, self.footage = process, client, footage
        self.number: dict[int, int] = {}
        self.hidden: dict[int, tuple[int, int]] = {}

    def mono(self, number: int) -> Frame:
        """An image and its calibration."""
        image, info = self._image(number)
        return image, {"/camera_info": info}

    def masked(self, frame: Frame) -> Frame:
        """The same with a mask of a third of the image, which moves by 20 px each frame."""
        image, beside = frame
        start = 40 + 20 * (self.number[nanoseconds(image.header.stamp)] % 8)
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[:, start : start + WIDTH // 3] = 0
        self.hidden[nanoseconds(image.header.stamp)] = start - 4, start + WIDTH // 3 + 4
        return image, beside | {"/mask": image_message(mask, nanoseconds(image.header.stamp))}

    def stereo(self, number: int, late: float = 0.0) -> Frame:
        """Both images and calibrations; the right ones stamped `late` seconds after the left ones."""
        image, info = self._image(number)
        right = image_message(self.footage.right[number], nanoseconds(image.header.stamp) + round(late * 1e9), "right")
        right_info = self._info(right)
        right_info.p[3] = -self.footage.camera.matrix[0, 0] * BASELINE
        return image, {"/right/image": right, "/camera_info": info, "/right/camera_info": right_info}

    def rgbd(self, number: int, encoding: str = "16UC1") -> Frame:
        """An image, its calibration and its depth, rows padded."""
        image, info = self._image(number)
        depth = self.footage.depth[number]
        values = np.round(depth * 1000).astype(np.uint16) if encoding == "16UC1" else depth
        padded = np.pad(values, ((0, 0), (0, 8)))
        message = Image(header=image.header, height=HEIGHT, width=WIDTH, encoding=encoding, step=padded.strides[0])
        message.is_bigendian = int(sys.byteorder == "big")
        message.data = padded.tobytes()
        return image, {"/depth/image": message, "/camera_info": info}

    def walk(self, frame: Callable[[int], Frame]) -> float:
        """Send the footage from its first frame on; returns the ratio of the node's motions to the true ones.

        Every pose must know its scale, and be in the true direction.
        """
        client = self.client
        assert client.trigger("reset").success
        client.process(*frame(0))
        ratios = []
        for number in range(1, len(self.footage.poses)):
            stamp = client.process(*frame(number))
            for pose in client.poses_for(stamp):
                true = self.footage.moved(self.number[nanoseconds(pose.keyframe_stamp)], number)
                at = pose.pose.pose.position
                found = np.array([at.x, at.y, at.z])
                assert pose.scale_known and pose.num_inliers > 50
                assert true @ found > 0.95 * np.linalg.norm(true) * np.linalg.norm(found)
                ratios.append(np.linalg.norm(found) / np.linalg.norm(true))
        assert np.ptp(ratios) < 0.3
        return float(np.median(ratios))

    def _image(self, number: int) -> tuple[Image, CameraInfo]:
        stamp = self.client.stamp()
        self.number[stamp] = number
        image = image_message(self.footage.left[number], stamp)
        return image, self._info(image)

    def _info(self, image: Image) -> CameraInfo:
        info = camera_info(image, self.footage.camera.matrix[0, 0])
        info.p[:] = np.column_stack([info.k.reshape(3, 3), np.zeros(3)]).ravel()
        return info


@pytest.fixture(scope="module")
def footage() -> Footage:
    return Footage()


@pytest.fixture(scope="module")
def running(footage, tmp_path_factory) -> Iterator[Lasting]:
    """One node for all tests, with its current mode and parameters."""
    lasting = Lasting(tmp_path_factory.mktemp("node"), SETTINGS, kind=PairClient)
    lasting.footage, lasting.now = footage, None
    yield lasting
    lasting.close()


def in_mode(running: Lasting, mode: str, **parameters: Any) -> Rig:
    """The node, active in this mode and with these parameters."""
    running.revive()
    client = running.client
    rig = Rig(running.process, client, running.footage)
    defaults = {
        "input__sync": "exact",
        "input__slop": 0.01,
        "input__camera_info": "synchronized",
        "input__image_transport": "raw",
        "input__left_from_right": [0.0] * 7,
        "input__mask_topic": "none",
    }
    wanted = defaults | {"mode": mode} | parameters
    # What an earlier test left behind when it failed must not fail this one.
    if running.now != wanted or client.state() != "active":
        client.unconfigure()
        ok, reason = client.set(**wanted)
        assert ok, reason
        assert client.transition("configure", "activate"), rig.process.said
        running.now = wanted
        transport = wanted["input__image_transport"]
        good = {
            "stereo": lambda: jpegs(rig.stereo(0)) if transport == "compressed" else rig.stereo(0),
            "rgbd": lambda: rig.rgbd(0),
            "mono": lambda: rig.mono(0),
        }
        client.connect(good[mode])
    return rig


def jpegs(frame: Frame) -> Frame:
    image, beside = frame
    return _jpeg(image), {
        f"{topic}/compressed" if isinstance(message, Image) else topic: (
            _jpeg(message) if isinstance(message, Image) else message
        )
        for topic, message in beside.items()
    }


def _jpeg(image: Image) -> CompressedImage:
    pixels = np.asarray(image.data, np.uint8).reshape(image.height, image.width)
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return CompressedImage(header=image.header, format="mono8; jpeg compressed ", data=data)


def counts(status: Any) -> dict[str, int]:
    return dict(zip(status.error_kinds, status.error_counts, strict=True))


def adds_up(status: Any) -> bool:
    return status.frames_received == (
        status.frames_processed
        + status.frames_dropped
        + status.frames_unpaired
        + status.frames_failed
        + status.frames_pending
    )


# --- what is told of landmarks and keyframes ---


def test_landmarks_tracks_keyframes_and_odometry_of_a_depth_camera_hold_against_the_scene(running, footage) -> None:
    rig = in_mode(running, "rgbd")
    client, focal = rig.client, footage.camera.matrix[0, 0]
    got: dict[str, list[Any]] = {"landmarks": [], "tracks": [], "odometry": []}
    kinds = {"landmarks": PointCloud2, "tracks": Tracks, "odometry": Odometry}
    looking = [client._collect(kind, f"{NAME}/{name}", got[name]) for name, kind in kinds.items()]

    def of(name: str, stamp: int) -> Any:
        return client.wait(lambda: [m for m in got[name] if nanoseconds(m.header.stamp) == stamp], f"~/{name}")[0]

    assert client.trigger("reset").success
    for _ in range(200):  # until the subscriptions have been found
        client.process(*rig.rgbd(0))
        if all(got.values()):
            break
    assert all(got.values())
    seen_events = len(client.keyframes)
    assert client.trigger("reset").success
    first = client.process(*rig.rgbd(0))
    start = of("odometry", first)
    for part in (start.pose, start.twist):
        assert np.linalg.eigvalsh(part.covariance.reshape(6, 6))[0] >= 0.9e-9
    for number in range(1, len(footage.poses)):
        if number == 6:
            assert client.trigger("force_keyframe").success
        stamp = client.process(*rig.rgbd(number))
        tracks, cloud = of("tracks", stamp), of("landmarks", stamp)

        keyframe = rig.number[nanoseconds(tracks.keyframe_stamp)]
        rays = np.asarray(tracks.keyframe_rays).reshape(-1, 2)
        points, std = np.asarray(tracks.points).reshape(-1, 3), np.asarray(tracks.point_std)
        known = np.isfinite(std)
        assert tracks.scale_known and known.sum() > 50 and tracks.keyframe_frame_id == "camera"
        assert points[known, :2] / points[known, 2:] == pytest.approx(rays[known], abs=1e-4)
        centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
        truth = footage.depth[keyframe][tuple(np.rint(rays[known] * focal + centre).astype(int).T[::-1])]
        assert np.median(np.abs(points[known, 2] / truth - 1)) < 0.005

        fields = {field.name: field.offset for field in cloud.fields}
        assert list(fields) == ["x", "y", "z", "keyframe_id", "id", "confidence", "std"]
        values = np.frombuffer(bytes(cloud.data), "<f4").reshape(cloud.width, -1)
        assert (cloud.header.frame_id, cloud.width) == ("camera", known.sum())
        pixels = values[:, :2] / values[:, 2:3] * focal + centre
        assert np.median(np.linalg.norm(pixels - np.asarray(tracks.pixels).reshape(-1, 2)[known], axis=1)) < 1.0
        column, row = np.rint(pixels).astype(int).T
        inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
        here = footage.depth[number][row[inside], column[inside]]
        assert np.median(np.abs(values[inside, 2] / here - 1)) < 0.02
        names = np.frombuffer(bytes(cloud.data), "<u4").reshape(cloud.width, -1)[:, 3:5].astype(np.uint64)
        landmarks = np.asarray(tracks.landmark_id, np.uint64)[known]
        assert np.array_equal((names[:, 0] << np.uint64(32)) + names[:, 1], landmarks)

    events = [k for k in client.keyframes[seen_events:] if k.event == Keyframe.ADDED and nanoseconds(k.stamp) >= first]
    assert len(events) > 1 and not events[0].previous_known
    at = {event.id: rig.number[nanoseconds(event.stamp)] for event in events}
    for event in events[1:]:
        assert event.previous_known and event.scale_known and event.segment == events[0].segment
        moved = event.previous_pose.pose.position
        true = footage.moved(at[event.previous_id], at[event.id])
        assert [moved.x, moved.y, moved.z] == pytest.approx(true, abs=0.05 * np.linalg.norm(true) + 0.01)
        assert np.linalg.eigvalsh(event.previous_pose.covariance.reshape(6, 6))[0] >= 0.9e-9
    for subscription in looking:
        client.node.destroy_subscription(subscription)


# --- stereo ---


def test_a_stereo_pair_gives_poses_in_metres(running) -> None:
    rig = in_mode(running, "stereo")
    before = rig.client.status()
    assert rig.walk(rig.stereo) == pytest.approx(1, abs=0.05)
    after = rig.client.status()
    assert adds_up(after) and after.frames_failed == before.frames_failed


def _without_baseline(image: Image, beside: dict[str, Any]) -> None:
    beside["/right/camera_info"].p[3] = 0.0


def _right_of_another_size(image: Image, beside: dict[str, Any]) -> None:
    right = beside["/right/image"]
    right.data, right.height = right.data[: WIDTH * HEIGHT // 2], HEIGHT // 2


def _right_of_no_encoding(image: Image, beside: dict[str, Any]) -> None:
    beside["/right/image"].encoding = "mono9"


def _right_uncalibrated(image: Image, beside: dict[str, Any]) -> None:
    beside["/right/camera_info"].k = [0.0] * 9


def _depth_of_another_encoding(image: Image, beside: dict[str, Any]) -> None:
    beside["/depth/image"].encoding = "mono16"


def _depth_of_another_size(image: Image, beside: dict[str, Any]) -> None:
    beside["/depth/image"].height = HEIGHT // 2


def _depth_cut_off(image: Image, beside: dict[str, Any]) -> None:
    beside["/depth/image"].data = beside["/depth/image"].data[:-1]


BAD = {
    "no baseline in P": ("stereo", _without_baseline, "calibration", "the right CameraInfo has no baseline in P"),
    "a right image of another size": (
        "stereo",
        _right_of_another_size,
        "calibration",
        "right CameraInfo is of 320x240 px, its image is 320x120",
    ),
    "a right image of no known encoding": ("stereo", _right_of_no_encoding, "encoding", "'mono9' is not known"),
    "an uncalibrated right camera": ("stereo", _right_uncalibrated, "calibration", "right camera: focal lengths in K"),
    "depth of another encoding": ("rgbd", _depth_of_another_encoding, "encoding", "depth image of encoding 'mono16'"),
    "depth of another size": ("rgbd", _depth_of_another_size, "depth", "the depth image is 320x120"),
    "depth that was cut off": ("rgbd", _depth_cut_off, "data", "depth image of encoding '16UC1' needs"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_companion_is_refused_with_clear_words_and_the_next_good_frame_is_processed(running, name) -> None:
    mode, spoil, kind, words = BAD[name]
    rig = in_mode(running, mode)
    client, good = rig.client, rig.stereo if mode == "stereo" else rig.rgbd
    client.process(*good(0))
    before = client.status()
    frame = good(1)
    spoil(*frame)
    client.send(*frame)
    after = client.status(lambda status: status.frames_failed > before.frames_failed)
    assert after.frames_failed == before.frames_failed + 1 and adds_up(after)
    assert counts(after)[kind] == counts(before).get(kind, 0) + 1
    assert words in after.last_error
    stamp = client.process(*good(1))
    assert all(pose.scale_known for pose in client.poses_for(stamp))
    assert "Traceback" not in rig.process.said


def test_depths_in_millimetres_that_are_called_metres_are_told_of_and_good_ones_give_metres_again(running) -> None:
    rig = in_mode(running, "rgbd")
    client = rig.client
    assert client.trigger("reset").success
    before = client.status()

    def in_millimetres(number: int) -> Frame:
        image, beside = rig.rgbd(number, "32FC1")
        depth = beside["/depth/image"]
        depth.data = (1000 * np.frombuffer(bytes(depth.data), np.float32)).tobytes()
        return image, beside

    client.process(*in_millimetres(0))
    stamp = client.process(*in_millimetres(1))
    assert not any(pose.scale_known for pose in client.poses_for(stamp))
    after = client.status(lambda status: counts(status).get("depth", 0) > counts(before).get("depth", 0))
    assert "beyond depth.max_depth" in after.last_error and after.frames_failed == before.frames_failed
    seen = len(client.diagnostics)
    client.process(*in_millimetres(1))
    told = client.wait(lambda: [d for d in client.diagnostics[seen:] if "no depths" in d.message], "a diagnostic")[0]
    assert told.level == DiagnosticStatus.WARN
    assert rig.walk(rig.rgbd) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("mode", "lost", "kind", "words"),
    [
        ("stereo", "/right/image", "right", "no right image with the image's stamp"),
        pytest.param(
            "stereo",
            "/right/camera_info",
            "camera_info",
            "received on /right/camera_info (publishers: 1)",
            marks=pytest.mark.long,
        ),
        pytest.param("rgbd", "/depth/image", "depth", "no depth image with the image's stamp", marks=pytest.mark.long),
    ],
)
def test_images_whose_companion_does_not_come_are_reported_with_its_topic(running, mode, lost, kind, words) -> None:
    rig = in_mode(running, mode)
    client, good = rig.client, rig.stereo if mode == "stereo" else rig.rgbd
    before = client.status()
    for number in range(5):
        image, beside = good(0)
        del beside[lost]
        client.send(image, beside)
        received = before.frames_received + number + 1
        client.wait(lambda received=received: client.statuses[-1].frames_received == received, "the image's receipt")
    status = client.wait(
        lambda: [s for s in client.statuses[-1:] if s.frames_unpaired == before.frames_unpaired + 2], "two failures"
    )[0]
    assert counts(status)[kind] == counts(before).get(kind, 0) + 2
    assert words in status.last_error and f"{lost} (publishers: 1)" in status.last_error
    assert status.frames_pending == SETTINGS["input.queue_size"] and adds_up(status)
    client.process(*good(0))
    assert adds_up(client.status())
    image, beside = good(0)
    del beside[lost]
    client.send(image, beside)
    # The last image of a stream waits for some seconds, and no longer.
    client.wait(lambda: client.statuses[-1].frames_received == before.frames_received + 7, "the image's receipt")
    after = client.status()
    assert adds_up(after) and after.frames_failed == before.frames_failed


def test_images_that_are_stamped_five_milliseconds_apart_are_paired_where_that_is_allowed(running) -> None:
    rig = in_mode(running, "stereo", input__sync="approximate", input__slop=0.02)
    before = rig.client.status()
    assert rig.walk(lambda number: rig.stereo(number, late=0.005)) == pytest.approx(1, abs=0.05)
    after = rig.client.status()
    assert adds_up(after)
    assert (after.frames_failed, after.frames_dropped) == (before.frames_failed, before.frames_dropped)


def test_compressed_pairs_with_the_latest_calibrations_take_their_scale_from_the_parameter(running) -> None:
    twice = [2 * BASELINE, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    rig = in_mode(
        running,
        "stereo",
        input__image_transport="compressed",
        input__camera_info="latest",
        input__left_from_right=twice,
    )
    client = rig.client
    assert rig.walk(lambda number: jpegs(rig.stereo(number))) == pytest.approx(2, abs=0.1)
    # An unused right image may be damaged; one of a keyframe costs its frame.
    last = len(rig.footage.poses) - 1
    assert client.trigger("force_keyframe").success
    client.process(*jpegs(rig.stereo(last)))
    before = client.status()
    client.process(*_with_half_of_the_right(jpegs(rig.stereo(last))))
    assert client.trigger("force_keyframe").success
    client.send(*_with_half_of_the_right(jpegs(rig.stereo(0))))
    after = client.status(lambda status: status.frames_failed > before.frames_failed)
    assert counts(after)["compressed"] == counts(before).get("compressed", 0) + 1 and adds_up(after)
    client.process(*jpegs(rig.stereo(0)))
    assert client.status().frames_failed == after.frames_failed


def _with_half_of_the_right(frame: Frame) -> Frame:
    right = frame[1]["/right/image/compressed"]
    right.data = right.data[: len(right.data) // 2]
    return frame


# --- depth images ---


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_a_depth_image_gives_poses_in_metres(running, encoding) -> None:
    rig = in_mode(running, "rgbd")
    before = rig.client.status()
    assert rig.walk(lambda number: rig.rgbd(number, encoding)) == pytest.approx(1, abs=0.05)
    assert rig.client.status().frames_failed == before.frames_failed


# --- masks of what moves ---


def _of_another_encoding(mask: Image) -> None:
    mask.encoding = "rgb8"


def _of_another_size(mask: Image) -> None:
    mask.height //= 2


@pytest.mark.parametrize("mode", [*(pytest.param(each, marks=pytest.mark.long) for each in ("mono", "stereo")), "rgbd"])
def test_with_masks_no_match_is_on_what_moves_and_a_bad_or_missing_mask_costs_no_frame(running, mode) -> None:
    rig = in_mode(running, mode, input__mask_topic="synchronized")
    client, good = rig.client, {"mono": rig.mono, "stereo": rig.stereo, "rgbd": rig.rgbd}[mode]
    before = client.status()
    assert client.trigger("reset").success
    for number in (0, 0, 1, 2):  # the first connects the mask
        stamp = client.process(*rig.masked(good(number)))
    keyframes = set()
    for number in range(3, 6):
        stamp = client.process(*rig.masked(good(number)))
        found = client.wait(
            lambda stamp=stamp: [c for c in client.correspondences if nanoseconds(c.header.stamp) == stamp], "matches"
        )[0]
        keyframes.add(nanoseconds(found.keyframe_stamp))
        sides = [(found.keyframe_points, nanoseconds(found.keyframe_stamp)), (found.current_points, stamp)]
        for points, at in sides:
            column, (first, last) = np.asarray(points)[::2], rig.hidden[at]
            assert len(column) > 50 and ((column < first) | (column > last - 1)).all()
    after = client.status()
    assert after.frames_failed == before.frames_failed and adds_up(after)
    for spoil, words in (
        (_of_another_encoding, "mask of encoding 'rgb8'"),
        (_of_another_size, "the mask is of 320x120"),
    ):
        image, beside = rig.masked(good(5))
        spoil(beside["/mask"])
        client.process(image, beside)
        assert words in client.status(lambda status, words=words: words in status.last_error).last_error
    client.process(*rig.masked(good(5)))
    client.process(*good(5))  # without a mask
    last = client.status(lambda status: "no mask for the image" in status.last_error)
    assert "/mask (publishers: 1)" in last.last_error and "the newest mask is used" in last.last_error
    assert last.frames_failed == before.frames_failed and adds_up(last)
    assert "Traceback" not in rig.process.said


# --- parameters ---


@pytest.mark.parametrize("mode", ["stereo", "rgbd"])
def test_depth_without_calibrations_is_refused_when_the_node_is_configured(running, mode) -> None:
    rig = in_mode(running, "rgbd")
    client = rig.client
    assert client.transition("deactivate", "cleanup")
    running.now = None
    assert client.set(mode=mode, input__camera_info="none")[0]
    seen = len(client.diagnostics)
    assert not client.transition("configure")
    words = f"mode is '{mode}' and input.camera_info is 'none'"
    client.wait(
        lambda: [d for d in client.diagnostics[seen:] if d.level == DiagnosticStatus.ERROR and words in d.message],
        "a diagnostic of level ERROR",
    )
    ok, reason = client.set(input__left_from_right=[0.1, 0.0, 0.0])
    assert not ok and "expected 7 finite numbers" in reason
