"""`loftr_ros play`: a source as camera topics."""

from __future__ import annotations

from typing import Annotated

import typer

from loftr_ros.cli.errors import INTERRUPTED, PARTIAL, fail
from loftr_ros.cli.options import (
    Mode,
    Quiet,
    RecordingOptions,
    SourceArgument,
    grouped,
)


@grouped
def play(
    context: typer.Context,
    source: SourceArgument,
    reading: RecordingOptions,
    transport: Annotated[
        str, typer.Option(help="raw or compressed; compressed passes JPEG and PNG files unchanged.")
    ] = "raw",
    color: Annotated[bool, typer.Option("--color", help="Publish colour, if the recording has it.")] = False,
    rate: Annotated[float, typer.Option(help="Playback speed; 2 is twice as fast as the stamps.")] = 1.0,
    hz: Annotated[float | None, typer.Option(help="Fixed frame rate instead of the stamps.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Repeat from the start; stamps continue.")] = False,
    back_and_forth: Annotated[
        bool, typer.Option("--back-and-forth", help="Play forward and backward in turns; stamps rise, nothing jumps.")
    ] = False,
    duration: Annotated[float | None, typer.Option(help="Seconds to play.", show_default="to the end")] = None,
    now: Annotated[bool, typer.Option("--now", help="Stamp with the current time.")] = False,
    clock: Annotated[bool, typer.Option("--clock", help="Publish the stamps on /clock, for use_sim_time.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for a subscriber; 0 starts at once.")] = 30.0,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="Publish with best effort, as sensors do.")
    ] = False,
    namespace: Annotated[str, typer.Option(help="Namespace of the topics image and camera_info.")] = "",
    mode: Mode = "",
    quiet: Quiet = False,
) -> None:
    """Publish a source as camera topics, with its stamps and intrinsics. ROS arguments are passed on."""
    from loftr_ros.recordings import SourceError
    from loftr_ros.tools.player.player import PlayError
    from loftr_ros.tools.player.player import play as play_source

    try:
        with reading.open(source) as opened:
            report = play_source(
                opened,
                mode=mode or "mono",
                image_transport=transport,
                color=color,
                rate=rate,
                hz=hz,
                loop=loop,
                back_and_forth=back_and_forth,
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
