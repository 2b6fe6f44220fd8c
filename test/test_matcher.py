"""The network: parity with the published export, streaming, padding, precision, bounded memory."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from loftr_ros.matcher import coarse
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.coarse import Masks, confidence_matrix, dual_softmax
from loftr_ros.matcher.config import COARSE_LITE
from loftr_ros.matcher.loftr.attention import linear_attention
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.loftr.position import position_encoding

CPU = torch.device("cpu")


def student(shared_data: Path, dtype: torch.dtype = torch.float32) -> LoFTR:
    return load_network("coarse_lite", shared_data / "coarse_loftr" / "LoFTR_teacher.pt", CPU, dtype)


def random_network(dtype: torch.dtype = torch.float32) -> LoFTR:
    torch.manual_seed(0)
    return LoFTR(COARSE_LITE).prepare(CPU, dtype)


def gray(path: Path) -> torch.Tensor:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return torch.from_numpy(image)


def real_pair(shared_data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    folder = shared_data / "sevenscenes"
    return gray(folder / "frame-000100.color.jpg"), gray(folder / "frame-000105.color.jpg")


def noise_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    image = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
    return torch.from_numpy(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC))


def pairs_of(matches) -> set[tuple[int, float, float]]:  # type: ignore[no-untyped-def]
    return {(int(c), float(p[0]), float(p[1])) for c, p in zip(matches.cell, matches.points1, strict=True)}


def test_confidences_agree_with_the_published_onnx_export_on_a_real_pair(shared_data: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    image0, image1 = real_pair(shared_data)
    session = onnxruntime.InferenceSession(
        str(shared_data / "coarse_loftr" / "LoFTR_teacher.onnx"), providers=["CPUExecutionProvider"]
    )
    inputs = {f"img{i}": image[None, None].numpy().astype(np.float32) / 255 for i, image in enumerate((image0, image1))}
    published = session.run(None, inputs)[0][0]
    network = student(shared_data)
    ours = network.confidence(network.encode(image0), network.encode(image1)).numpy()
    assert published.max() > 0.1, "the pair must have confident matches for the comparison to mean anything"
    np.testing.assert_allclose(ours, published, atol=1e-4)


def test_real_video_gives_hundreds_of_matches_that_move_alike(shared_data: Path) -> None:
    network = student(shared_data)
    image0, image1 = real_pair(shared_data)
    matches = network.match([network.encode(image0)], network.encode(image1))[0]
    assert len(matches) > 300
    moved = (matches.points1 - matches.points0).numpy()
    agreeing = np.linalg.norm(moved - np.median(moved, axis=0), axis=1) < 32
    assert agreeing.mean() > 0.9


def test_folding_the_batch_norms_changes_nothing() -> None:
    torch.manual_seed(0)
    network = LoFTR(COARSE_LITE).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 2.0)
    image = torch.rand(1, 1, 64, 96)
    with torch.no_grad():
        before = network.backbone(image)
        network.backbone.fold_batch_norm()
        after = network.backbone(image)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_matching_several_keyframes_in_one_batch_equals_matching_each_alone(shared_data: Path) -> None:
    network = student(shared_data)
    folder = shared_data / "sevenscenes"
    keyframes = [network.encode(gray(folder / f"frame-{i:06d}.color.jpg")) for i in (90, 95, 110)]
    current = network.encode(gray(folder / "frame-000100.color.jpg"))
    together = network.match(keyframes, current)
    for keyframe, matches in zip(keyframes, together, strict=True):
        alone = network.match([keyframe], current)[0]
        assert pairs_of(matches) == pairs_of(alone)
        torch.testing.assert_close(matches.confidence, alone.confidence, rtol=1e-4, atol=1e-5)


def test_keyframes_of_different_sizes_are_matched_in_their_order() -> None:
    network = random_network()
    current = network.encode(noise_image(96, 128))
    sizes = [(96, 128), (64, 96), (96, 128)]
    keyframes = [network.encode(noise_image(*size, seed=i)) for i, size in enumerate(sizes)]
    together = network.match(keyframes, current)
    assert [pairs_of(m) for m in together] == [pairs_of(network.match([k], current)[0]) for k in keyframes]


def test_no_keyframes_give_no_matches() -> None:
    network = random_network()
    assert network.match([], network.encode(noise_image(64, 64))) == []


def test_a_match_against_the_same_image_is_every_cell_to_itself(shared_data: Path) -> None:
    network = student(shared_data)
    features = network.encode(real_pair(shared_data)[0])
    matches = network.match([features], features)[0]
    assert len(matches) > 600
    assert (matches.points0 == matches.points1).all(dim=1).float().mean() > 0.99


@pytest.mark.parametrize("size", [(370, 1226), (100, 90), (17, 16), (481, 641)])
def test_cells_that_are_padding_never_match(size: tuple[int, int]) -> None:
    network = random_network()
    network.config = _with_threshold(0.0)
    features = network.encode(noise_image(*size))
    matches = network.match([features], features)[0]
    columns = features.grid[1]
    centres = torch.stack([matches.cell % columns, matches.cell // columns], dim=1) * 16 + 7.5
    assert (centres[:, 0] < size[1]).all() and (centres[:, 1] < size[0]).all()
    assert (matches.points1[:, 0] < size[1]).all() and (matches.points1[:, 1] < size[0]).all()
    assert features.size == (size[1], size[0])


def test_padding_does_not_change_the_cells_that_see_none_of_it(shared_data: Path) -> None:
    network = student(shared_data)
    image0, image1 = real_pair(shared_data)
    whole = network.match([network.encode(image0)], network.encode(image1))[0]
    cropped = network.match([network.encode(image0[:470, :630])], network.encode(image1[:470, :630]))[0]
    common = pairs_of(whole) & {(c // 40 * 40 + c % 40, u, v) for c, u, v in pairs_of(cropped)}
    assert len(common) > 0.8 * len(whole)


@pytest.mark.parametrize(
    "image", [torch.zeros(480, 640, dtype=torch.uint8), torch.full((480, 640), 255, dtype=torch.uint8)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant_image_gives_a_well_typed_result_without_nan(image: torch.Tensor, dtype: torch.dtype) -> None:
    network = random_network(dtype)
    features = network.encode(image)
    matches = network.match([features], network.encode(noise_image(480, 640)))[0]
    assert torch.isfinite(features.tokens).all()
    assert torch.isfinite(matches.confidence).all()
    assert matches.points0.shape == matches.points1.shape == (len(matches), 2)
    assert matches.confidence.dtype == torch.float32


@pytest.mark.parametrize("image", [torch.zeros(3, 64, 64), torch.zeros(8, 64), torch.zeros(0, 0)])
def test_what_is_no_gray_image_is_refused_with_its_shape(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"image of shape .*expected \(H, W\)"):
        random_network().encode(image)


def test_bf16_finds_the_matches_of_fp32_on_a_real_pair(shared_data: Path) -> None:
    image0, image1 = real_pair(shared_data)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        network = student(shared_data, dtype)
        found.append(network.match([network.encode(image0)], network.encode(image1))[0])
    # The threshold affects both: only matches certain in fp32 must be found again.
    sure = {p for p, c in zip(_ordered(found[0]), found[0].confidence, strict=True) if c > 0.04}
    assert len(sure) > 200
    assert len(sure & pairs_of(found[1])) >= 0.97 * len(sure)


@pytest.mark.parametrize("tile_scores", [1, 2000, 20_000, 10_000_000])
def test_tiled_dual_softmax_equals_the_dense_matrix(tile_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "TILE_SCORES", tile_scores)
    generator = torch.Generator().manual_seed(1)
    tokens0 = torch.randn(2, 150, 32, generator=generator)
    tokens1 = torch.cat(
        [tokens0[:, 30:] + 0.3 * torch.randn(2, 120, 32, generator=generator), tokens0[:, :7] * -1], dim=1
    )
    _assert_equals_dense(tokens0, tokens1, temperature=0.1, threshold=0.2)


def test_rows_whose_scores_are_hundreds_apart_still_match() -> None:
    # Scores of 0.5 and of 500 in one matrix: a common exponent would underflow for the weak ones.
    generator = torch.Generator().manual_seed(2)
    tokens0 = torch.randn(1, 60, 32, generator=generator)
    tokens0[:, :30] *= 8
    tokens0[:, 30:] *= 0.6
    _assert_equals_dense(tokens0, tokens0 + 0.01, temperature=0.1, threshold=0.2)


def test_masked_cells_take_no_part_in_the_softmax() -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(1, 50, 32, generator=generator)
    attended = torch.ones(1, 50, dtype=torch.bool)
    attended[:, 40:] = False
    masked = dual_softmax(tokens, tokens, 0.1, 0.2, Masks(attended, attended, attended, attended))
    cut = dual_softmax(tokens[:, :40], tokens[:, :40], 0.1, 0.2)
    assert masked.cell0.tolist() == cut.cell0.tolist()
    torch.testing.assert_close(masked.confidence, cut.confidence)


def test_linear_attention_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64) for n in (11, 17, 17))
    mask = torch.rand(2, 17, generator=generator) > 0.3
    kernel = (torch.nn.functional.elu(query) + 1) @ (torch.nn.functional.elu(key) + 1).transpose(2, 3)
    kernel = kernel * mask[:, None, None, :]
    expected = (kernel / kernel.sum(dim=3, keepdim=True)) @ value
    torch.testing.assert_close(linear_attention(query, key, value, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [4800, 19200])
def test_the_attention_message_survives_half_precision_with_many_tokens(tokens: int) -> None:
    # In fp16 the denominator alone would be past 65504, its inverse zero, and the message with it.
    generator = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(1, 1, tokens, 32, generator=generator) + 3 for _ in range(3))
    exact = linear_attention(query[:, :, :64], key, value)
    half = linear_attention(query[:, :, :64].half(), key.half(), value.half())
    denominator = ((query[:, :, :64].elu() if hasattr(query, "elu") else query[:, :, :64]) + 1) @ (key + 1).sum(dim=2)[
        0, 0
    ]
    assert denominator.min() > torch.finfo(torch.float16).max
    assert torch.isfinite(half).all()
    torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.02)


def test_the_published_slip_makes_every_frequency_a_power_of_one_over_e() -> None:
    encoding = position_encoding(32, 3, 5, slip=True)
    x = torch.arange(1, 6, dtype=torch.float32)
    torch.testing.assert_close(encoding[8, 0], torch.sin(x * torch.exp(torch.tensor(-4.0))))
    correct = position_encoding(32, 3, 5, slip=False)
    torch.testing.assert_close(correct[8, 0], torch.sin(x * 10000.0 ** (-4 / 16)))


def _with_threshold(threshold: float):  # type: ignore[no-untyped-def]
    import dataclasses

    return dataclasses.replace(COARSE_LITE, coarse=dataclasses.replace(COARSE_LITE.coarse, threshold=threshold))


def _ordered(matches) -> list[tuple[int, float, float]]:  # type: ignore[no-untyped-def]
    return [(int(c), float(p[0]), float(p[1])) for c, p in zip(matches.cell, matches.points1, strict=True)]


def _assert_equals_dense(tokens0: torch.Tensor, tokens1: torch.Tensor, temperature: float, threshold: float) -> None:
    dense = confidence_matrix(tokens0, tokens1, temperature)
    mutual = (
        (dense == dense.amax(dim=2, keepdim=True)) & (dense == dense.amax(dim=1, keepdim=True)) & (dense > threshold)
    )
    expected = mutual.nonzero()
    found = dual_softmax(tokens0, tokens1, temperature, threshold)
    assert len(expected) > 20
    assert torch.equal(torch.stack([found.pair, found.cell0, found.cell1], dim=1), expected)
    torch.testing.assert_close(found.confidence, dense[mutual], rtol=1e-4, atol=1e-6)
