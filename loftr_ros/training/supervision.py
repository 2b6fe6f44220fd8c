"""Ground truth of cells and of sub-pixel offsets, from dense warps (paper, section 3.5 and its supplement)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.cells import cell_offset, point_offset
from loftr_ros.matcher.config import LoFTRConfig, NetworkConfig

# A cell's point between pixels uses the mean of their warps. If these are further apart than this, in pixels, an
# object's edge runs between them and the mean would be on neither side of it.
_LARGEST_SPREAD = 4.0

NO_PARTNER = -1


@dataclass(frozen=True)
class PairBatch:
    """A batch of image pairs and their dense ground truth; pixels are (u, v), (0, 0) at the top-left pixel's centre.

    Attributes:
        image0, image1: (B, 1, H, W) float32 in [0, 1].
        warp01: (B, H, W, 2) float32, positions of image 0's pixels in image 1; NaN where not visible.
        warp10: the same from image 1 to image 0.
        complete: (B,) bool, whether NaN means that a pixel has no partner, as in synthetic pairs. False if depth may
            just be missing, as in recorded ones: such pixels are then unknown.
    """

    image0: Tensor
    image1: Tensor
    warp01: Tensor
    warp10: Tensor
    complete: Tensor

    def __len__(self) -> int:
        return len(self.image0)

    def to(self, device: torch.device) -> PairBatch:
        """The same on a device."""
        return type(self)(*(getattr(self, item.name).to(device, non_blocking=True) for item in fields(self)))


@dataclass(frozen=True)
class TaughtBatch(PairBatch):
    """A batch of pairs with additional single photographs, for a teacher of features.

    Attributes:
        seen: (P, 1, H, W) float32 in [0, 1], photographs for the student, of the size of the pairs.
        taught: (P, 1, H, W) the same views for the teacher.
    """

    seen: Tensor
    taught: Tensor


def pair_batch(batch: Any) -> PairBatch:
    """Convert the output of a data loader, a mapping or an object with these names, to a `PairBatch`.

    `complete` may be missing: then all pairs count as complete.

    Raises:
        TypeError: a name is missing.
    """
    if isinstance(batch, PairBatch):
        return batch
    values: dict[str, Any] = (
        dict(batch) if isinstance(batch, Mapping) else {name: getattr(batch, name, None) for name in _NAMES}
    )
    missing = [name for name in _NAMES[:-1] if values.get(name) is None]
    if missing:
        raise TypeError(f"a batch of {type(batch).__name__} without {', '.join(missing)}; expected {', '.join(_NAMES)}")
    complete = values.get("complete")
    if complete is None:
        complete = torch.ones(len(values["image0"]), dtype=torch.bool, device=values["image0"].device)
    return PairBatch(**{**{name: values[name] for name in _NAMES[:-1]}, "complete": complete})


@runtime_checkable
class DeferredBatch(Protocol):
    """A batch whose pixels are made where they are used."""

    def make(self, device: torch.device) -> PairBatch:
        """The batch on a device."""
        ...


def batch_on(batch: Any, device: torch.device) -> PairBatch:
    """The output of a data loader on a device: made there if it is deferred, else converted and moved.

    Raises:
        TypeError: see `pair_batch`.
    """
    return batch.make(device) if isinstance(batch, DeferredBatch) else pair_batch(batch).to(device)


_NAMES = tuple(item.name for item in fields(PairBatch))


@dataclass(frozen=True)
class CoarseTruth:
    """True correspondences of cells.

    Attributes:
        partner: (B, L) int64, the true partner in image 1 of a cell of image 0, if each is the nearest of the other;
            NO_PARTNER without one.
        target: (B, L, 2) float32 pixels of image 1, positions of image 0's cell points; NaN where not visible.
        lonely0, lonely1: (B, L) and (B, S) bool, cells without any pixel visible in the other image. A cell that has no
            partner and is not lonely shares its target with others, or is on an edge: it is not used.
        grid0, grid1: (rows, columns).
    """

    partner: Tensor
    target: Tensor
    lonely0: Tensor
    lonely1: Tensor
    grid0: tuple[int, int]
    grid1: tuple[int, int]


def coarse_truth(batch: PairBatch, config: NetworkConfig, stride: int | None = None) -> CoarseTruth:
    """Ground truth for the cells of a network, at their points by its convention.

    Args:
        batch: of pairs.
        config: the network.
        stride: side of the cells, in pixels, if they are not the cells of the matches.
    """
    stride = stride or config.backbone.stride
    offset = point_offset(config, stride)
    target01 = warp_at_cells(batch.warp01, stride, offset)
    target10 = warp_at_cells(batch.warp10, stride, offset)
    grid0, grid1 = target01.shape[1:3], target10.shape[1:3]
    nearest01 = nearest_cell(target01.flatten(1, 2), grid1, stride, offset)
    nearest10 = nearest_cell(target10.flatten(1, 2), grid0, stride, offset)
    back = nearest10.gather(1, nearest01.clamp_min(0))
    number = torch.arange(nearest01.shape[1], device=back.device)
    mutual = (nearest01 >= 0) & (back == number)
    return CoarseTruth(
        partner=torch.where(mutual, nearest01, NO_PARTNER),
        target=target01.flatten(1, 2),
        lonely0=_unseen(batch.warp01, stride) & batch.complete[:, None],
        lonely1=_unseen(batch.warp10, stride) & batch.complete[:, None],
        grid0=(grid0[0], grid0[1]),
        grid1=(grid1[0], grid1[1]),
    )


def warp_at_cells(warp: Tensor, stride: int, offset: float) -> Tensor:
    """A dense warp at the points of cells.

    Args:
        warp: (B, H, W, 2) pixels, NaN where not visible.
        stride: side of a cell.
        offset: from its top-left pixel to its point.

    Returns:
        (B, rows, columns, 2); NaN if the point is outside of the image or any pixel beside it is not visible.
    """
    height, width = warp.shape[1:3]
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    first = math.floor(offset)
    beside = (first,) if first == offset else (first, first + 1)
    # Pixels beyond the image are not visible.
    padded = functional.pad(warp, (0, 0, 0, columns * stride - width, 0, rows * stride - height), value=math.nan)
    around = torch.stack([padded[:, y::stride, x::stride] for y in beside for x in beside])
    if len(around) == 1:
        return around[0]
    mean = around.mean(dim=0)  # our own networks' points are in the middle between four pixels
    torn = (around - mean).abs().amax(dim=(0, -1)) > _LARGEST_SPREAD
    return mean.masked_fill(torn[..., None], math.nan)


def nearest_cell(points: Tensor, grid: tuple[int, ...], stride: int, offset: float) -> Tensor:
    """(B, N, 2) pixels -> (B, N) int64, the cell whose point is nearest; NO_PARTNER outside of the grid and for NaN."""
    place = ((points - offset) / stride).round()
    column, row = place.unbind(dim=-1)
    inside = (column >= 0) & (column < grid[1]) & (row >= 0) & (row < grid[0])  # false for NaN
    return torch.where(inside, (row * grid[1] + column).nan_to_num(0).long(), NO_PARTNER)


def sample_matches(truth: CoarseTruth, count: int) -> tuple[Tensor, Tensor]:
    """Random cells of image 0 with a partner, the same number from every pair.

    The number is fixed since shapes that change from step to step cost a third of the speed on CPUs.

    Returns:
        (B, count) int64 cells, and (B, count) bool, false for arbitrary cells that fill up a pair with fewer.
    """
    key = torch.rand(truth.partner.shape, device=truth.partner.device)
    key = key.masked_fill(truth.partner < 0, -1.0)
    count = min(count, key.shape[1])
    value, cell = key.topk(count, dim=1)
    return cell, value >= 0


def fine_truth(truth: CoarseTruth, cells: Tensor, config: LoFTRConfig) -> Tensor:
    """Offset of the true points from the partner cells' points, in radii of the fine window.

    Args:
        truth: of the cells.
        cells: (B, N) int64 cells of image 0 with a partner.
        config: the network.

    Returns:
        (B, N, 2) float32 (u, v); within [-1, 1] wherever half a coarse cell is within the window.
    """
    assert config.fine is not None
    target = truth.target.gather(1, cells[..., None].expand(-1, -1, 2))
    partner = truth.partner.gather(1, cells).clamp_min(0)
    columns = truth.grid1[1]
    point = torch.stack([partner % columns, partner // columns], dim=-1) * config.backbone.stride + cell_offset(config)
    return (target - point) / (config.backbone.fine_stride * (config.fine.window // 2))


def _unseen(warp: Tensor, stride: int) -> Tensor:
    """(B, H, W, 2) -> (B, L) bool: cells without a visible pixel."""
    seen = torch.isfinite(warp[..., 0]).float()[:, None]
    return functional.max_pool2d(seen, stride, ceil_mode=True).flatten(1) == 0
