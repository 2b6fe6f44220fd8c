"""Unusable frames in the middle of a recording: is the camera still located after them?

Each kind is inserted 1, 6 and 30 times in a row after some good frames. Then the recording continues where it was. The
trajectory must continue in the same segment, and the last frame must have the same location as in the run without bad
frames.

    .venv/bin/python benchmarks/bad_frames.py [--sources rendered:room ../shared/data/sevenscenes] [--quick]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import DepthImage, Frame, RightImage
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd, FrontEndResult
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.matcher.interface import Matcher
from loftr_ros.recordings import SourceError, open_source
from loftr_ros.settings import with_values

Gray = NDArray[np.uint8]
Random = np.random.Generator


def kind_of(number: int, every: int, kinds: Sequence[str]) -> str:
    """Kind of an image of a stream of which one of `every` is bad, a kind after the other; "" for a good one."""
    return kinds[number // every % len(kinds)] if every and number % every == every // 2 else ""


def noisy(level: float, shape: tuple[int, ...], random: Random) -> Gray:
    """A flat image with a sensor's noise."""
    return np.clip(random.normal(level, 2.0, shape) + 0.5, 0, 255).astype(np.uint8)


def hand(image: Gray, random: Random) -> Gray:
    """A hand before the lens: soft shades without edges."""
    shades = cv2.resize(random.normal(110, 20, (3, 4)), image.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(shades + random.normal(0, 2.0, image.shape), 0, 255).astype(np.uint8)


def other_scene(image: Gray, random: Random) -> Gray:
    """Another textured scene; the same in each frame, except for the noise."""
    height, width = image.shape
    pattern = np.random.default_rng(5)
    picture = np.zeros((height, width), np.float32)
    for size in (6, 17, 50, 140):
        rough = pattern.normal(0, size**0.5, (height // size + 3, width // size + 3)).astype(np.float32)
        picture += cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = 127 + 45 * picture / picture.std()
    return np.clip(picture + random.normal(0, 2.0, image.shape), 0, 255).astype(np.uint8)


def wrong_step(image: Gray, _: Random) -> Gray:
    """Rows shifted by 13 more pixels each, as with a driver's wrong step."""
    flat = image.ravel()
    width = image.shape[1]
    rows = (np.arange(image.shape[0])[:, None] * (width + 13) + np.arange(width)) % flat.size
    return np.asarray(flat[rows], np.uint8)


def torn(image: Gray, random: Random) -> Gray:
    """A lost packet: only noise below the first rows."""
    result = random.integers(0, 256, image.shape, dtype=np.uint8)
    result[: image.shape[0] // 12] = image[: image.shape[0] // 12]
    return result


def blocks(image: Gray, random: Random) -> Gray:
    """A damaged video: blocks of 16 px from anywhere in the image."""
    height, width = (side // 16 * 16 for side in image.shape)
    tiles = image[:height, :width].reshape(height // 16, 16, width // 16, 16).swapaxes(1, 2).reshape(-1, 16, 16)
    tiles = tiles[random.permutation(len(tiles))].reshape(height // 16, width // 16, 16, 16)
    result = image.copy()
    result[:height, :width] = tiles.swapaxes(1, 2).reshape(height, width)
    return result


# The first ten kinds used to end trajectories; the others are variations of them.
KINDS: dict[str, Callable[[Gray, Random], Gray]] = {
    "black": lambda image, random: noisy(0, image.shape, random),
    "white": lambda image, random: noisy(255, image.shape, random),
    "hand": hand,
    "other scene": other_scene,
    "blurred": lambda image, _: np.asarray(cv2.GaussianBlur(image, (0, 0), image.shape[1] / 25), np.uint8),
    "very dark": lambda image, random: np.clip(image * 0.01 + random.normal(0, 1.5, image.shape), 0, 255).astype(
        np.uint8
    ),
    "saturated": lambda image, _: np.where(image > 8, 255, image).astype(np.uint8),
    "wrong step": wrong_step,
    "upside down": lambda image, _: np.ascontiguousarray(image[::-1, ::-1]),
    "noise": lambda image, random: random.integers(0, 256, image.shape, dtype=np.uint8),
    "gray": lambda image, random: noisy(128, image.shape, random),
    "mirrored": lambda image, _: np.ascontiguousarray(image[:, ::-1]),
    "negative": lambda image, _: np.asarray(255 - image, np.uint8),
    "torn": torn,
    "blocks": blocks,
    "stripes": lambda image, _: np.tile(
        np.where(np.arange(image.shape[1]) // 16 % 2, 220, 30).astype(np.uint8), (image.shape[0], 1)
    ),
    "chessboard": lambda image, _: np.asarray(
        np.where((np.indices(image.shape) // 24).sum(axis=0) % 2, 220, 30), np.uint8
    ),
}


def spoiled(frame: Frame, kind: str, random: Random) -> Frame:
    """The frame with an image of a kind; depth fails too, because it looks at the same scene."""
    spoil = KINDS[kind]
    depth, right = frame.depth, frame.right
    if depth is not None:
        depth = DepthImage(np.zeros_like(depth.values), depth.unit)
    if right is not None:
        right = RightImage(spoil(right.image, random), right.camera, right.left_from_right)
    return replace(frame, image=spoil(frame.image, random), depth=depth, right=right, compressed=None)


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        results: of the good frames, before and after the bad ones.
        bad: results of the bad frames.
    """

    results: list[FrontEndResult]
    bad: list[FrontEndResult]


def run(
    matcher: Matcher, config: FrontEndConfig, frames: Sequence[Frame], after: int, kind: str, count: int
) -> Outcome:
    """Run a front end over frames, with `count` bad ones inserted before number `after`; later frames come later by
    these.
    """
    front_end, random = FrontEnd(matcher, config), np.random.default_rng([after, count])
    step = frames[1].stamp_ns - frames[0].stamp_ns
    outcome = Outcome([], [])
    for number, frame in enumerate(frames):
        if number == after:
            for k in range(count):
                bad = spoiled(replace(frame, stamp_ns=frame.stamp_ns + k * step), kind, random)
                outcome.bad.append(front_end.process(bad))
        late = count * step if number >= after else 0
        outcome.results.append(front_end.process(replace(frame, stamp_ns=frame.stamp_ns + late)))
    return outcome


def verdict(outcome: Outcome, clean: Outcome, after: int) -> str:
    """Description of what is wrong with a run; empty for nothing."""
    first, last, should = outcome.results[after - 1].location, outcome.results[-1].location, clean.results[-1].location
    if first is None or should is None:
        return "not located without bad frames"
    if last is None:
        return f"not located again ({outcome.results[-1].state.name})"
    if last.segment != first.segment:
        return f"segment {first.segment} became {last.segment}"
    found = next((k for k, r in enumerate(outcome.results[after:]) if r.location is not None), None)
    if found is None or found >= 5:
        return f"located again after {found} frames"
    off = float(np.linalg.norm(last.pose[:3, 3] - should.pose[:3, 3]))
    allowed = 3 * float(np.sqrt(np.trace(last.covariance[:3, :3]) + np.trace(should.covariance[:3, :3]))) + 1e-3
    if off > allowed:
        return f"{off:.3f} off, by {allowed:.3f} allowed"
    there = clean.results[after].location
    for result in outcome.bad:
        place = result.location
        if there is None or place is None or place.segment != first.segment:
            continue
        off = float(np.linalg.norm(place.pose[:3, 3] - there.pose[:3, 3]))
        allowed = 3 * float(np.sqrt(np.trace(place.covariance[:3, :3]) + np.trace(there.covariance[:3, :3]))) + 1e-3
        if off > allowed:
            return f"a bad frame was located {off:.3f} off, by {allowed:.3f} allowed"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=["rendered:room?frames=16", "../shared/data/sevenscenes"])
    parser.add_argument("--modes", nargs="+", default=["mono", "stereo", "rgbd"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 6, 30])
    parser.add_argument("--before", type=int, default=8, help="good frames before the bad ones")
    parser.add_argument("--frames", type=int, default=14, help="good frames in all")
    parser.add_argument("--step", type=int, default=2, help="take every N-th frame")
    parser.add_argument("--quick", action="store_true", help="6 bad frames only")
    arguments = parser.parse_args()
    counts = [6] if arguments.quick else arguments.counts
    matcher = open_matcher(matcher_spec(MatcherConfig(), MatchingConfig()))
    failed = total = 0
    for name in arguments.sources:
        for mode in arguments.modes:
            config = with_values(FrontEndConfig(), {"mode": mode})
            with open_source(name, step=arguments.step, stop=arguments.frames * arguments.step) as source:
                try:
                    source.require(mode)
                except SourceError:
                    continue
                frames = [frame.to_frame(mode) for frame in source]
            before = min(arguments.before, len(frames) // 2)
            clean = run(matcher, config, frames, before, "black", 0)
            for kind in arguments.kinds:
                said = []
                for count in counts:
                    wrong = verdict(run(matcher, config, frames, before, kind, count), clean, before)
                    total, failed = total + 1, failed + bool(wrong)
                    said.append(f"{count}: {wrong or 'ok'}")
                print(f"{name.rsplit('/', 1)[-1]:24} {mode:7} {kind:12} {'; '.join(said)}", flush=True)
    print(f"{total - failed} of {total} go on in the same segment, at the same place")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
