"""Masks of moving things on `mask`: each image is passed on with its own, or without after a short wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from sensor_msgs.msg import Image

from loftr_ros.recordings.frame_decoder import Arrival
from loftr_ros.recordings.input_settings import InputParameters
from loftr_ros.ros.input.pairing import Partner, Topics
from loftr_ros.ros.output.messages import to_nanoseconds

MASK = Partner("mask", Image, "mask", "mask", "mask")
# Consecutive images without their mask after which images do not wait any more: the detector has stopped, or is slow.
_PATIENCE = 5


@dataclass
class _Waiting:
    """An image that waits for its mask, until a time in monotonic seconds."""

    arrival: Arrival
    stamp: int
    until: float


class MaskPairing:
    """Adds masks to images. No image is lost for want of a mask, and images keep their order.

    Call it from one thread.
    """

    def __init__(
        self,
        parameters: InputParameters,
        pass_on: Callable[[Arrival], None],
        on_missing: Callable[[str], None],
        topics: Topics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without masks.

        Args:
            parameters: `mask_topic` and what belongs to it, `sync`, `slop` and `queue_size`.
            pass_on: called with each image.
            on_missing: called with the reason for each image without a mask, or with another image's.
            topics: information about the mask's topic.
            clock: monotonic seconds.
        """
        self._synchronized = parameters.mask_topic == "synchronized"
        self._wait, self._kept = parameters.mask_wait, parameters.queue_size
        self._slop = round(parameters.slop * 1e9) if parameters.sync == "approximate" else 0
        self._age = round(parameters.mask_age * 1e9)
        self._pass_on, self._on_missing, self._topics, self._clock = pass_on, on_missing, topics, clock
        self._waiting: list[_Waiting] = []
        self._masks: dict[int, Image] = {}  # by stamp, in order of arrival
        self._passed: dict[int, float] = {}  # images passed on without their mask: stamp and time of arrival
        self._newest: Image | None = None
        self._missed = 0
        self._late: float | None = None

    @property
    def pending(self) -> int:
        """Images that wait for their masks."""
        return len(self._waiting)

    def add_image(self, arrival: Arrival) -> None:
        """Pass an image on, now or later."""
        stamp = to_nanoseconds(arrival.image.header.stamp)
        if not self._synchronized:
            mask = self._usable_newest(stamp)
            if mask is None:
                self._on_missing(self._why(stamp))
            self._pass_on(replace(arrival, mask=mask))
            return
        self._waiting.append(_Waiting(arrival, stamp, self._clock() + self._wait))
        if (mask := self._mask_of(stamp)) is not None:
            self._release_with(self._waiting[-1], mask)
        elif self._missed >= _PATIENCE or len(self._waiting) > self._kept:
            self._release_before(len(self._waiting) if self._missed >= _PATIENCE else 1)

    def add_mask(self, mask: Image) -> None:
        """Pass its image on, if that waits for it; and images before that, which waited in vain."""
        stamp = to_nanoseconds(mask.header.stamp)
        self._newest = mask
        if not self._synchronized:
            return
        self._masks[stamp] = mask
        while len(self._masks) > self._kept:
            del self._masks[next(iter(self._masks))]
        for each in self._waiting:
            if abs(each.stamp - stamp) <= self._slop:
                self._release_with(each, mask)
                return
        for passed, since in self._passed.items():
            if abs(passed - stamp) <= self._slop:
                self._late = self._clock() - since
                if self._late < self._wait:
                    self._missed = 0  # images wait again
                return

    def expire(self) -> None:
        """Pass images on whose wait is over."""
        now = self._clock()
        self._release_before(sum(each.until <= now for each in self._waiting))

    def close(self) -> int:
        """Drop the images still waiting; returns how many."""
        dropped, self._waiting = len(self._waiting), []
        return dropped

    def _release_with(self, waiting: _Waiting, mask: Image) -> None:
        self._release_before(self._waiting.index(waiting))
        self._waiting.remove(waiting)
        self._missed, self._late = 0, None
        self._pass_on(replace(waiting.arrival, mask=mask))

    def _release_before(self, number: int) -> None:
        """Pass the first images on without their masks."""
        released, self._waiting = self._waiting[:number], self._waiting[number:]
        for each in released:
            self._missed += 1
            self._passed[each.stamp] = each.until - self._wait
            while len(self._passed) > self._kept:
                del self._passed[next(iter(self._passed))]
            other = self._usable_newest(each.stamp)
            used = "no mask is used for it" if other is None else "the newest mask is used for it"
            self._on_missing(f"{self._why(each.stamp)}; {used}")
            self._pass_on(replace(each.arrival, mask=other))

    def _mask_of(self, stamp: int) -> Image | None:
        nearest = min(self._masks, key=lambda other: abs(other - stamp), default=None)
        return None if nearest is None or abs(nearest - stamp) > self._slop else self._masks[nearest]

    def _usable_newest(self, stamp: int) -> Image | None:
        if self._newest is None or abs(to_nanoseconds(self._newest.header.stamp) - stamp) > self._age:
            return None
        return self._newest

    def _why(self, stamp: int) -> str:
        """Why an image has no mask, and what to do."""
        text = f"no mask for the image with stamp {stamp / 1e9:.3f} received on {self._topics.describe([MASK])}. "
        if not self._topics.publishers(MASK):
            text += "It has no publisher: start the detector, or remap `mask`"
            return text if self._newest is not None else f"{text}. {self._topics.published_topics(MASK)}"
        if self._newest is None:
            return text + "It has a publisher, but no message was received so far"
        off = (to_nanoseconds(self._newest.header.stamp) - stamp) / 1e9
        if not self._synchronized:
            return text + f"The newest mask is {off:+.3f} s from it, and input.mask_age allows {self._age / 1e9:g} s"
        if self._late is not None:
            return text + (
                f"Masks come {self._late:.2f} s after their images: raise input.mask_wait, which delays all images, or "
                "set input.mask_topic to 'latest'"
            )
        return text + (
            f"The newest mask is {off:+.3f} s from it. Copy the image's stamp into the mask's header; or set "
            "input.sync to 'approximate', or input.mask_topic to 'latest' for a detector slower than the camera"
        )
