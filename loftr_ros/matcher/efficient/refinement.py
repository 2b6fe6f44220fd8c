"""The two-stage refinement of EfficientLoFTR (section 3.4): pixels by mutual nearest neighbours, then sub-pixel."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from loftr_ros.matcher import fixed
from loftr_ros.matcher.config import EfficientFineConfig
from loftr_ros.matcher.constants import made_once

Grid = tuple[int, int]

# Side of a cell in pixels, which are compared; and of its window in image 1, which has one more on each side.
CELL = 8
WINDOW = CELL + 2
# Windows are computed from features at 1/2 of the image, starting one before the cell's first.
_HALF_WINDOW, _FIRST_HALF, _HALF_CELL = 6, -1, 4
# From a cell's point to the first pixel of its own window. The pyramid assumes features at the centres of their pixels,
# while the backbone has them at corners: its pixel q is at q - 3.5.
_FIRST = -(CELL - 1) / 2
# Pixels of a cell nearest to its point, half a pixel to each side.
_MIDDLE = (27, 28, 35, 36)

# Matches processed at a time, and step to which batches are filled up: as in `fine`.
TILE_MATCHES = 256
_BATCH_STEP = 64


class Refined(NamedTuple):
    """Positions of matches relative to their cells' points.

    Attributes:
        offset0, offset1: (M, 2) float32, (u, v) from the point of the cell in image 0 and 1, in pixels.
        std: (M,) float32, standard deviation of `offset1` along one axis, in pixels.
        heat: (M, WINDOW, WINDOW) float32, the first stage's softmax over the window in image 1, around its cell's
            point, for the chosen pixel of image 0.
    """

    offset0: Tensor
    offset1: Tensor
    std: Tensor
    heat: Tensor


def refine(
    config: EfficientFineConfig, fine0: Tensor, fine1: Tensor, cell0: Tensor, cell1: Tensor, grids: tuple[Grid, Grid]
) -> Refined:
    """Refine the matches of one pair.

    Args:
        config: of the stage.
        fine0, fine1: (1, C, Hf, Wf) of `FinePyramid`, channels last.
        cell0, cell1: (M,) int64 matched cells.
        grids: (rows, columns) of the cells of both images.
    """
    count = len(cell0)
    if count == 0:
        nothing = torch.zeros(0, 2, device=cell0.device)
        return Refined(nothing, nothing, nothing[:, 0], nothing.new_zeros(0, WINDOW, WINDOW))
    missing = -count % _BATCH_STEP
    cell0, cell1 = (torch.cat([cells, cells[:1].expand(missing)]) for cells in (cell0, cell1))
    parts = [
        compare(config, windows(fine0, tile0, grids[0])[:, 1:-1, 1:-1], windows(fine1, tile1, grids[1]))
        for tile0, tile1 in zip(cell0.split(TILE_MATCHES), cell1.split(TILE_MATCHES), strict=True)
    ]
    return Refined(*(torch.cat(column)[:count] for column in zip(*parts, strict=True)))


def windows(fine: Tensor, cells: Tensor, grid: Grid) -> Tensor:
    """Features of a cell's pixels and those around it.

    The map at 1/2 is upsampled here, around matches only: as a whole it would be the largest tensor of all.

    Args:
        fine: (B, C, Hf, Wf), channels last.
        cells: (M,) int64 of a single image, or (B, R).
        grid: (rows, columns) of the cells.

    Returns:
        (M or B R, WINDOW, WINDOW, C) float32, zero outside of the image.
    """
    channels, height, width = (int(length) for length in fine.shape[1:])
    cut = cells if cells.ndim == 2 else cells[None]
    halves = fixed.windows(fine, cut, grid, _FIRST_HALF, _HALF_WINDOW, _HALF_CELL, torch.float32, blank=False)
    halves = halves.view(-1, _HALF_WINDOW, _HALF_WINDOW * channels)
    rows, columns = _twice(grid, (height, width), cells.device)
    place = cells.flatten()
    tall = (rows[place] @ halves).view(-1, WINDOW, _HALF_WINDOW, channels)
    return columns[place][:, None] @ tall


def compare(config: EfficientFineConfig, window0: Tensor, window1: Tensor) -> Refined:
    """Both stages, on windows of M matches. All of it is an fp32 island.

    Args:
        config: of the stage.
        window0: (M, CELL, CELL, C) float32 pixels of the cell in image 0.
        window1: (M, WINDOW, WINDOW, C) float32 pixels of the cell in image 1 and those around it.
    """
    channels, second = window1.shape[3], config.second_dim
    pixels0, pixels1 = window0.flatten(1, 2), window1.flatten(1, 2)
    scores = pixels0[..., :-second] @ pixels1[..., :-second].transpose(1, 2) / channels
    of_row = torch.softmax(scores, dim=2)
    likeness = (torch.softmax(scores, dim=1) * of_row).reshape(-1, CELL**2, WINDOW, WINDOW)
    likeness = likeness[..., 1:-1, 1:-1].flatten(2)
    middle, point = _pixel_constants(scores.device)
    if config.anchor == "cell":
        likeness = likeness[:, middle]
    # The overall maximum is the maximum of its row and of its column: mutual nearest neighbours.
    best = likeness.flatten(1).argmax(dim=1)
    pixel0, pixel1 = best // CELL**2, best % CELL**2
    if config.anchor == "cell":
        pixel0 = middle[pixel0]

    wanted = _picked(pixels0[..., -second:], pixel0[:, None])
    places, step = _around(scores.device)
    around = _picked(pixels1[..., -second:], places[pixel1])
    second_scores = (around @ wanted.transpose(1, 2))[..., 0]
    shares = torch.softmax(second_scores / (config.temperature * math.sqrt(second)), dim=1)
    heat = _picked(of_row, pixel0[:, None])[:, 0]
    # Not below the standard deviation of a pixel: the first stage has whole-pixel resolution.
    mean, square = (heat @ _moments(scores.device)).chunk(2, dim=1)
    std = ((square - mean.square()).clamp_min(0).mean(dim=1) + 1 / 12).sqrt()
    offset1 = point[pixel1] + shares @ step
    return Refined(point[pixel0], offset1, std, heat.view(-1, WINDOW, WINDOW))


def _picked(features: Tensor, places: Tensor) -> Tensor:
    """(M, N, C) features at (M, P) places -> (M, P, C)."""
    return features.gather(1, places[..., None].expand(-1, -1, features.shape[2]))


@made_once
def _twice(grid: Grid, size: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights that upsample the windows of cells at 1/2 to pixels, along rows and along columns.

    Args:
        grid: (rows, columns) of cells.
        size: (height, width) of the map.
        device: of the results.

    Returns:
        Two of (L, WINDOW, _HALF_WINDOW) float32: bilinear weights, none for pixels outside of the image.
    """
    pixel = torch.arange(WINDOW)
    weights = (1 - (pixel[:, None] / 2 + 0.25 - torch.arange(_HALF_WINDOW)).abs()).clamp_min(0)
    by_axis = []
    for count, side in zip(grid, size, strict=True):
        first = 2 * (torch.arange(count) * _HALF_CELL + _FIRST_HALF)[:, None] + 1  # one before the cell's first
        inside = (first + pixel >= 0) & (first + pixel < 2 * side)
        by_axis.append(weights * inside[..., None])
    rows, columns = by_axis
    return rows.repeat_interleave(grid[1], dim=0).to(device), columns.repeat(grid[0], 1, 1).to(device)


