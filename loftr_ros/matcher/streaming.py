"""Common base of all networks here as matchers of streams."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from loftr_ros.matcher.cells import cell_offset, cells_taking_part
from loftr_ros.matcher.config import NetworkConfig
from loftr_ros.matcher.interface import ImageFeatures, Matches


class StreamingNetwork(nn.Module):
    """A network that encodes an image once and matches it against many.

    Attributes:
        config: the network.
        fingerprint: see `Matcher.fingerprint`; empty before weights are loaded.
    """

    config: NetworkConfig
    fingerprint: str = ""

    @property
    def has_fine_stage(self) -> bool:
        """Whether matches are sub-pixel; without, `points1` is on the coarse grid."""
        return self.config.fine is not None

    @property
    def cell_size(self) -> int:
        """Side of a cell, in pixels of the encoded image."""
        return self.config.backbone.stride

    @property
    def cell_offset(self) -> float:
        """From a cell's top-left pixel to its point, by the convention of the weights' training."""
        return cell_offset(self.config)

    @property
    def fixed_size(self) -> None:
        """None: images of any size are supported."""
        return None

    @property
    @abstractmethod
    def first_weight(self) -> Tensor:
        """Weight of the first convolution."""

    @property
    def device(self) -> torch.device:
        """Device of the computation."""
        return self.first_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation, except for fp32 islands."""
        return self.first_weight.dtype

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
        for grid in {keyframe.grid for keyframe in keyframes}:
            indices = [i for i, keyframe in enumerate(keyframes) if keyframe.grid == grid]
            for i, matches in zip(indices, self.match_batch([keyframes[i] for i in indices], current), strict=True):
                results[i] = matches
        return [matches for matches in results if matches is not None]

    @abstractmethod
    def match_batch(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """`match` for keyframes of equal size."""

    def check_image(self, image: Tensor) -> None:
        """Refuse invalid images.

        Raises:
            ValueError: it is not (H, W), or smaller than a cell.
        """
        if image.ndim != 2 or min(image.shape) < self.cell_size:
            raise ValueError(
                f"image of shape {tuple(image.shape)}: expected (H, W) with sides of at least {self.cell_size} px"
            )

    def taking_part(self, image: Tensor, usable: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The participating parts of an image, on the network's device.

        Args:
            image: (H, W).
            usable: (H, W) bool, false for pixels to ignore; None to use all.

        Returns:
            `usable`, and the cells that take part, see `cells_taking_part`; None for all.

        Raises:
            ValueError: as `check_image`, or mask and image differ in size.
        """
        self.check_image(image)
        usable = None if usable is None else usable.to(self.device, torch.bool)
        cells = cells_taking_part(image, usable, self.cell_size)
        return usable, None if cells is None else cells.to(self.device)

    def gray_levels(self, image: Tensor) -> Tensor:
        """(H, W), uint8 or floating point in [0, 1], as (1, 1, H, W) from 0 to 255 on the network's device.

        Gray levels are not scaled: half precision represents whole numbers up to 255 exactly, but not their 255ths.
        """
        pixels = image.to(self.device)[None, None]
        return (pixels if image.dtype == torch.uint8 else pixels * 255).to(self.dtype)
