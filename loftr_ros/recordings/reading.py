"""Frames of a source, and their conversion to frames of the front end with the node's parameters and code.

`FrameReader` builds the messages that the node would receive. `FrameDecoder`, which the node's subscriptions use too,
makes the frame. So `input.rectified`, `input.white_level` and the like have the same meaning for a recording.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.frontend.frame import DepthImage, Frame, RightImage
from loftr_ros.frontend.image_files import ImageError
from loftr_ros.frontend.mask import MaskError, nonzero
from loftr_ros.geometry.camera import NO_DISTORTION, CameraError, CameraModel
from loftr_ros.recordings.bag_depth import BagDepth
from loftr_ros.recordings.companions import COME_WITH, DepthFile, ImageFile, RightView, check_mode
from loftr_ros.recordings.frame_decoder import Arrival, FrameDecoder
from loftr_ros.recordings.images import (
    BagImage,
    EncodedImage,
    Image,
    PixelImage,
    SourceError,
    decode_color,
    decode_gray,
    gray_pixels,
    read_pixels,
)
from loftr_ros.recordings.input_settings import InputParameters


@dataclass(frozen=True)
class SourceFrame:
    """One frame of a source. Its images are decoded on demand.

    Attributes:
        index: number of the frame in the source (before `start` and `step`), from 0.
        stamp_ns: time of exposure in nanoseconds.
        frame_id: the camera's optical frame (REP 103: x right, y down, z forward).
        image: undecoded.
        camera: the camera's calibration, or None if unknown.
        pose: (4, 4) float64 T_world_camera, the ground truth, or None.
        metric: whether the translation of `pose` is in metres.
        right: right image of a stereo pair, of which `image` is the left one; None without.
        depth: registered to `image`; None without.
        mask: of what moves in `image`; None without.
    """

    index: int
    stamp_ns: int
    frame_id: str
    image: Image
    camera: CameraModel | None = None
    pose: NDArray[np.float64] | None = None
    metric: bool = False
    right: RightView | None = None
    depth: DepthFile | BagDepth | DepthImage | None = None
    mask: Image | ImageFile | None = None

    def decode(self) -> NDArray[np.uint8]:
        """The (H, W) uint8 gray image, decoded by the node's code, so that both use the same pixels.

        Raises:
            SourceError: the image is damaged, or has no gray equivalent.
        """
        return decode_gray(self.image, self.which)

    def decode_all_bits(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The (H, W) gray image at full depth, uint16 for 16-bit images, without stretching; for publishing.

        Raises:
            SourceError: the image is damaged, or has no gray equivalent.
        """
        return gray_pixels(self.image, self.which)

    def decode_color(self) -> NDArray[np.uint8]:
        """The colour image: (H, W, 3) uint8 BGR, or (H, W) uint8 gray if it has no colour.

        Raises:
            SourceError: the image is damaged.
        """
        return decode_color(self.image, self.which)

    def decode_right(self) -> RightImage:
        """The right image, gray, with its calibration and pose.

        Raises:
            SourceError: there is none, it cannot be read, or its size differs from its calibration's.
        """
        frame, right = self.right_side()
        image = frame.decode()
        height, width = image.shape
        right.check_size(width, height, frame.which)
        return RightImage(image, right.camera, right.left_from_right)

    def right_side(self) -> tuple[SourceFrame, RightView]:
        """The right image as a separate, undecoded frame, and its companion data.

        Raises:
            SourceError: there is none, or it cannot be read.
        """
        if self.right is None:
            raise SourceError(f"{self.which} has no right image that belongs to it; {COME_WITH[STEREO]}")
        right = self.right
        return SourceFrame(self.index, self.stamp_ns, right.frame_id, right.load(), right.camera), right

    def decode_depth(self, size: tuple[int, int] | None = None) -> DepthImage:
        """The depth image.

        Args:
            size: (width, height) of the image, which the depth must have too; None takes the calibration's, if any.

        Raises:
            SourceError: there is none, it cannot be read, or it is not a depth image of that size.
        """
        if self.depth is None:
            raise SourceError(f"{self.which} has no depth image that belongs to it; {COME_WITH[RGBD]}")
        if size is None and self.camera is not None:
            size = self.camera.width, self.camera.height
        return self.depth if isinstance(self.depth, DepthImage) else self.depth.decode(size)

    def read_mask(self) -> PixelImage | BagImage | None:
        """The mask: a bag's own raw message, or mono8 that is 0 where a file is black or transparent; None without.

        Raises:
            SourceError: it is damaged.
        """
        mask = self.mask
        if mask is None or isinstance(mask, PixelImage):
            return mask
        if isinstance(mask, BagImage):
            return mask if not mask.compressed else PixelImage(decode_gray(mask, f"mask of {self.which}"))
        file = mask.read() if isinstance(mask, ImageFile) else mask
        marked = nonzero(read_pixels(file, cv2.IMREAD_UNCHANGED))
        return PixelImage(marked.astype(np.uint8) * np.uint8(255))

    def to_frame(self, mode: str = MONO) -> Frame:
        """The frame as input of the front end, with the node's default parameters; `FrameReader` takes others.

        Args:
            mode: `mono` decodes only the image, `stereo` also the right one, `rgbd` also the depth image.

        Raises:
            SourceError: an image is missing or damaged, or a calibration is for another image size.
        """
        return FrameReader().read(self, mode)

    @property
    def which(self) -> str:
        """Name of the frame in errors."""
        image = self.image
        where = image.where if isinstance(image, EncodedImage) else f"stamp {self.stamp_ns / 1e9:.3f} s"
        return f"frame {self.index} ({where})"


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
