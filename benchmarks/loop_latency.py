"""Effect of archive, loop search and back end on tracking: the node's latency with and without them, alternating.

The node runs as a user would run it while a publisher loops over a sequence. A first run fills the archive, so that
each keyframe of the others is searched for, matched with its place, and archived. Runs without an archive, with one,
and with the back end's node beside it, too, alternate, so that other load on the machine affects all equally. Run it on
an idle machine.

    .venv/bin/python benchmarks/loop_latency.py [--source ../shared/data/sevenscenes] [--out FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from measuring import machine
from node_latency import Sample, measure

if TYPE_CHECKING:
    from loftr_ros.msg import FrontEndStatus

HEAD = (
    "| rate | archive | processed | total p50, p99 (ms) | match p99 | geometry p99 | keyframe p99 | peak (MB) "
    "| searched, skipped, loops |"
)


def latency(status: FrontEndStatus, stage: str) -> tuple[float, float]:
    """Median and 99th percentile of a stage, in ms."""
    at = list(status.stages).index(stage)
    return 1e3 * float(status.latency_median[at]), 1e3 * float(status.latency_p99[at])


def row(hz: float, kind: str, samples: list[Sample]) -> str:
    """One run as a line of the table."""
    last = samples[-1].status
    p99 = " | ".join(f"{latency(last, stage)[1]:.1f}" for stage in ("match", "geometry", "keyframe"))
    return (
        f"| {hz:g} Hz | {kind} | {last.frames_processed} of {last.frames_received} | "
        f"{', '.join(f'{ms:.1f}' for ms in latency(last, 'total'))} | {p99} | "
        f"{samples[-1].peak_mb:.0f} | {last.places_searched}, {last.places_skipped}, {last.loop_closures} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="../shared/data/sevenscenes", help="what to play")
    parser.add_argument("--hz", type=float, nargs="*", default=[5.0, 30.0], help="rates to play at")
    parser.add_argument("--seconds", type=float, default=45.0, help="how long for each run")
    parser.add_argument("--turns", type=int, default=2, help="runs of each kind")
    parser.add_argument("--out", type=Path, help="file to write the table to as well")
    arguments = parser.parse_args()
    source = str(Path(arguments.source).resolve()) if Path(arguments.source).exists() else arguments.source
    lines = [machine(), "", f"{Path(arguments.source).name}, {arguments.seconds:g} s a run, runs in turns.", ""]
    lines += [HEAD, "| --- " * HEAD.count(" | ") + "| --- |"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        there = ["-p", f"archive.uri:={folder}/archive", "-p", "robot_name:=benchmark"]
        # So that there are places to find from the first image on.
        measure(source, "", 5.0, 60.0, there)
        ratios: dict[float, list[tuple[float, float]]] = {hz: [] for hz in arguments.hz}
        for hz in arguments.hz:
            for _ in range(arguments.turns):
                p99 = []
                for kind, extra, beside in (("none", [], None), ("with loops", there, None),
                                            ("and the back end", there, ["back-end"])):  # fmt: skip
                    samples = measure(source, "", hz, arguments.seconds, extra, beside)
                    lines.append(row(hz, kind, samples))
                    print(lines[-1], flush=True)
                    p99.append(latency(samples[-1].status, "total")[1])
                ratios[hz].append((p99[1] / p99[0], p99[2] / p99[0]))
    lines.append("")
    lines += [
        f"{hz:g} Hz: p99 of the total {what} over that without, turn by turn: "
        + ", ".join(f"{ratio[k]:.2f}" for ratio in found)
        + f" (median {np.median([ratio[k] for ratio in found]):.2f})"
        for hz, found in ratios.items()
        for k, what in enumerate(("with loops", "with loops and back end"))
    ]
    print("\n".join(lines[-1 - 2 * len(ratios) :]))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
