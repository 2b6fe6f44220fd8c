"""Reasons for missing matches: the stages at which `compact` loses points visible in both views, by exact depth.

Of the regions (16 px) of the first view with a centre visible in the second view, the share

- whose best region of the other view is right, before any threshold: the true point is in it or at most a cell beside
  it, which is as far as the next stage looks;
- for which that is mutual, that region's best being the first one again;
- whose confidence is above the threshold as well (and above 0.05);
- that keep a cell whose true partner is the cell that was chosen, or one beside it;
- that keep a match within 2 px of the truth; and the shares of wrong regions among those above the threshold.

    .venv/bin/python benchmarks/missing_matches.py [--quick] [--axes angle light] [--weights FILE ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from wide_sets import ANGLES, AXES, LIGHTS, OVERLAPS, SCALES, PointPair, PosedPair, rendered, wxbs

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.matcher.compact.backbone import REGION_PIXELS
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.config import AUTO
from loftr_ros.matcher.factory import MatcherSpec, open_matcher
from loftr_ros.weights import find_weights

VALUES: dict[str, tuple[Any, ...]] = {
    "angle": ANGLES[:-1],
    "scale": SCALES,
    "overlap": OVERLAPS,
    "light": LIGHTS,
}
QUICK_VALUES: dict[str, tuple[Any, ...]] = {"angle": (0, 30), "scale": (2.0,), "overlap": (0.3,), "light": LIGHTS[1:3]}
WXBS = "wxbs"
LOW = 0.05
CELL = 8.0  # px
NEAR = 2.0  # px
# All results count: not only the best 2000, and those at the border too.
COARSE = {"max_matches": 10**6, "border": 0}
HEADER = (
    "| pairs differ in | n | weights | visible % | best region right | and mutual | and above {threshold:g} ({low:g}) "
    "| and cell right | and within {near:g} px | wrong among those above {threshold:g} ({low:g}) |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass
class Counts:
    """Numbers of regions of some pairs: all, visible, and those visible ones that pass each stage; and accepted
    wrong ones.
    """

    regions: int = 0
    visible: int = 0
    right: int = 0
    mutual: int = 0
    above: int = 0
    above_low: int = 0
    cell: int = 0
    near: int = 0
    taken: int = 0
    wrong: int = 0
    taken_low: int = 0
    wrong_low: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def line(self, name: str, pairs: int, weights: str, *, cells: bool = True) -> str:
        """A row of the table; `cells` is false if only regions were checked."""

        def share(part: int, whole: int) -> str:
            return f"{100 * part / whole:.0f}" if whole else "-"

        seen = self.visible
        cell, near = (share(part, seen) if cells else "-" for part in (self.cell, self.near))
        return (
            f"| {name} | {pairs} | {weights} | {share(seen, self.regions)} | {share(self.right, seen)} "
            f"| {share(self.mutual, seen)} | {share(self.above, seen)} ({share(self.above_low, seen)}) "
            f"| {cell} | {near} "
            f"| {share(self.wrong, self.taken)} ({share(self.wrong_low, self.taken_low)}) |"
        )


def counts_of(matcher: Compact, pair: PosedPair) -> Counts:
    """Counts of one pair of views, at the matcher's own threshold."""
    warp = torch.from_numpy(pair.warps()[0])
    features0, features1 = (matcher.encode(torch.from_numpy(view.frame.image)) for view in pair.views)
    confidence = matcher.confidence(features0, features1)
    (rows, columns), threshold = _regions(features0.grid), matcher.config.coarse.threshold
    target = at_points(warp, centres(rows, columns))
    seen = target.isfinite().all(dim=1)
    value, best = confidence.max(dim=1)
    back = confidence.argmax(dim=0)[best]
    mutual = back == torch.arange(len(best))
    middle = centres(*_regions(features1.grid))[best]
    right = (target - middle).abs().amax(dim=1) <= REGION_PIXELS / 2 + CELL
    taken, taken_low = mutual & (value > threshold), mutual & (value > LOW)
    good = seen & right & mutual
    cell, near = _kept(matcher, features0, features1, warp, len(best), columns)
    through = good & (value > threshold)
    return Counts(
        regions=len(seen),
        visible=int(seen.sum()),
        right=int((seen & right).sum()),
        mutual=int(good.sum()),
        above=int(through.sum()),
        above_low=int((good & (value > LOW)).sum()),
        cell=int((through & cell).sum()),
        near=int((through & near).sum()),
        taken=int(taken.sum()),
        wrong=int((taken & ~(seen & right)).sum()),
        taken_low=int(taken_low.sum()),
        wrong_low=int((taken_low & ~(seen & right)).sum()),
    )


