"""Sources of frames: folders, videos, bags and the rendered scenes, without ROS.

`loftr_ros play` publishes a source over ROS 2, `loftr_ros run` feeds it to the front end; both get the same frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings.base import (
    BagImage,
    EncodedImage,
    PixelImage,
    Source,
    SourceError,
    SourceFrame,
    SourceOptions,
)
from loftr_ros.recordings.calibration import load_camera
from loftr_ros.recordings.companions import DepthFile, RightView

# First bytes of bags: mcap, sqlite3, ROS 1.
_BAG_MAGIC = {b"\x89MCAP": ".mcap", b"SQLite format 3": ".db3", b"#ROSBAG": ".bag"}


def open_source(uri: str | Path, **options: Any) -> Source:
    """Open a source and detect its kind from its contents.

    Args:
        uri: a folder (KITTI odometry, 7-Scenes, EuRoC, TUM RGB-D, a rosbag2, or any images), a file (.mcap, .db3, .bag,
            or a video), or `rendered`, `rendered:room?seed=1&frames=60&rate=30&width=640&height=480`, or `revisits`,
            `revisits:700?rate=10`.
        options: the fields of `SourceOptions`: start, stop, step, rate, topic, right_topic, depth_topic, mask_topic,
            masks, camera.

    Raises:
        SourceError: there is no readable source, or an option does not fit it.
    """
    try:
        chosen = SourceOptions(**options)
    except TypeError as error:
        known = ", ".join(SourceOptions.__dataclass_fields__)
        raise SourceError(f"options of a source are {known}; got {', '.join(options)}") from error
    camera = chosen.camera if isinstance(chosen.camera, CameraModel | None) else load_camera(chosen.camera)
    text, path = str(uri), Path(uri).expanduser()
    if not path.exists():
        head, _, query = text.partition("?")
        kind, _, name = head.partition(":")
        if chosen.masks is not None and kind in ("rendered", "revisits"):
            raise SourceError(f"{text} is not a folder or a video: the option `masks` has no meaning for it")
        if kind == "rendered":
            from loftr_ros.recordings.rendered import RenderedSource

            return RenderedSource(name or "room", dict(parse_qsl(query, keep_blank_values=True)), chosen, camera)
        if kind == "revisits":
            from loftr_ros.recordings.revisits import RevisitsSource

            return RevisitsSource(name, dict(parse_qsl(query, keep_blank_values=True)), chosen, camera)
        raise SourceError(f"{text} does not exist; expected a folder, a video, a bag, `rendered` or `revisits`")
    path = _bag_in(path)
    is_bag = (path / "metadata.yaml").is_file() if path.is_dir() else _is_bag(path)
    for name in ("topic", "right_topic", "depth_topic", "mask_topic"):
        if getattr(chosen, name) is not None and not is_bag:
            raise SourceError(f"{text} is not a bag: the option `{name}` has no meaning for it")
    if is_bag:
        if chosen.masks is not None:
            raise SourceError(f"{text} is a bag: its masks come from a topic, with --mask-topic (`mask_topic`)")
        from loftr_ros.recordings.bag import BagSource

        return BagSource(path, chosen, camera)
    if path.is_dir():
        from loftr_ros.recordings.folders import FolderSource

        return FolderSource(path, chosen, camera)
    from loftr_ros.recordings.video import VideoSource

    return VideoSource(path, chosen, camera)


def open_recording(
    path: str | Path,
    *,
    start: int = 0,
    stop: int | None = None,
    step: int = 1,
    rate: float | None = None,
    topic: str | None = None,
    right_topic: str | None = None,
    depth_topic: str | None = None,
    mask_topic: str | None = None,
    masks: str | Path | None = None,
    camera: str | Path | CameraModel | None = None,
) -> Source:
    """Open a recording, whose kind is recognised by its contents; iterating over it gives its frames in time order.

        with open_recording("walk.mcap") as recording:
            for frame in recording:
                result = front_end.process(frame.to_frame())

    Args:
        path: a folder (KITTI odometry, 7-Scenes, EuRoC, TUM RGB-D, a rosbag2, or any images), a file (.mcap, .db3,
            .bag, or a video), or `rendered` for a room that is rendered, whose poses are known.
        start, stop, step: which frames: start, start + step, ... below stop (None: to the end).
        rate: frames a second; stamps are then made of frame numbers. None: the recording's own stamps, or, where it
            has none, its usual rate.
        topic: image topic of a bag that has several.
        right_topic, depth_topic: of a bag, where their names do not tell.
        mask_topic: of a bag, with masks of what moves.
        masks: folder of such masks beside images or a video; a mask has its image's name, or the frame's number.
        camera: calibration instead of the recording's own: a camera, or a file that `load_camera` reads.

    Raises:
        SourceError: nothing there can be read as a recording, or an option does not fit it.
    """
    return open_source(
        path,
        start=start,
        stop=stop,
        step=step,
        rate=rate,
        topic=topic,
        right_topic=right_topic,
        depth_topic=depth_topic,
        mask_topic=mask_topic,
        masks=masks,
        camera=camera,
    )


def _bag_in(path: Path) -> Path:
    """The only bag file of a folder without metadata.yaml, else the path unchanged.

    Raises:
        SourceError: there are several.
    """
    if not path.is_dir() or (path / "metadata.yaml").is_file():
        return path
    try:
        inside = sorted(each for each in path.iterdir() if each.suffix in _BAG_MAGIC.values() and each.is_file())
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    inside = [each for each in inside if not each.name.startswith(".")]
    if len(inside) > 1:
        raise SourceError(
            f"{path} holds {len(inside)} bag files but no metadata.yaml, so their relation is unknown: "
            f"`ros2 bag reindex {path}` writes it; or give one of the files"
        )
    return inside[0] if inside else path


def _is_bag(path: Path) -> bool:
    """Whether a file begins like a bag.

    Raises:
        SourceError: it cannot be read, or it is a bag with the wrong ending.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    for magic, ending in _BAG_MAGIC.items():
        if head.startswith(magic):
            if path.suffix != ending:
                raise SourceError(f"{path} is a bag, but its name does not end in {ending}; rename it")
            return True
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        raise SourceError(
            f"{path} is compressed as a whole; give the folder with its metadata.yaml, or decompress it with `zstd -d`"
        )
    return False


__all__ = [
    "BagImage",
    "DepthFile",
    "EncodedImage",
    "PixelImage",
    "RightView",
    "Source",
    "SourceError",
    "SourceFrame",
    "SourceOptions",
    "load_camera",
    "open_recording",
    "open_source",
]
