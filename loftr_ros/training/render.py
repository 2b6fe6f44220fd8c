"""Scenes of textured quadrilaterals, tubes and ellipsoids, ray-cast with numpy in a few milliseconds per view.

A quadrilateral's points are o + s·eu + t·ev. With M = [eu ev o] in camera coordinates and G = M⁻¹ K⁻¹, a pixel p has G
p = (s, t, 1) / depth: three planes in the image give the inside test, inverse depth and texture coordinates, without a
division. First all surfaces are drawn into the z-buffer, then the visible ones are textured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.training.geometry import Float32, Float64
from loftr_ros.training.texturing import FARTHEST, SHARPNESS, Surface, mipmapped

NEAR = 0.02
_LIGHTMAP_AREA = 0.01  # of the image; smaller faces are lit evenly


@dataclass(frozen=True)
class Round:
    """An ellipsoid, or an open tube about its local z axis.

    Attributes:
        centre: (3,), in the world.
        to_local: (3, 3), maps world offsets from the centre to the frame of the unit ball, or of x² + y² = 1, |z| <= 1.
        tube: whether it is the tube.
        surface: its appearance; s goes once around.
    """

    centre: Float64
    to_local: Float64
    tube: bool
    surface: Surface


@dataclass
class Scene:
    """Faces and round objects in a world whose z axis points up.

    A face is visible from the side from which s goes to the right and t down (ev × eu points there), or from both.
    """

    corners: list[tuple[Float64, Float64, Float64]] = field(default_factory=list)
    surfaces: list[Surface] = field(default_factory=list)
    both_sides: list[bool] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def quad(self, o: Float64, eu: Float64, ev: Float64, surface: Surface, both_sides: bool = False) -> None:
        """Add the parallelogram from `o` along `eu` and `ev`."""
        self.corners.append((o, eu, ev))
        self.surfaces.append(surface)
        self.both_sides.append(both_sides)

    def box(self, centre: Float64, half: Float64, R: Float64, surfaces: list[Surface], bottom: bool = False) -> None:
        """Add a box with half sizes along the columns of R; its faces use `surfaces` in rotation."""
        x, y, z = (R[:, k] * half[k] for k in range(3))
        faces = [(across, -z, n) for across, n in ((y, x), (-y, -x), (-x, y), (x, -y))] + [(y, x, z)]
        if bottom:
            faces.append((x, y, -z))
        for number, (across, up, n) in enumerate(faces):
            self.quad(centre + n - across - up, 2 * across, 2 * up, surfaces[number % len(surfaces)])


def cross(a: Float64, b: Float64) -> Float64:
    """The cross product of two (3,) vectors, without the overhead of numpy's general one."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


@dataclass(frozen=True)
class View:
    """A view: (H, W) uint8 gray, (H, W) float32 inverse depth, (H, W) uint8 surface (0: nothing)."""

    image: NDArray[np.uint8]
    inverse_depth: Float32
    surface: NDArray[np.uint8]


def render(scene: Scene, K: Float64, size: tuple[int, int], T_camera_world: Float64) -> View:
    """Render a scene of at most 254 surfaces, for a pinhole camera with a (width, height) image."""
    width, height = size
    canvas = _Canvas(
        np.zeros((height, width), np.uint8),
        np.full((height, width), FARTHEST, np.float32),
        np.zeros((height, width), np.uint8),
    )
    R, t = T_camera_world[:3, :3], T_camera_world[:3, 3]
    K_inverse = np.linalg.inv(K)
    frames = np.array(scene.corners).reshape(-1, 3, 3) @ R.T
    frames[:, 0] += t
    M = frames[:, [1, 2, 0]].transpose(0, 2, 1)
    facing = np.linalg.det(M) if len(M) else np.zeros(0)
    visible = np.where(scene.both_sides, np.abs(facing) > 1e-9, facing > 1e-9)
    windows = _windows(frames, K, size)
    seen = [int(k) for k in np.flatnonzero(visible) if windows[k] is not None]
    G = dict(zip(seen, np.linalg.inv(M[seen]) @ K_inverse, strict=True)) if seen else {}
    for k in seen:
        window = windows[k]
        assert window is not None
        canvas.face(k + 1, G[k], window)
    beyond = len(scene.corners) + 1
    hits = [canvas.round(beyond + k, thing, K, R, t) for k, thing in enumerate(scene.rounds)]
    counts = np.bincount(canvas.surface.ravel(), minlength=beyond + len(hits))
    for k in seen:
        window = windows[k]
        if counts[k + 1] and window is not None:
            canvas.paint_face(k + 1, scene.surfaces[k], G[k], window)
    for k, hit in enumerate(hits):
        if hit is not None and counts[beyond + k]:
            canvas.paint_round(beyond + k, scene.rounds[k], *hit)
    return View(canvas.image, canvas.inverse_depth, canvas.surface)


