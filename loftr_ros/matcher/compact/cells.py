"""The middle stage of `compact`: matches cells of a region with cells in and around its matched region."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from loftr_ros.matcher.coarse import Candidates
from loftr_ros.matcher.compact.backbone import REGION_CELLS
from loftr_ros.matcher.constants import made_once
from loftr_ros.matcher.fixed import Best, Rows, picked
from loftr_ros.matcher.precision import without_autocast

# Cells around the other region that are candidates too: the true cell may be just outside.
_AROUND = 1
# Side of the square of candidates.
_SIDE = REGION_CELLS + 2 * _AROUND

Grid = tuple[int, int]


class CellMatcher(nn.Module):
    """Softmax over the cells in and around the matched region, and over no match."""

    def __init__(self, region_dim: int, cell_dim: int, temperature: float) -> None:
        super().__init__()
        self.context = nn.Linear(region_dim, cell_dim, bias=False)
        self.none = nn.Parameter(torch.zeros(()))
        self.scale = 1 / (cell_dim * temperature)

    def vectors(self, cells: Tensor, tokens: Tensor) -> Tensor:
        """Vectors for the comparison of cells: their features, and their region's after attention.

        Args:
            cells: (B, Cc, H, W) from the backbone.
            tokens: (B, L, Cr) regions after the transformer.

        Returns:
            (B, H * W, Cc) fp32.
        """
        batch, channels, rows, columns = cells.shape
        with without_autocast(cells.device):
            context = self.context(tokens.float())
            context = context.view(batch, rows // REGION_CELLS, 1, columns // REGION_CELLS, 1, channels)
            split = (
                cells.permute(0, 2, 3, 1)
                .float()
                .reshape(batch, rows // REGION_CELLS, REGION_CELLS, columns // REGION_CELLS, REGION_CELLS, channels)
            )
            return (split + context).reshape(batch, rows * columns, channels)

    def scores(self, vectors0: Tensor, vectors1: Tensor, cells0: Tensor, candidates: Tensor, inside: Tensor) -> Tensor:
        """Logits of each cell's candidates, and of no match last.

        Args:
            vectors0, vectors1: (L, Cc) and (S, Cc) of the two images.
            cells0: (N, A) cells of image 0.
            candidates: (N, K) cells of image 1, the same for all A.
            inside: (N, K) bool, false outside of the image.

        Returns:
            (N, A, K + 1) fp32.
        """
        count, asked = cells0.shape
        left = vectors0.index_select(0, cells0.flatten()).view(count, asked, vectors0.shape[1])
        right = vectors1.index_select(0, candidates.flatten()).view(count, candidates.shape[1], vectors1.shape[1])
        s = (left * self.scale) @ right.transpose(1, 2)
        s = s.masked_fill(~inside[:, None], -1e4)
        return torch.cat([s, self.none.expand(count, asked, 1)], dim=2)

    def forward(
        self, vectors0: Tensor, vectors1: Tensor, grid0: Grid, grid1: Grid, regions: Candidates, threshold: float
    ) -> Candidates:
        """The cells of matched regions.

        Args:
            vectors0, vectors1: (L, Cc) and (S, Cc).
            grid0, grid1: (rows, columns) of cells.
            regions: matched ones of one pair.
            threshold: least confidence, the region's times the cell's.

        Returns:
            Cells of image 0 in their order, those of image 1, and their confidences; each cell of either at most once.
        """
        cells0 = cells_in_region(regions.row, grid0)
        candidates, inside = cells_around_region(regions.column, grid1)
        probability = self.scores(vectors0, vectors1, cells0, candidates, inside).softmax(dim=2)
        best, place = probability[..., :-1].max(dim=2)
        confidence = best * regions.value[:, None]
        row, column, value = cells0.flatten(), candidates.gather(1, place).flatten(), confidence.flatten()
        column_best = value.new_zeros(len(vectors1)).scatter_reduce_(0, column, value, "amax")
        keep = ((value > threshold) & (value == column_best[column])).nonzero()[:, 0]
        keep = keep[row[keep].argsort()]
        return Candidates(row[keep], column[keep], value[keep])

    def fixed(
        self, vectors0: Tensor, vectors1: Tensor, grid0: Grid, grid1: Grid, regions: Best, threshold: float
    ) -> Rows:
        """The cells of all regions of B pairs, as a fixed program.

        Args:
            vectors0, vectors1: (B, L, Cc) and (B, S, Cc).
            grid0, grid1: (rows, columns) of cells.
            regions: of the pairs.
            threshold: as of `forward`.

        Returns:
            (B, L) cells of image 0, region by region; those of image 1, and confidences, 0 for no match; each cell of
            either has at most one.
        """
        tables0, tables1 = _tables(grid0, vectors0.device), _tables(grid1, vectors1.device)
        batch, count = regions.column.shape
        cells0 = tables0.inner.flatten().expand(batch, -1)
        candidates = tables1.around[regions.column]
        left = picked(vectors0, cells0).view(batch * count, -1, vectors0.shape[2])
        right = picked(vectors1, candidates.flatten(1)).view(batch * count, -1, vectors1.shape[2])
        s = (left * self.scale) @ right.transpose(1, 2)
        s = s.masked_fill(tables1.outside[regions.column].view(batch * count, 1, -1), -1e4)
        probability = torch.cat([s, self.none.expand(*s.shape[:2], 1)], dim=2).softmax(dim=2)
        best, place = (part.view(batch, count, -1) for part in probability[..., :-1].max(dim=2))
        confidence = best * regions.confidence[..., None]
        column = candidates.gather(2, place)
        # Each region of image 1 around a cell is matched with at most one of image 0: only their cells can have the
        # same match.
        nearby = regions.row.gather(1, tables1.claiming[column.flatten(1)].flatten(1))
        rivals, values = (
            part.gather(1, nearby[..., None].expand(-1, -1, part.shape[2])).view(batch, column[0].numel(), -1)
            for part in (column, confidence)
        )
        column, confidence = column.flatten(1), confidence.flatten(1)
        highest = torch.where(rivals == column[..., None], values, 0.0).amax(dim=2)
        keep = (confidence >= highest) & (confidence > threshold)
        return Rows(cells0, column, torch.where(keep, confidence, 0.0))


def cells_in_region(regions: Tensor, grid: Grid) -> Tensor:
    """(...) regions -> (..., 4) cells of a grid of (rows, columns) of cells."""
    return _tables(grid, regions.device).inner[regions]


def cells_around_region(regions: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(...) regions -> (..., 16) cells in and around them, and (..., 16) bool, whether they are inside of the image."""
    tables = _tables(grid, regions.device)
    return tables.around[regions], tables.inside[regions]


