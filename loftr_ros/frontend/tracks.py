"""Landmarks that outlive keyframes: links between cells of two keyframes that observe the same point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TrackLinks:
    """Links between cells of a new and an older keyframe that observe the same points.

    Attributes:
        old_keyframe, new_keyframe: ids.
        old_track, new_track: (N,) uint32 cells of either, each at most once.
        distance: (N,) float32 px of the new keyframe's image between the new cell's point and the old one's.
    """

    old_keyframe: int
    new_keyframe: int
    old_track: NDArray[np.uint32]
    new_track: NDArray[np.uint32]
    distance: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.old_track)


def nearest_cells(
    points: NDArray[np.floating], cell_points: NDArray[np.floating], grid: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The cell whose point is nearest to each of some pixels.

    Args:
        points: (N, 2) pixels.
        cell_points: (L, 2) pixels of the cells' points, row by row on a regular grid.
        grid: (rows, columns).

    Returns:
        (N,) cells and (N,) pixels between their points and those given.
    """
    rows, columns = grid
    first = cell_points[0]
    across = cell_points[1] - first if columns > 1 else np.ones(2)
    down = cell_points[columns] - first if rows > 1 else np.ones(2)
    column = np.clip(np.rint((points[:, 0] - first[0]) / across[0]), 0, columns - 1).astype(np.int64)
    row = np.clip(np.rint((points[:, 1] - first[1]) / down[1]), 0, rows - 1).astype(np.int64)
    cell = row * columns + column
    distance = np.linalg.norm(cell_points[cell] - points, axis=1).astype(np.float32)
    return cell, distance


def one_each(cell: NDArray[np.int64], distance: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each cell, the index of the nearest item."""
    order = np.lexsort((distance, cell))
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = cell[order][1:] != cell[order][:-1]
    return np.sort(order[first])


def landmarks_of(
    keyframe: int, cells: int, links: TrackLinks | None = None, linked: NDArray[np.uint64] | None = None
) -> NDArray[np.uint64]:
    """Names of a keyframe's scene points, (cells,) uint64: (its id << 32) + cell, or an older keyframe's by `links`.

    Args:
        keyframe: id.
        cells: number of its cells.
        links: from an older keyframe's cells to this one's.
        linked: (L,) names of that keyframe's points.
    """
    names = (np.uint64(keyframe) << np.uint64(32)) + np.arange(cells, dtype=np.uint64)
    if links is not None and linked is not None:
        names[links.new_track] = linked[links.old_track]
    return names
