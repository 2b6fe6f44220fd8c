"""Reads a node's parameters from a ROS parameter file (`--params-file`), without ROS.

Names, wildcards, precedence and types of values follow `rcl_yaml_param_parser` and rclpy. A test compares them with
rclpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from loftr_ros.settings import ConfigError
from loftr_ros.text_files import TextFileError, read_text

NODE = "/loftr_front_end"
"""Default fully qualified name of the node."""

_PARAMETERS = "ros__parameters"
_PLAIN = "!plain"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_TRUE = {"Y", "y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"}
_FALSE = {"N", "n", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"}
_NOT_FINITE = {".nan": "nan", ".NaN": "nan", ".NAN": "nan", ".inf": "inf", ".Inf": "inf", ".INF": "inf"}
_LAYOUT = "expected node names (or /**), `ros__parameters:` below each, and the parameters below that"


class ParamsFileError(ConfigError):
    """A parameter file cannot be read, or has no parameters for the node; the message says where and what to do."""


def node_parameters(path: Path, node: str = NODE) -> dict[str, Any]:
    """A node's parameters in a file, by their full names: `{"input.rectified": True}`.

    Later parts of a file win over earlier ones, even if they are less specific, as in rclpy.

    Args:
        path: the file.
        node: fully qualified name of the node, for example `/left/loftr_front_end`.

    Raises:
        ParamsFileError: it is not a parameter file, or all its parameters are of other nodes.
    """
    found: dict[str, Any] = {}
    names = []
    for name, parameters in sections(path):
        names.append(name)
        if matches(name, node):
            found.update(parameters)
    if names and not any(matches(name, node) for name in names):
        raise ParamsFileError(
            f"{path} has parameters of {', '.join(dict.fromkeys(names))}, and none of them is the node '{node}'; name "
            "the node whose parameters to take, or write /** for every node"
        )
    return found


def matches(pattern: str, node: str) -> bool:
    """Whether a name in a parameter file, possibly with the wildcards * and **, matches a node.

    Args:
        pattern: as in the file; the leading slash is optional.
        node: fully qualified name.
    """
    parts = re.split(r"(/\*\*|/\*)", pattern if pattern.startswith("/") else f"/{pattern}")
    regex = "".join({"/**": r"(/\w+)*", "/*": r"(/\w+)"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(regex, node if node.startswith("/") else f"/{node}") is not None


def sections(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """All parts of a file, in order: the node's name as written, and its parameters by full names.

    Raises:
        ParamsFileError: it cannot be read, or is not a parameter file.
    """
    try:
        text = read_text(path)
        found: list[tuple[str, dict[str, Any]]] = []
        for document in yaml.compose_all(text, Loader=_Loader):
            if document is not None:
                found += _Walk(path).nodes(document, "")
    except TextFileError as error:
        raise ParamsFileError(f"parameter file {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ParamsFileError(f"{path}{where} is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        raise ParamsFileError(f"{path} is not YAML: {reason}") from error
    return found


class _Loader(yaml.SafeLoader):
    """Keeps values without quotes and tags as text, because ROS has its own rules for them."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


class _Walk:
    """Goes through the nodes of a YAML document."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[int] = set()

    def nodes(self, node: yaml.Node, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, value in self._entries(node):
            if key != _PARAMETERS:
                yield from self.nodes(value, f"{name}/{key}" if name else key)
            elif not name:
                raise self._error(value, f"`{_PARAMETERS}` has no node's name above it; {_LAYOUT}")
            else:
                flat: dict[str, Any] = {}
                if not _is_empty(value):
                    self._flatten(value, "", flat)
                yield re.sub("/+", "/", name), flat

    def _flatten(self, node: yaml.Node, prefix: str, flat: dict[str, Any]) -> None:
        for key, value in self._entries(node):
            if isinstance(value, yaml.MappingNode):
                self._flatten(value, f"{prefix}{key}.", flat)
            else:
                flat[prefix + key] = self._value(value, prefix + key)

    def _entries(self, node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
        if id(node) in self._seen:
            raise self._error(node, "ROS does not accept an alias (*name); write the values out")
        self._seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"there is a value where a name is expected; {_LAYOUT}")
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, f"there is a list or mapping where a name is expected; {_LAYOUT}")
            yield str(key.value), value

    def _value(self, node: yaml.Node, name: str) -> Any:
        if isinstance(node, yaml.SequenceNode):
            values = [self._value(each, name) for each in node.value]
            if any(isinstance(each, list) for each in values) or len({type(each) for each in values}) > 1:
                raise self._error(
                    node, f"{name} is a list of different types; ROS accepts one type in a list, such as all 1.0"
                )
            return values
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, f"{name} is a mapping inside a list; expected values")
        if _is_empty(node):
            raise self._error(node, f"{name} has no value")
        text = str(node.value)
        return scalar(text) if node.tag in (_PLAIN, "tag:yaml.org,2002:bool", *_NUMBERS) else text

    def _error(self, node: yaml.Node, reason: str) -> ParamsFileError:
        return ParamsFileError(f"parameter file {self._path}, line {node.start_mark.line + 1}: {reason}")


def scalar(text: str) -> bool | int | float | str:
    """Convert a value without quotes as ROS does: 010 is eight, `on` is true, 1e-3 is a number and 1:30 is text."""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if re.fullmatch(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", text) and len(text) < 25:
        digits = text.lstrip("+-")
        base = 16 if digits[:2].lower() == "0x" else 8 if digits.startswith("0") else 10
        value = int(digits, base) * (-1 if text.startswith("-") else 1)
        if -(2**63) <= value < 2**63:
            return value
    bare = text.lstrip("+-") if text[:1] in ("+", "-") else text
    if bare in _NOT_FINITE:
        return float(text.replace(bare, _NOT_FINITE[bare]))
    try:
        if re.fullmatch(r"[-+]?0[xX][0-9a-fA-F.]+(?:[pP][-+]?[0-9]+)?", text):
            return float.fromhex(text)
        if "_" not in text and text == text.strip():
            return float(text)
    except (ValueError, OverflowError):
        pass
    return text


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _PLAIN and node.value == ""
