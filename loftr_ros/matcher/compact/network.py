"""`compact`, our own small network for streams: regions of 16 px, then cells of 8 px, then pixels.

LoFTR's coarse-to-fine principle in three steps, made for two CPU cores: attention and dual-softmax work on regions, a
quarter as many as cells (1,200 at 640x480), and everything after that is local.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.cells import allowed_cells, points_of_cells, sides, without_ignored
from loftr_ros.matcher.coarse import Candidates, Masks, confidence_matrix, dual_softmax, most_confident
from loftr_ros.matcher.compact.backbone import REGION_CELLS, CompactBackbone, padded
from loftr_ros.matcher.compact.cells import CellMatcher
from loftr_ros.matcher.compact.fine import CompactFine
from loftr_ros.matcher.compact.local_affine import local_affine
from loftr_ros.matcher.compact.region_transformer import RegionTransformer
from loftr_ros.matcher.config import CoarseMatchingConfig, CompactConfig
from loftr_ros.matcher.convolutions import biases_of, lay_out_products, round_weights, use_onednn
from loftr_ros.matcher.fixed import FixedMatches, mutual_best, points, ranked
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.matcher.streaming import StreamingNetwork

Grid = tuple[int, int]


class Compact(StreamingNetwork):
    """The network. Build it by `checkpoints.files.load_network`, which also loads, folds and places it."""

    config: CompactConfig

    def __init__(self, config: CompactConfig) -> None:
        """Random weights."""
        super().__init__()
        self.config = config
        self.backbone = CompactBackbone(config.backbone)
        self.transformer = RegionTransformer(config.backbone.region_dim, config.transformer)
        self.cell_matcher = CellMatcher(config.backbone.region_dim, config.backbone.cell_dim, config.coarse.temperature)
        self.fine = CompactFine(config.fine, config.backbone.fine_dim)

    @property
    def first_weight(self) -> Tensor:
        """See `StreamingNetwork.first_weight`."""
        return self.backbone.first_weight

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Compact:
        """Prepare the loaded network for inference: batch norms folded, channels last, on its device.

        The comparison of cells and fine features stays in fp32: it is a hundredth of the work.
        """
        self.eval().requires_grad_(False)
        self.backbone.fold_batch_norm()
        self.first_weight.div_(255)  # see `gray_levels`
        biases = biases_of(self.backbone)
        if dtype != torch.float32:
            round_weights(self.backbone, dtype)
        self.to(device=device)
        self.backbone.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.transformer.to(dtype=dtype)
        use_onednn(self.backbone, biases)
        lay_out_products(self)
        return self

    def encode_pixels(self, pixels: Tensor, cells: Tensor | None) -> ImageFeatures:
        """See `StreamingNetwork.encode_pixels`: backbone, first self layer."""
        height, width = sides(pixels)
        grid = self.config.grid(height, width)
        made = self.backbone(padded(pixels).contiguous(memory_format=torch.channels_last))
        tokens = made.regions.flatten(2).transpose(1, 2).contiguous()
        tokens = self.transformer.encode(tokens, regions_of(grid), region_mask(cells, grid))
        return ImageFeatures(tokens, made.fine, grid, (width, height), cells, cells=made.cells)

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        """Nothing to complete."""
        return features

    @torch.inference_mode()
    def confidence(self, features0: ImageFeatures, features1: ImageFeatures) -> Tensor:
        """The whole confidence matrix of the regions of one pair, (L, S) fp32: for pictures and tests."""
        tokens0, tokens1, mask0, mask1 = self._attend([features0], features1)
        return confidence_matrix(tokens0, tokens1, self.config.coarse.temperature, mask0, mask1)[0]

    def _attend(
        self, keyframes: Sequence[ImageFeatures], current: ImageFeatures
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Regions of both images after the transformer, and which of them take part."""
        tokens0, tokens1, mask0, mask1 = self._tokens(keyframes, current)
        grids = regions_of(keyframes[0].grid), regions_of(current.grid)
        tokens0, tokens1 = self.transformer(tokens0, tokens1, *grids, mask0, mask1)
        return tokens0, tokens1, mask0, mask1

    @staticmethod
    def _tokens(
        keyframes: Sequence[ImageFeatures], current: ImageFeatures
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Regions of both images as encoded, and which of them take part."""
        batch, grid0, grid1 = len(keyframes), keyframes[0].grid, current.grid
        tokens0 = keyframes[0].tokens if batch == 1 else torch.cat([keyframe.tokens for keyframe in keyframes])
        tokens1 = current.tokens.expand(batch, -1, -1)
        mask0 = None
        if any(keyframe.usable is not None for keyframe in keyframes):
            parts = [region_mask(keyframe.usable, grid0) for keyframe in keyframes]
            all_of_them = tokens0.new_ones(tokens0.shape[:2], dtype=torch.bool)[:1]
            mask0 = torch.cat([all_of_them if part is None else part for part in parts])
        mask1 = region_mask(current.usable, grid1)
        mask1 = None if mask1 is None else mask1.expand(batch, -1)
        return tokens0, tokens1, mask0, mask1

    def match_batch(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """See `StreamingNetwork.match_batch`."""
        found = self.matched_cells(keyframes, current)
        return [self._matches(keyframe, current, cells) for keyframe, cells in zip(keyframes, found, strict=True)]

    def match_fixed(
        self, keyframes: ImageFeatures, current: ImageFeatures, allowed0: Tensor, allowed1: Tensor
    ) -> FixedMatches:
        """See `StreamingNetwork.match_fixed`."""
        assert keyframes.cells is not None and current.cells is not None
        assert keyframes.fine is not None and current.fine is not None
        coarse, grids, batch = self.config.coarse, (keyframes.grid, current.grid), len(keyframes.tokens)
        regions = [regions_of(grid) for grid in grids]
        tokens1 = current.tokens.expand(batch, -1, -1)
        masks = [region_mask(features.usable, features.grid) for features in (keyframes, current)]
        masks[1] = None if masks[1] is None else masks[1].expand(batch, -1)
        tokens0, tokens1 = self.transformer(keyframes.tokens, tokens1, *regions, *masks)
        best = mutual_best(tokens0, tokens1, coarse, *masks)
        vectors0 = self.cell_matcher.vectors(keyframes.cells, tokens0)
        vectors1 = self.cell_matcher.vectors(current.cells.expand(batch, -1, -1, -1), tokens1)
        found = self.cell_matcher.fixed(vectors0, vectors1, *grids, best, coarse.threshold)
        allowed = allowed0.expand(batch, -1).gather(1, found.cell0) & allowed1.expand(batch, -1).gather(1, found.cell1)
        rows = ranked(found.cell1, torch.where(allowed, found.confidence, 0.0), coarse.max_matches)
        rows = rows._replace(cell0=found.cell0.gather(1, rows.cell0))
        affine = local_affine(rows.cell0, rows.cell1, *grids, rows.confidence > 0).flatten(0, 1)
        fine = self.fine.fixed(keyframes.fine, current.fine, rows, grids, affine)
        points0, points1 = (
            points(self.config, cells, grid) for cells, grid in zip((rows.cell0, rows.cell1), grids, strict=True)
        )
        points1 = points1 + fine.offset.view(points1.shape)
        std = self.fine.std(fine.scale).view(rows.confidence.shape)
        return FixedMatches(rows.cell0, rows.cell1, points0, points1, rows.confidence, std)

    @torch.inference_mode()
    def match_quickly(
        self,
        keyframes: Sequence[ImageFeatures],
        current: ImageFeatures,
        max_matches: int,
        preferred: Sequence[Tensor | None],
    ) -> list[Matches]:
        """See `QuickMatcher.match_quickly`."""
        found = self.matched_cells(keyframes, current, attend=False)
        limit = min(max_matches, self.config.coarse.max_matches or max_matches)
        return [
            self._matches(keyframe, current, spread(cells, keyframe.grid, limit, first))
            for keyframe, cells, first in zip(keyframes, found, preferred, strict=True)
        ]

    @torch.inference_mode()
    def match_leniently(self, keyframe: ImageFeatures, current: ImageFeatures, threshold: float) -> Matches:
        """See `Lenient`."""
        return self._matches(keyframe, current, self.matched_cells([keyframe], current, threshold=threshold)[0])

    @torch.inference_mode()
    def matched_cells(
        self,
        keyframes: Sequence[ImageFeatures],
        current: ImageFeatures,
        attend: bool = True,
        threshold: float | None = None,
    ) -> list[Candidates]:
        """Matched cells of each keyframe, by the coarse stages.

        Args:
            keyframes, current: as of `match`.
            attend: whether the images attend to each other; without, the most confident matches are not selected.
            threshold: minimum confidence, of all matches; None for the network's, of the most confident ones.
        """
        coarse, select = self.config.coarse, attend and threshold is None
        if threshold is not None:
            coarse = replace(coarse, threshold=threshold)
        tokens0, tokens1, mask0, mask1 = (self._attend if attend else self._tokens)(keyframes, current)
        masks = Masks(attended0=mask0, attended1=mask1)
        found = dual_softmax(tokens0, tokens1, coarse.temperature, coarse.threshold, masks)
        counts = torch.bincount(found.pair, minlength=len(keyframes)).tolist()
        regions = zip(*(part.split(counts) for part in (found.cell0, found.cell1, found.confidence)), strict=True)
        allowed1 = allowed_cells(self.config, current)[0]
        return [
            self._cells_of(keyframe, current, allowed1, attended0, attended1, Candidates(*matched), coarse, select)
            for keyframe, attended0, attended1, matched in zip(
                keyframes, tokens0.split(1), tokens1.split(1), regions, strict=True
            )
        ]

    def _cells_of(
        self,
        keyframe: ImageFeatures,
        current: ImageFeatures,
        allowed1: Tensor,
        tokens0: Tensor,
        tokens1: Tensor,
        regions: Candidates,
        coarse: CoarseMatchingConfig,
        select: bool,
    ) -> Candidates:
        """The cells of one pair from its regions; if `select`, the most confident of them."""
        assert keyframe.cells is not None and current.cells is not None
        cells = self.cell_matcher(
            self.cell_matcher.vectors(keyframe.cells, tokens0)[0],
            self.cell_matcher.vectors(current.cells, tokens1)[0],
            keyframe.grid,
            current.grid,
            regions,
            coarse.threshold,
        )
        allowed = allowed_cells(self.config, keyframe)[0][cells.row] & allowed1[cells.column]
        cells = Candidates(*(part[allowed] for part in cells))
        return most_confident(cells, coarse.max_matches) if select else cells

    def _matches(self, keyframe: ImageFeatures, current: ImageFeatures, cells: Candidates) -> Matches:
        """The matches of one pair in pixels, on the CPU."""
        assert keyframe.fine is not None and current.fine is not None
        matched = cells.row[None], cells.column[None]
        fine = self.fine(keyframe.fine, current.fine, *matched, local_affine(*matched, keyframe.grid, current.grid))
        points0 = points_of_cells(self.config, cells.row, keyframe.grid[1])
        points1 = points_of_cells(self.config, cells.column, current.grid[1]) + fine.offset
        matches = Matches(cells.row, points0, points1, cells.value, self.fine.std(fine.scale))
        matches = without_ignored(matches, keyframe, current)
        return Matches(*(tensor.cpu() for tensor in vars(matches).values()))


def spread(cells: Candidates, grid: Grid, limit: int, preferred: Tensor | None) -> Candidates:
    """At most `limit` cells of one pair, in their order: first one of each region, a preferred one if there is one.

    Args:
        cells: of image 0, and their matches.
        grid: (rows, columns) of the cells of image 0.
        limit: their maximum number.
        preferred: (L,) bool; None for none.
    """
    if len(cells.value) <= limit:
        return cells
    columns = grid[1] // REGION_CELLS
    region = cells.row // grid[1] // REGION_CELLS * columns + cells.row % grid[1] // REGION_CELLS
    rank = cells.value if preferred is None else cells.value + preferred[cells.row]
    best = rank.new_zeros(grid[0] // REGION_CELLS * columns).scatter_reduce_(0, region, rank, "amax")
    rank = rank + 2 * (rank == best[region])
    kept = rank.topk(limit, sorted=False).indices.sort().values
    return Candidates(*(part[kept] for part in cells))


def regions_of(grid: Grid) -> Grid:
    """Convert a grid of cells to one of regions."""
    return grid[0] // REGION_CELLS, grid[1] // REGION_CELLS


def region_mask(cells: Tensor | None, grid: Grid) -> Tensor | None:
    """(B, L) bool of cells -> (B, L / 4) of regions: whether any of its cells takes part."""
    if cells is None:
        return None
    return functional.max_pool2d(cells.unflatten(1, grid)[:, None].float(), REGION_CELLS).flatten(1) > 0
