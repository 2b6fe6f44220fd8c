"""An exported network run by onnxruntime."""

from __future__ import annotations

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

CPU = torch.device("cpu")
# These use a GPU whose memory torch and onnxruntime can share.
_CUDA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_NUMPY_TYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bool: np.bool_,
}


def load_onnx(
    path: Path,
    providers: Sequence[str],
    device: torch.device = CPU,
    threads: int = 0,
    coarse: Mapping[str, Any] | None = None,
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

    Raises:
        WeightsError: a file is missing, damaged or of another version; `coarse` asks for more than the graph has.
        DeviceError: onnxruntime is not installed; a provider is not available or does not start.
        ValueError: `coarse` has another field.
    """
    exported = read_adjusted(path, coarse)
    return open_graphs(exported, path / ENCODE_FILE, path / MATCH_FILE, providers, device, threads)


def open_graphs(
    exported: Exported,
    encode: Path,
    match: Path,
    providers: Sequence[str],
    device: torch.device = CPU,
    threads: int = 0,
) -> ExportedMatcher:
    """Open two graphs.

    Args:
        exported: their description.
        encode, match: their files.
        providers, device, threads: as of `load_onnx`.

    Raises:
        WeightsError, DeviceError: as `load_onnx`.
    """
    asked = list(providers) or ["CPUExecutionProvider"]
    on_gpu = device.type == "cuda" and any(name in _CUDA_PROVIDERS for name in asked)
    options = [{"device_id": str(device.index or 0)} if on_gpu and name in _CUDA_PROVIDERS else {} for name in asked]
    place = device if on_gpu else CPU
    chosen = list(zip(asked, options, strict=True))
    sessions = [_Session(path, chosen, threads, place) for path in (encode, match)]
    return ExportedMatcher(exported, sessions[0], sessions[1], place, "onnx")


class _Session:
    """A graph that uses torch's memory: inputs, and outputs of known shapes, are not copied.

    Several threads may run it at the same time.
    """

    def __init__(
        self, path: Path, providers: list[tuple[str, dict[str, str]]], threads: int, device: torch.device
    ) -> None:
        """Open a graph.

        Raises:
            DeviceError, WeightsError: as `load_onnx`.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise DeviceError(
                f"backend onnx needs onnxruntime ({error}); pip install onnxruntime, or onnxruntime-gpu"
            ) from error
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

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None, names: Sequence[str] = ()
    ) -> list[Any]:
        """Compute into the given `outputs`; other results, listed in `names`, are returned as numpy arrays on the
        CPU.
        """
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


def _memory(tensor: Tensor) -> tuple[str, int, Any, list[int], int]:
    """Address and layout of a tensor for onnxruntime's binding."""
    device = tensor.device
    return device.type, device.index or 0, _NUMPY_TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr()