class _Tables(NamedTuple):
    """Cells by region of a grid with R regions and L cells.

    Attributes:
        inner: (R, 4) the region's own.
        around: (R, 16) those in and around it, moved into the image.
        inside, outside: (R, 16) bool, whether they are in the image, or not.
        claiming: (L, 4) regions around which a cell is, some of them several times.
    """

    inner: Tensor
    around: Tensor
    inside: Tensor
    outside: Tensor
    claiming: Tensor


@made_once
def _tables(grid: Grid, device: torch.device) -> _Tables:
    regions = torch.arange(grid[0] // REGION_CELLS * (grid[1] // REGION_CELLS))
    row, column = _first_cell(regions, grid)
    reach = torch.arange(REGION_CELLS)
    inner = ((row[:, None] + reach)[:, :, None] * grid[1] + (column[:, None] + reach)[:, None]).flatten(1)
    reach = torch.arange(-_AROUND, REGION_CELLS + _AROUND)
    rows, columns = row[:, None] + reach, column[:, None] + reach
    inside_rows, inside_columns = (rows >= 0) & (rows < grid[0]), (columns >= 0) & (columns < grid[1])
    inside = (inside_rows[:, :, None] & inside_columns[:, None]).flatten(1)
    rows, columns = rows.clamp(0, grid[0] - 1), columns.clamp(0, grid[1] - 1)
    around = (rows[:, :, None] * grid[1] + columns[:, None]).flatten(1)
    # A cell is in its own region, and beside one before or after it along each axis: the nearer one.
    cell, by_axis = torch.arange(grid[0] * grid[1]), []
    for place, count in ((cell // grid[1], grid[0]), (cell % grid[1], grid[1])):
        own = place // REGION_CELLS
        near = torch.stack([own, own + 2 * (place % REGION_CELLS) - 1], dim=1)
        by_axis.append((near, (near >= 0) & (near < count // REGION_CELLS)))
    (down, is_row), (along, is_column) = by_axis
    number = down[:, :, None] * (grid[1] // REGION_CELLS) + along[:, None]
    claiming = torch.where(is_row[:, :, None] & is_column[:, None], number, number[:, :1, :1]).flatten(1)
    return _Tables(*(table.to(device) for table in (inner, around, inside, ~inside, claiming)))


def place_around_region(cells: Tensor, regions: Tensor, grid: Grid) -> Tensor:
    """Index of cells within `cells_around_region`: (N, A) cells and (N,) regions -> (N, A) int64, negative for none."""
    row, column = _first_cell(regions, grid)
    down = cells // grid[1] - (row[:, None] - _AROUND)
    along = cells % grid[1] - (column[:, None] - _AROUND)
    there = (down >= 0) & (down < _SIDE) & (along >= 0) & (along < _SIDE)
    return torch.where(there & (cells >= 0), down * _SIDE + along, -1)


def _first_cell(regions: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Row and column of regions' top-left cells."""
    columns = grid[1] // REGION_CELLS
    return regions // columns * REGION_CELLS, regions % columns * REGION_CELLS
