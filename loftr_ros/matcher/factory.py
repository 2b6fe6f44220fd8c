"""Creates a matcher from its specification."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from loftr_ros.matcher.build import Network
from loftr_ros.matcher.checkpoints.files import WeightsError, load_network
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.config import AUTO, INT8
from loftr_ros.matcher.interface import Matcher
from loftr_ros.matcher.precision import (
    DeviceError,
    cpu_has_int8,
    precision_name,
    resolve_device,
    resolve_precision,
    why_no_gpu,
)
from loftr_ros.matcher.runtime.exported_matcher import ExportedMatcher
from loftr_ros.matcher.runtime.gpu import CudaDevice, GpuMatcher
from loftr_ros.matcher.runtime.int8 import Int8Ranges, find_ranges, ranges_for
from loftr_ros.matcher.runtime.tensorrt import PROVIDER, TensorRTConfig

_CPU_PROVIDER, _CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
BACKENDS = ("auto", "torch", "onnx", "tensorrt", "openvino")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatcherSpec:
    """Specification of a matcher.

    Attributes:
        network: name of a preset; `auto` takes the network of the weights.
        weights: a weights file, or a folder of `loftr_ros export`; None for random weights, always the same ones, which
            match nothing.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `bfloat16`, `float16`, or `int8` for the backbone of `compact` by OpenVINO, which
            `auto` is, too, if the processor has it and the weights' ranges are there; an exported network has its own,
            which may be int8.
        backend: the runtime: `torch`, `onnx` (onnxruntime, an exported network), `tensorrt` (onnxruntime's TensorRT, a
            network exported for GPUs), `openvino` (an exported network, or `compact` by its weights); `auto` is
            OpenVINO if it is installed and suitable, else torch.
        providers: execution providers of onnxruntime, the preferred first; empty for CUDA's on a GPU, else the CPU's.
        threads: CPU threads; 0 leaves the setting unchanged.
        tensorrt: settings of TensorRT.
        coarse: fields of the preset's `CoarseMatchingConfig` to replace.
    """

    network: str
    weights: Path | None
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    providers: tuple[str, ...] = ()
    threads: int = 0
    tensorrt: TensorRTConfig = field(default_factory=TensorRTConfig)
    coarse: Mapping[str, int | float] = field(default_factory=dict)


def open_matcher(spec: MatcherSpec) -> Matcher:
    """Build a matcher, ready for inference.

    Raises:
        WeightsError: the network is unknown; the weights are missing, damaged or of another network.
        DeviceError: the device, precision or backend is not available; int8 is asked for, and nothing is in int8.
        ValueError: there is no such backend.
    """
    if spec.backend not in BACKENDS:
        raise ValueError(f"backend '{spec.backend}' is not known; expected one of {', '.join(BACKENDS)}")
    if spec.threads:
        torch.set_num_threads(spec.threads)
    device = resolve_device(spec.device)
    if spec.device == "auto" and (problem := why_no_gpu()):
        _logger.warning("the CPU computes, although there is a GPU: %s", problem)
    matcher = _opened(spec, device)
    if spec.precision == INT8 and not is_int8(matcher):
        raise DeviceError(
            f"precision '{INT8}' is for network compact: by its weights with OpenVINO on a CPU (pip install openvino), "
            f"or by `loftr_ros export --precision {INT8}`; here {backend_of(matcher)} runs {matcher.config.name} in "
            f"{precision_of(matcher)} on {matcher.device}"
        )
    return matcher


def _opened(spec: MatcherSpec, device: torch.device) -> Matcher:
    if spec.backend == "tensorrt":
        spec = replace(spec, providers=spec.providers or (PROVIDER, _CUDA_PROVIDER))
        if spec.device == "cpu" or PROVIDER not in spec.providers:
            raise DeviceError(f"backend tensorrt needs a GPU and {PROVIDER} among onnx_providers, if they are set")
    if spec.backend in ("onnx", "tensorrt"):
        return _open_onnx(spec, device)
    if spec.backend == "openvino":
        return _open_openvino(spec, device)
    dtype = resolve_precision(spec.precision, device)
    network = load_network(spec.network, spec.weights, device, dtype, coarse=spec.coarse)
    if spec.backend == "auto" and _runs_by_openvino(network):
        try:
            return _open_openvino(replace(spec, network=network.config.name), device)
        except DeviceError as error:
            if spec.precision == INT8:
                raise
            _logger.warning("torch runs the network, because OpenVINO cannot: %s", error)
    return GpuMatcher(network, CudaDevice(device)) if device.type == "cuda" else network


def backend_of(matcher: Matcher) -> str:
    """The backend of a matcher, as a value of `backend`."""
    if isinstance(matcher, ExportedMatcher):
        return matcher.backend
    from loftr_ros.matcher.runtime.openvino_compact import is_compiled

    return "openvino" if isinstance(matcher, Compact) and is_compiled(matcher) else "torch"


def precision_of(matcher: Matcher) -> str:
    """The precision of a matcher, for messages."""
    name = precision_name(matcher.dtype)
    return f"{INT8} and {name}" if is_int8(matcher) else name


def is_int8(matcher: Matcher) -> bool:
    """Whether the backbone's convolutions are computed in 8 bits."""
    if isinstance(matcher, ExportedMatcher):
        return matcher.is_int8
    from loftr_ros.matcher.runtime.openvino_compact import is_int8

    return isinstance(matcher, Compact) and is_int8(matcher)


