"""The local feature transformer: self and cross layers over two token sequences (paper, section 3.2).

In half precision the tokens themselves stay in fp32, and a layer's update is computed in half. Rounding the tokens
after each of eight layers would lose as much as all the products together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from loftr_ros.matcher.config import TransformerConfig
from loftr_ros.matcher.fixed import is_fixed
from loftr_ros.matcher.loftr.attention import (
    Context,
    full_attention,
    linear_attention,
    normalise,
    project_values,
    summarise_projected,
)

# Tokens of all pairs that a layer processes at a time: its temporaries stay in the processor's cache.
TILE_TOKENS = 2400


class EncoderLayer(nn.Module):
    """One attention layer: x queries, source answers. Module names are those of the published checkpoints."""

    def __init__(self, channels: int, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention = config.attention
        self.q_proj = nn.Linear(channels, channels, bias=False)
        self.k_proj = nn.Linear(channels, channels, bias=False)
        self.v_proj = nn.Linear(channels, channels, bias=False)
        self.merge = nn.Linear(channels, channels, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * channels, 2 * channels, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(2 * channels, channels, bias=False),
        )
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self._value_and_merge: Tensor | None = None

    def forward(self, x: Tensor, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Update x by a message from source, computed in the weights' precision.

        Args:
            x: (B, L, C) tokens, fp32 or in that precision; B = 1 shares one sequence.
            source: (B, S, C) tokens; B = 1 shares one sequence.
            source_mask: (B, S) bool, false for masked tokens; B = 1 shares one row; or None.

        Returns:
            (B, L, C) in the dtype of x.
        """
        if source_mask is not None and len(source_mask) != len(source):
            batch = max(len(source), len(source_mask))  # both are cut into the same tiles
            source, source_mask = source.expand(batch, -1, -1), source_mask.expand(batch, -1)
        if self.attention == "linear" and x.shape[1] > x.shape[2]:
            if is_fixed():
                return self._whole(x, source, source_mask)
            return self._update(x, self._summarise(source, source_mask))
        query, key, value = (
            self._heads(project(tokens.to(project.weight.dtype)))
            for project, tokens in ((self.q_proj, x), (self.k_proj, source), (self.v_proj, source))
        )
        attend = linear_attention if self.attention == "linear" else full_attention
        if len(x) != len(source):  # the export traces equal ones, and their number must stay variable
            batch = max(len(x), len(source))
            x = x.expand(batch, -1, -1)
            query, key, value = (tensor.expand(batch, -1, -1, -1) for tensor in (query, key, value))
        message = attend(query, key, value, source_mask).transpose(1, 2).flatten(2)
        return x + self._feed_forward(x.to(message.dtype), self.merge(message))

    def _whole(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """The layer for many more tokens than channels, on whole sequences at once, by few launches.

        Values and `merge` are both linear, so they are one matrix, multiplied with the context instead of the tokens.
        """
        dtype, heads, channels = self.merge.weight.dtype, self.num_heads, x.shape[2]
        own = x.to(dtype)
        attended = own if source is x else source.to(dtype)
        products, keys = summarise_projected(self.k_proj(attended), attended, mask)
        by_head = products.view(len(products), heads, -1, channels)
        merged = (by_head @ self._merged_values()).flatten(1, 2).to(dtype)
        context = Context(products, keys.view(len(keys), heads, -1))
        message = self.norm1(normalise(self.q_proj(own), context) @ merged)
        if len(message) != len(own):
            own = own.expand(len(message), -1, -1)
        return x + self.norm2(self.mlp(torch.cat([own, message], dim=2)))

    def _merged_values(self) -> Tensor:
        """(heads, C, C) float32, the projection to a head's values followed by its part of `merge`."""
        weight = self.merge.weight
        if self._value_and_merge is None or self._value_and_merge.device != weight.device:
            value = self.v_proj.weight.float().view(self.num_heads, -1, weight.shape[0])
            merge = weight.float().t().reshape(self.num_heads, -1, weight.shape[0])
            self._value_and_merge = (value.transpose(1, 2) @ merge).detach()
        return self._value_and_merge

    def _summarise(self, source: Tensor, mask: Tensor | None) -> Context:
        """The context of long sequences, tile by tile."""
        dtype = self.k_proj.weight.dtype
        sums: dict[int, Context] = {}
        for sequences, tokens in _tiles(source):
            part = source[sequences, tokens].to(dtype)
            part_mask = None if mask is None else mask[sequences, tokens]
            context = summarise_projected(self.k_proj(part), part, part_mask)
            share = part.shape[1] / source.shape[1]
            context = Context(share * context.products, share * context.keys)
            if sequences.start in sums:
                context = Context(*(a + b for a, b in zip(sums[sequences.start], context, strict=True)))
            sums[sequences.start] = context
        whole = Context(*(torch.cat(parts) for parts in zip(*sums.values(), strict=True)))
        return project_values(whole, self.v_proj.weight.float(), self.num_heads)

    def _update(self, x: Tensor, context: Context) -> Tensor:
        """The layer for many more tokens than channels, tile by tile.

        The message of a head is its query times the context's products, and `merge` follows: the two matrices are
        multiplied once, so a token needs one product of size C x C for both.
        """
        heads, channels = self.num_heads, x.shape[2]
        merge = self.merge.weight.float().view(channels, heads, -1).permute(1, 2, 0)
        merged = (context.products @ merge).reshape(-1, channels, channels).to(self.merge.weight.dtype)
        if torch.is_grad_enabled():
            x = x if len(x) == len(merged) else x.expand(max(len(x), len(merged)), -1, -1)
            tiles = [part + update for _, part, update in self._updates(x, context, merged)]
            return torch.cat([tile.flatten(0, 1) for tile in tiles]).view(x.shape)
        updated = x.new_empty(max(len(x), len(merged)), *x.shape[1:])
        for tile, part, update in self._updates(x, context, merged):
            updated[tile].copy_(update).add_(part)
        return updated

    def _updates(
        self, x: Tensor, context: Context, merged: Tensor
    ) -> Iterator[tuple[tuple[slice, slice], Tensor, Tensor]]:
        """Tile by tile: position in the result, tokens, and update."""
        channels = x.shape[2]
        plain = torch.is_grad_enabled()
        for sequences, tokens in _tiles(x):
            part = x[sequences, tokens]
            if plain:
                own = part.to(merged.dtype)
            else:  # written beside the message in place, instead of concatenating later
                wide = part.new_empty(*part.shape[:2], 2 * channels, dtype=merged.dtype)
                own = wide[..., :channels].copy_(part)
            query = self.q_proj(own)
            several = len(x) == 1 and len(merged) > 1
            for places in [slice(i, i + 1) for i in range(len(merged))] if several else [sequences]:
                chosen = places if len(merged) > 1 else slice(0, 1)
                message = normalise(query, Context(context.products[chosen], context.keys[chosen])) @ merged[chosen]
                if plain:
                    update = self._feed_forward(own, message)
                else:
                    wide[..., channels:].copy_(self.norm1(message))
                    update = self.norm2(self.mlp(wide))
                yield (places, tokens), part, update

    def _feed_forward(self, x: Tensor, message: Tensor) -> Tensor:
        update: Tensor = self.norm2(self.mlp(torch.cat([x, self.norm1(message)], dim=2)))
        return update

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, heads, L, C / heads), a view."""
        return tokens.view(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


class LocalFeatureTransformer(nn.Module):
    """The stack of layers, split before the first one that needs a second image.

    The layers before the first cross layer depend on one image only, so they belong to encoding: a streamed image
    passes through them once, however many keyframes it is matched with.
    """

    def __init__(self, channels: int, config: TransformerConfig) -> None:
        super().__init__()
        self.kinds = config.layers
        self.num_leading_self = config.layers.index("cross") if "cross" in config.layers else len(config.layers)
        self.layers = nn.ModuleList(EncoderLayer(channels, config) for _ in config.layers)

    def encode(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The leading self layers, on one image: (B, L, C) -> (B, L, C)."""
        for layer in self.layers[: self.num_leading_self]:
            tokens = layer(tokens, tokens, mask)
        return tokens

    def forward(
        self, tokens0: Tensor, tokens1: Tensor, mask0: Tensor | None = None, mask1: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layers from the first cross layer on.

        Args:
            tokens0, tokens1: (B, L, C) and (B, S, C), as `encode` returns them; either may be shared by all pairs.
            mask0, mask1: (B, L) and (B, S) bool, false for masked tokens, either shared by all pairs; or None.

        Returns:
            The two sequences, both for all pairs, in the weights' precision.
        """
        for layer, kind in zip(self.layers[self.num_leading_self :], self.kinds[self.num_leading_self :], strict=True):
            if kind == "self" and is_fixed() and tokens0.shape == tokens1.shape and (mask0 is None) == (mask1 is None):
                both, masks = torch.cat([tokens0, tokens1]), None
                if mask0 is not None and mask1 is not None:
                    masks = torch.cat([mask.expand(len(tokens0), -1) for mask in (mask0, mask1)])
                tokens0, tokens1 = layer(both, both, masks).chunk(2)
            elif kind == "self":
                tokens0 = layer(tokens0, tokens0, mask0)
                tokens1 = layer(tokens1, tokens1, mask1)
            else:
                # In the published order: image 1 attends to the updated image 0.
                tokens0 = layer(tokens0, tokens1, mask1)
                tokens1 = layer(tokens1, tokens0, mask0)
        dtype = next(self.parameters()).dtype
        return tokens0.to(dtype), tokens1.to(dtype)


def _tiles(tokens: Tensor) -> list[tuple[slice, slice]]:
    """Blocks of (B, L, C) of at most TILE_TOKENS tokens: some whole sequences, or a part of one.

    Each is contiguous in memory, and they follow each other there.
    """
    batch, length, _ = tokens.shape
    if length > TILE_TOKENS:
        parts = [slice(start, min(start + TILE_TOKENS, length)) for start in range(0, length, TILE_TOKENS)]
        return [(slice(i, i + 1), part) for i in range(batch) for part in parts]
    step = TILE_TOKENS // length
    return [(slice(start, min(start + step, batch)), slice(0, length)) for start in range(0, batch, step)]
