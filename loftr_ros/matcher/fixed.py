"""Matching as a fixed program: every tensor's size follows from the image size and the settings alone.

So a GPU's queue never waits for the host, a CUDA graph can be captured, and a graph can be exported without operators
whose result has an unknown size. Matches are rows; unused ones have confidence 0.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.cells import cell_offset, indices
from loftr_ros.matcher.coarse import LOWEST_THRESHOLD, NEVER, scaled, score_confidence
from loftr_ros.matcher.config import CoarseMatchingConfig, NetworkConfig
from loftr_ros.matcher.constants import made_once

Grid = tuple[int, int]

# Maximum number of matches of a pair: TensorRT's TopK has no more.
MOST_ROWS = 3840

# Scores of one tile of rows, of all pairs together: 100 MB in fp32, of which two are alive at a time.
TILE_SCORES = 25_000_000

_local = threading.local()


class _Choice(NamedTuple):
    tile_scores: int
    drop_unused: bool


@contextmanager
def fixed_program(tile_scores: int | None = None, *, drop_unused: bool = False) -> Iterator[None]:
    """Let layers on this thread choose few launches instead of little memory.

    Args:
        tile_scores: replaces TILE_SCORES.
        drop_unused: remove unused rows before the fine stage; not fixed then, but less work where waiting costs
            nothing. Only for a single pair.
    """
    before = getattr(_local, "choice", None)
    _local.choice = _Choice(tile_scores or TILE_SCORES, drop_unused)
    try:
        yield
    finally:
        _local.choice = before


def is_fixed() -> bool:
    """Whether this thread is in a fixed program."""
    return getattr(_local, "choice", None) is not None


class Best(NamedTuple):
    """Best entries of the confidence matrices of B pairs.

    Attributes:
        column: (B, L) int64, of each row.
        confidence: (B, L) float32, of mutual best entries above the threshold; 0 for others.
        row: (B, S) int64, of each column.
    """

    column: Tensor
    confidence: Tensor
    row: Tensor


class Rows(NamedTuple):
    """Matched cells.

    Attributes:
        cell0, cell1: (B, R) int64.
        confidence: (B, R) float32, 0 for unused rows, whose cells are arbitrary.
    """

    cell0: Tensor
    cell1: Tensor
    confidence: Tensor


class FixedMatches(NamedTuple):
    """Matches of B pairs, in no order.

    Attributes:
        cell0, cell1: (B, R) int64.
        points0, points1: (B, R, 2) float32 pixels (u, v) of the encoded images.
        confidence: (B, R) float32; 0 for unused rows, whose other values are arbitrary.
        std: (B, R) float32 pixels; NaN without a fine stage.
    """

    cell0: Tensor
    cell1: Tensor
    points0: Tensor
    points1: Tensor
    confidence: Tensor
    std: Tensor


def mutual_best(
    tokens0: Tensor,
    tokens1: Tensor,
    coarse: CoarseMatchingConfig,
    usable0: Tensor | None,
    usable1: Tensor | None,
    bin_score: Tensor | None = None,
) -> Best:
    """Mutual best entries by the configured method.

    Args:
        tokens0, tokens1: (B, L, C) and (B, S, C) after the transformer.
        coarse: method, temperature, threshold.
        usable0, usable1: (B, L) and (B, S) bool, false for tokens that take no part; None if all do.
        bin_score: () of optimal transport's dustbins.
    """
    temperature = 1.0 if coarse.method == "optimal_transport" else coarse.temperature
    left, right = scaled(tokens0, temperature), tokens1.float()
    of_masked = [
        None if usable is None else torch.where(usable, 0.0, NEVER).expand(len(left), -1)
        for usable in (usable0, usable1)
    ]
    left, right = _added(left, right, *of_masked)
    tiles = _tiles(left.shape[1], right.shape[1] * len(left))
    if coarse.method == "optimal_transport":
        assert bin_score is not None
        found = _by_transport(left, right, bin_score, coarse.sinkhorn_iterations, tiles)
    elif coarse.method == "scores":
        found = _best_entries(left, right, tiles)
    else:
        found = _by_dual_softmax(left, right, tiles)
    value, column, _, row = found
    # Never above 1: rounding of masked rows' huge scores aside, it is a probability.
    confidence = score_confidence(value) if coarse.method == "scores" else value.clamp_max(0).exp()
    mutual = row.gather(1, column) == indices(left.shape[1], left.device)
    mutual = mutual & (confidence > max(coarse.threshold, LOWEST_THRESHOLD))
    return Best(column, torch.where(mutual, confidence, 0.0), row)


def most_confident(best: Best, allowed0: Tensor, allowed1: Tensor, limit: int) -> Rows:
    """The most confident mutual best entries of allowed cells.

    Args:
        best: of B pairs.
        allowed0, allowed1: (B, L) and (B, S) bool; either may be shared by all pairs.
        limit: at most this number of them; 0 for MOST_ROWS, the maximum.
    """
    allowed = allowed0 & allowed1.expand(len(best.column), -1).gather(1, best.column)
    return ranked(best.column, torch.where(allowed, best.confidence, 0.0), limit)


def ranked(column: Tensor, confidence: Tensor, limit: int) -> Rows:
    """The `limit` most confident of cells with a column and a confidence each, (B, L)."""
    cells, limit = confidence.shape[1], min(limit or MOST_ROWS, MOST_ROWS)
    if cells <= limit:
        rows = Rows(indices(cells, column.device).expand(len(column), -1), column, confidence)
    else:
        value, cell = confidence.topk(limit, dim=1, sorted=False)
        rows = Rows(cell, column.gather(1, cell), value)
    if not (is_fixed() and _local.choice.drop_unused):
        return rows
    # And one more, whose confidence is 0, because runtimes differ in the handling of empty tensors.
    rows = Rows(*(functional.pad(part, (0, 1)) for part in rows))
    used = (rows.confidence[0] > 0) | (indices(rows.confidence.shape[1], column.device) == rows.confidence.shape[1] - 1)
    return Rows(*(part[:, used.nonzero()[:, 0]] for part in rows))


def pair_groups(rows: Rows) -> list[slice]:
    """Pairs whose rows pass the fine stage together: MOST_ROWS at a time, with half a gigabyte of windows."""
    batch, count = rows.confidence.shape
    together = max(1, MOST_ROWS // count)
    return [slice(start, min(start + together, batch)) for start in range(0, batch, together)]


def picked(features: Tensor, cells: Tensor) -> Tensor:
    """(B, L, C) features of (B, R) cells -> (B, R, C)."""
    return features.gather(1, cells[..., None].expand(-1, -1, features.shape[2]))


def windows(
    fine: Tensor,
    cells: Tensor,
    grid: Grid,
    first: int,
    side: int,
    ratio: int,
    dtype: torch.dtype,
    *,
    blank: bool = True,
) -> Tensor:
    """Squares of fine features at cells.

    Args:
        fine: (B, C, Hf, Wf), channels last in memory; B = 1 is shared by all pairs.
        cells: (K, R) of a grid of (rows, columns).
        grid: the grid.
        first: from a cell's top-left fine feature to the window's, along both axes.
        side: of the windows.
        ratio: fine features along a cell's side.
        dtype: of the result.
        blank: whether features outside of the image are zero; else they are the nearest ones inside.

    Returns:
        (K R, side side, C).
    """
    batch, channels, height, width = (int(length) for length in fine.shape)
    places, inside = window_places(grid, (height, width), first, side, ratio, fine.device, dtype)
    place, cells = places[cells], cells.flatten()
    if batch > 1:
        place = place + indices(batch, fine.device)[:, None, None] * (height * width)
    cut = fine.permute(0, 2, 3, 1).reshape(-1, channels)[place.flatten()].view(-1, side * side, channels)
    return cut.to(dtype) if inside is None or not blank else cut * inside[cells][..., None]


@made_once
def window_places(
    grid: Grid, size: Grid, first: int, side: int, ratio: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """(L, side side) int64 places of each cell's window in a map of (height, width), and 1 for those inside, else 0;
    None if all are.
    """
    reach = torch.arange(side) + first
    rows, columns = ((torch.arange(count) * ratio)[:, None] + reach for count in grid)
    place = rows.clamp(0, size[0] - 1)[:, None, :, None] * size[1] + columns.clamp(0, size[1] - 1)[None, :, None]
    inside = ((rows >= 0) & (rows < size[0]))[:, None, :, None] & ((columns >= 0) & (columns < size[1]))[None, :, None]
    shape = grid[0] * grid[1], side * side
    is_inside = first >= 0 and all(
        (n - 1) * ratio + first + side <= length for n, length in zip(grid, size, strict=True)
    )
    return place.reshape(shape).to(device), None if is_inside else inside.reshape(shape).to(device, dtype)


def _tiles(rows: int, columns: int) -> list[slice]:
    """Tiles of rows of a score matrix."""
    height = max(1, (_local.choice.tile_scores if is_fixed() else TILE_SCORES) // columns)
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


def _added(
    left: Tensor, right: Tensor, of_rows: Tensor | None = None, of_columns: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Features with more channels, so that their product is increased by a value of each row and of each column.

    This needs no pass over the scores.

    Args:
        left, right: (B, L, C) and (B, S, C).
        of_rows, of_columns: (B, L) and (B, S), or None.
    """
    lefts, rights = [left], [right]
    if of_rows is not None:
        lefts.append(of_rows[..., None])
        rights.append(ones(right.shape[0], right.shape[1], right.device))
    if of_columns is not None:
        lefts.append(ones(left.shape[0], left.shape[1], left.device))
        rights.append(of_columns[..., None])
    if len(lefts) == 1:
        return left, right
    return torch.cat(lefts, dim=2), torch.cat(rights, dim=2)


