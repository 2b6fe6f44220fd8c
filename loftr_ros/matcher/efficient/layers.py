"""Layers of EfficientLoFTR: the RepVGG, attention between squares of cells, and the pyramid to fine features.

All parts have the names of the authors' checkpoints; `checkpoints.efficient` re-parametrises their RepVGG blocks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from loftr_ros.matcher.config import AggregatedTransformerConfig, EfficientBackboneConfig
from loftr_ros.matcher.constants import made_once
from loftr_ros.matcher.convolutions import OneDnnConv, is_traced, smoothed, twice
from loftr_ros.matcher.fixed import is_fixed
from loftr_ros.matcher.loftr.attention import softmax_attention
from loftr_ros.matcher.loftr.backbone import smoothed_places

Grid = tuple[int, int]

# Least weight of the participating squares around a cell, for a division.
LEAST_SHARE = 1e-3

# Longest wavelength of the rotations, in squares and in units of 2 pi.
_LONGEST = 10000.0


class Maps(NamedTuple):
    """Features of an image from the backbone.

    Attributes:
        fine: (B, C, ceil(H / 2), ceil(W / 2)).
        middle: (B, C, ceil(H / 4), ceil(W / 4)).
        coarse: (B, C, ceil(H / 8), ceil(W / 8)).
    """

    fine: Tensor
    middle: Tensor
    coarse: Tensor


class RepVGGBlock(nn.Module):
    """A 3x3 convolution, with the training's three branches folded in, and a ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.rbr_reparam = nn.Conv2d(inputs, outputs, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""
        if isinstance(self.rbr_reparam, OneDnnConv):
            return self.rbr_reparam(x, "relu")
        return functional.relu(self.rbr_reparam(x))


class RepVGG(nn.Module):
    """The backbone (section 3.1).

    Every kernel is centred: cell (x, y) is at pixel (8 x, 8 y), and no side needs padding to a multiple of 8.
    """

    def __init__(self, config: EfficientBackboneConfig) -> None:
        super().__init__()
        stem, *dims = config.dims
        self.layer0 = RepVGGBlock(1, stem, 2)
        inputs = stem
        for i, (outputs, count) in enumerate(zip(dims, config.blocks[1:], strict=True), start=1):
            strides = [1 if i == 1 else 2] + [1] * (count - 1)
            widths = [inputs] + [outputs] * (count - 1)
            blocks = [RepVGGBlock(width, outputs, stride) for width, stride in zip(widths, strides, strict=True)]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            inputs = outputs

    def forward(self, image: Tensor) -> Maps:
        """(B, 1, H, W) of at least a cell -> its features at 1/2, 1/4 and 1/8."""
        x = self.layer0(image)
        made = []
        for i in (1, 2, 3):
            x = self.get_submodule(f"layer{i}")(x)
            made.append(x)
        return Maps(*made)


