"""A plot of the loop graph: trajectories from above, and the loops between keyframes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loftr_ros.places.placement import GraphKeyframe, TrajectoryName
from loftr_ros.places.pose_graph import PoseGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
# A recording, or a stream within one between two resets: a robot's name and a session.
Stream = tuple[str, int]

# Maximum number of groups to draw; those with most keyframes are drawn.
_MOST_GROUPS = 4
_LOOP = "#c2255c"
_AXES = ("x, right", "y, down", "z, forward")


def plot_loops(path: str | Path, graph: PoseGraph) -> None:
    """Write a plot of keyframes and loops.

    Above, one panel for each group of trajectories that loops connect. It shows the trajectories as chained from
    keyframe to keyframe, in the optical axes of the group's first camera, and each loop as a line between its two
    cameras. The length of such a line is the drift of the chains plus the true distance of the cameras. Below, the same
    loops over the keyframes' order; only this panel if no pose is known. Each robot has a colour.

    Args:
        path: file to write; its ending chooses the format (png, svg, pdf).
        graph: keyframes and loops.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # the import takes a second
    from matplotlib.figure import Figure

    streams = list(dict.fromkeys(_stream(keyframe) for keyframe in graph.keyframes))
    colors = {robot: f"C{i % 10}" for i, robot in enumerate(dict.fromkeys(robot for robot, _ in streams))}
    sizes: dict[int, int] = {}
    for keyframe in graph.keyframes:
        if keyframe.pose is not None:
            group = graph.placements[keyframe.trajectory].group
            sizes[group] = sizes.get(group, 0) + 1
    # A single unconnected camera is a dot. It is drawn only if there is nothing else.
    groups = sorted(sizes, key=lambda group: (-sizes[group], group))[:_MOST_GROUPS]
    groups = [group for group in groups if sizes[group] > 1] or groups[:1]
    below = 0.9 + 0.75 * len(streams)
    width = max(7.0, 5.6 * len(groups))
    figure = Figure(figsize=(width, (5.4 if groups else 0.3) + below), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(graph, len(sizes), len(groups)), fontsize=12, fontweight="bold")
    grid = figure.add_gridspec(
        2 if groups else 1, max(len(groups), 1), height_ratios=([5.4, below] if groups else None)
    )
    for column, group in enumerate(groups):
        _plot_group(figure.add_subplot(grid[0, column]), graph, group, colors)
    _plot_order(figure.add_subplot(grid[-1, :]), graph, streams, colors)
    figure.savefig(path)


def _plot_group(axes: Axes, graph: PoseGraph, group: int, colors: dict[str, str]) -> None:
    members = [k for k in graph.keyframes if k.pose is not None and graph.placements[k.trajectory].group == group]
    places = {keyframe.name: _position(graph, keyframe) for keyframe in members}
    everywhere = np.array(list(places.values()))
    extent = np.ptp(everywhere, axis=0)
    # From above, unless the camera looks down: then its forward axis is vertical.
    up = 2 if extent[2] >= extent[1] else 1
    trajectories: dict[TrajectoryName, list[Array]] = {}
    for keyframe in members:
        trajectories.setdefault(keyframe.trajectory, []).append(places[keyframe.name])
    labelled: set[str] = set()
    for name, positions in trajectories.items():
        x, y = np.array(positions)[:, [0, up]].T
        label = None if name.robot in labelled else name.robot
        labelled.add(name.robot)
        axes.plot(x, y, ".-", color=colors[name.robot], linewidth=1.4, markersize=5, label=label, zorder=2)
        axes.plot(x[0], y[0], "s", color=colors[name.robot], markersize=8, markeredgecolor="white", zorder=4)
    lines = [
        (places[loop.older], places[loop.newer])
        for loop in graph.loops
        if loop.older in places and loop.newer in places
    ]
    for number, (older, newer) in enumerate(lines):
        axes.plot(
            [older[0], newer[0]],
            [older[up], newer[up]],
            "o-",
            color=_LOOP,
            linewidth=1.1,
            markersize=3.5,
            alpha=0.65,
            zorder=3,
            label=f"{len(lines)} loops" if number == 0 else None,
        )
    unit = graph.unit(next(name for name, placed in graph.placements.items() if placed.group == group))
    unit = "m" if unit == "metres" else "own unit"
    axes.set(xlabel=f"{_AXES[0]} ({unit})", ylabel=f"{_AXES[up]} ({unit})")
    if up == 1:
        axes.invert_yaxis()
    axes.set_title("from above, as chained (loops not applied)" if up == 2 else "as chained (loops not applied)")
    axes.title.set_fontsize(10)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.08)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=True, framealpha=0.9, fontsize=9)


def _plot_order(axes: Axes, graph: PoseGraph, streams: list[Stream], colors: dict[str, str]) -> None:
    """One row per stream with its keyframes in order. Loops within a stream are arcs, others lines."""
    rows = {stream: -row for row, stream in enumerate(streams)}
    counts = dict.fromkeys(streams, 0)
    at = {}
    for keyframe in graph.keyframes:
        stream = _stream(keyframe)
        at[keyframe.name] = (counts[stream], rows[stream])
        counts[stream] += 1
    for stream, count in counts.items():
        numbers = np.arange(count)
        row = np.full(count, rows[stream])
        axes.plot(numbers, row, ".-", color=colors[stream[0]], linewidth=1.4, markersize=4, zorder=2)
    longest = max(max(counts.values(), default=1) - 1, 1)
    part = np.linspace(0, 1, 30)
    for loop in graph.loops:
        (x0, y0), (x1, y1) = at[loop.older], at[loop.newer]
        # An arc within a row: higher if longer, and below the row above.
        height = (0.15 + 0.6 * abs(x1 - x0) / longest) if y0 == y1 else 0.0
        curve = y0 + part * (y1 - y0) + height * 4 * part * (1 - part)
        axes.plot(x0 + part * (x1 - x0), curve, color=_LOOP, linewidth=0.9, alpha=0.6, zorder=3)
    several = {robot for robot, _ in streams if sum(robot == other for other, _ in streams) > 1}
    names = [f"{robot} ({session})" if robot in several else robot for robot, session in streams]
    axes.set_yticks([rows[stream] for stream in streams], names)
    axes.set(xlabel="keyframe", ylim=(-len(streams) + 0.6, 0.95))
    axes.set_title("loops by the order of keyframes", fontsize=10)
    axes.grid(color="0.94", axis="x")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _stream(keyframe: GraphKeyframe) -> Stream:
    return keyframe.name.robot, keyframe.session


def _position(graph: PoseGraph, keyframe: GraphKeyframe) -> Array:
    pose = graph.pose(keyframe)
    assert pose is not None
    return pose[:3, 3]


def _title(graph: PoseGraph, groups: int, drawn: int) -> str:
    left_out = f", {groups - drawn} of {groups} groups not drawn from above" if groups > drawn else ""
    return f"{len(graph.keyframes)} keyframes, {len(graph.loops)} loops{left_out}"
