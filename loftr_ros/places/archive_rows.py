"""Conversion between keyframes and rows of the archive's table, and the file stored beside each row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.odometry import ChainLink
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.places.keyframe import ArchivedKeyframe, Candidate, KeyframeName, PlacesError

# Increased when rows or files change in a way that an older program would misread.
FORMAT = 1

# Columns that a search returns.
CANDIDATE_COLUMNS = ["robot", "id", "session", "segment", "stamp_ns"]

_FLOAT16_MAX = float(np.finfo(np.float16).max)


def schema(space: str, dimension: int) -> Any:
    """The table's pyarrow schema, with the metadata that identifies an archive."""
    import pyarrow as pa

    fields = [
        pa.field("robot", pa.string(), nullable=False),
        pa.field("id", pa.int64(), nullable=False),
        pa.field("session", pa.int32(), nullable=False),
        pa.field("segment", pa.int32(), nullable=False),
        pa.field("stamp_ns", pa.int64(), nullable=False),
        pa.field("frame_id", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("camera", pa.string()),
        pa.field("pose", pa.binary()),
        pa.field("previous", pa.int64()),
        pa.field("link_pose", pa.binary()),
        pa.field("link_covariance", pa.binary()),
        pa.field("link_is_metric", pa.bool_()),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("columns", pa.int32(), nullable=False),
        pa.field("depth_is_metric", pa.bool_()),
        pa.field("file", pa.string(), nullable=False),
        pa.field("image_bytes", pa.int64(), nullable=False),
        pa.field("depth_bytes", pa.int64(), nullable=False),
        pa.field("descriptor", pa.list_(pa.float32(), dimension), nullable=False),
    ]
    metadata = {"loftr_ros.archive": str(FORMAT), "loftr_ros.space": space, "loftr_ros.dimension": str(dimension)}
    return pa.schema(fields, metadata=metadata)


def to_row(keyframe: ArchivedKeyframe, file: str, depth_bytes: int) -> dict[str, Any]:
    """The row of a keyframe. Its `file` holds the image and then the depth."""
    link = keyframe.link
    return {
        "robot": keyframe.name.robot,
        "id": keyframe.name.id,
        "session": keyframe.session,
        "segment": keyframe.segment,
        "stamp_ns": keyframe.stamp_ns,
        "frame_id": keyframe.frame_id,
        "width": keyframe.size[0],
        "height": keyframe.size[1],
        "camera": None if keyframe.camera is None else _camera_text(keyframe.camera),
        "pose": None if keyframe.pose is None else _packed(keyframe.pose),
        **link_columns(link),
        "rows": keyframe.grid[0],
        "columns": keyframe.grid[1],
        "depth_is_metric": None if keyframe.depth is None else keyframe.depth.is_metric,
        "file": file,
        "image_bytes": len(keyframe.image),
        "depth_bytes": depth_bytes,
        "descriptor": np.ascontiguousarray(keyframe.descriptor, np.float32),
    }


def link_columns(link: ChainLink | None) -> dict[str, Any]:
    """The columns of the link to the previous keyframe."""
    return {
        "previous": None if link is None else link.previous,
        "link_pose": None if link is None else _packed(link.pose),
        "link_covariance": None if link is None else _packed(link.covariance),
        "link_is_metric": None if link is None else link.is_metric,
    }


def to_table(rows: Sequence[Mapping[str, Any]], target: Any) -> Any:
    """Convert rows to a pyarrow table with the schema `target`."""
    import pyarrow as pa

    columns = []
    for field in target:
        values = [row[field.name] for row in rows]
        if field.name == "descriptor":
            flat = pa.array(np.concatenate(values), pa.float32())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=target)


def to_keyframe(row: Mapping[str, Any], payload: bytes) -> ArchivedKeyframe:
    """The keyframe of a row and its file. An empty file gives a keyframe without image and depth.

    Raises:
        PlacesError: the file does not agree with the row.
    """
    name = to_name(row)
    image_bytes, depth_bytes = row["image_bytes"], row["depth_bytes"]
    if payload and len(payload) != image_bytes + depth_bytes:
        raise PlacesError(
            "image_damaged",
            f"the file '{row['file']}' of keyframe {name} has {len(payload)} bytes; it was archived with "
            f"{image_bytes + depth_bytes}",
        )
    grid = (row["rows"], row["columns"])
    depth = None
    if payload and row["depth_is_metric"] is not None:
        depth = unpack_depth(payload[image_bytes:], row["depth_is_metric"])
    return ArchivedKeyframe(
        name=name,
        session=row["session"],
        segment=row["segment"],
        stamp_ns=row["stamp_ns"],
        frame_id=row["frame_id"],
        size=(row["width"], row["height"]),
        image=payload[:image_bytes],
        camera=None if row["camera"] is None else _camera(row["camera"]),
        descriptor=np.asarray(row["descriptor"], np.float32),
        pose=None if row["pose"] is None else _unpacked(row["pose"], 4),
        link=to_link(row),
        depth=depth,
        grid=grid,
    )


