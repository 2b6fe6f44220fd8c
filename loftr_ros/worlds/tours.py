"""Two tours through a building: the camera's path and direction of view."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.worlds.floor_plan import ROOMS, STREAM, TWINS, Zone
from loftr_ros.worlds.scene import look

_STEP = 0.02  # m between the points of a path
_SPEED, _TURN = 0.7, 30.0  # m/s and degrees/s, at most
_CLEAR = 1.1  # m between the path in a room and its walls: furniture is up to 0.65 m deep
_INNER = 1.2  # m between the path and the room's middle

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tours:
    """Camera poses at N equidistant moments.

    Attributes:
        poses: (N, 4, 4) T_world_camera, metres.
        tours: (N,) 0 for the first tour, 1 for the second.
        visits: (N,) number of rooms entered so far.
    """

    poses: Array
    tours: NDArray[np.intp]
    visits: NDArray[np.intp]


def rooms_of_tours(zones: list[Zone], seed: int) -> tuple[list[int], list[int]]:
    """Rooms in order of visit: five in the first tour; in the second the other three and four revisited ones."""
    rng = np.random.default_rng([STREAM, seed, 5])
    turns = [int(rng.integers(2)) for _ in TWINS]
    twins = [pair[turn] for pair, turn in zip(TWINS, turns, strict=True)]
    others = [room for room in range(ROOMS) if not any(room in pair for pair in TWINS)]
    late = int(rng.choice(others))
    first = _order(rng, zones, [*twins, *(room for room in others if room != late)])
    new = [late, *(pair[1 - turn] for pair, turn in zip(TWINS, turns, strict=True))]
    again = [int(room) for room in rng.permutation(first)[:4]]
    return first, _order(rng, zones, [*new, *again])


def _order(rng: np.random.Generator, zones: list[Zone], rooms: list[int]) -> list[int]:
    """A random order among the shorter ones, so that most of the time is spent in rooms, not in the corridor."""

    def length(order: list[int]) -> float:
        doors = [zone.door[0] for zone in (zones[room] for room in order) if zone.door is not None]
        return float(np.abs(np.diff(doors)).sum())

    return min(([int(room) for room in rng.permutation(rooms)] for _ in range(12)), key=length)


def walk(zones: list[Zone], seed: int, rate: float) -> Tours:
    """Both tours, `rate` views per second."""
    rng = np.random.default_rng([STREAM, seed, 6])
    habits = [_Habit.random(rng) for _ in range(ROOMS)]
    points: list[Array] = []
    gazes: list[Array] = []
    marks: list[tuple[int, int, int]] = []  # points, tour, visit
    here, visit = np.array([0.9, 0.0]), 0
    for tour, rooms in enumerate(rooms_of_tours(zones, seed)):
        for room in rooms:
            door = zones[room].door
            assert door is not None
            for part, is_visit in (
                (_along(rng, here, door[0]), False),
                (_round(rng, zones[room], habits[room], tour), True),
            ):
                visit += is_visit
                points.append(part[0])
                gazes.append(part[1])
                marks.append((len(part[0]), tour, visit))
            here = points[-1][-1]
    path, gaze = np.concatenate(points), np.concatenate(gazes)
    path = _smoothed(path, 0.22)
    toward = _smoothed(np.stack([np.cos(gaze), np.sin(gaze)], axis=1), 0.35)
    yaw = np.unwrap(np.arctan2(toward[:, 1], toward[:, 0]))
    seconds = np.maximum(
        np.linalg.norm(np.diff(path, axis=0), axis=1) / _SPEED, np.abs(np.diff(yaw)) / np.radians(_TURN)
    )
    time = np.concatenate([[0.0], np.cumsum(seconds)])
    moments = np.arange(0, time[-1], 1 / rate)
    nearest = np.searchsorted(time, moments)
    counts = [count for count, _, _ in marks]
    tours = np.repeat([tour for _, tour, _ in marks], counts)[nearest]
    visits = np.repeat([number for _, _, number in marks], counts)[nearest]

    def wave(amplitude: float, *periods: float) -> Array:
        waves = [np.sin(2 * np.pi * (moments / period + rng.random())) for period in periods]
        return np.asarray(amplitude * np.mean(waves, axis=0))

    heights = rng.permutation([1.35, 1.6])
    z = heights[tours] + wave(0.1, 6.1, 3.7)
    pitch, roll = np.radians(-6 + wave(7, 3.1, 5.3)), np.radians(wave(4, 2.9, 4.7))
    x, y, yaw = (np.interp(moments, time, values) for values in (*path.T, yaw))
    poses = [look(np.array(p), a, b, c) for *p, a, b, c in zip(x, y, z, yaw, pitch, roll, strict=True)]
    return Tours(np.stack(poses), np.asarray(tours, np.intp), np.asarray(visits, np.intp))


@dataclass(frozen=True)
class _Habit:
    """How both tours go around a room.

    Attributes:
        gaze: direction of view relative to the direction away from the room's middle, radians.
        apart: half of the difference between both tours' gazes, radians.
        sizes: of the round in either tour, from 0 for the smallest to 1 for the largest.
    """

    gaze: float
    apart: float
    sizes: tuple[float, float]

    @classmethod
    def random(cls, rng: np.random.Generator) -> _Habit:
        gaze = rng.choice([-1, 1]) * rng.uniform(40, 150)
        apart = rng.choice([-1, 1]) * rng.uniform(0, 16)
        near, far = rng.uniform(0, 0.25), rng.uniform(0.75, 1)
        return cls(np.radians(gaze), np.radians(apart), (near, far) if rng.random() < 0.5 else (far, near))


def _along(rng: np.random.Generator, start: Array, to: float) -> tuple[Array, Array]:
    """The path along the corridor to a door, looking forward and a little to the sides."""
    beside = rng.uniform(-0.45, 0.45)
    distance = abs(to - start[0])
    count = int(distance / _STEP) + 2
    part = np.linspace(0, 1, count)
    # Over to its side within the first two metres, and back to the middle before the door.
    across = beside * np.clip(np.minimum(part, 1 - part) * distance / 1.0, 0, 1)
    points = np.stack(
        [start[0] + part * (to - start[0]), start[1] * np.clip(1 - part * distance, 0, 1) + across], axis=1
    )
    ahead = 0.0 if to >= start[0] else np.pi
    gaze = ahead + np.radians(18) * np.sin(2 * np.pi * (part * distance / 5.0 + rng.random()))
    return points, gaze


def _round(rng: np.random.Generator, zone: Zone, habit: _Habit, tour: int) -> tuple[Array, Array]:
    """In through the door, once around the room's middle, and out."""
    assert zone.door is not None
    inward = np.sign(zone.centre[1])
    door_x = zone.door[0]
    half = (zone.high - zone.low) / 2
    radii = _INNER + habit.sizes[tour] * (half - _CLEAR - _INNER)
    sense = rng.choice([-1.0, 1.0])
    inside = np.array([door_x, zone.centre[1] - inward * (half[1] - 0.7)])
    first = np.arctan2(inside[1] - zone.centre[1], inside[0] - zone.centre[0])
    turn = np.radians(375)
    count = int(turn * radii.mean() / _STEP)
    around = first + sense * np.linspace(0, turn, count)
    breath = 1 + 0.06 * np.sin(np.linspace(0, turn, count)[:, None] * (1.7, 2.3) + rng.uniform(0, 6.3, 2))
    middle = zone.centre + (0.3 * rng.uniform(-1, 1, 2) if habit.sizes[tour] < 0.5 else 0)
    ring = middle + radii * breath * np.stack([np.cos(around), np.sin(around)], axis=1)
    own = np.radians(14) * np.sin(np.linspace(0, turn, count) * 1.4 + rng.uniform(0, 6.3))
    gaze = around + habit.gaze + (habit.apart if tour else -habit.apart) + own
    enter, leave = _line(np.array([door_x, 0.0]), inside), _line(inside, np.array([door_x, 0.0]))
    to_ring, from_ring = _line(inside, ring[0]), _line(ring[-1], inside)
    points = np.concatenate([enter, to_ring, ring, from_ring, leave])
    ahead = np.full(len(enter) + len(to_ring), inward * np.pi / 2)
    back = np.full(len(from_ring) + len(leave), -inward * np.pi / 2)
    return points, np.concatenate([ahead, gaze, back])


def _line(start: Array, end: Array) -> Array:
    count = int(np.linalg.norm(end - start) / _STEP) + 2
    return np.asarray(start + np.linspace(0, 1, count)[:, None] * (end - start))


def _smoothed(values: Array, length: float) -> Array:
    """(N, 2) values along a path of points `_STEP` apart, smoothed over `length` metres."""
    smooth = cv2.GaussianBlur(values, (1, 0), sigmaX=0.01, sigmaY=length / _STEP, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(smooth, np.float64)
