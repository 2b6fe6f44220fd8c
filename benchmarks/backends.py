"""The same network by PyTorch, onnxruntime and OpenVINO on the CPU: time to encode an image and to match it.

One process; the backends take turns, so that other load on the machine affects all equally. The images are two views of
the rendered room. `compact` runs with the weights in the package, `loftr` with weights that are made to match,
`coarse_lite` with published ones where they are found, and with random ones elsewhere. OpenVINO runs `compact` by its
weights and the others as they are exported, where it is installed.

    .venv/bin/python benchmarks/backends.py [--networks compact coarse_lite loftr] [--repeats 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import torch
from calibrated_weights import made_state_dict

from loftr_ros.matcher.checkpoints.files import WeightsError, load_network, save_network_weights
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.config import PRESETS, LoFTRConfig
from loftr_ros.matcher.interface import Matcher
from loftr_ros.matcher.precision import cpu_has_bf16, precision_name
from loftr_ros.matcher.runtime.export import export_network
from loftr_ros.matcher.runtime.onnx_backend import load_onnx
from loftr_ros.matcher.runtime.openvino_backend import load_openvino
from loftr_ros.matcher.runtime.openvino_compact import compiled
from loftr_ros.weights import find_weights
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

CPU = torch.device("cpu")


def weights_of(network: str, folder: Path) -> tuple[Path | None, str]:
    """A weights file for a network, and its origin."""
    if isinstance(PRESETS[network], LoFTRConfig) and PRESETS[network].fine is not None:
        path = folder / f"{network}.safetensors"
        save_network_weights(path, made_state_dict(network), PRESETS[network], "made")
        return path, "made"
    try:
        return find_weights(network), "in the package" if network == "compact" else "published"
    except WeightsError:
        return None, "random"


def backends(network: str, folder: Path, width: int, height: int, threads: int) -> tuple[dict[str, Matcher], str]:
    """The matchers to compare, by name, and the origin of their weights."""
    weights, source = weights_of(network, folder)
    full = load_network(network, weights, CPU, torch.float32)
    matchers: dict[str, Matcher] = {"torch float32": full}
    if cpu_has_bf16():
        matchers["torch bfloat16"] = load_network(network, weights, CPU, torch.bfloat16)
    export_network(full, folder / network, width, height, weights=source)
    matchers["onnxruntime float32"] = load_onnx(folder / network, ["CPUExecutionProvider"], threads=threads)
    if importlib.util.find_spec("openvino") is not None:
        for precision in (torch.float32, torch.bfloat16) if cpu_has_bf16() else (torch.float32,):
            matchers[f"openvino {precision_name(precision)}"] = (
                compiled(load_network(network, weights, CPU, torch.float32), precision, threads)  # type: ignore[arg-type]
                if isinstance(full, Compact)
                else load_openvino(folder / network, precision, threads)
            )
    return matchers, source


def measure(
    matchers: dict[str, Matcher], images: list[torch.Tensor], repeats: int
) -> dict[str, tuple[float, float, int]]:
    """Median seconds of encode and of match, and matches, of each; the first round warms up and does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in matchers}
    counts = dict.fromkeys(matchers, 0)
    for _ in range(repeats + 1):
        for name, matcher in matchers.items():
            keyframe = matcher.complete(matcher.encode(images[0]))
            start = time.perf_counter()
            current = matcher.encode(images[1])
            encoded = time.perf_counter()
            counts[name] = len(matcher.match([keyframe], current)[0])
            times[name].append((encoded - start, time.perf_counter() - encoded))
    medians = {name: [statistics.median(part) for part in zip(*rows[1:], strict=True)] for name, rows in times.items()}
    return {name: (medians[name][0], medians[name][1], counts[name]) for name in matchers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["compact", "coarse_lite", "loftr"], choices=list(PRESETS))
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scene, camera, poses = Scene(3), default_camera(arguments.width, arguments.height), trajectory(40, seed=3)
    images = [torch.from_numpy(scene.render(camera, poses[i]).image) for i in (20, 26)]
    print(
        f"{arguments.width}x{arguments.height}, {arguments.threads} threads, median of {arguments.repeats}, "
        f"torch {torch.__version__}"
    )
    print(f"{'network':<14}{'weights':<16}{'backend':<22}{'encode':>10}{'match':>10}{'matches':>9}")
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            size = (arguments.width, arguments.height)
            matchers, source = backends(network, Path(folder), *size, arguments.threads)
            for name, (encode, match, count) in measure(matchers, images, arguments.repeats).items():
                print(f"{network:<14}{source:<16}{name:<22}{encode * 1e3:7.0f} ms{match * 1e3:7.0f} ms{count:9}")


if __name__ == "__main__":
    main()
