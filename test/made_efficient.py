"""EfficientLoFTR with made weights, in every layout in which weights of it were published."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.evaluation.made_efficient import made_efficient_state_dict, made_for
from loftr_ros.evaluation.made_weights import Pair
from loftr_ros.matcher.config import EFFICIENT, PRESETS, EfficientBackboneConfig, EfficientConfig
from loftr_ros.matcher.efficient.network import EfficientLoFTR

CPU = torch.device("cpu")
State = dict[str, Tensor]


@cache
def state_dict() -> State:
    """The made weights, under our names; made once a process."""
    return made_efficient_state_dict()


def configured(preset: str = "efficient", anchor: str = "cell", **coarse: float) -> EfficientConfig:
    """A preset with another anchor and other fields of its coarse matching."""
    config = PRESETS[preset]
    assert isinstance(config, EfficientConfig)
    fine = replace(config.fine, anchor=anchor)  # type: ignore[arg-type]
    return replace(config, fine=fine, coarse=replace(config.coarse, **coarse))


def network(
    config: EfficientConfig = EFFICIENT, dtype: torch.dtype = torch.float32, weights: State | None = None
) -> EfficientLoFTR:
    """With made weights, ready to infer."""
    model = EfficientLoFTR(config)
    model.load_state_dict(state_dict() if weights is None else weights)
    return model.prepare(CPU, dtype)


# A small one, for what does not depend on the size.
SMALL = replace(
    EFFICIENT,
    backbone=EfficientBackboneConfig(dims=(16, 16, 24, 64), blocks=(1, 1, 2, 3)),
    transformer=replace(EFFICIENT.transformer, num_heads=4, layers=("self", "cross") * 2),
)


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """(H, W) uint8 with blobs of some pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, height // 5 + 2, width // 5 + 2, generator=generator)
    image = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (image[0, 0].clamp(0, 1) * 255).to(torch.uint8)


@cache
def noise_state_dict(config: EfficientConfig) -> State:
    """Made weights that are calibrated by noise that moves: in a second, for what needs no picture of a room."""
    height, width = 96, 128
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pairs = []
    for seed in range(4):
        moved = (3 + seed, 5 - seed)  # down and to the right
        image = noise(height + 16, width + 16, 100 + seed).float() / 255
        first = image[8 : 8 + height, 8 : 8 + width]
        second = image[8 - moved[0] : 8 - moved[0] + height, 8 - moved[1] : 8 - moved[1] + width]
        points = torch.stack([u + moved[1], v + moved[0]], dim=2).float()
        seen = ((points >= 0) & (points <= torch.tensor([width - 1.0, height - 1.0]))).all(dim=2)
        pairs.append(Pair(first, second, points, seen))
    return made_for(config, pairs, torch.Generator().manual_seed(0))


def small_state_dict() -> State:
    """Made weights of the small one."""
    return noise_state_dict(SMALL)


def small(dtype: torch.dtype = torch.float32, anchor: str = "cell", **coarse: Any) -> EfficientLoFTR:
    """The small one, ready to infer."""
    fine = replace(SMALL.fine, anchor=anchor)  # type: ignore[arg-type]
    model = EfficientLoFTR(replace(SMALL, fine=fine, coarse=replace(SMALL.coarse, **coarse)))
    model.load_state_dict(small_state_dict())
    return model.prepare(CPU, dtype)


