"""Benefit of a gyroscope and of another odometry, and the effect of faulty ones.

On the walks of `wrong_and_sure.py`: every view's true pose gives angular velocities at 200 Hz, with noise and a bias;
then the same with axes swapped, 50 ms late, and stuck at the last value. Each is compared with the front end without a
gyroscope, on the same frames.

With --turns: a walk through a room with turns of 300 degrees a second, a rolling shutter of 15 ms, an exposure of 8 ms,
one in ten frames dropped, and 2 s of darkness. The sources are none at all, constant velocity, a gyroscope, and an
odometry of 50 Hz with an error of 2 % in length and rotation; each also swapped, late and stuck.

    .venv/bin/python benchmarks/gyroscope_prior.py [--worlds 810] [--frames 200] [--modes mono rgbd] [--cache DIR]
    .venv/bin/python benchmarks/gyroscope_prior.py --turns --worlds 3 [--frames 105] [--cache DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from measuring import Report
from numpy.typing import NDArray
from shutter import Motion, Shutter, expose, fast_turns, middle_of
from wrong_and_sure import RATE, Errors, Views, walk

from loftr_ros.frontend.config import MONO, RGBD, FrontEndConfig
from loftr_ros.frontend.frame import DepthImage, Frame
from loftr_ros.frontend.gyroscope import Gyroscope
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.prior import ConstantVelocity
from loftr_ros.frontend.wheel_odometry import WheelOdometry
from loftr_ros.geometry.se3 import between, rotation_matrix, rotation_vector
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.settings import with_values
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

Array = NDArray[np.float64]
PERIOD = 5_000_000  # ns
# rad/s: of one sample at 200 Hz, and the bias along each axis.
NOISE, BIAS = 0.02, 0.03
LATE = 50_000_000  # ns
SWAP = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
VARIANTS = ("none", "gyroscope", "swapped", "late", "stuck")
# The walk with fast turns: frames a second, deg/s, s of readout and exposure, share of lost frames, s of darkness.
TURNS_RATE, TURN, SHUTTER, LOST, DARKNESS = 15.0, 300.0, Shutter(0.008, 0.015, 12), 0.1, (3.0, 5.0)
FINE = 200.0  # Hz of the poses that define the motion
ODOMETRY_PERIOD, ODOMETRY_ERROR = 20_000_000, 0.02
SOURCES = ("none", "constant velocity", *(f"{source} {fault}".strip() for source in ("gyroscope", "odometry")
           for fault in ("", "swapped", "late", "stuck")))  # fmt: skip


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


@dataclass(frozen=True, eq=False)
class Turns:
    """The walk with fast turns, rendered."""

    motion: Motion
    frames: list[tuple[Frame, Array]]


def turns(seed: int, count: int, mode: str, cache: Path | None) -> Turns:
    """Frames with their true poses; a frame's stamp is the middle of its exposure."""
    camera, seconds = default_camera(320, 240), count / TURNS_RATE + 1
    poses = trajectory(round(seconds * FINE), FINE, seed)
    motion, random = Motion(fast_turns(poses, FINE, TURN), FINE), np.random.default_rng(seed)
    frames = []
    for number in range(count):
        start = 0.1 + number / TURNS_RATE
        file = None if cache is None else cache / f"turns_{seed}" / f"{number:05d}.npz"
        if file is not None and file.is_file():
            with np.load(file) as kept:
                image, depth = kept["image"], kept["depth"]
        else:
            view = expose(Scene(seed), camera, motion, start, SHUTTER)
            image, depth = view.image, view.depth
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez(file, image=image, depth=depth)
        if random.random() < LOST:
            continue
        if DARKNESS[0] <= start < DARKNESS[1]:
            image = np.clip(random.normal(2, 1, image.shape), 0, 255).astype(np.uint8)
        middle = middle_of(start, SHUTTER)
        stamp = 10**9 + round(middle * 1e9)
        measured = DepthImage(depth, 1.0) if mode == RGBD else None
        frames.append((Frame(image, stamp, "camera", camera, depth=measured), motion(middle)))
    return Turns(motion, frames)


