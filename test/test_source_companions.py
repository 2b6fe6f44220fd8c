"""Right and depth images of sources: assignment to images, reading on demand, and errors."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.frontend.gyroscope import Gyroscope
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings import DepthFile, PixelImage, RightView, SourceError, SourceFrame, open_source
from loftr_ros.recordings.registration import Registration
from loftr_ros.worlds.scene import Scene, trajectory

WIDTH, HEIGHT = 62, 42
FX, BASELINE = 700.0, 0.54


def picture(number, size=(WIDTH, HEIGHT)):
    """Gray levels that identify the picture."""
    return np.full((size[1], size[0]), 10 * number, np.uint8) + np.arange(size[0], dtype=np.uint8)


def depth_values(number, size=(WIDTH, HEIGHT)):
    """Sixteen bits that identify the depth image, with holes in the first row."""
    values = np.full((size[1], size[0]), 1000 + 100 * number, np.uint16) + np.arange(size[0], dtype=np.uint16)
    values[0, :2] = (0, 65535)
    return values


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def row(tx=0.0, ty=0.0, tz=0.0):
    """A row of KITTI's calib.txt: K [I | t]."""
    matrix = np.array([[FX, 0, 30], [0, 710, 20], [0, 0, 1.0]])
    return " ".join(str(value) for value in np.hstack([matrix, matrix @ [[tx], [ty], [tz]]]).ravel())


PAIR = (row(), row(-BASELINE))


def write_kitti(path, left="image_l", right="image_r", rows=PAIR, count=4):
    for k in range(count):
        write(path / left / f"{k:06d}.png", picture(k))
        write(path / right / f"{k:06d}.png", picture(k + 10))
    (path / "calib.txt").write_text("".join(f"P{k}: {entries}\n" for k, entries in enumerate(rows)))
    return path


@pytest.fixture
def kitti(tmp_path):
    return write_kitti(tmp_path / "kitti")


def pose(angle, x, y, z):
    """A rotation about z, and a position."""
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = (x, y, z)
    return matrix


EUROC_STAMPS = [1403715273262142976 + k * 50_000_000 for k in range(4)]
LEFT_POSE, RIGHT_POSE = pose(0.4, 0.1, -0.2, 0.3), pose(0.41, 0.2, -0.15, 0.31)


def sensor_yaml(body_camera, focal):
    values = ", ".join(str(value) for value in body_camera.ravel())
    return (
        f"%YAML:1.0\nT_BS:\n  cols: 4\n  rows: 4\n  data: [{values}]\nrate_hz: 20\nresolution: [{WIDTH}, {HEIGHT}]\n"
        f"camera_model: pinhole\nintrinsics: [{focal}, 457, 30, 20]\ndistortion_model: radial-tangential\n"
        "distortion_coefficients: [-0.28, 0.07, 0.0002, 1.8e-05]\n"
    )


@pytest.fixture
def euroc(tmp_path):
    for number, (camera, place) in enumerate((("cam0", LEFT_POSE), ("cam1", RIGHT_POSE))):
        for k, stamp in enumerate(EUROC_STAMPS):
            write(tmp_path / "mav0" / camera / "data" / f"{stamp}.png", picture(k + 10 * number))
        (tmp_path / "mav0" / camera / "sensor.yaml").write_text(sensor_yaml(place, 458 + number))
    return tmp_path


@pytest.fixture
def seven_scenes(tmp_path):
    tmp_path = tmp_path / "scene"
    for k in range(3):
        write(tmp_path / f"frame-{k:06d}.color.png", picture(k))
        write(tmp_path / f"frame-{k:06d}.depth.png", depth_values(k))
    np.savetxt(tmp_path / "camera-intrinsics.txt", [[585, 0, 30], [0, 586, 20], [0, 0, 1]])
    return tmp_path


