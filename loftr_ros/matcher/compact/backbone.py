"""The backbone of `compact`: features of regions (1/16), cells (1/8), and fine ones (1/2).

Sides are halved by kernels of even size, so that a feature is at the centre of its pixels: that of a cell of 8 px at
the cell's centre, at each level.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from loftr_ros.matcher.config import CompactBackboneConfig
from loftr_ros.matcher.convolutions import OneDnnConv, is_traced, twice

# Side of a region, in cells and in pixels.
REGION_CELLS = 2
REGION_PIXELS = 16


class CompactFeatures(NamedTuple):
    """Features of a batch of images.

    Attributes:
        regions: (B, Cr, H / 16, W / 16).
        cells: (B, Cc, H / 8, W / 8).
        fine: (B, Cf, H / 2, W / 2).
    """

    regions: Tensor
    cells: Tensor
    fine: Tensor


class ConvNorm(nn.Module):
    """A convolution, its batch norm, and an optional ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> None:
        super().__init__()
        padding = (kernel - stride + 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        if isinstance(self.conv, OneDnnConv):
            return self.conv(x, "relu" if self.relu else "none")
        y: Tensor = self.norm(self.conv(x))
        return functional.relu(y, inplace=True) if self.relu else y

    def fold(self) -> None:
        """Fold the batch norm into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same. In inference it overwrites x."""
        y = self.conv1(x)
        if isinstance(self.conv2.conv, OneDnnConv):
            return self.conv2.conv(y, "relu", x)
        return functional.relu(x + self.conv2(y), inplace=True)


class CompactBackbone(nn.Module):
    """See `CompactBackboneConfig`."""

    def __init__(self, config: CompactBackboneConfig) -> None:
        """Random weights.

        Raises:
            ValueError: not four levels.
        """
        super().__init__()
        if len(config.dims) != 4 or len(config.blocks) != 4:
            raise ValueError(f"dims {config.dims} and blocks {config.blocks}: expected those of 1/2, 1/4, 1/8 and 1/16")
        stages = []
        inputs = 1
        for level, (outputs, blocks) in enumerate(zip(config.dims, config.blocks, strict=True)):
            down = ConvNorm(inputs, outputs, 2 if level == 3 else 4, 2)
            stages.append(nn.Sequential(down, *(Residual(outputs) for _ in range(blocks))))
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        half, quarter, eighth, sixteenth = config.dims
        self.region_projection = nn.Conv2d(sixteenth, sixteenth, 1)
        self.cell_lateral = nn.Conv2d(eighth, config.cell_dim, 1)
        self.cell_above = nn.Conv2d(sixteenth, config.cell_dim, 1, bias=False)
        self.cell_smooth = ConvNorm(config.cell_dim, config.cell_dim, 3)
        self.cell_projection = nn.Conv2d(config.cell_dim, config.cell_dim, 1)
        self.quarter_lateral = nn.Conv2d(quarter, config.fine_dim, 1)
        self.quarter_above = nn.Conv2d(config.cell_dim, config.fine_dim, 1, bias=False)
        self.quarter_smooth = ConvNorm(config.fine_dim, config.fine_dim, 3)
        self.half_lateral = nn.Conv2d(half, config.fine_dim, 1)
        self.half_smooth = ConvNorm(config.fine_dim, config.fine_dim, 3)
        self.fine_projection = nn.Conv2d(config.fine_dim, config.fine_dim, 1)

    def forward(self, image: Tensor) -> CompactFeatures:
        """Compute all features of images.

        Args:
            image: (B, 1, H, W) in [0, 1], sides multiples of 16.
        """
        half = self.stages[0](image)
        quarter = self.stages[1](half)
        eighth = self.stages[2](quarter)
        sixteenth = self.stages[3](eighth)
        cells = self.cell_smooth(_merged(self.cell_lateral, eighth, self.cell_above(sixteenth)))
        quarter = _merged(self.quarter_lateral, quarter, self.quarter_above(cells))
        fine = _merged(self.half_lateral, half, self.quarter_smooth(quarter))
        fine = self.fine_projection(self.half_smooth(fine))
        return CompactFeatures(self.region_projection(sixteenth), self.cell_projection(cells), fine)

    @property
    def first_weight(self) -> Tensor:
        """Weight of the first convolution."""
        first = self.stages[0][0]  # type: ignore[index]
        assert isinstance(first, ConvNorm)
        return first.conv.weight

    def fold_batch_norm(self) -> None:
        """Fold the batch norms into the convolutions before them: the same function, fewer passes over memory."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()


def _merged(lateral: nn.Conv2d, x: Tensor, above: Tensor) -> Tensor:
    """Sum of the upsampled level above and the convolved features of this level.

    Args:
        lateral: of a 1x1 kernel.
        x: (B, I, H, W) features of the level.
        above: (B, O, H / 2, W / 2); in inference overwritten.
    """
    if not isinstance(lateral, OneDnnConv) or is_traced():
        return functional.relu(lateral(x) + twice(above))
    # Add the bias before upsampling, on a quarter of the places; interpolation does not change it.
    biased = above if lateral.full_bias is None else above.add_(lateral.full_bias[:, None, None])
    return lateral(x, "relu", twice(biased), biased=False)


def padded(image: Tensor) -> Tensor:
    """(B, 1, H, W) with its last row and column repeated, up to sides that are multiples of a region's."""
    height, width = image.shape[-2:]
    below, beside = -height % REGION_PIXELS, -width % REGION_PIXELS
    return functional.pad(image, (0, beside, 0, below), mode="replicate") if below or beside else image
