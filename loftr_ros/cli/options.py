"""Options that several commands share, and what is opened by them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from loftr_ros.cli.errors import fail
from loftr_ros.settings import unknown

if TYPE_CHECKING:  # they import much that a command needs later or never
    from loftr_ros.backend.config import BackEndConfig
    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.recordings import Source
    from loftr_ros.recordings.reading import FrameReader

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
Precision = Annotated[
    str, typer.Option(help="auto, float32, bfloat16, float16 or int8; empty for the parameter's value.")
]
ParamsFile = Annotated[Path | None, typer.Option(help="Parameter file of the node (see config/front_end.yaml).")]
BackEndParamsFile = Annotated[
    Path | None,
    typer.Option(help="Parameter file of the back end (see config/back_end.yaml), for --optimise."),
]
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
MinMatches = Annotated[
    int,
    typer.Option(
        help="Number of matches of a pair below which compact takes more effort, see docs/matcher.md; 0 for never.",
        min=0,
        max=100000,
    ),
]
# As `WideConfig` has it, which is not imported to start a command.
MIN_MATCHES = 1900
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Mask = Annotated[Path | None, typer.Option(help="Image of the frames' size; pixels that are 0 in it are ignored.")]


@dataclass(frozen=True)
class RecordingOptions:
    """How to read a recording."""

    start: Start = 0
    stop: Stop = None
    frames: Frames = None
    step: Step = 1
    frame_rate: FrameRate = None
    topic: Topic = None
    right_topic: RightTopic = None
    depth_topic: DepthTopic = None
    mask_topic: MaskTopic = None
    masks: Masks = None
    camera: Camera = None

    def open(self, source: str) -> Source:
        """Open a recording.

        Raises:
            SourceError: it cannot be read.
        """
        from loftr_ros.recordings import open_source

        return open_source(
            source,
            start=self.start,
            stop=stop_before(self.start, self.stop, self.step, self.frames),
            step=self.step,
            rate=self.frame_rate,
            topic=self.topic,
            right_topic=self.right_topic,
            depth_topic=self.depth_topic,
            mask_topic=self.mask_topic,
            masks=self.masks,
            camera=self.camera,
        )


@dataclass(frozen=True)
class FrontEndOptions:
    """Parameters of the front end, from a file and the command line."""

    network: Network = ""
    weights: Weights = ""
    device: Device = ""
    precision: Precision = ""
    params_file: ParamsFile = None
    node: NodeName = ""
    mask: Mask = None
    mode: Mode = ""

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        """Parameters by their full names; the command line replaces the file's values."""
        return parameters(self.params_file, self.node) | named(
            mode=self.mode, network=self.network, weights=self.weights
        )

    def open(self) -> tuple[FrontEnd, FrameReader]:
        """The front end, and the reader that makes its frames.

        Raises:
            ConfigError, DeviceError, MaskError, WeightsError: an option or parameter cannot be used.
        """
        from loftr_ros.tools.opening import open_offline

        return open_offline(self.values, self.device, self.precision, self.mask)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Show typer the options of a command one by one, where a parameter is one of the dataclasses above."""
    groups: dict[str, Any] = {name: kind for name, kind in get_type_hints(command).items() if is_dataclass(kind)}
    hints = get_type_hints(command, include_extras=True)
    shown: list[inspect.Parameter] = []

    def show(name: str, default: object, hint: object) -> None:
        shown.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))

    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            show(name, parameter.default, hints[name])
            continue
        options = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            show(field.name, field.default, options[field.name])

    @functools.wraps(command)
    def called(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    called.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in shown}
    return called


def parameters(path: Path | None, node: str = "") -> dict[str, Any]:
    """The node's parameters in a ROS parameter file, by their full names.

    Args:
        path: the file; None for no parameters.
        node: fully qualified name of the node; empty for its default name.
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
        # Commands ignore ROS's own parameters, and the node's inputs and outputs if ROS is not installed.
        if (
            name not in known
            and not name.startswith(("qos_overrides.", *_of_the_node(known)))
            and name != "use_sim_time"
        ):
            typer.echo(f"{path}: {unknown('parameter', name, known)}", err=True)
    return flat


def back_end_config(path: Path | None) -> BackEndConfig:
    """The back end's settings in a ROS parameter file of its node; the defaults without one."""
    from loftr_ros.backend.config import BackEndConfig
    from loftr_ros.ros.back_end.parameters import BackEndParameters
    from loftr_ros.settings import ConfigError, settings_of, with_values
    from loftr_ros.tools.params_file import node_parameters

    if path is None:
        return BackEndConfig()
    known = {name for name, _, _ in settings_of(BackEndParameters())}
    try:
        flat = node_parameters(existing(path), "/loftr_back_end")
        config = with_values(BackEndConfig(), flat)
    except ConfigError as error:
        fail(f"{path}: {error}" if str(path) not in str(error) else error)
    for name in flat:
        if name not in known and not name.startswith("qos_overrides.") and name != "use_sim_time":
            typer.echo(f"{path}: {unknown('parameter', name, known)}", err=True)
    return config


def _known_parameters() -> set[str]:
    """Full names of the node's parameters; without ROS, of those that need no ROS."""
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
    """Prefixes of the names that only the node knows; empty if ROS is installed."""
    return () if "input.sync" in known else ("input.", "output.", "odometry.", "fleet.", "robot_name")


def existing(path: Path) -> Path:
    """The path of a parameter file; ends the command if there is no such file."""
    if not path.is_file():
        fail(f"parameter file {path} does not exist")
    return path


def stop_before(start: int, stop: int | None, step: int, frames: int | None) -> int | None:
    """First frame to leave out, from --stop and --frames; None for the end."""
    if frames is None:
        return stop
    if frames < 1:
        fail(f"--frames {frames}: expected 1 or more")
    last = start + frames * max(step, 1)
    return last if stop is None else min(stop, last)


def named(**values: str) -> dict[str, str]:
    """The parameters that the command line sets."""
    return {name: value for name, value in values.items() if value}