@pytest.fixture
def tum(tmp_path):
    # The second image's depth is 20 ms after it, the third's 21 ms, the fourth has one before and a nearer one after.
    colour = ["1341846313.600000", "1341846313.700000", "1341846313.800000", "1341846313.900000"]
    depth = ["1341846313.595000", "1341846313.720000", "1341846313.821000", "1341846313.888000", "1341846313.909000"]
    for k, stamp in enumerate(colour):
        write(tmp_path / "rgb" / f"{stamp}.png", picture(k))
    for k, stamp in enumerate(depth):
        write(tmp_path / "depth" / f"{stamp}.png", depth_values(k))
    for name, folder, stamps in (("rgb.txt", "rgb", colour), ("depth.txt", "depth", depth)):
        (tmp_path / name).write_text("# list\n" + "".join(f"{stamp} {folder}/{stamp}.png\n" for stamp in stamps))
    return tmp_path


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("image_l", "image_r"),
        ("image_0", "image_1"),
        ("image_00/data", "image_01/data"),
        ("image_2", "image_3"),
        ("image_left", "image_right"),
    ],
)
def test_kitti_finds_the_right_folder_beside_the_left_one_and_the_baseline_in_the_rows(tmp_path, left, right):
    source = open_source(write_kitti(tmp_path, left, right))
    assert set(source.lacks) == {"rgbd"}
    for k, item in enumerate(source):
        frame = item.to_frame("stereo")
        assert np.array_equal(frame.image, picture(k))
        assert np.array_equal(frame.right.image, picture(k + 10))
        assert np.allclose(frame.right.left_from_right, pose(0, BASELINE, 0, 0), atol=1e-12)
        assert item.right.baseline == pytest.approx(BASELINE)
        assert frame.right.camera.same_as(source.camera)
        assert frame.depth is None


def test_kitti_s_colour_cameras_have_their_own_rows_and_places_beyond_a_shift_along_x(tmp_path):
    left, right = (0.06, -0.0004, 0.0027), (-0.47, 0.0024, 0.0026)
    rows = (row(), row(-BASELINE), row(*left), row(*right))
    (item, *_) = open_source(write_kitti(tmp_path, "image_2", "image_3", rows))
    view = item.right
    assert np.allclose(view.left_from_right[:3, 3], np.subtract(left, right))
    assert np.array_equal(view.left_from_right[:3, :3], np.eye(3))
    assert view.baseline is None, "a shift of millimetres along y is no rectified pair"


def test_kitti_s_pairs_belong_together_by_their_numbers(kitti):
    (kitti / "image_r" / "000001.png").unlink()
    (kitti / "image_r" / "000002.png").rename(kitti / "image_r" / "right_2.png")
    frames = list(open_source(kitti))
    assert np.array_equal(frames[2].to_frame("stereo").right.image, picture(12))
    assert np.array_equal(frames[3].to_frame("stereo").right.image, picture(13))
    with pytest.raises(SourceError, match=r"image_r/000001\.png cannot be read"):
        frames[1].to_frame("stereo")
    assert frames[1].to_frame().right is None, "one camera alone does not need the other"


def test_euroc_s_right_camera_has_its_own_calibration_and_its_place_by_both_extrinsics(euroc):
    for folder in (euroc, euroc / "mav0", euroc / "mav0" / "cam0"):
        frames = [item.to_frame("stereo") for item in open_source(folder)]
        assert [int(frame.right.image[0, 0]) for frame in frames] == [100, 110, 120, 130]
        right = frames[0].right
        assert np.allclose(LEFT_POSE @ right.left_from_right, RIGHT_POSE)
        assert (right.camera.matrix[0, 0], right.camera.distortion_model) == (459, "plumb_bob")
        assert right.camera.distortion.tolist() == frames[0].camera.distortion.tolist()


def test_euroc_s_pairs_have_the_same_stamp_whatever_the_files_are_called(euroc):
    cam1 = euroc / "mav0" / "cam1"
    names = ["c.png", "b.png", "a.png"]
    rows = ["#timestamp [ns],filename"]
    for stamp, name in zip([*EUROC_STAMPS[:2], EUROC_STAMPS[3]], names, strict=True):
        (cam1 / "data" / f"{stamp}.png").rename(cam1 / "data" / name)
        rows.append(f"{stamp},{name}")
    (cam1 / "data" / f"{EUROC_STAMPS[2]}.png").unlink()
    (cam1 / "data.csv").write_text("\n".join(rows) + "\n")
    frames = list(open_source(euroc))
    assert [frames[k].to_frame("stereo").right.image[0, 0] for k in (0, 1, 3)] == [100, 110, 130]
    with pytest.raises(SourceError, match=rf"cam1/data/{EUROC_STAMPS[2]}\.png cannot be read"):
        frames[2].to_frame("stereo")


