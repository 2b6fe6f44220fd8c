"""`loftr_ros run`: the front end over a recording, without ROS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.errors import check_output, fail, finish
from loftr_ros.cli.options import (
    BackEndParamsFile,
    FrontEndOptions,
    Output,
    Quiet,
    RecordingOptions,
    SourceArgument,
    back_end_config,
    grouped,
)


@grouped
def run(
    source: SourceArgument,
    reading: RecordingOptions,
    front_end_options: FrontEndOptions,
    output: Output = Path("runs"),
    parquet: Annotated[bool, typer.Option("--parquet", help="Correspondences as Parquet instead of .npz.")] = False,
    optimise: Annotated[
        bool,
        typer.Option(
            "--optimise",
            help="Search for loops and optimise the keyframes: a second trajectory, graph, map (needs GTSAM).",
        ),
    ] = False,
    back_end_params_file: BackEndParamsFile = None,
    quiet: Quiet = False,
) -> None:
    """Run the front end over a recording without ROS: trajectory, relative poses, correspondences, pictures."""
    from loftr_ros.backend.measurements import BackEndError
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.places.config import LoopConfig
    from loftr_ros.places.keyframe import PlacesError
    from loftr_ros.recordings import SourceError
    from loftr_ros.settings import ConfigError, with_values
    from loftr_ros.tools.run import run as run_offline

    values = front_end_options.values
    check_output(output)
    try:
        front_end, reader = front_end_options.open()
        with reading.open(source) as opened:
            report = run_offline(
                opened,
                front_end,
                output,
                reader=reader,
                parquet=parquet,
                progress=not quiet,
                optimise=optimise,
                back_end=back_end_config(back_end_params_file),
                loop=with_values(LoopConfig(), values, "loop."),
            )
    except ImportError as error:
        fail(f"{error}: install loftr_ros[parquet]" if parquet else error)
    except (BackEndError, ConfigError, DeviceError, MaskError, PlacesError, SourceError, WeightsError) as error:
        fail(error)
    finish(report.lines(), report.missing, f"written to {output}", report.progress.interrupted)
