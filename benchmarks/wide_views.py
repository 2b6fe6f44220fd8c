"""Matching of distant views: wide and other-light sets, and curves over angle, scale, overlap and light.

Every matcher sees the same pairs. Poses are estimated twice: by plain MAGSAC++ (0.5 px) over all matches, and by the
front end's own geometry, which weights matches by their predicted standard deviations. WxBS has no poses: the
fundamental matrix of plain MAGSAC++ is compared with correspondences marked by hand. Confidence and speed are not
evaluated here.

    .venv/bin/python benchmarks/wide_views.py [--quick] [--parts wxbs strecha video curves] [--weights FILE ...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from contenders import EVERY, OURS_SINGLE, Found, Race, View, add_options, open_contenders
from numpy.typing import NDArray
from pair_scores import orders_of, score_pose
from parallel import in_processes
from wide_sets import (
    ANGLES,
    AXES,
    LIGHTS,
    OVERLAPS,
    SCALES,
    STRECHA_GAPS,
    PointPair,
    PosedPair,
    rendered,
    strecha,
    wxbs,
)

from loftr_ros.evaluation.metrics import pose_auc, rotation_error, translation_direction_error
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.config import GeometryConfig

Array = NDArray[np.float64]

PARTS = ("wxbs", "strecha", "video", "curves")
VIDEO = ("sevenscenes:40", "sevenscenes:80")
VALUES: dict[str, tuple[Any, ...]] = {"angle": ANGLES, "scale": SCALES, "overlap": OVERLAPS, "light": LIGHTS}
THRESHOLD = 0.5  # px, of both estimators
LINES = (3.0, 6.0, 12.0)  # px from the epipolar line
QUICK_VALUES = {"angle": (0, 30, 60), "scale": (1.0, 2.0), "overlap": (0.5, 0.2), "light": ("same", "other tour")}
QUICK_PAIRS, QUICK_ORDERS = 4, 1


@dataclass
class Row:
    """One matcher on one set.

    Attributes:
        set, matcher: names.
        plain, own: (orders, pairs) degrees; empty on WxBS.
        shares: (orders, pairs, 3) parts of the true correspondences within LINES; empty except on WxBS.
        matches: of each pair.
        right: part of each pair's matches within 8 px of the truth; empty if depth is unknown.
    """

    set: str
    matcher: str
    plain: list[list[float]] = field(default_factory=list)
    own: list[list[float]] = field(default_factory=list)
    shares: list[list[list[float]]] = field(default_factory=list)
    matches: list[int] = field(default_factory=list)
    right: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Columns of the table after set, pairs and matcher."""
        matches = f"{np.mean(self.matches):.0f}" if self.matches else "-"
        if self.shares:
            means = 100 * np.asarray(self.shares).mean(axis=1)
            return [spread(means), "-", matches, "-"]
        right = f"{100 * np.nanmean(self.right):.0f}" if np.isfinite(self.right).any() else "-"
        return [spread([pose_auc(row) for row in part]) for part in (self.plain, self.own)] + [matches, right]


@dataclass(frozen=True)
class Job:
    """One pair's matches by one matcher, to be scored."""

    points: tuple[NDArray[np.float32], NDArray[np.float32]]
    std: NDArray[np.float32] | None
    cameras: tuple[CameraModel, CameraModel] | None
    truth: Array | tuple[Array, Array]
    orders: int


def spread(rows: Sequence[Any] | Array) -> str:
    """Mean over the orders, and its spread if there are several."""
    values = np.asarray(rows, np.float64)
    mean = "/".join(f"{value:.1f}" for value in values.mean(axis=0))
    return mean if len(values) < 2 else f"{mean} (±{values.std(axis=0).max():.1f})"


def score(job: Job) -> tuple[list[float], list[float], list[list[float]]]:
    """Errors of both estimators, and shares on lines, one for each order."""
    cv2.setNumThreads(1)
    if job.cameras is None:
        return [], [], [on_lines(job.points, order, job.truth) for order in orders_of(len(job.points[0]), job.orders)]
    assert isinstance(job.truth, np.ndarray)
    config = GeometryConfig(threshold=THRESHOLD)
    own = score_pose(*job.points, job.cameras, job.truth, 1.0, config, job.orders, job.std).errors
    orders = orders_of(len(job.points[0]), job.orders)
    return [plain(job.points, order, job.cameras, job.truth) for order in orders], [float(e) for e in own], []


def plain(
    points: tuple[NDArray[np.float32], NDArray[np.float32]],
    order: NDArray[np.int64],
    cameras: tuple[CameraModel, CameraModel],
    truth: Array,
) -> float:
    """Error in degrees of the essential matrix by MAGSAC++ over all matches; inf without one."""
    if len(order) < 6:
        return float("inf")
    rays0, rays1 = (
        np.ascontiguousarray(camera.unproject(part[order])) for camera, part in zip(cameras, points, strict=True)
    )
    focal = sum(float(np.mean(camera.focal_length)) for camera in cameras) / 2
    found: Any = cv2.findEssentialMat(rays0, rays1, np.eye(3), cv2.USAC_MAGSAC, 0.9999, THRESHOLD / focal)
    essential, mask = found
    if essential is None or essential.shape != (3, 3):
        return float("inf")
    recovered: Any = cv2.recoverPose(essential, rays0, rays1, np.eye(3), mask=mask)
    R, t = recovered[1], recovered[2][:, 0]
    # OpenCV's pose maps points of camera 0 to camera 1; the truth is the pose of camera 1 in camera 0.
    return max(rotation_error(R.T, truth[:3, :3]), translation_direction_error(-R.T @ t, truth[:3, 3]))


