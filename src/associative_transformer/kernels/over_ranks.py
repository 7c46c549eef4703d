"""The bottleneck attention over a pool of tokens that several ranks share.

The ranks of a pool compute what one process with all tokens would. Each rank finds the best of
its own tokens; comparing their similarities shows which of them win in the whole pool. Each rank
then sums over its own winners, and these sums are added in the order of the ranks, so that
the write, and with it the memory, is the same bit for bit on all of them. Tokens and values are
not sent. For each layer, a rank sends S M (K + D + 1) + 2 numbers in the forward pass and
S M (D + 1) + 2 in the backward pass; for centered values, S (D + 1) more in both. Priors compete
for a token only on its own rank, so that competition needs no exchange.

All ranks must have the same number of tokens, unless `is_ragged` is set; the ranks then also
exchange their numbers of tokens.

Dims     T tokens of this rank   E token width   S heads   M priors   D head width
         K candidates on this rank   R = S * M rows of queries   W ranks of a pool
Source   Sun et al., CVPR 2025, section 3; the exchange is ours.
"""

import math
import os
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from associative_transformer import distributed
from associative_transformer.functional import AttendOutput, Selection
from associative_transformer.interface import UserError
from associative_transformer.kernels import sparse

Pool = Literal["global", "node", "local"]
"""Which tokens compete with each other: those of all ranks, of one machine, or of one rank."""


def ranks_of(pool: Pool) -> int:
    """Return how many neighboring ranks form a pool.

    Raises UserError if `pool` is "node" and the number of processes per node is unknown.
    """
    num_ranks = distributed.num_ranks()
    if pool == "global" or num_ranks == 1:
        return num_ranks
    if pool == "local":
        return 1
    size = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))  # torchrun sets it
    if not size or num_ranks % size:
        raise UserError(
            f"pool=node needs a LOCAL_WORLD_SIZE that divides the {num_ranks} processes, but it "
            f"is {size or 'not set'}: start with torchrun, or use pool=global or pool=local"
        )
    return size


def num_pools(pool: Pool) -> int:
    """Return how many pools the ranks form; a collective, so every rank has to call it.

    Raises UserError on all ranks if `ranks_of` does, or if the nodes differ in size.
    """
    if pool == "node":
        sizes = distributed.gather_objects(os.environ.get("LOCAL_WORLD_SIZE"))
        if len(set(sizes)) > 1:
            raise UserError(
                "pool=node needs the same number of processes on each node, but they have "
                f"{' and '.join(sorted(set(map(str, sizes))))}: use pool=global or pool=local"
            )
    return distributed.num_ranks() // ranks_of(pool)


def pooled_attention(
    q: Float[Tensor, "S M D"],
    tokens: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
    num_ranks: int,
    competition: str = "none",
    center_values: bool = False,
    is_ragged: bool = False,
) -> AttendOutput:
    """Let the priors attend to the tokens of all `num_ranks` ranks of this pool."""
    num_heads, num_priors, width = q.shape
    counts = _count_tokens(tokens, num_ranks) if is_ragged else [len(tokens)] * num_ranks
    num_tokens, most, own_tokens = sum(counts), max(counts), len(tokens)
    if not num_tokens:
        return attend_to_nothing(q, tokens, w_k, w_v)
    if not own_tokens:  # a token that never wins, so that every rank joins the collectives
        tokens = tokens.new_zeros(1, tokens.shape[1])
    limit = min(bottleneck or num_tokens, num_tokens)
    q, tokens, w_k, w_v = sparse.cast_for_autocast(q, tokens, w_k, w_v)
    q = q / math.sqrt(width)
    queries, count = (q @ w_k).flatten(0, 1), min(limit, len(tokens))  # (R, E)
    competing = num_priors if competition == "priors" else 0
    with torch.no_grad():
        similarity, chosen = sparse.find_most_similar(q, w_k, tokens, count, competing > 0)
        if is_ragged:
            similarity, chosen = _pad(similarity, chosen, own_tokens, min(limit, most))
        wins, largest = _find_winners(similarity, limit, num_ranks)
        wins &= (similarity > -torch.inf) | (not is_ragged)
    similarity = similarity.masked_fill(~wins, -torch.inf)
    weight, mixed = sparse.weigh_and_sum(queries, tokens, similarity, chosen, largest, competing)
    value = rearrange(mixed, "(s m) e -> s m e", s=num_heads) @ w_v.mT
    weight = rearrange(weight, "(s m) k -> s m k", s=num_heads)
    sums = torch.cat([value.to(weight.dtype), weight.sum(dim=-1, keepdim=True)], dim=-1)
    if center_values:
        sums = torch.cat([sums, _sum_values(tokens, w_v, own_tokens).to(sums.dtype)], dim=1)
    sums = distributed.add(sums, num_ranks)
    value, totals = sums[..., :-1] / sums[..., -1:], sums[:, :num_priors, -1:]
    if center_values:
        value = value[:, :num_priors] - value[:, num_priors:]
    score, sizes = weight / totals, (own_tokens, num_tokens)
    chosen, wins = (x.view(score.shape) for x in (chosen, wins))
    unevenness = _measure_unevenness(score, chosen, wins, sizes, limit, num_ranks)
    return AttendOutput(Selection(value[:, :num_priors].to(w_v.dtype), score, chosen), unevenness)


