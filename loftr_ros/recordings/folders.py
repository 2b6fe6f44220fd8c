"""Folders of image files: KITTI odometry, 7-Scenes, EuRoC, TUM-VI, TUM RGB-D, ICL-NUIM, TartanAir, and any others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraError, CameraModel
from loftr_ros.geometry.se3 import from_quaternion
from loftr_ros.recordings.base import FRAME_ID, EncodedImage, Source, SourceError, SourceFrame, SourceOptions, stamp_at
from loftr_ros.recordings.calibration import load_camera, read_yaml
from loftr_ros.recordings.files import (
    FORMATS,
    ImageFolder,
    ignored_properties,
    image_folder,
    image_size,
    natural,
    numbered,
    numbers_of,
)
from loftr_ros.recordings.imu import RecordedImu, euroc_imu
from loftr_ros.recordings.mask_folder import MaskFolder
from loftr_ros.recordings.pairing import (
    KINECT_DEPTH,
    Companions,
    body_camera,
    camchain,
    euroc_right,
    euroc_sensor,
    icl_depth,
    kitti_right,
    published_camera,
    seven_scenes_depth,
    stamped_files,
    tartanair,
    tum_depth,
)
from loftr_ros.recordings.stamps import NANOSECONDS, check_stamps, read_date_times, read_names, to_nanoseconds
from loftr_ros.recordings.tables import file_exists, file_named, numbers_in, read_numbers, read_table, read_text

_CAMERA_FILES = ("camera.yaml", "camera_info.yaml", "camera.yml", "camera_info.yml")
_KITTI_IMAGES = ("image_l", "image_0", "image_00/data", "image_2", "image_left")
_SHOWN = 5  # names in a message
_NEAR_ENOUGH = 0.02  # s, largest distance in time between an image and its pose

# Published calibrations of the TUM RGB-D benchmark: fx, fy, cx, cy and plumb_bob coefficients, for 640x480.
_TUM_CAMERAS = {
    "freiburg1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "freiburg2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "freiburg3": ((535.4, 539.2, 320.1, 247.6), ()),
}
# ... of ICL-NUIM. Its own fy is -480: the y axis of its cameras and of its world points up.
_ICL = (481.2, 480.0, 319.5, 239.5)
_UPSIDE = np.diag([1.0, -1.0, 1.0, 1.0])
# ... of TartanAir, whose poses have the axes of aircraft: x ahead, y right, z down.
_TARTANAIR = (320.0, 320.0, 320.0, 240.0)
_AIRCRAFT = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class _Listing:
    """Contents of a folder. `stamps` in nanoseconds, or None if they are generated from `numbers`.

    `notes` list skipped files, and `times` describes the source of the stamps.
    """

    kind: str
    files: list[Path]
    numbers: list[int]
    rate: float
    stamps: list[int] | None = None
    camera: CameraModel | None = None
    poses: list[NDArray[np.float64] | None] | None = None
    metric: bool = False
    companions: Companions = field(default_factory=Companions)
    notes: list[str] = field(default_factory=list)
    times: str = ""
    imu: RecordedImu | None = None


class FolderSource(Source):
    """The images of a folder, read one by one and passed on undecoded."""

    def __init__(self, path: Path, options: SourceOptions, camera: CameraModel | None = None) -> None:
        """List the folder; see `open_source`.

        Raises:
            SourceError: it has no images, or a file beside them cannot be interpreted.
        """
        listing = recognise(path)
        if options.rate is None:
            stamps = listing.stamps or [stamp_at(number, listing.rate) for number in listing.numbers]
            where = (listing.stamps and listing.times) or f"{path} ({listing.rate:g} Hz by the numbers in the names)"
            check_stamps(stamps, where, "give frames per second with --frame-rate (`rate`)")
        self.name, self.kind = path.resolve().name, listing.kind
        self._listing, self._options = listing, options
        self._companions = listing.companions if camera is None else listing.companions.with_camera(camera)
        self.lacks = self._companions.lacks
        self.imu = listing.imu if options.rate is None else None  # whose clock the stamps are then not by
        self._indices = options.indices(len(listing.files))
        if not len(self._indices):
            raise SourceError(f"{path} has {len(listing.files)} images; start {options.start} is after the last")
        if listing.kind == "images" and listing.stamps is None and options.rate is None:
            listing.notes.append(
                f"the names in {path} are not times: stamps are generated at {listing.rate:g} frames per second "
                "(--frame-rate)"
            )
        self._masks = None if options.masks is None else MaskFolder(options.masks)
        if self._masks is not None:
            self.has_masks = True
            files = [listing.files[index] for index in self._indices]
            found = sum(self._masks.find(0, file) is not None for file in files)
            if note := self._masks.note(found, len(files), f"{files[0].stem}.png"):
                listing.notes.append(note)
        listing.notes.extend(ignored_properties(listing.files[self._indices[0]]))
        self.length = len(self._indices)
        self.rate = (options.rate or listing.rate) / options.step
        self.camera = camera if camera is not None else listing.camera
        if self.camera is not None:
            size = image_size(listing.files[self._indices[0]])
            if size != (self.camera.width, self.camera.height):
                raise SourceError(
                    f"the calibration is for {self.camera.width}x{self.camera.height}, but the images in {path} are "
                    f"{size[0]}x{size[1]}; give the matching one with the option `camera`"
                )

    @property
    def notes(self) -> Sequence[str]:
        return tuple(self._listing.notes)

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
                None if self._masks is None else self._masks.find(index, file),
            )


def is_data_set(path: Path) -> bool:
    """Whether a folder has the layout of a known data set's recording."""
    return _reader(path) is not None


