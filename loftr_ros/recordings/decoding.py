"""Image messages to (H, W) uint8 gray, the front end's only input, and to depth.

`cv_bridge` converts raw images wherever it is installed and correct; test/test_images.py holds it and the decoder here
to one contract. The decoder handles all images if there is no `cv_bridge` (PyPI has only a ROS 1 build of 2020), and
these everywhere, because `cv_bridge` 4.0 (Jazzy) does not support them or converts them wrongly:

- rows padded by a part of a pixel come out sheared, without an error;
- big-endian samples fail on NumPy 2;
- 8UC1 to 8UC4 and 16UC1 to 16UC4 have no colours; nv12 and nv21 are unknown, nv24 is taken for gray of any size;
- data that is not bytes, as some libraries have it, is refused;
- compressed images are decoded without a check that they are complete.

Median times for 640x480 on one core: mono8 0.02 ms, bgr8 0.08 ms, YUV 4:2:2 0.07 ms, nv12 0.02 ms, bayer 0.11 ms,
mono16 0.05 ms (0.65 ms with a stretch), jpeg 0.8 ms (1.2 ms by way of colour), png 2.3 ms (gray) to 6.9 ms (colour).
"""

from __future__ import annotations

import array
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.frame import DepthImage
from loftr_ros.frontend.image_files import MAX_PIXELS, ImageError, check_complete

FULL_RANGE = 65535


@dataclass(frozen=True)
class _Layout:
    """Memory layout of an encoding: interleaved channels, bytes per channel, and conversion to gray (None: it is
    gray).
    """

    channels: int
    depth: int
    to_gray: int | None = None
    planes: float = 1  # rows of `step` bytes per image row, for planar YUV
    kind: str = "u"  # numpy's kind of the samples


_LAYOUTS: dict[str, _Layout] = {
    "mono8": _Layout(1, 1),
    "8UC1": _Layout(1, 1),
    "mono16": _Layout(1, 2),
    "16UC1": _Layout(1, 2),
    "rgb8": _Layout(3, 1, cv2.COLOR_RGB2GRAY),
    "bgr8": _Layout(3, 1, cv2.COLOR_BGR2GRAY),
    "8UC3": _Layout(3, 1, cv2.COLOR_BGR2GRAY),
    "rgba8": _Layout(4, 1, cv2.COLOR_RGBA2GRAY),
    "bgra8": _Layout(4, 1, cv2.COLOR_BGRA2GRAY),
    "8UC4": _Layout(4, 1, cv2.COLOR_BGRA2GRAY),
    "rgb16": _Layout(3, 2, cv2.COLOR_RGB2GRAY),
    "bgr16": _Layout(3, 2, cv2.COLOR_BGR2GRAY),
    "16UC3": _Layout(3, 2, cv2.COLOR_BGR2GRAY),
    "rgba16": _Layout(4, 2, cv2.COLOR_RGBA2GRAY),
    "bgra16": _Layout(4, 2, cv2.COLOR_BGRA2GRAY),
    "16UC4": _Layout(4, 2, cv2.COLOR_BGRA2GRAY),
    # ROS names a mosaic by its first two rows, OpenCV by the second and third pixel of the second: RGGB is OpenCV's BG.
    **{
        f"bayer_{pattern}{8 * depth}": _Layout(1, depth, code)
        for depth in (1, 2)
        for pattern, code in (
            ("rggb", cv2.COLOR_BayerBG2GRAY),
            ("bggr", cv2.COLOR_BayerRG2GRAY),
            ("gbrg", cv2.COLOR_BayerGR2GRAY),
            ("grbg", cv2.COLOR_BayerGB2GRAY),
        )
    },
    # The gray of YUV is its luma, unscaled (16 to 235 from most cameras).
    "uyvy": _Layout(2, 1, cv2.COLOR_YUV2GRAY_UYVY),
    "yuv422": _Layout(2, 1, cv2.COLOR_YUV2GRAY_UYVY),
    "yuyv": _Layout(2, 1, cv2.COLOR_YUV2GRAY_YUY2),
    "yuv422_yuy2": _Layout(2, 1, cv2.COLOR_YUV2GRAY_YUY2),
    "nv12": _Layout(1, 1, planes=1.5),
    "nv21": _Layout(1, 1, planes=1.5),
    "nv24": _Layout(1, 1, planes=3),
}
ENCODINGS: tuple[str, ...] = tuple(_LAYOUTS)
"""Encodings of `sensor_msgs/Image` supported by `decode_image`."""

