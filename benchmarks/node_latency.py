"""The real node over DDS: latency from receipt to publication, drops and memory, at 30 Hz and above its limit.

A publisher process plays a sequence back and forth, since a camera does not jump (`--jump`). The node runs as a user
would run it. This process watches ~/status and the node's resident memory. Run it on an idle machine; `--busy 2 --nice
10` adds a load. `--back-end` runs everything without and with the back end's node beside it, in turns; what archive and
loops cost is in loop_latency.py.

    .venv/bin/python benchmarks/node_latency.py [--source ../shared/data/sevenscenes] [--weights FILE] [--busy 2]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from listening import BIN, listening

from loftr_ros.tools.demo.processes import Child, wait_until


@dataclass(frozen=True)
class Sample:
    """One status, with the node's memory at that time, and its peak."""

    seconds: float
    status: object
    resident_mb: float
    peak_mb: float


def measure(
    source: str,
    weights: str,
    hz: float,
    seconds: float,
    mode: str,
    extra: list[str],
    beside: list[str] | None = None,
    jump: bool = False,
) -> list[Sample]:
    """Play `source` back and forth at `hz` for `seconds` in a mode and sample the node once a second.

    `beside` is a command of loftr_ros that runs, too, such as `["back-end"]`. With `jump` it begins anew at its end.
    """
    from loftr_ros.msg import FrontEndStatus

    samples: list[Sample] = []
    node_command = [str(BIN / "loftr_ros"), "node", *(["--weights", weights] if weights else []), "--ros-args"]
    node_command += ["-p", "output.status_window:=100000", "-p", f"mode:={mode}", *extra]
    play_command = [str(BIN / "loftr_ros"), "play", source, "--loop" if jump else "--back-and-forth"]
    play_command += ["--hz", str(hz), "--mode", mode, "--duration", str(seconds), "-q"]
    with listening("latency_watcher") as (watcher, environment), tempfile.TemporaryDirectory() as folder:
        statuses: list[FrontEndStatus] = []
        watcher.create_subscription(FrontEndStatus, "/loftr_front_end/status", statuses.append, 10)
        children = [Child("node", node_command, Path(folder) / "node.log", environment)]
        if beside is not None:
            children.append(Child("other", [str(BIN / "loftr_ros"), *beside], Path(folder) / "other.log", environment))
        node = children[0]
        try:
            wait_until(lambda: bool(statuses), 60, "the node's status", [node])
            player = Child("player", play_command, Path(folder) / "player.log", environment)
            start = time.monotonic()
            try:
                while player.exit_code is None:
                    for each in children:
                        each.check()
                    count = len(statuses)
                    time.sleep(0.2)
                    if len(statuses) > count:
                        samples.append(Sample(time.monotonic() - start, statuses[-1], *memory_mb(node.pid)))
            finally:
                player.close()
            if player.exit_code:
                player.check()
            count = len(statuses)
            end = time.monotonic() + 3
            while time.monotonic() < end or len(statuses) == count:
                time.sleep(0.2)
            samples.append(Sample(time.monotonic() - start, statuses[-1], *memory_mb(node.pid)))
        finally:
            for each in reversed(children):
                each.close()
    return samples


@contextmanager
def busy(count: int, nice: int) -> Iterator[None]:
    """Start `count` processes that compute endlessly, at a niceness."""
    loop = f"import os; os.nice({nice})\nwhile True: pass"
    children = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process and its children, and the sum of their peaks, in MB."""
    said = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, peak = (float(said[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        more = memory_mb(int(child))
        now, peak = now + more[0], peak + more[1]
    return now, peak


def report(title: str, samples: list[Sample], seconds: float) -> None:
    """Print the last status over the given seconds, and the course of the memory."""
    last = samples[-1].status
    accounted = last.frames_processed + last.frames_dropped + last.frames_failed + last.frames_pending
    rate = last.frames_processed / seconds
    print(f"\n{title}")
    print(
        f"  received {last.frames_received} = processed {last.frames_processed} + dropped {last.frames_dropped} + "
        f"failed {last.frames_failed} + pending {last.frames_pending}"
        f"{'' if accounted == last.frames_received else '  NOT ACCOUNTED FOR'}; {rate:.1f} processed/s"
    )
    print(
        f"  {last.network} on {last.device} in {last.precision}; errors: "
        f"{dict(zip(last.error_kinds, last.error_counts, strict=True))}"
    )
    full = dict(zip(last.full_match_reasons, last.full_match_counts, strict=True))
    print(
        f"  located {last.frames_located}, by optical flow {last.frames_by_flow}, matched quickly {last.frames_quick}, "
        f"in full because: {full}"
    )
    for stage, median, p99 in zip(last.stages, last.latency_median, last.latency_p99, strict=True):
        print(f"  {stage:>9}: p50 {1e3 * median:6.1f} ms   p99 {1e3 * p99:6.1f} ms")
    active = [s for s in samples if s.status.frames_processed > 0]
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        sample = active[min(int(share * len(active)), len(active) - 1)]
        total = list(sample.status.stages).index("total")
        print(
            f"  after {sample.seconds:5.1f} s: {sample.resident_mb:6.1f} MB resident, "
            f"p50 so far {1e3 * sample.status.latency_median[total]:.1f} ms"
        )
    print(f"  peak: {samples[-1].peak_mb:.1f} MB resident")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="../shared/data/sevenscenes", help="what to play")
    parser.add_argument("--weights", default="", help="without, those in the package")
    parser.add_argument("--hz", type=float, nargs="*", default=[30.0, 100.0], help="rates to play at")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long for each rate")
    parser.add_argument("--parameter", action="append", default=[], help="of the node, name:=value; may be repeated")
    parser.add_argument("--mode", default="mono", choices=["mono", "stereo", "rgbd"])
    parser.add_argument("--back-end", type=int, default=0, metavar="TURNS", help="runs without and with it")
    parser.add_argument("--jump", action="store_true", help="start anew after the last image, not back and forth")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute beside it")
    parser.add_argument("--nice", type=int, default=10, help="niceness of these")
    arguments = parser.parse_args()
    extra = [word for parameter in arguments.parameter for word in ("-p", parameter)]
    source = str(Path(arguments.source).resolve()) if Path(arguments.source).exists() else arguments.source
    print(f"{os.cpu_count()} cores, load {np.round(os.getloadavg()[0], 1)} at the start")
    for hz in arguments.hz:
        p99: dict[str, list[str]] = {}
        for turn in range(max(1, 2 * arguments.back_end)):
            beside = ["back-end"] if turn % 2 else None
            with busy(arguments.busy, arguments.nice):
                samples = measure(
                    source, arguments.weights, hz, arguments.seconds, arguments.mode, extra, beside, arguments.jump
                )
            what = f", {arguments.mode}"
            what += f", beside {arguments.busy} busy processes at nice {arguments.nice}" if arguments.busy else ""
            what += ", beside the back end" if beside else ""
            what += ", jumping from the last image to the first" if arguments.jump else ""
            report(f"{arguments.source} at {hz:g} Hz for {arguments.seconds:g} s{what}", samples, arguments.seconds)
            last = samples[-1].status
            total = 1e3 * last.latency_p99[list(last.stages).index("total")]
            p99.setdefault("with" if beside else "without", []).append(f"{total:.1f}")
        if arguments.back_end:
            both = "; ".join(f"{kind} the back end {', '.join(found)}" for kind, found in p99.items())
            print(f"\np99 of the total at {hz:g} Hz, in ms, {both}")


if __name__ == "__main__":
    main()
