"""The guard of a stream: strays are refused and cost nothing, a stream that really changed is followed."""

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
