"""Depth images that were not registered: moved from the depth camera's pixels to those of the image's camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraModel


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the depth camera stands beside the image's camera.

    Attributes:
        depth_camera, image_camera: their calibrations.
        image_from_depth: (4, 4) T_image_depth in metres, between the two optical frames.
    """

    depth_camera: CameraModel
    image_camera: CameraModel
    image_from_depth: NDArray[np.float64]

    @cached_property
    def _rays(self) -> NDArray[np.float64]:
        """(3, H * W) what the depth camera's pixels see at one metre of depth, turned as the image's camera is."""
        height, width = self.depth_camera.height, self.depth_camera.width
        v, u = np.mgrid[:height, :width].reshape(2, -1)
        x, y = self.depth_camera.unproject(np.column_stack([u, v])).T
        return np.asarray(self.image_from_depth[:3, :3] @ np.stack([x, y, np.ones_like(x)]))

    def apply(self, values: NDArray[np.uint16], unit: float, hole: int | None) -> NDArray[np.uint16]:
        """The depth that the image's camera sees; of several points on a pixel the nearest, which hides the others.

        Args:
            values: (H, W) uint16 in the depth camera's pixels.
            unit: metres a unit.
            hole: a value beside zero that is a hole, or None.

        Returns:
            uint16 in the pixels of the image, in the same unit; zero for holes, which are also what only one of the two
            cameras sees.
        """
        flat = values.reshape(-1)
        there = flat > 0 if hole is None else (flat > 0) & (flat != hole)
        # All of them, holes too: choosing takes longer than computing.
        points = self._rays * (flat * unit) + self.image_from_depth[:3, 3:]
        u, v = self.image_camera.project(points.T).T
        width, height = self.image_camera.width, self.image_camera.height
        # NaN, for what has no pixel, is in no range.
        inside = there & (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
        pixel = np.rint(v[inside]).astype(np.int64) * width + np.rint(u[inside]).astype(np.int64)
        depth = np.rint(points[2, inside] / unit)
        # The largest value marks pixels that nothing falls on, so it cannot be a depth.
        seen = np.full(width * height, 65535, np.uint16)
        np.minimum.at(seen, pixel, np.clip(depth, 1, 65534).astype(np.uint16))
        seen[seen == 65535] = 0
        return seen.reshape(height, width)
