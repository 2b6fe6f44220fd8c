"""Messages between a benchmark and the process of the peers: a line of JSON, then the bytes of its arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def send(stream: BinaryIO, message: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
    """Write a message; `arrays` are of plain numbers."""
    made = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    layout = {name: [array.dtype.str, list(array.shape)] for name, array in made.items()}
    stream.write(json.dumps({**message, "arrays": layout}).encode() + b"\n")
    for array in made.values():
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a message and its arrays.

    Raises:
        EOFError: the other side is gone.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message: dict[str, Any] = json.loads(line)
    arrays = {}
    for name, (kind, shape) in message.pop("arrays").items():
        count = int(np.prod(shape)) * np.dtype(kind).itemsize
        data = stream.read(count)
        if len(data) != count:
            raise EOFError
        arrays[name] = np.frombuffer(data, kind).reshape(shape)
    return message, arrays
