"""Messages of the back end: transform, pose, path, graph, landmarks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import (
    Point,
    PoseStamped,
    PoseWithCovarianceStamped,
    Quaternion,
    Transform,
    TransformStamped,
    Vector3,
)
from nav_msgs.msg import Path
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import ColorRGBA, Header

from loftr_ros.backend.back_end import BackEnd
from loftr_ros.geometry.se3 import inverse, quaternion_of
from loftr_ros.ros.output.base_motion import base_covariance
from loftr_ros.ros.output.messages import to_cloud, to_pose, to_pose_with_covariance, to_time

Array = NDArray[np.float64]

_LANDMARK = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("std", "<f4"), ("keyframe", "<u4"), ("id", "<u4")])
_ROBOT_COLORS = ((0.12, 0.44, 0.71), (0.90, 0.45, 0.10), (0.45, 0.30, 0.70), (0.10, 0.60, 0.55))
_LOOP, _REJECTED = (0.17, 0.55, 0.24), (0.76, 0.15, 0.36)


@dataclass(frozen=True, eq=False)
class MapFrame:
    """The map in ROS's axes: the base's frame at the map's first keyframe.

    Attributes:
        name: of the frame.
        base_from_camera: (4, 4) T_base_camera of the first camera.
        mounts: (4, 4) T_base_camera of cameras by their optical frames; one that is not there is mounted as the first.
    """

    name: str
    base_from_camera: Array
    mounts: Mapping[str, Array] = field(default_factory=dict)

    def mount(self, frame_id: str) -> Array:
        """(4, 4) T_base_camera of a camera."""
        return self.mounts.get(frame_id, self.base_from_camera)

    def base(self, camera: Array, frame_id: str) -> Array:
        """(4, 4) T_map_base, from the pose of a camera with an optical frame in the first camera's axes."""
        return np.asarray(self.base_from_camera @ camera @ inverse(self.mount(frame_id)))

    def covariance(self, covariance: Array, base: Array, frame_id: str) -> Array:
        """(6, 6) covariance of the base's pose about the map's axes.

        Args:
            covariance: (6, 6) of the camera's (translation, rotation vector) about the first camera's axes.
            base: (4, 4) T_map_base.
            frame_id: optical frame of the camera.
        """
        mounted = self.base_from_camera.copy()  # the first camera's axes, and this camera's arm
        mounted[:3, 3] = self.mount(frame_id)[:3, 3]
        return base_covariance(covariance, base, mounted)

    def points(self, points: NDArray[np.floating]) -> Array:
        """(N, 3) points in the map, from points in the first camera's axes."""
        return np.asarray(points @ self.base_from_camera[:3, :3].T + self.base_from_camera[:3, 3])


def transform_message(map_from_odom: Array, stamp: Time, map_frame: str, odom_frame: str) -> TransformStamped:
    """`map` -> `odom`."""
    x, y, z = map_from_odom[:3, 3].tolist()
    qx, qy, qz, qw = quaternion_of(map_from_odom[:3, :3])
    return TransformStamped(
        header=Header(stamp=stamp, frame_id=map_frame),
        child_frame_id=odom_frame,
        transform=Transform(translation=Vector3(x=x, y=y, z=z), rotation=Quaternion(x=qx, y=qy, z=qz, w=qw)),
    )


def pose_message(pose: Array, covariance: Array, stamp_ns: int, map_frame: str) -> PoseWithCovarianceStamped:
    """The base's pose in the map."""
    header = Header(stamp=to_time(stamp_ns), frame_id=map_frame)
    return PoseWithCovarianceStamped(header=header, pose=to_pose_with_covariance(pose, covariance))


def path_message(back_end: BackEnd, frame: MapFrame, group: int) -> Path:
    """All keyframes of the map, one trajectory after the other, each in the order of its stamps."""
    poses = [
        PoseStamped(
            header=Header(stamp=to_time(vertex.stamp_ns), frame_id=frame.name),
            pose=to_pose(frame.base(place.camera.pose, vertex.frame_id)),
        )
        for vertex, place in sorted(back_end.places(), key=lambda each: (each[0].trajectory, each[0].stamp_ns))
        if place.group == group
    ]
    return Path(header=poses[-1].header if poses else Header(frame_id=frame.name), poses=poses)


def graph_message(back_end: BackEnd, frame: MapFrame, group: int) -> Any:
    """Keyframes, links and loops of the map, as markers.

    Raises:
        ImportError: visualization_msgs is not installed.
    """
    from visualization_msgs.msg import Marker, MarkerArray

    vertices = {v.number: v for v, place in back_end.places() if place.group == group}
    where = {
        v.number: frame.base(place.camera.pose, v.frame_id)[:3, 3]
        for v, place in back_end.places()
        if place.group == group
    }
    newest = max((vertex.stamp_ns for vertex in vertices.values()), default=0)
    header = Header(stamp=to_time(newest), frame_id=frame.name)
    markers = [Marker(header=header, action=Marker.DELETEALL)]

    def add(name: str, kind: int, numbers: list[int], color: tuple[float, float, float], width: float) -> None:
        if not numbers:
            return
        points = [Point(**dict(zip("xyz", where[number].tolist(), strict=True))) for number in numbers]
        marker = Marker(header=header, ns=name, id=0, type=kind, action=Marker.ADD, points=points)
        marker.pose.orientation.w = 1.0
        marker.scale = Vector3(x=width, y=width, z=width)
        marker.color = ColorRGBA(r=color[0], g=color[1], b=color[2], a=1.0)
        markers.append(marker)

    robots = list(dict.fromkeys(vertex.key.robot for vertex in vertices.values()))
    for number, robot in enumerate(robots):
        color = _ROBOT_COLORS[number % len(_ROBOT_COLORS)]
        own = [vertex for vertex in vertices.values() if vertex.key.robot == robot]
        add(f"keyframes {robot}", Marker.SPHERE_LIST, [vertex.number for vertex in own], color, 0.05)
        ends = [n for v in own if v.previous is not None for n in (v.previous, v.number)]
        add(f"links {robot}", Marker.LINE_LIST, ends, color, 0.01)
    for name, wanted, color in (("loops", True, _LOOP), ("loops rejected", False, _REJECTED)):
        ends = [
            end
            for loop, believed in zip(back_end.graph.loops, back_end.believed(), strict=True)
            if believed is wanted and loop.older in where and loop.newer in where
            for end in (loop.older, loop.newer)
        ]
        add(name, Marker.LINE_LIST, ends, color, 0.01)
    return MarkerArray(markers=markers)


