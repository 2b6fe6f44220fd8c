"""Relative pose from real video: our networks beside SIFT, ORB, XFeat, ALIKED + LightGlue and the published student.

Every matcher sees the same pairs in one run, in turn on each pair. Its matches go through the front end's geometry
(MAGSAC++ on rays in units of the focal length, refined), several times in another order, since the estimator's sampling
depends on it. `make peers` makes the environment of XFeat, ALIKED and LightGlue.

`--sets wide:48` uses that many pairs of rendered rooms instead, rotated against each other by 30 to 60 degrees.

    .venv/bin/python benchmarks/relative_pose.py [--data ../shared/data] [--network NAME] [--weights FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from match_scores import mean_and_spread
from numpy.typing import NDArray
from pair_scores import PairScore, score_pose
from parallel import in_processes

from loftr_ros.evaluation.metrics import pose_auc
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.config import GeometryConfig

# Folder and frames between a pair's images; all existing pairs.
SETS = ("sevenscenes:5", "sevenscenes:20", "sevenscenes:40", "kitti06_stereo:1", "kitti06_stereo:3", "kitti06_stereo:5")
# Squared normalised units, as in LoFTR's evaluation: indoors (ScanNet) and outdoors (MegaDepth).
INDOOR, OUTDOOR = 5e-4, 1e-4
THRESHOLD = 0.5
WIDE = "wide"
QUICK_PAIRS, QUICK_ORDERS = 4, 2
MEAN = "mean over sets"
HEADER = (
    "| set | pairs | matcher | AUC@5/10/20 | precision % | matches | inliers % | coverage % | ms a pair | images + matching |",  # noqa: E501
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass
class Result:
    """One matcher on one set.

    Attributes:
        set, matcher: names.
        missing: why it was not run; empty if it was.
        errors: (orders, pairs) degrees.
        precision, matches, inliers, coverage: one number per pair.
        encode, match: seconds per pair: both images, and the matching.
    """

    set: str
    matcher: str
    missing: str = ""
    errors: list[list[float]] = field(default_factory=list)
    precision: list[float] = field(default_factory=list)
    matches: list[int] = field(default_factory=list)
    inliers: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    match: list[float] = field(default_factory=list)

    @property
    def aucs(self) -> NDArray[np.float64]:
        """(orders, 3)."""
        return np.array([pose_auc(row) for row in self.errors])

    @property
    def numbers(self) -> NDArray[np.float64]:
        """Precision, matches, inliers and coverage in percent; milliseconds per pair, of images and of matching."""
        precision = np.nanmean(self.precision) if np.isfinite(self.precision).any() else np.nan
        inliers = sum(self.inliers) / max(sum(self.matches), 1)
        encode, match = 1e3 * np.median(self.encode), 1e3 * np.median(self.match)
        return np.array(
            [100 * precision, np.mean(self.matches), 100 * inliers, 100 * np.mean(self.coverage), encode, match]
        )


def limit_of(folder: str) -> float:
    """Largest epipolar error of a right match: outdoors for KITTI, indoors otherwise."""
    return OUTDOOR if "kitti" in folder else INDOOR


def chosen(total: int, gap: int, most: int) -> list[int]:
    """First frames of a set's pairs: all, or every n-th so that there are at most `most`."""
    every = range(max(total - gap, 0))
    return list(every[:: -(-len(every) // most)] if most and every else every)


def pairs_of(name: str, arguments: argparse.Namespace) -> list[tuple[Any, Any]]:
    """Pairs of a set: two views, each with its (4, 4) T_world_camera."""
    folder, _, number = name.rpartition(":")
    if folder == WIDE:
        from wide_pairs import wide_pairs

        return wide_pairs(min(int(number), arguments.pairs or int(number)))
    gap, frames = int(number), list(views(folder, arguments.data))
    return [(frames[i], frames[i + gap]) for i in chosen(len(frames), gap, arguments.pairs)]


def views(folder: str, path: Path) -> Iterator[tuple[Any, NDArray[np.float64]]]:
    """Images of a sequence, and their (4, 4) T_world_camera."""
    from contenders import View

    from loftr_ros.recordings import open_source

    with open_source(folder if folder.startswith("rendered") else str(path / folder)) as source:
        for frame in source:
            color = frame.decode_color()
            rgb = color if color.ndim == 2 else np.asarray(cv2.cvtColor(color, cv2.COLOR_BGR2RGB), np.uint8)
            if frame.pose is None or frame.camera is None:
                raise SystemExit(f"{folder}: frame {frame.index} has no pose, or no calibration")
            yield View(f"{folder}/{frame.index}", frame.to_frame(), rgb), frame.pose


@dataclass(frozen=True)
class Job:
    """One pair's matches by one matcher, to be scored."""

    points: tuple[NDArray[np.float32], NDArray[np.float32]]
    cameras: tuple[CameraModel, CameraModel]
    truth: NDArray[np.float64]
    limit: float
    config: GeometryConfig
    orders: int
    std: NDArray[np.float32] | None

    def score(self) -> PairScore:
        return score_pose(*self.points, self.cameras, self.truth, self.limit, self.config, self.orders, self.std)


def score(job: Job) -> PairScore:
    """Score a job, in a separate process."""
    cv2.setNumThreads(1)
    return job.score()


def run(arguments: argparse.Namespace, config: GeometryConfig) -> list[Result]:
    """Match everything, timed without other work; then score."""
    from contenders import Race, open_contenders
    from tqdm import tqdm

    results: list[Result] = []
    jobs: list[Job] = []
    with ExitStack() as stack:
        contenders, missing = open_contenders(arguments, stack)
        race, raced = Race(contenders), ""
        for place, name in enumerate(arguments.sets):
            folder = name.rpartition(":")[0]
            results += [Result(name, label, why) for label, why in missing]
            if folder != WIDE and not folder.startswith("rendered") and not (arguments.data / folder).is_dir():
                results.append(Result(name, "all", f"{arguments.data / folder} is not there"))
                continue
            pairs = pairs_of(name, arguments)
            if folder != raced:
                race.keep(())
                race.warm_up(pairs[0][0][0], pairs[0][1][0])
            raced = folder
            # The next set's pairs use the same images.
            kept = name != arguments.sets[-1] and arguments.sets[place + 1].rpartition(":")[0] == folder
            rows = [Result(name, contender.label) for contender in contenders]
            for n, ((view0, pose0), (view1, pose1)) in enumerate(tqdm(pairs, desc=name, unit="pair", disable=None)):
                cameras = view0.frame.camera, view1.frame.camera
                truth = np.linalg.inv(pose0) @ pose1
                for row, (found, seconds) in zip(rows, race.pair(view0, view1), strict=True):
                    row.encode.append(seconds)
                    row.match.append(found.seconds)
                    points = found.points0, found.points1
                    std = None if arguments.unweighted else found.std
                    jobs.append(Job(points, cameras, truth, limit_of(folder), config, arguments.orders, std))
                if not kept:
                    race.keep([view.key for pair in pairs[n + 1 :] for view, _ in pair])
            results += rows
    scored = iter(in_processes(score, jobs, "poses"))
    ran = [result for result in results if not result.missing]
    for name in dict.fromkeys(result.set for result in ran):
        rows = [result for result in ran if result.set == name]
        for _ in rows[0].encode:
            for row in rows:
                add(row, next(scored))
    return results


def add(result: Result, pair: PairScore) -> None:
    result.errors = result.errors or [[] for _ in pair.errors]
    for row, error in zip(result.errors, pair.errors, strict=True):
        row.append(float(error))
    result.matches.append(pair.matches)
    result.precision.append(pair.precision)
    result.inliers.append(pair.inliers)
    result.coverage.append(pair.coverage)


def line(name: str, pairs: int, matcher: str, aucs: NDArray[np.float64], numbers: NDArray[np.float64]) -> str:
    precision, matches, inliers, covered, encode, match = numbers
    return (
        f"| {name} | {pairs} | {matcher} | {mean_and_spread(aucs)} | {precision:.0f} | {matches:.0f} | {inliers:.0f} | "
        f"{covered:.0f} | {encode + match:.0f} | {encode:.0f} + {match:.0f} |"
    )


def table(results: list[Result]) -> list[str]:
    """Markdown: a row per set and matcher, then the means over sets of those that ran on all."""
    rows = list(HEADER)
    for result in results:
        if result.missing:
            rows.append(f"| {result.set} | 0 | {result.matcher} | not run: {result.missing} | | | | | | |")
        else:
            pairs = len(result.precision)
            rows.append(line(result.set, pairs, result.matcher, result.aucs, result.numbers))
    ran = [result for result in results if not result.missing]
    sets = list(dict.fromkeys(result.set for result in ran))
    for matcher in dict.fromkeys(result.matcher for result in results if result.matcher != "all"):
        mine = [result for result in ran if result.matcher == matcher]
        if len(mine) < len(sets) or not mine:
            rows.append(f"| {MEAN} | | {matcher} | not run on all of them | | | | | | |")
            continue
        pairs = sum(len(result.precision) for result in mine)
        aucs = np.mean([result.aucs for result in mine], axis=0)
        rows.append(line(MEAN, pairs, matcher, aucs, np.mean([result.numbers for result in mine], axis=0)))
    return rows


def plot(results: list[Result], folder: Path) -> None:
    """Cumulative errors of every set, and the areas under them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ran = [result for result in results if not result.missing]
    sets = list(dict.fromkeys(result.set for result in ran))
    matchers = list(dict.fromkeys(result.matcher for result in ran))
    folder.mkdir(parents=True, exist_ok=True)
    columns = min(len(sets), 3)
    figure = Figure(figsize=(4.4 * columns, 3.6 * -(-len(sets) // columns) + 0.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(np.ravel(figure.subplots(-(-len(sets) // columns), columns, squeeze=False)), sets):  # noqa: B905 (more axes than sets)
        for number, matcher in enumerate(matchers):
            for result in (r for r in ran if (r.set, r.matcher) == (name, matcher)):
                errors = np.sort(np.append(result.errors, 0))
                recall = np.arange(len(errors)) / (len(errors) - 1)
                axes.plot(errors, 100 * recall, color=f"C{number}", label=matcher, drawstyle="steps-post")
        axes.set(xlim=(0, 20), ylim=(0, 100), title=name, xlabel="pose error, degrees", ylabel="pairs within it, %")
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(folder / "relative_pose_errors.png")

    figure = Figure(figsize=(2.2 * len(sets) + 2, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(matchers)
    for number, matcher in enumerate(matchers):
        for place, name in enumerate(sets):
            for result in (r for r in ran if (r.set, r.matcher) == (name, matcher)):
                at, areas = place + (number - (len(matchers) - 1) / 2) * width, result.aucs[:, 1]
                label = matcher if name == sets[0] else None
                axes.bar(at, areas.mean(), width, yerr=areas.std(), color=f"C{number}", label=label)
    axes.set_xticks(range(len(sets)), sets)
    axes.set(ylabel="AUC@10, %", ylim=(0, 100))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(folder / "relative_pose_auc.png")


def protocol(orders: int, config: GeometryConfig) -> list[str]:
    import torch

    return [
        f"AUC@5/10/20 of max(rotation, translation direction), mean (± standard deviation) over {orders} match orders;",
        f"MAGSAC++ at {config.threshold:g} px and the front end's refinement for all, in which matches count by their",
        "predicted standard deviations where a matcher has them. A pair whose translation counts as unobserved has an",
        f"error of 90 degrees{'' if config.min_parallax else '; here it never does'}. Precision:",
        f"matches whose symmetric squared epipolar distance to the true pose is below {INDOOR:g} indoors, {OUTDOOR:g}",
        "(KITTI), normalised units, as in LoFTR's evaluation. Coverage: grid blocks of the second image (8 x 6) with",
        "an inlier. Time: medians; both images from pixels to features, and the matching, one matcher after another.",
        f"torch {torch.__version__}, OpenCV {cv2.__version__}, {os.cpu_count()} cores, {platform.machine()}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sequences")
    parser.add_argument(
        "--sets", nargs="+", default=list(SETS), help="FOLDER:GAP each; a folder may be `rendered`; wide:PAIRS"
    )
    parser.add_argument("--pairs", type=int, default=0, help="pairs of each set, at most, evenly spread; 0 for all")
    parser.add_argument("--orders", type=int, default=5, help="match orders that every pose is estimated with")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAIRS} pairs a set, {QUICK_ORDERS} orders")
    parser.add_argument("--ungated", action="store_true", help="never take a translation for unobserved")
    parser.add_argument("--unweighted", action="store_true", help="leave out what matchers say of their certainty")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--raw", type=Path, help="file for every pair's numbers, as JSON")
    parser.add_argument("--merge", type=Path, nargs="+", help="run nothing: one table of these files of --raw")
    parser.add_argument("--plots", type=Path, help="folder for pictures")
    from contenders import add_options

    add_options(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.orders = arguments.pairs or QUICK_PAIRS, QUICK_ORDERS
    config = GeometryConfig(threshold=THRESHOLD)
    if arguments.ungated:
        config = GeometryConfig(threshold=THRESHOLD, min_parallax=0.0, min_parallax_to_noise=0.0)
    if arguments.merge:
        kept = [json.loads(file.read_text()) for file in arguments.merge]
        text = kept[0]["protocol"]
        if any(part["protocol"] != text for part in kept):
            parser.error("these files are of different protocols")
        results = [Result(**entry) for part in kept for entry in part["results"]]
    else:
        text, results = protocol(arguments.orders, config), run(arguments, config)
    if arguments.raw:
        arguments.raw.write_text(json.dumps({"protocol": text, "results": [asdict(result) for result in results]}))
    lines = [*text, "", *table(results)]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    if arguments.plots:
        plot(results, arguments.plots)


if __name__ == "__main__":
    main()
