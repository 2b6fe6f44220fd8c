"""Attention between the regions of two images: softmax over keys and values pooled two by two.

Positions enter as rotations of queries and keys (RoFormer, arXiv 2104.09864), only within an image. So attention
depends only on the distance of two regions and works at image sizes not seen in training. The logits grow with the
logarithm of the number of keys; otherwise a softmax over more keys than in training would be flatter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.matcher.config import RegionTransformerConfig
from loftr_ros.matcher.constants import made_once
from loftr_ros.matcher.convolutions import is_traced
from loftr_ros.matcher.fixed import is_fixed
from loftr_ros.matcher.loftr.attention import softmax_attention

# Number of keys for which logits are scaled as in the Transformer.
_KEYS = 64
# Wavelengths of the rotations in regions, from the shortest on in powers of the ratio.
_LONGEST = 100.0
# Initial gain of a layer's update: training starts from the backbone's features alone.
_FIRST_GAIN = 0.2

Grid = tuple[int, int]


class RegionLayer(nn.Module):
    """One layer: attention, and a perceptron that merges its message into each region (paper, section 3.2)."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self._turning: tuple[Tensor, ...] | None = None
        self.q_proj = nn.Linear(channels, channels, bias=False)
        self.kv_proj = nn.Linear(channels, 2 * channels, bias=False)
        self.merge = nn.Linear(channels, channels, bias=False)
        self.norm1 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(2 * channels, 2 * channels, bias=False), nn.ReLU(), nn.Linear(2 * channels, channels, bias=False)
        )
        self.norm2 = nn.LayerNorm(channels)
        nn.init.constant_(self.norm2.weight, _FIRST_GAIN)

    def forward(
        self, x: Tensor, grid: Grid, source: Tensor, source_grid: Grid, mask: Tensor | None, *, rotate: bool
    ) -> Tensor:
        """Let regions attend to others.

        Args:
            x: (B, L, C) regions of a grid of (rows, columns).
            grid: of x.
            source: (B, S, C) attended tokens.
            source_grid: of the source.
            mask: (B, S) bool, false for masked tokens; or None.
            rotate: whether positions are used, which they are within an image.
        """
        pooled, pooled_grid = pool(source, source_grid)
        turned_weights = is_fixed() and not is_traced()
        if rotate and turned_weights:
            query, turned = self._projected(x, 0)
            query = turned_by_position(query, turned, grid, 1)
            key, turned, value = self._projected(pooled, 1)
            key = turned_by_position(key, turned, pooled_grid, 2)
        else:
            query = self._heads(self.q_proj(x))
            key, value = (self._heads(part) for part in self.kv_proj(pooled).chunk(2, dim=2))
        if rotate and not turned_weights:
            query = rotated(query, grid, 1)
            key = rotated(key, pooled_grid, 2)
        scale = attention_scale(key.shape[2], key.shape[3])
        attended = None if mask is None else pool_mask(mask, source_grid)[:, None, None]
        if query.requires_grad and query.device.type == "cpu":
            # The fused kernel takes twice as long, including its backward pass.
            logits = (query * scale) @ key.transpose(2, 3)
            logits = logits if attended is None else logits.masked_fill(~attended, -math.inf)
            message = logits.softmax(dim=3) @ value
        else:
            message = softmax_attention(query, key, value, attended, scale)
        message = self.norm1(self.merge(message.transpose(1, 2).reshape(x.shape)))
        update: Tensor = self.norm2(self.mlp(torch.cat([x, message.to(x.dtype)], dim=2)))
        return x + update

    def _projected(self, tokens: Tensor, end: int) -> tuple[Tensor, ...]:
        """Queries (end 0), or keys and values (1), where queries and keys are followed by their quarter turns."""
        if self._turning is None or self._turning[0].device != tokens.device:
            self._turning = tuple(
                torch.cat([weight[:channels], self._quarter_turn(weight[:channels]), weight[channels:]]).detach()
                for weight, channels in (
                    (w, self.q_proj.out_features) for w in (self.q_proj.weight, self.kv_proj.weight)
                )
            )
        made = functional.linear(tokens, self._turning[end])
        return tuple(self._heads(part) for part in made.split(self.q_proj.out_features, dim=2))

    def _quarter_turn(self, weight: Tensor) -> Tensor:
        """(C, C) weights of a projection whose result is `rotated` by a right angle."""
        first, second = weight.unflatten(0, (self.num_heads, 2, -1)).unbind(dim=1)
        return torch.stack([-second, first], dim=1).flatten(0, 2)

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, heads, L, C / heads), a view."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class RegionTransformer(nn.Module):
    """The stack of layers, split before the first one that needs a second image."""

    def __init__(self, channels: int, config: RegionTransformerConfig) -> None:
        super().__init__()
        self.kinds = config.layers
        self.num_leading_self = config.layers.index("cross") if "cross" in config.layers else len(config.layers)
        self.layers = nn.ModuleList(RegionLayer(channels, config.num_heads) for _ in config.layers)

    def encode(self, tokens: Tensor, grid: Grid, mask: Tensor | None = None) -> Tensor:
        """The leading self layers, on one image: (B, L, C) -> (B, L, C)."""
        for layer in self.layers[: self.num_leading_self]:
            tokens = layer(tokens, grid, tokens, grid, mask, rotate=True)
        return tokens

    def forward(
        self,
        tokens0: Tensor,
        tokens1: Tensor,
        grid0: Grid,
        grid1: Grid,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The layers from the first cross layer on. Both images attend to the other's state before the layer.

        Args:
            tokens0, tokens1: (B, L, C) and (B, S, C), as `encode` returns them.
            grid0, grid1: (rows, columns) of the regions.
            mask0, mask1: (B, L) and (B, S) bool, false for masked tokens; or None.
        """
        if grid0 == grid1 and (mask0 is None) == (mask1 is None) and (mask0 is None or is_fixed()):
            masks = None if mask0 is None or mask1 is None else torch.cat([mask0, mask1])
            return self._together(tokens0, tokens1, grid0, masks)
        for layer, kind in zip(self.layers[self.num_leading_self :], self.kinds[self.num_leading_self :], strict=True):
            if kind == "self":
                tokens0 = layer(tokens0, grid0, tokens0, grid0, mask0, rotate=True)
                tokens1 = layer(tokens1, grid1, tokens1, grid1, mask1, rotate=True)
            else:
                tokens0, tokens1 = (
                    layer(tokens0, grid0, tokens1, grid1, mask1, rotate=False),
                    layer(tokens1, grid1, tokens0, grid0, mask0, rotate=False),
                )
        return tokens0, tokens1

    def _together(self, tokens0: Tensor, tokens1: Tensor, grid: Grid, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both images of every pair in one batch, for products of twice as many rows."""
        pairs = len(tokens0)
        tokens = torch.cat([tokens0, tokens1])
        for layer, kind in zip(self.layers[self.num_leading_self :], self.kinds[self.num_leading_self :], strict=True):
            source, mask = (tokens, masks) if kind == "self" else (_swapped(tokens, pairs), _swapped(masks, pairs))
            tokens = layer(tokens, grid, source, grid, mask, rotate=kind == "self")
        return tokens[:pairs], tokens[pairs:]


def _swapped(both: Tensor | None, pairs: int) -> Tensor | None:
    """The second half first."""
    return None if both is None else both.roll(pairs, dims=0)


def attention_scale(keys: int, channels: int) -> float:
    """Scale of the products of queries and keys before the softmax, by number of keys and channels."""
    return math.log(max(keys, 2)) / math.log(_KEYS) / math.sqrt(channels)


def pool(tokens: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Means of two by two regions: (B, L, C) -> (B, L / 4, C) and their grid; at odd sides of the existing ones."""
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    pooled = functional.avg_pool2d(maps, 2, ceil_mode=True)
    return pooled.flatten(2).transpose(1, 2), (pooled.shape[2], pooled.shape[3])


def pool_mask(mask: Tensor, grid: Grid) -> Tensor:
    """(B, L) bool -> (B, L / 4): whether any of the pooled regions takes part; if none does at all, all."""
    pooled = functional.max_pool2d(mask.float().unflatten(1, grid)[:, None], 2, ceil_mode=True).flatten(1) > 0
    return pooled | ~pooled.any(dim=1, keepdim=True)  # a softmax over nothing is not a number


def rotated(tokens: Tensor, grid: Grid, spacing: int) -> Tensor:
    """(B, heads, L, D) rotated by their positions on a grid: half of the channels by the column, half by the row.

    Args:
        tokens: D a multiple of 4.
        grid: (rows, columns), L of them.
        spacing: between two, in regions.
    """
    cosine, sine = _rotations(grid, spacing, tokens.shape[3], tokens.device, tokens.dtype)
    first, second = tokens.chunk(2, dim=3)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=3)


def turned_by_position(tokens: Tensor, turned: Tensor, grid: Grid, spacing: int) -> Tensor:
    """As `rotated`, of tokens and their rotations by a right angle."""
    cosine, sine = _rotations_of_all(grid, spacing, tokens.shape[3], tokens.device, tokens.dtype)
    return torch.addcmul(tokens * cosine, turned, sine)


@made_once
def _rotations_of_all(
    grid: Grid, spacing: int, channels: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """(L, D) cosines and sines."""
    return tuple(part.repeat(1, 2) for part in _rotations(grid, spacing, channels, device, dtype))


@made_once
def _rotations(
    grid: Grid, spacing: int, channels: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(L, D / 2) cosines and sines."""
    count = channels // 4
    wavelength = 4 * (_LONGEST / 4) ** (torch.arange(count) / max(count - 1, 1))
    row, column = (torch.arange(side) * spacing + (spacing - 1) / 2 for side in grid)
    angle_row = (row[:, None] * (2 * math.pi / wavelength))[:, None].expand(-1, grid[1], -1)
    angle_column = (column[:, None] * (2 * math.pi / wavelength))[None].expand(grid[0], -1, -1)
    angle = torch.cat([angle_column, angle_row], dim=2).flatten(0, 1)
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)
