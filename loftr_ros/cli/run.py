"""The command line `loftr_ros run`: the front end over a recording, without ROS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.errors import check_output, fail, finish
from loftr_ros.cli.options import (
    Camera,
    DepthTopic,
    Device,
    FrameRate,
    Frames,
    Mask,
    Masks,
    MaskTopic,
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
    named,
    parameters,
    stop_before,
)
from loftr_ros.tools.opening import open_offline


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
    mask_topic: MaskTopic = None,
    masks: Masks = None,
    camera: Camera = None,
    network: Network = "",
    weights: Weights = "",
    device: Device = "",
    precision: Precision = "",
    params_file: ParamsFile = None,
    node: NodeName = "",
    mask: Mask = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Correspondences as Parquet instead of .npz.")] = False,
    optimise: Annotated[
        bool,
        typer.Option(
            "--optimise",
            help="Search for loops and optimise the keyframes: a second trajectory, graph, map (needs GTSAM).",
        ),
    ] = False,
    mode: Mode = "",
    quiet: Quiet = False,
) -> None:
    """Run the front end over a recording without ROS: trajectory, relative poses, correspondences, pictures."""
    from loftr_ros.backend.measurements import BackEndError
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.places.config import LoopConfig
    from loftr_ros.places.keyframe import PlacesError
    from loftr_ros.recordings import SourceError, open_source
    from loftr_ros.settings import ConfigError, with_values
    from loftr_ros.tools.run import run as run_offline

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
            mask_topic=mask_topic,
            masks=masks,
            camera=camera,
        ) as opened:
            report = run_offline(
                opened,
                front_end,
                output,
                reader=reader,
                parquet=parquet,
                progress=not quiet,
                optimise=optimise,
                loop=with_values(LoopConfig(), values, "loop."),
            )
    except ImportError as error:
        fail(f"{error}: install loftr_ros[parquet]" if parquet else error)
    except (BackEndError, ConfigError, DeviceError, MaskError, PlacesError, SourceError, WeightsError) as error:
        fail(error)
    finish(report.lines(), report.missing, f"written to {output}", report.progress.interrupted)
