"""The full network beside kornia's LoFTR: time, work and memory, with the same state dict, in one process and run.

kornia encodes both images of every pair. Here a keyframe was encoded on arrival; a new frame is encoded once and
matched with one keyframe, or with four. The weights are synthetic, not trained (calibrated_weights.py), and the images
are views of the rendered room unless others are given; both networks find the same matches, which is printed.

    .venv/bin/python benchmarks/matcher_speed.py [--size 640x480] [--images A B] [--memory] [--frames 1000]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from calibrated_weights import made_state_dict
from measuring import Meter, Report, gflop, machine, peak_gflops, seconds, size_of
from torch import Tensor

from loftr_ros.matcher.config import PRESETS
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.precision import precision_name, resolve_precision
from loftr_ros.matcher.ring import FeatureRing
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

CPU = torch.device("cpu")
KEYFRAMES = 4
STAGES = ("backbone", "leading self layer", "coarse transformer", "coarse matching", "fine stage")


def views(size: tuple[int, int], count: int, files: list[Path]) -> list[Tensor]:
    """Images (H, W) uint8: the files, the last one repeated, or a hand-held walk through the rendered room."""
    if files:
        images = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
        for file, image in zip(files, images, strict=True):
            if image is None:
                raise SystemExit(f"{file} is not a readable image")
        resized = [torch.from_numpy(cv2.resize(image, size, interpolation=cv2.INTER_AREA)) for image in images]
        return (resized + resized[-1:] * count)[:count]
    # Keyframes a fifth of a second apart, and the current image 0.8 s after the last: hundreds of matches, a typical
    # case of confident tracking.
    moments = [20 + 6 * i for i in range(count - 1)]
    moments.append(moments[-1] + 24)
    scene, camera, poses = Scene(3), default_camera(*size), trajectory(moments[-1] + 1, seed=3)
    return [torch.from_numpy(scene.render(camera, poses[moment]).image) for moment in moments]


def build_ours(weights: dict[str, Tensor], dtype: torch.dtype) -> LoFTR:
    network = LoFTR(PRESETS["loftr"])
    network.load_state_dict(weights)
    return network.prepare(CPU, dtype)


def build_kornia(weights: dict[str, Tensor]) -> Any:
    from kornia.feature import LoFTR as KorniaLoFTR
    from kornia.feature.loftr.loftr import default_cfg

    network = KorniaLoFTR(pretrained=None, config=default_cfg).eval()
    network.load_state_dict(dict(weights))
    return network.requires_grad_(False)


def run_kornia(network: Any, image0: Tensor, image1: Tensor) -> dict[str, Tensor]:
    pair = {f"image{i}": image[None, None].float() / 255 for i, image in enumerate((image0, image1))}
    with torch.inference_mode():
        found: dict[str, Tensor] = network(pair)
    return found


def watch_stages(network: LoFTR) -> Meter:
    """Sum up the time that a network spends in its stages."""
    watch = Meter()
    # With many matches, their windows are computed from the whole map of the new image.
    watch.watch(network.backbone, "smooth", STAGES[-1])
    watched = network.backbone, network.loftr_coarse, network.loftr_coarse, network
    for stage, owner, name in zip(STAGES, watched, ("forward", "encode", "forward", "match_coarse"), strict=False):
        watch.watch(owner, name, stage)
    watch.watch(network.fine_matcher, "refined", STAGES[-1])
    return watch


def agreement(ours: Matches, theirs: dict[str, Tensor], tolerance: float) -> str:
    """Number of kornia's matches that ours contain, with the point in image 1 within a tolerance in px."""
    points = {tuple(p0): p1 for p0, p1 in zip(ours.points0.tolist(), ours.points1, strict=True)}
    distances = [
        float((points[tuple(p0)] - p1).norm()) if tuple(p0) in points else float("inf")
        for p0, p1 in zip(theirs["keypoints0"].tolist(), theirs["keypoints1"], strict=True)
    ]
    shared = sum(distance < tolerance for distance in distances)
    share = 100 * shared / max(1, len(distances))
    found = [distance for distance in distances if np.isfinite(distance)]
    return (
        f"{len(ours)} matches; {shared} of kornia's {len(distances)} ({share:.1f} %) within {tolerance:g} px, "
        f"median {np.median(found) if found else float('nan'):.4f} px"
    )


