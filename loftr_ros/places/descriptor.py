"""One vector per image for place recognition, pooled from the coarse features of the matcher.

Which features occur together says more about a place than how often each occurs. So the descriptor is the features'
second moment (bilinear pooling), projected to the directions that discriminate places, which are learned on rendered
ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.checkpoints.files import read_weights, sha256_of
from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.interface import ImageFeatures, Matcher

# Pooling shipped with the package, learned by `loftr_ros train places` with the package's network.
EMBEDDED = Path(__file__).resolve().parent.parent / "weights" / "places.safetensors"
# Value in the file's metadata.
FORMAT = "loftr_ros places"
# Version of the computation here. Descriptors of different versions cannot be compared.
VERSION = "1"

_NAMES = ("mean", "channels", "offset", "projection")
_PLAIN_CHANNELS, _PLAIN_DIMENSION = 48, 256
# Of the square root: five steps find places as well as the exact root, which takes several times as long.
_ITERATIONS = 5
_RIDGE = 1e-3
_LEAST = 1e-6


@dataclass(frozen=True, eq=False)
class Pooling:
    """Parameters of the pooling, all float32; the second moment of c channels has M = c (c + 1) / 2 entries.

    Attributes:
        mean: (C,) mean of tokens of length one; None to use each image's own.
        channels: (C, c) projects centred tokens to the channels whose second moment is taken.
        offset: (M,) mean of the pooled vectors.
        projection: (D, M) projects centred pooled vectors to descriptors.
    """

    mean: Tensor | None
    channels: Tensor
    offset: Tensor
    projection: Tensor

    def to(self, device: torch.device) -> Pooling:
        """The same on a device."""
        mean = None if self.mean is None else self.mean.to(device)
        return Pooling(mean, *(tensor.to(device) for tensor in (self.channels, self.offset, self.projection)))


@dataclass(frozen=True, eq=False)
class PlaceDescriptor:
    """Computes an image's descriptor from its features. It is immutable: several threads may call it.

    Attributes:
        space: identifies network, weights and pooling; descriptors of different spaces cannot be compared.
        pooling: its parameters, on the matcher's device.
    """

    space: str
    pooling: Pooling

    @staticmethod
    def of(matcher: Matcher, numbers: Path = EMBEDDED) -> PlaceDescriptor:
        """The descriptor for a network's features.

        Args:
            matcher: its `encode` computes the features.
            numbers: a file of `loftr_ros train places`. It fits only the network and weights that it was learned with.
                Any other network gets an untrained pooling, which finds fewer places.

        Raises:
            WeightsError: the file is missing, damaged, or of another version.
        """
        pooling, fingerprint = read_pooling(numbers)
        made_of = sha256_of(numbers)
        if fingerprint != matcher.fingerprint:
            pooling, made_of = plain_pooling(matcher.config.coarse_dim), "plain"
        digest = hashlib.sha256(f"{VERSION} {matcher.fingerprint} {made_of}".encode()).hexdigest()
        return PlaceDescriptor(f"{matcher.config.name}-{digest[:12]}", pooling.to(matcher.device))

    @property
    def dimension(self) -> int:
        """Length of the descriptor."""
        return self.pooling.projection.shape[0]

    @torch.inference_mode()
    def __call__(self, features: ImageFeatures) -> NDArray[np.float32]:
        """Describe one image.

        Args:
            features: of `Matcher.encode`, of the same matcher. Cells that are not `usable` are left out.

        Returns:
            (D,) float32 of length one. All images without a usable cell have the same descriptor.
        """
        pooled = second_moment(tokens_taking_part(features), self.pooling.mean, self.pooling.channels)
        described = self.pooling.projection @ (pooled - self.pooling.offset)
        return np.asarray(functional.normalize(described, dim=0).cpu().numpy(), np.float32)


def tokens_taking_part(features: ImageFeatures) -> Tensor:
    """(N, C) float32 tokens of the usable cells."""
    tokens = features.tokens[0].float()
    usable = features.usable
    if usable is not None:
        if usable.shape[1] != len(tokens):  # tokens coarser than cells; as in attention, one usable cell is enough
            cells = usable.view(1, 1, *features.grid).float()
            side = round((usable.shape[1] / len(tokens)) ** 0.5)
            usable = functional.max_pool2d(cells, side).flatten(1) > 0
        tokens = tokens[usable[0]]
    return tokens


def second_moment(tokens: Tensor, mean: Tensor | None, channels: Tensor) -> Tensor:
    """The pooled vector before the projection.

    Args:
        tokens: (N, C) float32.
        mean, channels: see `Pooling`.

    Returns:
        (M,) float32 of length one, or 0 without tokens: the upper triangle of the second moment's square root. The root
        keeps a dominant texture, such as a bare wall, from dominating the descriptor.
    """
    side = channels.shape[1]
    if not len(tokens):
        return tokens.new_zeros(side * (side + 1) // 2)
    # Normalise by the tokens' lengths after the projection, which leaves fewer numbers.
    lengths = torch.linalg.vector_norm(tokens, dim=1, keepdim=True).clamp_min(_LEAST)
    projected = (tokens @ channels) / lengths
    centred = projected - (projected.mean(dim=0) if mean is None else mean @ channels)
    entries, weight, identity = _constants(side, channels.device)
    root = _square_root(centred.T @ centred, identity)
    return functional.normalize(root.flatten().index_select(0, entries) * weight, dim=0)


def _square_root(matrix: Tensor, identity: Tensor) -> Tensor:
    """Approximate square root of a matrix, up to a factor, by Newton-Schulz iterations: products only, no
    decomposition.
    """
    scale = matrix.trace().clamp_min(_LEAST * _LEAST)
    root = matrix / scale + (_RIDGE / len(matrix)) * identity
    root = root / (1 + _RIDGE)  # trace 1, so that all eigenvalues are in the range of convergence
    inverse = identity
    for number in range(_ITERATIONS):
        step = 1.5 * identity - 0.5 * (inverse @ root if number else root)
        root = root @ step
        inverse = step @ inverse if number else step
    return root


def read_pooling(path: Path) -> tuple[Pooling, str]:
    """Read the pooling from a file, and the fingerprint of the network that it was learned with.

    Raises:
        WeightsError: the file is missing, damaged, or of another version.
    """
    file = read_weights(path)
    found = file.metadata.get("format"), file.metadata.get("version")
    if found != (FORMAT, VERSION):
        raise WeightsError(
            f"{path} has format {found}, expected {(FORMAT, VERSION)}: make a new one by `loftr_ros train places`"
        )
    tensors = [file.tensors.get(name) for name in _NAMES]
    if any(tensor is None or not tensor.isfinite().all() for tensor in tensors):
        raise WeightsError(
            f"{path} lacks one of {', '.join(_NAMES)}, or holds values that are not finite: it is damaged"
        )
    return Pooling(*(tensor.float() for tensor in tensors if tensor is not None)), file.metadata.get("network", "")


@lru_cache(maxsize=4)
def plain_pooling(dim: int) -> Pooling:
    """An untrained pooling for tokens of `dim` channels, the same on every machine."""
    channels = min(dim, _PLAIN_CHANNELS)
    moments = channels * (channels + 1) // 2
    return Pooling(
        None,
        _signs(dim, channels) if dim > channels else torch.eye(dim),
        torch.zeros(moments),
        _signs(min(moments, _PLAIN_DIMENSION), moments),
    )


def _signs(rows: int, columns: int) -> Tensor:
    """A random projection of entries 1 and -1 over a root. It uses no library's random numbers, which change between
    versions.
    """
    drawn = np.frombuffer(hashlib.shake_256(f"{rows} {columns}".encode()).digest(rows * columns // 8 + 1), np.uint8)
    bits = torch.from_numpy(np.unpackbits(drawn)[: rows * columns].reshape(rows, columns).astype(np.float32))
    signs: Tensor = (2 * bits - 1) / min(rows, columns) ** 0.5
    return signs


@lru_cache(maxsize=4)
def _constants(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the upper triangle, weights that preserve the matrix's norm, and the identity."""
    row, column = torch.triu_indices(side, side, device=device)
    return side * row + column, torch.where(row == column, 1.0, 2**0.5), torch.eye(side, device=device)
