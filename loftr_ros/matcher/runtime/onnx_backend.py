"""An exported network run by onnxruntime."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.precision import DeviceError
from loftr_ros.matcher.runtime.exported import ENCODE_FILE, MATCH_FILE, Exported
from loftr_ros.matcher.runtime.exported_matcher import ExportedMatcher, read_adjusted
from loftr_ros.matcher.runtime.tensorrt import PROVIDER, TensorRTConfig, provider_options, this_machine

CPU = torch.device("cpu")
# These use a GPU whose memory torch and onnxruntime can share.
_CUDA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_NUMPY_TYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bool: np.bool_,
    torch.int64: np.int64,
}
_TORCH_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bool)": torch.bool,
    "tensor(int64)": torch.int64,
}


def load_onnx(
    path: Path,
    providers: Sequence[str],
    device: torch.device = CPU,
    threads: int = 0,
    coarse: Mapping[str, Any] | None = None,
    tensorrt: TensorRTConfig | None = None,
) -> ExportedMatcher:
    """Open a network exported by `loftr_ros export`.

    Args:
        path: the folder.
        providers: execution providers of onnxruntime, the preferred first; operators that one does not support go to
            the next, and finally to the CPU's.
        device: the GPU of CUDA's and TensorRT's providers, where the features then stay too; with `cpu` they come back
            to the CPU after each call. Other providers ignore it.
        threads: of the CPU's provider; 0 for as many as there are cores.
        coarse: as of `read_adjusted`.
        tensorrt: settings of TensorRT's provider; None for the defaults.

    Raises:
        WeightsError: a file is missing, damaged or of another version; `coarse` asks for more than the graph has.
        DeviceError: onnxruntime is not installed; a provider is not available or does not start.
        ValueError: `coarse` has another field.
    """
    exported = read_adjusted(path, coarse)
    if PROVIDER in providers and not exported.fixed:
        raise WeightsError(f"{path} was exported for CPUs; for TensorRT export again: {exported.command} --device cuda")
    return open_graphs(exported, path / ENCODE_FILE, path / MATCH_FILE, providers, device, threads, tensorrt)


def open_graphs(
    exported: Exported,
    encode: Path,
    match: Path,
    providers: Sequence[str],
    device: torch.device = CPU,
    threads: int = 0,
    tensorrt: TensorRTConfig | None = None,
) -> ExportedMatcher:
    """Open two graphs.

    Args:
        exported: their description.
        encode, match: their files.
        providers, device, threads, tensorrt: as of `load_onnx`.

    Raises:
        WeightsError, DeviceError: as `load_onnx`.
    """
    asked = list(providers) or ["CPUExecutionProvider"]
    on_gpu = device.type == "cuda" and any(name in _CUDA_PROVIDERS for name in asked)
    place, number = device if on_gpu else CPU, device.index or 0
    config = tensorrt or TensorRTConfig()
    by_graph = PROVIDER in asked and config.cuda_graph
    if by_graph and not on_gpu:
        raise DeviceError("tensorrt.cuda_graph needs features on the GPU: device cuda, and a CUDA build of torch")
    if PROVIDER in asked and config.dla >= 0 and exported.int8:
        raise DeviceError("tensorrt.dla takes no export in int8: a DLA has no quantised graphs; export it in float16")
    sessions = []
    for path in (encode, match):
        options: dict[str, dict[str, str]] = {name: {} for name in asked}
        if "CUDAExecutionProvider" in asked:
            # TF32 would be coarser than the fp32 that scores and coordinates need.
            options["CUDAExecutionProvider"] = {"device_id": str(number), "use_tf32": "0"}
        if PROVIDER in asked:
            machine = this_machine(torch.cuda.get_device_name(device) if on_gpu else "")
            try:
                options[PROVIDER] = provider_options(config, path, exported.precision_name, machine, number)
            except OSError as error:
                raise DeviceError(
                    f"folders for TensorRT's engines cannot be made: {error}; set tensorrt.engine_cache"
                ) from error
        # onnxruntime's own fusions of int8 with float16 are wrong by half on a CPU; TensorRT has fusions of its own.
        as_written = exported.int8 and exported.precision == "float16"
        sessions.append(_Session(path, list(options.items()), threads, place, by_graph=by_graph, as_written=as_written))
    return ExportedMatcher(exported, sessions[0], sessions[1], place, "onnx")


class _Session:
    """A graph that uses torch's memory: inputs, and outputs of known shapes, are not copied.

    Several threads may run it at the same time.
    """

    def __init__(
        self,
        path: Path,
        providers: list[tuple[str, dict[str, str]]],
        threads: int,
        device: torch.device,
        *,
        by_graph: bool = False,
        as_written: bool = False,
    ) -> None:
        """Open a graph.

        With `by_graph` the provider captures a CUDA graph, which always needs the same memory. With `as_written`
        onnxruntime does not rewrite the graph.

        Raises:
            DeviceError, WeightsError: as `load_onnx`.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise DeviceError(
                f"backend onnx needs onnxruntime ({error}); pip install onnxruntime, or onnxruntime-gpu"
            ) from error
        if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 18):
            providers = [(name, {k: v for k, v in given.items() if k != "use_tf32"}) for name, given in providers]
        available = onnxruntime.get_available_providers()
        unknown = [name for name, _ in providers if name not in available]
        if unknown:
            raise DeviceError(
                f"onnxruntime {onnxruntime.__version__} has no {', '.join(unknown)} here; there are "
                f"{', '.join(available)}"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only; other messages are for authors of graphs
        options.intra_op_num_threads = threads
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Threads that spin while waiting would take the cores from torch's, and from the other graph's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the only common base of its own errors
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(f"{path} cannot be opened by onnxruntime: {first_line}; export it again") from error
        # A provider with missing libraries is omitted without an error.
        absent = [name for name, _ in providers if name not in self._session.get_providers()]
        if absent:
            raise DeviceError(
                f"{', '.join(absent)} of onnxruntime {onnxruntime.__version__} does not start here: its libraries are "
                "missing or of another version"
            )
        self.path = path
        self.inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._device = device
        self._kept: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self._lock = threading.Lock()
        if by_graph:
            shaped = [(value.name, value.shape, value.type) for value in self._session.get_inputs()]
            results = [(value.name, value.shape, value.type) for value in self._session.get_outputs()]
            inputs, outputs = (
                {name: torch.zeros(shape, dtype=_TORCH_TYPES[kind], device=device) for name, shape, kind in each}
                for each in (shaped, results)
            )
            self._kept = inputs, outputs

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None, names: Sequence[str] = ()
    ) -> list[Any]:
        """Compute into the given `outputs`; other results, listed in `names`, are returned as numpy arrays on the
        CPU.
        """
        if self._kept is not None:
            return self._run_again(self._kept, inputs, outputs or {}, names)
        binding = self._session.io_binding()
        # Kept alive until it has run: onnxruntime receives addresses only.
        held = {name: tensor.contiguous() for name, tensor in inputs.items() if name in self.inputs}
        for name, tensor in held.items():
            binding.bind_input(name, *_memory(tensor))
        for name, tensor in (outputs or {}).items():
            binding.bind_output(name, *_memory(tensor))
        for name in names:
            binding.bind_output(name, "cpu")
        on_gpu = self._device.type == "cuda"
        if on_gpu:  # wait for torch's kernels before onnxruntime reads their results
            torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        if on_gpu:
            binding.synchronize_outputs()
        return list(binding.copy_outputs_to_cpu()) if names else []

    def _run_again(
        self,
        kept: tuple[dict[str, Tensor], dict[str, Tensor]],
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        names: Sequence[str],
    ) -> list[Any]:
        """`run` in the same memory as before."""
        with self._lock:
            binding = self._session.io_binding()
            for name, place in kept[0].items():
                binding.bind_input(name, *_memory(place.copy_(inputs[name])))
            for name, place in kept[1].items():
                binding.bind_output(name, *_memory(place))
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            for name, tensor in outputs.items():
                tensor.copy_(kept[1][name])
            return [kept[1][name].cpu().numpy() for name in names]


def _memory(tensor: Tensor) -> tuple[str, int, Any, list[int], int]:
    """Address and layout of a tensor for onnxruntime's binding."""
    device = tensor.device
    return device.type, device.index or 0, _NUMPY_TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr()
