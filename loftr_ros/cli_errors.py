"""How a command ends that cannot do what it was asked."""

from __future__ import annotations

from typing import NoReturn

import typer


def fail(error: object) -> NoReturn:
    """Say in one line what is wrong, and end with exit code 2."""
    typer.echo(f"loftr_ros: {error}", err=True)
    raise typer.Exit(2)
