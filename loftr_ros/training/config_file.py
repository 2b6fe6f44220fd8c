"""A training's settings as YAML, nested as its dataclasses. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loftr_ros.settings import ConfigError, prefix_of, with_values
from loftr_ros.training.config import BudgetConfig, TrainingConfig

__all__ = ["ConfigError", "config_of", "content_of", "read_config", "write_config"]


def read_config(path: Path, replaced: Mapping[str, Any] | None = None) -> TrainingConfig:
    """Read a training's settings.

    Args:
        path: a YAML file, nested as `TrainingConfig`; missing settings have their defaults.
        replaced: settings by their full names, such as "optimizer.learning_rate", that override the file's.

    Raises:
        ConfigError: the file is missing or not YAML, or has an unknown setting or a wrong value. The message names the
            file, the setting and the expected values.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; expected settings by name")
    for name, value in (replaced or {}).items():
        _set(content, name, value)
    try:
        return config_of(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_of(content: Mapping[str, Any]) -> TrainingConfig:
    """Convert settings nested as `TrainingConfig` to one.

    Raises:
        ConfigError: a setting is unknown, or has a wrong value.
    """
    rest = dict(content)
    network = rest.get("network") or {}
    changes: Any = {}
    if isinstance(network, dict) and "changes" in network:
        changes = network["changes"] or {}
        rest["network"] = {name: value for name, value in network.items() if name != "changes"}
    if not isinstance(changes, dict):
        raise ConfigError(f"network.changes is {changes!r}; expected settings by name")
    for name in rest:
        _check_known(name, [item.name for item in dataclasses.fields(TrainingConfig) if item.name != "network_changes"])
    flat = _flattened(rest)
    for name in ("data.sizes", "data.recorded"):
        if isinstance(flat.get(name), (list, tuple)):
            flat[name] = tuple(tuple(item) if isinstance(item, list) else item for item in flat[name])
    defaults = TrainingConfig(budget=BudgetConfig(max_steps=1))
    known = {**_values(defaults, ""), "seed": 0}
    for name, value in flat.items():
        _check_known(name, known)
        if isinstance(value, str) and isinstance(known[name], float):
            with suppress(ValueError):  # YAML reads 1e-3, without a point, as a string
                flat[name] = float(value)
    parts = {}
    for item in dataclasses.fields(TrainingConfig):
        if item.name not in ("seed", "network_changes"):
            parts[item.name] = with_values(_default(item), flat, f"{item.name}.")
    return TrainingConfig(**parts, seed=flat.get("seed", 0), network_changes=changes)


def content_of(config: TrainingConfig) -> dict[str, Any]:
    """Input for `config_of` with every setting."""
    content = dataclasses.asdict(config)
    changes = content.pop("network_changes")
    if changes:
        content["network"]["changes"] = changes
    return content


def write_config(config: TrainingConfig, path: Path) -> None:
    """Write every setting as YAML, for `read_config`."""
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content_of(config), sort_keys=False))


def _check_known(name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(known)}"
        raise ConfigError(f"there is no setting {name}{advice}")


def _default(item: dataclasses.Field[Any]) -> Any:
    assert item.default_factory is not dataclasses.MISSING
    return item.default_factory()


def _values(config: Any, prefix: str) -> dict[str, Any]:
    """All settings in groups, by their full names."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            values |= _values(value, prefix_of(item, prefix))
        elif prefix:
            values[prefix + item.name] = value
    return values


def _flattened(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flattened(value, f"{prefix}{name}.")
        elif value is not None or prefix:  # an empty group is None
            flat[f"{prefix}{name}"] = value
    return flat


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        inner = content.setdefault(group, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"there is no setting {name}")
        content = inner
    content[last] = value
