"""Fast twins of `functional`: the same numbers and gradients as the plain form.

Dims     T pooled tokens   E token width   S heads   M priors   D head width
"""

from jaxtyping import Float
from torch import Tensor

from associative_transformer import functional
from associative_transformer.functional import Selection
from associative_transformer.kernels import sparse


def pooled_attention(
    q: Float[Tensor, "S M D"],
    pool: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
) -> Selection:
    """Let the priors attend to the pool, in the form that was measured as the fastest.

    That is `sparse` on a CPU. Elsewhere it is the plain one: `docs/performance.md` says what is
    measured where.
    """
    form = sparse if pool.device.type == "cpu" else functional
    return form.pooled_attention(q, pool, w_k, w_v, bottleneck)
