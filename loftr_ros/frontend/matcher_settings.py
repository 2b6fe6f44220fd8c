"""The user's settings of the matcher, from parameters or options, and the matcher that they specify."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loftr_ros.matcher.config import AUTO, PRESETS
from loftr_ros.settings import Settings, setting

if TYPE_CHECKING:  # imports torch, which the node loads only when it is configured
    from loftr_ros.matcher.factory import MatcherSpec

RANDOM = "random"


@dataclass(frozen=True)
class MatcherConfig(Settings):
    """Choice of the network and its runtime."""

    network: str = setting(
        AUTO, f"Preset of the network: {', '.join(PRESETS)}; auto is the one that the weights are of, compact without"
    )
    weights: str = setting(
        "",
        "Weights file of that network, or a name of `loftr_ros weights list`; empty for those in the package (compact) "
        "or else the first found; random for weights that match nothing; with backend onnx or openvino what "
        "`loftr_ros export` wrote",
    )
    device: str = setting("auto", "auto (CUDA where there is one, else the CPU), cpu, cuda or cuda:N")
    precision: str = setting(
        "auto",
        "auto is float16 on CUDA, bfloat16 on CPUs that have it in hardware, float32 elsewhere",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    backend: str = setting(
        "auto",
        "What runs the network: torch (PyTorch), onnx (onnxruntime, an exported one), openvino (an exported one, or "
        "compact by its weights); auto is openvino for compact on a CPU where it is installed, else torch",
        choices=("auto", "torch", "onnx", "openvino"),
    )
    onnx_providers: str = setting(
        "",
        "Execution providers of backend onnx, the preferred first, with commas between; empty for CUDA's where device "
        "is a GPU, else the CPU's",
    )
    threads: int = setting(
        0, "CPU threads of the network; 0 for all cores, or half of them when pipelined", low=0, high=256
    )
    pipelined: str = setting(
        "auto",
        "always encodes a frame while the one before it is matched: more frames a second where there are cores for "
        "both; auto does so from four cores on",
        choices=("auto", "always", "never"),
    )
    warm_up_width: int = setting(
        640,
        "Width of the camera image that the network is warmed up for; 0 for no warm-up",
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
    """Selection of the network's coarse matches."""

    threshold: float = setting(0.0, "Least confidence of a match; 0 for the preset's", low=0.0, high=1.0)
    border: int = setting(-1, "Cells at the rim of the image that never match; -1 for the preset's", low=-1, high=100)
    max_matches: int = setting(
        0, "Matches with a keyframe, at most, the most confident ones; 0 for the preset's", low=0, high=100000
    )

    @property
    def overrides(self) -> dict[str, int | float]:
        """Fields of the preset's `CoarseMatchingConfig` to replace."""
        given = {"threshold": self.threshold or None, "border": self.border, "max_matches": self.max_matches or None}
        return {name: value for name, value in given.items() if value is not None and value >= 0}


def matcher_spec(matcher: MatcherConfig, matching: MatchingConfig) -> MatcherSpec:
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
    elif matcher.backend != "onnx" and not (matcher.backend == "openvino" and matcher.weights and given.is_dir()):
        weights = find_weights(matcher.network, matcher.weights)
    elif matcher.weights:
        weights = given
    else:
        raise WeightsError("backend onnx needs an exported network: set weights to the output of `loftr_ros export`")
    return MatcherSpec(
        network=matcher.network,
        weights=weights,
        device=matcher.device,
        precision=matcher.precision,
        backend=matcher.backend,
        providers=tuple(name.strip() for name in matcher.onnx_providers.split(",") if name.strip()),
        threads=matcher.threads,
        coarse=matching.overrides,
    )
