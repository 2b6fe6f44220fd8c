"""Looks into a network: what chosen cells attend to, and how they are matched (paper, section 4.4).

The networks never compute attention weights or a whole matching matrix. Here the rows of a few chosen cells are
computed from the tokens that the network worked on. This module has the common parts; `loftr`, `compact` and
`efficient` have those of one network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loftr_ros.matcher.coarse import BITS, NEVER, scaled, score_confidence, tiles_of
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.config import AggregatedTransformerConfig, RegionTransformerConfig, TransformerConfig
from loftr_ros.matcher.efficient.network import EfficientLoFTR
from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.loftr.transport import Plan

Kind = Literal["self", "cross"]
Grid = tuple[int, int]
LayersConfig = TransformerConfig | RegionTransformerConfig | AggregatedTransformerConfig
# Tokens, source, its mask, grids, and the tokens' mask, as in `LayerInput`.
Given = tuple[Tensor, Tensor, Tensor | None, tuple[Grid, Grid] | None, Tensor | None]
Both = tuple[ImageFeatures, ImageFeatures]  # of image 0 and image 1


@dataclass(frozen=True)
class Lattice:
    """Adjacent squares on an encoded image: cells, or larger or smaller squares.

    Attributes:
        grid: (rows, columns) of squares.
        side: of a square, in pixels.
        first: (u, v) of the top-left square's centre, in pixels; for the published weights, its cell's point.
    """

    grid: Grid
    side: float
    first: tuple[float, float]


@dataclass(frozen=True)
class LayerInput:
    """Input of a coarse layer to update one image of a pair; on the device, in the network's precision.

    Attributes:
        layer: number of the layer, from 0, as in the weights' names (`loftr_coarse.layers.0`).
        kind: "self" attends within the image, "cross" to the other image.
        image: 0 or 1, the attending image.
        tokens: (1, L, C) of the attending image.
        source: (1, S, C) of the attended image.
        source_mask: (1, S) bool, false for tokens that are not attended to; None for all.
        grids: (rows, columns) of the tokens and of the source, if the layer knows them.
        mask: (1, L) bool, false for tokens that do not attend; None if the layer has no such mask.
    """

    layer: int
    kind: Kind
    image: int
    tokens: Tensor
    source: Tensor
    source_mask: Tensor | None
    grids: tuple[Grid, Grid] | None = None
    mask: Tensor | None = None

    @property
    def attended_image(self) -> int:
        """0 or 1, the attended image."""
        return self.image if self.kind == "self" else 1 - self.image


@dataclass(frozen=True)
class AttentionRows:
    """Attention of chosen tokens in one layer.

    Attributes:
        layer, kind, image: as in `LayerInput`.
        tokens: (Q,) int64 row-major tokens of the attending image.
        weights: (heads, Q, K) float32 over the keys of the attended image, on the CPU; a row sums to 1.
    """

    layer: int
    kind: Kind
    image: int
    tokens: Tensor
    weights: Tensor


@dataclass(frozen=True)
class ConfidenceRows:
    """Chosen rows of the coarse confidence matrix; on the CPU.

    Attributes:
        tokens: (Q,) int64 row-major tokens of image 0: cells, or regions of them.
        confidence: (Q, S) float32: dual-softmax, the transport plan without its dustbin, or the score's confidence.
        row_softmax: (Q, S) float32, the dual-softmax's factor over the row: compares the tokens of image 1 for this
            token of image 0 alone. None for other methods.
        unmatched: (Q,) float32, mass of the transport plan in the dustbin. None for other methods.
    """

    tokens: Tensor
    confidence: Tensor
    row_softmax: Tensor | None
    unmatched: Tensor | None

    @property
    def best(self) -> Tensor:
        """(Q,) int64 tokens of image 1 with the highest confidence."""
        return self.confidence.argmax(dim=1)


@dataclass(frozen=True)
class CellChoice:
    """The best cells of image 1 for chosen cells of image 0, matched or not; on the CPU.

    Attributes:
        cells: (Q,) int64 row-major cells of image 1.
        confidence: (Q,) float32 of the two cells, 0 to 1.
        shares: (Q, rows, columns) float32, softmax over the candidate cells in the best regions; None if the coarse
            matching already compares cells.
        none: (Q,) float32, share of no candidate in the same softmax.
        places: Q lattices of the candidates.
    """

    cells: Tensor
    confidence: Tensor
    shares: Tensor | None = None
    none: Tensor | None = None
    places: tuple[Lattice, ...] = ()


@dataclass(frozen=True)
class FineHeat:
    """The fine stage's heat maps in image 1 for chosen pairs of cells; on the CPU.

    Attributes:
        heat: (M, W, W) float32 around the point of the cell of image 1; the sum is 1.
        spacing: between neighbouring values, in pixels of the encoded image.
        offset: (M, 2) float32 (u, v) from the cell's point to the match, in pixels of the encoded image.
        std: (M,) float32, standard deviation along one axis, in pixels of the encoded image.
    """

    heat: Tensor
    spacing: float
    offset: Tensor
    std: Tensor


class Inside(ABC):
    """Looks into one network: the parts that differ between networks.

    Attributes:
        network: ready to infer.
        transformer: the module of its coarse layers, `layers`, which returns the tokens of both images.
        unit: what a coarse token stands for: "cell" or "region".
    """

    network: LoFTR | Compact | EfficientLoFTR
    transformer: nn.Module
    unit: str

    @abstractmethod
    def given(self, arguments: tuple[Any, ...]) -> list[Given]:
        """Split a layer's arguments by image."""

    @abstractmethod
    def attention(self, given: LayerInput, tokens: Tensor) -> AttentionRows:
        """Attention of chosen tokens as explicit weights; weights times values are the layer's message.

        Computes only these rows, in fp32.

        Args:
            given: the layer's input.
            tokens: (Q,) int64 of the attending image.
        """

    @abstractmethod
    def token_places(self, features: ImageFeatures) -> Lattice:
        """Places of an image's coarse tokens."""

    @abstractmethod
    def key_places(self, features: ImageFeatures) -> Lattice:
        """Places of the attended keys."""

    @abstractmethod
    def tokens_of(self, cells: Tensor, features: ImageFeatures) -> Tensor:
        """The tokens that contain (Q,) int64 cells."""

    @abstractmethod
    def choose(self, rows: ConfidenceRows, cells0: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> CellChoice:
        """The best cell of image 1 for each of (Q,) cells of image 0.

        Args:
            rows: of the tokens that contain the cells.
            cells0: the cells.
            features, tokens: of both images, before and after the transformer.
        """

    @abstractmethod
    def fine_heat(self, cells0: Tensor, cells1: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> FineHeat:
        """The fine stage on (M,) pairs of cells, matched or not; other arguments as for `choose`.

        Raises:
            ValueError: the network has no fine stage.
        """


class InsideCells(Inside):
    """A network with cells as coarse tokens, which it matches directly."""

    unit = "cell"

    def token_places(self, features: ImageFeatures) -> Lattice:
        offset = self.network.cell_offset
        return Lattice(features.grid, self.network.cell_size, (offset, offset))

    def tokens_of(self, cells: Tensor, features: ImageFeatures) -> Tensor:
        return cells

    def choose(self, rows: ConfidenceRows, cells0: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> CellChoice:
        return CellChoice(rows.best, rows.confidence.amax(dim=1))


def default_layers(config: LayersConfig) -> tuple[int, ...]:
    """The first and the last self and cross layers."""
    chosen: set[int] = set()
    for kind in ("self", "cross"):
        numbers = [number for number, other in enumerate(config.layers) if other == kind]
        chosen.update(numbers[:1] + numbers[-1:])
    return tuple(sorted(chosen))


def check_layers(config: LayersConfig, layers: Sequence[int]) -> None:
    """Raise ValueError if a layer does not exist; the message lists the layers."""
    for layer in layers:
        if not 0 <= layer < len(config.layers):
            known = ", ".join(f"{number} ({kind})" for number, kind in enumerate(config.layers))
            raise ValueError(f"layer {layer} does not exist; the network has {known or 'none'}")


@torch.inference_mode()
def confidence_rows(
    network: LoFTR | Compact | EfficientLoFTR,
    tokens0: Tensor,
    tokens1: Tensor,
    chosen: Tensor,
    attended0: Tensor | None = None,
    attended1: Tensor | None = None,
) -> ConfidenceRows:
    """Rows of the matrix of the network's `confidence`, computed in tiles.

    Args:
        network: has the method, and the dustbins' score.
        tokens0, tokens1: (1, L, C) and (1, S, C) features after the transformer.
        chosen: (Q,) int64 row-major tokens of image 0.
        attended0, attended1: (1, L) and (1, S) bool, false for tokens to ignore.
    """
    coarse = network.config.coarse
    chosen = chosen.to(tokens0.device)
    mask0, mask1 = (None if mask is None else mask[0] for mask in (attended0, attended1))
    right = tokens1[0].float()
    if coarse.method == "optimal_transport":
        assert isinstance(network, LoFTR)
        alpha = network.coarse_matching.bin_score.float() * BITS
        plan = Plan(scaled(tokens0[0], 1.0) * BITS, right, alpha, mask0, mask1)
        for _ in range(coarse.sinkhorn_iterations):
            plan.iterate()
        scores = _rows(plan.left, right, chosen, mask0, mask1)
        confidence = torch.exp2(scores + plan.v + plan.u[chosen, None])
        unmatched = torch.exp2(alpha + plan.u[chosen] + plan.v_bin)
        return ConfidenceRows(chosen.cpu(), confidence.cpu(), None, unmatched.cpu())
    left = scaled(tokens0[0], coarse.temperature)
    if coarse.method == "scores":
        scores = _rows(left, right, chosen, mask0, mask1)
        return ConfidenceRows(chosen.cpu(), score_confidence(scores).cpu(), None, None)
    column_lse = torch.full((len(right),), -torch.inf, device=left.device)
    for _, tile in tiles_of(left, right, mask0, mask1):
        column_lse = torch.logaddexp(column_lse, torch.logsumexp(tile, dim=0))
    scores = _rows(left, right, chosen, mask0, mask1)
    row_softmax = torch.softmax(scores, dim=1)
    confidence = row_softmax * torch.exp(scores - column_lse)
    return ConfidenceRows(chosen.cpu(), confidence.cpu(), row_softmax.cpu(), None)


def by_head(tokens: Tensor, heads: int) -> Tensor:
    """(N, C) -> (heads, N, C / heads)."""
    return tokens.view(len(tokens), heads, -1).transpose(0, 1)


def _rows(left: Tensor, right: Tensor, chosen: Tensor, attended0: Tensor | None, attended1: Tensor | None) -> Tensor:
    """(Q, S) scores of chosen rows."""
    scores = left[chosen] @ right.t()
    if attended0 is not None:
        scores.masked_fill_(~attended0[chosen, None], NEVER)
    if attended1 is not None:
        scores.masked_fill_(~attended1, NEVER)
    return scores
