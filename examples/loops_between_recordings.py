#!/usr/bin/env python3
"""Find the places that two recordings have in common.

    python3 loops_between_recordings.py monday.mcap friday.mcap --archive places

Keyframes go into the archive, a folder that stays: the next recording is compared with all of them. `loftr_ros loops`
does the same and writes a pose graph; this is to start a program of your own from. Needs the extra `archive`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import loftr_ros


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, go through both recordings, and print each loop."""
    parser = argparse.ArgumentParser(description="Find the places that two recordings have in common.")
    parser.add_argument("recordings", nargs="+", help="folders of images, videos or bags")
    parser.add_argument("--camera", help="calibration file, where the recordings have none")
    parser.add_argument("--archive", default="places", help="folder of the archive (default: places)")
    given = parser.parse_args(arguments)
    try:
        matcher = loftr_ros.load_matcher()
        found = sum(
            loops_of(name, f"robot{number}", given.archive, matcher, given.camera)
            for number, name in enumerate(given.recordings)
        )
    except (loftr_ros.PlacesError, loftr_ros.SourceError, loftr_ros.WeightsError) as error:
        print(f"loops_between_recordings: {error}", file=sys.stderr)
        return 2
    print(f"{found} loops")
    return 0


def loops_of(name: str, robot: str, archive: str, matcher, camera: str | None) -> int:
    """Go through one recording and print the loops that it closes; how many they were."""
    count = 0
    with (
        loftr_ros.open_recording(name, camera=camera) as recording,
        loftr_ros.LoopDetector(archive, matcher, robot=robot) as detector,
    ):
        for frame in recording:
            try:
                _, loops = detector.process(frame.to_frame())
            except loftr_ros.FrameRefusedError as error:
                print(f"frame {frame.index} of {name} is left out: {error}", file=sys.stderr)
                continue
            for loop in loops:
                older, pose = loop.keyframe.name, loop.found.pose
                unit = "m" if pose.scale_known else "(direction only)"
                x, y, z = pose.translation
                print(
                    f"{loop.current} at {loop.stamp_ns / 1e9:.3f} s sees the place of {older}: "
                    f"{loop.found.num_inliers} inliers, {pose.status.name}, moved by {x:.3f} {y:.3f} {z:.3f} {unit}"
                )
            count += len(loops)
    return count


if __name__ == "__main__":
    sys.exit(main())
