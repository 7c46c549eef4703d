"""Faster or distributed implementations of `functional`, with the same results.

`attend`, the default of a workspace, picks one for the device and the process group.

Dims     T pooled tokens   E token width   S heads   M priors   D head width
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from associative_transformer import distributed, functional
from associative_transformer.functional import AttendOutput, Selection, balance_loss
from associative_transformer.kernels import over_ranks, sparse
from associative_transformer.kernels.over_ranks import Pool

FASTEST = {"cpu": sparse}
"""The module with the fastest implementation on each type of device; `functional` is used on all
others. See `docs/explanation/performance.md`."""

Attend = Callable[..., AttendOutput]
"""A bottleneck attention: `attend(q, tokens, w_k, w_v, bottleneck, pool)` returns the selection
and its unevenness. It gets the queries (S, M, D), the tokens of this process (T, E), the weights
of keys and values (S, D, E), and the fields `bottleneck` and `pool` of `WorkspaceConfig`. The
fields `competition` and `center_values` are passed too, by keyword, only if they are on. With a
padding mask, so is `is_ragged=True`: the processes may then have different numbers of tokens, or
none. If `to_k` or `to_v` of a workspace has been replaced, parametrized (LoRA, pruning) or hooked,
both are called, and `attend` gets their outputs instead of the tokens, with weights that select
the columns of each head."""
Merge = Callable[[Tensor, Pool], Tensor]
"""A function that combines writes: `merge(written, pool)` gets what one pool writes (M, D) and
returns what all pools together write to the memory that they share, the same on all processes.
The default is the method `merge` of `attend`, if it has one."""
Share = Callable[[nn.Dropout, Tensor], Tensor]
"""A function that applies dropout with one mask for all processes: `share(dropout, update)` gets
what is added to the priors (M, D). It is the method `share` of `attend`, if it has one."""


def pooled_attention(
    q: Float[Tensor, "S M D"],
    tokens: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
    competition: str = "none",
    center_values: bool = False,
) -> Selection:
    """Compute `functional.pooled_attention` with the fastest implementation for the device."""
    fastest = FASTEST.get(tokens.device.type, functional)
    rules = rules_that_are_on(competition, center_values)
    return fastest.pooled_attention(q, tokens, w_k, w_v, bottleneck, **rules)


def rules_that_are_on(
    competition: str, center_values: bool, is_ragged: bool = False
) -> dict[str, Any]:
    """Return keyword arguments for an attention; none for an attention that has no such rules."""
    rules = {"competition": competition, "center_values": center_values, "is_ragged": is_ragged}
    return {name: value for name, value in rules.items() if value not in ("none", False)}


@dataclass(frozen=True)
class PoolAttention:
    """Attention of the priors to a pool of tokens in one process or in several.

    `GlobalWorkspace(192, attend=PoolAttention(functional.pooled_attention))` uses the plain
    implementation.
    """

    implementation: Callable[..., Selection]
    """Any function with the signature of `functional.pooled_attention`, for pools within one
    process. It gets `competition` and `center_values` only if they are on. If several ranks share
    a pool, `over_ranks.pooled_attention` is used instead."""

    def __call__(
        self,
        q: Float[Tensor, "S M D"],
        tokens: Float[Tensor, "T E"],
        w_k: Float[Tensor, "S D E"],
        w_v: Float[Tensor, "S D E"],
        bottleneck: int | None,
        pool: Pool,
        competition: str = "none",
        center_values: bool = False,
        is_ragged: bool = False,
    ) -> AttendOutput:
        num_ranks = over_ranks.ranks_of(pool)
        if num_ranks > 1:
            rules = rules_that_are_on(competition, center_values, is_ragged)
            return over_ranks.pooled_attention(q, tokens, w_k, w_v, bottleneck, num_ranks, **rules)
        if is_ragged and not len(tokens):
            return over_ranks.attend_to_nothing(q, tokens, w_k, w_v)
        rules = rules_that_are_on(competition, center_values)
        selection = self.implementation(q, tokens, w_k, w_v, bottleneck, **rules)
        unevenness = balance_loss(selection.score, selection.chosen, len(tokens))
        return AttendOutput(selection, unevenness)

    def merge(self, written: Float[Tensor, "M D"], pool: Pool) -> Float[Tensor, "M D"]:
        """Average what the pools write to the memory that they share."""
        is_only_pool = over_ranks.ranks_of(pool) == distributed.num_ranks()
        return written if is_only_pool else distributed.mean(written)

    def share(self, dropout: nn.Dropout, update: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Apply dropout with the mask that rank 0 draws, whatever the seeds of the ranks."""
        if distributed.num_ranks() == 1 or not (dropout.training and dropout.p):
            return dropout(update)
        return update * distributed.of_first(dropout(torch.ones_like(update)))


def merge_of(attend: Attend) -> Merge:
    """Return how an attention combines writes: its method `merge`, if it has one."""
    return getattr(attend, "merge", _keep)


def share_of(attend: Attend) -> Share:
    """Return how an attention applies dropout: its method `share`, if it has one."""
    return getattr(attend, "share", _apply)


def _keep(written: Float[Tensor, "M D"], pool: Pool) -> Float[Tensor, "M D"]:
    return written


def _apply(dropout: nn.Dropout, update: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
    return dropout(update)


attend = PoolAttention(pooled_attention)
"""The default attention of a workspace."""
