"""Softmax attention of queries to all keys, in the fastest form for the device and precision.

Dims     B batch   H heads   N queries   L keys   D width of a key   V width of a value
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MAX_PLAIN = 512
"""Up to this many keys, two products and a softmax are faster in bfloat16 on a CPU than torch's
fused attention (`benchmarks/attention.py`). With more, it depends on the CPU which one is faster,
and the products keep a large matrix for the backward pass."""


def attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H L D"],
    v: Float[Tensor, "B H L V"],
    scale: float | None = None,
) -> Float[Tensor, "B H N V"]:
    """Return softmax(scale q kᵀ) v, with a scale of 1 / sqrt(D) by default.

    On a CPU, the fused kernel of torch 2.14 is slow in bfloat16 if there are few keys, especially
    its backward pass.
    """
    is_fused = q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[-2] > MAX_PLAIN
    if is_fused:
        return scaled_dot_product_attention(q, k, v, scale=scale)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    similarity = (scale * q) @ k.mT  # (B, H, N, L)
    return similarity.softmax(dim=-1) @ v
