"""A gyroscope, compared with the true poses of a drone, and with synthetic rotations."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_world import WorldMatcher, frame, walk
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from loftr_ros.frontend.agreement import SensorState
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.gyroscope import Gyroscope, GyroscopeConfig
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.settings import with_values

Array = NDArray[np.float64]
PERIOD = 5_000_000  # ns
SMALL = np.eye(3) * np.radians(0.1) ** 2
SWAP = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])


def tumbling(seconds: float, seed: int = 0) -> tuple[NDArray[np.int64], Array, list[Rotation]]:
    """Stamps, angular velocities in between, and orientations at the stamps of a smooth motion about all axes."""
    stamps = np.arange(0, int(seconds * 1e9) + 1, PERIOD)
    t = stamps / 1e9
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    rates = np.stack([np.sin(2 * t + phase[0]), 1.5 * np.sin(1.3 * t + phase[1]), np.sin(0.7 * t + phase[2])], axis=1)
    orientations = [Rotation.identity()]
    for k in range(len(stamps) - 1):
        orientations.append(orientations[-1] * Rotation.from_rotvec((rates[k] + rates[k + 1]) / 2 * PERIOD / 1e9))
    return stamps, rates, orientations


def fed(gyroscope: Gyroscope, stamps: NDArray[np.int64], rates: Array) -> Gyroscope:
    for stamp, rate in zip(stamps, rates, strict=True):
        gyroscope.add(int(stamp), rate)
    return gyroscope


def taught(
    gyroscope: Gyroscope, stamps: NDArray[np.int64], rates: Array, truth: list[Rotation], every: int = 40
) -> int:
    """Feed samples, sometimes with the true rotation; returns how many of those agreed."""
    agreed = 0
    for k, (stamp, rate) in enumerate(zip(stamps, rates, strict=True)):
        gyroscope.add(int(stamp), rate)
        if k >= every and k % every == 0:
            turned = (truth[k - every].inv() * truth[k]).as_matrix()
            agreed += bool(gyroscope.matched(int(stamps[k - every]), int(stamp), turned, SMALL))
    return agreed


def degrees_off(found: Array, true: Array) -> float:
    return float(np.degrees(Rotation.from_matrix(found.T @ true).magnitude()))


def test_rates_are_integrated_to_the_rotation_between_any_two_times() -> None:
    stamps, rates, truth = tumbling(4)
    gyroscope = Gyroscope(camera_from_imu=np.eye(3))
    taught(gyroscope, stamps, rates, truth)
    for start, end in ((100, 107), (0, 800), (317, 560)):
        rotated = gyroscope.rotation_between(int(stamps[start]), int(stamps[end]))
        assert rotated is not None
        assert degrees_off(rotated.rotation, (truth[start].inv() * truth[end]).as_matrix()) < 0.05
        assert 0 < rotated.std < 0.1
    between = gyroscope.rotation_between(int(stamps[100]) + 1_000_000, int(stamps[100]) + 3_000_000)
    assert between is not None
    assert np.degrees(Rotation.from_matrix(between.rotation).magnitude()) == pytest.approx(
        np.degrees(np.linalg.norm(rates[100])) * 0.002, rel=0.05
    )


def test_nothing_is_said_where_samples_are_missing_or_nothing_was_compared() -> None:
    stamps, rates, truth = tumbling(3)
    assert fed(Gyroscope(camera_from_imu=np.eye(3)), stamps, rates).rotation_between(0, 10**9) is None
    gyroscope = Gyroscope(camera_from_imu=np.eye(3))
    kept = np.ones(len(stamps), bool)
    kept[450:480] = False  # 150 ms
    taught(gyroscope, stamps[:400], rates[:400], truth)
    fed(gyroscope, stamps[400:][kept[400:]], rates[400:][kept[400:]])
    assert gyroscope.rotation_between(int(stamps[300]), int(stamps[440])) is not None
    assert gyroscope.rotation_between(int(stamps[440]), int(stamps[500])) is None
    assert gyroscope.rotation_between(int(stamps[500]), int(stamps[-1]) + 10**9) is None
    assert Gyroscope().rotation_between(0, 1) is None


def test_a_bias_is_learned_from_matched_rotations() -> None:
    stamps, rates, truth = tumbling(10)
    bias = np.array([0.03, -0.02, 0.05])
    noise = np.random.default_rng(1).normal(0, 0.02, rates.shape)
    gyroscope = Gyroscope(camera_from_imu=np.eye(3))
    taught(gyroscope, stamps, rates + bias + noise, truth)
    assert np.abs(gyroscope.bias - bias).max() < 4 * gyroscope.bias_std < 0.03
    assert gyroscope.state is SensorState.HEALTHY


def test_a_bias_is_learned_while_nothing_moves() -> None:
    bias = np.array([0.01, -0.02, 0.005])
    noise = np.random.default_rng(1).normal(0, 0.003, (1000, 3))
    gyroscope = fed(Gyroscope(camera_from_imu=np.eye(3)), np.arange(1000) * PERIOD, bias + noise)
    assert np.abs(gyroscope.bias - bias).max() < 4 * gyroscope.bias_std < 0.01


def test_a_mounting_is_taken_into_account() -> None:
    stamps, rates, truth = tumbling(4)
    gyroscope = Gyroscope(camera_from_imu=SWAP.T)
    assert taught(gyroscope, stamps, rates @ SWAP.T, truth) == (len(stamps) - 1) // 40
    rotated = gyroscope.rotation_between(0, int(stamps[-1]))
    assert rotated is not None and degrees_off(rotated.rotation, truth[-1].as_matrix()) < 0.05


@pytest.mark.parametrize("mount", [SWAP, np.diag([-1.0, -1, 1])], ids=["swapped", "upside down"])
def test_axes_that_are_mounted_otherwise_are_found_out_and_named(mount: Array) -> None:
    stamps, rates, truth = tumbling(10)
    gyroscope = Gyroscope(camera_from_imu=np.eye(3))
    taught(gyroscope, stamps, rates @ mount.T, truth)
    assert gyroscope.state is SensorState.CONTRADICTS
    assert gyroscope.rotation_between(0, int(stamps[-1])) is None
    axis = int(np.argmax(np.abs(mount[:, 0])))
    sign = "-" if mount[axis, 0] < 0 else ""
    assert f"x of the camera is {sign}{'xyz'[axis]} of the gyroscope" in gyroscope.mounting()


@pytest.mark.parametrize("wrong", ["stuck", "half a second late"])
def test_a_gyroscope_that_goes_wrong_is_found_out_and_one_that_recovers_is_used_again(wrong: str) -> None:
    stamps, rates, truth = tumbling(20)
    spoilt = rates.copy()
    spoilt[1000:2000] = rates[1000] if wrong == "stuck" else rates[900:1900]
    gyroscope = Gyroscope(camera_from_imu=np.eye(3))
    taught(gyroscope, stamps[:1000], spoilt[:1000], truth[:1000])
    assert gyroscope.state is SensorState.HEALTHY
    taught(gyroscope, stamps[1000:2000], spoilt[1000:2000], truth[1000:2000])
    assert gyroscope.state is SensorState.CONTRADICTS
    taught(gyroscope, stamps[2000:], spoilt[2000:], truth[2000:])
    assert gyroscope.state is SensorState.HEALTHY


def test_samples_without_order_or_meaning_change_nothing() -> None:
    stamps, rates, truth = tumbling(3)
    gyroscope = Gyroscope(camera_from_imu=np.eye(3))
    taught(gyroscope, stamps, rates, truth)
    before = gyroscope.rotation_between(10**9, 2 * 10**9)
    for stamp, rate in (
        (int(stamps[-1]), (9, 9, 9)),
        (10**9, (9, 9, 9)),
        (4 * 10**9, (np.nan, 0, 0)),
        (4 * 10**9, (1,)),
    ):
        gyroscope.add(stamp, rate)
    after = gyroscope.rotation_between(10**9, 2 * 10**9)
    assert before is not None and after is not None and np.array_equal(before.rotation, after.rotation)


def test_memory_is_bounded_over_hours() -> None:
    gyroscope = Gyroscope(camera_from_imu=np.eye(3))
    for k in range(40_000):
        gyroscope.add(k * PERIOD, (0.0, 0.0, 0.1 * (k % 7)))
    assert len(gyroscope._samples._stamps) == 1 << 14
    assert len(gyroscope._samples.between(0, 40_000 * PERIOD)[0]) == pytest.approx(12 * 200, abs=2)


@pytest.mark.parametrize(("milliseconds", "most"), [(33, 0.03), (100, 0.06), (330, 0.15), (1000, 0.4)])
def test_a_real_drone_turns_as_its_gyroscope_says(shared_data: Path, milliseconds: int, most: float) -> None:
    folder = shared_data / "imu_with_truth"
    imu = np.genfromtxt(folder / "imu.csv", delimiter=",", skip_header=1)
    stamps = np.genfromtxt(folder / "imu.csv", delimiter=",", skip_header=1, dtype=np.int64, usecols=0)
    truth = np.genfromtxt(folder / "truth.csv", delimiter=",", skip_header=1)
    times = np.genfromtxt(folder / "truth.csv", delimiter=",", skip_header=1, dtype=np.int64, usecols=0)
    orientations = Rotation.from_quat(truth[:, [5, 6, 7, 4]])
    gyroscope = Gyroscope(GyroscopeConfig(), np.eye(3))
    errors, within, sample = [], [], 0
    for k in range(4, len(times), 4):
        if times[k] > stamps[-1]:
            break
        while sample < len(stamps) and stamps[sample] <= times[k] + PERIOD:
            gyroscope.add(int(stamps[sample]), imu[sample, 1:4])
            sample += 1
        gyroscope.matched(
            int(times[k - 4]), int(times[k]), (orientations[k - 4].inv() * orientations[k]).as_matrix(), SMALL
        )
        start = int(np.searchsorted(times, times[k] - milliseconds * 1_000_000))
        rotated = gyroscope.rotation_between(int(times[start]), int(times[k]))
        if rotated is not None and k > 200:
            off = (orientations[start].inv() * orientations[k]) * Rotation.from_matrix(rotated.rotation).inv()
            errors.append(np.degrees(off.magnitude()))
            within.append(off.as_rotvec() @ np.linalg.solve(rotated.covariance, off.as_rotvec()) < 9)
    assert len(errors) > 200
    assert np.percentile(errors, 95) < most
    assert np.mean(within) > 0.95


def test_the_orientation_goes_on_through_a_long_blackout_with_a_covariance_that_grows() -> None:
    poses = walk(60)
    gyroscope = Gyroscope(camera_from_imu=np.eye(3))
    front_end = FrontEnd(WorldMatcher(poses), with_values(FrontEndConfig(), {"mode": "rgbd", "depth.max_depth": 20.0}))
    front_end.use_gyroscope(gyroscope)
    rate = Rotation.from_matrix(poses[29][:3, :3].T @ poses[30][:3, :3]).as_rotvec() * 10
    last = frame(poses, 29, depth=True)
    dark = replace(last, image=np.zeros_like(last.image))
    stds, count = [], 0
    stamp = 10**9
    for number in range(180):  # 15 s of darkness: longer than samples are kept
        seen = number if number < 30 else None
        picture = dark if seen is None else frame(poses, number, depth=True)
        turned = (
            rate
            if number > 29
            else Rotation.from_matrix(poses[max(number - 1, 0)][:3, :3].T @ poses[number][:3, :3]).as_rotvec() * 10
        )
        stamp = 10**9 + number * 10**8
        for part in range(1, 21):
            gyroscope.add(stamp - 10**8 + part * PERIOD, turned)
        result = front_end.process(replace(picture, stamp_ns=stamp))
        if seen is None:
            assert result.orientation is not None, f"nothing after {(number - 29) / 10} s"
            stds.append(float(np.sqrt(np.trace(result.orientation.covariance) / 3)))
            true = poses[0][:3, :3].T @ poses[29][:3, :3] @ Rotation.from_rotvec(rate * (number - 29) / 10).as_matrix()
            count += degrees_off(result.orientation.rotation, true) < max(3 * np.degrees(stds[-1]), 1)
            assert not result.events
    assert len(stds) == 150 and count == 150
    assert all(later > before for before, later in itertools.pairwise(stds))
