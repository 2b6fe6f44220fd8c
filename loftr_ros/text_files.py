"""Text files of users: with a byte order mark, with Windows line ends, or not text at all."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

# Longest text file that is read. A list of a million images is 50 MB; what is larger was named by mistake.
_MAX_BYTES = 1 << 28
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_KINDS = (
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"<HTML", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
)


class TextFileError(ValueError):
    """A file is missing, or is not the expected text. The message says which, where, and what to do."""


def what_it_is(head: bytes) -> str | None:
    """Kind of a file that is often given by mistake, by its first bytes; None for other files."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((name for magic, name in _KINDS if start.startswith(magic)), None)


def read_text(path: Path) -> str:
    """A text file's content, in UTF-8 (or UTF-16 with a byte order mark), with a line feed at each line end.

    Raises:
        TextFileError: the file cannot be read, or is not text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise TextFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise TextFileError(f"{path} has more than {_MAX_BYTES >> 20} MB; expected a text file")
    if (mistaken := what_it_is(data[:512])) is not None:
        raise TextFileError(f"{path} is {mistaken}")
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TextFileError(f"{path}, line {line} is not text in UTF-8: {error.reason}") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise TextFileError(f"{path}, line {line} holds a zero byte; expected a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_yaml(path: Path) -> dict[str, Any]:
    """The YAML mapping of a file's first document. OpenCV's first line and tags are accepted.

    Numbers are as in YAML 1.2, where 1e-05 is a number.

    Raises:
        TextFileError: the file cannot be read, is not YAML, or is not a mapping.
    """
    text = read_text(path)
    if text.startswith("%YAML"):  # OpenCV writes `%YAML:1.0`, which is not YAML
        text = "\n" + text.partition("\n")[2]  # lines keep their numbers
    try:
        loader = _Loader(text)
        try:
            content = loader.get_data() if loader.check_data() else None  # type: ignore[no-untyped-call]
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise TextFileError(f"{path}{_line_of(error)} is not YAML: {error.problem or error.context}") from error
    except RecursionError as error:
        raise TextFileError(f"{path} is not YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # PyYAML lets what its constructors stumble over through, as of a `!!timestamp` that is none.
        raise TextFileError(f"{path} is not YAML: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(content, dict):
        raise TextFileError(f"{path} is empty or no mapping of names to values")
    return {str(name): value for name, value in content.items()}


def _line_of(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "" if mark is None else f", line {mark.line + 1}"


class _Loader(yaml.SafeLoader):
    """Reads numbers and booleans as in YAML 1.2, and ignores tags."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as PyYAML has it)

    def construct_any(self, _: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        return node.value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # Of a deep mapping PyYAML gives a part at first, and the rest when all is read: there are no loops here.
        return super().construct_mapping(node, deep=True)


_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]{1,18}$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value)))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _number(str(node.value)))
_Loader.add_multi_constructor("", _Loader.construct_any)


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
