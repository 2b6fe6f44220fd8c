"""The search over all directions of a small motion, against known motions."""

from __future__ import annotations

import numpy as np
import pytest
from known_scenes import FOCAL, SIZE, rotation
from numpy.typing import NDArray

from loftr_ros.geometry.epipolar import homogeneous
from loftr_ros.geometry.small_motion import minima_of_direction

NOISE, OUTLIERS = 0.3, 0.1


def small_motion(
    direction: NDArray[np.float64], turn: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rays of both images of 150 points that a step of 1.5 % of the least depth moves by some pixels."""
    random = np.random.default_rng(seed)
    pixels = (random.uniform(0, 1, (150, 2)) - 0.5) * SIZE
    points = homogeneous(pixels / FOCAL) * random.uniform(2, 8, (150, 1))
    there = (points - 0.03 * direction) @ turn
    seen = there[:, :2] / there[:, 2:] * FOCAL + random.normal(0, NOISE, (150, 2))
    wrong = random.random(150) < OUTLIERS
    seen[wrong] += random.normal(0, 8, (int(wrong.sum()), 2))
    return homogeneous(pixels / FOCAL), homogeneous(seen / FOCAL)


@pytest.mark.parametrize("seed", range(12))
def test_the_true_direction_is_near_the_first_minimum_whatever_it_is(seed: int) -> None:
    direction = np.random.default_rng(100 + seed).normal(size=3)
    direction /= np.linalg.norm(direction)
    turn = rotation(0.3, -0.2, 0.4)
    rays = small_motion(direction, turn, seed)
    # Rotation as known up to the parallax: half a degree off.
    found = minima_of_direction(*rays, rotation(0.5, 0.1, 0.2), 0.5 / FOCAL, 0.4, 0.2)
    rotated, best = found[0]
    assert np.degrees(np.arccos(best @ direction)) < 25
    assert np.degrees(np.arccos(np.clip((np.trace(rotated.T @ turn) - 1) / 2, -1, 1))) < 0.6


def test_minima_are_apart_and_few() -> None:
    found = minima_of_direction(*small_motion(np.array([1.0, 0, 0]), np.eye(3), 0), np.eye(3), 0.5 / FOCAL, 0.4, 10.0)
    directions = [direction for _, direction in found]
    assert len(found) == 3
    for k, one in enumerate(directions):
        assert np.isclose(np.linalg.norm(one), 1) and all(abs(one @ other) < np.cos(0.4) for other in directions[:k])
