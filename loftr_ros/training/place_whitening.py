"""Learning the parameters of the place descriptor's pooling on views of rendered places."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.interface import Matcher
from loftr_ros.places.descriptor import FORMAT, VERSION, Pooling, second_moment, tokens_taking_part
from loftr_ros.whole_files import replacing

Image = NDArray[np.uint8]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WhiteningConfig:
    """Settings of the learning.

    Attributes:
        channels: number of channels for the second moment: the first principal components of the tokens.
        dimension: of the descriptor.
        first_places: number of places used for the mean and the channels.
        components: principal components of the pooled vectors used to discriminate places.
        shrinkage: part of the covariance within places that is replaced by an isotropic one, 0 to 1.
    """

    channels: int = 48
    dimension: int = 256
    first_places: int = 150
    components: int = 512
    shrinkage: float = 0.1


def learn_pooling(matcher: Matcher, places: Iterable[Sequence[Image]], config: WhiteningConfig) -> Pooling:
    """Learn from several views of each of many places.

    Args:
        matcher: source of the tokens.
        places: at least two (H, W) uint8 views of each.
        config: settings.

    Raises:
        ValueError: there are fewer places than dimensions, or a place has one view only.
    """
    first: list[list[Tensor]] = []
    pooled: list[Tensor] = []
    mean = channels = None
    for number, views in enumerate(places):
        if len(views) < 2:
            raise ValueError(f"place {number} has {len(views)} views; expected at least two")
        tokens = [tokens_taking_part(matcher.encode(torch.from_numpy(view))).cpu() for view in views]
        if mean is not None and channels is not None:
            pooled.append(torch.stack([second_moment(each, mean, channels) for each in tokens]))
        else:
            first.append(tokens)
            if len(first) == config.first_places:
                mean, channels = _principal_channels([each for view in first for each in view], config.channels)
                pooled += [torch.stack([second_moment(each, mean, channels) for each in view]) for view in first]
                first.clear()
        if number % 100 == 99:
            _logger.info("%d places", number + 1)
    if mean is None or channels is None or len(pooled) < config.dimension:
        least = max(config.dimension, config.first_places)
        raise ValueError(f"{len(pooled) or len(first)} places are too few: expected at least {least}")
    offset, projection = discriminative_projection(pooled, config.dimension, config.components, config.shrinkage)
    return Pooling(mean, channels, offset, projection)


def discriminative_projection(
    places: Sequence[Tensor], dimension: int, components: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """The most discriminative directions: linear discriminant analysis after a principal component analysis.

    Args:
        places: the (V, M) vectors of each place's views.
        dimension: D, of the result.
        components: number of principal components kept first.
        shrinkage: see `WhiteningConfig`.

    Returns:
        Mean (M,) and projection (D, M): directions with equal variation within places, the most discriminative first.
    """
    vectors = torch.cat(list(places)).double()
    offset = vectors.mean(dim=0)
    vectors -= offset
    components = min(components, *vectors.shape)
    # Use the smaller of the two products, which have the same eigenvalues.
    if vectors.shape[0] < vectors.shape[1]:
        values, left = torch.linalg.eigh(vectors @ vectors.T)
        values, left = values[-components:], left[:, -components:]
        basis = vectors.T @ left / values.clamp_min(1e-12).sqrt()
    else:
        basis = torch.linalg.eigh(vectors.T @ vectors).eigenvectors[:, -components:]
    groups = [(place.double() - offset) @ basis for place in places]
    apart = torch.cat([group - group.mean(dim=0) for group in groups])
    within = apart.T @ apart / (len(apart) - len(groups))
    even = torch.eye(components, dtype=torch.float64) * within.diagonal().mean()
    values, axes = torch.linalg.eigh((1 - shrinkage) * within + shrinkage * even)
    white = axes / values.sqrt()
    middles = torch.stack([group.mean(dim=0) for group in groups]) @ white
    telling = torch.linalg.eigh(middles.T @ middles).eigenvectors.flip(1)[:, :dimension]
    return offset.float(), (basis @ white @ telling).T.float()


def write_pooling(path: Path, pooling: Pooling, network: str, source: str) -> None:
    """Write the parameters, the large ones in half precision.

    Args:
        path: the file; it is written atomically.
        pooling: with a mean.
        network: fingerprint of the network that it was learned with.
        source: description of the training data, for people.

    Raises:
        WeightsError: the file cannot be written.
    """
    from safetensors.torch import save

    assert pooling.mean is not None
    # A descriptor of length one does not depend on the scale; half precision cannot represent large values.
    projection = pooling.projection / pooling.projection.abs().max()
    tensors = {
        "mean": pooling.mean,
        "channels": pooling.channels,
        "offset": pooling.offset,
        "projection": projection.half(),
    }
    metadata = {"format": FORMAT, "version": VERSION, "network": network, "source": source}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata))
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error


def _principal_channels(tokens: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Mean (C,) and the first principal components (C, c) of tokens normalised to length one."""
    every = functional.normalize(torch.cat(list(tokens)), dim=1).double()
    mean = every.mean(dim=0)
    every -= mean
    axes = torch.linalg.eigh(every.T @ every).eigenvectors
    return mean.float(), axes[:, -count:].float()
