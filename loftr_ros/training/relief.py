"""Smooth and rugged relief seen from above: geometry without planes, rendered by ray marching."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.training.assets import AssetBank
from loftr_ros.training.geometry import Float32, Float64, looking
from loftr_ros.worlds.rasterizer import Raster

_GRID = 257  # heights along a side, over [-1, 1]²
_STEPS = 14  # of the coarse search between the top and the bottom
_HALVINGS = 4
_FARTHEST = 12.0
_PIECE = 30000


@dataclass(frozen=True)
class Relief:
    """A height field over [-1, 1]² of the ground plane, mirrored beyond, with a texture on it.

    Attributes:
        heights: (257, 257) float32, from 0 up.
        top: the greatest height.
        texture: (H, W) uint8 mip levels, light and shadow included, over the same square.
        T_camera_world: (4, 4), a first camera.
    """

    heights: Float32
    top: float
    texture: list[NDArray[np.uint8]]
    T_camera_world: Float64

    def render(self, K: Float64, size: tuple[int, int], T_camera_world: Float64) -> Raster:
        """Render it for a pinhole camera with a (width, height) image."""
        width, height = size
        R, t = T_camera_world[:3, :3], T_camera_world[:3, 3]
        eye = (-R.T @ t).astype(np.float32)
        D = R.T @ np.linalg.inv(K)
        rays = _rays(D, np.arange(width), np.arange(height))
        # Every other pixel is searched coarsely; the rest starts at the nearest hit of its neighbours.
        coarse = np.ascontiguousarray(rays[:, ::2, ::2])
        start, step = self._span(eye, coarse)
        depth = np.full(coarse.shape[1:], np.inf, np.float32)
        for k in range(1, _STEPS + 1):
            at = start + np.float32(k) * step
            under = self._above(eye, coarse, at) < 0
            np.copyto(depth, at - step, where=under & np.isinf(depth))
        nearest = cv2.erode(depth, np.ones((3, 3), np.uint8))
        low = np.asarray(cv2.resize(nearest, size, interpolation=cv2.INTER_NEAREST), np.float32)
        start, step = self._span(eye, rays)
        low = np.clip(low, start, start + np.float32(_STEPS) * step)
        low, high = self._bracket(eye, rays, low, step)
        above, below = self._above(eye, rays, low), self._above(eye, rays, high)
        for _ in range(_HALVINGS):
            # Between the secant method, which is fast, and bisection, which never stalls at one end.
            share = np.clip(above / np.maximum(above - below, np.float32(1e-9)), 0.15, 0.85)
            middle = low + (high - low) * share
            height_there = self._above(eye, rays, middle)
            under = height_there < 0
            high, low = np.where(under, middle, high), np.where(under, low, middle)
            below, above = np.where(under, height_there, below), np.where(under, above, height_there)
        share = np.clip(above / np.maximum(above - below, np.float32(1e-9)), 0, 1)
        depth = low + (high - low) * share
        hit = (rays[2] < -1e-3) & (depth < _FARTHEST) & (above >= 0) & (below <= 0)
        inverse = np.where(hit, 1 / np.maximum(depth, np.float32(1e-3)), 0).astype(np.float32)
        image = self._painted(eye, rays, depth)
        image[~hit] = 128
        return Raster(image, inverse, hit.astype(np.uint8))

    def _bracket(self, eye: Float32, rays: Float32, low: Float32, step: Float32) -> tuple[Float32, Float32]:
        """March from `low`, above the relief, to the first step below it: depths before and after."""
        flat, lows, steps = rays.reshape(3, -1), low.ravel().copy(), step.ravel()
        going = np.flatnonzero(self._above(eye, rays, low + step) >= 0)
        for _ in range(2 * _STEPS):
            if not len(going):
                break
            lows[going] += steps[going]
            # In pieces, because OpenCV's remap takes no side longer than a short integer.
            pieces = [going[k : k + _PIECE] for k in range(0, len(going), _PIECE)]
            heights = [self._above(eye, flat[:, p, None], (lows[p] + steps[p])[:, None])[:, 0] for p in pieces]
            going = going[np.concatenate(heights) >= 0]
        low = lows.reshape(low.shape)
        return low, low + step

    def _span(self, eye: Float32, rays: Float32) -> tuple[Float32, Float32]:
        """Range of depths of possible hits: from the greatest height, with a step's length."""
        down = np.minimum(rays[2], np.float32(-1e-3))
        start = np.maximum((np.float32(self.top) - eye[2]) / down, np.float32(0.02))
        end = np.minimum(-eye[2] / down, np.float32(_FARTHEST)) * np.float32(1.001)
        return start, np.maximum(end - start, np.float32(1e-4)) / np.float32(_STEPS)

    def _above(self, eye: Float32, rays: Float32, depth: Float32) -> Float32:
        """Height of a point of a ray above the relief, by bilinear interpolation of the heights."""
        scale = np.float32((_GRID - 1) / 2)
        x = (eye[0] + depth * rays[0] + np.float32(1)) * scale
        y = (eye[1] + depth * rays[1] + np.float32(1)) * scale
        found = cv2.remap(self.heights, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(eye[2] + depth * rays[2] - found, np.float32)

    def _painted(self, eye: Float32, rays: Float32, depth: Float32) -> NDArray[np.uint8]:
        side = self.texture[0].shape[1]
        x = (eye[0] + depth * rays[0] + np.float32(1)) * np.float32(0.5)
        y = (eye[1] + depth * rays[1] + np.float32(1)) * np.float32(0.5)
        covered = float(np.median(np.abs(np.diff(x, axis=1)))) * side
        level = int(np.clip(round(np.log2(max(covered, 1e-3)) - 0.2), 0, len(self.texture) - 1))
        texture = self.texture[level]
        x = x * np.float32(texture.shape[1]) - np.float32(0.5)
        y = y * np.float32(texture.shape[0]) - np.float32(0.5)
        return np.asarray(cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), np.uint8)


