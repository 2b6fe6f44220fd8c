"""Coarse matching by dual-softmax and mutual nearest neighbours, in bounded memory (paper, section 3.3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Scores that are held at a time: 1.2 MB, which stays in a core's cache and below what the allocator gives back to the
# system after each use (four such tiles take half the time of one that holds 1200 x 1200 scores).
TILE_SCORES = 300_000

# Score of a pair of which one side is padding.
_NEVER = -1e9
# exp(-80) is still a normal float.
_SAFE_EXPONENT = 80.0


class CoarseMatches(NamedTuple):
    """Matched cells of a batch of pairs, ordered by pair and cell.

    Attributes:
        pair: (M,) int64, which pair of the batch.
        cell0, cell1: (M,) int64 cells, row-major in their grids.
        confidence: (M,) float32, equation 2 of the paper.
    """

    pair: Tensor
    cell0: Tensor
    cell1: Tensor
    confidence: Tensor


def scores(tokens0: Tensor, tokens1: Tensor, temperature: float) -> Tensor:
    """Scaled dot products S of equation 2: (B, L, C) and (B, S, C) -> (B, L, S), in fp32.

    The scores are an fp32 island: divided by the temperature they reach hundreds, where half precision
    rounds to whole units and the softmax turns that into a factor of e.
    """
    channels = tokens0.shape[2]
    return (tokens0.float() / (channels * temperature)) @ tokens1.float().transpose(1, 2)


def confidence_matrix(tokens0: Tensor, tokens1: Tensor, temperature: float) -> Tensor:
    """The whole dual-softmax matrix P_c of equation 2, (B, L, S) in fp32: for pictures and tests.

    `dual_softmax` finds the same matches without ever holding it.
    """
    s = scores(tokens0, tokens1, temperature)
    return torch.softmax(s, dim=1) * torch.softmax(s, dim=2)


def dual_softmax(
    tokens0: Tensor,
    tokens1: Tensor,
    temperature: float,
    threshold: float,
    allowed0: Tensor | None = None,
    allowed1: Tensor | None = None,
    attended0: Tensor | None = None,
    attended1: Tensor | None = None,
) -> CoarseMatches:
    """Mutual nearest neighbours of the dual-softmax confidence, above a threshold.

    The confidence is exp(2 s - row - column) with the log-sum-exps of the score's row and column. One pass
    over tiles of rows finds those, a second finds the best entry of each row and column; nothing larger
    than a tile of some rows, TILE_SCORES scores in all, is ever held.

    Args:
        tokens0, tokens1: (B, L, C) and (B, S, C) features after the transformer.
        temperature: divides the scores.
        threshold: least confidence of a match.
        allowed0, allowed1: (B, L) and (B, S) bool: cells that may match (not at the border, not masked).
        attended0, attended1: (B, L) and (B, S) bool: cells that take part in the softmaxes (not padding).

    Returns:
        The matches of all pairs.
    """
    batch, rows, channels = tokens0.shape
    columns = tokens1.shape[1]
    device = tokens0.device
    left, right = tokens0.float() / (channels * temperature), tokens1.float()
    height = max(1, TILE_SCORES // (batch * columns))
    tiles = [slice(start, min(start + height, rows)) for start in range(0, rows, height)]

    row_lse = torch.empty(batch, rows, device=device)
    column_lse = torch.full((batch, columns), -torch.inf, device=device)
    for tile in tiles:
        row_lse[:, tile], tile_column_lse = _log_sum_exps(_tile(left, right, tile, attended0, attended1))
        column_lse = torch.logaddexp(column_lse, tile_column_lse)

    # Two more channels take half of either log-sum-exp off the score: the product is half the log-confidence.
    ones = torch.ones(batch, 1, 1, device=device)
    left = torch.cat([left, row_lse[..., None] / -2, ones.expand(-1, rows, -1)], dim=2)
    right = torch.cat([right, ones.expand(-1, columns, -1), column_lse[..., None] / -2], dim=2)
    column_best = torch.full((batch, columns), -torch.inf, device=device)
    # Only rows above the threshold are searched for where their best entry is: a search costs ten times a maximum.
    lowest = math.log(threshold) / 2 if threshold > 0 else -torch.inf
    found = []
    for tile in tiles:
        half_log_confidence = _tile(left, right, tile, attended0, attended1)
        column_best = torch.maximum(column_best, half_log_confidence.amax(dim=1))
        row_best = half_log_confidence.amax(dim=2)
        pair, row = (row_best > lowest).nonzero(as_tuple=True)
        found.append((pair, row + tile.start, half_log_confidence[pair, row].argmax(dim=1), row_best[pair, row]))
    pair, cell0, cell1, best = (torch.cat(parts) for parts in zip(*found, strict=True))

    keep = best == column_best[pair, cell1]
    if allowed0 is not None:
        keep &= allowed0[pair, cell0]
    if allowed1 is not None:
        keep &= allowed1[pair, cell1]
    pair, cell0, cell1, confidence = pair[keep], cell0[keep], cell1[keep], torch.exp(2 * best[keep])
    if len(tiles) > 1:  # each tile went through all pairs
        order = torch.argsort(pair, stable=True)
        pair, cell0, cell1, confidence = pair[order], cell0[order], cell1[order], confidence[order]
    return CoarseMatches(pair, cell0, cell1, confidence)


def _tile(left: Tensor, right: Tensor, rows: slice, attended0: Tensor | None, attended1: Tensor | None) -> Tensor:
    """Scores of some rows with all columns, (B, rows, S); of what takes no part, far below any other."""
    tile = left[:, rows] @ right.transpose(1, 2)
    if attended0 is not None:
        tile.masked_fill_(~attended0[:, rows, None], _NEVER)
    if attended1 is not None:
        tile.masked_fill_(~attended1[:, None, :], _NEVER)
    return tile


def _log_sum_exps(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of a tile's rows and of its columns, (B, rows) and (B, S); the tile is overwritten.

    One exponential serves both: that of the row, carried over to the column by a factor for each row. The factor
    must not underflow, or columns that live by low-scoring rows would be lost; where it would, the columns get an
    exponential of their own. An entry whose row's exponential underflows cannot match, whatever its column says.
    """
    row_max = tile.amax(dim=2)
    highest = row_max.amax(dim=1, keepdim=True)
    own_columns = None
    if bool((highest - row_max > _SAFE_EXPONENT).any()):
        own_columns = torch.logsumexp(tile, dim=1)
    exponential = tile.sub_(row_max[..., None]).exp_()
    row_lse = row_max + exponential.sum(dim=2).log()
    if own_columns is not None:
        return row_lse, own_columns
    column_sum = (torch.exp(row_max - highest)[:, None, :] @ exponential)[:, 0]
    return row_lse, highest + column_sum.clamp_min(torch.finfo(torch.float32).tiny).log()