def points(config: NetworkConfig, cells: Tensor, grid: Grid) -> Tensor:
    """(B, R) cells of a grid of (rows, columns) -> (B, R, 2) float32 pixels (u, v)."""
    return _points(grid, config.backbone.stride, cell_offset(config), cells.device)[cells]


@made_once
def _points(grid: Grid, stride: int, offset: float, device: torch.device) -> Tensor:
    row, column = torch.meshgrid(*(torch.arange(side) * float(stride) + offset for side in grid), indexing="ij")
    return torch.stack([column, row], dim=2).flatten(0, 1).to(device)


@made_once
def ones(batch: int, count: int, device: torch.device) -> Tensor:
    """(batch, count, 1) float32."""
    return torch.ones(batch, count, 1).to(device)


def _best_entries(left: Tensor, right: Tensor, tiles: list[slice]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The largest entries of left @ right.

    Returns:
        (B, L) the largest of each row, (B, L) int64 its column, (B, S) the largest of each column, (B, S) int64 its
        row.
    """
    by_row, by_column = [], []
    for rows in tiles:
        entries = left[:, rows] @ right.transpose(1, 2)
        by_row.append(entries.max(dim=2))
        values, place = entries.max(dim=1)
        by_column.append((values, place + rows.start if rows.start else place))
    if len(tiles) == 1:
        return (*by_row[0], *by_column[0])
    value, column = (torch.cat(parts, dim=1) for parts in zip(*by_row, strict=True))
    values, places = (torch.stack(parts) for parts in zip(*by_column, strict=True))
    column_value, tile = values.max(dim=0)
    return value, column, column_value, places.gather(0, tile[None])[0]


def _by_dual_softmax(left: Tensor, right: Tensor, tiles: list[slice]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-confidence by equation 2: twice the score, minus the log-sum-exps of its row and of its column."""
    row_lse, column_lse = [], []
    for rows in tiles:
        scores = left[:, rows] @ right.transpose(1, 2)
        row_lse.append(log_sum_exp(scores, 2))
        column_lse.append(log_sum_exp(scores, 1))
    of_columns = column_lse[0] if len(tiles) == 1 else log_sum_exp(torch.stack(column_lse), 0)
    of_rows = row_lse[0] if len(tiles) == 1 else torch.cat(row_lse, dim=1)
    return _best_entries(*_added(2 * left, right, -of_rows, -of_columns), tiles)


def _by_transport(
    left: Tensor, right: Tensor, bin_score: Tensor, iterations: int, tiles: list[slice]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log of the transport plan by Sinkhorn's iterations (equation 1), with a dustbin on either side.

    An iteration is one pass over tiles of the scores, and two follow: one finds the cells that prefer the dustbin, the
    other the best entries among the rest.
    """
    num_rows, num_columns = left.shape[1], right.shape[1]
    alpha = bin_score.float().reshape(1, 1)
    u, v = torch.zeros_like(left[..., 0]), torch.zeros_like(right[..., 0])
    u_bin, v_bin = torch.zeros_like(u[:, :1]), torch.zeros_like(v[:, :1])
    for _ in range(iterations):
        row_parts, column_lse = [], []
        for rows in tiles:
            scores = left[:, rows] @ right.transpose(1, 2) + v[:, None]
            part = -_log_add_exp(log_sum_exp(scores, 2), alpha + v_bin)
            row_parts.append(part)
            column_lse.append(log_sum_exp(scores + part[..., None], 1) - v)
        u = torch.cat(row_parts, dim=1)
        u_bin = math.log(num_columns) - log_sum_exp(torch.cat([alpha + v, alpha + v_bin], dim=1), 1)[:, None]
        v = -_log_add_exp(log_sum_exp(torch.stack(column_lse), 0), alpha + u_bin)
        v_bin = math.log(num_rows) - log_sum_exp(torch.cat([alpha + u, alpha + u_bin], dim=1), 1)[:, None]
    row_best, _, column_best, _ = _best_entries(*_added(left, right, u, v), tiles)
    u = torch.where(row_best >= alpha + u + v_bin, u, NEVER)
    v = torch.where(column_best >= alpha + u_bin + v, v, NEVER)
    return _best_entries(*_added(left, right, u, v), tiles)


def log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """log(sum(exp(x))), in separate steps: some runtimes' combined operator can overflow."""
    largest = x.amax(dim=dim, keepdim=True)
    return ((x - largest).exp().sum(dim=dim, keepdim=True).log() + largest).squeeze(dim)


def _log_add_exp(x: Tensor, y: Tensor) -> Tensor:
    """log(exp(x) + exp(y)); y is broadcast."""
    largest, smallest = torch.maximum(x, y), torch.minimum(x, y)
    return largest + torch.log1p(torch.exp(smallest - largest))
