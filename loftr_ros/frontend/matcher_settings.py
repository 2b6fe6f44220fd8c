"""The user's settings of the matcher, from parameters or options, and the matcher that they specify."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loftr_ros.matcher.config import AUTO, PRESETS
from loftr_ros.matcher.runtime.tensorrt import TensorRTConfig
from loftr_ros.settings import Settings, setting

if TYPE_CHECKING:  # imports torch, which the node loads only when it is configured
    from loftr_ros.matcher.factory import MatcherSpec

RANDOM = "random"


@dataclass(frozen=True)
class MatcherConfig(Settings):
    """Network, weights and runtime."""

    network: str = setting(
        AUTO, f"Network preset: {', '.join(PRESETS)}; auto for the network of the weights, or compact without weights"
    )
    weights: str = setting(
        "",
        "Weights file of the network, or a name of `loftr_ros weights list`; empty for the packaged weights "
        "(compact) or else the first found; random for untrained weights; for backends onnx, tensorrt and openvino the "
        "output of `loftr_ros export`",
    )
    device: str = setting(
        "auto", "Device of the network: auto (CUDA if there is one, else the CPU), cpu, cuda or cuda:N"
    )
    precision: str = setting(
        "auto",
        "Precision of the network: auto for float16 on CUDA, bfloat16 on CPUs with hardware support, float32 "
        "elsewhere; int8 for the backbone of compact on a CPU, all else as with auto; auto is int8 on a processor with "
        "VNNI or AMX if the weights come with the ranges of their activations, as the packaged ones do; an export has "
        "its own precision, and is refused if int8 is asked for and it is not in int8",
        choices=("auto", "float32", "bfloat16", "float16", "int8"),
    )
    backend: str = setting(
        "auto",
        "Runtime of the network: torch (PyTorch), onnx (onnxruntime with an export), tensorrt (onnxruntime's TensorRT "
        "with an export for GPUs), openvino (with an export, or with the weights of compact); auto for openvino if it "
        "is installed and compact runs on a CPU, else torch",
        choices=("auto", "torch", "onnx", "tensorrt", "openvino"),
    )
    onnx_providers: str = setting(
        "",
        "Execution providers of backend onnx in order of preference, separated by commas; empty for CUDA's if "
        "device is a GPU, else the CPU's",
    )
    threads: int = setting(
        0, "Number of CPU threads of the network; 0 for all cores, or half of them if pipelined", low=0, high=256
    )
    pipelined: str = setting(
        "auto",
        "Whether a frame is encoded while the previous one is matched, for a higher frame rate on enough cores; "
        "auto for always from four cores on",
        choices=("auto", "always", "never"),
    )
    warm_up_width: int = setting(
        640,
        "Width of the camera image that the network is warmed up for; 0, or of another size than the camera's, for a "
        "warm-up when the first image comes",
        unit="px",
        low=0,
        high=8192,
    )
    warm_up_height: int = setting(
        480, "Height of the camera image that the network is warmed up for", unit="px", low=0, high=8192
    )

    @property
    def is_pipelined(self) -> bool:
        """Whether to pipeline on this machine, with `auto` resolved."""
        return self.pipelined == "always" or (self.pipelined == "auto" and (os.cpu_count() or 1) >= 4)


@dataclass(frozen=True)
class MatchingConfig(Settings):
    """Selection among the network's coarse matches."""

    threshold: float = setting(0.0, "Minimum confidence of a match; 0 for the preset's value", low=0.0, high=1.0)
    border: int = setting(
        -1, "Number of cells at the image border that never match; -1 for the preset's value", low=-1, high=100
    )
    max_matches: int = setting(
        0,
        "Maximum number of matches with a keyframe, the most confident ones; 0 for the preset's value",
        low=0,
        high=100000,
    )

    @property
    def overrides(self) -> dict[str, int | float]:
        """Fields of the preset's `CoarseMatchingConfig` to replace."""
        given = {"threshold": self.threshold or None, "border": self.border, "max_matches": self.max_matches or None}
        return {name: value for name, value in given.items() if value is not None and value >= 0}


def matcher_spec(
    matcher: MatcherConfig, matching: MatchingConfig, tensorrt: TensorRTConfig | None = None
) -> MatcherSpec:
    """The matcher specified by the settings.

    Raises:
        WeightsError: the network is unknown, or the weights are missing; the message says what to do.
    """
    from loftr_ros.matcher.checkpoints.files import WeightsError, preset
    from loftr_ros.matcher.factory import MatcherSpec
    from loftr_ros.weights import find_weights

    if matcher.network != AUTO:
        preset(matcher.network)
    given = Path(matcher.weights).expanduser()
    if matcher.weights == RANDOM:
        weights = None
    elif matcher.backend not in ("onnx", "tensorrt") and not (
        matcher.backend == "openvino" and matcher.weights and given.is_dir()
    ):
        weights = find_weights(matcher.network, matcher.weights)
    elif matcher.weights:
        weights = given
    else:
        raise WeightsError(
            f"backend {matcher.backend} needs an exported network: set weights to the output of `loftr_ros export`"
        )
    return MatcherSpec(
        network=matcher.network,
        weights=weights,
        device=matcher.device,
        precision=matcher.precision,
        backend=matcher.backend,
        providers=tuple(name.strip() for name in matcher.onnx_providers.split(",") if name.strip()),
        threads=matcher.threads,
        tensorrt=tensorrt or TensorRTConfig(),
        coarse=matching.overrides,
    )
