"""Furniture and light of the rendered room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

ROOM = (8.0, 6.0, 2.8)  # m, along x, y and z; the origin is on the floor in the middle
_LAMPS = ((-2.0, -0.9), (2.1, 0.8))  # m, x and y of the lamps' centres, on the ceiling
_LAMP_SIZE = (1.3, 0.45)  # m
_LAMP_PARTS = (
    (-0.4, -0.2),
    (0.05, 0.35),
    (0.4, -0.15),
)  # each part casts a shadow; together a soft one
_POWER = 4.5  # light of one lamp at one metre, on a surface that faces it

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Solid:
    """A box: `centre`, (3, 3) `axes` with one unit axis a row, and half sizes along them, metres."""

    centre: Vector
    axes: NDArray[np.float64]
    half: Vector

    def distance(self, points: Vector) -> Vector:
        """Distance of (N, 3) points from the box in metres, 0 inside."""
        local = np.abs((points - self.centre) @ self.axes.T) - self.half
        return np.asarray(np.linalg.norm(np.maximum(local, 0), axis=1))


@dataclass(frozen=True)
class Surface:
    """One textured rectangle, a face of `rasterizer.Surfaces` from `origin`; `style` names its texture.

    `piece` (index, count): it shows its part of a texture painted over `count` adjacent surfaces.
    """

    origin: Vector
    side_s: Vector
    side_t: Vector
    style: str
    texel: float
    piece: tuple[int, int] = (0, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of its texture."""
        rows, columns = (max(8, round(float(np.linalg.norm(s)) / self.texel)) for s in (self.side_t, self.side_s))
        return rows, columns


def _rotation(yaw: float, tilt: float = 0.0) -> NDArray[np.float64]:
    """Axes of a box rotated by `yaw` about z, then tilted back by `tilt` about its own x, in degrees."""
    y, t = np.radians([yaw, tilt])
    about_z = np.array([[np.cos(y), np.sin(y), 0], [-np.sin(y), np.cos(y), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(t), np.sin(t)], [0, -np.sin(t), np.cos(t)]])
    return np.asarray(about_x @ about_z)


class Furniture:
    """Collects solids and their surfaces."""

    def __init__(self) -> None:
        self.solids: list[Solid] = []
        self.surfaces: list[Surface] = []

    def box(
        self,
        centre: tuple[float, float, float],
        size: tuple[float, float, float],
        styles: str | Sequence[str],
        yaw: float = 0.0,
        tilt: float = 0.0,
        texel: float = 0.0025,
        back: bool = True,
    ) -> None:
        """A box with faces in the order front (-y), back, left, right, top; there is no bottom face.

        Args:
            styles: one for all faces, or one for the front and one for the others.
            back: False omits the back, which stands against a wall.
        """
        axes = _rotation(yaw, tilt)
        solid = Solid(np.array(centre, np.float64), axes, np.array(size) / 2)
        self.solids.append(solid)
        front, other = (styles, styles) if isinstance(styles, str) else styles
        x, y, z = axes * solid.half[:, None]
        c = solid.centre
        faces = [
            (c - y - x + z, 2 * x, -2 * z, front),
            (c + y + x + z, -2 * x, -2 * z, other),
            (c - x + y + z, -2 * y, -2 * z, other),
            (c + x - y + z, 2 * y, -2 * z, other),
            (c + z - x + y, 2 * x, -2 * y, other),
        ]
        if not back:
            del faces[1]
        if tilt or c[2] - solid.half[2] > 0.3:
            faces.append((c - z - x - y, 2 * x, 2 * y, other))
        self.surfaces += [Surface(origin, s, t, style, texel) for origin, s, t, style in faces]

    def pillar(self, x: float, y: float, radius: float, style: str, sides: int = 14) -> None:
        """A prism from floor to ceiling."""
        inner = radius * 0.8
        self.solids.append(Solid(np.array([x, y, ROOM[2] / 2]), np.eye(3), np.array([inner, inner, ROOM[2] / 2])))
        angles = np.linspace(0, 2 * np.pi, sides + 1)
        corners = np.stack(
            [x + radius * np.cos(angles), y + radius * np.sin(angles), np.full(sides + 1, ROOM[2])], axis=1
        )
        down = np.array([0, 0, -ROOM[2]])
        self.surfaces += [
            Surface(corners[k], corners[k + 1] - corners[k], down, style, 0.0025, (k, sides)) for k in range(sides)
        ]


