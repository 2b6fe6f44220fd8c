"""ORB-SLAM3 (Campos et al., T-RO 2021) over a recording, in a process and an environment of its own: it is GPL-3.

`make orb-slam3` makes the environment. It needs a vocabulary, too: the published `ORBvoc.txt`, or one made of images.
Run as a script, this file is the process's side, which knows nothing of loftr_ros.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # (its folder is no package in that environment)
from wire import receive, send  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from loftr_ros.frontend.frame import Frame

FOLDER = Path(__file__).resolve().parents[2] / ".venv-orb-slam3"
SENSORS = {"mono": "MONOCULAR", "stereo": "STEREO", "rgbd": "RGBD"}
# Its examples' settings; of indoor and outdoor ones the more generous.
SETTINGS = """%YAML:1.0
File.version: "1.0"
Camera.type: "PinHole"
Camera1.fx: {fx}
Camera1.fy: {fy}
Camera1.cx: {cx}
Camera1.cy: {cy}
Camera1.k1: 0.0
Camera1.k2: 0.0
Camera1.p1: 0.0
Camera1.p2: 0.0
Camera.width: {width}
Camera.height: {height}
Camera.fps: {fps}
Camera.RGB: 1
{stereo}
RGBD.DepthMapFactor: 1.0
ORBextractor.nFeatures: 2000
ORBextractor.scaleFactor: 1.2
ORBextractor.nLevels: 8
ORBextractor.iniThFAST: 20
ORBextractor.minThFAST: 7
Viewer.KeyFrameSize: 0.05
Viewer.KeyFrameLineWidth: 1.0
Viewer.GraphLineWidth: 0.9
Viewer.PointSize: 2.0
Viewer.CameraSize: 0.08
Viewer.CameraLineWidth: 3.0
Viewer.ViewpointX: 0.0
Viewer.ViewpointY: -0.7
Viewer.ViewpointZ: -1.8
Viewer.ViewpointF: 500.0
"""
NO_STEREO = """Stereo.ThDepth: 40.0
Stereo.b: 0.1"""
# Its type "Rectified" ends in a segmentation fault when it prints the settings.
STEREO = """Stereo.ThDepth: 40.0
Camera2.fx: {fx}
Camera2.fy: {fy}
Camera2.cx: {cx}
Camera2.cy: {cy}
Camera2.k1: 0.0
Camera2.k2: 0.0
Camera2.p1: 0.0
Camera2.p2: 0.0
Stereo.T_c1_c2: !!opencv-matrix
  rows: 4
  cols: 4
  dt: f
  data: [{pose}]"""


class PeerError(Exception):
    """Why it cannot run."""


def why_not(python: Path, vocabulary: Path) -> str:
    """Why it cannot run; empty where it can."""
    if not python.is_file():
        return f"no environment at {python}: `make orb-slam3` makes it"
    if not vocabulary.is_file():
        return f"no vocabulary at {vocabulary}: put the published ORBvoc.txt there"
    return ""


def settings(frame: Frame, mode: str, fps: float) -> str:
    """Its settings file for a recording's first frame.

    Raises:
        PeerError: the images are distorted, or not rectified as a stereo pair.
    """
    camera = frame.camera
    if camera is None or np.any(camera.distortion):
        raise PeerError("only calibrated recordings without distortion are prepared for it")
    (fx, _, cx), (_, fy, cy), _ = camera.matrix
    stereo = NO_STEREO
    if mode == "stereo":
        assert frame.right is not None
        right, pose = frame.right.camera, frame.right.left_from_right
        if np.any(right.distortion):
            raise PeerError("only stereo pairs without distortion are prepared for it")
        values = ", ".join(f"{value:.9f}" for value in pose.ravel())
        stereo = STEREO.format(fx=right.matrix[0, 0], fy=right.matrix[1, 1], cx=right.matrix[0, 2],
                               cy=right.matrix[1, 2], pose=values)  # fmt: skip
    return SETTINGS.format(fx=fx, fy=fy, cx=cx, cy=cy, width=camera.width, height=camera.height,
                           fps=max(1, round(fps)), stereo=stereo)  # fmt: skip


def track(
    frames: Iterable[Frame], mode: str, python: Path, vocabulary: Path, fps: float, slower: float = 1.0
) -> dict[int, NDArray[np.float64]]:
    """Its trajectory at the end.

    Args:
        frames: of the recording, in order.
        mode: `mono`, `stereo` or `rgbd`.
        python: of its environment.
        vocabulary: file.
        fps: frames a second of the recording.
        slower: factor on the time that a frame has at least: its threads work in the background.

    Returns:
        (4, 4) T_world_camera by stamp, of the frames of its largest map.

    Raises:
        PeerError: it cannot run, or its process died.
    """
    from loftr_ros.geometry.se3 import from_quaternion

    reason = why_not(python, vocabulary)
    if reason:
        raise PeerError(reason)
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        [python, Path(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=variables
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        begun = False
        try:
            for frame in frames:
                if not begun:
                    start = {"vocabulary": str(vocabulary), "sensor": SENSORS[mode], "period": slower / fps}
                    send(process.stdin, start | {"settings": settings(frame, mode, fps)})
                    receive(process.stdout)
                    begun = True
                arrays: dict[str, NDArray[Any]] = {"image": frame.image}
                if mode == "stereo":
                    assert frame.right is not None
                    arrays["second"] = frame.right.image
                elif mode == "rgbd":
                    assert frame.depth is not None
                    arrays["second"] = np.nan_to_num(frame.depth.metres(frame.depth.values))
                send(process.stdin, {"stamp": frame.stamp_ns}, arrays)
                receive(process.stdout)
            send(process.stdin, {})
            _, made = receive(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            process.wait(timeout=10)
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-3:]
            raise PeerError(f"its process ended with {process.returncode}: {' | '.join(last)}") from error
        finally:
            process.kill()
    poses = [from_quaternion(place[:3], place[3:]) for place in made["places"]]
    return dict(zip(made["stamps"].tolist(), poses, strict=True))


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # it prints
    import pyorbslam3  # type: ignore[import-not-found]

    requests = sys.stdin.buffer
    start, _ = receive(requests)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "settings.yaml")
        file.write_text(start["settings"])
        sensor = getattr(pyorbslam3.Sensor, start["sensor"])
        slam = pyorbslam3.Slam(start["vocabulary"], file, sensor)
        send(answers, {})
        first, stamps = 0, list[int]()
        while True:
            message, arrays = receive(requests)
            if "stamp" not in message:
                break
            due = time.monotonic() + start["period"]
            first = first or message["stamp"]
            stamps.append(message["stamp"])
            seconds = 1.0 + (message["stamp"] - first) / 1e9
            if sensor == pyorbslam3.Sensor.MONOCULAR:
                slam.track_monocular(arrays["image"], seconds)
            elif sensor == pyorbslam3.Sensor.STEREO:
                slam.track_stereo(arrays["image"], arrays["second"], seconds)
            else:
                slam.track_rgbd(arrays["image"], arrays["second"].astype(np.float32), seconds)
            time.sleep(max(0.0, due - time.monotonic()))
            send(answers, {})
        slam.shutdown()
        slam.save_trajectory_euroc(str(Path(folder, "trajectory.txt")))
        rows = np.loadtxt(Path(folder, "trajectory.txt"), ndmin=2)
    known = np.array([1e9 + stamp - first for stamp in stamps])
    # Rows of nanoseconds, x y z, quaternion x y z w.
    found = [stamps[int(np.abs(known - row[0]).argmin())] for row in rows]
    send(answers, {}, {"stamps": np.array(found, np.int64), "places": rows[:, 1:8]})


if __name__ == "__main__":
    _serve()
