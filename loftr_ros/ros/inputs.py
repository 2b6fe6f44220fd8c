"""Images and their calibrations as they come in: subscribed, paired, accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.frontend.camera import CameraError, CameraModel
from loftr_ros.frontend.frame import Frame
from loftr_ros.ros.images import decode_compressed, decode_image
from loftr_ros.ros.messages import to_nanoseconds
from loftr_ros.ros.parameters import InputParameters
from loftr_ros.ros.statistics import Statistics
from loftr_ros.ros.synchronizer import Subscriber, TimeSynchronizer

# Images in a row that are older than the newest: a stray is not worth forgetting what waits, a jump back in time is.
JUMP_AFTER = 3
# Images that the middleware keeps. It is the slot before inference that lets the newest win; with one kept here, images
# would be lost without being counted whenever the executor is late.
IMAGES_KEPT = 5


@dataclass(frozen=True)
class Arrival:
    """An image message that is ready to be worked on.

    Attributes:
        image: `sensor_msgs/Image` or `CompressedImage`.
        camera_info: its calibration; None where none is asked for.
        received: monotonic seconds at which the image came.
    """

    image: Image | CompressedImage
    camera_info: CameraInfo | None
    received: float


class ImageInput:
    """Subscriptions to one camera.

    Every image that reaches the node is handed on by `on_arrival`, reported by `on_unpaired`, or counted as dropped
    where a newer one got its calibration first.
    """

    def __init__(
        self,
        node: Node,
        parameters: InputParameters,
        statistics: Statistics,
        on_arrival: Callable[[Arrival], None],
        on_unpaired: Callable[[str, str], None],
    ) -> None:
        """Subscribe.

        Args:
            node: who subscribes.
            parameters: transport, and how calibrations come.
            statistics: counts what is received.
            on_arrival: called with each image that has its calibration.
            on_unpaired: called with kind and message for each image that will not get one.
        """
        self._node = node
        self._parameters = parameters
        self._statistics = statistics
        self._on_arrival = on_arrival
        self._on_unpaired = on_unpaired
        # Stamps of images that wait for their CameraInfo, and when they came: mirrors the synchronizer's queue,
        # which forgets the oldest without a word.
        self._waiting: dict[int, float] = {}
        self._newest = self._behind = 0
        self._synchronizer: Any = None
        self._latest: CameraInfo | None = None
        self._subscriptions: list[Any] = []
        try:
            self._subscribe()
        except Exception:  # a QoS override that is none
            self.close()
            raise

    def _subscribe(self) -> None:
        parameters, subscribe = self._parameters, self._node.create_subscription
        compressed = parameters.image_transport == "compressed"
        image_type: type = CompressedImage if compressed else Image
        image_topic = "image/compressed" if compressed else "image"
        if parameters.camera_info == "synchronized":
            images = Subscriber(self._node, image_type, image_topic, **_input_options(IMAGES_KEPT))
            self._subscriptions.append(images.sub)
            # Of a burst the newest image is kept, and taken first: its calibration must not be overwritten meanwhile.
            # No more are kept than images may wait: none must be given up while its calibration is still queued.
            infos = Subscriber(self._node, CameraInfo, "camera_info", **_input_options(parameters.queue_size))
            self._subscriptions.append(infos.sub)
            # Before the synchronizer registers, so that it is called before it, too.
            images.registerCallback(self._wait_for_partner)
            self._synchronizer = TimeSynchronizer([images, infos], parameters.queue_size)
            self._synchronizer.registerCallback(self._paired)
            return
        self._subscriptions.append(
            subscribe(image_type, image_topic, self._unsynchronized, **_input_options(IMAGES_KEPT))
        )
        if parameters.camera_info == "latest":
            self._subscriptions.append(subscribe(CameraInfo, "camera_info", self._remember, **_input_options(1, True)))

    @property
    def pending(self) -> int:
        """Images that wait for their calibration."""
        return len(self._waiting)

    @property
    def topic(self) -> str:
        """Resolved name of the image topic."""
        return str(self._subscriptions[0].topic_name)

    def close(self) -> None:
        """Unsubscribe; images still waiting are dropped, and counted as that."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        self._statistics.dropped(len(self._waiting))
        self._waiting = {}

    def _wait_for_partner(self, image: Image | CompressedImage) -> None:
        self._statistics.received(image.header.frame_id)
        stamp = to_nanoseconds(image.header.stamp)
        if stamp in self._waiting:
            self._on_unpaired("time", f"two images with the stamp {stamp / 1e9:.3f}; the driver must stamp each anew")
        self._behind = self._behind + 1 if stamp < self._newest else 0
        self._newest = max(stamp, self._newest)
        if self._behind >= JUMP_AFTER:
            # Time went back. A full queue takes nothing older than what is in it, and would let no pair come about.
            self._statistics.dropped(self._forget(lambda other: other > stamp))
            self._newest, self._behind = stamp, 0
        self._waiting[stamp] = time.monotonic()
        while len(self._waiting) > self._parameters.queue_size:
            self._give_up(min(self._waiting), stamp)

    def _paired(self, image: Image | CompressedImage, info: CameraInfo) -> None:
        stamp = to_nanoseconds(image.header.stamp)
        received = self._waiting.pop(stamp, None)
        # A topic keeps its order: what has not come for an older image will not come any more, and a newer image has
        # taken its place. It may be lost in a burst, or be of the first images, before both topics are connected.
        self._statistics.dropped(self._forget(lambda other: other < stamp))
        self._on_arrival(Arrival(image, info, time.monotonic() if received is None else received))

    def _forget(self, hopeless: Callable[[int], bool]) -> int:
        """Let go of what waits for its partner in vain, by its stamp; returns how many images did."""
        for queue in (*self._synchronizer.queues, self._waiting):
            forgotten = [stamp for stamp in queue if hopeless(stamp)]
            for stamp in forgotten:
                del queue[stamp]
        return len(forgotten)

    def _give_up(self, stamp: int, newest: int) -> None:
        """Report an image that the synchronizer pushes out; `newest` is the stamp of the image that just came."""
        del self._waiting[stamp]
        if stamp == newest:
            self._on_unpaired(
                "time",
                f"image stamp {stamp / 1e9:.3f} is older than all that wait for their CameraInfo; "
                "check the driver's clock, or whether a recording was started again",
            )
            return
        self._on_unpaired(
            "camera_info",
            f"no CameraInfo with the image's stamp {stamp / 1e9:.3f} came on {self._info_topic}. Publish the "
            "calibration with each image's stamp, or set the parameter input.camera_info to 'latest' (published "
            "seldom) or 'none' (no poses)",
        )

    @property
    def _info_topic(self) -> str:
        topic = self._node.resolve_topic_name("camera_info")
        return f"{topic} (publishers: {self._node.count_publishers(topic)})"

    def _remember(self, info: CameraInfo) -> None:
        self._latest = info

    def _unsynchronized(self, image: Image | CompressedImage) -> None:
        self._statistics.received(image.header.frame_id)
        if self._parameters.camera_info == "latest" and self._latest is None:
            self._on_unpaired(
                "camera_info",
                f"no CameraInfo came yet on {self._info_topic}. Publish the calibration, or set the parameter "
                "input.camera_info to 'none' (no poses)",
            )
            return
        self._on_arrival(Arrival(image, self._latest, time.monotonic()))


