"""Buildings to get lost in: a long corridor with equal doors, and rooms on both sides that look like each other.

World frame: metres, z up, the corridor along x from the origin. All things come from a small stock that belongs to the
building: the same wallpaper, the same pieces of furniture and prints of the same posters stand in several rooms. Twins
are rooms of the same layout: the same walls, floor and furniture at the same places within some centimetres.

No two views are the same in every pixel, else telling them apart would be no fair question: small things, books and
most pictures differ also between twins, and every surface has stains of its own.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.rasterizer import NEAR, Atlas, Rectangles, render
from loftr_ros.evaluation.room import Furniture, Solid, Surface, blocked
from loftr_ros.evaluation.textures import noise, paint

HEIGHT = 2.8  # m, of all ceilings
ROOMS = 8
TWINS = ((1, 6), (2, 4))  # rooms of one layout
HALF_CORRIDOR = 1.2  # m
WALL = 0.2  # m, thickness
_DOOR = (1.3, 2.2)  # m, width and height of an open doorway
_STREAM = 0x9E1D  # keeps the random numbers apart from those of other scenes with the same seed
_LIGHT_CELL = 0.16  # m
_EXPOSURE = 1.3
_POSTERS = ((0.5, 0.7), (0.9, 0.6), (0.7, 1.0))  # m, width and height
_CANVAS = {  # m, height and width of prints that walls and floors are cut from
    **dict.fromkeys(("plaster", "bricks", "stone"), (HEIGHT, 7.4)),
    **dict.fromkeys(("wood", "tiles", "ceiling"), (6.4, 7.4)),
}
_MODELS = {  # m, width, depth and height; look of the front and of the rest
    "bookcase": ((0.9, 0.34, 1.9), ("books", "wood#3")),
    "cupboard": ((1.1, 0.5, 0.9), ("blobs#4", "wood#3")),
    "desk": ((1.3, 0.6, 0.74), ("wood#5", "wood#5")),
    "locker": ((0.8, 0.5, 1.8), ("collage#6", "blobs#7")),
    "crate": ((0.6, 0.5, 0.45), ("collage#9", "wood#5")),
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Zone:
    """A room or the corridor.

    Attributes:
        low, high: (2,) corners of the floor, metres.
        door: (2,) middle of the doorway to the corridor, in the room's wall; None for the corridor.
        layout: rooms with the same number are twins; -1 for the corridor.
    """

    low: Array
    high: Array
    door: Array | None
    layout: int

    @property
    def centre(self) -> Array:
        return np.asarray((self.low + self.high) / 2)


class Building:
    """Eight rooms along a corridor, in two lights: with the lamps, and by day with half of them.

    Building it takes some 20 seconds and 600 MB.

    Attributes:
        zones: the rooms, then the corridor.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.zones = _plan(np.random.default_rng([_STREAM, seed]))
        solids: list[list[Solid]] = []
        surfaces: list[list[Surface]] = []
        for number in range(len(self.zones)):
            things = _corridor(self.zones, seed) if number == ROOMS else _room(self.zones[number], number, seed)
            solids.append(things.solids)
            surfaces.append(things.surfaces)
        flat = [surface for part in surfaces for surface in part]
        self._zone = np.repeat(np.arange(len(self.zones)), [len(part) for part in surfaces])
        self._rectangles = Rectangles(
            np.array([s.origin for s in flat]),
            np.array([s.side_s for s in flat]),
            np.array([s.side_t for s in flat]),
            np.array([s.texel for s in flat]),
        )
        painter = _Painter(seed)
        textures: tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]] = ([], [])
        for number, zone in enumerate(self.zones):
            for surface in surfaces[number]:
                albedo = painter.albedo(surface)
                for kind in (0, 1):
                    lit = albedo * _light(surface, solids[number], zone, kind, albedo.shape)
                    textures[kind].append((255 * (1 - np.exp(-_EXPOSURE * lit))).astype(np.uint8))
        self._atlases = [Atlas(part) for part in textures]

    def zone_at(self, position: Array) -> int:
        """Number of the zone that a (3,) position is in, or nearest to."""
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
        seen = self._seen(matrix, size, pose)
        whole = self._rectangles
        some = Rectangles(whole.origin[seen], whole.side_s[seen], whole.side_t[seen], whole.texel[seen])
        atlas = copy.copy(self._atlases[light])
        atlas.corner, atlas.size = atlas.corner[seen], atlas.size[seen]
        return render(some, atlas, matrix, size, pose, supersample)

    def _seen(self, matrix: Array, size: tuple[int, int], pose: Array) -> NDArray[np.intp]:
        """Rectangles that may be in view: those of the zone, and of other zones what is seen through doorways."""
        r = self._rectangles
        corners = np.stack(
            [r.origin, r.origin + r.side_s, r.origin + r.side_s + r.side_t, r.origin + r.side_t], axis=1
        )
        boxes = _boxes(corners, matrix, pose)
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
    return np.concatenate([np.maximum(one[:2], two[:2]), np.minimum(one[2:], two[2:])])


