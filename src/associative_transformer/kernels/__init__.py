"""Fast twins of `functional`: the same numbers and gradients as the plain form.

Dims     T pooled tokens   E token width   S heads   M priors   D head width
"""

import torch
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


def broadcast(
    x: Float[Tensor, "*B E"],
    u: Float[Tensor, "*B E"],
    attractors: Float[Tensor, "M E"],
    beta: float,
    num_steps: int = 1,
) -> Float[Tensor, "*B E"]:
    """Give x + u + `functional.hopfield_retrieve(u, ...)`, summed inside the last product."""
    state = functional.hopfield_retrieve(u, attractors, beta, num_steps - 1)
    weight = functional.hopfield_weights(state, attractors, beta)
    if x.dtype != weight.dtype or u.dtype != weight.dtype:  # under autocast
        return x + u + weight @ attractors
    total = torch.add(x.flatten(0, -2), u.flatten(0, -2))
    return total.addmm_(weight.flatten(0, -2), attractors).view_as(x)
