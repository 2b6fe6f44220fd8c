"""Calibrations in the formats that data sets come with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from loftr_ros.frontend.camera import CameraError, CameraModel
from loftr_ros.sources.base import SourceError
from loftr_ros.wording import shortened


def load_camera(path: str | Path) -> CameraModel:
    """The camera in a YAML file of ROS `camera_calibration` (as `camera_info_manager` reads) or a EuRoC `sensor.yaml`.

    Raises:
        SourceError: there is no such file, or no usable calibration in it.
    """
    path = Path(path)
    content = read_yaml(path)
    try:
        if "camera_matrix" in content:
            distortion = content.get("distortion_coefficients", {}).get("data", [])
            matrix = np.array(content["camera_matrix"]["data"], np.float64).reshape(3, 3)
            model = str(content.get("distortion_model", "plumb_bob" if len(distortion) else ""))
            size = int(content["image_width"]), int(content["image_height"])
            return CameraModel(*size, matrix, model, np.array(distortion, np.float64))
        if "intrinsics" in content:
            return _euroc_camera(content)
    except (CameraError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path} holds no usable calibration: {type(error).__name__}: {error}") from error
    raise SourceError(
        f"{path} holds no calibration: expected image_width, image_height, camera_matrix, distortion_model and "
        "distortion_coefficients, as ROS camera_calibration writes them, or a EuRoC sensor.yaml"
    )


def _euroc_camera(content: dict[str, Any]) -> CameraModel:
    names = {"radial-tangential": "plumb_bob", "radtan": "plumb_bob", "none": "none", "equidistant": "equidistant"}
    fu, fv, cu, cv = (float(value) for value in content["intrinsics"])
    name = str(content.get("distortion_model", "none")).lower()
    if content.get("camera_model", "pinhole") != "pinhole":
        raise CameraError(f"camera_model '{content['camera_model']}' is not known; expected pinhole")
    if name not in names:
        raise CameraError(f"distortion_model '{name}' is not known; expected one of {', '.join(names)}")
    width, height = (int(value) for value in content["resolution"])
    matrix = np.array([[fu, 0, cu], [0, fv, cv], [0, 0, 1.0]])
    coefficients = np.array(content.get("distortion_coefficients", []), np.float64)
    return CameraModel(width, height, matrix, names[name], coefficients)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; OpenCV's `%YAML:1.0` head line, which is not YAML, is tolerated.

    Raises:
        SourceError: the file cannot be read, or is no mapping.
    """
    text = read_text(path)
    if text.startswith("%YAML"):
        text = text.partition("\n")[2]
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SourceError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path} is empty or no mapping of names to values")
    return content


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def read_table(path: Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """Rows of a text table with at least `columns` entries each; lines that begin with # are comments.

    Raises:
        SourceError: a row is too short, or the file cannot be read.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        row = [entry.strip() for entry in line.split(separator)]
        if len(row) < columns:
            raise SourceError(
                f"{path}, line {number} has {len(row)} entries; expected {columns}: {shortened(line, 60)!r}"
            )
        rows.append(row)
    return rows


def read_numbers(path: Path, columns: int) -> NDArray[np.float64]:
    """(N, columns) float64 from a text table separated by blanks; further columns are ignored.

    Raises:
        SourceError: something in it is not a number.
    """
    rows = [row[:columns] for row in read_table(path, columns)]
    try:
        return np.array(rows, np.float64).reshape(-1, columns)
    except ValueError as error:
        raise SourceError(f"{path} holds something that is not a number: {error}") from error


def pose_from_quaternion(
    translation: NDArray[np.float64], x: float, y: float, z: float, w: float
) -> NDArray[np.float64]:
    """(4, 4) pose of a (3,) translation and a quaternion, which is normalised here."""
    q = np.array([x, y, z, w])
    x, y, z, w = q / np.linalg.norm(q)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = translation
    return pose
