"""Precision for a device: half if its hardware supports it, full otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from loftr_ros.matcher.config import INT8
from loftr_ros.matcher.faults import gpu_problem, missing_gpu_build

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# x86: AVX512-BF16 and AMX; Arm: the bf16 extension.
_BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# x86: VNNI and AMX. Not measured on Arm, so that `auto` does not choose it there.
_INT8_CPU_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context without autocast, which training uses."""
    return torch.autocast(device.type, enabled=False) if torch.is_grad_enabled() else nullcontext()


class DeviceError(RuntimeError):
    """The requested device or precision is not available; the message says what is."""


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 in hardware; emulated, it is slower than fp32."""
    return bool(_cpu_flags(cpuinfo) & _BF16_CPU_FLAGS)


def cpu_has_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor sums products of 8-bit integers in one instruction; without, int8 gains little."""
    return bool(_cpu_flags(cpuinfo) & _INT8_CPU_FLAGS)


def _cpu_flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()[2:]}


def resolve_device(name: str) -> torch.device:
    """The torch device of a name: `auto` (CUDA where there is one that works, else the CPU), `cpu`, `cuda`, `cuda:1`.

    Raises:
        DeviceError: no such device here, or torch cannot compute on it.
    """
    if name == "auto":
        return torch.device("cpu") if why_no_gpu() or not torch.cuda.is_available() else torch.device("cuda", 0)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device '{name}' is not known; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise DeviceError(f"device '{name}' is not supported; expected auto, cpu, cuda or cuda:N")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"device '{name}' does not exist: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "use device cpu, or install a CUDA build of torch and the driver"
        )
    device = torch.device("cuda", index)
    if problem := gpu_problem(device):
        raise DeviceError(f"device '{name}' cannot be used: {problem}")
    return device


def why_no_gpu() -> str:
    """Why device `auto` is the CPU although the machine has a GPU; empty if it is not, or if there is none."""
    return gpu_problem(torch.device("cuda", 0)) if torch.cuda.is_available() else missing_gpu_build()


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision's name on a device.

    Args:
        name: `float32`, `bfloat16`, `float16`, or `auto`: fp16 on CUDA, bf16 on a CPU that has it in hardware, fp32
            elsewhere. Of `int8`, which not every runtime has, the dtype of what is not in 8 bits.
        device: where it will run.

    Raises:
        DeviceError: the name is unknown, or the device does not support the precision.
    """
    if name in ("auto", INT8):
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    if name not in PRECISIONS:
        raise DeviceError(f"precision '{name}' is not known; expected auto, {', '.join((*PRECISIONS, INT8))}")
    return PRECISIONS[name]


def precision_name(dtype: torch.dtype) -> str:
    """The name of a dtype for `resolve_precision`."""
    return str(dtype).removeprefix("torch.")
