"""A pretended GPU: its tensors exist by shape alone, and everything that a GPU would launch or wait for is counted.

They are on torch's meta device, which computes shapes and dtypes as a GPU would, and cannot run operations whose result
has a size that depends on values.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loftr_ros.matcher.constants import forget_constants

GPU = torch.device("meta")
N = TypeVar("N", bound=nn.Module)

# Operations without a kernel.
_FREE = (  # noqa: SIM905
    "_reshape_alias _unsafe_view alias as_strided chunk detach diagonal empty empty_like empty_strided "
    "expand is_same_size lift_fresh narrow new_empty new_empty_strided permute scalar_tensor select set_ "
    "slice split split_with_sizes squeeze t transpose unbind unflatten unfold unsqueeze view "
    "view_as_complex view_as_real "
).split()
# Kernels that torch's CUDA sources launch for one operation, where there is more than one.
_KERNELS = {"sort": 3, "argsort": 3, "topk": 4, "cumsum": 2, "median": 3, "embedding_bag": 2, "logsumexp": 6}


class Counts(TorchDispatchMode):
    """Counts launches while it is active, and refuses operands on different devices.

    Attributes:
        launches: by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.is_fused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_here = any(tensor.device == GPU for tensor in tensors)
        if is_here and name not in ("copy_", "_to_copy", "to"):
            elsewhere = [tensor for tensor in tensors if tensor.device != GPU and tensor.ndim]
            assert not elsewhere, f"{name} of tensors on the GPU and on the host"
        # In inference mode nothing else does it. Upsampling is one kernel.
        if func._can_decompose() and not name.startswith("upsample"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        here = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.device == GPU]
        if self.is_fused or name in _FREE or not (is_here or here):
            return result
        assert here, f"{name} waits for the GPU"
        # Its bias is added by a kernel of its own.
        self.launches[name] += 2 if name == "convolution" and args[2] is not None else _KERNELS.get(name, 1)
        return result


class _FusedAttention(TorchFunctionMode):
    """Counts torch's attention as one launch: on a GPU it is one, here torch writes it out."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._counts.is_fused = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._counts.is_fused = False
            self._counts.launches["attention"] += 1


@contextmanager
def pretended_gpu(network: N) -> Iterator[tuple[N, Counts]]:
    """A copy of a prepared network on the pretended GPU, and counts of what is launched there meanwhile."""
    counts = Counts()
    moved = copy.deepcopy(network).to(GPU)
    try:
        with counts, _FusedAttention(counts):
            yield moved, counts
    finally:
        forget_constants()


class PretendedDevice:
    """A queue that runs at once. A recorded program is run again, into the same memory.

    Attributes:
        device: of its tensors, the pretended GPU or the CPU.
        waits, copies: number of waits of the host, and of copies between it and the GPU.
        fetched: number of waits for a result.
        emptied: number of times that unused memory was given back.
        gpu_seconds: what two marks are apart.
    """

    def __init__(self, device: torch.device = GPU, gpu_seconds: float = 0.0) -> None:
        self.device, self.gpu_seconds = device, gpu_seconds
        self.waits = self.fetched = self.copies = self.emptied = 0

    @contextmanager
    def queue(self) -> Iterator[None]:
        yield

    def record(self, program: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        results = program()

        def again() -> None:
            for kept, tensor in zip(results, program(), strict=True):
                kept.set_(tensor)  # no launch: a captured program writes there at once

        return again, results

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.copies += 1
        if source.device != GPU:
            target.copy_(source)

    def mark(self) -> None:
        return None

    def wait(self, mark: None) -> None:
        self.waits += 1

    def fetch(self, buffer: Tensor, mark: None) -> NDArray[Any]:
        self.waits += 1
        self.fetched += 1
        return buffer.numpy()

    def empty_cache(self) -> None:
        self.emptied += 1

    def seconds(self, first: None, last: None) -> float:
        return self.gpu_seconds
