"""Sources: every kind is detected, with the stamps, calibration and poses of its files."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from bags import COMPRESSED, IMAGE, INFO, STORE1, K, camera_info, compressed, image, write_bag, write_bag1

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings import BagImage, EncodedImage, SourceError, open_source

WIDTH, HEIGHT = 62, 42
POSE = np.array([[0, -1, 0, 1.5], [1, 0, 0, -2], [0, 0, 1, 0.25], [0, 0, 0, 1.0]])  # 90 degrees about z


def picture(number):
    """Gray levels that identify the picture and its orientation."""
    ramp = np.add.outer(np.arange(HEIGHT), 2 * np.arange(WIDTH)) // 2
    return (ramp + 20 * number).clip(0, 255).astype(np.uint8)


def write_pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), picture(number))


@pytest.fixture
def kitti(tmp_path):
    write_pictures(tmp_path / "image_l", [f"{k:06d}.png" for k in range(5)])
    row = "700 0 30 0 0 710 20 0 0 0 1 0"
    (tmp_path / "calib.txt").write_text(f"P0: {row}\nP1: {row}\n")
    rows = [np.r_[np.eye(3, 4).ravel()[:11], k] for k in range(5)]
    np.savetxt(tmp_path / "poses.txt", rows)
    return tmp_path


@pytest.fixture
def seven_scenes(tmp_path):
    write_pictures(tmp_path, [f"frame-{k:06d}.color.png" for k in (0, 1, 2, 30)])
    for k in (0, 1, 30):
        np.savetxt(tmp_path / f"frame-{k:06d}.pose.txt", POSE)
    (tmp_path / "frame-000002.pose.txt").write_text("nan nan nan nan\n" * 3 + "0 0 0 inf\n")
    np.savetxt(tmp_path / "camera-intrinsics.txt", [[585, 0, 30], [0, 586, 20], [0, 0, 1]])
    return tmp_path


@pytest.fixture
def euroc(tmp_path):
    stamps = [1403715273262142976 + k * 50_000_000 for k in range(4)]
    write_pictures(tmp_path / "mav0" / "cam0" / "data", [f"{stamp}.png" for stamp in stamps])
    (tmp_path / "mav0" / "cam0" / "sensor.yaml").write_text(
        "%YAML:1.0\nsensor_type: camera\nT_BS:\n  cols: 4\n  rows: 4\n"
        "  data: [1, 0, 0, 0.1,  0, 1, 0, 0,  0, 0, 1, 0,  0, 0, 0, 1]\n"
        f"rate_hz: 20\nresolution: [{WIDTH}, {HEIGHT}]\ncamera_model: pinhole\nintrinsics: [458, 457, 30, 20]\n"
        "distortion_model: radial-tangential\ndistortion_coefficients: [-0.28, 0.07, 0.0002, 1.8e-05]\n"
    )
    truth = tmp_path / "mav0" / "state_groundtruth_estimate0"
    truth.mkdir()
    half = np.sqrt(0.5)
    lines = [f"{stamp + 3_000_000},1.5,-2,0.25,{half},0,0,{half},0,0,0" for stamp in stamps[:2]]
    (truth / "data.csv").write_text("#timestamp, p, q\n" + "\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def tum(tmp_path):
    folder = tmp_path / "rgbd_dataset_freiburg3_desk"
    stamps = ["1341846313.592026", "1341846313.654184", "1341846313.686156"]
    write_pictures(folder / "rgb", [f"{stamp}.png" for stamp in stamps])
    (folder / "rgb.txt").write_text("# color images\n" + "".join(f"{stamp} rgb/{stamp}.png\n" for stamp in stamps))
    half = np.sqrt(0.5)
    (folder / "groundtruth.txt").write_text(
        f"# timestamp tx ty tz qx qy qz qw\n1341846313.5900 1.5 -2 0.25 0 0 {half} {half}\n"
        "1341846313.66 0 0 0 0 0 0 1\n"
    )
    (folder / "camera.yaml").write_text(CAMERA_YAML)
    return folder


CAMERA_YAML = f"""image_width: {WIDTH}
image_height: {HEIGHT}
camera_name: left
camera_matrix: {{rows: 3, cols: 3, data: [400, 0, 31, 0, 401, 21, 0, 0, 1]}}
distortion_model: plumb_bob
distortion_coefficients: {{rows: 1, cols: 5, data: [0.1, -0.05, 0, 0, 0]}}
rectification_matrix: {{rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}}
"""


def bag_messages(topic="/camera/image_raw", count=4, offset=0):
    messages = []
    for k in range(count):
        stamp = 5_000_000_000 + offset + k * 100_000_000
        info = topic.rpartition("/")[0] + "/camera_info"
        messages.append((topic, IMAGE, stamp + 2_000_000, image(picture(k), stamp, padding=3)))
        messages.append((info, INFO, stamp + 3_000_000, camera_info(WIDTH, HEIGHT, stamp)))
    return messages


def test_sources_are_read_without_ros(tmp_path):
    write_pictures(tmp_path, ["0.png"])
    code = (
        "import sys; sys.modules['rclpy'] = None\n"
        "from loftr_ros.recordings import bag, folders, rendered, video\n"
        "import loftr_ros.recordings\n"
        "frame = next(iter(loftr_ros.recordings.open_source(sys.argv[1])))\n"
        f"assert frame.to_frame().size == {WIDTH, HEIGHT}\n"
    )
    isolated = "-P" if sys.version_info >= (3, 11) else "-E"
    subprocess.run([sys.executable, isolated, "-c", code, str(tmp_path)], check=True)


def test_kitti_has_ten_hertz_stamps_metric_poses_and_the_first_camera(kitti):
    with open_source(kitti) as source:
        frames = list(source)
    assert (source.kind, source.length, source.rate) == ("KITTI odometry", 5, 10)
    assert [frame.stamp_ns - frames[0].stamp_ns for frame in frames] == [k * 10**8 for k in range(5)]
    assert frames[3].pose[2, 3] == 3
    assert frames[3].metric
    assert source.camera.matrix.tolist() == [[700, 0, 30], [0, 710, 20], [0, 0, 1]]
    assert (source.camera.width, source.camera.height) == (WIDTH, HEIGHT)
    for k, frame in enumerate(frames):
        assert np.array_equal(frame.to_frame().image, picture(k))


def test_kitti_times_are_used_where_they_come_with_the_images(kitti):
    (kitti / "times.txt").write_text("0\n0.1037\n0.2\n0.31\n0.4\n")
    assert [frame.stamp_ns for frame in open_source(kitti)][:2] == [0, 103_700_000]


def test_poses_of_a_part_of_a_kitti_sequence_belong_to_the_frame_numbers(kitti):
    (kitti / "image_l" / "000000.png").unlink()
    assert [frame.pose[2, 3] for frame in open_source(kitti)] == [1, 2, 3, 4]


def test_seven_scenes_stamps_keep_gaps_and_invalid_poses_are_none(seven_scenes):
    frames = list(open_source(seven_scenes))
    seconds = [(frame.stamp_ns - frames[0].stamp_ns) / 1e9 for frame in frames]
    assert seconds == pytest.approx([0, 1 / 30, 2 / 30, 1], abs=1e-8)
    assert frames[2].pose is None
    assert np.allclose(frames[3].pose, POSE)
    assert frames[0].camera.matrix[1, 1] == 586


def test_euroc_keeps_nanoseconds_distortion_and_the_camera_s_pose_from_either_folder(euroc):
    for folder in (euroc, euroc / "mav0", euroc / "mav0" / "cam0"):
        frames = list(open_source(folder))
        assert [frame.stamp_ns for frame in frames] == [1403715273262142976 + k * 50_000_000 for k in range(4)]
        assert frames[0].camera.distortion_model == "plumb_bob"
        assert frames[0].camera.distortion.tolist() == [-0.28, 0.07, 0.0002, 1.8e-05]
        # The body's pose is POSE, and the camera sits 0.1 m along the body's x.
        expected = POSE @ np.array([[1, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        assert np.allclose(frames[1].pose, expected)
        assert frames[3].pose is None, "no pose is near enough in time"


def test_tum_keeps_its_stamps_and_takes_the_pose_nearest_in_time(tum):
    frames = list(open_source(tum))
    assert [frame.stamp_ns for frame in frames][:2] == [1341846313592026000, 1341846313654184000]
    assert np.allclose(frames[0].pose, POSE)
    assert np.allclose(frames[1].pose, np.eye(4))
    assert frames[2].pose is None
    assert frames[0].camera.matrix[0, 0] == 400


def test_tum_without_a_calibration_file_has_the_published_one_of_its_series(tum):
    (tum / "camera.yaml").unlink()
    with pytest.raises(SourceError, match=rf"640x480.*{WIDTH}x{HEIGHT}"):  # ours are not of that size
        open_source(tum)


def test_any_folder_of_images_is_read_in_natural_order_at_the_asked_rate(tmp_path):
    write_pictures(tmp_path, ["img1.png", "img2.png", "img10.png"])
    (tmp_path / "notes.txt").write_text("not an image")
    source = open_source(tmp_path, rate=5)
    frames = list(source)
    assert [np.array_equal(frame.decode(), picture(k)) for k, frame in enumerate(frames)] == [True] * 3
    assert [frame.stamp_ns - frames[0].stamp_ns for frame in frames] == [0, 200_000_000, 400_000_000]
    assert source.camera is None
    assert frames[0].to_frame().camera is None


def test_a_calibration_beside_the_images_or_given_is_used(tmp_path):
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "camera.yaml").write_text(CAMERA_YAML)
    camera = open_source(tmp_path).camera
    assert camera.matrix[0, 0] == 400
    assert camera.distortion.tolist() == [0.1, -0.05, 0, 0, 0]
    given = CameraModel(WIDTH, HEIGHT, np.diag([300.0, 300, 1]))
    assert open_source(tmp_path, camera=given).camera.matrix[0, 0] == 300
    other = tmp_path / "other.yaml"
    other.write_text(CAMERA_YAML.replace("400", "222"))
    assert open_source(tmp_path, camera=other).camera.matrix[0, 0] == 222


def test_files_are_handed_on_as_they_are_and_decoded_as_the_node_would(tmp_path):
    rng = np.random.default_rng(0)
    color = cv2.GaussianBlur(rng.integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 3)
    cv2.imwrite(str(tmp_path / "0.jpg"), color)
    cv2.imwrite(str(tmp_path / "1.png"), color)
    jpeg, png = open_source(tmp_path)
    assert isinstance(jpeg.image, EncodedImage)
    assert (jpeg.image.format, jpeg.image.data) == ("jpeg", (tmp_path / "0.jpg").read_bytes())
    from loftr_ros.recordings.decoding import decode_compressed

    assert np.array_equal(jpeg.decode(), decode_compressed(jpeg.image))
    assert np.array_equal(png.decode_color(), color)
    assert jpeg.decode().dtype == np.uint8
    assert jpeg.decode().ndim == 2


@pytest.mark.parametrize(("kind", "codec", "tolerance"), [("avi", "MJPG", 6), ("mp4", "mp4v", 12)])
def test_a_video_has_the_container_s_times(tmp_path, kind, codec, tolerance):
    path = tmp_path / f"clip.{kind}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, (WIDTH + 2, HEIGHT + 6))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {codec}")
    pictures = [cv2.resize(picture(k), (WIDTH + 2, HEIGHT + 6)) for k in range(8)]
    for gray in pictures:
        writer.write(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR))
    writer.release()
    source = open_source(path, start=1, step=2)
    frames = list(source)
    assert (source.kind, source.length, source.rate) == ("video", 4, 12.5)
    assert [frame.index for frame in frames] == [1, 3, 5, 7]
    assert [round((frame.stamp_ns - 10**9) / 1e6) for frame in frames] == [40, 120, 200, 280]
    for frame in frames:
        assert np.abs(frame.decode().astype(int) - pictures[frame.index]).mean() < tolerance
    assert len(list(source)) == 4, "a second pass begins again"


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("single_file", [False, True])
def test_a_bag_gives_its_only_image_topic_with_header_stamps_and_camera_info(tmp_path, storage, single_file):
    path = write_bag(tmp_path / "bag", bag_messages(), storage)
    if single_file:
        path = next(p for p in path.iterdir() if p.suffix in (".mcap", ".db3"))
    with open_source(path) as source:
        frames = list(source)
        assert source.topic == "/camera/image_raw"
        assert (source.kind, source.length, round(source.rate, 3)) == ("rosbag2", 4, 10)
        assert source.camera.matrix.ravel().tolist() == list(K)
    assert [frame.stamp_ns for frame in frames] == [5_000_000_000 + k * 100_000_000 for k in range(4)]
    for k, frame in enumerate(frames):
        assert frame.frame_id == "left_optical"
        assert np.array_equal(frame.to_frame().image, picture(k)), "row padding must go"
        assert frame.camera.distortion_model == "plumb_bob"
        assert isinstance(frame.image, BagImage)
        assert frame.image.serialized


def test_a_ros_1_bag_is_read_too(tmp_path):
    messages = []
    for k in range(3):
        stamp = (5 + k) * 10**9
        messages.append(("/cam/image", IMAGE, stamp, image(picture(k), stamp, store=STORE1)))
        messages.append(("/cam/camera_info", INFO, stamp, camera_info(WIDTH, HEIGHT, stamp, store=STORE1)))
    with open_source(write_bag1(tmp_path / "old.bag", messages)) as source:
        frames = list(source)
    assert source.kind == "ROS 1 bag"
    assert np.array_equal(frames[2].to_frame().image, picture(2))
    assert frames[2].camera.matrix.ravel().tolist() == list(K)
    assert frames[2].image.camera_info.p.tolist() == list(range(12))


def test_compressed_images_in_a_bag_are_decoded(tmp_path):
    png = cv2.imencode(".png", picture(3))[1].tobytes()
    messages = [("/cam/image/compressed", COMPRESSED, 10**9, compressed(png, 10**9, "mono8; png compressed "))]
    messages += [("/cam/camera_info", INFO, 10**9 - 5, camera_info(WIDTH, HEIGHT, 10**9))]
    with open_source(write_bag(tmp_path / "bag", messages)) as source:
        (frame,) = source
    assert np.array_equal(frame.decode(), picture(3))
    assert source.camera is not None, "camera_info is beside the topic that image_transport compresses"


def test_of_several_image_topics_one_must_be_chosen(tmp_path):
    path = write_bag(tmp_path / "bag", bag_messages("/front/image") + bag_messages("/rear/image", 2, 50_000_000))
    with pytest.raises(SourceError, match=r"(?s)several image topics.*`topic`.*/front/image.*4 messages.*/rear/image"):
        open_source(path)
    with open_source(path, topic="/rear/image") as source:
        assert [frame.stamp_ns for frame in source] == [5_050_000_000, 5_150_000_000]
    with pytest.raises(SourceError, match=r"(?s)no images on '/up/image'.*/front/image"):
        open_source(path, topic="/up/image")


def test_a_change_of_calibration_within_a_bag_is_followed_and_zeros_are_no_calibration(tmp_path):
    messages = bag_messages(count=6)
    other = [v * 2 if k in (0, 4) else v for k, v in enumerate(K)]
    messages[5] = (*messages[5][:3], camera_info(WIDTH, HEIGHT, 0, other))
    messages[7] = (*messages[7][:3], camera_info(WIDTH, HEIGHT, 0, [0.0] * 9))
    with open_source(write_bag(tmp_path / "bag", messages)) as source:
        focal = [None if frame.camera is None else frame.camera.matrix[0, 0] for frame in source]
    assert focal == [500, 500, 500, 1000, None, 500]


def test_the_rendered_scene_is_a_source_with_exact_poses():
    source = open_source("rendered:room?seed=3&frames=4&rate=10&width=64&height=48")
    frames = list(source)
    assert (source.length, source.rate, source.slow) == (4, 10, True)
    assert frames[0].to_frame().size == (64, 48)
    assert frames[1].stamp_ns - frames[0].stamp_ns == 100_000_000
    assert all(frame.metric and frame.pose.shape == (4, 4) for frame in frames)
    later = list(open_source("rendered?seed=3&frames=4&rate=10&width=64&height=48", start=2))
    assert np.array_equal(later[0].decode(), frames[2].decode())


def test_start_stop_and_step_choose_frames_and_keep_their_time(kitti, tmp_path):
    bag = write_bag(tmp_path / "a_bag", bag_messages(count=5))
    for uri in (kitti, bag):
        with open_source(uri) as source:
            everything = [frame.stamp_ns for frame in source]
        with open_source(uri, start=1, stop=5, step=2) as source:
            frames = list(source)
            assert source.length == len(frames) == 2
            assert source.rate == pytest.approx(5)
        assert [frame.index for frame in frames] == [1, 3]
        assert [frame.stamp_ns for frame in frames] == [everything[1], everything[3]]


def test_a_rate_replaces_the_source_s_own_stamps(euroc):
    frames = list(open_source(euroc, rate=4, step=2))
    assert frames[1].stamp_ns - frames[0].stamp_ns == 500_000_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step": 0}, "step"),
        ({"start": -1}, "start"),
        ({"start": 3, "stop": 3}, "start < stop"),
        ({"start": 99}, "after the last"),
        ({"rate": 0}, "more than 0"),
        ({"topic": "/image"}, "not a bag"),
        ({"speed": 2}, "options of a source are start"),
        ({"camera": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
        ({"camera": CameraModel(640, 480, np.diag([300.0, 300, 1]))}, f"640x480.*{WIDTH}x{HEIGHT}.*`camera`"),
    ],
)
def test_wrong_options_are_refused_with_a_reason(kitti, options, words):
    with pytest.raises(SourceError, match=words):
        open_source(kitti, **options)


def test_what_is_no_source_is_refused_with_what_was_expected(tmp_path):
    for make, words in (
        (lambda p: p, "does not exist"),
        (lambda p: p.mkdir() or p, "holds no images"),
        (lambda p: p.write_bytes(b"hello") and p, "not a readable video"),
        (lambda p: p.write_bytes(b"") or p, "is not a (readable )?video"),
        (lambda p: "rendered:castle", "expected one of room"),
        (lambda p: "rendered:room?speed=3", "no setting 'speed'.*seed"),
        (lambda p: "rendered:room?frames=many", "whole numbers"),
    ):
        with pytest.raises(SourceError, match=words):
            open_source(make(tmp_path / words.replace(" ", "_").replace("*", "")))


def test_damaged_files_are_named(kitti, tmp_path):
    (kitti / "image_l" / "000002.png").write_bytes((kitti / "image_l" / "000002.png").read_bytes()[:60])
    frames = list(open_source(kitti))
    with pytest.raises(SourceError, match=r"000002\.png.*cut off"):
        frames[2].decode()
    frames[3].decode()
    (kitti / "poses.txt").write_text("1 0 0\n")
    with pytest.raises(SourceError, match=r"poses.txt, line 1 has 3 entries; expected 12"):
        open_source(kitti)
    broken = tmp_path / "x.mcap"
    broken.write_bytes(b"\x89MCAP0\r\n" + b"junk" * 20)
    with pytest.raises(SourceError, match=r"x\.mcap"):
        open_source(broken)
    half = write_bag(tmp_path / "half", bag_messages())
    file = next(half.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(SourceError, match="half"):
        open_source(half)


def test_an_image_of_another_size_than_its_calibration_is_refused_when_it_comes(kitti):
    frames_of = open_source(kitti)
    cv2.imwrite(str(kitti / "image_l" / "000004.png"), np.zeros((30, 30), np.uint8))
    *_, last = frames_of
    with pytest.raises(SourceError, match=rf"000004\.png.*{WIDTH}x{HEIGHT} px, its image is 30x30.*`camera`"):
        last.to_frame()


@pytest.mark.data
def test_the_real_sequences_are_recognised(shared_data):
    expected = {
        "kitti06_stereo": ("KITTI odometry", 51, (1226, 370), 707.0912),
        "sevenscenes": ("7-Scenes", 240, (640, 480), 585.0),
        "euroc_micro": ("EuRoC", 30, (752, 480), 458.654),
        "graf": ("images", 4, (800, 640), None),
    }
    for name, (kind, count, size, focal) in expected.items():
        with open_source(shared_data / name) as source:
            frame = next(iter(source)).to_frame()
            assert (source.kind, source.length, frame.size) == (kind, count, size)
            assert (frame.camera and frame.camera.matrix[0, 0]) == focal
