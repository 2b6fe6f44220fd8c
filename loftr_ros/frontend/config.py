"""Settings of the front end: one frozen dataclass per stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from loftr_ros.geometry.config import DepthConfig, GeometryConfig
from loftr_ros.settings import FLAT, Settings, setting


@dataclass(frozen=True)
class ImageConfig(Settings):
    """Input size of the network."""

    max_side: int = setting(
        960,
        "Longer side of what the network sees; larger images are shrunk to it",
        unit="px",
        low=64,
        high=8192,
    )


@dataclass(frozen=True)
class RefineConfig(Settings):
    """Pyramidal Lucas-Kanade from the coarse match, for networks without a fine stage."""

    live: ClassVar[bool] = True

    window: int = setting(17, "Side of the patch that is tracked", unit="px", low=5, high=63)
    levels: int = setting(1, "Pyramid levels above the image that the network sees", low=0, high=6)
    iterations: int = setting(10, "Iterations per level, at most", low=1, high=100)
    max_forward_backward: float = setting(
        0.5, "Distance between a keyframe point and where tracking there and back ends", unit="px", low=0.01, high=10.0
    )


@dataclass(frozen=True)
class KeyframeConfig(Settings):
    """Policies that add and drop keyframes."""

    live: ClassVar[bool] = True

    capacity: int = setting(10, "Keyframes held, at most", low=1, high=1000, live=False)
    max_matched: int = setting(1, "Keyframes matched with each frame, at most (K)", low=1, high=16)
    min_coverage: float = setting(
        0.4, "Part of the image that inliers must cover; below it a new keyframe comes", low=0.0, high=1.0
    )
    min_explained: float = setting(
        0.7,
        "Part of what both images should show that inliers must cover; below it a new keyframe comes",
        low=0.0,
        high=1.0,
    )
    max_parallax: float = setting(
        0.05, "Median parallax, as a part of the image's width; above it a new keyframe comes", low=0.001, high=1.0
    )
    max_rotation: float = setting(
        20.0, "Angle to the reference keyframe; above it a new keyframe comes", unit="deg", low=0.1, high=180.0
    )
    max_age: float = setting(
        10.0,
        "Age of the reference keyframe; above it a new keyframe comes; 0 for never",
        unit="s",
        low=0.0,
        high=86400.0,
    )
    max_link: float = setting(
        1.5,
        "Distance between the points of two keyframes' cells up to which they are linked as one landmark",
        unit="px",
        low=0.0,
        high=100.0,
    )


@dataclass(frozen=True)
class RecoveryConfig(Settings):
    """Recovery when nothing matches."""

    live: ClassVar[bool] = True

    patience: int = setting(
        3, "Frames in a row that may fail to be located before the camera counts as lost", low=0, high=1000
    )
    max_tried: int = setting(
        1,
        "Further keyframes that a frame is tried with, one after the other, where the reference does not match; twice "
        "as many from the second such frame on",
        low=0,
        high=1000,
    )
    confirmations: int = setting(
        3,
        "Frames in a row for which a new place must be tracked by itself before a segment begins there",
        low=1,
        high=1000,
    )


MONO, STEREO, RGBD = "mono", "stereo", "rgbd"


@dataclass(frozen=True)
class ScaleConfig(Settings):
    """Source of the translations' length."""

    mode: str = setting(
        MONO,
        "mono knows no scale; stereo takes it from a second camera beside the first, rgbd from a depth image "
        "registered to the image",
        choices=(MONO, STEREO, RGBD),
    )


@dataclass(frozen=True)
class LatencyConfig(Settings):
    """Limit of a frame's latency."""

    live: ClassVar[bool] = True

    max_latency_ms: float = setting(
        0.0,
        "Time for a frame, from its decoded image to its poses, that 95 of 100 keep: by matching fewer keyframes, then "
        "a smaller image; 0 for no limit",
        unit="ms",
        low=0.0,
        high=10000.0,
    )


@dataclass(frozen=True)
class FrontEndConfig:
    """All settings of `FrontEnd`."""

    scale: ScaleConfig = field(default_factory=ScaleConfig, metadata=FLAT)
    latency: LatencyConfig = field(default_factory=LatencyConfig, metadata=FLAT)
    image: ImageConfig = field(default_factory=ImageConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    keyframe: KeyframeConfig = field(default_factory=KeyframeConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
