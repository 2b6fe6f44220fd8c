"""Settings of the archive and of the loop search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loftr_ros.settings import Settings, setting


@dataclass(frozen=True)
class ArchiveConfig(Settings):
    """Archive of keyframes, on disk or in an object store."""

    uri: str = setting(
        "",
        "Folder of the keyframe archive, or address of a shared one (s3://bucket/folder); created if missing; "
        "empty for no archive and no loop closure",
    )
    max_size_mb: float = setting(
        2000.0,
        "Maximum size of the archive; the least informative keyframes are deleted to keep it",
        unit="MB",
        low=1.0,
        high=1e6,
    )
    jpeg_quality: int = setting(
        90, "JPEG quality of archived images; images that arrive compressed are stored unchanged", low=10, high=100
    )


@dataclass(frozen=True)
class LoopConfig(Settings):
    """Search for loops, and the limits that accept them."""

    live: ClassVar[bool] = True

    candidates: int = setting(
        5, "Maximum number of archived keyframes that a new keyframe is matched with", low=1, high=100
    )
    min_similarity: float = setting(
        0.3, "Minimum cosine similarity between the descriptors of two keyframes that are matched", low=-1.0, high=1.0
    )
    min_age: float = setting(
        20.0,
        "Minimum age of the robot's own keyframes of this session in the search",
        unit="s",
        low=0.0,
        high=86400.0,
    )
    min_inliers: int = setting(60, "Minimum number of inliers of a loop", low=12, high=10000)
    min_inlier_ratio: float = setting(0.5, "Minimum share of a loop's matches that are inliers", low=0.0, high=1.0)
    min_coverage: float = setting(0.2, "Minimum share of either image that a loop's inliers cover", low=0.0, high=1.0)
    min_score: float = setting(
        0.3,
        "Minimum score of a loop: coverage times share of matches that are inliers; two thirds of it where known loops "
        "expect the place",
        low=0.0,
        high=1.0,
    )
    min_planar_score: float = setting(
        0.45,
        "Minimum score of a loop if one plane holds nearly all inliers, because posters and doors hang in two "
        "places; lower it for a camera that looks at flat ground only",
        low=0.0,
        high=1.0,
    )
    confirmations: int = setting(
        3,
        "Number of consecutive images that must agree on a place before the loop is published; one is enough where "
        "known loops expect the place",
        low=1,
        high=10,
    )
    max_rotation_error: float = setting(
        3.0,
        "Maximum angle between the poses of two consecutive images and the tracked motion between them",
        unit="deg",
        low=0.1,
        high=90.0,
    )
    max_drift: float = setting(
        0.03,
        "Maximum drift of tracking as a fraction of the path since an older keyframe of the same trajectory; a "
        "loop that contradicts it is rejected as a look-alike; a single camera's reported scale drift is added",
        low=0.0,
        high=10.0,
    )
    max_turn_drift: float = setting(
        0.05,
        "Maximum rotation drift of tracking per keyframe since an older keyframe, in addition to "
        "`loop.max_rotation_error`",
        unit="deg",
        low=0.0,
        high=180.0,
    )
    max_load: float = setting(
        0.25,
        "Maximum share of time for the verification of candidates; half of the time for the first searches of a "
        "session, until it is found in an older one",
        low=0.01,
        high=1.0,
    )
