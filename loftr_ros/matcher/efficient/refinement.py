"""The two-stage refinement of EfficientLoFTR (section 3.4): pixels by mutual nearest neighbours, then sub-pixel."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from loftr_ros.matcher.config import EfficientFineConfig

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

# Matches processed at a time on a CPU, and step to which batches are filled up: as in `fine`.
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
    tile = TILE_MATCHES if cell0.device.type == "cpu" else count + missing
    parts = [
        compare(config, windows(fine0, tile0, grids[0])[:, 1:-1, 1:-1], windows(fine1, tile1, grids[1]))
        for tile0, tile1 in zip(cell0.split(tile), cell1.split(tile), strict=True)
    ]
    return Refined(*(torch.cat(column)[:count] for column in zip(*parts, strict=True)))


def windows(fine: Tensor, cells: Tensor, grid: Grid) -> Tensor:
    """Features of a cell's pixels and those around it.

    The map at 1/2 is upsampled here, around matches only: as a whole it would be the largest tensor of all.

    Args:
        fine: (1, C, Hf, Wf), channels last.
        cells: (M,) int64.
        grid: (rows, columns) of the cells.

    Returns:
        (M, WINDOW, WINDOW, C) float32, zero outside of the image.
    """
    channels, height, width = (int(length) for length in fine.shape[1:])
    reach = torch.arange(_HALF_WINDOW, device=cells.device) + _FIRST_HALF
    rows = (cells // grid[1] * _HALF_CELL)[:, None] + reach
    columns = (cells % grid[1] * _HALF_CELL)[:, None] + reach
    places = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    cut = fine.permute(0, 2, 3, 1).reshape(-1, channels)[places.flatten(1)].float()
    halves = cut.reshape(-1, _HALF_WINDOW, _HALF_WINDOW * channels)
    tall = (_twice(rows, height) @ halves).reshape(-1, WINDOW, _HALF_WINDOW, channels)
    return _twice(columns, width)[:, None] @ tall


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
    middle = torch.tensor(_MIDDLE, device=scores.device)
    if config.anchor == "cell":
        likeness = likeness[:, middle]
    # The overall maximum is the maximum of its row and of its column: mutual nearest neighbours.
    best = likeness.flatten(1).argmax(dim=1)
    pixel0, pixel1 = best // CELL**2, best % CELL**2
    if config.anchor == "cell":
        pixel0 = middle[pixel0]
    offset0, offset1 = (_place(pixel) for pixel in (pixel0, pixel1))

    wanted = _picked(pixels0[..., -second:], pixel0[:, None])
    # As published, so that the weights' offsets keep their meaning from training: around the pixel before the first
    # stage's along both axes, since the window in image 1 begins one earlier. Indices before the window wrap to its
    # end.
    reach = torch.arange(3, device=scores.device) - 1
    rows = (pixel1 // CELL)[:, None] + reach
    columns = (pixel1 % CELL)[:, None] + reach
    places = (rows % WINDOW)[:, :, None] * WINDOW + (columns % WINDOW)[:, None, :]
    around = _picked(pixels1[..., -second:], places.flatten(1))
    second_scores = (around @ wanted.transpose(1, 2))[..., 0] / math.sqrt(second)
    shares = torch.softmax(second_scores / config.temperature, dim=1).reshape(-1, 3, 3)
    step = reach.float()
    offset1 = offset1 + torch.stack([shares.sum(dim=1) @ step, shares.sum(dim=2) @ step], dim=1)

    heat = _picked(of_row, pixel0[:, None]).reshape(-1, WINDOW, WINDOW)
    return Refined(offset0, offset1, _std(heat), heat)


def _picked(features: Tensor, places: Tensor) -> Tensor:
    """(M, N, C) features at (M, P) places -> (M, P, C)."""
    return features.gather(1, places[..., None].expand(-1, -1, features.shape[2]))


def _place(pixel: Tensor) -> Tensor:
    """(M,) pixels of a cell -> (M, 2) float32, (u, v) from its point."""
    return torch.stack([pixel % CELL, pixel // CELL], dim=1).float() + _FIRST


def _std(heat: Tensor) -> Tensor:
    """(M,) from heat maps. Not below that of a pixel: the first stage has whole-pixel resolution."""
    places = torch.arange(WINDOW, device=heat.device).float() - (WINDOW - 1) / 2
    variance = torch.zeros_like(heat[:, 0, 0])
    for dim in (1, 2):
        share = heat.sum(dim=dim)
        variance = variance + (share @ places.square() - (share @ places).square()).clamp_min(0)
    return (variance / 2 + 1 / 12).sqrt()


def _twice(places: Tensor, size: int) -> Tensor:
    """Weights that upsample a window at 1/2 to pixels, along one axis.

    Args:
        places: (M, _HALF_WINDOW) int64 places at 1/2, which may be outside of the map.
        size: of the map along that axis.

    Returns:
        (M, WINDOW, _HALF_WINDOW) float32: bilinear weights, none for pixels outside of the image.
    """
    pixel = torch.arange(WINDOW, device=places.device)
    weights = (1 - (pixel[:, None] / 2 + 0.25 - torch.arange(_HALF_WINDOW, device=places.device)).abs()).clamp_min(0)
    first = 2 * places[:, :1] + 1  # of the window: one before the cell's first
    inside = (first + pixel >= 0) & (first + pixel < 2 * size)
    return weights * inside[..., None]
