"""The mixture of training pairs: kinds by weight, rising difficulty, each sample determined by seed and number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from loftr_ros.training.assets import AssetBank
from loftr_ros.training.config import WIDEST
from loftr_ros.training.homography import HomographyPairs
from loftr_ros.training.rendered import RenderedPairs
from loftr_ros.training.sample import Sample

HOMOGRAPHY = "homography"
RENDERED = ("clutter", "interior", "relief", "room", "street")
WEIGHTS = {HOMOGRAPHY: 0.22, "room": 0.32, "clutter": 0.22, "street": 0.16, "relief": 0.08}
SIZES = ((256, 192), (320, 240), (320, 192), (240, 320))

_SIZE_STREAM = 0x512E


class PairSource(Protocol):
    """A source of pairs: rendered scenes, photos, or recorded data sets."""

    def sample(self, rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> Sample:
        """A pair of (width, height) images that depends only on the arguments."""
        ...


@dataclass(frozen=True)
class Curriculum:
    """Difficulty of the pairs: from `start` to `end` (both in [0, WIDEST]) over the first `samples` samples.

    A sample's own difficulty is drawn between `floor` times that and all of it: easy pairs never vanish.
    """

    start: float = 0.3
    end: float = 1.0
    samples: int = 50_000
    floor: float = 0.25

    def __post_init__(self) -> None:
        """Raises ValueError: a difficulty is not in [0, WIDEST], or the floor not in [0, 1]."""
        if not (0 <= self.start <= WIDEST and 0 <= self.end <= WIDEST and 0 <= self.floor <= 1):
            raise ValueError(
                f"curriculum: start {self.start}, end {self.end}, floor {self.floor}: expected 0 to {WIDEST:g}, and a "
                "floor of 0 to 1"
            )

    def difficulty(self, index: int, rng: np.random.Generator) -> float:
        """The difficulty of a sample."""
        share = 1.0 if self.samples <= 0 else min(1.0, index / self.samples)
        hardest = self.start + (self.end - self.start) * share
        return float(hardest * rng.uniform(self.floor, 1.0))


S = TypeVar("S")


@dataclass(frozen=True)
class Mixture(Generic[S]):
    """Numbered samples of several sources.

    Attributes:
        sources: by name.
        weights: relative frequency of each; need not sum to 1. Only names in `sources` are allowed.
        seed: of everything.
        curriculum: difficulty of the samples.
        validation: uses separate random numbers, so that no training sample occurs in it.
    """

    sources: Mapping[str, S]
    weights: Mapping[str, float]
    seed: int = 0
    curriculum: Curriculum = field(default_factory=Curriculum)
    validation: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError: a weight is negative, all are 0, or one has no source."""
        unknown = sorted(set(self.weights) - set(self.sources))
        if unknown:
            raise ValueError(f"there is no source '{unknown[0]}' to weigh; there are {', '.join(self.sources)}")
        if min(self.weights.values(), default=0) < 0 or sum(self.weights.values()) <= 0:
            raise ValueError(f"weights {dict(self.weights)}: expected none below 0, and one above")

    def sample(self: Mixture[PairSource], index: int, size: tuple[int, int]) -> Sample:
        """Sample `index` of the stream, its images (width, height)."""
        source, difficulty, rng = self.draw(index)
        return source.sample(rng, size, difficulty)

    def draw(self, index: int) -> tuple[S, float, np.random.Generator]:
        """Source and difficulty of sample `index`, and the random numbers of the rest of it."""
        rng = np.random.default_rng([self.seed, int(self.validation), index])
        names = sorted(self.weights)
        shares = np.array([self.weights[name] for name in names])
        name = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        return self.sources[name], self.curriculum.difficulty(index, rng), rng

    def size(self, batch: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The size of the images of a batch, one of `sizes`."""
        rng = np.random.default_rng([self.seed, int(self.validation), batch, _SIZE_STREAM])
        return sizes[int(rng.integers(len(sizes)))]


def made_sources(bank: AssetBank, light: float = 0.0) -> dict[str, PairSource]:
    """All sources that need only photos and textures: HOMOGRAPHY and RENDERED.

    Args:
        bank: of these.
        light: probability that the two views of a pair are in different light.
    """
    made: dict[str, PairSource] = {HOMOGRAPHY: HomographyPairs(bank, light)}
    return made | {kind: RenderedPairs(bank, kind, light) for kind in RENDERED}
