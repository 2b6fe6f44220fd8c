"""Data of an archived keyframe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.image_files import ImageError, check_size
from loftr_ros.frontend.odometry import ChainLink
from loftr_ros.geometry.camera import CameraModel

Array = NDArray[np.float64]

# The node decodes compressed images the same way: a camera's calibration is of the pixels as they are stored.
_GRAY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION


class PlacesError(RuntimeError):
    """An archive is unusable, or an image in it is unreadable. The message says what is wrong, where, and what to do.

    Attributes:
        kind: a word for counting, such as `archive_full` or `archive_foreign`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def is_of_one_keyframe(self) -> bool:
        """Whether only one keyframe's image is unreadable, and others may be fine."""
        return self.kind in ("image_missing", "image_damaged")


class KeyframeName(NamedTuple):
    """Name of a keyframe, unique among all robots that share an archive.

    Attributes:
        robot: the robot's name.
        id: of the keyframe; a robot never uses an id twice.
    """

    robot: str
    id: int

    def __str__(self) -> str:
        return f"{self.robot}/{self.id}" if self.robot else str(self.id)


@dataclass(frozen=True, eq=False)
class ArchivedKeyframe:
    """A keyframe as stored in an archive.

    Attributes:
        name: its name.
        session: number of the robot's stream: keyframes of one session were recorded continuously, by one clock.
        segment: of the trajectory; poses and depths of different segments, or sessions, have no common frame or unit.
        stamp_ns: the image's, in nanoseconds.
        frame_id: the image's optical frame.
        size: (width, height) of the image in pixels.
        image: the compressed image (JPEG, or as the camera sent it); empty where only another robot has it.
        camera: its calibration; None without.
        descriptor: (D,) float32 of length one.
        pose: (4, 4) T_world_camera in its segment's frame; None if unknown.
        link: to the previous keyframe; None for a trajectory's first.
        depth: of its cells, in the segment's unit; None without.
        grid: (rows, columns) of the cells of `depth`.
    """

    name: KeyframeName
    session: int
    segment: int
    stamp_ns: int
    frame_id: str
    size: tuple[int, int]
    image: bytes
    camera: CameraModel | None
    descriptor: NDArray[np.float32]
    pose: Array | None = None
    link: ChainLink | None = None
    depth: CellDepth | None = None
    grid: tuple[int, int] = (0, 0)

    def to_frame(self) -> Frame:
        """The keyframe's image as input of the front end.

        Raises:
            PlacesError: the image is missing or damaged.
        """
        if not self.image:
            raise PlacesError("image_missing", f"keyframe {self.name} has no image here; ask its robot for it")
        try:
            check_size(self.image, "its image")
            image = cv2.imdecode(np.frombuffer(self.image, np.uint8), _GRAY)
        except (ImageError, cv2.error) as error:
            raise PlacesError("image_damaged", f"the image of keyframe {self.name} is damaged: {error}") from error
        if image is None:
            raise PlacesError("image_damaged", f"the image of keyframe {self.name} is damaged: {len(self.image)} bytes")
        if image.shape[::-1] != self.size:
            raise PlacesError(
                "image_damaged",
                f"the image of keyframe {self.name} is {image.shape[1]}x{image.shape[0]} px, but was archived as "
                f"{self.size[0]}x{self.size[1]}",
            )
        return Frame(np.asarray(image, np.uint8), self.stamp_ns, self.frame_id, self.camera)


@dataclass(frozen=True)
class Candidate:
    """A keyframe with a descriptor similar to an image's.

    Attributes:
        name: its name.
        session, segment, stamp_ns: as in `ArchivedKeyframe`.
        similarity: cosine of the angle between the descriptors.
    """

    name: KeyframeName
    session: int
    segment: int
    stamp_ns: int
    similarity: float


@dataclass(frozen=True)
class RecentPast:
    """Recent keyframes that a search skips, because the camera has only just been there.

    Attributes:
        robot, session: of these keyframes.
        after_ns: skip keyframes of that session with a later stamp.
    """

    robot: str
    session: int
    after_ns: int