def trained_layout(state: State, seed: int = 0) -> State:
    """The authors' layout before their re-parametrisation: each block's branches, which come to its one kernel."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: value for name, value in state.items() if "rbr_reparam" not in name}
    for name, kernel in state.items():
        if not name.endswith("rbr_reparam.weight"):
            continue
        block, kernel = name.removesuffix("rbr_reparam.weight"), kernel.double()
        outputs, inputs = kernel.shape[:2]
        bias = state[f"{block}rbr_reparam.bias"].double()
        small = torch.randn(outputs, inputs, 1, 1, generator=generator)
        branches: dict[str, Tensor | None] = {"rbr_1x1": small}
        # Where the resolution and the width stay.
        if outputs == inputs and not re.fullmatch(r"backbone\.layer[23]\.0\.", block):
            branches["rbr_identity"] = None
        for branch, weight in branches.items():
            norm = _norm(outputs, generator)
            for part, value in norm.items():
                made[f"{block}{branch}{'' if weight is None else '.bn'}.{part}"] = value
            if weight is not None:
                made[f"{block}{branch}.conv.weight"] = (weight / inputs**0.5).float()
                weight = functional.pad(made[f"{block}{branch}.conv.weight"].double(), [1] * 4)
            else:
                weight = functional.pad(torch.eye(outputs).double()[:, :, None, None], [1] * 4)
            gain, shift = _affine(norm)
            kernel = kernel - weight * gain[:, None, None, None]
            bias = bias - shift
        norm = _norm(outputs, generator)
        gain, shift = _affine(norm)
        norm["bias"] = (norm["bias"].double() + bias - shift).float()
        made[f"{block}rbr_dense.conv.weight"] = (kernel / gain[:, None, None, None]).float()
        made |= {f"{block}rbr_dense.bn.{part}": value for part, value in norm.items()}
    return made


def _norm(channels: int, generator: torch.Generator) -> State:
    def noise() -> Tensor:
        return torch.rand(channels, generator=generator)

    return {
        "weight": 0.2 + 0.2 * noise(),
        "bias": 0.2 * noise() - 0.1,
        "running_mean": 0.2 * noise() - 0.1,
        "running_var": 0.5 + noise(),
        "num_batches_tracked": torch.tensor(1),
    }


def _affine(norm: State) -> tuple[Tensor, Tensor]:
    gain = norm["weight"].double() / (norm["running_var"].double() + 1e-5).sqrt()
    return gain, norm["bias"].double() - norm["running_mean"].double() * gain


def hugging_face_layout(trained: State) -> State:
    """The layout of `transformers`, from the authors' before the re-parametrisation."""
    return {_hugging_face_name(name): value for name, value in trained.items()}


def _hugging_face_name(name: str) -> str:
    if match := re.fullmatch(r"backbone\.layer(\d)\.(?:(\d+)\.)?(rbr_\w+)(?:\.(conv|bn))?\.(\w+)", name):
        stage, block, branch, part, what = match.groups()
        place = {"rbr_dense": "conv1.", "rbr_1x1": "conv2.", "rbr_identity": "identity"}[branch]
        place += {"conv": "conv", "bn": "norm", None: ""}[part]
        return f"efficientloftr.backbone.stages.{stage}.blocks.{block or 0}.{place}.{what}"
    if match := re.fullmatch(r"loftr_coarse\.layers\.(\d+)\.(.+)\.(\w+)", name):
        number, part, what = match.groups()
        kind = "cross" if int(number) % 2 else "self"
        inner = {
            "aggregate": "aggregation.q_aggregation",
            "norm1": "aggregation.norm",
            "merge": "attention.o_proj",
            "mlp.0": "mlp.fc1",
            "mlp.2": "mlp.fc2",
            "norm2": "mlp.layer_norm",
        }.get(part, f"attention.{part}")
        layer = f"efficientloftr.local_feature_transformer.layers.{int(number) // 2}"
        return f"{layer}.{kind}_attention.{inner}.{what}"
    return {
        "layer3_outconv": "refinement_layer.out_conv",
        "layer2_outconv": "refinement_layer.out_conv_layers.0.out_conv1",
        "layer2_outconv2.0": "refinement_layer.out_conv_layers.0.out_conv2",
        "layer2_outconv2.1": "refinement_layer.out_conv_layers.0.batch_norm",
        "layer2_outconv2.3": "refinement_layer.out_conv_layers.0.out_conv3",
        "layer1_outconv": "refinement_layer.out_conv_layers.1.out_conv1",
        "layer1_outconv2.0": "refinement_layer.out_conv_layers.1.out_conv2",
        "layer1_outconv2.1": "refinement_layer.out_conv_layers.1.batch_norm",
        "layer1_outconv2.3": "refinement_layer.out_conv_layers.1.out_conv3",
    }[name.removeprefix("fine_preprocess.").rpartition(".")[0]] + f".{name.rpartition('.')[2]}"
