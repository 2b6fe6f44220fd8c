"""The compact network with random weights that match, shared by the tests of what runs it."""

from __future__ import annotations

import torch
from test_compact import blobs, network
from torch import Tensor

from loftr_ros.matcher.compact.network import Compact

# Neither cells nor regions nor pooled regions fill it.
WIDTH, HEIGHT = 152, 104


def compact(dtype: torch.dtype = torch.float32) -> Compact:
    """A network of its own, ready to infer, without a border."""
    return network.__wrapped__(dtype, border=0)


def shifted_pair(width: int = WIDTH, height: int = HEIGHT) -> tuple[Tensor, Tensor]:
    """(H, W) uint8 images of which the second is the first, shifted by regions: random weights match such."""
    image = blobs(height, width)
    return image, image.roll((16, 32), (0, 1))
