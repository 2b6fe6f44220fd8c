"""Lucas-Kanade refinement: sub-pixel with texture, refusal without."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from fakes import texture

from loftr_ros.frontend.config import RefineConfig
from loftr_ros.frontend.refinement import refine


def grid(height: int, width: int) -> np.ndarray:
    u, v = np.meshgrid(np.arange(40, width - 40, 16), np.arange(40, height - 40, 16))
    return np.stack([u.ravel(), v.ravel()], axis=1).astype(np.float32) + 7.5


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.3, -1.7), (7.9, 6.4), (-20.25, 12.5)])
def test_points_end_within_a_tenth_of_a_pixel_of_the_true_shift(shift: tuple[float, float]) -> None:
    image = texture(240, 320)
    moved = cv2.warpAffine(image, np.array([[1, 0, shift[0]], [0, 1, shift[1]]]), (320, 240), flags=cv2.INTER_CUBIC)
    points = grid(240, 320)
    coarse = points + np.round(np.array(shift, np.float32) / 16) * 16
    refined, trusted = refine(image, moved, points, coarse, RefineConfig())
    assert trusted.mean() > 0.9
    error = np.linalg.norm(refined - points - shift, axis=1)[trusted]
    # Lucas-Kanade's bilinear sampling alone is off by up to 0.06 px at a quarter pixel.
    assert np.median(error) < 0.08
    assert np.percentile(error, 95) < 0.1


def test_points_in_what_is_not_the_same_place_are_refused() -> None:
    points = grid(240, 320)
    _, trusted = refine(texture(240, 320, 0), texture(240, 320, 1), points, points, RefineConfig())
    assert trusted.mean() < 0.05


def test_a_flat_image_gives_no_points() -> None:
    flat = np.full((240, 320), 128, np.uint8)
    points = grid(240, 320)
    assert not refine(flat, flat, points, points, RefineConfig())[1].any()


def test_points_that_leave_the_image_are_refused() -> None:
    image = texture(240, 320)
    moved = cv2.warpAffine(image, np.array([[1.0, 0, -60], [0, 1, 0]]), (320, 240))
    points = grid(240, 320)
    refined, trusted = refine(image, moved, points, points - np.float32([64, 0]), RefineConfig())
    assert trusted[points[:, 0] > 100].mean() > 0.8
    assert (refined[trusted] >= 0).all()


def test_nothing_in_gives_nothing_out() -> None:
    image, none = texture(64, 64), np.zeros((0, 2), np.float32)
    refined, trusted = refine(image, image, none, none, RefineConfig())
    assert refined.shape == (0, 2) and trusted.shape == (0,)
