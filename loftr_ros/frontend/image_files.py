"""Checks of encoded images before decoding: claimed size and completeness. Decoders check neither."""

from __future__ import annotations

import re
import zlib
from typing import Literal

# A header that claims more than this (16384x8192) is wrong, and must not cause gigabytes of allocation.
MAX_PIXELS = 1 << 27


class ImageError(ValueError):
    """An unusable image message. The message says what is wrong, where, and what to do.

    Attributes:
        kind: `encoding` (unknown, or without a gray equivalent), `size` (width, height and step disagree), `data` (too
            short, or not bytes), or `compressed` (corrupt, truncated, or of another format).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def check_size(data: bytes, where: str) -> None:
    """Refuse an image file with an absurd claimed size, before a decoder allocates memory for it.

    Raises:
        ImageError: the size is absurd.
    """
    width, height = claimed_size(data)
    if width * height > MAX_PIXELS:
        raise ImageError("compressed", f"{where} claims {width}x{height} pixels; at most {MAX_PIXELS} are accepted")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data, where, f"{where} was cut off: {{}} after {len(data)} bytes")


def claimed_size(data: bytes) -> tuple[int, int]:
    """(width, height) from an image file's header; zeros if it is not understood."""
    if data.startswith(b"\x89PNG"):
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data.startswith(b"\xff\xd8"):
        return _jpeg_header(data)[0]
    if data.startswith(b"BM"):
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width), abs(height)
    if data[:1] == b"P" and (
        found := re.match(rb"P\d(?:\s+|#[^\n]*\n)+(\d{1,12})(?:\s+|#[^\n]*\n)+(\d{1,12})\s", data)
    ):
        return int(found[1]), int(found[2])
    if data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    if data.startswith((b"II*\0", b"MM\0*")):
        return _tiff_size(data)
    return 0, 0


def _tiff_size(data: bytes) -> tuple[int, int]:
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    at = int.from_bytes(data[4:8], order)
    found = {}
    for number in range(int.from_bytes(data[at : at + 2], order)):
        entry = data[at + 2 + 12 * number : at + 14 + 12 * number]
        if len(entry) < 12:
            break
        short = int.from_bytes(entry[2:4], order) == 3
        found[int.from_bytes(entry[:2], order)] = int.from_bytes(entry[8 : 10 if short else 12], order)
    return found.get(256, 0), found.get(257, 0)


def _check_png(data: bytes, where: str, cut: str) -> None:
    """Verify the checksum of every PNG chunk; otherwise OpenCV would allocate whatever a damaged length claims."""
    position, kind = 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            raise ImageError("compressed", cut.format("a PNG without its end chunk"))
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ImageError("compressed", f"{where} is damaged: a PNG chunk at byte {position} fails its checksum")
        position = end


def check_complete(data: bytes, where: str) -> None:
    """Refuse data that is not an image, is too large, or is truncated: decoders fill missing parts with gray."""
    cut = f"{where} was cut off: {{}} after {len(data)} bytes; check the network, or the publisher's buffer"
    if not data:
        raise ImageError("compressed", f"{where} is empty: it has no data")
    if data.startswith(b"\xff\xd8\xff"):
        size, scan = _jpeg_header(data)
        # A scan never contains this marker, because 0xff is stuffed in it. Some cameras send padding after it.
        if scan is None or data.rfind(b"\xff\xd9") < scan:
            raise ImageError("compressed", cut.format("a JPEG without its end-of-image marker"))
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        size = (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
        _check_png(data, where, cut)
    elif data.startswith((b"II*\0", b"MM\0*", b"BM")) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        size = claimed_size(data)  # OpenCV returns nothing for these when they are truncated
    else:
        raise ImageError(
            "compressed",
            f"{where} begins with {data[:4].hex(' ')}, which is no JPEG, PNG, TIFF, WebP or BMP; "
            "have image_transport publish jpeg or png",
        )
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError("compressed", f"{where} claims {size[0]}x{size[1]} pixels; at most {MAX_PIXELS} are accepted")


def _jpeg_header(data: bytes) -> tuple[tuple[int, int], int | None]:
    """(width, height) of a JPEG and the offset of its first scan; None if there is none.

    Segments are skipped, because the thumbnail in one of them has its own end-of-image marker.
    """
    size, position = (0, 0), 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:
            return size, position
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[position + i : position + i + 2], "big") for i in (5, 7))
            size = (width, height)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return size, None
