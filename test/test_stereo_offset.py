"""The error that all disparities share: found with the motion, in synthetic scenes of known offset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_world import BASELINE, FOCAL, LEFT_FROM_RIGHT, WorldMatcher, frame, walk
from numpy.typing import NDArray

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.stereo_offset import StereoOffset
from loftr_ros.geometry.depth_problem import KERNEL, DepthMatches, DepthProblem
from loftr_ros.geometry.disparity_offset import OffsetMeasurement, measure_offset
from loftr_ros.geometry.epipolar import CommonErrors
from loftr_ros.geometry.se3 import between, rotation_matrix
from loftr_ros.settings import with_values

Array = NDArray[np.float64]

FOCAL_BASELINE = FOCAL * BASELINE
NO_COMMON = CommonErrors(0.0, 0.0)
NOISE = 0.3  # px, of matches and of disparities


def seen_twice(seed: int, offset: float, outliers: float = 0.0) -> tuple[DepthMatches, Array, Array]:
    """Matches of a moving stereo pair whose disparities are too large by an offset, and the true motion."""
    random = np.random.default_rng(seed)
    count = 500
    rays0 = random.uniform(-0.6, 0.6, (count, 2))
    inverse = random.uniform(1 / 12, 1 / 1.5, count)
    rotation, translation = rotation_matrix(np.radians([1.0, -2.0, 0.5])), np.array([0.1, -0.05, 0.4])
    there = (np.insert(rays0, 2, 1.0, axis=1) / inverse[:, None] - translation) @ rotation
    rays1 = there[:, :2] / there[:, 2:] + random.normal(0, NOISE / FOCAL, (count, 2))
    wrong = random.random(count) < outliers
    rays1[wrong] += random.normal(0, 10 * NOISE / FOCAL, (int(wrong.sum()), 2))
    disparity = FOCAL_BASELINE * inverse + offset + random.normal(0, NOISE, count)
    variance = np.full(count, (NOISE / FOCAL_BASELINE) ** 2)
    matches = DepthMatches(rays0, rays1, disparity / FOCAL_BASELINE, variance, np.full(count, NOISE / FOCAL))
    return matches, rotation, translation


def measured(seed: int, offset: float, outliers: float = 0.0) -> OffsetMeasurement:
    matches, rotation, translation = seen_twice(seed, offset, outliers)
    found = measure_offset(matches, FOCAL_BASELINE, rotation, 1.02 * translation, NO_COMMON)
    assert found is not None
    return found


@pytest.mark.parametrize("offset", [-0.4, 0.0, 0.3])
def test_the_offset_is_found_within_the_uncertainty_that_is_stated(offset: float) -> None:
    found = [measured(seed, offset) for seed in range(40)]
    normalised = [(each.value - offset) / each.std for each in found]
    assert max(each.std for each in found) < 0.15
    assert 0.6 < np.mean(np.square(normalised)) < 1.6  # 95 % of chi-squared / 40 is 0.6 to 1.5
    assert abs(np.mean(normalised)) < 3 / np.sqrt(len(found))


def test_wrong_matches_do_not_move_the_offset() -> None:
    found = [measured(seed, 0.3, outliers=0.2) for seed in range(10)]
    assert abs(np.mean([each.value for each in found]) - 0.3) < 0.1


def test_the_derivatives_are_those_of_the_cost() -> None:
    matches, rotation, translation = seen_twice(0, 0.3)
    slope = np.full(len(matches), -1 / FOCAL_BASELINE)

    def at(step: Array) -> float:
        problem = DepthProblem(replace(matches, inverse=matches.inverse + slope * step[6]))
        pose = rotation_matrix(step[3:6]) @ rotation, translation + step[:3]
        return len(matches) * KERNEL**2 / 2 * problem.cost(problem.projection(*pose))

    problem = DepthProblem(matches)
    _, gradient = problem.normal_equations(problem.projection(rotation, translation), slope)
    for axis, width in enumerate([1e-5] * 6 + [1e-4]):
        step = np.zeros(7)
        step[axis] = width
        assert gradient[axis] == pytest.approx((at(step) - at(-step)) / (2 * width), rel=1e-3, abs=1e-2)


def test_a_pair_that_stands_still_tells_no_offset() -> None:
    matches, _, _ = seen_twice(0, 0.3)
    still = replace(matches, rays_current=matches.rays_keyframe.copy())
    found = measure_offset(still, FOCAL_BASELINE, np.eye(3), np.zeros(3), NO_COMMON)
    assert found is None or found.std > 10.0


def test_errors_of_the_calibration_are_told_apart_from_the_noise() -> None:
    matches, rotation, translation = seen_twice(0, 0.0)
    common = CommonErrors(0.004, 1.5 / FOCAL)
    found = measure_offset(matches, FOCAL_BASELINE, rotation, translation, common)
    alone = measure_offset(matches, FOCAL_BASELINE, rotation, translation, NO_COMMON)
    assert found is not None and alone is not None
    assert found.std == pytest.approx(alone.std)
    assert found.by_calibration.shape == (3,) and (found.by_calibration != 0).all()


def walked(offset: float, numbers: int = 30) -> tuple[FrontEnd, float]:
    """A front end after a walk with a stereo pair whose right camera is turned by more than its calibration says, and
    the length of its last steps over the true one.
    """
    poses = walk(numbers, 0.04)
    matcher = WorldMatcher(poses, noise=0.15)
    told = LEFT_FROM_RIGHT.copy()
    # A right camera that looks further to the left sees everything further to the right: disparities get smaller.
    told[:3, :3] = rotation_matrix(np.array([0.0, -offset / FOCAL, 0.0]))
    values = {"mode": "stereo", "keyframe.max_parallax": 0.04, "geometry.centre_std": 0.0, "geometry.focal_std": 0.0}
    front_end = FrontEnd(matcher, with_values(FrontEndConfig(), values))
    places: list[Array] = []
    for number in range(numbers):
        seen = frame(poses, number, right=True)
        assert seen.right is not None
        result = front_end.process(replace(seen, right=replace(seen.right, left_from_right=told)))
        assert result.place is not None
        places.append(result.place.pose)
    late = range(numbers // 2, numbers, 3)
    there, true = (
        sum(float(np.linalg.norm(between(each[k - 3], each[k])[:3, 3])) for k in late) for each in (places, poses)
    )
    return front_end, there / true


def test_a_front_end_learns_the_offset_of_its_pair_and_its_steps_get_their_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    front_end, ratio = walked(0.6)
    assert front_end.localizer.stereo_offset is not None
    value, std = front_end.localizer.stereo_offset.estimate
    assert abs(value - 0.6) < 0.2 and std < 0.1
    assert abs(ratio - 1) < 0.02
    monkeypatch.setattr(StereoOffset, "value", 0.0)
    _, before = walked(0.6)
    assert abs(before - 1) > 0.03


def test_a_pair_whose_calibration_is_right_is_believed() -> None:
    front_end, ratio = walked(0.0)
    assert front_end.localizer.stereo_offset is not None
    assert front_end.localizer.stereo_offset.value == 0.0
    assert abs(ratio - 1) < 0.01
