"""Synthetic keyframes, and processes that add them to an archive."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import warnings

import numpy as np

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.odometry import ChainLink
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.places.archive import Archive
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName

SPACE, DIMENSION = "made-space:1", 32


def made_descriptor(number: int) -> np.ndarray:
    """(32,) float32 of length one, always the same for a number."""
    values = np.random.default_rng(number).normal(size=DIMENSION).astype(np.float32)
    return values / np.linalg.norm(values)


def made_link(previous: int, is_metric: bool = True) -> ChainLink:
    """A step of 1 unit along a slightly rotated axis."""
    pose = np.eye(4)
    pose[:3, :3] = [[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]
    pose[:3, 3] = [0.1, 0.0, 1.0]
    return ChainLink(previous, pose, np.diag([1e-4, 2e-4, 3e-4, 1e-6, 2e-6, 3e-6]), is_metric)


def made_keyframe(number: int, robot: str = "rover", image_bytes: int = 2000, **changed: object) -> ArchivedKeyframe:
    """A keyframe with all optional data; its image is noise."""
    rng = np.random.default_rng(number)
    depth = CellDepth.unknown(12, True)
    depth.inverse[:7], depth.variance[:7] = rng.uniform(-0.01, 3.0, 7), rng.uniform(1e-8, 1e-2, 7)
    matrix = np.array([[500.1, 0.0, 320.3], [0.0, 501.7, 240.9], [0.0, 0.0, 1.0]])
    values: dict[str, object] = {
        "name": KeyframeName(robot, number),
        "session": 2,
        "segment": 1,
        "stamp_ns": 1_700_000_000_123_456_789 + number * 10**9,
        "frame_id": "camera_optical",
        "size": (640, 480),
        "image": rng.bytes(image_bytes),
        "camera": CameraModel(640, 480, matrix, "plumb_bob", np.array([0.1, -0.2, 1e-17, 0.0, 1 / 3])),
        "descriptor": made_descriptor(number),
        "pose": np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]]),
        "link": made_link(number - 1) if number > 1 else None,
        "depth": depth,
        "grid": (3, 4),
    }
    return ArchivedKeyframe(**{**values, **changed})  # type: ignore[arg-type]


def write(out: str, uri: str, robot: str, first: int, count: int) -> None:
    """Add keyframes, and write each one's number as soon as it is added."""
    printed = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with Archive.open(uri, SPACE, DIMENSION) as archive:
        for number in range(first, first + count):
            archive.add(made_keyframe(number, robot))
            # Atomically, whenever the process is killed.
            os.write(printed, f"{number}\n".encode())


if __name__ == "__main__":
    # One process per line, forked from this one, because importing LanceDB takes seconds.
    warnings.simplefilter("ignore")
    importlib.import_module("lancedb")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            out, uri, robot, first, count = json.loads(line)
            try:
                write(out, uri, robot, first, count)
            finally:
                os._exit(0)
        print(child, flush=True)
