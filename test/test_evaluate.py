"""`loftr_ros evaluate`: published folders, made small here, and the metrics of the papers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import FineShiftMatcher, texture
from typer.testing import CliRunner

from loftr_ros.evaluation.pair_sets import PairSetError, open_pair_set
from loftr_ros.evaluation.trajectory_errors import kitti_errors, step_errors
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.geometry.se3 import rotation_matrix
from loftr_ros.recordings import open_source
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.tools.evaluate import _pose_error, evaluate_pairs, recordings_in

WIDTH, HEIGHT = 640, 480


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        assert cv2.imwrite(str(folder / name), np.zeros(size[::-1], np.uint8))


def write_rows(file: Path, rows: list[list[float]], head: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(head + "".join(" ".join(map(str, row)) + "\n" for row in rows))


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    for number in (3, 6):
        sequence = tmp_path / "dataset" / "sequences" / f"{number:02d}"
        write_images(sequence / "image_0", ["000000.png", "000001.png"], (64, 48))
        write_rows(sequence / "calib.txt", [[700, 0, 32, 0, 0, 700, 24, 0, 0, 0, 1, 0]])
    rows = [[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, k] for k in range(2)]
    write_rows(tmp_path / "dataset" / "poses" / "06.txt", rows)
    return tmp_path / "dataset"


def test_all_recordings_in_a_data_sets_root_are_found(kitti: Path) -> None:
    assert [each.name for each in recordings_in(kitti)] == ["03", "06"]
    assert recordings_in(kitti / "sequences" / "06") == [kitti / "sequences" / "06"]


def test_kittis_poses_are_read_from_where_they_are_published(kitti: Path) -> None:
    poses = [frame.pose for frame in open_source(kitti / "sequences" / "06")]
    assert poses[1] is not None and poses[1][2, 3] == 1
    assert all(frame.pose is None for frame in open_source(kitti / "sequences" / "03"))


def test_seven_scenes_without_a_calibration_file_has_the_published_one(tmp_path: Path) -> None:
    write_images(tmp_path, ["frame-000000.color.png"])
    camera = open_source(tmp_path).camera
    assert camera is not None and camera.matrix[0, 0] == 585 and camera.matrix[0, 2] == 320


def test_tum_vi_has_the_calibration_of_its_camchain_and_the_poses_of_its_mocap(tmp_path: Path) -> None:
    stamps = [1520530308199447626 + k * 50_000_000 for k in range(2)]
    for name in ("cam0", "cam1"):
        write_images(tmp_path / "mav0" / name / "data", [f"{stamp}.png" for stamp in stamps], (512, 512))
    (tmp_path / "mav0" / "mocap0").mkdir()
    (tmp_path / "mav0" / "mocap0" / "data.csv").write_text(f"#timestamp\n{stamps[0]},1,2,3,1,0,0,0\n")
    (tmp_path / "dso").mkdir()
    chain = "".join(
        f"cam{k}:\n  T_cam_imu: [[1, 0, 0, {-0.1 * k}], [0, 1, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1]]\n"
        "  camera_model: pinhole\n  distortion_model: equidistant\n"
        "  distortion_coeffs: [0.003, 0.0007, -0.002, 0.0002]\n"
        "  intrinsics: [190.9, 190.9, 254.9, 256.9]\n  resolution: [512, 512]\n"
        for k in (0, 1)
    )
    (tmp_path / "dso" / "camchain.yaml").write_text(chain)
    source = open_source(tmp_path)
    first, second = source
    assert source.camera is not None and source.camera.distortion_model == "equidistant"
    assert first.pose is not None and second.pose is None
    np.testing.assert_allclose(first.pose[:3, 3], [1, 1.5, 3])
    right = first.right
    assert right is not None and right.left_from_right[0, 3] == pytest.approx(0.1)


def test_icl_nuims_upward_axes_become_downward_ones(tmp_path: Path) -> None:
    for name in ("rgb", "depth"):
        write_images(tmp_path / name, ["0.png", "1.png"])
    cv2.imwrite(str(tmp_path / "depth" / "1.png"), np.full((HEIGHT, WIDTH), 5000, np.uint16))
    (tmp_path / "associations.txt").write_text("0 depth/0.png 0 rgb/0.png\n1 depth/1.png 1 rgb/1.png\n")
    turn = np.sin(0.1), np.cos(0.1)  # by 0.2 about x, seen from a camera whose y points up
    (tmp_path / "livingRoom0.gt.freiburg").write_text(f"1 0 1.5 -2 {turn[0]} 0 0 {turn[1]}\n")
    first, second = open_source(tmp_path)
    assert first.pose is None and second.pose is not None
    np.testing.assert_allclose(second.pose[:3, 3], [0, -1.5, -2])
    np.testing.assert_allclose(second.pose[:3, :3], rotation_matrix([-0.2, 0, 0]), atol=1e-12)
    depth = second.depth
    assert depth is not None
    frame = FrameReader().read(second, "rgbd")
    assert frame.depth is not None and frame.depth.metres(frame.depth.values)[0, 0] == 1


def test_tartanair_has_optical_axes_a_baseline_and_depth(tmp_path: Path) -> None:
    for side in ("left", "right"):
        write_images(tmp_path / f"image_{side}", [f"00000{k}_{side}.png" for k in range(2)])
    (tmp_path / "depth_left").mkdir()
    np.save(tmp_path / "depth_left" / "000000_left_depth.npy", np.full((HEIGHT, WIDTH), 7.5, np.float32))
    (tmp_path / "depth_left" / "000001_left_depth.npy").write_bytes(b"\x93NUMPY cut off")
    write_rows(tmp_path / "pose_left.txt", [[0, 0, 0, 0, 0, 0, 1], [3, 2, 1, 0, 0, 0, 1]])
    first, second = open_source(tmp_path)
    assert second.pose is not None and first.pose is not None
    moved = np.linalg.inv(first.pose) @ second.pose
    np.testing.assert_allclose(moved[:3, 3], [2, 1, 3])  # right, down, ahead
    assert first.right is not None and first.right.baseline == 0.25
    depth = FrameReader().read(first, "rgbd").depth
    assert depth is not None and depth.metres(depth.values)[5, 5] == 7.5
    with pytest.raises(Exception, match=r"000001_left_depth\.npy cannot be read"):
        FrameReader().read(second, "rgbd")


def write_hpatches(folder: Path) -> None:
    image = cv2.merge([texture(480 + 64, 640 + 64)] * 3)
    for sequence, shift in (("v_one", (8, 16)), ("v_two", (-8, 8)), ("v_talent", (0, 0))):
        (folder / sequence).mkdir(parents=True)
        for k in range(1, 7):
            x, y = (32 + (k > 1) * each for each in shift)
            assert cv2.imwrite(str(folder / sequence / f"{k}.ppm"), image[y : y + 480, x : x + 640])
            if k > 1:
                write_rows(folder / sequence / f"H_1_{k}", [[1, 0, -shift[0]], [0, 1, -shift[1]], [0, 0, 1]])


def test_hpatches_is_read_and_right_matches_have_no_corner_error(tmp_path: Path) -> None:
    write_hpatches(tmp_path / "hpatches")
    pairs = open_pair_set(tmp_path / "hpatches")
    assert pairs is not None and pairs.name == "HPatches"
    assert len(pairs.pairs) == 10, "v_talent is one of the eight that the evaluations leave out"
    (tmp_path / "hpatches" / "v_two" / "6.ppm").unlink()
    table = evaluate_pairs(pairs, PairMatcher(FineShiftMatcher()), FrameReader(), tmp_path, progress=False)
    ((name, network, count, metric, *_),) = table.rows
    assert (name, network, count) == ("HPatches", "640x480", "9 of 10")
    assert "6.ppm" in table.missing[0]
    areas = metric.rpartition(" ")[2].split("/")
    assert float(areas[0]) > 90, metric
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 10


def scene_pair() -> tuple[np.ndarray, np.ndarray]:
    pose0, pose1 = np.eye(4), np.eye(4)
    pose1[:3, :3], pose1[:3, 3] = rotation_matrix([0.02, 0.2, 0]), [0.5, 0.1, 0.05]
    return pose0, pose1


def test_scannet_is_read_in_loftrs_layout_and_in_superglues_alike(tmp_path: Path) -> None:
    camera = np.array([[577.9, 0, 319.5], [0, 578.7, 239.5], [0, 0, 1]])
    pose0, pose1 = scene_pair()
    one, other = tmp_path / "loftr", tmp_path / "superglue"
    for stem, pose in ((15, pose0), (585, pose1)):
        write_rows(one / "scene0707_00" / "pose" / f"{stem}.txt", pose.tolist())
    np.savez(one / "test.npz", name=np.array([[707, 0, 15, 585]]))
    np.savez(one / "intrinsics.npz", scene0707_00=camera)
    truth = np.linalg.inv(pose1) @ pose0
    entries = ["scene0707_00/a.jpg", "scene0707_00/b.jpg", 0, 0, *camera.ravel(), *camera.ravel(), *truth.ravel()]
    write_rows(other / "scannet_test_pairs_with_gt.txt", [entries])
    for folder in (one, other):
        pairs = open_pair_set(folder)
        assert pairs is not None and pairs.name == "ScanNet-1500" and pairs.side == 640
        (pair,) = pairs.pairs
        np.testing.assert_allclose(pair.truth, truth, atol=1e-12)
        np.testing.assert_allclose(pair.camera0, camera)
    (other / "scannet_test_pairs_with_gt.txt").write_text("a.jpg b.jpg 1 2 3\n")
    with pytest.raises(PairSetError, match="line 1 has 5 entries"):
        open_pair_set(other)


def test_the_pose_error_of_exact_matches_is_zero_at_whatever_size_images_are_evaluated(tmp_path: Path) -> None:
    """MegaDepth's list: images are resized to 840 pixels, and their cameras with them."""
    camera = np.array([[1200.0, 0, 800], [0, 1200, 600], [0, 0, 1]])
    pose0, pose1 = scene_pair()
    truth = np.linalg.inv(pose1) @ pose0
    numbers = [*camera.ravel(), *camera.ravel(), *truth[:3, :3].ravel(), *truth[:3, 3]]
    write_rows(tmp_path / "megadepth1500" / "pairs_calibrated.txt", [["a.jpg", "b.jpg", *numbers]])
    pairs = open_pair_set(tmp_path / "megadepth1500")
    assert pairs is not None and (pairs.name, pairs.side) == ("MegaDepth-1500", 840)
    random, scale = np.random.default_rng(0), np.diag([0.525, 0.525, 1])
    points = random.uniform([-2, -2, 4], [2, 2, 8], (200, 3))
    seen = [points, points @ truth[:3, :3].T + truth[:3, 3]]
    pixels = [(each / each[:, 2:]) @ (scale @ camera).T for each in seen]
    error = _pose_error(pairs.pairs[0], pixels[0][:, :2], pixels[1][:, :2], scale, scale)
    assert error < 0.01
    assert _pose_error(pairs.pairs[0], pixels[0][:3, :2], pixels[1][:3, :2], scale, scale) == np.inf


