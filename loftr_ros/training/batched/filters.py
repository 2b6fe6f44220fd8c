"""Filters of many images at once, each with its own strength; (N, H, W) float32. OpenCV's borders: mirrored."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from loftr_ros.training.batched.transfer import on_device

# The luminance table of the JPEG standard (ITU-T T.81, table K.1), as libjpeg uses it at quality 50.
_JPEG_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


def convolved(images: Tensor, kernels: Tensor) -> Tensor:
    """Each image with its own kernel.

    Args:
        images: (N, H, W).
        kernels: (N, h, w), of odd sides smaller than the images'.
    """
    rows, columns = kernels.shape[1] // 2, kernels.shape[2] // 2
    padded = functional.pad(images[None], (columns, columns, rows, rows), mode="reflect")
    return functional.conv2d(padded, kernels[:, None], groups=len(images))[0]


def blurred(images: Tensor, sigmas: NDArray[np.floating]) -> Tensor:
    """Gaussian blur.

    Args:
        images: (N, H, W).
        sigmas: (N,) standard deviations in pixels, on the host; 0 leaves an image as it is.
    """
    most = float(sigmas.max(initial=0.0))
    if most <= 0:
        return images
    reach = min(math.ceil(3 * most), min(images.shape[1:]) - 1)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * np.square(offsets / np.maximum(sigmas, 1e-3)[:, None]))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    kernels = on_device(weights, images.device)
    return convolved(convolved(images, kernels[:, None, :]), kernels[:, :, None])


def enlarged(fields: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """(N, h, w) fields over the views, enlarged to (width, height)."""
    return functional.interpolate(fields[:, None], (size[1], size[0]), mode=mode, align_corners=False)[:, 0]


def compressed(images: Tensor, qualities: NDArray[np.floating]) -> Tensor:
    """What JPEG leaves of images: the same transform, table and rounding as libjpeg's.

    Args:
        images: (N, H, W) in [0, 1].
        qualities: (N,) of 1 to 100, on the host.
    """
    height, width = images.shape[1:]
    scale = np.where(qualities < 50, 5000 / np.maximum(qualities, 1), 200 - 2 * qualities)
    table = np.clip(np.floor((np.array(_JPEG_TABLE) * scale[:, None, None] + 50) / 100), 1, 255)
    steps = on_device(table.astype(np.float32), images.device)[:, None, None]
    k, n = np.mgrid[0:8, 0:8]
    cosines = np.cos((2 * n + 1) * k * np.pi / 16) * np.where(k == 0, math.sqrt(1 / 8), 0.5)
    transform = on_device(cosines.astype(np.float32), images.device)
    padded = functional.pad(images[None], (0, -width % 8, 0, -height % 8), mode="replicate")[0]
    levels = (padded * 255).round() - 128
    count, high, wide = levels.shape
    blocks = levels.view(count, high // 8, 8, wide // 8, 8).transpose(2, 3)  # (N, rows, columns, 8, 8)
    kept = (transform @ blocks @ transform.T / steps).round() * steps
    restored: Tensor = (transform.T @ kept @ transform).transpose(2, 3).reshape(count, high, wide)
    return ((restored + 128).round().clamp(0, 255) / 255)[:, :height, :width]
