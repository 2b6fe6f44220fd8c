"""Broken files and messages for every reader: valid ones, changed at random. The caller provides the randomness."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from bags import IMAGE, INFO, camera_info, image, write_bag
from test_text_formats import EUROC, FILES

from loftr_ros.frontend.image_files import ImageError
from loftr_ros.frontend.mask import MaskError, read_mask
from loftr_ros.geometry.camera import CameraError, CameraModel
from loftr_ros.recordings import SourceError, load_camera, open_source
from loftr_ros.recordings.decoding import ENCODINGS, decode_compressed, decode_depth, decode_image
from loftr_ros.settings import ConfigError
from loftr_ros.tools.params_file import node_parameters

WIDTH, HEIGHT = 64, 48
REFUSALS = (CameraError, ConfigError, ImageError, MaskError, SourceError)

NASTY = [
    *("", "nan", "inf", "-inf", "-1", "0", "1e400", "1e999999999", "-0", "1e-400", "9" * 40, "9" * 5000, "0x10"),
    *("\0", "\ufeff", "\u2028", "\x85", "é", "😀", "'", '"', ",", ";", "\t", "#", ":", "- ", "---", "...", "%YAML:1.0"),
    *("&a", "*a", "!!python/object:os.system", "!!binary", "!!float", "!!int x", "!!timestamp", "<<", "? ", "|", ">"),
    *("{", "}", "[", "]", "[" * 500, "{a: " * 500, "null", "~", "true", "2001-13-45", "1:30", ".", "..", "/", "\\"),
    *("x" * 300, "2147483648", "18446744073709551616", "1403715273262142976", "1.4e+18", "0.1.2", "data", "cam0"),
    *("1_000", "%", "\u0663", "\u00b2", "P0:"),
]
_BYTES = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\r\n")


def change_text(random: Random, text: str) -> bytes:
    """A text file's bytes, changed in a few places."""
    for _ in range(random.randint(0, 4)):
        kind = random.randint(0, 8)
        lines = text.split("\n")
        at = random.randrange(len(lines))
        if kind == 0:
            lines[at] = random.choice(NASTY)
        elif kind == 1:
            del lines[at]
        elif kind == 2:
            lines.insert(at, lines[random.randrange(len(lines))])
        elif kind == 3:
            random.shuffle(lines)
        elif kind in (4, 5):
            words = lines[at].replace(",", " , ").split(" ")
            words[random.randrange(len(words))] = random.choice(NASTY)
            lines[at] = " ".join(words)
        elif kind == 6:
            place = random.randint(0, len(lines[at]))
            lines[at] = lines[at][:place] + random.choice(NASTY) + lines[at][place:]
        elif kind == 7:
            lines = lines[: at + 1]
        else:
            lines[at] = " " * random.randint(0, 9) + lines[at].lstrip()
        text = "\n".join(lines)
    data = text.encode("utf-8", "surrogatepass")
    return change_bytes(random, data) if random.randint(0, 4) == 0 else data


def change_bytes(random: Random, data: bytes) -> bytes:
    """Bytes, changed in a few places, truncated or extended."""
    for _ in range(random.randint(1, 4)):
        kind, at = random.randint(0, 5), random.randint(0, max(len(data) - 1, 0))
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + bytes(random.randrange(256) for _ in range(random.randint(1, 8))) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + random.choice(_BYTES) + data[at + 4 :]
        elif kind == 3:
            data = data[:at] + data[at + random.randint(1, 64) :]
        elif kind == 4:
            data = random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"", b"\n" * 9)) + data
        else:
            data += data[: random.randint(0, 99)]
    return data


@dataclass
class Reader:
    """A reader with its input.

    Attributes:
        prepare: creates a folder once; its result is passed to every `attempt`.
        attempt: makes one case from the randomness, and reads it; returns a description of the case.
        share: of all cases.
    """

    prepare: Callable[[Path], Any]
    attempt: Callable[[Random, Path, Any], object]
    share: float = 1.0
    prepared: dict[Path, Any] = field(default_factory=dict)


@dataclass
class Case:
    """One case of a reader."""

    reader: Reader
    seed: int
    folder: Path
    described: str = ""


def run_case(case: Case) -> str:
    """Returns `read` or `refused`; any other error of a reader is raised."""
    return attempt(case.reader, Random(case.seed), case.folder)


def attempt(reader: Reader, random: Random, folder: Path) -> str:
    """As `run_case`, with any source of randomness."""
    if folder not in reader.prepared:
        place = folder / f"r{next(_NUMBERS)}"
        place.mkdir()
        reader.prepared[folder] = (place, reader.prepare(place))
    place, prepared = reader.prepared[folder]
    try:
        reader.attempt(random, place, prepared)
    except REFUSALS as error:
        if not str(error):
            raise AssertionError("an error without a word") from error
        return "refused"
    return "read"