# REP 118: depth along the optical axis, and metres per unit.
_DEPTHS = {"16UC1": (_Layout(1, 2), 0.001), "32FC1": (_Layout(1, 4, kind="f"), 1.0)}
_MASKS = ("mono8", "8UC1", "mono16", "16UC1")
# Value that 16-bit sensors write, beside zero, for missing depth; as a depth it would be 65.5 m.
_DEPTH_HOLE = 65535

_YUV_PAIRS = frozenset(("uyvy", "yuv422", "yuyv", "yuv422_yuy2"))
# Encodings that cv_bridge converts like this decoder; see the module's docstring.
_BY_CV_BRIDGE = frozenset(
    name for name in _LAYOUTS if not name.startswith(("8UC", "16UC", "nv")) and name not in ("uyvy", "yuyv")
)


def _cv_bridge() -> Any:
    try:
        from cv_bridge import CvBridge
        from cv_bridge.boost import cv_bridge_boost  # noqa: F401 (ROS 1's package comes without)
    except ImportError:
        return None
    return CvBridge()


CV_BRIDGE: Any = _cv_bridge()
"""cv_bridge's converter; None if it is not installed."""


def decode_image(message: Any, white_level: int = FULL_RANGE) -> NDArray[np.uint8]:
    """The gray image in a `sensor_msgs/Image`-like message.

    Colour becomes gray by BT.601 (0.299 R + 0.587 G + 0.114 B), a Bayer mosaic by bilinear interpolation and the same
    weights, YUV by its luma. The result never shares memory with the message, whose buffer the middleware may reuse
    (the copy takes 0.02 ms for a 640x480 image).

    Args:
        message: has `height`, `width`, `encoding`, `is_bigendian`, `step` (bytes per row, padding included) and `data`
            (array.array of "B", bytes, bytearray, memoryview, uint8 numpy array, or a list of integers, which is slow).
        white_level: 16-bit value that becomes 255; larger values stay 255. 12-bit sensors in 16-bit messages need 4095.
            0 stretches each image from its 1st to its 99th percentile, which also suits thermal cameras, but changes
            the brightness from image to image.

    Returns:
        (height, width) uint8, C-contiguous and writable.

    Raises:
        ImageError: the message has no such image; `kind` names the wrong field.
    """
    encoding = str(message.encoding)
    layout = _LAYOUTS.get(encoding)
    if layout is None:
        raise ImageError("encoding", _why_not(encoding))
    where = f"{message.width}x{message.height} image of encoding '{encoding}'"
    if encoding in _YUV_PAIRS and message.width % 2:
        raise ImageError("size", f"{where}: two neighbouring pixels share their colour, so the width must be even")
    if encoding.startswith("bayer") and 0 < min(message.width, message.height) < 3:
        raise ImageError("size", f"{where}: a mosaic needs at least 3x3 pixels to interpolate")
    samples = _samples(message, layout, where)
    if CV_BRIDGE is not None and encoding in _BY_CV_BRIDGE and _suits_cv_bridge(message, layout):
        wanted = "mono8" if layout.depth == 1 else "mono16"
        samples = CV_BRIDGE.imgmsg_to_cv2(message, wanted)
    elif layout.to_gray is not None:
        samples = cv2.cvtColor(samples, layout.to_gray)
    return eight_bits(samples, white_level)


def _suits_cv_bridge(message: Any, layout: _Layout) -> bool:
    whole_pixels = message.step % (layout.channels * layout.depth) == 0
    return whole_pixels and not message.is_bigendian and isinstance(message.data, (array.array, bytes, bytearray))


