"""While optical flow locates frames, the network matches one of them in another thread."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import PanningStream
from network_behind import LaterThread
from test_optical_flow import by_flow, front_end, run
from test_quick_matching import UNIT, QuickShiftMatcher

from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.quick import FAIRLY_SLOW, SLOW, FrameMatch
from loftr_ros.frontend.results import FrontEndResult

# Frames of the camera that the other thread takes for one of the network, and the frames between two of the network.
DELAY, PERIOD = 4, 3


class Stream:
    """A front end whose network has a thread of its own, and what it was shown."""

    def __init__(self, delay: int = DELAY, matcher: QuickShiftMatcher | None = None, **keyframe: float) -> None:
        self.thread, self.shown, self.matcher = LaterThread(delay), PanningStream(), matcher or QuickShiftMatcher()
        self.front_end: FrontEnd = front_end(self.matcher, PERIOD, **keyframe)
        run(self.front_end, UNIT, self.shown)
        self.front_end.use_background(self.thread.submit)
        self.number = UNIT

    def next(self, frames: int = 1, step: float = 1.5) -> list[FrontEndResult]:
        results = []
        for _ in range(frames):
            self.thread.tick()
            results.append(self.front_end.process(self.shown.at(step * self.number)))
            self.number += 1
        return results


def moved(result: FrontEndResult) -> float:
    """Median horizontal motion of the inliers since the keyframe, px."""
    found, pose = result.matches[0].correspondences, result.matches[0].pose
    return float(np.median((found.current_points - found.keyframe_points)[pose.inliers, 0]))


def test_no_frame_waits_for_the_network() -> None:
    stream = Stream()
    before = stream.matcher.encoded
    results = stream.next(40)
    assert all(by_flow(results)) and all(result.is_located for result in results)
    assert stream.thread.waited == 0
    # Each time that one is done and flow has gone on for its period.
    assert 4 <= stream.matcher.encoded - before <= 7


def test_flow_starts_anew_at_the_frame_that_the_network_matched_and_keeps_to_the_truth() -> None:
    stream = Stream()
    for number, result in enumerate(stream.next(30), UNIT):
        assert moved(result) == pytest.approx(-1.5 * number, abs=0.15)


def test_an_earlier_frame_becomes_a_keyframe_and_the_next_frames_go_on_from_it() -> None:
    stream = Stream(max_parallax=0.06)
    results = stream.next(24)
    late = [(n, event) for n, result in enumerate(results) for event in result.events if event.added]
    assert late and all(by_flow(results)) and stream.thread.waited == 0
    for number, event in late:
        made = next(n for n, result in enumerate(results) if result.frame is event.keyframe.frame)
        assert number - made >= DELAY
        assert results[made].matches[0].keyframe.id == event.keyframe.id - 1
        assert results[number].matches[0].keyframe is event.keyframe
        (links,) = results[number].links
        assert (links.old_keyframe, links.new_keyframe) == (event.keyframe.id - 1, event.keyframe.id) and len(links)
        assert event.keyframe.link is not None and event.keyframe.depth is not None
        assert moved(results[number]) == pytest.approx(-1.5 * (number - made), abs=0.15)
    assert sum(len(result.links) for result in results) == len(late)


def test_frames_keep_their_order_and_each_has_one_result() -> None:
    stream = Stream(max_parallax=0.06)
    stamps = [result.frame.stamp_ns for result in stream.next(24)]
    assert stamps == sorted(set(stamps)) and len(stamps) == 24


def test_if_flow_cannot_go_on_the_frame_waits_for_what_the_network_is_working_on() -> None:
    stream = Stream(delay=1000)
    stream.next(PERIOD)
    assert stream.thread.waited == 0
    jump = stream.front_end.process(stream.shown.at(90.0, 40.0))
    assert stream.thread.waited >= 1 and jump.frame_match != FrameMatch.FLOW


def test_a_black_frame_meanwhile_harms_nothing() -> None:
    stream = Stream(delay=6)
    stream.next(PERIOD)
    shown = stream.shown.at(1.5 * stream.number)
    black = stream.front_end.process(replace(shown, image=np.zeros_like(shown.image)))
    assert not black.is_located
    assert all(result.is_located for result in stream.next(12))


def test_what_the_network_finds_of_the_stream_before_a_reset_is_forgotten() -> None:
    stream = Stream(delay=2)
    stream.next(PERIOD)
    stream.front_end.reset()
    results = stream.next(6)
    assert [event.keyframe.id for result in results for event in result.events if event.added] == [2]
    assert not any(result.links for result in results)


def test_a_result_that_contradicts_flow_ends_it() -> None:
    stream = Stream()
    stream.next(PERIOD)
    stream.front_end.localizer.was_at = lambda *_: False  # type: ignore[method-assign]
    results = stream.next(DELAY + 1)
    assert by_flow(results).count(False) == 1


def test_fast_motion_is_matched_frame_by_frame() -> None:
    stream = Stream()
    submitted = stream.thread.submit
    calls = []
    stream.front_end.use_background(lambda work: calls.append(1) or submitted(work))  # type: ignore[func-returns-value]
    shown = 1.5 * UNIT
    for number in range(16):
        shown += 22.0  # 7 % of the width
        stream.front_end.process(stream.shown.at(shown))
        if number == 7:  # the first frames were not expected to be so far apart
            calls.clear()
    assert not calls


def test_it_is_off_where_it_is_switched_off_and_where_flow_is() -> None:
    for setting in ({"in_background": False}, {"flow_period": 0}):
        stream = Stream()
        config = stream.front_end.config
        stream.front_end.reconfigure(replace(config, tracking=replace(config.tracking, **setting)))  # type: ignore[arg-type]
        assert not stream.front_end.uses_background
        assert not all(by_flow(stream.next(12)))


def test_weak_poses_of_flow_are_few_in_a_row() -> None:
    stream = Stream(delay=1000)
    judged = stream.front_end.localizer.locate

    def weak(*arguments, **options):  # type: ignore[no-untyped-def]
        found = judged(*arguments, **options)
        return replace(found, is_trusted=False) if options.get("by_flow") else found

    stream.front_end.localizer.locate = weak  # type: ignore[method-assign]
    waited = []
    for _ in range(12):
        stream.next()
        waited.append(stream.thread.waited > 0)
    assert 1 <= waited.index(True) <= 6  # then the network must confirm them


def only_supported(stream: Stream) -> None:
    """From now on poses are accepted only because they agree with the prediction, as of blurred images."""
    judged = stream.front_end.localizer.locate
    stream.front_end.localizer.locate = lambda *arguments, **options: replace(  # type: ignore[method-assign]
        judged(*arguments, **options), is_trusted=False
    )


def test_flow_goes_on_from_blurred_frames_that_the_network_confirms() -> None:
    stream = Stream()
    stream.next(PERIOD)
    only_supported(stream)
    followed = by_flow(stream.next(20))
    assert all(followed[DELAY + 1 :]) and followed.count(False) <= 1  # that one when the doubt begins


def test_a_frame_that_needs_a_keyframe_is_not_followed_unless_it_matches_by_itself() -> None:
    stream = Stream(max_parallax=0.06)
    only_supported(stream)
    results = stream.next(20)
    assert not all(by_flow(results)) and all(result.is_located for result in results)


@pytest.mark.parametrize(("step", "goes_on"), [(1.5, True), (12.0, False)])
def test_a_fast_camera_that_leaves_its_keyframe_waits_for_the_network_and_a_slow_one_does_not(
    step: float, goes_on: bool
) -> None:
    stream = Stream(min_explained=0.5, min_explained_mono=0.5)
    shown = 1.5 * (UNIT - 1)
    for _ in range(4):  # the speed is known by then
        shown += step
        stream.thread.tick()
        stream.front_end.process(stream.shown.at(shown))
    judged = stream.front_end.localizer.locate

    def leaving(*arguments, **options):  # type: ignore[no-untyped-def]
        found = judged(*arguments, **options)
        return replace(found, explained=0.3) if options.get("by_flow") else found

    stream.front_end.localizer.locate = leaving  # type: ignore[method-assign]
    stream.thread.tick()
    result = stream.front_end.process(stream.shown.at(shown + step))
    assert SLOW < 12.0 / 320 < FAIRLY_SLOW
    assert (result.frame_match == FrameMatch.FLOW) == goes_on and result.is_located


def test_on_a_busy_machine_frames_that_follow_dropped_images_do_not_wait_for_the_network_either() -> None:
    stream = Stream()
    stamp, shown = 100 + stream.number / 10, 1.5 * (stream.number - 1)
    results = []
    for number in range(11):
        images = 1 if number < 6 else 4  # the camera's rate is known by then
        stamp, shown = stamp + images / 10, shown + 6.0 * images
        stream.thread.tick()
        results.append(stream.front_end.process(stream.shown.at(shown, stamp=stamp)))
    assert stream.front_end._stream.images == 4 and FAIRLY_SLOW < 24.0 / 320
    assert all(by_flow(results)) and stream.thread.waited == 0
