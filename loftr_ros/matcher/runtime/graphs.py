"""A network as two graphs without Python control flow, for the ONNX export: its fixed program, for one keyframe."""

from __future__ import annotations

from torch import Tensor, nn

from loftr_ros.matcher.build import Network
from loftr_ros.matcher.fixed import fixed_program
from loftr_ros.matcher.interface import ImageFeatures

# Scores of one tile of rows. A tile and three temporaries of its size are alive at a time: 64 MB in fp32. The tiles
# are unrolled in the graph, so smaller ones make it long: 640x480 has 6 of them, 1280x960 has 93.
TILE_SCORES = 4_000_000

_FEATURES = ("tokens", "fine", "cells", "middle", "usable")


class EncodeGraph(nn.Module):
    """One image to its features."""

    def __init__(self, network: Network) -> None:
        """Use the layers of a prepared network."""
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, usable: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            image: (1, 1, H, W) float32 in [0, 1].
            usable: (1, L) bool, false for cells that take no part.

        Returns:
            Those of `tokens`, `fine`, `cells` and `middle` that the network has, in the network's precision; maps with
            their channels last.
        """
        with fixed_program(TILE_SCORES):
            made = self.network.encode_pixels((image * 255).to(self.network.dtype), usable)
        maps = (made.fine, made.cells, made.middle)
        return made.tokens, *(each.permute(0, 2, 3, 1) for each in maps if each is not None)


class MatchGraph(nn.Module):
    """Two encoded images to their matches."""

    def __init__(
        self, network: Network, grid: tuple[int, int], size: tuple[int, int], names: tuple[str, ...], *, fixed: bool
    ) -> None:
        """Use the layers of a prepared network.

        Args:
            network: the network.
            grid: (rows, columns) of cells.
            size: (width, height) of the images.
            names: of the features of `EncodeGraph`.
            fixed: keep unused rows, with confidence 0, so that all shapes are fixed.
        """
        super().__init__()
        self.network, self.grid, self.size, self.names, self.fixed = network, grid, size, names, fixed

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Match.

        Args:
            inputs: of both images `tokens`, `usable` and `allowed`, then the other features. `allowed` is (1, L) bool,
                false for cells that take part but must not match, such as those at the border.

        Returns:
            cell0, cell1 (N,) int64; points0, points1 (N, 2), confidence, std (N,) float32 as in `Matches`. Rows whose
            confidence is 0 are unused.
        """
        names = ("tokens", "usable", "allowed", *self.names[1:])
        named = {name: inputs[2 * i : 2 * i + 2] for i, name in enumerate(names)}
        allowed = named.pop("allowed")
        keyframe, current = (
            ImageFeatures(
                grid=self.grid,
                size=self.size,
                **{name: _channels_first(named[name][i]) if name in named else None for name in _FEATURES},  # type: ignore[arg-type]
            )
            for i in (0, 1)
        )
        with fixed_program(TILE_SCORES, drop_unused=not self.fixed):
            found = self.network.match_fixed(keyframe, current, *allowed)
        return tuple(part[0] for part in found)


def _channels_first(features: Tensor) -> Tensor:
    """Maps as in `ImageFeatures`; other tensors as they are."""
    return features.permute(0, 3, 1, 2) if features.ndim == 4 else features
