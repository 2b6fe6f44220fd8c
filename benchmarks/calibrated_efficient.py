"""Synthetic weights of EfficientLoFTR, calibrated instead of trained: like `made_weights`, for the same purposes.

The backbone has no last layer that could be calibrated, and softmax attention between squares is not suitable. So the
first self layer's perceptron maps the backbone's output to discriminative features.
"""

from __future__ import annotations

import math

import torch
from calibrated_weights import Pair, calibrated, made_views, random_kernels
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.matcher.config import PRESETS, EfficientConfig
from loftr_ros.matcher.efficient.layers import AggregatedAttention, Maps, RepVGG
from loftr_ros.matcher.efficient.network import EfficientLoFTR

_PAIRS, _SIZE = 3, (192, 144)  # of the calibrating views, px
# Approximate score of a match with itself, before the softmax.
_LOGIT = 60.0
_BACKBONE_RMS = 0.2  # of the cells before the first layer: small relative to its update
_UPDATE = 0.1  # size of the later layers' updates, relative to their input features
_MESSAGE = 0.05  # weight of attended features relative to a cell's own, in the first layer
_FINE_RMS = 2.5  # of the fine features: neither flat heat maps nor single places


def made_efficient_state_dict(preset: str = "efficient", seed: int = 0) -> dict[str, Tensor]:
    """The synthetic weights of a preset; takes a few seconds.

    Args:
        preset: `efficient` or `efficient_opt`.
        seed: of all random numbers.

    Returns:
        fp32 tensors under this network's names, batch norms unfolded. No recorded image is used.

    Raises:
        ValueError: there is no such preset.
    """
    config = PRESETS.get(preset)
    if not isinstance(config, EfficientConfig):
        known = ", ".join(name for name, network in PRESETS.items() if isinstance(network, EfficientConfig))
        raise ValueError(f"weights are not made for '{preset}'; expected one of {known}")
    return made_for(config, made_views(seed, _PAIRS, _SIZE), torch.Generator().manual_seed(seed))


@torch.no_grad()
def made_for(config: EfficientConfig, pairs: list[Pair], generator: torch.Generator) -> dict[str, Tensor]:
    """The synthetic weights of any network of this kind, calibrated by pairs of views of one size."""
    network = EfficientLoFTR(config).eval()
    images = torch.stack([image for pair in pairs for image in (pair.image0, pair.image1)])[:, None]
    made = _make_backbone(network.backbone, images, generator)
    _make_layers(network, made.coarse, pairs, math.sqrt(_LOGIT * config.coarse.temperature), generator)
    grid = (made.coarse.shape[2], made.coarse.shape[3])
    tokens = network.loftr_coarse.encode(made.coarse.flatten(2).transpose(1, 2), grid)
    _make_pyramid(network.fine_preprocess, tokens, made.middle, made.fine, pairs, generator)
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _make_backbone(backbone: RepVGG, images: Tensor, generator: torch.Generator) -> Maps:
    """Random convolutions plus an identity, as a re-parametrised block has, each scaled by its output's statistics.

    Returns:
        The backbone's output for the images.
    """
    x, maps = images, {}
    named = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)]
    for number, (name, conv) in enumerate(named):
        weight = random_kernels(conv.weight, "layer1." if number < 3 or conv.stride[0] == 2 else "", generator)
        if conv.in_channels == conv.out_channels:
            # Deep in the backbone a block is mostly its identity: fourteen random ones in a row are chaotic.
            middle = weight.shape[2] // 2
            weight = 0.35 * weight
            weight[:, :, middle, middle] += torch.eye(conv.in_channels)
        assert conv.bias is not None
        y = functional.conv2d(x, weight, None, conv.stride, conv.padding)
        mean, std = y.mean((0, 2, 3)), y.std((0, 2, 3)).clamp_min(1e-6)
        conv.weight.copy_(weight / std[:, None, None, None])
        # Most values pass the ReLU: otherwise the network is chaotic, and a shift by half a cell changes everything.
        conv.bias.copy_(1.0 - mean / std)
        x = functional.relu(y / std[:, None, None] + conv.bias[:, None, None])
        maps[name.split(".")[0]] = x
    scale = _BACKBONE_RMS / float(x.square().mean().sqrt())
    for parameter in named[-1][1].parameters():
        parameter.mul_(scale)
    return Maps(maps["layer1"], maps["layer2"], scale * x)


def _make_layers(
    network: EfficientLoFTR, coarse: Tensor, pairs: list[Pair], rms: float, generator: torch.Generator
) -> None:
    """Layers whose updates depend on attended features; the first one's update discriminates points."""
    config = network.config
    channels = config.backbone.coarse_dim

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def turn() -> Tensor:
        turned: Tensor = torch.linalg.qr(noise(channels, channels))[0]
        return turned

    project = calibrated(coarse, pairs, config.backbone.stride, 1.0, generator)
    for number, layer in enumerate(network.loftr_coarse.layers):
        assert isinstance(layer, AggregatedAttention)
        first, _, last = layer.mlp
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        window = config.transformer.window
        layer.aggregate.weight.copy_((1 + 0.3 * noise(channels, 1, window, window)) / window**2)
        query, other = turn(), turn()
        layer.q_proj.weight.copy_(2 * query)
        layer.k_proj.weight.copy_(2 * (0.8 * query + 0.6 * other))
        layer.v_proj.weight.copy_(turn())
        layer.merge.weight.copy_(turn())
        layer.norm1.weight.copy_(0.8 + 0.4 * torch.rand(channels, generator=generator))
        layer.norm1.bias.copy_(0.1 * noise(channels))
        size = rms if number == 0 else _UPDATE * rms
        layer.norm2.weight.copy_(size * (0.9 + 0.2 * torch.rand(channels, generator=generator)))
        layer.norm2.bias.copy_(0.05 * size * noise(channels))
        if number:
            first.weight.copy_(noise(2 * channels, 2 * channels) / math.sqrt(channels))
            last.weight.copy_(noise(channels, 2 * channels) / math.sqrt(2 * channels))
            continue
        # Each feature with both signs: the difference of their leaky ReLUs is the feature.
        both = torch.cat([project, -project])
        message = _MESSAGE * noise(channels, channels) / math.sqrt(channels)
        first.weight.copy_(torch.cat([both, torch.cat([message, -message])], dim=1))
        last.weight.copy_(torch.cat([torch.eye(channels), -torch.eye(channels)], dim=1))


def _make_pyramid(
    pyramid: nn.Module, tokens: Tensor, middle: Tensor, fine: Tensor, pairs: list[Pair], generator: torch.Generator
) -> None:
    """Random convolutions, and the last one calibrated."""
    for name, module in pyramid.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = random_kernels(module.weight, "outconv", generator)
            # Little weight for the cells' part: it is blurred, and constant within a cell.
            module.weight.copy_(weight * (0.1 if name == "layer3_outconv" else 1.0))
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(0.8 + 0.4 * torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(1 + 0.2 * torch.randn(module.bias.shape, generator=generator))
            module.momentum = None  # the statistics are those of the one batch
            module.reset_running_stats()
    pyramid.train()
    made = pyramid(tokens, middle, fine)
    pyramid.eval()
    last = pyramid.get_submodule("layer1_outconv2.3")
    assert isinstance(last, nn.Conv2d)
    project = calibrated(made, pairs, 2, _FINE_RMS, generator)
    # Proportional to the square root of the channels, because the scores are divided by their number.
    project *= math.sqrt(made.shape[1]) / _FINE_RMS
    last.weight.copy_(torch.einsum("oi,ihwk->ohwk", project, last.weight))
