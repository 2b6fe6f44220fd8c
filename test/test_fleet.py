"""Robots that share places: announcements, images on demand, and no waiting for robots that do not answer."""

from __future__ import annotations

import importlib.util
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import camera, texture

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

import rclpy
from loftr_ros.msg import ArchivedKeyframe as KeyframeMessage
from loftr_ros.srv import GetKeyframe
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import ArchiveConfig
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName
from loftr_ros.places.recognition import PlaceRecognition
from loftr_ros.ros.places import fleet, fleet_requests
from loftr_ros.ros.places.fleet import Fleet
from loftr_ros.ros.places.keyframe_messages import MAX_IMAGE_BYTES, announcement

pytestmark = pytest.mark.ros
SPACE, DIMENSION, TOPIC = "made:1", 32, "/places"
PATIENCE = 20.0
SIZE, GRID = (160, 120), (15, 20)


def keyframe(number: int, robot: str = "ada", stamp: float | None = None) -> ArchivedKeyframe:
    """A keyframe with its own image and depths."""
    rng = np.random.default_rng([number, len(robot)])
    vector = rng.normal(size=DIMENSION).astype(np.float32)
    cells = GRID[0] * GRID[1]
    return ArchivedKeyframe(
        name=KeyframeName(robot, number),
        session=1,
        segment=0,
        stamp_ns=round((number if stamp is None else stamp) * 1e9),
        frame_id=f"{robot}/camera",
        size=SIZE,
        image=cv2.imencode(".jpg", texture(SIZE[1], SIZE[0], number))[1].tobytes(),
        camera=camera(*SIZE),
        descriptor=vector / np.linalg.norm(vector),
        depth=CellDepth(rng.uniform(0.1, 1, cells), np.full(cells, 1e-4), True),
        grid=GRID,
    )


