"""What attention and the number of matches bring, by the distance of two frames: quick matches against full ones.

Both match the same pairs of real video in turn; the poses are the front end's. Seconds are CPU time of the matching on
one thread, so that other work on the machine counts little.

    .venv/bin/python benchmarks/quick_matching.py [--data ../shared/data] [--pairs 24]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from pair_scores import score_pose
from relative_pose import chosen, limit_of

from loftr_ros.evaluation.metrics import pose_auc
from loftr_ros.frontend.config import TrackingConfig
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.matcher.interface import QuickMatcher
from loftr_ros.recordings import open_source

SETS = {"sevenscenes": (2, 5, 10, 20), "kitti06_stereo": (1, 2, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pairs", type=int, default=24, help="of each set, at most")
    parser.add_argument("--max-matches", type=int, default=TrackingConfig().max_matches, help="of the quick match")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    matcher = open_matcher(matcher_spec(MatcherConfig(threads=1), MatchingConfig()))
    if not isinstance(matcher, QuickMatcher):
        raise SystemExit(f"{matcher.config.name} cannot match quickly")
    pairs, geometry = PairMatcher(matcher), GeometryConfig()
    print("| set | frames apart | match | AUC@5/10/20 | median error, deg | matches | precision % | coverage % | ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder, gaps in SETS.items():
        with open_source(str(arguments.data / folder)) as source:
            frames = [(frame.to_frame(), frame.pose) for frame in source]
        encoded = {}
        for gap in gaps:
            scores: dict[str, list[tuple[object, float]]] = {"full": [], "quick": []}
            for first in chosen(len(frames), gap, arguments.pairs):
                second = first + gap
                for number in (first, second):
                    if number not in encoded:
                        encoded[number] = pairs.encode(frames[number][0])
                one, two = encoded[first], encoded[second]
                truth = np.linalg.inv(frames[first][1]) @ frames[second][1]
                for name, rows in scores.items():
                    start = time.process_time()
                    if name == "full":
                        found = matcher.match([one.features], two.features)[0]
                    else:
                        found = matcher.match_quickly([one.features], two.features, arguments.max_matches, [None])[0]
                    seconds = time.process_time() - start
                    raw = pairs.to_raw_pixels(one, two, found)
                    cameras = frames[first][0].camera, frames[second][0].camera
                    points = raw.keyframe_points, raw.current_points
                    rows.append((score_pose(*points, cameras, truth, limit_of(folder), geometry, 1, raw.std), seconds))
            for name, rows in scores.items():
                errors = np.array([score.errors[0] for score, _ in rows])
                means = [
                    np.nanmean([getattr(score, key) for score, _ in rows])
                    for key in ("matches", "precision", "coverage")
                ]
                auc = "/".join(f"{value:.1f}" for value in pose_auc(errors))
                milliseconds = 1e3 * np.median([seconds for _, seconds in rows])
                print(
                    f"| {folder} | {gap} | {name} | {auc} | {np.median(errors):.2f} | {means[0]:.0f} | "
                    f"{100 * means[1]:.1f} | {100 * means[2]:.1f} | {milliseconds:.1f} |"
                )


if __name__ == "__main__":
    main()
