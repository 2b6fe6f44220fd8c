"""Decoding of image messages, compared with OpenCV, hand-made arrays and the originals of mosaics and depth images."""

from __future__ import annotations

import array
import contextlib
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from loftr_ros.frontend.image_files import MAX_PIXELS, ImageError
from loftr_ros.recordings import decoding
from loftr_ros.recordings.decoding import ENCODINGS, decode_compressed, decode_depth, decode_image

HAS_CV_BRIDGE = decoding.CV_BRIDGE is not None


@pytest.fixture(
    autouse=True,
    params=[
        "own",
        pytest.param(
            "cv_bridge",
            marks=pytest.mark.skipif(not HAS_CV_BRIDGE, reason="cv_bridge is not installed (ROS has it)"),
        ),
    ],
)
def converter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One contract for cv_bridge and its replacement."""
    if request.param == "own":
        monkeypatch.setattr(decoding, "CV_BRIDGE", None)


RNG = np.random.default_rng(3)
WIDTH, HEIGHT = 46, 32
BAYER = {"rggb": ("rg", "gb"), "bggr": ("bg", "gr"), "gbrg": ("gb", "rg"), "grbg": ("gr", "bg")}


def smooth_rgb(dtype: type = np.uint8) -> NDArray[Any]:
    """A colourful image without detail, which a mosaic preserves; its channels differ everywhere."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green, blue = 40 + 3.5 * u, 20 + 2 * v, 230 - 2 * u - 2 * v
    return (np.stack([red, green, blue], axis=-1) * (257 if dtype is np.uint16 else 1)).astype(dtype)


