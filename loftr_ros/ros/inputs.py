"""Images and what belongs to them as they come in: subscribed, paired, accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.ros.decoding import Arrival, FrameDecoder
from loftr_ros.ros.pairing import Pairing, Partner
from loftr_ros.ros.parameters import InputParameters
from loftr_ros.ros.statistics import Statistics
from loftr_ros.ros.synchronizer import Subscriber

__all__ = ["Arrival", "FrameDecoder", "ImageInput"]

# Images that the middleware keeps. It is the slot before inference that lets the newest win; with one kept here, images
# would be lost without being counted whenever the executor is late.
IMAGES_KEPT = 5


class ImageInput:
    """Subscriptions to one camera, and to the right or depth camera beside it.

    Every image that reaches the node is handed on by `on_arrival`, reported by `on_unpaired`, or counted as dropped
    where a newer one got its partners first.
    """

    def __init__(
        self,
        node: Node,
        parameters: InputParameters,
        mode: str,
        statistics: Statistics,
        on_arrival: Callable[[Arrival], None],
        on_unpaired: Callable[[str, str], None],
    ) -> None:
        """Subscribe.

        Args:
            node: who subscribes.
            parameters: transport, how calibrations come, and how messages are paired.
            mode: of `ScaleConfig`: what comes beside the image.
            statistics: counts what is received.
            on_arrival: called with each image that has all that belongs to it.
            on_unpaired: called with kind and message for each image that will not get that.
        """
        self._node = node
        self._parameters = parameters
        self._mode = mode
        self._statistics = statistics
        self._on_arrival = on_arrival
        self._on_unpaired = on_unpaired
        self._pairing: Pairing | None = None
        # Calibrations that are not paired, and the newest of each by its field.
        self._remembered: list[Partner] = []
        self._latest: dict[str, CameraInfo] = {}
        self._subscriptions: list[Any] = []
        try:
            self._subscribe()
        except Exception:  # a QoS override that is none
            self.close()
            raise

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
        if paired:
            self._pair(Partner("image", image_type, f"image{suffix}", "", "image"), paired)
        else:
            self._listen(image_type, f"image{suffix}", self._unpaired, _input_options(IMAGES_KEPT))
        if parameters.camera_info == "latest":
            self._remembered = infos
            for info in infos:
                self._listen(CameraInfo, info.topic, partial(self._remember, info.field), _input_options(1, True))

    def _pair(self, image: Partner, partners: list[Partner]) -> None:
        sources = []
        for each in (image, *partners):
            # Of a burst the newest image is kept, and taken first: its calibration must not be overwritten meanwhile.
            # No more are kept than images may wait: none must be given up while its calibration is still queued.
            kept = self._parameters.queue_size if each.kind is CameraInfo else IMAGES_KEPT
            sources.append(Subscriber(self._node, each.kind, each.topic, **_input_options(kept)))
            self._subscriptions.append(sources[-1].sub)
        self._pairing = Pairing(
            sources[0],
            list(zip(partners, sources[1:], strict=True)),
            self._parameters,
            self._statistics,
            self._arrived,
            self._on_unpaired,
            self._topics,
            # A single camera's calibration has the image's own stamp.
            approximate=self._mode != MONO and self._parameters.sync == "approximate",
        )

    def _listen(self, kind: type, topic: str, callback: Callable[[Any], object], options: dict[str, Any]) -> None:
        self._subscriptions.append(self._node.create_subscription(kind, topic, callback, **options))

    @property
    def pending(self) -> int:
        """Images that wait for what belongs to them."""
        return 0 if self._pairing is None else self._pairing.pending

    @property
    def topic(self) -> str:
        """Resolved name of the image topic."""
        return str(self._subscriptions[0].topic_name)

    def close(self) -> None:
        """Unsubscribe; images still waiting are dropped, and counted as that."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        if self._pairing is not None:
            self._pairing.close()

    def _remember(self, field: str, info: CameraInfo) -> None:
        self._latest[field] = info

    def _unpaired(self, image: Image | CompressedImage) -> None:
        self._statistics.received(image.header.frame_id)
        self._arrived(image, {}, time.monotonic())

    def _arrived(self, image: Image | CompressedImage, partners: dict[str, Any], received: float) -> None:
        missing = [partner for partner in self._remembered if partner.field not in self._latest]
        if missing:
            otherwise = ", or set the parameter input.camera_info to 'none' (no poses)" if self._mode == MONO else ""
            self._on_unpaired(
                "camera_info", f"no CameraInfo came yet on {self._topics(missing)}. Publish the calibration{otherwise}"
            )
            return
        fields = {"camera_info": None} | self._latest | partners
        self._on_arrival(Arrival(image, received=received, **fields))

    def _topics(self, partners: Iterable[Partner]) -> str:
        """Their resolved names, and how many publish there: none, where a remapping was forgotten."""
        names = [self._node.resolve_topic_name(partner.topic) for partner in partners]
        return " and ".join(f"{name} (publishers: {self._node.count_publishers(name)})" for name in names)


def _input_options(depth: int, durability: bool = False) -> dict[str, Any]:
    """Best effort, as sensors publish; `qos_overrides.<topic>.subscription.*` changes it.

    Args:
        depth: messages kept.
        durability: whether that can be changed too: a calibration that was published once, before the node came, is
            had by `transient_local`, with which others cannot be heard.
    """
    kinds = [QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY]
    kinds += [QoSPolicyKind.DURABILITY] if durability else []
    profile = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
    return {"qos_profile": profile, "qos_overriding_options": QoSOverridingOptions(kinds)}
