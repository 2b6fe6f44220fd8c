"""int8 for the encoding of `compact`: CPU time and accuracy beside float32 and bfloat16.

`precision: int8` of the node, that is with the ranges beside the weights, and with `--nncf` what NNCF's quantisation
after training gives, calibrated on photographs of the training assets: the whole exported graph, the backbone, and the
backbone without its first convolution or the branch of the fine features. OpenVINO runs all variants in one process,
in turns. What is not int8 is in bfloat16 where the processor has it, otherwise in float32.

`--isa AVX512_CORE_VNNI` leaves out what newer processors have (OpenVINO's oneDNN reads it as ONEDNN_MAX_CPU_ISA): it
shows a processor with VNNI and without bfloat16 and AMX. NNCF is no dependency of the package:
.venv/bin/pip install -r benchmarks/requirements.txt

    .venv/bin/python benchmarks/int8.py --assets FOLDER [--data ../shared/data] [--isa AVX512_CORE_VNNI] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from match_scores import epipolar_errors, mean_and_spread
from measuring import Report, machine
from numpy.typing import NDArray
from pair_scores import PairScore, score_pose
from relative_pose import limit_of, pairs_of
from torch import Tensor

from loftr_ros.evaluation.metrics import pose_auc
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.results import Correspondences
from loftr_ros.frontend.wide_pairs import WideConfig
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.matcher.build import Network
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.precision import cpu_has_bf16, precision_name
from loftr_ros.matcher.runtime.export import export_network
from loftr_ros.matcher.runtime.exported import ENCODE_FILE, MATCH_FILE
from loftr_ros.matcher.runtime.exported_matcher import ExportedMatcher
from loftr_ros.matcher.runtime.int8 import Int8Ranges, find_ranges
from loftr_ros.matcher.runtime.onnx_backend import load_onnx
from loftr_ros.matcher.runtime.openvino_compact import compiled
from loftr_ros.matcher.runtime.openvino_runtime import Runtime
from loftr_ros.training.assets import AssetBank, default_folder
from loftr_ros.training.int8_ranges import photographs
from loftr_ros.weights import find_weights

NETWORK = "compact"
SETS = ("sevenscenes:5", "sevenscenes:20", "sevenscenes:40", "kitti06_stereo:1", "kitti06_stereo:3")
REFERENCE = "float32"
# Names of the graph's layers outside of the backbone, of its first convolution, and of those that lead to the fine
# features alone.
TRANSFORMER, FIRST, FINE = r"^(?!/backbone/).*", r".*/stages\.0\.0/.*", r".*/(quarter_|half_|fine_projection).*"
# Variants, and their layers that are not quantised.
QUANTISED = {
    "int8": (),
    "int8 backbone": (TRANSFORMER,),
    "int8 backbone without fine branch": (TRANSFORMER, FINE),
    "int8 backbone without first convolution": (TRANSFORMER, FIRST),
    "int8 backbone without both": (TRANSFORMER, FIRST, FINE),
}


class GraphSession:
    """A graph compiled by OpenVINO, for `ExportedMatcher`."""

    def __init__(self, model: Any, path: Path, runtime: Runtime) -> None:
        self.path = path
        self.inputs: Mapping[str, Sequence[int | str]] = {each.any_name: list(each.shape) for each in model.inputs}
        self._graph = runtime.compile(model)

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None, names: Sequence[str] = ()
    ) -> list[Any]:
        """As of `Session`."""
        return self._graph.run({name: inputs[name] for name in self.inputs}, outputs, names)


@dataclass
class Result:
    """One variant on one set.

    Attributes:
        kept: per pair, part of the reference's matches that it has within 1 px.
        near: per pair, matches within 1 px of the true epipolar line.
        poses: of the pairs.
    """

    kept: list[float] = field(default_factory=list)
    near: list[int] = field(default_factory=list)
    poses: list[PairScore] = field(default_factory=list)

    @property
    def aucs(self) -> NDArray[np.float64]:
        """(orders, 3)."""
        return np.array([pose_auc(list(row)) for row in np.array([each.errors for each in self.poses]).T])


def quantised(model: Any, images: list[NDArray[np.float32]], ignored: Sequence[str]) -> Any:
    """A model in int8, without the layers whose names match."""
    import nncf

    cells = model.input("usable").shape if any(each.any_name == "usable" for each in model.inputs) else None
    given = [{"image": image} | ({} if cells is None else {"usable": np.ones(list(cells), bool)}) for image in images]
    scope = nncf.IgnoredScope(patterns=list(ignored)) if ignored else None
    return nncf.quantize(
        model,
        nncf.Dataset(given),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(images),
        ignored_scope=scope,
    )


def variants(size: tuple[int, int], arguments: argparse.Namespace, folder: Path) -> dict[str, PairMatcher]:
    """The matchers to compare, for images of one size; the reference comes first."""
    rest = torch.bfloat16 if cpu_has_bf16() and not arguments.isa else torch.float32
    half = precision_name(rest)
    weights = find_weights(NETWORK)
    network = load_network(NETWORK, weights, torch.device("cpu"), torch.float32)
    ranges = find_ranges(weights, network.fingerprint)

    def ours(precision: torch.dtype, int8: Int8Ranges | None = None) -> PairMatcher:
        loaded = load_network(NETWORK, weights, torch.device("cpu"), torch.float32)
        assert isinstance(loaded, Compact)
        return PairMatcher(compiled(loaded, precision, arguments.threads, int8))

    matchers = {REFERENCE: ours(torch.float32), half: ours(rest), f"int8 and {half}": ours(rest, ranges)}
    if arguments.exports:
        matchers |= by_export(ranges, size, arguments.threads, folder)
        for pairs in matchers.values():
            pairs.wide = WideConfig(min_matches=0)  # exports match no pair at several scales
    if arguments.nncf:
        matchers |= by_nncf(network, size, rest, arguments, folder)
    return matchers


def by_export(ranges: Int8Ranges | None, size: tuple[int, int], threads: int, folder: Path) -> dict[str, PairMatcher]:
    """What `loftr_ros export` writes, by onnxruntime's CPU provider: for CPUs, and for TensorRT."""
    matchers = {}
    for kind, rest, int8 in (
        ("for CPUs", torch.float32, None),
        ("for CPUs", torch.float32, ranges),
        ("for TensorRT", torch.float16, ranges),
    ):
        network = load_network(NETWORK, find_weights(NETWORK), torch.device("cpu"), rest)
        place = folder / f"{kind}{int8 is None}"
        made = export_network(network, place, *size, weights="", fixed=rest == torch.float16, int8=int8)
        label = f"export {kind} in {made.precision_name}, by onnxruntime"
        matchers[label] = PairMatcher(load_onnx(place, ["CPUExecutionProvider"], threads=threads))
    return matchers