def luma(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """BT.601, written out."""
    red, green, blue = (rgb[..., i].astype(np.float64) for i in range(3))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def mosaic(rgb: NDArray[Any], pattern: str) -> NDArray[Any]:
    """The raw image of a sensor with the colour filters of `pattern` (ROS order: first row, then second)."""
    raw = np.zeros(rgb.shape[:2], rgb.dtype)
    for row, letters in enumerate(BAYER[pattern]):
        for column, letter in enumerate(letters):
            raw[row::2, column::2] = rgb[row::2, column::2, "rgb".index(letter)]
    return raw


def message(pixels: NDArray[Any], encoding: str, padding: int = 0, big: bool = False, **fields: Any) -> SimpleNamespace:
    """An Image message of (H, W) or (H, W, C) samples; rows are padded with bytes that would show in the result."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).view(np.uint8).reshape(height, -1)
    rows = np.hstack([rows, np.full((height, padding), 0xA5, np.uint8)])
    values = {"height": height, "width": width, "encoding": encoding, "is_bigendian": int(big)}
    values |= {"step": rows.shape[1], "data": array.array("B", rows.tobytes())}
    return SimpleNamespace(**(values | fields))


def refused(msg: SimpleNamespace, kind: str, *words: str) -> str:
    """The message of the ImageError that decoding raises, after checking its kind and that it names `words`."""
    with pytest.raises(ImageError) as caught:
        decode_compressed(msg) if hasattr(msg, "format") else decode_image(msg)
    assert caught.value.kind == kind, str(caught.value)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def check_own_memory(decoded: NDArray[Any], shape: tuple[int, int]) -> None:
    assert decoded.dtype == np.uint8
    assert decoded.shape == shape
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable
    assert decoded.flags.owndata


def sample(encoding: str) -> tuple[NDArray[Any], NDArray[np.float64], float]:
    """(samples of that encoding, expected gray, tolerance) made without the decoder's own calls."""
    wide = encoding.endswith("16") or encoding.startswith("16")
    rgb = smooth_rgb(np.uint16 if wide else np.uint8)
    gray = luma(rgb) / (257 if wide else 1)
    alpha = RNG.integers(0, 256, (HEIGHT, WIDTH, 1)).astype(rgb.dtype)
    if encoding in ("mono8", "8UC1", "mono16", "16UC1"):
        mono = RNG.integers(0, 65536 if wide else 256, (HEIGHT, WIDTH)).astype(rgb.dtype)
        return mono, mono / (257 if wide else 1), 0.5
    if encoding in ("rgb8", "rgb16"):
        return rgb, gray, 1
    if encoding in ("bgr8", "bgr16", "8UC3", "16UC3"):
        return rgb[..., ::-1], gray, 1
    if encoding in ("rgba8", "rgba16"):
        return np.concatenate([rgb, alpha], axis=-1), gray, 1
    if encoding in ("bgra8", "bgra16", "8UC4", "16UC4"):
        return np.concatenate([rgb[..., ::-1], alpha], axis=-1), gray, 1
    if encoding.startswith("bayer"):
        return mosaic(rgb, encoding[6:10]), gray, 2
    y = RNG.integers(16, 236, (HEIGHT, WIDTH)).astype(np.uint8)
    chroma = RNG.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
    if encoding in ("uyvy", "yuv422"):
        return np.stack([chroma, y], axis=-1), y.astype(float), 0
    if encoding in ("yuyv", "yuv422_yuy2"):
        return np.stack([y, chroma], axis=-1), y.astype(float), 0
    rows = {"nv12": HEIGHT // 2, "nv21": HEIGHT // 2, "nv24": 2 * HEIGHT}[encoding]
    return np.vstack([y, RNG.integers(0, 256, (rows, WIDTH)).astype(np.uint8)]), y.astype(float), 0


@pytest.mark.parametrize("padding", [0, 1, 18])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gives_the_gray_of_its_samples_whatever_the_padding(encoding: str, padding: int) -> None:
    pixels, expected, tolerance = sample(encoding)
    for big in (False, True):
        decoded = decode_image(message(np.ascontiguousarray(pixels), encoding, padding, big, height=HEIGHT))
        check_own_memory(decoded, (HEIGHT, WIDTH))
        # Bilinear interpolation of a mosaic has no neighbours at the border.
        inside = np.s_[2:-2, 2:-2] if encoding.startswith("bayer") else np.s_[:, :]
        assert np.abs(decoded - expected)[inside].max() <= tolerance


@pytest.mark.parametrize("pattern", BAYER)
def test_each_bayer_pattern_gives_the_gray_of_its_own_colours_and_of_no_other_pattern(pattern: str) -> None:
    rgb = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    rgb[:] = (200, 90, 10)  # a red wall: swapping red and blue costs 35 gray levels
    for other in BAYER:
        decoded = decode_image(message(mosaic(rgb, pattern), f"bayer_{other}8")).astype(float)
        error = np.abs(decoded - luma(rgb))[2:-2, 2:-2].max()
        assert error <= 1 if other == pattern else error > 10


def test_the_result_outlives_the_message_s_buffer() -> None:
    pixels = RNG.integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    msg = message(pixels, "mono8")
    decoded = decode_image(msg)
    for i in range(len(msg.data)):
        msg.data[i] = 255
    assert np.array_equal(decoded, pixels)


WRAPPERS = {
    "numpy": lambda b: np.frombuffer(b, np.uint8),
    "signed numpy": lambda b: np.frombuffer(b, np.int8),
    "strided numpy": lambda b: np.repeat(np.frombuffer(b, np.uint8), 2)[::2],
    "unaligned": lambda b: memoryview(b"x" + b)[1:],
}


@pytest.mark.parametrize("wrap", [bytes, bytearray, list, tuple, memoryview, *WRAPPERS.values()])
@pytest.mark.parametrize("encoding", ["mono8", "16UC1", "bgr8"])
def test_data_may_be_any_sequence_of_bytes(encoding: str, wrap: Any) -> None:
    pixels, expected, tolerance = sample(encoding)
    msg = message(np.ascontiguousarray(pixels), encoding, padding=3)
    msg.data = wrap(msg.data.tobytes())
    assert np.abs(decode_image(msg) - expected).max() <= tolerance


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if "bayer" not in e and "yu" not in e and "uy" not in e])
def test_an_image_of_one_pixel_is_an_image(encoding: str) -> None:
    pixels, expected, tolerance = sample(encoding)
    planar = encoding.startswith("nv")
    tiny = np.ascontiguousarray(pixels[: 3 if planar else 1, :1])
    decoded = decode_image(message(tiny, encoding, height=1))
    check_own_memory(decoded, (1, 1))
    assert abs(float(decoded[0, 0]) - expected[0, 0]) <= tolerance


