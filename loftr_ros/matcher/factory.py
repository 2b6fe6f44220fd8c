"""One place that turns what is wanted of a matcher into a matcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from loftr_ros.matcher.checkpoint import AUTO, WeightsError, load_network
from loftr_ros.matcher.interface import Matcher
from loftr_ros.matcher.precision import DeviceError, resolve_device, resolve_precision


@dataclass(frozen=True)
class MatcherSpec:
    """What is wanted.

    Attributes:
        network: name of a preset; `auto` takes the one that the weights are of.
        weights: a weights file, or for the ONNX backend what `loftr_ros export` wrote; None for random weights, always
            the same ones, which match nothing.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `bfloat16` or `float16`; an exported network has one of its own.
        backend: `torch` or `onnx`.
        providers: execution providers of onnxruntime, the preferred first; empty for the CPU's.
        threads: CPU threads; 0 leaves them as they are.
        coarse: fields of the preset's `CoarseMatchingConfig` to replace.
    """

    network: str
    weights: Path | None
    device: str = "auto"
    precision: str = "auto"
    backend: str = "torch"
    providers: tuple[str, ...] = ()
    threads: int = 0
    coarse: Mapping[str, int | float] = field(default_factory=dict)


def open_matcher(spec: MatcherSpec) -> Matcher:
    """Build the matcher, ready to infer.

    Raises:
        WeightsError: the network is not known; the weights are missing, damaged or of another network.
        DeviceError: the device, precision or backend is not to be had.
        ValueError: there is no such backend.
    """
    if spec.threads:
        torch.set_num_threads(spec.threads)
    device = resolve_device(spec.device)
    if spec.backend == "onnx":
        return _open_onnx(spec, device)
    if spec.backend != "torch":
        raise ValueError(f"backend '{spec.backend}' is not known; expected torch or onnx")
    dtype = resolve_precision(spec.precision, device)
    return load_network(spec.network, spec.weights, device, dtype, coarse=spec.coarse)


def _open_onnx(spec: MatcherSpec, device: torch.device) -> Matcher:
    if spec.weights is None:
        raise WeightsError("backend onnx runs what `loftr_ros export` wrote; random weights are for backend torch")
    if not spec.weights.exists():
        raise WeightsError(f"exported network {spec.weights} is not there; `loftr_ros export` writes one")
    try:  # here, since onnxruntime is needed by this backend alone
        from loftr_ros.matcher.onnx_backend import load_onnx
    except ImportError as error:
        raise DeviceError(f"backend onnx cannot be loaded ({error}); install onnxruntime, or use torch") from error
    providers = spec.providers or ("CPUExecutionProvider",)
    matcher: Matcher = load_onnx(spec.weights, providers, device, spec.threads, coarse=spec.coarse or None)
    if spec.network not in (AUTO, matcher.config.name):
        raise WeightsError(
            f"{spec.weights} holds network '{matcher.config.name}', not '{spec.network}'; name that network, or auto"
        )
    return matcher
