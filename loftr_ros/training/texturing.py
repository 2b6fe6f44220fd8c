"""Textures on the faces of rendered scenes, from mip levels that fit each pixel's footprint."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.training.geometry import Float32, Float64

FARTHEST = 1e-6  # inverse depth where there is nothing
SHARPNESS = 0.4  # mip levels below the alias-free one: the camera's blur comes later


@dataclass(frozen=True)
class Surface:
    """Appearance of a face.

    Attributes:
        levels: (H, W) uint8 mip levels of the texture.
        repeats: number of repetitions along s and t.
        shift: of the texture along s and t, in textures.
        gain, bias: of its gray values.
        light: (h, w) uint8, brightness over the face (128 is neutral), or None.
    """

    levels: list[NDArray[np.uint8]]
    repeats: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    gain: float = 1.0
    bias: float = 0.0
    light: NDArray[np.uint8] | None = None


def mipmapped(surface: Surface, H: Float64, inverse: Float32, mine: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A face's part of the image; if it extends far into depth, its mip levels are blended.

    Args:
        H: (3, 3), from the part's pixels to those of the texture's finest level.
        inverse: (h, w) inverse depth.
        mine: (h, w) where the face is visible.
    """
    low, high, _, _ = cv2.minMaxLoc(inverse, mine.view(np.uint8))
    # Texture pixels per image pixel: |det H| / inverse depth³; the level is half its logarithm.
    area = 0.5 * np.log2(max(abs(np.linalg.det(H)), 1e-30)) - SHARPNESS
    top = len(surface.levels) - 1
    finest, coarsest = (float(np.clip(area - 1.5 * np.log2(z), 0, top)) for z in (high, low))
    size = (inverse.shape[1], inverse.shape[0])
    if coarsest - finest < 1.0:
        return _textured(surface, round(0.5 * (finest + coarsest)), H, size)
    level = np.float32(area) - np.float32(1.5) * np.log2(np.maximum(inverse, np.float32(FARTHEST)))
    np.clip(level, 0, top, out=level)
    patch = np.zeros_like(inverse)
    for k in range(int(finest), int(np.ceil(coarsest)) + 1):
        share = np.maximum(1 - np.abs(level - np.float32(k)), 0)
        x, y, columns, rows = cv2.boundingRect(((share > 0) & mine).view(np.uint8))
        if columns and rows:
            there = H @ np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])
            part = (slice(y, y + rows), slice(x, x + columns))
            patch[part] += share[part] * _textured(surface, k, there, (columns, rows))
    return np.asarray(cv2.convertScaleAbs(patch), np.uint8)


def _textured(surface: Surface, level: int, H: Float64, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A level of a texture under a homography from the patch's pixels to those of the finest level."""
    texture = surface.levels[level]
    sx, sy = (texture.shape[k] / surface.levels[0].shape[k] for k in (1, 0))
    to_level = np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch = cv2.warpPerspective(texture, to_level @ H, size, flags=flags, borderMode=cv2.BORDER_WRAP)
    return np.asarray(patch, np.uint8)