def measure_speed(report: Report, weights: dict[str, Tensor], images: list[Tensor], repeats: int) -> None:
    """Time ours and kornia's alternately, and report medians."""
    current, frames = images[-1], images[:-1]
    kornia = build_kornia(weights)
    half = resolve_precision("auto", CPU)
    networks = {precision_name(dtype): build_ours(weights, dtype) for dtype in dict.fromkeys((half, torch.float32))}
    keyframes: dict[str, list[ImageFeatures]] = {}
    theirs = [run_kornia(kornia, frame, current) for frame in frames]
    for name, network in networks.items():
        keyframes[name] = [network.complete(network.encode(frame)) for frame in frames]
        for _ in range(2):  # warm-up, with the timed numbers of keyframes
            for count in (1, KEYFRAMES):
                matches = network.match(keyframes[name][:count], network.encode(current))
        report(f"{name:>9}: {agreement(matches[-1], theirs[-1], 0.01 if name == 'float32' else 1.0)}")

    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(repeats):
        times["kornia"]["pair"].append(seconds(lambda: run_kornia(kornia, frames[-1], current)))
        times["kornia"]["pairs"].append(seconds(lambda: [run_kornia(kornia, frame, current) for frame in frames]))
        for name, network in networks.items():
            kept = keyframes[name]
            times[name]["encode"].append(seconds(lambda net=network: net.encode(current)))
            features = network.encode(current)
            times[name]["complete"].append(seconds(lambda net=network, new=features: net.complete(new)))
            for count in (1, KEYFRAMES):
                fresh = network.encode(current)
                work = lambda net=network, old=kept[-count:], new=fresh: net.match(old, new)  # noqa: E731
                times[name][f"match {count}"].append(seconds(work))

    def median(name: str, what: str) -> float:
        return statistics.median(times[name][what])

    pair, pairs = median("kornia", "pair"), median("kornia", "pairs")
    report(f"\n{'':26}{'one keyframe':>16}{f'{KEYFRAMES} keyframes':>16}")
    report(f"{'kornia, float32':26}{1e3 * pair:13.0f} ms{1e3 * pairs:13.0f} ms")
    for name in networks:
        one = median(name, "encode") + median(name, "match 1")
        four = median(name, "encode") + median(name, f"match {KEYFRAMES}")
        report(f"{f'ours, {name}':26}{1e3 * one:13.0f} ms{1e3 * four:13.0f} ms")
        report(f"{'  times as fast':26}{pair / one:14.1f} x{pairs / four:14.1f} x")
    for name in networks:
        parts = ", ".join(f"{what} {1e3 * median(name, what):.0f} ms" for what in times[name])
        report(f"\n{name}: {parts}  (complete: fine features of a frame that becomes a keyframe)")
        report_stages(report, networks[name], keyframes[name], current, repeats)


def report_stages(
    report: Report, network: LoFTR, keyframes: list[ImageFeatures], current: Tensor, repeats: int
) -> None:
    """Time and work of each stage, and the share of this machine's peak in this precision."""
    work = {
        "encode": gflop(lambda: network.encode(current)),
        "match 1": gflop(lambda: network.match(keyframes[-1:], network.encode(current))),
        f"match {KEYFRAMES}": gflop(lambda: network.match(keyframes, network.encode(current))),
    }
    for what in list(work)[1:]:
        work[what] -= work["encode"]
    peaks = peak_gflops(network.dtype)
    report("  measured peak: " + ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in peaks.items()))
    watch = watch_stages(network)
    report(f"  {'stage':24}{'1 keyframe':>14}{f'{KEYFRAMES} keyframes':>14}")
    columns = []
    for count in (1, KEYFRAMES):
        runs = []
        for _ in range(repeats):
            network.match(keyframes[-count:], network.encode(current))
            runs.append(watch.take())
        columns.append({stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in STAGES})
    for stage in STAGES:
        report(f"  {stage:24}{1e3 * columns[0][stage]:11.1f} ms{1e3 * columns[1][stage]:11.1f} ms")
    for label, count, column in (("1 keyframe", 1, columns[0]), (f"{KEYFRAMES} keyframes", KEYFRAMES, columns[1])):
        operations, spent = work["encode"] + work[f"match {count}"], sum(column.values())
        rate = operations / spent
        report(
            f"  {label}: {operations:.0f} GFLOP (counted by torch's FlopCounterMode: encode {work['encode']:.0f}) at "
            f"{rate:.0f} GFLOP/s, {100 * rate / max(peaks.values()):.0f} % of the measured peak"
        )


