"""Looks into LoFTR: linear attention as weights, and the windows of the fine stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from loftr_ros.matcher.coarse import NEVER
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.matcher.loftr.attention import EPSILON, feature_map
from loftr_ros.matcher.loftr.fine import heat_map
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.loftr.transformer import EncoderLayer
from loftr_ros.tools.explain.views import (
    AttentionRows,
    Both,
    FineHeat,
    Given,
    InsideCells,
    Lattice,
    LayerInput,
    by_head,
)


class InsideLoFTR(InsideCells):
    """Tokens are cells: the network attends to cells and matches cells."""

    def __init__(self, network: LoFTR) -> None:
        self.network: LoFTR = network
        self.transformer = network.loftr_coarse

    def given(self, arguments: tuple[Any, ...]) -> list[Given]:
        tokens, source, mask = (*arguments, None)[:3]
        return [(tokens, source, mask, None, None)]

    def attention(self, given: LayerInput, tokens: Tensor) -> AttentionRows:
        return attention_weights(self.network.loftr_coarse.layers[given.layer], given, tokens)  # type: ignore[arg-type]

    def key_places(self, features: ImageFeatures) -> Lattice:
        return self.token_places(features)

    @torch.inference_mode()
    def fine_heat(self, cells0: Tensor, cells1: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> FineHeat:
        network = self.network
        config, stage = network.config.fine, network.fine_matcher
        if config is None or stage is None:
            raise ValueError(f"network '{network.config.name}' has no fine stage")
        spacing = network.config.backbone.fine_stride
        heats: list[Tensor] = []

        def keep_heat(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
            heats.append(heat_map(*output).view(-1, config.window, config.window))

        hook = network.loftr_fine.register_forward_hook(keep_heat)
        try:
            device = network.device
            found = stage.refined(*features, cells0.to(device), cells1.to(device), tokens[0][0], tokens[1][0])
        finally:
            hook.remove()
        heat = torch.cat(heats)[: len(cells0)]  # without the padding of the batch
        return FineHeat(heat.cpu(), spacing, (found.offset * spacing).cpu(), (found.std * spacing).cpu())


@torch.inference_mode()
def attention_weights(module: EncoderLayer, given: LayerInput, tokens: Tensor) -> AttentionRows:
    """The rows of `Inside.attention` for one layer.

    A weight of linear attention is phi(q) phi(k) over its sum; of full attention it is the softmax. Only Q of the L
    rows are computed: the whole matrix (heads, L, S) would not fit into memory.
    """
    tokens = tokens.to(given.tokens.device)
    dtype = module.q_proj.weight.dtype
    query = by_head(module.q_proj(given.tokens[0, tokens].to(dtype)), module.num_heads)
    key = by_head(module.k_proj(given.source[0].to(dtype)), module.num_heads)
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
    return AttentionRows(given.layer, given.kind, given.image, tokens.cpu(), weights.cpu())
