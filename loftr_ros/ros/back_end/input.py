"""The front end's public topics as measurements of the back end."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from geometry_msgs.msg import Pose, PoseWithCovariance
from nav_msgs.msg import Odometry
from numpy.typing import NDArray

from loftr_ros.backend.measurements import (
    ImageMeasurement,
    KeyframeKey,
    KeyframeMeasurement,
    Landmarks,
    Length,
    LoopMeasurement,
    PoseMeasurement,
    SharedLandmarks,
    Sightings,
    born_in,
)
from loftr_ros.geometry.se3 import from_quaternion
from loftr_ros.geometry.two_view import UNKNOWN_VARIANCE
from loftr_ros.msg import Keyframe, LoopClosure, RelativePose, Tracks
from loftr_ros.ros.output.messages import to_nanoseconds

Array = NDArray[np.float64]

# Seconds that a keyframe waits for what other topics say of the same image, where no later image comes.
_PATIENCE = 0.3
# Odometry that is kept, for keyframes that come after it.
_KEPT = 400
# Messages with tracks that are kept: a keyframe comes this many images after its own at most.
_KEPT_TRACKS = 32
# Ids of keyframes, which a front end without an archive begins anew.
_EPOCH = 1 << 32
# A pose with such a variance says that nothing leads to it.
_BROKEN = 0.5 * UNKNOWN_VARIANCE
_WITHOUT_POSE = (RelativePose.TOO_FEW_MATCHES, RelativePose.NO_CALIBRATION, RelativePose.DOUBTFUL)


@dataclass(frozen=True, eq=False)
class OdometryFix:
    """Pose of the base by the odometry.

    Attributes:
        stamp_ns: of the image.
        pose: (4, 4) T_odom_base.
        odom_frame, base_frame: names of the frames.
        is_broken: whether it belongs to a later segment of the odometry, which nothing connects with the first.
    """

    stamp_ns: int
    pose: Array
    odom_frame: str
    base_frame: str
    is_broken: bool


@dataclass(eq=False)
class _Waiting:
    message: Keyframe
    since: float


@dataclass(eq=False)
class RobotInput:
    """Combines the messages of one front end that belong to the same image. Has no thread and no ROS node.

    Attributes:
        robot: its name.
        odometry: the newest.
    """

    robot: str
    odometry: OdometryFix | None = None
    _fixes: OrderedDict[int, OdometryFix] = field(default_factory=OrderedDict)
    _poses: OrderedDict[int, dict[KeyframeKey, PoseMeasurement]] = field(default_factory=OrderedDict)
    _keyframes: list[_Waiting] = field(default_factory=list)
    _stamps: dict[int, int] = field(default_factory=dict)
    _tracks: OrderedDict[tuple[int, int], Tracks] = field(default_factory=OrderedDict)  # by keyframe and stamp
    _newest_ns: int = 0
    _epoch: int = 0

    def key(self, keyframe_id: int) -> KeyframeKey:
        """Name of a keyframe; if the front end restarted its numbers, names differ from those before."""
        return KeyframeKey(self.robot, keyframe_id + self._epoch * _EPOCH)

    def known(self, key: KeyframeKey, stamp_ns: int) -> None:
        """Remember a keyframe of a loaded map."""
        if key.robot == self.robot and key.id < _EPOCH:
            self._stamps[key.id] = stamp_ns
        if key.robot == self.robot:
            self._epoch = max(self._epoch, key.id // _EPOCH)

    def add_odometry(self, message: Odometry) -> OdometryFix:
        """Keep the message for the keyframe of the same image."""
        stamp_ns = to_nanoseconds(message.header.stamp)
        covariance = np.asarray(message.pose.covariance).reshape(6, 6)
        fix = OdometryFix(
            stamp_ns,
            pose_of(message.pose.pose),
            message.header.frame_id,
            message.child_frame_id,
            bool(covariance[0, 0] >= _BROKEN),
        )
        self._fixes[stamp_ns] = self.odometry = fix
        while len(self._fixes) > _KEPT:
            self._fixes.popitem(last=False)
        self._newest_ns = max(self._newest_ns, stamp_ns)
        return fix

    def fix_at(self, stamp_ns: int) -> OdometryFix | None:
        """The odometry of an image; None without one."""
        return self._fixes.get(stamp_ns)

    def add_relative_pose(self, message: RelativePose) -> None:
        """Keep the message until the next keyframe.

        Raises:
            BackEndError: the message has no valid pose.
        """
        stamp_ns = to_nanoseconds(message.header.stamp)
        self._newest_ns = max(self._newest_ns, stamp_ns)
        if message.status in _WITHOUT_POSE:
            return
        pose = measured(message.pose, _length(message))
        self._poses.setdefault(stamp_ns, {})[self.key(message.keyframe_id)] = pose
        while len(self._poses) > _KEPT:
            self._poses.popitem(last=False)

    def found_by(self, stamp_ns: int) -> tuple[KeyframeKey, PoseMeasurement] | None:
        """The keyframe that located an image, and T_keyframe_image in metres; None without one."""
        known = self._poses.get(stamp_ns, {})
        return next(((key, pose) for key, pose in known.items() if pose.length is Length.METRES), None)

    def add_tracks(self, message: Tracks) -> None:
        """Keep the message until the next keyframe comes, which may be of an earlier image than the newest."""
        self._tracks[message.keyframe_id, to_nanoseconds(message.header.stamp)] = message
        while len(self._tracks) > _KEPT_TRACKS:
            self._tracks.popitem(last=False)

    def add_keyframe(self, message: Keyframe) -> None:
        """Keep a new keyframe until the other messages of its image are there."""
        if message.event == Keyframe.ADDED and message.reason != Keyframe.RECALLED:
            self._keyframes.append(_Waiting(message, time.monotonic()))
        elif message.event == Keyframe.REMOVED:
            self._newest_ns = max(self._newest_ns, to_nanoseconds(message.header.stamp))

    @property
    def is_waiting(self) -> bool:
        """Whether a keyframe is waiting."""
        return bool(self._keyframes)

    def ready(
        self,
    ) -> Iterator[tuple[list[ImageMeasurement], KeyframeMeasurement, list[tuple[KeyframeKey, Landmarks]]]]:
        """Complete keyframes, oldest first, each with the images and landmarks since the previous one.

        Raises:
            BackEndError: a message has no pose; its keyframe is left out.
        """
        now = time.monotonic()
        self._keyframes.sort(key=lambda each: to_nanoseconds(each.message.stamp))
        while self._keyframes:
            waiting = self._keyframes[0]
            stamp_ns = to_nanoseconds(waiting.message.stamp)
            if self._newest_ns <= stamp_ns and now - waiting.since < _PATIENCE:
                return
            self._keyframes.pop(0)
            yield self._taken(waiting.message, stamp_ns)

    def _taken(
        self, message: Keyframe, stamp_ns: int
    ) -> tuple[list[ImageMeasurement], KeyframeMeasurement, list[tuple[KeyframeKey, Landmarks]]]:
        if self._stamps.get(message.id, stamp_ns) != stamp_ns:
            self._epoch += 1  # the front end was restarted without an archive, so its numbers start again
            self._stamps.clear()
            self._poses.clear()
            self._tracks.clear()
        self._stamps[message.id] = stamp_ns
        images = [
            ImageMeasurement(stamp, self.robot, self._poses.pop(stamp)) for stamp in sorted(self._poses)
            if stamp <= stamp_ns
        ]  # fmt: skip
        link = None
        if message.previous_known:
            link = measured(message.previous_pose, Length.METRES if message.scale_known else Length.OWN_UNIT)
        keyframe = KeyframeMeasurement(
            self.key(message.id),
            stamp_ns,
            message.frame_id,
            self.key(message.previous_id) if message.previous_known else None,
            link,
            message.scale_known,
            shared_landmarks(self._tracks.get((message.previous_id, stamp_ns))) if message.previous_known else None,
        )
        newest = {number: tracks for (number, _), tracks in self._tracks.items()}
        seen = [(self.key(number), landmarks(tracks)) for number, tracks in newest.items()]
        self._tracks.clear()
        return images, keyframe, seen


def loop_of(message: LoopClosure) -> LoopMeasurement | None:
    """A loop as input of the back end; None if it has no pose.

    Raises:
        BackEndError: the message has no valid pose.
    """
    if message.status in _WITHOUT_POSE:
        return None
    if message.own_unit_known and not message.scale_known:
        pose = measured(message.own_unit_pose, Length.OWN_UNIT)
    else:
        pose = measured(message.pose, _length(message))
    return LoopMeasurement(
        KeyframeKey(message.matched_robot, message.matched_keyframe_id),
        KeyframeKey(message.robot, message.keyframe_id),
        pose,
        message.score,
    )


def _length(message: RelativePose | LoopClosure) -> Length:
    position = message.pose.pose.position
    moved = (position.x, position.y, position.z) != (0.0, 0.0, 0.0)
    return Length.METRES if message.scale_known else Length.DIRECTION if moved else Length.NONE


def shared_landmarks(message: Tracks | None) -> SharedLandmarks | None:
    """What a keyframe shares with the one before, from the tracks of its image; None without any, or if their arrays
    do not fit one another.
    """
    if message is None:
        return None
    name, std = np.asarray(message.landmark_id, np.uint64), np.asarray(message.ray_std, np.float32)
    seen, before = (np.asarray(each, np.float32).reshape(-1, 2) for each in (message.rays, message.keyframe_rays))
    if not len(name) == len(std) == len(seen) == len(before):
        return None
    return SharedLandmarks(Sightings(name, seen, std), born_in(message.keyframe_id, name, before, std))


def landmarks(message: Tracks) -> Landmarks:
    """The points of known depth."""
    points = np.asarray(message.points, np.float32).reshape(-1, 3)
    return Landmarks(points, np.asarray(message.point_std, np.float32), np.asarray(message.track_id, np.uint32))


def measured(pose: PoseWithCovariance, length: Length) -> PoseMeasurement:
    """A pose with its covariance, both in the first camera's axes.

    Raises:
        BackEndError: the message has no valid pose.
    """
    covariance = np.asarray(pose.covariance, np.float64).reshape(6, 6)
    return PoseMeasurement(pose_of(pose.pose), covariance, length)


def pose_of(pose: Pose) -> Array:
    """(4, 4) pose of a message; NaN if the quaternion is invalid."""
    at, turn = pose.position, pose.orientation
    try:
        return from_quaternion((at.x, at.y, at.z), (turn.x, turn.y, turn.z, turn.w))
    except ValueError:
        return np.full((4, 4), np.nan)


def robot_of(full_name: str) -> str:
    """Default name of a front end's robot: its namespace, or `robot` without one."""
    return full_name.rpartition("/")[0].strip("/") or "robot"


def topic_of(front_end: str, name: str) -> str:
    """Full name of a front end's topic."""
    return f"{front_end}/{name}"


TOPICS: dict[str, Any] = {
    "keyframe": Keyframe,
    "relative_pose": RelativePose,
    "tracks": Tracks,
    "loop_closures": LoopClosure,
    "odometry": Odometry,
}
"""The front end's topics that the back end subscribes to, and their types."""