def status_mb(field: str) -> float:
    """A line of /proc/self/status in MB, such as VmRSS or VmHWM (the highest VmRSS so far)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}; the memory section needs Linux")


def probe(side: str, folder: Path) -> None:
    """In a separate process: print the resident memory with the weights, and the peak while matching, as JSON."""
    weights = torch.load(folder / "weights.pt", weights_only=True)
    images = torch.load(folder / "images.pt", weights_only=True)
    if side == "kornia":
        network = build_kornia(weights)
    else:
        network = build_ours(weights, torch.float32 if side == "float32" else resolve_precision("auto", CPU))
    del weights
    settle()
    before = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # restart VmHWM: loading does not count
    for _ in range(2):
        if side == "kornia":
            count = len(run_kornia(network, *images)["confidence"])
        else:
            keyframe = network.complete(network.encode(images[0]))
            count = len(network.match([keyframe], network.encode(images[1]))[0])
    print(json.dumps({"before": before, "peak": status_mb("VmHWM"), "matches": count}))


def settle() -> None:
    """Return free memory to the system; otherwise its reuse would hide later allocations."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measure_memory(report: Report, weights: dict[str, Tensor], size: tuple[int, int], threads: int) -> None:
    """Peak resident memory above the weights, each side in a separate process that loads only these."""
    report(f"\nmemory at {size[0]}x{size[1]}, one pair: highest resident memory above that with the weights loaded")
    peaks = {}
    half = precision_name(resolve_precision("auto", CPU))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, Path(folder) / "weights.pt")
        torch.save(views(size, 2, []), Path(folder) / "images.pt")
        for side, label in (("kornia", "kornia, float32"), ("auto", f"ours, {half}"), ("float32", "ours, float32")):
            command = [sys.executable, __file__, "--probe", side, folder, "--threads", str(threads)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise SystemExit(f"the {side} process failed:\n{result.stderr}")
            found = json.loads(result.stdout.splitlines()[-1])
            peaks[side] = found["peak"] - found["before"]
            share = f", {100 * peaks[side] / peaks['kornia']:.0f} % of kornia's" if side != "kornia" else ""
            report(
                f"  {label:18} {peaks[side]:7.0f} MB above {found['before']:.0f} MB, {found['matches']} matches{share}"
            )


def measure_flatness(report: Report, weights: dict[str, Tensor], size: tuple[int, int], frames: int) -> None:
    """Resident memory while a stream is encoded, matched, and sometimes added to the ring of keyframes."""
    images = views(size, 12, [])
    network = build_ours(weights, resolve_precision("auto", CPU))
    ring = FeatureRing(KEYFRAMES)
    kept: list[ImageFeatures] = []
    report(f"\nmemory over {frames} frames at {size[0]}x{size[1]}, {KEYFRAMES} keyframes, every tenth frame a new one")
    settle()
    start = time.perf_counter()
    marks = []
    for i in range(frames):
        features = network.encode(images[i % len(images)])
        if kept:
            network.match(kept, features)
        if i % 10 == 0:
            if len(kept) == KEYFRAMES:
                ring.free(kept.pop(0))
            kept.append(ring.keep(network.complete(features)))
        if (i + 1) % max(1, frames // 10) == 0:
            marks.append(status_mb("VmRSS"))
            report(f"  after {i + 1:5d} frames: {marks[-1]:7.1f} MB resident")
    report(
        f"  grown by {marks[-1] - marks[0]:+.1f} MB since frame {max(1, frames // 10)}; "
        f"{frames / (time.perf_counter() - start):.1f} frames/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size_of, default=(640, 480), help="of the images")
    parser.add_argument(
        "--images", type=Path, nargs="*", default=[], help="up to five files in place of rendered views"
    )
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its choice")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs, of which the median is reported")
    parser.add_argument("--no-speed", action="store_true", help="leave the timing out")
    parser.add_argument("--memory", action="store_true", help="also measure memory")
    parser.add_argument("--memory-size", type=size_of, default=(1280, 960), help="of the images there")
    parser.add_argument("--frames", type=int, default=0, help="also watch memory over so many frames")
    parser.add_argument("--frames-size", type=size_of, default=(320, 240), help="of the frames there")
    parser.add_argument("--output", type=Path, help="write the table there as well")
    parser.add_argument("--probe", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.probe:
        probe(arguments.probe[0], Path(arguments.probe[1]))
        return
    report = Report()
    report(machine())
    weights = made_state_dict("loftr")
    if not arguments.no_speed:
        width, height = arguments.size
        report(f"{width}x{height}, medians of {arguments.repeats} interleaved runs; kornia runs both images of a pair")
        measure_speed(report, weights, views(arguments.size, KEYFRAMES + 1, arguments.images), arguments.repeats)
    if arguments.memory:
        measure_memory(report, weights, arguments.memory_size, arguments.threads)
    if arguments.frames:
        measure_flatness(report, weights, arguments.frames_size, arguments.frames)
    if arguments.output:
        arguments.output.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