def _doorway(door: Array) -> Array:
    """(1, 8, 3) corners of an open doorway, through the whole wall."""
    half = _DOOR[0] / 2
    spread = np.array([[x, y, z] for x in (-half, half) for y in (-WALL, WALL) for z in (0, _DOOR[1])])
    return (np.array([*door, 0.0]) + spread)[None]


def _boxes(corners: Array, matrix: Array, pose: Array) -> Array:
    """(M, 4) bounds (left, top, right, bottom) of (M, C, 3) corners in the image; all of it where some are behind."""
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
    """Paints surfaces; a style with a number, such as `poster#3`, is a print that is the same wherever it hangs."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._own = np.random.default_rng([_STREAM, seed, 1])
        self._prints: dict[tuple[str, int, int], NDArray[np.float32]] = {}

    def albedo(self, surface: Surface) -> NDArray[np.float32]:
        lengths = [float(np.linalg.norm(side)) for side in (surface.side_t, surface.side_s)]
        height, width = (max(8, round(length / surface.texel)) for length in lengths)
        style, _, number = surface.style.partition("#")
        if not number:
            painting = paint(style, height, width, surface.texel, self._own)
        else:
            # Walls and floors are pieces of one large print from its corner on, whatever their size.
            canvas = [round(side / surface.texel) for side in _CANVAS[style]] if surface.texel >= 0.004 else [0, 0]
            key = (surface.style, max(height, canvas[0]), max(width, canvas[1]))
            if key not in self._prints:
                rng = np.random.default_rng([_STREAM, self._seed, zlib.crc32(surface.style.encode())])
                self._prints[key] = paint(style, key[1], key[2], surface.texel, rng)
            painting = self._prints[key][:height, :width]
        # Stains and wear: no two of a kind are the same in every pixel.
        rows, columns = height // 4 + 2, width // 4 + 2
        stains = noise(rows, columns, 0.4 / (4 * surface.texel), 4, self._own)
        stains = np.asarray(cv2.resize(stains, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        return np.asarray(painting * (1 + np.float32(0.1) * stains))


def _light(
    surface: Surface, solids: list[Solid], zone: Zone, kind: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """(height, width) float32 factors for the albedo."""
    length_t, length_s = np.linalg.norm(surface.side_t), np.linalg.norm(surface.side_s)
    rows, columns = int(length_t / _LIGHT_CELL) + 2, int(length_s / _LIGHT_CELL) + 2
    t, s = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    normal = np.cross(surface.side_t, surface.side_s)
    normal /= np.linalg.norm(normal)
    points = surface.origin + s.reshape(-1, 1) * surface.side_s + t.reshape(-1, 1) * surface.side_t + 0.004 * normal
    length = zone.high - zone.low
    along = length[0] > length[1]
    count = max(2, round(length.max() / 4))
    parts = (np.arange(count) + 0.5) / count
    places = [zone.low + length * ((part, 0.5) if along else (0.5, part)) for part in parts]
    # By day: more light from everywhere and from +x and +y, and every other lamp is off.
    lamps = [np.array([*place, HEIGHT - 0.25]) for place in (places if kind == 0 else places[::2])]
    day = float(kind) * (0.18 + 0.14 * normal[0] + 0.1 * normal[1])
    total = np.full(len(points), 0.44 * (1 + 0.25 * normal[2] + 0.1 * normal[0]) + day)
    for lamp in lamps:
        to_lamp = lamp - points
        square = np.maximum((to_lamp**2).sum(axis=1), 0.2)
        cosines = np.maximum(to_lamp @ normal, 0) * np.maximum(to_lamp[:, 2], 0) / square
        near = np.flatnonzero((cosines > 0) & (square < 64))
        if len(near):
            clear = near[~blocked(points[near], lamp, solids)]
            total[clear] += 3.5 * cosines[clear] / square[clear] ** 0.5
    grid = total.reshape(rows, columns).astype(np.float32)
    return np.asarray(cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float32)


def _plan(rng: np.random.Generator) -> list[Zone]:
    """Four rooms on either side of the corridor."""
    sizes = np.column_stack([rng.uniform(6.0, 7.4, ROOMS), rng.uniform(5.2, 6.4, ROOMS)])
    doors = rng.uniform(-1.2, 1.2, ROOMS)  # of the room's middle, seen from the corridor
    layouts = np.arange(ROOMS)
    for one, other in TWINS:
        sizes[other], doors[other], layouts[other] = sizes[one], doors[one], layouts[one]
    zones = []
    length = 0.0
    for side in (1.0, -1.0):
        x = 0.6
        for number in range(0, ROOMS // 2) if side > 0 else range(ROOMS // 2, ROOMS):
            width, depth = sizes[number]
            near = side * (HALF_CORRIDOR + WALL)
            bounds = sorted([near, near + side * depth])
            door = np.array([x + width / 2 + side * doors[number], side * (HALF_CORRIDOR + WALL / 2)])
            low, high = np.array([x, bounds[0]]), np.array([x + width, bounds[1]])
            zones.append(Zone(low, high, door, int(layouts[number])))
            x += width + WALL
        length = max(length, x)
    zones.append(Zone(np.array([0.0, -HALF_CORRIDOR]), np.array([length + 0.6, HALF_CORRIDOR]), None, -1))
    return zones


def _wall(things: Furniture, start: Array, along: Array, style: str, gaps: list[float]) -> None:
    """A wall from `start` on the floor, to the right as seen from inside, with doorways at distances `gaps` from there.

    What is between two doorways is the same print each time.
    """
    length = float(np.linalg.norm(along))
    unit, up = along / length, np.array([0.0, 0, 1])
    at = 0.0
    for gap in [*sorted(gaps), None]:
        end = length if gap is None else gap - _DOOR[0] / 2
        begin = start + at * unit + HEIGHT * up
        things.surfaces.append(Surface(begin, (end - at) * unit, -HEIGHT * up, f"{style}{'|' if at else ''}", 0.004))
        if gap is not None:
            over = start + end * unit + HEIGHT * up
            lintel = -(HEIGHT - _DOOR[1]) * up
            things.surfaces.append(Surface(over, _DOOR[0] * unit, lintel, f"{style}over", 0.004))
            at = end + _DOOR[0]


def _shell(things: Furniture, low: Array, high: Array, walls: list[str], floor: str, gaps: list[list[float]]) -> None:
    """Floor, ceiling and the walls at -y, +x, +y and -x, each with its doorways."""
    (x0, y0), (x1, y1) = low, high
    x, y, up = (np.array(axis, np.float64) for axis in ((x1 - x0, 0, 0), (0, y1 - y0, 0), (0, 0, HEIGHT)))
    corner = np.array([x0, y0, 0.0])
    things.surfaces += [
        Surface(corner + y, x, -y, floor, 0.005),
        Surface(corner + up, x, y, "ceiling#0", 0.008),
    ]
    for style, (start, along), gap in zip(
        walls, ((corner + x, -x), (corner + x + y, -y), (corner + y, x), (corner, y)), gaps, strict=True
    ):
        _wall(things, start, along, style, gap)


def _room(zone: Zone, number: int, seed: int) -> Furniture:
    """A room's things; `layout` decides what is the same in twins, `small` what differs."""
    layout = np.random.default_rng([_STREAM, seed, 2, zone.layout])
    small = np.random.default_rng([_STREAM, seed, 3, number])
    width, depth = zone.high - zone.low
    things = Furniture()
    # In its own frame the door is in the wall at -y, and the origin in the middle.
    assert zone.door is not None
    turned = zone.centre[1] < 0
    door = float(zone.door[0] - zone.centre[0]) * (-1 if turned else 1)
    wallpaper = str(layout.choice(["plaster#0", "bricks#1", "stone#2", "plaster#3"]))
    other = str(layout.choice(["plaster#0", "plaster#3", "bricks#1"]))
    walls = [f"{style}{'abcd'[k]}" for k, style in enumerate((wallpaper, other, wallpaper, other))]
    floor = str(layout.choice(["wood#0", "tiles#1", "wood#2"]))
    half = np.array([width / 2, depth / 2])
    _shell(things, -half, half, walls, floor, [[width / 2 - door], [], [], []])
    for turn, length, away in ((0.0, width, depth / 2), (-90.0, depth, width / 2), (90.0, depth, width / 2)):
        _furnish_wall(things, layout, small, turn, length, away)
    _furnish_wall(things, layout, small, 180.0, width, depth / 2, door)
    _island(things, layout, small)
    _jamb(things, door, -depth / 2)
    return _placed(things, zone.centre, turned)