def test_bytes_after_the_image_are_ignored() -> None:
    pixels = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    msg = message(pixels, "mono8")
    msg.data.extend(range(100))
    assert np.array_equal(decode_image(msg), pixels)


# --- 16 bits


def test_sixteen_bits_map_the_white_level_to_255_and_stay_there_above_it() -> None:
    values = np.array([[0, 2048, 4095, 5000, 65535]], np.uint16)
    assert decode_image(message(values, "mono16")).tolist() == [[0, 8, 16, 19, 255]]
    assert decode_image(message(values, "mono16"), white_level=4095).tolist() == [[0, 128, 255, 255, 255]]


def test_a_white_level_of_zero_stretches_from_the_first_to_the_ninety_ninth_percentile() -> None:
    values = RNG.normal(30000, 300, (HEIGHT, WIDTH)).astype(np.uint16)  # a thermal camera: a small part of the range
    low, high = np.percentile(values, [1, 99])
    expected = np.clip((values - low) / (high - low) * 255, 0, 255)
    assert np.abs(decode_image(message(values, "16UC1"), white_level=0) - expected).max() < 4
    assert np.ptp(decode_image(message(values, "16UC1"))) < 20


def test_a_stretch_of_an_image_of_one_value_does_not_divide_by_zero() -> None:
    assert not decode_image(message(np.full((HEIGHT, WIDTH), 777, np.uint16), "mono16"), white_level=0).any()


# --- refused


@pytest.mark.parametrize("encoding", ["", "rgb", "MONO8", "jpeg", "8UC2", "bayer_rgbg8"])
def test_an_unknown_encoding_is_refused_with_the_list_of_those_that_are_known(encoding: str) -> None:
    msg = message(np.zeros((4, 4), np.uint8), encoding)
    refused(msg, "encoding", f"'{encoding}'", *ENCODINGS)


@pytest.mark.parametrize("encoding", ["32FC1", "64FC1", "16SC1", "8SC1", "32SC1"])
def test_samples_without_an_agreed_range_are_refused_with_the_reason(encoding: str) -> None:
    refused(message(np.zeros((4, 4), np.float32), encoding), "encoding", encoding, "no defined range")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_data_cut_off_by_one_byte_is_refused(encoding: str) -> None:
    pixels, _, _ = sample(encoding)
    msg = message(np.ascontiguousarray(pixels), encoding, padding=2, height=HEIGHT)
    needed = len(msg.data)
    msg.data = msg.data[:-1]
    refused(msg, "data", str(needed), str(needed - 1))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_step_shorter_than_a_row_is_refused(encoding: str) -> None:
    pixels, _, _ = sample(encoding)
    msg = message(np.ascontiguousarray(pixels), encoding, height=HEIGHT)
    msg.step -= 1
    refused(msg, "size", f"step is {msg.step}")


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 0},
        {"height": 0},
        {"width": 0, "height": 0},
        {"width": 2**32 - 1, "step": 2**32 - 1},
        {"height": 2**32 - 1},
        {"width": 2**31, "height": 2**31, "step": 2**31},
    ],
)
def test_zero_and_absurd_sizes_are_refused(fields: dict[str, int]) -> None:
    refused(message(np.zeros((4, 4), np.uint8), "mono8", **fields), "size", "driver")


@pytest.mark.parametrize("encoding", ["yuv422", "yuv422_yuy2", "uyvy", "yuyv"])
def test_an_odd_width_is_refused_where_pixels_come_in_pairs(encoding: str) -> None:
    refused(message(np.zeros((4, 5, 2), np.uint8), encoding), "size", "even")


def test_a_mosaic_too_small_to_interpolate_is_refused() -> None:
    refused(message(np.zeros((2, 8), np.uint8), "bayer_rggb8"), "size", "3x3")


@pytest.mark.parametrize(
    "data", [None, "text", 5, [1, 300], [1.5], np.zeros(64, np.float32), array.array("H", [0] * 9)]
)
def test_data_that_is_not_bytes_is_refused(data: Any) -> None:
    refused(message(np.zeros((8, 8), np.uint8), "mono8", data=data), "data", "uint8[]")


# --- compressed


def photo() -> NDArray[np.uint8]:
    """A smooth colour image (BGR) that JPEG preserves well."""
    return cv2.resize(smooth_rgb()[..., ::-1], (160, 120), interpolation=cv2.INTER_CUBIC)


