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
from loftr_ros.worlds.rasterizer import NEAR
from loftr_ros.worlds.texturing import FARTHEST

# Part of its side by which a face extends beyond its edges, so that no pixel is between two.
_MARGIN = 1e-5
_NEUTRAL_LIGHT = 128


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
    own = torch.from_numpy(tables.pixels).to(device)
    textures = torch.from_numpy(tables.textures).to(device)
    count = len(tables.faces)
    # On a CPU one view at a time: only the pixels of a face's box are computed, and they stay in its cache.
    parts = [slice(k, k + 1) for k in range(count)] if device.type == "cpu" else [slice(0, count)]
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
        torch.from_numpy(array[part]).to(device) for array in (tables.faces, tables.looks, tables.rays, tables.eyes)
    )
    numbers, endless, round_numbers, tubes = (
        torch.from_numpy(array[part]).to(device)[..., None, None]
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
    image = _painted(s * depth, t * depth, inverse, surface, shade, looks, bank, own, textures)
    return Drawn(image * (surface > 0), inverse, surface)


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
    return torch.addcmul(a * u, torch.ones_like(u), b * v + c)


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
    bank: Tensor,
    own: Tensor,
    textures: Tensor,
) -> Tensor:
    """The (V, H, W) gray values of what is visible."""
    views, rows = looks.shape[:2]
    first = torch.arange(views, device=looks.device)[:, None, None] * rows
    look = looks.flatten(0, 1)[surface.long() + first].movedim(-1, 0)  # (COLUMNS, V, H, W)
    texture, top = look[TEXTURE].long() * textures.shape[1], textures.shape[1] - 1
    level = (look[LEVEL] - look[SLOPE] * inverse.clamp_min(FARTHEST).log2()).clamp(0, top)
    mirrored = look[MIRRORED] > 0
    x = _within(s * look[REPEAT_S] + look[SHIFT_S], mirrored)
    y = _within(t * look[REPEAT_T] + look[SHIFT_T], mirrored)
    low = level.floor()
    flat = textures.flatten(0, 1)
    values = []
    for each in (low, (low + 1).clamp_max(top)):
        row = flat[texture + each.long()]
        values.append(_bilinear(x, y, row, mirrored, bank, own))
    value = torch.lerp(values[0], values[1], level - low)
    value = value * (look[GAIN] if shade is None else look[GAIN] * shade) + look[BIAS]
    light = look[LIGHT].long()
    row = flat[light.clamp_min(0) * textures.shape[1]]
    lit = _bilinear(s, t, row, torch.ones_like(mirrored), bank, own) / _NEUTRAL_LIGHT
    return (value.clamp(0, 255) * torch.where(light >= 0, lit, torch.ones_like(lit))).clamp(0, 255)


def _within(x: Tensor, mirrored: Tensor) -> Tensor:
    """Texture coordinates repeated, or mirrored, into [0, 1]."""
    folded = 1 - (x - 2 * (x / 2).floor() - 1).abs()
    return torch.where(mirrored, folded, x - x.floor())


def _bilinear(x: Tensor, y: Tensor, row: Tensor, clamped: Tensor, bank: Tensor, own: Tensor) -> Tensor:
    """Values of textures at x, y in [0, 1]; `row` is (..., 3) address, width and height."""
    address, width, height = row.unbind(-1)
    x0, x1, share_x = _neighbours(x, width, clamped)
    y0, y1, share_y = _neighbours(y, height, clamped)
    y0, y1 = address + y0 * width, address + y1 * width
    upper = torch.lerp(_pixels(y0 + x0, bank, own), _pixels(y0 + x1, bank, own), share_x)
    lower = torch.lerp(_pixels(y1 + x0, bank, own), _pixels(y1 + x1, bank, own), share_x)
    return torch.lerp(upper, lower, share_y)


def _neighbours(x: Tensor, size: Tensor, clamped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both pixels beside a coordinate, and how near it is to the second."""
    at = x * size - 0.5
    low = at.floor()
    share = at - low
    first = low.long()
    second = first + 1
    last = size - 1
    before, after = torch.where(clamped, 0, last), torch.where(clamped, last, 0)
    first = torch.where(first < 0, before, torch.minimum(first, last))
    second = torch.where(second > last, after, second)
    return first, second.clamp_min(0), share


def _pixels(address: Tensor, bank: Tensor, own: Tensor) -> Tensor:
    """float32 values at addresses of the bank, or beyond it of the batch's own textures."""
    beyond = address - len(bank)
    of_bank = bank[address.clamp_max(len(bank) - 1)]
    return torch.where(beyond >= 0, own[beyond.clamp_min(0).clamp_max(len(own) - 1)], of_bank).float()