def _furnish_wall(
    things: Furniture,
    layout: np.random.Generator,
    small: np.random.Generator,
    yaw: float,
    length: float,
    away: float,
    door: float | None = None,
) -> None:
    """Furniture along one wall, at most 0.65 m deep, and pictures above it; `door` along the wall stays free.

    How often `layout` is asked does not depend on `small`.
    """
    angle = np.radians(yaw)
    along_wall, to_wall = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])

    def put(
        along: float, off: float, z: float, size: Array, styles: str | tuple[str, str], turn: float, texel: float
    ) -> None:
        x, y = along * along_wall + (away - off) * to_wall
        wide, deep, tall = (float(value) for value in size)
        things.box((float(x), float(y), z), (wide, deep, tall), styles, yaw + turn, 0.0, texel, bool(turn))

    at = -length / 2 + 0.65
    while at < length / 2 - 1.6:
        name = str(layout.choice(list(_MODELS)))
        model, styles = _MODELS[name]
        size = np.array(model)
        centre = at + size[0] / 2
        at += size[0] + layout.uniform(0.15, 0.9)
        if door is not None and abs(centre + door) < (_DOOR[0] + size[0]) / 2 + 0.3:
            continue
        centre += small.normal(0, 0.02)
        put(centre, size[1] / 2 + 0.01, size[2] / 2, size, styles, 0.0, 0.003)
        if name == "crate":
            put(centre, 0.3, 1.5 * size[2], size * (0.9, 0.9, 1), styles, small.uniform(-12, 12), 0.003)
        elif size[2] < 1:
            _small_things(put, small, centre, size)
            _picture(put, small, centre + layout.uniform(-0.1, 0.1), layout.uniform(1.55, 1.75))
    if door is None:
        put(layout.uniform(-1, 1), 0.03, 2.35, np.array([1.2, 0.06, 0.25]), "wood#3", 0.0, 0.003)


