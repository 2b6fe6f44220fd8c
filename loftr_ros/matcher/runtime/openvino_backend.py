"""An exported network run by OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.runtime.exported import ENCODE_FILE, MATCH_FILE
from loftr_ros.matcher.runtime.exported_matcher import ExportedMatcher, read_adjusted
from loftr_ros.matcher.runtime.openvino_runtime import Runtime

_CPU = torch.device("cpu")


def load_openvino(
    path: Path, precision: torch.dtype, threads: int = 0, coarse: Mapping[str, Any] | None = None
) -> ExportedMatcher:
    """Open a network exported by `loftr_ros export`.

    Args:
        path: the folder.
        precision: of the encoding. Matching is in fp32, which its scores need.
        threads: 0 for as many as there are cores.
        coarse: as of `read_adjusted`.

    Raises:
        WeightsError: a file is missing, damaged or of another version; `coarse` asks for more than the graph has.
        DeviceError: OpenVINO is not installed, or does not support the precision here.
        ValueError: `coarse` has another field.
    """
    exported = read_adjusted(path, coarse)
    encode = _Session(path / ENCODE_FILE, Runtime(precision, threads))
    match = _Session(path / MATCH_FILE, Runtime(torch.float32, threads))
    return ExportedMatcher(exported, encode, match, _CPU, "openvino")


class _Session:
    """A graph of a file."""

    def __init__(self, path: Path, runtime: Runtime) -> None:
        """Open it.

        Raises:
            WeightsError: it cannot be read.
        """
        try:
            model = runtime.core.read_model(str(path))
            self.inputs: Mapping[str, Sequence[int | str]] = {
                value.any_name: list(value.shape) for value in model.inputs
            }
            self._graph = runtime.compile(model)
        except RuntimeError as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise WeightsError(f"{path} cannot be opened by OpenVINO: {first_line}; export it again") from error
        self.path = path

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None, names: Sequence[str] = ()
    ) -> list[Any]:
        """As of `Session`."""
        return self._graph.run({name: inputs[name] for name in self.inputs}, outputs, names)
