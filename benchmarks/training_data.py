"""Time to make training pairs, by kind and size, in one process; and pictures of them.

Uses the photos and textures of `loftr_ros train assets`, or those of another folder. Pictures show both images of a
pair side by side, with some pixels and their partners in the same colour. With `--torch` the pairs are those of
`machine.data_device`, on the CPU, and the first time is that of planning.

    .venv/bin/python benchmarks/training_data.py [--pairs 40] [--difficulty 0.7] [--sheets FOLDER] [--assets FOLDER]
        [--torch]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from loftr_ros.training.assets import AssetBank, default_folder
from loftr_ros.training.batched.pairs import planners
from loftr_ros.training.batched.recipes import Recipes
from loftr_ros.training.geometry import covisible
from loftr_ros.training.mixture import SIZES, WEIGHTS, Curriculum, Mixture, made_sources
from loftr_ros.training.sample import Sample
from loftr_ros.training.supervision import PairBatch

CPU = torch.device("cpu")

_PARTNERS = 14  # drawn on each pair of a sheet
_COLUMNS = 3
_BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40, help="pairs to time, of each kind and size")
    parser.add_argument("--difficulty", type=float, default=0.7, help="from 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheets", type=Path, help="folder for a sheet of 24 pairs of each kind")
    parser.add_argument("--assets", type=Path, default=default_folder())
    parser.add_argument("--torch", action="store_true", help="pairs made by torch instead of OpenCV")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if arguments.torch:
        made_by_torch(arguments)
        return
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
            mean += WEIGHTS.get(kind, 0) * float(np.mean(times)) * (size == SIZES[0])
    print(f"\nthe usual mixture at {SIZES[0][0]}x{SIZES[0][1]}: {mean:.1f} ms a pair, {1e3 / mean:.0f} pairs/s a core")
    if arguments.sheets is not None:
        for kind in sources:
            write_sheet(arguments.sheets / f"{kind}.png", [sample(kind, index, SIZES[0]) for index in range(24)])


def made_by_torch(arguments: argparse.Namespace) -> None:
    """Time pairs made by torch in batches of 4, and draw sheets."""
    bank = AssetBank(arguments.assets)
    every = planners(bank)
    level = Curriculum(arguments.difficulty, arguments.difficulty, 0, 1.0)
    batches = -(-arguments.pairs // _BATCH)

    def recipes(kind: str, size: tuple[int, int]) -> Recipes:
        mixture = Mixture({kind: every[kind]}, {kind: 1.0}, arguments.seed, level)
        return Recipes(bank, mixture, _BATCH, max(batches, 24 // _BATCH), 0.0, (size,))

    print("| kind | size | ms a pair, planning | ms a pair, pixels |")
    print("| --- | --- | --- | --- |")
    for kind in every:
        for size in SIZES[:2]:
            source = recipes(kind, size)
            source[0].make(CPU)  # one-time preparation
            begin = time.process_time()
            planned = [source[number] for number in range(batches)]
            middle = time.process_time()
            for recipe in planned:
                recipe.make(CPU)
            end = time.process_time()
            ms = [1e3 * (b - a) / (batches * _BATCH) for a, b in ((begin, middle), (middle, end))]
            print(f"| {kind} | {size[0]}x{size[1]} | {ms[0]:.1f} | {ms[1]:.1f} |")
        if arguments.sheets is not None:
            source = recipes(kind, SIZES[0])
            pairs = [pair for number in range(24 // _BATCH) for pair in samples(source[number].make(CPU), kind)]
            write_sheet(arguments.sheets / f"{kind}_torch.png", pairs)


def samples(batch: PairBatch, kind: str) -> list[Sample]:
    """The pairs of a batch on the CPU."""
    images = [(255 * each[:, 0]).round().to(torch.uint8).numpy() for each in (batch.image0, batch.image1)]
    warps = batch.warp01.numpy(), batch.warp10.numpy()
    return [Sample(images[0][k], images[1][k], warps[0][k], warps[1][k], kind) for k in range(len(batch))]


def write_sheet(path: Path, pairs: Sequence[Sample]) -> None:
    """Write a picture of pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [drawn(pair, index) for index, pair in enumerate(pairs)]
    rows = [np.hstack(pictures[k : k + _COLUMNS]) for k in range(0, len(pictures), _COLUMNS)]
    cv2.imwrite(str(path), np.vstack(rows))


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
