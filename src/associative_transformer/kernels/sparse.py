"""Pooled attention that works on the winners only: no keys, no values, no dense attention matrix.

The key map is absorbed into the queries, q W^K, and the value map is applied after the weighted
sum, W^V (score u), so that keys and values of the pool are never stored. Similarities are computed
for `CHUNK` tokens at a time, and only those of the winners are kept; the other tokens are not read
again. Apart from the gradient of the tokens, this takes O(S M (CHUNK + K + E)) memory, regardless
of T.

If priors compete (`kernels/competition.py`), the backward pass computes all similarities again,
also in chunks: three more products of the size of the one in the forward pass, and S T numbers.

Centered values need no values either, since the scores sum to 1: W^V (score u - mean(u)).

Dims     T pooled tokens   E token width   S heads   M priors   D head width   K bottleneck
         R = S * M rows of queries
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from associative_transformer import functional
from associative_transformer.functional import Selection
from associative_transformer.kernels.competition import by_head, subtract_shares
from associative_transformer.kernels.largest import largest

CHUNK = 16_384
"""Number of tokens whose similarities are in memory at the same time."""
DENSE = 32
"""In bfloat16, a matrix product with all tokens is faster than gathering the winners if the pool
has at most this many times K tokens (`benchmarks/write_parts.py`)."""


def pooled_attention(
    q: Float[Tensor, "S M D"],
    tokens: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
    competition: str = "none",
    center_values: bool = False,
) -> Selection:
    """Compute `functional.pooled_attention`; can be differentiated once.

    Under autocast, matrix products use its precision; softmax and log-softmax use at least
    float32.
    """
    rules = (competition, center_values)
    if bottleneck is None or bottleneck >= len(tokens):  # all win: nothing is sparse
        return functional.pooled_attention(q, tokens, w_k, w_v, bottleneck, *rules)
    q, tokens, w_k, w_v = cast_for_autocast(q, tokens, w_k, w_v)
    q = q / math.sqrt(q.shape[-1])
    queries = (q @ w_k).flatten(0, 1)  # (R, E)
    competing = q.shape[1] if competition == "priors" else 0
    with torch.no_grad():
        similarity, chosen = find_most_similar(q, w_k, tokens, bottleneck, competing > 0)
    shift = similarity.amax(dim=-1)
    weight, mixed = weigh_and_sum(queries, tokens, similarity, chosen, shift, competing)
    total = weight.sum(dim=-1, keepdim=True)  # (R, 1)
    mixed = mixed / total
    if center_values:
        mixed = mixed - tokens.mean(dim=0, dtype=mixed.dtype)
    value = mixed.to(w_v.dtype).view(*q.shape[:2], -1) @ w_v.mT
    shape = (*q.shape[:2], bottleneck)
    return Selection(value, (weight / total).view(shape), chosen.view(shape))


def cast_for_autocast(*tensors: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
    """Cast tensors to the precision of autocast if it is on: it has no effect inside operators."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


@torch.library.custom_op(
    "associative_transformer::find_most_similar",
    mutates_args=(),
    schema="(Tensor q, Tensor w_k, Tensor tokens, int bottleneck, bool competes=False)"
    " -> (Tensor, Tensor)",
)
def find_most_similar(
    q: Float[Tensor, "S M D"],
    w_k: Float[Tensor, "S D E"],
    tokens: Float[Tensor, "T E"],
    bottleneck: int,
    competes: bool = False,
) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """Return similarities and positions of the `bottleneck` tokens most similar to each query.

    If priors compete, each similarity is replaced by its log-softmax over the priors of the head.
    If several tokens are equally similar, any of them may win, but the same ones every time.
    """
    num_heads, num_priors, width = q.shape
    queries = (q @ w_k).flatten(0, 1) if num_priors <= width else None
    best = q.new_empty(num_heads * num_priors, 0, dtype=_dtype(q, competes))
    chosen = best.new_empty(best.shape, dtype=torch.long)
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        if queries is not None:
            similarity = queries @ chunk.mT
        else:  # for more priors than D, computing the keys takes fewer operations
            similarity = (q @ (w_k @ chunk.mT)).flatten(0, 1)
        if competes:
            similarity = by_head(similarity, num_heads).log_softmax(dim=1).flatten(0, 1)
        index = largest(similarity, min(bottleneck, similarity.shape[1]))
        best = torch.cat([best, similarity.gather(1, index)], dim=-1)
        chosen = torch.cat([chosen, index + start], dim=-1)
        if start:
            index = largest(best, min(bottleneck, best.shape[1]))
            best, chosen = best.gather(1, index), chosen.gather(1, index)
    return best, chosen