def _sum_values(
    tokens: Float[Tensor, "T E"], w_v: Float[Tensor, "S D E"], own_tokens: int
) -> Float[Tensor, "S 1 D1"]:
    """Return the sum of the values of this rank, followed by the number of its tokens."""
    mean = (w_v @ tokens.mean(dim=0))[:, None]
    mean = mean.to(torch.promote_types(mean.dtype, torch.float32))  # the sum may be large
    return torch.nn.functional.pad(mean * own_tokens, (0, 1), value=own_tokens)


def _find_winners(
    similarity: Float[Tensor, "R K"], limit: int, num_ranks: int
) -> tuple[Bool[Tensor, "R K"], Float[Tensor, " R"]]:
    """Return which similarities are among the `limit` largest of the pool, and the largest one.

    If similarities are equal, those of the lower rank win.
    """
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    gathered = distributed.gather(similarity.to(dtype), num_ranks)
    candidates = rearrange(gathered, "w r k -> r (w k)")
    if limit >= candidates.shape[1]:
        return torch.ones_like(similarity, dtype=torch.bool), candidates.amax(dim=-1)
    order = candidates.argsort(dim=-1, descending=True, stable=True)[:, :limit]
    wins = torch.zeros_like(candidates, dtype=torch.bool).scatter(1, order, True)
    first = distributed.rank() % num_ranks * similarity.shape[1]
    return wins[:, first : first + similarity.shape[1]], candidates.amax(dim=-1)


def _measure_unevenness(
    score: Float[Tensor, "S M K"],
    chosen: Int[Tensor, "S M K"],
    wins: Bool[Tensor, "S M K"],
    sizes: tuple[int, int],
    limit: int,
    num_ranks: int,
) -> Float[Tensor, ""]:
    """Compute `functional.balance_loss`, given the numbers of tokens of this and of all ranks."""
    (own_tokens, num_tokens), num_priors = sizes, score.shape[1]
    unused = score.new_zeros(len(score), max(own_tokens, 1))
    importance = unused.scatter_add(1, chosen.flatten(1), score.flatten(1))
    load = unused.scatter_add(1, chosen.flatten(1), wins.flatten(1).to(score.dtype))
    # both means are known: the scores of a prior sum to 1, and it has `limit` winners
    mean = score.new_tensor([num_priors / num_tokens, num_priors * limit / num_tokens])
    squares = (torch.stack([importance, load], dim=-1) - mean).square().sum(dim=(0, 1))
    squares = squares * (own_tokens > 0)
    variance = distributed.add(squares, num_ranks) / max(num_tokens - 1, 1)  # summed over heads
    return (variance / (mean.square() + 1e-10)).sum()


def attend_to_nothing(
    q: Float[Tensor, "S M D"],
    tokens: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
) -> AttendOutput:
    """Return what an empty pool writes: zeros, with gradients of zero for all weights."""
    zero = torch.stack([x.sum() for x in (q, tokens, w_k, w_v)]).sum() * 0.0
    score = q.new_zeros(*q.shape[:2], 0)
    return AttendOutput(Selection(torch.zeros_like(q) + zero, score, score.long()), zero)


def _count_tokens(tokens: Float[Tensor, "T E"], num_ranks: int) -> list[int]:
    """Return the number of tokens of each rank of the pool; a collective."""
    own = torch.tensor(float(len(tokens)), dtype=torch.float64, device=tokens.device)
    return [int(count) for count in distributed.gather(own, num_ranks).tolist()]


def _pad(
    similarity: Float[Tensor, "R J"], chosen: Int[Tensor, "R J"], own_tokens: int, count: int
) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """Add candidates that cannot win, so that all ranks have `count` of them."""
    if not own_tokens:
        similarity = torch.full_like(similarity, -torch.inf)
    missing = (0, count - similarity.shape[1])
    pad = torch.nn.functional.pad
    return pad(similarity, missing, value=-torch.inf), pad(chosen, missing)
