"""The convolutional backbone: a ResNet with a feature pyramid back up to the fine grid (paper, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
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
        """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(_sum(y, x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """Image to coarse features, and to fine features where the network has a fine stage.

    Module names are those of the published checkpoints.
    """

    def __init__(self, config: BackboneConfig) -> None:
        """Random weights.

        Raises:
            ValueError: the first stage, which has no convolution in its shortcut, is not as wide as the stem.
        """
        super().__init__()
        dims = config.block_dims
        if config.initial_dim != dims[0]:
            raise ValueError(f"initial_dim is {config.initial_dim}; expected block_dims[0], {dims[0]}")
        self.num_stages = len(dims)
        self.fine_level = config.fine_level
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
        for i in range(self.num_stages - 1, (config.fine_level or self.num_stages) - 1, -1):
            above, here = dims[i], dims[i - 1]
            self.add_module(f"layer{i}_outconv", _conv(here, above, 1))
            smooth = nn.Sequential(
                _conv(above, above, 3), nn.BatchNorm2d(above), nn.LeakyReLU(inplace=True), _conv(above, here, 3)
            )
            self.add_module(f"layer{i}_outconv2", smooth)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coarse features, and what `smooth` makes the fine ones of.

        A coarse cell (x, y) stands on pixel (stride x, stride y): every kernel is centred. So a side that is no
        multiple of the stride needs no padding; its last cells still stand inside the image.

        Args:
            image: (B, 1, H, W) in [0, 1], any size of at least one coarse cell.

        Returns:
            (B, C, ceil(H / stride), ceil(W / stride)) in fp32, and None or
            (B, Cu, ceil(H / fine_stride), ceil(W / fine_stride)).
        """
        x = self.relu(self.bn1(self.conv1(image)))
        stages = []
        for i in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
            stages.append(x)
        # In fp32 in every precision: it is a hundredth of the work, and all that follows rests on it.
        coarse = functional.conv2d(x.float(), self.projection.weight.float())
        if self.fine_level is None:
            return coarse, None
        up = coarse.to(x.dtype)
        for i in range(self.num_stages - 1, self.fine_level - 1, -1):
            lateral = self.get_submodule(f"layer{i}_outconv")(stages[i - 1])
            stages.pop()  # nothing needs the stage above any more
            unsmoothed = _sum(lateral, _twice(up, lateral))
            if i > self.fine_level:
                up = self.get_submodule(f"layer{i}_outconv2")(unsmoothed)
        return coarse, unsmoothed

    @property
    def projection(self) -> nn.Conv2d:
        """The 1x1 convolution that the coarse features come out of."""
        projection = self.get_submodule(f"layer{self.num_stages}_outconv")
        assert isinstance(projection, nn.Conv2d)
        return projection

    def smooth(self, unsmoothed: Tensor) -> Tensor:
        """The fine features, (B, Cu, Hf, Wf) -> (B, Cf, Hf, Wf)."""
        fine: Tensor = self.get_submodule(f"layer{self.fine_level}_outconv2")(unsmoothed)
        return fine

    def smooth_windows(self, patches: Tensor, inside: Tensor) -> Tensor:
        """The fine features of small windows only; `fold_batch_norm` must have been called.

        Args:
            patches: (M, Cu, W + 4, W + 4) of the unsmoothed features, zero outside of the image.
            inside: (M, W + 4, W + 4) bool, whether a place is inside of it.

        Returns:
            (M, Cf, W, W), as if cut out of what `smooth` returns.
        """
        first, _, activation, second = self.get_submodule(f"layer{self.fine_level}_outconv2").children()
        assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
        x = activation(functional.conv2d(patches, first.weight, first.bias))
        if not inside.all():  # the second convolution pads with zeros, not with what the first makes of zeros
            x = x * inside[:, None, 1:-1, 1:-1]
        return functional.conv2d(x, second.weight, second.bias)

    def fold_batch_norm(self) -> None:
        """Put the batch norms into the convolutions before them: the same function, fewer passes over memory."""
        for module in list(self.modules()):
            if isinstance(module, (Backbone, ResidualBlock)):
                for name, norm_name in (("conv1", "bn1"), ("conv2", "bn2")):
                    norm = getattr(module, norm_name, None)
                    if isinstance(norm, nn.BatchNorm2d):
                        setattr(module, name, fuse_conv_bn_eval(getattr(module, name), norm))
                        setattr(module, norm_name, nn.Identity())
            elif isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
                conv = module[0]
                assert isinstance(conv, nn.Conv2d)
                module[0] = fuse_conv_bn_eval(conv, module[1])
                module[1] = nn.Identity()

    def round_weights(self, dtype: torch.dtype) -> None:
        """Round the convolutions' weights to a dtype, each one's error carried on to the next of its kernel.

        What enters a convolution has passed a ReLU: it is a large mean with a small signal on it. The errors of the
        rounded weights do not cancel in that mean, and the sum of a kernel's is what they come to. Carried on, it is no
        larger than one weight's: in bfloat16 this halves the error of the coarse features, at no cost in time.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(_rounded_with_carry(module.weight, dtype))

    def biases(self) -> dict[str, Tensor]:
        """Copies of the convolutions' biases, by the modules' names."""
        convs = {name: module for name, module in self.named_modules() if isinstance(module, nn.Conv2d)}
        return {name: conv.bias.detach().clone() for name, conv in convs.items() if conv.bias is not None}

    def keep_biases(self, biases: dict[str, Tensor]) -> None:
        """Let the convolutions of a network in bfloat16 on a CPU add biases in fp32, as oneDNN can.

        A rounded bias is off by the same amount all over the image, and in a deep layer that is as much as all the
        rounding of activations together.

        Args:
            biases: (O,) float32 by the module's name.
        """
        for name, bias in biases.items():
            conv = self.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            parent, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(parent), attribute, _BiasInFullPrecision(conv, bias))


class _BiasInFullPrecision(nn.Conv2d):
    """A convolution in bfloat16 whose bias is in fp32; torch's own wants both in one dtype."""

    def __init__(self, conv: nn.Conv2d, bias: Tensor) -> None:
        outputs, inputs, *kernel = conv.weight.shape
        super().__init__(inputs, outputs, (kernel[0], kernel[1]), device="meta")
        self.stride, self.padding = conv.stride, conv.padding
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("full_bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        convolve = torch.ops.mkldnn._convolution_pointwise
        y: Tensor = convolve(x, self.weight, self.full_bias, self.padding, self.stride, (1, 1), 1, "none", [], "")
        return y


def _rounded_with_carry(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(O, I, H, W) with every value one of `dtype`; the carry goes along the taps, then on to the next input."""
    kernels = weight.flatten(1).t().contiguous()
    carry = torch.zeros_like(kernels[0])
    for tap in kernels:
        carry += tap
        tap.copy_(carry.to(dtype))
        carry -= tap
    return kernels.t().reshape(weight.shape)


def _twice(coarse: Tensor, fine: Tensor) -> Tensor:
    """Twice as large, cut to the size of the finer map: at odd sizes that has one row or column less."""
    twice = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=True)
    return twice[..., : fine.shape[2], : fine.shape[3]]


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """x + y, over x where no gradient needs it."""
    return x + y if x.requires_grad else x.add_(y)
