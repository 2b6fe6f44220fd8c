"""Local affine transform (rotation, scale, shear) around each match, from coarse matches alone.

Cells' centres are off by up to half a cell, but there are many neighbours: a plane through the displacements of the
cells around a match gives the derivative of the motion to a few percent, before any refinement.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.constants import made_once

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
    layers = _position(grid1, 1, cells1.device)[cells1] - _position(grid0, 0, cells0.device)[cells0]  # 1, u, v
    batch, cells = len(cells0), grid0[0] * grid0[1]
    # An entry that is no match goes to one more cell, since it may be at another one's.
    places = cells0 if taken is None else torch.where(taken, cells0, cells)
    made = layers.new_zeros(batch, cells + 1, 3).scatter(1, places[..., None].expand(-1, -1, 3), layers)
    made = made[:, :-1].transpose(1, 2).unflatten(2, grid0)
    there, motion = made[:, :1], made[:, 1:]
    plane, _ = _planes(made)
    disagreement = (motion - plane).square().sum(dim=1, keepdim=True)
    there = there / (1 + disagreement / _OUTLIER**2).square()
    _, slope = _planes(torch.cat([there, motion * there], dim=1))
    identity = _identity(slope.device)
    derivative = slope + identity
    area = _determinant(*derivative.flatten(1, 2).unbind(dim=1))
    believed = (area > 1 / _LARGEST_AREA) & (area < _LARGEST_AREA)
    derivative = torch.where(believed[:, None, None], derivative, identity).flatten(3).flatten(1, 2)
    return derivative.gather(2, cells0[:, None].expand(-1, 4, -1)).transpose(1, 2).unflatten(2, (2, 2))


def inverse(affine: Tensor) -> Tensor:
    """(..., 2, 2) inverse matrices, by operations that every runtime has."""
    entries = affine.flatten(-2)
    order, sign = _adjugate(affine.device)
    adjugate = entries[..., order] * sign
    return (adjugate / _determinant(*entries.unbind(dim=-1))[..., None]).unflatten(-1, (2, 2))


def _determinant(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.addcmul(a * d, b, c, value=-1)


@made_once
def _adjugate(device: torch.device) -> tuple[Tensor, Tensor]:
    """Order and signs of the entries of a 2 x 2 matrix in its adjugate."""
    return torch.tensor([3, 1, 2, 0]).to(device), torch.tensor([1.0, -1.0, -1.0, 1.0]).to(device)


def _planes(layers: Tensor) -> tuple[Tensor, Tensor]:
    """Planes through motions around each cell.

    Args:
        layers: (B, 3, H, W), weight, 0 where nothing is known, and motions (u, v) in cells, times the weight.

    Returns:
        (B, 2, H, W), the planes' height at the cell; (B, 2, 2, H, W), their slopes ((du/dx, du/dy), (dv/dx, dv/dy)).
    """
    moments = functional.conv2d(layers.flatten(0, 1)[:, None], _kernels(layers.device), padding=_REACH)
    moments = moments.unflatten(0, (-1, 3))  # (B, layers, kernels, H, W)
    first, value = moments[:, 0, 1:3], moments[:, 1:, 0]
    means = moments[:, :, :3] / moments[:, :1, :1].clamp_min(1e-6)
    middle = means[:, 0, 1:]
    spread = torch.addcmul(moments[:, 0, 3:].unflatten(1, (2, 2)), first[:, :, None], middle[:, None], value=-1)
    spread = spread + _stiffness(layers.device)
    along = torch.addcmul(moments[:, 1:, 1:3], value[:, :, None], middle[:, None], value=-1)
    xx, xy, yy = spread[:, 0, 0], spread[:, 0, 1], spread[:, 1, 1]
    # Its inverse, times their common determinant: ((yy, -xy), (-xy, xx)).
    slope = torch.addcmul(along.flip(2) * xy[:, None, None], along, torch.stack([yy, xx], dim=1)[:, None], value=-1)
    slope = slope / torch.addcmul(xy * xy, xx, yy, value=-1)[:, None, None]
    return means[:, 1:, 0] - (slope * middle[:, None]).sum(dim=2), slope


@made_once
def _kernels(device: torch.device) -> Tensor:
    """(7, 1, 9, 9) float32: 1, x, y, xx, xy, yx, yy."""
    steps = torch.arange(-_REACH, _REACH + 1, dtype=torch.float32)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * x, y * y])[:, None].to(device)


@made_once
def _identity(device: torch.device) -> Tensor:
    """(2, 2, 1, 1) float32."""
    return torch.eye(2)[:, :, None, None].to(device)


@made_once
def _stiffness(device: torch.device) -> Tensor:
    """(2, 2, 1, 1) float32."""
    return _STIFFNESS * _identity(device)


@made_once
def _position(grid: Grid, first: int, device: torch.device) -> Tensor:
    """(L, 3) float32: a number, column and row of each cell."""
    row, column = torch.meshgrid(*(torch.arange(side).float() for side in grid), indexing="ij")
    return torch.stack([torch.full_like(row, first), column, row], dim=2).flatten(0, 1).to(device)
