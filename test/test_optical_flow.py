"""Between two frames that the network matches, optical flow locates the camera."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from fakes import FineShiftMatcher, PanningStream
from test_quick_matching import UNIT, QuickShiftMatcher

from loftr_ros.frontend.config import FrontEndConfig, KeyframeConfig, TrackingConfig
from loftr_ros.frontend.keyframes import Keyframe, PreparedFrame
from loftr_ros.frontend.optical_flow import OpticalFlow
from loftr_ros.frontend.own_scale import without_unit
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.quick import FrameMatch
from loftr_ros.frontend.recovery import TrackingState
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.geometry.two_view import PoseStatus, RelativePose


def front_end(matcher: FineShiftMatcher | None = None, period: int = 3, **keyframe: float) -> FrontEnd:
    keyframes = KeyframeConfig(
        **{"min_coverage": 0.0, "min_explained": 0.0, "min_explained_mono": 0.0, "max_parallax": 1.0, **keyframe}
    )  # type: ignore[arg-type]
    tracking = TrackingConfig(flow_period=period)
    return FrontEnd(matcher or QuickShiftMatcher(), FrontEndConfig(tracking=tracking, keyframe=keyframes))


def run(fe: FrontEnd, frames: int, stream: PanningStream, start: int = 0) -> list[FrontEndResult]:
    return [fe.process(stream.at(1.5 * (start + number))) for number in range(frames)]


def by_flow(results: list[FrontEndResult]) -> list[bool]:
    return [result.frame_match == FrameMatch.FLOW for result in results]


def test_a_tracked_camera_is_located_without_the_network_between_two_frames_that_it_matches() -> None:
    matcher, stream = QuickShiftMatcher(), PanningStream()
    fe = front_end(matcher)
    run(fe, UNIT, stream)
    before = matcher.encoded
    results = run(fe, 12, stream, start=UNIT)
    assert by_flow(results).count(True) == 9 and matcher.encoded - before == 3
    assert all(result.is_located and result.state == TrackingState.TRACKING for result in results)
    assert [result.encoded is None for result in results] == by_flow(results)


def test_points_followed_are_as_near_the_truth_as_those_matched_and_do_not_drift() -> None:
    stream = PanningStream()
    fe = front_end(period=8)
    run(fe, UNIT, stream)
    results = run(fe, 9, stream, start=UNIT)
    assert by_flow(results).count(True) >= 6
    for number, result in enumerate(results):
        match = result.matches[0]
        moved = match.correspondences.current_points - match.correspondences.keyframe_points
        off = moved[match.pose.inliers] + (1.5 * (UNIT + number), 0)
        assert np.abs(np.median(off, axis=0)).max() < 0.1
        assert np.percentile(np.abs(off), 90) < 0.5
        assert match.pose.inliers.sum() > 60


def test_flow_is_off_where_it_is_switched_off_and_with_several_keyframes() -> None:
    for fe in (front_end(period=0), front_end(max_matched=2), front_end(FineShiftMatcher())):
        assert not any(by_flow(run(fe, 12, PanningStream())))


def test_a_covered_lens_is_not_located_by_flow() -> None:
    stream, fe = PanningStream(), front_end(period=8)
    run(fe, UNIT, stream)
    for number in range(3):
        shown = stream.at(1.5 * (UNIT + number))
        noise = np.random.default_rng(number).integers(0, 255, shown.image.shape, dtype=np.uint8)
        result = fe.process(replace(shown, image=noise))
        assert result.frame_match != FrameMatch.FLOW
    assert any(by_flow(run(fe, 9, stream, start=UNIT + 3)))


@pytest.mark.parametrize("count", [1, 3])
def test_black_frames_are_not_followed_and_flow_goes_on_after_them_without_the_network(count: int) -> None:
    stream, matcher = PanningStream(), QuickShiftMatcher()
    fe = front_end(matcher, period=20)
    run(fe, UNIT, stream)
    assert by_flow(run(fe, 2, stream, start=UNIT))[-1]
    before, start = matcher.encoded, UNIT + 2
    for number in range(count):
        black = fe.process(replace(stream.at(1.5 * (start + number)), image=np.zeros((240, 320), np.uint8)))
        assert black.is_useless and not black.is_located and black.state == TrackingState.DOUBTFUL
    results = run(fe, 3, stream, start=start + count)
    assert all(by_flow(results)) and matcher.encoded == before
    moved = results[-1].matches[0].correspondences
    assert np.median(moved.current_points - moved.keyframe_points, axis=0) == pytest.approx(
        [-1.5 * (start + count + 2), 0], abs=0.1
    )


def test_after_a_frame_of_noise_flow_goes_on_from_the_frames_before_it() -> None:
    stream, fe = PanningStream(), front_end(period=20)
    run(fe, UNIT + 2, stream)
    shown = stream.at(1.5 * (UNIT + 2))
    noise = np.random.default_rng(0).integers(0, 255, shown.image.shape, dtype=np.uint8)
    bad = fe.process(replace(shown, image=noise))
    assert not bad.is_located and bad.state == TrackingState.DOUBTFUL
    assert all(by_flow(run(fe, 3, stream, start=UNIT + 3)))


def test_after_many_black_frames_the_network_finds_the_camera() -> None:
    stream, fe = PanningStream(), front_end(period=8)
    run(fe, UNIT + 2, stream)
    for number in range(fe.config.recovery.patience + 1):
        lost = fe.process(replace(stream.at(1.5 * (UNIT + 2 + number)), image=np.zeros((240, 320), np.uint8)))
    assert lost.state == TrackingState.LOST
    (found,) = run(fe, 1, stream, start=UNIT + 3)
    assert found.is_located and found.frame_match.is_full


def test_the_wrong_picture_of_a_jump_is_matched_by_the_network() -> None:
    stream, fe = PanningStream(), front_end(period=8)
    run(fe, UNIT, stream)
    jumped = fe.process(stream.at(90.0, 40.0))
    assert jumped.frame_match != FrameMatch.FLOW


def test_masked_pixels_are_not_followed() -> None:
    stream, fe = PanningStream(), front_end(period=8)
    run(fe, UNIT, stream)
    usable = np.ones((240, 320), np.bool_)
    usable[:, :160] = False
    results = [fe.process(stream.at(1.5 * (UNIT + n), usable=usable)) for n in range(4)]
    assert any(by_flow(results))
    for result in results:
        points = result.matches[0].correspondences.current_points
        assert len(points) == 0 or points[:, 0].min() > 158


def test_a_change_of_exposure_moves_no_point() -> None:
    stream, fe = PanningStream(), front_end(period=8)
    run(fe, UNIT, stream)
    shown = stream.at(1.5 * UNIT)
    result = fe.process(replace(shown, image=np.clip(0.5 * shown.image + 20, 0, 255).astype(np.uint8)))
    assert result.frame_match == FrameMatch.FLOW
    match = result.matches[0]
    moved = match.correspondences.current_points - match.correspondences.keyframe_points
    assert np.percentile(np.abs(moved[match.pose.inliers] + (1.5 * UNIT, 0)), 90) < 0.3
    assert match.pose.inliers.mean() > 0.8


def test_a_stray_of_another_size_costs_no_run_of_the_network_and_flow_goes_on_after_it() -> None:
    stream, matcher = PanningStream(), QuickShiftMatcher()
    fe = front_end(matcher, period=8)
    run(fe, UNIT, stream)
    before = matcher.encoded
    with pytest.raises(FrameRefusedError, match="size"):
        fe.process(PanningStream(160, 120).at(0.0, stamp=200.0))
    assert matcher.encoded == before
    assert isinstance(fe.prepare(stream.at(1.5 * UNIT)), PreparedFrame)


def test_a_forced_keyframe_is_matched_by_the_network() -> None:
    stream, fe = PanningStream(), front_end(period=8)
    run(fe, UNIT, stream)
    fe.force_keyframe()
    forced = fe.process(stream.at(1.5 * UNIT))
    assert forced.frame_match != FrameMatch.FLOW and any(event.added for event in forced.events)


def test_flow_goes_on_from_a_new_keyframe() -> None:
    stream, fe = PanningStream(), front_end(period=8)
    run(fe, UNIT, stream)
    fe.force_keyframe()
    fe.process(stream.at(1.5 * UNIT))
    results = run(fe, 4, stream, start=UNIT + 1)
    assert all(by_flow(results))
    assert {result.matches[0].keyframe.id for result in results} == {2}


def test_until_a_keyframe_has_served_for_long_flow_takes_no_frame_that_should_become_one() -> None:
    stream, fe = PanningStream(), front_end(period=8, max_parallax=0.03)
    results = [fe.process(stream.at(6.0 * number)) for number in range(4)]
    due = next(n for n, result in enumerate(results) if n and any(event.added for event in result.events))
    assert due == 2 and not any(by_flow(results[:3]))


def test_after_flow_in_vain_it_is_tried_less_often() -> None:
    stream, fe = PanningStream(), front_end(period=8)
    run(fe, UNIT, stream)
    tried = 0
    for number in range(16):  # every image has noise of its own: the fake network matches it, flow does not
        shown = stream.at(1.5 * (UNIT + number))
        noise = np.random.default_rng(number).normal(0, 90, shown.image.shape)
        prepared = fe.prepare(replace(shown, image=np.clip(shown.image + noise, 0, 255).astype(np.uint8)))
        tried += isinstance(prepared, PreparedFrame)
        fe.process_encoded(prepared)
    assert tried <= 6


def concluded(flow: OpticalFlow, by_flow: float) -> float:
    """What the network would explain of the first frame after one of which it explained everything."""
    keyframe = front_end_keyframe()
    flow.start_at(keyframe)
    return flow.explained_by_network(by_flow)


def front_end_keyframe() -> Keyframe:
    fe = front_end()
    fe.process(PanningStream().at(0.0))
    assert fe.buffer.reference is not None
    return fe.buffer.reference


def test_how_much_more_the_network_explains_than_flow_is_learnt_from_frames_of_both_and_never_from_one() -> None:
    flow = OpticalFlow()
    before = concluded(flow, 0.5)
    flow.compare(0.9, 0.5)
    assert concluded(flow, 0.5) == before
    for _ in range(30):
        flow.compare(0.75, 0.5)
    assert before < concluded(flow, 0.5) <= 0.75
    assert concluded(flow, 0.95) == pytest.approx(1.0)
    for _ in range(30):
        flow.compare(0.5, 0.5)
    assert concluded(flow, 0.5) == before


def test_a_pose_in_a_single_cameras_unit_is_one_of_two_views_without_it() -> None:
    rotation = cv2.Rodrigues(np.array([0.1, -0.2, 0.05]))[0]
    covariance = np.diag([1e-4, 4e-4, 9e-4, 1e-6, 1e-6, 1e-6])
    pose = RelativePose(
        PoseStatus.OK, rotation, np.array([0.5, 0, 0]), covariance, np.ones(9, np.bool_), 20.0, scale_known=True
    )
    found = without_unit(pose)
    assert found.status == PoseStatus.OK and not found.scale_known
    np.testing.assert_allclose(found.translation, [1, 0, 0])
    # Along the translation nothing is said; across it the angle is the position's error over the length.
    np.testing.assert_allclose(np.diag(found.covariance), [0, 16e-4, 36e-4, 1e-6, 1e-6, 1e-6], atol=1e-12)
    near = without_unit(replace(pose, translation=np.array([0.05, 0, 0])))
    assert near.status == PoseStatus.LOW_PARALLAX and not near.translation.any()
