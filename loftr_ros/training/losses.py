"""The losses of the paper's section 3.5, with hand-written gradients where that saves time and memory.

Everything here is fp32, whatever the autocast around it: scores divided by the temperature reach hundreds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from loftr_ros.matcher.coarse import BITS, scaled, scores, tiles_of
from loftr_ros.training.supervision import CoarseTruth

# Largest confidence for a finite logarithm of its complement.
_LARGEST_CONFIDENCE = 1 - 1e-6


def log_confidence_at(tokens0: Tensor, tokens1: Tensor, temperature: float, cell0: Tensor, cell1: Tensor) -> Tensor:
    """Logarithm of the dual-softmax confidence (equation 2) of chosen pairs of cells; the matrix is never stored.

    Args:
        tokens0, tokens1: (B, L, C) and (B, S, C) features after the transformer.
        temperature: divides the scores.
        cell0, cell1: (B, N) int64; where either is negative the result is 0 and has no gradient.

    Returns:
        (B, N) float32.
    """
    with torch.autocast(tokens0.device.type, enabled=False):
        result: Tensor = _LogConfidenceAt.apply(  # type: ignore[no-untyped-call]
            scaled(tokens0, temperature), tokens1.float(), cell0, cell1
        )
    return result


def log_confidence(tokens0: Tensor, tokens1: Tensor, temperature: float) -> Tensor:
    """Logarithm of the whole dual-softmax matrix, (B, L, S) float32."""
    with torch.autocast(tokens0.device.type, enabled=False):
        result: Tensor = _LogDualSoftmax.apply(scores(tokens0, tokens1, temperature))  # type: ignore[no-untyped-call]
    return result


def log_assignment(tokens0: Tensor, tokens1: Tensor, bin_score: Tensor, iterations: int) -> Tensor:
    """Logarithm of the transport plan (equation 1), (B, L + 1, S + 1) float32, dustbins last.

    `matcher.loftr.transport.assignment_matrix` is its exponential, which has no gradient where it underflows.
    """
    with torch.autocast(tokens0.device.type, enabled=False):
        s = scores(tokens0, tokens1, 1.0)
        batch, rows, columns = s.shape
        alpha = bin_score.float()
        s = torch.cat([s, alpha.expand(batch, rows, 1)], dim=2)
        s = torch.cat([s, alpha.expand(batch, 1, columns + 1)], dim=1)
        mass0, mass1 = s.new_zeros(rows + 1), s.new_zeros(columns + 1)
        mass0[-1], mass1[-1] = math.log(columns), math.log(rows)
        v = s.new_zeros(batch, columns + 1)
        for _ in range(iterations):
            u = mass0 - torch.logsumexp(s + v[:, None, :], dim=2)
            v = mass1 - torch.logsumexp(s + u[:, :, None], dim=1)
        return s + u[:, :, None] + v[:, None, :]


def focal(log_p: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of values that should be 1, elementwise, from their logarithm: -alpha (1 - p)^gamma log p."""
    return -alpha * (1 - log_p.exp()).clamp_min(0).pow(gamma) * log_p


