"""Competition of the priors of a head for each token, and its part of the gradient.

With a log-softmax over the priors, a token that one prior has chosen contributes to the gradients
of all priors of the head, so this part of the gradient is dense. It is computed one chunk of
tokens at a time, from similarities that are recomputed and not kept from the forward pass.

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

    d log_softmax(a)_i / d a_j = [i = j] - softmax(a)_j, where i is a prior that has chosen the
    token and j is any prior of the head. `slope` is the gradient of the loss with respect to the
    log-softmax of the chosen tokens. `chunk` is the number of tokens in a chunk.
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
