"""Input of the front end for one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraModel


@dataclass(frozen=True, eq=False)
class DepthImage:
    """Depth along the optical axis for each pixel of the image that it is registered to.

    Attributes:
        values: (H, W) uint16 or float32, unconverted; zero and non-finite values are holes.
        unit: metres per unit of `values`.
        hole: another value that means a hole, such as 65535 of some sensors; None if there is none.
    """

    values: NDArray[np.uint16] | NDArray[np.float32]
    unit: float
    hole: int | None = None

    def metres(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Convert values to metres, float32, NaN for holes."""
        with np.errstate(invalid="ignore"):
            there = (values > 0) & np.isfinite(values)
        if self.hole is not None:
            there &= values != self.hole
        return np.where(there, values * np.float32(self.unit), np.float32("nan"))


@dataclass(frozen=True, eq=False)
class RightImage:
    """Simultaneous image of a second camera, fixed to the first.

    Attributes:
        source: (H, W) uint8 gray, raw; or a function that makes it on first use, because only keyframes need it.
        camera: its calibration.
        left_from_right: (4, 4) T_left_right in metres, between the two optical frames.
    """

    source: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]]
    camera: CameraModel
    left_from_right: NDArray[np.float64]

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """(H, W) uint8 gray, raw."""
        return self.source() if callable(self.source) else self.source


@dataclass(frozen=True)
class Frame:
    """One camera image with its companions.

    Attributes:
        image: (H, W) uint8 gray, the raw (unresized, distorted) image.
        stamp_ns: stamp of the image header, in nanoseconds.
        frame_id: optical frame of the image header (REP 103: x right, y down, z forward).
        camera: calibration for this image size; None if unknown.
        usable: (H, W) bool, false for raw pixels to ignore (the robot's own body, moving objects); None to use all.
        depth: registered to `image`, if there is a depth camera.
        right: of a stereo pair, of which `image` is the left one.
        camera_number: of the camera in a rig; 0 with a single camera or a stereo pair.
        compressed: the JPEG that `image` was decoded from, for storage; None for other inputs.
    """

    image: NDArray[np.uint8]
    stamp_ns: int
    frame_id: str
    camera: CameraModel | None = None
    usable: NDArray[np.bool_] | None = None
    depth: DepthImage | None = None
    right: RightImage | None = None
    compressed: memoryview | None = None
    camera_number: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        height, width = self.image.shape
        return width, height
