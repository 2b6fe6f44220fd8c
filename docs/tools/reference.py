"""Writes config/front_end.yaml and the pages of docs/reference from the declarations in the code: `make reference`.

With --check it writes nothing, and fails where a file differs from what it would write.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
import typer.models

ROOT = Path(__file__).resolve().parents[2]
LINE = 120
NOTE = "<!-- Written by `make reference` from {source}. Do not edit. -->"

YAML_HEAD = """\
# Parameters of the loftr_ros front end, with their defaults. Written by `make reference`.
# Copy the file, change the copy, and start with
#   ros2 launch loftr_ros front_end.launch.py params_file:=/your/front_end.yaml
# Most users change `weights`, and sometimes `network`, `input.image_transport` and `input.camera_info`. Numbers with a
# decimal point keep it (10.0, not 10).
#
# The quality of service of every topic can be overridden by its resolved name, for example:
#   qos_overrides:
#     /camera/image:
#       subscription:
#         reliability: reliable
#         depth: 5
/**:
  ros__parameters:
"""
BACK_END_YAML_HEAD = """\
# Parameters of the loftr_ros back end, with their defaults. Written by `make reference`.
# Copy the file, change the copy, and start with
#   ros2 launch loftr_ros slam.launch.py back_end_params_file:=/your/back_end.yaml
# Most users change `map_file` and `base_from_camera`. Numbers with a decimal point keep it (10.0, not 10).
/**:
  ros__parameters:
"""

PARAMETERS_HEAD = """\
After this page you know every parameter of the node. `ros2 param describe /loftr_front_end NAME` shows the same.
The file `config/front_end.yaml` has all of them with their defaults. How to set them:
[The node](../node.md#parameters).

"Live" parameters can change at any time and hold from the next image on. The node reads all others when it is
configured.
"""

TRAINING_HEAD = """\
After this page you know every setting of `loftr_ros train`. A file of settings is nested by the groups below.
`--set GROUP.NAME=VALUE` changes one setting. See [Training](../training.md).
"""

MESSAGES_HEAD = """\
After this page you know every field of the messages and services. `ros2 interface show loftr_ros/msg/NAME` shows the
same. Which topic has which message: [Topics](../node.md#topics-out).
"""

COMMANDS_HEAD = """\
After this page you know every option of the command `loftr_ros`. `loftr_ros COMMAND --help` shows the same. Exit codes
and last lines are in [Commands: exit codes](../commands.md).
"""

PYTHON_HEAD = """\
After this page you can use loftr_ros from Python without ROS: match two images, run the front end over a recording,
and find loops. `import loftr_ros` loads neither torch nor OpenCV; each name is loaded when it is first used. The folder
[examples](../../examples/README.md) has programs to start from.

```python
import loftr_ros

matches = loftr_ros.match("a.png", "b.png")
```

The names below are the public interface, for example `loftr_ros.match`.
"""

# What the public functions return. Users get these objects and need not import their modules.
RESULTS = (
    "loftr_ros.frontend.results.FrontEndResult",
    "loftr_ros.frontend.results.KeyframeMatch",
    "loftr_ros.frontend.results.Correspondences",
    "loftr_ros.geometry.two_view.RelativePose",
    "loftr_ros.frontend.odometry.Location",
    "loftr_ros.places.detector.LoopClosure",
    "loftr_ros.recordings.base.Source",
    "loftr_ros.recordings.reading.SourceFrame",
)

LAUNCH_HEAD = """\
After this page you know every argument of the launch files. `ros2 launch -s loftr_ros front_end.launch.py` shows the
same. How to use them: [Start the node](../launch.md).

An argument that you give wins over the parameter file. An argument that you do not give leaves the file's value alone.
"""


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    from loftr_ros.ros.back_end.parameters import BackEndParameters
    from loftr_ros.ros.parameters import Parameters, parameter_names
    from loftr_ros.training.config import BudgetConfig, TrainingConfig

    training = TrainingConfig(budget=BudgetConfig(max_steps=1))  # one without a budget is refused
    pages = {
        "parameters": settings_page("Parameters", PARAMETERS_HEAD, Parameters(), live=True),
        "training_settings": settings_page("Settings of a training", TRAINING_HEAD, training, live=False),
        "messages": messages_page(),
        "commands": commands_page(),
        "launch_arguments": launch_page(),
        "python": python_page(),
    }
    written = {ROOT / "docs" / "reference" / f"{name}.md": text for name, text in pages.items()}
    return {
        ROOT / "config" / "front_end.yaml": parameters_yaml(YAML_HEAD, parameter_names()),
        ROOT / "config" / "back_end.yaml": parameters_yaml(BACK_END_YAML_HEAD, parameter_names(BackEndParameters)),
        **written,
    }


# Parameters


def number(value: float) -> str:
    """A bound of a range, without an exponent where it is whole."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def allowed(item: dataclasses.Field[Any], mark: str = "") -> str:
    """What a setting may be: its range with the unit, or its choices; empty for anything."""
    about = item.metadata
    if about["choices"]:
        return ", ".join(f"{mark}{choice}{mark}" for choice in about["choices"])
    if about["low"] is None:
        return str(about["unit"])
    return f"{number(about['low'])} to {number(about['high'])} {about['unit']}".strip()


def value_text(value: Any) -> str:
    """A value as YAML has it in a ROS parameter file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(value_text(each) for each in value)}]"
    return str(value)


def parameters_yaml(head: str, parameters: Iterable[tuple[str, dataclasses.Field[Any]]]) -> str:
    """A parameter file: every parameter with its default below its meaning."""
    lines: list[str] = []
    group = ""
    for name, item in parameters:
        prefix, _, last = name.rpartition(".")
        if prefix != group:
            lines += ["", f"    {prefix}:"] if prefix else [""]
            group = prefix
        indent = "      " if prefix else "    "
        range_text = f" ({allowed(item)})" if allowed(item) else ""
        meaning = item.metadata["description"] + range_text
        lines += textwrap.wrap(
            meaning, LINE, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
        )
        lines.append(f"{indent}{last}: {value_text(item.default)}")
    return head + "\n".join(lines) + "\n"


def settings_page(title: str, head: str, config: Any, *, live: bool) -> str:
    """A page with a table of each group of settings."""
    from loftr_ros.settings import is_live

    lines = [NOTE.format(source="the settings dataclasses"), f"# {title}", "", head]
    for heading, group, rows in groups(config):
        lines += [f"## {heading}", "", first_line(group), ""]
        columns = ["name", "default", "range", *(["live"] if live else []), "meaning"]
        lines += table_head(columns)
        for name, item in rows:
            cells = [f"`{name}`", f"`{value_text(item.default)}`", allowed(item, "`")]
            cells += ["yes" if is_live(group, item) else ""] if live else []
            lines.append(row([*cells, cell(item.metadata["description"])]))
        lines.append("")
    return "\n".join(lines)


def groups(config: Any) -> Iterator[tuple[str, Any, list[tuple[str, dataclasses.Field[Any]]]]]:
    """Every group of settings: its heading, the group, and its settings by their full names."""
    from loftr_ros.settings import settings_of

    found: dict[int, tuple[Any, list[tuple[str, dataclasses.Field[Any]]]]] = {}
    for name, group, item in settings_of(config):
        if "description" in item.metadata:  # not those that a file holds in another form
            found.setdefault(id(group), (group, []))[1].append((name, item))
    for group, rows in found.values():
        prefix = rows[0][0].rpartition(".")[0]
        yield (
            f"`{prefix}.*`" if prefix else type(group).__name__.removesuffix("Config").removesuffix("Parameters"),
            group,
            rows,
        )


# Messages


def messages_page() -> str:
    """A page with a section for each message and service."""
    lines = [NOTE.format(source="msg/*.msg and srv/*.srv"), "# Messages and services", "", MESSAGES_HEAD]
    for kind in ("msg", "srv"):
        for path in sorted((ROOT / kind).glob(f"*.{kind}")):
            lines += [f"## {path.stem}", ""]
            parts = re.split(r"^---\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            lines += [f"`loftr_ros/{kind}/{path.stem}`", ""]
            for part, name in zip(parts, ("Request", "Response") if kind == "srv" else ("",), strict=True):
                lines += [f"**{name}**", ""] if name else []
                lines += definition(part)
    return "\n".join(lines)


FIELD = re.compile(
    r"(?P<type>[\w/]+(?:<=\d+)?(?:\[[^\]]*\])?)\s+(?P<name>\w+)(?:\s*=\s*(?P<value>\S+))?\s*(?:#\s?(?P<text>.*))?$"
)


def definition(text: str) -> list[str]:
    """Tables of the fields and constants of a message, with their comments."""
    lines: list[str] = []
    rows: list[list[str]] = []
    remark = ""  # comment lines that stand by themselves

    def finish() -> None:
        if rows:
            constant = len(rows[0]) == 4
            lines.extend(
                table_head(["constant", "type", "value", "meaning"] if constant else ["field", "type", "meaning"])
            )
            lines.extend([*map(row, rows), ""])
        rows.clear()

    for line in [*text.splitlines(), "# "]:
        stripped = line.strip()
        if line.startswith("#"):
            finish()
            remark = f"{remark} {stripped.lstrip('# ')}".strip() if stripped != "#" else f"{remark}\n\n"
        elif stripped.startswith("#"):
            rows[-1][-1] += f" {cell(stripped.lstrip('# '))}"
        elif stripped:
            found = FIELD.match(stripped)
            if found is None:
                raise ValueError(f"not understood: {line}")
            value = [f"`{found['value']}`"] if found["value"] else []
            if rows and len(rows[0]) != 3 + len(value):
                finish()
            lines += paragraphs(remark)
            remark = ""
            rows.append([f"`{found['name']}`", f"`{found['type']}`", *value, cell(found["text"] or "")])
    return lines + paragraphs(remark)


def paragraphs(text: str) -> list[str]:
    """Text as paragraphs, in lines of the usual length."""
    lines: list[str] = []
    for each in text.split("\n\n"):
        if each.strip():
            whole = cell(" ".join(each.split()))
            lines += [*textwrap.wrap(whole[0].upper() + whole[1:], LINE, break_on_hyphens=False), ""]
    return lines


# Commands


@dataclasses.dataclass(frozen=True)
class Param:
    """An argument or option, as a command's function declares it by typer's own objects."""

    name: str
    kind: type
    is_list: bool
    info: Any
    default: Any

    @property
    def names(self) -> list[str]:
        """All names of an option, the long one first."""
        # In an Annotated type, typer keeps the first name where else the default is.
        given = [each for each in (self.info.default, *(self.info.param_decls or ())) if isinstance(each, str)]
        return sorted(given or [f"--{self.name.replace('_', '-')}"], key=len, reverse=True)

    @property
    def takes(self) -> str:
        """A placeholder for what an option takes; empty for a flag."""
        words = {bool: "", int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}
        return "" if self.kind is bool else str(self.info.metavar or words[self.kind])

    @property
    def usage(self) -> str:
        """An argument, as the usage has it."""
        shown = (self.info.metavar or self.name.upper()) + ("..." if self.is_list else "")
        return shown if self.default is inspect.Parameter.empty else f"[{shown}]"

    @property
    def shown_default(self) -> str:
        """What holds where an option is not given; in words where the declaration has words."""
        if isinstance(self.info.show_default, str):
            return cell(self.info.show_default)
        return "" if self.default is None or self.default is False or self.default == "" else f"`{self.default}`"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command and what it takes."""

    name: str
    meaning: str
    params: tuple[Param, ...]
    has_commands: bool
    takes_more: bool
    """Whether it hands on what it does not know, as ROS arguments."""

    @property
    def arguments(self) -> list[Param]:
        """What is given by its place."""
        return [each for each in self.params if isinstance(each.info, typer.models.ArgumentInfo)]

    @property
    def options(self) -> list[Param]:
        """What is given by its name."""
        return [each for each in self.params if isinstance(each.info, typer.models.OptionInfo)]


def commands_page() -> str:
    """A page with a section for each command."""
    lines = [NOTE.format(source="the command line's declarations"), "# Commands", "", COMMANDS_HEAD]
    for command in commands():
        lines += command_section(command)
    return "\n".join(lines)


@functools.cache
def commands() -> list[Command]:
    """The command `loftr_ros` and all below it. typer's own objects alone: what it makes of them changes by version."""
    from loftr_ros.cli.main import app

    return sorted(_commands(app, "loftr_ros"), key=lambda each: each.name)


def _commands(app: Any, name: str) -> Iterator[Command]:
    below = app.registered_callback
    yield Command(name, app.info.help or "", _params(below.callback) if below else (), True, False)
    for info in app.registered_commands:
        own = info.name or info.callback.__name__.replace("_", "-")
        meaning = " ".join((info.help or inspect.getdoc(info.callback) or "").split())
        more = bool((info.context_settings or {}).get("ignore_unknown_options"))
        yield Command(f"{name} {own}", meaning, _params(info.callback), False, more)
    for group in app.registered_groups:
        yield from _commands(group.typer_instance, f"{name} {group.name}")


def _params(function: Any) -> tuple[Param, ...]:
    hints = typing.get_type_hints(function, include_extras=True)
    defaults = inspect.signature(function).parameters
    found = []
    for name, hint in hints.items():
        if typing.get_origin(hint) is typing.Annotated:
            kind, info = typing.get_args(hint)[:2]
            kind = next((each for each in _alternatives(kind) if each is not type(None)), kind)
            is_list = typing.get_origin(kind) is list
            found.append(
                Param(name, typing.get_args(kind)[0] if is_list else kind, is_list, info, defaults[name].default)
            )
    return tuple(found)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def command_section(command: Command) -> list[str]:
    """Usage, arguments and options of a command."""
    options = ["[OPTIONS]"] if command.options else []
    usage = " ".join([command.name, *options, *(each.usage for each in command.arguments)])
    usage += " [COMMAND] ..." if command.has_commands else " [ROS ARGUMENTS]" if command.takes_more else ""
    lines = [f"## {command.name}", "", cell(command.meaning), "", "```", usage, "```", ""]
    if command.arguments:
        lines += table_head(["argument", "meaning"])
        lines += [row([f"`{each.usage.strip('[]')}`", cell(each.info.help or "")]) for each in command.arguments]
        lines.append("")
    if command.options:
        lines += table_head(["option", "default", "meaning"])
        for each in command.options:
            names = ", ".join(f"`{name}`" for name in each.names)
            names += f" {cell(each.takes)}" if each.takes else ""
            names += ", repeatable" if each.is_list else ""
            lines.append(row([names, each.shown_default, cell(each.info.help or "")]))
        lines.append("")
    return lines


# Python


def python_page() -> str:
    """A page with what mkdocstrings is to make of the public names: functions first, then classes, then errors."""
    lines = [NOTE.format(source="loftr_ros/__init__.py"), "# Python", "", PYTHON_HEAD]
    names = public_names()
    kinds = {
        "Functions": [name for name in names if name.islower()],
        "Classes": [name for name in names if not name.islower() and not name.endswith("Error")],
        "Errors": [name for name in names if name.endswith("Error")],
    }
    for kind, those in kinds.items():
        lines += [f"## {kind}", ""]
        for name in those:
            lines += documented(names[name], f"loftr_ros.{name}", name)
    lines += ["## Results", "", "What these functions and methods return.", ""]
    for path in RESULTS:
        name = path.rpartition(".")[2]
        lines += documented(path, name, name)
    return "\n".join(lines)


def documented(path: str, heading: str, label: str) -> list[str]:
    """What mkdocstrings replaces by the documentation of a name."""
    return [f"::: {path}", "    options:", f"      heading: {heading}", f"      toc_label: {label}", ""]


def public_names() -> dict[str, str]:
    """Names of the public interface and where they are defined, as `loftr_ros/__init__.py` imports them for types."""
    tree = ast.parse((ROOT / "loftr_ros" / "__init__.py").read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loftr_ros."):
            found |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return dict(sorted(found.items()))


# Launch files


def launch_page() -> str:
    """A page with the arguments of the launch files."""
    lines = [NOTE.format(source="launch/front_end.launch.py"), "# Launch arguments", "", LAUNCH_HEAD]
    lines += table_head(["argument", "default", "choices", "meaning"])
    choices = literal("CHOICES")
    for name, default, description in literal("ARGUMENTS"):
        allowed_here = ", ".join(f"`{each}`" for each in choices.get(name, []) if each)
        lines.append(row([f"`{name}`", f"`{default}`" if default else "", allowed_here, cell(description)]))
    return "\n".join([*lines, "", "`with_image_proc.launch.py` takes the same arguments.", ""])


def literal(name: str) -> Any:
    """A constant of launch/front_end.launch.py, which needs ROS's launch to be imported. What is computed is `...`."""
    tree = ast.parse((ROOT / "launch" / "front_end.launch.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == name:
            return _evaluated(statement.value)
    raise ValueError(f"launch/front_end.launch.py has no {name}")


def _evaluated(node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        return [_evaluated(each) for each in node.elts]
    if isinstance(node, ast.Dict):
        return {_evaluated(key): _evaluated(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.Call):  # a path below the package's share
        return "/".join(each.value for each in node.args[0].elts if isinstance(each, ast.Constant))
    return ast.literal_eval(node)


# Markdown


def first_line(thing: Any) -> str:
    """The first sentence of a class's docstring."""
    return cell((type(thing).__doc__ or "").strip().splitlines()[0])


def cell(text: str) -> str:
    """Text that stays in its cell and has no markup but code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*|\[\]])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    parts[1::2] = [part.replace("|", "\\|") for part in parts[1::2]]
    return "`".join(parts)


def table_head(columns: Iterable[str]) -> list[str]:
    """The two first lines of a table."""
    columns = list(columns)
    return [row(columns), row(["---"] * len(columns))]


def row(cells: Iterable[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def main() -> int:
    """Write the files, or with --check compare them."""
    stale = []
    for path, text in files().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written: {stale[-1]}")
    if stale and "--check" in sys.argv[1:]:
        print(f"out of date: {', '.join(stale)}; run `make reference`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
