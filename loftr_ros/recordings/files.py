"""Image files in folders: which files, in which order, and of which size."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2

from loftr_ros.recordings.images import EncodedImage, SourceError, read_pixels
from loftr_ros.recordings.stamps import read_names
from loftr_ros.text_files import what_it_is

# Supported file endings, and the name of each format in messages.
FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".ppm": "ppm", ".pgm": "pgm", ".bmp": "bmp",
           ".tif": "tiff", ".tiff": "tiff", ".webp": "webp"}  # fmt: skip
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"II*\0", b"MM\0*", b"BM", b"RIFF", *(b"P%d" % k for k in range(1, 8)))


@dataclass
class ImageFolder:
    """The image files of a folder.

    Attributes:
        files: in natural order: 2 before 10.
        hidden: skipped names that begin with a dot and have an image's ending.
        foreign: skipped files with an image's ending whose first bytes are not an image's.
        kinds: kinds of the foreign ones, if known.
    """

    files: list[Path] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    @property
    def notes(self) -> list[str]:
        """The skipped files, for people."""
        found = []
        if self.hidden:
            found.append(f"{len(self.hidden)} hidden files were skipped ({self.hidden[0]})")
        if self.foreign:
            kinds = f", {'; '.join(sorted(self.kinds))}" if self.kinds else ""
            found.append(f"{len(self.foreign)} files that are not images were skipped ({self.foreign[0]}{kinds})")
        return found


def image_folder(folder: Path) -> ImageFolder:
    """The image files of a folder, by their endings and their first bytes.

    Raises:
        SourceError: it cannot be read.
    """
    found = ImageFolder()
    try:
        for file in sorted(folder.iterdir(), key=natural):
            if file.suffix.lower() not in FORMATS or not file.is_file():
                continue
            if file.name.startswith("."):  # macOS leaves ._NAME.jpg beside NAME.jpg on other file systems
                found.hidden.append(file.name)
                continue
            with file.open("rb") as opened:
                head = opened.read(64)
            if head.startswith(_MAGIC):
                found.files.append(file)
            else:
                found.foreign.append(file.name)
                if (kind := what_it_is(head)) is not None:
                    found.kinds.add(kind)
                elif not head:
                    found.kinds.add("empty")
    except OSError as error:
        raise SourceError(f"{folder} cannot be read: {error.strerror or error}") from error
    return found


def image_files(folder: Path) -> list[Path]:
    """Image files in natural order: 2 before 10. Hidden files and files that are not images are skipped.

    Raises:
        SourceError: the folder cannot be read.
    """
    return image_folder(folder).files


def natural(file: Path) -> list[tuple[int, int, str]]:
    """Sort key for natural order: 2 before 10."""
    return [
        (0, int(part), "") if part.isdecimal() and len(part) < 1000 else (1, 0, part)
        for part in re.split(r"([0-9]+)", file.name)
    ]


def ignored_properties(file: Path) -> list[str]:
    """Properties of an image file that are ignored, for people: rotation and transparency."""
    try:
        with file.open("rb") as opened:
            head = opened.read(1 << 16)
    except OSError:
        return []
    if head.startswith(b"\x89PNG") and head[25:26] in (b"\x04", b"\x06"):
        return ["images have transparency, which is ignored (give pixels to ignore by --mask)"]
    orientation = exif_orientation(head)
    if orientation not in (0, 1):
        return [
            f"images have EXIF data that would rotate or mirror them (orientation {orientation}). It is ignored: the "
            "calibration is of the pixels as they are in the file"
        ]
    return []


def exif_orientation(head: bytes) -> int:
    """The orientation in a JPEG's EXIF data; 0 without."""
    start = head.find(b"Exif\0\0")
    if not head.startswith(b"\xff\xd8") or start < 0:
        return 0
    tiff = head[start + 6 :]
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    at = int.from_bytes(tiff[4:8], order)
    for number in range(int.from_bytes(tiff[at : at + 2], order)):
        entry = tiff[at + 2 + 12 * number : at + 14 + 12 * number]
        if len(entry) < 12:
            return 0
        if int.from_bytes(entry[:2], order) == 0x0112:
            return int.from_bytes(entry[8:10], order)
    return 0


def image_size(file: Path) -> tuple[int, int]:
    """(width, height) of an image file.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror or error}") from error
    image = read_pixels(EncodedImage(data, "", str(file)), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    return image.shape[1], image.shape[0]


def numbers_of(files: list[Path], where: Path) -> list[int]:
    """The varying number in each file's name, in the files' order: a count, or a time in nanoseconds.

    Raises:
        SourceError: there are no files, one has no number, or two have the same.
    """
    return numbered(files, where)[0]


def numbered(files: list[Path], where: Path) -> tuple[list[int], bool]:
    """As `numbers_of`, and whether the numbers are times in nanoseconds."""
    names = read_names([file.stem for file in files], str(where))
    numbers = [0] * len(files)
    for place, number in zip(names.order, names.stamps or names.numbers, strict=True):
        numbers[place] = number
    if len(set(numbers)) < len(numbers):
        twice, _ = Counter(numbers).most_common(1)[0]
        which = [file.name for file, number in zip(files, numbers, strict=True) if number == twice]
        raise SourceError(
            f"{where} has several images of number {twice} ({which[0]}, {which[1]}; using {names.what}); expected "
            "one of each"
        )
    return numbers, names.stamps is not None