def _reader(path: Path) -> Callable[[], _Listing] | None:
    for folder in (path / "cam0", path / "mav0" / "cam0", path):
        if (folder / "data").is_dir() and ((folder / "sensor.yaml").is_file() or camchain(folder).is_file()):
            return partial(_euroc, folder)
    if (path / "rgb.txt").is_file():
        return partial(_tum, path)
    if (path / "associations.txt").is_file() and (path / "rgb").is_dir():
        return partial(_icl_nuim, path)
    if (path / "image_left").is_dir() and (path / "pose_left.txt").is_file():
        return partial(_tartanair, path)
    for name in _KITTI_IMAGES:
        if (path / name).is_dir():
            return partial(_kitti, path, path / name)
    return partial(_seven_scenes, path) if any(path.glob("frame-*.color.*")) else None


def recognise(path: Path) -> _Listing:
    """Detect from its contents what kind of data set a folder has.

    Raises:
        SourceError: it is none of the known ones, or an incomplete one.
    """
    reader = _reader(path)
    if reader is not None:
        return reader()
    images = image_folder(path)
    if not images.files:
        raise SourceError(
            f"{path} holds no images, no bag (metadata.yaml) and none of the known data sets (KITTI, 7-Scenes, EuRoC, "
            f"TUM RGB-D); expected files ending in {', '.join(FORMATS)}"
            + "".join(f"; {note}" for note in (*images.notes, *_suggestions(path)))
        )
    found = [path / name for name in _CAMERA_FILES if (path / name).is_file()]
    camera = load_camera(found[0]) if found else None
    files, stamps, times = _in_order(images.files, path)
    # A file that is not an image is a lost image: those after it keep their times.
    slots = {file.name: k for k, file in enumerate(sorted([*files, *(path / n for n in images.foreign)], key=natural))}
    numbers = [slots[file.name] for file in files] if stamps is None else list(range(len(files)))
    rate = 30.0 if stamps is None else _rate(stamps, 30.0)
    notes = [*images.notes, *([times] if times else [])]
    return _Listing("images", files, numbers, rate, stamps, camera, notes=notes, times=times)


