"""Storage of keyframes' features: memory on the device, allocated once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from loftr_ros.matcher.interface import ImageFeatures

# The stored parts of an image's features.
_HELD = ("tokens", "fine", "cells", "middle")


class FeatureRing:
    """A fixed number of slots for the features of images of one size.

    Otherwise a stream that adds and drops keyframes for hours would allocate and free tens of megabytes each time.
    """

    def __init__(self, capacity: int) -> None:
        """Allocates nothing yet: the first features define the size of a slot.

        Args:
            capacity: maximum number of features.
        """
        self._capacity = capacity
        self._free = list(range(capacity))[::-1]
        self._kept: dict[str, Tensor] = {}

    def keep(self, features: ImageFeatures) -> ImageFeatures:
        """Copy features into a free slot.

        Args:
            features: completed ones (see `Matcher.complete`), of any size if the ring is empty, else of the size of the
                stored ones.

        Returns:
            The same features as views of the ring, valid until they are freed.

        Raises:
            ValueError: the ring is full, or holds features of another shape.
        """
        if not self._free:
            raise ValueError(f"all {self._capacity} slots of the ring are in use; free one first")
        held = {name: getattr(features, name) for name in _HELD if getattr(features, name) is not None}
        if not _like(self._kept, held):
            if len(self._free) < self._capacity:
                raise ValueError(
                    f"features of shape {tuple(features.tokens.shape)} in a ring that holds others; free those first"
                )
            self._kept = {}  # release memory before allocating as much again
            self._kept = {name: _places(self._capacity, tensor) for name, tensor in held.items()}
        slot = self._free.pop()
        views = {name: self._kept[name][slot : slot + 1].copy_(tensor) for name, tensor in held.items()}
        return replace(features, **views, unsmoothed=None, slot=slot)  # type: ignore[arg-type]

    def free(self, features: ImageFeatures) -> None:
        """Release the slot of features that `keep` returned."""
        if features.slot is None or features.slot in self._free:
            raise ValueError("these features are not in the ring")
        self._free.append(features.slot)


def _places(capacity: int, like: Tensor) -> Tensor:
    """`capacity` slots for tensors of one's shape (1, ...), dtype, device and memory order."""
    order = torch.channels_last if like.ndim == 4 else torch.contiguous_format
    return torch.empty((capacity, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=order)


def _like(places: dict[str, Tensor], features: dict[str, Tensor]) -> bool:
    """Whether slots fit such features."""
    return places.keys() == features.keys() and all(
        (place.shape[1:], place.dtype, place.device)
        == (features[name].shape[1:], features[name].dtype, features[name].device)
        for name, place in places.items()
    )
