"""An exported network with the `Matcher` interface, for any runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from loftr_ros.matcher.cells import ConfiguredCells, allowed_cells, cells_taking_part, in_grid, without_ignored
from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.config import CoarseMatchingConfig
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.matcher.precision import PRECISIONS
from loftr_ros.matcher.runtime.exported import Exported, read_model

_ADJUSTABLE = ("threshold", "border", "max_matches")


class Session(Protocol):
    """A graph opened by a runtime. Several threads may run it at the same time."""

    @property
    def path(self) -> Path:
        """Its file."""

    @property
    def inputs(self) -> Mapping[str, Sequence[int | str]]:
        """Its inputs' shapes."""

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None, names: Sequence[str] = ()
    ) -> list[Any]:
        """Compute into the given `outputs`; other results, listed in `names`, are returned as numpy arrays on the CPU.

        Inputs that the graph does not have are left out.
        """


def read_adjusted(folder: Path, coarse: Mapping[str, Any] | None) -> Exported:
    """Read model.json, with replacements of settings that are possible after the export.

    Args:
        folder: written by `loftr_ros export`.
        coarse: replacements of `CoarseMatchingConfig`'s threshold and max_matches, which can only be stricter than
            exported, and border.

    Raises:
        WeightsError: a file is missing, damaged or of another version; `coarse` asks for more than the graph has.
        ValueError: `coarse` has another field.
    """
    exported = read_model(folder)
    adjusted = replace(exported.config, coarse=_replaced(exported.config.coarse, coarse or {}, exported))
    return replace(exported, config=adjusted)


class ExportedMatcher(ConfiguredCells):
    """An exported network with the `Matcher` interface, for images of the exported size."""

    def __init__(self, exported: Exported, encode: Session, match: Session, device: torch.device, backend: str) -> None:
        """Combine opened graphs.

        Args:
            exported: their description.
            encode, match: on `device`, where the features then are.
            backend: the sessions' backend.

        Raises:
            WeightsError: they do not fit `exported`.
        """
        for session, name, expected in (
            (encode, "image", [1, 1, exported.height, exported.width]),
            (match, "tokens0", list(exported.encoded["tokens"])),
        ):
            if session.inputs.get(name) != expected:
                raise WeightsError(
                    f"{session.path} takes {name} of shape {session.inputs.get(name)}, where model.json says "
                    f"{expected}: they are of different exports; export again: {exported.command}"
                )
        self.config, self.backend = exported.config, backend
        self._exported, self._encode, self._match = exported, encode, match
        self._device = device
        self._dtype = PRECISIONS[exported.precision]
        rows, columns = exported.grid
        self._all_cells = torch.ones(1, rows * columns, dtype=torch.bool, device=device)

    @property
    def fingerprint(self) -> str:
        """See `Matcher.fingerprint`; empty if the export has none."""
        return self._exported.fingerprint

    @property
    def is_int8(self) -> bool:
        """Whether the backbone's convolutions are in 8 bits."""
        return self._exported.int8

    @property
    def fixed_size(self) -> tuple[int, int]:
        """(width, height) of the exported network's images."""
        return self._exported.width, self._exported.height

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the features."""
        return self._dtype

    @torch.inference_mode()
    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        """As `LoFTR.encode`, of images of the exported size; the fine features are complete.

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
        taking_part = cells_taking_part(image, usable, self.cell_size)
        if taking_part is not None:
            shape = -(-height // self.cell_size), -(-width // self.cell_size)
            taking_part = in_grid(taking_part.to(self._device), shape, self._exported.grid)
        made = {
            name: torch.empty(shape, dtype=self._dtype, device=self._device)
            for name, shape in self._exported.encoded.items()
        }
        self._encode.run({"image": pixels[None, None], "usable": self._attended(taking_part)}, made)
        maps = {name: tensor.permute(0, 3, 1, 2) for name, tensor in made.items() if tensor.ndim == 4}
        return ImageFeatures(
            made["tokens"],
            maps.get("fine"),
            self._exported.grid,
            (width, height),
            taking_part,
            usable,
            cells=maps.get("cells"),
            middle=maps.get("middle"),
        )

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        """Nothing to complete."""
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
            "usable0": self._attended(keyframe.usable),
            "usable1": self._attended(current.usable),
            "allowed0": allowed_cells(self.config, keyframe),
            "allowed1": allowed,
        }
        for i, features in enumerate((keyframe, current)):
            for name in self._exported.encoded:
                tensor = getattr(features, name)
                # The graph has the shape with channels last, as in memory: no copy.
                inputs[f"{name}{i}"] = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
        names = ("cell0", "points0", "points1", "confidence", "std")
        found = Matches(*(torch.from_numpy(array) for array in self._match.run(inputs, names=names)))
        return without_ignored(self._restricted(found), keyframe, current)

    def _restricted(self, matches: Matches) -> Matches:
        """Leave out unused rows, apply a threshold and limit stricter than the graph's, and order by cell."""
        limit = self.config.coarse.max_matches
        keep = (matches.confidence > max(self.config.coarse.threshold, 0)).nonzero()[:, 0]
        if 0 < limit < len(keep):
            keep = keep[matches.confidence[keep].topk(limit, sorted=False).indices]
        keep = keep[matches.cell[keep].argsort()]
        found = (matches.cell, matches.points0, matches.points1, matches.confidence, matches.std)
        return Matches(*(tensor[keep] for tensor in found))

    def _attended(self, cells: Tensor | None) -> Tensor:
        return self._all_cells if cells is None else cells


def _replaced(coarse: CoarseMatchingConfig, wanted: Mapping[str, Any], exported: Exported) -> CoarseMatchingConfig:
    """Coarse matching with replacements that are possible after the export."""
    unknown = [name for name in wanted if name not in _ADJUSTABLE]
    if unknown:
        raise ValueError(f"coarse matching: {', '.join(unknown)} cannot be replaced; only {', '.join(_ADJUSTABLE)} can")
    replaced = replace(coarse, **wanted)
    if replaced.threshold < coarse.threshold:
        raise WeightsError(
            f"threshold {replaced.threshold:g} is below {coarse.threshold:g}, with which the network was exported: "
            f"less confident matches are not in its output. Export again: {exported.command} --threshold "
            f"{replaced.threshold:g}"
        )
    if coarse.max_matches and not 0 < replaced.max_matches <= coarse.max_matches:
        raise WeightsError(
            f"max_matches {replaced.max_matches or 'without a limit'} is more than {coarse.max_matches}, with which "
            f"the network was exported. Export again: {exported.command} --max-matches {replaced.max_matches}"
        )
    return replaced
