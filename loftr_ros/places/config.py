"""Settings of the archive and of the loop search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loftr_ros.settings import Settings, setting


@dataclass(frozen=True)
class ArchiveConfig(Settings):
    """Settings of the archive of keyframes."""

    uri: str = setting(
        "",
        "Folder of the archive of keyframes, or address of the fleet's common one (s3://bucket/folder); made if it is "
        "not there; empty for no archive, and no loop closure",
    )
    max_size_mb: float = setting(
        2000.0, "Size of the archive that the least telling keyframes are dropped at", unit="MB", low=1.0, high=1e6
    )
    jpeg_quality: int = setting(
        90, "Quality of images that are compressed for the archive; compressed ones stay as they came", low=10, high=100
    )


@dataclass(frozen=True)
class LoopConfig(Settings):
    """Criteria for recognising a place."""

    live: ClassVar[bool] = True

    candidates: int = setting(5, "Keyframes that a new one is matched with, at most", low=1, high=100)
    min_similarity: float = setting(
        0.3, "Cosine between two keyframes' descriptors below which they are not matched", low=-1.0, high=1.0
    )
    min_age: float = setting(
        20.0,
        "Time since which the robot itself must have gone on to recognise a place",
        unit="s",
        low=0.0,
        high=86400.0,
    )
    min_inliers: int = setting(60, "Inliers below which a loop is not believed", low=12, high=10000)
    min_inlier_ratio: float = setting(
        0.5, "Part of the matches that must be inliers, below which a loop is not believed", low=0.0, high=1.0
    )
    min_coverage: float = setting(
        0.2, "Part of either image that inliers must cover, below which a loop is not believed", low=0.0, high=1.0
    )
    min_score: float = setting(
        0.3,
        "Score below which a loop is not believed: coverage times the part of the matches that are inliers",
        low=0.0,
        high=1.0,
    )
    min_planar_score: float = setting(
        0.45,
        "Score below which a loop is not believed where one plane holds nearly all inliers: posters and doors are what "
        "hangs in two places; lower it for a camera that looks at flat ground only",
        low=0.0,
        high=1.0,
    )
    confirmations: int = setting(
        3, "Consecutive images that must agree on a place before it is published", low=1, high=10
    )
    max_rotation_error: float = setting(
        3.0, "Angle by which two images' poses may disagree with the way between them", unit="deg", low=0.1, high=90.0
    )
    max_drift: float = setting(
        0.03,
        "Part of the way since a keyframe of the same trajectory by which that may have drifted: a loop that "
        "contradicts it by more is a look-alike's. A single camera's stated drift of scale comes on top",
        low=0.0,
        high=10.0,
    )
    max_turn_drift: float = setting(
        0.05,
        "Angle per keyframe since then by which it may have drifted likewise, beside `loop.max_rotation_error`",
        unit="deg",
        low=0.0,
        high=180.0,
    )
    max_load: float = setting(0.25, "Part of the time that may be spent on verifying candidates", low=0.01, high=1.0)
