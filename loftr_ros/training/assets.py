"""Photos and textures for training pairs: gray, with mip levels, in one file shared by worker processes.

A folder of assets has `images.u8` (all pixels, level by level), `index.json` (the index) and `LICENCES.md`. The file is
memory-mapped: all processes share one copy in memory, and nothing is decoded during training.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.weights.catalogue import cache_folder
from loftr_ros.worlds.texturing import pyramid

Image = NDArray[np.uint8]

PHOTO, TEXTURE = "photo", "texture"
HELD_OUT = 12  # one group of images in this many is for validation

_LONGER_SIDE = {PHOTO: 1024, TEXTURE: 512}
_SHORTEST_SIDE = 96
_LEAST_DEVIATION = 5.0  # gray levels; below this, an image is empty
_LAST_LEVEL = 8  # px of the shorter side of the last mip level
_NEAR_COPY = 18  # differing bits of 256 up to which two images count as near copies
_PIXELS, _INDEX, _LICENCES = "images.u8", "index.json", "LICENCES.md"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tga", ".ppm", ".pgm", ".tif", ".tiff"}


class StoredLevels(list[Image]):
    """The mip levels of an image of the store.

    Attributes:
        offset: of its first pixel in the file; its levels follow each other there.
    """

    def __init__(self, levels: Iterable[Image], offset: int) -> None:
        """Levels, the largest first."""
        super().__init__(levels)
        self.offset = offset


class AssetError(Exception):
    """Assets that cannot be fetched, read or found; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One image of the store.

    Attributes:
        name: origin and path, as in "mate-backgrounds/usr/share/...".
        kind: "photo" (a scene) or "texture" (a surface, mostly made to be tiled).
        validation: whether it is held out for validation.
        offset: of its first pixel in the file.
        sizes: (height, width) of each level, the largest first.
    """

    name: str
    kind: str
    validation: bool
    offset: int
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Origin:
    """Origin of images, for the record beside them."""

    name: str
    version: str
    licence: str
    images: int = 0
    held_out: int = 0


@dataclass
class AssetBank:
    """The images of a folder, by kind and by split. Sending it to worker processes sends only the path.

    Attributes:
        folder: with `images.u8` and `index.json`.
        validation: whether to use the held-out images, or all others.
    """

    folder: Path
    validation: bool = False
    photos: list[Asset] = field(init=False, repr=False)
    textures: list[Asset] = field(init=False, repr=False)
    _pixels: Any = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        """Read the index.

        Raises:
            AssetError: the folder has no assets, or none of this split.
        """
        self.folder = Path(self.folder)
        every = read_index(self.folder)[0]
        chosen = [asset for asset in every if asset.validation == self.validation]
        self.photos = [asset for asset in chosen if asset.kind == PHOTO]
        self.textures = [asset for asset in chosen if asset.kind == TEXTURE] or self.photos
        self.photos = self.photos or self.textures
        if not self.photos:
            split = "validation" if self.validation else "training"
            raise AssetError(f"{self.folder} holds {len(every)} images, none of them for {split}; add more")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}

    def levels(self, asset: Asset) -> StoredLevels:
        """The (H, W) uint8 mip levels of an image, each half of the previous. They are not to be changed."""
        levels, start = [], asset.offset
        for height, width in asset.sizes:
            pixels = self.pixels[start : start + height * width]
            levels.append(np.asarray(pixels).reshape(height, width))
            start += height * width
        return StoredLevels(levels, asset.offset)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """All pixels of the folder, of both splits, as one flat array: the file, mapped into memory."""
        if self._pixels is None:
            # Copy on write: torch takes no read-only arrays. Nothing writes to it.
            self._pixels = np.memmap(self.folder / _PIXELS, np.uint8, "c")
        pixels: NDArray[np.uint8] = self._pixels
        return pixels

    def photo(self, rng: np.random.Generator) -> StoredLevels:
        """The levels of a random photo."""
        return self.levels(self.photos[int(rng.integers(len(self.photos)))])

    def texture(self, rng: np.random.Generator) -> StoredLevels:
        """The levels of a random texture."""
        return self.levels(self.textures[int(rng.integers(len(self.textures)))])


def read_index(folder: Path) -> tuple[list[Asset], list[Origin]]:
    """All images of a folder of assets, and where they come from.

    Raises:
        AssetError: the folder has no assets.
    """
    try:
        content = json.loads((folder / _INDEX).read_text())
        images = [Asset(**{**entry, "sizes": tuple(map(tuple, entry["sizes"]))}) for entry in content["images"]]
        return images, [Origin(**origin) for origin in content["origins"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssetError(f"{folder} holds no training assets ({error}); run `loftr_ros train assets`") from error


def read_image(folder: Path, asset: Asset) -> Image:
    """The (H, W) uint8 pixels of an image of a folder, without its other levels."""
    height, width = asset.sizes[0]
    pixels = np.fromfile(folder / _PIXELS, np.uint8, height * width, offset=asset.offset)
    return pixels.reshape(height, width)


def shrunk(image: Image, longer_side: int) -> Image:
    """An (H, W) uint8 image whose longer side is at most so many pixels."""
    scale = longer_side / max(image.shape)
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


class AssetWriter:
    """Adds images to a folder of assets, which gets its final name on success.

    Near copies of existing images (the same picture in another size) and images without content are skipped.
    """

    def __init__(self, folder: Path) -> None:
        """Begin; `folder` does not change before the context ends.

        Raises:
            AssetError: the folder cannot be written.
        """
        self._folder = folder
        self._partial = folder / (_PIXELS + f".{os.getpid()}.part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
        except OSError as error:
            raise AssetError(f"{folder} cannot be written: {error}") from error
        self._assets: list[Asset] = []
        self._origins: list[Origin] = []
        self._prints = np.zeros((0, 32), np.uint8)

    def __enter__(self) -> AssetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is not None or not self._assets:
            self._partial.unlink()
            if error is None:
                raise AssetError(f"nothing to keep: no usable image was found for {self._folder}")
            return
        self._partial.replace(self._folder / _PIXELS)
        images = [asdict(asset) for asset in self._assets]
        (self._folder / _LICENCES).write_text(self._licences())
        (self._folder / _INDEX).write_text(
            json.dumps({"images": images, "origins": [asdict(origin) for origin in self._origins]})
        )

    def add_all(
        self, origin: Origin, kind: str, images: Iterable[tuple[str, Image]], most: int | None = None
    ) -> Origin:
        """Add at most `most` usable images of the named gray images; returns the origin with its counts."""
        first = len(self._assets)
        for name, image in images:
            if most is not None and len(self._assets) - first >= most:
                break
            self._add(f"{origin.name}/{name}", kind, image)
        added = self._assets[first:]
        counted = Origin(
            origin.name, origin.version, origin.licence, len(added), sum(asset.validation for asset in added)
        )
        self._origins.append(counted)
        return counted

    def add_origins(self, origins: Iterable[Origin]) -> None:
        """Add to the record of where images come from."""
        self._origins += origins

    def _add(self, name: str, kind: str, image: Image) -> None:
        if min(image.shape) < _SHORTEST_SIDE or max(image.shape) > 8 * min(image.shape):
            return
        image = shrunk(image, _LONGER_SIDE[kind])
        if float(image.std()) < _LEAST_DEVIATION:
            return
        thumbnail = cv2.resize(image, (17, 16), interpolation=cv2.INTER_AREA).astype(np.int16)
        fingerprint = np.packbits(thumbnail[:, 1:] > thumbnail[:, :-1])
        if (np.unpackbits(self._prints ^ fingerprint, axis=1).sum(axis=1) <= _NEAR_COPY).any():
            return
        self._prints = np.concatenate([self._prints, fingerprint[None]])
        self.add_as_it_is(name, kind, image)

    def add_as_it_is(self, name: str, kind: str, image: Image) -> None:
        """Add an (H, W) uint8 image that was chosen before, under its full name."""
        offset, levels = self._file.tell(), pyramid(image, _LAST_LEVEL)
        for level in levels:
            self._file.write(level.tobytes())
        sizes = tuple((level.shape[0], level.shape[1]) for level in levels)
        self._assets.append(Asset(name, kind, held_out(name), offset, sizes))

    def _licences(self) -> str:
        lines = ["# Where the training images come from", "", "| origin | version | licence | images | held out |"]
        lines.append("| --- | --- | --- | --- | --- |")
        lines += [f"| {o.name} | {o.version} | {o.licence} | {o.images} | {o.held_out} |" for o in self._origins]
        return "\n".join(lines) + "\n"


def held_out(name: str) -> bool:
    """Whether an image is for validation. Names that differ only in numbers (frames, sizes) are in the same split."""
    group = re.sub(r"\d+", "", name)
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") % HELD_OUT == 0


def decode(data: bytes) -> Image | None:
    """The (H, W) uint8 gray image in the bytes of a file; None if it is not an image, transparent, or a normal map."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:
        return None
    if pixels is None:
        return None
    if pixels.dtype == np.uint16:
        pixels = (pixels // 256).astype(np.uint8)
    if pixels.dtype != np.uint8:
        return None
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        if float((pixels[..., 3] < 128).mean()) > 0.05:
            return None
        pixels = np.ascontiguousarray(pixels[..., :3])
    if pixels.ndim == 2:
        return np.asarray(pixels, np.uint8)
    if pixels.shape[2] != 3:
        return None
    # Normal maps are bluish everywhere: (128, 128, 255) is "straight up".
    blue, green, red = pixels.reshape(-1, 3)[::17].mean(axis=0)
    if blue > 200 and abs(green - 128) < 20 and abs(red - 128) < 20:
        return None
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)


def images_in(folder: Path) -> Iterator[tuple[str, Image]]:
    """The gray images of a folder and its subfolders, with their relative paths, sorted by name."""
    for file in sorted(folder.rglob("*")):
        if is_image(file.name) and file.is_file() and not file.is_symlink():
            image = decode(file.read_bytes())
            if image is not None:
                yield str(file.relative_to(folder)), image


def is_image(name: str) -> bool:
    """Whether a file name is that of an image."""
    return Path(name).suffix.lower() in _SUFFIXES


def collect_folder(photos: Path, folder: Path) -> list[Origin]:
    """Make assets from a folder of photos.

    Raises:
        AssetError: it has no usable images, or `folder` cannot be written.
    """
    if not photos.is_dir():
        raise AssetError(f"{photos} is not a folder of photos")
    with AssetWriter(folder) as writer:
        return [writer.add_all(Origin(photos.resolve().name, "", "the owner's own"), PHOTO, images_in(photos))]


def default_folder() -> Path:
    """Folder of the assets in the user's cache; it may not exist yet."""
    return cache_folder("training")
