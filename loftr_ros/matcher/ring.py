"""Where the features of keyframes stay: memory on the device, allocated once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from loftr_ros.matcher.interface import ImageFeatures

# What of an image's features is kept.
_HELD = ("tokens", "fine", "cells", "middle")


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
        self._kept: dict[str, Tensor] = {}

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
        held = {name: getattr(features, name) for name in _HELD if getattr(features, name) is not None}
        if not _like(self._kept, held):
            if len(self._free) < self._capacity:
                raise ValueError(
                    f"features of shape {tuple(features.tokens.shape)} in a ring that holds others; free those first"
                )
            self._kept = {}  # given back before as much is asked for
            self._kept = {name: _places(self._capacity, tensor) for name, tensor in held.items()}
        slot = self._free.pop()
        views = {name: self._kept[name][slot : slot + 1].copy_(tensor) for name, tensor in held.items()}
        return replace(features, **views, unsmoothed=None, slot=slot)  # type: ignore[arg-type]

    def free(self, features: ImageFeatures) -> None:
        """Give up the place of features that `keep` returned."""
        if features.slot is None or features.slot in self._free:
            raise ValueError("these features are not in the ring")
        self._free.append(features.slot)


def _places(capacity: int, like: Tensor) -> Tensor:
    """`capacity` places for tensors of one's shape (1, ...), dtype, device and order in memory."""
    order = torch.channels_last if like.ndim == 4 else torch.contiguous_format
    return torch.empty((capacity, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=order)


def _like(places: dict[str, Tensor], features: dict[str, Tensor]) -> bool:
    """Whether places are for features such as these."""
    return places.keys() == features.keys() and all(
        (place.shape[1:], place.dtype, place.device)
        == (features[name].shape[1:], features[name].dtype, features[name].device)
        for name, place in places.items()
    )
