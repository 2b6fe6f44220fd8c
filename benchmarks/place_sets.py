"""Sets of images with revisited places: rendered ones, and real ones with ground truth.

A query's right answers are database images with an overlap of at least `SHARED`, at up to 30 degrees and 2 m. Those
with a small overlap are neither right nor wrong, and are left out of the query's ranking. Everything else is wrong: all
other images of the set, and of all other sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from wide_pairs import covisible

from loftr_ros.evaluation.metrics import rotation_error
from loftr_ros.training.assets import AssetBank, default_folder
from loftr_ros.training.photometric import photograph
from loftr_ros.training.place_views import place_views
from loftr_ros.worlds.revisits import TUNING, World

RIGHT, WRONG, NEITHER = 1, 0, -1
SHARED, HARDLY = 0.3, 0.05
SMALL = 8  # factor by which the views are reduced to count overlap

Array = NDArray[np.float64]
Image = NDArray[np.uint8]
Depth = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PlaceSet:
    """Queries, and the database to find them in.

    Attributes:
        name: of the set.
        database, queries: (H, W) uint8 images.
        answers: (queries, database) int8 of RIGHT, WRONG and NEITHER.
    """

    name: str
    database: list[Image]
    queries: list[Image]
    answers: NDArray[np.int8]


def all_sets(data: Path, cache: Path, quick: bool = False) -> Iterator[PlaceSet]:
    """The available sets, one after the other."""
    yield world(TUNING[1], cache)
    if default_folder().is_dir():
        for kind in ("room", "street", "clutter"):
            yield held_out_scenes(kind, 30 if quick else 150)
    if (data / "sevenscenes").is_dir():
        yield from sevenscenes(data / "sevenscenes")
    if (data / "kitti06_stereo").is_dir():
        yield kitti(data / "kitti06_stereo")


def world(seed: int, cache: Path) -> PlaceSet:
    """A walk through a building with twin rooms: views of the second tour are searched for among those of the first."""
    made = World(seed, cache=cache)
    relations = made.relations
    kept = np.flatnonzero(made.tours == 0)
    asked = np.flatnonzero((made.tours == 1) & relations.is_revisit[:, kept].any(axis=1))
    pairs = np.ix_(asked, kept)
    answers = np.full((len(asked), len(kept)), NEITHER, np.int8)
    answers[relations.is_other_place[pairs]] = WRONG
    answers[relations.is_revisit[pairs]] = RIGHT
    images = [view.image for view in made.views()]
    return PlaceSet(f"world {seed}", [images[i] for i in kept], [images[i] for i in asked], answers)


def held_out_scenes(kind: str, places: int) -> PlaceSet:
    """Scenes of the training's renderer, of photos and textures held out of training; two views each."""
    bank = AssetBank(default_folder(), validation=True)
    pairs = [
        place_views(bank, np.random.default_rng([77_000_000, number, len(kind)]), 2, kind=kind)
        for number in range(places)
    ]
    answers = np.eye(places, dtype=np.int8) * RIGHT
    return PlaceSet(f"{kind}, held out", [pair[0] for pair in pairs], [pair[1] for pair in pairs], answers)


def sevenscenes(folder: Path) -> Iterator[PlaceSet]:
    """A hand-held stretch: every eighth frame is the database; frames less than a second apart are left out."""
    matrix = np.loadtxt(folder / "camera-intrinsics.txt")
    matrix[:2, :2] *= 545 / 585  # fits the colour images
    names = sorted(file.name.split(".")[0] for file in folder.glob("*.color.jpg"))
    images = [_gray(folder / f"{name}.color.jpg") for name in names]
    poses = [np.loadtxt(folder / f"{name}.pose.txt") for name in names]
    small = np.diag([1 / SMALL, 1 / SMALL, 1.0]) @ matrix
    depths = []
    for name in names:
        raw = cv2.imread(str(folder / f"{name}.depth.png"), cv2.IMREAD_UNCHANGED)
        assert raw is not None
        metres = np.asarray(raw[SMALL // 2 :: SMALL, SMALL // 2 :: SMALL], np.float32) / 1000
        metres[(metres == 0) | (metres > 60)] = np.nan
        depths.append(metres)
    kept, asked = range(0, len(names), 8), [i for i in range(len(names)) if i % 8 == 4]
    seen = list(zip(poses, depths, strict=True))
    answers = _answers(small, [seen[i] for i in asked], [seen[i] for i in kept])
    for row, i in enumerate(asked):
        for column, j in enumerate(kept):
            if abs(i - j) < 30:
                answers[row, column] = NEITHER
    database = [images[i] for i in kept]
    yield PlaceSet("7-Scenes", database, [images[i] for i in asked], answers)
    rng = np.random.default_rng(42)
    yield PlaceSet("7-Scenes, changed", database, [_photograph(images[i], rng, 1.0) for i in asked], answers)


def kitti(folder: Path) -> PlaceSet:
    """A drive: every second left image is the database, right images are searched for, 3 to 10 m from there."""
    poses = np.loadtxt(folder / "poses.txt").reshape(-1, 3, 4)
    left, right = (sorted((folder / side).iterdir()) for side in ("image_l", "image_r"))
    kept, asked = range(0, len(left), 2), range(1, len(left), 2)
    rng = np.random.default_rng(43)
    answers = np.zeros((len(asked), len(kept)), np.int8)
    for row, i in enumerate(asked):
        for column, j in enumerate(kept):
            way = float(np.linalg.norm(poses[i][:, 3] - poses[j][:, 3]))
            answers[row, column] = RIGHT if 3 <= way <= 10 else WRONG if way > 25 else NEITHER
    return PlaceSet(
        "KITTI 06",
        [_shrunk(_gray(left[j])) for j in kept],
        [_photograph(_shrunk(_gray(right[i])), rng, 0.7) for i in asked],
        answers,
    )


def _answers(matrix: Array, asked: list[tuple[Array, Depth]], kept: list[tuple[Array, Depth]]) -> NDArray[np.int8]:
    answers = np.full((len(asked), len(kept)), WRONG, np.int8)
    for row, (pose, depth) in enumerate(asked):
        for column, (other, other_depth) in enumerate(kept):
            angle = rotation_error(pose[:3, :3], other[:3, :3])
            if angle > 90:
                continue
            there = covisible(matrix, depth, pose, other_depth, other)
            back = covisible(matrix, other_depth, other, depth, pose)
            near = angle <= 30 and np.linalg.norm(pose[:3, 3] - other[:3, 3]) <= 2
            if near and min(there, back) >= SHARED:
                answers[row, column] = RIGHT
            elif max(there, back) >= HARDLY:
                answers[row, column] = NEITHER
    return answers


def _photograph(image: Image, rng: np.random.Generator, strength: float) -> Image:
    return photograph(image, rng, strength, softness=0.0)[0]


def _gray(path: Path) -> Image:
    image: Any = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    return np.asarray(image, np.uint8)


def _shrunk(image: Image, longer: int = 960) -> Image:
    """Resize as in the front end."""
    scale = longer / max(image.shape)
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
