"""Procedural textures for rendered scenes: edges, blobs and letters at every scale, never repeated."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Texture = NDArray[np.float32]
Painter = Callable[[int, int, float, np.random.Generator], Texture]

_LETTERS = "ABCDEFGHKLMNPQRSTUVWXYZabdefghknpqrstuvwxyz0123456789&?!+#"


def paint(style: str, height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    """The albedo of one surface.

    Args:
        style: a key of `STYLES`.
        height, width: size in texels.
        texel: side of a texel, in metres; patterns (bricks, planks, letters) have sizes in metres.
        rng: the only source of randomness.

    Returns:
        (height, width) float32 albedo in [0.03, 0.97].
    """
    texture = STYLES[style](height, width, texel, rng)
    # Dust and grain everywhere: without them the flat parts of a pattern have nothing to match.
    texture += 0.10 * noise(height, width, 0.25 / texel, 6, rng)
    texture += 0.09 * noise(height, width, 0.012 / texel, 3, rng)
    return np.clip(texture, 0.03, 0.97, out=texture)


def noise(
    height: int, width: int, cell: float, octaves: int, rng: np.random.Generator, stretch: float = 1.0
) -> Texture:
    """Fractal noise, (height, width) float32, roughly in [-1, 1].

    Args:
        cell: size of the largest features, in texels; each further octave halves it, down to 2 texels.
        stretch: how much longer features are along the rows.
    """
    layers = []
    amplitude = 1.0
    for _ in range(octaves):
        layers.append((cell, amplitude))
        amplitude *= 0.72
        cell /= 2
        if cell < 2:
            break
    total = _octaves(height, width, layers, rng, stretch)
    total *= np.float32(0.9 / np.sqrt(sum(a**2 for _, a in layers)))
    return total


def _octaves(
    height: int, width: int, layers: list[tuple[float, float]], rng: np.random.Generator, stretch: float
) -> Texture:
    """The sum of octaves of (cell, amplitude), coarse first; the coarse ones are made at half the size."""
    coarse = [(cell / 2, amplitude) for cell, amplitude in layers if cell >= 8]
    if coarse:
        half = _octaves(height // 2 + 1, width // 2 + 1, coarse, rng, stretch)
        total = np.asarray(cv2.resize(half, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    else:
        total = np.zeros((height, width), np.float32)
    for cell, amplitude in layers[len(coarse) :]:
        rows, columns = int(height / cell) + 4, int(width / (cell * stretch)) + 4
        grid = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(amplitude)
        # A random sub-cell shift, so that the grids of the octaves do not align.
        shift = 1 + rng.random(2)
        affine = np.array([[1 / (cell * stretch), 0, shift[0]], [0, 1 / cell, shift[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        layer = cv2.warpAffine(grid, affine, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
        total += np.asarray(layer, np.float32)
    return total


def _cells(height: int, width: int, spacing: float, rng: np.random.Generator) -> tuple[NDArray[np.int32], Texture]:
    """Voronoi cells of a jittered grid: labels, and distance to the nearest cell centre in texels."""
    rows, columns = int(height / spacing) + 1, int(width / spacing) + 1
    v = (np.arange(rows)[:, None] + rng.random((rows, columns))) * spacing
    u = (np.arange(columns)[None, :] + rng.random((rows, columns))) * spacing
    inside = (v < height) & (u < width)
    seeds = np.full((height, width), 255, np.uint8)
    seeds[v[inside].astype(int), u[inside].astype(int)] = 0
    seeds[0, 0] = 0  # never without a seed
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return np.asarray(labels, np.int32), np.asarray(distance, np.float32)


def _edges_of(labels: NDArray[np.int32], thickness: int) -> NDArray[np.bool_]:
    edges: NDArray[np.uint8] = np.zeros(labels.shape, np.uint8)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:, :] |= labels[1:, :] != labels[:-1, :]
    if thickness > 1:
        edges = np.asarray(cv2.dilate(edges, np.ones((thickness, thickness), np.uint8)), np.uint8)
    return edges.astype(bool)


def _write(
    canvas: Texture, text: str, at: tuple[float, float], size: float, shade: float, rng: np.random.Generator
) -> None:
    """Letters about `size` texels tall, at (u, v), in one of OpenCV's stroke fonts."""
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_DUPLEX]))
    stroke = max(1, round(size * rng.uniform(0.08, 0.22)))
    cv2.putText(canvas, text, (int(at[0]), int(at[1])), font, size / 22.0, float(shade), stroke, cv2.LINE_AA)


