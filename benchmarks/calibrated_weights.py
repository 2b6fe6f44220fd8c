"""Synthetic weights of the full networks, calibrated instead of trained: for tests and benchmarks without a published
file.

Random convolutions, batch norms calibrated on views of the rendered room, and last layers that weight each direction by
its stability between two views of the same point. They match real video: hundreds of matches per pair, most of them
right, with confidences from the threshold up to 1 and a fine stage that moves points. They cannot compete with trained
weights, and only tests, benchmarks and examples should load them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.matcher.config import PRESETS, LoFTRConfig, TransformerConfig
from loftr_ros.matcher.loftr.network import LoFTR

_SIZE = (320, 240)  # of the calibrating views, px
_PAIRS, _STEP, _APART = 4, 40, 6  # pairs, frames from one pair to the next, and between the two views of one

# Approximate score of a match with itself, before the softmax: high enough to stand out among 4800 others.
_LOGIT = 40.0
_FINE_RMS = 2.5  # of the fine features: the heat maps of the fine stage are neither flat nor a single place
_UPDATE = 0.15  # size of a transformer layer's update, relative to its input features
_SHRINKAGE = 0.5  # of the scatter between views towards a multiple of the identity, relative to the whole scatter


class Pair(NamedTuple):
    """Two views: (H, W) float32 in [0, 1]; positions of the first view's pixels in the second, and their visibility."""

    image0: Tensor
    image1: Tensor
    points1: Tensor  # (H, W, 2) float32 px
    seen: Tensor  # (H, W) bool


def made_state_dict(preset: str, seed: int = 0) -> dict[str, Tensor]:
    """The synthetic weights of a preset; takes a few seconds.

    Args:
        preset: name of a network with a fine stage: `loftr`, `loftr_new`, `loftr_ot` or `loftr_16_4`.
        seed: of all random numbers.

    Returns:
        fp32 tensors under the published names, batch norms unfolded. No recorded image is used.

    Raises:
        ValueError: there is no such preset, or it has no fine stage.
    """
    config = PRESETS.get(preset)
    if not isinstance(config, LoFTRConfig) or config.fine is None:
        known = ", ".join(
            name for name, network in PRESETS.items() if isinstance(network, LoFTRConfig) and network.fine is not None
        )
        raise ValueError(f"weights are not made for '{preset}'; expected one of {known}")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network = LoFTR(config).eval()
        pairs = made_views(seed)
        rms = _coarse_rms(config)
        _make_backbone(network.backbone, config, pairs, rms, generator)
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    coarse_dim, fine_dim = config.backbone.coarse_dim, config.backbone.fine_dim
    weights.update(_transformer("loftr_coarse", coarse_dim, config.transformer, rms, generator))
    weights.update(_transformer("loftr_fine", fine_dim, config.fine.transformer, _FINE_RMS, generator))
    weights.update(_fine_preprocess(coarse_dim, fine_dim, rms, generator))
    if config.coarse.method == "optimal_transport":
        # For cells without a similar one in the other image: above the sum of many weak similarities.
        weights["coarse_matching.bin_score"] = torch.tensor(_LOGIT / 4)
    return weights


def _coarse_rms(config: LoFTRConfig) -> float:
    """Root mean square of the coarse features at which a feature scores `_LOGIT` with itself."""
    temperature = config.coarse.temperature if config.coarse.method == "dual_softmax" else 1.0
    return math.sqrt(_LOGIT * temperature)


def made_views(seed: int, count: int = _PAIRS, size: tuple[int, int] = _SIZE) -> list[Pair]:
    """`count` pairs of views of the rendered room, of a size in px."""
    # Here, since the renderer needs more than torch.
    from loftr_ros.worlds.scene import Scene, default_camera, trajectory

    scene, camera = Scene(seed), default_camera(*size)
    poses = trajectory(count * _STEP + _APART, seed=seed)
    v, u = np.mgrid[0 : camera.height, 0 : camera.width]
    focal, centre = camera.matrix[[0, 1], [0, 1]], camera.matrix[:2, 2]
    rays = np.concatenate([(np.stack([u, v], -1) - centre) / focal, np.ones((*u.shape, 1))], -1)
    pairs = []
    for first in range(0, count * _STEP, _STEP):
        pose0, pose1 = poses[first], poses[first + _APART]
        view0, view1 = scene.render(camera, pose0), scene.render(camera, pose1)
        world = (rays * view0.depth[..., None]) @ pose0[:3, :3].T + pose0[:3, 3]
        seen_from_1 = (world - pose1[:3, 3]) @ pose1[:3, :3]
        depth = seen_from_1[..., 2]
        points = seen_from_1[..., :2] / depth[..., None] * focal + centre
        inside = (depth > 0) & (points >= 0).all(-1) & (points <= np.array(size) - 1.0).all(-1)
        column, row = np.where(inside[..., None], points, 0).round().astype(int).transpose(2, 0, 1)
        seen = inside & (np.abs(view1.depth[row, column] - depth) < 0.03 * depth)
        image0, image1 = (torch.from_numpy(view.image).float() / 255 for view in (view0, view1))
        pairs.append(Pair(image0, image1, torch.from_numpy(points).float(), torch.from_numpy(seen)))
    return pairs


