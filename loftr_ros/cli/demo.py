"""`loftr_ros demo`: the real node and a real player over DDS, and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.options import (
    Archive,
    Camera,
    DepthTopic,
    Device,
    Frames,
    Mode,
    Network,
    Output,
    ParamsFile,
    Precision,
    Quiet,
    RightTopic,
    Start,
    Step,
    Stop,
    Topic,
    Weights,
    stop_before,
)


def demo(
    source: Annotated[str, typer.Argument(help="Recording to play; by default a rendered scene.")] = "rendered",
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
    rate: Annotated[float, typer.Option(help="Playback speed; 2 is twice as fast as the stamps.")] = 1.0,
    hz: Annotated[float | None, typer.Option(help="Fixed frame rate instead of the stamps.")] = None,
    frames: Frames = None,
    stop: Stop = None,
    mode: Mode = "",
    archive: Archive = "",
) -> None:
    """Run the real node and a real publisher over DDS, and report latencies, poses and errors."""
    from loftr_ros.tools.demo import run_demo

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