def _suggestions(path: Path) -> list[str]:
    """Contents of a folder without images that the user may have meant."""
    inside = sorted(each for each in path.iterdir() if not each.name.startswith("."))
    folders = [each.name for each in inside if each.is_dir()]
    packed = [each.name for each in inside if each.suffix in (".zstd", ".zst", ".zip", ".gz", ".tar", ".tgz", ".7z")]
    found = []
    if folders:
        found.append(
            f"it has the folders {', '.join(folders[:_SHOWN])}{', ...' if folders[_SHOWN:] else ''}: name one of them"
        )
    if packed:
        how = f"`zstd -d {packed[0]}`" if packed[0].endswith((".zstd", ".zst")) else "unpack it"
        found.append(f"{packed[0]} is compressed: {how}")
    return found


def _in_order(files: list[Path], path: Path) -> tuple[list[Path], list[int] | None, str]:
    """Images of any names in order; with stamps and their origin, if the names are times."""
    try:
        names = read_names([file.stem for file in files], str(path))
    except SourceError:  # not all have a number
        return files, None, ""
    if names.stamps is None:
        return files, None, ""
    return [files[k] for k in names.order], names.stamps, f"stamps are from the names in {path} ({names.what})"


def _pinhole(matrix: NDArray[np.float64], size: tuple[int, int], where: Path) -> CameraModel:
    try:
        return CameraModel(size[0], size[1], matrix)
    except CameraError as error:
        raise SourceError(f"{where} holds no usable calibration: {error}") from error


def _kitti(path: Path, images: Path) -> _Listing:
    found = _images_of(images)
    numbers, are_times = numbered(found.files, images)
    files = [found.files[k] for k in sorted(range(len(numbers)), key=numbers.__getitem__)]
    numbers.sort()
    camera, left = None, 0
    rows: list[list[str]] = []
    calibration = path / "calib.txt"
    if calibration.is_file():
        # One 3x4 projection matrix per row, with or without a name (`P0:`); the first is of the left gray camera.
        table = read_table(calibration, 12, named=True)
        rows = [list(row) for row in table]
        left = 2 if images.name == "image_2" and len(rows) > 2 else 0
        if not rows:
            raise SourceError(f"{calibration} has no rows; expected projections of 12 numbers")
        matrix = numbers_in(table[left : left + 1], 12, calibration).reshape(3, 4)[:, :3]
        camera = _pinhole(matrix, image_size(files[0]), calibration)
    # Rows are indexed by frame number in a full sequence, and by file order in a part of one.
    stamps, rate, where = None, 10.0, path / "times.txt"
    raw = images.parent / "timestamps.txt"  # of KITTI's raw recordings, as dates
    if where.is_file() or raw.is_file():
        if where.is_file():
            table = read_table(where, 1)
            seconds = to_nanoseconds([row[0] for row in table], str(where), lines=[row.line for row in table])
        else:
            where = raw
            seconds = read_date_times(read_text(raw).strip().split("\n"), str(raw))
        at = [k if len(seconds) == len(files) else number for k, number in enumerate(numbers)]
        if max(at) >= len(seconds):
            raise SourceError(f"{where} has {len(seconds)} rows; image {max(at)} has none")
        stamps = [seconds[k] for k in at]
    elif are_times:
        stamps, where = numbers, images
    if stamps is not None:
        rate = _rate(stamps, rate)
    poses = None
    # Published beside the sequences, `poses/06.txt` for `sequences/06`.
    own, published = path / "poses.txt", path.resolve().parent.parent / "poses" / f"{path.resolve().name}.txt"
    truth = own if own.is_file() else published
    if truth.is_file():
        rows_of = read_numbers(truth, 12).reshape(-1, 3, 4)
        poses = [_square(rows_of, k if len(rows_of) == len(files) else number) for k, number in enumerate(numbers)]
    companions = kitti_right(path, images, files, rows, left, camera)
    return _Listing(
        "KITTI odometry", files, numbers, rate, stamps, camera, poses, True, companions, found.notes, str(where)
    )


def _images_of(folder: Path) -> ImageFolder:
    """The images of a folder that must not be empty."""
    found = image_folder(folder)
    if not found.files:
        raise SourceError(f"{folder} has no images" + "".join(f"; {note}" for note in found.notes))
    return found