def _make_backbone(
    backbone: nn.Module, config: LoFTRConfig, pairs: list[Pair], rms: float, generator: torch.Generator
) -> None:
    """Random convolutions, with the two that output features calibrated.

    One pass over the views in training mode sets the statistics of each batch norm. It stops at the outputs of the
    coarse and the fine features, to calibrate their convolutions.
    """
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(random_kernels(module.weight, name, generator))
        elif isinstance(module, nn.BatchNorm2d):
            # Inside of a block most values pass the ReLU. Otherwise the network is chaotic, and a shift by half a cell
            # would change everything.
            shift = 0.0 if name == "bn1" or "downsample" in name or name.endswith(".1.bn2") else 1.0
            module.weight.copy_(0.8 + 0.4 * torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(shift + 0.2 * torch.randn(module.bias.shape, generator=generator))
            module.momentum = None  # the statistics are those of the one batch
            module.reset_running_stats()
    images = torch.stack([image for pair in pairs for image in (pair.image0, pair.image1)])[:, None]
    level, top = config.backbone.fine_level, len(config.backbone.block_dims)
    assert level is not None
    part = backbone.get_submodule
    backbone.train()
    x = torch.relu(part("bn1")(part("conv1")(images)))
    stages = {}
    for i in range(1, top + 1):
        x = stages[i] = part(f"layer{i}")(x)
    out = part(f"layer{top}_outconv")
    assert isinstance(out, nn.Conv2d)
    project = calibrated(x, pairs, config.backbone.stride, rms, generator)
    out.weight.copy_(project[:, :, None, None])
    x = out(x)
    for i in range(top - 1, level - 1, -1):
        lateral = part(f"layer{i}_outconv")(stages[i])
        x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        x = part(f"layer{i}_outconv2")(lateral + x[..., : lateral.shape[2], : lateral.shape[3]])
    last = part(f"layer{level}_outconv2.3")
    assert isinstance(last, nn.Conv2d)
    project = calibrated(x, pairs, config.backbone.fine_stride, _FINE_RMS, generator)
    last.weight.copy_(torch.einsum("oi,ihwk->ohwk", project, last.weight))
    backbone.eval()


def random_kernels(like: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Weights of a convolution's shape; its name gives its position in the network."""
    outputs, inputs, side, _ = like.shape
    weight = torch.randn(like.shape, generator=generator)
    if inputs == 1:
        # The stem: smooth patches of several sizes without a mean, robust against noise and brightness.
        reach = torch.arange(side) - side // 2
        blur = torch.exp(-(reach**2) / (2 * 1.5**2))
        blur = blur / blur.sum()
        weight = functional.conv2d(functional.pad(weight, [side // 2] * 4), (blur[:, None] * blur)[None, None])
        sigma = 0.7 + 1.3 * torch.rand(outputs, 1, generator=generator)
        window = torch.exp(-(reach**2) / (2 * sigma**2))
        weight = weight * (window[:, :, None] * window[:, None, :])[:, None]
        weight = weight - weight.mean((2, 3), keepdim=True)
    elif side == 3:
        taps = torch.tensor([0.5, 1.0, 0.5])
        smooth = taps[:, None] * taps
        if name.startswith("layer1."):
            # Mostly a blur of mixed channels at first, so that every second place represents its surroundings for the
            # stages below.
            weight = (torch.randn(outputs, inputs, 1, 1, generator=generator) * smooth + 0.3 * weight) * smooth
        elif "outconv" in name:
            weight = weight * smooth
        else:
            weight = weight * smooth**0.3
    norm: Tensor = weight.flatten(1).norm(dim=1)
    return weight * (math.sqrt(2) / norm[:, None, None, None])


def calibrated(features: Tensor, pairs: list[Pair], stride: int, rms: float, generator: torch.Generator) -> Tensor:
    """(C, C) map to discriminative features of the given root mean square.

    It removes the mean, which all features share, divides by the scatter between two views of one point, and rotates
    the axes randomly. It uses only functions of symmetric matrices: the signs of eigenvectors, which differ between
    machines, do not matter.
    """
    step = min(stride, 6)
    first, second = [], []
    for i, pair in enumerate(pairs):
        seen = pair.seen[::step, ::step]
        v, u = torch.meshgrid(*(torch.arange(0, side, step) for side in pair.seen.shape), indexing="ij")
        first.append(_sampled(features[2 * i], torch.stack([u, v], -1)[seen].float(), stride))
        second.append(_sampled(features[2 * i + 1], pair.points1[::step, ::step][seen], stride))
    a, b = torch.cat(first).double(), torch.cat(second).double()
    channels = a.shape[1]
    mean = torch.cat([a, b]).mean(0)
    mean = mean / mean.norm()
    centring = torch.eye(channels, dtype=torch.float64) - mean[:, None] * mean
    between, whole = (a - b) @ centring, torch.cat([a, b]) @ centring
    scatter = between.T @ between / (2 * len(between))
    floor = _SHRINKAGE * whole.square().mean()
    values, vectors = torch.linalg.eigh(scatter + floor * torch.eye(channels, dtype=torch.float64))
    turn = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64, generator=generator))[0]
    project = turn @ (vectors * values.rsqrt()) @ vectors.T @ centring
    scale = float(rms / (torch.cat([a, b]) @ project.T).square().mean().sqrt())
    calibrated: Tensor = (project * scale).float()
    return calibrated


def _sampled(features: Tensor, points: Tensor, stride: int) -> Tensor:
    """(N, C) samples of a map (C, H, W) at points (N, 2) px; cell (x, y) is at pixel (stride x, stride y)."""
    size = torch.tensor([features.shape[2] - 1, features.shape[1] - 1])
    grid = points / stride / size * 2 - 1
    sampled = functional.grid_sample(features[None], grid[None, None], padding_mode="border", align_corners=True)
    points_last: Tensor = sampled[0, :, 0].T
    return points_last


def _transformer(
    prefix: str, channels: int, config: TransformerConfig, rms: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Layers whose updates depend on attended features, and which preserve similarity."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {}
    for i in range(len(config.layers)):
        query, other, value, merge = (torch.linalg.qr(noise(channels, channels))[0] for _ in range(4))
        layer = {
            # Queries and keys are similar enough for a token to attend mostly to similar ones.
            "q_proj.weight": query * (2 / rms),
            "k_proj.weight": (0.8 * query + 0.6 * other) * (2 / rms),
            "v_proj.weight": value,
            "merge.weight": merge,
            "mlp.0.weight": noise(2 * channels, 2 * channels) / math.sqrt(channels),
            "mlp.2.weight": noise(channels, 2 * channels) / math.sqrt(2 * channels),
        }
        for norm, size in (("norm1", rms), ("norm2", _UPDATE * rms)):
            layer[f"{norm}.weight"] = size * (0.8 + 0.4 * torch.rand(channels, generator=generator))
            layer[f"{norm}.bias"] = 0.1 * size * noise(channels)
        weights.update({f"{prefix}.layers.{i}.{name}": value for name, value in layer.items()})
    return weights


def _fine_preprocess(coarse: int, fine: int, rms: float, generator: torch.Generator) -> dict[str, Tensor]:
    """The fine features, with a part of each other's and of the coarse ones'."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mixing = 0.3 / math.sqrt(fine)
    merge = torch.cat([torch.eye(fine) + mixing * noise(fine, fine), mixing * noise(fine, fine)], dim=1)
    return {
        "fine_preprocess.down_proj.weight": noise(fine, coarse) / math.sqrt(coarse) * (_FINE_RMS / rms),
        "fine_preprocess.down_proj.bias": 0.1 * noise(fine),
        "fine_preprocess.merge_feat.weight": merge,
        "fine_preprocess.merge_feat.bias": 0.1 * noise(fine),
    }
