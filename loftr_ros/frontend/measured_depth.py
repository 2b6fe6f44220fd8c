"""Measured depths of a keyframe's cells, by the depth image or the right image, and why there are none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth, from_depth_image, from_stereo
from loftr_ros.frontend.config import RGBD, STEREO
from loftr_ros.frontend.frame import DepthImage, Frame, RightImage
from loftr_ros.frontend.keyframes import EncodedFrame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.results import Correspondences
from loftr_ros.frontend.stereo_offset import StereoOffset
from loftr_ros.frontend.stream import StreamWarning
from loftr_ros.geometry.config import DepthConfig
from loftr_ros.matcher.interface import QuickMatcher

# Least part of the cells that have a value in the depth image at all; below it the sensor sees nothing.
_LEAST_VALUES = 0.1
# Metres between the cameras of a stereo pair; no robot carries more, but a calibration in millimetres says so.
_LONGEST_BASELINE = 10.0


class DepthMeasuring:
    """Measures the depths of keyframes, and remembers why the last one has too few of them.

    A robot must not move on for an hour without metres because a driver's depths are in another unit, and nobody said
    it.
    """

    def __init__(self, pairs: PairMatcher, offset: StereoOffset | None = None) -> None:
        """Create it.

        Args:
            pairs: has the network and the settings.
            offset: what is known of the error that all disparities share; None for none.
        """
        self._pairs, self._offset = pairs, offset
        self._warning: StreamWarning | None = None
        self._last: tuple[Frame, tuple[int, int], CellDepth | None] | None = None

    def take_warning(self) -> StreamWarning | None:
        """Warning about the keyframes since the last call; None without."""
        warning, self._warning = self._warning, None
        return warning

    def of(self, keyframe: EncodedFrame, encode: Callable[[Frame], EncodedFrame]) -> CellDepth | None:
        """Measured depths of the cells; None for a single camera. Asked again for the last frame, it remembers them.

        Args:
            keyframe: the keyframe.
            encode: encodes the right image at the keyframe's resolution.
        """
        last = self._last
        if last is not None and last[0] is keyframe.frame and last[1] == keyframe.grid:
            return last[2]
        found = self._measure(keyframe, encode)
        self._last = keyframe.frame, keyframe.grid, found
        return found

    def _measure(self, keyframe: EncodedFrame, encode: Callable[[Frame], EncodedFrame]) -> CellDepth | None:
        """As `of`."""
        frame, mode = keyframe.frame, self._pairs.config.scale.mode
        config = self._pairs.config.depth
        if mode == RGBD and frame.depth is not None:
            found = from_depth_image(frame.depth, keyframe.cell_points, config)
            if found.known.sum() < config.min_cells:
                why = why_depth_image_fails(frame.depth, keyframe.cell_points, config)
                self._warning = StreamWarning("depth", why)
            return found
        if mode != STEREO or frame.right is None or keyframe.cell_rays is None:
            return None
        right = frame.right
        matches = self._match_right(keyframe, encode(Frame(right.image, frame.stamp_ns, frame.frame_id, right.camera)))
        rays = keyframe.cell_rays[matches.track_id], right.camera.unproject(matches.current_points)
        found = from_stereo(
            len(keyframe.cell_points),
            matches.track_id,
            *rays,
            right.left_from_right,
            matches.std,
            right.camera,
            config,
            0.0 if self._offset is None else self._offset.value,
        )
        baseline = float(np.linalg.norm(right.left_from_right[:3, 3]))
        if baseline > _LONGEST_BASELINE:
            self._warning = StreamWarning(
                "right",
                f"the right CameraInfo puts the cameras {baseline:.4g} m apart; P[0, 3] is -fx times the baseline in "
                "metres: is the calibration in millimetres? All lengths are as wrong as it is",
            )
        elif found.known.sum() < config.min_cells <= len(matches):
            self._warning = StreamWarning("right", why_stereo_fails(*rays, right, config))
        return found

    def _match_right(self, keyframe: EncodedFrame, right: EncodedFrame) -> Correspondences:
        """Matches with the right image. Both are so close to each other that attention changes nearly nothing."""
        matcher, features = self._pairs.matcher, [keyframe.features]
        if isinstance(matcher, QuickMatcher):
            found = matcher.match_quickly(features, right.features, len(keyframe.cell_points), [None])[0]
        else:
            found = matcher.match(features, right.features)[0]
        return self._pairs.to_raw_pixels(keyframe, right, found)


def why_depth_image_fails(depth: DepthImage, points: NDArray[np.floating], config: DepthConfig) -> str:
    """Why hardly a cell has a depth, in words.

    Args:
        depth: the image.
        points: (L, 2) pixels of the cells' points.
        config: range and edges.
    """
    height, width = depth.values.shape
    columns, rows = np.rint(points).astype(np.int64).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    metres = depth.metres(depth.values[rows[inside], columns[inside]])
    values = metres[np.isfinite(metres)]
    units = "16UC1 is in millimetres, 32FC1 in metres (REP 118)"
    if len(values) < _LEAST_VALUES * max(len(points), 1):
        why = (
            f"only {len(values)} of {len(points)} cells have a value: is the depth sensor covered, too close, or "
            "blinded by the sun?"
        )
    elif (middle := float(np.median(values))) > config.max_depth:
        why = (
            f"the median depth is {middle:.4g} m, beyond depth.max_depth ({config.max_depth:g} m): {units}; does the "
            "driver publish another unit? For a larger scene raise depth.max_depth"
        )
    elif middle < config.min_depth:
        why = (
            f"the median depth is {middle:.4g} m, below depth.min_depth ({config.min_depth:g} m): {units}; does the "
            "driver publish another unit?"
        )
    else:
        why = (
            f"{len(values)} of {len(points)} cells have a value, but it is out of range, or has a hole or an edge "
            f"beside it: is the image noisy? See depth.max_edge and depth.edge_window"
        )
    return f"the depth image gives the keyframe no depths, and poses relative to it have no length: {why}"


def why_stereo_fails(
    rays_left: NDArray[np.float64], rays_right: NDArray[np.float64], right: RightImage, config: DepthConfig
) -> str:
    """Why hardly a match between the left and the right image gives a depth, in words.

    Args:
        rays_left, rays_right: (N, 2) normalised coordinates of the matches.
        right: camera and position of the right image.
        config: thresholds.
    """
    swapped = np.asarray(np.linalg.inv(right.left_from_right), np.float64)
    std = np.full(len(rays_left), config.stereo_std)
    cells = np.arange(len(rays_left))
    by_swapped = from_stereo(len(cells), cells, rays_left, rays_right, swapped, std, right.camera, config)
    number = len(rays_left)
    if by_swapped.known.sum() > number / 2:
        why = f"{int(by_swapped.known.sum())} of {number} matches fit if left and right are swapped: check the topics"
    else:
        why = (
            f"hardly one of {number} matches is on its epipolar line, within depth.max_epipolar "
            f"({config.max_epipolar:g} px): are both images of one moment, and is the calibration that of this pair?"
        )
    return f"the right image gives the keyframe no depths, and poses relative to it have no length: {why}"