def _square(rows: NDArray[np.float64], index: int) -> NDArray[np.float64] | None:
    if index >= len(rows) or not np.isfinite(rows[index]).all():
        return None
    return np.vstack([rows[index], [0.0, 0.0, 0.0, 1.0]])


def _seven_scenes(path: Path) -> _Listing:
    found = image_folder(path)
    files = [file for file in found.files if ".color." in file.name]
    numbers = numbers_of(files, path)
    poses: list[NDArray[np.float64] | None] = []
    for file in files:
        pose_file = file.with_name(file.name.split(".color.")[0] + ".pose.txt")
        # Frames without tracking have poses of nan or inf.
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
    else:
        if image_size(files[0]) == (640, 480):
            camera = published_camera(KINECT_DEPTH)
    return _Listing(
        "7-Scenes", files, numbers, 30.0, None, camera, poses, True, seven_scenes_depth(files, camera), found.notes
    )


def _euroc(folder: Path) -> _Listing:
    sensor, camera = euroc_sensor(folder)
    images, table = folder / "data", folder / "data.csv"
    found = _images_of(images)
    files, where = found.files, str(images)
    if table.is_file():
        rows = read_table(table, 2)
        stamps = to_nanoseconds([row[0] for row in rows], str(table), NANOSECONDS, [row.line for row in rows])
        there = {file.name: file for file in files}
        named = [(stamp, file_named(row[1], folder, images).name) for stamp, row in zip(stamps, rows, strict=True)]
        chosen = [(stamp, there[name]) for stamp, name in named if name in there]
        files, stamps, where = [file for _, file in chosen], [stamp for stamp, _ in chosen], str(table)
        if not files:
            raise SourceError(f"{table} names none of the images in {images}")
    else:
        names = read_names([file.stem for file in files], str(images), NANOSECONDS)
        files, stamps = [files[k] for k in names.order], list(names.stamps or ())
        where = f"{images} without data.csv ({names.what})"
    poses = None
    body = folder.resolve().parent
    truth = body / "state_groundtruth_estimate0" / "data.csv"
    if not truth.is_file():
        truth = body / "mocap0" / "data.csv"  # of TUM-VI, in the inertial sensor's frame, too
    if truth.is_file() and "T_BS" in sensor:
        rows = read_table(truth, 8)
        times = to_nanoseconds([row[0] for row in rows], str(truth), NANOSECONDS, [row.line for row in rows])
        # The file's quaternions are (w, x, y, z), and its poses are the body's.
        values = numbers_in(rows, 8, truth)[:, [1, 2, 3, 5, 6, 7, 4]]
        in_body = body_camera(sensor, folder)
        poses = [None if p is None else p @ in_body for p in _nearest_poses(times, values, stamps)]
    rate = _positive(sensor.get("rate_hz", 20), folder / "sensor.yaml")
    companions = euroc_right(folder, sensor, files, stamps)
    numbers = list(range(len(files)))
    imu, notes = None, list(found.notes)
    if (body / "imu0" / "data.csv").is_file() and (folder / "sensor.yaml").is_file():
        try:
            imu = euroc_imu(folder, sensor, read_yaml(body / "imu0" / "sensor.yaml"))
        except SourceError as error:
            notes.append(f"the gyroscope is not used: {error}")
    return _Listing("EuRoC", files, numbers, rate, stamps, camera, poses, True, companions, notes, where, imu)


def _positive(value: object, where: Path) -> float:
    if isinstance(value, int | float) and np.isfinite(value) and value > 0:
        return float(value)
    raise SourceError(f"{where} has the rate_hz {value!r}; expected frames per second, more than 0")