def test_seven_scenes_depth_is_in_millimetres_with_two_kinds_of_holes(seven_scenes):
    source = open_source(seven_scenes)
    assert set(source.lacks) == {"stereo"}
    for k, item in enumerate(source):
        frame = item.to_frame("rgbd")
        depth = frame.depth
        assert np.array_equal(frame.image, picture(k))
        assert np.array_equal(depth.values, depth_values(k))
        assert depth.values.dtype == np.uint16
        metres = depth.metres(depth.values)
        assert np.isnan(metres[0, :2]).all()
        assert metres[5, 7] == pytest.approx(1.007 + 0.1 * k)
        assert frame.right is None


@pytest.fixture
def kinect(tmp_path):
    """The published 7-Scenes, with depth of another camera: a post at 1 m before a wall at 2 m, and a hole."""
    values = np.full((480, 640), 2000, np.uint16)
    values[:, 400:440] = 1000
    values[:10] = 65535
    write(tmp_path / "frame-000000.color.png", picture(0, (640, 480)))
    write(tmp_path / "frame-000000.depth.png", values)
    np.savetxt(tmp_path / "camera-intrinsics.txt", [[585, 0, 320], [0, 585, 240], [0, 0, 1]])
    return tmp_path


def color_camera(focal: float) -> CameraModel:
    return CameraModel(640, 480, np.array([[focal, 0, 320], [0, focal, 240], [0, 0, 1.0]]))


def test_depth_of_the_kinect_of_7_scenes_is_as_in_its_files_with_their_calibration(kinect):
    (item,) = open_source(kinect)
    assert (item.to_frame("rgbd").depth.values[240, 400:440] == 1000).all()


@pytest.mark.parametrize("focal", [525, 540])
def test_depth_of_the_kinect_of_7_scenes_is_moved_into_the_image_of_the_colour_camera_that_is_given(kinect, focal):
    camera = color_camera(focal)
    (item,) = open_source(kinect, camera=camera)
    depth = item.to_frame("rgbd").depth
    metres = depth.metres(depth.values)[240]
    left, right = (focal * ((u - 320) / 585 - 0.025) + 320 for u in (400, 439))
    post = np.flatnonzero(metres == 1)
    assert (post[0], post[-1]) == pytest.approx((left, right), abs=0.51)
    # The wall moves half as far: left of the post it is covered, right of it the depth camera did not see it.
    assert metres[post[0] - 1] == pytest.approx(2)
    assert np.isnan(metres[post[-1] + 2 : post[-1] + 6]).all()
    assert np.isnan(depth.metres(depth.values)[25]).all(), "the rim that only the colour camera sees is a hole"
    assert depth.metres(depth.values)[60, 300] == pytest.approx(2)


def test_registered_depth_is_what_the_image_s_camera_would_have_seen():
    scene, place = Scene(3), trajectory(1, seed=3)[0]
    cameras = [CameraModel(320, 240, np.array([[f, 0, 159.5], [0, f, 119.5], [0, 0, 1.0]])) for f in (300, 260)]
    image_from_depth = pose(0.02, -0.06, 0.02, -0.01)
    seen = scene.render(cameras[0], place @ image_from_depth).depth
    truth = scene.render(cameras[1], place).depth
    values = Registration(*cameras, image_from_depth).apply(np.rint(seen * 1000).astype(np.uint16), 0.001, 65535)
    assert values.shape == truth.shape
    there = values > 0
    # Visible only to the image's camera: a border of (1 - 260 / 300) in each direction, and areas behind edges.
    assert 0.65 < there.mean() < 0.85
    error = np.abs(values * 0.001 - truth)[there]
    assert np.median(error) < 0.002
    assert (error < 0.03).mean() > 0.93
    wrong = np.abs(np.rint(seen * 1000) * 0.001 - truth)[there]
    assert (wrong < 0.03).mean() < 0.5


