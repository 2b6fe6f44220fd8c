"""Appearance of the faces of rendered scenes: photos, tiled textures, masonry, windows, plain paint."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.training.assets import AssetBank
from loftr_ros.worlds.texturing import Image, Material
from loftr_ros.worlds.texturing import pyramid as halved


class Palette:
    """Provides surfaces. A scene has few textures and uses each several times: repeats make matching hard.

    Args of `__init__`:
        bank: the images.
        rng: of the scene.
        hardness: in [0, 1]; how often textures repeat, are faint, or are shared by several objects.
    """

    def __init__(self, bank: AssetBank, rng: np.random.Generator, hardness: float) -> None:
        self._bank, self._rng, self._hardness = bank, rng, hardness
        self._used: list[list[Image]] = []
        self._made: dict[str, list[tuple[list[Image], float, float]]] = {}

    def any(self, width: float, height: float) -> Material:
        """A surface for a face of some size in metres."""
        kind = self._rng.random()
        if kind < 0.40:
            return self.tiled(width, height)
        if kind < 0.72:
            return self.picture(width, height)
        if kind < 0.86:
            return self.masonry(width, height)
        if kind < 0.93:
            return self.patches(width, height)
        return self.plain()

    def picture(self, width: float, height: float, photo: bool | None = None) -> Material:
        """Part of an image, once, in the proportions of the face."""
        rng = self._rng
        photo = bool(rng.random() < 0.7) if photo is None else photo
        levels = self._levels(photo)
        rows, columns = levels[0].shape
        share = float(rng.uniform(0.35, 1.0))
        aspect = float(np.clip(width / max(height, 1e-3), 0.05, 20))
        along = share * min(1.0, aspect * rows / columns)
        up = along * columns / rows / aspect
        shift = (float(rng.uniform(0, 1 - along)), float(rng.uniform(0, max(1 - up, 0))))
        return Material(levels, (along, up), shift, *self._tone())

    def tiled(self, width: float, height: float) -> Material:
        """A texture repeated over the face, with a period of 0.3 to 4 m."""
        rng = self._rng
        levels = self._levels(bool(rng.random() < 0.15))
        size = float(np.exp(rng.uniform(np.log(0.35), np.log(4.0)))) * max(0.25, min(1.5, max(width, height) / 3))
        aspect = levels[0].shape[1] / levels[0].shape[0]
        shift = (float(rng.random()), float(rng.random()))
        return Material(levels, (width / size, height / size * aspect), shift, *self._tone())

    def masonry(self, width: float, height: float) -> Material:
        """Bricks or tiles, each with its own tone and grain from a texture, or all alike."""
        levels, wide, high = self._again("masonry", self._masonry)
        return Material(levels, (width / wide, height / high), (0.0, 0.0), *self._tone())

    def _masonry(self) -> tuple[list[Image], float, float]:
        rng = self._rng
        grain = self._levels(photo=False)
        rows, columns = (int(n) for n in rng.integers(2, 7, 2))
        size = 192
        patch = np.asarray(cv2.resize(grain[min(1, len(grain) - 1)], (size, size)), np.float32)
        patch = 128 + (patch - patch.mean()) * float(rng.uniform(0.2, 1.0))
        tones = rng.normal(0, float(rng.choice([3, 12, 30])), (rows, columns)).astype(np.float32)
        patch += cv2.resize(tones, (size, size), interpolation=cv2.INTER_NEAREST)
        joint, depth = int(rng.integers(1, 6)), float(rng.uniform(-70, 70))
        shifted = bool(rng.random() < 0.5)
        for row in range(rows):
            y = row * size // rows
            patch[y : y + joint] += depth
            for column in range(columns):
                x = (column * size // columns + (size // columns // 2 if shifted and row % 2 else 0)) % size
                patch[y : (row + 1) * size // rows, x : x + joint] += depth
        tile = float(np.exp(rng.uniform(np.log(0.1), np.log(0.6)))) * columns
        return pyramid(patch), tile, tile

    def facade(self, width: float, height: float) -> Material:
        """A house front: storeys of windows over plaster or brick, all alike or nearly so."""
        levels, wide, high = self._again("facade", self._facade)
        return Material(levels, (width / wide, height / high), (0.0, 0.0), *self._tone())

    def _facade(self) -> tuple[list[Image], float, float]:
        rng = self._rng
        wide, high = (int(n) for n in rng.integers(2, 6, 2))
        cell = 48
        wall = np.asarray(cv2.resize(self._levels(photo=False)[0], (wide * cell, high * cell)), np.float32)
        wall = float(rng.uniform(90, 190)) + (wall - wall.mean()) * float(rng.uniform(0.2, 0.9))
        w, h = int(rng.integers(14, 34)), int(rng.integers(18, 38))
        glass = np.asarray(cv2.resize(self._levels(photo=True)[-3], (w, h)), np.float32) * 0.4 + 20
        frame = float(rng.uniform(30, 240))
        for row in range(high):
            for column in range(wide):
                x, y = column * cell + (cell - w) // 2, row * cell + (cell - h) // 2
                wall[y - 2 : y + h + 2, x - 2 : x + w + 2] = frame
                wall[y : y + h, x : x + w] = glass + float(rng.normal(0, 15))
                wall[y : y + h, x + w // 2 : x + w // 2 + 2] = frame
                if rng.random() < 0.3:
                    wall[y : y + int(rng.integers(2, h)), x : x + w] += 70
        storey = float(rng.uniform(2.6, 3.6))
        return pyramid(wall), storey * wide, storey * high

    def patches(self, width: float, height: float) -> Material:
        """Bars and rectangles of flat tones, as on book spines, posters, and screens."""
        levels, wide, high = self._again("patches", self._patches)
        return Material(
            levels, (max(1.0, round(width / max(height, 0.1) * high / wide)), 1.0), (0.0, 0.0), *self._tone()
        )

    def _patches(self) -> tuple[list[Image], float, float]:
        rng = self._rng
        picture = np.full((96, 160), float(rng.uniform(40, 220)), np.float32)
        for x, y, w, h, tone in rng.random((int(rng.integers(8, 40)), 5)):
            w, h = (0.02 + 0.15 * w, 0.1 + 0.9 * h) if tone < 0.5 else (0.03 + 0.5 * w, 0.02 + 0.15 * h)
            cv2.rectangle(
                picture,
                (int(x * 160), int(y * 96)),
                (int((x + w) * 160), int((y + h) * 96)),
                float(rng.uniform(10, 245)),
                -1,
            )
        return pyramid(picture), 1.7, 1.0

    def plain(self) -> Material:
        """Paint: almost nothing to match."""
        rng = self._rng
        blotches = rng.normal(0, 1, (8, 8)).astype(np.float32)
        picture = cv2.resize(blotches, (64, 64), interpolation=cv2.INTER_CUBIC)
        picture = float(rng.uniform(50, 230)) + picture * float(rng.uniform(0, 5))
        return Material(pyramid(picture))

    def paint(self, tone: float, stains: float) -> Material:
        """Paint of a gray value with faint stains, whose standard deviation is at most `stains`."""
        rng = self._rng
        blotches = rng.normal(0, 1, (6, 6)).astype(np.float32)
        picture = cv2.resize(blotches, (32, 32), interpolation=cv2.INTER_CUBIC)
        return Material(pyramid(tone + picture * float(rng.uniform(0, stains))))

    def faint(self, width: float, height: float) -> Material:
        """A repeated texture with hardly any contrast, as of carpets."""
        surface = self.tiled(width, height)
        gain = float(self._rng.uniform(0.05, 0.3))
        tone = float(self._rng.uniform(60, 190))
        return Material(surface.levels, surface.repeats, surface.shift, gain, tone - 128 * gain)

    def sky(self) -> Material:
        """Overcast, clouded, or part of a photo."""
        rng = self._rng
        if rng.random() < 0.3:
            return Material(self._levels(photo=True), (1.0, 0.5))
        gradient = np.linspace(rng.uniform(130, 255), rng.uniform(130, 255), 128, dtype=np.float32)[:, None]
        clouds = np.zeros((128, 128), np.float32)
        for octave in (4, 8, 16, 32):
            noise = rng.normal(0, 1, (octave, octave)).astype(np.float32)
            clouds += cv2.resize(noise, (128, 128), interpolation=cv2.INTER_CUBIC) / octave
        return Material(pyramid(gradient + clouds * float(rng.uniform(0, 90))))

    def lit(self, surface: Material, light: Image) -> Material:
        """The same surface with light and shadow on it."""
        return Material(surface.levels, surface.repeats, surface.shift, surface.gain, surface.bias, light)

    def light(self, dark_spots: NDArray[np.float64] | None = None) -> Image:
        """A (48, 48) light map: a soft lamp, darker edges, and shadows under objects.

        Args:
            dark_spots: (N, 3) s, t and radius of shadows, in [0, 1].
        """
        rng = self._rng
        t, s = np.mgrid[0:48, 0:48].astype(np.float32) / 47
        lamp = np.exp(-((s - rng.random()) ** 2 + (t - rng.random()) ** 2) / float(rng.uniform(0.1, 1.0)))
        edges = np.minimum(np.minimum(s, 1 - s), np.minimum(t, 1 - t))
        light = 100 + 70 * lamp - float(rng.uniform(0, 50)) * np.exp(-edges * 12)
        for x, y, radius in dark_spots if dark_spots is not None else ():
            light *= 1 - 0.55 * np.exp(-((((s - x) ** 2 + (t - y) ** 2) / max(radius * radius, 1e-4)) ** 2))
        if rng.random() < 0.25:  # sun through a window, or the edge of a shadow
            angle, where, soft = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8), rng.uniform(5, 60)
            along = (s - 0.5) * np.cos(angle) + (t - 0.5) * np.sin(angle) + 0.5
            band = np.abs(along - where) - rng.uniform(0.05, 0.25)
            light *= 1 + float(rng.uniform(-0.5, 0.8)) / (1 + np.exp(np.clip(band * soft, -30, 30)))
        return np.asarray(np.clip(light, 15, 255), np.uint8)

    def _again(
        self, kind: str, make: Callable[[], tuple[list[Image], float, float]]
    ) -> tuple[list[Image], float, float]:
        """A generated texture with its width and height in metres: at most three of a kind per scene."""
        made = self._made.setdefault(kind, [])
        if len(made) < 3 and self._rng.random() < 1 / (1 + len(made)):
            made.append(make())
        return made[int(self._rng.integers(len(made)))]

    def _levels(self, photo: bool) -> list[Image]:
        if self._used and self._rng.random() < 0.15 + 0.35 * self._hardness:
            return self._used[int(self._rng.integers(len(self._used)))]
        levels = self._bank.photo(self._rng) if photo else self._bank.texture(self._rng)
        self._used.append(levels)
        return levels

    def _tone(self) -> tuple[float, float]:
        """Gain and bias; sometimes faint ones."""
        rng = self._rng
        gain = float(rng.uniform(0.15, 0.4)) if rng.random() < 0.08 + 0.12 * self._hardness else rng.uniform(0.6, 1.2)
        return float(gain), float(rng.uniform(-15, 40) + max(0.0, 0.6 - gain) * 120)


def pyramid(picture: NDArray[np.float32]) -> list[Image]:
    """The mip levels of an (H, W) picture with values of 0 to 255."""
    return halved(np.clip(picture, 0, 255).astype(np.uint8), 8)
