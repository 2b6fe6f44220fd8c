"""What the front end can be told: one frozen dataclass a stage, each field with its meaning, unit and range.

The ROS parameters are declared from these fields, and config/front_end.yaml mirrors them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting out of its range or of the wrong type; the message says which and what is allowed."""


def setting(
    default: T,
    description: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool | None = None,
) -> T:
    """A dataclass field that says what it means.

    Args:
        default: its value where nothing is said.
        description: one sentence without the unit and range.
        unit: SI symbol or px; empty for a pure number.
        low, high: the closed range of a number; give both.
        choices: what a string may be; empty for any.
        live: whether it may change while frames come; None for what its group says.
    """
    metadata = {"description": description, "unit": unit, "low": low, "high": high, "choices": choices, "live": live}
    return field(default=default, metadata=metadata)


# Metadata of a field that holds a group of settings which go by their own names, without the group's before them.
FLAT = {"flat": True}


def prefix_of(item: dataclasses.Field[Any], prefix: str) -> str:
    """What stands before the names of the settings in a group, in a dataclass whose own names have `prefix`."""
    return prefix if item.metadata.get("flat") else f"{prefix}{item.name}."


class Settings:
    """Base of a settings dataclass: holds every field against its type, range and choices when it is made.

    Attributes:
        live: whether its settings may change while frames come, where they do not say themselves.

    Raises:
        ConfigError: one is out.
    """

    live: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self)


def check(config: Any) -> None:
    """Hold every field of a settings dataclass against its type, range and choices.

    Raises:
        ConfigError: one is out.
    """
    for item in dataclasses.fields(config):
        value: Any = getattr(config, item.name)
        about = item.metadata
        if type(value) is not type(item.default) and not (type(item.default) is float and type(value) is int):
            raise ConfigError(f"{item.name} is {value!r}; expected {type(item.default).__name__}")
        if about["low"] is not None and not (about["low"] <= value <= about["high"]):
            raise ConfigError(
                f"{item.name} is {value}; expected {about['low']} to {about['high']} {about['unit']}".rstrip()
            )
        if about["choices"] and value not in about["choices"]:
            raise ConfigError(f"{item.name} is '{value}'; expected one of {', '.join(about['choices'])}")


def with_values(config: T, values: Mapping[str, Any], prefix: str = "") -> T:
    """A settings dataclass with some of its settings replaced.

    Args:
        config: a dataclass of settings, or of such dataclasses.
        values: new values by name, for example {"keyframe.capacity": 5}; names that it has not are left alone.
        prefix: what stands before the names of this dataclass's fields.

    Raises:
        ConfigError: a value is out of its range or of the wrong type.
    """
    replaced: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            replaced[item.name] = with_values(value, values, prefix_of(item, prefix))
        elif name in values:
            replaced[item.name] = values[name]
    try:
        return dataclasses.replace(config, **replaced)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def is_live(group: Any, item: dataclasses.Field[Any]) -> bool:
    """Whether a setting of a group of settings may change while frames come."""
    live = item.metadata.get("live")
    return bool(group.live if live is None else live)


def settings_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Name, group and field of every setting of a dataclass of settings, or of such dataclasses.

    The names are those that `with_values` takes; a setting's value is its group's attribute.
    """
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, prefix_of(item, prefix))
        else:
            yield prefix + item.name, config, item


def changed(before: Any, after: Any) -> dict[str, bool]:
    """Names of the settings in which two dataclasses of settings differ, and whether each may change at any time."""
    return {
        name: is_live(group, item)
        for (name, group, item), (_, other, _) in zip(settings_of(before), settings_of(after), strict=True)
        if getattr(group, item.name) != getattr(other, item.name)
    }


@dataclass(frozen=True)
class ImageConfig(Settings):
    """What the network sees of an image."""

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
class GeometryConfig(Settings):
    """Two-view geometry."""

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
class KeyframeConfig(Settings):
    """When keyframes come and go."""

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
    """What is done when nothing matches."""

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
    """Where the length of translations comes from."""

    mode: str = setting(
        MONO,
        "mono knows no scale; stereo takes it from a second camera beside the first, rgbd from a depth image "
        "registered to the image",
        choices=(MONO, STEREO, RGBD),
    )


@dataclass(frozen=True)
class LatencyConfig(Settings):
    """How long a frame may take."""

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


@dataclass(frozen=True)
class FrontEndConfig:
    """Everything that `FrontEnd` can be told."""

    scale: ScaleConfig = field(default_factory=ScaleConfig, metadata=FLAT)
    latency: LatencyConfig = field(default_factory=LatencyConfig, metadata=FLAT)
    image: ImageConfig = field(default_factory=ImageConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    keyframe: KeyframeConfig = field(default_factory=KeyframeConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
