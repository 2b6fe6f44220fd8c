"""Textured parallelograms, tubes and ellipsoids, drawn with a z-buffer by a pinhole camera.

A face's points are o + s·eu + t·ev. With M = [eu ev o] in camera coordinates and G = M⁻¹ K⁻¹, a pixel p has
G p = (s, t, 1) / depth. So its edges are lines in the image, inverse depth and texture coordinates times inverse depth
are affine in the pixel, nothing has to be clipped, and geometry is exact to the last bits of float32. First all
surfaces are drawn into the z-buffer, then the visible ones are textured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.worlds.texturing import Float32, Float64, Image, Material, Sampling, mipmapped

NEAR = 0.02  # m, near plane: anything closer is not seen
_MARGIN = 1e-7  # px by which faces extend beyond their edges, so that no pixel is between two
_LIGHTMAP_AREA = 0.01  # of the image; smaller faces are lit evenly

Numbers = NDArray[np.unsignedinteger]
Part = tuple[slice, slice]


@dataclass(frozen=True)
class Round:
    """An ellipsoid, or an open tube about its local z axis; not seen by a camera in or before its bounding box.

    Attributes:
        centre: (3,), in the world.
        to_local: (3, 3), maps world offsets from the centre to the frame of the unit ball, or of x² + y² = 1, |z| <= 1.
        tube: whether it is the tube.
        material: its appearance; s goes once around.
    """

    centre: Float64
    to_local: Float64
    tube: bool
    material: Material


@dataclass
class Surfaces:
    """Faces and round objects in a world.

    A face is visible from the side from which s goes to the right and t down (ev × eu points there), or from both.

    Attributes:
        corners: of each face (3, 3): its corner o and its sides eu and ev, which are its rows.
        materials, both_sides: of each face.
        rounds: the other objects.
    """

    corners: list[Float64] = field(default_factory=list)
    materials: list[Material] = field(default_factory=list)
    both_sides: list[bool] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def quad(self, o: Float64, eu: Float64, ev: Float64, material: Material, both_sides: bool = False) -> None:
        """Add the parallelogram from `o` along `eu` and `ev`."""
        self.corners.append(np.array([o, eu, ev]))
        self.materials.append(material)
        self.both_sides.append(both_sides)

    def box(self, centre: Float64, half: Float64, R: Float64, materials: list[Material], bottom: bool = False) -> None:
        """Add a box with half sizes along the columns of R; its faces use `materials` in rotation."""
        x, y, z = (R[:, k] * half[k] for k in range(3))
        faces = [(across, -z, n) for across, n in ((y, x), (-y, -x), (-x, y), (x, -y))] + [(y, x, z)]
        if bottom:
            faces.append((x, y, -z))
        for number, (across, up, n) in enumerate(faces):
            self.quad(centre + n - across - up, 2 * across, 2 * up, materials[number % len(materials)])

    def faces(self, numbers: NDArray[np.intp]) -> Surfaces:
        """Some of the faces."""
        parts = ([of[k] for k in numbers] for of in (self.corners, self.materials, self.both_sides))
        return Surfaces(*parts)


@dataclass(frozen=True)
class Raster:
    """A rendered view.

    Attributes:
        image: (H, W) gray in [0, 255], 0 where nothing is; uint8, or float32 if it is sampled smoothly.
        inverse_depth: (H, W) float32, one over the depth along the optical axis of the pixel's centre; 0: nothing.
        surface: (H, W) number of the surface at the pixel's centre: 1 for the first face, rounds last; 0: nothing.
    """

    image: NDArray[Any]
    inverse_depth: Float32
    surface: Numbers

    @property
    def depth(self) -> Float32:
        """(H, W) float32 along the optical axis, inf where nothing is."""
        with np.errstate(divide="ignore"):
            return np.float32(1) / self.inverse_depth


def render(
    surfaces: Surfaces, K: Float64, size: tuple[int, int], T_camera_world: Float64, sampling: Sampling
) -> Raster:
    """The view of a pinhole camera.

    Args:
        surfaces: of the world.
        K: (3, 3) camera matrix; pixel (0, 0) is the centre of the top-left pixel.
        size: (width, height) in pixels.
        T_camera_world: (4, 4), rigid.
        sampling: of the image; depth and surface are those of the pixels' centres.
    """
    n = sampling.samples
    canvas = _Canvas(surfaces, K, size, T_camera_world)
    if n == 1:
        return Raster(canvas.painted(sampling), canvas.inverse_depth, canvas.surface)
    finer = np.array([[n, 0, (n - 1) / 2], [0, n, (n - 1) / 2], [0, 0, 1]]) @ K
    large = _Canvas(surfaces, finer, (n * size[0], n * size[1]), T_camera_world).painted(sampling)
    image = np.asarray(cv2.resize(large, size, interpolation=cv2.INTER_AREA), large.dtype)
    return Raster(image, canvas.inverse_depth, canvas.surface)


class _Canvas:
    """What is visible at each pixel of one view."""

    def __init__(self, surfaces: Surfaces, K: Float64, size: tuple[int, int], T_camera_world: Float64) -> None:
        width, height = size
        self._surfaces = surfaces
        faces = len(surfaces.corners)
        self.inverse_depth = np.zeros((height, width), np.float32)
        self.surface: Numbers = np.zeros((height, width), np.min_scalar_type(faces + len(surfaces.rounds)))
        R, t = T_camera_world[:3, :3], T_camera_world[:3, 3]
        frames = np.array(surfaces.corners).reshape(-1, 3, 3) @ R.T
        frames[:, 0] += t
        seen, top, bottom = _in_view(frames, np.array(surfaces.both_sides, bool), K, height)
        # The part of the image that each surface was drawn in; with G of a face, or the hits on a round object.
        self._drawn: dict[int, tuple[Part, Float64 | Float32]] = {}
        G = np.linalg.inv(frames[seen][:, [1, 2, 0]].transpose(0, 2, 1)) @ np.linalg.inv(K)
        first, last = _spans(G, top, bottom, width)
        ends = np.cumsum(bottom - top).tolist()
        for k, g, y0, start, end in zip(seen.tolist(), G, top.tolist(), [0, *ends], ends, strict=False):
            self._face(k + 1, g, y0, first[start:end], last[start:end])
        for k, thing in enumerate(surfaces.rounds):
            self._round(faces + 1 + k, thing, K, R, t)

    def _face(self, number: int, G: Float64, y0: int, first: NDArray[np.int32], last: NDArray[np.int32]) -> None:
        """Draw a face whose pixels in the rows from `y0` on are those from `first` up to `last`."""
        rows = np.flatnonzero(last > first)
        if not len(rows):
            return
        first, last = first[rows[0] : rows[-1] + 1, None], last[rows[0] : rows[-1] + 1, None]
        y0 += int(rows[0])
        x0, x1 = int(first.min()), int(last.max())
        u = np.arange(x0, x1, dtype=np.int32)
        v = np.arange(y0, y0 + len(first), dtype=np.float64)[:, None]
        inverse = (G[2, 0] * u).astype(np.float32) + (G[2, 1] * v + G[2, 2]).astype(np.float32)
        part = (slice(y0, y0 + len(first)), slice(x0, x1))
        nearer = inverse > self.inverse_depth[part]
        nearer &= u >= first
        nearer &= u < last
        self._draw(number, part, inverse, nearer, G)

    def _draw(
        self, number: int, part: Part, inverse: Float32, nearer: NDArray[np.bool_], found: Float64 | Float32
    ) -> None:
        self._drawn[number] = part, found
        np.copyto(self.inverse_depth[part], inverse, where=nearer)
        np.copyto(self.surface[part], self.surface.dtype.type(number), where=nearer)

    def _round(self, number: int, thing: Round, K: Float64, R: Float64, t: Float64) -> None:
        height, width = self.surface.shape
        to_world = np.linalg.inv(thing.to_local)
        signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float64)
        corners = (signs @ to_world.T + thing.centre) @ R.T + t
        if (corners[:, 2] < NEAR).any():
            return
        pixels = corners @ K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        x0, y0 = np.ceil(np.clip(pixels.min(axis=0), 0, (width, height))).astype(int)
        x1, y1 = np.floor(np.clip(pixels.max(axis=0), -1, (width - 1, height - 1))).astype(int) + 1
        if x1 <= x0 or y1 <= y0:
            return
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
        part = (slice(y0, y1), slice(x0, x1))
        local = (eye[:, None, None] + depth * ray).astype(np.float32)
        self._draw(number, part, inverse, inverse > self.inverse_depth[part], local)

    def painted(self, sampling: Sampling) -> Image | Float32:
        """The gray values of what is visible."""
        image: Image | Float32 = np.zeros(self.surface.shape, np.float32 if sampling.smooth else np.uint8)
        faces = len(self._surfaces.corners)
        counts = np.bincount(self.surface.ravel(), minlength=1 + faces + len(self._surfaces.rounds))
        for number, (part, found) in self._drawn.items():
            if not counts[number]:
                continue
            mine = self.surface[part] == number
            patch: Image | Float32
            if number > faces:
                patch = _painted_round(self._surfaces.rounds[number - 1 - faces], found, sampling)
            else:
                x, y, columns, rows = cv2.boundingRect(mine.view(np.uint8))
                mine = mine[y : y + rows, x : x + columns]
                x, y = x + part[1].start, y + part[0].start
                part = (slice(y, y + rows), slice(x, x + columns))
                G = found @ np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])
                patch = self._painted_face(self._surfaces.materials[number - 1], G, part, mine, sampling)
            np.copyto(image[part], patch, where=mine)
        return image

    def _painted_face(
        self, surface: Material, G: Float64, part: Part, mine: NDArray[np.bool_], sampling: Sampling
    ) -> Image | Float32:
        height, width = surface.levels[0].shape
        A = np.array(
            [
                [width * surface.repeats[0], 0, width * surface.shift[0] - 0.5],
                [0, height * surface.repeats[1], height * surface.shift[1] - 0.5],
                [0, 0, 1],
            ]
        )
        patch = mipmapped(surface, A @ G, self.inverse_depth[part], mine, sampling)
        if patch.dtype != np.uint8 and not sampling.smooth:
            patch = np.asarray(cv2.convertScaleAbs(patch), np.uint8)
        if surface.gain != 1 or surface.bias != 0:
            patch = np.asarray(cv2.convertScaleAbs(patch, alpha=surface.gain, beta=surface.bias), np.uint8)
        if surface.light is not None and mine.size > _LIGHTMAP_AREA * self.surface.size:
            high, wide = surface.light.shape
            L = np.array([[wide, 0, -0.5], [0, high, -0.5], [0, 0, 1]]) @ G
            flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, mine.shape[::-1]
            light = cv2.warpPerspective(surface.light, L, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
            patch = np.asarray(cv2.multiply(patch, light, scale=1 / 128), np.uint8)
        return patch


def _in_view(
    frames: Float64, both_sides: NDArray[np.bool_], K: Float64, height: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The numbers of the N faces that may be seen, and for each the rows from the first to the one after the last."""
    facing = np.linalg.det(frames[:, [1, 2, 0]])
    o, eu, ev = frames.transpose(1, 0, 2)
    corners = np.stack([o, o + eu, o + eu + ev, o + ev], axis=1)
    z = corners[..., 2]
    v = corners @ K[1]
    # Faces that extend behind the camera may be in any row.
    before = (z >= NEAR).all(axis=1, keepdims=True)
    v /= np.where(before, z, 1)
    top = np.ceil(np.clip(np.where(before, v, 0).min(axis=1) - _MARGIN, 0, height)).astype(np.intp)
    bottom = np.floor(np.clip(np.where(before, v, height).max(axis=1) + _MARGIN, -1, height - 1)).astype(np.intp) + 1
    seen = np.where(both_sides, np.abs(facing), facing) > 1e-9
    seen &= (z > NEAR).any(axis=1) & (bottom > top)
    numbers = np.flatnonzero(seen)
    return numbers, top[numbers], bottom[numbers]


