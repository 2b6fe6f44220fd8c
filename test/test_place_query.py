"""Queries to an archive of keyframes: rendered rooms, the package's network, and known poses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import texture
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import DepthImage, Frame
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.geometry.two_view import PoseStatus, ScaleReason
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import LoopConfig
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.places.detector import LoopDetector
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName, PlacesError
from loftr_ros.places.query import PlaceQuery, take_over
from loftr_ros.places.verification import Verifier
from loftr_ros.places.view import Observer
from loftr_ros.settings import with_values
from loftr_ros.worlds.scene import Rendering, Scene, default_camera, trajectory

Array = NDArray[np.float64]

SCENE = 3
CAMERA = default_camera(320, 240)
# Half a second between the first of them, which overlap; the last ones are seconds later, at other walls.
POSES = trajectory(301, seed=SCENE)[[0, 15, 30, 45, 60, 180, 300]]
ADA = [KeyframeName("ada", number) for number in range(1, len(POSES) + 1)]


@cache
def rendered(pose: bytes) -> Rendering:
    return Scene(SCENE).render(CAMERA, np.frombuffer(pose).reshape(4, 4))


def frame(pose: Array, number: int = 0, depth: bool = False) -> Frame:
    """The view from a (4, 4) T_world_camera."""
    seen = rendered(pose.tobytes())
    distance = DepthImage(seen.depth, 1.0) if depth else None
    return Frame(seen.image, (1 + number) * 500_000_000, "cam", CAMERA, None, distance)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """An archive of a walk with a depth camera, each image a keyframe, and its query object."""
    spec = matcher_spec(MatcherConfig(backend="torch", threads=1), MatchingConfig())
    config = with_values(FrontEndConfig(), {"mode": "rgbd"})
    front_end = FrontEnd(open_matcher(spec), config)
    describe = PlaceDescriptor.of(front_end.matcher)
    observer = Observer(describe, "ada", 1)
    with Archive.open(str(tmp_path_factory.mktemp("ada")), describe.space, describe.dimension) as archive:
        for number, pose in enumerate(POSES):
            front_end.force_keyframe()
            _, finished = observer.observe(front_end.process(frame(pose, number, depth=True)))
            if finished is not None:
                archive.add(finished.archived(90))
        last = observer.take()
        assert last is not None
        archive.add(last.archived(90))
        assert archive.names() == ADA
        detector = LoopDetector(archive, Verifier(PairMatcher(front_end.matcher, config)), LoopConfig())
        yield SimpleNamespace(archive=archive, query=PlaceQuery(detector, describe), describe=describe)


def moved(pose: Array) -> Array:
    """Slightly shifted, and rotated by 4 degrees."""
    turn = np.radians(4)
    step = np.eye(4)
    step[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    step[:3, 3] = [0.1, -0.05, 0.08]
    return pose @ step


def angle(one: Array, other: Array) -> float:
    """Degrees between two poses' rotations."""
    return float(np.degrees(np.arccos(np.clip((np.trace(one[:3, :3].T @ other[:3, :3]) - 1) / 2, -1, 1))))


def test_an_image_is_told_where_in_the_map_it_was_taken(room: SimpleNamespace) -> None:
    asked = moved(POSES[3])
    best, *others = room.query.rank(frame(asked), 4)
    assert best.is_verified and best.keyframe.name == ADA[3]
    assert best.map_pose is not None
    true = np.linalg.inv(POSES[0]) @ asked
    assert np.linalg.norm(best.map_pose[:3, 3] - true[:3, 3]) < 0.05
    assert angle(best.map_pose, true) < 1
    assert len(others) == 3


def test_verified_places_come_first_by_score_and_the_others_by_similarity(room: SimpleNamespace) -> None:
    places = room.query.rank(frame(moved(POSES[2])), len(ADA))
    assert sorted(place.keyframe.name for place in places) == ADA
    verified = [place for place in places if place.is_verified]
    others = places[len(verified) :]
    assert verified and others and not any(place.is_verified for place in others)
    scores = [place.found.score for place in verified]
    assert scores == sorted(scores, reverse=True)
    similarities = [place.similarity for place in others]
    assert similarities == sorted(similarities, reverse=True)
    assert all(place.map_pose is None for place in others)


def test_as_many_places_are_compared_as_loop_candidates_says_unless_another_number_is_asked_for(
    room: SimpleNamespace,
) -> None:
    asked = frame(POSES[1])
    assert len(room.query.rank(asked)) == LoopConfig().candidates < len(ADA)
    assert len(room.query.rank(asked, 2)) == 2
    assert len(room.query.rank(asked, 10**9)) == len(ADA)


def test_an_image_of_elsewhere_is_ranked_and_nowhere_verified(room: SimpleNamespace) -> None:
    places = room.query.rank(Frame(texture(CAMERA.height, CAMERA.width), 1, "cam", CAMERA), 3)
    assert len(places) == 3 and not any(place.is_verified or place.map_pose is not None for place in places)


def test_without_calibration_the_place_is_found_and_no_pose(room: SimpleNamespace) -> None:
    best = room.query.rank(replace(frame(moved(POSES[3])), camera=None), 2)[0]
    assert best.is_verified and best.keyframe.name == ADA[3]
    assert best.found.pose.status == PoseStatus.NO_CALIBRATION and best.map_pose is None


