"""Seeing into a network: what chosen cells attend to, and how their matches come about (paper, section 4.4).

Attention never has weights that one could keep, and the coarse matching never a whole matrix. Here the rows of a few
chosen cells are made explicit, from the very tokens that the network worked on. What all networks have in common is
here; `explain_loftr`, `explain_compact` and `efficient.explain` know their own one from the inside.
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
    """Squares side by side over an encoded image: cells, or what is larger or smaller than they are.

    Attributes:
        grid: (rows, columns) of squares.
        side: of a square, in pixels.
        first: (u, v) of the top-left square's middle, in pixels; for the published weights, of its cell's point.
    """

    grid: Grid
    side: float
    first: tuple[float, float]


@dataclass(frozen=True)
class LayerInput:
    """What a coarse layer worked on to update one image of a pair; on the device, in the network's precision.

    Attributes:
        layer: number of the layer, from 0, as in the weights' names (`loftr_coarse.layers.0`).
        kind: "self" attends within the image, "cross" to the other one.
        image: 0 or 1, the image whose tokens ask.
        tokens: (1, L, C) of the image that asks.
        source: (1, S, C) of the image that is attended to.
        source_mask: (1, S) bool, false for what is not attended to; None where all is.
        grids: (rows, columns) of the tokens and of the source, where the layer knows them.
        mask: (1, L) bool, false for tokens that take no part, where that counts for those that ask; None elsewhere.
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
        """0 or 1, the image that is attended to."""
        return self.image if self.kind == "self" else 1 - self.image


@dataclass(frozen=True)
class AttentionRows:
    """Attention of chosen tokens in one layer.

    Attributes:
        layer, kind, image: as in `LayerInput`.
        tokens: (Q,) int64 row-major tokens of the image that asks.
        weights: (heads, Q, K) float32 over the keys of the image that is attended to; a row sums to 1. On the CPU.
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
        confidence: (Q, S) float32: dual-softmax, the transport plan without its dustbin, or what the score makes.
        row_softmax: (Q, S) float32, the half of the dual-softmax that goes over the row: how the tokens of image 1
            compare for this one of image 0, whoever else wants them. None with the other methods.
        unmatched: (Q,) float32, what the transport plan puts into the dustbin. None with the other methods.
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
    """The best cells of image 1 for chosen ones of image 0, whether they match or not; on the CPU.

    Attributes:
        cells: (Q,) int64 row-major cells of image 1.
        confidence: (Q,) float32 of the two cells, 0 to 1.
        shares: (Q, rows, columns) float32, softmax over the cells that were chosen from once the regions were known;
            None where the coarse matching is of cells already.
        none: (Q,) float32, what the same softmax gives to none of them.
        places: where those cells are, Q of them.
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
        heat: (M, W, W) float32, sums to 1, around the point of the cell of image 1.
        spacing: from one value to the next, in pixels of the encoded image.
        offset: (M, 2) float32 (u, v) from the cell's point to the match, in pixels of the encoded image.
        std: (M,) float32, standard deviation along one axis, in pixels of the encoded image.
    """

    heat: Tensor
    spacing: float
    offset: Tensor
    std: Tensor


class Inside(ABC):
    """One network seen from the inside: what differs between networks in how they come to their matches.

    Attributes:
        network: ready to infer.
        transformer: the module of its coarse layers, `layers`, which returns the tokens of both images.
        unit: what its coarse tokens stand for, in a word.
    """

    network: LoFTR | Compact | EfficientLoFTR
    transformer: nn.Module
    unit: str

    @abstractmethod
    def given(self, arguments: tuple[Any, ...]) -> list[Given]:
        """A layer's arguments as those of one image or two."""

    @abstractmethod
    def attention(self, given: LayerInput, tokens: Tensor) -> AttentionRows:
        """The attention of chosen tokens as explicit weights: times the values they are the layer's message.

        Only the rows asked for are made, in fp32.

        Args:
            given: what the layer worked on.
            tokens: (Q,) int64 of the image that asks.
        """

    @abstractmethod
    def token_places(self, features: ImageFeatures) -> Lattice:
        """Where an image's coarse tokens are."""

    @abstractmethod
    def key_places(self, features: ImageFeatures) -> Lattice:
        """Where what is attended to is."""

    @abstractmethod
    def tokens_of(self, cells: Tensor, features: ImageFeatures) -> Tensor:
        """(Q,) int64 cells -> the tokens that they are in."""

    @abstractmethod
    def choose(self, rows: ConfidenceRows, cells0: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> CellChoice:
        """The best cell of image 1 for each of (Q,) cells of image 0.

        Args:
            rows: of the tokens that the cells are in.
            cells0: the cells.
            features, tokens: of both images, before and after the transformer.
        """

    @abstractmethod
    def fine_heat(self, cells0: Tensor, cells1: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> FineHeat:
        """The fine stage on (M,) pairs of cells, whether they match or not; the rest as for `choose`.

        Raises:
            ValueError: the network has no fine stage.
        """


class InsideCells(Inside):
    """A network whose coarse tokens are its cells, and which matches them as they are."""

    unit = "cell"

    def token_places(self, features: ImageFeatures) -> Lattice:
        offset = self.network.cell_offset
        return Lattice(features.grid, self.network.cell_size, (offset, offset))

    def tokens_of(self, cells: Tensor, features: ImageFeatures) -> Tensor:
        return cells

    def choose(self, rows: ConfidenceRows, cells0: Tensor, features: Both, tokens: tuple[Tensor, Tensor]) -> CellChoice:
        return CellChoice(rows.best, rows.confidence.amax(dim=1))


def default_layers(config: LayersConfig) -> tuple[int, ...]:
    """The first and the last self and cross layers: where attention begins and what it comes to."""
    chosen: set[int] = set()
    for kind in ("self", "cross"):
        numbers = [number for number, other in enumerate(config.layers) if other == kind]
        chosen.update(numbers[:1] + numbers[-1:])
    return tuple(sorted(chosen))


def check_layers(config: LayersConfig, layers: Sequence[int]) -> None:
    """Raises ValueError where there is no such layer; says which there are."""
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
    """Rows of the matrix that the network's `confidence` returns whole, in tiles.

    Args:
        network: says by which method, and has the dustbins' score.
        tokens0, tokens1: (1, L, C) and (1, S, C) features after the transformer.
        chosen: (Q,) int64 row-major tokens of image 0.
        attended0, attended1: (1, L) and (1, S) bool, false for tokens that take no part.
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
