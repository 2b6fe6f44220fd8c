"""The front end on machines that are too slow for the camera, simulated: what it locates does not depend on this one.

A clock stands for the machine. Images arrive at the camera's rate, the newest one is processed when the last one is
done, as in the node, and the network has a thread of its own. Each run of the network and each pose takes stated
milliseconds times `--slow`. Some images are bad (see `dirty_stream.py` for the real node).

    .venv/bin/python benchmarks/slow_machine.py [--source ../shared/data/kitti06_stereo] [--mode stereo] [--every 8]

One letter an image: O is located, o by a pose that says less than OK, D and t are not (doubtful, too few matches), a
dot is never processed, k is a new keyframe (this image or one just before), and brackets hold a bad image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from bad_frames import KINDS, kind_of
from measuring import Report

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.geometry.two_view import PoseStatus
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.matcher.interface import ImageFeatures, Matcher, Matches
from loftr_ros.recordings import open_source
from loftr_ros.settings import with_values

R = TypeVar("R")
# Milliseconds, about those of two idle cores at 960x304: decoding and optical flow with its pose; encoding an image; a
# match with its pose; a quick match with its pose. Factor on them while both threads work.
FRAME, ENCODE, MATCH, QUICK, TOGETHER = 20.0, 25.0, 60.0, 35.0, 1.3
BAD = ("black", "lost", "noise", "hand", "lost", "torn", "other scene")


class Clock:
    """Milliseconds, and what the work since the last look has cost.

    Attributes:
        now: the time on the thread that processes frames.
        cost: of the work on it.
        network_until: the time until which the network's own thread works.
    """

    def __init__(self, slow: float) -> None:
        self.now = self.cost = self.network_until = 0.0
        self._slow = slow

    def spend(self, milliseconds: float) -> None:
        self.cost += self._slow * milliseconds

    def submit(self, work: Callable[[], R]) -> Future[R]:
        """Run something on the network's thread."""
        before = self.cost
        result = work()
        self.network_until = self.now + before + TOGETHER * (self.cost - before)
        self.cost = before
        return _At(self, self.network_until, result)


class _At(Future[R]):
    """A result that is there from a time on; who waits for it lets the time pass."""

    def __init__(self, clock: Clock, due: float, value: R) -> None:
        super().__init__()
        self._clock, self._due, self._value = clock, due, value

    def done(self) -> bool:
        return self._clock.now >= self._due

    def result(self, timeout: float | None = None) -> R:
        self._clock.now = max(self._clock.now, self._due)
        return self._value


class TimedMatcher:
    """A matcher that lets time pass."""

    def __init__(self, matcher: Any, clock: Clock) -> None:
        self._matcher, self._clock = matcher, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def encode(self, *arguments: Any) -> ImageFeatures:
        self._clock.spend(ENCODE)
        return self._matcher.encode(*arguments)

    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        self._clock.spend(MATCH * len(keyframes))
        return self._matcher.match(keyframes, current)

    def match_quickly(self, keyframes: Sequence[ImageFeatures], *arguments: Any) -> list[Matches]:
        self._clock.spend(QUICK * len(keyframes))
        return self._matcher.match_quickly(keyframes, *arguments)


def letters(result: FrontEndResult) -> str:
    """What became of a frame."""
    if not result.matches:
        said = "k"
    else:
        status = result.matches[0].pose.status
        is_ok = status == PoseStatus.OK
        said = ("O" if is_ok else "o") if result.is_located else ("D" if status == PoseStatus.DOUBTFUL else "t")
    return said + "k" * (bool(result.matches) and any(event.added for event in result.events))


def run(matcher: Matcher, frames: Sequence[Frame], mode: str, hz: float, slow: float, every: int) -> str:
    """Simulate one machine; returns a line about it."""
    clock, random, period = Clock(slow), np.random.default_rng(0), 1e3 / hz
    front_end = FrontEnd(TimedMatcher(matcher, clock), with_values(FrontEndConfig(), {"mode": mode}))
    front_end.use_background(clock.submit)
    kinds = [kind_of(number, every, BAD) for number in range(len(frames))]
    said, next_one, free = ["."] * len(frames), 0, 0.0
    processed = located = 0
    latencies = []
    while (number := max(next_one, int(free // period))) < len(frames):
        next_one, kind = number + 1, kinds[number]
        if kind == "lost":
            continue
        frame = replace(frames[number], stamp_ns=10**9 + round(number * period * 1e6))
        if kind:
            frame = replace(frame, image=KINDS[kind](frame.image, random))
        clock.now, clock.cost = max(free, number * period), 0.0
        clock.spend(FRAME)
        result = front_end.process(frame)
        free = clock.now + clock.cost * (TOGETHER if clock.network_until > clock.now else 1.0)
        latencies.append(free - number * period)
        said[number] = f"[{letters(result)}]" if kind else letters(result)
        if not kind:
            processed, located = processed + 1, located + result.is_located
    p50, p99 = np.percentile(latencies, [50, 99])
    return (
        f"| {slow:g} | {processed} of {kinds.count('')} | {located} | {p50:.0f}, {p99:.0f} | "
        f"{front_end.localizer.segment} | `{''.join(said)}` |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="../shared/data/kitti06_stereo")
    parser.add_argument("--mode", nargs="+", default=["mono", "stereo"], choices=["mono", "stereo", "rgbd"])
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--every", type=int, default=8, help="of so many images one is bad; 0 for none")
    parser.add_argument("--frames", type=int, default=240, help="of the recording, at most")
    parser.add_argument("--slow", nargs="+", type=float, default=[0.7, 1.0, 1.3, 1.6, 2.0, 2.5])
    arguments = parser.parse_args()
    report, matcher = Report(), open_matcher(matcher_spec(MatcherConfig(), MatchingConfig()))
    for mode in arguments.mode:
        with open_source(arguments.source, stop=arguments.frames) as source:
            step = max(round(source.rate / arguments.hz), 1)
            frames = [frame.to_frame(mode) for number, frame in enumerate(source) if number % step == 0]
        bad = f", one of {arguments.every} bad" if arguments.every else ""
        report(f"\n{arguments.source}, {mode}, {arguments.hz:g} Hz{bad}\n")
        report("| slow | processed | located | p50, p99 ms | segment | images |\n| --- | --- | --- | --- | --- | --- |")
        for slow in arguments.slow:
            report(run(matcher, frames, mode, arguments.hz, slow, arguments.every))


if __name__ == "__main__":
    main()
