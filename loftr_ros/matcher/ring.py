"""Where the features of keyframes stay: memory on the device, allocated once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from loftr_ros.matcher.interface import ImageFeatures


class FeatureRing:
    """A fixed number of places for the features of images of one size.

    A stream that keeps and drops keyframes for hours would otherwise allocate and free tens of megabytes for each.
    """

    def __init__(self, capacity: int) -> None:
        """Allocates nothing yet: the first features say how large a place is.

        Args:
            capacity: features held, at most.
        """
        self._capacity = capacity
        self._free = list(range(capacity))[::-1]
        self._tokens: Tensor | None = None
        self._fine: Tensor | None = None

    def keep(self, features: ImageFeatures) -> ImageFeatures:
        """Copy features into a free place.

        Args:
            features: completed ones (see `Matcher.complete`), of any size where nothing is held, otherwise of the
                size of what is.

        Returns:
            The same features as views of the ring, valid until they are freed.

        Raises:
            ValueError: the ring is full, or holds features of another shape.
        """
        if not self._free:
            raise ValueError(f"all {self._capacity} places of the ring are taken; free one first")
        if not self._fits(features):
            if len(self._free) < self._capacity:
                raise ValueError(
                    f"features of shape {tuple(features.tokens.shape)} in a ring that holds others; free those first"
                )
            self._tokens = self._fine = None  # given back before as much is asked for
            self._tokens = _places(self._capacity, features.tokens)
            self._fine = None if features.fine is None else _places(self._capacity, features.fine)
        assert self._tokens is not None
        slot = self._free.pop()
        tokens = self._tokens[slot : slot + 1].copy_(features.tokens)
        fine = None
        if self._fine is not None and features.fine is not None:
            fine = self._fine[slot : slot + 1].copy_(features.fine)
        return replace(features, tokens=tokens, fine=fine, unsmoothed=None, slot=slot)

    def free(self, features: ImageFeatures) -> None:
        """Give up the place of features that `keep` returned."""
        if features.slot is None or features.slot in self._free:
            raise ValueError("these features are not in the ring")
        self._free.append(features.slot)

    def _fits(self, features: ImageFeatures) -> bool:
        return _like(self._tokens, features.tokens) and _like(self._fine, features.fine)


def _places(capacity: int, like: Tensor) -> Tensor:
    """`capacity` places for tensors of one's shape (1, ...), dtype, device and order in memory."""
    order = torch.channels_last if like.ndim == 4 else torch.contiguous_format
    return torch.empty((capacity, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=order)


def _like(places: Tensor | None, features: Tensor | None) -> bool:
    if places is None or features is None:
        return places is features
    return (places.shape[1:], places.dtype, places.device) == (features.shape[1:], features.dtype, features.device)
