"""The back end without ROS, against walks that are known."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from known_graphs import ROBOT, Measured, Noise, ate, circles, key

pytest.importorskip("gtsam")

from loftr_ros.backend.back_end import BackEnd
from loftr_ros.backend.config import BackEndConfig, LocalConfig, LoopsConfig, NoiseConfig
from loftr_ros.backend.factors import composed, factor_covariance, inverted
from loftr_ros.backend.measurements import (
    BackEndError,
    ImageMeasurement,
    KeyframeKey,
    KeyframeMeasurement,
    Landmarks,
    Length,
    LoopMeasurement,
    PoseMeasurement,
    SharedLandmarks,
    Sightings,
    born_in,
)
from loftr_ros.backend.solver_process import SolverProcess
from loftr_ros.backend.storage import load_map, save_map, write_g2o, write_ply
from loftr_ros.geometry.se3 import between, inverse, rotation_matrix

LAP, COUNT = 30, 75


def walked(measured: Measured, count: int | None = None) -> BackEnd:
    back_end = BackEnd()
    for k in range(count or len(measured.truth)):
        assert back_end.add_keyframe(measured.keyframe(k))
    return back_end


def with_loops(measured: Measured, back_end: BackEnd, every: int = 3) -> BackEnd:
    for newer in range(LAP + 2, len(measured.truth), every):
        back_end.add_loop(measured.loop(newer - LAP - newer % 3, newer))
    return back_end


def test_loops_bring_the_keyframes_back_to_where_they_are() -> None:
    measured = Measured(circles(COUNT, LAP), Noise(0.02, 0.004))
    back_end = with_loops(measured, walked(measured))
    back_end.optimise()
    assert all(back_end.believed())
    assert ate(back_end, measured.truth) < 0.5 * ate(back_end, measured.truth, odometry=True)
    assert ate(back_end, measured.truth) < 0.06


def test_a_false_loop_by_itself_changes_nothing() -> None:
    measured = Measured(circles(COUNT, LAP))
    back_end, alone = walked(measured), walked(Measured(circles(COUNT, LAP)))
    back_end.add_loop(measured.false_loop(3, 40))
    back_end.optimise()
    assert back_end.believed() == [False]
    for (_, place), (_, other) in zip(back_end.places(), alone.places(), strict=True):
        np.testing.assert_allclose(place.camera.pose, other.camera.pose, atol=1e-6)


@pytest.mark.parametrize("metric", [True, False])
def test_false_loops_of_a_look_alike_change_nothing_though_they_agree_with_one_another(metric: bool) -> None:
    """Fifteen keyframes in a row are taken for others, with poses that fit together."""
    measured = Measured(circles(COUNT, LAP), metric=metric)
    back_end, alone = walked(measured), walked(Measured(circles(COUNT, LAP), metric=metric))
    for k in range(15):
        like = measured.pose(k + 2, k + 3)
        back_end.add_loop(LoopMeasurement(key(k + 2), key(k + 50), like, 0.9))
    back_end.optimise()
    assert not any(back_end.believed())
    for (_, place), (_, other) in zip(back_end.places(), alone.places(), strict=True):
        np.testing.assert_allclose(place.camera.pose, other.camera.pose, atol=1e-6)


@pytest.mark.parametrize("metric", [True, False])
def test_of_many_loops_the_false_fifth_changes_nothing(metric: bool) -> None:
    def result(false: int) -> BackEnd:
        measured = Measured(circles(COUNT, LAP), Noise(0.01, 0.002, 0.003), metric=metric)
        back_end = with_loops(measured, walked(measured))
        for k in range(false):
            back_end.add_loop(measured.false_loop(2 + 4 * k, 37 + 5 * k))
        back_end.optimise()
        return back_end

    clean, back_end = result(0), result(4)
    right = len(clean.graph.loops)
    assert back_end.believed()[right:] == [False] * 4
    assert sum(back_end.believed()[:right]) >= right - 1
    for (_, place), (_, other) in zip(back_end.places(), clean.places(), strict=True):
        np.testing.assert_allclose(place.camera.pose, other.camera.pose, atol=2e-3)


def test_a_single_cameras_drifting_unit_is_found_by_loops() -> None:
    measured = Measured(circles(COUNT, LAP), Noise(0.003, 0.001, 0.004), metric=False)
    back_end = with_loops(measured, walked(measured))
    back_end.optimise()
    assert ate(back_end, measured.truth, with_scale=True) < 0.03
    assert ate(back_end, measured.truth, with_scale=True, odometry=True) > 0.15
    first, last = (back_end.place(key(k)) for k in (0, COUNT - 1))
    assert first is not None and last is not None and not last.is_metric
    assert last.camera.scale / first.camera.scale == pytest.approx(measured.units[-1] / measured.units[0], rel=0.1)


def test_a_wrong_step_from_keyframe_to_keyframe_is_rejected_where_many_loops_contradict_it() -> None:
    measured = Measured(circles(COUNT, LAP))
    back_end = BackEnd(
        BackEndConfig(noise=NoiseConfig(translation=0.02, rotation=0.2), loops=LoopsConfig(odometry_cost=4.0))
    )
    for k in range(COUNT):
        keyframe = measured.keyframe(k)
        if k == 40:
            assert keyframe.link is not None
            pose = keyframe.link.pose.copy()
            pose[:3, 3] += [1.5, 0.4, -1.0]
            keyframe = KeyframeMeasurement(
                keyframe.key, keyframe.stamp_ns, "camera", keyframe.previous,
                PoseMeasurement(pose, keyframe.link.covariance), True,
            )  # fmt: skip
        back_end.add_keyframe(keyframe)
    with_loops(measured, back_end)
    back_end.optimise()
    assert ate(back_end, measured.truth, odometry=True) > 0.5
    assert back_end.solution is not None and back_end.solution.broken == {40}
    assert ate(back_end, measured.truth) < 0.08


def test_without_loops_the_keyframes_stay_where_the_odometry_has_them() -> None:
    """Poses relative to several near keyframes share their errors with the steps: they are no loops."""
    measured = Measured(circles(40, 60), Noise(0.02, 0.004), seed=3)
    back_end = BackEnd()
    for k in range(40):
        for n in range(3):
            known = {key(j): measured.pose(j, k) for j in range(max(0, k - 9), k)}
            back_end.add_image(ImageMeasurement(k * 10**9 - n, ROBOT, known))
        back_end.add_keyframe(measured.keyframe(k))
    back_end.optimise()
    assert not back_end.graph.loops
    for (_, place), camera in zip(back_end.places(), back_end.odometry(), strict=True):
        np.testing.assert_array_equal(place.camera.pose, camera.pose)


def seen_from(measured: Measured, std: float, seed: int = 0) -> list[KeyframeMeasurement]:
    """The walk's keyframes with what each shares with the one before, of points that four see on average."""
    random = np.random.default_rng(seed)
    points = np.array([[6.0, 0, 0], [0, 2.0, 0], [0, 0, 6.0]]) @ random.normal(size=(3, 500))
    given, names = [], np.full(points.shape[1], -1)
    last = None
    for k, pose in enumerate(measured.truth):
        here = pose[:3, :3].T @ (points - pose[:3, 3:])
        shown = (here[2] > 0.5) & (np.abs(here[:2]) < 0.8 * here[2]).all(axis=0)
        rays = (here[:2] / here[2] + random.normal(size=(2, points.shape[1])) * std).T.astype(np.float32)
        keyframe, shared = measured.keyframe(k), None
        if last is not None:
            both = np.flatnonzero(last[0] & shown)
            names[last[0] & (names < 0)] = k - 1
            name = (np.uint64(1) + names[both].astype(np.uint64) << np.uint64(32)) + both.astype(np.uint64)
            sure = np.full(len(both), std, np.float32)
            shared = SharedLandmarks(Sightings(name, rays[both], sure), born_in(k, name, last[1][both], sure))
        names[~shown] = -1
        given.append(replace(keyframe, shared=shared))
        last = shown, rays
    return given


