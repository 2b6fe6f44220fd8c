"""Names, lists and calibrations written by people: read correctly, or refused with file, line and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings import SourceError, load_camera, open_source
from loftr_ros.recordings.stamps import NANOSECONDS, check_stamps, to_nanoseconds

WIDTH, HEIGHT = 64, 48
FIRST = 1403715273262142976


def picture(number: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), 10 * number + 5, np.uint8)


def write(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), picture(number))
    return folder


def read(path: Path, **options: Any) -> list[tuple[int, int]]:
    """(stamp in ns, number of the picture) of each frame."""
    with open_source(path, **options) as source:
        return [(frame.stamp_ns, (int(frame.decode()[0, 0]) - 5) // 10) for frame in source]


# --- what is no image ---


@pytest.mark.parametrize("layout", ["plain", "kitti", "euroc", "sevenscenes"])
def test_hidden_files_and_what_is_no_image_are_left_out_and_counted(tmp_path: Path, layout: str) -> None:
    names = {"sevenscenes": [f"frame-{k:06d}.color.png" for k in range(3)]}.get(
        layout, [f"{k:06d}.png" for k in range(3)]
    )
    if layout == "euroc":
        names = [f"{FIRST + k * 50_000_000}.png" for k in range(3)]
        (tmp_path / "cam0").mkdir()
        (tmp_path / "cam0" / "sensor.yaml").write_text(EUROC)
    folder = write(tmp_path / {"kitti": "image_0", "euroc": "cam0/data"}.get(layout, ""), names)
    clean = read(tmp_path)
    for name in names:
        (folder / f"._{name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "desktop.ini").write_text("[x]")
    assert read(tmp_path) == clean
    with open_source(tmp_path) as source:
        assert any("3 hidden files were skipped (._" in note for note in source.notes)


def test_a_file_that_is_no_image_is_left_out_and_those_after_it_keep_their_times(tmp_path: Path) -> None:
    write(tmp_path, ["a1.png", "a2.png", "a3.png", "a4.png"])
    clean = read(tmp_path)
    (tmp_path / "a2.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    (tmp_path / "a3.png").write_bytes(b"")
    assert read(tmp_path) == [clean[0], clean[3]]
    with open_source(tmp_path) as source:
        assert "2 files that are not images were skipped (a2.png, a Git LFS pointer" in source.notes[0]
    for name in ("a1.png", "a4.png"):
        (tmp_path / name).write_text("<!DOCTYPE html>")
    with pytest.raises(SourceError, match=r"holds no images.*4 files that are not images.*git lfs pull.*a web page"):
        open_source(tmp_path)


def test_a_folder_around_a_recording_says_what_is_in_it(tmp_path: Path) -> None:
    write(tmp_path / "monday" / "left", ["0.png"])
    (tmp_path / "monday" / "bag.db3.zstd").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(
        SourceError, match=r"the folders left: name one of them; bag.db3.zstd is compressed: `zstd -d bag"
    ):
        open_source(tmp_path / "monday")


# --- names ---


@pytest.mark.parametrize(
    "names",
    [
        ["cam0_000000.png", "cam0_000001.png", "cam0_000003.png"],
        ["left01-0.png", "left01-1.png", "left01-3.png"],
        ["img-0.png", "img-1.png", "img-3.png"],
        ["2024-01-05_run7_0000.png", "2024-01-05_run7_0001.png", "2024-01-05_run7_0003.png"],
        ["frame_0_640x480.png", "frame_1_640x480.png", "frame_3_640x480.png"],
    ],
)
def test_the_number_that_varies_counts_in_a_name(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path / "image_0", names)
    assert read(tmp_path) == [(10**9, 0), (1_100_000_000, 1), (1_300_000_000, 2)]


def test_decimal_seconds_are_in_their_order_and_are_the_stamps(tmp_path: Path) -> None:
    write(tmp_path, ["10.2.png", "10.1.png", "10.15.png"])
    assert read(tmp_path) == [(10_100_000_000, 1), (10_150_000_000, 2), (10_200_000_000, 0)]
    with open_source(tmp_path) as source:
        assert "the decimal number as seconds" in source.notes[0]


def test_numbers_with_a_point_that_would_be_equal_as_decimals_are_counts(tmp_path: Path) -> None:
    write(tmp_path, [f"1.{k}.png" for k in range(1, 12)])
    assert [which for _, which in read(tmp_path)] == list(range(11))


@pytest.mark.parametrize(
    "form",
    [
        lambda ns: f"{ns}",
        lambda ns: f"left-{ns}",
        lambda ns: f"cam0_{ns}_raw",
        lambda ns: f"{ns // 10**9}.{ns % 10**9:09d}",
        lambda ns: f"img_{ns // 10**9}_{ns % 10**9:09d}",
    ],
)
def test_names_that_are_times_since_1970_are_the_stamps(tmp_path: Path, form: Any) -> None:
    stamps = [FIRST + k * 33_333_333 for k in range(4)]
    write(tmp_path, [f"{form(stamp)}.png" for stamp in stamps])
    assert read(tmp_path) == [(stamp, k) for k, stamp in enumerate(stamps)]


DATE = 1704189599900000000  # 2024-01-02 09:59:59.9 UTC


@pytest.mark.parametrize(
    "names",
    [
        ["2024-01-02_09-59-59.9", "2024-01-02_10-00-00.1", "2024-01-02_10-00-00.3"],
        ["2024-01-02T09:59:59.900Z", "2024-01-02T10:00:00.100Z", "2024-01-02T10:00:00.300Z"],
        ["PXL_20240102_095959900", "PXL_20240102_100000100", "PXL_20240102_100000300"],
        ["20240102095959900", "20240102100000100", "20240102100000300"],
        ["cam1-20240102-095959-900000", "cam1-20240102-100000-100000", "cam1-20240102-100000-300000"],
    ],
)
def test_dates_with_a_time_of_day_are_the_stamps(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, [f"{name}.png" for name in names])
    assert read(tmp_path) == [(DATE + k * 200_000_000, k) for k in range(3)]


def test_times_of_day_go_on_over_a_minute_and_are_no_seconds_alone(tmp_path: Path) -> None:
    names = ["09-59-59.9", "10-00-00.1", "10-00-00.3"]
    write(tmp_path, [f"{name}.png" for name in names])
    first = (9 * 3600 + 59 * 60 + 59) * 10**9 + 900_000_000
    assert read(tmp_path) == [(first + k * 200_000_000, k) for k in range(3)]
    write(tmp_path / "midnight", [f"{name}.png" for name in ("23-59-59.9", "00-00-00.1")])
    assert read(tmp_path / "midnight")[0][0] == 10**9, "made: which of them was first is not known"


@pytest.mark.parametrize("layout", ["", "image_0"])
@pytest.mark.parametrize(
    ("names", "stamps"),
    [
        (["0.033333", "0.066667", "0.1"], [33_333_000, 66_667_000, 100_000_000]),
        (["t=1.5s", "t=1.75s", "t=2s"], [1_500_000_000, 1_750_000_000, 2_000_000_000]),
        (["1,5", "1,75", "2,0"], [1_500_000_000, 1_750_000_000, 2_000_000_000]),
        ([f"left_{FIRST}_0", f"left_{FIRST + 10**8}_1", f"left_{FIRST + 2 * 10**8}_2"], None),
        (["09-59-59-900", "10-00-00-100", "10-00-00-300"], [35999_900_000_000, 36000_100_000_000, 36000_300_000_000]),
    ],
)
def test_times_in_names_are_the_stamps_in_every_layout(
    tmp_path: Path, layout: str, names: list[str], stamps: list[int] | None
) -> None:
    write(tmp_path / layout, [f"{name}.png" for name in names])
    expected = stamps or [FIRST + k * 10**8 for k in range(3)]
    assert read(tmp_path) == [(stamp, k) for k, stamp in enumerate(expected)]


def test_counts_that_no_camera_would_have_are_refused_too(tmp_path: Path) -> None:
    write(tmp_path / "image_0", ["frame_1403715273.png", "frame_1403715273_1.png"])
    with pytest.raises(SourceError, match=r"10 Hz by the numbers in the names\): images are 1.4e\+08 s apart"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["2024-01-05_000000", "2024-01-05_000001", "2024-01-05_000002"],
        ["20240102_101530_1", "20240102_101530_2", "20240102_101530_10"],
        ["a", "b", "c"],
    ],
)
def test_stamps_that_are_made_are_told_of(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, [f"{name}.png" for name in names])
    assert [(round((stamp - 10**9) * 30e-9), which) for stamp, which in read(tmp_path)] == [(0, 0), (1, 1), (2, 2)]
    with open_source(tmp_path) as source:
        assert "are not times: stamps are generated at 30 frames per second (--frame-rate)" in source.notes[0]
    with open_source(tmp_path, rate=10.0) as source:
        assert not source.notes


def test_kitti_s_raw_recordings_have_their_times_in_dates(tmp_path: Path) -> None:
    write(tmp_path / "image_00" / "data", ["0000000000.png", "0000000001.png"])
    lines = "2011-09-26 13:02:25.964389445\n2011-09-26 13:02:26.067930722\n"
    (tmp_path / "image_00" / "timestamps.txt").write_text(lines)
    assert read(tmp_path) == [(1317042145964389445, 0), (1317042146067930722, 1)]
    (tmp_path / "image_00" / "timestamps.txt").write_text("2011-09-26 13:02:25.9\nsoon\n")
    with pytest.raises(SourceError, match=r"timestamps.txt, line 2 holds 'soon'; expected a date"):
        open_source(tmp_path)


@pytest.mark.parametrize(("digits", "unit"), [(16, 10**3), (13, 10**6)])
def test_micro_and_milliseconds_are_told_by_their_size(tmp_path: Path, digits: int, unit: int) -> None:
    stamps = [int(str(FIRST)[:digits]) + k * 10**8 // unit for k in range(3)]
    write(tmp_path, [f"{stamp}.png" for stamp in stamps])
    assert [stamp for stamp, _ in read(tmp_path)] == [stamp * unit for stamp in stamps]


EUROC = (
    "T_BS:\n  data: [1, 0, 0, 0,  0, 1, 0, 0,  0, 0, 1, 0,  0, 0, 0, 1]\nrate_hz: 20\n"
    f"resolution: [{WIDTH}, {HEIGHT}]\ncamera_model: pinhole\nintrinsics: [58, 57, 30, 20]\n"
    "distortion_model: radial-tangential\ndistortion_coefficients: [-0.28, 0.07, 0.0002, 1.8e-05]\n"
)


def euroc(path: Path, names: list[str], table: str | None = None) -> Path:
    write(path / "cam0" / "data", names)
    (path / "cam0" / "sensor.yaml").write_text(EUROC)
    if table is not None:
        (path / "cam0" / "data.csv").write_bytes(table.encode())
    return path


@pytest.mark.parametrize("form", ["{}", "cam0_{}", "img-{}"])
def test_euroc_without_a_list_has_its_times_from_whatever_names(tmp_path: Path, form: str) -> None:
    stamps = [FIRST + k * 50_000_000 for k in range(3)]
    assert read(euroc(tmp_path, [f"{form.format(s)}.png" for s in stamps])) == [(s, k) for k, s in enumerate(stamps)]


def test_times_that_are_equal_or_of_no_camera_are_refused_on_opening_with_what_was_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"images are 1e-09 s apart.*--frame-rate"):
        open_source(euroc(tmp_path / "counts", ["0.png", "1.png", "2.png"]))
    assert read(tmp_path / "counts", rate=10)[1] == (1_100_000_000, 1)
    table = f"#t,f\n{FIRST},a.png\n{FIRST},b.png\n{FIRST},c.png\n"
    with pytest.raises(SourceError, match=r"data.csv: 2 of 3 images are not later than the one before"):
        open_source(euroc(tmp_path / "equal", ["a.png", "b.png", "c.png"], table))
    write(tmp_path / "twice" / "image_0", ["000001.png", "1.png"])
    with pytest.raises(SourceError, match=r"several images of number 1 \(.*1.png, .*1.png"):
        open_source(tmp_path / "twice")
    check_stamps([0, 10**8, 10**8, *range(2 * 10**8, 40 * 10**8, 10**8)], "", "")  # only the wrong one is lost


# --- lists ---


@pytest.mark.parametrize(
    "table",
    [
        "timestamp,filename\n{0},{0}.png\n{1},{1}.png\n",
        "\ufeff#timestamp [ns],filename\n{0},{0}.png\n{1},{1}.png\n",
        "#timestamp\r\n{0},{0}.png\r\n{1},{1}.png\r\n",
        "{0},data/{0}.png\n{1},/elsewhere/mav0/cam0/data/{1}.png\n",
        "{0};C:\\data\\{0}.png\n{1};{1}.png\n",
        "{0} {0}.png\n{1} {1}.png\n",
        '"{0}","{0}.png"\n"{1}","{1}.png"\n\n\n',
        "{2}e+18,{0}.png\n{3}e+18,{1}.png\n",
        "{4},{0}.png\n{5},{1}.png\n",
    ],
)
def test_lists_of_euroc_are_read_as_people_write_them(tmp_path: Path, table: str) -> None:
    stamps = [FIRST, FIRST + 50_000_000]
    scientific = [f"{str(s)[0]}.{str(s)[1:]}" for s in stamps]
    seconds = [f"{s // 10**9}.{s % 10**9:09d}" for s in stamps]
    text = table.format(*stamps, *scientific, *seconds)
    assert read(euroc(tmp_path, [f"{s}.png" for s in stamps], text)) == [(s, k) for k, s in enumerate(stamps)]


@pytest.mark.parametrize(
    "table",
    [
        "# color\n{0:.6f} rgb/0.png\n{1:.6f} rgb/1.png\n",
        "\ufeff{0:.6f} rgb/0.png\r\n{1:.6f} rgb/1.png\r\n",
        "timestamp filename\n{0:.6f} rgb\\0.png\n{1:.6f} rgb\\1.png\n",
        "{0:.6f},0.png\n{1:.6f},1.png\n",
        "{2} /data/set/rgb/0.png\n{3} /data/set/rgb/1.png\n",
        "{0:.6f}\trgb/0.png\n{1:.6f}\trgb/1.png\n",
    ],
)
def test_lists_of_tum_are_read_as_people_write_them(tmp_path: Path, table: str) -> None:
    write(tmp_path / "rgb", ["0.png", "1.png"])
    stamps = [1341846313500000000, 1341846313750000000]
    text = table.format(*(stamp / 1e9 for stamp in stamps), *stamps)
    (tmp_path / "rgb.txt").write_bytes(text.encode())
    assert read(tmp_path) == [(stamp, k) for k, stamp in enumerate(stamps)]


@pytest.mark.parametrize("times", ["0.0\n0.1\n", "\ufeff0.0\r\n1.0e-01\r\n", "time\n0\n0.1\n", "0.0, 7\n0.1, 8\n"])
def test_times_of_kitti_are_read_as_people_write_them(tmp_path: Path, times: str) -> None:
    write(tmp_path / "image_0", ["000000.png", "000001.png"])
    (tmp_path / "times.txt").write_bytes(times.encode())
    assert read(tmp_path) == [(0, 0), (100_000_000, 1)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("times.txt", "0.0\nsoon\n", r"times.txt, line 2 holds the stamp 'soon'"),
        ("times.txt", "0.0\nnan\n", r"times.txt, line 2 holds the stamp 'nan'"),
        ("times.txt", "0.0\n1e999999999\n", r"times.txt, line 2 holds the stamp '1e999999999'"),
        ("times.txt", "0.0\n-1\n", r"line 2 holds the stamp '-1'"),
        ("poses.txt", "1 0 0 0 0 1 0 0 0 0 1 x\n", r"poses.txt, line 1 holds 'x'; expected a number"),
        ("calib.txt", "P0: 1 2 3\n", r"calib.txt, line 1 has 3 entries; expected 12"),
        ("calib.txt", "", r"calib.txt has no rows"),
        ("calib.txt", "P0: 0 0 0 0 0 0 0 0 0 0 0 0\n", r"calib.txt holds no usable calibration"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    write(tmp_path / "image_0", ["000000.png", "000001.png"])
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=words):
        open_source(tmp_path)


def test_stamps_keep_all_their_digits() -> None:
    assert to_nanoseconds(["1.403715273262142977e+18", "1403715273.262142977"], "x")[0] == 1403715273262142977
    assert to_nanoseconds(["0", "50000000"], "x", NANOSECONDS) == [0, 50_000_000], "of a clock that began at zero"
    assert to_nanoseconds(["0.5", "0.75"], "x", NANOSECONDS) == [500_000_000, 750_000_000]
    with pytest.raises(SourceError, match="later than 2038"):
        to_nanoseconds(["9999999999.5"], "x")


# --- calibrations ---

MATRIX = [[400.0, 0, 31], [0, 401, 21], [0, 0, 1]]
FLAT = "[400.0, 0.0, 31.0, 0.0, 401.0, 21.0, 0.0, 0.0, 1.0]"
BLOCK = "\n".join(f"- {value}" for row in MATRIX for value in row)
OPENCV = """%YAML:1.0
---
calibration_time: "Mon"
image_width: 64
image_height: 48
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 400., 0., 31., 0., 401., 21., 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [ 1.0000000000000001e-01, -5.0e-02, 0., 0., 0. ]
"""
ECHO = f"""header:
  stamp:
    sec: 0
    nanosec: 0
  frame_id: cam
