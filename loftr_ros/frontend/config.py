"""Settings of the front end: one frozen dataclass per stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from loftr_ros.geometry.config import DepthConfig, GeometryConfig
from loftr_ros.settings import FLAT, Settings, setting


@dataclass(frozen=True)
class ImageConfig(Settings):
    """Resolution of the network's input image."""

    max_side: int = setting(
        960,
        "Longer side of the image that the network gets; larger images are shrunk to it",
        unit="px",
        low=64,
        high=8192,
    )


@dataclass(frozen=True)
class RefineConfig(Settings):
    """Pyramidal Lucas-Kanade from the coarse match, for networks without a fine stage."""

    live: ClassVar[bool] = True

    window: int = setting(17, "Side of the tracked patch", unit="px", low=5, high=63)
    levels: int = setting(1, "Number of pyramid levels above the network's input image", low=0, high=6)
    iterations: int = setting(10, "Maximum number of iterations per level", low=1, high=100)
    max_forward_backward: float = setting(
        0.5,
        "Maximum distance between a keyframe point and the point that tracking there and back returns",
        unit="px",
        low=0.01,
        high=10.0,
    )


@dataclass(frozen=True)
class KeyframeConfig(Settings):
    """Selection of keyframes, and their buffer."""

    live: ClassVar[bool] = True

    capacity: int = setting(10, "Maximum number of keyframes in the buffer", low=1, high=1000, live=False)
    max_matched: int = setting(1, "Maximum number of keyframes that each frame is matched with (K)", low=1, high=16)
    min_coverage: float = setting(
        0.4, "Minimum share of the image that inliers cover; below it the frame becomes a keyframe", low=0.0, high=1.0
    )
    min_explained: float = setting(
        0.7,
        "Minimum share of the predicted common view that inliers cover; below it the frame becomes a keyframe",
        low=0.0,
        high=1.0,
    )
    min_explained_mono: float = setting(
        0.8,
        "As `keyframe.min_explained`, for mode mono, from `keyframe.min_parallax_mono` on",
        low=0.0,
        high=1.0,
    )
    min_parallax_mono: float = setting(
        12.0,
        "Median parallax to the reference keyframe from which `keyframe.min_explained_mono` holds in mode mono, in "
        "pixels of the network's input image; depths that a keyframe takes from a smaller one are uncertain",
        unit="px",
        low=0.0,
        high=1000.0,
    )
    max_parallax: float = setting(
        0.05,
        "Maximum median parallax as a fraction of the image width; above it the frame becomes a keyframe",
        low=0.001,
        high=1.0,
    )
    max_rotation: float = setting(
        20.0,
        "Maximum angle to the reference keyframe; above it the frame becomes a keyframe",
        unit="deg",
        low=0.1,
        high=180.0,
    )
    max_age: float = setting(
        10.0,
        "Maximum age of the reference keyframe; above it the frame becomes a keyframe; 0 for no limit",
        unit="s",
        low=0.0,
        high=86400.0,
    )


@dataclass(frozen=True)
class RecoveryConfig(Settings):
    """Recovery after frames that match no keyframe."""

    live: ClassVar[bool] = True

    patience: int = setting(
        3, "Number of consecutive frames that may fail to be located before the camera counts as lost", low=0, high=1000
    )
    max_tried: int = setting(
        1,
        "Number of further keyframes tried in turn when the reference does not match; doubled from the second "
        "failed frame on",
        low=0,
        high=1000,
    )
    confirmations: int = setting(
        3,
        "Number of consecutive frames that must track a new place before a new segment begins there",
        low=1,
        high=1000,
    )


@dataclass(frozen=True)
class TrackingConfig(Settings):
    """Matching of frames that are expected close to a keyframe."""

    live: ClassVar[bool] = True

    quick: bool = setting(
        True,
        "Whether a tracked frame is first matched without attention and with fewer matches, and in full only if "
        "that result leaves a doubt; on CPUs, of networks that can (compact)",
    )
    full_period: int = setting(
        10, "Maximum number of consecutive frames without a full match", unit="frames", low=0, high=100000
    )
    flow_period: int = setting(
        8,
        "Maximum number of consecutive frames that are located by optical flow from the last frame that the network "
        "matched; 0 for none. On CPUs, with keyframe.max_matched 1, and of networks that match quickly (compact)",
        unit="frames",
        low=0,
        high=1000,
    )
    in_background: bool = setting(
        True,
        "Whether the node's network matches frames in a thread of its own while optical flow locates the next ones; "
        "an image becomes a keyframe some frames later then. Without flow, and in programs that do not provide a "
        "thread, it has no effect",
    )
    max_matches: int = setting(
        1000,
        "Maximum number of matches of a frame that is not matched in full, spread over the image; cells that the "
        "frame before matched come first, so that tracks go on",
        low=100,
        high=100000,
    )


MONO, STEREO, RGBD = "mono", "stereo", "rgbd"


@dataclass(frozen=True)
class ScaleConfig(Settings):
    """Source of metric scale."""

    mode: str = setting(
        MONO,
        "Source of metric scale: mono has none, stereo uses a second camera, rgbd uses a depth image registered "
        "to the image",
        choices=(MONO, STEREO, RGBD),
    )


@dataclass(frozen=True)
class MovingConfig(Settings):
    """Matches on moving things, found by geometry."""

    live: ClassVar[bool] = True

    enabled: bool = setting(
        True,
        "Whether to look for matches that move together against the scene; they are flagged, are no inliers, and keep "
        "no landmark",
    )
    min_offset: float = setting(
        3.0,
        "Minimum distance of a moving match from where a point that stands still could be seen",
        unit="px",
        low=0.5,
        high=100.0,
    )


@dataclass(frozen=True)
class LatencyConfig(Settings):
    """Time limit of a frame."""

    live: ClassVar[bool] = True

    max_latency_ms: float = setting(
        0.0,
        "Time limit for 95 of 100 frames, from decoded image to poses; the front end matches fewer keyframes, "
        "then shrinks the image; 0 for no limit",
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
    moving: MovingConfig = field(default_factory=MovingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
