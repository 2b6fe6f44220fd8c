"""`loftr_ros view`: shows a recording and the front end's results in the rerun viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.errors import fail, finish
from loftr_ros.cli.options import (
    FrontEndOptions,
    Quiet,
    RecordingOptions,
    SourceArgument,
    grouped,
)


@grouped
def view(
    source: SourceArgument,
    reading: RecordingOptions,
    front_end_options: FrontEndOptions,
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
    from loftr_ros.recordings import SourceError
    from loftr_ros.settings import ConfigError
    from loftr_ros.tools.view import ViewLog
    from loftr_ros.tools.viewer import Destination, ViewError, load_rerun, show

    try:
        rerun, destination = load_rerun(), Destination(save and save.expanduser(), connect)
        destination.check()
        front_end, reader = front_end_options.open()
        with reading.open(source) as opened:
            opened.require(front_end.config.scale.mode)  # before a window opens
            stream = destination.open(rerun)
            try:
                shown = show(opened, front_end, ViewLog(rerun, stream), reader=reader, progress=not quiet)
            finally:
                stream.disconnect()  # this completes a file
    except (ConfigError, DeviceError, MaskError, SourceError, ViewError, WeightsError) as error:
        fail(error)
    finish(shown.lines(), shown.missing, f"written to {save}" if save else "shown", shown.progress.interrupted)
