"""ROS parameters, declared from the settings dataclasses with description, unit and range."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from loftr_ros.frontend.config import ConfigError, FrontEndConfig, Settings, setting

Config = TypeVar("Config")


@dataclass(frozen=True)
class MatcherParameters(Settings):
    """Which network runs, and where."""

    network: str = setting("coarse_lite", "Preset of the network")
    weights: str = setting("", "Weights file of that network")
    device: str = setting("auto", "auto (CUDA where there is one, else the CPU), cpu, cuda or cuda:N")
    precision: str = setting(
        "auto",
        "auto is float16 on CUDA, bfloat16 on CPUs that have it in hardware, float32 elsewhere",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    threads: int = setting(
        0, "CPU threads of the network; 0 for all cores, or half of them when pipelined", low=0, high=256
    )
    pipelined: str = setting(
        "auto",
        "always encodes a frame while the one before it is matched: more frames a second where there are cores for "
        "both; auto does so from four cores on",
        choices=("auto", "always", "never"),
    )
    warm_up_width: int = setting(
        640,
        "Width of the camera image that the network is warmed up for; 0 for no warm-up",
        unit="px",
        low=0,
        high=8192,
    )
    warm_up_height: int = setting(
        480, "Height of the camera image that the network is warmed up for", unit="px", low=0, high=8192
    )

    @property
    def is_pipelined(self) -> bool:
        """What `pipelined` comes to on this machine."""
        return self.pipelined == "always" or (self.pipelined == "auto" and (os.cpu_count() or 1) >= 4)


@dataclass(frozen=True)
class InputParameters(Settings):
    """How images and calibrations come in."""

    image_transport: str = setting(
        "raw",
        "raw subscribes to sensor_msgs/Image on `image`, compressed to sensor_msgs/CompressedImage on "
        "`image/compressed`",
        choices=("raw", "compressed"),
    )
    camera_info: str = setting(
        "synchronized",
        "synchronized pairs each image with the CameraInfo of its stamp; latest takes the newest CameraInfo, for "
        "drivers that publish it seldom; none does without poses",
        choices=("synchronized", "latest", "none"),
    )
    queue_size: int = setting(10, "Images and CameraInfos that wait for their partner, at most", low=1, high=1000)
    white_level: int = setting(
        65535,
        "Value of 16-bit images that counts as white (4095 for a 12-bit sensor); 0 stretches each image by its own "
        "range",
        low=0,
        high=65535,
    )


@dataclass(frozen=True)
class OutputParameters(Settings):
    """What goes out, and how often."""

    status_period: float = setting(
        1.0, "Time between two messages on ~/status and /diagnostics", unit="s", low=0.1, high=3600.0
    )
    status_window: int = setting(300, "Frames that the status's latencies are taken over", low=1, high=100000)
    error_period: float = setting(
        5.0, "Time between two log lines of the same kind of error", unit="s", low=0.0, high=3600.0
    )
    max_lines: int = setting(150, "Matches drawn on ~/matches_image, at most", low=1, high=100000)


@dataclass(frozen=True)
class Parameters:
    """Everything that the node can be told."""

    matcher: MatcherParameters = field(default_factory=MatcherParameters)
    input: InputParameters = field(default_factory=InputParameters)
    output: OutputParameters = field(default_factory=OutputParameters)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)


# The matcher's settings stand at the top, since they are what a user sets first; every other group has its name.
_TOP_LEVEL = ("matcher", "front_end")


def parameter_names(config: Any = None, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    """Every parameter's ROS name and the field it is declared from."""
    config = config or Parameters()
    names: list[tuple[str, dataclasses.Field[Any]]] = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            inner = prefix if item.name in _TOP_LEVEL else f"{prefix}{item.name}."
            names += parameter_names(value, inner)
        else:
            names.append((prefix + item.name, item))
    return names


def refusal(values: Mapping[str, Any], configured: bool) -> str:
    """Why parameters cannot be set; empty where they can, or are none of ours. rclpy checks types and ranges itself.

    Args:
        values: by parameter name.
        configured: whether the node has read its parameters already.
    """
    fields = dict(parameter_names())
    ours = {name: value for name, value in values.items() if name in fields}
    if ours and configured:
        return f"{', '.join(ours)}: read when the node is configured; clean it up, set, and configure it again"
    choices = {name: fields[name].metadata["choices"] for name in ours}
    return "; ".join(
        f"{name} is '{value}'; expected one of {', '.join(choices[name])}"
        for name, value in ours.items()
        if choices[name] and value not in choices[name]
    )


def declare(node: Node) -> None:
    """Declare every parameter on a node; rclpy then holds values against type and range by itself."""
    for name, item in parameter_names():
        node.declare_parameter(name, item.default, descriptor(item))


def descriptor(item: dataclasses.Field[Any]) -> ParameterDescriptor:
    """What `ros2 param describe` shows of a setting."""
    about = item.metadata
    unit = f" [{about['unit']}]" if about["unit"] else ""
    choices = f" (one of: {', '.join(about['choices'])})" if about["choices"] else ""
    result = ParameterDescriptor(description=f"{about['description']}{unit}{choices}")
    if about["low"] is not None and isinstance(item.default, float):
        result.floating_point_range = [
            FloatingPointRange(from_value=float(about["low"]), to_value=float(about["high"]))
        ]
    elif about["low"] is not None:
        result.integer_range = [IntegerRange(from_value=int(about["low"]), to_value=int(about["high"]), step=1)]
    return result


def read(node: Node) -> Parameters:
    """The node's parameters as typed settings.

    Raises:
        ConfigError: one is out of its choices; the message names it.
    """
    return _read(node, Parameters(), "")


def _read(node: Node, config: Config, prefix: str) -> Config:
    values: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            inner = prefix if item.name in _TOP_LEVEL else f"{prefix}{item.name}."
            values[item.name] = _read(node, value, inner)
        else:
            values[item.name] = node.get_parameter(prefix + item.name).value
    try:
        return type(config)(**values)
    except ConfigError as error:
        raise ConfigError(f"parameter {prefix}{error}") from error
