"""Images and what belongs to them, paired by their stamps; what becomes of every image is accounted for."""

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

# Images in a row that are older than the newest: a stray is not worth forgetting what waits, a jump back in time is.
JUMP_AFTER = 3
# Seconds that an image waits for its partners at most, where no newer images come to push it out.
WAIT = 3.0
# Seconds that a loss, or a message without an image, counts for when the cause of a missing partner is looked for.
RECENT = 10.0

TRANSPORT_CURE = (
    "Start its driver with the profile that gives images room (docs/transport.md), or make the topic reliable at both "
    "ends (qos_overrides.<topic>.subscription.reliability)"
)


@dataclass(frozen=True)
class Partner:
    """A topic of which each image needs a message.

    Attributes:
        field: of `Arrival`, where the message goes to.
        kind: of the message.
        topic: relative to the node's namespace.
        error: the kind under which its lack is counted.
        name: for people.
    """

    field: str
    kind: type
    topic: str
    error: str
    name: str


class Topics(Protocol):
    """Who publishes partners; see `InputTopics`."""

    knows_losses: bool

    def describe(self, topics: Iterable[Partner]) -> str: ...
    def name(self, topic: Partner) -> str: ...
    def publishers(self, topic: Partner) -> int: ...
    def lost_within(self, topic: Partner, seconds: float) -> bool: ...
    def there_are(self, topic: Partner) -> str: ...


@dataclass(frozen=True, eq=False)
class _Held:
    """A message that waits, and the monotonic seconds at which it came."""

    message: Any
    since: float


@dataclass
class _Heard:
    """What has come on a partner's topic.

    Attributes:
        waiting: messages that wait for their image, by their stamps.
        stamp: of the newest.
        unused_at: when a message was last given up for want of an image.
    """

    waiting: dict[int, _Held] = field(default_factory=dict)
    stamp: int | None = None
    unused_at: float = float("-inf")


