#!/usr/bin/env python3
"""Run the front end over a recording and write where the camera went, as a TUM trajectory.

    python3 odometry_over_a_folder.py FOLDER -o trajectory.tum
    python3 odometry_over_a_folder.py walk.mp4 --camera camera.yaml

Each line of the file is `stamp x y z qx qy qz qw`: the camera in the frame of the first keyframe. With one camera the
unit of length is the trajectory's own; `--mode stereo` or `--mode rgbd` give metres. `loftr_ros run` does the same and
more; this is to start a program of your own from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import loftr_ros
from loftr_ros.geometry.se3 import quaternion_of
from loftr_ros.settings import with_values


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, process every frame, and write the trajectory."""
    parser = argparse.ArgumentParser(description="Run the front end over a recording and write the trajectory.")
    parser.add_argument("recording", help="folder of images, video or bag")
    parser.add_argument("-o", "--output", type=Path, default=Path("trajectory.tum"))
    parser.add_argument("--camera", help="calibration file, where the recording has none")
    parser.add_argument("--mode", choices=("mono", "stereo", "rgbd"), default="mono")
    parser.add_argument("--stop", type=int, help="number of the frame to stop before")
    given = parser.parse_args(arguments)
    try:
        with loftr_ros.open_recording(given.recording, camera=given.camera, stop=given.stop) as recording:
            recording.require(given.mode)
            lines, lost = odometry(recording, given.mode)
    except (loftr_ros.SourceError, loftr_ros.WeightsError) as error:
        print(f"odometry_over_a_folder: {error}", file=sys.stderr)
        return 2
    given.output.write_text("".join(f"{line}\n" for line in lines))
    print(f"{len(lines)} poses, {lost} frames without one, written to {given.output}")
    return 0 if lines else 1


def odometry(recording, mode: str) -> tuple[list[str], int]:
    """The poses of a recording's first trajectory as TUM lines, and how many frames have none."""
    config = with_values(loftr_ros.FrontEndConfig(), {"mode": mode})
    front_end = loftr_ros.FrontEnd(loftr_ros.load_matcher(), config)
    lines, lost, segment = [], 0, None
    for frame in recording:
        try:
            result = front_end.process(frame.to_frame(mode))
        except loftr_ros.FrameRefusedError as error:  # it contradicts the stream; the next frame may be right again
            print(f"frame {frame.index} is left out: {error}", file=sys.stderr)
            lost += 1
            continue
        place = result.place
        segment = place.segment if segment is None and place is not None else segment
        # A front end that lost its way begins a new segment, whose poses have an origin of their own.
        if place is None or place.segment != segment:
            lost += 1
            continue
        x, y, z = place.pose[:3, 3]
        qx, qy, qz, qw = quaternion_of(place.pose[:3, :3])
        stamp = f"{frame.stamp_ns // 10**9}.{frame.stamp_ns % 10**9:09d}"
        lines.append(f"{stamp} {x:.6f} {y:.6f} {z:.6f} {qx:.9f} {qy:.9f} {qz:.9f} {qw:.9f}")
    return lines, lost


if __name__ == "__main__":
    sys.exit(main())
