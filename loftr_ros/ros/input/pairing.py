"""Pairs images with their companions by stamp, and accounts for every image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.ros.input.synchronizer import ApproximateTimeSynchronizer, SimpleFilter, TimeSynchronizer
from loftr_ros.ros.output.messages import to_nanoseconds
from loftr_ros.ros.output.statistics import Severity, Statistics
from loftr_ros.ros.parameters import InputParameters

# Consecutive images older than the newest that mean a jump back in time. Fewer are strays, and the waiting messages are
# kept.
JUMP_AFTER = 3
# Maximum seconds that an image waits for its partners if no newer images push it out.
WAIT = 3.0
# Seconds for which a loss, or a message without an image, counts as the cause of a missing partner.
RECENT = 10.0

TRANSPORT_CURE = (
    "Start its driver with the profile for large messages (docs/transport.md), or make the topic reliable at both "
    "ends (qos_overrides.<topic>.subscription.reliability)"
)


@dataclass(frozen=True)
class Partner:
    """A topic of which each image needs a message.

    Attributes:
        field: field of `Arrival` for the message.
        kind: of the message.
        topic: relative to the node's namespace.
        error: kind of the error that counts a missing message.
        name: for messages to people.
    """

    field: str
    kind: type
    topic: str
    error: str
    name: str


class Topics(Protocol):
    """Information about the partners' topics; see `InputTopics`."""

    knows_losses: bool

    def describe(self, topics: Iterable[Partner]) -> str: ...
    def name(self, topic: Partner) -> str: ...
    def publishers(self, topic: Partner) -> int: ...
    def lost_within(self, topic: Partner, seconds: float) -> bool: ...
    def published_topics(self, topic: Partner) -> str: ...


@dataclass(frozen=True, eq=False)
class _Held:
    """A waiting message, and the monotonic seconds of its arrival."""

    message: Any
    since: float


@dataclass
class _PartnerQueue:
    """Messages received on a partner's topic.

    Attributes:
        waiting: messages that wait for their image, by stamp.
        stamp: of the newest.
        unused_at: time when a message was last discarded without an image.
    """

    waiting: dict[int, _Held] = field(default_factory=dict)
    stamp: int | None = None
    unused_at: float = float("-inf")


