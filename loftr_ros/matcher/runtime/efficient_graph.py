"""EfficientLoFTR as two graphs without Python control flow, for the ONNX export.

They share every layer with `EfficientLoFTR`. The pyramid is in the matching graph, since it needs both images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loftr_ros.matcher.cells import points_of_cells
from loftr_ros.matcher.coarse import LOWEST_THRESHOLD, scaled, score_confidence
from loftr_ros.matcher.efficient.network import EfficientLoFTR, placed
from loftr_ros.matcher.efficient.refinement import Refined, compare, windows
from loftr_ros.matcher.runtime.loftr_graph import DualSoftmax, best_entries, mutual_best, tiles_of_rows, with_masks

Grid = tuple[int, int]


class EfficientEncodeGraph(nn.Module):
    """One image to its tokens and the backbone's finer maps."""

    def __init__(self, network: EfficientLoFTR, grid: Grid) -> None:
        """Use the layers of a prepared network, for images of (rows, columns) of cells."""
        super().__init__()
        self.backbone, self.loftr_coarse = network.backbone, network.loftr_coarse
        self.grid, self.dtype = grid, network.dtype

    def forward(self, image: Tensor, usable: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            image: (1, 1, H, W) float32 in [0, 1].
            usable: (1, L) bool, false for cells that take no part.

        Returns:
            Tokens (1, L, C), and the backbone's maps at 1/2 and 1/4, (1, H / 2, W / 2, C) and (1, H / 4, W / 4, C), all
            in the network's precision.
        """
        made = self.backbone((image * 255).to(self.dtype))
        tokens = made.coarse.flatten(2).transpose(1, 2).float()
        tokens = self.loftr_coarse.encode(tokens, self.grid, usable).to(self.dtype)
        return tokens, made.fine.permute(0, 2, 3, 1), made.middle.permute(0, 2, 3, 1)


class EfficientMatchGraph(nn.Module):
    """Two encoded images to their matches."""

    def __init__(self, network: EfficientLoFTR, grid: Grid) -> None:
        """Use the layers of a prepared network, for images of (rows, columns) of cells."""
        super().__init__()
        self.config, self.grid = network.config, grid
        self.loftr_coarse, self.pyramid = network.loftr_coarse, network.fine_preprocess
        self.coarse_matching = DualSoftmax()

    def forward(
        self,
        tokens0: Tensor,
        tokens1: Tensor,
        usable0: Tensor,
        usable1: Tensor,
        allowed0: Tensor,
        allowed1: Tensor,
        fine0: Tensor,
        fine1: Tensor,
        middle0: Tensor,
        middle1: Tensor,
    ) -> tuple[Tensor, ...]:
        """Match.

        Args:
            tokens0, tokens1: (1, L, C).
            usable0, usable1: (1, L) bool, false for cells that take no part.
            allowed0, allowed1: (1, L) bool, false for cells that take part but must not match, such as those at the
                border.
            fine0, fine1: (1, H / 2, W / 2, C).
            middle0, middle1: (1, H / 4, W / 4, C).

        Returns:
            As `MatchGraph`.
        """
        tokens0, tokens1 = self.loftr_coarse(tokens0.float(), tokens1.float(), self.grid, self.grid, usable0, usable1)
        mutual, column, confidence = self._best(tokens0[0], tokens1[0], usable0[0], usable1[0])
        keep = mutual & allowed0[0] & allowed1[0][column]
        limit = self.config.coarse.max_matches
        if 0 < limit < self.grid[0] * self.grid[1]:
            ranked = torch.where(keep, confidence, -1.0).topk(limit, sorted=False).indices.sort().values
            cell0 = ranked[keep[ranked].nonzero()[:, 0]]
        else:
            cell0 = keep.nonzero()[:, 0]
        cell1, confidence = column[cell0], confidence[cell0]
        maps = (
            self.pyramid(tokens, *(part.permute(0, 3, 1, 2) for part in parts))
            for tokens, parts in ((tokens0, (middle0, fine0)), (tokens1, (middle1, fine1)))
        )
        fine = self._refined(next(maps), next(maps), cell0, cell1)
        points0, points1 = (points_of_cells(self.config, cells, self.grid[1]) for cells in (cell0, cell1))
        points0, points1 = placed(self.config, points0, points1, fine)
        return cell0, cell1, points0, points1, confidence, fine.std

    def _best(
        self, tokens0: Tensor, tokens1: Tensor, usable0: Tensor, usable1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `mutual_best`."""
        coarse = self.config.coarse
        left, right = scaled(tokens0, coarse.temperature), tokens1.float()
        if coarse.method == "dual_softmax":
            return mutual_best(self.coarse_matching, left, right, usable0, usable1, coarse.threshold)
        left, right = with_masks(left, right, usable0, usable1)
        nothing = torch.zeros_like(left[:, 0]), torch.zeros_like(right[:, 0])
        best, column, column_best = best_entries(left, right.t(), *nothing, tiles_of_rows(len(left), len(right)))
        confidence = score_confidence(best)
        mutual = (best == column_best[column]) & (confidence > max(coarse.threshold, LOWEST_THRESHOLD))
        return mutual, column, confidence

    def _refined(self, fine0: Tensor, fine1: Tensor, cell0: Tensor, cell1: Tensor) -> Refined:
        # One additional match, removed again, because runtimes differ in the handling of empty tensors.
        one = torch.zeros(1, dtype=torch.int64, device=cell0.device)
        cell0, cell1 = torch.cat([cell0, one]), torch.cat([cell1, one])
        window0 = windows(fine0, cell0, self.grid)[:, 1:-1, 1:-1]
        found = compare(self.config.fine, window0, windows(fine1, cell1, self.grid))
        return Refined(*(part[:-1] for part in found))