def counts_of_points(matcher: Compact, pair: PointPair) -> Counts:
    """Counts of one pair of photographs: the regions of points marked by hand, matched in both directions.

    The shares of right cells and pixels are unknown: the marks are accurate to a pixel or two, and sparse.
    """
    images, scales = zip(*(_shrunk(view.frame.image) for view in pair.views), strict=True)
    features = [matcher.encode(torch.from_numpy(image)) for image in images]
    points = [torch.from_numpy(p * s).float() for p, s in zip((pair.points0, pair.points1), scales, strict=True)]
    confidence, threshold = matcher.confidence(*features), matcher.config.coarse.threshold
    total = Counts()
    for matrix, own, other in ((confidence, 0, 1), (confidence.t(), 1, 0)):
        columns = _regions(features[own].grid)[1]
        asked = (points[own] // REGION_PIXELS).long()
        region = (asked[:, 1] * columns + asked[:, 0]).clamp(0, len(matrix) - 1)
        value, best = matrix[region].max(dim=1)
        middle = centres(*_regions(features[other].grid))[best]
        right = (points[other] - middle).abs().amax(dim=1) <= REGION_PIXELS / 2 + CELL
        mutual = matrix.argmax(dim=0)[best] == region
        total += Counts(
            regions=len(region),
            visible=len(region),
            right=int(right.sum()),
            mutual=int((right & mutual).sum()),
            above=int((right & mutual & (value > threshold)).sum()),
            above_low=int((right & mutual & (value > LOW)).sum()),
            taken=int((mutual & (value > threshold)).sum()),
            wrong=int((mutual & ~right & (value > threshold)).sum()),
            taken_low=int((mutual & (value > LOW)).sum()),
            wrong_low=int((mutual & ~right & (value > LOW)).sum()),
        )
    return total


def _shrunk(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """An image reduced as in the front end, and the factor."""
    scale = min(1.0, FrontEndConfig().image.max_side / max(image.shape))
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def _kept(
    matcher: Compact, features0: Any, features1: Any, warp: Tensor, regions: int, columns: int
) -> tuple[Tensor, Tensor]:
    """(L,) bool each: regions with a match in the right cell, and with one that is near the truth."""
    matches = matcher.match([features0], features1)[0]
    truth = at_points(warp, matches.points0)
    error = torch.linalg.vector_norm(matches.points1 - truth, dim=1)
    region = (matches.points0[:, 1] // REGION_PIXELS * columns + matches.points0[:, 0] // REGION_PIXELS).long()
    cell, near = torch.zeros(regions, dtype=torch.bool), torch.zeros(regions, dtype=torch.bool)
    # If the fine stage moved a match by less than a cell and a half, the cell was right or next to the right one.
    cell[region[error < 1.5 * CELL]] = True
    near[region[error < NEAR]] = True
    return cell, near


def _regions(grid: tuple[int, int]) -> tuple[int, int]:
    return grid[0] // 2, grid[1] // 2


def centres(rows: int, columns: int) -> Tensor:
    """(rows * columns, 2) pixels."""
    v, u = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([u, v], dim=-1).flatten(0, 1) * float(REGION_PIXELS) + (REGION_PIXELS - 1) / 2


def at_points(warp: Tensor, points: Tensor) -> Tensor:
    """(N, 2) of a (H, W, 2) warp at the nearest pixels; NaN where there is none."""
    height, width = warp.shape[:2]
    column, row = points.round().long().unbind(dim=1)
    return warp[row.clamp(0, height - 1), column.clamp(0, width - 1)]


def table(axes: Sequence[str], pairs: int, quick: bool, matchers: list[tuple[str, Compact]], data: Path) -> list[str]:
    """Markdown."""
    threshold = matchers[0][1].config.coarse.threshold
    lines = [line.format(threshold=threshold, low=LOW, near=NEAR) for line in HEADER]
    for axis in axes:
        if axis == WXBS:
            marked = wxbs(data)
            for name, matcher in matchers:
                total = sum((counts_of_points(matcher, pair) for pair in marked), Counts())
                lines.append(total.line("WxBS, marked by hand", len(marked), name, cells=False))
                print(lines[-1], flush=True)
            continue
        for value in (QUICK_VALUES if quick else VALUES)[axis]:
            chosen = rendered(axis, value, pairs)
            for name, matcher in matchers:
                total = sum((counts_of(matcher, pair) for pair in chosen), Counts())
                lines.append(total.line(f"{axis} {value}", len(chosen), name))
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="append", default=[], help="of `compact`; several times for several")
    parser.add_argument(
        "--axes", nargs="+", default=[*AXES, WXBS], choices=[*AXES, WXBS], help="in what the pairs differ"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real sets")
    parser.add_argument("--pairs", type=int, default=16, help="of each place of a curve")
    parser.add_argument("--quick", action="store_true", help="4 pairs, few places")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for all cores")
    parser.add_argument("--out", type=Path, help="file for the table")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    matchers = []
    for name in arguments.weights or [""]:
        matcher = open_matcher(
            MatcherSpec(AUTO, Path(name) if name else find_weights(AUTO), "cpu", "float32", "torch", coarse=COARSE)
        )
        if not isinstance(matcher, Compact):
            parser.error(f"{name}: only `compact` has regions, cells and pixels")
        matchers.append((Path(name).stem if name else "embedded", matcher))
    lines = table(arguments.axes, 4 if arguments.quick else arguments.pairs, arguments.quick, matchers, arguments.data)
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
