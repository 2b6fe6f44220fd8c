"""Coarse matching by dual-softmax and mutual nearest neighbours, in bounded memory (paper, section 3.3).

Data of the size of the score matrix exists only in tiles of rows, with TILE_SCORES scores each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Rows and scores per tile: 19 MB at most, half as much again in bf16. Products of fewer rows are slower by up to a
# half; larger tiles cost new memory from the system each time.
TILE_ROWS = 640
TILE_SCORES = 4_800_000

# Lowest possible threshold: a match must have this part of its row's probability, so that the search for the mutual
# best entries can drop all others early.
LOWEST_THRESHOLD = 1e-3

# Score of a pair with a masked side.
NEVER = -1e9

# Scores are in bits, as powers of 2: torch's exp2 takes a third of the time of its exp, and a thirtieth where the
# result underflows, as for most pairs of cells.
BITS = math.log2(math.e)

# Least sum of a row or column in `_candidates_by_one_exponential`: underflowed terms are negligible beside it.
_LEAST_SUM = 2.0**-85
# Bits between the level of its exponents and the highest expected score: fp32 ends at 2 ** 127.
_HEADROOM = 110
# Number of rows used to learn how a row's best score depends on its norm.
_SAMPLE = 64

# Score with a confidence of one half in `best_scores`: the threshold recommended by EfficientLoFTR's authors.
HALF_SCORE = 25.0

# Columns per block in the first pass of `entries_above`.
_BLOCK = 64


class CoarseMatches(NamedTuple):
    """Matched cells of a batch of pairs, ordered by pair and cell.

    Attributes:
        pair: (M,) int64, which pair of the batch.
        cell0, cell1: (M,) int64 cells, row-major in their grids.
        confidence: (M,) float32.
    """

    pair: Tensor
    cell0: Tensor
    cell1: Tensor
    confidence: Tensor


_Sides = tuple[Tensor | None, Tensor | None]


class Masks(NamedTuple):
    """Which cells of a batch of pairs are used; None for all.

    Attributes:
        allowed0, allowed1: (B, L) and (B, S) bool: cells that may match (not at the border, not masked).
        attended0, attended1: (B, L) and (B, S) bool: cells that take part in the confidences (not masked).
    """

    allowed0: Tensor | None = None
    allowed1: Tensor | None = None
    attended0: Tensor | None = None
    attended1: Tensor | None = None

    def of(self, pair: int) -> tuple[_Sides, _Sides]:
        """Of one pair the cells that are allowed, (L,) and (S,), and those attended."""
        allowed0, allowed1, attended0, attended1 = (None if mask is None else mask[pair] for mask in self)
        return (allowed0, allowed1), (attended0, attended1)


ALL_CELLS = Masks()


class Candidates(NamedTuple):
    """Entries of one pair's confidence matrix that may be matches, by row and column.

    Attributes:
        row, column: (N,) int64.
        value: (N,) float32, a score or confidence.
    """

    row: Tensor
    column: Tensor
    value: Tensor


def scores(
    tokens0: Tensor,
    tokens1: Tensor,
    temperature: float,
    attended0: Tensor | None = None,
    attended1: Tensor | None = None,
) -> Tensor:
    """Scaled dot products S of the paper's section 3.3: (B, L, C) and (B, S, C) -> (B, L, S), in fp32.

    Scores of unattended tokens, (B, L) and (B, S) bool, are far below any other.

    The scores are an fp32 island: divided by the temperature they reach hundreds, where half precision rounds to whole
    units and the softmax turns that into a factor of e.
    """
    s = scaled(tokens0, temperature) @ tokens1.float().transpose(1, 2)
    if attended0 is not None:
        s = s.masked_fill(~attended0[:, :, None], NEVER)
    if attended1 is not None:
        s = s.masked_fill(~attended1[:, None, :], NEVER)
    return s


def scaled(tokens0: Tensor, temperature: float) -> Tensor:
    """Image 0's tokens in fp32, divided so that their product with image 1's is the score."""
    return tokens0.float() / (tokens0.shape[-1] * temperature)


def confidence_matrix(
    tokens0: Tensor,
    tokens1: Tensor,
    temperature: float,
    attended0: Tensor | None = None,
    attended1: Tensor | None = None,
) -> Tensor:
    """The whole dual-softmax matrix P_c of equation 2, (B, L, S) in fp32: for pictures, tests and exports.

    `dual_softmax` finds the same matches without storing it.
    """
    s = scores(tokens0, tokens1, temperature, attended0, attended1)
    return torch.softmax(s, dim=1) * torch.softmax(s, dim=2)


def dual_softmax(
    tokens0: Tensor,
    tokens1: Tensor,
    temperature: float,
    threshold: float,
    masks: Masks = ALL_CELLS,
    max_matches: int = 0,
) -> CoarseMatches:
    """Mutual nearest neighbours of the dual-softmax confidence, above a threshold.

    One pass over tiles of rows. The confidence is the product of the softmaxes over the row and over the column, so an
    entry above the threshold has more than that of its row's softmax, which is known as soon as the row is: there are
    at most 1 / threshold such entries in a row, and a handful in practice. They stay candidates until the column's sum
    is known too.

    Args:
        tokens0, tokens1: (B, L, C) and (B, S, C) features after the transformer. On a CPU their scores have the same
            precision: in bf16, scores far below their row's or column's best are rounded too.
        temperature: divides the scores.
        threshold: least confidence of a match, at least LOWEST_THRESHOLD.
        masks: of the cells.
        max_matches: most matches of a pair, the most confident ones; 0 for all.

    Returns:
        The matches of all pairs.
    """
    threshold = max(threshold, LOWEST_THRESHOLD)
    found = []
    for pair in range(len(tokens0)):
        left, right = scaled(tokens0[pair], temperature) * BITS, tokens1[pair].float()
        allowed, attended = masks.of(pair)
        candidates = None
        if left.device.type == "cpu" and not (left.requires_grad or right.requires_grad):
            rough = torch.bfloat16 if tokens0.dtype == torch.bfloat16 else torch.float32
            candidates = _candidates_by_one_exponential(left, right, threshold, *attended, rough)
        if candidates is None:
            candidates = _dual_softmax_candidates(left, right, threshold, *attended)
        best = mutual_best(candidates, threshold, len(left), len(right), *allowed)
        found.append(most_confident(best, max_matches))
    return batched(found)


def best_scores(
    tokens0: Tensor,
    tokens1: Tensor,
    temperature: float,
    threshold: float,
    masks: Masks = ALL_CELLS,
    max_matches: int = 0,
) -> CoarseMatches:
    """Mutual nearest neighbours of the scores themselves, above a threshold: no exponential, one pass over tiles.

    Arguments and result as `dual_softmax`'s; confidences by `score_confidence`.
    """
    found = []
    for pair in range(len(tokens0)):
        left, right = scaled(tokens0[pair], temperature), tokens1[pair].float()
        allowed, attended = masks.of(pair)
        values, columns = [], []
        column_best = torch.full((len(right),), -torch.inf, device=left.device)
        for _, tile in tiles_of(left, right, *attended):
            best = tile.max(dim=1)
            values.append(best.values)
            columns.append(best.indices)
            column_best = torch.maximum(column_best, tile.amax(dim=0))
        value, column = torch.cat(values), torch.cat(columns)
        confidence = score_confidence(value)
        keep = (value == column_best[column]) & (confidence > threshold)
        if allowed[0] is not None:
            keep &= allowed[0]
        if allowed[1] is not None:
            keep &= allowed[1][column]
        row = keep.nonzero()[:, 0]
        found.append(most_confident(Candidates(row, column[row], confidence[row]), max_matches))
    return batched(found)


def score_confidence(scores: Tensor) -> Tensor:
    """Convert scores to confidences from 0 to 1: s / (s + HALF_SCORE), and 0 below 0. It keeps the scores' order."""
    positive = scores.clamp_min(0)
    return positive / (positive + HALF_SCORE)


