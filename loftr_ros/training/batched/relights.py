"""Many views in other light, or by another kind of camera: `training.relight` for a batch.

The numbers are drawn on the host, with the distributions of `relight`; pixels are changed on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loftr_ros.training.batched.filters import blurred, convolved, enlarged
from loftr_ros.training.batched.transfer import on_device
from loftr_ros.training.relight import KINDS, lamps_field, sensor_curve, smooth_cells

_POLYGONS, _SIDES = 5, 6  # at most, of shadows
_FIELD = (48, 64)
# A logistic function of 1.702 x is within 0.01 of the normal distribution's integral.
_LOGISTIC = 1.702
_FARTHEST = 1e6

Numbers = Mapping[str, float | NDArray[np.floating]]


@dataclass(frozen=True)
class Relighting:
    """Changes of single images of a batch, in order.

    Attributes:
        passes: of each, the kind, the (N,) images and their numbers by name, (N, ...) float32.
    """

    passes: tuple[tuple[str, NDArray[np.int64], dict[str, NDArray[np.float32]]], ...]

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The (V, H, W) images in [0, 1] with the changes."""
        for kind, which, numbers in self.passes:
            at = on_device(which, images.device)
            picture = images.index_select(0, at)
            changed = _CHANGES[kind](picture, numbers, generator).clamp(0, 1)
            images = images.index_copy(0, at, changed)
        return images


def draw_relighting(
    rng: np.random.Generator, images: Sequence[int], size: tuple[int, int], kind: str = ""
) -> list[tuple[int, int, str, Numbers]]:
    """The changes of images: number of the image, place in the order, kind, and numbers.

    Args:
        images: their numbers.
        size: (width, height).
        kind: of `relight.KINDS`; empty for one or two of them at random.
    """
    drawn = []
    for image in images:
        kinds = [kind] if kind else list(rng.choice(KINDS, 1 + int(rng.random() < 0.3), replace=False))
        drawn += [(image, place, str(name), _DRAWS[name](rng, size)) for place, name in enumerate(kinds)]
    return drawn


def combined(drawn: Sequence[tuple[int, int, str, Numbers]]) -> Relighting:
    """Changes of one place and kind together."""
    groups: dict[tuple[int, str], list[tuple[int, Numbers]]] = {}
    for image, place, kind, numbers in drawn:
        groups.setdefault((place, kind), []).append((image, numbers))
    passes = []
    for (_, kind), each in sorted(groups.items(), key=lambda item: item[0]):
        stacked = {name: np.stack([numbers[name] for _, numbers in each]).astype(np.float32) for name in each[0][1]}
        passes.append((kind, np.array([image for image, _ in each], np.int64), stacked))
    return Relighting(tuple(passes))


def _draw_night(rng: np.random.Generator, size: tuple[int, int]) -> Numbers:
    return {
        "exponent": rng.uniform(1.2, 2.6),
        "dim": rng.uniform(0.15, 0.6),
        "lamps": lamps_field(rng, int(rng.integers(1, 5)), float(rng.uniform(0.15, 0.6))),
        "bright_from": rng.uniform(0.6, 0.9),
        "bloom": rng.uniform(0, 3) * (rng.random() < 0.6),
        "bloom_width": rng.uniform(1, 6),
        "exposure": rng.uniform(0.25, 0.5) * (rng.random() < 0.7),
        "noise": rng.uniform(0.01, 0.06),
    }


def _night(picture: Tensor, numbers: dict[str, NDArray[np.float32]], generator: torch.Generator) -> Tensor:
    n = numbers_on(picture.device, numbers)
    size = (picture.shape[2], picture.shape[1])
    lit = picture ** n["exponent"] * n["dim"] * enlarged(n["lamps"], size, "bicubic")
    lit = lit + blurred((picture - n["bright_from"]).clamp_min(0) * n["bloom"], numbers["bloom_width"])
    exposure = n["exposure"]
    gain = (exposure / lit.mean(dim=(1, 2), keepdim=True).clamp_min(0.02)).clamp_max(6)
    lit = lit * torch.where(exposure > 0, gain, torch.ones_like(gain))
    return lit + normal(picture, generator) * n["noise"] * (lit.clamp_min(0) + 0.1).sqrt()


def _draw_lamps(rng: np.random.Generator, size: tuple[int, int]) -> Numbers:
    return {"lamps": lamps_field(rng, int(rng.integers(2, 7)), float(rng.uniform(0.2, 0.5)))}


def _lamps(picture: Tensor, numbers: dict[str, NDArray[np.float32]], generator: torch.Generator) -> Tensor:
    lamps = on_device(numbers["lamps"], picture.device)
    return picture * enlarged(lamps, (picture.shape[2], picture.shape[1]), "bicubic")


