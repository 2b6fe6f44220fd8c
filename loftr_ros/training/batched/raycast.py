"""Drawing tables of views on any device: exact inverse depth of faces and round objects, textures by mip levels.

The geometry is that of `worlds.rasterizer`, whose images a test compares. Here all views of a batch are drawn at once,
face by face: the number of launches does not depend on the number of views, and nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loftr_ros.training.batched.tables import (
    BIAS,
    GAIN,
    LEVEL,
    LIGHT,
    MIRRORED,
    REPEAT_S,
    REPEAT_T,
    SHIFT_S,
    SHIFT_T,
    SLOPE,
    TEXTURE,
    Int64,
    ViewTables,
)
from loftr_ros.training.batched.transfer import on_device
from loftr_ros.worlds.rasterizer import NEAR
from loftr_ros.worlds.texturing import FARTHEST

# Part of its side by which a face extends beyond its edges, so that no pixel is between two.
_MARGIN = 1e-5
_NEUTRAL_LIGHT = 128
# Pixels drawn at once on a GPU: about 300 bytes each are in use.
_MOST_PIXELS = 16_000_000


@dataclass(frozen=True)
class Drawn:
    """V views.

    Attributes:
        image: (V, H, W) float32 gray in [0, 255], 0 where nothing is.
        inverse_depth: (V, H, W) float32, one over the depth along the optical axis; 0: nothing.
        surface: (V, H, W) int16 number of the surface; 0: nothing.
    """

    image: Tensor
    inverse_depth: Tensor
    surface: Tensor


def draw(tables: ViewTables, bank: Tensor) -> Drawn:
    """Draw the views on the device of `bank`.

    Args:
        tables: of the views.
        bank: (N,) uint8, the pixels of the asset bank.
    """
    device = bank.device
    own = on_device(tables.pixels, device)
    # 32 bits: addresses are most of what is computed. `ViewTables` holds no larger ones.
    textures = on_device(tables.textures.astype(np.int32), device)
    count = len(tables.faces)
    # On a CPU one view at a time: only the pixels of a face's box are computed, and they stay in its cache.
    most = 1 if device.type == "cpu" else max(1, _MOST_PIXELS // (tables.size[0] * tables.size[1]))
    parts = [slice(k, min(k + most, count)) for k in range(0, count, most)]
    drawn = [_draw(tables, part, bank, own, textures) for part in parts]
    return Drawn(
        torch.cat([each.image for each in drawn]),
        torch.cat([each.inverse_depth for each in drawn]),
        torch.cat([each.surface for each in drawn]),
    )


def _draw(tables: ViewTables, part: slice, bank: Tensor, own: Tensor, textures: Tensor) -> Drawn:
    device = bank.device
    width, height = tables.size
    faces, looks, rays, eyes = (
        on_device(array[part], device) for array in (tables.faces, tables.looks, tables.rays, tables.eyes)
    )
    numbers, endless, round_numbers, tubes = (
        on_device(array[part], device)[..., None, None]
        for array in (tables.numbers, tables.endless, tables.round_numbers, tables.tubes)
    )
    u = torch.arange(width, device=device) - (width - 1) / 2
    v = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
    shape = (len(faces), height, width)
    # s and t are kept times inverse depth, as they are found.
    inverse, s, t = (torch.zeros(shape, device=device) for _ in range(3))
    surface = torch.zeros(shape, dtype=torch.int16, device=device)
    for k, box in enumerate(_unions(tables.face_boxes[:, part])):
        if box is None:
            continue
        x0, y0, x1, y1 = box
        at = (slice(None), slice(y0, y1), slice(x0, x1))
        s_here, t_here, w = (_affine(faces[:, k, row], u[x0:x1], v[y0:y1]) for row in range(3))
        far = w * (1 + _MARGIN)
        least = torch.minimum(torch.minimum(s_here, t_here), torch.minimum(far - s_here, far - t_here))
        seen = (((least >= -_MARGIN * w) & (w < 1 / NEAR)) | endless[:, k]) & (w > inverse[at])
        inverse[at] = torch.where(seen, w, inverse[at])
        s[at] = torch.where(seen, s_here, s[at])
        t[at] = torch.where(seen, t_here, t[at])
        surface[at] = torch.where(seen, numbers[:, k], surface[at])
    shade = None
    for k, box in enumerate(_unions(tables.round_boxes[:, part])):
        if box is None:
            continue
        shade = torch.ones(shape, device=device) if shade is None else shade
        x0, y0, x1, y1 = box
        at = (slice(None), slice(y0, y1), slice(x0, x1))
        w, s_here, t_here, shade_here = _round(rays[:, k], eyes[:, k], tubes[:, k], u[x0:x1], v[y0:y1])
        seen = w > inverse[at]
        inverse[at] = torch.where(seen, w, inverse[at])
        s[at] = torch.where(seen, s_here * w, s[at])
        t[at] = torch.where(seen, t_here * w, t[at])
        shade[at] = torch.where(seen, shade_here, shade[at])
        surface[at] = torch.where(seen, round_numbers[:, k], surface[at])
    depth = 1 / inverse.clamp_min(FARTHEST)
    pixels = _Pixels(bank, own, *_used(tables, part))
    image = _painted(s * depth, t * depth, inverse, surface, shade, looks, pixels, textures)
    return Drawn(image * (surface > 0), inverse, surface)


@dataclass(frozen=True)
class _Pixels:
    """Pixels of the bank and, beyond it, of the batch's own textures; of what is not used nothing is read.

    Attributes:
        bank, own: (N,) uint8.
        of_bank, of_own, lit: whether some view has textures of either, or light maps.
    """

    bank: Tensor
    own: Tensor
    of_bank: bool
    of_own: bool
    lit: bool

    def at(self, address: Tensor, own: bool = False) -> Tensor:
        """float32 values; those of the own textures if `own`."""
        start = len(self.bank)
        if own or not self.of_bank:
            return self.own[(address - start).clamp_(0, len(self.own) - 1)].float()
        if not self.of_own:
            return self.bank[address.clamp(0, start - 1)].float()
        beyond = address - start
        values = self.own[beyond.clamp(0, len(self.own) - 1)]
        return torch.where(beyond >= 0, values, self.bank[address.clamp_max(start - 1)]).float()


def _used(tables: ViewTables, part: slice) -> tuple[bool, bool, bool]:
    """Whether some views have textures of the bank, own ones, and light maps."""
    looks = tables.looks[part]
    used = looks[..., TEXTURE][looks[..., GAIN] != 0].astype(np.int64)
    own = tables.textures[used, 0, 0] >= tables.bank_size
    return bool((~own).any()), bool(own.any()), bool((looks[..., LIGHT] >= 0).any())


def _unions(boxes: Int64) -> list[tuple[int, int, int, int] | None]:
    """The box around the (F, V, 4) boxes of all views, for each row; None if all are empty."""
    found: list[tuple[int, int, int, int] | None] = []
    for row in boxes:
        row = row[row[:, 2] > row[:, 0]]
        low, high = (row[:, :2].min(axis=0), row[:, 2:].max(axis=0)) if len(row) else (np.zeros(2), np.zeros(2))
        found.append((int(low[0]), int(low[1]), int(high[0]), int(high[1])) if len(row) else None)
    return found


def _affine(row: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(V, h, w) values of (V, 3) linear forms at pixels (u, v, 1)."""
    a, b, c = (row[:, k, None, None] for k in range(3))
    return torch.addcmul(b * v + c, a, u)


