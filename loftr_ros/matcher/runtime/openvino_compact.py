"""`compact` with its backbone and its attention run by OpenVINO, from the weights, without an export.

These two are nearly all of its work, and have fixed shapes. torch computes everything that depends on the matches.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from loftr_ros.matcher.compact.backbone import CompactBackbone, CompactFeatures
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.compact.region_transformer import RegionTransformer
from loftr_ros.matcher.convolutions import round_weights
from loftr_ros.matcher.runtime.int8 import Int8Ranges, check_ranges, quantise
from loftr_ros.matcher.runtime.openvino_runtime import Graph, Runtime

# Maximum number of cached graphs, each for one image size.
_KEPT = 12

Grid = tuple[int, int]

_logger = logging.getLogger(__name__)


def compiled(network: Compact, precision: torch.dtype, threads: int = 0, int8: Int8Ranges | None = None) -> Compact:
    """The same network, run by OpenVINO.

    A graph is built for each new image size, which takes some seconds; the warm-up does it in advance.

    Args:
        network: prepared, in float32, on the CPU; must not be used afterwards.
        precision: of OpenVINO's computation and of the features.
        threads: 0 for as many as there are cores.
        int8: ranges for a backbone in int8; None for the precision everywhere.

    Raises:
        DeviceError: OpenVINO is not installed, or does not support the precision here.
        WeightsError: the ranges are of another network.
    """
    graphs = _Graphs(Runtime(precision, threads))
    if int8 is not None:
        check_ranges(int8, [name for name, layer in network.backbone.named_modules() if isinstance(layer, nn.Conv2d)])
    elif precision != torch.float32:
        round_weights(network.backbone, precision)
    network.backbone = _CompiledBackbone(network.backbone, graphs, int8)  # type: ignore[assignment]
    network.transformer = _CompiledTransformer(network.transformer, graphs)  # type: ignore[assignment]
    return network


def is_compiled(network: Compact) -> bool:
    """Whether OpenVINO runs a network."""
    return isinstance(network.backbone, _CompiledBackbone)


def is_int8(network: Compact) -> bool:
    """Whether OpenVINO runs a network's backbone in int8."""
    return isinstance(network.backbone, _CompiledBackbone) and network.backbone.int8 is not None


class _Graphs:
    """Cached graphs by key, built on first use."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Graph] = OrderedDict()

    def get(
        self,
        name: Hashable,
        module: Callable[[], nn.Module],
        examples: tuple[Tensor, ...],
        int8: Int8Ranges | None = None,
    ) -> Graph:
        """The graph of a module, for inputs of the examples' shapes; with `int8` that of the backbone in 8 bits."""
        key = name, tuple(tuple(example.shape) for example in examples)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # Without the lock, so that another thread with existing graphs does not wait for this one.
        start = time.monotonic()
        if name == "backbone":  # the first graph that a new image needs; the others follow
            height, width = examples[0].shape[-2:]
            _logger.info("OpenVINO builds graphs for images of %dx%d px, which takes some seconds", width, height)
        model = _converted(module(), examples, self.runtime.precision)
        if int8 is not None:
            quantise(model, int8)
        graph = self.runtime.compile(model)
        _logger.debug("OpenVINO built %s in %.1f s", key, time.monotonic() - start)
        with self._lock:
            self._kept[key] = graph
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return graph


def _converted(module: nn.Module, examples: tuple[Tensor, ...], kept: torch.dtype) -> Any:
    """OpenVINO's model of a module. Floating-point inputs and outputs have the precision of the features."""
    import openvino
    from openvino.frontend import FrontEndManager

    # Not by openvino.convert_model, which reports each use to its vendor.
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes are meant to become constants
        # As fp32, outside of inference mode: tracing needs normal tensors.
        plain = tuple(torch.zeros(e.shape, dtype=e.dtype if e.dtype == torch.bool else torch.float32) for e in examples)
        module.eval()(*plain)  # creates the networks' cached constants
        # The decoder would trace by itself, and run the module three more times to check.
        traced = torch.jit.trace(module, plain, check_trace=False)
        decoder = TorchScriptPythonDecoder(traced, example_input=plain)
        front_end = FrontEndManager().load_by_framework("pytorch")
        model = front_end.convert(front_end.load(decoder))
    types = {torch.float32: openvino.Type.f32, torch.bfloat16: openvino.Type.bf16, torch.float16: openvino.Type.f16}
    outer = types[kept]
    model.reshape({i: list(example.shape) for i, example in enumerate(examples)})
    shaped = openvino.preprocess.PrePostProcessor(model)
    for i, example in enumerate(examples):
        # Whole gray levels, masks and features: each in torch's type.
        kind = openvino.Type.boolean if example.dtype == torch.bool else outer
        shaped.input(i).tensor().set_element_type(kind)
    for i in range(len(model.outputs)):
        shaped.output(i).tensor().set_element_type(outer)
    return shaped.build()


