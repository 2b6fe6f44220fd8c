"""The 2-D sinusoidal positional encoding (paper, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def position_encoding(channels: int, height: int, width: int, slip: bool) -> Tensor:
    """Sine and cosine of the cell's column and row at falling frequencies.

    Positions count from 1, channels go (sin x, cos x, sin y, cos y) for each frequency, as published.

    Args:
        channels: C, a multiple of 4.
        height, width: the grid.
        slip: reproduce the published code's slip, which divides -ln(10000) / C by 2 with rounding down, so that every
            frequency is a power of 1 / e. Weights trained with the slip need it.

    Returns:
        (C, height, width) float32.
    """
    rate = (-math.log(10000.0) / channels // 2) if slip else (-math.log(10000.0) / (channels // 2))
    frequencies = torch.exp(torch.arange(0, channels // 2, 2, dtype=torch.float32) * rate)[:, None, None]
    x = torch.arange(1, width + 1, dtype=torch.float32)[None, None, :] * frequencies
    y = torch.arange(1, height + 1, dtype=torch.float32)[None, :, None] * frequencies
    encoding = torch.empty(channels, height, width)
    encoding[0::4] = torch.sin(x)
    encoding[1::4] = torch.cos(x)
    encoding[2::4] = torch.sin(y)
    encoding[3::4] = torch.cos(y)
    return encoding
