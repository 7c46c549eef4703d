"""Keys and values as products with the weights of their layers, which are then never called.

Adapters (LoRA), pruning and hooks act only if a layer is called, so that a layer with any of
these is called after all.

Dims     T tokens, of a pool or of several images   E token width   S heads   M priors
         D width of a head   F width of the inputs of keys and values
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Sources(NamedTuple):
    """What keys and values are computed from: k = x W^K and v = x W^V for each head."""

    tokens: Float[Tensor, "*T F"]
    w_k: Float[Tensor, "S D F"]
    w_v: Float[Tensor, "S D F"]


def keys_and_values(
    tokens: Float[Tensor, "*T E"],
    to_k: nn.Module,
    to_v: nn.Module,
    q: Float[Tensor, "S M D"],
    is_differentiable: bool = True,
) -> Sources:
    """Return the tokens and the weights of both layers, or their outputs if they must be called.

    In the second case, the weights select the columns of each head. If it is not differentiable,
    W^V gets no gradient.
    """
    num_heads, _, width = q.shape
    if isinstance(to_k, nn.Linear) and isinstance(to_v, nn.Linear) and _can_absorb(to_k, to_v):
        # not with einops: torch.compile would guard on the type of a parameter and recompile
        w_k, w_v = (torch.unflatten(x.weight, 0, (num_heads, -1)) for x in (to_k, to_v))
    else:
        k, v = to_k(tokens), to_v(tokens)
        tokens = torch.cat([k, v if is_differentiable else v.detach()], dim=-1).to(q.dtype)
        columns = torch.eye(tokens.shape[-1], dtype=q.dtype, device=tokens.device)
        w_k, w_v = columns.view(2, num_heads, width, -1)
    # a detached write gives W^V no gradient at all, rather than one of zeros
    return Sources(tokens, w_k, w_v if is_differentiable else w_v.detach())


def is_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Return whether a layer is just a `kind`: not replaced, parametrized, patched or hooked."""
    if type(layer) is not kind or "forward" in layer.__dict__:
        return False
    return not any(getattr(layer, name) for name in _HOOKS)


def _can_absorb(*layers: nn.Linear) -> bool:
    # a weight of another type, such as a quantized one, may lack the operators that kernels use
    usual = (nn.Parameter, Tensor)
    return all(is_plain(x) and x.bias is None and type(x.weight) in usual for x in layers)