def _open_onnx(spec: MatcherSpec, device: torch.device) -> Matcher:
    if spec.weights is None:
        raise WeightsError(
            f"backend {spec.backend} runs networks of `loftr_ros export`; only other backends have random weights"
        )
    if not spec.weights.exists():
        raise WeightsError(f"exported network {spec.weights} does not exist; `loftr_ros export` writes one")
    try:  # here, because only this backend needs onnxruntime
        from loftr_ros.matcher.runtime.onnx_backend import load_onnx
    except ImportError as error:
        raise DeviceError(
            f"backend {spec.backend} cannot be loaded ({error}); install onnxruntime, or use torch"
        ) from error
    weights, coarse = spec.weights, spec.coarse or None

    def opened(*providers: str) -> Matcher:
        opened = load_onnx(weights, providers, device, spec.threads, coarse=coarse, tensorrt=spec.tensorrt)
        return _as_asked(opened, spec)

    on_gpu, is_asked = device.type == "cuda", spec.device != "auto"
    if spec.providers:
        if on_gpu and is_asked and set(spec.providers) == {_CPU_PROVIDER}:
            raise DeviceError(
                f"device is '{spec.device}', and the only execution provider of onnxruntime is {_CPU_PROVIDER}: set "
                f"device to cpu, or onnx_providers to {_CUDA_PROVIDER}"
            )
        return opened(*spec.providers)
    if not on_gpu:
        return opened(_CPU_PROVIDER)
    try:
        return opened(_CUDA_PROVIDER)
    except DeviceError as error:
        if is_asked:
            raise DeviceError(
                f"device '{spec.device}' with backend onnx needs {_CUDA_PROVIDER}: {error}; pip install "
                "onnxruntime-gpu, or set device to cpu"
            ) from error
        _logger.warning("onnxruntime computes on the CPU, although there is a GPU: %s", error)
        return opened(_CPU_PROVIDER)


def _open_openvino(spec: MatcherSpec, device: torch.device) -> Matcher:
    """An exported network, or `compact` by its weights."""
    from loftr_ros.matcher.runtime.openvino_backend import load_openvino
    from loftr_ros.matcher.runtime.openvino_compact import compiled

    if spec.device == "auto":
        device = torch.device("cpu")
    if device.type != "cpu":
        raise DeviceError(f"backend openvino computes on the CPU; device '{spec.device}' is for torch and onnx")
    precision = resolve_precision(spec.precision, device)
    threads = spec.threads or torch.get_num_threads()
    if spec.weights is not None and spec.weights.is_dir():
        return _as_asked(load_openvino(spec.weights, precision, threads, coarse=spec.coarse or None), spec)
    network = load_network(spec.network, spec.weights, device, torch.float32, coarse=spec.coarse)
    if not isinstance(network, Compact):
        raise WeightsError(
            f"backend openvino runs network 'compact' from its weights, but '{network.config.name}' only as "
            "exported by `loftr_ros export`: give that folder as the weights"
        )
    return compiled(network, precision, threads, _ranges(spec, network))


def _ranges(spec: MatcherSpec, network: Compact) -> Int8Ranges | None:
    """The ranges for int8, if it is asked for, or `auto` on a processor that has it."""
    if spec.precision != INT8 and not (spec.precision == "auto" and cpu_has_int8()):
        return None
    find = ranges_for if spec.precision == INT8 else find_ranges
    return find(spec.weights, network.fingerprint)


def _as_asked(matcher: ExportedMatcher, spec: MatcherSpec) -> Matcher:
    if spec.network not in (AUTO, matcher.config.name):
        raise WeightsError(
            f"{spec.weights} holds network '{matcher.config.name}', not '{spec.network}'; name that network, or auto"
        )
    return matcher


def _runs_by_openvino(network: Network) -> bool:
    """Whether `auto` chooses OpenVINO: if it is faster, and installed."""
    return (
        isinstance(network, Compact)
        and network.device.type == "cpu"
        and network.dtype != torch.float16
        and importlib.util.find_spec("openvino") is not None
    )