@made_once
def _pixel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """(4,) int64 pixels around a cell's point; (CELL ** 2, 2) float32, (u, v) of its pixels from that point."""
    pixel = torch.arange(CELL**2)
    place = torch.stack([pixel % CELL, pixel // CELL], dim=1).float() + _FIRST
    return torch.tensor(_MIDDLE).to(device), place.to(device)


@made_once
def _around(device: torch.device) -> tuple[Tensor, Tensor]:
    """(CELL ** 2, 9) int64 places of the second stage around each pixel, and (9, 2) float32 their steps (u, v).

    As published, so that the weights' offsets keep their meaning from training: around the pixel before the first
    stage's along both axes, since the window in image 1 begins one earlier. Indices before the window wrap to its end.
    """
    pixel, reach = torch.arange(CELL**2), torch.arange(3) - 1
    rows, columns = (((place[:, None] + reach) % WINDOW) for place in (pixel // CELL, pixel % CELL))
    places = (rows[:, :, None] * WINDOW + columns[:, None, :]).flatten(1)
    step = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=2).reshape(9, 2).float()
    return places.to(device), step.to(device)


@made_once
def _moments(device: torch.device) -> Tensor:
    """(WINDOW ** 2, 4) float32: column, row, and their squares, from the window's centre."""
    place = torch.arange(WINDOW).float() - (WINDOW - 1) / 2
    row, column = torch.meshgrid(place, place, indexing="ij")
    return torch.stack([column, row, column.square(), row.square()], dim=2).reshape(-1, 4).to(device)
