"""What may be wrong with a GPU: unusable from the start, out of memory, or lost."""

from __future__ import annotations

from pathlib import Path

import torch

# Of torch before 2.5, the second.
_OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
# In messages of torch and onnxruntime, which have no type for it. After these the process cannot use the GPU any more.
_LOST = ("CUDA error", "CUDA failure", "CUDNN_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_EXECUTION_FAILED")
_NO_MEMORY = ("out of memory", "failed to allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out."""
    if isinstance(error, _OUT_OF_MEMORY):
        return True
    return isinstance(error, RuntimeError) and any(each.lower() in str(error).lower() for each in _NO_MEMORY)


def is_lost(error: BaseException) -> bool:
    """Whether a process has lost its GPU: every further call fails, until the process is restarted."""
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and any(each in str(error) for each in _LOST)


def gpu_problem(device: torch.device) -> str:
    """Why torch cannot compute on a CUDA device, after trying; empty if it can."""
    try:
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        architectures = torch.cuda.get_arch_list()
        if not _is_built_for(architectures, capability):
            return (
                f"torch {torch.__version__} is built for {', '.join(architectures)}, not for {name} "
                f"(sm_{capability[0]}{capability[1]}); install a build for it"
            )
        square = torch.full((16, 16), 0.5, device=device)
        if float((square @ square).sum()) != 1024.0:
            return f"{name} multiplies matrices wrongly; check the driver and the memory"
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for a GPU
        return f"a first kernel fails: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return ""


def missing_gpu_build(
    release: Path = Path("/etc/nv_tegra_release"), model: Path = Path("/proc/device-tree/model")
) -> str:
    """What to do if this is a Jetson whose torch has no CUDA; empty for other machines."""
    try:
        is_jetson = release.exists() or "jetson" in model.read_text(errors="ignore").lower()
    except OSError:
        is_jetson = False
    if not is_jetson or torch.version.cuda is not None:
        return ""
    return (
        f"this is a Jetson, and torch {torch.__version__} is built for CPUs only: install NVIDIA's wheel for this "
        "JetPack (docs/jetson.md)"
    )


def _is_built_for(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether kernels of a build run on a device: of the same major version and not newer, or compiled when loaded."""
    for each in architectures:
        kind, _, number = each.partition("_")
        digits = number.rstrip("af")  # sm_90a, sm_100f
        if not digits.isdigit():
            continue
        built = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1] and number == digits:
            return True
        if kind == "compute" and built <= capability:
            return True
    return not architectures
