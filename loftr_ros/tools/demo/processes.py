"""Child processes that never outlive the demo."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_LAST_LINES = 12


class DemoError(Exception):
    """The demo cannot continue; the message says why."""


class Child:
    """A process in its own process group, with its output in a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            name: for messages.
            command: the program and its arguments.
            log: file that stdout and stderr are written to.
            environment: its environment.
        """
        self.name, self.log = name, log
        # If the demo is killed, the kernel signals its children.
        leash = ["setpriv", "--pdeathsig", "INT", "--"] if shutil.which("setpriv") else []
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*leash, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                # Ctrl-C reaches only the demo, which then ends its children in order. Their folder has no Python
                # packages, because Python searches the current folder first.
                start_new_session=True,
                cwd=log.parent,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """All of its output so far."""
        return self.log.read_text(errors="replace")

    @property
    def last_lines(self) -> str:
        """Its last lines of output, indented for an error message."""
        lines = self.output.rstrip().splitlines()[-_LAST_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (no output)"

    def check(self) -> None:
        """Raise DemoError if the process has ended."""
        if self.exit_code is not None:
            raise DemoError(f"the {self.name} ended unexpectedly with exit code {self.exit_code}:\n{self.last_lines}")

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does, and do not wait."""
        self._signal(signal.SIGINT)

    def close(self, patience: float = 10.0) -> int:
        """End it, by SIGINT first; returns its exit code. Another Ctrl-C does not interrupt this."""
        with _undisturbed():
            for number, seconds in ((signal.SIGINT, patience), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
                if self.exit_code is not None:
                    break
                self._signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
            self._signal(signal.SIGKILL)  # its own children
            return self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore the signals that end the demo; has no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until(condition: Callable[[], bool], seconds: float, what: str, children: Sequence[Child] = ()) -> None:
    """Wait for a condition while the children live.

    Args:
        condition: called until it is true.
        seconds: to wait at most.
        what: what is waited for, for the error message.
        children: none of them may end while waiting.

    Raises:
        DemoError: the condition did not become true in time, or a child ended.
    """
    end = time.monotonic() + seconds
    while not condition():
        for child in children:
            child.check()
        if time.monotonic() > end:
            said = "".join(f"\n  last output of the {child.name}:\n{child.last_lines}" for child in children)
            raise DemoError(f"waited {seconds:g} s for {what} without success{said}")
        time.sleep(0.02)
