"""Export of a network to ONNX: `encode.onnx`, `match.onnx`, and the description `model.json`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loftr_ros.matcher.build import Network
from loftr_ros.matcher.config import AUTO
from loftr_ros.matcher.factory import MatcherSpec, open_matcher
from loftr_ros.matcher.precision import precision_name
from loftr_ros.matcher.runtime.export_check import DisagreementError, check_export, made_images
from loftr_ros.matcher.runtime.exported import ENCODE_FILE, MATCH_FILE, MODEL_FILE, Exported, write_model
from loftr_ros.matcher.runtime.graphs import EncodeGraph, MatchGraph
from loftr_ros.matcher.runtime.int8 import Int8Ranges
from loftr_ros.matcher.runtime.int8_onnx import HALF_OPSET, quantise_graph
from loftr_ros.matcher.runtime.tensorrt import TensorRTConfig

# 17 introduced LayerNorm. torch 2.2 writes up to 17 by its TorchScript-based exporter, later versions up to 20.
OPSETS = range(16, 21)
DEFAULT_OPSET = 17
_MATCH_OUTPUTS = ("cell0", "cell1", "points0", "points1", "confidence", "std")


class ExportError(RuntimeError):
    """A network that cannot be exported; the message says why."""


def export_network(
    network: Network,
    folder: Path,
    width: int,
    height: int,
    *,
    weights: str,
    opset: int = 0,
    fixed: bool = False,
    int8: Int8Ranges | None = None,
) -> Exported:
    """Write a network for images of one size.

    Args:
        network: prepared, in float32 or float16, on the CPU or a GPU.
        folder: created if missing. The export is checked first and written atomically: model.json comes last. If it
            fails, an earlier export stays.
        width, height: of the images, in pixels; at least one cell each.
        weights: origin of the weights, for people.
        opset: version of ONNX's operators; 0 for DEFAULT_OPSET, or what int8 needs.
        fixed: all shapes are fixed, for GPUs and TensorRT: unused rows of matches have confidence 0. Else the number of
            matches varies, which is less work on a CPU.
        int8: ranges for the convolutions of `compact`'s backbone in 8 bits: signed and symmetric with `fixed`, as
            TensorRT needs, else unsigned, which is more accurate.

    Returns:
        The contents of model.json.

    Raises:
        ExportError: the size, precision or opset is not supported; torch cannot compute the precision here, or fails at
            the export; the package onnx or onnxruntime is missing; the graphs are invalid, or their results differ from
            the network's (see `check_export`); the folder cannot be written.
        WeightsError: the ranges are of another network.
    """
    cell = network.cell_size
    if min(width, height) < cell:
        raise ExportError(f"images of {width}x{height}: expected sides of at least a cell, {cell} px")
    if network.dtype not in (torch.float32, torch.float16):
        raise ExportError(f"precision {precision_name(network.dtype)} is not exported; float32 and float16 are")
    least = HALF_OPSET if int8 is not None and network.dtype == torch.float16 else OPSETS[0]
    opset = opset or max(DEFAULT_OPSET, least)
    if opset not in OPSETS or opset < least:
        raise ExportError(f"opset {opset} is not supported; expected {least} to {OPSETS[-1]}")
    exported = Exported(
        config=network.config,
        width=width,
        height=height,
        precision=precision_name(network.dtype),
        opset=opset,
        weights=weights,
        loftr_ros_version=importlib.metadata.version("loftr_ros"),
        torch_version=torch.__version__,
        fingerprint=network.fingerprint,
        fixed=fixed,
        int8=int8 is not None,
    )
    for package, what in (("onnx", "torch writes ONNX with"), ("onnxruntime", "an export is checked by")):
        if importlib.util.find_spec(package) is None:
            raise ExportError(f"{what} the package {package}, which is not installed; pip install {package}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _export_graphs(network, folder, exported)
        if int8 is not None:
            quantise_graph(_part(folder / ENCODE_FILE), int8, symmetric=fixed)
        check_export(network, exported, *(_part(folder / name) for name in (ENCODE_FILE, MATCH_FILE)))
        write_model(exported, _part(folder / MODEL_FILE))
        (folder / MODEL_FILE).unlink(missing_ok=True)
        for name in (ENCODE_FILE, MATCH_FILE, MODEL_FILE):
            _part(folder / name).replace(folder / name)
    except DisagreementError as error:
        raise ExportError(
            f"{network.config.name} in {exported.precision_name} for {width}x{height}, opset {opset}, by torch "
            f"{torch.__version__}: {error}. Nothing was written; try another opset, precision or torch"
        ) from error
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {error}") from error
    finally:
        for name in (MODEL_FILE, ENCODE_FILE, MATCH_FILE):
            with suppress(OSError):
                _part(folder / name).unlink(missing_ok=True)
    return exported


def build_engines(folder: Path, engine_cache: str) -> None:
    """Build TensorRT's engines of an export for this machine, and run them once.

    Args:
        folder: of `export_network`, with `fixed`.
        engine_cache: as of `TensorRTConfig`.

    Raises:
        DeviceError: TensorRT's provider cannot be had here.
        WeightsError: it refuses the graphs.
    """
    spec = MatcherSpec(AUTO, folder, backend="tensorrt", tensorrt=TensorRTConfig(engine_cache))
    matcher = open_matcher(spec)
    assert matcher.fixed_size is not None
    keyframe, current = (matcher.encode(image) for image in made_images(*matcher.fixed_size))
    matcher.match([keyframe], current)


@torch.no_grad()
def _export_graphs(network: Network, folder: Path, exported: Exported) -> None:
    grid, device = exported.grid, network.device
    outputs = list(exported.encoded)
    encode = EncodeGraph(network)
    match = MatchGraph(network, grid, (exported.width, exported.height), tuple(outputs), fixed=exported.fixed)
    image = torch.rand(1, 1, exported.height, exported.width, device=device)
    usable = torch.ones(1, grid[0] * grid[1], dtype=torch.bool, device=device)
    try:  # also creates the networks' cached constants, which the exporter would otherwise treat as computed
        features = dict(zip(outputs, encode(image, usable), strict=True))
    except RuntimeError as error:
        raise _not_exported(encode, error) from error
    _export(encode, (image, usable), _part(folder / ENCODE_FILE), ["image", "usable"], outputs, (), exported.opset)
    # Separate tensors: the same one twice would become one input.
    inputs = {}
    for name in ("tokens", "usable", "allowed", *outputs[1:]):
        for i in (0, 1):
            inputs[f"{name}{i}"] = features.get(name, usable).clone()
    examples = tuple(inputs.values())
    try:
        match(*examples)
    except RuntimeError as error:
        raise _not_exported(match, error) from error
    part = _part(folder / MATCH_FILE)
    _export(
        match, examples, part, list(inputs), _MATCH_OUTPUTS, () if exported.fixed else _MATCH_OUTPUTS, exported.opset
    )


def _export(
    graph: nn.Module,
    examples: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    by_match: Sequence[str],
    opset: int,
) -> None:
    """Write one graph; the outputs `by_match` have one row per match, in a variable number."""
    options: dict[str, Any] = {
        "input_names": list(inputs),
        "output_names": list(outputs),
        "dynamic_axes": {name: {0: "matches"} for name in by_match},
        "opset_version": opset,
    }
    # The TorchScript-based exporter is in every torch from 2.2 on and needs no other package. Before 2.5 it was the
    # only one and had no name.
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False
    try:
        with warnings.catch_warnings():
            # Shapes are meant to become constants, and the exporter is deliberately the older one.
            warnings.simplefilter("ignore")
            torch.onnx.export(graph.eval(), examples, str(path), **options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _not_exported(graph, error) from error


def _not_exported(graph: nn.Module, error: Exception) -> ExportError:
    """torch's error in a line, with advice if half precision is the cause."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    advice = ""
    if "Half" in first_line:
        advice = "; this torch does not compute float16 on the CPU: export on a GPU, by a newer torch, or as float32"
    return ExportError(f"{type(graph).__name__} cannot be exported by torch {torch.__version__}: {first_line}{advice}")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
