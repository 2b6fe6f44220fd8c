"""What one image carries through the front end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.camera import CameraModel


@dataclass(frozen=True)
class Frame:
    """One camera image on its way in.

    Attributes:
        image: (H, W) uint8 gray, the raw (unresized, distorted) image.
        stamp_ns: the image header's stamp, in nanoseconds.
        frame_id: the image header's optical frame (REP 103: x right, y down, z forward).
        camera: the camera's calibration for this image size, or None where it is unknown.
        usable: (H, W) bool, false for raw pixels to ignore (the robot's own body, moving objects); None to use all.
    """

    image: NDArray[np.uint8]
    stamp_ns: int
    frame_id: str
    camera: CameraModel | None = None
    usable: NDArray[np.bool_] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        height, width = self.image.shape
        return width, height
