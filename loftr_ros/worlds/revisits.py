"""Worlds with revisited places: walks through a building, with true poses, depth, and the overlap of views.

A walk makes two tours. The first visits five of eight rooms. The second returns to four of them and visits the other
three for the first time, in another order, in other light, with another exposure and on other paths: views of both
tours are up to 2 m apart and more, and rotated against each other by up to 45 degrees. Between two visits of a room lie
the corridor and other rooms. Of each pair of twins (see `floor_plan`) the first tour enters one, the second the other.

Seeds of `World`, so that nothing is tuned on reported results: 700 to 799 are reported (without 703 and 704, which were
inspected), 800 to 899 are for tuning thresholds, 900 to 999 for fitting descriptors. Training uses none of them: it
renders its own scenes from photos.
"""

from __future__ import annotations

import zlib
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loftr_ros.worlds.building import Building
from loftr_ros.worlds.floor_plan import ROOMS, STREAM, TWINS, floor_plan
from loftr_ros.worlds.scene import NOISE, default_camera
from loftr_ros.worlds.tours import walk

REPORTED, TUNING, FITTING = range(700, 800), range(800, 900), range(900, 1000)
RATE = 1.0  # views per second, spaced like keyframes: steps of 0.7 m or rotations of 30 degrees at most
FIRST_STAMP_NS = 1_000_000_000
MAX_ANGLE, MAX_DISTANCE, MIN_COVISIBLE = 30.0, 2.0, 0.3  # definition of a revisit: degrees, metres, covisible part
OTHER_PLACE = 0.02  # largest covisible part of two views of different places
_SMALL = 10  # factor by which views are reduced to count covisibility
_VERSION = 1  # of the cache's contents

Array = NDArray[np.float64]


class RenderedView(NamedTuple):
    """One view: (480, 640) uint8 gray, (4, 4) T_world_camera in metres, and its stamp in nanoseconds."""

    image: NDArray[np.uint8]
    pose: Array
    stamp_ns: int


class Relations(NamedTuple):
    """Relations of all N views, (N, N) arrays; the first index is the first view.

    Attributes:
        angle: between the cameras' orientations, degrees.
        distance: between the cameras, metres.
        seen: part of the first view's pixels visible in the second, by depth and including occlusion, in [0, 1].
    """

    angle: Array
    distance: Array
    seen: Array

    @property
    def covisible(self) -> Array:
        """The smaller of the visible parts in both directions."""
        return np.minimum(self.seen, self.seen.T)

    @property
    def is_revisit(self) -> NDArray[np.bool_]:
        """Pairs that should be found: at most 30 degrees and 2 m apart, with 30 % of either view visible in the
        other.
        """
        near = (self.angle <= MAX_ANGLE) & (self.distance <= MAX_DISTANCE)
        return np.asarray(near & (self.covisible >= MIN_COVISIBLE))

    @property
    def is_other_place(self) -> NDArray[np.bool_]:
        """Pairs without overlap: a loop between them is false whatever its pose."""
        return np.asarray(np.maximum(self.seen, self.seen.T) <= OTHER_PLACE)


