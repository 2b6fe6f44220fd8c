"""Masks: read from files, reduced without leaks, and applied to points."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import FineShiftMatcher, PanningStream, ShiftMatcher
from typer.testing import CliRunner

from loftr_ros.cli.main import app
from loftr_ros.frontend.mask import MaskError, check_mask, on_usable, read_mask, shrink_mask
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.recordings import SourceError, open_source
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.tools.run import run


def written(path: Path, image: np.ndarray) -> Path:
    cv2.imwrite(str(path), image)
    return path


def half() -> np.ndarray:
    """(6, 8) with an ignored right half."""
    image = np.full((6, 8), 255, np.uint8)
    image[:, 4:] = 0
    return image


@pytest.mark.parametrize(
    "image",
    [half(), half() // 255, half().astype(np.uint16) // 255, cv2.cvtColor(half(), cv2.COLOR_GRAY2BGR)],
    ids=["white", "one", "one of 16 bits", "colour"],
)
def test_a_mask_is_0_where_pixels_are_ignored_and_anything_else_where_they_are_not(
    tmp_path: Path, image: np.ndarray
) -> None:
    found = read_mask(written(tmp_path / "mask.png", image))
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, half() > 0)


def test_a_hole_that_is_only_in_the_alpha_channel_is_ignored_too(tmp_path: Path) -> None:
    white, opaque = np.full((6, 8), 255, np.uint8), half()
    found = read_mask(written(tmp_path / "rgba.png", np.dstack([white, white, white, opaque])))
    np.testing.assert_array_equal(found, half() > 0)
    both = half().copy()
    both[:3] = 0
    found = read_mask(written(tmp_path / "both.png", np.dstack([both, both, both, opaque])))
    np.testing.assert_array_equal(found, both > 0)
    deep = np.dstack([white, white, white, opaque]).astype(np.uint16) * 257
    np.testing.assert_array_equal(read_mask(written(tmp_path / "deep.png", deep)), half() > 0)


def test_a_mask_is_not_turned_by_its_exif_data_as_the_camera_s_images_are_not(tmp_path: Path) -> None:
    upright = cv2.imencode(".jpg", np.repeat(np.repeat(half(), 8, 0), 8, 1))[1].tobytes()
    (tmp_path / "turned.jpg").write_bytes(with_orientation(upright, 6))
    assert read_mask(tmp_path / "turned.jpg").shape == (48, 64)


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with EXIF data that asks for a rotation."""
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0, 0, 0, 0, 0])
    segment = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]


def test_turned_and_transparent_images_of_a_recording_are_told_of(tmp_path: Path) -> None:
    pixels = np.full((48, 64), 90, np.uint8)
    (tmp_path / "turned").mkdir()
    (tmp_path / "turned" / "0.jpg").write_bytes(with_orientation(cv2.imencode(".jpg", pixels)[1].tobytes(), 6))
    with open_source(tmp_path / "turned") as source:
        assert next(iter(source)).to_frame().size == (64, 48), "as the calibration has it"
        assert any("EXIF" in note for note in source.notes)
    (tmp_path / "clear").mkdir()
    cv2.imwrite(str(tmp_path / "clear" / "0.png"), np.dstack([pixels] * 4))
    with open_source(tmp_path / "clear") as source:
        assert any("transparency" in note for note in source.notes)
    (tmp_path / "plain").mkdir()
    cv2.imwrite(str(tmp_path / "plain" / "0.png"), np.dstack([pixels] * 3))
    cv2.imwrite(str(tmp_path / "plain" / "1.jpg"), pixels)
    with open_source(tmp_path / "plain") as source:
        assert all("are not times" in note for note in source.notes), "and nothing is said of what is as usual"


def test_a_mask_that_is_missing_damaged_or_ignores_everything_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"nowhere\.png cannot be read: No such file"):
        read_mask(tmp_path / "nowhere.png")
    with pytest.raises(MaskError, match="cannot be read: Is a directory"):
        read_mask(tmp_path)
    for content in (b"", b"not an image", written(tmp_path / "whole.png", half()).read_bytes()[:40]):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(MaskError, match=r"broken\.png (\([0-9]+ bytes\) is not an image; use a PNG|was cut off)"):
            read_mask(tmp_path / "broken.png")
    with pytest.raises(MaskError, match="ignores every pixel"):
        read_mask(written(tmp_path / "black.png", np.zeros((6, 8), np.uint8)))


