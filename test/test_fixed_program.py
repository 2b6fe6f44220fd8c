"""The GPU's way through a network is a fixed program, with one wait a frame and few launches, and finds the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import made_efficient
import made_weights
import pytest
import torch
from made_compact import shifted_pair
from made_weights import CPU, rendered_pair, sevenscenes_pair
from pretended_device import GPU, PretendedDevice, pretended_gpu
from test_compact import blobs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from loftr_ros.matcher import fixed
from loftr_ros.matcher.build import Network, build_network
from loftr_ros.matcher.cells import allowed_cells
from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.config import PRESETS
from loftr_ros.matcher.constants import forget_constants
from loftr_ros.matcher.fixed import fixed_program
from loftr_ros.matcher.interface import ImageFeatures, Matcher, Matches
from loftr_ros.matcher.loftr.backbone import Backbone
from loftr_ros.matcher.runtime.gpu import GpuMatcher
from loftr_ros.weights import find_weights

# Launches of a frame at 640x480 with one keyframe, at most.
LAUNCHES = {"compact": 350, "coarse_lite": 250, "efficient": 500, "loftr": 700}
WIDTH, HEIGHT = 160, 128
LONG = pytest.mark.long


def network(preset: str, dtype: torch.dtype = torch.float32) -> Network:
    """A preset whose weights match; of coarse_lite they are random."""
    if preset == "compact":
        return load_network("compact", find_weights("compact", ""), CPU, dtype)
    if preset == "small efficient":
        return made_efficient.small(dtype)
    if preset.startswith("efficient"):
        return made_efficient.network(made_efficient.configured(preset), dtype)
    if preset == "coarse_lite":
        return load_network(preset, None, CPU, dtype)
    return made_weights.network(dtype, preset)


def on_gpu(model: Network) -> GpuMatcher:
    """The fixed program, computed on the CPU."""
    return GpuMatcher(model, PretendedDevice(CPU))


def spotted(height: int, width: int) -> Tensor:
    """(H, W) uint8, not blank."""
    image = torch.zeros(height, width, dtype=torch.uint8)
    image[0, 0] = 9
    return image


@pytest.mark.parametrize("preset", LAUNCHES)
def test_a_frame_is_one_wait_and_few_launches(preset: str) -> None:
    with pretended_gpu(load_network(preset, None, CPU, torch.float16)) as (model, counts):
        device = PretendedDevice()
        matcher, image = GpuMatcher(model, device), spotted(480, 640)
        keyframe = matcher.complete(matcher.encode(image))
        matcher.match([keyframe], matcher.encode(image))
        counts.launches.clear()
        device.waits = device.copies = 0
        current = matcher.encode(image)
        assert device.waits == 0
        matcher.match([keyframe], current)
        assert device.waits == 1
        assert sum(counts.launches.values()) + device.copies <= LAUNCHES[preset], counts.launches


@pytest.mark.parametrize(
    "preset", ["compact", *(pytest.param(name, marks=LONG) for name in ("efficient_opt", "loftr_ot"))]
)
def test_keyframes_with_and_without_masks_are_matched_with_one_wait(preset: str) -> None:
    with pretended_gpu(load_network(preset, None, CPU, torch.float16)) as (model, counts):
        device = PretendedDevice()
        matcher, image = GpuMatcher(model, device), spotted(HEIGHT, WIDTH)
        masked = matcher.encode(image, torch.ones(HEIGHT, WIDTH, dtype=torch.bool))
        alone = sum(counts.launches.values())
        assert len(matcher.match([matcher.encode(image), masked, masked], matcher.encode(image))) == 3
        assert device.waits == 1
        counts.launches.clear()
        matcher.match([matcher.encode(image), masked, masked], matcher.encode(image))
        assert 0 < sum(counts.launches.values()) < 3 * alone + 700


def test_images_come_by_three_buffers_so_that_encoding_waits_for_none_in_use() -> None:
    device = PretendedDevice(CPU)
    matcher, image = GpuMatcher(network("compact"), device), blobs(HEIGHT, WIDTH)
    encoded = [matcher.encode(image.roll(8 * i, 1)) for i in range(5)]
    assert device.waits == 2  # for the first and the second one's copy
    assert all(not torch.equal(one.tokens, other.tokens) for one, other in pairwise(encoded))


@pytest.mark.parametrize(
    "preset", ["compact", "coarse_lite", *(pytest.param(name, marks=LONG) for name in ("efficient", "loftr"))]
)
def test_matching_runs_whole_on_tensors_without_values(preset: str) -> None:
    model = load_network(preset, None, CPU, torch.float16)
    grid = model.config.grid(HEIGHT, WIDTH)
    forget_constants()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(), fixed_program():
            usable = torch.ones(1, grid[0] * grid[1], dtype=torch.bool)
            features = model.encode_pixels(torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.float16), usable)
            allowed = allowed_cells(model.config, features)
            found = model.match_fixed(features, features, allowed, allowed)
    finally:
        forget_constants()
    rows = min(grid[0] * grid[1], model.config.coarse.max_matches or fixed.MOST_ROWS)
    assert found.confidence.shape == (1, rows) and found.points1.shape == (1, rows, 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_half_precision_on_a_gpu_has_channels_by_eights(preset: str) -> None:
    model = build_network(PRESETS[preset]).prepare(GPU, torch.float16)
    sides = {
        name: tuple(layer.weight.shape[:2])
        for name, layer in model.named_modules()
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and layer.weight.dtype == torch.float16
    }
    # A single input is that of the gray image, or of a convolution channel by channel.
    odd = {name: (out, into) for name, (out, into) in sides.items() if out % 8 or (into % 8 and into > 1)}
    if preset == "loftr_16_4":  # its fine features themselves have 196 channels
        odd = {name: each for name, each in odd.items() if "fine" not in name}
        assert odd.pop("backbone.layer2_outconv2.3") == (196, 256)
    assert len(sides) >= 20 and odd == {}
    if preset not in ("loftr", "loftr_16_4"):
        return  # no channels are added
    with torch.inference_mode(), fixed_program():
        features = model.encode_pixels(torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.float16, device=GPU), None)
        allowed = allowed_cells(model.config, features)
        assert model.match_fixed(features, features, allowed, allowed).points1.shape[2] == 2


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 2e-6), (torch.float16, 1e-3)])
def test_channels_that_are_added_change_nothing(dtype: torch.dtype, off: float) -> None:
    plain, wide = (build_network(PRESETS["loftr"]).eval().requires_grad_(False).backbone for _ in range(2))
    assert isinstance(plain, Backbone) and isinstance(wide, Backbone)
    wide.load_state_dict(plain.state_dict())
    for backbone in (plain, wide):
        backbone.fold_batch_norm()
    wide.pad_channels()
    assert wide.get_submodule("layer2.0.conv1").weight.shape == (200, 128, 3, 3)
    image = rendered_pair(WIDTH, HEIGHT)[0][None, None, :48, :64].to(dtype) / 255
    with fixed_program():
        made = [
            (coarse, backbone.smooth(unsmoothed))
            for backbone in (plain.to(dtype), wide.to(dtype))
            for coarse, unsmoothed in [backbone(image)]
        ]
    for one, other in zip(*made, strict=True):
        assert one.shape == other.shape and float(one.norm()) > 0
        assert float((one.float() - other.float()).norm() / one.float().norm()) < off


def matched(matcher: Matcher, images: list[tuple[Tensor, Tensor | None]], current: ImageFeatures) -> list[Matches]:
    return matcher.match([matcher.complete(matcher.encode(*image)) for image in images], current)


def assert_same(found: Matches, expected: Matches) -> None:
    assert found.cell.tolist() == expected.cell.tolist()
    torch.testing.assert_close(found.points0, expected.points0, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.points1, expected.points1, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.confidence, expected.confidence, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.std, expected.std, rtol=0, atol=1e-3, equal_nan=True)


def corner_mask(height: int, width: int) -> Tensor:
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[: height // 3, : width // 2 + 3] = False
    return mask


EVERY_PRESET = [
    "compact",
    "coarse_lite",
    "small efficient",
    *(pytest.param(name, marks=LONG) for name in ("loftr", "efficient", "efficient_opt", "loftr_ot")),
]


@pytest.mark.parametrize("preset", EVERY_PRESET)
def test_the_fixed_program_finds_the_same_with_masks_blank_images_and_several_keyframes(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "TILE_SCORES", 50_000)  # several tiles
    monkeypatch.setattr(fixed, "MOST_ROWS", 400)  # the fine stage pair by pair
    images = rendered_pair(WIDTH, HEIGHT)
    model, mask = network(preset), corner_mask(HEIGHT, WIDTH)
    matcher = on_gpu(model)
    keyframes = [(images[0], None), (images[0], mask), (torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8), None)]
    for current, chosen in (((images[1], None), keyframes[:1]), ((images[1], mask.flip(1)), keyframes)):
        for _ in range(2 if preset == "compact" else 1):  # recorded, and run again
            found = matched(matcher, chosen, matcher.encode(*current))
        for one, other in zip(found, matched(model, chosen, model.encode(*current)), strict=True):
            assert_same(one, other)
    assert (len(found[0]) > 30 and len(found[1]) > 10) or preset in ("coarse_lite", "small efficient")
    assert len(found[2]) == 0


@pytest.mark.long
@pytest.mark.parametrize("preset", ["compact", "coarse_lite", "efficient", "loftr"])
def test_the_fixed_program_finds_the_same_on_real_images(preset: str, shared_data: Path) -> None:
    first, second = sevenscenes_pair(shared_data)
    model = network(preset)
    if preset == "coarse_lite":
        weights = shared_data / "coarse_loftr" / "LoFTR_teacher.pt"
        model = load_network(preset, weights, CPU, torch.float32)
    matcher = on_gpu(model)
    found = matched(matcher, [(first, None)], matcher.encode(second))[0]
    expected = matched(model, [(first, None)], model.encode(second))[0]
    assert len(expected) > 300
    assert_same(found, expected)


@pytest.mark.parametrize("preset", ["compact", "coarse_lite"])
def test_half_precision_has_no_value_that_is_not_finite(preset: str) -> None:
    images, matcher = rendered_pair(WIDTH, HEIGHT), on_gpu(network(preset, torch.float16))
    mask = corner_mask(HEIGHT, WIDTH)
    current = matcher.encode(images[1], mask)
    for image in ((images[0], None), (images[0], mask), (torch.zeros_like(images[0]), None)):
        keyframe = matcher.encode(*image)
        assert all(torch.isfinite(part).all() for part in (keyframe.tokens, current.tokens))
        (found,) = matcher.match([keyframe], current)
        assert torch.isfinite(found.points1).all() and torch.isfinite(found.confidence).all()
        assert (len(found) > 30) == (preset == "compact" and bool(image[0].any()))


def test_at_most_max_matches_are_kept_the_most_confident_ones() -> None:
    images = shifted_pair()
    every, limited = (
        network("compact"),
        load_network("compact", find_weights("compact", ""), CPU, torch.float32, coarse={"max_matches": 20}),
    )
    (expected,) = matched(every, [(images[0], None)], every.encode(images[1]))
    matcher = on_gpu(limited)
    (found,) = matched(matcher, [(images[0], None)], matcher.encode(images[1]))
    assert len(found) == 20 < len(expected)
    assert torch.isin(expected.confidence.topk(15).indices, torch.isin(expected.cell, found.cell).nonzero()).all()


def test_memory_of_programs_is_given_back_and_they_are_recorded_again() -> None:
    matcher, images = on_gpu(network("compact")), shifted_pair()
    before = matched(matcher, [(images[0], None)], matcher.encode(images[1]))[0]
    matcher.release()
    assert_same(matched(matcher, [(images[0], None)], matcher.encode(images[1]))[0], before)
