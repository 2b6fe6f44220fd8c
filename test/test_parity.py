"""The full network equals kornia's with the same weights; optimal transport equals the result of SciPy's optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_weights
import numpy as np
import pytest
import torch
from kornia.feature import LoFTR as KorniaLoFTR
from kornia.feature.loftr.loftr import default_cfg
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

from loftr_ros.matcher.interface import Matches
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.loftr.transport import assignment_matrix, optimal_transport

BORDER = 2


@dataclass(frozen=True)
class Kornia:
    """kornia's results on a pair: its confidences (L, S) and, per match, cells, points and the fine stage's (x, y,
    std) in half windows.
    """

    confidence: Tensor
    cell0: Tensor
    cell1: Tensor
    points0: Tensor
    points1: Tensor
    expectation: Tensor


@dataclass(frozen=True)
class Ours:
    """Our network's results on a pair."""

    confidence: Tensor
    cell0: Tensor
    cell1: Tensor
    matches: Matches


@pytest.fixture(scope="module")
def kornia() -> KorniaLoFTR:
    network = KorniaLoFTR(pretrained=None, config=default_cfg).eval()
    network.load_state_dict(dict(made_weights.state_dict()))
    return network


@pytest.fixture(scope="module")
def network() -> LoFTR:
    return made_weights.network()


def run_kornia(network: KorniaLoFTR, image0: Tensor, image1: Tensor, **masks: Tensor) -> Kornia:
    """Run kornia on uint8 images and record its intermediate results."""
    kept: dict[str, Any] = {}
    hook = network.fine_matching.register_forward_hook(lambda module, inputs, output: kept.update(inputs[2]))
    try:
        with torch.inference_mode():
            network({"image0": as_batch(image0), "image1": as_batch(image1), **masks})
    finally:
        hook.remove()
    points = kept["mkpts0_f"], kept["mkpts1_f"]
    return Kornia(kept["conf_matrix"][0], kept["i_ids"], kept["j_ids"], *points, kept["expec_f"])


def as_batch(image: Tensor) -> Tensor:
    return image[None, None].float() / 255


def run_ours(
    network: LoFTR, image0: Tensor, image1: Tensor, usable0: Tensor | None = None, usable1: Tensor | None = None
) -> Ours:
    features = network.encode(image0, usable0), network.encode(image1, usable1)
    confidence = network.confidence(*features)
    matches, coarse = made_weights.matched(network, *features)
    return Ours(confidence, coarse.cell0, coarse.cell1, matches)


@dataclass(frozen=True)
class Pair:
    """Both networks on one pair."""

    kornia: Kornia
    ours: Ours


@pytest.fixture(scope="module")
def rendered(kornia: KorniaLoFTR, network: LoFTR) -> Pair:
    images = made_weights.rendered_pair()
    return Pair(run_kornia(kornia, *images), run_ours(network, *images))


@pytest.fixture(scope="module")
def sevenscenes(kornia: KorniaLoFTR, network: LoFTR, shared_data: Path) -> Pair:
    images = made_weights.sevenscenes_pair(shared_data)
    return Pair(run_kornia(kornia, *images), run_ours(network, *images))


@pytest.fixture(scope="module")
def kitti(kornia: KorniaLoFTR, network: LoFTR, shared_data: Path) -> Pair:
    """Sides of 1226 and 370 px: not multiples of 8, and neither side is padded to one."""
    images = made_weights.kitti_pair(shared_data)
    return Pair(run_kornia(kornia, *images), run_ours(network, *images))