class Pairing:
    """A synchronizer that loses no image without a word.

    Every image is handed on with its partners, refused, or counted as one that got no partner.
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
        """Listen.

        Args:
            images: the images' subscriber, or another filter.
            partners: what belongs to the images, and the subscriber of each; at least one.
            parameters: how many wait, and within what time.
            statistics: counts what is received.
            on_paired: called with an image, its partners by their fields, and the monotonic seconds at which it came.
            on_refused: called with kind and message for each image whose stamp cannot be paired by.
            on_unpaired: called with kind, message, number and severity for images that will not get their partners.
            topics: tells of the partners' topics.
            approximate: pair what is within `slop`, rather than what has the same stamp.
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
        # Images that wait for their partners, by their stamps: what the synchronizer holds too, and lets go of without
        # a word.
        self._waiting: dict[int, _Held] = {}
        self._heard = {partner.field: _Heard() for partner in self._partners}
        self._newest = self._behind = self._pairs = 0
        self._paired_at = float("-inf")
        self._renew()
        images.registerCallback(self._wait)
        for number, (partner, source) in enumerate(partners, 1):
            source.registerCallback(self._hear, self._heard[partner.field], number)

    @property
    def pending(self) -> int:
        """Images that wait for their partners."""
        return len(self._waiting)

    def close(self) -> None:
        """Images still waiting are dropped, and counted as that."""
        self._statistics.dropped(len(self._waiting))
        self._waiting = {}

    def expire(self) -> None:
        """Give up what has waited too long: call it about once a second, on the thread that messages come on.

        It is what newer images push out otherwise; but when they end, or their stamps are strays, nothing newer comes.
        """
        limit = self._clock() - WAIT
        if late := [stamp for stamp, held in self._waiting.items() if held.since < limit]:
            is_dead = self._clock() - self._paired_at > 2 * WAIT
            self._report(late, max(late), Severity.NONE_COMES if is_dead else Severity.LOSS)
        for heard in self._heard.values():
            # Stamps of a clock that was ahead would fill the queue for ever, which takes nothing older then.
            if self._forget(heard.waiting, [stamp for stamp, held in heard.waiting.items() if held.since < limit]):
                heard.unused_at = self._clock()

    def _renew(self) -> None:
        """A new synchronizer, which holds what still waits and nothing else.

        message_filters lets nobody take messages out of its queues, and takes nothing older than what is in a full one.
        """
        self._is_stale = False
        self._inlets = [SimpleFilter() for _ in range(len(self._partners) + 1)]
        synchronizer: Any = (
            ApproximateTimeSynchronizer(self._inlets, self._queue_size, self._slop)
            if self._slop_ns
            else TimeSynchronizer(self._inlets, self._queue_size)
        )
        synchronizer.registerCallback(self._paired)
        for inlet, waiting in zip(self._inlets[1:], self._heard.values(), strict=True):
            for held in list(waiting.waiting.values()):
                inlet.signalMessage(held.message)
        for held in list(self._waiting.values()):
            self._inlets[0].signalMessage(held.message)

    def _forget(self, waiting: dict[int, _Held], stamps: Iterable[int]) -> int:
        """Let go of what waits in vain; returns how much did."""
        count = sum(waiting.pop(stamp, None) is not None for stamp in list(stamps))
        self._is_stale |= count > 0
        return count

    def _pass_on(self, inlet: int, message: Any) -> None:
        if self._is_stale:
            self._renew()  # with this message, which waits by now
        else:
            self._inlets[inlet].signalMessage(message)

    def _hear(self, message: Any, heard: _Heard, inlet: int) -> None:
        stamp = to_nanoseconds(message.header.stamp)
        heard.waiting[stamp] = _Held(message, self._clock())
        heard.stamp = stamp
        while len(heard.waiting) > self._queue_size:
            del heard.waiting[min(heard.waiting)]  # as the synchronizer does
            heard.unused_at = self._clock()
        self._pass_on(inlet, message)

    def _wait(self, image: Image | CompressedImage) -> None:
        self._statistics.received(image.header.frame_id)
        stamp = to_nanoseconds(image.header.stamp)
        if stamp in self._waiting:
            what = f"the stamp {stamp / 1e9:.3f}" if stamp else "a stamp of zero, which in ROS means none"
            self._on_refused(
                "time",
                f"two images with {what}: do two nodes publish the topic? Of a driver whose stamps cannot be mended, "
                "take the time of arrival: set the parameter input.stamps to 'arrival'",
            )
        self._behind = self._behind + 1 if stamp < self._newest else 0
        self._newest = max(stamp, self._newest)
        if self._behind >= JUMP_AFTER:
            # Time went back. A full queue takes nothing older than what is in it, and would let no pair come about.
            limit = stamp + self._slop_ns
            for heard in self._heard.values():
                self._forget(heard.waiting, [other for other in heard.waiting if other > limit])
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
            return  # it was given up, and counted as that, before its partners came
        # A topic keeps its order: what has not come for an older image will not come any more, and a newer image has
        # taken its place. It may be lost in a burst, or be of the first images, before all topics are connected.
        if older := [other for other in self._waiting if other < stamp]:
            self._report(older, max(older), Severity.LOSS if self._pairs else Severity.USUAL)
        for heard, message in zip(self._heard.values(), messages, strict=True):
            taken = to_nanoseconds(message.header.stamp)
            heard.waiting.pop(taken, None)
            if self._forget(heard.waiting, [other for other in heard.waiting if other < taken]):
                heard.unused_at = self._clock()
        self._pairs += 1
        self._paired_at = self._clock()
        fields = {partner.field: message for partner, message in zip(self._partners, messages, strict=True)}
        self._on_paired(image, fields, held.since)

    def _give_up(self, stamp: int, newest: int) -> None:
        """Report an image that the synchronizer pushes out; `newest` is the stamp of the image that just came."""
        if stamp == newest:
            del self._waiting[stamp]
            missing = self._missing(stamp)
            names = "CameraInfo" if missing[0].kind is CameraInfo else missing[0].name
            self._on_refused(
                "time",
                f"image stamp {stamp / 1e9:.3f} is older than all that wait for their {names}; "
                "check the driver's clock, or whether a recording was started again",
            )
            return
        self._report([stamp], stamp, Severity.NONE_COMES)

    def _report(self, stamps: Sequence[int], stamp: int, severity: Severity) -> None:
        """Take images from those that wait and say why, by the example of one of them."""
        missing = self._missing(stamp)
        partner = missing[0]
        why, by_design = self._why(partner, stamp)
        if by_design and severity is Severity.LOSS:
            severity = Severity.BY_DESIGN
        names = "CameraInfo" if partner.kind is CameraInfo else partner.name
        when = f"within {self._slop:g} s of" if self._slop_ns else "with"
        said = f"no {names} {when} the image's stamp {stamp / 1e9:.3f} came on {self._topics.describe(missing)}. {why}"
        self._forget(self._waiting, stamps)
        self._on_unpaired(partner.error, said, len(stamps), severity)

    def _missing(self, stamp: int) -> list[Partner]:
        """The topics to blame: those that have nothing for any image that waits, else those without for this one."""
        queues = [(partner, self._heard[partner.field].waiting) for partner in self._partners]

        def lacking(stamps: Sequence[int]) -> list[Partner]:
            return [
                partner
                for partner, queue in queues
                if not any(abs(own - other) <= self._slop_ns for own in stamps for other in queue)
            ]

        return lacking([stamp, *self._waiting]) or lacking([stamp]) or self._partners

    def _why(self, partner: Partner, stamp: int) -> tuple[str, bool]:
        """Why a partner did not come, with what to do; and whether that is no loss."""
        heard, topics = self._heard[partner.field], self._topics
        is_info = partner.kind is CameraInfo
        otherwise = ""
        if is_info:
            otherwise = "; or set the parameter input.camera_info to 'latest' (published once, or seldom)"
            otherwise += " or 'none' (no poses)" if len(self._partners) == 1 else ""
        by_design = False
        if topics.lost_within(partner, RECENT):
            why = f"The middleware lost messages of it on their way here. {TRANSPORT_CURE}"
        elif not topics.publishers(partner) and heard.stamp is not None:
            why = "Its publisher has gone"
        elif not topics.publishers(partner):
            why = f"Nobody publishes it: remap it to the topic that is. {topics.there_are(partner)}"
        elif heard.stamp is None and is_info:
            why = (
                "It has a publisher, but not one message of it came: was it published once, before the node came? "
                "Then set the parameter input.camera_info to 'latest', and "
                f"qos_overrides.{topics.name(partner)}.subscription.durability to transient_local"
            )
        elif heard.stamp is None:
            why = (
                "It has a publisher, but not one message of it came: the middleware loses a large one for which it has "
                f"no room. {TRANSPORT_CURE}"
            )
        elif self._pairs and topics.knows_losses and self._clock() - heard.unused_at > RECENT:
            by_design = True
            why = "It is published less often than the image: none of its messages was lost, and each had its image"
        elif self._pairs:
            why = "Others had theirs: single messages are lost, late, or stamped otherwise"
        else:
            why = f"Its newest stamp is {(heard.stamp - stamp) / 1e9:+.3f} s from there. " + self._cure_of_stamps(
                is_info
            )
        return why + ("" if "'latest'" in why else otherwise), by_design

    def _cure_of_stamps(self, is_info: bool) -> str:
        if is_info:
            return "Publish the calibration with each image's stamp"
        if self._slop_ns:
            return "Where stamps are further apart than that, raise input.slop"
        return "Where each camera stamps by itself, set the parameter input.sync to 'approximate'"
