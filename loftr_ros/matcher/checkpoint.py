"""Weights files: recognised by their contents, refused with what was expected and found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loftr_ros.matcher.config import PRESETS, LoFTRConfig
from loftr_ros.matcher.loftr import LoFTR

# Where published files keep their weights: Lightning's and the official LoFTR's, the low-end network's.
_CONTAINERS = ("state_dict", "model_state_dict", "model")
# DistributedDataParallel prefixes every name, and inside that the official Lightning module's attribute.
_PREFIXES = ("module.", "matcher.")


class WeightsError(RuntimeError):
    """A weights file that is missing, damaged, or of another network; the message says what to do."""


def preset(network: str) -> LoFTRConfig:
    """The preset of a name.

    Raises:
        WeightsError: there is none.
    """
    if network not in PRESETS:
        raise WeightsError(f"network '{network}' is not known; expected one of {', '.join(PRESETS)}")
    return PRESETS[network]


def load_network(network: str, weights: Path, device: torch.device, dtype: torch.dtype) -> LoFTR:
    """Build a preset, load its weights and make it ready to infer.

    Args:
        network: name of a preset.
        weights: a file in any published layout of this network.
        device, dtype: where and in which precision it runs.

    Raises:
        WeightsError: the preset or the file is missing, the file is damaged or of another network.
    """
    config = preset(network)
    model = LoFTR(config)
    load_weights(model, weights)
    return model.prepare(device, dtype)


def load_weights(model: LoFTR, path: Path) -> None:
    """Load a file's weights into a network, every one and nothing else.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """
    config = model.config
    found = {name: value for name, value in read_weights(path).items() if not name.startswith(config.untrained)}
    expected = model.state_dict()
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {tuple(found[name].shape)} (expected {tuple(value.shape)})"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    problems = [
        f"{what} {len(names)}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("of another shape", misshapen), ("not of this network", unexpected))
        if names
    ]
    if problems:
        raise WeightsError(
            f"{path} holds weights of another network than '{config.name}' ({'; '.join(problems)}). "
            f"Give a weights file of '{config.name}', or the network that this file belongs to"
        )
    broken = [name for name, value in found.items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightsError(
            f"{path} holds values that are not finite, in {broken[0]}: the file is damaged; get it again"
        )
    model.load_state_dict(found, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors in a weights file, out of whatever it wraps them in.

    Raises:
        WeightsError: the file is missing, damaged, or holds no weights.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} is not there; set the parameter 'weights' to an existing file")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises whatever it stumbles over in bytes that are no weights
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is not a readable PyTorch weights file: {first_line}. "
            "It is truncated, or of another kind; get it again"
        ) from error
    if isinstance(content, Mapping):
        for container in _CONTAINERS:
            if isinstance(content.get(container), Mapping):
                content = content[container]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        kind = f"keys {list(content)[:5]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise WeightsError(
            f"{path} holds {kind}, no weights by name; expected a state dict, or one under {_CONTAINERS}"
        )
    weights = dict(content)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights
