"""The demo: its arithmetic, its handling of processes, and the whole demo over real DDS."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from loftr_ros.evaluation.records import KeyframeChange, Located, accuracy, to_previous, to_reference
from loftr_ros.geometry.two_view import PoseStatus
from loftr_ros.recordings import SourceError, open_source
from loftr_ros.tools.demo.processes import Child, DemoError, wait_until
from loftr_ros.tools.demo.report import chained, draw_trajectory, lines, summary, without_nan
from loftr_ros.tools.demo.run import Settings, _publisher_command, run_demo
from loftr_ros.tools.demo.sequence import Sequence, Truth, prepare
from loftr_ros.tools.domains import DomainError, free_domain, own_domain

ROOM = "rendered:room?seed=3&frames=20&width=320&height=240"


def transform(turn_deg=0.0, position=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = cv2.Rodrigues(np.array([0.0, np.radians(turn_deg), 0.0]))[0]
    matrix[:3, 3] = position
    return matrix


def located(keyframe, stamp, pose, status=PoseStatus.OK):
    return Located(stamp, keyframe, status, pose, 200, 150, 4.0)


def relative(truth, keyframe, stamp):
    """The true relative pose for a monocular front end: with a unit translation."""
    pose = np.linalg.inv(truth[keyframe]) @ truth[stamp]
    pose[:3, 3] /= np.linalg.norm(pose[:3, 3])
    return pose


@pytest.fixture
def truth():
    """Five frames along a curve, 0.1 m apart."""
    poses = {0: transform()}
    for k in range(1, 5):
        poses[k] = poses[k - 1] @ transform(3.0, (0.02, 0.0, 0.1))
    return poses


# --- arithmetic ---


def test_true_poses_have_no_error_whatever_the_length_of_the_baseline(truth):
    found = accuracy([located(0, k, relative(truth, 0, k)) for k in range(1, 5)], truth)
    assert found["pairs"] == 4
    assert found["rotation_deg"]["worst"] < 1e-5
    assert found["direction_deg"]["worst"] < 1e-5
    assert found["auc"]["5"] == pytest.approx(100, abs=1e-3)


def test_a_known_mistake_is_what_is_reported(truth):
    wrong = [located(k, k + 1, relative(truth, k, k + 1) @ transform(2.0)) for k in range(4)]
    found = accuracy(wrong, truth)
    assert found["rotation_deg"]["median"] == pytest.approx(2.0, abs=1e-6)
    assert found["direction_deg"]["worst"] < 1e-5
    assert found["auc"]["5"] == pytest.approx(60.0, abs=13)  # four equal errors: a coarse staircase under the curve


def test_a_pair_whose_true_baseline_is_tiny_counts_for_the_rotation_only(truth):
    truth[5] = truth[4] @ transform(1.0, (0.0, 0.001, 0.0))
    pose = transform(1.0, (1.0, 0.0, 0.0))
    found = accuracy([located(4, 5, pose), located(0, 1, relative(truth, 0, 1))], truth)
    assert (found["pairs"], found["tiny_baseline"]) == (2, 1)
    assert found["min_baseline"] == pytest.approx(0.0102, abs=1e-3)
    assert found["direction_deg"]["worst"] < 1e-5
    assert found["auc"]["5"] == pytest.approx(100, abs=1e-3)


@pytest.mark.parametrize("status", [PoseStatus.TOO_FEW_MATCHES, PoseStatus.LOW_PARALLAX, PoseStatus.PURE_ROTATION])
def test_a_pose_without_direction_is_a_failure_to_the_auc_though_not_to_the_medians(truth, status):
    unseen = transform()
    found = accuracy([located(0, 1, unseen, status), located(1, 2, relative(truth, 1, 2))], truth)
    assert found["without_direction"] == 1
    assert found["direction_deg"]["worst"] < 1e-5
    assert found["auc"]["20"] == pytest.approx(50, abs=1e-3)


def test_without_a_truth_no_accuracy_is_claimed(truth):
    assert accuracy([located(0, 1, transform())], {}) is None
    assert accuracy([], truth) is None


def test_the_first_pose_of_a_frame_is_the_reference_keyframes():
    poses = [located(2, 3, transform()), located(0, 3, transform()), located(0, 1, transform())]
    assert [(p.keyframe_stamp_ns, p.stamp_ns) for p in to_reference(poses)] == [(0, 1), (2, 3)]


def test_only_pairs_of_frames_played_one_after_the_other_are_consecutive():
    stamps = [0, 10, 20, 30]
    poses = [located(0, 10, transform()), located(0, 20, transform()), located(20, 30, transform())]
    assert [(p.keyframe_stamp_ns, p.stamp_ns) for p in to_previous(poses, stamps)] == [(0, 10), (20, 30)]


def test_true_relative_poses_chain_to_the_true_trajectory_whatever_order_messages_came_in(truth):
    pairs = [(2, 4), (0, 1), (2, 3), (0, 2), (1, 3)]
    poses = [located(keyframe, stamp, relative(truth, keyframe, stamp)) for keyframe, stamp in pairs]
    keyframes = [KeyframeChange(2, True, "HIGH_PARALLAX"), KeyframeChange(0, True, "FIRST")]
    stamps, world = chained(poses, keyframes, Truth(poses=truth))
    assert list(stamps) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(world, [truth[k] for k in range(5)], atol=1e-9)


def test_no_trajectory_is_drawn_of_a_camera_that_was_not_seen_to_move(tmp_path):
    still = [located(0, k, transform(), PoseStatus.LOW_PARALLAX) for k in range(1, 4)]
    recorded = SimpleNamespace(located=still, keyframes=[KeyframeChange(0, True, "FIRST")])
    assert not draw_trajectory(tmp_path / "t.png", recorded, Truth(), "still")
    assert not list(tmp_path.iterdir())


def test_the_report_is_json_even_where_nothing_was_measured():
    numbers = {"a": float("nan"), "b": {"c": np.float32(0.5), "d": np.int64(3)}, "e": "x"}
    assert json.dumps(without_nan(numbers)) == '{"a": null, "b": {"c": 0.5, "d": 3}, "e": "x"}'


def report(
    status, weights="real.pt", calibrated=True, count=10, dropped=0, true=True, latency=None, loops=0, **status_fields
):
    """A demo's report of frames with the same pose status, as it is written."""
    pytest.importorskip("rclpy")
    from loftr_ros.msg import FrontEndStatus

    recorded = SimpleNamespace(
        status=FrontEndStatus(
            network="loftr",
            frames_processed=count + 1,
            frames_dropped=dropped,
            **{"frames_received": 11} | status_fields,
            stages=list(latency or {}),
            latency_median=list((latency or {}).values()),
            latency_p99=list((latency or {}).values()),
            archived_keyframes=7 * bool(loops),
            archive_bytes=500_000 * bool(loops),
        ),
        located=[Located(k, 0, status, transform(), 3, 0, float("nan")) for k in range(1, count + 1)],
        keyframes=[KeyframeChange(0, True, "FIRST")],
        loops=[Located(k, k - 5, PoseStatus.OK, transform(2.0, (1, 0, 0)), 3, 3, 0.0) for k in range(5, 5 + loops)],
    )
    sequence = SimpleNamespace(name="room", kind="rendered", size=(160, 120), rate=10.0, calibrated=calibrated)
    poses = {k: transform(k, (0.1 * k, 0, 0)) for k in range(11)} if true else {}
    truth = Truth(poses=poses, stamps=list(range(11)))
    found = summary(sequence, 10.0, 11, recorded, truth)
    found["node"]["weights"] = weights
    json.dumps(without_nan(found), allow_nan=False)
    return "\n".join(lines(found))


def test_a_demo_without_a_single_pose_says_so_in_words():
    said = report(PoseStatus.TOO_FEW_MATCHES)
    assert "No frame got a pose" in said and "10 TOO_FEW_MATCHES" in said
    assert "nan" not in said
    assert "Not a single" not in report(PoseStatus.LOW_PARALLAX)
    assert "Not a single" not in report(PoseStatus.NO_CALIBRATION, calibrated=False)


def test_a_demo_whose_node_is_too_slow_says_how_fast_it_may_play():
    said = report(PoseStatus.OK, dropped=100, latency={"wait": 9.0, "encode": 0.3, "match": 0.1, "total": 9.5})
    assert "use `--hz 2` to process every frame" in said
    assert "--hz" not in report(PoseStatus.OK, dropped=2)


def test_a_demo_tells_what_was_lost_on_the_way_from_what_there_was_no_time_for():
    said = report(PoseStatus.OK, frames_unpaired=9, frames_received=10, messages_lost=7)
    assert "--hz" not in said
    assert "1 images did not reach the node, 9 came without their partner" in said
    assert "reports 7 lost messages" in said and "docs/transport.md" in said
    assert "lost" not in report(PoseStatus.OK)


def test_a_demo_with_an_archive_tells_of_loops_and_of_their_errors_and_one_without_tells_nothing():
    said = report(PoseStatus.OK, loops=3)
    assert "7 keyframes archived in 0.5 MB" in said and "3 loops" in said
    assert "rotation 3.00° median, 3.00° at most, direction 1.00° median, 2.00° at most" in said
    assert "archived" not in report(PoseStatus.OK)


def test_estimates_that_are_missing_are_not_blamed_on_the_truth():
    assert "too few to compare with the true poses" in report(PoseStatus.OK, count=3)
    assert "no true poses" in report(PoseStatus.OK, true=False)


def test_a_demo_with_random_weights_says_that_nothing_it_shows_means_anything():
    assert "weights are random" in report(PoseStatus.TOO_FEW_MATCHES, weights="random")
    assert "weights are random" in report(PoseStatus.OK, weights="random")


# --- the sequence ---


def test_the_scene_is_rendered_once_and_played_back_exactly(tmp_path):
    from loftr_ros.recordings import open_source

    uri = "rendered:room?seed=3&frames=3&width=160&height=120"
    folder = tmp_path / "rendered"
    first = prepare(uri, folder, None, {}, False)
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    assert prepare(uri, folder, None, {}, False) == first
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()} == written
    assert (first.name, first.kind, first.size, first.length, first.calibrated) == (
        "room",
        "rendered",
        (160, 120),
        3,
        True,
    )

    with open_source(uri) as made, open_source(first.uri, **first.options) as kept:
        for one, other in zip(made, kept, strict=True):
            assert one.stamp_ns == other.stamp_ns
            np.testing.assert_array_equal(one.decode(), other.decode())
            np.testing.assert_array_equal(one.pose, other.pose)
            np.testing.assert_array_equal(one.camera.matrix, other.camera.matrix)

    prepare("rendered:room?seed=3&frames=2&width=160&height=120", folder, None, {}, False)
    assert len(list((folder / "image_0").iterdir())) == 2


@pytest.mark.parametrize("mode", ["stereo", "rgbd"])
def test_the_rendered_scene_is_kept_with_what_the_mode_needs(tmp_path, mode):
    uri = "rendered:room?seed=3&frames=3&width=64&height=48"
    sequence = prepare(uri, tmp_path / "rendered", None, {}, False, mode)
    with open_source(sequence.uri) as kept, open_source(uri) as rendered:
        for one, other in zip(kept, rendered, strict=True):
            ours, exact = one.to_frame(mode), other.to_frame(mode)
            np.testing.assert_array_equal(ours.image, exact.image)
            assert ours.stamp_ns == exact.stamp_ns and ours.camera.same_as(exact.camera)
            np.testing.assert_allclose(one.pose, other.pose, atol=1e-9)
            if mode == "rgbd":
                depths = [each.depth.metres(each.depth.values) for each in (ours, exact)]
                np.testing.assert_allclose(depths[0], depths[1], atol=2e-4)
            else:
                np.testing.assert_array_equal(ours.right.image, exact.right.image)