class Pairing:
    """A synchronizer that reports every image it drops.

    Every image is passed on with its partners, refused, or counted as unpaired.
    """

    def __init__(
        self,
        images: Any,
        partners: Sequence[tuple[Partner, Any]],
        parameters: InputParameters,
        statistics: Statistics,
        on_paired: Callable[[Image | CompressedImage, dict[str, Any], float], None],
        on_refused: Callable[[str, str], None],
        on_unpaired: Callable[[str, str, int, Severity], None],
        topics: Topics,
        approximate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to the filters.

        Args:
            images: the images' subscriber, or another filter.
            partners: the topics that belong to the images, and the subscriber of each; at least one.
            parameters: queue size and slop.
            statistics: counts received messages.
            on_paired: called with an image, its partners by field, and the monotonic seconds of its arrival.
            on_refused: called with kind and message for each image with an unusable stamp.
            on_unpaired: called with kind, message, number and severity for images that stay without partners.
            topics: information about the partners' topics.
            approximate: pair stamps within `slop`, instead of equal stamps.
            clock: monotonic seconds.
        """
        self._partners = [partner for partner, _ in partners]
        self._queue_size = parameters.queue_size
        self._statistics = statistics
        self._on_paired = on_paired
        self._on_refused = on_refused
        self._on_unpaired = on_unpaired
        self._topics = topics
        self._clock = clock
        self._slop = parameters.slop if approximate else 0.0
        self._slop_ns = round(self._slop * 1e9)
        # Images that wait for their partners, by stamp. The synchronizer holds them too, but drops them silently.
        self._waiting: dict[int, _Held] = {}
        self._partner_queues = {partner.field: _PartnerQueue() for partner in self._partners}
        self._newest = self._behind = self._pairs = 0
        self._paired_at = float("-inf")
        self._renew()
        images.registerCallback(self._wait)
        for number, (partner, source) in enumerate(partners, 1):
            source.registerCallback(self._on_message, self._partner_queues[partner.field], number)

    @property
    def pending(self) -> int:
        """Images that wait for their partners."""
        return len(self._waiting)

    def close(self) -> None:
        """Drop and count the images still waiting."""
        self._statistics.dropped(len(self._waiting))
        self._waiting = {}

    def expire(self) -> None:
        """Give up images that have waited too long. Call it about once a second, on the thread that receives messages.

        Newer images normally push them out. But if images end, or stamps are strays, nothing newer comes.
        """
        limit = self._clock() - WAIT
        if late := [stamp for stamp, held in self._waiting.items() if held.since < limit]:
            is_dead = self._clock() - self._paired_at > 2 * WAIT
            self._report(late, max(late), Severity.NONE_COMES if is_dead else Severity.LOSS)
        for queue in self._partner_queues.values():
            # Stamps of a clock that was ahead would fill the queue for good, and a full queue refuses anything older.
            if self._forget(queue.waiting, [stamp for stamp, held in queue.waiting.items() if held.since < limit]):
                queue.unused_at = self._clock()

    def _renew(self) -> None:
        """Create a new synchronizer that holds only what still waits.

        message_filters offers no removal from its queues, and a full queue refuses anything older.
        """
        self._is_stale = False
        self._inlets = [SimpleFilter() for _ in range(len(self._partners) + 1)]
        synchronizer: Any = (
            ApproximateTimeSynchronizer(self._inlets, self._queue_size, self._slop)
            if self._slop_ns
            else TimeSynchronizer(self._inlets, self._queue_size)
        )
        synchronizer.registerCallback(self._paired)
        for inlet, waiting in zip(self._inlets[1:], self._partner_queues.values(), strict=True):
            for held in list(waiting.waiting.values()):
                inlet.signalMessage(held.message)
        for held in list(self._waiting.values()):
            self._inlets[0].signalMessage(held.message)

    def _forget(self, waiting: dict[int, _Held], stamps: Iterable[int]) -> int:
        """Discard waiting messages; returns how many."""
        count = sum(waiting.pop(stamp, None) is not None for stamp in list(stamps))
        self._is_stale |= count > 0
        return count

    def _pass_on(self, inlet: int, message: Any) -> None:
        if self._is_stale:
            self._renew()  # including this message, which waits by now
        else:
            self._inlets[inlet].signalMessage(message)

    def _on_message(self, message: Any, queue: _PartnerQueue, inlet: int) -> None:
        stamp = to_nanoseconds(message.header.stamp)
        queue.waiting[stamp] = _Held(message, self._clock())
        queue.stamp = stamp
        while len(queue.waiting) > self._queue_size:
            del queue.waiting[min(queue.waiting)]  # same policy as the synchronizer
            queue.unused_at = self._clock()
        self._pass_on(inlet, message)

    def _wait(self, image: Image | CompressedImage) -> None:
        self._statistics.received(image.header.frame_id)
        stamp = to_nanoseconds(image.header.stamp)
        if stamp in self._waiting:
            what = f"the stamp {stamp / 1e9:.3f}" if stamp else "a stamp of zero, which in ROS means no stamp"
            self._on_refused(
                "time",
                f"two images with {what}: do two nodes publish the topic? If the driver's stamps cannot be fixed, "
                "use the time of arrival: set the parameter input.stamps to 'arrival'",
            )
        self._behind = self._behind + 1 if stamp < self._newest else 0
        self._newest = max(stamp, self._newest)
        if self._behind >= JUMP_AFTER:
            # Time went back. A full queue refuses anything older, so no pair would ever be complete.
            limit = stamp + self._slop_ns
            for queue in self._partner_queues.values():
                self._forget(queue.waiting, [other for other in queue.waiting if other > limit])
            self._is_stale = True
            if ahead := [other for other in self._waiting if other > limit]:
                self._report(ahead, max(ahead), Severity.LOSS)
            self._newest, self._behind = stamp, 0
        self._waiting[stamp] = _Held(image, self._clock())
        while len(self._waiting) > self._queue_size:
            self._give_up(min(self._waiting), stamp)
        self._pass_on(0, image)

    def _paired(self, image: Image | CompressedImage, *messages: Any) -> None:
        stamp = to_nanoseconds(image.header.stamp)
        held = self._waiting.pop(stamp, None)
        if held is None or held.message is not image:
            return  # it was given up and counted before its partners came
        # A topic keeps its order: a message missing for an older image will not come any more, and a newer image has
        # taken its place. It may be lost in a burst, or be one of the first images, before all topics are connected.
        if older := [other for other in self._waiting if other < stamp]:
            self._report(older, max(older), Severity.LOSS if self._pairs else Severity.USUAL)
        for queue, message in zip(self._partner_queues.values(), messages, strict=True):
            taken = to_nanoseconds(message.header.stamp)
            queue.waiting.pop(taken, None)
            if self._forget(queue.waiting, [other for other in queue.waiting if other < taken]):
                queue.unused_at = self._clock()
        self._pairs += 1
        self._paired_at = self._clock()
        fields = {partner.field: message for partner, message in zip(self._partners, messages, strict=True)}
        self._on_paired(image, fields, held.since)

    def _give_up(self, stamp: int, newest: int) -> None:
        """Report an image that the synchronizer pushes out; `newest` is the stamp of the newly received image."""
        if stamp == newest:
            del self._waiting[stamp]
            missing = self._missing(stamp)
            names = "CameraInfo" if missing[0].kind is CameraInfo else missing[0].name
            self._on_refused(
                "time",
                f"image stamp {stamp / 1e9:.3f} is older than all images that wait for their {names}; "
                "check the driver's clock, or whether a recording was restarted",
            )
            return
        self._report([stamp], stamp, Severity.NONE_COMES)

    def _report(self, stamps: Sequence[int], stamp: int, severity: Severity) -> None:
        """Remove images from the waiting ones and report the reason, using one of them as the example."""
        missing = self._missing(stamp)
        partner = missing[0]
        why, by_design = self._why(partner, stamp)
        if by_design and severity is Severity.LOSS:
            severity = Severity.BY_DESIGN
        names = "CameraInfo" if partner.kind is CameraInfo else partner.name
        when = f"within {self._slop:g} s of" if self._slop_ns else "with"
        report = (
            f"no {names} {when} the image's stamp {stamp / 1e9:.3f} received on {self._topics.describe(missing)}. {why}"
        )
        self._forget(self._waiting, stamps)
        self._on_unpaired(partner.error, report, len(stamps), severity)

    def _missing(self, stamp: int) -> list[Partner]:
        """The topics to report: those without a message for any waiting image, else those without one for this
        image.
        """
        queues = [(partner, self._partner_queues[partner.field].waiting) for partner in self._partners]

        def lacking(stamps: Sequence[int]) -> list[Partner]:
            return [
                partner
                for partner, queue in queues
                if not any(abs(own - other) <= self._slop_ns for own in stamps for other in queue)
            ]

        return lacking([stamp, *self._waiting]) or lacking([stamp]) or self._partners

    def _why(self, partner: Partner, stamp: int) -> tuple[str, bool]:
        """Reason for a missing partner with advice, and whether it is normal."""
        queue, topics = self._partner_queues[partner.field], self._topics
        is_info = partner.kind is CameraInfo
        otherwise = ""
        if is_info:
            otherwise = "; or set the parameter input.camera_info to 'latest' (published once, or seldom)"
            otherwise += " or 'none' (no poses)" if len(self._partners) == 1 else ""
        by_design = False
        if topics.lost_within(partner, RECENT):
            why = f"The middleware lost messages of it in transport. {TRANSPORT_CURE}"
        elif not topics.publishers(partner) and queue.stamp is not None:
            why = "Its publisher has gone"
        elif not topics.publishers(partner):
            why = f"It has no publisher: remap it to a published topic. {topics.published_topics(partner)}"
        elif queue.stamp is None and is_info:
            why = (
                "It has a publisher, but no message was received: was it published once, before the node started? "
                "Then set the parameter input.camera_info to 'latest', and "
                f"qos_overrides.{topics.name(partner)}.subscription.durability to transient_local"
            )
        elif queue.stamp is None:
            why = (
                "It has a publisher, but no message was received: the middleware loses messages that are too large for "
                f"its buffers. {TRANSPORT_CURE}"
            )
        elif self._pairs and topics.knows_losses and self._clock() - queue.unused_at > RECENT:
            by_design = True
            why = "It is published less often than the image: none of its messages was lost, and each had its image"
        elif self._pairs:
            why = "Other images were paired: single messages are lost, late, or have another stamp"
        else:
            why = f"Its newest stamp is {(queue.stamp - stamp) / 1e9:+.3f} s from there. " + self._cure_of_stamps(
                is_info
            )
        return why + ("" if "'latest'" in why else otherwise), by_design

    def _cure_of_stamps(self, is_info: bool) -> str:
        if is_info:
            return "Publish the calibration with each image's stamp"
        if self._slop_ns:
            return "If stamps are further apart than that, raise input.slop"
        return "If each camera has its own clock, set the parameter input.sync to 'approximate'"
