"""How long landmarks are tracked, in keyframes and images, and how exactly: the input of a bundle adjustment.

Landmarks are the inliers of the match with the reference keyframe, by `landmark_id` of ~/tracks. Where the world is
rendered, their pixels are compared with the projection of the point that their first keyframe shows, by exact depths
and poses.

    .venv/bin/python benchmarks/track_lengths.py [--sets sevenscenes:rgbd "rendered:room?seed=3&frames=150:mono"]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

SETS = (
    "sevenscenes:rgbd",
    "sevenscenes:mono",
    "kitti06_stereo:stereo",
    "rendered:room?seed=3&frames=150:rgbd",
    "rendered:room?seed=3&frames=150:mono",
)
# Keyframes of a landmark, first to last, of a line of the errors.
BANDS = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 99))


class Tracks:
    """What was seen of every landmark."""

    def __init__(self, is_exact: bool) -> None:
        """Begin; `is_exact` says that depths and poses are exact."""
        self.keyframes: dict[int, set[int]] = defaultdict(set)
        self.images: dict[int, int] = defaultdict(int)
        self.inliers = 0
        # Per sighting: which keyframe of the landmark's it is, error and standard deviation in px.
        self.errors: list[tuple[int, float, float, float]] = []
        self._is_exact = is_exact
        self._first: dict[int, tuple[Any, Any]] = {}

    def add(self, result: Any, depth: Any, pose: Any) -> None:
        """Take a frame's result; `depth` and `pose` are the frame's."""
        for match in result.matches[:1]:
            keep = match.pose.inliers & match.seen.known
            self.inliers += int(match.pose.inliers.sum())
            for name, pixel, std in zip(
                match.landmark[keep].tolist(), match.seen.points[keep], match.seen.std[keep], strict=True
            ):
                self.keyframes[name].add(match.keyframe.id)
                self.images[name] += 1
                if self._is_exact and name >> 32 in self._first:
                    first, points = self._first[name >> 32]
                    there = np.linalg.inv(pose) @ first @ np.append(points[name & 0xFFFFFFFF], 1.0)
                    u, v = result.frame.camera.project(there[None, :3])[0] - pixel
                    self.errors.append((len(self.keyframes[name]), u, v, std))
        for keyframe in (event.keyframe for event in result.events if event.added):
            if self._is_exact and keyframe.frame is result.frame:
                column, row = np.rint(keyframe.encoded.cell_points).astype(int).T
                rays = np.insert(keyframe.encoded.cell_rays, 2, 1.0, axis=1)
                self._first[keyframe.id] = pose, rays * depth.metres(depth.values)[row, column, None]

    def lines(self) -> list[str]:
        """What came out."""
        of = np.array([len(each) for each in self.keyframes.values()])
        images = np.array(list(self.images.values()))
        seen = np.repeat(of, images)
        lines = [
            f"  {len(of)} landmarks, sighted by {images.sum() / max(self.inliers, 1):.1%} of the inliers, in "
            f"{images.mean():.1f} images (mean); in over one keyframe {(of > 1).mean():.0%}, in over three "
            f"{(of > 3).mean():.1%}",
            f"  keyframes of a sighting's landmark: median {np.median(seen):.0f}, mean {seen.mean():.2f}",
        ]
        errors = np.array(self.errors).reshape(-1, 4)
        for low, high in BANDS:
            part = errors[(errors[:, 0] >= low) & (errors[:, 0] <= high) & np.isfinite(errors).all(axis=1)]
            if len(part) > 50:
                off, std = np.abs(part[:, 1:3]), part[:, 3:]
                length = np.hypot(*off.T)
                lines.append(
                    f"  in its keyframes {low} to {high}: off by {np.median(length):.2f} px (median), "
                    f"{np.quantile(length, 0.9):.2f} (of 90 %); within 1 and 3 std {(off < std).mean():.0%} and "
                    f"{(off < 3 * std).mean():.0%}"
                )
        return lines


def main() -> None:
    """Print it."""
    from loftr_ros.recordings import open_source
    from loftr_ros.tools.opening import open_offline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="*", default=SETS, help="folder of --data or rendered world, a colon, the mode")
    arguments = parser.parse_args()
    for entry in arguments.sets:
        name, _, mode = entry.rpartition(":")
        is_rendered = name.startswith(("rendered", "revisits"))
        front_end, reader = open_offline({"mode": mode}, "", "", None)
        tracks = Tracks(is_rendered)
        with open_source(name if is_rendered else str(arguments.data / name)) as source:
            for frame in source:
                read = reader.read(frame, "rgbd" if is_rendered else mode)
                tracks.add(front_end.process(read), read.depth, frame.pose)
        print(f"{name}, {mode}: {front_end.buffer.next_id - 1} keyframes", *tracks.lines(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
