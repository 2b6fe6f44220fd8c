"""Maps as files: the back end's own, which it goes on from; g2o and PLY for other programs."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.back_end import BackEnd
from loftr_ros.backend.factors import Camera, factor_covariance, require_gtsam, widened
from loftr_ros.backend.graph import Graph, Loop, Solution, Trajectory, Vertex
from loftr_ros.backend.measurements import (
    BackEndError,
    KeyframeKey,
    Landmarks,
    Length,
    PoseMeasurement,
    UnitMeasurement,
)

Array = NDArray[np.float64]

FORMAT = 1
# What reading a damaged map raises. Of RuntimeError NotImplementedError is one: a compression that zipfile lacks.
_DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
# Arrays of a map: their types, and the shape of one entry.
_ARRAYS: dict[str, tuple[type, tuple[int, ...]]] = {
    **dict.fromkeys(("robot", "frame", "trajectory", "groups", "metric", "broken"), (np.uint32, ())),
    **dict.fromkeys(("is_metric", "believed"), (np.bool_, ())),
    **dict.fromkeys(("loop_score", "camera_scale"), (np.float64, ())),
    **dict.fromkeys(("stamp_ns", "previous"), (np.int64, ())),
    **dict.fromkeys(("link_pose", "loop_pose", "camera_pose"), (np.float64, (4, 4))),
    **dict.fromkeys(("link_covariance", "loop_covariance"), (np.float64, (6, 6))),
    **dict.fromkeys(("link_length", "loop_length"), (np.uint8, ())),
    **dict.fromkeys(("landmark_vertex", "landmark_track"), (np.uint32, ())),
    "id": (np.uint64, ()),
    "loop_ends": (np.uint32, (2,)),
    "landmark_point": (np.float32, (3,)),
    "landmark_std": (np.float32, ()),
}
_LENGTHS = list(Length)


def save_map(back_end: BackEnd, path: Path) -> None:
    """Write everything that the back end knows into one file (a NumPy archive); the old file stays until it is done.

    Args:
        back_end: whose map.
        path: of the file, whose folder is made if it is not there.

    Raises:
        BackEndError: the file cannot be written.
    """
    graph, solution = back_end.graph, back_end.solution
    cameras = [] if solution is None else solution.cameras
    links = [vertex.link for vertex in graph.vertices if vertex.link is not None]
    landmarks = [(graph.numbers[key], each) for key, each in back_end.landmarks.items() if key in graph.numbers]
    robots = sorted({vertex.key.robot for vertex in graph.vertices})
    frames = sorted({vertex.frame_id for vertex in graph.vertices})
    head = {"format": FORMAT, "robots": robots, "frames": frames, "solved": solution is not None}
    head["mounted"] = list(back_end.mounts)
    arrays: dict[str, NDArray[Any]] = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        "robot": np.array([robots.index(vertex.key.robot) for vertex in graph.vertices], np.uint32),
        "id": np.array([vertex.key.id for vertex in graph.vertices], np.uint64),
        "stamp_ns": np.array([vertex.stamp_ns for vertex in graph.vertices], np.int64),
        "frame": np.array([frames.index(vertex.frame_id) for vertex in graph.vertices], np.uint32),
        "trajectory": np.array([vertex.trajectory for vertex in graph.vertices], np.uint32),
        "previous": np.array([-1 if v.previous is None else v.previous for v in graph.vertices], np.int64),
        "is_metric": np.array([each.is_metric for each in graph.trajectories], np.bool_),
        "loop_ends": np.array([(each.older, each.newer) for each in graph.loops], np.uint32).reshape(-1, 2),
        "loop_score": np.array([each.score for each in graph.loops], np.float64),
        "camera_pose": _stacked([each.pose for each in cameras], 4),
        "camera_scale": np.array([each.scale for each in cameras], np.float64),
        "groups": np.array([] if solution is None else solution.groups, np.uint32),
        "mount_pose": _stacked(list(back_end.mounts.values()), 4),
        "metric": np.array([] if solution is None else sorted(solution.metric), np.uint32),
        "believed": np.array([] if solution is None else solution.believed, np.bool_),
        "broken": np.array([] if solution is None else sorted(solution.broken), np.uint32),
        "unit_vertex": np.array(list(graph.units), np.uint32),
        "unit_metres": np.array([[each.metres, each.std] for each in graph.units.values()]).reshape(-1, 2),
        "unit_down": np.array([[*each.down, each.down_std] for each in graph.units.values()]).reshape(-1, 4),
        "landmark_vertex": np.repeat([number for number, _ in landmarks], [len(each) for _, each in landmarks]).astype(
            np.uint32
        ),
        "landmark_point": np.concatenate([*(each.points for _, each in landmarks), np.zeros((0, 3), np.float32)]),
        "landmark_std": np.concatenate([*(each.std for _, each in landmarks), np.zeros(0, np.float32)]),
        "landmark_track": np.concatenate([*(each.track_id for _, each in landmarks), np.zeros(0, np.uint32)]),
    }
    for name, measured in (("link", links), ("loop", [each.measured for each in graph.loops])):
        arrays[f"{name}_pose"] = _stacked([each.pose for each in measured], 4)
        arrays[f"{name}_covariance"] = _stacked([each.covariance for each in measured], 6)
        arrays[f"{name}_length"] = np.array([_LENGTHS.index(each.length) for each in measured], np.uint8)
    arrays |= {name: np.asarray(arrays[name], kind) for name, (kind, _) in _ARRAYS.items()}
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise BackEndError(f"the map cannot be written to {path}: {error.strerror or error}") from error


def load_map(back_end: BackEnd, path: Path) -> None:
    """Go on from a map that `save_map` wrote.

    Args:
        back_end: one that has no keyframe yet.
        path: of the file.

    Raises:
        BackEndError: there is no such file, it is damaged or of a newer version, or the back end has keyframes.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(bytes(arrays["head"]))
        if head["format"] != FORMAT:
            raise BackEndError(f"{path} has format {head['format']} of maps; this version reads {FORMAT}")
        for name, (kind, shape) in _ARRAYS.items():
            if arrays[name].dtype != kind or arrays[name].shape[1:] != shape or not arrays[name].ndim:
                raise ValueError(f"{name} has the type {arrays[name].dtype} and the shape {arrays[name].shape}")
        graph, solution, landmarks = _made(arrays, head)
        mounts = _mounts(arrays, head)
    except FileNotFoundError as error:
        raise BackEndError(f"there is no map {path}") from error
    except BackEndError:
        raise
    except _DAMAGED as error:
        raise BackEndError(f"{path} is no map of this package, or is damaged: {error}") from error
    back_end.restore(graph, solution, landmarks)
    back_end.mounts.update(mounts)


