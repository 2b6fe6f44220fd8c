"""Folders of image files: KITTI odometry, 7-Scenes, EuRoC, TUM RGB-D, and any others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.camera import CameraError, CameraModel
from loftr_ros.sources.base import FRAME_ID, EncodedImage, Source, SourceError, SourceFrame, SourceOptions, stamp_at
from loftr_ros.sources.calibration import load_camera, pose_from_quaternion, read_numbers, read_table, read_yaml
from loftr_ros.sources.files import FORMATS, image_files, image_size, numbers_of
from loftr_ros.sources.pairing import Companions, euroc_right, kitti_right, seven_scenes_depth, stamped_files, tum_depth

_CAMERA_FILES = ("camera.yaml", "camera_info.yaml", "camera.yml", "camera_info.yml")
_KITTI_IMAGES = ("image_l", "image_0", "image_00/data", "image_2", "image_left")
_NEAR_ENOUGH = 0.02  # s between an image and a pose that is taken for its own

# Published calibrations of the TUM RGB-D benchmark: fx, fy, cx, cy and plumb_bob coefficients, for 640x480.
_TUM_CAMERAS = {
    "freiburg1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "freiburg2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "freiburg3": ((535.4, 539.2, 320.1, 247.6), ()),
}


@dataclass(frozen=True)
class _Listing:
    """What a folder turned out to hold. `stamps` in nanoseconds, or None where they are made from `numbers`."""

    kind: str
    files: list[Path]
    numbers: list[int]
    rate: float
    stamps: list[int] | None = None
    camera: CameraModel | None = None
    poses: list[NDArray[np.float64] | None] | None = None
    metric: bool = False
    companions: Companions = field(default_factory=Companions)


class FolderSource(Source):
    """The images of a folder, read one by one and handed out as they are on disk."""

    def __init__(self, path: Path, options: SourceOptions, camera: CameraModel | None = None) -> None:
        """Lists the folder; see `open_source`.

        Raises:
            SourceError: it holds no images, or a file beside them cannot be understood.
        """
        listing = recognise(path)
        self.name, self.kind = path.resolve().name, listing.kind
        self._listing, self._options = listing, options
        self._companions = listing.companions if camera is None else listing.companions.seen_by(camera)
        self.lacks = self._companions.lacks
        self._indices = options.indices(len(listing.files))
        if not len(self._indices):
            raise SourceError(f"{path} has {len(listing.files)} images; start {options.start} is past the last")
        self.length = len(self._indices)
        self.rate = (options.rate or listing.rate) / options.step
        self.camera = camera if camera is not None else listing.camera
        if self.camera is not None:
            size = image_size(listing.files[self._indices[0]])
            if size != (self.camera.width, self.camera.height):
                raise SourceError(
                    f"the calibration is for {self.camera.width}x{self.camera.height}, but the images in {path} are "
                    f"{size[0]}x{size[1]}; give the right one with the option `camera`"
                )

    def __iter__(self) -> Iterator[SourceFrame]:
        listing = self._listing
        for index in self._indices:
            file = listing.files[index]
            try:
                data = file.read_bytes()
            except OSError as error:
                raise SourceError(f"{file} cannot be read: {error}") from error
            stamp = self._options.stamp(listing.numbers[index])
            if stamp is None:
                own = listing.stamps
                stamp = own[index] if own is not None else stamp_at(listing.numbers[index], listing.rate)
            image = EncodedImage(data, FORMATS[file.suffix.lower()], str(file))
            pose = listing.poses[index] if listing.poses is not None else None
            right, depth = self._companions.right, self._companions.depth
            yield SourceFrame(
                index,
                stamp,
                FRAME_ID,
                image,
                self.camera,
                pose,
                listing.metric,
                None if right is None else right[index],
                None if depth is None else depth[index],
            )


def recognise(path: Path) -> _Listing:
    """Finds out by its contents what kind of data set a folder holds.

    Raises:
        SourceError: none of the known ones, or one that lacks something.
    """
    for folder in (path / "cam0", path / "mav0" / "cam0", path):
        if (folder / "data").is_dir() and (folder / "sensor.yaml").is_file():
            return _euroc(folder)
    if (path / "rgb.txt").is_file():
        return _tum(path)
    for name in _KITTI_IMAGES:
        if (path / name).is_dir():
            return _kitti(path, path / name)
    if any(path.glob("frame-*.color.*")):
        return _seven_scenes(path)
    files = image_files(path)
    if not files:
        raise SourceError(
            f"{path} holds no images, no bag (metadata.yaml) and none of the known data sets (KITTI, 7-Scenes, EuRoC, "
            f"TUM RGB-D); expected files ending in {', '.join(FORMATS)}"
        )
    found = [path / name for name in _CAMERA_FILES if (path / name).is_file()]
    camera = load_camera(found[0]) if found else None
    return _Listing("images", files, list(range(len(files))), 30.0, camera=camera)


def _pinhole(matrix: NDArray[np.float64], size: tuple[int, int], where: Path) -> CameraModel:
    try:
        return CameraModel(size[0], size[1], matrix)
    except CameraError as error:
        raise SourceError(f"{where} holds no usable calibration: {error}") from error


def _kitti(path: Path, images: Path) -> _Listing:
    files = image_files(images)
    numbers = numbers_of(files, images)
    camera, left = None, 0
    rows: list[list[str]] = []
    if (path / "calib.txt").is_file():
        # One 3x4 projection matrix a row, with or without a name (`P0:`); the first is of the left gray camera.
        rows = [[p for p in row if not p.endswith(":")] for row in read_table(path / "calib.txt", 12)]
        left = 2 if images.name == "image_2" and len(rows) > 2 else 0
        try:
            matrix = np.array(rows[left][:12] if rows else [], np.float64).reshape(3, 4)[:, :3]
        except ValueError as error:
            raise SourceError(f"{path / 'calib.txt'}: expected rows of 12 numbers: {error}") from error
        camera = _pinhole(matrix, image_size(files[0]), path / "calib.txt")
    # Rows belong to frame numbers in a full sequence, and to the files in order in a part of one.
    stamps, rate = None, 10.0
    if (path / "times.txt").is_file():
        seconds = read_numbers(path / "times.txt", 1)[:, 0]
        at = [k if len(seconds) == len(files) else number for k, number in enumerate(numbers)]
        if max(at) >= len(seconds):
            raise SourceError(f"{path / 'times.txt'} has {len(seconds)} rows; image {max(at)} has none")
        stamps = [round(seconds[k] * 1e9) for k in at]
        rate = _rate(stamps, rate)
    poses = None
    if (path / "poses.txt").is_file():
        rows_of = read_numbers(path / "poses.txt", 12).reshape(-1, 3, 4)
        poses = [_square(rows_of, k if len(rows_of) == len(files) else number) for k, number in enumerate(numbers)]
    companions = kitti_right(path, images, files, rows, left, camera)
    return _Listing("KITTI odometry", files, numbers, rate, stamps, camera, poses, True, companions)


def _square(rows: NDArray[np.float64], index: int) -> NDArray[np.float64] | None:
    if index >= len(rows) or not np.isfinite(rows[index]).all():
        return None
    return np.vstack([rows[index], [0.0, 0.0, 0.0, 1.0]])


def _seven_scenes(path: Path) -> _Listing:
    files = [file for file in image_files(path) if ".color." in file.name]
    numbers = numbers_of(files, path)
    poses: list[NDArray[np.float64] | None] = []
    for file in files:
        pose_file = file.with_name(file.name.split(".color.")[0] + ".pose.txt")
        # Frames where tracking was lost have poses of nan or inf.
        pose = read_numbers(pose_file, 4) if pose_file.is_file() else np.full((4, 4), np.nan)
        if pose.shape != (4, 4):
            raise SourceError(f"{pose_file} has {len(pose)} rows; expected a 4x4 matrix")
        poses.append(pose if np.isfinite(pose).all() else None)
    camera = None
    for intrinsics in (path / "camera-intrinsics.txt", path.parent / "camera-intrinsics.txt"):
        if intrinsics.is_file():
            matrix = read_numbers(intrinsics, 3)
            if len(matrix) != 3:
                raise SourceError(f"{intrinsics} has {len(matrix)} rows; expected a 3x3 matrix")
            camera = _pinhole(matrix, image_size(files[0]), intrinsics)
            break
    return _Listing("7-Scenes", files, numbers, 30.0, None, camera, poses, True, seven_scenes_depth(files, camera))


def _euroc(folder: Path) -> _Listing:
    sensor = read_yaml(folder / "sensor.yaml")
    files = image_files(folder / "data")
    numbers = numbers_of(files, folder / "data")
    stamps = list(numbers)
    if (folder / "data.csv").is_file():
        named = {row[1]: int(row[0]) for row in read_table(folder / "data.csv", 2, ",")}
        files = [file for file in files if file.name in named]
        stamps = [named[file.name] for file in files]
        if not files:
            raise SourceError(f"{folder / 'data.csv'} names none of the images in {folder / 'data'}")
    poses = None
    truth = folder.parent / "state_groundtruth_estimate0" / "data.csv"
    if truth.is_file() and "T_BS" in sensor:
        rows = np.array([[float(entry) for entry in row[:8]] for row in read_table(truth, 8, ",")])
        body_camera = np.array(sensor["T_BS"]["data"], np.float64).reshape(4, 4)
        # The file's quaternions are (w, x, y, z), and its poses are the body's.
        table = rows[:, [0, 1, 2, 3, 5, 6, 7, 4]]
        poses = [None if p is None else p @ body_camera for p in _nearest_poses(table, 1e-9, stamps)]
    camera = load_camera(folder / "sensor.yaml")
    rate = float(sensor.get("rate_hz", 20))
    companions = euroc_right(folder, sensor, files, stamps)
    return _Listing("EuRoC", files, list(range(len(files))), rate, stamps, camera, poses, True, companions)


def _tum(path: Path) -> _Listing:
    listed = stamped_files(path, "rgb.txt")
    stamps, files = [stamp for stamp, _ in listed], [file for _, file in listed]
    missing = [file for file in files if not file.is_file() or file.suffix.lower() not in FORMATS]
    if missing or not files:
        raise SourceError(f"{path / 'rgb.txt'} lists {len(files)} images, {len(missing)} of which are not there")
    poses = None
    if (path / "groundtruth.txt").is_file():
        poses = _nearest_poses(read_numbers(path / "groundtruth.txt", 8), 1.0, stamps)
    camera = None
    found = [path / name for name in _CAMERA_FILES if (path / name).is_file()]
    series = next((name for name in _TUM_CAMERAS if name in path.resolve().name), None)
    if found:
        camera = load_camera(found[0])
    elif series is not None:
        (fx, fy, cx, cy), coefficients = _TUM_CAMERAS[series]
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
        camera = CameraModel(640, 480, matrix, "plumb_bob", np.array(coefficients))
    rate, companions = _rate(stamps, 30.0), tum_depth(path, stamps)
    return _Listing("TUM RGB-D", files, list(range(len(files))), rate, stamps, camera, poses, True, companions)


def _nearest_poses(table: NDArray[np.float64], unit: float, stamps: list[int]) -> list[NDArray[np.float64] | None]:
    """The pose nearest in time to each stamp, None where there is none near enough.

    Args:
        table: (N, 8) rows of time (in `unit` seconds), translation, and quaternion (x, y, z, w), in order of time.
        stamps: nanoseconds.
    """
    if not len(table):
        return [None] * len(stamps)
    times = table[:, 0] * unit
    poses: list[NDArray[np.float64] | None] = []
    for stamp in stamps:
        right = int(np.searchsorted(times, stamp * 1e-9))
        best = min((k for k in (right - 1, right) if 0 <= k < len(times)), key=lambda k: abs(times[k] - stamp * 1e-9))
        row = table[best]
        usable = abs(times[best] - stamp * 1e-9) <= _NEAR_ENOUGH and np.isfinite(row).all() and row[4:8].any()
        poses.append(pose_from_quaternion(row[1:4], *row[4:8]) if usable else None)
    return poses


def _rate(stamps: list[int], default: float) -> float:
    """Nominal rate in Hz of stamps in nanoseconds: gaps do not count."""
    steps = np.diff(np.array(stamps, np.int64)) if len(stamps) > 1 else np.zeros(0)
    middle = float(np.median(steps)) if len(steps) else 0.0
    return 1e9 / middle if middle > 0 else default
