"""EfficientLoFTR with synthetic weights, in every published layout."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from calibrated_efficient import made_efficient_state_dict, made_for
from calibrated_weights import Pair
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.config import EFFICIENT, PRESETS, EfficientBackboneConfig, EfficientConfig
from loftr_ros.matcher.efficient.network import EfficientLoFTR

CPU = torch.device("cpu")
State = dict[str, Tensor]


@cache
def state_dict() -> State:
    """The synthetic weights, under our names; made once per process."""
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
    """A network with synthetic weights, ready for inference."""
    model = EfficientLoFTR(config)
    model.load_state_dict(state_dict() if weights is None else weights)
    return model.prepare(CPU, dtype)


# A small one, for tests that do not depend on the size.
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
    """Synthetic weights calibrated by moving noise: in a second, for tests without pictures of a room."""
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
    """Synthetic weights of the small one."""
    return noise_state_dict(SMALL)


def small(dtype: torch.dtype = torch.float32, anchor: str = "cell", **coarse: Any) -> EfficientLoFTR:
    """The small one, ready for inference."""
    fine = replace(SMALL.fine, anchor=anchor)  # type: ignore[arg-type]
    model = EfficientLoFTR(replace(SMALL, fine=fine, coarse=replace(SMALL.coarse, **coarse)))
    model.load_state_dict(small_state_dict())
    return model.prepare(CPU, dtype)
