"""Published weights of a teacher of features, as a state dict."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from loftr_ros.matcher.checkpoints.recognition import WeightsError


class TeacherNetwork(nn.Module):
    """A teacher of features: always in evaluation mode.

    Attributes:
        channels: of a feature.
    """

    channels: int

    def train(self, mode: bool = True) -> TeacherNetwork:
        """Stay in evaluation mode."""
        return super().train(False)


def load_teacher_weights(network: nn.Module, path: Path, setting: str, name: str, how_to_get_it: str) -> None:
    """Load what the network has of a state dict, which may hold more.

    Args:
        network: gets the weights.
        path: of the file.
        setting, name, how_to_get_it: of the teacher, for errors.

    Raises:
        WeightsError: the file is missing, is no state dict, or lacks a weight.
    """
    try:
        state = torch.load(path.expanduser(), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{setting}: {path} does not exist; {how_to_get_it}") from error
    except Exception as error:  # any error of the loader
        raise WeightsError(f"{setting}: {path} cannot be read as PyTorch weights: {error}") from error
    wanted = network.state_dict()
    if not isinstance(state, dict) or any(
        not isinstance(state.get(key), Tensor) or state[key].shape != value.shape for key, value in wanted.items()
    ):
        raise WeightsError(f"{setting}: {path} has no weights of {name}; {how_to_get_it}")
    network.load_state_dict({key: state[key] for key in wanted})
