"""Converts frames of a source to camera messages, unchanged where possible.

A bag's messages keep every byte if transport and stamps stay the same. JPEG and PNG files keep every byte with the
compressed transport.
"""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings import BagImage, EncodedImage, PixelImage, SourceFrame
from loftr_ros.recordings.reading import camera_info
from loftr_ros.ros.output.messages import to_array, to_time

_MILLIMETRE = 0.001


def frame_messages(
    frame: SourceFrame, *, compressed: bool, color: bool = False, restamped: bool = False
) -> tuple[Image | CompressedImage | bytes, CameraInfo | None]:
    """A frame's image and calibration, both with the frame's stamp.

    Args:
        compressed: make `sensor_msgs/CompressedImage` instead of `sensor_msgs/Image`.
        color: make raw images bgr8 instead of mono8, if the source has colour.
        restamped: the stamp differs from the source's, or will be changed in the message.

    Returns:
        The image message, or its serialized bytes if nothing changes; and the CameraInfo, or None.

    Raises:
        SourceError: the image must be decoded, and cannot.
    """
    header = Header(stamp=to_time(frame.stamp_ns), frame_id=frame.frame_id)
    image, info = frame.image, None
    if isinstance(image, BagImage) and image.camera_info is not None:
        info = _same_camera_info(header, image.camera_info)
    elif frame.camera is not None:
        info = camera_info_message(header, frame.camera)
    if isinstance(image, BagImage) and image.compressed == compressed:
        own = image.message.header.stamp
        if not restamped and image.serialized is not None and own.sec * 10**9 + own.nanosec == frame.stamp_ns:
            return image.serialized, info
        return _same_image(header, image), info
    return (_to_compressed(header, frame) if compressed else _to_raw(header, frame, color)), info


def right_messages(
    frame: SourceFrame, *, compressed: bool, color: bool = False
) -> tuple[Image | CompressedImage, CameraInfo]:
    """The right image of a stereo pair and its calibration, both with the frame's stamp.

    P of a rectified pair's calibration has the baseline as `sensor_msgs/CameraInfo` defines it: P[0,3] is -fx times the
    right camera's position along the left camera's x in metres. P[0,3] of other pairs is zero, and their users must get
    the right camera's pose in another way.

    Args:
        compressed, color: as in `frame_messages`.

    Raises:
        SourceError: there is no right image, it cannot be read, or is of another size than its calibration.
    """
    view, right = frame.right_side()
    message, info = frame_messages(view, compressed=compressed, color=color, restamped=True)
    assert not isinstance(message, bytes)  # only possible with unchanged stamps
    if isinstance(message, Image):
        right.check_size(message.width, message.height, f"frame {frame.index}")
    if right.by_info and info is not None:  # a bag's own calibration, with its R and P
        return message, info
    return message, camera_info_message(message.header, right.camera, right.baseline or 0.0)


def depth_messages(frame: SourceFrame) -> tuple[Image, CameraInfo | None]:
    """The depth image and the image's calibration, both with the frame's stamp (REP 118).

    Millimetres in 16 bits stay 16UC1 with zero for holes. Everything else becomes 32FC1 in metres with NaN for holes,
    because other 16-bit units would lose precision in millimetres.

    Raises:
        SourceError: there is no depth image, it cannot be read, or is of another size than its image.
    """
    depth = frame.decode_depth()
    header = Header(stamp=to_time(frame.stamp_ns), frame_id=frame.frame_id)
    in_millimetres = depth.values.dtype == np.uint16 and depth.unit == _MILLIMETRE
    if in_millimetres:
        values = depth.values if depth.hole is None else np.where(depth.values == depth.hole, 0, depth.values)
        values = values.astype(np.uint16, copy=False)
    else:
        values = depth.metres(depth.values).astype(np.float32, copy=False)
    height, width = values.shape
    message = Image(
        header=header,
        height=height,
        width=width,
        encoding="16UC1" if in_millimetres else "32FC1",
        is_bigendian=int(sys.byteorder == "big"),
        step=width * values.itemsize,
        data=to_array(np.ascontiguousarray(values).view(np.uint8)),
    )
    return message, None if frame.camera is None else camera_info_message(header, frame.camera)


def _to_raw(header: Header, frame: SourceFrame, color: bool) -> Image:
    image = PixelImage(frame.decode_color() if color else frame.decode_all_bits())
    pixels = np.ascontiguousarray(image.pixels)
    return Image(
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=image.encoding,
        is_bigendian=int(sys.byteorder == "big"),
        step=pixels.strides[0],
        data=to_array(pixels.view(np.uint8)),
    )


def _to_compressed(header: Header, frame: SourceFrame) -> CompressedImage:
    image = frame.image
    if isinstance(image, EncodedImage) and image.format in ("jpeg", "png"):
        return CompressedImage(header=header, format=image.format, data=_byte_array(image.data))
    # PNG at its fastest setting is lossless: subscribers get the source's pixels.
    _, png = cv2.imencode(".png", frame.decode_all_bits(), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return CompressedImage(header=header, format="png", data=to_array(np.asarray(png, np.uint8)))


def camera_info_message(header: Header, camera: CameraModel, baseline: float = 0.0) -> CameraInfo:
    """A calibration as a message; without distortion it is a `plumb_bob` of zeros, which all ROS tools accept.

    `baseline` is the distance in metres of a rectified pair's right camera from the left one.
    """
    fields = camera_info(camera, baseline)
    return CameraInfo(
        header=header,
        width=fields.width,
        height=fields.height,
        distortion_model=fields.distortion_model,
        d=to_array(fields.d),
        k=fields.k,
        r=fields.r,
        p=fields.p,
    )


def _same_camera_info(header: Header, info: Any) -> CameraInfo:
    """A bag's calibration with the image's header, because pairs have equal stamps; all other fields are kept."""
    message = CameraInfo(
        header=header,
        width=int(info.width),
        height=int(info.height),
        distortion_model=str(info.distortion_model),
        d=to_array(np.asarray(info.d, np.float64)),
        k=np.asarray(info.k, np.float64),
        r=np.asarray(info.r, np.float64),
        p=np.asarray(info.p, np.float64),
        binning_x=int(info.binning_x),
        binning_y=int(info.binning_y),
    )
    for name in ("x_offset", "y_offset", "height", "width"):
        setattr(message.roi, name, int(getattr(info.roi, name)))
    message.roi.do_rectify = bool(info.roi.do_rectify)
    return message


def _same_image(header: Header, image: BagImage) -> Any:
    """A bag's image with another header; all other fields are kept."""
    message = image.message
    data = _byte_array(message.data)
    if image.compressed:
        return CompressedImage(header=header, format=str(message.format), data=data)
    return Image(
        header=header,
        height=int(message.height),
        width=int(message.width),
        encoding=str(message.encoding),
        is_bigendian=int(message.is_bigendian),
        step=int(message.step),
        data=data,
    )


def _byte_array(data: Any) -> Any:
    return to_array(np.frombuffer(data, np.uint8))
