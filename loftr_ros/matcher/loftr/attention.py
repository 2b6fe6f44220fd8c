"""Linear and full attention (paper, section 3.2), with the fp32 islands of the linear one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.constants import made_once
from loftr_ros.matcher.fixed import is_fixed

EPSILON = 1e-6
# Above any weight of real attention, below the end of fp16's range. If nothing may be attended to, a query is divided
# by EPSILON; infinity times the products' zero would not be zero.
_LARGEST_QUERY = 6e4


class Context(NamedTuple):
    """Summary of a sequence of keys and values for linear attention, of a size independent of its length.

    Attributes:
        products: (B, heads, D, D) fp32, the sum of key times value over the tokens, divided by their number.
        keys: (B, heads, D) fp32, the sum of the keys, divided by their number.
    """

    products: Tensor
    keys: Tensor


def feature_map(x: Tensor) -> Tensor:
    """The kernel elu(x) + 1 that replaces the softmax."""
    if x.dtype == torch.bfloat16 and not x.requires_grad:
        # Equivalent in half the time, and small values are not rounded as parts of 1.
        return x.clamp_max(0).exp_().add_(functional.relu(x))
    return functional.elu(x).add_(1)


def summarise(key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Context:
    """Reduce keys and values to the sums that queries need.

    Both sums are divided by the number of tokens: over 4800 tokens they would leave fp16's range. They are held in
    fp32, and so is the denominator made of them: in fp16 it can be infinite, and the message then silently becomes
    zero.

    Args:
        key, value: (B, S, C), the channels of a head side by side, keys before the feature map.
        heads: number of heads.
        mask: (B, S) bool, false for masked tokens; None for none.
    """
    key = feature_map(key)
    if mask is not None:
        key = key * mask[..., None]
    batch, tokens, channels = key.shape
    value = value / tokens
    if tokens > channels:
        # Multiply all channels with all, although only the diagonal blocks, of one head each, are used. It takes less
        # time than a product per head, which needs a transposed copy of the tokens.
        blocks = (key.transpose(1, 2) @ value).view(batch, heads, channels // heads, heads, -1)
        products = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).float()
    else:
        by_head = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (key, value))
        products = (next(by_head).transpose(2, 3) @ next(by_head)).float()
    keys = key.mean(dim=1, dtype=torch.float32)
    return Context(products, keys.view(batch, heads, -1))


def summarise_projected(key: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Context:
    """`summarise` for one head with all channels, of values that are not yet projected from their tokens.

    A projection of the values is linear, so it can be applied to the sum: once, instead of to every token.

    Args:
        key: (B, S, C), before the feature map.
        tokens: (B, S, C), input of the projection to values.
        mask: (B, S) bool, false for masked tokens; None for none.

    Returns:
        Products of all channels of the keys with all of the tokens, (B, 1, C, C), and the keys, (B, 1, C).
    """
    key = feature_map(key)
    if mask is not None:
        key = key * mask[..., None]
    count = key.shape[1]
    if key.dtype == torch.float16:  # the sum would exceed its range
        products = (key.transpose(1, 2) @ (tokens / count)).float()
    else:
        products = (key.transpose(1, 2) @ tokens).float() / count
    if key.dtype == torch.bfloat16 and not key.requires_grad:
        # Partial sums in fp32, rounded at their ends: one sum to fp32 would copy all keys first.
        parts = key.split(64, dim=1)
        keys = torch.stack([part.sum(dim=1) for part in parts]).sum(dim=0, dtype=torch.float32) / count
    else:
        keys = key.mean(dim=1, dtype=torch.float32)
    return Context(products[:, None], keys[:, None])


def project_values(context: Context, weight: Tensor, heads: int) -> Context:
    """The context of each head's own channels, after `summarise_projected`.

    Args:
        context: (B, 1, C, C) and (B, 1, C).
        weight: (C, C) of the projection, fp32, one row per channel of the values.
        heads: number of heads.
    """
    batch, _, channels, _ = context.products.shape
    by_head = context.products.view(batch, heads, -1, channels)
    return Context(by_head @ weight.view(heads, -1, channels).transpose(1, 2), context.keys.view(batch, heads, -1))


def normalise(query: Tensor, context: Context) -> Tensor:
    """Queries after the feature map, divided by their sum over the keys. Times `context.products` they give the
    message.

    The denominator is an fp32 island.

    Args:
        query: (B, L, C), before the feature map, the channels of a head side by side.
        context: of the attended sequence, of B or 1 sequences.

    Returns:
        (B, L, C) in the query's dtype. If all tokens are masked, it is finite, and the products are zero.
    """
    heads, channels = map(int, context.keys.shape[1:])
    # One product with a block-diagonal matrix (heads * channels, heads) instead of one per head.
    blocks = _eye(heads, query.device)[:, None, :] * context.keys[..., None]
    mapped = feature_map(query)
    if query.dtype == torch.bfloat16 and not query.requires_grad:
        # It has the range of fp32, and the denominator's rounding error is no larger than the message's.
        share = (mapped @ blocks.flatten(1, 2).to(query.dtype)).add_(EPSILON).reciprocal_()
        mapped.view(*query.shape[:2], heads, channels).mul_(share[..., None])
        return mapped
    denominator = mapped.float() @ blocks.flatten(1, 2) + EPSILON
    if is_fixed():
        by_head = mapped.unflatten(2, (heads, channels))
        if len(denominator) != len(mapped):
            by_head = by_head.expand(len(denominator), -1, -1, -1).clone()
        by_head.div_(denominator[..., None])
        return (by_head.clamp_max(_LARGEST_QUERY) if query.dtype == torch.float16 else by_head).flatten(2)
    share = 1 / denominator
    by_head = mapped.view(*query.shape[:2], heads, channels)
    if query.requires_grad:
        return (by_head * share[..., None]).to(query.dtype).flatten(2)
    by_head.mul_(share[..., None])  # in fp32, and rounded once
    return (by_head.clamp_max_(_LARGEST_QUERY) if query.dtype == torch.float16 else by_head).flatten(2)


@made_once
def _eye(count: int, device: torch.device) -> Tensor:
    return torch.eye(count).to(device)


def linear_attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Attention with the kernel elu(x) + 1 in place of the softmax: linear in the number of tokens.

    Args:
        query: (B, heads, L, D).
        key, value: (B, heads, S, D).
        key_mask: (B, S) bool, false for masked tokens; None for none.

    Returns:
        (B, heads, L, D) in the dtype of `value`.
    """
    heads = query.shape[1]
    context = summarise(key.transpose(1, 2).flatten(2), value.transpose(1, 2).flatten(2), heads, key_mask)
    normalised = normalise(query.transpose(1, 2).flatten(2), context).unflatten(2, (heads, -1))
    return normalised.transpose(1, 2).to(value.dtype) @ context.products.to(value.dtype)


def full_attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Softmax attention; arguments and result as `linear_attention`. torch never stores its weights whole.

    If every key is masked, all have equal weight: no result is NaN.
    """
    mask = None
    if key_mask is not None:
        lowest = torch.finfo(query.dtype).min / 2
        mask = torch.zeros(key_mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~key_mask, lowest)
        mask = mask[:, None, None, :]
    return softmax_attention(query, key, value, mask, query.shape[3] ** -0.5)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax attention by torch's fused kernel; for the export written out, with the softmax as an fp32 island.

    torch's exporter writes the fused kernel's scale in fp32. The message would then be fp32 too, for which the
    half-precision layers after it are not defined.

    Args:
        query: (B, heads, L, D).
        key, value: (B, heads, S, D).
        mask: added to the products of queries and keys, or as bool, true for tokens that take part; broadcast to (B,
            heads, L, S); None for all.
        scale: of the products.
    """
    if not torch.onnx.is_in_onnx_export():
        return functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    logits = ((query * scale) @ key.transpose(2, 3)).float()
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.float()
    return logits.softmax(dim=3).to(value.dtype) @ value
