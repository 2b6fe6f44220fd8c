"""TensorRT by onnxruntime's provider: its options, and where engines are kept. Imports no torch when it is loaded."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from loftr_ros.matcher.config import INT8
from loftr_ros.settings import Settings, setting

PROVIDER = "TensorrtExecutionProvider"
# In the folder of the export.
_CACHE, _TIMING = "engines", "timing"
_LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer.so")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorRTConfig(Settings):
    """Backend tensorrt."""

    engine_cache: str = setting(
        "", "Folder of the engines, which take minutes to build; empty for `engines` in the folder of the export"
    )
    timing_cache: str = setting(
        "",
        "Folder of the measurements from which engines are built faster again; empty for `timing` beside the engines",
    )
    strongly_typed: bool = setting(
        True,
        "Whether every layer has the export's precision; false lets TensorRT choose float16 for layers that overflow "
        "in it",
    )
    cuda_graph: bool = setting(False, "Whether engines are captured as CUDA graphs; needs a CUDA build of torch")
    workspace: int = setting(
        1024, "Maximum memory of a layer while engines are built and run", unit="MiB", low=1, high=65536
    )
    dla: int = setting(
        -1,
        "Core of a Jetson's DLA that runs the layers it supports, in float16; -1 for none",
        low=-1,
        high=7,
    )


@dataclass(frozen=True)
class Machine:
    """What an engine depends on besides its graph.

    Attributes:
        tensorrt, driver, gpu: versions and name; "unknown" if they cannot be found.
    """

    tensorrt: str
    driver: str
    gpu: str


def this_machine(gpu: str) -> Machine:
    """This machine, with the name of its GPU; empty if torch does not know it."""
    return Machine(_tensorrt_version(), _driver_version(), gpu or _gpu_name())


def provider_options(
    config: TensorRTConfig, graph: Path, precision: str, machine: Machine, device: int
) -> dict[str, str]:
    """Options of the provider for one graph; announces that an engine is going to be built.

    An engine's folder is named by its graph and precision, TensorRT, driver and GPU: if one of them changes, another is
    built.

    Args:
        config: the settings.
        graph: file of the graph, in the folder of the export.
        precision: of the export, as `Exported.precision_name`.
        machine: where it runs.
        device: number of the GPU.

    Raises:
        OSError: the folders cannot be made.
    """
    cache = Path(config.engine_cache).expanduser() if config.engine_cache else graph.parent / _CACHE
    timing = Path(config.timing_cache).expanduser() if config.timing_cache else cache / _TIMING
    name = graph.name.strip(".").split(".")[0]
    folder = cache / engine_name(config, graph, precision, machine)
    for each in (folder, timing):
        each.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.engine")):
        _logger.warning(
            "TensorRT %s builds an engine of %s for %s, which takes minutes; it is kept in %s",
            machine.tensorrt,
            graph.name,
            machine.gpu,
            folder,
        )
    is_strict = config.strongly_typed and config.dla < 0
    return {
        "device_id": str(device),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": name,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timing),
        # Without any precision flag the provider builds a strongly typed network, int8 where the graph says so.
        "trt_fp16_enable": "0" if is_strict else "1",
        "trt_int8_enable": "1" if INT8 in precision and not is_strict else "0",
        "trt_cuda_graph_enable": "1" if config.cuda_graph else "0",
        "trt_max_workspace_size": str(config.workspace << 20),
        "trt_dla_enable": "1" if config.dla >= 0 else "0",
        "trt_dla_core": str(max(config.dla, 0)),
    }


def engine_name(config: TensorRTConfig, graph: Path, precision: str, machine: Machine) -> str:
    """Name of an engine's folder, by everything that it depends on."""
    digest = hashlib.sha256(graph.read_bytes())
    digest.update(f"{config.strongly_typed} {config.workspace} {config.dla}".encode())
    versions = f"trt{machine.tensorrt}", f"driver{machine.driver}"
    parts = digest.hexdigest()[:12], precision.replace(" and ", "-"), *versions, machine.gpu
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))


def _tensorrt_version() -> str:
    try:
        return str(importlib.import_module("tensorrt").__version__)
    except (ImportError, AttributeError):
        pass
    for name in _LIBRARIES:
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        # 8601 is 8.6.1, 101301 is 10.13.1.
        return (
            f"{number // 10000}.{number // 100 % 100}.{number % 100}"
            if number >= 100_000
            else (f"{number // 1000}.{number // 100 % 10}.{number % 100}")
        )
    return "unknown"


def _driver_version(
    files: tuple[str, ...] = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release"),
) -> str:
    for file in files:
        try:
            text = Path(file).read_text()
        except OSError:
            continue
        if found := re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", text) or re.search(r"R\d+.*?REVISION: [\d.]+", text):
            return found.group()
    return "unknown"


def _gpu_name(folder: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    for file in sorted(folder.glob("*/information")):
        if found := re.search(r"Model:\s*(.+)", file.read_text()):
            return found.group(1).strip()
    return "unknown"
