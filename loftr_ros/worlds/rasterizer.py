"""Exact z-buffered rendering of textured rectangles with a pinhole camera.

All values at a pixel are ratios of functions that are affine in the pixel: inverse depth, and the texture coordinates
times inverse depth. So visibility and texturing are a few array operations per surface, and geometry is exact to the
last bits of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

NEAR = 0.05  # m, near plane: anything closer is clipped
_LEVELS = 5  # of the mip pyramid
_GUTTER = 1 << (_LEVELS - 1)  # texels around a texture in the atlas: one at the coarsest level
_SCALES = (0.5 ** np.arange(_LEVELS)).astype(np.float32)
_STRIP = 64  # rows textured at once, so that the arrays stay in the processor's cache
_MIP_BIAS = 0.25  # levels; the footprint is an area, and surfaces are seen at a slant


@dataclass(frozen=True)
class Rectangles:
    """M textured rectangles; the point at (s, t) in [0, 1]^2 is `origin + s * side_s + t * side_t`.

    Attributes:
        origin, side_s, side_t: (M, 3) float64, metres, world frame. `side_t x side_s` points to the side
            that can be seen: from there s runs to the right, along the texture's rows, and t down.
        texel: (M,) float64 sides of a texel, in metres.
    """

    origin: NDArray[np.float64]
    side_s: NDArray[np.float64]
    side_t: NDArray[np.float64]
    texel: NDArray[np.float64]

    @property
    def normals(self) -> NDArray[np.float64]:
        """(M, 3) unit normals on the visible side."""
        cross = np.cross(self.side_t, self.side_s)
        return np.asarray(cross / np.linalg.norm(cross, axis=1, keepdims=True))


class Atlas:
    """All textures in one image with its mip pyramid, so that one look-up textures a whole view."""

    def __init__(self, textures: Sequence[NDArray[np.uint8]], width: int = 8192) -> None:
        """Packs (H, W) uint8 textures in rows, highest first.

        Raises:
            ValueError: the textures do not fit an image that OpenCV can look up in.
        """
        padded = [[-(-size // _GUTTER) * _GUTTER + 2 * _GUTTER for size in texture.shape] for texture in textures]
        corners = np.zeros((len(textures), 2))
        top = left = row_height = 0
        for k in sorted(range(len(textures)), key=lambda k: -padded[k][0]):
            if left + padded[k][1] > width:
                top, left, row_height = top + row_height, 0, 0
            corners[k] = left, top
            left += padded[k][1]
            row_height = max(row_height, padded[k][0])
        height = top + row_height
        if height + height // 2 > 32767 or max(p[1] for p in padded) > width:
            raise ValueError(f"the textures need an atlas of {width}x{height} texels; use coarser texels")
        base = np.zeros((height, width), np.uint8)
        for texture, (rows, columns), (u, v) in zip(textures, padded, corners.astype(int), strict=True):
            below, right = rows - _GUTTER - texture.shape[0], columns - _GUTTER - texture.shape[1]
            base[v : v + rows, u : u + columns] = cv2.copyMakeBorder(
                texture, _GUTTER, below, _GUTTER, right, cv2.BORDER_REPLICATE
            )
        # Level 0 on top, below it level 1, and to the right of that all others, each below the last.
        levels = [base]
        for _ in range(_LEVELS - 1):
            half = cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            levels.append(np.asarray(half, np.uint8))
        # Every level is exactly half of the last, so the others stack up to no more than level 1's height.
        self.image = np.zeros((height + height // 2, width), np.uint8)
        self.level_corner = np.zeros((_LEVELS, 2), np.float32)
        u, v = 0, 0
        for index, level in enumerate(levels):
            self.image[v : v + len(level), u : u + level.shape[1]] = level
            self.level_corner[index] = u, v
            if index == 0:
                v = height
            elif index == 1:
                u = level.shape[1]
            else:
                v += len(level)
        self.corner = corners + _GUTTER
        self.size = np.array([texture.shape[::-1] for texture in textures], np.float64)


@dataclass(frozen=True)
class _View:
    """The view of one camera of M rectangles: per rectangle, functions affine in (u, v, 1)."""

    visible: NDArray[np.intp]  # rectangles that may be visible
    inverse_depth: NDArray[np.float64]  # (M, 3)
    texture_u: NDArray[np.float64]  # (M, 3), texture coordinate u times inverse depth
    texture_v: NDArray[np.float64]  # (M, 3)
    distance: NDArray[np.float64]  # (M,) from the camera to the rectangle's plane, metres
    edges: list[NDArray[np.float64]]  # per visible rectangle (E, 3), >= 0 inside


def _view(rectangles: Rectangles, atlas: Atlas, matrix: NDArray[np.float64], pose: NDArray[np.float64]) -> _View:
    rays = pose[:3, :3] @ np.linalg.inv(matrix)  # pixel (u, v, 1) to a world vector of depth 1
    to_camera = pose[:3, 3] - rectangles.origin
    normals = rectangles.normals
    distance = (normals * to_camera).sum(axis=1)
    safe = np.where(np.abs(distance) < 1e-9, 1e-9, distance)
    inverse_depth = -(normals @ rays) / safe[:, None]
    affine = []
    for axis, side in enumerate((rectangles.side_s, rectangles.side_t)):
        dual = side / (side * side).sum(axis=1, keepdims=True)  # the sides are perpendicular
        along = (dual @ rays) + (dual * to_camera).sum(axis=1)[:, None] * inverse_depth
        affine.append(along * atlas.size[:, axis : axis + 1] + (atlas.corner[:, axis : axis + 1] - 0.5) * inverse_depth)
    # Corners in order around the rectangle, in camera coordinates.
    steps = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    world = (
        rectangles.origin[:, None]
        + steps[None, :, :1] * rectangles.side_s[:, None]
        + steps[None, :, 1:] * rectangles.side_t[:, None]
    )
    corners = (world - pose[:3, 3]) @ pose[:3, :3]
    candidates = np.flatnonzero((distance > 1e-6) & (corners[:, :, 2].max(axis=1) > NEAR))
    visible, edges = [], []
    for k in candidates:
        polygon = _clipped(corners[k]) @ matrix.T
        pixels = polygon[:, :2] / polygon[:, 2:]
        following = np.roll(pixels, -1, axis=0)
        area = (pixels[:, 0] * following[:, 1] - pixels[:, 1] * following[:, 0]).sum()
        if abs(area) < 1e-9:
            continue
        a, b = pixels[:, 1] - following[:, 1], following[:, 0] - pixels[:, 0]
        lines = np.stack([a, b, -(a * pixels[:, 0] + b * pixels[:, 1])], axis=1) * np.sign(area)
        visible.append(k)
        edges.append(lines[np.abs(lines[:, :2]).max(axis=1) > 1e-12])
    return _View(np.array(visible, np.intp), inverse_depth, affine[0], affine[1], distance, edges)


def _clipped(polygon: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a convex polygon in camera coordinates with z >= NEAR."""
    ahead = polygon[:, 2] >= NEAR
    if ahead.all():
        return polygon
    points = []
    for k in range(len(polygon)):
        here, there = polygon[k], polygon[(k + 1) % len(polygon)]
        if ahead[k]:
            points.append(here)
        if ahead[k] != ahead[(k + 1) % len(polygon)]:
            points.append(here + (there - here) * ((NEAR - here[2]) / (there[2] - here[2])))
    return np.array(points)