_NUMBERS = itertools.count()


def picture() -> np.ndarray:
    return np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint8)


# --- text ---


def read_source(path: Path, mode: str = "mono", **options: Any) -> None:
    """Open a source and make a frame of its first image; a refused image is a refusal too."""
    with open_source(path, **options) as source:
        source.require(mode)
        for frame in itertools.islice(source, 3):
            frame.to_frame(mode)


def _text_file(name: str, texts: list[str], read: Callable[[Path], object]) -> Reader:
    def run(random: Random, place: Path, _: Any) -> None:
        (place / name).write_bytes(change_text(random, random.choice(texts)))
        read(place / name)

    return Reader(lambda place: None, run)


PARAMETERS = [
    "/**:\n  ros__parameters:\n    mode: rgbd\n    input: {rectified: true, white_level: 4095}\n    keyframe.max: 5\n",
    "a:\n  ros__parameters: {x: 1}\nns:\n  loftr_front_end:\n    ros__parameters:\n      input:\n        slop: 1e-2\n",
]


XML = """<?xml version="1.0"?>
<opencv_storage>
<image_width>64</image_width>
<image_height>48</image_height>
<camera_matrix type_id="opencv-matrix">
  <rows>3</rows>
  <cols>3</cols>
  <dt>d</dt>
  <data>
    400. 0. 31. 0. 401. 21. 0. 0. 1.</data></camera_matrix>
<distortion_coefficients type_id="opencv-matrix">
  <rows>1</rows>
  <cols>4</cols>
  <dt>d</dt>
  <data>
    0.1 -0.05 0. 0.</data></distortion_coefficients>
</opencv_storage>
"""


def _folder(write: Callable[[Path], dict[str, str]], mode: str) -> Reader:
    """A data set with one changed text file per case."""

    def run(random: Random, place: Path, texts: dict[str, str]) -> None:
        name = random.choice(sorted(texts))
        try:
            (place / name).write_bytes(change_text(random, texts[name]))
            read_source(place, mode)
        finally:
            (place / name).write_text(texts[name])

    def prepare(place: Path) -> dict[str, str]:
        texts = write(place)
        for name, text in texts.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        return texts

    return Reader(prepare, run)


def _images(folder: Path, names: list[str], values: np.ndarray | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), picture() if values is None else values)


def _kitti(place: Path) -> dict[str, str]:
    for side in ("image_0", "image_1"):
        _images(place / side, [f"{k:06d}.png" for k in range(3)])
    row = "60 0 30 {} 0 60 20 0 0 0 1 0"
    return {
        "calib.txt": f"P0: {row.format(0)}\nP1: {row.format(-6)}\n",
        "times.txt": "0.0\n0.1\n0.2\n",
        "poses.txt": "1 0 0 0 0 1 0 0 0 0 1 0\n" * 3,
    }


def _kitti_raw(place: Path) -> dict[str, str]:
    _images(place / "image_00" / "data", [f"{k:010d}.png" for k in range(3)])
    return {"image_00/timestamps.txt": "".join(f"2011-09-26 13:02:25.{k}64389445\n" for k in range(3))}


def _tum(place: Path) -> dict[str, str]:
    _images(place / "rgb", [f"{k}.png" for k in range(3)])
    _images(place / "depth", [f"{k}.png" for k in range(3)], np.full((HEIGHT, WIDTH), 5000, np.uint16))
    times = [f"1341846313.{k}00000" for k in range(3)]
    return {
        "rgb.txt": "# color\n" + "".join(f"{time} rgb/{k}.png\n" for k, time in enumerate(times)),
        "depth.txt": "# depth\n" + "".join(f"{time} depth/{k}.png\n" for k, time in enumerate(times)),
        "groundtruth.txt": "".join(f"{time} 0 0 0 0 0 0 1\n" for time in times),
        "camera.yaml": FILES["camera_calibration"],
    }


def _euroc(place: Path) -> dict[str, str]:
    stamps = [1403715273262142976 + k * 50_000_000 for k in range(3)]
    for side in ("cam0", "cam1"):
        _images(place / side / "data", [f"{stamp}.png" for stamp in stamps])
    table = "#t,name\n" + "".join(f"{stamp},{stamp}.png\n" for stamp in stamps)
    shifted = EUROC.replace("[1, 0, 0, 0,", "[1, 0, 0, 0.1,")
    return {
        "cam0/sensor.yaml": EUROC,
        "cam1/sensor.yaml": shifted,
        "cam0/data.csv": table,
        "cam1/data.csv": table,
        "state_groundtruth_estimate0/data.csv": "#t,p,q\n" + "".join(f"{s},0,0,0,1,0,0,0,0\n" for s in stamps),
    }


