"""What inference makes of convolutions: their weights rounded with care, and oneDNN's own operations on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLOPE = 0.01  # of torch's leaky ReLU


def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Round the convolutions' weights to a dtype, each one's error carried on to the next of its kernel.

    What enters a convolution has passed a ReLU: it is a large mean with a small signal on it. The errors of the
    rounded weights do not cancel in that mean, and the sum of a kernel's is what they come to. Carried on, it is no
    larger than one weight's: in bfloat16 this halves the error of the coarse features, at no cost in time.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(_rounded_with_carry(module.weight, dtype))


def biases_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the convolutions' biases, by the modules' names."""
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: conv.bias.detach().clone() for name, conv in convs.items() if conv.bias is not None}


def use_onednn(network: nn.Module, biases: dict[str, Tensor]) -> None:
    """Let oneDNN compute each convolution together with what follows it, on a CPU; for inference only.

    In bfloat16 the biases and the sums stay in fp32 then: a rounded bias is off by the same amount all over the
    image, and in a deep layer that is as much as all the rounding of activations together.

    Args:
        network: whose convolutions are replaced by `OneDnnConv`.
        biases: (O,) float32 by the module's name.
    """
    for name, conv in list(network.named_modules()):
        if isinstance(conv, nn.Conv2d):
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, OneDnnConv(conv, biases.get(name)))


class OneDnnConv(nn.Conv2d):
    """A convolution, an addition and an activation in one pass over memory, with the bias in fp32."""

    def __init__(self, conv: nn.Conv2d, bias: Tensor | None) -> None:
        """Take over the weights of `conv`, and `bias`, (O,) float32."""
        outputs, inputs, *kernel = conv.weight.shape
        super().__init__(inputs, outputs, (kernel[0], kernel[1]), device="meta")
        self.stride, self.padding = conv.stride, conv.padding
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("full_bias", bias, persistent=False)
        # Of an image of one channel, oneDNN's arrangement makes it take a third of the time; of others, as much.
        self._arranged: Tensor | None = None
        if inputs == 1:
            arrange = torch.ops.mkldnn._reorder_convolution_weight
            self._arranged = arrange(self.weight.detach(), self.padding, self.stride, (1, 1), 1)

    @staticmethod
    def is_available() -> bool:
        """Whether this torch can; it says so nowhere in public."""
        names = "_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight"
        return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)

    def forward(self, x: Tensor, activation: str = "none", onto: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: (B, I, H, W).
            activation: "none", "relu", or "leaky_relu" with torch's slope.
            onto: (B, O, H', W') that the result is added to before the activation. It is overwritten.

        Returns:
            (B, O, H', W'), which is `onto` where that is given.
        """
        if torch.onnx.is_in_onnx_export():  # an exported graph is for others, who have no oneDNN
            y: Tensor = super().forward(x)
            return _activated(y if onto is None else onto + y, activation)
        weight = self.weight if self._arranged is None else self._arranged
        scalars = [_SLOPE] if activation == "leaky_relu" else []
        shape = (self.padding, self.stride, (1, 1), 1)
        if onto is None:
            convolve = torch.ops.mkldnn._convolution_pointwise
            y = convolve(x, weight, self.full_bias, *shape, activation, scalars, "")
            return y  # noqa: RET504
        if self.full_bias is not None and self.full_bias.dtype != x.dtype:  # not both a sum and another dtype
            return _activated(onto.add_(self(x)), activation)
        unary = None if activation == "none" else activation
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        add(onto, x, weight, self.full_bias, *shape, "add", 1.0, unary, scalars, "")
        return onto


def _activated(x: Tensor, activation: str) -> Tensor:
    """An activation in place."""
    if activation == "none":
        return x
    return functional.relu_(x) if activation == "relu" else functional.leaky_relu_(x, _SLOPE)


def _rounded_with_carry(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(O, I, H, W) with every value one of `dtype`; the carry goes along the taps, then on to the next input."""
    kernels = weight.flatten(1).t().contiguous()
    carry = torch.zeros_like(kernels[0])
    for tap in kernels:
        carry += tap
        tap.copy_(carry.to(dtype))
        carry -= tap
    return kernels.t().reshape(weight.shape)