@pytest.mark.parametrize(("metric", "window"), [(False, 8), (False, 0), (True, 8)])
def test_landmarks_smooth_the_newest_keyframes_of_a_single_camera_where_that_is_asked_for(
    metric: bool, window: int
) -> None:
    measured = Measured(circles(18, 40), Noise(0.03, 0.004), seed=5, metric=metric)
    back_end = BackEnd(BackEndConfig(local=LocalConfig(window)))
    alone = BackEnd()
    for keyframe in seen_from(measured, 0.001):
        back_end.add_keyframe(keyframe)
        alone.add_keyframe(keyframe)
    before, after = (ate(each, measured.truth, with_scale=True) for each in (alone, back_end))
    assert after < 0.5 * before if window and not metric else after == before


def test_too_few_landmarks_and_wrong_ones_leave_the_keyframes_where_they_are() -> None:
    measured = Measured(circles(12, 40), Noise(0.01, 0.002), seed=5, metric=False)
    few, wrong, alone = (
        BackEnd(BackEndConfig(local=LocalConfig(8))),
        BackEnd(BackEndConfig(local=LocalConfig(8))),
        BackEnd(),
    )
    random = np.random.default_rng(0)
    for keyframe in seen_from(measured, 0.001):
        alone.add_keyframe(keyframe)
        shared = keyframe.shared
        if shared is None:
            few.add_keyframe(keyframe)
            wrong.add_keyframe(keyframe)
            continue
        some = Sightings(shared.seen.landmark[:5], shared.seen.rays[:5], shared.seen.std[:5])
        few.add_keyframe(replace(keyframe, shared=replace(shared, seen=some, born=Sightings())))
        mixed = replace(shared.seen, rays=random.permutation(shared.seen.rays))
        wrong.add_keyframe(replace(keyframe, shared=replace(shared, seen=mixed)))
    assert ate(few, measured.truth, with_scale=True) == ate(alone, measured.truth, with_scale=True)
    assert ate(wrong, measured.truth, with_scale=True) < 1.5 * ate(alone, measured.truth, with_scale=True)


