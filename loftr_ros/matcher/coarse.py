"""Coarse matching by dual-softmax and mutual nearest neighbours, in bounded memory (paper, section 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Rows of the score matrix that are held at a time: 1024 x 4800 floats are 20 MB.
TILE_ROWS = 1024


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
    than a tile of TILE_ROWS rows is ever held.

    Args:
        tokens0, tokens1: (B, L, C) and (B, S, C) features after the transformer.
        temperature: divides the scores.
        threshold: least confidence of a match.
        allowed0, allowed1: (B, L) and (B, S) bool: cells that may match (not at the border, not masked).
        attended0, attended1: (B, L) and (B, S) bool: cells that take part in the softmaxes (not padding).

    Returns:
        The matches of all pairs.
    """
    batch, rows, _ = tokens0.shape
    columns = tokens1.shape[1]
    device = tokens0.device

    def tiles():  # type: ignore[no-untyped-def]
        for start in range(0, rows, TILE_ROWS):
            part = slice(start, min(start + TILE_ROWS, rows))
            tile = scores(tokens0[:, part], tokens1, temperature)
            if attended0 is not None:
                tile.masked_fill_(~attended0[:, part, None], -1e9)
            if attended1 is not None:
                tile.masked_fill_(~attended1[:, None, :], -1e9)
            yield part, tile

    row_lse = torch.empty(batch, rows, device=device)
    column_lse = torch.full((batch, columns), -torch.inf, device=device)
    for part, tile in tiles():
        row_lse[:, part] = torch.logsumexp(tile, dim=2)
        column_lse = torch.logaddexp(column_lse, torch.logsumexp(tile, dim=1))

    row_best = torch.empty(batch, rows, device=device)
    row_argbest = torch.empty(batch, rows, dtype=torch.int64, device=device)
    column_best = torch.full((batch, columns), -torch.inf, device=device)
    column_argbest = torch.zeros(batch, columns, dtype=torch.int64, device=device)
    for part, tile in tiles():
        log_confidence = tile.mul_(2).sub_(row_lse[:, part, None]).sub_(column_lse[:, None, :])
        row_best[:, part], row_argbest[:, part] = log_confidence.max(dim=2)
        best, argbest = log_confidence.max(dim=1)
        better = best > column_best
        column_best = torch.where(better, best, column_best)
        column_argbest = torch.where(better, argbest + part.start, column_argbest)

    confidence = row_best.exp()
    mutual = column_argbest.gather(1, row_argbest) == torch.arange(rows, device=device)
    keep = mutual & (confidence > threshold)
    if allowed0 is not None:
        keep &= allowed0
    if allowed1 is not None:
        keep &= allowed1.gather(1, row_argbest)
    pair, cell0 = keep.nonzero(as_tuple=True)
    return CoarseMatches(pair, cell0, row_argbest[pair, cell0], confidence[pair, cell0])
