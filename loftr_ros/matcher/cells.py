"""Cells, pixels and their masks, shared by all networks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.config import NetworkConfig
from loftr_ros.matcher.interface import ImageFeatures, Matches


def cell_offset(config: NetworkConfig) -> float:
    """Offset from a cell's top-left pixel to its point, in pixels, by the convention of the weights' training."""
    return point_offset(config, config.backbone.stride)


def point_offset(config: NetworkConfig, side: int) -> float:
    """The same for a square of another side, in pixels."""
    return (side - 1) / 2 if config.coarse.point == "centre" else 0.0


def points_of_cells(config: NetworkConfig, cells: Tensor, columns: int) -> Tensor:
    """(N,) int64 cells of a grid with `columns` columns -> (N, 2) float32 pixels (u, v)."""
    corner = torch.stack([cells % columns, cells // columns], dim=1).float() * config.backbone.stride
    return corner + cell_offset(config)


def usable_cells(usable: Tensor, cell_size: int) -> Tensor:
    """(H, W) bool pixels -> (1, L) bool: cells of which at least half of the pixels are usable."""
    part = functional.avg_pool2d(usable[None].float(), cell_size, ceil_mode=True)
    return part.reshape(1, -1) >= 0.5


def shows_nothing(image: Tensor) -> bool:
    """Whether an image has no contrast beyond one gray level: a capped lens, a dead or saturated sensor.

    The network would still distinguish its cells, by their position and the edge of the image.

    Args:
        image: (H, W) uint8, or floating point in [0, 1].
    """
    return bool(image.amax() - image.amin() <= (1 if image.dtype == torch.uint8 else 1 / 255))


def cells_taking_part(image: Tensor, usable: Tensor | None, cell_size: int) -> Tensor | None:
    """(1, L) bool: cells that take part in attention and matching; None if all do.

    Args:
        image: (H, W), see `shows_nothing`.
        usable: (H, W) bool, false for pixels to ignore; None for none.
        cell_size: side of a cell, in pixels.

    Raises:
        ValueError: mask and image differ in size.
    """
    if usable is not None and usable.shape != image.shape:
        raise ValueError(
            f"mask of shape {tuple(usable.shape)} for an image of shape {tuple(image.shape)}: expected the same"
        )
    if shows_nothing(image):
        usable = torch.zeros(image.shape, dtype=torch.bool, device=image.device)
    return None if usable is None else usable_cells(usable, cell_size)


def allowed_cells(config: NetworkConfig, features: ImageFeatures) -> Tensor:
    """(1, L) bool: cells that may match: usable, not at the border of the usable area, and with their point inside."""
    rows, columns = features.grid
    border, cell_size = config.coarse.border, config.backbone.stride
    if features.usable is None:
        allowed = torch.ones(rows, columns, dtype=torch.bool, device=features.tokens.device)
    else:
        allowed = features.usable.view(rows, columns)
    inside = torch.zeros_like(allowed)
    used_rows, used_columns = allowed.any(dim=1).nonzero()[:, 0], allowed.any(dim=0).nonzero()[:, 0]
    if len(used_rows):
        first, last = int(used_rows[0]) + border, int(used_rows[-1]) + 1 - border
        left, right = int(used_columns[0]) + border, int(used_columns[-1]) + 1 - border
        # The last cells may be cut by the image's edge. Without a fine stage a match represents its whole cell, whose
        # centre must then be inside.
        width, height = features.size
        offset = (cell_size - 1) / 2 if config.fine is None else cell_offset(config)
        last = min(last, int((height - 1 - offset) // cell_size) + 1)
        right = min(right, int((width - 1 - offset) // cell_size) + 1)
        inside[first : max(first, last), left : max(left, right)] = True
    return (allowed & inside).reshape(1, -1)


def without_ignored(matches: Matches, keyframe: ImageFeatures, current: ImageFeatures) -> Matches:
    """Matches without an ignored pixel at either end."""
    if keyframe.pixels is None and current.pixels is None:
        return matches
    keep = on_usable(matches.points0, keyframe.pixels) & on_usable(matches.points1, current.pixels)
    found = (matches.cell, matches.points0, matches.points1, matches.confidence, matches.std)
    return Matches(*(tensor[keep] for tensor in found))


def on_usable(points: Tensor, pixels: Tensor | None) -> Tensor:
    """(N,) bool: whether points (N, 2), rounded to whole pixels, are on usable ones of (H, W) bool."""
    if pixels is None:
        return torch.ones(len(points), dtype=torch.bool, device=points.device)
    column = points[:, 0].round().long().clamp(0, pixels.shape[1] - 1)
    row = points[:, 1].round().long().clamp(0, pixels.shape[0] - 1)
    return pixels.to(points.device)[row, column]
