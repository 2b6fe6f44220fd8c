"""Benefit of a gyroscope on the walks of `wrong_and_sure.py`, and the effect of a faulty one.

Every view's true pose gives angular velocities at 200 Hz, with noise and a bias; then the same with axes swapped, 50 ms
late, and stuck at the last value. Each is compared with the front end without a gyroscope, on the same frames.

    .venv/bin/python benchmarks/gyroscope_prior.py [--worlds 810] [--frames 200] [--modes mono rgbd] [--cache DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measuring import Report
from numpy.typing import NDArray
from wrong_and_sure import RATE, Errors, Views, walk

from loftr_ros.frontend.config import MONO, RGBD, FrontEndConfig
from loftr_ros.frontend.gyroscope import Gyroscope
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.geometry.se3 import rotation_vector
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.settings import with_values

Array = NDArray[np.float64]
PERIOD = 5_000_000  # ns
# rad/s: of one sample at 200 Hz, and the bias along each axis.
NOISE, BIAS = 0.02, 0.03
LATE = 50_000_000  # ns
SWAP = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
VARIANTS = ("none", "gyroscope", "swapped", "late", "stuck")


def samples(poses: Array, seed: int) -> Iterator[tuple[int, Array]]:
    """Stamps and measured rates of a walk from view to view, each step at an even rate."""
    random = np.random.default_rng(seed)
    bias = random.normal(0, BIAS, 3)
    step = round(1e9 / RATE)
    for number in range(len(poses) - 1):
        rate = rotation_vector(poses[number][:3, :3].T @ poses[number + 1][:3, :3]) * RATE
        first = 10**9 + number * step
        for stamp in range(-(-first // PERIOD) * PERIOD, first + step, PERIOD):
            yield stamp, rate + bias + random.normal(0, NOISE, 3)


def spoilt(variant: str, stamp: int, rate: Array, first: Array) -> tuple[int, Array]:
    """A sample of a faulty gyroscope."""
    if variant == "swapped":
        return stamp, SWAP @ rate
    if variant == "late":
        return stamp + LATE, rate
    return stamp, first if variant == "stuck" else rate


def run(variant: str, seed: int, mode: str, matcher: object, arguments: argparse.Namespace) -> tuple[Errors, str]:
    views, errors, truth = Views(seed, arguments.cache, 700), Errors(), {}
    front_end = FrontEnd(matcher, with_values(FrontEndConfig(), {"mode": mode}))  # type: ignore[arg-type]
    gyroscope = None if variant == "none" else Gyroscope(camera_from_imu=np.eye(3))
    front_end.use_gyroscope(gyroscope)
    measured = samples(views.poses, seed)
    first: Array | None = None
    off = []
    for count, (frame, pose) in enumerate(walk(views, 0, mode)):
        if count >= arguments.frames:
            break
        truth[frame.stamp_ns] = pose
        while gyroscope is not None and (given := next(measured, None)) is not None:
            first = given[1] if first is None else first
            gyroscope.add(*spoilt(variant, *given, first))
            if given[0] > frame.stamp_ns:
                break
        result = front_end.process(frame)
        errors.add(result, truth, f"{variant} world {seed} at {frame.stamp_ns / 1e9 - 1:.2f} s")
        off.append(result.orientation is not None)
    said = (
        ""
        if gyroscope is None
        else (
            f"bias to {np.degrees(gyroscope.bias_std):.2f} deg/s, {gyroscope.state.name}, "
            f"orientation alone in {sum(off)} frames. {gyroscope.mounting()}"
        )
    )
    return errors, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", type=int, default=[810])
    parser.add_argument("--modes", nargs="+", default=[MONO, RGBD], choices=[MONO, RGBD])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--frames", type=int, default=200, help="of each walk, at most")
    parser.add_argument("--cache", type=Path, help="folder for rendered views, 0.9 MB each")
    parser.add_argument("--report", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    report = Report()
    matcher = open_matcher(matcher_spec(MatcherConfig(), MatchingConfig()))
    wrong = 0
    for mode in arguments.modes:
        for variant in arguments.variants:
            for seed in arguments.worlds:
                errors, said = run(variant, seed, mode, matcher, arguments)
                for line in errors.lines(f"{mode}, {variant}, world {seed}"):
                    report(line)
                report(f"  {said}")
                wrong += errors.wrong_and_ok
    if arguments.report:
        arguments.report.write_text("\n".join(report.lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
