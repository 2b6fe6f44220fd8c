"""Homographies: our networks beside SIFT, ORB, XFeat, ALIKED + LightGlue and the published student.

Two kinds of pairs: the views 1-2, 1-3 and 1-4 of VGG's `graf` (a painted wall at increasing angles), and views of
photos held out of the training by `loftr_ros train assets`, under moderate homographies and photometric change from a
fixed seed, where the true position of every match is known to a small part of a pixel. Every matcher sees the same
pairs in one run, in turn on each pair; its homography is found by MAGSAC++.

    .venv/bin/python benchmarks/homography.py [--data ../shared/data] [--network NAME] [--weights FILE] [--quick]
"""

from __future__ import annotations

import argparse
import os
import platform
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from match_scores import map_points, mean_and_spread
from numpy.typing import NDArray
from pair_scores import PairScore, score_homography
from parallel import in_processes

from loftr_ros.evaluation.metrics import pose_auc
from loftr_ros.training.calibration import Calibration, calibration

GRAF_VIEWS = (2, 3, 4)
SIZE = (640, 480)
SEED = 20
DIFFICULTY, PHOTOMETRIC = 0.4, 0.3  # parts of the training's maximum
LARGEST_TURN = 45.0  # degrees in the image; training rotates a few pairs by any angle
LEAST_COVISIBLE = 0.35
# Half of the wallpapers are almost blank: this part of a photo's blocks of 32 px must have this standard deviation.
BLOCK, LEAST_CONTRAST, LEAST_PART = 32, 5.0, 0.5
RIGHT = 3.0  # px, threshold of a right match
CELL = 8.0  # px: a smaller error is the fine stage's, a larger one means that the coarse stage chose another cell
THRESHOLD = 3.0  # px, of MAGSAC++, as in the evaluation of LoFTR on HPatches
AUC_LIMITS = (3.0, 5.0, 10.0)
QUICK_PHOTOS, QUICK_ORDERS = 6, 2

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two gray images, the second one's colours if it has any, and the homography between them."""

    name: str
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    colors: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    truth: Array


@dataclass
class Result:
    """One matcher on one kind of pairs; one number per pair, except for values of all matches."""

    matcher: str
    scores: list[PairScore] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    match: list[float] = field(default_factory=list)
    residuals: list[Array] = field(default_factory=list)
    std: list[Array] = field(default_factory=list)

    @property
    def errors(self) -> Array:
        """(orders, pairs) mean corner errors."""
        return np.array([score.errors for score in self.scores]).T

    @property
    def all_residuals(self) -> Array:
        """(N, 2) of all pairs' matches."""
        return np.concatenate(self.residuals)

    def calibrated(self, limit: float = np.inf) -> Calibration:
        """Calibration of the matches with an error below `limit`."""
        residuals, std = self.all_residuals, np.concatenate(self.std)
        near = np.linalg.norm(residuals, axis=1) < limit
        return calibration(residuals[near], std[near])


def graf_pairs(folder: Path) -> list[Pair]:
    colors = {}
    for number in (1, *GRAF_VIEWS):
        image = cv2.imread(str(folder / f"img{number}.ppm"))
        if image is None:
            raise SystemExit(f"{folder}: img{number}.ppm is not there, or no image")
        colors[number] = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
    grays = {number: np.asarray(cv2.cvtColor(color, cv2.COLOR_RGB2GRAY), np.uint8) for number, color in colors.items()}
    return [
        Pair(
            f"graf 1-{number}",
            (grays[1], grays[number]),
            (colors[1], colors[number]),
            np.loadtxt(folder / f"H1to{number}p"),
        )
        for number in GRAF_VIEWS
    ]


