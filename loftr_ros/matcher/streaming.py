"""Common base of all networks here as matchers of streams."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from loftr_ros.matcher.cells import ConfiguredCells, cells_taking_part, in_grid
from loftr_ros.matcher.config import NetworkConfig
from loftr_ros.matcher.fixed import FixedMatches
from loftr_ros.matcher.interface import ImageFeatures, Matches


class StreamingNetwork(ConfiguredCells, nn.Module):
    """A network that encodes an image once and matches it against many.

    Attributes:
        config: the network.
        fingerprint: see `Matcher.fingerprint`; empty before weights are loaded.
    """

    config: NetworkConfig
    fingerprint: str = ""

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
    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        """Encode one image, independent of any other.

        Args:
            image: (H, W) gray, uint8, or floating point in [0, 1]; any size of at least one cell.
            usable: (H, W) bool, false for pixels to ignore (padding, moving objects, the robot's own body); None to use
                all. A cell with a majority of ignored pixels takes no part at all, and no match has an ignored pixel at
                either end.

        Returns:
            The features, on the network's device.

        Raises:
            ValueError: the image is not (H, W), or smaller than a cell; the mask is not of its size.
        """
        usable, cells = self.taking_part(image, usable)
        pixels = self.gray_levels(image).contiguous(memory_format=torch.channels_last)
        return replace(self.encode_pixels(pixels, cells), pixels=usable)

    @abstractmethod
    def encode_pixels(self, pixels: Tensor, cells: Tensor | None) -> ImageFeatures:
        """Encode one image.

        Args:
            pixels: (1, 1, H, W) of `gray_levels`, channels last in memory.
            cells: (1, L) bool, see `taking_part`.

        Returns:
            Its features without `ImageFeatures.pixels`; complete ones in a fixed program.
        """

    @abstractmethod
    def match_fixed(
        self, keyframes: ImageFeatures, current: ImageFeatures, allowed0: Tensor, allowed1: Tensor
    ) -> FixedMatches:
        """Match one image against several, with results of a size that the settings alone decide; see `fixed`.

        Args:
            keyframes: complete features of B images of equal size, one after the other along the first dimension.
            current: features of one image. Either both have `usable`, or none.
            allowed0, allowed1: (B or 1, L) and (1, S) bool of `allowed_cells`.
        """

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
        """The participating parts of an image, on the network's device, in its grid of cells.

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
        if cells is None:
            return usable, None
        shape = -(-image.shape[0] // self.cell_size), -(-image.shape[1] // self.cell_size)
        return usable, in_grid(cells.to(self.device), shape, self.config.grid(*image.shape))

    def gray_levels(self, image: Tensor) -> Tensor:
        """(H, W), uint8 or floating point in [0, 1], as (1, 1, H, W) from 0 to 255 on the network's device.

        Gray levels are not scaled: half precision represents whole numbers up to 255 exactly, but not their 255ths.
        """
        pixels = image.to(self.device)[None, None]
        return (pixels if image.dtype == torch.uint8 else pixels * 255).to(self.dtype)
