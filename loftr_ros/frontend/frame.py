"""What one image carries through the front end."""

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
    """Depth along the optical axis, pixel by pixel of the image that it is registered to.

    Attributes:
        values: (H, W) uint16 or float32, as they came; zero, and what is not finite, is a hole.
        unit: metres a unit of `values`.
        hole: another value that is a hole, as 65535 is of some sensors; None for no such value.
    """

    values: NDArray[np.uint16] | NDArray[np.float32]
    unit: float
    hole: int | None = None

    def metres(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Some of the values in metres, float32, NaN for holes."""
        with np.errstate(invalid="ignore"):
            there = (values > 0) & np.isfinite(values)
        if self.hole is not None:
            there &= values != self.hole
        return np.where(there, values * np.float32(self.unit), np.float32("nan"))


@dataclass(frozen=True, eq=False)
class RightImage:
    """What a second camera, fixed to the first, saw at the same moment.

    Attributes:
        source: (H, W) uint8 gray, raw; or what makes it, when it is asked for first: only keyframes need it.
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
    """One camera image on its way in.

    Attributes:
        image: (H, W) uint8 gray, the raw (unresized, distorted) image.
        stamp_ns: the image header's stamp, in nanoseconds.
        frame_id: the image header's optical frame (REP 103: x right, y down, z forward).
        camera: the camera's calibration for this image size, or None where it is unknown.
        usable: (H, W) bool, false for raw pixels to ignore (the robot's own body, moving objects); None to use all.
        depth: registered to `image`, where there is a depth camera.
        right: of a stereo pair, of which `image` is the left one.
        compressed: the JPEG that `image` was decoded from, for who keeps it; None where it came otherwise.
    """

    image: NDArray[np.uint8]
    stamp_ns: int
    frame_id: str
    camera: CameraModel | None = None
    usable: NDArray[np.bool_] | None = None
    depth: DepthImage | None = None
    right: RightImage | None = None
    compressed: memoryview | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        height, width = self.image.shape
        return width, height
