"""`loftr_ros explain`: pictures of what the network attends to, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loftr_ros.cli.errors import fail
from loftr_ros.cli.options import (
    Device,
    Mask,
    NodeName,
    ParamsFile,
    Precision,
    named,
    parameters,
)
from loftr_ros.tools.opening import open_offline

if TYPE_CHECKING:  # it imports torch, which is loaded when it is needed
    from loftr_ros.tools.explain.explanation import PairExplanation


def explain(
    image_a: Annotated[Path, typer.Argument(metavar="A", help="Image with the points to explain.")],
    image_b: Annotated[Path, typer.Argument(metavar="B", help="Image to match with.")],
    network: Annotated[
        str,
        typer.Option(
            help="Preset of the network; auto for the network of the weights.",
        ),
    ] = "",
    weights: Annotated[
        str,
        typer.Option(
            help="Weights file, a name of `weights list`, or `random`.",
            show_default="the first found",
        ),
    ] = "",
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="U,V",
            help="Pixel of A to explain; repeatable.",
            show_default="three confident matches",
        ),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="Coarse layer to show, from 0; repeatable.",
            show_default="the first and last self and cross layers",
        ),
    ] = None,
    head: Annotated[int | None, typer.Option(help="Attention head to show.", show_default="the mean of all")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("explain"),
    device: Device = "",
    precision: Precision = "",
    params_file: ParamsFile = None,
    node: NodeName = "",
    mask: Mask = None,
) -> None:
    """Draw what chosen points of image A attend to, and how they find their matches in image B."""
    from loftr_ros.extras import why_no_plots
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.recordings import SourceError
    from loftr_ros.settings import ConfigError
    from loftr_ros.tools.explain.pair import ExplainError, explain_pair
    from loftr_ros.tools.explain.plot import write_pictures

    if reason := why_no_plots():
        fail(reason)
    points = [_point(text) for text in point or ()]
    try:
        for image in (image_a, image_b):  # before loading weights, which takes longer
            if not image.expanduser().is_file():
                raise SourceError(f"image {image} does not exist")
        # Only networks in torch can be explained.
        values = parameters(params_file, node) | named(network=network, weights=weights) | {"backend": "torch"}
        front_end, reader = open_offline(values, device, precision, mask)
        images = (image_a, image_b)
        explanation = explain_pair(
            front_end.matcher, images, points, layer or (), head, reader=reader, config=front_end.config
        )
        files = write_pictures(explanation, output)
    except (ConfigError, DeviceError, ExplainError, MaskError, SourceError, WeightsError) as error:
        fail(error)
    except OSError as error:
        fail(f"{output} cannot be written to: {error.strerror}")
    typer.echo("\n".join(table(explanation)))
    typer.echo(f"{len(files)} pictures written to {output}: {', '.join(file.name for file in files)}")


def table(explanation: PairExplanation) -> Sequence[str]:
    """The explanation as lines of text."""
    view_a, view_b = explanation.views
    lines = [f"{view_a.name} -> {view_b.name}: {explanation.count} ({explanation.network})"]
    if not len(explanation.confidence):
        lines.append("nothing matches; below are the attention and the best cell all the same")
    header = ("POINT", "IN A", "CELL IN A", "BEST CELL IN B", "CONFIDENCE", "IN B", "STD", "VERDICT")
    rows = [header]
    for number, point in enumerate(explanation.points, start=1):
        (row_a, column_a), (row_b, column_b) = divmod(point.cell0, view_a.grid[1]), divmod(point.cell1, view_b.grid[1])
        rows.append(
            (
                str(number),
                f"{point.point0[0]:.1f}, {point.point0[1]:.1f}",
                f"row {row_a}, column {column_a}",
                f"row {row_b}, column {column_b}",
                f"{point.confidence:.4f}",
                f"{point.point1[0]:.2f}, {point.point1[1]:.2f}",
                f"{point.fine.std:.2f} px" if point.fine is not None else "-",
                point.verdict,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return lines + ["  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _point(text: str) -> tuple[float, float]:
    try:
        u, v = (float(part) for part in text.split(","))
    except ValueError:
        fail(f"point '{text}' is invalid; expected U,V in pixels of A, such as 320,240")
    return u, v
