"""Half precision gives the results of fp32, and needs every fp32 island."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import made_weights
import pytest
import torch
from torch import Tensor

from loftr_ros.matcher import coarse
from loftr_ros.matcher.loftr import attention, transport
from loftr_ros.matcher.loftr.fine import expectation, heat_map

CPU = torch.device("cpu")


def compare(dtype: torch.dtype, images: tuple[Tensor, Tensor], device: torch.device = CPU) -> tuple[int, float, float]:
    """Matches in fp32, the share of them found in half precision, and the median distance of points in px."""
    points: list[dict[tuple[int, int], Tensor]] = []
    for network in (made_weights.network(device=CPU), made_weights.network(dtype, device=device)):
        matches, coarse = made_weights.matched(network, *(network.encode(image) for image in images))
        cells = zip(coarse.cell0.tolist(), coarse.cell1.tolist(), strict=True)
        points.append(dict(zip(cells, matches.points1, strict=True)))
    full, half = points
    found = [cells for cells in full if cells in half]
    distances = torch.stack([(full[cells] - half[cells]).norm() for cells in found])
    return len(full), len(found) / len(full), float(distances.median())


def sevenscenes(data: Path) -> tuple[Tensor, Tensor]:
    return made_weights.sevenscenes_pair(data)


def kitti(data: Path) -> tuple[Tensor, Tensor]:
    return made_weights.kitti_pair(data, size=(1241, 376))


@pytest.mark.long
@pytest.mark.parametrize("images", [sevenscenes, kitti])
def test_bf16_finds_what_fp32_finds_on_real_images(
    images: Callable[[Path], tuple[Tensor, Tensor]], shared_data: Path
) -> None:
    count, found, distance = compare(torch.bfloat16, images(shared_data))
    assert count > 300
    assert found >= 0.99
    assert distance < 0.1


def test_bf16_finds_what_fp32_finds_on_rendered_images() -> None:
    count, found, distance = compare(torch.bfloat16, made_weights.rendered_pair())
    assert count > 100
    assert found >= 0.98  # with a tenth of the matches of a whole image, a single one counts for much
    assert distance < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("images", [sevenscenes, kitti])
def test_fp16_on_cuda_finds_what_fp32_finds_on_real_images(
    images: Callable[[Path], tuple[Tensor, Tensor]], shared_data: Path
) -> None:
    count, found, distance = compare(torch.float16, images(shared_data), torch.device("cuda"))
    assert count > 300
    assert found >= 0.99
    assert distance < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_on_cuda_finds_what_fp32_finds_on_rendered_images() -> None:
    count, found, distance = compare(torch.float16, made_weights.rendered_pair(640, 480), torch.device("cuda"))
    assert count > 300
    assert found >= 0.99
    assert distance < 0.1


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Of the whole, as root mean squares; infinite where a value is not finite."""
    error = (value.double() - truth.double()).norm() / truth.double().norm()
    return float(error) if torch.isfinite(error) else float("inf")


