"""The interface of a matcher, whatever runs it: input, features and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from loftr_ros.matcher.config import NetworkConfig


@dataclass(frozen=True)
class ImageFeatures:
    """Encoded features of one image; they stay on the device, in the network's precision.

    Attributes:
        tokens: (1, L, C) coarse features after the layers that depend on this image only.
        fine: (1, Cf, Hf, Wf) fine features, channels last; None without a fine stage, or if they are computed window by
            window from `unsmoothed`.
        grid: (rows, columns) of cells; of coarse tokens too, L = rows * columns, unless `cells` is given.
        size: (width, height) of the encoded image, in pixels.
        usable: (1, L) bool, false for cells that take no part because most of their pixels are ignored; None if all do.
        pixels: (H, W) bool, false for pixels that must not appear in a match; None if all may.
        unsmoothed: (1, Cu, Hf, Wf) channels last, input of the backbone's last two convolutions, which give the fine
            features and are 30 % of its work: most images need them around their matches only.
        cells: (1, Cc, rows, columns) channels last, of networks with tokens coarser than their cells.
        middle: (1, Cm, Hm, Wm) channels last, between coarse and fine, of networks that compute fine features from all
            three once the other image is known.
        slot: place in its `FeatureRing`; None outside of one.
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
        points0, points1: (N, 2) float32 pixels (u, v) of the encoded images, (0, 0) at the centre of the top-left
            pixel. A cell's `points0` is the same whatever it is matched with.
        confidence: (N,) float32 in [0, 1], of the coarse match.
        std: (N,) float32, standard deviation of `points1` along one axis estimated by the fine stage, in pixels; NaN
            without one.
    """

    cell: Tensor
    points0: Tensor
    points1: Tensor
    confidence: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.cell)


def release_memory(matcher: Matcher) -> None:
    """Let a matcher give back memory that it can allocate again."""
    if release := getattr(matcher, "release", None):
        release()


def waited_for_encoding(matcher: Matcher) -> float:
    """Seconds of the last `match` in which encoding went on, on devices where `encode` returns before it is done."""
    return float(getattr(matcher, "waited_for_encoding", 0.0))


# Matches one pair as `Matcher.match` does, with all mutual best matches above the given confidence, however many.
Lenient = Callable[[ImageFeatures, ImageFeatures, float], Matches]


def lenient_matching(matcher: Matcher) -> Lenient | None:
    """The `match_leniently` of a matcher; None if its threshold is fixed."""
    return getattr(matcher, "match_leniently", None)


class Matcher(Protocol):
    """Encodes an image once and matches it against many. `LoFTR` implements it; so does the ONNX backend."""

    @property
    def config(self) -> NetworkConfig:
        """The network."""

    @property
    def fingerprint(self) -> str:
        """Identifier of the features: only features of the same fingerprint are comparable.

        It depends on the network and its weights, but not on precision or runtime. Empty if unknown.
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
        """(width, height) of the only supported images; None if any size is supported."""

    @property
    def device(self) -> torch.device:
        """Device of the features."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the features."""

    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        """Encode one image, independent of any other.

        Args:
            image: (H, W) gray, uint8, or floating point in [0, 1]; any size of at least one cell.
            usable: (H, W) bool, false for pixels to ignore (padding, moving objects, the robot's own body); None to use
                all.

        Raises:
            ValueError: the image is not (H, W), or smaller than a cell; the mask is not of its size.
        """

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        """Compute features that `encode` left out because most images do not need them; called for an image that
        becomes a keyframe.
        """

    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """Match one image against several.

        Args:
            keyframes: K features, each image 0 of its pair.
            current: features of the image that is image 1 of every pair.

        Returns:
            K matches, in the order of `keyframes`.
        """


@runtime_checkable
class QuickMatcher(Protocol):
    """What a network offers besides `Matcher` if its features are comparable without attention."""

    def match_quickly(
        self,
        keyframes: Sequence[ImageFeatures],
        current: ImageFeatures,
        max_matches: int,
        preferred: Sequence[Tensor | None],
    ) -> list[Matches]:
        """As `Matcher.match`, for images of nearly the same view: without attention, and with fewer matches.

        Args:
            keyframes, current: as of `Matcher.match`; all of one size.
            max_matches: most matches with a keyframe, spread over the image.
            preferred: (L,) bool, one entry per keyframe: cells that are chosen before others; None for none.
        """