def test_what_is_played_follows_the_node_s_parameter_file(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("/**:\n  ros__parameters: {mode: rgbd, input: {image_transport: compressed}}\n")
    settings = Settings("rendered", tmp_path, "", "", "", "", file, 1.0, None, None)
    sequence = Sequence("x", {}, "x", "x", 10.0, 1, (64, 48), True)
    asked = json.loads(_publisher_command(settings, sequence)[-1])["play"]
    assert (asked["mode"], asked["image_transport"]) == ("rgbd", "compressed")


def test_a_folder_of_the_users_is_not_overwritten_with_rendered_frames(tmp_path):
    mine = tmp_path / "rendered" / "thesis.tex"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(SourceError, match="another output folder"):
        prepare("rendered:room?seed=3&frames=1&width=64&height=48", mine.parent, None, {}, False)
    assert mine.exists()


def test_frames_and_images_are_taken_as_asked(tmp_path):
    for k in range(9):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((20, 30), 10 * k, np.uint8))
    sequence = prepare(str(tmp_path), tmp_path / "none", 3, {"start": 1, "step": 2}, False)
    assert (sequence.length, sequence.size, sequence.calibrated) == (3, (30, 20), False)
    stamps = [1_000_000_000 + round(k * 1e9 / 30) for k in (1, 3, 5)]
    truth = sequence.look_again({stamps[1]})
    # Without poses, images after the last result are not needed.
    assert truth.stamps == stamps[:2]
    assert truth.images[stamps[1]][0, 0] == 30


# --- processes ---


def test_a_child_that_ignores_ctrl_c_and_its_own_children_are_ended(tmp_path):
    code = (
        "import signal, subprocess, sys, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('ready', flush=True); time.sleep(600)\n"
    )
    child = Child("stubborn", [sys.executable, "-c", code], tmp_path / "log", os.environ | {"DEMO_TEST": str(tmp_path)})
    wait_until(lambda: "ready" in child.output, 20, "the child", [child])
    assert len(marked(tmp_path)) == 2
    assert child.close(patience=0.2) == -signal.SIGKILL
    assert gone(tmp_path)


def test_a_child_that_dies_is_reported_with_its_last_words(tmp_path):
    code = "import sys; print('first'); sys.exit('out of cheese')"
    child = Child("node", [sys.executable, "-c", code], tmp_path / "log", os.environ)
    with pytest.raises(DemoError, match=r"(?s)node ended unexpectedly with exit code 1.*out of cheese"):
        wait_until(lambda: False, 20, "a miracle", [child])


def test_waiting_ends_with_what_was_waited_for(tmp_path):
    with pytest.raises(DemoError, match=r"waited 0\.1 s for a miracle"):
        wait_until(lambda: False, 0.1, "a miracle")


def test_two_demos_on_one_machine_do_not_meet_unless_told_to(monkeypatch):
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    with own_domain() as one, own_domain() as other:
        assert one != other
        assert {one, other} <= set(range(1, 102))
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    with own_domain() as one, own_domain() as other:
        assert one == other == 7


def test_a_domain_is_free_only_once_its_last_participant_has_gone(monkeypatch):
    rclpy = pytest.importorskip("rclpy")
    with free_domain() as used:
        context = rclpy.Context()
        context.init(args=None, domain_id=used)
        node = rclpy.create_node("lasting", context=context)
    monkeypatch.setattr("loftr_ros.tools.domains.DOMAINS", [used])
    with pytest.raises(DomainError, match="ROS_DOMAIN_ID"), free_domain():
        pass
    node.destroy_node()
    context.try_shutdown()
    with free_domain() as again:
        assert again == used


# --- the whole ---


def marked(mark):
    """Processes with the mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"DEMO_TEST={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def gone(mark, seconds=5.0):
    end = time.monotonic() + seconds
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.05)
    return not marked(mark)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The demo's rendered room, rendered here at a size that other tests use."""
    folder = tmp_path_factory.mktemp("room") / "rendered"
    prepare(ROOM, folder, None, {"start": 0, "step": 1}, False)
    return folder


@pytest.fixture
def own_environment(tmp_path, monkeypatch):
    """Processes of the demo carry this test's mark and use their own domain."""
    if importlib.util.find_spec("rclpy") is None:
        pytest.skip("needs rclpy")
    monkeypatch.setenv("DEMO_TEST", str(tmp_path))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    yield
    for number in marked(tmp_path):
        os.kill(number, signal.SIGKILL)