def compressed(image: NDArray[Any], extension: str, name: str = "") -> SimpleNamespace:
    data = array.array("B", cv2.imencode(extension, image)[1].tobytes())
    return SimpleNamespace(format=name or extension[1:], data=data)


@pytest.mark.parametrize(
    ("extension", "tolerance"), [(".jpg", 4), (".png", 1), (".tiff", 1), (".webp", 4), (".bmp", 1)]
)
def test_each_compressed_format_gives_the_gray_of_the_colour_image(extension: str, tolerance: int) -> None:
    decoded = decode_compressed(compressed(photo(), extension))
    check_own_memory(decoded, (120, 160))
    assert np.abs(decoded - luma(photo()[..., ::-1])).max() <= tolerance


@pytest.mark.parametrize("name", ["jpeg", "jpg", "", "bgr8; jpeg compressed bgr8", "mono8; jpeg compressed "])
def test_the_data_say_what_they_are_however_the_format_is_written(name: str) -> None:
    msg = compressed(photo(), ".jpg")
    expected = decode_compressed(msg)
    msg.format = name
    assert np.array_equal(decode_compressed(msg), expected)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_sixteen_bit_files_follow_the_white_level(extension: str) -> None:
    values = RNG.integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)
    msg = compressed(values, extension, "16UC1; png compressed ")
    assert np.abs(decode_compressed(msg, white_level=4095) - values / 4095 * 255).max() <= 0.5
    assert np.abs(decode_compressed(msg) - values / 257).max() <= 0.5


@pytest.mark.parametrize("pattern", BAYER)
def test_a_mosaic_that_image_transport_compressed_as_it_is_gets_interpolated(pattern: str) -> None:
    rgb = smooth_rgb()
    msg = compressed(mosaic(rgb, pattern), ".png", f"bayer_{pattern}8; png compressed ")
    assert np.abs(decode_compressed(msg) - luma(rgb))[2:-2, 2:-2].max() <= 2


def test_a_mosaic_that_was_converted_before_compression_is_left_alone() -> None:
    msg = compressed(photo(), ".png", "bayer_rggb8; png compressed bgr8")
    assert np.abs(decode_compressed(msg) - luma(photo()[..., ::-1])).max() <= 1


def test_an_orientation_in_the_exif_data_does_not_turn_the_image() -> None:
    plain = compressed(photo(), ".jpg").data.tobytes()
    # APP1 segment: little-endian TIFF with one entry, orientation (0x112) = 6, which viewers rotate by 90 degrees.
    tiff = b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    turned = plain[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + plain[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (
        160,
        120,
    )  # rotated
    assert decode_compressed(SimpleNamespace(format="jpeg", data=turned)).shape == (120, 160)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.95, 0.999])
def test_an_image_that_was_cut_off_is_refused(extension: str, part: float) -> None:
    msg = compressed(RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8), extension)
    msg.data = msg.data[: int(len(msg.data) * part)]
    refused(msg, "compressed")


