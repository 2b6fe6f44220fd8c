"""The network as two graphs without Python control flow, for the ONNX export.

They share every layer with `LoFTR`. Only coarse matching and the gathering of windows are written again, because there
they depend on the data to save work. All shapes are fixed except the number of matches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from loftr_ros.matcher.cells import points_of_cells
from loftr_ros.matcher.coarse import LOWEST_THRESHOLD, NEVER, scaled
from loftr_ros.matcher.config import FineConfig
from loftr_ros.matcher.loftr.fine import FineMatches, expectation, heat_map
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.loftr.position import position_encoding

# Scores of one tile of rows. A tile and three temporaries of its size are alive at a time: 64 MB in fp32. The tiles
# are unrolled in the graph, so smaller ones make it long: 640x480 has 6 of them, 1280x960 has 93.
TILE_SCORES = 4_000_000


class EncodeGraph(nn.Module):
    """One image to its tokens and its whole map of fine features."""

    def __init__(self, network: LoFTR, grid: tuple[int, int]) -> None:
        """Use the layers of a prepared network, for images of (rows, columns) of cells."""
        super().__init__()
        self.backbone, self.loftr_coarse = network.backbone, network.loftr_coarse
        config = network.config
        position = position_encoding(config.backbone.coarse_dim, *grid, config.position_slip)
        self.position = nn.Parameter(position.to(network.device)[None], requires_grad=False)
        self.dtype = network.dtype

    def forward(self, image: Tensor, usable: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            image: (1, 1, H, W) float32 in [0, 1].
            usable: (1, L) bool, false for cells that take no part.

        Returns:
            Tokens (1, L, C), and with a fine stage the fine features (1, Hf, Wf, Cf), both in the network's precision.
        """
        coarse, unsmoothed = self.backbone((image * 255).to(self.dtype))
        tokens = (coarse + self.position).flatten(2).transpose(1, 2)
        tokens = self.loftr_coarse.encode(tokens, usable).to(self.dtype)
        if unsmoothed is None:
            return (tokens,)
        return tokens, self.backbone.smooth(unsmoothed).permute(0, 2, 3, 1)


