"""Right and depth images that belong to the images of a folder, for each layout.

Companions cause no failures here: an error in them must not affect users of one camera alone. It is reported when the
companion is requested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import RGBD, STEREO
from loftr_ros.geometry.camera import CameraError, CameraModel
from loftr_ros.geometry.se3 import between, inverse
from loftr_ros.recordings.calibration import load_camera, read_yaml
from loftr_ros.recordings.companions import NO_COMPANIONS, DepthFile, ImageFile, RightView
from loftr_ros.recordings.files import FORMATS, image_files, numbers_of
from loftr_ros.recordings.images import SourceError
from loftr_ros.recordings.registration import Registration
from loftr_ros.recordings.stamps import NANOSECONDS, read_names, to_nanoseconds
from loftr_ros.recordings.tables import file_named, read_table

# The right camera's folder for each left one.
_KITTI_RIGHT = {"image_l": "image_r", "image_0": "image_1", "image_00/data": "image_01/data", "image_2": "image_3",
                "image_left": "image_right"}  # fmt: skip
_MILLIMETRES, _NO_RETURN = 0.001, 65535  # 7-Scenes' depth format
# 7-Scenes was recorded with a Kinect whose depth was not registered, and provides only the depth camera's nominal
# calibration (fx, fy, cx, cy, for 640x480). The colour camera is 25 mm beside it.
KINECT_DEPTH, _KINECT_SHIFT = (585.0, 585.0, 320.0, 240.0), -0.025
_TUM_UNIT = 1 / 5000
_TARTANAIR_BASELINE = 0.25
_TUM_NEAR_NS = 20_000_000  # largest distance in time between an image and its depth image


@dataclass(frozen=True)
class Companions:
    """Companions of a folder's images, in their order; `lacks` as in `Source`.

    Attributes:
        unregistered: the depth camera if it is not the images' camera, and T_image_depth; None if depth is registered.
    """

    right: Sequence[RightView | None] | None = None
    depth: Sequence[DepthFile | None] | None = None
    lacks: Mapping[str, str] = field(default_factory=lambda: NO_COMPANIONS)
    unregistered: tuple[CameraModel, NDArray[np.float64]] | None = None

    def with_camera(self, camera: CameraModel) -> Companions:
        """The same companions for images with a calibration other than the recording's own.

        Depth of another camera is registered to this one's pixels.
        """
        if self.depth is None or self.unregistered is None:
            return self
        depth_camera, image_from_depth = self.unregistered
        registration = Registration(depth_camera, camera, image_from_depth)
        return replace(self, depth=[file and replace(file, registration=registration) for file in self.depth])


def _without(mode: str, why: str) -> Companions:
    return Companions(lacks={**NO_COMPANIONS, mode: why})


def _stereo(views: Sequence[RightView | None]) -> Companions:
    return Companions(right=views, lacks={RGBD: NO_COMPANIONS[RGBD]})


def _depth(files: Sequence[DepthFile | None]) -> Companions:
    return Companions(depth=files, lacks={STEREO: NO_COMPANIONS[STEREO]})


def kitti_right(
    path: Path, images: Path, files: list[Path], rows: list[list[str]], left_row: int, left_camera: CameraModel | None
) -> Companions:
    """The right images of a KITTI sequence, by the numbers in their names.

    The projection K [I | t] of each camera is about the same reference camera, so the right camera is at t_left -
    t_right in the left one's frame; for a simple pair that is (-(P[0,3] / P[0,0]), 0, 0).

    Args:
        path: the sequence.
        images: folder of the left images.
        files: the left images.
        rows: of `calib.txt`, without names; empty without that file.
        left_row: number of the left camera's row.
        left_camera: its calibration. These images are rectified, so both sides have one size.
    """
    folder = path / _KITTI_RIGHT[images.relative_to(path).as_posix()]
    if not folder.is_dir():
        return Companions()
    calibration = path / "calib.txt"
    if left_camera is None or len(rows) <= left_row + 1:
        return _without(STEREO, f"{folder} exists, but {calibration} has no projection row of its camera")
    try:
        left, right = (np.array(rows[k][:12], np.float64).reshape(3, 4) for k in (left_row, left_row + 1))
        camera = CameraModel(left_camera.width, left_camera.height, right[:, :3])
        place = np.eye(4)
        place[:3, 3] = np.linalg.solve(left[:, :3], left[:, 3]) - np.linalg.solve(right[:, :3], right[:, 3])
        others = image_files(folder)
        by_number = dict(zip(numbers_of(others, folder), others, strict=True))
    except (CameraError, SourceError, ValueError, np.linalg.LinAlgError) as error:
        return _without(STEREO, f"{folder} or its row in {calibration} is unusable: {error}")
    if not np.abs(place[:3, 3]).max() > 0:
        return _without(STEREO, f"{calibration} puts both cameras at one place; expected a baseline in the right row")
    # A missing image is looked for under the left one's name, which then appears in the error.
    pairs = [by_number.get(n, folder / file.name) for n, file in zip(numbers_of(files, images), files, strict=True)]
    return _stereo([RightView(_file(pair), camera, place) for pair in pairs])


def euroc_right(folder: Path, sensor: Mapping[str, object], files: list[Path], stamps: list[int]) -> Companions:
    """The images of `cam1` taken at the same nanosecond as those of `cam0`.

    Args:
        folder: `cam0`; any other camera has no right image.
        sensor: its `sensor.yaml`, as `euroc_sensor` has it.
        files, stamps: its images and their times in nanoseconds.
    """
    left, right = folder.resolve(), folder.resolve().parent / "cam1"
    if left.name != "cam0" or not (right / "data").is_dir():
        return Companions()
    try:
        content, camera = euroc_sensor(right)
        place = between(body_camera(sensor, left), body_camera(content, right))
        names = {file.name for file in image_files(right / "data")}
        named: dict[int, str] = {}
        if (right / "data.csv").is_file():
            rows = read_table(right / "data.csv", 2)
            lines = [row.line for row in rows]
            times = to_nanoseconds([row[0] for row in rows], str(right / "data.csv"), NANOSECONDS, lines)
            for time, row in zip(times, rows, strict=True):
                named[time] = file_named(row[1], right, right / "data").name
        elif names:
            ordered = sorted(names)
            found = read_names([Path(name).stem for name in ordered], str(right / "data"), NANOSECONDS)
            named = dict(zip(found.stamps or (), (ordered[k] for k in found.order), strict=True))
    except (SourceError, ValueError, np.linalg.LinAlgError) as error:
        return _without(STEREO, f"cam1 exists, but is unusable: {error}")
    if not any(named.get(stamp) in names for stamp in stamps):
        return _without(STEREO, f"{right} has no image with a stamp of cam0's; expected synchronized cameras")
    pairs = [right / "data" / named.get(stamp, file.name) for stamp, file in zip(stamps, files, strict=True)]
    return _stereo([RightView(_file(pair), camera, place) for pair in pairs])


def euroc_sensor(folder: Path) -> tuple[dict[str, Any], CameraModel]:
    """Contents of a camera's `sensor.yaml`, and its calibration; those of TUM-VI are in a Kalibr camchain.

    Raises:
        SourceError: there is no usable calibration.
    """
    file, chain = folder / "sensor.yaml", camchain(folder)
    if file.is_file() or not chain.is_file():
        return read_yaml(file), load_camera(file)
    entry = read_yaml(chain).get(folder.resolve().name)
    try:
        imu_in_camera = np.array(entry["T_cam_imu"], np.float64).reshape(4, 4)  # type: ignore[index]
    except (TypeError, KeyError, ValueError) as error:
        raise SourceError(f"{chain} has no T_cam_imu of {folder.name}") from error
    return {"T_BS": {"data": inverse(imu_in_camera).ravel().tolist()}}, load_camera(f"{chain}:{folder.resolve().name}")


def camchain(folder: Path) -> Path:
    """TUM-VI's calibration file, for the folder of one of its cameras, `mav0/cam0`."""
    return folder.resolve().parent.parent / "dso" / "camchain.yaml"


