"""The compact network as two graphs without Python control flow, for the ONNX export.

They share every layer with `Compact`. All regions pass the stage of the cells, those without a match with confidence 0,
so that all shapes before the final matches are fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loftr_ros.matcher.cells import points_of_cells
from loftr_ros.matcher.coarse import Candidates, scaled
from loftr_ros.matcher.compact.backbone import padded
from loftr_ros.matcher.compact.fine import FINE_PIXELS, TEMPLATE_WINDOW, FineMatch
from loftr_ros.matcher.compact.local_affine import local_affine
from loftr_ros.matcher.compact.network import Compact, region_mask, regions_of
from loftr_ros.matcher.runtime.loftr_graph import DualSoftmax, mutual_best, windows

Grid = tuple[int, int]


class CompactEncodeGraph(nn.Module):
    """One image to its regions, fine features and cells."""

    def __init__(self, network: Compact, grid: Grid) -> None:
        """Use the layers of a prepared network, for images of (rows, columns) of cells."""
        super().__init__()
        self.backbone, self.transformer = network.backbone, network.transformer
        self.grid, self.dtype = grid, network.dtype

    def forward(self, image: Tensor, usable: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            image: (1, 1, H, W) float32 in [0, 1].
            usable: (1, L) bool, false for cells that take no part.

        Returns:
            Regions (1, L / 4, C), fine features (1, Hf, Wf, Cf) and cells (1, rows, columns, Cc), all in the network's
            precision.
        """
        made = self.backbone(padded((image * 255).to(self.dtype)))
        tokens = made.regions.flatten(2).transpose(1, 2)
        tokens = self.transformer.encode(tokens, regions_of(self.grid), region_mask(usable, self.grid))
        return tokens, made.fine.permute(0, 2, 3, 1), made.cells.permute(0, 2, 3, 1)


class CompactMatchGraph(nn.Module):
    """Two encoded images to their matches."""

    def __init__(self, network: Compact, grid: Grid) -> None:
        """Use the layers of a prepared network, for images of (rows, columns) of cells."""
        super().__init__()
        self.config, self.grid = network.config, grid
        self.transformer, self.cell_matcher, self.fine = network.transformer, network.cell_matcher, network.fine
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
        cells0: Tensor,
        cells1: Tensor,
    ) -> tuple[Tensor, ...]:
        """Match.

        Args:
            tokens0, tokens1: (1, L / 4, C).
            usable0, usable1: (1, L) bool, false for cells that take no part.
            allowed0, allowed1: (1, L) bool, false for cells that take part but must not match, such as those at the
                border.
            fine0, fine1: (1, Hf, Wf, Cf).
            cells0, cells1: (1, rows, columns, Cc).

        Returns:
            As `MatchGraph`.
        """
        regions = regions_of(self.grid)
        masks = [region_mask(usable, self.grid) for usable in (usable0, usable1)]
        tokens0, tokens1 = self.transformer(tokens0, tokens1, regions, regions, *masks)
        found = self._cells(tokens0, tokens1, masks, cells0, cells1)
        allowed = allowed0[0][found.row] & allowed1[0][found.column]
        cell0, cell1, confidence = self._most_confident(Candidates(*(part[allowed] for part in found)))
        fine = self._fine(fine0, fine1, cell0, cell1)
        points0, points1 = (points_of_cells(self.config, cells, self.grid[1]) for cells in (cell0, cell1))
        return cell0, cell1, points0, points1 + fine.offset, confidence, self.fine.std(fine.scale)

    def _cells(
        self, tokens0: Tensor, tokens1: Tensor, masks: list[Tensor | None], cells0: Tensor, cells1: Tensor
    ) -> Candidates:
        """Matched cells."""
        coarse = self.config.coarse
        assert masks[0] is not None and masks[1] is not None
        mutual, column, confidence = mutual_best(
            self.coarse_matching,
            scaled(tokens0[0], coarse.temperature),
            tokens1[0].float(),
            masks[0][0],
            masks[1][0],
            coarse.threshold,
        )
        row = torch.arange(len(column), device=column.device)
        regions = Candidates(row, column, torch.where(mutual, confidence, 0.0))
        vectors0, vectors1 = (
            self.cell_matcher.vectors(cells.permute(0, 3, 1, 2), tokens)[0]
            for cells, tokens in ((cells0, tokens0), (cells1, tokens1))
        )
        found: Candidates = self.cell_matcher(vectors0, vectors1, self.grid, self.grid, regions, coarse.threshold)
        return found

    def _most_confident(self, found: Candidates) -> Candidates:
        limit = self.config.coarse.max_matches
        if not 0 < limit < self.grid[0] * self.grid[1]:
            return found
        # Pad with invalid candidates that are removed again: so there are always enough to choose from.
        nothing = torch.full((limit,), -1.0, device=found.value.device)
        value = torch.cat([found.value, nothing])
        chosen = value.topk(limit, sorted=False).indices.sort().values
        chosen = chosen[(value[chosen] > 0).nonzero()[:, 0]]
        return Candidates(found.row[chosen], found.column[chosen], found.value[chosen])

    def _fine(self, fine0: Tensor, fine1: Tensor, cell0: Tensor, cell1: Tensor) -> FineMatch:
        # One additional match, removed again, because runtimes differ in the handling of empty tensors.
        one = torch.zeros(1, dtype=torch.int64, device=cell0.device)
        taken = torch.cat([torch.ones_like(cell0), one])
        cell0, cell1 = torch.cat([cell0, one]), torch.cat([cell1, one])
        affine = local_affine(cell0[None], cell1[None], self.grid, self.grid, taken[None])[0]
        ratio, around = self.config.backbone.stride // FINE_PIXELS, self.fine.window
        found = self.fine.refine(
            windows(fine0, cell0, self.grid[1], ratio, (ratio - TEMPLATE_WINDOW) // 2, TEMPLATE_WINDOW).float(),
            windows(fine1, cell1, self.grid[1], ratio, (ratio - around) // 2, around).float(),
            affine,
        )
        return FineMatch(*(part[:-1] for part in found))
