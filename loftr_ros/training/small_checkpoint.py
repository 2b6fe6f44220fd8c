"""A checkpoint of a quarter of its size, for a training that goes on on another machine.

Of a checkpoint's four copies of the weights (the weights, their average, Adam's two moments) the average alone is kept,
in half precision, and of Adam's second moments their mean over every output channel. That is the scale of each
channel's steps, which takes a thousand steps to find again; first moments take ten. What a weights file beside the
checkpoint holds already is not kept twice.

So a training does not go on exactly, as it does from its whole checkpoint, but from its average, which is the better
state, with steps of the right length.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loftr_ros.training.module import TrainingError

_FIRST, _SECOND = "exp_avg", "exp_avg_sq"  # AdamW's names
_NETWORK = "network."  # of `TrainingModule`


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in half precision; norms, biases and counts are few and stay as they are.

    Args:
        tensors: by name.

    Raises:
        TrainingError: a value is too large for half precision.
    """
    found = {}
    for name, value in tensors.items():
        found[name] = value.half() if value.ndim >= 2 and value.dtype == torch.float32 else value
        if value.is_floating_point() and not torch.isfinite(found[name]).all():
            raise TrainingError(f"{name} has values beyond half precision; keep the whole checkpoint")
    return found


def shrink(checkpoint: Path, small: Path, beside: Collection[str]) -> None:
    """Write a small checkpoint.

    Args:
        checkpoint: a training's last.ckpt.
        small: the file to write.
        beside: names of the weights that `grow` will be given, which are not kept here.

    Raises:
        TrainingError: a value is too large for half precision.
    """
    content = _read(checkpoint)
    content.pop("state_dict")
    averaged = content["loftr_ros"]["averaged"]
    own = {name: value for name, value in averaged["state"].items() if name not in beside}
    averaged["state"] = halved(own)
    for optimizer in content["optimizer_states"]:
        for moments in optimizer["state"].values():
            moments[_FIRST] = tuple(moments[_FIRST].shape)
            second = moments[_SECOND]
            moments[_SECOND] = second.mean(dim=tuple(range(1, second.ndim))) if second.ndim > 1 else second
    torch.save(content, small)


def grow(small: Path, checkpoint: Path, beside: Mapping[str, Tensor]) -> None:
    """Write a checkpoint that a training resumes from.

    Args:
        small: a file of `shrink`.
        checkpoint: the file to write.
        beside: the weights whose names `shrink` was given, or their halves.
    """
    content = _read(small)
    averaged = content["loftr_ros"]["averaged"]
    state = {name: _single(value) for name, value in (*averaged["state"].items(), *beside.items())}
    averaged["state"] = state
    content["state_dict"] = {_NETWORK + name: value.clone() for name, value in state.items()}
    for optimizer in content["optimizer_states"]:
        for moments in optimizer["state"].values():
            shape = moments[_FIRST]
            moments[_FIRST] = torch.zeros(shape)
            second = moments[_SECOND]
            moments[_SECOND] = second.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone() if shape else second
    torch.save(content, checkpoint)


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
