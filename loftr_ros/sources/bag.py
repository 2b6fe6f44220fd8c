"""Bags of ROS 2 (sqlite3, mcap) and ROS 1, read without ROS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loftr_ros.frontend.camera import CameraError, CameraModel
from loftr_ros.sources.base import BagImage, Source, SourceError, SourceFrame, SourceOptions

_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_MAX_NOTES = 10  # of different calibrations that cannot be used
_CAMERA_INFO = "sensor_msgs/msg/CameraInfo"


class BagSource(Source):
    """The messages of one image topic, in the order of recording, with the stamps of their headers."""

    def __init__(self, path: Path, options: SourceOptions, camera: CameraModel | None = None) -> None:
        """Opens the bag, finds its image topic, and the camera_info beside it.

        Raises:
            SourceError: the bag cannot be read, or it is not clear which topic is meant.
        """
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.typesys import Stores, get_typestore

        self.name, self._options, self._given = path.resolve().name, options, camera
        self._notes: list[str] = []
        try:
            # Bags of before ROS 2 Iron carry no definitions; those of the messages used here never changed.
            self._reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
            self._reader.open()
        except (AnyReaderError, OSError, ValueError, KeyError, AssertionError) as error:
            raise SourceError(f"{path} is not a bag that can be read: {error}") from error
        except Exception as error:  # the readers let errors of sqlite3, struct and the like through
            raise SourceError(f"{path} is a damaged bag: {type(error).__name__}: {error}") from error
        self._is_open = True
        try:
            self._find_topics(path)
            self.camera = camera if camera is not None else self._model(self._first_info())
            self._measure()
        except BaseException:
            self.close()
            raise
        self.kind = "rosbag2" if self._reader.is2 else "ROS 1 bag"

    def _find_topics(self, path: Path) -> None:
        images = {c.topic: c for c in self._reader.connections if c.msgtype in (_IMAGE, _COMPRESSED) and c.msgcount}
        listed = "\n".join(
            f"  {c.topic} ({c.msgtype}, {c.msgcount} messages)"
            for c in sorted(self._reader.connections, key=lambda c: c.topic)
        )
        wanted = self._options.topic
        if wanted is None and len(images) != 1:
            what = (
                "has no image topic" if not images else "has several image topics; choose one with the option `topic`"
            )
            raise SourceError(f"{path} {what}. Its topics are:\n{listed}")
        if wanted is not None and wanted not in images:
            raise SourceError(f"{path} has no images on '{wanted}'. Its topics are:\n{listed}")
        self.topic = wanted if wanted is not None else next(iter(images))
        # As image_transport names them: camera_info is beside the image, and `compressed` is below it.
        base = self.topic.removesuffix("/compressed").removesuffix("/theora")
        self._info_topic = info_topic = base.rpartition("/")[0] + "/camera_info"
        self._images = [c for c in self._reader.connections if c.topic == self.topic]
        self._compressed = self._images[0].msgtype == _COMPRESSED
        self._infos = [c for c in self._reader.connections if c.topic == info_topic and c.msgtype == _CAMERA_INFO]

    def _first_info(self) -> Any:
        if not self._infos:
            return None
        for connection, _, raw in self._reader.messages(self._infos):
            return _Lenient(self._reader.deserialize(raw, connection.msgtype))
        return None

    def _measure(self) -> None:
        total = sum(c.msgcount for c in self._images)
        self.length = len(self._options.indices(total))
        if not self.length:
            raise SourceError(f"'{self.topic}' has {total} images; start {self._options.start} is past the last")
        times = []
        for _, time, _ in self._reader.messages(self._images):
            times.append(time)
            if len(times) == 30:
                break
        steps = sorted(b - a for a, b in itertools.pairwise(times) if b > a)
        own = 1e9 / steps[len(steps) // 2] if steps else 30.0
        self.rate = (self._options.rate or own) / self._options.step

    def __iter__(self) -> Iterator[SourceFrame]:
        info = self._first_info()
        camera, index = self.camera, -1
        try:
            for connection, _, raw in self._reader.messages([*self._images, *self._infos]):
                if connection.msgtype == _CAMERA_INFO:
                    info = _Lenient(self._reader.deserialize(raw, connection.msgtype))
                    if self._given is None:
                        new = self._model(info)
                        # The same object as long as nothing changes, which is nearly always.
                        camera = camera if new is not None and new.same_as(camera) else new
                    continue
                index += 1
                if self._options.stop is not None and index >= self._options.stop:
                    return
                if not self._options.chooses(index):
                    continue
                message: Any = self._reader.deserialize(raw, connection.msgtype)
                own = self._options.stamp(index)
                stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec if own is None else own
                own_info = info if self._given is None else None
                image = BagImage(message, self._compressed, bytes(raw) if self._reader.is2 else None, own_info)
                yield SourceFrame(index, stamp, str(message.header.frame_id), image, camera)
        except SourceError:
            raise
        except Exception as error:  # as on opening: whatever the readers meet in a damaged file
            raise SourceError(f"message {index} of {self.name}: {type(error).__name__}: {error}") from error

    @property
    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    def _model(self, info: Any) -> CameraModel | None:
        """The calibration in a CameraInfo message; None where there is none, or it cannot be used, which is noted."""
        try:
            return None if info is None else CameraModel.from_camera_info(info)
        except CameraError as error:
            # As from an uncalibrated camera, which publishes zeros; its images can still be matched.
            self._note(f"{self._info_topic}: {error}. Images are matched, but have no poses")
            return None

    def _note(self, text: str) -> None:
        if text not in self._notes and len(self._notes) < _MAX_NOTES:
            self._notes.append(text)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._reader.close()


class _Lenient:
    """A CameraInfo message of either ROS: ROS 1 writes D, K, R and P in capitals."""

    def __init__(self, message: Any) -> None:
        self.message = message

    def __getattr__(self, name: str) -> Any:
        message = self.__dict__["message"]
        if name in ("d", "k", "r", "p") and not hasattr(message, name):
            name = name.upper()
        return getattr(message, name)
