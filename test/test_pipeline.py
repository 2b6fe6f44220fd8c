"""The whole front end: on a panning camera with a small matcher, and on real video with the real network."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fakes import FineShiftMatcher, PanningStream, ShiftMatcher, camera

from loftr_ros.evaluation.metrics import pose_auc, rotation_error, translation_direction_error
from loftr_ros.frontend.config import FrontEndConfig, ImageConfig, KeyframeConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import KeyframeReason
from loftr_ros.frontend.mask import MaskError
from loftr_ros.frontend.pipeline import STAGES, FrontEnd
from loftr_ros.frontend.recovery import TrackingState
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.two_view import PoseStatus
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.settings import ConfigError


def front_end(matcher: ShiftMatcher | None = None, max_side: int = 960, **keyframe: float) -> FrontEnd:
    config = FrontEndConfig(
        image=ImageConfig(max_side=max_side),
        keyframe=KeyframeConfig(**keyframe),  # type: ignore[arg-type]
    )
    return FrontEnd(matcher or ShiftMatcher(), config)


def test_the_first_frame_becomes_a_keyframe_and_matches_nothing() -> None:
    result = front_end().process(PanningStream().at(0))
    assert result.matches == () and not result.is_unmatched
    assert [(e.added, e.reason) for e in result.events] == [(True, KeyframeReason.FIRST)]
    assert set(result.latencies) == set(STAGES)


def test_correspondences_follow_the_camera_to_sub_pixel() -> None:
    stream, fe = PanningStream(), front_end()
    fe.process(stream.at(0))
    match = fe.process(stream.at(10.4, -5.3)).matches[0]
    moved = match.correspondences.current_points - match.correspondences.keyframe_points
    assert len(match.correspondences) > 150
    np.testing.assert_allclose(np.median(moved, axis=0), [-10.4, 5.3], atol=0.05)
    assert match.pose.inliers.mean() > 0.9


def test_a_track_id_names_the_same_keyframe_point_in_every_frame() -> None:
    stream, fe = PanningStream(), front_end()
    fe.process(stream.at(0))
    points: dict[tuple[int, int], tuple[float, float]] = {}
    repeated = 0
    for x in (2.0, 5.0, 9.0, 14.0):
        for match in fe.process(stream.at(x)).matches:
            for track, point in zip(match.correspondences.track_id, match.correspondences.keyframe_points, strict=True):
                key, value = (match.keyframe.id, int(track)), (float(point[0]), float(point[1]))
                repeated += key in points
                assert points.setdefault(key, value) == value
    assert repeated > 300


def test_every_image_is_encoded_once_however_many_keyframes_it_is_matched_with() -> None:
    stream, fe = PanningStream(), front_end(max_matched=4)
    for x in range(0, 60, 10):
        fe.force_keyframe()
        fe.process(stream.at(x))
    assert fe.matcher.encoded == 6  # type: ignore[attr-defined]
    assert fe.matcher.batches[-1] == 4  # type: ignore[attr-defined]


def test_only_what_becomes_a_keyframe_is_completed() -> None:
    stream, fe = PanningStream(), front_end(FineShiftMatcher(), max_matched=2)
    for x in range(4):
        fe.process(stream.at(x))
    assert fe.matcher.completed == len(fe.buffer) == 1  # type: ignore[attr-defined]
    features = fe.buffer.keyframes[0].encoded.features
    assert features.fine is not None and features.unsmoothed is None


def test_a_view_that_moves_on_gets_keyframes_and_the_buffer_stays_bounded() -> None:
    stream, fe = PanningStream(), front_end(capacity=3)
    added, removed = [], []
    for x in range(0, 900, 30):
        for event in fe.process(stream.at(x)).events:
            (added if event.added else removed).append(event.reason)
    assert added[0] == KeyframeReason.FIRST
    moved_on = {KeyframeReason.LOW_COVERAGE, KeyframeReason.HIGH_PARALLAX, KeyframeReason.HIGH_ROTATION}
    assert set(added[1:]) <= moved_on
    assert len(added) > 5
    assert removed == [KeyframeReason.EVICTED] * (len(added) - 3)
    assert len(fe.buffer) == 3


def test_a_view_of_something_else_is_unmatched_and_changes_no_keyframe() -> None:
    fe = front_end()
    fe.process(PanningStream(seed=0).at(0, stamp=1.0))
    assert not fe.process(PanningStream(seed=0).at(1, stamp=1.5)).is_unmatched
    result = fe.process(PanningStream(seed=1).at(0, stamp=2.0))
    assert result.is_unmatched
    assert result.matches[0].pose.status == PoseStatus.TOO_FEW_MATCHES
    assert result.events == () and result.location is None


def test_a_place_seen_again_is_matched_with_its_old_keyframe() -> None:
    stream, fe = PanningStream(), front_end(capacity=10, max_matched=2, max_parallax=0.3)
    for x in [*range(0, 400, 40), *range(400, -1, -40)]:
        fe.process(stream.at(x))
    last = [fe.process(stream.at(0)) for _ in range(3)]
    assert fe.buffer.reference is not None and fe.buffer.reference.id == 1
    assert not any(result.events for result in last[1:])


@pytest.mark.parametrize("step", [100, 130])
def test_a_lost_vehicle_that_leaves_every_place_behind_at_once_begins_a_new_segment(step: int) -> None:
    stream, fe = PanningStream(), FrontEnd(FineShiftMatcher())
    fe.process(stream.at(0))
    results = [fe.process(stream.at(700 + step * number)) for number in range(9)]
    states = [result.state for result in results]
    assert states[: fe.config.recovery.patience] == [TrackingState.DOUBTFUL] * fe.config.recovery.patience
    first = next(number for number, result in enumerate(results) if result.is_located)
    assert first <= fe.config.recovery.patience + 1 and all(result.is_located for result in results[first:])
    assert [event.reason for event in results[first].events if event.added] == [KeyframeReason.LOST]
    assert results[-1].location is not None and results[-1].location.segment == 1


def test_forcing_makes_the_next_frame_a_keyframe_once() -> None:
    stream, fe = PanningStream(), front_end()
    fe.process(stream.at(0))
    fe.force_keyframe()
    assert [e.reason for e in fe.process(stream.at(1)).events] == [KeyframeReason.FORCED]
    assert fe.process(stream.at(2)).events == ()


def test_a_reset_drops_every_keyframe_and_begins_anew() -> None:
    stream, fe = PanningStream(), front_end()
    fe.process(stream.at(0, stamp=1000.0))
    events = fe.reset()
    assert [(e.added, e.reason) for e in events] == [(False, KeyframeReason.RESET)]
    result = fe.process(stream.at(0, stamp=1.0))
    assert [(e.keyframe.id, e.reason) for e in result.events] == [(2, KeyframeReason.FIRST)]


def test_a_stray_frame_changes_nothing() -> None:
    stream, fe = PanningStream(), front_end()
    fe.process(stream.at(0, stamp=5000.0))
    with pytest.raises(FrameRefusedError):
        fe.process(stream.at(0, stamp=1400.0))
    result = fe.process(stream.at(3, stamp=5000.1))
    assert len(result.matches) == 1 and result.events == ()


@pytest.mark.parametrize("ahead", [5.0, 3600.0])
def test_a_stamp_ahead_of_its_time_costs_no_keyframe_and_is_told_of(ahead: float) -> None:
    stream, front_end = PanningStream(), FrontEnd(ShiftMatcher())
    reasons = []
    for number in range(12):
        result = front_end.process(stream.at(4 * number, stamp=10 + number / 10 + ahead * (number == 6)))
        reasons += [event.reason for event in result.events]
        assert result.matches or not number
        assert bool(front_end.take_warnings()) == (number == 7)
    assert KeyframeReason.TIME_JUMPED not in reasons


def test_time_that_stays_back_voids_the_keyframes() -> None:
    stream, fe = PanningStream(), front_end()
    fe.process(stream.at(0, stamp=5000.0))
    for i in range(2):
        with pytest.raises(FrameRefusedError):
            fe.process(stream.at(i, stamp=100.0 + i))
    result = fe.process(stream.at(2, stamp=102.0))
    assert [(e.added, e.reason) for e in result.events] == [
        (False, KeyframeReason.TIME_JUMPED),
        (True, KeyframeReason.FIRST),
    ]


def test_without_calibration_there_are_correspondences_and_the_status_says_why_there_is_no_pose() -> None:
    stream, fe = PanningStream(), front_end()
    for x in (0, 8):
        view = stream.at(x)
        result = fe.process(Frame(view.image, view.stamp_ns, view.frame_id, None))
    pose = result.matches[0].pose
    assert pose.status == PoseStatus.NO_CALIBRATION
    assert not pose.translation.any()
    assert len(result.matches[0].correspondences) > 150


def test_points_are_pixels_of_the_raw_image_when_the_network_sees_a_smaller_one() -> None:
    stream = PanningStream(640, 480)
    fe = front_end(max_side=320)
    fe.process(stream.at(0))
    found = fe.process(stream.at(20.5, 9.25)).matches[0].correspondences
    moved = found.current_points - found.keyframe_points
    np.testing.assert_allclose(np.median(moved, axis=0), [-20.5, -9.25], atol=0.05)
    # The first cell of 16 px at half size covers raw pixels 0 to 31.
    assert found.keyframe_points[:, 0].min() % 32 == 15.5


def test_with_a_fine_stage_points_are_the_networks_own_and_nothing_refines_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loftr_ros.frontend.pair_matcher.refine", lambda *_, **__: pytest.fail("refined"))
    stream, fe = PanningStream(), front_end(FineShiftMatcher())
    fe.process(stream.at(0))
    match = fe.process(stream.at(10.4, -5.3)).matches[0]
    found = match.correspondences
    assert len(found) > 500
    # The network's cells of 8 px have their point at their top-left pixel.
    assert not (found.keyframe_points % 8).any()
    moved = found.current_points - found.keyframe_points
    np.testing.assert_allclose(moved, np.broadcast_to([-10.4, 5.3], moved.shape), atol=0.1)
    assert match.pose.inliers.mean() > 0.9


@pytest.mark.parametrize("matcher", [ShiftMatcher, FineShiftMatcher])
@pytest.mark.parametrize("max_side", [960, 160])
def test_a_tracks_point_and_ray_are_those_of_its_cell(matcher: type[ShiftMatcher], max_side: int) -> None:
    stream, fe = PanningStream(), front_end(matcher(), max_side)
    fe.process(stream.at(0))
    match = fe.process(stream.at(6)).matches[0]
    encoded, found = match.keyframe.encoded, match.correspondences
    assert len(found) > 20
    np.testing.assert_array_equal(encoded.cell_points[found.track_id], found.keyframe_points)
    rays = encoded.frame.camera.unproject(found.keyframe_points)  # type: ignore[union-attr]
    np.testing.assert_array_equal(encoded.cell_rays[found.track_id], rays)  # type: ignore[index]


def test_the_standard_deviation_is_in_pixels_of_the_raw_image_and_nan_without_a_fine_stage() -> None:
    for matcher, max_side, expected in (
        (FineShiftMatcher(), 960, 0.25),
        (FineShiftMatcher(), 160, 0.5),
        (ShiftMatcher(), 960, np.nan),
    ):
        stream, fe = PanningStream(), front_end(matcher, max_side)
        fe.process(stream.at(0))
        found = fe.process(stream.at(4)).matches[0].correspondences
        assert found.std.dtype == np.float32 and len(found.std) == len(found) > 20
        np.testing.assert_array_equal(found.std, np.float32(expected))


# --- masks ---


def bumper(width: int = 320, height: int = 240) -> np.ndarray:
    """A robot's own body: the lower third, and an antenna one pixel wide."""
    usable = np.ones((height, width), np.bool_)
    usable[2 * height // 3 :] = False
    usable[:, 5 * width // 16] = False
    return usable


@pytest.mark.parametrize("matcher", [ShiftMatcher, FineShiftMatcher])
@pytest.mark.parametrize("max_side", [960, 160])
@pytest.mark.parametrize("where", ["keyframe", "current", "both"])
def test_no_match_has_a_point_on_an_ignored_pixel(matcher: type[ShiftMatcher], max_side: int, where: str) -> None:
    usable = bumper()
    stream, fe = PanningStream(), front_end(matcher(), max_side)
    fe.process(stream.at(0, usable=usable if where != "current" else None))
    found = fe.process(stream.at(7.3, 2.6, usable=usable if where != "keyframe" else None)).matches[0].correspondences
    unmasked = front_end(matcher(), max_side)
    unmasked.process(stream.at(0))
    every = unmasked.process(stream.at(7.3, 2.6)).matches[0].correspondences
    assert 0.4 * len(every) < len(found) < 0.8 * len(every)
    for name, points in (("keyframe", found.keyframe_points), ("current", found.current_points)):
        if where in (name, "both"):
            u, v = np.floor(points + 0.5).astype(int).T
            assert usable[v, u].all()


def test_the_network_is_told_what_to_ignore_at_the_size_that_it_sees() -> None:
    usable = bumper()
    stream = PanningStream()
    features = front_end().encode(stream.at(0, usable=usable)).features
    assert features.pixels is not None and np.array_equal(features.pixels.numpy(), usable)
    shrunk = front_end(max_side=160).encode(stream.at(0, usable=usable)).features.pixels
    assert shrunk is not None and shrunk.shape == (120, 160)
    assert not shrunk[:, 50].any() and not shrunk[80:].any() and shrunk[:80, :50].all()
    assert front_end().encode(stream.at(0)).features.pixels is None


def test_a_mask_of_another_size_is_refused_and_changes_nothing() -> None:
    stream, fe = PanningStream(), front_end()
    fe.process(stream.at(0))
    with pytest.raises(MaskError, match="mask is of 64x48 px, the image of 320x240"):
        fe.process(stream.at(1, usable=bumper(64, 48)))
    assert len(fe.process(stream.at(2)).matches[0].correspondences) > 150


# --- what stays where ---


def test_a_frame_that_waits_encoded_is_not_touched_by_keyframes_that_come_and_go() -> None:
    stream, fe = PanningStream(), front_end(capacity=1, min_coverage=1.0)
    waiting = fe.encode(stream.at(40))
    image = waiting.features.tokens.clone()
    for x in (0, 10, 20, 30):
        fe.process(stream.at(x, stamp=50 + x))
    assert torch.equal(waiting.features.tokens, image)
    assert fe.buffer.keyframes[0].encoded.features.slot is not None


def test_matches_with_an_old_keyframe_are_its_own_after_others_were_evicted_around_it() -> None:
    stream, fe = PanningStream(), front_end(capacity=3, max_matched=3)
    fe.process(stream.at(0))
    for _ in range(6):
        fe.force_keyframe()
        fe.process(stream.at(20))
        fe.force_keyframe()
        fe.process(stream.at(32))
    for match in fe.process(stream.at(30)).matches:
        moved = match.correspondences.current_points - match.correspondences.keyframe_points
        expected = -10 if match.keyframe.id % 2 == 0 else 2
        assert len(match.correspondences) > 100
        np.testing.assert_allclose(np.median(moved, axis=0), [expected, 0], atol=0.05)


def test_keyframes_that_went_before_a_frame_failed_are_told_with_the_next_result() -> None:
    stream, fe = PanningStream(), front_end()
    fe.process(stream.at(0, stamp=5000.0))
    fe.process(stream.at(1, stamp=5000.1))
    for i in range(2):
        with pytest.raises(FrameRefusedError):
            fe.process(stream.at(i, stamp=100.0 + i))
    complete = fe.matcher.complete

    def fails(*_: object) -> object:
        raise RuntimeError("broken")

    fe.matcher.complete = fails  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError):
        fe.process(stream.at(2, stamp=102.0))
    fe.matcher.complete = complete  # type: ignore[method-assign]
    events = fe.process(stream.at(3, stamp=103.0)).events
    assert [(e.added, e.reason) for e in events] == [
        (False, KeyframeReason.TIME_JUMPED),
        (True, KeyframeReason.FIRST),
    ]


def test_a_frame_that_was_to_be_a_keyframe_and_failed_leaves_that_to_the_next() -> None:
    stream, fe = PanningStream(), front_end()
    fe.process(stream.at(0))
    fe.force_keyframe()
    add = fe.buffer.add

    def fails(*_: object) -> None:
        raise RuntimeError("broken")

    fe.buffer.add = fails  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError):
        fe.process(stream.at(1))
    fe.buffer.add = add  # type: ignore[method-assign]
    assert [e.reason for e in fe.process(stream.at(2)).events] == [KeyframeReason.FORCED]


