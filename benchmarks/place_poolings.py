"""Ways to pool an image's coarse features into one vector, for `place_descriptor.py` to compare.

All take (N, C) float32 features of length one, on their grid, and give a vector of length one. They learn from features
of rendered places that are in no set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.places.descriptor import second_moment

Grid = tuple[int, int]
Pool = Callable[[Tensor, Grid], Tensor]


def unit(vector: Tensor) -> Tensor:
    return functional.normalize(vector, dim=-1, eps=1e-9)


def both_signs(features: Tensor) -> Tensor:
    """Negative features are as significant as positive ones: powers and maxima are taken for both signs."""
    return torch.cat([features, -features], dim=1).clamp_min(0)


def mean(features: Tensor, grid: Grid) -> Tensor:
    return unit(features.mean(dim=0))


@dataclass(frozen=True)
class GeM:
    """Generalised mean: 1 is the mean, infinity the maximum."""

    power: float

    def __call__(self, features: Tensor, grid: Grid) -> Tensor:
        return unit((both_signs(features) ** self.power).mean(dim=0) ** (1 / self.power))


def maximum(features: Tensor, grid: Grid) -> Tensor:
    return unit(both_signs(features).amax(dim=0))


def regional_maxima(features: Tensor, grid: Grid) -> Tensor:
    """R-MAC: the sum of maxima of the image, its quarters and its ninths, each of length one."""
    maps, total = both_signs(features).view(*grid, -1), torch.zeros(2 * features.shape[1])
    for parts in (1, 2, 3):
        for i in range(parts):
            for j in range(parts):
                (top, bottom), (left, right) = (
                    (side * k // parts, side * (k + 1) // parts) for side, k in zip(grid, (i, j), strict=True)
                )
                total += unit(maps[top:bottom, left:right].amax(dim=(0, 1)))
    return unit(total)


class SecondMoment:
    """The upper triangle of the second moment of principal components, signed roots."""

    def __init__(self, learned_from: Tensor, channels: int, power: float = 0.5) -> None:
        self.mean = learned_from.mean(dim=0)
        centred = learned_from - self.mean
        self.channels = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -channels:]
        row, column = torch.triu_indices(channels, channels)
        self.entries, self.weights = row * channels + column, torch.where(row == column, 1.0, 2**0.5)
        self.power = power

    def __call__(self, features: Tensor, grid: Grid) -> Tensor:
        projected = (features - self.mean) @ self.channels
        upper = (projected.T @ projected).flatten()[self.entries] * self.weights
        return unit(upper.sign() * upper.abs() ** self.power)


class MatrixRoot(SecondMoment):
    """The same from its matrix square root, as in the package."""

    def __call__(self, features: Tensor, grid: Grid) -> Tensor:
        return second_moment(features, self.mean, self.channels)


class VLAD:
    """Sums of residuals to k-means' centroids."""

    def __init__(self, learned_from: Tensor, centroids: int, sharpness: float = 0.0, intra: bool = True) -> None:
        """`sharpness` 0 assigns each feature to one centroid; else in units of the mean squared residual. `intra`: each
        centroid's sum to length one; else signed roots of all.
        """
        random = torch.Generator().manual_seed(0)
        self.mean = learned_from.mean(dim=0)
        centred = learned_from - self.mean
        self.centroids = centred[torch.randperm(len(centred), generator=random)[:centroids]].clone()
        for _ in range(20):
            nearest = self._nearness(centred).argmax(dim=1)
            count = torch.bincount(nearest, minlength=centroids).clamp_min(1)
            self.centroids = torch.zeros_like(self.centroids).index_add_(0, nearest, centred) / count[:, None]
        residual = float((centred - self.centroids[nearest]).square().sum(dim=1).mean())
        self.sharpness, self.intra = sharpness / residual, intra

    def _nearness(self, centred: Tensor) -> Tensor:
        return centred @ self.centroids.T - self.centroids.square().sum(dim=1) / 2

    def __call__(self, features: Tensor, grid: Grid) -> Tensor:
        centred = features - self.mean
        near = self._nearness(centred)
        if self.sharpness:
            weights = (near * self.sharpness).softmax(dim=1)
        else:
            weights = functional.one_hot(near.argmax(dim=1), len(self.centroids)).float()
        sums = weights.T @ centred - weights.sum(dim=0)[:, None] * self.centroids
        return unit((unit(sums) if self.intra else sums.sign() * sums.abs().sqrt()).flatten())


def poolings(features: Tensor) -> dict[str, Pool]:
    """The compared poolings, by name; (N, C) features to learn from."""
    return {
        "mean": mean,
        "GeM 2": GeM(2),
        "GeM 3": GeM(3),
        "GeM 5": GeM(5),
        "maximum": maximum,
        "R-MAC": regional_maxima,
        "second moment, 32 channels": SecondMoment(features, 32),
        "second moment, 64 channels": SecondMoment(features, 64),
        "second moment, 64, no roots": SecondMoment(features, 64, 1.0),
        "second moment, 48, matrix root": MatrixRoot(features, 48),
        "VLAD 16": VLAD(features, 16),
        "VLAD 32": VLAD(features, 32),
        "VLAD 64": VLAD(features, 64),
        "VLAD 32, soft": VLAD(features, 32, 10.0),
        "VLAD 64, roots": VLAD(features, 64, intra=False),
    }
