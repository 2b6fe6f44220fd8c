"""Untimed work on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_processes(work: Callable[[T], R], items: Sequence[T], what: str) -> list[R]:
    """`work` of all items, in their order; a function of a module that imports quickly."""
    from tqdm import tqdm

    # Not forked: torch's threads do not survive that.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return list(tqdm(pool.map(work, items, chunksize=8), total=len(items), desc=what, disable=None))