def _seven_scenes(place: Path) -> dict[str, str]:
    _images(place, [f"frame-{k:06d}.color.png" for k in range(3)])
    _images(place, [f"frame-{k:06d}.depth.png" for k in range(3)], np.full((HEIGHT, WIDTH), 1000, np.uint16))
    pose = "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
    texts = {f"frame-{k:06d}.pose.txt": pose for k in range(3)}
    return texts | {"camera-intrinsics.txt": "58 0 32\n0 58 24\n0 0 1\n"}


def _names() -> Reader:
    parts = ["0", "1", "007", "10.2", "10.15", "1403715273262142976", "1403715273", "cam", "img-", "_", ".", " ", "é"]
    parts += ["9" * 40, "-", "x", "640x480", "2024-01-02", "frame-", ".color", "(1)", "%", "#", "\u2028", "\u0663"]

    def run(random: Random, place: Path, data: bytes) -> None:
        for old in place.iterdir():
            old.unlink()
        for _ in range(random.randint(1, 5)):
            stem = "".join(random.choice(parts) for _ in range(random.randint(1, 5)))
            name = (stem.strip("./") or "a") + random.choice((".png", ".PNG", ".jpg", ".tiff", ".txt", ".db", ""))
            (place / name).write_bytes(random.choice((data, data, data, b"", b"<html>", change_bytes(random, data))))
        read_source(place)

    return Reader(lambda place: cv2.imencode(".png", picture())[1].tobytes(), run)


# --- images, messages, bags ---


@cache
def encoded(ending: str, bits: int) -> bytes:
    values = picture() if bits == 8 else picture().astype(np.uint16) * 100
    values = np.dstack([values] * 4) if ending == ".png" and bits == 8 else values
    return bytes(cv2.imencode(ending, values)[1].tobytes())


def _image_file(random: Random, place: Path, _: Any) -> None:
    ending = random.choice((".png", ".jpg", ".pgm", ".ppm", ".bmp", ".tiff", ".webp"))
    bits = random.choice((8, 16)) if ending in (".png", ".tiff", ".pgm") else 8
    source = encoded(".png" if ending == ".ppm" else ending, bits) if ending != ".ppm" else b"P6 2 2 255\n" + bytes(12)
    head = random.randint(0, 1)
    data = change_bytes(random, source[:64]) + source[64:] if head else change_bytes(random, source)
    for old in place.iterdir():
        old.unlink()
    (place / f"0{random.choice((ending, '.png'))}").write_bytes(data)
    read_source(place)


def _mask(random: Random, place: Path, _: Any) -> None:
    (place / "mask.png").write_bytes(change_bytes(random, encoded(".png", random.choice((8, 16)))))
    read_mask(place / "mask.png")


_NUMBERS_OF_HEADERS = [0, 1, 2, 3, 7, 47, 48, 64, 128, 192, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1]


def _message(random: Random, _: Path, __: Any) -> None:
    pick: Callable[[int], int] = lambda good: good if random.randint(0, 2) else random.choice(_NUMBERS_OF_HEADERS)  # noqa: E731
    encoding = random.choice((*ENCODINGS, "16UC1", "32FC1", "", "jpeg", "MONO8", "bayer_rggb12", "x" * 99))
    size = random.choice((0, 1, 3072, 6144, 9216, 12288, 24576))
    kinds = (bytes(size), bytearray(size), np.zeros(size, np.uint8), [0] * min(size, 99), [300], "text", None)
    data = random.choice(kinds)
    message = SimpleNamespace(
        height=pick(48), width=pick(64), encoding=encoding, is_bigendian=pick(0), step=pick(64), data=data
    )
    if random.randint(0, 3) == 0:
        decode_depth(message)
    else:
        decode_image(message, random.choice((0, 1, 4095, 65535)))


def _compressed_message(random: Random, _: Path, __: Any) -> None:
    data = change_bytes(random, encoded(random.choice((".png", ".jpg", ".tiff", ".webp", ".bmp")), 8))
    name = random.choice(("jpeg", "png", "", "bayer_rggb8; jpeg compressed ", "rgb8; jpeg compressed bgr8", "x"))
    decode_compressed(SimpleNamespace(format=name, data=data), random.choice((0, 4095, 65535)))


_VALUES = [0.0, 1.0, -1.0, 60.0, 1e-300, 1e300, float("nan"), float("inf"), 0.5, 1e-12, 31.5]
_MODELS = ["plumb_bob", "rational_polynomial", "equidistant", "fisheye", "", "Brown Conrady", "kannala_brandt", "x"]


