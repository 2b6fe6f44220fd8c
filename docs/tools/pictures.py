"""Draws docs/images/map.jpg, which shows what RViz shows of the node: path, keyframes and landmarks from above.

    python docs/tools/pictures.py SOURCE OUTPUT.jpg [FRAMES]

The picture in the documentation is of `revisits:700?rate=3`, 420 frames (mode rgbd).
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from loftr_ros.recordings import open_source
from loftr_ros.tools.opening import open_offline
from loftr_ros.tools.view import cell_colors, known_points

BACKGROUND, GRID, PATH, AXES = "#303030", "#4a4a4a", "#19ff00", ("#ff3b30", "#34c759", "#3b82f6")
CEILING = 0.25  # part of the height that is left out at the top, where a building has a ceiling


def main(uri: str, output: Path, frames: int) -> None:
    """Run the front end over a source, and draw where it was and what it saw."""
    front_end, reader = open_offline({"mode": "rgbd"}, "", "", None)
    path, poses, points, colors = [], [], [], []
    live = {}
    with open_source(uri) as source:
        for frame in islice(source, frames):
            result = front_end.process(reader.read(frame, "rgbd"))
            if (location := result.place) is not None:
                path.append(location.pose[:3, 3])
            for event in result.events:
                keyframe = event.keyframe
                if event.added:
                    live[keyframe.id] = keyframe
                elif (gone := live.pop(keyframe.id, None)) is not None:
                    add(gone, poses, points, colors)
    for keyframe in live.values():
        add(keyframe, poses, points, colors)
    draw(np.array(path), poses, np.concatenate(points), np.concatenate(colors), output)


def add(keyframe, poses, points, colors) -> None:  # type: ignore[no-untyped-def]
    """Take a keyframe's pose, and its points in the trajectory's frame."""
    if keyframe.location is None:
        return
    pose = keyframe.location.pose
    seen, cells = known_points(keyframe)
    poses.append(pose)
    points.append(seen @ pose[:3, :3].T + pose[:3, 3])
    colors.append(cell_colors(keyframe.encoded, keyframe.frame.image)[cells])


def draw(path, poses, points, colors, output: Path) -> None:  # type: ignore[no-untyped-def]
    """From above: forward (z) to the right, left (-x) up. y is down, so a small one is high."""
    low, high = np.percentile(points[:, 1], [1, 99])
    kept = points[:, 1] > low + CEILING * (high - low)
    points, colors = points[kept], colors[kept]
    order = np.argsort(-points[:, 1])
    figure, axes = plt.subplots(figsize=(11, 6.6), facecolor=BACKGROUND)
    axes.set_facecolor(BACKGROUND)
    axes.scatter(points[order, 2], -points[order, 0], s=0.3, c=np.clip(colors[order] / 255 * 1.15, 0, 1), linewidths=0)
    for pose in poses:
        for axis in (0, 2):
            tip = pose[:3, 3] + 0.25 * pose[:3, axis]
            axes.plot([pose[2, 3], tip[2]], [-pose[0, 3], -tip[0]], color=AXES[axis], linewidth=1.2)
    axes.plot(path[:, 2], -path[:, 0], color=PATH, linewidth=1.8)
    axes.set_aspect("equal")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(plt.MultipleLocator(1))
    axes.yaxis.set_major_locator(plt.MultipleLocator(1))
    axes.tick_params(colors=BACKGROUND, labelbottom=False, labelleft=False, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.tight_layout(pad=0)
    figure.savefig(output, dpi=130, pil_kwargs={"quality": 82})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else sys.maxsize)
