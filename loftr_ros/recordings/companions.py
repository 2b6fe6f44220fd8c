"""What some sources carry beside the image: the right image of a stereo pair, or a depth image.

Neither is read, let alone decoded, before somebody asks for it: most users of a stereo recording want one camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.frontend.frame import DepthImage
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings.images import BagImage, EncodedImage, Image, PixelImage, SourceError, read_pixels
from loftr_ros.recordings.registration import Registration

RIGHT_FRAME_ID = "right_camera_optical_frame"
MODES = (MONO, STEREO, RGBD)
_RECTIFIED = 1e-6  # of a rotation, and in metres, between two cameras that are still a rectified pair

COME_WITH: Mapping[str, str] = {
    STEREO: "right images come with KITTI odometry of both cameras, EuRoC with cam0 and cam1, bags with a right topic "
    "(--right-topic), and the rendered scene",
    RGBD: "depth images come with 7-Scenes, TUM RGB-D with depth.txt, bags with a depth topic (--depth-topic), and the "
    "rendered scene",
}
NO_COMPANIONS: Mapping[str, str] = {
    STEREO: f"this source has no right images; {COME_WITH[STEREO]}",
    RGBD: f"this source has no depth images; {COME_WITH[RGBD]}",
}


def check_mode(mode: str) -> None:
    """Makes sure that the front end has such a mode.

    Raises:
        SourceError: it has not.
    """
    if mode not in MODES:
        raise SourceError(f"mode '{mode}' is not known; expected {', '.join(MODES)}")


class LaterImage(Protocol):
    """An image that is made when it is asked for."""

    def read(self) -> EncodedImage | PixelImage:
        """The image.

        Raises:
            SourceError: it cannot be had.
        """


@dataclass(frozen=True)
class ImageFile:
    """An image file that is read when it is asked for; `format` as in `EncodedImage`."""

    path: Path
    format: str

    def read(self) -> EncodedImage:
        """The file as it is.

        Raises:
            SourceError: it cannot be read.
        """
        try:
            return EncodedImage(self.path.read_bytes(), self.format, str(self.path))
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error}") from error


@dataclass(frozen=True, eq=False)
class RightView:
    """The right camera's side of a frame, as it came.

    Attributes:
        image: as the source holds it.
        camera: the right camera's calibration.
        left_from_right: (4, 4) float64 T_left_right in metres, between the two optical frames.
        frame_id: the right camera's optical frame.
        by_info: the messages of both calibrations say the same of its place, and whether images are rectified counts.
    """

    image: Image | LaterImage
    camera: CameraModel
    left_from_right: NDArray[np.float64]
    frame_id: str = RIGHT_FRAME_ID
    by_info: bool = False

    def load(self) -> Image:
        """The image, read now if it has not been.

        Raises:
            SourceError: it cannot be read.
        """
        image = self.image
        return image if isinstance(image, EncodedImage | PixelImage | BagImage) else image.read()

    def check_size(self, width: int, height: int, which: str) -> None:
        """Makes sure that the image, of this size and so named, is of the size that the calibration is for.

        Raises:
            SourceError: it is not.
        """
        if (self.camera.width, self.camera.height) != (width, height):
            raise SourceError(
                f"the right image of {which} is {width}x{height}, but the right camera's calibration is for "
                f"{self.camera.width}x{self.camera.height}"
            )

    @property
    def baseline(self) -> float | None:
        """Metres along the left camera's x of a rectified pair; None of a pair that is not rectified."""
        rest = self.left_from_right - np.eye(4)
        baseline = float(rest[0, 3])
        rest[0, 3] = 0
        return baseline if np.abs(rest).max() <= _RECTIFIED else None


@dataclass(frozen=True)
class DepthFile:
    """A depth image in a file of 16 bits a pixel.

    Attributes:
        path: where it is.
        unit: metres a unit of its values.
        hole: a value beside zero that is a hole, or None.
        registration: of a depth camera whose images are not in the image's pixels yet; None where they are.
    """

    path: Path
    unit: float
    hole: int | None = None
    registration: Registration | None = None

    def decode(self, size: tuple[int, int] | None = None) -> DepthImage:
        """The depth in the image's pixels, read now.

        Args:
            size: (width, height) of the image; None for any.

        Raises:
            SourceError: it cannot be read, is of another type or size.
        """
        values: NDArray[Any] = read_pixels(ImageFile(self.path, "png").read(), cv2.IMREAD_UNCHANGED)
        if values.dtype != np.uint16 or values.ndim != 2:
            channels = 1 if values.ndim == 2 else values.shape[2]
            raise SourceError(
                f"{self.path} is no depth image: it has {channels} channel(s) of {values.dtype}; expected one of "
                f"uint16, {self.unit:g} m a unit"
            )
        height, width = values.shape
        registration = self.registration
        if registration is not None:
            expected = registration.depth_camera.width, registration.depth_camera.height
            if expected != (width, height):
                raise SourceError(
                    f"{self.path} is {width}x{height}, but the depth camera's calibration is for "
                    f"{expected[0]}x{expected[1]}"
                )
            return DepthImage(registration.apply(values, self.unit, self.hole), self.unit)
        if size is not None and size != (width, height):
            raise SourceError(
                f"{self.path} is {width}x{height}, but the image that it belongs to is {size[0]}x{size[1]}; a depth "
                "image must be registered to its image, pixel by pixel"
            )
        return DepthImage(values, self.unit, self.hole)
