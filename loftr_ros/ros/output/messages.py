"""Converts results to messages. Arrays are filled in one copy, never element by element."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseWithCovariance, Quaternion
from numpy.typing import NDArray
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import Header

from loftr_ros.frontend.frame import Frame
from loftr_ros.geometry.se3 import between, quaternion_of
from loftr_ros.geometry.two_view import UNKNOWN_VARIANCE
from loftr_ros.msg import Correspondences, Keyframe, RelativePose, SegmentsJoined, TrackLinks, Tracks

if TYPE_CHECKING:  # these import torch, which the node loads when it is configured
    from loftr_ros.frontend import results, tracks
    from loftr_ros.frontend.keyframes import KeyframeEvent
    from loftr_ros.frontend.odometry import Location, SegmentJoin
    from loftr_ros.frontend.pipeline import KeyframeMatch
    from loftr_ros.geometry.two_view import RelativePose as EstimatedPose

_TYPE_CODES = {"uint8": "B", "uint32": "I", "uint64": "Q", "float32": "f", "float64": "d"}

# Lower bound of a covariance's smallest eigenvalue, in m^2 and rad^2: filters take zero for perfect, and fail on
# singular matrices.
LEAST_VARIANCE = 1e-9

# Packed layout of one landmark in the cloud.
_LANDMARK_TYPES = dict(x="<f4", y="<f4", z="<f4", keyframe_id="<u4", id="<u4", confidence="<f4", std="<f4")
_LANDMARK = np.dtype(list(_LANDMARK_TYPES.items()))
_FIELD_TYPES = {"<f4": PointField.FLOAT32, "<u4": PointField.UINT32}


class SourceImage(Protocol):
    """The source of an image: a frame, or a keyframe of an archive."""

    @property
    def stamp_ns(self) -> int:
        """Nanoseconds since the epoch."""

    @property
    def frame_id(self) -> str:
        """Its optical frame."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""


def to_time(stamp_ns: int) -> Time:
    """Nanoseconds since the epoch to a message."""
    return Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def to_nanoseconds(stamp: Time) -> int:
    """A message's stamp in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def to_header(frame: SourceImage) -> Header:
    """Stamp and optical frame of the image."""
    return Header(stamp=to_time(frame.stamp_ns), frame_id=frame.frame_id)


def to_array(values: NDArray[Any]) -> array.array[Any]:
    """A primitive message array from an ndarray of the same type, in one copy."""
    result: array.array[Any] = array.array(_TYPE_CODES[values.dtype.name])
    result.frombytes(np.ascontiguousarray(values).view(np.uint8).reshape(-1).data)
    return result


def to_pose(matrix: NDArray[np.float64]) -> Pose:
    """A (4, 4) pose as a message."""
    x, y, z = matrix[:3, 3].tolist()
    qx, qy, qz, qw = quaternion_of(matrix[:3, :3])
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def to_covariance(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A (6, 6) covariance as the 36 numbers of a message, row by row.

    Zero variances are raised (see LEAST_VARIANCE), and 1e6 replaces non-finite ones.
    """
    if not np.isfinite(matrix).all():
        return (UNKNOWN_VARIANCE * np.eye(6)).reshape(36)
    lacking = LEAST_VARIANCE - float(np.linalg.eigvalsh(matrix)[0])
    wide = matrix + lacking * np.eye(6) if lacking > 0 else matrix
    return np.ascontiguousarray(wide, dtype=np.float64).reshape(36)


def to_pose_with_covariance(pose: NDArray[np.float64], covariance: NDArray[np.float64]) -> PoseWithCovariance:
    """A (4, 4) pose with its (6, 6) covariance as a message."""
    return PoseWithCovariance(pose=to_pose(pose), covariance=to_covariance(covariance))


def to_estimated_pose(pose: EstimatedPose) -> PoseWithCovariance:
    """A relative pose. If its length is unknown, the variance along the unit vector says so."""
    covariance = pose.covariance
    if pose.has_direction and not pose.scale_known:
        covariance = covariance.copy()
        covariance[:3, :3] += UNKNOWN_VARIANCE * np.outer(pose.translation, pose.translation)
    return to_pose_with_covariance(pose.matrix, covariance)


