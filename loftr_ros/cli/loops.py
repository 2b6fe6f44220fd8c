"""`loftr_ros loops`: places that recordings show more than once."""

from __future__ import annotations

import re
from contextlib import ExitStack
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
    back_end_config,
    grouped,
)

Sources = Annotated[
    list[str],
    typer.Argument(help="Recordings, as for `run`; each is a separate robot, unless --robot names it."),
]


@grouped
def loops(
    sources: Sources,
    reading: RecordingOptions,
    front_end_options: FrontEndOptions,
    output: Output = Path("loops"),
    archive: Annotated[
        str,
        typer.Option(
            metavar="URI",
            help="Archive of keyframes, a folder or s3://bucket/folder; its content is searched too.",
            show_default="`archive` in the output folder",
        ),
    ] = "",
    robot: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a recording's robot; give one for each recording, in their order.",
            show_default="the source's name",
        ),
    ] = None,
    min_age: Annotated[
        float | None,
        typer.Option(
            help="Minimum age in seconds of a robot's own keyframes in the search (parameter loop.min_age).",
            show_default="20, or as in --params-file",
        ),
    ] = None,
    optimise: Annotated[
        bool,
        typer.Option("--optimise", help="Also solve the pose graph: optimised.g2o, .csv and .png (needs GTSAM)."),
    ] = False,
    back_end_params_file: BackEndParamsFile = None,
    quiet: Quiet = False,
) -> None:
    """Find the loops in recordings and between them, without ROS: pose graph (g2o), tables, pictures."""
    from loftr_ros.backend.measurements import BackEndError
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.places.archive import Archive
    from loftr_ros.places.config import ArchiveConfig, LoopConfig
    from loftr_ros.places.descriptor import PlaceDescriptor
    from loftr_ros.places.keyframe import PlacesError
    from loftr_ros.recordings import SourceError
    from loftr_ros.settings import ConfigError, with_values
    from loftr_ros.tools.loops import Recording, find_loops

    if robot and len(robot) != len(sources):
        fail(f"{len(sources)} sources and {len(robot)} times --robot: name one robot for each source, or none")
    robots = robot or robot_names(sources)
    values = front_end_options.values
    if min_age is not None:
        values["loop.min_age"] = min_age
    check_output(output)
    try:
        kept = with_values(ArchiveConfig(), values, "archive.")
        with ExitStack() as stack:
            opened = [stack.enter_context(reading.open(source)) for source in sources]
            front_end, reader = front_end_options.open()
            for each in opened:
                each.require(front_end.config.scale.mode)  # before an archive is created
            descriptor = PlaceDescriptor.of(front_end.matcher)
            uri = archive or kept.uri or str(output / "archive")
            store = stack.enter_context(
                Archive.open(uri, descriptor.space, descriptor.dimension, max_size_mb=kept.max_size_mb)
            )
            report = find_loops(
                [Recording(name, each) for name, each in zip(robots, opened, strict=True)],
                front_end,
                descriptor,
                store,
                output,
                loop=with_values(LoopConfig(), values, "loop."),
                jpeg_quality=kept.jpeg_quality,
                reader=reader,
                progress=not quiet,
                optimise=optimise,
                back_end=back_end_config(back_end_params_file),
            )
    except (BackEndError, ConfigError, DeviceError, MaskError, PlacesError, SourceError, WeightsError) as error:
        fail(error)
    finish(report.lines(), report.missing, f"written to {output}", report.interrupted)


def robot_names(sources: list[str]) -> list[str]:
    """A different robot name for each source, derived from the source's name."""
    names: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        text = path.resolve() if path.exists() else None
        plain = (text.stem if text.is_file() else text.name) if text is not None else source
        name = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_") or "robot"
        count = 2
        while (name if count == 2 else f"{name}_{count - 1}") in names:
            count += 1
        names.append(name if count == 2 else f"{name}_{count - 1}")
    return names