def test_a_mask_of_another_size_than_the_image_is_refused_with_both_sizes() -> None:
    check_mask(np.ones((6, 8), np.bool_), np.zeros((6, 8), np.uint8))
    with pytest.raises(MaskError, match="mask is of 8x6 px, the image of 6x8"):
        check_mask(np.ones((6, 8), np.bool_), np.zeros((8, 6), np.uint8))


@pytest.mark.parametrize("size", [(320, 240), (301, 226), (640, 480), (97, 73)])
def test_no_bit_of_an_ignored_pixel_gets_into_a_usable_pixel_of_the_shrunk_image(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    usable = rng.uniform(size=(480, 640)) > 0.001
    image = np.where(usable, 100, 255).astype(np.float32)
    small, found = cv2.resize(image, size, interpolation=cv2.INTER_AREA), shrink_mask(usable, size)
    assert found.shape == (size[1], size[0]) and found.dtype == np.bool_
    np.testing.assert_allclose(small[found], 100, atol=1e-4)
    assert 0.3 < found.mean() < 1
    # No more than that is lost.
    assert (small[~found] > 100).all()


def test_a_point_is_on_the_pixel_that_it_rounds_to_and_between_two_on_both() -> None:
    usable = np.ones((6, 8), np.bool_)
    usable[2, 3] = False
    points = np.array([[3, 2], [3.4, 2.4], [2.6, 1.6], [3.6, 2], [2.5, 2.5], [3.5, 2], [2.4, 2], [3, 1.4]], np.float32)
    np.testing.assert_array_equal(on_usable(points, usable), [False, False, False, True, False, False, True, True])
    assert on_usable(points, None).all()
    assert on_usable(np.zeros((0, 2), np.float32), usable).shape == (0,)


def test_a_point_at_the_rim_is_judged_by_the_pixel_at_the_rim() -> None:
    usable = np.ones((6, 8), np.bool_)
    usable[:, 7] = False
    points = np.array([[7.5, 5.5], [-0.5, -0.5], [8.2, 3.0]], np.float32)
    np.testing.assert_array_equal(on_usable(points, usable), [False, True, False])


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A folder of three images of a camera that pans."""
    stream, folder = PanningStream(), tmp_path / "recording"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), stream.at(3.0 * number).image)
    return folder


def test_a_run_over_a_recording_keeps_masked_pixels_out_of_its_correspondences(recording: Path, tmp_path: Path) -> None:
    usable = np.ones((240, 320), np.bool_)
    usable[:, :160] = False
    counts = []
    for mask, name in ((None, "all"), (usable, "masked")):
        with open_source(str(recording)) as source:
            run(source, FrontEnd(FineShiftMatcher()), tmp_path / name, reader=FrameReader(mask=mask), progress=False)
        table = np.load(tmp_path / name / "correspondences.npz")
        np.testing.assert_array_equal(table["current_std"], np.float32(0.25))
        counts.append(len(table["track_id"]))
    assert table["keyframe_u"].min() > 159.5 and table["current_u"].min() > 159.5
    assert 0.4 * counts[0] < counts[1] < 0.6 * counts[0]


def test_a_run_with_a_mask_of_another_size_says_so(recording: Path, tmp_path: Path) -> None:
    reader = FrameReader(mask=np.ones((10, 10), np.bool_))
    with (
        open_source(str(recording)) as source,
        pytest.raises(SourceError, match="mask is of 10x10 px, the image of 320x240"),
    ):
        run(source, FrontEnd(ShiftMatcher()), tmp_path, reader=reader, progress=False)


def test_a_masks_file_comes_from_the_option_or_from_the_nodes_parameters(recording: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("/**:\n  ros__parameters:\n    weights: random\n    input:\n      mask: from_parameters.png\n")
    for arguments, name in (([], "from_parameters.png"), (["--mask", "from_option.png"], "from_option.png")):
        done = CliRunner().invoke(app, ["run", str(recording), "--params-file", str(params), *arguments])
        assert done.exit_code == 2
        assert f"mask {name} cannot be read" in done.output