def tiles_of(left: Tensor, right: Tensor, attended0: Tensor | None, attended1: Tensor | None) -> Iterator[_Tile]:
    """The score matrix of one pair in tiles of rows.

    Args:
        left, right: (L, C) and (S, C) float32, whose product is the score.
        attended0, attended1: (L,) and (S,) bool; scores of unattended tokens are far below any other.

    Yields:
        A slice of rows, and their scores with all columns, (rows, S), which may be overwritten.
    """
    rows, columns = len(left), len(right)
    height = _tile_height(columns)
    transposed = right.t()
    for start in range(0, rows, height):
        tile = slice(start, min(start + height, rows))
        part = left[tile] @ transposed
        _mask(part, None if attended0 is None else attended0[tile], attended1)
        yield _Tile(tile, part)


def _tile_height(columns: int) -> int:
    return max(1, min(TILE_ROWS, TILE_SCORES // columns))


def _mask(scores: Tensor, attended0: Tensor | None, attended1: Tensor | None) -> None:
    """Set scores of unattended rows and columns far below any other."""
    if attended0 is not None:
        scores.masked_fill_(~attended0[:, None], NEVER)
    if attended1 is not None:
        scores.masked_fill_(~attended1, NEVER)


class _Tile(NamedTuple):
    rows: slice
    scores: Tensor


def entries_above(values: Tensor, limits: Tensor, rows: Tensor | None, first_row: int) -> Candidates:
    """Entries of a tile above a limit, ordered by row and column.

    The first pass compares only the largest entry of each block of columns: few blocks exceed a limit.

    Args:
        values: (height, S).
        limits: (height,).
        rows: (n,) rows of the tile to search; None for all.
        first_row: of the tile.
    """
    if rows is not None:
        limits = torch.full_like(limits, torch.inf).index_copy_(0, rows, limits[rows])
    columns = values.shape[1]
    blocks = columns // _BLOCK
    whole = values[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK))
    row, block = (whole.amax(dim=2) > limits[:, None]).nonzero(as_tuple=True)
    chosen = whole[row, block]
    index, offset = (chosen > limits[row, None]).nonzero(as_tuple=True)
    row, column, value = row[index], block[index] * _BLOCK + offset, chosen[index, offset]
    if columns > blocks * _BLOCK:
        rest = values[:, blocks * _BLOCK :]
        last = (rest > limits[:, None]).nonzero(as_tuple=True)
        row, column = torch.cat([row, last[0]]), torch.cat([column, last[1] + blocks * _BLOCK])
        order = row.sort(stable=True).indices
        row, column, value = row[order], column[order], torch.cat([value, rest[last]])[order]
    return Candidates(row + first_row, column, value)


def mutual_best(
    candidates: Candidates,
    threshold: float,
    num_rows: int,
    num_columns: int,
    allowed0: Tensor | None,
    allowed1: Tensor | None,
) -> Candidates:
    """Candidates above the threshold that are the largest of their row and column, at most one per row.

    Args:
        candidates: include every entry above the threshold; their values are confidences.
        threshold: least confidence.
        num_rows, num_columns: of the whole matrix.
        allowed0, allowed1: (L,) and (S,) bool. Entries that are not allowed still compete, as in the published code.
    """
    row, column, value = candidates
    row_best = value.new_zeros(num_rows).scatter_reduce_(0, row, value, "amax")
    column_best = value.new_zeros(num_columns).scatter_reduce_(0, column, value, "amax")
    keep = (value > threshold) & (value == row_best[row]) & (value == column_best[column])
    if allowed0 is not None:
        keep &= allowed0[row]
    if allowed1 is not None:
        keep &= allowed1[column]
    row, column, value = row[keep], column[keep], value[keep]
    if len(row) > 1:  # of equal ones in a row the first
        first = torch.ones_like(row, dtype=torch.bool)
        first[1:] = row[1:] != row[:-1]
        row, column, value = row[first], column[first], value[first]
    return Candidates(row, column, value)


def most_confident(matches: Candidates, limit: int) -> Candidates:
    """The `limit` largest, in their order by row; all where `limit` is 0."""
    if not 0 < limit < len(matches.value):
        return matches
    kept = matches.value.topk(limit, sorted=False).indices.sort().values
    return Candidates(matches.row[kept], matches.column[kept], matches.value[kept])


def batched(pairs: list[Candidates]) -> CoarseMatches:
    """Concatenate the matches of several pairs."""
    device = pairs[0].row.device
    lengths = torch.tensor([len(matches.row) for matches in pairs], device=device)
    number = torch.arange(len(pairs), device=device).repeat_interleave(lengths)
    return CoarseMatches(number, *(torch.cat(parts) for parts in zip(*pairs, strict=True)))


def _candidates_by_one_exponential(
    left: Tensor,
    right: Tensor,
    threshold: float,
    attended0: Tensor | None,
    attended1: Tensor | None,
    rough: torch.dtype,
) -> Candidates | None:
    """As `_dual_softmax_candidates`, with one exponential for both softmaxes; None if it would underflow.

    The exponent is the score minus an estimate of the row's best one: that of the row's features with themselves. The
    sums of columns remove that weight again. So the relevant values are near zero, where half precision suffices, and
    the product is computed in it: it takes a third of the time. The candidates' own scores dominate the sums that they
    are divided by. They are computed again in fp32, and corrected there.

    Args:
        left, right: (L, C) and (S, C) fp32, whose product is the score in bits.
        threshold: least confidence.
        attended0, attended1: (L,) and (S,) bool.
        rough: dtype of the full product.
    """
    rows, columns = len(left), len(right)
    norms = left.norm(dim=1), right.norm(dim=1)
    # A sample of rows suffices to learn how a row's best score depends on its norm.
    sample = slice(None, None, max(1, rows // _SAMPLE))
    share = ((left[sample] @ right.t()).amax(dim=1) / norms[0][sample].square().clamp_min(1e-12)).median()
    # Within 100 bits of each other, so that no weight overflows or underflows. A level that is too high for the lowest
    # sums or too low for the highest score is detected at the end.
    level = (norms[0].amax() * norms[1].amax() - _HEADROOM).clamp(0.0, -math.log2(_LEAST_SUM))
    guess = torch.minimum((share * norms[0].square()).clamp_min(0.0), level + 100).to(rough)
    if attended0 is not None:
        guess = guess * attended0
    wide_left = torch.cat([left.to(rough), -guess[:, None]], dim=1)
    wide_right = torch.cat([right.to(rough), guess.new_ones(columns, 1)], dim=1).t()
    guess = guess.float()
    weight = torch.exp2(guess - level)
    row_sums, column_sums = left.new_empty(rows), left.new_zeros(columns)
    height = min(_tile_height(columns), rows)
    work = guess.new_empty(height, columns)
    product = work if rough == torch.float32 else torch.empty_like(work, dtype=rough)
    # A rough value and its row's sum can both be off by some hundredths: such entries are computed again below.
    margin = 1.0 if rough == torch.float32 else 0.5
    kept = []
    for start in range(0, rows, height):
        tile = slice(start, min(start + height, rows))
        part, exponential = product[: tile.stop - start], work[: tile.stop - start]
        torch.mm(wide_left[tile], wide_right, out=part)
        _mask(part, None if attended0 is None else attended0[tile], attended1)
        exponential.copy_(part).exp2_()
        row_sum = row_sums[tile] = exponential.sum(dim=1)
        column_sums.addmv_(exponential.t(), weight[tile])
        limit = row_sum * (margin * threshold)
        row, column, value = entries_above(exponential, limit, None, start)
        # The column's sum only grows from tile to tile.
        possible = weight[row] * value > (margin * threshold) * column_sums[column]
        kept.append(Candidates(row[possible], column[possible], value[possible]))
    if not (_all_within(row_sums, attended0) and _all_within(column_sums, attended1)):
        return None
    row, column, value = (torch.cat(parts) for parts in zip(*kept, strict=True))
    if rough == torch.float32:
        shifted = value.log2()
    else:
        shifted = (left[row] * right[column]).sum(dim=1) - guess[row]
        correction = torch.exp2(shifted) - value
        row_sums.index_add_(0, row, correction)
        column_sums.index_add_(0, column, correction * weight[row])
    by_row = shifted - row_sums[row].log2()
    by_column = shifted + (guess[row] - level) - column_sums[column].log2()
    return Candidates(row, column, torch.exp2(by_row.clamp_max_(0) + by_column.clamp_max_(0)))


def _all_within(sums: Tensor, attended: Tensor | None) -> bool:
    """Whether the sums of exponentials of attended tokens have neither overflowed nor lost anything relevant."""
    within = (sums >= _LEAST_SUM) & torch.isfinite(sums)
    return bool((within if attended is None else within | ~attended).all())


def _dual_softmax_candidates(
    left: Tensor, right: Tensor, threshold: float, attended0: Tensor | None, attended1: Tensor | None
) -> Candidates:
    """Entries that may be above the threshold, with their confidences; `left @ right.t()` is the score in bits.

    Rows and columns have separate exponentials. With a common one, columns with low scores would underflow beside a row
    with high ones: the best scores of two rows can be 200 bits apart.
    """
    column_lse = torch.full((len(right),), -torch.inf, device=left.device)
    kept = []
    for rows, tile in tiles_of(left, right, attended0, attended1):
        column_max = tile.amax(dim=0)
        column_sum = torch.sub(tile, column_max).exp2_().sum(dim=0)
        column_lse = torch.logaddexp2(column_lse, column_max + column_sum.log2())
        row_max = tile.amax(dim=1)
        exponential = tile.sub_(row_max[:, None]).exp2_()
        row_sum = exponential.sum(dim=1)
        row, column, value = entries_above(exponential, row_sum * threshold, None, rows.start)
        # log softmax over the row, plus the score. Minus the column's log-sum-exp, it is the log-confidence.
        log_value = 2 * value.log2() + (row_max - row_sum.log2())[row - rows.start]
        # That log-sum-exp only grows from tile to tile.
        possible = log_value - column_lse[column] > math.log2(threshold)
        kept.append(Candidates(row[possible], column[possible], log_value[possible]))
    row, column, log_value = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return Candidates(row, column, torch.exp2(log_value - column_lse[column]))
