"""Buildings with look-alike places (see `floor_plan`), rendered from any pose in two lights."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import inverse
from loftr_ros.worlds.floor_plan import DOOR, HEIGHT, ROOMS, STREAM, WALL, Zone, floor_plan, furnish
from loftr_ros.worlds.rasterizer import NEAR, Surfaces, render
from loftr_ros.worlds.room import Solid, Surface, lit
from loftr_ros.worlds.textures import noise, paint
from loftr_ros.worlds.texturing import Sampling, material

_EXPOSURE = 1.3
_CANVAS = {  # m, height and width of the prints from which walls and floors are cut
    **dict.fromkeys(("plaster", "bricks", "stone"), (HEIGHT, 7.4)),
    **dict.fromkeys(("wood", "tiles", "ceiling"), (6.4, 7.4)),
}

Array = NDArray[np.float64]


class Building:
    """Eight rooms along a corridor, in two lights: with the lamps, and by day with half of them.

    Creating it takes some 15 s and 0.5 GB.

    Attributes:
        zones: the rooms, then the corridor.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.zones = floor_plan(seed)
        solids: list[list[Solid]] = []
        surfaces: list[list[Surface]] = []
        for number in range(len(self.zones)):
            things = furnish(self.zones, number, seed)
            solids.append(things.solids)
            surfaces.append(things.surfaces)
        self._zone = np.repeat(np.arange(len(self.zones)), [len(part) for part in surfaces])
        painter = _Painter(seed)
        self._surfaces = Surfaces(), Surfaces()
        for number, zone in enumerate(self.zones):
            for surface in surfaces[number]:
                albedo = painter.albedo(surface)
                for kind in (0, 1):
                    bright = albedo * _light(surface, solids[number], zone, kind)
                    # Compressed highlights, as on film: surfaces close to a lamp keep their texture.
                    texture = (255 * (1 - np.exp(-_EXPOSURE * bright))).astype(np.uint8)
                    self._surfaces[kind].quad(surface.origin, surface.side_s, surface.side_t, material(texture))
        o, s, t = np.array(self._surfaces[0].corners).transpose(1, 0, 2)
        self._corners = np.stack([o, o + s, o + s + t, o + t], axis=1)

    def zone_at(self, position: Array) -> int:
        """Number of the zone that contains a (3,) position, or of the nearest one."""
        gaps = [np.abs(position[:2] - z.centre) - (z.high - z.low) / 2 for z in self.zones]
        return int(np.argmin([gap.max() for gap in gaps]))

    def render(
        self, matrix: Array, size: tuple[int, int], pose: Array, light: int = 0, supersample: int = 2
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The view of a camera, see `rasterizer.render`.

        Args:
            matrix: (3, 3) camera matrix.
            size: (width, height) in pixels.
            pose: (4, 4) T_world_camera.
            light: 0 for the lamps, 1 for daylight from one side and half of the lamps.
            supersample: samples a pixel and axis.

        Returns:
            Image (H, W) float32 in [0, 255], and depth (H, W) float32 in metres.
        """
        visible = self._surfaces[light].faces(self._seen(matrix, size, pose))
        view = render(visible, matrix, size, inverse(pose), Sampling(supersample))
        return view.image, view.depth

    def _seen(self, matrix: Array, size: tuple[int, int], pose: Array) -> NDArray[np.intp]:
        """Rectangles that may be in view: those of the zone, and those of other zones visible through doorways."""
        boxes = _boxes(self._corners, matrix, pose)
        here = self.zone_at(pose[:3, 3])
        window = np.array([0.0, 0.0, *size])
        doors = {n: _boxes(_doorway(z.door), matrix, pose)[0] for n, z in enumerate(self.zones) if z.door is not None}
        windows = {here: window}
        if here != ROOMS:
            windows[ROOMS] = window = _overlap(window, doors[here])
        for number, door in doors.items():
            if number != here:
                windows[number] = _overlap(window, door)
        limits = np.array([windows[n] for n in range(len(self.zones))])[self._zone]
        common = np.concatenate([np.maximum(boxes[:, :2], limits[:, :2]), np.minimum(boxes[:, 2:], limits[:, 2:])], 1)
        return np.flatnonzero((common[:, 2:] > common[:, :2]).all(axis=1))


def _overlap(one: Array, two: Array) -> Array:
    return np.asarray(np.concatenate([np.maximum(one[:2], two[:2]), np.minimum(one[2:], two[2:])]))


def _doorway(door: Array) -> Array:
    """(1, 8, 3) corners of an open doorway, through the whole wall."""
    half = DOOR[0] / 2
    spread = np.array([[x, y, z] for x in (-half, half) for y in (-WALL, WALL) for z in (0, DOOR[1])])
    return np.asarray(np.array([*door, 0.0]) + spread)[None]


def _boxes(corners: Array, matrix: Array, pose: Array) -> Array:
    """(M, 4) bounds (left, top, right, bottom) of (M, C, 3) corners in the image; the whole image if some are
    behind.
    """
    local = (corners - pose[:3, 3]) @ pose[:3, :3]
    ahead = local[..., 2] > NEAR
    pixels = local @ matrix.T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = pixels[..., :2] / pixels[..., 2:]
    boxes = np.concatenate([pixels.min(axis=1) - 1, pixels.max(axis=1) + 1], axis=1)
    boxes[~ahead.all(axis=1)] = (-1e9, -1e9, 1e9, 1e9)
    boxes[~ahead.any(axis=1)] = (1e9, 1e9, -1e9, -1e9)
    return np.asarray(boxes)


class _Painter:
    """Paints surfaces; each print is painted once for all places where it hangs."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._own = np.random.default_rng([STREAM, seed, 1])
        self._prints: dict[tuple[str, int, int], NDArray[np.float32]] = {}

    def albedo(self, surface: Surface) -> NDArray[np.float32]:
        height, width = surface.shape
        style, _, number = surface.style.partition("#")
        if not number:
            painting = paint(style, height, width, surface.texel, self._own)
        else:
            # Walls and floors are cut from the corner of one large print, whatever their size.
            canvas = [round(side / surface.texel) for side in _CANVAS[style]] if surface.texel >= 0.004 else [0, 0]
            key = (surface.style, max(height, canvas[0]), max(width, canvas[1]))
            if key not in self._prints:
                rng = np.random.default_rng([STREAM, self._seed, zlib.crc32(surface.style.encode())])
                self._prints[key] = paint(style, key[1], key[2], surface.texel, rng)
            painting = self._prints[key][:height, :width]
        # Stains and wear, so that no two surfaces of a kind are equal in every pixel.
        rows, columns = height // 4 + 2, width // 4 + 2
        stains = noise(rows, columns, 0.4 / (4 * surface.texel), 4, self._own)
        stains = np.asarray(cv2.resize(stains, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        return np.asarray(painting * (1 + np.float32(0.1) * stains))


def _light(surface: Surface, solids: list[Solid], zone: Zone, kind: int) -> NDArray[np.float32]:
    """Light on a surface of a zone; see `room.lit`."""
    length = zone.high - zone.low
    along = length[0] > length[1]
    count = max(2, round(length.max() / 4))
    parts = (np.arange(count) + 0.5) / count
    places = [zone.low + length * ((part, 0.5) if along else (0.5, part)) for part in parts]
    # By day: more ambient light and more from +x and +y, and every other lamp is off.
    lamps = [np.array([*place, HEIGHT - 0.25]) for place in (places if kind == 0 else places[::2])]

    def ambient(normal: Array) -> float:
        day = float(kind) * (0.18 + 0.14 * normal[0] + 0.1 * normal[1])
        return float(0.44 * (1 + 0.25 * normal[2] + 0.1 * normal[0]) + day)

    return lit(surface, solids, lamps, 3.5, ambient, 0.16, 8.0)
