"""Corridors, halls and offices: painted walls, equal tiles, doors and windows in rows; light is most of the texture.

Nearly everything occurs many times in the same form, and large surfaces show only light, shading and reflections. A few
things, in some scenes none, tell one place from the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import rotation_matrix
from loftr_ros.training.geometry import Float32, Float64, looking
from loftr_ros.training.stage import Gloss, SurfaceStage
from loftr_ros.training.surfaces import Palette, pyramid
from loftr_ros.worlds.rasterizer import Surfaces
from loftr_ros.worlds.texturing import Image, Material

_UP = np.array([0.0, 0, 1])


@dataclass(frozen=True)
class _Style:
    """What is the same in all of a building.

    Attributes:
        wall, door, frame: gray values.
        tile, panel: sizes of the floor's and the ceiling's squares, in metres.
        lamp_every, door_every, window_every: distances in rows, in metres.
        alike: in [0, 1], how little copies of a thing differ.
        unique: expected number of things that occur once, per 10 m of wall.
    """

    wall: float
    door: float
    frame: float
    tile: float
    panel: float
    lamp_every: float
    door_every: float
    window_every: float
    alike: float
    unique: float


@dataclass(frozen=True)
class _Shell:
    """The size of the space: along x and y, and its height, in metres; its corner is the origin."""

    length: float
    width: float
    height: float


def interior(palette: Palette, rng: np.random.Generator) -> SurfaceStage:
    """A corridor, hall or office, with a first camera that mostly looks along it."""
    style = _Style(
        wall=float(rng.uniform(130, 235)),
        door=float(rng.uniform(50, 210)),
        frame=float(rng.uniform(40, 230)),
        tile=float(rng.choice([0.2, 0.3, 0.4, 0.6, 1.0])),
        panel=float(rng.choice([0.6, 0.6, 1.2])),
        lamp_every=float(rng.uniform(1.8, 4.0)),
        door_every=float(rng.uniform(1.6, 5.0)),
        window_every=float(rng.uniform(1.2, 3.5)),
        alike=float(rng.random()),
        unique=float(rng.choice([0.0, 0.3, 1.0, 2.0])),
    )
    kind = rng.random()
    if kind < 0.5:
        shell = _Shell(rng.uniform(8, 40), rng.uniform(1.5, 3.5), rng.uniform(2.3, 3.2))
    elif kind < 0.72:
        shell = _Shell(rng.uniform(10, 30), rng.uniform(7, 20), rng.uniform(3, 6))
    else:
        shell = _Shell(rng.uniform(5, 15), rng.uniform(3.5, 9), rng.uniform(2.4, 3.1))
    builder = _Builder(palette, rng, style, shell)
    builder.shell()
    if kind >= 0.72:
        builder.desks()
    elif kind >= 0.5:
        builder.columns()
    elif rng.random() < 0.5:
        builder.pilasters()
    return SurfaceStage(builder.scene, *builder.camera(), builder.gloss, least_filled=0.95)


class _Builder:
    def __init__(self, palette: Palette, rng: np.random.Generator, style: _Style, shell: _Shell) -> None:
        self.scene = Surfaces()
        self.gloss: Gloss | None = None
        self._palette, self._rng, self._style, self._size = palette, rng, style, shell
        self._door = self._door_material()
        self._window = self._window_material()
        self._wall_paint = palette.paint(style.wall, 1.5)
        self._frame = palette.paint(style.frame, 2.0)
        self._bright = palette.paint(float(rng.uniform(225, 255)), 0.5)

    def shell(self) -> None:
        """Floor, ceiling with lamps, and four walls with what is on them."""
        rng, size = self._rng, self._size
        o, X, Y, Z = np.zeros(3), np.array([size.length, 0, 0]), np.array([0, size.width, 0]), _UP * size.height
        windows = rng.random() < 0.55
        lit = self._floor_light(windows)
        self.scene.quad(o, Y, X, self._palette.lit(self._floor(size.width, size.length), lit))  # surface 1
        if rng.random() < 0.65:
            self.gloss = Gloss(1, 0.0, float(rng.uniform(0.1, 0.6)), float(rng.uniform(0.0, 3.0)))
        self.scene.quad(o + Z, X, Y, self._palette.lit(self._ceiling(size.length, size.width), self._lamps_light()))
        self._lamps(X, Y, Z)
        # Seen from inside, left to right.
        for start, along in ((o, Y), (o + Y, X), (o + X + Y, -Y), (o + X, -X)):
            across = abs(along[1]) > 0
            self._wall(start, along, bool(windows and (along[0] > 0 or rng.random() < 0.3) and not across))

    def desks(self) -> None:
        """Equal desks with screens and chairs in rows, cupboards and a glass partition."""
        rng, size, palette = self._rng, self._size, self._palette
        tones = (rng.uniform(110, 235), rng.uniform(60, 200), rng.uniform(8, 60))
        top, body, screen = (palette.paint(float(tone), 3.0) for tone in tones)
        step_x, step_y = rng.uniform(1.6, 2.4), rng.uniform(1.6, 2.6)
        for x in np.arange(1.0, size.length - 0.8, step_x)[:6]:
            for y in np.arange(0.9, size.width - 0.7, step_y)[:3]:
                if rng.random() < 0.2:
                    continue
                self.scene.box(np.array([x, y, 0.72]), np.array([0.4, 0.75, 0.02]), np.eye(3), [top], bottom=True)
                self.scene.box(np.array([x, y + 0.5, 0.35]), np.array([0.3, 0.2, 0.35]), np.eye(3), [body])
                turn = rotation_matrix(_UP * rng.normal(0, 0.15))
                self.scene.box(np.array([x - 0.15, y, 0.98]), np.array([0.02, 0.28, 0.17]), turn, [screen])
                if rng.random() < 0.7:
                    spot = np.array([x + rng.uniform(0.4, 0.8), y + rng.normal(0, 0.2), 0.45])
                    turn = rotation_matrix(_UP * rng.uniform(-np.pi, np.pi))
                    self.scene.box(spot, np.array([0.22, 0.22, 0.04]), turn, [screen], bottom=True)
                    self.scene.box(spot + _UP * 0.35 + turn[:, 0] * 0.2, np.array([0.03, 0.2, 0.3]), turn, [screen])
        for x in np.arange(0.5, size.length - 0.5, 0.82)[: int(rng.integers(0, 8))]:
            high = 0.6 if rng.random() < 0.3 else 0.95
            self.scene.box(np.array([x, size.width - 0.25, high]), np.array([0.4, 0.22, high]), np.eye(3), [self._door])

    def columns(self) -> None:
        """Equal columns in rows."""
        rng, size = self._rng, self._size
        half = rng.uniform(0.12, 0.4)
        look = self._palette.paint(float(np.clip(self._style.wall + rng.normal(0, 25), 40, 250)), 2.0)
        lit = self._palette.lit(look, self._fall_off())
        every = rng.uniform(2.5, 6)
        for side in (0.22, 0.78) if rng.random() < 0.8 else (0.5,):
            for x in np.arange(every / 2, size.length, every)[:8]:
                spot = np.array([x, side * size.width, size.height / 2])
                self.scene.box(spot, np.array([half, half, size.height / 2]), np.eye(3), [lit])

    def pilasters(self) -> None:
        """Parts of a wall that stand out, at equal distances."""
        rng, size = self._rng, self._size
        deep, wide = rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.8)
        lit = self._palette.lit(self._wall_paint, self._fall_off())
        y = deep / 2 if rng.random() < 0.5 else size.width - deep / 2
        for x in np.arange(rng.uniform(1, 3), size.length, self._style.door_every)[:10]:
            spot = np.array([x, y, size.height / 2])
            self.scene.box(spot, np.array([wide, deep, size.height]) / 2, np.eye(3), [lit])

    def camera(self) -> tuple[Float64, bool]:
        """T_camera_world of the first camera, and whether it drives."""
        rng, size = self._rng, self._size
        eye = np.array([rng.uniform(0.05, 0.9) * size.length, rng.uniform(0.2, 0.8) * size.width, 0])
        eye[2] = min(rng.uniform(0.25, 1.8), size.height - 0.4)
        along = 1.0 if eye[0] < size.length / 2 or rng.random() < 0.2 else -1.0
        yaw = rng.normal(0, 0.3) if rng.random() < 0.75 else rng.uniform(-np.pi, np.pi)
        forward = np.array([along * np.cos(yaw), np.sin(yaw), rng.normal(-0.05, 0.12)])
        return looking(eye, forward, float(rng.normal(0, 0.04))), bool(rng.random() < 0.35)

    def _wall(self, start: Float64, along: Float64, glazed: bool) -> None:
        """A wall from `start` on the floor along `along`, seen from inside, left to right."""
        rng, style, height = self._rng, self._style, self._size.height
        width = float(np.linalg.norm(along))
        step, inward = along / width, np.array([along[1], -along[0], 0]) / width
        look = self._wall_paint if rng.random() < 0.85 else self._palette.any(width, height)
        self.scene.quad(start + _UP * height, along, -_UP * height, self._palette.lit(look, self._wall_light(glazed)))

        def put(at: float, low: float, w: float, h: float, look: Material, before: float = 0.01) -> None:
            if at < 0.05 or at + w > width - 0.05 or low + h > height:
                return
            corner = start + step * at + inward * before + _UP * (low + h)
            self.scene.quad(corner, step * w, -_UP * h, look)

        lower = rng.random()
        if lower < 0.35:  # the lower part of the wall in another paint, or tiles
            high = rng.uniform(0.9, 1.4)
            tone = float(np.clip(style.wall + rng.normal(-25, 25), 30, 250))
            part = self._palette.paint(tone, 2.0) if rng.random() < 0.6 else self._tiles(width, high, tone)
            put(0.06, 0.0, width - 0.12, high, self._palette.lit(part, self._wall_light(False)), 0.004)
        if lower < 0.7:
            put(0.06, 0.0, width - 0.12, rng.uniform(0.06, 0.15), self._frame, 0.008)
        if rng.random() < 0.2:  # a handrail
            put(0.06, rng.uniform(0.8, 1.0), width - 0.12, 0.06, self._frame, 0.06)
        offset = rng.uniform(0.1, style.door_every)
        if width > 2.5 and not glazed:
            for at in np.arange(offset, width - 1.1, style.door_every)[:10]:
                if rng.random() > 0.12:
                    put(at, 0.0, 0.95, 2.05, self._door)
                    if rng.random() < 0.3 + 0.5 * (1 - style.alike):
                        put(at + rng.choice([-0.28, 1.05]), rng.uniform(1.3, 1.7), 0.22, 0.16, self._sign())
        elif glazed:
            low, wide = rng.uniform(0.3, 1.0), style.window_every * rng.uniform(0.5, 0.9)
            high = min(rng.uniform(1.0, 1.8), height - low - 0.1)
            for at in np.arange(offset / 3 + 0.1, width - wide - 0.1, style.window_every)[:14]:
                put(at, low, wide, high, self._window)
                if low > 0.6 and style.alike > 0.5:
                    put(at + 0.1, 0.12, wide - 0.2, low - 0.25, self._radiator(), 0.08)
        for _ in range(int(rng.poisson(style.unique * width / 10))):  # notice boards, extinguishers, posters
            w, h = rng.uniform(0.2, 1.2), rng.uniform(0.2, 0.9)
            look = self._palette.picture(w, h) if rng.random() < 0.7 else self._palette.patches(w, h)
            put(rng.uniform(0, width), rng.uniform(0.8, 1.5), w, h, look, 0.02)

    def _lamps(self, X: Float64, Y: Float64, Z: Float64) -> None:
        rng, size, style = self._rng, self._size, self._style
        long, wide = (rng.uniform(0.6, 1.3), rng.uniform(0.08, 0.3)) if rng.random() < 0.7 else (0.3, 0.3)
        rows = max(1, round(size.width / rng.uniform(2, 4)))
        for row in range(rows):
            y = (row + 0.5) * size.width / rows
            for x in np.arange(style.lamp_every / 2, size.length - long, style.lamp_every)[:14]:
                if rng.random() < 0.04:
                    continue  # out of order
                corner = np.array([x, y - wide / 2, size.height - 0.02])
                self.scene.quad(corner, np.array([long, 0, 0]), np.array([0, wide, 0]), self._bright)

    def _floor(self, width: float, length: float) -> Material:
        kind = self._rng.random()
        tone = float(self._rng.uniform(70, 215))
        if kind < 0.55:
            return self._tiles(width, length, tone)
        if kind < 0.8:
            return self._palette.paint(tone, 2.5)
        return self._palette.faint(width, length)

    def _ceiling(self, length: float, width: float) -> Material:
        if self._rng.random() < 0.5:
            return self._palette.paint(float(self._rng.uniform(190, 250)), 1.0)
        return self._squares(length, width, self._style.panel, float(self._rng.uniform(190, 245)), 0.03)

    def _tiles(self, width: float, height: float, tone: float) -> Material:
        return self._squares(width, height, self._style.tile, tone, float(self._rng.uniform(0.01, 0.05)))

    def _squares(self, width: float, height: float, side: float, tone: float, joint: float) -> Material:
        """Equal squares; one in some buildings differs a little from the next, and some are in two tones."""
        rng = self._rng
        count, pixels = 4, 32
        tones = rng.normal(0, 4 * (1 - self._style.alike) ** 2, (count, count)).astype(np.float32)
        if rng.random() < 0.2:
            tones += float(rng.uniform(-60, 60)) * (np.indices((count, count)).sum(axis=0) % 2)
        picture = tone + cv2.resize(tones, (count * pixels,) * 2, interpolation=cv2.INTER_NEAREST)
        line, depth = max(1, round(joint * pixels)), float(rng.choice([-1, 1]) * rng.uniform(8, 50))
        for k in range(count):
            picture[k * pixels : k * pixels + line] += depth
            picture[:, k * pixels : k * pixels + line] += depth
        whole = count * side
        return Material(pyramid(picture), (width / whole, height / whole), (float(rng.random()), float(rng.random())))

    def _door_material(self) -> Material:
        rng, style = self._rng, self._style
        picture: Float32 = np.full((96, 48), style.door, np.float32)
        cv2.rectangle(picture, (0, 0), (47, 95), style.frame, 3)
        if rng.random() < 0.5:
            x, y, w, h = (int(rng.integers(*each)) for each in ((10, 28), (10, 20), (4, 14), (8, 36)))
            cv2.rectangle(picture, (x, y), (x + w, y + h), float(rng.uniform(20, 240)), -1)
        side = 40 if rng.random() < 0.5 else 5
        cv2.rectangle(picture, (side, 48), (side + 2, 51), float(rng.uniform(20, 240)), -1)
        if rng.random() < 0.3:
            cv2.rectangle(picture, (6, 82), (41, 90), float(rng.uniform(60, 220)), -1)
        return Material(pyramid(picture))

    def _window_material(self) -> Material:
        """Panes with a bright outside, which is nearly the same in all of them."""
        rng = self._rng
        outside = np.linspace(rng.uniform(200, 255), rng.uniform(120, 240), 64, dtype=np.float32)[:, None]
        picture = np.repeat(outside, 64, axis=1)
        panes = int(rng.integers(1, 4))
        for k in range(panes + 1):
            column = min(63, k * 64 // panes)
            cv2.line(picture, (column, 0), (column, 63), self._style.frame, 2)
        if rng.random() < 0.5:
            row = int(rng.integers(12, 52))
            cv2.line(picture, (0, row), (63, row), self._style.frame, 2)
        if rng.random() < 0.3:  # blinds
            picture[4::4] *= np.float32(0.8)
        cv2.rectangle(picture, (0, 0), (63, 63), self._style.frame, 2)
        return Material(pyramid(picture))

    def _sign(self) -> Material:
        rng = self._rng
        picture = np.full((16, 24), float(rng.uniform(150, 250)), np.float32)
        for row in range(3, 14, 4):
            cv2.line(picture, (3, row), (int(rng.integers(8, 22)), row), float(rng.uniform(0, 90)), 1)
        return Material(pyramid(picture))

    def _radiator(self) -> Material:
        picture = np.full((32, 32), float(self._style.frame), np.float32)
        picture[:, ::4] *= np.float32(0.7)
        return Material(pyramid(picture), (2.0, 1.0))

    def _wall_light(self, glazed: bool) -> Image:
        """(24, 96) light on a wall: lamps above it at equal distances, darker below and in corners."""
        rng = self._rng
        t, s = np.mgrid[0:24, 0:96].astype(np.float32)
        s, t = s / 95, t / 23
        lamps = self._size.length / self._style.lamp_every
        scallop = np.cos(2 * np.pi * (s * lamps + float(rng.random()))) * np.exp(-t * float(rng.uniform(1, 5)))
        light = 105 + float(rng.uniform(0, 30)) * scallop - float(rng.uniform(-10, 45)) * t
        edges = np.minimum(np.minimum(s * 8, (1 - s) * 8), np.minimum(t, 1 - t) * 2)
        light -= float(rng.uniform(5, 45)) * np.exp(-edges * 6)
        if not glazed and rng.random() < 0.3:  # sun through windows opposite
            band = np.abs(np.mod(s * self._size.length / self._style.window_every + 0.4 * t, 1) - 0.5)
            light *= 1 + float(rng.uniform(0.1, 0.6)) / (1 + np.exp((band - 0.25) * 30))
        return _levels(light)

    def _floor_light(self, windows: bool) -> Image:
        """(96, 24) light on the floor, whose s is across and t along: pools of lamps, sun through windows."""
        rng = self._rng
        t, s = np.mgrid[0:96, 0:24].astype(np.float32)
        s, t = s / 23, t / 95
        lamps = self._size.length / self._style.lamp_every
        light = 110 + float(rng.uniform(0, 25)) * np.cos(2 * np.pi * (t * lamps + 0.5)) * (1 - np.abs(2 * s - 1))
        light -= float(rng.uniform(0, 50)) * np.exp(-np.minimum(s, 1 - s) * 10)
        if windows:
            light += float(rng.uniform(0, 60)) * s
            if rng.random() < 0.5:
                band = np.abs(np.mod(t * self._size.length / self._style.window_every + s, 1) - 0.5)
                light *= 1 + float(rng.uniform(0.1, 1.0)) * (s > rng.uniform(0, 0.7)) / (1 + np.exp((band - 0.25) * 40))
        return _levels(light)

    def _lamps_light(self) -> Image:
        """(24, 96) light on the ceiling, whose s is along."""
        rng = self._rng
        t, s = np.mgrid[0:24, 0:96].astype(np.float32)
        s, t = s / 95, t / 23
        lamps = self._size.length / self._style.lamp_every
        light = 95 + float(rng.uniform(0, 30)) * np.cos(2 * np.pi * s * lamps + np.pi) + float(rng.uniform(-40, 40)) * t
        return _levels(light - float(rng.uniform(0, 50)) * np.exp(-np.minimum(t, 1 - t) * 10))

    def _fall_off(self) -> Image:
        """(24, 8) light on a column: brighter above or below, darker at its edges."""
        rng = self._rng
        t, s = np.mgrid[0:24, 0:8].astype(np.float32)
        s, t = s / 7, t / 23
        return _levels(115 + float(rng.uniform(-40, 40)) * t + float(rng.uniform(-30, 30)) * s)


def _levels(light: NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(light, 15, 255), np.uint8)
