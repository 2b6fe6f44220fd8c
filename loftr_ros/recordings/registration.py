"""Registration of depth images: moves them from the depth camera's pixels to those of the image's camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.camera import CameraModel


@dataclass(frozen=True, eq=False)
class Registration:
    """Pose of the depth camera relative to the image's camera.

    Attributes:
        depth_camera, image_camera: their calibrations.
        image_from_depth: (4, 4) T_image_depth in metres, between the two optical frames.
    """

    depth_camera: CameraModel
    image_camera: CameraModel
    image_from_depth: NDArray[np.float64]

    @cached_property
    def _rays(self) -> NDArray[np.float64]:
        """(3, H * W) points of the depth camera's pixels at one metre of depth, rotated to the image camera's axes."""
        height, width = self.depth_camera.height, self.depth_camera.width
        v, u = np.mgrid[:height, :width].reshape(2, -1)
        x, y = self.depth_camera.unproject(np.column_stack([u, v])).T
        return np.asarray(self.image_from_depth[:3, :3] @ np.stack([x, y, np.ones_like(x)]))

    def apply(self, values: NDArray[np.uint16], unit: float, hole: int | None) -> NDArray[np.uint16]:
        """The depth in the image camera; of several points on a pixel the nearest, which hides the others.

        Args:
            values: (H, W) uint16 in the depth camera's pixels.
            unit: metres per unit.
            hole: a value beside zero that is a hole, or None.

        Returns:
            uint16 in the pixels of the image, in the same unit; zero for holes and for points visible to only one of
            the cameras.
        """
        flat = values.reshape(-1)
        there = flat > 0 if hole is None else (flat > 0) & (flat != hole)
        # All of them, including holes: selecting takes longer than computing.
        points = self._rays * (flat * unit) + self.image_from_depth[:3, 3:]
        u, v = self.image_camera.project(points.T).T
        width, height = self.image_camera.width, self.image_camera.height
        # NaN, for points without a pixel, is in no range.
        inside = there & (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
        pixel = np.rint(v[inside]).astype(np.int64) * width + np.rint(u[inside]).astype(np.int64)
        depth = np.rint(points[2, inside] / unit)
        # The largest value marks pixels without a point, so it cannot be a depth.
        nearest = np.full(width * height, 65535, np.uint16)
        np.minimum.at(nearest, pixel, np.clip(depth, 1, 65534).astype(np.uint16))
        nearest[nearest == 65535] = 0
        return nearest.reshape(height, width)
