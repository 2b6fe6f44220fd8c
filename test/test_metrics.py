"""Pose errors, compared with scipy, hand-computed examples and the paper's definition."""

from __future__ import annotations

import numpy as np
import pytest

from loftr_ros.evaluation.metrics import pose_auc, rotation_error, translation_direction_error


def axis_angle(axis: list[float], degrees: float) -> np.ndarray:
    """Rodrigues' formula, written out, accurate for tiny angles."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + 2 * np.sin(angle / 2) ** 2 * cross @ cross


@pytest.mark.parametrize("degrees", [0, 1e-9, 1e-6, 1e-3, 0.1, 5, 90, 179, 179.9999, 179.9999999, 180])
def test_the_rotation_error_is_the_angle_however_small_or_large(degrees: float) -> None:
    turned = axis_angle([1, -2, 0.5], degrees)
    base = axis_angle([0.3, 1, 4], 77)
    # Rounding in a rotation matrix is some 1e-16 rad, that is 1e-14 degrees.
    assert rotation_error(np.eye(3), turned) == pytest.approx(degrees, abs=3e-14, rel=1e-12)
    assert rotation_error(base, base @ turned) == pytest.approx(degrees, abs=1e-13, rel=1e-12)
    assert rotation_error(base @ turned, base) == pytest.approx(degrees, abs=1e-13, rel=1e-12)


def test_the_rotation_error_is_scipy_s() -> None:
    transform = pytest.importorskip("scipy.spatial.transform")
    rng = np.random.default_rng(1)
    for size in (1e-8, 1e-4, 0.1, 3.1):
        for _ in range(20):
            a = transform.Rotation.random(random_state=int(rng.integers(1 << 30)))
            direction = rng.normal(size=3)
            b = a * transform.Rotation.from_rotvec(size * direction / np.linalg.norm(direction))
            expected = np.degrees((a.inv() * b).magnitude())
            assert rotation_error(a.as_matrix(), b.as_matrix()) == pytest.approx(expected, abs=1e-12, rel=1e-9)


@pytest.mark.parametrize("degrees", [0, 1e-9, 1e-4, 3, 90, 179.9999, 180])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_the_translation_error_is_the_angle_between_directions_whatever_the_lengths(
    degrees: float, scale: float
) -> None:
    direction = np.array([0.6, 0, 0.8])
    turned = axis_angle([0, 1, 0], degrees) @ direction
    assert translation_direction_error(scale * turned, direction) == pytest.approx(degrees, abs=1e-13, rel=1e-12)


def test_a_translation_of_zero_points_nowhere_which_counts_as_ninety_degrees() -> None:
    assert translation_direction_error(np.zeros(3), [0, 0, 1]) == 90
    assert translation_direction_error([0, 0, 1], np.zeros(3)) == 90


def test_an_estimate_that_points_backwards_is_wrong_by_half_a_turn() -> None:
    assert translation_direction_error([0, 0, -2], [0, 0, 1]) == 180


def test_the_auc_of_a_hand_computed_example() -> None:
    # Recall rises in straight lines from (0, 0) to (1, 1/4), (2, 1/2), (4, 3/4) and stays from there to the threshold
    # of 5: 1/8 + 3/8 + 5/4 + 3/4 = 2.5. At 10 the fourth error counts: (3/4 + 1) / 2 * 4 + 2 in place of the last 3/4.
    errors = [4.0, 1.0, 8.0, 2.0]
    assert pose_auc(errors, (5.0, 10.0)) == pytest.approx([100 * 2.5 / 5, 100 * (1.75 + 3.5 + 2) / 10])


def test_the_auc_is_the_exact_integral_of_the_paper_s_recall_curve() -> None:
    # Section 4.2: the curve through (error, share of pairs with at most that error), held from the last error
    # below the threshold on. Integrated here on a fine grid.
    errors = np.random.default_rng(5).gamma(1.0, 6.0, 57)
    knots, recall = np.r_[0, np.sort(errors)], np.arange(58) / 57
    for threshold in (5.0, 10.0, 20.0):
        below = knots < threshold
        grid = np.linspace(0, threshold, 400001)
        curve = np.interp(grid, knots[below], recall[below])
        expected = 100 * (curve[1:] + curve[:-1]).mean() / 2
        assert pose_auc(errors, (threshold,))[0] == pytest.approx(expected, abs=1e-3)


def test_the_auc_is_0_without_a_good_pose_and_100_without_an_error() -> None:
    assert pose_auc([np.inf, 50.0]).tolist() == [0, 0, 0]
    assert pose_auc([0.0, 0.0, 0.0]).tolist() == [100, 100, 100]


def test_pairs_without_a_pose_count_as_failures_whether_marked_by_inf_or_nan() -> None:
    with_inf, with_nan = pose_auc([1.0, 2.0, np.inf]), pose_auc([1.0, np.nan, 2.0])
    assert np.array_equal(with_inf, with_nan)
    assert (with_inf < pose_auc([1.0, 2.0])).all()


def test_the_order_of_the_errors_does_not_matter() -> None:
    errors = np.random.default_rng(2).uniform(0, 30, 40)
    assert np.array_equal(pose_auc(errors), pose_auc(errors[::-1]))


def test_no_pairs_have_no_auc() -> None:
    assert np.isnan(pose_auc([])).all()
