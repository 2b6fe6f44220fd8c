"""Seeing into the network: what chosen cells attend to, and how their matches come about (paper, section 4.4).

Linear attention never has weights, and the coarse matching never a whole matrix. Here the rows of a few chosen cells
are made explicit, from the very tokens that the network worked on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from loftr_ros.matcher.attention import EPSILON, feature_map
from loftr_ros.matcher.coarse import BITS, NEVER, scaled, tiles_of
from loftr_ros.matcher.config import TransformerConfig
from loftr_ros.matcher.fine import FineMatcher, heat_map
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.matcher.loftr import LoFTR
from loftr_ros.matcher.transformer import EncoderLayer
from loftr_ros.matcher.transport import Plan

Kind = Literal["self", "cross"]


@dataclass(frozen=True)
class LayerInput:
    """What a coarse layer worked on to update one image of a pair; on the device, in the network's precision.

    Attributes:
        layer: number of the layer, from 0, as in the weights' names (`loftr_coarse.layers.0`).
        kind: "self" attends within the image, "cross" to the other one.
        image: 0 or 1, the image whose tokens ask.
        tokens: (1, L, C) of the image that asks.
        source: (1, S, C) of the image that is attended to.
        source_mask: (1, S) bool, false for what is not attended to; None where all is.
    """

    layer: int
    kind: Kind
    image: int
    tokens: Tensor
    source: Tensor
    source_mask: Tensor | None

    @property
    def attended_image(self) -> int:
        """0 or 1, the image that is attended to."""
        return self.image if self.kind == "self" else 1 - self.image


@dataclass(frozen=True)
class AttentionRows:
    """Attention of chosen cells in one layer.

    Attributes:
        layer, kind, image: as in `LayerInput`.
        cells: (Q,) int64 row-major cells of the image that asks.
        weights: (heads, Q, S) float32 over the cells of the image that is attended to; a row sums to 1. On the CPU.
    """

    layer: int
    kind: Kind
    image: int
    cells: Tensor
    weights: Tensor


@dataclass(frozen=True)
class ConfidenceRows:
    """Chosen rows of the confidence matrix; on the CPU.

    Attributes:
        cells: (Q,) int64 row-major cells of image 0.
        confidence: (Q, S) float32: dual-softmax, or the transport plan without its dustbin.
        row_softmax: (Q, S) float32, the half of the dual-softmax that goes over the row: how the cells of image 1
            compare for this one cell of image 0, whoever else wants them. None with optimal transport.
        unmatched: (Q,) float32, what the transport plan puts into the dustbin. None with dual-softmax.
    """

    cells: Tensor
    confidence: Tensor
    row_softmax: Tensor | None
    unmatched: Tensor | None


@dataclass(frozen=True)
class FineHeat:
    """The fine stage's heat maps in image 1 for chosen pairs of cells; on the CPU.

    Attributes:
        heat: (M, W, W) float32, sums to 1, one value for each fine cell of the window.
        offset: (M, 2) float32 (u, v) from the coarse cell's point to the heat's mean, in pixels of the encoded image.
        std: (M,) float32, standard deviation along one axis, in pixels of the encoded image.
    """

    heat: Tensor
    offset: Tensor
    std: Tensor


class PairObserver:
    """Keeps what the chosen coarse layers are given while one pair is encoded and matched.

    Use it as a context; within, image 0 is encoded first, then image 1, and then the two are matched, once:

        with PairObserver(network, layers=(0, 7)) as observer:
            features0, features1 = network.encode(image0), network.encode(image1)
            matches = network.match([features0], features1)

    It listens to the network's own modules, so what it keeps is what the network worked on, whatever the order and
    precision in which it did.

    Attributes:
        inputs: for each chosen layer that of image 0 and that of image 1; complete once the context is left.
        tokens: (1, L, C) and (1, S, C), the two images' features after the last layer.
    """

    def __init__(self, network: LoFTR, layers: Sequence[int]) -> None:
        """Listens to nothing yet.

        Raises:
            ValueError: there is no such layer.
        """
        check_layers(network.config.transformer, layers)
        self._network = network
        self._layers = sorted(set(layers))
        self._hooks: list[Any] = []
        self.inputs: list[LayerInput] = []
        self.tokens: tuple[Tensor, Tensor] | None = None

    def __enter__(self) -> PairObserver:
        transformer = self._network.loftr_coarse
        for number in self._layers:
            self._hooks.append(transformer.layers[number].register_forward_pre_hook(self._keep_input(number)))
        self._hooks.append(transformer.register_forward_hook(self._keep_tokens))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if kind is not None:
            return
        if self.tokens is None or len(self.inputs) != 2 * len(self._layers):
            raise RuntimeError(
                f"{len(self._layers)} layers were run {len(self.inputs)} times; expected one pair to be encoded and "
                "matched, and so each of them to be run twice"
            )
        self.inputs.sort(key=lambda entry: (entry.layer, entry.image))

    def input_of(self, layer: int, image: int) -> LayerInput:
        """What a chosen layer was given to update image 0 or 1."""
        return self.inputs[2 * self._layers.index(layer) + image]

    def _keep_input(self, number: int) -> Any:
        def keep(_: EncoderLayer, arguments: tuple[Any, ...]) -> None:
            tokens, source, mask = (*arguments, None)[:3]
            # Encoding goes image by image, and every later layer updates image 0 first.
            image = sum(entry.layer == number for entry in self.inputs)
            kind = self._network.config.transformer.layers[number]
            self.inputs.append(LayerInput(number, kind, image, tokens, source, mask))

        return keep

    def _keep_tokens(self, _: torch.nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
        self.tokens = output


def default_layers(config: TransformerConfig) -> tuple[int, ...]:
    """The first and the last self and cross layers: where attention begins and what it comes to."""
    chosen: set[int] = set()
    for kind in ("self", "cross"):
        numbers = [number for number, other in enumerate(config.layers) if other == kind]
        chosen.update(numbers[:1] + numbers[-1:])
    return tuple(sorted(chosen))


def check_layers(config: TransformerConfig, layers: Sequence[int]) -> None:
    """Raises ValueError where there is no such layer; says which there are."""
    for layer in layers:
        if not 0 <= layer < len(config.layers):
            known = ", ".join(f"{number} ({kind})" for number, kind in enumerate(config.layers))
            raise ValueError(f"layer {layer} does not exist; the network has {known}")


@torch.inference_mode()
def attention_weights(module: EncoderLayer, given: LayerInput, cells: Tensor) -> AttentionRows:
    """The attention of chosen cells as explicit weights: times the values they are the layer's message.

    Of linear attention a weight is phi(q) phi(k) over its sum, of full attention it is the softmax. Only the rows asked
    for are made, in fp32: Q of the L rows of a matrix (heads, L, S) that would not fit into memory.

    Args:
        module: the layer.
        given: what it worked on.
        cells: (Q,) int64 row-major cells of the image that asks.
    """
    cells = cells.to(given.tokens.device)
    dtype = module.q_proj.weight.dtype
    query = _by_head(module.q_proj(given.tokens[0, cells].to(dtype)), module.num_heads)
    key = _by_head(module.k_proj(given.source[0].to(dtype)), module.num_heads)
    mask = None if given.source_mask is None else given.source_mask[0]
    if module.attention == "linear":
        weights = feature_map(query).float() @ feature_map(key).float().transpose(1, 2)
        if mask is not None:
            weights *= mask
        weights /= weights.sum(dim=2, keepdim=True) + EPSILON * key.shape[1]
    else:
        weights = query.float() @ key.float().transpose(1, 2) / query.shape[2] ** 0.5
        if mask is not None:
            weights.masked_fill_(~mask, NEVER)
        weights = torch.softmax(weights, dim=2)
    return AttentionRows(given.layer, given.kind, given.image, cells.cpu(), weights.cpu())


@torch.inference_mode()
def confidence_rows(
    network: LoFTR,
    tokens0: Tensor,
    tokens1: Tensor,
    cells: Tensor,
    attended0: Tensor | None = None,
    attended1: Tensor | None = None,
) -> ConfidenceRows:
    """Rows of the matrix that `LoFTR.confidence` returns whole, in tiles.

    Args:
        network: says by which method, and has the dustbins' score.
        tokens0, tokens1: (1, L, C) and (1, S, C) features after the transformer.
        cells: (Q,) int64 row-major cells of image 0.
        attended0, attended1: (1, L) and (1, S) bool, false for cells that take no part.
    """
    coarse = network.config.coarse
    cells = cells.to(tokens0.device)
    mask0, mask1 = (None if mask is None else mask[0] for mask in (attended0, attended1))
    right = tokens1[0].float()
    if coarse.method == "optimal_transport":
        alpha = network.coarse_matching.bin_score.float() * BITS
        plan = Plan(scaled(tokens0[0], 1.0) * BITS, right, alpha, mask0, mask1)
        for _ in range(coarse.sinkhorn_iterations):
            plan.iterate()
        scores = _rows(plan.left, right, cells, mask0, mask1)
        confidence = torch.exp2(scores + plan.v + plan.u[cells, None])
        unmatched = torch.exp2(alpha + plan.u[cells] + plan.v_bin)
        return ConfidenceRows(cells.cpu(), confidence.cpu(), None, unmatched.cpu())
    left = scaled(tokens0[0], coarse.temperature)
    column_lse = torch.full((len(right),), -torch.inf, device=left.device)
    for _, tile in tiles_of(left, right, mask0, mask1):
        column_lse = torch.logaddexp(column_lse, torch.logsumexp(tile, dim=0))
    scores = _rows(left, right, cells, mask0, mask1)
    row_softmax = torch.softmax(scores, dim=1)
    confidence = row_softmax * torch.exp(scores - column_lse)
    return ConfidenceRows(cells.cpu(), confidence.cpu(), row_softmax.cpu(), None)


@torch.inference_mode()
def fine_heat(
    network: LoFTR,
    features0: ImageFeatures,
    features1: ImageFeatures,
    cell0: Tensor,
    cell1: Tensor,
    tokens0: Tensor,
    tokens1: Tensor,
) -> FineHeat:
    """The fine stage on chosen pairs of cells, whether the coarse matching matched them or not.

    Args:
        network: one with a fine stage.
        features0, features1: of the two images.
        cell0, cell1: (M,) int64 row-major cells of the two images.
        tokens0, tokens1: (1, L, C) and (1, S, C) coarse features after the transformer.

    Raises:
        ValueError: the network has no fine stage.
    """
    config, backbone = network.config.fine, network.config.backbone
    if config is None:
        raise ValueError(f"network '{network.config.name}' has no fine stage")
    ratio = backbone.stride // backbone.fine_stride
    stage = FineMatcher(config, ratio, network.backbone, network.fine_preprocess, network.loftr_fine)
    heats: list[Tensor] = []

    def keep_heat(_: torch.nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
        heats.append(heat_map(*output).view(-1, config.window, config.window))

    hook = network.loftr_fine.register_forward_hook(keep_heat)
    try:
        device = tokens0.device
        found = stage(features0, features1, cell0.to(device), cell1.to(device), tokens0[0], tokens1[0])
    finally:
        hook.remove()
    stride = backbone.fine_stride
    return FineHeat(
        torch.cat(heats)[: len(cell0)].cpu(),  # without what filled up the batch
        (found.offset * stride).cpu(),
        (found.std * stride).cpu(),
    )


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """(N, C) -> (heads, N, C / heads)."""
    return tokens.view(len(tokens), heads, -1).transpose(0, 1)


def _rows(left: Tensor, right: Tensor, cells: Tensor, attended0: Tensor | None, attended1: Tensor | None) -> Tensor:
    """(Q, S) scores of chosen rows."""
    scores = left[cells] @ right.t()
    if attended0 is not None:
        scores.masked_fill_(~attended0[cells, None], NEVER)
    if attended1 is not None:
        scores.masked_fill_(~attended1, NEVER)
    return scores
