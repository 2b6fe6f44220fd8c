"""The guard of a stream: strays are refused without consequences, a changed stream is followed."""

from __future__ import annotations

import pytest
from fakes import PanningStream

from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.stream import PATIENCE, FrameRefusedError, StreamGuard

STREAM = PanningStream()
SMALL = PanningStream(160, 120)


def outcome(guard: StreamGuard, frame: Frame) -> str:
    try:
        reason = guard.admit(frame)
    except FrameRefusedError as error:
        return f"refused: {error.kind}"
    return "admitted" if reason is None else reason.name


def at(stamp: float, frame_id: str = "cam") -> Frame:
    return STREAM.at(0, stamp=stamp, frame_id=frame_id)


def test_frames_in_order_are_admitted_whatever_the_gap() -> None:
    guard = StreamGuard()
    assert [outcome(guard, at(t)) for t in (5.0, 5.1, 5.2, 9000.0)] == ["admitted"] * 4


@pytest.mark.parametrize(
    ("stray", "kind"),
    [(at(1400.0), "time"), (at(5000.0), "time"), (SMALL.at(0, stamp=5001.0), "size"), (at(5001.0, "rear"), "frame_id")],
)
def test_one_stray_is_refused_and_the_stream_goes_on(stray: Frame, kind: str) -> None:
    guard = StreamGuard()
    outcome(guard, at(5000.0))
    assert outcome(guard, stray) == f"refused: {kind}"
    assert outcome(guard, at(5002.0)) == "admitted"


@pytest.mark.parametrize(
    ("strays", "reason"),
    [
        ([at(1400.0 + i / 10) for i in range(PATIENCE)], "TIME_JUMPED"),
        ([SMALL.at(0, stamp=5001 + i / 10) for i in range(PATIENCE)], "CAMERA_CHANGED"),
        ([at(5001 + i / 10, "rear") for i in range(PATIENCE)], "CAMERA_CHANGED"),
    ],
)
def test_strays_that_agree_with_each_other_are_a_new_stream(strays: list[Frame], reason: str) -> None:
    guard = StreamGuard()
    outcome(guard, at(5000.0))
    outcomes = [outcome(guard, frame) for frame in strays]
    assert all(o.startswith("refused") for o in outcomes[:-1])
    assert outcomes[-1] == reason


def test_strays_between_good_frames_never_add_up() -> None:
    guard = StreamGuard()
    for i in range(10):
        assert outcome(guard, at(5000.0 + i)) == "admitted"
        assert outcome(guard, at(100.0 + i)) == "refused: time"


def test_a_stamp_that_never_changes_is_refused_for_ever() -> None:
    guard = StreamGuard()
    outcomes = [outcome(guard, at(0.0)) for _ in range(3 * PATIENCE)]
    assert outcomes == ["admitted"] + ["refused: time"] * (3 * PATIENCE - 1)


@pytest.mark.parametrize("ahead", [0.5, 5.0, 3600.0, 2.5e9])
@pytest.mark.parametrize("number", [1, 2])
def test_stamps_that_leap_ahead_and_come_back_are_strays_that_cost_nothing(ahead: float, number: int) -> None:
    guard = StreamGuard()
    for i in range(5):
        assert outcome(guard, at(100 + i / 10)) == "admitted"
    for i in range(number):
        assert outcome(guard, at(100.5 + i / 10 + ahead)) == "admitted"
    assert not guard.stray
    for i in range(5, 20):
        assert outcome(guard, at(100.1 + i / 10)) == "admitted"
    assert "ahead of the one before it" in guard.stray and "input.stamps" in guard.stray


def test_many_single_strays_ahead_never_end_a_stream() -> None:
    guard = StreamGuard()
    for i in range(60):
        assert outcome(guard, at(100 + i / 10)) == "admitted"
        if i % 4 == 3:
            assert outcome(guard, at(150 + 7 * i)) == "admitted"


def test_after_a_gap_that_the_stream_goes_on_from_old_stamps_are_strays_again() -> None:
    guard = StreamGuard()
    for stamp in (10.0, 10.1, 10.2, 18.0, 18.1, 18.2, 18.3):
        assert outcome(guard, at(stamp)) == "admitted"
    assert outcome(guard, at(10.3)) == "refused: time"
    assert outcome(guard, at(18.4)) == "admitted" and not guard.stray


def test_images_dropped_between_two_frames_are_counted_by_the_cameras_rate() -> None:
    guard = StreamGuard()
    times, images = [1.0, 1.1, 1.2, 1.301, 1.6, 1.7, 2.2], []
    for time in times:
        guard.admit(at(time))
        images.append(guard.images)
    assert images == [1, 1, 1, 1, 3, 1, 5]
    assert outcome(guard, at(0.5)) == "refused: time" and guard.images == 5
    guard.reset()
    assert guard.images == 1


def test_a_small_step_back_is_no_return_from_a_leap() -> None:
    guard = StreamGuard()
    for stamp in (10.0, 10.1, 10.2, 10.3):
        assert outcome(guard, at(stamp)) == "admitted"
    assert outcome(guard, at(10.25)) == "refused: time"


def test_a_slower_stream_is_no_leap_for_ever() -> None:
    guard = StreamGuard()
    stamps = [10.0, 10.1, 10.2, *(10.2 + i for i in range(1, 10))]
    assert [outcome(guard, at(stamp)) for stamp in stamps] == ["admitted"] * len(stamps)
    assert outcome(guard, at(18.5)) == "refused: time"


@pytest.mark.parametrize(("stamp", "words"), [(0.0, "stamp is zero"), (5.0, "is the same as the last one's")])
def test_zero_and_repeated_stamps_are_refused_with_the_options_that_cure_them(stamp: float, words: str) -> None:
    guard = StreamGuard()
    guard.admit(at(5.0))
    with pytest.raises(FrameRefusedError, match=words) as refused:
        guard.admit(at(stamp))
    assert "input.stamps to 'arrival'" in str(refused.value) and "--frame-rate" in str(refused.value)


def test_after_a_reset_anything_is_admitted() -> None:
    guard = StreamGuard()
    outcome(guard, at(5000.0))
    guard.reset()
    assert outcome(guard, at(1.0)) == "admitted"


def test_the_error_says_by_how_much_time_went_back() -> None:
    guard = StreamGuard()
    guard.admit(at(5000.0))
    with pytest.raises(FrameRefusedError, match=r"stamp 1400\.000 goes back by 3600\.000 s"):
        guard.admit(at(1400.0))
