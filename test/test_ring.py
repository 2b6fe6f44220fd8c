"""The ring of keyframes' features: slots are allocated once, released and used again."""

from __future__ import annotations

import pytest
import torch

from loftr_ros.matcher.interface import ImageFeatures
from loftr_ros.matcher.ring import FeatureRing


def features(value: float, tokens: int = 12, dtype: torch.dtype = torch.bfloat16) -> ImageFeatures:
    fine = torch.full((1, 5, 6, 8), value, dtype=dtype).to(memory_format=torch.channels_last)
    return ImageFeatures(torch.full((1, tokens, 4), value, dtype=dtype), fine, (3, tokens // 3), (32, 24))


def test_what_is_kept_is_a_copy_of_equal_value_dtype_and_order_in_memory() -> None:
    ring = FeatureRing(2)
    original = features(1.5)
    kept = ring.keep(original)
    original.tokens.zero_()
    assert torch.equal(kept.tokens, features(1.5).tokens)
    assert kept.fine is not None and kept.fine.is_contiguous(memory_format=torch.channels_last)
    assert kept.tokens.dtype == torch.bfloat16
    assert (kept.grid, kept.size) == (original.grid, original.size)


def test_a_place_that_is_given_back_is_the_next_ones_memory() -> None:
    ring = FeatureRing(2)
    first, second = ring.keep(features(1)), ring.keep(features(2))
    address = first.tokens.data_ptr()
    ring.free(first)
    assert ring.keep(features(3)).tokens.data_ptr() == address
    assert torch.equal(second.tokens, features(2).tokens)


def test_a_full_ring_refuses_and_keeps_what_it_has() -> None:
    ring = FeatureRing(1)
    kept = ring.keep(features(1))
    with pytest.raises(ValueError, match="all 1 slots"):
        ring.keep(features(2))
    assert torch.equal(kept.tokens, features(1).tokens)


def test_features_of_another_size_need_an_empty_ring() -> None:
    ring = FeatureRing(2)
    kept = ring.keep(features(1))
    with pytest.raises(ValueError, match="in a ring that holds others"):
        ring.keep(features(2, tokens=24))
    ring.free(kept)
    assert ring.keep(features(2, tokens=24)).tokens.shape == (1, 24, 4)


def test_nothing_is_given_back_twice() -> None:
    ring = FeatureRing(2)
    kept = ring.keep(features(1))
    ring.free(kept)
    with pytest.raises(ValueError, match="not in the ring"):
        ring.free(kept)
    with pytest.raises(ValueError, match="not in the ring"):
        ring.free(features(1))
