"""Counters, latencies, and error lines with limited repetition."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import threading

import numpy as np
import pytest

from loftr_ros.frontend.pipeline import STAGES as FRONT_END_STAGES
from loftr_ros.ros.output.statistics import STAGES, Statistics

needs_ros = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="rclpy is not installed")


def test_the_stages_are_the_front_ends_with_the_nodes_around_them() -> None:
    first = STAGES.index(FRONT_END_STAGES[0])
    assert STAGES[first : first + len(FRONT_END_STAGES)] == FRONT_END_STAGES
    assert STAGES[-1] == "total" and len(set(STAGES)) == len(STAGES)


def test_every_frame_is_counted_once() -> None:
    statistics = Statistics(10)
    for _ in range(6):
        statistics.received("camera")
    statistics.dropped()
    statistics.dropped(2)
    statistics.unpaired(2, "depth", "no depth image")
    statistics.received("camera")
    statistics.received("camera")
    statistics.lost(5)
    statistics.failed("encoding", "what is this")
    for now in (1.0, 2.0):
        statistics.decoded()
        statistics.processed({}, now)
    found = statistics.snapshot(2.0)
    assert (found.received, found.decoded, found.dropped, found.failed, found.processed) == (8, 2, 3, 1, 2)
    assert (found.unpaired, found.lost, found.errors["depth"]) == (2, 5, 2)
    assert found.received == found.dropped + found.unpaired + found.failed + found.processed
    assert found.last_frame_id == "camera"


def test_frames_that_match_no_keyframe_are_counted_among_those_processed() -> None:
    statistics = Statistics(10)
    for unmatched in (False, True, True):
        statistics.processed({}, 1.0, unmatched)
    found = statistics.snapshot(2.0)
    assert (found.processed, found.unmatched) == (3, 2)


def test_frames_are_counted_by_why_they_were_matched_in_full() -> None:
    statistics = Statistics(10)
    for how in ("", "UNEXPECTED", "QUICK", "QUICK", "DOUBT"):
        statistics.processed({}, 1.0, frame_match=how)
    assert dict(statistics.snapshot(2.0).frame_matches) == {"UNEXPECTED": 1, "QUICK": 2, "DOUBT": 1}


def test_errors_are_counted_by_kind_and_only_failed_frames_as_frames() -> None:
    statistics = Statistics(10)
    statistics.failed("time", "back")
    statistics.failed("time", "back again")
    statistics.error("weights", "not there")
    found = statistics.snapshot()
    assert dict(found.errors) == {"time": 2, "weights": 1}
    assert found.failed == 2 and found.last_error == "not there"


def test_latencies_are_of_the_last_frames_only_and_a_stage_that_is_not_named_took_no_time() -> None:
    statistics = Statistics(4)
    for number, seconds in enumerate((9.0, 9.0, 1.0, 2.0, 3.0, 4.0)):
        statistics.processed({"encode": seconds}, float(number))
    found = statistics.snapshot(6.0)
    median = dict(zip(STAGES, found.latency_median, strict=True))
    p99 = dict(zip(STAGES, found.latency_p99, strict=True))
    assert found.window == 4 and found.processed == 6
    assert median["encode"] == pytest.approx(2.5)
    assert p99["encode"] == pytest.approx(np.percentile([1, 2, 3, 4], 99))
    assert median["match"] == 0


def test_before_the_first_frame_latencies_are_unknown_and_the_rate_is_zero() -> None:
    found = Statistics(4).snapshot()
    assert len(found.latency_median) == len(found.latency_p99) == len(STAGES)
    assert np.isnan(found.latency_median).all() and np.isnan(found.latency_p99).all()
    assert found.rate == 0 and found.window == 0


def test_the_rate_is_that_of_the_newest_frames_and_falls_once_no_more_frames_come() -> None:
    statistics = Statistics(5)
    for number in range(20):
        statistics.processed({}, number / 10)
    assert statistics.snapshot(1.9).rate == pytest.approx(10)
    assert statistics.snapshot(61.9).rate == 0


@pytest.mark.parametrize(("hz", "silence"), [(30.0, 5.1), (2.0, 5.1), (0.1, 31.0)])
def test_the_rate_decays_to_zero_once_images_end_however_many_the_window_holds(hz: float, silence: float) -> None:
    statistics = Statistics(300)
    for number in range(300):
        statistics.processed({}, number / hz)
    last = 299 / hz
    rates = [statistics.snapshot(last + part * silence).rate for part in (0, 0.1, 0.2, 0.5, 0.9, 1.0)]
    assert rates[0] == pytest.approx(hz) and rates[-1] == 0
    assert all(before >= after for before, after in itertools.pairwise(rates))
    assert rates[3] == pytest.approx(1 / max(0.5 * silence, 1 / hz))


def test_the_rate_after_a_pause_is_that_of_the_frames_after_it() -> None:
    statistics = Statistics(300)
    for number in range(100):
        statistics.processed({}, number / 10)
    for number in range(5):
        statistics.processed({}, 600 + number / 4)
    assert statistics.snapshot(601.0).rate == pytest.approx(4)


def test_a_stream_slower_than_the_seconds_that_the_rate_is_taken_over_has_its_own_rate() -> None:
    statistics = Statistics(300)
    for number in range(4):
        statistics.processed({}, number * 20.0)
    assert statistics.snapshot(61.0).rate == pytest.approx(1 / 20)


def test_a_smaller_window_keeps_the_newest() -> None:
    statistics = Statistics(5)
    for number in range(5):
        statistics.processed({"total": float(number)}, float(number))
    statistics.set_window(2)
    found = statistics.snapshot(5.0)
    assert found.window == 2
    assert found.latency_median[-1] == pytest.approx(3.5)


def test_counting_from_several_threads_loses_nothing() -> None:
    statistics = Statistics(10)

    def count() -> None:
        for _ in range(2000):
            statistics.received("camera")
            statistics.failed("time", "back")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = statistics.snapshot()
    assert found.received == found.failed == found.errors["time"] == 8000


class FakeNode:
    """Has a logger, and records its messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def get_logger(self) -> FakeNode:
        return self

    def error(self, line: str) -> None:
        self.lines.append(line)

    def warning(self, line: str) -> None:
        self.lines.append(f"WARN {line}")

    def info(self, line: str, once: bool = False) -> None:
        self.lines.append(f"INFO {line}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The log's clock, in seconds; set its one entry."""
    from loftr_ros.ros.output import reports

    now = [100.0]
    monkeypatch.setattr(reports.time, "monotonic", lambda: now[0])
    return now


@needs_ros
def test_an_error_is_logged_at_once_then_once_a_period_with_how_many_were_left_out(clock: list[float]) -> None:
    from loftr_ros.ros.output.reports import ErrorLog

    node, statistics = FakeNode(), Statistics(10)
    log = ErrorLog(node, statistics, period=5.0)
    for second in range(12):
        clock[0] = 100.0 + second
        log.frame_failed("encoding", f"at {second}")
    assert node.lines == [
        "[encoding] at 0",
        "[encoding] at 5 (4 more of this kind before)",
        "[encoding] at 10 (4 more of this kind before)",
    ]
    assert statistics.snapshot().errors["encoding"] == statistics.snapshot().failed == 12


@needs_ros
def test_one_kind_of_error_does_not_silence_another(clock: list[float]) -> None:
    from loftr_ros.ros.output.reports import ErrorLog

    node, statistics = FakeNode(), Statistics(10)
    log = ErrorLog(node, statistics, period=5.0)
    log.frame_failed("encoding", "one")
    log.frame_failed("time", "two")
    log.error("time", "left out")
    log.error("time", "a refused transition", always=True)
    assert node.lines == ["[encoding] one", "[time] two", "[time] a refused transition (1 more of this kind before)"]
    assert statistics.snapshot().failed == 2


@needs_ros
def test_a_single_image_without_a_partner_is_a_warning_and_every_one_an_error_and_each_is_counted(
    clock: list[float],
) -> None:
    from loftr_ros.ros.output.reports import ErrorLog
    from loftr_ros.ros.output.statistics import Severity

    node, statistics = FakeNode(), Statistics(10)
    log = ErrorLog(node, statistics, period=5.0)
    log.unpaired("depth", "at the start", 1, Severity.USUAL)
    log.unpaired("depth", "at half the rate", 1, Severity.BY_DESIGN)
    assert statistics.snapshot().unpaired == 2 and not statistics.snapshot().errors
    log.unpaired("depth", "one", 3, Severity.LOSS)
    log.unpaired("depth", "two", 1, Severity.LOSS)
    log.unpaired("depth", "none comes", 1, Severity.NONE_COMES)
    log.lost("/depth/image", 2, "Do this")
    assert node.lines == [
        "INFO at half the rate. Such images are left out",
        "WARN [depth] one",
        "[depth] none comes",
        "WARN [transport] the middleware lost 2 messages of /depth/image in transport. Do this",
    ]
    found = statistics.snapshot()
    assert (found.unpaired, found.failed, found.errors["depth"]) == (7, 0, 5)


@needs_ros
def test_details_are_for_the_log_alone(clock: list[float]) -> None:
    from loftr_ros.ros.output.reports import ErrorLog

    node, statistics = FakeNode(), Statistics(10)
    ErrorLog(node, statistics, period=5.0).frame_failed("internal", "division by zero", "Traceback ...")
    assert node.lines == ["[internal] division by zero\nTraceback ..."]
    assert statistics.snapshot().last_error == "division by zero"


@needs_ros
def test_what_other_rooms_log_reaches_the_nodes_logger_once_and_debug_does_not() -> None:
    from loftr_ros.ros.logs import log_by

    package, other = logging.getLogger("loftr_ros"), logging.getLogger("loftr_ros.matcher.some")
    before = package.handlers[:], package.level, package.propagate
    node = FakeNode()
    try:
        log_by(FakeNode())
        log_by(node)
        other.debug("no")
        other.info("builds graphs of %s", "a size")
        other.warning("look")
        other.error("broken")
    finally:
        package.handlers, package.level, package.propagate = before
    assert node.lines == ["INFO builds graphs of a size", "WARN look", "broken"]


@needs_ros
def test_diagnostics_warn_where_images_lose_their_partners_and_not_where_they_have_none_by_design() -> None:
    from diagnostic_msgs.msg import DiagnosticStatus

    from loftr_ros.ros.output.reports import FrontEndState, Reporter

    statistics = Statistics(10)
    reporter = object.__new__(Reporter)
    active = FrontEndState("active")

    def verdict() -> tuple[bytes, str]:
        before, now = getattr(reporter, "_previous", None), statistics.snapshot()
        reporter._previous = before or now
        level, text = reporter._verdict(active, now)
        reporter._previous = now
        return level, text

    reporter._previous = statistics.snapshot()
    for _ in range(3):
        statistics.received("camera")
    statistics.processed({}, 1.0)
    statistics.unpaired(2)
    assert verdict()[0] == DiagnosticStatus.OK, "by design"
    for _ in range(3):
        statistics.received("camera")
    statistics.processed({}, 2.0)
    statistics.unpaired(2, "depth", "no depth image")
    level, text = verdict()
    assert level == DiagnosticStatus.WARN and "2 of 3 images since the last report got no partner" in text
    statistics.processed({}, 3.0)
    statistics.lost(4)
    level, text = verdict()
    assert level == DiagnosticStatus.WARN and "lost 4 messages" in text


@needs_ros
def test_every_exception_of_our_own_has_a_kind_and_all_others_are_internal() -> None:
    from loftr_ros.frontend.image_files import ImageError
    from loftr_ros.frontend.stream import FrameRefusedError
    from loftr_ros.geometry.camera import CameraError
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.ros.output.reports import error_kind
    from loftr_ros.settings import ConfigError

    errors = {
        "encoding": ImageError("encoding", ""),
        "time": FrameRefusedError("time", ""),
        "calibration": CameraError(),
        "weights": WeightsError(),
        "device": DeviceError(),
        "parameter": ConfigError(),
        "internal": ZeroDivisionError(),
    }
    assert {kind: error_kind(error) for kind, error in errors.items()} == {kind: kind for kind in errors}