def test_errors_of_a_walk_that_is_a_hundredth_too_long_are_a_hundredth() -> None:
    truth = np.tile(np.eye(4), (1201, 1, 1))
    truth[:, 2, 3] = np.arange(1201)
    estimate = truth.copy()
    estimate[:, 2, 3] *= 1.01
    t_rel, r_rel = kitti_errors(estimate, truth)
    assert t_rel == pytest.approx(1.0, abs=0.02) and r_rel == 0
    assert step_errors(estimate, truth) == (pytest.approx(0.01), pytest.approx(0, abs=1e-9))
    assert kitti_errors(estimate, truth, 1 / 1.01)[0] == pytest.approx(0, abs=1e-6)
    assert np.isnan(kitti_errors(truth[:50], truth[:50])[0])


def test_the_command_writes_a_table_and_says_what_is_missing(tmp_path: Path) -> None:
    from loftr_ros.cli.main import app

    pose0, pose1 = scene_pair()
    truth, camera = np.linalg.inv(pose1) @ pose0, [300, 0, 160, 0, 300, 120, 0, 0, 1]
    numbers = [*camera, *camera, *truth[:3, :3].ravel(), *truth[:3, 3]]
    write_rows(tmp_path / "set" / "pairs_calibrated.txt", [["a.jpg", name, *numbers] for name in ("b.jpg", "c.jpg")])
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        cv2.imwrite(str(tmp_path / "set" / name), texture(240, 320))
    command = ["evaluate", str(tmp_path / "set"), "-o", str(tmp_path / "out"), "-q", "--network", "coarse_lite"]
    for code, count, last in ((0, "2 of 2", "written to"), (1, "1 of 2", "(partial)")):
        found = CliRunner().invoke(app, [*command, "--weights", "random"])
        assert found.exit_code == code and last in found.output.splitlines()[-1], found.output
        assert f"| {count} | AUC@5/10/20 deg: " in (tmp_path / "out" / "set" / "table.md").read_text()
        (tmp_path / "set" / "c.jpg").unlink(missing_ok=True)


def test_a_folder_without_a_benchmark_is_refused_in_words(tmp_path: Path) -> None:
    from loftr_ros.cli.main import app

    found = CliRunner().invoke(app, ["evaluate", str(tmp_path)])
    assert found.exit_code == 2 and "holds none of the known benchmarks" in found.output
    found = CliRunner().invoke(app, ["evaluate", str(tmp_path / "none")])
    assert found.exit_code == 2 and "is no folder" in found.output