def test_warming_up_leaves_no_keyframe_and_takes_the_memory_that_keyframes_will_use() -> None:
    stream, fe = PanningStream(), front_end(max_matched=3)
    fe.warm_up((320, 240))
    assert len(fe.buffer) == 0 and fe.matcher.batches == [1, 2, 3]  # type: ignore[attr-defined]
    result = fe.process(stream.at(0))
    assert [(e.added, e.reason) for e in result.events] == [(True, KeyframeReason.FIRST)]


def test_a_constant_image_is_processed_without_matches() -> None:
    fe = front_end()
    for i, value in enumerate((0, 128, 255)):
        result = fe.process(Frame(np.full((240, 320), value, np.uint8), 10**9 + i, "cam", camera()))
    assert all(match.pose.status == PoseStatus.TOO_FEW_MATCHES for match in result.matches)


def test_settings_out_of_range_are_refused_with_the_range() -> None:
    with pytest.raises(ConfigError, match=r"min_coverage is 1\.5; expected 0\.0 to 1\.0"):
        KeyframeConfig(min_coverage=1.5)
    with pytest.raises(ConfigError, match="capacity is '3'; expected int"):
        KeyframeConfig(capacity="3")  # type: ignore[arg-type]


def kitti(shared_data: Path, step: int = 1) -> tuple[list[Frame], list[np.ndarray]]:
    folder = shared_data / "kitti06_stereo"
    matrix = np.loadtxt(folder / "calib.txt")[0].reshape(3, 4)[:, :3]
    poses = [np.vstack([p.reshape(3, 4), [0, 0, 0, 1]]) for p in np.loadtxt(folder / "poses.txt")]
    frames = []
    for i, path in enumerate(sorted((folder / "image_l").iterdir())[::step]):
        image = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
        height, width = image.shape
        frames.append(Frame(image, 10**9 + i * 10**8, "left", CameraModel(width, height, matrix)))
    return frames, poses[::step]