@pytest.fixture
def demo(own_environment, tmp_path):
    """Starts `loftr_ros demo` like a user."""
    code = "import sys; from loftr_ros.cli.main import main; sys.exit(main())"
    running = []

    def start(*arguments):
        command = [sys.executable, "-c", code, "demo", "-o", str(tmp_path / "demo"), *map(str, arguments)]
        with (tmp_path / "said").open("w") as said:
            running.append(subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT))
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.ros
def test_the_demo_reports_small_errors_and_leaves_pictures_but_no_process(demo, rendered, tmp_path):
    shutil.copytree(rendered, tmp_path / "demo" / "rendered")  # the demo plays existing images
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "demo" / "rendered").rglob("*.png")}
    process = demo(ROOM, "--hz", 8)  # which may happen on a busy machine too
    assert process.wait(timeout=90) == 0, (tmp_path / "said").read_text()
    assert gone(tmp_path)
    assert len(written) == 20 and all(file.stat().st_mtime_ns == when for file, when in written.items())
    said = (tmp_path / "said").read_text()
    assert "20 published" in said and "AUC @ 5°" in said

    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    frames = report["frames"]
    assert frames["published"] == 20
    assert frames["received"] == frames["processed"] + frames["dropped"] + frames["failed"] + frames["unpaired"]
    assert frames["failed"] == 0
    assert frames["processed"] >= 6
    assert report["node"]["exit_code"] == 0
    assert 0 < report["latency_ms"]["total"]["median"] < 2000
    assert report["keyframes"]["added"]["FIRST"] == 1
    errors = report["accuracy"]["to_reference"]
    assert errors["pairs"] == report["poses"]["frames"] == frames["processed"] - 1
    assert errors["rotation_deg"]["median"] < 0.5
    assert errors["direction_deg"]["median"] < 3
    assert errors["auc"]["10"] > 60

    matches = cv2.imread(str(tmp_path / "demo" / "matches.png"))
    assert matches.shape[0] > 240 and matches.shape[1] >= 640
    assert matches.std() > 20
    assert cv2.imread(str(tmp_path / "demo" / "trajectory.png")).std() > 5


@pytest.mark.ros
@pytest.mark.long
def test_the_full_network_plays_the_demo_with_random_weights(demo, tmp_path):
    room = "rendered:room?seed=3&frames=6&width=160&height=120"
    process = demo(room, "--network", "loftr", "--weights", "random", "--hz", 2)
    assert process.wait(timeout=120) == 0, (tmp_path / "said").read_text()
    said = (tmp_path / "said").read_text()
    assert said.splitlines()[-1].startswith("written to ")
    assert "network loftr on" in said and "The weights are random" in said
    found = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert found["node"]["network"] == "loftr" and found["frames"]["failed"] == 0
    assert found["frames"]["processed"] >= 2
    assert "the weights are random" in (tmp_path / "demo" / "node.log").read_text()
    assert gone(tmp_path)


@pytest.mark.long
@pytest.mark.ros
def test_ctrl_c_ends_the_demo_and_both_of_its_processes(demo, rendered, tmp_path):
    shutil.copytree(rendered, tmp_path / "demo" / "rendered")
    process = demo(ROOM, "--hz", 1, "--network", "coarse_lite", "--weights", "random")
    log = tmp_path / "demo" / "node.log"
    wait_until(lambda: log.is_file() and "waiting for images" in log.read_text(), 60, "the node to be active")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert gone(tmp_path)
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said and said.splitlines()[-1] == "loftr_ros demo: stopped"


@pytest.mark.ros
def test_without_weights_the_demo_says_what_to_do_and_starts_nothing(own_environment, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("LOFTR_ROS_WEIGHTS", raising=False)
    assert run_demo(ROOM, output=tmp_path / "demo", weights=str(tmp_path / "nowhere.pt")) == 2
    assert "nowhere.pt does not exist" in capfd.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.long
@pytest.mark.ros
def test_a_node_that_cannot_be_configured_is_quoted(own_environment, rendered, tmp_path, capfd):
    shutil.copytree(rendered, tmp_path / "demo" / "rendered")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not weights")
    assert run_demo(ROOM, output=tmp_path / "demo", weights=str(broken), progress=False) == 1
    said = capfd.readouterr().err
    assert said.count("loftr_ros demo: ") == 1 and "could not become configured" in said and "broken.pt" in said
    assert gone(tmp_path)
