"""Worlds with revisited places, and the benchmark of loop closure on them."""

from __future__ import annotations

import importlib
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from loftr_ros.evaluation.metrics import rotation_error
from loftr_ros.geometry.two_view import PoseStatus, without_pose
from loftr_ros.places.keyframe import KeyframeName
from loftr_ros.recordings import SourceError, open_source
from loftr_ros.worlds.floor_plan import ROOMS, TWINS, floor_plan, furnish
from loftr_ros.worlds.revisits import OTHER_PLACE, Relations, World
from loftr_ros.worlds.tours import rooms_of_tours

SEEDS = (700, 701, 800)


class Wall:
    """A building that is one wall, 3 m along x."""

    def render(self, matrix, size, pose, light=0, supersample=2):
        width, height = size
        v, u = np.mgrid[:height, :width].astype(np.float64)
        rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(matrix).T @ pose[:3, :3].T
        with np.errstate(divide="ignore"):
            depth = (3.0 - pose[0, 3]) / rays[..., 0]
        return np.full((height, width), 100 + 50 * light, np.float32), np.where(depth > 0, depth, np.inf)


def looking(x: float, y: float, yaw_deg: float = 0.0) -> np.ndarray:
    yaw = np.radians(yaw_deg)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[np.sin(yaw), 0, np.cos(yaw)], [-np.cos(yaw), 0, np.sin(yaw)], [0, -1, 0]])
    pose[:3, 3] = x, y, 1.5
    return pose


def world_of(poses: list[np.ndarray]) -> World:
    world = World(700)
    world.poses = np.stack(poses)
    world.building = Wall()
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_the_second_tour_comes_back_to_four_rooms_and_enters_the_other_twins(seed: int) -> None:
    first, second = rooms_of_tours(floor_plan(seed), seed)
    assert len(set(first) & set(second)) == 4
    assert set(first) | set(second) == set(range(ROOMS))
    for pair in TWINS:
        assert len(set(pair) & set(first)) == 1
        assert set(pair) <= set(first) | set(second)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_camera_keeps_clear_of_furniture_and_walls(seed: int) -> None:
    world, zones = World(seed), floor_plan(seed)
    places = world.poses[:, :3, 3]
    for number, zone in enumerate(zones):
        inside = places[world.rooms == number]
        for solid in furnish(zones, number, seed).solids:
            assert solid.distance(inside).min() > 0.2
        door = zone.door if zone.door is not None else np.array([np.inf, np.inf])
        by_wall = inside[np.abs(inside[:, 0] - door[0]) > 0.5]
        if number < ROOMS:
            assert (by_wall[:, :2] > zone.low + 0.3).all() and (by_wall[:, :2] < zone.high - 0.3).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_keyframes_are_at_most_a_step_apart(seed: int) -> None:
    poses = World(seed).poses
    assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() < 0.75
    assert max(rotation_error(one[:3, :3], other[:3, :3]) for one, other in pairwise(poses)) < 40


def test_more_views_a_second_are_of_the_same_walk() -> None:
    few, many = World(700, 1.0), World(700, 3.0)
    assert np.allclose(many.poses[::3][: len(few)], few.poses, atol=1e-9)
    assert many.stamps[3] == few.stamps[1]


def test_twins_have_the_same_furniture_and_other_small_things() -> None:
    zones = floor_plan(700)
    for one, other in TWINS:
        halves = [{tuple(solid.half.round(3)) for solid in furnish(zones, room, 700).solids} for room in (one, other)]
        furniture = [sorted(half for half in some if half[1] > 0.16 and half[2] > 0.2) for some in halves]
        assert furniture[0] == furniture[1] and len(furniture[0]) >= 3
        assert len(halves[0] ^ halves[1]) > 10


