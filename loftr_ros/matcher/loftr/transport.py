"""Coarse matching by optimal transport with a dustbin, in bounded memory (paper, section 3.3, equation 1).

Every cell of image 0 gives one unit of mass, every cell of image 1 takes one. Mass without a partner goes to a dustbin
on either side, with the mass of all cells of the other side. Sinkhorn's iterations compute the entropy-regularised plan
in the log domain: log P = S + u + v, with u and v updated alternately so that rows and columns have their mass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loftr_ros.matcher.coarse import (
    ALL_CELLS,
    BITS,
    LOWEST_THRESHOLD,
    Candidates,
    CoarseMatches,
    Masks,
    batched,
    entries_above,
    most_confident,
    mutual_best,
    scaled,
    scores,
    tiles_of,
)


def assignment_matrix(
    tokens0: Tensor,
    tokens1: Tensor,
    bin_score: Tensor,
    iterations: int,
    attended0: Tensor | None = None,
    attended1: Tensor | None = None,
) -> Tensor:
    """The whole plan, (B, L + 1, S + 1) in fp32, dustbins last: for training, pictures, tests and exports.

    `optimal_transport` finds the same matches without storing it.

    Args:
        tokens0, tokens1: (B, L, C) and (B, S, C) features after the transformer.
        bin_score: () the learned score of the dustbins.
        iterations: of Sinkhorn's algorithm.
        attended0, attended1: (B, L) and (B, S) bool, false for cells that are masked.
    """
    s = scores(tokens0, tokens1, 1.0, attended0, attended1)
    batch, rows, columns = s.shape
    alpha = bin_score.float()
    s = torch.cat([s, alpha.expand(batch, rows, 1)], dim=2)
    s = torch.cat([s, alpha.expand(batch, 1, columns + 1)], dim=1)
    log_mass0 = s.new_zeros(rows + 1)
    log_mass1 = s.new_zeros(columns + 1)
    log_mass0[-1], log_mass1[-1] = math.log(columns), math.log(rows)
    u, v = s.new_zeros(batch, rows + 1), s.new_zeros(batch, columns + 1)
    for _ in range(iterations):
        u = log_mass0 - torch.logsumexp(s + v[:, None, :], dim=2)
        v = log_mass1 - torch.logsumexp(s + u[:, :, None], dim=1)
    return torch.exp(s + u[:, :, None] + v[:, None, :])


def optimal_transport(
    tokens0: Tensor,
    tokens1: Tensor,
    bin_score: Tensor,
    iterations: int,
    threshold: float,
    masks: Masks = ALL_CELLS,
    max_matches: int = 0,
) -> CoarseMatches:
    """Mutual nearest neighbours of the transport plan, above a threshold and above either cell's dustbin.

    Each iteration is one pass over tiles of rows, and so is the search for matches at the end.

    Args:
        tokens0, tokens1: (B, L, C) and (B, S, C) features after the transformer.
        bin_score: () the learned score of the dustbins.
        iterations: of Sinkhorn's algorithm.
        threshold: least confidence of a match, at least LOWEST_THRESHOLD.
        masks: of the cells.
        max_matches: maximum number of matches of a pair, the most confident ones; 0 for all.

    Returns:
        The matches of all pairs.
    """
    threshold = max(threshold, LOWEST_THRESHOLD)
    alpha = bin_score.float()
    found = []
    for pair in range(len(tokens0)):
        allowed, attended = masks.of(pair)
        plan = Plan(scaled(tokens0[pair], 1.0) * BITS, tokens1[pair].float(), alpha * BITS, *attended)
        for _ in range(iterations):
            plan.iterate()
        size = len(plan.left), len(plan.right)
        best = mutual_best(plan.candidates(threshold), threshold, *size, *allowed)
        found.append(most_confident(best, max_matches))
    return batched(found)


class Plan:
    """The plan of one pair, stored as its two potentials; scores and potentials are in bits (see `coarse.BITS`)."""

    def __init__(
        self, left: Tensor, right: Tensor, alpha: Tensor, attended0: Tensor | None, attended1: Tensor | None
    ) -> None:
        self.left, self.right, self.alpha = left, right, alpha
        self.attended0, self.attended1 = attended0, attended1
        self.u, self.v = left.new_zeros(len(left)), left.new_zeros(len(right))
        self.u_bin = self.v_bin = left.new_zeros(())

    def iterate(self) -> None:
        """Update the row potentials, then the column potentials."""
        column_lse = torch.full_like(self.v, -torch.inf)
        bin_column = self.alpha + self.v_bin
        for rows, tile in tiles_of(self.left, self.right, self.attended0, self.attended1):
            tile += self.v
            row_max = torch.maximum(tile.amax(dim=1), bin_column)
            exponential = tile.sub_(row_max[:, None]).exp2_()
            u = -(row_max + (exponential.sum(dim=1) + torch.exp2(bin_column - row_max)).log2())
            self.u[rows] = u
            # The columns' 2 ** (S + u) is the same exponential times 2 ** (row_max + u - v). Underflowed terms are
            # negligible beside the dustbin, which is in every column.
            weight = row_max + u
            highest = weight.amax()
            tile_lse = highest + (torch.exp2(weight - highest) @ exponential).log2() - self.v
            column_lse = torch.logaddexp2(column_lse, tile_lse)
        bin_row = torch.cat([self.alpha + self.v, bin_column[None]])
        self.u_bin = math.log2(len(self.right)) - _log_sum_exp2(bin_row)
        self.v = -torch.logaddexp2(column_lse, self.alpha + self.u_bin)
        bin_column_entries = torch.cat([self.alpha + self.u, (self.alpha + self.u_bin)[None]])
        self.v_bin = math.log2(len(self.left)) - _log_sum_exp2(bin_column_entries)

    def candidates(self, threshold: float) -> Candidates:
        """Entries above the threshold, of rows and columns that put less mass into the dustbin than into their best
        partner.
        """
        to_bin = torch.exp2(self.alpha + self.u + self.v_bin)
        from_bin = torch.exp2(self.alpha + self.u_bin + self.v)
        column_best = torch.zeros_like(self.v)
        kept = []
        for rows, tile in tiles_of(self.left, self.right, self.attended0, self.attended1):
            confidence = tile.add_(self.v).add_(self.u[rows, None]).exp2_()
            column_best = torch.maximum(column_best, confidence.amax(dim=0))
            row_best = confidence.amax(dim=1)
            hopeful = ((row_best > threshold) & (row_best >= to_bin[rows])).nonzero()[:, 0]
            kept.append(entries_above(confidence, torch.full_like(row_best, threshold), hopeful, rows.start))
        row, column, value = (torch.cat(parts) for parts in zip(*kept, strict=True))
        keep = column_best[column] >= from_bin[column]
        return Candidates(row[keep], column[keep], value[keep])


def _log_sum_exp2(x: Tensor) -> Tensor:
    highest = x.amax()
    return highest + torch.exp2(x - highest).sum().log2()
