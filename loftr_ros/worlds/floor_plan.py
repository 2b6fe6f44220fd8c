"""Floor plans and furniture of buildings with look-alike places: a corridor with equal doors, and similar rooms.

World frame: metres, z up, the corridor along x from the origin. Objects come from a small stock of the building: the
same furniture, doors and prints of the same posters occur in many places, and most rooms have a wall and a floor that
equal those of other rooms texel by texel. Twins are rooms of the same layout: the same size, the same kinds of walls
and floor, and the same furniture at the same places within some centimetres.

No two places are equal in every pixel, so they can always be told apart: small objects, books, half of the pictures and
the grain of most walls differ, in twins the grain of all walls, and every surface has its own stains.

A style with a number, such as `poster#3`, is a print that is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from loftr_ros.worlds.room import Furniture, Surface

HEIGHT = 2.8  # m, of all ceilings
ROOMS = 8
TWINS = ((1, 6), (2, 4))  # rooms of one layout
HALF_CORRIDOR = 1.2  # m
WALL = 0.2  # m, thickness
DOOR = (1.3, 2.2)  # m, width and height of an open doorway
STREAM = 0x9E1D  # keeps the random numbers apart from those of other scenes with the same seed
_POSTERS = ((0.5, 0.7), (0.9, 0.6), (0.7, 1.0))  # m, width and height
_MODELS = {  # m, width, depth and height; texture of the front and of the rest
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


def floor_plan(seed: int) -> list[Zone]:
    """Four rooms on either side of the corridor: the rooms in order, then the corridor."""
    rng = np.random.default_rng([STREAM, seed])
    sizes = np.column_stack([rng.uniform(6.0, 7.4, ROOMS), rng.uniform(5.2, 6.4, ROOMS)])
    doors = rng.uniform(-1.2, 1.2, ROOMS)  # of the room's middle, seen from the corridor
    layouts = np.arange(ROOMS)
    for one, other in TWINS:
        sizes[other], doors[other], layouts[other] = sizes[one], doors[one], layouts[one]
    zones = []
    length = 0.0
    for side in (1.0, -1.0):
        x = 0.6
        for number in range(ROOMS // 2) if side > 0 else range(ROOMS // 2, ROOMS):
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


def furnish(zones: list[Zone], number: int, seed: int) -> Furniture:
    """The solids and surfaces of a zone."""
    return _corridor(zones, seed) if number == ROOMS else _room(zones[number], number, seed)


def _wall(things: Furniture, start: Array, along: Array, style: str, gaps: list[float]) -> None:
    """A wall from `start` on the floor to the right as seen from inside, with doorways at distances `gaps` from there.

    All walls of one print begin with the same part of it.
    """
    length = float(np.linalg.norm(along))
    unit, up = along / length, np.array([0.0, 0, 1])
    at = 0.0
    for gap in [*sorted(gaps), None]:
        end = length if gap is None else gap - DOOR[0] / 2
        begin = start + at * unit + HEIGHT * up
        things.surfaces.append(Surface(begin, (end - at) * unit, -HEIGHT * up, style, 0.004))
        if gap is not None:
            over = start + end * unit + HEIGHT * up
            lintel = -(HEIGHT - DOOR[1]) * up
            things.surfaces.append(Surface(over, DOOR[0] * unit, lintel, style, 0.004))
            at = end + DOOR[0]


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
    """A room's objects; `layout` generates what twins share, `small` what differs."""
    layout = np.random.default_rng([STREAM, seed, 2, zone.layout])
    small = np.random.default_rng([STREAM, seed, 3, number])
    width, depth = zone.high - zone.low
    things = Furniture()
    # In the room's frame the door is in the wall at -y, and the origin is in the middle.
    assert zone.door is not None
    turned = zone.centre[1] < 0
    door = float(zone.door[0] - zone.centre[0]) * (-1 if turned else 1)
    # One wall of a room, and its floor, are prints shared with other rooms. In twins that would leave too little
    # difference, so theirs are only of the same kind.
    kinds = [str(layout.choice(["plaster", "bricks", "stone", "plaster"])) for _ in range(4)]
    walls, floor = kinds, str(layout.choice(["wood", "tiles"]))
    if zone.layout not in {one for one, _ in TWINS}:
        walls[1], floor = str(layout.choice(["plaster#0", "bricks#1"])), f"{floor}#2"
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

    The number of draws from `layout` does not depend on `small`.
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
        if door is not None and abs(centre + door) < (DOOR[0] + size[0]) / 2 + 0.3:
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
    """Small objects on a piece of furniture."""
    for place in (-0.3, 0.0, 0.3):
        thing = small.uniform(0.1, 0.34, 3)
        if small.random() < 0.75:
            look = str(small.choice(["collage", "poster", "blobs", "books"]))
            at = centre + place * size[0] + small.uniform(-0.05, 0.05)
            put(at, size[1] / 2, size[2] + thing[2] / 2, thing * (1, 0.8, 1), look, small.uniform(-40, 40), 0.002)


