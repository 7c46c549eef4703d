"""Pooled attention that works on the winners only: no keys, no values, no dense gates.

The key map is absorbed into the queries, q W^K, and the value map follows the sum, W^V (score u),
so that priors and tokens meet at the tokens' own width. Similarities are computed for `CHUNK`
tokens at a time and only the winners' are kept; what follows touches no other token. Beside the
gradient of the tokens, the memory is O(S M (CHUNK + K + E)), whatever T.

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

CHUNK = 16_384
"""Tokens whose scores are held at once."""


def pooled_attention(
    q: Float[Tensor, "S M D"],
    pool: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
) -> Selection:
    """Give what `functional.pooled_attention` gives; it can be differentiated once.

    Matrix products take the precision of autocast; softmax is computed in float32 at least.
    """
    if bottleneck is None or bottleneck >= len(pool):  # all win: nothing is sparse
        return functional.pooled_attention(q, pool, w_k, w_v, bottleneck)
    q, pool, w_k, w_v = in_autocast(q, pool, w_k, w_v)
    q = q / math.sqrt(q.shape[-1])
    asked = (q @ w_k).flatten(0, 1)  # (R, E)
    with torch.no_grad():
        similarity, chosen = choose(q, w_k, pool, bottleneck)
    weight, taken = take(asked, pool, similarity, chosen, similarity.amax(dim=-1))
    total = weight.sum(dim=-1, keepdim=True)  # (R, 1)
    value = (taken / total).to(w_v.dtype).view(*q.shape[:2], -1) @ w_v.mT
    shape = (*q.shape[:2], bottleneck)
    return Selection(value, (weight / total).view(shape), chosen.view(shape))


def in_autocast(*tensors: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
    """Give tensors the precision of autocast, where it is on: it does not see into operators."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


@torch.library.custom_op(
    "associative_transformer::choose",
    mutates_args=(),
    schema="(Tensor q, Tensor w_k, Tensor pool, int bottleneck) -> (Tensor, Tensor)",
)
def choose(
    q: Float[Tensor, "S M D"],
    w_k: Float[Tensor, "S D E"],
    pool: Float[Tensor, "T E"],
    bottleneck: int,
) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """Find the tokens most similar to each query, their similarities and positions.

    Of equally similar tokens any may win, the same in every repetition.
    """
    num_heads, num_priors, width = q.shape
    asked = (q @ w_k).flatten(0, 1) if num_priors <= width else None
    best = q.new_empty(num_heads * num_priors, 0)
    chosen = best.new_empty(best.shape, dtype=torch.long)
    for start in range(0, len(pool), CHUNK):
        tokens = pool[start : start + CHUNK]
        if asked is not None:
            similarity = asked @ tokens.mT
        else:  # fewer operations with keys
            similarity = (q @ (w_k @ tokens.mT)).flatten(0, 1)
        top, place = similarity.topk(min(bottleneck, similarity.shape[1]), dim=-1)
        best, chosen = torch.cat([best, top], dim=-1), torch.cat([chosen, place + start], dim=-1)
        if start:
            best, order = best.topk(min(bottleneck, best.shape[1]), dim=-1)
            chosen = chosen.gather(1, order)
    return best, chosen


@choose.register_fake
def _(q: Tensor, w_k: Tensor, pool: Tensor, bottleneck: int) -> tuple[Tensor, Tensor]:
    best = q.new_empty(q.shape[0] * q.shape[1], bottleneck)
    return best, best.new_empty(best.shape, dtype=torch.long)


@torch.library.custom_op(
    "associative_transformer::take",
    mutates_args=(),
    schema="(Tensor asked, Tensor pool, Tensor similarity, Tensor chosen, Tensor shift)"
    " -> (Tensor, Tensor)",
)
def take(
    asked: Float[Tensor, "R E"],
    pool: Float[Tensor, "T E"],
    similarity: Float[Tensor, "R K"],
    chosen: Int[Tensor, "R K"],
    shift: Float[Tensor, " R"],
) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R E"]]:
    """Weigh the chosen tokens by exp(similarity - shift) and sum them; give weights and sums.

    Both want a division by the sum of the weights. `similarity` is that of `asked` to the chosen
    rows of the pool; it is not computed again, but gradients go to those two. `shift` keeps the
    weights small and is a constant. A token with the similarity -inf takes no part.
    """
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    weight = (similarity.to(dtype) - shift[:, None].to(dtype)).exp()
    return weight, _weighted_sum(weight, chosen, pool)


@take.register_fake
def _(
    asked: Tensor, pool: Tensor, similarity: Tensor, chosen: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    return torch.empty_like(similarity, dtype=dtype), torch.empty_like(asked)


@torch.library.custom_op(
    "associative_transformer::take_backward",
    mutates_args=(),
    schema="(Tensor weight_grad, Tensor taken_grad, Tensor asked, Tensor pool, Tensor weight,"
    " Tensor chosen) -> (Tensor, Tensor)",
)
def take_backward(
    weight_grad: Float[Tensor, "R K"],
    taken_grad: Float[Tensor, "R E"],
    asked: Float[Tensor, "R E"],
    pool: Float[Tensor, "T E"],
    weight: Float[Tensor, "R K"],
    chosen: Int[Tensor, "R K"],
) -> tuple[Float[Tensor, "R E"], Float[Tensor, "T E"]]:
    """Give the gradients of `asked` and `pool`."""
    num_rows, bottleneck = chosen.shape
    starts = torch.arange(0, chosen.numel(), bottleneck, device=chosen.device)
    rows = torch.arange(num_rows, device=chosen.device).repeat_interleave(bottleneck)
    agreement = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        taken_grad.contiguous(), pool, chosen.flatten(), starts, rows, 0
    )  # of each taken row of the pool with the gradient of their sum
    slope = weight * (weight_grad + agreement.view_as(weight))  # of the similarity
    asked_grad = _weighted_sum(slope, chosen, pool)
    # each token gathers from the rows that chose it, once for its similarity, once for its value
    token, order = chosen.flatten().sort(stable=True)
    starts = torch.searchsorted(token, torch.arange(len(pool), device=token.device))
    rows = torch.stack([rows[order], rows[order] + num_rows], dim=-1)
    weights = torch.stack([slope.flatten()[order], weight.flatten()[order]], dim=-1)
    pool_grad = embedding_bag(
        rows.flatten(),
        torch.cat([asked, taken_grad]),
        2 * starts,
        mode="sum",
        per_sample_weights=weights.flatten().to(pool.dtype),
    )
    return asked_grad, pool_grad


@take_backward.register_fake
def _(
    weight_grad: Tensor,
    taken_grad: Tensor,
    asked: Tensor,
    pool: Tensor,
    weight: Tensor,
    chosen: Tensor,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(asked), torch.empty_like(pool)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    asked, pool, _, chosen, _ = inputs
    ctx.save_for_backward(asked, pool, output[0], chosen)


def _differentiate(ctx: Any, weight_grad: Tensor, taken_grad: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    return *take_backward(weight_grad, taken_grad, *ctx.saved_tensors), None, None, None


take.register_autograd(_differentiate, setup_context=_keep)


def _weighted_sum(
    weight: Float[Tensor, "R K"], chosen: Int[Tensor, "R K"], pool: Float[Tensor, "T E"]
) -> Float[Tensor, "R E"]:
    """Sum the chosen rows of the pool."""
    return embedding_bag(chosen, pool, mode="sum", per_sample_weights=weight.to(pool.dtype))