def _spans(
    G: Float64, top: NDArray[np.intp], bottom: NDArray[np.intp], width: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The pixels from the first to the one after the last in each row of each of N faces, one face after the other.

    Args:
        G: (N, 3, 3) of the faces.
        top, bottom: (N,) rows from the first to the one after the last.
    """
    # Lines a u + b v + c >= 0: s and t from 0 to 1, and the near plane.
    lines = np.stack([G[:, 0], G[:, 1], G[:, 2] - G[:, 0], G[:, 2] - G[:, 1], [0, 0, 1 / NEAR] - G[:, 2]], axis=1)
    lines[..., 2] += _MARGIN * np.hypot(lines[..., 0], lines[..., 1])
    lines[..., 0][lines[..., 0] == 0] = 1e-300
    counts = bottom - top
    v = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - bottom, counts)
    a, b, c = np.repeat(lines, counts, axis=0).transpose(2, 1, 0)
    with np.errstate(over="ignore"):
        ends = -(b * v + c) / a
    left = np.where(a > 0, ends, -np.inf).max(axis=0, initial=-np.inf)
    right = np.where(a < 0, ends, np.inf).min(axis=0, initial=np.inf)
    first = np.ceil(np.clip(left, 0, width)).astype(np.int32)
    return first, np.floor(np.clip(right, -1, width - 1)).astype(np.int32) + np.int32(1)


def _painted_round(thing: Round, local: Float64 | Float32, sampling: Sampling) -> Image:
    surface = thing.material
    pixels = float(max(local.shape[1:]))
    across = surface.levels[0].shape[1] * surface.repeats[0] / 3.0
    level = int(np.clip(round(np.log2(max(across / pixels, 1.0)) + sampling.bias), 0, len(surface.levels) - 1))
    texture = surface.levels[level]
    height, width = texture.shape
    s = np.arctan2(local[1], local[0]) / np.float32(2 * np.pi)
    t = local[2] * np.float32(0.5) if thing.tube else np.arcsin(np.clip(local[2], -1, 1)) / np.float32(np.pi)
    s = np.mod(s * np.float32(surface.repeats[0]) + np.float32(surface.shift[0]), 1) * np.float32(width)
    t = np.mod(t * np.float32(surface.repeats[1]) + np.float32(surface.shift[1]), 1) * np.float32(height)
    patch = cv2.remap(texture, s, t, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    # Lit from above and one side, in local coordinates: the same from every view.
    shade = 0.75 + 0.2 * local[2] + 0.2 * local[0] if not thing.tube else 0.8 + 0.25 * local[0]
    patch = patch * (shade * np.float32(surface.gain)) + np.float32(surface.bias)
    return np.asarray(np.clip(patch, 0, 255), np.uint8)