def _small_things(put: Callable[..., None], small: np.random.Generator, centre: float, size: Array) -> None:
    """What lies on a piece of furniture."""
    for place in (-0.3, 0.0, 0.3):
        thing = small.uniform(0.1, 0.34, 3)
        if small.random() < 0.75:
            look = str(small.choice(["collage", "poster", "blobs", "books"]))
            at = centre + place * size[0] + small.uniform(-0.05, 0.05)
            put(at, size[1] / 2, size[2] + thing[2] / 2, thing * (1, 0.8, 1), look, small.uniform(-40, 40), 0.002)


def _picture(put: Callable[..., None], small: np.random.Generator, centre: float, height: float) -> None:
    """A poster: one of the building's stock, or one that hangs nowhere else."""
    number = int(small.integers(12))
    wide, tall = _POSTERS[number % 3]
    look = f"poster#{number}" if number < 6 else "poster"
    put(centre, 0.012, height, np.array([wide, 0.024, tall]), (look, "wood#3"), 0.0, 0.0025)


def _island(things: Furniture, layout: np.random.Generator, small: np.random.Generator) -> None:
    """A table in the middle, with things on it."""
    turn = float(layout.uniform(-25, 25))
    things.box((0, 0, 0.36), (1.0, 0.6, 0.72), ("collage#10", "wood#5"), turn, texel=0.003)
    for place in (-0.32, 0.0, 0.32):
        wide, deep, tall = small.uniform(0.12, 0.3, 3)
        x, y = place * np.cos(np.radians(turn)), place * np.sin(np.radians(turn))
        look = str(small.choice(["collage", "blobs", "poster"]))
        things.box((x, y, 0.72 + tall / 2), (wide, deep, tall), look, small.uniform(0, 90), texel=0.002)


