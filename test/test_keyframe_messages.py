"""Archived keyframes as messages: nothing relevant is lost, and invalid messages are refused."""

from __future__ import annotations

import array
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import texture

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from loftr_ros.msg import ArchivedKeyframe as KeyframeMessage
from loftr_ros.srv import GetKeyframe
from rclpy.serialization import deserialize_message, serialize_message
from scipy.spatial.transform import Rotation

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.odometry import ChainLink
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName, PlacesError
from loftr_ros.ros.places import keyframe_messages
from loftr_ros.ros.places.keyframe_messages import announcement, fill_answer, from_announcement, from_answer

SPACE, NODE = "compact-0123456789ab", "/ada/loftr_front_end"
WIDTH, HEIGHT, GRID = 320, 240, (30, 40)


def keyframe(**changes: Any) -> ArchivedKeyframe:
    rng = np.random.default_rng(0)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_euler("xyz", (0.1, 2.9, -0.4)).as_matrix(), (1.5, -2.0, 30.25)
    link = pose.copy()
    link[:3, 3] = 0.1, 0.0, 0.7
    descriptor = rng.normal(size=256).astype(np.float32)
    cells = GRID[0] * GRID[1]
    depth = CellDepth(rng.uniform(0.01, 2.0, cells), rng.uniform(1e-8, 1e-2, cells), True)
    depth.inverse[::7], depth.variance[::7] = np.nan, np.inf
    depth.inverse[1] = -0.003  # too far to tell
    made = ArchivedKeyframe(
        name=KeyframeName("ada", 4_000_000_001),
        session=3,
        segment=2,
        stamp_ns=1_700_000_000_123_456_789,
        frame_id="ada/camera",
        size=(WIDTH, HEIGHT),
        image=cv2.imencode(".jpg", texture(HEIGHT, WIDTH))[1].tobytes(),
        camera=CameraModel(WIDTH, HEIGHT, np.array([[300, 0, 160.5], [0, 301, 119], [0, 0, 1.0]]), "plumb_bob", D),
        descriptor=descriptor / np.linalg.norm(descriptor),
        pose=pose,
        link=ChainLink(17, link, np.diag([1e-4, 2e-4, 3e-4, 1e-6, 2e-6, 3e-6]), True),
        depth=depth,
        grid=GRID,
    )
    return replace(made, **changes)


D = np.array([-0.3, 0.1, 0.001, -0.002, 0.01])


def announced(given: ArchivedKeyframe) -> KeyframeMessage:
    """The message after its transport."""
    return deserialize_message(serialize_message(announcement(given, SPACE, NODE)), KeyframeMessage)


def answered(given: ArchivedKeyframe) -> GetKeyframe.Response:
    response = GetKeyframe.Response()
    fill_answer(response, given, SPACE, NODE)
    return deserialize_message(serialize_message(response), GetKeyframe.Response)


def test_an_announcement_carries_all_but_image_and_depth() -> None:
    given = keyframe()
    message = announced(given)
    assert message.node == NODE
    found = from_announcement(message, SPACE)
    for name in ("name", "session", "segment", "stamp_ns", "frame_id", "size"):
        assert getattr(found, name) == getattr(given, name), name
    assert found.image == b"" and found.depth is None
    assert np.abs(found.pose - given.pose).max() < 1e-12
    assert found.link.previous == 17 and found.link.is_metric
    assert np.abs(found.link.pose - given.link.pose).max() < 1e-12
    assert (found.link.covariance == given.link.covariance).all()
    assert (found.camera.matrix == given.camera.matrix).all() and (found.camera.distortion == D).all()
    assert found.camera.distortion_model == "plumb_bob" and (found.camera.width, found.camera.height) == given.size
    assert found.descriptor.dtype == np.float32 and np.linalg.norm(found.descriptor) == pytest.approx(1, abs=1e-6)
    assert found.descriptor @ given.descriptor > 1 - 1e-6


def test_what_is_not_known_stays_unknown() -> None:
    found = from_announcement(announced(keyframe(pose=None, link=None, camera=None)), SPACE)
    assert found.pose is None and found.link is None and found.camera is None
    answer = from_answer(answered(keyframe(depth=None)), SPACE)
    assert answer.depth is None and answer.image


