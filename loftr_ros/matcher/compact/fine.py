"""The fine stage of `compact`: sub-pixel position of a match and its standard deviation.

The fine features of a cell of image 0 are a template, rotated, scaled and sheared by the motion of the matches around
it. Its correlation with the surroundings of the matched cell of image 1 is a heat map. The match is the expectation
(paper, section 3.4) over its peak only, since small values elsewhere would draw it to the middle. A small perceptron
reads the correlations of the template's quarters around the peak, which a plain sum loses, and outputs a correction and
the standard deviation. All of it is fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.matcher.cells import indices
from loftr_ros.matcher.compact.local_affine import inverse
from loftr_ros.matcher.config import CompactFineConfig
from loftr_ros.matcher.constants import made_once
from loftr_ros.matcher.fixed import Rows, windows

Grid = tuple[int, int]

# Pixels per fine feature, and fine features per cell side.
FINE_PIXELS = 2
_CELL = 4
# Side, in fine features, of the square around a cell from which its template is interpolated.
TEMPLATE_WINDOW = 8
# Largest correction of the expectation, in pixels.
_CORRECTION = 1.0
# Shifts to each side of the peak used for the expectation, and those that the perceptron reads.
_PEAK, _AROUND = 1, 2
# Half-width that contains 68 % of a Laplace distribution's errors, as one standard deviation does for a normal
# distribution, in units of its scale.
ONE_SIGMA = -math.log(1 - 0.6827)
# Matches processed at a time, with 5 MB of windows: they stay in the cache, and in memory that the allocator keeps. New
# memory from the system for each image costs more than all the products.
TILE_MATCHES = 256


class FineMatch(NamedTuple):
    """Refinement of M matches.

    Attributes:
        offset: (M, 2) float32 pixels (u, v) from the cell of image 1 to the match.
        scale: (M,) float32, of the Laplace distribution of the error along an axis, in pixels.
        log_heat: (M, shifts ** 2) float32, logarithm of the heat map, row-major from the shift up and left.
    """

    offset: Tensor
    scale: Tensor
    log_heat: Tensor


class CompactFine(nn.Module):
    """The fine stage, see the module."""

    def __init__(self, config: CompactFineConfig, channels: int) -> None:
        """Random weights.

        Raises:
            ValueError: the template has no middle between four features.
        """
        super().__init__()
        if config.template % 2:
            raise ValueError(f"template of {config.template} fine features: expected an even number")
        self.config = config
        self.window = config.template + 2 * config.reach
        self.weight = nn.Parameter(torch.zeros(config.template**2))
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.read = nn.Sequential(
            nn.Linear(4 * (2 * _AROUND + 1) ** 2 + 1, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
        )
        self.said = nn.Linear(config.hidden, 3)
        nn.init.zeros_(self.said.weight)
        nn.init.zeros_(self.said.bias)
        self._norm = 1 / math.sqrt(channels)

    def forward(self, fine0: Tensor, fine1: Tensor, cells0: Tensor, cells1: Tensor, affine: Tensor) -> FineMatch:
        """Refine matches.

        Args:
            fine0, fine1: (B, Cf, H, W) fine features.
            cells0, cells1: (B, N) matched cells, row-major in grids of H / 4 x W / 4.
            affine: (B, N, 2, 2) of `local_affine`.

        Returns:
            For the B N matches.
        """
        with torch.autocast(fine0.device.type, enabled=False):
            surroundings = Windows(fine1, cells1, (_CELL - self.window) // 2, self.window)
            affine = affine.flatten(0, 1)
            if fine0.requires_grad:  # each tile would have a gradient of the size of the whole map
                sources = Windows(fine0, cells0, (_CELL - TEMPLATE_WINDOW) // 2, TEMPLATE_WINDOW)
                everything = 0, cells0.numel()
                return self.refine(sources.cut(*everything).float(), surroundings.cut(*everything).float(), affine)
            templates = self._templates(fine0, cells0, affine)
            count = min(TILE_MATCHES, max(1, cells0.numel()))
            floats = fine0.new_empty(count, self.window**2, fine0.shape[1], dtype=torch.float32)
            correlation = floats.new_empty(count, self.config.template**2, self.window**2)
            quarters = []
            for start in range(0, max(1, cells0.numel()), count):
                window = surroundings.cut(start, count)
                window = floats[: len(window)].copy_(window)
                quarters.append(self._quarters(templates[start : start + count], window, correlation[: len(window)]))
            return self._read(torch.cat(quarters))

    def refine(self, source: Tensor, window: Tensor, affine: Tensor) -> FineMatch:
        """Refine matches from their surroundings.

        Args:
            source: (M, 64, Cf) float32, the squares of `TEMPLATE_WINDOW` around the cells of image 0.
            window: (M, W W, Cf) float32, those around the cells of image 1.
            affine: (M, 2, 2) of `local_affine`.
        """
        return self._read(self._quarters(self._template(source, affine), window))

    def _template(self, source: Tensor, affine: Tensor) -> Tensor:
        """(M, T T, Cf) the source as it would appear in image 1, by bilinear interpolation."""
        places = self._places(affine)[..., None]
        weight = (1 - (places - indices(TEMPLATE_WINDOW, source.device)).abs()).clamp_min(0)
        return torch.bmm((weight[:, 1, :, :, None] * weight[:, 0, :, None]).flatten(2), source)

    def _templates(self, fine0: Tensor, cells0: Tensor, affine: Tensor) -> Tensor:
        """The same from whole maps, by sums of four places each, which is faster without gradients."""
        first = (_CELL - TEMPLATE_WINDOW) // 2
        table, corner, width = _table(fine0, cells0, first, TEMPLATE_WINDOW)
        across, down = self._places(affine).unbind(dim=1)
        left, top = across.floor(), down.floor()
        right, low = across - left, down - top
        place = corner[:, None] + (top * width + left).long()
        index = torch.stack([place, place + 1, place + width, place + width + 1], dim=-1)
        both = right * low
        weight = torch.stack([1 - right - low + both, right - both, low - both, both], dim=-1)
        made = functional.embedding_bag(
            index.view(-1, 4), table.float(), mode="sum", per_sample_weights=weight.view(-1, 4)
        )
        return made.view(-1, self.config.template**2, table.shape[1])

    def _places(self, affine: Tensor) -> Tensor:
        """(M, 2, T T) positions of a template's features, (across, down) in the square of `TEMPLATE_WINDOW`."""
        last = TEMPLATE_WINDOW - 1
        steps = _steps(self.config.template, affine.device)  # in image 1
        # Before the last one, so that there is a next one.
        return (inverse(affine) @ steps + last / 2).clamp(0, last - 1e-3)

    def _quarters(self, template: Tensor, window: Tensor, work: Tensor | None = None) -> Tensor:
        """Weighted correlation of each quarter of the template at each shift: (M, 4, shifts ** 2).

        Sums of long slices: a shift moves all products by the same number of places in the window.

        Args:
            template: (M, T T, Cf) float32.
            window: as of `refine`.
            work: (M, T T, W W) fp32 to be overwritten; allocated if not given.
        """
        side, half, width = self.config.template, self.config.template // 2, self.window
        weight = self.weight.softmax(0) * (4 * self._norm)
        correlation = torch.bmm(template * weight[:, None], window.transpose(1, 2), out=work)
        columns = correlation.view(-1, side, 2, half, width * width)
        count = width * width - half + 1
        row = _added([columns[:, :, :, i, i : i + count] for i in range(half)]).unflatten(1, (2, half))
        count -= (half - 1) * width
        square = _added([row[:, :, i, :, i * width : i * width + count] for i in range(half)])
        shifts = self._shifts(template.device, count)
        return square.flatten(1).index_select(1, shifts).unflatten(1, (4, -1))

    def _read(self, quarters: Tensor) -> FineMatch:
        """Read the match from the correlation of the template's quarters, (M, 4, shifts ** 2)."""
        log_heat = (quarters.sum(dim=1) * self.sharpness).log_softmax(dim=1)
        peak = log_heat.argmax(dim=1)
        tables = _peaks(self.config.reach, peak.device)
        place = tables.places[peak]
        heat = log_heat.gather(1, place).exp() * tables.near[peak]
        mass = heat.sum(dim=1, keepdim=True)
        expected = tables.middle[peak] + heat / mass @ tables.shifts
        around = quarters.gather(2, place[:, None].expand(-1, 4, -1))
        around = around - around[:, :, len(tables.shifts) // 2].mean(dim=1)[:, None, None]
        said = self.said(self.read(torch.cat([around.flatten(1), mass], dim=1)))
        offset = torch.add(expected, torch.tanh(said[:, :2]), alpha=_CORRECTION)
        return FineMatch(offset, functional.softplus(said[:, 2] + 1) + 0.02, log_heat)

    def std(self, scale: Tensor) -> Tensor:
        """(M,) standard deviations along an axis, in pixels: bounds of 68 % of errors."""
        return scale * (ONE_SIGMA * self.config.sigma_scale)

    def _shifts(self, device: torch.device, count: int) -> Tensor:
        """Indices of the shifts of each quarter, among `count` for each of the quarters."""
        return _quarter_shifts(self.config.template, self.config.reach, count, device)

    def fixed(self, fine0: Tensor, fine1: Tensor, rows: Rows, grids: tuple[Grid, Grid], affine: Tensor) -> FineMatch:
        """Refine the B R matches of B pairs, as a fixed program.

        Args:
            fine0, fine1: (B, Cf, H, W) and (1, Cf, H, W).
            rows: matched cells.
            grids: (rows, columns) of the cells of both images.
            affine: (B R, 2, 2) of `local_affine`.
        """
        source, around = (
            windows(fine, cells, grid, (_CELL - side) // 2, side, _CELL, torch.float32)
            for fine, cells, grid, side in (
                (fine0, rows.cell0, grids[0], TEMPLATE_WINDOW),
                (fine1, rows.cell1, grids[1], self.window),
            )
        )
        return self.refine(source, around, affine)


class _Peaks(NamedTuple):
    """Places around each of the P shifts as peak; A of them are read.

    Attributes:
        places: (P, A) int64, moved inside.
        near: (P, A) float32, 1 for those of the expectation that are inside, else 0.
        middle: (P, 2) float32, the peak's shift (u, v), in pixels.
        shifts: (A, 2) float32, from the peak, in pixels.
    """

    places: Tensor
    near: Tensor
    middle: Tensor
    shifts: Tensor


@made_once
def _peaks(reach: int, device: torch.device) -> _Peaks:
    side = 2 * reach + 1
    peak, steps = torch.arange(side * side), torch.arange(-_AROUND, _AROUND + 1)
    row, column = peak // side, peak % side
    rows, columns = (row[:, None] + steps)[:, :, None], (column[:, None] + steps)[:, None]
    place = (rows.clamp(0, side - 1) * side + columns.clamp(0, side - 1)).flatten(1)
    near = ((steps.abs() <= _PEAK)[:, None] & (steps.abs() <= _PEAK)).flatten()
    inside = ((rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)).flatten(1)
    shifts = torch.stack([steps.repeat(len(steps)), steps.repeat_interleave(len(steps))], dim=1)
    middle = FINE_PIXELS * (torch.stack([column, row], dim=1) - reach)
    tables = place, (inside & near).float(), middle.float(), (FINE_PIXELS * shifts).float()
    return _Peaks(*(table.to(device) for table in tables))


@made_once
def _steps(side: int, device: torch.device) -> Tensor:
    """(2, side side) float32, (across, down) of a template's features from its middle."""
    step = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    return torch.stack([step.repeat(side), step.repeat_interleave(side)]).to(device)


@made_once
def _quarter_shifts(template: int, reach: int, count: int, device: torch.device) -> Tensor:
    start, shift = torch.arange(2) * (template // 2), torch.arange(2 * reach + 1)
    place = (start[:, None] + shift)[:, None, :, None] * (template + 2 * reach) + (start[:, None] + shift)[
        None, :, None, :
    ]
    return (torch.arange(4).view(2, 2, 1, 1) * count + place).flatten().to(device)


def _added(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class Windows:
    """Squares of fine features at cells."""

    def __init__(self, fine: Tensor, cells: Tensor, first: int, side: int) -> None:
        """Define the windows.

        Args:
            fine: (B, Cf, H, W).
            cells: (B, N), row-major in grids of H / 4 x W / 4.
            first: from a cell's top-left fine feature to the window's, along both axes; negative for windows that begin
                before it.
            side: of the windows.
        """
        self._places, self._corner, self._width = _table(fine, cells, first, side)
        self._side = side

    def cut(self, start: int, count: int) -> Tensor:
        """(count, side side, Cf) part of the B N windows, zero outside of the image; fewer at the end."""
        (places, channels), width = self._places.shape, self._width
        side, corner = self._side, self._corner[start : start + count]
        reach = indices(side, corner.device)
        if self._places.requires_grad:
            place = (corner[:, None, None] + reach[:, None] * width + reach).flatten()
            return self._places.index_select(0, place).view(-1, side * side, channels)
        # A window's row is contiguous in memory: rows of overlapping views of it are copied whole.
        pieces = self._places.as_strided((places - side + 1, side * channels), (channels, 1))
        rows = pieces.index_select(0, (corner[:, None] + reach * width).flatten())
        return rows.view(-1, side * side, channels)


def _table(fine: Tensor, cells: Tensor, first: int, side: int) -> tuple[Tensor, Tensor, int]:
    """Fine features as a table, and the start of each window in it.

    Args:
        fine, cells, first, side: as of `Windows`.

    Returns:
        (P, Cf) the features; with zeros around the image if a window needs them.
        (B N,) int64 places of the windows' first features.
        Number of places to the next row.
    """
    batch, channels, height, width = fine.shape
    row = cells // (width // _CELL) * _CELL + first
    column = cells % (width // _CELL) * _CELL + first
    rim = max(0, -first, first + side - _CELL)
    # Zero padding needs a copy of the whole map: avoid it if the check is cheap and no window needs it.
    if rim and fine.device.type == "cpu" and cells.numel():
        lowest = min(int(row.min()), int(column.min()))
        rim = 0 if lowest >= 0 and row.max() + side <= height and column.max() + side <= width else rim
    places = (functional.pad(fine, (rim,) * 4) if rim else fine).permute(0, 2, 3, 1).contiguous()
    height, width = places.shape[1:3]
    image = torch.arange(batch, device=cells.device)[:, None] * (height * width)
    return places.view(-1, channels), (image + (row + rim) * width + (column + rim)).flatten(), width