def photo_pairs(assets: Path, most: int, each: int) -> list[Pair]:
    """Pairs of views of the held-out photos that have contrast and fill the view without being enlarged."""
    from loftr_ros.training.assets import AssetBank
    from loftr_ros.training.homography import view
    from loftr_ros.training.photometric import photograph

    bank = AssetBank(assets, validation=True)
    width, height = SIZE
    pairs: list[Pair] = []
    large = [photo for photo in bank.photos if photo.sizes[0][1] >= width and photo.sizes[0][0] >= height]
    photos = [photo for photo in large if has_contrast(bank.levels(photo)[0])]
    for number, photo in enumerate(photos[:most] if most else photos):
        levels = bank.levels(photo)
        rows, columns = levels[0].shape
        for turn in range(each):
            rng = np.random.default_rng((SEED, number, turn))
            zoom = float(rng.uniform(1.0, min(columns / width, rows / height)))
            corner = np.array([columns - zoom * width, rows - zoom * height]) * rng.random(2)
            flat = np.array([[zoom, 0, corner[0]], [0, zoom, corner[1]], [0, 0, 1.0]])
            truth = moderate_homography(rng)
            clean = view(levels, flat, SIZE), view(levels, flat @ np.linalg.inv(truth), SIZE)
            first, second = (photograph(image, rng, PHOTOMETRIC, softness=0.0)[0] for image in clean)
            pairs.append(Pair(f"photo {number}.{turn}", (first, second), (first, second), truth))
    if not pairs:
        raise SystemExit(f"{assets}: no held-out photo with contrast is as large as {width}x{height}")
    return pairs


