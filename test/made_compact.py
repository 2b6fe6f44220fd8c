"""The compact network with random weights that match, for the tests of its runtimes."""

from __future__ import annotations

import torch
from test_compact import blobs, network
from torch import Tensor

from loftr_ros.matcher.compact.network import Compact

# Not a multiple of cells, regions or pooled regions.
WIDTH, HEIGHT = 152, 104


def compact(dtype: torch.dtype = torch.float32) -> Compact:
    """A new network, ready for inference, without a border."""
    return network.__wrapped__(dtype, border=0)


def shifted_pair(width: int = WIDTH, height: int = HEIGHT) -> tuple[Tensor, Tensor]:
    """(H, W) uint8 images; the second is the first shifted by regions: random weights match these."""
    image = blobs(height, width)
    return image, image.roll((16, 32), (0, 1))