class World:
    """A building and a walk through it. The building takes some 15 s and 0.5 GB, a view 0.12 s, when it is needed.

    Attributes:
        seed: decides everything.
        camera: of all views, without distortion.
        poses: (N, 4, 4) T_world_camera of the views.
        stamps: N stamps in nanoseconds.
        rooms: (N,) number of the room that each camera is in, 8 for the corridor.
        tours: (N,) 0 or 1.
        cache: folder that rendered views are kept in, or None.
    """

    def __init__(self, seed: int, rate: float = RATE, cache: Path | None = None) -> None:
        """Plan the walk.

        Args:
            seed: of building and walk; this module lists the uses of seeds.
            rate: views per second; tracking needs about 10.
            cache: folder for rendered views, 200 MB per world; None for no cache.
        """
        self.seed, self.rate = seed, rate
        self._lender: World | None = None
        self.camera = default_camera()
        self.cache = cache
        self._cache = None if cache is None else cache / f"revisits{_VERSION}_{seed}_{rate:g}"
        zones = floor_plan(seed)
        walked = walk(zones, seed, rate)
        self.poses, self.tours = walked.poses, walked.tours
        self.stamps = [FIRST_STAMP_NS + round(k * 1e9 / rate) for k in range(len(self.poses))]
        gaps = [np.abs(self.poses[:, :2, 3] - z.centre) - (z.high - z.low) / 2 for z in zones]
        self.rooms = np.argmin([gap.max(axis=1) for gap in gaps], axis=0)
        rng = np.random.default_rng([STREAM, seed, 7])
        gains, phase = rng.permutation([1.0, rng.choice([0.65, 1.5])]), rng.random()
        self._gains = gains[self.tours] * (1 + 0.12 * np.sin(2 * np.pi * (np.arange(len(self)) / rate / 11 + phase)))

    def __len__(self) -> int:
        return len(self.poses)

    @cached_property
    def building(self) -> Building:
        """The building, created on first use."""
        return Building(self.seed) if self._lender is None else self._lender.building

    def share(self, other: World) -> None:
        """Use the building of another world with the same seed.

        Raises:
            ValueError: the seed differs.
        """
        if other.seed != self.seed:
            raise ValueError(f"world {self.seed} cannot use the building of world {other.seed}")
        self._lender = other

    def render(self, pose: Array, light: int = 0, gain: float = 1.0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Render a view from any (4, 4) pose: (480, 640) uint8, and its depth along the optical axis in metres,
        float32.

        Args:
            pose: T_world_camera.
            light: 0 for that of the first tour, 1 for the second's.
            gain: of the exposure.
        """
        size = self.camera.width, self.camera.height
        image, depth = self.building.render(self.camera.matrix, size, pose, light)
        rng = np.random.default_rng([STREAM, self.seed, zlib.crc32(np.ascontiguousarray(pose).tobytes())])
        # Through the camera's response, which never saturates (see `Building`).
        exposed = 255 * (1 - (1 - image / 255) ** gain)
        exposed += NOISE * rng.standard_normal(image.shape, dtype=np.float32)
        return np.clip(exposed + 0.5, 0, 255).astype(np.uint8), depth

    def view(self, number: int) -> RenderedView:
        """The view with a number from 0."""
        file = None if self._cache is None else self._cache / f"{number:05d}.npy"
        if file is not None and file.is_file():
            image = np.load(file)
        else:
            image, _ = self.shot(number)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, image)
        return RenderedView(image, self.poses[number], self.stamps[number])

    def shot(self, number: int, to_the_right: float = 0.0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Image and depth of a view by number, or of a camera so many metres beside it, see `render`; not cached."""
        pose = self.poses[number].copy()
        pose[:3, 3] += to_the_right * pose[:3, 0]
        return self.render(pose, int(self.tours[number]), float(self._gains[number]))

    def views(self) -> list[RenderedView]:
        """All views in order of time."""
        return [self.view(number) for number in range(len(self))]

    @cached_property
    def relations(self) -> Relations:
        """Relations of all pairs of views. Takes half a minute, once with a cache."""
        traces = np.einsum("nik,mik->nm", self.poses[:, :3, :3], self.poses[:, :3, :3])
        angle = np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))
        places = self.poses[:, :3, 3]
        distance = np.linalg.norm(places[:, None] - places[None], axis=2)
        file = None if self._cache is None else self._cache / "seen.npy"
        if file is not None and file.is_file():
            return Relations(angle, distance, np.load(file))
        seen = self._seen(angle)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, seen)
        return Relations(angle, distance, seen)

    def _seen(self, angle: Array) -> Array:
        small = default_camera(self.camera.width // _SMALL, self.camera.height // _SMALL)
        size = small.width, small.height
        depths = [self.building.render(small.matrix, size, pose, supersample=1)[1] for pose in self.poses]
        v, u = np.mgrid[: small.height : 2, : small.width : 2].reshape(2, -1)
        rays = np.stack([u, v, np.ones_like(u)], axis=1) @ np.linalg.inv(small.matrix).T
        to_camera = np.linalg.inv(self.poses)
        seen = np.eye(len(self))
        for one in range(len(self)):
            depth = depths[one][v, u][:, None]
            points = (
                rays * np.where(np.isfinite(depth), depth, np.nan) @ self.poses[one, :3, :3].T + self.poses[one, :3, 3]
            )
            # Cameras whose directions differ by more than their field of view of 63 degrees, plus a margin, share
            # nothing.
            for other in np.flatnonzero(angle[one] < 100):
                if other != one:
                    local = points @ to_camera[other, :3, :3].T + to_camera[other, :3, 3]
                    ahead = local[local[:, 2] > 0.1]
                    pixels = np.rint(ahead @ small.matrix.T[:, :2] / ahead[:, 2:]).astype(np.intp)
                    inside = ((pixels >= 0) & (pixels < size)).all(axis=1)
                    there = depths[other][pixels[inside, 1], pixels[inside, 0]]
                    seen[one, other] = (ahead[inside, 2] < 1.05 * there + 0.02).sum() / len(points)
        return seen

    def alike(self, first: int, second: int) -> str:
        """Why two views of different places look alike: `twins`, `corridor`, `stock`, or nothing.

        `twins`: in two rooms of one layout; `corridor`: both in the corridor, with its equal doors; `stock`: in two
        other rooms, which share furniture, pictures and a wall.
        """
        rooms = {int(self.rooms[first]), int(self.rooms[second])}
        if rooms in [set(pair) for pair in TWINS]:
            return "twins"
        if len(rooms) == 1:
            return "corridor" if rooms == {ROOMS} else ""
        return "" if ROOMS in rooms else "stock"
