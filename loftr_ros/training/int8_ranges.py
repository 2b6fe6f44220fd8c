"""Largest activations of `compact`'s backbone on photographs, for its convolutions in int8."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from loftr_ros.matcher.checkpoints.files import load_network
from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.compact.backbone import padded
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.runtime.int8 import FIRST, Int8Ranges
from loftr_ros.training.assets import AssetBank

# Brightness of every second photograph, as a random part of its own: activations of dark images are in range, too.
_DARKEST = 0.2


def photographs(bank: AssetBank, count: int, size: tuple[int, int] = (640, 480)) -> list[NDArray[np.uint8]]:
    """(H, W) gray parts of photographs, always the same ones; every second one is darker.

    Args:
        bank: of the photographs.
        count: of the images, at most.
        size: largest (width, height) of the images, in px.
    """
    rng = np.random.default_rng(0)
    images = []
    for number, chosen in enumerate(rng.permutation(len(bank.photos))[:count]):
        image = bank.levels(bank.photos[chosen])[0]
        height, width = (min(have, most) for have, most in zip(image.shape, size[::-1], strict=True))
        top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
        part = image[top : top + height, left : left + width]
        images.append(part if number % 2 else (part * rng.uniform(_DARKEST, 1)).astype(np.uint8))
    return images


def int8_ranges(weights: Path, images: Iterable[NDArray[np.uint8]]) -> Int8Ranges:
    """Measure the largest input of each convolution.

    Args:
        weights: of `compact`.
        images: (H, W) gray, of any sizes.

    Raises:
        WeightsError: they are of another network, or there is no image.
    """
    network = load_network("auto", weights, torch.device("cpu"), torch.float32)
    if not isinstance(network, Compact):
        raise WeightsError(f"{weights} holds network '{network.config.name}'; int8 is for compact")
    largest: dict[str, float] = {}

    def watch(name: str, layer: nn.Conv2d) -> None:
        def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].max()))

        layer.register_forward_pre_hook(see)

    for name, layer in network.backbone.named_modules():
        if isinstance(layer, nn.Conv2d) and name != FIRST:
            watch(name, layer)
    with torch.inference_mode():
        for image in images:
            network.backbone(padded(torch.from_numpy(image.astype(np.float32))[None, None]))
    if not largest:
        raise WeightsError("no image to measure activations on")
    return Int8Ranges(network.fingerprint, largest)