def test_a_place_whose_pose_in_the_map_is_not_known_or_not_in_metres_is_found_without_one(
    room: SimpleNamespace,
) -> None:
    best = room.query.rank(frame(moved(POSES[3])), 1)[0]
    lost = replace(best.keyframe, pose=None)
    own_unit = replace(best.keyframe, link=replace(best.keyframe.link, is_metric=False))
    direction = replace(best.found, pose=replace(best.found.pose, scale_known=False))
    for worse in (
        replace(best, keyframe=lost),
        replace(best, keyframe=own_unit),
        replace(best, found=direction),
        replace(best, is_verified=False),
    ):
        assert worse.map_pose is None
    assert best.map_pose is not None


def test_keyframes_without_a_readable_image_are_ranked_and_not_verified(
    room: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = room.archive.get
    images = {ADA[3]: b"", ADA[2]: b"no image"}

    def worse(name: KeyframeName) -> object:
        found = get(name)
        return replace(found, image=images.get(name, found.image))

    monkeypatch.setattr(room.archive, "get", worse)
    # No cached encodings.
    monkeypatch.setattr(room.query._detector.verifier, "_archived", type(room.query._detector.verifier._archived)())
    places = {place.keyframe.name: place for place in room.query.rank(frame(moved(POSES[3])), len(ADA))}
    assert sorted(places) == ADA
    for name in images:
        assert places[name].found is None and not places[name].is_verified
    with pytest.raises(PlacesError, match="image of keyframe ada/4"):
        room.query.match(ADA[3], ADA[4])


def test_two_keyframes_are_matched_and_the_pose_leads_from_the_second_to_the_first(room: SimpleNamespace) -> None:
    matched = room.query.match(ADA[3], ADA[4])
    assert matched.found.keyframe.name == ADA[3] and matched.other.stamp_ns == 5 * 500_000_000
    pose = matched.found.pose
    true = np.linalg.inv(POSES[3]) @ POSES[4]
    assert pose.scale_known and np.linalg.norm(pose.translation - true[:3, 3]) < 0.05
    assert angle(pose.matrix, true) < 1
    assert len(matched.found.correspondences) > 200


def test_a_match_without_a_length_says_why(room: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = room.archive.get(ADA[3])
    known = np.flatnonzero(kept.depth.known)
    rng = np.random.default_rng(0)

    def with_depth(inverse: Array) -> ArchivedKeyframe:
        return replace(kept, depth=CellDepth(inverse, np.where(np.isfinite(inverse), 1e-6, np.inf), True))

    few = np.full(len(kept.depth.inverse), np.nan)
    few[known[:5]] = kept.depth.inverse[known[:5]]
    cases = [
        (kept, {ScaleReason.KNOWN}),
        (replace(kept, camera=None), {ScaleReason.NO_POSE}),
        (replace(kept, depth=None), {ScaleReason.NO_DEPTH}),
        (replace(kept, depth=None, link=replace(kept.link, is_metric=False)), {ScaleReason.OWN_UNIT}),
        (
            replace(kept, depth=replace(kept.depth, is_metric=False), link=replace(kept.link, is_metric=False)),
            {ScaleReason.OWN_UNIT},
        ),
        (replace(kept, grid=(1, len(kept.depth.inverse))), {ScaleReason.OTHER_GRID}),
        (with_depth(few), {ScaleReason.FEW_DEPTHS}),
        # No camera's: nothing agrees with it, or so little that two views know better.
        (
            with_depth(rng.uniform(0.1, 2.0, len(few))),
            {ScaleReason.DEPTHS_DISAGREE, ScaleReason.VIEWS_DISAGREE},
        ),
    ]
    get = room.archive.get
    for archived, reasons in cases:
        monkeypatch.setattr(room.archive, "get", lambda name, one=archived: one if name == ADA[3] else get(name))
        monkeypatch.setattr(room.query._detector.verifier, "_archived", type(room.query._detector.verifier._archived)())
        assert room.query.match(ADA[3], ADA[4]).found.pose.scale_reason in reasons


def test_keyframes_that_are_not_archived_are_named_with_what_may_have_become_of_them(room: SimpleNamespace) -> None:
    for names in ((ADA[0], KeyframeName("ada", 99)), (KeyframeName("ada", 99), ADA[0])):
        with pytest.raises(PlacesError, match=r"not in the archive: keyframe ada/99\. A keyframe is archived when"):
            room.query.match(*names)
    with pytest.raises(PlacesError, match="ada/99 and bob/1") as caught:
        room.query.match(KeyframeName("ada", 99), KeyframeName("bob", 1))
    assert caught.value.kind == "keyframe_missing"


def test_an_archive_whose_keyframes_the_robot_would_number_again_is_not_taken_over(
    room: SimpleNamespace, tmp_path: Path
) -> None:
    kind = room.describe.space, room.describe.dimension
    saved = str(tmp_path / "saved")
    assert room.archive.save(saved) == len(ADA)
    # Its own copy adds nothing, though it is of the present session.
    assert take_over(room.archive, saved, "ada", 1, *kind) == 0
    with Archive.open(str(tmp_path / "new"), *kind) as new:
        with pytest.raises(PlacesError, match="another robot_name") as caught:
            take_over(new, saved, "ada", 1, *kind)
        assert caught.value.kind == "archive_conflict" and len(new) == 0
        # They do not endanger another robot.
        assert take_over(new, saved, "bob", 1, *kind) == len(ADA) == len(new)
