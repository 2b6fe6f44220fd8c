"""Training assets in one small file, to take to another machine: JPEGs of a working size in a zip archive."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from loftr_ros.training.assets import (
    PHOTO,
    TEXTURE,
    Asset,
    AssetError,
    AssetWriter,
    Origin,
    read_image,
    read_index,
    shrunk,
)
from loftr_ros.weights.catalogue import cache_folder
from loftr_ros.whole_files import replacing

# Longer sides in a pack, in pixels.
SIDES = {PHOTO: 768, TEXTURE: 256}
# A pack is smaller than this, in bytes: as large as fits beside a working tree that is sent to another machine.
LIMIT = 48_000_000
# The best quality with which it is small enough.
_QUALITIES = (85, 75, 65, 50, 35)
_INDEX = "index.json"


def write_pack(folder: Path, file: Path, limit: int = LIMIT) -> tuple[int, int]:
    """Write the assets of a folder, of both splits, smaller.

    Args:
        folder: of assets.
        file: to write.
        limit: most bytes of the file.

    Returns:
        Number of images, and the JPEGs' quality.

    Raises:
        AssetError: the folder holds no assets, they do not fit, or the file cannot be written.
    """
    images, origins = read_index(folder)
    for quality in _QUALITIES:
        coded = _coded(folder, images, quality, limit)
        if coded is None:
            continue
        about = {"origins": [asdict(origin) for origin in origins], "names": [[a.kind, a.name] for a in images]}
        try:
            with replacing(file) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
                # One fixed time, so that the same assets give the same file.
                archive.writestr(zipfile.ZipInfo(_INDEX), json.dumps(about), zipfile.ZIP_DEFLATED)
                for number, data in enumerate(coded):
                    archive.writestr(zipfile.ZipInfo(f"{number:05d}.jpg"), data)
        except OSError as error:
            raise AssetError(f"{file} cannot be written: {error}") from error
        return len(images), quality
    raise AssetError(f"{len(images)} images of {folder} do not fit into {limit / 1e6:g} MB; use fewer photos")


def unpacked(file: Path, folder: Path | None = None) -> Path:
    """The folder of assets of a pack, made when it is first asked for.

    Args:
        file: from `write_pack`.
        folder: by default one in the user's cache, by the content of the file.

    Raises:
        AssetError: the file is missing or is no pack.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise AssetError(f"{file} cannot be read: {error}") from error
    folder = folder or cache_folder("training_packs") / hashlib.sha256(content).hexdigest()[:16]
    if (folder / _INDEX).is_file():
        return folder
    try:
        with zipfile.ZipFile(file) as archive, AssetWriter(folder) as writer:
            about = json.loads(archive.read(_INDEX))
            for number, (kind, name) in enumerate(about["names"]):
                data = np.frombuffer(archive.read(f"{number:05d}.jpg"), np.uint8)
                writer.add_as_it_is(name, kind, np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8))
            writer.add_origins(Origin(**origin) for origin in about["origins"])
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, cv2.error) as error:
        raise AssetError(f"{file} is no pack of training assets ({error})") from error
    return folder


def _coded(folder: Path, images: Sequence[Asset], quality: int, limit: int) -> list[bytes] | None:
    """The JPEGs; None if they are larger than the limit."""
    coded, size = [], 0
    for asset in images:
        image = shrunk(read_image(folder, asset), SIDES[asset.kind])
        coded.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
        size += len(coded[-1]) + 200  # and the archive's own entry
        if size > limit:
            return None
    return coded