class Robot:
    """A lifecycle node with a fleet, its archive and its recognition thread, spun by its own thread."""

    def __init__(
        self,
        domain: int,
        folder: Path,
        name: str,
        *,
        space: str = SPACE,
        namespace: str | None = None,
        timeout: float = 5.0,
        active: bool = True,
    ) -> None:
        self.name = name
        self.errors: list[Exception] = []
        self.refused: list[str] = []
        self.context = rclpy.Context()
        self.context.init(args=None, domain_id=domain)
        self.node = LifecycleNode("front_end", namespace=namespace or name, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.archive = Archive.open(str(folder), SPACE, DIMENSION)
        self.recognition = PlaceRecognition(
            lambda: SimpleNamespace(archive=self.archive, is_waiting=False),  # type: ignore[arg-type, return-value]
            ArchiveConfig(),
            print,
            print,
            self.errors.append,
        )
        self.fleet = Fleet(
            self.node,
            self.recognition,
            name,
            space,
            TOPIC,
            timeout,
            self.errors.append,
            lambda kind, reason: self.refused.append(kind),
        )
        self.node.trigger_configure()
        if active:
            self.node.trigger_activate()
        self._thread.start()

    def add(self, *numbers: int, **changes: Any) -> None:
        """Archive and announce its own keyframes, on the recognition thread like the node."""
        for number in numbers:
            made = replace(keyframe(number, self.name), **changes)
            self.recognition.ask(lambda made=made: (self.archive.add(made), self.fleet.announce(made)))

    def fetch(self, number: int, robot: str) -> ArchivedKeyframe | None:
        return self.recognition.ask(lambda: self.fleet.fetch(keyframe(number, robot)))

    def knows(self, robot: str) -> list[int]:
        return [name.id for name in self.archive.names(robot)]

    def wait_for(self, robot: str, *numbers: int) -> None:
        wait(lambda: set(numbers) <= set(self.knows(robot)), f"keyframes {numbers} of {robot} at {self.name}")

    def close(self) -> None:
        self.on_executor(self.fleet.close)
        self.recognition.stop()
        self.archive.close()
        self.executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        self.context.try_shutdown()

    def on_executor(self, what: Callable[[], Any]) -> None:
        """Run as in a transition's callback."""
        done = self.executor.create_task(what)
        wait(done.done, "the executor")


def wait(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


@pytest.fixture
def start(ros_domain: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Robot]]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    robots: list[Robot] = []

    def make(name: str, folder: str = "", **settings: Any) -> Robot:
        robots.append(Robot(ros_domain, tmp_path / (folder or name), name, **settings))
        return robots[-1]

    yield make
    for robot in robots:
        if robot.context.ok():
            robot.close()


def test_what_one_archives_the_other_knows_and_gets_the_image_of_when_it_asks(start: Callable[..., Robot]) -> None:
    ada, bob = start("ada"), start("bob")
    ada.add(1, 2)
    bob.wait_for("ada", 1, 2)
    known = bob.archive.get(KeyframeName("ada", 1))
    assert known is not None and known.image == b"" and known.depth is None
    assert known.descriptor @ keyframe(1).descriptor > 0.9999 and known.stamp_ns == keyframe(1).stamp_ns
    fetched = bob.fetch(1, "ada")
    assert fetched is not None and fetched.image == keyframe(1).image
    assert fetched.depth is not None and fetched.depth.is_metric and fetched.grid == GRID
    kept = bob.archive.get(KeyframeName("ada", 1))
    assert kept is not None and kept.image == fetched.image, "the image is asked for again each time"
    assert len(bob.archive) == 2 and not ada.knows("bob") and len(ada.archive) == 2
    assert not ada.errors and not bob.errors


def test_who_comes_later_gets_all_in_order_even_what_is_from_before_the_owner_was_started(
    start: Callable[..., Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = start("ada", active=False)
    before.add(*range(1, 6))
    before.close()
    ada = start("ada")
    ada.add(6)
    wait(lambda: not ada.fleet._outgoing._announcements, "the announcements to be said")
    heard: list[int] = []
    take = Fleet._on_announcement
    monkeypatch.setattr(
        Fleet, "_on_announcement", lambda self, message: (heard.append(message.keyframe_id), take(self, message))
    )
    start("bob").wait_for("ada", *range(1, 7))
    assert heard == [*range(1, 7)]


def test_nothing_is_said_before_the_node_is_active_and_all_of_it_then(start: Callable[..., Robot]) -> None:
    ada, bob = start("ada", active=False), start("bob")
    ada.add(1)
    bob.add(1)
    ada.wait_for("bob", 1)  # so the two have found each other
    time.sleep(0.3)
    assert not bob.knows("ada")
    ada.node.trigger_activate()
    bob.wait_for("ada", 1)


def test_two_robots_that_ask_each_other_at_the_same_time_both_get_answers(start: Callable[..., Robot]) -> None:
    ada, bob = start("ada"), start("bob")
    ada.add(1)
    bob.add(1)
    ada.wait_for("bob", 1)
    bob.wait_for("ada", 1)
    together = threading.Barrier(2)

    def ask(robot: Robot, other: str) -> ArchivedKeyframe | None:
        together.wait(PATIENCE)
        return robot.fleet.fetch(keyframe(1, other))

    answers = [
        robot.recognition.submit(lambda r=robot, o=other: ask(r, o)) for robot, other in ((ada, "bob"), (bob, "ada"))
    ]
    assert all(answer.result(PATIENCE) is not None for answer in answers)


def test_a_slow_archive_does_not_hold_up_what_else_the_node_does(
    start: Callable[..., Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = start("ada"), start("bob")
    ada.add(1)
    bob.wait_for("ada", 1)
    ticks: list[float] = []
    ada.node.create_timer(0.02, lambda: ticks.append(time.monotonic()))
    get, asked = ada.archive.get, threading.Event()

    def slow(name: KeyframeName) -> ArchivedKeyframe | None:
        asked.set()
        time.sleep(0.5)
        asked.clear()
        return get(name)

    monkeypatch.setattr(ada.archive, "get", slow)
    answer = bob.recognition.submit(lambda: bob.fleet.fetch(keyframe(1)))
    assert asked.wait(PATIENCE)
    before = len(ticks)
    wait(lambda: len(ticks) > before + 3, "the timer beside the request")
    assert asked.is_set(), "the timer waited for the archive"
    assert answer.result(PATIENCE) is not None


def test_a_robot_that_does_not_answer_is_waited_for_once_and_then_left_alone(start: Callable[..., Robot]) -> None:
    ada, bob = start("ada"), start("bob", timeout=0.3)
    ada.add(1, 2)
    bob.wait_for("ada", 1, 2)
    silent, go_on = threading.Event(), threading.Event()
    ada.executor.create_task(lambda: (silent.set(), go_on.wait(PATIENCE)))
    assert silent.wait(PATIENCE)
    begun = time.monotonic()
    assert bob.fetch(1, "ada") is None
    assert time.monotonic() - begun >= 0.3
    calls = bob.fleet._requests
    asked: list[Any] = []
    calls._ask = lambda *what: asked.append(what)  # type: ignore[assignment]
    for number in (1, 2, 1):
        assert bob.fetch(number, "ada") is None
    assert not asked
    go_on.set()
    # Twice as long each time that it fails, until it answers.
    for expected in (10, 20, 40, 60, 60):
        calls._pauses["ada"].until = 0.0
        assert bob.fetch(1, "ada") is None and calls._pauses["ada"].seconds == expected
    del calls._ask
    calls._pauses["ada"].until = 0.0
    assert bob.fetch(1, "ada") is not None and not calls._pauses


def test_a_robot_that_was_not_heard_of_is_not_asked(start: Callable[..., Robot]) -> None:
    bob = start("bob", timeout=5.0)
    begun = time.monotonic()
    assert bob.fetch(1, "ada") is None and bob.fetch(1, "bob") is None
    assert time.monotonic() - begun < 4


def test_cleaning_up_ends_a_wait_for_another_robot(start: Callable[..., Robot]) -> None:
    ada, bob = start("ada"), start("bob", timeout=60.0)
    ada.add(1)
    bob.wait_for("ada", 1)
    silent, go_on = threading.Event(), threading.Event()
    ada.executor.create_task(lambda: (silent.set(), go_on.wait(PATIENCE)))
    assert silent.wait(PATIENCE)
    answer = bob.recognition.submit(lambda: bob.fleet.fetch(keyframe(1)))
    time.sleep(0.2)
    assert not answer.done()
    bob.on_executor(bob.fleet.close)
    assert answer.result(PATIENCE) is None
    go_on.set()


def test_a_request_that_waits_while_the_node_is_cleaned_up_is_refused_and_does_no_harm(
    start: Callable[..., Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = start("ada"), start("bob")
    ada.add(1, 2)
    bob.wait_for("ada", 1, 2)
    get, asked = ada.archive.get, threading.Event()
    monkeypatch.setattr(ada.archive, "get", lambda name: (asked.set(), time.sleep(0.3), get(name))[-1])
    client = bob.node.create_client(GetKeyframe, "/ada/front_end/get_keyframe")
    futures = [client.call_async(GetKeyframe.Request(keyframe_id=number)) for number in (1, 2)]
    assert asked.wait(PATIENCE)
    wait(lambda: ada.fleet._outgoing._awaited == 2, "both requests")
    ada.on_executor(ada.fleet.close)
    wait(lambda: all(future.done() for future in futures), "answers")
    assert sorted(future.result().success for future in futures) == [False, True]
    names = lambda: [service.srv_name for service in ada.node.services]  # noqa: E731
    wait(lambda: not [name for name in names() if "get_keyframe" in name], "the service to go")
    ada.on_executor(lambda: None)  # it spins still


def test_a_keyframe_that_cannot_be_sent_is_refused_in_words_and_not_asked_for_again_at_once(
    start: Callable[..., Robot], capfd: pytest.CaptureFixture[str]
) -> None:
    ada, bob = start("ada"), start("bob")
    ada.add(1, image=bytes(MAX_IMAGE_BYTES + 1))
    ada.add(2)
    bob.wait_for("ada", 1, 2)
    assert bob.fetch(1, "ada") is None
    assert "jpeg_quality" in capfd.readouterr().err
    until = bob.fleet._requests._refused[KeyframeName("ada", 1)]
    assert until > time.monotonic() + fleet_requests.REFUSED_FOR - 10
    assert bob.fetch(7, "ada") is None
    assert "is not in the archive (any more)" in capfd.readouterr().err
    assert bob.fetch(2, "ada") is not None, "the robot itself is asked on"
    assert not ada.errors and not bob.errors


def test_a_damaged_answer_is_an_error_and_nothing_of_it_is_kept(start: Callable[..., Robot]) -> None:
    ada, bob = start("ada"), start("bob")
    ada.add(1, image=b"\xff\xd8 no image")
    bob.wait_for("ada", 1)
    assert bob.fetch(1, "ada") is None
    assert [error.kind for error in bob.errors] == ["image_damaged"]  # type: ignore[attr-defined]
    assert bob.archive.get(KeyframeName("ada", 1)).image == b""  # type: ignore[union-attr]
    bob.errors.clear()


def test_two_robots_of_one_name_and_descriptors_of_another_network_are_told_of_once_and_ignored(
    start: Callable[..., Robot], capfd: pytest.CaptureFixture[str]
) -> None:
    bob = start("bob")
    twin = start("bob", "twin", namespace="elsewhere")
    other = start("eve", space="loftr:2")
    double = start("dan", namespace="bob")
    good = start("ada")
    for robot in (twin, other, double):
        robot.add(11, 12)
    good.add(1)
    bob.wait_for("ada", 1)
    wait(lambda: len(bob.fleet._warned) == 3, "three warnings")
    said = capfd.readouterr().err
    for words in ("another robot has the same name 'bob'", "by 'loftr:2'", "Give each robot its own namespace"):
        assert words in said
    time.sleep(0.1)
    assert {name.robot for name in bob.archive.names()} == {"ada"}
    assert len(bob.fleet._warned) == 3
    wait(lambda: len(bob.refused) == 6, "all to be counted")
    assert sorted(bob.refused) == ["keyframe_name"] * 4 + ["keyframe_space"] * 2


def test_robots_with_a_common_archive_find_each_others_keyframes_at_once_and_never_ask_for_them(
    start: Callable[..., Robot],
) -> None:
    ada, bob = start("ada", "common"), start("bob", "common")
    for number in range(1, 4):
        ada.add(number)
        found = bob.recognition.ask(lambda number=number: bob.archive.search(keyframe(number).descriptor, 1))
        assert [candidate.name for candidate in found] == [KeyframeName("ada", number)]
        assert bob.archive.get(found[0].name).image == keyframe(number).image  # type: ignore[union-attr]


def test_what_is_in_the_archive_already_is_left_alone_as_in_a_common_database(start: Callable[..., Robot]) -> None:
    ada, bob = start("ada", "common"), start("bob", "common")
    ada.add(*range(1, 4))
    ada.fleet.announce(keyframe(20))  # which the archive does not have
    bob.wait_for("ada", 20)
    assert all(bob.archive.get(KeyframeName("ada", number)).image for number in range(1, 4))  # type: ignore[union-attr]


def test_many_announcements_at_once_are_all_stored_and_none_twice(start: Callable[..., Robot]) -> None:
    ada, bob = start("ada", active=False), start("bob")
    numbers = range(1, 151)
    ada.archive.add_all([replace(keyframe(number), image=b"", depth=None) for number in numbers])
    messages = [announcement(keyframe(number), SPACE, "/ada/front_end") for number in numbers]
    added: list[int] = []
    add_all = bob.archive.add_all
    bob.archive.add_all = lambda keyframes: (added.extend(k.name.id for k in keyframes), add_all(keyframes))  # type: ignore
    for message in [*messages, *messages]:
        bob.fleet._on_announcement(message)
    bob.wait_for("ada", *numbers)
    assert added == [*numbers]


def test_a_robot_that_counts_anew_has_its_keyframes_replaced(start: Callable[..., Robot]) -> None:
    ada, bob = start("ada"), start("bob")
    bob.archive.add(keyframe(1, stamp=500.0))
    ada.add(1)
    wait(lambda: bob.archive.get(KeyframeName("ada", 1)).stamp_ns == keyframe(1).stamp_ns, "the new one")  # type: ignore[union-attr]
    assert bob.fetch(1, "ada").image == keyframe(1).image  # type: ignore[union-attr]


def test_a_full_archive_is_an_error_and_the_keyframe_is_taken_when_it_is_announced_again(
    start: Callable[..., Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = start("bob")
    message = announcement(keyframe(1), SPACE, "/ada/front_end")

    def full(keyframes: list[ArchivedKeyframe]) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(bob.archive, "add_all", full)
        bob.fleet._on_announcement(message)
        wait(lambda: bob.errors, "an error")
        bob.recognition.ask(lambda: None)
    bob.fleet._on_announcement(message)
    bob.wait_for("ada", 1)


def test_what_is_no_keyframe_is_an_error_and_the_others_beside_it_are_taken(start: Callable[..., Robot]) -> None:
    bob = start("bob")
    bad, good = (announcement(keyframe(number), SPACE, "/ada/front_end") for number in (1, 2))
    bad.width = 0
    for message in (bad, good):
        bob.fleet._on_announcement(message)
    bob.wait_for("ada", 2)
    assert [error.kind for error in bob.errors] == ["keyframe_invalid"]  # type: ignore[attr-defined]


def with_link(message: KeyframeMessage, covariance: np.ndarray) -> KeyframeMessage:
    message.link_known, message.link.pose.orientation.w = True, 1.0
    message.link.covariance = covariance.ravel()
    return message


def test_a_name_that_another_node_has_which_is_there_is_not_taken_over(
    start: Callable[..., Robot], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bob, ada = start("bob"), start("ada")
    ada.add(1)
    bob.wait_for("ada", 1)
    # DDS tells of a topic before it tells whose it is.
    wait(lambda: bob.fleet._is_running("/ada/front_end"), "ada's node")
    bob.fleet._on_announcement(announcement(keyframe(1, "ada", stamp=77.0), SPACE, "/eve/front_end"))
    assert bob.refused == ["keyframe_name"]
    assert "is running, but /eve/front_end uses it too" in capfd.readouterr().err
    assert bob.fetch(1, "ada").image == keyframe(1).image, "asked of ada's own node"  # type: ignore[union-attr]
    monkeypatch.setattr(bob.fleet, "_is_running", lambda node: False)  # DDS takes up to 20 s to notice
    bob.fleet._on_announcement(announcement(keyframe(2, "ada"), SPACE, "/elsewhere/front_end"))
    bob.wait_for("ada", 2)  # that has moved into another namespace


def test_a_hostile_robot_is_refused_and_counted_and_costs_the_others_nothing(start: Callable[..., Robot]) -> None:
    bob, made_before = start("bob"), list[KeyframeMessage]()

    def message(**changes: Any) -> KeyframeMessage:
        made = announcement(keyframe(len(made_before), "eve"), SPACE, "/eve/front_end")
        made_before.append(made)
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    short = np.zeros(4, np.float16)
    short[0] = 1
    nan = np.full(DIMENSION, np.nan, np.float16)
    hostile = [
        message(descriptor=short.view(np.uint16).tolist()),
        message(descriptor=nan.view(np.uint16).tolist()),
        message(descriptor=[]),
        message(robot="x" * 1000),
        message(robot="a\nb"),
        message(node="/eve/../bob"),
        message(node="/" + "e" * 1000),
        message(distortion_model="x" * 10_000_000),
        message(width=0),
        with_link(message(), np.diag([1.0] * 5 + [-1.0])),
        with_link(message(), np.full((6, 6), 1e300)),
        with_link(message(), np.triu(np.ones((6, 6)))),
    ]
    good = announcement(keyframe(2, "ada/../../etc.'; --"), SPACE, "/ada/front_end")
    for each in (*hostile, good):
        bob.fleet._on_announcement(each)
    bob.wait_for("ada/../../etc.'; --", 2)
    assert [error.kind for error in bob.errors] == ["keyframe_invalid"] * len(hostile)  # type: ignore[attr-defined]
    assert all(str(error) for error in bob.errors)


def test_what_is_remembered_of_other_robots_is_bounded(
    start: Callable[..., Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_MOST_ROBOTS", 5)
    monkeypatch.setattr(fleet, "_MAX_KNOWN", 4)
    bob = start("bob")
    for number in range(20):
        bob.fleet._on_announcement(announcement(keyframe(1, f"robot{number}"), SPACE, f"/r{number}/front_end"))
    assert len(bob.fleet._nodes) == 5 and len(bob.fleet._known_stamps) <= 4 and len(bob.fleet._warned) <= 5
    assert bob.refused == ["keyframe_robots"] * 15


def test_a_topic_of_small_messages_sets_little_memory_aside(start: Callable[..., Robot]) -> None:
    def size() -> int:
        return int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    ada = start("ada")
    profile = QoSProfile(depth=2000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    publisher = ada.node.create_publisher(KeyframeMessage, "/kept", profile)
    message, before = announcement(keyframe(1), SPACE, "/ada/front_end"), size()
    for _ in range(2000):
        publisher.publish(message)
    assert size() - before < 100 * 1024, "DDS sets the largest size of a message aside for each that it keeps"
