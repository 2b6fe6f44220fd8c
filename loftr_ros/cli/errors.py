"""How commands end: in words, and by an exit code that means the same for all of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import typer
import typer.core

DONE = 0
"""All that was asked for was done."""
PARTIAL = 1
"""Some of it: frames were refused, or a recording broke off. What there is was written."""
REFUSED = 2
"""Nothing: what was asked for makes no sense, is not there, or cannot be read."""
INTERRUPTED = 130
"""Ctrl-C or SIGTERM. What there was by then was written."""


def fail(error: object) -> NoReturn:
    """Say in one line what is wrong, and end with exit code 2."""
    text = " ".join(str(error).split("\n")) if "\n  " not in str(error) else str(error)
    typer.echo(f"loftr_ros: {text}", err=True)
    raise typer.Exit(REFUSED)


def finish(lines: Sequence[str], missing: Sequence[str], last: str, interrupted: bool = False) -> None:
    """Say what was done, and end with the exit code that belongs to it.

    Args:
        lines: what was found.
        missing: what keeps it from being all that was asked for; empty where nothing does.
        last: the last line: where it was written to.
        interrupted: it was ended by Ctrl-C.
    """
    typer.echo("\n".join([*lines, *(f"missing: {reason}" for reason in missing)]))
    typer.echo(f"{last} (partial)" if missing else last)
    if missing:
        raise typer.Exit(INTERRUPTED if interrupted else PARTIAL)


def check_output(folder: Path) -> None:
    """Sees whether a folder can be written to, before anything that takes long; ends the command where it cannot.

    What is made for that is taken away again: a command that is refused later leaves nothing behind.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".loftr_ros-{os.getpid()}"
        probe.touch()
        probe.unlink()
        for each in made:
            each.rmdir()
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror or str(error)
        fail(f"{folder} cannot be written to ({why}); name another folder with --output")


class Commands(typer.core.TyperGroup):
    """The command line's commands. What nobody foresaw of the disk, and Ctrl-C, end in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        _catch_termination()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("loftr_ros: stopped before it was done", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError:  # whoever read the output has gone, which is what `| head` does
            raise
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            fail(f"{named}{error.strerror or error}")
        except MemoryError:
            fail("there is not enough memory")


def _catch_termination() -> None:
    with suppress(ValueError):  # only a main thread may
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
    raise KeyboardInterrupt
