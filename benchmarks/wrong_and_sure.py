"""Errors of the front end's poses against its own stated uncertainty, on disturbed walks through rendered buildings.

Frames are lost for up to 8 s, a lens is covered, it is dark, the image is blurred, the calibration has typical errors,
depth has noise and a scale error, and a stereo pair's right camera is neither quite where it should be nor turned so.
Every pose relative to a keyframe is compared with the truth: a pose of status OK is wrong and sure if it is off by more
than 5 of its standard deviations, and by more than 5 degrees or 10 % of the distance (and 3 cm).

Worlds 800 to 899 were used to choose limits; report on 700 to 799.

    .venv/bin/python benchmarks/wrong_and_sure.py [--worlds 705 706] [--poses 5000] [--cache DIR] [--report FILE]
    .venv/bin/python benchmarks/wrong_and_sure.py --recordings ../shared/data
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import yaml
from measuring import Report
from network_behind import HELP, FrontEndBehind
from numpy.typing import NDArray

from loftr_ros.frontend.config import MONO, RGBD, STEREO, FrontEndConfig
from loftr_ros.frontend.frame import DepthImage, Frame, RightImage
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.two_view import PoseStatus, RelativePose
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.recordings import open_source
from loftr_ros.settings import with_values
from loftr_ros.worlds.revisits import World

Array = NDArray[np.float64]
Gray = NDArray[np.uint8]

RATE = 3.0  # rendered views per second
# Standard deviations of the errors of calibrations and depth cameras.
FOCAL, CENTRE, DEPTH_SCALE, DEPTH_NOISE = 0.004, 1.5, 0.01, 0.003
# Metres between the cameras of a stereo pair; standard deviations of its relative error, and of the right camera's
# principal point relative to the left one's, px.
BASELINE, BASELINE_ERROR, RECTIFIED = 0.12, 0.005, 0.2
# Shares of the time: dark, blurred, covered lens, noise instead of an image.
DARK, BLURRED, HIDDEN, GARBLED = 0.08, 0.08, 0.08, 0.02
SIGMAS, DEGREES, PART, LEAST = 5.0, 5.0, 0.1, 0.03


@dataclass
class Errors:
    """Errors of poses compared with their stated uncertainty.

    Attributes:
        statuses: number of each.
        position: errors over their standard deviations (the root of the trace), of poses in metres.
        direction: of translation directions of unit length, likewise.
        rotation: likewise.
        wrong: descriptions of poses that are wrong and sure.
        frames: processed; `located` of them with a place in the trajectory.
        states: number of each tracking state.
        full: number of frames by how they were matched, as names of `FrameMatch`.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    position: list[float] = field(default_factory=list)
    direction: list[float] = field(default_factory=list)
    rotation: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    frames: int = 0
    located: int = 0
    states: Counter[str] = field(default_factory=Counter)
    full: Counter[str] = field(default_factory=Counter)

    def add(self, result: FrontEndResult, truth: dict[int, Array], name: str) -> None:
        """All poses of a frame."""
        self.frames += 1
        self.located += result.is_located
        self.states[result.state.name] += 1
        self.full[result.frame_match.name] += 1
        for match in result.matches:
            self.statuses[match.pose.status.name] += 1
            if match.pose.is_believed:
                true = np.linalg.inv(truth[match.keyframe.frame.stamp_ns]) @ truth[result.frame.stamp_ns]
                self._pose(match.pose, true, f"{name} keyframe {match.keyframe.id}: {match.pose.status.name}")

    def _pose(self, pose: RelativePose, true: Array, name: str) -> None:
        turn = float(np.linalg.norm(cv2.Rodrigues(true[:3, :3].T @ pose.rotation)[0]))
        turn_std = float(np.sqrt(np.trace(pose.covariance[3:, 3:])))
        way = float(np.linalg.norm(true[:3, 3]))
        self.rotation.append(turn / turn_std)
        said = f"{name}, {int(pose.inliers.sum())} of {len(pose.inliers)}, {np.degrees(turn):.1f} deg"
        far = turn > np.radians(DEGREES)
        sure = turn > SIGMAS * turn_std
        std = float(np.sqrt(np.trace(pose.covariance[:3, :3])))
        if pose.scale_known:
            off = float(np.linalg.norm(pose.translation - true[:3, 3]))
            self.position.append(off / std)
            far_off = off > max(PART * way, LEAST)
            if (far and sure) or (far_off and off > SIGMAS * std):
                self._wrong(pose, f"{said}, {off:.2f} of {way:.2f} m, std {std:.3f} m")
        elif pose.has_direction and way > LEAST:
            off = float(np.arccos(np.clip(pose.translation @ true[:3, 3] / way, -1, 1)))
            self.direction.append(off / std)
            if (far and sure) or (off > np.radians(DEGREES) and off > PART and off > SIGMAS * std):
                self._wrong(pose, f"{said}, direction {np.degrees(off):.1f} deg, std {np.degrees(std):.2f} deg")
        elif far and sure:
            self._wrong(pose, said)

    def _wrong(self, pose: RelativePose, said: str) -> None:
        self.wrong.append(said if pose.status == PoseStatus.OK else f"({said})")

    @property
    def wrong_and_ok(self) -> int:
        """Number of wrong and sure poses of status OK."""
        return sum(not said.startswith("(") for said in self.wrong)

    def lines(self, name: str) -> list[str]:
        poses = sum(self.statuses.values())
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common())
        states = ", ".join(f"{count} {state}" for state, count in self.states.most_common())
        full = ", ".join(f"{count} {why}" for why, count in self.full.most_common())
        text = [f"{name}: {poses} poses of {self.frames} frames, {self.located} located"]
        text += [f"  {counts}", f"  {states}", f"  matched in full because: {full}"]
        for what, values in (("position", self.position), ("direction", self.direction), ("rotation", self.rotation)):
            if values:
                shares = [100 * float(np.mean(np.array(values) <= k)) for k in (1, 2, 3)]
                text.append(
                    f"  {what:9} within 1, 2, 3 sigma: {shares[0]:.1f}, {shares[1]:.1f}, {shares[2]:.1f} % "
                    f"of {len(values)}; largest {max(values):.1f}"
                )
        text.append(f"  wrong and sure: {self.wrong_and_ok} of status OK, {len(self.wrong)} of any")
        return text + [f"    {said}" for said in self.wrong[:20]]


