"""Bags of ROS 2 (sqlite3, mcap) and ROS 1, read without ROS."""

from __future__ import annotations

import importlib
import itertools
import re
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import RGBD, STEREO
from loftr_ros.geometry.camera import CameraError, CameraModel
from loftr_ros.recordings.bag_depth import BagDepth
from loftr_ros.recordings.bag_frames import StaticTransforms
from loftr_ros.recordings.base import BagImage, Source, SourceError, SourceFrame, SourceOptions
from loftr_ros.recordings.companions import NO_COMPANIONS, RightView
from loftr_ros.recordings.registration import Registration

_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_CAMERA_INFO, _TF = "sensor_msgs/msg/CameraInfo", "tf2_msgs/msg/TFMessage"
_MAX_NOTES = 10  # messages about different unusable calibrations
_ZSTD = b"\x28\xb5\x2f\xfd"
_NEAR_NS = 10_000_000  # largest distance in time between an image and its right or depth image
_WAIT_NS = 1_000_000_000  # recording time that an image waits for its partner
_SIDES = (("left", "right"), ("infra1", "infra2"), ("cam0", "cam1"), ("camera0", "camera1"), ("image_0", "image_1"))


@dataclass
class _Recent:
    """A right or depth message that no image has used yet."""

    stamp: int
    logged: int
    raw: Any
    connection: Any
    info: Any


@dataclass
class _Stream:
    """An image topic with its calibration topic."""

    topic: str
    connections: list[Any]
    infos: list[Any]
    info: Any = None
    camera: CameraModel | None = None
    recent: deque[_Recent] = field(default_factory=deque)

    @property
    def is_compressed(self) -> bool:
        return bool(self.connections[0].msgtype == _COMPRESSED)


@dataclass
class _Waiting:
    """An image that waits for its partners."""

    index: int
    stamp: int
    logged: int
    message: Any
    serialized: bytes | None
    info: Any
    camera: CameraModel | None


