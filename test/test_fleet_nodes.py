"""Two robots, one process each, in one rendered room: one recognises the other's places, over ROS 2 and by a
database.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)
pytest.importorskip("lancedb")

from loftr_ros.msg import LoopClosure, RelativePose
from node_process import PATIENCE, Client, NodeProcess, camera_info, image_message, nanoseconds
from scipy.spatial.transform import Rotation

from loftr_ros.worlds.scene import Scene, default_camera, trajectory

pytestmark = pytest.mark.ros
HOUR_NS = 3600 * 1_000_000_000
# As in test_node.py: one thread, and torch, which is ready at once.
QUIET = {"output.status_period": 0.1, "threads": 1, "backend": "torch", "loop.max_load": 1.0}
VIEWS = 5
CAMERA = default_camera(320, 240)


@dataclass
class Robot:
    """A node in its process, and its source of images."""

    name: str
    process: NodeProcess
    client: Client
    archive: Path
    closures: list[LoopClosure] = field(default_factory=list)
    sent: dict[int, int] = field(default_factory=dict)  # numbers of views by their stamps

    def __post_init__(self) -> None:
        topic = f"/{self.name}/loftr_front_end/loop_closures"
        self.client.node.create_subscription(LoopClosure, topic, self.closures.append, 10)

    def see(self, images: list[np.ndarray]) -> None:
        """Every view becomes a keyframe and is searched for; each is archived when the next one comes."""

        def frame(number: int) -> tuple:
            image = image_message(images[number], self.client.stamp())
            self.sent[nanoseconds(image.header.stamp)] = number
            return image, camera_info(image, CAMERA.focal_length)

        self.client.connect(lambda: frame(0))
        for number in range(1, len(images)):
            assert self.client.trigger("force_keyframe").success
            # Keyframes are searched for only if they are the newest: wait for each.
            before = self.client.statuses[-1].places_searched
            self.client.process(*frame(number))
            self.client.status(lambda status, before=before: status.places_searched > before)


@pytest.fixture(scope="module")
def room() -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """(2, VIEWS, 4, 4) T_world_camera, and the images: both take the same path, a step apart."""
    scene, way = Scene(3), trajectory(30 * VIEWS + 10, seed=3)
    poses = np.stack([way[: 30 * VIEWS : 15][:VIEWS], way[4 : 30 * VIEWS + 4 : 15][:VIEWS]])
    return poses, [[scene.render(CAMERA, pose).image for pose in each] for each in poses]


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Robot, Robot]]:
    folder = tmp_path_factory.mktemp("fleet")

    def start(name: str, domain: int | None = None) -> NodeProcess:
        settings = {**QUIET, "robot_name": name, "archive.uri": str(folder / name), "fleet.share": True}
        return NodeProcess(folder, settings, "-r", f"__ns:=/{name}", autostart=True, domain=domain)

    def client(name: str, domain: int) -> Client:
        return Client(domain, f"/{name}/loftr_front_end", f"/{name}/image", f"/{name}/camera_info")

    with (
        start("ada") as first,
        start("bob", first.domain) as second,
        client("ada", first.domain) as one,
        client("bob", first.domain) as other,
    ):
        for process in (first, second):
            process.wait_for("waiting for images")
        yield Robot("ada", first, one, folder / "ada"), Robot("bob", second, other, folder / "bob")


def wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def keyframes_in(archive: Path) -> int:
    """Keyframes of all robots, as visible to another process."""
    import lancedb

    return int(lancedb.connect(str(archive)).open_table("keyframes").count_rows())


def see_the_same_places(
    robots: tuple[Robot, Robot], room: tuple[np.ndarray, list[list[np.ndarray]]], archive: Path
) -> None:
    """First one robot, then the other, whose clock is an hour slow and which recognises the first one's places.

    Args:
        robots: active.
        room: their views.
        archive: the second one's.
    """
    (ada, bob), (poses, images) = robots, room
    before = len(bob.closures)
    ada.see(images[0])
    wait(lambda: keyframes_in(archive) >= VIEWS - 1, "keyframes")  # the last one is archived when another comes
    assert len(bob.closures) == before
    bob.client._stamp -= HOUR_NS
    bob.see(images[1])
    wait(lambda: len(bob.closures) >= before + 2, "two closures")
    for closure in bob.closures[before:]:
        assert (closure.robot, closure.matched_robot) == ("bob", "ada")
        assert closure.session == bob.client.statuses[-1].session > 0
        assert closure.matched_session == ada.client.statuses[-1].session
        assert closure.scale_reason in (RelativePose.SCALE_OWN_UNIT, RelativePose.SCALE_NO_DEPTH)
        old, new = ada.sent[nanoseconds(closure.matched_stamp)], bob.sent[nanoseconds(closure.header.stamp)]
        true = np.linalg.inv(poses[0, old]) @ poses[1, new]
        turn = closure.pose.pose.orientation
        rotation = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w])
        assert closure.status in (RelativePose.OK, RelativePose.PLANAR, RelativePose.CONCENTRATED)
        assert np.degrees((rotation.inv() * Rotation.from_matrix(true[:3, :3])).magnitude()) < 2


@pytest.mark.long
def test_a_place_of_another_robot_is_found_over_ros_alone(
    robots: tuple[Robot, Robot], room: tuple[np.ndarray, list[list[np.ndarray]]]
) -> None:
    ada, bob = robots
    see_the_same_places(robots, room, bob.archive)
    assert "ERROR" not in ada.process.said + bob.process.said


@pytest.mark.long
def test_a_place_of_another_robot_is_found_by_a_common_database(
    robots: tuple[Robot, Robot], room: tuple[np.ndarray, list[list[np.ndarray]]], tmp_path: Path
) -> None:
    for robot in robots:
        robot.client.reconfigure(archive__uri=str(tmp_path / "common"), fleet__share=False)
    ada, bob = robots
    see_the_same_places(robots, room, tmp_path / "common")
    assert "ERROR" not in ada.process.said + bob.process.said