def test_unregistered_depth_of_another_size_than_its_camera_is_refused(kinect):
    write(kinect / "frame-000000.depth.png", depth_values(0))
    with pytest.raises(SourceError, match=rf"{WIDTH}x{HEIGHT}, but the depth camera's calibration is for 640x480"):
        next(iter(open_source(kinect, camera=color_camera(525)))).to_frame("rgbd")


def test_tum_takes_the_depth_image_nearest_in_time_within_20_ms(tum):
    frames = list(open_source(tum))
    depths = [frames[k].to_frame("rgbd").depth for k in (0, 1, 3)]
    assert [np.array_equal(depth.values, depth_values(k)) for depth, k in zip(depths, (0, 1, 4), strict=True)] == [
        True
    ] * 3
    assert depths[0].metres(depths[0].values)[5, 0] == pytest.approx(1000 / 5000)
    assert not np.isnan(depths[0].metres(depths[0].values)[0, 1]), "65535 is 13.1 m there"
    with pytest.raises(SourceError, match=r"frame 2 .*800000\.png.* has no depth image that belongs to it"):
        frames[2].to_frame("rgbd")


def test_the_rendered_scene_has_exact_depth_and_a_right_camera_that_sees_the_same_points():
    size = (160, 120)
    (item,) = open_source(f"rendered?seed=3&frames=1&width={size[0]}&height={size[1]}")
    rgbd, stereo = item.to_frame("rgbd"), item.to_frame("stereo")
    assert np.array_equal(rgbd.image, stereo.image)
    depth = rgbd.depth.metres(rgbd.depth.values)
    fx = item.camera.matrix[0, 0]
    v, u = np.mgrid[: size[1], : size[0]].astype(np.float32)
    baseline = stereo.right.left_from_right[0, 3]
    assert baseline > 0
    seen = cv2.remap(stereo.right.image, (u - fx * baseline / depth).astype(np.float32), v, cv2.INTER_LINEAR)
    inside = u - fx * baseline / depth > 0
    error = np.abs(seen.astype(int) - rgbd.image)[inside]
    still = np.abs(stereo.right.image.astype(int) - rgbd.image)[inside]
    assert np.median(error) < 4
    assert error.mean() < 0.5 * still.mean()


def test_companions_are_not_read_before_they_are_asked_for(kitti, seven_scenes):
    frames = [*open_source(kitti), *open_source(seven_scenes)]
    assert {frame.right is None for frame in frames} == {frame.depth is None for frame in frames} == {True, False}
    for file in [*(kitti / "image_r").iterdir(), *seven_scenes.glob("*.depth.png")]:
        file.write_bytes(b"no image")
    for item in [*frames, *open_source(kitti), *open_source(seven_scenes)]:
        frame = item.to_frame()
        assert frame.right is None
        assert frame.depth is None


@pytest.mark.parametrize("mode", ["stereo", "rgbd"])
def test_a_source_without_companions_says_so_before_and_with_each_frame(tmp_path, mode):
    write(tmp_path / "0.png", picture(0))
    source = open_source(tmp_path)
    what = {"stereo": "right", "rgbd": "depth"}[mode]
    source.require("mono")
    with pytest.raises(SourceError, match=rf"{tmp_path.name} .*{mode}: this source has no {what} images; .*rendered"):
        source.require(mode)
    with pytest.raises(SourceError, match=rf"frame 0 .*0\.png.* has no {what} image"):
        next(iter(source)).to_frame(mode)
    with pytest.raises(SourceError, match=r"mode 'sonar' is not known; expected mono, stereo, rgbd"):
        next(iter(source)).to_frame("sonar")
    with pytest.raises(SourceError, match="mode 'sonar'"):
        source.require("sonar")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((row(),), r"calib\.txt has no projection row of its camera"),
        ((row(), row()), r"calib\.txt puts both cameras at one place"),
        ((row(), row().replace("700.0", "-1", 1)), "is unusable: focal lengths"),
    ],
)
def test_right_images_without_a_usable_calibration_are_no_stereo_but_still_one_camera(tmp_path, rows, words):
    source = open_source(write_kitti(tmp_path, rows=rows))
    with pytest.raises(SourceError, match=words):
        source.require("stereo")
    frame = next(iter(source))
    assert frame.right is None
    assert np.array_equal(frame.to_frame().image, picture(0))


