"""Conversion of messages to frames: decodes images, and remembers calibrations.

The node's subscriptions and the commands over recordings both use it, so a parameter has the same meaning for both.
This module does not need ROS: a message is any object with its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.frame import DepthImage, Frame, RightImage
from loftr_ros.frontend.image_files import ImageError
from loftr_ros.frontend.mask import MaskError, check_mask, with_moving
from loftr_ros.geometry.camera import CameraError, CameraModel
from loftr_ros.recordings.decoding import decode_compressed, decode_depth, decode_image, decode_mask
from loftr_ros.recordings.input_settings import InputParameters
from loftr_ros.recordings.stereo_calibration import left_from_right, pose_of, rectified_camera

if TYPE_CHECKING:
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image

T = TypeVar("T")

# First bytes of every JPEG.
_JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class Arrival:
    """An image message with its companions, ready for processing.

    Attributes:
        image: `sensor_msgs/Image` or `CompressedImage`.
        camera_info: its calibration; None if not used.
        received: monotonic seconds of the image's arrival.
        right, right_info: image and calibration of the right camera, in mode `stereo`.
        depth: registered to the image, in mode `rgbd`; a message, or decoded already.
        left_from_right: (4, 4) T_left_right if a recording provides it otherwise than by the calibrations' R and P.
        mask: of what moves in the image; None without.
    """

    image: Image | CompressedImage
    camera_info: CameraInfo | None
    received: float
    right: Image | CompressedImage | None = None
    right_info: CameraInfo | None = None
    depth: Image | DepthImage | None = None
    left_from_right: NDArray[np.float64] | None = None
    mask: Image | None = None


class FrameDecoder:
    """Converts messages to frames. It remembers the last calibrations, so that unchanged ones cost nothing."""

    def __init__(
        self,
        parameters: InputParameters,
        mask: NDArray[np.bool_] | None = None,
        on_mask_error: Callable[[str], None] | None = None,
    ) -> None:
        """Create it without a calibration.

        Args:
            parameters: interpretation of the images, and the right camera's pose.
            mask: (H, W) bool, false for pixels to ignore in every image; None for none.
            on_mask_error: called with the reason if an image's own mask is unusable; the image is then used without
                it. None raises the error instead.
        """
        self._white_level = parameters.white_level
        self._rectified = parameters.rectified
        self._extrinsic = pose_of(parameters.left_from_right)
        self._mask = mask
        self._on_mask_error = on_mask_error
        self._mask_ignores, self._mask_dilation = parameters.mask_ignores, parameters.mask_dilation
        self._camera: _Remembered[CameraModel] = _Remembered()
        self._right_camera: _Remembered[CameraModel] = _Remembered()
        self._left_from_right: _Remembered[NDArray[np.float64]] = _Remembered()

    def __call__(self, arrival: Arrival) -> Frame:
        """Decode an image, its calibration and its companions.

        A raw right image is decoded too; a compressed one on demand, which may then raise the same errors.

        Raises:
            ImageError: an image cannot be decoded.
            CameraError: a calibration is unusable, or of another image size.
            MaskError: the image's own mask is unusable, and there is no `on_mask_error`.
        """
        message = arrival.image
        image = self._gray(message)
        camera = None if arrival.camera_info is None else self._camera_of(arrival.camera_info, self._camera)
        if camera is not None:
            _check_size(camera, image)
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        depth = arrival.depth
        if depth is not None and not isinstance(depth, DepthImage):
            depth = decode_depth(depth)
        right = None if arrival.right is None else self._right_of(arrival)
        usable = self._mask if arrival.mask is None else self._usable(arrival.mask, image)
        return Frame(image, stamp, message.header.frame_id, camera, usable, depth, right, _jpeg_of(message))

    def _usable(self, message: Image, image: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        try:
            marked = decode_mask(message)
            check_mask(marked, image)
            return with_moving(self._mask, marked if self._mask_ignores == "nonzero" else ~marked, self._mask_dilation)
        except (ImageError, MaskError) as error:
            if self._on_mask_error is None:
                raise MaskError(str(error)) from error
            self._on_mask_error(f"{error}. The image is used without it")
            return self._mask

    def _right_of(self, arrival: Arrival) -> RightImage:
        message, left_info, right_info = arrival.right, arrival.camera_info, arrival.right_info
        if left_info is None or right_info is None:
            raise CameraError("a right image came without the calibration of both cameras")
        try:
            camera = self._camera_of(right_info, self._right_camera)
        except CameraError as error:
            raise CameraError(f"right camera: {error}") from error
        pose = self._extrinsic if self._extrinsic is not None else arrival.left_from_right
        if pose is None:
            key = tuple(np.asarray(part).tobytes() for info in (left_info, right_info) for part in (info.r, info.p))
            pose = self._left_from_right(key, lambda: left_from_right(left_info, right_info, self._rectified))

        def decode() -> NDArray[np.uint8]:
            image = self._gray(message)
            _check_size(camera, image, "right ")
            return image

        # JPEG takes milliseconds.
        return RightImage(decode if is_compressed(message) else decode(), camera, pose)

    def _gray(self, message: Image | CompressedImage) -> NDArray[np.uint8]:
        if is_compressed(message):
            return decode_compressed(message, white_level=self._white_level)
        return decode_image(message, white_level=self._white_level)

    def _camera_of(self, info: CameraInfo, remembered: _Remembered[CameraModel]) -> CameraModel:
        roi = info.roi
        key = (
            info.width,
            info.height,
            info.distortion_model,
            np.asarray(info.p if self._rectified else info.k).tobytes(),
            np.asarray(info.d).tobytes(),
            info.binning_x,
            info.binning_y,
            roi.x_offset,
            roi.y_offset,
            roi.width,
            roi.height,
        )
        make = rectified_camera if self._rectified else CameraModel.from_camera_info
        return remembered(key, lambda: make(info))


class _Remembered(Generic[T]):
    """Caches the last result for a key as long as that stays the same."""

    def __init__(self) -> None:
        self._made: tuple[Hashable, T] | None = None

    def __call__(self, key: Hashable, make: Callable[[], T]) -> T:
        if self._made is None or self._made[0] != key:
            self._made = (key, make())
        return self._made[1]


def is_compressed(message: Any) -> bool:
    """Whether a message is a `sensor_msgs/CompressedImage` of any library, rather than an `Image`."""
    return hasattr(message, "format")


def _jpeg_of(message: Image | CompressedImage) -> memoryview | None:
    """The message's own JPEG, not copied; None if it is something else, or not the image itself (a mosaic)."""
    if not is_compressed(message) or "bayer" in message.format:
        return None
    data = memoryview(message.data)
    return data if data[:2] == _JPEG else None


def _check_size(camera: CameraModel, image: NDArray[Any], side: str = "") -> None:
    height, width = image.shape
    if (camera.width, camera.height) != (width, height):
        raise CameraError(
            f"{side}CameraInfo is of {camera.width}x{camera.height} px, its image is {width}x{height}; "
            "calibrate at the published resolution"
        )
