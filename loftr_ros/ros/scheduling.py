"""Priorities and cores of the threads that process frames, for machines whose cores do other work, too (Linux)."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loftr_ros.settings import ConfigError, Settings, setting

_HOW_PERMITTED = (
    "permit it by a limit (LimitRTPRIO= of systemd, rtprio in limits.conf, --ulimit rtprio=99 --cap-add sys_nice of "
    "Docker), or set scheduling.realtime_priority to 0"
)


@dataclass(frozen=True)
class SchedulingParameters(Settings):
    """Priorities and cores of the node's threads."""

    background_nice: int = setting(
        0,
        "Niceness, relative to the node, of the thread that runs the network while optical flow locates frames",
        low=0,
        high=19,
        live=False,
    )
    realtime_priority: int = setting(
        0,
        "Priority of the threads that locate frames under SCHED_FIFO, where the system permits it; 0 for none",
        low=0,
        high=98,
        live=False,
    )
    cores: str = setting(
        "",
        "CPU cores for the threads that process frames and run the network, such as `0-1,3`; empty for all",
        live=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        cores_of(self.cores)


def cores_of(text: str) -> frozenset[int]:
    """The numbers in a list such as `0-1,3`; none for an empty text.

    Raises:
        ConfigError: the text is no such list.
    """
    numbers: set[int] = set()
    for part in text.replace(" ", "").split(",") if text.strip() else []:
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise ConfigError(f"cores is '{text}'; expected numbers and ranges such as 0-1,3, or nothing")
        numbers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return frozenset(numbers)


class Scheduling:
    """Applies the parameters to threads. What the system does not permit is told, and left as it was."""

    def __init__(self, parameters: SchedulingParameters, warn: Callable[[str], object]) -> None:
        """Args:
            parameters: what is wanted.
            warn: called with what was not permitted, and what to do.

        Raises:
            ConfigError: a core does not exist, or this process may not use it.
        """
        self._parameters, self._warn = parameters, warn
        self._cores = cores_of(parameters.cores)
        if self._cores and not hasattr(os, "sched_setaffinity"):
            raise ConfigError("scheduling.cores: this system cannot bind threads to cores")
        if self._cores and (missing := self._cores - os.sched_getaffinity(0)):
            raise ConfigError(
                f"scheduling.cores is '{parameters.cores}', but this process may not use core "
                f"{_listed(missing)}; it may use {_listed(os.sched_getaffinity(0))}"
            )

    def of_frames(self) -> None:
        """Apply what is meant for a thread that locates frames to the calling thread, before it starts others."""
        self._bind()
        if not (priority := self._parameters.realtime_priority):
            return
        if not hasattr(os, "sched_setscheduler"):
            self._warn("scheduling.realtime_priority: this system has no SCHED_FIFO")
            return
        try:
            # Threads that it starts are not meant: the network's would starve everything else.
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(threading.get_native_id(), policy, os.sched_param(priority))
        except OSError as error:
            self._warn(f"scheduling.realtime_priority {priority} is not in effect ({error.strerror}): {_HOW_PERMITTED}")

    def of_background(self) -> None:
        """Apply what is meant for the network beside optical flow to the calling thread."""
        self._bind()
        if not self._parameters.background_nice or not hasattr(os, "setpriority"):
            return
        thread = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, thread) + self._parameters.background_nice
        os.setpriority(os.PRIO_PROCESS, thread, min(nice, 19))

    def _bind(self) -> None:
        if self._cores:
            os.sched_setaffinity(threading.get_native_id(), self._cores)


def _listed(cores: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(cores)))
