"""The command line `loftr_ros view`: a recording through the front end, in the rerun viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli_errors import fail


def view(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of images (KITTI, 7-Scenes, EuRoC, TUM RGB-D or any), a video, a bag, or `rendered`.",
            show_default=False,
        ),
    ],
    start: Annotated[int, typer.Option(help="First frame.")] = 0,
    stop: Annotated[int | None, typer.Option(help="Frame to stop before.", show_default="the end")] = None,
    step: Annotated[int, typer.Option(help="Take every n-th frame.")] = 1,
    frame_rate: Annotated[
        float | None, typer.Option(help="Frames a second that stamps are made with, where the source has none.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Image topic of a bag that has several.")] = None,
    camera: Annotated[
        Path | None, typer.Option(help="Calibration (camera_calibration YAML) instead of the source's own.")
    ] = None,
    network: Annotated[str, typer.Option(help="Preset of the network; empty for what the parameters say.")] = "",
    weights: Annotated[
        str,
        typer.Option(
            help="Weights file of that network, a name of `weights list`, or `random`.", show_default="the first found"
        ),
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; empty for what the parameters say.")] = "",
    precision: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float16; empty for what the parameters say.")
    ] = "",
    params_file: Annotated[
        Path | None, typer.Option(help="Parameters, as for the node (see config/front_end.yaml).")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Image of the frames' size that is 0 where pixels are to be ignored.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="mono, stereo or rgbd: what the source must have; empty for what the parameters say.")
    ] = "",
    save: Annotated[
        Path | None, typer.Option(metavar="FILE.rrd", help="Write a file for the viewer instead of opening a window.")
    ] = None,
    connect: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Show in a viewer that runs already: HOST, HOST:PORT or URL.", show_default=False
        ),
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Show images, matches, keyframes and trajectory of a recording in rerun (extra `view`), without ROS."""
    from dataclasses import replace

    from loftr_ros.cli import _parameters
    from loftr_ros.frontend.config import ConfigError, FrontEndConfig, with_values
    from loftr_ros.frontend.mask import MaskError, read_mask
    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.matcher.checkpoint import WeightsError
    from loftr_ros.matcher.factory import open_matcher
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
    from loftr_ros.sources import SourceError, open_source
    from loftr_ros.view import ViewLog
    from loftr_ros.viewer import Destination, ViewError, load_rerun, show

    values = _parameters(params_file) | ({"mode": mode} if mode else {})
    values |= {name: value for name, value in (("network", network), ("weights", weights)) if value}
    try:
        rerun, destination = load_rerun(), Destination(save and save.expanduser(), connect)
        destination.check()
        config = with_values(FrontEndConfig(), values)
        mask = mask or (Path(str(values["input.mask"])) if values.get("input.mask") else None)
        usable = read_mask(mask.expanduser()) if mask else None
        spec = matcher_spec(with_values(MatcherConfig(), values), with_values(MatchingConfig(), values, "matching."))
        matcher = open_matcher(replace(spec, device=device or spec.device, precision=precision or spec.precision))
        with open_source(
            source, start=start, stop=stop, step=step, rate=frame_rate, topic=topic, camera=camera
        ) as opened:
            opened.require(config.scale.mode)  # before a window opens
            stream = destination.open(rerun)
            try:
                shown = show(opened, FrontEnd(matcher, config), ViewLog(rerun, stream), mask=usable, progress=not quiet)
            finally:
                stream.disconnect()  # a file is whole only after it
    except (ConfigError, DeviceError, MaskError, SourceError, ViewError, WeightsError) as error:
        fail(error)
    typer.echo("\n".join([*shown.lines(), *([f"written to {save}"] if save else [])]))
