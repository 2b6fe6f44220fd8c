"""Landmarks that outlive keyframes: links between cells of two keyframes that observe the same point.

An older keyframe's point meets a new keyframe's grid anywhere. The cell that it falls into takes it as its point: it
keeps the way from its own point to this one. Where the point is in a later image follows from the matches of the cell
and its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Rows and columns of a cell's neighbours.
_AROUND = np.array([(row, column) for row in range(-2, 3) for column in range(-2, 3) if row or column]).T
# Weight of the slope of all values together, as a number of neighbours.
_RIDGE = 0.5
_LEAST_NEIGHBOURS = 3


@dataclass(frozen=True, eq=False)
class TrackLinks:
    """Links between cells of a new and an older keyframe that observe the same points.

    Attributes:
        old_keyframe, new_keyframe: ids.
        old_track, new_track: (N,) uint32 cells of either, each at most once.
        offset: (N, 2) float32 px of the new keyframe's image from the cell's own point to the old one's.
        std: (N,) float32 px, standard deviation of it along one axis since the landmark's first keyframe.
    """

    old_keyframe: int
    new_keyframe: int
    old_track: NDArray[np.uint32]
    new_track: NDArray[np.uint32]
    offset: NDArray[np.float32]
    std: NDArray[np.float32]

    @property
    def distance(self) -> NDArray[np.float32]:
        """(N,) px, the length of `offset`."""
        return np.hypot(self.offset[:, 0], self.offset[:, 1])

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


def beside(
    cell: NDArray[np.integer],
    offset: NDArray[np.floating],
    cell_points: NDArray[np.floating],
    values: NDArray[np.floating],
    grid: tuple[int, int],
    gate: NDArray[np.floating] | float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values beside some cells' points, by the slopes from each cell to its neighbours.

    Args:
        cell: (N,) numbers of cells of known value.
        offset: (N, 2) px from their points.
        cell_points: (L, 2) px of all cells' points, row by row on a regular grid.
        values: (L, D) of all cells; NaN where unknown.
        grid: (rows, columns).
        gate: how far the next cell's value may be from where all values together expect it, and a farther one's in
            proportion; one beyond is across an edge.

    Returns:
        (N, D) values, NaN where fewer than three neighbours are known; and (N,) their standard deviation, from how much
        the slopes differ.
    """
    rows, columns = grid
    known = np.isfinite(values).all(axis=1)
    design = np.column_stack([cell_points, np.ones(len(cell_points))])[known].astype(np.float64)
    slope = np.linalg.lstsq(design, values[known].astype(np.float64), rcond=None)[0][:2]
    row, column = (part[:, None] + _AROUND[axis] for axis, part in enumerate(np.divmod(cell.astype(np.int64), columns)))
    used = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    near = np.where(used, row * columns + column, 0)
    used &= known[near]
    # Of each neighbour the direction, and how much more than expected the values change a step in it.
    step = (cell_points[-1] - cell_points[0]).astype(np.float64) / (max(columns - 1, 1), max(rows - 1, 1))
    away = np.hypot(*_AROUND)
    x, y = _AROUND[1] * step[0] / away, _AROUND[0] * step[1] / away
    changes = []
    for axis, value in enumerate(np.asarray(values, np.float64).T):
        change = (value[near] - value[cell][:, None]) / away - (x * slope[0, axis] + y * slope[1, axis])
        with np.errstate(invalid="ignore"):
            used &= np.abs(change) < np.reshape(gate, (-1, 1))
        changes.append(change)
    weight = used.astype(np.float64)
    ridge = _RIDGE * step[0] * step[1]
    xx, xy, yy = weight @ (x * x), weight @ (x * y), weight @ (y * y)
    determinant = (xx + ridge) * (yy + ridge) - xy**2
    found, squared = np.asarray(values, np.float64)[cell] + offset @ slope, np.zeros(len(cell))
    for axis, change in enumerate(changes):
        change[~used] = 0.0
        by_x, by_y = change @ x, change @ y
        more_x = ((yy + ridge) * by_x - xy * by_y) / determinant
        more_y = ((xx + ridge) * by_y - xy * by_x) / determinant
        found[:, axis] += offset[:, 0] * more_x + offset[:, 1] * more_y
        squared += (change**2).sum(axis=1) - 2 * (more_x * by_x + more_y * by_y)
        squared += more_x**2 * xx + 2 * more_x * more_y * xy + more_y**2 * yy
    count = used.sum(axis=1)
    found[count < _LEAST_NEIGHBOURS] = np.nan
    rough = np.sqrt(np.maximum(squared, 0.0) / np.maximum(count, 1))
    return found, rough * np.linalg.norm(offset / step, axis=1)


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
