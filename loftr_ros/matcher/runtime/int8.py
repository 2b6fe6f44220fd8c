"""int8 for the convolutions of `compact`'s backbone, from activation ranges that were measured before.

Weights and activations are rounded to 8 bits: weights to 255 levels per output channel, activations, which are all
behind a ReLU, to 256 levels between zero and the largest value on photographs (Jacob et al., Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018, section 2.1). FakeQuantize operations say
so in the graph, and OpenVINO computes in integers. The first convolution stays as it is: with the image in 8 bits a
fourth of the matches is lost (`benchmarks/int8.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.config import INT8

# Of OpenVINO's operations in 8 bits: unsigned, and signed and symmetric.
_LEVELS, _WEIGHT_LEVELS = 256, 255
FIRST = "stages.0.0.conv"
_PREFIX = "__module.backbone."
# Beside a weights file.
_SUFFIX = ".int8.json"
_CURE = "remove it, or write it anew by `loftr_ros train int8`"


@dataclass(frozen=True)
class Int8Ranges:
    """Largest activations of a network.

    Attributes:
        fingerprint: of the network, as `fingerprint_of`.
        largest: input of each convolution of the backbone by its name, without the first.
    """

    fingerprint: str
    largest: Mapping[str, float]

    def write(self, weights: Path) -> Path:
        """Write a JSON file beside a weights file; returns its path."""
        path = weights.with_suffix(_SUFFIX)
        largest = {name: round(value, 4) for name, value in self.largest.items()}
        path.write_text(json.dumps({"fingerprint": self.fingerprint, "largest": largest}, indent=1) + "\n")
        return path


def find_ranges(weights: Path | None, fingerprint: str) -> Int8Ranges | None:
    """The ranges beside a weights file; None if there are none, or if they are of other weights.

    Args:
        weights: the file; None for random weights.
        fingerprint: of the network.

    Raises:
        WeightsError: the ranges' file is damaged.
    """
    if weights is None or not (path := weights.with_suffix(_SUFFIX)).is_file():
        return None
    ranges = _read(path)
    return ranges if ranges.fingerprint == fingerprint else None


def _read(path: Path) -> Int8Ranges:
    try:
        content = json.loads(path.read_text())
        largest = {str(name): float(value) for name, value in content["largest"].items()}
        fingerprint = str(content["fingerprint"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged ({error}); {_CURE}") from error
    if not all(math.isfinite(value) and value > 0 for value in largest.values()):
        raise WeightsError(f"{path} has ranges that are not positive; {_CURE}")
    return Int8Ranges(fingerprint, largest)


def ranges_for(weights: Path | None, fingerprint: str) -> Int8Ranges:
    """As `find_ranges`, where int8 is asked for.

    Raises:
        WeightsError: there are none; the ranges' file is damaged.
    """
    ranges = find_ranges(weights, fingerprint)
    if ranges is None:
        raise WeightsError(
            f"precision '{INT8}' is for network compact, and needs the largest activations of its weights: "
            "`loftr_ros train int8` measures them"
        )
    return ranges


def check_ranges(ranges: Int8Ranges, convolutions: Iterable[str]) -> None:
    """Check that ranges are those of a backbone's convolutions, by their names.

    Raises:
        WeightsError: they are not.
    """
    if set(convolutions) - {FIRST} != set(ranges.largest):
        raise WeightsError(f"the ranges of int8 are of other convolutions than the network has; {_CURE}")


def rounded_weights(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights (O, I, H, W) in levels from -127 to 127, and the size of each output's level, (O,)."""
    full = weight.astype(np.float32)
    step = _most(full) / np.float32(_WEIGHT_LEVELS // 2)
    return np.rint(full / step).astype(np.int8), step[:, 0, 0, 0].astype(np.float32)


def _most(weight: NDArray[Any]) -> NDArray[Any]:
    """(O, 1, 1, 1) largest weight of each output; not zero."""
    most: NDArray[Any] = np.maximum(np.abs(weight).max(axis=(1, 2, 3), keepdims=True), 1e-9)
    return most


def quantise(model: Any, ranges: Int8Ranges) -> None:
    """Let OpenVINO compute the convolutions of a backbone in int8, all but the first.

    Args:
        model: OpenVINO's, converted from the backbone in float32; it is changed.
        ranges: of this network.
    """
    convolutions = {_name(op): op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"}
    done: set[tuple[str, int]] = set()
    for name, convolution in convolutions.items():
        if name == FIRST:
            continue
        source = convolution.input(0).get_source_output()
        # Everything that reads this activation reads it in 8 bits, so that it is written once.
        if (place := (source.get_node().get_friendly_name(), source.get_index())) not in done:
            done.add(place)
            readers = list(source.get_target_inputs())
            rounded = _fake_quantize(source, np.zeros(()), np.array(ranges.largest[name]), _LEVELS)
            for reader in readers:
                reader.replace_source_output(rounded.output(0))
        weight = convolution.input(1).get_source_output()
        most = _most(weight.get_node().data)
        convolution.input(1).replace_source_output(_fake_quantize(weight, -most, most, _WEIGHT_LEVELS).output(0))


def _name(convolution: Any) -> str:
    """The name of a convolution in the network."""
    return str(convolution.get_friendly_name()).removeprefix(_PREFIX).split("/")[0]


def _fake_quantize(source: Any, low: NDArray[np.float64], high: NDArray[np.float64], levels: int) -> Any:
    from openvino import opset13

    limits = [opset13.constant(each.astype(np.float32)) for each in (low, high, low, high)]
    return opset13.fake_quantize(source, *limits, levels)
