"""Correspondence of the pixels of many pairs, from inverse depth and pose, with visibility; as `training.geometry`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-9
TOLERANCE = 0.02  # relative difference of inverse depths


def warp_by_depth(
    inverse0: Tensor, inverse1: Tensor, surface0: Tensor, surface1: Tensor, M: Tensor, b: Tensor
) -> Tensor:
    """The pixels of views 0 in views 1; NaN where they are outside, occluded, or without depth.

    Pixel p of view 0 is at M p + b / depth. A point is visible in view 1 if the depth interpolated there is its own,
    and the nearest pixel there is of its surface.

    Args:
        inverse0, inverse1: (B, H, W) float32, one over the depth along the optical axis; 0 is nothing.
        surface0, surface1: (B, H, W) integers, number of the surface; 0 is nothing.
        M: (B, 3, 3) float32 homographies of infinitely far points, for pixels from the middle of both images.
        b: (B, 3) float32.

    Returns:
        (B, H, W, 2) float32, in pixels from the centre of the top-left one.
    """
    height, width = inverse0.shape[1:]
    device = inverse0.device
    middle_u, middle_v = (width - 1) / 2, (height - 1) / 2
    u = torch.arange(width, device=device) - middle_u
    v = (torch.arange(height, device=device) - middle_v)[:, None]

    def projected(row: int) -> Tensor:
        m = M[:, row, :, None, None]
        return m[:, 0] * u + (m[:, 1] * v + m[:, 2]) + inverse0 * b[:, row, None, None]

    scale = projected(2)
    seen = (scale > _TINY) & (surface0 > 0)
    scale = scale.where(scale > _TINY, torch.ones_like(scale))
    x, y = projected(0) / scale + middle_u, projected(1) / scale + middle_v
    seen &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    grid = torch.stack([x / middle_u - 1, y / middle_v - 1], dim=-1)
    found = functional.grid_sample(inverse1[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
    expected = inverse0 / scale
    seen &= (found - expected).abs() <= TOLERANCE * expected
    seen &= nearest(surface1, x, y) == surface0
    return torch.stack([x, y], dim=-1).masked_fill(~seen[..., None], torch.nan)


def nearest(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values of (B, H, W) images at the pixels nearest to x, y; at the edge beyond it."""
    height, width = image.shape[1:]
    column = x.nan_to_num(0.0).round().clamp(0, width - 1).long()
    row = y.nan_to_num(0.0).round().clamp(0, height - 1).long()
    return image.flatten(1).gather(1, (row * width + column).flatten(1)).view_as(x)


def hide(warp01: Tensor, warp10: Tensor, hidden0: Tensor, hidden1: Tensor) -> tuple[Tensor, Tensor]:
    """Both warps without pixels that are covered in either image.

    Args:
        warp01, warp10: (B, H, W, 2) float32.
        hidden0, hidden1: (B, H, W) bool, the covered pixels of each image.
    """

    def without(warp: Tensor, own: Tensor, others: Tensor) -> Tensor:
        covered = own | nearest(others, warp[..., 0], warp[..., 1])
        return warp.masked_fill(covered[..., None], torch.nan)

    return without(warp01, hidden0, hidden1), without(warp10, hidden1, hidden0)
