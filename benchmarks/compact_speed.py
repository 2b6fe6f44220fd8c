"""Cost of a frame with `compact`, by backend and by stage, beside XFeat, XFeat*, SIFT and ORB in the same run.

A frame is resized and encoded, and matched with one keyframe with stored features, in pixels of the incoming image: the
node's work with default settings before geometry. The others do the same: features of the new image, and matches with
those of an earlier one. All take turns, two frames each; the first frame only warms up. The images are a hand-held walk
through the rendered room.

    .venv/bin/python benchmarks/compact_speed.py [--weights FILE] [--size 640x480] [--output FILE]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import cv2
import torch
from contenders import Contender, Ours, View, open_other
from measuring import Meter, Report, gflop, machine, peak_gflops, seconds, size_of
from peers.client import PYTHON, PeerError, PeerProcess

from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.precision import DeviceError, cpu_has_bf16
from loftr_ros.matcher.runtime.export import export_network
from loftr_ros.weights import find_weights
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

KEYFRAMES = 4
STAGES = ("backbone", "self layer", "attention", "cells", "fine stage")
REST = "regions and the rest"
REFERENCE = "xfeat-star"
OTHERS = ("xfeat", REFERENCE, "sift", "orb")
BACKENDS = ("openvino bfloat16", "torch bfloat16", "openvino float32", "torch float32", "onnx float32")


def views(size: tuple[int, int]) -> list[View]:
    """Keyframes a tenth of a second apart, and the current image a tenth of a second after the last."""
    moments = [14 + 3 * i for i in range(KEYFRAMES + 1)]
    scene, camera, poses = Scene(3), default_camera(*size), trajectory(moments[-1] + 1, seed=3)
    images = [scene.render(camera, poses[moment]).image for moment in moments]
    return [View(str(i), Frame(image, i, ""), image) for i, image in enumerate(images)]


def open_ours(backend: str, weights: Path, size: tuple[int, int], threads: int, folder: Path) -> Ours:
    """`compact` behind the front end, run by a backend.

    Raises:
        DeviceError: the backend or its precision is not available here.
    """
    runtime, precision = backend.split()
    if precision == "bfloat16" and not cpu_has_bf16():
        raise DeviceError("the processor does not compute bfloat16")
    if runtime == "onnx":
        full = load_network("compact", weights, torch.device("cpu"), torch.float32)
        weights = folder / "exported"
        export_network(full, weights, *size, weights="benchmark")
    config = MatcherConfig(
        network="compact",
        weights=str(weights),
        device="cpu",
        precision="auto" if runtime == "onnx" else precision,
        backend=runtime,
        threads=threads,
    )
    return Ours(f"compact, {runtime}", matcher_spec(config, MatchingConfig()))


def watch_stages(network: Compact, measure: Callable[[Callable[[], object]], float] = seconds) -> Meter:
    """Measure a network's stages from now on."""
    meter = Meter(measure)
    meter.watch(network.backbone, "forward", STAGES[0])
    meter.watch(network.transformer, "encode", STAGES[1])
    meter.watch(network.transformer, "forward", STAGES[2])
    meter.watch(network.cell_matcher, "vectors", STAGES[3])
    meter.watch(network.cell_matcher, "forward", STAGES[3])
    meter.watch(network.fine, "forward", STAGES[4])
    return meter


def count_work(weights: Path, frames: list[View]) -> dict[str, float]:
    """GFLOP of each stage, for one frame and one keyframe."""
    network = load_network("compact", weights, torch.device("cpu"), torch.float32)
    image0, image1 = (torch.from_numpy(view.frame.image) for view in (frames[0], frames[-1]))
    keyframe = network.encode(image0)
    meter = watch_stages(network, gflop)  # type: ignore[arg-type]
    network.match([keyframe], network.encode(image1))
    return meter.take()


class Runner:
    """The measurements of one matcher: its times of a frame, and of its stages if visible."""

    def __init__(self, contender: Contender, frames: list[View]) -> None:
        self.contender, self.current = contender, frames[-1]
        self.kept = [contender.encode(view)[0] for view in frames[:-1]]
        matcher = contender.front_end.matcher if isinstance(contender, Ours) else None
        self.meter = watch_stages(matcher) if isinstance(matcher, Compact) else None
        self.times: dict[str, list[float]] = defaultdict(list)
        self.stages: list[dict[str, float]] = []
        self.matches = 0

    def turn(self, counted: bool) -> None:
        """Two frames; the second counts."""
        for last in (False, True):
            if self.meter is not None:
                self.meter.take()
            current, encoding = self.contender.encode(self.current)
            found = self.contender.match(self.kept[-1], current)
            self.matches = len(found.points0)
            if counted and last:
                self.times["encode"].append(encoding)
                self.times["match"].append(found.seconds)
                self.times["frame"].append(encoding + found.seconds)
                if self.meter is not None:
                    stages = self.meter.take()
                    self.stages.append({**stages, REST: self.times["frame"][-1] - sum(stages.values())})
        if isinstance(self.contender, Ours):
            matcher, features = self.contender.front_end.matcher, current.features
            kept = [encoded.features for encoded in self.kept]
            one = seconds(lambda: matcher.match(kept[-1:], features))
            several = seconds(lambda: matcher.match(kept, features))
            further = (several - one) / (KEYFRAMES - 1)
        else:
            further = found.seconds
        if counted:
            self.times["further"].append(further)

    def median(self, what: str) -> float:
        """Milliseconds."""
        return 1e3 * statistics.median(self.times[what])


