"""Converts archived keyframes to the messages that robots exchange, and back. Arrays are filled in one copy."""

from __future__ import annotations

import array
import re
from dataclasses import replace
from typing import Any

import numpy as np
from geometry_msgs.msg import Pose
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.odometry import ChainLink
from loftr_ros.geometry.camera import CameraError, CameraModel
from loftr_ros.geometry.se3 import from_quaternion
from loftr_ros.msg import ArchivedKeyframe as KeyframeMessage
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName, PlacesError
from loftr_ros.ros.output.messages import (
    to_array,
    to_nanoseconds,
    to_pose,
    to_pose_with_covariance,
    to_time,
    unknown_pose,
)
from loftr_ros.srv import GetKeyframe

# Limits stated in the message definitions.
MAX_IMAGE_BYTES = 4 * 1024 * 1024
MAX_CELLS = 262144
MAX_DESCRIPTOR = 1024
MAX_ROBOT_NAME = 128
_MAX_NAME = 256  # of a node, a frame, and a distortion model
_FARTHEST = 1e12  # upper limit of a pose's numbers

_NODE_NAME = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")
_HALF = np.finfo(np.float16)
# Tolerance for the length of a rotation's quaternion.
_UNIT = 0.01


def announcement(keyframe: ArchivedKeyframe, space: str, node: str) -> KeyframeMessage:
    """The announcement of a keyframe to all robots.

    Args:
        keyframe: one of this robot's.
        space: of its descriptor.
        node: fully qualified name of the node that has its image.

    Raises:
        PlacesError: it does not fit into a message.
    """
    if len(keyframe.descriptor) > MAX_DESCRIPTOR:
        raise PlacesError(
            "keyframe_too_large",
            f"the descriptor of keyframe {keyframe.name} has {len(keyframe.descriptor)} numbers; the limit of a "
            f"message is {MAX_DESCRIPTOR}",
        )
    link, camera = keyframe.link, keyframe.camera
    message = KeyframeMessage(
        robot=keyframe.name.robot,
        keyframe_id=keyframe.name.id,
        session=keyframe.session,
        segment=keyframe.segment,
        node=node,
        descriptor_space=space,
        descriptor=_to_bits(keyframe.descriptor),
        width=keyframe.size[0],
        height=keyframe.size[1],
        is_metric=_is_metric(keyframe),
        link=unknown_pose(),
    )
    message.header.stamp = to_time(keyframe.stamp_ns)
    message.header.frame_id = keyframe.frame_id
    if camera is not None:
        message.distortion_model = camera.distortion_model
        message.d = to_array(camera.distortion)
        message.k = camera.matrix.reshape(9)
    if keyframe.pose is not None:
        message.pose_known, message.pose = True, to_pose(keyframe.pose)
    if link is not None:
        message.link_known, message.link_previous = True, link.previous
        message.link = to_pose_with_covariance(link.pose, link.covariance)
    return message


def from_announcement(message: KeyframeMessage, space: str) -> ArchivedKeyframe:
    """The keyframe of an announcement, without image and depth.

    Raises:
        PlacesError: the message has no valid keyframe (`keyframe_invalid`), or one of another descriptor space
            (`keyframe_space`).
    """
    check_names(message)
    name = KeyframeName(message.robot, int(message.keyframe_id))
    if message.descriptor_space != space:
        raise PlacesError(
            "keyframe_space",
            f"keyframe {name} has a descriptor of '{message.descriptor_space}', and this robot's are of '{space}': "
            "give both robots the same network and weights",
        )
    if not message.width or not message.height:
        raise _invalid(name, f"its image is {message.width}x{message.height} px")
    return ArchivedKeyframe(
        name=name,
        session=int(message.session),
        segment=int(message.segment),
        stamp_ns=to_nanoseconds(message.header.stamp),
        frame_id=message.header.frame_id,
        size=(int(message.width), int(message.height)),
        image=b"",
        camera=_camera(message, name),
        descriptor=_descriptor(message, name),
        pose=_matrix(message.pose, name) if message.pose_known else None,
        link=_link(message, name),
    )


def check_names(message: KeyframeMessage) -> None:
    """Check that an announcement's names are valid and short: they are remembered, logged and used as file names.

    Raises:
        PlacesError: they are not (`keyframe_invalid`).
    """
    robot, node = message.robot, message.node
    name = KeyframeName(ascii(robot[:20]) if len(robot) > 20 else robot, int(message.keyframe_id))
    if not robot:
        raise _invalid(name, "it names no robot")
    if len(robot) > MAX_ROBOT_NAME or not robot.isprintable():
        why = f"its robot's name has {len(robot)} characters"
        raise _invalid(KeyframeName(ascii(robot[:20]), name.id), f"{why}; expected {MAX_ROBOT_NAME} printable ones")
    if len(node) > _MAX_NAME or not _NODE_NAME.fullmatch(node):
        raise _invalid(name, f"{node[:40]!a} is not a node's name")
    for text in (message.header.frame_id, message.distortion_model):
        if len(text) > _MAX_NAME:
            raise _invalid(name, f"one of its names has {len(text)} characters; expected {_MAX_NAME} at most")


