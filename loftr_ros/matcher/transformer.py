"""The local feature transformer: self and cross layers over two token sequences (paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loftr_ros.matcher.attention import linear_attention
from loftr_ros.matcher.config import TransformerConfig


class EncoderLayer(nn.Module):
    """One attention layer: x asks, source answers. Module names are those of the published checkpoints."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
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

    def forward(self, x: Tensor, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Update x by a message from source.

        Args:
            x: (B, L, C) tokens.
            source: (B, S, C) tokens.
            source_mask: (B, S) bool, false for padding; or None.

        Returns:
            (B, L, C).
        """
        heads = (x.shape[0], -1, self.num_heads, x.shape[2] // self.num_heads)
        query = self.q_proj(x).view(heads).transpose(1, 2)
        key = self.k_proj(source).view(heads).transpose(1, 2)
        value = self.v_proj(source).view(heads).transpose(1, 2)
        message = linear_attention(query, key, value, source_mask).transpose(1, 2).reshape(x.shape)
        message = self.norm1(self.merge(message))
        message = self.norm2(self.mlp(torch.cat([x, message], dim=2)))
        return x + message


class LocalFeatureTransformer(nn.Module):
    """The stack of layers, split where a second image first comes in.

    The layers before the first cross layer see one image only, so they belong to encoding: a streamed image
    passes through them once, however many keyframes it is matched with.
    """

    def __init__(self, channels: int, config: TransformerConfig) -> None:
        super().__init__()
        self.kinds = config.layers
        self.num_leading_self = config.layers.index("cross") if "cross" in config.layers else len(config.layers)
        self.layers = nn.ModuleList(EncoderLayer(channels, config.num_heads) for _ in config.layers)

    def encode(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The leading self layers, on one image: (B, L, C) -> (B, L, C)."""
        for layer in self.layers[: self.num_leading_self]:
            tokens = layer(tokens, tokens, mask)
        return tokens

    def forward(
        self, tokens0: Tensor, tokens1: Tensor, mask0: Tensor | None, mask1: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The layers from the first cross layer on.

        Args:
            tokens0, tokens1: (B, L, C) and (B, S, C), as `encode` returns them.
            mask0, mask1: (B, L) and (B, S) bool, false for padding; or None.

        Returns:
            The two sequences, in the same shapes.
        """
        for layer, kind in zip(self.layers[self.num_leading_self :], self.kinds[self.num_leading_self :], strict=True):
            if kind == "self":
                tokens0 = layer(tokens0, tokens0, mask0)
                tokens1 = layer(tokens1, tokens1, mask1)
            else:
                # In the published order: image 1 attends to what image 0 has become.
                tokens0 = layer(tokens0, tokens1, mask1)
                tokens1 = layer(tokens1, tokens0, mask0)
        return tokens0, tokens1
