"""What the front end asks of a matcher, whatever runs it, and what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loftr_ros.matcher.config import NetworkConfig


@dataclass(frozen=True)
class ImageFeatures:
    """What `encode` makes of one image; stays on the device, in the network's precision.

    Attributes:
        tokens: (1, L, C) coarse features after the layers that see this image only.
        fine: (1, Cf, Hf, Wf) fine features, channels last; None where there is no fine stage, or where they are made
            window by window from `unsmoothed`.
        grid: (rows, columns) of cells; of coarse tokens too, L = rows * columns, except where `cells` is given.
        size: (width, height) of the image that was encoded, in pixels.
        usable: (1, L) bool, false for cells that take no part since most of their pixels are to be ignored; None
            where all do.
        pixels: (H, W) bool, false for pixels that must not appear in a match; None where all may.
        unsmoothed: (1, Cu, Hf, Wf) channels last, what the fine features are made of by the backbone's last two
            convolutions, which are 30 % of its work: most images need them around their matches only.
        cells: (1, Cc, rows, columns) channels last, of networks whose tokens are coarser than their cells.
        middle: (1, Cm, Hm, Wm) channels last, between coarse and fine, of networks whose fine features are made of all
            three once the other image is known.
        slot: place in the `FeatureRing` that keeps it; None outside of one.
    """

    tokens: Tensor
    fine: Tensor | None
    grid: tuple[int, int]
    size: tuple[int, int]
    usable: Tensor | None = None
    pixels: Tensor | None = None
    unsmoothed: Tensor | None = None
    cells: Tensor | None = None
    middle: Tensor | None = None
    slot: int | None = None


@dataclass(frozen=True)
class Matches:
    """Matches of one pair, ordered by the cell of image 0. All on the CPU.

    Attributes:
        cell: (N,) int64, row-major number of the cell in image 0.
        points0, points1: (N, 2) float32 pixels (u, v) of the encoded images, (0, 0) at the centre of the
            top-left pixel. A cell's `points0` is the same whatever it is matched with.
        confidence: (N,) float32 in [0, 1], of the coarse match.
        std: (N,) float32, standard deviation of `points1` along one axis as the fine stage sees it, in pixels;
            NaN from networks without one.
    """

    cell: Tensor
    points0: Tensor
    points1: Tensor
    confidence: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.cell)


class Matcher(Protocol):
    """Encodes an image once and matches it against many. `LoFTR` is one; so is the ONNX backend."""

    @property
    def config(self) -> NetworkConfig:
        """The network."""

    @property
    def fingerprint(self) -> str:
        """Names the features: they can be compared with those of matchers of the same fingerprint.

        It tells networks and their weights apart, but not the precision or what runs them. Empty where it is not known.
        """

    @property
    def has_fine_stage(self) -> bool:
        """Whether `points1` is sub-pixel; without, it is on the coarse grid."""

    @property
    def cell_size(self) -> int:
        """Side of a coarse cell, in pixels of the encoded image."""

    @property
    def cell_offset(self) -> float:
        """From a cell's top-left pixel to its point, along either axis, in pixels of the encoded image."""

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(width, height) of the only images that it takes; None where it takes any."""

    @property
    def device(self) -> torch.device:
        """Where the features are."""

    @property
    def dtype(self) -> torch.dtype:
        """What the features are kept in."""

    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        """Everything about one image that does not depend on another.

        Args:
            image: (H, W) gray, uint8, or floating point in [0, 1]; any size of at least one cell.
            usable: (H, W) bool, false for pixels to ignore (padding, moving objects, the robot's own body); None
                to use all.

        Raises:
            ValueError: the image is not (H, W), or smaller than a cell; the mask is not of its size.
        """

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        """What `encode` put off since most images do not need it; called once for an image that becomes a keyframe."""

    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """Match one image against several.

        Args:
            keyframes: K features, each image 0 of its pair.
            current: features of the image that is image 1 of every pair.

        Returns:
            K matches, in the order of `keyframes`.
        """
