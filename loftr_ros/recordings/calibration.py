"""Readers for the calibration formats of drivers, tools and data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.camera import (
    EQUIDISTANT,
    NO_DISTORTION,
    PLUMB_BOB,
    RATIONAL_POLYNOMIAL,
    CameraError,
    CameraModel,
    known_model,
)
from loftr_ros.recordings.images import SourceError
from loftr_ros.recordings.slam_settings import camera_of, cameras_of
from loftr_ros.recordings.tables import is_number, read_text
from loftr_ros.text_files import TextFileError
from loftr_ros.text_files import read_yaml as read_any_yaml

_EXPECTED = (
    "expected the output of ROS camera_calibration, a CameraInfo printed by `ros2 topic echo`, OpenCV's YAML or XML, a "
    "EuRoC sensor.yaml, a Kalibr camchain, settings of ORB-SLAM or VINS, or COLMAP's cameras.txt"
)
_ATTEMPT = (CameraError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
# Names of the matrix, the coefficients and the size in OpenCV's samples and formats derived from them.
_MATRIX_NAMES = ("camera_matrix", "cameraMatrix", "Camera_Matrix", "CameraMatrix", "intrinsic_matrix", "mtx", "K", "k")
_DISTORTION_NAMES = (
    *("distortion_coefficients", "distCoeffs", "Distortion_Coefficients", "dist_coeffs", "dist_coeff", "dist"),
    *("distortion", "D", "d", "D1"),
)
_WIDTH_NAMES = ("image_width", "image_Width", "width", "imageWidth")
_HEIGHT_NAMES = ("image_height", "image_Height", "height", "imageHeight")
# COLMAP's models: positions of fx, fy, cx and cy among the parameters, our model, and the order of its coefficients.
_COLMAP: dict[str, tuple[tuple[int, int, int, int], str, tuple[int | None, ...]]] = {
    "SIMPLE_PINHOLE": ((0, 0, 1, 2), NO_DISTORTION, ()),
    "PINHOLE": ((0, 1, 2, 3), NO_DISTORTION, ()),
    "SIMPLE_RADIAL": ((0, 0, 1, 2), PLUMB_BOB, (3, None, None, None)),
    "RADIAL": ((0, 0, 1, 2), PLUMB_BOB, (3, 4, None, None)),
    "OPENCV": ((0, 1, 2, 3), PLUMB_BOB, (4, 5, 6, 7)),
    "FULL_OPENCV": ((0, 1, 2, 3), RATIONAL_POLYNOMIAL, (4, 5, 6, 7, 8, 9, 10, 11)),
    "OPENCV_FISHEYE": ((0, 1, 2, 3), EQUIDISTANT, (4, 5, 6, 7)),
    "SIMPLE_RADIAL_FISHEYE": ((0, 0, 1, 2), EQUIDISTANT, (3, None, None, None)),
    "RADIAL_FISHEYE": ((0, 0, 1, 2), EQUIDISTANT, (3, 4, None, None)),
}


def load_camera(path: str | Path) -> CameraModel:
    """The camera in a calibration file; its format is detected from the contents.

    Args:
        path: a YAML file of ROS `camera_calibration` (read by `camera_info_manager`), a `sensor_msgs/CameraInfo`
            printed by `ros2 topic echo`, OpenCV's YAML or XML, a EuRoC `sensor.yaml`, a Kalibr camchain, settings of
            ORB-SLAM or VINS, or COLMAP's `cameras.txt`. `FILE:NAME` chooses one of several cameras in a file.

    Raises:
        SourceError: the file does not exist, has no usable calibration, or several of which none is named.
    """
    path, name = Path(path), ""
    if not path.exists() and ":" in path.name:
        before, _, name = str(path).rpartition(":")
        path = Path(before)
    try:
        cameras = _cameras(path)
    except _ATTEMPT as error:
        reason = str(error) if isinstance(error, CameraError) else f"{type(error).__name__}: {error}"
        raise SourceError(f"{path} holds no usable calibration: {reason}; {_EXPECTED}") from error
    if name and name not in cameras:
        raise SourceError(f"{path} has no camera '{name}'; it has {', '.join(cameras)}")
    if not name and len(cameras) > 1:
        raise SourceError(
            f"{path} has the cameras {', '.join(cameras)}; name one, for example {path}:{next(iter(cameras))}"
        )
    try:
        return cameras[name or next(iter(cameras))]()
    except _ATTEMPT as error:
        reason = str(error) if isinstance(error, CameraError) else f"{type(error).__name__}: {error}"
        raise SourceError(f"{path} holds no usable calibration: {reason}; {_EXPECTED}") from error


def _cameras(path: Path) -> dict[str, Callable[[], CameraModel]]:
    """Constructors of a file's cameras, by their names there."""
    text = read_text(path).lstrip()
    if text.startswith("<"):
        return {"camera": lambda: _opencv_xml(path)}
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if rows and all(len(row) >= 5 and row[0].isdecimal() and row[1].isupper() and is_number(row[2]) for row in rows):
        return {row[0]: lambda row=row: _colmap(row) for row in rows}  # type: ignore[misc]
    content = read_yaml(path)
    chain = {key: value for key, value in content.items() if isinstance(value, dict) and "intrinsics" in value}
    if chain:
        return {key: lambda value=value: _pinhole(value) for key, value in chain.items()}  # type: ignore[misc]
    if "intrinsics" in content:
        return {"camera": lambda: _pinhole(content)}
    if ("k" in content and "d" in content) or ("K" in content and "D" in content and "distortion_model" in content):
        return {"camera": lambda: _camera_info(content)}
    if _first(content, _MATRIX_NAMES) is not None:
        return {"camera": lambda: _matrix_and_coefficients(content)}
    if found := cameras_of(content):
        return {key: lambda value=value: camera_of(value) for key, value in found.items()}  # type: ignore[misc]
    raise SourceError(f"{path} holds no calibration; {_EXPECTED}")


