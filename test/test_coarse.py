"""The search for mutual best cells: one exponential for both softmaxes, and half precision where it does no harm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loftr_ros.matcher import coarse
from loftr_ros.matcher.coarse import CoarseMatches, Masks, confidence_matrix, dual_softmax, entries_above
from loftr_ros.matcher.config import TransformerConfig
from loftr_ros.matcher.loftr.transformer import EncoderLayer


def ambiguous_tokens(spread: float = 0.0) -> tuple[Tensor, Tensor]:
    """Tokens (1, 300, 256) and (1, 700, 256) fp32: cells with two partners, and some with none, of unequal norms."""
    generator = torch.Generator().manual_seed(0)
    tokens0 = 8 * torch.randn(1, 300, 256, generator=generator)
    tokens0 *= torch.exp(spread * torch.randn(1, 300, 1, generator=generator))
    tokens1 = tokens0.repeat_interleave(2, dim=1) + 0.2 * torch.randn(1, 600, 256, generator=generator)
    return tokens0, torch.cat([tokens1, 4 * torch.randn(1, 100, 256, generator=generator)], dim=1)


def dense(tokens0: Tensor, tokens1: Tensor, temperature: float) -> Tensor:
    """The whole confidence matrix of one pair in float64."""
    scores = tokens0[0].double() @ tokens1[0].double().t() / (tokens0.shape[2] * temperature)
    return torch.softmax(scores, 0) * torch.softmax(scores, 1)


def confidences(matches: CoarseMatches) -> dict[tuple[int, int], float]:
    return dict(
        zip(zip(matches.cell0.tolist(), matches.cell1.tolist(), strict=True), matches.confidence.tolist(), strict=True)
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0])  # scores of 640 and of 64
@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_bf16_tokens_match_with_the_confidences_of_their_exact_scores(temperature: float, spread: float) -> None:
    tokens0, tokens1 = (tokens.bfloat16() for tokens in ambiguous_tokens(spread))
    truth = dense(tokens0, tokens1, temperature)
    found = confidences(dual_softmax(tokens0, tokens1, temperature, 0.2))
    mutual = (truth > 0.21) & (truth == truth.amax(1, keepdim=True)) & (truth == truth.amax(0, keepdim=True))
    assert len(mutual.nonzero()) > 100
    assert {tuple(cells) for cells in mutual.nonzero().tolist()} <= found.keys()
    assert max(abs(value - float(truth[cells])) for cells, value in found.items()) < 3e-3


def test_one_exponential_is_enough_for_common_scores_and_given_up_where_it_would_underflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact: list[int] = []
    original = coarse._dual_softmax_candidates
    monkeypatch.setattr(coarse, "_dual_softmax_candidates", lambda *given: exact.append(1) or original(*given))
    generator = torch.Generator().manual_seed(0)
    tokens = 4 * torch.randn(1, 100, 256, generator=generator)  # scores with themselves of 16 / 0.1
    assert len(dual_softmax(tokens, tokens, 1.0, 0.2).cell0) == 100
    assert not exact
    tokens[:, :50] *= 0.1
    tokens[:, 50:] *= 3
    for dtype in (torch.float32, torch.bfloat16):
        given = tokens.to(dtype)
        matches = dual_softmax(given, given, 0.1, 0.2)
        truth = dense(given, given, 0.1)
        assert matches.cell0.tolist() == (truth.diagonal() > 0.2).nonzero()[:, 0].tolist()
        torch.testing.assert_close(matches.confidence.double(), truth.diagonal()[matches.cell0], atol=1e-4, rtol=0)
    assert len(exact) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cells_that_take_no_part_change_nothing_however_large_they_are(dtype: torch.dtype) -> None:
    tokens0, tokens1 = (tokens.to(dtype) for tokens in ambiguous_tokens())
    attended0, attended1 = (torch.ones(tokens.shape[:2], dtype=torch.bool) for tokens in (tokens0, tokens1))
    attended0[:, 250:] = attended1[:, 650:] = False
    tokens0[:, 250:] *= 40
    tokens1[:, 650:] *= 40
    masked = confidences(dual_softmax(tokens0, tokens1, 1.0, 0.2, Masks(attended0=attended0, attended1=attended1)))
    cut = confidences(dual_softmax(tokens0[:, :250], tokens1[:, :650], 1.0, 0.2))
    assert masked.keys() == cut.keys() and len(cut) > 100
    assert max(abs(masked[cells] - cut[cells]) for cells in cut) < 3e-3


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200, 256])
def test_entries_above_a_limit_are_all_found_in_their_order(columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(50, columns, generator=generator)
    limits, rows = torch.rand(50, generator=generator), torch.arange(0, 50, 2)
    limits[7] = 2.0
    wanted = values > limits[:, None]
    for chosen in (None, rows):
        expected = wanted if chosen is None else wanted & (torch.arange(50) % 2 == 0)[:, None]
        found = entries_above(values, limits, chosen, 1000)
        row, column = expected.nonzero(as_tuple=True)
        assert torch.equal(found.row, row + 1000) and torch.equal(found.column, column)
        assert torch.equal(found.value, values[row, column])


def test_the_tiled_search_in_fp32_equals_the_dense_matrix() -> None:
    tokens0, tokens1 = ambiguous_tokens(0.15)
    truth = confidence_matrix(tokens0, tokens1, 1.0)[0]
    mutual = (truth > 0.2) & (truth == truth.amax(1, keepdim=True)) & (truth == truth.amax(0, keepdim=True))
    found = dual_softmax(tokens0, tokens1, 1.0, 0.2)
    assert torch.equal(torch.stack([found.cell0, found.cell1], dim=1), mutual.nonzero())
    torch.testing.assert_close(found.confidence, truth[found.cell0, found.cell1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [40, 2600])
def test_one_sequence_that_asks_several_equals_each_alone(dtype: torch.dtype, length: int) -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(32, TransformerConfig(num_heads=4, layers=("cross",))).eval().to(dtype)
    x, sources = torch.randn(1, length, 32), torch.randn(3, length + 7, 32)
    mask = torch.rand(3, length + 7) > 0.2
    with torch.inference_mode():
        together = layer(x, sources, mask)
        alone = torch.cat([layer(x, sources[i : i + 1], mask[i : i + 1]) for i in range(3)])
    with_gradients = layer(x, sources, mask)
    assert together.shape == (3, length, 32)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(together, alone, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(together, with_gradients, atol=tolerance, rtol=tolerance)