def without_prediction() -> AbstractContextManager[object]:
    """The front end expects no motion."""
    return patch.object(ConstantVelocity, "expected", return_value=None)


def run_turns(source: str, seed: int, mode: str, matcher: object, walked: Turns) -> tuple[Errors, str]:
    """One run over the walk with fast turns."""
    errors, truth = Errors(), {}
    front_end = FrontEnd(matcher, with_values(FrontEndConfig(), {"mode": mode}))  # type: ignore[arg-type]
    kind, _, fault = source.partition(" ")
    random = np.random.default_rng(seed)
    bias = random.normal(0, BIAS, 3)
    swap = np.eye(4)
    swap[:3, :3] = SWAP if fault == "swapped" else np.eye(3)
    gyroscope = Gyroscope(camera_from_imu=swap[:3, :3]) if kind == "gyroscope" else None
    odometry = WheelOdometry(base_from_camera=swap) if kind == "odometry" else None
    front_end.use_gyroscope(gyroscope)
    front_end.use_odometry(odometry)
    late = LATE if fault == "late" else 0
    stamp, place, before, rate = 10**9, np.eye(4), walked.motion(0.0), np.zeros(3)
    alone = []
    for frame, pose in walked.frames:
        truth[frame.stamp_ns] = pose
        while stamp < frame.stamp_ns + PERIOD:
            seconds = (stamp - 10**9) / 1e9
            is_stuck = fault == "stuck" and seconds > 1.5
            if gyroscope is not None:
                rate = rate if is_stuck else walked.motion.rate(seconds) + bias + random.normal(0, NOISE, 3)
                gyroscope.add(stamp + late, rate)
            if odometry is not None and (stamp - 10**9) % ODOMETRY_PERIOD == 0:
                here = walked.motion(seconds)
                step, before = between(before, here), here
                step[:3, 3] *= 1 + ODOMETRY_ERROR
                step[:3, :3] = rotation_matrix((1 + ODOMETRY_ERROR) * rotation_vector(step[:3, :3]))
                place = place if is_stuck else place @ step
                odometry.add(stamp + late, place)
            stamp += PERIOD
        result = front_end.process(frame)
        errors.add(result, truth, f"{source}, room {seed} at {frame.stamp_ns / 1e9 - 1:.2f} s")
        alone.append(result.orientation is not None)
    said = f"orientation alone in {sum(alone)} frames"
    for each in (gyroscope, odometry):
        if each is not None:
            said += f", {each.state.name}. {each.mounting()}"
    return errors, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", type=int, default=[810])
    parser.add_argument("--modes", nargs="+", default=[MONO, RGBD], choices=[MONO, RGBD])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--turns", action="store_true", help="the walk with fast turns; worlds are seeds of rooms")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES, help="with --turns")
    parser.add_argument("--frames", type=int, default=200, help="of each walk, at most")
    parser.add_argument("--cache", type=Path, help="folder for rendered views, 0.9 MB each")
    parser.add_argument("--report", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    report = Report()
    matcher = open_matcher(matcher_spec(MatcherConfig(), MatchingConfig()))
    wrong = 0
    for mode in arguments.modes if arguments.turns else ():
        for seed in arguments.worlds:
            walked = turns(seed, arguments.frames, mode, arguments.cache)
            for source in arguments.sources:
                with without_prediction() if source == "none" else nullcontext():
                    errors, said = run_turns(source, seed, mode, matcher, walked)
                for line in errors.lines(f"{mode}, {source}, room {seed}, fast turns"):
                    report(line)
                report(f"  {said}")
                wrong += errors.wrong_and_ok
    for mode in () if arguments.turns else arguments.modes:
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
