"""The fine stage: from a match of cells to sub-pixel, with its uncertainty (paper, section 3.4)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from loftr_ros.matcher.config import FineConfig, TransformerConfig
from loftr_ros.matcher.constants import made_once
from loftr_ros.matcher.fixed import Rows, is_fixed, pair_groups, picked, windows
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.matcher.loftr.attention import EPSILON
from loftr_ros.matcher.loftr.backbone import Backbone
from loftr_ros.matcher.loftr.transformer import EncoderLayer, LocalFeatureTransformer

# Matches processed at a time.
TILE_MATCHES = 128

# Batches are filled up to a multiple of this, to limit the number of shapes: the number of matches changes from frame
# to frame, and the libraries keep their preparations for each shape forever.
_BATCH_STEP = 64


class FineMatches(NamedTuple):
    """Positions of the matches in their windows.

    Attributes:
        offset: (M, 2) float32, (u, v) from the centre of the window in image 1, in fine cells.
        std: (M,) float32, standard deviation along one axis, in fine cells.
    """

    offset: Tensor
    std: Tensor


class FinePreprocess(nn.Module):
    """Adds the coarse features of a match to its fine ones. Names are those of the published checkpoints."""

    def __init__(self, coarse_dim: int, fine_dim: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(coarse_dim, fine_dim)
        self.merge_feat = nn.Linear(2 * fine_dim, fine_dim)

    def forward(self, windows: Tensor, tokens: Tensor) -> Tensor:
        """(M, WW, Cf) fine windows and their (M, C) coarse tokens -> (M, WW, Cf)."""
        # The projection of the concatenation, with the coarse half computed once for all places of a window.
        fine, coarse = self.merge_feat.weight.chunk(2, dim=1)
        context = nn.functional.linear(self.down_proj(tokens.to(coarse.dtype)), coarse, self.merge_feat.bias)
        return nn.functional.linear(windows, fine) + context[:, None]


def heat_map(windows0: Tensor, windows1: Tensor) -> Tensor:
    """Correlate the centre of each window of image 0 with the window of image 1: (M, WW) float32, each summing to one.

    The softmax is an fp32 island, as the expectation after it is: half precision would round offsets to 1/100 of a
    cell and lose the variance in the difference of two squares.

    Args:
        windows0, windows1: (M, WW, C) features after the fine transformer.
    """
    places, channels = int(windows1.shape[1]), int(windows1.shape[2])
    centre = windows0[:, places // 2].float()
    return torch.softmax((windows1.float() @ centre[..., None])[..., 0] / channels**0.5, dim=1)


def expectation(heat: Tensor) -> FineMatches:
    """Mean and standard deviation of heat maps (M, WW)."""
    grid, square = _grid(math.isqrt(int(heat.shape[1])), heat.device)
    offset = heat @ grid
    variance = heat @ square - offset.square()
    return FineMatches(offset, variance.clamp_min(0).mean(dim=1).sqrt())


@made_once
def _grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(side side, 2) float32, (u, v) of the places of a window from its centre, and their squares."""
    axis = torch.arange(side, dtype=torch.float32) - side // 2
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(-1, 2)
    return grid.to(device), grid.square().to(device)


class FineTransformer(LocalFeatureTransformer):
    """The fine stage's layers, on many short sequences: the windows of image 0 and those of image 1."""

    def __init__(self, channels: int, config: TransformerConfig) -> None:
        super().__init__(channels, config)
        self.layers = nn.ModuleList(_WindowLayer(channels, config) for _ in config.layers)