def test_a_cut_off_jpeg_with_a_whole_thumbnail_inside_is_refused() -> None:
    whole, thumbnail = compressed(photo(), ".jpg").data.tobytes(), compressed(photo()[:16, :16], ".jpg").data.tobytes()
    body = b"Exif\0\0" + thumbnail
    data = whole[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + whole[2:]
    assert decode_compressed(SimpleNamespace(format="jpeg", data=data)).shape == (120, 160)
    refused(SimpleNamespace(format="jpeg", data=data[:-200]), "compressed", "end-of-image")


def test_padding_after_a_jpeg_is_no_fault() -> None:
    msg = compressed(photo(), ".jpg")
    msg.data.extend([0] * 512)
    assert decode_compressed(msg).shape == (120, 160)


def test_a_png_with_one_wrong_byte_is_refused() -> None:
    msg = compressed(photo(), ".png")
    msg.data[len(msg.data) // 2] ^= 1
    refused(msg, "compressed", "checksum")


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"hello", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n", b"II*\0", b"BM"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    refused(SimpleNamespace(format="jpeg", data=data), "compressed", "'jpeg'")


def test_random_damage_is_refused_or_decoded_but_nothing_else_happens() -> None:
    for extension in (".jpg", ".png", ".webp"):
        good = compressed(photo(), extension).data
        for _ in range(40):
            data = array.array("B", good)
            for _ in range(3):
                data[int(RNG.integers(len(data)))] = int(RNG.integers(256))
            with contextlib.suppress(ImageError):
                assert decode_compressed(SimpleNamespace(format="x", data=data)).dtype == np.uint8


def test_a_jpeg_that_claims_an_absurd_size_is_refused_before_memory_is_taken() -> None:
    data = compressed(photo(), ".jpg").data.tobytes()
    start = data.index(b"\xff\xc0") + 5
    huge = data[:start] + b"\xff\xff\xff\xff" + data[start + 4 :]
    refused(SimpleNamespace(format="jpeg", data=huge), "compressed", "65535x65535", str(MAX_PIXELS))


@pytest.mark.parametrize("name", ["16UC1; compressedDepth", "32FC1; compressedDepth png", "16UC1; compressedDepth rvl"])
def test_compressed_depth_is_refused_as_depth(name: str) -> None:
    refused(SimpleNamespace(format=name, data=b"\0" * 64), "compressed", "depth")


# --- depth


def depth_sample(encoding: str) -> NDArray[Any]:
    """Values as sensors send them, including holes."""
    if encoding == "16UC1":
        values = RNG.integers(400, 9000, (HEIGHT, WIDTH)).astype(np.uint16)
        values[0, :3] = 0, 65535, 1234
    else:
        values = RNG.uniform(0.4, 9.0, (HEIGHT, WIDTH)).astype(np.float32)
        values[0, :4] = 0, np.nan, np.inf, 1.234
    return values


@pytest.mark.parametrize("big", [False, True], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("padding", [0, 1, 18])
@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_keeps_its_values_whatever_the_padding_and_byte_order(encoding: str, padding: int, big: bool) -> None:
    values = depth_sample(encoding)
    depth = decode_depth(message(values, encoding, padding, big))
    assert depth.values.dtype == values.dtype and depth.values.dtype.isnative and depth.values.flags.aligned
    assert np.array_equal(depth.values, values, equal_nan=encoding == "32FC1")


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_is_metres_and_its_holes_are_not_a_number(encoding: str) -> None:
    values = depth_sample(encoding)
    depth = decode_depth(message(values, encoding))
    metres = depth.metres(depth.values)
    hole = np.isin(values, [0, 65535]) if encoding == "16UC1" else ~np.isfinite(values) | (values == 0)
    assert np.array_equal(np.isnan(metres), hole) and hole.any()
    assert np.allclose(metres[~hole], values[~hole] * (0.001 if encoding == "16UC1" else 1.0))
    assert metres[0, 2 if encoding == "16UC1" else 3] == pytest.approx(1.234)


@pytest.mark.parametrize("padding", [0, 18])
@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_of_this_machines_byte_order_is_not_copied(encoding: str, padding: int) -> None:
    padding += -padding % 4
    msg = message(depth_sample(encoding), encoding, padding)
    assert np.shares_memory(decode_depth(msg).values, np.asarray(msg.data))


@pytest.mark.parametrize("encoding", ["mono8", "mono16", "64FC1", "16SC1", "rgb8", "", "16UC1; compressedDepth"])
def test_depth_of_another_encoding_is_refused_with_what_came_and_what_is_expected(encoding: str) -> None:
    with pytest.raises(ImageError, match=r"16UC1.*32FC1") as caught:
        decode_depth(message(np.zeros((4, 4), np.uint16), encoding))
    assert caught.value.kind == "encoding" and f"depth image of encoding '{encoding}'" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"data": b"\0" * 31}, "data", "needs 32 bytes"),
        ({"step": 7}, "size", "step is 7"),
        ({"width": 0}, "size", "0x4 depth image"),
        ({"height": 2**31, "width": 2**31}, "size", "driver"),
        ({"data": "text"}, "data", "uint8[]"),
    ],
)
def test_depth_whose_fields_contradict_each_other_is_refused(fields: dict[str, Any], kind: str, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_depth(message(np.zeros((4, 4), np.uint16), "16UC1", **fields))
    assert caught.value.kind == kind and words in str(caught.value)
