"""Training pairs as a PyTorch data set: numbered batches, independent of the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from loftr_ros.training.mixture import SIZES, Mixture, PairSource
from loftr_ros.training.sample import Sample


class Batch(NamedTuple):
    """Some pairs of one size.

    Attributes:
        image0, image1: (B, 1, H, W) float32 in [0, 1].
        warp01, warp10: (B, H, W, 2) float32, as in `Sample`: NaN where a pixel is not visible in the other image.
        kinds: source of each pair.
    """

    image0: Tensor
    image1: Tensor
    warp01: Tensor
    warp10: Tensor
    kinds: tuple[str, ...]


def collate(samples: Sequence[Sample]) -> Batch:
    """Combine samples of one size."""

    def images(arrays: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)[:, None]).float().div_(255)

    return Batch(
        images([sample.image0 for sample in samples]),
        images([sample.image1 for sample in samples]),
        torch.from_numpy(np.stack([sample.warp01 for sample in samples])),
        torch.from_numpy(np.stack([sample.warp10 for sample in samples])),
        tuple(sample.kind for sample in samples),
    )


@dataclass(frozen=True)
class PairBatches(Dataset[Batch]):
    """Batch b has the samples b·size to (b + 1)·size - 1 of a mixture, and depends on nothing else.

    Attributes:
        mixture: of the pairs.
        batch_size: pairs per batch.
        batches: number of batches.
        sizes: (width, height) of the images; a batch has one of them.
    """

    mixture: Mixture[PairSource]
    batch_size: int
    batches: int
    sizes: tuple[tuple[int, int], ...] = SIZES

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, batch: int) -> Batch:
        if not 0 <= batch < self.batches:
            raise IndexError(f"batch {batch} of {self.batches}")
        size = self.mixture.size(batch, self.sizes)
        first = batch * self.batch_size
        samples = [self.mixture.sample(first + k, size) for k in range(self.batch_size)]
        return collate(samples)
