"""Cells, pixels and their masks, shared by all networks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.config import NetworkConfig
from loftr_ros.matcher.constants import made_once
from loftr_ros.matcher.interface import ImageFeatures, Matches


def cell_offset(config: NetworkConfig) -> float:
    """Offset from a cell's top-left pixel to its point, in pixels, by the convention of the weights' training."""
    return point_offset(config, config.backbone.stride)


class ConfiguredCells:
    """What the configuration of a network says of its matches, as `Matcher` has it."""

    config: NetworkConfig

    @property
    def has_fine_stage(self) -> bool:
        """Whether matches are sub-pixel; without, `points1` is on the coarse grid."""
        return self.config.fine is not None

    @property
    def cell_size(self) -> int:
        """Side of a cell, in pixels of the encoded image."""
        return self.config.backbone.stride

    @property
    def cell_offset(self) -> float:
        """From a cell's top-left pixel to its point, by the convention of the weights' training."""
        return cell_offset(self.config)


def point_offset(config: NetworkConfig, side: int) -> float:
    """The same for a square of another side, in pixels."""
    return (side - 1) / 2 if config.coarse.point == "centre" else 0.0


def points_of_cells(config: NetworkConfig, cells: Tensor, columns: int) -> Tensor:
    """(..., N) int64 cells of a grid with `columns` columns -> (..., N, 2) float32 pixels (u, v)."""
    corner = torch.stack([cells % columns, cells // columns], dim=-1).float() * config.backbone.stride
    return corner + cell_offset(config)


def in_grid(cells: Tensor, shape: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(1, L) bool cells of an image of (rows, columns), extended to a grid, where additional cells take no part."""
    if shape == grid:
        return cells
    return functional.pad(cells.view(1, *shape), (0, grid[1] - shape[1], 0, grid[0] - shape[0])).flatten(1)


def sides(maps: Tensor) -> tuple[int, int]:
    """(H, W) of (B, C, H, W), as constants where a graph is traced."""
    return int(maps.shape[2]), int(maps.shape[3])


def usable_cells(usable: Tensor, cell_size: int) -> Tensor:
    """(H, W) bool pixels -> (1, L) bool: cells of which at least half of the pixels are usable."""
    part = functional.avg_pool2d(usable[None].float(), cell_size, ceil_mode=True)
    return part.reshape(1, -1) >= 0.5


def shows_nothing(image: Tensor) -> Tensor:
    """() bool, whether an image has no contrast beyond one gray level: a capped lens, a dead or saturated sensor.

    The network would still distinguish its cells, by their position and the edge of the image.

    Args:
        image: (H, W) uint8, or floating point in [0, 1].
    """
    return image.amax() - image.amin() <= (1 if image.dtype == torch.uint8 else 1 / 255)


def cells_taking_part(image: Tensor, usable: Tensor | None, cell_size: int) -> Tensor | None:
    """(1, L) bool: cells that take part in attention and matching; None if all do.

    Args:
        image: (H, W), see `shows_nothing`. If it is on a GPU, whether it shows anything stays there too.
        usable: (H, W) bool, false for pixels to ignore; None for none.
        cell_size: side of a cell, in pixels.

    Raises:
        ValueError: mask and image differ in size.
    """
    if usable is not None and usable.shape != image.shape:
        raise ValueError(
            f"mask of shape {tuple(usable.shape)} for an image of shape {tuple(image.shape)}: expected the same"
        )
    blank = shows_nothing(image)
    if image.device.type != "cpu":  # asking would wait for it
        usable = (~blank).expand(image.shape) if usable is None else usable & ~blank
    elif blank:
        usable = torch.zeros(image.shape, dtype=torch.bool)
    return None if usable is None else usable_cells(usable, cell_size)


def allowed_cells(config: NetworkConfig, features: ImageFeatures) -> Tensor:
    """(B, L) bool: cells that may match: usable, not at the border of the usable area, and with their point inside."""
    border, cell_size = config.coarse.border, config.backbone.stride
    # The last cells may be cut by the image's edge. Without a fine stage a match represents its whole cell, whose
    # centre must then be inside.
    offset = (cell_size - 1) / 2 if config.fine is None else cell_offset(config)
    ends = int((features.size[1] - 1 - offset) // cell_size), int((features.size[0] - 1 - offset) // cell_size)
    if features.usable is None:
        return _inner_cells(features.grid, border, ends, features.tokens.device)
    allowed = usable = features.usable.unflatten(1, features.grid)
    for axis in (1, 2):
        place = indices(features.grid[axis - 1], usable.device)
        used = usable.any(dim=3 - axis)
        first = torch.where(used, place, len(place)).amin(dim=1, keepdim=True)
        last = torch.where(used, place, -1).amax(dim=1, keepdim=True)
        inside = (place >= first + border) & (place <= (last - border).clamp_max(ends[axis - 1]))
        allowed = allowed & inside.unsqueeze(3 - axis)
    return allowed.flatten(1)


@made_once
def _inner_cells(grid: tuple[int, int], border: int, ends: tuple[int, int], device: torch.device) -> Tensor:
    """(1, L) bool: cells of a grid that are not at its border, up to the last row and column."""
    rows, columns = (
        (place >= border) & (place <= min(end, len(place) - 1 - border))
        for place, end in zip((torch.arange(length) for length in grid), ends, strict=True)
    )
    return (rows[:, None] & columns).reshape(1, -1).to(device)


@made_once
def indices(count: int, device: torch.device) -> Tensor:
    """(count,) int64 from 0."""
    return torch.arange(count).to(device)


def without_ignored(matches: Matches, keyframe: ImageFeatures, current: ImageFeatures) -> Matches:
    """Matches without an ignored pixel at either end."""
    if keyframe.pixels is None and current.pixels is None:
        return matches
    keep = on_usable(matches.points0, keyframe.pixels) & on_usable(matches.points1, current.pixels)
    found = (matches.cell, matches.points0, matches.points1, matches.confidence, matches.std)
    return Matches(*(tensor[keep] for tensor in found))


def on_usable(points: Tensor, pixels: Tensor | None) -> Tensor:
    """(..., N) bool: whether points (..., N, 2), rounded to whole pixels, are on usable ones of (..., H, W) bool."""
    if pixels is None:
        return torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)
    height, width = pixels.shape[-2:]
    column = points[..., 0].round().long().clamp(0, width - 1)
    row = points[..., 1].round().long().clamp(0, height - 1)
    by_place = pixels.to(points.device).flatten(-2)
    return by_place.expand(*points.shape[:-2], -1).gather(-1, row * width + column)
