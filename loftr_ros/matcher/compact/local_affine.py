"""Local affine transform (rotation, scale, shear) around each match, from coarse matches alone.

Cells' centres are off by up to half a cell, but there are many neighbours: a plane through the displacements of the
cells around a match gives the derivative of the motion to a few percent, before any refinement.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Radius of the neighbourhood of a match, in cells.
_REACH = 4
# Regularisation towards a pure shift, in squared cells: the variance of a cell's displacement, which is rounded to
# whole cells, over that of the derivatives expected between two images of a stream.
_STIFFNESS = 2.0
# Residual, in cells, at which the weight of a match is a quarter.
_OUTLIER = 2.0
# Change of area beyond which an estimate is rejected.
_LARGEST_AREA = 4.0

Grid = tuple[int, int]


def local_affine(cells0: Tensor, cells1: Tensor, grid0: Grid, grid1: Grid, taken: Tensor | None = None) -> Tensor:
    """Derivatives of the motion at matches.

    Least squares over the matches in 9 x 9 cells, twice: the second time outliers get low weights.

    Args:
        cells0, cells1: (B, N) int64 matched cells, row-major in grids of (rows, columns); none of image 0 twice.
        grid0, grid1: the grids.
        taken: (B, N) bool, false for entries that are not matches; None if all are.

    Returns:
        (B, N, 2, 2) float32: maps a step (across, down) in image 0 to one in image 1. The identity if there are few
        neighbours, or if the change of area is implausible.
    """
    moved = torch.stack([cells1 % grid1[1] - cells0 % grid0[1], cells1 // grid1[1] - cells0 // grid0[1]], dim=1)
    weight = torch.ones_like(cells0, dtype=torch.float32) if taken is None else taken.float()
    batch, cells = len(cells0), grid0[0] * grid0[1]
    layers = torch.cat([weight[:, None], moved * weight[:, None]], dim=1)  # 1, u, v
    places = cells0[:, None].expand(-1, 3, -1)
    # Added, not set: an entry that is no match may be at another one's cell, and adds zero.
    made = torch.zeros(batch, 3, cells, device=cells0.device).scatter_add(2, places, layers).view(batch, 3, *grid0)
    there, motion = made[:, :1], made[:, 1:]
    plane, _ = _planes(there, motion)
    disagreement = (motion - plane).square().sum(dim=1, keepdim=True)
    there = there / (1 + disagreement / _OUTLIER**2).square()
    _, slope = _planes(there, motion)
    identity = torch.eye(2, device=slope.device).flatten()[:, None, None]
    derivative = slope + identity
    area = derivative[:, :1] * derivative[:, 3:] - derivative[:, 1:2] * derivative[:, 2:3]
    believed = (area > 1 / _LARGEST_AREA) & (area < _LARGEST_AREA)
    derivative = torch.where(believed, derivative, identity).flatten(2)
    return derivative.gather(2, cells0[:, None].expand(-1, 4, -1)).transpose(1, 2).unflatten(2, (2, 2))


def inverse(affine: Tensor) -> Tensor:
    """(..., 2, 2) inverse matrices, by operations that every runtime has."""
    a, b, c, d = affine.flatten(-2).unbind(dim=-1)
    adjugate = torch.stack([d, -b, -c, a], dim=-1)
    return (adjugate / (a * d - b * c)[..., None]).unflatten(-1, (2, 2))


def _planes(weight: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Planes through motions around each cell.

    Args:
        weight: (B, 1, H, W), 0 where nothing is known.
        motion: (B, 2, H, W) in cells; 0 where nothing is known.

    Returns:
        (B, 2, H, W), the planes' height at the cell; (B, 4, H, W), du/dx, du/dy, dv/dx, dv/dy.
    """
    steps = torch.arange(-_REACH, _REACH + 1, device=weight.device, dtype=weight.dtype)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    one = torch.ones_like(x)
    kernels = torch.stack([one, x, y, x * x, x * y, y * y])[:, None]
    layers = torch.cat([weight, motion * weight], dim=1)
    moments = functional.conv2d(layers.flatten(0, 1)[:, None], kernels, padding=_REACH).unflatten(0, (-1, 3))
    total, sx, sy, sxx, sxy, syy = moments[:, 0].split(1, dim=1)
    some = total.clamp_min(1e-6)
    value, across, down = moments[:, 1:, :3].unbind(dim=2)
    mx, my, mean = sx / some, sy / some, value / some
    xx, xy, yy = sxx - sx * mx + _STIFFNESS, sxy - sx * my, syy - sy * my + _STIFFNESS
    along_x, along_y = across - mx * value, down - my * value
    area = xx * yy - xy * xy
    dx, dy = (along_x * yy - along_y * xy) / area, (along_y * xx - along_x * xy) / area
    height = mean - dx * mx - dy * my
    return height, torch.stack([dx, dy], dim=2).flatten(1, 2)