def test_a_real_drive_is_followed_frame_by_frame_with_the_published_network(shared_data: Path) -> None:
    network = load_network(
        "coarse_lite", shared_data / "coarse_loftr" / "LoFTR_teacher.pt", torch.device("cpu"), torch.float32
    )
    # Every frame a keyframe: consecutive pairs.
    fe = FrontEnd(network, FrontEndConfig(keyframe=KeyframeConfig(max_matched=1, min_coverage=1.0)))
    frames, poses = kitti(shared_data)
    errors = []
    for i, frame in enumerate(frames[:25]):
        result = fe.process(frame)
        for match in result.matches:
            truth = np.linalg.inv(poses[i - 1]) @ poses[i]
            pose = match.pose
            assert pose.status == PoseStatus.OK
            errors.append(
                max(
                    rotation_error(pose.rotation, truth[:3, :3]),
                    translation_direction_error(pose.translation, truth[:3, 3]),
                )
            )
    assert len(errors) == 24
    assert pose_auc(errors)[0] > 85


def test_a_camera_on_a_still_drone_is_seen_to_stand_still(shared_data: Path) -> None:
    from loftr_ros.recordings import open_source

    network = load_network(
        "coarse_lite", shared_data / "coarse_loftr" / "LoFTR_teacher.pt", torch.device("cpu"), torch.float32
    )
    fe = FrontEnd(network)
    statuses = []
    with open_source(str(shared_data / "euroc_micro")) as source:
        for item in source:
            statuses += [match.pose.status for match in fe.process(item.to_frame()).matches]
    assert len(statuses) > 20
    assert set(statuses) == {PoseStatus.LOW_PARALLAX}
    assert len(fe.buffer) == 1


class FixedSizeMatcher(ShiftMatcher):
    """Takes images of one size only, like an exported network."""

    fixed_size = (160, 120)


def test_images_of_an_exported_networks_shape_are_brought_to_its_size() -> None:
    stream = PanningStream()
    front_end = FrontEnd(FixedSizeMatcher())
    result = [front_end.process(stream.at(x)) for x in (0, 32)][1]
    found = result.matches[0].correspondences
    assert front_end.encode(stream.at(64)).features.size == (160, 120)
    assert len(found) > 20
    assert abs(np.median(found.keyframe_points[:, 0] - found.current_points[:, 0]) - 32) < 1


def test_an_image_of_another_shape_than_the_exported_networks_is_refused_with_the_command_to_export() -> None:
    stream = PanningStream(width=320, height=200)
    with pytest.raises(FrameRefusedError, match=r"image of 320x200.*exported for 160x120.*--width 320 --height 200"):
        FrontEnd(FixedSizeMatcher()).process(stream.at(0))
