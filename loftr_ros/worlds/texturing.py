"""Textures on the faces of rendered scenes, from mip levels that fit each pixel's footprint."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

FARTHEST = 1e-6  # inverse depth; what is farther is textured as if it were there
_LEVELS = 5  # of a texture that shows once
_GUTTER = 1 << (_LEVELS - 1)  # texels around it: one at the coarsest level

Image = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How textures become gray values.

    Attributes:
        samples: per pixel and axis, averaged.
        bias: mip levels above the one with a texel per sample; below 0 is sharper and may alias.
        smooth: blend mip levels for each pixel and keep fractions of a gray value. Otherwise a face that covers less
            than one level has one for all of its pixels, which takes half the time.
    """

    samples: int = 2
    bias: float = 0.25  # the footprint is an area, and surfaces are seen at a slant
    smooth: bool = True


FAST = Sampling(1, -0.4, False)  # for training: blur and noise of a camera come later


@dataclass(frozen=True)
class Material:
    """Appearance of a face.

    Attributes:
        levels: (H, W) uint8 mip levels of the texture.
        repeats: number of repetitions along s and t.
        shift: of the texture along s and t, in textures.
        gain, bias: of its gray values.
        light: (h, w) uint8, brightness over the face (128 is neutral), or None.
    """

    levels: list[Image]
    repeats: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    gain: float = 1.0
    bias: float = 0.0
    light: Image | None = None


def material(texture: Image) -> Material:
    """A (H, W) texture that shows once on a face, and no texel of one edge at the opposite one."""
    rows, columns = texture.shape
    below, right = (-size % _GUTTER + _GUTTER for size in texture.shape)
    padded = cv2.copyMakeBorder(texture, _GUTTER, below, _GUTTER, right, cv2.BORDER_REPLICATE)
    levels = pyramid(np.asarray(padded, np.uint8), 3, _LEVELS)
    height, width = padded.shape
    return Material(levels, (columns / width, rows / height), (_GUTTER / width, _GUTTER / height))


def pyramid(image: Image, least: int, most: int = 99) -> list[Image]:
    """At most `most` mip levels of an (H, W) image, each half of the last, with sides of at least `least`."""
    levels = [image]
    while min(levels[-1].shape) >= 2 * least and len(levels) < most:
        half = (levels[-1].shape[1] // 2, levels[-1].shape[0] // 2)
        levels.append(np.asarray(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA), np.uint8))
    return levels


def mipmapped(
    surface: Material, H: Float64, inverse: Float32, mine: NDArray[np.bool_], sampling: Sampling
) -> Image | Float32:
    """A face's part of the image: float32 if its mip levels are blended, else uint8.

    Args:
        H: (3, 3), from the part's pixels to those of the texture's finest level.
        inverse: (h, w) inverse depth.
        mine: (h, w) where the face is visible.
    """
    low, high, _, _ = cv2.minMaxLoc(inverse, mine.view(np.uint8))
    # Texture pixels per image pixel: |det H| / inverse depth³; the level is half its logarithm.
    area = 0.5 * np.log2(max(abs(np.linalg.det(H)), 1e-30)) + sampling.bias
    top = len(surface.levels) - 1
    finest, coarsest = (float(np.clip(area - 1.5 * np.log2(max(z, FARTHEST)), 0, top)) for z in (high, low))
    size = (inverse.shape[1], inverse.shape[0])
    if int(finest) == np.ceil(coarsest) or (coarsest - finest < 1.0 and not sampling.smooth):
        return warped(surface.levels, round(0.5 * (finest + coarsest)), H, size)
    level = np.float32(area) - np.float32(1.5) * np.log2(np.maximum(inverse, np.float32(FARTHEST)))
    np.clip(level, 0, top, out=level)
    patch = np.zeros_like(inverse)
    for k in range(int(finest), int(np.ceil(coarsest)) + 1):
        share = np.maximum(1 - np.abs(level - np.float32(k)), 0)
        x, y, columns, rows = cv2.boundingRect(((share > 0) & mine).view(np.uint8))
        if columns and rows:
            there = H @ np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])
            part = (slice(y, y + rows), slice(x, x + columns))
            patch[part] += share[part] * warped(surface.levels, k, there, (columns, rows))
    return patch


def warped(levels: list[Image], level: int, H: Float64, size: tuple[int, int], border: int = cv2.BORDER_WRAP) -> Image:
    """A level of a texture under a homography from the (width, height) patch's pixels to those of the finest level."""
    texture = levels[level]
    sx, sy = (texture.shape[k] / levels[0].shape[k] for k in (1, 0))
    to_level = np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch = cv2.warpPerspective(texture, to_level @ H, size, flags=flags, borderMode=border)
    return np.asarray(patch, np.uint8)