def report_frames(report: Report, runners: dict[str, Runner]) -> None:
    """A line per matcher."""
    reference = runners[REFERENCE].median("frame") if REFERENCE in runners else float("nan")
    width = max(len(runner.contender.label) for runner in runners.values())
    report(
        f"\n{'':{width}}{'encode':>10}{'match':>10}{'frame':>10}{'least':>10}{'further keyframe':>19}"
        f"{'XFeat* takes':>15}{'matches':>9}"
    )
    for runner in runners.values():
        encode, match, frame, further = (runner.median(what) for what in ("encode", "match", "frame", "further"))
        least = 1e3 * min(runner.times["frame"])
        report(
            f"{runner.contender.label:{width}}{encode:7.1f} ms{match:7.1f} ms{frame:7.1f} ms{least:7.1f} ms"
            f"{further:16.1f} ms{reference / frame:13.1f} x{runner.matches:9}"
        )


def report_stages(
    report: Report, runners: dict[str, Runner], work: dict[str, float], peaks: dict[torch.dtype, float]
) -> None:
    """Time, work, and share of the machine's peak, of each stage."""
    seen = {name: runner for name, runner in runners.items() if runner.stages}
    report(f"\n{'stage':22}{'GFLOP':>7}" + "".join(f"{name:>26}" for name in seen))
    rows = [*STAGES, REST]
    medians = {
        name: {stage: statistics.median(run.get(stage, 0.0) for run in runner.stages) for stage in rows}
        for name, runner in seen.items()
    }
    for stage in rows:
        line = f"{stage:22}" + (f"{work[stage]:7.2f}" if stage in work else " " * 7)
        for name in seen:
            spent, peak = medians[name][stage], peaks[_dtype(name)]
            share = f" ({100 * work[stage] / spent / peak:3.0f} % of peak)" if stage in work else ""
            line += f"{f'{1e3 * spent:.1f} ms{share:16}':>26}"
        report(line)
    total = sum(work.values())
    line = f"{'frame':22}{total:7.2f}"
    for name, runner in seen.items():
        spent = runner.median("frame")
        share = f" ({1e5 * total / spent / peaks[_dtype(name)]:3.0f} % of peak)"
        line += f"{f'{spent:.1f} ms{share:16}':>26}"
    report(line)


def _dtype(backend: str) -> torch.dtype:
    return torch.bfloat16 if backend.endswith("bfloat16") else torch.float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="", help="weights of compact; without, those in the package")
    parser.add_argument("--size", type=size_of, default=(640, 480), help="of the images")
    parser.add_argument("--backends", nargs="*", default=list(BACKENDS), choices=BACKENDS, help="of ours")
    parser.add_argument("--others", nargs="*", default=list(OTHERS), choices=OTHERS, help="which run beside")
    parser.add_argument("--repeats", type=int, default=15, help="turns, of which the median is reported")
    parser.add_argument("--threads", type=int, default=0, help="of every matcher; 0 for all cores")
    parser.add_argument("--peers", type=Path, default=PYTHON, help="python of the environment that `make peers` makes")
    parser.add_argument("--output", type=Path, help="write the tables there as well")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads or -1)
    weights, frames, report = find_weights("compact", arguments.weights), views(arguments.size), Report()
    report(machine())
    report(f"{arguments.size[0]}x{arguments.size[1]}, medians of {arguments.repeats} turns; compact: {weights.name}")
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        process = stack.enter_context(PeerProcess(arguments.peers, arguments.threads))
        runners: dict[str, Runner] = {}
        threads = arguments.threads
        opened: dict[str, Callable[[], Contender]] = {
            name: lambda name=name: open_ours(name, weights, arguments.size, threads, Path(folder))  # type: ignore[misc]
            for name in arguments.backends
        }
        opened |= {name: lambda name=name: open_other(name, process) for name in arguments.others}  # type: ignore[misc]
        for name, open_one in opened.items():
            try:
                runners[name] = Runner(open_one(), frames)
            except (DeviceError, PeerError) as error:
                report(f"{name} did not run: {error}")
        before = {dtype: max(peak_gflops(dtype).values()) for dtype in (torch.bfloat16, torch.float32)}
        for number in range(arguments.repeats + 1):
            for runner in runners.values():
                runner.turn(counted=number > 0)
        after = {dtype: max(peak_gflops(dtype).values()) for dtype in before}
        peaks = {dtype: max(before[dtype], after[dtype]) for dtype in before}
    report_frames(report, runners)
    report(
        "\nmeasured peak, before and after: "
        + ", ".join(f"{str(d).removeprefix('torch.')} {before[d]:.0f} and {after[d]:.0f} GFLOP/s" for d in before)
    )
    if any(runner.stages for runner in runners.values()):
        report_stages(report, runners, count_work(weights, frames), peaks)
    if arguments.output:
        arguments.output.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