class _WindowLayer(EncoderLayer):
    """A layer for inference with few and small passes.

    Not in fp16, where the denominator must be fp32; bf16 has fp32's range.
    """

    def forward(self, x: Tensor, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        dtype = self.merge.weight.dtype
        special = torch.is_grad_enabled() or is_fixed() or dtype == torch.float16
        if special or self.attention != "linear" or source_mask is not None or x.shape[0] != source.shape[0]:
            return super().forward(x, source, source_mask)
        x, source = x.to(dtype), source.to(dtype)
        message = self.norm1(self.merge(self._attended(x, source)))
        update: Tensor = self.norm2(self.mlp(torch.cat([x, message], dim=2)))
        return update.add_(x)

    def _attended(self, x: Tensor, source: Tensor) -> Tensor:
        """Linear attention of (M, L, C) to (M, S, C); the same shape.

        The same products give the denominator: values get one more channel, which is one everywhere.
        """
        batch, length, channels = x.shape
        query, key = (self._by_window(_mapped(tokens)) for tokens in (self.q_proj(x), self.k_proj(source)))
        value = self._heads(self.v_proj(source))
        padded = value.new_ones((*value.shape[:3], value.shape[3] + 1))
        padded[..., :-1] = value
        sums = query @ (key.transpose(1, 2) @ padded.flatten(0, 1))
        message = sums[..., :-1] / sums[..., -1:].add_(EPSILON)
        return message.view(batch, self.num_heads, length, -1).transpose(1, 2).reshape(batch, length, channels)

    def _by_window(self, tokens: Tensor) -> Tensor:
        """(M, L, C) -> (M * heads, L, C / heads)."""
        return self._heads(tokens).flatten(0, 1)


def _mapped(x: Tensor) -> Tensor:
    """`feature_map`, elu(x) + 1, by operations that are vectorised in half precision too; overwrites x."""
    linear = x + 1
    return torch.maximum(linear, x.clamp_(max=0).exp_(), out=linear)


class FineMatcher:
    """Runs the fine stage on the matches of one pair, window by window, never on a whole map.

    It is not a module: it uses the network's modules, which have the names of the published checkpoints.
    """

    def __init__(
        self, config: FineConfig, ratio: int, backbone: Backbone, preprocess: FinePreprocess, loftr: nn.Module
    ) -> None:
        """Create it.

        Args:
            config: of the stage.
            ratio: fine cells along a side of a coarse cell.
            backbone: smooths windows of features that were not smoothed as a whole.
            preprocess, loftr: the stage's own parts.
        """
        assert isinstance(loftr, LocalFeatureTransformer)
        self._window, self._ratio = config.window, ratio
        self._backbone, self._preprocess, self._loftr = backbone, preprocess, loftr

    def smoothed(self, features: ImageFeatures, cells: Tensor) -> ImageFeatures:
        """Complete fine features in the windows around cells, perhaps nowhere else.

        Windows of neighbouring cells overlap, also between pairs: their union is smoothed once, or the whole map if
        that costs less.

        Args:
            features: of an image.
            cells: (M,) int64, of all its matches.
        """
        if features.unsmoothed is None or features.fine is not None or not len(cells):
            return features
        height, width = features.unsmoothed.shape[2:]
        places, _ = self._places(features.grid, cells, (height, width))
        wanted = torch.zeros(height * width, dtype=torch.bool, device=cells.device)
        wanted[places.flatten()] = True
        fine = self._backbone.smooth_places(features.unsmoothed, wanted.view(height, width))
        return replace(features, fine=self._backbone.smooth(features.unsmoothed) if fine is None else fine)

    def refined(
        self,
        features0: ImageFeatures,
        features1: ImageFeatures,
        cell0: Tensor,
        cell1: Tensor,
        tokens0: Tensor,
        tokens1: Tensor,
    ) -> FineMatches:
        """Sub-pixel offsets of matches.

        Args:
            features0, features1: of the two images.
            cell0, cell1: (M,) int64 matched cells, at least one.
            tokens0, tokens1: (L, C) and (S, C) coarse features after the transformer.
        """
        features0, features1 = self.smoothed(features0, cell0), self.smoothed(features1, cell1)
        count = len(cell0)
        missing = -count % _BATCH_STEP
        cell0, cell1 = (torch.cat([cells, cells[:1].expand(missing)]) for cells in (cell0, cell1))
        parts = []
        for tile0, tile1 in zip(cell0.split(TILE_MATCHES), cell1.split(TILE_MATCHES), strict=True):
            windows0 = self._preprocess(self._windows(features0, tile0), tokens0[tile0])
            windows1 = self._preprocess(self._windows(features1, tile1), tokens1[tile1])
            windows = self._loftr.encode(torch.cat([windows0, windows1]))
            parts.append(expectation(heat_map(*self._loftr(*windows.chunk(2)))))
        offset, std = (torch.cat(column)[:count] for column in zip(*parts, strict=True))
        return FineMatches(offset, std)

    def fixed(
        self, keyframes: ImageFeatures, current: ImageFeatures, rows: Rows, tokens0: Tensor, tokens1: Tensor
    ) -> FineMatches:
        """Sub-pixel offsets of the matches of B pairs, (B R, 2) and (B R,), as a fixed program.

        Args:
            keyframes, current: of B images and of one.
            rows: matched cells.
            tokens0, tokens1: (B, L, C) and (B, S, C) coarse features after the transformer.
        """
        assert keyframes.fine is not None and current.fine is not None
        first, side, parts = -(self._window // 2), self._window, []
        for group in pair_groups(rows):
            made = []
            for fine, grid, cells, tokens in (
                (keyframes.fine[group], keyframes.grid, rows.cell0[group], tokens0[group]),
                (current.fine, current.grid, rows.cell1[group], tokens1[group]),
            ):
                cut = windows(fine, cells, grid, first, side, self._ratio, fine.dtype)
                made.append(self._preprocess(cut, picked(tokens, cells).flatten(0, 1)))
            both = self._loftr.encode(torch.cat(made))
            parts.append(expectation(heat_map(*self._loftr(*both.chunk(2)))))
        return parts[0] if len(parts) == 1 else FineMatches(*map(torch.cat, zip(*parts, strict=True)))

    def _windows(self, features: ImageFeatures, cells: Tensor) -> Tensor:
        """(M, WW, Cf) fine features around cells, zero outside of the image."""
        assert features.fine is not None
        _, channels, height, width = features.fine.shape
        places, inside = self._places(features.grid, cells, (height, width))
        by_place = features.fine.permute(0, 2, 3, 1).reshape(-1, channels)  # a view: channels are last in memory
        windows = by_place.index_select(0, places.flatten()).view(*places.shape, channels)
        return windows if inside.all() else windows * inside[..., None]

    def _places(self, grid: tuple[int, int], cells: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Windows around cells of a map of (height, width): row-major places, and whether they are inside of the image.

        Returns:
            (M, WW) int64, those outside moved to the nearest place inside, and (M, WW) bool.
        """
        height, width = size
        reach = torch.arange(self._window, device=cells.device) - self._window // 2
        rows = (cells // grid[1] * self._ratio)[:, None] + reach
        columns = (cells % grid[1] * self._ratio)[:, None] + reach
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        places = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        return places.flatten(1), inside.flatten(1)
