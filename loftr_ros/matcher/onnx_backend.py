"""An exported network run by onnxruntime, behind the same contract as `LoFTR`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loftr_ros.matcher.cells import allowed_cells, cell_offset, cells_taking_part, without_ignored
from loftr_ros.matcher.config import CoarseMatchingConfig
from loftr_ros.matcher.exported import ENCODE_FILE, MATCH_FILE, Exported, read_model
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.matcher.precision import PRECISIONS, DeviceError
from loftr_ros.matcher.recognition import WeightsError

CPU = torch.device("cpu")
# These compute on a GPU whose memory torch and onnxruntime can share.
_CUDA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_ADJUSTABLE = ("threshold", "border", "max_matches")
_NUMPY_TYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bool: np.bool_,
}


def load_onnx(
    path: Path,
    providers: Sequence[str],
    device: torch.device = CPU,
    threads: int = 0,
    coarse: Mapping[str, Any] | None = None,
) -> OnnxMatcher:
    """Open what `loftr_ros export` wrote.

    Args:
        path: the folder.
        providers: execution providers of onnxruntime, the preferred first; what one does not know goes to the next,
            and at last to the CPU's.
        device: the GPU of CUDA's and TensorRT's providers, where the features then stay too; with `cpu` they come back
            to the CPU after each call. Other providers ignore it.
        threads: of the CPU's provider; 0 for as many as there are cores.
        coarse: replacements of `CoarseMatchingConfig`'s threshold and max_matches, which can only let fewer matches
            pass than were exported, and border.

    Raises:
        WeightsError: a file is missing, damaged or of another version; `coarse` asks for what is not in the graph.
        DeviceError: onnxruntime is not installed; a provider is not available or does not start.
        ValueError: `coarse` names anything else.
    """
    exported = read_model(path)
    config = replace(exported.config, coarse=_replaced(exported.config.coarse, coarse or {}, exported))
    asked = list(providers) or ["CPUExecutionProvider"]
    on_gpu = device.type == "cuda" and any(name in _CUDA_PROVIDERS for name in asked)
    options = [{"device_id": str(device.index or 0)} if on_gpu and name in _CUDA_PROVIDERS else {} for name in asked]
    place = device if on_gpu else CPU
    encode, match = (
        _Session(path / name, list(zip(asked, options, strict=True)), threads, place)
        for name in (ENCODE_FILE, MATCH_FILE)
    )
    grid = exported.grid
    cells = grid[0] * grid[1]
    for session, name, expected in (
        (encode, "image", [1, 1, exported.height, exported.width]),
        (match, "tokens0", [1, cells, config.backbone.coarse_dim]),
    ):
        if session.inputs.get(name) != expected:
            raise WeightsError(
                f"{session.path} takes {name} of shape {session.inputs.get(name)}, where model.json says {expected}: "
                f"they are of different exports; export again: {exported.command}"
            )
    return OnnxMatcher(replace(exported, config=config), encode, match, place)


class OnnxMatcher:
    """An exported network: keeps the `Matcher` protocol for images of the exported size. `load_onnx` makes it."""

    def __init__(self, exported: Exported, encode: _Session, match: _Session, device: torch.device) -> None:
        self.config = exported.config
        self._exported, self._encode, self._match = exported, encode, match
        self._device = device
        self._dtype = PRECISIONS[exported.precision]
        rows, columns = exported.grid
        self._all_cells = torch.ones(1, rows * columns, dtype=torch.bool, device=device)

    @property
    def has_fine_stage(self) -> bool:
        """Whether matches are sub-pixel; without, `points1` is on the coarse grid."""
        return self.config.fine is not None

    @property
    def cell_size(self) -> int:
        """Side of a coarse cell, in pixels of the encoded image."""
        return self.config.backbone.stride

    @property
    def cell_offset(self) -> float:
        """From a cell's top-left pixel to its point, by the convention that the weights were trained with."""
        return cell_offset(self.config)

    @property
    def fixed_size(self) -> tuple[int, int]:
        """(width, height) that the network was exported for."""
        return self._exported.width, self._exported.height

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """What the features are kept in."""
        return self._dtype

    @torch.inference_mode()
    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        """As `LoFTR.encode`, of images of the exported size; the fine features come complete.

        Raises:
            ValueError: the image is not (H, W) or of another size than exported; the mask is not of its size.
        """
        width, height = self._exported.width, self._exported.height
        if image.ndim != 2:
            raise ValueError(f"image of shape {tuple(image.shape)}: expected (H, W)")
        if tuple(image.shape) != (height, width):
            found = replace(self._exported, width=image.shape[1], height=image.shape[0])
            raise ValueError(
                f"image of {found.width}x{found.height}, but the network was exported for {width}x{height}; "
                f"give images of that size, or export again: {found.command}"
            )
        pixels = image.to(self._device)
        pixels = pixels.float() / 255 if image.dtype == torch.uint8 else pixels.float()
        usable = None if usable is None else usable.to(self._device, torch.bool)
        cells = cells_taking_part(image, usable, self.cell_size)
        cells = None if cells is None else cells.to(self._device)
        grid = self._exported.grid
        results = {"tokens": self._empty(1, grid[0] * grid[1], self.config.backbone.coarse_dim)}
        fine = None
        if self.has_fine_stage:
            stride, channels = self.config.backbone.fine_stride, self.config.backbone.fine_dim
            results["fine"] = self._empty(1, -(-height // stride), -(-width // stride), channels)
            fine = results["fine"].permute(0, 3, 1, 2)
        self._encode.run({"image": pixels[None, None], "usable": self._attended(cells)}, results)
        return ImageFeatures(results["tokens"], fine, grid, (width, height), cells, usable)

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        """Nothing was put off."""
        return features

    @torch.inference_mode()
    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        """As `LoFTR.match`, one keyframe after the other.

        Raises:
            ValueError: features of images of another size than exported.
        """
        for features in (*keyframes, current):
            if features.grid != self._exported.grid:
                raise ValueError(
                    f"features of {features.grid} cells, but the network was exported for {self._exported.grid}"
                )
        allowed = allowed_cells(self.config, current)
        return [self._pair(keyframe, current, allowed) for keyframe in keyframes]

    def _pair(self, keyframe: ImageFeatures, current: ImageFeatures, allowed: Tensor) -> Matches:
        inputs = {
            "tokens0": keyframe.tokens,
            "tokens1": current.tokens,
            "usable0": self._attended(keyframe.usable),
            "usable1": self._attended(current.usable),
            "allowed0": allowed_cells(self.config, keyframe),
            "allowed1": allowed,
        }
        if keyframe.fine is not None and current.fine is not None:
            # The graph has channels last in shape, as they are in memory: no copy.
            inputs["fine0"], inputs["fine1"] = (fine.permute(0, 2, 3, 1) for fine in (keyframe.fine, current.fine))
        names = ("cell0", "points0", "points1", "confidence", "std")
        found = Matches(*(torch.from_numpy(array) for array in self._match.run(inputs, names=names)))
        return without_ignored(self._restricted(found), keyframe, current)

    def _restricted(self, matches: Matches) -> Matches:
        """What passes a threshold and cap that are stricter than the graph's."""
        limit = self.config.coarse.max_matches
        keep = (matches.confidence > self.config.coarse.threshold).nonzero()[:, 0]
        if 0 < limit < len(keep):
            keep = keep[matches.confidence[keep].topk(limit, sorted=False).indices].sort().values
        if len(keep) == len(matches):
            return matches
        found = (matches.cell, matches.points0, matches.points1, matches.confidence, matches.std)
        return Matches(*(tensor[keep] for tensor in found))

    def _attended(self, cells: Tensor | None) -> Tensor:
        return self._all_cells if cells is None else cells

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)


class _Session:
    """A graph that works on torch's memory: what goes in and what has a known shape is not copied.

    Several threads may run it at a time.
    """

    def __init__(
        self, path: Path, providers: list[tuple[str, dict[str, str]]], threads: int, device: torch.device
    ) -> None:
        """Open a graph.

        Raises:
            DeviceError, WeightsError: as `load_onnx`.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise DeviceError(
                f"backend onnx needs onnxruntime ({error}); pip install onnxruntime, or onnxruntime-gpu"
            ) from error
        available = onnxruntime.get_available_providers()
        unknown = [name for name, _ in providers if name not in available]
        if unknown:
            raise DeviceError(
                f"onnxruntime {onnxruntime.__version__} has no {', '.join(unknown)} here; there are "
                f"{', '.join(available)}"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; what else it says is for people who write graphs
        options.intra_op_num_threads = threads
        # Threads that wait for work in a loop would take the cores from torch's, and from the other graph's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its own kinds of error have no common base but this
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(f"{path} cannot be opened by onnxruntime: {first_line}; export it again") from error
        # A provider whose libraries are missing is left out without an error.
        absent = [name for name, _ in providers if name not in self._session.get_providers()]
        if absent:
            raise DeviceError(
                f"{', '.join(absent)} of onnxruntime {onnxruntime.__version__} does not start here: its libraries are "
                "missing or of another version"
            )
        self.path = path
        self.inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._device = device

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None, names: Sequence[str] = ()
    ) -> list[Any]:
        """Compute into the given `outputs`, or else what `names` says, of any shape, as numpy arrays on the CPU."""
        binding = self._session.io_binding()
        # Held until it has run: onnxruntime is given addresses only.
        held = {name: tensor.contiguous() for name, tensor in inputs.items() if name in self.inputs}
        for name, tensor in held.items():
            binding.bind_input(name, *_memory(tensor))
        for name, tensor in (outputs or {}).items():
            binding.bind_output(name, *_memory(tensor))
        for name in names:
            binding.bind_output(name, "cpu")
        on_gpu = self._device.type == "cuda"
        if on_gpu:  # what torch was told to compute is there before onnxruntime reads it
            torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        if on_gpu:
            binding.synchronize_outputs()
        return list(binding.copy_outputs_to_cpu()) if names else []


def _memory(tensor: Tensor) -> tuple[str, int, Any, list[int], int]:
    """Where a tensor is and what, as onnxruntime's binding takes it."""
    device = tensor.device
    return device.type, device.index or 0, _NUMPY_TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr()


def _replaced(coarse: CoarseMatchingConfig, wanted: Mapping[str, Any], exported: Exported) -> CoarseMatchingConfig:
    """Coarse matching with replacements that can be made after the export."""
    unknown = [name for name in wanted if name not in _ADJUSTABLE]
    if unknown:
        raise ValueError(f"coarse matching: {', '.join(unknown)} cannot be replaced; only {', '.join(_ADJUSTABLE)} can")
    replaced = replace(coarse, **wanted)
    if replaced.threshold < coarse.threshold:
        raise WeightsError(
            f"threshold {replaced.threshold:g} is below {coarse.threshold:g}, with which the network was exported: "
            f"what is less confident is not in its output. Export again: {exported.command} --threshold "
            f"{replaced.threshold:g}"
        )
    if coarse.max_matches and not 0 < replaced.max_matches <= coarse.max_matches:
        raise WeightsError(
            f"max_matches {replaced.max_matches or 'without a limit'} is more than {coarse.max_matches}, with which "
            f"the network was exported. Export again: {exported.command} --max-matches {replaced.max_matches}"
        )
    return replaced
