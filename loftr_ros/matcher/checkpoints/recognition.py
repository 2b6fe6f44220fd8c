"""Detection of the network of weights from their names and shapes. Imports no torch, because the command line uses
it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from loftr_ros.matcher.config import (
    COMPACT,
    EFFICIENT,
    EFFICIENT_OPT,
    PRESETS,
    CompactConfig,
    EfficientConfig,
    LoFTRConfig,
    NetworkConfig,
)

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "loftr_ros"
FORMAT_VERSION = 1

# Published files whose network is not determined by names and shapes: SHA-256, and the preset of their training.
# Records of several projects agree on each, for kornia's copy and for the official file of the same contents
# (outdoor_ds.ckpt: santoromarco74/project_cv, samarthputhraya/sih26166; indoor_ds_new.ckpt: bmk-solutions/BMK-Web).
PUBLISHED_DIGESTS = {
    "21f5bec5968178e8bc8b7633441836fe5de4f47d861dd2cd7dc38e271b0479ec": "loftr",
    "be9ff88b323ec27889114719f668ae41aff7034b56a4c4acbd46b8b180b87ed3": "loftr_new",
}

_STEM = "backbone.conv1.weight"
# Only this network has it.
_COMPACT_STEM = "backbone.stages.0.0.conv.weight"
_EFFICIENT_STEM = "backbone.layer0."
_BIN_SCORE = "coarse_matching.bin_score"
_POSITION = "pos_encoding.pe"


# Kinds of configurations by their names in the metadata; older files have none.
_FAMILIES: dict[str, type[LoFTRConfig] | type[CompactConfig] | type[EfficientConfig]] = {
    "loftr": LoFTRConfig,
    "compact": CompactConfig,
    "efficient": EfficientConfig,
}

_LOFTRS = [config for config in PRESETS.values() if isinstance(config, LoFTRConfig)]


class WeightsError(RuntimeError):
    """A weights file that is missing, damaged, or of another network; the message says what to do."""


@dataclass(frozen=True)
class Recognition:
    """Result of the detection.

    Attributes:
        config: the network.
        by: the evidence: "contents", "metadata", "SHA-256", or "positional encoding".
        alternatives: further presets with the same names and shapes; empty if the result is unique.
        also: presets that use the same weights too.
    """

    config: NetworkConfig
    by: str
    alternatives: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def doubt(self) -> str:
        """Remaining ambiguity with advice; empty if the result is unique."""
        if not self.alternatives:
            return ""
        return (
            f"whether they were trained as '{self.config.name}' or as {_or(self.alternatives)}, which differ in "
            "settings that "
            f"the weights do not contain; '{self.config.name}' is assumed. Name the network if that is wrong"
        )


@dataclass(frozen=True)
class Structure:
    """Structure of a network, derived from names and shapes of its weights."""

    stem: int
    stages: tuple[int, ...]
    coarse_layers: int
    fine_layers: int
    fine_level: int | None
    optimal_transport: bool

    def __str__(self) -> str:
        fine = f"{self.fine_layers} fine layers at stage {self.fine_level}" if self.fine_layers else "no fine stage"
        matching = "optimal transport" if self.optimal_transport else "dual-softmax"
        stages = "-".join(map(str, self.stages))
        return f"stem {self.stem}, stages {stages}, {self.coarse_layers} coarse layers, {fine}, {matching}"


def structure_of_config(config: LoFTRConfig) -> Structure:
    """The structure of a configuration's weights."""
    return Structure(
        stem=config.backbone.initial_dim,
        stages=config.backbone.block_dims,
        coarse_layers=len(config.transformer.layers),
        fine_layers=len(config.fine.transformer.layers) if config.fine else 0,
        fine_level=config.backbone.fine_level if config.fine else None,
        optimal_transport=config.coarse.method == "optimal_transport",
    )


def structure_of(weights: Mapping[str, Tensor]) -> Structure:
    """Derive the structure from names and shapes of weights.

    Raises:
        WeightsError: they are not LoFTR's weights.
    """
    stem = weights.get(_STEM)
    if stem is None or stem.ndim != 4 or tuple(stem.shape[1:]) != (1, 7, 7):
        found = ", ".join(f"{name} {tuple(weights[name].shape)}" for name in list(weights)[:3])
        at_all = "" if stem is None else f", where {_STEM} is {tuple(stem.shape)}"
        raise WeightsError(
            f"not LoFTR's weights: expected {_STEM} of shape (channels, 1, 7, 7) among the names; "
            f"found {len(weights)} names{at_all}: {found}{' ...' if len(weights) > 3 else ''}"
        )
    stages: list[int] = []
    while (first := weights.get(f"backbone.layer{len(stages) + 1}.0.conv1.weight")) is not None:
        stages.append(first.shape[0])
    fine_layers = _count(weights, "loftr_fine")
    up = [level for level in range(1, len(stages)) if f"backbone.layer{level}_outconv.weight" in weights]
    return Structure(
        stem=stem.shape[0],
        stages=tuple(stages),
        coarse_layers=_count(weights, "loftr_coarse"),
        fine_layers=fine_layers,
        # The low-end network's file has an unused upward path too.
        fine_level=min(up) if up and fine_layers else None,
        optimal_transport=_BIN_SCORE in weights,
    )


