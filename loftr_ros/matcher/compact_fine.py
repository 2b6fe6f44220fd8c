"""The fine stage of `compact`: where in pixels, and how sure.

The fine features of a cell of image 0 are a template; its correlation with the surroundings of the matched cell of
image 1 is a heat map, whose expectation is the match (paper, section 3.4). A small perceptron reads the correlations of
the template's quarters, which a plain sum forgets, and says what is missing and the standard deviation. All of it is
fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.matcher.config import CompactFineConfig

# Pixels from one fine feature to the next, and fine features along a cell.
FINE_PIXELS = 2
_CELL = 4
# Largest correction of the expectation, in pixels.
_CORRECTION = 2.0
# Half-width that 68 % of a Laplace distribution's errors are within, as the normal distribution's are within one
# standard deviation, in units of its scale.
ONE_SIGMA = -math.log(1 - 0.6827)
# Matches that are worked on at a time: 20 MB.
TILE_MATCHES = 1024


class FineMatch(NamedTuple):
    """Of M matches.

    Attributes:
        offset: (M, 2) float32 pixels (u, v) from the cell of image 1 to the match.
        scale: (M,) float32, of the Laplace distribution of the error along an axis, in pixels.
    """

    offset: Tensor
    scale: Tensor


class CompactFine(nn.Module):
    """See the module."""

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
        shifts = 2 * config.reach + 1
        self.weight = nn.Parameter(torch.zeros(config.template**2))
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.read = nn.Sequential(
            nn.Linear(4 * shifts**2, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.hidden), nn.ReLU()
        )
        self.said = nn.Linear(config.hidden, 3)
        nn.init.zeros_(self.said.weight)
        nn.init.zeros_(self.said.bias)
        self._norm = 1 / math.sqrt(channels)

    def forward(self, fine0: Tensor, fine1: Tensor, cells0: Tensor, cells1: Tensor) -> FineMatch:
        """Refine matches.

        Args:
            fine0, fine1: (B, Cf, H, W) fine features.
            cells0, cells1: (B, N) matched cells, row-major in grids of H / 4 x W / 4.

        Returns:
            Of the B N matches.
        """
        with torch.autocast(fine0.device.type, enabled=False):
            first = (_CELL - self.config.template) // 2
            template = windows(fine0, cells0, first, self.config.template).float()
            window = windows(fine1, cells1, first - self.config.reach, self.window).float()
            return self.refine(template, window)

    def refine(self, template: Tensor, window: Tensor) -> FineMatch:
        """(M, T T, Cf) templates and (M, W W, Cf) windows, fp32."""
        side, shifts = self.config.template, 2 * self.config.reach + 1
        correlation = (template * self._norm) @ window.transpose(1, 2)
        along = correlation.flatten(1).index_select(1, self._shifted(template.device))
        weight = self.weight.softmax(0) * len(self.weight)
        along = along.view(-1, side, side, shifts * shifts) * weight.view(side, side, 1)
        # Sums of slices: a mean over two dimensions at once takes twenty times as long.
        rows = along.unflatten(1, (2, side // 2)).unbind(2)
        halves = _added(rows).unflatten(2, (2, side // 2)).unbind(3)
        quarters = (_added(halves) * (4 / side**2)).flatten(1, 2)
        heat = (quarters.mean(dim=1) * (4 * self.sharpness)).softmax(dim=1)
        reach = torch.arange(-self.config.reach, self.config.reach + 1, device=heat.device, dtype=heat.dtype)
        heat = heat.view(-1, shifts, shifts)
        expected = torch.stack([heat.sum(dim=1) @ reach, heat.sum(dim=2) @ reach], dim=1)
        said = self.said(self.read(quarters.flatten(1)))
        offset = FINE_PIXELS * expected + _CORRECTION * torch.tanh(said[:, :2])
        return FineMatch(offset, functional.softplus(said[:, 2] + 1) + 0.02)

    def std(self, scale: Tensor) -> Tensor:
        """(M,) standard deviations along an axis, in pixels: what 68 % of errors are within."""
        return scale * (ONE_SIGMA * self.config.sigma_scale)

    def _shifted(self, device: torch.device) -> Tensor:
        """Places in the flattened correlation where a feature of the template meets its like at each shift."""
        side, shifts = self.config.template, 2 * self.config.reach + 1
        t, s = torch.arange(side, device=device), torch.arange(shifts, device=device)
        row = t[:, None, None, None] + s[None, None, :, None]
        column = t[None, :, None, None] + s[None, None, None, :]
        number = (t[:, None] * side + t)[:, :, None, None]
        return (number * self.window**2 + row * self.window + column).flatten()


def _added(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def windows(fine: Tensor, cells: Tensor, first: int, side: int) -> Tensor:
    """Squares of fine features at cells.

    Args:
        fine: (B, Cf, H, W).
        cells: (B, N), row-major in grids of H / 4 x W / 4.
        first: from a cell's top-left fine feature to the window's, along both axes; negative for windows that begin
            before it.
        side: of the windows.

    Returns:
        (B N, side side, Cf), zero outside of the image.
    """
    columns = fine.shape[3] // _CELL
    outside = max(0, -first, first + side - _CELL)
    places = functional.pad(fine, (outside,) * 4) if outside else fine
    places = places.permute(0, 2, 3, 1).contiguous()
    batch, height, width, channels = places.shape
    row = cells // columns * _CELL + (first + outside)
    column = cells % columns * _CELL + (first + outside)
    image = torch.arange(batch, device=cells.device)[:, None] * (height * width)
    corner = (image + row * width + column).flatten()
    reach = torch.arange(side, device=cells.device)
    if places.requires_grad:
        place = (corner[:, None, None] + reach[:, None] * width + reach).flatten()
        return places.view(-1, channels).index_select(0, place).view(-1, side * side, channels)
    # A window's row is one piece of memory: rows of overlapping views of it are copied as wholes.
    pieces = places.as_strided((batch * height * width - side + 1, side * channels), (channels, 1))
    rows = pieces.index_select(0, (corner[:, None] + reach * width).flatten())
    return rows.view(-1, side * side, channels)
