"""`loftr_ros export`: a network as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.errors import fail

_RANDOM = "random"


def export(
    network: Annotated[str, typer.Option(help="Preset of the network; auto for the network of the weights.")] = "auto",
    weights: Annotated[
        str,
        typer.Option(help="Weights file, a name of `weights list`, or `random`.", show_default="the first found"),
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder.", show_default="NETWORK_WIDTHxHEIGHT")
    ] = None,
    width: Annotated[int, typer.Option(help="Width of the images, in pixels.")] = 640,
    height: Annotated[int, typer.Option(help="Height of the images, in pixels.")] = 480,
    precision: Annotated[
        str,
        typer.Option(
            help="float32, float16, or int8 for the backbone of compact beside float32 (--device cuda: float16)."
        ),
    ] = "float32",
    threshold: Annotated[
        float | None, typer.Option(help="Minimum confidence of a match, 0 to 1.", show_default="the network's")
    ] = None,
    max_matches: Annotated[
        int | None, typer.Option(help="Maximum number of matches of a pair; 0 for all.", show_default="the network's")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="Device that the graphs are for: cpu, or cuda for shapes that are all fixed, as TensorRT needs."
        ),
    ] = "cpu",
    build_engine: Annotated[
        bool, typer.Option("--build-engine", help="Also build TensorRT's engines for this machine; for --device cuda.")
    ] = False,
    engine_cache: Annotated[
        str, typer.Option(help="Folder of the engines.", show_default="engines in the output folder")
    ] = "",
    opset: Annotated[
        int, typer.Option(help="Version of ONNX's operators.", show_default="17, or 19 if int8 needs it")
    ] = 0,
) -> None:
    """Write a network as ONNX, for images of one size: encode.onnx, match.onnx and model.json."""
    import torch

    from loftr_ros.matcher.checkpoints.files import WeightsError, load_network
    from loftr_ros.matcher.config import INT8
    from loftr_ros.matcher.precision import DeviceError, resolve_precision
    from loftr_ros.matcher.runtime.export import ExportError, build_engines, export_network
    from loftr_ros.matcher.runtime.int8 import ranges_for
    from loftr_ros.weights import find_weights

    asked = {"max_matches": max_matches, "threshold": threshold}
    coarse = {name: value for name, value in asked.items() if value is not None}
    if device not in ("cpu", "cuda") or (build_engine and device != "cuda"):
        fail(DeviceError(f"device is '{device}'; expected cpu or cuda, and cuda with --build-engine"))
    if precision not in ("float32", "float16", INT8):
        fail(f"precision is '{precision}'; expected float32, float16 or {INT8}")
    rest = precision if precision != INT8 else "float16" if device == "cuda" else "float32"
    try:
        path = None if weights == _RANDOM else find_weights(network, weights)
        here = torch.device("cpu")
        model = load_network(network, path, here, resolve_precision(rest, here), coarse=coarse)
        folder = output or Path(f"{model.config.name}_{width}x{height}")
        exported = export_network(
            model,
            folder,
            width,
            height,
            weights=_RANDOM if path is None else path.name,
            opset=opset,
            fixed=device == "cuda",
            int8=ranges_for(path, model.fingerprint) if precision == INT8 else None,
        )
        if build_engine:
            build_engines(folder, engine_cache)
    except (DeviceError, ExportError, WeightsError) as error:
        fail(error)
    size = sum(file.stat().st_size for file in folder.glob("*.onnx")) / 1e6
    typer.echo(
        f"{folder}: network {exported.config.name}, weights {exported.weights}, images of {width}x{height}, "
        f"{exported.precision_name}, opset {exported.opset}, {size:.1f} MB; checked by onnx and onnxruntime"
    )
