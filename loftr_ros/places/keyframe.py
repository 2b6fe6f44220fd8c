"""What an archive keeps of a keyframe."""

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

# As the node decodes compressed images: a camera's calibration is of the pixels as they are stored.
_GRAY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION


class PlacesError(RuntimeError):
    """An archive that cannot be had, or an image in it that cannot be read; says what is wrong, where, what to do.

    Attributes:
        kind: a word for counting, such as `archive_full` or `archive_foreign`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def is_of_one_keyframe(self) -> bool:
        """Whether it is one keyframe's image that cannot be read, and the others' may."""
        return self.kind in ("image_missing", "image_damaged")


class KeyframeName(NamedTuple):
    """Names one keyframe among those of all robots that share an archive.

    Attributes:
        robot: the robot's name.
        id: the keyframe's, which that robot never uses twice.
    """

    robot: str
    id: int

    def __str__(self) -> str:
        return f"{self.robot}/{self.id}" if self.robot else str(self.id)


@dataclass(frozen=True, eq=False)
class ArchivedKeyframe:
    """A keyframe as it lies in an archive.

    Attributes:
        name: which one.
        session: counts the streams of the robot: keyframes of one session were seen in one go, by one clock.
        segment: of the trajectory; poses and depths of different segments, or sessions, have no common frame or unit.
        stamp_ns: the image's, in nanoseconds.
        frame_id: the image's optical frame.
        size: (width, height) of the image in pixels.
        image: the compressed image (JPEG, or as the camera sent it); empty where only another robot has it.
        camera: its calibration; None without.
        descriptor: (D,) float32 of length one.
        pose: (4, 4) T_world_camera in its segment's frame; None where it is not known.
        link: to the keyframe before; None for a trajectory's first.
        depth: of its cells, where known, in the segment's unit; None without.
        grid: (rows, columns) of the cells that `depth` is of.
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
        """The keyframe's image as the front end takes it.

        Raises:
            PlacesError: there is no image, or it is damaged.
        """
        if not self.image:
            raise PlacesError("image_missing", f"keyframe {self.name} came without its image; ask its robot for it")
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
                f"the image of keyframe {self.name} is {image.shape[1]}x{image.shape[0]} px; it was archived as "
                f"{self.size[0]}x{self.size[1]}",
            )
        return Frame(np.asarray(image, np.uint8), self.stamp_ns, self.frame_id, self.camera)


@dataclass(frozen=True)
class Candidate:
    """A keyframe whose descriptor is near to that of an image.

    Attributes:
        name: which one.
        session, segment, stamp_ns: its.
        similarity: cosine of the angle between the descriptors.
    """

    name: KeyframeName
    session: int
    segment: int
    stamp_ns: int
    similarity: float


@dataclass(frozen=True)
class RecentPast:
    """What a search leaves out: keyframes that the camera sees again only since it has just been there.

    Attributes:
        robot, session: whose.
        after_ns: keyframes of that session with a later stamp are left out.
    """

    robot: str
    session: int
    after_ns: int
