"""The fine stage: from a match of cells to sub-pixel, with its uncertainty (paper, section 3.4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from loftr_ros.matcher.backbone import Backbone
from loftr_ros.matcher.config import FineConfig
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.matcher.transformer import LocalFeatureTransformer

# Matches that are worked on at a time; the largest temporary is their patches of unsmoothed features, 8 MB in half
# precision.
TILE_MATCHES = 256

# The number of matches changes from frame to frame, and the libraries beneath keep what they prepared for each shape
# that they have met, for ever: batches are filled up to a multiple of this, so that there are few.
_BATCH_STEP = 64

# Places that the backbone's last two convolutions work through for one window of 5 x 5, in places of a whole map.
_WINDOW_COST = 45


class FineMatches(NamedTuple):
    """Where in their windows the matches are.

    Attributes:
        offset: (M, 2) float32, (u, v) from the centre of the window in image 1, in fine cells.
        std: (M,) float32, standard deviation along one axis, in fine cells.
    """

    offset: Tensor
    std: Tensor


class FinePreprocess(nn.Module):
    """Puts the coarse features of a match beside its fine ones. Names are those of the published checkpoints."""

    def __init__(self, coarse_dim: int, fine_dim: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(coarse_dim, fine_dim)
        self.merge_feat = nn.Linear(2 * fine_dim, fine_dim)

    def forward(self, windows: Tensor, tokens: Tensor) -> Tensor:
        """(M, WW, Cf) fine windows and their (M, C) coarse tokens -> (M, WW, Cf)."""
        # The projection of the concatenation, the coarse half computed once for all places of a window.
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
    side = math.isqrt(int(heat.shape[1]))
    axis = torch.arange(side, device=heat.device, dtype=torch.float32) - side // 2
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(-1, 2)
    offset = heat @ grid
    variance = heat @ grid.square() - offset.square()
    return FineMatches(offset, variance.clamp_min(0).mean(dim=1).sqrt())


class FineMatcher:
    """Runs the fine stage on the matches of one pair, window by window, never on a whole map.

    Not a module: it borrows the network's, whose names are those of the published checkpoints.
    """

    def __init__(
        self, config: FineConfig, ratio: int, backbone: Backbone, preprocess: FinePreprocess, loftr: nn.Module
    ) -> None:
        """Borrow the parts.

        Args:
            config: of the stage.
            ratio: fine cells along a side of a coarse cell.
            backbone: smooths windows of features that were not smoothed as a whole.
            preprocess, loftr: the stage's own parts.
        """
        assert isinstance(loftr, LocalFeatureTransformer)
        self._window, self._ratio = config.window, ratio
        self._backbone, self._preprocess, self._loftr = backbone, preprocess, loftr

    def prefers_whole_map(self, features: ImageFeatures, num_matches: int) -> bool:
        """Whether smoothing all of an image's features costs less than as many windows."""
        if features.unsmoothed is None or features.fine is not None:
            return False
        height, width = features.unsmoothed.shape[2:]
        return num_matches * _WINDOW_COST > height * width

    def __call__(
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
        count = len(cell0)
        missing = -count % _BATCH_STEP
        cell0, cell1 = (torch.cat([cells, cells[:1].expand(missing)]) for cells in (cell0, cell1))
        parts = []
        for tile0, tile1 in zip(cell0.split(TILE_MATCHES), cell1.split(TILE_MATCHES), strict=True):
            windows0 = self._preprocess(self._windows(features0, tile0), tokens0[tile0])
            windows1 = self._preprocess(self._windows(features1, tile1), tokens1[tile1])
            windows0, windows1 = self._loftr.encode(windows0), self._loftr.encode(windows1)
            parts.append(expectation(heat_map(*self._loftr(windows0, windows1))))
        offset, std = (torch.cat(column)[:count] for column in zip(*parts, strict=True))
        return FineMatches(offset, std)

    def _windows(self, features: ImageFeatures, cells: Tensor) -> Tensor:
        """(M, WW, Cf) fine features around cells, zero outside of the image."""
        if features.fine is not None:
            return self._cut(features.fine, features.grid, cells, 0)[0].flatten(1, 2)
        assert features.unsmoothed is not None
        # Two more places on each side, for two convolutions of 3 x 3.
        patches, inside = self._cut(features.unsmoothed, features.grid, cells, 2)
        windows = self._backbone.smooth_windows(patches.permute(0, 3, 1, 2), inside)
        windows = windows.permute(0, 2, 3, 1)
        if not inside.all():
            windows = windows * inside[:, 2:-2, 2:-2, None]
        return windows.flatten(1, 2)

    def _cut(self, features: Tensor, grid: tuple[int, int], cells: Tensor, margin: int) -> tuple[Tensor, Tensor]:
        """Windows with a margin around cells out of (1, C, H, W), and which places are inside of the image.

        Returns:
            (M, side, side, C), zero outside, and (M, side, side) bool.
        """
        _, channels, height, width = features.shape
        reach = torch.arange(self._window + 2 * margin, device=cells.device) - (self._window // 2 + margin)
        rows = (cells // grid[1] * self._ratio)[:, None] + reach
        columns = (cells % grid[1] * self._ratio)[:, None] + reach
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        places = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        by_place = features.permute(0, 2, 3, 1).reshape(-1, channels)  # a view: channels are last in memory
        cut = by_place.index_select(0, places.reshape(-1)).view(*places.shape, channels)
        return (cut if inside.all() else cut * inside[..., None]), inside