def _tum(path: Path) -> _Listing:
    listed = stamped_files(path, "rgb.txt")
    stamps, files = [stamp for stamp, _ in listed], [file for _, file in listed]
    missing = [file for file in files if not file_exists(file) or file.suffix.lower() not in FORMATS]
    if missing or not files:
        raise SourceError(f"{path / 'rgb.txt'} lists {len(files)} images, {len(missing)} of which are not there")
    poses = None
    truth = path / "groundtruth.txt"
    if truth.is_file():
        rows = read_table(truth, 8)
        times = to_nanoseconds([row[0] for row in rows], str(truth), lines=[row.line for row in rows])
        poses = _nearest_poses(times, numbers_in(rows, 8, truth)[:, 1:], stamps)
    camera = None
    found = [path / name for name in _CAMERA_FILES if (path / name).is_file()]
    series = next((name for name in _TUM_CAMERAS if name in path.resolve().name), None)
    if found:
        camera = load_camera(found[0])
    elif series is not None:
        camera = published_camera(*_TUM_CAMERAS[series])
    rate, companions, numbers = _rate(stamps, 30.0), tum_depth(path, stamps), list(range(len(files)))
    where = str(path / "rgb.txt")
    return _Listing("TUM RGB-D", files, numbers, rate, stamps, camera, poses, True, companions, times=where)


def _icl_nuim(path: Path) -> _Listing:
    rows = read_table(path / "associations.txt", 4)
    files = [file_named(row[3], path, path / "rgb") for row in rows]
    depth = [file_named(row[1], path, path / "depth") for row in rows]
    numbers = [int(n) for n in numbers_in(rows, 1, path / "associations.txt")[:, 0]]
    missing = sum(not file_exists(file) for file in files)
    if missing or not files:
        raise SourceError(f"{path / 'associations.txt'} lists {len(files)} images, {missing} of which are not there")
    poses = None
    for truth in sorted(path.glob("*.gt.freiburg"))[:1]:
        table = read_numbers(truth, 8)
        known = {int(row[0]): pose for row in table if (pose := _pose(row[1:])) is not None}
        poses = [None if number not in known else _UPSIDE @ known[number] @ _UPSIDE for number in numbers]
    return _Listing("ICL-NUIM", files, numbers, 30.0, None, published_camera(_ICL), poses, True, icl_depth(depth))


def _tartanair(path: Path) -> _Listing:
    found = _images_of(path / "image_left")
    numbers = numbers_of(found.files, path / "image_left")
    table, camera = read_numbers(path / "pose_left.txt", 7), published_camera(_TARTANAIR)
    at = [k if len(table) == len(numbers) else number for k, number in enumerate(numbers)]
    known = [_pose(table[k]) if k < len(table) else None for k in at]
    poses = [None if pose is None else pose @ _AIRCRAFT for pose in known]
    companions = tartanair(path, found.files, camera)
    return _Listing("TartanAir", found.files, numbers, 30.0, None, camera, poses, True, companions, found.notes)


def _nearest_poses(times: list[int], table: NDArray[np.float64], stamps: list[int]) -> list[NDArray[np.float64] | None]:
    """The pose nearest in time to each stamp, None if none is near enough.

    Args:
        times: of the poses, in nanoseconds.
        table: (N, 7) rows of translation and quaternion (x, y, z, w).
        stamps: nanoseconds.
    """
    if not len(table):
        return [None] * len(stamps)
    order = np.argsort(np.array(times, np.int64), kind="stable")
    ordered = np.array(times, np.int64)[order]
    poses: list[NDArray[np.float64] | None] = []
    for stamp in stamps:
        right = int(np.searchsorted(ordered, stamp))
        best = min((k for k in (right - 1, right) if 0 <= k < len(ordered)), key=lambda k: abs(int(ordered[k]) - stamp))
        row = table[order[best]]
        poses.append(_pose(row) if abs(int(ordered[best]) - stamp) <= _NEAR_ENOUGH * 1e9 else None)
    return poses


def _pose(row: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The pose of a translation and a quaternion (x, y, z, w); None if it is none."""
    return from_quaternion(row[:3], row[3:7]) if np.isfinite(row).all() and row[3:7].any() else None


def _rate(stamps: list[int], default: float) -> float:
    """Nominal rate in Hz of stamps in nanoseconds, ignoring gaps."""
    steps = np.diff(np.array(stamps, np.int64)) if len(stamps) > 1 else np.zeros(0)
    middle = float(np.median(steps)) if len(steps) else 0.0
    return 1e9 / middle if middle > 0 else default