def test_a_pose_relative_to_a_keyframe_many_steps_back_is_a_loop() -> None:
    measured = Measured(circles(COUNT, LAP))
    back_end = BackEnd()
    for k in range(COUNT):
        if k == 40:
            seen = {key(j): measured.pose(j, k) for j in (8, 30, 31, 39)}
            back_end.add_image(ImageMeasurement(k * 10**9, ROBOT, seen))
        back_end.add_keyframe(measured.keyframe(k))
    assert [(loop.older, loop.newer) for loop in back_end.graph.loops] == [(8, 40), (30, 40)]


def test_an_image_that_shows_keyframes_of_two_trajectories_tells_where_one_is_in_the_other() -> None:
    measured = Measured(circles(COUNT, LAP))
    back_end = BackEnd()
    for k in range(COUNT):
        if k == 40:
            seen = {key(8): measured.pose(8, k), key(39): measured.pose(39, k)}
            back_end.add_image(ImageMeasurement(k * 10**9 - 1, ROBOT, seen))
        back_end.add_keyframe(measured.keyframe(k, begins=k == 35))
    (loop,) = back_end.graph.loops
    assert (loop.older, loop.newer) == (8, 39)
    true = between(measured.truth[8], measured.truth[39])
    np.testing.assert_allclose(loop.measured.pose[:3, 3], true[:3, 3], atol=0.15)


def test_trajectories_are_joined_once_enough_loops_agree_and_not_before() -> None:
    measured = Measured(circles(COUNT, LAP))
    back_end = BackEnd()
    for k in range(COUNT):
        back_end.add_keyframe(measured.keyframe(k, begins=k == 35))
    back_end.add_loop(measured.false_loop(4, 50))
    for count, (older, newer) in enumerate([(8, 38), (10, 41), (15, 44)]):
        back_end.optimise()
        first, last = back_end.place(key(0)), back_end.place(key(COUNT - 1))
        assert first is not None and last is not None and first.group != last.group, f"after {count} loops"
        back_end.add_loop(measured.loop(older, newer))
    back_end.optimise()
    first, last = back_end.place(key(0)), back_end.place(key(COUNT - 1))
    assert first is not None and last is not None and first.group == last.group
    assert back_end.believed() == [False, True, True, True]
    assert ate(back_end, measured.truth) < 0.1


