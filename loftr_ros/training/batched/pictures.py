"""Real cameras' pictures of many ideal images: `training.photometric` for a batch.

The numbers are drawn on the host, with the distributions of `photograph`; pixels are changed on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loftr_ros.training.batched.filters import blurred, compressed, convolved, enlarged
from loftr_ros.training.batched.relights import Numbers, normal, numbers_on
from loftr_ros.training.batched.transfer import on_device
from loftr_ros.training.photometric import illumination, motion_kernel

Float32 = NDArray[np.float32]

_GLARES = 3
_SHARPENED = 0.6


@dataclass(frozen=True)
class Pictures:
    """How N images are photographed.

    Attributes:
        numbers: by name, (N, ...) float32; see `draw_picture`.
        kernels: (number of the image, (k, k) kernel) of those with motion blur.
    """

    numbers: dict[str, Float32]
    kernels: tuple[tuple[int, Float32], ...]

    def apply(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The (N, H, W) pictures in [0, 1], of 256 levels, and the (N, H, W) bool pixels that something covers.

        Args:
            images: (N, H, W) float32 in [0, 1].
            generator: of the noise, on their device.
        """
        n = numbers_on(images.device, self.numbers)
        images, hidden = self._covered(images, n)
        picture = _exposed(images, n)
        picture = self._blurred(picture)
        picture = picture * enlarged(n["illumination"], (images.shape[2], images.shape[1]))
        picture = self._with_glare(picture, n)
        picture = self._with_noise(picture, n, generator)
        picture = (picture.clamp(0, 1) * 255).round() / 255
        return self._compressed(picture), hidden

    def _covered(self, images: Tensor, n: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A finger, a strap, a passer-by: a blob or bar that is not in the scene, of one tone or from elsewhere."""
        hidden = torch.zeros_like(images, dtype=torch.bool)
        which = np.flatnonzero(self.numbers["cover_width"] > 0)
        height, width = images.shape[1:]
        u = torch.arange(width, device=images.device, dtype=torch.float32)
        v = torch.arange(height, device=images.device, dtype=torch.float32)[:, None]
        filled = images
        for k in which.tolist():
            one = {name: n[name][k] for name in n if name.startswith("cover")}
            x, y = u - one["cover_u"], v - one["cover_v"]
            along = (x * one["cover_cos"] + y * one["cover_sin"]) / one["cover_width"]
            across = (y * one["cover_cos"] - x * one["cover_sin"]) / one["cover_height"]
            covered = torch.where(
                one["cover_round"] > 0, along * along + across * across <= 1, (along.abs() <= 1) & (across.abs() <= 1)
            )
            rolls = (int(self.numbers["cover_roll_v"][k]), int(self.numbers["cover_roll_u"][k]))
            other = torch.where(one["cover_tone"] >= 0, one["cover_tone"], images[k].roll(rolls, (0, 1)).flip(0))
            at = torch.full((1,), k, dtype=torch.int64, device=images.device)
            filled = filled.index_copy(0, at, torch.where(covered, other, images[k])[None])
            hidden = hidden.index_copy(0, at, covered[None])
        return filled, hidden

    def _blurred(self, picture: Tensor) -> Tensor:
        picture = blurred(picture, self.numbers["blur"])
        if self.kernels:
            side = max(kernel.shape[0] for _, kernel in self.kernels)
            padded = [np.pad(kernel, (side - kernel.shape[0]) // 2) for _, kernel in self.kernels]
            at = on_device(np.array([k for k, _ in self.kernels], np.int64), picture.device)
            moved = convolved(picture.index_select(0, at), on_device(np.stack(padded), picture.device))
            picture = picture.index_copy(0, at, moved)
        sharp = np.flatnonzero(self.numbers["sharpened"] > 0)
        if len(sharp):
            at = on_device(sharp, picture.device)
            before = picture.index_select(0, at)
            soft = blurred(before, np.ones(len(sharp), np.float32))
            picture = picture.index_copy(0, at, before + _SHARPENED * (before - soft))
        return picture

    def _with_glare(self, picture: Tensor, n: dict[str, Tensor]) -> Tensor:
        """Reflections of lamps, which move with the camera and are not part of the scene."""
        which = np.flatnonzero(self.numbers["glare"][:, :, 0].max(axis=1) > 0)
        if not len(which):
            return picture
        at = on_device(which, picture.device)
        gain, centre_u, centre_v, radius_u, radius_v = n["glare"].index_select(0, at)[..., None].unbind(2)
        u = torch.arange(picture.shape[2], device=picture.device, dtype=torch.float32)
        v = torch.arange(picture.shape[1], device=picture.device, dtype=torch.float32)
        across = torch.exp(-(((u - centre_u) / radius_u) ** 2)) * gain
        down = torch.exp(-(((v - centre_v) / radius_v) ** 2))
        return picture.index_add(0, at, torch.einsum("nkv,nku->nvu", down, across))

    def _with_noise(self, picture: Tensor, n: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Read-out noise, shot noise proportional to the root of brightness, occasionally rows with their own level."""
        noise = normal(picture, generator)
        coarse = np.flatnonzero(self.numbers["coarse"] > 0)
        if len(coarse):  # after a camera's own filter, noise is coarser than a pixel
            at = on_device(coarse, picture.device)
            soft = blurred(noise.index_select(0, at), np.full(len(coarse), 0.8, np.float32))
            noise = noise.index_copy(0, at, soft * 2.2)
        noise = noise * (picture.clamp_min(0) * n["shot"] + 0.3).sqrt() * n["noise"]
        rows = torch.arange(picture.shape[1], device=picture.device, dtype=torch.float32)[:, None]
        random = normal(picture[:, :, :1], generator)
        # Flickering lamps under a rolling shutter, or levels of their own.
        stripes = torch.where(n["flicker"] > 0, torch.sin(rows * n["flicker"]), random)
        return picture + noise + stripes * n["rows"]

    def _compressed(self, picture: Tensor) -> Tensor:
        which = np.flatnonzero(self.numbers["quality"] > 0)
        if not len(which):
            return picture
        at = on_device(which, picture.device)
        return picture.index_copy(0, at, compressed(picture.index_select(0, at), self.numbers["quality"][which]))


def _exposed(images: Tensor, n: dict[str, Tensor]) -> Tensor:
    """Imperfect automatic exposure, then contrast and gamma."""
    mean = images[:, ::3, ::3].mean(dim=(1, 2), keepdim=True).clamp_min(0.01)
    wanted = n["wanted"]
    picture = images * ((wanted / mean).clamp(0.6, 3) ** n["adaptation"] * n["exposure"])
    picture = (picture - wanted) * n["contrast"] + wanted
    return picture.clamp(0, 1) ** n["gamma"]


def draw_picture(
    rng: np.random.Generator, size: tuple[int, int], strength: float, softness: float = 0.5
) -> tuple[Numbers, Float32 | None]:
    """How one image is photographed: its numbers, and the kernel of its motion blur or None.

    Args:
        size: (width, height).
        strength: in [0, 1], of all changes.
        softness: standard deviation in pixels of the lens blur.
    """
    width, height = size
    numbers: dict[str, float | NDArray[np.floating]] = {}
    covered = rng.random() < 0.12 * strength
    angle = rng.uniform(0, 2 * np.pi)
    numbers |= {
        "cover_u": rng.uniform(0, width),
        "cover_v": rng.uniform(0, height),
        "cover_width": rng.uniform(0.03, 0.16) * width * covered,
        "cover_height": rng.uniform(0.05, 0.35) * width,
        "cover_cos": np.cos(angle),
        "cover_sin": np.sin(angle),
        "cover_round": float(rng.random() < 0.5),
        "cover_roll_u": float(rng.integers(width)),
        "cover_roll_v": float(rng.integers(height)),
        "cover_tone": rng.uniform(10, 240) / 255 if rng.random() < 0.5 else -1.0,
    }
    exposure = 1.0
    if rng.random() < 0.06 * strength:  # very dark, or nearly saturated
        exposure = float(rng.choice([rng.uniform(0.15, 0.4), rng.uniform(1.5, 2.0)]))
    numbers |= {
        "wanted": np.clip(rng.normal(0.45, 0.04 + 0.08 * strength), 0.15, 0.75),
        "adaptation": rng.uniform(0.4, 1.0),
        "exposure": exposure,
        "contrast": np.exp(rng.normal(-0.05, 0.06 + 0.16 * strength)),
        "gamma": np.exp(rng.normal(0, 0.08 + 0.25 * strength)),
    }
    blur = softness + (abs(rng.normal(0, 0.3 + 0.8 * strength)) if rng.random() < 0.4 else 0)
    kernel = None
    if rng.random() < 0.05 + 0.25 * strength:
        length = rng.uniform(1.5, 3 + 8 * strength) * width / 320
        kernel = motion_kernel(float(length), float(rng.uniform(0, np.pi)))
    lit = illumination(rng, strength)
    numbers |= {
        "blur": blur if blur > 0.2 else 0.0,
        "sharpened": float(rng.random() < 0.15),
        "illumination": lit if rng.random() < 0.5 else np.ones_like(lit),
        "glare": _draw_glare(rng, size, rng.random() < 0.15 * strength),
        "noise": abs(rng.normal(0, 1)) * (0.006 + 0.022 * strength) * (rng.random() < 0.9),
        "coarse": float(rng.random() < 0.3),
        "shot": rng.uniform(0, 1.5),
        "rows": rng.uniform(0.004, 0.025) * (rng.random() < 0.15 * strength),
        "flicker": rng.uniform(0.03, 0.4) * (rng.random() < 0.5),
    }
    coded = rng.random() < 0.15 + 0.25 * strength
    numbers["quality"] = float(int(rng.uniform(95 - 65 * strength, 97))) * coded
    return numbers, kernel


def _draw_glare(rng: np.random.Generator, size: tuple[int, int], shines: bool) -> NDArray[np.float64]:
    """(3, 5): gain (0 for none), centre u and v, and radius along both."""
    glare = np.ones((_GLARES, 5))
    glare[:, 0] = 0
    for k in range(int(rng.integers(1, 1 + _GLARES)) if shines else 0):
        radius = rng.uniform(0.015, 0.12) * size[0]
        centre = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        glare[k] = rng.uniform(0.3, 1.2), *centre, radius, radius * rng.uniform(0.4, 1)
    return glare


def combined_pictures(drawn: Sequence[tuple[Numbers, Float32 | None]]) -> Pictures:
    """Of one batch, from `draw_picture` of each image; at least one."""
    names = drawn[0][0]
    numbers = {name: np.stack([each[name] for each, _ in drawn]).astype(np.float32) for name in names}
    return Pictures(numbers, tuple((k, kernel) for k, (_, kernel) in enumerate(drawn) if kernel is not None))
