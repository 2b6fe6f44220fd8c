"""The front end's public topics as measurements of the back end."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
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
# Odometry whose keyframe is not known yet, at most: the topics of an image come one after the other.
_UNPLACED = 10
# A stamp that is further back than topics overtake each other: a recording or a simulation begins again.
_JUMP_NS = 1_000_000_000
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
        run: grows where the odometry jumps: nothing connects poses of different runs.
    """

    stamp_ns: int
    pose: Array
    odom_frame: str
    base_frame: str
    run: int


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
    _numbered: dict[int, dict[int, int]] = field(default_factory=dict)  # stamps by epoch and number
    # Epochs of the numbers that were heard since the last one began.
    _heard: dict[int, int] = field(default_factory=dict)
    _tracks: OrderedDict[tuple[int, int], Tracks] = field(default_factory=OrderedDict)  # by keyframe and stamp
    _located_by: OrderedDict[int, KeyframeKey] = field(default_factory=OrderedDict)  # by the image's stamp
    _unplaced: deque[OdometryFix] = field(default_factory=lambda: deque(maxlen=_UNPLACED))
    _is_broken: bool = False
    _run: int = 0
    _newest_ns: int = 0
    _epoch: int = 0

    @property
    def _stamps(self) -> dict[int, int]:
        """Stamps of the present epoch by number."""
        return self._numbered.setdefault(self._epoch, {})

    def key(self, keyframe_id: int) -> KeyframeKey:
        """Name of a keyframe; if the front end restarted its numbers, names differ from those before."""
        return KeyframeKey(self.robot, keyframe_id + self._heard.get(keyframe_id, self._epoch) * _EPOCH)

    def known(self, key: KeyframeKey, stamp_ns: int) -> None:
        """Remember a keyframe of a loaded map; the newest numbers, if they were restarted."""
        if key.robot != self.robot:
            return
        epoch, number = divmod(key.id, _EPOCH)
        self._epoch = max(self._epoch, epoch)
        self._numbered.setdefault(epoch, {})[number] = stamp_ns

    def names(self, keyframe_id: int, stamp_ns: int) -> Iterator[KeyframeKey]:
        """Names that a keyframe may have, by the present numbers first, unless they have it with another stamp."""
        is_present = self._stamps.get(keyframe_id, stamp_ns) == stamp_ns
        for epoch in range(self._epoch if is_present else self._epoch - 1, -1, -1):
            yield KeyframeKey(self.robot, keyframe_id + epoch * _EPOCH)

    def jumped(self) -> None:
        """Messages were lost: the odometry may have jumped meanwhile."""
        self._run += 1

    def add_odometry(self, message: Odometry) -> None:
        """Keep the message, for the keyframe of the same image and for `placed`."""
        stamp_ns = to_nanoseconds(message.header.stamp)
        pose, twist = (np.asarray(each.covariance) for each in (message.pose, message.twist))
        # A twist of which nothing is known: this place is not connected with the last one.
        is_broken, speed = bool(pose[0] >= _BROKEN), message.twist.twist.linear
        begins = twist[0] == UNKNOWN_VARIANCE and (speed.x, speed.y, speed.z) == (0.0, 0.0, 0.0)
        self._note(stamp_ns)
        self._run += is_broken is not self._is_broken or begins
        self._is_broken = is_broken
        fix = OdometryFix(
            stamp_ns, pose_of(message.pose.pose), message.header.frame_id, message.child_frame_id, self._run
        )
        self._fixes[stamp_ns] = self.odometry = fix
        self._unplaced.append(fix)
        while len(self._fixes) > _KEPT:
            self._fixes.popitem(last=False)

    def placed(self, has: Callable[[KeyframeKey], bool]) -> Iterator[tuple[OdometryFix, KeyframeKey]]:
        """The odometry that has come since, with the keyframe that located its image, oldest first.

        Odometry without such a keyframe waits for it, until later odometry has one.

        Args:
            has: whether the back end has a keyframe.
        """
        waiting = list(self._unplaced)
        keys = [self._located_by.get(fix.stamp_ns) for fix in waiting]
        known = [k for k, key in enumerate(keys) if key is not None and has(key)]
        if known:
            self._unplaced = deque(waiting[known[-1] + 1 :], _UNPLACED)
        for k in known:
            key = keys[k]
            assert key is not None
            yield waiting[k], key

    def fix_at(self, stamp_ns: int) -> OdometryFix | None:
        """The odometry of an image; None without one."""
        return self._fixes.get(stamp_ns)

    def add_relative_pose(self, message: RelativePose) -> None:
        """Keep the message until the next keyframe.

        Raises:
            BackEndError: the message has no valid pose.
        """
        stamp_ns = to_nanoseconds(message.header.stamp)
        self._note(stamp_ns)
        self._named(message.keyframe_id, to_nanoseconds(message.keyframe_stamp))
        if message.status in _WITHOUT_POSE:
            return
        key, pose = self.key(message.keyframe_id), measured(message.pose, _length(message))
        self._poses.setdefault(stamp_ns, {})[key] = pose
        self._located_by.setdefault(stamp_ns, key)  # the first one of an image
        for known in (self._poses, self._located_by):
            while len(known) > _KEPT:
                known.popitem(last=False)

    def pose_by(self, key: KeyframeKey, stamp_ns: int) -> PoseMeasurement | None:
        """T_keyframe_image of an image, in metres; None without one."""
        pose = self._poses.get(stamp_ns, {}).get(key)
        return pose if pose is not None and pose.length is Length.METRES else None

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
            # Not a jump of the clock where it is older: the front end's last ones come again to a late subscriber.
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
        self._named(message.id, stamp_ns)
        if not message.previous_known:
            self._located_by.setdefault(stamp_ns, self.key(message.id))
        images = [
            ImageMeasurement(stamp, self.robot, self._poses.pop(stamp)) for stamp in sorted(self._poses)
            if stamp <= stamp_ns
        ]  # fmt: skip
        link = None
        # A number that only a loaded map knows may be of an older front end's.
        is_linked = message.previous_known and message.previous_id in self._heard
        if is_linked:
            link = measured(message.previous_pose, Length.METRES if message.scale_known else Length.OWN_UNIT)
        keyframe = KeyframeMeasurement(
            self.key(message.id),
            stamp_ns,
            message.frame_id,
            self.key(message.previous_id) if is_linked else None,
            link,
            message.scale_known,
            shared_landmarks(self._tracks.get((message.previous_id, stamp_ns))) if is_linked else None,
        )
        newest = {number: tracks for (number, _), tracks in self._tracks.items()}
        seen = [(self.key(number), landmarks(tracks)) for number, tracks in newest.items()]
        self._tracks.clear()
        return images, keyframe, seen

    def _named(self, keyframe_id: int, stamp_ns: int) -> None:
        """Compare a keyframe's stamp with that of the keyframe of this number.

        If they differ, the front end was restarted, and its numbers begin again: without its archive at one, after a
        crash at those that it had not archived yet. It may recall the archived ones, which keep their names.
        """
        known = self._stamps.get(keyframe_id)
        if known is None and self._stamps and keyframe_id < min(self._stamps):
            for epoch in range(self._epoch - 1, -1, -1):
                if self._numbered.get(epoch, {}).get(keyframe_id) == stamp_ns:
                    self._heard[keyframe_id] = epoch
                    return
        if known not in (None, stamp_ns):
            self._epoch += 1
            self._heard.clear()
            self._poses.clear()
            self._located_by.clear()
            self._tracks.clear()
        self._stamps[keyframe_id] = stamp_ns
        self._heard[keyframe_id] = self._epoch

    def _note(self, stamp_ns: int) -> None:
        """Note a message's stamp; if the clock has jumped back, what is of later stamps goes."""
        if stamp_ns >= self._newest_ns - _JUMP_NS:
            self._newest_ns = max(self._newest_ns, stamp_ns)
            return
        self._newest_ns = stamp_ns
        self._run += 1
        for kept in (self._fixes, self._poses, self._located_by):
            for later in [each for each in kept if each > stamp_ns + _JUMP_NS]:
                del kept[later]
        self._unplaced.clear()
        self._tracks.clear()


def loop_of(message: LoopClosure, older: KeyframeKey, newer: KeyframeKey) -> LoopMeasurement | None:
    """A loop as input of the back end; None if it has no pose.

    Args:
        message: what the front end says.
        older, newer: names of its keyframes.

    Raises:
        BackEndError: the message has no valid pose.
    """
    if message.status in _WITHOUT_POSE:
        return None
    if message.own_unit_known and not message.scale_known:
        pose = measured(message.own_unit_pose, Length.OWN_UNIT)
    else:
        pose = measured(message.pose, _length(message))
    return LoopMeasurement(older, newer, pose, message.score)


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

KEPT = ("keyframe", "loop_closures")
"""Those of them whose last messages come again to a late subscriber."""
