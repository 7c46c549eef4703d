"""Find the positions of the largest numbers in each row, faster than `torch.topk` on a CPU.

NumPy selects with vector instructions (AVX-512 or AVX2, from Intel's x86-simd-sort); torch 2.14
does not. Selecting the 512 largest of 8,192 numbers in each of 256 rows is about ten times faster
that way (`benchmarks/write_parts.py`).

Dims     R rows   T numbers in a row   K selected
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_PACKED = 2**16
"""Longest row whose positions fit into the lower half of a 32-bit key."""
BLOCK = 2**18
"""Numbers in a block of rows at most; a longer row is a block of its own."""
_LARGEST_NAN = 0x7F
"""Subtracting it from the ranks of bfloat16 numbers moves NaN with either sign to the top."""


def largest(x: Float[Tensor, "R T"], count: int) -> Int[Tensor, "R K"]:
    """Return the positions of the `count` largest numbers of each row, in no particular order.

    NaN counts as the largest number, as in `torch.topk`. If several numbers are equal, it is
    unspecified which of them are selected, but the same ones are selected every time.
    """
    if x.device.type != "cpu":
        return x.topk(count, dim=-1, sorted=False).indices
    num_rows = max(1, BLOCK // x.shape[1])  # so that a block and its copies stay in the cache
    return torch.cat([_select(block, count) for block in torch.split(x, num_rows)])


@torch.library.custom_op(
    "associative_transformer::select_largest",
    mutates_args=(),
    schema="(Tensor x, int count) -> Tensor",
)
def select_largest(x: Float[Tensor, "R T"], count: int) -> Int[Tensor, "R K"]:
    """Return what `largest` does, as an operator that torch.compile does not look into."""
    return largest(x, count)


@select_largest.register_fake
def _(x: Tensor, count: int) -> Tensor:
    return x.new_empty(x.shape[0], count, dtype=torch.long)


def _select(x: Float[Tensor, "R T"], count: int) -> Int[Tensor, "R K"]:
    """Return the positions of the `count` largest numbers of each row of a block."""
    start = x.shape[1] - count
    if x.dtype == torch.bfloat16 and x.shape[1] <= MAX_PACKED:
        keys = _pack(x)
        keys.numpy().partition(start, axis=-1)
        return keys[:, start:].bitwise_and(MAX_PACKED - 1).long()
    if x.dtype.itemsize < 4:  # NumPy has no bfloat16, and is slow in float16
        x = x.float()
    return torch.from_numpy(np.argpartition(x.numpy(), start, axis=-1)[:, start:])


def _pack(x: Float[Tensor, "R T"]) -> Int[Tensor, "R T"]:
    """Return a 32-bit key for each bfloat16 number: its rank in the upper bits, then its position.

    The bits of positive numbers are ordered like the numbers, those of negative ones in reverse.
    """
    bits = x.view(torch.int16)
    rank = (bits ^ ((bits >> 15) & 0x7FFF)) - _LARGEST_NAN  # wraps around for -NaN
    return rank.int().mul_(MAX_PACKED).add_(torch.arange(x.shape[1], dtype=torch.int32))
