"""Looks into `compact`: regions that attend to pooled regions, the choice among cells, and the correlations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from loftr_ros.matcher.cells import point_offset
from loftr_ros.matcher.coarse import NEVER
from loftr_ros.matcher.compact.backbone import REGION_CELLS, REGION_PIXELS
from loftr_ros.matcher.compact.cells import cells_around_region
from loftr_ros.matcher.compact.fine import FINE_PIXELS
from loftr_ros.matcher.compact.local_affine import local_affine
from loftr_ros.matcher.compact.network import Compact, regions_of
from loftr_ros.matcher.compact.region_transformer import RegionLayer, attention_scale, pool, pool_mask, rotated
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.tools.explain.views import (
    AttentionRows,
    Both,
    CellChoice,
    ConfidenceRows,
    FineHeat,
    Given,
    Grid,
    Inside,
    Lattice,
    LayerInput,
    by_head,
)


class InsideCompact(Inside):
    """Tokens are regions of cells. They attend to regions pooled two by two."""

    unit = "region"

    def __init__(self, network: Compact) -> None:
        self.network: Compact = network
        self.transformer = network.transformer

    def given(self, arguments: tuple[Any, ...]) -> list[Given]:
        tokens, grid, source, source_grid, mask = arguments
        # Images of one size pass a layer together.
        return [
            (tokens[i : i + 1], source[i : i + 1], None if mask is None else mask[i : i + 1], (grid, source_grid), None)
            for i in range(len(tokens))
        ]

    def attention(self, given: LayerInput, tokens: Tensor) -> AttentionRows:
        return attention_weights(self.network.transformer.layers[given.layer], given, tokens)  # type: ignore[arg-type]

    def token_places(self, features: ImageFeatures) -> Lattice:
        return self._squares(regions_of(features.grid), REGION_PIXELS)

    def key_places(self, features: ImageFeatures) -> Lattice:
        # At the image's edge the last ones may stand for one region instead of two.
        rows, columns = (-(-side // 2) for side in regions_of(features.grid))
        return self._squares((rows, columns), 2 * REGION_PIXELS)

    def _squares(self, grid: Grid, side: int) -> Lattice:
        offset = point_offset(self.network.config, side)
        return Lattice(grid, side, (offset, offset))

    def tokens_of(self, cells: Tensor, features: ImageFeatures) -> Tensor:
        columns = features.grid[1]
        row, column = cells // columns // REGION_CELLS, cells % columns // REGION_CELLS
        return row * (columns // REGION_CELLS) + column

    @torch.inference_mode()
    def choose(self, rows: ConfidenceRows, cells0: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> CellChoice:
        matcher, grid = self.network.cell_matcher, features[1].grid
        vectors = []
        for image in (0, 1):
            cells = features[image].cells
            assert cells is not None
            vectors.append(matcher.vectors(cells, tokens[image])[0])
        regions = rows.best.to(self.network.device)
        candidates, inside = cells_around_region(regions, grid)
        asked = cells0.to(self.network.device)[:, None]
        shares = matcher.scores(vectors[0], vectors[1], asked, candidates, inside)[:, 0].softmax(dim=1).cpu()
        best, place = shares[:, :-1].max(dim=1)
        side = math.isqrt(candidates.shape[1])
        return CellChoice(
            cells=candidates.cpu().gather(1, place[:, None])[:, 0],
            confidence=best * rows.confidence.amax(dim=1),
            shares=shares[:, :-1].unflatten(1, (side, side)),
            none=shares[:, -1],
            places=tuple(self._around(region, grid, side) for region in rows.best.tolist()),
        )

    def _around(self, region: int, grid: Grid, side: int) -> Lattice:
        """Places of the cells in and around a region, including those beyond the image's edge."""
        row, column = divmod(region, regions_of(grid)[1])
        reach = (side - REGION_CELLS) // 2
        size, offset = self.network.cell_size, self.network.cell_offset
        u, v = ((number * REGION_CELLS - reach) * size + offset for number in (column, row))
        return Lattice((side, side), size, (u, v))

    @torch.inference_mode()
    def fine_heat(self, cells0: Tensor, cells1: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> FineHeat:
        stage, device = self.network.fine, self.network.device
        fine0, fine1 = (image.fine for image in features)
        assert fine0 is not None and fine1 is not None
        side = 2 * stage.config.reach + 1
        asked = cells0.to(device)[None], cells1.to(device)[None]
        found = stage(fine0, fine1, *asked, self._affine(*asked, features))
        heat = found.log_heat.exp().unflatten(1, (side, side))
        return FineHeat(heat.cpu(), FINE_PIXELS, found.offset.cpu(), stage.std(found.scale).cpu())

    def _affine(self, cells0: Tensor, cells1: Tensor, features: Both) -> Tensor:
        """Local affine maps by the matches around the chosen cells, matched or not."""
        matched = self.network.matched_cells([features[0]], features[1])[0]
        others = ~torch.isin(matched.row, cells0)
        every0 = torch.cat([cells0, matched.row[others][None]], dim=1)
        every1 = torch.cat([cells1, matched.column[others][None]], dim=1)
        taken = torch.isin(every0, matched.row)
        return local_affine(every0, every1, features[0].grid, features[1].grid, taken)[:, : cells0.shape[1]]


@torch.inference_mode()
def attention_weights(module: RegionLayer, given: LayerInput, tokens: Tensor) -> AttentionRows:
    """The rows of `Inside.attention` for one layer: the softmax over the source's pooled regions."""
    assert given.grids is not None
    grid, source_grid = given.grids
    heads, dtype = module.num_heads, module.q_proj.weight.dtype
    pooled, pooled_grid = pool(given.source.to(dtype), source_grid)
    query = by_head(module.q_proj(given.tokens[0].to(dtype)), heads)[None]
    key = by_head(module.kv_proj(pooled[0]).chunk(2, dim=1)[0], heads)[None]
    if given.kind == "self":
        query, key = rotated(query, grid, 1), rotated(key, pooled_grid, 2)
    query = query[0, :, tokens.to(query.device)]
    scale = attention_scale(key.shape[2], key.shape[3])
    logits = query.float() @ key[0].float().transpose(1, 2) * scale
    if given.source_mask is not None:
        logits.masked_fill_(~pool_mask(given.source_mask, source_grid), NEVER)
    return AttentionRows(given.layer, given.kind, given.image, tokens.cpu(), torch.softmax(logits, dim=2).cpu())
