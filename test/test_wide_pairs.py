"""Matching of single pairs of distant views: other scales, and doubtful matches that their neighbours confirm."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from fakes import PanningStream, texture
from numpy.typing import NDArray
from pretended_device import PretendedDevice

from loftr_ros.cli.options import MIN_MATCHES
from loftr_ros.frontend import wide_pairs
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.results import Correspondences
from loftr_ros.frontend.wide_pairs import WideConfig, agreement
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.interface import Matches, lenient_matching
from loftr_ros.matcher.runtime.gpu import GpuMatcher
from loftr_ros.weights import find_weights

CPU = torch.device("cpu")
SIZE = 320, 240
NEVER = WideConfig(min_matches=0)
# Image 1 -> image 0, so that neither image shows pixels beyond the texture.
NEARER = np.array([[0.4, 0, 90], [0, 0.4, 70], [0, 0, 1.0]])
ON_ITS_SIDE = np.array([[0, 1.0, 40], [-1.0, 0, 239], [0, 0, 1.0]])
UPSIDE_DOWN = np.array([[-1.0, 0, 319], [0, -1.0, 239], [0, 0, 1.0]])
TURNED = [pytest.param(turn, marks=pytest.mark.long) for turn in (np.linalg.inv(ON_ITS_SIDE), UPSIDE_DOWN)]
FROM_THE_SIDE = np.array([[2.2, 0, -190], [0, 1, 0], [0, 0, 1.0]])


@pytest.fixture(scope="module")
def network() -> Compact:
    """The one in the package."""
    found = load_network("compact", find_weights("compact", ""), CPU, torch.float32)
    assert isinstance(found, Compact)
    return found


@pytest.fixture(scope="module")
def wall() -> NDArray[np.uint8]:
    return texture(3 * SIZE[1], 3 * SIZE[0], 5)


def frames(wall: NDArray[np.uint8], to_first: NDArray[np.float64]) -> tuple[Frame, Frame]:
    """Two views of a wall; `to_first` maps pixels of the second to those of the first."""
    place = np.array([[1, 0, SIZE[0]], [0, 1, SIZE[1]], [0, 0, 1.0]])
    large = cv2.resize(wall, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    views = []
    for number, view in enumerate((place, place @ to_first)):
        # Four times as fine, then averaged: no aliasing.
        fine = np.diag([4.0, 4, 1]) @ view @ np.diag([0.25, 0.25, 1])
        image = cv2.warpPerspective(
            large, fine, (4 * SIZE[0], 4 * SIZE[1]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        views.append(Frame(np.asarray(cv2.resize(image, SIZE, interpolation=cv2.INTER_AREA), np.uint8), number, "c"))
    return views[0], views[1]


def errors(found: Correspondences, to_first: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) pixels of image 1."""
    there = cv2.perspectiveTransform(found.keyframe_points[:, None].astype(np.float64), np.linalg.inv(to_first))[:, 0]
    return np.asarray(np.linalg.norm(there - found.current_points, axis=1))


@pytest.mark.parametrize("to_first", [NEARER, np.linalg.inv(NEARER), FROM_THE_SIDE, ON_ITS_SIDE, *TURNED])
def test_views_of_other_scale_turned_or_from_the_side_have_more_right_matches(
    network: Compact, wall: NDArray[np.uint8], to_first: NDArray[np.float64]
) -> None:
    pair = frames(wall, to_first)
    alone, found = (PairMatcher(network, wide=wide).match_pair(*pair) for wide in (NEVER, None))
    right, before = (int((errors(each, to_first) < 8).sum()) for each in (found, alone))
    assert right > 50 and right > 2 * before
    assert right > 0.8 * len(found)
    assert len(np.unique(found.track_id)) == len(found) and (np.diff(found.track_id.astype(int)) > 0).all()
    cells = PairMatcher(network).encode(pair[0]).cell_points
    assert np.array_equal(found.keyframe_points, cells[found.track_id])
    assert np.isfinite(found.std).all()


def test_enough_matches_or_zero_leave_a_pair_as_the_stream_has_it(network: Compact, wall: NDArray[np.uint8]) -> None:
    pair = frames(wall, np.array([[1, 0, 24], [0, 1, 16], [0, 0, 1.0]]))
    pairs = PairMatcher(network, wide=WideConfig(min_matches=100))
    keyframe, current = (pairs.encode(frame) for frame in pair)
    plain = pairs.match([keyframe], current)[0]
    assert len(plain) > 100
    for each in (pairs, PairMatcher(network, wide=NEVER)):
        assert np.array_equal(each.match_single(keyframe, current).current_points, plain.current_points)