def attention_in_float64(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention, token by token as the paper has it."""
    query, key, value = (tensor.double() for tensor in (query, key, value))
    query, key = (torch.where(tensor > 0, tensor + 1, tensor.exp()) for tensor in (query, key))
    context = torch.einsum("bhsd,bhsv->bhdv", key, value)
    return (query @ context) / torch.einsum("bhld,bhd->bhl", query, key.sum(dim=2))[..., None]


@pytest.mark.parametrize("num_tokens", [4800, 19200])
def test_linear_attention_stays_in_the_range_of_fp16_by_its_island(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, num_tokens, 32, generator=generator) for _ in range(3))
    # Keys that are large in all tokens, as some channels of trained networks are: their sum exceeds 65504.
    query, key, value = query.half(), (key + 16).half(), (value + 1).half()
    truth = attention_in_float64(query, key, value)
    message = attention.linear_attention(query, key, value)
    assert torch.isfinite(message).all()
    assert (message.abs().amax(dim=3) > 0).all()
    assert relative_error(message, truth) < 5e-3

    def summarise_in_half(key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> attention.Context:
        key, value = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (key, value))
        key, tokens = attention.feature_map(key), key.shape[2]
        products, keys = key.transpose(-1, -2) @ (value / tokens), key.sum(dim=2) / tokens
        return attention.Context(products.float(), keys.float())

    monkeypatch.setattr(attention, "summarise", summarise_in_half)
    without = attention.linear_attention(query, key, value)
    assert relative_error(without, truth) > 0.5, "the island is there for nothing"


@pytest.mark.parametrize("num_tokens", [4800, 19200])
def test_the_published_denominator_in_fp16_loses_the_message_without_a_word(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, num_tokens, 32, generator=generator).half() for _ in range(3))
    mapped_query, mapped_key = attention.feature_map(query), attention.feature_map(key)
    denominator = mapped_query @ mapped_key.sum(dim=2)[..., None]
    assert torch.isinf(denominator).any() and (1 / denominator == 0).any()
    message = attention.linear_attention(query, key, value + 1)
    assert torch.isfinite(message).all() and (message.abs().amax(dim=3) > 0).all()


def ambiguous_tokens(rms: float) -> tuple[Tensor, Tensor]:
    """Half-precision tokens of two images: every cell of the first has two partners, one a little better."""
    generator = torch.Generator().manual_seed(0)
    tokens0 = rms * torch.randn(1, 600, 256, generator=generator)
    tokens1 = tokens0.repeat_interleave(2, dim=1)
    tokens1 = tokens1 + 0.2 * 8 / rms * torch.randn(tokens1.shape, generator=generator)
    return tokens0.half(), tokens1.half()


def test_confidences_of_half_features_are_as_exact_as_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens0, tokens1 = ambiguous_tokens(rms=8)
    scores = tokens0.double() @ tokens1.double().transpose(1, 2) / 25.6
    truth = torch.softmax(scores, 1) * torch.softmax(scores, 2)
    assert ((truth > 0.1) & (truth < 0.9)).sum() > 500
    assert (coarse.confidence_matrix(tokens0, tokens1, 0.1) - truth).abs().max() < 1e-3
    monkeypatch.setattr(coarse, "scores", scores_in_half)
    without = coarse.confidence_matrix(tokens0, tokens1, 0.1)
    assert (without - truth).abs().nan_to_num(1.0).max() > 0.05, "the island is there for nothing"


def scores_in_half(tokens0: Tensor, tokens1: Tensor, temperature: float, *attended: Tensor | None) -> Tensor:
    return (tokens0 / (tokens0.shape[2] * temperature)) @ tokens1.transpose(1, 2)


def test_optimal_transport_of_half_features_is_as_exact_as_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens0, tokens1 = ambiguous_tokens(rms=24)
    arguments = (torch.tensor(200.0), 3)
    truth = transport.assignment_matrix(tokens0.float(), tokens1.float(), *arguments)
    assert ((truth > 0.1) & (truth < 0.9)).sum() > 500
    assert (transport.assignment_matrix(tokens0, tokens1, *arguments) - truth).abs().max() < 1e-3
    monkeypatch.setattr(transport, "scores", scores_in_half)
    without = transport.assignment_matrix(tokens0, tokens1, *arguments)
    assert (without - truth).abs().nan_to_num(1.0).max() > 0.05, "the island is there for nothing"


def test_the_fine_stages_uncertainty_survives_half_features() -> None:
    generator = torch.Generator().manual_seed(0)
    windows1 = torch.randn(500, 25, 128, generator=generator).half()
    windows0 = torch.zeros_like(windows1)
    # Heat maps from flat to a single place.
    windows0[:, 12] = windows1[:, 8] * torch.linspace(0, 1.5, 500).half()[:, None]
    heat = torch.softmax((windows1.double() @ windows0[:, 12].double()[..., None])[..., 0] / 128**0.5, dim=1)
    grid = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="xy"), -1).view(25, 2) - 2

    def moments(heat: Tensor) -> tuple[Tensor, Tensor]:
        offset = heat @ grid.to(heat.dtype)
        return offset, (heat @ grid.square().to(heat.dtype) - offset.square()).clamp_min(0).mean(dim=1).sqrt()

    offset, std = moments(heat)
    fine = expectation(heat_map(windows0, windows1))
    assert fine.offset.dtype == fine.std.dtype == torch.float32
    assert (fine.offset - offset).abs().max() < 1e-3
    assert (fine.std - std).abs().max() < 1e-3
    assert (moments(heat.half())[1] - std).abs().max() > 1e-2, "the island is there for nothing"
