"""Text files of visual localisation: pairs of images, queries with their cameras, and poses of results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros import whole_files
from loftr_ros.geometry.se3 import from_quaternion, quaternion_of
from loftr_ros.text_files import TextFileError, read_text

Array = NDArray[np.float64]
Pair = tuple[str, str]

# COLMAP's camera models, and the number of parameters of each.
_CAMERA_MODELS = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "OPENCV_FISHEYE": 8,
                  "FULL_OPENCV": 12, "FOV": 5, "SIMPLE_RADIAL_FISHEYE": 4, "RADIAL_FISHEYE": 5,
                  "THIN_PRISM_FISHEYE": 12}  # fmt: skip


class LocalisationError(RuntimeError):
    """What cannot be read, written or computed; says where, and what was expected."""


@dataclass(frozen=True)
class Query:
    """An image whose pose is to be found.

    Attributes:
        name: path below the folder of images.
        model: COLMAP's name of the camera model.
        width, height: of the image, in pixels.
        parameters: of the camera, in COLMAP's order and pixels, in which (0.5, 0.5) is the centre of the first pixel.
    """

    name: str
    model: str
    width: int
    height: int
    parameters: tuple[float, ...]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside a file that replaces it once all is written; nothing is left of it after an error.

    Raises:
        LocalisationError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_files.replacing(file) as part:
            yield part
    except OSError as error:
        raise LocalisationError(f"{file} cannot be written: {error.strerror or error}") from error


def read_pairs(file: Path) -> list[Pair]:
    """Pairs of images' names, one pair a line; each pair once, in the order and direction of its first line.

    Raises:
        LocalisationError: the file cannot be read, holds no pair, or a line that is none.
    """
    found = dict[Pair, None]()
    for line, entries in _lines(file):
        if len(entries) != 2:
            raise LocalisationError(f"{file}, line {line} has {len(entries)} entries; expected two images' names")
        name0, name1 = entries
        for name in entries:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise LocalisationError(f"{file}, line {line}: {name} is no path below the folder of images")
        if name0 == name1:
            raise LocalisationError(f"{file}, line {line} pairs {name0} with itself")
        if (name1, name0) not in found:
            found[name0, name1] = None
    if not found:
        raise LocalisationError(f"{file} holds no pairs; expected two images' names a line")
    return list(found)


def write_pairs(file: Path, pairs: Sequence[Pair]) -> None:
    """Write what `read_pairs` reads.

    Raises:
        LocalisationError: the file cannot be written.
    """
    _write(file, (f"{name0} {name1}" for name0, name1 in pairs))


def read_queries(files: Sequence[Path]) -> list[Query]:
    """Queries with cameras: `name MODEL width height parameters...` a line; lines that begin with # are comments.

    Raises:
        LocalisationError: a file cannot be read, or a line is no such query, or a name appears twice.
    """
    found = dict[str, Query]()
    for file in files:
        for line, entries in _lines(file):
            where = f"{file}, line {line}"
            if len(entries) < 5:
                raise LocalisationError(f"{where} has {len(entries)} entries; expected `name MODEL width height ...`")
            name, model = entries[:2]
            if model not in _CAMERA_MODELS:
                raise LocalisationError(f"{where}: {model} is no camera model; known are {', '.join(_CAMERA_MODELS)}")
            width, height, *parameters = _numbers(entries[2:], where)
            if len(parameters) != _CAMERA_MODELS[model]:
                raise LocalisationError(
                    f"{where}: {model} has {_CAMERA_MODELS[model]} parameters, and {len(parameters)} are given"
                )
            if min(width, height, parameters[0]) <= 0 or width % 1 or height % 1:
                raise LocalisationError(f"{where}: width and height must be whole numbers, and like the focal length "
                                        "above 0")  # fmt: skip
            if name in found:
                raise LocalisationError(f"{where}: {name} is listed twice")
            found[name] = Query(name, model, int(width), int(height), tuple(parameters))
    if not found:
        raise LocalisationError(f"{', '.join(map(str, files))}: no queries; expected `name MODEL width height ...`")
    return list(found.values())


def read_poses(file: Path) -> dict[str, Array]:
    """Poses of results: `name qw qx qy qz tx ty tz` a line.

    Returns:
        Each image's (4, 4) float64 T_camera_world, in the unit of the model, which is metres in benchmarks.

    Raises:
        LocalisationError: the file cannot be read, or a line is no pose, or a name appears twice.
    """
    found = dict[str, Array]()
    for line, entries in _lines(file):
        where = f"{file}, line {line}"
        if len(entries) != 8:
            raise LocalisationError(f"{where} has {len(entries)} entries; expected `name qw qx qy qz tx ty tz`")
        numbers = np.array(_numbers(entries[1:], where))
        length = float(np.linalg.norm(numbers[:4]))
        if abs(length - 1) > 1e-2:
            raise LocalisationError(f"{where}: the quaternion qw qx qy qz has length {length:g}; expected 1")
        if entries[0] in found:
            raise LocalisationError(f"{where}: {entries[0]} is listed twice")
        found[entries[0]] = from_quaternion(numbers[4:], numbers[[1, 2, 3, 0]] / length)
    return found


def short_names(names: Iterable[str], name_parts: int) -> dict[str, str]:
    """What images are called in results, by name: the last parts of their names; 0 for all parts.

    Raises:
        LocalisationError: two images would have one name.
    """
    found, owner = dict[str, str](), dict[str, str]()
    for name in names:
        found[name] = short = "/".join(name.split("/")[-name_parts:])
        if owner.setdefault(short, name) != name:
            raise LocalisationError(
                f"{owner[short]} and {name} would both be called {short} in the results; keep more parts of the names"
            )
    return found


def write_poses(file: Path, poses: Mapping[str, Array], name_parts: int = 1) -> None:
    """Write poses as visuallocalization.net takes them.

    Args:
        file: to write.
        poses: (4, 4) T_camera_world by name.
        name_parts: how many of the last parts of a name are written; 0 for all. Aachen's results have one, those of
            RobotCar two.

    Raises:
        LocalisationError: two images would have one name, or the file cannot be written.
    """
    shown = short_names(poses, name_parts)
    _write(file, (_row(short, poses[name]) for name, short in shown.items()))


def _row(name: str, pose: Array) -> str:
    x, y, z, w = quaternion_of(pose[:3, :3])
    return " ".join([name, *(f"{value:.12g}" for value in (w, x, y, z, *pose[:3, 3]))])


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = read_text(file)
    except TextFileError as error:
        raise LocalisationError(str(error)) from error
    for line, content in enumerate(text.split("\n"), start=1):
        if (entries := content.split()) and not entries[0].startswith("#"):
            yield line, entries


def _numbers(entries: Sequence[str], where: str) -> list[float]:
    try:
        numbers = [float(entry) for entry in entries]
    except ValueError as error:
        raise LocalisationError(f"{where}: {error}") from error
    if not all(map(math.isfinite, numbers)):
        raise LocalisationError(f"{where} holds a number that is not finite")
    return numbers


def _write(file: Path, lines: Iterator[str]) -> None:
    with replacing(file) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