def _made(arrays: dict[str, NDArray[Any]], head: dict[str, Any]) -> tuple[Graph, Solution | None, dict[Any, Landmarks]]:
    graph = Graph()
    count = len(arrays["id"])
    graph.trajectories = [Trajectory(number, bool(metric)) for number, metric in enumerate(arrays["is_metric"])]
    links = iter(_measured(arrays, "link"))
    for number in range(count):
        key = KeyframeKey(head["robots"][arrays["robot"][number]], int(arrays["id"][number]))
        previous = int(arrays["previous"][number])
        trajectory = int(arrays["trajectory"][number])
        if previous >= number or key in graph.numbers:
            raise ValueError(f"keyframe {key} is out of order")
        if (previous < 0) is not (not graph.trajectories[trajectory].vertices) or (
            previous >= 0 and graph.vertices[previous].trajectory != trajectory
        ):
            raise ValueError(f"keyframe {key} is linked with another trajectory")
        vertex = Vertex(
            number,
            key,
            int(arrays["stamp_ns"][number]),
            head["frames"][arrays["frame"][number]],
            trajectory,
            None if previous < 0 else previous,
            None if previous < 0 else next(links),
        )
        graph.vertices.append(vertex)
        graph.numbers[key] = number
        graph.trajectories[vertex.trajectory].vertices.append(number)
    for ends, measured, score in zip(arrays["loop_ends"], _measured(arrays, "loop"), arrays["loop_score"], strict=True):
        older, newer = int(ends[0]), int(ends[1])
        if max(older, newer) >= count:
            raise ValueError("a loop has an end that is no keyframe")
        graph.know(Loop(older, newer, measured, float(score)))
    units = (arrays.get(name, ()) for name in ("unit_vertex", "unit_metres", "unit_down"))  # later than the format
    for number, metres, down in zip(*units, strict=True):
        if number >= count or not np.isfinite([*metres, *down]).all() or min(*metres, down[3]) <= 0:
            raise ValueError("a unit of length belongs to no keyframe, or has no length")
        graph.units[int(number)] = UnitMeasurement(float(metres[0]), float(metres[1]), down[:3], float(down[3]))
    solution = None
    if head["solved"]:
        cameras = [Camera(p, float(s)) for p, s in zip(arrays["camera_pose"], arrays["camera_scale"], strict=True)]
        groups = [int(each) for each in arrays["groups"]]
        if (
            len(cameras) > count
            or len(groups) > len(graph.trajectories)
            or max(groups, default=-1) >= len(graph.trajectories)
            or not np.isfinite(arrays["camera_pose"]).all()
        ):
            raise ValueError("its poses do not belong to its keyframes")
        metric, broken = (frozenset(int(each) for each in arrays[name]) for name in ("metric", "broken"))
        solution = Solution(cameras, groups, metric, [bool(each) for each in arrays["believed"]], broken)
    landmarks: dict[Any, Landmarks] = {}
    owners = arrays["landmark_vertex"]
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]]) if len(owners) else np.zeros(0, np.int64)
    for start, end in zip(starts, np.r_[starts[1:], len(owners)][: len(starts)], strict=True):
        part = slice(int(start), int(end))
        landmarks[graph.vertices[owners[start]].key] = Landmarks(
            arrays["landmark_point"][part], arrays["landmark_std"][part], arrays["landmark_track"][part]
        )
    return graph, solution, landmarks