def decode_depth(message: Any) -> DepthImage:
    """The depth in a `sensor_msgs/Image`-like message by REP 118: 16UC1 in millimetres, 32FC1 in metres.

    The values stay unconverted, in the message's own memory if byte order and alignment allow: the front end converts
    only the depths of a few thousand points.

    Args:
        message: as in `decode_image`.

    Returns:
        (height, width) uint16 in units of 0.001 m, or float32 in metres; rows may be padded. Holes are 0, 65535 for
        integers, and non-finite values for floats.

    Raises:
        ImageError: the message has no such image; `kind` names the wrong field.
    """
    encoding = str(message.encoding)
    if encoding not in _DEPTHS:
        raise ImageError(
            "encoding",
            f"depth image of encoding '{encoding}'; expected 16UC1 (millimetres) or 32FC1 (metres), uncompressed: is "
            "the topic a depth image?",
        )
    layout, unit = _DEPTHS[encoding]
    values = _samples(message, layout, f"{message.width}x{message.height} depth image of encoding '{encoding}'")
    return DepthImage(values, unit, _DEPTH_HOLE if layout.kind == "u" else None)


def decode_mask(message: Any) -> NDArray[np.bool_]:
    """Which pixels of a mask are not zero, in a `sensor_msgs/Image`-like message of one channel.

    Args:
        message: as in `decode_image`; mono8, 8UC1, mono16 or 16UC1 (labels).

    Returns:
        (height, width) bool.

    Raises:
        ImageError: the message has no such image.
    """
    encoding = str(message.encoding)
    if encoding not in _MASKS:
        raise ImageError(
            "mask",
            f"mask of encoding '{encoding}'; expected {', '.join(_MASKS)}: is the topic a mask, or a picture of it?",
        )
    layout = _LAYOUTS[encoding]
    try:
        return np.asarray(_samples(message, layout, f"{message.width}x{message.height} mask of '{encoding}'") != 0)
    except ImageError as error:
        raise ImageError("mask", str(error)) from error


