"""Published benchmarks of image pairs, read from their published folders: HPatches, ScanNet-1500, MegaDepth-1500."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Sequences of HPatches with images too large for most networks of their time, left out since D2-Net's evaluation.
_LEFT_OUT = frozenset(("i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding", "v_artisans",
                       "v_astronautis", "v_talent"))  # fmt: skip
# Lists of pairs: SuperGlue's for ScanNet (two rotations of images, K0, K1, T_1_0), and those of glue-factory (K0, K1, R
# and t of T_1_0).
_LISTS = ("pairs_calibrated.txt", "scannet_test_pairs_with_gt.txt")
_EXPECTED = (
    "expected HPatches (folders i_* and v_* with 1.ppm to 6.ppm and H_1_2 to H_1_6), ScanNet-1500 (LoFTR's test.npz "
    "and intrinsics.npz beside the scenes, or SuperGlue's scannet_test_pairs_with_gt.txt) or a list "
    "pairs_calibrated.txt, as glue-factory has them of ScanNet-1500 and MegaDepth-1500"
)


class PairSetError(RuntimeError):
    """What cannot be read; says where, and what was expected."""


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two images and what is known of them.

    Attributes:
        name: for messages.
        image0, image1: files.
        size: (width, height) in pixels that both are resized to, which the cameras are of; None for their own.
        camera0, camera1: (3, 3) camera matrices; None for a homography.
        truth: (4, 4) T_1_0, or the (3, 3) homography from pixels of image 0 to those of image 1.
    """

    name: str
    image0: Path
    image1: Path
    truth: Array
    camera0: Array | None = None
    camera1: Array | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class PairSet:
    """A benchmark.

    Attributes:
        name: as published.
        pairs: in the published order.
        side: pixels that the longer side has in the papers' evaluations; of the shorter side for a negative number; 0
            for images as they are.
    """

    name: str
    pairs: Sequence[ImagePair]
    side: int = 0


def open_pair_set(folder: Path) -> PairSet | None:
    """The benchmark in a folder; None if there is none.

    Raises:
        PairSetError: there is one, but a part of it cannot be read.
    """
    if any((each / "H_1_2").is_file() for each in folder.glob("[iv]_*")):
        return PairSet("HPatches", list(_hpatches(folder)), -480)
    try:
        if (folder / "test.npz").is_file() and (folder / "intrinsics.npz").is_file():
            return PairSet("ScanNet-1500", list(_scannet(folder)), 640)
        for name in _LISTS:
            if (folder / name).is_file():
                pairs = list(_listed(folder, folder / name))
                is_megadepth = "megadepth" in folder.resolve().name.lower()
                return PairSet(
                    "MegaDepth-1500" if is_megadepth else "ScanNet-1500", pairs, 840 if is_megadepth else 640
                )
    except (OSError, ValueError, KeyError, IndexError, BadZipFile) as error:
        raise PairSetError(f"{folder} holds a list of pairs that cannot be read: {error}; {_EXPECTED}") from error
    return None


def _hpatches(folder: Path) -> Iterator[ImagePair]:
    for sequence in sorted(folder.glob("[iv]_*")):
        if sequence.name in _LEFT_OUT:
            continue
        for k in range(2, 7):
            file = sequence / f"H_1_{k}"
            try:
                homography = np.loadtxt(file).reshape(3, 3)
            except (OSError, ValueError) as error:
                raise PairSetError(f"{file} is no homography of 3x3 numbers: {error}") from error
            yield ImagePair(f"{sequence.name} 1-{k}", sequence / "1.ppm", sequence / f"{k}.ppm", homography)


def _scannet(folder: Path) -> Iterator[ImagePair]:
    cameras = dict(np.load(folder / "intrinsics.npz", allow_pickle=False))
    for number, part, stem0, stem1 in np.load(folder / "test.npz", allow_pickle=False)["name"]:
        scene = f"scene{int(number):04d}_{int(part):02d}"
        poses = [np.loadtxt(folder / scene / "pose" / f"{stem}.txt").reshape(4, 4) for stem in (stem0, stem1)]
        image0, image1 = (folder / scene / "color" / f"{stem}.jpg" for stem in (stem0, stem1))
        camera = np.asarray(cameras[scene], np.float64)[:3, :3]
        truth = np.linalg.inv(poses[1]) @ poses[0]
        yield ImagePair(f"{scene} {stem0}-{stem1}", image0, image1, truth, camera, camera, (640, 480))


def _listed(folder: Path, file: Path) -> Iterator[ImagePair]:
    images = folder / "images" if (folder / "images").is_dir() else folder
    for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        entries = text.split()
        if not entries:
            continue
        numbers = np.array(entries[2:], np.float64)
        truth, size = np.eye(4), None
        if len(numbers) == 36:  # SuperGlue's: of images of 640x480
            if numbers[:2].any():
                raise PairSetError(f"{file}, line {line} wants rotated images, which ScanNet-1500 has none of")
            cameras, truth, size = numbers[2:20], numbers[20:].reshape(4, 4), (640, 480)
        elif len(numbers) == 30:
            cameras = numbers[:18]
            truth[:3, :3], truth[:3, 3] = numbers[18:27].reshape(3, 3), numbers[27:]
        else:
            raise PairSetError(f"{file}, line {line} has {len(entries)} entries; expected 38 (SuperGlue) or 32")
        camera0, camera1 = cameras.reshape(2, 3, 3)
        yield ImagePair(f"{entries[0]} {entries[1]}", images / entries[0], images / entries[1], truth,
                        camera0, camera1, size)  # fmt: skip
