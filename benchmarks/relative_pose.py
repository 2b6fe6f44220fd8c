"""Relative pose from real video: our matcher beside SIFT and ORB, through the same geometry.

Every matcher sees the same pairs, its matches go through the same MAGSAC++ and refinement, and every pair is estimated
several times with its matches in another order, since the estimator's sampling depends on it.

    .venv/bin/python benchmarks/relative_pose.py [--data ../shared/data] [--weights FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from loftr_ros.evaluation.metrics import pose_auc, rotation_error, translation_direction_error
from loftr_ros.frontend.config import FrontEndConfig, GeometryConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.relative_pose import estimate_relative_pose
from loftr_ros.matcher.checkpoint import load_network
from loftr_ros.matcher.precision import resolve_device, resolve_precision
from loftr_ros.sources import open_source
from loftr_ros.weights import find_weights

Points = NDArray[np.float32]
Matcher = Callable[[Frame, Frame], tuple[Points, Points]]

# name: folder, frames between the two images of a pair, frames between pairs
SETS = {
    "kitti06 gap 1": ("kitti06_stereo", 1, 1),
    "kitti06 gap 3": ("kitti06_stereo", 3, 1),
    "sevenscenes gap 5": ("sevenscenes", 5, 5),
    "sevenscenes gap 20": ("sevenscenes", 20, 5),
    "sevenscenes every 20th": ("sevenscenes", 20, 20),
}


@dataclass
class Score:
    """Of one matcher on one set, over all match orders."""

    aucs: list[NDArray[np.float64]]
    matches: list[int]
    inliers: list[int]
    seconds: list[float]

    def row(self) -> str:
        mean, spread = np.mean(self.aucs, axis=0), np.std(self.aucs, axis=0)
        auc = "/".join(f"{value:.1f}" for value in mean)
        deviation = "/".join(f"{value:.1f}" for value in spread)
        ratio = sum(self.inliers) / max(sum(self.matches) * len(self.aucs), 1)
        return (
            f"{auc} (±{deviation}) | {np.mean(self.matches):.0f} | {100 * ratio:.0f} % | "
            f"{1e3 * np.median(self.seconds):.0f}"
        )


def ours(weights: str, precision: str) -> Matcher:
    """The published low-end network with Lucas-Kanade refinement, as the front end runs it."""
    device = resolve_device("cpu")
    network = load_network(
        "coarse_lite", find_weights("coarse_lite", weights), device, resolve_precision(precision, device)
    )
    front_end = FrontEnd(network, FrontEndConfig())

    def match(frame0: Frame, frame1: Frame) -> tuple[Points, Points]:
        found = front_end.match_pair(frame0, frame1)
        return found.keyframe_points, found.current_points

    return match


def sparse(detector: cv2.Feature2D, norm: int, ratio: float | None) -> Matcher:
    """OpenCV features with mutual nearest neighbours, and the ratio test where `ratio` is given."""

    def match(frame0: Frame, frame1: Frame) -> tuple[Points, Points]:
        keypoints0, descriptors0 = detector.detectAndCompute(frame0.image, None)
        keypoints1, descriptors1 = detector.detectAndCompute(frame1.image, None)
        none = np.zeros((0, 2), np.float32)
        if descriptors0 is None or descriptors1 is None or min(len(keypoints0), len(keypoints1)) < 2:
            return none, none
        matcher = cv2.BFMatcher(norm)
        forward = matcher.knnMatch(descriptors0, descriptors1, k=2)
        back = {m.queryIdx: m.trainIdx for m in matcher.match(descriptors1, descriptors0)}
        kept = [
            m
            for m, n in forward
            if back[m.trainIdx] == m.queryIdx and (ratio is None or m.distance < ratio * n.distance)
        ]
        points0 = np.float32([keypoints0[m.queryIdx].pt for m in kept]).reshape(-1, 2)
        points1 = np.float32([keypoints1[m.trainIdx].pt for m in kept]).reshape(-1, 2)
        return points0, points1

    return match


def pairs(folder: Path, gap: int, stride: int) -> Iterator[tuple[Frame, Frame, NDArray[np.float64]]]:
    """Frames and T_first_second of every pair whose poses are known."""
    with open_source(str(folder)) as source:
        frames = list(source)
    for i in range(0, len(frames) - gap, stride):
        first, second = frames[i], frames[i + gap]
        if first.pose is not None and second.pose is not None:
            yield first.to_frame(), second.to_frame(), np.linalg.inv(first.pose) @ second.pose


def evaluate(matcher: Matcher, data: list[tuple[Frame, Frame, NDArray[np.float64]]], orders: int) -> Score:
    """Match every pair once, estimate its pose `orders` times."""
    score = Score([], [], [], [])
    errors = np.zeros((orders, len(data)))
    for i, (frame0, frame1, truth) in enumerate(data):
        assert frame0.camera is not None and frame1.camera is not None
        start = time.perf_counter()
        points0, points1 = matcher(frame0, frame1)
        score.seconds.append(time.perf_counter() - start)
        score.matches.append(len(points0))
        rays0, rays1 = frame0.camera.unproject(points0), frame1.camera.unproject(points1)
        for order in range(orders):
            shuffled = np.random.default_rng(order).permutation(len(points0))
            pose = estimate_relative_pose(
                rays0[shuffled], rays1[shuffled], frame0.camera.focal_length, GeometryConfig()
            )
            score.inliers.append(int(pose.inliers.sum()))
            errors[order, i] = np.inf
            if pose.has_rotation:
                rotation = rotation_error(pose.rotation, truth[:3, :3])
                errors[order, i] = max(rotation, translation_direction_error(pose.translation, truth[:3, 3]))
    score.aucs = [pose_auc(row) for row in errors]
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sequences")
    parser.add_argument("--weights", default="", help="weights of coarse_lite")
    parser.add_argument("--precision", default="auto", help="of coarse_lite")
    parser.add_argument("--orders", type=int, default=5, help="match orders that every pose is estimated with")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"{arguments.data} is not there; give the folder of the sequences by --data")
    matchers = {
        f"coarse_lite + LK ({arguments.precision})": ours(arguments.weights, arguments.precision),
        "SIFT 2000, ratio 0.8": sparse(cv2.SIFT_create(2000), cv2.NORM_L2, 0.8),
        "ORB 2000": sparse(cv2.ORB_create(2000), cv2.NORM_HAMMING, None),
    }
    print(f"AUC@5/10/20 of max(rotation, translation direction), mean (± standard deviation) over {arguments.orders}")
    print(f"match orders; torch {torch.__version__}, OpenCV {cv2.__version__}, {torch.get_num_threads()} threads.")
    print("Time: both images from pixels to matches, nothing cached.\n")
    print("| set | pairs | matcher | AUC@5/10/20 | matches | inliers | ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (folder, gap, stride) in SETS.items():
        data = list(pairs(arguments.data / folder, gap, stride))
        for label, matcher in matchers.items():
            matcher(*data[0][:2])
            print(f"| {name} | {len(data)} | {label} | {evaluate(matcher, data, arguments.orders).row()} |", flush=True)


if __name__ == "__main__":
    main()
