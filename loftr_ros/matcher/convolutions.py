"""Optimisations of convolutions and products for inference: careful rounding, memory layout, and oneDNN's
operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Tensor cores read channels of half precision by eights (NVIDIA, Convolutional Layers, section "Channels In And Out").
CHANNEL_STEP = 8
_SLOPE = 0.01  # of torch's leaky ReLU


def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Round the convolutions' weights to a dtype; each rounding error is carried over to the next weight of its kernel.

    The input of a convolution has passed a ReLU: a large mean with a small signal. Independent rounding errors would
    add up for that mean, to the sum of a kernel's errors. Carried over, their sum is no larger than one weight's error:
    in bfloat16 this halves the error of the coarse features, at no cost in time.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(_rounded_with_carry(module.weight, dtype))


def pad_convolution(conv: nn.Conv2d, inputs: int, outputs: int) -> None:
    """Append so many inputs and outputs with weights of zero, in place; for inference only."""
    if inputs or outputs:
        weight = functional.pad(conv.weight, (0, 0, 0, 0, 0, inputs, 0, outputs))
        conv.weight = nn.Parameter(weight, requires_grad=False)
        if conv.bias is not None:
            conv.bias = nn.Parameter(functional.pad(conv.bias, (0, outputs)), requires_grad=False)
        conv.in_channels, conv.out_channels = conv.in_channels + inputs, conv.out_channels + outputs


def biases_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the convolutions' biases, by the modules' names."""
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: conv.bias.detach().clone() for name, conv in convs.items() if conv.bias is not None}


def use_onednn(network: nn.Module, biases: dict[str, Tensor]) -> None:
    """Let oneDNN compute each convolution together with the operations after it, if supported; for inference only.

    It supports CPUs, in float32 and bfloat16; elsewhere nothing changes.

    In bfloat16 the biases and the sums then stay in fp32: a rounded bias has the same error all over the image, and in
    a deep layer that is as much as all the rounding of activations together.

    Args:
        network: its convolutions are replaced by `OneDnnConv`.
        biases: (O,) float32 by the module's name.
    """
    for name, conv in list(network.named_modules()):
        if isinstance(conv, nn.Conv2d) and OneDnnConv.computes(conv.weight):
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, OneDnnConv(conv, biases.get(name)))


def lay_out_products(network: nn.Module) -> None:
    """Store the weights of linear layers in the order that products need: a tenth of the time, on a CPU."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()


class OneDnnConv(nn.Conv2d):
    """A convolution, an addition and an activation in one pass over memory, with the bias in fp32."""

    full_bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, bias: Tensor | None) -> None:
        """Use the weights of `conv`, and `bias`, (O,) float32."""
        outputs, inputs, *kernel = conv.weight.shape
        super().__init__(inputs, outputs, (kernel[0], kernel[1]), device="meta")
        self.stride, self.padding = conv.stride, conv.padding
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("full_bias", bias, persistent=False)
        # For one-channel images oneDNN's arrangement saves two thirds of the time; for others nothing.
        self._arranged: Tensor | None = None
        if inputs == 1:
            arrange = torch.ops.mkldnn._reorder_convolution_weight
            self._arranged = arrange(self.weight.detach(), self.padding, self.stride, (1, 1), 1)

    @staticmethod
    def computes(weight: Tensor) -> bool:
        """Whether oneDNN supports a device and dtype in this torch, which has no public query for it."""
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            return False
        names = "_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight"
        return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)

    def forward(self, x: Tensor, activation: str = "none", onto: Tensor | None = None, biased: bool = True) -> Tensor:
        """Convolve.

        Args:
            x: (B, I, H, W).
            activation: "none", "relu", or "leaky_relu" with torch's slope.
            onto: (B, O, H', W') added to the result before the activation. It is overwritten.
            biased: whether to add the bias; false if `onto` has it already.

        Returns:
            (B, O, H', W'); `onto` if given.
        """
        bias = self.full_bias if biased else None
        if is_traced():  # a graph is for other runtimes, which have no oneDNN
            y = functional.conv2d(x, self.weight, self.bias if biased else None, self.stride, self.padding)
            return _activated(y if onto is None else onto + y, activation)
        weight = self.weight if self._arranged is None else self._arranged
        scalars = [_SLOPE] if activation == "leaky_relu" else []
        shape = (self.padding, self.stride, (1, 1), 1)
        if onto is None:
            convolve = torch.ops.mkldnn._convolution_pointwise
            return convolve(x, weight, bias, *shape, activation, scalars, "")
        if bias is not None and bias.dtype != x.dtype:  # oneDNN has no sum together with another dtype
            return _activated(onto.add_(self(x)), activation)
        unary = None if activation == "none" else activation
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        add(onto, x, weight, bias, *shape, "add", 1.0, unary, scalars, "")
        return onto


def is_traced() -> bool:
    """Whether a graph is being traced for another runtime."""
    return bool(torch.onnx.is_in_onnx_export() or torch.jit.is_tracing())  # type: ignore[attr-defined]


def twice(x: Tensor) -> Tensor:
    """Upsample by two, bilinearly; features stay at the centres of their pixels.

    For inference on a CPU it works along the columns and then along the rows, in passes over whole rows of memory:
    torch's own interpolation takes three to five times as long at 24 channels, which its vectors do not divide.

    Args:
        x: (B, C, H, W), channels last.

    Returns:
        (B, C, 2 H, 2 W), channels last.
    """
    if x.device.type != "cpu" or x.requires_grad or is_traced():
        return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    maps = x.permute(0, 2, 3, 1)
    batch, height, width, channels = maps.shape
    wide = maps.new_empty(batch, height, width, 2, channels)
    _between(maps, wide, 2)
    tall = maps.new_empty(batch, height, 2, 2 * width * channels)
    _between(wide.view(batch, height, -1), tall, 1)
    return tall.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _between(x: Tensor, result: Tensor, dim: int) -> None:
    """Interpolate a quarter of the distance from each entry to the previous and to the next one along a dimension.

    Args:
        x: the entries; the first has no previous and the last no next one.
        result: with another dimension of size 2 after `dim`; overwritten.
    """
    count = x.shape[dim] - 1
    before, after = result.select(dim + 1, 0), result.select(dim + 1, 1)
    first, last = x.narrow(dim, 0, count), x.narrow(dim, 1, count)
    torch.lerp(last, first, 0.25, out=before.narrow(dim, 1, count))
    torch.lerp(first, last, 0.25, out=after.narrow(dim, 0, count))
    before.select(dim, 0).copy_(x.select(dim, 0))
    after.select(dim, count).copy_(x.select(dim, count))


def _activated(x: Tensor, activation: str) -> Tensor:
    """An activation in place."""
    if activation == "none":
        return x
    return functional.relu_(x) if activation == "relu" else functional.leaky_relu_(x, _SLOPE)


def _rounded_with_carry(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(O, I, H, W) with every value in `dtype`; the carry runs along the taps, then to the next input."""
    kernels = weight.flatten(1).t().contiguous()
    carry = torch.zeros_like(kernels[0])
    for tap in kernels:
        carry += tap
        tap.copy_(carry.to(dtype))
        carry -= tap
    return kernels.t().reshape(weight.shape)


def smoothed(smoothing: nn.Sequential, x: Tensor) -> Tensor:
    """Two convolutions with a leaky ReLU between them."""
    first, second = smoothing[0], smoothing[3]
    if isinstance(first, OneDnnConv) and isinstance(second, OneDnnConv):
        return second(first(x, "leaky_relu"))
    y: Tensor = smoothing(x)
    return y