def _mounts(arrays: dict[str, NDArray[Any]], head: dict[str, Any]) -> dict[str, Array]:
    """Later than the format: an older map has none."""
    poses = arrays.get("mount_pose", np.zeros((0, 4, 4)))
    if poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise ValueError("the pose of a camera on its robot is none")
    return dict(zip(map(str, head.get("mounted", ())), poses, strict=True))


def _measured(arrays: dict[str, NDArray[Any]], name: str) -> list[PoseMeasurement]:
    parts = (arrays[f"{name}_pose"], arrays[f"{name}_covariance"], arrays[f"{name}_length"])
    return [PoseMeasurement(pose, cov, _LENGTHS[length]) for pose, cov, length in zip(*parts, strict=True)]


def _stacked(matrices: list[Array], size: int) -> Array:
    return np.array(matrices, np.float64).reshape(-1, size, size)


def write_g2o(back_end: BackEnd, path: Path) -> None:
    """Write the optimised keyframes, the links and the believed loops as g2o's text, by GTSAM's own writer.

    Vertices are T_map_camera with the numbers of `back_end.graph`; lengths are in their group's unit. Loops whose
    length is not known are left out: the format has no direction alone.

    Raises:
        BackEndError: the file cannot be written.
    """
    gtsam = require_gtsam()
    graph, noise = back_end.graph, back_end.config.noise
    factors, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
    cameras = []
    for vertex, place in back_end.places():
        cameras.append(place.camera)
        values.insert(vertex.number, gtsam.Pose3(place.camera.pose))

    def add(first: int, second: int, measured: PoseMeasurement) -> None:
        wide, scale = widened(measured, noise), cameras[first].scale
        pose, to_unit = wide.pose.copy(), np.diag([scale] * 3 + [1.0] * 3)
        pose[:3, 3] *= scale
        covariance = factor_covariance(to_unit @ wide.covariance @ to_unit, pose)
        model = gtsam.noiseModel.Gaussian.Covariance((covariance + covariance.T) / 2)
        factors.push_back(gtsam.BetweenFactorPose3(first, second, gtsam.Pose3(pose), model))

    for vertex in graph.vertices:
        if vertex.previous is not None and vertex.link is not None:
            add(vertex.previous, vertex.number, vertex.link)
    for loop, believed in zip(graph.loops, back_end.believed(), strict=True):
        if believed and loop.measured.has_length:
            add(loop.older, loop.newer, loop.measured)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")  # GTSAM says nothing where it cannot write
    except OSError as error:
        raise BackEndError(f"the graph cannot be written to {path}: {error.strerror or error}") from error
    gtsam.writeG2o(factors, values, str(path))


_PLY = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("std", "<f4"), ("keyframe", "<u4"), ("group", "<u4")])


def write_ply(back_end: BackEnd, path: Path) -> int:
    """Write the landmarks in the map's frame as a binary PLY with their standard deviation, keyframe and group.

    Returns:
        How many.

    Raises:
        BackEndError: the file cannot be written.
    """
    parts = []
    for vertex, group, points, landmarks in back_end.cloud():
        part = np.empty(len(points), _PLY)
        part["x"], part["y"], part["z"] = points.T
        part["std"], part["keyframe"], part["group"] = landmarks.std, vertex.number, group
        parts.append(part)
    cloud = np.concatenate(parts) if parts else np.empty(0, _PLY)
    kinds = {"<f4": "float", "<u4": "uint"}
    names = _PLY.names or ()
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}"]
    header += [f"property {kinds[_PLY[name].str]} {name}" for name in names]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(("\n".join([*header, "end_header"]) + "\n").encode() + cloud.tobytes())
    except OSError as error:
        raise BackEndError(f"the landmarks cannot be written to {path}: {error.strerror or error}") from error
    return len(cloud)
