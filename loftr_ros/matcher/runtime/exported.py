"""model.json, the description that `loftr_ros export` writes beside its graphs. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loftr_ros.matcher.checkpoints.recognition import WeightsError, config_from_metadata, metadata_of_config
from loftr_ros.matcher.config import INT8, CompactConfig, EfficientConfig, NetworkConfig

MODEL_FILE, ENCODE_FILE, MATCH_FILE = "model.json", "encode.onnx", "match.onnx"
FORMAT = "loftr_ros-onnx"
FORMAT_VERSION = 1

# Of the fine features of `compact`, in pixels.
_COMPACT_FINE_STRIDE = 2


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        config: the network; its coarse threshold and max_matches are those in the graphs.
        width, height: of its images, in pixels.
        precision: of its features, `float32` or `float16`.
        opset: of ONNX's operators.
        weights: origin of the weights, for people.
        loftr_ros_version, torch_version: that wrote it.
        fingerprint: the network's, see `Matcher.fingerprint`; empty in older files.
        fixed: whether match.onnx has a fixed number of rows, of which unused ones have confidence 0.
        int8: whether the backbone's convolutions are in 8 bits.
    """

    config: NetworkConfig
    width: int
    height: int
    precision: str
    opset: int
    weights: str
    loftr_ros_version: str
    torch_version: str
    fingerprint: str = ""
    fixed: bool = False
    int8: bool = False

    @property
    def precision_name(self) -> str:
        """The precision, for people and for names."""
        return f"{INT8} and {self.precision}" if self.int8 else self.precision

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of cells, including those that complete the last regions."""
        return self.config.grid(self.height, self.width)

    @property
    def encoded(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the outputs of `encode`; maps have their channels last."""
        config, (rows, columns) = self.config, self.grid
        if isinstance(config, CompactConfig):
            side = config.backbone.stride // _COMPACT_FINE_STRIDE
            regions = rows * columns // (config.coarse_stride // config.backbone.stride) ** 2
            return {
                "tokens": (1, regions, config.backbone.region_dim),
                "fine": (1, rows * side, columns * side, config.backbone.fine_dim),
                "cells": (1, rows, columns, config.backbone.cell_dim),
            }
        shapes: dict[str, tuple[int, ...]] = {"tokens": (1, rows * columns, config.backbone.coarse_dim)}
        if isinstance(config, EfficientConfig):
            for name, stride, channels in (
                ("fine", 2, config.backbone.fine_dim),
                ("middle", 4, config.backbone.middle_dim),
            ):
                shapes[name] = (1, -(-self.height // stride), -(-self.width // stride), channels)
            return shapes
        if config.fine is not None:
            stride = config.backbone.fine_stride
            shapes["fine"] = (1, -(-self.height // stride), -(-self.width // stride), config.backbone.fine_dim)
        return shapes

    @property
    def command(self) -> str:
        """The command that repeats the export, without the weights."""
        command = f"loftr_ros export --network {self.config.name} --width {self.width} --height {self.height}"
        command = f"{command} --precision {INT8}" if self.int8 else command
        return f"{command} --device cuda" if self.fixed else command


def write_model(exported: Exported, path: Path) -> None:
    """Write model.json."""
    content = asdict(exported)
    del content["config"]
    network = metadata_of_config(exported.config, exported.weights)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network": {
            "config_version": network["format_version"],
            "family": network["family"],
            "config": json.loads(network["config"]),
        },
        **content,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_model(folder: Path) -> Exported:
    """Read model.json of a folder.

    Raises:
        WeightsError: the folder or a file of it is missing; model.json is damaged, or of another format or version.
    """
    again = "export again: loftr_ros export --output FOLDER"
    if not folder.is_dir():
        raise WeightsError(f"{folder} is not a folder; this backend needs the folder written by `loftr_ros export`")
    missing = [name for name in (MODEL_FILE, ENCODE_FILE, MATCH_FILE) if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder} lacks {', '.join(missing)}; {again}")
    path = folder / MODEL_FILE
    try:
        content: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({error}); {again}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path} is of format {found!r}, not '{FORMAT}'; {again}")
    if content.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path} is of version {content.get('format_version')!r}; this loftr_ros reads version {FORMAT_VERSION}; "
            f"{again}"
        )
    try:
        network = content["network"]
        metadata = {"format_version": network["config_version"], "config": json.dumps(network["config"])}
        if "family" in network:  # older files, from when there was only one kind, have no entry
            metadata["family"] = network["family"]
        config = config_from_metadata(metadata)
        return Exported(
            config=config,
            width=int(content["width"]),
            height=int(content["height"]),
            precision=str(content["precision"]),
            opset=int(content["opset"]),
            weights=str(content["weights"]),
            loftr_ros_version=str(content["loftr_ros_version"]),
            torch_version=str(content["torch_version"]),
            fingerprint=str(content.get("fingerprint", "")),
            fixed=bool(content.get("fixed", False)),
            int8=bool(content.get("int8", False)),
        )
    except (KeyError, TypeError, ValueError, WeightsError) as error:
        raise WeightsError(f"{path} is damaged ({error!r}); {again}") from error