height: 48
width: 64
distortion_model: plumb_bob
d:
- 0.1
- -0.05
- 0.0
- 0.0
- 0.0
k:
{BLOCK}
r: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
p: [400.0, 0.0, 31.0, 0.0, 0.0, 401.0, 21.0, 0.0, 0.0, 0.0, 1.0, 0.0]
binning_x: 0
binning_y: 0
roi:
  x_offset: 0
  y_offset: 0
  height: 0
  width: 0
  do_rectify: false
---
header: {{}}
"""
KALIBR = """cam0:
  cam_overlaps: [1]
  camera_model: pinhole
  distortion_coeffs: [0.1, -0.05, 0.0, 0.0]
  distortion_model: radtan
  intrinsics: [400.0, 401.0, 31.0, 21.0]
  resolution: [64, 48]
  rostopic: /cam0/image_raw
"""
FILES = {
    "camera_calibration": f"image_width: 64\nimage_height: 48\ncamera_matrix: {{rows: 3, cols: 3, data: {FLAT}}}\n"
    "distortion_model: plumb_bob\ndistortion_coefficients: {rows: 1, cols: 5, data: [0.1, -0.05, 0, 0, 0]}\n",
    "windows": f"\ufeffimage_width: 64\r\nimage_height: 48\r\ncamera_matrix:\r\n  data: {FLAT}\r\n"
    "distortion_coefficients:\r\n  data: [1e-1, -5e-2, 0, 0, 0]\r\n",
    "ros2 topic echo": ECHO,
    "rostopic echo": ECHO.replace("\nd:", "\nD:")
    .replace("\nk:", "\nK:")
    .replace("\nr:", "\nR:")
    .replace("\np:", "\nP:"),
    "one line echo": f"{{height: 48, width: 64, distortion_model: plumb_bob, d: [0.1, -0.05, 0, 0, 0], k: {FLAT}}}",
    "opencv": OPENCV,
    "opencv names": OPENCV.replace("camera_matrix", "K").replace("distortion_coefficients", "D"),
    "nested lists": f"image_width: 64\nimage_height: 48\ncamera_matrix: {MATRIX}\n"
    "dist_coeff: [[0.1, -0.05, 0, 0, 0]]\n",
    "kalibr": KALIBR,
    "orb-slam": "%YAML:1.0\n\nCamera.type: 'PinHole'\nCamera.fx: 400.0\nCamera.fy: 401.0\nCamera.cx: 31.0\n"
    "Camera.cy: 21.0\nCamera.k1: 0.1\nCamera.k2: -0.05\nCamera.p1: 0.0\nCamera.p2: 0.0\n"
    "Camera.width: 64\nCamera.height: 48\nCamera.fps: 20\n",
    "orb-slam 3": '%YAML:1.0\nFile.version: "1.0"\nCamera.type: "PinHole"\nCamera1.fx: 400.0\nCamera1.fy: 401.0\n'
    "Camera1.cx: 31.0\nCamera1.cy: 21.0\nCamera1.k1: 0.1\nCamera1.k2: -0.05\nCamera.width: 64\nCamera.height: 48\n",
    "vins": "%YAML:1.0\n---\nmodel_type: PINHOLE\ncamera_name: camera\nimage_width: 64\nimage_height: 48\n"
    "distortion_parameters:\n   k1: 0.1\n   k2: -0.05\n   p1: 0.0\n   p2: 0.0\n"
    "projection_parameters:\n   fx: 400.0\n   fy: 401.0\n   cx: 31.0\n   cy: 21.0\n",
    "colmap": "# Camera list\n#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n"
    "1 OPENCV 64 48 400 401 31.5 21.5 0.1 -0.05 0 0\n",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_calibration_is_read_in_every_format_that_tools_write(tmp_path: Path, text: str) -> None:
    file = tmp_path / "camera.txt"
    file.write_bytes(text.encode())
    found = load_camera(file)
    expected = CameraModel(WIDTH, HEIGHT, np.array(MATRIX), "plumb_bob", np.array([0.1, -0.05, 0, 0, 0]))
    assert (found.width, found.height) == (64, 48)
    assert found.matrix.tolist() == MATRIX
    pixels = np.array([[3.0, 4.0], [60.0, 40.0]])
    np.testing.assert_allclose(found.unproject(pixels), expected.unproject(pixels), atol=1e-12)


@pytest.mark.parametrize("ending", [".yml", ".xml", ".json"])
@pytest.mark.parametrize("fisheye", [False, True])
def test_what_opencv_itself_writes_is_read(tmp_path: Path, ending: str, fisheye: bool) -> None:
    file = tmp_path / f"camera{ending}"
    storage = cv2.FileStorage(str(file), cv2.FILE_STORAGE_WRITE)
    storage.write("image_width", 64)
    storage.write("image_height", 48)
    storage.write("fisheye_model", int(fisheye))
    storage.write("camera_matrix", np.array(MATRIX))
    storage.write("distortion_coefficients", np.array([[0.01, -0.005, 0.001, 0.0005]]))
    storage.release()
    found = load_camera(file)
    assert found.matrix.tolist() == MATRIX
    assert found.distortion_model == ("equidistant" if fisheye else "plumb_bob")


@pytest.mark.parametrize(
    ("row", "model", "coefficients"),
    [
        ("SIMPLE_PINHOLE 64 48 400 31.5 21.5", "none", []),
        ("PINHOLE 64 48 400 400 31.5 21.5", "none", []),
        ("SIMPLE_RADIAL 64 48 400 31.5 21.5 0.1", "plumb_bob", [0.1, 0, 0, 0]),
        ("RADIAL 64 48 400 31.5 21.5 0.1 0.2", "plumb_bob", [0.1, 0.2, 0, 0]),
        ("OPENCV_FISHEYE 64 48 400 400 31.5 21.5 0.1 0.2 0.3 0.4", "equidistant", [0.1, 0.2, 0.3, 0.4]),
        ("OPENCV_FISHEYE 64 48 400 400 31.5 21.5 0 0 0 0", "equidistant", [0, 0, 0, 0]),
        ("FULL_OPENCV 64 48 400 400 31.5 21.5 1 2 3 4 5 6 7 8", "rational_polynomial", [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_colmap_s_cameras_have_their_own_half_pixel(tmp_path: Path, row: str, model: str, coefficients: Any) -> None:
    (tmp_path / "cameras.txt").write_text(f"7 {row}\n")
    found = load_camera(tmp_path / "cameras.txt")
    assert found.matrix.tolist() == [[400, 0, 31], [0, 400, 21], [0, 0, 1]]
    assert (found.distortion_model, found.distortion.tolist()) == (model, coefficients)


@pytest.mark.parametrize(
    "text",
    [
        "Camera.type: KannalaBrandt8\nCamera.width: 64\nCamera.height: 48\nCamera1.fx: 400\nCamera1.fy: 401\n"
        "Camera1.cx: 31\nCamera1.cy: 21\nCamera1.k1: 0.1\nCamera1.k2: 0.2\nCamera1.k3: 0.3\nCamera1.k4: 0.4\n",
        "model_type: KANNALA_BRANDT\nimage_width: 64\nimage_height: 48\nprojection_parameters:\n  k2: 0.1\n"
        "  k3: 0.2\n  k4: 0.3\n  k5: 0.4\n  mu: 400\n  mv: 401\n  u0: 31\n  v0: 21\n",
    ],
)
def test_fisheyes_of_slam_systems_are_equidistant(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    found = load_camera(tmp_path / "settings.yaml")
    assert found.matrix.tolist() == MATRIX
    assert (found.distortion_model, found.distortion.tolist()) == ("equidistant", [0.1, 0.2, 0.3, 0.4])


def test_of_several_cameras_in_a_file_one_must_be_named(tmp_path: Path) -> None:
    file = tmp_path / "camchain.yaml"
    file.write_text(KALIBR + KALIBR.replace("cam0", "cam1").replace("400.0", "500.0"))
    with pytest.raises(SourceError, match=r"has the cameras cam0, cam1; name one, for example .*camchain.yaml:cam0"):
        load_camera(file)
    assert load_camera(f"{file}:cam1").matrix[0, 0] == 500
    with pytest.raises(SourceError, match="has no camera 'cam2'"):
        load_camera(f"{file}:cam2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty or no mapping"),
        ("hello", "no mapping"),
        ("a: 1\n", "holds no calibration; expected the output of ROS"),
        ("<html></html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (FILES["camera_calibration"].replace("400.0", "no"), "no usable calibration"),
        (FILES["camera_calibration"].replace("64", "1e400"), "no usable calibration"),
        (FILES["camera_calibration"].replace("image_width: 64\n", ""), "no image size"),
        (
            KALIBR.replace("radtan", "equidistant").replace("[0.1, -0.05, 0.0, 0.0]", "[0.1]"),
            "came with 1 coefficients",
        ),
        (KALIBR.replace("pinhole", "omni"), "camera_model 'omni' is not known"),
        (FILES["orb-slam"].replace("Camera.width: 64\n", ""), "no image size"),
        (FILES["vins"].replace("PINHOLE", "MEI"), "camera model 'mei' is not known"),
        ("1 THIN_PRISM_FISHEYE 64 48 1 2 3 4\n", "COLMAP's camera model THIN_PRISM_FISHEYE is not known"),
        ("1 OPENCV 64 48 400 401\n", "COLMAP's OPENCV has 8 parameters; got 2"),
        ("image_width: 64\nimage_height: [\n", "is not YAML"),
        ("image_width: !!timestamp x\n", "is not YAML"),
        ("image_width: !!python/object:os.system x\ncamera_matrix: 3\n", "no usable calibration"),
    ],
)
def test_what_is_no_calibration_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "camera.yaml").write_text(text)
    with pytest.raises(SourceError, match=words):
        load_camera(tmp_path / "camera.yaml")
