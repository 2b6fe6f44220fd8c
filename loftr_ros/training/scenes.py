"""Random scenes to render: rooms, streets, clutter, interiors, reliefs; each with a first camera."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import rotation_matrix
from loftr_ros.training.assets import AssetBank
from loftr_ros.training.geometry import Float64, looking
from loftr_ros.training.interior import interior
from loftr_ros.training.relief import make_relief
from loftr_ros.training.stage import ReliefStage, Stage, SurfaceStage
from loftr_ros.training.surfaces import Palette
from loftr_ros.worlds.rasterizer import Raster, Round, Surfaces
from loftr_ros.worlds.texturing import Material

_UP = np.array([0.0, 0, 1])
_TOO_NEAR = 0.15  # m; a camera with this much of its view nearer is inside of an object


def make_stage(bank: AssetBank, rng: np.random.Generator, hardness: float, kind: str) -> Stage:
    """A random scene of a kind ("room", "street", "clutter", "interior" or "relief").

    Args:
        hardness: in [0, 1], see `Palette`; reliefs have none.
    """
    if kind == "relief":
        relief = make_relief(bank, rng)
        return ReliefStage(relief, relief.T_camera_world)
    return make_surfaces(bank, rng, hardness, kind)


def make_surfaces(bank: AssetBank, rng: np.random.Generator, hardness: float, kind: str) -> SurfaceStage:
    """A random scene of any kind but "relief"."""
    return _KINDS[kind](Palette(bank, rng, hardness), rng)


def blocked(view: Raster, least_filled: float = 0.3) -> bool:
    """Whether a camera is too near to objects, or sees anything in less than a share `least_filled` of its view."""
    return blocked_at(view.inverse_depth[::4, ::4], view.surface[::4, ::4], least_filled)


def blocked_at(inverse_depth: NDArray[np.floating], surface: NDArray[np.integer], least_filled: float) -> bool:
    """`blocked` by some pixels of the view: their inverse depths and surfaces, of any shape."""
    return bool((inverse_depth > 1 / _TOO_NEAR).mean() > 0.2 or (surface > 0).mean() < least_filled)


def _walls(o: Float64, X: Float64, Y: Float64) -> tuple[tuple[Float64, Float64], ...]:
    """Start and direction of the four walls around a floor: seen from inside, left to right."""
    return ((o, Y), (o + Y, X), (o + X + Y, -Y), (o + X, -X))


def rotated(rng: np.random.Generator, tilt: float) -> Float64:
    """A rotation about the vertical axis by any angle, then about any axis by up to `tilt` degrees."""
    axis = rng.normal(size=3)
    lean = rotation_matrix(axis / np.linalg.norm(axis) * np.radians(tilt) * rng.random())
    return lean @ rotation_matrix(_UP * rng.uniform(-np.pi, np.pi))


def _room(palette: Palette, rng: np.random.Generator) -> SurfaceStage:
    scene = Surfaces()
    half = np.array([rng.uniform(1.5, 4.5), rng.uniform(1.5, 4.5), rng.uniform(1.1, 1.9)])
    lx, ly, lz = 2 * half
    o = -half
    X, Y, Z = np.diag(2 * half)
    count = int(rng.integers(3, 9))
    sizes = np.stack(
        [rng.uniform(0.1, 0.8, count), rng.uniform(0.1, 0.8, count), np.exp(rng.uniform(-2, 0.2, count))], axis=1
    )
    # Objects are mostly near the walls, because people walk in the middle.
    angle = rng.uniform(-np.pi, np.pi, count)
    reach = rng.uniform(0.45, 1.0, count)
    spots = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None] * (half[:2] - 0.4)
    shadows = np.column_stack(
        [((spots + half[:2]) / (2 * half[:2]))[:, ::-1], sizes[:, :2].max(axis=1) * 1.3 / half[:2].min()]
    )

    def wall(width: float, height: float) -> Material:
        return palette.lit(palette.any(width, height), palette.light())

    scene.quad(o, Y, X, palette.lit(palette.any(ly, lx), palette.light(shadows)))
    scene.quad(
        o + Z, X, Y, palette.lit(palette.plain() if rng.random() < 0.6 else palette.any(lx, ly), palette.light())
    )
    for start, along in _walls(o, X, Y):
        width = float(np.linalg.norm(along))
        scene.quad(start + Z, along, -Z, wall(width, lz))
        inward = np.array([along[1], -along[0], 0]) / width
        for _ in range(int(rng.integers(0, 4))):  # pictures, windows, doors
            w, h = rng.uniform(0.25, 1.4), rng.uniform(0.25, 1.2)
            at = start + along / width * rng.uniform(0, max(width - w, 0.01)) + Z - _UP * rng.uniform(0.1, lz - h)
            at = at + inward * rng.uniform(0.005, 0.08)
            surface = palette.picture(w, h) if rng.random() < 0.7 else palette.any(w, h)
            scene.quad(at, along / width * w, -_UP * h, surface)
    for spot, size in zip(spots, sizes, strict=True):
        _furniture(scene, palette, rng, np.array([*spot, -half[2]]), size)
    eye = np.array([*(rng.uniform(-0.55, 0.55, 2) * half[:2]), rng.uniform(-0.4, 0.7) * half[2]])
    toward = np.array([*spots[int(rng.integers(count))], -half[2] + rng.uniform(0, 1.2)]) - eye
    if rng.random() < 0.4:
        toward = np.array([*rng.normal(size=2), rng.normal(0, 0.25)])
    return SurfaceStage(scene, looking(eye, toward, float(rng.normal(0, 0.1))))


def _furniture(scene: Surfaces, palette: Palette, rng: np.random.Generator, spot: Float64, size: Float64) -> None:
    R = rotation_matrix(_UP * rng.uniform(-np.pi, np.pi))
    half, kind = size / 2, rng.random()
    surfaces = [palette.any(size[k % 2], size[2]) for k in range(int(rng.choice([1, 2, 5])))]
    if kind < 0.45:
        scene.box(spot + _UP * half[2], half, rotated(rng, 15) if rng.random() < 0.3 else R, surfaces)
        if rng.random() < 0.5:  # something on it
            small = rng.uniform(0.04, 0.16, 3)
            scene.box(spot + _UP * (size[2] + small[2]), small, rotated(rng, 0), [palette.any(0.3, 0.3)])
    elif kind < 0.65:  # a table
        top = np.array([half[0] + 0.2, half[1] + 0.2, 0.03])
        height = rng.uniform(0.4, 0.8)
        scene.box(spot + _UP * height, top, R, surfaces, bottom=True)
        for x, y in ((-0.9, -0.9), (0.9, -0.9), (-0.9, 0.9), (0.9, 0.9)):
            foot = spot + R @ np.array([x * top[0], y * top[1], height / 2])
            across = R[:, 0] * 0.06
            scene.quad(foot - across / 2 + _UP * height / 2, across, -_UP * height, surfaces[-1], both_sides=True)
        small = rng.uniform(0.05, 0.15, 3)
        scene.box(spot + _UP * (height + 0.03 + small[2]), small, rotated(rng, 0), [palette.picture(0.2, 0.3)])
    elif kind < 0.8:
        radius = rng.uniform(0.06, 0.35)
        axes = np.array([radius, radius * rng.uniform(0.7, 1.3), size[2] / 2 + 0.05])
        to_local = np.diag(1 / axes) @ R.T
        scene.rounds.append(Round(spot + _UP * axes[2], to_local, True, palette.any(6 * radius, size[2])))
    elif kind < 0.9:
        axes = rng.uniform(0.1, 0.4, 3)
        to_local = np.diag(1 / axes) @ rotated(rng, 30).T
        scene.rounds.append(Round(spot + _UP * (axes[2] + rng.uniform(0, 0.8)), to_local, False, palette.any(2, 1)))
    else:  # a slanted board
        T = rotated(rng, 70)
        scene.quad(spot + _UP * rng.uniform(0, 0.4), T[:, 0] * rng.uniform(0.3, 1.2), T[:, 2] * size[2],
                   surfaces[0], both_sides=True)  # fmt: skip


def _street(palette: Palette, rng: np.random.Generator) -> SurfaceStage:
    scene = Surfaces()
    far = 400.0
    _surround(scene, palette, rng, far)
    half = rng.uniform(3.5, 12)
    lane = palette.tiled(24, 24) if rng.random() < 0.7 else palette.masonry(24, 24)
    ground = Material(
        lane.levels, (lane.repeats[0] * 2 * far / 24, lane.repeats[1] * 400 / 24), lane.shift, *_faint(rng)
    )
    scene.quad(np.array([-200.0, -far, 0]), np.array([0, 2 * far, 0]), np.array([400.0, 0, 0]), ground)
    for x in (-half * rng.uniform(0.4, 0.8), half * rng.uniform(-0.2, 0.2), half * rng.uniform(0.4, 0.8)):
        dash = rng.uniform(1, 4)
        stripe = np.full((16, 64), 225, np.float32)
        paint = Material([stripe.astype(np.uint8)])
        for k in range(int(rng.integers(0, 6))):
            at = np.array([x, -2 + k * dash * rng.uniform(2, 3), 0.01])
            scene.quad(at, np.array([0, dash, 0]), np.array([0.15, 0, 0]), paint)
    for side in (-1.0, 1.0):
        y = -rng.uniform(5, 20)
        open_ground = rng.random() < 0.25
        while y < 70:
            length, height, depth = rng.uniform(5, 18), rng.uniform(3, 14), rng.uniform(4, 12)
            setback = half + rng.uniform(0, 3) + (rng.uniform(8, 30) if open_ground else 0)
            centre = np.array([side * (setback + depth / 2), y + length / 2, height / 2])
            looks = [palette.facade(length, height) if rng.random() < 0.6 else palette.any(length, height)] * 2
            looks += [palette.any(depth, height)] * 2
            box_looks = [looks[2], looks[3], looks[0], looks[1], palette.plain()]
            scene.box(centre, np.array([depth, length, height]) / 2, np.eye(3), box_looks)
            y += length + (rng.uniform(0.5, 12) if rng.random() < 0.6 else 0)
    for _ in range(int(rng.integers(2, 9))):
        side = rng.choice([-1.0, 1.0])
        spot = np.array([side * half * rng.uniform(0.35, 0.95), rng.uniform(3, 40), 0])
        kind = rng.random()
        if kind < 0.45:  # parked cars and crates
            size = np.array([rng.uniform(0.7, 1), rng.uniform(1.5, 2.3), rng.uniform(0.5, 1.1)])
            R = rotation_matrix(_UP * rng.normal(0, 0.1))
            scene.box(spot + _UP * size[2] * 1.1, size, R, [palette.any(4, 1.5)])
        elif kind < 0.75:  # poles and trunks
            radius, height = rng.uniform(0.05, 0.25), rng.uniform(2, 6)
            to_local = np.diag(1 / np.array([radius, radius, height]))
            scene.rounds.append(Round(spot + _UP * height, to_local, True, palette.any(1, 2 * height)))
        if kind > 0.6:  # crowns and bushes
            axes = rng.uniform(0.6, 2.2, 3)
            to_local = np.diag(1 / axes) @ rotated(rng, 20).T
            crown = spot + _UP * (axes[2] * 0.8 + rng.choice([0, 3]))
            scene.rounds.append(Round(crown, to_local, False, palette.tiled(8, 6)))
    eye = np.array([rng.uniform(-0.3, 0.3) * half, 0, rng.uniform(0.5, 2.2)])
    forward = np.array([rng.normal(0, 0.12), 1, rng.normal(-0.03, 0.05)])
    return SurfaceStage(scene, looking(eye, forward, float(rng.normal(0, 0.02))), driving=True)


def _faint(rng: np.random.Generator) -> tuple[float, float]:
    gain = float(rng.uniform(0.2, 0.7))
    return gain, float(rng.uniform(40, 110) * (1 - gain) + 10)


def _surround(scene: Surfaces, palette: Palette, rng: np.random.Generator, far: float) -> None:
    """Sky above, and far away all around either more sky or hills and houses."""
    X, Y, Z = np.diag([2 * far, 2 * far, far])
    low = np.array([-far, -far, 0.0])
    scene.quad(low + Z, X, Y, palette.sky())
    side = palette.sky()
    horizon = palette.picture(4, 1, photo=True) if rng.random() < 0.7 else None
    height = rng.uniform(0.02, 0.12) * far
    for start, along in _walls(low, X, Y):
        scene.quad(start + Z, along, -Z, side)
        if horizon is not None:
            inward = np.array([along[1], -along[0], 0]) / (2 * far)
            scene.quad(start + inward + _UP * height, along, -_UP * height, horizon)


def _clutter(palette: Palette, rng: np.random.Generator) -> SurfaceStage:
    """Boxes, boards and balls at all depths and angles before walls: maximum parallax."""
    scene = Surfaces()
    size = np.array([3.0, 3, 3]) * rng.uniform(0.8, 2)
    X, Y, Z = np.diag(2 * size)
    o = -size
    back = palette.picture(6, 6) if rng.random() < 0.5 else palette.any(6, 6)
    sides = [(start + Z, along, -Z) for start, along in _walls(o, X, Y)]
    for start, along, down in (*sides, (o, Y, X), (o + Z, X, Y)):
        look = back if rng.random() < 0.3 else palette.any(6, 6)
        scene.quad(start, along, down, palette.lit(look, palette.light()))
    heap = rng.random() < 0.4  # on a table top, or in the air
    if heap:
        T = rotated(rng, 20)
        scene.quad(-T[:, 0] * 2 - T[:, 1] * 2 - _UP * 0.6, T[:, 0] * 4, T[:, 1] * 4,
                   palette.lit(palette.any(4, 4), palette.light()), both_sides=True)  # fmt: skip
    for _ in range(int(rng.integers(5, 14))):
        spread = np.array([0.9, 0.9, 0.15]) if heap else np.array([1.1, 1.1, 0.9])
        centre = rng.normal(size=3) * spread - (_UP * 0.3 if heap else 0)
        T = rotated(rng, 10 if heap else 180)
        kind = rng.random()
        if kind < 0.5:
            half = rng.uniform(0.08, 0.45, 3)
            looks = [palette.any(0.8, 0.8) for _ in range(int(rng.choice([1, 1, 3])))]
            scene.box(centre, half, T, looks, bottom=True)
        elif kind < 0.75:
            w, h = rng.uniform(0.3, 1.5, 2)
            scene.quad(centre, T[:, 0] * w, T[:, 2] * h, palette.any(w, h), both_sides=True)
        elif kind < 0.85:  # thin: a cable, a rail, a branch
            scene.quad(centre, T[:, 0] * rng.uniform(0.02, 0.06), T[:, 2] * rng.uniform(1, 3), palette.plain(),
                       both_sides=True)  # fmt: skip
        else:
            to_local = np.diag(1 / rng.uniform(0.12, 0.45, 3)) @ T.T
            scene.rounds.append(Round(centre, to_local, bool(rng.random() < 0.4), palette.any(1.5, 0.8)))
    direction = rng.normal(size=3) * np.array([1, 1, 0.35])
    direction /= np.linalg.norm(direction)
    eye = -direction * rng.uniform(1.6, 2.6)
    return SurfaceStage(scene, looking(eye, direction + rng.normal(0, 0.12, 3), float(rng.normal(0, 0.15))))


_KINDS: dict[str, Callable[[Palette, np.random.Generator], SurfaceStage]] = {
    "room": _room,
    "street": _street,
    "clutter": _clutter,
    "interior": interior,
}
