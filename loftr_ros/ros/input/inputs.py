"""Subscriptions to images and the messages that belong to them, with pairing and counting."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.recordings.frame_decoder import Arrival, FrameDecoder
from loftr_ros.ros.input.masks import MASK, MaskPairing
from loftr_ros.ros.input.pairing import TRANSPORT_CURE, Pairing, Partner
from loftr_ros.ros.input.synchronizer import LocalFilter, Subscriber
from loftr_ros.ros.input.topics import InputTopics
from loftr_ros.ros.output.reports import ErrorLog
from loftr_ros.ros.output.statistics import Statistics
from loftr_ros.ros.parameters import InputParameters

__all__ = ["Arrival", "FrameDecoder", "ImageInput"]

# Queue depth of the middleware. The slot before inference lets the newest image win. With a depth of one, images would
# be lost uncounted whenever the executor is late; these are a third of a second at 30 Hz.
IMAGES_KEPT = 10
# Seconds without any image after which the log lists the published topics, and after which it repeats that.
SILENCE = 5.0
SILENCE_AGAIN = 60.0


class ImageInput:
    """Subscriptions to one camera, and to a right or depth camera beside it.

    Every image that reaches the node is passed to `on_arrival`, refused, or counted as unpaired.
    """

    def __init__(
        self,
        node: Node,
        parameters: InputParameters,
        mode: str,
        statistics: Statistics,
        on_arrival: Callable[[Arrival], None],
        errors: ErrorLog,
    ) -> None:
        """Subscribe.

        Args:
            node: the owner of the subscriptions.
            parameters: transport, source of calibrations, and pairing.
            mode: of `ScaleConfig`; decides which topics are paired with the image.
            statistics: counts received messages.
            on_arrival: called with each complete image.
            errors: reports lost, refused and missing messages.
        """
        self._node = node
        self._parameters = parameters
        self._mode = mode
        self._statistics = statistics
        self._on_arrival = on_arrival
        self._errors = errors
        self._topics = InputTopics(node, self._lost)
        self._by_arrival = parameters.stamps == "arrival"
        self._pairing: Pairing | None = None
        self._masks: MaskPairing | None = None
        # Calibrations that are not paired, and the newest message of each by its field.
        self._remembered: list[Partner] = []
        self._latest: dict[str, CameraInfo] = {}
        self._subscriptions: list[Any] = []
        self._image: Partner | None = None
        self._received_before = statistics.snapshot().received
        self._silent_at = time.monotonic() + SILENCE
        self._timer: Any = None
        self._mask_timer: Any = None
        try:
            self._subscribe()
        except Exception:  # an invalid QoS override
            self.close()
            raise
        # Not the node's clock: with use_sim_time it may stand still.
        self._timer = node.create_timer(1.0, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _subscribe(self) -> None:
        parameters = self._parameters
        compressed = parameters.image_transport == "compressed"
        image_type: type = CompressedImage if compressed else Image
        suffix = "/compressed" if compressed else ""
        beside = {
            STEREO: [Partner("right", image_type, f"right/image{suffix}", "right", "right image")],
            RGBD: [Partner("depth", Image, "depth/image", "depth", "depth image")],
        }.get(self._mode, [])
        infos = [Partner("camera_info", CameraInfo, "camera_info", "camera_info", "CameraInfo")]
        if self._mode == STEREO:
            infos.append(Partner("right_info", CameraInfo, "right/camera_info", "camera_info", "right CameraInfo"))
        paired = beside + infos if parameters.camera_info == "synchronized" else beside
        self._image = image = Partner("image", image_type, f"image{suffix}", "", "image")
        if paired:
            self._pair(image, paired)
        else:
            self._listen(image, self._unpaired, input_options(IMAGES_KEPT))
        if parameters.camera_info == "latest":
            self._remembered = infos
            for info in infos:
                self._listen(info, partial(self._remember, info.field), input_options(1, True))
        if parameters.mask_topic != "none":
            self._add_masks()

    def _add_masks(self) -> None:
        """Subscribe to `mask`; every image goes by way of the masks."""
        parameters = self._parameters
        masks = MaskPairing(parameters, self._on_arrival, partial(self._errors.error, "mask"), self._topics)
        subscribe = partial(Subscriber, self._node, MASK.kind, MASK.topic, **input_options(IMAGES_KEPT))
        source = self._topics.counting(MASK, subscribe)
        self._subscriptions.append(source.sub)
        (_StampedByArrival(self._node, source) if self._by_arrival else source).registerCallback(masks.add_mask)
        if parameters.mask_topic == "synchronized":
            period = max(parameters.mask_wait / 4, 0.01)
            self._mask_timer = self._node.create_timer(
                period, masks.expire, clock=Clock(clock_type=ClockType.STEADY_TIME)
            )
        self._masks, self._on_arrival = masks, masks.add_image

    def _pair(self, image: Partner, partners: list[Partner]) -> None:
        sources: list[Any] = []
        for each in (image, *partners):
            # The executor serves topics in turn. In a burst an image's partners must not be overwritten before their
            # turn, so more of them are kept; but no image may be given up while its partners are still queued.
            more = min(self._parameters.queue_size - 1, IMAGES_KEPT)
            kept = IMAGES_KEPT if each is image else IMAGES_KEPT + more
            source = self._topics.counting(
                each, partial(Subscriber, self._node, each.kind, each.topic, **input_options(kept))
            )
            self._subscriptions.append(source.sub)
            sources.append(_StampedByArrival(self._node, source) if self._by_arrival else source)
        self._pairing = Pairing(
            sources[0],
            list(zip(partners, sources[1:], strict=True)),
            self._parameters,
            self._statistics,
            self._arrived,
            self._errors.frame_failed,
            self._errors.unpaired,
            self._topics,
            # If stamps decide, a single camera's calibration has the image's exact stamp.
            approximate=self._by_arrival or (self._mode != MONO and self._parameters.sync == "approximate"),
        )

    def _listen(self, topic: Partner, callback: Callable[[Any], object], options: dict[str, Any]) -> None:
        subscribe = partial(self._node.create_subscription, topic.kind, topic.topic, callback, **options)
        # Losses of a calibration do not matter if only the newest counts.
        counts = topic is self._image
        self._subscriptions.append(self._topics.counting(topic, subscribe) if counts else subscribe())

    @property
    def pending(self) -> int:
        """Images that wait for their partners or masks."""
        waiting = 0 if self._pairing is None else self._pairing.pending
        return waiting + (0 if self._masks is None else self._masks.pending)

    @property
    def topic(self) -> str:
        """Resolved name of the image topic."""
        return str(self._subscriptions[0].topic_name)

    def close(self) -> None:
        """Unsubscribe; drop and count the images still waiting."""
        for timer in (self._timer, self._mask_timer):
            if timer is not None:
                self._node.destroy_timer(timer)
        self._timer = self._mask_timer = None
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        if self._pairing is not None:
            self._pairing.close()
        if self._masks is not None:
            self._statistics.dropped(self._masks.close())

    def _watch(self) -> None:
        """Called once a second: give up images that wait too long, and report a silent topic."""
        if self._pairing is not None:
            self._pairing.expire()
        assert self._image is not None
        now = time.monotonic()
        if now < self._silent_at or self._statistics.snapshot().received > self._received_before:
            return
        self._silent_at = now + SILENCE_AGAIN
        publishers = self._topics.publishers(self._image)
        why = (
            "It has a publisher: does the camera stream, and does its quality of service match? "
            if publishers
            else "Start the driver, or remap the topic (image:= of the launch file). "
        )
        topic, others = self._topics.describe([self._image]), self._topics.published_topics(self._image)
        self._errors.warn(f"no image received on {topic} so far. {why}{others}")

    def _lost(self, topic: str, number: int) -> None:
        self._statistics.lost(number)
        self._errors.lost(topic, number, TRANSPORT_CURE)

    def _remember(self, field: str, info: CameraInfo) -> None:
        self._latest[field] = info

    def _unpaired(self, image: Image | CompressedImage) -> None:
        if self._by_arrival:
            image.header.stamp = self._node.get_clock().now().to_msg()
        self._statistics.received(image.header.frame_id)
        self._arrived(image, {}, time.monotonic())

    def _arrived(self, image: Image | CompressedImage, partners: dict[str, Any], received: float) -> None:
        missing = [partner for partner in self._remembered if partner.field not in self._latest]
        if missing:
            otherwise = ", or set the parameter input.camera_info to 'none' (no poses)" if self._mode == MONO else ""
            self._errors.frame_failed(
                "camera_info",
                f"no CameraInfo received yet on {self._topics.describe(missing)}. Publish the calibration{otherwise}. "
                f"If it was published once, before the node started, set qos_overrides.{self._topics.name(missing[0])}"
                f".subscription.durability to transient_local. {self._topics.published_topics(missing[0])}",
            )
            return
        fields = {"camera_info": None} | self._latest | partners
        self._on_arrival(Arrival(image, received=received, **fields))


class _StampedByArrival(LocalFilter):
    """A message source that replaces each stamp by the time of arrival on the node's clock."""

    def __init__(self, node: Node, source: Any) -> None:
        super().__init__()
        self._clock = node.get_clock()
        source.registerCallback(self._stamp)

    def _stamp(self, message: Any) -> None:
        message.header.stamp = self._clock.now().to_msg()
        self.signalMessage(message)


def input_options(depth: int, durability: bool = False) -> dict[str, Any]:
    """Best effort, as sensors publish; `qos_overrides.<topic>.subscription.*` changes it.

    Args:
        depth: queue depth.
        durability: whether durability can be overridden too. A calibration published once, before the node started,
            needs `transient_local`, which in turn cannot receive from volatile publishers.
    """
    kinds = [QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY]
    kinds += [QoSPolicyKind.DURABILITY] if durability else []
    profile = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
    return {"qos_profile": profile, "qos_overriding_options": QoSOverridingOptions(kinds)}