@find_most_similar.register_fake
def _(
    q: Tensor, w_k: Tensor, tokens: Tensor, bottleneck: int, competes: bool = False
) -> tuple[Tensor, Tensor]:
    best = q.new_empty(q.shape[0] * q.shape[1], bottleneck, dtype=_dtype(q, competes))
    return best, best.new_empty(best.shape, dtype=torch.long)


def _dtype(q: Tensor, competes: bool) -> torch.dtype:
    """Return the dtype of the similarities: a log-softmax is computed in at least float32."""
    return torch.promote_types(q.dtype, torch.float32) if competes else q.dtype


@torch.library.custom_op(
    "associative_transformer::weigh_and_sum",
    mutates_args=(),
    schema="(Tensor queries, Tensor tokens, Tensor similarity, Tensor chosen, Tensor shift,"
    " int competing=0) -> (Tensor, Tensor)",
)
def weigh_and_sum(
    queries: Float[Tensor, "R E"],
    tokens: Float[Tensor, "T E"],
    similarity: Float[Tensor, "R K"],
    chosen: Int[Tensor, "R K"],
    shift: Float[Tensor, " R"],
    competing: int = 0,
) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R E"]]:
    """Return the weights exp(similarity - shift) of the chosen tokens, and their weighted sums.

    The caller has to divide both by the sum of the weights. `similarity` must be that of `queries`
    to the chosen rows of `tokens`; it is not recomputed, and its gradient flows to these two.
    `shift` is a constant that keeps the exponential from overflowing. A similarity of -inf
    excludes a token. `competing` is the number of priors of a head if they compete, otherwise 0.
    """
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    weight = (similarity.to(dtype) - shift[:, None].to(dtype)).exp()
    return weight, _weighted_sum(weight, chosen, tokens)