def by_nncf(
    network: Network, size: tuple[int, int], rest: torch.dtype, arguments: argparse.Namespace, folder: Path
) -> dict[str, PairMatcher]:
    """NNCF's variants of the exported graph."""
    exported = export_network(network, folder, *size, weights="in the package")
    runtime, full = Runtime(rest, arguments.threads), Runtime(torch.float32, arguments.threads)
    match = GraphSession(full.core.read_model(folder / MATCH_FILE), folder / MATCH_FILE, full)
    model = full.core.read_model(folder / ENCODE_FILE)
    images = [
        each[None, None].astype(np.float32) / 255
        for each in photographs(AssetBank(arguments.assets, validation=True), arguments.photographs, size)
        if each.shape == size[::-1]
    ]
    matchers = {}
    for name, ignored in QUANTISED.items():
        session = GraphSession(quantised(model, images, ignored), folder / ENCODE_FILE, runtime)
        matchers[f"NNCF: {name}, else {precision_name(rest)}"] = PairMatcher(
            ExportedMatcher(exported, session, match, torch.device("cpu"), "openvino")
        )
    return matchers


def encode_times(matchers: dict[str, PairMatcher], image: Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds of CPU time of encoding an image, in turns; the first round does not count."""
    spent: dict[str, list[float]] = {name: [] for name in matchers}
    for _ in range(repeats + 1):
        for name, pairs in matchers.items():
            start = time.process_time()
            pairs.matcher.encode(image)
            spent[name].append(time.process_time() - start)
    return {name: 1e3 * statistics.median(each[1:]) for name, each in spent.items()}


def kept_part(found: Correspondences, expected: Correspondences) -> float:
    """Part of the expected matches that are found within 1 px."""
    _, mine, theirs = np.intersect1d(found.track_id, expected.track_id, assume_unique=True, return_indices=True)
    off = np.linalg.norm(found.current_points[mine] - expected.current_points[theirs], axis=1)
    return float((off < 1).sum()) / max(len(expected), 1)


def compare(
    matchers: dict[str, PairMatcher], pairs: list[tuple[Any, Any]], limit: float, orders: int
) -> dict[str, Result]:
    """All variants on the same pairs."""
    results = {name: Result() for name in matchers}
    for (view0, pose0), (view1, pose1) in pairs:
        truth, cameras = np.linalg.inv(pose0) @ pose1, (view0.frame.camera, view1.frame.camera)
        expected: Correspondences | None = None
        for name, matcher in matchers.items():
            found = matcher.match_pair(view0.frame, view1.frame)
            expected = found if expected is None else expected  # the reference comes first
            points = found.keyframe_points, found.current_points
            rays = [camera.unproject(each) for camera, each in zip(cameras, points, strict=True)]
            off = np.sqrt(epipolar_errors(*rays, truth) / 2) * cameras[1].focal_length
            result = results[name]
            result.kept.append(kept_part(found, expected))
            result.near.append(int((off < 1).sum()))
            result.poses.append(score_pose(*points, cameras, truth, limit, GeometryConfig(), orders, found.std))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sequences")
    parser.add_argument("--assets", type=Path, default=default_folder(), help="of `loftr_ros train assets`")
    parser.add_argument("--exports", action="store_true", help="exports in int8 by onnxruntime, too")
    parser.add_argument("--nncf", action="store_true", help="NNCF's variants, too")
    parser.add_argument("--photographs", type=int, default=48, help="to calibrate NNCF's variants with")
    parser.add_argument("--sets", nargs="+", default=SETS, help="FOLDER:GAP each")
    parser.add_argument("--pairs", type=int, default=40, help="of each set, at most; 0 for all")
    parser.add_argument("--orders", type=int, default=5, help="match orders that every pose is estimated with")
    parser.add_argument("--repeats", type=int, default=40, help="rounds of the timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default="", help="the most that oneDNN may use, as ONEDNN_MAX_CPU_ISA")
    parser.add_argument("--out", type=Path, help="file for the tables")
    arguments = parser.parse_args()
    if arguments.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = arguments.isa  # before OpenVINO is loaded
    torch.set_num_threads(arguments.threads)
    report = Report()
    report(f"{machine()}{f'; oneDNN up to {arguments.isa}' if arguments.isa else ''}")
    report()
    report("| set | pairs | encoding | matches kept within 1 px, % | within 1 px of the epipolar line | AUC@5/10/20 |")
    report("| --- | --- | --- | --- | --- | --- |")
    network = load_network(NETWORK, find_weights(NETWORK), torch.device("cpu"), torch.float32)
    times: dict[tuple[int, int], dict[str, float]] = {}
    opened: dict[tuple[int, int], dict[str, PairMatcher]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sets:
            pairs = pairs_of(name, arguments)
            frame = pairs[0][0][0].frame
            size = PairMatcher(network).network_size(*frame.size)
            if size not in opened:
                opened[size] = variants(size, arguments, Path(folder) / f"{size[0]}x{size[1]}")
                image = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA)
                times[size] = encode_times(opened[size], torch.from_numpy(image), arguments.repeats)
            results = compare(opened[size], pairs, limit_of(name), arguments.orders)
            near = sum(results[REFERENCE].near)
            for label, each in results.items():
                share = f"{sum(each.near) / len(pairs):.0f} ({100 * (sum(each.near) / near - 1):+.1f} %)"
                kept = 100 * float(np.mean(each.kept))
                report(f"| {name} | {len(pairs)} | {label} | {kept:.1f} | {share} | {mean_and_spread(each.aucs)} |")
    report()
    report(
        "CPU time of encoding an image, medians in turns in one process; its ratio to float32 says more than itself:"
    )
    report()
    report("| size | encoding | ms | ratio |")
    report("| --- | --- | --- | --- |")
    for (width, height), each in times.items():
        for label, spent in each.items():
            report(f"| {width}x{height} | {label} | {spent:.1f} | {spent / each[REFERENCE]:.2f} |")
    if arguments.out:
        arguments.out.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
