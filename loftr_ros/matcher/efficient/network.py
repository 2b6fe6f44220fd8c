"""EfficientLoFTR for streams: `encode` an image once, `match` it against many.

Encoding covers the backbone and the first self layer. Matching covers everything that needs both images: the other
layers, coarse matching, and the pyramid to the fine features, which starts from cells that have attended to the other
image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from loftr_ros.matcher.cells import allowed_cells, points_of_cells, sides, without_ignored
from loftr_ros.matcher.coarse import (
    CoarseMatches,
    Masks,
    best_scores,
    confidence_matrix,
    dual_softmax,
    score_confidence,
    scores,
)
from loftr_ros.matcher.config import EfficientConfig
from loftr_ros.matcher.convolutions import biases_of, lay_out_products, round_weights, use_onednn
from loftr_ros.matcher.efficient.layers import AggregatedTransformer, FinePyramid, RepVGG
from loftr_ros.matcher.efficient.refinement import Refined, compare, refine, windows
from loftr_ros.matcher.fixed import FixedMatches, most_confident, mutual_best, pair_groups, points
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.matcher.streaming import StreamingNetwork


class EfficientLoFTR(StreamingNetwork):
    """The network. Build it by `checkpoints.files.load_network`, which also loads, folds and places it.

    The keyframe is image 0 and its cells are landmarks, so its points must be fixed: see `EfficientFineConfig.anchor`.
    """

    config: EfficientConfig

    def __init__(self, config: EfficientConfig) -> None:
        """Random weights.

        Raises:
            ValueError: matches that are not at the cells' corners, around which the refinement's windows are.
        """
        super().__init__()
        if config.coarse.point != "corner":
            raise ValueError(f"network '{config.name}': the refinement's windows are at the cells' corners")
        self.config = config
        self.backbone = RepVGG(config.backbone)
        self.loftr_coarse = AggregatedTransformer(
            config.backbone.coarse_dim, config.backbone.stride, config.transformer
        )
        self.fine_preprocess = FinePyramid(config.backbone)

    @property
    def first_weight(self) -> Tensor:
        """See `StreamingNetwork.first_weight`."""
        return self.backbone.layer0.rbr_reparam.weight

    def prepare(self, device: torch.device, dtype: torch.dtype) -> EfficientLoFTR:
        """Prepare the loaded network for inference: batch norms folded, channels last, on its device."""
        self.eval().requires_grad_(False)
        self.fine_preprocess.fold_batch_norm()
        self.first_weight.div_(255)  # see `gray_levels`
        convolutional: list[nn.Module] = [self.backbone, self.fine_preprocess]
        biases = [biases_of(part) for part in convolutional]
        if dtype != torch.float32:
            for part in convolutional:
                round_weights(part, dtype)
        self.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for part, bias in zip(convolutional, biases, strict=True):
            use_onednn(part, bias)
        lay_out_products(self)
        return self

    def encode_pixels(self, pixels: Tensor, cells: Tensor | None) -> ImageFeatures:
        """See `StreamingNetwork.encode_pixels`: backbone, first self layer."""
        made = self.backbone(pixels)
        grid, (height, width) = sides(made.coarse), sides(pixels)
        tokens = made.coarse.flatten(2).transpose(1, 2).float()
        tokens = self.loftr_coarse.encode(tokens, grid, cells).to(self.dtype)
        return ImageFeatures(tokens, made.fine, grid, (width, height), cells, middle=made.middle)

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        """Nothing to complete."""
        return features

    @torch.inference_mode()
    def confidence(self, features0: ImageFeatures, features1: ImageFeatures) -> Tensor:
        """The whole confidence matrix of one pair, (L, S) fp32: for pictures and tests, not for streams."""
        attended = features0.usable, features1.usable
        tokens = self.attend([features0], features1)
        temperature = self.config.coarse.temperature
        if self.config.coarse.method == "scores":
            return score_confidence(scores(*tokens, temperature, *attended)[0])
        return confidence_matrix(*tokens, temperature, *attended)[0]

    def attend(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> tuple[Tensor, Tensor]:
        """(K, L, C) and (K, S, C) tokens after the transformer."""
        tokens0 = torch.cat([keyframe.tokens for keyframe in keyframes])
        attended: tuple[Tensor, Tensor] = self.loftr_coarse(
            tokens0.float(),
            current.tokens.float(),
            keyframes[0].grid,
            current.grid,
            _usable(keyframes),
            current.usable,
        )
        tokens0, tokens1 = attended
        return tokens0, tokens1.expand(len(keyframes), -1, -1)

    def match_batch(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """See `StreamingNetwork.match_batch`."""
        tokens0, tokens1 = self.attend(keyframes, current)
        found = self.match_coarse(tokens0, tokens1, keyframes, current)
        counts = torch.bincount(found.pair, minlength=len(keyframes)).tolist()
        parts = zip(
            keyframes,
            found.cell0.split(counts),
            found.cell1.split(counts),
            found.confidence.split(counts),
            tokens0.split(1),
            tokens1.split(1),
            strict=True,
        )
        return [self._matches(keyframe, current, *part) for keyframe, *part in parts]

    def match_fixed(
        self, keyframes: ImageFeatures, current: ImageFeatures, allowed0: Tensor, allowed1: Tensor
    ) -> FixedMatches:
        """See `StreamingNetwork.match_fixed`."""
        coarse, masks, grids = self.config.coarse, (keyframes.usable, current.usable), (keyframes.grid, current.grid)
        tokens0, tokens1 = self.loftr_coarse(keyframes.tokens.float(), current.tokens.float(), *grids, *masks)
        batch = len(tokens0)
        rows = most_confident(
            mutual_best(tokens0, tokens1.expand(batch, -1, -1), coarse, *masks), allowed0, allowed1, coarse.max_matches
        )
        parts = []
        for group in pair_groups(rows):
            made = []
            for features, tokens, which, cells in (
                (keyframes, tokens0[group], group, rows.cell0[group]),
                (current, tokens1.expand(batch, -1, -1)[group], slice(None), rows.cell1[group]),
            ):
                assert features.middle is not None and features.fine is not None
                maps = (part[which].expand(len(tokens), -1, -1, -1) for part in (features.middle, features.fine))
                made.append(windows(self.fine_preprocess(tokens, *maps), cells, features.grid))
            parts.append(compare(self.config.fine, made[0][:, 1:-1, 1:-1], made[1]))
        fine = parts[0] if len(parts) == 1 else Refined(*map(torch.cat, zip(*parts, strict=True)))
        fine = Refined(*(part.unflatten(0, (batch, -1)) for part in fine))
        points0 = points(self.config, rows.cell0, grids[0])
        points1 = points(self.config, rows.cell1, grids[1])
        points0, points1 = placed(self.config, points0, points1, fine)
        return FixedMatches(rows.cell0, rows.cell1, points0, points1, rows.confidence, fine.std)

    def match_coarse(
        self, tokens0: Tensor, tokens1: Tensor, keyframes: Sequence[ImageFeatures], current: ImageFeatures
    ) -> CoarseMatches:
        """The matched cells of each keyframe."""
        coarse, batch = self.config.coarse, len(keyframes)
        find = best_scores if coarse.method == "scores" else dual_softmax
        masks = Masks(
            torch.cat([allowed_cells(self.config, keyframe) for keyframe in keyframes]),
            allowed_cells(self.config, current).expand(batch, -1),
            _usable(keyframes),
            None if current.usable is None else current.usable.expand(batch, -1),
        )
        return find(tokens0, tokens1, coarse.temperature, coarse.threshold, masks, coarse.max_matches)

    @torch.inference_mode()
    def refine(
        self, features: tuple[ImageFeatures, ImageFeatures], tokens: tuple[Tensor, Tensor], cell0: Tensor, cell1: Tensor
    ) -> Refined:
        """The refinement of (M,) matched cells of one pair, by its images and their (1, L, C) attended tokens."""
        fine = []
        for image, attended, cells in zip(features, tokens, (cell0, cell1), strict=True):
            assert image.middle is not None and image.fine is not None
            if not len(cells):
                fine.append(image.fine)  # not used
                continue
            fine.append(self.fine_preprocess(attended, image.middle, image.fine, cells))
        return refine(self.config.fine, fine[0], fine[1], cell0, cell1, (features[0].grid, features[1].grid))

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
        """The matches of one pair in pixels, on the CPU, without those that touch an ignored pixel."""
        fine = self.refine((keyframe, current), (tokens0, tokens1), cell0, cell1)
        points0 = points_of_cells(self.config, cell0, keyframe.grid[1])
        points1 = points_of_cells(self.config, cell1, current.grid[1])
        points0, points1 = placed(self.config, points0, points1, fine)
        matches = without_ignored(Matches(cell0, points0, points1, confidence, fine.std), keyframe, current)
        return Matches(*(tensor.cpu() for tensor in vars(matches).values()))


def placed(config: EfficientConfig, points0: Tensor, points1: Tensor, fine: Refined) -> tuple[Tensor, Tensor]:
    """Points (M, 2) of cells in both images -> points of the matches.

    With the anchor "cell" image 0's points are fixed. Image 1's move back by half a pixel along each axis, the offset
    of image 0's pixel from its cell's point: over that distance, rotation and scale between two frames of a stream are
    negligible.
    """
    if config.fine.anchor == "cell":
        return points0, points1 + fine.offset1 - fine.offset0
    return points0 + fine.offset0, points1 + fine.offset1


def _usable(keyframes: Sequence[ImageFeatures]) -> Tensor | None:
    """(K, L) bool; None if all cells of all keyframes take part."""
    if all(keyframe.usable is None for keyframe in keyframes):
        return None
    everything = torch.ones(keyframes[0].tokens.shape[:2], dtype=torch.bool, device=keyframes[0].tokens.device)
    return torch.cat([everything if keyframe.usable is None else keyframe.usable for keyframe in keyframes])