def unknown_pose() -> PoseWithCovariance:
    """An unknown pose: the identity, with a variance of 1e6."""
    return to_pose_with_covariance(np.eye(4), UNKNOWN_VARIANCE * np.eye(6))


def correspondences_message(match: KeyframeMatch, current: Frame) -> Correspondences:
    """Matches with one keyframe."""
    message = matches_message(match.keyframe.id, match.keyframe.frame, current, match.correspondences, match.pose)
    message.camera, message.keyframe_camera = current.camera_number, match.keyframe.frame.camera_number
    if match.moving is not None:
        message.moving = to_array(match.moving.astype(np.uint8))
    return message


def relative_pose_message(match: KeyframeMatch, current: Frame) -> RelativePose:
    """The pose relative to one keyframe, with its quality."""
    message = pose_message(match.keyframe.id, match.keyframe.frame, current, match.correspondences, match.pose)
    message.camera, message.keyframe_camera = current.camera_number, match.keyframe.frame.camera_number
    return message


def matches_message(
    keyframe_id: int, keyframe: SourceImage, current: SourceImage, found: results.Correspondences, pose: EstimatedPose
) -> Correspondences:
    """Matches of two images; the pose provides the inlier flags."""
    return Correspondences(
        header=to_header(current),
        keyframe_id=keyframe_id,
        keyframe_stamp=to_time(keyframe.stamp_ns),
        keyframe_frame_id=keyframe.frame_id,
        keyframe_width=keyframe.size[0],
        keyframe_height=keyframe.size[1],
        width=current.size[0],
        height=current.size[1],
        track_id=to_array(found.track_id),
        keyframe_points=to_array(found.keyframe_points),
        current_points=to_array(found.current_points),
        confidence=to_array(found.confidence),
        current_std=to_array(found.std),
        inlier=to_array(pose.inliers.astype(np.uint8)),
        moving=to_array(np.zeros(len(found), np.uint8)),
    )


def pose_message(
    keyframe_id: int, keyframe: SourceImage, current: SourceImage, found: results.Correspondences, pose: EstimatedPose
) -> RelativePose:
    """The pose of one image relative to another, from their matches."""
    num_matches, num_inliers = len(found), int(pose.inliers.sum())
    return RelativePose(
        header=to_header(current),
        keyframe_id=keyframe_id,
        keyframe_stamp=to_time(keyframe.stamp_ns),
        keyframe_frame_id=keyframe.frame_id,
        status=int(pose.status),
        pose=to_estimated_pose(pose),
        scale_known=pose.scale_known,
        scale_reason=int(pose.scale_reason),
        num_matches=num_matches,
        num_inliers=num_inliers,
        inlier_ratio=num_inliers / num_matches if num_matches else 0.0,
        median_parallax=pose.median_parallax,
    )


def tracks_message(match: KeyframeMatch, current: Frame) -> Tracks:
    """The inliers of the match with one keyframe, in the form that back ends need."""
    keep = match.pose.inliers & match.seen.known
    pixels, std = match.seen.points[keep], match.seen.std[keep]
    rays: NDArray[np.floating] = np.full((len(pixels), 2), np.nan)
    focal_length = float("nan")
    if current.camera is not None:
        rays, focal_length = current.camera.unproject(pixels), current.camera.focal_length
    keyframe, depth = match.keyframe, match.keyframe.depth
    points, point_std = match.points()
    return Tracks(
        header=to_header(current),
        keyframe_id=keyframe.id,
        keyframe_stamp=to_time(keyframe.frame.stamp_ns),
        keyframe_frame_id=keyframe.frame.frame_id,
        camera=current.camera_number,
        keyframe_camera=keyframe.frame.camera_number,
        track_id=to_array(match.correspondences.track_id[keep]),
        landmark_id=to_array(match.landmark[keep]),
        pixels=to_array(pixels),
        rays=to_array(rays.astype(np.float32)),
        std=to_array(std),
        ray_std=to_array((std / focal_length).astype(np.float32)),
        keyframe_rays=to_array(match.keyframe_rays[keep].astype(np.float32)),
        points=to_array(points[keep].astype(np.float32)),
        point_std=to_array(point_std[keep].astype(np.float32)),
        scale_known=depth is not None and depth.is_metric,
    )


