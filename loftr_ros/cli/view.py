"""The command line `loftr_ros view`: a recording through the front end, in the rerun viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.errors import fail, finish
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


def view(
    source: SourceArgument,
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
    mode: Mode = "",
    save: Annotated[
        Path | None, typer.Option(metavar="FILE.rrd", help="Write a file for the viewer instead of opening a window.")
    ] = None,
    connect: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Show in a running viewer: HOST, HOST:PORT or URL.", show_default=False),
    ] = "",
    quiet: Quiet = False,
) -> None:
    """Show images, matches, keyframes and trajectory of a recording in rerun (extra `view`), without ROS."""
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.recordings import SourceError, open_source
    from loftr_ros.settings import ConfigError
    from loftr_ros.tools.view import ViewLog
    from loftr_ros.tools.viewer import Destination, ViewError, load_rerun, show

    values = parameters(params_file, node) | named(mode=mode, network=network, weights=weights)
    last = stop_before(start, stop, step, frames)
    try:
        rerun, destination = load_rerun(), Destination(save and save.expanduser(), connect)
        destination.check()
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
            opened.require(front_end.config.scale.mode)  # before a window opens
            stream = destination.open(rerun)
            try:
                shown = show(opened, front_end, ViewLog(rerun, stream), reader=reader, progress=not quiet)
            finally:
                stream.disconnect()  # a file is whole only after it
    except (ConfigError, DeviceError, MaskError, SourceError, ViewError, WeightsError) as error:
        fail(error)
    finish(shown.lines(), shown.missing, f"written to {save}" if save else "shown", shown.progress.interrupted)
