"""Competition of the priors of a head for each token, and its part of the gradient.

A log-softmax over the priors connects them: choosing a token for one prior has a gradient for all
priors of its head, so that this part is dense. It is computed from the similarities to a chunk of
tokens at a time, which are not kept from the forward pass.

Dims     T tokens   C tokens of a chunk   E token width   S heads   M priors   K bottleneck
         R = S * M rows of queries
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def by_head(similarity: Float[Tensor, "R C"], num_heads: int) -> Float[Tensor, "S M C"]:
    """Return the similarities of each head, in at least float32."""
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    return torch.unflatten(similarity.to(dtype), 0, (num_heads, -1))


def subtract_shares(
    queries_grad: Float[Tensor, "R E"],
    tokens_grad: Float[Tensor, "T E"],
    queries: Float[Tensor, "R E"],
    tokens: Float[Tensor, "T E"],
    slope: Float[Tensor, "R K"],
    chosen: Int[Tensor, "R K"],
    num_priors: int,
    chunk: int,
) -> None:
    """Subtract, from both gradients, what flows through the normalizers of the log-softmax.

    d log_softmax(a)_i / d a_j = [i = j] - softmax(a)_j, where i has chosen the token, with a slope
    of the loss, and j is any prior of the head. `chunk` is the number of tokens of a chunk.
    """
    num_heads = len(queries) // num_priors
    slopes = slope.new_zeros(num_heads, len(tokens))  # of each token, summed over the priors
    slopes.scatter_add_(1, chosen.view(num_heads, -1), slope.view(num_heads, -1))
    total = torch.zeros_like(queries, dtype=slope.dtype)
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        share = by_head(queries @ part.mT, num_heads).softmax(dim=1)
        share = share.mul_(slopes[:, None, start : start + chunk]).flatten(0, 1).to(tokens.dtype)
        total += share @ part
        tokens_grad[start : start + chunk] -= share.mT @ queries
    queries_grad -= total
