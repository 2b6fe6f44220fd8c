"""Masks of what moves: paired with images, decoded, and read beside recordings."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import FineShiftMatcher, texture

from loftr_ros.frontend.mask import MaskError, with_moving
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.recordings import SourceError, open_source
from loftr_ros.recordings.decoding import decode_mask
from loftr_ros.recordings.frame_decoder import Arrival, FrameDecoder
from loftr_ros.recordings.input_settings import InputParameters
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.settings import ConfigError
from loftr_ros.tools.run import run

MS = 1_000_000


def stamped(stamp: int, **fields: Any) -> SimpleNamespace:
    header = SimpleNamespace(stamp=SimpleNamespace(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id="camera")
    return SimpleNamespace(header=header, **fields)


def mono8(pixels: np.ndarray, stamp: int = 1, encoding: str = "mono8") -> SimpleNamespace:
    height, width = pixels.shape
    return stamped(
        stamp,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=pixels.strides[0],
        data=pixels.tobytes(),
    )


# --- decoding ---


@pytest.mark.parametrize(("ignores", "inside"), [("zero", 0), ("nonzero", 3)])
def test_masked_pixels_and_a_border_around_them_are_ignored_and_the_camera_s_own_mask_too(
    ignores: str, inside: int
) -> None:
    mask = np.full((20, 30), 3 - inside, np.uint8)
    mask[8:12, 10:14] = inside
    own = np.ones((20, 30), np.bool_)
    own[:, 0] = False
    decode = FrameDecoder(InputParameters(mask_ignores=ignores, mask_dilation=2), own)
    frame = decode(Arrival(mono8(np.zeros((20, 30), np.uint8)), None, 0.0, mask=mono8(mask)))  # type: ignore[arg-type]
    expected = own.copy()
    expected[6:14, 8:16] = False
    assert frame.usable is not None
    np.testing.assert_array_equal(frame.usable, expected)
    assert own[8, 10], "the camera's mask was changed"


def test_a_mask_of_labels_may_have_16_bits_and_padded_rows() -> None:
    labels = np.zeros((4, 8), np.uint16)
    labels[1, 2] = 256
    message = mono8(labels[:, :6], encoding="16UC1")
    message.step, message.data = labels.strides[0], labels.tobytes()
    np.testing.assert_array_equal(decode_mask(message), labels[:, :6] > 0)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (mono8(np.zeros((20, 30), np.uint8), encoding="rgb8"), "mask of encoding 'rgb8'; expected mono8"),
        (mono8(np.zeros((10, 15), np.uint8)), "the mask is of 15x10 px, the image of 30x20"),
        (mono8(np.zeros((20, 30), np.uint8), encoding="mono16"), "rows of 60 bytes"),
    ],
    ids=["of another encoding", "of another size", "cut off"],
)
def test_an_unusable_mask_is_told_of_and_the_image_is_used_without_it(mask: SimpleNamespace, words: str) -> None:
    image, reasons = mono8(np.zeros((20, 30), np.uint8)), list[str]()
    arrival = Arrival(image, None, 0.0, mask=mask)  # type: ignore[arg-type]
    frame = FrameDecoder(InputParameters(), None, reasons.append)(arrival)
    assert frame.usable is None and frame.size == (30, 20)
    assert len(reasons) == 1 and words in reasons[0] and "used without it" in reasons[0]
    with pytest.raises(MaskError, match=words.split(" of ")[0]):
        FrameDecoder(InputParameters())(arrival)


def test_matches_outside_of_a_moving_mask_stay_and_none_is_inside_in_keyframes_and_frames() -> None:
    from loftr_ros.frontend.frame import Frame

    wall = texture(300, 420)
    front_end, free = FrontEnd(FineShiftMatcher()), FrontEnd(FineShiftMatcher())
    kept = []
    for number in range(4):
        image = np.ascontiguousarray(wall[20:260, 20 + 4 * number : 340 + 4 * number])
        person = np.zeros(image.shape, np.bool_)
        person[60:200, 40 + 50 * number : 100 + 50 * number] = True
        usable = with_moving(None, person, 4)
        masked = front_end.process(Frame(image, 10**9 + number * 10**8, "camera", usable=usable))
        other = free.process(Frame(image, 10**9 + number * 10**8, "camera"))
        for match, without in zip(masked.matches, other.matches, strict=True):
            found, all_of_them = match.correspondences, without.correspondences
            for points, mask in (
                (found.keyframe_points, match.keyframe.frame.usable),
                (found.current_points, masked.frame.usable),
            ):
                assert mask is not None
                column, row = np.rint(points).astype(int).T
                assert mask[row, column].all()
            assert match.keyframe.frame.usable is not None
            columns, rows = np.rint(all_of_them.keyframe_points).astype(int).T
            here = np.rint(all_of_them.current_points).astype(int).T
            clear = [
                cv2.erode(mask.astype(np.uint8), np.ones((33, 33)))
                for mask in (match.keyframe.frame.usable, masked.frame.usable)
            ]
            far = (clear[0][rows, columns] & clear[1][here[1].clip(0, 239), here[0].clip(0, 319)]) > 0
            kept.append((set(all_of_them.track_id[far]) <= set(found.track_id), int(far.sum())))
    assert len(kept) >= 3 and all(stays and number > 100 for stays, number in kept), kept


def test_an_image_that_is_masked_all_over_is_useless_and_no_failure() -> None:
    from loftr_ros.frontend.frame import Frame

    front_end, wall = FrontEnd(FineShiftMatcher()), texture(240, 320)
    front_end.process(Frame(wall, 10**9, "camera"))
    result = front_end.process(Frame(wall, 2 * 10**9, "camera", usable=np.zeros(wall.shape, np.bool_)))
    assert result.is_useless and not len(result.matches[0].correspondences)


def test_masks_cannot_be_paired_by_the_time_of_arrival() -> None:
    with pytest.raises(ConfigError, match=r"set input.mask_topic to 'latest'"):
        InputParameters(stamps="arrival", mask_topic="synchronized").check_mode("mono")


# --- pairing ---


class Paired:
    """A `MaskPairing` with a clock of its own.

    Attributes:
        passed: stamps of the images passed on, and of their masks, in milliseconds.
        reasons: why images have no mask.
    """

    def __init__(self, topic: str = "synchronized", publishers: int = 1, **parameters: Any) -> None:
        pytest.importorskip("rclpy")
        from loftr_ros.ros.input.masks import MaskPairing

        self.now, self.passed, self.reasons = 100.0, list[tuple[int, int | None]](), list[str]()
        topics = SimpleNamespace(
            describe=lambda _: f"/mask (publishers: {publishers})",
            publishers=lambda _: publishers,
            published_topics=lambda _: "No image topics are published",
        )
        settings = InputParameters(mask_topic=topic, **parameters)
        self.pairing = MaskPairing(settings, self._on_image, self.reasons.append, topics, lambda: self.now)  # type: ignore[arg-type]

    def _on_image(self, arrival: Arrival) -> None:
        mask = arrival.mask
        at = [None if each is None else each.header.stamp.nanosec // MS for each in (arrival.image, mask)]
        self.passed.append((at[0] or 0, at[1]))

    def image(self, at: int) -> None:
        self.pairing.add_image(Arrival(stamped(at * MS), None, self.now))  # type: ignore[arg-type]

    def mask(self, at: int) -> None:
        self.pairing.add_mask(stamped(at * MS))  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.pairing.expire()


def test_an_image_waits_for_its_mask_whichever_comes_first_and_order_is_kept() -> None:
    paired = Paired()
    paired.image(10)
    paired.image(20)
    assert not paired.passed and paired.pairing.pending == 2
    paired.mask(20)  # so that of 10 will not come any more
    paired.mask(30)
    paired.image(30)
    assert paired.passed == [(10, 20), (20, 20), (30, 30)] and len(paired.reasons) == 1


def test_without_its_mask_an_image_goes_on_after_the_wait_with_the_newest_if_that_is_young_enough() -> None:
    paired = Paired(mask_wait=0.2, mask_age=0.05)
    paired.mask(10)
    paired.image(10)
    paired.image(40)
    paired.wait(0.1)
    assert paired.passed == [(10, 10)]
    paired.wait(0.1)
    paired.image(90)
    paired.wait(0.3)
    assert paired.passed == [(10, 10), (40, 10), (90, None)]
    assert "the newest mask is used" in paired.reasons[0] and "no mask is used" in paired.reasons[1]


def test_images_stop_waiting_for_a_detector_that_has_stopped_and_wait_again_when_it_is_back() -> None:
    paired = Paired(mask_wait=0.2)
    for number in range(1, 6):
        paired.image(10 * number)
        paired.wait(0.21)
    paired.image(60)
    assert paired.passed[-1] == (60, None) and not paired.pairing.pending
    paired.now += 0.03
    paired.mask(60)
    paired.image(70)
    assert paired.pairing.pending == 1
    paired.mask(70)
    assert paired.passed[-1] == (70, 70)


def test_a_recording_that_begins_again_is_paired_again() -> None:
    paired = Paired()
    for at in (*range(500, 700, 10), *range(10, 100, 10)):
        paired.mask(at)
        paired.image(at)
    assert paired.passed[-9:] == [(at, at) for at in range(10, 100, 10)] and not paired.reasons


@pytest.mark.parametrize(
    ("publishers", "masks", "late", "words"),
    [
        (0, [], 0.0, "It has no publisher: start the detector, or remap `mask`"),
        (1, [], 0.0, "no message was received so far"),
        (1, [43], 0.0, r"The newest mask is \+0.033 s from it. Copy the image's stamp"),
        (1, [10], 0.3, r"Masks come 0.60 s after their images: raise input.mask_wait"),
    ],
    ids=["no publisher", "silence", "other stamps", "late"],
)
def test_the_reason_for_a_missing_mask_is_told(publishers: int, masks: list[int], late: float, words: str) -> None:
    paired = Paired(publishers=publishers)
    paired.image(10)
    paired.wait(0.3)
    paired.now += late
    for at in masks:
        paired.mask(at)
    if masks == [43]:
        paired.image(10)
    else:
        paired.image(20)
    paired.wait(0.3)
    assert re.search(words, paired.reasons[-1]), paired.reasons


def test_the_newest_mask_of_a_slow_detector_serves_until_it_is_too_old() -> None:
    paired = Paired("latest", mask_age=0.1)
    paired.image(5)
    paired.mask(10)
    for at in (20, 90, 120):
        paired.image(at)
    assert paired.passed == [(5, None), (20, 10), (90, 10), (120, None)] and len(paired.reasons) == 2
    assert "input.mask_age allows 0.1 s" in paired.reasons[1]


# --- recordings ---


def recording(folder: Path, count: int = 3) -> Path:
    wall = texture(300, 420)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / "images" / f"{number:03}.png"), wall[20:260, 20 + 4 * number : 340 + 4 * number])
        mask = np.full((240, 320), 255, np.uint8)
        mask[:, : 40 + 40 * number] = 0
        cv2.imwrite(str(folder / "masks" / f"{number:03}.png"), mask)
    return folder / "images"


def test_a_folder_of_masks_beside_images_is_used_by_run_and_one_missing_is_told_of(tmp_path: Path) -> None:
    images = recording(tmp_path)
    (tmp_path / "masks" / "001.png").unlink()
    with open_source(images, masks=tmp_path / "masks") as source:
        report = run(source, FrontEnd(FineShiftMatcher()), tmp_path / "out", progress=False)
    assert report.frames == 3 and any("1 of 3 images have no mask" in note for note in report.notes)
    found = np.load(tmp_path / "out" / "correspondences.npz")
    last = found["stamp_ns"] == found["stamp_ns"].max()
    assert last.sum() > 50 and (found["current_u"][last] >= 120 + 4).all()


def test_masks_that_belong_to_no_image_or_are_none_are_refused(tmp_path: Path) -> None:
    images = recording(tmp_path)
    with pytest.raises(SourceError, match="holds no masks"):
        open_source(images, masks=tmp_path)
    (tmp_path / "others").mkdir()
    cv2.imwrite(str(tmp_path / "others" / "x.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(SourceError, match=r"no mask in .* belongs to an image"):
        open_source(images, masks=tmp_path / "others")
    cv2.imwrite(str(tmp_path / "masks" / "000.png"), np.zeros((4, 4), np.uint8))
    with open_source(images, masks=tmp_path / "masks") as source, pytest.raises(SourceError, match="4x4 px"):
        FrameReader().read(next(iter(source)))


@pytest.mark.skipif(importlib.util.find_spec("rosbags") is None, reason="rosbags is not installed")
def test_masks_of_a_bag_come_with_their_images(tmp_path: Path) -> None:
    from bags import image, write_bag

    pictures, masks = "/camera/image_raw", "/detector/mask"
    messages = []
    for number in range(1, 5):
        pixels = np.full((48, 64), 10 * number, np.uint8)
        messages.append((pictures, "sensor_msgs/msg/Image", number * 10**8, image(pixels, number * 10**8)))
        if number != 3:
            mask = (np.arange(64) > 10 * number).astype(np.uint8)[None].repeat(48, 0)
            messages.append((masks, "sensor_msgs/msg/Image", number * 10**8 + 5, image(mask, number * 10**8)))
    path = write_bag(tmp_path / "bag", messages)
    with open_source(path, topic=pictures, mask_topic=masks) as source:
        reader = FrameReader(InputParameters(mask_dilation=0))
        usable = [reader.read(frame).usable for frame in source]
    assert [None if each is None else int(each[0].sum()) for each in usable] == [53, 43, None, 23]


def test_the_player_publishes_a_mask_with_its_image_s_stamp(tmp_path: Path) -> None:
    pytest.importorskip("rclpy")
    from loftr_ros.tools.player.messages import mask_message

    with open_source(recording(tmp_path), masks=tmp_path / "masks") as source:
        for number, frame in enumerate(source):
            message = mask_message(frame)
            assert message is not None and message.encoding == "mono8"
            assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == frame.stamp_ns
            assert int((~decode_mask(message)[0]).sum()) == 40 + 40 * number