@weigh_and_sum.register_fake
def _(
    queries: Tensor,
    tokens: Tensor,
    similarity: Tensor,
    chosen: Tensor,
    shift: Tensor,
    competing: int = 0,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    return torch.empty_like(similarity, dtype=dtype), torch.empty_like(queries)


@torch.library.custom_op(
    "associative_transformer::weigh_and_sum_backward",
    mutates_args=(),
    schema="(Tensor weight_grad, Tensor mixed_grad, Tensor queries, Tensor tokens, Tensor weight,"
    " Tensor chosen, int competing=0) -> (Tensor, Tensor)",
)
def weigh_and_sum_backward(
    weight_grad: Float[Tensor, "R K"],
    mixed_grad: Float[Tensor, "R E"],
    queries: Float[Tensor, "R E"],
    tokens: Float[Tensor, "T E"],
    weight: Float[Tensor, "R K"],
    chosen: Int[Tensor, "R K"],
    competing: int = 0,
) -> tuple[Float[Tensor, "R E"], Float[Tensor, "T E"]]:
    """Return the gradients of `queries` and `tokens`, given those of the weights and the sums."""
    is_dense = tokens.dtype == torch.bfloat16 and len(tokens) <= DENSE * chosen.shape[1]
    if is_dense:
        agreement = (mixed_grad @ tokens.mT).gather(1, chosen)
    else:
        agreement = _dot_products(mixed_grad, tokens, chosen)
    slope = weight * (weight_grad + agreement)  # gradient of the similarity
    queries_grad = _weighted_sum(slope, chosen, tokens)
    # each row contributes twice to the gradient of a token: through its similarity and its value
    add = _add_densely if is_dense else _add_by_token
    tokens_grad = add(queries, slope, mixed_grad, weight, chosen, tokens)
    if competing:
        gradients = (queries_grad, tokens_grad)
        subtract_shares(*gradients, queries, tokens, slope, chosen, competing, CHUNK)
    return queries_grad, tokens_grad


@weigh_and_sum_backward.register_fake
def _(
    weight_grad: Tensor,
    mixed_grad: Tensor,
    queries: Tensor,
    tokens: Tensor,
    weight: Tensor,
    chosen: Tensor,
    competing: int = 0,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(queries), torch.empty_like(tokens)


def _save_for_backward(
    ctx: Any,  # noqa: ANN401
    inputs: tuple[Any, ...],
    output: tuple[Tensor, Tensor],
) -> None:
    queries, tokens, _, chosen, _, ctx.competing = inputs
    ctx.save_for_backward(queries, tokens, output[0], chosen)


def _differentiate(ctx: Any, weight_grad: Tensor, mixed_grad: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    tensors = (weight_grad, mixed_grad, *ctx.saved_tensors)
    return *weigh_and_sum_backward(*tensors, ctx.competing), None, None, None, None


weigh_and_sum.register_autograd(_differentiate, setup_context=_save_for_backward)


def _weighted_sum(
    weight: Float[Tensor, "R K"], chosen: Int[Tensor, "R K"], tokens: Float[Tensor, "T E"]
) -> Float[Tensor, "R E"]:
    """Sum the chosen tokens of each row with their weights."""
    return embedding_bag(chosen, tokens, mode="sum", per_sample_weights=weight.to(tokens.dtype))


def _dot_products(
    rows: Float[Tensor, "R E"], tokens: Float[Tensor, "T E"], chosen: Int[Tensor, "R K"]
) -> Float[Tensor, "R K"]:
    """Return the dot product of each row with each of its chosen tokens."""
    num_rows, bottleneck = chosen.shape
    starts = torch.arange(0, chosen.numel(), bottleneck, device=chosen.device)
    row = torch.arange(num_rows, device=chosen.device).repeat_interleave(bottleneck)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows.contiguous(), tokens, chosen.flatten(), starts, row, 0
    )
    return products.view_as(chosen)


def _add_by_token(
    queries: Float[Tensor, "R E"],
    slope: Float[Tensor, "R K"],
    mixed_grad: Float[Tensor, "R E"],
    weight: Float[Tensor, "R K"],
    chosen: Int[Tensor, "R K"],
    tokens: Float[Tensor, "T E"],
) -> Float[Tensor, "T E"]:
    """Sum, for each token, both contributions of the rows that have chosen it."""
    token, order = chosen.flatten().sort(stable=True)
    starts = torch.searchsorted(token, torch.arange(len(tokens), device=token.device))
    row = order // chosen.shape[1]
    by_similarity, by_value = (
        embedding_bag(row, rows, starts, mode="sum", per_sample_weights=each.flatten()[order])
        for rows, each in (
            (queries, slope.to(tokens.dtype)),
            (mixed_grad, weight.to(tokens.dtype)),
        )
    )
    return by_similarity.add_(by_value)


def _add_densely(
    queries: Float[Tensor, "R E"],
    slope: Float[Tensor, "R K"],
    mixed_grad: Float[Tensor, "R E"],
    weight: Float[Tensor, "R K"],
    chosen: Int[Tensor, "R K"],
    tokens: Float[Tensor, "T E"],
) -> Float[Tensor, "T E"]:
    """Compute the same as `_add_by_token`, as a matrix product with all tokens."""
    gates = tokens.new_zeros(2 * len(chosen), len(tokens))
    first = torch.arange(0, gates.numel(), len(tokens), device=chosen.device)[:, None]
    # scatter_ would copy all gates twice
    gates.put_(chosen.repeat(2, 1) + first, torch.cat([slope, weight]).to(gates.dtype))
    return gates.mT @ torch.cat([queries, mixed_grad])