def test_a_single_camera_that_meets_a_map_in_metres_is_in_metres() -> None:
    truth = circles(COUNT, LAP)
    metric = Measured(truth, Noise(0.005, 0.001))
    single = Measured(truth, Noise(0.005, 0.001, 0.002), seed=1, metric=False)
    back_end = BackEnd()
    for k in range(COUNT):
        back_end.add_keyframe(single.keyframe(k, "single"))
    for k in range(LAP):
        back_end.add_keyframe(metric.keyframe(k))
    for newer in range(2, LAP, 4):
        back_end.add_loop(LoopMeasurement(key(newer - 1), key(newer, "single"), metric.pose(newer - 1, newer), 0.7))
    back_end.optimise()
    places = {vertex.key: place for vertex, place in back_end.places()}
    here, there = places[key(0, "single")], places[key(10, "single")]
    assert here.is_metric
    true = np.linalg.norm(truth[10][:3, 3] - truth[0][:3, 3])
    assert np.linalg.norm(there.camera.pose[:3, 3] - here.camera.pose[:3, 3]) == pytest.approx(true, rel=0.03)


def test_a_keyframe_whose_previous_one_never_came_begins_a_trajectory() -> None:
    measured = Measured(circles(10, LAP))
    back_end = walked(measured, 4)
    back_end.add_keyframe(measured.keyframe(6))
    assert back_end.counts.trajectories == 2 and back_end.counts.groups == 2
    assert not back_end.add_keyframe(measured.keyframe(6)), "the same keyframe twice is one"


def test_a_loop_waits_for_its_keyframe_and_one_pair_has_one_loop() -> None:
    measured = Measured(circles(COUNT, LAP))
    back_end = walked(measured, 40)
    back_end.add_loop(measured.loop(12, 42))
    assert back_end.counts.waiting == 1 and not back_end.graph.loops
    for k in range(40, 43):
        back_end.add_keyframe(measured.keyframe(k))
    back_end.add_loop(measured.loop(12, 42))
    assert back_end.counts.waiting == 0 and len(back_end.graph.loops) == 1


def test_what_is_said_of_a_loop_is_no_more_than_what_is_known() -> None:
    """A loop of which the direction alone is known, and one of the rotation alone, with lengths that are wrong."""
    measured = Measured(circles(COUNT, LAP), Noise(0.001, 0.0005))
    back_end = walked(measured)
    for k, length in ((35, Length.DIRECTION), (41, Length.NONE), (47, Length.DIRECTION)):
        right = measured.pose(k - LAP - 4, k)
        pose = right.pose.copy()
        pose[:3, 3] = pose[:3, 3] / np.linalg.norm(pose[:3, 3]) if length is Length.DIRECTION else 0
        back_end.add_loop(LoopMeasurement(key(k - LAP - 4), key(k), PoseMeasurement(pose, right.covariance, length)))
    back_end.optimise()
    assert all(back_end.believed())
    assert ate(back_end, measured.truth) < 0.05


def test_the_stated_covariance_covers_what_the_newest_keyframe_is_off_by() -> None:
    ratios = []
    for seed in range(6):
        measured = Measured(circles(45, LAP), Noise(0.03, 0.005), seed)
        back_end = with_loops(measured, walked(measured))
        assert back_end.covariance(key(44)) is not None
        back_end.optimise()
        place, covariance = back_end.place(key(44)), back_end.covariance(key(44))
        assert place is not None and covariance is not None
        true = between(measured.truth[0], measured.truth[44])
        off = place.camera.pose[:3, 3] - true[:3, 3]
        ratios.append(float(off @ np.linalg.solve(covariance[:3, :3], off)) / 3)
    assert np.mean(ratios) < 1.5, "no surer than right"
    assert back_end.covariance(key(3)) is None, "of older ones nothing is said"


def test_a_map_is_saved_loaded_and_gone_on_from(tmp_path: Path) -> None:
    measured = Measured(circles(COUNT, LAP))
    back_end = with_loops(measured, walked(measured))
    points = np.array([[0, 0, 2.0], [1, 0, 3.0], [np.nan, 0, 1]], np.float32)
    back_end.add_landmarks(key(5), Landmarks(points, np.array([0.1, 0.2, 0.1], np.float32), np.arange(3, dtype="u4")))
    back_end.add_loop(measured.false_loop(3, 50))
    back_end.optimise()
    save_map(back_end, tmp_path / "maps" / "a.npz")
    again = BackEnd()
    load_map(again, tmp_path / "maps" / "a.npz")
    assert again.counts == back_end.counts and again.believed() == back_end.believed()
    for (vertex, place), (other, there) in zip(again.places(), back_end.places(), strict=True):
        assert (vertex.key, vertex.stamp_ns, vertex.previous) == (other.key, other.stamp_ns, other.previous)
        np.testing.assert_array_equal(place.camera.pose, there.camera.pose)
    assert len(again.landmarks[key(5)]) == 2
    further = Measured(circles(COUNT + 5, LAP), seed=9)
    for k in range(COUNT, COUNT + 5):
        again.add_keyframe(further.keyframe(k))
    again.optimise()
    assert again.counts.groups == 1 and ate(again, further.truth) < 0.1