def has_contrast(image: NDArray[np.uint8]) -> bool:
    """Whether most of an (H, W) image has contrast."""
    rows, columns = (side // BLOCK for side in image.shape)
    blocks = image[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return bool((blocks.std(axis=(1, 3)) >= LEAST_CONTRAST).mean() >= LEAST_PART)


def moderate_homography(rng: np.random.Generator) -> Array:
    """A homography as in training, up to DIFFICULTY; drawn again if it rotates too far or leaves too little overlap."""
    from loftr_ros.training.homography import random_homography

    middle = (np.array(SIZE) - 1) / 2
    grid = np.stack(np.meshgrid(*(np.linspace(0, side - 1, 20) for side in SIZE)), axis=-1).reshape(-1, 2)
    while True:
        H = np.asarray(random_homography(rng, SIZE, DIFFICULTY), np.float64)
        here, beside = map_points(H, middle + np.array([[0, 0], [1, 0]]))
        turn = abs(np.degrees(np.arctan2(*(beside - here)[::-1])))
        seen = [
            ((moved >= 0) & (moved <= np.array(SIZE) - 1)).all(axis=1).mean()
            for moved in (map_points(H, grid), map_points(np.linalg.inv(H), grid))
        ]
        if turn <= LARGEST_TURN and min(seen) >= LEAST_COVISIBLE:
            return H


@dataclass(frozen=True)
class Job:
    """One pair's matches by one matcher, to be scored."""

    points: tuple[NDArray[np.float32], NDArray[np.float32]]
    truth: Array
    sizes: tuple[tuple[int, int], tuple[int, int]]
    orders: int


def score(job: Job) -> PairScore:
    """Score a job, in a separate process."""
    cv2.setNumThreads(1)
    distances = np.linalg.norm(job.points[1] - map_points(job.truth, job.points[0]), axis=1)
    return score_homography(*job.points, job.truth, job.sizes, distances, RIGHT, THRESHOLD, job.orders)


def run(contenders: list[Any], pairs: list[Pair], orders: int, what: str) -> list[Result]:
    """Match everything, timed without other work; then score."""
    from contenders import Race, View
    from tqdm import tqdm

    from loftr_ros.frontend.frame import Frame

    results = [Result(contender.label) for contender in contenders]
    race = Race(contenders)
    jobs = []
    for number, pair in enumerate(tqdm(pairs, desc=what, unit="pair", disable=None)):
        views = [
            View(f"{pair.name} {side}", Frame(image, 0, ""), color)
            for side, image, color in zip((0, 1), pair.images, pair.colors, strict=True)
        ]
        if not number:
            race.warm_up(*views)
        for result, (found, seconds) in zip(results, race.pair(*views), strict=True):
            result.encode.append(seconds)
            result.match.append(found.seconds)
            result.residuals.append(found.points1 - map_points(pair.truth, found.points0))
            unknown = np.full(len(found.points0), np.nan)
            result.std.append(np.asarray(unknown if found.std is None else found.std, np.float64))
            sizes = views[0].frame.size, views[1].frame.size
            jobs.append(Job((found.points0, found.points1), pair.truth, sizes, orders))
        race.keep(())
    scored = iter(in_processes(score, jobs, "homographies"))
    for _ in pairs:
        for result in results:
            result.scores.append(next(scored))
    return results


def graf_table(pairs: list[Pair], results: list[Result], missing: list[tuple[str, str]]) -> list[str]:
    names = " | ".join(pair.name for pair in pairs)
    rows = [
        f"| matcher | corner error px: {names} | mean | right matches: {names} |",
        "| --- |" + " --- |" * (2 * len(pairs) + 1),
    ]
    for result in results:
        cells = [mean_and_spread(result.errors[:, i]) for i in range(len(pairs))]
        right = [f"{100 * score.precision:.0f} % of {score.matches}" for score in result.scores]
        mean = mean_and_spread(result.errors.mean(axis=1))
        rows.append(f"| {result.matcher} | {' | '.join(cells)} | {mean} | {' | '.join(right)} |")
    rows += [f"| {label} | not run: {why} |" + " |" * (2 * len(pairs)) for label, why in missing]
    return rows


def photo_table(results: list[Result], missing: list[tuple[str, str]]) -> list[str]:
    rows = [
        "| matcher | AUC@3/5/10 px | right % | matches | coverage % | median error px | right ones' | 1 sigma % | 2 sigma % | ms a pair |",  # noqa: E501
        "| --- |" + " --- |" * 9,
    ]
    for result in results:
        aucs = [pose_auc(row, AUC_LIMITS) for row in result.errors]
        distance = np.linalg.norm(result.all_residuals, axis=1)
        right = distance[distance < RIGHT]
        matches, covered = (np.mean([getattr(s, what) for s in result.scores]) for what in ("matches", "coverage"))
        medians = [f"{np.median(part):.2f}" if len(part) else "-" for part in (distance, right)]
        known = result.calibrated(CELL)
        sigmas = [f"{100 * known.within_one:.0f}", f"{100 * known.within_two:.0f}"] if known.count else ["-", "-"]
        milliseconds = 1e3 * (np.median(result.encode) + np.median(result.match))
        rows.append(
            f"| {result.matcher} | {mean_and_spread(aucs)} | {100 * len(right) / max(len(distance), 1):.0f} | "
            f"{matches:.0f} | {100 * covered:.0f} | {medians[0]} | {medians[1]} | {' | '.join(sigmas)} | "
            f"{milliseconds:.0f} |"
        )
    rows += [f"| {label} | not run: {why} |" + " |" * 8 for label, why in missing]
    for result in results:
        known, every = result.calibrated(CELL), result.calibrated()
        if known.count:
            rows += [
                "",
                f"{result.matcher}: predicted standard deviations (median {np.median(known.predicted):.2f} px)",
            ]
            rows[-1] += f" times {known.scale:.2f} would hold 68 % of the errors of {known.count} matches within"
            rows[-1] += (
                f" {CELL:g} px; of all {every.count} matches' errors {100 * every.within_one:.0f} % are within one."
            )
    return rows


def plot(results: list[Result], folder: Path) -> None:
    """Errors of homographies and of matches, and the calibration of predicted standard deviations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    corners, matches = figure.subplots(1, 2)
    for number, result in enumerate(results):
        for axes, values in (
            (corners, np.ravel(result.errors)),
            (matches, np.linalg.norm(result.all_residuals, axis=1)),
        ):
            ordered = np.sort(np.append(values, 0))
            part = 100 * np.arange(len(ordered)) / max(len(values), 1)
            axes.plot(ordered, part, color=f"C{number}", label=result.matcher, drawstyle="steps-post")
    corners.set(xlim=(0, 10), ylim=(0, 100), xlabel="mean corner error, px", ylabel="pairs within it, %")
    matches.set(xlim=(0, 4), ylim=(0, 100), xlabel="error of a match, px", ylabel="matches within it, %")
    handles, labels = corners.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle("held-out photos under moderate homographies")
    for axes in (corners, matches):
        axes.grid(alpha=0.3)
    figure.savefig(folder / "homography_errors.png")

    known = [(number, result) for number, result in enumerate(results) if result.calibrated(CELL).count]
    if not known:
        return
    figure = Figure(figsize=(10, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    reliability, histogram = figure.subplots(1, 2)
    top = 0.1
    for number, result in known:
        found = result.calibrated(CELL)
        top = max(top, *found.predicted, *found.measured)
        reliability.plot(found.predicted, found.measured, "o-", color=f"C{number}", label=result.matcher)
        residuals, std = result.all_residuals, np.concatenate(result.std)
        near = np.linalg.norm(residuals, axis=1) < CELL
        ratio = (residuals[near] / std[near, None]).ravel()
        histogram.hist(ratio, np.linspace(-4, 4, 81), density=True, histtype="step", color=f"C{number}")
    reliability.plot([0, top], [0, top], "k:", label="perfect")
    reliability.set(xlabel="predicted standard deviation, px", ylabel="68 % of errors along an axis within, px")
    x = np.linspace(-4, 4, 200)
    histogram.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), "k:", label="normal")
    histogram.set(xlabel="error along an axis / predicted standard deviation", ylabel="density")
    for axes in (reliability, histogram):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(folder / "homography_calibration.png")


def protocol(orders: int, pairs: list[Pair]) -> list[str]:
    import torch

    lines = [
        f"Mean (± standard deviation) over {orders} match orders; MAGSAC++ at {THRESHOLD:g} px. Corner error: mean",
        "distance between where the found and the true homography take the first image's corners. Right: within",
        f"{RIGHT:g} px of the true place. Times: medians, one matcher after another.",
        f"torch {torch.__version__}, OpenCV {cv2.__version__}, {os.cpu_count()} cores, {platform.machine()}.",
    ]
    if pairs:
        photos = len({pair.name.split(".")[0] for pair in pairs})
        lines += [
            f"Photos: {len(pairs)} pairs of {SIZE[0]}x{SIZE[1]} views of {photos} held-out photos (those with contrast",
            f"in half of their {BLOCK}-px blocks: a standard deviation of {LEAST_CONTRAST:g} gray levels); tilted by",
            f"up to {60 * DIFFICULTY:.0f} degrees, turned up to {10 + 50 * DIFFICULTY:.0f}, a few {LARGEST_TURN:.0f},",
            f"scaled up to {2 ** (0.2 + 0.8 * DIFFICULTY):.2f} times; both photometrically changed. 1 sigma: part of",
            "the errors along u and along v within one predicted standard deviation (perfect: 68), 2 sigma: within two",
            f"(95), of the matches within {CELL:g} px of the truth.",
        ]
    return lines


def main() -> None:
    from contenders import add_options, open_contenders

    from loftr_ros.training.assets import AssetError, default_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that `graf` is in")
    parser.add_argument("--assets", type=Path, default=default_folder(), help="folder of `loftr_ros train assets`")
    parser.add_argument("--photos", type=int, default=0, help="photos, at most; 0 for all")
    parser.add_argument("--each", type=int, default=12, help="pairs of each photo")
    parser.add_argument("--only", choices=["graf", "photos"], help="one kind alone")
    parser.add_argument("--orders", type=int, default=5, help="match orders")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PHOTOS} pairs of photos, {QUICK_ORDERS} orders")
    parser.add_argument("--out", type=Path, help="file for the tables")
    parser.add_argument("--plots", type=Path, help="folder for pictures")
    add_options(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.photos, arguments.each, arguments.orders = QUICK_PHOTOS, 1, QUICK_ORDERS
    lines: list[str] = []
    pairs: list[Pair] = []
    with ExitStack() as stack:
        contenders, missing = open_contenders(arguments, stack)
        if arguments.only != "photos":
            folder = arguments.data / "graf"
            if folder.is_dir():
                graf = graf_pairs(folder)
                lines += ["", *graf_table(graf, run(contenders, graf, arguments.orders, "graf"), missing)]
            else:
                lines += ["", f"graf: not run: {folder} is not there (VGG's img1.ppm to img4.ppm and H1to2p to H1to4p)"]
        if arguments.only != "graf":
            try:
                pairs = photo_pairs(arguments.assets, arguments.photos, arguments.each)
            except AssetError as error:
                lines += ["", f"photos: not run: {error}"]
            else:
                results = run(contenders, pairs, arguments.orders, "photos")
                lines += ["", *photo_table(results, missing)]
                if arguments.plots:
                    plot(results, arguments.plots)
    lines = [*protocol(arguments.orders, pairs), *lines]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
