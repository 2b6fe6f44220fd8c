"""The command line `loftr_ros`: one sub-command a job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from loftr_ros.cli_errors import fail
from loftr_ros.cli_explain import explain
from loftr_ros.cli_export import export
from loftr_ros.cli_train import app as train_app
from loftr_ros.cli_view import view
from loftr_ros.cli_weights import app as weights_app

app = typer.Typer(
    name="loftr_ros",
    help="LoFTR correspondences and relative poses for robots.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(weights_app, name="weights")
app.add_typer(train_app, name="train")
app.command()(export)
app.command()(explain)
app.command()(view)

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="A folder of images (KITTI, 7-Scenes, EuRoC, TUM RGB-D or any), a video, a bag, or `rendered`.",
        show_default=False,
    ),
]
Start = Annotated[int, typer.Option(help="First frame.")]
Stop = Annotated[int | None, typer.Option(help="Frame to stop before.", show_default="the end")]
Step = Annotated[int, typer.Option(help="Take every n-th frame.")]
FrameRate = Annotated[
    float | None, typer.Option(help="Frames a second that stamps are made with, where the source has none.")
]
Topic = Annotated[str | None, typer.Option(help="Image topic of a bag that has several.")]
Camera = Annotated[Path | None, typer.Option(help="Calibration (camera_calibration YAML) instead of the source's own.")]
Network = Annotated[str, typer.Option(help="Preset of the network; empty for what the parameters say.")]
Weights = Annotated[
    str,
    typer.Option(
        help="Weights file of that network, a name of `weights list`, or `random`.", show_default="the first found"
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; empty for what the parameters say.")]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; empty for what the parameters say.")]
ParamsFile = Annotated[Path | None, typer.Option(help="Parameters, as for the node (see config/front_end.yaml).")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")]
Mode = Annotated[
    str, typer.Option(help="mono, stereo or rgbd: what the source must have; empty for what the parameters say.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


@app.command()
def demo(
    source: Annotated[str, typer.Argument(help="What to play; by default a scene that is rendered.")] = "rendered",
    output: Output = Path("demo"),
    start: Start = 0,
    step: Step = 1,
    topic: Topic = None,
    camera: Camera = None,
    network: Network = "",
    weights: Weights = "",
    device: Device = "",
    precision: Precision = "",
    params_file: ParamsFile = None,
    quiet: Quiet = False,
    rate: Annotated[float, typer.Option(help="How many times faster than the stamps say.")] = 1.0,
    hz: Annotated[float | None, typer.Option(help="Frames a second, whatever the stamps say.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames to play, at most.")] = None,
    mode: Mode = "",
) -> None:
    """Run the real node and a real publisher over DDS, and report latencies, poses and errors."""
    from loftr_ros.demo import run_demo

    raise typer.Exit(
        run_demo(
            source,
            output=output,
            network=network,
            weights=weights,
            device=device,
            precision=precision,
            params_file=params_file,
            rate=rate,
            hz=hz,
            frames=frames,
            mode=mode,
            start=start,
            step=step,
            topic=topic,
            camera=camera,
            progress=not quiet,
        )
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def node(
    context: typer.Context,
    network: Network = "",
    weights: Weights = "",
    device: Device = "",
    precision: Precision = "",
    params_file: ParamsFile = None,
) -> None:
    """Run the node without `ros2 launch` and bring it to active. ROS arguments go through (`--ros-args -r ...`)."""
    from loftr_ros.ros.node import main as run_node

    arguments = ["loftr_ros", "--ros-args"]
    if params_file is not None:
        arguments += ["--params-file", str(_existing(params_file))]
    for name, value in (("network", network), ("weights", weights), ("device", device), ("precision", precision)):
        if value:
            arguments += ["-p", f"{name}:={value}"]
    extra = list(context.args)
    arguments += extra[1:] if extra[:1] == ["--ros-args"] else ["--", *extra] if extra else []
    raise typer.Exit(run_node(arguments, autostart=True))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def play(
    context: typer.Context,
    source: SourceArgument,
    start: Start = 0,
    stop: Stop = None,
    step: Step = 1,
    frame_rate: FrameRate = None,
    topic: Topic = None,
    camera: Camera = None,
    transport: Annotated[str, typer.Option(help="raw, or compressed: JPEG and PNG files then pass unchanged.")] = "raw",
    color: Annotated[bool, typer.Option("--color", help="Publish colour where the source has it.")] = False,
    rate: Annotated[float, typer.Option(help="How many times faster than the stamps say.")] = 1.0,
    hz: Annotated[float | None, typer.Option(help="Frames a second, whatever the stamps say.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end; stamps go on.")] = False,
    duration: Annotated[float | None, typer.Option(help="Seconds to play.", show_default="to the end")] = None,
    now: Annotated[bool, typer.Option("--now", help="Stamp with the present time.")] = False,
    clock: Annotated[bool, typer.Option("--clock", help="Publish the stamps on /clock, for use_sim_time.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for a subscriber; 0 begins at once.")] = 30.0,
    best_effort: Annotated[bool, typer.Option("--best-effort", help="Publish as sensors do.")] = False,
    namespace: Annotated[str, typer.Option(help="Namespace of the topics image and camera_info.")] = "",
    mode: Mode = "",
    quiet: Quiet = False,
) -> None:
    """Publish a source as camera topics, with its stamps and intrinsics. ROS arguments go through."""
    from loftr_ros.ros.player import PlayError
    from loftr_ros.ros.player import play as play_source
    from loftr_ros.sources import SourceError, open_source

    try:
        with open_source(
            source, start=start, stop=stop, step=step, rate=frame_rate, topic=topic, camera=camera
        ) as opened:
            report = play_source(
                opened,
                mode=mode or "mono",
                image_transport=transport,
                color=color,
                rate=rate,
                hz=hz,
                loop=loop,
                duration=duration,
                now=now,
                clock=clock,
                wait_for_subscriber=wait,
                reliable=not best_effort,
                namespace=namespace,
                ros_args=context.args,
                progress=not quiet,
            )
    except (PlayError, SourceError) as error:
        fail(error)
    typer.echo(f"{report.published} frames in {report.seconds:.1f} s, {report.failed} failed, {report.late} late")


@app.command()
def run(
    source: SourceArgument,
    output: Output = Path("runs"),
    start: Start = 0,
    stop: Stop = None,
    step: Step = 1,
    frame_rate: FrameRate = None,
    topic: Topic = None,
    camera: Camera = None,
    network: Network = "",
    weights: Weights = "",
    device: Device = "",
    precision: Precision = "",
    params_file: ParamsFile = None,
    mask: Annotated[
        Path | None, typer.Option(help="Image of the frames' size that is 0 where pixels are to be ignored.")
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Correspondences as Parquet instead of .npz.")] = False,
    mode: Mode = "",
    quiet: Quiet = False,
) -> None:
    """Run the front end over a recording without ROS: trajectory, relative poses, correspondences, pictures."""
    from dataclasses import replace

    from loftr_ros.frontend.config import ConfigError, FrontEndConfig, with_values
    from loftr_ros.frontend.mask import MaskError, read_mask
    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.matcher.checkpoint import WeightsError
    from loftr_ros.matcher.factory import open_matcher
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
    from loftr_ros.offline import run as run_offline
    from loftr_ros.sources import SourceError, open_source

    values = _parameters(params_file) | ({"mode": mode} if mode else {})
    try:
        config = with_values(FrontEndConfig(), values)
        values |= {name: value for name, value in (("network", network), ("weights", weights)) if value}
        asked = with_values(MatcherConfig(), values), with_values(MatchingConfig(), values, "matching.")
        mask = mask or (Path(str(values["input.mask"])) if values.get("input.mask") else None)
        usable = read_mask(mask.expanduser()) if mask else None
        spec = matcher_spec(*asked)
        matcher = open_matcher(
            replace(spec, device=device or spec.device, precision=precision or spec.precision),
        )
        with open_source(
            source, start=start, stop=stop, step=step, rate=frame_rate, topic=topic, camera=camera
        ) as opened:
            front_end = FrontEnd(matcher, config)
            report = run_offline(opened, front_end, output, mask=usable, parquet=parquet, progress=not quiet)
    except ImportError as error:
        fail(f"{error}: install loftr_ros[parquet]" if parquet else error)
    except (ConfigError, DeviceError, MaskError, SourceError, WeightsError) as error:
        fail(error)
    typer.echo("\n".join([*report.lines(), f"written to {output}"]))


def _parameters(path: Path | None) -> dict[str, Any]:
    """The parameters of a ROS parameter file, by their full names; all nodes' of that file."""
    if path is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(_existing(path).read_text())
        nodes = [value["ros__parameters"] for value in content.values()]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        fail(f"{path} is no ROS parameter file (node name, then ros__parameters): {error}")
    flat: dict[str, Any] = {}
    for parameters in nodes:
        _flatten(parameters, "", flat)
    return flat


def _flatten(nested: dict[str, Any], prefix: str, flat: dict[str, Any]) -> None:
    for name, value in nested.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{name}.", flat)
        else:
            flat[prefix + name] = value


def _existing(path: Path) -> Path:
    if not path.is_file():
        fail(f"parameter file {path} is not there")
    return path


def main() -> int:
    """The console script."""
    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
