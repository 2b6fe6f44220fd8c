"""Last lines and exit codes, the same for all commands."""

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
"""Everything was done."""
PARTIAL = 1
"""Some of it was done: frames were refused, or a recording ended early. The results so far were written."""
REFUSED = 2
"""Nothing was done: an argument makes no sense, or a file is missing or cannot be read."""
INTERRUPTED = 130
"""Ctrl-C or SIGTERM. The results so far were written."""


def fail(error: object) -> NoReturn:
    """Print in one line what is wrong, and end with exit code 2."""
    text = " ".join(str(error).split("\n")) if "\n  " not in str(error) else str(error)
    typer.echo(f"loftr_ros: {text}", err=True)
    raise typer.Exit(REFUSED)


def finish(lines: Sequence[str], missing: Sequence[str], last: str, interrupted: bool = False) -> None:
    """Print the results, and end with their exit code.

    Args:
        lines: the results.
        missing: reasons why results are missing; empty if they are complete.
        last: the last line, with the place of the results.
        interrupted: Ctrl-C ended the command.
    """
    typer.echo("\n".join([*lines, *(f"missing: {reason}" for reason in missing)]))
    typer.echo(f"{last} (partial)" if missing else last)
    if missing:
        raise typer.Exit(INTERRUPTED if interrupted else PARTIAL)


def check_output(folder: Path) -> None:
    """Check that a folder can be written to, before anything that takes long; ends the command if not.

    What the check creates is removed again: a command that fails later leaves nothing behind.
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
        fail(f"{folder} cannot be written to ({why}); choose another folder with --output")


class Commands(typer.core.TyperGroup):
    """The group of commands. Unexpected errors of the disk, and Ctrl-C, end in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        _catch_signals()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("loftr_ros: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError:  # the reader of the output has gone, as with `| head`
            raise
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            fail(f"{named}{error.strerror or error}")
        except MemoryError:
            fail("there is not enough memory")


def _catch_signals() -> None:
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _interrupt)
        # A script's shell starts `loftr_ros ... &` with SIGINT ignored, and so does a launch that it started so. Like
        # all nodes of ROS, the command ends by it nonetheless.
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second signal ends the process at once
    raise KeyboardInterrupt
