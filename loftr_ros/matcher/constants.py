"""Constants by size and device, made once: on a GPU a dozen small operations cost as much as a layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_KEPT = 64

_caches: list[Any] = []
_local = threading.local()


def made_once(function: Callable[P, R]) -> Callable[P, R]:
    """Cache a function's tensors by its arguments, of which one is the device."""

    @lru_cache(maxsize=_KEPT)
    def make(*args: Any) -> R:
        with torch.inference_mode(False), torch.no_grad():  # shared with training
            return function(*args)  # type: ignore[call-arg]

    _caches.append(make)

    @wraps(function)
    def get(*args: P.args, **kwargs: P.kwargs) -> R:
        made = make(*map(_plain, args))
        for held in getattr(_local, "held", ()):
            held.append(made)
        return made

    return get


def _plain(argument: Any) -> Any:
    """Sizes as numbers: where a graph is traced, they are tensors."""
    if isinstance(argument, tuple):
        return tuple(map(_plain, argument))
    return int(argument) if isinstance(argument, torch.Tensor) else argument


@contextmanager
def holding(held: list[Any]) -> Iterator[None]:
    """Collect the constants that this thread uses meanwhile: a captured graph needs them as long as it lives."""
    lists = _local.held = [*getattr(_local, "held", ()), held]
    try:
        yield
    finally:
        _local.held = lists[:-1]


def forget_constants() -> None:
    """Empty the caches."""
    for cache in _caches:
        cache.cache_clear()
