"""Faster or distributed implementations of `functional`, with the same results.

`attend`, the default of a workspace, picks one for the device and the process group.

Dims     T pooled tokens   E token width   S heads   M priors   D head width
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from associative_transformer import distributed, functional
from associative_transformer.functional import AttendOutput, Selection, balance_loss
from associative_transformer.kernels import over_ranks, sparse
from associative_transformer.kernels.over_ranks import Pool

FASTEST = {"cpu": sparse}
"""The module with the fastest implementation on each type of device (`docs/performance.md`);
`functional` is used on all others."""


def pooled_attention(
    q: Float[Tensor, "S M D"],
    tokens: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
) -> Selection:
    """Compute `functional.pooled_attention` with the fastest implementation for the device."""
    fastest = FASTEST.get(tokens.device.type, functional)
    return fastest.pooled_attention(q, tokens, w_k, w_v, bottleneck)


@dataclass(frozen=True)
class PoolAttention:
    """Attention of the priors to a pool of tokens in one process or in several.

    `GlobalWorkspace(192, attend=PoolAttention(functional.pooled_attention))` uses the plain
    implementation.
    """

    implementation: Callable[[Tensor, Tensor, Tensor, Tensor, int | None], Selection]
    """Any `pooled_attention` of this signature, for pools within one process. If several ranks
    share a pool, `over_ranks.pooled_attention` is used instead."""

    def __call__(
        self,
        q: Float[Tensor, "S M D"],
        tokens: Float[Tensor, "T E"],
        w_k: Float[Tensor, "S D E"],
        w_v: Float[Tensor, "S D E"],
        bottleneck: int | None,
        pool: Pool,
    ) -> AttendOutput:
        num_ranks = over_ranks.ranks_of(pool)
        if num_ranks > 1:
            return over_ranks.pooled_attention(q, tokens, w_k, w_v, bottleneck, num_ranks)
        selection = self.implementation(q, tokens, w_k, w_v, bottleneck)
        unevenness = balance_loss(selection.score, selection.chosen, len(tokens))
        return AttendOutput(selection, unevenness)

    def merge(self, written: Float[Tensor, "M D"], pool: Pool) -> Float[Tensor, "M D"]:
        """Average what the pools write to the memory that they share."""
        is_only_pool = over_ranks.ranks_of(pool) == distributed.num_ranks()
        return written if is_only_pool else distributed.mean(written)


attend = PoolAttention(pooled_attention)
"""The default attention of a workspace."""