def test_euroc_without_extrinsics_or_common_stamps_is_no_stereo_but_still_one_camera(euroc):
    cam1 = euroc / "mav0" / "cam1"
    good = (cam1 / "sensor.yaml").read_text()
    (cam1 / "sensor.yaml").write_text(good.replace("T_BS", "T_XY"))
    source = open_source(euroc)
    with pytest.raises(SourceError, match=r"cam1.*sensor\.yaml has no T_BS"):
        source.require("stereo")
    assert next(iter(source)).to_frame().size == (WIDTH, HEIGHT)
    (cam1 / "sensor.yaml").write_text(good)
    open_source(euroc).require("stereo")
    for stamp in EUROC_STAMPS:
        (cam1 / "data" / f"{stamp}.png").rename(cam1 / "data" / f"{stamp + 1}.png")
    with pytest.raises(SourceError, match="no image with a stamp of cam0"):
        open_source(euroc).require("stereo")
    with pytest.raises(SourceError, match="this source has no right images"):
        open_source(cam1).require("stereo")  # of the right camera there is none further right


def test_a_right_image_of_another_size_is_refused_with_both_sizes(kitti):
    write(kitti / "image_r" / "000002.png", picture(1, (30, 20)))
    frames = list(open_source(kitti))
    with pytest.raises(SourceError, match=rf"frame 2 .*image_r.000002\.png.*{WIDTH}x{HEIGHT} px, .* is 30x20"):
        frames[2].to_frame("stereo")
    (kitti / "image_r" / "000001.png").write_bytes((kitti / "image_r" / "000001.png").read_bytes()[:60])
    with pytest.raises(SourceError, match=r"image_r.000001\.png.*cut off"):
        frames[1].to_frame("stereo")


def test_what_is_no_depth_image_of_its_image_is_refused_by_name(seven_scenes):
    names = [seven_scenes / f"frame-{k:06d}.depth.png" for k in range(3)]
    frame = next(iter(open_source(seven_scenes)))
    for pixels, words in (
        (depth_values(0).astype(np.uint8), r"1 channel\(s\) of uint8; expected one of uint16"),
        (np.dstack([depth_values(0)] * 3), r"3 channel\(s\) of uint16"),
        (depth_values(0, (31, 21)), rf"is 31x21, but its image is {WIDTH}x{HEIGHT}"),
    ):
        write(names[0], pixels)
        with pytest.raises(SourceError, match=rf"frame-000000\.depth\.png.*{words}"):
            frame.to_frame("rgbd")
    for content, words in (
        (b"", "is not an image"),
        (b"junk", "is not an image"),
        (names[1].read_bytes()[:-40], "was cut off"),
    ):
        names[0].write_bytes(content)
        with pytest.raises(SourceError, match=rf"frame-000000\.depth\.png {words}"):
            frame.to_frame("rgbd")
    names[0].unlink()
    with pytest.raises(SourceError, match=r"frame-000000\.depth\.png cannot be read"):
        frame.to_frame("rgbd")
    for name in names[1:]:
        name.unlink()
    with pytest.raises(SourceError, match="no depth images"):
        open_source(seven_scenes).require("rgbd")


def test_a_tum_list_that_nobody_can_read_or_that_is_of_another_time_is_no_depth(tum):
    good = (tum / "depth.txt").read_text()
    for content, words in (
        (good.replace("134184", "nan"), "the stamp 'nan"),
        (good.replace("134184", "134185"), "20 ms"),
    ):
        (tum / "depth.txt").write_text(content)
        source = open_source(tum)
        with pytest.raises(SourceError, match=words):
            source.require("rgbd")
        assert next(iter(source)).to_frame().depth is None