def to_link(row: Mapping[str, Any]) -> ChainLink | None:
    """The link to the previous keyframe stored in a row."""
    if row["previous"] is None:
        return None
    pose, covariance = _unpacked(row["link_pose"], 4), _unpacked(row["link_covariance"], 6)
    return ChainLink(row["previous"], pose, covariance, row["link_is_metric"])


def to_name(row: Mapping[str, Any]) -> KeyframeName:
    """Name of the keyframe of a row."""
    return KeyframeName(row["robot"], row["id"])


def to_candidate(row: Mapping[str, Any]) -> Candidate:
    """Convert a search result. Its `_distance` is one minus the cosine."""
    similarity = min(1.0 - float(row["_distance"]), 1.0)
    return Candidate(to_name(row), row["session"], row["segment"], row["stamp_ns"], similarity)


def pack_depth(depth: CellDepth) -> bytes:
    """Encode cell depths: 1 bit a cell, and 4 bytes a known cell for inverse depth and standard deviation as float16.

    Both are stored relative to their own median, in double precision at the front, so that the unit of length does not
    matter for float16's range: a value from 1/16000 to 65000 times the median keeps 11 bits (an error of 0.05 %), a
    smaller one is off by less than 3e-8 medians.
    """
    known = depth.known
    inverse, std = depth.inverse[known], np.sqrt(depth.variance[known])
    scales = [_scale(inverse), _scale(std)]
    parts = [np.array([len(known)], "<u4"), np.array(scales, "<f8"), np.packbits(known)]
    for values, scale in ((inverse, scales[0]), (std, scales[1])):
        finite = np.isfinite(values)
        kept = np.where(finite, np.clip(values / scale, -_FLOAT16_MAX, _FLOAT16_MAX), values)
        parts.append(kept.astype("<f2"))
    return b"".join(part.tobytes() for part in parts)


def unpack_depth(data: bytes, is_metric: bool) -> CellDepth:
    """Decode what `pack_depth` encoded."""
    cells = int(np.frombuffer(data, "<u4", 1)[0])
    scale_inverse, scale_std = np.frombuffer(data, "<f8", 2, 4)
    bits = (cells + 7) // 8
    known = np.unpackbits(np.frombuffer(data, np.uint8, bits, 20), count=cells).astype(bool)
    count = int(known.sum())
    values = np.frombuffer(data, "<f2", 2 * count, 20 + bits).astype(np.float64).reshape(2, count)
    depth = CellDepth.unknown(cells, is_metric)
    depth.inverse[known] = values[0] * scale_inverse
    depth.variance[known] = (values[1] * scale_std) ** 2
    return depth


def robot_is(robot: str) -> str:
    """A filter for one robot's keyframes; any robot name is safe."""
    return f"robot = '{_escaped(robot)}'"


def named(names: Sequence[KeyframeName], column: str = "id") -> str:
    """A filter for keyframes by name, or for those whose `column` refers to one of these names of the same robot."""
    robots: dict[str, list[int]] = {}
    for name in names:
        robots.setdefault(name.robot, []).append(name.id)
    return " OR ".join(
        f"({robot_is(robot)} AND {column} IN ({', '.join(str(int(number)) for number in numbers)}))"
        for robot, numbers in robots.items()
    )


def _escaped(text: str) -> str:
    return text.replace("'", "''")


def _scale(values: NDArray[np.float64]) -> float:
    size = np.abs(values[np.isfinite(values) & (values != 0)])
    return float(np.median(size)) if len(size) else 1.0


def _packed(matrix: NDArray[np.float64]) -> bytes:
    return np.ascontiguousarray(matrix, "<f8").tobytes()


def _unpacked(data: bytes, side: int) -> NDArray[np.float64]:
    return np.frombuffer(data, "<f8").astype(np.float64).reshape(side, side)


def _camera_text(camera: CameraModel) -> str:
    # Python writes the shortest decimal that reads back as the same float.
    return json.dumps(
        [camera.width, camera.height, camera.matrix.ravel().tolist(), camera.distortion_model, *camera.distortion]
    )


def _camera(text: str) -> CameraModel:
    width, height, matrix, model, *distortion = json.loads(text)
    return CameraModel(width, height, np.array(matrix).reshape(3, 3), model, np.array(distortion, np.float64))