def recognise(
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    digest: Callable[[], str] | None = None,
) -> Recognition:
    """Detect the network of weights.

    Args:
        weights: by the names used here, without prefixes.
        metadata: of the file; that of our own format is complete.
        digest: returns the file's SHA-256; called only if names and shapes do not suffice.

    Raises:
        WeightsError: the network is unknown; the message says what was expected and found.
    """
    ours = config_from_metadata(metadata) if metadata and metadata.get("format") == FORMAT else None
    if _COMPACT_STEM in weights and (ours is None or isinstance(ours, CompactConfig)):
        # There is one network of this kind; loading compares the shapes.
        return Recognition(ours or COMPACT, "metadata" if ours else "contents")
    is_efficient = any(name.startswith(_EFFICIENT_STEM) for name in weights)
    if is_efficient and (ours is None or isinstance(ours, EfficientConfig)):
        # Both presets use the same weights; loading compares the shapes.
        preset = ours or EFFICIENT
        also = tuple(other.name for other in (EFFICIENT, EFFICIENT_OPT) if other.name != preset.name)
        return Recognition(preset, "metadata" if ours else "contents", also=also)
    found = structure_of(weights)
    if ours is not None:
        config = ours
        if not isinstance(config, LoFTRConfig):
            raise WeightsError(f"its metadata says '{config.name}', but it holds weights of {found}")
        expected = structure_of_config(config)
        if found != expected:
            raise WeightsError(f"its metadata says '{config.name}' ({expected}), but it holds weights of {found}")
        return Recognition(config, "metadata")
    known = {config.name: structure_of_config(config) for config in _LOFTRS}
    candidates = [config for config in _LOFTRS if known[config.name] == found]
    if not candidates:
        near = max(known, key=lambda name: _agreement(known[name], found))
        raise WeightsError(f"no network known here has {found}; the nearest is '{near}', which has {known[near]}")
    if len(candidates) == 1:
        return Recognition(candidates[0], "contents")
    slip = _position_slip(weights)
    matching = [config for config in candidates if config.position_slip == slip]
    if len(matching) == 1:
        return Recognition(matching[0], "positional encoding")
    name = PUBLISHED_DIGESTS.get(digest()) if digest else None
    matching = [config for config in candidates if config.name == name]
    if matching:
        return Recognition(matching[0], "SHA-256")
    first, *others = candidates
    return Recognition(first, "contents", tuple(config.name for config in others))


def same_weights(one: NetworkConfig, other: NetworkConfig) -> bool:
    """Whether two networks have weights of the same names and shapes."""
    if isinstance(one, EfficientConfig) and isinstance(other, EfficientConfig):
        return one.backbone == other.backbone
    if not isinstance(one, LoFTRConfig) or not isinstance(other, LoFTRConfig):
        return False  # of different kinds, or of a kind with only one network
    return structure_of_config(one) == structure_of_config(other)


def metadata_of_config(config: NetworkConfig, source: str) -> dict[str, str]:
    """Metadata of our own format."""
    return {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "network": config.name,
        "family": next(name for name, kind in _FAMILIES.items() if isinstance(config, kind)),
        "config": json.dumps(asdict(config)),
        "source": source,
    }


def config_from_metadata(metadata: Mapping[str, str]) -> NetworkConfig:
    """The network named in our own format's metadata.

    Raises:
        WeightsError: the metadata is damaged, or of a newer version of the format.
    """
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise WeightsError(f"it is of version '{version}' of our format; this loftr_ros reads version {FORMAT_VERSION}")
    try:
        config = _build(_FAMILIES[metadata.get("family", "loftr")], json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"its metadata does not describe a network ({error}): it is damaged, or a newer loftr_ros wrote it"
        ) from error
    assert isinstance(config, (LoFTRConfig, CompactConfig, EfficientConfig))
    return config


def _build(kind: Any, value: Any) -> Any:
    """Convert a JSON value to the type of a field's annotation.

    Raises:
        TypeError, ValueError: it does not fit.
    """
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is not the fields of a {getattr(kind, '__name__', kind)}")
        hints = get_type_hints(kind)
        known = {item.name for item in fields(kind)}
        unknown = sorted(set(value) - known)
        missing = sorted(
            item.name
            for item in fields(kind)
            if item.default is MISSING and item.default_factory is MISSING and item.name not in value
        )
        if unknown or missing:
            raise ValueError(f"fields not known: {unknown}, missing: {missing}")
        return kind(**{name: _build(hints[name], part) for name, part in value.items()})  # type: ignore[operator]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        part = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _build(part, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list")
        return tuple(_build(arguments[0], item) for item in value)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is none of {arguments}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value


def _count(weights: Mapping[str, Tensor], module: str) -> int:
    layers = 0
    while f"{module}.layers.{layers}.q_proj.weight" in weights:
        layers += 1
    return layers


def _position_slip(weights: Mapping[str, Tensor]) -> bool | None:
    """Whether the positional encoding stored in old files has the slip; None if there is none.

    Channel 4 has the second frequency at the first column's position, 1: exp(-2) with the slip, about 0.9 without.
    """
    encoding = weights.get(_POSITION)
    if encoding is None or encoding.ndim != 4 or encoding.shape[1] < 8:
        return None
    return bool(encoding[0, 4, 0, 0] < 0.5)


def _agreement(one: Structure, other: Structure) -> int:
    return sum(getattr(one, item.name) == getattr(other, item.name) for item in fields(Structure))


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(f"'{name}'" for name in names)
