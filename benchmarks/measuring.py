"""Shared by benchmarks of speed: a report, meters of stages, counted work, the machine and its peak."""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


class Report:
    """Prints lines and stores them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Meter:
    """Sums up measurements of calls by stage."""

    def __init__(self, measure: Callable[[Callable[[], Any]], float] = seconds) -> None:
        """`measure` runs a function once and returns the measured amount."""
        self._measure = measure
        self._total: dict[str, float] = defaultdict(float)

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Measure the calls of an object's attribute from now on."""
        setattr(owner, name, self.measured(stage, getattr(owner, name)))

    def measured(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `work` so that its measurements are added to a stage."""

        def call(*arguments: Any, **options: Any) -> Any:
            results = []
            self._total[stage] += self._measure(lambda: results.append(work(*arguments, **options)))
            return results[0]

        return call

    def take(self) -> dict[str, float]:
        """The sums since the last time."""
        total, self._total = dict(self._total), defaultdict(float)
        return total


def conv_flop(weight: tuple[int, ...], result: tuple[int, ...]) -> int:
    """Multiplications and additions of a convolution, of the shapes (O, I, H, W) and (B, O, H', W')."""
    return 2 * math.prod(weight) * result[0] * math.prod(result[2:])


def gflop(work: Callable[[], Any]) -> float:
    """Multiplications and additions of the convolutions and matrix products that torch dispatches, in 1e9."""
    # torch's counter does not know the operators that call oneDNN directly.
    known = {
        torch.ops.mkldnn._convolution_pointwise: lambda x, weight, *_, out_shape, **__: conv_flop(weight, out_shape),
        torch.ops.mkldnn._convolution_pointwise_: lambda y, x, weight, *_, **__: conv_flop(weight, y),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: 4 * math.prod(q) * k[2],
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        work()
    return counter.get_total_flops() / 1e9


def peak_gflops(dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of a large 3x3 convolution of 128 channels and of a large matrix product, the best of several."""
    convolution = torch.nn.Conv2d(128, 128, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
    image = torch.randn(1, 128, 240, 320).to(dtype).contiguous(memory_format=torch.channels_last)
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    work = {
        "convolution": (2 * 128 * 128 * 9 * 240 * 320, lambda: convolution(image)),
        "matrix product": (2 * 2048**3, lambda: a @ b),
    }
    with torch.inference_mode():
        return {
            name: operations / min(seconds(call) for _ in range(8)) / 1e9 for name, (operations, call) in work.items()
        }


def size_of(text: str) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not WIDTHxHEIGHT") from error
    return width, height


def machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    load = os.getloadavg()[0]
    threads = f"torch {torch.__version__} with {torch.get_num_threads()} threads"
    return f"{model}, {os.cpu_count()} cores, {threads}, load {load:.1f} at the start"
