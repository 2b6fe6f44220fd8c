"""Weights of EfficientLoFTR in other published layouts: the inverse of `checkpoints.efficient`.

For tests, and for benchmarks that run other implementations on synthetic weights.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional


def trained_layout(state: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """The authors' layout before their re-parametrisation: each block's branches, which sum up to its one kernel."""
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
        # Blocks that keep resolution and width.
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


def _norm(channels: int, generator: torch.Generator) -> dict[str, Tensor]:
    def noise() -> Tensor:
        return torch.rand(channels, generator=generator)

    return {
        "weight": 0.2 + 0.2 * noise(),
        "bias": 0.2 * noise() - 0.1,
        "running_mean": 0.2 * noise() - 0.1,
        "running_var": 0.5 + noise(),
        "num_batches_tracked": torch.tensor(1),
    }


def _affine(norm: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    gain = norm["weight"].double() / (norm["running_var"].double() + 1e-5).sqrt()
    return gain, norm["bias"].double() - norm["running_mean"].double() * gain


def hugging_face_layout(trained: dict[str, Tensor]) -> dict[str, Tensor]:
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
