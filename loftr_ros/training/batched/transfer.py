"""Arrays of the host on a device, without waiting for what the device does meanwhile."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device; on the CPU it shares the array's memory.

    A GPU fetches it by itself from pinned memory; from other memory the host would wait for all work before it.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
