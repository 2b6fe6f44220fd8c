"""Local affine motion from matched cells, compared with the true motion and SciPy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from loftr_ros.matcher.compact.fine import CompactFine
from loftr_ros.matcher.compact.local_affine import inverse, local_affine
from loftr_ros.matcher.config import COMPACT

GRID = (30, 40)


def turned(angle: float, scale: float = 1.0) -> torch.Tensor:
    """(2, 2)."""
    c, s = np.cos(np.radians(angle)) * scale, np.sin(np.radians(angle)) * scale
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float32)


def matched(motion: torch.Tensor, cells: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, N) cells of both images under a motion about the centre, rounded to whole cells, without those outside."""
    cells0 = torch.arange(GRID[0] * GRID[1]) if cells is None else cells
    middle = torch.tensor([GRID[1] / 2, GRID[0] / 2])
    place = torch.stack([cells0 % GRID[1], cells0 // GRID[1]], dim=1) - middle
    moved = (place @ motion.T + middle).round().long()
    inside = ((moved >= 0) & (moved < torch.tensor([GRID[1], GRID[0]]))).all(dim=1)
    return cells0[inside][None], (moved[:, 1] * GRID[1] + moved[:, 0])[inside][None]


@pytest.mark.parametrize(("angle", "scale"), [(0, 1.0), (10, 1.0), (-30, 1.0), (20, 1.3), (0, 0.75)])
def test_a_turn_and_a_zoom_are_seen_in_whole_cells(angle: float, scale: float) -> None:
    motion = turned(angle, scale)
    found = local_affine(*matched(motion), GRID, GRID)[0]
    assert found.shape[1:] == (2, 2)
    off = (found - motion).flatten(1).norm(dim=1)
    assert off.median() < 0.07 and off.quantile(0.95) < 0.2


def test_the_first_estimate_is_that_of_scipys_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    from loftr_ros.matcher.compact import local_affine as module

    monkeypatch.setattr(module, "_OUTLIER", 1e6)  # nothing is one
    rng = np.random.default_rng(0)
    cells = torch.from_numpy(np.sort(rng.permutation(GRID[0] * GRID[1])[:700]))
    cells0, cells1 = matched(turned(25, 1.2), cells)
    found = local_affine(cells0, cells1, GRID, GRID)[0].numpy()
    at = np.stack([cells0[0] % GRID[1], cells0[0] // GRID[1]], axis=1).astype(float)
    motion = np.stack([cells1[0] % GRID[1], cells1[0] // GRID[1]], axis=1) - at
    for number in (0, 111, 350, len(at) - 1):
        near = np.abs(at - at[number]).max(axis=1) <= 4
        step, moved = at[near] - at[number], motion[near]

        def residuals(x: np.ndarray, step: np.ndarray = step, moved: np.ndarray = moved) -> np.ndarray:
            slope = x[2:].reshape(2, 2)
            return np.concatenate([(x[:2] + step @ slope.T - moved).ravel(), np.sqrt(2.0) * x[2:]])

        slope = least_squares(residuals, np.zeros(6)).x[2:].reshape(2, 2)
        np.testing.assert_allclose(found[number], np.eye(2) + slope, atol=1e-4)


def test_wrong_matches_among_the_neighbours_change_little() -> None:
    motion = turned(15)
    cells0, cells1 = matched(motion)
    torch.manual_seed(0)
    wrong = torch.rand(cells1.shape) < 0.1
    strewn = torch.where(wrong, torch.randint(GRID[0] * GRID[1], cells1.shape), cells1)
    found = local_affine(cells0, strewn, GRID, GRID)[0]
    off = (found - motion).flatten(1).norm(dim=1)
    assert off.median() < 0.1 and off.quantile(0.8) < 0.3


def test_what_is_not_taken_changes_nothing_and_a_lone_match_is_a_mere_shift() -> None:
    cells0, cells1 = matched(turned(20))
    found = local_affine(cells0, cells1, GRID, GRID)
    more0 = torch.cat([cells0, cells0[:, :50]], dim=1)
    more1 = torch.cat([cells1, torch.zeros(1, 50, dtype=torch.int64)], dim=1)
    taken = torch.arange(more0.shape[1])[None] < cells0.shape[1]
    torch.testing.assert_close(local_affine(more0, more1, GRID, GRID, taken)[:, : cells0.shape[1]], found)
    alone = torch.tensor([[17 * GRID[1] + 20]])
    torch.testing.assert_close(local_affine(alone, alone + 3, GRID, GRID)[0, 0], torch.eye(2))
    assert local_affine(alone[:, :0], alone[:, :0], GRID, GRID).shape == (1, 0, 2, 2)


def test_inverses_are_those_of_linalg() -> None:
    torch.manual_seed(0)
    matrices = torch.eye(2) + 0.3 * torch.randn(3, 5, 2, 2)
    torch.testing.assert_close(inverse(matrices), torch.linalg.inv(matrices))


@pytest.mark.parametrize("angle", [0, 20, -35])
def test_a_template_is_turned_as_the_image_is(angle: float) -> None:
    """A smooth scene sampled at rotated places: the template from one image equals the other image."""
    motion = turned(angle, 1.1)
    size = 8

    def scene(places: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.sin(0.5 * places[..., 0] + 0.2), torch.cos(0.4 * places[..., 1])], dim=-1)

    def square(side: int, across: torch.Tensor) -> torch.Tensor:
        step = torch.arange(side) - (side - 1) / 2
        places = torch.stack([step.repeat(side), step.repeat_interleave(side)], dim=1)
        return scene(places @ torch.linalg.inv(across).T)[None]

    stage = CompactFine(COMPACT.fine, 2)
    made = stage._template(square(size, torch.eye(2)), motion[None])
    torch.testing.assert_close(made, square(COMPACT.fine.template, motion), rtol=0, atol=0.07)
