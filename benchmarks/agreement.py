"""How much of a pose's error is the matcher's, and how much the ground truth's or the calibration's.

The poses of two halves of a matcher's own matches differ by random errors; those of two matchers also by each one's
systematic errors. A larger common difference from the ground truth is not theirs: 7-Scenes, for example, has the poses
of the depth camera and a nominal focal length. Angles between translation directions, medians.

    .venv/bin/python benchmarks/agreement.py [--data ../shared/data] [--sets sevenscenes:20 ...] [--matchers ours sift]
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from relative_pose import SETS, THRESHOLD, pairs_of

from loftr_ros.evaluation.metrics import translation_direction_error
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.two_view import estimate_relative_pose

PAIRS = 24
Direction = NDArray[np.float64] | None


def direction(found: Any, cameras: tuple[CameraModel, CameraModel], chosen: NDArray[np.int64]) -> Direction:
    """Direction of the translation by some of the matches; None if it is not observed."""
    rays0, rays1 = cameras[0].unproject(found.points0[chosen]), cameras[1].unproject(found.points1[chosen])
    std = None if found.std is None else found.std[chosen]
    pose = estimate_relative_pose(rays0, rays1, cameras[0].focal_length, GeometryConfig(threshold=THRESHOLD), std)
    return pose.translation if pose.has_direction else None


def apart(a: Direction, b: Direction) -> float:
    """Degrees; NaN where either is missing."""
    return float("nan") if a is None or b is None else translation_direction_error(a, b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sequences")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="NAME:GAP", help="folder and frames apart")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of each set, at most, evenly spread")
    parser.add_argument("--out", type=Path, help="file for the table")
    from contenders import Race, add_options, open_contenders
    from tqdm import tqdm

    add_options(parser)
    parser.set_defaults(matchers=["ours", "sift"])
    arguments = parser.parse_args()
    lines = [
        "| set | pairs | matcher | its halves apart, degrees | from the first matcher | from the ground truth |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with ExitStack() as stack:
        contenders, missing = open_contenders(arguments, stack)
        lines += [f"| all | | {label} | not run: {why} | | |" for label, why in missing]
        for name in arguments.sets:
            pairs = pairs_of(name, arguments)
            race = Race(contenders)
            rows: list[list[tuple[float, float, float]]] = [[] for _ in contenders]
            for n, ((view0, pose0), (view1, pose1)) in enumerate(tqdm(pairs, desc=name, unit="pair", disable=None)):
                cameras = view0.frame.camera, view1.frame.camera
                truth = (np.linalg.inv(pose0) @ pose1)[:3, 3]
                first: Direction = None
                for row, (found, _) in zip(rows, race.pair(view0, view1), strict=True):
                    order = np.random.default_rng(0).permutation(len(found.points0))
                    whole = direction(found, cameras, order)
                    first = whole if row is rows[0] else first
                    halves = (direction(found, cameras, half) for half in np.array_split(order, 2))
                    row.append((apart(*halves), apart(whole, first), apart(whole, truth)))
                race.keep([view.key for pair in pairs[n + 1 :] for view, _ in pair])
            for contender, row in zip(contenders, rows, strict=True):
                halves, others, true = np.nanmedian(np.array(row), axis=0)
                other = "-" if row is rows[0] else f"{others:.1f}"
                lines.append(f"| {name} | {len(row)} | {contender.label} | {halves:.1f} | {other} | {true:.1f} |")
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
