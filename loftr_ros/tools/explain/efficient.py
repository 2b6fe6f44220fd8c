"""Looks into EfficientLoFTR: squares of cells that attend to squares, and the refinement's windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loftr_ros.matcher.coarse import NEVER
from loftr_ros.matcher.efficient.layers import LEAST_SHARE, AggregatedAttention, bilinear
from loftr_ros.matcher.efficient.network import EfficientLoFTR
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.tools.explain.views import (
    AttentionRows,
    Both,
    FineHeat,
    Given,
    InsideCells,
    Lattice,
    LayerInput,
)

Grid = tuple[int, int]


class InsideEfficient(InsideCells):
    """Tokens are cells. They attend to squares of cells, through the squares around each cell."""

    def __init__(self, network: EfficientLoFTR) -> None:
        self.network: EfficientLoFTR = network
        self.transformer = network.loftr_coarse

    def given(self, arguments: tuple[Any, ...]) -> list[Given]:
        tokens, grid, source, source_grid, mask, source_mask, _ = arguments
        return [(tokens, source, source_mask, (grid, source_grid), mask)]

    def attention(self, given: LayerInput, tokens: Tensor) -> AttentionRows:
        assert given.grids is not None
        spacing = self.network.loftr_coarse.spacing(given.grids[0]) if given.kind == "self" else None
        module = self.network.loftr_coarse.layers[given.layer]
        return attention_weights(module, given, tokens, spacing)  # type: ignore[arg-type]

    def key_places(self, features: ImageFeatures) -> Lattice:
        window, side = self.network.config.transformer.window, self.network.cell_size
        rows, columns = (-(-count // window) for count in features.grid)
        offset = self.network.cell_offset + (window - 1) / 2 * side
        return Lattice((rows, columns), window * side, (offset, offset))

    @torch.inference_mode()
    def fine_heat(self, cells0: Tensor, cells1: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> FineHeat:
        device = self.network.device
        found = self.network.refine(features, tokens, cells0.to(device), cells1.to(device))
        fixed = self.network.config.fine.anchor == "cell"
        offset = found.offset1 - found.offset0 if fixed else found.offset1
        return FineHeat(found.heat.cpu(), 1.0, offset.cpu(), found.std.cpu())


@torch.inference_mode()
def attention_weights(
    module: AggregatedAttention, given: LayerInput, tokens: Tensor, spacing: float | None
) -> AttentionRows:
    """The rows of `Inside.attention` for one layer: softmaxes of the squares around a cell, mixed as in the layer."""
    assert given.grids is not None
    grid, source_grid = given.grids
    dtype = module.merge.weight.dtype
    mixed = _mixture(tokens.to(given.tokens.device), grid, module.window)
    if given.mask is not None:
        mixed = mixed * module.taking_part(given.mask, grid)
        mixed = mixed / mixed.sum(dim=1, keepdim=True).clamp_min(LEAST_SHARE)
    squares = (mixed > 0).any(dim=0).nonzero()[:, 0]
    query = module.query(given.tokens.to(dtype), grid, given.mask, spacing)[0, :, squares]
    key, _, attended = module.keys_and_values(given.source, source_grid, given.source_mask, spacing)
    logits = query.float() @ key[0].float().transpose(1, 2) * query.shape[2] ** -0.5
    if attended is not None:
        logits.masked_fill_(~attended[0], NEVER)
    weights = mixed[:, squares] @ torch.softmax(logits, dim=2)
    return AttentionRows(given.layer, given.kind, given.image, tokens.cpu(), weights.cpu())


def _mixture(tokens: Tensor, grid: Grid, window: int) -> Tensor:
    """(Q, squares) float32: share of each square's message in a cell, mixed as by `AggregatedAttention`."""
    rows, columns = (bilinear(side, window, tokens.device, torch.float32) for side in grid)
    return (rows[tokens // grid[1], :, None] * columns[tokens % grid[1], None, :]).flatten(1)
