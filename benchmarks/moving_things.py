"""Precision and recall of the flag of moving things, on rendered walks with a box that crosses the view.

A match is truly moving if both of its points are on the box, which moved by more than 4 px against the scene. A flag is
wrong if no point of its match is within 8 px of the box. The same walks without the box, and walks through buildings
made of look-alikes, must have no flag; the number of their wrong matches (more than 5 px off) is given.

    .venv/bin/python benchmarks/moving_things.py [--seeds 1 2 3] [--frames 90] [--modes mono rgbd] [--report FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from measuring import Report
from moving_box import MovingBox
from numpy.typing import NDArray

from loftr_ros.frontend.config import MONO, RGBD, FrontEndConfig
from loftr_ros.frontend.frame import DepthImage, Frame
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.results import KeyframeMatch
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.settings import with_values
from loftr_ros.worlds.revisits import World
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

Array = NDArray[np.float64]
RATE = 15.0
MOVED, WRONG, BORDER = 4.0, 5.0, 8  # px


@dataclass(frozen=True, eq=False)
class View:
    """A rendered view with its truth."""

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    moving: NDArray[np.bool_]
    pose: Array
    camera: CameraModel


@dataclass
class Counts:
    """Matches of a walk, and errors of the poses relative to keyframes."""

    matches: int = 0
    truly: int = 0
    found: int = 0
    flagged: int = 0
    wrongly: int = 0
    wrong_matches: int = 0
    landmarks: int = 0
    on_box: int = 0
    frames: int = 0
    located: int = 0
    turns: list[float] = field(default_factory=list)

    def add(self, match: KeyframeMatch, there: View, here: View) -> None:
        found = match.correspondences
        moving = np.zeros(len(found), np.bool_) if match.moving is None else match.moving
        rows0, rows1 = (np.rint(p).astype(int).T[::-1] for p in (found.keyframe_points, found.current_points))
        inside = (rows1[0] >= 0) & (rows1[1] >= 0) & (rows1[0] < here.image.shape[0]) & (rows1[1] < here.image.shape[1])
        at0, at1 = tuple(rows0), tuple(np.where(inside, rows1, 0))
        on0, on1 = there.moving[at0], here.moving[at1] & inside
        wide = np.ones((2 * BORDER + 1, 2 * BORDER + 1), np.uint8)
        near = (
            cv2.dilate(there.moving.astype(np.uint8), wide)[at0] + cv2.dilate(here.moving.astype(np.uint8), wide)[at1]
        )
        depth = there.depth[at0].astype(np.float64)
        rays = np.column_stack([there.camera.unproject(found.keyframe_points), np.ones(len(found))])
        relative = np.linalg.inv(there.pose) @ here.pose
        still = (rays * depth[:, None] - relative[:3, 3]) @ relative[:3, :3]
        pixels = still[:, :2] / still[:, 2:] * here.camera.matrix[[0, 1], [0, 1]] + here.camera.matrix[:2, 2]
        off = np.linalg.norm(pixels - found.current_points, axis=1)
        truly = on0 & on1 & (off > MOVED)
        self.matches += len(found)
        self.truly += int(truly.sum())
        self.found += int((truly & moving).sum())
        self.flagged += int(moving.sum())
        self.wrongly += int((moving & (near == 0)).sum())
        self.wrong_matches += int(((off > WRONG) & (near == 0)).sum())
        self.landmarks += int(match.pose.inliers.sum())
        self.on_box += int((match.pose.inliers & on0 & (off > MOVED)).sum())
        self.turns.append(float(np.degrees(np.linalg.norm(cv2.Rodrigues(relative[:3, :3].T @ match.pose.rotation)[0]))))

    def line(self, name: str) -> str:
        right = self.flagged - self.wrongly
        return (
            f"{name}: {self.located} of {self.frames} located, rotation {np.median(self.turns):.3f} deg; "
            f"{self.matches} matches, {self.truly} truly moving, {self.wrong_matches} wrong; "
            f"flagged {self.flagged}, precision {100 * right / max(self.flagged, 1):.1f} %, "
            f"recall {100 * self.found / max(self.truly, 1):.1f} %; "
            f"inliers on what moves {self.on_box} of {self.landmarks}"
        )


def walk(seed: int, frames: int, moving: bool) -> Iterator[View]:
    scene, camera, poses = Scene(seed), default_camera(), trajectory(frames, RATE, seed)
    box = MovingBox(scene, frames, RATE)
    for number, pose in enumerate(poses):
        if moving:
            view = box.render(camera, pose, number)
            yield View(view.image, view.depth, view.moving, pose, camera)
        else:
            plain = scene.render(camera, pose)
            yield View(plain.image, plain.depth, np.zeros(plain.image.shape, np.bool_), pose, camera)


def building(seed: int, frames: int) -> Iterator[View]:
    world = World(seed, RATE)
    for number, pose in enumerate(world.poses[:frames]):
        image, depth = world.shot(number)
        yield View(image, depth, np.zeros(image.shape, np.bool_), pose, world.camera)


def run(views: list[View], mode: str, matcher: object, enabled: bool) -> Counts:
    front_end = FrontEnd(matcher, with_values(FrontEndConfig(), {"mode": mode, "moving.enabled": enabled}))  # type: ignore[arg-type]
    counts, shown = Counts(), {}
    for number, view in enumerate(views):
        stamp = 10**9 + round(number * 1e9 / RATE)
        shown[stamp] = view
        depth = DepthImage(view.depth, 1.0) if mode == RGBD else None
        result = front_end.process(Frame(view.image, stamp, "camera", view.camera, depth=depth))
        counts.frames += 1
        counts.located += result.is_located
        if result.location is not None:
            match = result.matches[0]
            counts.add(match, shown[match.keyframe.frame.stamp_ns], view)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--worlds", nargs="*", type=int, default=[810, 811], help="buildings of look-alikes")
    parser.add_argument("--frames", type=int, default=90, help="of each walk")
    parser.add_argument("--modes", nargs="+", default=[MONO, RGBD], choices=[MONO, RGBD])
    parser.add_argument("--report", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    report = Report()
    matcher = open_matcher(matcher_spec(MatcherConfig(), MatchingConfig()))
    for seed in arguments.seeds:
        for moving in (True, False):
            views = list(walk(seed, arguments.frames, moving))
            for mode in arguments.modes:
                for enabled in (True, False) if moving else (True,):
                    name = (
                        f"room {seed}, {mode}, {'box' if moving else 'no box'}{'' if enabled else ', not looked for'}"
                    )
                    report(run(views, mode, matcher, enabled).line(name))
    for seed in arguments.worlds:
        views = list(building(seed, arguments.frames))
        for mode in arguments.modes:
            report(run(views, mode, matcher, True).line(f"building {seed}, {mode}"))
    if arguments.report:
        arguments.report.write_text("\n".join(report.lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
