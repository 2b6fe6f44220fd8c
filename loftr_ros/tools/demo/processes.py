"""Child processes that never outlive the demo, and a ROS domain of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_LAST_LINES = 12
_DOMAINS = range(1, 102)  # above 101 the ports of DDS lie where Linux hands out ports of its own


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Child:
    """A process in a group of its own, whose output goes to a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            name: what to call it, for people.
            command: the program and its arguments.
            log: file that stdout and stderr are written to.
            environment: its environment.
        """
        self.name, self.log = name, log
        # Should the demo be killed outright, the kernel tells its children.
        leash = ["setpriv", "--pdeathsig", "INT", "--"] if shutil.which("setpriv") else []
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*leash, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                # A Ctrl-C of the terminal reaches the demo alone, which then ends its children in order. The folder is
                # one without Python packages: the current one would come first in their search path.
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
    def said(self) -> str:
        """Everything it has written."""
        return self.log.read_text(errors="replace")

    @property
    def last_lines(self) -> str:
        """The last it has written, indented, for an error message."""
        lines = self.said.rstrip().splitlines()[-_LAST_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (it said nothing)"

    def check(self) -> None:
        """Raises DemoError if it has ended by itself."""
        if self.exit_code is not None:
            raise DemoError(f"the {self.name} ended by itself with exit code {self.exit_code}:\n{self.last_lines}")

    def interrupt(self) -> None:
        """What Ctrl-C does, without waiting."""
        self._signal(signal.SIGINT)

    def close(self, patience: float = 10.0) -> int:
        """End it, gently at first; returns its exit code. A further Ctrl-C does not break in."""
        with _undisturbed():
            for number, seconds in ((signal.SIGINT, patience), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
                if self.exit_code is not None:
                    break
                self._signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
            self._signal(signal.SIGKILL)  # whatever it may have started
            return self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the signals that end the demo; only a main thread can do without."""
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
        what: is waited for, for the error's message.
        children: none of them may end meanwhile.

    Raises:
        DemoError: it did not become true in time, or a child ended.
    """
    end = time.monotonic() + seconds
    while not condition():
        for child in children:
            child.check()
        if time.monotonic() > end:
            said = "".join(f"\n  the {child.name} said last:\n{child.last_lines}" for child in children)
            raise DemoError(f"waited {seconds:g} s for {what}, in vain{said}")
        time.sleep(0.02)


@contextlib.contextmanager
def own_domain() -> Iterator[int]:
    """A ROS domain that no other demo, and as far as can be seen nobody else, uses on this machine.

    The environment's ROS_DOMAIN_ID is taken where it is set.
    """
    if os.environ.get("ROS_DOMAIN_ID"):
        yield int(os.environ["ROS_DOMAIN_ID"])
        return
    first = os.getpid() % len(_DOMAINS)
    for domain in [*_DOMAINS[first:], *_DOMAINS[:first]]:
        # The port on which all participants of this domain hear of each other, with UDP. With TCP it is nobody's, and
        # holding it keeps other demos away.
        port = 7400 + 250 * domain
        with socket.socket(type=socket.SOCK_STREAM) as mark, socket.socket(type=socket.SOCK_DGRAM) as probe:
            try:
                mark.bind(("127.0.0.1", port))
                mark.listen()
                probe.bind(("", port))
            except OSError:
                continue
            probe.close()
            yield domain
            return
    raise DemoError("every ROS domain from 1 to 101 is in use on this machine; set ROS_DOMAIN_ID to the one to use")
