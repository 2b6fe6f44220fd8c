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
        1.0, "Maximum distance of an inlier from its epipolar line", unit="px", low=0.05, high=20.0
    )
    confidence: float = setting(
        0.9999, "Probability of a sample without outliers at which the search (MAGSAC++) stops", low=0.5, high=0.999999
    )
    max_iterations: int = setting(1000, "Maximum number of samples of the search (MAGSAC++)", low=10, high=100000)
    min_matches: int = setting(16, "Minimum number of matches for a pose estimate", low=8, high=10000)
    min_inliers: int = setting(12, "Minimum number of inliers of a trusted pose", low=6, high=10000)
    min_significance: float = setting(
        6.0,
        "Minimum significance of a pose: -log10 of how often random matches give as many inliers; 0 for no limit",
        low=0.0,
        high=300.0,
    )
    min_explained: float = setting(
        0.4,
        "Minimum share of the predicted common view that inliers cover; a pose below it needs support from the "
        "previous motion",
        low=0.0,
        high=1.0,
    )
    min_explained_after_gap: float = setting(
        0.5,
        "As `geometry.min_explained`, for a camera that was not located within the last second and may see a "
        "look-alike",
        low=0.0,
        high=1.0,
    )
    min_agreeing: float = setting(
        0.5,
        "Minimum share of matches that are inliers; a pose below it needs support from the previous motion",
        low=0.0,
        high=1.0,
    )
    focal_std: float = setting(
        0.004,
        "Standard deviation of the calibrated focal length as a fraction of it; covariances include its effect",
        low=0.0,
        high=0.1,
    )
    centre_std: float = setting(
        1.5,
        "Standard deviation of the calibrated principal point along one axis; covariances include its effect",
        unit="px",
        low=0.0,
        high=100.0,
    )
    match_bias: float = setting(
        1.0,
        "Error that the matches of a region share, relative to the value measured on rendered images; covariances"
        " include its effect",
        low=0.0,
        high=100.0,
    )
    depth_scale_std: float = setting(
        0.01,
        "Standard deviation of the error that all depths of a keyframe share, as a fraction of them; covariances "
        "include its effect",
        low=0.0,
        high=0.5,
    )
    min_parallax: float = setting(
        1.0,
        "Minimum median motion after removal of the rotation; below it the translation direction counts as unobserved",
        unit="px",
        low=0.0,
        high=100.0,
    )
    min_parallax_to_noise: float = setting(
        4.0,
        "Minimum ratio of median parallax to match noise; below it the translation direction counts as unobserved",
        low=0.0,
        high=100.0,
    )
    planar_ratio: float = setting(
        0.85,
        "Minimum share of inliers that one homography explains when the status is PLANAR",
        low=0.5,
        high=1.0,
    )
    min_spread: float = setting(
        0.05,
        "Minimum share of the image that inliers are spread over; below it the status is CONCENTRATED; 0 for no limit",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class DepthConfig(Settings):
    """Depth of a keyframe's cells."""

    live: ClassVar[bool] = True

    min_depth: float = setting(0.1, "Minimum depth; smaller depths are ignored", unit="m", low=0.001, high=100.0)
    max_depth: float = setting(
        10.0, "Maximum depth in a depth image; larger depths are ignored", unit="m", low=0.1, high=10000.0
    )
    max_edge: float = setting(
        0.05,
        "Maximum relative difference of the depths around a cell's point; above it an edge is assumed and the "
        "cell has no depth",
        low=0.0,
        high=1.0,
    )
    edge_window: int = setting(
        2, "Radius of the search for depth edges around a cell's point", unit="px", low=0, high=16
    )
    image_noise: float = setting(
        0.003,
        "Noise of a depth image's inverse depth that is constant over depth, as of structured light and stereo",
        unit="1/m",
        low=0.0,
        high=1.0,
    )
    image_offset: float = setting(
        0.003, "Noise of a depth image's depth that is constant over depth", unit="m", low=0.0, high=1.0
    )
    max_epipolar: float = setting(
        1.5, "Maximum distance of a stereo match from its epipolar line", unit="px", low=0.1, high=20.0
    )
    stereo_std: float = setting(
        0.5, "Standard deviation of a stereo match if the network predicts none", unit="px", low=0.01, high=10.0
    )
    max_baselines: float = setting(
        40.0,
        "Maximum depth by stereo, in baselines, if five times depth.min_cells cells are nearer. An error that all "
        "disparities share (0.2 px on KITTI) makes farther points too far by a percent and more",
        low=1.0,
        high=100000.0,
    )
    min_parallax: float = setting(
        5.0, "Minimum median parallax for triangulation with a single camera", unit="px", low=0.0, high=1000.0
    )
    min_cells: int = setting(
        30,
        "Minimum number of cells of known depth that agree with a pose; below it the length of the translation is"
        " unknown",
        low=4,
        high=10000,
    )
