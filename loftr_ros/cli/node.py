"""`loftr_ros node`: the node without `ros2 launch`."""

from __future__ import annotations

import typer

from loftr_ros.cli.options import (
    Device,
    Network,
    ParamsFile,
    Precision,
    Weights,
    existing,
)


def node(
    context: typer.Context,
    network: Network = "",
    weights: Weights = "",
    device: Device = "",
    precision: Precision = "",
    params_file: ParamsFile = None,
) -> None:
    """Run the node without `ros2 launch` and activate it. ROS arguments are passed on (`--ros-args -r ...`)."""
    from loftr_ros.ros.node import main as run_node

    arguments = ["loftr_ros", "--ros-args"]
    if params_file is not None:
        arguments += ["--params-file", str(existing(params_file))]
    for name, value in (("network", network), ("weights", weights), ("device", device), ("precision", precision)):
        if value:
            arguments += ["-p", f"{name}:={value}"]
    extra = list(context.args)
    arguments += extra[1:] if extra[:1] == ["--ros-args"] else ["--", *extra] if extra else []
    raise typer.Exit(run_node(arguments, autostart=True))
