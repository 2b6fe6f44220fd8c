"""Linear attention (paper, section 3.2), with its fp32 island."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6


def linear_attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Attention with the kernel elu(x) + 1 in place of the softmax: linear in the number of tokens.

    Args:
        query: (B, heads, L, D).
        key, value: (B, heads, S, D).
        key_mask: (B, S) bool, false where a token is padding and must not be attended to; None for no padding.

    Returns:
        (B, heads, L, D) in the dtype of `value`.
    """
    query = functional.elu(query) + 1
    key = functional.elu(key) + 1
    if key_mask is not None:
        key = key * key_mask[:, None, :, None]
    tokens = value.shape[2]
    # Divided by the number of tokens before the sum and multiplied after it: the sum over 4800 tokens would
    # leave fp16's range. For the same reason the denominator is an fp32 island: in fp16 it is infinite, the
    # message zero, and nothing says so.
    context = key.transpose(-1, -2) @ (value / tokens)
    denominator = query.float() @ key.float().sum(dim=2)[..., None] + EPSILON
    return (query @ context) * (tokens / denominator).to(value.dtype)
