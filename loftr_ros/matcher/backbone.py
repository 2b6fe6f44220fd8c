"""The convolutional backbone: a small ResNet that ends at the coarse grid (paper, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from loftr_ros.matcher.config import BackboneConfig


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1: nn.Module = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2: nn.Module = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        # The published networks shortcut with a convolution exactly where the resolution changes.
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(y.add_(shortcut) if not y.requires_grad else y + shortcut)


class Backbone(nn.Module):
    """Image to coarse features.

    Module names are those of the published checkpoints.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        dims = config.block_dims
        self.num_stages = len(dims)
        self.conv1 = _conv(1, config.initial_dim, 7, 2)
        self.bn1: nn.Module = nn.BatchNorm2d(config.initial_dim)
        self.relu = nn.ReLU(inplace=True)
        inputs = config.initial_dim
        for i, outputs in enumerate(dims, start=1):
            stage = nn.Sequential(
                ResidualBlock(inputs, outputs, 1 if i == 1 else 2), ResidualBlock(outputs, outputs, 1)
            )
            self.add_module(f"layer{i}", stage)
            inputs = outputs
        self.add_module(f"layer{self.num_stages}_outconv", _conv(inputs, inputs, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Coarse features.

        Args:
            image: (B, 1, H, W) in [0, 1], sides multiples of the stride.

        Returns:
            (B, C, H / stride, W / stride).
        """
        x = self.relu(self.bn1(self.conv1(image)))
        for i in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
        coarse: Tensor = self.get_submodule(f"layer{self.num_stages}_outconv")(x)
        return coarse

    def fold_batch_norm(self) -> None:
        """Put the batch norms into the convolutions before them: the same function, fewer passes over memory."""
        for module in list(self.modules()):
            if isinstance(module, (Backbone, ResidualBlock)):
                for name, norm_name in (("conv1", "bn1"), ("conv2", "bn2")):
                    if isinstance(getattr(module, norm_name, None), nn.BatchNorm2d):
                        setattr(module, name, fuse_conv_bn_eval(getattr(module, name), getattr(module, norm_name)))
                        setattr(module, norm_name, nn.Identity())
            if isinstance(module, ResidualBlock) and isinstance(module.downsample, nn.Sequential):
                conv, norm = module.downsample.children()
                assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
                module.downsample = fuse_conv_bn_eval(conv, norm)
