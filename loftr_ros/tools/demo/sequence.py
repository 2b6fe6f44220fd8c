"""The frames that the demo plays, from any source. The rendered scene is kept in a folder, to render it only once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.se3 import quaternion_of
from loftr_ros.recordings import Source, SourceError, SourceFrame, open_source, rendered
from loftr_ros.worlds import rasterizer, room, scene, textures, texturing

RENDERED_FRAMES = 150
_LABEL = "rendered.json"
_TUM_UNITS = 5000  # units of the depth image in a metre


@dataclass
class Truth:
    """Data from a second pass over a source.

    Attributes:
        stamps: of all frames, in nanoseconds, in order.
        poses: (4, 4) T_world_camera by stamp, where known.
        images: (H, W) uint8 by stamp, the requested ones.
    """

    stamps: list[int] = field(default_factory=list)
    poses: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    images: dict[int, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sequence:
    """The frames to play: how both processes open them, and their properties.

    Attributes:
        uri, options: for `open_source`.
        name, kind: for people.
        rate: frames a second.
        length: number of frames; None if unknown.
        size: (width, height) in pixels.
        calibrated: whether it has a calibration.
    """

    uri: str
    options: Mapping[str, Any]
    name: str
    kind: str
    rate: float
    length: int | None
    size: tuple[int, int]
    calibrated: bool

    def look_again(self, wanted: set[int]) -> Truth:
        """Read the source again for its poses, and for the images with the stamps in `wanted`.

        Reading a source without poses stops once the images are found.
        """
        truth, missing = Truth(), set(wanted)
        with open_source(self.uri, **self.options) as source:
            for frame in source:
                truth.stamps.append(frame.stamp_ns)
                if frame.pose is not None:
                    truth.poses[frame.stamp_ns] = frame.pose
                if frame.stamp_ns in missing:
                    missing.discard(frame.stamp_ns)
                    truth.images[frame.stamp_ns] = frame.decode()
                if not missing and not truth.poses:
                    break
        return truth


def prepare(
    uri: str, folder: Path, frames: int | None, options: Mapping[str, Any], progress: bool, mode: str = ""
) -> Sequence:
    """Open a source to find its properties; render it to a folder if it is the rendered scene.

    Args:
        uri: see `open_source`.
        folder: for rendered frames.
        frames: maximum number of frames; None for all, or RENDERED_FRAMES of the rendered scene.
        options: other options of `open_source`: start, step, topic, camera.
        progress: show a progress bar while rendering.
        mode: of the front end; empty for mono.

    Raises:
        SourceError: the source cannot be opened, lacks what the mode needs, or its first frame cannot be read.
    """
    start, step = int(options.get("start", 0)), int(options.get("step", 1))
    chosen = {name: value for name, value in options.items() if value is not None}
    is_scene = uri.partition("?")[0].partition(":")[0] == "rendered" and not Path(uri).exists()
    if is_scene and "frames=" not in uri:
        count = start + step * (RENDERED_FRAMES if frames is None else frames)
        uri = (uri if ":" in uri else f"{uri}:room") + ("&" if "?" in uri else "?") + f"frames={count}"
    elif frames is not None:
        chosen["stop"] = start + frames * step
    if not is_scene:
        # The children have another current folder. A missing source keeps its name, for the error message.
        uri = str(Path(uri).expanduser().resolve()) if Path(uri).expanduser().exists() else uri
        if "camera" in chosen:
            chosen["camera"] = str(Path(chosen["camera"]).expanduser().resolve())
    with open_source(uri, **chosen) as source:
        name, kind, rate = source.name, source.kind, source.rate
        if is_scene:
            asked = json.dumps([uri, chosen, mode], default=str)
            uri, chosen = str(_kept(source, asked, folder, progress, mode)), {}
    with open_source(uri, **chosen) as source:
        source.require(mode or MONO)
        first = next(iter(source), None)
        if first is None:
            raise SourceError(f"{uri} has no frames")
        height, width = first.decode().shape
        calibrated = first.camera is not None
        return Sequence(uri, chosen, name, kind, rate, source.length, (width, height), calibrated)


def _kept(source: Source, asked: str, folder: Path, progress: bool, mode: str) -> Path:
    """The folder with the rendered frames, rendered now unless it already has the same frames.

    The layout is that of TUM RGB-D with depth images, else KITTI's.
    """
    from tqdm import tqdm

    assert source.camera is not None
    code = hashlib.sha256()
    for module in (scene, room, textures, texturing, rasterizer, rendered):
        code.update(Path(str(module.__file__)).read_bytes())
    label = json.dumps({"source": asked, "code": code.hexdigest()})
    folder = folder.resolve()
    if (folder / _LABEL).is_file() and (folder / _LABEL).read_text() == label:
        return folder
    if folder.exists() and not (folder / _LABEL).is_file():
        raise SourceError(
            f"{folder} is needed for rendered frames, but has other content; choose another output folder"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _LABEL).write_text("unfinished")
    bar = tqdm(source, f"rendering {source.name}", source.length, unit="frame", disable=None if progress else True)
    (_keep_depth if mode == RGBD else _keep)(folder, source.camera, bar, mode)
    (folder / _LABEL).write_text(label)
    return folder


def _keep(folder: Path, camera: CameraModel, frames: Iterable[SourceFrame], mode: str) -> None:
    """Write frames in KITTI's layout, with the right images of a stereo pair."""
    projection = np.hstack([camera.matrix, np.zeros((3, 1))])
    rows = ["P0: " + _row(projection)]
    poses, times = [], []
    (folder / "image_0").mkdir()
    for count, frame in enumerate(frames):
        assert frame.pose is not None
        _write(folder / "image_0" / f"{count:06d}.png", frame.decode())
        if mode == STEREO:
            right = frame.decode_right()
            (folder / "image_1").mkdir(exist_ok=True)
            _write(folder / "image_1" / f"{count:06d}.png", right.image)
            shift = -right.camera.matrix @ right.left_from_right[:3, 3:]
            rows[1:] = ["P1: " + _row(np.hstack([right.camera.matrix, shift]))]
        poses.append(_row(frame.pose[:3]))
        times.append(_seconds(frame.stamp_ns))
    (folder / "calib.txt").write_text("\n".join(rows) + "\n")
    (folder / "poses.txt").write_text("\n".join(poses) + "\n")
    (folder / "times.txt").write_text("\n".join(times) + "\n")


