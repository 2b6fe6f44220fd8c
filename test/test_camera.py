"""Camera models, compared with OpenCV, hand-written formulae, rendered images and real calibrations."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraError, CameraModel

WIDTH, HEIGHT = 752, 480
K = np.array([[458.654, 0, 367.215], [0, 457.296, 248.375], [0, 0, 1]])
EUROC = [-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05]
TILTED = [0.1, 0.05, 1e-3, -5e-4, 0.01, 0.2, 0.02, 0.001, 1e-3, -2e-3, 1e-3, 5e-4, 0.02, -0.03]
# Real or realistic lenses that are well-behaved in all of the image.
LENSES = {
    "none": ("none", []),
    "plumb_bob of 4": ("plumb_bob", EUROC),
    "plumb_bob of 5": ("plumb_bob", [0.1, -0.25, -4e-4, 1e-3, 0.2]),
    "strong barrel": ("plumb_bob", [-0.35, 0.14, 2e-3, -1e-3, -0.02]),
    # A Kinect for Azure's colour camera
    "rational_polynomial": ("rational_polynomial", [0.46, -2.62, 7.6e-4, -2.1e-4, 1.51, 0.34, -2.44, 1.43]),
    "thin prism": ("rational_polynomial", TILTED[:12]),
    "tilted sensor": ("rational_polynomial", TILTED),
    "equidistant": ("equidistant", [-0.0136, 0.0207, -0.0138, 0.00246]),
    "ideal fisheye": ("equidistant", [0, 0, 0, 0]),
}


def camera(lens: str, matrix: NDArray[np.float64] = K) -> CameraModel:
    model, coefficients = LENSES[lens]
    return CameraModel(WIDTH, HEIGHT, matrix, model, np.array(coefficients, dtype=float))


def image_pixels(width: int = WIDTH, height: int = HEIGHT, count: int = 40) -> NDArray[np.float64]:
    """Pixels all over the image, corners included."""
    u, v = np.meshgrid(np.linspace(0, width - 1, count), np.linspace(0, height - 1, count))
    return np.stack([u.ravel(), v.ravel()], axis=1)


def in_front(rays: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([rays, np.ones(len(rays))])


def camera_info(**fields: Any) -> SimpleNamespace:
    """A CameraInfo message without distortion, as a driver fills it."""
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
    values = {"width": WIDTH, "height": HEIGHT, "k": K.ravel(), "d": [0.0] * 5, "distortion_model": "plumb_bob"}
    values |= {"binning_x": 0, "binning_y": 0, "roi": roi}
    return SimpleNamespace(**(values | fields))


def region(x_offset: int, y_offset: int, width: int, height: int) -> SimpleNamespace:
    return SimpleNamespace(x_offset=x_offset, y_offset=y_offset, width=width, height=height, do_rectify=False)


@pytest.mark.parametrize("skew", [0.0, 7.5])
@pytest.mark.parametrize("lens", LENSES)
def test_projecting_the_ray_of_a_pixel_gives_the_pixel_back(lens: str, skew: float) -> None:
    matrix = K.copy()
    matrix[0, 1] = skew
    model = camera(lens, matrix)
    pixels = image_pixels()
    rays = model.unproject(pixels)
    assert np.isfinite(rays).all()
    assert np.abs(model.project(in_front(rays)) - pixels).max() < 1e-6
    assert np.abs(model.project(7.3 * in_front(rays)) - pixels).max() < 1e-6  # whatever the distance


@pytest.mark.parametrize("lens", LENSES)
def test_projection_is_opencv_s(lens: str) -> None:
    model = camera(lens)
    points = in_front(model.unproject(image_pixels())) * np.linspace(0.5, 20, 1600)[:, None]
    zero = np.zeros(3)
    if model.distortion_model == "equidistant":
        expected = cv2.fisheye.projectPoints(points[:, None], zero, zero, K, model.distortion)[0][:, 0]
    else:
        expected = cv2.projectPoints(points, zero, zero, K, model.distortion)[0][:, 0]
    assert np.abs(model.project(points) - expected).max() < 1e-8


@pytest.mark.parametrize("lens", ["plumb_bob of 4", "plumb_bob of 5", "rational_polynomial"])
def test_rays_are_opencv_s_where_its_iteration_has_time_to_converge(lens: str) -> None:
    model = camera(lens)
    pixels = image_pixels()
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 2000, 1e-13)
    expected = cv2.undistortPointsIter(
        pixels[:, None].copy(), K, model.distortion, np.eye(3), np.eye(3), criteria
    )[:, 0]  # fmt: skip
    assert np.abs(model.unproject(pixels) - expected).max() * K[0, 0] < 1e-5


def test_plumb_bob_is_the_formula_of_the_message_s_documentation() -> None:
    k1, k2, p1, p2, k3 = LENSES["plumb_bob of 5"][1]
    x, y = 0.31, -0.22
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    pixel = camera("plumb_bob of 5").project([[2 * x, 2 * y, 2]])[0]
    assert pixel == pytest.approx([K[0, 0] * u + K[0, 2], K[1, 1] * v + K[1, 2]], abs=1e-10)


def test_an_ideal_fisheye_s_radius_is_proportional_to_the_angle() -> None:
    model = camera("ideal fisheye")
    for degrees in (0, 1e-9, 10, 45, 80, 89):
        angle = np.radians(degrees)
        pixel = model.project([[np.sin(angle), 0, np.cos(angle)]])[0]
        assert pixel == pytest.approx([K[0, 2] + K[0, 0] * angle, K[1, 2]], abs=1e-9)
        assert np.arctan(model.unproject([pixel])[0, 0]) == pytest.approx(angle, abs=1e-12)


def test_k_s_skew_moves_a_point_sideways_with_its_height() -> None:
    matrix = K.copy()
    matrix[0, 1] = 7.5
    assert camera("none", matrix).project([[0, 0.5, 1]])[0, 0] == pytest.approx(K[0, 2] + 7.5 * 0.5)


# --- no ray where there is none


@pytest.mark.parametrize("coefficients", [[0, 0, 0, 0], LENSES["equidistant"][1], [0.05, 0.01, 0.002, 0.0005]])
def test_a_fisheye_has_no_rays_at_ninety_degrees_and_more(coefficients: list[float]) -> None:
    # 220 degrees wide: points behind the image plane are visible, and x / z cannot express them.
    model = CameraModel(1000, 1000, np.array([[250.0, 0, 499.5], [0, 250, 499.5], [0, 0, 1]]), "equidistant",
                        np.array(coefficients, dtype=float))  # fmt: skip
    pixels = image_pixels(1000, 1000, 101)
    rays = model.unproject(pixels)
    angles = np.linspace(0, np.radians(110), 4000)
    radii = 250 * angles * (1 + sum(k * angles ** (2 * i + 2) for i, k in enumerate(coefficients)))
    edge = radii[angles < np.pi / 2].max()
    radius = np.hypot(*(pixels - 499.5).T)
    assert (radius > edge + 1).any()
    assert np.isfinite(rays[radius < edge - 1]).all()
    assert np.isnan(rays[radius > edge + 1]).all()
    good = np.isfinite(rays).all(axis=1)
    assert np.abs(model.project(in_front(rays[good])) - pixels[good]).max() < 1e-6
    # The direction is the pixel's, not its opposite, and the angle the formula's.
    assert (rays[good] * (pixels[good] - 499.5)).sum(axis=1).min() >= 0
    assert np.abs(np.interp(np.arctan(np.hypot(*rays[good].T)), angles, radii) - radius[good]).max() < 1e-2


@pytest.mark.parametrize("lens", LENSES)
def test_points_beside_and_behind_the_camera_have_no_pixel(lens: str) -> None:
    points = [[0.1, 0.1, -1], [1, 0, 0], [0, 0, 0], [0.2, -0.1, np.nan], [0.1, 0.1, 1]]
    assert np.isnan(camera(lens).project(points)).all(axis=1).tolist() == [True, True, True, True, False]


def test_pixels_past_where_the_distortion_folds_back_have_no_ray() -> None:
    # r (1 - 0.4 r^2) grows until r = sqrt(1 / 1.2), where it is 0.6086: nothing is imaged outside of that circle.
    model = CameraModel(WIDTH, HEIGHT, K, "plumb_bob", np.array([-0.4, 0, 0, 0, 0]))
    fold, reach = np.sqrt(1 / 1.2), 2 / 3 * np.sqrt(1 / 1.2)
    pixels = image_pixels()
    radius = np.hypot(*((pixels - K[:2, 2]) / [K[0, 0], K[1, 1]]).T)
    rays = model.unproject(pixels)
    assert np.array_equal(np.isfinite(rays).all(axis=1), radius < reach)
    good = radius < reach
    assert np.hypot(*rays[good].T).max() < fold
    assert np.abs(model.project(in_front(rays[good])) - pixels[good]).max() < 1e-6
    # The model would put this point, far out, into the image's middle.
    assert np.isnan(model.project([[1.5, 0, 1]])).all()
    assert np.isfinite(model.project([[0.9, 0, 1]])).all()


def test_pixels_that_are_not_finite_have_no_ray_and_do_not_disturb_the_others() -> None:
    for lens in LENSES:
        rays = camera(lens).unproject([[np.nan, 3], [100, 100], [np.inf, 0]])
        assert not np.isfinite(rays[[0, 2]]).all(axis=1).any()
        assert np.allclose(rays[1], camera(lens).unproject([[100, 100]])[0], atol=1e-12)


def test_no_pixels_give_no_rays() -> None:
    for lens in LENSES:
        assert camera(lens).unproject([]).shape == (0, 2)
        assert camera(lens).unproject(np.zeros((0, 2))).shape == (0, 2)
        assert camera(lens).project(np.zeros((0, 3))).shape == (0, 2)


# --- resizing, binning, region of interest


def render(points: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    """An image with a soft spot at each pixel position."""
    v, u = np.mgrid[0:height, 0:width]
    return np.asarray(sum(np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * 8.0**2)) for x, y in points))


def spot_near(image: NDArray[np.float64], point: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Centre of mass of the spot around a pixel position."""
    v, u = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    weight = image * (np.hypot(u - point[0], v - point[1]) < radius)
    return np.array([(u * weight).sum(), (v * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("size", [(320, 240), (160, 120), (480, 360), (640, 120), (1280, 960)])
def test_a_resized_camera_sees_points_where_the_resized_image_has_them(size: tuple[int, int]) -> None:
    model = CameraModel(
        640, 480, np.array([[400.0, 0, 322.3], [0, 410, 236.8], [0, 0, 1]]), "plumb_bob", np.array(EUROC)
    )
    points = np.array([[-0.5, -0.3, 1], [0.4, -0.2, 1], [0.1, 0.25, 1], [-0.35, 0.3, 1.0]])
    image = render(model.project(points), 640, 480)
    shrinks = size[0] <= 640 and size[1] <= 480
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    scale = np.array(size) / (640, 480)
    for expected in model.resized(*size).project(points):
        # The spots are ellipses if the aspect ratio changes; a circle around the true centre does not bias them.
        assert np.abs(spot_near(resized, expected, round(40 * scale.max())) - expected).max() < 0.03


def test_resizing_there_and_back_gives_the_same_camera() -> None:
    model = camera("plumb_bob of 4")
    back = model.resized(320, 199).resized(WIDTH, HEIGHT)
    assert np.allclose(back.matrix, model.matrix, atol=1e-9)
    assert model.same_as(model.resized(WIDTH, HEIGHT))
    assert not model.same_as(back.resized(320, 200))
    assert not model.same_as(None)


@pytest.mark.parametrize("binning", [(0, 0), (1, 1), (2, 2), (4, 2), (3, 3)])
@pytest.mark.parametrize("roi", [(0, 0, 0, 0), (0, 0, WIDTH, HEIGHT), (96, 48, 480, 240)])
def test_binning_and_region_of_interest_put_a_pixel_where_the_driver_does(
    binning: tuple[int, int], roi: tuple[int, int, int, int]
) -> None:
    info = camera_info(roi=region(*roi), binning_x=binning[0], binning_y=binning[1], d=[*EUROC, 0])
    model = CameraModel.from_camera_info(info)
    # What a driver does: cut the region out of the full image, then average blocks of pixels.
    bin_x, bin_y = max(binning[0], 1), max(binning[1], 1)
    x, y, width, height = roi if roi[2] else (0, 0, WIDTH, HEIGHT)
    assert (model.width, model.height) == (width // bin_x, height // bin_y)
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    cut = np.stack([u, v], axis=-1)[y : y + height, x : x + width].astype(float)
    cut = cut[: model.height * bin_y, : model.width * bin_x]
    centres = cut.reshape(model.height, bin_y, model.width, bin_x, 2).mean(axis=(1, 3))
    some = np.random.default_rng(0).integers(0, (model.width, model.height), (50, 2))
    full = camera("plumb_bob of 4").unproject(centres[some[:, 1], some[:, 0]])
    assert np.abs(model.unproject(some) - full).max() < 1e-12


@pytest.mark.parametrize("roi", [(700, 0, 100, 100), (0, 0, WIDTH, HEIGHT + 1), (10, 10, 0, 0), (0, 0, 100, 0)])
def test_a_region_of_interest_outside_of_the_image_is_refused(roi: tuple[int, int, int, int]) -> None:
    with pytest.raises(CameraError, match="region of interest"):
        CameraModel.from_camera_info(camera_info(roi=region(*roi)))


# --- what messages hold


def test_an_uncalibrated_camera_s_zeros_are_refused_with_what_to_do() -> None:
    with pytest.raises(CameraError, match="calibrate it"):
        CameraModel.from_camera_info(camera_info(k=np.zeros(9), d=[], distortion_model=""))


@pytest.mark.parametrize(
    "k",
    [
        np.full(9, np.nan),
        np.where(np.eye(3) > 0, -K, K),
        np.zeros(4),
        [],
        np.diag([400.0, 400, 0]),
        [400, 0, 320, 5, 400, 240, 0, 0, 1],
    ],
)
def test_a_matrix_that_is_no_camera_matrix_is_refused(k: Any) -> None:
    with pytest.raises(CameraError, match=r"in K|matrix K"):
        CameraModel.from_camera_info(camera_info(k=np.ravel(k)))


@pytest.mark.parametrize("size", [(0, 480), (640, 0), (0, 0)])
def test_a_calibration_without_an_image_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(CameraError, match="size"):
        CameraModel.from_camera_info(camera_info(width=size[0], height=size[1]))


@pytest.mark.parametrize(
    ("model", "count"),
    [("plumb_bob", 3), ("plumb_bob", 8), ("rational_polynomial", 5), ("rational_polynomial", 9), ("equidistant", 5),
     ("equidistant", 3), ("none", 4), ("", 4), ("radtan", 3)],
)  # fmt: skip
def test_a_wrong_number_of_coefficients_is_refused(model: str, count: int) -> None:
    with pytest.raises(CameraError, match=f"{count} coefficients"):
        CameraModel.from_camera_info(camera_info(distortion_model=model, d=[0.01] * count))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coefficients_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(CameraError, match="not finite"):
        CameraModel.from_camera_info(camera_info(d=[0.1, value, 0, 0, 0]))


@pytest.mark.parametrize("model", ["somebody's own", "plumb_bob_2", "thin_prism"])
def test_an_unknown_distortion_model_is_refused_with_those_that_are_known(model: str) -> None:
    with pytest.raises(CameraError, match=r"plumb_bob.*rational_polynomial.*equidistant"):
        CameraModel.from_camera_info(camera_info(distortion_model=model, d=[0.1] * 5))


@pytest.mark.parametrize(
    ("model", "count"),
    [("plumb_bob", 5), ("plumb_bob", 0), ("rational_polynomial", 8), ("", 0), ("", 5), ("equidistant", 4),
     ("fisheye", 0), ("Inverse Brown Conrady", 5), ("kannala_brandt", 5), ("somebody's own", 7)],
)  # fmt: skip
def test_coefficients_of_zero_mean_no_distortion(model: str, count: int) -> None:
    read = CameraModel.from_camera_info(camera_info(distortion_model=model, d=[0.0] * count))
    assert read.same_as(camera("none"))
    pixels = image_pixels()
    expected = (pixels - K[:2, 2]) / [K[0, 0], K[1, 1]]
    assert np.abs(read.unproject(pixels) - expected).max() < 1e-12


def test_zeros_after_a_model_s_coefficients_are_padding() -> None:
    padded = camera_info(distortion_model="equidistant", d=[*LENSES["equidistant"][1], 0.0])
    assert CameraModel.from_camera_info(padded).same_as(camera("equidistant"))


@pytest.mark.parametrize(
    ("name", "lens"),
    [
        *(
            (name, "equidistant")
            for name in ("fisheye", "Kannala-Brandt4", "kannala_brandt", "KannalaBrandt8", "KB4", "Equidistant")
        ),
        *((name, "plumb_bob of 4") for name in ("Brown Conrady", "RadTan", "radial-tangential", "PLUMB_BOB", "OPENCV")),
        *((name, "rational_polynomial") for name in ("Pinhole", "perspective", "", "Rational Polynomial")),
        ("distortion.brown_conrady", "plumb_bob of 4"),
    ],
)
def test_the_names_that_drivers_have_for_a_model_are_known(name: str, lens: str) -> None:
    named = camera_info(distortion_model=name, d=LENSES[lens][1])
    assert CameraModel.from_camera_info(named).same_as(camera(lens))


@pytest.mark.parametrize(
    ("count", "model"), [(5, "plumb_bob"), (8, "rational_polynomial"), (14, "rational_polynomial")]
)
def test_without_a_name_the_number_of_coefficients_tells_the_model(count: int, model: str) -> None:
    read = CameraModel.from_camera_info(camera_info(distortion_model="", d=[0.01] * count))
    assert read.distortion_model == model


@pytest.mark.parametrize(
    ("model", "count", "words"),
    [
        ("plumb_bob", 8, "8 coefficients are those of rational_polynomial"),
        ("fisheye", 5, "5 coefficients are those of plumb_bob"),
        ("", 4, "4 coefficients are those of plumb_bob or equidistant"),
        ("Inverse Brown Conrady", 5, "maps distorted to undistorted"),
        ("modified_brown_conrady", 5, "tangential"),
        ("Mei", 5, "field of view is beyond 180 degrees"),
        ("pinhole", 4, "4 coefficients are those of plumb_bob or equidistant"),
    ],
)
def test_what_cannot_be_used_says_which_model_it_may_be(model: str, count: int, words: str) -> None:
    with pytest.raises(CameraError, match=words):
        CameraModel.from_camera_info(camera_info(distortion_model=model, d=[0.01] * count))


def test_a_model_that_differs_in_its_tangential_terms_alone_is_the_same_without_them() -> None:
    read = CameraModel.from_camera_info(camera_info(distortion_model="Modified Brown Conrady", d=[0.1, 0.2, 0, 0, 0.3]))
    assert (read.distortion_model, read.distortion.tolist()) == ("plumb_bob", [0.1, 0.2, 0, 0, 0.3])


def test_a_model_keeps_its_own_copy_of_what_it_was_made_of() -> None:
    matrix, coefficients = K.copy(), np.array(EUROC)
    model = CameraModel(WIDTH, HEIGHT, matrix, "plumb_bob", coefficients)
    matrix[:] = 0
    coefficients[:] = 0
    assert model.same_as(camera("plumb_bob of 4"))


# --- real calibrations


@pytest.mark.data
def test_a_euroc_calibration_undistorts_a_real_image_as_opencv_does(shared_data: pathlib.Path) -> None:
    folder = shared_data / "euroc_micro" / "cam0"
    yaml = pytest.importorskip("yaml")
    sensor = yaml.safe_load((folder / "sensor.yaml").read_text().replace("%YAML:1.0", ""))
    fu, fv, cu, cv = sensor["intrinsics"]
    width, height = sensor["resolution"]
    matrix = np.array([[fu, 0, cu], [0, fv, cv], [0, 0, 1]])
    model = CameraModel(width, height, matrix, "plumb_bob", np.array(sensor["distortion_coefficients"]))
    image = cv2.imread(str(sorted((folder / "data").glob("*.png"))[0]), cv2.IMREAD_GRAYSCALE)
    assert image.shape == (height, width)
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(u.ravel() - cu) / fu, (v.ravel() - cv) / fv, np.ones(u.size)], axis=1)
    source = model.project(rays).reshape(height, width, 2).astype(np.float32)
    ours = cv2.remap(image, source, None, cv2.INTER_LINEAR)
    theirs = cv2.undistort(image, matrix, model.distortion)
    # cv2 rounds its maps to 1/32 pixel
    assert np.abs(ours.astype(int) - theirs)[5:-5, 5:-5].mean() < 0.5
    # No inversion is worse than a millionth of a pixel anywhere in the image.
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)
    assert np.abs(model.project(in_front(model.unproject(pixels))) - pixels).max() < 1e-6


@pytest.mark.data
def test_kitti_s_rectified_stereo_pair_has_its_matches_on_the_epipolar_lines_of_the_calibration(
    shared_data: pathlib.Path,
) -> None:
    folder = shared_data / "kitti06_stereo"
    left, right = np.loadtxt(folder / "calib.txt").reshape(2, 3, 4)
    images = [cv2.imread(str(folder / side / "000000.png"), cv2.IMREAD_GRAYSCALE) for side in ("image_l", "image_r")]
    height, width = images[0].shape
    info = camera_info(width=width, height=height, k=left[:, :3].ravel(), d=[0.0] * 5)
    model = CameraModel.from_camera_info(info)
    points = cv2.goodFeaturesToTrack(images[0], 400, 0.01, 10)
    moved, status, _ = cv2.calcOpticalFlowPyrLK(*images, points, None, winSize=(21, 21), maxLevel=4)
    kept = status.ravel() == 1
    rays0, rays1 = model.unproject(points[kept, 0]), model.unproject(moved[kept, 0])
    # Rectified: the same height in both; and what the disparity makes of depth projects to the right image.
    assert np.median(np.abs(rays0[:, 1] - rays1[:, 1])) * left[0, 0] < 0.5
    near = rays0[:, 0] - rays1[:, 0] > 2 / left[0, 0]
    baseline = -right[0, 3] / right[0, 0]
    depth = baseline / (rays0[near, 0] - rays1[near, 0])
    in_right = in_front(rays0[near]) * depth[:, None] - [baseline, 0, 0]
    assert np.median(np.abs(model.project(in_right) - moved[kept, 0][near])) < 0.5
    assert 5 < np.median(depth) < 100
