"""Settings: every parameter is a field of a dataclass, with its meaning, unit and range, and is declared once.

ROS parameters, options of the command line, `config/front_end.yaml` and the tables in the docs are made of the fields.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
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


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like another one; empty where none is like it.

    A name whose last part is right is meant by it: `max_parallax` is `keyframe.max_parallax`.
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
    """A sentence on a name that nothing goes by.

    Args:
        what: the name is of, for example "parameter".
        name: as it was given.
        known: the names that there are.
    """
    meant = nearest(name, known)
    return f"{what} '{name}' is not known and has no effect" + (f"; did you mean '{meant}'?" if meant else "")
