"""Exports of every network in every precision, for CPUs and for GPUs: what is in them, and whether they find the same.

`loftr_ros export` checks each before it writes it: by onnx's checker, by opening it, and by its results on made images.
Here each is run on real pairs beside the network in float32 by torch. `compact` has the weights in the package,
`coarse_lite` the published ones in the data's folder, the others weights that are made to match. Rows for GPUs have
fixed shapes, as TensorRT needs; there is no TensorRT here.

    .venv/bin/python benchmarks/exports.py [--data ../shared/data] [--networks compact loftr] [--out FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import onnx
import torch
from calibrated_efficient import made_efficient_state_dict
from calibrated_weights import made_state_dict
from measuring import Report, machine
from torch import Tensor

from loftr_ros.matcher.build import Network, build_network
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.config import INT8, PRESETS
from loftr_ros.matcher.interface import Matcher, Matches
from loftr_ros.matcher.runtime.export import export_network
from loftr_ros.matcher.runtime.exported import ENCODE_FILE, MATCH_FILE
from loftr_ros.matcher.runtime.int8 import ranges_for
from loftr_ros.matcher.runtime.onnx_backend import load_onnx
from loftr_ros.matcher.runtime.openvino_backend import load_openvino
from loftr_ros.weights import find_weights

CPU = torch.device("cpu")
NETWORKS = ("compact", "coarse_lite", "efficient", "efficient_opt", "loftr", "loftr_ot")
# Pairs of frames of the hand-held camera.
PAIRS = ((100, 105), (200, 206), (30, 33))
CLOSE = 0.1


def network(name: str, dtype: torch.dtype, data: Path, states: dict[str, dict[str, Tensor]]) -> Network:
    """A preset, ready for inference."""
    if name in ("compact", "coarse_lite"):
        file = find_weights(name) if name == "compact" else data / "coarse_loftr" / "LoFTR_teacher.pt"
        return load_network(name, file, CPU, dtype)
    kind = "efficient" if name.startswith("efficient") else name
    if kind not in states:
        states[kind] = made_efficient_state_dict() if kind == "efficient" else made_state_dict(kind)
    made = build_network(PRESETS[name])
    made.load_state_dict(states[kind])
    return made.prepare(CPU, dtype)


def matches(matcher: Matcher, pairs: list[tuple[Tensor, Tensor]]) -> list[Matches]:
    """Of each pair."""
    return [matcher.match([matcher.complete(matcher.encode(one))], matcher.encode(other))[0] for one, other in pairs]


def agreement(found: list[Matches], expected: list[Matches]) -> str:
    """Percentage of the expected cells that are found, and of these within CLOSE."""
    again, near, count = 0, 0, 0
    for one, other in zip(found, expected, strict=True):
        here, there = torch.isin(one.cell, other.cell), torch.isin(other.cell, one.cell)
        near += int(((one.points1[here] - other.points1[there]).norm(dim=1) < CLOSE).sum())
        again, count = again + int(here.sum()), count + len(other)
    return f"{100 * again / max(count, 1):.1f} | {100 * near / max(again, 1):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sequences")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=list(PRESETS))
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size, report, states = tuple(arguments.size), Report(), {}
    pairs = []
    for numbers in PAIRS:
        files = [arguments.data / "sevenscenes" / f"frame-{i:06d}.color.jpg" for i in numbers]
        images = [cv2.resize(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), size) for file in files]
        pairs.append(tuple(map(torch.from_numpy, images)))
    report(machine())
    report()
    report(
        "| network | precision | for | opset | nodes of encode + match | MB | run by | float32's matches again, % | "
        f"within {CLOSE:g} px, % |"
    )
    report("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    operators: Counter[str] = Counter()
    for name in arguments.networks:
        expected = matches(network(name, torch.float32, arguments.data, states), pairs)
        report(f"| {name} | float32 | | | | | torch | {sum(map(len, expected))} matches | |")
        for precision in ("float32", "float16", *([INT8] if name == "compact" else [])):
            for fixed in (False, True):
                half = precision == "float16" or (fixed and precision == INT8)
                model = network(name, torch.float16 if half else torch.float32, arguments.data, states)
                ranges = ranges_for(find_weights(name), model.fingerprint) if precision == INT8 else None
                with tempfile.TemporaryDirectory() as folder:
                    made = export_network(model, Path(folder), *size, weights="", fixed=fixed, int8=ranges)
                    files = [Path(folder) / each for each in (ENCODE_FILE, MATCH_FILE)]
                    nodes = [onnx.load(str(file)).graph.node for file in files]
                    if fixed:
                        operators.update(node.op_type for graph in nodes for node in graph)
                    megabytes = sum(file.stat().st_size for file in files) / 1e6
                    what = (
                        f"{name} | {made.precision_name} | {'GPUs' if fixed else 'CPUs'} | {made.opset} | "
                        f"{len(nodes[0])} + {len(nodes[1])} | {megabytes:.1f}"
                    )
                    found = matches(load_onnx(Path(folder), ["CPUExecutionProvider"], threads=1), pairs)
                    report(f"| {what} | onnxruntime | {agreement(found, expected)} |")
                    if not half and not fixed:
                        found = matches(load_openvino(Path(folder), torch.float32, 1), pairs)
                        report(f"| {what} | OpenVINO | {agreement(found, expected)} |")
    report()
    counted = ", ".join(f"{operator} {count}" for operator, count in sorted(operators.items()))
    report(f"Operators of all exports for GPUs together: {counted}.")
    if arguments.out:
        arguments.out.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