class FrameDecoder:
    """Messages to frames; remembers the last calibration, so that an unchanged one costs nothing."""

    def __init__(self, white_level: int, mask: NDArray[np.bool_] | None = None) -> None:
        """Begin without a calibration.

        Args:
            white_level: see `decode_image`.
            mask: (H, W) bool, false for pixels to ignore in every image; None for none.
        """
        self._white_level = white_level
        self._mask = mask
        self._key: tuple[Any, ...] = ()
        self._camera: CameraModel | None = None

    def __call__(self, arrival: Arrival) -> Frame:
        """Decode an image and its calibration.

        Raises:
            ImageError: the image cannot be decoded.
            CameraError: the calibration cannot be used, or is of another image size.
        """
        message = arrival.image
        if isinstance(message, CompressedImage):
            image = decode_compressed(message, white_level=self._white_level)
        else:
            image = decode_image(message, white_level=self._white_level)
        camera = None if arrival.camera_info is None else self._camera_of(arrival.camera_info)
        height, width = image.shape
        if camera is not None and (camera.width, camera.height) != (width, height):
            raise CameraError(
                f"CameraInfo is of {camera.width}x{camera.height} px, its image is {width}x{height}; "
                "calibrate at the resolution that is published"
            )
        return Frame(image, to_nanoseconds(message.header.stamp), message.header.frame_id, camera, self._mask)

    def _camera_of(self, info: CameraInfo) -> CameraModel:
        roi = info.roi
        key = (
            info.width,
            info.height,
            info.distortion_model,
            np.asarray(info.k).tobytes(),
            np.asarray(info.d).tobytes(),
            info.binning_x,
            info.binning_y,
            roi.x_offset,
            roi.y_offset,
            roi.width,
            roi.height,
        )
        if self._camera is None or key != self._key:
            self._camera = CameraModel.from_camera_info(info)
            self._key = key
        return self._camera


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