def _keep_depth(folder: Path, camera: CameraModel, frames: Iterable[SourceFrame], _: str) -> None:
    """Write frames in the layout of TUM RGB-D: depth in steps of 0.2 mm; depths above 13 m are holes."""

    images, depths, poses = [], [], []
    for name in ("rgb", "depth"):
        (folder / name).mkdir()
    for count, frame in enumerate(frames):
        assert frame.pose is not None
        name, stamp = f"{count:06d}.png", _seconds(frame.stamp_ns)
        _write(folder / "rgb" / name, frame.decode())
        depth = frame.decode_depth()
        units = np.nan_to_num(np.rint(depth.metres(depth.values) * _TUM_UNITS))
        cv2.imwrite(str(folder / "depth" / name), np.where(units < 65535, units, 0).astype(np.uint16))
        images.append(f"{stamp} rgb/{name}")
        depths.append(f"{stamp} depth/{name}")
        turn = np.array(quaternion_of(frame.pose[:3, :3]))
        poses.append(f"{stamp} {_row(frame.pose[:3, 3])} {_row(turn)}")
    for file, lines in (("rgb.txt", images), ("depth.txt", depths), ("groundtruth.txt", poses)):
        (folder / file).write_text("\n".join(lines) + "\n")
    matrix = camera.matrix.ravel().tolist()
    (folder / "camera.yaml").write_text(
        f"image_width: {camera.width}\nimage_height: {camera.height}\n"
        f"camera_matrix: {{rows: 3, cols: 3, data: {matrix}}}\n"
    )


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns // 10**9}.{stamp_ns % 10**9:09d}"


def _write(file: Path, image: NDArray[np.uint8]) -> None:
    cv2.imwrite(str(file), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _row(matrix: NDArray[np.float64]) -> str:
    return " ".join(f"{value:.17g}" for value in matrix.ravel())
