"""`loftr_ros adapt`: tunes `compact` on a recording, without truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.errors import INTERRUPTED, PARTIAL, check_output, fail
from loftr_ros.cli.options import Quiet, RecordingOptions, SourceArgument, Weights, grouped
from loftr_ros.extras import how_to_install


@grouped
def adapt(
    source: SourceArgument,
    reading: RecordingOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Weights file to write.", show_default=True)
    ] = Path("adapted.safetensors"),
    minutes: Annotated[float, typer.Option(help="Time for everything, in minutes.", min=0.5, max=10000.0)] = 30.0,
    weights: Weights = "",
    seed: Annotated[int, typer.Option(help="Seed of the training.", min=0)] = 0,
    quiet: Quiet = False,
) -> None:
    """Tune `compact` on a recording; the weights are written if a part of it improves that was not trained on."""
    try:
        from loftr_ros.training.adaptation import AdaptationError
        from loftr_ros.training.adaptation import adapt as run
    except ImportError as error:
        fail(f"{error}: training needs more than matching does: {how_to_install('train')}")
    import logging

    from loftr_ros.matcher.checkpoints.recognition import WeightsError
    from loftr_ros.recordings import SourceError
    from loftr_ros.recordings.progress import Progress
    from loftr_ros.settings import ConfigError
    from loftr_ros.training.module import InterruptedTrainingError, TrainingError
    from loftr_ros.weights import find_weights

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("loftr_ros").setLevel(logging.WARNING if quiet else logging.INFO)
    check_output(output.parent)
    try:
        with reading.open(source) as opened:
            read = Progress()
            frames = read.frames(opened, not quiet)
            done = run(opened, find_weights("compact", weights), output, minutes, frames=frames, seed=seed)
    except InterruptedTrainingError as error:
        typer.echo("loftr_ros: interrupted; nothing is written", err=True)
        raise typer.Exit(INTERRUPTED) from error
    except (AdaptationError, ConfigError, SourceError, TrainingError, WeightsError) as error:
        fail(error)
    names = {"score": "score", "recall": "recall", "coarse_accuracy": "right regions"}
    changes = ", ".join(f"{text} {done.before[name]:.3f} -> {done.after[name]:.3f}" for name, text in names.items())
    typer.echo(
        f"{done.pairs} pairs from {done.frames} frames, {done.steps} steps; on {done.held_out} pairs that were not "
        f"trained on: {changes}"
    )
    if not done.written:
        typer.echo(
            f"nothing is written: the score changes by {done.gain[0]:+.4f} with a standard error of {done.gain[1]:.4f}"
        )
        raise typer.Exit(PARTIAL)
    typer.echo(f"written to {output}; archives and the place descriptor of the former weights stay valid")
