"""Whether a latency limit is kept: the front end without a limit, and then with a part of its free latency as limit.

A frame's time is from its decoded image to its poses. The first frames, in which the effort settles, are reported
separately.

    .venv/bin/python benchmarks/latency_budget.py [--data ../shared/data] [--folder sevenscenes] [--part 0.5]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.matcher.interface import Matcher
from loftr_ros.recordings import open_source
from loftr_ros.settings import with_values

# Frames in which the effort may still settle.
SETTLING = 60


def run(matcher: Matcher, frames: list[Frame], limit_ms: float, keyframes: int) -> tuple[list[str], float]:
    """Columns of the table for one run, and its 95th percentile in ms."""
    values = {"max_latency_ms": limit_ms, "keyframe.max_matched": keyframes}
    front_end = FrontEnd(matcher, with_values(FrontEndConfig(), values))
    front_end.warm_up(frames[0].size)
    results = [front_end.process(frame) for frame in frames]
    spent = 1e3 * np.array([sum(result.latencies.values()) for result in results])
    settled = spent[SETTLING:]
    inliers = [match.pose.inliers.sum() for result in results[SETTLING:] for match in result.matches[:1]]
    efforts = [result.effort for result in results[SETTLING:]]
    slowest = float(np.percentile(settled, 95))
    columns = [
        f"{limit_ms:.0f}" if limit_ms else "none",
        f"{np.percentile(spent[:SETTLING], 95):.0f}",
        f"{np.median(settled):.0f}",
        f"{slowest:.0f}",
        f"{np.median([effort.keyframes for effort in efforts]):.0f} of {keyframes}",
        f"{100 * np.median([effort.scale for effort in efforts]):.0f}",
        f"{np.median(inliers):.0f}",
    ]
    return columns, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sequences")
    parser.add_argument("--folder", default="sevenscenes", help="of the sequence, below --data")
    parser.add_argument("--part", type=float, default=0.5, help="of the free latency's 95th percentile, for a limit")
    parser.add_argument("--keyframes", type=int, nargs="+", default=[1, 3], help="matched with a frame, at most")
    parser.add_argument("--network", default="auto", help="preset")
    parser.add_argument("--weights", default="", help="file; without, those in the package")
    parser.add_argument("--out", type=Path, help="file for the table")
    arguments = parser.parse_args()
    with open_source(str(arguments.data / arguments.folder)) as source:
        frames = [frame.to_frame() for frame in source]
    config = MatcherConfig(network=arguments.network, weights=arguments.weights, backend="auto")
    matcher = open_matcher(matcher_spec(config, MatchingConfig()))
    lines = [
        f"{arguments.folder}, {len(frames)} frames, ms a frame; p95 after the first {SETTLING}",
        "",
        "| limit | p95 of the first | median | p95 | keyframes | resolution % | inliers |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for keyframes in arguments.keyframes:
        columns, free = run(matcher, frames, 0.0, keyframes)
        lines.append(f"| {' | '.join(columns)} |")
        columns, _ = run(matcher, frames, arguments.part * free, keyframes)
        lines.append(f"| {' | '.join(columns)} |")
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
