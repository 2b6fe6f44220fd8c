"""The explanation of one pair of images: the network's view of chosen points, in the files' pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.tools.explain.views import Kind, Lattice

Array = NDArray[np.float64]
Heat = NDArray[np.float32]


@dataclass(frozen=True)
class HeatMap:
    """Values of adjacent squares on an image.

    Attributes:
        values: (rows, columns) float32.
        first: (2,) pixel of the top-left square's centre.
        sides: (2,) width and height of a square, in pixels.
    """

    values: Heat
    first: Array
    sides: Array

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top, in pixels."""
        left, top = (float(side) for side in self.first - self.sides / 2)
        rows, columns = self.values.shape
        return left, left + columns * float(self.sides[0]), top + rows * float(self.sides[1]), top


@dataclass(frozen=True)
class PairImage:
    """One image of the pair as in its file, and the places of the network's cells.

    Attributes:
        name: of its file, to show.
        pixels: (H, W) gray or (H, W, 3) BGR, uint8, as in the file.
        gray: (H, W) uint8, the network's input before it is shrunk.
        grid: (rows, columns) of coarse cells.
        scale: (u, v) pixels of this image per pixel of the encoded image.
        cell_size: side of a cell, in pixels of the encoded image.
        cell_offset: distance from a cell's top-left pixel to its point, in pixels of the encoded image.
    """

    name: str
    pixels: NDArray[np.uint8]
    gray: NDArray[np.uint8]
    grid: tuple[int, int]
    scale: tuple[float, float]
    cell_size: int
    cell_offset: float

    def point(self, cell: int) -> Array:
        """(2,) pixel of a cell's point."""
        row, column = divmod(cell, self.grid[1])
        return self.to_raw(np.array([column, row], np.float64) * self.cell_size + self.cell_offset)

    def cell_at(self, point: Sequence[float]) -> int:
        """The cell whose point is nearest to a pixel."""
        encoded = (np.asarray(point, np.float64) + 0.5) / self.scale - 0.5
        column, row = np.rint((encoded - self.cell_offset) / self.cell_size).astype(int)
        rows, columns = self.grid
        return int(np.clip(row, 0, rows - 1) * columns + np.clip(column, 0, columns - 1))

    def heat_map(self, values: Heat, places: Lattice) -> HeatMap:
        """Values of squares of the encoded image, placed on this one; (N,) values are row-major."""
        first = self.to_raw(np.array(places.first, np.float64))
        return HeatMap(values.reshape(places.grid), first, places.side * np.asarray(self.scale))

    def to_raw(self, points: Array) -> Array:
        """(..., 2) pixels of the encoded image to pixels of this one, half-pixel correct."""
        return np.asarray((points + 0.5) * self.scale - 0.5)

    @property
    def cell_sides(self) -> Array:
        """(2,) width and height of a cell in pixels of this image."""
        return self.cell_size * np.asarray(self.scale)


@dataclass(frozen=True)
class AttentionMap:
    """Attention of a cell, or of its region, in one layer.

    Attributes:
        layer, kind: of the layer.
        image: 0 or 1, the image with the attending cell.
        heat: weights over the attended image; their sum is 1.
    """

    layer: int
    kind: Kind
    image: int
    heat: HeatMap

    @property
    def attended_image(self) -> int:
        """0 or 1, the attended image."""
        return self.image if self.kind == "self" else 1 - self.image


@dataclass(frozen=True)
class CoarseMaps:
    """Coarse matching of one cell of A with all cells of B; regions for networks that match regions.

    Attributes:
        confidence: dual-softmax, or the transport plan.
        row_softmax: the row's softmax alone; None for methods other than dual-softmax.
        unmatched: mass in the dustbin; None for methods other than optimal transport.
        best: (2,) pixel of B, the centre of the square with the highest confidence.
    """

    confidence: HeatMap
    row_softmax: HeatMap | None
    unmatched: float | None
    best: Array


@dataclass(frozen=True)
class CellChoiceMap:
    """The choice among the cells in and around the best region.

    Attributes:
        shares: softmax over these cells and the option `none`.
        none: share of that option.
    """

    shares: HeatMap
    none: float


@dataclass(frozen=True)
class FineWindow:
    """The fine stage's window in image B.

    Attributes:
        heat: values with the sum 1.
        std: standard deviation along one axis, in pixels of B.
    """

    heat: HeatMap
    std: float


@dataclass(frozen=True)
class ExplainedPoint:
    """A point of image A, and the network's results for its cell.

    Attributes:
        cell0, cell1: its cell, and the cell of B with the highest confidence.
        point0: (2,) pixel of the cell's point in A, which the network matches instead of the chosen pixel.
        coarse_point1: (2,) pixel of the other cell's point in B.
        point1: (2,) pixel in B after the fine stage, if any.
        confidence: of the two cells, 0 to 1.
        verdict: `match`, or why there is no match.
        coarse: the coarse matching.
        choice: from the region to the cell; None if the coarse matching already compares cells.
        fine: the fine stage; None if the network has none.
        attention: of the chosen layers in order; for each, the cell in A, then the cell in B.
    """

    cell0: int
    cell1: int
    point0: Array
    coarse_point1: Array
    point1: Array
    confidence: float
    verdict: str
    coarse: CoarseMaps
    choice: CellChoiceMap | None
    fine: FineWindow | None
    attention: tuple[AttentionMap, ...]

    @property
    def matched(self) -> bool:
        return self.verdict == "match"


@dataclass(frozen=True)
class PairExplanation:
    """Explanation of one pair.

    Attributes:
        views: the two images.
        points0, points1: (N, 2) float32, the network's matches, in pixels of the two files.
        confidence: (N,) float32.
        points: the chosen ones.
        network: description of the network.
        heads: description of the shown attention heads.
        unit: unit of attention and coarse matching: "cell", or "region" of several cells.
    """

    views: tuple[PairImage, PairImage]
    points0: Heat
    points1: Heat
    confidence: Heat
    points: tuple[ExplainedPoint, ...]
    network: str
    heads: str
    unit: str

    @property
    def count(self) -> str:
        """The number of matches as text."""
        return "1 match" if len(self.confidence) == 1 else f"{len(self.confidence) or 'no'} matches"