def _draw_shadows(rng: np.random.Generator, size: tuple[int, int]) -> Numbers:
    # Sides a u + b v + c >= 0 of convex polygons, in pixels; those beyond the last are far away.
    sides = np.zeros((_POLYGONS, _SIDES, 3))
    sides[..., 2] = _FARTHEST
    count = int(rng.integers(1, 6))
    sides[count:, 0, 2] = -_FARTHEST
    for k in range(count):
        centre = rng.uniform(0, 1, 2) * size
        corners = centre + rng.normal(0, 1, (int(rng.integers(3, 7)), 2)) * rng.uniform(0.1, 0.5) * size[0]
        hull = cv2.convexHull(corners.astype(np.float32))[:, 0].astype(np.float64)
        along = np.roll(hull, -1, axis=0) - hull
        normals = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
        normals *= np.sign(np.sum(normals * (hull.mean(axis=0) - hull), axis=1, keepdims=True))
        sides[k, : len(hull), :2] = normals
        sides[k, : len(hull), 2] = -np.sum(normals * hull, axis=1)
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0.5, 3) * (rng.random() < 0.6)
    return {
        "sides": sides,
        "softness": np.exp(rng.uniform(np.log(0.6), np.log(12))),
        "darkness": rng.uniform(0.3, 0.8),
        "slope_width": rng.uniform(1, 4),
        "slope_u": slope * np.cos(angle),
        "slope_v": slope * np.sin(angle),
        "brightness": rng.uniform(0.8, 1.6),
    }


def _shadows(picture: Tensor, numbers: dict[str, NDArray[np.float32]], generator: torch.Generator) -> Tensor:
    n = numbers_on(picture.device, numbers)
    height, width = picture.shape[1:]
    u = torch.arange(width, device=picture.device, dtype=torch.float32)
    v = torch.arange(height, device=picture.device, dtype=torch.float32)[:, None]
    mask = torch.zeros_like(picture)
    for polygon in range(_POLYGONS):
        inside = torch.full_like(picture, _FARTHEST)
        for side in range(_SIDES):
            a, b, c = (n["sides"][:, polygon, side, k, None, None] for k in range(3))
            inside = torch.minimum(inside, a * u + (b * v + c))
        mask = torch.maximum(mask, torch.sigmoid(inside * (_LOGISTIC / n["softness"])))
    shaded = picture * (1 - n["darkness"] * mask)
    # A surface whose brightness rises along the light's direction is assumed to face it.
    smooth = blurred(picture, numbers["slope_width"])
    sobel = on_device(np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32), picture.device)
    slope = convolved(smooth, n["slope_u"] * sobel + n["slope_v"] * sobel.t())
    most = 0.25 * torch.hypot(n["slope_u"], n["slope_v"])
    return shaded * (1 + torch.minimum(torch.maximum(slope, -most), most)) * n["brightness"]


def _draw_sensor(rng: np.random.Generator, size: tuple[int, int]) -> Numbers:
    return {"curve": sensor_curve(rng), "softness": rng.uniform(0.6, 1.8) * (rng.random() < 0.4)}


def _sensor(picture: Tensor, numbers: dict[str, NDArray[np.float32]], generator: torch.Generator) -> Tensor:
    curve = on_device(numbers["curve"], picture.device)
    level = (picture * 255).round().long()
    return blurred(curve.gather(1, level.flatten(1)).view_as(picture), numbers["softness"])


def _draw_haze(rng: np.random.Generator, size: tuple[int, int]) -> Numbers:
    return {
        "field": np.asarray(cv2.resize(smooth_cells(rng), _FIELD[::-1], interpolation=cv2.INTER_CUBIC), np.float32),
        "share": rng.uniform(0.2, 0.6),
        "veil": rng.uniform(0.4, 0.9),
        "specks": rng.uniform(0.0005, 0.006) * (rng.random() < 0.4),
        "speck_width": rng.uniform(0.6, 1.4),
        "speck_gain": rng.uniform(2, 6),
    }


def _haze(picture: Tensor, numbers: dict[str, NDArray[np.float32]], generator: torch.Generator) -> Tensor:
    n = numbers_on(picture.device, numbers)
    field = enlarged(n["field"], (picture.shape[2], picture.shape[1]))
    share = (n["share"] + 0.3 * field).clamp(0, 0.85)
    hazy = picture * (1 - share) + share * n["veil"]
    random = torch.rand(picture.shape, generator=generator, device=picture.device)
    specks = blurred((random < n["specks"]).float(), numbers["speck_width"]) * n["speck_gain"]
    return hazy + specks.clamp_max(1) * 0.5


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of a tensor's shape on its device."""
    return torch.randn(like.shape, generator=generator, device=like.device)


def numbers_on(device: torch.device, numbers: dict[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """The numbers on a device; those of one per image as (N, 1, 1)."""
    tensors = {name: on_device(array, device) for name, array in numbers.items()}
    return {name: each[:, None, None] if each.ndim == 1 else each for name, each in tensors.items()}


_DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Numbers]] = {
    "night": _draw_night,
    "lamps": _draw_lamps,
    "shadows": _draw_shadows,
    "sensor": _draw_sensor,
    "haze": _draw_haze,
}
_CHANGES: dict[str, Callable[[Tensor, dict[str, NDArray[np.float32]], torch.Generator], Tensor]] = {
    "night": _night,
    "lamps": _lamps,
    "shadows": _shadows,
    "sensor": _sensor,
    "haze": _haze,
}
