"""Conversion of the published layouts of EfficientLoFTR's weights to this network's layout.

This layout is the authors' after their own re-parametrisation (`reparameter`). The others are their checkpoint as
trained, with the three branches of each RepVGG block, and Hugging Face's, with the branches under other names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

# Prefix that only this network's weights have.
STEM = "backbone.layer0."
_EPSILON = 1e-5  # of the batch norms, in both layouts
_STATISTICS = "weight", "bias", "running_mean", "running_var"

# Positions, which are computed here instead.
_COMPUTED = re.compile(r"rope_pos_enc|rotary_emb")

_ATTENTION = {
    "aggregation.q_aggregation": "aggregate",
    "aggregation.norm": "norm1",
    "attention.q_proj": "q_proj",
    "attention.k_proj": "k_proj",
    "attention.v_proj": "v_proj",
    "attention.o_proj": "merge",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "mlp.layer_norm": "norm2",
}
_BRANCHES = {
    "conv1.conv": "rbr_dense.conv",
    "conv1.norm": "rbr_dense.bn",
    "conv2.conv": "rbr_1x1.conv",
    "conv2.norm": "rbr_1x1.bn",
    "identity": "rbr_identity",
}
_PYRAMID = {"out_conv1": "outconv", "out_conv2": "outconv2.0", "batch_norm": "outconv2.1", "out_conv3": "outconv2.3"}


def _block(match: re.Match[str]) -> str:
    stage, block = int(match[1]), match[2]
    place = f"layer{stage}" if stage == 0 and block == "0" else f"layer{stage}.{block}"
    return f"backbone.{place}.{_BRANCHES[match[3]]}.{match[4]}"


def _layer(match: re.Match[str]) -> str:
    number = 2 * int(match[1]) + (match[2] == "cross")
    return f"loftr_coarse.layers.{number}.{_ATTENTION[match[3]]}.{match[4]}"


def _any_of(names: Mapping[str, str]) -> str:
    return "|".join(map(re.escape, names))


# Hugging Face's names.
_RENAMINGS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(rf"(?:efficientloftr\.)?backbone\.stages\.(\d+)\.blocks\.(\d+)\.({_any_of(_BRANCHES)})\.(\w+)"),
        _block,
    ),
    (
        re.compile(
            r"(?:efficientloftr\.)?local_feature_transformer\.layers\.(\d+)\.(self|cross)_attention\."
            rf"({_any_of(_ATTENTION)})\.(\w+)"
        ),
        _layer,
    ),
    (re.compile(r"refinement_layer\.out_conv\.(\w+)"), lambda match: f"fine_preprocess.layer3_outconv.{match[1]}"),
    (
        re.compile(rf"refinement_layer\.out_conv_layers\.([01])\.({_any_of(_PYRAMID)})\.(\w+)"),
        lambda match: f"fine_preprocess.layer{2 - int(match[1])}_{_PYRAMID[match[2]]}.{match[3]}",
    ),
)


def in_our_layout(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The same weights under our names, and a description of the conversion; empty if there was none.

    Weights of other networks, and incomplete ones, stay unchanged; loading them reports what is missing.
    """
    renamed: dict[str, Tensor] = {}
    steps = []
    for name, value in weights.items():
        renamed[_renamed(name)] = value
    if renamed.keys() != weights.keys():
        steps.append("Hugging Face's names")
    if not any(name.startswith(STEM) for name in renamed):
        return dict(weights), ""
    renamed = {name: value for name, value in renamed.items() if not _COMPUTED.search(name)}
    blocks = [name.removesuffix("rbr_dense.conv.weight") for name in renamed if name.endswith("rbr_dense.conv.weight")]
    folded = False
    for block in blocks:
        folded |= _fold(renamed, block)
    if folded:
        steps.append("RepVGG's branches folded")
    return renamed, ", ".join(steps)


def _renamed(name: str) -> str:
    for pattern, rename in _RENAMINGS:
        match = pattern.fullmatch(name)
        if match:
            return rename(match)
    return name


def _fold(weights: dict[str, Tensor], block: str) -> bool:
    """Replace a block's branches by one equivalent convolution; returns whether all branches were present."""
    dense, small, identity = f"{block}rbr_dense", f"{block}rbr_1x1", f"{block}rbr_identity"
    needed = [f"{branch}.conv.weight" for branch in (dense, small)]
    needed += [f"{branch}.bn.{name}" for branch in (dense, small) for name in _STATISTICS]
    if any(name not in weights for name in needed):
        return False
    kernel = weights[f"{dense}.conv.weight"].double()
    if kernel.ndim != 4 or kernel.shape[2:] != (3, 3):
        return False
    branches = [
        (kernel, f"{dense}.bn"),
        (functional.pad(weights[f"{small}.conv.weight"].double(), [1] * 4), f"{small}.bn"),
    ]
    if f"{identity}.running_var" in weights:
        same = torch.eye(kernel.shape[0], kernel.shape[1], dtype=torch.float64)
        branches.append((functional.pad(same[:, :, None, None], [1] * 4), identity))
    try:
        folded = [
            _with_norm(branch, *(weights[f"{norm}.{name}"].double() for name in _STATISTICS))
            for branch, norm in branches
        ]
        weight, bias = (torch.stack(parts).sum(dim=0).float() for parts in zip(*folded, strict=True))
    except (KeyError, RuntimeError):  # shapes that do not fit: reported with the remaining names
        return False
    for name in [name for name in weights if name.startswith((f"{dense}.", f"{small}.", f"{identity}."))]:
        del weights[name]
    weights[f"{block}rbr_reparam.weight"], weights[f"{block}rbr_reparam.bias"] = weight, bias
    return True


def _with_norm(kernel: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into the convolution before it: kernel (O, I, 3, 3) and bias."""
    gain = weight / (variance + _EPSILON).sqrt()
    return kernel * gain[:, None, None, None], bias - mean * gain
