"""Images and what belongs to them, paired by their stamps; what becomes of every image is accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.ros.messages import to_nanoseconds
from loftr_ros.ros.parameters import InputParameters
from loftr_ros.ros.statistics import Statistics
from loftr_ros.ros.synchronizer import ApproximateTimeSynchronizer, TimeSynchronizer

# Images in a row that are older than the newest: a stray is not worth forgetting what waits, a jump back in time is.
JUMP_AFTER = 3


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


class Pairing:
    """A synchronizer that loses no image without a word.

    Every image is handed on with its partners, reported, or counted as dropped where a newer one got its partners
    first.
    """

    def __init__(
        self,
        images: Any,
        partners: Sequence[tuple[Partner, Any]],
        parameters: InputParameters,
        statistics: Statistics,
        on_paired: Callable[[Image | CompressedImage, dict[str, Any], float], None],
        on_unpaired: Callable[[str, str], None],
        describe: Callable[[Iterable[Partner]], str],
        approximate: bool = False,
    ) -> None:
        """Listen.

        Args:
            images: the images' subscriber, or another filter.
            partners: what belongs to the images, and the subscriber of each; at least one.
            parameters: how many wait, and within what time.
            statistics: counts what is received and dropped.
            on_paired: called with an image, its partners by their fields, and the monotonic seconds at which it came.
            on_unpaired: called with kind and message for each image that will not get its partners.
            describe: names partners' topics, and how many publish there.
            approximate: pair what is within `slop`, rather than what has the same stamp.
        """
        self._partners = [partner for partner, _ in partners]
        self._queue_size = parameters.queue_size
        self._statistics = statistics
        self._on_paired = on_paired
        self._on_unpaired = on_unpaired
        self._describe = describe
        self._slop = parameters.slop if approximate else 0.0
        self._slop_ns = round(self._slop * 1e9)
        # Stamps of images that wait for their partners, and when they came: mirrors the synchronizer's queue,
        # which forgets the oldest without a word.
        self._waiting: dict[int, float] = {}
        self._newest = self._behind = 0
        # Before the synchronizer registers, so that it is called before it, too.
        images.registerCallback(self._wait)
        filters = [images, *(source for _, source in partners)]
        self._synchronizer: Any = (
            ApproximateTimeSynchronizer(filters, self._queue_size, self._slop)
            if approximate
            else TimeSynchronizer(filters, self._queue_size)
        )
        self._synchronizer.registerCallback(self._paired)

    @property
    def pending(self) -> int:
        """Images that wait for their partners."""
        return len(self._waiting)

    def close(self) -> None:
        """Images still waiting are dropped, and counted as that."""
        self._statistics.dropped(len(self._waiting))
        self._waiting = {}

    def _wait(self, image: Image | CompressedImage) -> None:
        self._statistics.received(image.header.frame_id)
        stamp = to_nanoseconds(image.header.stamp)
        if stamp in self._waiting:
            self._on_unpaired("time", f"two images with the stamp {stamp / 1e9:.3f}; the driver must stamp each anew")
        self._behind = self._behind + 1 if stamp < self._newest else 0
        self._newest = max(stamp, self._newest)
        if self._behind >= JUMP_AFTER:
            # Time went back. A full queue takes nothing older than what is in it, and would let no pair come about.
            limit = stamp + self._slop_ns
            for queue in self._synchronizer.queues:
                _forget(queue, [other for other in queue if other > limit])
            self._statistics.dropped(_forget(self._waiting, [other for other in self._waiting if other > limit]))
            self._newest, self._behind = stamp, 0
        self._waiting[stamp] = time.monotonic()
        while len(self._waiting) > self._queue_size:
            self._give_up(min(self._waiting), stamp)

    def _paired(self, image: Image | CompressedImage, *messages: Any) -> None:
        stamp = to_nanoseconds(image.header.stamp)
        received = self._waiting.pop(stamp, None)
        # A topic keeps its order: what has not come for an older image will not come any more, and a newer image has
        # taken its place. It may be lost in a burst, or be of the first images, before all topics are connected.
        for queue, message in zip(self._synchronizer.queues, (image, *messages), strict=True):
            taken = to_nanoseconds(message.header.stamp)
            _forget(queue, [other for other in queue if other < taken])
        self._statistics.dropped(_forget(self._waiting, [other for other in self._waiting if other < stamp]))
        fields = {partner.field: message for partner, message in zip(self._partners, messages, strict=True)}
        self._on_paired(image, fields, time.monotonic() if received is None else received)

    def _give_up(self, stamp: int, newest: int) -> None:
        """Report an image that the synchronizer pushes out; `newest` is the stamp of the image that just came."""
        del self._waiting[stamp]
        missing = self._missing(stamp)
        names = "CameraInfo" if missing[0].kind is CameraInfo else missing[0].name
        if stamp == newest:
            self._on_unpaired(
                "time",
                f"image stamp {stamp / 1e9:.3f} is older than all that wait for their {names}; "
                "check the driver's clock, or whether a recording was started again",
            )
            return
        when = f"within {self._slop:g} s of" if self._slop_ns else "with"
        said = f"no {names} {when} the image's stamp {stamp / 1e9:.3f} came on {self._describe(missing)}. "
        self._on_unpaired(missing[0].error, said + self._advice(missing[0]))

    def _missing(self, stamp: int) -> list[Partner]:
        """The topics to blame: those that have nothing for any image that waits, else those without for this one."""
        queues = list(zip(self._partners, self._synchronizer.queues[1:], strict=True))

        def lacking(stamps: Sequence[int]) -> list[Partner]:
            return [
                partner
                for partner, queue in queues
                if not any(abs(own - other) <= self._slop_ns for own in stamps for other in queue)
            ]

        return lacking([stamp, *self._waiting]) or lacking([stamp]) or self._partners

    def _advice(self, partner: Partner) -> str:
        if partner.kind is CameraInfo:
            alone = len(self._partners) == 1
            return (
                "Publish the calibration with each image's stamp, or set the parameter input.camera_info to 'latest' "
                "(published seldom)" + (" or 'none' (no poses)" if alone else "")
            )
        if self._slop_ns:
            return "Remap the topic to the one that is published; where stamps are further apart, raise input.slop"
        return (
            "Remap the topic to the one that is published; where its stamps differ from the image's, set the parameter "
            "input.sync to 'approximate'"
        )


def _forget(queue: dict[int, Any], stamps: list[int]) -> int:
    """Let go of what waits for its partner in vain; returns how much did."""
    for stamp in stamps:
        del queue[stamp]
    return len(stamps)
