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
class GeometryConfig(Settings):
    """Two-view geometry."""

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
        0.6,
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
    max_link: float = setting(
        1.5,
        "Maximum distance between the points of two keyframes' cells that are linked as one landmark",
        unit="px",
        low=0.0,
        high=100.0,
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