def test_what_two_views_share_is_the_part_that_the_other_sees() -> None:
    # 3 m before the wall 640 px show 3.69 m of it, 1.5 m before it half of that.
    world = world_of([looking(0, 0), looking(0, 1.846), looking(1.5, 0), looking(0, 0, 180), looking(0, 9)])
    seen = world.relations.seen
    assert seen[0, 1] == pytest.approx(0.5, abs=0.03) and seen[1, 0] == pytest.approx(0.5, abs=0.03)
    assert seen[2, 0] == pytest.approx(1.0, abs=0.03) and seen[0, 2] == pytest.approx(0.25, abs=0.03)
    assert world.relations.covisible[0, 2] == pytest.approx(0.25, abs=0.03)
    assert seen[0, 4] == 0 and world.relations.is_other_place[0, 4] and not world.relations.is_other_place[0, 1]


def test_what_is_hidden_by_something_nearer_is_not_shared() -> None:
    world = world_of([looking(0, 0), looking(0, 0.2)])
    wall, board = Wall(), Wall()

    def render(matrix, size, pose, light=0, supersample=2):
        image, depth = wall.render(matrix, size, pose, light)
        if pose[1, 3] > 0.1:  # an obstacle before the second camera
            depth[:, : size[0] // 2] = 0.5
        return image, depth

    board.render = render
    world.building = board
    assert world.relations.seen[0, 1] == pytest.approx(0.5, abs=0.06)


def test_a_revisit_is_near_turned_little_and_shares_enough() -> None:
    angle, distance = np.array([[0.0, 20], [20, 0]]), np.array([[0.0, 1], [1, 0]])
    seen = np.array([[1.0, 0.4], [0.5, 1]])
    assert Relations(angle, distance, seen).is_revisit[0, 1]
    assert not Relations(angle + 11, distance, seen).is_revisit[0, 1]
    assert not Relations(angle, distance + 1.1, seen).is_revisit[0, 1]
    assert not Relations(angle, distance, seen - 0.15).is_revisit[0, 1]
    assert not Relations(angle, distance, np.array([[1, OTHER_PLACE / 2], [0.1, 1]])).is_other_place[0, 1]


def test_rendered_views_are_kept_in_the_cache_and_the_second_tour_has_other_light(tmp_path: Path) -> None:
    world = World(700, cache=tmp_path)
    world.building = Wall()
    late = int(np.argmax(world.tours == 1))
    first, second = world.view(0), world.view(late)
    assert first.image.shape == (480, 640) and first.image.dtype == np.uint8
    assert abs(float(first.image.mean()) - float(second.image.mean())) > 5
    again = World(700, cache=tmp_path)
    again.building = None  # the cache needs no building
    assert np.array_equal(again.view(late).image, second.image) and again.view(late).stamp_ns == second.stamp_ns


def test_the_source_plays_a_world_with_poses_and_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "building", Wall())
    with open_source("revisits:701?rate=5", start=2, stop=9, step=3) as source:
        frames = list(source)
        assert source.length == len(frames) == 3
    assert [frame.index for frame in frames] == [2, 5, 8]
    assert frames[1].stamp_ns - frames[0].stamp_ns == 600_000_000
    assert np.array_equal(frames[1].pose, World(701, 5.0).poses[5])
    assert frames[0].to_frame("rgbd").depth is not None
    with pytest.raises(SourceError, match="one camera"):
        open_source("revisits").require("stereo")
    for wrong in ("revisits:x", "revisits:7?frames=3", "revisits:7?rate=0", "revisits:-1"):
        with pytest.raises(SourceError, match="revisits"):
            open_source(wrong)


@pytest.mark.long
def test_rooms_are_closed_and_twins_differ() -> None:
    world = World(702)
    zones = floor_plan(702)
    one, other = TWINS[0]
    for yaw in (0.5, 2.0, 4.0):
        x, y = zones[one].centre + np.array([0.8, 0.3])
        pose = looking(x, y, np.degrees(yaw))
        twin = np.diag([-1.0, -1, 1, 1]) @ pose
        twin[:2, 3] = zones[other].centre - np.array([0.8, 0.3])
        (image, depth), (twin_image, twin_depth) = world.render(pose), world.render(twin)
        assert np.isfinite(depth).all()
        assert np.median(np.abs(depth - twin_depth)) < 0.05
        assert (np.abs(image.astype(int) - twin_image) > 12).mean() > 0.3


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("loop_scores"), importlib.import_module("loop_evidence")


