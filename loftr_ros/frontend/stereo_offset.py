"""The stereo pair's common error of disparity, learned from keyframe to keyframe."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.keyframes import Keyframe
from loftr_ros.frontend.results import Correspondences, MatchedRays
from loftr_ros.geometry.config import GeometryConfig
from loftr_ros.geometry.depth_problem import DepthMatches
from loftr_ros.geometry.disparity_offset import measure_offset
from loftr_ros.geometry.epipolar import CommonErrors, shared_match_error
from loftr_ros.geometry.metric_pose import match_std
from loftr_ros.geometry.two_view import RelativePose

# Pixels: standard deviation of the offset of calibrated pairs; of an estimate that is worth keeping, at most.
_USUAL, _LARGEST_STD = 0.2, 1.0
# The calibration is believed unless it is so many standard deviations off.
_SIGNIFICANT = 2.0
# Matches used, at most.
_USED = 1000
# Cells of known depth from which on a pair of keyframes is looked at, and least angle, in parallax in px.
_LEAST_CELLS, _LEAST_PARALLAX = 60, 5.0


class StereoOffset:
    """Estimates the offset by weighted means over pairs of keyframes.

    Errors of the calibration act on all pairs alike, so their effect is averaged with its sign.
    """

    def __init__(self, geometry: GeometryConfig) -> None:
        """`geometry` has the uncertainties of calibration and matches; it may be replaced."""
        self.geometry = geometry
        self._seen_ns: int | None = None
        self._weight = self._sum = 0.0
        self._by_calibration: NDArray[np.float64] = np.zeros(3)

    @property
    def estimate(self) -> tuple[float, float]:
        """Pixels by which all disparities are too large, and its standard deviation; zero if nothing is known."""
        total = self._weight + 1 / _USUAL**2
        spread = float(np.linalg.norm(self._by_calibration)) / total
        return self._sum / total, math.hypot(1 / math.sqrt(total), spread)

    @property
    def value(self) -> float:
        """Pixels by which all disparities are too large; zero if the calibration may be right. For any thread."""
        value, std = self.estimate
        return value if abs(value) > _SIGNIFICANT * std else 0.0

    def observe(
        self, keyframe: Keyframe, matches: Correspondences, rays: MatchedRays, pose: RelativePose, stamp_ns: int
    ) -> None:
        """Learn from a frame that becomes a keyframe.

        Args:
            keyframe: the older one, with stereo depths.
            matches: of it with the frame.
            rays: of the matches.
            pose: of the frame relative to it, in metres.
            stamp_ns: of the frame; one that was seen before is ignored.
        """
        stereo = None if keyframe.depth is None else keyframe.depth.stereo
        if stereo is None or not pose.scale_known or stamp_ns == self._seen_ns:
            return
        if pose.median_parallax < _LEAST_PARALLAX:
            return
        cell = matches.track_id
        used = np.flatnonzero(pose.inliers & np.isfinite(stereo.inverse[cell]))
        if len(used) < _LEAST_CELLS:
            return
        self._seen_ns = stamp_ns
        used = used[:: -(-len(used) // _USED)]
        cell = cell[used]
        std = match_std(matches.std[used], self.geometry)
        found = measure_offset(
            DepthMatches(
                rays.keyframe[used],
                rays.current[used],
                stereo.inverse[cell],
                stereo.variance[cell],
                std / rays.focal_length,
            ),
            stereo.focal_baseline,
            pose.rotation,
            pose.translation,
            CommonErrors.of(self.geometry, rays.focal_length, shared_match_error(std)[0]),
        )
        if found is None or found.std > _LARGEST_STD:
            return
        weight = 1 / (found.std**2 + float((found.by_calibration**2).sum()))
        self._weight += weight
        self._sum += weight * found.value
        self._by_calibration += weight * found.by_calibration