def landmarks_message(back_end: BackEnd, frame: MapFrame, group: int) -> PointCloud2:
    """The map's landmarks: x, y, z, standard deviation along the keyframe's ray, the keyframe's number, the id."""
    parts, newest = [], 0
    for vertex, of, points, found in back_end.cloud():
        if of != group:
            continue
        part = np.empty(len(points), _LANDMARK)
        part["x"], part["y"], part["z"] = frame.points(points).T
        part["std"], part["keyframe"], part["id"] = found.std, vertex.number, found.track_id
        parts.append(part)
        newest = max(newest, vertex.stamp_ns)
    cloud = np.concatenate(parts) if parts else np.empty(0, _LANDMARK)
    return to_cloud(Header(stamp=to_time(newest), frame_id=frame.name), cloud)


def topic_names(robots: Sequence[str]) -> dict[str, str]:
    """Part of a topic's name for each robot: what a topic must not have becomes `_`; equal names are numbered."""
    names: dict[str, str] = {}
    for robot in robots:
        parts = [re.sub(r"[^A-Za-z0-9_]", "_", part) for part in robot.split("/") if part] or ["robot"]
        plain = name = "/".join(f"_{part}" if part[0].isdigit() else part for part in parts)
        number = 2
        while name in names.values():
            name, number = f"{plain}_{number}", number + 1
        names[robot] = name
    return names


class MapOutput:
    """The lifecycle publishers: silent until the node is active."""

    def __init__(
        self,
        publisher: Callable[[type, str], Any],
        publish_tf: bool,
        warn: Callable[[str], None],
        robots: Sequence[str] = (),
    ) -> None:
        """Create the publishers.

        Args:
            publisher: creates one for a message type and a topic.
            publish_tf: whether to publish on /tf.
            warn: called with a message if something cannot be published.
            robots: names of the robots; where there are several, each has topics of its own, too.
        """
        names = topic_names(robots) if len(robots) > 1 else {}
        self._transform = publisher(TransformStamped, "~/map_to_odom")
        self._pose = publisher(PoseWithCovarianceStamped, "~/pose")
        self._transforms = {
            robot: publisher(TransformStamped, f"~/{name}/map_to_odom") for robot, name in names.items()
        }
        self._poses = {robot: publisher(PoseWithCovarianceStamped, f"~/{name}/pose") for robot, name in names.items()}
        self._path = publisher(Path, "~/path")
        self._landmarks = publisher(PointCloud2, "~/landmarks")
        self._graph, self._tf, self._tf_type = None, None, None
        try:
            from visualization_msgs.msg import MarkerArray

            self._graph = publisher(MarkerArray, "~/pose_graph")
        except ImportError:
            warn("visualization_msgs is not installed: nothing is published on ~/pose_graph")
        self._listening = [0 for each in (self._path, self._graph, self._landmarks) if each]
        if publish_tf:
            try:
                from tf2_msgs.msg import TFMessage

                self._tf, self._tf_type = publisher(TFMessage, "/tf"), TFMessage
            except ImportError:
                warn(
                    "tf2_msgs is not installed: map -> odom is published on ~/map_to_odom alone. A ROS installation "
                    "has it, PyPI's wheels of ROS have not"
                )

    def transform(self, message: TransformStamped, robot: str, on_tf: bool = True) -> None:
        """Publish map -> odom of a robot, on /tf only if asked to."""
        self._transform.publish(message)
        if robot in self._transforms:
            self._transforms[robot].publish(message)
        if on_tf and self._tf is not None and self._tf_type is not None:
            self._tf.publish(self._tf_type(transforms=[message]))

    def pose(self, message: PoseWithCovarianceStamped, robot: str) -> None:
        """Publish the pose of a robot's base in the map."""
        self._pose.publish(message)
        if robot in self._poses:
            self._poses[robot].publish(message)

    def is_asked_anew(self) -> bool:
        """Whether somebody has subscribed to path, graph or landmarks since this was asked last."""
        listening = [each.get_subscription_count() for each in (self._path, self._graph, self._landmarks) if each]
        grown = any(now > before for now, before in zip(listening, self._listening, strict=True))
        self._listening = listening
        return grown

    def publish_map(self, back_end: BackEnd, frame: MapFrame, group: int) -> None:
        """Publish path, graph and landmarks, each only while somebody subscribes."""
        if self._path.get_subscription_count():
            self._path.publish(path_message(back_end, frame, group))
        if self._graph is not None and self._graph.get_subscription_count():
            self._graph.publish(graph_message(back_end, frame, group))
        if self._landmarks.get_subscription_count():
            self._landmarks.publish(landmarks_message(back_end, frame, group))
