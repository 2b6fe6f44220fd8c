"""EfficientLoFTR beside the one in transformers: time and work, with the same weights, alternating within one run.

transformers encodes both images of every pair. Here a keyframe was encoded on arrival; a new frame is encoded once and
matched with one keyframe, or with four. The weights are synthetic, not trained (calibrated_efficient.py), and the
images are views of the rendered room. transformers runs in the environment that `make peers` makes, in its own process,
where its times are taken; without it only ours are measured.

    .venv/bin/python benchmarks/efficient_speed.py [--size 640x480] [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import torch
from calibrated_efficient import made_efficient_state_dict
from matcher_speed import KEYFRAMES, views
from measuring import Meter, Report, gflop, machine, seconds, size_of
from peers.client import PeerError, PeerProcess
from published_layouts import hugging_face_layout, trained_layout
from torch import Tensor

from loftr_ros.matcher.config import PRESETS, EfficientConfig
from loftr_ros.matcher.efficient.network import EfficientLoFTR
from loftr_ros.matcher.interface import Matches
from loftr_ros.matcher.precision import precision_name, resolve_precision

CPU = torch.device("cpu")
PEER = "efficient-transformers"
STAGES = ("backbone", "leading self layer", "transformer", "coarse matching", "pyramid and refinement")


def build(preset: str, weights: dict[str, Tensor], dtype: torch.dtype) -> EfficientLoFTR:
    config = PRESETS[preset]
    assert isinstance(config, EfficientConfig)
    network = EfficientLoFTR(config)
    network.load_state_dict(weights)
    return network.prepare(CPU, dtype)


def open_transformers(stack: ExitStack, weights: dict[str, Tensor], threads: int, report: Report) -> PeerProcess | None:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    torch.save(hugging_face_layout(trained_layout(weights)), folder / "weights.pt")
    peers = stack.enter_context(PeerProcess(threads=threads))
    try:
        peers.open(PEER, folder / "weights.pt")
    except PeerError as error:
        report(f"transformers did not run: {error}")
        return None
    return peers


def agreement(ours: Matches, cells: set[int]) -> str:
    mine = set(ours.cell.tolist())
    return f"{len(mine)} matches; {len(mine & cells)} of transformers' {len(cells)} cells of image 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size_of, default=(640, 480), help="of the images; multiples of 32")
    parser.add_argument("--threads", type=int, default=0, help="of torch on both sides; 0 leaves its choice")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs, of which the median is reported")
    parser.add_argument("--output", type=Path, help="write the table there as well")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    report = Report()
    report(machine())
    width, height = arguments.size
    report(
        f"{width}x{height}, medians of {arguments.repeats} interleaved runs; transformers runs both images of a pair"
    )
    weights = made_efficient_state_dict()
    *frames, current = views(arguments.size, KEYFRAMES + 1, [])
    half = resolve_precision("auto", CPU)
    networks = {
        f"{preset}, {precision_name(dtype)}": build(preset, weights, dtype)
        for preset in ("efficient", "efficient_opt")
        for dtype in dict.fromkeys((half, torch.float32))
    }
    with ExitStack() as stack:
        peers = open_transformers(stack, weights, arguments.threads, report)
        cells: set[int] = set()
        if peers is not None:
            for number, image in enumerate((*frames, current)):
                peers.encode(PEER, str(number), image.numpy())
            points0, _, _ = peers.match(PEER, str(KEYFRAMES - 1), str(KEYFRAMES))
            column, row = (points0 / 8).round().astype(int).T
            cells = set((row * (width // 8) + column).tolist())
        keyframes = {}
        for name, network in networks.items():
            keyframes[name] = [network.encode(frame) for frame in frames]
            for count in (1, KEYFRAMES):  # warm-up, with the timed numbers of keyframes
                matches = network.match(keyframes[name][-count:], network.encode(current))
            report(f"  {name}: {agreement(matches[-1], cells)}")
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for _ in range(arguments.repeats):
            if peers is not None:
                taken = [peers.match(PEER, str(number), str(KEYFRAMES))[2] for number in range(KEYFRAMES)]
                times["transformers", "1"].append(taken[-1])
                times["transformers", str(KEYFRAMES)].append(sum(taken))
            for name, network in networks.items():
                times[name, "encode"].append(seconds(lambda net=network: net.encode(current)))
                features = network.encode(current)
                for count in (1, KEYFRAMES):
                    old = keyframes[name][-count:]
                    work = lambda net=network, old=old, new=features: net.match(old, new)  # noqa: E731
                    times[name, f"match {count}"].append(seconds(work))
        tell(report, networks, times)
    for name, network in networks.items():
        tell_stages(report, name, network, keyframes[name], current, arguments.repeats)
    if arguments.output:
        arguments.output.write_text("\n".join(report.lines) + "\n")


def tell(report: Report, networks: dict[str, EfficientLoFTR], times: dict[tuple[str, str], list[float]]) -> None:
    """Report the cost of a frame."""
    medians = {what: statistics.median(taken) for what, taken in times.items()}
    report(f"\n{'':26}{'one keyframe':>16}{f'{KEYFRAMES} keyframes':>16}")
    theirs = [medians.get(("transformers", str(count))) for count in (1, KEYFRAMES)]
    if theirs[0] is not None and theirs[1] is not None:
        report(f"{'transformers, float32':26}{1e3 * theirs[0]:13.0f} ms{1e3 * theirs[1]:13.0f} ms")
    for name in networks:
        ours = [medians[name, "encode"] + medians[name, f"match {count}"] for count in (1, KEYFRAMES)]
        report(f"{name:26}{1e3 * ours[0]:13.0f} ms{1e3 * ours[1]:13.0f} ms")
        if theirs[0] is not None and theirs[1] is not None:
            report(f"{'  times as fast':26}{theirs[0] / ours[0]:14.1f} x{theirs[1] / ours[1]:14.1f} x")


def tell_stages(
    report: Report, name: str, network: EfficientLoFTR, keyframes: list, current: Tensor, repeats: int
) -> None:
    """Report work and time by stage, for one keyframe."""
    encode = gflop(lambda: network.encode(current))
    whole = gflop(lambda: network.match(keyframes[-1:], network.encode(current)))
    meter = Meter()
    watched = network.backbone, network.loftr_coarse, network.loftr_coarse, network, network
    for stage, owner, call in zip(
        STAGES, watched, ("forward", "encode", "forward", "match_coarse", "refine"), strict=True
    ):
        meter.watch(owner, call, stage)
    runs = []
    for _ in range(repeats):
        network.match(keyframes[-1:], network.encode(current))
        runs.append(meter.take())
    parts = ", ".join(
        f"{stage} {1e3 * statistics.median(run.get(stage, 0.0) for run in runs):.0f} ms" for stage in STAGES
    )
    report(f"\n{name}, one keyframe: {whole:.0f} GFLOP (encode {encode:.0f}); {parts}")


if __name__ == "__main__":
    main()