class BagSource(Source):
    """The messages of one image topic, in recording order, with the stamps of their headers.

    Right and depth images, and masks, come with them: those of the same stamp, or the nearest within 10 ms.
    """

    def __init__(self, path: Path, options: SourceOptions, camera: CameraModel | None = None) -> None:
        """Open the bag, and find its image topics and their camera_info topics.

        Raises:
            SourceError: the bag cannot be read, or the choice of the topic is ambiguous.
        """
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore

        self.name, self._options, self._given = path.resolve().name, options, camera
        self._path = path
        self._notes: list[str] = []
        self._furthest = 0
        self._is_open = False
        try:
            # Bags from before ROS 2 Iron have no message definitions; those of the messages used here never changed.
            self._reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
            self._reader.open()
        except Exception as error:  # the readers pass on errors of sqlite3, struct and the like
            raise SourceError(f"{path} is not a bag that can be read: {words(error)}{remedy(path)}") from error
        self._is_open = True
        try:
            self._find_topics(path)
            self._look_ahead()
        except SourceError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise SourceError(f"{path} is a damaged bag: {words(error)}{remedy(path)}") from error
        self.kind = "rosbag2" if self._reader.is2 else "ROS 1 bag"

    # --- contents ---

    def _find_topics(self, path: Path) -> None:
        connections = list(self._reader.connections)
        images = {c.topic: c for c in connections if c.msgtype in (_IMAGE, _COMPRESSED) and c.msgcount}
        listed = "\n".join(
            f"  {c.topic} ({c.msgtype}, {c.msgcount} messages)" for c in sorted(connections, key=lambda c: c.topic)
        )
        options = self._options
        for wanted in (options.topic, options.right_topic, options.depth_topic, options.mask_topic):
            if wanted is not None and wanted not in images:
                raise SourceError(f"{path} has no images on '{wanted}'. Its topics are:\n{listed}")
        topic = options.topic
        if topic is None:
            others = {options.right_topic, options.depth_topic, options.mask_topic}
            left = [each for each in images if each not in others and not is_depth(each)]
            left = [each for each in left if not any(partner(other) == each for other in images)]
            left = left if left or len(images) != 1 else list(images)
            if len(left) != 1:
                what = "has several image topics; choose one with --topic (`topic`)" if images else "has no image topic"
                raise SourceError(f"{path} {what}. Its topics are:\n{listed}")
            topic = left[0]
        self.topic = topic
        right = options.right_topic or next((name for name in images if partner(topic) == name), None)
        depths = [name for name in images if is_depth(name) and name != topic]
        aligned = [name for name in depths if "aligned" in name or "registered" in name] or depths
        depth = options.depth_topic or (aligned[0] if len(aligned) == 1 else None)
        self._stream = self._topic(topic)
        self._right = self._topic(right) if right is not None else None
        self._depth = self._topic(depth) if depth is not None else None
        self._mask = self._topic(options.mask_topic) if options.mask_topic is not None else None
        self.has_masks = self._mask is not None
        self._tf = [c for c in connections if c.msgtype == _TF and c.topic.endswith("tf_static")]
        self._too_many_depths = [] if depth is not None else depths

    def _topic(self, topic: str) -> _Stream:
        # As in image_transport: camera_info is beside the image, and `compressed` is below it.
        base = re.sub(r"/(compressed|compressedDepth|theora)$", "", topic)
        info = base.rpartition("/")[0] + "/camera_info"
        connections = self._reader.connections
        return _Stream(
            topic,
            [c for c in connections if c.topic == topic],
            [c for c in connections if c.topic == info and c.msgtype == _CAMERA_INFO],
        )

    def _look_ahead(self) -> None:
        """Read the first calibrations and the static transforms, and derive the supported modes."""
        for stream in self._streams:
            stream.info = self._first_info(stream)
        main = self._stream
        main.camera = self.camera = self._given if self._given is not None else self._model(main, main.info)
        self._measure()
        lacks = dict(NO_COMPANIONS)
        self._transforms = StaticTransforms()
        if self._right is not None or self._depth is not None:
            for connection, _, raw in self._reader.messages(self._tf) if self._tf else ():
                self._transforms.add(self._deserialize(raw, connection))
        self._left_from_right: NDArray[np.float64] | None = None
        if self._right is not None and not (why := self._stereo_problem()):
            del lacks[STEREO]
        elif self._right is not None:
            lacks[STEREO] = why
        if self._depth is not None:
            del lacks[RGBD]
            self._registration = self._register()
        elif self._too_many_depths:
            lacks[RGBD] = f"choose a depth topic with --depth-topic: {', '.join(self._too_many_depths)}"
        self.lacks: Mapping[str, str] = lacks

    @property
    def _streams(self) -> list[_Stream]:
        return [stream for stream in (self._stream, self._right, self._depth, self._mask) if stream is not None]

    def _stereo_problem(self) -> str:
        """Why the right topic cannot be used; empty if it can, and then its camera's pose is known."""
        from loftr_ros.recordings.stereo_calibration import left_from_right

        assert self._right is not None
        right = self._right
        right.camera = self._model(right, right.info)
        if right.camera is None or self._stream.camera is None:
            which = right if right.camera is None else self._stream
            return f"there is no usable calibration beside {which.topic}"
        if self._stream.info is not None:
            try:
                left_from_right(self._stream.info, right.info)
                return ""
            except CameraError as error:
                reason = str(error)
        else:
            reason = f"--camera replaces the calibration of {self._stream.topic}"
        frames = [self._first_frame_id(stream) for stream in (self._stream, right)]
        self._left_from_right = self._transforms.between(frames[0], frames[1])
        if self._left_from_right is not None:
            return ""
        return f"{reason}; and /tf_static has no transform from {frames[1]} to {frames[0]}"

    def _register(self) -> Registration | None:
        """The registration of a separate depth camera to the image; None if depth is registered already."""
        assert self._depth is not None
        depth, image = self._depth, self._stream
        depth.camera = self._model(depth, depth.info)
        if depth.camera is None or image.camera is None or depth.camera.same_as(image.camera):
            return None
        names = [self._first_frame_id(stream) for stream in (image, depth)]
        place = np.eye(4) if names[0] == names[1] else self._transforms.between(*names)
        same_size = (depth.camera.width, depth.camera.height) == (image.camera.width, image.camera.height)
        if place is None:
            if not same_size:
                self._note(
                    f"{depth.topic} is of another camera, and /tf_static has no transform from {names[1]} to {names[0]}"
                )
            return None
        if names[0] == names[1] and same_size:
            return None  # a driver that aligns depth but publishes the unaligned calibration
        self._note(f"{depth.topic} is registered to {image.topic}, by both calibrations and /tf_static")
        return Registration(depth.camera, image.camera, place)

    def _first_frame_id(self, stream: _Stream) -> str:
        for connection, _, raw in self._reader.messages(stream.connections):
            return str(self._deserialize(raw, connection).header.frame_id)
        return ""

    def _first_info(self, stream: _Stream) -> Any:
        if not stream.infos:
            return None
        for connection, _, raw in self._reader.messages(stream.infos):
            return Lenient(self._deserialize(raw, connection))
        return None

    def _measure(self) -> None:
        total = sum(c.msgcount for c in self._stream.connections)
        self._total = total
        self.length = len(self._options.indices(total))
        if not self.length:
            raise SourceError(f"'{self.topic}' has {total} images; start {self._options.start} is after the last")
        times = []
        for _, time, _ in self._reader.messages(self._stream.connections):
            times.append(time)
            if len(times) == 30:
                break
        steps = sorted(b - a for a, b in itertools.pairwise(times) if b > a)
        own = 1e9 / steps[len(steps) // 2] if steps else 30.0
        self.rate = (self._options.rate or own) / self._options.step

    # --- iteration ---

    def __iter__(self) -> Iterator[SourceFrame]:
        index = -1
        try:
            for frame in self._frames():
                index = frame.index
                yield frame
        except SourceError:
            raise
        except Exception as error:  # as on opening: any error of the readers in a damaged file
            raise SourceError(f"message {index + 1} of {self.name}: {words(error)}{remedy(self._path)}") from error

    def _frames(self) -> Iterator[SourceFrame]:
        main = self._stream
        of = {(c.topic, c.msgtype): stream for stream in self._streams for c in (*stream.connections, *stream.infos)}
        for stream in self._streams:
            stream.info = self._first_info(stream)
            stream.recent.clear()
        main.camera, index = self.camera, -1
        waiting: deque[_Waiting] = deque()
        connections = [c for stream in self._streams for c in (*stream.connections, *stream.infos)]
        for connection, logged, raw in self._reader.messages(connections):
            stream = of[connection.topic, connection.msgtype]
            if connection.msgtype == _CAMERA_INFO:
                self._take_info(stream, connection, raw)
            elif stream is not main:
                stream.recent.append(_Recent(self._stamp(raw), logged, raw, connection, stream.info))
            else:
                index += 1
                if self._options.stop is not None and index >= self._options.stop:
                    break
                if self._options.chooses(index):
                    waiting.append(self._waiting(index, logged, raw, connection))
            while waiting and self._is_due(waiting[0], logged):
                yield self._frame(waiting.popleft())
        while waiting:
            yield self._frame(waiting.popleft())

    def _waiting(self, index: int, logged: int, raw: Any, connection: Any) -> _Waiting:
        message = self._deserialize(raw, connection)
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        serialized = bytes(self._plain(raw)) if self._reader.is2 else None
        info = self._stream.info if self._given is None else None
        return _Waiting(index, stamp, logged, message, serialized, info, self._stream.camera)

    def _is_due(self, head: _Waiting, logged: int) -> bool:
        """Whether everything that may belong to an image has been read."""
        if logged - head.logged > _WAIT_NS:
            return True
        return all(
            any(each.stamp == head.stamp or each.stamp > head.stamp + _NEAR_NS for each in stream.recent)
            for stream in self._streams[1:]
        )

    def _frame(self, head: _Waiting) -> SourceFrame:
        own = self._options.stamp(head.index)
        image = BagImage(head.message, self._stream.is_compressed, head.serialized, head.info)
        right = depth = None
        if self._right is not None and (found := self._partner(self._right, head)) is not None:
            right = self._right_view(found)
        if self._depth is not None and (found := self._partner(self._depth, head)) is not None:
            message = self._deserialize(found.raw, found.connection)
            depth = BagDepth(message, self._depth.is_compressed, self._registration, self._depth.topic)
        mask = None
        if self._mask is not None and (found := self._partner(self._mask, head)) is not None:
            mask = BagImage(self._deserialize(found.raw, found.connection), self._mask.is_compressed)
        stamp = head.stamp if own is None else own
        frame_id = str(head.message.header.frame_id)
        return SourceFrame(head.index, stamp, frame_id, image, head.camera, right=right, depth=depth, mask=mask)

    def _partner(self, stream: _Stream, head: _Waiting) -> _Recent | None:
        """The matching message of another topic for an image; older ones are discarded."""
        recent = stream.recent
        found = min(recent, key=lambda each: abs(each.stamp - head.stamp), default=None)
        while recent and (recent[0].stamp < head.stamp - _NEAR_NS or recent[0].logged < head.logged - 10 * _WAIT_NS):
            recent.popleft()
        if found is None or abs(found.stamp - head.stamp) > _NEAR_NS:
            return None
        self._furthest = max(self._furthest, abs(found.stamp - head.stamp))
        return found

    def _right_view(self, found: _Recent) -> RightView | None:
        from loftr_ros.recordings.stereo_calibration import left_from_right

        assert self._right is not None
        message, info = self._deserialize(found.raw, found.connection), found.info
        place = self._left_from_right
        if self._right.camera is None or info is None or STEREO in self.lacks:
            return None
        if place is None:
            try:
                place = left_from_right(self._stream.info, info)
            except CameraError:
                return None
        image = BagImage(message, self._right.is_compressed, None, info)
        by_info = self._left_from_right is None
        return RightView(image, self._right.camera, place, str(message.header.frame_id), by_info)

    def _take_info(self, stream: _Stream, connection: Any, raw: Any) -> None:
        stream.info = Lenient(self._deserialize(raw, connection))
        if stream is self._stream and self._given is not None:
            return
        new = self._model(stream, stream.info)
        # Keep the same object while nothing changes, which is nearly always.
        stream.camera = stream.camera if new is not None and new.same_as(stream.camera) else new

    def _deserialize(self, raw: Any, connection: Any) -> Any:
        return self._reader.deserialize(self._plain(raw), connection.msgtype)

    def _plain(self, raw: Any) -> Any:
        """A message, decompressed if needed: a recording without metadata does not say that messages are compressed."""
        if bytes(raw[:4]) != _ZSTD or not self._reader.is2:
            return raw
        return _zstd().ZstdDecompressor().decompress(bytes(raw), _MOST)

    def _stamp(self, raw: Any) -> int:
        """The header's stamp in nanoseconds, at the same place in both serialisations, without decoding the rest."""
        raw = self._plain(raw)
        order = "<" if not self._reader.is2 or bytes(raw[1:2]) == b"\1" else ">"
        seconds, nanoseconds = struct.unpack_from(f"{order}II", raw, 4)
        return int(seconds) * 10**9 + int(nanoseconds)

    # --- notes and stamps ---

    @property
    def notes(self) -> Sequence[str]:
        found = list(self._notes)
        if self._furthest:
            found.append(f"stamps of paired images differ by up to {self._furthest / 1e6:.3f} ms")
        return tuple(found)

    def _model(self, stream: _Stream, info: Any) -> CameraModel | None:
        """The calibration in a CameraInfo message; None if there is none, or it is unusable, which is noted."""
        try:
            return None if info is None else CameraModel.from_camera_info(info)
        except (CameraError, TypeError, ValueError, OverflowError) as error:
            # For example zeros from an uncalibrated camera; its images can still be matched.
            topic = stream.infos[0].topic if stream.infos else stream.topic
            self._note(f"{topic}: {error}. Images are matched, but have no poses")
            return None

    def _note(self, text: str) -> None:
        if text not in self._notes and len(self._notes) < _MAX_NOTES:
            self._notes.append(text)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._reader.close()


_MOST = 1 << 30  # bytes of one message


def _zstd() -> Any:
    """The module that rosbags uses for decompression: part of Python from 3.14 on, before that a package."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise SourceError("its messages are compressed, and backports.zstd is not installed: `pip install backports.zstd`")


def is_depth(topic: str) -> bool:
    """Whether a topic's name says that its images are depth."""
    return any(word in topic.lower() for word in ("depth", "disparity"))


def partner(topic: str) -> str:
    """The right camera's topic for a left one, by its name; empty if the name has no side."""
    for left, right in _SIDES:
        if re.search(rf"(?<![a-z]){left}(?![a-z0-9])", topic):
            return re.sub(rf"(?<![a-z]){left}(?![a-z0-9])", right, topic)
    return ""


def words(error: BaseException) -> str:
    """The reader's description of an error."""
    text = str(error).partition("\n")[0].strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def remedy(path: Path) -> str:
    """Advice for a bag that cannot be read."""
    if path.is_dir():
        return f"; if the recording was not finished, `ros2 bag reindex {path}` rewrites its metadata.yaml"
    if path.suffix == ".mcap":
        return f"; if the recording was not finished, `mcap recover {path} -o recovered.mcap` saves what is left"
    if path.suffix == ".bag":
        return f"; if the recording was not finished, `rosbag reindex {path}` repairs it"
    return "; if the recording was not finished, `sqlite3 FILE .recover` saves what is left"


class Lenient:
    """A CameraInfo message of either ROS: ROS 1 writes D, K, R and P in capitals."""

    def __init__(self, message: Any) -> None:
        self.message = message

    def __getattr__(self, name: str) -> Any:
        message = self.__dict__["message"]
        if name in ("d", "k", "r", "p") and not hasattr(message, name):
            name = name.upper()
        return getattr(message, name)