class Views:
    """Rendered views of a world, cached in a folder."""

    def __init__(self, seed: int, cache: Path | None, most: int, rate: float = RATE) -> None:
        self.seed, self.rate = seed, rate
        self._world = World(seed, rate)
        self.poses = self._world.poses[:most]
        at = "" if rate == RATE else f"_{rate:g}"
        self._folder = None if cache is None else cache / f"wrong_and_sure_{seed}{at}"

    def __len__(self) -> int:
        return len(self.poses)

    def at(self, number: int, to_the_right: float = 0.0) -> tuple[Gray, NDArray[np.float32]]:
        """Image, and depth in metres; of the view or of a camera so many metres beside it."""
        beside = f"_right_{to_the_right:g}" if to_the_right else ""
        file = None if self._folder is None else self._folder / f"{number:05d}{beside}.npz"
        if file is not None and file.is_file():
            with np.load(file) as kept:
                return kept["image"], kept["depth"].astype(np.float32) / 1000
        image, depth = self._world.shot(number, to_the_right)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, image=image, depth=np.clip(np.nan_to_num(1000 * depth), 0, 65535).astype(np.uint16))
        return image, depth


def dirty(image: Gray, random: np.random.Generator) -> Gray:
    """The image, possibly dark, blurred, covered or garbled."""
    kind = random.random()
    height, width = image.shape
    if kind < DARK:
        gain = random.uniform(0.05, 0.3)
        return np.clip(gain * image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
    if kind < DARK + BLURRED:
        length, angle = random.uniform(5, 40), random.uniform(0, np.pi)
        side = int(length) | 1
        trail = np.zeros((side, side), np.float32)
        for part in np.linspace(-side / 2 + 0.5, side / 2 - 0.5, 4 * side):
            trail[round(side / 2 - 0.5 + part * np.sin(angle)), round(side / 2 - 0.5 + part * np.cos(angle))] = 1
        return np.asarray(cv2.filter2D(image, -1, trail / trail.sum()), np.uint8)
    if kind < DARK + BLURRED + HIDDEN:
        w, h = int(random.uniform(0.4, 0.95) * width), int(random.uniform(0.5, 1.0) * height)
        x, y = int(random.uniform(0, width - w)), int(random.uniform(0, height - h))
        shades = cv2.resize(random.normal(110, 25, (12, 16)), (w, h), interpolation=cv2.INTER_CUBIC)
        result = image.copy()
        result[y : y + h, x : x + w] = np.clip(shades + random.normal(0, 1.5, shades.shape), 0, 255)
        return result
    if kind < DARK + BLURRED + HIDDEN + GARBLED:
        return random.integers(0, 256, image.shape, dtype=np.uint8)
    return image


def walk(views: Views, run: int, mode: str) -> Iterator[tuple[Frame, Array]]:
    """One run over a world's views: frames with their true poses."""
    random = np.random.default_rng([views.seed, run, (RGBD, MONO, STEREO).index(mode)])
    true = World(views.seed, views.rate).camera
    matrix = true.matrix.copy()
    matrix[[0, 1], [0, 1]] *= 1 + random.normal(0, FOCAL)
    matrix[:2, 2] += random.normal(0, CENTRE, 2)
    camera = CameraModel(true.width, true.height, matrix)
    left_from_right, shifted = np.eye(4), matrix.copy()
    if mode == STEREO:
        left_from_right[0, 3] = BASELINE * (1 + random.normal(0, BASELINE_ERROR))
        shifted[:2, 2] += random.normal(0, RECTIFIED, 2)
    right = CameraModel(true.width, true.height, shifted)
    number = int(random.integers(0, max(len(views) // 4, 1)))
    while number < len(views):
        image, depth = views.at(number)
        measured = beside = None
        if mode == STEREO:
            beside = RightImage(dirty(views.at(number, BASELINE)[0], random), right, left_from_right)
        if mode == RGBD:
            scale = 1 + random.normal(0, DEPTH_SCALE)
            noise = DEPTH_NOISE * depth**2 * random.standard_normal(depth.shape, dtype=np.float32)
            millimetres = np.clip(1000 * (scale * depth + noise), 0, 65535)
            measured = DepthImage(np.where(depth > 0, millimetres, 0).astype(np.uint16), 0.001)
        stamp = 10**9 + round(number * 1e9 / views.rate)
        frame = Frame(dirty(image, random), stamp, "camera", camera, right=beside, depth=measured)
        yield frame, views.poses[number]
        # Mostly the next view; sometimes a gap of up to 8 s.
        number += int(random.integers(1, round(8 * views.rate) + 1)) if random.random() < 0.36 / views.rate else 1


def _one_run(
    run: int, mode: str, config: FrontEndConfig, matcher: object, arguments: argparse.Namespace, total: Errors
) -> None:
    """A walk through one of the worlds; wrong and sure poses are printed at once."""
    seed = arguments.worlds[run % len(arguments.worlds)]
    views = Views(seed, arguments.cache, arguments.views, arguments.rate)
    front_end, truth = FrontEndBehind(matcher, config, arguments.behind), {}
    for frame, pose in walk(views, run // len(arguments.worlds), mode):
        truth[frame.stamp_ns] = pose
        before = len(total.wrong)
        total.add(front_end.process(frame), truth, f"world {seed} run {run} at {frame.stamp_ns / 1e9 - 1:.2f} s")
        for said in total.wrong[before:]:
            print(f"{mode}: {said}", file=sys.stderr, flush=True)


def rendered(arguments: argparse.Namespace, matcher: object, report: Report) -> int:
    failed = 0
    for mode in arguments.modes:
        config, total = with_values(FrontEndConfig(), {"mode": mode, **dict(arguments.set)}), Errors()
        run, last = 0, ""
        try:
            while sum(total.statuses.values()) < arguments.poses:
                _one_run(run, mode, config, matcher, arguments, total)
                run += 1
                print(f"{mode} run {run}: {sum(total.statuses.values())} poses", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            last = ", stopped by Ctrl-C"
        for line in total.lines(f"rendered walks, {mode}, worlds {arguments.worlds}{last}"):
            report(line)
        failed += total.wrong_and_ok
    return failed


def recorded(arguments: argparse.Namespace, matcher: object, report: Report) -> int:
    failed = 0
    for folder, modes in (("sevenscenes", (RGBD, MONO)), ("kitti06_stereo", (STEREO, MONO))):
        for mode in modes:
            for step in (1, 3, 10):
                front_end, errors, truth = (
                    FrontEndBehind(matcher, with_values(FrontEndConfig(), {"mode": mode}), arguments.behind),
                    Errors(),
                    {},
                )
                with open_source(arguments.recordings / folder, step=step) as source:
                    for each in source:
                        assert each.pose is not None
                        truth[each.stamp_ns] = each.pose
                        frame = each.to_frame(mode)
                        errors.add(front_end.process(replace(frame, stamp_ns=each.stamp_ns)), truth, folder)
                for line in errors.lines(f"{folder}, {mode}, every {step} frames"):
                    report(line)
                failed += errors.wrong_and_ok
    return failed


def pair(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", type=int, default=[705, 706, 707])
    parser.add_argument("--modes", nargs="+", default=[RGBD, MONO], choices=[RGBD, MONO, STEREO])
    parser.add_argument("--poses", type=int, default=5000, help="of each mode, at least")
    parser.add_argument("--views", type=int, default=700, help="of each world, at most")
    parser.add_argument("--rate", type=float, default=RATE, help="rendered views per second")
    parser.add_argument("--cache", type=Path, help="folder for rendered views, 0.9 MB each")
    parser.add_argument("--recordings", type=Path, help="hold poses on recordings against their truth instead")
    parser.add_argument("--set", nargs="*", type=pair, default=[], help="NAME=VALUE of settings of the front end")
    parser.add_argument("--behind", type=int, metavar="FRAMES", help=HELP)
    parser.add_argument("--report", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    report = Report()
    matcher = open_matcher(matcher_spec(MatcherConfig(), MatchingConfig()))
    failed = (rendered if arguments.recordings is None else recorded)(arguments, matcher, report)
    if arguments.report:
        arguments.report.write_text("\n".join(report.lines) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