@pytest.fixture(scope="module")
def padded(kornia: KorniaLoFTR, network: LoFTR) -> Pair:
    """Two sizes, each padded with black: image 0 to the right and below, image 1 below."""
    image0, image1 = made_weights.rendered_pair()
    image1 = image1[16:, 24:]
    sizes = (256, 360), (264, 296)
    usable = [torch.zeros(size, dtype=torch.bool) for size in sizes]
    canvases = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    for image, canvas, mask in zip((image0, image1), canvases, usable, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
        mask[: image.shape[0], : image.shape[1]] = True
    theirs = run_kornia(kornia, *canvases, mask0=usable[0][None].float(), mask1=usable[1][None].float())
    # kornia ignores the border of the canvas. The published code and ours ignore the border of the unpadded part.
    keep = off_padding(theirs.cell0, usable[0]) & off_padding(theirs.cell1, usable[1])
    rest = (theirs.cell0, theirs.cell1, theirs.points0, theirs.points1, theirs.expectation)
    return Pair(Kornia(theirs.confidence, *(t[keep] for t in rest)), run_ours(network, *canvases, *usable))


def off_padding(cells: Tensor, usable: Tensor) -> Tensor:
    """Whether cells are at least BORDER cells off the padding to the right and below."""
    columns = -(-usable.shape[1] // 8)
    height, width = (int(usable.any(dim=axis).sum()) // 8 for axis in (1, 0))
    return (cells // columns < height - BORDER) & (cells % columns < width - BORDER)


# The rendered pair is the short version of the tests with large real pairs.
PAIRS = ("rendered", *(pytest.param(name, marks=pytest.mark.long) for name in ("sevenscenes", "kitti", "padded")))


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    return request.getfixturevalue(request.param)


def test_the_pairs_have_matches_of_every_confidence(pair: Pair) -> None:
    confidence = pair.ours.matches.confidence
    assert len(confidence) > 100, "parity on a handful of matches would mean nothing"
    assert confidence.min() < 0.35 and confidence.max() > 0.95


def test_coarse_confidences_are_within_a_ten_thousandth(pair: Pair) -> None:
    assert pair.ours.confidence.shape == pair.kornia.confidence.shape
    assert (pair.ours.confidence - pair.kornia.confidence).abs().max() < 1e-4


def cells_of(found: Kornia | Ours) -> dict[tuple[int, int], int]:
    """Matched pairs of cells, and the match's place in the list."""
    return {cells: i for i, cells in enumerate(zip(found.cell0.tolist(), found.cell1.tolist(), strict=True))}


def test_coarse_matches_are_the_same(pair: Pair) -> None:
    theirs, ours = cells_of(pair.kornia), cells_of(pair.ours)
    shared = len(theirs.keys() & ours.keys())
    assert shared >= 0.999 * len(theirs)
    assert shared >= 0.999 * len(ours)


def shared_matches(pair: Pair) -> tuple[Tensor, Tensor]:
    """Places of the shared matches in kornia's list and in ours."""
    theirs, ours = cells_of(pair.kornia), cells_of(pair.ours)
    shared = sorted(theirs.keys() & ours.keys())
    # A match that ends on padding is removed at the very end, only by ours; so cells are looked up among the rest.
    left = {int(cell): i for i, cell in enumerate(pair.ours.matches.cell)}
    shared = [cells for cells in shared if cells[0] in left]
    assert len(shared) > 100
    return torch.tensor([theirs[cells] for cells in shared]), torch.tensor([left[cells[0]] for cells in shared])


def test_fine_points_are_within_a_hundredth_of_a_pixel(pair: Pair) -> None:
    theirs, ours = shared_matches(pair)
    assert torch.equal(pair.ours.matches.points0[ours], pair.kornia.points0[theirs].float())
    moved = (pair.kornia.points1[theirs] % 8 != 0).any(dim=1).float().mean()
    assert moved > 0.95, "the fine stage must do something for this to mean anything"
    assert (pair.ours.matches.points1[ours] - pair.kornia.points1[theirs]).abs().max() < 0.01


def test_the_standard_deviation_is_that_of_the_heat_map(pair: Pair) -> None:
    theirs, ours = shared_matches(pair)
    # kornia's is the sum over both axes in half windows (2 fine cells of 2 px); ours the root mean square in px. They
    # are related by at least 1 / 2 (both axes alike) and at most 1 / sqrt(2) (all in one).
    total = pair.kornia.expectation[theirs, 2] * 4
    std = pair.ours.matches.std[ours]
    assert (std >= 0.5 * total - 2e-3).all()
    assert (std <= total / 2**0.5 + 2e-3).all()
    assert std.quantile(0.9) > 2 * std.quantile(0.1), "the uncertainty must vary"


@pytest.fixture(scope="module")
def tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of two grids, half of which have a partner, and the score of the dustbins."""
    generator = torch.Generator().manual_seed(0)
    tokens0 = 3 * torch.randn(1, 90, 64, generator=generator)
    tokens1 = 3 * torch.randn(1, 70, 64, generator=generator)
    tokens1[:, :40] = tokens0[:, 20:60] + 0.8 * torch.randn(1, 40, 64, generator=generator)
    return tokens0, tokens1, torch.tensor(5.0)


def couplings(tokens0: Tensor, tokens1: Tensor, bin_score: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 scores with a dustbin row and column, and the masses of rows and columns."""
    scores = tokens0[0].double().numpy() @ tokens1[0].double().numpy().T / tokens0.shape[2]
    rows, columns = scores.shape
    whole = np.pad(scores, ((0, 1), (0, 1)), constant_values=float(bin_score))
    return whole, np.append(np.ones(rows), columns), np.append(np.ones(columns), rows)


def test_three_sinkhorn_iterations_are_those_written_plainly_in_float64(tokens: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, mass0, mass1 = couplings(*tokens)
    u, v = np.zeros(len(mass0)), np.zeros(len(mass1))
    for _ in range(3):
        u = np.log(mass0) - logsumexp(scores + v, axis=1)
        v = np.log(mass1) - logsumexp(scores + u[:, None], axis=0)
    expected = np.exp(scores + u[:, None] + v)
    ours = assignment_matrix(*tokens, 3)[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5 * expected[:-1, :-1].max())


def test_sinkhorn_converges_to_the_plan_that_a_general_optimizer_finds(tokens: tuple[Tensor, Tensor, Tensor]) -> None:
    """The plan is exp(scores + u + v) with the u and v of the largest dual (Cuturi 2013), found here by L-BFGS."""
    scores, mass0, mass1 = couplings(*tokens)

    def plan(duals: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(scores + duals[: len(mass0), None] + duals[len(mass0) :])

    def loss(duals: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        masses, found = np.concatenate([mass0, mass1]), plan(duals)
        return found.sum() - masses @ duals, np.concatenate([found.sum(1), found.sum(0)]) - masses

    start = np.concatenate([-logsumexp(scores, axis=1), np.zeros(len(mass1))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 10000, "ftol": 0})
    expected = plan(found.x)
    np.testing.assert_allclose(expected.sum(1), mass0, atol=1e-4)
    np.testing.assert_allclose(expected.sum(0), mass1, atol=1e-4)
    ours = assignment_matrix(*tokens, 2000)[0, :-1, :-1].numpy()
    np.testing.assert_allclose(ours, expected[:-1, :-1], atol=1e-5)


@pytest.mark.parametrize("iterations", [3, 50])
def test_matches_by_optimal_transport_are_the_plans_mutual_best(
    tokens: tuple[Tensor, Tensor, Tensor], iterations: int
) -> None:
    tokens0, tokens1, bin_score = tokens
    whole = assignment_matrix(tokens0, tokens1, bin_score, iterations)[0]
    plan = whole[:-1, :-1]
    best = (plan == plan.amax(1, keepdim=True)) & (plan == plan.amax(0, keepdim=True)) & (plan > 0.2)
    best &= (plan.amax(1) >= whole[:-1, -1])[:, None] & (plan.amax(0) >= whole[-1, :-1])
    cell0, cell1 = best.nonzero(as_tuple=True)
    found = optimal_transport(tokens0, tokens1, bin_score, iterations, 0.2)
    assert len(cell0) > 10
    assert torch.equal(found.cell0, cell0) and torch.equal(found.cell1, cell1)
    assert (found.confidence - plan[cell0, cell1]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "preset", ["loftr_new", *(pytest.param(name, marks=pytest.mark.long) for name in ("loftr_ot", "loftr_16_4"))]
)
def test_the_other_presets_match_the_rendered_pair_too(preset: str) -> None:
    network = made_weights.network(preset=preset)
    images = made_weights.rendered_pair(*((640, 480) if preset == "loftr_16_4" else (320, 240)))
    matches = network.match([network.encode(images[0])], network.encode(images[1]))[0]
    assert len(matches) > 50
    assert float(matches.confidence.min()) > 0.2 and float(matches.confidence.max()) <= 1
    assert torch.isfinite(matches.std).all()
