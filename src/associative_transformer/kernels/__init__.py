"""Fast twins of `functional`: the same numbers and gradients as the plain form.

Dims     T pooled tokens   E token width   S heads   M priors   D head width
"""

from jaxtyping import Float
from torch import Tensor

from associative_transformer import functional
from associative_transformer.functional import Selection
from associative_transformer.kernels import sparse

FASTEST = {"cpu": sparse}
"""The form that was measured as the fastest, by kind of device; `docs/performance.md` has what."""


def pooled_attention(
    q: Float[Tensor, "S M D"],
    pool: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
) -> Selection:
    """Let the priors attend to the pool in the form of `FASTEST`, elsewhere in the plain one."""
    form = FASTEST.get(pool.device.type, functional)
    return form.pooled_attention(q, pool, w_k, w_v, bottleneck)
