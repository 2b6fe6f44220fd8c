"""A GPU: does every network find there what it finds on the CPU, and what does a frame cost?

Measures, one line of JSON a section, printed and written to `--out`: the device; parity with float32 on the CPU; masks,
blank images and odd sizes; waits of the host; kernels; milliseconds a frame as captured program and launched one by
one, for one keyframe and four, beside kornia's LoFTR where it is installed; the node's latencies at 30 and 60 Hz; a
second thread; memory over changing images; a frame after memory ran out; and exports in float16 and int8 by TensorRT,
where onnxruntime has it. `compact` has the weights in the package, `efficient` and `loftr` weights that are made to
match, `coarse_lite` random ones.

It begins no section after `--minutes`: those are written as left out. It ends at once where torch has no GPU.

    .venv/bin/python benchmarks/gpu.py [--networks compact coarse_lite efficient loftr] [--repeats 50] [--no-node]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from calibrated_efficient import made_efficient_state_dict
from calibrated_weights import made_state_dict
from node_latency import measure
from torch import Tensor

from loftr_ros.matcher.build import Network, build_network
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.config import PRESETS
from loftr_ros.matcher.factory import MatcherSpec, open_matcher
from loftr_ros.matcher.faults import gpu_problem, is_out_of_memory
from loftr_ros.matcher.interface import Matcher, Matches
from loftr_ros.matcher.runtime.export import export_network
from loftr_ros.matcher.runtime.gpu import CudaDevice, GpuMatcher
from loftr_ros.matcher.runtime.int8 import ranges_for
from loftr_ros.matcher.runtime.tensorrt import PROVIDER
from loftr_ros.weights import find_weights
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
WIDTH, HEIGHT = 640, 480
# Duration of a rate's measurement; images of the section on memory.
RATE_SECONDS, IMAGES = 2.0, 300
NODE_SECONDS = 30.0
# What becomes of the node's frames.
FRAMES = ("received", "processed", "dropped", "failed", "located")


class Sections:
    """Prints sections and writes them to a file, within a limit of time."""

    def __init__(self, out: Path | None, minutes: float) -> None:
        """Begin; the file is written anew."""
        self._out, self._end = out, time.monotonic() + 60 * minutes
        if out is not None:
            out.write_text(f"{' '.join(sys.argv)}\n")

    def __call__(self, name: str, work: Callable[[], Any]) -> None:
        """Report what `work` returns, or why it failed: the others are run anyway."""
        start = time.monotonic()
        if start > self._end:
            result = "left out: no time"
        else:
            try:
                result = work()
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}", "at": traceback.format_exc().splitlines()[-3:]}
        line = json.dumps({"section": name, "seconds": round(time.monotonic() - start, 1), "result": result})
        print(line, flush=True)
        if self._out is not None:
            with self._out.open("a") as file:
                file.write(line + "\n")


class Bench:
    """The networks and the images that the sections share."""

    def __init__(self, repeats: int) -> None:
        scene, camera, poses = Scene(3), default_camera(WIDTH, HEIGHT), trajectory(40, seed=3)
        self.images = [torch.from_numpy(scene.render(camera, poses[i]).image) for i in (20, 26)]
        self.repeats = repeats
        self._states: dict[str, dict[str, Tensor]] = {}

    def network(self, name: str, device: torch.device, dtype: torch.dtype) -> Network:
        """A preset, ready for inference."""
        if name in ("compact", "coarse_lite"):
            return load_network(name, find_weights(name, "") if name == "compact" else None, device, dtype)
        if name not in self._states:
            made = made_efficient_state_dict() if name.startswith("efficient") else made_state_dict(name)
            self._states[name] = made
        network = build_network(PRESETS[name])
        network.load_state_dict(self._states[name])
        return network.prepare(device, dtype)

    def matcher(self, name: str, dtype: torch.dtype = torch.float16, *, graphs: bool = True) -> GpuMatcher:
        """A preset on the GPU."""
        return GpuMatcher(self.network(name, GPU, dtype), CudaDevice(GPU, graphs=graphs))

    def matches(self, matcher: Matcher, usable: Tensor | None = None) -> Matches:
        """Of the two images."""
        keyframe = matcher.complete(matcher.encode(self.images[0], usable))
        return matcher.match([keyframe], matcher.encode(self.images[1], usable))[0]

    def parity(self, name: str) -> dict[str, Any]:
        """Part of the CPU's matches in float32 that the GPU finds again, and how far their points are apart."""
        expected, result = self.matches(self.network(name, CPU, torch.float32)), {}
        for dtype in (torch.float32, torch.float16):
            matcher = self.matcher(name, dtype)
            for found in (self.matches(matcher), self.matches(matcher)):  # recorded, and run again
                here, there = torch.isin(found.cell, expected.cell), torch.isin(expected.cell, found.cell)
                apart = (found.points1[here] - expected.points1[there]).norm(dim=1)
            result[str(dtype)] = {
                "matches": len(expected),
                "again": round(float(there.float().mean()), 4),
                "median px": round(float(apart.median()), 4) if len(apart) else None,
                "p99.5 px": round(float(apart.quantile(0.995)), 4) if len(apart) else None,
                "finite": bool(torch.isfinite(found.points1).all()),
            }
        return result

    def odd(self, name: str) -> dict[str, int]:
        """Numbers of matches of what kernels may refuse."""
        matcher, mask = self.matcher(name), torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
        mask[-60:] = False
        first, second = (image[:371, :637].contiguous() for image in self.images)
        blank = torch.full((HEIGHT, WIDTH), 7, dtype=torch.uint8)
        masked = matcher.encode(self.images[0], mask)
        found = matcher.match([masked, matcher.encode(self.images[0]), matcher.encode(blank)], matcher.encode(blank))
        return {
            "odd size": len(matcher.match([matcher.encode(first)], matcher.encode(second))[0]),
            "masked": len(self.matches(matcher, mask)),
            "blank": sum(map(len, found)),
        }

    def waits(self, name: str) -> dict[str, int]:
        """Synchronising calls of a frame as torch reports them; the one wait for the result is none of torch's."""
        result = {}
        for graphs in (True, False):
            matcher = self.matcher(name, graphs=graphs)
            self.matches(matcher)
            keyframe = matcher.encode(self.images[0])
            torch.cuda.synchronize()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    matcher.match([keyframe], matcher.encode(self.images[1]))
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            result["captured" if graphs else "launched"] = sum("synchroniz" in str(each.message) for each in caught)
        return result

    def kernels(self, name: str) -> dict[str, Any]:
        """Kernels of a frame that is launched one by one, and the time that they take together."""
        from torch.profiler import profile, supported_activities

        matcher, result = self.matcher(name, graphs=False), {}
        self.matches(matcher)
        keyframe = matcher.encode(self.images[0])
        stages = {
            "encode": lambda: matcher.encode(self.images[1]),
            "match": lambda: matcher.match([keyframe], keyframe),
        }
        for stage, work in stages.items():
            with profile(activities=supported_activities()) as profiled:
                work()
                torch.cuda.synchronize()
            events = [e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
            result[stage] = {"kernels": len(events), "ms": round(sum(e.device_time for e in events) / 1e3, 3)}
        return result

    def speed(self, name: str) -> dict[str, Any]:
        """Median and 99th percentile of the milliseconds of a frame; memory in MiB."""
        result = {}
        for graphs in (True, False):
            for count in (1, 4):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                matcher = self.matcher(name, graphs=graphs)
                keyframes = [matcher.encode(self.images[0])] * count

                def frame(matcher: GpuMatcher = matcher, keyframes: Any = keyframes) -> None:
                    matcher.match(keyframes, matcher.encode(self.images[1]))

                times = timed(frame, self.repeats)
                result[f"{'captured' if graphs else 'launched'}, {count} keyframes"] = {
                    **times,
                    "MiB": torch.cuda.max_memory_allocated() >> 20,
                }
                matcher.release()
        return result

    def kornia(self) -> dict[str, Any]:
        """kornia's LoFTR, which encodes both images for every pair, in float32 and with autocast to float16."""
        from kornia.feature import LoFTR

        network = LoFTR(pretrained=None).to(GPU).eval()
        images = [(image.to(GPU).float() / 255)[None, None] for image in self.images]
        result = {}
        for name, is_half in (("float32", False), ("float16 by autocast", True)):

            def frame(is_half: bool = is_half) -> None:
                with torch.inference_mode(), torch.autocast(GPU.type, torch.float16, enabled=is_half):
                    network({"image0": images[0], "image1": images[1]})["keypoints1"].cpu()

            result[name] = timed(frame, self.repeats)
        return result

    def tensorrt(self, precision: str) -> dict[str, Any]:
        """`compact` exported for GPUs and run by TensorRT: parity with float32 on the CPU, and milliseconds a frame."""
        import onnxruntime

        if PROVIDER not in onnxruntime.get_available_providers():
            return {"left out": f"onnxruntime {onnxruntime.__version__} has no {PROVIDER}"}
        network = self.network("compact", CPU, torch.float16)
        weights = find_weights("compact", "")
        ranges = ranges_for(weights, network.fingerprint) if precision == "int8" else None
        expected = self.matches(self.network("compact", CPU, torch.float32))
        with tempfile.TemporaryDirectory() as folder:
            export_network(network, Path(folder), WIDTH, HEIGHT, weights="", fixed=True, int8=ranges)
            start = time.monotonic()
            matcher = open_matcher(MatcherSpec("compact", Path(folder), str(GPU), backend="tensorrt"))
            built = time.monotonic() - start
            there = torch.isin(expected.cell, self.matches(matcher).cell)
            keyframe = matcher.encode(self.images[0])
            times = timed(lambda: matcher.match([keyframe], matcher.encode(self.images[1])), self.repeats)
        return {"seconds to build": round(built, 1), "again": round(float(there.float().mean()), 4), **times}

    def threads(self, name: str) -> dict[str, float]:
        """Matches a second, alone and beside a thread that encodes."""
        matcher, result, stop = self.matcher(name), {}, threading.Event()
        keyframe = matcher.encode(self.images[0])

        def rate() -> float:
            start, count = time.monotonic(), 0
            while time.monotonic() - start < RATE_SECONDS:
                matcher.match([keyframe], keyframe)
                count += 1
            return round(count / RATE_SECONDS, 1)

        def encode() -> None:
            while not stop.is_set():
                matcher.encode(self.images[1])
                torch.cuda.synchronize()

        rate()
        result["alone"] = rate()
        thread = threading.Thread(target=encode)
        thread.start()
        try:
            result["beside"] = rate()
        finally:
            stop.set()
            thread.join()
        return result

    def memory(self, name: str) -> list[int]:
        """MiB in use after each third of many changing images."""
        matcher, used = self.matcher(name), []
        keyframe = matcher.encode(self.images[0])
        for i in range(IMAGES):
            matcher.match([keyframe], matcher.encode(torch.roll(self.images[1], i, 1)))
            if (i + 1) % (IMAGES // 3) == 0:
                used.append(torch.cuda.memory_allocated() >> 20)
        return used

    def short_of_memory(self, name: str) -> dict[str, Any]:
        """Whether memory runs out under a limit, and the number of matches after it."""
        matcher = self.matcher(name)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-4)
        try:
            self.matches(matcher)
            ran_out = False
        except RuntimeError as error:
            ran_out = is_out_of_memory(error)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        matcher.release()
        return {"ran out": ran_out, "matches after it": len(self.matches(matcher))}


def timed(frame: Callable[[], None], repeats: int) -> dict[str, float]:
    """Milliseconds of a function that waits for its result."""
    for _ in range(5):
        frame()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        frame()
        times.append(1e3 * (time.perf_counter() - start))
    return {"ms": round(statistics.median(times), 3), "p99": round(statistics.quantiles(times, n=100)[98], 3)}


def environment() -> dict[str, Any]:
    """The device and the libraries."""
    return {
        "gpu": torch.cuda.get_device_name(GPU),
        "capability": torch.cuda.get_device_capability(GPU),
        "memory MiB": torch.cuda.get_device_properties(GPU).total_memory >> 20,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "architectures": torch.cuda.get_arch_list(),
    }


def node(rate: float, source: str) -> dict[str, Any]:
    """What the node says of its frames, and 50th and 99th percentile of its stages in milliseconds, on the GPU."""
    status: Any = measure(source, "", rate, NODE_SECONDS, "mono", ["-p", "device:=cuda"])[-1].status
    stages = zip(status.stages, status.latency_median, status.latency_p99, strict=True)
    return {
        "device": f"{status.network} on {status.device} in {status.precision}",
        "frames": {kind: getattr(status, f"frames_{kind}") for kind in FRAMES},
        "errors": dict(zip(status.error_kinds, status.error_counts, strict=True)),
        "ms": {stage: [round(1e3 * median, 2), round(1e3 * p99, 2)] for stage, median, p99 in stages},
    }


def missing() -> str:
    """Why nothing can be measured here; empty if it can."""
    return gpu_problem(GPU) if torch.cuda.is_available() else f"torch {torch.__version__} sees none"


def main() -> int:
    """Run all sections; returns 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["compact", "coarse_lite", "efficient", "loftr"])
    parser.add_argument("--repeats", type=int, default=50, help="frames that are timed")
    parser.add_argument("--no-node", action="store_true", help="without the node's latencies")
    parser.add_argument("--source", default="../shared/data/sevenscenes", help="that the node gets")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no section begins")
    parser.add_argument("--out", type=Path, help="file for the results")
    options = parser.parse_args()
    if problem := missing():
        print(f"gpu.py needs a CUDA device: {problem}", file=sys.stderr)
        return 2
    bench, section = Bench(options.repeats), Sections(options.out, options.minutes)
    section("environment", environment)
    for name in options.networks:
        for work in (bench.parity, bench.odd, bench.waits, bench.kernels, bench.speed):
            section(f"{name}: {work.__name__}", lambda work=work, name=name: work(name))  # type: ignore[misc]
    section("kornia", bench.kornia)
    for rate in () if options.no_node else (30.0, 60.0):
        section(f"node at {rate:g} Hz", lambda rate=rate: node(rate, options.source))  # type: ignore[misc]
    for work in (bench.threads, bench.memory, bench.short_of_memory):
        section(work.__name__, lambda work=work: work(options.networks[0]))  # type: ignore[misc]
    for precision in ("float16", "int8"):
        section(f"TensorRT in {precision}", lambda precision=precision: bench.tensorrt(precision))  # type: ignore[misc]
    return 0


if __name__ == "__main__":
    sys.exit(main())
