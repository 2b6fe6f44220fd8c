"""Time to make training pairs, by kind and size, in one process; and pictures of them.

Uses the photos and textures of `loftr_ros train assets`, or those of another folder. Pictures show both images of a
pair side by side, with some pixels and their partners in the same colour.

    .venv/bin/python benchmarks/training_data.py [--pairs 40] [--difficulty 0.7] [--sheets FOLDER] [--assets FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.training.assets import AssetBank, default_folder
from loftr_ros.training.geometry import covisible
from loftr_ros.training.mixture import SIZES, WEIGHTS, made_sources
from loftr_ros.training.sample import Sample

_PARTNERS = 14  # drawn on each pair of a sheet
_COLUMNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40, help="pairs to time, of each kind and size")
    parser.add_argument("--difficulty", type=float, default=0.7, help="from 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheets", type=Path, help="folder for a sheet of 24 pairs of each kind")
    parser.add_argument("--assets", type=Path, default=default_folder())
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    sources = made_sources(AssetBank(arguments.assets))

    def sample(kind: str, index: int, size: tuple[int, int]) -> Sample:
        return sources[kind].sample(np.random.default_rng([arguments.seed, index]), size, arguments.difficulty)

    print("| kind | size | ms a pair (median) | mean | share of pixels with a partner, 10 % / median |")
    print("| --- | --- | --- | --- | --- |")
    mean = 0.0
    for kind in sources:
        for size in SIZES[:2]:
            sample(kind, 0, size)  # one-time preparation
            times, shares = [], []
            for index in range(arguments.pairs):
                begin = time.process_time()
                made = sample(kind, index, size)
                times.append(1e3 * (time.process_time() - begin))
                shares.append(covisible(made.warp01))
            low, middle = np.quantile(shares, (0.1, 0.5))
            name = f"{size[0]}x{size[1]}"
            print(f"| {kind} | {name} | {np.median(times):.1f} | {np.mean(times):.1f} | {low:.2f} / {middle:.2f} |")
            mean += WEIGHTS[kind] * float(np.mean(times)) * (size == SIZES[0])
    print(f"\nthe usual mixture at {SIZES[0][0]}x{SIZES[0][1]}: {mean:.1f} ms a pair, {1e3 / mean:.0f} pairs/s a core")
    if arguments.sheets is not None:
        arguments.sheets.mkdir(parents=True, exist_ok=True)
        for kind in sources:
            pairs = [drawn(sample(kind, index, SIZES[0]), index) for index in range(24)]
            rows = [np.hstack(pairs[k : k + _COLUMNS]) for k in range(0, len(pairs), _COLUMNS)]
            cv2.imwrite(str(arguments.sheets / f"{kind}.png"), np.vstack(rows))


def drawn(sample: Sample, seed: int) -> NDArray[np.uint8]:
    """Both images side by side in colour, with partners marked."""
    picture = cv2.cvtColor(np.hstack([sample.image0, sample.image1]), cv2.COLOR_GRAY2BGR)
    rng = np.random.default_rng(seed)
    known = np.argwhere(np.isfinite(sample.warp01[..., 0]))
    for v, u in known[rng.permutation(len(known))[:_PARTNERS]]:
        x, y = sample.warp01[v, u]
        color = tuple(int(c) for c in rng.integers(60, 255, 3))
        cv2.circle(picture, (int(u), int(v)), 2, color, -1)
        cv2.circle(picture, (sample.image0.shape[1] + round(float(x)), round(float(y))), 2, color, -1)
    return np.asarray(picture, np.uint8)


if __name__ == "__main__":
    main()
