"""int8 in an exported graph: the convolutions of `compact`'s backbone between QuantizeLinear and DequantizeLinear.

A runtime that finds a convolution between them computes it in integers: TensorRT by these alone ("explicit
quantisation"), onnxruntime and OpenVINO too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loftr_ros.matcher.runtime.int8 import FIRST, Int8Ranges, check_ranges, rounded_weights

# Convolutions that keep their precision: the first, those that read its output, and one after them. Rounding what these
# read makes three quarters of the features' error (on held-out training photographs, signed: 19 % of the tokens with
# only the first left out, 7 % without all four), and they are 15 % of the backbone's work.
FULL = (FIRST, "stages.1.0.conv", "half_lateral", "stages.1.1.conv1.conv")
# Part of the largest activations that signed integers cover, in half as many levels: 5 % error on the same photographs
# in place of 7 %. What is above becomes the largest level.
_SIGNED_PART = 0.7

# Of the initializers in `encode.onnx`.
_PREFIX, _SUFFIX = "network.backbone.", ".weight"
# From this version of the operators on they take float16.
HALF_OPSET = 19


def quantise_graph(path: Path, ranges: Int8Ranges, *, symmetric: bool) -> None:
    """Put the backbone's convolutions, all but those of FULL, into 8 bits; the file is changed.

    Args:
        path: of `encode.onnx`, in float32 or, from HALF_OPSET on, in float16.
        ranges: of this network.
        symmetric: activations have 127 levels above zero in signed integers, as TensorRT needs; else 255 in unsigned
            ones, which is more accurate.

    Raises:
        WeightsError: the ranges are of another network.
    """
    import onnx

    model = onnx.load(str(path))
    _quantise(model.graph, ranges, _SIGNED if symmetric else _UNSIGNED)
    onnx.save(model, str(path))


class _Levels(NamedTuple):
    """Of activations: their type, how many are above zero, and the part of the largest activation that they reach."""

    dtype: type[np.integer[Any]]
    above_zero: int
    part: float


_SIGNED, _UNSIGNED = _Levels(np.int8, 127, _SIGNED_PART), _Levels(np.uint8, 255, 1.0)


def _quantise(graph: Any, ranges: Int8Ranges, levels: _Levels) -> None:
    from onnx import helper, numpy_helper

    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    convolutions = {
        node.input[1].removeprefix(_PREFIX).removesuffix(_SUFFIX): node for node in graph.node if node.op_type == "Conv"
    }
    check_ranges(ranges, convolutions)
    made: dict[str, list[Any]] = {}  # nodes by the activation that they round
    constants: dict[str, NDArray[Any]] = {}
    of_weights = []
    for name, node in convolutions.items():
        if name in FULL:
            continue
        weight = values[node.input[1]]
        rounded, step = rounded_weights(weight)
        constants |= {f"{name}.levels": rounded, f"{name}.step": step.astype(weight.dtype)}
        node.input[1] = f"{name}.rounded"
        of_weights.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}.levels", f"{name}.step"], [node.input[1]], f"{name}.weight", axis=0
            )
        )
        if (source := node.input[0]) in made:
            continue  # everything that reads this activation reads it in 8 bits, so that it is written once
        of_one = ranges.largest[name] * levels.part / levels.above_zero
        constants |= {f"{source}.step": np.array(of_one, weight.dtype), f"{source}.zero": np.zeros((), levels.dtype)}
        scale = [f"{source}.step", f"{source}.zero"]
        made[source] = [
            helper.make_node("QuantizeLinear", [source, *scale], [f"{source}.levels"], f"{source}.quantise"),
            helper.make_node("DequantizeLinear", [f"{source}.levels", *scale], [f"{source}.rounded"], f"{source}.back"),
        ]
    nodes = [*of_weights]
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in made:
                node.input[i] = f"{name}.rounded"
        nodes.append(node)
        nodes += [each for name in node.output for each in made.get(name, ())]
    replaced = {f"{_PREFIX}{name}{_SUFFIX}" for name in convolutions if name not in FULL}
    kept = [each for each in graph.initializer if each.name not in replaced]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *(numpy_helper.from_array(value, name) for name, value in constants.items())])
