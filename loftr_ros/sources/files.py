"""Image files in folders: which there are, in which order, and how large."""

from __future__ import annotations

import re
from pathlib import Path

import cv2

from loftr_ros.sources.images import SourceError

# Endings that are read, and what each format is called in messages.
FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".ppm": "ppm", ".pgm": "pgm", ".bmp": "bmp",
           ".tif": "tiff", ".tiff": "tiff", ".webp": "webp"}  # fmt: skip


def image_files(folder: Path) -> list[Path]:
    """Image files in natural order: 2 before 10."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in FORMATS and file.is_file()]
    return sorted(
        files,
        key=lambda file: [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"([0-9]+)", file.name)],
    )


def image_size(file: Path) -> tuple[int, int]:
    """(width, height) of an image file.

    Raises:
        SourceError: it cannot be read.
    """
    image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise SourceError(f"{file} is not an image that OpenCV can read; it is damaged or of another format")
    return image.shape[1], image.shape[0]


def numbers_of(files: list[Path], where: Path) -> list[int]:
    """The number in each file's name; without stamps they tell the time, gaps included.

    Raises:
        SourceError: there are no files, or one has none.
    """
    numbers = [re.findall(r"\d+", file.name) for file in files]
    if not files or not all(numbers):
        raise SourceError(f"{where} has {len(files)} images, not all with a number in their names")
    return [int(found[0]) for found in numbers]
