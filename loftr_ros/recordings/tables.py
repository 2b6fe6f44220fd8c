"""Text tables of data sets and people: with headers, commas or blanks, from any system."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from loftr_ros.recordings.images import SourceError
from loftr_ros.text_files import TextFileError
from loftr_ros.text_files import read_text as read_any_text

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*:")  # first entry of a row, such as KITTI's `P0:`
_QUOTES = "\"'"


class Row(list[str]):
    """The entries of a row, and the number of its line."""

    def __init__(self, entries: list[str], line: int) -> None:
        super().__init__(entries)
        self.line = line


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        SourceError: it cannot be read, or is not text.
    """
    try:
        return read_any_text(path)
    except TextFileError as error:
        raise SourceError(str(error)) from error


def read_table(path: Path, columns: int, named: bool = False) -> list[Row]:
    """Rows of a text table, with entries separated by blanks, tabs, commas or semicolons.

    Lines that begin with # are comments. The first row is a skipped header if its first entry is not a number and those
    of others are.

    Args:
        path: the file.
        columns: least number of entries in each row.
        named: rows may begin with a name, such as `P0:`, which is skipped.

    Raises:
        SourceError: a row is too short, or the file cannot be read.
    """
    rows: list[Row] = []
    first = True
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        row = Row(split(stripped, columns), number)
        if named and row and _NAME.fullmatch(row[0]):
            del row[0]
        if first and row and not is_number(row[0]):
            first = False
            continue
        first = False
        if len(row) < columns:
            raise SourceError(f"{path}, line {number} has {len(row)} entries; expected {columns}: {line[:60]!r}")
        rows.append(row)
    return rows


def split(line: str, columns: int) -> list[str]:
    """A line's entries, without quotes."""
    separator = next((mark for mark in ",;\t" if mark in line), None)
    # In a row of stamp and file, the file's name may contain blanks.
    entries = line.split(None, 1) if separator is None and columns == 2 else line.split(separator)
    return [entry.strip().strip(_QUOTES) for entry in entries]


def is_number(text: str) -> bool:
    """Whether it is a decimal number, or nan or inf."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def read_numbers(path: Path, columns: int, named: bool = False) -> NDArray[np.float64]:
    """(N, columns) float64 from a text table; further columns are ignored.

    Raises:
        SourceError: an entry is not a number.
    """
    return numbers_in(read_table(path, columns, named), columns, path)


def numbers_in(rows: list[Row], columns: int, path: Path) -> NDArray[np.float64]:
    """(N, columns) float64 of rows of a file, which is named in errors.

    Raises:
        SourceError: an entry is not a number.
    """
    for row in rows:
        for entry in row[:columns]:
            if not is_number(entry):
                raise SourceError(f"{path}, line {row.line} holds {entry[:40]!r}; expected a number")
    return np.array([[float(entry) for entry in row[:columns]] for row in rows], np.float64).reshape(-1, columns)


def file_named(text: str, folder: Path, images: Path) -> Path:
    """The file named in a list: by its path from the list's folder, or only by its name among the images.

    Lists were often written on another machine, with its own paths.

    Args:
        text: as written in the list.
        folder: of the list.
        images: folder of the images.
    """
    plain = text.replace("\\", "/")
    name = PurePosixPath(plain).name
    for candidate in (folder / plain, images / plain, images / name):
        if file_exists(candidate):
            return candidate
    return folder / plain


def file_exists(file: Path) -> bool:
    """Whether a file exists; false for a name that is too long or invalid."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False
