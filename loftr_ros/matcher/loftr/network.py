"""LoFTR for streams: `encode` an image once, `match` it against many (paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from loftr_ros.matcher.cells import allowed_cells, points_of_cells, sides, without_ignored
from loftr_ros.matcher.coarse import CoarseMatches, Masks, confidence_matrix, dual_softmax
from loftr_ros.matcher.config import LoFTRConfig
from loftr_ros.matcher.constants import made_once
from loftr_ros.matcher.convolutions import biases_of, round_weights, use_onednn
from loftr_ros.matcher.fixed import FixedMatches, is_fixed, most_confident, mutual_best, points
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.matcher.loftr.backbone import Backbone
from loftr_ros.matcher.loftr.fine import FineMatcher, FinePreprocess, FineTransformer
from loftr_ros.matcher.loftr.position import position_encoding
from loftr_ros.matcher.loftr.transformer import LocalFeatureTransformer
from loftr_ros.matcher.loftr.transport import assignment_matrix, optimal_transport
from loftr_ros.matcher.streaming import StreamingNetwork

# Channels up to which a transformer is in fp32 on GPUs.
_NARROW = 64


class LoFTR(StreamingNetwork):
    """The network. Build it by `checkpoints.files.load_network`, which also loads, folds and places it.

    Names of its parts are those of the published checkpoints.
    """

    config: LoFTRConfig

    def __init__(self, config: LoFTRConfig) -> None:
        """Random weights.

        Raises:
            ValueError: a fine stage on cells' centres, which are not fine cells.
        """
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.loftr_coarse = LocalFeatureTransformer(config.backbone.coarse_dim, config.transformer)
        if config.coarse.method == "optimal_transport":
            self.coarse_matching = _OptimalTransport()
        self.fine_matcher: FineMatcher | None = None
        if config.fine is not None:
            if config.coarse.point != "corner":
                raise ValueError(f"network '{config.name}': the fine stage's windows are at the cells' corners")
            fine_dim = config.backbone.fine_dim
            self.fine_preprocess = FinePreprocess(config.backbone.coarse_dim, fine_dim)
            self.loftr_fine = FineTransformer(fine_dim, config.fine.transformer)
            ratio = config.backbone.stride // config.backbone.fine_stride
            self.fine_matcher = FineMatcher(config.fine, ratio, self.backbone, self.fine_preprocess, self.loftr_fine)

    @property
    def first_weight(self) -> Tensor:
        """See `StreamingNetwork.first_weight`."""
        return self.backbone.conv1.weight

    def prepare(self, device: torch.device, dtype: torch.dtype) -> LoFTR:
        """Prepare the loaded network for inference: batch norms folded, channels last, on its device."""
        self.eval().requires_grad_(False)
        self.backbone.fold_batch_norm()
        # See `gray_levels`.
        self.backbone.conv1.weight /= 255
        biases, projection = biases_of(self.backbone), self.backbone.projection.weight.clone()
        if dtype != torch.float32:
            round_weights(self.backbone, dtype)
            if device.type != "cpu":
                self.backbone.pad_channels()
        self.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if dtype == torch.float16 and self.config.coarse_dim <= _NARROW:
            self.loftr_coarse.float()  # casts would take longer than they save
        self.backbone.projection.weight = nn.Parameter(projection.to(device), requires_grad=False)
        use_onednn(self.backbone, biases)
        return self

    def encode_pixels(self, pixels: Tensor, cells: Tensor | None) -> ImageFeatures:
        """See `StreamingNetwork.encode_pixels`: backbone, position, first self layers."""
        coarse, unsmoothed = self.backbone(pixels)
        grid, (height, width) = sides(coarse), sides(pixels)
        tokens = (coarse + self._position(grid)).flatten(2).transpose(1, 2).contiguous()
        tokens = self.loftr_coarse.encode(tokens, cells).to(self.dtype)
        fine = None
        if is_fixed() and unsmoothed is not None:
            fine, unsmoothed = self.backbone.smooth(unsmoothed), None
        return ImageFeatures(tokens, fine, grid, (width, height), cells, unsmoothed=unsmoothed)

    @torch.inference_mode()
    def complete(self, features: ImageFeatures) -> ImageFeatures:
        """Smooth the fine features as a whole, for an image that will be matched with many others."""
        if features.unsmoothed is None or features.fine is not None:
            return features
        return replace(features, fine=self.backbone.smooth(features.unsmoothed), unsmoothed=None)

    @torch.inference_mode()
    def confidence(self, features0: ImageFeatures, features1: ImageFeatures) -> Tensor:
        """The whole confidence matrix of one pair, (L, S) fp32: for pictures and tests, not for streams.

        For optimal transport it is the plan without its dustbins.
        """
        attended = features0.usable, features1.usable
        tokens0, tokens1 = self.loftr_coarse(features0.tokens.float(), features1.tokens.float(), *attended)
        coarse = self.config.coarse
        if coarse.method == "dual_softmax":
            return confidence_matrix(tokens0, tokens1, coarse.temperature, *attended)[0]
        bin_score = self.coarse_matching.bin_score
        return assignment_matrix(tokens0, tokens1, bin_score, coarse.sinkhorn_iterations, *attended)[0, :-1, :-1]

    def match_batch(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """See `StreamingNetwork.match_batch`."""
        batch = len(keyframes)
        tokens0 = torch.cat([keyframe.tokens for keyframe in keyframes])
        usable0 = None
        if any(keyframe.usable is not None for keyframe in keyframes):
            usable0 = torch.cat([_all_usable(keyframe) for keyframe in keyframes])
        tokens0, tokens1 = self.loftr_coarse(tokens0.float(), current.tokens.float(), usable0, current.usable)
        tokens1 = tokens1.expand(batch, -1, -1)
        found = self.match_coarse(tokens0, tokens1, keyframes, current, usable0)
        counts = torch.bincount(found.pair, minlength=batch).tolist()
        if self.fine_matcher is not None:
            current = self.fine_matcher.smoothed(current, found.cell1)
        parts = zip(
            keyframes,
            found.cell0.split(counts),
            found.cell1.split(counts),
            found.confidence.split(counts),
            tokens0,
            tokens1,
            strict=True,
        )
        return [self._matches(keyframe, current, *part) for keyframe, *part in parts]

    def match_fixed(
        self, keyframes: ImageFeatures, current: ImageFeatures, allowed0: Tensor, allowed1: Tensor
    ) -> FixedMatches:
        """See `StreamingNetwork.match_fixed`."""
        coarse, masks = self.config.coarse, (keyframes.usable, current.usable)
        tokens0, tokens1 = self.loftr_coarse(keyframes.tokens.float(), current.tokens.float(), *masks)
        tokens1 = tokens1.expand(len(tokens0), -1, -1)
        bin_score = self.coarse_matching.bin_score if coarse.method == "optimal_transport" else None
        best = mutual_best(tokens0, tokens1, coarse, *masks, bin_score)
        rows = most_confident(best, allowed0, allowed1, coarse.max_matches)
        points0 = points(self.config, rows.cell0, keyframes.grid)
        points1 = points(self.config, rows.cell1, current.grid)
        std = torch.full_like(rows.confidence, torch.nan)
        if self.fine_matcher is not None:
            fine = self.fine_matcher.fixed(keyframes, current, rows, tokens0, tokens1)
            points1 = points1 + fine.offset.view(points1.shape) * self.config.backbone.fine_stride
            std = fine.std.view(std.shape) * self.config.backbone.fine_stride
        return FixedMatches(rows.cell0, rows.cell1, points0, points1, rows.confidence, std)

    def match_coarse(
        self,
        tokens0: Tensor,
        tokens1: Tensor,
        keyframes: Sequence[ImageFeatures],
        current: ImageFeatures,
        usable0: Tensor | None,
    ) -> CoarseMatches:
        """Matches of cells.

        Args:
            tokens0, tokens1: (K, L, C) and (K, S, C) after the transformer.
            keyframes, current: the K keyframes' features, and the current image's.
            usable0: (K, L) cells of the keyframes that take part; None: all.
        """
        coarse, batch = self.config.coarse, len(keyframes)
        allowed0 = torch.cat([allowed_cells(self.config, keyframe) for keyframe in keyframes])
        allowed1 = allowed_cells(self.config, current).expand(batch, -1)
        usable1 = None if current.usable is None else current.usable.expand(batch, -1)
        masks = Masks(allowed0, allowed1, usable0, usable1)
        if coarse.method == "dual_softmax":
            return dual_softmax(tokens0, tokens1, coarse.temperature, coarse.threshold, masks, coarse.max_matches)
        bin_score, iterations = self.coarse_matching.bin_score, coarse.sinkhorn_iterations
        return optimal_transport(tokens0, tokens1, bin_score, iterations, coarse.threshold, masks, coarse.max_matches)

    def _matches(
        self,
        keyframe: ImageFeatures,
        current: ImageFeatures,
        cell0: Tensor,
        cell1: Tensor,
        confidence: Tensor,
        tokens0: Tensor,
        tokens1: Tensor,
    ) -> Matches:
        """The matches of one pair with sub-pixel points, on the CPU, without those that touch an ignored pixel."""
        points0 = points_of_cells(self.config, cell0, keyframe.grid[1])
        points1 = points_of_cells(self.config, cell1, current.grid[1])
        std = torch.full_like(confidence, torch.nan)
        if self.fine_matcher is not None and len(cell0):
            fine = self.fine_matcher.refined(keyframe, current, cell0, cell1, tokens0, tokens1)
            points1 = points1 + fine.offset * self.config.backbone.fine_stride
            std = fine.std * self.config.backbone.fine_stride
        matches = without_ignored(Matches(cell0, points0, points1, confidence, std), keyframe, current)
        return Matches(*(tensor.cpu() for tensor in vars(matches).values()))

    def _position(self, grid: tuple[int, int]) -> Tensor:
        return _positions(self.config.backbone.coarse_dim, grid, self.config.position_slip, self.device)


class _OptimalTransport(nn.Module):
    """Holds the score of the dustbins under the published checkpoints' name, coarse_matching.bin_score."""

    def __init__(self) -> None:
        super().__init__()
        self.bin_score = nn.Parameter(torch.tensor(1.0))


@made_once
def _positions(channels: int, grid: tuple[int, int], slip: bool, device: torch.device) -> Tensor:
    """(1, C, rows, columns) float32."""
    return position_encoding(channels, *grid, slip).to(device)[None]


def _all_usable(features: ImageFeatures) -> Tensor:
    if features.usable is not None:
        return features.usable
    return torch.ones(features.tokens.shape[:2], dtype=torch.bool, device=features.tokens.device)