def body_camera(sensor: Mapping[str, object], folder: Path) -> NDArray[np.float64]:
    """(4, 4) T_BS of a `sensor.yaml`, the camera's pose in the body."""
    entry = sensor.get("T_BS")
    values = entry.get("data") if isinstance(entry, dict) else None
    try:
        matrix = np.array(values, np.float64).reshape(4, 4)
    except (TypeError, ValueError):
        matrix = np.full((4, 4), np.nan)
    if not np.isfinite(matrix).all():
        raise SourceError(f"{folder / 'sensor.yaml'} has no T_BS of 16 numbers, the camera's pose in the body")
    return matrix


def seven_scenes_depth(files: list[Path], camera: CameraModel | None) -> Companions:
    """The `frame-NNNNNN.depth.png` beside each `frame-NNNNNN.color` image: millimetres, holes 0 and 65535.

    Args:
        files: the colour images.
        camera: the recording's calibration. The published 7-Scenes provides that of the depth camera. It is used for
            both images, as for the recordings' own poses, unless a calibration of the colour images is given.
    """
    depth = [file.with_name(file.name.split(".color.")[0] + ".depth.png") for file in files]
    if not any(file.is_file() for file in depth):
        return Companions()
    found = _depth([DepthFile(file, _MILLIMETRES, _NO_RETURN) for file in depth])
    if camera is None or not camera.same_as(published_camera(KINECT_DEPTH)):
        return found
    place = np.eye(4)
    place[0, 3] = _KINECT_SHIFT
    return replace(found, unregistered=(camera, place))


