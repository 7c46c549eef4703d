"""The bottleneck attention over a pool of tokens that several ranks share."""

import math
import os
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from associative_transformer import distributed
from associative_transformer.functional import Selection
from associative_transformer.interface import UserError
from associative_transformer.kernels import sparse

Pool = Literal["global", "node", "local"]


class Pooled(NamedTuple):
    """What the priors take from a pool over several ranks."""

    selection: Selection  # value: over the pool; score, chosen: of this rank, score 0: lost
    unevenness: Float[Tensor, ""]  # the balance loss over the pool


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def ranks_of(pool: Pool) -> int:
    """Count the ranks, neighbours by number, that form a pool.

    Raises UserError where the nodes can't be told apart, or differ in size.
    """
    ranks = distributed.num_ranks()
    if pool == "global" or ranks == 1:
        return ranks
    if pool == "local":
        return 1
    size = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if not size or ranks % size:
        raise UserError(
            f"pools per node need LOCAL_WORLD_SIZE, which torchrun sets, to divide the {ranks} "
            f"processes, and it is {size or 'not set'}: take pool=global or pool=local"
        )
    return size


def num_pools(pool: Pool) -> int:
    """Count the pools of all ranks; all have to call. Raises UserError, on all, as `ranks_of`."""
    if pool == "node":
        sizes = distributed.gather_objects(os.environ.get("LOCAL_WORLD_SIZE"))
        if len(set(sizes)) > 1:
            raise UserError(
                "pools per node need equally many processes on each node, and they have "
                f"{' and '.join(sorted(set(map(str, sizes))))}: take pool=global or pool=local"
            )
    return distributed.num_ranks() // ranks_of(pool)


def pooled_attention(
    q: Float[Tensor, "S M D"],
    pool: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
    ranks: int,
) -> Pooled:
    """Let the priors attend to the tokens of this rank and its neighbours in the pool.

    `ranks`: how many ranks a pool has. Measures too how evenly its tokens are used.
    """
    num_heads, num_priors, width = q.shape
    num_tokens = ranks * len(pool)
    limit = min(bottleneck or num_tokens, num_tokens)
    q, pool, w_k, w_v = sparse.in_autocast(q, pool, w_k, w_v)
    q = q / math.sqrt(width)
    asked = (q @ w_k).flatten(0, 1)  # (R, E)
    with torch.no_grad():
        similarity, chosen = sparse.choose(q, w_k, pool, min(limit, len(pool)))
        wins, largest = _compare(similarity, limit, ranks)
    similarity = similarity.masked_fill(~wins, -torch.inf)
    weight, taken = sparse.take(asked, pool, similarity, chosen, largest)
    value = rearrange(taken, "(s m) e -> s m e", s=num_heads) @ w_v.mT
    weight = rearrange(weight, "(s m) k -> s m k", s=num_heads)
    sums = torch.cat([value.to(weight.dtype), weight.sum(dim=-1, keepdim=True)], dim=-1)
    sums = distributed.add(sums, ranks)
    score = weight / sums[..., -1:]
    chosen, wins = (x.view(score.shape) for x in (chosen, wins))
    unused = score.new_zeros(num_heads, len(pool))
    importance = unused.scatter_add(1, chosen.flatten(1), score.flatten(1))
    load = unused.scatter_add(1, chosen.flatten(1), wins.flatten(1).to(score.dtype))
    # the mean of either is known: a row of the scores sums to 1, and has `limit` winners
    mean = score.new_tensor([num_priors / num_tokens, num_priors * limit / num_tokens])
    squares = (torch.stack([importance, load], dim=-1) - mean).square().sum(dim=(0, 1))
    variance = distributed.add(squares, ranks) / max(num_tokens - 1, 1)  # summed over the heads
    unevenness = (variance / (mean.square() + 1e-10)).sum()
    value = (sums[..., :-1] / sums[..., -1:]).to(w_v.dtype)
    return Pooled(Selection(value, score, chosen), unevenness)


def _compare(
    similarity: Float[Tensor, "R K"], limit: int, ranks: int
) -> tuple[Bool[Tensor, "R K"], Float[Tensor, " R"]]:
    """Tell which similarities are among the `limit` largest of the pool, and the largest of all.

    Of equal ones the first in the order of ranks wins.
    """
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    everyone = rearrange(distributed.gather(similarity.to(dtype), ranks), "w r k -> r (w k)")
    if limit >= everyone.shape[1]:
        return torch.ones_like(similarity, dtype=torch.bool), everyone.amax(dim=-1)
    order = everyone.argsort(dim=-1, descending=True, stable=True)[:, :limit]
    wins = torch.zeros_like(everyone, dtype=torch.bool).scatter(1, order, True)
    first = distributed.rank() % ranks * similarity.shape[1]
    return wins[:, first : first + similarity.shape[1]], everyone.amax(dim=-1)