def _corridor(zones: list[Zone], seed: int) -> Furniture:
    """Equal closed doors with number plates between the open ones, equal cabinets, notice boards of several kinds."""
    rng = np.random.default_rng([_STREAM, seed, 4])
    things = Furniture()
    corridor = zones[ROOMS]
    open_doors = [
        sorted(float(z.door[0]) for z in zones if z.door is not None and (z.door[1] > 0) == north)
        for north in (False, True)
    ]
    length = float(corridor.high[0])
    gaps = [[length - x for x in open_doors[0]], [], open_doors[1], []]
    _shell(things, corridor.low, corridor.high, ["plaster#0a", "bricks#1b", "plaster#0c", "bricks#1d"], "tiles", gaps)
    for taken, y, yaw in ((open_doors[0], -HALF_CORRIDOR, 180.0), (open_doors[1], HALF_CORRIDOR, 0.0)):
        inward = -np.sign(y)
        edges = [0.0, *taken, length]
        for left, right in zip(edges, edges[1:], strict=False):
            first, last = left + _DOOR[0] / 2 + 0.9, right - _DOOR[0] / 2 - 0.9
            count = int((last - first) / 2.2) + 1 if last > first else 0
            for k in range(count):
                x = first + k * 2.2

                def put(at: float, off: float, z: float, size: tuple[float, float, float], look: tuple[str, str],
                        texel: float) -> None:
                    things.box((at, y + inward * off, z), size, look, yaw, 0.0, texel, False)  # noqa: B023

                if k % 2 == 0:
                    put(x, 0.03, 1.03, (0.95, 0.06, 2.05), ("wood#11", "wood#8"), 0.003)
                    put(x + 0.75, 0.01, 1.6, (0.22, 0.02, 0.15), ("poster", "wood#8"), 0.002)
                elif rng.random() < 0.5:
                    put(x, 0.1, 1.1, (0.4, 0.2, 0.7), ("blobs#12", "blobs#13"), 0.003)
                else:
                    look = f"poster#{rng.integers(6)}" if rng.random() < 0.5 else "collage"
                    put(x, 0.015, 1.5, (1.0, 0.03, 0.75), (look, "wood#3"), 0.0025)
    return things


def _jamb(things: Furniture, x: float, y: float) -> None:
    """The sides of the doorway in a wall at -y whose inner face is at `y`."""
    half, (_, height) = _DOOR[0] / 2, _DOOR
    up, out = np.array([0.0, 0, height]), np.array([0.0, WALL, 0])
    left, right = np.array([x - half, y, 0.0]), np.array([x + half, y, 0.0])
    things.surfaces += [
        Surface(left - out + up, out, -up, "wood#8", 0.004),
        Surface(right + up, -out, -up, "wood#8", 0.004),
        Surface(left - out + up, right - left, out, "wood#8", 0.004),
        Surface(left, right - left, -out, "wood#8", 0.004),
    ]


def _placed(things: Furniture, centre: Array, turned: bool) -> Furniture:
    """Everything moved to its zone, turned by half a turn where the door is on the other side."""
    turn = np.diag([-1.0, -1.0, 1.0]) if turned else np.eye(3)
    shift = np.array([*centre, 0.0])
    placed = Furniture()
    placed.solids = [replace(s, centre=turn @ s.centre + shift, axes=s.axes @ turn.T) for s in things.solids]
    placed.surfaces = [
        replace(s, origin=turn @ s.origin + shift, side_s=turn @ s.side_s, side_t=turn @ s.side_t)
        for s in things.surfaces
    ]
    return placed
