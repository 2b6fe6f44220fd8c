"""Companions of images in some sources: the right image of a stereo pair, or a depth image.

They are read and decoded on demand: most users of a stereo recording need only one camera.
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
_RECTIFIED = 1e-6  # largest deviation of a rotation, and in metres, for a rectified pair

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
    """Check that the front end has a mode of this name.

    Raises:
        SourceError: it has not.
    """
    if mode not in MODES:
        raise SourceError(f"mode '{mode}' is not known; expected {', '.join(MODES)}")


class LazyImage(Protocol):
    """An image that is made on demand."""

    def read(self) -> EncodedImage | PixelImage:
        """The image.

        Raises:
            SourceError: it is not available.
        """


@dataclass(frozen=True)
class ImageFile:
    """An image file that is read on demand; `format` as in `EncodedImage`."""

    path: Path
    format: str

    def read(self) -> EncodedImage:
        """The file's contents.

        Raises:
            SourceError: it cannot be read.
        """
        try:
            return EncodedImage(self.path.read_bytes(), self.format, str(self.path))
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error}") from error


@dataclass(frozen=True, eq=False)
class RightView:
    """The right camera's part of a frame.

    Attributes:
        image: undecoded.
        camera: the right camera's calibration.
        left_from_right: (4, 4) float64 T_left_right in metres, between the two optical frames.
        frame_id: the right camera's optical frame.
        by_info: the messages of both calibrations define the same pose, so the setting for rectified images applies.
    """

    image: Image | LazyImage
    camera: CameraModel
    left_from_right: NDArray[np.float64]
    frame_id: str = RIGHT_FRAME_ID
    by_info: bool = False

    def load(self) -> Image:
        """Read the image if needed.

        Raises:
            SourceError: it cannot be read.
        """
        image = self.image
        return image if isinstance(image, EncodedImage | PixelImage | BagImage) else image.read()

    def check_size(self, width: int, height: int, which: str) -> None:
        """Check that the image, of this size and name, has the size of the calibration.

        Raises:
            SourceError: it has not.
        """
        if (self.camera.width, self.camera.height) != (width, height):
            raise SourceError(
                f"the right image of {which} is {width}x{height}, but the right camera's calibration is for "
                f"{self.camera.width}x{self.camera.height}"
            )

    @property
    def baseline(self) -> float | None:
        """Metres along the left camera's x of a rectified pair; None for a pair that is not rectified."""
        rest = self.left_from_right - np.eye(4)
        baseline = float(rest[0, 3])
        rest[0, 3] = 0
        return baseline if np.abs(rest).max() <= _RECTIFIED else None


@dataclass(frozen=True)
class DepthFile:
    """A depth image in a file: with 16 bits per pixel, or NumPy's with 32-bit floats.

    Attributes:
        path: of the file.
        unit: metres per unit of its values.
        hole: a value beside zero that is a hole, or None.
        registration: of a depth camera whose images are not registered; None if they are.
    """

    path: Path
    unit: float
    hole: int | None = None
    registration: Registration | None = None

    def decode(self, size: tuple[int, int] | None = None) -> DepthImage:
        """Read the depth in the image's pixels.

        Args:
            size: (width, height) of the image; None for any.

        Raises:
            SourceError: it cannot be read, or is of another type or size.
        """
        values: NDArray[Any] = self._values()
        if values.dtype != (np.float32 if self.path.suffix == ".npy" else np.uint16) or values.ndim != 2:
            channels = 1 if values.ndim == 2 else values.shape[2]
            raise SourceError(
                f"{self.path} is not a depth image: it has {channels} channel(s) of {values.dtype}; expected one of "
                f"{'float32' if self.path.suffix == '.npy' else 'uint16'}, {self.unit:g} m per unit"
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
                f"{self.path} is {width}x{height}, but its image is {size[0]}x{size[1]}; a depth "
                "image must be registered to its image, pixel by pixel"
            )
        return DepthImage(values, self.unit, self.hole)

    def _values(self) -> NDArray[Any]:
        if self.path.suffix != ".npy":
            return read_pixels(ImageFile(self.path, "png").read(), cv2.IMREAD_UNCHANGED)
        try:
            return np.asarray(np.load(self.path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise SourceError(f"{self.path} cannot be read: {error}") from error
