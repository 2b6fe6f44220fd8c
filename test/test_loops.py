"""Loop search in recordings: its output files, in a world of known truth."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from made_world import WorldMatcher, camera, frame, walk
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor
from typer.testing import CliRunner

from loftr_ros.cli.loops import robot_names
from loftr_ros.cli.main import app
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import LoopConfig
from loftr_ros.places.pose_graph import PoseGraph, g2o_information
from loftr_ros.recordings import PixelImage, Source, SourceError, SourceFrame
from loftr_ros.settings import with_values
from loftr_ros.tools.loop_report import RecordingReport
from loftr_ros.tools.loops import Recording, Report, find_loops

Array = NDArray[np.float64]

SPACE, DIMENSION = "made:1", 32
STEPS = 20


class BlockMatcher(WorldMatcher):
    """Reads a pose's number from the brightness of a block, which JPEG preserves."""

    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        told = torch.zeros_like(image)
        told[0, 0] = round(float(image[:8, :8].float().mean()) / 2)
        return super().encode(told, usable)

    def describe(self, features: ImageFeatures) -> NDArray[np.float32]:
        """Similar for cameras with similar positions and directions."""
        pose = self.poses[int(features.tokens[0, 0, 0])]
        directions = np.random.default_rng(0).normal(size=(6, DIMENSION // 2))
        phase = np.concatenate([pose[:3, 3], 3 * pose[:3, 2]]) @ directions
        vector = np.concatenate([np.cos(phase), np.sin(phase)])
        return (vector / np.linalg.norm(vector)).astype(np.float32)


class Walk(Source):
    """Some of the poses, ten a second."""

    kind, rate, camera = "made", 10.0, camera()
    lacks: Mapping[str, str] = MappingProxyType({})

    def __init__(self, name: str, numbers: range, calibrated: bool = True) -> None:
        self.name, self.numbers, self.length, self.calibrated = name, numbers, len(numbers), calibrated

    def __iter__(self) -> Iterator[SourceFrame]:
        for number in self.numbers:
            made = seen(number)
            image = made.image.copy()
            image[:16, :16] = 2 * number
            yield SourceFrame(
                number,
                made.stamp_ns,
                "cam",
                PixelImage(image),
                made.camera if self.calibrated else None,
                POSES[number],
                True,
                None,
                made.depth,
            )


def there_and_back() -> list[Array]:
    """A walk, then the other half of the room, then the walk again, slightly shifted."""
    first = walk(STEPS, 0.04)
    away = [first[0].copy() for _ in range(STEPS)]
    for i, pose in enumerate(away):
        pose[:3, :3] = Rotation.from_euler("y", 180 + i, degrees=True).as_matrix()
    again = [pose.copy() for pose in first]
    for pose in again:
        pose[:3, 3] += [0.1, 0.05, -0.05]
    return [*first, *away, *again]


POSES = there_and_back()
ALL, AGAIN = range(3 * STEPS), range(2 * STEPS, 3 * STEPS)


@cache
def seen(number: int) -> Frame:
    return frame(POSES, number, depth=True)


def search(folder: Path, *recordings: Recording, mode: str = "rgbd", max_age: float = 10.0) -> Report:
    matcher = BlockMatcher(POSES)
    config = with_values(FrontEndConfig(), {"mode": mode, "depth.max_depth": 20.0, "keyframe.max_age": max_age})
    settings = with_values(LoopConfig(), {"min_similarity": 0.5, "min_age": 2.0})
    with Archive.open(str(folder / "archive"), SPACE, DIMENSION) as archive:
        return find_loops(
            recordings, FrontEnd(matcher, config), matcher.describe, archive, folder, loop=settings, progress=False
        )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """One robot that returns, and another that visits the same place."""
    folder = tmp_path_factory.mktemp("two")
    recordings = Recording("ada", Walk("one", ALL)), Recording("bob", Walk("other", AGAIN))
    return folder, search(folder, *recordings)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_g2o(path: Path) -> tuple[dict[int, Array], list[tuple[int, int, Array, Array]], list[int]]:
    """Vertices, edges and held vertices."""
    vertices, edges, held = {}, [], []
    for line in path.read_text().splitlines():
        words = line.split()
        if words[0] == "VERTEX_SE3:QUAT":
            vertices[int(words[1])] = to_pose(words[2:])
        elif words[0] == "EDGE_SE3:QUAT":
            information = np.zeros((6, 6))
            information[np.triu_indices(6)] = [float(word) for word in words[10:]]
            information = information + np.triu(information, 1).T
            edges.append((int(words[1]), int(words[2]), to_pose(words[3:10]), information))
        elif words[0] == "FIX":
            held.append(int(words[1]))
        else:
            assert words[0] == "#"
    return vertices, edges, held


def to_pose(words: list[str]) -> Array:
    pose = np.eye(4)
    pose[:3, 3] = [float(word) for word in words[:3]]
    pose[:3, :3] = Rotation.from_quat([float(word) for word in words[3:7]]).as_matrix()
    return pose


def test_loops_within_a_recording_and_between_two_are_found_with_their_true_poses(two: tuple[Path, Report]) -> None:
    _, report = two
    pairs = {(loop.older.robot, loop.newer.robot) for loop in report.loops}
    assert pairs == {("ada", "ada"), ("ada", "bob")}
    for loop in report.loops:
        error = report.errors(loop)
        assert error is not None and error.rotation_deg < 0.4 and error.translation_m < 0.03
    said = "\n".join(report.lines())
    assert "ada seen again by bob" in said
    assert said.count("too short") == 1, "only the second lasts 1.6 s, and two must have passed"


def test_a_recording_that_is_too_short_for_a_loop_within_it_is_called_that() -> None:
    recording = RecordingReport("ada", "day", 1, frames=80, keyframes=9, stamps_ns=(3 * 10**9, 11 * 10**9))
    said = "\n".join(Report([recording], min_age=20.0).lines())
    assert "its keyframes span 8.0 s" in said and "after 20 s (--min-age)" in said
    assert "too short" not in "\n".join(Report([recording], min_age=7.0).lines())


def test_the_command_lines_least_age_is_checked_as_the_parameter_is(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["loops", "rendered", "--min-age", "-1", "--weights", "random", "-o", str(tmp_path)])
    assert done.exit_code == 2 and "loop.min_age" in done.stderr, done.output


def test_the_graph_read_back_has_every_keyframe_and_edges_that_are_true(two: tuple[Path, Report]) -> None:
    folder, report = two
    vertices, edges, held = read_g2o(folder / "loops.g2o")
    table = rows(folder / "keyframes.csv")
    assert [int(row["vertex"]) for row in table] == sorted(vertices) and len(table) == len(report.keyframes)
    groups = {0, next(i for i, row in enumerate(table) if row["segment"] == "1")}
    assert set(held) == groups, "the walk and the other half of the room, which nothing connects"
    chain = sum(keyframe.link is not None for keyframe in report.keyframes)
    assert len(edges) == chain + len(report.loops) and chain >= 6
    stamps = [int(row["stamp_ns"]) for row in table]
    true = {vertex: POSES[round((stamp - 10**9) / 1e8)] for vertex, stamp in enumerate(stamps)}
    for first, second, pose, information in edges:
        expected = np.linalg.inv(true[first]) @ true[second]
        assert np.abs(pose - expected).max() < 0.03
        assert (np.linalg.eigvalsh(information) > 0).all()
    listed = rows(folder / "loops.csv")
    assert len(listed) == len(report.loops)
    assert all(float(row["translation_error_m"]) < 0.03 and row["scale_known"] == "1" for row in listed)
    assert (folder / "loops.png").stat().st_size > 10_000
    pictures = sorted(folder.glob("loop_*.png"))
    assert pictures and all(picture.stat().st_size > 5_000 for picture in pictures)


def test_a_recording_that_meets_another_stands_in_its_frame(two: tuple[Path, Report]) -> None:
    _, report = two
    graph = PoseGraph(report.keyframes, report.loops)
    start = np.linalg.inv(POSES[0])
    together = [each for each in report.keyframes if graph.placements[each.trajectory].group == 0]
    assert {(each.name.robot, each.segment) for each in together} == {("ada", 0), ("bob", 0)}
    for keyframe in together:
        pose, true = graph.pose(keyframe), start @ POSES[round((keyframe.stamp_ns - 10**9) / 1e8)]
        assert pose is not None and np.abs(pose - true).max() < 0.1
    assert all(graph.unit(keyframe.trajectory) == "metres" for keyframe in report.keyframes)


def test_information_is_the_inverse_of_the_covariance_of_g2os_error() -> None:
    rng = np.random.default_rng(3)
    root = rng.normal(size=(6, 6)) * [0.02, 0.03, 0.01, 0.01, 0.02, 0.015]
    covariance = root.T @ root
    measured = np.eye(4)
    measured[:3, :3], measured[:3, 3] = Rotation.from_rotvec([0.8, -0.5, 1.1]).as_matrix(), [1, 2, 3]
    drawn = rng.multivariate_normal(np.zeros(6), covariance, size=60_000)
    true = Rotation.from_rotvec(drawn[:, 3:]) * Rotation.from_matrix(measured[:3, :3])
    error = np.empty_like(drawn)
    error[:, :3] = drawn[:, :3] @ measured[:3, :3]
    error[:, 3:] = (Rotation.from_matrix(measured[:3, :3]).inv() * true).as_quat(canonical=True)[:, :3]
    weighed = error @ np.linalg.cholesky(g2o_information(covariance, measured))
    np.testing.assert_allclose(np.cov(weighed.T), np.eye(6), atol=0.03)
    error[:, :3] *= 2
    weighed = error @ np.linalg.cholesky(g2o_information(covariance, measured, scale=2.0))
    np.testing.assert_allclose(np.cov(weighed.T), np.eye(6), atol=0.03)


def test_single_cameras_that_meet_often_enough_share_one_unit_and_loops_between_them_have_a_length(
    tmp_path: Path,
) -> None:
    recordings = Recording("ada", Walk("one", range(STEPS))), Recording("bob", Walk("other", AGAIN))
    report = search(tmp_path, *recordings, mode="mono")
    graph = PoseGraph(report.keyframes, report.loops)
    assert not any(loop.pose.scale_known for loop in report.loops)
    known = [edge for _, edge in graph.loop_edges() if edge.has_length]
    assert len(known) >= 3
    numbers = {number: round((k.stamp_ns - 10**9) / 1e8) for number, k in enumerate(report.keyframes)}
    ada = [number for number, k in enumerate(report.keyframes) if k.name.robot == "ada"]
    poses = [graph.pose(keyframe) for keyframe in report.keyframes]
    ends = [poses[ada[i]][:3, 3] for i in (0, -1)]  # type: ignore[index]
    metre = np.linalg.norm(ends[1] - ends[0]) / np.linalg.norm(
        POSES[numbers[ada[-1]]][:3, 3] - POSES[numbers[ada[0]]][:3, 3]
    )
    start = np.linalg.inv(POSES[0])
    for number, pose in enumerate(poses):
        assert pose is not None
        assert np.linalg.norm(pose[:3, 3] / metre - (start @ POSES[numbers[number]])[:3, 3]) < 0.15
    for edge in known:
        true = np.linalg.inv(POSES[numbers[edge.first]]) @ POSES[numbers[edge.second]]
        assert np.linalg.norm(edge.pose[:3, 3] / metre - true[:3, 3]) < 0.1


def test_two_single_cameras_that_meet_once_share_rotations_alone(two: tuple[Path, Report]) -> None:
    _, report = two
    between = next(loop for loop in report.loops if loop.newer.robot == "bob")
    unscaled = replace(between, pose=replace(between.pose, scale_known=False), own_unit=between.pose)
    keyframes = [replace(keyframe, is_metric=False) for keyframe in report.keyframes]
    ((_, edge),) = PoseGraph(keyframes, [unscaled]).loop_edges()
    assert not edge.has_length and np.abs(edge.information[:3]).max() < 1e-5
    assert np.linalg.eigvalsh(edge.information[3:, 3:]).min() > 1e3


def test_an_archive_from_another_day_closes_loops_but_not_with_the_very_same_recording(
    two: tuple[Path, Report], tmp_path: Path
) -> None:
    search(tmp_path, Recording("ada", Walk("one", range(STEPS))))
    report = search(tmp_path, Recording("bob", Walk("other", AGAIN)))
    assert report.loops and {loop.older.robot for loop in report.loops} == {"ada"}
    vertices, edges, _ = read_g2o(tmp_path / "loops.g2o")
    assert {keyframe.name.robot for keyframe in report.keyframes} == {"ada", "bob"}
    assert all(first in vertices and second in vertices for first, second, _, _ in edges)
    with pytest.raises(SourceError, match="already"):
        search(tmp_path, Recording("ada", Walk("one", range(STEPS))))


class Stopped(Walk):
    """A walk ended by Ctrl-C."""

    def __iter__(self):
        for count, each in enumerate(super().__iter__()):
            if count == 2 * STEPS:
                raise KeyboardInterrupt
            yield each


def test_a_run_that_was_stopped_is_gone_on_with_by_the_same_command(tmp_path: Path) -> None:
    first = search(tmp_path, Recording("ada", Stopped("one", ALL)))
    assert first.interrupted and "ada: stopped by Ctrl-C" in (tmp_path / "partial.txt").read_text()
    before = rows(tmp_path / "keyframes.csv")
    assert before and (tmp_path / "loops.g2o").exists()
    second = search(tmp_path, Recording("ada", Walk("one", ALL)))
    assert not second.interrupted and not (tmp_path / "partial.txt").exists()
    assert any("continues after" in note for note in second.recordings[0].notes)
    assert second.recordings[0].frames < 2 * STEPS, "what was archived is not gone through again"
    assert second.loops and {loop.older.robot for loop in second.loops} == {"ada"}
    assert rows(tmp_path / "keyframes_1.csv") == before


def test_a_camera_without_calibration_gives_loops_without_poses(tmp_path: Path) -> None:
    report = search(tmp_path, Recording("ada", Walk("one", ALL, calibrated=False)), mode="mono", max_age=0.5)
    assert report.loops and not any(loop.pose.has_rotation for loop in report.loops)
    assert read_g2o(tmp_path / "loops.g2o") == ({}, [], [])
    assert {row["vertex"] for row in rows(tmp_path / "keyframes.csv")} == {""}
    assert {row["x"] for row in rows(tmp_path / "loops.csv")} == {""}
    assert (tmp_path / "loops.png").stat().st_size > 5_000


def test_without_matplotlib_everything_is_written_but_the_plot(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = search(tmp_path, Recording("ada", Walk("one", range(4))))
    assert "loops.png is left out, since matplotlib is not installed" in "\n".join(report.lines())
    assert not (tmp_path / "loops.png").exists() and (tmp_path / "loops.g2o").exists() and not report.missing


def test_a_recording_without_a_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no keyframe"):
        search(tmp_path, Recording("ada", Walk("empty", range(0))))


def test_a_reader_of_others_gets_the_whole_graph_and_its_edges_lead_back_to_the_truth(
    two: tuple[Path, Report],
) -> None:
    gtsam = pytest.importorskip("gtsam")
    folder, report = two
    graph, vertices = gtsam.readG2o(str(folder / "loops.g2o"), True)
    chain = sum(keyframe.link is not None for keyframe in report.keyframes)
    assert vertices.size() == len(report.keyframes) and graph.size() == chain + len(report.loops)
    placed = PoseGraph(report.keyframes, report.loops)
    rng, scattered = np.random.default_rng(0), gtsam.Values()
    firm = gtsam.noiseModel.Isotropic.Sigma(6, 1e-6)
    for number in range(len(report.keyframes)):
        pose = vertices.atPose3(number)
        if number in placed.first_vertices():
            graph.add(gtsam.PriorFactorPose3(number, pose, firm))
        else:
            pose = pose.retract(0.05 * rng.normal(size=6))
        scattered.insert(number, pose)
    found = gtsam.LevenbergMarquardtOptimizer(graph, scattered).optimize()
    start = np.linalg.inv(POSES[0])
    for number, keyframe in enumerate(report.keyframes):
        if placed.placements[keyframe.trajectory].group == 0:
            true = start @ POSES[round((keyframe.stamp_ns - 10**9) / 1e8)]
            assert np.abs(found.atPose3(number).matrix() - true).max() < 0.06


def test_sources_give_robots_names_of_which_no_two_are_alike(tmp_path: Path) -> None:
    (tmp_path / "day 1.mcap").touch()
    sources = [str(tmp_path / "day 1.mcap"), "rendered:room?seed=2", str(tmp_path / "day 1.mcap")]
    assert robot_names(sources) == ["day_1", "rendered_room_seed_2", "day_1_2"]


def test_what_cannot_be_done_is_told_in_one_line(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("not an archive")
    out = tmp_path / "out"
    for arguments, expected in (
        (["nowhere", "-o", out], "nowhere does not exist"),
        (["rendered", "rendered", "--robot", "ada", "-o", out], "name one robot for each"),
        (["rendered", "-o", out, "--archive", foreign, "--weights", "random"], "not an archive"),
        (["revisits", "-o", out, "--mode", "stereo", "--weights", "random"], "stereo"),
    ):
        done = CliRunner().invoke(app, ["loops", *map(str, arguments)])
        assert done.exit_code == 2 and expected in done.stderr, done.output
        assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()
