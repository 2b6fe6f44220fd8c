"""OpenVINO on torch's memory, shared by all graphs that it runs here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from loftr_ros.matcher.precision import DeviceError, precision_name

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_CAPABILITIES = {torch.float32: "FP32", torch.bfloat16: "BF16", torch.float16: "FP16"}
_one_at_a_time = threading.Lock()


def openvino_module() -> Any:
    """The package.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise DeviceError(f"backend openvino needs openvino ({error}); pip install openvino") from error
    return openvino


@cache
def _core() -> Any:
    """The only core of this process; it is never closed.

    Each core gives the thread that opens it an alternate stack for signals, and takes it away when it is closed. If the
    first of two is closed first, the second puts the first one's stack back, which no longer exists. The next signal
    that Python handles (Ctrl-C, or a child process that ends) then kills the process.
    """
    return openvino_module().Core()


class Runtime:
    """OpenVINO's CPU device, in one precision."""

    def __init__(self, precision: torch.dtype, threads: int) -> None:
        """Start it.

        Args:
            precision: of the graphs' computation; inputs and outputs have their own.
            threads: 0 for as many as there are cores.

        Raises:
            DeviceError: OpenVINO is not installed, or does not support the precision on this processor.
        """
        self._openvino = openvino_module()
        with _one_at_a_time:
            self.core = _core()
        offered = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _CAPABILITIES[precision] not in offered:
            raise DeviceError(
                f"OpenVINO does not compute {precision_name(precision)} on this processor; it has {', '.join(offered)}"
            )
        self.precision = precision
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # Each graph would pin its threads to the first cores, even if another graph or torch works there.
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = threads

    def compile(self, model: Any) -> Graph:
        """A graph that is ready to run."""
        return Graph(self._openvino, self.core.compile_model(model, "CPU", self._options))


class Graph:
    """A compiled graph. Several threads may run it at a time."""

    def __init__(self, openvino: Any, compiled: Any) -> None:
        self._openvino, self._compiled = openvino, compiled
        self._types = {torch.bfloat16: openvino.Type.bf16}
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(
        self, inputs: Mapping[Any, Tensor], outputs: Mapping[Any, Tensor] | None = None, names: Sequence[Any] = ()
    ) -> list[Any]:
        """Compute. Neither inputs nor `outputs` are copied.

        Args:
            inputs: by name or number, of the graph's types and shapes.
            outputs: buffers for results of known shapes, by name or number.
            names: of further results, of any shape, returned as numpy arrays.
        """
        try:
            request = self._free.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        held = [tensor.contiguous() for tensor in inputs.values()]  # kept alive while it runs
        for name, tensor in zip(inputs, held, strict=True):
            request.set_tensor(self._compiled.input(name), self._shared(tensor))
        for name, tensor in (outputs or {}).items():
            request.set_tensor(self._compiled.output(name), self._shared(tensor))
        request.infer()
        found = [request.get_tensor(self._compiled.output(name)).data.copy() for name in names]
        self._free.put(request)
        return found

    def _shared(self, tensor: Tensor) -> Any:
        """An OpenVINO tensor in torch's memory."""
        if tensor.dtype in self._types:  # numpy does not have it
            bits = tensor.view(torch.int16).numpy()
            return self._openvino.Tensor(bits, list(tensor.shape), self._types[tensor.dtype])
        return self._openvino.Tensor(tensor.numpy(), shared_memory=True)