Window = tuple[int, int, int, int]


def _windows(frames: Float64, K: Float64, size: tuple[int, int]) -> list[Window | None]:
    """The part of the image (x0, x1, y0, y1) that contains each face; None if there is none."""
    if not len(frames):
        return []
    o, eu, ev = frames[:, 0], frames[:, 1], frames[:, 2]
    corners = np.stack([o, o + eu, o + eu + ev, o + ev], axis=1)
    z = corners[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = corners @ K.T
        pixels = pixels[..., :2] / pixels[..., 2:]
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    before = np.asarray((z >= NEAR).sum(axis=1))
    windows: list[Window | None] = []
    for k in range(len(frames)):
        if before[k] == 0:
            windows.append(None)
            continue
        if before[k] < 4:
            cut = _cut(corners[k]) @ K.T
            points = cut[:, :2] / cut[:, 2:]
            windows.append(_window(points.min(axis=0), points.max(axis=0), size))
        else:
            windows.append(_window(low[k], high[k], size))
    return windows


def _cut(corners: Float64) -> Float64:
    """The corners of the part of a polygon in front of the near plane."""
    kept = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    return np.array(kept)


def _window(low: Float64, high: Float64, size: tuple[int, int]) -> Window | None:
    x0, y0 = max(0, int(np.ceil(max(low[0], -1)))), max(0, int(np.ceil(max(low[1], -1))))
    x1, y1 = min(size[0], int(min(high[0], size[0])) + 1), min(size[1], int(min(high[1], size[1])) + 1)
    return (x0, x1, y0, y1) if x1 > x0 and y1 > y0 else None


@dataclass
class _Canvas:
    image: NDArray[np.uint8]
    inverse_depth: Float32
    surface: NDArray[np.uint8]

    def face(self, number: int, G: Float64, window: Window) -> None:
        x0, x1, y0, y1 = window
        u = np.arange(x0, x1, dtype=np.float64)
        v = np.arange(y0, y1, dtype=np.float64)[:, None]
        columns, rows = (G[:, :1] * u).astype(np.float32), (G[:, 1] * v + G[:, 2]).astype(np.float32)
        inverse = columns[2] + rows[:, 2:]
        nearer = inverse > self.inverse_depth[y0:y1, x0:x1]
        for k in (0, 1):
            at = columns[k] + rows[:, k : k + 1]
            nearer &= at >= 0
            nearer &= at <= inverse
        np.copyto(self.inverse_depth[y0:y1, x0:x1], inverse, where=nearer)
        np.copyto(self.surface[y0:y1, x0:x1], np.uint8(number), where=nearer)

    def paint_face(self, number: int, surface: Surface, G: Float64, window: Window) -> None:
        x0, x1, y0, y1 = window
        x, y, columns, rows = cv2.boundingRect((self.surface[y0:y1, x0:x1] == number).view(np.uint8))
        x0, y0 = x0 + x, y0 + y
        part = (slice(y0, y0 + rows), slice(x0, x0 + columns))
        mine = self.surface[part] == number
        height, width = surface.levels[0].shape
        A = np.array(
            [
                [width * surface.repeats[0], 0, width * surface.shift[0] - 0.5],
                [0, height * surface.repeats[1], height * surface.shift[1] - 0.5],
                [0, 0, 1],
            ]
        )
        G = G @ np.array([[1.0, 0, x0], [0, 1, y0], [0, 0, 1]])
        patch = mipmapped(surface, A @ G, self.inverse_depth[part], mine)
        if surface.gain != 1 or surface.bias != 0:
            patch = np.asarray(cv2.convertScaleAbs(patch, alpha=surface.gain, beta=surface.bias), np.uint8)
        if surface.light is not None and mine.size > _LIGHTMAP_AREA * self.image.size:
            high, wide = surface.light.shape
            L = np.array([[wide, 0, -0.5], [0, high, -0.5], [0, 0, 1]]) @ G
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            light = cv2.warpPerspective(surface.light, L, (columns, rows), flags=flags, borderMode=cv2.BORDER_REPLICATE)
            patch = np.asarray(cv2.multiply(patch, light, scale=1 / 128), np.uint8)
        np.copyto(self.image[part], patch, where=mine)

    def round(self, number: int, thing: Round, K: Float64, R: Float64, t: Float64) -> tuple[Window, Float32] | None:
        height, width = self.image.shape
        to_world = np.linalg.inv(thing.to_local)
        signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float64)
        corners = (signs @ to_world.T + thing.centre) @ R.T + t
        if (corners[:, 2] < NEAR).any():
            return None
        pixels = corners @ K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        window = _window(pixels.min(axis=0), pixels.max(axis=0), (width, height))
        if window is None:
            return None
        x0, x1, y0, y1 = window
        eye = thing.to_local @ (-R.T @ t - thing.centre)
        D = thing.to_local @ R.T @ np.linalg.inv(K)
        u = np.arange(x0, x1, dtype=np.float64)
        v = np.arange(y0, y1, dtype=np.float64)[:, None]
        ray = np.stack([(D[k, 0] * u + (D[k, 1] * v + D[k, 2])) for k in range(3)])
        used = slice(0, 2) if thing.tube else slice(0, 3)
        a = np.square(ray[used]).sum(axis=0)
        b = np.tensordot(eye[used], ray[used], 1)
        c = float(eye[used] @ eye[used]) - 1
        square = b * b - a * c
        root = np.sqrt(np.maximum(square, 0))
        depth = (-b - root) / a
        hit = square > 0
        if thing.tube:
            # Through the open end to the inside of the far wall.
            depth = np.where(np.abs(eye[2] + depth * ray[2]) <= 1, depth, (root - b) / a)
            hit &= np.abs(eye[2] + depth * ray[2]) <= 1
        hit &= depth > NEAR
        inverse = np.where(hit, 1 / np.where(hit, depth, 1), 0).astype(np.float32)
        nearer = inverse > self.inverse_depth[y0:y1, x0:x1]
        np.copyto(self.inverse_depth[y0:y1, x0:x1], inverse, where=nearer)
        np.copyto(self.surface[y0:y1, x0:x1], np.uint8(number), where=nearer)
        return window, (eye[:, None, None] + depth * ray).astype(np.float32)

    def paint_round(self, number: int, thing: Round, window: Window, local: Float32) -> None:
        x0, x1, y0, y1 = window
        mine = self.surface[y0:y1, x0:x1] == number
        surface = thing.surface
        pixels = float(max(x1 - x0, y1 - y0))
        across = surface.levels[0].shape[1] * surface.repeats[0] / 3.0
        level = int(np.clip(round(np.log2(max(across / pixels, 1.0)) - SHARPNESS), 0, len(surface.levels) - 1))
        texture = surface.levels[level]
        height, width = texture.shape
        s = np.arctan2(local[1], local[0]) / np.float32(2 * np.pi)
        t = local[2] * np.float32(0.5) if thing.tube else np.arcsin(np.clip(local[2], -1, 1)) / np.float32(np.pi)
        s = np.mod(s * np.float32(surface.repeats[0]) + np.float32(surface.shift[0]), 1) * np.float32(width)
        t = np.mod(t * np.float32(surface.repeats[1]) + np.float32(surface.shift[1]), 1) * np.float32(height)
        patch = cv2.remap(texture, s, t, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        # Lit from above and one side, in local coordinates: the same from every view.
        shade = 0.75 + 0.2 * local[2] + 0.2 * local[0] if not thing.tube else 0.8 + 0.25 * local[0]
        patch = np.clip(patch * (shade * np.float32(surface.gain)) + np.float32(surface.bias), 0, 255).astype(np.uint8)
        np.copyto(self.image[y0:y1, x0:x1], patch, where=mine)
