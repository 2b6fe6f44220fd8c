"""The node and its archive: every problem with the archive is reported, and tracking continues."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from conftest import mount_small_disk
from loftr_ros.msg import FrontEndStatus, Keyframe
from node_process import Client, NodeProcess, camera_info, image_message
from sensor_msgs.msg import CameraInfo, Image

from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.places.archive import Archive
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

pytestmark = pytest.mark.ros

CAMERA = default_camera(320, 240)
PARAMETERS = {
    "output.status_period": 0.1,
    "output.error_period": 0.0,
    "threads": 1,
    "backend": "torch",
    "warm_up_width": 0,
    "robot_name": "ada",
}


@pytest.fixture(scope="module")
def footage() -> list[np.ndarray]:
    scene = Scene(3)
    return [scene.render(CAMERA, pose).image for pose in trajectory(76, seed=3)[::15]]


class Stream:
    """Frames of the footage, each made a keyframe."""

    def __init__(self, client: Client, footage: list[np.ndarray]) -> None:
        self.client, self.footage, self.sent = client, footage, 0

    def frame(self) -> tuple[Image, CameraInfo]:
        image = image_message(self.footage[self.sent % len(self.footage)], self.client.stamp())
        self.sent += 1
        return image, camera_info(image, CAMERA.focal_length)

    def go(self, keyframes: int) -> None:
        """Process images until enough keyframes are made."""
        for _ in range(keyframes):
            assert self.client.trigger("force_keyframe").success
            self.client.process(*self.frame())

    def ids(self) -> list[int]:
        """IDs of all keyframes so far."""
        return [keyframe.id for keyframe in self.client.keyframes if keyframe.event == Keyframe.ADDED]


def errors(status: FrontEndStatus) -> dict[str, int]:
    return dict(zip(status.error_kinds, map(int, status.error_counts), strict=True))


def test_what_is_wrong_with_the_archive_is_said_and_tracking_goes_on(
    tmp_path: Path, small_disk: Path, footage: list[np.ndarray]
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with NodeProcess(tmp_path, PARAMETERS | {"archive.uri": str(foreign)}) as process, Client(process.domain) as client:
        stream = Stream(client, footage)
        assert client.transition("configure", "activate"), process.said
        assert any("no archive, and no loop closure" in line for line in process.errors("archive_foreign"))
        client.connect(stream.frame)
        stream.go(2)
        assert [path.name for path in foreign.iterdir()] == ["notes.txt"]

        # A disk that fills up while images come.
        client.reconfigure(archive__uri=str(small_disk / "archive"))
        client.connect(stream.frame)
        full = 0
        while not full and stream.sent < 100:
            stream.go(1)
            full = errors(client.statuses[-1]).get("archive_full", 0)
        assert full, process.said
        stream.go(2)
        status = client.status(lambda s: s.keyframes_lost > 0 and s.archived_keyframes > 0)
        assert status.archived_keyframes < stream.sent
        assert any("disk is full" in line for line in process.errors("archive_full"))

        # A read-only folder: its places are recognised all the same.
        assert client.transition("deactivate", "cleanup")
        assert mount_small_disk(small_disk, read_only_again=True)
        assert client.transition("configure", "activate"), process.said
        assert any("new keyframes are not stored" in line for line in process.errors("archive_read_only"))
        client.connect(stream.frame)
        stream.go(2)
        status = client.status(lambda s: s.keyframes_lost > 0)
        assert status.archived_keyframes > 0 and client.state() == "active"
        assert process.process.poll() is None, process.said


@pytest.mark.long
def test_after_kill_9_the_archive_has_every_keyframe_but_the_newest(tmp_path: Path, footage: list[np.ndarray]) -> None:
    folder = tmp_path / "archive"
    with NodeProcess(tmp_path, PARAMETERS | {"archive.uri": str(folder)}) as process, Client(process.domain) as client:
        stream = Stream(client, footage)
        assert client.transition("configure", "activate"), process.said
        client.connect(stream.frame)
        stream.go(5)
        ids = stream.ids()
        # The last but one is still being written when the last one comes.
        client.status(lambda status: status.archived_keyframes >= len(ids) - 1)
        process.stop(signal.SIGKILL)
    describe = PlaceDescriptor.of(open_matcher(matcher_spec(MatcherConfig(backend="torch"), MatchingConfig())))
    with Archive.open(os.fspath(folder), describe.space, describe.dimension) as archive:
        assert [name.id for name in archive.names("ada")] == ids[:-1]
        assert all(archive.get(name).to_frame().size == (320, 240) for name in archive.names())  # type: ignore[union-attr]