class MatchGraph(nn.Module):
    """Two encoded images to their matches."""

    def __init__(self, network: LoFTR, grid: tuple[int, int]) -> None:
        """Use the layers of a prepared network, for images of (rows, columns) of cells."""
        super().__init__()
        self.config, self.grid = network.config, grid
        self.loftr_coarse = network.loftr_coarse
        coarse = network.config.coarse
        self.coarse_matching: nn.Module
        if coarse.method == "dual_softmax":
            self.coarse_matching = DualSoftmax()
        else:
            self.coarse_matching = _OptimalTransport(network.coarse_matching.bin_score, coarse.sinkhorn_iterations)
        self.fine: _FineStage | None = None
        if network.config.fine is not None:
            self.fine = _FineStage(network, network.config.fine, grid[1])

    def forward(
        self,
        tokens0: Tensor,
        tokens1: Tensor,
        usable0: Tensor,
        usable1: Tensor,
        allowed0: Tensor,
        allowed1: Tensor,
        fine0: Tensor | None = None,
        fine1: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Match.

        Args:
            tokens0, tokens1: (1, L, C).
            usable0, usable1: (1, L) bool, false for cells that take no part.
            allowed0, allowed1: (1, L) bool, false for cells that take part but must not match, such as those at the
                border.
            fine0, fine1: (1, Hf, Wf, Cf), with a fine stage.

        Returns:
            cell0, cell1 (N,) int64; points0, points1 (N, 2), confidence, std (N,) float32 as in `Matches`.
        """
        tokens0, tokens1 = self.loftr_coarse(tokens0.float(), tokens1.float(), usable0, usable1)
        cell0, cell1, confidence = self._coarse(
            tokens0[0], tokens1[0], usable0[0], usable1[0], allowed0[0], allowed1[0]
        )
        points0, points1 = (points_of_cells(self.config, cells, self.grid[1]) for cells in (cell0, cell1))
        std = torch.full_like(confidence, torch.nan)
        if self.fine is not None:
            assert fine0 is not None and fine1 is not None
            fine = self.fine(cell0, cell1, tokens0[0], tokens1[0], fine0, fine1)
            points1 = points1 + fine.offset * self.config.backbone.fine_stride
            std = fine.std * self.config.backbone.fine_stride
        return cell0, cell1, points0, points1, confidence, std

    def _coarse(
        self,
        tokens0: Tensor,
        tokens1: Tensor,
        usable0: Tensor,
        usable1: Tensor,
        allowed0: Tensor,
        allowed1: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mutual nearest neighbours above the threshold: their cells and confidence."""
        coarse, cells = self.config.coarse, self.grid[0] * self.grid[1]
        temperature = coarse.temperature if coarse.method == "dual_softmax" else 1.0
        mutual, column, confidence = mutual_best(
            self.coarse_matching, scaled(tokens0, temperature), tokens1.float(), usable0, usable1, coarse.threshold
        )
        keep = mutual & allowed0 & allowed1[column]
        if 0 < coarse.max_matches < cells:
            ranked = torch.where(keep, confidence, -1.0).topk(coarse.max_matches, sorted=False).indices.sort().values
            cell0 = ranked[keep[ranked].nonzero()[:, 0]]
        else:
            cell0 = keep.nonzero()[:, 0]
        return cell0, column[cell0], confidence[cell0]


class DualSoftmax(nn.Module):
    """Log-confidence by equation 2: twice the score, minus the log-sum-exps of its row and of its column."""

    def forward(self, left: Tensor, right: Tensor, tiles: list[slice]) -> tuple[Tensor, Tensor, Tensor]:
        """Two passes over tiles of the scores `left @ right`: the sums, then the best entries.

        Returns:
            (L,) the rows' best log-confidence, (L,) its column, (S,) the columns' best log-confidence.
        """
        row_lse, column_lse = [], []
        for rows in tiles:
            scores = left[rows] @ right
            row_lse.append(log_sum_exp(scores, 1))
            column_lse.append(log_sum_exp(scores, 0))
        columns = log_sum_exp(torch.stack(column_lse), 0)
        return best_entries(2 * left, right, -torch.cat(row_lse), -columns, tiles)


class _OptimalTransport(nn.Module):
    """Log of the transport plan by Sinkhorn's iterations (equation 1), with a dustbin on either side.

    An iteration is one pass over tiles of the scores, and two follow: one finds the cells that prefer the dustbin, the
    other the best entries among the rest.
    """

    def __init__(self, bin_score: Tensor, iterations: int) -> None:
        super().__init__()
        self.bin_score = nn.Parameter(bin_score.detach().float().reshape(1), requires_grad=False)
        self.iterations = iterations

    def forward(self, left: Tensor, right: Tensor, tiles: list[slice]) -> tuple[Tensor, Tensor, Tensor]:
        """As of `DualSoftmax`."""
        num_rows, num_columns = tiles[-1].stop, right.shape[1]
        alpha = self.bin_score
        u, v = torch.zeros_like(left[:, 0]), torch.zeros_like(right[0])
        u_bin, v_bin = torch.zeros_like(alpha), torch.zeros_like(alpha)
        for _ in range(self.iterations):
            row_parts, column_lse = [], []
            for rows in tiles:
                scores = torch.addmm(v, left[rows], right)
                part = -_log_add_exp(log_sum_exp(scores, 1), alpha + v_bin)
                row_parts.append(part)
                column_lse.append(log_sum_exp(scores + part[:, None], 0) - v)
            u = torch.cat(row_parts)
            u_bin = math.log(num_columns) - log_sum_exp(torch.cat([alpha + v, alpha + v_bin]), 0)
            v = -_log_add_exp(log_sum_exp(torch.stack(column_lse), 0), alpha + u_bin)
            v_bin = math.log(num_rows) - log_sum_exp(torch.cat([alpha + u, alpha + u_bin]), 0)
        row_best, _, column_best = best_entries(left, right, u, v, tiles)
        u = torch.where(row_best >= alpha + u + v_bin, u, NEVER)
        v = torch.where(column_best >= alpha + u_bin + v, v, NEVER)
        return best_entries(left, right, u, v, tiles)


class _FineStage(nn.Module):
    """Sub-pixel offsets; all matches at once, about 0.1 MB of temporaries each in fp32."""

    def __init__(self, network: LoFTR, config: FineConfig, columns: int) -> None:
        super().__init__()
        self.preprocess, self.loftr_fine = network.fine_preprocess, network.loftr_fine
        self.window, self.columns = config.window, columns
        self.ratio = network.config.backbone.stride // network.config.backbone.fine_stride

    def forward(
        self, cell0: Tensor, cell1: Tensor, tokens0: Tensor, tokens1: Tensor, fine0: Tensor, fine1: Tensor
    ) -> FineMatches:
        """As `FineMatcher`, on fine features with their channels last in shape."""
        # One additional match, removed again, because runtimes differ in the handling of empty tensors.
        one = torch.zeros(1, dtype=torch.int64, device=cell0.device)
        cell0, cell1 = torch.cat([cell0, one]), torch.cat([cell1, one])
        places = self.columns, self.ratio, -(self.window // 2), self.window
        windows0 = self.preprocess(windows(fine0, cell0, *places), tokens0[cell0])
        windows1 = self.preprocess(windows(fine1, cell1, *places), tokens1[cell1])
        windows0, windows1 = self.loftr_fine.encode(windows0), self.loftr_fine.encode(windows1)
        found = expectation(heat_map(*self.loftr_fine(windows0, windows1)))
        return FineMatches(found.offset[:-1], found.std[:-1])


def windows(fine: Tensor, cells: Tensor, columns: int, ratio: int, first: int, side: int) -> Tensor:
    """Squares of fine features at cells.

    Args:
        fine: (1, Hf, Wf, Cf).
        cells: (M,), of a grid with `columns` columns.
        ratio: fine features along a cell.
        first: from a cell's top-left fine feature to the window's, along both axes.
        side: of the windows.

    Returns:
        (M, side side, Cf), zero outside of the image.
    """
    height, width, channels = (int(length) for length in fine.shape[1:])
    reach = torch.arange(side, device=cells.device) + first
    rows = (cells // columns * ratio)[:, None] + reach
    along = (cells % columns * ratio)[:, None] + reach
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((along >= 0) & (along < width))[:, None, :]
    places = rows.clamp(0, height - 1)[:, :, None] * width + along.clamp(0, width - 1)[:, None, :]
    cut = fine.reshape(-1, channels)[places.flatten(1)]
    return cut * inside.flatten(1)[..., None].to(cut.dtype)


def mutual_best(
    matching: nn.Module, left: Tensor, right: Tensor, usable0: Tensor, usable1: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Best entries of rows.

    Args:
        matching: a `DualSoftmax`, or optimal transport.
        left, right: (L, C) and (S, C) float32, whose product is the score.
        usable0, usable1: (L,) and (S,) bool.
        threshold: least confidence.

    Returns:
        (L,) bool, whether a row's best entry is above the threshold and its column's best too; (L,) int64, its column;
        (L,) float32, its confidence.
    """
    left, right = with_masks(left, right, usable0, usable1)
    best, column, column_best = matching(left, right.t(), tiles_of_rows(len(left), len(right)))
    confidence = best.exp()
    mutual = (best == column_best[column]) & (confidence > max(threshold, LOWEST_THRESHOLD))
    return mutual, column, confidence


def with_masks(left: Tensor, right: Tensor, usable0: Tensor, usable1: Tensor) -> tuple[Tensor, Tensor]:
    """(L, C) and (S, C) features with two more channels, which give masked tokens a score far below any other.

    So no pass over the scores is needed for it.
    """
    masked0, masked1 = (torch.where(usable, 0.0, NEVER)[:, None] for usable in (usable0, usable1))
    left = torch.cat([left, masked0, torch.ones_like(masked0)], dim=1)
    return left, torch.cat([right, torch.ones_like(masked1), masked1], dim=1)


def tiles_of_rows(rows: int, columns: int) -> list[slice]:
    """Tiles of TILE_SCORES scores, as slices of rows."""
    height = max(1, TILE_SCORES // columns)
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


def best_entries(
    left: Tensor, right: Tensor, of_rows: Tensor, of_columns: Tensor, tiles: list[slice]
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entries of left @ right + of_rows[:, None] + of_columns, in tiles of rows.

    Returns:
        (L,) the largest of each row, (L,) int64 its column, (S,) the largest of each column. Both are from the same
        values, so equality identifies mutual best entries.
    """
    values, where, columns = [], [], []
    for rows in tiles:
        entries = torch.addmm(of_columns, left[rows], right) + of_rows[rows, None]
        largest = entries.max(dim=1)
        values.append(largest.values)
        where.append(largest.indices)
        columns.append(entries.amax(dim=0))
    return torch.cat(values), torch.cat(where), torch.stack(columns).amax(dim=0)


def log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """log(sum(exp(x))), in separate steps: some runtimes' combined operator can overflow."""
    largest = x.amax(dim=dim, keepdim=True)
    return (largest + (x - largest).exp().sum(dim=dim, keepdim=True).log()).squeeze(dim)


def _log_add_exp(x: Tensor, y: Tensor) -> Tensor:
    """log(exp(x) + exp(y)); y is broadcast."""
    largest, smallest = torch.maximum(x, y), torch.minimum(x, y)
    return largest + torch.log1p(torch.exp(smallest - largest))