def fill_answer(response: GetKeyframe.Response, keyframe: ArchivedKeyframe, space: str, node: str) -> None:
    """Fill the response of `~/get_keyframe` with a keyframe, its image and depths.

    Args:
        response: to fill; unchanged if this raises.
        keyframe: with its image.
        space: of its descriptor.
        node: fully qualified name of this node.

    Raises:
        PlacesError: it has no image, or does not fit into a message.
    """
    name, depth = keyframe.name, keyframe.depth
    if not keyframe.image:
        raise PlacesError("image_missing", f"keyframe {name} has no image here")
    if len(keyframe.image) > MAX_IMAGE_BYTES:
        raise PlacesError(
            "keyframe_too_large",
            f"the image of keyframe {name} has {len(keyframe.image)} bytes; the limit of a message is "
            f"{MAX_IMAGE_BYTES}. Lower archive.jpeg_quality, or the camera's resolution",
        )
    response.keyframe = announcement(keyframe, space, node)
    response.image = to_array(np.frombuffer(keyframe.image, np.uint8))
    if depth is not None and len(depth.inverse) <= MAX_CELLS:
        response.grid_rows, response.grid_columns = keyframe.grid
        response.inverse_depth = _to_bits(depth.inverse)
        # Never zero, because an exact value would outweigh everything else.
        std = np.maximum(np.sqrt(depth.variance), float(_HALF.smallest_subnormal))
        response.inverse_depth_std = _to_bits(np.where(depth.known, std, np.nan))
    response.success = True


def from_answer(response: GetKeyframe.Response, space: str) -> ArchivedKeyframe:
    """The keyframe of a successful response of `~/get_keyframe`, with image and depths.

    Raises:
        PlacesError: as `from_announcement`, or the image cannot be read (`image_missing`, `image_damaged`).
    """
    announced = from_announcement(response.keyframe, space)
    if len(response.image) > MAX_IMAGE_BYTES or int(response.grid_rows) * int(response.grid_columns) > MAX_CELLS:
        raise _invalid(announced.name, f"its image has {len(response.image)} bytes, or it has too many cells")
    rows, columns = int(response.grid_rows), int(response.grid_columns)
    sizes = {len(response.inverse_depth), len(response.inverse_depth_std)}
    if sizes != {rows * columns}:
        raise _invalid(announced.name, f"{rows}x{columns} cells came with {sorted(sizes)} depths")
    depth = None
    if rows * columns:
        inverse, std = _from_bits(response.inverse_depth), _from_bits(response.inverse_depth_std)
        known = np.isfinite(inverse) & (std > 0)
        depth = CellDepth(
            np.where(known, inverse, np.nan),
            np.where(known, std**2, np.inf),
            bool(response.keyframe.is_metric),
        )
    keyframe = replace(announced, image=bytes(response.image), depth=depth, grid=(rows, columns))
    keyframe.to_frame()  # the archive must not store unreadable images
    return keyframe


def _is_metric(keyframe: ArchivedKeyframe) -> bool:
    parts = (keyframe.link, keyframe.depth)
    return any(each is not None and each.is_metric for each in parts)


def _to_bits(values: NDArray[np.floating]) -> array.array[int]:
    """Bits of the nearest half-precision numbers; larger numbers become the largest one."""
    half = np.clip(values, -float(_HALF.max), float(_HALF.max)).astype(np.float16)
    bits = array.array("H")
    bits.frombytes(half.view(np.uint8).data)
    return bits


def _from_bits(bits: array.array[int]) -> NDArray[np.float64]:
    return np.asarray(bits, np.uint16).view(np.float16).astype(np.float64)


def _descriptor(message: KeyframeMessage, name: KeyframeName) -> NDArray[np.float32]:
    values = _from_bits(message.descriptor)
    length = float(np.linalg.norm(values))
    if not np.isfinite(length) or abs(length - 1) > _UNIT:
        raise _invalid(name, f"its descriptor of {len(values)} numbers has length {length:.3g}; expected 1")
    return (values / length).astype(np.float32)


def _camera(message: KeyframeMessage, name: KeyframeName) -> CameraModel | None:
    matrix = np.asarray(message.k, np.float64).reshape(3, 3)
    if not matrix.any():
        return None
    try:
        distortion = np.asarray(message.d, np.float64)
        return CameraModel(int(message.width), int(message.height), matrix, message.distortion_model, distortion)
    except CameraError as error:
        raise _invalid(name, str(error)) from error


def _link(message: KeyframeMessage, name: KeyframeName) -> ChainLink | None:
    if not message.link_known:
        return None
    covariance = np.array(message.link.covariance, np.float64).reshape(6, 6)
    if not (np.abs(covariance) < _FARTHEST).all():
        raise _invalid(name, "the covariance of its link is not finite")
    least, *_, most = np.linalg.eigvalsh((covariance + covariance.T) / 2)
    if least < -1e-6 * most or np.abs(covariance - covariance.T).max() > 1e-6 * most:
        raise _invalid(name, "the covariance of its link is invalid: it is not symmetric, or has negative eigenvalues")
    return ChainLink(int(message.link_previous), _matrix(message.link.pose, name), covariance, bool(message.is_metric))


def _matrix(pose: Pose, name: KeyframeName) -> NDArray[np.float64]:
    """(4, 4) matrix of a pose message."""
    orientation, at = pose.orientation, pose.position
    quaternion, position = (
        np.array([orientation.x, orientation.y, orientation.z, orientation.w]),
        np.array([at.x, at.y, at.z]),
    )
    if not (np.abs(position) < _FARTHEST).all() or not abs(np.linalg.norm(quaternion) - 1) < _UNIT:
        raise _invalid(name, f"one of its poses is invalid: {_in_words(pose)}")
    return from_quaternion(position, quaternion)


def _in_words(pose: Pose) -> str:
    parts: tuple[Any, ...] = (pose.position, pose.orientation)
    return " ".join(
        f"{axis}={getattr(part, axis):g}" for part, axes in zip(parts, ("xyz", "xyzw"), strict=True) for axis in axes
    )


def _invalid(name: KeyframeName, why: str) -> PlacesError:
    return PlacesError("keyframe_invalid", f"the data sent as keyframe {name} is invalid: {why}")