def landmarks_message(match: KeyframeMatch, current: Frame, location: Location | None) -> PointCloud2:
    """The inliers of known depth in the match with one keyframe, as points in the current camera's frame.

    Args:
        match: with the keyframe.
        current: the image.
        location: of its camera; without one there are no points.
    """
    start, cloud = match.keyframe.location, np.zeros(0, _LANDMARK)
    if location is not None and start is not None and location.segment == start.segment:
        points, std = match.points()
        keep = match.pose.inliers & match.seen.known & np.isfinite(std)
        T_current_keyframe = between(location.pose, start.pose)
        cloud = np.empty(int(keep.sum()), _LANDMARK)
        in_current = points[keep] @ T_current_keyframe[:3, :3].T + T_current_keyframe[:3, 3]
        cloud["x"], cloud["y"], cloud["z"] = in_current.T
        landmark = match.landmark[keep]
        cloud["keyframe_id"], cloud["id"] = landmark >> np.uint64(32), landmark & np.uint64(0xFFFFFFFF)
        cloud["confidence"], cloud["std"] = match.correspondences.confidence[keep], std[keep]
    return to_cloud(to_header(current), cloud)


def to_cloud(header: Header, points: NDArray[np.void]) -> PointCloud2:
    """A cloud of points, all of them finite.

    Args:
        header: of the message.
        points: (N,) records without padding, with the fields x, y, z and others, each `<f4` or `<u4`.
    """
    kinds: Any = points.dtype.fields
    return PointCloud2(
        header=header,
        height=1,
        width=len(points),
        fields=[
            PointField(name=name, offset=kinds[name][1], datatype=_FIELD_TYPES[kinds[name][0].str], count=1)
            for name in kinds
        ],
        is_bigendian=False,
        point_step=points.dtype.itemsize,
        row_step=points.nbytes,
        data=to_array(points.view(np.uint8)),
        is_dense=True,
    )


def track_links_message(links: tracks.TrackLinks, current: Frame) -> TrackLinks:
    """Tracks of the keyframe made of `current` that continue older ones."""
    return TrackLinks(
        header=to_header(current),
        old_keyframe_id=links.old_keyframe,
        new_keyframe_id=links.new_keyframe,
        camera=current.camera_number,
        old_track_id=to_array(links.old_track),
        new_track_id=to_array(links.new_track),
        distance=to_array(links.distance),
    )


def segments_joined_message(join: SegmentJoin, current: Frame) -> SegmentsJoined:
    """Two segments of the trajectory were joined at `current`."""
    return SegmentsJoined(
        header=to_header(current),
        old_segment=join.old,
        new_segment=join.new,
        pose=PoseWithCovariance(pose=to_pose(join.pose), covariance=to_covariance(join.covariance)),
        scale=join.scale,
    )


def keyframe_message(event: KeyframeEvent, current: Frame | None) -> Keyframe:
    """A keyframe was added or removed; `current` is the frame at that time, None if there was none."""
    frame, location, link = event.keyframe.frame, event.keyframe.location, event.keyframe.link
    return Keyframe(
        header=to_header(current or frame),
        id=event.keyframe.id,
        stamp=to_time(frame.stamp_ns),
        frame_id=frame.frame_id,
        camera=frame.camera_number,
        event=Keyframe.ADDED if event.added else Keyframe.REMOVED,
        reason=int(event.reason),
        num_keyframes=event.num_keyframes,
        segment=0 if location is None else location.segment,
        previous_known=link is not None,
        previous_id=0 if link is None else link.previous,
        previous_pose=unknown_pose() if link is None else to_pose_with_covariance(link.pose, link.covariance),
        scale_known=location is not None and location.is_metric,
    )


def image_message(picture: NDArray[np.uint8], frame: Frame) -> Image:
    """(H, W, 3) BGR uint8 as a bgr8 image with the frame's header."""
    height, width = picture.shape[:2]
    return Image(
        header=to_header(frame),
        height=height,
        width=width,
        encoding="bgr8",
        is_bigendian=0,
        step=3 * width,
        data=to_array(picture),
    )