def furnish(rng: np.random.Generator) -> tuple[list[Solid], list[Surface]]:
    """The room and its contents. A ring around the middle stays free for the camera's walk."""
    width, depth, height = ROOM
    room = Furniture()
    x, y, z = (np.array(axis, np.float64) for axis in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    half_x, half_y = width / 2 * x, depth / 2 * y
    walls = rng.permutation(["plaster", "bricks", "plaster", "stone"])
    floor = str(rng.choice(["wood", "tiles"]))
    top = height * z
    room.surfaces += [
        Surface(-half_x + half_y, width * x, -depth * y, floor, 0.004),
        Surface(-half_x - half_y + top, width * x, depth * y, "ceiling", 0.005),
        Surface(-half_x + half_y + top, width * x, -top, str(walls[0]), 0.0035),
        Surface(half_x - half_y + top, -width * x, -top, str(walls[1]), 0.0035),
        Surface(half_x + half_y + top, -depth * y, -top, str(walls[2]), 0.0035),
        Surface(-half_x - half_y + top, depth * y, -top, str(walls[3]), 0.0035),
    ]
    # Each wall in its own frame: `along` it, and its yaw so that a box's front faces the room.
    for yaw, wall_length, away in (
        (0.0, width, depth / 2),
        (180.0, width, depth / 2),
        (-90.0, depth, width / 2),
        (90.0, depth, width / 2),
    ):
        _along_wall(room, rng, yaw, wall_length, away)
    for side_x, side_y in ((1, 1), (-1, -1), (1, -1)):
        at_x, at_y = side_x * rng.uniform(2.75, 3.0), side_y * rng.uniform(1.8, 2.0)
        room.pillar(at_x, at_y, rng.uniform(0.15, 0.2), str(rng.choice(["collage", "blobs", "stone"])))
    # An island in the middle: a table with objects on it.
    turn = rng.uniform(-20, 20)
    room.box((0, 0, 0.36), (1.0, 0.6, 0.72), ("collage", "wood"), turn)
    for place in (-0.3, 0.02, 0.32):
        size = rng.uniform(0.12, 0.26, 3)
        at = _rotation(turn).T @ np.array([place, rng.uniform(-0.12, 0.12), 0.0])
        room.box(
            (at[0], at[1], 0.72 + size[2] / 2),
            tuple(size),
            str(rng.choice(["collage", "blobs", "poster"])),
            rng.uniform(0, 90),
            texel=0.002,
        )
    room.box((rng.uniform(-0.3, 0.3), 0, 0.006), (3.4, 2.2, 0.012), "blobs", rng.uniform(-8, 8), texel=0.003)
    for beam in (-1.9, 0.2, 2.2):
        room.box((beam + rng.uniform(-0.2, 0.2), 0, height - 0.1), (0.16, depth, 0.2), "wood")
    return room.solids, room.surfaces


def _along_wall(room: Furniture, rng: np.random.Generator, yaw: float, length: float, away: float) -> None:
    """Furniture, pictures and relief along one wall, at most 0.75 m deep."""
    axes = _rotation(yaw)

    def put(
        along: float,
        off: float,
        z: float,
        size: tuple[float, float, float],
        styles: str | tuple[str, str],
        turn: float = 0.0,
        tilt: float = 0.0,
        texel: float = 0.0025,
    ) -> None:
        at = along * axes[0] + (away - off) * axes[1]
        room.box((at[0], at[1], z), size, styles, yaw + turn, tilt, texel, back=bool(turn))

    at = -length / 2 + 0.55
    while at < length / 2 - 0.9:
        wide = rng.uniform(0.6, 1.2)
        centre = at + wide / 2
        kind = rng.choice(["bookcase", "crates", "board", "relief", "cupboard"])
        if kind == "bookcase":
            tall = rng.uniform(1.3, 2.1)
            put(centre, 0.17, tall / 2, (wide, 0.34, tall), ("books", "wood"))
        elif kind == "crates":
            z, deep = 0.0, 0.55
            while z < 1.3:
                tall = rng.uniform(0.3, 0.5)
                deep *= rng.uniform(0.8, 1.0)
                style = (str(rng.choice(["collage", "poster"])), str(rng.choice(["collage", "blobs", "wood"])))
                put(centre, 0.36, z + tall / 2, (wide * deep / 0.6, deep, tall), style, rng.uniform(-9, 9))
                z += tall
        elif kind == "board":  # leans against the wall
            tall, tilt = rng.uniform(1.2, 1.9), rng.uniform(8, 16)
            lean = np.radians(tilt)
            off = 0.03 + tall / 2 * np.sin(lean)
            put(centre, off, tall / 2 * np.cos(lean) + 0.02, (wide, 0.04, tall), ("poster", "wood"), 0.0, -tilt)
        elif kind == "relief":  # blocks that protrude from the wall by different amounts
            columns, rows = 4, 5
            for column in range(columns):
                for row in range(rows):
                    out = rng.uniform(0.03, 0.22)
                    across = at + (column + 0.5) * wide / columns
                    block = str(rng.choice(["stone", "blobs", "collage", "bricks"]))
                    put(across, out / 2, 0.6 + 0.32 * row, (wide / columns - 0.012, out, 0.31), block)
        else:
            tall = rng.uniform(0.75, 1.1)
            put(centre, 0.25, tall / 2, (wide, 0.5, tall), ("collage", "wood"))
            small = rng.uniform(0.18, 0.34, 3)
            put(centre, 0.25, tall + small[2] / 2, tuple(small), "poster", rng.uniform(-40, 40), texel=0.002)
            put(centre, 0.012, rng.uniform(1.7, 1.9), (wide * 0.9, 0.024, 0.7), ("poster", "wood"))
        at += wide + rng.uniform(0.1, 0.5)
    for _ in range(3):  # pictures high up
        put(
            rng.uniform(-length / 2 + 0.5, length / 2 - 0.5),
            0.012,
            rng.uniform(2.2, 2.35),
            (rng.uniform(0.4, 0.8), 0.024, 0.42),
            ("poster", "wood"),
        )


def light(surface: Surface, solids: Sequence[Solid]) -> NDArray[np.float32]:
    """Light on a surface of the room, with soft shadows; see `lit`."""
    lamps = [
        np.array([x + part_x * _LAMP_SIZE[0], y + part_y * _LAMP_SIZE[1], ROOM[2] - 0.25])
        for x, y in _LAMPS
        for part_x, part_y in _LAMP_PARTS
    ]
    # A little more ambient light from above, so that faces of a box differ in the shade too.
    return lit(surface, solids, lamps, _POWER / len(_LAMP_PARTS), lambda n: 0.42 * (1 + 0.25 * n[2] + 0.12 * n[0]))


def lit(
    surface: Surface,
    solids: Sequence[Solid],
    lamps: Sequence[Vector],
    power: float,
    ambient: Callable[[Vector], float],
    cell: float = 0.08,
    reach: float = np.inf,
) -> NDArray[np.float32]:
    """Light on a surface from lamps on the ceiling, with shadows.

    Args:
        surface: a rectangle.
        solids: that cast shadows.
        lamps: (3,) positions.
        power: light of each at one metre, on a surface that faces it.
        ambient: light from everywhere, by the surface's normal.
        cell: light is computed on a grid of so many metres and interpolated.
        reach: of a lamp, metres.

    Returns:
        Factors for the albedo, float32 of the texture's shape, about 1 in full light.
    """
    length_t, length_s = np.linalg.norm(surface.side_t), np.linalg.norm(surface.side_s)
    rows, columns = int(length_t / cell) + 2, int(length_s / cell) + 2
    t, s = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    normal = np.cross(surface.side_t, surface.side_s)
    normal /= np.linalg.norm(normal)
    points = surface.origin + s.reshape(-1, 1) * surface.side_s + t.reshape(-1, 1) * surface.side_t + 0.004 * normal
    total = np.full(len(points), ambient(normal))
    for lamp in lamps:
        to_lamp = lamp - points
        square = np.maximum((to_lamp**2).sum(axis=1), 0.2)
        cosines = np.maximum(to_lamp @ normal, 0) * np.maximum(to_lamp[:, 2], 0) / square
        reached = np.flatnonzero((cosines > 0) & (square < reach**2))
        if len(reached):
            clear = reached[~_blocked(points[reached], lamp, solids)]
            total[clear] += power * cosines[clear] / square[clear] ** 0.5
    grid = total.reshape(rows, columns).astype(np.float32)
    return np.asarray(cv2.resize(grid, surface.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _blocked(points: Vector, lamp: Vector, solids: Sequence[Solid]) -> NDArray[np.bool_]:
    """Which of (N, 3) points have a box between themselves and the lamp."""
    blocked = np.zeros(len(points), bool)
    low, high = np.minimum(points.min(axis=0), lamp), np.maximum(points.max(axis=0), lamp)
    lowest, highest = _bounds(tuple(solids))
    for number in np.flatnonzero(((highest >= low) & (lowest <= high)).all(axis=1)):
        solid = solids[int(number)]
        start = solid.axes @ (points - solid.centre).T
        ray = (solid.axes @ (lamp - solid.centre))[:, None] - start
        half = solid.half[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            one, two = (-half - start) / ray, (half - start) / ray
        enter, leave = np.minimum(one, two).max(axis=0), np.maximum(one, two).min(axis=0)
        blocked |= (np.maximum(enter, 0.0) < np.minimum(leave, 1.0)) & (leave > 1e-3)
    return blocked


@lru_cache(maxsize=4)
def _bounds(solids: tuple[Solid, ...]) -> tuple[Vector, Vector]:
    """(N, 3) lowest and highest corners of the boxes, along the world's axes."""
    centres = np.array([solid.centre for solid in solids]).reshape(-1, 3)
    reaches = np.array([np.abs(solid.axes).T @ solid.half for solid in solids]).reshape(-1, 3)
    return centres - reaches, centres + reaches
