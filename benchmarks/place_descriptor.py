"""Comparison of poolings of coarse features for place recognition: recall among views of other places, and time.

Every pooling sees the same encodings: of `compact`, its tokens (regions of 16 px) and its cells (8 px). Learned parts
(centroids, channels, whitening) use rendered places that are in no set. These sets were used to choose the pooling, so
its final performance must be measured on other worlds.

    .venv/bin/python benchmarks/place_descriptor.py [--data ../shared/data] [--cache FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import Report, machine
from numpy.typing import NDArray
from place_poolings import Pool, poolings
from place_sets import NEITHER, RIGHT, WRONG, all_sets
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.matcher.interface import Matcher
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.training.assets import AssetBank, default_folder
from loftr_ros.training.place_views import place_views
from loftr_ros.training.place_whitening import discriminative_projection

RANKS = 1, 5, 10
ON_CELLS = "mean", "GeM 3", "VLAD 32", "second moment, 64 channels"  # four times as many as tokens
FIELDS = "tokens", "cells"
DIMENSIONS = 128, 256, 512
VIEWS, SEED = 3, 88_000_000
PER_IMAGE = 100  # features per image for learning centroids and channels
REPEATS = 30

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """Of one image: tokens and cells in their order, (N, C) in the network's precision, and their grids."""

    features: dict[str, Tensor]
    grids: dict[str, tuple[int, int]]

    def unit(self, name: str) -> Tensor:
        return functional.normalize(self.features[name].float(), dim=1, eps=1e-6)


@dataclass(frozen=True)
class EncodedSet:
    """A `PlaceSet`, encoded; `described` are the package's own descriptors of database and queries."""

    name: str
    database: list[Encoded]
    queries: list[Encoded]
    answers: NDArray[np.int8]
    described: tuple[Array, Array]