def _visibility(
    view: _View, u: NDArray[np.float64], v: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Inverse depth (0: nothing) and rectangle (-1: nothing) at the grid of pixel positions u x v."""
    depth_buffer = np.zeros((len(v), len(u)), np.float32)
    owner = np.full((len(v), len(u)), -1, np.int16)
    for k, lines in zip(view.visible, view.edges, strict=True):
        # Every edge bounds the columns of each row from one side; this is exact and needs no outline.
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = -(lines[:, 1:2] * v[None, :] + lines[:, 2:3]) / lines[:, :1]
        left = np.where(lines[:, :1] > 0, bounds, -np.inf).max(axis=0) - 1e-7
        right = np.where(lines[:, :1] < 0, bounds, np.inf).min(axis=0) + 1e-7
        level = lines[:, 0] == 0
        if level.any():
            beyond = (lines[level, 1:2] * v[None, :] + lines[level, 2:3] < -1e-7).any(axis=0)
            right[beyond] = -np.inf
        first, last = np.searchsorted(u, left, "left"), np.searchsorted(u, right, "right")
        rows = np.flatnonzero(last > first)
        if not len(rows):
            continue
        r0, r1 = rows[0], rows[-1] + 1
        c0, c1 = first[rows].min(), last[rows].max()
        a, b, c = view.inverse_depth[k]
        inverse = (b * v[r0:r1] + c).astype(np.float32)[:, None] + (a * u[c0:c1]).astype(np.float32)[None, :]
        columns = np.arange(c0, c1, dtype=np.int32)
        mask = columns >= first[r0:r1, None].astype(np.int32)
        mask &= columns < last[r0:r1, None].astype(np.int32)
        mask &= inverse > depth_buffer[r0:r1, c0:c1]
        np.copyto(depth_buffer[r0:r1, c0:c1], inverse, where=mask)
        np.copyto(owner[r0:r1, c0:c1], np.int16(k), where=mask)
    return depth_buffer, owner


def render(
    rectangles: Rectangles,
    atlas: Atlas,
    matrix: NDArray[np.float64],
    size: tuple[int, int],
    pose: NDArray[np.float64],
    supersample: int = 2,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The view of a pinhole camera.

    Args:
        rectangles, atlas: the M surfaces and their M textures.
        matrix: (3, 3) camera matrix; pixel (0, 0) is the centre of the top-left pixel.
        size: (width, height) in pixels.
        pose: (4, 4) T_world_camera, optical frame.
        supersample: samples per pixel and axis for the image; the depth is that of the pixel's centre.

    Returns:
        Image (H, W) float32 in [0, 255], and depth (H, W) float32 along z in metres, inf where there is nothing.
    """
    width, height = size
    view = _view(rectangles, atlas, matrix, pose)
    inverse, _ = _visibility(view, np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    with np.errstate(divide="ignore"):
        depth = np.float32(1) / inverse
    u = (np.arange(width * supersample) + 0.5) / supersample - 0.5
    v = (np.arange(height * supersample) + 0.5) / supersample - 0.5
    inverse, owner = _visibility(view, u, v)
    texel_area = matrix[0, 0] * matrix[1, 1] * supersample**2 * rectangles.texel**2
    with np.errstate(divide="ignore", invalid="ignore"):
        # A pixel sees z^3 / (distance fx fy) square metres of a plane; half its log2 in texels is the level.
        level_offset = (_MIP_BIAS - 0.5 * np.log2(np.abs(view.distance) * texel_area)).astype(np.float32)
    tables = [c.astype(np.float32) for c in (*view.texture_u.T, *view.texture_v.T)]
    image = np.empty((height, width), np.float32)
    for top in range(0, height, _STRIP):
        rows = slice(top * supersample, min(top + _STRIP, height) * supersample)
        samples = _textured(atlas, tables, level_offset, inverse[rows], owner[rows], u, v[rows])
        target = image[top : top + _STRIP]
        if supersample == 1:
            target[:] = samples
        else:
            target[:] = cv2.resize(samples, target.shape[::-1], interpolation=cv2.INTER_AREA)
    return image, depth


def _textured(
    atlas: Atlas,
    tables: list[NDArray[np.float32]],
    level_offset: NDArray[np.float32],
    inverse: NDArray[np.float32],
    owner: NDArray[np.int16],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Trilinear texture look-up of a strip of samples; 0 where nothing is."""
    columns, rows = u.astype(np.float32)[None, :], v.astype(np.float32)[:, None]
    empty = owner < 0
    index = np.where(empty, 0, owner).astype(np.intp)
    safe = np.where(empty, np.float32(1), inverse)
    depth = np.float32(1) / safe
    coordinates = []
    for a, b, c in (tables[:3], tables[3:]):
        value = a[index] * columns
        value += b[index] * rows
        value += c[index]
        value *= depth
        value += np.float32(0.5)
        coordinates.append(value)
    level = level_offset[index] - np.float32(1.5) * np.log2(safe)
    np.clip(level, 0, _LEVELS - 1.001, out=level)
    whole = level.astype(np.int32)
    blend = level - whole.astype(np.float32)
    looked_up = []
    for step in (0, 1):
        scale = _SCALES[whole + step]
        corner = atlas.level_corner[whole + step]
        map_u = coordinates[0] * scale + (corner[..., 0] - np.float32(0.5))
        map_v = coordinates[1] * scale + (corner[..., 1] - np.float32(0.5))
        looked_up.append(cv2.remap(atlas.image, map_u, map_v, cv2.INTER_LINEAR).astype(np.float32))
    samples = looked_up[0] + blend * (looked_up[1] - looked_up[0])
    samples[empty] = 0
    return np.asarray(samples)