@pytest.mark.parametrize("content", [b"", b"not a map", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_map_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(BackEndError, match=r"a\.npz is no map"):
        load_map(BackEnd(), tmp_path / "a.npz")
    with pytest.raises(BackEndError, match="there is no map"):
        load_map(BackEnd(), tmp_path / "b.npz")


def test_a_damaged_map_is_refused_in_words_or_can_be_used(tmp_path: Path) -> None:
    measured, whole, back_end = Measured(circles(40, 30)), tmp_path / "a.npz", BackEnd()
    for k in range(40):
        back_end.add_keyframe(measured.keyframe(k))
    for k in (31, 35, 38):
        back_end.add_loop(measured.loop(k - 30, k))
    back_end.add_landmarks(key(3), Landmarks(np.ones((5, 3)), np.ones(5), np.arange(5)))
    back_end.optimise()
    save_map(back_end, whole)
    arrays, data, random = dict(np.load(whole)), whole.read_bytes(), np.random.default_rng(0)
    damaged: list[bytes] = [data[: len(data) * k // 8] for k in range(8)]
    for _ in range(40):
        flipped = bytearray(data)
        for place in random.integers(0, len(data), 5):
            flipped[place] = random.integers(256)
        damaged.append(bytes(flipped))
    for name, array in arrays.items():
        for other in (
            array.astype("U8"),
            array.ravel()[:-1],
            -array.astype(float),
            np.array(3),
            array + array.dtype.type(1),
        ):
            file = io.BytesIO()
            np.savez(file, **{**arrays, name: other})
            damaged.append(file.getvalue())
    refused = 0
    load_map(BackEnd(), whole)
    for content in damaged:
        whole.write_bytes(content)
        again = BackEnd()
        try:
            load_map(again, whole)
        except BackEndError:
            refused += 1
        else:
            assert all(points.shape[1] == 3 for _, _, points, _ in again.cloud())
            again.add_keyframe(measured.keyframe(39))
            assert np.isfinite([place.camera.pose for _, place in again.places()]).all()
    assert refused > len(damaged) / 2


@pytest.mark.parametrize("metric", [True, False])
def test_sessions_in_another_order_make_the_same_map(metric: bool) -> None:
    measured = Measured(circles(40, 30), Noise(drift=0.0 if metric else 0.002), metric=metric)
    tours = {robot: [measured.keyframe(k, robot) for k in range(40)] for robot in ("one", "other", "third")}
    loops = [measured.loop(k, k + 1, "one", "other") for k in (2, 9, 17, 26, 34)]
    loops += [measured.loop(k, k - 1, "other", "third") for k in (4, 12, 20, 31, 37)]
    ends, found = [key(6, "one"), key(21, "other"), key(33, "third")], []
    for order in (("one", "other", "third"), ("third", "one", "other"), ("other", "third", "one")):
        back_end = BackEnd()
        for robot in order:
            for keyframe in tours[robot]:
                back_end.add_keyframe(keyframe)
            for loop in loops:
                back_end.add_loop(loop)  # those of sessions that come later wait
            back_end.optimise()
        assert back_end.counts.groups == 1 and back_end.counts.believed == len(loops)
        places = [back_end.place(each) for each in ends]
        assert all(place is not None for place in places)
        found.append([places[0].camera.sees(place.camera) for place in places if place is not None])  # type: ignore[union-attr]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=0.02)


def test_a_pose_that_is_none_is_refused() -> None:
    for pose, covariance in (
        (np.full((4, 4), np.nan), np.eye(6)),
        (np.diag([1.0, 1, -1, 1]), np.eye(6)),
        (np.eye(4), -np.eye(6)),
    ):
        with pytest.raises(BackEndError):
            PoseMeasurement(pose, covariance)


def test_a_pose_whose_place_is_unknown_is_not_refused_for_its_rounding() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    covariance = turn @ np.diag([1e8, 1e8, 1e8, 1e-12, 1e-12, 1e-12]) @ turn.T
    assert np.linalg.eigvalsh((covariance + covariance.T) / 2)[0] < -1e-9
    PoseMeasurement(np.eye(4), (covariance + covariance.T) / 2, Length.NONE)


def test_graph_and_landmarks_are_readable_by_others(tmp_path: Path) -> None:
    import gtsam

    measured = Measured(circles(40, LAP))
    back_end = with_loops(measured, walked(measured))
    points = np.array([[0, 0, 2.0], [1, 0, 3.0]], np.float32)
    back_end.add_landmarks(key(7), Landmarks(points, np.full(2, 0.1, np.float32), np.arange(2, dtype=np.uint32)))
    back_end.optimise()
    write_g2o(back_end, tmp_path / "a.g2o")
    factors, values = gtsam.readG2o(str(tmp_path / "a.g2o"), True)
    assert (values.size(), factors.size()) == (40, 39 + sum(back_end.believed()))
    place = back_end.place(key(7))
    assert place is not None
    np.testing.assert_allclose(values.atPose3(7).matrix(), place.camera.pose, atol=1e-4)
    assert write_ply(back_end, tmp_path / "a.ply") == 2
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    assert b"element vertex 2" in header
    found = np.frombuffer(body, "<f4").reshape(2, 6)[:, :3]
    np.testing.assert_allclose(found, points @ place.camera.pose[:3, :3].T + place.camera.pose[:3, 3], atol=1e-5)


def test_a_process_of_its_own_solves_the_same_graph() -> None:
    measured = Measured(circles(40, LAP))
    back_end = with_loops(measured, walked(measured))
    solver = SolverProcess()
    solver.begin(*back_end.snapshot())
    assert solver.is_busy
    solver._thread.join(60)  # type: ignore[union-attr]
    found = solver.take()
    solver.close()
    assert found is not None and not solver.is_busy
    back_end.optimise()
    for (_, place), camera in zip(back_end.places(), found.cameras, strict=True):
        np.testing.assert_allclose(place.camera.pose, camera.pose, atol=1e-9)


def test_covariances_are_turned_into_the_axes_that_gtsam_has_its_errors_in() -> None:
    import gtsam

    random = np.random.default_rng(2)
    pose, off = np.eye(4), 1e-5 * random.normal(size=6)
    pose[:3, :3], pose[:3, 3] = rotation_matrix([0.3, -0.5, 0.8]), [1, 2, -0.5]
    true = pose.copy()
    true[:3, 3] += off[:3]
    true[:3, :3] = rotation_matrix(off[3:]) @ pose[:3, :3]
    outer = np.outer(off, off)
    forward = gtsam.Pose3.Logmap(gtsam.Pose3(pose).between(gtsam.Pose3(true)))
    np.testing.assert_allclose(factor_covariance(outer, pose), np.outer(forward, forward), rtol=1e-2, atol=1e-14)
    turned = inverted(PoseMeasurement(pose, outer))
    step = np.r_[
        inverse(true)[:3, 3] - turned.pose[:3, 3], gtsam.Rot3.Logmap(gtsam.Rot3(true[:3, :3].T @ pose[:3, :3]))
    ]
    np.testing.assert_allclose(turned.covariance, np.outer(step, step), rtol=1e-2, atol=1e-14)
    none = PoseMeasurement(inverse(pose), np.zeros((6, 6)))
    whole = composed(PoseMeasurement(pose, outer), none)
    moved = true @ inverse(pose)
    step = np.r_[moved[:3, 3], gtsam.Rot3.Logmap(gtsam.Rot3(moved[:3, :3]))]
    np.testing.assert_allclose(whole.covariance, np.outer(step, step), rtol=1e-2, atol=1e-14)


def test_robots_have_keyframes_of_the_same_number() -> None:
    measured = Measured(circles(5, LAP))
    back_end = BackEnd()
    for robot in ("one", "other"):
        for k in range(5):
            back_end.add_keyframe(measured.keyframe(k, robot))
    assert back_end.counts.keyframes == 10 and back_end.place(KeyframeKey("other", 3)) is not None
