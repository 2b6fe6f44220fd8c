"""Tables of the results of `loop_evidence`: recall, precision, false loops, errors, times."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from loop_evidence import BETWEEN, DRIFT, SCALE_DRIFT, Asked, Tried

from loftr_ros.places.config import LoopConfig
from loftr_ros.worlds.revisits import MAX_ANGLE, MAX_DISTANCE, MIN_COVISIBLE, OTHER_PLACE

RIGHT = 5.0  # degrees, largest rotation error of a right loop
ANGLES, DISTANCES, SHARED = (0, 10, 20, 30), (0.0, 0.5, 1.0, 2.0), (0.3, 0.45, 0.6, 1.0)

Score = Callable[[Asked], tuple[float, bool] | None]


def best_retrieved(one: Asked) -> tuple[float, bool] | None:
    """Similarity of the nearest candidate, and whether it shows the place."""
    return (one.tried[0].similarity, not one.tried[0].other_place) if one.tried else None


def best_verified(config: LoopConfig) -> Score:
    """Score of the best accepted candidate, and whether its rotation is right."""

    def score(one: Asked) -> tuple[float, bool] | None:
        believed = [each for each in one.tried if is_believed(each, config)]
        best = max(believed, key=lambda each: each.score, default=None)
        return None if best is None else (best.score, best.is_right(RIGHT))

    return score


def published(one: Asked) -> tuple[float, bool] | None:
    """Score of the published loop, and whether its rotation is right."""
    return None if one.closure is None else (one.closure.score, one.closure.is_right(RIGHT))


def is_believed(tried: Tried, config: LoopConfig) -> bool:
    """As `Verification.is_believed`."""
    return (
        tried.posed
        and tried.inliers >= config.min_inliers
        and tried.inliers >= config.min_inlier_ratio * tried.matches
        and tried.coverage >= config.min_coverage
        and tried.score >= (config.min_planar_score if tried.status == "PLANAR" else config.min_score)
    )


class Curve:
    """Precision and recall over the threshold of a score.

    Attributes:
        thresholds, precision, recall: one entry per answer, the most certain first.
    """

    def __init__(self, asked: Sequence[Asked], score: Score) -> None:
        answers = [(answer, one.kind == "revisit") for one in asked if (answer := score(one)) is not None]
        answers.sort(key=lambda answer: -answer[0][0])
        right = np.array([answer[1] for answer, _ in answers], bool)
        asked_for = np.array([is_revisit for _, is_revisit in answers], bool)
        wanted = sum(one.kind == "revisit" for one in asked)
        self.thresholds = np.array([answer[0] for answer, _ in answers], float)
        self.precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        self.recall = np.cumsum(right & asked_for) / max(wanted, 1)

    def recall_at(self, precision: float) -> tuple[float, float]:
        """The highest recall at a precision of at least this, and its threshold; 0 and NaN for none."""
        good = np.flatnonzero(self.precision >= precision)
        # A threshold cannot separate equal scores: the last of them counts for all.
        last = np.append(self.thresholds[1:] != self.thresholds[:-1], True)
        good = good[last[good]] if len(good) else good
        return (float(self.recall[good[-1]]), float(self.thresholds[good[-1]])) if len(good) else (0.0, float("nan"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def is_false(one: Asked) -> bool:
    """Whether a published loop is false: of another place, or with a wrong rotation."""
    return one.closure is not None and not one.closure.is_right(RIGHT)


def is_found(one: Asked) -> bool:
    """Whether a right loop was published."""
    return one.closure is not None and one.closure.is_right(RIGHT)


def of_worlds(asked: Sequence[Asked]) -> list[str]:
    """Results by world."""
    rows = []
    for seed in [*sorted({one.world for one in asked}), None]:
        some = [one for one in asked if seed is None or one.world == seed]
        revisits = [one for one in some if one.kind == "revisit"]
        found = sum(map(is_found, revisits))
        rows.append(
            [
                "all" if seed is None else str(seed),
                *(str(sum(one.kind == kind for one in some)) for kind in ("revisit", "partial", "new")),
                f"{found} ({100 * found / max(len(revisits), 1):.1f} %)",
                str(sum(is_found(one) for one in some if one.kind == "partial")),
                str(sum(map(is_false, some))),
            ]
        )
    head = [
        "world",
        "revisits",
        "partly seen before",
        "new places",
        "revisits found",
        "partly seen found",
        "false loops",
    ]
    return table(head, rows)


def of_stages(asked: Sequence[Asked], config: LoopConfig) -> tuple[list[str], dict[str, Curve]]:
    """Precision and recall of each stage."""
    curves = {
        "retrieval": Curve(asked, best_retrieved),
        "+ verification": Curve(asked, best_verified(config)),
        "+ consistency": Curve(asked, published),
    }
    rows = []
    for name, curve in curves.items():
        cells = [name]
        for precision in (1.0, 0.99, 0.95):
            recall, threshold = curve.recall_at(precision)
            cells.append(f"{100 * recall:.1f} % (from {threshold:.3f})" if recall else "-")
        cells.append(
            f"{100 * curve.recall[-1]:.1f} % at {100 * curve.precision[-1]:.2f} %" if len(curve.recall) else "-"
        )
        rows.append(cells)
    return table(["stage", "recall at 100 %", "at 99 %", "at 95 %", "all answers: recall at precision"], rows), curves


def of_other_places(asked: Sequence[Asked]) -> list[str]:
    """False loops by the reason why the places look alike."""
    names = {
        "twins": "twins: rooms of one layout",
        "corridor": "both from the corridor, with its equal doors",
        "stock": "rooms with the same furniture, pictures, a wall",
        "": "other places in the same building",
        "world": "other buildings",
    }
    rows = []
    for reason, name in names.items():
        if reason == "world":
            seeds = sorted({one.world for one in asked})
            where = [one for one in asked if one.world != seeds[0]]
        else:
            where = [one for one in asked if one.alike.get(reason)]
        tried = [each for one in asked for each in one.tried if each.other_place and each.alike == reason]
        closed = sum(
            one.closure is not None and one.closure.other_place and one.closure.alike == reason for one in asked
        )
        rows.append([name, str(len(where)), str(len(tried)), str(closed)])
    wrong = sum(is_false(one) and one.closure is not None and not one.closure.other_place for one in asked)
    rows.append(["the same place, rotation wrong by more than 5 deg", "-", "-", str(wrong)])
    return table(["other places", "keyframes that had some to be confused with", "pairs verified", "false loops"], rows)


def of_bins(asked: Sequence[Asked]) -> list[str]:
    """Recall of revisits, by how the two views are related."""
    revisits = [one for one in asked if one.kind == "revisit"]

    def cell(some: list[Asked]) -> str:
        return f"{100 * sum(map(is_found, some)) / len(some):.0f} % of {len(some)}" if some else "-"

    rows = []
    for low, high in pairwise(ANGLES):
        some = [one for one in revisits if low <= one.angle <= high]
        cells = [cell([one for one in some if near < one.distance <= far]) for near, far in pairwise(DISTANCES)]
        rows.append([f"{low} to {high} deg", *cells])
    head = ["turned by", *(f"{near} to {far} m" for near, far in pairwise(DISTANCES))]
    shared = [
        [f"{100 * low:.0f} to {100 * high:.0f} %", cell([one for one in revisits if low <= one.covisible <= high])]
        for low, high in pairwise(SHARED)
    ]
    return [*table(head, rows), "", *table(["shared by both views", "found"], shared)]


def of_missed(asked: Sequence[Asked], config: LoopConfig) -> list[str]:
    """Stages at which revisits were lost."""
    reasons: Counter[str] = Counter()
    for one in asked:
        if one.kind == "revisit" and not is_found(one):
            there = [each for each in one.tried if not each.other_place]
            strong = [each for each in there if each.covisible >= MIN_COVISIBLE]
            if not there:
                reasons["no candidate of the place"] += 1
            elif any(is_believed(each, config) and each.is_right(RIGHT) for each in there):
                reasons["believed, but not confirmed"] += 1
            elif not strong:
                reasons["only candidates that share less than 30 % with it"] += 1
            elif max(each.inliers for each in strong) < config.min_inliers:
                reasons["a good candidate: too few inliers"] += 1
            elif max(each.coverage for each in strong) < config.min_coverage:
                reasons["a good candidate: inliers cover too little"] += 1
            else:
                reasons["a good candidate: geometry not believed, or wrong"] += 1
    return table(["why a revisit was not found", "keyframes"], [[name, str(n)] for name, n in reasons.most_common()])


def of_poses(asked: Sequence[Asked]) -> list[str]:
    """Errors of the published loops."""
    loops = [one.closure for one in asked if one.closure is not None and not one.closure.other_place]
    rows = []
    for name, values in (
        ("rotation, deg", [loop.rotation for loop in loops]),
        ("translation's direction, deg", [loop.direction for loop in loops if loop.distance > 0.2]),
    ):
        known = np.array([value for value in values if np.isfinite(value)])
        if len(known):
            rows.append([name, str(len(known)), *(f"{np.percentile(known, part):.2f}" for part in (50, 90, 99, 100))])
    return table(["error of", "loops", "median", "90 %", "99 %", "most"], rows)


def of_times(asked: Sequence[Asked]) -> list[str]:
    """Times of the parts."""
    rows = []
    for part, name in (
        ("search", "search"),
        ("verify", "verification of a candidate, and the images' encoding where it is not kept"),
    ):
        values = 1e3 * np.array([value for one in asked for value in one.seconds.get(part, [])])
        if len(values):
            rows.append([name, str(len(values)), *(f"{np.percentile(values, p):.1f}" for p in (50, 95))])
    return table(["ms", "times", "median", "95 %"], rows)


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Precision over recall, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(100 * curve.recall, 100 * curve.precision, label=name)
        if len(curve.recall):
            axes.plot(100 * curve.recall[-1], 100 * curve.precision[-1], "k.", markersize=4)
    axes.set(xlabel="recall %", ylabel="precision %", xlim=(0, 101), ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path)


def protocol(asked: Sequence[Asked], config: LoopConfig) -> list[str]:
    """Description of the measurement."""
    worlds = sorted({one.world for one in asked})
    changed = [f"{name}={value}" for name, value in vars(config).items() if value != getattr(LoopConfig(), name)]
    seeds = ", ".join(map(str, worlds))
    text = f"""
        {len(asked)} keyframes of {len(worlds)} rendered worlds (seeds {seeds}), one a second, each searched for among
        those at least {config.min_age:g} s older and all of the worlds before it. Revisit: an older view within
        {MAX_ANGLE:g} deg and {MAX_DISTANCE:g} m, of which either shows {100 * MIN_COVISIBLE:g} % of the other, by depth
        and occlusion. New place: no older view shares {100 * OTHER_PLACE:g} %. Partly seen: what is between; a right
        loop there counts neither for nor against recall. Right: the same place, and a rotation within {RIGHT:g} deg;
        all else is false. A single camera, odometry that errs by {DRIFT:g} deg and
        {100 * SCALE_DRIFT:g} % of scale a keyframe, {BETWEEN - 1} images between
        keyframes. Second tours are in other light and exposure. Recall counts keyframes. Settings:
        {", ".join(changed) if changed else "defaults"} ({config.candidates} candidates)."""
    text = " ".join(text.split())
    return textwrap.wrap(text, 118)


def report(asked: Sequence[Asked], config: LoopConfig) -> tuple[list[str], dict[str, Curve]]:
    """All tables over the rendered worlds, and the curves of the plot."""
    stages, curves = of_stages(asked, config)
    lines = [*protocol(asked, config)]
    for part in (
        of_worlds(asked),
        stages,
        of_other_places(asked),
        of_bins(asked),
        of_missed(asked, config),
        of_poses(asked),
        of_times(asked),
    ):
        lines += ["", *part]
    return lines, curves