def _round(ray: Tensor, eye: Tensor, tube: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A round object of each view: inverse depth (0 where it is not), s, t, and shade, all (V, h, w)."""
    x, y, z = (_affine(ray[:, row], u, v) for row in range(3))
    ex, ey, ez = (eye[:, row, None, None] for row in range(3))
    ball = (~tube).float()
    a = x * x + y * y + ball * (z * z)
    b = ex * x + ey * y + ball * (ez * z)
    c = ex * ex + ey * ey + ball * (ez * ez) - 1
    square = b * b - a * c
    root = square.clamp_min(0).sqrt()
    a = a.clamp_min(1e-20)  # an unused row
    depth = (-b - root) / a
    # A tube is open: through its end to the inside of the far wall.
    beyond = tube & ((ez + depth * z).abs() > 1)
    depth = torch.where(beyond, (root - b) / a, depth)
    hit = (square > 0) & (depth > NEAR) & ~(tube & ((ez + depth * z).abs() > 1))
    x, y, z = ex + depth * x, ey + depth * y, ez + depth * z
    s = torch.atan2(y, x) / (2 * torch.pi)
    t = torch.where(tube, z * 0.5, torch.asin(z.clamp(-1, 1)) / torch.pi)
    # Lit from above and one side, in local coordinates: the same from every view.
    shade = torch.where(tube, 0.8 + 0.25 * x, 0.75 + 0.2 * z + 0.2 * x)
    return torch.where(hit, 1 / depth.clamp_min(NEAR), torch.zeros_like(depth)), s, t, shade


def _painted(
    s: Tensor,
    t: Tensor,
    inverse: Tensor,
    surface: Tensor,
    shade: Tensor | None,
    looks: Tensor,
    pixels: _Pixels,
    textures: Tensor,
) -> Tensor:
    """The (V, H, W) gray values of what is visible."""
    views, rows = looks.shape[:2]
    first = torch.arange(views, device=looks.device, dtype=torch.int32)[:, None, None] * rows
    look = looks.flatten(0, 1).t().contiguous()[:, surface.int() + first]  # (COLUMNS, V, H, W)
    levels = textures.shape[1]
    level = (look[LEVEL] - look[SLOPE] * inverse.clamp_min(FARTHEST).log2()).clamp(0, levels - 1)
    mirrored = look[MIRRORED] > 0
    x = _within(s * look[REPEAT_S] + look[SHIFT_S], mirrored)
    y = _within(t * look[REPEAT_T] + look[SHIFT_T], mirrored)
    low = level.floor()
    columns = textures.flatten(0, 1).t().contiguous()  # address, width and height, of all levels
    texture = look[TEXTURE].int() * levels
    finer, coarser = (
        _bilinear(x, y, columns[:, texture + each.int()], mirrored, pixels)
        for each in (low, (low + 1).clamp_max(levels - 1))
    )
    value = torch.lerp(finer, coarser, level - low)
    value = (value * (look[GAIN] if shade is None else look[GAIN] * shade) + look[BIAS]).clamp(0, 255)
    if not pixels.lit:
        return value
    light = look[LIGHT].int()
    lit = _bilinear(s, t, columns[:, light.clamp_min(0) * levels], torch.ones_like(mirrored), pixels, own=True)
    return (value * torch.where(light >= 0, lit / _NEUTRAL_LIGHT, torch.ones_like(lit))).clamp(0, 255)


def _within(x: Tensor, mirrored: Tensor) -> Tensor:
    """Texture coordinates repeated, or mirrored, into [0, 1]."""
    folded = 1 - (x - 2 * (x / 2).floor() - 1).abs()
    return torch.where(mirrored, folded, x - x.floor())


def _bilinear(x: Tensor, y: Tensor, row: Tensor, clamped: Tensor, pixels: _Pixels, own: bool = False) -> Tensor:
    """Values of textures at x, y in [0, 1]; `row` has (3, ...) address, width and height."""
    address, width, height = row
    x0, x1, share_x = _neighbours(x, width, clamped)
    y0, y1, share_y = _neighbours(y, height, clamped)
    y0, y1 = address + y0 * width, address + y1 * width
    upper = torch.lerp(pixels.at(y0 + x0, own), pixels.at(y0 + x1, own), share_x)
    lower = torch.lerp(pixels.at(y1 + x0, own), pixels.at(y1 + x1, own), share_x)
    return torch.lerp(upper, lower, share_y)


def _neighbours(x: Tensor, size: Tensor, clamped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both pixels beside a coordinate, and how near it is to the second."""
    at = x * size - 0.5
    low = at.floor()
    share = at - low
    first = low.int()
    last = size - 1
    second = first + 1
    before, after = torch.where(clamped, 0, last), torch.where(clamped, last, 0)
    second = torch.where(second > last, after, second)
    first = torch.where(first < 0, before, torch.minimum(first, last))
    return first, second, share