def encoded(matcher: Matcher, image: NDArray[np.uint8]) -> Encoded:
    features = matcher.encode(torch.from_numpy(image))
    assert features.cells is not None
    rows, columns = features.grid
    return Encoded(
        {"tokens": features.tokens[0].clone(), "cells": features.cells[0].flatten(1).T.contiguous()},
        {"tokens": (rows // 2, columns // 2), "cells": (rows, columns)},
    )


def encoded_sets(matcher: Matcher, arguments: argparse.Namespace, cache: Path) -> list[EncodedSet]:
    file = cache / f"sets{'_quick' if arguments.quick else ''}.pt"
    if not file.is_file():
        describe = PlaceDescriptor.of(matcher)
        sets, known = [], {}
        for each in all_sets(arguments.data, cache, arguments.quick):
            if id(each.database) not in known:  # a set may search in another's database
                known[id(each.database)] = each.database, [encoded(matcher, image) for image in each.database]
            queries = [encoded(matcher, image) for image in tqdm(each.queries, each.name)]
            described = tuple(
                np.stack([describe(matcher.encode(torch.from_numpy(image))) for image in images])
                for images in (each.database, each.queries)
            )
            sets.append(EncodedSet(each.name, known[id(each.database)][1], queries, each.answers, described))
        torch.save(sets, file)
    return torch.load(file, weights_only=False)


def encoded_places(matcher: Matcher, count: int, cache: Path) -> list[Encoded]:
    file = cache / f"places_{count}.pt"
    if not file.is_file():
        bank = AssetBank(default_folder())
        views = (
            view
            for number in tqdm(range(count), "places to learn from")
            for view in place_views(bank, np.random.default_rng([SEED, number]), VIEWS)
        )
        torch.save([encoded(matcher, view) for view in views], file)
    return torch.load(file, weights_only=False)


def principal_projection(vectors: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """PCA whitening: mean, and (D, M)."""
    mean = vectors.mean(dim=0)
    values, left = torch.linalg.eigh((vectors - mean) @ (vectors - mean).T)
    values, left = values.flip(0)[:dimension].clamp_min(1e-6), left.flip(1)[:, :dimension]
    return mean, (left / values).T @ (vectors - mean)


def recalls(sets: Sequence[EncodedSet], vectors: Sequence[tuple[Tensor, Tensor]]) -> list[list[float]]:
    """Percent of a set's queries with a right image among the first 1, 5, 10 of the databases of all sets."""
    found = []
    for each, (_, queries) in zip(sets, vectors, strict=True):
        similarity, right = [], []
        for other, (database, _) in zip(sets, vectors, strict=True):
            if other is each:
                similarity.append((queries @ database.T).masked_fill(torch.from_numpy(each.answers == NEITHER), -9))
                right.append(torch.from_numpy(each.answers == RIGHT))
            elif other.database is not each.database:
                similarity.append(queries @ database.T)
                right.append(torch.zeros(len(queries), len(database), dtype=torch.bool))
        hits = torch.cat(right, dim=1).gather(1, torch.cat(similarity, dim=1).topk(max(RANKS), dim=1).indices)
        asked = torch.from_numpy((each.answers == RIGHT).any(axis=1))
        found.append([100 * float(hits[asked, :rank].any(dim=1).float().mean()) for rank in RANKS])
    return found


def row(report: Report, names: Sequence[str], found: list[list[float]], ms: float | None = None) -> None:
    average = np.mean(found, axis=0)
    numbers = ["/".join(f"{value:.0f}" for value in values) for values in (*found, average)]
    report(f"| {' | '.join([*names, *numbers, '-' if ms is None else f'{ms:.2f}'])} |")


def applied(vectors: Tensor, mean: Tensor, projection: Tensor) -> Tensor:
    return functional.normalize((vectors - mean) @ projection.T, dim=1)


def pooled(images: Sequence[Encoded], pool: Pool, name: str) -> Tensor:
    return torch.stack([pool(image.unit(name), image.grids[name]) for image in images])


def times(images: Sequence[Encoded], pools: dict[tuple[str, str], Pool]) -> dict[tuple[str, str], float]:
    """Median milliseconds of each, alternating."""
    spent: dict[tuple[str, str], list[float]] = {key: [] for key in pools}
    for number in range(REPEATS):
        image = images[number % len(images)]
        for (field, name), pool in pools.items():
            start = time.perf_counter()
            pool(image.unit(field), image.grids[field])
            spent[field, name].append(time.perf_counter() - start)
    return {key: 1e3 * float(np.median(values)) for key, values in spent.items()}


def compare(report: Report, sets: list[EncodedSet], places: list[Encoded]) -> None:
    random = torch.Generator().manual_seed(0)
    pools: dict[tuple[str, str], Pool] = {}
    for field in FIELDS:
        some = [each.unit(field) for each in places[::VIEWS]]
        drawn = torch.cat([each[torch.randint(len(each), (PER_IMAGE,), generator=random)] for each in some])
        found = poolings(drawn)
        pools |= {(field, name): found[name] for name in (found if field == "tokens" else ON_CELLS)}
    spent = times(places, pools)
    best: dict[str, list[Tensor]] = {}
    for (field, name), pool in pools.items():
        learned_from = pooled(places, pool, field)
        vectors = [(pooled(each.database, pool, field), pooled(each.queries, pool, field)) for each in sets]
        if name == "second moment, 64 channels":
            best[field] = [learned_from, *(part for pair in vectors for part in pair)]
        _rows(report, sets, field, name, learned_from, vectors, spent[field, name])
    both = [torch.cat(parts, dim=1) / 2**0.5 for parts in zip(*best.values(), strict=True)]
    pairs = list(zip(both[1::2], both[2::2], strict=True))
    _rows(report, sets, "both", "second moment, 64 channels", both[0], pairs, None)


def _rows(
    report: Report,
    sets: list[EncodedSet],
    field: str,
    name: str,
    learned_from: Tensor,
    vectors: list[tuple[Tensor, Tensor]],
    ms: float | None,
) -> None:
    size = learned_from.shape[1]
    row(report, [field, name, "none", str(size)], recalls(sets, vectors), ms)
    places = list(learned_from.split(VIEWS))
    wide = name in ("second moment, 64 channels", "second moment, 48, matrix root", "VLAD 64")
    for dimension in DIMENSIONS if wide else DIMENSIONS[1:2]:
        for whitening in ("PCA", "LDA"):
            if whitening == "PCA":
                mean, projection = principal_projection(learned_from, dimension)
            else:
                mean, projection = discriminative_projection(places, dimension, 512, 0.1)
            whitened = [(applied(a, mean, projection), applied(b, mean, projection)) for a, b in vectors]
            row(report, [field, name, whitening, str(len(projection))], recalls(sets, whitened))


def separation(report: Report, sets: list[EncodedSet]) -> None:
    """Similarities of the package's own descriptors for right and wrong images."""
    report(
        "| set | most similar right one: 5 %, median | most similar wrong one: median, 95 %, 99 % | all wrong: 99 % |"
    )
    report("| --- | --- | --- | --- |")
    for each in sets:
        queries = each.described[1]
        others = {id(s.database): s.described[0] for s in sets if s.database is not each.database}
        similarity = queries @ each.described[0].T
        right = np.where(each.answers == RIGHT, similarity, -1).max(axis=1)
        elsewhere = queries @ np.concatenate([*others.values()]).T
        wrong = np.concatenate([np.where(each.answers == WRONG, similarity, -1), elsewhere], axis=1)
        low, middle = np.quantile(right[right > -1], (0.05, 0.5))
        numbers = ", ".join(f"{value:.2f}" for value in np.quantile(wrong.max(axis=1), (0.5, 0.95, 0.99)))
        report(f"| {each.name} | {low:.2f}, {middle:.2f} | {numbers} | {np.quantile(wrong[wrong > -1], 0.99):.2f} |")


def report_all(report: Report, sets: list[EncodedSet], places: list[Encoded], describe: PlaceDescriptor) -> None:
    report(machine())
    report(
        f"Recall@1/5/10 in percent; learned on {len(places) // VIEWS} rendered places of {VIEWS} views. Sets (queries,"
    )
    report("images to find): " + ", ".join(f"{s.name} ({len(s.queries)}, {len(s.database)})" for s in sets) + ".")
    report("Everything in all other sets is searched as well. ms: median of the pooling without whitening, one thread.")
    report()
    report(f"| features | pooling | whitening | numbers | {' | '.join(s.name for s in sets)} | mean | ms |")
    report("| --- " * (6 + len(sets)) + "|")
    own = [tuple(torch.from_numpy(part) for part in s.described) for s in sets]
    row(report, ["tokens", "**the package's**", "LDA", str(describe.dimension)], recalls(sets, own))  # type: ignore[arg-type]
    compare(report, sets, places)
    report()
    report("Similarity (cosine) of the package's descriptors; wrong ones are of all sets:")
    report()
    separation(report, sets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, help="keeps views and encodings, some GB, for the next time")
    parser.add_argument("--places", type=int, default=300, help="rendered places to learn from")
    parser.add_argument("--output", type=Path, help="file for the lines that are printed")
    parser.add_argument("--quick", action="store_true", help="small sets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    matcher = open_matcher(matcher_spec(MatcherConfig(device="cpu", threads=1), MatchingConfig()))
    with tempfile.TemporaryDirectory() as scratch:
        cache = arguments.cache or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        sets = encoded_sets(matcher, arguments, cache)
        places = encoded_places(matcher, 100 if arguments.quick else arguments.places, cache)
    report = Report()
    report_all(report, sets, places, PlaceDescriptor.of(matcher))
    if arguments.output:
        arguments.output.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
