"""The command line `loftr_ros`: one sub-command a job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli_doctor import doctor
from loftr_ros.cli_errors import INTERRUPTED, PARTIAL, Commands, check_output, fail, finish
from loftr_ros.cli_explain import explain
from loftr_ros.cli_export import export
from loftr_ros.cli_loops import loops
from loftr_ros.cli_options import (
    Archive,
    Camera,
    DepthTopic,
    Device,
    FrameRate,
    Frames,
    Mask,
    Mode,
    Network,
    NodeName,
    Output,
    ParamsFile,
    Precision,
    Quiet,
    RightTopic,
    SourceArgument,
    Start,
    Step,
    Stop,
    Topic,
    Weights,
    existing,
    named,
    open_offline,
    parameters,
    stop_before,
)
from loftr_ros.cli_train import app as train_app
from loftr_ros.cli_view import view
from loftr_ros.cli_weights import app as weights_app

app = typer.Typer(
    name="loftr_ros",
    cls=Commands,
    help="LoFTR correspondences and relative poses for robots.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(weights_app, name="weights")
app.add_typer(train_app, name="train")
app.command()(doctor)
app.command()(export)
app.command()(explain)
app.command()(loops)
app.command()(view)


def _version(asked: bool) -> None:
    if asked:
        from loftr_ros.tools.version import installed_version

        typer.echo(f"loftr_ros {installed_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """LoFTR correspondences and relative poses for robots."""


@app.command()
def demo(
    source: Annotated[str, typer.Argument(help="What to play; by default a scene that is rendered.")] = "rendered",
    output: Output = Path("demo"),
    start: Start = 0,
    step: Step = 1,
    topic: Topic = None,
    right_topic: RightTopic = None,
    depth_topic: DepthTopic = None,
    camera: Camera = None,
    network: Network = "",
    weights: Weights = "",
    device: Device = "",
    precision: Precision = "",
    params_file: ParamsFile = None,
    quiet: Quiet = False,
    rate: Annotated[float, typer.Option(help="How many times faster than the stamps say.")] = 1.0,
    hz: Annotated[float | None, typer.Option(help="Frames a second, whatever the stamps say.")] = None,
    frames: Frames = None,
    stop: Stop = None,
    mode: Mode = "",
    archive: Archive = "",
) -> None:
    """Run the real node and a real publisher over DDS, and report latencies, poses and errors."""
    from loftr_ros.demo import run_demo

    last = stop_before(start, stop, step, frames)
    frames = None if last is None else len(range(start, last, step))
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
            archive=archive,
            start=start,
            step=step,
            topic=topic,
            right_topic=right_topic,
            depth_topic=depth_topic,
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
        arguments += ["--params-file", str(existing(params_file))]
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
    frames: Frames = None,
    step: Step = 1,
    frame_rate: FrameRate = None,
    topic: Topic = None,
    right_topic: RightTopic = None,
    depth_topic: DepthTopic = None,
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

    last = stop_before(start, stop, step, frames)
    try:
        with open_source(
            source,
            start=start,
            stop=last,
            step=step,
            rate=frame_rate,
            topic=topic,
            right_topic=right_topic,
            depth_topic=depth_topic,
            camera=camera,
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
    typer.echo("".join(f"note: {note}\n" for note in opened.notes), nl=False)
    typer.echo(f"{report.published} frames in {report.seconds:.1f} s, {report.failed} failed, {report.late} late")
    if report.interrupted or report.failed or opened.lost:
        raise typer.Exit(INTERRUPTED if report.interrupted else PARTIAL)


@app.command()
def run(
    source: SourceArgument,
    output: Output = Path("runs"),
    start: Start = 0,
    stop: Stop = None,
    frames: Frames = None,
    step: Step = 1,
    frame_rate: FrameRate = None,
    topic: Topic = None,
    right_topic: RightTopic = None,
    depth_topic: DepthTopic = None,
    camera: Camera = None,
    network: Network = "",
    weights: Weights = "",
    device: Device = "",
    precision: Precision = "",
    params_file: ParamsFile = None,
    node: NodeName = "",
    mask: Mask = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Correspondences as Parquet instead of .npz.")] = False,
    mode: Mode = "",
    quiet: Quiet = False,
) -> None:
    """Run the front end over a recording without ROS: trajectory, relative poses, correspondences, pictures."""
    from loftr_ros.frontend.config import ConfigError
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.matcher.checkpoint import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.offline import run as run_offline
    from loftr_ros.sources import SourceError, open_source

    values = parameters(params_file, node) | named(mode=mode, network=network, weights=weights)
    check_output(output)
    last = stop_before(start, stop, step, frames)
    try:
        front_end, reader = open_offline(values, device, precision, mask)
        with open_source(
            source,
            start=start,
            stop=last,
            step=step,
            rate=frame_rate,
            topic=topic,
            right_topic=right_topic,
            depth_topic=depth_topic,
            camera=camera,
        ) as opened:
            report = run_offline(opened, front_end, output, reader=reader, parquet=parquet, progress=not quiet)
    except ImportError as error:
        fail(f"{error}: install loftr_ros[parquet]" if parquet else error)
    except (ConfigError, DeviceError, MaskError, SourceError, WeightsError) as error:
        fail(error)
    finish(report.lines(), report.missing, f"written to {output}", report.progress.interrupted)


def main() -> int:
    """The console script."""
    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