def focal_negative(log_p: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of values that should be 0, elementwise: -alpha p^gamma log(1 - p)."""
    p = log_p.exp().clamp_max(_LARGEST_CONFIDENCE)
    return -alpha * p.pow(gamma) * torch.log1p(-p)


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; 0, with a gradient of 0, if none is chosen."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)


def hardest_wrong(tokens0: Tensor, tokens1: Tensor, lonely: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For some cells without a partner, the most similar cell of the other image.

    Args:
        tokens0, tokens1: (B, L, C) and (B, S, C).
        lonely: (B, L) bool, cells without a partner.
        count: number of cells per pair.

    Returns:
        (B, count) cells of image 0, and of image 1; negative if a pair has fewer.
    """
    with torch.no_grad(), torch.autocast(tokens0.device.type, enabled=False):
        key = torch.rand(lonely.shape, device=lonely.device).masked_fill(~lonely, -1.0)
        value, cell = key.topk(min(count, key.shape[1]), dim=1)
        asked = tokens0.float().gather(1, cell[..., None].expand(-1, -1, tokens0.shape[2]))
        other = (asked @ tokens1.float().transpose(1, 2)).argmax(dim=2)
    return torch.where(value >= 0, cell, -1), torch.where(value >= 0, other, -1)


def transport_nll(log_plan: Tensor, truth: CoarseTruth) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the plan (section 3.5): of matches, and of the dustbins of unmatched cells."""
    inner = log_plan[:, :-1].gather(2, truth.partner.clamp_min(0)[..., None])[..., 0]
    positive = mean_over(-inner, truth.partner >= 0)
    to_bins = torch.cat([log_plan[:, :-1, -1], log_plan[:, -1, :-1]], dim=1)
    return positive, mean_over(-to_bins, torch.cat([truth.lonely0, truth.lonely1], dim=1))


def fine_l2(offset: Tensor, std: Tensor, true_offset: Tensor, chosen: Tensor) -> Tensor:
    """Squared distance, weighted by the inverse of the predicted standard deviation (section 3.5, the loss L_f).

    The weights have no gradient, or the network would lower the loss by being uncertain; they are divided by their
    mean, so that only their ratios matter.

    Args:
        offset: (..., 2) predicted.
        std: (...) predicted, in the same unit.
        true_offset: (..., 2).
        chosen: (...) bool.
    """
    chosen = chosen & torch.isfinite(true_offset).all(dim=-1) & (true_offset.abs().amax(dim=-1) <= 1)
    weight = 1 / std.detach().clamp_min(1e-3)
    weight = weight / mean_over(weight, chosen).clamp_min(1e-6)
    distance = (offset - true_offset.nan_to_num(0.0)).square().sum(dim=-1)
    return mean_over(weight * distance, chosen)


class _LogConfidenceAt(torch.autograd.Function):
    """`log_confidence_at`. Scores exist in tiles of rows, and are computed again for the gradient: a matrix product is
    cheaper than storing them.

    log P_ij = 2 s_ij - r_i - c_j, with r and c the log-sum-exps of row and column. So d log P_ij / d s is 2 at the
    entry, minus the softmax of its row along the row, minus that of its column along the column.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, cell0: Tensor, cell1: Tensor) -> Tensor:
        chosen = (cell0 >= 0) & (cell1 >= 0)
        row, column = cell0.clamp_min(0), cell1.clamp_min(0)
        row_lse = left.new_empty(left.shape[:2])
        column_lse = left.new_full(right.shape[:2], -torch.inf)
        result = left.new_empty(cell0.shape)
        with torch.autocast(left.device.type, enabled=False):
            for pair in range(len(left)):
                bits = left[pair] * BITS
                for rows, tile in tiles_of(bits, right[pair], None, None):
                    column_max = tile.amax(dim=0)
                    column_sum = torch.sub(tile, column_max).exp2_().sum(dim=0)
                    column_lse[pair] = torch.logaddexp2(column_lse[pair], column_max + column_sum.log2())
                    row_max = tile.amax(dim=1)
                    row_lse[pair, rows] = row_max + tile.sub_(row_max[:, None]).exp2_().sum(dim=1).log2()
                score = (bits[row[pair]] * right[pair][column[pair]]).sum(dim=1)
                result[pair] = 2 * score - row_lse[pair][row[pair]] - column_lse[pair][column[pair]]
        ctx.save_for_backward(left, right, row, column, chosen, row_lse, column_lse)
        return torch.where(chosen, result / BITS, 0.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right, row, column, chosen, row_lse, column_lse = ctx.saved_tensors
        grad = torch.where(chosen, grad_outputs[0], 0.0)
        grad_rows = torch.zeros_like(row_lse).scatter_add_(1, row, grad)
        grad_columns = torch.zeros_like(column_lse).scatter_add_(1, column, grad)
        grad_left, grad_right = torch.empty_like(left), torch.zeros_like(right)
        with torch.autocast(left.device.type, enabled=False):
            for pair in range(len(left)):
                for rows, tile in tiles_of(left[pair] * BITS, right[pair], None, None):
                    by_column = torch.sub(tile, column_lse[pair]).exp2_().mul_(-grad_columns[pair])
                    by_row = tile.sub_(row_lse[pair, rows, None]).exp2_().mul_(grad_rows[pair, rows, None])
                    by_score = by_column.sub_(by_row)
                    grad_left[pair, rows] = by_score @ right[pair]
                    grad_right[pair].addmm_(by_score.t(), left[pair, rows])
                twice = 2 * grad[pair, :, None]
                grad_left[pair].index_add_(0, row[pair], twice * right[pair][column[pair]])
                grad_right[pair].index_add_(0, column[pair], twice * left[pair][row[pair]])
        return grad_left, grad_right, None, None


class _LogDualSoftmax(torch.autograd.Function):
    """`log_confidence` of scores: stores one matrix where autograd would store five."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        row_lse = torch.logsumexp(score, dim=2, keepdim=True)
        column_lse = torch.logsumexp(score, dim=1, keepdim=True)
        ctx.save_for_backward(score, row_lse, column_lse)
        return 2 * score - row_lse - column_lse

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        score, row_lse, column_lse = ctx.saved_tensors
        grad = grad_outputs[0]
        by_row = torch.sub(score, row_lse).exp_().mul_(grad.sum(dim=2, keepdim=True))
        by_column = torch.sub(score, column_lse).exp_().mul_(grad.sum(dim=1, keepdim=True))
        return torch.mul(grad, 2).sub_(by_row).sub_(by_column)