def on_lines(
    points: tuple[NDArray[np.float32], NDArray[np.float32]],
    order: NDArray[np.int64],
    truth: Array | tuple[Array, Array],
) -> list[float]:
    """Parts of the true correspondences within LINES of both epipolar lines of the fundamental matrix by MAGSAC++."""
    assert isinstance(truth, tuple)
    if len(order) < 8:
        return [0.0] * len(LINES)
    try:
        found: Any = cv2.findFundamentalMat(
            points[0][order], points[1][order], cv2.USAC_MAGSAC, THRESHOLD, 0.9999, 10000
        )
    except cv2.error:  # it found no model, and fails with an assertion
        return [0.0] * len(LINES)
    F = found[0]
    if F is None or F.shape != (3, 3):
        return [0.0] * len(LINES)
    p0, p1 = (np.pad(part, ((0, 0), (0, 1)), constant_values=1.0) for part in truth)
    line1, line0 = p0 @ F.T, p1 @ F
    product = np.abs((p1 * line1).sum(axis=1))
    distance = np.maximum(
        *(product / np.maximum(np.linalg.norm(line[:, :2], axis=1), 1e-12) for line in (line0, line1))
    )
    return [float((distance <= limit).mean()) for limit in LINES]


def sets_of(arguments: argparse.Namespace) -> Iterable[tuple[str, list[Any]]]:
    """Names and pairs, one set at a time."""
    data, parts = arguments.data, arguments.parts
    if "wxbs" in parts:
        yield "WxBS", wxbs(data)[: arguments.pairs or None]
    if "strecha" in parts:
        for gap in STRECHA_GAPS:
            yield f"Strecha, {gap} apart", strecha(data, gap)[: arguments.pairs or None]
    if "video" in parts:
        for name in VIDEO:
            yield name, video(name, arguments)
    if "curves" in parts:
        for axis in arguments.axes:
            for value in QUICK_VALUES[axis] if arguments.quick else VALUES[axis]:
                yield f"{axis} {value}", rendered(axis, value, arguments.pairs or arguments.rendered_pairs)


def video(name: str, arguments: argparse.Namespace) -> list[PosedPair]:
    from relative_pose import pairs_of

    wanted = argparse.Namespace(data=arguments.data, pairs=arguments.pairs)
    return [
        PosedPair((view0, view1), np.linalg.inv(pose0) @ pose1)
        for (view0, pose0), (view1, pose1) in pairs_of(name, wanted)
    ]


def run(arguments: argparse.Namespace) -> tuple[list[Row], list[tuple[str, str]]]:
    from tqdm import tqdm

    rows: list[Row] = []
    jobs: list[Job] = []
    owners: list[Row] = []
    with ExitStack() as stack:
        contenders, missing = open_contenders(arguments, stack)
        for name, pairs in sets_of(arguments):
            race = Race(contenders)
            own = [Row(name, contender.label) for contender in contenders]
            rows += own
            for pair in tqdm(pairs, desc=name, unit="pair", disable=None):
                truth = (pair.points0, pair.points1) if isinstance(pair, PointPair) else pair.T_0_1
                warp = pair.warps()[0] if isinstance(pair, PosedPair) and pair.depths is not None else None
                for row, (found, _) in zip(own, race.pair(*pair.views), strict=True):
                    cameras = None if isinstance(pair, PointPair) else cameras_of(pair.views)
                    row.matches.append(len(found.points0))
                    row.right.append(right_share(found, warp))
                    points = found.points0, found.points1
                    jobs.append(Job(points, found.std, cameras, truth, arguments.orders))
                    owners.append(row)
                race.keep(())
    for row, (errors, own_errors, shares) in zip(owners, in_processes(score, jobs, "poses"), strict=True):
        for collected, values in ((row.plain, errors), (row.own, own_errors), (row.shares, shares)):
            for number, value in enumerate(values):
                if len(collected) <= number:
                    collected.append([])  # type: ignore[arg-type]
                collected[number].append(value)  # type: ignore[arg-type]
    return rows, missing


def cameras_of(views: tuple[View, View]) -> tuple[CameraModel, CameraModel]:
    cameras = tuple(view.frame.camera for view in views)
    assert cameras[0] is not None and cameras[1] is not None
    return cameras[0], cameras[1]


