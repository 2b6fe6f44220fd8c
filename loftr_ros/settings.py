"""Settings: each parameter is declared once, as a dataclass field with its meaning, unit and range.

ROS parameters, command line options, `config/front_end.yaml` and the tables in the docs are generated from the fields.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting is out of range or has the wrong type. The message names it and says what is allowed."""


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
    """A dataclass field with its description.

    Args:
        default: its default value.
        description: one sentence, without unit and range.
        unit: SI symbol or px; empty if it has none.
        low, high: closed range of a number; give both.
        choices: allowed strings; empty for any.
        live: whether it may change while frames are processed; None for the default of its group.
    """
    metadata = {"description": description, "unit": unit, "low": low, "high": high, "choices": choices, "live": live}
    return field(default=default, metadata=metadata)


# Metadata of a field with a group of settings whose names have no prefix of the group.
FLAT = {"flat": True}


def prefix_of(item: dataclasses.Field[Any], prefix: str) -> str:
    """Prefix of the settings of a group, in a dataclass with the prefix `prefix`."""
    return prefix if item.metadata.get("flat") else f"{prefix}{item.name}."


class Settings:
    """Base of a settings dataclass. It checks the type, range and choices of each field when it is created.

    Attributes:
        live: whether its settings may change while frames are processed; a setting may override it.

    Raises:
        ConfigError: a value is not allowed.
    """

    live: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(item.default, tuple) and isinstance(value, Iterable) and not isinstance(value, (str, tuple)):
                object.__setattr__(self, item.name, tuple(value))  # ROS gives an array, YAML a list
        check(self)


def check(config: Any) -> None:
    """Check each field of a settings dataclass against its type, range and choices.

    Raises:
        ConfigError: a value is not allowed.
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
        values: new values by name, for example {"keyframe.capacity": 5}. Unknown names are ignored.
        prefix: of the names of this dataclass's fields.

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
    """Whether a setting of a group may change while frames are processed."""
    live = item.metadata.get("live")
    return bool(group.live if live is None else live)


def settings_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Name, group and field of each setting of a dataclass of settings, or of such dataclasses.

    The names are as for `with_values`. A setting's value is the attribute of its group.
    """
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, prefix_of(item, prefix))
        else:
            yield prefix + item.name, config, item


def changed(before: Any, after: Any) -> dict[str, bool]:
    """Names of the settings that differ between two dataclasses, and whether each may change at any time."""
    return {
        name: is_live(group, item)
        for (name, group, item), (_, other, _) in zip(settings_of(before), settings_of(after), strict=True)
        if getattr(group, item.name) != getattr(other, item.name)
    }


def nearest(name: str, known: Iterable[str]) -> str:
    """The most similar known name; empty if none is similar.

    A correct last part is enough: `max_parallax` finds `keyframe.max_parallax`.
    """
    names = sorted(known)
    last = {other: other.rpartition(".")[2] for other in names}
    wanted = name.rpartition(".")[2]
    same = [other for other in names if last[other] == wanted]
    if close := difflib.get_close_matches(name, same, 1, cutoff=0.0) or difflib.get_close_matches(name, names, 1, 0.7):
        return close[0]
    by_last = difflib.get_close_matches(wanted, last.values(), 1, cutoff=0.75)
    return next((other for other in names if by_last and last[other] == by_last[0]), "")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A sentence about an unknown name.

    Args:
        what: kind of thing, for example "parameter".
        name: the given name.
        known: all valid names.
    """
    meant = nearest(name, known)
    return f"{what} '{name}' is not known and has no effect" + (f"; did you mean '{meant}'?" if meant else "")
