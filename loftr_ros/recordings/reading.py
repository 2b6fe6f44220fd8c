"""Conversion of a source's frames to frames of the front end, with the node's parameters and code.

This module builds the messages that the node would receive, and `FrameDecoder`, which the node's subscriptions use too,
makes the frame. So `input.rectified`, `input.white_level` and the like have the same meaning for a recording.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.image_files import ImageError
from loftr_ros.frontend.mask import MaskError
from loftr_ros.geometry.camera import NO_DISTORTION, CameraError, CameraModel
from loftr_ros.recordings.base import SourceFrame
from loftr_ros.recordings.companions import check_mode
from loftr_ros.recordings.frame_decoder import Arrival, FrameDecoder
from loftr_ros.recordings.images import BagImage, EncodedImage, Image, PixelImage, SourceError, read_pixels
from loftr_ros.recordings.input_settings import InputParameters


class FrameReader:
    """Makes the front end's frames like the node. It remembers calibrations, so that unchanged ones cost nothing."""

    def __init__(self, parameters: InputParameters | None = None, mask: NDArray[np.bool_] | None = None) -> None:
        """Create it without a calibration.

        Args:
            parameters: the node's `input.*`; None for its defaults. Those for topics and pairing have no effect here.
            mask: (H, W) bool, false for pixels to ignore in every image; None for none.
        """
        self.parameters = parameters or InputParameters()
        self._decode = FrameDecoder(self.parameters, mask)
        self._made: dict[str, tuple[CameraModel, Any]] = {}

    def read(self, frame: SourceFrame, mode: str = MONO) -> Frame:
        """The frame as input of the front end.

        Args:
            frame: of a source.
            mode: `mono` decodes only the image, `stereo` also the right one, `rgbd` also the depth image.

        Raises:
            SourceError: an image is missing or damaged, or a calibration is unusable or for another size.
        """
        check_mode(mode)
        arrival = self._arrival(frame, mode)
        try:
            read = self._decode(arrival)
        except (ImageError, MaskError) as error:
            raise SourceError(f"{frame.which}: {error}") from error
        except CameraError as error:
            hint = "" if isinstance(frame.image, BagImage) else "; or give its calibration with the option `camera`"
            raise SourceError(f"{frame.which}: {error}{hint}") from error
        if mode == STEREO:
            side, _ = frame.right_side()
            try:
                _ = read.right and read.right.image  # the node decodes it only for keyframes, which may then fail
            except (CameraError, ImageError) as error:
                raise SourceError(f"right image of {side.which}: {error}") from error
        return read

    def picture(self, frame: SourceFrame, read: Frame) -> NDArray[np.uint8]:
        """The picture of a frame for people: in colour if possible, else the front end's gray.

        Args:
            frame: of the source.
            read: the front end's frame of it.

        Returns:
            (H, W, 3) uint8 BGR or (H, W) uint8 gray.
        """
        picture = frame.decode_color()
        return picture if picture.ndim == 3 else read.image

    def _arrival(self, frame: SourceFrame, mode: str) -> Arrival:
        image = _message(frame.image, frame)
        info = self._info(frame, "")
        right = right_info = depth = left_from_right = None
        if mode == STEREO:
            side, view = frame.right_side()
            right, right_info = _message(side.image, side), self._info(side, "right")
            left_from_right = None if view.by_info else view.left_from_right
        elif mode == RGBD:
            depth = frame.decode_depth(None if frame.camera is not None else _size(image))
        mask = frame.read_mask()
        message = None if mask is None else _message(mask, frame)
        return Arrival(image, info, 0.0, right, right_info, depth, left_from_right, message)

    def _info(self, frame: SourceFrame, side: str) -> Any:
        """The CameraInfo that the node would receive."""
        image = frame.image
        if self.parameters.camera_info == "none":
            return None
        if isinstance(image, BagImage) and image.camera_info is not None:
            # An unusable calibration costs a single camera its poses, not its matches; the source has reported it.
            usable = frame.camera is not None or self.parameters.rectified or side
            return image.camera_info if usable else None
        if frame.camera is None:
            return None
        made = self._made.get(side)
        if made is None or made[0] is not frame.camera:
            self._made[side] = made = frame.camera, camera_info(frame.camera)
        return made[1]


def camera_info(camera: CameraModel, baseline: float = 0.0) -> SimpleNamespace:
    """The fields of the `sensor_msgs/CameraInfo` of a calibration, except its header.

    A camera without distortion is a `plumb_bob` of zeros, which all ROS tools understand.

    Args:
        camera: the calibration.
        baseline: of the right camera of a rectified pair, in metres from the left one.
    """
    projection = np.zeros((3, 4))
    projection[:, :3] = camera.matrix
    projection[0, 3] = -camera.matrix[0, 0] * baseline
    plain = camera.distortion_model == NO_DISTORTION
    return SimpleNamespace(
        width=camera.width,
        height=camera.height,
        distortion_model="plumb_bob" if plain else camera.distortion_model,
        d=np.zeros(5) if plain else _never_zeros(camera.distortion),
        k=camera.matrix.ravel(),
        r=np.eye(3).ravel(),
        p=projection.ravel(),
        binning_x=0,
        binning_y=0,
        roi=SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False),
    )


def _never_zeros(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """The coefficients, never all zero: an ideal fisheye's zeros would mean no distortion in a message."""
    return coefficients if coefficients.any() else np.r_[1e-12, coefficients[1:]]


def _message(image: Image, frame: SourceFrame) -> Any:
    """The image message that the node would receive: the bag's own, or one with the same fields."""
    stamp = SimpleNamespace(sec=frame.stamp_ns // 10**9, nanosec=frame.stamp_ns % 10**9)
    header = SimpleNamespace(stamp=stamp, frame_id=frame.frame_id)
    if isinstance(image, BagImage):
        own = image.message
        names = (
            ("format", "data") if image.compressed else ("height", "width", "encoding", "is_bigendian", "step", "data")
        )
        return SimpleNamespace(header=header, **{name: getattr(own, name) for name in names})
    if isinstance(image, EncodedImage) and not image.data.startswith(b"P"):
        return SimpleNamespace(header=header, format=image.format, data=image.data)
    if isinstance(image, EncodedImage):  # PGM and PPM, which messages cannot contain
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        image = PixelImage(read_pixels(image, flags))
    pixels = np.ascontiguousarray(image.pixels)
    return SimpleNamespace(
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=image.encoding,
        is_bigendian=False,
        step=pixels.strides[0],
        data=pixels.view(np.uint8).reshape(-1),
    )


def _size(message: Any) -> tuple[int, int] | None:
    return (int(message.width), int(message.height)) if hasattr(message, "width") else None
