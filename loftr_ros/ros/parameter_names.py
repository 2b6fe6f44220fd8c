"""Parameters as users write them: whole numbers for floats, and misspelt names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.parameter import Parameter

from loftr_ros.settings import unknown

QOS = "qos_overrides."
_NODES_PARAMETERS = "ros__parameters"


def whole_to_float(parameter: Parameter, default: object) -> Parameter:
    """Convert a whole number to a float where a float is declared: 10 to 10.0, [0, 1] to [0.0, 1.0].

    Args:
        parameter: as given.
        default: declared default, which defines the type.
    """
    if isinstance(default, float) and parameter.type_ == Parameter.Type.INTEGER:
        return Parameter(parameter.name, Parameter.Type.DOUBLE, float(parameter.value))
    is_list = isinstance(default, (tuple, list)) and all(isinstance(value, float) for value in default)
    if is_list and parameter.type_ == Parameter.Type.INTEGER_ARRAY:
        return Parameter(parameter.name, Parameter.Type.DOUBLE_ARRAY, [float(value) for value in parameter.value])
    return parameter


def accept_whole_numbers(node: Node, defaults: Mapping[str, object]) -> None:
    """Convert whole numbers among a node's start parameters to floats, before its parameters are declared.

    rclpy checks each against its declared type and has no hook for this, in any distribution. The start parameters are
    in this attribute of Node from Humble to Rolling.
    """
    overrides: dict[str, Parameter] = getattr(node, "_parameter_overrides", {})
    for name, parameter in overrides.items():
        if name in defaults:
            overrides[name] = whole_to_float(parameter, defaults[name])


def unknown_parameters(node: Node, qos: bool = False) -> list[str]:
    """One sentence per start parameter that the node has not declared.

    Args:
        node: all its parameters are declared by now.
        qos: check quality-of-service parameters, which are declared with the topics; else all others.
    """
    overrides: dict[str, Parameter] = getattr(node, "_parameter_overrides", {})
    # rclpy declares `start_type_description_service` and the like by itself.
    known = [name for name in getattr(node, "_parameters", {}) if name.startswith(QOS) == qos]
    given = [name for name in overrides if name.startswith(QOS) == qos and not node.has_parameter(name)]
    return [unknown("parameter", name, known) for name in given]


def idle_files(arguments: Sequence[str], full_name: str) -> list[str]:
    """One sentence per parameter file of a command line that has nothing for the node.

    Args:
        arguments: the command line.
        full_name: of the node, with its namespace.
    """
    import yaml

    warnings = []
    for flag, file in itertools.pairwise(arguments):
        if flag != "--params-file":
            continue
        try:
            content = yaml.safe_load(Path(file).read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            continue  # rclpy has refused it
        names = list(_node_names(content, ""))
        if names and not any(_fits(name, full_name) for name in names):
            others = ", ".join(f"'{name}'" for name in names)
            warnings.append(
                f"{file} has parameters for {others}, but none for this node, '{full_name}'; '/**' fits every node"
            )
    return warnings


def _node_names(content: object, prefix: str) -> Iterator[str]:
    if not isinstance(content, dict):
        return
    for name, value in content.items():
        path = f"{prefix}/{str(name).strip('/')}"
        if isinstance(value, dict) and _NODES_PARAMETERS in value:
            yield path
        elif isinstance(value, dict):
            yield from _node_names(value, path)


def _fits(pattern: str, full_name: str) -> bool:
    parts = (".*" if part == "**" else "[^/]+" if part == "*" else re.escape(part) for part in pattern[1:].split("/"))
    expression = "/" + "/".join(parts)
    return re.fullmatch(expression.replace("/.*/", "/(?:.*/)?"), full_name) is not None


def all_floats(values: Iterable[Any], defaults: Mapping[str, object]) -> list[Any]:
    """Parameters to set, with floats in place of whole numbers."""
    return [whole_to_float(each, defaults[each.name]) if each.name in defaults else each for each in values]
