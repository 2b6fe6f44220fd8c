"""`loftr_ros back-end`: the back end's node without `ros2 launch`."""

from __future__ import annotations

from typing import Annotated

import typer

from loftr_ros.cli.options import ParamsFile, existing


def back_end(
    context: typer.Context,
    map_file: Annotated[str, typer.Option(help="File of the map: loaded if it exists, written at the end.")] = "",
    params_file: ParamsFile = None,
) -> None:
    """Run the back end's node without `ros2 launch` and activate it. ROS arguments are passed on (`--ros-args`)."""
    from loftr_ros.ros.back_end.node import main as run_node

    arguments = ["loftr_ros", "--ros-args"]
    if params_file is not None:
        arguments += ["--params-file", str(existing(params_file))]
    if map_file:
        arguments += ["-p", f"map_file:='{map_file}'"]
    extra = list(context.args)
    arguments += extra[1:] if extra[:1] == ["--ros-args"] else ["--", *extra] if extra else []
    raise typer.Exit(run_node(arguments, autostart=True))
