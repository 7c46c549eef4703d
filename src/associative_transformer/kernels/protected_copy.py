"""A copy of the memory that torch.compile does not remove.

Dims     M priors   D prior width
"""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.library.custom_op(
    "associative_transformer::protected_copy",
    mutates_args=(),
    schema="(Tensor memory) -> Tensor",
)
def protected_copy(memory: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
    """Copy a buffer that is overwritten between the forward and the backward pass.

    torch.compile (inductor, torch 2.14) treats a plain `clone` of a buffer as a no-op and saves
    the buffer itself for backward. It would then compute the gradients with the memory of the
    next step.
    """
    return memory.clone()


@protected_copy.register_fake
def _(memory: Tensor) -> Tensor:
    return torch.empty_like(memory)