def test_recall_at_full_precision_ends_before_the_first_wrong_answer(scores) -> None:
    module, evidence = scores
    answers = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), None]
    asked = [evidence.Asked(1, k, "revisit", 0, 0, 1, 9, {}) for k in range(5)]
    curve = module.Curve(asked, lambda one: answers[one.number])
    assert curve.recall_at(1.0) == (0.4, 0.8)
    assert curve.recall_at(0.75) == (0.6000000000000001, 0.6) or curve.recall_at(0.75)[0] == pytest.approx(0.6)


def test_a_right_and_a_wrong_answer_with_one_score_are_not_told_apart(scores) -> None:
    module, evidence = scores
    answers = [(0.9, True), (0.9, False)]
    asked = [evidence.Asked(1, k, "revisit", 0, 0, 1, 9, {}) for k in range(2)]
    assert module.Curve(asked, lambda one: answers[one.number]).recall_at(1.0)[0] == 0


def test_a_loop_with_another_place_or_a_wrong_rotation_is_false(scores) -> None:
    module, evidence = scores
    asked = evidence.Asked(1, 0, "new", 0, 0, 1, 9, {})
    assert not module.is_false(asked)
    asked.closure = evidence.Tried(1, 0, True, "twins", 0.9, rotation=1.0)
    assert module.is_false(asked)
    asked.closure = evidence.Tried(1, 0, False, "", 0.9, rotation=6.0)
    assert module.is_false(asked)
    asked.closure = evidence.Tried(1, 0, False, "", 0.9, rotation=1.0)
    assert not module.is_false(asked) and module.is_found(asked)


def test_evidence_is_read_as_it_was_saved(scores, tmp_path: Path) -> None:
    _, evidence = scores
    asked = evidence.Asked(1, 0, "revisit", 3.0, 0.5, 0.6, 9, {"twins": 2}, [evidence.Tried(1, 4, False, "", 0.5)])
    asked.closure = evidence.Tried(1, 4, False, "", 0.5, matches=10, inliers=8, rotation=0.5, direction=1.0)
    evidence.save([asked], tmp_path / "a.jsonl")
    again = evidence.load(tmp_path / "a.jsonl")[0]
    assert again.closure.inliers == 8 and again.tried[0].number == 4 and again.alike == {"twins": 2}


def test_a_pair_is_verified_once_also_by_the_next_run_but_anew_for_another_network(
    scores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = importlib.import_module("loop_memory")
    points = np.random.default_rng(0).uniform(0, 400, (20, 2))
    matches = SimpleNamespace(keyframe_points=points, current_points=points)
    found = SimpleNamespace(
        correspondences=type("Matches", (SimpleNamespace,), {"__len__": lambda self: 20})(**vars(matches)),
        pose=without_pose(PoseStatus.NO_CALIBRATION, np.ones(20, bool)),
        own_unit=None,
        coverage=0.5,
    )
    asked: list[object] = []
    monkeypatch.setattr(module.Verifier, "verify", lambda self, archived, frame: asked.append(frame) or found)
    archived = SimpleNamespace(name=KeyframeName("robot", 7))
    frame = SimpleNamespace(stamp_ns=5, size=(640, 480))
    for fingerprint, expected in (("one", 1), ("one", 1), ("other", 2)):
        front_end = SimpleNamespace(matcher=SimpleNamespace(fingerprint=fingerprint), pairs=None)
        verifier = module.RememberingVerifier(front_end.pairs)
        verifier.memory = module.Memory(tmp_path, 700, front_end, SimpleNamespace(space="s"))
        for _ in range(2):
            known = verifier.verify(archived, frame)
            assert known.num_inliers == 20 and known.inlier_ratio == 1.0 and known.coverage == 0.5
        verifier.memory.save()
        assert len(asked) == expected