def _first(content: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((content[name] for name in names if content.get(name) is not None), None)


def _numbers(value: Any) -> NDArray[np.float64]:
    """The flat numbers of a list, of nested lists, or of a matrix with `data`."""
    if isinstance(value, Mapping):
        value = value["data"]
    return np.array([] if value is None else value, np.float64).ravel()


def _matrix_and_coefficients(content: Mapping[str, Any]) -> CameraModel:
    """Format of ROS `camera_calibration` and OpenCV's samples."""
    matrix = _numbers(_first(content, _MATRIX_NAMES)).reshape(3, 3)
    coefficients = _numbers(_first(content, _DISTORTION_NAMES))
    name = str(content.get("distortion_model") or ("fisheye" if content.get("fisheye_model") in (1, True) else ""))
    size = _first(content, ("resolution", "image_size", "imageSize"))
    if size is None:
        size = _first(content, _WIDTH_NAMES), _first(content, _HEIGHT_NAMES)
    if None in size:
        raise CameraError("it has no image size (image_width and image_height)")
    if not name and coefficients.size == 4:
        name = PLUMB_BOB  # OpenCV's; its fisheye names its model
    return _plain_zeros(_whole(size[0]), _whole(size[1]), matrix, name, coefficients)


def _plain_zeros(
    width: int, height: int, matrix: NDArray[np.float64], name: str, coefficients: NDArray[np.float64]
) -> CameraModel:
    """A camera in ROS's or OpenCV's own format, where zeros mean no distortion whatever the model's name."""
    if not coefficients.any():
        name, coefficients = NO_DISTORTION, np.zeros(0)
    return CameraModel(width, height, matrix, name, coefficients)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or float(value) != int(value):
        raise CameraError(f"image size of {value}; expected whole numbers of pixels")
    return int(value)


def _camera_info(content: Mapping[str, Any]) -> CameraModel:
    """A message printed by `ros2 topic echo` or `rostopic echo`."""
    roi = content.get("roi") or {}
    whole = {name: _whole(roi.get(name, 0)) for name in ("x_offset", "y_offset", "width", "height")}
    return CameraModel.from_camera_info(
        SimpleNamespace(
            k=_numbers(_first(content, ("k", "K"))),
            d=_numbers(_first(content, ("d", "D"))),
            distortion_model=str(content.get("distortion_model") or ""),
            width=_whole(content["width"]),
            height=_whole(content["height"]),
            binning_x=_whole(content.get("binning_x") or 0),
            binning_y=_whole(content.get("binning_y") or 0),
            roi=SimpleNamespace(**whole),
        )
    )


def _pinhole(content: Mapping[str, Any]) -> CameraModel:
    """A EuRoC `sensor.yaml`, or a camera of a Kalibr camchain."""
    kind = str(content.get("camera_model", "pinhole"))
    if kind != "pinhole":
        raise CameraError(f"camera_model '{kind}' is not known; expected pinhole")
    fu, fv, cu, cv = (float(value) for value in content["intrinsics"])
    name = str(content.get("distortion_model") or "none")
    coefficients = _numbers(_first(content, ("distortion_coefficients", "distortion_coeffs")))
    width, height = (_whole(value) for value in content["resolution"])
    matrix = np.array([[fu, 0, cu], [0, fv, cv], [0, 0, 1.0]])
    model, coefficients = known_model(name, coefficients)
    return CameraModel(width, height, matrix, model, coefficients)


def _colmap(row: list[str]) -> CameraModel:
    """A line of COLMAP's `cameras.txt`: id, model, width, height, parameters."""
    model = row[1]
    if model not in _COLMAP:
        raise CameraError(f"COLMAP's camera model {model} is not known; expected one of {', '.join(_COLMAP)}")
    (fx, fy, cx, cy), name, order = _COLMAP[model]
    values = [float(text) for text in row[4:]]
    expected = max(fx, fy, cx, cy, *(k for k in order if k is not None)) + 1
    if len(values) != expected:
        raise CameraError(f"COLMAP's {model} has {expected} parameters; got {len(values)}")
    # COLMAP's top-left pixel has its centre at (0.5, 0.5).
    matrix = np.array([[values[fx], 0, values[cx] - 0.5], [0, values[fy], values[cy] - 0.5], [0, 0, 1.0]])
    coefficients = np.array([0.0 if k is None else values[k] for k in order], np.float64)
    return CameraModel(_whole(row[2]), _whole(row[3]), matrix, name, coefficients)


def _opencv_xml(path: Path) -> CameraModel:
    """OpenCV's XML, read by OpenCV."""
    import cv2

    content: dict[str, Any] = {}
    try:
        storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
        try:
            for name in storage.root().keys():  # noqa: SIM118 (no mapping)
                node = storage.getNode(name)
                if node.isMap():
                    content[name] = node.mat()
                elif node.isSeq():
                    content[name] = [node.at(k).real() for k in range(node.size())]
                else:
                    content[name] = node.string() if node.isString() else node.real()
        finally:
            storage.release()
    except (cv2.error, SystemError) as error:
        raise CameraError("OpenCV cannot read it as XML") from error
    if _first(content, _MATRIX_NAMES) is None:
        raise CameraError("it has no camera_matrix")
    return _matrix_and_coefficients(content)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; OpenCV's head line and tags, which are not standard YAML, are accepted.

    Raises:
        SourceError: the file cannot be read, or is not a mapping.
    """
    try:
        return read_any_yaml(path)
    except TextFileError as error:
        raise SourceError(str(error)) from error