def decode_compressed(message: Any, white_level: int = FULL_RANGE) -> NDArray[np.uint8]:
    """The gray image in a `sensor_msgs/CompressedImage`-like message: JPEG or PNG (TIFF, WebP, BMP if OpenCV supports
    them).

    The data's own signature decides the format, because drivers and image_transport write the format field in many ways
    ("jpeg", "jpg", "rgb8; jpeg compressed bgr8", "16UC1; png compressed "). JPEG is decoded straight to gray, which
    skips its colour planes. An EXIF orientation is ignored, because the calibration is of the stored pixels.
    image_transport compresses a Bayer mosaic unchanged, and says so in the format; such an image is interpolated as in
    `decode_image`.

    Truncated data is refused, and so are damaged PNGs (they have checksums). A JPEG damaged in its middle cannot be
    detected, because the format has no checksum.

    Args:
        message: has `format` and `data` (as in `decode_image`).
        white_level: as in `decode_image`, for PNG and TIFF of 16 bits.

    Returns:
        (H, W) uint8, C-contiguous and writable.

    Raises:
        ImageError: of kind `compressed` (or `data` if that is not bytes).
    """
    name = str(message.format)
    where = f"compressed image of format '{name}'"
    if "compresseddepth" in name.lower():
        raise ImageError(
            "compressed", f"{where} holds depth, not brightness; subscribe to the camera's colour or infrared image"
        )
    data = _as_bytes(message.data, where)
    check_complete(data.tobytes(), where)
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error as error:
        raise ImageError("compressed", f"{where}: OpenCV cannot decode it ({error.err}); is it damaged?") from error
    if image is None:
        raise ImageError(
            "compressed",
            f"{where}: OpenCV cannot decode its {data.size} bytes; are they damaged, or does OpenCV lack the format?",
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError("compressed", f"{where} has samples of {image.dtype}; expected 8 or 16 bits")
    source, _, target = name.partition(";")
    if source.startswith("bayer_") and "bgr" not in target and "rgb" not in target and source in _LAYOUTS:
        code = _LAYOUTS[source].to_gray
        if code is None or min(image.shape) < 3:
            raise ImageError("compressed", f"{where}: a mosaic needs at least 3x3 pixels to interpolate")
        image = cv2.cvtColor(image, code)
    return eight_bits(image, white_level)


def _why_not(encoding: str) -> str:
    known = ", ".join(ENCODINGS)
    if encoding.startswith(("32FC", "64FC", "32SC", "16SC", "8SC")):
        return (
            f"encoding '{encoding}' has no defined range, so it has no gray equivalent (32FC1 and 16SC1 are mostly "
            f"depth or disparity); subscribe to the camera's brightness image, in one of {known}"
        )
    return f"encoding '{encoding}' is not known; have the driver publish, or convert with image_proc to, one of {known}"


def _samples(message: Any, layout: _Layout, where: str) -> NDArray[Any]:
    """The samples of a raw message: (H, W) or (H, W, channels) in native byte order, a view if possible.

    Raises:
        ImageError: width, height, step and data disagree; `where` names the image.
    """
    height, width, step = int(message.height), int(message.width), int(message.step)
    row = width * layout.channels * layout.depth
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ImageError("size", f"{where}: expected 1x1 to {MAX_PIXELS} pixels; check the driver's width and height")
    if step < row:
        raise ImageError("size", f"{where} has rows of {row} bytes, but step is {step}, which must not be less")
    data = _as_bytes(message.data, where)
    needed = step * int(height * layout.planes)
    if data.size < needed:
        raise ImageError(
            "data",
            f"{where} needs {needed} bytes ({needed // step} rows of step {step}), but data holds {data.size}; "
            "it was cut off in transport, or step or height is wrong",
        )
    # Padding, channels and byte order need only strides and a dtype, no copies.
    dtype = np.dtype(f"{'>' if message.is_bigendian else '<'}{layout.kind}{layout.depth}")
    pixel = layout.channels * layout.depth
    shape: tuple[int, ...] = (height, width)
    strides: tuple[int, ...] = (step, pixel)
    if layout.channels > 1:
        shape, strides = (*shape, layout.channels), (*strides, layout.depth)
    samples: NDArray[Any] = np.ndarray(shape, dtype, buffer=data.data, strides=strides)
    if dtype.isnative and samples.flags.aligned:
        return samples
    return samples.astype(dtype.newbyteorder("="))


def _as_bytes(data: Any, where: str) -> NDArray[np.uint8]:
    """A flat view of a message's `data`; only a list is copied."""
    try:
        if isinstance(data, (list, tuple)):
            return np.frombuffer(bytes(data), dtype=np.uint8)
        array = np.ascontiguousarray(data) if isinstance(data, np.ndarray) else np.asarray(memoryview(data))
        if array.dtype.kind not in "iu" or array.dtype.itemsize != 1:
            raise TypeError(f"items of type {array.dtype}")
        return array.reshape(-1).view(np.uint8)
    except (TypeError, ValueError) as error:
        raise ImageError(
            "data", f"{where}: data is not a sequence of bytes ({type(data).__name__}: {error}); it must be uint8[]"
        ) from error


def eight_bits(image: NDArray[Any], white_level: int) -> NDArray[np.uint8]:
    """Convert gray of 8 or 16 bits to 8 bits with memory of their own."""
    if image.dtype == np.uint8:
        # Copy a view on a message; the output of cv2 is already ours.
        return image if image.flags.owndata and image.flags.c_contiguous else np.array(image, order="C")
    low, high = 0, int(white_level)
    if high <= 0:
        low, high = _percentiles(image)
        image = np.maximum(image, low) - np.uint16(low)
    return np.asarray(cv2.convertScaleAbs(image, alpha=255.0 / (high - low)), dtype=np.uint8)


def _percentiles(image: NDArray[np.uint16]) -> tuple[int, int]:
    """The 1st and the 99th percentile, never equal, by counting: sorting takes ten times as long."""
    cumulated = np.cumsum(np.bincount(image.reshape(-1)))
    low = int(np.searchsorted(cumulated, 0.01 * image.size))
    return low, max(int(np.searchsorted(cumulated, 0.99 * image.size)), low + 1)
