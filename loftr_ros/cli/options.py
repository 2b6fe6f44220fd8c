"""What several commands share: their options, and what is opened by them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loftr_ros.cli.errors import fail
from loftr_ros.settings import unknown

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="A folder of images (KITTI, 7-Scenes, EuRoC, TUM RGB-D or any), a video, a bag, or `rendered`.",
        show_default=False,
    ),
]
Start = Annotated[int, typer.Option(help="First frame.")]
Stop = Annotated[int | None, typer.Option(help="First frame that is left out.", show_default="the end")]
Frames = Annotated[int | None, typer.Option(help="Maximum number of frames.", show_default="all")]
Step = Annotated[int, typer.Option(help="Use every n-th frame.")]
FrameRate = Annotated[float | None, typer.Option(help="Frame rate for made-up stamps, if the recording has none.")]
Topic = Annotated[str | None, typer.Option(help="Image topic of a bag that has several.")]
RightTopic = Annotated[
    str | None, typer.Option(help="Right image topic of a bag, for --mode stereo.", show_default="by its name")
]
DepthTopic = Annotated[
    str | None, typer.Option(help="Depth image topic of a bag, for --mode rgbd.", show_default="by its name")
]
MaskTopic = Annotated[str | None, typer.Option(help="Mask topic of a bag: masks of what moves.", show_default="none")]
Masks = Annotated[
    Path | None,
    typer.Option(
        help="Folder of masks of what moves, named like the images, or by the frames' numbers.", show_default="none"
    ),
]
Camera = Annotated[Path | None, typer.Option(help="Calibration file instead of the recording's own.")]
Network = Annotated[str, typer.Option(help="Preset of the network; empty for the parameter's value.")]
Weights = Annotated[
    str,
    typer.Option(help="Weights file, a name of `weights list`, or `random`.", show_default="the first found"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; empty for the parameter's value.")]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; empty for the parameter's value.")]
ParamsFile = Annotated[Path | None, typer.Option(help="Parameter file of the node (see config/front_end.yaml).")]
NodeName = Annotated[
    str,
    typer.Option(
        "--node",
        metavar="/NS/NAME",
        help="Name of the node in --params-file.",
        show_default="/loftr_front_end",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Output folder.")]
Mode = Annotated[str, typer.Option(help="mono, stereo or rgbd; empty for the parameter's value.")]
Archive = Annotated[str, typer.Option(help="Folder or address of a keyframe archive; switches loop closure on.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Mask = Annotated[Path | None, typer.Option(help="Image of the frames' size; pixels that are 0 in it are ignored.")]


def parameters(path: Path | None, node: str = "") -> dict[str, Any]:
    """The node's parameters in a ROS parameter file, by their full names.

    Args:
        path: the file; None for none.
        node: fully qualified name of the node; empty for the one that it has by itself.
    """
    from loftr_ros.tools.params_file import NODE, ParamsFileError, node_parameters

    if path is None:
        return {}
    try:
        flat = node_parameters(existing(path), node or NODE)
    except ParamsFileError as error:
        fail(f"{error} (option --node)" if "none of them is" in str(error) else error)
    known = _known_parameters()
    for name in flat:
        # Those of ROS's own, and without ROS those of the node's inputs and outputs, mean nothing to a command.
        if (
            name not in known
            and not name.startswith(("qos_overrides.", *_of_the_node(known)))
            and name != "use_sim_time"
        ):
            typer.echo(f"{path}: {unknown('parameter', name, known)}", err=True)
    return flat


def _known_parameters() -> set[str]:
    """Full names of the parameters: the node's, or where ROS is not installed those without it."""
    from loftr_ros.settings import settings_of

    try:
        from loftr_ros.ros.parameters import Parameters
    except ImportError:
        from loftr_ros.frontend.config import FrontEndConfig
        from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig
        from loftr_ros.places.config import ArchiveConfig, LoopConfig

        flat = [name for config in (FrontEndConfig(), MatcherConfig()) for name, _, _ in settings_of(config)]
        groups = {"matching": MatchingConfig(), "archive": ArchiveConfig(), "loop": LoopConfig()}
        return {*flat, *(f"{group}.{name}" for group, config in groups.items() for name, _, _ in settings_of(config))}
    return {name for name, _, _ in settings_of(Parameters())}


def _of_the_node(known: set[str]) -> tuple[str, ...]:
    """Beginnings of the names that only the node knows, where ROS is not installed to ask it."""
    return () if "input.sync" in known else ("input.", "output.", "odometry.", "fleet.", "robot_name")


def existing(path: Path) -> Path:
    """The same path, of a parameter file that is there."""
    if not path.is_file():
        fail(f"parameter file {path} is not there")
    return path


def stop_before(start: int, stop: int | None, step: int, frames: int | None) -> int | None:
    """What --stop and --frames come to: the frame to stop before; None for the end."""
    if frames is None:
        return stop
    if frames < 1:
        fail(f"--frames {frames}: expected 1 or more")
    last = start + frames * max(step, 1)
    return last if stop is None else min(stop, last)


def named(**values: str) -> dict[str, str]:
    """Those parameters that the command line gives a value."""
    return {name: value for name, value in values.items() if value}