class AggregatedAttention(nn.Module):
    """One layer: squares of cells attend to squares, and each cell receives the messages of the squares around it.

    Queries are learned sums over a square, keys and values are its maxima. In half precision the tokens stay in fp32. A
    layer's update is computed in half, except for the rotations.
    """

    def __init__(self, channels: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.aggregate = nn.Conv2d(channels, channels, window, window, groups=channels, bias=False)
        self.q_proj = nn.Linear(channels, channels, bias=False)
        self.k_proj = nn.Linear(channels, channels, bias=False)
        self.v_proj = nn.Linear(channels, channels, bias=False)
        self.merge = nn.Linear(channels, channels, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * channels, 2 * channels, bias=False),
            nn.LeakyReLU(inplace=True),
            nn.Linear(2 * channels, channels, bias=False),
        )
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        source: Tensor,
        source_grid: Grid,
        mask: Tensor | None,
        source_mask: Tensor | None,
        spacing: float | None,
    ) -> Tensor:
        """Update the cells of one image by those of the same one or of another.

        Args:
            x: (B, L, C) cells of a grid of (rows, columns), fp32.
            grid: of x.
            source: (B, S, C) attended cells. Either may be shared by all pairs.
            source_grid: of the source.
            mask, source_mask: (B, L) and (B, S) bool, false for cells that take no part; or None.
            spacing: distance of squares in units of positions; None between images, where positions are not used.

        Returns:
            (B, L, C) in the dtype of x.
        """
        cells = x.to(self.merge.weight.dtype)
        query = self.query(cells, grid, mask, spacing)
        key, value, attended = self.keys_and_values(source, source_grid, source_mask, spacing)
        query, key, value = _of_one_batch(query, key, value)
        message = softmax_attention(query, key, value, attended, query.shape[3] ** -0.5)
        message = self.merge(message.transpose(1, 2).flatten(2))
        # The first product of the perceptron for the message, before it is spread over the cells, 16 times as many.
        # Both operations are linear.
        first, activation, last = self.mlp
        assert isinstance(first, nn.Linear)
        own, of_message = first.weight.chunk(2, dim=1)
        hidden = self.spread(functional.linear(message, of_message), grid, mask).add_(functional.linear(cells, own))
        update: Tensor = self.norm2(last(activation(hidden)))
        return x + update

    def squares(self, grid: Grid) -> Grid:
        """Rows and columns of squares over a grid of cells; the last ones may extend beyond it."""
        return -(-grid[0] // self.window), -(-grid[1] // self.window)

    def query(self, cells: Tensor, grid: Grid, mask: Tensor | None, spacing: float | None) -> Tensor:
        """(B, heads, squares, D) of (B, L, C) cells. Masked cells, and those beyond the image, add nothing."""
        if mask is not None:
            cells = cells * mask[..., None]
        rows, columns = self.squares(grid)
        maps = _as_map(cells, grid)
        beyond = columns * self.window - grid[1], rows * self.window - grid[0]
        if any(beyond):
            maps = functional.pad(maps, (0, beyond[0], 0, beyond[1]))
        query = self.q_proj(self.norm1(self.aggregate(maps).flatten(2).transpose(1, 2)))
        return self._heads(query if spacing is None else rotated(query, (rows, columns), spacing))

    def keys_and_values(
        self, source: Tensor, grid: Grid, mask: Tensor | None, spacing: float | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (B, heads, squares, D), and which squares are available, (B, 1, 1, squares) bool."""
        cells = source.to(self.merge.weight.dtype)
        attended = None
        if mask is not None:
            cells = cells.masked_fill(~mask[..., None], torch.finfo(cells.dtype).min)
        pooled = self._maxima(cells, grid)
        if mask is not None:
            attended = self.taking_part(mask, grid)
            pooled = pooled * attended[..., None]  # otherwise of masked cells only
            # A softmax over nothing is not a number.
            attended = (attended | ~attended.any(dim=1, keepdim=True))[:, None, None]
        pooled = self.norm1(pooled)
        key = self.k_proj(pooled)
        if spacing is not None:
            key = rotated(key, self.squares(grid), spacing)
        return self._heads(key), self._heads(self.v_proj(pooled)), attended

    def taking_part(self, mask: Tensor, grid: Grid) -> Tensor:
        """(B, L) bool -> (B, squares): whether any of a square's cells takes part."""
        return self._maxima(mask.float()[..., None], grid)[..., 0] > 0

    def spread(self, squares: Tensor, grid: Grid, mask: Tensor | None) -> Tensor:
        """(B, squares, C) -> (B, cells, C), bilinearly between the squares that take part.

        By two small products: torch's own interpolation would transpose the maps in memory, and back.
        """
        rows, columns = (bilinear(side, self.window, squares.device, squares.dtype) for side in grid)
        if mask is None:
            return _interpolated(squares, rows, columns)
        part = self.taking_part(mask, grid).to(squares.dtype)[..., None]
        spread, share = (_interpolated(tensor, rows, columns) for tensor in (squares * part, part))
        return spread / share.clamp_min(LEAST_SHARE)

    def _maxima(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(B, L, C) -> (B, squares, C), the maximum of each channel, ignoring cells beyond the image.

        By two reductions along the stored order of cells: torch's pooling takes thirty times as long.
        """
        rows, columns = self.squares(grid)
        cells = tokens.unflatten(1, grid)
        beyond = columns * self.window - grid[1], rows * self.window - grid[0]
        if any(beyond):
            cells = functional.pad(cells, (0, 0, 0, beyond[0], 0, beyond[1]), value=torch.finfo(cells.dtype).min)
        across = cells.unflatten(2, (columns, self.window)).amax(dim=3)
        return across.unflatten(1, (rows, self.window)).amax(dim=2).flatten(1, 2)

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads), a view."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class AggregatedTransformer(nn.Module):
    """The stack of layers, split before the first one that needs a second image (section 3.2)."""

    def __init__(self, channels: int, stride: int, config: AggregatedTransformerConfig) -> None:
        """Random weights.

        Args:
            channels: of the cells.
            stride: side of a cell, in pixels.
            config: of the stack.
        """
        super().__init__()
        self.kinds = config.layers
        self.num_leading_self = config.layers.index("cross") if "cross" in config.layers else len(config.layers)
        self._position_cells = config.position_side / stride
        self.layers = nn.ModuleList(
            AggregatedAttention(channels, config.num_heads, config.window) for _ in config.layers
        )

    def spacing(self, grid: Grid) -> float:
        """Distance of squares in units of positions, for an image of (rows, columns) of cells."""
        return min(1.0, self._position_cells / max(grid))

    def encode(self, tokens: Tensor, grid: Grid, mask: Tensor | None = None) -> Tensor:
        """The leading self layers, on one image: (B, L, C) -> (B, L, C), fp32."""
        for layer in self.layers[: self.num_leading_self]:
            tokens = layer(tokens, grid, tokens, grid, mask, mask, self.spacing(grid))
        return tokens

    def forward(
        self,
        tokens0: Tensor,
        tokens1: Tensor,
        grid0: Grid,
        grid1: Grid,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The layers from the first cross layer on. Image 1 attends to the updated image 0, as published.

        Args:
            tokens0, tokens1: (B, L, C) and (B, S, C) fp32, as `encode` returns them; either may be shared by all pairs.
            grid0, grid1: (rows, columns) of the cells.
            mask0, mask1: (B, L) and (B, S) bool, false for cells that take no part; or None.

        Returns:
            The two sequences, in the weights' precision.
        """
        for layer, kind in zip(self.layers[self.num_leading_self :], self.kinds[self.num_leading_self :], strict=True):
            if kind == "self" and is_fixed() and tokens0.shape == tokens1.shape and grid0 == grid1:
                both, masks = torch.cat([tokens0, tokens1]), None
                if mask0 is not None and mask1 is not None:
                    masks = torch.cat([mask.expand(len(tokens0), -1) for mask in (mask0, mask1)])
                tokens0, tokens1 = layer(both, grid0, both, grid0, masks, masks, self.spacing(grid0)).chunk(2)
            elif kind == "self":
                tokens0 = layer(tokens0, grid0, tokens0, grid0, mask0, mask0, self.spacing(grid0))
                tokens1 = layer(tokens1, grid1, tokens1, grid1, mask1, mask1, self.spacing(grid1))
            else:
                tokens0 = layer(tokens0, grid0, tokens1, grid1, mask0, mask1, None)
                tokens1 = layer(tokens1, grid1, tokens0, grid0, mask1, mask0, None)
        dtype = next(self.parameters()).dtype
        return tokens0.to(dtype), tokens1.to(dtype)


class FinePyramid(nn.Module):
    """The pyramid from transformed cells up to features of pixels, with those of the backbone (section 3.4).

    Its features depend on both images of a pair, since the cells do. Its output is at 1/2 of the image: the last step,
    to pixels, is done in the windows around matches.
    """

    def __init__(self, config: EfficientBackboneConfig) -> None:
        super().__init__()
        coarse, middle, fine = config.coarse_dim, config.middle_dim, config.fine_dim
        self.layer3_outconv = nn.Conv2d(coarse, coarse, 1, bias=False)
        self.layer2_outconv = nn.Conv2d(middle, coarse, 1, bias=False)
        self.layer2_outconv2 = _smoothing(coarse, middle)
        self.layer1_outconv = nn.Conv2d(fine, middle, 1, bias=False)
        self.layer1_outconv2 = _smoothing(middle, fine)

    def forward(self, cells: Tensor, middle: Tensor, fine: Tensor, matched: Tensor | None = None) -> Tensor:
        """Fine features at 1/2.

        Args:
            cells: (B, L, C) after the transformer, row-major, of the grid that `middle` is twice as fine as.
            middle, fine: of the backbone.
            matched: (M,) int64 cells of a single image; only their windows are computed, if that costs less. None for
                the whole map.

        Returns:
            (B, Cf, ceil(H / 2), ceil(W / 2)), channels last.
        """
        height, width = middle.shape[2:]
        # Divided as by the authors, against overflow in fp16; the convolutions were trained with it.
        grid = (-(-height // 2), -(-width // 2))
        maps = _as_map(cells / math.sqrt(cells.shape[2]), grid)
        up = _plus(self.layer2_outconv, middle, _fitting(twice(self.layer3_outconv(maps)), middle))
        wanted = None if matched is None else _wanted(matched, grid, middle, fine)
        made = None if wanted is None else smoothed_places(self.layer2_outconv2, up, wanted[0], blank=True)
        up = smoothed(self.layer2_outconv2, up) if made is None else made
        up = _plus(self.layer1_outconv, fine, _fitting(twice(up), fine))
        made = None if wanted is None else smoothed_places(self.layer1_outconv2, up, wanted[1])
        return smoothed(self.layer1_outconv2, up) if made is None else made

    def fold_batch_norm(self) -> None:
        """Fold the batch norms into the convolutions before them."""
        for smoothing in (self.layer2_outconv2, self.layer1_outconv2):
            first, norm = smoothing[0], smoothing[1]
            if isinstance(first, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                smoothing[0], smoothing[1] = fuse_conv_bn_eval(first, norm), nn.Identity()


@made_once
def bilinear(side: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(side, squares) weights of bilinear interpolation from squares to the cells along one axis."""
    count = -(-side // window)
    place = ((torch.arange(side) + 0.5) / window - 0.5).clamp(0, count - 1)
    return (1 - (place[:, None] - torch.arange(count)).abs()).clamp_min(0).to(device, dtype)


def _interpolated(squares: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, squares, C) -> (B, cells, C), with the weights of `bilinear` for both axes."""
    channels = squares.shape[2]
    tall = rows @ squares.unflatten(1, (rows.shape[1], columns.shape[1])).flatten(2)
    return (columns @ tall.unflatten(2, (columns.shape[1], channels))).flatten(1, 2)


def rotated(tokens: Tensor, grid: Grid, spacing: float) -> Tensor:
    """(B, N, C) tokens of a grid, rotated by their positions: pairs of channels alternately by the row and by the
    column.

    The rotation is an fp32 island. Frequencies decrease along all channels, before these are split into heads: the
    first head sees the smallest distances, the last the largest.
    """
    if is_fixed() and not is_traced():
        numbers = torch.view_as_complex(tokens.float().unflatten(2, (-1, 2)))
        numbers = numbers * _complex_rotations(grid, spacing, tokens.shape[2], tokens.device)
        return torch.view_as_real(numbers).flatten(2).to(tokens.dtype)
    cosine, sine = _rotations(grid, spacing, tokens.shape[2], tokens.device)
    pairs = tokens.float().unflatten(2, (-1, 2))
    first, second = pairs[..., 0], pairs[..., 1]
    rotated = torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=3)
    return rotated.flatten(2).to(tokens.dtype)


@made_once
def _rotations(grid: Grid, spacing: float, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, C / 2) cosines and sines, float32. Positions count from 1."""
    count = channels // 4
    frequencies = torch.exp(torch.arange(count).float() * (-math.log(_LONGEST) / count))
    row, column = (torch.arange(1, side + 1).float() * spacing for side in grid)
    angles = torch.stack(
        [
            (row[:, None] * frequencies)[:, None].expand(-1, grid[1], -1),
            (column[:, None] * frequencies)[None].expand(grid[0], -1, -1),
        ],
        dim=3,
    ).reshape(grid[0] * grid[1], 2 * count)
    return angles.cos().to(device), angles.sin().to(device)


@made_once
def _complex_rotations(grid: Grid, spacing: float, channels: int, device: torch.device) -> Tensor:
    """(N, C / 2) complex64."""
    return torch.complex(*_rotations(grid, spacing, channels, torch.device("cpu"))).to(device)


def _as_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, L, C) -> (B, C, rows, columns), a view, channels last in memory."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def _of_one_batch(*tensors: Tensor) -> list[Tensor]:
    """Expand items shared by all pairs to the batch, without a copy."""
    batch = max(len(tensor) for tensor in tensors)
    return [tensor.expand(batch, *tensor.shape[1:]) for tensor in tensors]


def _smoothing(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
    )


def _wanted(cells: Tensor, grid: Grid, middle: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the maps at 1/4 and 1/2 needed for the windows around (M,) cells, (Hm, Wm) and (Hf, Wf) bool."""
    taken = torch.zeros(1, 1, grid[0] * grid[1], device=cells.device)
    taken[..., cells] = 1
    height, width = fine.shape[2:]
    squares = functional.interpolate(taken.unflatten(2, grid), scale_factor=4.0)[..., :height, :width]
    of_fine = functional.max_pool2d(squares, 3, 1, padding=1)
    # Two convolutions extend the area by two places, and upsampling uses a place and one next to it.
    around = functional.max_pool2d(of_fine, 5, 1, padding=2)
    halved = functional.max_pool2d(around, 2, ceil_mode=True)[..., : middle.shape[2], : middle.shape[3]]
    of_middle = functional.max_pool2d(halved, 3, 1, padding=1)
    return of_middle[0, 0] > 0, of_fine[0, 0] > 0


def _plus(conv: nn.Conv2d, x: Tensor, onto: Tensor) -> Tensor:
    """conv(x) + onto, overwriting `onto` if it is not needed any more."""
    if isinstance(conv, OneDnnConv):
        return conv(x, onto=onto)
    return onto + conv(x)


def _fitting(coarse: Tensor, fine: Tensor) -> Tensor:
    """Cut to the size of the finer map: at odd sizes that has one row or column less."""
    if coarse.shape[2:] == fine.shape[2:]:
        return coarse
    return coarse[..., : fine.shape[2], : fine.shape[3]].contiguous(memory_format=torch.channels_last)
