"""The catalogue of published weights: description, addresses and digests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_HUGGING_FACE = "https://huggingface.co/kornia/loftr/resolve/main/"
_CTU = "https://cmp.felk.cvut.cz/~mishkdmy/models/"
_EFFICIENT = "https://huggingface.co/zju-community/efficientloftr"
_LOW_END = "https://github.com/Kolkir/Coarse_LoFTR_TRT"
# Files of a commit never change.
_LOW_END_FILES = "https://raw.githubusercontent.com/Kolkir/Coarse_LoFTR_TRT/7533d39c232e9fd17d4abafa68adfc612d0fe6a2/"
# The folder that the README of github.com/zju3dv/LoFTR links to; Google Drive has no plain addresses of files.
_OFFICIAL = "https://drive.google.com/drive/folders/1DOcOPZb3-5cWxLqn256AhwUVjBPifhuf"


@dataclass(frozen=True)
class Entry:
    """One published weights file.

    Attributes:
        name: the user's name for it.
        network: its preset.
        file: its name in the cache, and at its source unless that name is meaningless.
        trained_on: training data, and other differences.
        page: its web page.
        urls: addresses of the file, the preferred first; empty if it must be downloaded by hand.
        size: in bytes, if known.
        sha256: of the file, if known.
        official_file: name of the authors' own file of these weights, which is searched for too.
    """

    name: str
    network: str
    file: str
    trained_on: str
    page: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    official_file: str | None = None

    def cache_path(self) -> Path:
        """Place of the file in the cache, present or not."""
        return cache_folder() / self.file

    def cached(self) -> Path | None:
        """The file in the cache; None if it is not there."""
        names = [self.file, *([self.official_file] if self.official_file else [])]
        return next((path for name in names if (path := cache_folder() / name).is_file()), None)


def _of_kornia(name: str, network: str, file: str, trained_on: str, **known: str | int) -> Entry:
    return Entry(
        name=name,
        network=network,
        file=file,
        trained_on=trained_on,
        page="https://huggingface.co/kornia/loftr",
        urls=(_HUGGING_FACE + file, _CTU + file),
        **known,  # type: ignore[arg-type]
    )


def _of_low_end(name: str, file: str, trained_on: str, sha256: str) -> Entry:
    return Entry(
        name=name,
        network="coarse_lite",
        file=file,
        trained_on=trained_on,
        page=f"{_LOW_END}/tree/main/weights",
        urls=(f"{_LOW_END_FILES}weights/{file}", f"{_LOW_END}/raw/main/weights/{file}"),
        size=1_759_819,
        sha256=sha256,
    )


# Among several entries of one network, the first is the default. Digests of outdoor and indoor_new are in
# matcher/checkpoints/recognition.py with their sources; they are also those of the official outdoor_ds.ckpt and
# indoor_ds_new.ckpt. The low-end network's are of the files in its repository at the commit above. Without a digest
# here, the one that Hugging Face sends with a file is compared.
CATALOGUE: tuple[Entry, ...] = (
    _of_kornia(
        "outdoor",
        "loftr",
        "loftr_outdoor.ckpt",
        "MegaDepth: outdoors, wide baselines",
        size=46_341_978,
        sha256="21f5bec5968178e8bc8b7633441836fe5de4f47d861dd2cd7dc38e271b0479ec",
        official_file="outdoor_ds.ckpt",
    ),
    _of_kornia("indoor", "loftr", "loftr_indoor.ckpt", "ScanNet: indoors", official_file="indoor_ds.ckpt"),
    _of_kornia(
        "indoor_new",
        "loftr_new",
        "loftr_indoor_ds_new.ckpt",
        "ScanNet: indoors, trained again without the encoding's slip",
        sha256="be9ff88b323ec27889114719f668ae41aff7034b56a4c4acbd46b8b180b87ed3",
        official_file="indoor_ds_new.ckpt",
    ),
    Entry("outdoor_ot", "loftr_ot", "outdoor_ot.ckpt", "MegaDepth: outdoors, optimal transport", _OFFICIAL),
    Entry("indoor_ot", "loftr_ot", "indoor_ot.ckpt", "ScanNet: indoors, optimal transport", _OFFICIAL),
    Entry(
        name="efficient_outdoor",
        network="efficient",
        file="efficientloftr.safetensors",
        trained_on="MegaDepth: outdoors, wide baselines",
        page=_EFFICIENT,
        urls=(f"{_EFFICIENT}/resolve/main/model.safetensors",),
        official_file="eloftr_outdoor.ckpt",
    ),
    _of_low_end(
        "low_end",
        "LoFTR_teacher.pt",
        "BlendedMVS, taught by outdoor",
        "5446241c5713a91c868e0b1b2795c253b3d216b4011b6942fcc6a697fad3c554",
    ),
    _of_low_end(
        "low_end_untaught",
        "LoFTR_no_teacher.pt",
        "BlendedMVS alone",
        "2944f319be776c8ce4794ce719cc14b0a3536c667989059088b8f7c34131f253",
    ),
)


def find_entry(name: str) -> Entry | None:
    """The entry by its name, or by the authors' file name (`outdoor_ds` is `outdoor`)."""
    for entry in CATALOGUE:
        official = (entry.official_file or "").removesuffix(".ckpt")
        if name and name in (entry.name, official):
            return entry
    return None


def cache_folder(content: str = "weights") -> Path:
    """Folder of downloaded weights or other content, by the XDG base directory specification; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore relative paths.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "loftr_ros" / content