class _CompiledBackbone(nn.Module):
    """Replaces `CompactBackbone`."""

    def __init__(self, backbone: CompactBackbone, graphs: _Graphs, int8: Int8Ranges | None) -> None:
        super().__init__()
        self._module, self._graphs, self.int8 = _Maps(backbone), graphs, int8
        # Defines device and dtype of the features.
        self.register_buffer("first_weight", torch.empty(0, dtype=graphs.runtime.precision), persistent=False)
        dims = backbone.region_projection, backbone.cell_projection, backbone.fine_projection
        self._channels = [layer.out_channels for layer in dims]

    def forward(self, image: Tensor) -> CompactFeatures:
        """(1, 1, H, W), sides multiples of 16."""
        graph = self._graphs.get("backbone", lambda: self._module, (image,), self.int8)
        height, width = image.shape[2:]
        made = [
            torch.empty((1, height // stride, width // stride, channels), dtype=image.dtype)
            for stride, channels in zip((16, 8, 2), self._channels, strict=True)
        ]
        graph.run({0: image}, dict(enumerate(made)))
        return CompactFeatures(*(tensor.permute(0, 3, 1, 2) for tensor in made))


class _CompiledTransformer(nn.Module):
    """Replaces `RegionTransformer`."""

    def __init__(self, transformer: RegionTransformer, graphs: _Graphs) -> None:
        super().__init__()
        self._transformer, self._graphs = transformer, graphs

    def encode(self, tokens: Tensor, grid: Grid, mask: Tensor | None = None) -> Tensor:
        """As `RegionTransformer.encode`, of one image."""
        if not self._transformer.num_leading_self:
            return tokens
        inputs = (tokens,) if mask is None else (tokens, mask)
        graph = self._graphs.get(("self", grid), lambda: _Self(self._transformer, grid), inputs)
        result = torch.empty_like(tokens)
        graph.run(dict(enumerate(inputs)), {0: result})
        return result

    def forward(
        self,
        tokens0: Tensor,
        tokens1: Tensor,
        grid0: Grid,
        grid1: Grid,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `RegionTransformer.forward`, pair by pair, so that more keyframes need no other graph."""
        if self._transformer.num_leading_self == len(self._transformer.layers):
            return tokens0, tokens1
        inputs = [tokens0, tokens1]
        if mask0 is not None or mask1 is not None:
            for tokens, mask in ((tokens0, mask0), (tokens1, mask1)):
                inputs.append(torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask)
        results = (torch.empty_like(tokens0), torch.empty(tokens1.shape, dtype=tokens1.dtype))
        for pair in range(len(tokens0)):
            given = tuple(part[pair : pair + 1] for part in inputs)
            graph = self._graphs.get(("cross", grid0, grid1), lambda: _Cross(self._transformer, grid0, grid1), given)
            graph.run(dict(enumerate(given)), {i: result[pair : pair + 1] for i, result in enumerate(results)})
        return results


class _Maps(nn.Module):
    """The backbone with the shape channels last, as in memory."""

    def __init__(self, backbone: CompactBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(features.permute(0, 2, 3, 1) for features in self.backbone(image))


class _Self(nn.Module):
    """The layers on one image, for one size of it."""

    def __init__(self, transformer: RegionTransformer, grid: Grid) -> None:
        super().__init__()
        self.transformer, self.grid = transformer, grid

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.transformer.encode(tokens, self.grid, mask)


class _Cross(nn.Module):
    """The layers on two images, for one size of each."""

    def __init__(self, transformer: RegionTransformer, grid0: Grid, grid1: Grid) -> None:
        super().__init__()
        self.transformer, self.grid0, self.grid1 = transformer, grid0, grid1

    def forward(
        self, tokens0: Tensor, tokens1: Tensor, mask0: Tensor | None = None, mask1: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.transformer(tokens0, tokens1, self.grid0, self.grid1, mask0, mask1)
        return found