def _word(rng: np.random.Generator, longest: int = 8) -> str:
    return "".join(rng.choice(list(_LETTERS), rng.integers(1, longest + 1)))


def _plaster(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    texture = np.float32(rng.uniform(0.55, 0.7)) + 0.16 * noise(height, width, 1.2 / texel, 6, rng)
    cracks = noise(height, width, 0.5 / texel, 6, rng)
    texture -= 0.35 * np.exp(-((cracks / 0.012) ** 2)) * (noise(height, width, 0.8 / texel, 2, rng) > 0.05)
    flaked = noise(height, width, 0.35 / texel, 6, rng) > 0.85
    texture[flaked] -= np.float32(0.22)
    for _ in range(int(height * width * texel**2 * 12)):  # splashes, scribbles and numbers
        at = rng.random(2) * (width, height)
        shade = rng.uniform(0.1, 0.9)
        if rng.random() < 0.5:
            radius = rng.uniform(0.004, 0.03) / texel
            centre = (int(at[0]), int(at[1]))
            cv2.ellipse(
                texture, centre, (int(radius) + 1, int(radius * 0.7) + 1), rng.uniform(0, 180), 0, 360, shade, -1
            )
        else:
            _write(texture, _word(rng, 5), (at[0], at[1]), rng.uniform(0.03, 0.12) / texel, shade, rng)
    return texture


def _bricks(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    brick_h, brick_w, mortar = 0.075 / texel, 0.24 / texel, 0.011 / texel
    # Ragged outlines: the pattern is sampled at slightly displaced places.
    v = np.arange(height, dtype=np.float32)[:, None] + 1.6 * noise(height, width, 0.05 / texel, 3, rng)
    u = np.arange(width, dtype=np.float32)[None, :] + 1.6 * noise(height, width, 0.05 / texel, 3, rng)
    v = np.maximum(v, 0)
    row = (v / brick_h).astype(np.int32)
    u = np.maximum(u + (row % 2) * np.float32(brick_w / 2), 0)
    column = (u / brick_w).astype(np.int32)
    shades = rng.normal(0.48, 0.13, (int(row.max()) + 1, int(column.max()) + 1)).astype(np.float32)
    texture = shades[row, column] + 0.14 * noise(height, width, 0.06 / texel, 4, rng)
    joint = ((v - row * brick_h) < mortar) | ((u - column * brick_w) < mortar)
    return np.where(joint, np.float32(0.74), texture).astype(np.float32)


def _stone(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    labels, distance = _cells(height, width, rng.uniform(0.12, 0.2) / texel, rng)
    shades = rng.normal(0.5, 0.15, int(labels.max()) + 1).astype(np.float32)
    texture = shades[labels] - np.float32(0.9 * texel) * distance + 0.2 * noise(height, width, 0.08 / texel, 5, rng)
    texture[_edges_of(labels, max(2, int(0.009 / texel)))] = 0.18
    return np.asarray(texture, np.float32)


def _wood(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    plank_h, plank_w = 0.13 / texel, 1.1 / texel
    row = (np.arange(height) / plank_h).astype(np.int32)
    shift = rng.uniform(0, plank_w, row[-1] + 1)
    column = ((np.arange(width)[None, :] + shift[row][:, None]) / plank_w).astype(np.int32)
    shades = rng.normal(0.5, 0.1, (row[-1] + 1, int(column.max()) + 1)).astype(np.float32)
    # Year rings: contours of a scalar field stretched along the plank, with its own phase on each.
    field = 5 * noise(height, width, 0.10 / texel, 4, rng, stretch=6) + 25 * shades[row[:, None], column]
    texture = shades[row[:, None], column] + 0.12 * np.sin(6 * field)
    texture += 0.14 * noise(height, width, 0.02 / texel, 3, rng, stretch=8)
    for _ in range(int(height * width * texel**2 * 6)):  # knots
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        radius = rng.uniform(0.008, 0.025) / texel
        for part, shade in ((1.0, 0.3), (0.6, 0.18)):
            axes = (int(radius * part * 1.5) + 1, int(radius * part) + 1)
            cv2.ellipse(texture, centre, axes, 0, 0, 360, shade, -1, cv2.LINE_AA)
    gap = np.diff(row, prepend=0) > 0
    texture[gap] = 0.14
    texture[np.diff(column, axis=1, prepend=column[:, :1]) > 0] = 0.14
    return np.asarray(texture, np.float32)


def _tiles(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    side, joint = rng.uniform(0.28, 0.36) / texel, 0.008 / texel
    v, u = np.arange(height), np.arange(width)
    row, column = (v / side).astype(int), (u / side).astype(int)
    shades = rng.normal(0.52, 0.13, (row[-1] + 1, column[-1] + 1)).astype(np.float32)
    texture = shades[row[:, None], column[None, :]].copy()
    chips, _ = _cells(height, width, 0.022 / texel, rng)  # terrazzo: stone chips in cement
    chip_shades = rng.choice(
        np.array([0.0, 0.0, 0.22, -0.28, 0.12, -0.14], np.float32),
        int(chips.max()) + 1,
        p=[0.3, 0.2, 0.12, 0.12, 0.13, 0.13],
    )
    texture += chip_shades[chips]
    texture += 0.12 * noise(height, width, 0.5 / texel, 5, rng)
    texture[(v - row * side) < joint, :] = 0.2
    texture[:, (u - column * side) < joint] = 0.2
    return np.asarray(texture, np.float32)


def _ceiling(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    side, joint = 0.6 / texel, 0.02 / texel
    v, u = np.arange(height), np.arange(width)
    row, column = (v / side).astype(int), (u / side).astype(int)
    shades = rng.normal(0.66, 0.05, (row[-1] + 1, column[-1] + 1)).astype(np.float32)
    texture = shades[row[:, None], column[None, :]] + 0.1 * noise(height, width, 0.7 / texel, 6, rng)
    worms = noise(height, width, 0.05 / texel, 4, rng)
    texture -= 0.3 * (worms > 0.75)
    texture[(v - row * side) < joint, :] = 0.85
    texture[:, (u - column * side) < joint] = 0.85
    return np.asarray(texture, np.float32)


def _blobs(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    field = noise(height, width, rng.uniform(0.2, 0.35) / texel, 5, rng)
    levels = rng.permutation(np.linspace(0.15, 0.85, 7)).astype(np.float32)
    index = np.clip((field * 2.6 + 3.5).astype(np.int32), 0, 6)
    texture = levels[index]
    texture[_edges_of(index, max(1, int(0.004 / texel)))] *= np.float32(0.5)
    return texture


def _shapes(canvas: Texture, count: int, largest: float, rng: np.random.Generator) -> None:
    """Rectangles, ellipses, polygons and lines, from large to small."""
    height, width = canvas.shape
    for size in largest * np.geomspace(1, 0.04, count):
        at = rng.random(2) * (width, height)
        shade = float(rng.uniform(0.05, 0.95))
        kind, angle = rng.integers(4), rng.uniform(0, 180)
        half = np.array([1.0, rng.uniform(0.25, 1)]) * size / 2
        if kind == 0:
            box = cv2.boxPoints(((at[0], at[1]), (2 * half[0], 2 * half[1]), angle if rng.random() < 0.4 else 0.0))
            cv2.fillPoly(canvas, [box.astype(np.int32)], shade, cv2.LINE_AA)
        elif kind == 1:
            centre, axes = (int(at[0]), int(at[1])), (int(half[0]) + 1, int(half[1]) + 1)
            fill = -1 if rng.random() < 0.6 else max(1, int(size * 0.08))
            cv2.ellipse(canvas, centre, axes, angle, 0, 360, shade, fill, cv2.LINE_AA)
        elif kind == 2:
            corners = at + rng.normal(0, size / 2.5, (int(rng.integers(3, 7)), 2))
            cv2.fillPoly(canvas, [cv2.convexHull(corners.astype(np.float32)).astype(np.int32)], shade, cv2.LINE_AA)
        else:
            end = at + rng.normal(0, size, 2)
            ends = [(int(p[0]), int(p[1])) for p in (at, end)]
            cv2.line(canvas, ends[0], ends[1], shade, max(1, int(size * 0.06)), cv2.LINE_AA)


def _poster(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    slope = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(rng.uniform(-0.2, 0.2))
    texture = np.full((height, width), rng.uniform(0.3, 0.8), np.float32) + slope
    _shapes(texture, 60, 0.6 * min(height, width), rng)
    line = rng.uniform(0.1, 0.5) * height
    for size in (0.16, 0.09, 0.05, 0.05, 0.03, 0.03, 0.03, 0.03):  # a title, and print of decreasing size
        text = " ".join(_word(rng) for _ in range(int(0.2 / size) + 1))
        tall = max(size * height, 0.012 / texel)
        line += 1.5 * tall
        _write(
            texture, text, (rng.uniform(0.02, 0.2) * width, line % height), tall, float(rng.choice([0.06, 0.94])), rng
        )
    border = max(2, int(0.012 / texel))
    cv2.rectangle(texture, (0, 0), (width - 1, height - 1), float(rng.choice([0.1, 0.9])), border)
    return texture


def _collage(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    labels, _ = _cells(height, width, 0.14 / texel, rng)
    texture = rng.uniform(0.2, 0.8, int(labels.max()) + 1).astype(np.float32)[labels]
    area = height * width * texel**2
    _shapes(texture, int(40 + 60 * area), 0.35 / texel, rng)
    for _ in range(int(6 + 14 * area)):
        at = rng.random(2) * (width, height)
        _write(
            texture, _word(rng), (at[0] - 0.1 * width, at[1]), rng.uniform(0.015, 0.12) / texel, rng.uniform(0, 1), rng
        )
    return texture


def _books(height: int, width: int, texel: float, rng: np.random.Generator) -> Texture:
    texture = np.full((height, width), 0.12, np.float32)
    shelf = 0.34 / texel
    for top in np.arange(0, height, shelf):
        bottom = int(min(top + shelf - 0.025 / texel, height))
        u = 0.0
        while u < width:
            thick, tall = rng.uniform(0.012, 0.05) / texel, rng.uniform(0.65, 0.97) * shelf
            left, right = int(u), int(min(u + thick, width))
            upper = max(int(bottom - tall), 0)
            shade = rng.uniform(0.15, 0.9)
            texture[upper:bottom, left:right] = shade
            for band in rng.uniform(upper, bottom, rng.integers(1, 4)):
                texture[int(band) : int(band + 0.012 / texel), left:right] = np.float32((shade + 0.45) % 1)
            if thick * texel > 0.02:
                spine = np.full((right - left, max(bottom - upper, 1)), shade, np.float32)
                _write(spine, _word(rng, 14), (8, 0.75 * (right - left)), 0.55 * thick, (shade + 0.5) % 1, rng)
                turned = cv2.rotate(spine, cv2.ROTATE_90_CLOCKWISE)
                ink = np.abs(turned - shade) > 0.05
                texture[upper:bottom, left:right][ink[: bottom - upper]] = turned[ink]
            texture[upper:bottom, left : left + 1] *= np.float32(0.4)
            u += thick
        texture[bottom : int(bottom + 0.025 / texel), :] = 0.62
    return texture


STYLES: dict[str, Painter] = {
    "plaster": _plaster,
    "bricks": _bricks,
    "stone": _stone,
    "wood": _wood,
    "tiles": _tiles,
    "ceiling": _ceiling,
    "blobs": _blobs,
    "poster": _poster,
    "collage": _collage,
    "books": _books,
}
