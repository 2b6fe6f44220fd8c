"""Trust in a pose from the images alone: the part of the commonly visible area that agrees with it.

A wrong pose with many inliers comes from an object that occurs twice: a poster that hangs in two rooms, a door like the
next one. The object matches, its surroundings do not. So a pose is checked against the textured parts of the keyframe's
image that should be in view by it: inliers must be in enough of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.epipolar import in_second_camera

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Largest number of blocks along the longer side of the image, and least number of cells along a block's side.
_BLOCKS, _CELLS = 20, 2
# Least gradient (root mean square, gray levels per pixel) of a block with texture; and a lower limit for images with
# few such blocks, above the noise of a dark image.
_TEXTURE, _FAINT_TEXTURE = 3.0, 1.0
# Part and number of the blocks that must be in view for a verdict.
_LEAST_PART, _LEAST_BLOCKS = 0.04, 6


def _least(blocks: int) -> float:
    """Number of blocks that must be in view for a verdict."""
    return max(_LEAST_PART * blocks, _LEAST_BLOCKS)


@dataclass(frozen=True, eq=False)
class Texture:
    """Textured blocks of an image.

    Attributes:
        flags: (B,) whether each block has texture, row by row.
        blocks: number along its longer side.
    """

    flags: Flags
    blocks: int


@lru_cache(maxsize=8)
def _centres(width: int, height: int, blocks: int) -> tuple[Array, tuple[int, int]]:
    """(B, 2) pixels of the blocks' centres, and (rows, columns)."""
    side = max(width, height) / blocks
    rows, columns = max(round(height / side), 1), max(round(width / side), 1)
    v, u = np.meshgrid(
        (np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns, indexing="ij"
    )
    return np.stack([u.ravel(), v.ravel()], axis=1) - 0.5, (rows, columns)


def texture_of(image: NDArray[np.uint8], cells: int, usable: NDArray[np.bool_] | None = None) -> Texture:
    """Find the blocks of an image with texture to match.

    Args:
        image: (H, W) uint8 gray.
        cells: of the network along its longer side; a block must contain some, or it would have matches only by chance.
        usable: (H, W) bool, false for pixels to ignore; None to use all.
    """
    height, width = image.shape
    blocks = max(min(_BLOCKS, cells // _CELLS), 1)
    _, (rows, columns) = _centres(width, height, blocks)
    # At half the size, because sensor noise would count as texture.
    small = cv2.resize(image, (max(width // 2, 1), max(height // 2, 1)), interpolation=cv2.INTER_AREA)
    across, down = cv2.Sobel(small, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(small, cv2.CV_32F, 0, 1, scale=0.125)
    energy = cv2.resize(across * across + down * down, (columns, rows), interpolation=cv2.INTER_AREA)
    textured = energy.ravel() > _TEXTURE**2
    if textured.sum() < 2 * _least(textured.size):
        textured = energy.ravel() > _FAINT_TEXTURE**2
    if usable is not None:
        kept = cv2.resize(usable.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        textured &= kept.ravel() > 0.9
    return Texture(np.asarray(textured), blocks)


@dataclass(frozen=True, eq=False)
class View:
    """An image whose parts another one should show, too.

    Attributes:
        camera: its calibration.
        texture: its textured blocks.
        inliers: (N, 2) pixels that agree with the pose.
        points: (M, 2) pixels of known depth.
        inverse: (M,) their inverse depths in the pose's unit of length.
    """

    camera: CameraModel
    texture: Texture
    inliers: NDArray[np.floating]
    points: NDArray[np.floating]
    inverse: Array


def explained_part(view: View, other: CameraModel, rotation: Array, translation: Array) -> float:
    """Part of an image's textured blocks in view of another camera that hold inliers, 0 to 1.

    A block without a point of known depth is as far as the nearest one that has any.

    Args:
        view: the image.
        other: calibration of the other camera.
        rotation, translation: T_image_other.

    Returns:
        The part; 0 if too few blocks are in view.
    """
    size = view.camera.width, view.camera.height
    centres, grid = _centres(*size, view.texture.blocks)
    inverse = _inverse_of_blocks(view.points, view.inverse, size, grid)
    there = in_second_camera(view.camera.unproject(centres), inverse, rotation, translation)
    ahead = np.isfinite(there).all(axis=1) & (there[:, 2] > 1e-3)
    pixels = np.full((len(there), 2), -1.0)
    pixels[ahead] = other.project(there[ahead])
    margin = other.width / _BLOCKS / 4
    with np.errstate(invalid="ignore"):
        visible = ahead & (pixels > margin).all(axis=1)
        visible &= (pixels[:, 0] < other.width - margin) & (pixels[:, 1] < other.height - margin)
    visible &= view.texture.flags
    if visible.sum() < _least(visible.size):
        return 0.0
    matched = blocks_with(view.inliers, size, view.texture.blocks)
    return float((matched & visible).sum() / visible.sum())


def blocks_with(points: NDArray[np.floating], size: tuple[int, int], blocks: int) -> Flags:
    """(B,) whether each block of an image contains a point.

    Args:
        points: (N, 2) pixels.
        size: (width, height) of the image.
        blocks: number along its longer side.
    """
    centres, (rows, columns) = _centres(*size, blocks)
    held = np.zeros(len(centres), np.bool_)
    column, row = (points * (columns / size[0], rows / size[1])).astype(np.int64).T
    held[np.clip(row, 0, rows - 1) * columns + np.clip(column, 0, columns - 1)] = True
    return held


def _inverse_of_blocks(
    points: NDArray[np.floating], inverse: Array, size: tuple[int, int], grid: tuple[int, int]
) -> Array:
    """(B,) mean inverse depth of the points in each block; that of the nearest block with any for those without."""
    rows, columns = grid
    if not len(points):
        return np.zeros(rows * columns)
    column, row = (points * (columns / size[0], rows / size[1])).astype(np.int64).T
    block = np.clip(row, 0, rows - 1) * columns + np.clip(column, 0, columns - 1)
    count = np.bincount(block, minlength=rows * columns)
    mean = np.bincount(block, weights=inverse, minlength=rows * columns) / np.maximum(count, 1)
    empty = (count == 0).reshape(rows, columns).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)
    of_label = np.zeros(int(nearest.max()) + 1)
    of_label[nearest[empty == 0]] = mean[count > 0]
    return of_label[nearest].ravel()