def test_start_and_step_keep_companions_with_their_images(kitti):
    frames = [item.to_frame("stereo") for item in open_source(kitti, start=1, step=2)]
    assert [frame.right.image[0, 0] - frame.image[0, 0] for frame in frames] == [100, 100]
    assert [frame.image[0, 0] for frame in frames] == [10, 30]


def test_companions_can_be_given_to_a_frame_by_hand(tmp_path):
    write(tmp_path / "d.png", depth_values(3))
    camera = CameraModel(WIDTH, HEIGHT, np.diag([300.0, 300, 1]))
    view = RightView(PixelImage(picture(2)), camera, pose(0, 0.1, 0, 0))
    frame = SourceFrame(
        0, 10**9, "eye", PixelImage(picture(1)), camera, right=view, depth=DepthFile(tmp_path / "d.png", 0.01)
    )
    assert np.array_equal(frame.to_frame("stereo").right.image, picture(2))
    assert frame.to_frame("rgbd").depth.metres(depth_values(3))[4, 0] == pytest.approx(13.0)


@pytest.mark.data
def test_the_real_stereo_and_depth_recordings_have_their_companions(shared_data):
    source = open_source(shared_data / "kitti06_stereo")
    frame = list(source)[50].to_frame("stereo")
    assert frame.right.image.shape == frame.image.shape
    assert frame.right.left_from_right[0, 3] == pytest.approx(379.8145 / 707.0912)
    # Rows are aligned, and what is seen lies further left in the right image.
    shift, _ = cv2.phaseCorrelate(np.float64(frame.image[200:]), np.float64(frame.right.image[200:]))
    assert shift[0] < -3
    assert abs(shift[1]) < 1.5
    source = open_source(shared_data / "euroc_micro")
    item = list(source)[29]
    assert item.right.baseline is None
    assert np.linalg.norm(item.to_frame("stereo").right.left_from_right[:3, 3]) == pytest.approx(0.11, abs=0.002)
    depth = list(open_source(shared_data / "sevenscenes"))[239].to_frame("rgbd").depth
    metres = depth.metres(depth.values)
    assert depth.values.shape == (480, 640)
    assert 0.3 < np.nanmin(metres) < np.nanmax(metres) < 10


@pytest.mark.data
def test_a_recording_s_gyroscope_that_stands_still_tells_its_bias(shared_data):
    imu = open_source(shared_data / "euroc_micro").imu
    # The body's x axis is the camera's y axis, turned; see the data set's sensor.yaml.
    turn = imu.camera_from_imu[:3, :3]
    assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-6)
    assert turn[0, 1] > 0.99
    gyroscope, samples = Gyroscope(camera_from_imu=turn), ImuSamples(imu.camera_from_imu)
    number = imu.until(int(imu.stamps[0]) + 2_600_000_000, 0, gyroscope, samples)
    assert 500 < number < len(imu.stamps)
    # At rest the acceleration is gravity's, upward: the drone's x axis points up on the floor.
    (_, standing), *_ = samples.between([int(imu.stamps[0]), int(imu.stamps[0]) + 1_000_000_000]) or []
    assert np.linalg.norm(standing[:, 3:].mean(axis=0)) == pytest.approx(9.8, abs=0.2)
    assert standing[:, 3].mean() > 9
    # What the data set's own smoothing found a second later (state_groundtruth_estimate0).
    assert np.abs(gyroscope.bias - (-0.0022, 0.0208, 0.0758)).max() < 4 * gyroscope.bias_std < 0.03


def test_a_gyroscope_that_cannot_be_read_is_told_of_and_the_images_are_there(euroc):
    folder = euroc / "mav0" / "imu0"
    folder.mkdir()
    (folder / "sensor.yaml").write_text(sensor_yaml(np.eye(4), 1))
    (folder / "data.csv").write_text("#timestamp [ns],x,y,z\n1403636579758555392,0.1,nan,0.2\n")
    source = open_source(euroc)
    assert source.imu is None and "the gyroscope is not used" in " ".join(source.notes)
    assert len(list(source)) == len(EUROC_STAMPS)