def make_relief(bank: AssetBank, rng: np.random.Generator) -> Relief:
    """A random relief, gently rolling to rugged, with a photo or tiles of a texture on it."""
    heights = np.zeros((_GRID, _GRID), np.float32)
    rough = rng.uniform(0.35, 0.75)
    for octave in range(1, int(rng.integers(3, 6))):
        cells = 2 + 2**octave
        noise = rng.normal(0, 1, (cells, cells)).astype(np.float32)
        heights += cv2.resize(noise, (_GRID, _GRID), interpolation=cv2.INTER_CUBIC) * np.float32(rough**octave)
    if rng.random() < 0.4:  # terraces: cliffs between nearly level ground
        level = rng.uniform(2, 5)
        steps = np.floor(heights * level) + 1 / (1 + np.exp(-12 * ((heights * level) % 1 - 0.5)))
        heights = (0.8 * steps / level + 0.2 * heights).astype(np.float32)
    heights = np.asarray(cv2.GaussianBlur(heights, (0, 0), 1.5), np.float32)
    heights -= heights.min()
    top = float(rng.uniform(0.1, 0.6))
    heights *= np.float32(top / max(float(heights.max()), 1e-6))
    down, along = np.gradient(heights, 2 / (_GRID - 1))
    sun = rng.normal(0, 0.6, 2)
    shade = (1 - sun[0] * along - sun[1] * down) / np.sqrt(1 + along**2 + down**2)
    texture = _covering(bank, rng)
    light = cv2.resize(np.clip(shade, 0.25, 1.6).astype(np.float32), texture.shape[::-1])
    levels = [np.clip(texture * light, 0, 255).astype(np.uint8)]
    while min(levels[-1].shape) > 32:
        levels.append(np.asarray(cv2.pyrDown(levels[-1]), np.uint8))
    elevation, azimuth = np.radians(rng.uniform(40, 90)), rng.uniform(-np.pi, np.pi)
    away = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    target = np.array([*rng.uniform(-0.5, 0.5, 2), top / 2])
    eye = target + away * rng.uniform(0.6, 1.8) + np.array([0, 0, top / 2])
    return Relief(heights, top, levels, looking(eye, target - eye, float(rng.normal(0, 0.3))))


def _covering(bank: AssetBank, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A (768, 768) texture: a photo, or tiles."""
    side = 768
    if rng.random() < 0.6:
        return np.asarray(cv2.resize(bank.photo(rng)[0], (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
    tile = bank.texture(rng)[0]
    repeats = int(rng.integers(1, 5))
    small = cv2.resize(tile, (side // repeats + 1, side // repeats + 1), interpolation=cv2.INTER_AREA)
    return np.asarray(np.tile(small, (repeats, repeats))[:side, :side], np.uint8)


def _rays(D: Float64, u: NDArray[np.int64], v: NDArray[np.int64]) -> Float32:
    """(3, H, W) directions in the world whose points at depth z are eye + z · ray."""
    return np.stack([(D[k, 0] * u + (D[k, 1] * v[:, None] + D[k, 2])) for k in range(3)]).astype(np.float32)
