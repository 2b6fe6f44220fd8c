"""Settings of two-view geometry and of pose by depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loftr_ros.settings import Settings, setting


@dataclass(frozen=True)
class GeometryConfig(Settings):
    """Settings of two-view geometry."""

    live: ClassVar[bool] = True

    threshold: float = setting(
        1.0, "Distance from its epipolar line beyond which a match is an outlier", unit="px", low=0.05, high=20.0
    )
    confidence: float = setting(
        0.9999, "Probability that a sample without outliers is drawn before the search ends", low=0.5, high=0.999999
    )
    max_iterations: int = setting(1000, "Samples that the search draws, at most", low=10, high=100000)
    min_matches: int = setting(16, "Matches below which no pose is estimated", low=8, high=10000)
    min_inliers: int = setting(12, "Inliers below which a pose is not trusted", low=6, high=10000)
    min_significance: float = setting(
        6.0,
        "Minus the decimal logarithm of how often random matches may give a pose as many inliers; 0 for never refused",
        low=0.0,
        high=300.0,
    )
    min_explained: float = setting(
        0.4,
        "Part of what both images should show, by the pose, that inliers must cover for it to be trusted by itself",
        low=0.0,
        high=1.0,
    )
    min_explained_after_gap: float = setting(
        0.6,
        "The same where the camera was not located within the last second, and may be where things look alike",
        low=0.0,
        high=1.0,
    )
    min_agreeing: float = setting(
        0.5,
        "Part of the matches that must be inliers for a pose to be trusted by itself",
        low=0.0,
        high=1.0,
    )
    focal_std: float = setting(
        0.004,
        "Standard deviation of the calibration's focal length, as a part of it, that covariances allow for",
        low=0.0,
        high=0.1,
    )
    centre_std: float = setting(
        1.5,
        "Standard deviation of the calibration's principal point along one axis, that covariances allow for",
        unit="px",
        low=0.0,
        high=100.0,
    )
    match_bias: float = setting(
        1.0,
        "Error that the matches of a region share, in units of what was measured on rendered images, that covariances "
        "allow for",
        low=0.0,
        high=100.0,
    )
    depth_scale_std: float = setting(
        0.01,
        "Standard deviation of the error that a keyframe's depths share, as a part of them, that covariances allow for",
        low=0.0,
        high=0.5,
    )
    min_parallax: float = setting(
        1.0,
        "Median motion, without the rotation's part, below which the translation's direction counts as unobserved",
        unit="px",
        low=0.0,
        high=100.0,
    )
    min_parallax_to_noise: float = setting(
        4.0,
        "Median parallax in units of the matches' noise below which the translation's direction counts as unobserved",
        low=0.0,
        high=100.0,
    )
    planar_ratio: float = setting(
        0.85,
        "Part of the inliers that one homography must explain for the scene to count as a plane",
        low=0.5,
        high=1.0,
    )
    min_spread: float = setting(
        0.05,
        "Part of the image that inliers must be spread over, below which they are called concentrated; 0 for never",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class DepthConfig(Settings):
    """Depth of a keyframe's cells."""

    live: ClassVar[bool] = True

    min_depth: float = setting(0.1, "Depth below which nothing is believed", unit="m", low=0.001, high=100.0)
    max_depth: float = setting(
        10.0, "Depth in a depth image beyond which nothing is believed", unit="m", low=0.1, high=10000.0
    )
    max_edge: float = setting(
        0.05, "Difference of depths around a cell's point, as a part of them, that tells of an edge", low=0.0, high=1.0
    )
    edge_window: int = setting(2, "How far around a cell's point that is looked for", unit="px", low=0, high=16)
    image_noise: float = setting(
        0.003,
        "Noise of a depth image's inverse depth that is the same at all depths, as of structured light and stereo",
        unit="1/m",
        low=0.0,
        high=1.0,
    )
    image_offset: float = setting(
        0.003, "Noise of a depth image's depth that is the same at all depths", unit="m", low=0.0, high=1.0
    )
    max_epipolar: float = setting(
        1.5, "Distance of a stereo match from its epipolar line beyond which it is wrong", unit="px", low=0.1, high=20.0
    )
    stereo_std: float = setting(
        0.5, "Standard deviation of a stereo match whose network does not tell it", unit="px", low=0.01, high=10.0
    )
    min_parallax: float = setting(
        5.0, "Median parallax from which on a single camera's cells are triangulated", unit="px", low=0.0, high=1000.0
    )
    min_cells: int = setting(
        30, "Cells of known depth in agreement with a pose, below which its length is not known", low=4, high=10000
    )
