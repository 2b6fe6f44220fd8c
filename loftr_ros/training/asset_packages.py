"""Assets from Debian's packages of wallpapers and game textures: downloaded by apt, unpacked, never installed."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loftr_ros.training.assets import (
    PHOTO,
    TEXTURE,
    AssetError,
    AssetWriter,
    Image,
    Origin,
    decode,
    default_folder,
    images_in,
    is_image,
)

_LOG = logging.getLogger(__name__)

# Files that show no surface: maps of normals, gloss, height and light, fonts, icons and user interfaces.
_NOT_PICTURES = re.compile(
    r"(norm(al)?|_nm|_n|nrm|gloss|spec(ular)?|_s|glow|_gm|bump|height|mask|shadow|light(map)?|luma|blend|shirt|pants"
    r"|reflect)\.[a-z]+$|_(up|dn)\.[a-z]+$|/(gui|icons?|hud|fonts?|particles|gfx|doc|effects?|editor|common|pics)/",
    re.IGNORECASE,
)
_ARCHIVES = {".pk3", ".zip"}


@dataclass(frozen=True)
class Package:
    """A package with usable images.

    Attributes:
        name: in apt.
        kind: of its images; see `assets.Asset`.
        only: a regular expression that the images' paths must match.
        most: maximum number of images.
        a_series: maximum number of images per series (names that differ only in numbers).
    """

    name: str
    kind: str
    only: str = ""
    most: int = 1500
    a_series: int = 1000


PACKAGES = (
    Package("plasma-workspace-wallpapers", PHOTO, r"/images"),
    Package("gnome-backgrounds", PHOTO),
    Package("mate-backgrounds", PHOTO),
    Package("ukui-wallpapers", PHOTO),
    Package("lomiri-wallpapers-16.04", PHOTO),
    Package("lomiri-wallpapers-20.04", PHOTO),
    Package("lxqt-themes", PHOTO, r"wallpaper"),
    Package("palapeli-data", PHOTO),
    Package("gcompris-qt-data", PHOTO, r"explore_|categorization|photo_hunter|details|paintings|clickgame"),
    Package("visp-images-data", PHOTO, a_series=4),  # frames of videos: some of each
    Package("trigger-rally-data", TEXTURE, most=300),
    Package("supertuxkart-data", TEXTURE),
    Package("openarena-081-textures", TEXTURE, r"textures/|env/"),
    Package("nexuiz-textures", TEXTURE),
    Package("ufoai-textures", TEXTURE, r"textures/"),
)


def fetch_assets(
    folder: Path | None = None,
    packages: Sequence[Package] = PACKAGES,
    downloads: Path | None = None,
) -> list[Origin]:
    """Download packages by apt, and keep their images as assets (about 2 GB to download, 1 GB kept).

    Args:
        folder: for the assets; None: the default one in the user's cache.
        packages: to download; one unknown to apt is skipped with a warning.
        downloads: folder that keeps the downloaded packages and is used as a cache; None: they are deleted.

    Returns:
        The origin of the images; the same is in `LICENCES.md` beside them.

    Raises:
        AssetError: apt is missing, nothing could be downloaded, or `folder` cannot be written.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise AssetError(f"{tool} is not installed: give a folder of photos instead of Debian's packages")
    with (
        tempfile.TemporaryDirectory(prefix="loftr_ros_assets_") as scratch,
        AssetWriter(folder or default_folder()) as out,
    ):
        origins = []
        for package in packages:
            try:
                archive = _download(package.name, downloads or Path(scratch) / "packages")
            except AssetError as error:
                _LOG.warning("%s", error)
                continue
            unpacked = Path(scratch) / package.name
            _run(["dpkg-deb", "-x", str(archive), str(unpacked)])
            version = _run(["dpkg-deb", "-f", str(archive), "Version"]).strip()
            origin = Origin(package.name, version, _licence(unpacked / "usr/share/doc" / package.name / "copyright"))
            origins.append(out.add_all(origin, package.kind, _pictures(unpacked, package), package.most))
            _LOG.info("%s: %d images", package.name, origins[-1].images)
            shutil.rmtree(unpacked)
            if downloads is None:
                archive.unlink()
        return origins


def _download(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{name}_*.deb"
    if not any(folder.glob(pattern)):
        _run(["apt-get", "download", "-q", name], folder)
    found = sorted(folder.glob(pattern))
    if not found:
        raise AssetError(f"apt-get downloaded nothing for the package {name}")
    return found[-1]


def _run(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AssetError(f"`{' '.join(command)}` failed: {last} (is `apt-get update` needed?)")
    return done.stdout


def _licence(copyright_file: Path) -> str:
    """The licences named in a package's copyright file, in short form."""
    text = copyright_file.read_text(errors="replace") if copyright_file.is_file() else ""
    names = sorted({line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("License:")} - {""})
    return ", ".join(names) or f"see {copyright_file.name} of the package"


def _pictures(unpacked: Path, package: Package) -> Iterator[tuple[str, Image]]:
    taken: dict[str, int] = {}
    for name, image in _all_pictures(unpacked):
        series = re.sub(r"\d+", "", name)
        if re.search(package.only, name) and not _NOT_PICTURES.search("/" + name):
            taken[series] = taken.get(series, 0) + 1
            if taken[series] <= package.a_series:
                yield name, image


def _all_pictures(unpacked: Path) -> Iterator[tuple[str, Image]]:
    yield from images_in(unpacked)
    for file in sorted(unpacked.rglob("*")):
        where = str(file.relative_to(unpacked))
        if file.suffix in _ARCHIVES and file.is_file():
            with zipfile.ZipFile(file) as archive:
                for name in sorted(archive.namelist()):
                    image = decode(archive.read(name)) if is_image(name) else None
                    if image is not None:
                        yield f"{where}/{name}", image
        elif file.suffix == ".rcc":
            for data in _embedded(file.read_bytes()):
                image = decode(data)
                if image is not None:
                    yield f"{where}/{hashlib.sha256(data).hexdigest()[:16]}", image


def _embedded(resources: bytes) -> Iterator[bytes]:
    """Image files in a Qt resource file, which stores them unchanged, each after its length."""
    for match in re.finditer(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP", resources, re.DOTALL):
        start = match.start()
        if start >= 4:
            (length,) = struct.unpack(">I", resources[start - 4 : start])
            if 10_000 < length <= len(resources) - start:
                yield resources[start : start + length]