def _picture(put: Callable[..., None], small: np.random.Generator, centre: float, height: float) -> None:
    """A poster: one of the building's stock, or a unique one."""
    number = int(small.integers(12))
    wide, tall = _POSTERS[number % 3]
    look = f"poster#{number}" if number < 6 else "poster"
    put(centre, 0.012, height, np.array([wide, 0.024, tall]), (look, "wood#3"), 0.0, 0.0025)


def _island(things: Furniture, layout: np.random.Generator, small: np.random.Generator) -> None:
    """A table in the middle, with objects on it."""
    turn = float(layout.uniform(-25, 25))
    things.box((0, 0, 0.36), (1.0, 0.6, 0.72), ("collage#10", "wood#5"), turn, texel=0.003)
    for place in (-0.32, 0.0, 0.32):
        wide, deep, tall = small.uniform(0.12, 0.3, 3)
        x, y = place * np.cos(np.radians(turn)), place * np.sin(np.radians(turn))
        look = str(small.choice(["collage", "blobs", "poster"]))
        things.box((x, y, 0.72 + tall / 2), (wide, deep, tall), look, small.uniform(0, 90), texel=0.002)


def _corridor(zones: list[Zone], seed: int) -> Furniture:
    """Equal closed doors with number plates between the open ones, equal cabinets, notice boards of several kinds."""
    rng = np.random.default_rng([STREAM, seed, 4])
    things = Furniture()
    corridor = zones[ROOMS]
    open_doors = [
        sorted(float(z.door[0]) for z in zones if z.door is not None and (z.door[1] > 0) == north)
        for north in (False, True)
    ]
    length = float(corridor.high[0])
    gaps = [[length - x for x in open_doors[0]], [], open_doors[1], []]
    _shell(things, corridor.low, corridor.high, ["plaster", "bricks", "plaster", "bricks"], "tiles", gaps)
    for taken, y, yaw in ((open_doors[0], -HALF_CORRIDOR, 180.0), (open_doors[1], HALF_CORRIDOR, 0.0)):
        inward = -np.sign(y)
        edges = [0.0, *taken, length]
        for left, right in pairwise(edges):
            first, last = left + DOOR[0] / 2 + 0.9, right - DOOR[0] / 2 - 0.9
            count = int((last - first) / 2.2) + 1 if last > first else 0
            for k in range(count):
                x = first + k * 2.2

                def put(
                    at: float,
                    off: float,
                    z: float,
                    size: tuple[float, float, float],
                    look: tuple[str, str],
                    texel: float,
                ) -> None:
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
    half, (_, height) = DOOR[0] / 2, DOOR
    up, out = np.array([0.0, 0, height]), np.array([0.0, WALL, 0])
    left, right = np.array([x - half, y, 0.0]), np.array([x + half, y, 0.0])
    things.surfaces += [
        Surface(left - out + up, out, -up, "wood#8", 0.004),
        Surface(right + up, -out, -up, "wood#8", 0.004),
        Surface(left - out + up, right - left, out, "wood#8", 0.004),
        Surface(left, right - left, -out, "wood#8", 0.004),
    ]


def _placed(things: Furniture, centre: Array, turned: bool) -> Furniture:
    """Everything moved to its zone, rotated by 180 degrees if the door is on the other side."""
    turn = np.diag([-1.0, -1.0, 1.0]) if turned else np.eye(3)
    shift = np.array([*centre, 0.0])
    placed = Furniture()
    placed.solids = [replace(s, centre=turn @ s.centre + shift, axes=s.axes @ turn.T) for s in things.solids]
    placed.surfaces = [
        replace(s, origin=turn @ s.origin + shift, side_s=turn @ s.side_s, side_t=turn @ s.side_t)
        for s in things.surfaces
    ]
    return placed