def right_share(found: Found, warp: NDArray[np.float32] | None) -> float:
    """Part of the matches within 8 px of their true positions by depth; invisible ones count as wrong."""
    if warp is None or not len(found.points0):
        return float("nan")
    height, width = warp.shape[:2]
    place = found.points0.round().astype(int)
    inside = (place >= 0).all(axis=1) & (place < (width, height)).all(axis=1)
    there = warp[place[:, 1].clip(0, height - 1), place[:, 0].clip(0, width - 1)]
    with np.errstate(invalid="ignore"):
        return float((inside & (np.linalg.norm(there - found.points1, axis=1) < 8)).mean())


def table(rows: list[Row], missing: list[tuple[str, str]]) -> list[str]:
    """Markdown: a row per set and matcher."""
    lines = [
        "| set | pairs | matcher | plain MAGSAC++ AUC@5/10/20 (WxBS: % within 3/6/12 px) | own geometry AUC@5/10/20 "
        "| matches | right % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(f"| {row.set} | {len(row.matches)} | {row.matcher} | {' | '.join(row.cells())} |")
    return lines + [f"| all | 0 | {name} | not run: {why} | | | |" for name, why in missing]


def curves(rows: list[Row]) -> list[str]:
    """Markdown: AUC@10 of the front end's geometry along each axis, a line per matcher."""
    lines: list[str] = []
    for axis in AXES:
        mine = [row for row in rows if row.set.startswith(f"{axis} ")]
        if not mine:
            continue
        places = list(dict.fromkeys(row.set for row in mine))
        lines += ["", f"AUC@10 of the front end's geometry by {axis}:", ""]
        lines.append(f"| matcher | {' | '.join(place.removeprefix(axis).strip() for place in places)} |")
        lines.append("| --- " * (len(places) + 1) + "|")
        for matcher in dict.fromkeys(row.matcher for row in mine):
            by_place = {
                row.set: np.mean([pose_auc(errors)[1] for errors in row.own])
                for row in mine
                if row.matcher == matcher and row.own
            }
            lines.append(
                f"| {matcher} | {' | '.join(f'{by_place[p]:.0f}' if p in by_place else '-' for p in places)} |"
            )
    return lines


def plot(rows: list[Row], file: Path) -> None:
    """The curves as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes_there = [axis for axis in AXES if any(row.set.startswith(f"{axis} ") for row in rows)]
    if not axes_there:
        return
    figure = Figure(figsize=(4.4 * len(axes_there), 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, axis in zip(np.ravel(figure.subplots(1, len(axes_there), squeeze=False)), axes_there, strict=True):
        mine = [row for row in rows if row.set.startswith(f"{axis} ") and row.own]
        places = list(dict.fromkeys(row.set for row in mine))
        for matcher in dict.fromkeys(row.matcher for row in mine):
            by_place = {
                row.set: np.mean([pose_auc(errors)[1] for errors in row.own]) for row in mine if row.matcher == matcher
            }
            axes.plot(range(len(places)), [by_place.get(place, np.nan) for place in places], marker="o", label=matcher)
        labels = [place.removeprefix(axis).strip() for place in places]
        axes.set_xticks(range(len(places)), labels, rotation=30 if axis == "light" else 0)
        axes.set(title=axis, ylim=(0, 100), ylabel="AUC@10, %")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def protocol() -> list[str]:
    return [
        f"Poses: AUC@5/10/20 of max(rotation, translation direction), by plain MAGSAC++ at {THRESHOLD:g} px over all",
        "matches, and by the front end's geometry, which weighs matches by predicted standard deviations where a",
        "matcher has them and counts an unobserved translation as 90 degrees. WxBS: the share in percent of the",
        "correspondences made by hand within 3/6/12 px of the epipolar lines that plain MAGSAC++ finds. Right: matches",
        "within 8 px of the truth by depth. Means over match orders; in brackets the largest standard deviation over",
        f"them. OpenCV {cv2.__version__}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real sets")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what is measured")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES, help="which curves")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of each set, at most; 0 for all")
    parser.add_argument("--rendered-pairs", type=int, default=16, help="pairs of each place of a curve")
    parser.add_argument("--orders", type=int, default=3, help="match orders that every pose is estimated with")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAIRS} pairs a set, one order, few places")
    parser.add_argument("--out", type=Path, help="file for the tables")
    parser.add_argument("--raw", type=Path, help="file for every pair's numbers, as JSON")
    parser.add_argument("--merge", type=Path, nargs="+", help="run nothing: one table of these files of --raw")
    parser.add_argument("--plot", type=Path, help="file for a picture of the curves")
    add_options(parser)
    parser.set_defaults(matchers=[OURS_SINGLE, *EVERY])
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.orders = arguments.pairs or QUICK_PAIRS, QUICK_ORDERS
    if arguments.merge:
        kept = [json.loads(file.read_text()) for file in arguments.merge]
        rows, missing = [Row(**row) for part in kept for row in part], []
        order = {name: place for place, name in enumerate(dict.fromkeys(row.set for row in rows))}
        rows.sort(key=lambda row: order[row.set])
    else:
        rows, missing = run(arguments)
    if arguments.raw:
        arguments.raw.write_text(json.dumps([asdict(row) for row in rows]))
    lines = [*protocol(), "", *table(rows, missing), *curves(rows)]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
