"""LoFTR for streams: `encode` an image once, `match` it against many (paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.matcher.backbone import Backbone
from loftr_ros.matcher.coarse import confidence_matrix, dual_softmax
from loftr_ros.matcher.config import LoFTRConfig
from loftr_ros.matcher.position import position_encoding
from loftr_ros.matcher.transformer import LocalFeatureTransformer


@dataclass(frozen=True)
class ImageFeatures:
    """What `LoFTR.encode` makes of one image; stays on the device, in the network's precision.

    Attributes:
        tokens: (1, L, C) coarse features after the layers that see this image only.
        grid: (rows, columns) of coarse cells, L = rows * columns.
        size: (width, height) of the image that was encoded, in pixels.
        mask: (1, L) bool, false for cells that are padding only; None where there is no padding.
    """

    tokens: Tensor
    grid: tuple[int, int]
    size: tuple[int, int]
    mask: Tensor | None


@dataclass(frozen=True)
class Matches:
    """Matches of one pair, ordered by the cell of image 0. All on the CPU.

    Attributes:
        cell: (N,) int64, row-major number of the cell in image 0.
        points0, points1: (N, 2) float32 pixels (u, v) of the encoded images, (0, 0) at the centre of the
            top-left pixel. A cell's `points0` is the same whatever it is matched with.
        confidence: (N,) float32 in [0, 1].
    """

    cell: Tensor
    points0: Tensor
    points1: Tensor
    confidence: Tensor

    def __len__(self) -> int:
        return len(self.cell)


class LoFTR(nn.Module):
    """The network. Build it by `checkpoint.load_network`, which also loads, folds and places it."""

    def __init__(self, config: LoFTRConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.backbone.block_dims[-1]
        self.backbone = Backbone(config.backbone)
        self.loftr_coarse = LocalFeatureTransformer(channels, config.transformer)
        self._position = lru_cache(maxsize=4)(self._make_position)

    @property
    def has_fine_stage(self) -> bool:
        """Whether matches are sub-pixel; without, `points1` is on the coarse grid."""
        return False

    @property
    def cell_size(self) -> int:
        """Side of a coarse cell, in pixels of the encoded image."""
        return self.config.backbone.stride

    @property
    def device(self) -> torch.device:
        return self.backbone.conv1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.conv1.weight.dtype

    def prepare(self, device: torch.device, dtype: torch.dtype) -> LoFTR:
        """Make the loaded network ready to infer: batch norms folded, channels last, on its device."""
        self.eval().requires_grad_(False)
        self.backbone.fold_batch_norm()
        return self.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def encode(self, image: Tensor) -> ImageFeatures:
        """Everything about one image that does not depend on another: backbone, position, first self layers.

        Args:
            image: (H, W) gray, uint8, or floating point in [0, 1]; any size of at least one cell.

        Returns:
            The features, on the network's device.

        Raises:
            ValueError: the image is not (H, W), or smaller than a cell.
        """
        if image.ndim != 2 or min(image.shape) < self.cell_size:
            raise ValueError(
                f"image of shape {tuple(image.shape)}: expected (H, W) with sides of at least {self.cell_size} px"
            )
        height, width = image.shape
        cells = self.cell_size
        rows, columns = -(-height // cells), -(-width // cells)
        pixels = image.to(self.device)[None, None]
        pixels = pixels.to(self.dtype) / 255 if image.dtype == torch.uint8 else pixels.to(self.dtype)
        padding = (0, columns * cells - width, 0, rows * cells - height)
        mask = None
        if any(padding):
            # Repeating the edge makes no false corner there; a cell whose centre is padding takes no part.
            pixels = functional.pad(pixels, padding, mode="replicate")
            centre = torch.arange(max(rows, columns), device=self.device) * cells + (cells - 1) / 2
            mask = ((centre[:rows, None] < height) & (centre[None, :columns] < width)).reshape(1, -1)
        features = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        features = features + self._position(rows, columns)
        tokens = features.flatten(2).transpose(1, 2).contiguous()
        return ImageFeatures(self.loftr_coarse.encode(tokens, mask), (rows, columns), (width, height), mask)

    @torch.inference_mode()
    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """Match one image against several, those of equal size in one batch.

        Args:
            keyframes: K features, each image 0 of its pair.
            current: features of the image that is image 1 of every pair.

        Returns:
            K matches, in the order of `keyframes`.
        """
        results: list[Matches | None] = [None] * len(keyframes)
        sizes = {keyframe.size for keyframe in keyframes}
        for size in sizes:
            indices = [i for i, keyframe in enumerate(keyframes) if keyframe.size == size]
            for i, matches in zip(indices, self._match_batch([keyframes[i] for i in indices], current), strict=True):
                results[i] = matches
        return [matches for matches in results if matches is not None]

    @torch.inference_mode()
    def confidence(self, features0: ImageFeatures, features1: ImageFeatures) -> Tensor:
        """The whole confidence matrix of one pair, (L, S) fp32: for pictures and tests, not for streams."""
        tokens0, tokens1 = self.loftr_coarse(features0.tokens, features1.tokens, features0.mask, features1.mask)
        return confidence_matrix(tokens0, tokens1, self.config.coarse.temperature)[0]

    def _match_batch(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        batch, coarse = len(keyframes), self.config.coarse
        first = keyframes[0]
        tokens0 = torch.cat([keyframe.tokens for keyframe in keyframes])
        tokens1 = current.tokens.expand(batch, -1, -1)
        mask0 = None if first.mask is None else first.mask.expand(batch, -1)
        mask1 = None if current.mask is None else current.mask.expand(batch, -1)
        tokens0, tokens1 = self.loftr_coarse(tokens0, tokens1, mask0, mask1)
        found = dual_softmax(
            tokens0,
            tokens1,
            coarse.temperature,
            coarse.threshold,
            allowed0=self._allowed(first).expand(batch, -1),
            allowed1=self._allowed(current).expand(batch, -1),
            attended0=mask0,
            attended1=mask1,
        )
        counts = torch.bincount(found.pair, minlength=batch).tolist()
        points0, points1 = self._points(found.cell0, first), self._points(found.cell1, current)
        parts = [tensor.cpu().split(counts) for tensor in (found.cell0, points0, points1, found.confidence)]
        return [Matches(*part) for part in zip(*parts, strict=True)]

    def _allowed(self, features: ImageFeatures) -> Tensor:
        """(1, L) bool: cells that may match, which excludes padding and the rim."""
        rows, columns = features.grid
        border = self.config.coarse.border
        allowed = torch.zeros(rows, columns, dtype=torch.bool, device=self.device)
        allowed[border : rows - border, border : columns - border] = True
        allowed = allowed.reshape(1, -1)
        return allowed if features.mask is None else allowed & features.mask

    def _points(self, cells: Tensor, features: ImageFeatures) -> Tensor:
        """(N, 2) float32 pixels of cells, by the convention that the weights were trained with."""
        columns = features.grid[1]
        corner = torch.stack([cells % columns, cells // columns], dim=1).float() * self.cell_size
        return corner + (self.cell_size - 1) / 2 if self.config.coarse.point == "centre" else corner

    def _make_position(self, rows: int, columns: int) -> Tensor:
        channels, slip = self.config.backbone.block_dims[-1], self.config.transformer.position_slip
        return position_encoding(channels, rows, columns, slip).to(self.device, self.dtype)[None]
