"""The objective of `compact`: the paper's coarse losses on regions, a classification of cells, pixels with their
spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.cells import cell_offset
from loftr_ros.matcher.compact.backbone import REGION_PIXELS, CompactFeatures, padded
from loftr_ros.matcher.compact.cells import cells_around_region, cells_in_region, place_around_region
from loftr_ros.matcher.compact.fine import FINE_PIXELS
from loftr_ros.matcher.compact.local_affine import local_affine
from loftr_ros.matcher.compact.network import Compact, regions_of
from loftr_ros.matcher.config import CompactConfig
from loftr_ros.training.coarse_losses import dual_softmax_losses, positive_loss, weighed
from loftr_ros.training.config import DistillationConfig, LossConfig
from loftr_ros.training.distillation import Teacher
from loftr_ros.training.feature_teacher import HEADS, FeatureHeads, FeatureTeacher
from loftr_ros.training.losses import mean_over
from loftr_ros.training.objective import Objective
from loftr_ros.training.supervision import (
    CoarseTruth,
    PairBatch,
    TaughtBatch,
    coarse_truth,
    nearest_cell,
    sample_matches,
)

# Probability of training on a neighbour of the true region or cell, to simulate errors of the previous stage.
_BESIDE = 0.3
# The label "no candidate is right" is the number of candidates. Label for unknown truth:
_IGNORED = -100

Grid = tuple[int, int]


class Forward(NamedTuple):
    """Intermediate results of a batch for the losses.

    Attributes:
        raw0, raw1: (B, L, C) regions from the backbone.
        tokens0, tokens1: the same after the transformer.
        cells0, cells1: (B, Cc, H, W).
        fine0, fine1: (B, Cf, 4 H, 4 W).
        photos: the backbone's features of the additional photographs, if any.
    """

    raw0: Tensor
    raw1: Tensor
    tokens0: Tensor
    tokens1: Tensor
    cells0: Tensor
    cells1: Tensor
    fine0: Tensor
    fine1: Tensor
    photos: CompactFeatures


class CompactObjective(Objective):
    """The losses of `compact`."""

    network: Compact
    config: CompactConfig

    def __init__(
        self,
        config: CompactConfig,
        losses: LossConfig,
        distillation: DistillationConfig,
        teacher: Teacher | None,
        *features: FeatureTeacher,
    ) -> None:
        """A network with random weights; arguments as of `LoFTRObjective`, and teachers of features."""
        self.config = config
        self.network = Compact(config)
        self._losses = losses
        self._distillation = distillation
        self._teacher = teacher
        self._features = features
        for each in features:
            # Among the network's weights, so that they are trained and checkpointed; `exported` leaves them out.
            heads = FeatureHeads(config.backbone.cell_dim, config.backbone.region_dim, each.channels)
            self.network.add_module(each.heads, heads)

    def losses(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective.losses`."""
        settings, temperature = self._losses, self.config.coarse.temperature
        of_cells = coarse_truth(batch, self.config)
        weights = settings.coarse_weight, settings.no_partner_weight, settings.feature_weight, settings.cell_weight
        if self._teacher is None and not self._features and not any(weights):
            fine = self._maps(batch).fine
            likelihood, heat = self._fine_losses(fine[: len(batch)], fine[len(batch) :], of_cells)
            return weighed({"fine": likelihood, "heat": heat}, settings, self._distillation)
        of_regions = coarse_truth(batch, self.config, REGION_PIXELS)
        made = self._forward(batch)
        parts = dual_softmax_losses(
            made.tokens0, made.tokens1, of_regions, temperature, settings, self._distillation, self._teacher, batch
        )
        if settings.feature_weight > 0:
            parts["feature"] = positive_loss(made.raw0, made.raw1, of_regions, temperature, settings)
        parts["cell"] = self._cell_loss(made, of_regions, of_cells)
        parts["fine"], parts["heat"] = self._fine_losses(made.fine0, made.fine1, of_cells)
        if not self._features:
            return weighed(parts, settings, self._distillation)
        assert isinstance(batch, TaughtBatch)
        weights_of_features: dict[str, float] = {}
        for each in self._features:
            heads: Any = self.network.get_submodule(each.heads)
            parts |= each.losses(heads, made.photos, batch.taught)
            weights_of_features |= each.weights
        return weighed(parts, settings, self._distillation, weights_of_features)

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Objective.exported`."""
        prefixes = tuple(f"{heads}." for heads in HEADS)
        return {name: value for name, value in state.items() if not name.startswith(prefixes)}

    def _forward(self, batch: PairBatch) -> Forward:
        network, pairs = self.network, len(batch)
        made = self._maps(batch)
        regions, cells, fine = (part[: 2 * pairs] for part in made)
        photos = CompactFeatures(*(part[2 * pairs :] for part in made))
        grid = (regions.shape[2], regions.shape[3])
        raw = regions.flatten(2).transpose(1, 2).contiguous()
        tokens = network.transformer.encode(raw, grid)
        tokens0, tokens1 = network.transformer(tokens[:pairs], tokens[pairs:], grid, grid)
        return Forward(
            raw[:pairs], raw[pairs:], tokens0, tokens1, cells[:pairs], cells[pairs:], fine[:pairs], fine[pairs:], photos
        )

    def _maps(self, batch: PairBatch) -> CompactFeatures:
        """The backbone's maps of the first images, of the second images, and of single photographs if present."""
        every = [batch.image0, batch.image1]
        if isinstance(batch, TaughtBatch):
            every.append(batch.seen)
        images = padded(torch.cat(every)).contiguous(memory_format=torch.channels_last)
        made: CompactFeatures = self.network.backbone(images)
        return made

    def _cell_loss(self, made: Forward, of_regions: CoarseTruth, of_cells: CoarseTruth) -> Tensor:
        """Cross-entropy over a cell's candidates and no match, at a fixed number of true matches of regions."""
        matcher, grid0, grid1 = self.network.cell_matcher, _grid(made.cells0), _grid(made.cells1)
        region0, chosen = sample_matches(of_regions, self._losses.cell_samples)
        region1 = of_regions.partner.gather(1, region0).clamp_min(0)
        region1 = _beside(region1, regions_of(grid1))
        batch, count = region0.shape
        cells0 = cells_in_region(region0.flatten(), grid0)
        candidates, inside = cells_around_region(region1.flatten(), grid1)
        image = torch.arange(batch, device=cells0.device).repeat_interleave(count)[:, None]
        flat0, flat1 = cells0 + image * (grid0[0] * grid0[1]), candidates + image * (grid1[0] * grid1[1])
        vectors0 = matcher.vectors(made.cells0, made.tokens0).flatten(0, 1)
        vectors1 = matcher.vectors(made.cells1, made.tokens1).flatten(0, 1)
        with torch.autocast(cells0.device.type, enabled=False):
            logits = matcher.scores(vectors0, vectors1, flat0, flat1, inside)
        target = of_cells.target.flatten(0, 1)[flat0]
        nearest = nearest_cell(target, grid1, self.config.backbone.stride, cell_offset(self.config))
        place = place_around_region(nearest, region1.flatten(), grid1)
        none = torch.full_like(place, candidates.shape[1])
        unknown = ~(target.isfinite().all(dim=2) | of_cells.lonely0.flatten()[flat0]) | ~chosen.flatten()[:, None]
        label = torch.where(unknown, _IGNORED, torch.where(place >= 0, place, none))
        # A batch of unknowns only has no mean.
        total = functional.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=_IGNORED, reduction="sum")
        return total / (~unknown).sum().clamp_min(1)

    def _fine_losses(self, fine0: Tensor, fine1: Tensor, truth: CoarseTruth) -> tuple[Tensor, Tensor]:
        """The losses of the fine stage.

        The first is the negative log-likelihood of the true offsets under the predicted Laplace distribution, along
        both axes. It cannot move the heat map's peak, to which the expectation is restricted. The second one does: the
        cross-entropy of the heat map with the true shift, distributed over the four places around it.
        """
        cell0, chosen = sample_matches(truth, self._losses.fine_samples)
        partner = truth.partner.gather(1, cell0).clamp_min(0)
        target = truth.target.gather(1, cell0[..., None].expand(-1, -1, 2))
        reach = FINE_PIXELS * self.config.fine.reach
        beside = _beside(partner, truth.grid1)
        near = (target - self._points(beside, truth.grid1)).abs().amax(dim=2, keepdim=True) <= reach
        cell1 = torch.where(near[..., 0], beside, partner)
        affine = local_affine(cell0, cell1, truth.grid0, truth.grid1, chosen)
        found = self.network.fine(fine0, fine1, cell0, cell1, affine)
        offset = (target - self._points(cell1, truth.grid1)).flatten(0, 1)
        known = (chosen.flatten() & offset.isfinite().all(dim=1))[:, None]
        error = (found.offset - offset.nan_to_num(0.0)).abs()
        scale = found.scale[:, None]
        likelihood = mean_over(error / scale + scale.log(), known.expand_as(error))
        shift = (offset.nan_to_num(0.0) / FINE_PIXELS).clamp(-self.config.fine.reach, self.config.fine.reach)
        return likelihood, mean_over(heat_entropy(found.log_heat, shift), known[:, 0])

    def _points(self, cells: Tensor, grid: Grid) -> Tensor:
        """(B, N) cells -> (B, N, 2) pixels."""
        place = torch.stack([cells % grid[1], cells // grid[1]], dim=-1)
        return place * self.config.backbone.stride + cell_offset(self.config)


def heat_entropy(log_heat: Tensor, shift: Tensor) -> Tensor:
    """Cross-entropy of heat maps with true shifts between their places.

    Args:
        log_heat: (M, S * S) logarithm of heat maps over the shifts from -(S - 1) / 2 on, row-major.
        shift: (M, 2) true ones along columns and rows, within them.

    Returns:
        (M,); at least the entropy of the bilinear distribution of a shift over the places around it.
    """
    side = math.isqrt(log_heat.shape[1])
    place = shift + (side - 1) / 2
    corner = place.floor().clamp(0, side - 2)
    after = place - corner
    column, row = corner.long().unbind(dim=1)
    total = torch.zeros_like(log_heat[:, 0])
    for down in (0, 1):
        for along in (0, 1):
            weight = (after[:, 0] if along else 1 - after[:, 0]) * (after[:, 1] if down else 1 - after[:, 1])
            there = (row + down) * side + column + along
            total = total - weight * log_heat.gather(1, there[:, None])[:, 0]
    return total


def _grid(cells: Tensor) -> Grid:
    return cells.shape[2], cells.shape[3]


def _beside(places: Tensor, grid: Grid) -> Tensor:
    """Places of a grid, some of them moved to a neighbour."""
    step = torch.randint(-1, 2, (2, *places.shape), device=places.device)
    step = step * (torch.rand(places.shape, device=places.device) < _BESIDE)
    row, column = places // grid[1] + step[0], places % grid[1] + step[1]
    return row.clamp(0, grid[0] - 1) * grid[1] + column.clamp(0, grid[1] - 1)