def _camera_info(random: Random, _: Path, __: Any) -> None:
    k = [60.0, 0.0, 31.5, 0.0, 60.0, 23.5, 0.0, 0.0, 1.0]
    for _ in range(random.choice((0, 0, 0, 1, 3))):
        k[random.randrange(9)] = random.choice(_VALUES)
    d = [random.choice((0.0, 0.01, -0.2)) for _ in range(random.choice((0, 3, 4, 4, 5, 5, 8, 8, 12, 14, 20)))]
    if d and random.randint(0, 1):
        d[random.randrange(len(d))] = random.choice(_VALUES)
    roi = dict.fromkeys(("x_offset", "y_offset", "width", "height"), 0)
    for _ in range(random.choice((0, 0, 1, 4))):
        roi[random.choice(sorted(roi))] = random.choice((1, 10, 20, 2**32 - 1))
    info = SimpleNamespace(
        k=k[: random.choice((*[9] * 9, 4))],
        d=d,
        distortion_model=random.choice(_MODELS),
        width=random.choice((*[64] * 9, 0, 2**32 - 1)),
        height=random.choice((*[48] * 9, 0, 2**32 - 1)),
        binning_x=random.choice((*[0] * 5, 1, 2, 2**32 - 1)),
        binning_y=random.choice((*[0] * 5, 1, 2, 2**32 - 1)),
        roi=SimpleNamespace(**roi),
    )
    with np.errstate(all="ignore"):
        camera = CameraModel.from_camera_info(info)
        rays = camera.unproject(np.array([[0.0, 0.0], [31.5, 23.5], [63.0, 47.0]]))
        camera.project(np.insert(np.nan_to_num(rays), 2, 1.0, axis=1))


def _bags(place: Path) -> list[tuple[str, bytes]]:
    found = []
    for storage in ("mcap", "sqlite3"):
        messages: list[Any] = []
        for number in range(6):
            stamp = (number + 1) * 10**8
            messages.append(("/left/camera_info", INFO, stamp, camera_info(WIDTH, HEIGHT, stamp)))
            messages.append(("/left/image", IMAGE, stamp + 1, image(picture(), stamp)))
        path = write_bag(place / storage, messages, storage)
        file = next(each for each in path.iterdir() if each.suffix in (".mcap", ".db3"))
        found.append((file.suffix, file.read_bytes()))
        found.append(("metadata.yaml" + file.suffix, (path / "metadata.yaml").read_bytes()))
    return found


def _bag(random: Random, place: Path, bags: list[tuple[str, bytes]]) -> None:
    ending, data = random.choice(bags)
    if ending.startswith("metadata"):
        folder = place / ("mcap" if ending.endswith("mcap") else "sqlite3")
        good = (folder / "metadata.yaml").read_bytes()
        try:
            (folder / "metadata.yaml").write_bytes(change_text(random, data.decode()))
            read_source(folder)
        finally:
            (folder / "metadata.yaml").write_bytes(good)
        return
    cut = len(data) * random.randint(0, 100) // 100
    data = data[:cut] if random.randint(0, 1) else change_bytes(random, data)
    file = place / f"bag{ending}"
    file.write_bytes(data)
    read_source(file)


def _video(random: Random, place: Path, data: bytes) -> None:
    (place / "clip.avi").write_bytes(change_bytes(random, data))
    read_source(place / "clip.avi")


def _write_video(place: Path) -> bytes:
    path = place / "good.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (WIDTH, HEIGHT))
    for _ in range(4):
        writer.write(cv2.cvtColor(picture(), cv2.COLOR_GRAY2BGR))
    writer.release()
    return path.read_bytes()


READERS: dict[str, Reader] = {
    "text: parameter files": replace(_text_file("params.yaml", PARAMETERS, node_parameters), share=2.0),
    "text: calibrations": _text_file("camera.yaml", [*FILES.values(), XML], load_camera),
    "text: KITTI": replace(_folder(_kitti, "stereo"), share=0.5),
    "text: KITTI raw": replace(_folder(_kitti_raw, "mono"), share=0.2),
    "text: TUM RGB-D": replace(_folder(_tum, "rgbd"), share=0.5),
    "text: EuRoC": replace(_folder(_euroc, "stereo"), share=0.5),
    "text: 7-Scenes": replace(_folder(_seven_scenes, "rgbd"), share=0.5),
    "names": replace(_names(), share=0.5),
    "image files": Reader(lambda place: None, _image_file, 2.0),
    "masks": Reader(lambda place: None, _mask, 0.5),
    "messages: images": Reader(lambda place: None, _message, 6.0),
    "messages: compressed": Reader(lambda place: None, _compressed_message, 3.0),
    "messages: CameraInfo": Reader(lambda place: None, _camera_info, 6.0),
    "bags": Reader(_bags, _bag, 0.3),
    "videos": Reader(_write_video, _video, 0.5),
}
