"""A network on a GPU: fixed programs, captured as CUDA graphs, with one wait of the host a frame."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loftr_ros.matcher.build import Network
from loftr_ros.matcher.cells import allowed_cells, cells_taking_part, in_grid, on_usable
from loftr_ros.matcher.config import NetworkConfig
from loftr_ros.matcher.constants import holding
from loftr_ros.matcher.faults import is_lost, is_out_of_memory
from loftr_ros.matcher.fixed import fixed_program
from loftr_ros.matcher.interface import ImageFeatures, Lenient, Matcher, Matches, lenient_matching

# Maximum number of programs, each for one image size, number of keyframes, and presence of masks.
_KEPT = 32
# Buffers for images on their way to the GPU: one is written while others may still be read.
_UPLOADS = 3
# The parts of features that are tensors.
_ENCODED = ("tokens", "fine", "cells", "middle")
_TENSORS = (*_ENCODED, "usable", "pixels")

_logger = logging.getLogger(__name__)


class Device(Protocol):
    """A GPU's queue. Tests have another one, without a GPU."""

    device: torch.device

    def queue(self) -> Any:
        """Context in which operations go to the queue, after all operations that the caller has started so far."""

    def record(self, program: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """Run a program, and capture it: a function that runs it again, and its results, always the same memory."""

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the GPU can copy while the host goes on."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy between a buffer of the host and the GPU, in the queue."""

    def mark(self) -> Any:
        """A mark in the queue."""

    def wait(self, mark: Any) -> None:
        """Wait until the queue has reached a mark."""

    def fetch(self, buffer: Tensor, mark: Any) -> NDArray[Any]:
        """Wait until the queue has reached a mark, and read a buffer of the host that was written before it."""

    def seconds(self, first: Any, last: Any) -> float:
        """Between two marks that the queue has reached."""

    def empty_cache(self) -> None:
        """Give memory that is not used back to the GPU."""


class CudaDevice:
    """CUDA, with a stream of its own."""

    def __init__(self, device: torch.device, *, graphs: bool = True) -> None:
        """Create the stream.

        Args:
            device: CUDA's.
            graphs: capture programs as CUDA graphs; else they are launched again each time.
        """
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._graphs = graphs
        self._pool: Any = None

    @contextmanager
    def queue(self) -> Iterator[None]:
        """See `Device`."""
        callers = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(callers)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield
        callers.wait_stream(self._stream)

    def record(self, program: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """See `Device`. The graphs share one pool of memory: they never run at the same time."""
        made = program()  # creates constants, and lets the libraries choose kernels
        if self._graphs:
            program()
            torch.cuda.synchronize(self.device)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may allocate meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    captured = program()
            except RuntimeError as error:
                if is_out_of_memory(error) or is_lost(error):
                    raise
                _logger.warning("launched one by one, because this program cannot be captured: %s", error)
            else:
                self._pool = graph.pool()
                graph.replay()
                return graph.replay, captured

        def again() -> None:
            for kept, tensor in zip(made, program(), strict=True):
                kept.copy_(tensor)

        return again, made

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Device`."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `Device`."""
        target.copy_(source, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """See `Device`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        """See `Device`."""
        mark.synchronize()

    def fetch(self, buffer: Tensor, mark: torch.cuda.Event) -> NDArray[Any]:
        """See `Device`."""
        mark.synchronize()
        return buffer.numpy()

    def seconds(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """See `Device`."""
        return first.elapsed_time(last) / 1e3

    def empty_cache(self) -> None:
        """See `Device`."""
        torch.cuda.empty_cache()


class _Program(NamedTuple):
    """A recorded program: its inputs' and results' memory, a function that runs it, and constants that it needs."""

    inputs: dict[str, Tensor]
    run: Callable[[], None]
    results: tuple[Tensor, ...]
    held: list[Any]


class GpuMatcher:
    """A network on a GPU with the `Matcher` interface. Several threads may use it.

    Attributes:
        network: the network.
        waited_for_encoding: seconds that the last `match` waited for encoding, which goes on after `encode` returns.
    """

    def __init__(self, network: Network, device: Device) -> None:
        """Use a prepared network.

        Args:
            network: on the GPU.
            device: its queue.
        """
        self.network, self._queue = network, device
        self.waited_for_encoding = 0.0
        self._enqueuing, self._matching = threading.Lock(), threading.Lock()
        self._encoded: list[str] = []
        self._programs: OrderedDict[Hashable, _Program] = OrderedDict()
        self._uploads: dict[Hashable, list[tuple[Tensor, Any]]] = {}
        self._results: dict[tuple[int, ...], Tensor] = {}

    @property
    def config(self) -> NetworkConfig:
        """See `Matcher`."""
        return self.network.config

    @property
    def fingerprint(self) -> str:
        """See `Matcher`."""
        return self.network.fingerprint

    @property
    def has_fine_stage(self) -> bool:
        """See `Matcher`."""
        return self.network.has_fine_stage

    @property
    def cell_size(self) -> int:
        """See `Matcher`."""
        return self.network.cell_size

    @property
    def cell_offset(self) -> float:
        """See `Matcher`."""
        return self.network.cell_offset

    @property
    def fixed_size(self) -> None:
        """None: images of any size are supported."""
        return None

    @property
    def device(self) -> torch.device:
        """See `Matcher`."""
        return self._queue.device

    @property
    def dtype(self) -> torch.dtype:
        """See `Matcher`."""
        return self.network.dtype

    @torch.inference_mode()
    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        """See `StreamingNetwork.encode`. It returns before the GPU has finished."""
        self.network.check_image(image)
        image = image if image.dtype == torch.uint8 else image.float()
        usable = None if usable is None else usable.to(torch.bool)
        cells = cells_taking_part(image, usable, self.cell_size)
        grid = self.config.grid(*image.shape)
        given = {"image": image}
        if cells is not None:
            shape = -(-image.shape[0] // self.cell_size), -(-image.shape[1] // self.cell_size)
            given["usable"] = in_grid(cells, shape, grid)

        def program(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
            pixels = self.network.gray_levels(inputs["image"]).contiguous(memory_format=torch.channels_last)
            made = self.network.encode_pixels(pixels, inputs.get("usable"))
            self._encoded = [name for name in _ENCODED if getattr(made, name) is not None]
            return tuple(getattr(made, name) for name in self._encoded)

        with self._enqueuing, self._queue.queue():
            made = self._run("encode", given, program)
            own: dict[str, Any] = {"fine": None}
            own |= {name: tensor.clone() for name, tensor in zip(self._encoded, made, strict=True)}
            masks = {
                name: None if mask is None else self._upload(name, mask, self._place(mask))
                for name, mask in (("usable", given.get("usable")), ("pixels", usable))
            }
            return ImageFeatures(grid=grid, size=(image.shape[1], image.shape[0]), **own, **masks)  # type: ignore[arg-type]

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        """Nothing to complete."""
        return features

    @torch.inference_mode()
    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """See `StreamingNetwork.match`; it waits once for all keyframes of one size."""
        results: list[Matches | None] = [None] * len(keyframes)
        with self._matching:
            self.waited_for_encoding = 0.0
            for grid in {keyframe.grid for keyframe in keyframes}:
                indices = [i for i, keyframe in enumerate(keyframes) if keyframe.grid == grid]
                found = self._match([keyframes[i] for i in indices], current)
                for i, matches in zip(indices, found, strict=True):
                    results[i] = matches
        return [matches for matches in results if matches is not None]

    @property
    def match_leniently(self) -> Lenient | None:
        """See `lenient_matching`; operation by operation, since single pairs come too rarely for a recorded program."""
        lenient = lenient_matching(self.network)
        if lenient is None:
            return None

        def match(keyframe: ImageFeatures, current: ImageFeatures, threshold: float) -> Matches:
            with self._matching, self._enqueuing, self._queue.queue():
                return lenient(keyframe, current, threshold)

        return match

    def release(self) -> None:
        """Give the memory of all programs back; later calls record them again."""
        with self._matching, self._enqueuing:
            self._programs.clear()
            self._uploads.clear()
            self._results.clear()
        self._queue.empty_cache()

    def _match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """Match with keyframes of equal size."""
        first, count = keyframes[0], len(keyframes)
        masks = {
            name: any(getattr(each, name) is not None for each in (*keyframes, current))
            for name in ("usable", "pixels")
        }
        given: dict[str, Tensor | list[Tensor]] = {}
        for name in _TENSORS:
            for end, images in ((0, list(keyframes)), (1, [current])):
                if masks.get(name, getattr(first, name) is not None):
                    given[f"{name}{end}"] = [self._part(each, name) for each in images]

        shapes = (first.grid, first.size), (current.grid, current.size)

        def program(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
            pair = [
                ImageFeatures(grid=grid, size=size, **{name: inputs.get(f"{name}{end}") for name in _TENSORS})  # type: ignore[arg-type]
                for end, (grid, size) in enumerate(shapes)
            ]
            allowed = (allowed_cells(self.config, image) for image in pair)
            found = self.network.match_fixed(pair[0], pair[1], *allowed)
            confidence = found.confidence
            for image, points in zip(pair, (found.points0, found.points1), strict=True):
                if image.pixels is not None:
                    confidence = torch.where(on_usable(points, image.pixels), confidence, 0.0)
            parts = found.cell0, found.points0, found.points1, confidence, found.std
            return (torch.cat([part.float() if part.ndim == 3 else part.float()[..., None] for part in parts], dim=2),)

        with self._enqueuing, self._queue.queue():
            begin = self._queue.mark()
            (packed,) = self._run(("match", count, first.size, current.size), given, program)
            shape = tuple(packed.shape)
            if shape not in self._results:
                self._results[shape] = self._queue.host_buffer(shape, torch.float32)
            self._queue.copy(self._results[shape], packed)
            end = self._queue.mark()
        start = time.perf_counter()
        rows = self._queue.fetch(self._results[shape], end)
        self.waited_for_encoding += max(0.0, time.perf_counter() - start - self._queue.seconds(begin, end))
        return [_unpacked(each) for each in rows]

    def _run(
        self,
        name: Hashable,
        given: dict[str, Any],
        program: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """Run a program; its results are overwritten by its next run.

        Args:
            name: of the program.
            given: its inputs: tensors to upload, or lists of features that follow each other.
            program: computes results from inputs on the GPU.
        """
        key = name, *((part, *_layout(value)) for part, value in given.items())
        recorded = self._programs.get(key)
        if recorded is None:
            while len(self._programs) >= _KEPT:
                self._programs.popitem(last=False)
            inputs = {part: self._place(value) for part, value in given.items()}
            self._fill(inputs, given)
            held: list[Any] = []

            def fixed() -> tuple[Tensor, ...]:
                # TF32 would be coarser than the fp32 that islands need.
                with fixed_program(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
                    return program(inputs)

            with holding(held):
                run, results = self._queue.record(fixed)
            self._programs[key] = _Program(inputs, run, results, held)
            return results
        self._programs.move_to_end(key)
        self._fill(recorded.inputs, given)
        recorded.run()
        return recorded.results

    def _place(self, value: Tensor | list[Tensor]) -> Tensor:
        """Memory on the GPU for an input."""
        like = value[0] if isinstance(value, list) else value
        shape = (len(value), *like.shape[1:]) if isinstance(value, list) else tuple(like.shape)
        order = torch.channels_last if isinstance(value, list) and like.ndim == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=like.dtype, device=self._queue.device, memory_format=order)

    def _fill(self, inputs: dict[str, Tensor], given: dict[str, Any]) -> None:
        for part, value in given.items():
            if isinstance(value, list):
                for place, tensor in zip(inputs[part].split(1), value, strict=True):
                    place.copy_(tensor)
            else:
                self._upload(part, value, inputs[part])

    def _upload(self, name: str, tensor: Tensor, place: Tensor) -> Tensor:
        """Copy a tensor to a place on the GPU without waiting."""
        if tensor.device.type != "cpu":
            return place.copy_(tensor)
        buffers = self._uploads.setdefault((name, tensor.shape, tensor.dtype), [])
        if len(buffers) < _UPLOADS:
            buffer = self._queue.host_buffer(tensor.shape, tensor.dtype)
        else:
            buffer, copied = buffers.pop(0)
            self._queue.wait(copied)  # three images ago
        self._queue.copy(place, buffer.copy_(tensor))
        buffers.append((buffer, self._queue.mark()))
        return place

    def _part(self, features: ImageFeatures, name: str) -> Tensor:
        """A part of features, or what stands for one that is missing: nothing is masked."""
        part = getattr(features, name)
        if part is not None:
            return part[None] if name == "pixels" else part
        rows, columns = features.grid
        shape = (1, features.size[1], features.size[0]) if name == "pixels" else (1, rows * columns)
        return torch.ones(shape, dtype=torch.bool, device=self._queue.device)


def plain(matcher: Matcher) -> Matcher:
    """The network that a `GpuMatcher` runs, whose layers can be observed; other matchers as they are."""
    return matcher.network if isinstance(matcher, GpuMatcher) else matcher


def _layout(value: Tensor | list[Tensor]) -> tuple[Hashable, ...]:
    """What a program's memory depends on."""
    if isinstance(value, list):
        return len(value), *_layout(value[0])
    return tuple(value.shape), value.dtype


def _unpacked(rows: NDArray[np.float32]) -> Matches:
    """(R, 7) rows of cell, points, confidence and standard deviation -> the used ones, ordered by cell."""
    rows = rows[rows[:, 5] > 0]
    used = torch.from_numpy(rows[np.argsort(rows[:, 0], kind="stable")])
    cell, points0, points1, confidence, std = used.split((1, 2, 2, 1, 1), dim=1)
    return Matches(cell[:, 0].long(), points0.clone(), points1.clone(), confidence[:, 0].clone(), std[:, 0].clone())