def test_no_scale_brings_a_match_on_an_ignored_pixel(network: Compact, wall: NDArray[np.uint8]) -> None:
    first, second = frames(wall, NEARER)
    masks = np.ones((2, SIZE[1], SIZE[0]), bool)
    masks[0, :, 130:] = False
    masks[1, 100:, :] = False
    found = PairMatcher(network).match_pair(
        Frame(first.image, 0, "c", usable=masks[0]), Frame(second.image, 1, "c", usable=masks[1])
    )
    assert len(found)
    for mask, points in zip(masks, (found.keyframe_points, found.current_points), strict=True):
        column, row = points.round().astype(int).T
        assert mask[row, column].all()


ROTATED = np.array([[0.6, 0.8], [-0.8, 0.6]]) * 1.5
SHEARED = np.array([[0.7, 0.5], [0.0, 1.4]])


@pytest.mark.parametrize("motion", [ROTATED, SHEARED])
def test_matches_that_move_as_their_neighbours_are_confirmed_and_scattered_ones_are_not(
    motion: NDArray[np.float64],
) -> None:
    rows, columns = 20, 30
    cell = torch.arange(rows * columns)
    place = torch.stack([cell % columns, cell // columns], dim=1).float()
    random = np.random.default_rng(0)
    scattered = random.random(len(cell)) < 0.6
    moved = np.where(scattered[:, None], 60 * random.random((len(cell), 2)), place.numpy() @ motion)
    nothing = torch.zeros(len(cell))
    matches = Matches(cell, 8 * place, torch.from_numpy(8 * moved).float(), nothing, nothing)
    confirming, area = agreement(matches, (rows, columns), 8)
    kept = confirming >= 3
    assert kept[~scattered].mean() > 0.95
    assert kept[scattered].mean() < 0.05
    assert np.median(area[kept]) == pytest.approx(abs(np.linalg.det(motion)), rel=0.05)


def test_a_match_alone_or_none_is_not_confirmed() -> None:
    one, nothing = torch.zeros(1), torch.zeros(0)
    assert not agreement(Matches(one.long(), torch.zeros(1, 2), torch.zeros(1, 2), one, one), (8, 8), 8)[0].any()
    none = Matches(nothing.long(), torch.zeros(0, 2), torch.zeros(0, 2), nothing, nothing)
    assert [len(each) for each in agreement(none, (8, 8), 8)] == [0, 0]


def test_a_pair_whose_matches_nothing_confirms_keeps_those_of_the_stream(
    network: Compact, wall: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_pairs, "agreement", lambda matches, *_: np.zeros((2, len(matches)), np.int64))
    pairs = PairMatcher(network)
    keyframe, current = (pairs.encode(frame) for frame in frames(wall, NEARER))
    plain = pairs.match([keyframe], current)[0]
    assert np.array_equal(pairs.match_single(keyframe, current).current_points, plain.current_points)


def test_the_stream_is_never_matched_leniently(network: Compact, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Matches:
        raise AssertionError("the stream was matched leniently")

    monkeypatch.setattr(network, "match_leniently", fail)
    stream, front_end = PanningStream(), FrontEnd(network, FrontEndConfig())
    assert [front_end.process(stream.at(x)) for x in (0.0, 200.0)]
    with pytest.raises(AssertionError):
        PairMatcher(network).match_pair(stream.at(0.0), stream.at(250.0))


def test_a_gpus_matcher_finds_the_same_doubtful_matches(network: Compact, wall: NDArray[np.uint8]) -> None:
    found = []
    for matcher in (network, GpuMatcher(network, PretendedDevice(CPU))):
        features = [matcher.encode(torch.from_numpy(frame.image)) for frame in frames(wall, NEARER)]
        lenient = lenient_matching(matcher)
        assert lenient is not None
        found.append(lenient(*features, 0.02))
    assert len(found[0]) > len(network.match([features[0]], features[1])[0])
    assert torch.equal(found[0].cell, found[1].cell)
    assert torch.allclose(found[0].points1, found[1].points1, atol=0.05)


def _combination(agreement: int, reduced: float, larger: float, confident: int = 400) -> wide_pairs._Found:
    nothing = np.zeros(0, np.float32)
    return wide_pairs._Found(nothing, nothing, nothing, nothing, confident, agreement, reduced, larger)


def test_a_scale_that_its_matches_bear_out_outdoes_a_confused_one_with_four_times_the_cells() -> None:
    confused = _combination(40_000, 1.0, 1.0)
    for reduced, larger in ((4.0, 0.4), (0.25, 2.5)):  # either image at half its size
        assert _combination(15_000, reduced, larger).claim(confused) == 60_000
        assert _combination(9_000, reduced, larger).claim(confused) == 9_000  # not even without the reduction
        assert _combination(15_000, reduced, larger, confident=50).claim(confused) == 15_000
        assert _combination(15_000, reduced, 1.1).claim(confused) == 15_000  # matches that see no other scale
        assert _combination(15_000, reduced, larger).claim(_combination(40_000, 1.0, larger)) == 15_000
    assert _combination(15_000, 1.0, 2.0).claim(confused) == 15_000


def test_commands_and_functions_take_more_effort_below_the_same_number_of_matches() -> None:
    assert WideConfig().min_matches == MIN_MATCHES
