"""Depth images of a bag."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from loftr_ros.frontend.frame import DepthImage
from loftr_ros.frontend.image_files import ImageError
from loftr_ros.recordings.decoding import decode_depth
from loftr_ros.recordings.images import EncodedImage, SourceError, read_pixels
from loftr_ros.recordings.registration import Registration

_HEADER = 12  # bytes of compressed_depth_image_transport before the PNG
_MILLIMETRE = 0.001


@dataclass(frozen=True, eq=False)
class BagDepth:
    """A depth image as stored in the bag, decoded on demand.

    Attributes:
        message: `sensor_msgs/Image`-like, or `CompressedImage`-like of compressedDepth.
        compressed: which of the two it is.
        registration: of a depth camera whose images are not registered; None if they are.
        topic: name in errors.
    """

    message: Any
    compressed: bool
    registration: Registration | None
    topic: str

    def decode(self, size: tuple[int, int] | None = None) -> DepthImage:
        """The depth in the image's pixels.

        Args:
            size: (width, height) of the image; None for any.

        Raises:
            SourceError: it is not a depth image, damaged, or of another size.
        """
        try:
            depth = decode_depth(self._raw() if self.compressed else self.message)
        except ImageError as error:
            raise SourceError(f"{self.topic}: {error}") from error
        height, width = depth.values.shape
        if self.registration is None:
            if size is not None and size != (width, height):
                raise SourceError(
                    f"{self.topic} is {width}x{height}, but its image is {size[0]}x{size[1]}; a "
                    "depth image must be registered to its image, or both have a calibration and /tf_static"
                )
            return depth
        camera = self.registration.depth_camera
        if (camera.width, camera.height) != (width, height):
            raise SourceError(
                f"{self.topic} is {width}x{height}, but its calibration is for {camera.width}x{camera.height}"
            )
        values = depth.values
        if values.dtype != np.uint16:
            metres = np.nan_to_num(depth.metres(values), nan=0.0)
            values = np.clip(np.rint(metres / _MILLIMETRE), 0, 65534).astype(np.uint16)
        moved = self.registration.apply(np.asarray(values, np.uint16), _MILLIMETRE, depth.hole)
        return DepthImage(moved, _MILLIMETRE)

    def _raw(self) -> Any:
        """The decoded data of a compressed one."""
        name = str(self.message.format)
        if "compresseddepth" not in name.lower() or not name.startswith("16UC1"):
            raise SourceError(f"{self.topic} is of format '{name}'; expected 16UC1 by compressedDepth, or raw images")
        data = bytes(self.message.data)[_HEADER:]
        values = read_pixels(EncodedImage(data, "png", self.topic), cv2.IMREAD_UNCHANGED)
        if values.dtype != np.uint16 or values.ndim != 2:
            raise SourceError(f"{self.topic} is not a depth image: expected one channel of 16 bits")
        return SimpleNamespace(
            height=values.shape[0],
            width=values.shape[1],
            encoding="16UC1",
            is_bigendian=False,
            step=values.strides[0],
            data=values.view(np.uint8).reshape(-1),
        )
