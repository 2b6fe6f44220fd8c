"""The middle stage of `compact`: matches cells of a region with cells in and around its matched region."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loftr_ros.matcher.coarse import Candidates
from loftr_ros.matcher.compact.backbone import REGION_CELLS

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
        with torch.autocast(cells.device.type, enabled=False):
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


def cells_in_region(regions: Tensor, grid: Grid) -> Tensor:
    """(N,) regions -> (N, 4) cells of a grid of (rows, columns) of cells."""
    row, column = _first_cell(regions, grid)
    reach = torch.arange(REGION_CELLS, device=regions.device)
    return ((row[:, None] + reach)[:, :, None] * grid[1] + (column[:, None] + reach)[:, None]).flatten(1)


def cells_around_region(regions: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(N,) regions -> (N, 16) cells in and around them, and (N, 16) bool, whether they are inside of the image."""
    row, column = _first_cell(regions, grid)
    reach = torch.arange(-_AROUND, REGION_CELLS + _AROUND, device=regions.device)
    rows, columns = row[:, None] + reach, column[:, None] + reach
    inside_rows, inside_columns = (rows >= 0) & (rows < grid[0]), (columns >= 0) & (columns < grid[1])
    inside = (inside_rows[:, :, None] & inside_columns[:, None]).flatten(1)
    rows, columns = rows.clamp(0, grid[0] - 1), columns.clamp(0, grid[1] - 1)
    return (rows[:, :, None] * grid[1] + columns[:, None]).flatten(1), inside


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
