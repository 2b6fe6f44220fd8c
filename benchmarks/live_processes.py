"""Processes that run beside a benchmark, are killed and started again, and what they say."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import from_quaternion
from loftr_ros.tools.demo.processes import Child

DOWN = 3.0  # s that a killed node is away


class Processes:
    """Nodes and players, by name."""

    def __init__(self, environment: dict[str, str], folder: Path, commands: dict[str, list[str]]) -> None:
        """None runs yet.

        Args:
            environment: of all.
            folder: of their logs.
            commands: of those that `start` knows, by name.
        """
        self._environment, self._folder, self._commands = environment, folder, commands
        self._running: dict[str, Child] = {}
        self.logs: list[Path] = []

    def start(self, name: str) -> None:
        """Start one by its name."""
        self.begin(name, self._commands[name])

    def begin(self, name: str, command: list[str]) -> Child:
        """Start one by its command."""
        log = self._folder / f"{len(self.logs):02d}_{name}.log"
        self.logs.append(log)
        child = self._running[name] = Child(name, command, log, self._environment)
        return child

    def kill(self, name: str) -> None:
        """End one as a crash does."""
        child = self._running.pop(name)
        os.killpg(child.pid, signal.SIGKILL)
        child.close()

    def forget(self, name: str) -> None:
        """One has ended by itself, as it should."""
        self._running.pop(name).close()

    def check(self) -> None:
        """Fail if one has ended by itself."""
        for child in self._running.values():
            child.check()

    def end(self) -> dict[str, int | None]:
        """End all as Ctrl-C does; their exit codes."""
        for child in self._running.values():
            child.interrupt()
        return {name: child.close() for name, child in self._running.items()}

    def warnings(self) -> list[str]:
        """Warnings, errors and the state of the map from all logs, each with the log's name."""
        return [
            f"{log.stem}: {line[-260:]}"
            for log in self.logs
            for line in log.read_text(errors="replace").splitlines()
            if re.search(r"WARN|ERROR|Traceback|localized in the map|keyframes, ", line)
        ]


def actions_of(kills: list[tuple[float, str]]) -> list[tuple[float, str, str]]:
    """Seconds, method of `Processes` and name: each is killed at its time, and started again `DOWN` later."""
    return sorted([*((at, "kill", name) for at, name in kills), *((at + DOWN, "start", name) for at, name in kills)])


def stamp_of(header: Any) -> int:
    """Nanoseconds."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def matrix_of(at: Any, turn: Any) -> NDArray[np.float64]:
    """(4, 4) of a message's translation and quaternion."""
    return from_quaternion((at.x, at.y, at.z), (turn.x, turn.y, turn.z, turn.w))