def published_camera(values: tuple[float, float, float, float], coefficients: Sequence[float] = ()) -> CameraModel:
    """The camera of 640x480 with a published fx, fy, cx, cy, and plumb_bob coefficients."""
    fx, fy, cx, cy = values
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    return CameraModel(640, 480, matrix, "plumb_bob", np.array(coefficients))


def tartanair(path: Path, files: list[Path], camera: CameraModel) -> Companions:
    """The right images and exact depths (NumPy files, in metres) beside TartanAir's left images, by their numbers.

    Args:
        path: the sequence.
        files: its left images, `NNNNNN_left.png`.
        camera: of both sides.
    """
    place = np.eye(4)
    place[0, 3] = _TARTANAIR_BASELINE
    stems = [file.stem.removesuffix("_left") for file in files]
    right, depth, lacks = None, None, dict(NO_COMPANIONS)
    if (path / "image_right").is_dir():
        pairs = [path / "image_right" / f"{stem}_right{file.suffix}" for stem, file in zip(stems, files, strict=True)]
        right = [RightView(_file(pair), camera, place) for pair in pairs]
        del lacks[STEREO]
    if (path / "depth_left").is_dir():
        depth = [DepthFile(path / "depth_left" / f"{stem}_left_depth.npy", 1.0) for stem in stems]
        del lacks[RGBD]
    return Companions(right, depth, lacks)


def icl_depth(files: list[Path]) -> Companions:
    """ICL-NUIM's depth images, in TUM RGB-D's format."""
    return _depth([DepthFile(file, _TUM_UNIT) for file in files])


def tum_depth(path: Path, stamps: list[int]) -> Companions:
    """The depth image of `depth.txt` nearest in time to each image: 5000 units per metre, holes 0.

    Args:
        path: the recording.
        stamps: of its images, in nanoseconds.
    """
    if not (path / "depth.txt").is_file():
        return Companions()
    try:
        listed = sorted(stamped_files(path, "depth.txt"))
    except SourceError as error:
        return _without(RGBD, f"its list of depth images is unusable: {error}")
    times = np.array([stamp for stamp, _ in listed], np.int64)
    depth: list[DepthFile | None] = []
    for stamp in stamps:
        after = int(np.searchsorted(times, stamp))
        near = [k for k in (after - 1, after) if 0 <= k < len(times) and abs(int(times[k]) - stamp) <= _TUM_NEAR_NS]
        best = min(near, key=lambda k: abs(int(times[k]) - stamp)) if near else None
        depth.append(None if best is None else DepthFile(listed[best][1], _TUM_UNIT))
    if not any(depth):
        return _without(RGBD, f"{path / 'depth.txt'} has no depth image within 20 ms of an image")
    return _depth(depth)


def stamped_files(path: Path, name: str) -> list[tuple[int, Path]]:
    """(stamp in nanoseconds, file) of each row of a list of TUM RGB-D.

    Raises:
        SourceError: the list cannot be read, or a stamp in it is not a time.
    """
    rows = read_table(path / name, 2)
    stamps = to_nanoseconds([row[0] for row in rows], str(path / name), lines=[row.line for row in rows])
    images = path / Path(name).stem
    return [(stamp, file_named(row[1], path, images)) for stamp, row in zip(stamps, rows, strict=True)]


def _file(path: Path) -> ImageFile:
    return ImageFile(path, FORMATS.get(path.suffix.lower(), path.suffix.lstrip(".")))
