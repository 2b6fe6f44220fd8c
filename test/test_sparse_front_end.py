"""OpenCV's features behind the front end, as benchmarks/trajectory.py compares them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from fakes import FineShiftMatcher, camera, texture

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import DepthImage, Frame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.settings import with_values

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
DEPTH, SHIFT, FOCAL = 2.0, 3, 300.0


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("sparse_front_end")


def passing_a_wall(count: int) -> list[Frame]:
    """A camera that moves to the right before a wall, `SHIFT` pixels a frame, with its depth."""
    wall = cv2.GaussianBlur(texture(240, 320 + SHIFT * count, seed=3), (0, 0), 1.2)
    depth = DepthImage(np.full((240, 320), DEPTH, np.float32), 1.0)
    return [
        Frame(
            np.ascontiguousarray(wall[:, SHIFT * n : SHIFT * n + 320]),
            round((1 + n / 30) * 1e9),
            "camera",
            camera(focal=FOCAL),
            depth=depth,
        )
        for n in range(count)
    ]


# ORB's keypoints are off by a pixel, so a wall's shift is easily mistaken for a rotation.
@pytest.mark.parametrize(
    ("name", "mode", "error"), [("sift", "rgbd", 0.01), ("sift", "mono", 0.01), ("orb", "rgbd", 0.05)]
)
def test_keypoints_carry_depth_from_keyframe_to_keyframe(
    sparse: ModuleType, name: str, mode: str, error: float
) -> None:
    # A keyframe every few frames, so that depth is measured or transferred several times.
    config = with_values(FrontEndConfig(), {"mode": mode, "keyframe.max_parallax": 0.05, "keyframe.max_age": 0.0})
    front_end = FrontEnd(sparse.KeypointPairs(sparse.KeypointMatcher(name), config), config)
    results = [front_end.process(frame) for frame in passing_a_wall(25)]
    keyframes = [event.keyframe.location.pose[0, 3] for result in results for event in result.events]
    assert len(keyframes) >= 4
    located = [result.location for result in results[3:]]
    moved = np.array([location.pose[:3, 3] for location in located])
    true = SHIFT * np.arange(3, 25) * DEPTH / FOCAL
    # A single camera's own unit is the first keyframe's typical depth.
    unit = 1.0 if mode == "rgbd" else DEPTH
    assert np.allclose(moved[:, 0] * unit, true, rtol=0, atol=error)
    assert all(location.segment == 0 and location.is_metric == (mode == "rgbd") for location in located)
    assert sum(len(links) for result in results for links in result.links) > 100


@pytest.mark.parametrize("name", ["sift", "orb"])
def test_all_images_have_as_many_places_and_only_real_keypoints_match(sparse: ModuleType, name: str) -> None:
    pairs = sparse.KeypointPairs(sparse.KeypointMatcher(name), FrontEndConfig())
    blank, frame = replace(passing_a_wall(1)[0], image=np.full((240, 320), 90, np.uint8)), passing_a_wall(1)[0]
    for image in (blank, frame):
        encoded = pairs.encode(image)
        assert encoded.features.tokens.shape[1] == len(encoded.cell_points) == sparse.KEYPOINTS
    assert not pairs.encode(blank).features.usable.any()
    assert len(pairs.match_pair(blank, frame)) == len(pairs.match_pair(frame, blank)) == 0
    found = pairs.match_pair(frame, frame)
    assert len(found) > 100
    # The same image twice: every keypoint is its own partner, at the pixel where it was found.
    real = int(pairs.encode(frame).features.usable.sum())
    assert found.track_id.max() < real
    assert np.array_equal(found.keyframe_points, found.current_points)
    assert np.isnan(found.std).all()


def test_the_nearest_cell_is_the_nearest_keypoint(sparse: ModuleType) -> None:
    pairs = sparse.KeypointPairs(sparse.KeypointMatcher("orb"), FrontEndConfig())
    frame = passing_a_wall(1)[0]
    encoded = pairs.encode(frame)
    points = np.array([[100.3, 80.1], [0.0, 0.0], [250.0, 200.0]], np.float32)
    cell, distance = encoded.nearest_cells(points)
    real = encoded.cell_points[encoded.features.usable[0].numpy()]
    apart = np.linalg.norm(points[:, None] - real, axis=2)
    assert np.allclose(distance, apart.min(axis=1), atol=1e-4)
    assert np.allclose(np.linalg.norm(encoded.cell_points[cell] - points, axis=1), distance, atol=1e-4)
    blank = pairs.encode(replace(frame, image=np.full((240, 320), 90, np.uint8)))
    assert np.isinf(blank.nearest_cells(points)[1]).all()


def test_ignored_pixels_have_no_keypoints(sparse: ModuleType) -> None:
    usable = np.ones((240, 320), np.bool_)
    usable[:, :160] = False
    encoded = sparse.KeypointPairs(sparse.KeypointMatcher("sift"), FrontEndConfig()).encode(
        replace(passing_a_wall(1)[0], usable=usable)
    )
    points = encoded.cell_points[encoded.features.usable[0].numpy()]
    assert len(points) > 20 and points[:, 0].min() >= 159.5


def test_another_order_leaves_out_a_twentieth_and_the_first_nothing(sparse: ModuleType) -> None:
    frames = [Frame(texture(240, 320), n, "camera", camera()) for n in (1, 2)]
    every = PairMatcher(FineShiftMatcher()).match_pair(*frames)
    first, second = (
        sparse.ShakenPairs(FineShiftMatcher(), FrontEndConfig(), order).match_pair(*frames) for order in (0, 1)
    )
    assert np.array_equal(first.track_id, every.track_id)
    assert len(second) == round(0.95 * len(every))
    assert not np.array_equal(second.track_id, np.sort(second.track_id))
    place = np.searchsorted(every.track_id, second.track_id)
    assert np.array_equal(every.track_id[place], second.track_id)
    assert np.array_equal(every.current_points[place], second.current_points)


def test_descriptors_of_either_kind_fit_their_places(sparse: ModuleType) -> None:
    for name, kind in (("sift", torch.float32), ("orb", torch.uint8)):
        features = sparse.KeypointMatcher(name).encode(torch.from_numpy(passing_a_wall(1)[0].image))
        assert features.tokens.dtype == kind and features.tokens.any()
