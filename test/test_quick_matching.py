"""Tracked frames are matched without attention, unless that leaves a doubt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from fakes import FineShiftMatcher, PanningStream
from pretended_device import PretendedDevice
from rendered_pair import CAMERA, POSES, errors, views
from torch import Tensor

from loftr_ros.frontend.config import FrontEndConfig, KeyframeConfig, TrackingConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.quick import FrameMatch, QuickMatching
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.coarse import Candidates
from loftr_ros.matcher.compact.network import spread
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.matcher.runtime.gpu import GpuMatcher
from loftr_ros.weights import find_weights

# Frames after which the trajectory of these tests has its unit of length, and the motion in it is known.
UNIT = 8


class QuickShiftMatcher(FineShiftMatcher):
    """A fake that can match quickly; while `fails`, such a match finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.quick: list[tuple[int, Tensor | None]] = []

    def match_quickly(
        self,
        keyframes: Sequence[ImageFeatures],
        current: ImageFeatures,
        max_matches: int,
        preferred: Sequence[Tensor | None],
    ) -> list[Matches]:
        self.quick += [(max_matches, cells) for cells in preferred]
        found = [self._match(keyframe, current) for keyframe in keyframes]
        step = max(len(found[0]) if self.fails else -(-len(found[0]) // max_matches), 1)
        return [Matches(*(getattr(each, name)[::step] for name in vars(each))) for each in found]


def front_end(matcher: FineShiftMatcher, **tracking: int | bool) -> FrontEnd:
    keyframe = KeyframeConfig(min_coverage=0.0, min_explained=0.0, min_explained_mono=0.0, max_parallax=1.0)
    tracking = {"flow_period": 0, **tracking}
    return FrontEnd(matcher, FrontEndConfig(tracking=TrackingConfig(**tracking), keyframe=keyframe))  # type: ignore[arg-type]


def run(fe: FrontEnd, frames: int, stream: PanningStream | None = None, start: int = 0) -> list[FrameMatch]:
    stream = stream or PanningStream()
    results = [fe.process(stream.at(1.5 * (start + number))) for number in range(frames)]
    assert all(result.is_located for result in results)
    return [result.frame_match for result in results]


def test_a_tracked_frame_is_matched_quickly_and_in_full_at_intervals() -> None:
    matcher = QuickShiftMatcher()
    fe, stream = front_end(matcher, full_period=3), PanningStream()
    assert run(fe, UNIT, stream)[:3] == [FrameMatch.UNEXPECTED, FrameMatch.UNEXPECTED, FrameMatch.QUICK]
    matcher.batches.clear()
    how = run(fe, 8, stream, start=UNIT)
    first = how.index(FrameMatch.PERIOD) + 1
    assert first <= 4 and how[first : first + 4] == [*[FrameMatch.QUICK] * 3, FrameMatch.PERIOD]
    assert len(matcher.batches) == how.count(FrameMatch.PERIOD), "matched twice, or not at all"


def test_cells_of_the_frame_before_are_preferred_and_the_number_is_limited() -> None:
    matcher = QuickShiftMatcher()
    run(front_end(matcher, max_matches=300), 5)
    assert all(number == 300 for number, _ in matcher.quick)
    preferred = matcher.quick[-1][1]
    assert preferred is not None and 100 < int(preferred.sum()) <= 300


def test_a_quick_match_that_does_not_suffice_costs_no_frame_and_is_tried_less_often() -> None:
    matcher, stream = QuickShiftMatcher(), PanningStream()
    fe = front_end(matcher)
    run(fe, UNIT, stream)
    matcher.fails, before = True, len(matcher.quick)
    assert FrameMatch.QUICK not in run(fe, 16, stream, start=UNIT)
    assert len(matcher.quick) - before <= 4, "each of them was tried quickly first"
    matcher.fails = False
    assert FrameMatch.QUICK in run(fe, 9, stream, start=UNIT + 16)


@pytest.mark.parametrize("matcher", [QuickShiftMatcher(), FineShiftMatcher()], ids=["off", "a network that cannot"])
def test_without_it_every_frame_is_matched_in_full(matcher: FineShiftMatcher) -> None:
    how = run(front_end(matcher, quick=not isinstance(matcher, QuickShiftMatcher)), 5)
    assert set(how[1:]) == {FrameMatch.UNSUPPORTED}


def test_a_frame_that_becomes_a_keyframe_is_matched_in_full() -> None:
    matcher, stream = QuickShiftMatcher(), PanningStream()
    keyframe = KeyframeConfig(min_coverage=0.95, max_parallax=1.0)
    fe = FrontEnd(matcher, FrontEndConfig(tracking=TrackingConfig(flow_period=0), keyframe=keyframe))
    results = [fe.process(stream.at(2.0 * number)) for number in range(45)]
    made = [r for r in results[1:] if any(event.added for event in r.events)]
    assert len(made) >= 2 and FrameMatch.QUICK not in [r.frame_match for r in made]
    assert FrameMatch.KEYFRAME in [r.frame_match for r in made]
    assert FrameMatch.QUICK in [r.frame_match for r in results]


def test_the_setting_changes_while_frames_come() -> None:
    matcher, stream = QuickShiftMatcher(), PanningStream()
    fe = front_end(matcher)
    assert run(fe, 4, stream)[-1] == FrameMatch.QUICK
    fe.reconfigure(FrontEndConfig(tracking=TrackingConfig(quick=False, flow_period=0), keyframe=fe.config.keyframe))
    assert run(fe, 2, stream, start=4) == [FrameMatch.UNSUPPORTED] * 2


def test_a_camera_whose_motion_is_unknown_is_matched_in_full() -> None:
    assert QuickMatching(TrackingConfig(), is_supported=True).why_not(motion=None) == FrameMatch.UNEXPECTED


def test_a_fast_camera_is_matched_in_full() -> None:
    stream, fe = PanningStream(), front_end(QuickShiftMatcher())
    results = [fe.process(stream.at(30.0 * number)) for number in range(6)]
    assert {result.frame_match for result in results[2:]} == {FrameMatch.MOTION}


def test_while_keyframes_follow_each_other_quickly_frames_are_matched_in_full() -> None:
    choice = QuickMatching(TrackingConfig(), is_supported=True)
    for is_keyframe in (True, False, True):
        choice.record(FrameMatch.UNEXPECTED, was_tried=False, is_keyframe=is_keyframe)
    for _ in range(4):
        assert choice.why_not(motion=0.01) == FrameMatch.MOTION
        choice.record(FrameMatch.MOTION, was_tried=False, is_keyframe=False)
    assert choice.why_not(motion=0.01) == FrameMatch.QUICK


def test_few_matches_are_spread_one_to_a_region_before_any_has_two() -> None:
    # Four cells of each of six regions, more confident from region to region.
    cell = torch.arange(24)
    row, column = cell // 6, cell % 6
    region = row // 2 * 3 + column // 2
    cells = Candidates(cell, cell, 0.3 + 0.1 * region + 0.001 * cell)
    kept = spread(cells, (4, 6), 6, None)
    assert sorted((kept.row // 6 // 2 * 3 + kept.row % 6 // 2).tolist()) == list(range(6))
    assert kept.row.tolist() == sorted(kept.row.tolist())
    assert len(spread(cells, (4, 6), 9, None).row) == 9
    preferred = torch.zeros(24, dtype=torch.bool)
    preferred[[0, 3, 16]] = True
    assert {0, 3, 16} <= set(spread(cells, (4, 6), 6, preferred).row.tolist())
    assert spread(cells, (4, 6), 24, preferred) == cells


def test_without_attention_a_close_view_is_matched_as_precisely() -> None:
    matcher = open_matcher(matcher_spec(MatcherConfig(device="cpu", backend="torch"), MatchingConfig()))
    pairs = PairMatcher(matcher)
    seen = [pairs.encode(Frame(views()[k].image, 1 + k, "cam", CAMERA)) for k in (0, 1)]
    features = [each.features for each in seen]
    quick = matcher.match_quickly(features[:1], features[1], 400, [None])[0]  # type: ignore[attr-defined]
    full = matcher.match(features[:1], features[1])[0]
    off = [np.median(errors(each.points0.numpy(), each.points1.numpy(), 1)) for each in (quick, full)]
    assert len(POSES) > 1 and len(quick) == 400 and off[0] < max(1.3 * off[1], 0.5), off


def test_on_a_gpu_every_frame_is_matched_in_full_with_one_wait() -> None:
    network = load_network("compact", find_weights("compact", ""), torch.device("cpu"), torch.float32)
    device = PretendedDevice(torch.device("cpu"))
    fe = FrontEnd(GpuMatcher(network, device), FrontEndConfig())
    fe.process(Frame(views()[0].image, 1, "cam", CAMERA))
    for number in (1, 2, 3):
        device.fetched = 0
        result = fe.process(Frame(views()[number].image, number + 1, "cam", CAMERA))
        assert result.frame_match == FrameMatch.UNSUPPORTED and result.is_located
        assert len(result.matches[0].correspondences) > 300 and device.fetched == 1
