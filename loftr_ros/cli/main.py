"""The command line `loftr_ros` with its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from loftr_ros.cli.adapt import adapt
from loftr_ros.cli.back_end import back_end
from loftr_ros.cli.demo import demo
from loftr_ros.cli.doctor import doctor
from loftr_ros.cli.errors import Commands
from loftr_ros.cli.evaluate import evaluate
from loftr_ros.cli.explain import explain
from loftr_ros.cli.export import export
from loftr_ros.cli.localise import app as localise_app
from loftr_ros.cli.loops import loops
from loftr_ros.cli.node import node
from loftr_ros.cli.play import play
from loftr_ros.cli.run import run
from loftr_ros.cli.train import app as train_app
from loftr_ros.cli.view import view
from loftr_ros.cli.weights import app as weights_app

app = typer.Typer(
    name="loftr_ros",
    cls=Commands,
    help="LoFTR correspondences and relative poses for robots.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# These commands pass on options of ROS.
PASSING = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command()(demo)
app.command(context_settings=PASSING)(node)
app.command(context_settings=PASSING)(play)
app.command("back-end", context_settings=PASSING)(back_end)
for command in (run, view, explain, loops, evaluate, doctor, export, adapt):
    app.command()(command)
app.add_typer(weights_app, name="weights")
app.add_typer(localise_app, name="localise")
app.add_typer(train_app, name="train")


def _version(asked: bool) -> None:
    if asked:
        from loftr_ros.tools.version import installed_version

        typer.echo(f"loftr_ros {installed_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """LoFTR correspondences and relative poses for robots."""


def main() -> int:
    """The console script."""
    app()
    return 0
