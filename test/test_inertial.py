"""Metres and gravity for a single camera by an inertial sensor, against motions that are known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from known_inertia import IN_A_HAND, MOUNT, ROBOT, STEP_NS, UNTOLD, Carried, moving, still

pytest.importorskip("gtsam")

import gtsam

from loftr_ros.backend.back_end import BackEnd
from loftr_ros.backend.config import BackEndConfig, InertialConfig
from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.backend.inertial import _POSE, _UNIT, InertialSolution, _Window, solve_inertial
from loftr_ros.backend.measurements import KeyframeKey, Length, LoopMeasurement, PoseMeasurement
from loftr_ros.backend.storage import load_map, save_map
from loftr_ros.geometry.se3 import between, from_quaternion, inverse, rotation_matrix
from loftr_ros.settings import with_values
from loftr_ros.worlds.inertial import InertialSensor, inertial_readings

CONFIG = BackEndConfig()
QUIET = InertialSensor(200.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def angle(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(one @ other, -1, 1))))


def solved(carried: Carried, count: int = 21, mount: np.ndarray = MOUNT) -> InertialSolution | None:
    stretches = carried.samples(count, mount).between([k * STEP_NS for k in range(count)])
    assert stretches is not None
    links = [(k - 1, carried.link(k)) for k in range(1, count)]
    return solve_inertial(links, stretches, mount, CONFIG.inertial, CONFIG.noise)


def with_sensor(
    carried: Carried, count: int, mount: np.ndarray = MOUNT, later: float = 0.0, **values: object
) -> BackEnd:
    back_end = BackEnd(with_values(BackEndConfig(), values))
    samples = back_end.imu[ROBOT] = ImuSamples(mount)
    known = carried.samples(count + 2, mount)
    for at, sample in zip(known._stamps, known._samples, strict=True):
        samples.add(at + round(later * 1e9), sample[:3], sample[3:])
    for k in range(count):
        back_end.add_keyframe(carried.keyframe(k))
    return back_end


def test_a_sensor_at_rest_measures_gravity_upward_and_one_on_a_turntable_its_turning() -> None:
    at_rest = inertial_readings(moving(still, still), 0.0, 0.1, np.eye(4), QUIET)
    np.testing.assert_allclose(at_rest.accelerations, np.tile([0, 0, 9.81], (20, 1)), atol=1e-6)
    away = np.eye(4)
    away[0, 3] = 0.5
    turning = inertial_readings(moving(still, lambda t: (0.0, 0.0, 2.0 * t)), 0.0, 0.1, away, QUIET)
    np.testing.assert_allclose(turning.rates, np.tile([0, 0, 2.0], (20, 1)), atol=1e-6)
    np.testing.assert_allclose(turning.accelerations, np.tile([-(2.0**2) * 0.5, 0, 9.81], (20, 1)), atol=1e-5)


def test_samples_between_two_times_are_the_integral_whatever_the_stamps_and_none_where_some_are_missing() -> None:
    samples = ImuSamples(np.eye(4))
    for k in range(100):
        samples.add(k * 7_000_000, (0.01 * k, 0.0, 0.0), (0.0, 0.0, 9.81))
    samples.add(50 * 7_000_000, (9.0, 9.0, 9.0), (9.0, 9.0, 9.0))  # late
    samples.add(100 * 7_000_000, (np.nan, 0.0, 0.0), (0.0, 0.0, 9.81))
    assert len(samples) == 100
    found = samples.between([10_000_000, 333_000_000, 600_000_000])
    assert found is not None
    for (steps, values), start, end in zip(found, (0.010, 0.333), (0.333, 0.600), strict=True):
        assert steps.sum() == pytest.approx(end - start)
        assert (steps @ values)[0] == pytest.approx(0.01 / 0.007 * (end**2 - start**2) / 2, rel=1e-9)
    assert samples.between([10_000_000, 700_000_000]) is None, "the last is of 693 ms"
    samples.add(99 * 7_000_000 + 150_000_000, (0.0, 0.0, 0.0), (0.0, 0.0, 9.81))
    assert samples.between([10_000_000, 750_000_000]) is None, "a gap of 150 ms"


def test_the_derivatives_of_a_link_are_the_differences_of_its_error() -> None:
    carried = Carried(IN_A_HAND)
    stretches = carried.samples(7).between([k * STEP_NS for k in range(7)])
    assert stretches is not None
    window = _Window([(k - 1, carried.link(k)) for k in range(1, 7)], stretches, MOUNT, CONFIG.inertial, CONFIG.noise)
    factor = window._link(2, 4, carried.link(3))
    values = gtsam.Values()
    for k in (2, 4):
        values.insert(_POSE + k, gtsam.Pose3(carried.camera(k) @ MOUNT))
    values.insert(_UNIT + 2, np.array([0.4]))
    linear = factor.linearize(values)
    matrix, keys, step = linear.jacobian()[0], list(factor.keys()), 1e-6
    column = 0
    for key, size in zip(keys, (6, 6, 1), strict=True):
        for k in range(size):
            moved, other = gtsam.VectorValues(), gtsam.VectorValues()
            moved.insert(key, step * np.eye(size)[k])
            other.insert(key, -step * np.eye(size)[k])
            ends = [factor.whitenedError(values.retract(each)) for each in (moved, other)]
            np.testing.assert_allclose(matrix[:, column], (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-3)
            column += 1


@pytest.mark.parametrize("seed", [0, 1])
def test_metres_gravity_and_biases_are_found_in_a_hand(seed: int) -> None:
    carried = Carried(IN_A_HAND, seed, unit=(0.3, 2.0)[seed])
    found = solved(carried)
    assert found is not None
    _, unit = found.measurement()
    assert unit.metres / carried.unit == pytest.approx(1, abs=0.05) and unit.std < 0.08
    assert abs(np.log(unit.metres / carried.unit)) < 3 * unit.std
    assert angle(found.down, carried.down()) < 1.5 and found.down_std < np.radians(1.5)
    assert found.misfit < 1
    last = between(carried.camera(0), carried.camera(20))
    assert np.linalg.norm(found.poses[-1][:3, 3] - last[:3, 3]) < 0.1
    # The sensor's velocity over a short time, about the first camera's axes.
    places = [carried.motion(10 * STEP_NS / 1e9 + shift) @ MOUNT for shift in (-0.01, 0.01)]
    velocity = carried.camera(0)[:3, :3].T @ (places[1][:3, 3] - places[0][:3, 3]) / 0.02
    assert np.linalg.norm(found.velocities[10] - velocity) < 0.1


@pytest.mark.parametrize("name", UNTOLD)
def test_what_the_motion_does_not_tell_stays_unknown(name: str) -> None:
    number = 0
    for seed in range(3):
        found = solved(Carried(UNTOLD[name], seed))
        if found is not None:  # else GTSAM says by itself that the system is indeterminate
            number += 1
            assert found.measurement()[1].std > 0.3, "no number of metres may be given out for a motion without any"
            assert angle(found.down, Carried(UNTOLD[name]).down()) < 3, "but gravity is seen"
    assert number
    back_end = with_sensor(Carried(UNTOLD[name]), 40)
    back_end.optimise()
    assert not back_end.graph.units and not any(place.is_metric for _, place in back_end.places())
    assert "scale unknown: the motion" in (back_end.inertial_report(ROBOT) or "")


def test_a_sensor_that_is_mounted_otherwise_contradicts_the_images() -> None:
    turned = MOUNT.copy()
    turned[:3, :3] = rotation_matrix([0, 0, np.pi / 2]) @ MOUNT[:3, :3]
    found = solved(Carried(IN_A_HAND), mount=turned)
    assert found is not None and found.misfit > 10 * CONFIG.inertial.max_misfit
    back_end = with_sensor(Carried(IN_A_HAND), 21, turned)
    back_end.optimise()
    assert not any(place.is_metric for _, place in back_end.places())
    assert "contradicts the images" in (back_end.inertial_report(ROBOT) or "")


@pytest.mark.parametrize("later", [0.12, -0.08])
def test_a_sensor_whose_clock_differs_tells_the_same_metres_and_by_how_much_it_differs(later: float) -> None:
    units = []
    for offset in (0.0, later):
        back_end = with_sensor(Carried(IN_A_HAND), 40, later=offset)
        assert back_end.clock_offsets[ROBOT].seconds == pytest.approx(offset, abs=0.015)
        units.append([unit.metres for unit in back_end.graph.units.values()])
    assert units[0] and units[0] == pytest.approx(units[1], rel=0.01)
    word = "later" if later > 0 else "earlier"
    assert re.search(rf"{word} than the camera's, which is allowed for", back_end.inertial_report(ROBOT) or "")


def test_before_it_is_known_by_how_much_its_clock_differs_a_sensor_tells_no_metres() -> None:
    back_end = with_sensor(Carried(IN_A_HAND), 13, later=0.1)
    assert not back_end.graph.units and "clock differs" in (back_end.inertial_report(ROBOT) or "")


def test_a_clock_beyond_what_is_searched_for_contradicts_the_images() -> None:
    back_end = with_sensor(Carried(IN_A_HAND), 42, later=0.6)
    assert not back_end.graph.units and "contradicts the images" in (back_end.inertial_report(ROBOT) or "")


def test_a_map_of_a_single_camera_is_in_metres_once_a_sensor_tells_them_and_stays_so_in_its_file(
    tmp_path: Path,
) -> None:
    carried = Carried(IN_A_HAND)
    back_end = with_sensor(carried, 36)
    assert not any(place.is_metric for _, place in back_end.places()), "the graph is not solved yet"
    assert back_end.counts.units >= 1 and not back_end.is_solved
    back_end.optimise()
    places = [place for _, place in back_end.places()]
    assert all(place.is_metric for place in places)
    true = np.array([between(carried.camera(0), carried.camera(k))[:3, 3] for k in range(36)])
    found = np.array([place.camera.pose[:3, 3] for place in places])
    assert np.linalg.norm(found) / np.linalg.norm(true) == pytest.approx(1, abs=0.05)
    down = back_end.down(0)
    assert down is not None and angle(down, carried.down()) < 1.5
    assert "metres by" in (back_end.inertial_report(ROBOT) or "")
    covariance = back_end.covariance(KeyframeKey(ROBOT, 36))
    assert covariance is not None
    off = np.linalg.norm(found[-1] - true[-1])
    assert off < 4 * np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1])
    save_map(back_end, tmp_path / "map.npz")
    again = BackEnd()
    load_map(again, tmp_path / "map.npz")
    again.optimise()
    for (_, place), (_, other) in zip(again.places(), back_end.places(), strict=True):
        assert place.is_metric
        np.testing.assert_allclose(place.camera.pose, other.camera.pose, atol=1e-3)
    assert again.down(0) == pytest.approx(down)


def test_loops_of_a_map_in_metres_are_solved_with_its_unit() -> None:
    carried = Carried(IN_A_HAND)
    back_end = with_sensor(carried, 36)
    pose = between(carried.camera(2), carried.camera(33))
    pose[:3, 3] /= carried.unit
    loop = PoseMeasurement(pose, np.diag(np.repeat([1e-5, 1e-6], 3)), Length.OWN_UNIT)
    back_end.add_loop(LoopMeasurement(KeyframeKey(ROBOT, 3), KeyframeKey(ROBOT, 34), loop))
    back_end.optimise()
    assert back_end.believed() == [True]
    one, other = (back_end.place(KeyframeKey(ROBOT, k)) for k in (3, 34))
    assert one is not None and other is not None and one.is_metric
    apart = np.linalg.norm(one.camera.pose[:3, 3] - other.camera.pose[:3, 3])
    assert apart == pytest.approx(carried.unit * np.linalg.norm(pose[:3, 3]), rel=0.1)


def test_with_samples_missing_or_a_mount_unknown_nothing_is_said_of_metres() -> None:
    carried = Carried(IN_A_HAND)
    without = BackEnd()
    without.imu[ROBOT] = carried.samples(12)  # and none later
    without.imu[ROBOT].camera_from_imu = None
    for k in range(24):
        without.add_keyframe(carried.keyframe(k))
    assert not without.graph.units and "its pose in the camera is not known" in (without.inertial_report(ROBOT) or "")
    late = BackEnd(BackEndConfig(inertial=InertialConfig(window=5.0)))
    late.imu[ROBOT] = carried.samples(5)
    for k in range(24):
        late.add_keyframe(carried.keyframe(k))
    assert not late.graph.units and "no window yet" in (late.inertial_report(ROBOT) or "")
    late.optimise()
    assert not any(place.is_metric for _, place in late.places())


@pytest.mark.data
def test_a_real_drone_s_scale_and_gravity_are_found_from_poses_in_another_unit(shared_data: Path) -> None:
    folder = shared_data / "imu_with_truth"
    imu, truth = (np.genfromtxt(folder / name, delimiter=",", skip_header=1) for name in ("imu.csv", "truth.csv"))
    stamps, times = (
        np.genfromtxt(folder / name, delimiter=",", skip_header=1, dtype=np.int64, usecols=0)
        for name in ("imu.csv", "truth.csv")
    )
    samples, random, unit = ImuSamples(MOUNT), np.random.default_rng(0), 0.4
    for stamp, row in zip(stamps, imu, strict=True):
        samples.add(int(stamp), row[1:4], row[4:7])
    for start in (6.0, 20.0):
        numbers = np.searchsorted(times, times[0] + (1e9 * np.arange(start, start + 10.01, 0.5)).astype(np.int64))
        cameras = [from_quaternion(truth[k, 1:4], (*truth[k, 5:8], truth[k, 4])) @ inverse(MOUNT) for k in numbers]
        links = []
        for k in range(len(cameras) - 1):
            pose = between(cameras[k], cameras[k + 1])
            pose[:3, 3] *= (1 + 0.01 * random.normal(size=3)) / unit
            links.append((k, PoseMeasurement(pose, np.diag(np.repeat([1e-4, 1e-6], 3)), Length.OWN_UNIT)))
        stretches = samples.between([int(times[k]) for k in numbers])
        assert stretches is not None
        found = solve_inertial(links, stretches, MOUNT, CONFIG.inertial, CONFIG.noise)
        assert found is not None and found.misfit < 1
        _, told = found.measurement()
        assert told.metres / unit == pytest.approx(1, abs=0.05) and told.std < 0.08
        assert angle(found.down, cameras[0][:3, :3].T @ [0, 0, -1]) < 1.5
        # What the data set's own smoothing found.
        assert np.abs(found.gyroscope_bias - truth[numbers[10], 11:14]).max() < 0.005
        assert np.abs(found.accelerometer_bias - truth[numbers[10], 14:17]).max() < 0.15
