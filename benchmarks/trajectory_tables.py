"""Runs of front ends over sequences, with tables and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from trajectory_scores import Errors, path_length, trajectory_errors

from loftr_ros.frontend.config import MONO
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.geometry.two_view import PoseStatus

Array = NDArray[np.float64]

# Distances over which drift is measured, as parts of the true path.
DISTANCES = (0.1, 0.2, 0.4)
METRIC_HEADER = (
    "| sequence | mode | matcher | located | breaks | keyframes | ATE, m | drift, % | turn, deg/m "
    "| step, mm | step, deg |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
MONO_HEADER = (
    "| sequence | matcher | located | breaks | keyframes | ATE after similarity, m | drift, % | turn, deg/m "
    "| scale drift, % | its own scale std, % |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
STILL_HEADER = (
    "| sequence | mode | matcher | located | breaks | keyframes | path, cm | farthest, cm "
    "| low parallax, % | statuses |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass
class Run:
    """One front end on one sequence.

    Attributes:
        mode, matcher: of the front end; `matcher` is its name in tables.
        poses: T_world_camera of every frame; None if it was not located.
        keyframes: numbers of the frames that became one.
        statuses: of the matches with the reference keyframe, by name.
        breaks: number of breaks of the chain: later poses are placed anyway, in mode mono in another unit.
        scale_std: standard deviation of the logarithm of the unit of length, at the last frame that was located.
    """

    mode: str
    matcher: str
    poses: list[Array | None] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    breaks: int = 0
    scale_std: float = 0.0

    @property
    def located(self) -> list[int]:
        """Numbers of the frames."""
        return [number for number, pose in enumerate(self.poses) if pose is not None]

    @property
    def positions(self) -> Array:
        """(N, 3) of the located frames."""
        return np.array([self.poses[number][:3, 3] for number in self.located]).reshape(-1, 3)

    def add(self, result: FrontEndResult) -> None:
        """Add the result of the next frame."""
        number, location = len(self.poses), result.location
        added = [event.keyframe for event in result.events if event.added]
        if location is None and not number:
            # The first frame is the start of the trajectory.
            location = added[0].location
        self.poses.append(None if location is None else location.pose)
        places = [location, *(keyframe.location for keyframe in added)]
        self.breaks = max([self.breaks, *(place.segment for place in places if place is not None)])
        if location is not None:
            self.scale_std = location.scale_std
        if added:
            self.keyframes.append(number)
        if result.matches:
            self.statuses[PoseStatus(result.matches[0].pose.status).name] += 1


@dataclass
class Walk:
    """One sequence, and the runs on it.

    Attributes:
        name, mode: of `--sets`.
        truth: T_world_camera of every frame, in the axes of the first; empty without one.
        runs: of every mode, matcher and order, the first order first.
        missing: why nothing was run; empty otherwise.
    """

    name: str
    mode: str
    truth: list[Array] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    missing: str = ""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.runs[0].poses)

    @property
    def length(self) -> float:
        """Metres of the true path."""
        return path_length(np.array(self.truth)[:, :3, 3])

    def of(self, mode: str) -> Iterator[tuple[str, list[Run]]]:
        """Runs in a mode, matcher by matcher."""
        chosen = [run for run in self.runs if run.mode == mode]
        for matcher in dict.fromkeys(run.matcher for run in chosen):
            yield matcher, [run for run in chosen if run.matcher == matcher]

    def errors(self, run: Run) -> Errors:
        """Errors of one of the runs, over all located frames, including those after a break of the chain."""
        poses = np.array([run.poses[number] for number in run.located]).reshape(-1, 4, 4)
        truth = np.array(self.truth)[run.located]
        return trajectory_errors(poses, truth, run.mode == MONO, [part * self.length for part in DISTANCES])


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over the orders."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} (±{np.std(values):.{digits}f})"


def span(values: Sequence[int]) -> str:
    """Least and most over the orders."""
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def counts(walk: Walk, runs: Sequence[Run]) -> str:
    """Three cells: frames located, breaks, keyframes."""
    located = span([len(run.located) for run in runs])
    breaks, keyframes = (span(values) for values in ([r.breaks for r in runs], [len(r.keyframes) for r in runs]))
    return f"{located} of {walk.frames} | {breaks} | {keyframes}"


def metric_rows(walk: Walk) -> Iterator[str]:
    for matcher, runs in walk.of(walk.mode):
        errors = [walk.errors(run) for run in runs]
        yield (
            f"| {walk.name} | {walk.mode} | {matcher} | {counts(walk, runs)} | {spread([e.ate for e in errors], 3)} "
            f"| {spread([e.drift for e in errors], 2)} | {spread([e.turn for e in errors], 3)} "
            f"| {spread([1e3 * e.step for e in errors], 1)} | {spread([e.step_turn for e in errors], 3)} |"
        )


def mono_rows(walk: Walk) -> Iterator[str]:
    for matcher, runs in walk.of(MONO):
        errors = [walk.errors(run) for run in runs]
        yield (
            f"| {walk.name} | {matcher} | {counts(walk, runs)} | {spread([e.ate for e in errors], 3)} "
            f"| {spread([e.drift for e in errors], 2)} | {spread([e.turn for e in errors], 3)} "
            f"| {spread([e.scale_drift for e in errors], 1)} | {spread([100 * run.scale_std for run in runs], 1)} |"
        )


def still_rows(walk: Walk) -> Iterator[str]:
    for mode in dict.fromkeys((walk.mode, MONO)):
        for matcher, runs in walk.of(mode):
            # A single camera's own unit is not a length.
            paths, far = (
                ("-", "-")
                if mode == MONO
                else (
                    spread([100 * path_length(run.positions) for run in runs], 2),
                    spread([100 * float(np.linalg.norm(run.positions, axis=1).max()) for run in runs], 2),
                )
            )
            statuses = sum((run.statuses for run in runs), Counter[str]())
            low = 100 * statuses[PoseStatus.LOW_PARALLAX.name] / max(statuses.total(), 1)
            said = ", ".join(f"{status} {number / len(runs):.3g}" for status, number in statuses.most_common())
            yield (
                f"| {walk.name} | {mode} | {matcher} | {counts(walk, runs)} | {paths} | {far} | {low:.0f} | {said} |"
            )


def tables(walks: Sequence[Walk]) -> list[str]:
    """Markdown: with scale, without, and of cameras that stand still."""
    lines: list[str] = []
    ran = [walk for walk in walks if not walk.missing]
    for walk in ran:
        where = f"{walk.length:.2f} m" if walk.truth else "a camera that does not move"
        lines.append(f"{walk.name}: {walk.frames} frames, {where}.")
    lines += [f"{walk.name}: not run: {walk.missing}." for walk in walks if walk.missing]
    moving, still = [walk for walk in ran if walk.truth], [walk for walk in ran if not walk.truth]
    for title, header, rows in (
        ("No scale alignment", METRIC_HEADER, [row for w in moving if w.mode != MONO for row in metric_rows(w)]),
        ("One camera, after a similarity alignment", MONO_HEADER, [row for w in moving for row in mono_rows(w)]),
        ("A camera that does not move", STILL_HEADER, [row for w in still for row in still_rows(w)]),
    ):
        if rows:
            lines += ["", f"{title}:", "", *header, *rows]
    return lines


def plot(walks: Sequence[Walk], folder: Path) -> None:
    """Trajectories of the first order from above, one picture per sequence and mode."""
    folder.mkdir(parents=True, exist_ok=True)
    for walk in walks:
        for mode in dict.fromkeys((walk.mode, MONO)):
            if walk.missing or not walk.truth:
                continue
            paths = {}
            for matcher, runs in walk.of(mode):
                aligned = np.full((walk.frames, 3), np.nan)
                aligned[runs[0].located] = walk.errors(runs[0]).aligned[:, :3, 3]
                paths[matcher] = aligned, runs[0].keyframes
            name = walk.name.partition("?")[0].replace(":", "_")
            how = "aligned with scale" if mode == MONO else "aligned without scale"
            truth = np.array(walk.truth)[:, :3, 3]
            plot_from_above(folder / f"trajectory_{name}_{mode}.png", paths, truth, f"{walk.name}, {mode} ({how})")


def plot_from_above(
    path: str | Path,
    estimates: Mapping[str, tuple[ArrayLike, Sequence[int]]],
    truth: ArrayLike,
    title: str = "",
) -> None:
    """Write a plot of several trajectories of the same frames: from above, and their distances from the truth.

    A straight road shows nothing from above; the distances do. The truth is black.

    Args:
        path: file to write; its ending chooses the format (png, svg, pdf).
        estimates: by name, (N, 3) positions in metres in the axes of the truth's first camera (x right, z forward), NaN
            for frames that were not located, which break the line; and the frames that became keyframes.
        truth: (N, 3) positions.
        title: of the plot.

    Raises:
        ValueError: the shapes do not fit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    true = np.asarray(truth, np.float64)
    figure = Figure(figsize=(11.5, 6.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes, distances = figure.subplots(1, 2)
    axes.plot(true[:, 0], true[:, 2], color="black", linewidth=2.5, label="truth")
    for number, (name, (positions, keyframes)) in enumerate(estimates.items()):
        points = np.asarray(positions, np.float64)
        if points.shape != true.shape:
            raise ValueError(f"{name} has positions of shape {points.shape}, truth of {true.shape}; they must be alike")
        located = int(np.isfinite(points).all(axis=1).sum())
        label = name if located == len(points) else f"{name} ({located} of {len(points)} frames)"
        axes.plot(points[:, 0], points[:, 2], color=f"C{number}", linewidth=1.8, label=label)
        marked = points[np.asarray(keyframes, np.int64)]
        axes.plot(marked[:, 0], marked[:, 2], "o", color=f"C{number}", markersize=4, markeredgecolor="white")
        off = np.linalg.norm(points - true, axis=1)
        distances.plot(off, color=f"C{number}", linewidth=1.8)
        distances.plot(keyframes, off[list(keyframes)], "o", color=f"C{number}", markersize=4, markeredgecolor="white")
    axes.plot([], [], "o", color="0.5", markersize=4, label="keyframes")
    axes.plot(true[0, 0], true[0, 2], "s", color="black", markersize=7, markeredgecolor="white", label="start")
    axes.set(xlabel="x, right (m)", ylabel="z, forward (m)", title="from above")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.08)
    axes.legend(frameon=True, framealpha=0.9, fontsize=9)
    distances.set(xlabel="frame", ylabel="m", title="distance from the truth", ylim=(0, None))
    for each in (axes, distances):
        each.grid(color="0.92")
        each.set_axisbelow(True)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.savefig(path)