def test_an_answer_brings_the_very_image_and_the_depths_to_half_precision() -> None:
    given = keyframe()
    found = from_answer(answered(given), SPACE)
    assert found.image == given.image and found.grid == GRID and found.depth.is_metric
    known = given.depth.known
    assert (found.depth.known == known).all() and np.isinf(found.depth.variance[~known]).all()
    assert np.abs(found.depth.inverse[known] / given.depth.inverse[known] - 1).max() < 1e-3
    assert np.abs(np.sqrt(found.depth.variance[known] / given.depth.variance[known]) - 1).max() < 1e-2
    assert found.to_frame().size == given.size


def test_depths_beyond_half_precision_stay_finite_and_never_certain() -> None:
    depth = CellDepth(np.full(1200, 1e6), np.full(1200, 1e-20), False)
    found = from_answer(answered(keyframe(depth=depth, link=None)), SPACE).depth
    assert np.isfinite(found.inverse).all() and (found.variance > 0).all() and not found.is_metric


def test_arrays_are_filled_whole() -> None:
    response = GetKeyframe.Response()
    fill_answer(response, keyframe(), SPACE, NODE)
    for values, code in ((response.image, "B"), (response.inverse_depth, "H"), (response.keyframe.descriptor, "H")):
        assert isinstance(values, array.array) and values.typecode == code


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (lambda: keyframe(image=b""), "image_missing"),
        (lambda: keyframe(image=bytes(keyframe_messages.MAX_IMAGE_BYTES + 1)), "keyframe_too_large"),
        (lambda: keyframe(descriptor=np.ones(1025, np.float32) / 1025**0.5), "keyframe_too_large"),
    ],
)
def test_what_does_not_fit_into_a_message_is_refused_before(given: Callable[[], ArchivedKeyframe], kind: str) -> None:
    response = GetKeyframe.Response()
    with pytest.raises(PlacesError) as caught:
        fill_answer(response, given(), SPACE, NODE)
    assert caught.value.kind == kind and response == GetKeyframe.Response()


def test_more_depths_than_a_message_takes_are_left_out() -> None:
    cells = keyframe_messages.MAX_CELLS + 1
    found = from_answer(answered(keyframe(depth=CellDepth(np.ones(cells), np.ones(cells), True))), SPACE)
    assert found.depth is None and found.image


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        setattr(message, last, value)

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        _set("robot", ""),
        _set("node", "no name"),
        _set("node", "/ada//front_end"),
        _set("width", 0),
        _set("descriptor", []),
        _set("descriptor", [0] * 256),
        _set("descriptor", [0x7E00] * 256),  # NaN
        _set("pose.orientation.w", 5.0),
        _set("pose.position.x", float("nan")),
        _set("link.pose.orientation.x", float("inf")),
        _set("link.covariance", [float("nan")] * 36),
        _set("d", [0.1, 0.2]),
        _set("distortion_model", "unheard_of"),
        _set("k", [float("nan")] * 9),
    ],
)
def test_a_message_that_is_no_keyframe_is_refused_with_a_reason(spoil: Callable[[Any], None]) -> None:
    message = announced(keyframe())
    spoil(message)
    with pytest.raises(PlacesError, match=r"is invalid: .") as caught:
        from_announcement(message, SPACE)
    assert caught.value.kind == "keyframe_invalid"


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (_set("grid_rows", 7), "keyframe_invalid"),
        (_set("inverse_depth_std", []), "keyframe_invalid"),
        (_set("image", b"\xff\xd8 no image"), "image_damaged"),
        (_set("image", []), "image_missing"),
        (_set("keyframe.width", 99), "image_damaged"),
        (_set("keyframe.robot", ""), "keyframe_invalid"),
    ],
)
def test_an_answer_that_is_no_keyframe_is_refused(spoil: Callable[[Any], None], kind: str) -> None:
    response = answered(keyframe())
    spoil(response)
    with pytest.raises(PlacesError) as caught:
        from_answer(response, SPACE)
    assert caught.value.kind == kind


def test_a_descriptor_of_another_space_is_refused() -> None:
    with pytest.raises(PlacesError, match="same network") as caught:
        from_announcement(announced(keyframe()), "loftr-fedcba987654")
    assert caught.value.kind == "keyframe_space"
