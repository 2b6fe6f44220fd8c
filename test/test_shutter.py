"""Rolling shutter, exposure and fast turns of the rendered room."""

from __future__ import annotations

import numpy as np
import pytest
from shutter import Motion, Shutter, expose, fast_turns, middle_of

from loftr_ros.geometry.se3 import rotation_degrees
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

CAMERA = default_camera(160, 120)
RATE = 200.0


@pytest.fixture(scope="module")
def motion() -> Motion:
    return Motion(fast_turns(trajectory(120, RATE, 3), RATE, 300.0), RATE)


def test_turns_are_as_fast_as_asked_for_and_the_motion_is_continuous(motion: Motion) -> None:
    rates = [np.degrees(np.linalg.norm(motion.rate(t))) for t in np.arange(0.05, 0.55, 0.01)]
    assert 270 < max(rates) < 400
    steps = [rotation_degrees(motion(t).T[:3, :3] @ motion(t + 0.001)[:3, :3]) for t in np.arange(0.05, 0.5, 0.001)]
    assert max(steps) < 0.4


def test_without_exposure_and_readout_a_view_is_that_of_one_pose(motion: Motion) -> None:
    scene = Scene(3)
    view, plain = expose(scene, CAMERA, motion, 0.2, Shutter()), scene.render(CAMERA, motion(0.2), noise=0)
    assert np.abs(view.image.astype(float) - plain.image).mean() < 2


def test_each_row_of_a_rolling_shutter_is_that_of_its_own_time(motion: Motion) -> None:
    scene, shutter = Scene(3), Shutter(readout=0.04, bands=24)
    view = expose(scene, CAMERA, motion, 0.18, shutter)
    for row in (0, 60, 119):
        own = scene.render(CAMERA, motion(0.18 + 0.04 * (row // 5 * 5 + 2.5) / 120), noise=0).image[row].astype(float)
        other = scene.render(CAMERA, motion(0.18 + 0.04 * (119 - row + 0.5) / 120 + 0.01), noise=0).image[row]
        off = np.abs(view.image[row] - own).mean()
        assert off < 3 and off < 0.3 * np.abs(view.image[row] - other.astype(float)).mean()
    middle = scene.render(CAMERA, motion(middle_of(0.18, shutter)), noise=0)
    assert np.nanmedian(np.abs(view.depth / middle.depth - 1)) < 1e-6


def test_an_exposure_blurs_along_a_turn_alone(motion: Motion) -> None:
    scene = Scene(3)
    sharp, blurred = (expose(scene, CAMERA, motion, 0.2, Shutter(exposure=e)).image.astype(float) for e in (0, 0.015))
    along, across = (np.abs(np.diff(blurred, axis=a)).mean() / np.abs(np.diff(sharp, axis=a)).mean() for a in (1, 0))
    assert along < 0.6 and along < across
