"""Images and their companions: pairing, and reports of unpaired images."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from sensor_msgs.msg import CameraInfo, Image

from loftr_ros.ros.input.pairing import WAIT, Pairing, Partner, Severity
from loftr_ros.ros.input.synchronizer import LocalFilter
from loftr_ros.ros.output.messages import to_nanoseconds, to_time
from loftr_ros.ros.output.statistics import Statistics
from loftr_ros.ros.parameters import InputParameters

RIGHT = Partner("right", Image, "right/image", "right", "right image")
INFO = Partner("camera_info", CameraInfo, "camera_info", "camera_info", "CameraInfo")
RIGHT_INFO = Partner("right_info", CameraInfo, "right/camera_info", "camera_info", "right CameraInfo")
DEPTH = Partner("depth", Image, "depth/image", "depth", "depth image")
START = 1_700_000_000_000


class Streams:
    """A pairing of local topics, with all its reports."""

    def __init__(self, *partners: Partner, slop: float | None = None, queue_size: int = 4) -> None:
        self.sources = {name: LocalFilter() for name in ("image", *(partner.field for partner in partners))}
        self.paired: list[dict[str, int]] = []
        self.errors: list[tuple[str, str]] = []
        self.unpaired: list[tuple[str, str]] = []
        self.severities: list[Severity] = []
        self.counted = 0
        self.now = 0.0
        self.published, self.lost, self.knows_losses = 0, False, True
        self.statistics = Statistics(10)
        self.pairing = Pairing(
            self.sources["image"],
            [(partner, self.sources[partner.field]) for partner in partners],
            InputParameters(queue_size=queue_size, slop=slop or 0.01),
            self.statistics,
            self._on_paired,
            lambda kind, message: self.errors.append((kind, message)),
            self._on_unpaired,
            self,
            approximate=slop is not None,
            clock=lambda: self.now,
        )

    def send(self, milliseconds: float, *names: str) -> None:
        """Send a message on each of these topics, with this stamp."""
        stamp = round((START + milliseconds) * 1_000_000)
        for name in names:
            header = SimpleNamespace(stamp=to_time(stamp), frame_id="camera")
            self.sources[name].signalMessage(SimpleNamespace(header=header))

    def adds_up(self) -> bool:
        """Whether every image was paired, dropped, refused, or still waits."""
        now = self.statistics.snapshot()
        ended = len(self.paired) + now.dropped + self.counted + len(self.errors)
        return now.received == ended + self.pairing.pending

    def _on_paired(self, image: Any, partners: dict[str, Any], received: float) -> None:
        self.paired.append({name: _milliseconds(message) for name, message in ({"image": image} | partners).items()})

    def _on_unpaired(self, kind: str, message: str, number: int, severity: Severity) -> None:
        self.unpaired.append((kind, message))
        self.severities.append(severity)
        self.counted += number

    # --- what InputTopics tells ---

    def describe(self, topics: Iterable[Partner]) -> str:
        return " and ".join(f"/{topic.topic} (publishers: {self.published})" for topic in topics)

    def name(self, topic: Partner) -> str:
        return f"/{topic.topic}"

    def publishers(self, topic: Partner) -> int:
        return self.published

    def lost_within(self, topic: Partner, seconds: float) -> bool:
        return self.lost

    def published_topics(self, topic: Partner) -> str:
        return "The image topics that are published: /camera/depth (Image)"


def _milliseconds(message: Any) -> int:
    return to_nanoseconds(message.header.stamp) // 1_000_000 - START


def test_an_image_goes_on_once_all_that_belongs_to_it_is_there_in_whatever_order_it_comes() -> None:
    order = ["image", "right", "camera_info", "right_info"]
    for number, seed in enumerate(range(24)):
        streams = Streams(RIGHT, INFO, RIGHT_INFO)
        random.Random(seed).shuffle(order)
        for name in order[:-1]:
            streams.send(number, name)
            assert not streams.paired
        streams.send(number, order[-1])
        assert streams.paired == [dict.fromkeys(order, number)]
        assert streams.pairing.pending == 0 and streams.adds_up()


def test_equal_stamps_only_are_exact() -> None:
    streams = Streams(DEPTH)
    streams.send(0, "image")
    streams.send(1, "depth")
    assert not streams.paired and streams.pairing.pending == 1


def test_an_offset_within_the_slop_is_approximate_and_the_nearest_partner_is_taken() -> None:
    streams = Streams(RIGHT, INFO, RIGHT_INFO, slop=0.01)
    for time in range(0, 330, 33):
        streams.send(time + 5, "right", "right_info")
        streams.send(time, "image", "camera_info")
    expected = [{"image": t, "camera_info": t, "right": t + 5, "right_info": t + 5} for t in range(0, 330, 33)]
    assert streams.paired == expected
    assert not streams.errors and streams.adds_up() and streams.statistics.snapshot().dropped == 0


def test_beyond_the_slop_nothing_is_paired() -> None:
    streams = Streams(DEPTH, slop=0.01)
    for time in range(0, 1000, 100):
        streams.send(time, "image")
        streams.send(time + 11, "depth")
    assert not streams.paired and streams.adds_up()
    kind, message = streams.unpaired[-1]
    assert kind == "depth" and streams.severities[-1] is Severity.NONE_COMES
    assert "no depth image within 0.01 s of the image's stamp" in message
    streams.published = 1
    for time in (1000, 1100):
        streams.send(time, "image")
        streams.send(time + 11, "depth")
    assert "input.slop" in streams.unpaired[-1][1]


def test_images_whose_partner_was_lost_count_as_unpaired_when_a_newer_one_is_paired() -> None:
    for slop in (None, 0.005):
        streams = Streams(RIGHT, INFO, slop=slop)
        streams.send(-33, "image", "right", "camera_info")
        streams.send(0, "image", "camera_info")
        streams.send(33, "image", "right")
        streams.send(66, "image", "right", "camera_info")
        assert [pair["image"] for pair in streams.paired] == [-33, 66]
        assert streams.counted == 2 and streams.statistics.snapshot().dropped == 0
        assert streams.severities == [Severity.LOSS]
        # The old partners are gone too, and wait for nobody.
        streams.send(0, "right")
        streams.send(33, "camera_info")
        assert len(streams.paired) == 2 and streams.adds_up() and not streams.errors


@pytest.mark.parametrize(
    ("lost", "kind", "words"),
    [
        (
            ("right",),
            "right",
            "no right image with the image's stamp 1700000000.000 received on /right/image (publishers",
        ),
        (
            ("camera_info",),
            "camera_info",
            "no CameraInfo with the image's stamp 1700000000.000 received on /camera_info",
        ),
        (("right_info",), "camera_info", "received on /right/camera_info (publishers: 0)"),
        (("right", "right_info"), "right", "/right/image (publishers: 0) and /right/camera_info (publishers: 0)"),
    ],
)
def test_a_topic_that_nobody_publishes_is_named_once_images_can_wait_no_longer(
    lost: tuple[str, ...], kind: str, words: str
) -> None:
    streams = Streams(RIGHT, INFO, RIGHT_INFO, queue_size=3)
    for time in range(0, 1000, 100):
        streams.send(time, *(name for name in streams.sources if name not in lost))
    assert [error for error, _ in streams.unpaired] == [kind] * 7
    assert set(streams.severities) == {Severity.NONE_COMES}
    message = streams.unpaired[0][1]
    assert "It has no publisher: remap it" in message and "/camera/depth (Image)" in message
    assert words in message
    others = {partner.topic for partner in (RIGHT, INFO, RIGHT_INFO) if partner.field not in lost}
    assert not any(f" /{topic} (" in message for topic in others), "what does come is not blamed"
    assert streams.pairing.pending == 3 and streams.adds_up()


def test_a_right_image_that_is_stamped_otherwise_is_told_from_one_that_does_not_come_by_the_advice() -> None:
    streams = Streams(RIGHT, queue_size=2)
    streams.published = 1
    for time in range(0, 500, 100):
        streams.send(time, "image")
        streams.send(time + 7, "right")
    message = streams.unpaired[-1][1]
    assert "input.sync to 'approximate'" in message and "remap" not in message
    assert "+0.107 s from there" in message


def test_doing_without_calibrations_is_proposed_to_a_single_camera_only() -> None:
    single, pair = Streams(INFO, queue_size=1), Streams(RIGHT, INFO, queue_size=1)
    for time in (0, 100):
        single.send(time, "image")
        pair.send(time, "image", "right")
    assert "'none' (no poses)" in single.unpaired[0][1] and "'latest'" in single.unpaired[0][1]
    assert "'none'" not in pair.unpaired[0][1] and "'latest'" in pair.unpaired[0][1]


def test_a_loss_that_the_middleware_tells_of_is_blamed_on_it_and_no_remapping_is_advised() -> None:
    streams = Streams(DEPTH, queue_size=2)
    streams.published, streams.lost = 1, True
    for time in range(0, 400, 100):
        streams.send(time, "image")
    message = streams.unpaired[0][1]
    assert "The middleware lost messages of it" in message and "docs/transport.md" in message
    assert "remap" not in message.lower() and "input.sync" not in message


def test_a_topic_that_is_published_and_brings_nothing_is_not_blamed_on_a_remapping_either() -> None:
    streams = Streams(DEPTH, queue_size=1)
    streams.published = 1
    for time in (0, 100):
        streams.send(time, "image")
    message = streams.unpaired[0][1]
    assert "It has a publisher, but no message was received" in message and "remap" not in message.lower()


def test_a_calibration_that_was_published_once_is_told_of_with_the_two_settings_that_take_it() -> None:
    streams = Streams(INFO, queue_size=1)
    streams.published = 1
    for time in (0, 100):
        streams.send(time, "image")
    message = streams.unpaired[0][1]
    assert "input.camera_info to 'latest'" in message
    assert "qos_overrides./camera_info.subscription.durability to transient_local" in message


def test_depth_at_half_the_rate_is_no_loss_and_every_second_image_is_paired() -> None:
    streams = Streams(DEPTH)
    streams.published = 1
    for number in range(20):
        streams.now += 0.033
        streams.send(number * 33, "image", *(["depth"] if number % 2 == 0 else []))
    assert len(streams.paired) == 10 and streams.counted == 9 and streams.adds_up()
    assert set(streams.severities) == {Severity.BY_DESIGN}
    streams.knows_losses = False  # another middleware: who knows
    streams.send(700, "image")
    streams.send(733, "image", "depth")
    assert streams.severities[-1] is Severity.LOSS


def test_single_depth_images_whose_colour_was_lost_tell_of_losses_on_both_sides() -> None:
    streams = Streams(DEPTH)
    streams.published = 1
    for number in range(20):
        streams.now += 0.033
        names = {5: ["depth"], 9: ["image"]}.get(number, ["image", "depth"])
        streams.send(number * 33, *names)
    assert streams.counted == 1 and streams.severities == [Severity.LOSS]


def test_a_topic_that_dies_and_comes_back_is_paired_at_once() -> None:
    streams = Streams(DEPTH)
    streams.published = 1
    for number in range(200):
        streams.now += 0.033
        streams.pairing.expire()
        streams.send(number * 33, "image", *(["depth"] if not 50 <= number < 140 else []))
    assert [pair["image"] for pair in streams.paired] == [n * 33 for n in range(200) if not 50 <= n < 140]
    assert streams.counted == 90 and streams.adds_up() and streams.pairing.pending == 0


def test_images_that_wait_when_the_stream_ends_are_given_up_after_some_seconds() -> None:
    streams = Streams(DEPTH)
    streams.send(0, "image", "depth")
    streams.send(33, "image")
    assert streams.pairing.pending == 1
    streams.now = WAIT - 0.1
    streams.pairing.expire()
    assert streams.pairing.pending == 1
    streams.now = WAIT + 0.1
    streams.pairing.expire()
    assert streams.pairing.pending == 0 and streams.counted == 1 and streams.adds_up()
    streams.send(33, "depth")  # too late
    assert len(streams.paired) == 1


def test_stray_stamps_far_ahead_do_not_make_a_partners_queue_deaf() -> None:
    streams = Streams(DEPTH, queue_size=3)
    for number in range(5):
        streams.send(1e9 + number, "depth")
    streams.send(0, "image", "depth")
    assert not streams.paired, "the queue is full of what is newer"
    streams.now = WAIT + 0.1
    streams.pairing.expire()
    streams.send(100, "image", "depth")
    assert [pair["image"] for pair in streams.paired] == [100] and streams.adds_up()


def test_a_stray_image_far_ahead_is_given_up_and_the_stream_goes_on() -> None:
    streams = Streams(DEPTH)
    for number in range(20):
        streams.now += 0.1
        if number == 10:
            streams.send(1e7, "image")
        streams.send(number * 100, "image", "depth")
    streams.now += WAIT
    streams.pairing.expire()
    assert len(streams.paired) == 20 and streams.counted == 1 and streams.pairing.pending == 0 and streams.adds_up()


@pytest.mark.parametrize("slop", [None, 0.01])
def test_after_a_jump_back_in_time_pairs_come_about_again(slop: float | None) -> None:
    streams = Streams(RIGHT, INFO, slop=slop, queue_size=4)
    late = 5 if slop else 0
    for time in range(100_000, 100_600, 100):  # the right image is missing: queues are full
        streams.send(time, "image", "camera_info")
    for time in range(0, 1000, 100):
        streams.send(time, "image", "camera_info")
        streams.send(time + late, "right")
    assert [pair["image"] for pair in streams.paired][-5:] == [500, 600, 700, 800, 900]
    assert streams.adds_up()


def test_two_images_with_one_stamp_are_a_fault_of_the_driver() -> None:
    streams = Streams(RIGHT)
    streams.send(0, "image", "image", "right")
    assert [kind for kind, _ in streams.errors] == ["time"] and len(streams.paired) == 1 and streams.adds_up()


@pytest.mark.parametrize("slop", [None, 0.012])
def test_every_image_is_accounted_for_however_messages_are_lost_late_and_out_of_order(slop: float | None) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        streams = Streams(RIGHT, INFO, RIGHT_INFO, slop=slop, queue_size=rng.choice([1, 3, 10]))
        messages = [
            (time + rng.choice([0, 0, 0, 60]), time + (rng.uniform(-4, 4) if slop else 0), name)
            for time in range(0, 4000, 33)
            for name in streams.sources
            if rng.random() > 0.1
        ]
        for _, stamp, name in sorted(messages):
            streams.send(stamp, name)
            assert streams.adds_up()
        assert streams.paired
        assert all(max(pair.values()) - min(pair.values()) <= (slop or 0) * 1000 for pair in streams.paired)
        streams.pairing.close()
        assert streams.pairing.pending == 0 and streams.adds_up()
